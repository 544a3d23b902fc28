"""The engine: the only place that speaks to Docker, and the only importer of its SDK.

`Engine` is the contract; `DockerEngine` is the real one. Every exception of the SDK becomes one of
ours here, with what to do about it.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import itertools
import json
import logging
import math
import os
import platform
import queue
import re
import select
import shutil
import socket
import stat
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from dockml_magic import labels
from dockml_magic.errors import (
    ConfigError,
    ContainerNameTakenError,
    EngineError,
    EngineTooOldError,
    EngineUnreachableError,
    GpuUnavailableError,
    ImageBuildError,
    ImageInUseError,
    ImageUnavailableError,
    MountError,
    PortTakenError,
)
from dockml_magic.options import GpuRequest
from dockml_magic.pull import (
    ImageName,
    PullMeter,
    PullProgress,
    is_unknown_tag,
    pull_error,
    split_reference,
)
from dockml_magic.spec import ContainerSpec

if TYPE_CHECKING:
    import docker
    import requests

    from dockml_magic.registry import Layer, Registry

log = logging.getLogger(__name__)

_HTTPS = 443

OLDEST_API = "1.41"
"""Docker 20.10, December 2020; podman 4 answers 1.41 too."""

_REQUEST_TIMEOUT = 120

_QUIET = 0.6
"""Seconds without an answer after which the engine is asked whether it still hears us."""

_PING = 1.3
"""Seconds that it has to say so. Both together are what a reader waits for an engine that hangs."""

_FAR_PING = 5.0
"""The same where it may be on another machine, and what we say may have to be sent again."""

_LONGEST_QUIET = 5.0
"""Seconds between two such questions while something slow goes on."""

_LAST_WORDS = 5.0
"""Seconds that the thread that reads a pull's events has to see that it was ended."""

_BUILD_NOISE = (
    " ---> ",
    "Removing intermediate container ",
    "[Warning] One or more build-args ",
)
"""How lines of a build begin that say nothing of its steps."""

BUILD_LINES = 20
"""Lines of a failed build that are shown."""

_PIECE = 1024 * 1024
"""Bytes of an archive that are taken at a time."""

_REPORT_INTERVAL = 0.2
"""Seconds between two reports of a pull."""


_COPIES = re.compile(
    r"^\s*(?:COPY(?!\s+--from)|ADD|ONBUILD|FROM\s+\S*onbuild|RUN\s+--mount|#\s*syntax\s*=)",
    re.IGNORECASE | re.MULTILINE,
)
"""A step of a Dockerfile that may read the files beside it."""


STOP_TIMEOUT = 3
"""Seconds that a program has to end when it is told to."""
_LOOK_INTERVAL = 0.02


class NotStartableError(EngineError):
    """The container's program does not exist in the image."""


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What kind of engine this is.

    Attributes
    ----------
    version, api : str
        Of the engine and its API.
    endpoint : str
        Where it answers.
    shares_files : bool
        It mounts the file system we see, at the same paths.
    rootless : bool
        It runs as an ordinary user, whose containers' root is that user.
    architecture : str
        Of its machine, in the words of images: "amd64".
    root : Path or None
        The folder in which it keeps images; None where that is not on our disks.
    mirrors : tuple of str
        URLs of its mirrors of Docker Hub.
    plain_registries : frozenset of str
        Registries to which it speaks without TLS.
    runtimes : tuple of str
        What it can run containers with: "runc", "nvidia".
    cdi_gpus : tuple of str
        The NVIDIA GPUs that it knows by CDI, such as "nvidia.com/gpu=all".
    gpu_hook : bool or None
        NVIDIA's hook, by which device requests work, is installed; None where we cannot look.
    product : str
        Who made it, in its own words: "Docker", "Docker Desktop", "podman".
    system : str
        The operating system of its machine.
    proxies : mapping of str to str
        Its own proxies, by the names of variables: "HTTPS_PROXY". Pulls go through them.
    """

    version: str
    api: str
    endpoint: str
    shares_files: bool
    rootless: bool = False
    architecture: str = ""
    root: Path | None = None
    mirrors: tuple[str, ...] = ()
    plain_registries: frozenset[str] = frozenset()
    runtimes: tuple[str, ...] = ()
    cdi_gpus: tuple[str, ...] = ()
    gpu_hook: bool | None = None
    product: str = "Docker"
    system: str = ""
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class ImageState:
    """An image that is here.

    Attributes
    ----------
    references : tuple of str
        Its names, sorted; empty for one without a name.
    created_at : float
        Seconds since 1970; 0.0 where `find_image` was asked and not `images`.
    digests : tuple of str
        Those by which registries know it, "repository@sha256:…".
    """

    id: str
    entrypoint: tuple[str, ...] = ()
    user: str = ""
    architecture: str = ""
    size: int = 0
    references: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: float = 0.0
    digests: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DiskUsage:
    """What things take of the engine's disk, in bytes.

    Attributes
    ----------
    images : mapping of str to int
        By id: what only this image has, which is what its removal frees.
    containers : mapping of str to int
        By id: what it has written.
    layers : int
        All images together.
    """

    images: Mapping[str, int] = field(default_factory=dict)
    containers: Mapping[str, int] = field(default_factory=dict)
    layers: int = 0


@dataclass(frozen=True, kw_only=True)
class ContainerStats:
    """What a container has used up to now, as the engine counts it.

    Attributes
    ----------
    cpu, system : int
        Nanoseconds of CPU of its processes, and of the whole machine.
    cpus : int
        That it may run on.
    memory, memory_limit : int
        Bytes; without what the kernel only caches and can drop, as `docker stats` shows it.
    pids : int or None
        Processes and threads; None where the engine does not count them.
    """

    cpu: int = 0
    system: int = 0
    cpus: int = 1
    memory: int = 0
    memory_limit: int = 0
    pids: int | None = None

    def cpu_percent(self, before: ContainerStats) -> float:
        """Return how busy it was since `before`, by Docker's own formula: 100 is one CPU."""
        passed = self.system - before.system
        return max(0.0, (self.cpu - before.cpu) / passed * self.cpus * 100) if passed > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class ContainerState:
    """A container as the engine sees it.

    Attributes
    ----------
    status : str
        Docker's word: created, running, paused, exited, dead.
    created_at : float
        Seconds since 1970; 0.0 where `inspect` was asked and not `list`.
    mounts : mapping of str to str
        Places in the container to the host's folders that are mounted there.
    exit_code : int
        0 while it runs.
    host_ports : mapping of int to int
        Container port to the host port that is published for it.
    entrypoint : tuple of str
        What its first process was started with; empty where `list` was asked and not `inspect`.
    user : str
        As whom that was started; as `entrypoint`.
    image_id : str
        Of its image, which may have lost the name that `image` gives.
    """

    id: str
    name: str
    status: str
    image: str
    labels: Mapping[str, str]
    image_id: str = ""
    exit_code: int = 0
    out_of_memory: bool = False
    started_at: str = ""
    created_at: float = 0.0
    mounts: Mapping[str, str] = field(default_factory=dict)
    host_ports: Mapping[int, int] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    user: str = ""


Stream = Literal["stdout", "stderr"]


