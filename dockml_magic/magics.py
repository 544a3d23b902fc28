"""The magics about environments: read the line, call the floor below, tell the reader. `load` registers all magics."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import cell_magic, line_magic, magics_class

from dockml_magic import kept
from dockml_magic.container import describe_kernel
from dockml_magic.display import Table, tell
from dockml_magic.doctor_magics import DoctorMagics
from dockml_magic.environment import (
    Environment,
    Environments,
    Opened,
    open_environment,
    raise_remote_error,
)
from dockml_magic.errors import (
    ConfigError,
    GpuUnavailableError,
    MountError,
    NoSuchEnvironmentError,
    StartStopped,
    Stopped,
    UntrustedProjectError,
)
from dockml_magic.folders import current_folder
from dockml_magic.image_magics import ImageMagics
from dockml_magic.images import explain
from dockml_magic.life_magics import LifeMagics
from dockml_magic.magic_lines import MagicLines
from dockml_magic.names import LOCAL, known_names
from dockml_magic.options import RunOptions, add_run_options, options_from, split_line
from dockml_magic.planning import (
    allow_project,
    check_trust,
    choose_here,
    decide_here,
    engine_for,
    local_references,
    table_of_containers,
    with_extras,
)
from dockml_magic.project import find_project
from dockml_magic.routing import Place, Router
from dockml_magic.value_magics import ValueMagics, add_cell_arguments
from dockml_magic.warm import Waiting, WarmEnvironments

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
    atexit.register(magics.warm.end)
    magics.take_over()
    with contextlib.suppress(MountError):
        magics.warm.begin(current_folder())


def unload(shell: InteractiveShell) -> None:
    """Stop the environments but those that are kept, and give everything back as it was."""
    magics: DockerMagics | None = getattr(shell, _LOADED, None)
    if magics is None:
        return
    atexit.unregister(magics.environments.end)
    atexit.unregister(magics.warm.end)
    magics.warm.stop_all()
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
    parser.add_argument(
        "--fresh", action="store_true", help="remove NAME first, also where it is kept"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be started, and why; start nothing"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="allow what the project file asks for beyond its folder; it asks again when that changes",
    )


def _add_start_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", metavar="NAME")
    add_run_options(parser)


def _add_cell_arguments(parser: argparse.ArgumentParser) -> None:
    add_cell_arguments(parser)
    _add_start_arguments(parser)


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="what to look for")


def _add_all(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="those of every notebook")


def _add_environments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: the active one")


def _add_stop_arguments(parser: argparse.ArgumentParser) -> None:
    _add_environments(parser)
    parser.add_argument(
        "--all", action="store_true", help="all of this notebook, and those that wait warm"
    )


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME")


def _add_rm_arguments(parser: argparse.ArgumentParser) -> None:
    _add_names(parser)
    parser.add_argument("-f", "--force", action="store_true", help="also one that runs")


def _add_keep_arguments(parser: argparse.ArgumentParser) -> None:
    _add_environments(parser)
    parser.add_argument("--off", action="store_true", help="let it end with the notebook again")


@magics_class
class DockerMagics(MagicLines):
    """The `%docker_` magics about the environments of one notebook."""

    ARGUMENTS = {  # noqa: RUF012 - declared as ClassVar above
        "docker_env": _add_env_arguments,
        "%docker_cell": _add_cell_arguments,
        "docker_pick": _add_words,
        "docker_ps": _add_all,
        "docker_stop": _add_stop_arguments,
        "docker_restart": _add_environments,
        "docker_start": _add_names,
        "docker_rm": _add_rm_arguments,
        "docker_keep": _add_keep_arguments,
    }

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self.environments = Environments()
        self.warm = WarmEnvironments(self.environments)
        self.router = Router(shell, self.environments, self._cell_target)
        self._values = ValueMagics(shell, self.environments)
        self.all_lines: tuple[MagicLines, ...] = (
            self,
            self._values,
            ImageMagics(shell),
            LifeMagics(shell, self.environments),
            DoctorMagics(shell),
        )

    def complete(self, shell: InteractiveShell, event: Any) -> list[str]:
        """Return what may stand next in one of our lines; called by IPython."""
        magic, *words = event.text_until_cursor.split(" ")
        if magic == "%%docker_cell" and len(words) > 1 and words[-2] in ("-i", "-o"):
            here = words[0] if words[-2] == "-o" else LOCAL
            return self._values.complete_values(words[-1], here)
        return super().complete(shell, event)

    def names_for(self, magic: str) -> Iterable[str]:
        """Return the names of environments, and where one can be started those of images."""
        running = self.environments.names()
        if magic in ("docker_stop", "docker_rm"):
            running = [*running, *self.warm.names()]
        if magic in ("docker_start", "docker_stop", "docker_rm", "docker_env"):
            running = [*running, *kept.names(current_folder())]
        if magic in ("docker_env", "%docker_cell"):
            images = known_names(find_project(current_folder()), local_references() or [])
            return [LOCAL, *running, *images]
        return [] if magic in ("docker_pick", "docker_ps") else running

    def take_over(self) -> None:
        """Adopt the environments that were kept while the notebook's own kernel was restarted."""
        adopted = self.environments.take_over(self.router.connection_file, tell)
        for environment in adopted:
            environment.watch(self.router.watch)
        if adopted:
            names = ", ".join(repr(environment.name) for environment in adopted)
            tell(
                f"Kept over the restart, without their variables: {names}. "
                f"Go on with: %docker_env {adopted[0].name}"
            )

    @line_magic
    def docker_env(self, line: str) -> Any:
        """Start an environment, or switch to it: the next cells run in its container.

        %docker_env NAME [options]   start NAME or switch to it
        %docker_env local            back to the notebook's own kernel
        %docker_env                  where cells run now, and what is running
        %docker_env NAME --dry-run   what would be started, and why; nothing is
        %docker_env NAME --keep      let it outlive this notebook; the same line attaches to it again

        NAME is an environment of dockml.toml, a short name such as tf1.10-gpu or python3.9, ./Dockerfile or a
        folder with one, or any image reference; see %docker_images. The notebook's folder is mounted at the
        same path and is the working directory. Other lines of the cell run in the environment. See all options
        with: %docker_env -h
        """
        if (parsed := self.parse("docker_env", line)) is None:
            return None
        if parsed.what is None:
            tell(self._where_cells_run())
            for name, why in self.warm.reasons.items():
                tell(f"{name!r} is not warm: {why}")
            return self._table_of_environments()
        if parsed.trust and parsed.what != LOCAL:
            for asked in allow_project(parsed.what, options_from(parsed), current_folder()):
                tell(f"Allowed: {asked}")
        if parsed.dry_run:
            waits = any(one.name == parsed.what and one.is_ready for one in self.warm)
            return _dry_run(parsed.what, options_from(parsed), waits=waits)
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
            Remove it first, also where it is kept.
        tell : callable
            Gets lines for the user; by default they go to the output of the cell.
        begun : callable
            Gets a new environment when its image is here, before it is started.
        """
        known = options.name or name
        self.environments.raise_if_starting(known)
        if known in self.environments:
            environment = self.environments.get(known)
            is_same = kept.is_same(options, environment.options, known)
            if not fresh and environment.is_alive:
                if not is_same:
                    raise ConfigError(
                        f"'{known}' is running already, with the options it was started with.",
                        hint="Start it anew with --fresh, or a second one with another --name.",
                    )
                if options.keep and not environment.is_kept:
                    raise ConfigError(
                        f"'{known}' is running already, and was not started with --keep.",
                        hint=f"Keep it from now on with: %docker_keep {known}",
                    )
                self.environments.active = environment
                tell(self._where_cells_run())
                return
            if not fresh and is_same and environment.waits_for_kernel:
                self._resume(environment, tell)
                self.environments.active = environment
                tell(self._where_cells_run())
                return
            if not fresh and is_same and environment.connect_again():
                self.environments.active = environment
                tell(f"{self._where_cells_run()} Its kernel is new.")
                return
            name, options = environment.meant(name, options)
            if fresh:
                self.environments.remove(known)
            elif environment.is_kept:
                self.environments.detach(known)
            else:
                self.environments.stop(known)
        self.environments.active = self._start(name, options, tell, begun, fresh=fresh)

    def _start(
        self,
        name: str,
        options: RunOptions,
        tell: Callable[[str], None],
        begun: Callable[[Environment], None],
        *,
        fresh: bool,
    ) -> Environment:
        began = time.perf_counter()
        opened = self._start_beside(name, options, tell, begun, fresh=fresh)
        environment = opened.environment
        image = environment.image_in_words
        image = "" if image == environment.name else f"{image}, "
        how = {
            "new": "",
            "warm": "it was warm; ",
            "attached": "attached to the one that is kept, its variables alive; ",
            "again": "the one that was kept and stopped, with a new kernel and its files as they were; ",
        }[opened.how]
        kernel = describe_kernel(environment.report)
        seconds = time.perf_counter() - began
        digits = 1 if seconds >= 0.1 else 2
        tell(
            f"Cells run in {environment.name!r}: {how}{image}{kernel}; ready in {seconds:.{digits}f} s."
        )
        return environment

    def _resume(self, environment: Environment, tell: Callable[[str], None] = tell) -> None:
        """Start a kernel in a container that was kept over a restart."""
        self.environments.restart(environment.name)
        tell(
            f"{environment.name!r} was kept over the restart: a new kernel in the same container, "
            f"{describe_kernel(environment.report)}."
        )

    @cell_magic
    def docker_cell(self, line: str, cell: str) -> None:
        """Run this cell in an environment, whatever the others do.

        %%docker_cell NAME [options]   start NAME if it does not run yet, and run the cell there
        %%docker_cell local            run the cell in the notebook's own kernel
        %%docker_cell NAME -i text,ids=tf1.10:vocab -o logits
                                       with the notebook's text, and tf1.10's vocab as ids; then hand logits back

        Values go in before the cell runs, and out when it has run and raised nothing. See also: %docker_cp -h
        """
        if (place := self._cell_target(line)) is None:
            return
        if place.environment is None:
            self.router.run_locally(cell)
        else:
            raise_remote_error(self.router.run_cell(place.environment, cell))
        place.fetch()

    def _cell_target(self, line: str) -> Place | None:
        """Return where a `%%docker_cell` runs, with the values there that it takes; None where it asked for help."""
        from dockml_magic.parcels import join_lists, parse_in, parse_out

        words = join_lists(split_line(line), ("-i", "-o"))
        if (parsed := self.parse_words("%docker_cell", words)) is None:
            return None
        options = options_from(parsed)
        name = options.name or parsed.what
        if name is None:
            if self.environments.active is None:
                raise ConfigError(
                    "%%docker_cell needs a NAME.", hint="Example: %%docker_cell tf1.10"
                )
            name = self.environments.active.name
        here = LOCAL if parsed.what == LOCAL else name
        taken, given = parse_in(parsed.take, here), parse_out(parsed.give, here)
        self._values.check([*taken, *given], here=here)
        environment = None if here == LOCAL else self._running(name, parsed.what, options)
        self._values.carry(taken, copy=parsed.copy, quiet=parsed.quiet)

        def fetch() -> None:
            self._values.carry(given, copy=parsed.copy, quiet=parsed.quiet)

        return Place(environment=environment, fetch=fetch)

    def _running(self, name: str, what: str, options: RunOptions) -> Environment:
        """Return the environment called `name`, started where it does not run."""
        self.environments.raise_if_starting(name)
        if name not in self.environments:
            return self._start_beside(what, options).environment
        environment = self.environments.get(name)
        if environment.waits_for_kernel:
            self._resume(environment)
        return environment

    def _start_beside(
        self,
        name: str,
        options: RunOptions,
        to: Callable[[str], None] = tell,
        begun: Callable[[Environment], None] = lambda _: None,
        *,
        fresh: bool = False,
    ) -> Opened:
        known = options.name or name
        with self.environments.starting(known):
            if known in self.environments:
                raise ConfigError(
                    f"'{known}' was started by another thread just now.",
                    hint=f"Use that one: %docker_env {known}",
                )
            opened: Opened | None = None
            try:
                opened = open_environment(
                    name,
                    options,
                    current_folder(),
                    tell=to,
                    show=self.router.show,
                    begun=begun,
                    warm=self.warm.take,
                    fresh=fresh,
                )
                self._take_in(opened.environment)
            except Stopped:  # a pull, which says more
                raise
            except KeyboardInterrupt:
                if opened is not None and known not in self.environments:
                    opened.give_up()
                raise StartStopped(known) from None
            finally:
                self.warm.stop(known)  # one that is something else, or comes too late
            self.warm.note_started(name, opened.environment, current_folder())
        return opened

    def _take_in(self, environment: Environment) -> None:
        environment.tell = tell
        environment.watch(self.router.watch)
        self.environments.add(environment)

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
            ids = {found.container_id for found in kept.all_kept()}
            return table_of_containers(engine_for(RunOptions()), ids)
        return self._table_of_environments()

    def _table_of_environments(self) -> Table:
        rows = []
        for environment in self.environments:
            alive = environment.is_alive
            rows.append(
                [
                    ("* " if environment is self.environments.active else "  ") + environment.name,
                    environment.image_in_words,
                    "running" if alive else "kept" if environment.waits_for_kernel else "dead",
                    describe_kernel(environment.report).partition(",")[0] if alive else "",
                    f"yes, {environment.attached} attached" if environment.is_kept else "",
                    environment.container_id[:12],
                ]
            )
        for waiting in self.warm:
            environment = waiting.environment
            rows.append(
                [
                    "  " + waiting.name,
                    environment.image_in_words,
                    waiting.status,
                    waiting.kernel,
                    "",
                    environment.container_id[:12],
                ]
            )
        note = "\n".join(filter(None, [self.warm.in_words, self._note_of_others()]))
        return Table(
            ["  NAME", "IMAGE", "STATUS", "KERNEL", "KEPT", "CONTAINER ID"],
            rows,
            empty=note or "No environment runs. Start one with: %docker_env NAME",
            note=note,
        )

    def _note_of_others(self) -> str:
        """Return the sentence about what is kept and not attached here, "" without any."""
        others = [name for name in kept.names(current_folder()) if name not in self.environments]
        if not others:
            return ""
        names = ", ".join(sorted(others))
        return f"Kept, and not attached here: {names}. Attach with: %docker_env NAME"

    @line_magic
    def docker_stop(self, line: str) -> None:
        """Stop environments: %docker_stop NAME [NAME ...]. Their variables are gone.

        %docker_stop --all   all of this notebook, and those that wait warm

        As with docker run --rm their containers go, too. One that was started with --keep stays, with what was
        installed in it: %docker_start NAME. One that is kept can be stopped from any notebook of its folder.
        """
        if (parsed := self.parse("docker_stop", line)) is None:
            return
        names = parsed.names
        if parsed.all:
            names = [*names, *self.environments.names(), *self.warm.names()]
            if not names:
                tell("No environment runs.")
                return
        for name, environment in self._named("docker_stop", names):
            if isinstance(environment, Waiting):
                if self.warm.stop(name):
                    tell(
                        f"Stopped {name!r}, which waited warm. It is not warmed again in this notebook."
                    )
                continue
            was_active = environment is not None and environment is self.environments.active
            if isinstance(environment, Environment):
                stays = environment.container is not None and environment.container.stays
                self.environments.stop(name)
            else:
                stays = environment.stays
                kept.stop(environment)
            tell(
                f"Stopped {name!r}."
                + (f" It is kept (%docker_start {name})." if stays else "")
                + (" Cells run in the notebook's own kernel." if was_active else "")
            )

    @line_magic
    def docker_start(self, line: str) -> None:
        """Start environments again that were started with --keep and stopped: %docker_start NAME [NAME ...].

        Their kernels are new; what was installed in their containers is there. Cells run where they ran.
        """
        if (parsed := self.parse("docker_start", line)) is None:
            return
        for name in parsed.names:
            found = kept.find(name, current_folder())
            is_here = name in self.environments and self.environments.get(name).is_alive
            if is_here or (found is not None and kept.runs(found)):
                tell(f"{name!r} runs already. Go on with: %docker_env {name}")
                continue
            if found is None:
                raise ConfigError(
                    f"There is nothing to start: '{name}' is gone, or never was. Only what was started "
                    "with --keep stays when it is stopped.",
                    hint=f"Start a new one with: %docker_env {name}",
                )
            self._start_again(name)
            tell(f"Started {name!r}, with a new kernel. Go on with: %docker_env {name}")

    def _start_again(self, name: str) -> None:
        """Start one that is kept and has ended; cells run where they ran."""
        was_active = False
        if name in self.environments:
            was_active = self.environments.get(name) is self.environments.active
            self.environments.detach(name)
        opened = self._start_beside(name, RunOptions())
        if was_active:
            self.environments.active = opened.environment

    @line_magic
    def docker_rm(self, line: str) -> None:
        """Remove environments with their containers: %docker_rm [-f] NAME [NAME ...].

        One that runs is only removed with -f. Its variables and what was installed are gone; files in the workspace
        are not touched.
        """
        if (parsed := self.parse("docker_rm", line)) is None:
            return
        for name, environment in self._named("docker_rm", parsed.names):
            was_active = environment is not None and environment is self.environments.active
            if isinstance(environment, Waiting):
                self.warm.stop(name)
            elif not isinstance(environment, Environment):
                kept.remove(environment, force=parsed.force)
            elif environment.is_alive and not parsed.force:
                raise ConfigError(
                    f"'{name}' runs.", hint=f"Stop it first, or: %docker_rm -f {name}"
                )
            else:
                self.environments.remove(name)
            tell(
                f"Removed {name!r}."
                + (" Cells run in the notebook's own kernel." if was_active else "")
            )

    @line_magic
    def docker_keep(self, line: str) -> None:
        """Let environments outlive this notebook: %docker_keep [NAME ...].

        %docker_keep NAME        any notebook of this folder attaches to it with %docker_env NAME, its variables alive
        %docker_keep --off NAME  it ends with this notebook again

        What it prints while nobody is attached is shown by the notebook that attaches, the newest 16 MiB. One that
        was not started with --keep goes when it is stopped.
        """
        if (parsed := self.parse("docker_keep", line)) is None:
            return
        for name in self._names_or_active("docker_keep", parsed.names):
            environment = self.environments.get(name)
            if parsed.off:
                environment.unkeep()
                tell(f"{name!r} ends with this notebook.")
                continue
            environment.keep()
            stays = environment.container is not None and environment.container.stays
            tell(
                f"{name!r} outlives this notebook. Attach to it again with: %docker_env {name}"
                + ("" if stays else "   It was started without --keep: stopping it removes it.")
            )

    def _named(
        self, magic: str, names: list[str]
    ) -> Iterable[tuple[str, Environment | Waiting | kept.Kept]]:
        """Return what a line names: an environment of this notebook, one that waits warm, or one that is kept."""
        found: list[tuple[str, Environment | Waiting | kept.Kept]] = []
        warm = {waiting.name: waiting for waiting in self.warm}
        for name in self._names_or_active(magic, names, check=False):
            if name in self.environments:
                found.append((name, self.environments.get(name)))
            elif name in warm:
                found.append((name, warm[name]))
            elif (other := kept.find(name, current_folder())) is not None:
                found.append((name, other))
            else:
                known = [*self.environments.names(), *warm, *kept.names(current_folder())]
                raise NoSuchEnvironmentError(name, known)
        return found

    @line_magic
    def docker_restart(self, line: str) -> None:
        """Restart kernels in place: variables go, what was installed in the container stays."""
        if (parsed := self.parse("docker_restart", line)) is None:
            return
        for name in self._names_or_active("docker_restart", parsed.names):
            environment = self.environments.get(name)
            if environment.has_container:
                self.environments.restart(name)
                tell(f"Restarted {name!r}.")
            elif environment.is_kept and kept.find(name, current_folder()) is not None:
                self._start_again(name)
                tell(f"Started {name!r}, with a new kernel: its container had ended.")
            else:
                self.environments.restart(name)
                tell(
                    f"Started {name!r} in a new container: the old one was gone, with what was installed in it."
                )

    def _names_or_active(self, magic: str, names: list[str], *, check: bool = True) -> list[str]:
        """Return the environments that a line names, the active one where it names none."""
        if names:
            for name in names:
                if check:
                    self.environments.get(name)
            return list(dict.fromkeys(names))
        if self.environments.active is None:
            raise ConfigError(
                f"%{magic} needs a NAME: no environment is active.",
                hint="See them with: %docker_ps",
            )
        return [self.environments.active.name]


def _dry_run(name: str, options: RunOptions, *, waits: bool) -> Table:
    """Return what a start would do. Nothing is started, pulled or built."""
    engine, folder, problem = engine_for(options), current_folder(), ""
    try:
        choice, image = choose_here(name, options, folder, engine)
    except GpuUnavailableError as error:
        choice, image = decide_here(name, options, folder, engine)
        problem = f"{error.message} {error.hint}"
    try:
        check_trust(name, choice, folder)
    except UntrustedProjectError as error:
        problem = f"{problem}\n{error}".strip()
    choice, image = with_extras(choice, image, engine)
    warm = "a kernel waits ready, for a start without options" if waits else ""
    return explain(choice, is_here=image is not None, problem=problem, warm=warm)
