"""Environments that are kept: they outlive their notebook, and others attach to them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockml_magic import compiled, kept
from dockml_magic.engine import ContainerState
from dockml_magic.environment import start
from dockml_magic.errors import KernelError, MountError
from dockml_magic.relay import Relay
from tests.integration.conftest import Image
from tests.integration.notebook import (
    IPYKERNELS,
    LONG_SLEEP,
    Notebook,
    containers_of,
    holding_starts,
    python_with,
)
from tests.waiting import wait_until

BARE = "dockml/bare:3.11"

pytestmark = pytest.mark.usefixtures("strangers")
LOAD = "%load_ext dockml_magic"
KEPT = "%docker_env {} --name kept1 --keep"

OpenNotebook = Callable[..., Notebook]


@pytest.fixture
def open_notebook(workspace: Path, image: Image) -> Iterator[OpenNotebook]:
    """Give a function that opens one more notebook of the workspace, with the extension loaded."""
    image(BARE)
    opened: list[Notebook] = []

    def open_one(ipykernel: str = IPYKERNELS[0]) -> Notebook:
        notebook = Notebook(workspace, python_with(ipykernel)).__enter__()
        opened.append(notebook)
        notebook.ok(LOAD)
        return notebook

    yield open_one
    for notebook in opened:
        notebook.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def no_kept_one_is_left(open_notebook: OpenNotebook, own_folders: Path) -> Iterator[None]:
    """Remove what a test has kept, before its containers are counted."""
    yield
    for found in kept.all_kept():
        kept.remove(found, force=True)


def longer_than_the_grace() -> None:
    """Wait until a container that nobody holds would be gone."""
    time.sleep(3.0)


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout


PRINTS = """
import os, time
for n in range(30):
    print('line', n, flush=True)
    while n == 2 and not os.path.exists('killed') or n == 20 and not os.path.exists('go-on'):
        time.sleep(0.05)
    time.sleep(0.2)