class Exec(Protocol):
    """A command that runs in a container. Close it in the end, which does not end the command."""

    @property
    def pid(self) -> int:
        """Its process on the engine's machine, 0 where that is not known."""

    def fileno(self) -> int:
        """Return what `select` can wait on."""

    def read(self) -> tuple[Stream, bytes] | None:
        """Wait for output and return it, None at its end. A terminal's is all "stdout"."""

    def write(self, data: bytes) -> None:
        """Send it to the standard input."""

    def close_input(self) -> None:
        """End the standard input; what it writes can still be read."""

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal how large it is. One that has ended is no error."""

    def exit_code(self) -> int | None:
        """Return how it ended, None while it runs."""

    def close(self) -> None:
        """Leave it."""


class Engine(Protocol):
    """What the floors above need of an engine. All methods raise only `EngineError`s."""

    @property
    def facts(self) -> EngineFacts:
        """Who answers; asked once."""

    def find_image(self, reference: str) -> ImageState | None:
        """Return the image if it is here. Called before every start."""

    def local_references(self) -> list[str]:
        """Return all tags that are here, for suggestions and completion."""

    def images(self, wanted_labels: Mapping[str, str]) -> list[ImageState]:
        """Return all images that carry these labels ("" is any value), those without a name too.

        What only an inspection says (entrypoint, user, architecture) is left open.
        """

    def remove_image(self, reference: str, *, force: bool = False) -> list[str]:
        """Remove a name of an image, and the image with its last one; return what went, as `docker rmi` says it.

        Raises
        ------
        ImageUnavailableError
            If there is none.
        ImageInUseError
            If containers or other images need it; `force` is Docker's.
        """

    def pull(self, reference: str, report: Callable[[PullProgress], None]) -> None:
        """Fetch an image.

        `report` is called at once, then several times a second, also where nothing goes on, and with the
        end. What it raises, and an interrupt, end the pull; layers that are complete are not downloaded again.
        """

    def build(
        self,
        dockerfile: Path,
        reference: str,
        args: Mapping[str, str],
        report: Callable[[str], None],
        *,
        pull: bool = False,
        context: Path | None = None,
    ) -> None:
        """Build a Dockerfile in its folder, or in `context`, and tag the image; `pull` fetches its base anew.

        `report` gets each line of the build. Raises `ImageBuildError` with the last of them.
        """

    def tag(self, image: str, reference: str) -> None:
        """Call an image by one more name, which no other has any more then."""

    def create(self, spec: ContainerSpec) -> str:
        """Create a container and return its id. It is not running yet."""

    def start(self, container_id: str) -> None:
        """Start it. Raises `NotStartableError` if its program is not in the image."""

    def copy_in(self, container_id: str, archive: bytes) -> None:
        """Unpack a tar archive at the container's root; it may be running or not."""

    def read_file(self, container_id: str, path: PurePosixPath) -> bytes | None:
        """Return a file of the container, None where there is none."""

    def inspect(self, container_id: str) -> ContainerState | None:
        """Return its state, None when it is gone. Its name, or how its id begins, will do too."""

    def logs(self, container_id: str, tail: int) -> str:
        """Return its last lines, "" when it is gone."""

    def stream_logs(
        self,
        container_id: str,
        *,
        tail: int | None = None,
        follow: bool = False,
        timestamps: bool = False,
    ) -> Generator[bytes, None, None]:
        """Give its log in pieces, from the last `tail` lines on; with `follow` until it ends, or is left alone."""

    def exec(
        self,
        container_id: str,
        command: Sequence[str],
        *,
        user: str = "",
        workdir: str = "",
        env: Mapping[str, str] = {},
        tty: bool = False,
    ) -> Exec:
        """Start a command in a running container, with a standard input; "" is as the container itself."""

    def commit(
        self,
        container_id: str,
        reference: str,
        *,
        message: str = "",
        author: str = "",
        as_layer: Mapping[str, str] | None = None,
    ) -> ImageState:
        """Make an image of a container's files, running or not; return it.

        It has the configuration of the container's image: neither variables that the container was given,
        nor its labels and command. An interrupt leaves nothing.

        `as_layer` are labels for the image of a container that was given nothing which must not be in an image: it
        keeps its own labels too, and what the engine makes by itself will do, which is quicker.
        """

    def save(self, references: Sequence[str]) -> Iterator[bytes]:
        """Give an archive of images in pieces, as `docker save` makes it."""

    def load(self, archive: Iterator[bytes]) -> list[str]:
        """Take in the images of such an archive, given in pieces; return their names, or ids where they have none."""

    def stats(self, container_id: str) -> ContainerStats | None:
        """Return what it has used up to now, None where it does not run. Called every few seconds."""

    def wait(self, container_id: str, timeout: float) -> int | None:
        """Return its exit code, None if it still runs after `timeout` seconds or is gone."""

    def stop(self, container_id: str) -> None:
        """End its program. One that has ended is no error."""

    def remove(self, container_id: str, *, force: bool = True) -> None:
        """Remove it, without `force` only where it does not run. Being gone already is success."""

    def list(self, wanted_labels: Mapping[str, str]) -> list[ContainerState]:
        """Return all containers, stopped ones too, that carry these labels ("" is any value)."""

    def disk_usage(self) -> DiskUsage:
        """Return what takes how much of its disk. May take seconds, and knows nothing where it cannot say."""


GpuRoute = Literal["device-requests", "cdi", "runtime"]


def wait_removed(engine: Engine, container_id: str, timeout: float) -> bool:
    """Wait until the engine has a container no more; tell whether that was within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while engine.inspect(container_id) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_INTERVAL)
    return True


def gpu_route(facts: EngineFacts) -> GpuRoute:
    """Return how this engine gives GPUs to containers.

    CDI where the engine says that it has found NVIDIA's devices, as then nothing can be missing. The nvidia
    runtime where it is registered and the hook is not installed (a snap's engine does not see it). Else
    device requests, which is what `docker run --gpus` sends, and whose errors say what is missing.
    """
    if facts.cdi_gpus:
        return "cdi"
    if "nvidia" in facts.runtimes and facts.gpu_hook is False:
        return "runtime"
    return "device-requests"


def make_archive(files: Mapping[PurePosixPath, bytes | None], uid: int = 0, gid: int = 0) -> bytes:
    """Return a tar with these files; None stands for a folder. All belong to uid and gid."""
    import tarfile  # here: `%load_ext` does without it

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(str(path).lstrip("/"))
            entry.uid, entry.gid = uid, gid
            if content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            else:
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def build_reference(dockerfile: Path) -> str:
    """Return the name of the image that is built from a Dockerfile in its folder: "dockml/build:…".

    It stands for the content of the Dockerfile and, where that copies any, of the files that the engine gets, which
    are those that `.dockerignore` leaves in: the image is built again when, and only when, one of them has changed.
    A notebook beside a Dockerfile that copies nothing may be saved as often as one likes.
    """
    from docker.utils.build import exclude_paths

    folder = dockerfile.parent
    ignore = folder / ".dockerignore"
    content = hashlib.sha256(dockerfile.name.encode())
    try:
        if not _COPIES.search(dockerfile.read_text(encoding="utf-8", errors="replace")):
            content.update(dockerfile.read_bytes())
            return f"dockml/build:{content.hexdigest()}"
        patterns = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
        patterns = [p for line in patterns if (p := line.strip()) and not p.startswith("#")]
        for name in sorted(exclude_paths(str(folder), patterns, dockerfile.name)):
            path = folder / name
            mode = path.lstat().st_mode
            content.update(f"\0{name}\0{mode:o}\0".encode(errors="surrogateescape"))
            if stat.S_ISLNK(mode):
                content.update(os.fsencode(path.readlink()))
            elif stat.S_ISREG(mode):
                with path.open("rb") as file:
                    while block := file.read(1024 * 1024):
                        content.update(block)
    except OSError as error:
        raise ConfigError(
            f"The folder of '{dockerfile}' cannot be read: {error.strerror}: {error.filename}.",
            hint="Name what the build does not need in a .dockerignore there.",
        ) from error
    return f"dockml/build:{content.hexdigest()}"


class _Events:
    """The events of a pull as they come, and {} whenever none has come for a while.

    Two threads wait for the engine and the registry, as who iterates must see an interrupt or a stop at once.
    Leaving ends the pull: an engine drops it when its client has gone.

    Parameters
    ----------
    ask : callable
        Asks the engine, and returns its answer when that begins.
    registry : Registry
        Asked for the layers, which arrive as {"layers": …}.
    facts : EngineFacts
        Of the engine.
    """

    def __init__(
        self, ask: Callable[[], requests.Response], registry: Registry, facts: EngineFacts
    ) -> None:
        self._ask = ask
        self._registry = registry
        self._facts = facts
        self._arrived: queue.SimpleQueue[dict[str, Any] | Exception | None] = queue.SimpleQueue()
        self._response: requests.Response | None = None
        self._has_left = False
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="dockml-pull", daemon=True)

    def __enter__(self) -> Iterator[dict[str, Any]]:
        self._reader.start()
        if self._facts.architecture:
            threading.Thread(target=self._ask_layers, name="dockml-layers", daemon=True).start()
        return self._events()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._has_left = True
            if self._response is None:  # the engine has not answered yet; `_read` will see
                return
        # Closing alone would not wake the thread that reads, and so not end the connection.
        with (
            contextlib.suppress(OSError, ValueError, AttributeError),  # it has ended by itself
            socket.socket(fileno=os.dup(self._response.raw.fileno())) as connection,
        ):
            connection.shutdown(socket.SHUT_RDWR)
        self._reader.join(_LAST_WORDS)
        self._response.close()

    def _events(self) -> Iterator[dict[str, Any]]:
        while True:
            try:
                event = self._arrived.get(timeout=_REPORT_INTERVAL)
            except queue.Empty:
                event = {}
            if isinstance(event, Exception):
                raise event
            if event is None:
                return
            yield event

    def _read(self) -> None:
        import requests.exceptions
        import urllib3.exceptions

        try:
            response = self._ask()
            with self._lock:
                if self._has_left:
                    response.close()
                    return
                self._response = response
        except (requests.exceptions.RequestException, OSError) as error:
            self._arrived.put(error)
            return
        try:
            if not response.ok:
                self._arrived.put({"error": _refusal_in(response)})
            for line in response.iter_lines() if response.ok else ():
                self._arrived.put(json.loads(line) if line else {})
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
            ValueError,
            AttributeError,  # what urllib3 makes of a connection that is closed under it
        ) as error:
            log.debug("the engine's answer broke off: %s", error)
        finally:
            self._arrived.put(None)

    def _ask_layers(self) -> None:
        if layers := self._registry.layers(self._facts.architecture):
            self._arrived.put({"layers": layers})


def _refusal_in(response: requests.Response) -> str:
    """Return what an engine says that refuses a request."""
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text or f"unexpected HTTP status: {response.status_code}"


class _KeptLayers:
    """The layers that are complete, kept for a pull that may not come to its end.

    An engine drops them with the pull, as no image has them. So it is given one, without a name: an image of
    the layers that are complete, which is loaded without their contents, as the engine has these already.
    `docker image prune` removes it as any other that nobody uses. An engine that cannot do that (containerd's
    store) has its own way of keeping them.

    Parameters
    ----------
    api : docker.APIClient
        The engine.
    reference : str
        The image that is pulled.
    facts : EngineFacts
        Of the engine.

    Attributes
    ----------
    layers : sequence of Layer
        Of the image, once they are known; without them nothing is kept.
    """

    def __init__(self, api: docker.APIClient, reference: str, facts: EngineFacts) -> None:
        self._api = api
        self._reference = reference
        self._facts = facts
        self._kept = 0
        self.layers: Sequence[Layer] = ()

    def update(self, progress: PullProgress) -> None:
        """Keep what is complete by now."""
        phases = {layer.id: layer.phase for layer in progress.layers}
        complete = list(
            itertools.takewhile(
                lambda layer: layer.diff_id and phases.get(layer.id) in ("done", "here"),
                self.layers,
            )
        )
        if self._kept < len(complete) < len(self.layers):
            self._kept = len(complete)
            self._replace_by([layer.diff_id for layer in complete])

    def drop(self) -> None:
        """Keep nothing any more: the image itself has the layers."""
        self._replace_by([])

    def _replace_by(self, diff_ids: Sequence[str]) -> None:
        import docker.errors
        import requests.exceptions

        with contextlib.suppress(
            docker.errors.DockerException, requests.exceptions.RequestException
        ):
            own = {labels.KEEPS: self._reference, labels.USER: str(os.getuid())}
            before = [
                image["Id"]
                for image in self._api.images(filters={"label": _label_filter(own)})
                if image.get("Labels") == own and not _references(image)
            ]  # an image that a user has built has more, or a name
            kept, archive = self._image(diff_ids)
            if diff_ids and kept not in before:
                said = list(self._api.load_image(archive))
                if any("error" in event for event in said):
                    self.layers = ()  # it cannot
            for image_id in set(before) - {kept if diff_ids else ""}:
                self._api.remove_image(image_id, force=True)

    def _image(self, diff_ids: Sequence[str]) -> tuple[str, bytes]:
        """Return an image's id and its archive."""
        about = {
            "architecture": self._facts.architecture,
            "os": "linux",
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "config": {"Labels": {labels.KEEPS: self._reference, labels.USER: str(os.getuid())}},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        }
        config = json.dumps(about).encode()
        paths = [f"{diff_id.partition(':')[2]}/layer.tar" for diff_id in diff_ids]
        manifest = [{"Config": "config.json", "RepoTags": None, "Layers": paths}]
        archive = make_archive(
            {
                PurePosixPath("manifest.json"): json.dumps(manifest).encode(),
                PurePosixPath("config.json"): config,
            }
        )
        return f"sha256:{hashlib.sha256(config).hexdigest()}", archive


class _DockerExec:
    """A command that an engine runs.

    Parameters
    ----------
    engine : DockerEngine
        The engine.
    exec_id : str
        Its id of the command.
    connection : file
        As the SDK gives it: a raw file on a socket, or a socket.
    tty : bool
        What comes is a terminal's, and not cut into frames.
    """

    def __init__(self, engine: DockerEngine, exec_id: str, connection: Any, *, tty: bool) -> None:
        self._engine = engine
        self._id = exec_id
        self._file = connection
        self._socket = getattr(connection, "_sock", connection)
        self._socket.settimeout(None)
        self._tty = tty

    def _inspect(self) -> dict[str, Any]:
        with self._engine._translated():  # noqa: SLF001  # a part of it
            found: dict[str, Any] = self._engine._client.api.exec_inspect(self._id)  # noqa: SLF001
        return found

    @property
    def pid(self) -> int:
        """Its process on the engine's machine."""
        return int(self._inspect().get("Pid") or 0)

    def fileno(self) -> int:
        """Return what `select` can wait on."""
        return int(self._socket.fileno())

    def read(self) -> tuple[Stream, bytes] | None:
        """Wait for output and return it, None at its end."""
        if self._tty:
            data: bytes = self._recv(_FRAME)
            return ("stdout", data) if data else None
        head = self._exactly(8)
        if len(head) < 8:
            return None
        data = self._exactly(int.from_bytes(head[4:], "big"))
        return ("stderr" if head[0] == 2 else "stdout"), data

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self._recv(min(_FRAME, size - len(data)))):
            data += more
        return data

    def _recv(self, size: int) -> bytes:
        try:
            return bytes(self._socket.recv(size))
        except OSError as error:
            log.debug("the connection to a command broke off: %s", error)
            return b""

    def write(self, data: bytes) -> None:
        """Send it to the standard input."""
        with contextlib.suppress(OSError):  # it has ended
            self._socket.sendall(data)

    def close_input(self) -> None:
        """End the standard input."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal how large it is."""
        with contextlib.suppress(EngineError), self._engine._translated():  # noqa: SLF001
            self._engine._client.api.exec_resize(self._id, height=rows, width=columns)  # noqa: SLF001

    def exit_code(self) -> int | None:
        """Return how it ended, None while it runs."""
        found = self._inspect()
        return None if found.get("Running") or found.get("ExitCode") is None else found["ExitCode"]

    def close(self) -> None:
        """Leave it."""
        self._file.close()
        self._socket.close()


