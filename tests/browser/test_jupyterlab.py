"""JupyterLab in a headless browser: the magics in a notebook, and our kernel in the launcher.

A failed test leaves a screenshot in the folder that ``DOCKML_SCREENSHOTS`` names, by default in its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from dockml_magic import kernelspecs
from dockml_magic.options import RunOptions
from tests.integration.conftest import Image
from tests.integration.waiting import wait_until
from tests.machine.packages import install

TF = "dockml/tensorflow:1.10.0"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CELLS = [
    "%load_ext dockml_magic",
    f"%docker_env {TF}",
    "import tensorflow as tf\nprint('TensorFlow', tf.__version__)",
    "x = 42\nopen('sleeping', 'w').close()\nimport time; time.sleep(600)",
    "print('x is', x)",
]
PATIENCE_MS = 60_000


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser; Debian's is installed where there is none and we may."""
    if shutil.which("chromium") is None:
        install(["chromium"])
    return str(shutil.which("chromium"))


@pytest.fixture
def lab(
    workspace: Path, tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The address of a JupyterLab in the workspace that finds a kernel of ours."""
    image(TF)
    prefix = tmp_path / "prefix"
    kernelspecs.install(TF, RunOptions(), prefix=str(prefix), display_name="TensorFlow 1.10")
    monkeypatch.setenv("JUPYTER_PATH", str(prefix / "share" / "jupyter"))
    cells = [nbformat.v4.new_code_cell(code) for code in CELLS]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}),
        workspace / "nb.ipynb",
    )
    log = tmp_path / "lab.log"
    options = [
        "--no-browser",
        "--core-mode",
        "--port=0",
        "--allow-root",
        "--IdentityProvider.token=",
    ]
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], stdout=output, stderr=subprocess.STDOUT
        )
    address = re.compile(r"http://(?:localhost|127\.0\.0\.1):\d+/lab")
    try:
        wait_until(lambda: address.search(log.read_text()), what="JupyterLab to listen")
        yield address.findall(log.read_text())[-1]
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def page(chromium: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of a browser; how it looked in the end is kept, unless the test passed."""
    folder = Path(os.environ.get("DOCKML_SCREENSHOTS") or tmp_path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        failed_before = request.session.testsfailed
        yield page
        if request.session.testsfailed > failed_before or "DOCKML_SCREENSHOTS" in os.environ:
            folder.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=folder / f"{request.node.name}.png")
        browser.close()


def wait_for_kernel(page: Page, title: str) -> None:
    """Wait until a notebook's kernel takes cells: one that is run earlier is not sent."""
    expect(page.locator("#jp-main-statusbar")).to_contain_text(f"{title} | Idle")


def output_of(page: Page, index: int) -> Locator:
    """The output of a cell."""
    return (
        page.locator(".jp-Notebook:visible .jp-CodeCell").nth(index).locator(".jp-Cell-outputArea")
    )


def test_a_notebook_runs_cells_in_a_container_and_its_stop_button_works(
    lab: str, page: Page, workspace: Path
) -> None:
    page.goto(f"{lab}/tree/nb.ipynb")
    page.locator(".jp-Notebook .jp-CodeCell").first.locator(".cm-content").click()
    wait_for_kernel(page, "Python 3 (ipykernel)")
    for _ in range(4):
        page.keyboard.press("Shift+Enter")
    expect(output_of(page, 1)).to_contain_text(f"Cells run in '{TF}'")
    expect(output_of(page, 2)).to_contain_text("TensorFlow 1.10.0")
    wait_until((workspace / "sleeping").exists, what="the cell to run")
    page.locator("[data-command='notebook:interrupt-kernel']").first.click()
    expect(output_of(page, 3)).to_contain_text("KeyboardInterrupt")
    page.keyboard.press("Shift+Enter")
    expect(output_of(page, 4)).to_contain_text("x is 42")


def test_our_kernel_is_in_the_launcher_and_runs_a_notebook(lab: str, page: Page) -> None:
    page.goto(lab)
    card = page.locator(
        ".jp-LauncherCard[data-category=Notebook]", has_text="TensorFlow 1.10 (Docker)"
    )
    expect(card.locator("img")).to_be_visible()
    card.click()
    wait_for_kernel(page, "TensorFlow 1.10 (Docker)")
    page.locator(".jp-Notebook:visible .cm-content").first.click()
    page.keyboard.type("import tensorflow as tf; tf.__version__")
    page.keyboard.press("Shift+Enter")
    expect(output_of(page, 0)).to_contain_text("'1.10.0'")
