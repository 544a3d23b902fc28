"""The rows, one function each: ours and what it is compared with, in turns, in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tests.bench.bench import (
    IPYKERNEL5,
    IPYKERNEL7,
    PYTHON311,
    TENSORFLOW,
    TENSORFLOW27,
    Bench,
)
from tests.bench.peers import GATEWAY_IMAGE
from tests.bench.rows import cells, cost, life, starts, values
from tests.bench.table import Figure

ROWS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "start": starts.start,
    "first": starts.first,
    "unseen": starts.unseen,
    "warm": starts.warm,
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

ALONE = frozenset({"first", "warm", "unseen", "extension", "memory", "idle", "many"})
"""Rows without peers."""

_IMAGES = {
    "start": (PYTHON311, IPYKERNEL7, TENSORFLOW, TENSORFLOW27),
    "pass": (PYTHON311, IPYKERNEL7, TENSORFLOW, TENSORFLOW27),
    "interrupt": (IPYKERNEL7, IPYKERNEL5, TENSORFLOW27),
    "values": (values.IMAGE,),
    "warm": (PYTHON311,),
}


def images_of(rows: Iterable[str], peers: Iterable[str]) -> list[str]:
    """Return the images that rows need."""
    needed = [image for row in rows for image in _IMAGES.get(row, (PYTHON311, IPYKERNEL7))]
    return list(dict.fromkeys([*needed, *([GATEWAY_IMAGE] if "gateway" in peers else [])]))
