from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dockml_magic import folders
from dockml_magic.errors import ConfigError, MountError

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
    for name in ("old", "young", "used"):
        (root / name).mkdir()
    (root / "used" / "control").touch()
    long_ago = time.time() - 3600
    for name in ("old", "used"):
        os.utime(root / name, (long_ago, long_ago))
    folders.runtime_root()
    assert sorted(path.name for path in root.iterdir()) == ["used", "young"]


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
