"""How containers outlive the restart of a notebook's own kernel: a keeper holds their leases in between.

A front end restarts a kernel by ending its process and starting another with the same connection file. The
one that ends hands its containers over: it writes what another process needs to adopt them into a file of
the runtime folder, and starts a keeper, a process that holds the leases. The one that comes finds the
file by the name of its connection file, adopts the containers, and removes it; the keeper ends then.

The keeper ends the containers where nobody may come any more: the connection file is gone (the front end
has shut the kernel down), or the process that started the kernel is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from dockml_magic import folders
from dockml_magic.control import ControlChannel, address_from
from dockml_magic.errors import KernelError

_LOOK_INTERVAL = 0.5
"""Seconds between two looks of the keeper."""

_READY_TIMEOUT = 30.0
"""Seconds for the keeper to come up. A front end ends a kernel by force after 5."""

_READY = b"ready\n"


def hand_over(connection_file: str, containers: Sequence[Mapping[str, Any]]) -> bool:
    """Let a keeper hold the leases of these containers for the next kernel of this notebook.

    Called by a kernel that is about to be restarted, which holds the leases itself until it ends.

    Parameters
    ----------
    connection_file : str
        Of the notebook's own kernel; the next one has the same.
    containers : sequence of mapping
        What `DockerProvisioner.get_provisioner_info` says of each; plain JSON.

    Returns
    -------
    bool
        A keeper holds them.
    """
    path = _file_for(connection_file)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # an earlier keeper's
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(list(containers), file)
    # Whoever started this kernel starts the next one. A wrapper between the two may end with this one.
    starter = os.environ.get("JPY_PARENT_PID") or str(os.getppid())
    package = str(Path(__file__).parent.parent)
    keeper = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", __name__, str(path), connection_file, starter],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",  # nothing in the notebook's folder is to be imported, or kept from being unmounted
        env={**os.environ, "PYTHONPATH": package},
        start_new_session=True,
    )
    assert keeper.stdout is not None
    is_ready = bool(select.select([keeper.stdout], [], [], _READY_TIMEOUT)[0])
    is_ready = is_ready and keeper.stdout.readline() == _READY
    if not is_ready:
        keeper.kill()
        path.unlink(missing_ok=True)
    return is_ready


def find_handed_over(connection_file: str) -> list[dict[str, Any]]:
    """Return the containers that were handed over to the kernel with this connection file."""
    try:
        found = json.loads(_file_for(connection_file).read_text())
    except (OSError, ValueError, RecursionError):
        return []
    return [info for info in found if isinstance(info, dict)] if isinstance(found, list) else []


def end_handover(connection_file: str) -> None:
    """Let the keeper go: the containers are adopted, or nobody wants them."""
    _file_for(connection_file).unlink(missing_ok=True)


def _file_for(connection_file: str) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(connection_file))).hexdigest()[:16]
    return folders.runtime_root() / f"{name}.handover"


def keep(path: Path, connection_file: Path, starter: int) -> None:
    """Hold the leases of the containers in a file until they are adopted or nobody can come for them."""
    with path.open() as file:  # while it is open, no other file can be taken for it
        channels = list(_channels(json.load(file)))
        with contextlib.suppress(BrokenPipeError):  # it was ended by force; the next one comes
            os.write(sys.stdout.fileno(), _READY)
        while connection_file.exists() and _runs(starter):
            if not _is_there(path, file) or all(c.state.phase == "gone" for c in channels):
                break
            time.sleep(_LOOK_INTERVAL)
        if _is_there(path, file):
            path.unlink()
            for channel in channels:
                with contextlib.suppress(KernelError):
                    channel.stop()


def _channels(containers: Sequence[Mapping[str, Any]]) -> Iterator[ControlChannel]:
    """Yield the connections to the supervisors that answer."""
    for container in (info["container"] for info in containers):
        with contextlib.suppress(OSError):
            channel = ControlChannel(address_from(container["control"]), container["key"])
            channel.wait(lambda state: state.generation > 0, timeout=1.0)
            yield channel


def _is_there(path: Path, file: IO[str]) -> bool:
    """Tell whether an open file is still at its path: it is removed, or replaced by the next restart."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
