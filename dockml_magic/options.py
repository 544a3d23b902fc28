"""The options of `docker run` that we take, in its spelling and with its meaning.

`add_run_options` declares them once; the magics, the command line, the kernelspec and the project
file all end in the same `RunOptions`. Everything here is pure: nothing looks at the engine, or
at the file system beyond a `~` and the links in a path.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from dockml_magic.errors import ConfigError
from dockml_magic.requirements import parse_packages

TRANSPORTS = ("ipc", "tcp")
AUTO = "auto"
"""For `--gpus`: the freest GPU that fits."""

PULL_POLICIES = ("missing", "always", "never")

_SECURITY_OPTIONS = ("no-new-privileges", "seccomp", "apparmor", "label")
_ULIMITS = frozenset(
    (
        *(
            "core",
            "cpu",
            "data",
            "fsize",
            "locks",
            "memlock",
            "msgqueue",
            "nice",
            "nofile",
            "nproc",
        ),
        *("rss", "rtprio", "rttime", "sigpending", "stack"),
    )
)
_IPC_MODES = ("none", "private", "shareable", "host")

_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the user asked for; None or empty where they said nothing.

    Attributes
    ----------
    gpus : str or None
        As `docker run --gpus`: "all", a number, or "device=0,1"; "none" asks for no GPU, "auto" for the
        freest one that fits.
    volumes, publish, env : tuple of str
        As typed, in order: `-v`, `-p`, `-e`.
    workdir : str or None
        Working directory in the container.
    memory, shm_size : int or None
        Bytes.
    cpus : float or None
        CPUs, may be a fraction.
    user, network, name : str or None
        As `docker run --user`, `--network`, `--name`.
    image : str or None
        Reference to use instead of the one NAME stands for.
    packages : tuple of str
        What to install on top of the image, `--with`: requirements, and "-r FILE".
    kernel : str or None
        The image's kernelspec to run, such as "ir"; None runs Python, or what else the image is for.
    pull : str or None
        "missing", "always" or "never"; None is "missing".
    transport : str or None
        "ipc" or "tcp"; None chooses by the engine.
    privileged : bool
        As `docker run --privileged`.
    cap_add, cap_drop, security_opt, device, ulimit, add_host : tuple of str
        As typed, in order, with the meaning that they have for `docker run`.
    ipc : str or None
        As `docker run --ipc`.
    engine : str or None
        A Docker context or an endpoint such as unix:///run/docker.sock; None asks the environment.
    keep : bool
        The environment outlives its notebook, and its container a stop.
    """

    gpus: str | None = None
    volumes: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str | None = None
    memory: int | None = None
    cpus: float | None = None
    shm_size: int | None = None
    user: str | None = None
    network: str | None = None
    name: str | None = None
    image: str | None = None
    packages: tuple[str, ...] = ()
    kernel: str | None = None
    pull: str | None = None
    transport: str | None = None
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    ulimit: tuple[str, ...] = ()
    add_host: tuple[str, ...] = ()
    ipc: str | None = None
    engine: str | None = None
    keep: bool = False

    def over(self, below: RunOptions) -> RunOptions:
        """Return these options with `below` filling what they leave open; lists add up."""
        merged: dict[str, Any] = {}
        default = RunOptions()
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(below, f.name)
            if isinstance(mine, tuple):
                merged[f.name] = theirs + mine
            else:
                merged[f.name] = theirs if mine == getattr(default, f.name) else mine
        return replace(default, **merged)

    def to_json(self) -> dict[str, Any]:
        """Return what was asked for as plain JSON, as a kernelspec keeps it."""
        default = RunOptions()
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value != getattr(default, key)
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunOptions:
        """Return what `to_json` gave. Raises `ConfigError` for an entry that is not one of ours."""
        if unknown := sorted(set(data) - {f.name for f in fields(cls)}):
            raise ConfigError(
                f"Unknown option '{unknown[0]}' in the kernelspec.", hint="Install it again."
            )
        values: dict[str, Any] = {}
        for key, value in data.items():
            values[key] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One `-v`: a host path or a named volume, and where it goes."""

    source: str
    target: str
    read_only: bool = False

    @property
    def is_host_path(self) -> bool:
        """A path, not the name of a volume."""
        return self.source.startswith(("/", ".", "~"))

    def host_path(self, folder: Path) -> Path:
        """Return the source as a path, taken from `folder` where it is relative."""
        try:
            return (folder / Path(self.source).expanduser()).resolve()
        except RuntimeError as error:
            raise ConfigError(
                f"-v {self.source}:{self.target}: there is no such user here.",
                hint="Write the folder's whole path.",
            ) from error


@dataclass(frozen=True, kw_only=True)
class PublishedPort:
    """One published port; `host_port` None lets the engine choose."""

    container_port: int
    host_port: int | None = None
    host_ip: str = "127.0.0.1"
    protocol: str = "tcp"


@dataclass(frozen=True, kw_only=True)
class GpuRequest:
    """What `--gpus` asks of the engine: `count` (-1 is all) or the `device_ids`."""

    count: int = 0
    device_ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ulimit:
    """One `--ulimit`; -1 is no limit."""

    name: str
    soft: int
    hard: int


def parse_bytes(text: str) -> int:
    """Return a size such as "512m", "2g" or "1073741824" in bytes."""
    match = re.fullmatch(
        r"(\d{1,18}(?:\.\d{1,18})?)\s*([bkmgt]?)(?:i?b)?", text.strip().lower(), re.ASCII
    )
    if match is None or (size := int(float(match[1]) * _UNITS[match[2]])) <= 0:
        raise ConfigError(f"'{text}' is not a size.", hint="Write it as docker does: 512m, 2g.")
    return size


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,9}", text))


def parse_cpus(text: str) -> float:
    """Return a number of CPUs such as "1.5"."""
    try:
        cpus = float(text)
    except ValueError:
        cpus = 0.0
    if not 0 < cpus < 1e6:
        raise ConfigError(f"'{text}' is not a number of CPUs.", hint="Write 2 or 1.5.")
    return cpus


def parse_volume(text: str) -> Volume:
    """Return a `-v SOURCE:TARGET[:ro]` as its parts."""
    parts = text.split(":")
    if len(parts) == 2 or parts[-1].startswith("/"):
        parts.append("rw")
    if parts[0].startswith(("/", ".", "~")):  # a folder's name may have a colon
        parts = [":".join(parts[:-2]), *parts[-2:]]
    if len(parts) != 3 or not parts[0] or not parts[1].startswith("/"):
        raise ConfigError(
            f"-v {text}: not HOST-FOLDER:CONTAINER-FOLDER[:ro].", hint="Example: -v /data:/data:ro"
        )
    modes = set(parts[2].split(","))
    if unknown := modes - {"ro", "rw"}:
        raise ConfigError(f"-v {text}: unknown mode '{unknown.pop()}'.", hint="Use ro or rw.")
    return Volume(source=parts[0], target=parts[1], read_only="ro" in modes)


def parse_publish(text: str) -> list[PublishedPort]:
    """Return a `-p [IP:][HOST:]CONTAINER[/PROTOCOL]` as its ports; ranges become several.

    Without an address a port is published on 127.0.0.1 only: unlike `docker run`, whose default is
    every interface of the machine.
    """

    def fail(why: str) -> NoReturn:
        raise ConfigError(
            f"-p {text}: {why}.", hint="Write [IP:][HOST-PORT:]CONTAINER-PORT, as in -p 8501:8501"
        )

    def ports(part: str) -> list[int]:
        first, _, last = part.partition("-")
        if not _is_number(first) or (last and not _is_number(last)):
            fail(f"'{part}' is not a port")
        found = list(range(int(first), int(last or first) + 1))
        if not found or found[0] < 1 or found[-1] > 65535:
            fail(f"'{part}' is not between 1 and 65535")
        return found

    rest, _, protocol = text.partition("/")
    if (protocol := protocol or "tcp") not in ("tcp", "udp", "sctp"):
        fail(f"unknown protocol '{protocol}'")
    head, _, container_part = rest.rpartition(":")
    host_ip, _, host_part = head.rpartition(":")
    container = ports(container_part)
    host: list[int | None] = [*ports(host_part)] if host_part else [None] * len(container)
    if len(host) != len(container):
        fail("the two ranges differ in length")
    return [
        PublishedPort(
            container_port=inner,
            host_port=outer,
            host_ip=host_ip.strip("[]") or "127.0.0.1",
            protocol=protocol,
        )
        for outer, inner in zip(host, container, strict=True)
    ]


def parse_env(text: str, host_env: Mapping[str, str]) -> tuple[str, str] | None:
    """Return `-e KEY=VALUE`, or `-e KEY` with the host's value; None where the host has none."""
    key, equals, value = text.partition("=")
    if not key or any(c.isspace() for c in key):
        raise ConfigError(f"-e {text}: not KEY=VALUE.", hint="Example: -e CUDA_VISIBLE_DEVICES=0")
    if equals:
        return key, value
    return (key, host_env[key]) if key in host_env else None


