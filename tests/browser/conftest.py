"""What the tests in a browser share: the browser, a Jupyter server, and pages that keep how they looked.

They run on the same engine, images and folders as those on real containers. The tests of one file share a
server and a browser; each has a page, and kernels that end with it. A failed test leaves a screenshot in
the folder that ``DOCKML_SCREENSHOTS`` names, by default in its own.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from dockml_magic.engine import DockerEngine
from tests.browser.pages import PATIENCE_MS
from tests.browser.servers import Server
from tests.integration.conftest import (
    engine,
    image,
    lasting_cache,
    nothing_is_left,
    ours,
    own_folders,
    variables_of_its_own,
)
from tests.integration.notebook import containers_of
from tests.machine.packages import install
from tests.waiting import wait_until

__all__ = [
    "engine",
    "image",
    "lasting_cache",
    "nothing_is_left",
    "ours",
    "own_folders",
]

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCRIPTS = re.compile(r"/(static|extensions)/.*\.js")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser; Debian's is installed where there is none and we may."""
    if shutil.which("chromium") is None:
        install(["chromium"])
    return str(shutil.which("chromium"))


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """A browser. Not for the whole session: Playwright's event loop would be in the way of others'."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest,
    engine: DockerEngine,
    lasting_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """The server of the program that the test's module names with `PROGRAM`."""
    folder = tmp_path_factory.mktemp("notebooks")
    own = tmp_path_factory.mktemp("own")
    with variables_of_its_own(own / "own", engine, lasting_cache) as variables:
        with Server(request.module.PROGRAM, folder, own, variables) as server:
            yield server
        wait_until(lambda: not containers_of(folder), what="no container to be left")


@pytest.fixture
def page(
    browser: Browser, server: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Page]:
    """A page of a browser; how it looked in the end is kept, unless the test passed."""
    folder = Path(os.environ.get("DOCKML_SCREENSHOTS") or tmp_path)
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    # Scripts that a page loads while a container starts: see `NotebookPage` on changes of the network.
    context.route(SCRIPTS, lambda route: route.fulfill(response=route.fetch()))
    page = context.new_page()
    page.on("requestfailed", lambda request: print(request.failure, request.url))
    # What asks the server every few seconds may meet a change of the network, too.
    page.add_locator_handler(
        page.locator(".jp-Dialog", has_text="Server Connection Error"),
        lambda dialog: dialog.locator(".jp-mod-accept").click(),
    )
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    failed_before = request.session.testsfailed
    yield page
    if request.session.testsfailed > failed_before or "DOCKML_SCREENSHOTS" in os.environ:
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{request.node.name}.png")
    context.close()
    server.end_kernels()
