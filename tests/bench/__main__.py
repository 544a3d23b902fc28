"""``python -m tests.bench [--rows start,pass] [--peers sos] [--quick] [--out PATH]``."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import docker

from dockml_magic.labels import WORKSPACE
from tests.bench.floor import LABEL, remove_labelled
from tests.bench.peers import PEERS, end_processes
from tests.bench.rows import FIGURES, Bench
from tests.bench.table import Row, markdown, write


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it; return 1 where a goal is missed under --strict."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rows", default=",".join(FIGURES), help="default: %(default)s")
    parser.add_argument("--peers", default=",".join(PEERS), help="'' is none; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a smoke run: two samples each")
    parser.add_argument("--out", type=Path, help="write PATH.csv and PATH.md")
    parser.add_argument("--strict", action="store_true", help="fail where a goal is missed")
    parsed = parser.parse_args(words)
    names = parsed.rows.split(",")
    peers = [name for name in parsed.peers.split(",") if name]
    for what, given, known in (("rows", names, list(FIGURES)), ("peers", peers, list(PEERS))):
        if unknown := set(given) - set(known):
            parser.error(f"no such {what}: {', '.join(sorted(unknown))}; of {', '.join(known)}")
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    rows: list[Row] = []
    engine = docker.from_env()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dockml-bench-"))
        for label in (LABEL, WORKSPACE):
            stack.callback(remove_labelled, engine, f"{label}={folder}")
        stack.callback(end_processes, Path(folder))
        bench = Bench(
            engine=engine,
            workspace=Path(folder),
            quick=parsed.quick,
            peers=tuple(PEERS[name] for name in peers),
        )
        for name in names:
            for row in FIGURES[name](bench):
                rows.append(row)
                print(f"{row.figure}: {row.result}", file=sys.stderr, flush=True)
    note = (
        f"Medians, in brackets the quartiles; n samples each, taken in turns; "
        f"what relaying adds is a block's median of ten cells less the direct client's. "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"Docker engine {engine.version()['Version']}."
    )
    print(markdown(rows) + "\n" + note)
    if parsed.out:
        write(rows, parsed.out, note)
    return int(parsed.strict and any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
