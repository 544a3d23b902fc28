"""A registry with faults, and an engine that has it as its mirror.

Debian's ``docker-registry`` keeps the images. Before it stands a proxy of ours, to which a test says what shall go
wrong. The engine is a second one, in a network of its own from which only that proxy can be reached; the proxy listens
there, and under the same address here.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import http.server
import io
import json
import os
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from tests.ports import free_ports
from tests.waiting import wait_for_engine, wait_until

CLONE_NEWNET = 0x40000000
CHUNK = 16384
CHALLENGE = {"WWW-Authenticate": 'Basic realm="a registry of the tests"'}
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
OUTSIDE = "10.99.99.1"
"""An address of the engine's network that is not the loopback's, which engines trust without TLS."""


@dataclass
class Fault:
    """What goes wrong with the requests whose path matches.

    Attributes
    ----------
    path : str
        A regular expression, looked for in the path.
    status : int
        What to answer, 0 to answer as the registry does.
    body : bytes
        With that status.
    headers : dict of str to str
        With that status.
    after : int
        Bytes of the body after which `then` happens.
    then : str
        "cut" ends the connection, "stall" sends no more until `go_on` is set. A HEAD, which has no body, stalls
        before it is answered.
    pause : float
        Seconds before each 16 KiB of the body.
    times : int
        How often it happens; -1 is always.
    until : callable
        What must hold before a status is answered.
    happened : threading.Event
        Set once it did.
    """

    path: str
    status: int = 0
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0
    then: str = ""
    pause: float = 0.0
    times: int = -1
    until: Callable[[], bool] = lambda: True
    happened: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


def refused(path: str, status: int, code: str, message: str, **headers: str) -> Fault:
    """Return the fault of a registry that refuses, in the words of the registry API."""
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return Fault(path, status=status, body=body, headers=headers)


class Proxy:
    """Passes requests on to a registry, unless a fault stands against it.

    Attributes
    ----------
    faults : list of Fault
        The first that matches is what happens.
    asked : list of (str, str, str)
        Method, path and Authorization header of all requests.
    address : str
        Host and port.
    login : str
        The Authorization header it wants to see; "" for none.
    """

    login = ""

    def __init__(self, registry_port: int) -> None:
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str, str]] = []
        self._registry_port = registry_port
        self._servers: list[http.server.ThreadingHTTPServer] = []
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._handler: type[http.server.BaseHTTPRequestHandler] = handler
        here = socket.create_server(("127.0.0.1", 0))
        self.port: int = here.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.serve(here)

    def serve(self, listener: socket.socket) -> None:
        """Listen at one more socket."""
        server = http.server.ThreadingHTTPServer(("", 0), self._handler, bind_and_activate=False)
        server.socket.close()
        server.socket, server.daemon_threads = listener, True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._servers.append(server)

    def close(self) -> None:
        """Listen no more."""
        self.heal()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def heal(self) -> None:
        """Let nothing go wrong any more, and forget what was asked."""
        for fault in self.faults:
            fault.go_on.set()
        self.faults.clear()
        self.asked.clear()
        self.login = ""

    def next_fault(self, path: str) -> Fault | None:
        """Return what goes wrong with this request."""
        for fault in self.faults:
            if fault.times and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection to the registry."""
        return http.client.HTTPConnection("127.0.0.1", self._registry_port, timeout=30)


