"""The kernel provisioner: how Jupyter starts, signals, restarts and ends a kernel in a container.

jupyter_client's `KernelManager` calls it, and with it every front end that uses one: JupyterLab,
Notebook, nbclient, papermill, `jupyter console`, and our own `%docker_env`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import zmq.asyncio
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Dict, Unicode, default

from dockml_magic.container import KernelContainer
from dockml_magic.errors import DockmlError, KernelError
from dockml_magic.last_words import LastWords
from dockml_magic.options import RunOptions
from dockml_magic.planning import KernelPlan, engine_for, make_plan

PROVISIONER_NAME = "dockml-provisioner"

_KILL_PATIENCE = 0.3
"""Seconds in which the end of a kernel that was killed is heard of."""

_FOLLOWS_FOR = 10.0
"""Seconds after a request to end in which a kernel does so by itself; by then it was killed."""

_HOST_ONLY = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "PWD",
        "OLDPWD",
        "TMPDIR",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "PYTHONPATH",
        "PYTHONHOME",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "XDG_RUNTIME_DIR",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "JPY_PARENT_PID",
        "PYDEVD_USE_FRAME_EVAL",
        "SSH_AUTH_SOCK",
        "DISPLAY",
    ]
)
"""Variables that name a place on the host, and would lead nowhere in a container."""


class TellingManager(AsyncKernelManager):
    """A kernel manager with a reader at hand, who is told when something takes time.

    It is the only client of its kernels.
    """

    tell: Callable[[str], None] = print
    plan: KernelPlan | None = None
    """What was decided already, where that is so."""
    stopped: Mapping[str, Any] | None = None
    """What `KernelContainer.describe` said of a container that is to be started again."""
    created: Callable[[KernelContainer], None] = staticmethod(lambda _: None)
    """Called when a container was created and before it is started."""

    @default("context")
    def _context_default(self) -> zmq.asyncio.Context:
        """Share one: its own, when it is collected before its socket, would wait for ever for that to be closed."""
        return zmq.asyncio.Context.instance()

    async def adopt(self, info: Mapping[str, Any]) -> None:
        """Manage a kernel that another process has started, so that it can be restarted.

        Parameters
        ----------
        info : mapping
            What `DockerProvisioner.get_provisioner_info` said there.

        Raises
        ------
        DockmlError
            If its container is gone.
        """
        factory = KernelProvisionerFactory.instance(parent=self.parent)
        provisioner = factory.create_provisioner_instance(
            info["kernel_id"], self.kernel_spec, parent=self
        )
        await provisioner.load_provisioner_info(dict(info))
        self.provisioner = provisioner
        self._launch_args = {"cwd": info["workspace"]}
        self._attempted_start = True

    def leave(self) -> None:
        """Manage the kernel no more, and leave it as it is: what frees the rest would remove its sockets, too."""
        self._close_control_socket()
        self.cleanup_connection_file()


class DockerProvisioner(KernelProvisionerBase):
    """Runs the kernel in a container.

    The process that jupyter_client watches is the kernel in the container, not the container: the
    container outlives the kernel between the two halves of a restart.
    """

    name = Unicode("", help="What to run: a short name, an image reference, an environment.").tag(
        config=True
    )
    options = Dict(
        help="Options of the start, by their names in dockml.toml: {'memory': 4294967296, 'gpus': 'all'}."
    ).tag(config=True)

    container: KernelContainer | None = None
    _plan: KernelPlan | None = None
    _last_words: LastWords | None = None
    _exit_code: int | None = None
    _env: Mapping[str, str] = {}
    _cwd: str | None = None

    @property
    def has_process(self) -> bool:
        """A kernel was started and its end has not been seen by `wait` yet."""
        return self.container is not None and self._exit_code is None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Decide what to run, and fetch its image. Called by the manager before every start.

        The pull happens here, so that no start's time limit counts it.
        """
        cwd = Path(kwargs.get("cwd") or ".").absolute()
        env = kwargs.get("env")
        self._env = _given_env(env if env is not None else {})
        self._cwd = str(cwd)
        if self.container is None:
            options = RunOptions.from_json(self.options)
            extra = tuple(kwargs.get("extra_arguments") or ())
            self._plan = await asyncio.to_thread(self._make_plan, options, cwd, extra)
        return await super().pre_launch(cmd=list(self.kernel_spec.argv), **kwargs)

    def _make_plan(self, options: RunOptions, cwd: Path, extra: tuple[str, ...]) -> KernelPlan:
        manager = self.parent
        exclusive = isinstance(manager, TellingManager)
        if isinstance(manager, TellingManager) and manager.plan is not None:
            return replace(manager.plan, key=manager.session.key.decode() or manager.plan.key)
        plan = make_plan(
            self.name,
            options,
            cwd,
            engine=engine_for(options),
            tell=self._tell,
            judged=exclusive,  # by whoever made that manager
        )
        key = (
            manager.session.key.decode()
            if manager is not None and manager.session.key
            else plan.key
        )
        return replace(
            plan,
            key=key,
            exclusive=exclusive,
            extra_arguments=extra,
            env=self._env,
            kept=exclusive and plan.choice.options.keep,
        )

    def _tell(self, line: str) -> None:
        self.log.info("%s: %s", self.name, line)
        if isinstance(self.parent, TellingManager):
            self.parent.tell(line)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the container, or the next kernel in it; return when its sockets are bound.

        Called by the manager. `cmd` is what a front end without provisioners would run.
        """
        self._exit_code = None
        if self.container is None:
            assert self._plan is not None
            container = KernelContainer(
                engine_for(self._plan.choice.options), self._plan, self._tell
            )
            if isinstance(self.parent, TellingManager):
                container.created = self.parent.created
            stopped = getattr(self.parent, "stopped", None)
            start = (
                functools.partial(container.start_again, stopped) if stopped else container.start
            )
            starting = asyncio.ensure_future(asyncio.to_thread(start))
            try:
                await asyncio.shield(starting)
            except asyncio.CancelledError:
                container.abandon()
                with contextlib.suppress(DockmlError):
                    await starting
                    await asyncio.to_thread(container.end)  # it has come up in the last moment
                raise
            self.container = container
        else:
            await asyncio.to_thread(self.container.restart, self._env, self._cwd)
        self._watch(self.container)
        return self._connection_info(self.container)

    def _watch(self, container: KernelContainer) -> None:
        """See to it that the kernel's death is told, unless our own relay does it in the notebook."""
        if not isinstance(self.parent, TellingManager):
            self._last_words = LastWords(
                container, self.name, self._is_shutting_down, self.log.warning
            )

    def _is_shutting_down(self) -> bool:
        return self.parent is not None and bool(self.parent.shutting_down)

    def _connection_info(self, container: KernelContainer) -> KernelConnectionInfo:
        self.connection_info = cast(KernelConnectionInfo, container.connection_info)
        return self.connection_info

    async def poll(self) -> int | None:
        """Return None while the kernel runs, else its exit code. Called often, by the restarter.

        Who learns of a death from this drops the cell that ran: first, that cell is told of it.
        """
        if self._exit_code is not None or self.container is None:
            return self._exit_code or 0
        code = self.container.poll()
        if code is not None and self._last_words is not None:
            await asyncio.to_thread(self._last_words.wait_until_heard)
        return code

    async def wait(self) -> int | None:
        """Wait for the kernel's end. Called once the manager has asked it to end."""
        if self.container is None:
            return self._exit_code or 0
        while (code := self.container.poll()) is None:
            await asyncio.to_thread(self.container.wait, 0.5)
        self._exit_code = code
        return code

    async def send_signal(self, signum: int) -> None:
        """Signal the kernel and its children. Called for an interrupt, and by what follows."""
        if self.container is not None:
            self.container.signal(signum)

    async def kill(self, restart: bool = False) -> None:
        """End the kernel at once. Called when it did not end when asked."""
        await self.send_signal(signal.SIGKILL)
        container = self.container
        if (
            container is not None
            and not container.stays
            and await asyncio.to_thread(container.wait, _KILL_PATIENCE) is None
            and await asyncio.to_thread(container.find_pause)
        ):
            # Nothing in it hears a signal: only the engine can end it. A restart gets a new container.
            await asyncio.to_thread(container.remove)

    async def terminate(self, restart: bool = False) -> None:
        """Ask the kernel's process to end. Called when it did not answer a shutdown request."""
        await self.send_signal(signal.SIGTERM)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """End the container as soon as its kernel has ended. Called after the kernel itself was asked to.

        The manager looks every 100 ms whether it has; meanwhile the engine can begin to take the container down.
        """
        container = self.container
        if restart or container is None or container.stays:
            return

        def follow() -> None:
            code = container.wait(_FOLLOWS_FOR)
            if code is not None:
                self._exit_code = code
                container.ask_to_end()

        threading.Thread(target=follow, name="dockml-end", daemon=True).start()

    async def cleanup(self, restart: bool = False) -> None:
        """End the container, unless the kernel is about to be restarted in it.

        Called by the manager after the kernel's end, and after a start that failed.
        """
        if self._last_words is not None:
            await asyncio.to_thread(self._last_words.close)
            self._last_words = None
        container = self.container
        if container is None or (restart and container.state.phase != "gone"):
            return
        self.container = None
        if self._exit_code is None:
            self._exit_code = container.poll() or 0
        await asyncio.to_thread(container.end)

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Return how long the manager waits for a kernel to end by itself."""
        return recommended

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return what another process needs to adopt this kernel; plain JSON."""
        info: dict[str, Any] = await super().get_provisioner_info()
        info["name"], info["options"] = self.name, dict(self.options)
        info["connection_info"] = {
            **info["connection_info"],
            "key": info["connection_info"]["key"].decode(),
        }
        info["workspace"] = self._cwd
        info["container"] = self.container.describe() if self.container else None
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Adopt a kernel that another process started, and its lease.

        Raises
        ------
        KernelError
            If its container is gone.
        """
        info = dict(provisioner_info)
        info["connection_info"] = {
            **info["connection_info"],
            "key": info["connection_info"]["key"].encode(),
        }
        await super().load_provisioner_info(info)
        self.name, self.options = info["name"], info["options"]
        self._cwd = info["workspace"]
        if info["container"] is None:
            raise KernelError("This kernel has no container.", hint="Start a new one.")
        options = RunOptions.from_json(self.options)
        self._plan = await asyncio.to_thread(self._make_plan, options, Path(self._cwd or "."), ())
        container = KernelContainer(engine_for(options), self._plan, self._tell)
        await asyncio.to_thread(container.adopt, info["container"])
        self.container = container
        self._watch(container)


def _given_env(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that `start_kernel` was given beyond the host's own environment."""
    return {
        name: value
        for name, value in env.items()
        if name not in _HOST_ONLY and os.environ.get(name) != value
    }