_FRAME = 65536

_METADATA = "ARG|CMD|ENTRYPOINT|ENV|EXPOSE|HEALTHCHECK|LABEL|MAINTAINER|ONBUILD|SHELL|STOPSIGNAL|USER|VOLUME"
_METADATA_STEPS = tuple(
    re.compile(rf"(?:/bin/sh -c )?(?:#\(nop\) +)?(?:{words})\b")
    for words in (_METADATA, f"{_METADATA}|WORKDIR")
)
"""How steps are told in an image's history that make no layer: WORKDIR may, where it makes the folder."""

_RUNS_AS: dict[str, Any] = {"User": "", "Entrypoint": [], "Cmd": [], "WorkingDir": "", "Env": []}
"""What of an image's configuration says how it runs, and what is none of it."""


class _Commit:
    """Makes an image of a container's files, and of the configuration of the container's image.

    What an engine commits by itself has the container's variables, and no change can take one away. So that
    image gets no name, and lives until an image of the same layers with a configuration of ours is loaded:
    without their contents, as `_KeptLayers` does it, or where the engine cannot do that as an archive of all of it.
    As a layer (see `Engine.commit`) it gets its name at once.

    The engine goes on with a commit whoever asked has gone. A thread waits for it, and cleans up after an interrupt.
    """

    def __init__(
        self,
        engine: DockerEngine,
        container_id: str,
        reference: str,
        message: str,
        author: str,
        as_layer: Mapping[str, str] | None,
    ) -> None:
        self._api = engine._client.api  # noqa: SLF001  # a part of it
        self._engine = engine
        self._container_id = container_id
        self._reference = reference
        self._message = message
        self._author = author
        self._as_layer = as_layer
        self._is_abandoned = False
        self._problem: BaseException | None = None

    def run(self) -> None:
        """Do it, and return when it is done."""
        thread = threading.Thread(target=self._try, name="dockml-commit", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)
        except BaseException:
            self._is_abandoned = True
            raise
        if self._problem is not None:
            raise self._problem

    def _try(self) -> None:
        try:
            self._commit()
        except Exception as error:  # noqa: BLE001  # raised where it was asked for
            self._problem = error

    def _commit(self) -> None:
        api = self._api
        base = api.inspect_container(self._container_id)["Image"]
        try:
            base_config = api.inspect_image(base).get("Config") or {}
        except self._engine._errors.ImageNotFound as error:  # noqa: SLF001
            raise EngineError(
                "The image that this container was made of is not here any more.",
                hint="Copy out of the container what you need: docker cp",
            ) from error
        if self._as_layer is not None:
            image_labels = {**(base_config.get("Labels") or {}), **self._as_layer}
            config = {key: base_config.get(key) or empty for key, empty in _RUNS_AS.items()}
            repository, _, tag = self._reference.rpartition(":")
            # Nothing in it writes any more; and not every engine can pause.
            query = {"repo": repository, "tag": tag, "pause": "false"}
            self._give_name(lambda: self._ask_engine(query, {**config, "Labels": image_labels}))
            return
        raw = self._ask_engine({"changes": f"LABEL {labels.COMMITS}={self._reference}"}, {})
        try:
            made = api.inspect_image(raw)
            diff_ids = made["RootFS"]["Layers"]
            about = {
                "architecture": made.get("Architecture", ""),
                "os": made.get("Os") or "linux",
                "author": self._author,
                "comment": self._message,
                "created": made["Created"],
                "config": base_config,
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
                "history": self._history(base, diff_ids, made["Created"]),
            }
            if made.get("Variant"):
                about["variant"] = made["Variant"]
            written = json.dumps({key: value for key, value in about.items() if value}).encode()
            self._give_name(lambda: self._load(written, diff_ids, raw))
        finally:
            api.remove_image(raw, force=True, noprune=True)

    def _ask_engine(self, query: Mapping[str, str], config: Mapping[str, Any]) -> str:
        """Have the engine commit; return the image's id."""
        api = self._api
        # Not api.commit: it gives up after its time-out, and a large layer takes minutes.
        response = api.post(
            f"{api.base_url}/v{api.api_version}/commit",
            params={"container": self._container_id, **query},
            json=config,
            timeout=None,
        )
        if not response.ok:
            raise _error_of(_refusal_in(response), self._reference, "")
        return str(response.json()["Id"])

    def _give_name(self, make: Callable[[], object]) -> None:
        """Make what has the name, unless an interrupt came; one that comes meanwhile takes the name away again.

        But not where there was an image of that name: it would be lost.
        """
        if self._is_abandoned:
            return
        was_there = self._engine.find_image(self._reference) is not None
        make()
        if self._is_abandoned and not was_there:
            self._api.remove_image(self._reference, noprune=True)

    def _history(self, base: str, diff_ids: Sequence[str], created: str) -> list[dict[str, Any]]:
        """Return the base's history and this step; of the base nothing where its layers cannot be told."""
        rows = list(reversed(self._api.history(base)))
        below = len(self._api.inspect_image(base)["RootFS"].get("Layers") or ())
        steps: list[dict[str, Any]] = []
        for metadata in _METADATA_STEPS:
            empty = [not row["Size"] and bool(metadata.match(row["CreatedBy"])) for row in rows]
            if empty.count(False) == below:
                steps = [
                    {
                        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row["Created"])),
                        "created_by": row["CreatedBy"],
                        "comment": row["Comment"],
                        "empty_layer": is_empty,
                    }
                    for row, is_empty in zip(rows, empty, strict=True)
                ]
                break
        own = {
            "created": created,
            "created_by": "dockml commit",
            "author": self._author,
            "comment": self._message,
            "empty_layer": len(diff_ids) == below,
        }
        return [{key: value for key, value in step.items() if value} for step in [*steps, own]]

    def _load(self, config: bytes, diff_ids: Sequence[str], raw: str) -> None:
        paths = [f"{diff_id.partition(':')[2]}/layer.tar" for diff_id in diff_ids]
        try:
            self._engine.load(iter([self._archive(config, paths)]))
        except EngineUnreachableError:
            raise
        except EngineError as error:
            log.info("the engine does not load layers that it has: %s", error)
            with tempfile.TemporaryFile() as file:
                self._write_archive(file, config, raw)
                file.seek(0)
                self._engine.load(iter(lambda: file.read(_PIECE), b""))

    def _archive(self, config: bytes, paths: Sequence[str]) -> bytes:
        manifest = [{"Config": "config.json", "RepoTags": [self._reference], "Layers": paths}]
        return make_archive(
            {
                PurePosixPath("manifest.json"): json.dumps(manifest).encode(),
                PurePosixPath("config.json"): config,
            }
        )

    def _write_archive(self, file: IO[bytes], config: bytes, raw: str) -> None:
        """Write the raw image's archive with another configuration."""
        import tarfile  # here, as above

        paths: list[str] = []
        whole = _Pieces(self._engine.save([raw]))
        with (
            tarfile.open(fileobj=whole, mode="r|") as read,  # type: ignore[call-overload]
            tarfile.open(fileobj=file, mode="w") as written,
        ):
            for member in read:
                content = read.extractfile(member) if member.isfile() else None
                if member.name == "manifest.json" and content is not None:
                    paths = json.load(content)[0]["Layers"]
                elif member.name not in ("repositories", "index.json", "oci-layout"):
                    written.addfile(member, content)
            with tarfile.open(fileobj=io.BytesIO(self._archive(config, paths))) as ours:
                for member in ours:
                    written.addfile(member, ours.extractfile(member))


