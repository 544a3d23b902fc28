"""Whole cells on their way between a notebook's front end and kernels in containers, in raw messages.

While the extension is loaded, `ShellChannel` stands before the notebook's own kernel and takes each message
of the front end's shell channel as it arrives, in the thread where ipykernel reads them. What belongs to
an environment goes to that kernel as it came, signed anew; what it answers and publishes goes to the
front end in the same way: its replies from that thread, its output from ipykernel's IOPub thread. The
notebook's main thread has no part in it, and nothing is decoded but what we must know.

Order is as with one kernel: a message waits while those before it run elsewhere. Requests for one
environment are passed on at once, so that it is that kernel which aborts what stands behind an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import zmq

from dockml_magic.environment import Environment
from dockml_magic.errors import DockmlError, KernelError
from dockml_magic.messages import MalformedMessageError, Message, receive, send
from dockml_magic.relay import (
    ABANDONED_PATIENCE,
    INTERRUPTED,
    NOT_PASSED_ON,
    UNUSABLE,
    Relay,
    checked_reply,
    counts,
    is_plausible,
    nonsense,
    show_count,
)

log = logging.getLogger(__name__)

COMM_TYPES = frozenset({"comm_msg", "comm_close"})
"""Messages of a comm that is open: they go where it was opened."""
ALL_COMM_TYPES = COMM_TYPES | {"comm_open"}
OPEN_AND_CLOSE = frozenset({"comm_open", "comm_close"})
"""Messages, of either side, after which a comm is somebody's or nobody's."""
UNDECIDED_TYPES = frozenset(
    {
        "execute_request",
        "complete_request",
        "inspect_request",
        "is_complete_request",
        "history_request",
    }
)
"""Requests that go where cells go, which the cell before them may change."""

_LOOK_INTERVAL = 0.1
"""Seconds between two looks whether a kernel still lives, while it works."""
_REPLY_PATIENCE = 5.0
"""Seconds after idle in which a reply must come; old kernels leave some requests unanswered."""
_BATCH = 500
"""Messages that are passed on before other work of the thread has its turn."""
_INTERRUPT_PATIENCE = 10.0
"""Seconds after an interrupt in which a kernel should let go of its cell."""
_HISTORY_INTERVAL = 0.1
"""Seconds after a cell in which the history need not have it. IPython writes it to the disk at once, in a thread that
takes as long as all that is done here for a cell; so it comes after the cell's last message, once for many cells."""
_UNWRITTEN = 1000
"""Cells that IPython may hold back for that."""
_ROOM_INTERVAL = 0.005
_ROOM_PATIENCE = 20.0
"""Seconds without room for a message after which a front end that does not read gets no more of them."""


_MARKER = b"dockml: the end of what was there before"
_MARKER_ID = "marker"


class RefusedError(Exception):
    """Raised for a comm that no kernel is to have: it is closed at once."""


