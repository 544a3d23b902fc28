"""Values from one kernel to another: by us, by files, and by the peers that can."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import psutil

from tests.bench.bench import Bench
from tests.bench.moving import HOST, ONE, TWO
from tests.bench.peers import SECOND
from tests.bench.sessions import ROOT, Contestant, Session, plain_spec, running
from tests.bench.table import US, Absent, Figure, Goal, Turns

IMAGE = "dockml/values:3.11"
SIZES = {1 << 10: "1 kB", 1 << 20: "1 MB", 10 << 20: "10 MB", 100 << 20: "100 MB", 1 << 30: "1 GB"}
WAYS = {
    (HOST, ONE): "notebook to container",
    (ONE, HOST): "container to notebook",
    (ONE, TWO): "container to container",
}

COLD = "copied once by hand into fresh shared memory"
WARM = "numpy.copyto, pages touched"
EMPTY = "an empty cell"
FIRST = f"{US}, first"
AGAIN = f"{US}, again"
NPY, PICKLE, ARROW = ".npy file by hand", "pickle file by hand", "Arrow IPC file by hand"
IPYPARALLEL = "ipyparallel 9.2.0 push, pull"
SOS = "SoS Notebook 0.24.7 %get"

SOS_LIMIT = 10 << 20
SOS_PATIENCE = 75.0
ENOUGH = 2.0
"""Seconds of one sample of a peer's after which no more are taken."""


def values(bench: Bench) -> Iterator[Figure]:
    """Give the time that a value takes from one kernel to another, and what the notebook's grows by."""
    mover = _mover(bench)
    absent: dict[str, str] = {}
    others: list[_Other] = []
    with ExitStack() as stack:
        session = stack.enter_context(running(mover))
        session.run(f"mover = Mover({IMAGE!r}, {str(bench.workspace)!r})")
        for kind in (_Ipyparallel, _Sos):
            try:
                others.append(kind(bench, stack))
            except Absent as error:
                absent[kind.who] = str(error)
        yield from _small(bench, session)
        for size, title in list(SIZES.items())[: 2 if bench.quick else None]:
            yield from _arrays(bench, session, size, title, others, absent)
        yield from _frame(bench, session)
        session.run("mover.stop()")
    yield from _growth(bench, mover)


def _mover(bench: Bench) -> Contestant:
    environ = {**bench.environ(), "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    return Contestant(
        who=US,
        spec=plain_spec("python3"),
        python=bench.local().python,
        folder=bench.workspace,
        environ=environ,
        prelude=("from tests.bench.moving import Mover",),
    )


def _moved(session: Session, way: str, source: str, target: str) -> float:
    return float(session.said(f"print(mover.move({way!r}, {source!r}, {target!r}))"))


def _small(bench: Bench, session: Session) -> Iterator[Figure]:
    session.run("mover.make('dict', 0)")
    for (source, target), words in WAYS.items():
        turns = Turns()
        takers: dict[str, Callable[[], float]] = {
            EMPTY: lambda: float(session.said("print(mover.empty())")),
            US: partial(_moved, session, "again", source, target),
            PICKLE: partial(_moved, session, "pickle", source, target),
        }
        turns.take(takers, bench.repetitions(15), warm_up=True)
        yield Figure(
            row="values",
            title=f"a small dict, {words}",
            samples=turns.samples,
            notes=turns.notes,
            floor=EMPTY,
            goals={EMPTY: Goal(plus=0.005), PICKLE: Goal(strictly=True)},
            unit="ms",
            scale=1000,
        )


