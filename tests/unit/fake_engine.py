"""An engine that remembers what it was told and runs nothing.

`tests/contract` holds it to the same promises as the real one.
"""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from dockml_magic.engine import (
    ContainerState,
    ContainerStats,
    Engine,
    EngineFacts,
    ImageState,
    NotStartableError,
)
from dockml_magic.errors import (
    ContainerNameTakenError,
    EngineError,
    ImageBuildError,
    ImageUnavailableError,
    MountError,
    PortTakenError,
)
from dockml_magic.pull import LayerProgress, PullProgress, pull_error
from dockml_magic.spec import ContainerSpec

_FIRST_FREE_PORT = 49153


@dataclass(frozen=True)
class Run:
    """What a container's program does: what it writes, and how it ends (None: it does not)."""

    output: str = ""
    exit_code: int | None = None


@dataclass
class _Image:
    state: ImageState
    programs: Collection[str]


@dataclass
class _Container:
    id: str
    spec: ContainerSpec
    status: str = "created"
    exit_code: int = 0
    log: str = ""
    cpu: int = 0
    host_ports: dict[int, int] = field(default_factory=dict)
    taken: set[tuple[str, int]] = field(default_factory=set)
    files: dict[PurePosixPath, bytes] = field(default_factory=dict)


class FakeEngine:
    """An engine that remembers.

    Parameters
    ----------
    facts : EngineFacts
        Who it says it is.
    behave : callable
        Returns what a started container does; by default it runs until it is removed.

    Attributes
    ----------
    registry : dict of str to collection of str
        References that can be pulled, and the programs in them.
    layer_size : int
        Bytes of the one layer of each.
    busy_ports : set of (str, int)
        Addresses that other programs of the host hold.
    pulled : list of str
        What was pulled, in order.
    built : list of (str, dict)
        What was built, in order, with its build args.
    specs : list of ContainerSpec
        What containers were asked for, in order.
    """

    def __init__(
        self,
        facts: EngineFacts | None = None,
        behave: Callable[[ContainerSpec], Run] = lambda spec: Run(),
    ) -> None:
        self._facts = facts or EngineFacts(
            version="20.10.24",
            api="1.41",
            endpoint="unix:///var/run/docker.sock",
            shares_files=True,
        )
        self._behave = behave
        self._images: dict[str, _Image] = {}
        self._containers: dict[str, _Container] = {}
        self.registry: dict[str, Collection[str]] = {}
        self.layer_size = 1_000_000
        self.busy_ports: set[tuple[str, int]] = set()
        self.pulled: list[str] = []
        self.built: list[tuple[str, dict[str, str]]] = []
        self.specs: list[ContainerSpec] = []

    def add_image(
        self, reference: str, *, programs: Collection[str] = ("python", "python3")
    ) -> ImageState:
        """Put an image here."""
        state = ImageState(
            id=f"sha256:{secrets.token_hex(32)}", architecture="amd64", size=100_000_000
        )
        self._images[_tagged(reference)] = _Image(state, programs)
        return state

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def containers(self) -> list[ContainerState]:
        """Everything that is left."""
        return self.list({})

    def find_image(self, reference: str) -> ImageState | None:
        image = self._image(reference)
        return image.state if image else None

    def _image(self, reference: str) -> _Image | None:
        by_id = {image.state.id: image for image in self._images.values()}
        return self._images.get(_tagged(reference)) or by_id.get(reference)

    def local_references(self) -> list[str]:
        return sorted(self._images)

    def pull(self, reference: str, report: Callable[[PullProgress], None]) -> None:
        report(PullProgress(reference=reference))
        if reference not in self.registry:
            raise pull_error(reference, "manifest unknown")
        layer = LayerProgress(id="0123456789ab", phase="waiting", total=self.layer_size)
        report(PullProgress(reference=reference, layers=(layer,)))
        layer = replace(layer, phase="done", done=self.layer_size)
        report(PullProgress(reference=reference, layers=(layer,), is_complete=True))
        self.pulled.append(reference)
        self.add_image(reference, programs=self.registry[reference])

    def build(
        self,
        dockerfile: Path,
        reference: str,
        args: Mapping[str, str],
        report: Callable[[str], None],
        *,
        pull: bool = False,
    ) -> None:
        """Build: a `RUN false` fails, everything else is as its base."""
        programs: Collection[str] = ()
        for line in dockerfile.read_text().splitlines():
            report(line)
            word, _, rest = line.partition(" ")
            if word == "FROM" and (base := self._image(rest)) is not None:
                programs = base.programs
            elif (word, rest) == ("RUN", "false") or word == "FROM":
                raise ImageBuildError(
                    f"'{dockerfile}' could not be built: {line}.", log_tail=f"Step: {line}"
                )
        self.built.append((reference, dict(args)))
        self.add_image(reference, programs=programs)

    def create(self, spec: ContainerSpec) -> str:
        for mount in spec.mounts:
            path = mount.host_path
            if path is not None and self._facts.shares_files and not path.exists():
                raise MountError(f"The folder '{path}' does not exist.")
        if self._image(spec.image) is None:
            raise ImageUnavailableError(spec.image, "no such image.")
        if any(other.spec.name == spec.name for other in self._containers.values()):
            raise ContainerNameTakenError(f"Another container is called '{spec.name}' already.")
        container = _Container(id=secrets.token_hex(32), spec=spec)
        self._containers[container.id] = container
        self.specs.append(spec)
        return container.id

    def start(self, container_id: str) -> None:
        container = self._existing(container_id)
        image = self._image(container.spec.image)
        assert image is not None
        if container.spec.entrypoint[0] not in image.programs:
            raise NotStartableError(f"exec: {container.spec.entrypoint[0]}: not found.")
        self._publish(container)
        container.status = "running"
        run = self._behave(container.spec)
        container.log = run.output
        if run.exit_code is not None:
            self.end(container_id, run.exit_code)

    def _publish(self, container: _Container) -> None:
        others = self._containers.values()
        taken = self.busy_ports.union(*(c.taken for c in others if c.status == "running"))
        for port in container.spec.ports:
            host_port = port.host_port
            if host_port is None:
                host_port = _FIRST_FREE_PORT
                while (port.host_ip, host_port) in taken:
                    host_port += 1
            elif (port.host_ip, host_port) in taken:
                raise PortTakenError(f"The host port {port.host_ip}:{host_port} is in use already.")
            taken.add((port.host_ip, host_port))
            container.taken.add((port.host_ip, host_port))
            container.host_ports[port.container_port] = host_port

    def end(self, container_id: str, exit_code: int) -> None:
        """Let a container end, as its program would."""
        container = self._existing(container_id)
        container.status, container.exit_code, container.host_ports = "exited", exit_code, {}
        if container.spec.auto_remove:
            del self._containers[container_id]

    def copy_in(self, container_id: str, archive: bytes) -> None:
        container = self._existing(container_id)
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            for member in files:
                if (content := files.extractfile(member)) is not None:
                    container.files[PurePosixPath("/", member.name)] = content.read()

    def read_file(self, container_id: str, path: PurePosixPath) -> bytes | None:
        container = self._containers.get(container_id)
        return container.files.get(path) if container else None

    def inspect(self, container_id: str) -> ContainerState | None:
        container = self._containers.get(container_id)
        return self._state(container) if container else None

    @staticmethod
    def _state(container: _Container) -> ContainerState:
        return ContainerState(
            id=container.id,
            name=container.spec.name,
            status=container.status,
            image=container.spec.image,
            labels=container.spec.labels,
            exit_code=container.exit_code,
            host_ports=container.host_ports,
            mounts={str(m.target): str(m.host_path or m.volume) for m in container.spec.mounts},
        )

    def logs(self, container_id: str, tail: int) -> str:
        container = self._containers.get(container_id)
        return "".join(container.log.splitlines(keepends=True)[-tail:]) if container else ""

    def stats(self, container_id: str) -> ContainerStats | None:
        container = self._containers.get(container_id)
        if container is None or container.status != "running":
            return None
        container.cpu += 1_000_000
        limit = container.spec.memory or 8_000_000_000
        return ContainerStats(
            cpu=container.cpu,
            system=container.cpu * 10,
            cpus=2,
            memory=20_000_000,
            memory_limit=limit,
        )

    def wait(self, container_id: str, timeout: float) -> int | None:
        container = self._containers.get(container_id)
        return container.exit_code if container and container.status == "exited" else None

    def remove(self, container_id: str) -> None:
        self._containers.pop(container_id, None)

    def list(self, wanted_labels: Mapping[str, str]) -> list[ContainerState]:
        return [
            self._state(container)
            for container in self._containers.values()
            if all(
                key in container.spec.labels and value in ("", container.spec.labels[key])
                for key, value in wanted_labels.items()
            )
        ]

    def _existing(self, container_id: str) -> _Container:
        if container_id not in self._containers:
            raise EngineError(f"The Docker engine refused: No such container: {container_id}.")
        return self._containers[container_id]


def _tagged(reference: str) -> str:
    """Return the reference with the tag that it stands for."""
    has_tag = ":" in reference.rpartition("/")[2]
    return reference if has_tag or "@" in reference else f"{reference}:latest"


_: type[Engine] = FakeEngine
