"""The environments that are kept: found again by name, from any notebook of their user and workspace.

A kept environment outlives the notebook that started it, and a restart of the machine. What another notebook needs
to attach to it, or to start it again, is in a file of its own below `folders.state_root`: with the key to it, so it is
its user's alone. It is not in the runtime folder, which the container may write to and the machine's restart
empties, nor in a label, which everybody reads and `docker commit` keeps. A container without such a file is none
of ours to stop or remove by name, whatever its labels say.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dockml_magic import folders, labels
from dockml_magic.control import ControlChannel, address_from
from dockml_magic.engine import ContainerState, Engine, remove_container
from dockml_magic.errors import ConfigError, KernelError, KernelPausedError
from dockml_magic.options import RunOptions
from dockml_magic.planning import engine_for

_LOOK_INTERVAL = 0.1
_STOP_TIMEOUT = 3.0
_SHORTEST_ID = 6
"""Characters of a container's id by which it can be named."""

RUNS = ("running", "paused", "restarting")
"""What the engine says of a container that has processes."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An environment that is kept.

    Attributes
    ----------
    name : str
        The environment's.
    workspace : Path
    container_id, session : str
    stays : bool
        It was started with --keep: its container stays when it is stopped.
    is_starting : bool
        Its container was created, and has not been seen to run yet.
    info : mapping
        What `Environment.describe` said. Secret.
    """

    name: str
    workspace: Path
    container_id: str
    session: str
    stays: bool
    endpoint: str
    is_starting: bool
    info: Mapping[str, Any] = field(repr=False)

    @property
    def asked(self) -> RunOptions:
        """The options it was started with."""
        return RunOptions.from_json(self.info["asked"])

    def is_same(self, options: RunOptions) -> bool:
        """Tell whether someone who types these options may mean this one."""
        return is_same(options, self.asked, self.name)


def is_same(typed: RunOptions, asked: RunOptions, name: str) -> bool:
    """Tell whether typed options are none, or those that the environment `name` was started with.

    `--keep` does not tell two apart: it says nothing of what runs.
    """
    typed, asked = (replace(options, keep=False) for options in (typed, asked))
    return typed in (RunOptions(), RunOptions(name=name), asked)


def meant(
    typed: str, options: RunOptions, *, known: str, what: str, asked: RunOptions
) -> tuple[str, RunOptions]:
    """Return what to start for a typed NAME and options where there is, or was, an environment of that name.

    Parameters
    ----------
    typed, options : str, RunOptions
        As typed.
    known : str
        The environment's name.
    what, asked : str, RunOptions
        What was typed when it was started: its NAME, which --name may have left no trace of, and its options.
    """
    if typed != known:
        return typed, options
    if options in (RunOptions(), RunOptions(name=known)):
        return what, asked
    return (typed, options) if what == known else (what, replace(options, name=known))


# --- the files ------------------------------------------------------------------------------------


