"""A restart of a routed notebook's own kernel, from a front end's menu: its environments are kept."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Image
from tests.integration.notebook import IPYKERNELS, Notebook, containers_of, python_with
from tests.waiting import wait_until

PIP = "dockml/pip:3.11"
OTHER = "dockml/ipykernel:7"
LOAD = "%load_ext dockml_magic"
MARK = "open('/var/tmp/installed', 'w').close(); variable = 42"
IS_MARKED = "import os; 'variable' in globals(), os.path.exists('/var/tmp/installed')"
SLEEP = "import time; print('asleep', flush=True); time.sleep(600)"

SERVER = """
import sys
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
manager = KernelManager(shutdown_wait_time=60)
manager._kernel_spec = KernelSpec(
    argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
)
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
client.execute_interactive("%load_ext dockml_magic", timeout=60)
client.execute_interactive("%docker_env " + sys.argv[1], timeout=60)
client.stop_channels()
manager.restart_kernel()
print("restarted", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(params=IPYKERNELS)
def notebook(request: pytest.FixtureRequest, workspace: Path, image: Image) -> Iterator[Notebook]:
    """A notebook with the extension loaded."""
    for name in (PIP, OTHER):
        image(name)
    with Notebook(workspace, python_with(request.param)) as notebook:
        notebook.ok(LOAD)
        yield notebook


def longer_than_the_grace() -> None:
    """Wait until a container that nobody holds would be gone."""
    time.sleep(3.0)


def test_the_environment_goes_on_in_its_container_with_a_new_kernel(notebook: Notebook) -> None:
    notebook.use(PIP, "--memory", "1g")
    notebook.ok(MARK)
    (container,) = containers_of(notebook.folder)
    notebook.restart()
    longer_than_the_grace()
    loaded = notebook.ok(LOAD)
    assert f"Kept over the restart, without their variables: '{PIP}'." in loaded.printed()
    assert notebook.ok("import os; os.path.exists('/run/dockml')").result == "False"
    began = notebook.use(PIP, "--memory", "1g")
    assert f"{PIP!r} was kept over the restart: a new kernel in the same container" in (
        began.printed()
    )
    assert notebook.ok(IS_MARKED).result == "(False, True)"
    assert containers_of(notebook.folder) == [container]


def test_each_of_several_environments_is_kept(notebook: Notebook) -> None:
    for name in (PIP, OTHER):
        notebook.use(name)
        notebook.ok(MARK)
    before = sorted(containers_of(notebook.folder))
    notebook.restart()
    notebook.ok(LOAD)
    table = notebook.ok("%docker_ps").result
    assert [line.split()[2] for line in table.splitlines()[1:]] == ["kept", "kept"]
    assert notebook.ok(f"%%docker_cell {OTHER}\n{IS_MARKED}").result == "(False, True)"
    notebook.ok(f"%docker_restart {PIP}")
    assert notebook.ok(f"%%docker_cell {PIP}\n{IS_MARKED}").result == "(False, True)"
    assert sorted(containers_of(notebook.folder)) == before


def test_a_second_restart_keeps_it_too_wherever_it_is(notebook: Notebook) -> None:
    notebook.use(PIP)
    notebook.ok(MARK)
    (container,) = containers_of(notebook.folder)
    notebook.restart()  # nobody adopts it
    notebook.restart()
    notebook.ok(LOAD)
    notebook.restart()  # adopted, and without a kernel
    notebook.ok(LOAD)
    notebook.use(PIP)
    notebook.restart()
    notebook.ok(LOAD)
    notebook.use(PIP)
    longer_than_the_grace()
    assert notebook.ok(IS_MARKED).result == "(False, True)"
    assert containers_of(notebook.folder) == [container]


def test_a_restart_in_the_middle_of_a_cell_ends_it_and_its_kernel(notebook: Notebook) -> None:
    notebook.use(PIP)
    msg_id = notebook.send(SLEEP)
    notebook.wait_printed(msg_id, "asleep")
    (container,) = containers_of(notebook.folder)
    notebook.restart()
    processes = subprocess.run(
        ["docker", "top", container, "-o", "pid,args"], capture_output=True, text=True, check=True
    ).stdout
    assert "start.py supervise" in processes
    assert "start.py kernel" not in processes
    notebook.ok(LOAD)
    notebook.use(PIP)
    assert notebook.ok("6 * 7").result == "42"


def test_other_options_after_the_restart_are_another_container(notebook: Notebook) -> None:
    notebook.use(PIP)
    (container,) = containers_of(notebook.folder)
    notebook.restart()
    notebook.ok(LOAD)
    notebook.use(PIP, "-e", "NEW=1")
    assert notebook.ok("import os; os.environ['NEW']").result == "'1'"
    (other,) = containers_of(notebook.folder)
    assert other != container


def test_one_over_tcp_is_kept(notebook: Notebook) -> None:
    notebook.use(PIP, "--transport", "tcp")
    notebook.ok(MARK)
    notebook.restart()
    longer_than_the_grace()
    notebook.ok(LOAD)
    notebook.use(PIP, "--transport", "tcp")
    assert notebook.ok(IS_MARKED).result == "(False, True)"


@pytest.mark.parametrize("is_adopted", [False, True], ids=["not adopted", "adopted"])
def test_a_shutdown_after_the_restart_removes_it(notebook: Notebook, is_adopted: bool) -> None:
    notebook.use(PIP)
    notebook.restart()
    if is_adopted:
        notebook.ok(LOAD)
    assert len(containers_of(notebook.folder)) == 1
    notebook.manager.shutdown_kernel()
    wait_until(lambda: not containers_of(notebook.folder), what="no container")


def test_kill_9_after_it_was_adopted_removes_it(notebook: Notebook) -> None:
    notebook.use(PIP)
    notebook.restart()
    notebook.ok(LOAD)
    notebook.kill()
    wait_until(lambda: not containers_of(notebook.folder), what="no container")


def test_a_container_that_was_removed_by_hand_meanwhile_is_started_anew(
    notebook: Notebook,
) -> None:
    notebook.use(PIP)
    (container,) = containers_of(notebook.folder)
    notebook.restart()
    subprocess.run(["docker", "rm", "-f", container], capture_output=True, check=True)
    assert notebook.ok(LOAD).printed() == ""
    notebook.use(PIP)
    assert notebook.ok("6 * 7").result == "42"


def test_stopping_a_kept_one_and_unloading_remove_it(notebook: Notebook) -> None:
    for name in (PIP, OTHER):
        notebook.use(name)
    notebook.restart()
    notebook.ok(LOAD)
    assert notebook.ok(f"%docker_stop {PIP}").printed() == f"Stopped {PIP!r}.\n"
    assert len(containers_of(notebook.folder)) == 1
    notebook.ok("%unload_ext dockml_magic")
    wait_until(lambda: not containers_of(notebook.folder), what="no container")


def test_the_keeper_leaves_nothing(notebook: Notebook, own_folders: Path) -> None:
    notebook.use(PIP)
    notebook.restart()
    (written,) = (own_folders / "dockml").glob("*.handover")
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    notebook.ok(LOAD)
    assert list((own_folders / "dockml").glob("*.handover")) == []
    wait_until(lambda: keepers(own_folders) == [], what="the keeper to end")


def test_the_end_of_the_server_removes_what_was_kept(
    workspace: Path, image: Image, own_folders: Path
) -> None:
    image(PIP)
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, PIP],
        cwd=workspace,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        while server.stdout.readline() != "restarted\n":
            assert server.poll() is None
        assert len(containers_of(workspace)) == 1
        server.send_signal(signal.SIGKILL)
        server.wait()
        wait_until(lambda: not containers_of(workspace), what="no container")
    wait_until(lambda: keepers(own_folders) == [], what="the keeper to end")


def keepers(own_folders: Path) -> list[str]:
    """Return the command lines of the keepers of this test."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    words = ("dockml_magic.handover", str(own_folders))
    return [line for line in listed.stdout.splitlines() if all(word in line for word in words)]
