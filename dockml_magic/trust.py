"""Trust in project files: what one asks for beyond its own folder is shown before it is used.

A `dockml.toml` comes with a notebook, perhaps from somebody else, and decides how containers run. Most of what it
can say stays inside of the container. What is started without a line of the user's (`warm`) is what they have started
once themselves, as the file stands. What gives the container more of this machine than the notebook's folder is
refused, with a list, until the user allows exactly that (`%docker_env NAME --trust`, `dockml trust`), as
direnv and `jupyter trust` do. What the user types themselves needs none of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from dockml_magic.errors import UntrustedProjectError
from dockml_magic.names import Choice
from dockml_magic.options import (
    RunOptions,
    parse_capability,
    parse_device,
    parse_publish,
    parse_security_opt,
    parse_volume,
)
from dockml_magic.project import Project, is_dockerfile, user_images_file

_OWN_NETWORKS = ("none", "bridge", "default")

INSTALL_NETWORK = (
    "the network 'host' while packages are installed, as your proxy or package index is on this machine: every "
    "service of this machine"
)
"""What is asked for where `layers.needs_this_machine`. It changes with the user's settings, not with the file."""

_ENGINE_SOCKETS = (
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/user/{uid}/docker.sock",
    "/run/user/{uid}/podman/podman.sock",
)


def widening(
    project: Project, name: str, choice: Choice, folder: Path, *, installs_on_host: bool = False
) -> tuple[str, ...]:
    """Return what a project file asks for, for an environment, beyond its own folder; a phrase each.

    Parameters
    ----------
    project : Project
        The project of `folder`.
    name : str
        As the user typed it.
    choice : Choice
        What it came to, with what is to be installed.
    folder : Path
        The notebook's.
    installs_on_host : bool
        Packages would be installed in the host's network.
    """
    options = project.environments.get(name)
    is_its_image = choice.image is not None and choice.image.source == str(project.path)
    if project.path is None or (options is None and not is_its_image):
        return ()
    asked = list(_foreign(project.path, folder))
    if options is not None:
        own = project.path.resolve().parent
        asked += _asked_by(options, own)
        asked += _read_by(options, choice, own)
        # Also where it names none: what its name means then, and what a lock beside it says.
        is_its_image |= choice.options.image == options.image
    if installs_on_host and choice.extras and (is_its_image or (options and options.packages)):
        asked.append(INSTALL_NETWORK)
    return tuple(asked)


def _read_by(options: RunOptions, choice: Choice, own: Path) -> Iterator[str]:
    """Yield the requirements files elsewhere that a project file names, or that one of its files names."""
    files = choice.extras.files if choice.extras else ()
    for path in dict.fromkeys(file for entry, file in files if entry in options.packages):
        if not path.is_relative_to(own):
            yield f"{path}, to read as a list of packages"


def _foreign(path: Path, folder: Path) -> Iterator[str]:
    """Yield whose the file is, if it is another user's who put it above our folder: in /tmp anybody can."""
    owner = path.stat().st_uid
    if owner not in (os.getuid(), 0, folder.stat().st_uid):
        yield f"it is not your file: it belongs to user {owner}, and this folder does not"


def _asked_by(options: RunOptions, own: Path) -> Iterator[str]:
    if (
        options.image
        and is_dockerfile(options.image)
        and not Path(options.image).is_relative_to(own)
    ):
        yield f"build {options.image}, with what is in its folder"
    for text in options.volumes:
        volume = parse_volume(text)
        how = "to read" if volume.read_only else "to read and write"
        if not volume.is_host_path:
            yield f"the volume '{volume.source}', {how}: what other containers have put there"
        elif not (path := volume.host_path(own)).is_relative_to(own):
            yield f"{path}, {how}{_has_engine_socket(path)}"
    for text in options.env:
        if "=" not in text:
            yield f"the value of your variable {text}"
    for text in options.publish:
        for port in parse_publish(text):
            if not _is_this_machine(port.host_ip):
                yield f"port {port.container_port}, to be reached from other machines ({text})"
    if options.privileged:
        yield "--privileged: all rights of this machine's root"
    for text in options.cap_add:
        yield f"the capability {parse_capability(text)}"
    for text in options.security_opt:
        if parse_security_opt(text) != "no-new-privileges=true":
            yield f"--security-opt {text}"
    for text in options.device:
        yield f"the device {parse_device(text)}"
    if options.network and options.network not in _OWN_NETWORKS:
        yield f"the network '{options.network}'" + (
            ": every service of this machine" if options.network == "host" else ""
        )
    if options.ipc and (options.ipc == "host" or options.ipc.startswith("container:")):
        yield f"shared memory of others (--ipc {options.ipc})"
    if options.user and _may_be_root(options.user):
        yield f"to run as '{options.user}', which is root or may be: its files in your folders are root's"


def _is_this_machine(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _may_be_root(user: str) -> bool:
    """Tell whether a `--user` is root, or a name, of which the image says who it is."""
    uid = user.partition(":")[0]
    return not (uid.isascii() and uid.isdecimal()) or int(uid) == 0


def _has_engine_socket(path: Path) -> str:
    sockets = [Path(text.format(uid=os.getuid())).resolve() for text in _ENGINE_SOCKETS]
    if any(socket.is_relative_to(path) for socket in sockets):
        return " (with the Docker engine's socket: root on this machine)"
    return ""


# --- what is allowed ------------------------------------------------------------------------------


def check(project: Project, name: str, asked: Sequence[str]) -> None:
    """Raise `UntrustedProjectError` where a project file asks for what was not allowed.

    Who has allowed the host's network for packages, too, has allowed the same without it.
    """
    if not asked:
        return
    allowed = _read(_file()).get(str(project.path), {}).get(name)
    if allowed not in (_digest(asked), _digest([*asked, INSTALL_NETWORK])):
        raise UntrustedProjectError(str(project.path), name, asked)


def allow(project: Project, name: str, asked: Sequence[str]) -> None:
    """Remember that the user allows exactly this, of this file, for this environment."""
    _note(_file(), project, name, _digest(asked))


def agree(project: Project, name: str, reference: str) -> None:
    """Remember that the user has started an environment of a project file themselves, as the file stands."""
    if not has_agreed(project, name, reference):
        _note(_agreed_file(), project, name, _digest([project.entries[name], reference]))


def has_agreed(project: Project, name: str, reference: str) -> bool:
    """Tell whether the user has started an environment of a project file themselves, as the file stands.

    Parameters
    ----------
    project : Project
    name : str
    reference : str
        The image that its entry came to.
    """
    agreed = _read(_agreed_file()).get(str(project.path), {}).get(name)
    return agreed == _digest([project.entries[name], reference])


def _note(path: Path, project: Project, name: str, digest: str) -> None:
    noted = _read(path)
    noted.setdefault(str(project.path), {})[name] = digest
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(noted, file, indent=1)
    scratch.replace(path)


def _file() -> Path:
    return user_images_file().with_name("trusted.json")


def _agreed_file() -> Path:
    return user_images_file().with_name("started.json")


def _read(path: Path) -> dict[str, dict[str, str]]:
    """Return what was noted, by project file and environment; nothing where others may have written it."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        about = path.stat()
        found = json.loads(path.read_text(encoding="utf-8"))
        is_ours = about.st_uid == os.getuid() and not about.st_mode & 0o022
        if is_ours and isinstance(found, dict):
            return {key: value for key, value in found.items() if isinstance(value, dict)}
    return {}


def _digest(asked: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(sorted(asked)).encode()).hexdigest()
