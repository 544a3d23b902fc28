"""What to run, decided before anything runs: a frozen description of one container.

`container_spec` is pure: it turns a `Choice`, the host's facts and the place of the files into
the one value that `engine` acts on. Host paths are `Path`, container paths `PurePosixPath`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dockml_magic import labels
from dockml_magic.names import Choice
from dockml_magic.options import (
    GpuRequest,
    PublishedPort,
    RunOptions,
    Ulimit,
    allows_new_privileges,
    parse_add_host,
    parse_capability,
    parse_device,
    parse_env,
    parse_gpus,
    parse_ipc,
    parse_publish,
    parse_security_opt,
    parse_ulimit,
    parse_volume,
)

RUNTIME = PurePosixPath("/run/dockml")
"""Where the runtime folder is in every container: launcher, connection file, sockets."""

BUNDLES = PurePosixPath("/opt/dockml/bundles")
"""Where the kernel bundles are in every container."""

COMPILED = PurePosixPath("/opt/dockml/compiled")
"""Where the image's compiled code is in every container; `resources/start.py` has it too."""

PYTHONS = ("python", "python3", "/opt/conda/bin/python", "/usr/local/bin/python3", "python2")
"""Programs that can be the interpreter of our scripts in a container, in the order they are tried."""

HOME = PurePosixPath("/home/dockml")
"""The home of a user whom the image does not know."""

DEFAULT_SHM_SIZE = 2 * 1024**3
"""Bytes of /dev/shm: the engine's 64 MB end a PyTorch DataLoader with "Bus error" (pytorch#5040)."""

CONTROL_PORT = 5900
KERNEL_PORTS = (5901, 5902, 5903, 5904, 5905)
"""Ports inside the container over TCP: shell, iopub, stdin, control, heartbeat."""


NO_NEW_PRIVILEGES = "no-new-privileges=true"
"""No setuid program in the container gives more rights than its caller has. Unless asked otherwise."""


