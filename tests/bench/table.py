"""The bench's table: one line for each who was measured, the floor first, with what it means."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import median, quantiles

HEAD = ["figure", "who", "median (quartiles)", "to the floor", "us beside it", "goal", "met", "n"]
US = "dockml_magic"


class Absent(Exception):
    """Somebody cannot be measured here; says why."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What our median should be at most: a factor of somebody's, and so much more.

    Attributes
    ----------
    factor : float
        Of the median of whom we are compared with; 0.0 for a goal that has nothing to do with others.
    plus : float
        Before it is scaled.
    ours : str
        Whose median is meant, where that is not the figure's `us`.
    strictly : bool
        Less than that, not as much.
    """

    factor: float = 1.0
    plus: float = 0.0
    ours: str = ""
    strictly: bool = False

    def is_met(self, ours: float, theirs: float) -> bool:
        """Tell whether `ours` meets it."""
        limit = self.limit(theirs)
        return ours < limit if self.strictly else ours <= limit

    def limit(self, theirs: float) -> float:
        """Return what our median may be beside `theirs`."""
        return self.factor * theirs + self.plus

    def in_words(self, unit: str, scale: float) -> str:
        """Return it as the table says it."""
        parts = []
        if self.factor:
            parts.append("it" if self.factor == 1 else f"{self.factor:.2f}x")
        if self.plus or not self.factor:
            parts.append(f"{self.plus * scale:g} {unit}".rstrip())
        return f"{'<' if self.strictly else '<='} {' + '.join(parts)}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of everybody who was measured for it.

    Attributes
    ----------
    row, title : str
        The row that it belongs to, and what is measured.
    samples : mapping of str to sequence of float
        By who it was, in the order of the table. Nothing where somebody could not be measured.
    goals : mapping of str to Goal
        What our median should be, by whom it is compared with; or, without a factor, that one's own.
    notes : mapping of str to str
        What else is to be said of somebody, such as why there are no samples.
    floor : str
        Whose median the others' are shown as multiples of; "" for none.
    us : str
        Who we are in it.
    unit, scale : str, float
        What the samples are shown in, and the factor to it.
    """

    row: str
    title: str
    samples: Mapping[str, Sequence[float]]
    goals: Mapping[str, Goal] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    floor: str = ""
    us: str = US
    unit: str = "s"
    scale: float = 1.0

    def median_of(self, who: str) -> float | None:
        """Return somebody's median, None without samples."""
        samples = self.samples.get(who)
        return median(samples) if samples else None

    def is_met(self, who: str) -> bool | None:
        """Tell whether the goal beside somebody is met; None where there is none, or no telling."""
        goal = self.goals.get(who)
        if goal is None:
            return None
        ours, theirs = self._compared(who, goal)
        if ours is None:
            return False
        return None if theirs is None else goal.is_met(ours, theirs)

    def _compared(self, who: str, goal: Goal) -> tuple[float | None, float | None]:
        ours = self.median_of((goal.ours or self.us) if goal.factor else who)
        return ours, self.median_of(who)

    def told(self, who: str) -> str:
        """Return whether the goal beside somebody is met, and by how much it is not."""
        met, goal = self.is_met(who), self.goals.get(who)
        if met is None or goal is None:
            return "-"
        ours, theirs = self._compared(who, goal)
        if met or ours is None or theirs is None:
            return "yes" if met else "NO"
        return f"NO, by {number((ours - goal.limit(theirs)) * self.scale)} {self.unit}".rstrip()

    def order(self) -> list[str]:
        """Return who was measured: the floor, we, the others, and last those who could not be."""

        def place(who: str) -> int:
            if not self.samples[who]:
                return 3
            return 0 if who == self.floor else 1 if who.startswith(US) else 2

        return sorted(self.samples, key=place)

    def lines(self) -> list[list[str]]:
        """Return its lines of the table as text."""
        ours, floor = self.median_of(self.us), self.median_of(self.floor)
        lines = []
        for who in self.order():
            samples = self.samples[who]
            value = self.median_of(who)
            beside = "-"
            goal = self.goals.get(who)
            mine = self.median_of(goal.ours) if goal and goal.ours else ours
            if mine is not None and value is not None and who != self.us:
                beside = self._beside(mine, value)
            lines.append(
                [
                    self.title,
                    who,
                    self._shown(samples, self.notes.get(who, "")),
                    f"{value / floor:.2f}x" if value is not None and floor else "-",
                    beside,
                    goal.in_words(self.unit, self.scale) if goal else "-",
                    self.told(who),
                    str(len(samples)),
                ]
            )
        return lines

    def _beside(self, ours: float, theirs: float) -> str:
        difference = f"{(ours - theirs) * self.scale:+.2f} {self.unit}".rstrip()
        return f"{ours / theirs:.2f}x ({difference})" if theirs else difference

    def _shown(self, samples: Sequence[float], note: str) -> str:
        parts = []
        if samples:
            low, middle, high = (number(value * self.scale) for value in quartiles(samples))
            spread = f" ({low} to {high})" if len(samples) > 1 else ""
            parts.append(f"{middle} {self.unit}".rstrip() + spread)
        return "; ".join([*parts, note] if note else parts) or "-"


