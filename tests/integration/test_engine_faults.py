"""An engine that goes away under a notebook, and comes back; on an engine of our own, which others do not use."""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockml_magic.engine import connect
from tests.integration.conftest import Image, variables_of_its_own
from tests.integration.notebook import Notebook, python_with
from tests.integration.own_engine import OwnEngine, own_engine
from tests.integration.registry import can_run_a_second_engine
from tests.integration.strangers import untouched_strangers
from tests.waiting import wait_until

BARE = "dockml/bare:3.11"
PROJECT = "".join(f'[environments.{name}]\nimage = "{BARE}"\n' for name in ("x", "y", "z"))
COUNT = """
import os, time
kept = 0
while kept < 20 or not os.path.exists("engine-is-away"):
    kept += 1; print("counted", kept, flush=True); time.sleep(0.1)
"""
PATIENCE_OF_A_READER = 60.0
"""Seconds on a busy machine; the SDK's own time-out is 120."""
AWAY = "Docker engine is not running"

pytestmark = pytest.mark.skipif(
    not can_run_a_second_engine(), reason="needs root, dockerd and iproute2"
)


@pytest.fixture(scope="module", params=[True, False], ids=["live-restore", "no live-restore"])
def second(request: pytest.FixtureRequest, image: Image) -> Iterator[OwnEngine]:
    folder = Path(tempfile.mkdtemp(prefix="dk-"))
    with own_engine(folder, image(BARE), live_restore=request.param) as engine:
        engine.lives_on = request.param
        its = connect(engine.endpoint)
        with untouched_strangers(its, BARE, outlive_engine=request.param):
            yield engine
    shutil.rmtree(folder)


@pytest.fixture
def notebook(second: OwnEngine, tmp_path: Path, lasting_cache: Path) -> Iterator[Notebook]:
    folder = tmp_path / "notebook"
    folder.mkdir()
    (folder / "dockml.toml").write_text(PROJECT)
    engine = connect(second.endpoint)
    with variables_of_its_own(tmp_path / "second", engine, lasting_cache) as variables:
        with Notebook(folder, python_with("ipykernel7"), variables) as notebook:
            notebook.ok("%load_ext dockml_magic")
            notebook.ok("local_variable = 'of the notebook'")
            notebook.use("x")
            yield notebook
        try:
            wait_until(lambda: not ours(second), what="no container to be left")
        except AssertionError:
            print(second.docker("ps", "-a", "--no-trunc"), second.log, sep="\n")
            remove_what_the_engine_forgot(second)
        root = Path(variables["XDG_RUNTIME_DIR"], "dockml")
        wait_until(lambda: not list(root.iterdir()), what="no folder to be left")


def ours(second: OwnEngine) -> str:
    """Return the containers that no stranger has."""
    format_ = "{{.ID}} {{.Names}}"
    listed = second.docker("ps", "-a", "--no-trunc", "--format", format_).splitlines()
    return "\n".join(line for line in listed if " stranger-" not in line)


def remove_what_the_engine_forgot(second: OwnEngine) -> None:
    """Remove what the engine had when it was killed and has not removed since, unless that still runs.

    It tries once, as it comes back, and only logs that it could not (daemon.restore in moby/daemon/daemon.go): with
    --rm that is nobody else's work. Anything newer, or alive, was ours to remove.
    """
    left = {line.split()[0] for line in ours(second).splitlines()}
    running = set(second.docker("ps", "-q", "--no-trunc").split())
    assert left <= second.had_when_killed - running, "containers are left"
    second.docker("rm", "--force", *left)


def goes_on(notebook: Notebook) -> None:
    """All that has to do with the engine works, and the notebook has its variables."""
    since = time.monotonic()
    notebook.ok("%docker_ps -a")
    notebook.use("z")
    assert notebook.ok("6 * 7").result == "42"
    notebook.ok("%docker_stop z")
    notebook.use("x", "--fresh")
    assert notebook.ok("6 * 7").result == "42"
    notebook.use("local")
    assert notebook.ok("local_variable").result == "'of the notebook'"
    print(f"everything works again: {time.monotonic() - since:.1f} s")


