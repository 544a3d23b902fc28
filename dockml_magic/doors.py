"""Where a kernel in a container gets memory from: a socket of ours in its runtime folder, and who serves it.

The container is the less trusted side. What it says here counts only with a token that was given to its kernel
for one request, and says nothing but how much memory it needs, that it is ready, or which value of an iterator
it wants. One thread serves all doors and waits for nobody: who connects and says nothing is sent away.

A conversation is lines of JSON, one answer to each; a descriptor comes along with an answer (SCM_RIGHTS).
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from os import close
from typing import Any

from dockml_magic.folders import RuntimeFolder
from dockml_magic.segments import Lease, NoRoomError, Pool

log = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds in which somebody who connects should say what for."""

_MOST_VISITORS = 16
"""Connections at once to one door."""

_MOST_BAD = 200
"""Connections with no good reason after which a door is closed for good."""

_LONGEST_LINE = 4096
_TICK = 1.0
"""Seconds between two looks at what has waited for too long, while there is anything to look at."""

Told = tuple[Mapping[str, Any], "int | None"]
"""What is said to a kernel, and the descriptor that comes with it, which is closed then."""


class ClosedError(Exception):
    """What a kernel wants is not to be had any more."""


class _OneTicket:
    """What a token stands for: one request, which begins once, and can be withdrawn until it counts as done.

    Parameters
    ----------
    make_room : callable
        Lets go of memory that counts for the container, for a kernel that says it is short of it; called once.
    """

    def __init__(self, make_room: Callable[[], object] = lambda: None) -> None:
        self._make_room = make_room
        self._has_made_room = False
        self._state = "waits"
        self._lock = threading.Lock()

    def begin(self) -> Told:
        """Answer the line with the token."""
        with self._lock:
            self._go("waits", "begun")
            return self._on_begin()

    def _on_begin(self) -> Told:
        return {"go": True}, None

    def hear(self, said: Mapping[str, Any]) -> Told:
        """Answer another line."""
        with self._lock:
            if said.get("short") is not True:
                return self._on_line(said)
            if self._state != "begun":
                raise ClosedError("it was stopped, or is done")
            if not self._has_made_room:
                self._has_made_room = True
                self._make_room()
            return {}, None

    def _on_line(self, said: Mapping[str, Any]) -> Told:
        raise NotImplementedError

    def _go(self, before: str, after: str) -> None:
        if self._state != before:
            raise ClosedError("it was stopped, or is done")
        self._state = after

    @property
    def is_over(self) -> bool:
        return self._state in ("over", "done")

    def withdraw(self) -> bool:
        """Let no more come of it; return whether the kernel works on it. What is done stays so."""
        with self._lock:
            before, self._state = self._state, "done" if self._state == "done" else "over"
            return before == "begun"


class TakeTicket(_OneTicket):
    """Lets a kernel have memory to write to, once.

    Parameters
    ----------
    make : callable
        Makes so many bytes of it.
    make_room : callable
        As above.

    Attributes
    ----------
    lease : Lease or None
        What it got.
    problem : NoRoomError or None
        Why it got none.
    """

    def __init__(
        self, make: Callable[[int], Lease], make_room: Callable[[], object] = lambda: None
    ) -> None:
        super().__init__(make_room)
        self._make = make
        self.lease: Lease | None = None
        self.problem: NoRoomError | None = None

    def _on_line(self, said: Mapping[str, Any]) -> Told:
        """Take the size and make a segment."""
        size = said.get("size")
        if self._state != "begun" or self.lease is not None or self.problem is not None:
            raise ClosedError("it was stopped, or is done")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < 1 << 62:
            raise ClosedError("that is no size")
        try:
            self.lease = self._make(size)
            segment = self.lease.segment
            return {"fresh": segment.touched < size}, segment.share(writable=True)
        except NoRoomError as error:
            self.problem = error
            return {"error": "room"}, None


class PutTicket(_OneTicket):
    """Lets a kernel have what is put there, and tells it to bind the names when it is ready."""

    def __init__(self, lease: Lease | None, make_room: Callable[[], object] = lambda: None) -> None:
        super().__init__(make_room)
        self._lease = lease

    def _on_begin(self) -> Told:
        if self._lease is None:
            return {"go": True}, None
        return {"go": True, "size": self._lease.size}, self._lease.segment.share(writable=False)

    def _on_line(self, said: Mapping[str, Any]) -> Told:  # noqa: ARG002
        """Decide that it is done."""
        self._go("begun", "done")
        return {"bind": True}, None

    @property
    def is_done(self) -> bool:
        """The kernel was told to bind them."""
        return self._state == "done"