def parse_gpus(text: str) -> GpuRequest | None:
    """Return what `--gpus` asks for; None for "none". "auto" is one GPU: where nothing is known of them, any."""
    value = text.strip().strip("\"'")
    if value == "none":
        return None
    if value == AUTO:
        return GpuRequest(count=1)
    if value == "all":
        return GpuRequest(count=-1)
    if _is_number(value) and int(value) > 0:
        return GpuRequest(count=int(value))
    key, _, ids = value.partition("=")
    devices = tuple(part for part in ids.strip("\"'").split(",") if part)
    if key == "device" and devices:
        return GpuRequest(device_ids=devices)
    raise ConfigError(
        f"--gpus {text}: not understood.",
        hint="Write all, auto, a number, or device=0,1 (none for no GPU).",
    )


def parse_capability(text: str) -> str:
    """Return the capability of a `--cap-add` or `--cap-drop`, as Docker's API has it: "SYS_PTRACE", "ALL"."""
    name = text.strip().upper().removeprefix("CAP_")
    if not re.fullmatch(r"[A-Z][A-Z_]*", name):
        raise ConfigError(
            f"'{text}' is not a capability.", hint="Write it as docker does: SYS_PTRACE, or ALL."
        )
    return name


def parse_security_opt(text: str) -> str:
    """Return a `--security-opt`, checked: "no-new-privileges=false", "seccomp=unconfined"."""
    name, _, value = text.partition("=" if "=" in text else ":")
    if name == "no-new-privileges" and value in ("", "true", "false"):
        return f"{name}={value or 'true'}"
    if name not in _SECURITY_OPTIONS[1:] or not value:
        raise ConfigError(
            f"--security-opt {text}: not understood.",
            hint="Known: no-new-privileges=false, seccomp=unconfined or a file, apparmor=PROFILE, label=….",
        )
    return f"{name}={value}"