def says_that_it_is_away(notebook: Notebook) -> None:
    for line in ("%docker_ps -a", "%docker_env z", f"%docker_pull {BARE}"):
        since = time.monotonic()
        cell = notebook.run(line)
        print(f"{line}: {time.monotonic() - since:.1f} s: {cell.traceback}")
        assert cell.reply["ename"] == "EngineUnreachableError"
        assert len(cell.traceback.splitlines()) == 2


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "kill -9"])
def test_an_engine_that_goes_away_and_comes_back(
    notebook: Notebook, second: OwnEngine, signum: signal.Signals
) -> None:
    notebook.use("y")
    notebook.use("x")
    cell = notebook.send(COUNT)
    notebook.wait_printed(cell, "counted 3")
    since = time.monotonic()
    second.signal(signum)
    if second.lives_on or signum == signal.SIGKILL:
        (notebook.folder / "engine-is-away").touch()
        last = notebook.finish(cell).printed().split()[-1]
        assert notebook.ok("6 * 7, kept").result == f"(42, {last})"
        notebook.ok("%docker_restart x")
        notebook.ok("kept = 1")
        notebook.ok("%docker_stop y")  # ends itself, and needs no engine for it
    else:
        died = notebook.finish(cell)
        print(f"mid-cell: {time.monotonic() - since:.1f} s: {died.traceback}")
        assert died.reply["ename"] == "KernelDiedError"
        assert "its container is gone" in died.traceback
        assert "is not running any more" in notebook.run("1").traceback
    says_that_it_is_away(notebook)
    second.start()
    if second.lives_on:
        # Engines before 24.0.8 remove what runs with --rm as they come back (moby#46308).
        version = tuple(map(int, re.findall(r"\d+", connect(second.endpoint).facts.version)[:3]))
        if version >= (24, 0, 8):
            assert notebook.use("x").printed() == "Cells run in 'x'.\n"
            assert notebook.ok("kept").result == "1"
        else:
            wait_until(lambda: not ours(second), what="the engine to have removed x")
            assert "is not running any more" in notebook.run("kept").traceback
    goes_on(notebook)


def test_a_notebook_ends_while_the_engine_is_away(notebook: Notebook, second: OwnEngine) -> None:
    notebook.manager.shutdown_wait_time = 5.0  # as a front end has it
    second.signal(signal.SIGKILL)
    since = time.monotonic()
    notebook.manager.shutdown_kernel()
    print(f"the notebook's end: {time.monotonic() - since:.1f} s")
    second.start()  # the fixture sees to it that nothing is left


# What hangs does the same with and without live-restore.
one_engine = pytest.mark.parametrize("second", [True], ids=["live-restore"], indirect=True)


@one_engine
def test_the_stop_button_ends_the_wait_for_an_engine_that_hangs(
    notebook: Notebook, second: OwnEngine
) -> None:
    notebook.ok(
        "%%docker_cell local\n"
        "from dockml_magic.engine import pings\n"
        "pings._PING = pings._LONG_PING = 60.0\n"
        "hears_us = pings.hears_us\n"
        "def noted(*words):\n"
        "    open('waits', 'w').close()\n"
        "    return hears_us(*words)\n"
        "pings.hears_us = noted"
    )
    with second.hanging():
        assert notebook.ok("6 * 7").result == "42"
        cell = notebook.send("print('asks', flush=True)\n%docker_ps -a")
        notebook.wait_printed(cell, "asks")
        wait_until((notebook.folder / "waits").exists, what="it to wait")
        notebook.interrupt()
        assert notebook.finish(cell).traceback == "LineStopped: %docker_ps was stopped."
        assert notebook.ok("6 * 7").result == "42"
    goes_on(notebook)


HANGS = "it hangs"
NEEDS_THE_ENGINE = (
    "%docker_ps -a",
    "%docker_env z",
    "%docker_logs x",
    f"%docker_pull {BARE}",
)
NEEDS_NO_ENGINE = (
    "%docker_images",
    "%docker_env y",
    "%docker_env x",
    "%docker_doctor",
    "%docker_restart x",
    "%docker_stop y",
)


@one_engine
def test_an_engine_that_hangs_is_told_of_and_cells_go_on(
    notebook: Notebook, second: OwnEngine
) -> None:
    notebook.use("y")
    notebook.use("x")
    cell = notebook.send(COUNT)
    notebook.wait_printed(cell, "counted 3")
    with second.hanging():
        (notebook.folder / "engine-is-away").touch()
        assert notebook.finish(cell).reply["status"] == "ok"
        for line in NEEDS_THE_ENGINE:
            since = time.monotonic()
            told = notebook.run(line)
            print(f"{line}: {time.monotonic() - since:.1f} s: {told.traceback}")
            assert told.reply["ename"] == "EngineUnreachableError", line
            assert HANGS in told.traceback, line
            assert time.monotonic() - since < PATIENCE_OF_A_READER, line
        for line in NEEDS_NO_ENGINE:
            since = time.monotonic()
            done = notebook.ok(line)
            print(f"{line}: {time.monotonic() - since:.1f} s: {done.printed()}")
            assert time.monotonic() - since < PATIENCE_OF_A_READER, line
        assert notebook.ok("6 * 7").result == "42"
    goes_on(notebook)


@one_engine
def test_a_notebook_ends_while_the_engine_hangs(notebook: Notebook, second: OwnEngine) -> None:
    notebook.manager.shutdown_wait_time = 5.0  # as a front end has it
    with second.hanging():
        since = time.monotonic()
        notebook.manager.shutdown_kernel()
        print(f"the notebook's end: {time.monotonic() - since:.1f} s")
        assert time.monotonic() - since < PATIENCE_OF_A_READER
    wait_until(lambda: not ours(second), what="no container to be left")
