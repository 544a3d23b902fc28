from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from dockml_magic.pull import split_reference
from dockml_magic.registry import Layer, Registry, is_loopback

DIGEST = "sha256:" + "c" * 64
MANIFEST = {
    "config": {"digest": DIGEST},
    "layers": [
        {"digest": "sha256:" + "a" * 64, "size": 100},
        {"digest": "sha256:" + "b" * 64, "size": 200},
    ],
}
LAYERS = [
    Layer(id="a" * 12, size=100, diff_id="sha256:1"),
    Layer(id="b" * 12, size=200, diff_id="sha256:2"),
]


class Server:
    """A registry that answers what a test puts into it.

    Attributes
    ----------
    answers : dict of str to object
        Path below `/v2/team/image/` to what is answered, as JSON.
    headers : dict of str to str
        Of all answers.
    challenge : str
        What it asks who does not log in.
    wanted : str
        The Authorization header that it accepts.
    asked : list of (str, str)
        Method and path of what was asked, with the login accepted.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "manifests/1": MANIFEST,
            f"blobs/{DIGEST}": {"rootfs": {"diff_ids": ["sha256:1", "sha256:2"]}},
            "tags/list": {"tags": ["1", "2"]},
        }
        self.headers: dict[str, str] = {}
        self.challenge = self.wanted = ""
        self.asked: list[tuple[str, str]] = []
        self.tokens: list[tuple[dict[str, list[str]], str]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url, login = urlsplit(self.path), self.headers.get("Authorization", "")
                if url.path == "/token":
                    outer.tokens.append((parse_qs(url.query), login))
                    self.answer(200, {"token": "the-token"})
                elif outer.wanted not in ("", login):
                    self.answer(401, {}, {"WWW-Authenticate": outer.challenge})
                else:
                    what = url.path.removeprefix("/v2/team/image/")
                    outer.asked.append((self.command, what))
                    found = outer.answers.get(what)
                    self.answer(404 if found is None else 200, found, outer.headers)

            do_HEAD = do_GET  # noqa: N815  # the name is the base class's

            def answer(self, status: int, body: object, headers: Mapping[str, str] = {}) -> None:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, *words: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def registry(self, **more: Any) -> Registry:
        return Registry(name=split_reference(f"{self.address}/team/image:1"), **more)

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def test_the_layers_come_with_size_and_content(server: Server) -> None:
    assert server.registry().layers("amd64") == LAYERS


def test_of_several_builds_the_engines_is_taken(server: Server) -> None:
    def build(machine: str, digest: str) -> dict[str, Any]:
        return {"digest": digest, "platform": {"os": "linux", "architecture": machine}}

    server.answers["manifests/sha256:0123"] = server.answers.pop("manifests/1")
    server.answers["manifests/1"] = {
        "manifests": [build("arm64", "sha256:4567"), build("amd64", "sha256:0123")]
    }
    assert server.registry().layers("amd64") == LAYERS
    assert server.registry().layers("riscv64") == []


def test_without_the_config_the_sizes_are_known(server: Server) -> None:
    del server.answers[f"blobs/{DIGEST}"]
    assert [(x.size, x.diff_id) for x in server.registry().layers("amd64")] == [
        (100, ""),
        (200, ""),
    ]


@pytest.mark.parametrize(("left", "is_read"), [("19;w=21600", False), ("20;w=21600", True)])
def test_the_last_pulls_that_a_registry_allows_are_left_to_the_engine(
    server: Server, left: str, *, is_read: bool
) -> None:
    server.headers["ratelimit-remaining"] = left
    assert bool(server.registry().layers("amd64")) is is_read
    assert (("GET", "manifests/1") in server.asked) is is_read


def test_tags_are_listed(server: Server) -> None:
    assert server.registry().tags() == ["1", "2"]


@pytest.mark.parametrize("answer", [None, {}, {"tags": None}, [], "text", b"<html>"])
def test_what_cannot_be_understood_is_nothing(server: Server, answer: object) -> None:
    server.answers = {"tags/list": answer, "manifests/1": answer}
    assert server.registry().tags() == []
    assert server.registry().layers("amd64") == []


def test_a_registry_that_is_not_there_is_nothing() -> None:
    registry = Registry(name=split_reference("127.0.0.1:1/team/image:1"))
    assert registry.tags() == []
    assert registry.layers("amd64") == []


def test_mirrors_of_docker_hub_are_asked_first_and_get_no_login(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dockml_magic.registry._DOCKER_HUB", "http://127.0.0.1:1")
    name = split_reference("team/image:1")
    mirrors = ["http://127.0.0.1:1/", f"http://{server.address}/"]
    registry = Registry(name=name, mirrors=mirrors, login=("ada", "secret"))
    assert registry.layers("amd64") == LAYERS
    server.challenge, server.wanted = 'Basic realm="x"', "Basic never"
    assert registry.layers("amd64") == []


# --- logins ---------------------------------------------------------------------------------------

BASIC = "Basic " + base64.b64encode(b"ada:secret").decode()


def test_a_basic_login_is_given_when_asked_for(server: Server) -> None:
    server.challenge, server.wanted = 'Basic realm="x"', BASIC
    assert server.registry().layers("amd64") == []
    assert server.registry(login=("ada", "secret")).layers("amd64") == LAYERS


@pytest.mark.parametrize(("login", "sent"), [(None, ""), (("ada", "secret"), BASIC)])
def test_a_token_is_fetched_where_it_is_asked_for(
    server: Server, login: tuple[str, str] | None, sent: str
) -> None:
    realm = f"http://{server.address}/token"
    server.challenge = (
        f'Bearer realm="{realm}",service="registry",scope="repository:team/image:pull"'
    )
    server.wanted = "Bearer the-token"
    assert server.registry(login=login).layers("amd64") == LAYERS
    query = {"service": ["registry"], "scope": ["repository:team/image:pull"]}
    assert server.tokens[0] == (query, sent)


def test_a_login_is_not_shown(server: Server) -> None:
    assert "secret" not in repr(server.registry(login=("ada", "secret")))


@pytest.mark.parametrize(
    ("host", "is_here"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.1.2.3", True),
        ("[::1]:5000", True),
        ("registry.example.com:5000", False),
        ("10.0.0.1:5000", False),
    ],
)
def test_registries_on_this_machine_do_without_tls(host: str, *, is_here: bool) -> None:
    assert is_loopback(host) is is_here
