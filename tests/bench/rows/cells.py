"""Cells that run already: an empty one, a switch between two places, much output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from tests.bench import outputs
from tests.bench.bench import (
    IPYKERNEL7,
    KERNEL,
    LOCAL,
    PYTHON311,
    TENSORFLOW,
    TENSORFLOW27,
    Bench,
)
from tests.bench.peers import SECOND, Peer
from tests.bench.sessions import Session, running
from tests.bench.table import US, Figure, Goal, Turns

DIRECT = "direct client"

_INFO = (
    "%%docker_cell local\n"
    "import json\n"
    "info = get_ipython()._dockml_magics.environments.active._container.connection_info\n"
    "print(json.dumps(info | {'key': info['key'].decode()}))"
)
_BLOCK = 10
_OUTPUTS = {"lines": 9, "bytes": 5, "images": 5}
"""How often each kind of output is measured: what takes seconds less often."""


@dataclass(frozen=True, kw_only=True)
class _Passes:
    """The seconds of `pass` cells of one session, and of one that is connected to the same kernel.

    Attributes
    ----------
    session : Session
        Its front end.
    direct : Session or None
        Who measures directly: the same front end with a second client, or one of a twin.
    seconds, directly, added : list of float
        The samples; in each block by how much the first two differ.
    """

    session: Session
    direct: Session | None = None
    seconds: list[float] = field(default_factory=list)
    directly: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)

    def take(self, *, first_directly: bool) -> None:
        """Take a block. It begins with cells that do not count: clients hear each other's cells."""
        for directly in (True, False) if first_directly else (False, True):
            if directly and self.direct is not None:
                twin = self.direct is not self.session
                self.directly.extend(self.direct.cells("pass", _BLOCK, skip=3, directly=not twin))
            elif not directly:
                self.seconds.extend(self.session.cells("pass", _BLOCK, skip=3))
        if self.direct is not None:
            self.added.append(median(self.seconds[-_BLOCK:]) - median(self.directly[-_BLOCK:]))


def pass_cell(bench: Bench) -> Iterator[Figure]:
    """Give a `pass` cell, routed and in a kernel of the launcher, against a direct one and the peers."""
    for image in dict.fromkeys(
        [IPYKERNEL7, *bench.some(PYTHON311, TENSORFLOW, TENSORFLOW27)][: 1 if bench.quick else None]
    ):
        with_peers = image == IPYKERNEL7
        turns = Turns()
        with ExitStack() as stack:
            passes = {US: _connected(stack.enter_context(running(bench.routed(image))), stack)}
            others = [bench.as_kernel(image)]
            if with_peers:
                others += [bench.local(), *bench.peers_in(image, turns)]
            for who, session in stack.enter_context(bench.sessions(others, turns)).items():
                with turns.excusing(who):
                    passes[who] = _connected(session, stack)
            names = list(passes)
            for block in range(2 if bench.quick else 30 if with_peers else 20):
                start = block % len(names)
                for who in names[start:] + names[:start]:
                    if who not in turns.notes:
                        with turns.excusing(who):
                            passes[who].take(first_directly=bool(block % 2))
        turns.samples = {
            DIRECT: passes[US].directly,
            **{who: passes[who].seconds for who in names},
            **turns.samples,
        }
        yield Figure(
            row="pass",
            title=f"`pass`, {image}",
            samples=turns.samples,
            notes=turns.notes,
            floor=DIRECT,
            goals={DIRECT: Goal(plus=0.0008)},
            unit="ms",
            scale=1000,
        )
        if with_peers:
            relays = [who for who in names if passes[who].added]
            yield Figure(
                row="pass",
                title=f"`pass`, what relaying adds to a direct client's, {image}",
                samples={who: passes[who].added for who in relays},
                goals={who: Goal(strictly=True) for who in relays if who != US},
                unit="ms",
                scale=1000,
            )


def _connected(session: Session, stack: ExitStack) -> _Passes:
    """Connect to the kernel behind a session, where it has one."""
    contestant = session.contestant
    if contestant.twin is not None:
        return _Passes(session=session, direct=stack.enter_context(running(contestant.twin)))
    if contestant.who == US:
        session.connect_directly(session.said(_INFO))
    elif contestant.inner:
        session.connect_directly(contestant.inner_connection())
    else:
        return _Passes(session=session)
    return _Passes(session=session, direct=session)


def switch(bench: Bench) -> Iterator[Figure]:
    """Give a switch between two running environments, beside a `pass` cell and SoS's `%use`."""
    turns = Turns()
    names = [f"{bench.workspace.name}-{name}" for name in ("one", "two")]
    ours = bench.notebook(*(f"%docker_env {PYTHON311} --name {name}" for name in names))
    theirs = bench.peers_in(IPYKERNEL7, turns, of=lambda peer: peer.name == "sos")
    with (
        bench.sessions([bench.local(), ours, *theirs], turns) as sessions,
    ):
        codes = {US: [f"%docker_env {name}" for name in names]}
        for contestant in theirs:
            if contestant.who in sessions:
                codes[contestant.who] = ["%use bench", f"%use {SECOND}"]
                with turns.excusing(contestant.who):
                    sessions[contestant.who].run(f"%use {SECOND} -l Python3")
        takers: dict[str, Callable[[], float]] = {
            LOCAL: partial(_cell_of, sessions[LOCAL], ["pass"]),
            **{who: partial(_cell_of, sessions[who], code) for who, code in codes.items()},
        }
        turns.take(takers, bench.repetitions(40), warm_up=True)
    yield Figure(
        row="switch",
        title="switch between two that run; first a `pass` cell",
        samples=turns.samples,
        notes=turns.notes,
        floor=LOCAL,
        goals={LOCAL: Goal(plus=0.002), **{who: Goal(strictly=True) for who in codes if who != US}},
        unit="ms",
        scale=1000,
    )


def _cell_of(session: Session, codes: list[str]) -> float:
    codes.append(codes.pop(0))
    return session.cells(codes[0], 1)[0]


def output(bench: Bench) -> Iterator[Figure]:
    """Give the time that much output takes, all of it checked.

    The direct client has a kernel of its own in a second container: two clients of one kernel would
    each get, and pay for, the output of the other's cells.
    """
    for kind, n in (outputs.QUICK if bench.quick else outputs.FULL).items():
        turns = Turns()
        title = {
            "lines": f"{n:,} printed lines",
            "bytes": f"one display of {n // 1_000_000} MB",
            "images": f"{n:,} images of 100 kB",
        }[kind]
        contestants = [bench.as_kernel(IPYKERNEL7), bench.routed(IPYKERNEL7)]
        contestants += bench.peers_in(IPYKERNEL7, turns, of=_is_envkernel)
        with bench.sessions(contestants, turns) as sessions:
            for who, session in sessions.items():
                with turns.excusing(who):
                    session.output(kind, n, prepare=True)
            takers = {who: partial(s.output, kind, n) for who, s in sessions.items()}
            turns.take(takers, bench.repetitions(_OUTPUTS[kind]))
        yield Figure(
            row="output",
            title=title,
            samples={DIRECT if who == KERNEL else who: s for who, s in turns.samples.items()},
            notes={DIRECT if who == KERNEL else who: s for who, s in turns.notes.items()},
            floor=DIRECT,
            goals={DIRECT: Goal(factor=1 / 0.95)},
        )


def _is_envkernel(peer: Peer) -> bool:
    return peer.name == "envkernel"
