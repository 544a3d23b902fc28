"""What happens to containers behind our back, seen from a notebook: each ends with a clear message and no hang.

One notebook has them all happen to it, one after the other, with ipykernel 7 and 6. Beside the environment that is
hit it has another one and variables of its own, which every test finds as they were.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockml_magic import labels
from dockml_magic.engine import DockerEngine
from tests.integration.conftest import OpenNotebook
from tests.integration.notebook import IPYKERNELS, Cell, Notebook, containers_of, python_with
from tests.integration.strangers import Strangers
from tests.waiting import wait_until

BARE = "dockml/bare:3.11"
PROJECT = f'[environments.x]\nimage = "{BARE}"\n[environments.bystander]\nimage = "{BARE}"\n'
SLEEP = "print('asleep', flush=True)\nimport time\nfor i in range(6000): time.sleep(0.1)"
GONE = "'x' is not running any more"


def docker(*words: str) -> str:
    """Do something by hand."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def timed(what: str, cell: Cell, since: float) -> Cell:
    """Print how long a message took, for who runs this by hand with -s."""
    said = cell.traceback or cell.printed("stderr") or cell.printed()
    print(f"{what}: {time.monotonic() - since:.1f} s: {said.splitlines()[:2]}")
    return cell


class Hit:
    """The notebook, with the environment x that something happens to."""

    def __init__(self, notebook: Notebook, container: str) -> None:
        self.notebook = notebook
        self.container = container

    def mid_cell(self, happen: Callable[[], object]) -> Cell:
        """Let something happen while a cell sleeps, and return what became of that."""
        cell = self.notebook.send(SLEEP)
        self.notebook.wait_printed(cell, "asleep")
        since = time.monotonic()
        happen()
        return timed("mid-cell", self.notebook.finish(cell), since)

    def next_cell(self) -> Cell:
        """Run a cell in x."""
        since = time.monotonic()
        return timed("next cell", self.notebook.run("6 * 7"), since)

    def wait_gone(self) -> None:
        """Wait until the engine has removed the container."""
        wait_until(lambda: not docker("ps", "-aq", "--filter", f"id={self.container}"), what="rm")


@pytest.fixture(scope="module", params=IPYKERNELS)
def notebook(
    request: pytest.FixtureRequest, strangers: Strangers, open_notebook: OpenNotebook
) -> Iterator[Notebook]:
    with open_notebook(request.param, project=PROJECT) as notebook:
        notebook.ok("local_variable = 'of the notebook'")
        notebook.use("bystander")
        notebook.ok("variable = 'of the bystander'")
        yield notebook


@pytest.fixture
def hit(notebook: Notebook) -> Iterator[Hit]:
    """Start x; afterwards everything else is as it was, and x can be started again."""
    before = set(containers_of(notebook.folder))
    notebook.use("x")
    (container,) = set(containers_of(notebook.folder)) - before
    yield Hit(notebook, container)
    assert notebook.use("bystander").printed() == "Cells run in 'bystander'.\n"
    assert notebook.ok("variable").result == "'of the bystander'"
    notebook.use("local")
    assert notebook.ok("local_variable").result == "'of the notebook'"
    notebook.use("x", "--fresh")
    assert notebook.ok("6 * 7").result == "42"
    notebook.ok("%docker_stop x")
    wait_until(lambda: set(containers_of(notebook.folder)) == before, what="x to be gone")


# --- killed and removed -------------------------------------------------------------------------


@pytest.mark.parametrize("how", [("kill",), ("rm", "-f"), ("stop",), ("restart",)], ids=" ".join)
def test_a_container_that_is_ended_mid_cell(hit: Hit, how: tuple[str, ...]) -> None:
    cell = hit.mid_cell(lambda: docker(*how, hit.container))
    assert cell.reply["ename"] == "KernelDiedError"
    assert cell.traceback.splitlines() == [
        "KernelDiedError: The kernel of 'x' died: its container is gone.",
        "Start it again: %docker_env x",
    ]
    assert GONE in hit.next_cell().traceback


@pytest.mark.parametrize("how", [("kill",), ("rm", "-f")], ids=" ".join)
def test_a_container_that_is_ended_while_idle(hit: Hit, how: tuple[str, ...]) -> None:
    docker(*how, hit.container)
    wait_until(
        lambda: "dead" in str(hit.notebook.ok("%docker_ps").result), what="it to be heard of"
    )
    cell = hit.next_cell()
    assert GONE in cell.traceback
    assert "%docker_env x" in cell.traceback
    hit.wait_gone()
    assert "dead" in str(hit.notebook.ok("%docker_ps").result)


# --- paused -------------------------------------------------------------------------------------