class _Handler(http.server.BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        proxy = self.proxy
        proxy.asked.append((self.command, self.path, self.headers.get("Authorization", "")))
        fault = proxy.next_fault(self.path)
        if proxy.login and self.headers.get("Authorization") != proxy.login:
            fault = refused("", 401, "UNAUTHORIZED", "authentication required", **CHALLENGE)
        if fault is not None and fault.status:
            wait_until(fault.until, what="what a fault waits for")
            self._answer(fault.status, {**fault.headers, "Content-Length": str(len(fault.body))})
            if self.command != "HEAD":
                self.wfile.write(fault.body)
            fault.happened.set()
            return
        if fault is not None and fault.then == "stall" and self.command == "HEAD":
            fault.happened.set()
            fault.go_on.wait()
        with contextlib.closing(proxy.connect()) as connection:
            wanted = {"Accept": ", ".join(self.headers.get_all("Accept") or ["*/*"])}
            if "Range" in self.headers:
                wanted["Range"] = self.headers["Range"]
            connection.request(self.command, self.path, headers=wanted)
            answer = connection.getresponse()
            kept = ("transfer-encoding", "connection", "date", "server")
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in kept}
            self._answer(answer.status, headers)
            if self.command != "HEAD":
                self._pass_on(answer, fault)

    do_HEAD = do_GET  # noqa: N815  # the name is the base class's

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _pass_on(self, answer: http.client.HTTPResponse, fault: Fault | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while chunk := answer.read(CHUNK):
                if fault is not None:
                    time.sleep(fault.pause)
                    if fault.then and passed >= fault.after:
                        self.wfile.flush()
                        fault.happened.set()
                        if fault.then == "cut":
                            self.close_connection = True
                            self.connection.shutdown(socket.SHUT_RDWR)
                            return
                        fault.go_on.wait()
                self.wfile.write(chunk)
                passed += len(chunk)

    def log_message(self, *words: object) -> None:
        pass


def in_network_of(pid: int, make: Callable[[], socket.socket]) -> socket.socket:
    """Return a socket that was made in a process's network: a socket stays in that it was made in."""
    made: list[socket.socket] = []

    def enter_and_make() -> None:
        with Path(f"/proc/{pid}/ns/net").open() as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        made.append(make())

    thread = threading.Thread(target=enter_and_make)
    thread.start()
    thread.join()
    return made[0]


@contextlib.contextmanager
def running_registry(folder: Path) -> Iterator[int]:
    """Run Debian's registry; give its port on the loopback."""
    (port,) = free_ports(1)
    settings = folder / "registry.yml"
    settings.write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "error"},
                "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
                "http": {"addr": f"127.0.0.1:{port}", "secret": "of a test"},
            }
        )
    )
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(settings)], stdout=log, stderr=log
        )
    try:
        wait_until(lambda: process.poll() is not None or _listens(port), what="docker-registry")
        assert process.poll() is None, (folder / "registry.log").read_text()
        yield port
    finally:
        process.terminate()
        process.wait(60)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class MirroredEngine:
    """A second engine, whose only way out is a proxy.

    Attributes
    ----------
    endpoint : str
        Where it answers.
    pid : int
        Its process, whose network is its own.
    """

    def __init__(self, folder: Path, mirror: str) -> None:
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        self._folder = folder
        self.endpoint = f"unix://{folder}/docker.sock"
        (folder / "daemon.json").write_text(json.dumps({"registry-mirrors": [f"http://{mirror}"]}))
        dockerd = [
            *("dockerd", "--config-file", str(folder / "daemon.json"), "--host", self.endpoint),
            *("--pidfile", str(folder / "pid"), "--data-root", str(folder / "data")),
            *("--exec-root", str(folder / "exec")),
            *("--bridge=none", "--iptables=false", "--ip-forward=false"),
        ]
        set_up = f'ip link set lo up; ip address add {OUTSIDE}/32 dev lo; exec "$@"'
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            # In a network of its own, as it would remove the first engine's bridge.
            ["unshare", "--net", "sh", "-c", set_up, "sh", *dockerd],
            env={**os.environ, "PATH": path},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.pid = self.process.pid
        wait_for_engine(self.process, folder / "docker.sock")
        assert self.process.poll() is None, (folder / "log").read_text()[-2000:]

    def log(self) -> str:
        """Return what it has written."""
        return (self._folder / "log").read_text()

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)
        self._log.close()


def can_run_a_second_engine() -> bool:
    """Whether this user, on this machine, can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    tools = ("dockerd", "unshare", "ip", "docker-registry")
    return os.getuid() == 0 and all(shutil.which(tool, path=path) for tool in tools)


def push_layers(
    client: docker.DockerClient, registry_port: int, name: str, sizes: Sequence[int]
) -> list[str]:
    """Put an image of random layers into the registry; return the digests of its layers, compressed.

    Parameters
    ----------
    client : DockerClient
        Of an engine that reaches the registry.
    name : str
        Repository and tag.
    sizes : sequence of int
        Bytes of each layer.
    """
    context = io.BytesIO()
    lines = ["FROM scratch", f"LABEL of={secrets.token_hex(8)}"]
    with tarfile.open(fileobj=context, mode="w") as archive:
        for i, size in enumerate(sizes):
            entry = tarfile.TarInfo(f"layer{i}")
            entry.size = size
            archive.addfile(entry, io.BytesIO(os.urandom(size)))
            lines.append(f"ADD layer{i} /")
        dockerfile = "\n".join(lines).encode()
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile)
        archive.addfile(entry, io.BytesIO(dockerfile))
    context.seek(0)
    reference = f"127.0.0.1:{registry_port}/{name}"
    client.images.build(fileobj=context, custom_context=True, tag=reference, rm=True)
    push(client, reference)
    client.images.remove(reference)
    return [layer["digest"] for layer in _manifest(registry_port, name)[0]["layers"]]


def push_for_another_machine(client: docker.DockerClient, registry_port: int, name: str) -> None:
    """Put an image into the registry that has a build for an ARM machine only."""
    repository = name.rpartition(":")[0]
    push_layers(client, registry_port, f"{repository}:build", [10])
    digest, size = _manifest(registry_port, f"{repository}:build")[1:]
    build = {
        "mediaType": MANIFEST,
        "digest": digest,
        "size": size,
        "platform": {"architecture": "arm64", "os": "linux"},
    }
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [build]}
    connection = http.client.HTTPConnection("127.0.0.1", registry_port)
    path = f"/v2/{repository}/manifests/{name.rpartition(':')[2]}"
    with contextlib.closing(connection):
        connection.request("PUT", path, json.dumps(index), {"Content-Type": INDEX})
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()


def push(client: docker.DockerClient, reference: str) -> None:
    """Push what the engine has under that reference."""
    for event in client.images.push(reference, stream=True, decode=True):
        assert "error" not in event, event


def _manifest(registry_port: int, name: str) -> tuple[dict[str, Any], str, int]:
    """Return an image's manifest, its digest, and its size in bytes."""
    repository, _, tag = name.rpartition(":")
    connection = http.client.HTTPConnection("127.0.0.1", registry_port)
    with contextlib.closing(connection):
        connection.request("GET", f"/v2/{repository}/manifests/{tag}", headers={"Accept": MANIFEST})
        answer = connection.getresponse()
        body = answer.read()
    return json.loads(body), answer.headers["Docker-Content-Digest"], len(body)


def own_certificate(folder: Path, address: str) -> ssl.SSLContext:
    """Return the settings of a server whose certificate nobody has signed."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=registry", "-addext", f"subjectAltName=IP:{address}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