_Address = str | tuple[str, int]
"""Where an engine listens: the path of a socket of this machine, or a host and a port."""


def _address_of(endpoint: str) -> _Address | None:
    """Return where an endpoint is, None where it does not say."""
    parts = urlsplit(endpoint)
    if parts.scheme == "unix":
        return parts.path
    return (parts.hostname, parts.port) if parts.hostname and parts.port else None


def _connected(address: _Address, timeout: float) -> socket.socket:
    if not isinstance(address, str):
        return socket.create_connection(address, timeout=timeout)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def _answers(address: _Address, more: float = 0.0, most: float = math.inf) -> bool:
    """Tell whether the engine hears us; False only where it takes a connection and keeps silent.

    It says so at once, however busy it is and whatever else it is doing. One that wants TLS says that, or hangs up.
    """
    ping = _PING if isinstance(address, str) else _FAR_PING
    try:
        connection = _connected(address, min(ping + more, most))
    except (TimeoutError, BlockingIOError):
        # Here too many wait to be taken already. On another machine it may be the way there.
        return not isinstance(address, str)
    except OSError as error:
        log.debug("no ping: %s", error)
        return True  # it is away, which the call itself will find out
    with connection:
        try:
            connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
            connection.recv(1)
        except TimeoutError:
            return False
        except OSError as error:
            log.debug("no ping: %s", error)
    return True


def _await_answer(connection: socket.socket, address: _Address) -> None:
    """Wait for an answer; one that is slow has all of the connection's time-out, an engine that hangs has not.

    Raises
    ------
    TimeoutError
        As soon as the engine does not answer a ping either, or after the time-out.
    """
    limit = connection.gettimeout()
    end = math.inf if limit is None else time.monotonic() + limit
    quiet = _QUIET
    poll = select.poll()  # not select.select, which knows no descriptors above 1023
    poll.register(connection, select.POLLIN)
    while not poll.poll(max(0.0, min(quiet, end - time.monotonic())) * 1000):
        if time.monotonic() >= end:
            raise TimeoutError("timed out")
        if not _answers(address) and not poll.poll(0):
            raise TimeoutError("no answer, to a ping neither")
        quiet = min(2 * quiet, _LONGEST_QUIET)


def _watch(api: docker.APIClient) -> None:
    """Let the calls of a client see that the engine hangs.

    It sits where all of them wait, between the request and the beginning of the answer.
    """
    import requests.adapters
    from docker.transport import unixconn

    plain = api.adapters.get("http+docker://")
    if isinstance(plain, unixconn.UnixHTTPAdapter):
        api.mount("http+docker://", watched := _watched_adapter(plain))
        vars(api)["_custom_adapter"] = watched  # by which the SDK finds it
        plain.close()
        return
    for scheme in ("http", "https"):
        plain = api.adapters.get(f"{scheme}://")
        if not isinstance(plain, requests.adapters.HTTPAdapter):
            continue
        manager = plain.poolmanager
        pool = manager.pool_classes_by_scheme[scheme]
        connection = _watched(pool.ConnectionCls, lambda made: (made.host, made.port))
        watched_pool = type(pool.__name__, (pool,), {"ConnectionCls": connection})
        manager.pool_classes_by_scheme = {**manager.pool_classes_by_scheme, scheme: watched_pool}
        manager.clear()


def _watched(kind: Any, address_of: Callable[[Any], _Address]) -> Any:
    """Return a class of connections that see that the engine hangs, made of one of plain ones."""

    class Connection(kind):  # type: ignore[misc]
        def connect(self) -> None:
            # Over TLS two words are waited for before there is a request.
            if self.default_port == _HTTPS and not _answers(address_of(self)):
                raise TimeoutError("no answer to a ping")
            super().connect()

        def getresponse(self) -> Any:
            if self.sock is not None:
                _await_answer(self.sock, address_of(self))
            return super().getresponse()

    return Connection


def _watched_adapter(plain: Any) -> Any:
    """Return what gives the SDK its connections to a socket of this machine."""
    from docker.transport import unixconn

    connection = _watched(unixconn.UnixHTTPConnection, lambda made: str(made.unix_socket))

    class Pool(unixconn.UnixHTTPConnectionPool):
        def _new_conn(self) -> Any:
            return connection(self.base_url, self.socket_path, self.timeout)

    class Adapter(unixconn.UnixHTTPAdapter):
        def get_connection(self, url: Any, proxies: Any = None) -> Any:  # noqa: ARG002  # requests' own
            with self.pools.lock:
                pool = self.pools.get(url)
                if pool is None:
                    pool = self.pools[url] = Pool(
                        url, self.socket_path, self.timeout, maxsize=self.max_pool_size
                    )
            return pool

    return Adapter(plain.socket_path, plain.timeout, max_pool_size=plain.max_pool_size)