class StreamTicket:
    """Lets a kernel have the values of an iterator, one after the other.

    Parameters
    ----------
    fetch : callable
        Gets the number of the value that is wanted, from 1 on; may take long. Called in a thread.
    drop : callable
        Called when no more is wanted.
    """

    def __init__(self, fetch: Callable[[int], Told], drop: Callable[[], None]) -> None:
        self._fetch = fetch
        self._drop = drop
        self._working = threading.Lock()
        self.is_over = False

    def serve(self, said: Mapping[str, Any]) -> Told:
        """Answer; in a thread of its own."""
        n = said.get("n")
        if self.is_over:
            raise ClosedError("it is at its end")
        if said.get("drop") is True:
            self.is_over = True
            self._drop()
            return {}, None
        if not isinstance(n, int) or isinstance(n, bool) or not 0 < n < 1 << 62:
            raise ClosedError("that is no number")
        if not self._working.acquire(blocking=False):
            return {"busy": True}, None
        try:
            return self._fetch(n)
        finally:
            self._working.release()


class Door:
    """The socket of one container.

    Parameters
    ----------
    keeper : Doorkeeper
    runtime : RuntimeFolder

    Attributes
    ----------
    name : str
        Of the socket in the folder that is shared with the container.
    is_open : bool

    Raises
    ------
    OSError
        If it cannot be made.
    """

    def __init__(self, keeper: Doorkeeper, runtime: RuntimeFolder) -> None:
        self.name = f"values-{secrets.token_hex(4)}"
        self._keeper = keeper
        self._runtime = runtime
        self.listener = runtime.listen(self.name)
        self.listener.settimeout(0.0)
        self.is_open = True
        self.tickets: dict[str, _OneTicket | StreamTicket] = {}
        self.visitors: set[_Visitor] = set()
        self.bad = 0

    def admit(self, ticket: _OneTicket | StreamTicket) -> str:
        """Return a token for a ticket."""
        token = secrets.token_hex(16)
        self.tickets[token] = ticket
        return token

    def dismiss(self, token: str) -> None:
        """Let a token mean nothing any more."""
        ticket = self.tickets.pop(token, None)
        if isinstance(ticket, _OneTicket):
            ticket.withdraw()

    def close(self) -> None:
        """Close it; being closed is success."""
        if self.is_open:
            self.is_open = False
            self._runtime.unlist(self.name)
            self._keeper.shut(self)


class _Visitor:
    """A connection to a door."""

    def __init__(self, door: Door, connection: socket.socket) -> None:
        self.door = door
        self.connection = connection
        self.deadline = time.monotonic() + _PATIENCE
        self.ticket: _OneTicket | StreamTicket | None = None
        self.buffer = b""

    def is_late(self) -> bool:
        return time.monotonic() > self.deadline if self.ticket is None else self.ticket.is_over

    def tell(self, told: Told) -> None:
        content, descriptor = told
        line = json.dumps(content).encode() + b"\n"
        try:
            if descriptor is None:
                self.connection.sendall(line)
            else:
                socket.send_fds(self.connection, [line], [descriptor])
        finally:
            if descriptor is not None:
                close(descriptor)


