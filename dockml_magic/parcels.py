"""What `%docker_cp`, `-i` and `-o` say: which values go from where to where. Nothing is looked up here.

A list of values is NAME,NAME,… An ENV: before a name says whose it is, and holds for the names after it up to the
next one. Without any they are the notebook's own kernel's, whose ENV is "local". ENV is all that stands before the last
colon of an item, as names of images have colons, too.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dockml_magic.errors import ConfigError
from dockml_magic.names import LOCAL

_NEW = re.compile(r"([^\W\d]\w*)\s*=(?!=)\s*(.*)", re.DOTALL)
"""NEW=…; the "==" of tensorflow==1.10 is a part of an ENV."""


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """Values that go from one kernel to another, together.

    Attributes
    ----------
    source, target : str
        Names of environments, or `LOCAL`.
    names : mapping of str to str
        For each value's name at the source, the one that it gets at the target.
    """

    source: str
    target: str
    names: Mapping[str, str]

    @property
    def in_words(self) -> str:
        """Return what goes where, as one would type it: "tf1.10:summary, ids → torch1.1:text, ids"."""
        olds, news = ", ".join(self.names), ", ".join(self.names.values())
        source = "" if self.source == LOCAL else f"{self.source}:"
        if olds == news:
            return f"{source}{olds} → {'the notebook' if self.target == LOCAL else self.target}"
        return f"{source}{olds} → {'' if self.target == LOCAL else f'{self.target}:'}{news}"


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One item of a list: `left` is what stands before its "=", or "", each with the ENV before it, or None."""

    left_env: str | None
    left: str
    env: str | None
    name: str


def join_lists(words: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """Return a line's words with each list that was typed with spaces behind its commas as one word.

    Lists are what stands behind one of `options`, or all words where there are none.
    """
    joined: list[str] = []
    is_list = False
    for word in words:
        if is_list and joined[-1].endswith(","):
            joined[-1] += word
        else:
            is_list = not options or bool(joined and joined[-1] in options)
            joined.append(word)
    return joined


def parse_copy(source: str, target: str) -> list[Parcel]:
    """Return what `%docker_cp SOURCE TARGET` says.

    Raises
    ------
    ConfigError
        If it cannot be understood, or names what cannot be a variable.
    """
    taken: list[tuple[str, str]] = []
    env = LOCAL
    for item in _items(source):
        env = item.left_env or item.env or env
        if item.left:
            raise ConfigError(
                f"'{source}': %docker_cp has the new names in its second word.",
                hint=f"Write: %docker_cp {env}:{item.name} {target.rpartition(':')[0] or LOCAL}:{item.left}",
            )
        taken.append((env, _checked(item.name)))
    to, colon, rest = target.rpartition(":")
    to = to if colon else LOCAL
    if colon and not to:
        raise _no_env(target)
    new = [_checked(name.strip(), new=True) for name in rest.split(",")] if rest.strip() else []
    if not new:
        new = [_checked(name, new=True) for _, name in taken]
    elif len(new) != len(taken):
        raise ConfigError(
            f"'{source}' is {_count(taken)}, '{target}' has room for {len(new)}.",
            hint=f"Give each a name, or leave them out to keep the names: {to}:",
        )
    return _parcels((env, old, to, name) for (env, old), name in zip(taken, new, strict=True))


def parse_in(words: Sequence[str], here: str) -> list[Parcel]:
    """Return what the `-i [NEW=][ENV:]NAME,…` of a cell that runs in `here` say; for errors see `parse_copy`."""
    return _parcels(_read(words, "-i", here))


def parse_out(words: Sequence[str], here: str) -> list[Parcel]:
    """Return what the `-o [ENV:][NEW=]NAME,…` of a cell that runs in `here` say; for errors see `parse_copy`."""
    return _parcels(_read(words, "-o", here))


def _read(words: Sequence[str], option: str, here: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield source, name there, target, name there."""
    for word in words:
        env = LOCAL
        for item in _items(word):
            if option == "-i" and item.left_env is not None:
                raise ConfigError(
                    f"-i {word}: what is left of '=' is a name in '{here}', where the cell runs.",
                    hint=f"Write: -i {item.left}={item.left_env}:{item.name}",
                )
            if option == "-o" and item.left and item.env is not None:
                raise ConfigError(
                    f"-o {word}: what is right of '=' is a name in '{here}', where the cell runs.",
                    hint=f"Write: -o {item.env}:{item.left}={item.name}",
                )
            env = item.left_env or item.env or env
            name, new = _checked(item.name), _checked(item.left or item.name, new=True)
            yield (env, name, here, new) if option == "-i" else (here, name, env, new)


def _items(text: str) -> Iterator[_Item]:
    for part in text.split(","):
        item = part.strip()
        if not item:
            raise ConfigError(
                f"'{text}': a name is missing.",
                hint="Write names with commas between them, as in tf1.10:text,ids",
            )
        env: str | None
        env, colon, rest = item.rpartition(":")
        env = env.strip() if colon else None
        left_env, left = None, ""
        if found := _NEW.fullmatch(rest.strip()):
            left_env, left, env, rest = env, found[1], None, found[2]
        elif env and (found := _NEW.fullmatch(env)):
            left, env = found[1], found[2]
        if env == "" or left_env == "":
            raise _no_env(item)
        yield _Item(left_env=left_env, left=left, env=env, name=rest.strip())


def _parcels(values: Iterable[tuple[str, str, str, str]]) -> list[Parcel]:
    """Return them together where they go the same way, in the order in which they were named."""
    ways: dict[tuple[str, str], dict[str, str]] = {}
    taken: dict[tuple[str, str], tuple[str, str]] = {}
    for source, old, target, new in values:
        if source == target:
            raise ConfigError(
                f"'{old}' would go from {_side(source)} to {_side(target)}: the same one.",
                hint=f"Run there: {new} = {old}"
                if old != new
                else "Name where it is to go, or come from, as ENV:NAME.",
            )
        if taken.setdefault((target, new), (source, old)) != (source, old):
            raise ConfigError(
                f"Two values would be called '{new}' in {_side(target)}.",
                hint="Give one of them another name.",
            )
        if ways.setdefault((source, target), {}).setdefault(old, new) != new:
            raise ConfigError(
                f"'{old}' would get two names in {_side(target)}.",
                hint=f"Hand it over once, and run there: {new} = {ways[source, target][old]}",
            )
    return [
        Parcel(source=source, target=target, names=names)
        for (source, target), names in ways.items()
    ]


def _checked(name: str, *, new: bool = False) -> str:
    """Return a name, if a variable can be called so."""
    if not name:
        raise ConfigError("A name is missing.", hint="Write ENV:NAME, as in tf1.10:text")
    if not name.isidentifier():
        raise ConfigError(
            f"'{name}' is not the name of a variable.",
            hint=f"If it is an environment, write '{name}:'."
            if new
            else "Only variables are handed over. Give it a name first, as in: part = model.weights[0]",
        )
    if new and keyword.iskeyword(name):
        raise ConfigError(
            f"'{name}' is a word of Python's: no variable can be called so.",
            hint="Give it another name there.",
        )
    return name


def _no_env(text: str) -> ConfigError:
    return ConfigError(
        f"'{text}': an environment is missing before the colon.",
        hint=f"The notebook's own kernel is called '{LOCAL}'.",
    )


def _side(name: str) -> str:
    return "the notebook" if name == LOCAL else f"'{name}'"


def _count(values: Sequence[object]) -> str:
    return "one value" if len(values) == 1 else f"{len(values)} values"
