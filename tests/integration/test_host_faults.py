"""Disks that are full and folders that go away: told in two lines, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockml_magic import folders
from dockml_magic import start as start_environment
from dockml_magic.errors import HostFileError, KernelBundleError, MountError, RemoteCellError
from tests.integration.conftest import Image
from tests.integration.notebook import Notebook, containers_of, python_with

BARE = "dockml/bare:3.11"

pytestmark = pytest.mark.usefixtures("strangers")

SmallDisk = Callable[[Path, str], Path]
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    """Give a function that mounts a file system of this size on a folder."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> Path:
        folder.mkdir(exist_ok=True)
        options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        subprocess.run(options, check=True)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on a disk."""
    path = disk / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    assert shutil.disk_usage(disk).free == 0
    return path


@needs_root
def test_no_room_for_the_runtime_folder(
    image: Image,
    workspace: Path,
    own_folders: Path,
    small_disk: SmallDisk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = small_disk(own_folders / "full", "64k")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(disk))
    folders.runtime_root()
    filler = fill(disk)
    with pytest.raises(HostFileError, match=r"No space left.*\n.*XDG_RUNTIME_DIR") as caught:
        start_environment(image(BARE))
    assert len(str(caught.value).splitlines()) == 2
    assert list(folders.runtime_root().iterdir()) == []
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
    with start_environment(image(BARE)) as environment:
        assert environment.run("6 * 7").text == "42"


@needs_root
def test_no_room_for_a_kernel_bundle(
    image: Image, workspace: Path, own_bundles: Path, small_disk: SmallDisk
) -> None:
    small_disk(own_bundles, "1m")
    with pytest.raises(KernelBundleError, match=r"No space left.*\n.*XDG_CACHE_HOME") as caught:
        start_environment(image(BARE))
    assert len(str(caught.value).splitlines()) == 2
    assert [path.name for path in own_bundles.iterdir() if path.suffix != ".lock"] == []


@needs_root
@pytest.mark.parametrize("folder", ["images", "compiled"])
def test_no_room_for_what_is_remembered_of_an_image(
    image: Image, workspace: Path, small_disk: SmallDisk, folder: str
) -> None:
    fill(small_disk(folders.cache_root() / folder, "4k"))
    with start_environment(image(BARE)) as environment:
        assert environment.run("6 * 7").text == "42"


@needs_root
def test_no_room_to_note_that_one_is_kept(
    image: Image, workspace: Path, small_disk: SmallDisk
) -> None:
    (folders.state_root() / "kept").mkdir(exist_ok=True)
    disk = small_disk(folders.state_root() / "kept", "64k")
    filler = fill(disk)
    with start_environment(image(BARE)) as environment:
        with pytest.raises(HostFileError, match=r"No space left.*\n.*XDG_STATE_HOME") as caught:
            environment.keep()
        assert len(str(caught.value).splitlines()) == 2
        assert list(disk.iterdir()) == [filler]
        assert environment.run("6 * 7").text == "42"


@needs_root
def test_a_full_disk_in_the_container_is_the_cells_own_error(
    image: Image, workspace: Path, small_disk: SmallDisk
) -> None:
    small_disk(workspace, "1m")
    os.chdir(workspace)  # the folder that is mounted there now
    with start_environment(image(BARE), "--shm-size", "1m", folder=workspace) as environment:
        for folder in (workspace, "/dev/shm"):
            with pytest.raises(RemoteCellError, match="No space left on device"):
                environment.run(f"open('{folder}/file', 'wb').write(b'x' * (2 << 20))")
            assert environment.run(f"import os; os.remove('{folder}/file'); 6 * 7").text == "42"
        environment.restart()
        assert environment.run("6 * 7").text == "42"
    os.chdir("/")


def test_a_workspace_that_is_renamed_and_removed_while_it_is_mounted(
    image: Image, workspace: Path
) -> None:
    name = image(BARE)
    with Notebook(workspace, python_with("ipykernel7")) as notebook:
        notebook.ok("%load_ext dockml_magic")
        notebook.use(name)
        notebook.ok("open('file', 'w').write('kept')")
        moved = workspace.rename(workspace.with_name("moved"))
        assert notebook.ok("open('file').read()").result == "'kept'"
        notebook.ok("%docker_restart")
        assert notebook.ok("open('file').read()").result == "'kept'"
        shutil.rmtree(moved)
        notebook.ok("variable = 1")
        assert notebook.run(f"%docker_env {name} --name second").reply["ename"] == "MountError"
        assert notebook.ok("variable").result == "1"
        notebook.ok("%docker_restart")
        assert notebook.ok("6 * 7").result == "42"
        notebook.ok("%docker_stop")
        assert containers_of(workspace) == []
        workspace.mkdir()
        notebook.ok(f"%cd {workspace}")
        notebook.use(name)
        assert notebook.ok("6 * 7").result == "42"


def test_a_notebooks_folder_that_was_removed_is_told_in_two_lines(
    image: Image, workspace: Path
) -> None:
    workspace.rmdir()
    with pytest.raises(MountError) as caught:
        start_environment(image(BARE), folder=workspace)
    assert len(str(caught.value).splitlines()) == 2
    workspace.mkdir()


def error_of(notebook: Notebook, line: str) -> str:
    """Run a line that must fail, and return what it says: what happened, and what to do."""
    cell = notebook.run(line)
    assert cell.reply["status"] == "error", cell
    assert len(cell.traceback.splitlines()) == 2
    return cell.traceback


@pytest.mark.parametrize("wiped", ["dockml", "."], ids=["our folder", "XDG_RUNTIME_DIR"])
def test_a_run_folder_that_is_wiped_under_what_runs(
    image: Image, workspace: Path, own_folders: Path, wiped: str
) -> None:
    """Also where the system has no XDG_RUNTIME_DIR afterwards, as when the user has logged out."""
    name = image(BARE)
    plain, kept = f"plain-{os.getpid()}", f"kept-{os.getpid()}"  # containers are called so
    with Notebook(workspace, python_with("ipykernel7")) as notebook:
        notebook.ok("%load_ext dockml_magic")
        notebook.use(name, "--name", kept, "--keep")
        notebook.ok("variable = 'of the kept one'\nopen('/var/tmp/installed', 'w').close()")
        notebook.use(name, "--name", plain, "--memory", "200m")
        notebook.ok("variable = 'of the plain one'")
        shutil.rmtree(own_folders / wiped, ignore_errors=True)
        assert notebook.ok("variable").result == "'of the plain one'"
        cell = notebook.send(
            "import time\nprint('asleep', flush=True)\nwhile True: time.sleep(0.1)"
        )
        notebook.wait_printed(cell, "asleep")
        notebook.interrupt()
        assert notebook.finish(cell).reply["ename"] == "KeyboardInterrupt"
        assert notebook.ok(f"%%docker_cell {kept}\nvariable").result == "'of the kept one'"
        for line in ("%docker_ps", "%docker_ps -a", f"%docker_stats {plain}"):
            assert plain in notebook.ok(line).result
        notebook.ok(f"%docker_logs {plain}")
        for line, what_to_do in (
            (f"%docker_restart {plain}", f"%docker_env {plain} --fresh"),
            (f"%docker_restart {kept}", f"%docker_stop {kept}, then %docker_start {kept}"),
            (f"%docker_exec {plain} ls", "docker exec "),
            (f"%docker_keep {plain}", f"%docker_env {plain} --fresh"),
        ):
            said = error_of(notebook, line)
            assert "' was removed: " in said
            assert what_to_do in said
        # What the messages say is done: it is started as it was, with the same options.
        notebook.use(plain, "--fresh")
        limit = ["docker", "inspect", "-f", "{{.HostConfig.Memory}}", plain]
        assert subprocess.check_output(limit, text=True) == f"{200 << 20}\n"
        notebook.ok(f"%docker_restart {plain}")
        assert notebook.ok("6 * 7").result == "42"
        notebook.ok(f"%docker_stop {plain}")
        notebook.ok(f"%docker_stop {kept}")
        if wiped == "dockml":
            notebook.ok(f"%docker_start {kept}")
            there = "import os; os.path.exists('/var/tmp/installed'), 'variable' in globals()"
            notebook.use(kept)
            assert notebook.ok(there).result == "(True, False)"
        else:  # the container's mount leads to where nobody may make a folder
            assert "start a new one with --fresh" in error_of(notebook, f"%docker_start {kept}")
        notebook.use(kept, "--fresh")
        assert notebook.ok("6 * 7").result == "42"
        notebook.ok(f"%docker_rm -f {kept}")
        assert containers_of(workspace) == []
    own_folders.mkdir(exist_ok=True)
