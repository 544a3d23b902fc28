"""The magic that hands values from one kernel to another, and what `%%docker_cell` has of it: `-i` and `-o`."""

from __future__ import annotations

import argparse
import ast
import builtins
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import line_magic, magics_class

from dockml_magic.display import tell
from dockml_magic.environment import Environment, Environments
from dockml_magic.errors import ConfigError, KernelError, NameMissingError
from dockml_magic.magic_lines import MagicLines
from dockml_magic.names import LOCAL
from dockml_magic.options import split_line
from dockml_magic.pull import format_size

if TYPE_CHECKING:
    from dockml_magic.exchange import HandOver, Side
    from dockml_magic.parcels import Parcel

_PATIENCE = 1.0
"""Seconds for a kernel to say which names it has."""

_NAMES = "__import__('json').dumps([n for n in list(globals()) if n[:1] != '_'][:5000])"
_MOST_TYPES = 4
_NOT_VALUES = {*dir(builtins), "exit", "quit", "get_ipython", "In", "Out"}


def _add_how(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--copy", action="store_true", help="a copy that may be written to, not shared memory"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="do not say what went where")


def _add_copy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="[ENV:]NAME,…", help="what is handed over")
    parser.add_argument("target", metavar="[ENV:][NAME,…]", help="where, and under which names")
    _add_how(parser)