def allows_new_privileges(options: Sequence[str]) -> bool | None:
    """Return what `--security-opt`s say of new privileges, None where nothing; the last one holds."""
    said = [o for o in map(parse_security_opt, options) if o.startswith("no-new-privileges=")]
    return said[-1].endswith("=false") if said else None


def parse_device(text: str) -> str:
    """Return a `--device HOST[:CONTAINER[:rwm]]` with all its parts."""
    match = re.fullmatch(r"(/[^:]+)(?::(/[^:]+))?(?::([rwm]{1,3}))?", text)
    if match is None or len(set(match[3] or "")) != len(match[3] or ""):
        raise ConfigError(
            f"--device {text}: not HOST[:CONTAINER[:rwm]].",
            hint="Example: --device /dev/fuse. GPUs are asked for with --gpus.",
        )
    return f"{match[1]}:{match[2] or match[1]}:{match[3] or 'rwm'}"


def parse_ulimit(text: str) -> Ulimit:
    """Return a `--ulimit NAME=SOFT[:HARD]` as its parts."""
    match = re.fullmatch(r"([a-z]+)=(-1|\d{1,18})(?::(-1|\d{1,18}))?", text)
    if match is None or match[1] not in _ULIMITS:
        raise ConfigError(
            f"--ulimit {text}: not NAME=SOFT[:HARD].", hint="Example: --ulimit memlock=-1:-1"
        )
    limit = Ulimit(name=match[1], soft=int(match[2]), hard=int(match[3] or match[2]))
    if limit.hard != -1 and (limit.soft > limit.hard or limit.soft == -1):
        raise ConfigError(
            f"--ulimit {text}: the soft limit is above the hard one.",
            hint="Write the lower one first, as in --ulimit nofile=1024:4096",
        )
    return limit


