"""JupyterLab in a headless browser: in containers, everything is as with a local kernel.

Each feature is tried on both paths: *routed*, in a notebook after `%docker_env`, and *kernel*, in a notebook
with a kernel of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import NotebookPage
from tests.browser.servers import Server
from tests.integration.conftest import Image
from tests.integration.notebook import LONG_SLEEP, containers_of
from tests.waiting import wait_until

PROGRAM = "jupyterlab"
TF = "dockml/tensorflow:1.10.0"
WIDGETS = "dockml/widgets:3.11"
KERNEL = "dockml-dockml-widgets-3.11"
PATHS = ("routed", "kernel")

SLIDER = """
import ipywidgets, os
slider = ipywidgets.IntSlider(min=0, max=100)
told = ipywidgets.Output()

def tell(change):
    with told:
        print("moved to", change["new"], "in a container:", os.path.exists("/run/dockml"))

slider.observe(tell, "value")
display(slider, told)
""".strip()

GREET = """
def greet(name):
    "Say hello from the container."
    loud = name.upper()
    return "Hello " + loud

container_number = 5
container_name = "x"
""".strip()

OpenNotebook = Callable[[str], NotebookPage]


@pytest.fixture(scope="module")
def lab(server: Server, image: Image) -> Server:
    """A JupyterLab in which kernels of ours are installed."""
    image(TF), image(WIDGETS)
    server.install_kernel(TF, "--display-name", "TensorFlow 1.10")
    server.install_kernel(WIDGETS, "--display-name", "Widgets")
    return server


@pytest.fixture
def open_notebook(lab: Server, page: Page) -> OpenNotebook:
    """Give a function that opens a notebook whose cells run in a container, on one of the paths."""

    def open_one(path: str) -> NotebookPage:
        name = f"{path}.ipynb"
        lab.write_notebook(name, "", kernel=KERNEL if path == "kernel" else "python3")
        notebook = NotebookPage(page).open(f"{lab.address}lab/tree/{name}?reset")
        if path == "routed":
            notebook.use(WIDGETS)
        return notebook

    return open_one


def test_a_notebook_runs_cells_in_a_container_and_its_stop_button_works(
    lab: Server, page: Page
) -> None:
    lab.write_notebook("stop.ipynb", "")
    notebook = NotebookPage(page).open(f"{lab.address}lab/tree/stop.ipynb?reset")
    notebook.use(TF)
    version = notebook.run("import tensorflow as tf\nprint('TensorFlow', tf.__version__)")
    expect(version).to_contain_text("TensorFlow 1.10.0")
    stopped = notebook.start(f"x = 42\nopen('sleeping', 'w').close()\nimport time; {LONG_SLEEP}")
    wait_until((lab.folder / "sleeping").exists, what="the cell to run")
    notebook.stop()
    expect(stopped).to_contain_text("KeyboardInterrupt")
    expect(notebook.run("print('x is', x)")).to_contain_text("x is 42")


def test_our_kernel_is_in_the_launcher_and_runs_a_notebook(lab: Server, page: Page) -> None:
    notebook = NotebookPage(page)
    notebook.open_launcher(f"{lab.address}lab?reset", "TensorFlow 1.10 (Docker)")
    expect(notebook.run("import tensorflow as tf; tf.__version__")).to_contain_text("'1.10.0'")


@pytest.mark.parametrize("path", PATHS)
def test_tab_and_shift_tab_ask_the_kernel_in_the_container(
    open_notebook: OpenNotebook, path: str
) -> None:
    notebook = open_notebook(path)
    notebook.run(GREET)
    cell = notebook.write("container_n")
    offered = notebook.complete()
    expect(offered).to_contain_text(["container_name", "container_number"])
    offered.filter(has_text="container_number").click()
    expect(notebook.cells.nth(cell)).to_contain_text("container_number")
    notebook.page.keyboard.press("Shift+Enter")
    expect(notebook.output(cell)).to_contain_text("5")
    notebook.write("greet")
    notebook.page.keyboard.press("Shift+Tab")
    expect(notebook.page.locator(".jp-Tooltip")).to_contain_text("Say hello from the container.")


def test_tab_completes_our_own_magics_in_a_routed_notebook(open_notebook: OpenNotebook) -> None:
    notebook = open_notebook("routed")
    notebook.write("%docker_r")
    expect(notebook.complete().filter(has_text="%docker_restart")).to_be_visible()


@pytest.mark.parametrize("path", PATHS)
def test_a_slider_of_the_container_is_moved_with_the_mouse_and_lives_on_after_a_reload(
    open_notebook: OpenNotebook, path: str
) -> None:
    notebook = open_notebook(path)
    output = notebook.run(SLIDER)
    notebook.drag(output.locator(".noUi-handle"), 100)
    expect(output).to_contain_text(re.compile(r"moved to \d+ in a container: True"))
    first = int(output.locator(".widget-readout").inner_text())
    assert 0 < first < 100
    expect(output).to_contain_text(f"moved to {first} in")  # the page sends some of many moves
    assert int(notebook.run("slider.value").inner_text().split()[-1]) == first
    index = notebook.cells.count() - 3
    notebook.save()
    notebook.reload()
    output = notebook.output(index)
    expect(output).to_contain_text(f"moved to {first} in a container: True")
    expect(output.locator(".widget-readout")).to_have_text(str(first))
    notebook.drag(output.locator(".noUi-handle"), 50)
    expect(output.locator(".widget-readout")).not_to_have_text(str(first))
    second = int(output.locator(".widget-readout").inner_text())
    assert second > first
    expect(output).to_contain_text(f"moved to {second} in a container: True")
    expect(notebook.run("slider.value")).to_contain_text(str(second))


def test_restart_from_the_menu_is_a_new_kernel_in_the_same_container(
    open_notebook: OpenNotebook, lab: Server
) -> None:
    notebook = open_notebook("kernel")
    notebook.run("x = 42\nopen('/tmp/in-the-container', 'w').close()")
    (container,) = containers_of(lab.folder)
    notebook.restart()
    kept = notebook.run("import os; 'x' in globals(), os.path.exists('/tmp/in-the-container')")
    expect(kept).to_contain_text("(False, True)")
    assert containers_of(lab.folder) == [container]


def test_restart_from_the_menu_of_a_routed_notebook_keeps_its_environment(
    open_notebook: OpenNotebook, lab: Server
) -> None:
    notebook = open_notebook("routed")
    notebook.run("x = 42\nopen('/tmp/in-the-container', 'w').close()")
    (container,) = containers_of(lab.folder)
    notebook.restart()
    expect(notebook.run("import os; os.path.exists('/run/dockml')")).to_contain_text("False")
    notebook.use(WIDGETS)
    kept = notebook.run("import os; 'x' in globals(), os.path.exists('/tmp/in-the-container')")
    expect(kept).to_contain_text("(False, True)")
    assert containers_of(lab.folder) == [container]


@pytest.mark.parametrize("path", PATHS)
def test_a_breakpoint_set_in_the_margin_stops_inside_the_container(
    open_notebook: OpenNotebook, path: str
) -> None:
    notebook = open_notebook(path)
    page = notebook.page
    cell = notebook.cells.count() - 1
    notebook.run(GREET)
    page.locator(".jp-DebuggerBugButton[aria-disabled=false]:visible").click()
    margin = notebook.cells.nth(cell).locator(".cm-breakpoint-gutter .cm-gutterElement")
    margin.nth(3).click()  # the first is a spacer
    expect(page.locator(".jp-DebuggerBreakpoints-body")).to_contain_text("3")
    greeting = notebook.start("import os; greet('you'), os.path.exists('/run/dockml')")
    expect(page.locator(".jp-DebuggerCallstack-body")).to_contain_text("greet")
    variables = page.locator(".jp-DebuggerVariables-body:visible")
    expect(variables).to_contain_text(re.compile(r"name\W*you"))
    expect(greeting).to_be_empty()
    page.locator("[data-command='debugger:continue']:visible").first.click()
    expect(greeting).to_contain_text("('Hello YOU', True)")
