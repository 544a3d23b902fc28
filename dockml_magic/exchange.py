"""Values on their way from one kernel to another: what is asked of either side, and how the bytes travel.

`hand_over` asks the source to pack variables (`take`), and the target to make values of that and to bind them
(`put`). A side is a kernel in a container, or the notebook's own. Small payloads travel in the requests
themselves. Others are written to shared memory by the source, and mapped by the target, where they stay: this
process passes descriptors on (`doors`, `segments`) and maps nothing. Where there is no such memory, as with an
engine on another machine, payloads travel piece by piece in requests and their replies.

What runs in the kernels is `resources/values/agent.py`. A container is the less trusted side: what its agent says is
parsed strictly, and nothing it says makes this process allocate more than was asked for and there is.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib.resources
import io
import keyword
import logging
import os
import secrets
import threading
import zipfile
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

from dockml_magic.container import KernelContainer
from dockml_magic.doors import KEEPER, ClosedError, Door, PutTicket, StreamTicket, TakeTicket, Told
from dockml_magic.errors import (
    ConfigError,
    DockmlError,
    ExchangeError,
    KernelError,
    NameMissingError,
    NoMemoryError,
    ValueRefusedError,
)
from dockml_magic.relay import Relay
from dockml_magic.resources.values import Damaged, Packed, Refused, agent, pack, unpack
from dockml_magic.segments import Lease, NoRoomError

log = logging.getLogger(__name__)

INLINE = 64 << 10
"""Bytes up to which a payload travels in the request itself."""

PIECE = 4 << 20
"""Bytes of a piece where there is no shared memory."""

_FILE = "values.zip"
_PACKAGE = "dockml_values"
_MOST_NOTES = 1000
_LONGEST_TEXT = 2000

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class HandOver:
    """What became of a hand-over.

    Attributes
    ----------
    notes : tuple of str
        What is not as it was on the other side, a line each.
    bytes : int
        What all values took together; 0 for iterators.
    shared : bool
        They are in memory that both sides have.
    types : mapping of str to str
        The type of each value over there, by its name there: "ndarray (3, 4)".
    """

    notes: tuple[str, ...]
    bytes: int
    shared: bool
    types: Mapping[str, str]


def hand_over(
    source: Side, target: Side, names: Mapping[str, str], *, copy: bool = False
) -> HandOver:
    """Hand variables of one kernel to another: all of them or, where anything goes wrong, none.

    Parameters
    ----------
    source, target : OwnKernel or ContainerSide
        `Environment.side` is that of an environment.
    names : mapping of str to str
        The name over there of each variable.
    copy : bool
        The target gets arrays that it may change; else it reads the shared memory itself.

    Raises
    ------
    ExchangeError
        If one is missing, cannot be handed over, or there is no memory for it.
    KernelError
        If a kernel dies, or cannot take part.
    KeyboardInterrupt
        The names are as they were.
    """
    (done,) = hand_several_over([(source, target, names)], copy=copy)
    return done


def hand_several_over(
    ways: Sequence[tuple[Side, Side, Mapping[str, str]]], *, copy: bool = False
) -> list[HandOver]:
    """Do what `hand_over` does for several pairs of sides: all of it or, where anything goes wrong, nothing.

    What arrives waits until all of it has arrived. To bind names then cannot fail, except where a kernel dies.
    """
    done = []
    with contextlib.ExitStack() as leases, contextlib.ExitStack() as undo:
        for _, target, names in ways:
            _check_names(names, target)
        packed = []
        for source, target, names in ways:
            taken = source.take(list(names), frozenset({source.party, target.party}))
            leases.callback(taken.close)
            packed.append(taken)
            if taken.streams and source.party == target.party:
                raise ExchangeError(
                    f"'{next(iter(taken.streams))}' is an iterator, and in {source.title} already.",
                    hint="Give it another name in a cell there.",
                )
        waiting: dict[Side, list[str]] = {}
        are_more = len({id(target) for _, target, _ in ways}) > 1
        for n, ((source, target, names), taken) in enumerate(zip(ways, packed, strict=True), 1):
            if n < len(ways) or are_more:
                token = secrets.token_hex(16)
                undo.callback(target.drop_held, token)
                types, notes = target.put(taken, names, copy=copy, hold=token)
                waiting.setdefault(target, []).append(token)
            else:
                types, notes = target.put(taken, names, copy=copy, held=waiting.pop(target, ()))
            is_shared = isinstance(taken.payload, Lease) and target.shares and source.shares
            said = dict.fromkeys([*taken.notes, *notes])
            done.append(
                HandOver(
                    notes=tuple(said),
                    bytes=taken.size if len(taken.streams) < len(names) else 0,
                    shared=is_shared and not copy,
                    types=types,
                )
            )
        undo.pop_all()
        _bind_all(waiting)
    return done


def _bind_all(waiting: Mapping[Side, Sequence[str]]) -> None:
    """Bind what waits for it, whatever happens meanwhile: it counts as done."""
    problem: BaseException | None = None
    for target, tokens in waiting.items():
        for _ in range(2):
            try:
                target.bind(tokens)
                break
            except KeyboardInterrupt as error:
                problem = error
            except DockmlError as error:
                problem = problem or error
                break
    if problem is not None:
        raise problem


def _check_names(names: Mapping[str, str], target: Side) -> None:
    for name in {*names, *names.values()}:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ConfigError(f"'{name}' is no name of a variable.")
    if not names:
        raise ConfigError("No variable was named.")
    if len(set(names.values())) < len(names):
        raise ConfigError("Two variables would get the same name over there.")
    for name in names.values():
        if target.is_python_2 and not name.isascii():
            raise ConfigError(f"'{name}' cannot be a name in Python 2, which {target.title} has.")


# --- what travels -----------------------------------------------------------------------------


@dataclass
class Taken:
    """What a side has packed: a payload, and iterators that stay there.

    Attributes
    ----------
    payload : bytes or Lease
        Itself, or the memory it is in.
    size : int
    notes : sequence of str
    streams : dict
        Iterators by name.
    """

    payload: bytes | Lease
    size: int
    notes: Sequence[str]
    streams: dict[str, Stream] = field(default_factory=dict)

    def close(self) -> None:
        """Let go of the memory; those who have it by now keep it."""
        if isinstance(self.payload, Lease):
            self.payload.close()


class Stream(Protocol):
    """An iterator of a side."""

    def fetch(self, n: int) -> Taken | None:
        """Return its n-th value, None at the end. The last one may be fetched again.

        Raises
        ------
        DockmlError
            If there is none.
        """

    def drop(self) -> None:
        """Forget it."""


class Side(Protocol):
    """A kernel that hands values over, and takes them.

    Attributes
    ----------
    title : str
        How it is called in a message.
    party : str
        Who gets to see its memory.
    """

    title: str
    party: str

    @property
    def shares(self) -> bool:
        """It can have shared memory."""

    @property
    def is_python_2(self) -> bool:
        """Its Python is 2.7."""

    def take(self, names: list[str], parties: frozenset[str]) -> Taken:
        """Pack variables."""

    def put(
        self,
        taken: Taken,
        names: Mapping[str, str],
        *,
        copy: bool,
        hold: str | None = None,
        held: Sequence[str] = (),
    ) -> tuple[dict[str, str], list[str]]:
        """Make values of a payload and bind them; return their types and what is to be said.

        Parameters
        ----------
        taken : Taken
        names : mapping of str to str
        copy : bool
        hold : str, optional
            A token by which they wait for `bind` instead.
        held : sequence of str
            Tokens of what waits there and is bound with them, at once.
        """

    def bind(self, held: Sequence[str]) -> None:
        """Bind what waits by these tokens; to do it again does no harm."""

    def drop_held(self, token: str) -> None:
        """Forget what waits by a token, if anything does."""


# --- the notebook's own kernel ----------------------------------------------------------------


class OwnKernel:
    """A side that is this process: the notebook's own kernel, or a script.

    Parameters
    ----------
    namespace : mutable mapping
        Its variables.
    """

    title = "the notebook's own kernel"
    party = "own"
    shares = True
    is_python_2 = False

    def __init__(self, namespace: MutableMapping[str, Any]) -> None:
        self._namespace = namespace
        self._held: dict[str, dict[str, Any]] = {}

    def take(self, names: list[str], parties: frozenset[str]) -> Taken:
        """Pack variables."""
        missing = [name for name in names if name not in self._namespace]
        if missing:
            raise NameMissingError(missing, self.title)
        found = {name: self._namespace[name] for name in names}
        streams: dict[str, Stream] = {
            name: _OwnStream(agent.Source(value, name), name, parties)
            for name, value in found.items()
            if agent.is_stream(value)
        }
        try:
            packed = pack([(name, found[name]) for name in names if name not in streams])
        except Refused as error:
            raise ValueRefusedError(error.message, hint=error.hint) from error
        taken = _carry(packed, parties)
        taken.streams = streams
        return taken

    def put(
        self,
        taken: Taken,
        names: Mapping[str, str],
        *,
        copy: bool,
        hold: str | None = None,
        held: Sequence[str] = (),
    ) -> tuple[dict[str, str], list[str]]:
        """Make values of a payload, and bind them or have them wait."""
        try:
            is_small = not isinstance(taken.payload, Lease)
            unpacked = unpack(_payload_of(taken), copy=copy or is_small)
        except Damaged as error:
            raise _damaged(error) from error
        values = {names[name]: value for name, value in unpacked.values.items() if name in names}
        for name, stream in taken.streams.items():
            values[names[name]] = agent.Stream(_NearSource(stream), name)
        if len(values) < len(names):
            raise _damaged("a value is missing")
        token = hold or secrets.token_hex(16)
        self._held[token] = values
        if hold is None:
            self.bind([*held, token])
        types = {name: agent.type_name(value) for name, value in values.items()}
        return types, [*unpacked.notes, *[agent.READ_ONLY] * unpacked.views]

    def bind(self, held: Sequence[str]) -> None:
        """Bind what waits by these tokens; to do it again does no harm."""
        values: dict[str, Any] = {}
        for token in held:
            values |= self._held.get(token, {})
        self._namespace.update(values)
        for token in held:
            self.drop_held(token)

    def drop_held(self, token: str) -> None:
        """Forget what waits by a token, if anything does."""
        self._held.pop(token, None)


def _carry(packed: Packed, parties: frozenset[str]) -> Taken:
    """Return what this process has packed, in shared memory where it is large."""
    payload: bytes | Lease
    if packed.total <= INLINE:
        payload = packed.to_bytes()
    else:
        payload = _lease(packed.total, parties)
        try:
            agent.check_room(
                packed.total - payload.segment.touched, lambda: _drop_idle(OwnKernel.party)
            )
        except agent.NoRoom as error:
            payload.close()
            free, limit = error.said["free"], error.said["limit"]
            raise _no_memory(OwnKernel.title, packed.total, free, limit, "") from None
        try:
            descriptor = payload.segment.share(writable=True)
            try:
                agent.write(packed, descriptor, payload.segment.touched < packed.total)
            finally:
                os.close(descriptor)
        except BaseException:
            payload.close()
            raise
    return Taken(payload, packed.total, list(packed.notes))


def _payload_of(taken: Taken) -> Any:
    if not isinstance(taken.payload, Lease):
        return taken.payload
    return agent.read(taken.payload.segment.share(writable=False), taken.size)


class _OwnStream:
    """An iterator of this process. It goes on in the thread of whoever asks for a value."""

    def __init__(self, source: Any, name: str, parties: frozenset[str]) -> None:
        self._source = source
        self._name = name
        self._parties = parties

    def fetch(self, n: int) -> Taken | None:
        try:
            return _carry(self._source.pack(n), self._parties)
        except StopIteration:
            return None
        except agent.Raised as error:
            raise ExchangeError(f"the iterator '{self._name}' raised {error}") from error
        except Refused as error:
            raise ValueRefusedError(error.message, hint=error.hint) from error

    def drop(self) -> None:
        self._source = agent.Source(iter(()), self._name)


class _NearSource:
    """Gives an iterator's values to this process."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def fetch(self, n: int) -> tuple[Any, Mapping[str, Any]]:
        try:
            taken = self._stream.fetch(n)
        except DockmlError as error:
            return None, {"problem": str(error)}
        if taken is None:
            return None, {"end": True}
        try:
            return _payload_of(taken), {}
        finally:
            taken.close()

    def drop(self) -> None:
        _drop_soon(self._stream)


