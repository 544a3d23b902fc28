"""The golden payloads: every Python that is installed here writes and reads them alike.

The same runs in containers of all Pythons in tests/integration/test_values.py.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dockml_magic
from dockml_magic.resources import values
from tests.unit.golden import golden

SCRIPT = Path(golden.__file__)
PACKAGE = Path(dockml_magic.__file__).parent / "resources" / "values"


def interpreters() -> list[str]:
    """This Python, and one of each version that is on the path or was built by pyenv."""
    found = {sys.version_info[:2]: sys.executable}
    candidates = [shutil.which(f"python3.{minor}") for minor in range(5, 20)]
    candidates += [shutil.which("python2.7")]
    candidates += map(str, sorted(Path.home().glob(".pyenv/versions/*/bin/python")))
    for path in filter(None, candidates):
        ran = subprocess.run([path, "-V"], capture_output=True, text=True, check=False)
        match = re.match(r"Python (\d+)\.(\d+)\.", ran.stdout + ran.stderr)
        if ran.returncode == 0 and match and match.group(1, 2) >= ("2", "7"):
            found.setdefault((int(match[1]), int(match[2])), path)
    return list(found.values())


def test_this_python_writes_and_reads_the_golden_payloads():
    assert golden.has_numpy()
    assert golden.check(values) == []


@pytest.mark.parametrize("python", interpreters())
def test_each_python_here_writes_and_reads_them_alike(python):
    ran = subprocess.run(
        [python, "-B", SCRIPT, PACKAGE], capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "as it should be" in ran.stdout
