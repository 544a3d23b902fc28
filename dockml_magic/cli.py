"""The command line: `dockml`, and the same as `jupyter dockml`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jupyter_core.application import JupyterApp

from dockml_magic._version import __version__
from dockml_magic.display import Table, tell, write_stream
from dockml_magic.errors import ConfigError, DockmlError, Stopped
from dockml_magic.options import (
    add_commit_arguments,
    add_engine,
    add_exec_arguments,
    add_load_arguments,
    add_logs_arguments,
    add_pull_arguments,
    add_run_options,
    add_save_arguments,
    add_stats_arguments,
    build_parser,
    options_from,
    split_command,
)

if TYPE_CHECKING:
    from dockml_magic.engine import ContainerState, Engine


_DOCTOR = "doctor"
"""The command that also those without a home can run."""


class _Command(JupyterApp):
    """A command whose words argparse reads, as it does for the magics."""

    version = __version__
    prog = "dockml"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def parse_command_line(self, argv: Sequence[str] | None = None) -> None:
        """Read the words; called by traitlets."""
        parser = build_parser(self.prog, self.description)
        self.add_arguments(parser)
        self.parsed = parser.parse_args(list(sys.argv[1:] if argv is None else argv))


class InstallKernel(_Command):
    """`dockml kernels install`."""

    name = "dockml-kernels-install"
    prog = "dockml kernels install"
    description = "Make NAME a kernel in the launcher."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "what", metavar="NAME", help="a short name, a reference, an environment"
        )
        where = parser.add_mutually_exclusive_group()
        where.add_argument(
            "--sys-prefix", action="store_true", help="into this Python environment (the default)"
        )
        where.add_argument("--prefix", metavar="FOLDER", help="below this folder")
        where.add_argument(
            "--for-user",
            action="store_true",
            help="for all your Python environments; those without dockml_magic cannot start it",
        )
        parser.add_argument(
            "--display-name", default="", metavar="TITLE", help="what the launcher shows"
        )
        add_run_options(parser)

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic import kernelspecs

        kernel = kernelspecs.install(
            self.parsed.what,
            options_from(self.parsed),
            prefix=self.parsed.prefix,
            for_user=self.parsed.for_user,
            display_name=self.parsed.display_name,
        )
        tell(f"Installed kernel {kernel.kernel_name} ({kernel.display_name}) in {kernel.folder}")
        if self.parsed.for_user:
            tell(
                "Your other Python environments list it too, and fail to start it (NoSuchKernel) unless "
                "dockml_magic is installed there."
            )


class ListKernels(_Command):
    """`dockml kernels list`."""

    name = "dockml-kernels-list"
    prog = "dockml kernels list"
    description = "List our kernels, and whether each can start here."

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic import kernelspecs

        rows = [
            [
                kernel.kernel_name,
                kernel.display_name,
                kernelspecs.can_start(kernel),
                str(kernel.folder),
            ]
            for kernel in kernelspecs.installed()
        ]
        head = ["KERNEL", "SHOWN AS", "CAN START", "FOLDER"]
        tell(
            str(
                Table(head, rows, empty="None yet. Install one with: dockml kernels install tf1.10")
            )
        )


class RemoveKernel(_Command):
    """`dockml kernels remove`."""

    name = "dockml-kernels-remove"
    prog = "dockml kernels remove"
    description = "Remove a kernel of ours from the launcher; images and containers stay."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("what", metavar="NAME")

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic import kernelspecs

        for folder in kernelspecs.remove(self.parsed.what):
            tell(f"Removed {folder}")


class Kernels(JupyterApp):
    """`dockml kernels`."""

    name = "dockml-kernels"
    version = __version__
    description = "Kernels in the launcher that run in containers."
    subcommands = {  # noqa: RUF012 - traitlets reads it so
        "install": (InstallKernel, InstallKernel.description),
        "list": (ListKernels, ListKernels.description),
        "remove": (RemoveKernel, RemoveKernel.description),
    }

    def start(self) -> None:
        """Run the command; called by traitlets."""
        if self.subapp is None:
            raise ConfigError(
                "dockml kernels needs a command.", hint="One of: install, list, remove."
            )
        self.subapp.start()


class ListContainers(_Command):
    """`dockml ps`."""

    name = "dockml-ps"
    prog = "dockml ps"
    description = "List your containers of every notebook."

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic import kept
        from dockml_magic.options import RunOptions
        from dockml_magic.planning import engine_for, table_of_containers

        ids = {found.container_id for found in kept.all_kept()}
        tell(str(table_of_containers(engine_for(RunOptions()), ids)))


class Stop(_Command):
    """`dockml stop`."""

    name = "dockml-stop"
    prog = "dockml stop"
    description = """Stop environments that are kept, by their names in this folder, or by their container ids.