def _drop_soon(stream: Stream) -> None:
    """Have an iterator forgotten over there, and wait for nothing.

    Whoever collects garbage, here or in a container, may hold what is needed to ask for it, or wait for each other.
    """

    def drop() -> None:
        with contextlib.suppress(DockmlError):  # it is gone already
            stream.drop()

    threading.Thread(target=drop, name="dockml-drop", daemon=True).start()


# --- a kernel in a container ------------------------------------------------------------------


class _UnreachableError(Exception):
    """The kernel cannot connect to its door."""


class ContainerSide:
    """A kernel in a container, as a side.

    Parameters
    ----------
    name : str
        Of the environment.
    relay : Relay
        Its sockets.
    container : KernelContainer
    tell : callable
        Gets a line for the user while something cannot go on.
    """

    def __init__(
        self, name: str, relay: Relay, container: KernelContainer, tell: Tell = lambda _: None
    ) -> None:
        self.title = f"'{name}'"
        self.party = container.session
        self._relay = relay
        self._container = container
        self._tell = tell
        self._door: Door | None = None
        self._file: PurePosixPath | None = None
        self._making_ready = threading.Lock()
        self._waiting: dict[str, list[str]] = {}
        """Tokens of the iterators among the values that wait by a token."""

    @property
    def shares(self) -> bool:
        """It can have shared memory."""
        return self._door is not None and self._door.is_open

    @property
    def is_python_2(self) -> bool:
        """Its Python is 2.7."""
        version = self._relay.kernel_info.get("language_info", {}).get("version", "")
        return str(version).startswith("2.")

    def close(self) -> None:
        """Close its door."""
        if self._door is not None:
            self._door.close()

    def take(self, names: list[str], parties: frozenset[str]) -> Taken:
        """Pack variables in there."""
        said, taken = self._pack({"op": "take", "names": names}, parties)
        streams = said.get("streams", {})
        _must(
            isinstance(streams, dict)
            and all(name in names and isinstance(number, int) for name, number in streams.items())
        )
        taken.streams = {
            name: _ContainerStream(self, number, name, parties) for name, number in streams.items()
        }
        return taken

    def take_next(self, stream: int, n: int, parties: frozenset[str]) -> Taken | None:
        """Return the n-th value of an iterator in there, None at the end."""
        said, taken = self._pack({"op": "next", "stream": stream, "n": n}, parties)
        return None if "end" in said else taken

    def drop(self, stream: int) -> None:
        """Forget an iterator in there."""
        self._ask({"op": "drop", "stream": stream})

    def _pack(
        self, request: Mapping[str, Any], parties: frozenset[str]
    ) -> tuple[Mapping[str, Any], Taken]:
        self._make_ready()
        asked = {**request, "inline": INLINE, "token": secrets.token_hex(16)}
        if not self.shares:
            self._wait_for_turn()
            try:
                said = self._ask(asked, is_next=True)
                return said, self._taken(said, self._fetch_pieces(said, asked["token"], parties))
            except BaseException:
                self._forget(asked["token"])
                raise
        assert self._door is not None
        ticket = TakeTicket(lambda size: KEEPER.lease(size, parties), self._make_room)
        asked |= {"token": self._door.admit(ticket), "door": self._inside(self._door)}
        try:
            said = self._ask(asked, ticket)
            return said, self._taken(said, ticket.lease)
        except _UnreachableError as error:
            self._shut(error)
        except BaseException:
            if ticket.lease is not None:
                ticket.lease.close()
            raise
        finally:
            self._door.dismiss(asked["token"])
        return self._pack(request, parties)

    def _taken(self, said: Mapping[str, Any], lease: Lease | None) -> Taken:
        """Return what an answer says that was packed."""
        if "end" in said:
            return Taken(b"", 0, [])
        notes = _texts(said.get("notes", []))
        if said["buffers"]:
            payload = bytes(said["buffers"][0])
            _must(len(payload) <= INLINE)
            return Taken(payload, len(payload), notes)
        if lease is None or said.get("size") != lease.size:
            raise _nonsense()
        return Taken(lease, lease.size, notes)

    def _fetch_pieces(
        self, said: Mapping[str, Any], token: str, parties: frozenset[str]
    ) -> Lease | None:
        """Return memory with what is too large for one answer."""
        size = said.get("size")
        if size is None:
            return None
        lease = None
        try:
            _must(isinstance(size, int) and not isinstance(size, bool) and 0 < size < 1 << 62)
            lease = _lease(size, parties)
            for offset in range(0, size, PIECE):
                asked = {"op": "read", "token": token, "offset": offset, "length": PIECE}
                piece = b"".join(self._ask(asked)["buffers"])
                _must(len(piece) == min(PIECE, size - offset))
                os.pwrite(lease.segment.descriptor, piece, offset)
            self._forget(token)
        except BaseException:
            if lease is not None:
                lease.close()
            raise
        return lease

    def put(
        self,
        taken: Taken,
        names: Mapping[str, str],
        *,
        copy: bool,
        hold: str | None = None,
        held: Sequence[str] = (),
    ) -> tuple[dict[str, str], list[str]]:
        """Make values of a payload in there, and bind them or have them wait."""
        self._make_ready()
        lease = taken.payload if isinstance(taken.payload, Lease) else None
        asked: dict[str, Any] = {
            "op": "put",
            "names": {name: names[name] for name in names if name not in taken.streams},
            "streams": {},
            "copy": copy,
            "with": list(held),
        }
        if hold is not None:
            asked["hold"] = hold
        buffers = [] if lease is not None else [taken.payload]
        if not self.shares or (lease is not None and not lease.segment.can_travel):
            return self._put_in_pieces(asked, taken, buffers)
        assert self._door is not None
        ticket = PutTicket(lease, self._make_room)
        tokens: list[str] = [self._door.admit(ticket)]
        asked |= {"token": tokens[0], "door": self._inside(self._door)}
        streams: list[str] = []
        for name, stream in taken.streams.items():
            streams.append(self._door.admit(_ticket_for(stream)))
            asked["streams"][names[name]] = {"token": streams[-1], "name": name}
        try:
            said = self._ask(asked, ticket, buffers)
        except _UnreachableError as error:
            self._shut(error)
            return self.put(taken, names, copy=copy, hold=hold, held=held)
        finally:
            if ticket.is_done:
                self._settle(held)
            elif hold is not None:
                self._waiting[hold] = streams
            else:
                tokens += streams
            for token in tokens:
                self._door.dismiss(token)
        _must(ticket.is_done or hold is not None)
        return _types(said, names), _texts(said.get("notes", []))

    def _put_in_pieces(
        self, asked: dict[str, Any], taken: Taken, buffers: Sequence[Any]
    ) -> tuple[dict[str, str], list[str]]:
        if taken.streams:
            raise ExchangeError(
                f"'{next(iter(taken.streams))}' is an iterator, and {self.title} shares no files with us: "
                "nobody in there could ask for the next value.",
                hint="Hand over a list of its values.",
            )
        token = asked["token"] = secrets.token_hex(16)
        hold = asked.setdefault("hold", token)
        try:
            if not isinstance(taken.payload, Lease):
                self._wait_for_turn()
            else:
                for offset in range(0, taken.size, PIECE):
                    length = min(PIECE, taken.size - offset)
                    piece = os.pread(taken.payload.segment.descriptor, length, offset)
                    write = {"op": "write", "token": token, "size": taken.size, "offset": offset}
                    _must(self._ask(write, buffers=[piece]).get("offset") == offset + length)
            said = self._ask(asked, buffers=buffers, is_next=True)
            types = _types(said, asked["names"])
            notes = _texts(said.get("notes", []))
        except BaseException:
            self._forget(token)
            raise
        if hold == token:
            _bind_all({self: [*asked["with"], token]})
        return types, notes

    def bind(self, held: Sequence[str]) -> None:
        """Bind what waits by these tokens; to do it again does no harm."""
        self._ask({"op": "bind", "tokens": list(held)})
        self._settle(held)

    def _settle(self, held: Sequence[str]) -> None:
        for token in held:
            self._waiting.pop(token, None)

    def drop_held(self, token: str) -> None:
        """Forget what waits by a token, if anything does."""
        self._forget(token)
        for stream in self._waiting.pop(token, ()):
            if self._door is not None:
                self._door.dismiss(stream)

    def _wait_for_turn(self) -> None:
        """Have the kernel come to nothing of ours: what is asked next, it works on until it answers.

        Without a door that is how an interrupt is known to hit what it is meant for.
        """
        self._ask({"op": "drop"})

    def _forget(self, token: str) -> None:
        """Have what waits for a request forgotten, whatever else went wrong."""
        try:
            self._ask({"op": "drop", "token": token})
        except DockmlError:
            log.debug("nothing to forget in %s", self.title)

    def _make_ready(self) -> None:
        """Give the container what answers in it, once, whichever threads are the first to need it."""
        with self._making_ready:
            if self._file is None:
                self._file = self._give_file()

    def _give_file(self) -> PurePosixPath:
        if not self._relay.is_ipython:
            raise self._is_no_ipykernel()
        file = self._container.give_file(_FILE, _archive())
        if agent.MESSAGE not in self._relay.evaluate(_expression(str(file)), self._tell):
            raise self._is_no_ipykernel()
        runtime = self._container.runtime
        if self._container.shares_files and runtime is not None and hasattr(os, "memfd_create"):
            try:
                self._door = KEEPER.open(runtime)
            except OSError as error:
                self._shut(error)
        return file

    def _make_room(self) -> None:
        _drop_idle(self.party)

    def _inside(self, door: Door) -> str:
        """Return the path of a door as the container has it."""
        assert self._file is not None
        return str(self._file.with_name(door.name))

    def _is_no_ipykernel(self) -> ExchangeError:
        return ExchangeError(
            f"{self.title} is no Python under IPython: values go there through files.",
            hint="Write a file in the workspace, which all environments see: CSV, Parquet, NPY, text.",
        )

    def _shut(self, error: Exception) -> None:
        log.info("%s shares no memory with us: %s", self.title, error)
        self.close()

    def _ask(
        self,
        asked: Mapping[str, Any],
        ticket: TakeTicket | PutTicket | None = None,
        buffers: Sequence[Any] = (),
        *,
        is_next: bool = False,
    ) -> Mapping[str, Any]:
        """Return what the agent says to a request, with the `buffers` that come with that.

        `is_next`: the kernel has nothing else to do before it.
        """
        said, pieces = self._relay.ask(
            f"{agent.MESSAGE}_request",
            asked,
            buffers,
            interrupted=ticket.withdraw if ticket is not None else lambda: is_next,
            tell=self._tell,
        )
        if "error" in said:
            raise self._error(said, ticket)
        return {**said, "buffers": pieces}

    def _error(self, said: Mapping[str, Any], ticket: TakeTicket | PutTicket | None) -> Exception:
        kind, message = said["error"], str(said.get("message", ""))[:_LONGEST_TEXT]
        if kind == "unreachable":
            return _UnreachableError(message)
        if isinstance(ticket, TakeTicket) and ticket.problem is not None:
            return _no_room(ticket.problem)
        if kind == "missing":
            return NameMissingError(_texts(said.get("names")), self.title)
        if kind == "refused":
            return ValueRefusedError(message, hint=str(said.get("hint", ""))[:_LONGEST_TEXT])
        if kind == "damaged":
            return _damaged(message)
        if kind == "memory":
            needed, free, limit = (
                n if isinstance(n := said.get(key), int) else 0
                for key in ("needed", "free", "limit")
            )
            return _no_memory(self.title, needed, free, limit, "--memory")
        if kind == "interrupted":
            return ExchangeError(f"The hand-over was interrupted in {self.title}.")
        if kind == "raised":
            return ExchangeError(f"it raised {message}")
        return ExchangeError(f"{self.title} cannot do it: {message or 'it does not say why'}.")