def _arrays(
    bench: Bench,
    session: Session,
    size: int,
    title: str,
    others: list[_Other],
    absent: dict[str, str],
) -> Iterator[Figure]:
    if psutil.virtual_memory().available < 9 * size:
        for words in WAYS.values():
            why = {US: "there is not enough memory here"}
            yield Figure(
                row="values", title=f"{title} float32, {words}", samples={US: []}, notes=why
            )
        return
    session.run(f"mover.make('array', {size})")
    for other in list(others):
        try:
            other.make(size)
        except Absent as error:
            absent[other.who] = str(error)
            others.remove(other)
    is_large = size >= 1 << 20
    n = bench.repetitions(3 if size >= 1 << 30 else 5 if size >= 100 << 20 else 9)
    for (source, target), words in WAYS.items():
        turns = Turns()
        takers: dict[str, Callable[[], float]] = {
            COLD: lambda: float(session.said("print(mover.by_hand(warm=False))")),
            WARM: lambda: float(session.said("print(mover.by_hand(warm=True))")),
            EMPTY: lambda: float(session.said("print(mover.empty())")),
            FIRST: partial(_moved, session, "first", source, target),
            NPY: partial(_moved, session, "npy", source, target),
            PICKLE: partial(_moved, session, "pickle", source, target),
        }
        for who, why in absent.items():
            turns.lacks(who, why)
        for other in others:
            with turns.excusing(other.who):
                takers[other.who] = _once_if_slow(other.taker((source, target)))
        turns.take(takers, n)
        # By itself, as each one here reuses the memory of those before it: two pieces in turns, as what arrived before
        # is there until the next has.
        again = {AGAIN: partial(_moved, session, "again", source, target)}
        for _ in range(4):
            turns.take(again, 1)
        turns.samples[AGAIN] = []
        turns.take(again, n)
        goals = {NPY: Goal(strictly=True), PICKLE: Goal(strictly=True)}
        goals |= {IPYPARALLEL: Goal(strictly=True), SOS: Goal(strictly=True)}
        if size == 1 << 20:
            goals[EMPTY] = Goal(plus=0.015)
        if size == 1 << 30:
            goals[COLD] = Goal(factor=1 / 0.9)
            goals[WARM] = Goal(factor=1 / 0.5, ours=AGAIN)
        yield Figure(
            row="values",
            title=f"{title} float32, {words}",
            samples=turns.samples,
            notes=turns.notes,
            floor=COLD,
            us=FIRST,
            goals={who: goal for who, goal in goals.items() if is_large},
            unit="ms",
            scale=1000,
        )
    session.run("mover.make('dict', 0)")


def _frame(bench: Bench, session: Session) -> Iterator[Figure]:
    rows = 50_000 if bench.quick else 5_000_000
    session.run(f"mover.make('frame', {rows})")
    for (source, target), words in list(WAYS.items())[:1] + list(WAYS.items())[2:]:
        takers: dict[str, Callable[[], float]] = {
            who: partial(_moved, session, way, source, target)
            for who, way in ((ARROW, "arrow"), (FIRST, "first"), (PICKLE, "pickle"))
        }
        turns = Turns().take(takers, bench.repetitions(3))
        yield Figure(
            row="values",
            title=f"DataFrame of {rows:,} rows and 10 mixed columns, {words}",
            samples=turns.samples,
            notes=turns.notes,
            floor=ARROW,
            us=FIRST,
            goals={ARROW: Goal(factor=1.5), PICKLE: Goal(strictly=True)},
        )
    session.run("mover.make('dict', 0)")


def _growth(bench: Bench, mover: Contestant) -> Iterator[Figure]:
    size = (10 << 20) if bench.quick else (1 << 30)
    with running(mover) as session:
        session.run(f"mover = Mover({IMAGE!r}, {str(bench.workspace)!r})")
        grown = float(session.said(f"print(mover.growth({size}))"))
        session.run("mover.stop()")
    yield Figure(
        row="values",
        title=f"memory of the notebook's kernel for {SIZES[size]}, container to container",
        samples={US: [grown]},
        goals={US: Goal(factor=0, plus=50, strictly=True)},
        unit="MB",
    )


