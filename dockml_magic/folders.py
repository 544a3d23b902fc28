"""Where we keep things on the host: sockets for a running kernel, and what is worth keeping."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from pathlib import Path

from dockml_magic.errors import ConfigError, MountError

_SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path on Linux (sys/un.h)."""

_LEFT_OVER_AGE = 60.0
"""Seconds: younger ones may be about to be claimed.

By the time of day, which may jump: too far ahead, and a folder would have to be made and claimed around that
moment to be lost; back, and a folder that nobody needs stays for longer.
"""

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
    with contextlib.suppress(FileExistsError):
        root.mkdir(mode=0o700)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"The folder '{root}' is not yours alone.",
            hint="Remove it, or set XDG_RUNTIME_DIR to a folder that only you can open.",
        )
    _remove_left_overs(root)
    return root


def _remove_left_overs(root: Path) -> None:
    """Remove runtime folders of containers that outlived their notebook; they empty them themselves."""
    for folder in root.iterdir():
        with contextlib.suppress(OSError):  # not empty, or another process was quicker
            if time.time() - folder.stat().st_mtime > _LEFT_OVER_AGE and not is_claimed(folder):
                folder.rmdir()


def claim(folder: Path) -> int:
    """Say that a start works on this runtime folder, until the descriptor is closed or this process ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError):  # a file system without locks; `is_claimed` will say yes
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def is_claimed(folder: Path) -> bool:
    """Tell whether a start works on a runtime folder; not where there is no such folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove(folder: Path) -> None:
    """Remove a runtime folder, as far as possible."""
    shutil.rmtree(folder, ignore_errors=True)


def current_folder() -> Path:
    """Return the current folder, which is the notebook's.

    Raises
    ------
    MountError
        If it was removed.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise MountError(
            "The notebook's folder was removed, or is another one by now.",
            hint="Go to one that exists: %cd FOLDER   (in the notebook's own kernel: %docker_env local)",
        ) from None


def _writable(folder: str) -> bool:
    return Path(folder).is_dir() and os.access(folder, os.W_OK)


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
