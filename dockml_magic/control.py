"""The host's end of the control channel to the supervisor in a container.

A stream of JSON lines, described in `resources/launch.py`. Holding it open is the lease: when our
process ends, however it ends, the connection closes and the container ends itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dockml_magic.errors import KernelError

log = logging.getLogger(__name__)

_LONGEST_LINE = 1 << 20
"""Bytes of a state; a supervisor says a few hundred."""


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
    """

    generation: int = 0
    phase: str = "starting"
    report: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    out_of_memory: bool = False


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
        family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(address) if isinstance(address, Path) else address)
            self._socket.sendall(json.dumps({"key": key}).encode() + b"\n")
        except OSError:
            self._socket.close()
            raise
        self._changed = threading.Condition()
        self._state = KernelState()
        self._asked_at: float | None = None
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

    def signal(self, signum: int) -> None:
        """Signal the kernel's process group. Safe to call from a signal handler."""
        self._send({"op": "signal", "signum": int(signum)})

    def start(self, env: Mapping[str, str], cwd: str | None) -> None:
        """Start the next kernel, if none runs."""
        self._send({"op": "start", "env": dict(env), "cwd": cwd})

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
            *lines, buffer = (buffer + chunk).split(b"\n")
            try:
                for line in lines:
                    self._publish(_state_in(line))
                    self._asked_at = None
                if len(buffer) > _LONGEST_LINE:
                    raise ValueError("a line without end")
            except _NONSENSE as error:
                # Whoever speaks there is no supervisor of ours; without a connection a real one ends itself.
                log.warning("the supervisor said what cannot be understood: %r", error)
                self.close()
                chunk = b""
            if not chunk:
                self._publish(KernelState(generation=self._state.generation, phase="gone"))
                return

    def _publish(self, state: KernelState) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()


_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading a state raises that is none."""


def _state_in(line: bytes) -> KernelState:
    """Return the state that a line of the supervisor says."""
    message = json.loads(line)
    end = message["exit"] or {}
    return KernelState(
        generation=int(message["generation"]),
        phase=str(message["phase"]),
        report=dict(message["report"]),
        exit_code=end.get("code"),
        out_of_memory=bool(end.get("out_of_memory")),
    )
