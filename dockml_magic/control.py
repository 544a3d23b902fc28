"""The host's end of the control channel to the supervisor in a container.

A stream of JSON lines, described in `resources/launch.py`. Holding it open is the lease: when our
process ends, however it ends, the connection closes and the container ends itself.

The other end is the less trusted side: it may be anything that runs in the container. `parse_state` lets through
what a supervisor can say; at anything else the channel is closed, and the container counts as gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dockml_magic.errors import KernelError, harmless
from dockml_magic.interrupts import interrupts_later


@dataclass(frozen=True, kw_only=True)
class KernelState:
    """What the supervisor last said.

    Attributes
    ----------
    generation : int
        Counts the kernels of this container, from 1.
    phase : str
        starting, need_bundle, bound, exited or failed; "gone" when the channel is closed.
    report : mapping
        What the kernel's interpreter found: python, executable, ipykernel, kernel, problem; and the digest of the
        compiled code that it has left.
    exit_code : int or None
        Of the last kernel, if it ended.
    out_of_memory : bool
        The memory limit ended it.
    kept : bool
        The container outlives its connections.
    attached : int
        Notebooks that read what the kernel publishes.
    problem : str
        Why the channel was closed, where that was ours to do.
    """

    generation: int = 0
    phase: str = "starting"
    report: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    out_of_memory: bool = False
    kept: bool = False
    attached: int = 0
    problem: str = ""


class NonsenseError(ValueError):
    """A line that no supervisor says."""


_LONGEST_LINE = 1 << 20
"""Bytes of a line; a report with a hundred kernelspecs has ten thousand."""

_SEND_TIMEOUT = struct.pack("ll", 5, 0)
"""Seconds and microseconds, as the system has them."""

_PHASES = ("starting", "need_bundle", "other_kernel", "bound", "exited", "failed")

_LONGEST_TEXT = 4096
"""Characters of a text, which is cut there: as long as a path can be."""

_FORMS = {
    "python": r"\d{1,3}(\.\d{1,5}){1,2}",
    "executable": r"[^\0\n]*",
    "machine": r"[A-Za-z0-9_]{1,32}",
    "libc": r"[a-z]{1,16}",
    "libc_version": r"(\d{1,2}\.\d{1,3}(\.\d{1,5})*)?",
    "kernel": r"image|bundle|spec",
    "interrupt_mode": r"signal|message",
    "ipykernel": r"[\w.+!-]{0,64}",
    "compiled": r"[0-9a-f]{64}",
}
"""Of what goes into names of folders, command lines and decisions here. Other texts are only shown."""


def parse_state(line: bytes) -> KernelState:
    """Return what a supervisor says with a line; pure.

    Raises
    ------
    NonsenseError
        If no supervisor says that.
    """
    try:
        message = json.loads(line)
        end = message["exit"]
        generation, phase, report = message["generation"], message["phase"], message["report"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise NonsenseError("not a line of a supervisor") from error
    if not _is_count(generation) or phase not in _PHASES or not isinstance(report, dict):
        raise NonsenseError("not a state of a kernel")
    code, out_of_memory = None, False
    if end is not None:
        if not isinstance(end, dict) or not _is_count(code := end.get("code")):
            raise NonsenseError("not an end of a kernel")
        out_of_memory = end.get("out_of_memory") is True
    if not _is_count(attached := message.get("attached", 0)):
        raise NonsenseError("not a number of notebooks")
    return KernelState(
        generation=generation,
        phase=phase,
        report=dict(_fact(name, value) for name, value in report.items()),
        exit_code=code,
        out_of_memory=out_of_memory,
        kept=message.get("kept") is True,
        attached=attached,
    )


def _check_length(unfinished: bytes) -> None:
    if len(unfinished) > _LONGEST_LINE:
        raise NonsenseError("a line without an end")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _fact(name: str, value: Any) -> tuple[str, Any]:
    """Return an entry of a report, if it is one; texts as they can be shown."""
    if name == "wide_unicode" and isinstance(value, bool):
        return name, value
    if name == "kernelspecs" and isinstance(value, dict):
        return name, {_text(key): _text(language) for key, language in value.items()}
    text = _text(value)
    if name in _FORMS and not re.fullmatch(_FORMS[name], text):
        raise NonsenseError(f"'{text[:100]}' as {name}")
    return _text(name), text


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise NonsenseError("not a text")
    return harmless(value[:_LONGEST_TEXT])


Address = Path | tuple[str, int]
"""Where a supervisor listens: a Unix socket, or a host and a port."""


def address_to_json(address: Address) -> str | list[str | int]:
    """Return an address as plain JSON."""
    return str(address) if isinstance(address, Path) else list(address)


def address_from(data: str | list[Any]) -> Address:
    """Return what `address_to_json` was given."""
    return Path(data) if isinstance(data, str) else (str(data[0]), int(data[1]))


class ControlChannel:
    """A connection to the supervisor, and the newest state that came over it."""

    def __init__(self, address: Address, key: str) -> None:
        self.address = address
        self._socket = _connect(address, {"key": key})
        self._unsent: deque[bytes] = deque()
        self._sending = threading.RLock()
        self._is_sending = False
        self._changed = threading.Condition()
        self._state = KernelState()
        self._asked_at: float | None = None
        self._heard = 0
        self.was_shared = False
        """More than one notebook was attached at a time."""
        self._reader = threading.Thread(target=self._read, name="dockml-control", daemon=True)
        self._reader.start()

    @property
    def state(self) -> KernelState:
        """The newest state."""
        return self._state

    def wait(self, wanted: Callable[[KernelState], bool], timeout: float) -> KernelState | None:
        """Return the first state that is wanted (or that the channel is gone), None after `timeout`."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not wanted(self._state) and self._state.phase != "gone":
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            return self._state

    def silence(self) -> float:
        """Ask the supervisor to say something; return for how many seconds it has not.

        Call it again and again. A supervisor does nothing but listen: one that is silent is frozen, as in a
        container that is paused, or has no CPU.
        """
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            with contextlib.suppress(KernelError):
                self._send({"op": "say"})
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    def settle(self, timeout: float) -> bool:
        """Tell whether the supervisor has done all that it was told, a signal for one, within `timeout` seconds."""
        with self._changed:
            # Twice: the first thing that is heard may be from before.
            enough = self._heard + 2
            for _ in range(2):
                self._send({"op": "say"})
            return self._changed.wait_for(
                lambda: self._heard >= enough or self._state.phase == "gone", timeout
            )

    def signal(self, signum: int) -> None:
        """Signal the kernel's process group. Safe to call from a signal handler."""
        self._send({"op": "signal", "signum": int(signum)})

    def start(self, env: Mapping[str, str], cwd: str | None) -> None:
        """Start the next kernel, if none runs."""
        self._send({"op": "start", "env": dict(env), "cwd": cwd})

    def keep(self, *, keep: bool) -> None:
        """Let the container outlive its connections, or not any more."""
        self._send({"op": "keep", "keep": keep})

    def attach(self) -> None:
        """Say that we read what the kernel publishes: it is not recorded then."""
        self._send({"op": "attach"})

    def detach(self) -> None:
        """Say that we do not read it any more."""
        self._send({"op": "detach"})

    def stop(self) -> None:
        """End the kernel and the container."""
        self._send({"op": "stop"})

    def close(self) -> None:
        """Give the lease back."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        """Send a line as a whole: other threads send, too, and a signal handler in the middle of this."""
        self._unsent.append(json.dumps(message).encode() + b"\n")
        while self._unsent:
            with interrupts_later(), self._sending:
                if self._is_sending:  # a handler in the middle of this, which looks again
                    return
                try:
                    self._is_sending = True
                    while self._unsent:
                        self._socket.sendall(self._unsent.popleft())
                except OSError as error:
                    self._unsent.clear()
                    raise KernelError("The container is gone.") from error
                finally:
                    self._is_sending = False

    def _read(self) -> None:
        buffer = b""
        while True:
            try:
                chunk = self._socket.recv(65536)
            except OSError:
                chunk = b""
            if not chunk:
                self._publish(KernelState(generation=self._state.generation, phase="gone"))
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            try:
                for line in lines:
                    self._publish(parse_state(line))
                    self._asked_at = None
                _check_length(buffer)
            except NonsenseError as error:
                self.close()
                self._publish(
                    KernelState(generation=self._state.generation, phase="gone", problem=f"{error}")
                )
                return

    def _publish(self, state: KernelState) -> None:
        with self._changed:
            self._state = state
            self._heard += 1
            self.was_shared |= state.attached > 1
            self._changed.notify_all()


@dataclass(frozen=True, kw_only=True)
class OutputState:
    """Where an `OutputStream` is when nothing more is there.

    Attributes
    ----------
    busy : bool
        A cell runs.
    dropped : int
        Messages that had no room.
    takes : bool
        It is this stream that gets the output; another one, or a notebook that is attached, does otherwise.
    """

    busy: bool
    dropped: int
    takes: bool


class OutputStream:
    """A connection over which a supervisor gives what the kernel has published while nobody was attached.

    What it publishes from now on follows. This is no lease.
    """

    def __init__(self, address: Address, key: str) -> None:
        self._socket = _connect(address, {"key": key, "op": "take"})
        self._received = bytearray()

    def read(self, timeout: float) -> list[bytes] | OutputState | None:
        """Return the next message, as its frames from the header on; or the state; None after `timeout`.

        Raises
        ------
        KernelError
            If the container is gone, or sends nonsense.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                found = self._take()
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise KernelError("The container sent what is no output of a kernel.") from error
            left = deadline - time.monotonic()
            if found is not None or left <= 0:
                return found
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(1 << 18)
            except TimeoutError:
                return None
            except OSError:
                data = b""
            if not data:
                raise KernelError("The container is gone.")
            self._received += data

    def _take(self) -> list[bytes] | OutputState | None:
        end = self._received.find(b"\n", 0, _LONGEST_HEAD)
        if end < 0:
            if len(self._received) >= _LONGEST_HEAD:
                raise ValueError("a head without end")
            return None
        head = json.loads(self._received[:end])
        if "frames" not in head:
            del self._received[: end + 1]
            return OutputState(
                busy=bool(head["busy"]), dropped=int(head["dropped"]), takes=bool(head["takes"])
            )
        sizes = [int(size) for size in head["frames"]]
        if min(sizes, default=0) < 0 or sum(sizes) > _LARGEST_MESSAGE or len(sizes) < 4:
            raise ValueError("a message that cannot be")
        place = end + 1
        if len(self._received) < place + sum(sizes):
            return None
        frames = []
        for size in sizes:
            frames.append(bytes(self._received[place : place + size]))
            place += size
        del self._received[:place]
        return frames

    def close(self) -> None:
        """Take no more."""
        self._socket.close()

    def __enter__(self) -> OutputStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_LONGEST_HEAD = 1 << 16
_LARGEST_MESSAGE = 32 << 20
"""Bytes; a supervisor records messages of up to 16 MiB."""


def _connect(address: Address, hello: Mapping[str, Any]) -> socket.socket:
    """Return a connection over which the first line was sent."""
    connection = _connected(address)
    try:
        connection.sendall(json.dumps(hello).encode() + b"\n")
    except OSError:
        connection.close()
        raise
    return connection


def _connected(address: Address) -> socket.socket:
    """Return a connection to an address. A socket's file has to be one itself, and no link.

    The container may put anything in its place, such as a link to the engine's own socket.
    """
    if not isinstance(address, Path):
        return _open(socket.AF_INET, address)
    # What is opened here is what the path below leads to, whatever the container does in between.
    fd = os.open(address, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ConnectionRefusedError(f"{address} is no socket")
        return _open(socket.AF_UNIX, f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _open(family: socket.AddressFamily, address: str | tuple[str, int]) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        # One that does not read must not hold us, who may be in a signal handler.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection
