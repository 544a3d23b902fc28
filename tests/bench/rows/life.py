"""The life of a kernel: interrupt, restart, stop, what is left, what listens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import docker.errors
import psutil

from tests.bench.bench import (
    FLOOR,
    IPYKERNEL5,
    IPYKERNEL7,
    KERNEL,
    LAUNCHER,
    LOCAL,
    TENSORFLOW27,
    Bench,
    starts_containers,
)
from tests.bench.sessions import Contestant, Session, opened, running
from tests.bench.table import US, Absent, Figure, Goal, Turns

LIMIT = 4.0
"""Seconds in which a cell that is interrupted should have ended."""

GRACE = 10.0
"""Seconds after which a container counts as left."""


def interrupt(bench: Bench) -> Iterator[Figure]:
    """Give the time from an interrupt to the reply of a sleeping cell, and whether variables survive."""
    for image in bench.some(IPYKERNEL7, IPYKERNEL5, TENSORFLOW27):
        turns = Turns()
        lost: dict[str, int] = {}
        contestants = [bench.routed(image), bench.as_kernel(image)]
        if image == IPYKERNEL7:
            contestants = [bench.local(), *contestants, *bench.peers_in(image, turns)]
        else:
            contestants += bench.peers_in(image, turns, of=starts_containers)
        with bench.sessions(contestants, turns) as sessions:
            takers = {who: partial(_interrupted, s, lost) for who, s in sessions.items()}
            turns.take(takers, bench.repetitions(5))
        floor = LOCAL if image == IPYKERNEL7 else ""
        yield Figure(
            row="interrupt",
            title=f"interrupt of a sleeping cell, {image}",
            samples=turns.samples,
            notes=turns.notes,
            floor=floor,
            goals={who: Goal(factor=0, plus=0.1, strictly=True) for who in (US, KERNEL)},
            unit="ms",
            scale=1000,
        )
        yield Figure(
            row="interrupt",
            title=f"interrupts that did not end the cell or lost variables, {image}",
            samples={who: [float(count)] for who, count in lost.items()},
            goals={who: Goal(factor=0) for who in (US, KERNEL)},
            unit="",
        )


def _interrupted(session: Session, lost: dict[str, int]) -> float:
    who = session.contestant.who
    seconds, kept = session.interrupt(LIMIT)
    lost[who] = lost.get(who, 0) + (not kept)
    if seconds is None:
        session.kill()
        raise Absent(f"the cell slept on for {LIMIT:g} s")
    return seconds


def restart(bench: Bench) -> Iterator[Figure]:
    """Give a restart to the next result, and whether what was installed inside survives it."""
    turns = Turns()
    gone: dict[str, int] = {}
    image = IPYKERNEL7
    contestants = [bench.local(), bench.routed(image), bench.as_kernel(image)]
    contestants += bench.peers_in(image, turns, of=starts_containers)
    with bench.sessions(contestants, turns) as sessions:
        takers = {who: partial(_restarted, s, gone) for who, s in sessions.items()}
        turns.take(takers, bench.repetitions(5), warm_up=not bench.quick)
    yield Figure(
        row="restart",
        title=f"restart to the next result, {image}",
        samples=turns.samples,
        notes=turns.notes,
        floor=LOCAL,
        goals={LOCAL: Goal(factor=1.1)},
    )
    yield Figure(
        row="restart",
        title="restarts after which what was installed in the container is gone",
        samples={who: [float(count)] for who, count in gone.items() if who != LOCAL},
        goals={who: Goal(factor=0) for who in (US, KERNEL)},
        unit="",
    )


def _restarted(session: Session, gone: dict[str, int]) -> float:
    seconds, kept = session.restart()
    who = session.contestant.who
    gone[who] = gone.get(who, 0) + (not kept)
    return seconds


def stop(bench: Bench) -> Iterator[Figure]:
    """Give the time that the user waits for a stop, against the engine's forced removal."""
    turns = Turns()
    image = IPYKERNEL7
    paths = bench.bundle_paths(image)
    contestants = [bench.routed(image), bench.as_kernel(image)]
    contestants += bench.peers_in(image, turns, of=starts_containers)
    takers: dict[str, Callable[[], float]] = {FLOOR: partial(_removed, bench, paths)}
    with bench.sessions(contestants, turns, start=False) as sessions:
        takers |= {who: partial(_stopped, session) for who, session in sessions.items()}
        turns.take(takers, bench.repetitions(5))
    yield Figure(
        row="stop",
        title=f"stop, {image}",
        samples=turns.samples,
        notes=turns.notes,
        floor=FLOOR,
        goals={who: Goal(factor=0, plus=0.5, strictly=True) for who in (US, KERNEL)},
    )


def _stopped(session: Session) -> float:
    session.start()
    seconds = session.stop()
    session.shut_down()
    return seconds


def _removed(bench: Bench, paths: list[str]) -> float:
    floor = bench.floor(IPYKERNEL7, paths)
    try:
        floor.start()
    except BaseException:
        floor.stop()
        raise
    return floor.stop()


