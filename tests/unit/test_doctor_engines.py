"""The doctor before engines of all kinds: stand-ins that speak Docker's API over a socket, or do not."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import docker
import pytest

from dockml_magic import doctor
from dockml_magic.diagnosis import Finding
from dockml_magic.doctor import CHECKS, examine
from tests.unit.test_engine import REAL_INIT

VERSION = {"Version": "28.2.2", "ApiVersion": "1.50", "MinAPIVersion": "1.24", "Arch": "amd64"}
INFO = {"OperatingSystem": "Debian GNU/Linux 12", "SecurityOptions": [], "Name": "box"}

StandIn = Callable[[Any, Any], Path]


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def stand_in(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Give a function that starts a server with these answers to /version and /info; gives its socket."""
    monkeypatch.setattr(docker.APIClient, "__init__", REAL_INIT)
    monkeypatch.setattr(doctor, "_ENGINE_TIMEOUT", 60.0)
    monkeypatch.setattr("dockml_magic.engine.pings._PING", 60.0)
    servers = []

    def start(version: Any = VERSION, info: Any = INFO) -> Path:
        answers = {"version": version, "info": info}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(answers[self.path.rpartition("/")[2]]).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        path = short_folder / "docker.sock"
        server = Server(str(path), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return path

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def seen(path: Path, *names: str) -> list[Finding]:
    """Return what the checks of these names, after the engine's, say of the engine at a socket."""
    checks = [check for check in CHECKS if check.name in ("engine", *names)]
    return examine(f"unix://{path}", checks=checks, patience=60.0).findings


def test_docker_is_named(stand_in: StandIn) -> None:
    found = seen(path := stand_in())[0]
    assert found.status == "ok"
    assert found.message == f"Docker 28.2.2, API 1.50, answers at unix://{path} (--engine)"


def test_an_old_one_is_refused_with_what_is_needed(stand_in: StandIn) -> None:
    (found,) = seen(stand_in({**VERSION, "Version": "19.03.5", "ApiVersion": "1.39"}))
    assert found.status == "fail"
    assert found.message == (
        "The Docker engine is too old: its API is 1.39, and 1.41 is the oldest that works."
    )
    assert "20.10" in found.hint


def test_podman_is_named_as_podman(stand_in: StandIn) -> None:
    version = {
        "Version": "4.3.1",
        "ApiVersion": "1.41",
        "Arch": "amd64",
        "Components": [{"Name": "Podman Engine", "Version": "4.3.1"}],
    }
    security = ["name=seccomp,profile=default", "name=rootless"]
    found = seen(stand_in(version, {**INFO, "SecurityOptions": security}))[0]
    assert found.status == "warn"
    assert found.message.startswith("podman 4.3.1, API 1.41")
    assert "rootless" in found.message


def test_docker_desktop_is_named_as_what_it_is(stand_in: StandIn) -> None:
    info = {**INFO, "OperatingSystem": "Docker Desktop", "Name": "docker-desktop"}
    engine, shares, gpu = seen(stand_in(VERSION, info), "GPU")
    assert engine.message.startswith("Docker Desktop 28.2.2")
    assert shares.status == "warn"
    assert "the notebook's folder is not mounted" in shares.message
    assert gpu.status == "not checked"


def test_the_engines_own_proxy_and_mirrors_are_seen(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ask_registry", lambda url: "" if "docker.io" in url else "gone.")
    info = {
        **INFO,
        "HttpsProxy": "http://ada:hunter2@proxy:3128",
        "RegistryConfig": {"Mirrors": ["https://mirror.example.com/"]},
    }
    *_, mirror, hub = seen(stand_in(VERSION, info), "registry")
    assert "mirror.example.com" in mirror.message
    assert hub.message == (
        "Docker Hub answers this machine. The engine's own proxy is http://***@proxy:3128."
    )


def test_what_an_engine_says_does_not_steer_the_terminal(stand_in: StandIn) -> None:
    found = seen(stand_in({**VERSION, "Version": "28\x1b]0;title\x07\r\u202e"}))[0]
    assert found.message.startswith(r"Docker 28\x1b]0;title\x07\r\u202e, API")


def serve(path: Path, answer: Callable[[socket.socket], None]) -> socket.socket:
    """Listen at a path, and let a function answer each connection."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                answer(connection)

    threading.Thread(target=accept, daemon=True).start()
    return server


def test_one_that_accepts_and_never_answers_is_a_fail_and_no_hang(
    short_folder: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ENGINE_TIMEOUT", 0.3)
    path, ended = short_folder / "silent.sock", threading.Event()
    with serve(path, lambda connection: (ended.wait(60), None)[1]):
        found, rights = seen(path, "rights")
        ended.set()
    assert found.status == "fail"
    assert "takes requests and does not answer them" in found.message
    assert rights.status == "not checked"


def test_one_that_answers_a_byte_at_a_time_is_a_fail_and_no_hang(
    short_folder: Path, stand_in: StandIn
) -> None:
    path, ended = short_folder / "slow.sock", threading.Event()

    def dribble(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # who asked has gone
            while not ended.wait(0.05):
                connection.sendall(b"H")

    checks = [check for check in CHECKS if check.name in ("engine", "rights")]
    with serve(path, dribble):
        report = examine(f"unix://{path}", checks=checks, patience=1.0)
        ended.set()
    assert [f.status for f in report.findings] == ["fail", "not checked"]
    assert report.findings[0].message == "No answer within 1 s."


def test_one_that_speaks_another_language_is_a_fail(short_folder: Path, stand_in: StandIn) -> None:
    path = short_folder / "odd.sock"
    with serve(path, lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")):
        (found,) = seen(path)
    assert found.status == "fail"
    assert f"does not answer at unix://{path}" in found.message


@pytest.mark.parametrize("answer", ["?", [], {}, {"ApiVersion": "one", "Version": 1}], ids=str)
def test_one_whose_answers_make_no_sense_is_a_line(stand_in: StandIn, answer: Any) -> None:
    (found,) = seen(stand_in(answer, answer))
    assert found.status == "fail"
    assert "Traceback" not in found.message
