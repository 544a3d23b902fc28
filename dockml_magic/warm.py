"""Environments that wait ready: announced by `warm = true` in the project file, or by what a picker has selected.

One that is announced is started in a thread, without a word, as any other is; `%docker_env` takes it when what it is
asked for is the same in all that makes the container, and starts anew otherwise. Nothing is pulled, built or installed
for it, nothing is started from a project file that the user has not started themselves as it stands, and nothing
where memory is short, and what waits ends when memory gets short. What fails here is silent: the user's own start
says why.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dockml_magic import kept, trust
from dockml_magic.container import KernelContainer, describe_kernel
from dockml_magic.environment import Environment, Environments
from dockml_magic.errors import DockmlError, StartAbandonedError
from dockml_magic.folders import WARM_FILE
from dockml_magic.image_memory import ImageMemory
from dockml_magic.options import RunOptions, parse_publish
from dockml_magic.planning import KernelPlan, engine_for, plan_here
from dockml_magic.project import Project, find_project
from dockml_magic.pull import format_size

log = logging.getLogger(__name__)

VARIABLE = "DOCKML_WARM"
"""Of the notebook's environment: "off" keeps everything from being started unasked."""

LEAST_MEMORY = 1 << 30
"""Bytes that have to be free before one more is started."""

LOOK_AGAIN = 5.0
"""Seconds between two looks whether there is still memory for what waits."""

DEBOUNCE = 0.5
"""Seconds for which a picker's selection has to stay as it is."""

_AFTER_LOAD = 0.05
"""Seconds that a load has to itself, for its reply."""

_SHORT = 0.5
"""Seconds that nobody needs a word about."""

_LOOK_INTERVAL = 0.1
_PATIENCE = 10.0
"""Seconds to wait for one that is given up while it starts."""


