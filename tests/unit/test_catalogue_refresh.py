"""How the catalogue is compared with registries; with one of Debian's in `tests/integration`."""

from __future__ import annotations

import csv
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dockml_magic import catalogue
from tests.catalogue.refresh import (
    FILE,
    NotTold,
    Place,
    as_text,
    ask,
    digest_of,
    facts_of,
    main,
    place_of,
    refreshed,
)

HUB = "https://registry-1.docker.io"
CONFIG = {
    "config": {
        "Env": ["PATH=/bin", "PYTHON_VERSION=3.6.15", "CUDA_VERSION=10.0.130", "NV_CUDNN_VERSION=7.6.5.32-1"],
        "Labels": {
            "org.opencontainers.image.ref.name": "ubuntu",
            "org.opencontainers.image.version": "18.04",
        },
    }
}  # fmt: skip


@pytest.mark.parametrize(
    ("reference", "place"),
    [
        ("python:3.9-slim", Place(HUB, "library/python", "3.9-slim")),
        ("tensorflow/tensorflow:1.10.0", Place(HUB, "tensorflow/tensorflow", "1.10.0")),
        ("nvcr.io/nvidia/jax:25.10-py3", Place("https://nvcr.io", "nvidia/jax", "25.10-py3")),
        ("localhost:5000/a/b:1", Place("http://localhost:5000", "a/b", "1")),
    ],
)
def test_an_image_is_asked_for_where_the_engine_would(reference: str, place: Place) -> None:
    assert place_of(reference) == place


def test_a_configuration_tells_its_facts() -> None:
    assert facts_of(CONFIG) == {
        "python": "3.6",
        "cuda": "10.0",
        "cudnn": "7.6",
        "base_os": "ubuntu18.04",
    }
    history = [{"created_by": "/bin/sh -c conda install -y python=3.7 numpy"}]
    assert facts_of({"history": history}) == {"python": "3.7"}
    assert facts_of({"config": {"Labels": {"com.nvidia.cudnn.version": "7.4.1.5"}}}) == {
        "cudnn": "7.4"
    }
    assert facts_of({}) == {}


def test_a_row_takes_over_what_was_told() -> None:
    row = next(row for row in catalogue.rows() if row["unsure"] == "python cuda cudnn")
    digest = "sha256:" + "0" * 64
    new = refreshed({**row, "sure": "derived"}, digest, {"python": "3.12"}, "2026-11-25")
    assert (new["python"], new["unsure"], new["sure"]) == ("3.12", "cuda cudnn", "seen")
    assert (new["digest"], new["source"]) == (digest, f"{row['source']}; registry 2026-11-25")
    assert catalogue.problems(new) == []
    again = refreshed(new, digest, {}, "2026-11-26")
    assert again["source"] == f"{row['source']}; registry 2026-11-26"


def test_the_file_is_written_as_it_is_read() -> None:
    assert as_text(catalogue.rows()) == FILE.read_text(encoding="utf-8")


class Server:
    """A registry that wants a token, which it gives to anybody."""

    def __init__(self) -> None:
        config = json.dumps(CONFIG).encode()
        build = json.dumps({"config": {"digest": digest_of(config)}}).encode()
        self.digest = digest_of(build)
        builds = [("arm64", "sha256:0"), ("amd64", self.digest)]
        index = {
            "manifests": [
                {"digest": digest, "platform": {"os": "linux", "architecture": architecture}}
                for architecture, digest in builds
            ]
        }
        answers = {
            "manifests/1": json.dumps(index).encode(),
            "manifests/arm": json.dumps({"manifests": index["manifests"][:1]}).encode(),
            "manifests/page": b"<html>",
            f"manifests/{self.digest}": build,
            f"blobs/{digest_of(config)}": config,
        }

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                what = self.path.removeprefix("/v2/a/b/")
                if self.path.startswith("/token?service=s&scope="):
                    self.answer(200, b'{"token": "t"}')
                elif self.headers.get("Authorization") != "Bearer t":
                    realm = (
                        f'Bearer realm="http://{self.headers["Host"]}/token",service="s",scope="x"'
                    )
                    self.answer(401, b"", realm)
                elif what in answers:
                    self.answer(200, answers[what])
                else:
                    self.answer(429 if what == "manifests/busy" else 404, b"")

            def answer(self, status: int, body: bytes, challenge: str = "") -> None:
                self.send_response(status)
                self.send_header("WWW-Authenticate", challenge)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.image = f"127.0.0.1:{self.http.server_port}/a/b"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def test_a_token_is_fetched_and_the_build_for_this_architecture_taken(server: Server) -> None:
    digest, facts = ask(f"{server.image}:1")
    assert digest == server.digest
    assert facts["cuda"] == "10.0"


@pytest.mark.parametrize(
    ("tag", "why"),
    [
        ("none", "there is no such tag"),
        ("busy", "refuses: 429"),
        ("arm", "no build for linux/amd64"),
        ("page", "is a proxy between"),
    ],
)
def test_what_is_not_told_is_said(server: Server, tag: str, why: str) -> None:
    with pytest.raises(NotTold, match=why):
        ask(f"{server.image}:{tag}")


def test_a_registry_that_is_not_there_is_said() -> None:
    with pytest.raises(NotTold, match="does not answer"):
        ask("127.0.0.1:9/a/b:1")


def test_a_file_is_refreshed(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for row in catalogue.rows() if row["name"] in ("tf1.10", "tf1.4-gpu")]
    rows[0] |= {"name": "one", "reference": f"{server.image}:1"}
    rows[1] |= {"name": "two", "reference": f"{server.image}:none"}
    file = tmp_path / "images.csv"
    file.write_text(as_text(rows))
    assert main(["one", "two"], file) == 1
    assert file.read_text() == as_text(rows)
    out = capsys.readouterr().out
    assert f"  digest: nothing -> {server.digest}" in out
    assert "  not told: there is no such tag" in out
    assert main(["one", "--write"], file) == 0
    new = list(csv.DictReader(file.read_text().splitlines()))
    assert (new[0]["digest"], new[1]) == (server.digest, rows[1])
    with pytest.raises(SystemExit):
        main(["three"], file)
