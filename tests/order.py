"""Which module of the tests runs when, where several processes share them: the longest first.

Modules are given out whole (``--dist loadfile``); who has time takes the next one. In the order of pytest-xdist, most
tests first, a single test of minutes is the last one, and runs alone. Here those that take a second are the last.
How long each took is in ``durations.csv``, written by a run with ``--record-durations``. One that is not there yet
is among the first, unless it is a unit test.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("durations.csv")
WORTH_NOTING = 2.0
"""Seconds. A module that takes less is not in the table: so it changes where something has changed."""
SHOWN = 15


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-durations",
        action="store_true",
        help=f"write how long each module took into {TABLE.name}, by which their order is chosen",
    )


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(_LongestFirst())
    elif config.getoption("--run-docker"):
        config.pluginmanager.register(_Stopwatch(record=config.getoption("--record-durations")))


def longest_first(modules: Iterable[str], seconds: Mapping[str, float]) -> list[str]:
    """Return the modules in the order in which they are given out."""

    def takes(module: str) -> float:
        unknown = 0.0 if module.startswith("tests/unit/") else float("inf")
        return seconds.get(module, unknown)

    return sorted(modules, key=takes, reverse=True)


def read_durations(table: Path = TABLE) -> dict[str, float]:
    """Return how many seconds each module took."""
    rows = csv.DictReader(table.read_text().splitlines())
    return {row["module"]: float(row["seconds"]) for row in rows}


def write_durations(seconds: Mapping[str, float], table: Path = TABLE) -> None:
    """Note how long modules took; those that did not run, and are there still, keep their row."""
    known = {name: took for name, took in read_durations(table).items() if Path(name).is_file()}
    rows = sorted((known | dict(seconds)).items(), key=lambda row: (-row[1], row[0]))
    lines = [f"{name},{took:.0f}" for name, took in rows if took >= WORTH_NOTING]
    table.write_text("\n".join(["module,seconds", *lines, ""]))


class _LongestFirst:
    """In a process that shares the tests with others."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        modules = {_module(item.nodeid): None for item in items}  # in their order, each once
        places = {name: at for at, name in enumerate(longest_first(modules, read_durations()))}
        items.sort(key=lambda item: places[_module(item.nodeid)])


class _Stopwatch:
    """Where the results are gathered."""

    def __init__(self, *, record: bool) -> None:
        self._record = record
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[_module(report.nodeid)] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        longest = self._seconds.most_common(SHOWN)
        total = sum(self._seconds.values())
        terminalreporter.section(f"modules that took longest, of {total:.0f} s in all")
        for name, took in longest:
            terminalreporter.line(f"{took:6.0f} s  {name}")
        if self._record:
            write_durations(self._seconds)


def _module(nodeid: str) -> str:
    return nodeid.partition("::")[0]
