"""A short run of the fuzzer, with dice of its own; a long one: python -m tests.fuzz --seconds 3600 FOLDER."""

import os
import re
import subprocess
import sys

import pytest

LIMITS = ("--runs", "20000", "--seconds", "300", "--seed", "1")


@pytest.mark.timeout(400)
def test_the_fuzzer_finds_nothing_in_twenty_thousand_inputs(tmp_path):
    found = tmp_path / "found"
    found.mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *LIMITS, tmp_path / "corpus"],
        env={**os.environ, "FUZZ_FOUND": str(found), "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-5000:]
    assert not list(found.iterdir()), ran.stderr[-5000:]
    executed = re.search(r"number_of_executed_units: (\d+)", ran.stderr)
    assert executed
    assert int(executed[1]) >= 20_000, ran.stderr[-5000:]
    # It is guided: inputs that reached new code were kept.
    assert int(re.search(r"new_units_added: +(\d+)", ran.stderr)[1]) > 20