def parse_add_host(text: str) -> str:
    """Return a `--add-host NAME:IP` as the API has it."""
    name, _, address = text.replace("=", ":", 1).partition(":")
    address = address.removeprefix("[").removesuffix("]")
    try:
        is_one = address == "host-gateway" or bool(ipaddress.ip_address(address))
    except ValueError:
        is_one = False
    if not is_one or not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise ConfigError(
            f"--add-host {text}: not NAME:IP.",
            hint="Example: --add-host db:10.0.0.5, or NAME:host-gateway for this machine.",
        )
    return f"{name}:{address}"


def parse_ipc(text: str) -> str:
    """Return an `--ipc`, checked."""
    if text not in _IPC_MODES and not re.fullmatch(r"container:.+", text):
        raise ConfigError(
            f"--ipc {text}: not understood.",
            hint=f"Known: {', '.join(_IPC_MODES)}, container:NAME.",
        )
    return text


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises our error instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}.", hint=f"See the options with: {self.prog} -h")


def add_pull_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what a pull takes on `parser`: `what` and `engine`."""
    parser.add_argument("what", metavar="NAME", help="a short name, a reference, an environment")
    add_engine(parser.add_argument)


def add_engine(add: Callable[..., object]) -> None:
    """Declare `--engine`; `add` is `add_argument` of a parser, or of a group."""
    add("--engine", metavar="CONTEXT|URL", help="Docker context or endpoint to use")


def add_logs_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what reading a log takes: `name`, `follow`, `tail`, `timestamps` and `engine`."""
    add = parser.add_argument
    add("name", nargs="?", metavar="ENV", help="an environment, or a container of one")
    add("-f", "--follow", action="store_true", help="go on until it ends, or you stop it")
    add("-n", "--tail", type=parse_tail, metavar="N", help="the last N lines only")
    add("-t", "--timestamps", action="store_true", help="with the time of each line")
    add_engine(add)


def parse_tail(text: str) -> int | None:
    """Return a number of lines; None for "all"."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise ConfigError(f"--tail {text}: not a number of lines.", hint="Write --tail 20, or all.")
    return int(text)


def add_exec_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what running a command takes before its words: `name` and `docker exec`'s options.

    Its own words, which the usage alone shows, are for `split_command` to take away.
    """
    parser.usage = "%(prog)s [options] ENV COMMAND [ARGUMENT ...]"
    add = parser.add_argument
    add("-e", "--env", action="append", metavar="KEY[=VALUE]", help="set an environment variable")
    add("-w", "--workdir", metavar="FOLDER", help="working directory (the kernel's)")
    add("-u", "--user", metavar="USER[:GROUP]", help="run as this user (the kernel's)")
    add_engine(add)
    add("name", metavar="ENV", help="an environment, or a container of one")


_VALUED = ("-e", "--env", "-w", "--workdir", "-u", "--user", "--engine")


