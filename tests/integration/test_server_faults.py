"""A Jupyter server that is stopped, or killed, under a notebook: what is kept stays, and nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from dockml_magic import folders
from tests.browser.servers import Server
from tests.integration.conftest import Image
from tests.integration.notebook import (
    PATIENCE,
    Notebook,
    containers_of,
    never_taken_for_dead,
    python_with,
)
from tests.waiting import wait_until

BARE = "dockml/bare:3.11"

pytestmark = pytest.mark.usefixtures("strangers")


class NotebookOf(Notebook):
    """A notebook whose kernel a server has started.

    Parameters
    ----------
    server : Server
    name : str
        The notebook's.
    """

    def __init__(self, server: Server, name: str) -> None:
        super().__init__(server.folder, python_with("ipykernel7"))
        self._server = server
        self._name = name

    def _connect(self) -> None:
        connection_file = self._server.open_notebook(self._name)
        self.client = BlockingKernelClient(connection_file=str(connection_file))
        self.client.load_connection_file()
        never_taken_for_dead(self.client)
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)

    def __enter__(self) -> NotebookOf:
        self._connect()
        return self


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "kill -9"])
def test_a_server_that_ends_takes_all_along_but_what_is_kept(
    image: Image,
    workspace: Path,
    own_folders: Path,
    tmp_path: Path,
    signum: signal.Signals,
) -> None:
    name, kept = image(BARE), f"kept-{os.getpid()}"
    server = Server("jupyter_server", workspace, tmp_path, dict(os.environ))
    with server, NotebookOf(server, "one.ipynb") as notebook:
        notebook.ok("%load_ext dockml_magic")
        notebook.use(name, "--name", kept, "--keep")
        notebook.ok("variable = 42")
        (lasting,) = containers_of(workspace)
        notebook.use(name)
        cell = notebook.send(
            "print('asleep', flush=True)\nimport time\nwhile True: time.sleep(0.1)"
        )
        notebook.wait_printed(cell, "asleep")
        assert len(containers_of(workspace)) == 2
        server.signal(signum)
        wait_until(lambda: containers_of(workspace) == [lasting], what="the ordinary one to go")
    (tmp_path / "other").mkdir()
    other = Server("jupyter_server", workspace, tmp_path / "other", dict(os.environ))
    with other, NotebookOf(other, "two.ipynb") as notebook:
        notebook.ok("%load_ext dockml_magic")
        assert "its variables alive" in notebook.use(kept).printed()
        assert notebook.ok("variable").result == "42"
        notebook.ok(f"%docker_rm -f {kept}")
    # A kernel whose server is killed ends itself at once: what it leaves goes with the next start, a minute later.
    for path in own_folders.glob("dockml/**/"):
        os.utime(path, (0, 0))
    wait_until(lambda: not list(folders.runtime_root().iterdir()), what="no folder to be left")
