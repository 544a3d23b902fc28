"""What goes wrong on a real engine is said in two or three lines, and leaves nothing behind."""

from __future__ import annotations

import gc
import http.server
import json
import os
import re
import shutil
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dockml_magic import folders
from dockml_magic import start as start_environment
from dockml_magic.errors import (
    ConfigError,
    ContainerNameTakenError,
    DockmlError,
    EngineError,
    EngineTooOldError,
    EngineUnreachableError,
    GpuUnavailableError,
    ImageUnavailableError,
    KernelBundleError,
    KernelDiedError,
    KernelMissingError,
    MountError,
    PortTakenError,
    UnknownNameError,
)
from dockml_magic.gpu import find_gpus
from tests.integration.conftest import Image, RunAs, StartKernel

Fails = Callable[..., Any]

# Docker's SDK leaves a socket that it could not connect to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def own_garbage() -> Iterator[None]:
    """Collect a test's garbage while its filter of warnings is in force."""
    yield
    gc.collect()


@pytest.fixture
def fails(start: StartKernel) -> Fails:
    """Give a function that starts what cannot start, checks what every error promises, and returns it.

    ``fails(ERROR, NAME, *OPTIONS, says=PATTERN)``: the pattern is looked for in message and hint.
    """

    def fail(expected: type[DockmlError], name: str, *options: str, says: str, **more: Any) -> Any:
        with pytest.raises(expected) as caught:
            start(name, *options, **more)
        error = caught.value
        assert type(error) is expected
        assert re.search(says, f"{error.message}\n{error.hint}")
        check_lines(error)
        assert not list(folders.runtime_root().iterdir())
        return error

    return fail


def check_lines(error: DockmlError) -> None:
    """Two or three lines, the last of which says what to do."""
    assert error.message
    assert error.hint
    assert 2 <= len(f"{error.message}\n{error.hint}".splitlines()) <= 3


@pytest.fixture
def plain(image: Image) -> str:
    return image("dockml/ipykernel:7")


# --- names and images --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "nearest"), [("tf1.1O", "tf1.10"), ("pyton3.11", "python3.11")])
def test_an_unknown_name_gets_the_nearest_ones(fails: Fails, name: str, nearest: str) -> None:
    error = fails(UnknownNameError, name, says=f"'{nearest}'")
    assert nearest in error.suggestions


def test_an_image_that_cannot_be_pulled(fails: Fails) -> None:
    fails(
        ImageUnavailableError, "localhost:1/no/such:image", says="'localhost:1/no/such:image'.*\n.*"
    )


def test_an_image_that_may_not_be_pulled(fails: Fails) -> None:
    fails(ImageUnavailableError, "dockml/no-such:1", "--pull", "never", says="--pull is never")


def test_an_image_without_python_tells_what_was_tried(fails: Fails, image: Image) -> None:
    fails(KernelMissingError, image("dockml/nopython:1"), says="tried: python, python3, /opt/conda")