class FrontEnd:
    """The notebook kernel's own sockets to its front end.

    Parameters
    ----------
    kernel : ipykernel.kernelbase.Kernel
        Of version 6 or 7, with a shell stream.

    Attributes
    ----------
    loop : asyncio event loop
        On which the shell channel is read: the main thread's with ipykernel 6, another thread's with 7.
    iopub_loop : asyncio event loop
        Of the thread that publishes.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.session = kernel.session
        self.stream = kernel.shell_stream
        self.loop: asyncio.AbstractEventLoop = self.stream.io_loop.asyncio_loop
        self.shell_thread: threading.Thread = (
            getattr(kernel, "shell_channel_thread", None) or threading.main_thread()
        )
        self.iopub = kernel.iopub_thread
        self.iopub_loop: asyncio.AbstractEventLoop = self.iopub.io_loop.asyncio_loop
        self.stdin: zmq.Socket[bytes] = kernel.stdin_socket
        self._drops = False

    def reply(self, message: Message) -> None:
        """Send a reply on; on the shell channel's loop."""
        send(self.stream.socket, message.said_by(self.session))
        self._look_again()

    def answer(self, message: Message, content: Mapping[str, Any]) -> None:
        """Answer a request ourselves; on the shell channel's loop."""
        idents = [frame.bytes for frame in message.prefix]
        kind = message.type.replace("_request", "_reply")
        self.session.send(
            self.stream.socket, kind, dict(content), parent=message.header, ident=idents
        )
        self._look_again()

    def _look_again(self) -> None:
        # Sending may swallow the signal that something has arrived; the stream does not know of it.
        if _has_arrived(self.stream.socket):
            self.loop.call_soon(self.stream.flush)

    def publish(self, frames: list[zmq.Frame | bytes], *, has_waited: bool = False) -> bool:
        """Publish a container's message; in the IOPub thread.

        Returns False where a front end is so far behind that it would not get it. One that stays so gets no
        more of what it has no room for, until it has read again.
        """
        socket = self.iopub.socket
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        try:
            send(socket, frames, blocking=False)
            self._drops = False
            return True
        except zmq.Again:
            self._drops |= has_waited
        finally:
            socket.setsockopt(zmq.XPUB_NODROP, 0)
        if self._drops:
            send(socket, frames)
        return self._drops

    def say(self, msg_type: str, content: Mapping[str, Any], parent: Message) -> None:
        """Publish a message of ours under a request; in any thread."""
        self.session.send(self.kernel.iopub_socket, msg_type, dict(content), parent=parent.header)

    def abort(self, cells: Iterable[Message]) -> None:
        """Answer cells that nobody ran."""
        for cell in cells:
            self.say("status", {"execution_state": "busy"}, cell)
            self.answer(cell, {"status": "aborted"})
            self.say("status", {"execution_state": "idle"}, cell)

    def close_comm(self, message: Message) -> None:
        """Close a comm that the front end opens."""
        self.say("status", {"execution_state": "busy"}, message)
        self.say("comm_close", {"comm_id": message.content.get("comm_id"), "data": {}}, message)
        self.say("status", {"execution_state": "idle"}, message)

    def run_in(self, thread: threading.Thread, work: Callable[[], None]) -> None:
        """Do something on the loop of the shell channel's or of the IOPub thread, and wait for it."""
        if threading.current_thread() is thread:
            work()
            return
        if not thread.is_alive():
            return
        loop = self.loop if thread is self.shell_thread else self.iopub_loop
        done = threading.Event()

        def do() -> None:
            try:
                work()
            finally:
                done.set()

        loop.call_soon_threadsafe(do)
        done.wait(_REPLY_PATIENCE)


@dataclass
class Request:
    """A front end's request that a kernel in a container works on."""

    message: Message
    counts: bool
    count: int
    replied: bool = False
    replied_since: float | None = None
    aborted_since: float | None = None
    idle_since: float | None = None
    probe: str = ""

    @property
    def is_settled(self) -> bool:
        """Nothing more is to come."""
        return self.replied and self.idle_since is not None


@dataclass(frozen=True)
class Output:
    """A message that a kernel has published, and the request that it ends, if it says idle."""

    frames: list[zmq.Frame | bytes]
    ends: Request | None


