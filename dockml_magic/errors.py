"""Every error a reader may meet: what happened, why, and what to do next.

All of them but those for an interrupt (`Stopped`) derive from `DockmlError`, which carries a message and
a hint and shows just these lines in a notebook, never our own stack. `engine` is the only place that sees
an exception of Docker's; it raises one of these from it, so the cause is kept for the log.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shlex
import signal
from collections.abc import Iterable, Sequence

__all__ = [
    "ArchiveError",
    "BackupStopped",
    "CommandFailedError",
    "CommandStopped",
    "CommitStopped",
    "ConfigError",
    "ContainerNameTakenError",
    "ContainerNotRunningError",
    "DockmlError",
    "EngineError",
    "EngineTooOldError",
    "EngineUnreachableError",
    "ExchangeError",
    "GpuUnavailableError",
    "HostFileError",
    "ImageBuildError",
    "ImageInUseError",
    "ImageUnavailableError",
    "KernelBundleError",
    "KernelDiedError",
    "KernelError",
    "KernelMissingError",
    "KernelPausedError",
    "KernelStartTimeoutError",
    "LineStopped",
    "MissingTagError",
    "MountError",
    "NameMissingError",
    "NoMemoryError",
    "NoSuchEnvironmentError",
    "PortTakenError",
    "ProjectFileError",
    "PullStopped",
    "RemoteCellError",
    "StartAbandonedError",
    "StartStopped",
    "Stopped",
    "UnknownContainerError",
    "UnknownEnvironmentError",
    "UnknownNameError",
    "UntrustedProjectError",
    "ValueRefusedError",
]

_STEERING = re.compile(
    r"(?P<colour>\x1b\[[\d;]{0,32}m)"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Colours (SGR), which only look; and what moves a terminal's cursor, writes its clipboard or title, turns the
direction of a text, or cannot be written at all."""


def harmless(text: str) -> str:
    """Return a text with all that could steer a terminal written out: ESC is seen as four letters.

    For what others have chosen (a container's names, reports and logs) and we say. Lines, tabs and colours stay.
    """
    return _STEERING.sub(lambda found: found["colour"] or ascii(found[0])[1:-1], text)


