"""The magics that look into environments, run commands in them and make images of them."""

from __future__ import annotations

from collections.abc import Iterable

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import line_magic, magics_class

from dockml_magic import labels
from dockml_magic.display import Table, tell, write_stream
from dockml_magic.engine import ContainerState, Engine
from dockml_magic.environment import Environments
from dockml_magic.errors import (
    CommandFailedError,
    ConfigError,
    ContainerNotRunningError,
    EngineError,
)
from dockml_magic.magic_lines import MagicLines
from dockml_magic.options import (
    RunOptions,
    add_commit_arguments,
    add_exec_arguments,
    add_logs_arguments,
    add_stats_arguments,
    split_command,
    split_line,
)
from dockml_magic.planning import commit_container, engine_for, look_up_container, our_containers


@magics_class
class LifeMagics(MagicLines):
    """The `%docker_` magics about containers that are there.

    Parameters
    ----------
    shell : InteractiveShell
        The notebook's.
    environments : Environments
        Of the notebook, whose names come before those of other notebooks.
    """

    ARGUMENTS = {  # noqa: RUF012 - declared as ClassVar above
        "docker_logs": add_logs_arguments,
        "docker_exec": add_exec_arguments,
        "docker_stats": add_stats_arguments,
        "docker_commit": add_commit_arguments,
    }

    def __init__(self, shell: InteractiveShell, environments: Environments) -> None:
        super().__init__(shell)
        self._environments = environments

    def names_for(self, magic: str) -> Iterable[str]:
        """Return the names of this notebook's environments, and of the user's other containers."""
        names = self._environments.names()
        try:
            others = our_containers(engine_for(RunOptions()))
        except EngineError:
            return names
        return [*names, *(name for found in others if (name := found.labels.get(labels.NAME)))]

    def _find(
        self, magic: str, name: str | None, engine: str | None
    ) -> tuple[Engine, ContainerState]:
        """Return an environment's container and where it is; the active one's where none is named."""
        if name is None:
            if self._environments.active is None:
                raise ConfigError(
                    f"%{magic} needs an ENV: no environment is active.",
                    hint="See them with: %docker_ps -a",
                )
            name = self._environments.active.name
        if name in self._environments and engine is None:
            environment = self._environments.get(name)
            state = environment.engine.inspect(environment.container_id or "-")
            if state is None:
                raise ContainerNotRunningError(
                    f"The container of '{name}' is gone.",
                    hint=f"Start it again with: %docker_env {name}",
                )
            return environment.engine, state
        return look_up_container(name, engine)

    @line_magic
    def docker_logs(self, line: str) -> None:
        """Show what an environment wrote to its log: %docker_logs [ENV] [-f] [--tail N] [-t].

        What cells print is in the notebook; here is what comes from beside them: crashes, warnings of C code, what
        a process in the background writes. With -f it goes on until the stop button, or the container's end.
        """
        if (parsed := self.parse("docker_logs", line)) is None:
            return
        from dockml_magic.watch import show_log

        engine, container = self._find("docker_logs", parsed.name, parsed.engine)
        show_log(
            engine,
            container.id,
            lambda text: write_stream("stdout", text),
            tail=parsed.tail,
            follow=parsed.follow,
            timestamps=parsed.timestamps,
        )

    @line_magic
    def docker_exec(self, line: str) -> None:
        """Run a command in an environment's container: %docker_exec [-e KEY=VALUE] [-w FOLDER] [-u USER] ENV CMD ...

        It runs as the kernel's user, in the kernel's folder, beside the kernel. The words after ENV are the
        command's own; no shell reads them: for one, %docker_exec ENV sh -c '...'. The stop button ends it.
        For an interactive shell, in a terminal: dockml shell ENV
        """
        head, words = split_command(split_line(line))
        if (parsed := self.parse_words("docker_exec", head)) is None:
            return
        from dockml_magic.shell import command_from, run_command

        command = command_from(parsed, words, "%docker_exec")
        engine, container = self._find("docker_exec", parsed.name, parsed.engine)
        code = run_command(engine, container, command, write_stream)
        if code:
            raise CommandFailedError(" ".join(words), parsed.name, code)

    @line_magic
    def docker_stats(self, line: str) -> Table | None:
        """Show what environments use of CPU, memory and GPUs: %docker_stats [ENV ...]."""
        if (parsed := self.parse("docker_stats", line)) is None:
            return None
        from dockml_magic.watch import table_of_stats

        if parsed.names:
            found = [self._find("docker_stats", name, parsed.engine) for name in parsed.names]
            return table_of_stats(found[0][0], [container for _, container in found])
        engine = engine_for(RunOptions(engine=parsed.engine))
        return table_of_stats(engine, our_containers(engine))

    @line_magic
    def docker_commit(self, line: str) -> None:
        """Make an image of an environment: %docker_commit [ENV] IMAGE [-m MESSAGE] [-a AUTHOR].

        What was installed in the container is in it. The workspace and other mounts are not, and neither are the
        variables that the container was given (-e, proxies, pip's settings): its configuration is that of the image
        it was started from. Start it with: %docker_env IMAGE
        """
        if (parsed := self.parse("docker_commit", line)) is None:
            return
        *names, reference = parsed.names
        if len(names) > 1:
            raise ConfigError(
                "%docker_commit takes an ENV and an IMAGE, and no more names.",
                hint="Example: %docker_commit ner mine:1 -m 'with spaCy'",
            )
        name = names[0] if names else None
        engine, container = self._find("docker_commit", name, parsed.engine)
        commit_container(
            engine, container, reference, message=parsed.message, author=parsed.author, tell=tell
        )
