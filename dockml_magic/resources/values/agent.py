"""What answers in a kernel when the notebook hands values over.

The notebook's side (`dockml_magic/exchange.py`) has the kernel import this and call `listen`. From then on it sends
requests of a type of their own on the shell channel, which spares them what ipykernel does around a cell, four times
as long as a small value takes. Small payloads are in the buffers of a request or of its reply. Larger ones are in
memory that the notebook's side makes and hands out over a Unix socket, `Door` here; or go piece by piece in such
buffers, where there is no such socket.

In a container this is `dockml_values.agent`; the notebook's own kernel uses its parts, too.
Standard library only, Python 2.7 and 3.5 to the newest.
"""

from __future__ import absolute_import, division, print_function

import base64
import contextlib
import errno
import json
import mmap
import os
import socket
import struct
import sys
import threading
import time

from . import Damaged, Refused, pack, unpack
from .wire import File

_PYTHON_2 = sys.version_info[0] == 2

_POPULATE = 0x8000
"""MAP_POPULATE of Linux: all pages at once, three times as fast as one by one as they are touched."""

_CLOSE_ON_EXEC = 0x40000000
"""MSG_CMSG_CLOEXEC of Linux."""

_LONGEST_LINE = 1 << 20

MESSAGE = "dockml_values"
"""What messages are called, followed by `_request` and `_reply`."""

READ_ONLY = "read-only: both sides have the same memory; --copy (copy=True) makes a copy"
"""What is said of arrays that are views."""

_held = {}
"""What waits to be read or bound, piece by piece: memory, a packed value or values, by the request's token."""

_streams = {}
"""Iterators of this kernel that others go on with, by number."""

_count = [0]


class _Failed(Exception):
    """Ends a request with what its answer says."""

    def __init__(self, **said):
        Exception.__init__(self, said)
        self.said = said


class NoRoom(_Failed, MemoryError):
    """Ends it for want of memory: `said` has how much is `free`, and the `limit`."""


class Closed(Exception):
    """The notebook's side is not there, or does not go on with this."""


def listen():
    """Have this kernel answer requests; return the type of their messages, None where it is no ipykernel."""
    kernel = getattr(_shell(), "kernel", None)
    handlers = getattr(kernel, "shell_handlers", None)
    if not isinstance(handlers, dict):
        return None
    handlers[MESSAGE + "_request"] = _handle
    return MESSAGE


def _handle(stream, ident, parent):
    """Answer a message, as ipykernel has it done: whatever happens, an answer goes out, as somebody waits for it."""
    said = None
    while True:
        try:
            if said is None:
                said, buffers = answer(parent["content"], parent["buffers"])
            _shell().kernel.session.send(
                stream, MESSAGE + "_reply", said, parent=parent, ident=ident, buffers=buffers
            )
            return
        except KeyboardInterrupt:  # it came before the work began, or when that was done
            if said is None:
                said, buffers = {"error": "interrupted"}, []


def answer(request, buffers=()):
    """Do what is asked for; return what is said to that, and buffers.

    Parameters
    ----------
    request : dict
    buffers : sequence of bytes-like
    """
    request["buffers"] = [b.tobytes() if hasattr(b, "tobytes") else bytes(b) for b in buffers]
    try:
        said = _OPERATIONS[request["op"]](request)
        return said, said.pop("buffers", [])
    except _Failed as failed:
        said = failed.said
    except Refused as error:
        said = {"error": "refused", "message": error.message, "hint": error.hint}
    except Damaged as error:
        said = {"error": "damaged", "message": _text(error)}
    except Closed as error:
        said = {"error": "closed", "message": _text(error)}
    except KeyboardInterrupt:
        said = {"error": "interrupted"}
    except MemoryError:
        said = {"error": "memory"}
    except BaseException as error:  # noqa: BLE001  (SystemExit of a value's own code, too: the kernel goes on)
        said = {"error": "failed", "message": describe(error)}
    return said, []


# --- what is asked for ------------------------------------------------------------------------


