"""The magics about environments: read the line, call the floor below, tell the reader. `load` registers all magics."""

from __future__ import annotations

import argparse
import atexit
import time
from collections.abc import Callable, Iterable
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import cell_magic, line_magic, magics_class

from dockml_magic.container import describe_kernel
from dockml_magic.display import Table, tell
from dockml_magic.environment import Environment, Environments, raise_remote_error
from dockml_magic.errors import ConfigError, GpuUnavailableError
from dockml_magic.folders import current_folder
from dockml_magic.image_magics import ImageMagics
from dockml_magic.images import explain
from dockml_magic.magic_lines import MagicLines
from dockml_magic.names import LOCAL, known_names
from dockml_magic.options import RunOptions, add_run_options, options_from
from dockml_magic.planning import (
    choose_here,
    decide_here,
    engine_for,
    local_references,
    table_of_containers,
)
from dockml_magic.project import find_project
from dockml_magic.routing import Router

_LOADED = "_dockml_magics"


def load(shell: InteractiveShell) -> None:
    """Register the magics and take the notebook over; loading twice does nothing."""
    if getattr(shell, _LOADED, None) is not None:
        return
    magics = DockerMagics(shell)
    setattr(shell, _LOADED, magics)
    for lines in magics.all_lines:
        shell.register_magics(lines)
        for magic in lines.ARGUMENTS:
            shell.set_hook("complete_command", lines.complete, str_key=f"%{magic}")
    magics.router.install()
    atexit.register(magics.environments.end)
    magics.take_over()


def unload(shell: InteractiveShell) -> None:
    """Stop the environments and give everything back as it was."""
    magics: DockerMagics | None = getattr(shell, _LOADED, None)
    if magics is None:
        return
    atexit.unregister(magics.environments.end)
    magics.environments.stop_all()
    magics.router.uninstall()
    for lines in magics.all_lines:
        for magic in lines.ARGUMENTS:
            shell.strdispatchers["complete_command"].strs.pop(f"%{magic}", None)
        for kind, names in lines.magics.items():
            for name in names:
                shell.magics_manager.magics[kind].pop(name, None)
        shell.magics_manager.registry.pop(type(lines).__name__, None)
    delattr(shell, _LOADED)


def _add_env_arguments(parser: argparse.ArgumentParser) -> None:
    _add_start_arguments(parser)
    parser.add_argument("--fresh", action="store_true", help="stop NAME first if it runs")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be started, and why; start nothing"
    )


def _add_start_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", metavar="NAME")
    add_run_options(parser)


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="what to look for")


def _add_all(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="those of every notebook")


def _add_environments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: the active one")


