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


# --- interrupts in the middle of a message ----------------------------------------------------------


class Asked:
    """A kernel that answers what it is asked once it may; `damaged` are requests that it could not read."""

    def __init__(self, path: Path) -> None:
        self.may_answer = threading.Event()
        self.damaged: list[Exception] = []
        self._session = Session(key=KEY, signature_scheme="hmac-sha256")
        self._context = zmq.Context()
        self._shell = self._context.socket(zmq.ROUTER)
        self._shell.bind(f"ipc://{path}-{PORTS['shell']}")
        self._iopub = self._context.socket(zmq.XPUB)
        self._iopub.bind(f"ipc://{path}-{PORTS['iopub']}")
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._is_over.is_set():
            if not self._shell.poll(20):
                continue
            try:
                identities, request = self._session.recv(self._shell, mode=0)
            except Exception as error:  # noqa: BLE001  # whatever a cut message is
                self.damaged.append(error)
                continue
            self.may_answer.wait(30)
            self._session.send(
                self._shell, "kernel_info_reply", {"status": "ok"}, request, identities
            )
            self._session.send(self._iopub, "status", {"execution_state": "idle"}, request)

    def close(self) -> None:
        self._is_over.set()
        self.may_answer.set()
        self._thread.join(30)
        self._context.destroy(linger=0)


@pytest.fixture
def asked(short_folder: Path) -> Iterator[Asked]:
    kernel = Asked(short_folder / "kernel")
    yield kernel
    kernel.close()


def interrupt_at_frame(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt this process after it has sent so many frames of its next message."""
    send, sent = zmq.Socket.send, []

    def interrupted(socket: Any, *words: Any, **more: Any) -> Any:
        result = send(socket, *words, **more)
        sent.append(1)
        if len(sent) == number and threading.current_thread() is threading.main_thread():
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(zmq.Socket, "send", interrupted)


@pytest.mark.parametrize("frame", [3, 6])
def test_an_interrupt_as_something_is_asked_for_ends_it_over_there_as_well(
    relay: Relay,
    asked: Asked,
    passed_on: list[int],
    monkeypatch: pytest.MonkeyPatch,
    frame: int,
) -> None:
    relay.interrupt = lambda: (passed_on.append(1), asked.may_answer.set())  # type: ignore[assignment, return-value, func-returns-value]
    interrupt_at_frame(frame, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        relay.ask("kernel_info_request", {})
    assert passed_on == [1]
    assert relay.ask("kernel_info_request", {})[0] == {"status": "ok"}
    assert asked.damaged == []


def test_an_interrupt_as_an_answer_is_read_disturbs_nobody(
    relay: Relay, asked: Asked, passed_on: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.may_answer.set()
    receive = Relay._receive

    def interrupted(relay: Relay, *words: Any) -> Any:
        received = receive(relay, *words)
        os.kill(os.getpid(), signal.SIGINT)
        return received

    monkeypatch.setattr(Relay, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        relay.ask("kernel_info_request", {})
    assert passed_on == []


def test_an_interrupt_in_the_middle_of_a_request_leaves_it_whole(
    relay: Relay, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.may_answer.set()
    interrupt_at_frame(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        relay.request("kernel_info_request", {}, 30.0)
    assert relay.request("kernel_info_request", {}, 30.0) == {"status": "ok"}
    assert asked.damaged == []


def test_who_comes_while_a_kernel_is_made_ready_waits(relay: Relay, asked: Asked) -> None:
    ready = threading.Thread(target=relay.make_ready)
    ready.start()
    wait_until(lambda: not relay.shell_lock.acquire(blocking=False) or relay.shell_lock.release())
    came: list[object] = []
    other = threading.Thread(
        target=lambda: came.append(relay.request("kernel_info_request", {}, 30.0))
    )
    other.start()
    asked.may_answer.set()
    ready.join(30)
    other.join(30)
    assert came == [{"status": "ok"}]
    assert relay.kernel_info["status"] == "ok"


# --- beside another who passes messages on ----------------------------------------------------------


def test_who_comes_while_another_waits_for_answers_waits_for_its_turn(
    relay: Relay, asked: Asked
) -> None:
    asked.may_answer.set()
    works, let_go = threading.Event(), []
    works.set()
    relay.is_used = works.is_set
    relay.let_go = lambda: let_go.append(1)
    assert relay.request("kernel_info_request", {}, 0.1) is None
    came: list[object] = []
    thread = threading.Thread(
        target=lambda: came.append(relay.request("kernel_info_request", {}, 30.0))
    )
    thread.start()
    thread.join(0.3)
    assert came == let_go == []
    works.clear()
    thread.join(30)
    assert came == [{"status": "ok"}]
    assert let_go


def test_the_thread_that_reads_the_answers_is_not_kept_waiting_for_them(relay: Relay) -> None:
    relay.is_used = lambda: True
    relay.reader = threading.current_thread()
    with pytest.raises(KernelError, match="whose end is awaited in this thread"):
        relay.request("kernel_info_request", {}, 30.0)


def test_who_waits_for_its_turn_goes_when_the_kernel_is_stopped(relay: Relay) -> None:
    relay.is_used = lambda: True
    raised: list[KernelError] = []

    def ask() -> None:
        try:
            relay.request("kernel_info_request", {}, 30.0)
        except KernelError as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    relay.close()
    thread.join(30)
    assert "was stopped" in raised[0].message