class _Pieces:
    """A file to read, of pieces as they come."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def connect(name: str | None = None, *, timeout: float = _REQUEST_TIMEOUT) -> DockerEngine:
    """Return the engine that the environment or the current Docker context names.

    Parameters
    ----------
    name : str, optional
        A Docker context, or an endpoint such as unix:///run/user/1000/podman/podman.sock.
    timeout : float
        Seconds that it may take for an answer.

    Raises
    ------
    EngineUnreachableError
        If nothing answers or we may not use its socket; the hint says what to do.
    EngineTooOldError
        If its API is older than we need.
    """
    return DockerEngine(name, timeout=timeout)


class DockerEngine:
    """An engine behind the Docker API."""

    def __init__(self, name: str | None = None, *, timeout: float = _REQUEST_TIMEOUT) -> None:
        # Imported here: the SDK takes a fifth of a second, and most uses of us do not need it.
        import docker
        import docker.errors
        import requests.exceptions

        self._errors = docker.errors
        endpoint, _ = find_endpoint(name)
        if urlsplit(endpoint).scheme == "ssh":
            raise EngineUnreachableError(
                f"The engine is on another machine ({endpoint}); this version cannot reach kernels there.",
                hint="Run the notebook on that machine, or choose a local engine with --engine default.",
            )
        with self._translated(endpoint=endpoint):
            address = _address_of(endpoint)
            if address is not None and not _answers(address, more=_QUIET, most=timeout):
                raise requests.exceptions.ReadTimeout("Read timed out: no answer to a ping")
            self._client: docker.DockerClient = docker.DockerClient(
                base_url=endpoint, timeout=timeout,  # type: ignore[arg-type]  # a float works
                version="auto", max_pool_size=4,
                **_tls(name),
            )  # fmt: skip
            _watch(self._client.api)
            version = self._client.version()
            info = self._client.info()
        api = version["ApiVersion"]
        if tuple(map(int, api.split("."))) < tuple(map(int, OLDEST_API.split("."))):
            raise EngineTooOldError(api, OLDEST_API)
        shares_files = _shares_files(endpoint, info)
        registries = info.get("RegistryConfig") or {}
        self.facts = EngineFacts(
            version=version["Version"],
            api=api,
            endpoint=endpoint,
            shares_files=shares_files,
            rootless="name=rootless" in (info.get("SecurityOptions") or ()),
            architecture=version.get("Arch", ""),
            root=Path(info["DockerRootDir"])
            if shares_files and info.get("DockerRootDir")
            else None,
            mirrors=tuple(registries.get("Mirrors") or ()),
            plain_registries=frozenset(
                host
                for host, about in (registries.get("IndexConfigs") or {}).items()
                if not about.get("Secure", True)
            ),
            runtimes=tuple(info.get("Runtimes") or ()),
            cdi_gpus=_cdi_gpus(info, look=shares_files),
            gpu_hook=_has_gpu_hook() if shares_files else None,
            product=_product(version, info),
            system=info.get("OperatingSystem") or "",
            proxies={
                name: info[key]
                for name, key in (
                    ("HTTP_PROXY", "HttpProxy"),
                    ("HTTPS_PROXY", "HttpsProxy"),
                    ("NO_PROXY", "NoProxy"),
                )
                if info.get(key)
            },
        )

    def find_image(self, reference: str) -> ImageState | None:
        """Return the image if it is here."""
        with self._translated(reference=reference):
            try:
                found = self._client.api.inspect_image(reference)
            except self._errors.ImageNotFound:
                return None
        config = found.get("Config") or {}
        return ImageState(
            id=found["Id"],
            entrypoint=tuple(config.get("Entrypoint") or ()),
            user=config.get("User") or "",
            architecture=found.get("Architecture", ""),
            size=found.get("Size") or 0,
            references=_references(found),
            labels=config.get("Labels") or {},
            digests=tuple(found.get("RepoDigests") or ()),
        )

    def local_references(self) -> list[str]:
        """Return all tags that are here."""
        with self._translated():
            found = self._client.api.images()
        return sorted(tag for image in found for tag in _references(image))

    def images(self, wanted_labels: Mapping[str, str]) -> list[ImageState]:
        """Return all images that carry these labels."""
        # podman refuses a filter that wants nothing.
        filters = {"label": _label_filter(wanted_labels)} if wanted_labels else None
        with self._translated():
            found = self._client.api.images(filters=filters)
        return [
            ImageState(
                id=row["Id"],
                size=row.get("Size") or 0,
                references=_references(row),
                labels=row.get("Labels") or {},
                created_at=max(0.0, float(row.get("Created") or 0.0)),
            )
            for row in found
        ]

    def remove_image(self, reference: str, *, force: bool = False) -> list[str]:
        """Remove a name of an image, and the image with its last one."""
        with self._translated(reference=reference):
            try:
                said = self._client.api.remove_image(reference, force=force)
            except self._errors.APIError as error:
                if error.status_code != 409:
                    raise
                raise ImageInUseError(
                    reference, _sentence(error.explanation or str(error))
                ) from error
        return [f"{what}: {name}" for entry in said or () for what, name in entry.items()]

    def pull(self, reference: str, report: Callable[[PullProgress], None]) -> None:
        """Fetch an image."""
        name = split_reference(reference)
        login, trouble = self._login(name.host)
        registry = self._registry(name, login)
        meter = PullMeter(reference)
        kept = _KeptLayers(self._client.api, reference, self.facts)
        report(meter.progress())
        due = 0.0
        with (
            self._translated(reference=reference),
            _Events(
                lambda: self._ask_for_image(name, reference, login), registry, self.facts
            ) as events,
        ):
            for event in events:
                if "error" in event:
                    raise self._pull_error(reference, str(event["error"]), registry, trouble)
                if "layers" in event:
                    kept.layers = event["layers"]
                    meter.expect({layer.id: layer.size for layer in kept.layers})
                meter.take(event)
                if time.monotonic() >= due:
                    kept.update(meter.progress())
                    report(meter.progress())
                    due = time.monotonic() + _REPORT_INTERVAL
        progress = meter.progress()
        if not progress.is_complete and not self._has_image(reference):
            raise EngineUnreachableError(
                f"The Docker engine went away while it pulled '{reference}'.",
                hint="Look after it: systemctl status docker. Then run the same again.",
            )
        kept.drop()
        report(replace(progress, is_complete=True))

    def _has_image(self, reference: str) -> bool:
        try:
            return self.find_image(reference) is not None
        except EngineUnreachableError:
            return False

    def _ask_for_image(
        self, name: ImageName, reference: str, login: Mapping[str, str]
    ) -> requests.Response:
        from docker.auth import encode_header

        api = self._client.api
        repository = reference.partition("@")[0].removesuffix(f":{name.tag}")
        # Not api.pull: its answer cannot be closed, and only that ends a pull.
        return api.post(
            f"{api.base_url}/v{api.api_version}/images/create",
            params={"fromImage": repository, "tag": name.tag},
            headers={"X-Registry-Auth": encode_header(dict(login))} if login else {},
            stream=True,
            timeout=None,
        )

    def _login(self, host: str) -> tuple[Mapping[str, str], str]:
        """Return what `docker login` has kept for a registry, {} without; and what is wrong with that.

        Read anew each time: the reader may have logged in just now.
        """
        from docker.auth import load_config

        source = "Docker's config.json"
        try:
            config = load_config()
            if helper := config.get_credential_store(host):
                source = f"docker-credential-{helper}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the SDK's, of a helper that is missing
                return config.resolve_authconfig(host) or {}, ""
        except self._errors.DockerException as error:
            # What a credential helper says may be a secret.
            log.warning("no login for %s: %s failed, %s", host, source, type(error).__name__)
            return {}, f"no login was used: {source} failed"

    def _registry(self, name: ImageName, login: Mapping[str, str]) -> Registry:
        user = login.get("username") or login.get("Username")
        password = login.get("password") or login.get("Password")
        from dockml_magic.registry import Registry  # here: `%load_ext` does without it

        return Registry(
            name=name,
            mirrors=self.facts.mirrors,
            is_plain=name.host in self.facts.plain_registries,
            login=(user, password) if user and password else None,
        )

    def _pull_error(
        self, reference: str, said: str, registry: Registry, trouble: str
    ) -> EngineError:
        """Return our error for a pull that failed, with the nearest tags where there is none of that name."""
        log.info("the pull of %s failed: %s", reference, said)
        name = registry.name
        tags: Sequence[str] = ()
        has_other_places = name.is_on_docker_hub and self.facts.mirrors
        if is_unknown_tag(said) or has_other_places:
            tags = registry.tags()
            if has_other_places and tags and name.tag not in tags:
                said = "manifest unknown"
            repository = reference.removesuffix(name.tag)
            tags = tags or [
                other.removeprefix(repository)
                for other in self.local_references()
                if other.startswith(repository)
            ]
        return pull_error(reference, f"{said} ({trouble})" if trouble else said, tags)

    def build(
        self,
        dockerfile: Path,
        reference: str,
        args: Mapping[str, str],
        report: Callable[[str], None],
        *,
        pull: bool = False,
        context: Path | None = None,
    ) -> None:
        """Build a Dockerfile in its folder and tag the image."""
        lines: list[str] = []
        problem = ""
        try:
            with self._translated(reference=reference):
                for event in self._client.api.build(
                    path=str(context or dockerfile.parent),
                    dockerfile=str(dockerfile) if context else dockerfile.name,
                    tag=reference,
                    buildargs=dict(args),
                    labels={labels.BUILT_FROM: str(dockerfile), labels.USER: str(os.getuid())},
                    pull=pull,
                    rm=True,
                    forcerm=True,
                    decode=True,
                ):
                    problem = event.get("error") or problem
                    for line in event.get("stream", "").splitlines():
                        if line.strip() and not line.startswith(_BUILD_NOISE):
                            lines.append(line)
                            report(line)
        except EngineUnreachableError:
            raise
        except (
            EngineError
        ) as error:  # a Dockerfile that the engine cannot read, a base that is not there
            problem = error.message
        except OSError as error:
            problem = f"the folder cannot be read: {error}"
        if problem:
            raise ImageBuildError(
                f"'{dockerfile}' could not be built: {_sentence(problem)}",
                hint="Correct it and run the cell again: what was built so far is kept.",
                log_tail="\n".join(lines[-BUILD_LINES:]),
            )

    def tag(self, image: str, reference: str) -> None:
        """Call an image by one more name."""
        repository, _, tag = reference.rpartition(":")
        with self._translated(reference=image):
            self._client.api.tag(image, repository, tag)

    def create(self, spec: ContainerSpec) -> str:
        """Create a container and return its id."""
        for mount in spec.mounts:
            if (
                mount.host_path is not None
                and self.facts.shares_files
                and not mount.host_path.exists()
            ):
                raise MountError(
                    f"The folder '{mount.host_path}' does not exist.",
                    hint="Create it first, or correct the path.",
                )
        api = self._client.api
        host_config: dict[str, Any] = {
            "auto_remove": spec.auto_remove,
            # Not "binds", whose fields are set apart by colons: a folder's name may have one.
            "mounts": [
                {
                    "Type": "bind" if mount.host_path else "volume",
                    "Source": str(mount.host_path or mount.volume),
                    "Target": str(mount.target),
                    "ReadOnly": mount.read_only,
                }
                for mount in spec.mounts
            ],
            "port_bindings": {},
            "shm_size": spec.shm_size,
        }
        for port in spec.ports:
            key = f"{port.container_port}/{port.protocol}"
            binding = (port.host_ip, port.host_port) if port.host_port else (port.host_ip,)
            host_config["port_bindings"].setdefault(key, []).append(binding)
        if spec.memory:
            host_config["mem_limit"] = host_config["memswap_limit"] = spec.memory
        if spec.cpus:
            host_config["nano_cpus"] = round(spec.cpus * 1e9)
        if spec.network:
            host_config["network_mode"] = spec.network
        host_config |= {
            "privileged": spec.privileged,
            "cap_add": list(spec.cap_add),
            "cap_drop": list(spec.cap_drop),
            "security_opt": [_security_opt(option) for option in spec.security_opt],
            "devices": list(spec.devices),
            "ulimits": [
                {"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard}
                for limit in spec.ulimits
            ],
            "extra_hosts": list(spec.extra_hosts),
            "ipc_mode": spec.ipc,
        }
        env = dict(spec.env)
        if spec.gpus:
            asked, variables = _ask_for_gpus(spec.gpus, gpu_route(self.facts))
            host_config |= asked
            env |= variables
        with self._translated(reference=spec.image, name=spec.name):
            created = api.create_container(
                image=spec.image,
                name=spec.name,
                entrypoint=list(spec.entrypoint),
                command=[],
                user=spec.user,
                working_dir=str(spec.workdir),
                labels=dict(spec.labels),
                environment=env,
                ports=[(port.container_port, port.protocol) for port in spec.ports],
                host_config=api.create_host_config(**host_config),
            )
        container_id: str = created["Id"]
        log.debug("created container %s of %s", container_id[:12], spec.image)
        return container_id

    def start(self, container_id: str) -> None:
        """Start it."""
        with self._translated():
            self._client.api.start(container_id)
        log.info("started container %s", container_id[:12])

    def copy_in(self, container_id: str, archive: bytes) -> None:
        """Unpack a tar archive at the container's root."""
        with self._translated():
            self._client.api.put_archive(container_id, "/", archive)

    def read_file(self, container_id: str, path: PurePosixPath) -> bytes | None:
        """Return a file of the container, None where there is none."""
        import tarfile  # here, as above

        with self._translated():
            try:
                chunks, _ = self._client.api.get_archive(container_id, str(path))
            except self._errors.NotFound:
                return None
            with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
                member = archive.next()
                reader = archive.extractfile(member) if member and member.isfile() else None
                return reader.read() if reader else None

    def inspect(self, container_id: str) -> ContainerState | None:
        """Return its state, None when it is gone."""
        with self._translated():
            try:
                found = self._client.api.inspect_container(container_id)
            except self._errors.NotFound:
                return None
        ports = {
            int(key.partition("/")[0]): int(bindings[0]["HostPort"])
            for key, bindings in (found["NetworkSettings"].get("Ports") or {}).items()
            if bindings
        }
        state = found["State"]
        return ContainerState(
            id=found["Id"],
            name=found["Name"].lstrip("/"),
            status=state["Status"],
            image=found["Config"]["Image"],
            labels=found["Config"].get("Labels") or {},
            image_id=found.get("Image", ""),
            exit_code=state.get("ExitCode") or 0,
            out_of_memory=bool(state.get("OOMKilled")),
            started_at=state.get("StartedAt", ""),
            host_ports=ports,
            entrypoint=tuple(found["Config"].get("Entrypoint") or ()),
            user=found["Config"].get("User") or "",
            mounts=_mounts_in(found),
        )

    def logs(self, container_id: str, tail: int) -> str:
        """Return its last lines, "" when it is gone."""
        with self._translated():
            try:
                text: bytes = self._client.api.logs(container_id, tail=tail)
            except self._errors.APIError as error:
                if error.status_code not in (404, 409):  # gone already, or on its way out by --rm
                    raise
                return ""
        return text.decode(errors="replace")

    def stream_logs(
        self,
        container_id: str,
        *,
        tail: int | None = None,
        follow: bool = False,
        timestamps: bool = False,
    ) -> Generator[bytes, None, None]:
        """Give its log in pieces."""
        api = self._client.api
        with self._translated():
            response = api.get(  # not api.logs: its answer cannot be closed
                f"{api.base_url}/v{api.api_version}/containers/{container_id}/logs",
                params={
                    "stdout": 1,
                    "stderr": 1,
                    "follow": int(follow),
                    "timestamps": int(timestamps),
                    "tail": "all" if tail is None else tail,
                },
                stream=True,
                timeout=None,
            )
            try:
                if not response.ok:
                    raise _error_of(_refusal_in(response), "", "")
                while len(head := response.raw.read(8)) == 8:
                    yield response.raw.read(int.from_bytes(head[4:], "big"))
            finally:
                response.close()

    def exec(
        self,
        container_id: str,
        command: Sequence[str],
        *,
        user: str = "",
        workdir: str = "",
        env: Mapping[str, str] = {},
        tty: bool = False,
    ) -> Exec:
        """Start a command in a running container."""
        api = self._client.api
        with self._translated():
            made = api.exec_create(
                container_id,
                list(command),
                stdin=True,
                tty=tty,
                user=user,
                workdir=workdir or None,
                environment=dict(env),
            )
            connection = api.exec_start(made["Id"], tty=tty, socket=True)
        return _DockerExec(self, made["Id"], connection, tty=tty)

    def commit(
        self,
        container_id: str,
        reference: str,
        *,
        message: str = "",
        author: str = "",
        as_layer: Mapping[str, str] | None = None,
    ) -> ImageState:
        """Make an image of a container's files, with the configuration of its image."""
        work = _Commit(self, container_id, reference, message, author, as_layer)
        with self._translated(reference=reference):
            work.run()
        image = self.find_image(reference)
        if image is None:
            raise EngineError(
                f"The engine does not have '{reference}' after the commit.", hint="Try once more."
            )
        return image

    def save(self, references: Sequence[str]) -> Iterator[bytes]:
        """Give an archive of images in pieces."""
        api = self._client.api
        for reference in references:  # the engine does not say which it lacks
            if self.find_image(reference) is None:
                raise ImageUnavailableError(reference, "it is not on this machine.")
        with self._translated():
            response = api.get(
                f"{api.base_url}/v{api.api_version}/images/get",
                params={"names": list(references)},
                stream=True,
                timeout=None,
            )
            with response:
                if not response.ok:
                    raise _error_of(_refusal_in(response), "", "")
                yield from response.iter_content(_PIECE)

    def load(self, archive: Iterator[bytes]) -> list[str]:
        """Take in the images of an archive."""
        api = self._client.api
        names: list[str] = []
        with self._translated():
            response = api.post(
                f"{api.base_url}/v{api.api_version}/images/load",
                params={"quiet": "1"},
                headers={"Content-Type": "application/x-tar"},
                data=archive,
                stream=True,
                timeout=None,
            )
            with response:
                if not response.ok:
                    raise _error_of(_refusal_in(response), "", "")
                for line in response.iter_lines():
                    event = json.loads(line) if line else {}
                    if "error" in event:
                        raise _error_of(str(event["error"]), "", "")
                    said = str(event.get("stream", ""))
                    for begin in ("Loaded image: ", "Loaded image ID: ", "Loaded image(s): "):
                        if said.startswith(begin):
                            names += filter(None, map(str.strip, said[len(begin) :].split(",")))
        return names

    def stats(self, container_id: str) -> ContainerStats | None:
        """Return what it has used up to now, None where it does not run."""
        with self._translated():
            try:
                found = self._client.api.stats(container_id, stream=False, one_shot=True)
            except self._errors.APIError as error:
                if error.status_code not in (404, 409):
                    raise
                return None
        memory = found.get("memory_stats") or {}
        if not memory.get("usage"):  # it has ended
            return None
        kinds = memory.get("stats") or {}
        cached = kinds.get("total_inactive_file", kinds.get("inactive_file", 0))  # cgroup v1, v2
        cpu = found["cpu_stats"]
        return ContainerStats(
            cpu=cpu["cpu_usage"]["total_usage"],
            system=cpu.get("system_cpu_usage", 0),
            cpus=cpu.get("online_cpus") or 1,
            memory=memory["usage"] - (cached if cached < memory["usage"] else 0),
            memory_limit=memory.get("limit", 0),
            pids=(found.get("pids_stats") or {}).get("current"),
        )

    def wait(self, container_id: str, timeout: float) -> int | None:
        """Return its exit code, None if it still runs after `timeout` seconds or is gone."""
        import requests.exceptions

        with self._translated():
            try:
                ended = self._client.api.wait(
                    container_id,
                    timeout=timeout,  # type: ignore[arg-type]  # types-docker says int; a float works
                )
                return int(ended["StatusCode"])
            except (
                self._errors.NotFound,
                requests.exceptions.ReadTimeout,
                requests.exceptions.ConnectionError,
            ):
                return None

    def stop(self, container_id: str) -> None:
        """End its program."""
        with self._translated(), contextlib.suppress(self._errors.NotFound):
            self._client.api.stop(container_id, timeout=STOP_TIMEOUT)
        log.info("stopped container %s", container_id[:12])

    def remove(self, container_id: str, *, force: bool = True) -> None:
        """Remove it, without `force` only where it does not run."""
        with self._translated():
            try:
                self._client.api.remove_container(container_id, force=force, v=True)
            except self._errors.APIError as error:
                # Gone already, or on its way out by --rm: what we wanted. Any other conflict is not.
                is_on_its_way = error.status_code == 409 and "in progress" in str(error)
                if error.status_code != 404 and not is_on_its_way:
                    raise
        log.info("removed container %s", container_id[:12])

    def list(self, wanted_labels: Mapping[str, str]) -> list[ContainerState]:
        """Return all containers that carry these labels."""
        filters = {"label": _label_filter(wanted_labels)}
        with self._translated():
            found = self._client.api.containers(all=True, filters=filters)
        return [
            ContainerState(
                id=row["Id"],
                name=row["Names"][0].lstrip("/") if row.get("Names") else "",
                status=row["State"],
                image=row["Image"],
                labels=row.get("Labels") or {},
                image_id=row.get("ImageID", ""),
                started_at=row.get("Status", ""),
                created_at=float(row.get("Created") or 0.0),
                mounts=_mounts_in(row),
            )
            for row in found
        ]

    def disk_usage(self) -> DiskUsage:
        """Return what takes how much of its disk."""
        api = self._client.api
        try:
            with self._translated():
                # Engines older than API 1.42 know no types, and count the volumes too.
                response = api.get(
                    f"{api.base_url}/v{api.api_version}/system/df",
                    params={"type": ["image", "container"]},
                )
                response.raise_for_status()
                found = response.json()
        except EngineError as error:  # another is being counted, or it takes too long
            log.debug("no disk usage: %s", error.message)
            return DiskUsage()
        return DiskUsage(
            images={
                row["Id"]: max(0, row["Size"] - row["SharedSize"])
                for row in found.get("Images") or ()
                if row.get("SharedSize", -1) >= 0
            },
            containers={row["Id"]: row.get("SizeRw") or 0 for row in found.get("Containers") or ()},
            layers=found.get("LayersSize") or 0,
        )

    @contextlib.contextmanager
    def _translated(
        self, *, endpoint: str = "", reference: str = "", name: str = ""
    ) -> Iterator[None]:
        """Turn what the SDK and its HTTP library raise into our errors."""
        import requests.exceptions

        try:
            yield
        except self._errors.APIError as error:
            raise _error_of(error.explanation or str(error), reference, name) from error
        except (self._errors.DockerException, requests.exceptions.RequestException) as error:
            raise _unreachable(endpoint or self.facts.endpoint, error) from error