def is_told_of_the_pause(cell: Cell) -> bool:
    return "The container of 'x' is paused" in cell.printed("stderr") + cell.printed()


def test_a_cell_in_a_paused_container_says_so_and_goes_on_after_it(hit: Hit) -> None:
    go_on = hit.notebook.folder / "go-on"
    go_on.unlink(missing_ok=True)
    cell = hit.notebook.send(
        "import os, time\nprint('asleep', flush=True)\n"
        "while not os.path.exists('go-on'): time.sleep(0.05)\n6 * 7"
    )
    hit.notebook.wait_printed(cell, "asleep")
    since = time.monotonic()
    docker("pause", hit.container)
    told = timed("paused", hit.notebook.wait(cell, is_told_of_the_pause), since)
    assert f"docker unpause {hit.container}" in told.printed("stderr")
    docker("unpause", hit.container)
    go_on.touch()
    done = hit.notebook.finish(cell)
    assert done.result == "42"
    assert done.printed("stderr").count("is paused") == 1
    assert hit.next_cell().result == "42"


def test_the_stop_button_gives_the_notebook_back_from_a_paused_container(hit: Hit) -> None:
    docker("pause", hit.container)
    cell = hit.notebook.send(SLEEP)
    hit.notebook.wait(cell, is_told_of_the_pause)
    since = time.monotonic()
    hit.notebook.interrupt()
    done = timed("stop button", hit.notebook.finish(cell), since)
    assert done.reply["status"] == "error"
    assert "is paused" in done.traceback
    assert hit.notebook.ok("%docker_env local").printed()
    docker("unpause", hit.container)
    hit.notebook.use("x")
    # Its kernel has found it in the queue, and was interrupted; where that took long, what is behind is aborted.
    assert hit.notebook.ok("6 * 7").result == "42"


def test_the_stop_button_gives_a_part_of_a_cell_back_from_a_paused_container(hit: Hit) -> None:
    docker("pause", hit.container)
    cell = hit.notebook.send(f"%%docker_cell x\n{SLEEP}")
    hit.notebook.wait(cell, is_told_of_the_pause)
    hit.notebook.interrupt()
    done = hit.notebook.finish(cell)
    assert done.reply["ename"] == "KernelPausedError"
    assert "is paused" in done.traceback
    docker("unpause", hit.container)
    assert hit.notebook.ok("%%docker_cell x\n6 * 7").result == "42"


def test_a_completion_in_a_paused_container_keeps_nobody_waiting(hit: Hit) -> None:
    docker("pause", hit.container)
    hit.notebook.client.complete("impo", 4)
    since = time.monotonic()
    timed("stop behind a completion", hit.notebook.ok("%docker_stop x"), since)
    assert hit.container not in containers_of(hit.notebook.folder)


def test_a_paused_container_is_not_restarted_and_can_be_stopped(hit: Hit) -> None:
    hit.notebook.ok("kept = 1")
    docker("pause", hit.container)
    since = time.monotonic()
    restarted = timed("restart", hit.notebook.run("%docker_restart x"), since)
    assert "is paused" in restarted.traceback
    assert restarted.reply["ename"] == "KernelPausedError"
    docker("unpause", hit.container)
    assert hit.notebook.ok("kept").result == "1"
    docker("pause", hit.container)
    since = time.monotonic()
    timed("%docker_stop", hit.notebook.ok("%docker_stop x"), since)
    assert hit.container not in containers_of(hit.notebook.folder)


# --- memory -------------------------------------------------------------------------------------


def test_a_child_that_is_killed_for_memory_leaves_the_kernel_alone(hit: Hit) -> None:
    hit.notebook.use("x", "--fresh", "--memory", "150m")
    cell = hit.notebook.ok(
        "kept = 1\nimport subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'x = b\"x\" * (1 << 30)']).returncode"
    )
    assert cell.result == "-9"
    assert hit.notebook.ok("kept").result == "1"
    died = hit.notebook.run("import time; time.sleep(0.3); x = b'x' * (1 << 30)")
    assert "killed for memory, its limit is 150 MiB (--memory)" in died.traceback
    assert "%docker_restart x" in died.traceback
    hit.notebook.ok("%docker_restart x")
    assert hit.next_cell().result == "42"


# --- tampered with ------------------------------------------------------------------------------


def test_a_container_that_is_renamed_and_cut_off_its_network_goes_on_and_ends(hit: Hit) -> None:
    docker("rename", hit.container, f"renamed-{hit.container}")
    docker("network", "disconnect", "bridge", hit.container)
    assert hit.next_cell().result == "42"
    hit.notebook.ok("%docker_restart x")
    assert hit.next_cell().result == "42"
    hit.notebook.ok("%docker_stop x")
    assert hit.container not in containers_of(hit.notebook.folder)