print('done')
7 * 6
"""


def test_after_kill_9_another_notebook_gets_the_variables_and_all_output(
    open_notebook: OpenNotebook,
) -> None:
    first = open_notebook()
    assert "ready in" in first.ok(KEPT.format(BARE)).printed()
    first.ok("variable = 42")
    cell = first.send(PRINTS)
    first.wait_printed(cell, "line 2\n")
    first.kill()
    (first.folder / "killed").touch()
    seen = first._cells[cell].printed()
    time.sleep(2)
    second = open_notebook()
    attaching = second.send("%docker_env kept1")
    second.wait_printed(attaching, "still busy")
    (second.folder / "go-on").touch()
    attached = second.finish(attaching)
    assert attached.reply["status"] == "ok", attached.traceback
    print(attached.printed())
    text = attached.printed()
    assert "While nobody was attached: 1 output" in text
    assert "'kept1' is still busy with a cell, whose output follows." in text
    shown = [int(line.split()[1]) for line in text.splitlines() if line.startswith("line ")]
    assert shown == list(range(shown[0], 30))
    assert shown[0] <= seen.count("\n") + 1
    assert attached.result == "42"
    assert "attached to the one that is kept, its variables alive" in text
    assert second.ok("variable").result == "42"


MARK = "open('/var/tmp/installed', 'w').close(); variable = 42"
IS_MARKED = "import os; 'variable' in globals(), os.path.exists('/var/tmp/installed')"


def test_two_notebooks_share_one_and_each_sees_its_own(open_notebook: OpenNotebook) -> None:
    one, two = open_notebook(), open_notebook(IPYKERNELS[1])
    one.ok(KEPT.format(BARE))
    one.ok("variable = 42")
    assert "its variables alive" in two.use("kept1").printed()
    wait_until(lambda: "yes, 2 attached" in two.ok("%docker_ps").result)
    cell = two.send(
        "import time; print('of two', variable, flush=True); time.sleep(1); variable = 43"
    )
    two.wait_printed(cell, "of two 42")
    shown = one.ok("print('of one'); variable")  # waits, as in any kernel
    assert (shown.printed(), shown.result) == ("of one\n", "43")
    two.finish(cell)
    for notebook in (one, two, two, one):  # each with its own count
        failed = notebook.run("1 / 0")
        assert f"In[{failed.reply['execution_count']}]" in re.sub(
            r"\x1b\[[\d;]*m", "", failed.traceback
        )
        assert "ERROR!" not in failed.printed() + failed.printed("stderr")
    asks = two.send("input('who? ')", allow_stdin=True)
    assert two.answer("two") == "who? "
    assert two.finish(asks).result == "'two'"
    late = (
        "import threading, time\n"
        "def later():\n    time.sleep(1.0); print('late', flush=True)\n"
        "threading.Thread(target=later).start()"
    )
    asked = two.send(late)
    two.wait_printed(asked, "late")
    one.ok("None")
    for notebook, others in ((one, ("of two", "who?", "late")), (two, ("of one",))):
        printed = "".join(cell.printed() for cell in notebook._cells.values())
        assert not any(text in printed for text in others)
    two.ok("%unload_ext dockml_magic")  # one that leaves
    longer_than_the_grace()
    assert one.ok("variable").result == "43"
    wait_until(lambda: "yes, 1 attached" in one.ok("%docker_ps").result)


def wait_until_known_to_be_over(notebook: Notebook) -> None:
    """Wait until a notebook has heard of what another one did to the kernel."""
    lives = "%%docker_cell local\nget_ipython()._dockml_magics.environments.get('kept1').is_alive"
    wait_until(lambda: notebook.ok(lives).result == "False", what="it to be heard of")


def test_what_one_does_to_a_shared_one_the_other_is_told(open_notebook: OpenNotebook) -> None:
    one, two = open_notebook(), open_notebook()
    one.ok(KEPT.format(BARE))
    two.use("kept1")
    one.ok(MARK)
    two.ok("%docker_restart kept1")
    wait_until_known_to_be_over(one)
    told = one.run("variable").traceback
    assert "'kept1' was restarted from another notebook: its variables are gone." in told
    assert "%docker_env kept1" in told
    assert "Its kernel is new." in one.use("kept1").printed()
    assert one.ok(IS_MARKED).result == "(False, True)"
    cell = one.send("import time; print('works', flush=True); time.sleep(600)")
    one.wait_printed(cell, "works")
    assert (
        two.ok("%docker_stop kept1")
        .printed()
        .startswith("Stopped 'kept1'. It is kept (%docker_start")
    )
    assert "container is gone" in one.finish(cell).traceback
    assert "'kept1' is not running any more" in one.run("6 * 7").traceback
    again = one.use("kept1")
    assert "the one that was kept and stopped, with a new kernel" in again.printed()
    assert one.ok(IS_MARKED).result == "(False, True)"
    two.use("kept1")
    two.ok("%docker_rm -f kept1")
    wait_until_known_to_be_over(one)
    assert "'kept1' is not running any more" in one.run("6 * 7").traceback
    wait_until(lambda: not containers_of(one.folder), what="no container to be left")
    assert kept.all_kept() == []


def test_stop_start_and_rm_mean_what_dockers_mean(open_notebook: OpenNotebook) -> None:
    notebook = open_notebook()
    notebook.ok(KEPT.format(BARE))
    notebook.ok(MARK)
    (container,) = containers_of(notebook.folder)
    assert "'kept1' runs. Stop it first" in " ".join(
        notebook.run("%docker_rm kept1").traceback.split("\n")
    )
    notebook.ok("%docker_stop kept1")
    assert docker("inspect", "-f", "{{.State.Status}}", container) == "exited\n"
    shutil.rmtree(compiled.root())  # as somebody who makes room does; the container has it mounted
    assert "Started 'kept1', with a new kernel" in notebook.ok("%docker_start kept1").printed()
    assert "runs already" in notebook.ok("%docker_start kept1").printed()
    notebook.use("kept1")
    assert notebook.ok(IS_MARKED).result == "(False, True)"
    assert containers_of(notebook.folder) == [container]
    refused = notebook.run(KEPT.format(BARE) + " -e A=1").traceback
    assert "is running already, with the options" in refused
    notebook.ok("%docker_stop kept1")
    refused = notebook.run(KEPT.format(BARE) + " -e A=1").traceback
    assert "'kept1' is kept, with the options it was started with." in refused
    assert (
        "removing the kept 'kept1'" in notebook.ok(KEPT.format(BARE) + " -e A=1 --fresh").printed()
    )
    assert notebook.ok(IS_MARKED).result == "(False, False)"
    assert containers_of(notebook.folder) != [container]
    script = "import sys; from dockml_magic.cli import main; main(sys.argv[1:])"
    dockml = [sys.executable, "-c", script]
    stopped = subprocess.run(
        [*dockml, "stop", "kept1"], cwd=notebook.folder, capture_output=True, text=True
    )
    assert stopped.stdout == "Stopped 'kept1'.\n"
    removed = subprocess.run(
        [*dockml, "rm", "kept1"], cwd=notebook.folder, capture_output=True, text=True
    )
    assert removed.stdout == "Removed 'kept1'.\n"
    wait_until(lambda: not containers_of(notebook.folder), what="no container to be left")
    unknown = subprocess.run(
        [*dockml, "rm", "kept1"], cwd=notebook.folder, capture_output=True, text=True
    )
    assert "There is no kept environment 'kept1' of this folder." in unknown.stderr
    nothing = notebook.run("%docker_start kept1").traceback
    assert "There is nothing to start: 'kept1' is gone" in nothing


def test_a_restart_from_the_menu_keeps_the_variables(open_notebook: OpenNotebook) -> None:
    notebook = open_notebook()
    notebook.ok(KEPT.format(BARE))
    notebook.ok("variable = 42")
    notebook.restart()
    longer_than_the_grace()
    assert notebook.ok(LOAD).printed() == ""
    assert "Kept, and not attached here: kept1." in notebook.ok("%docker_env").result
    text = notebook.use("kept1").printed()
    assert "its variables alive" in text
    assert "While nobody was attached" not in text
    assert notebook.ok("variable").result == "42"
    notebook.manager.shutdown_kernel()
    longer_than_the_grace()
    assert len(containers_of(notebook.folder)) == 1


def test_one_that_is_kept_later_goes_when_it_is_stopped(open_notebook: OpenNotebook) -> None:
    notebook = open_notebook()
    notebook.use(BARE, "--name kept1")
    notebook.ok("variable = 42")
    told = notebook.ok("%docker_keep").printed()
    assert "'kept1' outlives this notebook." in told
    assert "It was started without --keep: stopping it removes it." in told
    notebook.kill()
    longer_than_the_grace()
    other = open_notebook()
    other.use("kept1")
    assert other.ok("variable").result == "42"
    assert other.ok("%docker_keep --off kept1").printed() == "'kept1' ends with this notebook.\n"
    other.kill()
    wait_until(lambda: not containers_of(other.folder), what="no container")
    third = open_notebook()
    third.use(BARE, "--name kept1")
    third.ok("%docker_keep kept1")
    third.ok("%unload_ext dockml_magic")
    third.ok(LOAD)
    assert third.ok("%docker_stop kept1").printed() == "Stopped 'kept1'.\n"
    wait_until(lambda: not containers_of(third.folder), what="no container to be left")
    assert kept.all_kept() == []


def test_the_stop_button_while_attaching_interrupts_the_cell(open_notebook: OpenNotebook) -> None:
    first = open_notebook()
    first.ok(KEPT.format(BARE))
    cell = first.send(f"import time; print('asleep', flush=True); {LONG_SLEEP}")
    first.wait_printed(cell, "asleep")
    first.kill()
    second = open_notebook(IPYKERNELS[1])
    attaching = second.send("%docker_env kept1")
    second.wait_printed(attaching, "still busy")
    second.interrupt()
    attached = second.finish(attaching)
    assert attached.reply["status"] == "ok", attached.traceback
    assert "KeyboardInterrupt" in attached.traceback  # of the cell over there
    assert second.ok("6 * 7").result == "42"


def test_outputs_of_every_kind_are_shown_and_the_oldest_make_room(
    open_notebook: OpenNotebook,
) -> None:
    first = open_notebook()
    first.ok(KEPT.format(BARE))
    cell = first.send(
        "import os, time; print('begun', flush=True)\n"
        "while not os.path.exists('killed'): time.sleep(0.05)\n"
        "for n in range(40): print(str(n) * 1000000, flush=True)\n"
        "print('to stdout'); print('to stdout, too')\n"
        "import sys; print('to stderr', file=sys.stderr)\n"
        "display({'text/plain': 'shown'}, raw=True)\n"
        "open('done', 'w').close()\n"
        "1 / 0"
    )
    first.wait_printed(cell, "begun")
    first.kill()
    longer_than_the_grace()
    (first.folder / "killed").touch()
    wait_until((first.folder / "done").exists, what="the cell to come to its end")
    time.sleep(1)  # and its last output to be recorded
    attached = open_notebook().use("kept1")
    text = attached.printed()
    assert "older messages had no room)" in text
    assert "39" * 1000 in text
    assert "begun" not in text
    assert text.index("to stdout\nto stdout, too\n") > text.index("39" * 1000)
    assert attached.printed("stderr") == "to stderr\n"
    assert [c["data"]["text/plain"] for c in attached.of("display_data")] == ["shown"]
    assert "ZeroDivisionError" in attached.traceback


def test_what_the_engine_or_the_machine_stopped_is_started_again(
    open_notebook: OpenNotebook, own_folders: Path
) -> None:
    notebook = open_notebook()
    notebook.ok(KEPT.format(BARE))
    notebook.ok(MARK)
    (container,) = containers_of(notebook.folder)
    notebook.ok("%unload_ext dockml_magic")
    docker("kill", container)  # as a restart of the machine does, which empties its /run
    (runtime,) = [path for path in (own_folders / "dockml").iterdir() if path.is_dir()]
    subprocess.run(["rm", "-rf", str(runtime)], check=True)
    notebook.ok(LOAD)
    assert "the one that was kept and stopped" in notebook.use("kept1").printed()
    assert notebook.ok(IS_MARKED).result == "(False, True)"
    assert containers_of(notebook.folder) == [container]
    # While it runs, nobody can reach it any more.
    notebook.ok("%unload_ext dockml_magic")
    subprocess.run(["rm", "-rf", str(runtime.parent)], check=True)
    notebook.ok(LOAD)
    told = notebook.run("%docker_env kept1").traceback
    assert "'kept1' runs, but cannot be reached" in told
    assert "%docker_env kept1 --fresh" in told
    assert notebook.ok("%docker_rm -f kept1").printed() == "Removed 'kept1'.\n"
    wait_until(lambda: not containers_of(notebook.folder), what="no container to be left")


def test_one_that_is_paused_is_told_at_once_and_goes_on_after_it(
    open_notebook: OpenNotebook,
) -> None:
    """Attached to it or not: as an engine does not stop what is paused, neither do we."""
    first = open_notebook()
    first.ok(KEPT.format(BARE))
    first.ok("variable = 42")
    (container,) = containers_of(first.folder)
    docker("pause", container)
    stop = first.run("%docker_stop kept1")
    assert "%docker_rm -f kept1" in stop.traceback
    first.kill()
    second = open_notebook()
    for line in ("%docker_stop kept1", "%docker_env kept1"):
        told = second.run(line)
        assert told.reply["ename"] == "KernelPausedError"
        assert f"docker unpause {container}" in told.traceback
        assert "%docker_rm -f kept1" in told.traceback
    docker("unpause", container)
    assert "its variables alive" in second.use("kept1").printed()
    assert second.ok("variable").result == "42"


def test_one_whose_container_was_removed_is_restarted_in_a_new_one_and_kept_there(
    open_notebook: OpenNotebook,
) -> None:
    notebook = open_notebook()
    notebook.ok(KEPT.format(BARE))
    (container,) = containers_of(notebook.folder)
    docker("rm", "-f", container)
    wait_until(lambda: notebook.run("1").traceback)
    assert "in a new container" in notebook.ok("%docker_restart kept1").printed()
    assert notebook.ok("6 * 7").result == "42"
    assert container not in containers_of(notebook.folder)
    notebook.ok("variable = 42")
    (container,) = containers_of(notebook.folder)
    notebook.kill()
    other = open_notebook()
    assert "its variables alive" in other.use("kept1").printed()
    assert other.ok("variable").result == "42"
    assert containers_of(other.folder) == [container]


def test_what_a_notebook_leaves_that_is_killed_in_the_middle_of_a_start_is_started_anew(
    open_notebook: OpenNotebook, own_folders: Path
) -> None:
    notebook = open_notebook()
    line = f"{KEPT.format(BARE)} {holding_starts(notebook.folder)}"
    notebook.send(line)
    wait_until(lambda: [found for found in kept.all_kept() if found.is_starting])
    (left,) = containers_of(notebook.folder)
    notebook.kill()
    (notebook.folder / "go-on").touch()
    other = open_notebook()
    assert "ready in" in other.ok(line).printed()
    assert other.ok("6 * 7").result == "42"
    (container,) = containers_of(notebook.folder)
    assert container != left


def test_a_kernel_that_died_is_followed_by_another_in_its_container(
    open_notebook: OpenNotebook,
) -> None:
    notebook = open_notebook()
    notebook.ok(KEPT.format(BARE))
    notebook.ok(MARK)
    assert "died" in notebook.run("import os; os.kill(os.getpid(), 9)").traceback
    again = notebook.use("kept1").printed()
    assert "The kernel of 'kept1' died (exit code 137, SIGKILL). A new one starts" in again
    assert notebook.ok(IS_MARKED).result == "(False, True)"


def test_two_that_start_the_same_one_at_once_end_up_in_one(open_notebook: OpenNotebook) -> None:
    notebooks = [open_notebook(), open_notebook()]
    cells = [notebook.send(KEPT.format(BARE)) for notebook in notebooks]
    done = [notebook.finish(cell) for notebook, cell in zip(notebooks, cells, strict=True)]
    assert [cell.reply["status"] for cell in done] == ["ok", "ok"], done
    assert len(containers_of(notebooks[0].folder)) == 1
    notebooks[0].ok("variable = 42")
    assert notebooks[1].ok("variable").result == "42"


def test_a_script_leaves_one_and_another_finds_it(
    workspace: Path, image: Image, own_folders: Path
) -> None:
    from dockml_magic import start

    image(BARE)
    env = start(BARE, "--keep", "--name", "kept1")
    env.run("variable = 42")
    env.detach()
    longer_than_the_grace()
    with start(BARE, "--keep", "--name", "kept1") as again:
        assert again.run("variable").text == "42"
    (container,) = containers_of(workspace)
    assert docker("inspect", "-f", "{{.State.Status}}", container) == "exited\n"
    env = start(BARE, "--keep", "--name", "kept1")
    assert env.run("'variable' in globals()").text == "False"
    env.remove()
    wait_until(lambda: not containers_of(workspace), what="no container to be left")


def test_a_link_in_the_place_of_a_folder_that_it_mounts_is_not_followed_when_it_is_started_again(
    workspace: Path, image: Image, own_folders: Path, tmp_path: Path
) -> None:
    image(BARE)
    above, secret = tmp_path / "above", tmp_path / "secret"
    (above / "data").mkdir(parents=True)
    secret.mkdir()
    (secret / "key").write_text("of another project")
    words = (
        BARE,
        "--keep",
        "--name",
        "kept1",
        "-v",
        f"{above}:/above",
        "-v",
        f"{above}/data:/data",
    )
    with start(*words) as env:
        env.run(
            f"import os; os.rename('/above/data', '/above/was'); os.symlink({str(secret)!r}, '/above/data')"
        )
    (container,) = containers_of(workspace)
    refused = pytest.raises(MountError, match=re.escape(f"leads to '{secret}' by now"))
    with refused, start(*words):
        pass
    assert docker("inspect", "-f", "{{.State.Status}}", container) == "exited\n"
    (above / "data").unlink()
    (above / "was").rename(above / "data")
    with start(*words) as env:
        assert env.run("__import__('os').listdir('/data')").text == "[]"
    assert containers_of(workspace) == [container]


def test_python_2_records_and_is_attached_to(open_notebook: OpenNotebook, image: Image) -> None:
    name = image("dockml/tensorflow:1.10.0-py27")
    first = open_notebook()
    first.ok(f"%docker_env {name} --keep --name kept1")
    cell = first.send(
        "import os, time\nfor n in range(8):\n    print n\n"
        "    while n == 1 and not os.path.exists('killed'): time.sleep(0.05)\n"
        "    time.sleep(0.5)\n'd\\xc3\\xb6ne'"
    )
    first.wait_printed(cell, "1\n")
    first.kill()
    (first.folder / "killed").touch()
    time.sleep(1)
    attached = open_notebook().use("kept1")
    lines = [line for line in attached.printed().splitlines() if line.isdigit()]
    assert lines[-1] == "7"
    assert lines == [str(n) for n in range(int(lines[0]), 8)]
    assert int(lines[0]) <= 3
    assert attached.result == r"'d\xc3\xb6ne'"


def test_one_of_another_language_is_recorded_too(open_notebook: OpenNotebook, image: Image) -> None:
    name = image("dockml/r:4")
    first = open_notebook()
    first.ok(f"%docker_env {name} --keep --name kept1")
    cell = first.send(
        "x <- 42\n"
        "for (n in 1:6) {\n"
        "  cat(n, '\\n'); flush.console(); Sys.sleep(0.5)\n"
        "  while (n == 2 && !file.exists('killed')) Sys.sleep(0.05)\n"
        "}\n"
        "'end'"
    )
    first.wait_printed(cell, "2")
    first.kill()
    (first.folder / "killed").touch()
    time.sleep(1)
    attached = open_notebook().use("kept1")
    numbers = [line.strip() for line in attached.printed().splitlines() if line.strip().isdigit()]
    assert numbers == [str(n) for n in range(int(numbers[0]), 7)]
    assert '[1] "end"' in str(attached.messages)


def test_one_over_tcp_is_kept_and_started_again(open_notebook: OpenNotebook) -> None:
    notebook = open_notebook()
    notebook.ok(KEPT.format(BARE) + " --transport tcp")
    notebook.ok(MARK)
    notebook.restart()
    notebook.ok(LOAD)
    notebook.use("kept1")
    assert notebook.ok("variable").result == "42"
    notebook.ok("%docker_stop kept1")
    notebook.use("kept1")  # on other ports
    assert notebook.ok(IS_MARKED).result == "(False, True)"


def test_one_whose_start_fails_leaves_nothing(
    workspace: Path,
    image: Image,
    ours: Callable[[], list[ContainerState]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Relay) -> None:
        raise KernelError("It does not answer.")

    monkeypatch.setattr(Relay, "make_ready", fail)
    with pytest.raises(KernelError, match="does not answer"):
        start(image("dockml/bare:3.11"), "--keep", "--name", "failing", folder=workspace)
    assert ours() == []
    assert kept.all_kept() == []