One that was started with --keep stays, with what was installed in it: %docker_start NAME. Others go."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("names", nargs="+", metavar="NAME")

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic import kept

        for name in self.parsed.names:
            kept.stop(kept.get(name, Path.cwd()))
            tell(f"Stopped {name!r}.")


class Remove(_Command):
    """`dockml rm`."""

    name = "dockml-rm"
    prog = "dockml rm"
    description = "Remove environments that are kept, by their names in this folder, or by their container ids."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("names", nargs="+", metavar="NAME")
        parser.add_argument("-f", "--force", action="store_true", help="also one that runs")

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic import kept

        for name in self.parsed.names:
            kept.remove(kept.get(name, Path.cwd()), force=self.parsed.force)
            tell(f"Removed {name!r}.")


class ListImages(_Command):
    """`dockml images`."""

    name = "dockml-images"
    prog = "dockml images"
    description = """List images: what there is of a framework, for which Python and CUDA, and what is here.

dockml images                      every framework, and the images on this machine
dockml images tf1.15 --cuda 10     TensorFlow 1.15 on any CUDA 10
dockml images --local              only what is here

NAME is what you give to %docker_env. A fact with a "?" is not confirmed. SURE says whether the tag was seen in
a published source or is derived from its neighbours."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        from dockml_magic.images import add_search_options

        add_search_options(parser)

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from pathlib import Path

        from dockml_magic.images import tables_of_images
        from dockml_magic.planning import local_references
        from dockml_magic.project import find_project

        tell(str(tables_of_images(self.parsed, find_project(Path.cwd()), local_references())))


class Pull(_Command):
    """`dockml pull`."""

    name = "dockml-pull"
    prog = "dockml pull"
    description = "Fetch the image that NAME stands for, or its newest build."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_pull_arguments(parser)

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic.options import RunOptions
        from dockml_magic.planning import engine_for, pull_for

        options = RunOptions(engine=self.parsed.engine)
        engine = engine_for(options)
        pull_for(self.parsed.what, options, Path.cwd(), engine=engine, tell=tell)


class Trust(_Command):
    """`dockml trust`."""

    name = "dockml-trust"
    prog = "dockml trust"
    description = (
        "Allow what this folder's project file asks for beyond the folder, and say what that is."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "names", nargs="*", metavar="NAME", help="environments; all of the file unless given"
        )

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic.options import RunOptions
        from dockml_magic.planning import allow_project
        from dockml_magic.project import find_project

        for name in self.parsed.names or find_project(Path.cwd()).environments:
            asked = allow_project(name, RunOptions(), Path.cwd())
            lines = [f"  - {' '.join(text.split())}" for text in asked]
            said = "allowed, until it changes:" if asked else "asks for nothing to be allowed."
            tell("\n".join([f"'{name}': {said}", *lines]))


def _find_container(parsed: argparse.Namespace) -> tuple[Engine, ContainerState]:
    """Return the container that `name` means, and where it is."""
    from dockml_magic.planning import look_up_container

    return look_up_container(parsed.name, parsed.engine)


class Logs(_Command):
    """`dockml logs`."""

    name = "dockml-logs"
    prog = "dockml logs"
    description = "Show what an environment wrote to its log."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_logs_arguments(parser)

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic.watch import show_log

        asked = self.parsed
        if asked.name is None:
            raise ConfigError("dockml logs needs an ENV.", hint="See them with: dockml ps")
        engine, container = _find_container(asked)
        show_log(
            engine,
            container.id,
            lambda text: write_stream("stdout", text),
            tail=asked.tail,
            follow=asked.follow,
            timestamps=asked.timestamps,
        )


class Execute(_Command):
    """`dockml exec`."""

    name = "dockml-exec"
    prog = "dockml exec"
    description = """Run a command in an environment, as the kernel's user: dockml exec [options] ENV CMD ...

