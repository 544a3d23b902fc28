"""Installs packages with pip, in a container whose image becomes a layer. Started by dockml_magic's `layers.py`.

Standard library only, for Python 2.7 to the newest. All that it is given lies in its own folder, which is a volume and
so no part of the image: requirements.txt, constraints.txt, config.json, the CA bundle. What it has to say goes into
status.json there::

    {"phase": "need_pip", "python": "3.6.15"}     it waits for pip.whl, and then pip.ready
    {"phase": "done", "code": 0, "python": "3.6.15", "packages": {"numpy": "1.14.5"}}

The last where config.json says only_list, and nothing is installed; else::

    {"phase": "done", "code": 0, "python": "3.6.15", "executable": "/usr/bin/python3"}

It ends when nobody has changed the file `alive` for a while: the notebook is gone, however it went.
"""

from __future__ import print_function

import json
import os
import subprocess
import sys
import time
import zipfile

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, FOLDER)

import launch  # noqa: E402  # it lies beside us

OLDEST_PIP = (9,)
"""Older ones take versions that are not for their Python, and have no wheels of today."""

PAUSE = 0.2
PATIENCE = 300
"""Pauses without a sign of life: a minute in which this machine runs, however long it slept."""


class Lease(object):
    """Whether anybody still waits for us."""

    def __init__(self):
        self.seen = None
        self.left = PATIENCE

    def check(self):
        """Sleep a moment; end this process where nobody has been there for long."""
        time.sleep(PAUSE)
        try:
            with open(os.path.join(FOLDER, "alive")) as file:
                now = file.read()
        except (IOError, OSError):
            now = None
        self.left = PATIENCE if now != self.seen else self.left - 1
        self.seen = now
        if not self.left:
            sys.exit("dockml: nobody waits for this any more")


def tell(**status):
    """Write what we have to say, in one go."""
    path = os.path.join(FOLDER, "status.json")
    with open(path + ".new", "wb") as file:
        file.write(json.dumps(status).encode("ascii"))
    os.rename(path + ".new", path)


def output_of(command):
    """Return what a program writes, None where it fails."""
    try:
        with open(os.devnull, "w") as nothing:
            return subprocess.check_output(command, stderr=nothing, cwd="/").decode(
                "utf-8", "replace"
            )
    except (OSError, subprocess.CalledProcessError):
        return None


def choose_python(remembered):
    """Return the Python that a kernel here runs on: the first with ipykernel, else the first."""
    interpreters = launch.Supervisor._interpreters(remembered or sys.executable)
    if remembered:
        return interpreters[0]
    for python in interpreters:
        if output_of([python, "-c", "import ipykernel"]) is not None:
            return python
    return interpreters[0]


def pip_of(python):
    """Return the version of an interpreter's pip; () where it has none."""
    said = (output_of([python, "-m", "pip", "--version"]) or "").split()
    try:
        return tuple(int(part) for part in said[1].split(".")[:2])
    except (IndexError, ValueError):
        return ()


def given_pip(lease, version):
    """Wait for a pip from outside; return the folder that can be run."""
    tell(phase="need_pip", python=version)
    while not os.path.exists(os.path.join(FOLDER, "pip.ready")):
        lease.check()
    folder = os.path.join(FOLDER, "given")
    with zipfile.ZipFile(os.path.join(FOLDER, "pip.whl")) as archive:
        archive.extractall(folder)
    return os.path.join(folder, "pip")


def install(command, lease):
    """Run pip to its end; return its exit code."""
    process = subprocess.Popen(command, cwd="/", stderr=subprocess.STDOUT)
    try:
        while process.poll() is None:
            lease.check()
    finally:
        if process.poll() is None:
            process.kill()
    return process.returncode


def list_packages(python):
    """Say what is installed."""
    listed = output_of([python, os.path.join(FOLDER, "packages.py")])
    tell(phase="done", code=int(listed is None), **json.loads(listed or "{}"))


def install_packages(python, config, lease):
    """Say how it ended."""
    ask = "import platform; print(platform.python_version())"
    version = (output_of([python, "-c", ask]) or "").strip()
    if pip_of(python) >= OLDEST_PIP:
        pip = [python, "-m", "pip"]
    else:
        pip = [python, given_pip(lease, version)]
    # Only for pip: what is in a container's own settings gets into the image.
    for name, value in config["env"].items():
        os.environ[str(name)] = value.encode("utf-8") if str is bytes else value
    scratch = os.path.join(FOLDER, "tmp")
    os.mkdir(scratch)
    os.environ["TMPDIR"] = scratch
    command = pip + ["install", "--no-cache-dir"]
    command += ["--requirement", os.path.join(FOLDER, "requirements.txt")]
    constraints = os.path.join(FOLDER, "constraints.txt")
    if os.path.exists(constraints):
        command += ["--constraint", constraints]
    code = install(command, lease)
    if hasattr(os, "sync"):
        os.sync()
    tell(phase="done", code=code, python=version, executable=python)


def main():
    config = launch.read_json(os.path.join(FOLDER, "config.json"))
    lease = Lease()
    python = choose_python(config["interpreter"])
    if config.get("only_list"):
        list_packages(python)
    else:
        install_packages(python, config, lease)
    while True:  # until we are removed; our changes may become an image before
        lease.check()


if __name__ == "__main__":
    main()
