"""A pull in JupyterLab: its bar, its layers, and what is left of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from dockml_magic.engine import DockerEngine
from tests.browser.pages import NotebookPage
from tests.browser.servers import Server
from tests.integration.registry import Fault, Proxy
from tests.integration.test_pull import (
    NAME,
    folder,
    layers,
    mirrored,
    proxy,
    registry_port,
    second,
    the_proxy,
)

PROGRAM = "jupyterlab"

__all__ = ["folder", "layers", "mirrored", "proxy", "registry_port", "second", "the_proxy"]


def test_a_pull_shows_its_bar_and_its_layers_and_leaves_a_line(
    server: Server,
    page: Page,
    mirrored: DockerEngine,
    proxy: Proxy,
    layers: list[str],
) -> None:
    stall = Fault(layers[2], after=1_500_000, then="stall", pause=0.02)
    proxy.faults.append(stall)
    server.write_notebook("pull.ipynb", "")
    notebook = NotebookPage(page).open(f"{server.address}lab/tree/pull.ipynb?reset")
    notebook.run("%load_ext dockml_magic")
    output = notebook.start(f"%docker_pull {NAME} --engine {mirrored.facts.endpoint}")
    expect(output).to_contain_text(f"Pulling {NAME}")
    expect(output).to_contain_text("nothing arrives")
    output.get_by_text("of 5 layers").click()
    expect(output).to_contain_text(re.compile(r"downloading, [\d.]+ [kM]B of 3\.0 MB"))
    if kept := os.environ.get("DOCKML_SCREENSHOTS"):
        page.screenshot(path=Path(kept) / "pull.png")
    stall.go_on.set()
    expect(output).to_contain_text(f"pulled {NAME}: 7.0 MB in")
    expect(output.get_by_text("of 5 layers")).to_have_count(0)