def _take(request):
    """Pack variables; iterators stay here, and are called by a number."""
    namespace = _shell().user_ns
    names = [_name(name) for name in request["names"]]
    missing = [name for name in names if name not in namespace]
    if missing:
        return {"error": "missing", "names": missing}
    with _Door.of(request) as door:
        door.begin()
        streams, pairs = {}, []
        for name in names:
            value = namespace[name]
            if is_stream(value):
                streams[name] = value
            else:
                pairs.append((name, value))
        packed = pack(pairs)
        said = _send(packed, door, request)
        said["streams"] = {}
        for name in streams:
            _count[0] += 1
            _streams[_count[0]] = Source(streams[name], name)
            said["streams"][name] = _count[0]
        return said


def _next(request):
    """Pack the next value of an iterator."""
    source = _streams.get(request["stream"])
    if source is None:
        return {"error": "closed", "message": "that iterator is not here any more"}
    with _Door.of(request) as door:
        door.begin()
        try:
            packed = source.pack(request["n"])
        except StopIteration:
            del _streams[request["stream"]]
            return {"end": True}
        except Raised as error:
            del _streams[request["stream"]]
            return {"error": "raised", "message": _text(error)}
        return _send(packed, door, request)


def _send(packed, door, request):
    """Return how a payload gets to the notebook: in the answer, in memory of the notebook's, or piece by piece."""
    said = {"notes": list(packed.notes)}
    if packed.total <= request["inline"]:
        said["buffers"] = [packed.to_bytes()]
    elif door.is_open:
        told, descriptor = door.ask(size=packed.total)
        if descriptor is None:
            raise _Failed(**told)
        try:
            if told.get("fresh"):
                check_room(packed.total, door.make_room)
            write(packed, descriptor, told.get("fresh"))
        finally:
            os.close(descriptor)
        said["size"] = packed.total
    else:
        check_room(packed.total)
        memory = mmap.mmap(-1, packed.total)
        _write_into(packed, memory)
        _held[request["token"]] = memory
        said["size"] = packed.total
    return said


def _read(request):
    """Return a piece of a payload."""
    memory = _held[request["token"]]
    piece = memory[request["offset"] : request["offset"] + request["length"]]
    return {"buffers": [piece]}


def _write(request):
    """Take a piece of a payload, which came in the request's buffers."""
    memory = _held.get(request["token"])
    if memory is None:
        check_room(request["size"])
        memory = _held[request["token"]] = mmap.mmap(-1, request["size"])
    offset = request["offset"]
    for piece in request["buffers"]:
        memory[offset : offset + len(piece)] = piece
        offset += len(piece)
    return {"offset": offset}


def _put(request):
    """Make values of a payload, and bind all of them or none, at once with what waits for that (`with`).

    Or have them wait until all others are there, which may go to other kernels (`hold`). Whether they are bound is
    for the notebook's side to say, when they are there: it may have been interrupted.
    """
    with _Door.of(request) as door:
        told, descriptor = door.begin()
        is_small = len(request["buffers"]) == 1
        if is_small:
            payload = request["buffers"][0]
        elif descriptor is not None:
            if request["copy"]:
                check_room(told["size"], door.make_room)
            payload = read(descriptor, told["size"])
        else:
            payload = _held.pop(request["token"])
        # A small array costs nothing to copy, and can be changed then.
        unpacked = unpack(
            payload,
            copy=request["copy"] or is_small,
            check_room=lambda size: check_room(size, door.make_room),
        )
        del payload
        values = {}
        for source in request["names"]:
            values[_name(request["names"][source])] = unpacked.values[source]
        for target in request["streams"]:
            stream = request["streams"][target]
            values[_name(target)] = Stream(
                _FarSource(request["door"], stream["token"]), stream["name"]
            )
        said = {
            "types": {name: type_name(values[name]) for name in values},
            "notes": list(unpacked.notes) + [READ_ONLY] * unpacked.views,
        }
        if "hold" in request:
            _held[request["hold"]] = values
            return said
        is_to_be = False
        try:
            is_to_be = "bind" in door.ask(ready=True)[0]
            if is_to_be:
                _bind(values, request["with"])
        except KeyboardInterrupt:
            if not is_to_be:
                raise
            _bind(values, request["with"])  # it counts as done by now
        if not is_to_be:
            raise Closed("it was stopped")
        return said


def _bind_held(request):
    """Bind what waits for it. To be asked again does no harm."""
    _bind({}, request["tokens"])
    return {}