def _once_if_slow(taker: Callable[[], float]) -> Callable[[], float]:
    """Return the taker of a peer, which takes no second sample where the first took long."""
    took = [0.0]

    def take() -> float:
        if took[0] > ENOUGH:
            raise Absent("once, for the time that it takes")
        took[0] = taker()
        return took[0]

    return take


class _Other:
    """A peer that moves arrays; `Absent` says why it cannot."""

    who = ""
    name = ""

    def __init__(self, bench: Bench, stack: ExitStack) -> None:
        peers = [peer for peer in bench.peers if peer.name == self.name]
        if not peers:
            raise Absent("was not asked for")
        contestant = self._prepare(peers[0].contestant(bench.images, IMAGE))
        self._session = stack.enter_context(running(contestant))
        self._size = 0

    def _prepare(self, contestant: Contestant) -> Contestant:
        return contestant

    def make(self, size: int) -> None:
        """Make an array `x` on either side."""
        raise NotImplementedError

    def taker(self, way: tuple[str, str]) -> Callable[[], float]:
        """Return what moves it, and gives the seconds."""
        raise NotImplementedError


class _Ipyparallel(_Other):
    who = IPYPARALLEL
    name = "ipyparallel"

    def _prepare(self, contestant: Contestant) -> Contestant:
        start = (
            "import time\nimport ipyparallel, numpy\n"
            "cluster = ipyparallel.Cluster(n=2)\n"
            "one, two = cluster.start_and_connect_sync()"
        )
        return replace(contestant, prelude=(start,), prefix="", inner="")

    def make(self, size: int) -> None:
        code = f"x = numpy.arange({size} // 4, dtype='float32')"
        self._session.run(
            f"y = None\none.execute('import numpy; y = None; {code!s}', block=True)\n{code}".replace(
                "dtype='float32'", 'dtype="float32"'
            )
        )
        self._session.run("two.execute('import numpy; y = None', block=True)")
        self._size = size

    def taker(self, way: tuple[str, str]) -> Callable[[], float]:
        move, engine = {
            (HOST, ONE): ("one.push({'y': x}, block=True)", "one"),
            (ONE, HOST): ("y = one.pull('x', block=True)", ""),
            (ONE, TWO): ("two.push({'y': one.pull('x', block=True)}, block=True)", "two"),
        }[way]
        check = f"assert y.shape == ({self._size} // 4,)"
        if engine:
            check = f"{engine}.execute({check!r}, block=True)"

        def take() -> float:
            code = f"began = time.perf_counter()\n{move}\nprint(time.perf_counter() - began)"
            seconds = float(self._session.said(code))
            self._session.run(check)
            return seconds

        return take


class _Sos(_Other):
    who = SOS
    name = "sos"

    def make(self, size: int) -> None:
        self._size = size
        if size <= SOS_LIMIT:
            for kernel in ("SoS", "bench"):
                code = f"import numpy\nx = numpy.arange({size} // 4, dtype='float32')"
                self._session.run(f"%use {kernel}\n{code}")
            self._session.run(f"%use {SECOND} -l Python3\nimport numpy")

    def taker(self, way: tuple[str, str]) -> Callable[[], float]:
        if self._size > SOS_LIMIT:
            raise Absent("left out, for the time that it takes")
        if self._size == SOS_LIMIT and way == (ONE, TWO):
            raise Absent(f"left out: by way of its own kernel, then as {WAYS[HOST, ONE]}")
        kernel, get = {
            (HOST, ONE): ("bench", "%get x"),
            (ONE, HOST): ("SoS", "%get x --from bench"),
            (ONE, TWO): (SECOND, "%get x --from bench"),
        }[way]

        def take() -> float:
            self._session.run(f"%use {kernel}\nx = None")
            seconds = float(self._session.run(get, SOS_PATIENCE)["seconds"])
            self._session.run(f"assert x.shape == ({self._size} // 4,)")
            return seconds

        return take
