"""An index of packages, as pip asks for one: wheels that are made here, over HTTP or HTTPS."""

from __future__ import annotations

import base64
import http.server
import os
import ssl
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def write_package(folder: Path, name: str, version: str, *, needs: str = "") -> None:
    """Write a wheel of one module, whose `answer` is its version, below the folder of its name."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    about += f"Requires-Dist: {needs}\n" if needs else ""
    info = f"{name}-{version}.dist-info"
    path = folder / name / f"{name}-{version}-py2.py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"answer = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", about)
        tags = "Tag: py2-none-any\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n{tags}")
        wheel.writestr(f"{info}/RECORD", "")


class Index:
    """Serves a folder of packages on 127.0.0.1.

    Attributes
    ----------
    folder : Path
        With a folder for each package.
    asked : list of str
        Paths that were asked for.
    login : str
        "user:password" that a request must have; "" for none.
    on_request : callable
        Called before each answer.
    """

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.login = ""
        self.on_request = lambda: None
        handler: Any = type("Handler", (_Handler,), {"index": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # pip went away
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.scheme = "https" if tls else "http"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it is, with the login."""
        login = f"{self.login}@" if self.login else ""
        return f"{self.scheme}://{login}127.0.0.1:{self._server.server_address[1]}/"

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    index: Index

    def __init__(self, *words: Any, **keywords: Any) -> None:
        super().__init__(*words, directory=str(self.index.folder), **keywords)

    def do_GET(self) -> None:
        self.index.asked.append(self.path)
        self.index.on_request()
        wanted = base64.b64encode(self.index.login.encode()).decode()
        if self.index.login and self.headers.get("Authorization") != f"Basic {wanted}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="an index of the tests"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *words: object) -> None:
        pass


def use(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pip ask this index, and no other."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", index.url)


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """Serve a folder of packages as the only index."""
    index = Index(folder)
    use(index, monkeypatch)
    yield index
    index.close()
