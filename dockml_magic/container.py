"""A container with kernels in it: create, make ready, signal, restart in place, remove.

The one way a kernel starts. The provisioner and the argv launcher are thin fronts on `KernelContainer`.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import importlib.resources
import json
import logging
import os
import secrets
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from dockml_magic import compiled, folders, labels
from dockml_magic._version import __version__
from dockml_magic.control import (
    Address,
    ControlChannel,
    KernelState,
    OutputStream,
    address_from,
    address_to_json,
)
from dockml_magic.engine import (
    Engine,
    NotStartableError,
    make_archive,
    remove_container,
    wait_removed,
)
from dockml_magic.errors import (
    DockmlError,
    EngineError,
    HostFileError,
    KernelBundleError,
    KernelDiedError,
    KernelError,
    KernelMissingError,
    KernelPausedError,
    KernelStartTimeoutError,
    MountError,
)
from dockml_magic.folders import RuntimeFolder
from dockml_magic.host_settings import CA_FILE, HostSettings, read_host_settings
from dockml_magic.image_memory import ImageMemory
from dockml_magic.kernel_bundle import ensure_bundle, mark_used
from dockml_magic.options import PublishedPort, parse_volume
from dockml_magic.planning import PYTHON_KERNELS, KernelPlan, choose_transport
from dockml_magic.spec import (
    BUNDLES,
    COMPILED,
    CONTROL_PORT,
    HOME,
    KERNEL_PORTS,
    PYTHONS,
    RUNTIME,
    ContainerSpec,
    HostFacts,
    container_spec,
    inner_user,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

PORT_NAMES = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")

GRACE = 2.0
"""Seconds without any connection after which a container ends itself."""

START_TIMEOUT = 60.0
"""Seconds from the container's start to a bound kernel. Pulls and bundles are not counted."""

STOP_TIMEOUT = 3.0

_NOTICE = 1.0
"""Seconds in which most containers end that are told to."""

_PATIENCE = 30.0
"""Seconds for a word of a supervisor for which its machine has no time."""

_SILENCE = 1.0
"""Seconds without a word of the supervisor after which the engine is asked whether the container is paused."""

LOG_LINES = 20

_LONGEST_LINE = 2000
"""Characters of a line of a log that are shown."""

_CRASH_LINES = 200
"""Lines of a log among which Python's own report of a crash begins."""

_LOG_PATIENCE = 2.0
_LOG_INTERVAL = 0.05
"""Seconds to wait for a log that is still being written, and from one look to the next."""

_KERNEL_ENDED = "dockml: the kernel has ended\n"
_KERNEL_STARTS = "dockml: another kernel starts\n"
"""What the supervisor writes to the log, after what a kernel wrote and before what the next one does."""

_CRASH = "Fatal Python error: "

_INTERRUPT_TIMEOUT = 5.0
"""Seconds to wait for the reply to an interrupt that is a message."""

MOST_BUNDLES = 2
"""Kernel bundles in one start: one where the image has no ipykernel, one where its own does not come up."""


