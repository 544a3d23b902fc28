"""Where we keep things on the host: sockets for a running kernel, and what is worth keeping."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from dockml_magic.errors import ConfigError, MountError

_SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path on Linux (sys/un.h)."""

_LEFT_OVER_AGE = 60.0
"""Seconds: younger ones may be about to be claimed.

By the time of day, which may jump: too far ahead, and a folder would have to be made and claimed around that
moment to be lost; back, and a folder that nobody needs stays for longer.
"""

SESSION = re.compile(r"[0-9a-f]{12}")
"""How we call a runtime folder: any other label of a container is not ours, and may lead anywhere."""

WARM_FILE = "warm"
"""In the part of a runtime folder that no container sees: it waits for being asked for, and takes so many bytes."""

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


class RuntimeFolder:
    """The runtime folder of one container: what is shared with it, and the way to its kernel.

    The container may do anything to the `shared` folder inside: put links or other sockets in the place of files
    and sockets. So nothing in there is ever opened by its name. Files are written beside and moved to their
    place; a kernel's sockets get a second name in the folder above, which no container sees.

    Parameters
    ----------
    path : Path
        Need not exist.

    Attributes
    ----------
    shared : Path
        What the container has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shared = path / "shared"
        self._pinned: list[int] = []

    def make(self) -> None:
        """Make it; the one in the container may be another user."""
        self.path.mkdir(mode=0o700)
        self.shared.mkdir()
        self.shared.chmod(0o777)

    def read(self, name: str, most: int) -> bytes:
        """Return what is in a file that the container has written.

        Raises
        ------
        OSError
            If it is no file, or has more than `most` bytes.
        """
        with _closing(self._open_shared()) as shared:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=shared)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            content = file.read(most + 1) if stat.S_ISREG(found.st_mode) else None
        if content is None or len(content) > most:
            raise OSError(errno.EINVAL, "no file of ours", name)
        return content

    def write(self, name: str, content: bytes, mtime: float | None = None) -> None:
        """Write a file for the container, which any user there may read, whatever our umask is.

        Raises
        ------
        OSError
            If the container has put a folder in its place.
        """
        folder = os.open(self.shared, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            scratch = f".{name}-{secrets.token_hex(8)}"
            fd = os.open(
                scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder
            )
            with os.fdopen(fd, "wb") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(content)
                file.flush()
                if mtime is not None:
                    os.utime(file.fileno(), (mtime, mtime))
            os.replace(scratch, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)

    def listen(self, name: str) -> socket.socket:
        """Return a socket that any user in the container can connect to, under a name that `shared` gets.

        It is made in the folder above and moved there: whose permissions we change is no doubt so. Bound by the
        folder's descriptor, as the path may be too long.

        Raises
        ------
        OSError
            If the folder is gone, or the container has put a folder in its place.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.ExitStack() as undo:
            undo.callback(listener.close)
            above = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            with _closing(above), _closing(self._open_shared()) as shared:
                listener.bind(f"/proc/self/fd/{above}/.{name}")
                os.chmod(f".{name}", 0o666, dir_fd=above)  # noqa: S103 - any user in there
                listener.listen()
                os.rename(f".{name}", name, src_dir_fd=above, dst_dir_fd=shared)
            undo.pop_all()
        return listener

    def unlist(self, name: str) -> None:
        """Remove the name of a socket that was listened on. Being gone is success."""
        with contextlib.suppress(OSError), _closing(self._open_shared()) as shared:
            os.unlink(name, dir_fd=shared)

    def _open_shared(self) -> int:
        return os.open(self.shared, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)

    @property
    def kernel(self) -> Path:
        """How the paths of the kernel's sockets begin."""
        return self.path / "kernel"

    def reach(self, ports: Iterable[int]) -> None:
        """Give the sockets of the kernel that runs now the names that begin with `kernel`.

        Raises
        ------
        OSError
            If one is not there, or is no socket.
        """
        self._release()
        for port in ports:
            inside, outside = self.shared / f"kernel-{port}", self.path / f"kernel-{port}"
            scratch = self.path / f".{port}-{secrets.token_hex(8)}"
            try:
                if not stat.S_ISSOCK(self._name(inside, scratch).st_mode):
                    raise ConnectionRefusedError(f"{inside} is no socket")
                scratch.replace(outside)
            finally:
                scratch.unlink(missing_ok=True)

    def _name(self, inside: Path, scratch: Path) -> os.stat_result:
        """Give what is at a path inside, be it a link, a name outside; return what it is."""
        try:
            os.link(inside, scratch, follow_symlinks=False)
            return scratch.lstat()
        except OSError:
            # Another user's, who runs in there: Linux lets us have no second name of it (protected_hardlinks).
            fd = os.open(inside, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._pinned.append(fd)
            scratch.symlink_to(f"/proc/{os.getpid()}/fd/{fd}")
            return os.fstat(fd)

    def _release(self) -> None:
        for fd in self._pinned:
            os.close(fd)
        self._pinned.clear()

    def remove(self) -> None:
        """Remove it, with whatever the container has left in there."""
        self._release()
        _remove_tree(self.path)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_tree(path: Path) -> None:
    """Remove a folder and all in it, following no link.

    What may not be removed stays: another user's, who ran in the container. Folders are brought up before
    they are looked into, as a container can make them deeper than there are descriptors (and `shutil.rmtree`
    takes one for each level).
    """
    with contextlib.suppress(OSError):
        top = _open_folder(path, None)
        try:
            stuck: set[str] = set()
            while names := set(os.listdir(top)) - stuck:  # noqa: PTH208 - by descriptor
                for name in names:
                    try:
                        _remove_entry(top, name)
                    except OSError:
                        stuck.add(name)
        finally:
            os.close(top)
        path.rmdir()


def _remove_entry(top: int, name: str) -> None:
    """Remove a file, or a folder whose own folders go to the top."""
    try:
        os.unlink(name, dir_fd=top)
    except IsADirectoryError:
        folder = _open_folder(name, top)
        try:
            for inner in os.listdir(folder):  # noqa: PTH208 - by descriptor
                try:
                    os.unlink(inner, dir_fd=folder)
                except FileNotFoundError:  # the container removes it too
                    continue
                except IsADirectoryError:
                    os.rename(inner, secrets.token_hex(16), src_dir_fd=folder, dst_dir_fd=top)
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=top)


