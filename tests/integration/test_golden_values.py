"""The golden payloads in containers: every Python and framework writes and reads them alike."""

import subprocess
from pathlib import Path

import pytest

import dockml_magic
from tests.unit.golden import golden

PACKAGE = Path(dockml_magic.__file__).parent / "resources" / "values"
GOLDEN = Path(golden.__file__).parent


@pytest.mark.parametrize(
    "image",
    [
        "python:2.7-slim",
        "dockml/bare:3.6",
        "dockml/bare:3.9",
        "dockml/bare:3.11",
        "dockml/bare:3.13",
        "dockml/tensorflow:1.10.0",
        "dockml/tensorflow:1.10.0-py27",
        "dockml/pytorch:1.1.0",
    ],
)
def test_a_container_writes_and_reads_the_golden_payloads(image):
    ran = subprocess.run(
        ["docker", "run", "--rm", "--network=none", "--entrypoint=python"]
        + ["-v", f"{PACKAGE}:/mnt/dockml_values:ro", "-v", f"{GOLDEN}:/mnt/golden:ro"]
        + [image, "-B", "/mnt/golden/golden.py", "/mnt/dockml_values"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "as it should be" in ran.stdout