def _security_opt(option: str) -> str:
    """Return a security option as the API takes it: of a file with a seccomp profile, what is in it."""
    name, _, value = option.partition("=")
    if name != "seccomp" or value in ("unconfined", "builtin"):
        return option
    try:
        return f"seccomp={json.dumps(json.loads(Path(value).expanduser().read_text()))}"
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--security-opt {option}: the profile cannot be read: {error}.",
            hint="Name a JSON file, or write seccomp=unconfined.",
        ) from error


def _label_filter(wanted: Mapping[str, str]) -> list[str]:
    """Return labels as the API takes them; "" stands for any value."""
    return [f"{label}={value}" if value else label for label, value in wanted.items()]


def _references(image: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(tag for tag in image.get("RepoTags") or () if "<" not in tag))


def _mounts_in(found: Mapping[str, Any]) -> dict[str, str]:
    """Return what an engine says of a container's mounts."""
    return {m["Destination"]: m.get("Source", "") for m in found.get("Mounts") or ()}


def _ask_for_gpus(request: GpuRequest, route: GpuRoute) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a request adds to the host configuration and to the container's environment."""
    devices = request.device_ids or (
        ("all",) if request.count < 0 else tuple(map(str, range(request.count)))
    )
    if route == "runtime":
        return {"runtime": "nvidia"}, {"NVIDIA_VISIBLE_DEVICES": ",".join(devices)}
    if route == "cdi":
        ids = [f"{_CDI_GPU}={device}" for device in devices]
        return {"device_requests": [{"Driver": "cdi", "DeviceIDs": ids}]}, {}
    return {
        "device_requests": [
            {
                "Driver": "",
                "Count": request.count,
                "DeviceIDs": list(request.device_ids),
                "Capabilities": [["gpu"]],
                "Options": {},
            }
        ]
    }, {}


