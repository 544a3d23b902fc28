"""What the doctor's facts mean: each `judge_…` turns what was found into lines that say what to do. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.version import InvalidVersion, Version

from dockml_magic.engine import EngineFacts, gpu_route
from dockml_magic.gpu import HostGpus

Status = Literal["ok", "warn", "fail", "not checked"]

_GIB = 1024**3
_MIB = 1024**2

_ROOM = {
    # what: (bytes below which nothing works, bytes below which it is soon full, what to do)
    "engine": (
        100 * _MIB,
        10 * _GIB,
        "Make room: dockml prune, docker image prune. What takes it: docker system df",
    ),
    "cache": (
        4096,
        500 * _MIB,
        "Make room there, or set XDG_CACHE_HOME to a folder elsewhere. A kernel bundle takes about 120 MB.",
    ),
    "runtime": (4096, 20 * _MIB, "Make room there. It holds sockets and small files."),
    "shm": (4096, 20 * _MIB, "See what is in it: ls -l /dev/shm"),
}

_NOT_WRITABLE = {
    "cache": "Make the folder yours, or set XDG_CACHE_HOME to another that is.",
    "runtime": "Make the folder yours, or set XDG_RUNTIME_DIR to another that is, with a short path.",
}

_ROOM_NAMES = {
    "engine": "engine's disk",
    "cache": "cache",
    "runtime": "runtime folder",
    "shm": "shared memory",
}

_FEW_INODES = 1000

_LOCAL_NAMES = ("localhost", "127.0.0.1")

_OLDEST = {"ipykernel": "6.29", "jupyter_client": "8", "ipywidgets": "8"}
"""Versions of Jupyter's parts on the host that work."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes
    ----------
    status : str
        "ok", "warn" (works, or mostly), "fail" (does not), "not checked".
    message : str
        What was found.
    hint : str
        What to do, "" where nothing is to be done. May have several lines.
    check : str
        The check that found it.
    """

    status: Status
    message: str
    hint: str = ""
    check: str = ""


# --- engine ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SocketFacts:
    """Who may use an engine's socket.

    Attributes
    ----------
    exists, is_usable : bool
        It is there; this process may read and write it.
    group : str
        The group that may use it, "" where there is none but root's.
    is_member, has_group : bool
        The user is in that group; this process has it, which takes a login after that.
    """

    path: Path
    exists: bool
    is_usable: bool = False
    group: str = ""
    is_member: bool = False
    has_group: bool = False


@dataclass(frozen=True, kw_only=True)
class EngineSight:
    """What came of asking for an engine.

    Attributes
    ----------
    endpoint : str
        Where it was looked for, "" if even that is not known.
    said_by : str
        Who says that it is there: "DOCKER_HOST"; "" is Docker's default.
    facts : EngineFacts or None
        Of the one that answers.
    message, hint : str
        Why none does.
    socket : SocketFacts or None
        If the endpoint is one.
    others : tuple of str
        Endpoints of other engines whose sockets are on this machine.
    user : str
        Who asks.
    is_root : bool
        It is root.
    has_tls : bool
        A connection over TCP is encrypted.
    """

    endpoint: str = ""
    said_by: str = ""
    facts: EngineFacts | None = None
    message: str = ""
    hint: str = ""
    socket: SocketFacts | None = None
    others: tuple[str, ...] = ()
    user: str = "$USER"
    is_root: bool = False
    has_tls: bool = False


def judge_engine(sight: EngineSight) -> list[Finding]:
    """Say whether an engine answers, and which."""
    facts = sight.facts
    said_by = f" ({sight.said_by})" if sight.said_by else ""
    if facts is None:
        message, hint = _why_none_answers(sight)
        hints = [f"{sight.said_by} leads there."] if sight.said_by else []
        hints += [
            f"Another engine's socket is here: export DOCKER_HOST={other}" for other in sight.others
        ]
        return [Finding("fail", message, "\n".join(filter(None, [*hints, hint])))]
    kind = f", rootless: its containers' root is {sight.user}" if facts.rootless else ""
    found = (
        f"{facts.product} {facts.version}, API {facts.api}, answers at {facts.endpoint}"
        f"{said_by}{kind}"
    )
    findings = [Finding("ok", found)]
    if facts.product == "podman":
        findings = [
            Finding(
                "warn",
                found,
                "It speaks Docker's language, and most of it works; our tests run with Docker.",
            )
        ]
    if not facts.shares_files:
        findings.append(
            Finding(
                "warn",
                f"{facts.product} runs in a machine of its own ({facts.system or 'not this system'}): "
                "the notebook's folder is not mounted in containers.",
                "Cells run, over TCP on 127.0.0.1. For your files use an engine on this system, or an image "
                "that has them.",
            )
        )
    return findings


def _why_none_answers(sight: EngineSight) -> tuple[str, str]:
    socket = sight.socket
    if socket is None or not socket.exists or socket.is_usable:
        return sight.message, sight.hint
    if socket.is_member and not socket.has_group:
        return (
            f"{sight.user} is in group '{socket.group}', but this session began before that: "
            f"no permission for {socket.path}.",
            "Log out and in again, and start Jupyter anew (restarting the kernel is not enough). "
            f"For one terminal: newgrp {socket.group}",
        )
    name = "$USER" if " " in sight.user else sight.user
    if socket.group:
        return (
            f"{sight.user} may not use the Docker engine: {socket.path} is for group '{socket.group}'.",
            f"Ask your administrator to run: sudo usermod -aG {socket.group} {name}\n"
            "Then log out and in again, and start Jupyter anew (restarting the kernel is not enough).",
        )
    return (
        f"{sight.user} may not use the Docker engine: {socket.path} is for root alone.",
        f"Ask your administrator to run: sudo groupadd -f docker; sudo usermod -aG docker {name}; "
        "sudo systemctl restart docker.socket docker\nThen log out and in again, and start Jupyter anew.",
    )


def judge_rights(sight: EngineSight) -> list[Finding]:
    """Say what one may do with this engine."""
    facts = sight.facts
    assert facts is not None
    if not facts.endpoint.startswith("unix:"):
        if sight.has_tls:
            return [Finding("ok", f"{facts.endpoint} is used with a certificate.")]
        return [
            Finding(
                "warn",
                f"{facts.endpoint} takes orders without TLS: whoever reaches it is root on its machine.",
                "Use its socket, or TLS: https://docs.docker.com/engine/security/protect-access/",
            )
        ]
    if facts.rootless:
        return [Finding("ok", f"The engine is {sight.user}'s own.")]
    if sight.is_root:
        return [Finding("ok", "You are root.")]
    group = sight.socket.group if sight.socket and sight.socket.has_group else ""
    by = f"by group '{group}'" if group else f"by the rights of {urlsplit(facts.endpoint).path}"
    return [
        Finding(
            "ok",
            f"{sight.user} may use the engine {by}. That is as much as root on this machine.",
        )
    ]


# --- architecture ---------------------------------------------------------------------------------

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
_EMULATORS = {"amd64": "x86_64", "arm64": "aarch64", "arm": "arm"}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """For which processors this is.

    Attributes
    ----------
    machine, engine : str
        Of the notebook's machine, as `uname -m` has it, and of the engine's.
    emulators : tuple of str
        Names of the emulators that the kernel knows: "qemu-x86_64".
    """

    machine: str
    engine: str
    emulators: tuple[str, ...] = ()


def judge_architecture(found: Architecture) -> list[Finding]:
    """Say whether it can run the images of the catalogue, which are for amd64."""
    machine = _ARCHITECTURES.get(found.machine, found.machine)
    engine = _ARCHITECTURES.get(found.engine, found.engine)
    where = f"The engine's machine is {engine or 'not known'}"
    if engine and engine != machine:
        return [
            Finding(
                "warn",
                f"{where}, this one is {machine}: what is built here may not run there.",
                f"Choose images for {engine}.",
            )
        ]
    if not engine or engine == "amd64":
        return [Finding("ok", f"{where}." if engine else f"This machine is {machine}.")]
    emulated = any(_EMULATORS["amd64"] in name for name in found.emulators)
    how = (
        "An emulator runs those for amd64, slowly."
        if emulated
        else "Those for amd64 alone do not start."
    )
    return [
        Finding(
            "warn",
            f"{where}; most images of old frameworks are for amd64. {how}",
            f"Choose images that have a build for {engine}."
            if emulated
            else f"Choose images that have a build for {engine}, or install an emulator: "
            "docker run --privileged --rm tonistiigi/binfmt --install amd64",
        )
    ]


# --- disk -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Room:
    """How much room there is in a folder.

    Attributes
    ----------
    what : str
        "engine", "cache", "runtime" or "shm".
    path : str
        The folder.
    free, total : int or None
        Bytes; None where we may not look.
    inodes_free, inodes : int
        Files that may still be made, and that its file system can have; 0 and 0 where it has no such limit.
    problem : str
        Why we cannot write there, or find it; "" where we can, or need not.
    """

    what: str
    path: str
    free: int | None = None
    total: int | None = None
    inodes_free: int = 0
    inodes: int = 0
    problem: str = ""


def judge_disk(rooms: Iterable[Room]) -> list[Finding]:
    """Say whether there is room, and whether we may write where we must."""
    return [_judge_room(room) for room in rooms]


def _judge_room(room: Room) -> Finding:
    least, little, advice = _ROOM[room.what]
    name = f"{_ROOM_NAMES[room.what]}: {room.path}" if room.path else _ROOM_NAMES[room.what]
    is_ours = room.what in ("cache", "runtime")
    if room.problem:
        status: Status = "fail" if is_ours else "warn"
        return Finding(status, f"{name}: {room.problem}", _NOT_WRITABLE.get(room.what, ""))
    if room.free is None:
        return Finding("not checked", f"{name}: not to be seen from here.")
    left = f"{size(room.free)} free" + (f" of {size(room.total)}" if room.total else "")
    if room.free < least:
        return Finding("fail" if room.what != "shm" else "warn", f"{name}: full, {left}.", advice)
    if room.inodes and room.inodes_free < _FEW_INODES:
        return Finding(
            "fail" if room.inodes_free == 0 and room.what != "shm" else "warn",
            f"{name}: {room.inodes_free} of {room.inodes} inodes are left, so no more files; {left}.",
            advice,
        )
    if room.free < little:
        return Finding("warn", f"{name}: nearly full, {left}.", advice)
    return Finding("ok", f"{name}: {left}.")


def size(count: int) -> str:
    """Return bytes in the words of Docker: "1.2 GB"."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


