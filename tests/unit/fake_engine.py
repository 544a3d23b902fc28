"""An engine that remembers what it was told and runs nothing.

`tests/contract` holds it to the same promises as the real one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import socket
import tarfile
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from dockml_magic import labels
from dockml_magic.engine import (
    ContainerState,
    ContainerStats,
    DiskUsage,
    Engine,
    EngineFacts,
    Exec,
    ImageState,
    NotStartableError,
    Stream,
    make_archive,
)
from dockml_magic.engine.contract import LARGEST_FILE, too_large
from dockml_magic.errors import (
    ContainerNameTakenError,
    EngineError,
    ImageBuildError,
    ImageInUseError,
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


@dataclass(frozen=True)
class Ran:
    """What a command in a container does: what it writes, whether it writes what it reads, and how it ends."""

    stdout: str = ""
    stderr: str = ""
    echoes: bool = False
    exit_code: int = 0


class FakeExec:
    """A command in a container of a `FakeEngine`.

    Attributes
    ----------
    sizes : list of (int, int)
        Rows and columns that its terminal was given.
    """

    pid = 4711

    def __init__(self, ran: Ran) -> None:
        self._ran = ran
        self._left: list[tuple[Stream, bytes]] = []
        if ran.stdout:
            self._left.append(("stdout", ran.stdout.encode()))
        if ran.stderr:
            self._left.append(("stderr", ran.stderr.encode()))
        self._input = b""
        self._waits = ran.echoes
        self._readable, self._writable = socket.socketpair()
        self._writable.send(b"x")  # there is always something: output, or its end
        self.sizes: list[tuple[int, int]] = []

    def fileno(self) -> int:
        return self._readable.fileno()

    def read(self) -> tuple[Stream, bytes] | None:
        if self._left:
            return self._left.pop(0)
        assert not self._waits, "would wait for ever"
        return None

    def write(self, data: bytes) -> None:
        self._input += data

    def close_input(self) -> None:
        if self._waits:
            self._left.append(("stdout", self._input))
            self._waits = False

    def resize(self, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))

    def exit_code(self) -> int | None:
        return None if self._waits or self._left else self._ran.exit_code

    def close(self) -> None:
        self._readable.close()
        self._writable.close()


@dataclass
class _Image:
    state: ImageState
    programs: Collection[str]


@dataclass
class _Container:
    id: str
    spec: ContainerSpec
    image_id: str = ""
    status: str = "created"
    exit_code: int = 0
    log: str = ""
    cpu: int = 0
    created_at: float = field(default_factory=time.time)
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
    layers : list of (str, dict)
        What was committed as a layer, in order, with the labels that were given.
    specs : list of ContainerSpec
        What containers were asked for, in order.
    ran : callable
        Returns what a command in a container does; by default it writes nothing and ends well.
    commands : list of (str, list of str, dict)
        Container, words and options of all commands in containers, in order.
    committed : list of (str, str, str, str)
        Container, reference, message and author of all other commits, in order.
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
        self.layers: list[tuple[str, dict[str, str]]] = []
        self.specs: list[ContainerSpec] = []
        self.ran: Callable[[Sequence[str]], Ran] = lambda command: Ran()
        self.commands: list[tuple[str, list[str], dict[str, object]]] = []
        self.committed: list[tuple[str, str, str, str]] = []

    def add_image(
        self,
        reference: str,
        *,
        programs: Collection[str] = ("python", "python3"),
        labels: Mapping[str, str] = {},
    ) -> ImageState:
        """Put an image here."""
        state = ImageState(
            id=f"sha256:{secrets.token_hex(32)}",
            architecture="amd64",
            size=100_000_000,
            labels=labels,
            created_at=time.time(),
        )
        self._images[_tagged(reference)] = _Image(state, programs)
        return self._with_references(state)

    def _with_references(self, state: ImageState) -> ImageState:
        names = (name for name, image in self._images.items() if image.state.id == state.id)
        return replace(state, references=tuple(sorted(name for name in names if name != state.id)))

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def containers(self) -> list[ContainerState]:
        """Everything that is left."""
        return self.list({})

    def find_image(self, reference: str) -> ImageState | None:
        image = self._image(reference)
        return self._with_references(image.state) if image else None

    def _image(self, reference: str) -> _Image | None:
        by_id = {
            name: image
            for image in self._images.values()
            for name in (image.state.id, *image.state.digests)
        }
        return self._images.get(_tagged(reference)) or by_id.get(reference)

    def local_references(self) -> list[str]:
        return sorted(name for name in self._images if not name.startswith("sha256:"))

    def images(self, wanted_labels: Mapping[str, str]) -> list[ImageState]:
        found = {image.state.id: image.state for image in self._images.values()}
        return [
            self._with_references(state)
            for state in found.values()
            if _carries(state.labels, wanted_labels)
        ]

    def remove_image(self, reference: str, *, force: bool = False) -> list[str]:
        image = self.find_image(reference)
        if image is None:
            raise ImageUnavailableError(reference, f"No such image: {reference}.")
        is_id = reference == image.id
        if is_id and len(image.references) > 1 and not force:
            raise ImageInUseError(reference, "image is referenced in multiple repositories.")
        users = [c for c in self._containers.values() if c.image_id == image.id]
        if users and (is_id or len(image.references) == 1):
            if is_id and any(c.status == "running" for c in users):
                raise ImageInUseError(reference, "image is being used by running container.")
            if not force:
                raise ImageInUseError(reference, f"container {users[0].id[:12]} is using it.")
        going = image.references if is_id else [_tagged(reference)]
        is_last = len(going) == len(image.references)
        kept = self._images[image.references[0] if image.references else image.id]
        for name in going:
            del self._images[name]
        gone = [f"Untagged: {name}" for name in going]
        if is_last and any(c.status == "running" for c in users):
            self._images[image.id] = kept  # it has no name any more
        elif is_last:
            self._images.pop(image.id, None)
            gone.append(f"Deleted: {image.id}")
        return gone

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
        context: Path | None = None,
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
        made_by = {labels.BUILT_FROM: str(dockerfile), labels.USER: str(os.getuid())}
        self.add_image(reference, programs=programs, labels=made_by)

    def tag(self, image: str, reference: str) -> None:
        found = self._image(image)
        if found is None:
            raise ImageUnavailableError(image, "no such image.")
        self._images[_tagged(reference)] = found

    def create(self, spec: ContainerSpec) -> str:
        for mount in spec.mounts:
            path = mount.host_path
            if path is not None and self._facts.shares_files and not path.exists():
                raise MountError(f"The folder '{path}' does not exist.")
        image = self._image(spec.image)
        if image is None:
            raise ImageUnavailableError(spec.image, "no such image.")
        if any(other.spec.name == spec.name for other in self._containers.values()):
            raise ContainerNameTakenError(f"Another container is called '{spec.name}' already.")
        container = _Container(id=secrets.token_hex(32), spec=spec, image_id=image.state.id)
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

    def read_file(
        self, container_id: str, path: PurePosixPath, *, limit: int = LARGEST_FILE
    ) -> bytes | None:
        container = self._containers.get(container_id)
        content = container.files.get(path) if container else None
        if content is not None and len(content) > limit:
            raise too_large(path, limit)
        return content

    def inspect(self, container_id: str) -> ContainerState | None:
        matches = [
            container
            for container in self._containers.values()
            if container_id in (container.spec.name, container.id[: len(container_id)])
        ]
        return self._state(matches[0]) if matches else None

    def _state(self, container: _Container) -> ContainerState:
        return ContainerState(
            id=container.id,
            name=container.spec.name,
            status=container.status,
            image=container.spec.image,
            labels=container.spec.labels,
            image_id=container.image_id,
            exit_code=container.exit_code,
            host_ports=container.host_ports,
            entrypoint=container.spec.entrypoint,
            user=container.spec.user,
            created_at=container.created_at,
            mounts={str(m.target): str(m.host_path or m.volume) for m in container.spec.mounts},
        )

    def logs(self, container_id: str, tail: int) -> str:
        container = self._containers.get(container_id)
        return "".join(container.log.splitlines(keepends=True)[-tail:]) if container else ""

    def stream_logs(
        self,
        container_id: str,
        *,
        tail: int | None = None,
        follow: bool = False,
        timestamps: bool = False,
    ) -> Generator[bytes, None, None]:
        lines = self._existing(container_id).log.splitlines(keepends=True)
        stamp = "2026-01-01T00:00:00.000000000Z " if timestamps else ""
        for line in lines[-tail:] if tail else lines if tail is None else []:
            yield f"{stamp}{line}".encode()

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
        if self._existing(container_id).status != "running":
            raise EngineError(f"The Docker engine refused: Container {container_id} is not running")
        options = {"user": user, "workdir": workdir, "env": dict(env), "tty": tty}
        self.commands.append((container_id, list(command), options))
        return FakeExec(self.ran(command))

    def commit(
        self,
        container_id: str,
        reference: str,
        *,
        message: str = "",
        author: str = "",
        as_layer: Mapping[str, str] | None = None,
    ) -> ImageState:
        container = self._existing(container_id)
        base = self._image(container.image_id)
        assert base is not None
        of_layer = {} if as_layer is None else {**container.spec.labels, **as_layer}
        state = replace(
            base.state,
            id=f"sha256:{secrets.token_hex(32)}",
            labels={**base.state.labels, **of_layer},
        )
        self._images[_tagged(reference)] = _Image(state, base.programs)
        if as_layer is None:
            self.committed.append((container_id, reference, message, author))
        else:
            self.layers.append((reference, dict(as_layer)))
        image = self.find_image(reference)
        assert image is not None
        return image

    def save(self, references: Sequence[str]) -> Iterator[bytes]:
        for reference in references:
            if self._image(reference) is None:
                raise ImageUnavailableError(reference, f"No such image: {reference}.")
        archive = image_archive([_tagged(reference) for reference in references])
        for start in range(0, len(archive), 1000):
            yield archive[start : start + 1000]

    def load(self, archive: Iterator[bytes]) -> list[str]:
        names = []
        with tarfile.open(fileobj=io.BytesIO(b"".join(archive))) as files:
            manifest = files.extractfile("manifest.json")
            assert manifest is not None
            for entry in json.load(manifest):
                for name in entry["RepoTags"]:
                    self.add_image(name)
                    names.append(name)
        return names

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
            pids=3,
        )

    def wait(self, container_id: str, timeout: float) -> int | None:
        container = self._containers.get(container_id)
        return container.exit_code if container and container.status == "exited" else None

    def stop(self, container_id: str) -> None:
        container = self._containers.get(container_id)
        if container is not None and container.status == "running":
            self.end(container_id, 143)

    def remove(self, container_id: str, *, force: bool = True) -> None:
        container = self._containers.get(container_id)
        if container and container.status == "running" and not force:
            raise EngineError("The Docker engine refused: You cannot remove a running container.")
        self._containers.pop(container_id, None)

    def disk_usage(self) -> DiskUsage:
        return DiskUsage(
            images={image.state.id: image.state.size for image in self._images.values()},
            containers=dict.fromkeys(self._containers, 0),
            layers=sum(image.state.size for image in self._images.values()),
        )

    def list(self, wanted_labels: Mapping[str, str]) -> list[ContainerState]:
        return [
            self._state(container)
            for container in self._containers.values()
            if _carries(container.spec.labels, wanted_labels)
        ]

    def _existing(self, container_id: str) -> _Container:
        if container_id not in self._containers:
            raise EngineError(f"The Docker engine refused: No such container: {container_id}.")
        return self._containers[container_id]


def image_archive(references: Sequence[str], layers: Sequence[bytes] = (b"a layer",)) -> bytes:
    """Return what `docker save` gives, for images of these layers."""
    paths = []
    files = {}
    for content in layers:
        paths.append(f"{hashlib.sha256(content).hexdigest()}/layer.tar")
        files[paths[-1]] = content
    diff_ids = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in layers]
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    files[name] = config
    manifest = [{"Config": name, "RepoTags": list(references), "Layers": paths}]
    files["manifest.json"] = json.dumps(manifest).encode()
    return make_archive({PurePosixPath(path): content for path, content in files.items()})


def _carries(found: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(key in found and value in ("", found[key]) for key, value in wanted.items())


def _tagged(reference: str) -> str:
    """Return the reference with the tag that it stands for."""
    has_tag = ":" in reference.rpartition("/")[2]
    return reference if has_tag or "@" in reference else f"{reference}:latest"


_: type[Engine] = FakeEngine
