"""What several threads of a notebook do with its environments, and an interrupt in the middle. No kernel runs here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dockml_magic import environment as environments_module
from dockml_magic import exchange, planning
from dockml_magic.environment import Environment, Environments
from dockml_magic.errors import ConfigError, KernelError
from dockml_magic.exchange import ContainerSide
from dockml_magic.options import RunOptions
from tests.unit.fake_engine import FakeEngine
from tests.waiting import wait_until


@pytest.fixture
def environment(
    engine: FakeEngine,
    plan: Callable[..., Any],
    short_folder: Path,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Environment:
    monkeypatch.setattr(planning.engines, "connect", lambda name: engine)
    engine.add_image("dockml/one")
    return Environment("one", RunOptions(), short_folder, told.append, plan("dockml/one"))


def test_threads_that_hand_values_over_have_one_side(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ContainerSide] = []

    class Side(ContainerSide):
        def __init__(self, *arguments: Any) -> None:
            time.sleep(0.1)  # all of them come here, if they may
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(exchange, "ContainerSide", Side)
    monkeypatch.setattr(Environment, "_running_relay", lambda _: SimpleNamespace())
    monkeypatch.setattr(Environment, "_container", SimpleNamespace(session="one"))
    seen: list[ContainerSide] = []
    threads = [threading.Thread(target=lambda: seen.append(environment.side)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == made * 4


def test_two_who_disconnect_it_close_what_was_opened_once(environment: Environment) -> None:
    closed: list[bool] = []

    def close() -> None:
        closed.append(True)
        if len(closed) < 3:
            environment._disconnect()  # as another thread does meanwhile

    environment._on_close = close
    environment._disconnect()
    assert closed == [True]


@pytest.mark.parametrize("is_interrupted", [True, False])
def test_an_interrupt_that_came_as_a_cell_ended_is_over_before_the_next_one(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, *, is_interrupted: bool
) -> None:
    settled: list[bool] = []
    relay = SimpleNamespace(
        execute=lambda *_, **__: {"status": "ok"}, is_interrupted=is_interrupted
    )
    monkeypatch.setattr(Environment, "_running_relay", lambda _: relay)
    container = SimpleNamespace(settle_signals=lambda: settled.append(True))
    monkeypatch.setattr(Environment, "_container", container)
    sink: Any = None
    assert environment.execute({}, {"silent": True}, sink) == {"status": "ok"}
    assert bool(settled) is is_interrupted


@pytest.mark.parametrize(("stays", "is_asked"), [(False, True), (True, False)])
def test_a_stop_that_is_interrupted_leaves_nothing_that_only_we_know_of(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, *, stays: bool, is_asked: bool
) -> None:
    asked: list[bool] = []

    def interrupt(_: Environment) -> None:
        raise KeyboardInterrupt

    container = SimpleNamespace(
        session="one",
        stays=stays,
        is_kept=False,
        ask_to_end=lambda: asked.append(True),
        find_pause=lambda: False,
    )
    monkeypatch.setattr(Environment, "container", container)
    monkeypatch.setattr(Environment, "_disconnect", interrupt)
    environments = Environments()
    environments.add(environment)
    with pytest.raises(KeyboardInterrupt):
        environments.stop(environment.name)
    assert bool(asked) == is_asked
    assert environments.names() == []


def test_a_kernel_is_restarted_by_one_thread_at_a_time(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_end = threading.Event(), threading.Event()

    def restart(_: Environment) -> None:
        began.set()
        assert may_end.wait(10)

    monkeypatch.setattr(Environment, "restart", restart)
    environments = Environments()
    environments.add(environment)
    thread = threading.Thread(target=environments.restart, args=(environment.name,))
    thread.start()
    assert began.wait(10)
    with pytest.raises(ConfigError, match="is being started already"):
        environments.restart(environment.name)
    with pytest.raises(ConfigError, match="is being started already"):
        environments.raise_if_starting(environment.name)
    may_end.set()
    thread.join()
    environments.restart(environment.name)


def test_what_is_stopped_while_it_restarts_does_not_come_back(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments, stops = Environments(), []
    monkeypatch.setattr(Environment, "restart", lambda self: environments.stop(self.name))
    monkeypatch.setattr(Environment, "stop", lambda self: stops.append(self.name))
    environments.add(environment)
    with pytest.raises(KernelError, match="was stopped while it restarted"):
        environments.restart(environment.name)
    assert stops == [environment.name] * 2


def test_one_whose_kernel_was_not_waited_for_is_connected_again(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt during a restart: the kernel is there, and nobody listens."""
    container = SimpleNamespace(
        connection_info={},
        state=SimpleNamespace(generation=2),
        poll=lambda: None,
        attach=lambda: None,
        signal=lambda _: None,
    )
    made: list[str] = []

    def make_ready() -> None:
        made.append("ready")
        if len(made) == 1:
            raise KeyboardInterrupt

    relay = SimpleNamespace(
        make_ready=make_ready, end_waits=lambda: None, close=lambda: made.append("closed")
    )
    monkeypatch.setattr("dockml_magic.environment.Relay", lambda *_: relay)
    monkeypatch.setattr(Environment, "container", container)
    monkeypatch.setattr(Environment, "_container", container)
    opened: list[object] = []
    environment.watch(lambda _, opened_relay: opened.append(opened_relay) or (lambda: None))  # type: ignore[func-returns-value]
    with pytest.raises(KeyboardInterrupt):
        environment._connect()
    assert made == ["ready", "closed"]
    assert not environment.is_alive
    assert "was restarted: its variables are gone." in str(environment._death())
    assert environment.connect_again()
    assert environment.is_alive
    assert opened == [relay]


@pytest.mark.parametrize(
    ("error", "is_raised"), [(KeyboardInterrupt(), True), (IndexError("a picker's"), False)]
)
def test_what_goes_wrong_as_a_change_is_told_keeps_nothing_from_its_end(
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    *,
    is_raised: bool,
) -> None:
    environments, ended = Environments(), []
    for end in ("stop", "remove", "detach"):
        monkeypatch.setattr(Environment, end, lambda _, end=end: ended.append(end))
    monkeypatch.setattr(Environment, "raise_if_not_stoppable", lambda _: None)

    def fail() -> None:
        raise error

    environments.changed.append(fail)
    for end in (environments.stop, environments.remove, environments.detach):
        environments._running[environment.name] = environment
        with pytest.raises(KeyboardInterrupt) if is_raised else contextlib.nullcontext():
            end(environment.name)
        assert environment.name not in environments
    assert ended == ["stop", "remove", "detach"]


def test_a_loop_whose_thread_could_not_be_started_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments_module, "_loop", None)
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError):
        environments_module._event_loop()

    async def answer() -> int:
        return 42

    assert environments_module._run(answer()) == 42
    loop = environments_module._event_loop()
    loop.call_soon_threadsafe(loop.stop)
    wait_until(lambda: not loop.is_running())
    loop.close()


def test_an_interrupt_as_something_is_begun_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    begin = asyncio.run_coroutine_threadsafe

    def interrupted(*words: Any) -> Any:
        future = begin(*words)
        os.kill(os.getpid(), signal.SIGINT)
        return future

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        environments_module._run(work())
    assert seen in (["cancelled"], [])  # it may not have got to its first line
    assert not asyncio.all_tasks(environments_module._event_loop())
