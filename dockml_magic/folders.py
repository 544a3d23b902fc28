"""Where we keep things on the host: sockets for a running kernel, and what is worth keeping."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from pathlib import Path

from dockml_magic.errors import ConfigError

_SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path on Linux (sys/un.h)."""

_LEFT_OVER_AGE = 60.0
"""Seconds: younger ones may belong to a start that goes on."""

_LONGEST_TAIL = len("/0123456789ab/kernel-5")


def runtime_root() -> Path:
    """Return the folder for runtime folders: ours alone (0700) and with a short path.

    Raises
    ------
    ConfigError
        If somebody else made the folder before us.
    """
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    root = Path(base) / "dockml"
    if (
        not base
        or len(os.fsencode(root)) + _LONGEST_TAIL > _SOCKET_PATH_LIMIT
        or not _writable(base)
    ):
        root = Path(f"/tmp/dockml-{os.getuid()}")  # noqa: S108 - checked below
    make_root(root)
    _remove_left_overs(root)
    return root


def make_root(root: Path) -> None:
    """Make a folder for runtime folders, or see to it that it is ours alone.

    Raises
    ------
    ConfigError
        If somebody else made the folder before us, or it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        root.mkdir(mode=0o700)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"The folder '{root}' is not yours alone.",
            hint="Remove it, or set XDG_RUNTIME_DIR to a folder that only you can open.",
        )


def remove_runtime(folder: Path) -> None:
    """Remove a container's runtime folder, with what it has left in there."""
    shutil.rmtree(folder, ignore_errors=True)


def _remove_left_overs(root: Path) -> None:
    """Remove runtime folders of containers that outlived their notebook; they empty them themselves."""
    for folder in root.iterdir():
        with contextlib.suppress(OSError):  # not empty, or another process was quicker
            if time.time() - folder.stat().st_mtime > _LEFT_OVER_AGE:
                folder.rmdir()


def _writable(folder: str) -> bool:
    return Path(folder).is_dir() and os.access(folder, os.W_OK)


def state_root() -> Path:
    """Return the folder for what is to be known after a restart of the machine: ours alone (0700)."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    root = Path(base) / "dockml"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return root


def cache_root() -> Path:
    """Return the folder for what is built once: kernel bundles, what was found out about images."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(base) / "dockml"
    root.mkdir(parents=True, exist_ok=True)
    return root


def bundles_root() -> Path:
    """Return the folder of the kernel bundles, which every container mounts read-only."""
    root = cache_root() / "bundles"
    root.mkdir(exist_ok=True)
    return root
