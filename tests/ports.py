"""Ports that a test may give to a program, which listens on them a moment later."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

_FIRST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nothing listens on.

    None of those that the system gives to whoever asks for any, and to each connection: one of these may be
    another test's by the time it is used.
    """
    end = int(_RANGE.read_text().split()[0])
    with ExitStack() as held:
        found: list[int] = []
        for port in random.SystemRandom().sample(range(_FIRST, end), 50 + count):
            with suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"no {count} ports are free")