The words after ENV are the command's own. The exit code is the command's."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_exec_arguments(parser)

    def parse_command_line(self, argv: Sequence[str] | None = None) -> None:
        """Read the words up to ENV; called by traitlets."""
        head, self.words = split_command(list(sys.argv[1:] if argv is None else argv))
        super().parse_command_line(head)

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic.shell import command_from, run_command

        command = command_from(self.parsed, self.words, self.prog)
        engine, container = _find_container(self.parsed)
        sys.exit(run_command(engine, container, command, write_stream))


class Shell(Execute):
    """`dockml shell`."""

    name = "dockml-shell"
    prog = "dockml shell"
    description = """Open a shell in an environment, as the kernel's user: dockml shell [options] ENV [CMD ...]

It is bash where there is one, else sh; or CMD, which may be any program that needs a terminal."""

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic.shell import command_from, open_shell

        command = command_from(self.parsed, self.words, self.prog, may_be_shell=True)
        engine, container = _find_container(self.parsed)
        sys.exit(open_shell(engine, container, command))


class Stats(_Command):
    """`dockml stats`."""

    name = "dockml-stats"
    prog = "dockml stats"
    description = "Show what environments use of CPU, memory and GPUs."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_stats_arguments(parser)

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic.options import RunOptions
        from dockml_magic.planning import engine_for, find_container, our_containers
        from dockml_magic.watch import table_of_stats

        engine = engine_for(RunOptions(engine=self.parsed.engine))
        names = self.parsed.names
        found = [find_container(name, engine, Path.cwd()) for name in names]
        tell(str(table_of_stats(engine, found if names else our_containers(engine))))


class Commit(_Command):
    """`dockml commit`."""

    name = "dockml-commit"
    prog = "dockml commit"
    description = "Make an image of an environment: dockml commit ENV IMAGE."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_commit_arguments(parser)
        parser.usage = "%(prog)s [options] ENV IMAGE"  # none is active here

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic.planning import commit_container

        asked = self.parsed
        if len(asked.names) != 2:
            raise ConfigError(
                "dockml commit needs an ENV and an IMAGE.",
                hint="See the environments with: dockml ps. Example: dockml commit ner mine:1",
            )
        asked.name, reference = asked.names
        engine, container = _find_container(asked)
        commit_container(
            engine, container, reference, message=asked.message, author=asked.author, tell=tell
        )