UNNEEDED_CAPABILITIES = ("AUDIT_WRITE", "FSETID", "MKNOD", "SETFCAP", "SETPCAP", "SYS_CHROOT")
"""Those of the engine's defaults that our launcher does without, while it is root before it becomes the user.

NET_RAW and NET_BIND_SERVICE are not among them, though it does: many images' `ping`, and some servers, are files that
ask for these. An ordinary user does not get them there either (`NO_NEW_PRIVILEGES`), but where they could not be had at
all, Linux would not run such a file: "Operation not permitted".
"""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A host folder (or a named volume, where `volume` is set) and where it goes."""

    target: PurePosixPath
    host_path: Path | None = None
    volume: str = ""
    read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What a plan needs to know of the host.

    Attributes
    ----------
    uid, gid : int
        Of the user who runs the notebook.
    user : str
        Their login name.
    environ : mapping of str to str
        The host's environment variables.
    carried : mapping of str to str
        Variables that go into every container: proxies, pip, locale.
    shares_files : bool
        The engine mounts our file system.
    rootless : bool
        The engine maps its containers' root to the user who runs it.
    """

    uid: int
    gid: int
    user: str
    environ: Mapping[str, str] = field(default_factory=dict)
    carried: Mapping[str, str] = field(default_factory=dict)
    shares_files: bool = True
    rootless: bool = False


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """All that the engine is told of one container."""

    image: str
    name: str
    entrypoint: tuple[str, ...]
    user: str
    workdir: PurePosixPath
    labels: Mapping[str, str]
    env: Mapping[str, str]
    mounts: tuple[Mount, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    gpus: GpuRequest | None = None
    memory: int | None = None
    cpus: float | None = None
    shm_size: int = DEFAULT_SHM_SIZE
    network: str | None = None
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = (NO_NEW_PRIVILEGES,)
    devices: tuple[str, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    ipc: str | None = None
    auto_remove: bool = True


@dataclass(frozen=True, kw_only=True)
class InnerUser:
    """The user whom the launcher, started as root, becomes."""

    uid: int
    gid: int
    name: str


def inner_user(choice: Choice, host: HostFacts) -> InnerUser | None:
    """Return the user the kernel runs as, None where the engine sets it (root, or a name in the image).

    By default it is the one who runs the notebook, so that files in the workspace belong to them.
    """
    asked = choice.options.user
    if asked is None:
        uid, gid = (0, 0) if host.rootless else (host.uid, host.gid)
    else:
        first, _, second = asked.partition(":")
        if not first.isdecimal() or (second and not second.isdecimal()):
            return None
        uid, gid = int(first), int(second or 0)
    if uid == 0:
        return None
    return InnerUser(uid=uid, gid=gid, name=host.user if uid == host.uid else f"user{uid}")


def container_spec(
    choice: Choice,
    *,
    host: HostFacts,
    session: str,
    workspace: Path,
    runtime: Path,
    bundles: Path,
    compiled: Path | None = None,
    tcp_ports: tuple[PublishedPort, ...] = (),
    version: str = "",
) -> ContainerSpec:
    """Return the container that runs a kernel for `choice`.

    Parameters
    ----------
    choice : Choice
        Image and options.
    host : HostFacts
        Who and where we are.
    session : str
        The id of this container; part of its name.
    workspace : Path
        Folder to mount at the same path and to work in. Not mounted where the engine does not
        share our files.
    runtime, bundles : Path
        Host folders with the launcher's files and the kernel bundles.
    compiled : Path or None
        The same with the image's compiled code.
    tcp_ports : tuple of PublishedPort
        Ports of the kernel to publish, for TCP.
    version : str
        Our version, for the label.

    Raises
    ------
    ConfigError
        If an option cannot be understood.
    """
    options = choice.options
    mounts = []
    if host.shares_files:
        mounts = [
            Mount(target=PurePosixPath(workspace), host_path=workspace),
            Mount(target=RUNTIME, host_path=runtime),
            Mount(target=BUNDLES, host_path=bundles, read_only=True),
        ]
        if compiled:
            mounts.append(Mount(target=COMPILED, host_path=compiled, read_only=True))
    for text in options.volumes:
        volume = parse_volume(text)
        mounts.append(
            Mount(
                target=PurePosixPath(volume.target),
                host_path=volume.host_path(workspace) if volume.is_host_path else None,
                volume="" if volume.is_host_path else volume.source,
                read_only=volume.read_only,
            )
        )
    gpus = parse_gpus(options.gpus) if options.gpus else None
    if choice.wants_gpu:
        gpus = GpuRequest(count=-1)
    env = dict(host.carried)
    env |= dict(pair for text in options.env if (pair := parse_env(text, host.environ)))
    return ContainerSpec(
        image=choice.reference,
        name=options.name or f"dockml-{session}",
        entrypoint=(),
        user=options.user if options.user and inner_user(choice, host) is None else "0:0",
        workdir=PurePosixPath(options.workdir or (workspace if host.shares_files else RUNTIME)),
        labels={
            labels.VERSION: version,
            labels.NAME: choice.name,
            labels.WORKSPACE: str(workspace),
            labels.USER: str(host.uid),
            labels.SESSION: session,
        },
        env=env,
        mounts=tuple(mounts),
        ports=tcp_ports + tuple(p for text in options.publish for p in parse_publish(text)),
        gpus=gpus,
        memory=options.memory,
        cpus=options.cpus,
        shm_size=options.shm_size or DEFAULT_SHM_SIZE,
        network=options.network,
        privileged=options.privileged,
        cap_add=tuple(map(parse_capability, options.cap_add)),
        cap_drop=_cap_drop(choice, host),
        security_opt=_security_opt(options),
        devices=tuple(map(parse_device, options.device)),
        ulimits=tuple(map(parse_ulimit, options.ulimit)),
        extra_hosts=tuple(map(parse_add_host, options.add_host)),
        ipc=parse_ipc(options.ipc) if options.ipc else None,
    )


def _cap_drop(choice: Choice, host: HostFacts) -> tuple[str, ...]:
    """Return the capabilities that are taken away: those asked for, and what nobody needs where no kernel is root.

    The image's own program is root for a moment then, and need not be so kind as to call `become`. Where the user
    asks for root, or that programs may get rights (sudo), all is as Docker has it. What `cap_add` asks for stays.
    """
    options = choice.options
    asked = tuple(map(parse_capability, options.cap_drop))
    added = tuple(map(parse_capability, options.cap_add))
    may_be_root = options.privileged or allows_new_privileges(options.security_opt)
    if may_be_root or inner_user(choice, host) is None or "ALL" in (*asked, *added):
        return asked
    return asked + tuple(name for name in UNNEEDED_CAPABILITIES if name not in (*asked, *added))


def _security_opt(options: RunOptions) -> tuple[str, ...]:
    given = tuple(map(parse_security_opt, options.security_opt))
    asked = allows_new_privileges(given)
    others = tuple(option for option in given if not option.startswith("no-new-privileges="))
    if options.privileged if asked is None else asked:
        return others
    return (NO_NEW_PRIVILEGES, *others)