def left(bench: Bench) -> Iterator[Figure]:
    """Give the containers left after a normal stop, and after `kill -9` of those who hold them."""
    ways: dict[str, Callable[[Session], None]] = {
        "a normal stop": Session.close,
        "`kill -9` of the notebook's server": Session.kill,
        "`kill -9` of the launcher, or of the notebook's own kernel": _kill_kernel,
    }
    image = IPYKERNEL7
    for way, end in ways.items():
        turns = Turns()
        contestants = [bench.routed(image), bench.as_kernel(image), bench.by_launcher(image)]
        contestants += bench.peers_in(image, turns, of=lambda peer: peer.name != "ipyparallel")
        theirs = {}
        with ExitStack() as stack:
            for contestant in contestants:
                with turns.excusing(contestant.who):
                    theirs[contestant.who] = _with_containers(bench, contestant, stack)
            for who, (session, _) in theirs.items():
                with turns.excusing(who):
                    end(session)
            _wait(bench, {who: made for who, (_, made) in theirs.items() if who not in turns.notes})
            there = bench.images.containers()
            turns.samples |= {
                who: [float(len(made & there))]
                for who, (_, made) in theirs.items()
                if who not in turns.notes
            }
            for number in set().union(*(made for _, made in theirs.values())) & there:
                with contextlib.suppress(docker.errors.APIError):
                    bench.engine.api.remove_container(number, force=True)
        yield Figure(
            row="left",
            title=f"containers left {GRACE:g} s after {way}",
            samples=turns.samples,
            notes=turns.notes,
            goals={who: Goal(factor=0) for who in (US, KERNEL, LAUNCHER) if turns.samples[who]},
            unit="",
        )


def _with_containers(
    bench: Bench, contestant: Contestant, stack: ExitStack
) -> tuple[Session, set[str]]:
    before = bench.images.containers()
    session = stack.enter_context(opened(contestant))
    session.start()
    made = bench.images.containers() - before
    if not made:
        raise Absent("no container of its own was found")
    return session, made


def _kill_kernel(session: Session) -> None:
    if not session.kernel_pid or session.kernel_pid not in _tree(session.pid):
        raise Absent("has none that stays")
    psutil.Process(session.kernel_pid).kill()


def _tree(pid: int) -> list[int]:
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


def _wait(bench: Bench, theirs: dict[str, set[str]]) -> None:
    """Wait until all are gone, or long enough."""
    awaited = set().union(*theirs.values())
    deadline = time.monotonic() + GRACE
    while awaited & bench.images.containers() and time.monotonic() < deadline:
        time.sleep(0.2)


def addresses(bench: Bench) -> Iterator[Figure]:
    """Give on how many addresses somebody else than this host could connect."""
    image = IPYKERNEL7
    turns = Turns()
    contestants = [bench.routed(image), bench.as_kernel(image), bench.by_launcher(image)]
    contestants += bench.peers_in(image, turns, of=starts_containers)
    for contestant in [bench.local(), *contestants]:
        with turns.excusing(contestant.who):
            before = bench.images.containers()
            with running(contestant) as session:
                found = _on_the_host(session.pid)
                for number in bench.images.containers() - before:
                    found += _of_container(bench, number)
            turns.samples[contestant.who] = [float(len(found))]
            turns.notes[contestant.who] = (
                ", ".join(dict.fromkeys(found)) or "no other than loopback"
            )
    yield Figure(
        row="addresses",
        title="addresses listened on, besides loopback and Unix sockets",
        samples=turns.samples,
        notes=turns.notes,
        goals={who: Goal(factor=0) for who in (US, KERNEL, LAUNCHER)},
        unit="",
    )


def _on_the_host(pid: int) -> list[str]:
    found = []
    for number in [pid, *_tree(pid)]:
        with contextlib.suppress(psutil.Error):
            for connection in psutil.Process(number).net_connections("inet"):
                address = connection.laddr
                if connection.status == psutil.CONN_LISTEN and not _is_loopback(address.ip):
                    found.append(f"{address.ip} (host)")
    return found


def _of_container(bench: Bench, number: str) -> list[str]:
    """Return the addresses of its published ports, or, if it has none, of what listens inside."""
    container = bench.engine.containers.get(number)
    ports = container.attrs["NetworkSettings"]["Ports"] or {}
    published = [f"{one['HostIp']} (published)" for port in ports.values() for one in port or ()]
    if published:
        return [address for address in published if not _is_loopback(address)]
    _, table = container.exec_run(["cat", "/proc/net/tcp"])
    listening = [line.split()[1] for line in table.decode().splitlines()[1:] if " 0A " in line]
    return [
        f"{_dotted(word)} (container's network)"
        for word in listening
        if not _is_loopback(_dotted(word))
    ]


def _dotted(word: str) -> str:
    address = word.partition(":")[0]
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(address)))


def _is_loopback(address: str) -> bool:
    return address.startswith(("127.", "::1"))
