"""The bench's table: medians with their spread, the ratio, the goal, and whether it is met."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

HEAD = ["figure", "dockml_magic", "compared with", "it took", "result", "goal", "met", "n"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure: our samples and those of what it is compared with, in the same unit.

    Attributes
    ----------
    figure, reference : str
        What is measured, and beside what.
    ours, theirs : sequence of float
        The samples, taken in turns; `theirs` may be empty.
    result : str
        How the two compare.
    goal : str
        In the same words, "" where the row only informs.
    met : bool or None
        None without a goal.
    unit, scale
        What the samples are shown in, and the factor to it.
    """

    figure: str
    reference: str
    ours: Sequence[float]
    theirs: Sequence[float]
    result: str
    goal: str = ""
    met: bool | None = None
    unit: str = "s"
    scale: float = 1.0

    def cells(self) -> list[str]:
        """Return the row as text."""
        return [
            self.figure,
            self._shown(self.ours),
            self.reference,
            self._shown(self.theirs),
            self.result,
            self.goal or "-",
            "-" if self.met is None else "yes" if self.met else "NO",
            str(len(self.ours)),
        ]

    def _shown(self, samples: Sequence[float]) -> str:
        if not samples:
            return "-"
        low, middle, high = (value * self.scale for value in quartiles(samples))
        return f"{middle:.2f} {self.unit} ({low:.2f}-{high:.2f})"


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(samples) < 2:
        return samples[0], samples[0], samples[0]
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return low, median(samples), high


def ratio(
    figure: str,
    reference: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    at_most: float | None = None,
    throughput_at_least: float | None = None,
) -> Row:
    """Return a row of times: ours over theirs, or for a throughput theirs over ours."""
    goal: str = ""
    met: bool | None = None
    if throughput_at_least is not None:
        value = median(theirs) / median(ours)
        goal, met = f">= {throughput_at_least:.2f}x", value >= throughput_at_least
    else:
        value = median(ours) / median(theirs)
        if at_most is not None:
            goal, met = f"<= {at_most:.2f}x", value <= at_most
    return Row(
        figure=figure,
        reference=reference,
        ours=ours,
        theirs=theirs,
        result=f"{value:.2f}x",
        goal=goal,
        met=met,
    )


def difference(
    figure: str,
    reference: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    at_most: float | None = None,
) -> Row:
    """Return a row of short times: by how many milliseconds our median is above theirs."""
    value = (median(ours) - median(theirs)) * 1000
    return Row(
        figure=figure,
        reference=reference,
        ours=ours,
        theirs=theirs,
        result=f"{value:+.2f} ms ({median(ours) / median(theirs):.2f}x)",
        goal="" if at_most is None else f"<= +{at_most:.1f} ms",
        met=None if at_most is None else value <= at_most,
        unit="ms",
        scale=1000,
    )


def missing(figure: str, reference: str, why: str) -> Row:
    """Return the row of a comparison that could not be made, which meets no goal."""
    return Row(figure=figure, reference=reference, ours=[], theirs=[], result=why, met=False)


def markdown(rows: Sequence[Row]) -> str:
    """Return the table in Markdown, which is also what is printed."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    text = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text) + "\n"


def write(rows: Sequence[Row], out: Path, note: str) -> None:
    """Write `out`.csv and `out`.md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(out.name + ".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*HEAD, "our median", "their median", "unit"])
        for row in rows:
            medians = [f"{median(s) * row.scale:.4f}" if s else "" for s in (row.ours, row.theirs)]
            writer.writerow([*row.cells(), *medians, row.unit])
    out.with_name(out.name + ".md").write_text(f"{markdown(rows)}\n{note}\n")


def in_turns(ours: Callable[[], float], theirs: Callable[[], float], n: int) -> tuple[
    list[float], list[float]
]:  # fmt: skip
    """Take n samples of each, one after the other, the first of a pair in turns."""
    samples: tuple[list[float], list[float]] = ([], [])
    for i in range(n):
        for which in (0, 1) if i % 2 else (1, 0):
            samples[which].append((ours, theirs)[which]())
    return samples
