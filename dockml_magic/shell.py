"""Commands in a container: run to their end with their output passed on, or a shell in a terminal."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dockml_magic import labels
from dockml_magic.engine import ContainerState, Engine, Exec, Stream
from dockml_magic.errors import (
    CommandStopped,
    ConfigError,
    ContainerNotRunningError,
    EngineError,
)
from dockml_magic.options import parse_env
from dockml_magic.spec import RUNTIME

_END_PATIENCE = 10.0
"""Seconds that a command has to end after the stop button: the launcher kills it before that."""

_EXIT_PATIENCE = 30.0
"""Seconds that the engine has to say how a command ended, whose output has."""

_CHUNK = 65536

_KILLED = 137
"""How a command ends by SIGKILL, its own or that of all that runs in its container."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command to run in a container; empty fields are as for the kernel.

    Attributes
    ----------
    words : tuple of str
        It; empty for a shell.
    user, workdir : str
        As `docker exec -u` and `-w`.
    env : mapping of str to str
        Variables on top of the container's.
    """

    words: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    def argv(self, container: ContainerState, *, lease: bool) -> list[str]:
        """Return what the engine is to start: our launcher, which becomes the kernel's user and runs it.

        With `lease` it ends the command when its standard input ends.
        """
        options = {
            "become": not self.user,
            "lease": lease,
            "shell": not self.words,
            "given": list(self.env),
        }
        launcher, config = RUNTIME / "launch.py", RUNTIME / "config.json"
        return [
            container.entrypoint[0],
            str(launcher),
            "exec",
            str(config),
            json.dumps(options),
            *self.words,
        ]


def command_from(
    parsed: argparse.Namespace, words: Sequence[str], prog: str, *, may_be_shell: bool = False
) -> Command:
    """Return the command of a line: its options, as `add_exec_arguments` declares them, and its words.

    Raises
    ------
    ConfigError
        If it has no words, and may not be a shell.
    """
    if not words and not may_be_shell:
        raise ConfigError(
            f"{prog} needs a command after '{parsed.name}'.",
            hint=f"Example: {prog} {parsed.name} ls -l    A shell, in a terminal: dockml shell {parsed.name}",
        )
    pairs = (parse_env(text, os.environ) for text in parsed.env or ())
    return Command(
        words=tuple(words),
        user=parsed.user or "",
        workdir=parsed.workdir or "",
        env=dict(pair for pair in pairs if pair),
    )


def run_command(
    engine: Engine,
    container: ContainerState,
    command: Command,
    write: Callable[[Stream, str], None],
) -> int:
    """Run a command in a container and return its exit code.

    Parameters
    ----------
    engine : Engine
        Where the container is.
    container : ContainerState
        As `inspect` gave it.
    command : Command
        What to run.
    write : callable
        Gets its output as it comes.

    Raises
    ------
    ContainerNotRunningError
        If the container does not run, or ends meanwhile.
    CommandStopped
        For an interrupt: the command was ended.
    """
    running = _start(engine, container, command, is_terminal=False)
    decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in _STREAMS}

    def take() -> bool:
        piece = running.read()
        if piece is None:
            return False
        if text := decoders[piece[0]].decode(piece[1]):
            write(piece[0], text)
        return True

    with contextlib.closing(running):
        try:
            while take():
                pass
        except KeyboardInterrupt:
            running.close_input()
            deadline = time.monotonic() + _END_PATIENCE
            while select.select([running], [], [], max(0.0, deadline - time.monotonic()))[0]:
                if not take():
                    break
            raise CommandStopped(" ".join(command.words)) from None
        return _exit_code(engine, container, running)


_STREAMS: tuple[Stream, ...] = ("stdout", "stderr")


def open_shell(engine: Engine, container: ContainerState, command: Command) -> int:
    """Join this terminal to a shell, or a command, in a container until that ends; return its exit code.

    Raises
    ------
    ConfigError
        If this is no terminal.
    ContainerNotRunningError
        If the container does not run, or ends meanwhile.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(
            "A shell needs a terminal, and this is none.",
            hint="Run a command instead: dockml exec ENV COMMAND, or %docker_exec ENV COMMAND",
        )
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    terminal = {"TERM": os.environ.get("TERM", "xterm"), **command.env}
    running = _start(engine, container, replace(command, env=terminal), is_terminal=True)

    def resize(*_: object) -> None:
        size = os.get_terminal_size(screen)
        running.resize(size.lines, size.columns)

    was = termios.tcgetattr(keyboard)
    handlers = {
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, resize),
        **{one: signal.signal(one, _leave) for one in (signal.SIGHUP, signal.SIGTERM)},
    }
    with contextlib.closing(running):
        try:
            tty.setraw(keyboard, termios.TCSADRAIN)  # what was typed already is kept
            resize()
            _join(running, keyboard, screen)
        finally:
            signal.signal(signal.SIGWINCH, handlers.pop(signal.SIGWINCH))
            with contextlib.suppress(termios.error):  # the terminal itself has gone
                termios.tcsetattr(keyboard, termios.TCSADRAIN, was)
            _hang_up(engine, running)
            for one, handler in handlers.items():
                signal.signal(one, handler)
        return _exit_code(engine, container, running)


