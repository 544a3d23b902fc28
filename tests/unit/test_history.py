"""When a container's IPython writes its history to the disk: `write_history_later` of the launcher."""

from __future__ import annotations

import atexit
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

TIMEOUT = 20.0

History = tuple[HistoryManager, Callable[[], list[str]]]
"""IPython's history, and how to see what its file has."""


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """A history with its thread."""
    config = Config(HistoryManager={"hist_file": str(tmp_path / "history.sqlite")})
    shell = InteractiveShell(ipython_dir=str(tmp_path), config=config)
    manager = shell.history_manager
    assert manager is not None

    def on_disk() -> list[str]:
        with closing(sqlite3.connect(manager.hist_file)) as connection:
            rows = connection.execute("SELECT source_raw FROM history ORDER BY line").fetchall()
            return [code for (code,) in rows]

    yield manager, on_disk
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()


def test_cells_of_a_moment_are_written_together(launch: ModuleType, history: History) -> None:
    manager, on_disk = history
    writes = []
    write = manager.writeout_cache
    manager.writeout_cache = lambda *words: (writes.append(threading.get_ident()), write(*words))
    launch.write_history_later(manager, patience=2.0)
    cells = [f"x = {n}" for n in range(10)]
    for n, code in enumerate(cells):
        manager.store_inputs(n, code)
        time.sleep(0.05)  # in which IPython itself has written it
    deadline = time.monotonic() + TIMEOUT
    while on_disk() != cells:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(writes) < len(cells) / 2
    assert set(writes) == {manager.save_thread.ident}


def test_the_end_of_a_kernel_neither_waits_for_the_history_nor_loses_it(
    launch: ModuleType, history: History
) -> None:
    manager, on_disk = history
    launch.write_history_later(manager, patience=1e6)
    manager.store_inputs(1, "the last cell")
    manager.end_session()
    assert on_disk() == ["the last cell"]
    manager.store_inputs(2, "one more, so that the thread waits")
    stop = threading.Thread(target=manager.save_thread.stop, daemon=True)
    stop.start()
    stop.join(TIMEOUT)
    assert not manager.save_thread.is_alive()


@pytest.mark.parametrize(
    "history",
    [
        SimpleNamespace(),
        SimpleNamespace(save_thread=None, writeout_cache="as it was"),
        SimpleNamespace(save_thread=SimpleNamespace(), writeout_cache="as it was"),
        None,
    ],
    ids=["unlike IPython's", "without a thread", "a thread unlike IPython's", "none"],
)
def test_a_history_that_is_made_otherwise_is_left_as_it_is(
    launch: ModuleType, history: SimpleNamespace | None
) -> None:
    launch.write_history_later(history)
    assert getattr(history, "writeout_cache", "as it was") == "as it was"
