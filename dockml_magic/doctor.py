"""The doctor: looks at all that a start needs, and says of each what is wrong and what to do.

A check is a function that gathers facts, a function of `diagnosis` that judges them, and a line in `CHECKS`. Each
runs in a thread of its own and has a time limit; what goes wrong in it becomes its line. Nothing is changed
but for an empty file that is made and removed where we must be able to write.

`dockml doctor --json` writes a list with one object for each line, whose keys stay::

    {"check": "engine",           one of the names in CHECKS
     "status": "ok",              "ok", "warn", "fail", or "not checked" where an engine is needed and none answers
     "message": "Docker 20.10…",  what was found
     "hint": ""}                  what to do, lines set apart by newlines; "" where there is nothing to do

There may be several of one check, and at least one. Users and passwords of URLs are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import grp
import html
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import pwd
import re
import shutil
import socket
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dockml_magic import engine as engines
from dockml_magic import folders, host_settings, prune
from dockml_magic.diagnosis import (
    Architecture,
    BundleFacts,
    BundleSight,
    EngineSight,
    Finding,
    GpuSight,
    JupyterSight,
    KernelFacts,
    LeftSight,
    NetworkSettings,
    Place,
    Reach,
    Room,
    SocketFacts,
    judge_architecture,
    judge_bundles,
    judge_disk,
    judge_engine,
    judge_gpu,
    judge_jupyter,
    judge_kernels,
    judge_left_overs,
    judge_localhost,
    judge_proxy,
    judge_registry,
    judge_rights,
    redact,
    secrets_in,
)
from dockml_magic.engine import Engine
from dockml_magic.errors import ConfigError, DockmlError, harmless
from dockml_magic.gpu import find_gpus
from dockml_magic.options import RunOptions

PATIENCE = 12.0
"""Seconds for each check. They run at the same time."""

_ENGINE_TIMEOUT = 4.0
"""Seconds in which an engine must begin each of its answers."""

_REGISTRY_TIMEOUT = (3.0, 4.0)
_DOCKER_HUB = "https://registry-1.docker.io"
_WIDTH = 100
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "no_proxy")
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
_LAB_WIDGETS = Path("labextensions/@jupyter-widgets/jupyterlab-manager/package.json")


@dataclass
class Context:
    """What checks are given.

    Attributes
    ----------
    name : str or None
        The engine that was asked for.
    sight : EngineSight
        What came of asking it.
    engine : Engine or None
        It, where it answers.
    """

    name: str | None = None
    sight: EngineSight = field(default_factory=EngineSight)
    engine: Engine | None = None

    @property
    def an_engine(self) -> Engine:
        """The engine, for checks that run only where one answers."""
        assert self.engine is not None
        return self.engine


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Attributes
    ----------
    name : str
        In one or two words.
    gather : callable
        Returns facts.
    judge : callable
        Turns them into findings.
    needs_engine : bool
        Without an engine there is nothing to see.
    """

    name: str
    gather: Callable[[Context], Any]
    judge: Callable[[Any], list[Finding]]
    needs_engine: bool = False


# --- gather: the engine ---------------------------------------------------------------------------


def find_engine(context: Context) -> EngineSight:
    """Ask the engine, and look at its socket if it does not answer."""
    sight = EngineSight(
        user=_user(), is_root=os.geteuid() == 0, has_tls=bool(os.environ.get("DOCKER_TLS_VERIFY"))
    )
    try:
        endpoint, said_by = engines.find_endpoint(context.name)
        sight = replace(sight, endpoint=endpoint, said_by=said_by, socket=_find_socket(endpoint))
        context.engine = engines.connect(context.name, timeout=_ENGINE_TIMEOUT)
    except DockmlError as error:
        others = tuple(other for other in _other_sockets() if other != sight.endpoint)
        return replace(sight, message=error.message, hint=error.hint, others=others)
    return replace(sight, facts=context.engine.facts)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _find_socket(endpoint: str) -> SocketFacts | None:
    if not endpoint.startswith("unix:"):
        return None
    path = Path(urlsplit(endpoint).path)
    try:
        found = path.stat()
    except OSError as error:
        is_hidden = isinstance(error, PermissionError)
        return SocketFacts(path=path, exists=is_hidden)
    group, members = "", set[str]()
    if found.st_mode & 0o060 == 0o060 and found.st_gid != 0:
        with contextlib.suppress(KeyError):
            entry = grp.getgrgid(found.st_gid)
            group, members = entry.gr_name, set(entry.gr_mem)
    primary = -1
    with contextlib.suppress(KeyError):
        primary = pwd.getpwuid(os.getuid()).pw_gid
    return SocketFacts(
        path=path,
        exists=True,
        is_usable=os.access(path, os.R_OK | os.W_OK),
        group=group,
        is_member=bool(group) and (_user() in members or primary == found.st_gid),
        has_group=found.st_gid in {*os.getgroups(), os.getegid()},
    )


