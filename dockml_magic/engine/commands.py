"""A command that an engine runs in a container."""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Any

from dockml_magic.engine.contract import Stream
from dockml_magic.errors import EngineError

if TYPE_CHECKING:
    from dockml_magic.engine.client import DockerEngine

log = logging.getLogger(__name__)

_FRAME = 65536


class DockerExec:
    """A command that an engine runs.

    Parameters
    ----------
    engine : DockerEngine
        The engine.
    exec_id : str
        Its id of the command.
    connection : file
        As the SDK gives it: a raw file on a socket, or a socket.
    tty : bool
        What comes is a terminal's, and not cut into frames.
    """

    def __init__(self, engine: DockerEngine, exec_id: str, connection: Any, *, tty: bool) -> None:
        self._engine = engine
        self._id = exec_id
        self._file = connection
        self._socket = getattr(connection, "_sock", connection)
        self._socket.settimeout(None)
        self._tty = tty

    def _inspect(self) -> dict[str, Any]:
        with self._engine._translated():  # noqa: SLF001  # a part of it
            found: dict[str, Any] = self._engine._client.api.exec_inspect(self._id)  # noqa: SLF001
        return found

    @property
    def pid(self) -> int:
        """Its process on the engine's machine."""
        return int(self._inspect().get("Pid") or 0)

    def fileno(self) -> int:
        """Return what `select` can wait on."""
        return int(self._socket.fileno())

    def read(self) -> tuple[Stream, bytes] | None:
        """Wait for output and return it, None at its end."""
        if self._tty:
            data: bytes = self._recv(_FRAME)
            return ("stdout", data) if data else None
        head = self._exactly(8)
        if len(head) < 8:
            return None
        data = self._exactly(int.from_bytes(head[4:], "big"))
        return ("stderr" if head[0] == 2 else "stdout"), data

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self._recv(min(_FRAME, size - len(data)))):
            data += more
        return data

    def _recv(self, size: int) -> bytes:
        try:
            return bytes(self._socket.recv(size))
        except OSError as error:
            log.debug("the connection to a command broke off: %s", error)
            return b""

    def write(self, data: bytes) -> None:
        """Send it to the standard input."""
        with contextlib.suppress(OSError):  # it has ended
            self._socket.sendall(data)

    def close_input(self) -> None:
        """End the standard input."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal how large it is."""
        with contextlib.suppress(EngineError), self._engine._translated():  # noqa: SLF001
            self._engine._client.api.exec_resize(self._id, height=rows, width=columns)  # noqa: SLF001

    def exit_code(self) -> int | None:
        """Return how it ended, None while it runs."""
        found = self._inspect()
        return None if found.get("Running") or found.get("ExitCode") is None else found["ExitCode"]

    def close(self) -> None:
        """Leave it."""
        self._file.close()
        self._socket.close()