class Save(_Command):
    """`dockml save`."""

    name = "dockml-save"
    prog = "dockml save"
    description = (
        "Write images to a file, compressed and checked; `dockml load` takes it in elsewhere."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_save_arguments(parser)

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic.backup import backup_path, save_images
        from dockml_magic.options import RunOptions
        from dockml_magic.planning import engine_for, find_local_image

        engine = engine_for(RunOptions(engine=self.parsed.engine))
        references = [find_local_image(name, engine, Path.cwd()) for name in self.parsed.images]
        path = backup_path(self.parsed.output, references, Path.cwd())
        save_images(engine, references, path, tell, force=self.parsed.force)


class Load(_Command):
    """`dockml load`."""

    name = "dockml-load"
    prog = "dockml load"
    description = "Take in the images of a file, which is checked before."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_load_arguments(parser)

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic.backup import load_images
        from dockml_magic.options import RunOptions
        from dockml_magic.planning import engine_for

        engine = engine_for(RunOptions(engine=self.parsed.engine))
        for name in load_images(engine, Path(self.parsed.input).expanduser(), tell):
            tell(f"loaded {name}")


def _examine(parsed: argparse.Namespace) -> int:
    from dockml_magic.doctor import examine

    report = examine(parsed.engine)
    tell(report.to_json() if parsed.json else str(report))
    return report.exit_code


class Doctor(_Command):
    """`dockml doctor`."""

    name = "dockml-doctor"
    prog = "dockml doctor"
    description = """Say what keeps environments from starting, and what to do.

Each line says ok, warn (it works, or mostly) or fail (it does not). The exit code is 1 with a fail, else 0."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        from dockml_magic.doctor import add_doctor_arguments

        add_doctor_arguments(parser)

    def start(self) -> None:
        """Run the command; called by traitlets."""
        self.exit(_examine(self.parsed))


class Prune(_Command):
    """`dockml prune`."""

    name = "dockml-prune"
    prog = "dockml prune"
    description = """List what we created and nobody uses, and remove it with --force.

Containers that never started, or have ended and are not kept; images of Dockerfiles that have changed; layers of
stopped pulls and commits; what was made for images that are gone: their extra packages, compiled code, and what is
known of them; kernel bundles that no start has used for 30 days or that were not built to the end; folders and notes
of containers that are gone. Nothing that is not ours, is in use, belongs to another user, or is younger than 10
minutes; no volume and no network."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        from dockml_magic.prune import add_prune_arguments

        add_prune_arguments(parser)

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic.engine import connect
        from dockml_magic.prune import prune

        self.exit(prune(connect(self.parsed.engine), self.parsed))


class LockEnvironments(_Command):
    """`dockml lock`."""

    name = "dockml-lock"
    prog = "dockml lock"
    description = """Write dockml.lock: the images and packages that the environments of the project file come to.

dockml lock                all environments
dockml lock ner            this one; what the lock says of the others stays
dockml lock --check        say what has moved since; exit code 1 if anything has

Images are pulled and packages installed where they are missing. %docker_env NAME starts what the lock says.
What an environment asks for beyond the folder of its file has to be allowed before: dockml trust NAME."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
        parser.add_argument("--check", action="store_true", help="write nothing; has it moved?")
        add_engine(parser.add_argument)

    def start(self) -> None:
        """Run the command; called by traitlets."""
        from dockml_magic.options import RunOptions
        from dockml_magic.planning import check_lock, engine_for, lock_environments

        engine = engine_for(RunOptions(engine=self.parsed.engine))
        if not self.parsed.check:
            lock_environments(self.parsed.names, Path.cwd(), engine, tell)
        elif moved := check_lock(self.parsed.names, Path.cwd(), engine):
            tell("\n".join(moved))
            sys.exit(1)
        else:
            tell("dockml.lock is up to date.")


class Dockml(JupyterApp):
    """`dockml`, and `jupyter dockml`."""

    name = "dockml"
    version = __version__
    description = "Notebook cells in GPU containers of any framework version."
    subcommands = {  # noqa: RUF012 - traitlets reads it so
        "kernels": (Kernels, Kernels.description),
        "ps": (ListContainers, ListContainers.description),
        "stop": (Stop, Stop.description.partition("\n")[0]),
        "rm": (Remove, Remove.description),
        "images": (ListImages, ListImages.description.partition("\n")[0]),
        "pull": (Pull, Pull.description),
        "trust": (Trust, Trust.description),
        "logs": (Logs, Logs.description),
        "exec": (Execute, Execute.description.partition("\n")[0]),
        "shell": (Shell, Shell.description.partition("\n")[0]),
        "stats": (Stats, Stats.description),
        "commit": (Commit, Commit.description),
        "save": (Save, Save.description),
        "load": (Load, Load.description),
        _DOCTOR: (Doctor, Doctor.description.partition("\n")[0]),
        "prune": (Prune, Prune.description.partition("\n")[0]),
        "lock": (LockEnvironments, LockEnvironments.description.partition("\n")[0]),
    }

    def start(self) -> None:
        """Run the command; called by traitlets."""
        if self.subapp is None:
            self.print_help()
            raise ConfigError(
                "dockml needs a command.", hint=f"One of: {', '.join(self.subcommands)}."
            )
        self.subapp.start()


def _check_home() -> None:
    """Raise `ConfigError` for a user without a home, as Jupyter's own code would end with its stack."""
    try:
        Path.home()
    except RuntimeError as error:
        raise ConfigError(
            f"You have no home folder: HOME is not set, and user {os.getuid()} is not in /etc/passwd.",
            hint="Set it to a folder of yours: export HOME=/home/me",
        ) from error


def _examine_without_jupyter(words: Sequence[str]) -> int:
    from dockml_magic.doctor import add_doctor_arguments

    parser = build_parser(Doctor.prog, Doctor.description)
    add_doctor_arguments(parser)
    return _examine(parser.parse_args(words))


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a problem is two lines on stderr and exit code 1."""
    words = sys.argv[1:] if argv is None else argv
    try:
        try:
            _check_home()
        except ConfigError:
            if words[:1] != [_DOCTOR]:
                raise
            sys.exit(_examine_without_jupyter(words[1:]))  # it is there to say what is wrong
        Dockml.launch_instance(argv=argv)
    except DockmlError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    except Stopped as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(130)
