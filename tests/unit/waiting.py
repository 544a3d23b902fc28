"""Waiting for what happens in its own time, without sleeping longer than it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

_LOOK_INTERVAL = 0.003


def wait_until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    """Return as soon as `condition` holds; fail if it does not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s for {condition}"
        time.sleep(_LOOK_INTERVAL)