_CDI_GPU = "nvidia.com/gpu"
"""The kind of NVIDIA's devices in CDI files (https://github.com/cncf-tags/container-device-interface)."""

_GPU_HOOKS = ("nvidia-container-runtime-hook", "nvidia-cdi-hook")
"""What an engine looks for on its PATH as it starts (moby, daemon/nvidia_linux.go)."""


def _cdi_gpus(info: Mapping[str, Any], *, look: bool) -> tuple[str, ...]:
    """Return the NVIDIA GPUs that an engine knows by CDI.

    Engines from 28.2 on list what they found. Older ones say only in which folders they look, where CDI is
    switched on; with `look` so do we.
    """
    listed = [device.get("ID", "") for device in info.get("DiscoveredDevices") or ()]
    if listed or not look:
        return tuple(name for name in listed if name.startswith(_CDI_GPU))
    for folder in info.get("CDISpecDirs") or ():
        for path in sorted(Path(folder).glob("*.*")):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if path.suffix in (".yaml", ".json") and _CDI_GPU in path.read_text():
                    return (f"{_CDI_GPU}=all",)
    return ()


def _has_gpu_hook() -> bool:
    path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
    return any(shutil.which(hook, path=path) for hook in _GPU_HOOKS)


def _sentence(text: str) -> str:
    """Return the engine's text as one line."""
    return " ".join(str(text).split()).rstrip(".") + "."


def _error_of(text: str, reference: str, name: str) -> EngineError:
    """Return our error for what the engine said."""
    said = _sentence(text)
    lower = said.lower()
    if gpu_error := _gpu_error_of(said):
        return gpu_error
    if re.search(
        r"exec: .*(?:no such file or directory|permission denied)|executable file .*not found",
        lower,
    ):
        return NotStartableError(said)
    if match := re.search(
        r"(?:bind for|bind host port(?: for)?|listen tcp\d?) (\S*?:\d+)[:/ ].*(?:allocated|in use)",
        lower,
    ):
        return PortTakenError(
            f"The host port {match[1]} is in use already.",
            hint="Choose another host port: -p HOST:CONTAINER, or -p CONTAINER for any free one.",
        )
    if re.search(r"name \S+ is already in use", lower):
        return ContainerNameTakenError(
            f"Another container is called '{name}' already.",
            hint=f"Choose another --name, or remove it: docker rm -f {name}",
        )
    if re.search(r"network \S+ not found", lower):
        return EngineError(said, hint="See the networks with: docker network ls")
    if "no such image" in lower or "not found" in lower:
        return ImageUnavailableError(
            reference or "?", said, hint=f"Fetch it: docker pull {reference or 'REFERENCE'}"
        )
    if "unable to find user" in lower or "unable to find group" in lower:
        return EngineError(
            said, hint="Use numbers, or a name that is in the image: --user 1000:1000."
        )
    if "invalid container name" in lower:
        return EngineError(
            said, hint="Choose another --name: two or more letters, digits and _ . - only."
        )
    return EngineError(
        f"The Docker engine refused: {said}",
        hint="If it is about one of the options, correct it; else the engine's own log says more.",
    )