def _drop(request):
    """Forget what waits for a request, or an iterator."""
    _held.pop(request.get("token"), None)
    _streams.pop(request.get("stream"), None)
    return {}


_OPERATIONS = {
    "take": _take,
    "next": _next,
    "read": _read,
    "write": _write,
    "put": _put,
    "bind": _bind_held,
    "drop": _drop,
}


def _bind(values, tokens):
    """Bind values, and those that wait by tokens, all at once."""
    values = dict(values)
    for token in tokens:
        values.update(_held.get(token, {}))
    _shell().push(values)
    for token in tokens:
        _held.pop(token, None)


def _shell():
    from IPython import get_ipython

    return get_ipython()


# --- memory -----------------------------------------------------------------------------------


def write(packed, descriptor, is_fresh):
    """Write a packed value to shared memory, by the quicker way: its pages are not there yet, or they are."""
    if is_fresh and hasattr(os, "pwrite"):
        with contextlib.closing(File(descriptor, packed.total)) as file:
            packed.write_into(file)
        return
    with _mapping_lock:
        memory = _find_mapping(descriptor)
        _write_into(packed, memory)
        if len(memory) < _LARGE:
            memory.close()
        else:
            _keep_mapping(descriptor, memory)


_LARGE = 64 << 20
"""Bytes from which on a mapping is kept for a while: to map and unmap memory takes as long as to write to it."""

_KEPT_TIME = 8.0
"""Seconds for which it is kept."""

_MOST_KEPT = 2
"""Mappings that are kept: while a value has its memory over there, the one that is to replace it needs other memory."""

_mapping_lock = threading.Lock()
_mappings = []
"""Those that are kept, the newest last: what each is a mapping of, the memory, and since when."""