class DockmlError(Exception):
    """Base of all errors raised by dockml_magic.

    What could steer a terminal is written out, whoever said it.

    Parameters
    ----------
    message : str
        What happened, and why if that is known.
    hint : str
        What to do next. May have several lines.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = harmless(message)
        self.hint = harmless(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        """Return the message and the hint, one below the other."""
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def _render_traceback_(self) -> list[str]:
        """Show the message and the hint in a notebook, without our stack (IPython's own hook)."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(DockmlError):
    """An option, a setting or the project file is wrong."""


class UnknownNameError(ConfigError):
    """No environment, catalogue entry or image has this name.

    Attributes
    ----------
    name : str
        What was asked for.
    suggestions : tuple of str
        The nearest known names, best first.
    """

    def __init__(self, name: str, suggestions: Sequence[str], *, hint: str = "") -> None:
        near = ", ".join(f"'{s}'" for s in suggestions)
        did_you_mean = f"Did you mean {near}? " if near else ""
        super().__init__(
            f"'{name}' is not a known name and no image here is called that.",
            hint=did_you_mean
            + (hint or "Any image reference works too, such as python:3.11-slim."),
        )
        self.name = name
        self.suggestions = tuple(suggestions)


class MissingTagError(ConfigError):
    """A reference whose tag is known not to exist.

    Attributes
    ----------
    reference : str
        What was asked for.
    next_best : str
        A name to use instead.
    """

    def __init__(self, reference: str, reason: str, next_best: str, instead: str) -> None:
        super().__init__(
            f"There is no image '{reference}': {reason}.",
            hint=f"Next best: {next_best} ({instead}).",
        )
        self.reference = reference
        self.next_best = next_best


def _in_quotes(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in dict.fromkeys(names)) or "none"


class UnknownEnvironmentError(ConfigError):
    """No environment of this notebook has this name."""

    def __init__(self, name: str, running: Iterable[str]) -> None:
        names = _in_quotes(running)
        super().__init__(
            f"No environment called '{name}' runs in this notebook (running: {names}).",
            hint=f"Start it with: %docker_env {name}",
        )
        self.name = name


class NoSuchEnvironmentError(ConfigError):
    """Nothing that a notebook can stop or remove has this name: it may be running, waiting warm, or kept."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = _in_quotes(known)
        super().__init__(
            f"No environment of this notebook, and none kept in its folder, is called '{name}' (there are: {names}).",
            hint="See them with: %docker_ps",
        )
        self.name = name


class UnknownContainerError(ConfigError):
    """None of this user's containers, of any notebook, is called so."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = _in_quotes(known)
        super().__init__(
            f"None of your environments is called '{name}' (there are: {names}).",
            hint="See them, with their ids, with: %docker_ps -a, or in a terminal: dockml ps",
        )
        self.name = name


class ProjectFileError(ConfigError):
    """The project file says something that cannot be used.

    Attributes
    ----------
    path : str
        The file.
    key : str
        The entry in it, dotted, or "" where the whole file is meant.
    line, column : int or None
        Where it is, if that is known.
    """

    def __init__(
        self,
        path: str,
        key: str,
        problem: str,
        *,
        hint: str = "",
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        where = ":".join(str(part) for part in (path, line, column) if part is not None)
        super().__init__(": ".join(filter(None, (where, key, problem))), hint=hint)
        self.path = path
        self.key = key
        self.line = line
        self.column = column


class UntrustedProjectError(ConfigError):
    """A project file asks for more than its own folder, and the user has not allowed that.

    Attributes
    ----------
    path, name : str
        The file, and the environment in it.
    asked : tuple of str
        What for.
    """

    def __init__(self, path: str, name: str, asked: Sequence[str]) -> None:
        # Each on a line of its own, and none that is made up by what stands in the file.
        listed = "".join(f"\n  - {' '.join(text.split())}" for text in asked)
        super().__init__(
            f"'{name}' of {path} asks for more than its own folder:{listed}",
            hint="If you trust whoever wrote it, allow exactly this: "
            f"%docker_env {shlex.quote(name)} --trust   (or in a terminal: dockml trust {shlex.quote(name)})",
        )
        self.path = path
        self.name = name
        self.asked = tuple(asked)


class EngineError(DockmlError):
    """The engine refused or failed."""


class EngineUnreachableError(EngineError):
    """No engine answers, or we may not use its socket."""


class EngineTooOldError(EngineError):
    """The engine speaks an API older than the one we need."""

    def __init__(self, found: str, needed: str) -> None:
        super().__init__(
            f"The Docker engine is too old: its API is {found}, and {needed} is the oldest that works.",
            hint="Update the engine: version 20.10 (December 2020) or newer.",
        )
        self.found = found
        self.needed = needed


class ImageUnavailableError(EngineError):
    """An image is not here and could not be pulled.

    Attributes
    ----------
    reference : str
        The image that was asked for.
    """

    def __init__(self, reference: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"The image '{reference}' is not available: {reason}", hint=hint)
        self.reference = reference


class ImageInUseError(EngineError):
    """An image cannot be removed, as containers or other images need it.

    Attributes
    ----------
    reference : str
        The image.
    """

    def __init__(self, reference: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"The image '{reference}' is in use: {reason}", hint=hint)
        self.reference = reference


class ImageBuildError(EngineError):
    """A Dockerfile could not be built.

    Attributes
    ----------
    log_tail : str
        The last lines of the build.
    """

    def __init__(self, message: str, *, hint: str = "", log_tail: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log_tail = log_tail

    def __str__(self) -> str:
        """Return message, hint and the last lines of the build."""
        text = super().__str__()
        return (
            f"{text}\nLast lines of the build:\n{_indented(self.log_tail)}"
            if self.log_tail
            else text
        )


class Stopped(KeyboardInterrupt):
    """The reader interrupted something: an interrupt still, which nobody catches by mistake."""

    def _render_traceback_(self) -> list[str]:
        """Show the message in a notebook, without our stack (IPython's own hook)."""
        return [f"{type(self).__name__}: {self}"]


class BackupStopped(Stopped):
    """The reader interrupted a backup, or the loading of one: nothing of it is left."""


class CommandStopped(Stopped):
    """The reader interrupted a command in a container."""

    def __init__(self, command: str) -> None:
        super().__init__(f"'{command}' was stopped.")


class CommitStopped(Stopped):
    """The reader interrupted a commit."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The commit of '{name}' was stopped: there will be no image.\n"
            "Its container is paused until the engine has done what it began; cells go on after that."
        )


class StartStopped(Stopped):
    """The reader interrupted the start of an environment, or the way to one that is kept."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The start of '{name}' was stopped.\nWhat is kept is as it was; nothing else is left."
        )


class LineStopped(Stopped):
    """The reader interrupted one of our lines."""

    def __init__(self, magic: str) -> None:
        super().__init__(f"%{magic} was stopped.")


class PullStopped(Stopped):
    """The reader interrupted a pull.

    Attributes
    ----------
    reference : str
        The image.
    """

    def __init__(self, reference: str) -> None:
        super().__init__(
            f"The pull of '{reference}' was stopped.\n"
            "The same line fetches it; layers that could be kept are not downloaded again."
        )
        self.reference = reference


class ArchiveError(DockmlError):
    """An archive of images cannot be written, or is not whole."""


class CommandFailedError(DockmlError):
    """A command in a container ended with another exit code than 0.

    Attributes
    ----------
    exit_code : int
        As a shell reports it: 128 + signal number where a signal ended it.
    """

    def __init__(self, command: str, name: str, exit_code: int) -> None:
        known = {
            126: "It may not be run there.",
            127: "There is no such program in the container.",
            137: "It was killed (SIGKILL): for memory, perhaps.",
        }
        with contextlib.suppress(ValueError):
            known.setdefault(exit_code, f"{signal.Signals(exit_code - 128).name} ended it.")
        super().__init__(
            f"'{command}' in '{name}' ended with exit code {exit_code}.",
            hint=known.get(exit_code, ""),
        )
        self.exit_code = exit_code


class ContainerNotRunningError(EngineError):
    """The container has ended, is paused, or lacks what runs commands in it."""


class GpuUnavailableError(EngineError):
    """A GPU was asked for and cannot be had."""


class MountError(EngineError):
    """A folder cannot be mounted."""


class HostFileError(DockmlError):
    """A file that we need on this machine cannot be written or read, as on a disk that is full.

    Parameters
    ----------
    what : str
        What could not be done.
    error : OSError
        Why.
    """

    def __init__(self, what: str, error: OSError) -> None:
        where = f": {error.filename}" if error.filename else ""
        super().__init__(
            f"{what}: {error.strerror or error}{where}.",
            hint="Make room there, or set XDG_RUNTIME_DIR (what runs), XDG_STATE_HOME (what is kept) or "
            "XDG_CACHE_HOME (what is made once) to folders that have some. See: df -h"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "Look after that path, then try again.",
        )


class PortTakenError(EngineError):
    """A host port is in use already."""


class ContainerNameTakenError(EngineError):
    """Another container has this name already."""


class KernelError(DockmlError):
    """The container is there, the kernel is not."""


class KernelMissingError(KernelError):
    """The image has nothing a kernel can run on."""


class KernelBundleError(KernelError):
    """The set of packages that would give the image a kernel could not be built."""


class KernelPausedError(KernelError):
    """The container is paused, as `docker pause` does it, and nothing in it hears us.

    One that `stays` when it is stopped cannot be stopped now, as an engine does not stop what is paused.
    """

    def __init__(self, name: str, container_id: str, *, stays: bool) -> None:
        end = f"%docker_rm -f {name}, with all in it" if stays else f"%docker_stop {name}"
        super().__init__(
            f"The container of '{name}' is paused, and what runs in it.",
            hint=f"Let it go on: docker unpause {container_id[:12]}   Or: {end}",
        )


class KernelStartTimeoutError(KernelError, TimeoutError):
    """The kernel did not answer in time."""


class StartAbandonedError(KernelError):
    """The user gave up a start."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The start of '{name}' was stopped; nothing of it is left.")


class KernelDiedError(KernelError):
    """The kernel's process ended.

    Attributes
    ----------
    exit_code : int or None
        As a shell reports it: 128 + signal number where a signal ended it.
    out_of_memory : bool
        The container's memory limit ended it.
    log_tail : str
        The last lines it wrote.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        exit_code: int | None = None,
        out_of_memory: bool = False,
        log_tail: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
        self.out_of_memory = out_of_memory
        self.log_tail = log_tail

    @property
    def how(self) -> str:
        """How it ended, in a word or two: "exit code 3", "killed for memory"; "" where nobody knows."""
        if self.out_of_memory:
            return "killed for memory"
        return "" if self.exit_code is None else f"exit code {self.exit_code}"

    def __str__(self) -> str:
        """Return message, hint and the last lines of the log."""
        text = super().__str__()
        if not self.log_tail:
            return text
        return f"{text}\nLast lines of its log:\n{_indented(self.log_tail)}"


class ExchangeError(DockmlError):
    """A value cannot be handed over. The names are as they were."""


class NameMissingError(ExchangeError):
    """There is no variable of that name.

    Attributes
    ----------
    names : tuple of str
        All that are missing.
    where : str
        The side that lacks them, in words.
    """

    def __init__(self, names: Sequence[str], where: str, *, hint: str = "") -> None:
        listed = ", ".join(f"'{name}'" for name in names)
        super().__init__(
            f"There is no variable {listed} in {where}.",
            hint=hint
            or "Nothing was handed over. Is it the right environment, and did the cell run that makes it?",
        )
        self.names = tuple(names)
        self.where = where


class ValueRefusedError(ExchangeError):
    """A value is of a type that is not handed over."""


class NoMemoryError(ExchangeError):
    """There is not enough memory for a value.

    Attributes
    ----------
    needed, free : int
        Bytes.
    """

    def __init__(self, message: str, needed: int, free: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.needed = needed
        self.free = free


class RemoteCellError(DockmlError):
    """The reader's own code raised in the environment.

    Shows the environment's traceback unchanged.

    Attributes
    ----------
    ename, evalue : str
        Name and text of the exception over there.
    traceback : list of str
        Its rendered lines, with terminal colours.
    """

    def __init__(self, ename: str, evalue: str, traceback: Sequence[str]) -> None:
        super().__init__(f"{ename}: {evalue}" if evalue else ename)
        self.ename = ename
        self.evalue = evalue
        self.traceback = list(traceback)

    def _render_traceback_(self) -> list[str]:
        """Show the traceback of the environment, not ours."""
        return self.traceback or [str(self)]


def _indented(log: str) -> str:
    # A progress bar in a log begins its line anew again and again.
    lines = log.replace("\r\n", "\n").replace("\r", "\n").splitlines()
    return "\n".join(f"  | {harmless(line)}" for line in lines)
