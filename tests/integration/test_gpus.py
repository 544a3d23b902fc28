"""The ways of a GPU request through a real engine, one whose NVIDIA part is a stand-in.

An engine gives GPUs where it finds ``nvidia-container-runtime-hook`` as it starts, or where it has a runtime
called ``nvidia``. So these tests start engines of their own: one with a hook that only notes that it was
called, one with a runtime that is runc and notes the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockml_magic import planning
from dockml_magic.engine import DockerEngine, connect
from dockml_magic.environment import Environment
from dockml_magic.errors import GpuUnavailableError
from dockml_magic.fit import Gpu
from dockml_magic.gpu import HostGpus
from dockml_magic.options import RunOptions
from tests.integration.conftest import Image, StartKernel
from tests.machine.newer_docker import newer_dockerd
from tests.waiting import wait_for_engine

GPU_IMAGE = "tensorflow/tensorflow:1.10.0-gpu-py3"
"""What `tf1.10-gpu` stands for; here another image is called so."""

HOOK = """#!/bin/sh
cat > /dev/null
echo "$@" >> "{calls}"
"""

RUNTIME = """#!/bin/sh
echo "$@" >> "{calls}"
exec {runc} "$@"
"""

FIRST_WITH_CDI = 25
"""The Docker whose engine reads CDI files where that is switched on."""

CDI = """
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- {name: "0", containerEdits: {env: ["GPU_0=0"]}}
- {name: "1", containerEdits: {env: ["GPU_1=1"]}}
- {name: all, containerEdits: {env: ["GPU_ALL=all"]}}
"""

GPUS = (
    Gpu(name="Tesla V100-SXM2-16GB", index=0, uuid="GPU-1", memory_free=1),
    Gpu(name="Tesla V100-SXM2-16GB", index=1, uuid="GPU-2", memory_free=2),
)

VISIBLE = "import os; os.environ.get('NVIDIA_VISIBLE_DEVICES')"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for the other engines, with a short path."""
    with tempfile.TemporaryDirectory(prefix="dk-engine-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def calls(folder: Path) -> Path:
    """The file in which the stand-ins note their calls."""
    return folder / "calls"


@pytest.fixture(scope="module")
def hook_engine(folder: Path, calls: Path, engine: DockerEngine, image: Image) -> Iterator[str]:
    """Start an engine that finds a hook, and so believes that it can give GPUs; give its endpoint."""
    _write_program(folder / "bin" / "nvidia-container-runtime-hook", HOOK.format(calls=calls))
    with _another_engine(folder / "hook", f"{folder}/bin") as endpoint:
        _copy_image(engine, connect(endpoint), image("dockml/ipykernel:7"))
        yield endpoint


@pytest.fixture(scope="module")
def runtime_engine(folder: Path, calls: Path, engine: DockerEngine, image: Image) -> Iterator[str]:
    """Start an engine that has a runtime called nvidia, and no hook; give its endpoint."""
    if shutil.which("nvidia-container-runtime-hook"):
        pytest.skip("the hook of this machine would be found")
    runtime = folder / "nvidia-container-runtime"
    _write_program(runtime, RUNTIME.format(calls=calls, runc=shutil.which("runc", path=_path())))
    options = ("--add-runtime", f"nvidia={runtime}")
    with _another_engine(folder / "runtime", "", *options) as endpoint:
        _copy_image(engine, connect(endpoint), image("dockml/ipykernel:7"))
        yield endpoint


@pytest.fixture(scope="module")
def cdi_engine(
    folder: Path, engine: DockerEngine, image: Image, lasting_cache: Path
) -> Iterator[str]:
    """Start an engine that finds a CDI file of NVIDIA's kind; give its endpoint."""
    specs = folder / "cdi-specs"
    specs.mkdir()
    (specs / "nvidia.yaml").write_text(CDI)
    settings = folder / "cdi.json"
    settings.write_text(json.dumps({"features": {"cdi": True}, "cdi-spec-dirs": [str(specs)]}))
    is_new = int(engine.facts.version.partition(".")[0]) >= FIRST_WITH_CDI
    dockerd = None if is_new else newer_dockerd(lasting_cache)
    options = ("--config-file", str(settings))
    with _another_engine(folder / "cdi", "", *options, dockerd=dockerd) as endpoint:
        _copy_image(engine, connect(endpoint), image("dockml/ipykernel:7"))
        yield endpoint


def _write_program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def _path(first: str = "") -> str:
    return f"{first}:{os.environ['PATH']}:/usr/sbin:/sbin".lstrip(":")


@contextlib.contextmanager
def _another_engine(
    folder: Path, first_on_path: str, *options: str, dockerd: Path | None = None
) -> Iterator[str]:
    path = _path(first_on_path)
    program = dockerd or shutil.which("dockerd", path=path)
    unshare = shutil.which("unshare")
    if os.getuid() != 0 or program is None or unshare is None:
        pytest.skip("only root can start a second engine, with dockerd and unshare installed")
    folder.mkdir()
    endpoint = f"unix://{folder}/docker.sock"
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [
            # In a network of its own, as it would remove the first engine's bridge.
            *(unshare, "--net", program, "--host", endpoint, "--pidfile", str(folder / "pid")),
            *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
            *("--bridge=none", "--iptables=false", "--ip-forward=false", *options),
        ],
        env={**os.environ, "PATH": path},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for_engine(process, folder / "docker.sock")
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        yield endpoint
    finally:
        process.terminate()
        process.wait(90)
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
    start: StartKernel, hook_engine: str, calls: Path, gpus: str, visible: str
) -> None:
    calls.unlink(missing_ok=True)
    kernel = start(GPU_IMAGE, "--engine", hook_engine, "--network", "none", "--gpus", gpus)
    assert calls.read_text().split() == ["prestart"]
    assert kernel.ok(VISIBLE).result == visible


