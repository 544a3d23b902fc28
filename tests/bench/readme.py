"""``python -m tests.bench.readme [CSV]``: put what `make bench` measured into README: the goals, and a picture.

One line for each figure that has a goal. The other figures, and the spread of the others, are in the CSV.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.plot import plot
from tests.bench.sessions import ROOT
from tests.bench.table import US, Figure, read

README = ROOT / "README.md"
PICTURE = ROOT / "notebooks" / "bench.svg"
BEGIN, END = "<!-- make bench-readme: -->", "<!-- until here -->"
HEAD = ("figure", "dockml_magic", "beside it, and we as a multiple of it", "goal", "met")

SHOWN = (
    ("start", "ipykernel:7"),
    ("start", "bare:3.11"),
    ("start", "tensorflow:1.10.0"),
    ("pass", "`pass`, dockml/ipykernel:7"),
    ("pass", "relaying adds"),
    ("switch", ""),
    ("restart", "restart to"),
    ("interrupt", "interrupt of a sleeping cell, dockml/ipykernel:7"),
    ("stop", ""),
    ("values", "1 MB float32, container to container"),
    ("values", "100 MB float32, container to container"),
    ("values", "1 GB float32, container to container"),
)
"""Panels of the picture: a row, and what its figure's title has in it."""

Line = Mapping[str, str]


def table(figures: Sequence[Sequence[Line]]) -> str:
    """Return the table in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for figure in figures:
        if any(line["goal"] != "-" for line in figure):
            cells = (_title(figure), _ours(figure), _others(figure), _goals(figure), _met(figure))
            lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _title(figure: Sequence[Line]) -> str:
    return figure[0]["figure"].replace("|", "\\|")


def _ours(figure: Sequence[Line]) -> str:
    parts = []
    for line in figure:
        if _is_ours(line):
            name = line["who"].removeprefix(US).strip(", ")
            parts.append(f"{name}: {_value(line)}" if name else _value(line))
    return "<br>".join(parts)


def _others(figure: Sequence[Line]) -> str:
    parts = []
    for line in figure:
        if not _is_ours(line):
            ratio = re.match(r"[\d.]+x", line["us beside it"])
            beside = f" ({ratio[0]})" if ratio and line["unit"] else ""  # not of counts
            parts.append(f"{line['who']}: {_value(line)}{beside}")
    return "<br>".join(parts)


def _goals(figure: Sequence[Line]) -> str:
    """Return the goals in words, those that are alike together."""
    names: dict[str, list[str]] = {}
    for line in figure:
        if line["goal"] != "-":
            names.setdefault(line["goal"], []).append(line["who"])
    parts = []
    for goal, whose in names.items():
        it = whose[0] if len(whose) == 1 else "each"
        words = goal.replace("<=", "≤").replace("<", "&lt;")
        parts.append(re.sub(r"\bit\b", it, re.sub(r"(\d\.\d\dx)", rf"\1 {it}", words)))
    return "<br>".join(parts)


def _met(figure: Sequence[Line]) -> str:
    """Return "yes", or beside whom not, and by how much."""
    missed = [line for line in figure if line["met"].startswith("NO")]
    if missed:
        alone = sum(line["met"] != "-" for line in figure) == 1
        words = (
            line["met"].lower() if alone else f"{line['met'].lower()} ({line['who']})"
            for line in missed
        )
        return "<br>".join(f"**{word}**" for word in words)
    return "yes" if any(line["met"] == "yes" for line in figure) else "-"


def _is_ours(line: Line) -> bool:
    return line["who"].startswith(US)


def _value(line: Line) -> str:
    value = line["median (quartiles)"].replace("|", "\\|")
    # What the spread is, is said of us.
    return value if _is_ours(line) else re.sub(r" \([^()]* to [^()]*\)", "", value)


def figure_of(lines: Sequence[Line]) -> Figure:
    """Return what is needed to draw a figure: its samples, as they are shown."""
    first = lines[0]
    return Figure(
        row=first["row"],
        title=first["figure"],
        samples={line["who"]: [float(v) for v in line["samples"].split()] for line in lines},
        notes={ln["who"]: ln["median (quartiles)"] for ln in lines if not ln["samples"]},
        floor=first["who"] if first["to the floor"] == "1.00x" else "",
        unit=first["unit"],
    )


def shown(figures: Sequence[Sequence[Line]]) -> list[Figure]:
    """Return the figures of the picture."""
    found = []
    for row, words in SHOWN:
        for lines in figures:
            if lines[0]["row"] == row and words in lines[0]["figure"]:
                found.append(figure_of(lines))
                break
    return found


def put(text: str, into: str, begin: str = BEGIN) -> str:
    """Return a page with this between its marks.

    Raises
    ------
    ValueError
        If it has none.
    """
    before, found, rest = into.partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"the page has no {begin} with {END} behind it")
    return f"{before}{begin}\n\n{text}\n{END}{after}"


def main() -> int:
    """Write both."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "bench.csv"
    figures = read(path)
    note = path.with_suffix(".md").read_text().strip().splitlines()[-1]
    plot(shown(figures), PICTURE)
    picture = f"![What was measured, beside each other]({PICTURE.relative_to(ROOT)})\n"
    folded = f"<details>\n<summary>All figures that have a goal</summary>\n\n{table(figures)}\n</details>\n"
    README.write_text(put(f"{picture}\n{folded}\n{note}\n", README.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
