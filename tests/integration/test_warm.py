"""`warm = true`, and a picker's selection: a kernel waits ready, is used at once, and ends with the notebook."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dockml_magic
from dockml_magic import labels, trust
from dockml_magic.engine import DockerEngine
from dockml_magic.project import find_project
from tests.integration.conftest import Image
from tests.integration.notebook import IPYKERNELS, Notebook, containers_of, python_with
from tests.waiting import wait_until

BARE = "dockml/bare:3.11"
LOAD = "%load_ext dockml_magic"
PROJECT = f"""
[environments.ner]
image = "{BARE}"
env = {{ MARK = "1" }}
warm = true
"""
WAS_WARM = "Cells run in 'ner': it was warm; "


@pytest.fixture
def project(workspace: Path, image: Image) -> Path:
    """A folder whose project file wants an environment warm that the user has started themselves before."""
    image(BARE)
    write(workspace, PROJECT)
    with dockml_magic.start(BARE, folder=workspace):
        pass
    return workspace


def write(folder: Path, text: str) -> None:
    """Write the project file, and let it be agreed to as it stands."""
    (folder / "dockml.toml").write_text(text)
    project = find_project(folder)
    for name, options in project.environments.items():
        trust.agree(project, name, options.image or name)


@pytest.fixture(params=IPYKERNELS)
def notebook(request: pytest.FixtureRequest, project: Path) -> Iterator[Notebook]:
    """A notebook whose environment is warm."""
    with Notebook(project, python_with(request.param)) as notebook:
        notebook.ok(LOAD)
        wait_warm(notebook)
        yield notebook


def wait_warm(notebook: Notebook) -> None:
    """Wait until `ner` waits."""
    wait_until(lambda: " warm " in notebook.ok("%docker_ps").result, what="it to be warm")


def test_the_waiting_one_is_used_and_is_then_as_any_other(notebook: Notebook) -> None:
    (container,) = containers_of(notebook.folder)
    wait_until(lambda: " MB)" in notebook.ok("%docker_ps").result, what="what it takes")
    (row, note) = notebook.ok("%docker_ps").result.splitlines()[1:]
    assert row.split()[:4] == ["ner", BARE, "warm", "Python"]
    assert note.endswith("To end one that you do not need: %docker_stop ner")
    elsewhere = subprocess.run(
        [sys.executable, "-c", "from dockml_magic.cli import main; main()", "ps"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [line.split()[2] for line in elsewhere.splitlines() if container in line] == ["warm"]
    assert notebook.use("ner").printed().startswith(WAS_WARM)
    printed = notebook.ok("import os; here = 1; print(os.environ['MARK'], os.getcwd())").printed()
    assert printed == f"1 {notebook.folder}\n"
    assert containers_of(notebook.folder) == [container]
    assert notebook.ok("%docker_ps").result.splitlines()[1].split()[3] == "running"
    notebook.ok("%docker_restart ner")
    assert notebook.ok("'here' in globals()").result == "False"
    assert containers_of(notebook.folder) == [container]
    assert notebook.ok("%docker_stop ner").printed() == (
        "Stopped 'ner'. Cells run in the notebook's own kernel.\n"
    )
    time.sleep(1)
    assert containers_of(notebook.folder) == []  # no second one behind it
    assert "it was warm" not in notebook.use("ner").printed()


@pytest.mark.parametrize("notebook", IPYKERNELS[:1], indirect=True)
def test_a_single_cell_uses_it_too_and_an_unload_ends_one(notebook: Notebook) -> None:
    before = containers_of(notebook.folder)
    assert notebook.ok("%%docker_cell ner\nimport os; os.environ['MARK']").result == "'1'"
    assert containers_of(notebook.folder) == before
    notebook.ok("%unload_ext dockml_magic")
    notebook.ok(LOAD)
    wait_warm(notebook)
    notebook.ok("%unload_ext dockml_magic")
    assert containers_of(notebook.folder) == []


@pytest.fixture
def three(project: Path) -> Iterator[Notebook]:
    """A notebook in which `ner`, `two` and `three` are warm."""
    write(project, "".join(PROJECT.replace("ner", name) for name in ("ner", "two", "three")))
    with Notebook(project, python_with(IPYKERNELS[0])) as notebook:
        notebook.ok(LOAD)
        wait_until(
            lambda: notebook.ok("%docker_ps").result.count(" warm ") == 3,
            what="three to be warm",
            timeout=90.0,
        )
        yield notebook


def test_what_is_not_the_same_any_more_is_started_anew_and_the_waiting_one_goes(
    three: Notebook,
) -> None:
    before = container_of("ner", three), container_of("two", three), container_of("three", three)
    assert "it was warm" not in three.use("ner", "-e", "MARK=2").printed()
    assert three.ok("import os; os.environ['MARK']").result == "'2'"
    subprocess.run(["docker", "rm", "-f", before[1]], capture_output=True, check=True)
    assert "it was warm" not in three.use("two").printed()
    three.use("local")
    three.ok("import os; os.environ['TZ'] = 'Asia/Tokyo'")  # every container gets it
    assert "it was warm" not in three.use("three").printed()
    assert three.ok("import os; os.environ['TZ']").result == "'Asia/Tokyo'"
    after = containers_of(three.folder)
    assert len(after) == 3
    assert not set(after) & set(before)


def container_of(name: str, notebook: Notebook) -> str:
    """Return the container that `%docker_ps` shows for a name."""
    shown = notebook.ok("%docker_ps").result.splitlines()
    (line,) = [line for line in shown if line.split()[0] == name]
    return line.split()[-1]


def test_they_are_stopped_by_name_or_all_at_once(three: Notebook) -> None:
    stopped = three.ok("%docker_stop two").printed()
    assert stopped == "Stopped 'two', which waited warm. It is not warmed again in this notebook.\n"
    three.ok("%docker_rm -f three")
    assert len(containers_of(three.folder)) == 1
    three.ok("%docker_stop --all")
    assert containers_of(three.folder) == []
    assert three.ok("%docker_stop --all").printed() == "No environment runs.\n"
    assert three.ok("%docker_ps").result.startswith("No environment runs.")


def test_unused_it_goes_with_a_kernel_that_is_killed(notebook: Notebook) -> None:
    assert len(containers_of(notebook.folder)) == 1
    notebook.kill()
    wait_until(lambda: not containers_of(notebook.folder), what="no container")


def must_end_by_itself(notebook: Notebook) -> None:
    """Have its kernel not ended by force, as a front end does after some seconds."""

    async def terminate(restart: bool = False) -> None:
        raise AssertionError("it did not end by itself")

    notebook.manager.provisioner.terminate = terminate


def test_unused_it_goes_with_a_kernel_that_ends(notebook: Notebook, own_folders: Path) -> None:
    assert len(containers_of(notebook.folder)) == 1
    must_end_by_itself(notebook)
    notebook.manager.shutdown_kernel()
    wait_until(lambda: not containers_of(notebook.folder), what="no container")
    assert [path for path in (own_folders / "dockml").iterdir() if path.is_dir()] == []


def test_a_restart_of_the_notebooks_kernel_ends_it_and_a_load_warms_another(
    notebook: Notebook,
) -> None:
    (container,) = containers_of(notebook.folder)
    must_end_by_itself(notebook)
    notebook.restart()
    wait_until(lambda: not containers_of(notebook.folder), what="no container")
    assert notebook.ok(LOAD).printed() == ""
    wait_warm(notebook)
    (other,) = containers_of(notebook.folder)
    assert other != container
    assert notebook.use("ner").printed().startswith(WAS_WARM)
    notebook.restart()
    notebook.ok(LOAD)
    assert "was kept over the restart" in notebook.use("ner").printed()
    assert containers_of(notebook.folder) == [other]


def test_a_line_that_comes_early_waits_for_the_one_that_starts(
    project: Path,
) -> None:
    with Notebook(project, python_with(IPYKERNELS[0])) as notebook:
        notebook.ok(LOAD)
        wait_until(lambda: containers_of(project), what="a container")
        assert WAS_WARM in notebook.use("ner").printed()
        assert len(containers_of(project)) == 1


def test_a_kernel_that_ends_while_one_starts_leaves_no_container(
    project: Path, engine: DockerEngine
) -> None:
    ours = {labels.WORKSPACE: str(project)}
    with Notebook(project, python_with(IPYKERNELS[0])) as notebook:
        notebook.ok(LOAD)
        # One that was created and is not started would wait for `dockml prune`.
        wait_until(
            lambda: [one for one in engine.list(ours) if one.status == "running"],
            what="a container that runs",
        )
        notebook.manager.shutdown_wait_time = 5.0  # as a front end has it
        notebook.manager.shutdown_kernel()  # which kills it where the start takes longer than 5 s
        # Where nobody has come to it by then, it waits for a minute.
        wait_until(lambda: not containers_of(project), timeout=90.0, what="no container")


def test_cells_run_while_one_starts_and_what_cannot_start_says_why(project: Path) -> None:
    write(
        project,
        PROJECT
        + """
