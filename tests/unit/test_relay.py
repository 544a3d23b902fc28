"""The relay: what becomes of an interrupt while a cell is relayed. Its kernel is a thread here."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client.session import Session

from dockml_magic.errors import KernelError
from dockml_magic.messages import Message
from dockml_magic.relay import Relay
from tests.waiting import wait_until

KEY = b"key"
PORTS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}
CONTENT = {"code": "pass", "silent": False, "store_history": False, "stop_on_error": True}


class Kernel:
    """Answers one request; `at` says what it does before it begins, while it works and once it has replied."""

    def __init__(self, path: Path, at: Mapping[str, Callable[[], object]]) -> None:
        self._at = at
        self._session = Session(key=KEY, signature_scheme="hmac-sha256")
        self._context = zmq.Context()
        self._shell, self._iopub = self._context.socket(zmq.ROUTER), self._context.socket(zmq.XPUB)
        self._shell.bind(f"ipc://{path}-{PORTS['shell']}")
        self._iopub.bind(f"ipc://{path}-{PORTS['iopub']}")
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def serve_when_heard(self) -> None:
        """Begin once somebody has subscribed to what is published."""
        assert self._iopub.poll(10_000)
        self._iopub.recv()
        self._thread.start()

    def _serve(self) -> None:
        identities, request = self._session.recv(self._shell, mode=0)
        self._happen("before")
        self._say(request, "status", {"execution_state": "busy"})
        self._say(request, "stream", {"name": "stdout", "text": "at it"})
        self._happen("during")
        reply = {"status": "ok", "execution_count": 1, "user_expressions": {}, "payload": []}
        self._session.send(self._shell, "execute_reply", reply, parent=request, ident=identities)
        self._happen("after")
        self._say(request, "status", {"execution_state": "idle"})

    def _happen(self, when: str) -> None:
        time.sleep(0.3)  # what was said is known over there
        self._at.get(when, bool)()

    def _say(self, request: Any, kind: str, content: dict[str, Any]) -> None:
        self._session.send(self._iopub, kind, content, parent=request)

    def close(self) -> None:
        self._thread.join(10)
        self._context.destroy(linger=0)


class Shown:
    """Takes what is published, and says that it has."""

    def __init__(self) -> None:
        self.has_some = threading.Event()

    def publish(self, message: Message) -> None:
        self.has_some.set()

    def ask(self, prompt: str, *, password: bool) -> str:
        raise AssertionError(prompt)


@pytest.fixture
def passed_on() -> list[int]:
    """How often the kernel was interrupted."""
    return []


def connect(folder: Path, passed_on: list[int]) -> Relay:
    info = {"transport": "ipc", "ip": f"{folder}/kernel", "key": KEY}
    ports = {f"{name}_port": port for name, port in PORTS.items()}
    connection = {**info, **ports, "signature_scheme": "hmac-sha256"}
    return Relay(connection, lambda: passed_on.append(1), lambda: None)


@pytest.fixture
def relay(short_folder: Path, passed_on: list[int]) -> Iterator[Relay]:
    relay = connect(short_folder, passed_on)
    yield relay
    relay.close()


@pytest.mark.parametrize(
    ("when", "is_missed"), [("before", True), ("during", False), ("after", True), ("never", False)]
)
def test_an_interrupt_that_meets_no_cell_over_there_is_known_to_be_missed(
    relay: Relay, short_folder: Path, passed_on: list[int], when: str, *, is_missed: bool
) -> None:
    shown = Shown()

    def interrupt() -> None:
        if when != "before":
            assert shown.has_some.wait(30)
        if when == "after":
            wait_until(lambda: not relay._is_at_it, what="the reply to be read")
        os.kill(os.getpid(), signal.SIGINT)

    kernel = Kernel(short_folder / "kernel", {when: interrupt})
    header = Session().msg_header("execute_request")
    kernel.serve_when_heard()
    assert relay.execute(header, CONTENT, shown)["status"] == "ok"
    assert relay.missed_interrupt == is_missed
    assert len(passed_on) == (when != "never")
    kernel.close()


def test_another_thread_can_close_it_while_a_cell_runs(relay: Relay, short_folder: Path) -> None:
    shown, is_over = Shown(), threading.Event()
    kernel = Kernel(short_folder / "kernel", {"during": lambda: is_over.wait(30)})
    kernel.serve_when_heard()

    def close() -> None:
        assert shown.has_some.wait(10)
        relay.close()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(KernelError, match="was stopped"):
        relay.execute(Session().msg_header("execute_request"), CONTENT, shown)
    closing.join()
    for late in (
        lambda: relay.request("complete_request", {}, 1),
        lambda: relay.request_on_control("debug_request", {}, 1),
        lambda: relay.ask("execute_request", {}),
        lambda: relay.execute(Session().msg_header("execute_request"), CONTENT, shown),
    ):
        with pytest.raises(KernelError, match="was stopped"):
            late()
    is_over.set()
    kernel.close()


def test_one_that_nobody_closes_is_collected(short_folder: Path, passed_on: list[int]) -> None:
    """With all that has to do with it, as where a notebook's kernel ends: which waited for ever."""
    relay: Any = connect(short_folder, passed_on)
    relay.itself = relay
    context = relay._context
    del relay
    collecting = threading.Thread(target=gc.collect, daemon=True)
    collecting.start()
    collecting.join(10)
    assert not collecting.is_alive()
    assert context.closed