def add_cell_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what a cell may take in and give back: `take`, `give`, `copy` and `quiet`."""
    group = parser.add_argument_group("values")
    group.add_argument(
        "-i", dest="take", action="append", default=[], metavar="[NEW=][ENV:]NAME,…",
        help="values that the cell gets before it runs; without ENV, of the notebook's own kernel",
    )  # fmt: skip
    group.add_argument(
        "-o", dest="give", action="append", default=[], metavar="[ENV:][NEW=]NAME,…",
        help="values that it gives when it has run; without ENV, to the notebook's own kernel",
    )  # fmt: skip
    _add_how(group)


@magics_class
class ValueMagics(MagicLines):
    """The `%docker_` magic about values.

    Parameters
    ----------
    shell : InteractiveShell
        The notebook's, whose variables are the own kernel's.
    environments : Environments
        Of the notebook.
    """

    ARGUMENTS = {  # noqa: RUF012 - declared as ClassVar above
        "docker_cp": _add_copy_arguments,
    }

    def __init__(self, shell: InteractiveShell, environments: Environments) -> None:
        super().__init__(shell)
        self._environments = environments

    @line_magic
    def docker_cp(self, line: str) -> None:
        """Hand values to another kernel: %docker_cp [ENV:]NAME[,...] [ENV:][NAME,...].

        %docker_cp tf1.10:summary torch1.1:text   to torch1.1, as text
        %docker_cp tf1.10:a,b torch1.1:           both, under the names that they have
        %docker_cp tf1.10:summary local:          to the notebook's own kernel; without ENV: that is meant, too
        %docker_cp --copy vocab torch1.1:         large arrays are shared memory and read-only unless copied

        Both environments have to run. All of the values go over, or none. Nothing that arrives is ever run: what has
        no meaning without its code is refused. In a cell: %%docker_cell ENV -i NAME,... -o NAME,...
        """
        from dockml_magic.parcels import join_lists, parse_copy

        if (parsed := self.parse_words("docker_cp", join_lists(split_line(line)))) is None:
            return
        if ":" not in parsed.target:
            self._raise_if_environment(parsed.target)
        parcels = parse_copy(parsed.source, parsed.target)
        self.check(parcels)
        self.carry(parcels, copy=parsed.copy, quiet=parsed.quiet)

    def _raise_if_environment(self, word: str) -> None:
        if word in self._environments or word == LOCAL:
            raise ConfigError(
                f"'{word}' is an environment, and could be a name in the notebook's own kernel.",
                hint=f"Write '{word}:' to hand the values to it, or '{LOCAL}:{word}'.",
            )

    def check(self, parcels: Iterable[Parcel], *, here: str = "") -> None:
        """Raise what can be known before anything is started or handed over.

        Parameters
        ----------
        parcels : iterable of Parcel
        here : str
            Where a cell is to run: that need not run yet, and what it gives need not be there.

        Raises
        ------
        UnknownEnvironmentError, KernelError
            If an environment does not run.
        NameMissingError
            If the notebook's own kernel does not have a value.
        """
        for parcel in parcels:
            for name in (parcel.source, parcel.target):
                if name not in (LOCAL, here):
                    self._running(name)
            if parcel.source == LOCAL != here:
                missing = [old for old in parcel.names if old not in self.shell.user_ns]
                if missing:
                    from dockml_magic.exchange import OwnKernel  # here: `%load_ext` does without it

                    raise self._missing(NameMissingError(missing, OwnKernel.title))

    def _running(self, name: str) -> Environment:
        environment = self._environments.get(name)
        if not environment.is_alive:
            raise KernelError(
                f"'{name}' does not run, so it has no values.",
                hint=f"Start it with: %docker_env {name}",
            )
        return environment

    def _missing(self, error: NameMissingError) -> NameMissingError:
        """Return the same error with what may have been meant: who has it, or what is called almost so."""
        names = {f"{name}:": self._names_in(name) for name in (LOCAL, *self._environments.names())}
        asked = ",".join(error.names)
        others = [f"{env}{asked}" for env, there in names.items() if set(error.names) <= {*there}]
        own = next(
            (there for env, there in names.items() if f"'{env[:-1]}'" == error.where),
            names[f"{LOCAL}:"],
        )
        import difflib  # here: `%load_ext` does without it

        near = [
            match
            for name in error.names
            for match in difflib.get_close_matches(name, own, n=2, cutoff=0.6)
        ]
        found = [*dict.fromkeys(near), *others]
        hint = f"Did you mean {' or '.join(found)}? Nothing was handed over." if found else ""
        return NameMissingError(error.names, error.where, hint=hint)

    def carry(self, parcels: Sequence[Parcel], *, copy: bool = False, quiet: bool = False) -> None:
        """Hand values over, and say what went where.

        Raises
        ------
        DockmlError
            If one of them cannot be.
        """
        from dockml_magic.exchange import hand_several_over  # here, as above

        sides = {name: self._side(name) for p in parcels for name in (p.source, p.target)}
        ways = [(sides[p.source], sides[p.target], p.names) for p in parcels]
        try:
            for parcel, done in zip(parcels, hand_several_over(ways, copy=copy), strict=True):
                if not quiet:
                    self._tell(parcel, done)
        except NameMissingError as error:
            raise self._missing(error) from error

    def _tell(self, parcel: Parcel, done: HandOver) -> None:
        from dockml_magic.resources.values.agent import READ_ONLY  # here, as above

        types = list(done.types.values())
        facts = types if len(types) <= _MOST_TYPES else [f"{len(types)} values"]
        if done.bytes:
            facts.append(format_size(done.bytes))
        if READ_ONLY in done.notes:
            facts.append("read-only")
        tell(f"{parcel.in_words}  ({', '.join(facts)})")
        for note in done.notes:
            if note != READ_ONLY:
                tell(f"  {note}")

    def _side(self, name: str) -> Side:
        from dockml_magic.exchange import OwnKernel  # here, as above

        return OwnKernel(self.shell.user_ns) if name == LOCAL else self._running(name).side

    def names_for(self, magic: str) -> Iterable[str]:
        """Return the ENVs of this notebook, as they stand in a line."""
        return [f"{name}:" for name in (LOCAL, *self._environments.names())]

    def complete(self, shell: InteractiveShell, event: Any) -> list[str]:
        """Return options, the ENVs, and the names of the values that the kernel before the colon has."""
        if event.symbol.startswith("-"):
            return super().complete(shell, event)
        return self.complete_values(event.text_until_cursor.split(" ")[-1])

    def complete_values(self, word: str, here: str = LOCAL) -> list[str]:
        """Return what may stand at the end of a list of values, behind its last colon, comma or "=".

        Parameters
        ----------
        word : str
            The list so far.
        here : str
            Whose values they are where no ENV is named.
        """
        with_env = [item for item in word.split(",") if ":" in item]
        env = re.sub(r"^[^\W\d]\w*=(?!=)", "", with_env[-1]).rpartition(":")[0] if with_env else ""
        names = self._names_in(env or here)
        return names if env else [*names, *self.names_for("docker_cp")]

    def _names_in(self, name: str) -> list[str]:
        if name == LOCAL:
            return sorted(_plain_names(self.shell.user_ns))
        if name not in self._environments or not self._environments.get(name).is_alive:
            return []
        return _names_in(self._environments.get(name))


def _plain_names(namespace: Mapping[str, object]) -> list[str]:
    """Return the names that a reader has given."""
    return [name for name in namespace if not name.startswith("_") and name not in _NOT_VALUES]


def _names_in(environment: Environment) -> list[str]:
    """Return the names in an environment; none where its kernel is busy, or no Python."""
    request = {
        "code": "",
        "silent": True,
        "store_history": False,
        "user_expressions": {"names": _NAMES},
        "allow_stdin": False,
        "stop_on_error": False,
    }
    reply = environment.request("execute_request", request, _PATIENCE)
    try:
        text = reply["user_expressions"]["names"]["data"]["text/plain"] if reply else "'[]'"
        names = json.loads(ast.literal_eval(text))
    except (LookupError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    if not isinstance(names, list):
        return []
    return sorted(
        _plain_names(dict.fromkeys(n for n in names if isinstance(n, str) and n.isidentifier()))
    )