[environments.absent]
image = "dockml/never-built:1"
warm = true
""",
    )
    with Notebook(project, python_with(IPYKERNELS[0])) as notebook:
        notebook.ok(LOAD)
        counted = notebook.ok("n = 0\nfor _ in range(1000): n += 1\nn").result
        assert counted == "1000"
        assert "it was warm" not in notebook.ok("%docker_ps").result
        wait_warm(notebook)
        wait_until(
            lambda: (
                "'absent' is not warm: its image is not here yet"
                in notebook.ok("%docker_env").printed()
            ),
            what="the reason",
        )
        assert notebook.run("%docker_env absent").reply["status"] == "error"


def test_nothing_is_started_before_the_user_has_done_so_or_where_it_is_off(project: Path) -> None:
    (project / "dockml.toml").write_text(PROJECT.replace('"1"', '"2"'))
    with Notebook(project, python_with(IPYKERNELS[0])) as notebook:
        notebook.ok(LOAD)
        wait_until(
            lambda: (
                "'ner' is not warm: start it once yourself" in notebook.ok("%docker_env").printed()
            ),
            what="the reason",
        )
        assert containers_of(project) == []
        notebook.use("ner")
    for variables, waits in (({"DOCKML_WARM": "off"}, False), ({}, True)):
        wait_until(lambda: not containers_of(project), what="those of the last notebook to go")
        with Notebook(project, python_with(IPYKERNELS[0]), variables) as notebook:
            notebook.ok(LOAD)
            if waits:
                wait_warm(notebook)
            else:
                time.sleep(1)
            assert bool(containers_of(project)) is waits


@pytest.mark.parametrize("ipykernel", IPYKERNELS)
def test_what_a_picker_has_selected_waits_and_goes_with_the_selection(
    project: Path, ipykernel: str
) -> None:
    (project / "dockml.toml").unlink()
    with Notebook(project, python_with(ipykernel)) as notebook:
        notebook.ok("import dockml_magic")
        notebook.ok(f"picker = dockml_magic.ImagePicker({BARE!r}); picker")
        wait_until(lambda: " warm " in notebook.ok("%docker_ps").result, what="it to be warm")
        (container,) = containers_of(project)
        notebook.ok("picker._memory.value = '1g'")
        wait_until(
            lambda: (found := containers_of(project)) != [container] and len(found) == 1,
            what="one with that limit",
        )
        notebook.ok("picker._filter.value = 'tf1.10-gpu'")
        wait_until(lambda: not containers_of(project), what="no container")
        notebook.ok(f"picker._memory.value = ''; picker._filter.value = {BARE!r}")
        wait_until(lambda: containers_of(project), what="a container")
        click_start(notebook)
        assert (
            "it was warm" in notebook.ok("%%docker_cell local\nprint(picker._log.value)").printed()
        )
        assert len(containers_of(project)) == 1


def click_start(notebook: Notebook) -> None:
    """Press Start as a page does, and wait until cells run there."""
    printed = notebook.ok("print(picker._start.comm.comm_id)").printed()
    content: dict[str, Any] = {
        "comm_id": printed.strip(),
        "data": {"method": "custom", "content": {"event": "click"}},
    }
    notebook.client.shell_channel.send(notebook.client.session.msg("comm_msg", content))
    wait_until(
        lambda: notebook.ok("import os; os.path.exists('/run/dockml')").result == "True",
        what="cells to run there",
    )