_NO_GPU = "Without GPU: --gpus none."
_GPU_ERRORS = (
    (
        r"could not select device driver|failed to discover GPU|AMD CDI spec not found"
        r"|unknown or invalid runtime name: nvidia|unknown runtime specified nvidia",
        "The engine cannot give GPUs to containers: its NVIDIA part is not installed.",
        "Ask for nvidia-container-toolkit, then `nvidia-ctk runtime configure --runtime=docker` "
        f"and a restart of Docker. {_NO_GPU}",
    ),
    (
        r"unresolvable CDI devices? \S+|CDI device injection failed",
        "The engine does not know the GPU by CDI",
        "See the GPUs with: nvidia-ctk cdi list. If there are none, ask for: "
        f"nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml. {_NO_GPU}",
    ),
    (
        r"nvidia-container-.*unknown device",
        "There is no such GPU, or MIG instance of one",
        "See them with: nvidia-smi -L. Their indices and UUIDs go into --gpus device=; --gpus auto chooses.",
    ),
    (
        r"nvidia-container-.*\bmig\b",
        "The NVIDIA container toolkit refused a MIG instance",
        "See the instances with: nvidia-smi -L, and ask for one: --gpus device=MIG-…",
    ),
    (
        r"driver/library version mismatch",
        "The NVIDIA driver was updated, and the old one still runs.",
        f"Ask for a restart of this machine, or for the driver's modules to be loaded anew. {_NO_GPU}",
    ),
    (
        r"driver not loaded|libnvidia-ml|no adapters were found|load library failed|nvml error",
        "The NVIDIA driver does not run on the engine's machine",
        f"Check it with: nvidia-smi. {_NO_GPU}",
    ),
    (
        r"nvidia-container-(?:cli|runtime)|nvidia-ctk|nvidia-cdi-hook",
        "The NVIDIA container toolkit refused",
        f"Check the driver with: nvidia-smi. {_NO_GPU}",
    ),
)
"""What the engine and NVIDIA's toolkit say, and what we do; where ours is no whole sentence, theirs follows.

From moby's daemon/errors.go and daemon/devices_*.go, libnvidia-container's src/*.c, and the threads
docker/cli#2425, NVIDIA/nvidia-docker#1034 and #1442, FasterLivePortrait#116, fireshare#689.
"""


def _gpu_error_of(said: str) -> GpuUnavailableError | None:
    """Return our error where a text of the engine is about GPUs."""
    if match := re.search(r"unsatisfied condition: cuda ?>= ?(\d+\.\d+)", said, re.IGNORECASE):
        from dockml_magic.fit import oldest_driver  # here: `%load_ext` does without it

        needed = oldest_driver(match[1])
        return GpuUnavailableError(
            f"The NVIDIA driver is older than this image's CUDA {match[1]} asks for.",
            hint=f"A driver of {needed} or newer runs it, or choose an image with an older CUDA. The check can "
            f"be skipped, and the CUDA may work: -e NVIDIA_DISABLE_REQUIRE=1. {_NO_GPU}",
        )
    if "unsatisfied condition" in said or "please update your driver" in said:
        return GpuUnavailableError(
            f"The NVIDIA driver or GPU is not what this image asks for: {said}",
            hint=f"Choose an image with an older CUDA, or ask for a newer driver. {_NO_GPU}",
        )
    for pattern, message, hint in _GPU_ERRORS:
        if re.search(pattern, said, re.IGNORECASE):
            whole = message.endswith(".")
            return GpuUnavailableError(message if whole else f"{message}: {said}", hint=hint)
    return None


def _unreachable(endpoint: str, error: Exception) -> EngineUnreachableError:
    """Return why no engine answers, and what to do."""
    text = str(error)
    path = Path(urlsplit(endpoint).path)
    if "Permission denied" in text or "PermissionError" in text:
        return EngineUnreachableError(
            f"You may not use the Docker engine: no permission for {path}.",
            hint="Ask your administrator to run: sudo usermod -aG docker $USER\n"
            "Then log out and in again (a new login is needed), and restart Jupyter.",
        )
    if endpoint.startswith("unix:") and not path.exists():
        return EngineUnreachableError(
            f"No Docker engine here: {path} does not exist.",
            hint="Install one (Debian, Ubuntu: sudo apt-get install docker.io) or start it "
            "(sudo systemctl start docker). Another engine: --engine, or DOCKER_HOST.",
        )
    if "Connection refused" in text or "ConnectionRefusedError" in text:
        return EngineUnreachableError(
            f"The Docker engine is not running: {endpoint} refuses connections.",
            hint="Start it: sudo systemctl start docker",
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        found = re.search(r"certificate verify failed: ([^(\")]+)", text)
        return EngineUnreachableError(
            f"The certificate of the Docker engine at {endpoint} is not one to trust"
            f"{': ' + found.group(1).strip() if found else ''}.",
            hint="ca.pem in the folder of DOCKER_CERT_PATH (~/.docker) has to be the authority that signed it.",
        )
    if "Read timed out" in text:
        return EngineUnreachableError(
            f"The Docker engine at {endpoint} takes requests and does not answer them: it hangs.",
            hint="What runs goes on. Look after it: systemctl status docker; sudo journalctl -u docker. If it does "
            "not recover: sudo systemctl restart docker, which ends containers.",
        )
    return EngineUnreachableError(
        f"The Docker engine does not answer at {endpoint}: {_sentence(text)}",
        hint="Is it running? Check with: docker version",
    )


def find_endpoint(name: str | None) -> tuple[str, str]:
    """Return where the engine is, and what says so: an endpoint as given, the environment, or a context.

    Raises
    ------
    EngineUnreachableError
        If there is no such context.
    """
    from docker import ContextAPI
    from docker.context.config import get_current_context_name

    if name and "://" in name:
        return name, "--engine"
    if name is None and (host := os.environ.get("DOCKER_HOST")):
        return host, "DOCKER_HOST"
    wanted = name or os.environ.get("DOCKER_CONTEXT") or get_current_context_name()
    context = ContextAPI.get_context(wanted)
    if context is None:
        known = ", ".join(f"'{c.name}'" for c in ContextAPI.contexts())
        raise EngineUnreachableError(
            f"There is no Docker context called '{wanted}'.", hint=f"Known: {known}."
        )
    endpoint = str(context.Host or "unix:///var/run/docker.sock")
    said_by = "" if wanted == "default" else f"Docker context '{wanted}'"
    return endpoint.replace("http+unix://", "unix://"), said_by


def _product(version: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """Return who made this engine."""
    if "Docker Desktop" in str(info.get("OperatingSystem")):
        return "Docker Desktop"
    parts = {part.get("Name") for part in version.get("Components") or ()}
    return "podman" if "Podman Engine" in parts else "Docker"


def _tls(name: str | None) -> dict[str, Any]:
    """Return the TLS settings of the environment, as docker.from_env reads them."""
    if name is not None or not os.environ.get("DOCKER_TLS_VERIFY"):
        return {}
    from docker.utils import kwargs_from_env

    tls = kwargs_from_env().get("tls")
    if tls is None:
        return {}
    plain = tls.configure_client

    def configure(client: docker.APIClient) -> None:
        plain(client)
        merge = client.merge_environment_settings

        def merge_settings(
            url: Any, proxies: Any, stream: Any, verify: Any, cert: Any
        ) -> Mapping[str, Any]:
            # requests takes REQUESTS_CA_BUNDLE, a company's authorities for the web, before the engine's own.
            own = client.verify if verify is None else verify
            return merge(url, proxies, stream, own, cert)

        vars(client)["merge_environment_settings"] = merge_settings

    vars(tls)["configure_client"] = configure
    return {"tls": tls}


def _shares_files(endpoint: str, info: Mapping[str, Any]) -> bool:
    """Tell whether the engine runs on this very system, so that our paths are its paths.

    Docker Desktop and Colima answer on a local socket too, from inside a virtual machine with a kernel
    and a name of its own; a notebook in a container that was given the socket has another name.
    """
    return (
        endpoint.startswith("unix:")
        and "Docker Desktop" not in str(info.get("OperatingSystem"))
        and info.get("KernelVersion") in (platform.release(), None)
        and info.get("Name") in (socket.gethostname(), platform.node())
    )
