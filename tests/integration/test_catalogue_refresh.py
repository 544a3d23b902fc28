"""What a real registry tells of an image: Debian's `docker-registry`, on loopback, filled by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.catalogue.refresh import NotTold, ask, digest_of
from tests.ports import free_ports
from tests.waiting import wait_until

SETTINGS = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of a registry of this test's own."""
    program = shutil.which("docker-registry")
    assert program, "needs Debian's package: apt-get install docker-registry"
    (port,) = free_ports(1)
    settings = tmp_path / "registry.yml"
    settings.write_text(SETTINGS.format(folder=tmp_path / "images", port=port))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(settings)], stdout=log, stderr=log)
    try:
        wait_until(lambda: _answers(port), what="the registry")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/v2/", timeout=60).ok
    except requests.RequestException:
        return False


def push(registry: str, repository: str, tag: str, env: list[str]) -> str:
    """Put an image without layers there and return its digest."""
    url = f"http://{registry}/v2/{repository}"
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Env": env}}).encode()
    begun = requests.post(f"{url}/blobs/uploads/", timeout=60)
    begun.raise_for_status()
    where = begun.headers["Location"]
    where = where if where.startswith("http") else f"http://{registry}{where}"
    requests.put(
        where, params={"digest": digest_of(config)}, data=config, timeout=60
    ).raise_for_status()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "size": len(config), "digest": digest_of(config)},
            "layers": [],
        }
    ).encode()
    done = requests.put(
        f"{url}/manifests/{tag}", data=manifest, headers={"Content-Type": MANIFEST}, timeout=60
    )
    done.raise_for_status()
    return done.headers["Docker-Content-Digest"]


def test_a_registry_tells_digest_and_facts(registry: str) -> None:
    digest = push(registry, "team/tf", "1.10", ["PYTHON_VERSION=3.6.15", "CUDA_VERSION=9.0.176"])
    assert ask(f"{registry}/team/tf:1.10") == (digest, {"python": "3.6", "cuda": "9.0"})


def test_a_tag_that_is_not_there_is_told(registry: str) -> None:
    push(registry, "team/tf", "1.10", [])
    with pytest.raises(NotTold, match=r"no such tag: move it to suspect_tags\.csv"):
        ask(f"{registry}/team/tf:1.11")
