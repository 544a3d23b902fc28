"""What runs in containers is written for Python 2.7 and 3.5, which few have installed: vermin reads it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import dockml_magic

RESOURCES = Path(dockml_magic.__file__).parent / "resources"

GUARDED = {
    ("install.py", "'os.sync' member"),
    ("later.py", "'builtins' module"),
    ("later.py", "'importlib.machinery.PathFinder.find_spec' member"),
    ("later.py", "'importlib.util.find_spec' member"),
    ("later.py", "'importlib.util.module_from_spec' member"),
    ("launch.py", "'faulthandler' module"),
    ("launch.py", "'importlib.util.find_spec' member"),
    ("launch.py", "'os.set_inheritable' member"),
    ("launch.py", "'time.monotonic' member"),
    ("values/agent.py", "'socket.CMSG_SPACE' member"),
    ("values/moments.py", "'datetime.timezone' member"),
    ("values/wire.py", "'memoryview.cast' member"),
    ("values/wire.py", "'os.pwrite' member"),
}
"""What Python 2.7 does not have, and is used only where it is there."""


def find_newer(paths: Sequence[Path]) -> set[tuple[Path, str]]:
    """Return what Python 2.7 or 3.5 lacks, and the file that has it."""
    command = [sys.executable, "-c", "import vermin; vermin.main()", "--no-config-file"]
    command += ["--violations", "-t=2.7-", "-t=3.5-"]
    command += ["--format", "parsable", "--no-parse-comments", *map(str, paths)]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert not found.stderr, found.stderr
    lines = [line.split(":", 5) for line in found.stdout.splitlines()]
    assert all(len(line) == 6 for line in lines), found.stdout
    return {(Path(file), feature) for file, *_, feature in lines if feature}


def test_what_runs_in_containers_has_nothing_that_python_2_7_or_3_5_lacks() -> None:
    files = [path for path in RESOURCES.rglob("*.py") if path != RESOURCES / "__init__.py"]
    assert len(files) > 10
    found = {(str(path.relative_to(RESOURCES)), feature) for path, feature in find_newer(files)}
    assert found == GUARDED


def test_what_they_lack_is_found(tmp_path: Path) -> None:
    file = tmp_path / "newer.py"
    file.write_text("import subprocess\nx = f'{1}'\nsubprocess.run([], capture_output=True)\n")
    features = {feature for _, feature in find_newer([file])}
    assert {"f-strings", "'subprocess.run(capture_output)'"} <= features