def split_command(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return our options and ENV, and the words of the command behind them, which are not ours to read."""
    place = 0
    while place < len(words) and words[place].startswith("-"):
        if words[place] == "--":
            place += 1
            break
        place += 2 if words[place] in _VALUED else 1
    return list(words[: place + 1]), list(words[place + 1 :])


def add_commit_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what a commit takes: `names`, `message`, `author` and `engine`."""
    parser.usage = "%(prog)s [options] [ENV] IMAGE"
    add = parser.add_argument
    add("names", nargs="+", metavar="[ENV] IMAGE", help="what to make an image of, and its name")
    add("-m", "--message", default="", metavar="TEXT", help="why; `docker inspect` shows it")
    add("-a", "--author", default="", metavar="NAME", help="by whom")
    add_engine(add)


def add_save_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what a backup takes: `images`, `output`, `force` and `engine`."""
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="a name, or a reference")
    add("-o", "--output", metavar="FILE", help="to write: .tar, .tar.gz, .tar.xz or .tar.zst")
    add("--force", action="store_true", help="replace FILE if it is there")
    add_engine(add)


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what loading a backup takes: `input` and `engine`."""
    add = parser.add_argument
    add(
        "-i",
        "--input",
        required=True,
        metavar="FILE",
        help="what %%docker_save or `dockml save` wrote",
    )
    add_engine(add)


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what a build takes: `path` and `docker build`'s options."""
    add = parser.add_argument
    add("-t", "--tag", default="", metavar="NAME", help="name of the image")
    add("-f", "--file", default="", metavar="DOCKERFILE", help="default: PATH/Dockerfile")
    add("--build-arg", action="append", default=[], metavar="KEY[=VALUE]", help="for ARG lines")
    add("--pull", action="store_true", help="fetch the base image anew")
    add_engine(add)
    add("path", metavar="PATH", help="a folder, or a Dockerfile")


def add_rmi_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what removing images takes: `images`, `force` and `engine`."""
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="a name, or a reference")
    add("-f", "--force", action="store_true", help="also where stopped containers use it")
    add_engine(add)


def add_stats_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the figures take: `names` and `engine`."""
    parser.add_argument("names", nargs="*", metavar="ENV", help="default: all of yours")
    add_engine(parser.add_argument)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a start on `parser`; read them back with `options_from`."""
    add = parser.add_argument_group("options, spelled as in docker run").add_argument
    add("--gpus", metavar="GPUS", help="GPUs to use: all, a number, device=0,1, auto, or none")
    add("-v", "--volume", dest="volumes", action="append", metavar="HOST:CONTAINER[:ro]",
        help="mount a folder")  # fmt: skip
    add("-p", "--publish", action="append", metavar="[IP:]HOST:CONTAINER",
        help="publish a port, on 127.0.0.1 unless an address is given")  # fmt: skip
    add("-e", "--env", action="append", metavar="KEY[=VALUE]", help="set an environment variable")
    add("-w", "--workdir", metavar="FOLDER", help="working directory in the container")
    add("-m", "--memory", type=parse_bytes, metavar="SIZE", help="memory limit, such as 4g")
    add("--cpus", type=parse_cpus, metavar="N", help="number of CPUs, such as 1.5")
    add("--shm-size", type=parse_bytes, metavar="SIZE", help="size of /dev/shm (2g unless given)")
    add("-u", "--user", metavar="USER[:GROUP]", help="run as this user (you, unless given)")
    add("--network", "--net", metavar="NETWORK", help="network to join: bridge, none, host, a name")
    add("--ulimit", action="append", metavar="NAME=SOFT[:HARD]",
        help="a limit of processes, such as memlock=-1")  # fmt: skip
    add("--device", action="append", metavar="HOST[:CONTAINER]", help="give it a device, not a GPU")
    add("--add-host", action="append", metavar="NAME:IP", help="a line for its /etc/hosts")
    add(
        "--ipc", type=parse_ipc, metavar="MODE", help="shared memory: private, host, container:NAME"
    )
    add("--cap-add", action="append", metavar="CAP", help="add a Linux capability")
    add("--cap-drop", action="append", metavar="CAP", help="take a Linux capability away")
    add("--security-opt", action="append", metavar="OPTION",
        help="such as no-new-privileges=false, for sudo and the like")  # fmt: skip
    add("--privileged", action="store_true", help="all rights of this machine's root")
    add("--name", metavar="NAME", help="name of the environment and its container")
    add("--image", metavar="REFERENCE", help="use this image for NAME")
    add("--with", dest="packages", action="extend", type=parse_packages, metavar="REQUIREMENT",
        help="install packages on top of the image, once: pandas==0.24, or '-r FILE'")  # fmt: skip
    add("--kernel", metavar="KERNELSPEC", help="the image's kernel to run, such as ir (Python's)")
    add("--pull", choices=PULL_POLICIES, help="when to pull the image (missing)")
    add("--transport", choices=TRANSPORTS, help="how to reach the kernel (chosen by the engine)")
    add_engine(add)
    add(
        "--keep",
        action="store_true",
        help="let it outlive the notebook, and stay when it is stopped",
    )


def options_from(parsed: argparse.Namespace) -> RunOptions:
    """Return the `RunOptions` among the values that a parser found."""
    values = {f.name: getattr(parsed, f.name) for f in fields(RunOptions)}
    return RunOptions.from_json({name: value for name, value in values.items() if value})


def build_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser that raises `ConfigError` on bad input."""
    return _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parse_words(prog: str, words: Sequence[str]) -> RunOptions:
    """Return the options in a list of words, all of them options."""
    parser = build_parser(prog, "Options of a start.")
    add_run_options(parser)
    return options_from(parser.parse_args(list(words)))


def split_line(line: str) -> list[str]:
    """Return the words of a magic's line, quoted as in a shell; nothing is expanded."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"{line}: {error}.", hint="Check the quotes.") from error