# --- registry -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a registry said to `GET /v2/`, asked from here.

    Attributes
    ----------
    url : str
        Its address.
    is_mirror : bool
        One of the engine's mirrors of Docker Hub, and not Docker Hub.
    problem : str
        Why it does not answer as a registry does; "" where it does.
    """

    url: str
    is_mirror: bool = False
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Which registries answer.

    Attributes
    ----------
    host_proxy : str
        The proxy by which this machine asked Docker Hub, or "".
    engine : EngineFacts or None
        None where no engine answers.
    """

    places: tuple[Place, ...]
    host_proxy: str = ""
    engine: EngineFacts | None = None


def judge_registry(reach: Reach) -> list[Finding]:
    """Say whether a pull would find its registry. The engine pulls; what we see is what this machine reaches."""
    findings = []
    mirrors = [place for place in reach.places if place.is_mirror]
    hub = next(place for place in reach.places if not place.is_mirror)
    for place in mirrors:
        if place.problem:
            findings.append(
                Finding(
                    "warn",
                    f"The engine's mirror {place.url} does not answer this machine: {place.problem}",
                    "Correct registry-mirrors in /etc/docker/daemon.json, or ask whoever runs it.",
                )
            )
        else:
            findings.append(Finding("ok", f"The engine's mirror {place.url} answers."))
    has_mirror = any(not place.problem for place in mirrors)
    if hub.problem:
        status: Status = "ok" if has_mirror else "warn"
        more = "Pulls go through the mirror." if has_mirror else "Images that are here start."
        findings.append(
            Finding(
                status,
                f"Docker Hub does not answer this machine: {hub.problem} {more}",
                "" if has_mirror else _advice_on_hub(hub.problem, reach.engine),
            )
        )
        return findings
    engine = reach.engine
    if engine is None:
        findings.append(Finding("ok", "Docker Hub answers this machine."))
    elif reach.host_proxy and not engine.proxies and engine.shares_files:
        findings.append(
            Finding(
                "ok" if has_mirror else "warn",
                f"Docker Hub answers this machine through {reach.host_proxy}, but the engine pulls without a proxy.",
                "" if has_mirror else _ENGINE_PROXY,
            )
        )
    else:
        by = engine.proxies.get("HTTPS_PROXY") or engine.proxies.get("HTTP_PROXY")
        through = f" The engine's own proxy is {by}." if by else ""
        findings.append(Finding("ok", f"Docker Hub answers this machine.{through}"))
    return findings


