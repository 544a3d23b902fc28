"""The host's end of the control channel to the supervisor in a container.

A stream of JSON lines, described in `resources/launch.py`. Holding it open is the lease: when our
process ends, however it ends, the connection closes and the container ends itself.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dockml_magic.errors import KernelError


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
        What the kernel's interpreter found: python, executable, ipykernel, kernel, problem.
    exit_code : int or None
        Of the last kernel, if it ended.
    out_of_memory : bool
        The memory limit ended it.
    kept : bool
        The container outlives its connections.
    attached : int
        Notebooks that read what the kernel publishes.
    """

    generation: int = 0
    phase: str = "starting"
    report: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    out_of_memory: bool = False
    kept: bool = False
    attached: int = 0


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
        self._changed = threading.Condition()
        self._state = KernelState()
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
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise KernelError("The container is gone.") from error

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
            for line in lines:
                message = json.loads(line)
                end = message["exit"] or {}
                self._publish(
                    KernelState(
                        generation=message["generation"],
                        phase=message["phase"],
                        report=message["report"],
                        exit_code=end.get("code"),
                        out_of_memory=bool(end.get("out_of_memory")),
                        kept=bool(message.get("kept")),
                        attached=int(message.get("attached", 0)),
                    )
                )

    def _publish(self, state: KernelState) -> None:
        with self._changed:
            self._state = state
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
            except (ValueError, LookupError, TypeError, AttributeError) as error:
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
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.connect(str(address) if isinstance(address, Path) else address)
        connection.sendall(json.dumps(hello).encode() + b"\n")
    except OSError:
        connection.close()
        raise
    return connection
