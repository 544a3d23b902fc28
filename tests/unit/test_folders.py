from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from dockml_magic import folders
from dockml_magic.errors import ConfigError, MountError
from dockml_magic.folders import RuntimeFolder

SOCKET = "/0123456789ab/kernel-5"
FALLBACK = Path(f"/tmp/dockml-{os.getuid()}")


def test_the_runtime_folder_is_below_xdgs_and_ours_alone(short_folder: Path) -> None:
    root = folders.runtime_root()
    assert root == short_folder / "dockml"
    assert root.stat().st_mode & 0o777 == 0o700
    assert folders.runtime_root() == root


@pytest.mark.parametrize("base", ["", "/no/such/folder"])
def test_without_a_folder_of_xdgs_it_is_in_tmp(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", base)
    assert folders.runtime_root() == FALLBACK


def test_a_path_too_long_for_sockets_is_not_used(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = short_folder / ("x" * (106 - len(f"{short_folder}/dockml{SOCKET}")))
    fits.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(fits))
    assert folders.runtime_root() == fits / "dockml"
    too_long = fits.with_name(fits.name + "xx")
    too_long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(too_long))
    assert folders.runtime_root() == FALLBACK


def test_a_folder_that_others_may_open_is_refused(short_folder: Path) -> None:
    (short_folder / "dockml").mkdir()
    (short_folder / "dockml").chmod(0o755)
    with pytest.raises(ConfigError, match="is not yours alone"):
        folders.runtime_root()


def test_a_link_is_refused(short_folder: Path) -> None:
    (short_folder / "elsewhere").mkdir(mode=0o700)
    (short_folder / "dockml").symlink_to(short_folder / "elsewhere")
    with pytest.raises(ConfigError, match="is not yours alone"):
        folders.runtime_root()


def test_a_link_to_nowhere_and_a_file_are_refused(short_folder: Path) -> None:
    path = short_folder / "dockml"
    path.symlink_to(short_folder / "nowhere")
    with pytest.raises(ConfigError, match="is not yours alone"):
        folders.runtime_root()
    path.unlink()
    path.touch()
    with pytest.raises(ConfigError, match="is not yours alone"):
        folders.runtime_root()


def test_empty_folders_of_earlier_containers_are_removed(short_folder: Path) -> None:
    root = folders.runtime_root()
    for name in ("half made", "young", "used", "emptied"):
        (root / name).mkdir()
    for name in ("used", "emptied"):
        (root / name / "shared").mkdir()
    (root / "used" / "shared" / "control").touch()
    (root / "emptied" / "kernel-1").touch()
    long_ago = time.time() - 3600
    for name in ("half made", "used", "used/shared", "emptied", "emptied/shared"):
        os.utime(root / name, (long_ago, long_ago))
    folders.runtime_root()
    assert sorted(path.name for path in root.iterdir()) == ["used", "young"]


def test_a_folder_that_another_user_made_before_us_is_refused(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short_folder / "dockml").mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(ConfigError, match="is not yours alone"):
        folders.runtime_root()


# --- a runtime folder whose container is hostile ----------------------------------------------------


@pytest.fixture
def runtime(short_folder: Path) -> Iterator[RuntimeFolder]:
    folder = RuntimeFolder(folders.runtime_root() / "0123456789ab")
    folder.make()
    yield folder
    folder.remove()
    assert not folder.path.exists()


def listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)
    server.settimeout(5.0)
    return server


def assert_leads_to(path: Path, server: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"hello")
        with server.accept()[0] as accepted:
            assert accepted.recv(5) == b"hello"


