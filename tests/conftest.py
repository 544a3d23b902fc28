"""What all suites share: the option ``--run-docker`` and what waits for it.

Without the option every test that needs a container engine is skipped and says so; with it, an
engine that does not answer is a failure, never a skip.
"""

import signal
from pathlib import Path

import pytest
from jupyter_client.connect import LocalPortCache

from tests.ports import free_ports

pytest_plugins = ["tests.order"]

NEEDS_DOCKER = "needs --run-docker"
DOCKER_SUITES = {"integration", "browser", "notebooks", "bench"}
HERE = Path(__file__).resolve().parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--run-docker",
        action="store_true",
        help="also run the tests that start containers; an unreachable engine is then a failure",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell's `make test &` has SIGINT ignored, and all that it starts: no test of an interrupt could pass.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A kernel binds its ports seconds after they were found: until then another worker's kernel may.
    LocalPortCache.find_available_port = lambda _cache, _ip: free_ports(1)[0]  # type: ignore[method-assign]
    config.addinivalue_line("markers", "docker: starts containers, " + NEEDS_DOCKER)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-docker"):
        return
    skip = pytest.mark.skip(reason=NEEDS_DOCKER)
    for item in items:
        if item.get_closest_marker("docker") or _suite(item.path) in DOCKER_SUITES:
            item.add_marker(skip)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The notebook's folder, and the current one."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def _suite(path: Path) -> str:
    """The folder below ``tests/`` that a test lives in."""
    return path.relative_to(HERE).parts[0] if path.is_relative_to(HERE) else ""
