"""Images to a file and back, on real engines, and an environment that moves to another one."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dockml_magic.backup import load_images, save_images
from dockml_magic.engine import DockerEngine, connect
from dockml_magic.environment import start
from dockml_magic.errors import ArchiveError
from dockml_magic.planning import commit_container
from tests.integration.conftest import Image, RunAs, write_wheel
from tests.integration.registry import MirroredEngine
from tests.machine.packages import install
from tests.waiting import wait_until

BARE = "dockml/bare:3.11"
PIP = "dockml/pip:3.11"
WITH_KERNEL = "dockml/ipykernel:7"


@pytest.fixture(scope="module")
def small(engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A small image of two layers."""
    folder = tmp_path_factory.mktemp("small")
    for name in ("one", "two"):
        (folder / name).write_bytes(secrets.token_bytes(300_000))
    reference = f"dockml/backup-test:{secrets.token_hex(6)}"
    path = folder / "Dockerfile"
    path.write_text("FROM scratch\nCOPY one /\nCOPY two /\n")
    engine.build(path, reference, {}, lambda line: None)
    yield reference
    if engine.find_image(reference):
        engine.remove_image(reference)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", ".tar.zst"])
def test_an_image_comes_back_from_a_file(
    engine: DockerEngine, small: str, tmp_path: Path, suffix: str
) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    path = folder / f"a backup{suffix}"
    image = engine.find_image(small)
    told: list[str] = []
    contents = save_images(engine, [small], path, told.append)
    assert contents.names == (small,)
    assert left_in(folder) == [path.name]
    assert path.stat().st_mode & 0o077 == 0
    assert "and checked it" in told[-1]
    engine.remove_image(small)
    assert load_images(engine, path, told.append) == [small]
    assert engine.find_image(small) == image


def test_docker_itself_can_load_it(engine: DockerEngine, small: str, tmp_path: Path) -> None:
    path = tmp_path / "backup.tar.gz"
    save_images(engine, [small], path, lambda line: None)
    engine.remove_image(small)
    done = subprocess.run(
        ["docker", "load", "-i", str(path)], capture_output=True, text=True, check=True
    )
    assert small in done.stdout


def test_what_docker_saved_can_be_loaded(engine: DockerEngine, small: str, tmp_path: Path) -> None:
    """Two images that share their layers, which stand in the archive once."""
    path = tmp_path / "theirs.tar"
    other = f"{small}-too"
    (tmp_path / "Dockerfile").write_text(f"FROM {small}\nLABEL a=b\n")
    engine.build(tmp_path / "Dockerfile", other, {}, lambda line: None)
    try:
        subprocess.run(["docker", "save", "-o", str(path), small, other], check=True)
    finally:
        engine.remove_image(other)
    assert sorted(load_images(engine, path, lambda line: None)) == [small, other]
    engine.remove_image(other)


