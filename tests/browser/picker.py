"""The image picker on a page."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, expect

from tests.browser.pages import NotebookPage


class Picker:
    """The parts of a picker, as a user finds them.

    Parameters
    ----------
    notebook : NotebookPage
        Whose it is.
    box : Locator
        The output it is in.
    """

    def __init__(self, notebook: NotebookPage, box: Locator) -> None:
        self.notebook = notebook
        self.box = box
        self.find = box.get_by_label("Find")
        self.rows = box.get_by_label("Images").locator("option")
        self.count = box.locator("[role=status]").first
        self.details = box.locator(".dockml-details")
        self.line = box.get_by_label("The line that does the same, to copy")
        self.log = box.locator("[role=log]")
        self.start = self.button("Start")
        self.readiness = box.locator("[role=status]").last

    @classmethod
    def open(cls, notebook: NotebookPage, words: str = "") -> Picker:
        """Show a picker in a notebook."""
        notebook.run("%load_ext dockml_magic")
        picker = cls(notebook, notebook.run(f"%docker_pick {words}"))
        expect(picker.find).to_be_visible()
        return picker

    def button(self, name: str) -> Locator:
        """The buttons of this name."""
        return self.box.get_by_role("button", name=name, exact=True)

    def press(self, name: str, which: int = 0) -> None:
        """Press a button once what was begun before is done: until then it would only say so."""
        expect(self.start).to_be_enabled()
        self.button(name).nth(which).click()

    def row(self, name: str) -> Locator:
        """The image of this name; another test's registry may have one that ends so."""
        return self.rows.filter(has_text=re.compile(rf"^\s*{re.escape(name)}\s"))

    def environment(self, name: str) -> Locator:
        """The row of something that runs."""
        return self.box.locator(".dockml-row", has=self.box.page.locator("b", has_text=name)).last