def _other_sockets() -> Iterator[str]:
    """Yield the endpoints of engines that people have besides Docker's own."""
    uid = os.getuid()
    places = [f"/run/user/{uid}/docker.sock", f"/run/user/{uid}/podman/podman.sock"]
    home = os.environ.get("HOME")
    if home:
        products = (".docker/desktop", ".docker/run", ".colima/default", ".rd")
        places += [f"{home}/{folder}/docker.sock" for folder in products]
    places += ["/var/run/docker.sock", "/run/podman/podman.sock"]
    for place in places:
        if os.access(place, os.R_OK | os.W_OK):
            yield f"unix://{place}"


def find_architecture(context: Context) -> Architecture:
    """Look at the machine, and at the emulators that its kernel knows."""
    found = Path("/proc/sys/fs/binfmt_misc")
    emulators = sorted(path.name for path in found.glob("qemu-*")) if found.is_dir() else []
    return Architecture(
        machine=platform.machine(),
        engine=context.an_engine.facts.architecture,
        emulators=tuple(emulators),
    )


# --- gather: room ---------------------------------------------------------------------------------


def find_rooms(context: Context) -> list[Room]:
    """Look at the folders that we and the engine write to."""
    rooms = [
        _find_our_room("runtime", folders.runtime_root),
        _find_our_room("cache", folders.bundles_root),
    ]
    root = context.engine.facts.root if context.engine else None
    rooms.insert(0, _measure(Room(what="engine", path=str(root or ""))))
    shm = Path("/dev/shm")  # noqa: S108 - only looked at
    there = shm.is_dir() and os.access(shm, os.W_OK)
    room = Room(what="shm", path=str(shm), problem="" if there else "not there, or read-only.")
    return [*rooms, room if room.problem else _measure(room)]


def _find_our_room(what: str, find: Callable[[], Path]) -> Room:
    """Look at a folder of ours, in which a file must be possible."""
    try:
        folder = find()
    except DockmlError as error:
        return Room(what=what, path="", problem=error.message)
    except OSError as error:
        return Room(what=what, path=str(error.filename or ""), problem=f"{error.strerror}.")
    except RuntimeError:  # pathlib's
        return Room(what=what, path="", problem="you have no home folder (export HOME=/home/me).")
    room = Room(what=what, path=str(folder))
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        measured = _measure(room)
        is_full = measured.free is not None and measured.free < 4096
        return measured if is_full else replace(room, problem=f"{error.strerror}.")
    return _measure(room)


def _measure(room: Room) -> Room:
    if not room.path:
        return room
    try:
        found = os.statvfs(room.path)
    except OSError:
        return room
    return replace(
        room,
        free=found.f_bavail * found.f_frsize,
        total=found.f_blocks * found.f_frsize,
        inodes_free=found.f_favail,
        inodes=found.f_files,
    )


# --- gather: network ------------------------------------------------------------------------------


def find_reach(context: Context) -> Reach:
    """Ask Docker Hub and the engine's mirrors for `GET /v2/`, all at once."""
    facts = context.engine.facts if context.engine else None
    mirrors = facts.mirrors if facts else ()
    urls = [*mirrors, _DOCKER_HUB]
    with ThreadPoolExecutor(len(urls)) as pool:
        problems = list(pool.map(_ask_registry, urls))
    places = [
        Place(url=url, is_mirror=url is not _DOCKER_HUB, problem=problem)
        for url, problem in zip(urls, problems, strict=True)
    ]
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(_DOCKER_HUB, get_environ_proxies(_DOCKER_HUB)) or ""
    return Reach(places=tuple(places), host_proxy=proxy, engine=facts)