_ENGINE_PROXY = (
    "The engine has settings of its own: sudo systemctl edit docker, with the lines [Service] and\n"
    'Environment="HTTPS_PROXY=http://PROXY:PORT" "NO_PROXY=localhost,127.0.0.1"; '
    "then: sudo systemctl restart docker"
)


def _advice_on_hub(problem: str, engine: EngineFacts | None) -> str:
    if "certificate" in problem.lower():
        return (
            "A company's proxy shows its own certificate: set REQUESTS_CA_BUNDLE to its authority's file here, "
            "and install that file on the engine's machine."
        )
    by = engine.proxies.get("HTTPS_PROXY") if engine else ""
    if by:
        return (
            f"The engine pulls through its own proxy, {by}, and may reach it. Try: docker pull hello-world\n"
            "If that fails: a mirror, registry-mirrors in /etc/docker/daemon.json"
        )
    return (
        "Without a network, go on with what is here: dockml images --local\nBehind a company network set the proxy, "
        "for this machine (HTTPS_PROXY) and for the engine (sudo systemctl edit docker), or a mirror "
        "(registry-mirrors in /etc/docker/daemon.json)."
    )


# --- proxy, CA bundle, pip ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """What this process's environment and pip's files say.

    Attributes
    ----------
    proxies : mapping of str to str
        Variables, in both ways of writing them: http_proxy, HTTP_PROXY, …, no_proxy.
    missing_files : mapping of str to str
        Variables that lead to a CA bundle which is not there.
    pip : mapping of str to str
        pip's settings, by their options' names.
    """

    proxies: Mapping[str, str] = field(default_factory=dict)
    missing_files: Mapping[str, str] = field(default_factory=dict)
    pip: Mapping[str, str] = field(default_factory=dict)


def judge_proxy(found: NetworkSettings) -> list[Finding]:
    """Say whether the settings fit together. They go into containers, too."""
    problems = [
        *_differing_cases(found.proxies),
        *_bad_proxies(found.proxies),
        *_missing_exceptions(found.proxies),
        *(
            Finding(
                "fail",
                f"{name} leads to '{path}', which is not there: pip and requests refuse to work.",
                f"Correct it, or: unset {name}",
            )
            for name, path in found.missing_files.items()
        ),
        *_bad_indices(found.pip),
    ]
    used = {name.lower(): value for name, value in found.proxies.items() if value}
    used.pop("no_proxy", None)
    if problems:
        return problems
    through = ", ".join(f"{name} is {value}" for name, value in sorted(used.items()))
    index = found.pip.get("index-url", "")
    return [
        Finding(
            "ok",
            (f"{through}." if through else "No proxy is set.")
            + (f" pip's index is {index}." if index else ""),
        )
    ]


def _differing_cases(proxies: Mapping[str, str]) -> Iterable[Finding]:
    for lower in sorted({name.lower() for name in proxies}):
        first, second = proxies.get(lower, ""), proxies.get(lower.upper(), "")
        if first and second and first != second:
            yield Finding(
                "warn",
                f"{lower} is {first}, and {lower.upper()} is {second}: programs take one or the other.",
                f"Set both to the same. In containers both are {lower}'s.",
            )


def _bad_proxies(proxies: Mapping[str, str]) -> Iterable[Finding]:
    for name in sorted(proxies, key=lambda name: (name.lower(), name)):
        value = proxies[name]
        is_first = not (name.isupper() and proxies.get(name.lower()) == value)
        if not value or name.lower() == "no_proxy" or not is_first:
            continue
        if "://" not in value:
            yield Finding(
                "warn",
                f"{name} is {value}, without http:// before it: not every program takes that.",
                f"Set it to http://{value}",
            )
            continue
        host = _host(value)
        if host is None:
            yield Finding(
                "fail", f"{name} is {value}, which is no URL.", "Write it http://HOST:PORT"
            )
        elif _is_loopback(host):
            yield Finding(
                "warn",
                f"{name} is {value}. In a container that address is the container itself, so pip there finds "
                "no proxy.",
                "Let the proxy listen on the address of the bridge (172.17.0.1), and set that; or start with "
                "--network host.",
            )


def _host(url: str) -> str | None:
    """Return a URL's host, None where it has none, or a port that is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
        return parts.hostname or None
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _missing_exceptions(proxies: Mapping[str, str]) -> Iterable[Finding]:
    if not any(value for name, value in proxies.items() if name.lower() != "no_proxy"):
        return
    value = proxies.get("no_proxy") or proxies.get("NO_PROXY") or ""
    listed = {word.strip().lower() for word in value.split(",")}
    missing = [name for name in _LOCAL_NAMES if name not in listed]
    if missing and "*" not in listed:
        yield Finding(
            "warn",
            f"A proxy is set, and NO_PROXY does not except {' and '.join(missing)}: programs may ask the proxy "
            "for what runs on this machine.",
            f"Set no_proxy and NO_PROXY to: {','.join(filter(None, [value, *missing]))}",
        )


