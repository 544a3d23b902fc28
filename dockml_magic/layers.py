"""Layers: images with extra packages on top of another image, which is not touched.

pip runs in a container of the base image, and what that changed becomes the layer. All that pip is given (requirements,
proxies, an index with its password, the CA bundle) lies in a volume without a name, which goes with the container: an
image's layers, its history and its settings never have it, as they would from a build.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.resources
import json
import logging
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from dockml_magic import folders, labels
from dockml_magic._version import __version__
from dockml_magic.control import NonsenseError
from dockml_magic.engine import Engine, ImageState, NotStartableError, make_archive
from dockml_magic.errors import (
    ConfigError,
    EngineError,
    ImageBuildError,
    KernelMissingError,
    harmless,
)
from dockml_magic.host_settings import CA_FILE, read_host_settings
from dockml_magic.image_memory import ImageMemory
from dockml_magic.requirements import Extras, hide_private, why_pip_failed
from dockml_magic.spec import PYTHONS, RUNTIME, ContainerSpec, Mount

log = logging.getLogger(__name__)

_SCRIPTS = ("launch.py", "install.py", "packages.py")
_PAUSE = 0.3
_BEAT = 5.0
"""Seconds between two signs of life for the container."""

_ALL_LINES = 100_000
TAIL = 15
"""Lines of pip's that are shown when it fails."""

_NOISE = ("DEPRECATION: Python ", "WARNING: Running pip as ")
_LONGEST_BEGIN, _LONGEST_END = 200, 60
"""Characters of a line's two ends that are shown: it may list 200 versions."""

_PYTHON = re.compile(r"(\d{1,3}\.\d{1,5})(\.\w{1,20}){0,3}\+?", re.ASCII)
"""A Python's version: "3.6.15", "3.14.0rc1", and "2.7.15+" as Debian's says. The first group chooses a pip."""

_LONGEST_TEXT = 4096
"""Characters of a text that a container says: as long as a path can be."""

_SETTINGS = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_PROGRESS_BAR": "off",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_BREAK_SYSTEM_PACKAGES": "1",  # Debian's own Python: the image is ours to change
    "PIP_USER": "0",
    "PYTHONIOENCODING": "utf-8",
}
"""What pip is told besides the host's settings; a pip that does not know one passes over it."""


def ensure_layer(
    base: ImageState,
    name: str,
    extras: Extras,
    engine: Engine,
    tell: Callable[[str], None],
    given: Mapping[str, str] = MappingProxyType({}),
) -> ImageState:
    """Return the image with extra packages on top of another, building it where it is not here.

    Parameters
    ----------
    base : ImageState
        The image below.
    name : str
        What that is called.
    extras : Extras
        What to install.
    engine : Engine
        Where it is built.
    tell : callable
        Gets a line for the user when something takes time.
    given : mapping of str to str
        Variables that the container is given: a requirements file may name them, and no others of this machine.

    Raises
    ------
    ImageBuildError
        If pip fails; with its last lines, and what to do.
    ConfigError
        If a requirements file names a variable that is not given.
    KernelMissingError
        If the image has no Python.
    EngineError
        If the engine refuses. In no case, an interrupt included, a container is left.
    """
    reference = extras.reference(base.id)
    if found := engine.find_image(reference):
        return found
    with _one_at_a_time(reference):
        if found := engine.find_image(reference):  # another process has built it in the meantime
            return found
        _check_variables(extras, given)
        tell(f"installing {extras} on top of {name}, once: {reference}")
        script = _Script(base, name, f"installed {extras}", engine, tell)
        try:
            done = _install(script, name, extras, given)
            about = {
                labels.BASE: name,
                labels.REQUIREMENTS: hide_private("\n".join(extras.lines)),
            }
            image = engine.commit(script.container, reference, as_layer=about)
        finally:
            script.close()
    log.info("built %s on top of %s", reference, name)
    # What we know of its Python; but a new ipykernel may be among the packages.
    memory = replace(script.memory, entry=script.entry, interpreter=done.executable, kernel="")
    memory.write(image.id)
    return image


@contextlib.contextmanager
def _one_at_a_time(reference: str) -> Iterator[None]:
    """Let one process of this user at a time build a layer."""
    folder = folders.cache_root() / "layers"
    folder.mkdir(exist_ok=True)
    with (folder / f"{reference.rpartition(':')[2]}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_variables(extras: Extras, given: Mapping[str, str]) -> None:
    """Refuse variables that are not given: a file that names one must not get this machine's secrets sent away."""
    for name in extras.variables:
        if name not in given:
            raise ConfigError(
                f"A requirement names the variable {name}, which the environment is not given.",
                hint=f'Give it: -e {name}, or in the project file env = ["{name}"].',
            )


@dataclass(frozen=True, kw_only=True)
class Status:
    """What our script has said in a container.

    Attributes
    ----------
    phase : str
        "need_pip" or "done"; "" before it has said anything.
    code : int
        How it ended, 0 where all went well.
    python, executable : str
        The version and the program of the Python; "" where it does not say.
    packages : mapping of str to str
        What is installed: versions by names.
    """

    phase: str = ""
    code: int = 0
    python: str = ""
    executable: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)