def _join(running: Exec, keyboard: int, screen: int) -> None:
    """Pass on what is typed, and what is shown, until the command ends."""
    watched = [running.fileno(), keyboard]
    while True:
        ready = select.select(watched, [], [])[0]
        if running.fileno() in ready:
            piece = running.read()
            if piece is None:
                return
            data = memoryview(piece[1])
            while data:
                data = data[os.write(screen, data) :]
        if keyboard in ready:
            typed = os.read(keyboard, _CHUNK)
            if not typed:
                return
            running.write(typed)


def _leave(signum: int, _: FrameType | None) -> NoReturn:
    """Leave. A window that is closed may say so several times, and what is to be ended takes a moment."""
    for one in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(one, signal.SIG_IGN)
    sys.exit(128 + signum)


def _hang_up(engine: Engine, running: Exec) -> None:
    """End a shell whose terminal has gone; an engine does not do so."""
    with contextlib.suppress(EngineError, OSError):
        if (
            running.exit_code() is None
            and engine.facts.shares_files
            and not engine.facts.rootless
            and (pid := running.pid)
        ):
            os.kill(pid, signal.SIGHUP)


def _start(
    engine: Engine, container: ContainerState, command: Command, *, is_terminal: bool
) -> Exec:
    check_running(container)
    _check_launcher(engine, container)
    return engine.exec(
        container.id,
        command.argv(container, lease=not is_terminal),
        user=command.user,
        workdir=command.workdir,
        env=command.env,
        tty=is_terminal,
    )


def _check_launcher(engine: Engine, container: ContainerState) -> None:
    """Raise `ContainerNotRunningError` where somebody has removed the folder with our launcher under a container."""
    shared = container.mounts.get(str(RUNTIME))
    if shared is None or not engine.facts.shares_files or (Path(shared) / "launch.py").is_file():
        return
    name = container.labels.get(labels.NAME, container.name)
    raise ContainerNotRunningError(
        f"The runtime folder of '{name}' was removed: {Path(shared).parent}. Its kernel goes on without.",
        hint=f"A command beside the kernel: docker exec {container.id[:12]} COMMAND",
    )


def check_running(container: ContainerState) -> None:
    """Raise `ContainerNotRunningError` where it does not."""
    if container.status == "running":
        return
    name = container.labels.get(labels.NAME, container.name)
    again = (
        f"Let it go on: docker unpause {container.id[:12]}"
        if container.status == "paused"
        else f"Start it again with: %docker_start {name}"
    )
    raise ContainerNotRunningError(
        f"The container of '{name}' does not run: it is {container.status}.", hint=again
    )


def _exit_code(engine: Engine, container: ContainerState, running: Exec) -> int:
    deadline, magic = time.monotonic() + _EXIT_PATIENCE, "docker_env"
    while time.monotonic() < deadline:
        try:
            code = running.exit_code()
        except EngineError:  # it forgets commands with their container
            code = None
        if code is not None and code != _KILLED:
            return code
        now = engine.inspect(container.id)  # which may be what was killed
        if code is not None and now is not None and now.status in ("running", "paused"):
            return code
        if now is None or now.status not in ("running", "paused"):
            if now is not None and labels.KEPT in now.labels:  # it stays when it is stopped
                magic = "docker_start"
            break
        time.sleep(0.02)
    name = container.labels.get(labels.NAME, container.name)
    raise ContainerNotRunningError(
        f"The container of '{name}' ended before the command in it did.",
        hint=f"Start it again with: %{magic} {name}",
    )