class _ContainerStream:
    """An iterator of a kernel in a container."""

    def __init__(
        self, side: ContainerSide, number: int, name: str, parties: frozenset[str]
    ) -> None:
        self._side = side
        self._number = number
        self._name = name
        self._parties = parties

    def fetch(self, n: int) -> Taken | None:
        try:
            return self._side.take_next(self._number, n, self._parties)
        except ExchangeError as error:
            raise ExchangeError(
                f"the iterator '{self._name}' in {self._side.title}: {error.message}",
                hint=error.hint,
            ) from error

    def drop(self) -> None:
        self._side.drop(self._number)


def _ticket_for(stream: Stream) -> StreamTicket:
    """Return what lets a kernel have an iterator's values."""

    def fetch(n: int) -> Told:
        try:
            taken = stream.fetch(n)
        except DockmlError as error:
            return {"problem": str(error)}, None
        except Exception as error:
            log.exception("the next value of an iterator")
            return {"problem": agent.describe(error)}, None
        if taken is None:
            return {"end": True}, None
        try:
            if isinstance(taken.payload, Lease):
                if not taken.payload.segment.can_travel:
                    raise ClosedError("there is no memory to share")
                return {"size": taken.size}, taken.payload.segment.share(writable=False)
            return {"payload": base64.b64encode(taken.payload).decode()}, None
        finally:
            taken.close()

    return StreamTicket(fetch, lambda: _drop_soon(stream))


