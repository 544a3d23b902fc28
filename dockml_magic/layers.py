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
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from dockml_magic import folders, labels
from dockml_magic._version import __version__
from dockml_magic.engine import Engine, ImageState, NotStartableError, make_archive
from dockml_magic.errors import ImageBuildError, KernelMissingError
from dockml_magic.host_settings import CA_FILE, HostSettings, read_host_settings
from dockml_magic.image_memory import ImageMemory
from dockml_magic.requirements import Extras, hide_private, why_pip_failed
from dockml_magic.spec import RUNTIME, ContainerSpec, Mount

log = logging.getLogger(__name__)

PYTHONS = ("python", "python3", "/opt/conda/bin/python", "/usr/local/bin/python3", "python2")
"""Programs that can be the interpreter of our script, in the order they are tried."""

_PAUSE = 0.3
_BEAT = 5.0
"""Seconds between two signs of life for the container."""

_ALL_LINES = 100_000
TAIL = 15
"""Lines of pip's that are shown when it fails."""

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
    environ: Mapping[str, str] = os.environ,
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
    environ : mapping of str to str
        For the variables that a requirements file names.

    Raises
    ------
    ImageBuildError
        If pip fails; with its last lines, and what to do.
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
        tell(f"installing {extras} on top of {name}, once: {reference}")
        builder = _Builder(base, name, extras, engine, tell)
        try:
            builder.build(reference, environ)
        finally:
            builder.close()
    image = engine.find_image(reference)
    if image is None:
        raise ImageBuildError(f"The engine does not have {reference} after it was built.")
    builder.remember(image)
    return image


@contextlib.contextmanager
def _one_at_a_time(reference: str) -> Iterator[None]:
    """Let one process of this user at a time build a layer."""
    folder = folders.cache_root() / "layers"
    folder.mkdir(exist_ok=True)
    with (folder / f"{reference.rpartition(':')[2]}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Builder:
    """One container in which pip runs."""

    def __init__(
        self,
        base: ImageState,
        name: str,
        extras: Extras,
        engine: Engine,
        tell: Callable[[str], None],
    ) -> None:
        self._base = base
        self._name = name
        self._extras = extras
        self._engine = engine
        self._tell = tell
        self._memory = ImageMemory.read(base.id)
        self._container = ""
        self._entry = ""
        self._lines: list[str] = []
        self._beats = 0
        self._next_beat = 0.0
        self._done: dict[str, Any] = {}

    def build(self, reference: str, environ: Mapping[str, str]) -> None:
        """Run pip, and make an image of what it has changed."""
        settings = read_host_settings()
        self._start(settings, environ)
        status = self._wait("need_pip", "done")
        if status["phase"] == "need_pip":
            self._give_pip(str(status["python"]))
            status = self._wait("done")
        if status["code"]:
            self._raise_failed(str(status["python"]))
        self._done = status
        self._engine.commit_layer(
            self._container,
            self._base.id,
            reference,
            {
                labels.BASE: self._name,
                labels.REQUIREMENTS: hide_private("\n".join(self._extras.lines)),
            },
        )
        log.info("built %s on top of %s", reference, self._name)

    def remember(self, image: ImageState) -> None:
        """Keep what we know of the layer's Python, so that its first start finds the same."""
        if self._done:
            replace(
                self._memory,
                entry=self._entry,
                interpreter=str(self._done["executable"]),
                kernel="",  # a new ipykernel may be among the packages
            ).write(image.id)

    def close(self) -> None:
        """Leave no container."""
        if self._container:
            self._engine.remove(self._container)

    def _start(self, settings: HostSettings, environ: Mapping[str, str]) -> None:
        entries = (self._memory.entry,) if self._memory.entry else PYTHONS
        for entry in entries:
            self._container = self._engine.create(self._spec(entry, settings))
            try:
                self._copy_in(self._files(settings, environ))
                self._engine.start(self._container)
            except NotStartableError:
                self.close()
                self._container = ""
            else:
                self._entry = entry
                return
        raise KernelMissingError(
            f"The image '{self._name}' has no Python (tried: {', '.join(entries)}).",
            hint="Packages can only be installed where a Python is. In a Dockerfile on Debian: "
            "apt-get install python3",
        )

    def _spec(self, entry: str, settings: HostSettings) -> ContainerSpec:
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
            network="host" if _needs_this_machine(settings.env) else None,
            auto_remove=True,  # it ends by itself when we are gone
        )

    def _files(
        self, settings: HostSettings, environ: Mapping[str, str]
    ) -> dict[PurePosixPath, bytes | None]:
        named = {name: environ[name] for name in self._extras.variables if name in environ}
        config = {
            "interpreter": self._memory.interpreter,
            "env": {**settings.env, **named, **_SETTINGS},
        }
        resources = importlib.resources.files("dockml_magic") / "resources"
        files: dict[PurePosixPath, bytes | None] = {
            RUNTIME: None,
            RUNTIME / "launch.py": (resources / "launch.py").read_bytes(),
            RUNTIME / "install.py": (resources / "install.py").read_bytes(),
            RUNTIME / "config.json": json.dumps(config).encode(),
            RUNTIME / "requirements.txt": _text(self._extras.lines),
        }
        if self._extras.constraints:
            files[RUNTIME / "constraints.txt"] = _text(self._extras.constraints)
        if settings.ca_bundle:
            files[RUNTIME / CA_FILE] = settings.ca_bundle.read_bytes()
        return files

    def _copy_in(self, files: Mapping[PurePosixPath, bytes | None]) -> None:
        self._engine.copy_in(self._container, make_archive(files))

    def _give_pip(self, python: str) -> None:
        wheel = pip_wheel(python, folders.cache_root() / "pips", self._name)
        self._copy_in({RUNTIME / "pip.whl": wheel.read_bytes(), RUNTIME / "pip.ready": b""})

    def _wait(self, *phases: str) -> dict[str, Any]:
        """Wait until the container says one of these, and meanwhile show what pip says."""
        while True:
            said = self._engine.read_file(self._container, RUNTIME / "status.json")
            status: dict[str, Any] = json.loads(said) if said else {}
            self._show()
            if status.get("phase") in phases:
                return status
            if not said and self._engine.inspect(self._container) is None:
                raise ImageBuildError(
                    f"The container that installed {self._extras} went away.",
                    hint="Run the same again. Was it, or the engine, stopped?",
                    log_tail="\n".join(self._lines[-TAIL:]),
                )
            if time.monotonic() >= self._next_beat:
                self._next_beat = time.monotonic() + _BEAT
                self._beats += 1
                self._copy_in({RUNTIME / "alive": str(self._beats).encode()})
            time.sleep(_PAUSE)

    def _show(self) -> None:
        """Tell what pip has said since the last time."""
        text = hide_private(self._engine.logs(self._container, _ALL_LINES))
        lines = [line for line in text.splitlines() if line.strip()]
        for line in lines[len(self._lines) :]:
            self._tell(line)
        if lines:  # there are none of a container that went away
            self._lines = lines

    def _raise_failed(self, python: str) -> None:
        self._show()
        why, hint = why_pip_failed("\n".join(self._lines), python)
        raise ImageBuildError(
            f"{self._extras} could not be installed on top of '{self._name}': {why}.",
            hint=hint,
            log_tail="\n".join(self._lines[-TAIL:]),
        )


def _text(lines: tuple[str, ...]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _needs_this_machine(env: Mapping[str, str]) -> bool:
    """Tell whether a proxy or an index is at an address that only this machine itself reaches."""
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
    minor = ".".join(python.split(".")[:2])
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