class Doorkeeper:
    """Serves all doors of this process, and looks after the memory that was handed out there.

    Attributes
    ----------
    pool : Pool
    """

    def __init__(self) -> None:
        self.pool = Pool()
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._todo: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._waking, self._woken = socket.socketpair()
        for end in (self._waking, self._woken):
            end.settimeout(0.0)
        self._selector.register(self._woken, selectors.EVENT_READ, self._wake_up)
        self._visitors: set[_Visitor] = set()
        self._is_closed = False

    def close(self) -> None:
        """Let go of everything, and end the thread."""
        self._is_closed = True
        self._do(lambda: None)
        assert self._thread is not None
        self._thread.join()
        self._wake_up()  # for what it has not come to
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._waking.close()
        self._selector.close()
        self.pool.close()

    def open(self, runtime: RuntimeFolder) -> Door:
        """Return a door for a container, which is served from now on.

        Raises
        ------
        OSError
        """
        door = Door(self, runtime)
        self._do(lambda: self._register(door))
        return door

    def lease(self, size: int, parties: frozenset[str]) -> Lease:
        """Return memory, as `Pool.lease` does, and free it when nobody needs it any more."""
        lease = self.pool.lease(size, parties)
        self._do(lambda: None)
        return lease

    def shut(self, door: Door) -> None:
        """Serve a door no more."""
        self._do(lambda: self._unregister(door))

    def _do(self, work: Callable[[], None]) -> None:
        """Have something done in the thread."""
        self._todo.append(work)
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._serve, name="dockml-doors", daemon=True
                )
                self._thread.start()
        with contextlib.suppress(BlockingIOError):  # it is awake
            self._waking.send(b"!")

    def _wake_up(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        while self._todo:
            self._todo.popleft()()

    def _serve(self) -> None:
        has_memory = True
        while not self._is_closed:
            timeout = _TICK if has_memory or self._visitors else None
            for key, _ in self._selector.select(timeout):
                try:
                    key.data()
                except Exception:
                    log.exception("a door")
            for visitor in [v for v in self._visitors if v.is_late()]:
                self._bad(visitor.door, visitor.ticket is None)
                self._send_away(visitor)
            has_memory = self.pool.sweep()

    def _register(self, door: Door) -> None:
        if door.is_open:
            self._selector.register(door.listener, selectors.EVENT_READ, lambda: self._let_in(door))

    def _unregister(self, door: Door) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(door.listener)
        door.listener.close()
        for visitor in list(door.visitors):
            self._send_away(visitor)

    def _let_in(self, door: Door) -> None:
        try:
            connection, _ = door.listener.accept()
        except OSError:
            return
        if len(door.visitors) >= _MOST_VISITORS:
            connection.close()
            self._bad(door)
            return
        connection.settimeout(0.0)
        visitor = _Visitor(door, connection)
        door.visitors.add(visitor)
        self._visitors.add(visitor)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._hear(visitor))

    def _bad(self, door: Door, is_bad: bool = True) -> None:  # noqa: FBT001, FBT002
        door.bad += is_bad
        if door.bad >= _MOST_BAD:
            log.warning("the container of %s keeps knocking: its door is closed", door.name)
            door.close()

    def _send_away(self, visitor: _Visitor, *, close_it: bool = True) -> None:
        visitor.door.visitors.discard(visitor)
        self._visitors.discard(visitor)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(visitor.connection)
        if close_it:
            visitor.connection.close()

    def _hear(self, visitor: _Visitor) -> None:
        try:
            piece = visitor.connection.recv(_LONGEST_LINE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        visitor.buffer += piece
        if not piece or len(visitor.buffer) > _LONGEST_LINE:
            self._bad(visitor.door, visitor.ticket is None)
            self._send_away(visitor)
            return
        line, newline, rest = visitor.buffer.partition(b"\n")
        if not newline:
            return
        visitor.buffer = rest
        try:
            self._answer(visitor, _parse(line))
        except ClosedError as error:
            with contextlib.suppress(OSError):
                visitor.tell(({"closed": str(error)}, None))
            self._send_away(visitor)
        except OSError:
            self._send_away(visitor)

    def _answer(self, visitor: _Visitor, said: Mapping[str, Any]) -> None:
        if isinstance(visitor.ticket, _OneTicket):
            visitor.tell(visitor.ticket.hear(said))
            return
        token = said.get("token")
        ticket = visitor.door.tickets.get(token) if isinstance(token, str) else None
        if ticket is None:
            self._bad(visitor.door)
            raise ClosedError("it was stopped, or is done")
        visitor.door.bad = 0
        visitor.ticket = ticket
        if isinstance(ticket, StreamTicket):
            self._send_away(visitor, close_it=False)
            threading.Thread(
                target=_serve_stream,
                args=(visitor, ticket, said),
                name="dockml-stream",
                daemon=True,
            ).start()
        else:
            visitor.tell(ticket.begin())


def _serve_stream(visitor: _Visitor, ticket: StreamTicket, said: Mapping[str, Any]) -> None:
    with visitor.connection, contextlib.suppress(OSError):
        visitor.connection.settimeout(_PATIENCE)
        try:
            told = ticket.serve(said)
        except ClosedError as error:
            told = {"closed": str(error)}, None
        visitor.tell(told)
    if ticket.is_over:
        visitor.door.dismiss(said["token"])


def _parse(line: bytes) -> Mapping[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ClosedError("that is no line of ours")
    return said


KEEPER = Doorkeeper()
"""This process's. Its thread starts with the first door."""
