"""Ports that a test may give to a program, which listens on them a moment later."""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

_FIRST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def _each_once() -> Iterator[int]:
    """Give this worker's ports one after the other, from a random one on.

    None of those that the system gives to whoever asks for any, and to each connection: one of these may be
    another's by the time it is used. None of another worker's, and none again for long.
    """
    end = int(_RANGE.read_text().split()[0])
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = range(_FIRST + worker, end, workers)
    first = random.SystemRandom().randrange(len(ports))
    return itertools.cycle([*ports[first:], *ports[:first]])


_ports = _each_once()


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nothing listens on, nor is about to."""
    with ExitStack() as held:
        found: list[int] = []
        for port in itertools.islice(_ports, 50 + count):
            with suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"no {count} ports are free")
