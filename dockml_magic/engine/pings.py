"""How an engine that hangs is told from one that is only slow: by a ping beside the call."""

from __future__ import annotations

import logging
import math
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import docker

log = logging.getLogger(__name__)

_HTTPS = 443

QUIET = 0.6
"""Seconds without an answer after which the engine is asked whether it still hears us."""

_PING = 1.3
"""Seconds that it has to say so. Both together are what a reader waits for an engine that hangs."""

_LONG_PING = 5.0
"""The same where it may be on another machine, and what we say may have to be sent again; and where this one has more
to do than it can, so that an engine, one that has just started above all, waits for its turn."""

_SLICE = 0.1
"""Seconds that are waited at once for the answer to a ping."""

_LONGEST_QUIET = 5.0
"""Seconds between two such questions while something slow goes on."""

_Address = str | tuple[str, int]
"""Where an engine listens: the path of a socket of this machine, or a host and a port."""


def address_of(endpoint: str) -> _Address | None:
    """Return where an endpoint is, None where it does not say."""
    parts = urlsplit(endpoint)
    if parts.scheme == "unix":
        return parts.path
    return (parts.hostname, parts.port) if parts.hostname and parts.port else None


def _connected(address: _Address, timeout: float) -> socket.socket:
    if not isinstance(address, str):
        return socket.create_connection(address, timeout=timeout)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_overloaded() -> bool:
    """Tell whether this machine has more to run than CPUs, now or in the last minute."""
    try:
        minute, _, _, now, *_ = Path("/proc/loadavg").read_text().split()
        return max(float(minute), int(now.partition("/")[0])) > (os.cpu_count() or 1)
    except (OSError, ValueError):  # it does not say
        return False


def hears_us(address: _Address, more: float = 0.0, most: float = math.inf) -> bool:
    """Tell whether the engine hears us; False only where it takes a connection and keeps silent.

    It says so at once, however busy it is and whatever else it is doing, if this machine gives it a CPU. One that wants
    TLS says that, or hangs up.
    """
    ping = _PING if isinstance(address, str) and not _is_overloaded() else _LONG_PING
    try:
        connection = _connected(address, min(ping + more, most))
    except (TimeoutError, BlockingIOError):
        # Here too many wait to be taken already. On another machine it may be the way there.
        return not isinstance(address, str)
    except OSError as error:
        log.debug("no ping: %s", error)
        return True  # it is away, which the call itself will find out
    with connection:
        try:
            connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
        except TimeoutError:
            return False
        except OSError as error:
            log.debug("no ping: %s", error)
            return True
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        # Piece by piece: where this machine stands still for a while, the engine has done so, too.
        left = min(ping + more, most)
        while left > 0:
            if poll.poll(min(left, _SLICE) * 1000):
                return True
            left -= _SLICE
    return False


def _await_answer(connection: socket.socket, address: _Address) -> None:
    """Wait for an answer; one that is slow has all of the connection's time-out, an engine that hangs has not.

    Raises
    ------
    TimeoutError
        As soon as the engine does not answer a ping either, or after the time-out.
    """
    limit = connection.gettimeout()
    end = math.inf if limit is None else time.monotonic() + limit
    quiet = QUIET
    poll = select.poll()  # not select.select, which knows no descriptors above 1023
    poll.register(connection, select.POLLIN)
    while not poll.poll(max(0.0, min(quiet, end - time.monotonic())) * 1000):
        if time.monotonic() >= end:
            raise TimeoutError("timed out")
        if not hears_us(address) and not poll.poll(0):
            raise TimeoutError("no answer, to a ping neither")
        quiet = min(2 * quiet, _LONGEST_QUIET)


def watch(api: docker.APIClient) -> None:
    """Let the calls of a client see that the engine hangs.

    It sits where all of them wait, between the request and the beginning of the answer.
    """
    import requests.adapters
    from docker.transport import unixconn

    plain = api.adapters.get("http+docker://")
    if isinstance(plain, unixconn.UnixHTTPAdapter):
        api.mount("http+docker://", watched := _watched_adapter(plain))
        vars(api)["_custom_adapter"] = watched  # by which the SDK finds it
        plain.close()
        return
    for scheme in ("http", "https"):
        plain = api.adapters.get(f"{scheme}://")
        if not isinstance(plain, requests.adapters.HTTPAdapter):
            continue
        manager = plain.poolmanager
        pool = manager.pool_classes_by_scheme[scheme]
        connection = _watched(pool.ConnectionCls, lambda made: (made.host, made.port))
        watched_pool = type(pool.__name__, (pool,), {"ConnectionCls": connection})
        manager.pool_classes_by_scheme = {**manager.pool_classes_by_scheme, scheme: watched_pool}
        manager.clear()


def _watched(kind: Any, address_of: Callable[[Any], _Address]) -> Any:
    """Return a class of connections that see that the engine hangs, made of one of plain ones."""

    class Connection(kind):  # type: ignore[misc]
        def connect(self) -> None:
            # Over TLS two words are waited for before there is a request.
            if self.default_port == _HTTPS and not hears_us(address_of(self)):
                raise TimeoutError("no answer to a ping")
            super().connect()

        def getresponse(self) -> Any:
            if self.sock is not None:
                _await_answer(self.sock, address_of(self))
            return super().getresponse()

    return Connection


def _watched_adapter(plain: Any) -> Any:
    """Return what gives the SDK its connections to a socket of this machine."""
    from docker.transport import unixconn

    connection = _watched(unixconn.UnixHTTPConnection, lambda made: str(made.unix_socket))

    class Pool(unixconn.UnixHTTPConnectionPool):
        def _new_conn(self) -> Any:
            return connection(self.base_url, self.socket_path, self.timeout)

    class Adapter(unixconn.UnixHTTPAdapter):
        def get_connection(self, url: Any, proxies: Any = None) -> Any:  # noqa: ARG002  # requests' own
            with self.pools.lock:
                pool = self.pools.get(url)
                if pool is None:
                    pool = self.pools[url] = Pool(
                        url, self.socket_path, self.timeout, maxsize=self.max_pool_size
                    )
            return pool

    return Adapter(plain.socket_path, plain.timeout, max_pool_size=plain.max_pool_size)