def test_a_bundle_that_cannot_be_downloaded(
    start: StartKernel, image: Image, own_bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(KernelBundleError, match="could not be downloaded") as caught:
        start(image("dockml/bare:3.11"))
    assert "ERROR: No matching distribution" in caught.value.message  # pip's own last words
    assert "https_proxy" in caught.value.hint
    assert [path.name for path in own_bundles.iterdir() if not path.name.endswith(".lock")] == []


# --- the engine --------------------------------------------------------------------------------------


def test_no_engine(fails: Fails, tmp_path: Path) -> None:
    socket_path = tmp_path / "docker.sock"
    fails(
        EngineUnreachableError,
        "python3.11",
        *("--engine", f"unix://{socket_path}"),
        says=f"{socket_path} does not exist.\n.*apt-get install docker.io",
    )


def test_an_engine_that_is_not_running(fails: Fails, own_folders: Path) -> None:
    socket_path = own_folders / "docker.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(socket_path))
    fails(
        EngineUnreachableError,
        "python3.11",
        *("--engine", f"unix://{socket_path}"),
        says="not running.*\n.*systemctl start docker",
    )


def test_an_unknown_context_gets_the_known_ones(fails: Fails) -> None:
    fails(EngineUnreachableError, "python3.11", "--engine", "nope", says="'nope'.\n.*'default'")


START_ANYTHING = """
from dockml_magic import start
from dockml_magic.errors import DockmlError
try:
    start("python3.11")
except DockmlError as error:
    print(type(error).__name__, error, sep="\\n")
"""


def test_a_user_without_permission_learns_how_to_get_it(run_as: RunAs) -> None:
    done = run_as(12345, START_ANYTHING, may_use_docker=False)
    kind, *lines = done.stdout.splitlines()
    assert kind == "EngineUnreachableError", done.stderr
    assert len(lines) == 3
    assert "no permission" in lines[0]
    assert "usermod -aG docker" in lines[1]
    assert "new login" in lines[2]


class _OldEngine(http.server.BaseHTTPRequestHandler):
    """Answers as an engine from years ago."""

    api = "1.30"

    def do_GET(self) -> None:
        body = json.dumps({"ApiVersion": self.api, "Version": "17.06.0", "MinAPIVersion": "1.12"})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture(params=["1.24", "1.40"])
def old_engine(request: pytest.FixtureRequest, own_folders: Path) -> Iterator[str]:
    path = own_folders / "old.sock"
    handler = type("Handler", (_OldEngine,), {"api": request.param})
    with socketserver.ThreadingUnixStreamServer(str(path), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"unix://{path}"
        server.shutdown()
        thread.join()


def test_an_engine_that_is_too_old(fails: Fails, old_engine: str) -> None:
    fails(EngineTooOldError, "python3.11", "--engine", old_engine, says="1.41.*\n.*20.10")


# --- the kernel ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["kernel", "supervise"])
def test_a_python_that_dies_at_the_start_shows_its_last_words(
    fails: Fails, plain: str, workspace: Path, who: str
) -> None:
    module = {"kernel": "sitecustomize.py", "supervise": "select.py"}[who]
    (workspace / module).write_text(
        "import os, sys\n"
        f"if {who!r} in open('/proc/self/cmdline').read().split('\\0'):\n"
        "    print('last words', file=sys.stderr, flush=True)\n"
        "    os._exit(3)\n"
    )
    error = fails(KernelDiedError, plain, "-e", f"PYTHONPATH={workspace}", says="exit code 3")
    assert error.exit_code == 3
    assert error.log_tail.splitlines()[-1] == "last words"


def test_a_kernel_that_needs_more_memory_to_start_names_the_limit(fails: Fails, plain: str) -> None:
    """It is told as killed for memory unless it was the launcher that had to go, perhaps before it said a word."""
    error = fails(KernelDiedError, plain, "--memory", "24m", says="24 MiB.*\n.*--memory")
    without_launcher = re.search(r"its container is gone|ended at once", error.message)
    assert error.out_of_memory or without_launcher


def test_a_kernel_that_is_killed_for_memory_names_the_limit(plain: str, workspace: Path) -> None:
    with start_environment(plain, "--memory", "150m") as environment:
        with pytest.raises(KernelDiedError, match=r"150 MiB.*\n.*--memory") as caught:
            environment.run("x = bytearray(10**9)")
        check_lines(caught.value)
        assert caught.value.out_of_memory


# --- options ----------------------------------------------------------------------------------------


def test_a_workspace_that_does_not_exist(fails: Fails, plain: str, workspace: Path) -> None:
    missing = workspace / "missing"
    fails(MountError, plain, says=f"'{missing}' does not exist", cwd=str(missing))


def test_a_volume_that_does_not_exist(fails: Fails, plain: str, workspace: Path) -> None:
    fails(MountError, plain, "-v", "./missing:/data", says=f"{workspace}/missing' does not exist")
    assert not (workspace / "missing").exists()


def test_a_port_that_is_taken(fails: Fails, plain: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        fails(PortTakenError, plain, "-p", f"{port}:8000", says=f"{port} is in use.*\n.*-p")


def test_a_name_that_is_taken(
    start: StartKernel, fails: Fails, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"dockml-test-{os.getpid()}"
    first = start(plain, "--name", name)
    with pytest.raises(ContainerNameTakenError, match=f"'{name}'.*\n.*--name") as caught:
        start(plain, "--name", name)
    check_lines(caught.value)
    assert first.ok("1 + 1").result == "2"


@pytest.mark.parametrize(
    "options",
    [
        ("--no-such-option",),
        ("--memory", "lots"),
        ("--cpus", "many"),
        ("--gpus", "some"),
        ("-p", "http"),
        ("-v", "/data"),
        ("-e", "=value"),
        ("--pull", "sometimes"),
    ],
    ids=" ".join,
)
def test_a_bad_option(fails: Fails, options: tuple[str, ...]) -> None:
    fails(ConfigError, "python3.11", *options, says=re.escape(options[-1]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--network", "no-such-net"), "no-such-net.*\n.*docker network ls"),
        (("--user", "no-such-user"), "no-such-user.*\n.*--user"),
        (("--name", "no/such name"), "name"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_the_engine_refuses_says_what_to_do(
    fails: Fails, plain: str, options: tuple[str, ...], says: str
) -> None:
    fails(EngineError, plain, *options, says=says)


# --- GPUs -------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    shutil.which("nvidia-container-runtime-hook") is not None, reason="this engine can give GPUs"
)
@pytest.mark.parametrize("gpus", ["all", "device=0"])
def test_gpus_of_an_engine_that_has_none(fails: Fails, plain: str, gpus: str) -> None:
    fails(GpuUnavailableError, plain, "--gpus", gpus, says="nvidia-container-toolkit.*--gpus none")


@pytest.mark.skipif(bool(find_gpus().names), reason="this machine has a GPU")
def test_a_gpu_name_on_a_machine_without_gpu_names_the_cpu_twin(fails: Fails) -> None:
    fails(GpuUnavailableError, "tf1.10-gpu", says="has none.*\n.*tf1.10\\b.*--gpus none")
