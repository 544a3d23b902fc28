"""What the tests on real containers share: an engine, images, folders of their own, and the count at the end.

Each test has its own runtime, cache, home and Jupyter folders. What lasts is the kernel bundles,
which take long to build: they live in ``DOCKML_TEST_CACHE``, by default ``~/.cache/dockml-tests``.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import dockml_magic
from dockml_magic import Environment, folders, labels, planning
from dockml_magic import engine as engines
from dockml_magic.engine import ContainerState, DockerEngine, connect
from tests.images.build import build
from tests.integration.kernels import Kernel
from tests.integration.notebook import Notebook, containers_of, python_with
from tests.integration.strangers import Strangers, untouched_strangers
from tests.waiting import wait_until

_FOLDERS = (
    "HOME",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
)
_PIP_SETTINGS = Path("~/.config/pip/pip.conf").expanduser()
"""The user's own, which `HOME` no longer leads to: a bundle is built with them."""

StartKernel = Callable[..., Kernel]
Layers = Callable[[], list[str]]
RunAs = Callable[..., "subprocess.CompletedProcess[str]"]
Image = Callable[[str], str]
Inspect = Callable[[Kernel], dict[str, Any]]
OpenNotebook = Callable[..., AbstractContextManager[Notebook]]
StartEnvironments = Callable[..., AbstractContextManager[dict[str, Environment]]]


@pytest.fixture(scope="session")
def engine() -> DockerEngine:
    """The engine that the environment names. None is a failure: these tests were asked for."""
    return connect()


@pytest.fixture(scope="session")
def image(engine: DockerEngine) -> Image:
    """Give a function that builds a test image, unless it is there, and returns its reference."""
    return lambda name: build([name])[name]


@pytest.fixture(scope="module")
def strangers(engine: DockerEngine, image: Image) -> Iterator[Strangers]:
    """Have somebody else's containers and more beside those of this module, and nobody touch them."""
    with untouched_strangers(engine, image("dockml/bare:3.11")) as strangers:
        yield strangers


@pytest.fixture(scope="session")
def lasting_cache() -> Path:
    """Where kernel bundles stay from one run of the tests to the next."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dockml-tests"
    cache = Path(os.environ.get("DOCKML_TEST_CACHE") or default).expanduser()
    (cache / "bundles").mkdir(parents=True, exist_ok=True)
    return cache


@contextmanager
def variables_of_its_own(
    folder: Path, engine: DockerEngine, cache: Path
) -> Iterator[dict[str, str]]:
    """Give variables that lead all programs into folders below `folder`, with the kernel bundles in `cache`.

    The runtime folder, whose path must be short, is in /tmp, and is removed in the end.
    """
    runtime = Path(tempfile.mkdtemp(prefix="dk-"))
    variables = {variable: str(folder / variable.lower()) for variable in _FOLDERS}
    for path in variables.values():
        Path(path).mkdir(parents=True)
    dockml_cache = Path(variables["XDG_CACHE_HOME"]) / "dockml"
    dockml_cache.mkdir()
    (dockml_cache / "bundles").symlink_to(cache / "bundles")
    if _PIP_SETTINGS.is_file():
        variables["PIP_CONFIG_FILE"] = str(_PIP_SETTINGS)
    variables["XDG_RUNTIME_DIR"] = str(runtime)
    variables["JUPYTER_RUNTIME_DIR"] = str(runtime / "jupyter")
    variables["JUPYTER_PREFER_ENV_PATH"] = "no"  # what is installed beside us must not come first
    variables["DOCKER_HOST"] = engine.facts.endpoint  # a context would be in the real home
    yield variables
    shutil.rmtree(runtime, ignore_errors=True)  # something may be removing itself in it


@pytest.fixture(scope="session")
def open_notebook(
    engine: DockerEngine,
    image: Image,
    lasting_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> OpenNotebook:
    """Give a function that opens a notebook for many tests, in folders of its own, with the extension loaded.

    ``with open_notebook(IPYKERNEL, *IMAGES, project=TEXT, folder=NAME) as notebook``: the test images are built
    first, and the text is its folder's ``dockml.toml``. Once it is closed, nothing may be left of it.
    """

    @contextmanager
    def open_it(
        ipykernel: str, *images: str, project: str = "", folder: str = "notebook"
    ) -> Iterator[Notebook]:
        for name in images:
            image(name)
        shared = tmp_path_factory.mktemp("shared")
        place = shared / folder
        place.mkdir()
        if project:
            (place / "dockml.toml").write_text(project)
        with variables_of_its_own(shared / "own", engine, lasting_cache) as variables:
            with Notebook(place, python_with(ipykernel), variables) as notebook:
                notebook.ok("%load_ext dockml_magic")
                yield notebook
            wait_until(lambda: not containers_of(place), what="no container to be left")
            root = Path(variables["XDG_RUNTIME_DIR"], "dockml")
            wait_until(lambda: not list(root.glob("*")), what="no runtime folder to be left")

    return open_it


@pytest.fixture(scope="session")
def start_environments(
    engine: DockerEngine,
    image: Image,
    lasting_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> StartEnvironments:
    """Give a function that starts environments for many tests, one of each image, in folders of their own.

    ``with start_environments(*IMAGES) as environments``: they are found by the images' names without ``dockml/``.
    """

    @contextmanager
    def start_them(*images: str) -> Iterator[dict[str, Environment]]:
        folder, own = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("own")
        with (
            variables_of_its_own(own / "own", engine, lasting_cache) as variables,
            pytest.MonkeyPatch.context() as patch,
            ExitStack() as running,
        ):
            for name, value in variables.items():
                patch.setenv(name, value)
            yield {
                name: running.enter_context(
                    dockml_magic.start(image(f"dockml/{name}"), folder=folder)
                )
                for name in images
            }

    return start_them


@pytest.fixture(autouse=True)
def own_folders(
    engine: DockerEngine, tmp_path: Path, lasting_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Give the test folders of its own."""
    with variables_of_its_own(tmp_path / "own", engine, lasting_cache) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(planning, "_engines", {})
        yield Path(variables["XDG_RUNTIME_DIR"])