def pids(container: str) -> dict[str, int]:
    """Return the host's numbers of the supervisor and of the kernel."""
    rows = docker("top", container, "-eo", "pid,args").splitlines()[1:]
    return {word: int(row.split()[0]) for row in rows for word in row.split()[1:]}


def test_a_kernel_that_is_killed_by_hand(hit: Hit) -> None:
    kernel = pids(hit.container)["kernel"]
    cell = hit.mid_cell(lambda: subprocess.run(["kill", "-9", str(kernel)], check=True))
    assert "died (exit code 137, SIGKILL)" in cell.traceback
    assert "%docker_restart x" in cell.traceback
    hit.notebook.ok("%docker_restart x")
    assert hit.next_cell().result == "42"


def test_a_kernel_that_is_stopped_by_hand_is_woken_by_the_stop_button(hit: Hit) -> None:
    hit.notebook.ok("kept = 1")
    kernel = pids(hit.container)["kernel"]

    def stop_and_interrupt() -> None:
        subprocess.run(["kill", "-STOP", str(kernel)], check=True)
        time.sleep(0.2)
        hit.notebook.interrupt()

    assert hit.mid_cell(stop_and_interrupt).reply["ename"] == "KeyboardInterrupt"
    assert hit.notebook.ok("kept").result == "1"


def test_a_supervisor_that_is_killed_by_hand_takes_the_container_along(hit: Hit) -> None:
    supervisor = pids(hit.container)["supervise"]
    cell = hit.mid_cell(lambda: subprocess.run(["kill", "-9", str(supervisor)], check=True))
    assert "its container is gone" in cell.traceback
    hit.wait_gone()


def test_a_process_that_was_executed_inside_by_hand_ends_with_the_container(hit: Hit) -> None:
    docker("exec", "-d", hit.container, "python", "-c", "import time; time.sleep(1000)")
    hit.notebook.ok("%docker_stop x")
    assert hit.container not in containers_of(hit.notebook.folder)


def test_a_stranger_with_the_session_of_a_container_of_ours(
    hit: Hit, strangers: Strangers, engine: DockerEngine
) -> None:
    """An image that is committed from a container of ours gives its labels to its containers."""
    session = engine.inspect(hit.container).labels[labels.SESSION]
    copy = f"{strangers.name}-copy"
    docker("commit", hit.container, copy)
    created = docker("create", copy)
    running = docker("run", "-d", "--entrypoint", "sleep", copy, "1000")
    try:
        assert engine.inspect(created).labels[labels.SESSION] == session
        # A process that comes new to this engine looks for what was left.
        hit.notebook.use("local")
        hit.notebook.ok(
            "import dockml_magic.planning as planning, os\n"
            "planning._engines.clear()\n"
            "planning.engine_for(planning.RunOptions())"
        )
        hit.notebook.use("x")
        assert hit.next_cell().result == "42"
        hit.notebook.ok("%docker_stop x")
        assert engine.inspect(created).status == "created"
        assert engine.inspect(running).status == "running"
    finally:
        docker("rm", "-f", created, running)
        docker("rmi", copy)


# --- folders ------------------------------------------------------------------------------------


def runtime_of(engine: DockerEngine, container: str) -> Path:
    return Path(engine.inspect(container).mounts["/run/dockml"])


def test_a_runtime_folder_that_is_wiped(hit: Hit, engine: DockerEngine) -> None:
    runtime = runtime_of(engine, hit.container)
    for path in runtime.iterdir():
        path.unlink()
    runtime.rmdir()
    hit.notebook.ok("kept = 1")
    restarted = hit.notebook.run("%docker_restart x")
    assert restarted.reply["ename"] == "KernelError"
    assert str(runtime.parent) in restarted.traceback
    assert "--fresh" in restarted.traceback
    assert hit.notebook.ok("kept").result == "1"
    hit.notebook.ok("%docker_stop x")
    assert hit.container not in containers_of(hit.notebook.folder)


@pytest.mark.parametrize("ipykernel", IPYKERNELS)
def test_the_end_of_a_notebook_removes_a_paused_container(
    strangers: Strangers, workspace: Path, own_folders: Path, ipykernel: str
) -> None:
    with Notebook(workspace, python_with(ipykernel)) as notebook:
        notebook.ok("%load_ext dockml_magic")
        notebook.use(BARE)
        (container,) = containers_of(workspace)
        docker("pause", container)
    wait_until(lambda: not containers_of(workspace), what="rm")
    wait_until(lambda: not list((own_folders / "dockml").iterdir()), what="its folder to go")
