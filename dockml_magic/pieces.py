"""A cell as its pieces: our own lines, and the code between them. Nothing is parsed as Python."""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "%docker_"
CELL_MAGIC = "%%docker_cell"
_OURS = re.compile(r"%docker_|%(?:un|re)?load_ext\s+dockml_magic\b")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a cell: one of our own lines, or code between them."""

    code: str
    is_ours: bool


def split_cell(code: str) -> list[Piece]:
    """Return a cell as its pieces, in order.

    Our own lines are those that begin with `%docker_` (or load and unload us) at the left margin,
    outside a triple-quoted string; a backslash at their end continues them. A cell that begins with
    `%%docker_` is ours as a whole; another cell magic keeps its body.
    """
    if code.lstrip().startswith("%" + PREFIX):
        return [Piece(code=code, is_ours=True)]
    pieces: list[Piece] = []
    block: list[str] = []
    quotes = {"'''": 0, '"""': 0}
    in_cell_magic = False

    def end_block() -> None:
        if "".join(block).strip():
            pieces.append(Piece(code="".join(block), is_ours=False))
        block.clear()

    for line in code.splitlines(keepends=True):
        if pieces and pieces[-1].is_ours and not block and pieces[-1].code.endswith("\\"):
            pieces[-1] = Piece(code=f"{pieces[-1].code}\n{line.rstrip()}", is_ours=True)
            continue
        in_string = any(count % 2 for count in quotes.values())
        if not in_string and not in_cell_magic and _OURS.match(line):
            end_block()
            pieces.append(Piece(code=line.rstrip("\n"), is_ours=True))
            continue
        if not "".join(block).strip() and line.startswith("%%"):
            in_cell_magic = True
        for quote in quotes:
            quotes[quote] += line.count(quote)
        block.append(line)
    end_block()
    return pieces


def has_own_line(code: str) -> bool:
    """Tell whether a cell has a line of ours, quickly where it has none."""
    if PREFIX not in code and "dockml_magic" not in code:
        return False
    return any(piece.is_ours for piece in split_cell(code))