def _ask_registry(url: str) -> str:
    """Return why a registry does not answer as one, "" where it does."""
    import requests

    try:
        answer = requests.get(f"{url.rstrip('/')}/v2/", timeout=_REGISTRY_TIMEOUT, stream=True)
    except requests.exceptions.ProxyError:
        return "the proxy refuses, or is not reached."
    except requests.exceptions.SSLError:
        return "its certificate is not trusted."
    except requests.exceptions.ConnectTimeout:
        return "no connection within 3 seconds."
    except requests.exceptions.ReadTimeout:
        return "no answer within 4 seconds."
    except requests.exceptions.ConnectionError as error:
        return "its name is not known." if "resolve" in str(error) else "no connection."
    except (requests.RequestException, ValueError) as error:
        return f"{type(error).__name__}."
    except OSError:  # what requests says of a CA bundle that is not there
        return "the CA bundle of this machine's settings is not there."
    answer.close()
    # 401 is a registry that wants a login for what comes next.
    return "" if answer.status_code in (200, 401) else f"it answers HTTP {answer.status_code}."


def find_network_settings(_: Context) -> NetworkSettings:
    """Read the variables of this process, and pip's files."""
    environ = os.environ
    proxies = {
        name: environ[name]
        for lower in _PROXIES
        for name in (lower, lower.upper())
        if environ.get(name)
    }
    settings = host_settings.pip_settings(environ)
    files = {name: environ[name] for name in _CA_VARIABLES if environ.get(name)}
    if settings.get("cert"):
        files.setdefault("PIP_CERT", settings["cert"])
    return NetworkSettings(
        proxies=proxies,
        missing_files={n: path for n, path in files.items() if not Path(path).exists()},
        pip=settings,
    )


def find_addresses(_: Context) -> list[str]:
    """Look the name localhost up."""
    try:
        found = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


# --- gather: GPUs, bundles, left-overs ------------------------------------------------------------


def find_gpu_sight(context: Context) -> GpuSight:
    """Ask the driver, and look for a card on the PCI bus."""
    return GpuSight(
        gpus=find_gpus(),
        has_card=_has_nvidia_card(Path("/sys/bus/pci/devices")),
        engine=context.engine.facts if context.engine else None,
    )


def _has_nvidia_card(devices: Path) -> bool:
    for device in devices.glob("*"):
        with contextlib.suppress(OSError):
            is_nvidia = (device / "vendor").read_text().strip() == "0x10de"
            if is_nvidia and (device / "class").read_text().startswith("0x03"):  # a display's
                return True
    return False


def find_bundles(_: Context) -> BundleSight:
    """Look at the kernel bundles in the cache."""
    try:
        root = folders.bundles_root()
        bundles = [
            BundleFacts(name=found.path.name, size=found.size, is_whole=found.is_whole)
            for found in prune.find_bundles(root)
            if not found.is_locked
        ]
    except (OSError, RuntimeError):  # the check of room says so
        bundles = []
    has_pip = importlib.util.find_spec("pip") is not None
    return BundleSight(bundles=tuple(bundles), has_pip=has_pip, python=sys.executable)


def find_left_overs(context: Context) -> LeftSight:
    """Look for what nobody uses. Images are left to `dockml prune`, as their Dockerfiles take long to read."""
    holdings = prune.find_holdings(context.an_engine, thorough=False)
    found = [
        left
        for left in prune.decide(holdings)
        if left.kind in ("container", "layers", "run folder", "handover", "kept note")
    ]
    kinds = Counter(left.kind for left in found)
    running = [c for c in prune.our_containers(holdings) if c.status == "running"]
    return LeftSight(
        things={kind if n == 1 else _plural(kind): n for kind, n in kinds.items()},
        bytes=sum(left.size for left in found),
        stranded=tuple(
            container.name
            for container in running
            if (folder := prune.runtime_folder(container)) and not Path(folder).exists()
        ),
        running=len(running),
    )


def _plural(kind: str) -> str:
    return kind if kind.endswith("s") else f"{kind}s"


# --- gather: Jupyter ------------------------------------------------------------------------------