def _bad_indices(pip: Mapping[str, str]) -> Iterable[Finding]:
    trusted = set(pip.get("trusted-host", "").split())
    for option in ("index-url", "extra-index-url"):
        for url in pip.get(option, "").split():
            host = _host(url)
            scheme = url.partition(":")[0].lower()
            if scheme == "file":
                continue
            if host is None or scheme not in ("http", "https"):
                yield Finding(
                    "fail",
                    f"pip's {option} is {url}, which is no URL.",
                    "Correct it: pip config debug shows where it is set.",
                )
            elif scheme == "http" and not _is_loopback(host) and not _trusts(trusted, url, host):
                yield Finding(
                    "warn",
                    f"pip's {option} is {url}, without TLS, and {host} is no trusted-host: pip ignores it.",
                    f"Use https, or: pip config set global.trusted-host {host}",
                )


def _trusts(trusted: Iterable[str], url: str, host: str) -> bool:
    port = urlsplit(url).port
    return any(name in (host, f"{host}:{port}") for name in trusted)


# --- GPUs -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GpuSight:
    """What is known of GPUs here.

    Attributes
    ----------
    gpus : HostGpus
        What NVML says.
    has_card : bool
        An NVIDIA card is on the PCI bus, whether a driver runs or not.
    engine : EngineFacts or None
        None where no engine answers.
    """

    gpus: HostGpus
    has_card: bool = False
    engine: EngineFacts | None = None


