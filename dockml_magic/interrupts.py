"""Interrupts of this process (SIGINT, the stop button) that are to come a moment later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Let an interrupt come after this: what is said half, or said and not noted, cannot be taken back.

    Python delivers it to the main thread only; others are not disturbed anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def note(*_: object) -> None:
        nonlocal came
        came = True

    saved = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, saved)
    if came and callable(saved):
        saved(signal.SIGINT, None)