@pytest.mark.parametrize("damage", ["cut off", "a byte", "not an archive"])
def test_a_damaged_file_leaves_the_engine_untouched(
    engine: DockerEngine, small: str, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "backup.tar.gz"
    save_images(engine, [small], path, lambda line: None)
    content = bytearray(path.read_bytes())
    if damage == "cut off":
        del content[len(content) * 2 // 3 :]
    elif damage == "a byte":
        content[len(content) // 2] ^= 0xFF
    else:
        content[:] = b"hello" * 1000
    path.write_bytes(content)
    image = engine.find_image(small)
    assert image is not None
    engine.remove_image(small)
    with pytest.raises(ArchiveError, match="not a whole archive of images"):
        load_images(engine, path, lambda line: None)
    assert engine.find_image(image.id) is None
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    engine.build(tmp_path / "Dockerfile", small, {}, lambda line: None)  # for the next test


def test_a_file_that_is_there_is_kept_unless_it_is_to_be_replaced(
    engine: DockerEngine, small: str, tmp_path: Path
) -> None:
    path = tmp_path / "backup.tar"
    path.write_text("of great worth")
    with pytest.raises(ArchiveError, match="there already"):
        save_images(engine, [small], path, lambda line: None)
    assert path.read_text() == "of great worth"
    save_images(engine, [small], path, lambda line: None, force=True)
    assert tarfile.is_tarfile(path)
    assert left_in(tmp_path) == ["backup.tar", "own"]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    if os.getuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", ".tar.zst"])
def test_a_full_disk_is_told_and_nothing_is_left(
    engine: DockerEngine, full_disk: Path, suffix: str
) -> None:
    with pytest.raises(ArchiveError, match=r"no room|are free there"):
        save_images(engine, [BARE], full_disk / f"backup{suffix}", lambda line: None)
    assert left_in(full_disk) == []


def test_an_interrupted_backup_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from dockml_magic.cli import main; main()"]
    folder = tmp_path / "folder"
    folder.mkdir()
    saving = subprocess.Popen(
        [*command, "save", BARE, "-o", "backup.tar.xz"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: any(path.stat().st_size > 100_000 for path in folder.iterdir()))
    saving.send_signal(signal.SIGINT)
    _, said = saving.communicate(timeout=60)
    assert saving.returncode == 130
    assert "was stopped" in said
    assert "Traceback" not in said
    assert left_in(folder) == []


# --- an environment that moves --------------------------------------------------------------------


@pytest.fixture
def second_engine(image: Image) -> Iterator[DockerEngine]:
    """Another machine's engine: without images, and without a way to a registry."""
    image(PIP)
    if os.getuid() != 0:
        pytest.skip("only root can start a second engine")
    install(["iproute2"])
    folder = Path(tempfile.mkdtemp(prefix="dk-"))  # its sockets' paths must be short
    engine = MirroredEngine(folder, "127.0.0.1:1")
    try:
        other = connect(engine.endpoint)
        with closing(other._client):
            yield other
    finally:
        engine.close()
        shutil.rmtree(folder)


def test_an_environment_moves_to_a_machine_without_a_registry(
    engine: DockerEngine,
    second_engine: DockerEngine,
    image: Image,
    workspace: Path,
    tmp_path: Path,
) -> None:
    image(PIP)
    reference = f"dockml/backup-test:{secrets.token_hex(6)}"
    path = tmp_path / "environment.tar.gz"
    write_wheel(workspace)
    try:
        with start(PIP, folder=workspace) as environment:
            environment.run("%pip install --no-index --find-links . tiny")
            (container,) = [c for c in engine.list({}) if c.id == environment.container_id]
            commit_container(engine, container, reference, tell=lambda line: None)
        save_images(engine, [reference], path, lambda line: None)
    finally:
        if engine.find_image(reference):
            engine.remove_image(reference)
    assert load_images(second_engine, path, lambda line: None) == [reference]
    options = ("--engine", second_engine.facts.endpoint, "--network", "none")
    with start(reference, *options, folder=workspace) as environment:
        assert environment.run("import tiny; tiny.answer").text == "42"


MOVE = """
import sys
from pathlib import Path
from dockml_magic import start
from dockml_magic.engine import connect
from dockml_magic.planning import commit_container, find_container
name, reference, options = sys.argv[1], sys.argv[2], sys.argv[3:]
with start(name, *options) as environment:
    if name != reference:
        environment.run("%pip install --no-index --find-links . tiny")
        engine = connect()
        container = find_container(name, engine, Path.cwd())
        commit_container(engine, container, reference, tell=print)
    else:
        print(environment.run("import tiny, os; tiny.answer, os.getuid(), os.environ['HOME']").text)
        print(environment.run("open(os.path.expanduser('~/mine'), 'w').write('x')").text)
        code = "import subprocess; subprocess.check_output(['stat', '-c', '%u', os.path.expanduser('~/.local')])"
        print(environment.run(code).text)
"""


def test_what_an_unknown_user_installed_is_found_again_by_this_user_and_by_another(
    engine: DockerEngine, image: Image, workspace: Path, run_as: RunAs, tmp_path: Path
) -> None:
    """It went to the user's home in the container, which the image then has."""
    image(WITH_KERNEL)
    reference = f"dockml/backup-test:{secrets.token_hex(6)}"
    write_wheel(workspace)
    workspace.chmod(0o777)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    try:
        done = run_as(4321, MOVE, WITH_KERNEL, reference, may_use_docker=True)
        assert done.returncode == 0, done.stderr
        for uid, options in ((4321, ()), (4322, ("-v", f"{kept}:/home/dockml/kept"))):
            shutil.rmtree(os.environ["XDG_RUNTIME_DIR"] + f"/user-{uid}", ignore_errors=True)
            done = run_as(uid, MOVE, reference, reference, *options, may_use_docker=True)
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines() == [f"(42, {uid}, '/home/dockml')", "1", f"b'{uid}\\n'"]
        assert kept.stat().st_uid == (kept / "file").stat().st_uid == 0, "a mount is the host's"
    finally:
        if engine.find_image(reference):
            engine.remove_image(reference)