_TOOLKIT = (
    "Install nvidia-container-toolkit "
    "(https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html), then:\n"
    "sudo nvidia-ctk runtime configure --runtime=docker; sudo systemctl restart docker"
)


def judge_gpu(sight: GpuSight) -> list[Finding]:
    """Say whether there is a GPU, its driver runs, and the engine can give it to containers."""
    gpus, engine = sight.gpus, sight.engine
    if engine is not None and not engine.shares_files:
        return [Finding("not checked", "The engine's machine is another, and so are its GPUs.")]
    if not gpus.gpus:
        if gpus.limited_by:
            return [
                Finding(
                    "warn",
                    f"No GPU is to be seen: {gpus.why_none}.",
                    f"To use them: unset {gpus.limited_by}, and start Jupyter anew.",
                )
            ]
        if sight.has_card:
            return [
                Finding(
                    "fail",
                    f"An NVIDIA card is here, but {gpus.why_none or 'no driver answers'}.",
                    "Install the driver, or restart the machine if it was updated just now. Check it with: "
                    "nvidia-smi",
                )
            ]
        return [Finding("ok", "None: this machine has no NVIDIA GPU. Names without -gpu work.")]
    names = ", ".join(sorted(set(gpus.names)))
    found = f"{len(gpus.gpus)} x {names}" if len(gpus.gpus) > 1 else names
    found += f", driver {gpus.driver}" + (
        f" (limited by {gpus.limited_by})" if gpus.limited_by else ""
    )
    if engine is None:
        return [Finding("ok", f"{found}."), Finding("not checked", "Whether the engine gives it.")]
    route = gpu_route(engine)
    if route == "cdi":
        return [Finding("ok", f"{found}; the engine gives it by CDI.")]
    if route == "runtime":
        return [Finding("ok", f"{found}; the engine gives it by the nvidia runtime.")]
    if engine.gpu_hook is False:
        return [
            Finding(
                "fail",
                f"{found}; but the engine cannot give it to containers: its NVIDIA part is not installed.",
                f"{_TOOLKIT}\nWithout GPU: names without -gpu, or --gpus none.",
            )
        ]
    return [Finding("ok", f"{found}; the engine gives it by NVIDIA's hook.")]


