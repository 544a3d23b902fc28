"""The magic that says what is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from IPython.core.magic import line_magic, magics_class

from dockml_magic.display import tell
from dockml_magic.magic_lines import MagicLines

if TYPE_CHECKING:
    from dockml_magic.doctor import Report


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    # The doctor comes when called: most notebooks never need it.
    from dockml_magic.doctor import add_doctor_arguments

    add_doctor_arguments(parser)


@magics_class
class DoctorMagics(MagicLines):
    """The `%docker_` magic about what is wrong."""

    ARGUMENTS = {"docker_doctor": _add_arguments}  # noqa: RUF012 - declared as ClassVar above

    def names_for(self, magic: str) -> Iterable[str]:
        """Return nothing: its line has options only."""
        return []

    @line_magic
    def docker_doctor(self, line: str) -> Report | None:
        """Say what keeps environments from starting, and what to do.

        Looks at the engine, disks, registries, proxies, GPUs, kernel bundles, what is left behind, and Jupyter. ok is
        well, warn works or mostly, fail does not. Nothing is changed.
        """
        if (parsed := self.parse("docker_doctor", line)) is None:
            return None
        from dockml_magic.doctor import examine

        report = examine(parsed.engine)
        if parsed.json:
            tell(report.to_json())
            return None
        return report
