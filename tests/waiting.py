"""Waiting for what happens in its own time, without sleeping longer than it takes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

_FIRST_PAUSE = 0.003
_LONGEST_PAUSE = 0.05
"""Seconds between two looks, which may ask an engine or a page: what takes long is looked at less often."""


def wait_until(condition: Callable[[], object], timeout: float = 60.0, what: str = "") -> None:
    """Return as soon as `condition` holds.

    Raises
    ------
    AssertionError
        If it does not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s for {what or condition}"
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def wait_for_engine(process: subprocess.Popen[bytes], path: Path) -> None:
    """Return as soon as an engine answers at its socket, or has ended. The socket is there before that."""

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5.0)
            connection.connect(str(path))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(100)
        return False

    wait_until(
        lambda: process.poll() is not None or answers(), timeout=90.0, what="an engine of the tests"
    )


def interrupt_when(
    condition: Callable[[], object], *, then: Path | None = None
) -> threading.Thread:
    """Interrupt the main thread, as the stop button does, as soon as `condition` holds; then make a file."""

    def wait() -> None:
        wait_until(condition)
        os.kill(os.getpid(), signal.SIGINT)
        if then is not None:
            then.touch()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread
