"""Environments that are kept: they outlive their notebook, and others attach to them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockml_magic import kept
from dockml_magic.engine import DockerEngine
from tests.integration.conftest import Image
from tests.integration.notebook import IPYKERNELS, Notebook, containers_of, python_with
from tests.integration.waiting import wait_until

BARE = "dockml/bare:3.11"
LOAD = "%load_ext dockml_magic"
KEPT = "%docker_env {} --name mine --keep"

OpenNotebook = Callable[..., Notebook]


@pytest.fixture
def open_notebook(workspace: Path, image: Image) -> Iterator[OpenNotebook]:
    """Give a function that opens one more notebook of the workspace, with the extension loaded."""
    image(BARE)
    opened: list[Notebook] = []

    def open_one(ipykernel: str = IPYKERNELS[0]) -> Notebook:
        notebook = Notebook(workspace, python_with(ipykernel)).__enter__()
        opened.append(notebook)
        notebook.ok(LOAD)
        return notebook

    yield open_one
    for notebook in opened:
        notebook.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def no_kept_one_is_left(open_notebook: OpenNotebook, own_folders: Path) -> Iterator[None]:
    """Remove what a test has kept, before its containers are counted."""
    yield
    for found in kept.all_kept():
        kept.remove(found, force=True)


def longer_than_the_grace() -> None:
    """Wait until a container that nobody holds would be gone."""
    time.sleep(3.0)


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout


PRINTS = """
import time
for n in range(30):
    print('line', n, flush=True)
    time.sleep(0.2)
print('done')
7 * 6
"""


def test_after_kill_9_another_notebook_gets_the_variables_and_all_output(
    open_notebook: OpenNotebook,
) -> None:
    first = open_notebook()
    assert "ready in" in first.ok(KEPT.format(BARE)).printed()
    first.ok("variable = 42")
    cell = first.send(PRINTS)
    first.wait_printed(cell, "line 2\n")
    first.kill()
    seen = first._cells[cell].printed()
    time.sleep(2)
    second = open_notebook()
    attached = second.use("mine")
    print(attached.printed())
    text = attached.printed()
    assert "While nobody was attached: 1 output" in text
    assert "'mine' is still busy with a cell, whose output follows." in text
    shown = [int(line.split()[1]) for line in text.splitlines() if line.startswith("line ")]
    assert shown == list(range(shown[0], 30))
    assert shown[0] <= seen.count("\n") + 1
    assert attached.result == "42"
    assert "attached to the one that is kept, its variables alive" in text
    assert second.ok("variable").result == "42"
