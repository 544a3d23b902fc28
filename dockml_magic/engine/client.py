"""The real engine, behind the Docker API."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dockml_magic import labels
from dockml_magic.engine.answers import label_filter, mounts_in, references_of
from dockml_magic.engine.archives import PIECE
from dockml_magic.engine.complaints import error_of, raise_refusal, sentence, unreachable
from dockml_magic.engine.contract import (
    LARGEST_FILE,
    ContainerState,
    ContainerStats,
    DiskUsage,
    EngineFacts,
    Exec,
    ImageState,
    too_large,
)
from dockml_magic.engine.endpoints import does_share_files, find_endpoint, tls_settings
from dockml_magic.engine.gpus import ask_for_gpus, find_cdi_gpus, gpu_route, has_gpu_hook
from dockml_magic.engine.pings import QUIET, address_of, hears_us, watch
from dockml_magic.errors import (
    ConfigError,
    EngineError,
    EngineTooOldError,
    EngineUnreachableError,
    ImageBuildError,
    ImageInUseError,
    ImageUnavailableError,
    MountError,
)
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

    from dockml_magic.registry import Registry

log = logging.getLogger(__name__)

OLDEST_API = "1.41"
"""Docker 20.10, December 2020; podman 4 answers 1.41 too."""

_REQUEST_TIMEOUT = 120

_BUILD_NOISE = (
    " ---> ",
    "Removing intermediate container ",
    "[Warning] One or more build-args ",
)
"""How lines of a build begin that say nothing of its steps."""

BUILD_LINES = 20
"""Lines of a failed build that are shown."""

_AROUND_A_FILE = 256 * 1024
"""Bytes of an archive of one file that are not the file: headers with its attributes, and padding."""

STOP_TIMEOUT = 3
"""Seconds that a program has to end when it is told to."""

_INTERRUPTED_PATIENCE = 2.0
"""Seconds in which an engine has done what an interrupt kept us from hearing of."""


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
            address = address_of(endpoint)
            if address is not None and not hears_us(address, more=QUIET, most=timeout):
                raise requests.exceptions.ReadTimeout("Read timed out: no answer to a ping")
            self._client: docker.DockerClient = docker.DockerClient(
                base_url=endpoint, timeout=timeout,  # type: ignore[arg-type]  # a float works
                version="auto", max_pool_size=4,
                **tls_settings(name),
            )  # fmt: skip
            watch(self._client.api)
            version = self._client.version()
            info = self._client.info()
        api = version["ApiVersion"]
        if tuple(map(int, api.split("."))) < tuple(map(int, OLDEST_API.split("."))):
            raise EngineTooOldError(api, OLDEST_API)
        shares_files = does_share_files(endpoint, info)
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
            cdi_gpus=find_cdi_gpus(info, look=shares_files),
            gpu_hook=has_gpu_hook() if shares_files else None,
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
            references=references_of(found),
            labels=config.get("Labels") or {},
            digests=tuple(found.get("RepoDigests") or ()),
        )

    def local_references(self) -> list[str]:
        """Return all tags that are here."""
        with self._translated():
            found = self._client.api.images()
        return sorted(tag for image in found for tag in references_of(image))

    def images(self, wanted_labels: Mapping[str, str]) -> list[ImageState]:
        """Return all images that carry these labels."""
        # podman refuses a filter that wants nothing.
        filters = {"label": label_filter(wanted_labels)} if wanted_labels else None
        with self._translated():
            found = self._client.api.images(filters=filters)
        return [
            ImageState(
                id=row["Id"],
                size=row.get("Size") or 0,
                references=references_of(row),
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
                    reference, sentence(error.explanation or str(error))
                ) from error
        return [f"{what}: {name}" for entry in said or () for what, name in entry.items()]

    def pull(self, reference: str, report: Callable[[PullProgress], None]) -> None:
        """Fetch an image."""
        # Here, as `%load_ext` does without it.
        from dockml_magic.engine.pulls import REPORT_INTERVAL, Events, KeptLayers

        name = split_reference(reference)
        login, trouble = self._login(name.host)
        registry = self._registry(name, login)
        meter = PullMeter(reference)
        kept = KeptLayers(self._client.api, reference, self.facts)
        report(meter.progress())
        due = 0.0
        with (
            self._translated(reference=reference),
            Events(
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
                    due = time.monotonic() + REPORT_INTERVAL
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
                f"'{dockerfile}' could not be built: {sentence(problem)}",
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
            asked, variables = ask_for_gpus(spec.gpus, gpu_route(self.facts))
            host_config |= asked
            env |= variables
        with (
            self._translated(reference=spec.image, name=spec.name),
            self._removed_if_interrupted(spec.name),
        ):
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

    @contextlib.contextmanager
    def _removed_if_interrupted(self, name: str) -> Iterator[None]:
        """Leave no container whose id an interrupt keeps from us. Its name is nobody else's."""
        try:
            yield
        except Exception:
            raise
        except BaseException:
            deadline = time.monotonic() + _INTERRUPTED_PATIENCE
            with contextlib.suppress(EngineError):
                while self.inspect(name) is None and time.monotonic() < deadline:
                    time.sleep(0.05)
                self.remove(name)
            raise

    def start(self, container_id: str) -> None:
        """Start it."""
        with self._translated():
            self._client.api.start(container_id)
        log.info("started container %s", container_id[:12])

    def copy_in(self, container_id: str, archive: bytes) -> None:
        """Unpack a tar archive at the container's root."""
        with self._translated():
            self._client.api.put_archive(container_id, "/", archive)

    def read_file(
        self, container_id: str, path: PurePosixPath, *, limit: int = LARGEST_FILE
    ) -> bytes | None:
        """Return a file of the container, None where there is none."""
        import tarfile  # here, as above

        api = self._client.api
        said = bytearray()
        with self._translated():
            response = api.get(  # not api.get_archive: its answer cannot be closed
                f"{api.base_url}/v{api.api_version}/containers/{container_id}/archive",
                params={"path": str(path)},
                stream=True,
                timeout=api.timeout,
            )
            with response:
                if response.status_code == 404:
                    return None
                raise_refusal(response)
                for piece in response.iter_content(PIECE):
                    said += piece
                    if len(said) > limit + _AROUND_A_FILE:
                        raise too_large(path, limit)
        with tarfile.open(fileobj=io.BytesIO(said)) as archive:
            member = archive.next()
            if member is None or not member.isfile():
                return None
            if member.size > limit:
                raise too_large(path, limit)
            reader = archive.extractfile(member)
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
            mounts=mounts_in(found),
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
                raise_refusal(response)
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
        from dockml_magic.engine.commands import DockerExec  # here, as above

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
        return DockerExec(self, made["Id"], connection, tty=tty)

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
        from dockml_magic.engine.commits import Commit  # here, as above

        work = Commit(self, container_id, reference, message, author, as_layer)
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
                raise_refusal(response)
                yield from response.iter_content(PIECE)

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
                raise_refusal(response)
                for line in response.iter_lines():
                    event = json.loads(line) if line else {}
                    if "error" in event:
                        raise error_of(str(event["error"]), "", "")
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
        filters = {"label": label_filter(wanted_labels)}
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
                mounts=mounts_in(row),
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
            raise error_of(error.explanation or str(error), reference, name) from error
        except (self._errors.DockerException, requests.exceptions.RequestException) as error:
            raise unreachable(endpoint or self.facts.endpoint, error) from error


def _product(version: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """Return who made this engine."""
    if "Docker Desktop" in str(info.get("OperatingSystem")):
        return "Docker Desktop"
    parts = {part.get("Name") for part in version.get("Components") or ()}
    return "podman" if "Podman Engine" in parts else "Docker"


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
