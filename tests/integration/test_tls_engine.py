"""The engine behind TLS, as one on another machine of the company is: with a certificate of the company's own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest

from dockml_magic.engine import DockerEngine, Engine
from dockml_magic.errors import EngineError
from tests.integration.registry import own_certificate


@contextlib.contextmanager
def behind_tls(socket_path: str, folder: Path) -> Iterator[int]:
    """Pass connections with TLS on to a socket; give the port of 127.0.0.1."""
    context = own_certificate(folder, "127.0.0.1")
    ports: list[int] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(socket_path)
        try:
            await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))
        finally:
            there[1].close()
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        ports.append(server.sockets[0].getsockname()[1])
        listens.set()
        await asyncio.to_thread(ends.wait)
        server.close()

    listens, ends = threading.Event(), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert listens.wait(60)
        yield ports[0]
    finally:
        ends.set()
        thread.join(10)


def test_an_engine_has_its_own_authority_whatever_the_one_for_the_web_is(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket_path = engine.facts.endpoint.removeprefix("unix://")
    with behind_tls(socket_path, tmp_path) as port:
        client = tmp_path / "client"
        client.mkdir()
        for name, of in (("ca", "certificate"), ("cert", "certificate"), ("key", "key")):
            shutil.copy(tmp_path / f"{of}.pem", client / f"{name}.pem")
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(client))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
        its = DockerEngine()
        assert its.facts.version == engine.facts.version
        its._client.close()

        shutil.copy(certifi.where(), client / "ca.pem")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "certificate.pem"))
        with pytest.raises(EngineError, match="is not one to trust: self-signed certificate"):
            DockerEngine()