def _open_folder(path: str | Path, dir_fd: int | None) -> int:
    """Return a descriptor of a folder, and be it closed to its owner; never of what a link leads to."""
    found = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        with contextlib.suppress(OSError):
            Path(f"/proc/self/fd/{found}").chmod(0o700)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=found)
    finally:
        os.close(found)


def _remove_left_overs(root: Path) -> None:
    """Remove runtime folders of containers that outlived their notebook; they empty what they share."""
    for folder in root.iterdir():
        shared = RuntimeFolder(folder).shared
        with contextlib.suppress(OSError):  # not empty, or another process was quicker
            newest = folder.stat().st_mtime
            if shared.is_dir():
                newest = max(newest, shared.stat().st_mtime)
            is_old = folder.is_dir() and time.time() - newest > _LEFT_OVER_AGE
            if is_old and not is_claimed(folder):
                if shared.is_dir() and has_listener(shared / "control") is not False:
                    shared.rmdir()
                _remove_tree(folder)


def has_listener(control: Path) -> bool | None:
    """Tell whether somebody listens on a supervisor's socket; None where there is none, or something else.

    Nobody does after `docker kill` of the container and then `kill -9` of its notebook. One that is paused takes no
    connection, and refuses none.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        if stat.S_ISSOCK(control.lstat().st_mode):  # the container may have put a link there
            connection.settimeout(0.0)
            return connection.connect_ex(str(control)) != errno.ECONNREFUSED
    return None


def claim(folder: Path) -> int:
    """Say that a start works on this runtime folder, until the descriptor is closed or this process ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError):  # a file system without locks; `is_claimed` will say yes
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # `is_claimed` may hold it for a moment
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
    return _ours_to_write(root)


def bundles_root() -> Path:
    """Return the folder of the kernel bundles, which every container mounts read-only."""
    root = cache_root() / "bundles"
    root.mkdir(exist_ok=True)
    return _ours_to_write(root)


def _ours_to_write(folder: Path) -> Path:
    """Return a folder that others may read, and not write to, whatever the umask is."""
    if folder.stat().st_mode & 0o022:
        with contextlib.suppress(PermissionError):  # somebody else's, who shares it
            folder.chmod(0o755)
    return folder
