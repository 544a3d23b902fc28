"""Environments from a script: `dockml_magic.start`."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

import dockml_magic
from dockml_magic import Environment
from dockml_magic.engine import DockerEngine
from dockml_magic.errors import (
    ConfigError,
    KernelDiedError,
    KernelError,
    RemoteCellError,
    UnknownNameError,
)
from dockml_magic.layers import list_packages
from tests.integration.conftest import Image
from tests.integration.notebook import LONG_SLEEP, containers_of
from tests.waiting import wait_until

SCRIPT = """
import dockml_magic
env = dockml_magic.start({reference!r})
env.run("open('sleeping', 'w').close(); import time; time.sleep(600)")
"""


@pytest.fixture
def bare(image: Image) -> str:
    return image("dockml/bare:3.11")


@pytest.fixture
def environment(workspace: Path, bare: str) -> Iterator[Environment]:
    with dockml_magic.start(bare) as environment:
        yield environment


def test_run_returns_all_that_a_cell_gave(environment: Environment) -> None:
    result = environment.run(
        "import sys; print('out'); print('err', file=sys.stderr)\n"
        "from IPython.display import HTML, display; display(HTML('<b>shown</b>'))\n"
        "6 * 7"
    )
    assert (result.stdout, result.stderr, result.text) == ("out\n", "err\n", "42")
    assert [sorted(data) for data in result.data] == [["text/html", "text/plain"], ["text/plain"]]
    assert environment.run("x = 1").text == ""


def test_the_workspace_is_the_current_folder(environment: Environment, workspace: Path) -> None:
    environment.run("open('written', 'w').write('there')")
    assert (workspace / "written").read_text() == "there"


def test_another_folder_and_options_are_taken(workspace: Path, tmp_path: Path, bare: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with dockml_magic.start(
        bare, "-e", "GREETING=hello", "--name", "mine", folder=other
    ) as environment:
        assert environment.name == "mine"
        result = environment.run("import os; print(os.environ['GREETING'], os.getcwd())")
    assert result.stdout == f"hello {other}\n"


def test_an_error_carries_the_remote_traceback(environment: Environment) -> None:
    with pytest.raises(RemoteCellError) as raised:
        environment.run("1 / 0")
    assert (raised.value.ename, raised.value.evalue) == ("ZeroDivisionError", "division by zero")
    assert "In[1]" in "\n".join(raised.value.traceback)
    assert environment.run("1 + 1").text == "2"


def test_interrupt_from_another_thread_stops_the_cell_and_keeps_variables(
    environment: Environment, workspace: Path
) -> None:
    def interrupt() -> None:
        wait_until((workspace / "sleeping").exists, what="the cell to run")
        environment.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(RemoteCellError, match="KeyboardInterrupt"):
        environment.run(f"x = 42; open('sleeping', 'w').close(); import time; {LONG_SLEEP}")
    thread.join()
    assert environment.run("x").text == "42"


def test_cells_may_run_in_a_thread(environment: Environment) -> None:
    texts: list[str] = []
    thread = threading.Thread(target=lambda: texts.append(environment.run("6 * 7").text))
    thread.start()
    thread.join()
    assert texts == ["42"]


def test_restart_gives_a_new_kernel_in_the_same_container(environment: Environment) -> None:
    environment.run("x = 1; open('/tmp/kept', 'w').close()")
    container_id = environment.container_id
    environment.restart()
    assert environment.container_id == container_id
    assert environment.run("import os; os.path.exists('/tmp/kept'), 'x' in globals()").text == (
        "(True, False)"
    )


def test_a_kernel_that_dies_is_an_error_with_its_exit_code(environment: Environment) -> None:
    with pytest.raises(KernelDiedError) as died:
        environment.run("import os; os._exit(3)")
    assert died.value.exit_code == 3
    assert not environment.is_alive
    with pytest.raises(KernelError, match="not running any more"):
        environment.run("1")
    environment.restart()
    assert environment.run("1 + 1").text == "2"


def test_stop_leaves_nothing_and_may_be_called_again(
    environment: Environment, workspace: Path
) -> None:
    assert len(containers_of(workspace)) == 1
    environment.stop()
    assert containers_of(workspace) == []
    assert not environment.is_alive
    environment.stop()
    for use in (lambda: environment.run("1"), environment.interrupt):
        with pytest.raises(KernelError):
            use()


def test_the_context_manager_stops_it_after_an_error(workspace: Path, bare: str) -> None:
    with pytest.raises(ValueError, match="mine"), dockml_magic.start(bare):
        raise ValueError("mine")
    assert containers_of(workspace) == []


def test_a_start_that_fails_leaves_nothing(workspace: Path, bare: str) -> None:
    with pytest.raises(UnknownNameError):
        dockml_magic.start("no-such-name")
    with pytest.raises(ConfigError, match="--no-such-option"):
        dockml_magic.start(bare, "--no-such-option")
    assert containers_of(workspace) == []


@pytest.mark.parametrize("comes", ["before it is there", "as its id is on the way"])
def test_an_interrupt_as_the_engine_creates_a_container_leaves_none(
    engine: DockerEngine, workspace: Path, bare: str, monkeypatch: pytest.MonkeyPatch, comes: str
) -> None:
    found = engine.find_image(bare)
    assert found is not None
    create = docker.APIClient.create_container
    monkeypatch.setattr("dockml_magic.engine.client._INTERRUPTED_PATIENCE", 60.0)
    names: list[str] = []
    late: list[threading.Timer] = []

    def interrupted(api: docker.APIClient, *arguments: Any, **named: Any) -> None:
        names.append(named["name"])
        if comes == "before it is there":
            late.append(threading.Timer(0.5, create, [api, *arguments], named))
            late[0].start()
        else:
            create(api, *arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(docker.APIClient, "create_container", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list_packages(found, bare, engine)
    for timer in late:
        timer.join()
    (name,) = names
    assert engine.inspect(name) is None


@pytest.mark.parametrize("end", ["kill -9", "its end"])
def test_the_end_of_a_script_ends_its_container(workspace: Path, bare: str, end: str) -> None:
    code = SCRIPT.format(reference=bare)
    if end == "its end":
        code = code.replace("time.sleep(600)", "time.sleep(0)")
    script = subprocess.Popen([sys.executable, "-c", code])
    wait_until((workspace / "sleeping").exists, what="the cell to run")
    if end == "kill -9":
        script.kill()
    code = script.wait(timeout=90)
    assert code == (-9 if end == "kill -9" else 0)
    wait_until(lambda: not containers_of(workspace), what="no container")
