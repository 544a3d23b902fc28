"""Messages to and from one kernel in a container, passed on as they are.

The relay speaks the Jupyter messaging protocol on raw sockets. An execute request goes out under the
header of the front end's own request, so whatever the kernel publishes, now or after the cell
has ended, already carries the right parent, and only needs a new signature. Message contents are not
decoded on the way, except where we must look: replies, input requests, results whose count changes.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from types import FrameType
from typing import Any, Protocol

import zmq
from jupyter_client.session import DELIM, Session

from dockml_magic.errors import KernelDiedError, KernelStartTimeoutError

READY_TIMEOUT = 30.0
_PROBE_INTERVAL = 0.05
_ASK_INTERVAL = 1.0
_LOOK_INTERVAL = 0.1
"""Seconds between two looks whether the kernel still lives, while a cell runs."""

_OURS = frozenset({"status", "execute_input", "iopub_welcome"})
"""What the notebook's own kernel says itself, for a routed cell."""


class Sink(Protocol):
    """Where a cell's output goes, and where its questions are asked."""

    def publish(self, msg_type: str, topic: bytes, parts: Sequence[zmq.Frame | bytes]) -> None:
        """Take a message: header, parent header, metadata, content, buffers, all as received."""

    def ask(self, prompt: str, *, password: bool) -> str:
        """Return what the user answers to `input()` in the cell. May raise KeyboardInterrupt."""