@pytest.fixture
def own_bundles(own_folders: Path) -> Path:
    """Give the test an empty folder of kernel bundles, which it fills or not."""
    folders.bundles_root().unlink()
    return folders.bundles_root()


@pytest.fixture
def far_engine(monkeypatch: pytest.MonkeyPatch) -> DockerEngine:
    """Make the engine one that does not see our files, as Docker Desktop's does not."""
    far = connect()
    far.facts = replace(far.facts, shares_files=False)
    monkeypatch.setattr(engines, "connect", lambda name=None: far)
    return far


@pytest.fixture
def inspect(engine: DockerEngine) -> Inspect:
    """Give a function that returns all that the engine knows of a kernel's container."""
    return lambda kernel: engine._client.api.inspect_container(kernel.container_id)


@pytest.fixture
def ours(engine: DockerEngine, tmp_path: Path) -> Callable[[], list[ContainerState]]:
    """Give a function that lists this test's containers: those whose workspace is below `tmp_path`."""

    def find() -> list[ContainerState]:
        return [
            found
            for found in engine.list({labels.SESSION: ""})
            if found.labels.get(labels.WORKSPACE, "").startswith(f"{tmp_path}/")
            and found.status
            != "removing"  # the engine's own work by now, long where files were many
        ]

    return find


@pytest.fixture(autouse=True)
def nothing_is_left(
    engine: DockerEngine, ours: Callable[[], list[ContainerState]], own_folders: Path
) -> Iterator[None]:
    """Fail a test that leaves a container behind, and show the log of what it left."""
    yield
    try:
        wait_until(lambda: not ours(), what="all containers of this test to be gone")
    finally:
        for left in ours():
            print(f"--- {left.name} ({left.image}, {left.status})\n{engine.logs(left.id, 50)}")
            engine.remove(left.id)


@pytest.fixture
def layers(engine: DockerEngine, lasting_cache: Path) -> Iterator[Layers]:
    """Give a function that lists the layers (`--with`) that this test has built; they are removed.

    An engine's layers are everybody's: one test at a time has them, in whichever process.
    """
    api = engine._client.api

    def there() -> list[str]:
        return [image["Id"] for image in api.images(filters={"label": labels.REQUIREMENTS})]

    with (lasting_cache / "layers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = set(there())

        def made() -> list[str]:
            return [image for image in there() if image not in before]

        yield made
        for image in made():
            api.remove_image(image, force=True)


@pytest.fixture
def start(workspace: Path) -> Iterator[StartKernel]:
    """Give a function that starts a kernel as a front end does; all of them end with the test.

    ``start(NAME, *OPTIONS, **KEYWORDS)``: options as words, keywords as for `Kernel.start`.
    """
    running: list[Kernel] = []

    def start_kernel(name: str, *options: str, **keywords: object) -> Kernel:
        kernel = Kernel.of(name, *options)
        running.append(kernel)
        return kernel.start(**{"cwd": str(workspace), **keywords})

    yield start_kernel
    for kernel in running:
        kernel.stop()


@pytest.fixture
def run_as(engine: DockerEngine, workspace: Path, own_folders: Path) -> RunAs:
    """Give a function that runs a Python script as another user, in the workspace.

    The interpreter may lie in a folder that only root enters, so this user may read everything;
    what they write and which sockets they may use is as for anyone.
    """
    setpriv = shutil.which("setpriv")
    if os.getuid() != 0 or setpriv is None:
        pytest.skip("only root can become another user, with setpriv of util-linux")

    def run(
        uid: int, script: str, *arguments: str, may_use_docker: bool
    ) -> subprocess.CompletedProcess[str]:
        home = own_folders / f"user-{uid}"
        for folder in (home, home / "run"):
            folder.mkdir()
            os.chown(folder, uid, uid)
        own_folders.chmod(0o755)
        docker_group = Path(urlsplit(engine.facts.endpoint).path).stat().st_gid
        return subprocess.run(
            [
                setpriv,
                *(f"--reuid={uid}", f"--regid={uid}"),
                f"--groups={docker_group if may_use_docker else uid}",
                *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
                *(sys.executable, "-c", script, *arguments),
            ],
            env={
                **os.environ,
                **dict.fromkeys(_FOLDERS, str(home)),
                **dict.fromkeys(("XDG_RUNTIME_DIR", "JUPYTER_RUNTIME_DIR"), str(home / "run")),
                "LOGNAME": "someone",
            },
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def write_wheel(folder: Path) -> None:
    """Write a package that pip can install without a network: tiny, with one module of that name."""
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "answer = 42")
        about = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
        wheel.writestr("tiny-1.0.dist-info/METADATA", about)
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