@pytest.mark.parametrize(
    ("gpus", "visible"),
    [("all", "'all'"), ("2", "'0,1'"), ("device=0,1", "'0,1'")],
)
def test_a_gpu_request_goes_through_the_nvidia_runtime_where_there_is_no_hook(
    start: StartKernel, runtime_engine: str, calls: Path, gpus: str, visible: str
) -> None:
    calls.unlink(missing_ok=True)
    kernel = start(GPU_IMAGE, "--engine", runtime_engine, "--network", "none", "--gpus", gpus)
    assert "create" in calls.read_text().split()
    assert kernel.ok(VISIBLE).result == visible


def test_a_container_without_gpus_does_not_go_through_the_nvidia_runtime(
    start: StartKernel, runtime_engine: str, calls: Path
) -> None:
    calls.unlink(missing_ok=True)
    start(GPU_IMAGE, "--engine", runtime_engine, "--network", "none").ok("1")
    # That of the test before this one may still be cleared away, which is "delete".
    assert not calls.exists() or "create" not in calls.read_text().split()


@pytest.mark.parametrize(
    ("gpus", "given"),
    [("all", "['GPU_ALL']"), ("2", "['GPU_0', 'GPU_1']"), ("device=1", "['GPU_1']")],
)
def test_a_gpu_request_goes_through_cdi_where_the_engine_has_it(
    start: StartKernel, cdi_engine: str, gpus: str, given: str
) -> None:
    kernel = start(GPU_IMAGE, "--engine", cdi_engine, "--network", "none", "--gpus", gpus)
    seen = kernel.ok("import os; sorted(name for name in os.environ if name.startswith('GPU_'))")
    assert seen.result == given


def test_a_gpu_that_cdi_does_not_know_is_told(start: StartKernel, cdi_engine: str) -> None:
    with pytest.raises(GpuUnavailableError, match="does not know the GPU by CDI") as caught:
        start(GPU_IMAGE, "--engine", cdi_engine, "--network", "none", "--gpus", "device=7")
    assert "nvidia-ctk cdi" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "visible"),
    [((), "'all'"), (("--gpus", "none"), ""), (("--gpus", "auto"), "'GPU-2'")],
)
def test_a_gpu_name_asks_for_all_gpus_unless_told_otherwise(
    start: StartKernel,
    hook_engine: str,
    options: tuple[str, ...],
    visible: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "find_gpus", lambda: HostGpus(gpus=GPUS, driver="550.54.14"))
    kernel = start("tf1.10-gpu", "--engine", hook_engine, "--network", "none", *options)
    assert kernel.ok(VISIBLE).result == visible


def test_an_environment_chooses_once_and_says_so_once(
    workspace: Path, hook_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []
    told: list[str] = []

    def find_gpus() -> HostGpus:
        """Show the other one free at every second look."""
        asked.append(None)
        return HostGpus(gpus=GPUS if len(asked) == 1 else GPUS[:1], driver="550.54.14")

    monkeypatch.setattr(planning, "find_gpus", find_gpus)
    options = RunOptions(engine=hook_engine, network="none", gpus="auto")
    environment = Environment("tf1.10-gpu", options, workspace, told.append).start()
    try:
        assert environment.run(VISIBLE).text == "'GPU-2'"
        assert [line for line in told if "GPU" in line] == [
            "--gpus auto: GPU 1 (Tesla V100-SXM2-16GB), 0.0 GB free"
        ]
    finally:
        environment.stop()
