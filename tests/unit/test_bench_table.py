"""The benchmark's table: who is beside whom, which goals are met, what is said of those who could not be measured."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import __main__ as main
from tests.bench.table import US, Absent, Figure, Goal, Turns, markdown, write

FIGURE = Figure(
    row="start",
    title="a start",
    samples={"peer": [], US: [1.1, 1.2, 1.4], "other": [4.0, 2.0], "floor": [1.0]},
    notes={"peer": "not installed"},
    goals={"floor": Goal(factor=1.15), "other": Goal(factor=0.5), "peer": Goal(strictly=True)},
    floor="floor",
)


def test_the_floor_comes_first_then_we_then_the_others_and_last_who_could_not_be_measured() -> None:
    assert FIGURE.order() == ["floor", US, "other", "peer"]


@pytest.mark.parametrize(
    ("goal", "ours", "theirs", "met", "words"),
    [
        (Goal(factor=1.15), 1.15, 1.0, True, "<= 1.15x"),
        (Goal(factor=1.15), 1.16, 1.0, False, "<= 1.15x"),
        (Goal(plus=0.25), 1.2, 1.0, True, "<= it + 250 ms"),
        (Goal(plus=0.25), 1.3, 1.0, False, "<= it + 250 ms"),
        (Goal(strictly=True), 1.0, 1.0, False, "< it"),
        (Goal(factor=0, plus=0.1), 0.1, 9.0, True, "<= 100 ms"),
        (Goal(factor=0), 1.0, 1.0, False, "<= 0 ms"),
    ],
)
def test_a_goal_is_a_factor_and_so_much_more(
    goal: Goal, ours: float, theirs: float, met: bool, words: str
) -> None:
    assert goal.is_met(ours, theirs) is met
    assert goal.in_words("ms", 1000) == words


def test_goals_are_met_by_our_median_and_say_nothing_beside_who_was_not_measured() -> None:
    assert FIGURE.is_met("floor") is False
    assert FIGURE.is_met("other") is True
    assert FIGURE.is_met("peer") is None
    assert FIGURE.is_met(US) is None


def test_a_goal_without_a_factor_is_that_of_whom_it_stands_beside() -> None:
    figure = Figure(
        row="stop",
        title="a stop",
        samples={US: [0.4], f"{US}, as a kernel": [0.9]},
        goals={who: Goal(factor=0, plus=0.5) for who in (US, f"{US}, as a kernel")},
    )
    assert figure.is_met(US) is True
    assert figure.is_met(f"{US}, as a kernel") is False


def test_a_goal_may_be_of_another_of_our_medians() -> None:
    figure = Figure(
        row="values",
        title="1 GB",
        samples={f"{US}, first": [2.0], f"{US}, again": [0.1], "warm": [0.1]},
        us=f"{US}, first",
        goals={"warm": Goal(factor=2, ours=f"{US}, again")},
    )
    assert figure.is_met("warm") is True


def test_we_meet_no_goal_where_we_could_not_be_measured() -> None:
    figure = Figure(row="a", title="a", samples={US: [], "floor": [1.0]}, goals={"floor": Goal()})
    assert figure.is_met("floor") is False


def test_the_table_shows_medians_quartiles_ratios_and_whose_goal_is_missed() -> None:
    first, ours, other, absent = markdown([FIGURE]).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (first, ours, other)]
    assert cells[0] == [
        "a start",
        "floor",
        "1 s",
        "1.00x",
        "1.20x (+0.20 s)",
        "<= 1.15x",
        "NO, by 0.05 s",
        "1",
    ]
    assert cells[1] == ["", US, "1.2 s (1.15 to 1.3)", "1.20x", "-", "-", "-", "3"]
    assert cells[2][2:] == ["3 s (2.5 to 3.5)", "3.00x", "0.40x (-1.80 s)", "<= 0.50x", "yes", "2"]
    assert "not installed" in absent


def test_the_csv_has_all_samples(tmp_path: Path) -> None:
    write([FIGURE], tmp_path / "bench", "a note")
    rows = list(csv.DictReader((tmp_path / "bench.csv").read_text().splitlines()))
    assert [row["who"] for row in rows] == ["floor", US, "other", "peer"]
    assert rows[1]["samples"] == "1.1 1.2 1.4"
    assert [rows[1][which] for which in ("lower quartile", "median", "upper quartile")] == [
        "1.15",
        "1.2",
        "1.3",
    ]
    assert rows[3]["median"] == ""
    assert (tmp_path / "bench.md").read_text().endswith("a note\n")


def test_samples_are_taken_in_turns_which_begin_with_another_one_each_time() -> None:
    asked = []
    takers = {who: lambda who=who: asked.append(who) or 1.0 for who in "abc"}
    turns = Turns().take(takers, 3)
    assert asked == list("abc") + list("bca") + list("cab")
    assert turns.samples == {who: [1.0] * 3 for who in "abc"}


def test_who_fails_is_asked_no_more_keeps_its_samples_and_has_one_line_that_says_why() -> None:
    answers = iter([1.0, Absent("run: RuntimeError: the cell 'x' failed: it is gone\nso it is")])

    def failing() -> float:
        answer = next(answers)
        if isinstance(answer, Absent):
            raise answer
        return answer

    turns = Turns().take({"a": failing, US: lambda: 2.0}, 4)
    assert turns.samples == {"a": [1.0], US: [2.0] * 4}
    assert turns.notes == {"a": "it is gone"}


def test_a_round_to_warm_up_does_not_count() -> None:
    seconds = iter([9.0, 1.0, 1.0])
    turns = Turns().take({"a": lambda: next(seconds)}, 2, warm_up=True)
    assert turns.samples == {"a": [1.0, 1.0]}


def test_whatever_fails_is_said_in_one_line_and_the_others_go_on() -> None:
    def fails() -> float:
        raise ValueError("no number\nat all")

    turns = Turns().take({"one": fails, "other": lambda: 2.0}, 2)
    assert turns.samples == {"one": [], "other": [2.0, 2.0]}
    assert turns.notes == {"one": "ValueError: no number"}


def test_a_row_that_fails_keeps_its_figures_and_has_one_that_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks(bench: object) -> Iterator[Figure]:
        yield FIGURE
        raise RuntimeError("it broke")

    monkeypatch.setitem(main.ROWS, "start", breaks)
    first, rest = main._figures(None, "start")
    assert first is FIGURE
    assert rest.notes == {US: "RuntimeError: it broke"}
    assert rest.is_met(US) is False


def test_a_missed_goal_is_told_with_what_is_missing_to_it() -> None:
    figure = Figure(
        row="pass",
        title="a cell",
        samples={"direct": [0.005], US: [0.0064]},
        goals={"direct": Goal(plus=0.0008)},
        unit="ms",
        scale=1000,
    )
    assert figure.told("direct") == "NO, by 0.6 ms"