def test_a_file_takes_the_place_of_a_link_and_not_of_what_that_leads_to(
    runtime: RuntimeFolder, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    victim.chmod(0o600)
    (runtime.shared / "config.json").symlink_to(victim)
    runtime.write("config.json", b"{}")
    assert victim.read_text() == "mine"
    assert victim.stat().st_mode & 0o777 == 0o600
    assert not (runtime.shared / "config.json").is_symlink()
    assert (runtime.shared / "config.json").read_bytes() == b"{}"
    assert sorted(path.name for path in runtime.shared.iterdir()) == ["config.json"]


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_any_user_in_the_container_reads_a_file_and_only_we_write_it(
    runtime: RuntimeFolder, mask: int
) -> None:
    before = os.umask(mask)
    try:
        runtime.write("launch.py", b"x")
    finally:
        os.umask(before)
    assert (runtime.shared / "launch.py").stat().st_mode & 0o777 == 0o644


def test_a_folder_in_the_place_of_a_file_is_an_error_and_leaves_no_scratch_file(
    runtime: RuntimeFolder,
) -> None:
    (runtime.shared / "config.json" / "inner").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        runtime.write("config.json", b"{}")


def test_a_shared_folder_that_became_a_link_is_not_written_to(
    runtime: RuntimeFolder, tmp_path: Path
) -> None:
    runtime.shared.rmdir()
    runtime.shared.symlink_to(tmp_path)
    with pytest.raises(OSError, match="Not a directory"):
        runtime.write("config.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def is_other_users(*args: object, **more: object) -> NoReturn:
    """Stands for `os.link` where another user runs in the container: protected_hardlinks."""
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.fixture(params=["ours", "another user's"])
def owner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "ours":
        monkeypatch.setattr(os, "link", is_other_users)


def test_a_kernels_sockets_are_reached_whatever_is_done_to_their_names(
    runtime: RuntimeFolder, owner: None
) -> None:
    inside = runtime.shared / "kernel-1"
    with listen(inside) as kernel:
        runtime.reach([1])
        inside.unlink()
        with listen(inside) as other:
            assert_leads_to(Path(f"{runtime.kernel}-1"), kernel)
            runtime.reach([1])
            assert_leads_to(Path(f"{runtime.kernel}-1"), other)
            runtime.reach([1])  # of the same kernel once more
            assert_leads_to(Path(f"{runtime.kernel}-1"), other)
    assert sorted(path.name for path in runtime.path.iterdir()) == ["kernel-1", "shared"]


def test_a_link_to_another_socket_is_not_followed(
    runtime: RuntimeFolder, owner: None, short_folder: Path
) -> None:
    with listen(short_folder / "engine.sock"):
        (runtime.shared / "kernel-1").symlink_to(short_folder / "engine.sock")
        with pytest.raises(ConnectionRefusedError, match="is no socket"):
            runtime.reach([1])
    assert [path.name for path in runtime.path.iterdir()] == ["shared"]


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir], ids=["file", "folder"])
def test_what_is_no_socket_is_not_reached(
    runtime: RuntimeFolder, owner: None, make: Callable[[Path], None]
) -> None:
    make(runtime.shared / "kernel-1")
    with pytest.raises(OSError):  # noqa: PT011 - a folder has no second name either
        runtime.reach([1])


def test_another_process_of_ours_reaches_the_kernel_too(
    runtime: RuntimeFolder, owner: None
) -> None:
    with listen(runtime.shared / "kernel-1") as kernel:
        runtime.reach([1])
        code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        command = [sys.executable, "-c", code, f"{runtime.kernel}-1"]
        assert subprocess.run(command, check=False).returncode == 0
        kernel.accept()[0].close()


def test_no_folder_is_too_deep_or_too_closed_to_be_removed(
    short_folder: Path, tmp_path: Path
) -> None:
    runtime = RuntimeFolder(folders.runtime_root() / "0123456789ab")
    runtime.make()
    victim = tmp_path / "kept"
    victim.touch()
    code = (
        "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\nopen('file', 'w').close()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=runtime.shared, check=True)
    closed = runtime.shared / "closed"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0)
    (runtime.shared / "link").symlink_to(tmp_path)
    runtime.remove()
    assert not runtime.path.exists()
    assert victim.exists()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_only_we_write_to_the_cache(mask: int) -> None:
    before = os.umask(mask)
    try:
        made = [folders.cache_root(), folders.bundles_root()]
    finally:
        os.umask(before)
    assert [folder.stat().st_mode & 0o022 for folder in made] == [0, 0]


def test_the_folder_of_a_container_that_was_killed_is_removed_in_time() -> None:
    living, killed = (RuntimeFolder(folders.runtime_root() / name) for name in ("1" * 12, "2" * 12))
    servers = []
    for folder in (living, killed):
        folder.make()
        folder.write("config.json", b"{}")
        servers.append(listen(folder.shared / "control"))
    servers[1].close()
    for folder in (living, killed):
        for path in (folder.shared, folder.path):
            os.utime(path, (0, 0))
    folders.runtime_root()
    assert (living.path.exists(), killed.path.exists()) == (True, False)
    servers[0].close()


def test_a_folder_that_a_start_works_on_is_left_whatever_the_clock_says() -> None:
    folder = folders.runtime_root() / "starting"
    folder.mkdir()
    os.utime(folder, (0, 0))
    claim = folders.claim(folder)
    assert folders.is_claimed(folder)
    assert folders.runtime_root().joinpath("starting").is_dir()
    os.close(claim)
    assert not folders.is_claimed(folder)
    assert not folders.runtime_root().joinpath("starting").exists()
    assert not folders.is_claimed(folder)


def test_a_current_folder_that_was_removed_is_told(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = short_folder / "notebook"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert folders.current_folder() == folder
    folder.rmdir()
    with pytest.raises(MountError, match=r"was removed.*\n.*%cd"):
        folders.current_folder()


def test_the_cache_is_xdgs_or_in_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    assert folders.cache_root() == Path(os.environ["XDG_CACHE_HOME"]) / "dockml"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert folders.cache_root() == Path.home() / ".cache" / "dockml"
    assert folders.bundles_root() == folders.cache_root() / "bundles"
    assert folders.bundles_root().is_dir()


def test_a_folder_that_another_process_removes_at_this_moment_is_passed_over(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folders.runtime_root()
    gone = root / "0123456789ab"
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([gone] if path == root else []))
    assert folders.runtime_root() == root
