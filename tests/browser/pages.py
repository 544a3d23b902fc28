"""A notebook in a page of JupyterLab or Notebook 7, used as somebody at a keyboard and a mouse does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Error, Locator, Page, Request, expect

from tests.integration.notebook import LONG_SLEEP
from tests.waiting import wait_until

PATIENCE_MS = 60_000
"""Milliseconds after which something that does not appear is a failure."""
_STOP = ".jp-NotebookPanel-toolbar:visible [data-command='notebook:interrupt-kernel']"
_LOADS = 5
_TABS = 10
_PER_TAB_MS = 3_000


class NotebookPage:
    """The notebook that a page shows.

    Chromium gives up requests that have just begun when the machine's network changes, which it does
    whenever anybody's container starts or ends. A page to which that happened is loaded again.

    Parameters
    ----------
    page : Page
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.notebook = page.locator(".jp-Notebook:visible")
        self.cells = self.notebook.locator(".jp-CodeCell")

    def open(self, address: str) -> NotebookPage:
        """Open an address; return when its notebook's kernel takes cells: one run earlier is not sent."""
        self._load(lambda: self.page.goto(address), self.page.locator(_STOP))
        return self.wait_until_idle()

    def reload(self) -> None:
        """Load the page again; return as `open` does."""
        self._load(self.page.reload, self.page.locator(_STOP))
        self.wait_until_idle()

    def open_launcher(self, address: str, card: str) -> None:
        """Open an address that shows the launcher, and start a notebook with one of its kernels."""
        found = self.page.locator(".jp-LauncherCard[data-category=Notebook]", has_text=card)
        self._load(lambda: self.page.goto(address), found.locator("img"))
        found.click()
        self.wait_until_idle()

    def _load(self, load: Callable[[], object], shows: Locator) -> None:
        """Load the page, again if requests were given up."""
        given_up: list[Request] = []

        def note(request: Request) -> None:
            if "ERR_NETWORK_CHANGED" in (request.failure or ""):
                given_up.append(request)

        self.page.on("requestfailed", note)
        for _ in range(_LOADS):
            given_up.clear()
            try:
                load()
            except Error:
                if not given_up:
                    raise
            wait_until(
                lambda: given_up or shows.is_visible(), what="the page to be there", timeout=90
            )
            if not given_up:
                break
        self.page.remove_listener("requestfailed", note)

    def wait_until_idle(self) -> NotebookPage:
        """Wait until there is a kernel and it has nothing to do."""
        name = self.page.locator(".jp-Toolbar-kernelName:visible")
        expect(name).not_to_have_text("No Kernel")  # which is idle too
        indicator = self.page.locator(".jp-Notebook-ExecutionIndicator:visible")
        expect(indicator).to_have_attribute("data-status", "idle")
        return self

    def output(self, index: int) -> Locator:
        """The output of a cell."""
        return self.cells.nth(index).locator(".jp-Cell-outputArea")

    def click_into(self, index: int) -> None:
        """Put the cursor into a cell."""
        self.cells.nth(index).locator(".cm-content").click()

    def write(self, code: str) -> int:
        """Write into the last cell, as if it was pasted; return that cell's index."""
        index = self.cells.count() - 1
        self.click_into(index)
        self.page.keyboard.insert_text(code)
        return index

    def start(self, code: str) -> Locator:
        """Write a cell and run it; return its output at once."""
        index = self.write(code)
        self.page.keyboard.press("Shift+Enter")
        return self.output(index)

    def run(self, code: str) -> Locator:
        """Write a cell and run it to its end; return its output."""
        index = self.write(code)
        self.page.keyboard.press("Shift+Enter")
        prompt = self.cells.nth(index).locator(".jp-InputArea-prompt")
        expect(prompt).to_contain_text(re.compile(r"\[\d+\]"))
        return self.output(index)

    def use(self, name: str) -> None:
        """Have the following cells run in an environment."""
        self.run("%load_ext dockml_magic")
        expect(self.run(f"%docker_env {name}")).to_contain_text(f"Cells run in '{name}'")

    def run_until_stopped(self, mark: Path) -> Locator:
        """Run a cell that sets `x` and would go on for long, and press the stop button; return its output."""
        output = self.start(f"x = 42\nopen({mark.name!r}, 'w').close()\nimport time; {LONG_SLEEP}")
        wait_until(mark.exists, what="the cell to run")
        self.stop()
        return output

    def stop(self) -> None:
        """Press the stop button; return when the cell has ended: what is sent before its reply may be aborted."""
        self.page.locator(_STOP).click()
        running = self.notebook.locator(".jp-InputArea-prompt", has_text="[*]")
        expect(running).to_have_count(0)

    def restart(self) -> None:
        """Restart the kernel from the menu."""
        self.page.get_by_role("menuitem", name="Kernel", exact=True).click()
        self.page.locator(".lm-Menu [data-command='kernelmenu:restart']").click()
        self.page.locator(".jp-Dialog .jp-mod-accept").click()

    def save(self) -> None:
        """Save the notebook."""
        self.page.keyboard.press("Control+s")
        expect(self.page.locator(".lm-TabBar-tab.lm-mod-current.jp-mod-dirty")).to_have_count(0)

    def complete(self) -> Locator:
        """Press Tab until something is offered: the first answer may come later than JupyterLab waits."""
        offered = self.page.locator(".jp-Completer-item")
        for _ in range(_TABS):
            self.page.keyboard.press("Tab")
            try:
                offered.first.wait_for(timeout=_PER_TAB_MS)
                break
            except Error:
                continue
        return offered

    def drag(self, handle: Locator, distance: int) -> None:
        """Move something to the right with the mouse, by as many pixels."""
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + distance, y, steps=4)
        self.page.mouse.up()
