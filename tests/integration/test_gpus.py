"""The way of a GPU request through a real engine, one whose NVIDIA part is a stand-in.

An engine gives GPUs where it finds ``nvidia-container-runtime-hook`` as it starts. So these tests
start one of their own, with a hook that only notes that it was called.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockml_magic import container as containers
from dockml_magic.engine import DockerEngine, connect
from dockml_magic.gpu import HostGpus
from tests.integration.conftest import Image, StartKernel
from tests.integration.waiting import wait_until

GPU_IMAGE = "tensorflow/tensorflow:1.10.0-gpu-py3"
"""What `tf1.10-gpu` stands for; here another image is called so."""

HOOK = """#!/bin/sh
cat > /dev/null
echo "$@" >> "{calls}"
"""

VISIBLE = "import os; os.environ.get('NVIDIA_VISIBLE_DEVICES')"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for the second engine, with a short path."""
    with tempfile.TemporaryDirectory(prefix="dk-engine-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def calls(folder: Path) -> Path:
    """The file in which the hook notes its calls."""
    return folder / "calls"


@pytest.fixture(scope="module")
def gpu_engine(folder: Path, calls: Path, engine: DockerEngine, image: Image) -> Iterator[str]:
    """Start an engine that believes that it can give GPUs; give its endpoint."""
    path = f"{folder}/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
    dockerd, unshare = shutil.which("dockerd", path=path), shutil.which("unshare")
    if os.getuid() != 0 or dockerd is None or unshare is None:
        pytest.skip("only root can start a second engine, with dockerd and unshare installed")
    hook = folder / "bin" / "nvidia-container-runtime-hook"
    hook.parent.mkdir()
    hook.write_text(HOOK.format(calls=calls))
    hook.chmod(0o755)
    endpoint = f"unix://{folder}/docker.sock"
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [
            # In a network of its own, as it would remove the first engine's bridge.
            *(unshare, "--net", dockerd, "--host", endpoint, "--pidfile", str(folder / "pid")),
            *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
            *("--bridge=none", "--iptables=false", "--ip-forward=false"),
        ],
        env={**os.environ, "PATH": path},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        is_up = (folder / "docker.sock").exists
        wait_until(lambda: process.poll() is not None or is_up(), what="a second engine")
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        _copy_image(engine, connect(endpoint), image("dockml/ipykernel:7"))
        yield endpoint
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def _copy_image(source: DockerEngine, target: DockerEngine, reference: str) -> None:
    archive = source._client.images.get(reference).save()
    [copied] = target._client.images.load(b"".join(archive))
    copied.tag(*GPU_IMAGE.rsplit(":", 1))


@pytest.mark.parametrize(
    ("gpus", "visible"),
    [("all", "'all'"), ("device=0", "'0'"), ("device=0,1", "'0,1'")],
)
def test_a_gpu_request_reaches_the_container(
    start: StartKernel, gpu_engine: str, calls: Path, gpus: str, visible: str
) -> None:
    calls.unlink(missing_ok=True)
    kernel = start(GPU_IMAGE, "--engine", gpu_engine, "--network", "none", "--gpus", gpus)
    assert calls.read_text().split() == ["prestart"]
    assert kernel.ok(VISIBLE).result == visible


@pytest.mark.parametrize(
    ("options", "visible"),
    [((), "'all'"), (("--gpus", "none"), "")],
)
def test_a_gpu_name_asks_for_all_gpus_unless_told_otherwise(
    start: StartKernel,
    gpu_engine: str,
    options: tuple[str, ...],
    visible: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(containers, "find_gpus", lambda: HostGpus(names=("a GPU", "another")))
    kernel = start("tf1.10-gpu", "--engine", gpu_engine, "--network", "none", *options)
    assert kernel.ok(VISIBLE).result == visible