@dataclass
class Forwarder:
    """Passes messages on between a front end and one kernel in a container.

    `send` and all that has to do with replies and questions runs on the shell channel's loop; output
    passes through the IOPub thread.

    Parameters
    ----------
    front : FrontEnd
    environment : Environment
    relay : Relay
        Its sockets; whoever holds their locks reads them instead.
    note : callable
        Gets each message about a comm that the kernel publishes; returns whether that comm is this kernel's.
    replied : callable
        Called with a cell and the content of its reply, on the shell channel's loop.
    failed : callable
        Called with a request that failed, before its reply; returns the waiting cells that are to be
        aborted. What a front end sends in answer to the reply is not.
    settled : callable
        Called when a request is done with, in either thread.
    """

    front: FrontEnd
    environment: Environment
    relay: Relay
    note: Callable[[Environment, Message], bool]
    replied: Callable[[Request, Mapping[str, Any]], None]
    failed: Callable[[Request], list[Message]]
    settled: Callable[[], None]
    requests: dict[str, Request] = field(default_factory=dict)
    _asks: bool = False
    _looks: asyncio.TimerHandle | None = None
    _interrupted_at: float = 0.0
    _was_told: bool = False
    _was_told_of_pause: bool = False
    _held: list[Request] = field(default_factory=list)
    _held_since: float = 0.0
    _unsent: Output | None = None
    _heard_at: float = 0.0

    def __post_init__(self) -> None:
        """Note what the loops watch: a loop may have to forget it when the sockets are closed already."""
        self._shell_fd = self.relay.shell.FD
        self._stdin_fd = self.relay.stdin.FD
        self._iopub_fd = self.relay.iopub.FD

    def open(self) -> None:
        """Begin to read."""
        self.relay.let_go = self._resume
        self.relay.is_used = lambda: any(r not in self._held for r in list(self.requests.values()))
        self.relay.reader = self.front.shell_thread
        self._resume()

    def close(self, error: DockmlError) -> None:
        """Read no more; what was under way ends with an error. The relay may be closed then."""
        self.relay.let_go = lambda: None
        self.relay.is_used = lambda: False
        self.front.run_in(self.front.iopub.thread, self._stop_reading_output)
        self.front.run_in(self.front.shell_thread, partial(self._stop_reading_replies, error))

    def _stop_reading_output(self) -> None:
        self._unsent = None
        self.front.iopub_loop.remove_reader(self._iopub_fd)

    def _stop_reading_replies(self, error: DockmlError) -> None:
        for watched in (self._shell_fd, self._stdin_fd):
            self.front.loop.remove_reader(watched)
        self.fail(error)

    def _resume(self) -> None:
        """Read again, after another had the sockets; in any thread."""
        self.front.loop.call_soon_threadsafe(self._resume_replies)
        # Through the queue in which a notebook's own output waits, so that the order is kept.
        self.front.iopub.schedule(self._resume_output)

    @property
    def _is_open(self) -> bool:
        return self.relay.let_go == self._resume

    def _resume_replies(self) -> None:
        if self._is_open:
            self.front.loop.add_reader(self._shell_fd, self._read_replies)
            self.front.loop.add_reader(self._stdin_fd, self._read_questions)
            if self._held and not self.relay.abandoned:
                self._send_held()
            self._read_replies()
            self._read_questions()

    def _resume_output(self) -> None:
        if self._is_open:
            self.front.iopub_loop.add_reader(self._iopub_fd, self._read_output)
            self._read_output()

    # --- to the kernel ------------------------------------------------------------------------

    def send(self, message: Message, *, shown_count: int) -> None:
        """Pass a request on.

        Parameters
        ----------
        message : Message
            Of the shell channel.
        shown_count : int
            The notebook's execution count, for a cell that is not behind another one of this kernel.
        """
        is_counted = message.type == "execute_request" and counts(message.content)
        under_way = list(self.requests.values())  # the IOPub thread takes out what is settled
        if not under_way:
            self._interrupted_at, self._was_told = 0.0, False
        ahead = sum(r.counts and not r.replied for r in under_way)
        request = Request(message=message, counts=is_counted, count=shown_count + ahead)
        if message.type.startswith("comm_") and not message.type.endswith("_request"):
            request.replied = True  # these have no reply
        self.requests[message.id] = request
        if self.relay.abandoned or self._held:
            self._hold(request)
        else:
            self._send(request, is_first=not ahead)
        if self._looks is None:
            self._looks = self.front.loop.call_later(_LOOK_INTERVAL, self._look)

    def _hold(self, request: Request) -> None:
        self._held_since = time.monotonic()
        self._held.append(request)

    def _send(self, request: Request, *, is_first: bool) -> None:
        """Send a request, unless another thread has a cell run there: it is sent after that."""
        if self._held or not self.relay.shell_lock.acquire(blocking=False):
            self._hold(request)
            return
        try:
            if request.counts and is_first:
                with contextlib.suppress(KernelError):  # it is being stopped, and this told of it
                    self.relay.count_as(request.count)
            self.relay.note_sent(request.message.id)
            if request.message.type == "execute_request":
                self.relay.note_cell(request.message.header)
            send(self.relay.shell, request.message.signed_by(self.relay.session))
            if _has_arrived(self.relay.shell):
                self.front.loop.call_soon(self._read_replies)
        finally:
            self.relay.shell_lock.release()

    def _send_held(self) -> None:
        """Send what waited for the end of cells that nobody waits for, or of another thread's."""
        self.relay.abandoned.clear()
        held, self._held = self._held, []
        is_first = True
        for request in held:
            self._send(request, is_first=is_first)
            is_first &= not request.counts

    def _look(self) -> None:
        """See whether the kernel lives, as long as it has something to do."""
        self._looks = None
        if not self.requests:
            return
        try:
            error: DockmlError | None = self.relay.death()
        except DockmlError as gone:
            error = gone
        if error is not None:
            self._read_replies()
            self.front.run_in(self.front.iopub.thread, self._read_output)
            self.fail(error)
            return
        if self.environment.is_paused:
            self._mind_pause()
        else:
            self._was_told_of_pause = False
            if self._held and time.monotonic() > self._held_since + ABANDONED_PATIENCE:
                self._send_held()
            if self._interrupted_at and not self._was_told:
                self._tell_if_it_hangs()
        late = time.monotonic() - _REPLY_PATIENCE
        for request in list(self.requests.values()):
            if request.aborted_since is not None and request.aborted_since < time.monotonic() - 0.2:
                # R's kernel says no idle then.
                self.front.say("status", {"execution_state": "idle"}, request.message)
                request.idle_since = time.monotonic()
                self._settle(request)
            if request.idle_since is None and self._has_lost_idle(request, late):
                self.front.say("status", {"execution_state": "idle"}, request.message)
                request.idle_since = time.monotonic()
                self._settle(request)
            if request.idle_since is not None and request.idle_since < late:
                self._do_without_reply(request)
        self._looks = self.front.loop.call_later(_LOOK_INTERVAL, self._look)

    def _do_without_reply(self, request: Request) -> None:
        """End a request whose reply has not come, long after it was done; a cell's, if the kernel will not send it.

        It will not where an interrupt met it as it was about to. A kernel that works on the next cell may only not
        have come to it.
        """
        if request.replied or request.message.type != "execute_request":
            request.replied = True
            self._settle(request)
        elif not request.probe and self.relay.shell_lock.acquire(blocking=False):
            try:
                request.probe = self.relay.ask_shell()
            finally:
                self.relay.shell_lock.release()

    def _has_lost_idle(self, request: Request, late: float) -> bool:
        """Tell whether a shared kernel has dropped a request's last output: we did not read, and it went on."""
        return (
            request.replied_since is not None
            and request.replied_since < late
            and self._heard_at < late
            and self._unsent is None
            and self.relay.is_shared()
        )

    def interrupt(self) -> None:
        """Interrupt the kernel; in any thread. One that was told not to react is ended."""
        if not self._was_told or self._was_told_of_pause:
            self._interrupted_at = self._interrupted_at or time.monotonic()
            self.environment.interrupt()  # a container that is paused gets it when it goes on
            return
        self.environment.kill()
        name = self.environment.name
        error = KernelError(
            f"The kernel of '{name}' did not react to the interrupts, and was ended.",
            hint=f"Start it again: %docker_restart {name}",
        )
        self.front.loop.call_soon_threadsafe(self.fail, error)

    def _mind_pause(self) -> None:
        """Say it once where a container is paused; wait no longer than the user wants to, and only for cells."""
        error = self.environment.pause_error()
        if self._interrupted_at:
            unsent = {request.message.id for request in self._held}
            self.relay.abandoned |= set(self.requests) - unsent
            self._held.clear()
            self.fail(error)
            return
        requests = list(self.requests.values())
        cells = [r for r in requests if r.message.type == "execute_request"]
        if cells and not self._was_told_of_pause:
            self.front.say("stream", {"name": "stderr", "text": f"{error}\n"}, cells[0].message)
        self._was_told_of_pause = True
        self._held_since = time.monotonic()
        # A completion would keep the next cell, perhaps the one that stops the environment, from running.
        others = [r for r in requests if r not in cells]
        self._held = [r for r in self._held if r not in others]
        self.fail(error, others)

    def _tell_if_it_hangs(self) -> None:
        if time.monotonic() < self._interrupted_at + _INTERRUPT_PATIENCE:
            return
        self._was_told = True
        text = (
            f"'{self.environment.name}' has not reacted to the interrupt for {_INTERRUPT_PATIENCE:.0f} s. "
            "Wait, or interrupt once more to end its kernel: its variables are lost then.\n"
        )
        for request in list(self.requests.values())[:1]:
            self.front.say("stream", {"name": "stderr", "text": text}, request.message)

    def fail(self, error: DockmlError, requests: Sequence[Request] | None = None) -> None:
        """End what is under way, or some of it, with an error."""
        if requests is None:
            self._expect_no_answer()
        told = {
            "ename": type(error).__name__,
            "evalue": error.message,
            "traceback": error._render_traceback_(),
        }
        for request in list(self.requests.values()) if requests is None else requests:
            if not request.replied:
                if request.message.type == "execute_request":
                    self.front.say("error", told, request.message)
                self._answer_failed(request, {"status": "error", **told})
            if request.idle_since is None:
                self.front.say("status", {"execution_state": "idle"}, request.message)
                request.idle_since = time.monotonic()
            self._settle(request)

    def _answer_failed(self, request: Request, told: Mapping[str, Any]) -> None:
        """Answer a request for its kernel, which will not; what waits behind a cell that failed is aborted."""
        content = {"execution_count": request.count, **told}
        aborted = self.failed(request)
        self.front.answer(request.message, content)
        self.front.abort(aborted)
        request.replied = True
        self.replied(request, content)

    def _settle(self, request: Request) -> None:
        if request.is_settled:
            self.requests.pop(request.message.id, None)
            self.settled()

    # --- its replies --------------------------------------------------------------------------

    def _read_replies(self) -> None:
        self._read(self.relay.shell, self._shell_fd, self._reply)

    def _read(
        self, socket: zmq.Socket[bytes], watched: int, handle: Callable[[list[zmq.Frame]], None]
    ) -> None:
        """Handle all that has arrived on one of the sockets that the shell channel's loop reads."""
        if not self._is_open:
            return
        if not self.relay.shell_lock.acquire(blocking=False):
            self.front.loop.remove_reader(watched)  # until `_resume`
            return
        try:
            while True:
                try:
                    frames = receive(socket)
                except zmq.Again:
                    return
                handle(frames)
        finally:
            self.relay.shell_lock.release()

    def _reply(self, frames: list[zmq.Frame]) -> None:
        try:
            message = Message(frames)
            message.verify(self.relay.session)
            request = self.requests.get(message.parent_id)
            if request is None or request.replied:  # it is to one of our own requests
                self._end_without_reply(message.parent_id)
                return
            self._expect_no_answer()
            content: dict[str, Any] = {}
            if message.type != request.message.type.replace("_request", "_reply"):
                raise MalformedMessageError(f"it is a {message.type}")
            if message.type == "execute_reply":
                content = checked_reply(message.content, request.message.content["code"])
                if content is not message.content:
                    message.replace_content(content)
                if request.counts and content.get("execution_count") is not None:
                    count = content["execution_count"]
                    if not is_plausible(count, request.count):
                        raise MalformedMessageError("its execution count is not its own")
                    self.relay.next_count = count + 1
                    if not self.relay.is_ipython:
                        show_count(message, request.count)
            message.prefix = (
                request.message.prefix
            )  # whoever asked, and nobody else, gets the answer
            message.said_by(self.front.session)
        except UNUSABLE as error:
            self.fail(nonsense(error))
            return
        request.replied, request.replied_since = True, time.monotonic()
        if request.message.type == "execute_request":  # it has reacted, the next one need not
            self._interrupted_at, self._was_told = 0.0, False
        status = content.get("status")
        if status == "aborted":
            request.aborted_since = time.monotonic()
        aborted = self.failed(request) if status in ("error", "abort") else []  # the latter: R's
        self.front.reply(message)
        self.front.abort(aborted)
        if content:
            self.replied(request, message.content)
        self._settle(request)

    def _end_without_reply(self, probe: str) -> None:
        """End the cell that would have been replied to by now, if we have asked for one."""
        for request in list(self.requests.values()):
            if request.probe and request.probe == probe and not request.replied:
                self._answer_failed(request, INTERRUPTED)
                self._settle(request)

    # --- its questions ------------------------------------------------------------------------

    def _read_questions(self) -> None:
        self._read(self.relay.stdin, self._stdin_fd, self._ask)

    def _ask(self, frames: list[zmq.Frame]) -> None:
        """Pass an input request on to the front end, and wait for what it answers."""
        try:
            message = Message(frames)
            message.verify(self.relay.session)
            if message.type != "input_request":
                raise MalformedMessageError(f"it is a {message.type}")
            message.said_by(self.front.session)
        except UNUSABLE as error:
            self.fail(nonsense(error))
            return
        if (request := self.requests.get(message.parent_id)) is None:
            return
        message.prefix = request.message.prefix
        while _has_arrived(self.front.stdin):
            self.front.stdin.recv_multipart()  # answers to questions that were interrupted
        send(self.front.stdin, message.said_by(self.front.session))
        self._asks = True
        self.front.loop.add_reader(self.front.stdin.FD, self._read_answer)
        self._read_answer()

    def _expect_no_answer(self) -> None:
        """Leave the front end's answers to the notebook's own kernel, or to who asks next."""
        if self._asks:
            self._asks = False
            self.front.loop.remove_reader(self.front.stdin.FD)

    def _read_answer(self) -> None:
        if not _has_arrived(self.front.stdin):
            return
        frames = receive(self.front.stdin)
        try:
            message = Message(frames)
            message.verify(self.front.session)
        except MalformedMessageError as error:
            log.warning("an input reply that cannot be used: %s", error)
            return
        self._expect_no_answer()
        with self.relay.shell_lock:
            send(self.relay.stdin, message.signed_by(self.relay.session))
        self._read_questions()

    # --- its output, in the IOPub thread ------------------------------------------------------

    def _read_output(self) -> None:
        if not self._is_open:
            return
        if not self.relay.iopub_lock.acquire(blocking=False):
            self.front.iopub_loop.remove_reader(self._iopub_fd)  # until `_resume`
            return
        try:
            for _ in range(_BATCH):
                if self._unsent is not None:
                    return
                try:
                    frames = receive(self.relay.iopub)
                except zmq.Again:
                    return
                self._pass_on(frames)
        finally:
            self.relay.iopub_lock.release()
        self.front.iopub_loop.call_soon(self._read_output)

    def _pass_on(self, frames: list[zmq.Frame]) -> None:
        self._heard_at = time.monotonic()
        try:
            message = Message(frames)
            message.verify(self.relay.session)
            self.relay.adopt(message)
            if self.relay.mind_abandoned(message):
                self.front.loop.call_soon_threadsafe(self._send_held)
            request = self.requests.get(message.parent_id)
            if request is None and message.type in NOT_PASSED_ON:
                return
            if not self.relay.may_publish(message):
                log.debug("a %s that is for no cell of this kernel", message.type)
                return
            if request is not None and not self.relay.is_ipython:
                show_count(message, request.count)
            is_idle = message.type == "status" and message.content.get("execution_state") == "idle"
            if message.type in ALL_COMM_TYPES and not self.note(self.environment, message):
                return
            frames_for_front = message.said_by(self.front.session)
        except UNUSABLE as error:
            self.front.loop.call_soon_threadsafe(self.fail, nonsense(error))
            return
        output = Output(frames=frames_for_front, ends=request if is_idle else None)
        if self.front.publish(output.frames):
            self._published(output)
        else:
            self._unsent = output
            self.front.iopub_loop.remove_reader(self._iopub_fd)
            self.front.iopub_loop.call_later(_ROOM_INTERVAL, self._publish_unsent, time.monotonic())

    def _publish_unsent(self, since: float) -> None:
        """Try again, and go on reading when it has gone: so a slow reader slows down the kernel."""
        output = self._unsent
        if output is None:
            return
        has_waited = time.monotonic() > since + _ROOM_PATIENCE
        if not self.front.publish(output.frames, has_waited=has_waited):
            self.front.iopub_loop.call_later(_ROOM_INTERVAL, self._publish_unsent, since)
            return
        self._unsent = None
        self._published(output)
        self._resume_output()

    def _published(self, output: Output) -> None:
        if output.ends is not None:
            output.ends.idle_since = time.monotonic()
            self._settle(output.ends)


