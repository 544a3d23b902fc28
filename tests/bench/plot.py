"""The table as a picture: a panel for each figure, a bar for each who was measured."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import Any

from tests.bench.table import US, Figure, number, quartiles

COLUMNS = 3
FAR_APART = 40
"""Longest over shortest, from where on a panel is logarithmic."""
OURS, FLOORS, PEERS = "#1f6feb", "#8b949e", "#d0a215"


def plot(figures: Sequence[Figure], path: Path) -> None:
    """Write a picture of the medians, with the quartiles as lines, in the format of the path's suffix."""
    import matplotlib

    matplotlib.use("Agg")
    # Text as text: a tenth of the size.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "dockml"})
    from matplotlib import pyplot

    shown = [figure for figure in figures if any(figure.samples.values())]
    lines = ceil(len(shown) / COLUMNS)
    if not lines:
        return
    heights = [
        max(len(figure.samples) for figure in shown[i : i + COLUMNS]) * 0.28 + 1.1
        for i in range(0, len(shown), COLUMNS)
    ]
    page, axes = pyplot.subplots(
        lines,
        COLUMNS,
        figsize=(5.2 * COLUMNS, sum(heights)),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    for figure, ax in zip(shown, axes.flat, strict=False):
        _panel(figure, ax)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(page)


def _panel(figure: Figure, ax: Any) -> None:
    names = figure.order()
    medians = [it * figure.scale for who in names if (it := figure.median_of(who)) is not None]
    is_wide = min(medians) > 0 and max(medians) / min(medians) > FAR_APART
    ax.set_xscale("log" if is_wide else "linear")
    for place, who in enumerate(names):
        samples = figure.samples[who]
        if not samples:
            why = figure.notes.get(who, "not measured")
            left = min(medians) if is_wide else 0
            ax.text(left, place, f" {why[:60]}", va="center", fontsize=6, color="#cf222e")
            continue
        low, middle, high = (value * figure.scale for value in quartiles(samples))
        color = OURS if who.startswith(US) else FLOORS if who == figure.floor else PEERS
        ax.barh(place, middle, color=color, height=0.7)
        ax.plot([low, high], [place, place], color="black", linewidth=1)
        ax.text(max(middle, high), place, f" {number(middle)}", va="center", fontsize=7)
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.margins(x=0.18)
    ax.set_xlim(left=min(medians) / 3 if is_wide else min(0.0, ax.get_xlim()[0]))
    ax.tick_params(axis="x", labelsize=7)
    ax.set_title(fill(figure.title, 52), fontsize=8)
    ax.set_xlabel(f"{figure.unit}, logarithmic" if is_wide else figure.unit, fontsize=7)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