def _expression(path: str) -> str:
    """Return what a kernel is to evaluate once: it imports the agent, which answers from then on."""
    module = f"{_PACKAGE}.agent"
    bring = (
        f"import sys\nsys.path.insert(0, {path!r})\n"
        f"try:\n    import {module}\nfinally:\n    sys.path.remove({path!r})\n"
    )
    modules = "__import__('sys').modules"
    return (
        f"({modules}.get({module!r}) or eval(compile({bring!r}, '<dockml>', 'exec'), {{}}) "
        f"or {modules}[{module!r}]).listen()"
    )


@functools.cache
def _archive() -> bytes:
    """Return the package that runs in the kernels as a zip file, always the same one."""
    buffer = io.BytesIO()
    folder = importlib.resources.files("dockml_magic") / "resources" / "values"
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py"):
                archive.writestr(zipfile.ZipInfo(f"{_PACKAGE}/{file.name}"), file.read_bytes())
    return buffer.getvalue()


def _lease(size: int, parties: frozenset[str]) -> Lease:
    try:
        return KEEPER.lease(size, parties)
    except NoRoomError as error:
        raise _no_room(error) from error


def _drop_idle(party: str) -> None:
    """Let go of memory that is kept for speed only, and counts for this one."""
    agent.close_mappings()
    KEEPER.pool.drop_idle(party)


