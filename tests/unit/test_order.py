"""The order of the test modules, and the table of how long they took."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.order import longest_first, read_durations, write_durations

SOAK, PULL, ERRORS = (
    "tests/integration/test_soak.py",
    "tests/x/test_pull.py",
    "tests/unit/test_errors.py",
)


def test_the_longest_is_first_and_those_of_one_length_stay_as_they_were() -> None:
    seconds = {"a": 3.0, "b": 200.0, "c": 3.0}
    assert longest_first(["a", "b", "c"], seconds) == ["b", "a", "c"]
    assert longest_first(["c", "a", "b"], seconds) == ["b", "c", "a"]


def test_a_module_of_which_nothing_is_known_is_first_and_a_unit_test_last() -> None:
    assert longest_first([ERRORS, SOAK, PULL], {SOAK: 150.0}) == [PULL, SOAK, ERRORS]


def test_a_record_keeps_what_did_not_run_and_forgets_what_is_gone_or_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ran.py", "did_not.py", "short.py"):
        Path(name).touch()
    table = tmp_path / "durations.csv"
    table.write_text("module,seconds\ngone.py,7\ndid_not.py,20\nran.py,5\n")
    write_durations({"ran.py": 90.4, "short.py": 0.5}, table)
    assert table.read_text() == "module,seconds\nran.py,90\ndid_not.py,20\n"
    assert read_durations(table) == {"ran.py": 90.0, "did_not.py": 20.0}


def test_processes_that_share_tests_begin_with_the_longest(tmp_path: Path) -> None:
    """As `make test` runs them, with our own plugin and three modules of which the longest has one test."""
    here = Path(__file__).parents[2]
    for name, tests in (("test_many", 3), ("test_long", 1), ("test_short", 2)):
        bodies = [f"def test_{number}(): pass" for number in range(tests)]
        (tmp_path / f"{name}.py").write_text("\n".join(bodies))
    (tmp_path / "conftest.py").write_text(
        "import tests.order as order\n"
        "order.read_durations = lambda: {'test_many.py': 9, 'test_long.py': 90, 'test_short.py': 1}\n"
        "pytest_plugins = ['tests.order']\n"
        "def pytest_addoption(parser):\n    parser.addoption('--run-docker', action='store_true')\n"
    )
    words = ["-n", "1", "--dist", "loadfile", "--no-loadscope-reorder", "-v", "--rootdir", "."]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, *words, "--run-docker"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(here), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    passed = [line.split()[-1] for line in ran.stdout.splitlines() if "PASSED" in line]
    assert [name.partition("::")[0] for name in passed] == [
        *["test_long.py"],
        *["test_many.py"] * 3,
        *["test_short.py"] * 2,
    ]
    assert "modules that took longest" in ran.stdout
