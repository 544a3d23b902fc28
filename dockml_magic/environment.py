"""An environment: a named, running kernel in a container, reached from a notebook or a script.

It starts its kernel as any front end does, through an ordinary `KernelManager` and the provisioner,
from a kernelspec that exists in memory only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

from dockml_magic import kept
from dockml_magic.container import KernelContainer
from dockml_magic.control import OutputState, OutputStream
from dockml_magic.errors import (
    ConfigError,
    DockmlError,
    HostFileError,
    KernelDiedError,
    KernelError,
    KernelPausedError,
    RemoteCellError,
    StartAbandonedError,
    UnknownEnvironmentError,
    harmless,
)
from dockml_magic.handover import end_handover, find_handed_over, hand_over
from dockml_magic.interrupts import interrupts_later
from dockml_magic.messages import Message
from dockml_magic.options import RunOptions, parse_words
from dockml_magic.planning import KernelPlan, engine_for, make_plan
from dockml_magic.relay import UNUSABLE, Relay, Sink, counts, is_plausible

if TYPE_CHECKING:
    from dockml_magic.exchange import ContainerSide, HandOver
    from dockml_magic.provisioner import DockerProvisioner

T = TypeVar("T")

# The manager logs each failed start with its stack, which we raise to the user in two lines anyway.
_manager_log = logging.getLogger("dockml_magic.kernel_manager")
_manager_log.propagate = False
_manager_log.addHandler(logging.NullHandler())
_log = logging.getLogger(__name__)

_LOOK_INTERVAL = 0.2
_PATIENCE = 10.0
"""Seconds in which a supervisor should begin to answer."""
_INTERRUPT_PATIENCE = 10.0
"""Seconds after an interrupt in which a kernel should let go of its cell."""

_MOST_MISSED = 64 << 20
"""Bytes of missed output that are taken in before they are shown."""

Show = Callable[["Environment", Sequence[Message]], None]
"""Shows what an environment's kernel has published while nobody was attached."""

