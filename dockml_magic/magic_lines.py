"""What our magics share: their words are read by argparse, which also gives their help and completion."""

from __future__ import annotations

import argparse
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics

from dockml_magic.display import tell
from dockml_magic.errors import LineStopped, Stopped
from dockml_magic.options import build_parser, split_line


class MagicLines(Magics):
    """Magics with the arguments of a command line.

    Attributes
    ----------
    ARGUMENTS : mapping of str to callable
        For each magic, by its name as IPython's completer sees it without the first "%": "docker_env",
        "%docker_cell"; what declares its arguments on a parser.
    """

    ARGUMENTS: ClassVar[Mapping[str, Callable[[argparse.ArgumentParser], object]]] = {}
    shell: InteractiveShell

    def __init_subclass__(cls) -> None:
        """Let an interrupt of a line be told without our stack. What is stopped in a cell has one, its own."""
        super().__init_subclass__()
        for magic in cls.ARGUMENTS:
            if not magic.startswith("%") and magic in vars(cls):
                setattr(cls, magic, _tell_stop(magic, vars(cls)[magic]))

    def parser(self, magic: str) -> argparse.ArgumentParser:
        """Return the parser of a magic; its help is the magic's docstring, and its arguments."""
        return _parser(type(self), magic)

    def parse(self, magic: str, line: str) -> argparse.Namespace | None:
        """Return a magic's line as its arguments, None when only help was asked for.

        Raises
        ------
        ConfigError
            If it cannot be understood.
        """
        return self.parse_words(magic, split_line(line))

    def parse_words(self, magic: str, words: list[str]) -> argparse.Namespace | None:
        """Do the same for words."""
        parser = self.parser(magic)
        if "-h" in words or "--help" in words:
            tell(parser.format_help())
            return None
        return parser.parse_args(words)

    def names_for(self, magic: str) -> Iterable[str]:
        """Return the names that may stand in a line of this magic."""
        raise NotImplementedError

    def complete(self, _: InteractiveShell, event: Any) -> list[str]:
        """Return what may stand next in one of our lines; called by IPython.

        `event.line` is the line so far, `event.symbol` the word that is being typed.
        """
        magic = event.line.split(maxsplit=1)[0].removeprefix("%")
        if event.symbol.startswith("-"):
            return sorted(self.parser(magic)._option_string_actions)  # noqa: SLF001  # argparse lists them nowhere else
        return sorted(set(self.names_for(magic)))


@functools.cache  # to build one takes half the time of a switch
def _parser(magics: type[MagicLines], magic: str) -> argparse.ArgumentParser:
    description = inspect.getdoc(getattr(magics, magic.lstrip("%"))) or ""
    parser = build_parser(f"%{magic}", description)
    magics.ARGUMENTS[magic](parser)
    return parser


def _tell_stop(magic: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def told(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Stopped:
            raise
        except KeyboardInterrupt:
            raise LineStopped(magic) from None

    return told