@magics_class
class DockerMagics(MagicLines):
    """The `%docker_` magics about the environments of one notebook."""

    ARGUMENTS = {  # noqa: RUF012 - declared as ClassVar above
        "docker_env": _add_env_arguments,
        "%docker_cell": _add_start_arguments,
        "docker_pick": _add_words,
        "docker_ps": _add_all,
        "docker_stop": _add_environments,
        "docker_restart": _add_environments,
    }

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self.environments = Environments()
        self.router = Router(shell, self.environments, self._cell_target)
        self.all_lines: tuple[MagicLines, ...] = (self, ImageMagics(shell))

    def names_for(self, magic: str) -> Iterable[str]:
        """Return the names of environments, and where one can be started those of images."""
        running = self.environments.names()
        if magic in ("docker_env", "%docker_cell"):
            images = known_names(find_project(current_folder()), local_references() or [])
            return [LOCAL, *running, *images]
        return [] if magic in ("docker_pick", "docker_ps") else running

    def take_over(self) -> None:
        """Adopt the environments that were kept while the notebook's own kernel was restarted."""
        kept = self.environments.take_over(self.router.connection_file, tell)
        for environment in kept:
            environment.watch(self.router.watch)
        if kept:
            names = ", ".join(repr(environment.name) for environment in kept)
            tell(
                f"Kept over the restart, without their variables: {names}. "
                f"Go on with: %docker_env {kept[0].name}"
            )

    @line_magic
    def docker_env(self, line: str) -> Any:
        """Start an environment, or switch to it: the next cells run in its container.

        %docker_env NAME [options]   start NAME or switch to it
        %docker_env local            back to the notebook's own kernel
        %docker_env                  where cells run now, and what is running
        %docker_env NAME --dry-run   what would be started, and why; nothing is

        NAME is an environment of dockml.toml, a short name such as tf1.10-gpu or python3.9, ./Dockerfile or a
        folder with one, or any image reference; see %docker_images. The notebook's folder is mounted at the
        same path and is the working directory. Other lines of the cell run in the environment. See all options
        with: %docker_env -h
        """
        if (parsed := self.parse("docker_env", line)) is None:
            return None
        if parsed.what is None:
            tell(self._where_cells_run())
            return self._table_of_environments()
        if parsed.dry_run:
            return _dry_run(parsed.what, options_from(parsed))
        if parsed.what == LOCAL:
            self.environments.active = None
            tell(self._where_cells_run())
        else:
            self.switch_to(parsed.what, options_from(parsed), fresh=parsed.fresh)
        self.router.run_rest_of_cell(line)
        return None

    def _where_cells_run(self) -> str:
        active = self.environments.active
        return (
            f"Cells run in {active.name!r}."
            if active
            else "Cells run in the notebook's own kernel."
        )

    def switch_to(
        self,
        name: str,
        options: RunOptions,
        *,
        fresh: bool = False,
        tell: Callable[[str], None] = tell,
        begun: Callable[[Environment], None] = lambda _: None,
    ) -> None:
        """Have the next cells run in `name`, which is started unless it runs.

        Parameters
        ----------
        name : str
            As the user typed it.
        options : RunOptions
            As the user typed them.
        fresh : bool
            Stop it first if it runs.
        tell : callable
            Gets lines for the user; by default they go to the output of the cell.
        begun : callable
            Gets a new environment when its image is here, before it is started.
        """
        known = options.name or name
        if known in self.environments:
            environment = self.environments.get(known)
            is_same = options in (RunOptions(), RunOptions(name=known), environment.options)
            if not fresh and environment.is_alive:
                if not is_same:
                    raise ConfigError(
                        f"'{known}' is running already, with the options it was started with.",
                        hint="Start it anew with --fresh, or a second one with another --name.",
                    )
                self.environments.active = environment
                tell(self._where_cells_run())
                return
            if not fresh and is_same and environment.is_kept:
                self._resume(environment, tell)
                self.environments.active = environment
                tell(self._where_cells_run())
                return
            self.environments.stop(known)
        self.environments.active = self._start(name, options, tell, begun)

    def _start(
        self,
        name: str,
        options: RunOptions,
        tell: Callable[[str], None],
        begun: Callable[[Environment], None],
    ) -> Environment:
        began = time.perf_counter()
        environment = self._start_beside(name, options, tell, begun)
        image = "" if environment.reference == environment.name else f"{environment.reference}, "
        tell(
            f"Cells run in {environment.name!r}: {image}"
            f"{describe_kernel(environment.report)}; ready in {time.perf_counter() - began:.1f} s."
        )
        return environment

    def _resume(self, environment: Environment, tell: Callable[[str], None] = tell) -> None:
        """Start a kernel in a container that was kept over a restart."""
        environment.restart()
        tell(
            f"{environment.name!r} was kept over the restart: a new kernel in the same container, "
            f"{describe_kernel(environment.report)}."
        )

    @cell_magic
    def docker_cell(self, line: str, cell: str) -> None:
        """Run this cell in an environment, whatever the others do.

        %%docker_cell NAME [options]   start NAME if it does not run yet, and run the cell there
        %%docker_cell local            run the cell in the notebook's own kernel
        """
        where = self._cell_target(line)
        if isinstance(where, Environment):
            raise_remote_error(self.router.run_cell(where, cell))
        elif where == LOCAL:
            self.router.run_locally(cell)

    def _cell_target(self, line: str) -> Environment | str:
        """Return where a `%%docker_cell` runs: an environment, "local", or "" where it asked for help."""
        if (parsed := self.parse("%docker_cell", line)) is None:
            return ""
        options = options_from(parsed)
        name = options.name or parsed.what
        if parsed.what == LOCAL:
            return LOCAL
        if parsed.what is None:
            if self.environments.active is None:
                raise ConfigError(
                    "%%docker_cell needs a NAME.", hint="Example: %%docker_cell tf1.10"
                )
            return self.environments.active
        if name in self.environments:
            environment = self.environments.get(name)
            if environment.is_kept:
                self._resume(environment)
            return environment
        return self._start_beside(parsed.what, options)

    def _start_beside(
        self,
        name: str,
        options: RunOptions,
        to: Callable[[str], None] = tell,
        begun: Callable[[Environment], None] = lambda _: None,
    ) -> Environment:
        with self.environments.starting(options.name or name):
            environment = Environment(name, options, current_folder(), to)
            begun(environment)
            environment.start()
            environment.tell = tell
            environment.watch(self.router.watch)
            self.environments.add(environment)
        return environment

    @line_magic
    def docker_pick(self, line: str) -> Any:
        """Find an image, and start it, in a widget: %docker_pick [WORD ...].

        The words are what the filter begins with: a NAME, or words that all stand in an image's row, such as
        %docker_pick torch 2.1 cu118
        """
        if (parsed := self.parse("docker_pick", line)) is None:
            return None
        from dockml_magic.picker import ImagePicker

        return ImagePicker(" ".join(parsed.words), notebook=self)

    @line_magic
    def docker_ps(self, line: str) -> Table | None:
        """List the environments of this notebook; with -a, your containers of every notebook."""
        if (parsed := self.parse("docker_ps", line)) is None:
            return None
        if parsed.all:
            return table_of_containers(engine_for(RunOptions()))
        return self._table_of_environments()

    def _table_of_environments(self) -> Table:
        rows = []
        for environment in self.environments:
            alive = environment.is_alive
            rows.append(
                [
                    ("* " if environment is self.environments.active else "  ") + environment.name,
                    environment.reference,
                    "running" if alive else "kept" if environment.is_kept else "dead",
                    describe_kernel(environment.report).partition(",")[0] if alive else "",
                    environment.container_id[:12],
                ]
            )
        return Table(
            ["  NAME", "IMAGE", "STATUS", "KERNEL", "CONTAINER ID"],
            rows,
            empty="No environment runs. Start one with: %docker_env NAME",
        )

    @line_magic
    def docker_stop(self, line: str) -> None:
        """Stop environments: %docker_stop NAME [NAME ...]. Their variables are gone."""
        for name in self._environments_in("docker_stop", line):
            was_active = self.environments.active is self.environments.get(name)
            self.environments.stop(name)
            tell(
                f"Stopped {name!r}."
                + (" Cells run in the notebook's own kernel." if was_active else "")
            )

    @line_magic
    def docker_restart(self, line: str) -> None:
        """Restart kernels in place: variables go, what was installed in the container stays."""
        for name in self._environments_in("docker_restart", line):
            self.environments.get(name).restart()
            tell(f"Restarted {name!r}.")

    def _environments_in(self, magic: str, line: str) -> list[str]:
        """Return the environments that a line names, the active one where it names none."""
        if (parsed := self.parse(magic, line)) is None:
            return []
        if parsed.names:
            for name in parsed.names:
                self.environments.get(name)
            return list(dict.fromkeys(parsed.names))
        if self.environments.active is None:
            raise ConfigError(
                f"%{magic} needs a NAME: no environment is active.",
                hint="See them with: %docker_ps",
            )
        return [self.environments.active.name]


def _dry_run(name: str, options: RunOptions) -> Table:
    """Return what a start would do. Nothing is started, pulled or built."""
    engine, folder, problem = engine_for(options), current_folder(), ""
    try:
        choice, image = choose_here(name, options, folder, engine)
    except GpuUnavailableError as error:
        choice, image = decide_here(name, options, folder, engine)
        problem = f"{error.message} {error.hint}"
    return explain(choice, is_here=image is not None, problem=problem)