Warm = Callable[["Environment", Callable[["Environment"], None]], "Environment | None"]
"""Returns one that waits ready and is what is about to be started."""


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What a cell gave.

    Attributes
    ----------
    stdout, stderr : str
        What it printed.
    text : str
        The plain text of its last expression, "" without one.
    data : list of dict
        Everything it displayed: one dict of MIME type to data each, the last expression's included.
    """

    stdout: str = ""
    stderr: str = ""
    text: str = ""
    data: list[dict[str, Any]] = field(default_factory=list)


class Environment:
    """A named, running kernel in a container.

    Use it as a context manager, or call `stop` in the end; when this process ends, so does it.

    Parameters
    ----------
    name : str
        What to run: a short name, an image reference, an environment of the project file.
    options : RunOptions
        As for `docker run`.
    folder : Path
        The workspace.
    tell : callable
        Gets a line for the user when something takes time.

    plan : KernelPlan, optional
        Of a container that is there: nothing is decided anew.

    Attributes
    ----------
    options : RunOptions
        As they were given, before `--gpus auto` became a device.
    plan : KernelPlan
        What was decided before it was started.
    made : KernelContainer or None
        The last container that was created for it, also while it is being started.
    keeps : bool
        It is to be kept from its start, by an option or by the project file.
    image_in_words : str
        Its image, as people would say it.
    """

    def __init__(
        self,
        name: str,
        options: RunOptions,
        folder: Path,
        tell: Callable[[str], None],
        plan: KernelPlan | None = None,
    ) -> None:
        self._folder = folder
        # Planned here, in the caller's thread, so that an interrupt ends a pull; the provisioner's
        # own plan finds the image present.
        self.engine = engine_for(options)
        given = plan
        plan = given or make_plan(name, options, folder, engine=self.engine, tell=tell)
        self.plan = plan
        self.keeps = plan.choice.options.keep
        settled = replace(options, gpus=plan.choice.options.gpus)
        if plan.choice.options.pull == "always":  # and that it was just now
            settled = replace(settled, pull="missing")
        self.options = options
        self._what = name
        self.name = plan.choice.name
        self.reference = plan.choice.reference
        self.image_in_words = plan.choice.image_in_words
        self._relay: Relay | None = None
        self._side: ContainerSide | None = None
        self._making_side = threading.Lock()
        self._opened: Callable[[Environment, Relay], Callable[[], None]] | None = None
        self._on_close: Callable[[], None] | None = None
        from dockml_magic.provisioner import PROVISIONER_NAME, TellingManager

        spec = KernelSpec(
            argv=["dockml", "never-run"],
            display_name=plan.choice.title,
            language="python",
            metadata={
                "kernel_provisioner": {
                    "provisioner_name": PROVISIONER_NAME,
                    "config": {"name": name, "options": settled.to_json()},
                }
            },
        )
        self._manager = TellingManager(
            kernel_name=self.name, kernel_spec_manager=_OneSpec(spec), log=_manager_log
        )
        self._manager.tell = tell
        self._manager.plan = given
        self._manager.created = self._note_created
        self.made: KernelContainer | None = None
        self._generation = 0
        self._is_adopted = False
        self._is_abandoned = False
        self._stopping = threading.Lock()
        self._starting: Future[Any] | None = None

    @classmethod
    def adopt(cls, info: Mapping[str, Any], tell: Callable[[str], None]) -> Environment:
        """Return an environment that another process has handed over. `restart` gives it a kernel.

        Parameters
        ----------
        info : mapping
            What `describe` said there.
        tell : callable
            As for a new one.

        Raises
        ------
        DockmlError
            If its container is gone.
        """
        environment = cls._described(info, tell)
        _run(environment._manager.adopt(info))
        environment._is_adopted = True
        return environment

    @classmethod
    def _described(cls, info: Mapping[str, Any], tell: Callable[[str], None]) -> Environment:
        options = RunOptions.from_json(info["options"])
        plan = KernelPlan.from_json(info["container"]["plan"])
        environment = cls(info["name"], options, Path(info["workspace"]), tell, plan)
        environment.options = RunOptions.from_json(info["asked"])
        return environment

    @classmethod
    def attach(
        cls,
        found: kept.Kept,
        tell: Callable[[str], None],
        show: Show,
        begun: Callable[[Environment], None] = lambda _: None,
    ) -> Environment:
        """Return a kept environment that runs, its variables alive, when its kernel has nothing to do.

        Parameters
        ----------
        found : Kept
        tell : callable
            As for a new one.
        show : callable
            Gets it and what its kernel has published while nobody was attached, and publishes while we wait.
        begun : callable
            Gets it at once; `abandon` ends the waiting.

        Raises
        ------
        KernelError
            If it cannot be reached, or does not answer; it is left as it is.
        """
        unreachable = KernelError(
            f"'{found.name}' runs, but cannot be reached: its files in "
            f"'{found.info['container']['runtime']}' are gone, or it does not answer.",
            hint=f"Look for a paused one with: docker ps   A new kernel: %docker_stop {found.name}, "
            f"then %docker_start {found.name}   Or anew: %docker_env {found.name} --fresh",
        )
        try:
            environment = cls.adopt(found.info, tell)
        except KernelError as error:
            raise unreachable from error
        try:
            environment._is_adopted = False
            state = environment._container.state
            if state.generation == 0 or state.phase == "gone":
                raise unreachable  # noqa: TRY301
            begun(environment)
            environment._catch_up(show)
        except BaseException:
            environment.detach()
            raise
        return environment

    def _catch_up(self, show: Show) -> None:
        """Show what was missed and wait for the cell that runs, then connect."""
        with self._container.output() as stream:
            self._wait_until_idle(stream, show)
            self._starting = None
            self._raise_if_abandoned()
            if self._container.poll() is None:
                self._connect()
            else:
                error = self._container.death(
                    self._container.state, f"The kernel of '{self.name}' died"
                )
                self.tell(
                    f"{error.message} A new one starts in its container; its variables are gone."
                )
                self.restart()
            more: list[Message] = []
            with contextlib.suppress(KernelError):
                while isinstance(read := stream.read(0.0), list):
                    with contextlib.suppress(*UNUSABLE):
                        more.append(Message.of_parts(read))
            if more:
                show(self, more)

    def _wait_until_idle(self, stream: OutputStream, show: Show) -> None:
        missed: Missed | None = Missed()
        interrupted_at, began = 0.0, time.monotonic()
        while True:
            try:
                read = stream.read(_LOOK_INTERVAL)
                if read is None and missed is not None and time.monotonic() > began + _PATIENCE:
                    raise KernelError(
                        f"'{self.name}' does not answer.", hint="Is it paused? See: docker ps"
                    )
                self._raise_if_abandoned()
                if isinstance(read, list):
                    with contextlib.suppress(*UNUSABLE):
                        message = Message.of_parts(read)
                        if missed is None:
                            show(self, [message])
                        else:
                            missed.add(message)
                    if missed is not None and missed.is_full:
                        with interrupts_later():
                            self._show_missed(
                                missed, OutputState(busy=False, dropped=0, takes=True), show
                            )
                            missed = None
                elif isinstance(read, OutputState):
                    if missed is not None:
                        with interrupts_later():
                            self._show_missed(missed, read, show)
                            missed = None
                    if not read.busy:
                        return
                if interrupted_at and time.monotonic() > interrupted_at + _INTERRUPT_PATIENCE:
                    interrupted_at = float("inf")
                    self.tell(
                        f"{self.name!r} has not reacted to the interrupt for {_INTERRUPT_PATIENCE:.0f} s. "
                        "Wait, or interrupt once more to leave it as it is."
                    )
            except KeyboardInterrupt:
                if interrupted_at or self._container.state.attached:
                    raise
                interrupted_at = time.monotonic()
                self.interrupt()

    def _show_missed(self, missed: Missed, state: OutputState, show: Show) -> None:
        outputs = missed.outputs()
        if outputs or state.dropped:
            count = len(outputs)
            lost = f" ({state.dropped} older messages had no room)" if state.dropped else ""
            self.tell(f"While nobody was attached: {count} output{'s'[: count != 1]}{lost}")
            show(self, outputs)
        if state.busy and state.takes:
            self.tell(
                f"{self.name!r} is still busy with a cell, whose output follows. "
                "The stop button interrupts that cell."
            )
        elif state.busy:
            self.tell(
                f"{self.name!r} is busy with a cell of another notebook; waiting for its end. "
                "The stop button ends the waiting."
            )

    @classmethod
    def start_again(
        cls,
        found: kept.Kept,
        tell: Callable[[str], None],
        begun: Callable[[Environment], None] = lambda _: None,
    ) -> Environment:
        """Return a kept environment that was stopped, started again: a new kernel, its files as they were."""
        environment = cls._described(found.info, tell)
        environment._manager.stopped = found.info["container"]
        begun(environment)
        return environment.start()

    def _note_created(self, container: KernelContainer) -> None:
        """Note a container; one that will stay also on disk: whatever becomes of us, it is found by its name."""
        self.made = container
        if container.stays:
            described = {
                "name": self._what,
                "options": container.plan.choice.options.to_json(),
                "asked": self.options.to_json(),
                "workspace": str(self._folder),
                "container": container.describe(),
            }
            kept.write(self.name, described, self.engine, starting=True)

    def describe(self) -> dict[str, Any]:
        """Return what another process needs to adopt this; plain JSON, and secret."""
        assert self._provisioner is not None
        info = _run(self._provisioner.get_provisioner_info())
        return {**info, "asked": self.options.to_json()}

    def meant(self, typed: str, options: RunOptions) -> tuple[str, RunOptions]:
        """Return the NAME and options to start another one with where this one is meant."""
        return kept.meant(typed, options, known=self.name, what=self._what, asked=self.options)

    def start(self) -> Environment:
        """Start the container and return when its kernel has been seen to deliver output.

        Raises
        ------
        DockmlError
            If it does not come up; nothing is left then, also after an interrupt.
        StartAbandonedError
            If `abandon` was called.
        """
        leave = self.remove if self._manager.stopped is None else self.stop
        try:
            _run(self._manager.start_kernel(cwd=str(self._folder)), self._note_start)
            self._connect()
            self._raise_if_abandoned()
            if self._container.stays:
                self.keep()
        except CancelledError:
            leave()
            raise StartAbandonedError(self.name) from None
        except BaseException as error:
            leave()
            if isinstance(error, OSError) and not isinstance(error, DockmlError):
                # Jupyter's connection file, on a disk that is full.
                raise HostFileError(f"'{self.name}' cannot be started", error) from error
            raise
        self._manager.stopped = None
        return self

    def abandon(self) -> None:
        """Make a `start` that runs in another thread, or is about to, give up and leave nothing."""
        self._is_abandoned = True
        starting = self._starting
        if starting is not None:
            starting.cancel()

    def decide_anew(self) -> None:
        """Let what it becomes be decided again, should it ever need a new container, whatever `plan` was given."""
        self._manager.plan = None

    def _note_start(self, future: Future[Any]) -> None:
        self._starting = future
        if self._is_abandoned:
            future.cancel()

    @property
    def is_abandoned(self) -> bool:
        """`abandon` was called."""
        return self._is_abandoned

    def _raise_if_abandoned(self) -> None:
        self._starting = None
        if self._is_abandoned:
            raise StartAbandonedError(self.name)

    def _connect(self) -> None:
        container = self._container
        self._relay = relay = Relay(
            container.connection_info,
            lambda: container.signal(signal.SIGINT),
            self._death,
            self._pause,
        )
        relay.is_shared = lambda: container.state.kept or container.state.attached > 1
        relay.was_shared = lambda: container.was_shared
        self._generation = container.state.generation
        try:
            relay.make_ready()
            container.attach()
            if self._opened is not None:
                self._on_close = self._opened(self, relay)
        except BaseException:
            self._generation = -1  # what comes next connects again
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.end_waits()  # a cell that runs in pieces keeps the thread from which it is closed
        on_close, self._on_close = self._on_close, None  # another thread may disconnect it, too
        if on_close is not None:
            on_close()
        self.close_side()
        if relay is not None:
            relay.close()

    def watch(self, opened: Callable[[Environment, Relay], Callable[[], None]]) -> None:
        """Call `opened` with this and the relay now, and with each new one after a restart.

        What it returns is called before that relay is closed.
        """
        self._opened = opened
        if self._relay is not None:
            self._on_close = opened(self, self._relay)

    @property
    def tell(self) -> Callable[[str], None]:
        """What gets a line for the user when something takes time."""
        return self._manager.tell

    @tell.setter
    def tell(self, tell: Callable[[str], None]) -> None:
        self._manager.tell = tell

    @property
    def _provisioner(self) -> DockerProvisioner | None:
        from dockml_magic.provisioner import DockerProvisioner

        provisioner = self._manager.provisioner
        assert provisioner is None or isinstance(provisioner, DockerProvisioner)
        return provisioner

    @property
    def container(self) -> KernelContainer | None:
        """The container, None when there is none."""
        provisioner = self._provisioner
        return provisioner.container if provisioner else None

    @property
    def _container(self) -> KernelContainer:
        container = self.container
        if container is None:
            raise KernelError(
                f"'{self.name}' is not running.", hint=f"Start it with: %docker_env {self.name}"
            )
        return container

    @property
    def container_id(self) -> str:
        """The engine's id of the container, "" when there is none."""
        container = self.container
        return container.container_id if container else ""

    @property
    def report(self) -> Mapping[str, Any]:
        """What is known of the kernel: python, executable, ipykernel, kernel ("image", "bundle" or "spec")."""
        relay = self._relay
        info = relay.kernel_info.get("language_info", {}) if relay else {}
        version = harmless(str(info.get("version", "")))
        return {"language_version": version, **self._container.state.report}

    @property
    def is_alive(self) -> bool:
        """The kernel runs."""
        container = self.container
        return container is not None and (
            container.poll() is None
            and container.state.generation == (self._generation or container.state.generation)
        )

    @property
    def waits_for_kernel(self) -> bool:
        """Its container was kept over the restart of the notebook's kernel, and waits for a kernel."""
        return self._is_adopted and self.has_container and self._relay is None

    @property
    def has_container(self) -> bool:
        """Its container is there, with a kernel or without."""
        return self.container is not None and self.container.state.phase != "gone"

    @property
    def is_kept(self) -> bool:
        """It outlives this notebook."""
        return self.container is not None and (self.container.stays or self.container.is_kept)

    @property
    def attached(self) -> int:
        """How many notebooks are attached to it."""
        return self.container.state.attached if self.container is not None else 0

    def _death(self) -> KernelDiedError | None:
        container = self._container
        if container.poll() is None:
            if container.state.generation == self._generation:
                return None
            whose = " from another notebook" if self._generation >= 0 else ""
            return KernelDiedError(
                f"'{self.name}' was restarted{whose}: its variables are gone.",
                hint=f"Go on with its new kernel: %docker_env {self.name}",
            )
        return container.death(
            container.state,
            f"The kernel of '{self.name}' died",
            again=f"Start it again: %docker_env {self.name}",
            restart=f"Start a new one in its container: %docker_restart {self.name}",
        )

    @property
    def is_paused(self) -> bool:
        """Its container is paused; known a second or two after that, and to be asked often."""
        return self.container is not None and self.container.is_paused()

    def _pause(self) -> KernelPausedError | None:
        return self.pause_error() if self.is_paused else None

    def pause_error(self) -> KernelPausedError:
        """Return what to say to who waits for a container that is paused."""
        return self._container.pause_error(self.name)

    def execute(
        self,
        header: Mapping[str, Any],
        content: Mapping[str, Any],
        sink: Sink,
        *,
        count: int | None = None,
    ) -> dict[str, Any]:
        """Run a cell under a front end's request header; return the content of its reply.

        Parameters
        ----------
        header, content : mapping
            Of the execute_request.
        sink : Sink
            Gets the output.
        count : int, optional
            The execution count the user sees. The kernel's own counter is set to it, so that
            `Out[7]`, history and tracebacks over there name the cell as the notebook does.

        Raises
        ------
        KernelDiedError
            If the kernel is dead, or dies under the cell.
        """
        relay = self._running_relay()
        reply = relay.execute(header, content, sink, count=count, tell=self.tell)
        if counts(content):
            counted = reply.get("execution_count") or 0
            if is_plausible(counted, relay.next_count):
                relay.next_count = counted + 1
        if relay.is_interrupted:
            self._container.settle_signals()  # what has missed this cell is not to meet the next one
        return reply

    def raise_missed_interrupt(self) -> None:
        """Raise KeyboardInterrupt where one came as the last cell had not begun over there, or had ended."""
        relay = self._relay
        if relay is not None and relay.missed_interrupt:
            relay.missed_interrupt = False
            raise KeyboardInterrupt

    def _running_relay(self) -> Relay:
        """Return the sockets of a kernel that runs."""
        relay = self._relay
        error = None if relay is None else self._death()
        if error is not None and self._is_restarted_elsewhere:
            raise error
        if relay is None or error is not None:
            how = f" ({error.how})" if error and error.how else ""
            raise KernelError(
                f"'{self.name}' is not running any more{how}.",
                hint=f"Start it again: %docker_env {self.name}   Or go back: %docker_env local",
            ) from error
        return relay

    @property
    def side(self) -> ContainerSide:
        """Its kernel, as one that values are handed to and from (`exchange.hand_over`).

        Raises
        ------
        KernelError
            If it is not running.
        """
        from dockml_magic.exchange import ContainerSide  # here: `%load_ext` does without it

        with self._making_side:
            relay = self._running_relay()
            if self._side is None:
                self._side = ContainerSide(
                    self.name, relay, self._container, lambda line: self.tell(line)
                )
            return self._side

    def close_side(self) -> None:
        """Hand nothing over any more, with what was made for it."""
        with self._making_side:
            side, self._side = self._side, None
        if side is not None:
            side.close()

    def put(self, name: str, value: Any, *, copy: bool = False) -> HandOver:
        """Give its kernel a variable.

        Parameters
        ----------
        name : str
        value : object
            Python's own types and those of NumPy, pandas, SciPy, torch, TensorFlow and Pillow, nested at will, or
            an iterator of such.
        copy : bool
            Arrays of some size are read-only over there, as they are in memory that both sides have. With this
            they are not.

        Returns
        -------
        HandOver
            Says what is not as it was, and the type it has over there.

        Raises
        ------
        ExchangeError
            If it cannot be handed over.

        Examples
        --------
        >>> with start("tf1.10") as env:  # doctest: +SKIP
        ...     env.put("text", ["one", "two"])
        ...     env.run("lengths = [len(t) for t in text]")
        ...     env.get("lengths")
        [3, 3]
        """
        from dockml_magic.exchange import OwnKernel, hand_over  # here, as above

        return hand_over(OwnKernel({name: value}), self.side, {name: name}, copy=copy)

    def get(self, name: str, *, copy: bool = False) -> Any:
        """Return the value of a variable of its kernel; see `put`. What is not as it was is told.

        Raises
        ------
        ExchangeError
            If there is none, or it cannot be handed over.
        """
        from dockml_magic.exchange import OwnKernel, hand_over  # here, as above

        found: dict[str, Any] = {}
        done = hand_over(self.side, OwnKernel(found), {name: name}, copy=copy)
        for note in done.notes:
            self.tell(note)
        return found[name]

    def run(self, code: str) -> CellResult:
        """Run code and return what it gave.

        Parameters
        ----------
        code : str
            A cell, in the language and version of the environment.

        Raises
        ------
        RemoteCellError
            If the code raises; carries the traceback.
        KernelDiedError
            If the kernel dies.

        Examples
        --------
        >>> with start("tf1.10") as env:  # doctest: +SKIP
        ...     env.run("import tensorflow as tf; tf.__version__").text
        "'1.10.0'"
        """
        collector = _Collector()
        relay = self._relay
        session_header = relay.session.msg_header("execute_request") if relay else {"msg_id": ""}
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        raise_remote_error(self.execute(session_header, content, collector))
        return collector.result()

    def request(
        self, msg_type: str, content: Mapping[str, Any], timeout: float
    ) -> dict[str, Any] | None:
        """Send another shell request, such as complete_request; None if no reply comes in time."""
        relay = self._relay
        try:
            return relay.request(msg_type, content, timeout) if relay else None
        except KernelError:  # another thread stops it
            return None

    def debug(self, content: Mapping[str, Any], timeout: float) -> dict[str, Any] | None:
        """Pass a front end's debug request on; None if no reply comes in time.

        Raises
        ------
        KernelError
            If the kernel has no debugger.
        """
        relay = self._relay
        if relay is None or not relay.has_debugger:
            raise KernelError(
                f"The kernel of '{self.name}' has no debugger.",
                hint="It takes Python >= 3.7, and ipykernel >= 6 with debugpy in the container.",
            )
        return relay.request_on_control("debug_request", content, timeout)

    def forward(self, message: Mapping[str, Any]) -> None:
        """Pass a front end's comm message on to the kernel."""
        relay = self._relay
        if relay is not None:
            with contextlib.suppress(KernelError):  # another thread stops it
                relay.forward(message)

    def interrupt(self) -> None:
        """Stop the running cell, as the stop button does; from another thread than the one in `run`.

        Raises
        ------
        KernelError
            If its container is gone.
        """
        relay = self._relay
        if relay is not None:
            relay.is_interrupted = True
        self._container.signal(signal.SIGINT)

    def kill(self) -> None:
        """End a kernel that does not react; the container stays, for a restart."""
        self._container.signal(signal.SIGKILL)

    def restart(self) -> None:
        """Start a new kernel in the same container: variables go, what was installed stays.

        Raises
        ------
        KernelError
            If its container is paused, or lacks its runtime folder: it is left as it is.
        """
        self._container.raise_if_no_restart(self.name)
        session = self._container.session
        self._disconnect()
        _run(self._manager.restart_kernel(now=True))
        self._connect()
        if self._container.stays and self._container.session != session:
            self.keep()  # it is noted as one that is being started

    @property
    def _is_restarted_elsewhere(self) -> bool:
        container = self.container
        return container is not None and container.poll() is None and not self.is_alive

    def connect_again(self) -> bool:
        """Go on with the kernel that another notebook has started in the container; tell whether there is one."""
        if not self._is_restarted_elsewhere:
            return False
        self._disconnect()
        self._connect()
        return True

    def keep(self) -> None:
        """Let it outlive this process: another one finds it by its name and workspace.

        Raises
        ------
        KernelError
            If its container is gone, or nobody else could reach it.
        HostFileError
            If that cannot be noted on this machine.
        """
        self._container.raise_if_wiped(
            self.name,
            f"No other notebook can reach it. A new one can be kept: %docker_env {self.name} --fresh",
        )
        try:
            kept.write(self.name, self.describe(), self.engine)
        except OSError as error:
            raise HostFileError(f"'{self.name}' cannot be kept", error) from error
        self._container.keep(keep=True)

    def unkeep(self) -> None:
        """Let it end with this process again, and others that are attached.

        Raises
        ------
        ConfigError
            If it was started with --keep: its container cannot be made to go by itself.
        """
        if self._container.stays:
            raise ConfigError(
                f"'{self.name}' was started with --keep.",
                hint=f"Remove it when you need it no more: %docker_rm -f {self.name}",
            )
        self._container.keep(keep=False)
        kept.forget(self._container.session)

    def detach(self) -> None:
        """Leave it, as Ctrl+P Ctrl+Q leaves a container: one that is kept goes on."""
        self._disconnect()
        if self._provisioner is not None:
            container, self._provisioner.container = self.container, None
            if container is not None:
                container.detach()
        self._manager.leave()

    def raise_if_not_stoppable(self) -> None:
        """Raise `KernelPausedError` where the engine cannot stop the container, but only remove it."""
        container = self.container
        if container is not None and container.stays and container.find_pause():
            raise container.pause_error(self.name)

    def stop(self) -> None:
        """End the kernel and its container, as `docker stop` does. Calling it again, also at once, is no error.

        The container is removed, unless the environment was started with --keep.
        """
        with self._stopping:
            container = self.container
            try:
                self._disconnect()
                if container is not None and container.is_kept:
                    container.ask_to_end()  # first, so that another notebook sees no kernel that died
                if self._manager.provisioner is not None:
                    _run(self._manager.shutdown_kernel(now=True))
            except BaseException:  # an interrupt: nobody knows of it any more
                if container is not None and not container.stays:
                    container.ask_to_end()
                raise
            finally:
                self._manager.cleanup_connection_file()
                if container is not None and not container.stays:
                    kept.forget(container.session)

    def remove(self) -> None:
        """End the kernel and remove its container, whether it was kept or not."""
        if self.container is not None:
            self.container.stays = False
        self.stop()

    def __enter__(self) -> Environment:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An environment that runs, and how it came to that: "new", "warm", "attached" or "again"."""

    environment: Environment
    how: str

    def give_up(self) -> None:
        """Leave it as it was before."""
        if self.how in ("new", "warm"):
            self.environment.remove()
        else:
            self.environment.detach()


def open_environment(
    name: str,
    options: RunOptions,
    folder: Path,
    *,
    tell: Callable[[str], None],
    show: Show,
    begun: Callable[[Environment], None] = lambda _: None,
    warm: Warm = lambda *_: None,
    fresh: bool = False,
) -> Opened:
    """Attach to the kept environment of this name and folder, or start it again, or a new one.

    Parameters
    ----------
    name, options, folder, tell
        As for `Environment`.
    show, begun
        As for `Environment.attach`.
    warm : callable
        Gets what is about to be started, and `begun`; returns one that runs and is the same, None where there is none.
    fresh : bool
        Remove the kept one first.

    Raises
    ------
    ConfigError
        If the kept one was started with other options.
    """
    known = options.name or name
    if (there := kept.find(known, folder)) is not None:
        what, asked = there.info["name"], there.asked
        name, options = kept.meant(name, options, known=known, what=what, asked=asked)
    if fresh:
        while (found := kept.find(known, folder)) is not None:
            tell(f"removing the kept {known!r}")
            kept.remove(found, force=True)
    elif (opened := _open_kept(known, options, folder, tell, show, begun)) is not None:
        return opened
    environment = Environment(name, options, folder, tell)
    if not environment.keeps and (ready := warm(environment, begun)) is not None:
        return Opened(environment=ready, how="warm")
    begun(environment)
    if not environment.keeps:
        return Opened(environment=environment.start(), how="new")
    with kept.starting(environment.name, folder, tell):
        if kept.find(environment.name, folder) is None:
            return Opened(environment=environment.start(), how="new")
    # Another notebook has started it meanwhile.
    opened = _open_kept(environment.name, options, folder, tell, show, begun)
    return opened or open_environment(
        name, options, folder, tell=tell, show=show, begun=begun, warm=warm, fresh=fresh
    )


def _open_kept(
    known: str,
    options: RunOptions,
    folder: Path,
    tell: Callable[[str], None],
    show: Show,
    begun: Callable[[Environment], None],
) -> Opened | None:
    """Return the kept environment of this name, None where there is none."""
    if (found := kept.find(known, folder)) is None:
        return None
    if not found.is_same(options):
        raise ConfigError(
            f"'{known}' is kept, with the options it was started with.",
            hint="Start it anew with --fresh, or a second one with another --name.",
        )
    if found.is_starting or not kept.runs(found):
        with kept.starting(known, folder, tell):
            # Another notebook may have been quicker: its file names the new control address.
            if (found := kept.find(known, folder)) is None:
                return None
            if found.is_starting:  # and was killed in the middle of it
                kept.remove(found, force=True)
                return None
            if not kept.runs(found):
                again = Environment.start_again(found, tell, begun)
                return Opened(environment=again, how="again")
    kept.raise_if_paused(found)
    return Opened(environment=Environment.attach(found, tell, show, begun), how="attached")


def start(name: str, *options: str, folder: str | os.PathLike[str] = ".") -> Environment:
    """Start an environment and return it. With "--keep", attach to the kept one of that name and folder.

    Parameters
    ----------
    name : str
        What to run: a short name such as "tf1.10", an image reference, an environment of `dockml.toml`.
    *options : str
        Options of `docker run`, as words: "--memory", "4g".
    folder : path-like, optional
        The workspace, mounted at the same path. Default is the current folder.

    Returns
    -------
    Environment
        Running. Use it as a context manager, or call its `stop`.

    Raises
    ------
    DockmlError
        If it cannot be started; the message says why and what to do.
    """
    parsed, workspace = parse_words("dockml_magic.start", options), Path(folder).absolute()
    if not parsed.keep:
        return Environment(name, parsed, workspace, tell=_log.info).start()
    return open_environment(name, parsed, workspace, tell=_log.info, show=_print_output).environment


def _print_output(_: Environment, messages: Sequence[Message]) -> None:
    """Print what a script's environment has printed while nobody was attached."""
    for message in messages:
        if message.type == "stream":
            stream = sys.stderr if message.content["name"] == "stderr" else sys.stdout
            stream.write(message.content["text"])