# --- what was said ----------------------------------------------------------------------------


def _texts(found: object) -> list[str]:
    """Return a list of texts, as far as it is one and not too long."""
    if not isinstance(found, list):
        return []
    return [str(text)[:_LONGEST_TEXT] for text in found[:_MOST_NOTES]]


def _types(said: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    types = said.get("types")
    if not isinstance(types, dict):
        raise _nonsense()
    return {name: str(types.get(name, "?"))[:_LONGEST_TEXT] for name in names.values()}


def _must(condition: bool) -> None:  # noqa: FBT001
    """Raise where an answer is not what it has to be."""
    if not condition:
        raise _nonsense()


def _nonsense() -> KernelError:
    return KernelError(
        "The kernel in the container sent an answer that cannot be used.",
        hint="Start it again with --fresh, or go back with: %docker_env local",
    )


def _damaged(why: object) -> ExchangeError:
    return ExchangeError(
        f"What arrived is not what is handed over between environments: {why}.",
        hint="Start the environment it came from again with --fresh.",
    )


def _no_room(error: NoRoomError) -> NoMemoryError:
    if error.count:
        return NoMemoryError(
            f"{error.count} kernels have asked for memory and not written to it. They get no more of it.",
            error.needed,
            error.free,
            hint="Is it an image that you trust? Stop what is needed no more: %docker_ps",
        )
    return NoMemoryError(
        f"The value takes {_mib(error.needed)}, and this machine has {_mib(error.free)} free.",
        error.needed,
        error.free,
        hint="Hand over less at a time, or stop what takes the memory. See: %docker_stats",
    )


def _no_memory(where: str, needed: int, free: int, limit: int, option: str) -> NoMemoryError:
    more = f"Start it with more ({option}), or hand" if option else "Hand"
    return NoMemoryError(
        f"The value takes {_mib(needed)} more, and {where} has {_mib(free)} left of its limit of "
        f"{_mib(limit)}.",
        needed,
        free,
        hint=f"{more} over less at a time.",
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"
