"""The command line: `dockml`, and the same as `jupyter dockml`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jupyter_core.application import JupyterApp

from dockml_magic._version import __version__
from dockml_magic.display import Table, tell
from dockml_magic.errors import ConfigError, DockmlError, PullStopped
from dockml_magic.options import (
    add_engine_option,
    add_pull_arguments,
    add_run_options,
    build_parser,
    options_from,
)


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
        from dockml_magic.options import RunOptions
        from dockml_magic.planning import engine_for, table_of_containers

        tell(str(table_of_containers(engine_for(RunOptions()))))


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


class LockEnvironments(_Command):
    """`dockml lock`."""

    name = "dockml-lock"
    prog = "dockml lock"
    description = """Write dockml.lock: the images and packages that the environments of the project file come to.

dockml lock                all environments
dockml lock ner            this one; what the lock says of the others stays
dockml lock --check        say what has moved since; exit code 1 if anything has

Images are pulled and packages installed where they are missing. %docker_env NAME starts what the lock says."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
        parser.add_argument("--check", action="store_true", help="write nothing; has it moved?")
        add_engine_option(parser)

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
        "images": (ListImages, ListImages.description.partition("\n")[0]),
        "pull": (Pull, Pull.description),
        "lock": (LockEnvironments, LockEnvironments.description.partition("\n")[0]),
    }

    def start(self) -> None:
        """Run the command; called by traitlets."""
        if self.subapp is None:
            self.print_help()
            raise ConfigError(
                "dockml needs a command.", hint="One of: kernels, ps, images, pull, lock."
            )
        self.subapp.start()


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a problem is two lines on stderr and exit code 1."""
    try:
        Dockml.launch_instance(argv=argv)
    except DockmlError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    except PullStopped as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(130)