def is_on(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether anything may be started before it is asked for."""
    return environ.get(VARIABLE, "").strip().lower() not in ("off", "0", "no", "false")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What decides whether an environment is started before it is asked for.

    Attributes
    ----------
    name : str
    plan : KernelPlan or None
        What a start comes to; None where something would have to be fetched for it.
    is_kept : bool
        One of this name is kept in this folder.
    is_agreed : bool
        The project file has no part in it, or the user has started it themselves, as the file stands.
    is_known : bool
        The image was started here before: what it lacks is here, too.
    free : int
        Bytes of memory.
    takes : int
        Bytes that one has taken so far, at most.
    """

    name: str
    plan: KernelPlan | None
    is_kept: bool = False
    is_agreed: bool = True
    is_known: bool = True
    free: int = 1 << 62
    takes: int = 0


def why_not(facts: Facts) -> str:
    """Return what keeps an environment from being started before it is asked for, "" if nothing does."""
    start = f"%docker_env {facts.name}"
    if facts.is_kept:
        return f"it is kept already. Attach with: {start}"
    if facts.plan is None:
        return f"its image is not here yet, or not with its packages. This gets it: {start}"
    options = facts.plan.choice.options
    if options.keep:
        return "what is started with keep outlives the notebook, and is not started unasked."
    if any(port.host_port for text in options.publish for port in parse_publish(text)):
        return "it publishes ports, which it would take from others while it waits."
    if not facts.is_agreed:
        return f"start it once yourself, as the project file stands; from then on it is: {start}"
    if not facts.is_known:
        return f"its image was never started here, and may need more than is here. This gets it: {start}"
    return why_no_room(facts.free, facts.takes)


def why_no_room(free: int, takes: int) -> str:
    """Return what keeps one that takes so much from being started where so many bytes are free, "" if nothing does."""
    if free < max(LEAST_MEMORY, 2 * takes):
        return f"memory is short: {format_size(free)} are free."
    return ""


@dataclass(kw_only=True, eq=False)
class Waiting:
    """One that waits, or is being started to.

    Attributes
    ----------
    name : str
    environment : Environment
    is_picked : bool
        For a picker's selection, and not for the project file.
    is_ready : bool
    memory : int
        Bytes that it took when it was ready, 0 while that is not known.
    """

    name: str
    environment: Environment
    is_picked: bool = False
    is_ready: bool = False
    memory: int = 0
    done: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def status(self) -> str:
        """As `%docker_ps` says it."""
        return "warm" if self.is_ready else "warming"

    @property
    def kernel(self) -> str:
        """Its kernel in words, "" as long as nothing is known of it."""
        if not self.is_ready or not self.environment.is_alive:
            return ""
        return describe_kernel(self.environment.report).partition(",")[0]

    @property
    def in_words(self) -> str:
        """Its name, and what it takes."""
        if not self.is_ready:
            return f"{self.name} (is being started)"
        return f"{self.name} ({format_size(self.memory)})" if self.memory else self.name


class WarmEnvironments:
    """What waits ready in one notebook.

    Parameters
    ----------
    environments : Environments
        Those that were asked for.
    """

    def __init__(self, environments: Environments) -> None:
        self._environments = environments
        self._lock = threading.Lock()
        self._found: dict[str, Waiting] = {}
        self._over: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._takes = 0
        self._ended = threading.Event()
        self._is_watched = False
        self._picking = threading.Lock()
        self._picked: tuple[str, RunOptions] | None = None
        self._timer: threading.Timer | None = None

    # --- what there is ------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Waiting]:
        with self._lock:
            return iter(list(self._found.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def names(self) -> list[str]:
        """Return the names of what waits or is being started."""
        return [waiting.name for waiting in self]

    def find(self, name: str, options: RunOptions) -> Waiting | None:
        """Return the one that waits, or is being started, for what would be asked for by these; None without one."""
        with self._lock:
            waiting = self._found.get(name)
        return waiting if waiting is not None and waiting.environment.options == options else None

    @property
    def reasons(self) -> Mapping[str, str]:
        """What keeps environments of the project file from waiting, by name."""
        with self._lock:
            running = [*self._found, *self._environments.names()]
            return {name: why for name, why in self._reasons.items() if name not in running}

    @property
    def in_words(self) -> str:
        """A line on what waits and what it takes, "" where nothing does."""
        if not (waiting := list(self)):
            return ""
        told = ", ".join(one.in_words for one in waiting)
        return (
            f"Warm, so that %docker_env NAME takes no time: {told}. "
            f"To end one that you do not need: %docker_stop {waiting[0].name}"
        )

    # --- starting -----------------------------------------------------------------------------

    def begin(self, folder: Path) -> None:
        """Start what the project file of a folder wants warm, one after the other; return at once."""
        if is_on():
            threading.Thread(
                target=self._warm_project, args=(folder,), name="dockml-warm", daemon=True
            ).start()

    def _warm_project(self, folder: Path) -> None:
        if self._ended.wait(_AFTER_LOAD):
            return
        names: tuple[str, ...] = ()
        with contextlib.suppress(DockmlError, OSError):  # the first %docker_env tells
            names = find_project(folder).warm
        for name in names:
            if why := self._warm(name, RunOptions(), folder):
                with self._lock:
                    self._reasons[name] = why

    def _warm(
        self, name: str, options: RunOptions, folder: Path, *, is_picked: bool = False
    ) -> str:
        """Start one and return when it waits; or return what keeps it from that."""
        if self._is_of_no_use(name):
            return ""
        from dockml_magic.segments import find_available_memory

        try:
            engine = engine_for(options)
            plan = plan_here(name, options, folder, engine)
            why = why_not(
                Facts(
                    name=name,
                    plan=plan,
                    is_kept=name in kept.names(folder),
                    is_agreed=plan is None or _is_agreed(find_project(folder), name, plan),
                    is_known=plan is not None and bool(ImageMemory.read(plan.image.id).entry),
                    free=find_available_memory() if engine.facts.shares_files else 1 << 62,
                    takes=self._takes,
                )
            )
            if why or plan is None:
                return why
            # `exclusive`, as a start of ours is that decides for itself.
            given = replace(plan, exclusive=True)
            environment = Environment(name, options, folder, _say_nothing, given)
        except (DockmlError, OSError) as error:
            return _first_line(error)
        waiting = Waiting(name=name, environment=environment, is_picked=is_picked)
        with self._lock:
            if self._is_of_no_use(name):
                return ""
            self._found[name] = waiting
        self._environments.tell_change()
        return self._start(waiting)

    def _is_of_no_use(self, name: str) -> bool:
        """Tell whether one waits, runs or has run already, or this is the end."""
        return (
            self._ended.is_set()
            or name in self._found
            or name in self._over
            or name in self._environments
        )

    def _start(self, waiting: Waiting) -> str:
        why = ""
        try:
            waiting.environment.start()
        except (
            Exception
        ) as error:  # a thread has nobody to tell it to, and a start of the user's will say it
            log.debug("%r could not be started ahead", waiting.name, exc_info=True)
            why = _first_line(error)
        with self._lock:
            is_wanted = self._found.get(waiting.name) is waiting
            waiting.is_ready = is_wanted and not why
            if is_wanted and why:
                del self._found[waiting.name]
        if not is_wanted and not why:  # given up in the last moment
            _stop(waiting.environment)
        waiting.done.set()
        self._environments.tell_change()
        if waiting.is_ready:
            self._measure(waiting)
            self._look_after()
        return why if is_wanted else ""

    def _measure(self, waiting: Waiting) -> None:
        """Ask the engine what it takes, which engines take a second to say, and let other processes see it."""
        environment = waiting.environment
        self._mark(waiting)
        with contextlib.suppress(DockmlError):
            stats = environment.engine.stats(environment.container_id or "-")
            waiting.memory = stats.memory if stats else 0
            self._takes = max(self._takes, waiting.memory)
        self._mark(waiting)

    def _mark(self, waiting: Waiting) -> None:
        """Mark it as one that waits, unless it was taken meanwhile."""
        with self._lock:
            if self._found.get(waiting.name) is waiting:
                _mark(waiting.environment.made, waiting.memory)

    # --- while it waits -----------------------------------------------------------------------

    def _look_after(self) -> None:
        """End what waits when there is no memory for it any more; return at once."""
        with self._lock:
            if self._is_watched:
                return
            self._is_watched = True
        threading.Thread(target=self._watch, name="dockml-warm-memory", daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_AGAIN):
            with self._lock:
                ready = [one for one in self._found.values() if one.is_ready]
                if not ready:
                    self._is_watched = False
                    return
            self._end_what_has_no_room(ready)

    def _end_what_has_no_room(self, ready: Sequence[Waiting]) -> None:
        """End the last one that would not be started now, if it were not here: one at a look."""
        from dockml_magic.segments import find_available_memory

        for waiting in reversed(ready):
            if not waiting.environment.engine.facts.shares_files:  # its memory is another machine's
                continue
            free = find_available_memory()
            if why_no_room(free + waiting.memory, self._takes) and self.drop(waiting.name):
                log.info("%r is not warm any more: %s are free", waiting.name, format_size(free))
                if not waiting.is_picked:
                    with self._lock:
                        self._reasons[waiting.name] = (
                            f"it was, until memory got short: {format_size(free)} were free."
                        )
                return

    # --- a picker's selection -----------------------------------------------------------------

    def pick(self, name: str, options: RunOptions, folder: Path) -> None:
        """Start what a picker has selected, if it stays selected; "" is nothing. Lets what it had before go."""
        if not is_on() or (name and (name, options) == self._picked):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._picked = (name, options)
        self._timer = threading.Timer(
            DEBOUNCE if name else 0.0, self._warm_picked, (name, options, folder)
        )
        self._timer.name, self._timer.daemon = "dockml-warm", True
        self._timer.start()

    def _warm_picked(self, name: str, options: RunOptions, folder: Path) -> None:
        with self._picking:
            for waiting in self:
                if waiting.is_picked:
                    self.drop(waiting.name)
            if name and self._picked == (name, options):
                self._warm(name, options, folder, is_picked=True)

    # --- using, and ending --------------------------------------------------------------------

    def take(
        self, planned: Environment, begun: Callable[[Environment], None] = lambda _: None
    ) -> Environment | None:
        """Return the one that waits, if it is what is about to be started; else end it, and return None.

        Parameters
        ----------
        planned : Environment
            What would be started.
        begun : callable
            Gets one that is still being started; `abandon` ends that.

        Raises
        ------
        StartAbandonedError
            If it was abandoned.
        """
        name = planned.name
        with self._lock:
            self._over.add(name)
            waiting = self._found.get(name)
        if waiting is None:
            return None
        environment = waiting.environment
        made = environment.made  # whose kernelspec may be found only then
        if not (made or environment).plan.is_alike(planned.plan):
            self.drop(name)
            return None
        try:
            begun(environment)
            if not waiting.done.wait(_SHORT):
                planned.tell(f"{name!r} is being started already, to be warm; waiting for it")
            while not waiting.done.wait(_LOOK_INTERVAL):
                pass
        except BaseException:
            self.drop(name)
            raise
        container = environment.made
        is_ready = waiting.is_ready and environment.is_alive
        if not is_ready or container is None or not container.is_made_by(planned.plan):
            self.drop(name)
            if environment.is_abandoned:
                raise StartAbandonedError(name)
            return None
        with self._lock:
            if self._found.pop(name, None) is not waiting:  # ended meanwhile, for its memory
                return None
            _unmark(container)
        environment.decide_anew()
        environment.options = planned.options
        return environment

    def drop(self, name: str) -> bool:
        """End one that waits or is being started; tell whether there was one. Not warmed again."""
        with self._lock:
            waiting = self._found.pop(name, None)
            was_ready = waiting is not None and waiting.is_ready
        if waiting is None:
            return False
        if was_ready:
            _stop(waiting.environment)
        else:
            waiting.environment.abandon()
            waiting.done.wait(_PATIENCE)
        self._environments.tell_change()
        return True

    def stop(self, name: str) -> bool:
        """End one, and start none of that name ahead in this notebook any more; tell whether there was one."""
        self._over.add(name)
        return self.drop(name)

    def note_started(self, name: str, environment: Environment, folder: Path) -> None:
        """Remember that the user has started one themselves, where the project file wants it warm."""
        with contextlib.suppress(DockmlError, OSError):
            project = find_project(folder)
            if name in project.warm and environment.options == RunOptions():
                trust.agree(project, name, _reference(environment.plan))

    def stop_all(self) -> None:
        """End all of them, and start none any more."""
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()
        for name in self.names():
            self.drop(name)

    def end(self) -> None:
        """End all of them as this process ends, when no thread can be started any more."""
        self._ended.set()
        waiting = list(self)
        self._found.clear()
        made = [c for one in waiting if (c := one.environment.made) is not None]
        for container in made:
            container.ask_to_end()
        for container in made:
            container.forget()


def _is_agreed(project: Project, name: str, plan: KernelPlan) -> bool:
    """Tell whether the project file has no part in a start, or the user has started it so themselves."""
    if name in project.environments:
        return trust.has_agreed(project, name, _reference(plan))
    image = plan.choice.image
    return image is None or project.path is None or image.source != str(project.path)


def _reference(plan: KernelPlan) -> str:
    return plan.choice.base or plan.choice.reference


def _stop(environment: Environment) -> None:
    with contextlib.suppress(DockmlError):
        environment.stop()


def _mark(container: KernelContainer | None, memory: int) -> None:
    """Let `dockml ps` in another process see that it waits, and what it takes."""
    if container is not None and container.runtime is not None:
        with contextlib.suppress(OSError):
            (container.runtime.path / WARM_FILE).write_text(str(memory))


def _unmark(container: KernelContainer) -> None:
    if container.runtime is not None:
        (container.runtime.path / WARM_FILE).unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    text = error.message if isinstance(error, DockmlError) else str(error)
    return text.partition("\n")[0]


def _say_nothing(_: str) -> None:
    pass