def write(name: str, info: Mapping[str, Any], engine: Engine, *, starting: bool = False) -> None:
    """Note that an environment is kept; `info` is what `Environment.describe` says."""
    container = info["container"]
    data = {
        "name": name,
        "workspace": info["workspace"],
        "container_id": container["container_id"],
        "session": container["session"],
        "stays": container["plan"]["kept"],
        "endpoint": engine.facts.endpoint,
        "machine": _machine(),
        "is_starting": starting,
        "info": dict(info),
    }
    path = _file_for(container["session"])
    partial = path.with_suffix(f".{os.getpid()}.new")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(data, file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # on a disk that is full


def forget(session: str) -> None:
    """Note that an environment is not kept any more."""
    _file_for(session).unlink(missing_ok=True)


def file_of(kept: Kept) -> Path:
    """Return where it is noted."""
    return _file_for(kept.session)


def all_kept() -> list[Kept]:
    """Return what is noted of this machine, oldest first; whether it is still there is not asked."""
    found = []
    for path in _root().glob("*.json"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            state = path.stat()
            data = json.loads(path.read_text())
            is_ours = state.st_uid == os.getuid() and not state.st_mode & 0o077
            if not is_ours or data.pop("machine") != _machine():
                continue  # a home that several machines share
            data["workspace"] = Path(data["workspace"])
            found.append((state.st_mtime, Kept(**data)))
    return [kept for _, kept in sorted(found, key=lambda pair: pair[0])]


def _root() -> Path:
    root = folders.state_root() / "kept"
    root.mkdir(exist_ok=True, mode=0o700)
    return root


def _file_for(session: str) -> Path:
    return _root() / f"{session}.json"


def _machine() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip() or os.uname().nodename
    except OSError:
        return os.uname().nodename


# --- what there is --------------------------------------------------------------------------------


def look(kept: Kept) -> ContainerState | None:
    """Return its container as the engine sees it, None where there is none; what is gone is forgotten."""
    engine = engine_for(RunOptions(engine=kept.asked.engine))
    if engine.facts.endpoint != kept.endpoint:
        return None  # of another engine, which is not asked now
    state = engine.inspect(kept.container_id)
    if state is None or state.labels.get(labels.SESSION) != kept.session:
        forget(kept.session)
        _remove_runtime(kept)
        return None
    return state


def raise_if_paused(kept: Kept) -> None:
    """Raise `KernelPausedError` where nothing in its container can answer."""
    if _is_paused(look(kept)):
        raise KernelPausedError(kept.name, kept.container_id, stays=kept.stays)


def _is_paused(state: ContainerState | None) -> bool:
    return state is not None and state.status == "paused"


def runs(kept: Kept) -> bool:
    """Tell whether its container has processes."""
    state = look(kept)
    return state is not None and state.status in RUNS


def find(name: str, workspace: Path) -> Kept | None:
    """Return the kept environment of this name and workspace whose container is there."""
    for kept in reversed(all_kept()):
        if (kept.name, kept.workspace) == (name, workspace) and look(kept) is not None:
            return kept
    return None


def names(workspace: Path) -> list[str]:
    """Return the names of the kept environments of a workspace, without a look at the engine."""
    return [kept.name for kept in all_kept() if kept.workspace == workspace]


def get(name: str, workspace: Path) -> Kept:
    """Return a kept environment by its name, or by the beginning of its container's id.

    Raises
    ------
    ConfigError
        If there is none.
    EngineUnreachableError
        If the engine does not answer.
    """
    if (found := find(name, workspace)) is not None:
        return found
    if len(name) >= _SHORTEST_ID:
        for kept in all_kept():
            if kept.container_id.startswith(name) and look(kept) is not None:
                return kept
    engine_for(RunOptions())  # of an engine that does not answer it is that which is to be told
    known = names(workspace)
    raise ConfigError(
        f"There is no kept environment '{name}' of this folder.",
        hint=f"Kept: {', '.join(sorted(known))}." if known else "See all with: dockml ps",
    )


# --- what can be done with it ---------------------------------------------------------------------


def stop(kept: Kept) -> None:
    """Stop its container as `docker stop` does, whoever is attached; one started with --keep stays.

    Raises
    ------
    KernelPausedError
        If it is paused, and would have to stay.
    """
    engine = engine_for(RunOptions(engine=kept.asked.engine))
    is_paused = _is_paused(engine.inspect(kept.container_id))
    if is_paused and kept.stays:
        raise KernelPausedError(kept.name, kept.container_id, stays=True)
    if is_paused:
        remove(kept, force=True)
        return
    container = kept.info["container"]
    was_asked = False
    with contextlib.suppress(OSError, KernelError):
        channel = ControlChannel(address_from(container["control"]), container["key"])
        channel.stop()
        was_asked = channel.wait(lambda state: state.phase == "gone", _STOP_TIMEOUT) is not None
        channel.close()
    if not was_asked or engine.wait(kept.container_id, _STOP_TIMEOUT) is None:
        engine.stop(kept.container_id)
    if not kept.stays:
        remove_container(engine, kept.container_id)
        forget(kept.session)
    _remove_runtime(kept)


def remove(kept: Kept, *, force: bool) -> None:
    """Remove its container, one that runs only by force.

    Raises
    ------
    ConfigError
        If it runs.
    """
    state = look(kept)
    if state is not None and state.status in RUNS and not force:
        raise ConfigError(
            f"'{kept.name}' runs.", hint=f"Stop it first, or: %docker_rm -f {kept.name}"
        )
    engine = engine_for(RunOptions(engine=kept.asked.engine))
    if state is not None:
        remove_container(engine, kept.container_id)
    forget(kept.session)
    _remove_runtime(kept)


def _remove_runtime(kept: Kept) -> None:
    folders.RuntimeFolder(Path(kept.info["container"]["runtime"])).remove()


@contextmanager
def starting(name: str, workspace: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes away from a name of a workspace while a kept one is started under it."""
    digest = hashlib.sha256(os.fsencode(f"{workspace}\0{name}")).hexdigest()[:16]
    path = _root() / f"{digest}.lock"
    descriptor = _lock(path, lambda: tell(f"another notebook starts {name!r} just now; waiting"))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path, wait_told: Callable[[], None]) -> int:
    """Return an open file that is locked and is still the one at this path."""
    has_told = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # its holder has removed it
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return descriptor  # a home whose file system has no locks
            if not has_told:
                wait_told()
                has_told = True
            time.sleep(_LOOK_INTERVAL)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