def number(value: float) -> str:
    """Return a number for people."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(samples) < 2:
        return samples[0], samples[0], samples[0]
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return low, median(samples), high


def markdown(figures: Sequence[Figure]) -> str:
    """Return the table in Markdown, which is also what is printed."""
    lines = [HEAD]
    for figure in figures:
        first, *others = figure.lines()
        lines += [first, *(["", *line[1:]] for line in others)]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    text = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text) + "\n"


def read(path: Path) -> list[list[dict[str, str]]]:
    """Return the lines of a CSV that `write` wrote, those of one figure together."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    return [list(some) for _, some in groupby(lines, key=lambda line: line["figure"])]


def write(figures: Sequence[Figure], out: Path, note: str) -> None:
    """Write `out`.csv, with all samples in it, and `out`.md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(out.name + ".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["row", *HEAD, "lower quartile", "median", "upper quartile", "unit", "samples"]
        )
        for figure in figures:
            for who, line in zip(figure.order(), figure.lines(), strict=True):
                samples = figure.samples[who]
                values = (
                    [f"{v * figure.scale:.6g}" for v in quartiles(samples)] if samples else [""] * 3
                )
                all_of_them = " ".join(f"{v * figure.scale:.6g}" for v in samples)
                writer.writerow([figure.row, *line, *values, figure.unit, all_of_them])
    out.with_name(out.name + ".md").write_text(f"{markdown(figures)}\n{note}\n")


@dataclass
class Turns:
    """Samples of several, taken one after the other, each round beginning with another one.

    Attributes
    ----------
    samples : dict
        By who it was.
    notes : dict
        Why somebody has no more samples.
    """

    samples: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def lacks(self, who: str, why: str) -> None:
        """Note that somebody cannot be measured."""
        self.samples.setdefault(who, [])
        first = why.rpartition(" failed: ")[2].strip().splitlines() or [""]
        self.notes[who] = first[0][:200]

    @contextmanager
    def excusing(self, who: str) -> Iterator[None]:
        """Note why somebody could not be measured, where that is so; whatever fails, the others go on."""
        try:
            yield
        except Absent as error:
            self.lacks(who, str(error))
        except Exception as error:  # noqa: BLE001 - its line says what it was
            self.lacks(who, f"{type(error).__name__}: {error}")

    def take(
        self, takers: Mapping[str, Callable[[], float]], n: int, *, warm_up: bool = False
    ) -> Turns:
        """Take n samples of each; who fails is asked no more, and its line says why.

        With `warm_up` there is a round before that does not count: what is imported or read once.
        """
        names = list(takers)
        if warm_up:
            before = {who: list(self.samples.get(who, ())) for who in names}
            self.take(takers, 1)
            self.samples.update(before)
        for who in names:
            self.samples.setdefault(who, [])
        for i in range(n):
            for who in names[i % len(names) :] + names[: i % len(names)]:
                if who not in self.notes:
                    with self.excusing(who):
                        self.samples[who].append(takers[who]())
        return self
