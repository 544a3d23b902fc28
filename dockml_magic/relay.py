"""The sockets to one kernel in a container, and what can be asked of it in a thread that waits.

An execute request goes out under the header of the front end's own request, so whatever the kernel
publishes, now or after the cell has ended, already carries the right parent. In a notebook whole cells do
not wait here: `forwarding` passes them on, and gives way while something here holds the sockets.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from types import FrameType
from typing import Any, Protocol

import zmq
from jupyter_client.session import Session

from dockml_magic.errors import (
    KernelDiedError,
    KernelError,
    KernelPausedError,
    KernelStartTimeoutError,
)
from dockml_magic.interrupts import interrupts_later
from dockml_magic.messages import MalformedMessageError, Message, receive

log = logging.getLogger(__name__)

READY_TIMEOUT = 30.0
_PROBE_INTERVAL = 0.05
_ASK_INTERVAL = 1.0
_LOOK_INTERVAL = 0.1
"""Seconds between two looks whether the kernel still lives, while a cell runs."""

ABANDONED_PATIENCE = 5.0
"""Seconds for a cell that nobody waits for to end, before the next one is sent nevertheless."""

_QUEUE = 200
"""Messages that a kernel may be ahead of us: with `LARGEST_PART`, what bounds this process's memory."""

LARGEST_PART = 512 * 1024**2
"""Bytes of one part of a message of a kernel: with a larger one ZeroMQ ends the connection."""

LARGEST_ANSWER = 16 * 1024**2
"""Bytes of one part of an answer to `ask`."""

_EXPRESSION = "dockml"
_LET_GO_PATIENCE = 5.0
"""Seconds for an expression that was interrupted to let go."""
_LONGEST_PROBLEM = 500
_MOST_ABORTED = 1000
"""How often a request is sent again that was aborted, with the cells behind one that failed."""

_LOST_PATIENCE = 3.0
"""Seconds after which a connection that ended was not the kernel's end: that would be known by then."""

_REMEMBERED = 50_000
"""Requests whose output is still passed on."""

_MOST_AHEAD = 10_000
"""By how much a kernel's execution count can differ from what we expect."""

NEVER_PASSED_ON = frozenset({"iopub_welcome", "shutdown_reply"})
"""What speaks for the notebook's own kernel, to its front end."""

UNUSABLE = (MalformedMessageError, LookupError, TypeError, ValueError, AttributeError)
"""What looking into a message raises that is not what it should be."""

INTERRUPTED = {
    "status": "error",
    "ename": "KeyboardInterrupt",
    "evalue": "",
    "traceback": [],
    "user_expressions": {},
    "payload": [],
}
"""The reply to a cell whose kernel was interrupted before it could send one."""

NOT_PASSED_ON = frozenset({"status", "execute_input", "iopub_welcome", "shutdown_reply"})
"""What a notebook says itself, for the cells that it runs a part of."""


def _close_sockets(
    context: zmq.Context[Any], monitors: dict[zmq.Socket[bytes], zmq.Socket[Any]]
) -> None:
    """Close sockets, each with its monitor, and then their context, which waits for that."""
    for socket, monitor in monitors.items():
        socket.disable_monitor()
        socket.close()
        monitor.close(0)
    monitors.clear()
    context.term()


def _nobody() -> None:
    """Stand for who else reads the sockets, where nobody does: in a script."""