def parse_status(said: bytes) -> Status:
    """Return what our script says with its status.json; pure.

    The image's own Python runs it, so it may be anything; and the version names a folder here.

    Raises
    ------
    NonsenseError
        If our script does not say that; in words.
    """
    try:
        message = json.loads(said)
        phase = message["phase"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise NonsenseError("not a status") from error
    if phase not in ("need_pip", "done"):
        raise NonsenseError("not a phase")
    code = message.get("code") if phase == "done" else 0
    if not isinstance(code, int) or isinstance(code, bool) or abs(code) >= 1 << 31:
        raise NonsenseError("not an exit code")
    python = message.get("python", "")
    if not isinstance(python, str) or not (python == "" or _PYTHON.fullmatch(python)):
        raise NonsenseError("not the version of a Python")
    packages = message.get("packages", {})
    if not isinstance(packages, dict):
        raise NonsenseError("not a list of packages")
    return Status(
        phase=phase,
        code=code,
        python=python,
        executable=_text_of(message.get("executable", "")),
        packages={_text_of(name): _text_of(version) for name, version in packages.items()},
    )


def _text_of(value: Any) -> str:
    """Return a text as it can be shown and written; of one line."""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or len(value.splitlines()) > 1:
        raise NonsenseError("not a text")
    return harmless(value)


class _Script:
    """One container in which our script runs, `resources/install.py`."""

    def __init__(
        self, base: ImageState, name: str, what: str, engine: Engine, tell: Callable[[str], None]
    ) -> None:
        self.memory = ImageMemory.read(base.id)
        self.entry = ""
        self.container = ""
        self.lines: list[str] = []
        self._base = base
        self._name = name
        self._what = what
        self._engine = engine
        self.tell = tell
        self._beats = 0
        self._next_beat = 0.0

    def start(
        self, config: Mapping[str, Any], files: Mapping[str, bytes], network: str | None
    ) -> None:
        """Start it with these files beside it; `network` is as `docker run --network`."""
        resources = importlib.resources.files("dockml_magic") / "resources"
        scripts = {name: (resources / name).read_bytes() for name in _SCRIPTS}
        settings = json.dumps({"interpreter": self.memory.interpreter, **config}).encode()
        entries = (self.memory.entry,) if self.memory.entry else PYTHONS
        for entry in entries:
            self.container = self._engine.create(self._spec(entry, network))
            try:
                self.give({**scripts, "config.json": settings, **files})
                self._engine.start(self.container)
            except NotStartableError:
                self.close()
            else:
                self.entry = entry
                return
        raise KernelMissingError(
            f"The image '{self._name}' has no Python (tried: {', '.join(entries)}).",
            hint="Packages are a Python's. In a Dockerfile on Debian: apt-get install python3",
        )

    def _spec(self, entry: str, network: str | None) -> ContainerSpec:
        return ContainerSpec(
            image=self._base.id,
            name=f"dockml-with-{secrets.token_hex(6)}",
            entrypoint=(entry, str(RUNTIME / "install.py")),
            # Root installs. Where the image names no user that is what it has anyway.
            user="0:0" if self._base.user else "",
            workdir=PurePosixPath("/"),
            # These get into the image too, so nothing that is of this container only.
            labels={labels.VERSION: __version__, labels.USER: str(os.getuid())},
            env={},
            mounts=(Mount(target=RUNTIME),),
            network=network,
            auto_remove=True,  # it ends by itself when we are gone
        )

    def give(self, files: Mapping[str, bytes]) -> None:
        """Put files beside the script, in this order."""
        archive = make_archive({RUNTIME / name: content for name, content in files.items()})
        self._engine.copy_in(self.container, archive)

    def wait(self, *phases: str) -> Status:
        """Wait until it says one of these, and meanwhile show what is said in it."""
        while True:
            said = self._engine.read_file(self.container, RUNTIME / "status.json")
            status = self._status(said) if said else Status()
            self.show()
            if status.phase in phases:
                return status
            if not said and self._engine.inspect(self.container) is None:
                raise ImageBuildError(
                    f"The container that {self._what} went away.",
                    hint="Run the same again. Was it, or the engine, stopped?",
                    log_tail="\n".join(readable(self.lines)[-TAIL:]),
                )
            if time.monotonic() >= self._next_beat:
                self._beat()
            time.sleep(_PAUSE)

    def _beat(self) -> None:
        """Say that somebody still waits for it."""
        self._next_beat = time.monotonic() + _BEAT
        self._beats += 1
        self.give({"alive": str(self._beats).encode()})

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Say so while something else takes its time."""
        is_over = threading.Event()

        def beat() -> None:
            while not is_over.wait(_BEAT):
                with contextlib.suppress(EngineError):
                    self._beat()

        thread = threading.Thread(target=beat, name="dockml-beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _status(self, said: bytes) -> Status:
        try:
            return parse_status(said)
        except NonsenseError as error:
            raise ImageBuildError(
                f"The container that {self._what} says what no script of ours says: {error}.",
                hint=f"The Python of '{self._name}' runs that script, and has changed what it says. Use an image "
                "that you trust.",
            ) from error

    def show(self) -> None:
        """Tell what was said since the last time."""
        text = hide_private(self._engine.logs(self.container, _ALL_LINES))
        lines = [line for line in text.splitlines() if line.strip()]
        for line in readable(lines[len(self.lines) :]):
            self.tell(line)
        if lines:  # there are none of a container that went away
            self.lines = lines

    def close(self) -> None:
        """Leave no container."""
        if self.container:
            self._engine.remove(self.container)
            self.container = ""


def _install(script: _Script, name: str, extras: Extras, given: Mapping[str, str]) -> Status:
    """Run pip to its end; return what the script says of its Python."""
    settings = read_host_settings()
    named = {variable: given[variable] for variable in extras.variables}
    files = {"requirements.txt": _text(extras.lines)}
    if extras.constraints:
        files["constraints.txt"] = _text(extras.constraints)
    if settings.ca_bundle:
        files[CA_FILE] = settings.ca_bundle.read_bytes()
    network = "host" if needs_this_machine(settings.env) else None
    if network:
        script.tell(
            "pip runs in the network of this machine, with all its services: your proxy or package index is on it"
        )
    script.start({"env": {**settings.env, **named, **_SETTINGS}}, files, network)
    status = script.wait("need_pip", "done")
    if status.phase == "need_pip":
        with script.waiting():
            wheel = pip_wheel(status.python, folders.cache_root() / "pips", name)
        script.give({"pip.whl": wheel.read_bytes(), "pip.ready": b""})
        status = script.wait("done")
    if status.code:
        script.show()
        why, hint = why_pip_failed("\n".join(script.lines), status.python)
        raise ImageBuildError(
            f"{extras} could not be installed on top of '{name}': {why}.",
            hint=hint,
            log_tail="\n".join(readable(script.lines)[-TAIL:]),
        )
    return status


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What is installed in an image.

    Attributes
    ----------
    python : str
        Version of the Python that a kernel runs on.
    packages : tuple of str
        Of that Python: "numpy==1.14.5", sorted.
    """

    python: str
    packages: tuple[str, ...]


def list_packages(image: ImageState, name: str, engine: Engine) -> Inventory:
    """Return what is installed in an image, in which a container looks; without a network.

    Raises
    ------
    KernelMissingError
        If it has no Python.
    ImageBuildError
        If that cannot be said.
    """
    script = _Script(image, name, "listed packages", engine, log.debug)
    try:
        script.start({"only_list": True}, {}, "none")
        status = script.wait("done")
    finally:
        script.close()
    if status.code or not status.python:
        raise ImageBuildError(
            f"The packages in '{name}' could not be listed.",
            hint="Does its Python start?",
            log_tail="\n".join(readable(script.lines)[-TAIL:]),
        )
    found = sorted(f"{package}=={version}" for package, version in status.packages.items())
    return Inventory(python=status.python, packages=tuple(found))


def readable(lines: Sequence[str]) -> list[str]:
    """Return what pip says without what it says of itself, and without the middle of its longest lines."""
    return [
        f"{line[:_LONGEST_BEGIN]} … {line[-_LONGEST_END:]}"
        if len(line) > _LONGEST_BEGIN + _LONGEST_END
        else line
        for line in lines
        if not line.startswith(_NOISE)
    ]


def _text(lines: tuple[str, ...]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def needs_this_machine(env: Mapping[str, str]) -> bool:
    """Tell whether a proxy or an index is at an address that only this machine itself reaches.

    pip runs in the host's network then.
    """
    urls = [
        word
        for name, value in env.items()
        if name.lower().endswith("_proxy") or name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_PROXY")
        for word in (value.split() if name.lower() != "no_proxy" else ())
    ]  # fmt: skip
    hosts = {urlsplit(url if "://" in url else f"//{url}").hostname for url in urls}
    return any(
        host == "localhost" or str(host).startswith("127.") or host == "::1" for host in hosts
    )


def pip_wheel(python: str, folder: Path, image: str) -> Path:
    """Return the newest pip for a Python such as "3.6.15", downloading it where it is not in `folder`.

    Raises
    ------
    ImageBuildError
        If it cannot be had.
    """
    if not (match := _PYTHON.fullmatch(python)):
        raise ImageBuildError(
            f"'{image}' has no pip, and does not say which Python it has.",
            hint="Does its Python start?",
        )
    minor = match[1]
    target = folder / minor
    if found := sorted(target.glob("pip-*.whl")):
        return found[-1]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            scratch,
        ]
        command += ["--only-binary", ":all:", "--python-version", minor, "pip"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
        wheels = sorted(Path(scratch).glob("pip-*.whl"))
        if done.returncode or not wheels:
            raise ImageBuildError(
                f"'{image}' has no pip, and the one for its Python {python} could not be downloaded.",
                hint="This is needed once per Python version. Behind a company proxy, set pip's index-url or "
                "https_proxy as for any pip install, then try again.",
                log_tail="\n".join((done.stderr or done.stdout).strip().splitlines()[-4:]),
            )
        target.mkdir(exist_ok=True)
        return wheels[-1].replace(target / wheels[-1].name)