class Environments:
    """The environments of one notebook, by name, and which one is active.

    Attributes
    ----------
    changed : list of callable
        Called after one was started or stopped, also one that waits warm, and after cells go elsewhere; in any
        thread.
    """

    def __init__(self) -> None:
        self._running: dict[str, Environment] = {}
        self._active: Environment | None = None
        self._starting: set[str] = set()
        self._starting_lock = threading.Lock()
        self._handed_over: list[KernelContainer] = []
        self.changed: list[Callable[[], None]] = []

    @property
    def active(self) -> Environment | None:
        """Where cells run; None is the notebook's own kernel."""
        return self._active

    @active.setter
    def active(self, environment: Environment | None) -> None:
        self._active = environment
        self.tell_change()

    def tell_change(self) -> None:
        """Call all of `changed`. What fails in one is not the matter of who changed something."""
        for changed in list(self.changed):
            try:
                changed()
            except Exception:  # noqa: BLE001  # a page that shows it
                _log.debug("told of a change", exc_info=True)

    def __iter__(self) -> Iterator[Environment]:
        return iter(list(self._running.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._running

    def names(self) -> list[str]:
        """Return the names, oldest first."""
        return list(self._running)

    def get(self, name: str) -> Environment:
        """Return the one called `name`. Raises `UnknownEnvironmentError` without one."""
        try:
            return self._running[name]
        except KeyError:
            raise UnknownEnvironmentError(name, self._running) from None

    def add(self, environment: Environment) -> None:
        """Take in one that was started."""
        self._running[environment.name] = environment
        self.tell_change()

    @contextmanager
    def starting(self, name: str) -> Iterator[None]:
        """Keep others away from a name while one is started under it, or its kernel is.

        Raises
        ------
        ConfigError
            If that is going on already, in another thread.
        """
        with self._starting_lock:
            self.raise_if_starting(name)
            self._starting.add(name)
        try:
            yield
        finally:
            self._starting.discard(name)

    def raise_if_starting(self, name: str) -> None:
        """Raise `ConfigError` while another thread starts one under this name, or its kernel."""
        if name in self._starting:
            raise ConfigError(
                f"'{name}' is being started already.",
                hint="Wait for it, or start a second one with another --name.",
            )

    def restart(self, name: str) -> None:
        """Restart the kernel of one.

        Raises
        ------
        ConfigError
            If another thread does that.
        KernelError
            If another thread stops it meanwhile; or see `Environment.restart`.
        """
        environment = self.get(name)
        with self.starting(name):
            try:
                environment.restart()
            finally:
                is_there = self._running.get(name) is environment
                if not is_there:
                    environment.stop()
        if not is_there:
            raise KernelError(
                f"'{name}' was stopped while it restarted.",
                hint=f"Start it again: %docker_env {name}",
            )

    def stop(self, name: str) -> None:
        """Stop one and forget it; cells go back to the notebook's own kernel if it was active."""
        self.get(name).raise_if_not_stoppable()
        self._take_out(name, lambda environment: environment.stop())

    def remove(self, name: str) -> None:
        """Stop one and remove its container, also where it was kept."""
        self._take_out(name, lambda environment: environment.remove())

    def detach(self, name: str) -> None:
        """Leave one that is kept, and forget it here."""
        self._take_out(name, lambda environment: environment.detach())

    def _take_out(self, name: str, end: Callable[[Environment], None]) -> None:
        """Forget one, and end it, whatever comes in between: nobody else knows of it then."""
        environment = self._running.pop(name, None)
        if environment is None:  # another thread was faster
            raise UnknownEnvironmentError(name, self._running)
        try:
            if self._active is environment:
                self._active = None
            self.tell_change()
        finally:
            end(environment)

    def stop_all(self) -> None:
        """Stop all of them but those that are kept, whatever goes wrong with one."""
        for name in self.names():
            with contextlib.suppress(DockmlError):
                if self.get(name).is_kept:
                    self.detach(name)
                else:
                    self.stop(name)

    def hand_over(self, connection_file: str) -> None:
        """Keep the containers for the next kernel of this notebook, which has the same connection file.

        `end` does not end them then. Those that are kept wait by themselves, with their kernels.
        """
        left = [e for e in self if e.has_container and not e.is_kept]
        if left and hand_over(connection_file, [environment.describe() for environment in left]):
            self._handed_over = [e.container for e in left if e.container is not None]

    def take_over(self, connection_file: str, tell: Callable[[str], None]) -> list[Environment]:
        """Adopt what the last kernel of this notebook has handed over; return those whose container lives."""
        adopted = []
        for info in find_handed_over(connection_file):
            with contextlib.suppress(DockmlError):
                adopted.append(Environment.adopt(info, tell))
        end_handover(connection_file)
        for environment in adopted:
            self.add(environment)
        return adopted

    def end(self) -> None:
        """End all of them as this process ends, when no thread can be started any more."""
        for left in self._handed_over:
            left.leave()
        containers = [
            c for e in self if (c := e.container) is not None and c not in self._handed_over
        ]
        # What another notebook is attached to is not ours alone to end.
        lasting = [c for c in containers if c.is_kept or c.state.attached > 1]
        for environment in self:
            environment.close_side()
        for container in lasting:
            container.detach()
        containers = [c for c in containers if c not in lasting]
        for container in containers:
            container.ask_to_end()
        for container in containers:
            container.forget()


def raise_remote_error(reply: Mapping[str, Any]) -> None:
    """Raise what an execute_reply says the code raised."""
    if reply["status"] != "ok":
        ename, lines = str(reply.get("ename", "Aborted")), reply.get("traceback")
        # Front ends show the name of the type: let it be that of the exception over there.
        error = type(harmless(ename[:200]), (RemoteCellError,), {})
        raise error(
            ename,
            str(reply.get("evalue", "")),
            [str(line) for line in lines] if isinstance(lines, list) else [],
        )


class Missed:
    """What a kernel has published while nobody was attached, as the cell that attaches shows it."""

    def __init__(self) -> None:
        self._outputs: list[tuple[Message, list[str]]] = []
        self._size = 0

    @property
    def is_full(self) -> bool:
        """No supervisor records so much."""
        return self._size > _MOST_MISSED

    def add(self, message: Message) -> None:
        """Take a message: what a stream says goes on where it stopped, what was cleared is not there."""
        self._size += sum(len(part) for part in message.parts)
        if message.type == "clear_output":
            self._outputs = [o for o in self._outputs if o[0].parent_id != message.parent_id]
            return
        if message.type != "stream":
            self._outputs.append((message, []))
            return
        text, name = str(message.content["text"]), message.content["name"]
        last, texts = self._outputs[-1] if self._outputs else (None, [])
        if last is not None and last.type == "stream" and last.content["name"] == name:
            texts.append(text)
        else:
            self._outputs.append((message, [text]))

    def outputs(self) -> list[Message]:
        """Return them, each run of a stream as one."""
        for message, texts in self._outputs:
            if len(texts) > 1:
                message.replace_content({**message.content, "text": "".join(texts)})
        return [message for message, _ in self._outputs]


class _Collector:
    """A sink that keeps the output."""

    def __init__(self) -> None:
        self._streams: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._data: list[dict[str, Any]] = []
        self._text = ""

    def publish(self, message: Message) -> None:
        msg_type, content = message.type, message.content
        if msg_type == "stream":
            self._streams[content["name"]].append(content["text"])
        elif msg_type in ("display_data", "execute_result"):
            self._data.append(content["data"])
            if msg_type == "execute_result":
                self._text = content["data"].get("text/plain", "")

    def ask(self, prompt: str, *, password: bool) -> str:
        raise EOFError

    def result(self) -> CellResult:
        return CellResult(
            stdout="".join(self._streams["stdout"]),
            stderr="".join(self._streams["stderr"]),
            text=self._text,
            data=self._data,
        )


class _OneSpec(KernelSpecManager):
    """A kernelspec manager with one kernelspec, in memory."""

    def __init__(self, spec: KernelSpec) -> None:
        super().__init__()
        self._spec = spec

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return self._spec


_loop_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the loop on which this process's kernel managers live, in a thread of its own.

    A notebook's own loop is busy while a cell runs, and ours must not depend on it.
    """
    global _loop
    with _loop_lock:
        if _loop is None:
            loop = asyncio.new_event_loop()
            try:
                threading.Thread(target=loop.run_forever, name="dockml-loop", daemon=True).start()
            except BaseException:
                loop.close()
                raise
            _loop = loop
    return _loop


def _run(work: Awaitable[T], begun: Callable[[Future[T]], None] = lambda _: None) -> T:
    """Run a coroutine on our loop and wait for it; an interrupt cancels it and waits for its clean-up.

    `begun` gets the future, which another thread may cancel.
    """
    ended = threading.Event()

    async def watched() -> T:
        try:
            return await work
        finally:
            ended.set()

    future: Future[T] | None = None
    try:
        with interrupts_later():
            future = asyncio.run_coroutine_threadsafe(watched(), _event_loop())
        begun(future)
        return future.result()
    except (KeyboardInterrupt, CancelledError):
        if future is not None:
            future.cancel()
            ended.wait(10.0)
        raise
