"""The image picker in Notebook 7, once through."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.pages import NotebookPage
from tests.browser.picker import Picker
from tests.browser.servers import Server
from tests.integration.conftest import Image

PROGRAM = "notebook"
BARE = "dockml/bare:3.11"


def test_what_is_found_and_started_runs_the_next_cell_until_it_is_stopped_and_errors_are_shown(
    server: Server, image: Image, page: Page
) -> None:
    image(BARE)
    server.write_notebook("pick.ipynb", "")
    notebook = NotebookPage(page).open(f"{server.address}notebooks/pick.ipynb")
    picker = Picker.open(notebook)
    picker.find.fill(BARE)
    expect(picker.line).to_have_value(f"%docker_env {BARE}")
    picker.start.click()
    expect(picker.environment(BARE)).to_contain_text("cells run here")
    in_container = "import os; os.path.exists('/run/dockml')"
    expect(notebook.run(in_container)).to_contain_text("True")
    picker.press("Stop")
    expect(picker.log).to_contain_text(f"Stopped '{BARE}'")
    expect(notebook.run(in_container)).to_contain_text("False")
    picker.find.fill("localhost:1/unknown:1")
    picker.start.click()
    expect(picker.log).to_contain_text("The image 'localhost:1/unknown:1' is not available")
    expect(picker.start).to_be_enabled()
