"""``python -m tests.bench [--rows start,pass] [--peers sos] [--quick] [--out PATH]``."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker

from tests.bench.bench import Bench
from tests.bench.peers import PEERS, Peer
from tests.bench.plot import plot
from tests.bench.rows import ALONE, ROWS, images_of
from tests.bench.sessions import end_processes
from tests.bench.table import US, Absent, Figure, Goal, markdown, write
from tests.images.build import build


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it; return 1 where a goal is missed under --strict."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help="default: %(default)s")
    parser.add_argument("--peers", default=",".join(PEERS), help="'' is none; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a smoke run: two samples each")
    parser.add_argument("--out", type=Path, help="write PATH.csv, PATH.md and PATH.svg")
    parser.add_argument("--strict", action="store_true", help="fail where a goal is missed")
    parsed = parser.parse_args(words)
    names = parsed.rows.split(",")
    peers = [name for name in parsed.peers.split(",") if name]
    for what, given, known in (("rows", names, list(ROWS)), ("peers", peers, list(PEERS))):
        if unknown := set(given) - set(known):
            parser.error(f"no such {what}: {', '.join(sorted(unknown))}; of {', '.join(known)}")
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    figures: list[Figure] = []
    was_stopped = False
    engine = docker.from_env(timeout=120)
    build(images_of(names, peers), engine)
    began = time.monotonic()
    if set(names) - ALONE:
        _install(PEERS[name] for name in peers)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dockml-bench-"))
        bench = Bench(
            engine=engine,
            workspace=Path(folder),
            quick=parsed.quick,
            peers=tuple(PEERS[name] for name in peers),
        )
        stack.callback(_clear_up, bench)
        try:
            for name in names:
                since = time.monotonic()
                for figure in _figures(bench, name):
                    figures.append(figure)
                    print(markdown([figure]), file=sys.stderr, flush=True)
                    if parsed.out:  # what is known so far, should this end before its end
                        write(figures, parsed.out, "Not all rows yet.")
                print(f"{name}: {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            was_stopped = True
            print("Stopped. Clearing up.", file=sys.stderr, flush=True)
    note = (
        f"Medians, in brackets the quartiles; n samples each, taken in turns; "
        f"what relaying adds is a block's median of ten cells less the direct client's. "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"Docker engine {engine.version()['Version']}; {(time.monotonic() - began) / 60:.0f} minutes."
    )
    print(markdown(figures) + "\n" + note)
    if parsed.out:
        write(figures, parsed.out, note)
        plot(figures, parsed.out.with_name(parsed.out.name + ".svg"))
    if was_stopped:
        return 130
    return int(parsed.strict and any(f.is_met(who) is False for f in figures for who in f.samples))


def _install(peers: Iterable[Peer]) -> None:
    """Make the environments of peers, several at a time. Why one cannot be made is said in its rows."""

    def install(peer: Peer) -> None:
        with contextlib.suppress(Absent):
            peer.install()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(install, peers))


def _figures(bench: Bench, name: str) -> Iterator[Figure]:
    """Give a row's figures; one that says why, where we could not be measured at all. The other rows go on."""
    try:
        yield from ROWS[name](bench)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not the other rows'
        traceback.print_exc()
        why = str(error) if isinstance(error, Absent) else f"{type(error).__name__}: {error}"
        never = Goal(factor=0)
        yield Figure(
            row=name,
            title=f"the rest of {name}",
            samples={US: []},
            notes={US: why},
            goals={US: never},
        )


def _clear_up(bench: Bench) -> None:
    """Remove all of the run; a second Ctrl+C does not stop that."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        end_processes(bench.workspace)
        bench.images.remove_all()
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())