# --- kernel bundles -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """A kernel bundle in the cache.

    Attributes
    ----------
    is_whole : bool
        It was built to its end.
    """

    name: str
    size: int = 0
    is_whole: bool = True


@dataclass(frozen=True, kw_only=True)
class BundleSight:
    """The kernel bundles, and whether more can be built.

    Attributes
    ----------
    has_pip : bool
        The notebook's Python has pip, which fetches them.
    python : str
        That Python.
    """

    bundles: tuple[BundleFacts, ...] = ()
    has_pip: bool = True
    python: str = ""


def judge_bundles(sight: BundleSight) -> list[Finding]:
    """Say which kernels are ready for images that have none."""
    findings = []
    whole = [bundle for bundle in sight.bundles if bundle.is_whole]
    if whole:
        total = sum(bundle.size for bundle in whole)
        names = ", ".join(bundle.name for bundle in whole)
        findings.append(Finding("ok", f"{len(whole)} built, {size(total)}: {names}."))
    else:
        findings.append(
            Finding(
                "ok", "None is built yet: the first image without ipykernel takes a moment more."
            )
        )
    if broken := [bundle.name for bundle in sight.bundles if not bundle.is_whole]:
        findings.append(
            Finding(
                "warn",
                f"Not built to the end: {', '.join(broken)}. The next start builds anew.",
                "Remove what is left: dockml prune --force",
            )
        )
    if not sight.has_pip:
        findings.append(
            Finding(
                "warn" if whole else "fail",
                "This Python has no pip, so no kernel can be fetched for images without ipykernel.",
                f"{sight.python} -m ensurepip, or: uv pip install pip",
            )
        )
    return findings


# --- what is left behind --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LeftSight:
    """What nobody uses any more.

    Attributes
    ----------
    things : mapping of str to int
        How many of each kind: {"containers": 2}.
    bytes : int
        They take, about.
    stranded : tuple of str
        Running containers of ours whose runtime folder is gone, so that nobody can reach them.
    running : int
        Containers of ours that run.
    """

    things: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    stranded: tuple[str, ...] = ()
    running: int = 0


def judge_left_overs(sight: LeftSight) -> list[Finding]:
    """Say whether something of ours is left behind."""
    findings = []
    if sight.stranded:
        findings.append(
            Finding(
                "warn",
                f"The runtime folder of a running container is gone, so that no cell reaches it: "
                f"{', '.join(sight.stranded)}.",
                f"Its files are still in it: docker cp. Then: docker rm -f {' '.join(sight.stranded)}",
            )
        )
    if sight.things:
        things = ", ".join(f"{count} {kind}" for kind, count in sight.things.items())
        findings.append(
            Finding(
                "warn",
                f"Nobody uses: {things}; about {size(sight.bytes)}.",
                "See them with: dockml prune",
            )
        )
    if not findings:
        findings.append(
            Finding("ok", f"Nothing is left behind. Your containers that run: {sight.running}.")
        )
    return findings


# --- Jupyter --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JupyterSight:
    """Jupyter's own set-up.

    Attributes
    ----------
    versions : mapping of str to str
        Of the distributions in this environment, "" of one that is not there.
    has_provisioner : bool
        Our kernel provisioner is registered in this environment.
    has_widgets_in_lab : bool
        JupyterLab's extension that shows widgets is found.
    python : str
        This environment's interpreter.
    other_jupyter, other_python : str
        The `jupyter` that a terminal would run and its interpreter, where that is another environment's.
    """

    versions: Mapping[str, str]
    has_provisioner: bool = True
    has_widgets_in_lab: bool = True
    python: str = ""
    other_jupyter: str = ""
    other_python: str = ""


def judge_jupyter(sight: JupyterSight) -> list[Finding]:
    """Say whether Jupyter in this environment is as we need it."""
    findings = []
    pip = f"{sight.python} -m pip install"
    for name, oldest in _OLDEST.items():
        version = sight.versions.get(name, "")
        if not version:
            if name == "ipykernel":
                findings.append(
                    Finding(
                        "warn",
                        "ipykernel is not in this environment: it is no kernel for notebooks; `ipython` works.",
                        f"{pip} ipykernel",
                    )
                )
            else:
                findings.append(
                    Finding(
                        "fail", f"{name} is not in this environment.", f"{pip} '{name}>={oldest}'"
                    )
                )
        elif _is_older(version, oldest):
            findings.append(
                Finding(
                    "fail",
                    f"{name} {version} is older than {oldest}, the oldest that works.",
                    f"{pip} -U '{name}>={oldest}'",
                )
            )
    if not sight.has_provisioner:
        findings.append(
            Finding(
                "fail",
                "Our kernel provisioner is not registered in this environment: kernels in the launcher do not start.",
                f"{pip} --force-reinstall --no-deps dockml_magic",
            )
        )
    if not sight.has_widgets_in_lab:
        findings.append(
            Finding(
                "warn",
                "JupyterLab's widgets are not found from here: the picker may show as a table.",
                "In the environment that JupyterLab runs in: pip install jupyterlab_widgets; then reload the page.",
            )
        )
    if sight.other_jupyter:
        findings.append(
            Finding(
                "warn",
                f"`jupyter` is another environment's: {sight.other_jupyter} ({sight.other_python}). Its launcher does "
                f"not show kernels that are installed here, in {sight.python}.",
                f"Start this one: {sight.python} -m jupyterlab. Or make this a kernel of that: "
                f"{sight.python} -m ipykernel install --user --name NAME",
            )
        )
    if not findings:
        found = ", ".join(f"{name} {sight.versions[name]}" for name in _OLDEST)
        findings.append(Finding("ok", f"{found}; provisioner and widgets are there."))
    return findings


def _is_older(version: str, oldest: str) -> bool:
    try:
        return Version(version) < Version(oldest)
    except InvalidVersion:
        return False


@dataclass(frozen=True, kw_only=True)
class KernelFacts:
    """One of our kernels in the launcher.

    Attributes
    ----------
    problem : str
        Why it cannot start whatever the engine says, "" where it can.
    """

    name: str
    folder: str
    problem: str = ""


def judge_kernels(kernels: Iterable[KernelFacts]) -> list[Finding]:
    """Say whether our kernels in the launcher can start."""
    kernels = list(kernels)
    findings = [
        Finding(
            "fail",
            f"{kernel.name}: {kernel.problem}",
            f"Install it again: dockml kernels install NAME. Or remove it: rm -r '{kernel.folder}'",
        )
        for kernel in kernels
        if kernel.problem
    ]
    good = [kernel.name for kernel in kernels if not kernel.problem]
    if good or not kernels:
        findings.insert(
            0,
            Finding("ok", f"{len(good)} of ours: {', '.join(good)}." if good else "None of ours."),
        )
    return findings


# --- names ----------------------------------------------------------------------------------------


def judge_localhost(addresses: Iterable[str]) -> list[Finding]:
    """Say whether localhost is this machine."""
    addresses = list(addresses)
    strange = [address for address in addresses if not _is_loopback(address)]
    hint = "Let /etc/hosts have the line: 127.0.0.1 localhost"
    if not addresses:
        return [Finding("fail", "The name localhost is not known here.", hint)]
    if strange:
        return [Finding("fail", f"localhost leads elsewhere: {', '.join(strange)}.", hint)]
    if "127.0.0.1" not in addresses:
        return [
            Finding(
                "warn",
                f"localhost is {', '.join(addresses)} and not 127.0.0.1, where kernels over TCP listen.",
                hint,
            )
        ]
    return [Finding("ok", f"localhost is {', '.join(addresses)}.")]


# --- secrets --------------------------------------------------------------------------------------


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text without the user and password of URLs, and without what else is secret."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return re.sub(r"(\w[\w+.-]*://)\S*@", r"\1***@", text)


def secrets_in(settings: Iterable[str]) -> set[str]:
    """Return the users' and passwords' parts of what may be URLs: all that is before the last "@" of each."""
    found = set()
    for word in (word for text in settings for word in text.split()):
        before, at, _ = word.rpartition("@")
        if at:
            whole = before.rpartition("://")[2]
            found |= {whole, whole.partition(":")[2]}
    return {part for part in found if len(part) > 2}
