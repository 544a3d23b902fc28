"""What the unit tests share: folders of their own, and no way to reach Docker."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import docker
import jupyter_core.paths
import pytest
from hypothesis import HealthCheck, settings
from IPython.core.interactiveshell import InteractiveShell

from dockml_magic import kernel_bundle, planning
from dockml_magic.options import RunOptions
from tests.unit.fake_engine import FakeEngine

# The same examples each time: a failure is of the change that it comes with. To look for more of them:
# HYPOTHESIS_PROFILE=explore pytest tests/unit/test_properties.py
for name, examples in (("same", 60), ("explore", 1000)):
    settings.register_profile(
        name,
        derandomize=name == "same",
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

_OWN_FOLDERS = (
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
    "JUPYTER_RUNTIME_DIR",
    "IPYTHONDIR",
    "DOCKER_CONFIG",
)
_HOST_SETTINGS = (
    "DOCKER_",
    "PIP_",
    "SSL_CERT_",
    "REQUESTS_CA",
    "CURL_CA",
    "JUPYTER_PATH",
    "DOCKML_",
)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets, as `tmp_path` is not."""
    folder = Path(tempfile.mkdtemp(prefix="dm-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def own_folders(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a test away from the home, the Jupyter folders and the settings of who runs it."""
    for name in list(os.environ):
        if name.startswith(_HOST_SETTINGS) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    home = short_folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in _OWN_FOLDERS:
        monkeypatch.setenv(name, str(home / name.lower()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    for name in ("ENV_JUPYTER_PATH", "SYSTEM_JUPYTER_PATH"):  # this Python environment's kernels
        monkeypatch.setattr(jupyter_core.paths, name, [])


@pytest.fixture(autouse=True)
def unreachable_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that makes a client of Docker, whatever endpoint it names."""

    def refuse(*args: Any, **keywords: Any) -> NoReturn:
        pytest.fail("a unit test reached for Docker")

    monkeypatch.setattr(docker.APIClient, "__init__", refuse)
    monkeypatch.setattr(planning, "_engines", {})


@pytest.fixture
def engine() -> FakeEngine:
    """An engine without images."""
    return FakeEngine()


@pytest.fixture
def told() -> list[str]:
    """What the user was told."""
    return []


@pytest.fixture
def plan(
    engine: FakeEngine, workspace: Path, told: list[str]
) -> Callable[..., planning.KernelPlan]:
    """Give a function that plans a kernel; options as keywords."""

    def make(
        name: str = "me/mine:1",
        transport: str | None = None,
        engine: FakeEngine = engine,
        **options: Any,
    ) -> planning.KernelPlan:
        return planning.make_plan(
            name,
            RunOptions(**options),
            workspace,
            engine=engine,
            tell=told.append,
            transport=transport,
        )

    return make


@pytest.fixture(scope="module")
def ipython() -> Iterator[InteractiveShell]:
    """A shell, as `ipython` in a terminal has one; its history is off."""
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    yield shell
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()
    InteractiveShell.clear_instance()


LAUNCHER = Path(kernel_bundle.__file__).parent / "resources" / "launch.py"


@pytest.fixture
def launch() -> ModuleType:
    """The launcher, imported as a module of this Python."""
    spec = importlib.util.spec_from_file_location("launch_for_tests", LAUNCHER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
