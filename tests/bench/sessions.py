"""Whoever is measured: a kernel, how it is started, and the front end's process that holds it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.bench.table import Absent

ROOT = Path(__file__).parents[2]
MARK = "DOCKML_BENCH"
"""In the environment of every process of a run; its value is the run's folder."""

_PATIENCE = 150.0


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A kernel that somebody starts, and how its cells get to where they run.

    Attributes
    ----------
    who : str
        As the table says it.
    spec : mapping
        A kernelspec's content.
    python : Path
        Of the front end's process.
    folder : Path
        Where it runs.
    environ : mapping of str to str
        Of both.
    prelude : tuple of str
        Cells to run first.
    prefix : str
        What makes a cell run there.
    connection_file, inner : str
        Where its connection file is to be, and what those of the kernel behind it are called: "" where
        there is none.
    twin : Contestant or None
        A kernel that is started as the one behind it is, where two clients of it would disturb the peer.
    restart, stop : str
        The cells that do it; "" where the front end's buttons do.
    """

    who: str
    spec: Mapping[str, Any]
    python: Path
    folder: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    prelude: tuple[str, ...] = ()
    prefix: str = ""
    connection_file: str = ""
    inner: str = ""
    twin: Contestant | None = None
    restart: str = ""
    stop: str = ""

    def inner_connection(self) -> dict[str, Any]:
        """Return the content of the only connection file of the kernel behind it."""
        (path,) = self.folder.rglob(self.inner)
        connection: dict[str, Any] = json.loads(path.read_text())
        return connection


class Session:
    """The front end's process of a contestant; each order raises `Absent` where it fails.

    Attributes
    ----------
    kernel_pid : int or None
        The process that the kernelspec's argv became, if there is one.
    """

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.kernel_pid: int | None = None
        self._buffer = b""
        self._process = subprocess.Popen(
            [str(contestant.python), "-m", "tests.bench.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=contestant.folder,
            env={**contestant.environ, "PYTHONPATH": str(ROOT)},
        )

    @property
    def pid(self) -> int:
        """Of the front end's process."""
        return self._process.pid

    def start(self) -> float:
        """Return the seconds from nothing to the first result."""
        which = self.contestant
        answer = self._ask(
            "start",
            spec=dict(which.spec),
            prelude=list(which.prelude),
            prefix=which.prefix,
            # The output of a cell that a peer relays may come after its idle.
            checked=which.twin is None and not which.inner,
            cwd=str(which.folder),
            env=dict(which.environ),
            connection_file=which.connection_file,
        )
        self.kernel_pid = answer["pid"]
        return float(answer["seconds"])

    def run(self, code: str, timeout: float = _PATIENCE - 10) -> dict[str, Any]:
        """Run a cell; return its seconds, stdout and text."""
        return self._ask("run", code=code, timeout=timeout)

    def said(self, code: str) -> Any:
        """Run a cell that prints JSON; return what it means."""
        return json.loads(self.run(code)["stdout"])

    def connect_directly(self, info: Mapping[str, Any]) -> None:
        """Connect a second client to the kernel that cells end in."""
        self._ask("connect_directly", info=dict(info))

    def cells(self, code: str, n: int, *, skip: int = 0, directly: bool = False) -> list[float]:
        """Return the seconds of n cells."""
        seconds: list[float] = self._ask("cells", code=code, n=n, skip=skip, directly=directly)[
            "seconds"
        ]
        return seconds

    def output(self, kind: str, n: int, *, prepare: bool = False) -> float:
        """Return the seconds of a cell with much output, which has been checked."""
        return float(self._ask("output", kind=kind, n=n, prepare=prepare)["seconds"])

    def interrupt(self, limit: float) -> tuple[float | None, bool]:
        """Return the seconds until a sleeping cell ended, and whether its kernel kept its variables."""
        answer = self._ask("interrupt", limit=limit)
        return answer["seconds"], answer["kept"]

    def restart(self) -> tuple[float, bool]:
        """Return the seconds to the next result, and whether what was written inside is still there."""
        answer = self._ask("restart", code=self.contestant.restart)
        return answer["seconds"], answer["kept"]

    def stop(self) -> float:
        """Return the seconds that the user waits for it: a cell, or the front end's button."""
        return float(self._ask("stop", code=self.contestant.stop)["seconds"])

    def shut_down(self) -> None:
        """Shut the kernel down; `start` may follow."""
        self._ask("stop")

    def _ask(self, op: str, **order: Any) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        deadline = time.monotonic() + _PATIENCE
        try:
            stdin.write(json.dumps({"op": op, **order}).encode() + b"\n")
            stdin.flush()
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if not select.select([stdout], [], [], max(left, 0))[0]:
                    raise Absent(f"{op}: nothing within {_PATIENCE:g} s")
                chunk = os.read(stdout.fileno(), 1 << 20)
                if not chunk:
                    raise Absent(f"{op}: its front end's process ended")
                self._buffer += chunk
        except OSError as error:
            raise Absent(f"{op}: {error}") from error
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Absent(f"{op}: {answer['error']}")
        return answer

    def kill(self) -> None:
        """Kill the front end's process as `kill -9` does."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it: its kernel is shut down as a front end does, or what is left of it killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def environ() -> dict[str, str]:
    """Return the variables that a user's processes have: without what a developer or CI sets for Python.

    Without byte code, what is not compiled when it is installed takes three times as long to import.
    """
    ours = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONUNBUFFERED", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in ours}


@contextmanager
def opened(contestant: Contestant) -> Iterator[Session]:
    """Give a contestant's front end, and end it."""
    session = Session(contestant)
    try:
        yield session
    finally:
        session.close()


@contextmanager
def running(contestant: Contestant) -> Iterator[Session]:
    """Give a contestant's front end with its kernel started, and end both."""
    with opened(contestant) as session:
        session.start()
        yield session


def plain_spec(name: str) -> dict[str, Any]:
    """Return the kernelspec of an ipykernel of this Python."""
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    return {"argv": argv, "display_name": name, "language": "python"}


def end_processes(workspace: Path) -> None:
    """End what was started in this run and left behind: processes that carry its folder."""
    left = [p for p in psutil.process_iter() if _marked(p, workspace)]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(left, timeout=5)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def _marked(process: psutil.Process, workspace: Path) -> bool:
    try:
        environ: dict[str, str] = process.environ()
    except psutil.Error:
        return False
    return process.pid != os.getpid() and environ.get(MARK) == str(workspace)