class KernelContainer:
    """One container and the kernels that run in it, one after the other.

    Parameters
    ----------
    engine : Engine
        Where it runs.
    plan : KernelPlan
        What runs.
    tell : callable
        Gets a line for the user when something takes time.
    """

    def __init__(self, engine: Engine, plan: KernelPlan, tell: Callable[[str], None]) -> None:
        self.engine = engine
        self.plan = plan
        self.session = secrets.token_hex(6)
        self.container_id = ""
        self._tell = tell
        self._control: ControlChannel | None = None
        self._runtime: RuntimeFolder | None = None
        self._files: dict[str, bytes] = {}
        self._host_ports: tuple[int, ...] = ()
        self._settings = HostSettings()
        self._made_of: ContainerSpec | None = None
        self._abandoned = False
        self.stays = plan.kept
        """Whether `end` leaves the container, as `docker stop` does without --rm."""
        self.created: Callable[[KernelContainer], None] = lambda _: None
        """Called with this when the container was created and before it is started."""
        self._claim: int | None = None
        self._compiled: Path | None = None
        self._records = False
        self._sources: Mapping[str, str] = {}
        self._bundles_given = 0
        self._is_paused = False
        self._asks_engine: threading.Thread | None = None

    # --- start --------------------------------------------------------------------------------

    def start(self) -> None:
        """Create the container and return when its kernel's sockets are bound.

        Raises
        ------
        EngineError
            If the engine refuses.
        KernelError
            If no kernel comes up. In every case no container is left.
        """
        with self._undone_by(self.remove):
            self._start()

    @contextlib.contextmanager
    def _undone_by(self, undo: Callable[[], None]) -> Iterator[None]:
        """Call `undo` where what is in this block fails; tell of files that cannot be written in our words."""
        try:
            yield
        except BaseException as error:
            undo()
            if isinstance(error, OSError) and not isinstance(error, DockmlError):
                what = f"'{self.plan.choice.name}' cannot be started"
                raise HostFileError(what, error) from error
            raise
        finally:
            self._give_up_claim()

    def abandon(self) -> None:
        """Make a `start` that runs in another thread give up soon, and clean up after itself."""
        self._abandoned = True
        if self._control is not None:
            self._control.close()

    def _give_up_claim(self) -> None:
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def _raise_if_abandoned(self) -> None:
        if self._abandoned:
            raise KernelError("The start was interrupted.")

    def _start(self) -> None:
        while True:
            try:
                self._start_planned()
            except _OtherKernelError as other:
                # Perhaps over another transport: the container is made anew.
                self.remove()
                self.session = secrets.token_hex(6)
                transport = choose_transport(
                    "tcp" if self.plan.host_ports else None,
                    self.plan.choice.options,
                    other.kernelspec,
                    self.engine,
                )
                self.plan = replace(
                    self.plan,
                    kernelspec=other.kernelspec,
                    transport=transport,
                )
            else:
                return

    def _start_planned(self) -> None:
        memory = self._memory()
        if self.shares_files:
            self._settings = read_host_settings()
        else:
            self._tell("this engine does not share our files: the workspace is not mounted")
        self._make_runtime(RuntimeFolder(folders.runtime_root() / self.session))
        self._find_compiled()
        self._write_files(memory)
        entries = (memory.entry,) if memory.entry else PYTHONS
        for entry in entries:
            self._made_of = self._spec(entry)
            self._sources = _resolved_sources(self._made_of)
            self.container_id = self.engine.create(self._made_of)
            self.created(self)
            try:
                if not self.shares_files:
                    self.engine.copy_in(self.container_id, self._archive())
                self.engine.start(self.container_id)
                break
            except NotStartableError:
                self.engine.remove(self.container_id)
                self.container_id = ""
        else:
            if memory.entry:  # the image was changed under the same id: cannot be, but look again
                ImageMemory.forget(self.plan.image.id)
            raise KernelMissingError(
                f"The image '{self.plan.choice.reference}' has no Python (tried: {', '.join(entries)}).",
                hint="Use an image with Python 2.7 or 3.5 and newer in it: what starts kernels, those of "
                "other languages too, is a Python script. In a Dockerfile on Debian: apt-get install python3",
            )
        self._connect(entry)
        self._wait_bound(generation=1)
        self._remember(entry)

    def start_again(self, described: Mapping[str, Any]) -> None:
        """Start a container that was stopped, and return when its kernel's sockets are bound.

        Parameters
        ----------
        described : mapping
            What `describe` said while it ran.

        Raises
        ------
        EngineError, KernelError
            The container is left as it was, stopped.
        MountError
            The same, where one of its folders leads elsewhere by now.
        """
        self.session = described["session"]
        self.container_id = described["container_id"]
        self._sources = described.get("sources", {})
        with self._undone_by(self.stop):
            if self.shares_files:
                self._raise_if_moved()
                self._settings = read_host_settings()
            runtime = _runtime_of(described)
            runtime.remove()
            self._make_runtime(runtime)
            if self.shares_files:
                compiled.ensure_folder(self.plan.image.id)  # it has that mounted
            self._write_files(self._memory())
            self.engine.start(self.container_id)
            self._connect("")
            self._wait_bound(generation=1)

    def _raise_if_moved(self) -> None:
        """Raise where a folder of ours that is mounted leads elsewhere than when its container was created.

        The engine follows links anew at each start, and with the rights of root. Who has put one there may have been
        a container that has the folder above.
        """
        for source, before in self._sources.items():
            if (now := os.path.realpath(source)) != before:
                name = self.plan.choice.name
                raise MountError(
                    f"'{source}', which '{name}' mounts, leads to '{now}' by now, and led to '{before}' when its "
                    "container was created. That container is given no other folder than it had.",
                    hint="Did you put a link there? Else a container did that may write to the folder above. Put "
                    f"back what was there, or make a new container: %docker_env {name} --fresh",
                )

    def _memory(self) -> ImageMemory:
        """Return what is known of the image, as far as it is the image's in this container too."""
        volumes = (parse_volume(text).target for text in self.plan.choice.options.volumes)
        memory = ImageMemory.read(self.plan.image.id)
        return memory.of_image_alone((str(self.plan.workspace), *volumes))

    def _make_runtime(self, runtime: RuntimeFolder) -> None:
        runtime.make()
        self._runtime = runtime
        self._give_up_claim()
        self._claim = folders.claim(runtime.path)

    def _find_compiled(self) -> None:
        """Find the image's compiled code, or have this start leave it."""
        self._compiled, self._records = None, False
        if self.shares_files and (folder := compiled.ensure_folder(self.plan.image.id)):
            self._compiled = folder
            self._records = compiled.is_wanted(folder, self.plan.choice.options, self.plan.env)

    def _remember(self, entry: str) -> None:
        report = self.state.report
        if report.get("kernel") == "bundle":
            mark_used(report, folders.bundles_root())
        if self.plan.choice.options.kernel:  # says nothing of what runs when nothing is asked for
            memory = replace(ImageMemory.read(self.plan.image.id), entry=entry)
        elif self.plan.kernelspec:
            memory = ImageMemory(entry, kernelspec=self.plan.kernelspec)
        else:
            memory = ImageMemory(
                entry, str(report.get("executable", "")), str(report.get("kernel", ""))
            )
        memory.write(self.plan.image.id)

    def is_made_by(self, plan: KernelPlan) -> bool:
        """Tell whether what this has is what a start by `plan` would make now.

        Not only by what the user says: variables of this process, pip's settings and the image behind a tag may have
        changed since.
        """
        if self._made_of is None or not self.plan.is_alike(plan):
            return False
        twin = KernelContainer(self.engine, plan, self._tell)
        twin.session, twin._runtime, twin._settings = self.session, self._runtime, self._settings
        twin._compiled = self._compiled  # for speed only
        if self.shares_files:
            twin._settings = read_host_settings()
        same_settings = twin._settings == self._settings
        return same_settings and twin._spec(self._made_of.entrypoint[0]) == self._made_of

    @property
    def runtime(self) -> RuntimeFolder | None:
        """The runtime folder, which its container has too where the engine shares our files."""
        return self._runtime

    @property
    def shares_files(self) -> bool:
        """Whether its engine sees our files."""
        return self.engine.facts.shares_files

    def give_file(self, name: str, content: bytes) -> PurePosixPath:
        """Give a running container a file; return its path in there.

        Raises
        ------
        KernelError, HostFileError
            If its runtime folder is gone, or full.
        """
        path = RUNTIME / name
        self._write({name: content})
        if not self.shares_files:
            self.engine.copy_in(self.container_id, make_archive({path: content}))
        return path

    def _spec(self, entry: str, *, auto_remove: bool = True) -> ContainerSpec:
        assert self._runtime is not None
        host = self._host_facts()
        ports: tuple[PublishedPort, ...] = ()
        if self.plan.transport == "tcp":
            wanted = self.plan.host_ports or (None,) * len(KERNEL_PORTS)
            ports = tuple(
                PublishedPort(container_port=inner, host_port=outer)
                for inner, outer in zip(KERNEL_PORTS, wanted, strict=True)
            )
        if not self.shares_files:
            ports += (PublishedPort(container_port=CONTROL_PORT),)
        spec = container_spec(
            self.plan.choice,
            host=host,
            session=self.session,
            workspace=self.plan.workspace,
            runtime=self._runtime.shared,
            bundles=folders.bundles_root(),
            compiled=self._compiled,
            tcp_ports=ports,
            version=__version__,
        )
        return replace(
            spec,
            entrypoint=(
                entry,
                "-S",  # all that the supervisor needs is Python's own; what .pth files import takes long
                str(RUNTIME / "start.py"),
                "supervise",
                str(RUNTIME / "config.json"),
            ),
            env={**spec.env, **self.plan.env},
            labels={**spec.labels, **({labels.KEPT: "true"} if self.plan.kept else {})},
            auto_remove=auto_remove and not self.plan.kept,
        )

    def _host_facts(self) -> HostFacts:
        return HostFacts(
            uid=os.getuid(),
            gid=os.getgid(),
            user=_login_name(),
            environ=os.environ,
            carried=self._settings.env,
            shares_files=self.shares_files,
            rootless=self.engine.facts.rootless,
        )

    def _write_files(self, memory: ImageMemory) -> None:
        """Write what the container finds in its runtime folder."""
        choice = self.plan.choice
        inner = self._inner_connection()
        user = inner_user(choice, self._host_facts())
        given = [text.partition("=")[0] for text in choice.options.env]
        config = {
            "key": self.plan.key,
            "control": str(RUNTIME / "control") if self.shares_files else CONTROL_PORT,
            "connection": inner,
            "connection_file": str(RUNTIME / "connection.json"),
            "extra_arguments": list(self.plan.extra_arguments),
            "bundles": str(BUNDLES),
            "grace": GRACE,
            "drops": not self.plan.exclusive,
            "shared": self.plan.kept,
            "interpreter": memory.interpreter,
            "kernel": memory.kernel,
            "kernelspec": self.plan.kernelspec,
            "records": self._records,
            "user": user
            and {
                "uid": user.uid,
                "gid": user.gid,
                "name": user.name,
                "home": str(HOME),
                "given": given,
            },
        }
        resources = importlib.resources.files("dockml_magic") / "resources"
        self._files = {
            **{name: (resources / name).read_bytes() for name in ("start.py", *compiled.SCRIPTS)},
            "config.json": json.dumps(config).encode(),
            "connection.json": json.dumps(inner).encode(),
        }
        if self._settings.ca_bundle:
            self._files[CA_FILE] = self._settings.ca_bundle.read_bytes()
        self._write(self._files)
        if self.container_id and not self.shares_files:
            self.engine.copy_in(self.container_id, self._archive())

    def _write(self, files: Mapping[str, bytes]) -> None:
        """Write files into the runtime folder."""
        assert self._runtime is not None
        try:
            for name, content in files.items():
                # The compiled code has these too, and tells by size and time whether they are the same.
                # Which ones they are says a time in the past, as the newest file tells how old the folder is.
                mtime = zlib.crc32(content) // 4 if name in compiled.SCRIPTS else None
                self._runtime.write(name, content, mtime)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HostFileError("The runtime folder cannot be written to", error) from error
            raise KernelError(
                f"The runtime folder '{self._runtime.shared}' cannot be written to: {error.strerror}.",
                hint="Is the disk full, or was the folder removed? Start the environment again.",
            ) from error

    def _archive(self) -> bytes:
        """Return what we write into the runtime folder as a tar, for an engine that cannot mount it."""
        files: dict[PurePosixPath, bytes | None] = {RUNTIME: None, BUNDLES: None}
        files |= {RUNTIME / name: content for name, content in self._files.items()}
        return make_archive(files)

    def _inner_connection(self) -> dict[str, Any]:
        """Return the connection as the kernel sees it."""
        over_ipc = self.plan.transport == "ipc"
        ports = range(1, 6) if over_ipc else KERNEL_PORTS
        return {
            "transport": self.plan.transport,
            "ip": str(RUNTIME / "kernel") if over_ipc else "0.0.0.0",  # noqa: S104 - inside the container
            **dict(zip(PORT_NAMES, ports, strict=True)),
            "key": "" if over_ipc and self.plan.exclusive else self.plan.key,
            "signature_scheme": "hmac-sha256",
        }

    @property
    def connection_info(self) -> dict[str, Any]:
        """The connection as a client on the host sees it; `key` is bytes, as jupyter_client has it."""
        info = self._inner_connection()
        info["key"] = info["key"].encode()
        if self.plan.transport == "ipc":
            assert self._runtime is not None
            return info | {"ip": str(self._runtime.kernel)}
        return info | {"ip": "127.0.0.1", **dict(zip(PORT_NAMES, self._host_ports, strict=True))}

    def _connect(self, entry: str) -> None:
        """Open the control channel: from now on we hold the lease."""
        address: Address
        assert self._runtime is not None
        if self.shares_files:
            address = self._runtime.shared / "control"
        if not self.shares_files or self.plan.transport == "tcp":
            state = self.engine.inspect(self.container_id)
            published = state.host_ports if state else {}
            if not self.shares_files and CONTROL_PORT in published:
                address = ("127.0.0.1", published[CONTROL_PORT])
            self._host_ports = tuple(published.get(port, 0) for port in KERNEL_PORTS)
            if not all(self._host_ports):
                self._raise_ended_at_once(entry)
        deadline = time.monotonic() + START_TIMEOUT
        pause = 0.002
        while True:
            self._raise_if_abandoned()
            try:
                self._control = ControlChannel(address, self.plan.key)
                self._raise_if_abandoned()  # in the moment before there was nothing that `abandon` could close
                first = self._control.wait(lambda s: s.generation > 0, timeout=5.0)
                if first is not None and first.problem:
                    raise self.death(first, f"'{self.plan.choice.reference}' did not start")
                if first is not None and first.phase != "gone":
                    return
                self._control.close()  # an engine's proxy accepts before anybody listens behind it
            except OSError:
                pass
            time.sleep(pause)
            pause = min(pause * 1.2, 0.1)
            if pause >= 0.02:
                state = self.engine.inspect(self.container_id)
                if state is None or state.status not in ("running", "created"):
                    self._raise_ended_at_once(entry)
            if time.monotonic() > deadline:
                raise KernelStartTimeoutError(
                    f"The container of '{self.plan.choice.reference}' did not answer within "
                    f"{START_TIMEOUT:.0f} s.",
                    hint="Is the machine very busy? Try again.",
                )

    def _raise_ended_at_once(self, entry: str) -> None:
        """Run it once more without --rm, to learn from its log why it ended. One that stays has its log."""
        if self.plan.kept:
            ended = self.engine.inspect(self.container_id)
            raise KernelDiedError(
                f"The container of '{self.plan.choice.reference}' ended at once "
                f"(exit code {ended.exit_code if ended else 'unknown'}).",
                hint=f"See all it wrote with: docker logs {self.container_id[:12]}",
                exit_code=ended.exit_code if ended else None,
                log_tail=self.engine.logs(self.container_id, tail=LOG_LINES),
            )
        container = self.engine.create(
            replace(
                self._spec(entry, auto_remove=False), name=f"dockml-{self.session}-why", ports=()
            )
        )
        try:
            if not self.shares_files:
                self.engine.copy_in(container, self._archive())
            self.engine.start(container)
            code = self.engine.wait(container, timeout=10.0)
            tail = self.engine.logs(container, tail=LOG_LINES)
        finally:
            self.engine.remove(container)
        if self._memory_limit and code == 128 + signal.SIGKILL:
            raise KernelDiedError(
                f"The container of '{self.plan.choice.reference}' ended at once, with {self._memory_limit}: it was "
                "killed.",
                hint="If that may be too little, give it more with --memory. Start it again with %docker_env NAME.",
                exit_code=code,
            )
        if code is None:
            raise KernelDiedError(
                f"The container of '{self.plan.choice.reference}' ended at once, and a second one did not.",
                hint="Somebody, or the system for want of memory, has ended it. Start the environment again.",
            )
        raise KernelDiedError(
            f"The container of '{self.plan.choice.reference}' ended at once (exit code {code}).",
            hint=f"Does Python start in it? Try: docker run --rm {self.plan.choice.reference} {entry} -V",
            exit_code=code,
            log_tail=tail,
        )

    def _wait_bound(self, generation: int) -> None:
        """Wait until the kernel's sockets are bound; build a bundle if it needs one."""
        assert self._control is not None
        deadline = time.monotonic() + START_TIMEOUT
        tried_other_ways = False
        while True:
            state = self._control.wait(
                lambda s, wanted=generation: (  # type: ignore[misc]
                    s.generation >= wanted and (s.phase != "starting" or self._has_left_code(s))
                ),
                timeout=deadline - time.monotonic(),
            )
            self._raise_if_abandoned()
            if state is not None and self._has_left_code(state):
                self._keep_code(state)
                continue
            if state is None:
                raise KernelStartTimeoutError(
                    f"The kernel in '{self.plan.choice.reference}' was not ready within "
                    f"{START_TIMEOUT:.0f} s.\n{self.engine.logs(self.container_id, LOG_LINES)}",
                    hint="Is the machine very busy? Try again.",
                )
            if state.phase == "bound":
                self._reach_kernel()
                return
            if state.phase == "other_kernel":
                name = next(iter(state.report.get("kernelspecs", {})), "")
                raise _OtherKernelError(f"The image has no ipykernel, only '{name}'.", name)
            if state.phase == "need_bundle":
                self._give_bundle(state)
                deadline = time.monotonic() + START_TIMEOUT
            elif not tried_other_ways and self._prepare_another_way(state):
                tried_other_ways = True
            else:
                self._raise_not_started(state)
            generation += 1
            self._control.start({}, None)

    def _has_left_code(self, state: KernelState) -> bool:
        return self._records and "compiled" in state.report

    def _keep_code(self, state: KernelState) -> None:
        """Keep the compiled code that the kernel has left, while it goes on to get ready."""
        self._records = False
        if self._compiled and self._runtime:
            compiled.keep(self._compiled, self._runtime, state.report["compiled"])

    def _reach_kernel(self) -> None:
        """Make the sockets of the kernel that has bound them reachable under the names that clients use."""
        if self.plan.transport != "ipc":
            return
        assert self._runtime is not None
        try:
            self._runtime.reach(range(1, 6))
        except OSError as error:
            raise KernelError(
                f"The container of '{self.plan.choice.reference}' says that its kernel listens, and it does "
                f"not: {error}.",
                hint="Start the environment again.",
            ) from error

    def _give_bundle(self, state: KernelState) -> None:
        if self._bundles_given == MOST_BUNDLES:
            raise KernelBundleError(
                f"'{self.plan.choice.reference}' asks for one kernel bundle after the other, which no image with "
                "a Python does.",
                hint="Do not use this image, or find out what its Python is.",
            )
        self._bundles_given += 1
        try:
            folder = ensure_bundle(
                state.report,
                folders.bundles_root(),
                self.engine,
                self.plan.choice.reference,
                self._tell,
            )
        except KernelBundleError as error:
            if hint := _hint_of_kernelspecs(state.report):
                raise KernelMissingError(error.message, hint=hint) from error
            raise
        if not self.shares_files:
            files: dict[PurePosixPath, bytes | None] = {BUNDLES / folder.name: None}
            for path in sorted(folder.rglob("*")):
                inside = BUNDLES / folder.name / PurePosixPath(path.relative_to(folder))
                files[inside] = None if path.is_dir() else path.read_bytes()
            self.engine.copy_in(self.container_id, make_archive(files))

    def _prepare_another_way(self, state: KernelState) -> bool:
        """Prepare another try where what we remembered, or the image's own kernel, did not come up."""
        if state.phase == "gone" or state.out_of_memory:
            return False
        if self.plan.kernelspec not in ("", *PYTHON_KERNELS):
            if state.phase == "failed" and not self.plan.choice.options.kernel:
                # What was remembered was in a folder that is not mounted this time.
                ImageMemory.forget(self.plan.image.id)
                raise _OtherKernelError(f"'{self.plan.kernelspec}' is not there any more.", "")
            return False
        remembered = ImageMemory.read(self.plan.image.id)
        if remembered.kernel:
            ImageMemory.forget(self.plan.image.id)
            compiled.forget(self.plan.image.id)
            self._write_files(ImageMemory())
            return True
        if state.phase == "exited" and state.report.get("kernel") == "image":
            log.info("the image's own ipykernel does not start; trying the kernel bundle")
            self._write_files(
                ImageMemory(interpreter=str(state.report.get("executable", "")), kernel="bundle")
            )
            self._give_bundle(state)
            return True
        return False

    def _raise_not_started(self, state: KernelState) -> None:
        reference = self.plan.choice.reference
        if state.phase == "failed" and self.plan.kernelspec not in ("", *PYTHON_KERNELS):
            raise KernelMissingError(
                f"The image '{reference}' has no kernel '{self.plan.kernelspec}'.",
                hint=_hint_of_kernelspecs(state.report)
                or "It has no kernelspec that this user may read; Python needs none: leave --kernel out.",
            )
        if state.phase == "failed":
            raise KernelMissingError(
                f"No Python in '{reference}' can run a kernel: {state.report.get('problem')}",
                hint=_hint_of_kernelspecs(state.report)
                or "Python 2.7 and 3.5 to 3.14 on glibc are known to work.",
            )
        ended = f"The kernel in '{reference}' ended while it started"
        if state.phase == "gone" and self._memory_limit:
            # It can be the launcher that was killed for memory: then nobody is left to say so.
            raise self.death(
                state,
                f"{ended}, with {self._memory_limit}",
                again="If that may be too little, give it more with --memory. Start it again with %docker_env NAME.",
            )
        raise self.death(state, ended)

    # --- life ---------------------------------------------------------------------------------

    @property
    def state(self) -> KernelState:
        """What the supervisor last said; phase "gone" when the container is."""
        return self._control.state if self._control else KernelState(phase="gone")

    def poll(self) -> int | None:
        """Return None while the kernel runs, else its exit code (as a shell reports it)."""
        state = self.state
        if state.phase in ("starting", "bound"):
            return None
        if state.exit_code is not None:
            return state.exit_code
        return 137

    def wait(self, timeout: float) -> int | None:
        """Wait for the kernel's end; return as `poll` does."""
        if self._control is not None:
            self._control.wait(lambda s: s.phase not in ("starting", "bound"), timeout)
        return self.poll()

    def signal(self, signum: int) -> None:
        """Signal the kernel and its children. A kernel that is gone is no error.

        Where its kernelspec says that an interrupt is a message, SIGINT becomes that.
        """
        if signum == signal.SIGINT and self.state.report.get("interrupt_mode") == "message":
            self._interrupt_by_message()
        elif self._control is not None:
            try:
                self._control.signal(signum)
            except KernelError:
                log.debug("signal %s to a container that is gone", signum)

    def settle_signals(self) -> None:
        """Return when what `signal` was called with has reached the kernel, and can meet no later cell."""
        if self._control is not None:
            control = self._control
            with contextlib.suppress(KernelError):
                self._patiently(lambda: control.settle(_SILENCE))

    def _interrupt_by_message(self) -> None:
        """Send an interrupt_request, and leave the waiting for its reply to a thread."""
        import zmq  # this floor does without Jupyter, but for such kernels
        from jupyter_client.session import Session

        info = self.connection_info
        session = Session(key=info["key"], signature_scheme=info["signature_scheme"])
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        separator = "-" if info["transport"] == "ipc" else ":"
        socket.connect(f"{info['transport']}://{info['ip']}{separator}{info['control_port']}")
        session.send(socket, "interrupt_request", {})

        def wait() -> None:
            socket.poll(round(_INTERRUPT_TIMEOUT * 1000))
            context.destroy(linger=0)

        threading.Thread(target=wait, name="dockml-interrupt", daemon=True).start()

    def is_paused(self) -> bool:
        """Tell whether the container is frozen, as `docker pause` does it; for who calls this often.

        It never waits: the engine is asked in a thread, and only where the supervisor is silent.
        """
        control = self._control
        if control is None or control.state.phase == "gone" or control.silence() < _SILENCE:
            self._is_paused = False
        elif self._asks_engine is None or not self._asks_engine.is_alive():
            self._asks_engine = threading.Thread(
                target=self._note_pause, args=(control,), name="dockml-look", daemon=True
            )
            self._asks_engine.start()
        return self._is_paused

    def _note_pause(self, control: ControlChannel) -> None:
        is_paused = self.find_pause()
        self._is_paused = is_paused and control.silence() >= _SILENCE

    def find_pause(self) -> bool:
        """Ask the engine whether the container is paused; an engine that is away does not know."""
        try:
            state = self.engine.inspect(self.container_id) if self.container_id else None
        except EngineError:
            return False
        return state is not None and state.status == "paused"

    def raise_if_no_restart(self, name: str) -> None:
        """Raise while the kernel still runs what would let a restart fail; one that is gone gets a new container."""
        if self.find_pause():
            raise self.pause_error(name)
        self.raise_if_wiped(
            name,
            f"A new kernel in this container: %docker_stop {name}, then %docker_start {name}"
            if self.stays
            else f"A new kernel needs a new container: %docker_env {name} --fresh",
        )

    def raise_if_wiped(self, name: str, hint: str) -> None:
        """Raise where somebody has removed the runtime folder under a container, which goes on."""
        if (
            self.state.phase != "gone"
            and self.shares_files
            and self._runtime
            and not (self._runtime.shared / "launch.py").is_file()
        ):
            raise KernelError(
                f"The runtime folder of '{name}' was removed: {self._runtime.path}. Its kernel goes on without.",
                hint=hint,
            )

    def pause_error(self, name: str) -> KernelPausedError:
        """Return what to say where something waits for a container that is paused."""
        return KernelPausedError(name, self.container_id, stays=self.stays)

    def restart(self, env: Mapping[str, str], cwd: str | None) -> None:
        """Start the next kernel in the same container; the last one has ended."""
        control = self._control
        if control is None or control.state.phase == "gone":
            raise KernelError("The container is gone.", hint="Start the environment again.")
        generation = control.state.generation + 1
        self._bundles_given = 0
        control.start(env, None if self.plan.choice.options.workdir else cwd)
        self._wait_bound(generation)

    def death(
        self,
        state: KernelState,
        what: str,
        again: str = "Start it again with %docker_env NAME.",
        restart: str = "",
    ) -> KernelDiedError:
        """Return the error that tells how the kernel ended.

        `restart` is what to do for a new kernel, `again` what to do when the container is gone too.
        """
        log, engine_error = "", ""
        if self.container_id:
            try:
                log = self._whole_log()
            except EngineError as error:  # an engine that has gone takes its containers along
                engine_error = f" {error.message}"
        tail = _last_lines(log)
        if state.out_of_memory:
            limit = self._memory_limit
            return KernelDiedError(
                f"{what}: killed for memory" + (f", its limit is {limit}." if limit else "."),
                hint=f"Give it more with --memory, or load less at a time. {restart}".strip(),
                exit_code=state.exit_code,
                out_of_memory=True,
            )
        if state.problem:
            return KernelDiedError(
                f"{what}: its container is not to be trusted any more, and was given up. It said what no "
                f"kernel of ours says: {state.problem}.",
                hint=again,
            )
        if state.phase == "gone":
            return KernelDiedError(f"{what}: its container is gone.{engine_error}", hint=again)
        left = "The lines below are the last it wrote." if tail else "It wrote nothing to its log."
        return KernelDiedError(
            f"{what} (exit code {state.exit_code}{_signal_name(state.exit_code)}).",
            hint=f"{left} {restart}".strip(),
            exit_code=state.exit_code,
            log_tail=tail,
        )

    @property
    def _memory_limit(self) -> str:
        """The limit in words, "" where there is none."""
        memory = self.plan.choice.options.memory
        return f"{memory / 1024**2:.0f} MiB (--memory)" if memory else ""

    def _whole_log(self) -> str:
        """Return the end of the container's log, once it holds all that the kernel wrote.

        The supervisor tells of an end at once; the engine copies what was written to the log in its own time.
        """
        deadline = time.monotonic() + _LOG_PATIENCE
        while True:
            log = self.engine.logs(self.container_id, _CRASH_LINES)
            is_whole = _KERNEL_ENDED in log.rpartition(_KERNEL_STARTS)[2]
            if is_whole or self.state.phase != "exited" or time.monotonic() > deadline:
                return log
            time.sleep(_LOG_INTERVAL)

    def ask_to_end(self) -> None:
        """Tell the container to end itself; the engine removes it then."""
        if self._control is not None:
            with contextlib.suppress(KernelError):
                self._control.stop()

    def forget(self) -> None:
        """Wait until it has ended, and remove its runtime folder. For the end of this process."""
        if self._control is not None and not self._waits_for_end(self._control):
            with contextlib.suppress(EngineError):
                self.engine.remove(self.container_id)
        if self._runtime is not None:
            self._runtime.remove()

    # --- kept ---------------------------------------------------------------------------------

    @property
    def is_kept(self) -> bool:
        """It outlives those who hold its lease."""
        return self.state.kept

    @property
    def was_shared(self) -> bool:
        """Another notebook has been attached while we were."""
        return self._control is not None and self._control.was_shared

    def keep(self, *, keep: bool) -> None:
        """Let it outlive us, or not any more; return when it has understood.

        Raises
        ------
        KernelError
            If it is gone.
        """
        assert self._control is not None
        self._control.keep(keep=keep)
        state = self._hear(lambda s: s.kept is keep)
        if state is None or state.phase == "gone":
            raise KernelError("The container does not answer.", hint="See: docker ps")

    def _hear(self, wanted: Callable[[KernelState], bool]) -> KernelState | None:
        """Wait for what the supervisor is to say."""
        control = self._control
        assert control is not None
        return self._patiently(lambda: control.wait(wanted, STOP_TIMEOUT))

    def _patiently(self, wait: Callable[[], T]) -> T:
        """Wait for the supervisor again until there is something; not for long where it is paused, and cannot."""
        deadline = time.monotonic() + _PATIENCE
        while not (heard := wait()) and time.monotonic() <= deadline and not self.find_pause():
            pass
        return heard

    def attach(self) -> None:
        """Say that we read what its kernel publishes, so that it need not be recorded."""
        if self._control is not None:
            with contextlib.suppress(KernelError):
                self._control.attach()

    def detach(self) -> None:
        """Give the lease back; the container and its kernel go on, if they are kept."""
        if self._control is not None:
            with contextlib.suppress(KernelError):
                self._control.detach()
            self._control.close()
            self._control = None

    def output(self) -> OutputStream:
        """Open what its kernel has published while nobody was attached.

        Raises
        ------
        KernelError
            If the container is gone.
        """
        assert self._control is not None
        try:
            return OutputStream(self._control.address, self.plan.key)
        except OSError as error:
            raise KernelError("The container is gone.", hint="Start a new one.") from error

    def end(self) -> None:
        """End it as `docker stop` does: one that was started to stay does, the others are removed."""
        if self.stays:
            self.stop()
        else:
            self.remove()

    def stop(self) -> None:
        """End the kernel and the container, which `start_again` can start. Being stopped is success."""
        self.ask_to_end()
        if self._control is not None:
            self._waits_for_end(self._control)
            self._control.close()
            self._control = None
        if self.engine.wait(self.container_id, STOP_TIMEOUT) is None:
            self.engine.stop(self.container_id)
        if self._runtime is not None:
            self._runtime.remove()

    def leave(self) -> None:
        """End the kernel and give the lease back: another process holds it. For the end of this one."""
        self.signal(signal.SIGKILL)
        self.wait(STOP_TIMEOUT)
        if self._control is not None:
            self._control.close()

    def remove(self) -> None:
        """End the kernel, remove the container and its runtime folder. Being gone is success."""
        try:
            self.ask_to_end()
            if self._control is not None:
                is_gone = self._waits_for_end(self._control)
                self._control.close()
                self._control = None
                # It ends by itself and the engine removes it; only a stuck one needs force.
                by_itself = is_gone and not self.plan.kept
                if by_itself and wait_removed(self.engine, self.container_id, STOP_TIMEOUT):
                    self.container_id = ""
            if self.container_id:
                remove_container(self.engine, self.container_id)
                self.container_id = ""
        except EngineError as error:
            log.warning(
                "container %s may be left behind: %s", self.container_id[:12], error.message
            )
        finally:
            if self._runtime is not None:
                self._runtime.remove()

    def _waits_for_end(self, control: ControlChannel) -> bool:
        """Wait until it has ended; not for long where it cannot hear us, as it is paused."""
        if control.wait(lambda s: s.phase == "gone", _NOTICE) is not None:
            return True
        if self.find_pause():
            return False
        return control.wait(lambda s: s.phase == "gone", STOP_TIMEOUT - _NOTICE) is not None

    # --- persistence --------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return what `adopt` needs to take this container over in another process; plain JSON."""
        return {
            "container_id": self.container_id,
            "session": self.session,
            "runtime": str(self._runtime.path) if self._runtime else "",
            "plan": self.plan.to_json(),
            "key": self.plan.key,
            "exclusive": self.plan.exclusive,
            "transport": self.plan.transport,
            "host_ports": list(self._host_ports),
            "sources": dict(self._sources),
            "control": address_to_json(self._control.address) if self._control else "",
        }

    def adopt(self, described: Mapping[str, Any]) -> None:
        """Take over a container that another process started, and its lease.

        Raises
        ------
        KernelError
            If it is gone.
        """
        self.session = described["session"]
        self.container_id = described["container_id"]
        found_plan = {name: described[name] for name in ("key", "exclusive", "transport")}
        self.plan = replace(self.plan, **found_plan)
        self._host_ports = tuple(described["host_ports"])
        self._sources = described.get("sources", {})
        self._runtime = _runtime_of(described)
        try:
            self._control = ControlChannel(address_from(described["control"]), self.plan.key)
        except OSError as error:
            raise KernelError("The container is gone.", hint="Start a new one.") from error
        state = self._hear(lambda s: s.generation > 0)
        if state is not None and state.phase == "bound":
            self._reach_kernel()