class Relay:
    """The sockets to one kernel.

    Parameters
    ----------
    connection_info : mapping
        As jupyter_client has it; the kernel's sockets are bound.
    interrupt : callable
        Sends SIGINT to the kernel.
    death : callable
        Returns an error when the kernel has died, None while it lives.
    """

    def __init__(
        self,
        connection_info: Mapping[str, Any],
        interrupt: Callable[[], None],
        death: Callable[[], KernelDiedError | None],
    ) -> None:
        self._interrupt = interrupt
        self._death = death
        self._lock = threading.RLock()
        self._context = zmq.Context(io_threads=1)
        self.session = Session(
            key=connection_info["key"], signature_scheme=connection_info["signature_scheme"]
        )
        self._shell = self._open(zmq.DEALER, connection_info, "shell_port")
        self._stdin = self._open(zmq.DEALER, connection_info, "stdin_port")
        self._iopub = self._open(zmq.SUB, connection_info, "iopub_port")
        self._poller = zmq.Poller()
        for socket in (self._shell, self._stdin, self._iopub):
            self._poller.register(socket, zmq.POLLIN)
        self.kernel_info: dict[str, Any] = {}

    def _open(self, kind: int, info: Mapping[str, Any], port_name: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = 0
        if kind == zmq.SUB:
            socket.subscribe(b"")
            socket.rcvhwm = 0  # nothing may be dropped, however much a cell prints
        else:
            # An input request is routed by the identity of the execute request.
            socket.identity = self.session.bsession
        separator = "-" if info["transport"] == "ipc" else ":"
        socket.connect(f"{info['transport']}://{info['ip']}{separator}{info[port_name]}")
        return socket

    def make_ready(self) -> None:
        """Return when the kernel answers and its output has been seen to arrive.

        Raises
        ------
        KernelDiedError, KernelStartTimeoutError
        """
        deadline = time.monotonic() + READY_TIMEOUT
        ask_at = time.monotonic()
        answered = heard = False
        while not (answered and heard):
            self._raise_if_dead()
            now = time.monotonic()
            if now > deadline:
                raise KernelStartTimeoutError(
                    f"The kernel did not answer within {READY_TIMEOUT:.0f} s.",
                    hint="Start it again.",
                )
            if now >= ask_at:
                self.session.send(self._shell, "kernel_info_request", {})
                # A kernel that is not up yet would answer them all, and only then run the first cell.
                ask_at = now + (_PROBE_INTERVAL if answered else _ASK_INTERVAL)
            for socket, _ in self._poller.poll(round(_PROBE_INTERVAL * 1000)):
                if socket is self._shell:
                    self.kernel_info = self._receive(self._shell)["content"]
                    answered = True
                    ask_at = time.monotonic() + _PROBE_INTERVAL
                elif socket is self._iopub:
                    self._iopub.recv_multipart()
                    heard = True

    def execute(
        self,
        header: Mapping[str, Any],
        content: Mapping[str, Any],
        sink: Sink,
        *,
        count: int | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Run a cell and return the content of its execute_reply.

        Blocks, as a cell in the notebook's own kernel does; an interrupt of this process goes to the
        kernel in the container, and this returns when that has let go.

        Parameters
        ----------
        header : mapping
            The front end's own request header: the parent of all output.
        content : mapping
            Of the execute_request.
        sink : Sink
            Gets the output.
        count : int, optional
            The execution count the user sees, where it is not the kernel's own.
        meanwhile : callable, optional
            Called once the request is on its way.

        Raises
        ------
        KernelDiedError
            If the kernel dies under the cell.
        """
        message = {
            # A date of its own, so that two equal pieces of one cell have different signatures.
            "header": _plain(header)
            | {"msg_type": "execute_request", "date": datetime.now(timezone.utc)},
            "parent_header": {},
            "metadata": {},
            "content": content,
        }
        msg_id = header["msg_id"]
        with self._lock, self._interrupts_passed_on():
            self.session.send(self._shell, message)
            if meanwhile is not None:
                meanwhile()
            reply: dict[str, Any] | None = None
            idle = False
            while reply is None or not idle:
                events = dict(self._poller.poll(round(_LOOK_INTERVAL * 1000)))
                if not events:
                    self._raise_if_dead()
                if self._iopub in events:
                    idle |= self._pass_on(sink, msg_id, count)
                if self._stdin in events:
                    self._answer(sink)
                if self._shell in events:
                    received = self._receive(self._shell)
                    if received["parent_header"].get("msg_id") == msg_id:
                        reply = received["content"]
            # The poll may have swallowed the signal of something that came right behind.
            self._pass_on(sink, msg_id, count)
        if count is not None and "execution_count" in reply:
            reply["execution_count"] = count
        return reply

    def forward(self, message: Mapping[str, Any]) -> None:
        """Send a front end's message to the kernel as it is; what comes of it arrives on its own."""
        with self._lock:
            self.session.send(
                self._shell,
                {
                    "header": _plain(message["header"]),
                    "parent_header": message["parent_header"],
                    "metadata": message["metadata"],
                    "content": message["content"],
                },
                buffers=message["buffers"],
            )

    def request(
        self, msg_type: str, content: Mapping[str, Any], timeout: float
    ) -> dict[str, Any] | None:
        """Send any other shell request and return its reply's content, None if none comes in time."""
        deadline = time.monotonic() + timeout
        with self._lock:
            sent: Any = self.session.send(self._shell, msg_type, dict(content))
            while (left := deadline - time.monotonic()) > 0:
                if self._shell.poll(round(left * 1000)):
                    received = self._receive(self._shell)
                    if received["parent_header"].get("msg_id") == sent["header"]["msg_id"]:
                        answer: dict[str, Any] = received["content"]
                        return answer
        return None

    @property
    def fileno(self) -> int:
        """A file descriptor that becomes readable when output may have arrived."""
        return int(self._iopub.getsockopt(zmq.FD))

    def drain(self, sink: Sink) -> None:
        """Pass on what arrived while no cell ran: output of threads and callbacks."""
        with self._lock:
            self._pass_on(sink, "", None)

    def close(self) -> None:
        """Close the sockets."""
        with self._lock:
            for socket in (self._shell, self._stdin, self._iopub):
                socket.close()
            self._context.term()

    def _pass_on(self, sink: Sink, msg_id: str, count: int | None) -> bool:
        """Pass on all that has arrived; return whether the kernel is idle again."""
        idle = False
        while True:
            try:
                frames = self._iopub.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return idle
            topic, parts = _split(frames)
            header = json.loads(parts[0].bytes)
            msg_type = header["msg_type"]
            if msg_type == "status":
                if json.loads(parts[3].bytes)["execution_state"] == "idle":
                    idle |= json.loads(parts[1].bytes).get("msg_id") == msg_id
            elif msg_type not in _OURS:
                passed: list[zmq.Frame | bytes] = list(parts)
                if msg_type == "execute_result" and count is not None:
                    content = json.loads(parts[3].bytes)
                    if content.get("execution_count") != count:
                        passed[3] = json.dumps({**content, "execution_count": count}).encode()
                sink.publish(msg_type, topic, passed)

    def _answer(self, sink: Sink) -> None:
        question = self._receive(self._stdin)
        content = question["content"]
        try:
            with self._interrupts_raised():
                value = sink.ask(content["prompt"], password=content["password"])
        except KeyboardInterrupt:
            self._interrupt()
            return
        except EOFError:
            value = "\x04"
        self.session.send(self._stdin, "input_reply", {"value": value}, parent=question)

    def _receive(self, socket: zmq.Socket[bytes]) -> dict[str, Any]:
        """Return the message that a poll has announced."""
        _, message = self.session.recv(socket)
        assert message is not None
        return message

    def _raise_if_dead(self) -> None:
        error = self._death()
        if error is not None:
            raise error

    @contextmanager
    def _interrupts_passed_on(self) -> Iterator[None]:
        """While a cell runs, SIGINT here is SIGINT there. Python delivers it to the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def pass_on(signum: int, frame: FrameType | None) -> None:
            self._interrupt()

        saved = signal.signal(signal.SIGINT, pass_on)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, saved)

    @contextmanager
    def _interrupts_raised(self) -> Iterator[None]:
        """While the user is asked something, SIGINT ends the question."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        passing = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, passing)


def _plain(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return a header without the subshell, which the notebook's own kernel may have and another not."""
    return {key: value for key, value in header.items() if key != "subshell_id"}


def content_of(parts: Sequence[zmq.Frame | bytes]) -> dict[str, Any]:
    """Return the decoded content of a message that a `Sink` was given."""
    part = parts[3]
    content: dict[str, Any] = json.loads(part if isinstance(part, bytes) else part.bytes)
    return content


def _split(frames: Sequence[zmq.Frame]) -> tuple[bytes, list[zmq.Frame]]:
    """Return the topic and the parts after the signature."""
    for i, frame in enumerate(frames):
        if len(frame) == len(DELIM) and frame.bytes == DELIM:
            return frames[0].bytes if i else b"", list(frames[i + 2 :])
    raise ValueError("not a Jupyter message")
