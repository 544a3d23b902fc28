"""The picker's messages under both generations of ipykernel: as a page sends them, without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Image
from tests.integration.notebook import IPYKERNELS, Notebook, containers_of, python_with
from tests.waiting import wait_until

BARE = "dockml/bare:3.11"
IN_CONTAINER = "import os; os.path.exists('/run/dockml')"


@pytest.fixture(params=IPYKERNELS)
def notebook(request: pytest.FixtureRequest, workspace: Path, image: Image) -> Iterator[Notebook]:
    """A notebook that has a picker called `picker`, set to an image."""
    image(BARE)
    with Notebook(workspace, python_with(request.param)) as notebook:
        notebook.ok("import dockml_magic")
        notebook.ok(f"picker = dockml_magic.ImagePicker({BARE!r}); picker")
        yield notebook


@pytest.fixture
def send(notebook: Notebook) -> Callable[[str, dict[str, Any]], None]:
    """Give a function that sends what a page sends to a widget, named by an expression of the kernel."""

    def send_to(widget: str, data: dict[str, Any]) -> None:
        printed = notebook.ok(f"%%docker_cell local\nprint({widget}.comm.comm_id)").printed()
        content = {"comm_id": printed.strip(), "data": data}
        notebook.client.shell_channel.send(notebook.client.session.msg("comm_msg", content))

    return send_to


CLICK = {"method": "custom", "content": {"event": "click"}}


def test_a_start_leaves_the_cells_alone_and_then_they_run_there(
    notebook: Notebook, send: Callable[[str, dict[str, Any]], None]
) -> None:
    send("picker._start", CLICK)
    notebook.ok("here = 1")  # wherever: it does not wait for the start
    wait_until(lambda: notebook.ok(IN_CONTAINER).result == "True", what="cells to run there")
    assert len(containers_of(notebook.folder)) == 1
    send("picker._filter", {"method": "update", "state": {"value": "tf1.10-gpu"}})
    found = notebook.ok("%%docker_cell local\nprint(picker)").printed()
    assert "%docker_env tf1.10-gpu" in found
    log = notebook.ok("%%docker_cell local\nprint(picker._log.value)").printed()
    assert f"Cells run in &#x27;{BARE}&#x27;" in log
    stop = "list(picker._rows.values())[0].box.children[2].children[3]"
    is_working = "%%docker_cell local\nprint(picker._working.locked())"
    wait_until(lambda: notebook.ok(is_working).printed() == "False\n", what="the start to be over")
    send(stop, CLICK)
    # One that comes there as it is stopped ends with it.
    wait_until(lambda: notebook.run(IN_CONTAINER).result == "False", what="cells to run here")
    wait_until(lambda: not containers_of(notebook.folder), what="no container to be left")
    told = [c.printed() for c in notebook._cells.values() if "Cells run" in c.printed()]
    assert len(told) == 1  # where this test itself printed the picker's log


def test_a_picker_keeps_no_kernel_from_ending(
    notebook: Notebook, send: Callable[[str, dict[str, Any]], None]
) -> None:
    send("picker._start", CLICK)
    wait_until(lambda: notebook.ok(IN_CONTAINER).result == "True", what="cells to run there")
    notebook.client.shutdown()
    wait_until(lambda: not notebook.manager.is_alive(), what="the kernel to end")
    wait_until(lambda: not containers_of(notebook.folder), what="no container to be left")
