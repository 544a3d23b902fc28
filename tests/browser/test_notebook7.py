"""Jupyter Notebook 7 in a headless browser, once through."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.pages import NotebookPage
from tests.browser.servers import Server
from tests.integration.conftest import Image

PROGRAM = "notebook"
TF = "dockml/tensorflow:1.10.0"


def test_a_notebook_runs_cells_in_a_container_and_its_stop_button_works(
    server: Server, image: Image, page: Page
) -> None:
    server.write_notebook("a.ipynb", "")
    notebook = NotebookPage(page).open(f"{server.address}notebooks/a.ipynb")
    notebook.use(image(TF))
    version = notebook.run("import tensorflow as tf\nprint('TensorFlow', tf.__version__)")
    expect(version).to_contain_text("TensorFlow 1.10.0")
    stopped = notebook.run_until_stopped(server.folder / "sleeping")
    expect(stopped).to_contain_text("KeyboardInterrupt")
    expect(notebook.run("print('x is', x)")).to_contain_text("x is 42")
