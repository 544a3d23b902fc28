"""Read TOML with the standard library, or with tomli where Python has none yet (3.10); say where a thing stands."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    if sys.version_info >= (3, 11):
        from tomllib import TOMLDecodeError, loads
    else:
        from tomli import TOMLDecodeError, loads

__all__ = ["TOMLDecodeError", "dotted", "line_of", "loads", "place_of", "quoted"]


def __getattr__(name: str) -> Any:
    if name not in ("TOMLDecodeError", "loads"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_reader(), name)


def _reader() -> Any:
    """Return the reader, which takes 3 ms to load: `%load_ext` does without it where there is no file to read."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib


_BARE = re.compile(r"[A-Za-z0-9_-]+")


def quoted(text: str) -> str:
    """Return a string as TOML writes it; JSON does the same, but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def dotted(keys: Iterable[str]) -> str:
    """Return keys as TOML writes them: `images."tf1.10".gpu`."""
    return ".".join(key if _BARE.fullmatch(key) else quoted(key) for key in keys)


def place_of(error: TOMLDecodeError) -> tuple[str, int | None, int | None]:
    """Return what is wrong in a text that is no TOML, the line, and the column."""
    match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error), re.DOTALL)
    if match is None:
        return str(error).replace("(at end of document)", "at the end of the file"), None, None
    return match[1], int(match[2]), int(match[3])


def line_of(text: str, keys: Sequence[str]) -> int | None:
    """Return the line at which the entry begins that gives `keys` a value; None where none does.

    The parser itself is asked: a text that is cut off after a line can be read just where a statement ends. So the
    entry is in the first of these pieces that has the keys, and begins where the one before it ends.
    """
    lines = text.split("\n")
    texts = [line + "\n" for line in lines[:-1]] + lines[-1:]
    reader = _reader()

    def read(count: int) -> dict[str, Any] | None:
        try:
            values: dict[str, Any] = reader.loads("".join(texts[:count]))
        except reader.TOMLDecodeError:
            return None
        return values

    lacks, has = 0, len(texts)
    whole = read(has)
    if whole is None or not _has(whole, keys):
        return None
    while True:
        middle = max((lacks + has) // 2, lacks + 1)
        for count in itertools.chain(range(middle, has), range(middle - 1, lacks, -1)):
            if (found := read(count)) is not None:
                break
        else:
            return lacks + 1
        if _has(found, keys):
            has = count
        else:
            lacks = count


def _has(data: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True
