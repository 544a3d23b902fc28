"""A newer Docker engine beside this machine's own: the program from Debian's packages, which are not installed."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.machine import packages
from tests.machine.packages import say

RELEASE = "trixie"
"""The Debian whose packages are taken: it has Docker 26."""


def newer_dockerd(cache: Path) -> Path:
    """Return a `dockerd` that runs here, with the C library of its own release; fetched once into `cache`.

    It finds containerd and runc on the PATH, where this machine's own are.

    Raises
    ------
    NotAllowed
        If the tools that unpack it are missing and may not be installed.
    """
    folder = cache / f"docker-{RELEASE}"
    program = folder / "dockerd"
    if program.exists():
        return program
    packages.install(("mmdebstrap", "patchelf"))
    say(f"unpacking the Docker engine of Debian {RELEASE}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    libraries = folder / "lib"
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        root = Path(scratch) / "root"
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=extract", "--include=docker.io", RELEASE, root],
            check=True,
        )
        (root / "usr/lib" / f"{platform.machine()}-linux-gnu").rename(libraries)
        (root / "usr/sbin/dockerd").rename(folder / "dockerd.part")
    (interpreter,) = libraries.glob("ld-linux-*.so.*")
    how = ["--force-rpath", "--set-rpath", str(libraries), "--set-interpreter", str(interpreter)]
    subprocess.run(["patchelf", *how, folder / "dockerd.part"], check=True)
    (folder / "dockerd.part").rename(program)
    return program
