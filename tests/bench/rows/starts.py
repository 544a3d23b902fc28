"""From a name to the first result."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import dockml_magic
from tests.bench.bench import (
    FLOOR,
    IPYKERNEL7,
    KERNEL,
    LOCAL,
    PYTHON311,
    TENSORFLOW,
    TENSORFLOW27,
    Bench,
    starts_containers,
)
from tests.bench.sessions import Contestant, Session, opened
from tests.bench.table import US, Absent, Figure, Goal, Turns

_PROJECT = f"""
[environments.announced]
image = "{PYTHON311}"
warm = true
"""
_TAKES = re.compile(r"announced \(([0-9.]+) MB\)")
_PATIENCE = 60.0

GRACE = 10.0
"""Seconds after which a container counts as left."""


def start(bench: Bench) -> Iterator[Figure]:
    """Give the way to the first result, the image present: by hand, ours, a local kernel, the peers."""
    for image in bench.some(IPYKERNEL7, PYTHON311, TENSORFLOW, TENSORFLOW27):
        turns = Turns()
        paths = bench.bundle_paths(image)
        contestants = [bench.as_kernel(image), bench.local()]
        peers = bench.peers_in(image, turns, of=starts_containers)
        takers: dict[str, Callable[[], float]] = {
            FLOOR: partial(_by_hand, bench, image, paths),
            US: partial(_ours, bench, image),
        }
        with bench.sessions([*contestants, *peers], turns, start=False) as sessions:
            takers |= {who: partial(_started, session) for who, session in sessions.items()}
            turns.take(takers, bench.repetitions(5), warm_up=not bench.quick)
        # Like with like: those are started by a front end's process, as our kernel of the launcher is.
        ahead = {peer.who: Goal(factor=0.5, ours=KERNEL) for peer in peers}
        yield Figure(
            row="start",
            title=f"name to first result, {image}",
            samples=turns.samples,
            notes=turns.notes,
            floor=FLOOR,
            goals={FLOOR: Goal(factor=1.15), LOCAL: Goal(plus=0.25, ours=KERNEL), **ahead},
        )


def _ours(bench: Bench, image: str) -> float:
    began = time.perf_counter()
    with dockml_magic.start(image, folder=bench.workspace) as environment:
        text = environment.run("1+1").text
        seconds = time.perf_counter() - began
    assert text == "2"
    return seconds


def _by_hand(bench: Bench, image: str, paths: list[str]) -> float:
    floor = bench.floor(image, paths)
    try:
        return floor.start()
    finally:
        floor.stop()


def _started(session: Session) -> float:
    seconds = session.start()
    session.shut_down()
    return seconds


def first(bench: Bench) -> Iterator[Figure]:
    """Give the first start of a notebook: `%load_ext`, `%docker_env` and a cell, all imports in it."""

    def ours() -> float:
        with opened(bench.routed(PYTHON311)) as session:
            return session.start()

    def local() -> float:
        with opened(bench.local()) as session:
            return session.start()

    turns = Turns().take({LOCAL: local, US: ours}, bench.repetitions(5))
    yield Figure(
        row="first",
        title=f"a new notebook to the first result in {PYTHON311}",
        samples=turns.samples,
        notes=turns.notes,
        floor=LOCAL,
    )


def unseen(bench: Bench) -> Iterator[Figure]:
    """Give the first start of an image never seen, beside its second."""
    again = "its second start"
    for image in bench.some(PYTHON311, IPYKERNEL7):
        samples: dict[str, list[float]] = {again: [], US: []}
        for _ in range(bench.repetitions(5)):
            new = bench.images.new("unseen", image)
            samples[US].append(_ours(bench, new))
            samples[again].append(_ours(bench, new))
        yield Figure(
            row="unseen",
            title=f"first start of an image never seen, {image}",
            samples=samples,
            floor=again,
            goals={again: Goal(factor=1.5)},
        )


def warm(bench: Bench) -> Iterator[Figure]:
    """Give the way to the first result where a kernel waits ready, what that takes, and what is left of it."""
    results: list[float] = []
    takes: list[float] = []

    def ours() -> float:
        with _announced(bench) as (session, memory):
            takes.append(memory)
            ran = session.run("%docker_env announced\n1+1")
        assert ran["text"] == "2"
        return float(ran["seconds"])

    def local() -> float:
        with opened(bench.local()) as session:
            return session.start()

    project = bench.workspace / "dockml.toml"
    project.write_text(_PROJECT)
    try:
        with opened(
            _notebook(bench)
        ) as session:  # only what the user has started themselves is warmed
            session.start()
            session.run("%docker_env announced")
        turns = Turns().take({LOCAL: local, US: ours}, bench.repetitions(5))
        with _announced(bench) as (session, _):
            made = bench.images.containers()
            session.kill()
            deadline = time.monotonic() + GRACE
            while made & bench.images.containers() and time.monotonic() < deadline:
                time.sleep(0.2)
            results.append(float(len(made & bench.images.containers())))
    finally:
        project.unlink()
    yield Figure(
        row="warm",
        title=f"name to first result, announced and warm, {PYTHON311}",
        samples=turns.samples,
        notes=turns.notes,
        floor=LOCAL,
        goals={US: Goal(factor=0, plus=0.1, strictly=True)},
    )
    yield Figure(
        row="warm",
        title="memory that one waiting kernel takes, its container's",
        samples={US: takes},
        unit="MB",
    )
    yield Figure(
        row="warm",
        title=f"waiting containers left {GRACE:g} s after `kill -9` of the notebook's server",
        samples={US: results},
        goals={US: Goal(factor=0)},
        unit="",
    )


def _notebook(bench: Bench) -> Contestant:
    """Return a notebook with our extension that notes nothing in the user's own folders."""
    notebook = bench.notebook()
    own = {"XDG_CONFIG_HOME": str(bench.workspace / ".config")}
    return replace(notebook, environ={**notebook.environ, **own})


@contextmanager
def _announced(bench: Bench) -> Iterator[tuple[Session, float]]:
    """Give a notebook in which a kernel waits ready, and the MB that it says that takes."""
    with opened(_notebook(bench)) as session:
        session.start()
        deadline = time.monotonic() + _PATIENCE
        while (told := _TAKES.search(session.run("%docker_ps")["text"])) is None:
            if time.monotonic() > deadline:
                raise Absent("the announced environment was never warm")
            time.sleep(0.2)
        time.sleep(1)  # what is done once after a start
        yield session, float(told[1])