def find_jupyter(_: Context) -> JupyterSight:
    """Look at what is installed in this environment, and at the `jupyter` that a terminal runs."""
    from jupyter_core.paths import jupyter_path

    from dockml_magic.provisioner import PROVISIONER_NAME

    entry_points = importlib.metadata.entry_points(group="jupyter_client.kernel_provisioners")
    other, python = _other_jupyter()
    return JupyterSight(
        versions={name: _version(name) for name in ("ipykernel", "jupyter_client", "ipywidgets")},
        has_provisioner=PROVISIONER_NAME in entry_points.names,
        has_widgets_in_lab=any((Path(p) / _LAB_WIDGETS).is_file() for p in jupyter_path()),
        python=sys.executable,
        other_jupyter=other,
        other_python=python,
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _other_jupyter() -> tuple[str, str]:
    """Return the `jupyter` on the PATH and its interpreter, where that is not in this environment."""
    found = shutil.which("jupyter")
    if found is None:
        return "", ""
    try:
        with open(found, "rb") as file:  # noqa: PTH123 - its beginning is enough
            head = file.read(500).decode(errors="replace")
    except OSError:
        return "", ""
    # In the first line, or, where that would be too long, in the second.
    named = re.search(r"(/\S*python[\d.]*)", head)
    if named is None:  # a wrapper: pyenv, conda run, a module system
        return "", ""
    python = Path(named[1])
    if python.parent.resolve() == Path(sys.executable).parent.resolve():
        return "", ""
    return found, str(python)


def find_kernels(_: Context) -> list[KernelFacts]:
    """Look at our kernelspecs that this Jupyter finds."""
    from jupyter_client.kernelspec import KernelSpecManager

    from dockml_magic.provisioner import PROVISIONER_NAME

    found = []
    for name, folder in sorted(KernelSpecManager().find_kernel_specs().items()):
        try:
            text = (Path(folder) / "kernel.json").read_text()
        except OSError:
            continue
        if PROVISIONER_NAME in text:
            found.append(KernelFacts(name=name, folder=folder, problem=_problem_of_kernel(text)))
    return found


def _problem_of_kernel(text: str) -> str:
    try:
        spec = json.loads(text)
        config = spec["metadata"]["kernel_provisioner"]["config"]
        RunOptions.from_json(config["options"])
        interpreter = spec["argv"][0]
        _ = config["name"]
    except (ValueError, KeyError, TypeError, IndexError, ConfigError) as error:
        return f"its kernel.json cannot be used ({type(error).__name__}: {error})."
    if not os.access(interpreter, os.X_OK):
        return f"its Python is gone: {interpreter}"
    return ""


# --- all of them ----------------------------------------------------------------------------------

CHECKS: Sequence[Check] = (
    Check("engine", find_engine, judge_engine),
    Check("rights", lambda context: context.sight, judge_rights, needs_engine=True),
    Check("architecture", find_architecture, judge_architecture, needs_engine=True),
    Check("disk", find_rooms, judge_disk),
    Check("registry", find_reach, judge_registry),
    Check("proxy", find_network_settings, judge_proxy),
    Check("localhost", find_addresses, judge_localhost),
    Check("GPU", find_gpu_sight, judge_gpu),
    Check("kernel bundles", find_bundles, judge_bundles),
    Check("left-overs", find_left_overs, judge_left_overs, needs_engine=True),
    Check("Jupyter", find_jupyter, judge_jupyter),
    Check("kernels", find_kernels, judge_kernels),
)
"""The engine's is first: the others are given what it found."""


def examine(
    engine: str | None = None, checks: Sequence[Check] = CHECKS, patience: float = PATIENCE
) -> Report:
    """Run the checks, and return what they found.

    Parameters
    ----------
    engine : str, optional
        A Docker context or an endpoint; by default what the environment names.
    checks : sequence of Check
        In this order; those after the first run at the same time.
    patience : float
        Seconds for the first, and for the others together.
    """
    for module in _IMPORTED_FIRST:
        importlib.import_module(module)
    context = Context(name=engine)
    findings = []
    for some in (checks[:1], checks[1:]):
        runs = [_Run(check, context) for check in some]
        deadline = time.monotonic() + patience
        for run in runs:
            findings += run.findings(deadline, patience)
    secrets = _secrets()
    return Report(
        [
            replace(f, message=_shown(f.message, secrets), hint=_shown(f.hint, secrets))
            for f in findings
        ]
    )


_IMPORTED_FIRST = ("docker", "dockml_magic.provisioner", "jupyter_client", "pynvml", "requests")
"""Threads that import the same for the first time get in each other's way."""


class _Run:
    """A check that runs in a thread, which nobody waits for when its time is over."""

    def __init__(self, check: Check, context: Context) -> None:
        self._check = check
        self._context = context
        self._found: list[Finding] = []
        self._thread = threading.Thread(target=self._run, name=f"doctor-{check.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        if self._check.needs_engine and self._context.engine is None:
            self._found = [Finding("not checked", "It needs an engine, and none answers.")]
            return
        try:
            facts = self._check.gather(self._context)
            if isinstance(facts, EngineSight):
                self._context.sight = facts
            self._found = self._check.judge(facts)
        except DockmlError as error:
            self._found = [Finding("fail", error.message, error.hint)]
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            self._found = [Finding("fail", f"{error.strerror or error}{where}.")]
        except Exception as error:  # noqa: BLE001 - a check that fails is a line, and ends no other
            if isinstance(error, RuntimeError) and not _has_home():  # the check of room says so
                self._found = [Finding("not checked", "It needs a home folder, and you have none.")]
                return
            text = f"This check itself failed: {type(error).__name__}: {error}"
            self._found = [Finding("fail", text, "Please report it, with this line.")]

    def findings(self, deadline: float, patience: float) -> list[Finding]:
        """Return what it has found by then."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            late = f"No answer within {patience:.0f} s."
            found = [Finding("fail", late, "Is the machine very busy, or a network drive gone?")]
        else:
            found = self._found
        return [replace(finding, check=self._check.name) for finding in found]


def _has_home() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


def _shown(text: str, secrets: set[str]) -> str:
    """Return a text without secrets, and without what an engine may say to steer a terminal."""
    return harmless(redact(text, secrets))


def _secrets() -> set[str]:
    """Return the passwords that this process's settings have in URLs."""
    values = [value for name, value in os.environ.items() if name.lower() in _PROXIES]
    with contextlib.suppress(Exception):  # the check of them says what is wrong
        values += host_settings.pip_settings(os.environ).values()
    return secrets_in(values)


# --- tell -----------------------------------------------------------------------------------------


class Report:
    """What the doctor found: lines in a terminal, a table in a notebook, JSON.

    Parameters
    ----------
    findings : sequence of Finding
        In the order of the checks.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)

    @property
    def exit_code(self) -> int:
        """0, or 1 where something fails."""
        return int(any(finding.status == "fail" for finding in self.findings))

    @property
    def summary(self) -> str:
        """One sentence."""
        count = Counter(finding.status for finding in self.findings)
        if not count["fail"] and not count["warn"]:
            return "All is well."
        parts = [f"{count[s]} {s}" for s in ("fail", "warn", "not checked") if count[s]]
        rest = (
            ""
            if count["fail"]
            else " What is marked warn does not keep environments from starting."
        )
        return f"{', '.join(parts)}.{rest}"

    def to_json(self) -> str:
        """Return the findings as JSON; see this module's text."""
        keys = ("check", "status", "message", "hint")
        rows: list[Mapping[str, str]] = []
        for finding in self.findings:
            about = asdict(finding)
            rows.append({key: about[key] for key in keys})
        return json.dumps(rows, indent=1, ensure_ascii=False)

    def __str__(self) -> str:
        """Return a line for each finding, with what to do below it."""
        width = max((len(finding.check) for finding in self.findings), default=0)
        left = len("not checked  ") + width + 2
        columns = max(40, min(shutil.get_terminal_size((_WIDTH, 24)).columns, 120) - left)
        lines = []
        for finding in self.findings:
            head = f"{finding.status:<11}  {finding.check:<{width}}  "
            body = textwrap.wrap(
                finding.message, columns, break_long_words=False, break_on_hyphens=False
            )
            for line in finding.hint.splitlines():
                body += textwrap.wrap(
                    f"> {line}",
                    columns,
                    subsequent_indent="  ",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            lines += [head + (body[0] if body else ""), *(" " * len(head) + b for b in body[1:])]
        return "\n".join([*lines, "", self.summary])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def row(tag: str, *cells: str) -> str:
            style = "text-align:left;vertical-align:top"
            lines = (html.escape(cell).replace("\n", "<br>") for cell in cells)
            return f"<tr>{''.join(f'<{tag} style={style!r}>{cell}</{tag}>' for cell in lines)}</tr>"

        head = row("th", "STATUS", "CHECK", "FOUND", "WHAT TO DO")
        body = "".join(row("td", f.status, f.check, f.message, f.hint) for f in self.findings)
        table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
        return f"{table}<p>{html.escape(self.summary)}</p>"


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the doctor takes on `parser`."""
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument("--engine", metavar="CONTEXT|URL", help="Docker context or endpoint to use")