class Sink(Protocol):
    """Where a cell's output goes, and where its questions are asked."""

    def publish(self, message: Message) -> None:
        """Take a message."""

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
    pause : callable
        Returns an error while the container is paused, else None.

    Attributes
    ----------
    session : Session
        Signs with the kernel's key.
    shell, stdin, iopub : zmq.Socket
    shell_lock, iopub_lock : RLock
        To be held while the first two, or the last, are used.
    let_go : callable
        Called when a lock was held here: whoever else reads the sockets has to look anew.
    is_interrupted : bool
        The cell that runs was interrupted: then nobody waits until a container is not paused any more.
    missed_interrupt : bool
        It was interrupted before the kernel had begun with it or after it had replied: over there nobody knows.
    abandoned : set of str
        Cells that the kernel was sent and nobody waits for. They are interrupted as they begin, and the next
        one is sent when they have ended, as it would be aborted with them.
    kernel_info : dict
        The content of the kernel_info_reply.
    last_cell : dict of str to str
        Of the header of the last cell: what the kernel publishes for what is evaluated is shown below that.
    next_count : int
        The execution count of the kernel's next cell.
    is_shared : callable
        Tells whether other notebooks may have their cells run there too.
    was_shared : callable
        Tells whether others have been attached, and may have set the kernel's count.
    has_comm : callable
        Tells whether a comm, by its id, is one of this notebook's.
    is_used : callable
        Tells whether the kernel works on what another passes on: its answers are that one's to read. Who comes from
        another thread, a subshell's for one, has to wait.
    reader : Thread, optional
        The thread in which that one reads, which must not wait therefore.
    """

    def __init__(
        self,
        connection_info: Mapping[str, Any],
        interrupt: Callable[[], None],
        death: Callable[[], KernelDiedError | None],
        pause: Callable[[], KernelPausedError | None] = lambda: None,
    ) -> None:
        self.interrupt = interrupt
        self._kernels_death = death
        self._monitors: dict[zmq.Socket[bytes], zmq.Socket[Any]] = {}
        self._addresses: dict[zmq.Socket[bytes], str] = {}
        self._lost: set[zmq.Socket[bytes]] = set()
        self._monitors_lock = threading.Lock()
        self._lost_at = 0.0
        self._sent: dict[str, None] = {}
        self.pause = pause
        self.is_interrupted = self.missed_interrupt = False
        self._is_at_it = False
        self.abandoned: set[str] = set()
        self.shell_lock = threading.RLock()
        self.iopub_lock = threading.RLock()
        self._control_lock = threading.RLock()
        self.let_go: Callable[[], None] = _nobody
        self._unread: deque[list[zmq.Frame]] = deque()
        self.last_cell: dict[str, str] = {}
        self.is_shared: Callable[[], bool] = lambda: False
        self.was_shared: Callable[[], bool] = lambda: False
        self.has_comm: Callable[[str], bool] = lambda _: False
        self.is_used: Callable[[], bool] = lambda: False
        self.reader: threading.Thread | None = None
        self._holder: int | None = None
        self._context = zmq.Context(io_threads=1)
        # What nobody closes is closed before it is collected: of a context in a cycle, pyzmq's `__del__` does not find
        # the sockets, whose weak references have gone by then, and waits for ever for them to be closed.
        self._close = weakref.finalize(self, _close_sockets, self._context, self._monitors)
        self._close.atexit = False
        self._connection = dict(connection_info)
        self._asks_lock = threading.RLock()
        self._asks: zmq.Socket[bytes] | None = None
        self._asks_session: Session | None = None
        self._is_closing = False
        self.session = Session(signature_scheme=connection_info["signature_scheme"])
        self.session.key = connection_info["key"]  # here, for an empty one warns the user above
        self.shell = self._open(zmq.DEALER, connection_info, "shell_port")
        self.stdin = self._open(zmq.DEALER, connection_info, "stdin_port")
        self.iopub = self._open(zmq.SUB, connection_info, "iopub_port")
        self._control = self._open(zmq.DEALER, connection_info, "control_port")
        self._poller = zmq.Poller()
        for socket in (self.shell, self.stdin, self.iopub):
            self._poller.register(socket, zmq.POLLIN)
        self.kernel_info: dict[str, Any] = {}
        self.next_count = 1

    def _open(
        self,
        kind: int,
        info: Mapping[str, Any],
        port_name: str,
        *,
        session: Session | None = None,
        largest: int = LARGEST_PART,
    ) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = 0
        if kind == zmq.SUB:
            socket.subscribe(b"")
            # Nothing is dropped: behind a full queue the kernel waits, as it would for a slow terminal.
            socket.rcvhwm = _QUEUE
        else:
            # An input request is routed by the identity of the execute request.
            socket.identity = (session or self.session).bsession
        socket.setsockopt(zmq.MAXMSGSIZE, largest)
        with self._monitors_lock:
            self._monitors[socket] = socket.get_monitor_socket(zmq.Event.DISCONNECTED)
        separator = "-" if info["transport"] == "ipc" else ":"
        address = f"{info['transport']}://{info['ip']}{separator}{info[port_name]}"
        self._addresses[socket] = address
        socket.connect(address)
        return socket

    def death(self) -> KernelError | None:
        """Return an error when the kernel has died, or has lost a connection, with what was on it; else None."""
        error = self._kernels_death()
        if error is not None:
            return error
        now = time.monotonic()
        with self._monitors_lock:
            for socket, monitor in self._monitors.items():
                while monitor.poll(0):
                    monitor.recv_multipart()
                    self._lost_at = self._lost_at or now
                    self._lost.add(socket)
        if not self._lost_at or now < self._lost_at + _LOST_PATIENCE:
            return None
        if not self._connect_again():
            return None  # whoever uses the sockets now will look too
        self._lost_at = 0.0
        return KernelError(
            "A connection to the kernel ended, and messages may be lost: it sent a message of more than "
            f"{LARGEST_PART // 1024**2} MiB, which is refused, or closed it.",
            hint="Show or send less at once; large values go through files in the workspace.",
        )

    def _connect_again(self) -> bool:
        """Connect what was lost, which ZeroMQ does not after a message that was refused.

        Returns False where another thread uses the sockets.
        """
        with contextlib.ExitStack() as held:
            for lock in (
                self.shell_lock,
                self.iopub_lock,
                self._control_lock,
                self._asks_lock,
            ):
                if not lock.acquire(blocking=False):
                    return False
                held.callback(lock.release)
            while self._lost:
                socket = self._lost.pop()
                with contextlib.suppress(zmq.ZMQError):  # it has given the address up
                    socket.disconnect(self._addresses[socket])
                socket.connect(self._addresses[socket])
        self.let_go()
        return True

    def note_sent(self, msg_id: str) -> None:
        """Remember a request: what the kernel publishes for it is passed on."""
        self._sent[msg_id] = None
        if len(self._sent) > _REMEMBERED:
            with contextlib.suppress(KeyError, RuntimeError):  # another thread does it too
                del self._sent[next(iter(self._sent))]

    def note_cell(self, header: Mapping[str, Any]) -> None:
        """Remember the header of a cell that is sent."""
        self.last_cell = {name: value for name, value in header.items() if isinstance(value, str)}

    def adopt(self, message: Message) -> None:
        """Let what is published for what was evaluated belong to the last cell.

        It is what iterators print, and what threads do between two cells, or meanwhile.
        """
        session = self._asks_session
        if (
            session is not None
            and self.last_cell
            and message.type not in NOT_PASSED_ON
            and message.parent.get("session") == session.session
        ):
            message.replace_parent(self.last_cell)

    def may_publish(self, message: Message) -> bool:
        """Tell whether a message on IOPub is this kernel's to say: for a request that it got from us, or for none.

        Another would be shown in a cell that ran elsewhere, or is for another notebook that shares the kernel. Our
        widgets may be moved by that one, too.
        """
        if message.type in NEVER_PASSED_ON or (
            message.type == "status"
            and message.content.get("execution_state") not in ("busy", "idle")
        ):
            return False
        if message.parent_id == "" or message.parent_id in self._sent:
            return True
        is_of_comm = message.type in ("comm_msg", "comm_close")
        return is_of_comm and self.has_comm(str(message.content.get("comm_id", "")))

    def make_ready(self) -> None:
        """Return when the kernel answers and its output has been seen to arrive.

        Raises
        ------
        KernelDiedError, KernelStartTimeoutError
        """
        deadline = time.monotonic() + READY_TIMEOUT
        ask_at = time.monotonic()
        answered = heard = False
        with self.shell_lock, self.iopub_lock:  # a cell that comes meanwhile waits
            while not (answered and heard):
                self._raise_if_closing()
                self._raise_if_dead()
                now = time.monotonic()
                if now > deadline:
                    raise KernelStartTimeoutError(
                        f"The kernel did not answer within {READY_TIMEOUT:.0f} s.",
                        hint="Start it again.",
                    )
                if now >= ask_at:
                    self.session.send(self.shell, "kernel_info_request", {})
                    # A kernel that is not up yet would answer them all, and only then run the first cell.
                    ask_at = now + (_PROBE_INTERVAL if answered else _ASK_INTERVAL)
                for socket, _ in self._poller.poll(round(_PROBE_INTERVAL * 1000)):
                    if socket is self.shell:
                        self.kernel_info = _plain_info(self._receive(self.shell)["content"])
                        answered = True
                        ask_at = time.monotonic() + _PROBE_INTERVAL
                    elif socket is self.iopub:
                        self.iopub.recv_multipart()
                        heard = True

    def execute(
        self,
        header: Mapping[str, Any],
        content: Mapping[str, Any],
        sink: Sink,
        *,
        count: int | None = None,
        tell: Callable[[str], None] = lambda _: None,
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
        tell : callable
            Gets a line for the user while the cell cannot go on.

        Raises
        ------
        KernelDiedError
            If the kernel dies under the cell.
        KernelError
            If it is interrupted while the container is paused.
        """
        msg_id = header["msg_id"]
        self.note_sent(msg_id)
        self.note_cell(header)
        self.is_interrupted = self.missed_interrupt = self._is_at_it = was_told = False
        since = time.monotonic()
        # In this order: an interrupt may come between the last message and the letting go.
        with self._interrupts_passed_on(), self._held(self.shell_lock, self.iopub_lock):
            while self.abandoned and time.monotonic() < since + ABANDONED_PATIENCE:
                self._raise_if_closing()
                events = dict(self._poller.poll(round(_LOOK_INTERVAL * 1000)))
                if not events:
                    was_told = self._look_after_kernel(tell, was_told=was_told)
                if was_told:
                    since = time.monotonic()
                if self.iopub in events:
                    self._pass_on(sink, msg_id, count)
                for socket in (self.shell, self.stdin):
                    if socket in events:
                        self._receive(socket)
            self.abandoned.clear()
            if count is not None and counts(content):
                self.count_as(count)
            self.session.send(self.shell, _request(header, content))
            reply: dict[str, Any] | None = None
            idle = False
            probe = ""
            while reply is None or not idle:
                self._raise_if_closing()
                events = dict(self._poller.poll(round(_LOOK_INTERVAL * 1000)))
                if not events and self.is_interrupted and not probe:
                    probe = self.ask_shell()
                if not events:
                    try:
                        was_told = self._look_after_kernel(tell, was_told=was_told)
                    except KernelPausedError:
                        self.abandoned.add(msg_id)
                        raise
                if self.iopub in events:
                    idle |= self._pass_on(sink, msg_id, count)
                if self.stdin in events:
                    self._answer(sink)
                if self.shell in events:
                    received = self._receive(self.shell)
                    if received["parent_header"].get("msg_id") == msg_id:
                        self._is_at_it = False
                        reply = checked_reply(received["content"], content["code"])
                    elif probe and received["parent_header"].get("msg_id") == probe:
                        idle, reply = True, reply or dict(INTERRUPTED)
            # The poll may have swallowed the signal of something that came right behind.
            self._pass_on(sink, msg_id, count)
        if count is not None and "execution_count" in reply:
            reply["execution_count"] = count
        return reply

    def ask_shell(self) -> str:
        """Send a request that is answered when the cell before it is done, and return its id.

        An interrupt that meets a kernel as it says that a cell has ended takes the rest of the words from it.
        """
        sent: Any = self.session.send(self.shell, "kernel_info_request", {})
        self.note_sent(sent["header"]["msg_id"])
        return str(sent["header"]["msg_id"])

    def _look_after_kernel(self, tell: Callable[[str], None], *, was_told: bool) -> bool:
        """Raise where a cell cannot go on; return whether the user knows that its container is paused."""
        self._raise_if_dead()
        paused = self.pause()
        if paused is None:
            return False
        if self.is_interrupted:
            raise paused
        if not was_told:
            tell(str(paused))
        return True

    def count_as(self, count: int) -> None:
        """Have an IPython count its next cell as `count`: an execute request before that cell's own.

        `Out[7]`, history and tracebacks over there then name the cell as the notebook does. The reply has a
        parent that nobody waits for. A kernel that counts so already, or counts for itself, is left alone. Where
        it has counted further, for another notebook, its history goes on in a new session: a line of a session
        can be stored once.
        """
        if (count == self.next_count and not self.was_shared()) or not self.is_ipython:
            return
        header = self.session.msg_header("execute_request")
        code = (
            "def _dockml_count(shell):\n"
            "    typed = shell.history_manager\n"
            f"    if len(typed.input_hist_parsed) > {count}:\n"
            "        try:\n"
            "            typed.writeout_cache(); typed.new_session()\n"
            "        except Exception:\n"
            "            pass\n"
            "    for lines in typed.input_hist_parsed, typed.input_hist_raw:\n"
            f"        del lines[{count}:]; lines.extend([''] * ({count} - len(lines)))\n"
            f"    shell.execution_count = {count}\n"
            "_dockml_count(__import__('IPython').get_ipython()); del _dockml_count"
        )
        content = {"code": code, "silent": True, "store_history": False, "user_expressions": {}}
        with self.shell_lock:
            self._raise_if_closing()
            self._send(self.shell, _request(header, {**content, "allow_stdin": False}))
        self.next_count = count

    @property
    def is_ipython(self) -> bool:
        """Whether the kernel is IPython, whose count can be set."""
        return self.kernel_info.get("implementation") == "ipython"

    @property
    def has_debugger(self) -> bool:
        """Whether the kernel answers debug requests."""
        features = self.kernel_info.get("supported_features", ())
        return bool(self.kernel_info.get("debugger")) or "debugger" in features

    def forward(self, message: Mapping[str, Any]) -> None:
        """Send a front end's message to the kernel as it is; what comes of it arrives on its own."""
        self.note_sent(message["header"]["msg_id"])
        with self._letting_go(), self.shell_lock:
            self._raise_if_closing()
            self._send(
                self.shell,
                {
                    "header": _plain(message["header"]),
                    "parent_header": message["parent_header"],
                    "metadata": message["metadata"],
                    "content": message["content"],
                },
                message["buffers"],
            )

    def _send(
        self, socket: zmq.Socket[bytes], message: dict[str, Any], buffers: Sequence[Any] = ()
    ) -> None:
        """Send a message whole, whatever interrupts us: half of one would have the next one for its rest."""
        with interrupts_later():
            self.session.send(socket, message, buffers=list(buffers))

    def request(
        self, msg_type: str, content: Mapping[str, Any], timeout: float
    ) -> dict[str, Any] | None:
        """Send any other shell request and return its reply's content, None if none comes in time."""
        deadline = time.monotonic() + timeout
        with self._held(self.shell_lock, until=deadline) as is_held:
            left = deadline - time.monotonic()
            return self._request(self.shell, msg_type, content, left) if is_held else None

    def request_on_control(
        self, msg_type: str, content: Mapping[str, Any], timeout: float
    ) -> dict[str, Any] | None:
        """Send a control request, which a kernel answers while it works, as `request` does."""
        with self._control_lock:
            self._raise_if_closing()
            return self._request(self._control, msg_type, content, timeout)

    def _request(
        self,
        socket: zmq.Socket[bytes],
        msg_type: str,
        content: Mapping[str, Any],
        timeout: float,
    ) -> dict[str, Any] | None:
        deadline = time.monotonic() + timeout
        sent = self.session.msg(msg_type, dict(content))
        self.note_sent(sent["header"]["msg_id"])
        self._send(socket, sent)
        while (left := deadline - time.monotonic()) > 0:
            self._raise_if_closing()
            if socket.poll(round(min(left, _LOOK_INTERVAL) * 1000)):
                received = self._receive(socket)
                if received["parent_header"].get("msg_id") == sent["header"]["msg_id"]:
                    answer: dict[str, Any] = received["content"]
                    return answer
            elif self.death() is not None:
                break
        return None

    def ask(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        buffers: Sequence[Any] = (),
        *,
        interrupted: Callable[[], bool] = lambda: True,
        tell: Callable[[str], None] = lambda _: None,
    ) -> tuple[dict[str, Any], list[Any]]:
        """Have the kernel answer a request in its turn; return the content and the buffers of its reply.

        It goes over a connection of its own, so that a cell may run and ask meanwhile. What the kernel publishes for
        it is nobody's.

        Parameters
        ----------
        msg_type : str
            One that the kernel knows: it says nothing to another.
        content : mapping
        buffers : sequence of bytes-like
        interrupted : callable
            Called once when we are interrupted; tells whether the kernel works on this, and is to be interrupted.
        tell : callable
            Gets a line for the user while it cannot go on.

        Raises
        ------
        KernelDiedError
            If the kernel dies.
        KernelError
            If the kernel is stopped.
        KeyboardInterrupt
            When the kernel has let go of it.
        """
        with self._asks_lock:
            self._raise_if_closing()
            for _ in range(_MOST_ABORTED):
                answer = self._ask(msg_type, content, buffers, interrupted, tell)
                if answer[0].get("status") != "aborted":
                    break
                time.sleep(_PROBE_INTERVAL)
        return answer

    def evaluate(self, expression: str, tell: Callable[[str], None] = lambda _: None) -> str:
        """Have the kernel, an IPython, evaluate an expression in its turn, and return its text.

        The request has no code: it counts nothing, and leaves nothing in the history or in `Out`.

        Parameters
        ----------
        expression : str
            ASCII.
        tell : callable
            Gets a line for the user while it cannot go on.

        Raises
        ------
        KernelError
            As `ask`; or if it cannot be evaluated.
        KeyboardInterrupt
            It is evaluated in its turn all the same.
        """
        content = {
            "code": "",
            "silent": True,
            "store_history": False,
            "user_expressions": {_EXPRESSION: expression},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        answer, _ = self.ask("execute_request", content, interrupted=lambda: False, tell=tell)
        try:
            value = answer["user_expressions"][_EXPRESSION]
            if value["status"] == "ok":
                text = value["data"]["text/plain"]
                if isinstance(text, str):
                    return text
            problem = f"{value['ename']}: {value['evalue']}"
        except UNUSABLE as error:
            raise nonsense(MalformedMessageError("it is no answer to what was asked")) from error
        raise KernelError(
            f"The kernel cannot do what it was asked to: {problem[:_LONGEST_PROBLEM]}"
        )

    def _ask(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        buffers: Sequence[Any],
        interrupted: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> tuple[dict[str, Any], list[Any]]:
        socket, session = self._asking()
        message = session.msg(msg_type, dict(content))
        stop: KeyboardInterrupt | None = None
        deadline = float("inf")
        is_sent = was_told = False
        while True:
            answer: dict[str, Any] | None = None
            try:
                if not is_sent:
                    with interrupts_later():
                        session.send(socket, message, buffers=list(buffers))
                        is_sent = True
                self._raise_if_closing()
                if stop is not None and time.monotonic() > deadline:
                    raise stop
                if not socket.poll(round(_LOOK_INTERVAL * 1000)):
                    self._make_room(session)
                    self._raise_if_dead()
                    paused = self.pause()
                    if paused is not None and stop is not None:
                        raise paused
                    if paused is not None and not was_told:
                        tell(str(paused))
                        was_told = True
                    continue
                with interrupts_later():
                    received = self._receive(socket, session)
                    if received["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                        answer = received
            except KeyboardInterrupt as error:
                if stop is not None or answer is not None or not is_sent:
                    raise
                stop, deadline = error, time.monotonic() + _LET_GO_PATIENCE
                if not interrupted():
                    raise
                self.interrupt()
                continue
            if answer is not None:
                self._make_room(session)
                if stop is not None:
                    raise stop
                return answer["content"], answer["buffers"]

    def _make_room(self, session: Session) -> None:
        """Take in what was published for what is asked, where nobody else reads.

        The kernel waits behind a full queue. What is not for that waits for the next cell, as it would have.
        """
        if self.let_go is not _nobody or not self.iopub_lock.acquire(blocking=False):
            return
        try:
            while len(self._unread) < _QUEUE:
                frames = receive(self.iopub)
                with contextlib.suppress(*UNUSABLE):
                    message = Message(frames)
                    if message.type in NOT_PASSED_ON and (
                        message.parent.get("session") == session.session
                    ):
                        continue
                self._unread.append(frames)
        except zmq.Again:
            pass
        finally:
            self.iopub_lock.release()

    def _asking(self) -> tuple[zmq.Socket[bytes], Session]:
        if self._asks is None or self._asks_session is None:
            session = Session(signature_scheme=self._connection["signature_scheme"])
            session.key = self._connection["key"]
            self._asks = self._open(
                zmq.DEALER,
                self._connection,
                "shell_port",
                session=session,
                largest=LARGEST_ANSWER,
            )
            self._asks_session = session
        return self._asks, self._asks_session

    def end_waits(self) -> None:
        """Have what other threads wait for at the sockets end with an error, as `close` is to have them."""
        self._is_closing = True

    def _raise_if_closing(self) -> None:
        """Let `close` have the locks: whoever holds one, or has just got it, goes."""
        if self._is_closing:
            raise KernelError("The kernel was stopped.", hint="See what runs with: %docker_ps")

    def close(self) -> None:
        """Close the sockets; what other threads wait for at them ends with an error. Again is no error."""
        self.end_waits()
        with (
            self.shell_lock,
            self.iopub_lock,
            self._control_lock,
            self._asks_lock,
            self._monitors_lock,
        ):
            self._close()

    @contextmanager
    def _held(self, *locks: threading.RLock, until: float = float("inf")) -> Iterator[bool]:
        """Hold sockets while nobody else's answers come by them, and let those go on who pass messages on.

        Gives False where there was no such time `until` then.
        """
        while True:
            if not self._wait_for_turn(until):
                yield False
                return
            with self._letting_go(), contextlib.ExitStack() as held:
                for lock in locks:
                    held.enter_context(lock)
                self._raise_if_closing()
                if self.is_used() and self._holder is None:  # that came first
                    continue
                outer, self._holder = self._holder, threading.get_ident()
                try:
                    yield True
                finally:
                    self._holder = outer
            return

    @contextmanager
    def _letting_go(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.let_go()

    def _wait_for_turn(self, deadline: float) -> bool:
        """Wait until nobody else's answers are to come; tell whether that was in time.

        Raises
        ------
        KernelError
            If the kernel dies or is stopped; or in the thread that reads these answers.
        """
        while self.is_used() and self._holder != threading.get_ident():
            if threading.current_thread() is self.reader:
                raise KernelError(
                    "The kernel works on a cell, whose end is awaited in this thread.",
                    hint="Ask it in a cell, or in a thread of your own.",
                )
            self._raise_if_closing()
            self._raise_if_dead()
            if time.monotonic() > deadline:
                return False
            time.sleep(_PROBE_INTERVAL)
        return True

    def _pass_on(self, sink: Sink, msg_id: str, count: int | None) -> bool:
        """Pass on all that has arrived; return whether the kernel is idle again."""
        idle = False
        while True:
            try:
                frames = self._unread.popleft() if self._unread else receive(self.iopub)
            except zmq.Again:
                return idle
            try:
                message = Message(frames)
                message.verify(self.session)
                self.adopt(message)
                self.mind_abandoned(message)
                if not self.may_publish(message):
                    log.debug("a %s that is for no cell of this kernel", message.type)
                elif message.type == "status":
                    if message.parent_id == msg_id:
                        idle |= message.content["execution_state"] == "idle"
                        self._is_at_it = not idle
                elif message.type not in NOT_PASSED_ON:
                    if count is not None:
                        show_count(message, count)
                    sink.publish(message)
            except UNUSABLE as error:
                raise nonsense(error) from error

    def mind_abandoned(self, message: Message) -> bool:
        """Interrupt a cell that nobody waits for as it begins; return whether the last of them has ended."""
        if message.parent_id not in self.abandoned:
            return False
        if message.type == "execute_input":
            self.interrupt()
        elif message.type == "status" and message.content.get("execution_state") == "idle":
            self.abandoned.discard(message.parent_id)
            return not self.abandoned
        return False

    def _answer(self, sink: Sink) -> None:
        question = self._receive(self.stdin)
        prompt = str(question["content"].get("prompt", ""))
        is_secret = bool(question["content"].get("password"))
        try:
            with self._interrupts_raised():
                value = sink.ask(prompt, password=is_secret)
        except KeyboardInterrupt:
            self.interrupt()
            return
        except EOFError:
            value = "\x04"
        self.session.send(self.stdin, "input_reply", {"value": value}, parent=question)

    def _receive(self, socket: zmq.Socket[bytes], session: Session | None = None) -> dict[str, Any]:
        """Return the message that a poll has announced."""
        try:
            _, message = (session or self.session).recv(socket)
        except (*UNUSABLE, RecursionError) as error:
            raise nonsense(error) from error
        assert message is not None
        if not all(isinstance(message[part], dict) for part in ("parent_header", "content")):
            raise nonsense(MalformedMessageError("it is not a JSON object"))
        return message

    def _raise_if_dead(self) -> None:
        error = self.death()
        if error is not None:
            raise error

    @contextmanager
    def _interrupts_passed_on(self) -> Iterator[None]:
        """While a cell runs, SIGINT here is SIGINT there. Python delivers it to the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def pass_on(signum: int, frame: FrameType | None) -> None:
            self.is_interrupted = True
            self.missed_interrupt = not self._is_at_it
            self.interrupt()

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


def counts(content: Mapping[str, Any]) -> bool:
    """Tell whether a kernel counts the cell of this execute_request."""
    return bool(content.get("store_history", True)) and not content.get("silent")


def show_count(message: Message, count: int) -> None:
    """Let a message that names an execution count name this one."""
    if (
        message.type in ("execute_input", "execute_result", "execute_reply")
        and message.content.get("execution_count", count) != count
    ):
        message.replace_content({**message.content, "execution_count": count})


def checked_reply(content: dict[str, Any], code: str) -> dict[str, Any]:
    """Return what an execute_reply says, as far as a kernel in a container may ask for it.

    A payload asks the front end to do something in the name of the notebook: to show a text, or to give the next
    input. To end is for the user to say, in the cell; and files are not opened, as they are other ones here.

    Raises
    ------
    MalformedMessageError
        If it is no reply.
    """
    if not isinstance(content.get("status"), str):
        raise MalformedMessageError("it has no status")
    count = content.get("execution_count")
    if count is not None and not (isinstance(count, int) and 0 <= count < 1 << 31):
        raise MalformedMessageError("its execution count is none")
    payload = content.get("payload")
    if not payload:
        return content
    allowed = {"page", "set_next_input"}
    if re.search(r"\b(exit|quit)\b", code):
        allowed.add("ask_exit")
    kept = [
        item
        for item in (payload if isinstance(payload, list) else ())
        if isinstance(item, dict) and item.get("source") in allowed
    ]
    return content if kept == payload else {**content, "payload": kept}


def is_plausible(count: int, expected: int) -> bool:
    """Tell whether a kernel can have counted that far: what it says becomes the notebook's own count."""
    return count <= expected + _MOST_AHEAD


def _plain_info(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a kernel_info_reply what we look at, where it is what it should be."""
    language = content.get("language_info")
    features = content.get("supported_features")
    return {
        **content,
        "language_info": language if isinstance(language, dict) else {},
        "supported_features": features if isinstance(features, list) else [],
    }


def nonsense(error: Exception) -> KernelError:
    """Return what to raise when a kernel's message cannot be read."""
    return KernelError(
        f"The kernel in the container sent a message that cannot be used: {error}.",
        hint="Start it again with --fresh, or go back with: %docker_env local",
    )


def _request(header: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    # A date of its own, so that two equal pieces of one cell have different signatures.
    fresh = {"msg_type": "execute_request", "date": datetime.now(timezone.utc)}
    return {
        "header": _plain(header) | fresh,
        "parent_header": {},
        "metadata": {},
        "content": content,
    }


def _plain(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return a header without the subshell, which the notebook's own kernel may have and another not."""
    return {key: value for key, value in header.items() if key != "subshell_id"}
