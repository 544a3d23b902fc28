"""Many starts at once, from threads and processes; the same one twice; stops while starting, starts while stopping."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dockml_magic import folders
from dockml_magic import start as start_environment
from dockml_magic.engine import ContainerState, DockerEngine
from dockml_magic.environment import Environment
from dockml_magic.errors import StartAbandonedError
from dockml_magic.options import RunOptions
from tests.integration.conftest import Image
from tests.integration.notebook import Notebook, containers_of, python_with
from tests.integration.strangers import untouched_strangers
from tests.waiting import wait_until

BARE = "dockml/bare:3.11"
MANY = 30
PROCESSES = 3
_LONG = 150.0

START_SOME = """
import sys
from concurrent.futures import ThreadPoolExecutor
from dockml_magic import container, relay, start

container.START_TIMEOUT = relay.READY_TIMEOUT = 150

def live(number):
    with start(sys.argv[1]) as environment:
        return environment.run(f"{number} * 2").text

count = int(sys.argv[2])
with ThreadPoolExecutor(count) as threads:
    assert list(threads.map(live, range(count))) == [str(2 * n) for n in range(count)]
"""

Ours = Callable[[], list[ContainerState]]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let starts take as long as thirty at once may take on a machine that has two CPUs and other work."""
    monkeypatch.setattr("dockml_magic.container.START_TIMEOUT", _LONG)
    monkeypatch.setattr("dockml_magic.relay.READY_TIMEOUT", _LONG)


@pytest.fixture(autouse=True)
def strangers_stay(engine: DockerEngine, image: Image) -> Iterator[None]:
    with untouched_strangers(engine, image(BARE)):
        yield


def nothing_is_there(ours: Ours) -> None:
    """See all go: what a notebook leaves at its end goes by itself."""
    wait_until(lambda: not ours(), what="the containers to go")
    wait_until(lambda: not list(folders.runtime_root().iterdir()), what="the folders to go")


def test_thirty_environments_started_at_once_by_one_process(
    image: Image, workspace: Path, ours: Ours
) -> None:
    together = threading.Barrier(MANY)
    all_run = threading.Barrier(MANY)

    def live(number: int) -> str:
        together.wait()
        with start_environment(image(BARE)) as environment:
            text = environment.run(f"{number} * 2").text
            all_run.wait(_LONG)
            return text

    with ThreadPoolExecutor(MANY) as threads:
        texts = list(threads.map(live, range(MANY)))
    assert texts == [str(2 * number) for number in range(MANY)]
    nothing_is_there(ours)


def test_thirty_environments_started_at_once_by_three_processes(
    image: Image, workspace: Path, ours: Ours
) -> None:
    command = [sys.executable, "-c", START_SOME, image(BARE), str(MANY // PROCESSES)]
    running = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    for process in running:
        _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
    nothing_is_there(ours)


def test_two_notebooks_that_start_the_same_environment_at_once(
    image: Image, workspace: Path, ours: Ours
) -> None:
    name = image(BARE)
    python = python_with("ipykernel7")
    with Notebook(workspace, python) as one, Notebook(workspace, python) as two:
        for notebook in (one, two):
            notebook.ok("%load_ext dockml_magic")
        started = [(notebook, notebook.send(f"%docker_env {name}")) for notebook in (one, two)]
        for notebook, cell in started:
            assert notebook.finish(cell).reply["status"] == "ok"
        one.ok("whose = 'the first'")
        two.ok("whose = 'the second'")
        assert (one.ok("whose").result, two.ok("whose").result) == ("'the first'", "'the second'")
        assert len(containers_of(workspace)) == 2
    nothing_is_there(ours)


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.15, 0.3, 0.5])
def test_a_stop_while_starting_leaves_nothing(
    image: Image, workspace: Path, ours: Ours, moment: float
) -> None:
    environment = Environment(image(BARE), RunOptions(), workspace, print)
    threading.Timer(moment, environment.abandon).start()
    try:
        environment.start()
    except StartAbandonedError:
        pass
    else:  # it was quicker
        environment.stop()
    nothing_is_there(ours)


def test_a_start_while_the_last_one_is_stopping(image: Image, workspace: Path, ours: Ours) -> None:
    name = image(BARE)
    environment = start_environment(name)
    for _ in range(3):
        stopping = threading.Thread(target=environment.stop)
        stopping.start()
        environment = start_environment(name)
        stopping.join()
        assert environment.run("6 * 7").text == "42"
    two_stop_it = [threading.Thread(target=environment.stop) for _ in range(2)]
    for thread in two_stop_it:
        thread.start()
    for thread in two_stop_it:
        thread.join()
    nothing_is_there(ours)