def _resolved_sources(spec: ContainerSpec) -> dict[str, str]:
    """Return where the user's folders lead to that a container mounts."""
    ours = (RUNTIME, BUNDLES, COMPILED)
    found = (mount.host_path for mount in spec.mounts if mount.target not in ours)
    return {str(path): os.path.realpath(path) for path in found if path is not None}


def _runtime_of(described: Mapping[str, Any]) -> RuntimeFolder:
    """Return the runtime folder of a container, and see to it that nobody else may change what is in it.

    It is not always below this process's own root: XDG_RUNTIME_DIR may differ from one session to the next.
    """
    folder = Path(described["runtime"])
    try:
        folders.make_root(folder.parent)
    except OSError as error:
        raise KernelError(
            f"Its runtime folder was '{folder}', and there is no '{folder.parent.parent}' now.",
            hint="The system removes such a folder when you log out (loginctl enable-linger keeps it). "
            "Log in there, or start a new one with --fresh.",
        ) from error
    return RuntimeFolder(folder)


class _OtherKernelError(KernelError):
    """The container is to be started once more, with this kernelspec or, "", without one."""

    def __init__(self, message: str, kernelspec: str) -> None:
        super().__init__(message)
        self.kernelspec = kernelspec


def describe_kernel(report: Mapping[str, Any]) -> str:
    """Return what a kernel's report says of it, for the user: language, version, and where it comes from."""
    if report.get("kernel") == "spec":
        language = f"{report.get('language', '')} {report.get('language_version', '')}".strip()
        return f"{language}, the image's kernel '{report.get('kernelspec', '?')}'"
    origin = "the image's own" if report.get("kernel") == "image" else "the kernel bundle's"
    return f"Python {report.get('python', '?')}, {origin} ipykernel {report.get('ipykernel', '?')}"


def _hint_of_kernelspecs(report: Mapping[str, Any]) -> str:
    """Return the sentence that names the image's kernels and how to run one, "" without any."""
    found: Mapping[str, str] = report.get("kernelspecs") or {}
    if not found:
        return ""
    names = ", ".join(f"{name} ({found[name]})" for name in sorted(found))
    return f"It has: {names}. Run one with: --kernel {min(found)}"


def _last_lines(log: str) -> str:
    """Return what the last kernel wrote to the log at the end; of Python's report of a crash the beginning."""
    lines = log.rpartition(_KERNEL_STARTS)[2].replace(_KERNEL_ENDED, "").strip().splitlines()
    crashes = [place for place, line in enumerate(lines) if line.startswith(_CRASH)]
    first = crashes[-1] if crashes else max(0, len(lines) - LOG_LINES)
    return "\n".join(line[:_LONGEST_LINE] for line in lines[first : first + LOG_LINES])


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # we may be in a container ourselves
        return f"user{os.getuid()}"


def _signal_name(code: int | None) -> str:
    if code is None or code <= 128:
        return ""
    try:
        return f", {signal.Signals(code - 128).name}"
    except ValueError:
        return ""