class ShellChannel:
    """Stands before a notebook's own kernel and gives each message to the kernel it belongs to.

    Parameters
    ----------
    kernel : ipykernel.kernelbase.Kernel
        The notebook's own.
    target : callable
        Says which environment a message belongs to, None for the notebook's own kernel.
    note : callable
        See `Forwarder`.
    """

    def __init__(
        self,
        kernel: Any,
        target: Callable[[Message], Environment | None],
        note: Callable[[Environment, Message], bool],
    ) -> None:
        self._kernel = kernel
        self._target = target
        self._note = note
        self._front = FrontEnd(kernel)
        self._forwarders: dict[Environment, Forwarder] = {}
        self._waiting: deque[Message] = deque()
        self._local: set[str] = set()
        self._is_taking = False
        self._to_abort: dict[str, list[Message]] = {}
        self._pass_to_kernel: Callable[[Any], Any] = _drop
        self._handing: set[asyncio.Future[Any]] = set()
        self._typed: deque[tuple[int, str]] = deque()
        self._is_unwritten = False

    # --- taking over and giving back ----------------------------------------------------------

    def install(self) -> None:
        """Stand before the kernel. Undone by `uninstall`."""
        original = self._front.stream._recv_callback  # noqa: SLF001  # only a setter is public
        self._original = original
        dispatch = self._kernel.dispatch_shell

        async def dispatch_shell(frames: Any, *args: Any, **more: Any) -> None:
            if len(frames) == 1 and bytes(frames[0]) == _MARKER:
                self._end_of_queue()
                return
            try:
                await dispatch(frames, *args, **more)
            finally:
                self._front.loop.call_soon_threadsafe(self._after_own, _id_of(frames))

        self._kernel.dispatch_shell = dispatch_shell
        # ipykernel 6 has bound its own dispatch_shell into the callback, 7 looks it up.
        is_bound = isinstance(original, partial) and dispatch in original.args
        self._pass_to_kernel = partial(original.func, dispatch_shell) if is_bound else original
        self._front.run_in(self._front.shell_thread, self._take_over)

    def _take_over(self) -> None:
        """Let what the kernel has been given already come before all that arrives from now on."""
        self._front.stream.on_recv(self._receive, copy=False)
        self._local.add(_MARKER_ID)
        if self._front.shell_thread is threading.main_thread():
            self._hand_over([zmq.Frame(_MARKER)])
        else:
            manager = self._front.shell_thread.manager  # type: ignore[attr-defined]
            manager.get_shell_channel_to_subshell_socket(None).send(_MARKER)

    def _end_of_queue(self) -> None:
        if self._kernel._aborting:  # noqa: SLF001
            self._abort_behind(_MARKER_ID)
        self._front.loop.call_soon_threadsafe(self._after_own, _MARKER_ID)

    def uninstall(self) -> None:
        """Give everything back as it was."""
        self._front.run_in(self._front.shell_thread, self._give_back)
        del self._kernel.dispatch_shell

    def _give_back(self) -> None:
        self.store_typed()
        self._front.stream.on_recv(self._original, copy=False)
        while self._waiting:
            self._give(self._waiting.popleft())

    # --- environments -------------------------------------------------------------------------

    def open(self, environment: Environment, relay: Relay) -> None:
        """Pass on what a kernel says, from now on."""
        forwarder = Forwarder(
            front=self._front,
            environment=environment,
            relay=relay,
            note=self._note,
            replied=self._after_reply,
            failed=self._after_failure,
            settled=self._settled,
        )
        self._forwarders[environment] = forwarder
        forwarder.open()

    def close(self, environment: Environment) -> None:
        """Pass on no more; called before the relay is closed."""
        forwarder = self._forwarders.pop(environment, None)
        if forwarder is None:
            return
        forwarder.close(
            KernelError(
                f"'{environment.name}' was stopped while it worked.",
                hint=f"Start it again: %docker_env {environment.name}",
            )
        )

    def interrupt(self) -> None:
        """Interrupt the kernel that works now, if one does."""
        for forwarder in list(self._forwarders.values()):
            if forwarder.requests:
                forwarder.interrupt()

    # --- messages of the front end, on the shell channel's loop -------------------------------

    def _receive(self, frames: list[zmq.Frame]) -> None:
        try:
            message = Message(frames)
            message.verify(self._front.session, up_to=1 << 62)
        except MalformedMessageError:
            self._hand_over(frames)  # ipykernel says what is wrong with it
            return
        if message.header.get("subshell_id") is not None:
            if not self._is_for_another(message):
                self._hand_over(frames)
                return
            message.leave_subshell()
        self._waiting.append(message)
        self._advance()

    def _is_for_another(self, message: Message) -> bool:
        """Tell whether a comm message is not for the notebook's own kernel, whatever its subshell."""
        if message.type not in COMM_TYPES and message.type != "comm_open":
            return False
        try:
            return self._target(message) is not None
        except RefusedError:
            return True
        except UNUSABLE:
            return False

    def _advance(self) -> None:
        """Give away what need not wait."""
        while self._waiting and not self._is_taking:
            message = self._waiting[0]
            if message.type in UNDECIDED_TYPES and self._local:
                return
            try:
                environment = self._target(message)
            except RefusedError:
                self._waiting.popleft()
                self._front.close_comm(message)
                continue
            except UNUSABLE:
                environment = None  # ipykernel says what is wrong with it
            forwarder = self._forwarders.get(environment) if environment else None
            forwarders = list(self._forwarders.values())  # others open and close them
            others = [f for f in forwarders if f is not forwarder and f.requests]
            if others or (forwarder is not None and self._local):
                return
            self._waiting.popleft()
            if forwarder is None:
                self._give(message)
            else:
                if message.type in OPEN_AND_CLOSE:
                    self._note(forwarder.environment, message)
                forwarder.send(message, shown_count=self._kernel.shell.execution_count)

    def _give(self, message: Message) -> None:
        self._local.add(message.id)
        self._hand_over(message.frames)

    def _hand_over(self, frames: Any) -> None:
        self.store_typed()
        result = self._pass_to_kernel(frames)
        if inspect.isawaitable(result):
            future = asyncio.ensure_future(result, loop=self._front.loop)
            self._handing.add(future)
            future.add_done_callback(self._handing.discard)

    def _after_own(self, msg_id: str) -> None:
        """Go on when the notebook's own kernel has dealt with a message."""
        self._local.discard(msg_id)
        self._front.abort(self._to_abort.pop(msg_id, []))
        if self._is_unwritten:
            self._is_unwritten = False
            self._front.loop.call_later(_HISTORY_INTERVAL, self._write_history)
        self._advance()

    def own_cell_failed(self) -> None:
        """Note what waits behind the cell that has just failed in the notebook's own kernel."""
        parent = self._kernel.get_parent("shell")
        if parent["header"].get("subshell_id") is not None:  # what waits there, ipykernel aborts
            return
        if _stops_on_error(parent.get("content", {})):
            self._abort_behind(parent["header"]["msg_id"])

    def _abort_behind(self, msg_id: str) -> None:
        def collect() -> None:
            self._to_abort[msg_id] = self._take_waiting_cells()

        self._front.run_in(self._front.shell_thread, collect)

    def _after_reply(self, request: Request, content: Mapping[str, Any]) -> None:
        if request.counts and content.get("status") != "aborted":
            count = content.get("execution_count", request.count)
            shell = self._kernel.shell
            if count < shell.execution_count:
                return  # IPython counts no empty cell
            shell.execution_count = count + 1
            if not self._typed:
                self._front.loop.call_later(_HISTORY_INTERVAL, self.store_typed)
            self._typed.append((count, request.message.content["code"]))

    @contextlib.contextmanager
    def writing_later(self) -> Iterator[None]:
        """Let what is stored in the notebook's history meanwhile be written to the disk after the cell that runs now.

        IPython's thread would do it at once, and has the lock that the next cell needs until it is on the disk.
        """
        history = self._kernel.shell.history_manager
        size = history.db_cache_size
        history.db_cache_size = max(size, _UNWRITTEN)
        try:
            yield
        finally:
            history.db_cache_size = size
            self._is_unwritten = True

    def _write_history(self) -> None:
        flag = self._kernel.shell.history_manager.save_flag
        if flag is not None:
            flag.set()

    def store_typed(self) -> None:
        """Store the cells that ran elsewhere in the notebook's history, before anybody here looks; in any thread."""
        history = self._kernel.shell.history_manager
        while self._typed:
            with contextlib.suppress(IndexError):  # another thread was faster
                cell = self._typed.popleft()
                if history is not None:
                    history.store_inputs(*cell)

    def _after_failure(self, request: Request) -> list[Message]:
        if request.message.type == "execute_request" and _stops_on_error(request.message.content):
            return self._take_waiting_cells()
        return []

    def _take_waiting_cells(self) -> list[Message]:
        """Take the cells out of what waits, those included that the front end has sent by now."""
        self._is_taking = True
        try:
            self._front.stream.flush()
        finally:
            self._is_taking = False
        cells = [message for message in self._waiting if message.type == "execute_request"]
        self._waiting = deque(m for m in self._waiting if m.type != "execute_request")
        return cells

    def _settled(self) -> None:
        if self._waiting:
            self._front.loop.call_soon_threadsafe(self._advance)


def _stops_on_error(content: Mapping[str, Any]) -> bool:
    """Tell whether the cells behind one that fails are to be aborted."""
    return bool(content.get("stop_on_error", True) and not content.get("silent", False))


def _drop(frames: Any) -> None:
    pass


def _has_arrived(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def _id_of(frames: Any) -> str:
    """Return a message's id, "" for frames that are none."""
    try:
        return Message(frames).id
    except (MalformedMessageError, json.JSONDecodeError):
        return ""
