"""The rows, one function each: ours and what it is compared with, in turns, in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.bench.bench import Bench
from tests.bench.rows import cells, cost, life, starts, values
from tests.bench.table import Figure

ROWS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "start": starts.start,
    "first": starts.first,
    "unseen": starts.unseen,
    "pass": cells.pass_cell,
    "switch": cells.switch,
    "interrupt": life.interrupt,
    "restart": life.restart,
    "stop": life.stop,
    "left": life.left,
    "output": cells.output,
    "addresses": life.addresses,
    "extension": cost.extension,
    "memory": cost.memory,
    "idle": cost.idle,
    "many": cost.many,
    "values": values.values,
}