def _find_mapping(descriptor):
    status = os.fstat(descriptor)
    for kept in _mappings:
        if kept[0] == (status.st_dev, status.st_ino):
            _mappings.remove(kept)
            return kept[1]
    # Without the lock that comes with the descriptor, which says that somebody uses it.
    unlocked = os.open("/proc/self/fd/%d" % descriptor, os.O_RDWR)
    try:
        return mmap.mmap(
            unlocked,
            status.st_size,
            flags=mmap.MAP_SHARED | _POPULATE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
    finally:
        os.close(unlocked)


def _keep_mapping(descriptor, memory):
    status = os.fstat(descriptor)
    _mappings.append(((status.st_dev, status.st_ino), memory, time.time()))
    while len(_mappings) > _MOST_KEPT:
        _mappings.pop(0)[1].close()
    timer = threading.Timer(_KEPT_TIME, _drop_mappings)
    timer.daemon = True
    timer.start()


def _drop_mappings():
    close_mappings(_KEPT_TIME - 0.5)


def close_mappings(age=float("-inf")):
    """Close those that are kept for longer than so many seconds."""
    with _mapping_lock:
        while _mappings and time.time() - _mappings[0][2] > age:
            _mappings.pop(0)[1].close()


def _write_into(packed, memory):
    if _PYTHON_2:
        packed.write_into(memory)
        return
    with memoryview(memory) as view:
        packed.write_into(view)


def read(descriptor, size):
    """Return shared memory as a payload, and close the descriptor.

    The mapping is private: what is written to it is nobody else's, and copied then. One that is read-only would
    end the process of who writes to a tensor, which cannot be made read-only.
    """
    try:
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    finally:
        os.close(descriptor)


def check_room(size, make_room=lambda: None):
    """Raise `NoRoom` where so many bytes more would be too many for this container.

    What is kept for speed only goes first: mappings here and, by `make_room`, memory that nobody uses any more, which
    counts for the container that wrote to it.
    """
    free, limit = find_room()
    if free is not None and size > free:
        close_mappings()
        make_room()
        free, limit = find_room()
    if free is not None and size > free:
        raise NoRoom(error="memory", needed=size, free=max(0, free), limit=limit)


def find_room():
    """Return how many bytes this process can still take, and the limit; (None, None) where there is none."""
    found = None, None
    for folder, limit_name, use_name, cache_name in _memory_groups():
        try:
            limit = int(_read_file(folder, limit_name))
            use = int(_read_file(folder, use_name))
        except (EnvironmentError, ValueError):  # none, or "max"
            continue
        if limit >= 1 << 60:
            continue
        for line in _read_file(folder, "memory.stat").splitlines():
            if line.startswith(cache_name + " "):
                use -= int(line.split()[1])  # the kernel takes it back when it is short
        if found[0] is None or limit - use < found[0]:
            found = limit - use, limit
    return found


def _memory_groups():
    """Return the control groups that this process is in: (folder, file of the limit, of the use, line of the cache)."""
    groups = []
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except EnvironmentError:
        return groups
    for line in lines:
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if "memory" in controllers.split(","):
            root = "/sys/fs/cgroup/memory"
            files = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        elif number == "0" and not controllers:
            root, files = "/sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        while True:
            groups.append((root + path.rstrip("/"),) + files)
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
    return groups


def _read_file(folder, name):
    with open(os.path.join(folder, name)) as file:
        return file.read()


# --- the door ---------------------------------------------------------------------------------


class _Door(object):
    """A connection to the socket where the notebook's side hands out memory; or none, for who has no such socket."""

    def __init__(self, path, token):
        self._socket = None
        self._token = token
        if path is None:
            return
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.connect(path)
        except EnvironmentError as error:
            self.__exit__(None, None, None)
            raise _Failed(error="unreachable", message=_text(error))

    @classmethod
    def of(cls, request):
        return cls(request.get("door"), request["token"])

    @property
    def is_open(self):
        return self._socket is not None

    def begin(self):
        """Say that the work begins; it does not where the notebook's side has given it up."""
        return self.ask(token=self._token) if self.is_open else ({}, None)

    def make_room(self):
        """Have the notebook's side let go of memory that counts for this container, and that nobody uses."""
        if self.is_open:
            self.ask(short=True)

    def ask(self, **said):
        """Say something; return what is said to that, and the descriptor that comes with it or None."""
        try:
            self._socket.sendall(json.dumps(said).encode("ascii") + b"\n")
            line, descriptor = b"", None
            while not line.endswith(b"\n"):
                piece, got = receive(self._socket)
                descriptor = got if got is not None else descriptor
                if not piece:
                    raise Closed("the notebook that hands it over is gone, or has given it up")
                line += piece
        except EnvironmentError as error:
            raise Closed(_text(error))
        told = json.loads(line.decode("ascii"))
        if "closed" in told:
            raise Closed(told["closed"])
        return told, descriptor

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if self._socket is not None:
            self._socket.close()


_receive_2 = []


def receive(connection):
    """Return bytes from a Unix socket, and the descriptor that came with them or None."""
    if not hasattr(connection, "recvmsg"):
        if not _receive_2:
            _receive_2.append(_make_receive_2())
        return _receive_2[0](connection)
    piece, control, _, _ = connection.recvmsg(
        _LONGEST_LINE, socket.CMSG_SPACE(struct.calcsize("i")), _CLOSE_ON_EXEC
    )
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(content) >= 4:
            return piece, struct.unpack("i", content[:4])[0]
    return piece, None


def _make_receive_2():
    """Return what does it in Python 2.7, whose sockets have no recvmsg."""
    import ctypes

    class Vector(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    class Header(ctypes.Structure):
        _fields_ = [
            ("name", ctypes.c_void_p),
            ("name_length", ctypes.c_uint),
            ("vectors", ctypes.POINTER(Vector)),
            ("count", ctypes.c_size_t),
            ("control", ctypes.c_void_p),
            ("control_length", ctypes.c_size_t),
            ("flags", ctypes.c_int),
        ]

    recvmsg = ctypes.CDLL(None, use_errno=True).recvmsg
    recvmsg.restype = ctypes.c_ssize_t
    start = struct.calcsize("Lii")

    def receive_2(connection):
        content = ctypes.create_string_buffer(1 << 14)
        control = ctypes.create_string_buffer(64)
        vector = Vector(ctypes.addressof(content), len(content))
        header = Header(
            None, 0, ctypes.pointer(vector), 1, ctypes.addressof(control), len(control), 0
        )
        while True:
            count = recvmsg(connection.fileno(), ctypes.byref(header), _CLOSE_ON_EXEC)
            if count >= 0:
                break
            code = ctypes.get_errno()
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        descriptor = None
        if header.control_length >= start + 4:
            _, level, kind = struct.unpack("Lii", control.raw[:start])
            if (level, kind) == (1, 1):  # SOL_SOCKET, SCM_RIGHTS
                descriptor = struct.unpack("i", control.raw[start : start + 4])[0]
        return ctypes.string_at(content, count), descriptor

    return receive_2


# --- iterators --------------------------------------------------------------------------------


class Raised(Exception):
    """An iterator raised an exception, whose type and text this tells."""


def is_stream(value):
    """Tell whether a value is handed over as it goes on: a generator or another iterator, and no file."""
    kind = type(value)
    has_next = hasattr(kind, "__next__") or (_PYTHON_2 and hasattr(kind, "next"))
    if not has_next or hasattr(kind, "read"):
        return False
    try:
        return iter(value) is value
    except Exception:
        return False


class Source(object):
    """An iterator that another kernel goes on with.

    The last value is kept until the next one is asked for: who was interrupted while it came asks again.
    """

    def __init__(self, iterator, name):
        self._iterator = iterator
        self._name = name
        self._n = 0
        self._packed = None

    def pack(self, n):
        """Return the n-th value, packed, as `ITEM`; n counts from 1 and goes on by one.

        Raises
        ------
        StopIteration
        Raised
        """
        if n == self._n and self._packed is not None:
            return self._packed
        if n != self._n + 1:
            raise Raised("its values were asked for in another order")
        self._packed = None
        try:
            value = next(self._iterator)
        except StopIteration:
            raise
        except Exception as error:
            raise Raised(describe(error))
        self._n = n
        self._packed = pack([(self._name, value)])
        return self._packed


class Stream(object):
    """An iterator whose values come from another environment, one at a time, as they are asked for.

    Parameters
    ----------
    source : object
        Has `fetch(n)`, which returns the payload of the n-th value and what is said of it, and `drop()`.
    name : str
        How it is called over there.
    """

    def __init__(self, source, name):
        self._source = source
        self._name = str(name)
        self._n = 0
        self._is_at_end = False

    def __iter__(self):
        return self

    def __next__(self):
        if self._is_at_end:
            raise StopIteration
        payload, told = self._source.fetch(self._n + 1)
        if payload is None:
            self._is_at_end = True
            if "end" in told:
                raise StopIteration
            raise RuntimeError("%s: %s" % (self._name, told.get("problem", "it is gone")))
        # A copy: the memory is free for the next value, however many are kept.
        values = unpack(payload, copy=True).values
        self._n += 1
        return values[self._name]

    next = __next__

    def __repr__(self):
        return "<%s, from another environment: %d values so far>" % (self._name, self._n)

    def __del__(self):
        if not self._is_at_end:
            try:
                self._source.drop()
            except Exception:
                pass


class _FarSource(object):
    """Asks the notebook's side for the values of another environment's iterator."""

    def __init__(self, path, token):
        self._path = path
        self._token = token

    def fetch(self, n):
        while True:
            try:
                with _Door(self._path, self._token) as door:
                    told, descriptor = door.ask(token=self._token, n=n)
            except (Closed, _Failed):
                return None, {"problem": "the notebook that hands it over is gone"}
            if "busy" not in told:
                break
            time.sleep(0.05)
        if descriptor is not None:
            return read(descriptor, told["size"]), told
        if "payload" in told:
            return base64.b64decode(told["payload"].encode("ascii")), told
        return None, told

    def drop(self):
        with _Door(self._path, self._token) as door:
            door.ask(token=self._token, drop=True)


# --- words ------------------------------------------------------------------------------------


def type_name(value):
    """Return the type of a value, and its size where it has one, in a word or two."""
    if isinstance(value, Stream):
        return "iterator"
    name = type(value).__name__
    try:
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple):
            return "%s (%s)" % (name, ", ".join("%d" % size for size in shape))
    except Exception:
        pass
    return name


def describe(error):
    """Return the type and the text of an exception."""
    text = _text(error)
    return "%s: %s" % (type(error).__name__, text) if text else type(error).__name__


def _text(error):
    try:
        return ("%s" % (error,))[:2000]
    except Exception:
        return "?"


def _name(name):
    """Return a name as this Python has it in a namespace."""
    return name.encode("ascii") if _PYTHON_2 and not isinstance(name, str) else name
