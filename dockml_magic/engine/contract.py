"""What the floors above need of an engine, and what it tells them: `Engine` is the contract."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from dockml_magic.errors import EngineError
from dockml_magic.pull import PullProgress, format_size
from dockml_magic.spec import ContainerSpec

LARGEST_FILE = 8 * 1024 * 1024
"""Bytes of a file that `Engine.read_file` takes unless it is told otherwise."""


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

    def read_file(
        self, container_id: str, path: PurePosixPath, *, limit: int = LARGEST_FILE
    ) -> bytes | None:
        """Return a file of the container, None where there is none.

        Raises `EngineError` where it has more than `limit` bytes, which would fill our memory: whoever runs
        there decides how many.
        """

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


_LOOK_INTERVAL = 0.02

_REMOVAL_PATIENCE = 30.0
"""Seconds for a removal that has begun, by --rm or by somebody else."""


def wait_removed(engine: Engine, container_id: str, timeout: float) -> bool:
    """Wait until the engine has a container no more; tell whether that was within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while engine.inspect(container_id) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_INTERVAL)
    return True


def remove_container(engine: Engine, container_id: str) -> None:
    """Remove a container, and return when it is gone: for one that it is removing, the engine answers at once.

    Raises
    ------
    EngineError
        If the engine does not answer, refuses, or has it still after some seconds.
    """
    engine.remove(container_id)
    if not wait_removed(engine, container_id, _REMOVAL_PATIENCE):
        raise EngineError(
            f"Container {container_id[:12]} was removed {_REMOVAL_PATIENCE:.0f} s ago, and the engine has it still.",
            hint=f"Try: docker rm -f {container_id[:12]}",
        )


def too_large(path: PurePosixPath, limit: int) -> EngineError:
    """Return the error for a file that `Engine.read_file` does not read."""
    return EngineError(
        f"'{path}' in the container has more than {format_size(limit)}, and is not read.",
        hint="Whatever runs there has written it. Is the image one to trust?",
    )
