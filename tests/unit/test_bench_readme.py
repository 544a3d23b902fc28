"""What README says of the benchmark: one line for each figure that has a goal, from the CSV alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import readme, stages
from tests.bench.table import US, Figure, Goal, read, write

PEERS = ("one peer", "another")
START = Figure(
    row="start",
    title="a start, ipykernel:7",
    samples={
        "by hand": [1.0],
        US: [1.1, 1.2, 1.4],
        f"{US}, as a kernel": [1.3],
        "one peer": [2.0, 3.0],
        "another": [2.5],
        "gone": [],
    },
    notes={"gone": "not installed"},
    goals={"by hand": Goal(factor=1.15), **dict.fromkeys(PEERS, Goal(factor=0.5))},
    floor="by hand",
)
STOP = Figure(
    row="stop",
    title="a stop",
    samples={US: [0.4]},
    goals={US: Goal(factor=0, plus=0.5, strictly=True)},
    unit="ms",
    scale=1000,
)
WITHOUT = Figure(row="first", title="no goal", samples={US: [1.0]})


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    write([START, WITHOUT, STOP], tmp_path / "bench", "a note")
    return tmp_path / "bench.csv"


def test_each_figure_with_a_goal_is_one_line_with_everybody_in_it(csv: Path) -> None:
    start, stop = readme.table(read(csv)).splitlines()[2:]
    assert start == (
        "| a start, ipykernel:7 | 1.2 s (1.15 to 1.3)<br>as a kernel: 1.3 s "
        "| by hand: 1 s (1.20x)<br>one peer: 2.5 s (0.48x)<br>another: 2.5 s (0.48x)<br>gone: not installed "
        "| ≤ 1.15x by hand<br>≤ 0.50x each | **no, by 0.05 s (by hand)** |"
    )
    assert stop == "| a stop | 400 ms |  | &lt; 500 ms | yes |"


def test_a_figure_is_drawn_from_the_csv_as_it_was_measured(csv: Path) -> None:
    start, _, stop = (readme.figure_of(lines) for lines in read(csv))
    assert start.order() == START.order()
    assert start.samples == START.samples
    assert (start.floor, start.notes) == ("by hand", {"gone": "not installed"})
    assert (stop.samples, stop.unit) == ({US: [400.0]}, "ms")


def test_the_picture_shows_what_of_its_panels_was_measured(csv: Path) -> None:
    assert [figure.title for figure in readme.shown(read(csv))] == [START.title, STOP.title]


def test_what_stands_between_the_marks_is_replaced_and_nothing_else() -> None:
    before = f"a\n{readme.BEGIN}\nold\n{readme.END}\nz\n"
    once = readme.put("new\n", before)
    assert once == f"a\n{readme.BEGIN}\n\nnew\n\n{readme.END}\nz\n"
    assert readme.put("new\n", once) == once


def test_a_readme_without_marks_is_left_alone() -> None:
    with pytest.raises(ValueError, match="the page has no"):
        readme.put("new\n", "nothing\n")


def test_our_pages_have_the_marks() -> None:
    readme.put("new\n", readme.README.read_text())
    readme.put("new\n", (readme.ROOT / "CONTRIBUTING.md").read_text(), stages.BEGIN)
