"""The image picker in JupyterLab: found, chosen, started and stopped with mouse or keyboard only."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import NotebookPage
from tests.browser.picker import Picker
from tests.browser.servers import Server
from tests.integration.conftest import Image
from tests.integration.notebook import containers_of
from tests.waiting import wait_until

PROGRAM = "jupyterlab"
BARE = "dockml/bare:3.11"
OTHER = "dockml/pip:3.11"
SLOW = "dockml/bare:3.9"
"""What no other test here starts: nothing of it is warm ahead."""

HOLD = """
import os, time
from dockml_magic.container import KernelContainer
start = KernelContainer.start
def held(container):
    while not os.path.exists("go-on") and not container._abandoned:
        time.sleep(0.05)
    start(container)
KernelContainer.start = held
"""
"""Has starts wait for a file, or until they are given up."""


@pytest.fixture
def picker(server: Server, image: Image, page: Page) -> Picker:
    """A picker in a new notebook; both images are here."""
    image(BARE), image(OTHER)
    server.write_notebook("pick.ipynb", "")
    notebook = NotebookPage(page).open(f"{server.address}lab/tree/pick.ipynb?reset")
    return Picker.open(notebook)


def test_rows_are_found_while_one_types(picker: Picker) -> None:
    expect(picker.count).to_have_text(re.compile(r"of [89]\d\d · the first 200 are shown"))
    expect(picker.rows).to_have_count(200)
    picker.find.press_sequentially("tf1.10-gpu")
    expect(picker.rows.first).to_contain_text("tf1.10-gpu")
    expect(picker.count).to_have_text(re.compile(r"of \d$"))
    assert picker.rows.count() < 10
    expect(picker.details).to_contain_text("TensorFlow 1.10.0 GPU")
    expect(picker.details).to_contain_text("tensorflow/tensorflow:1.10.0-gpu-py3")
    expect(picker.line).to_have_value("%docker_env tf1.10-gpu")
    picker.find.fill("")
    expect(picker.rows).to_have_count(200)
    expect(picker.start).to_be_disabled()


def test_choosers_narrow_what_is_shown(picker: Picker) -> None:
    picker.box.get_by_label("Framework").select_option("PyTorch")
    expect(picker.rows.first).to_contain_text("torch")
    picker.box.get_by_label("Version").select_option("1.1")
    picker.box.get_by_label("Built for").select_option("GPU")
    expect(picker.rows.filter(has_text="torch1.1-gpu-devel")).to_have_count(1)
    picker.box.get_by_label("Framework").select_option("Any")
    expect(picker.box.get_by_label("Version")).to_be_disabled()
    picker.box.get_by_label("Built for").select_option("GPU or CPU")
    picker.box.get_by_label("Only what is here").check()
    picker.find.fill("dockml")
    expect(picker.row(BARE)).to_have_count(1)
    expect(picker.rows.filter(has_not_text="here")).to_have_count(0)
    for text in picker.rows.all_inner_texts():
        assert text.endswith("here")


def test_what_is_started_runs_the_next_cells_until_it_is_stopped(
    picker: Picker, server: Server
) -> None:
    picker.find.fill(BARE)
    picker.box.get_by_label("Memory limit").fill("1g")
    picker.box.get_by_label("Ports").fill("8501")
    expect(picker.line).to_have_value(f"%docker_env {BARE} --memory 1g -p 8501")
    picker.start.click()
    expect(picker.environment(BARE)).to_contain_text("cells run here")
    expect(picker.log).to_contain_text(f"Cells run in '{BARE}'")
    assert is_in_container(picker.notebook)
    expect(picker.environment(BARE)).to_contain_text(re.compile(r"CPU \d+ % · \d+ MB of 1\.1 GB"))
    # The picker's own messages belong to the notebook's own kernel still.
    picker.find.fill("tf1.10-gpu")
    expect(picker.line).to_have_value("%docker_env tf1.10-gpu --memory 1g -p 8501")
    picker.press("Logs")
    expect(picker.log).to_contain_text("dockml")
    picker.press("Switch", -1)
    expect(picker.environment("local")).to_contain_text("cells run here")
    assert not is_in_container(picker.notebook)
    picker.press("Switch")
    expect(picker.environment(BARE)).to_contain_text("cells run here")
    picker.notebook.run("x = 42")
    picker.press("Restart")
    expect(picker.log).to_contain_text(f"Restarted '{BARE}'")
    expect(picker.notebook.run("'x' in globals()")).to_contain_text("False")
    picker.press("Stop")
    expect(picker.log).to_contain_text(f"Stopped '{BARE}'")
    expect(picker.box).not_to_contain_text("Running environments")
    assert not is_in_container(picker.notebook)
    wait_until(lambda: not containers_of(server.folder), what="no container to be left")


def test_what_is_chosen_says_when_it_is_warm(picker: Picker) -> None:
    # Nothing is started ahead of an image that was never started here.
    picker.notebook.run(f"import dockml_magic; dockml_magic.start({BARE!r}).stop()")
    picker.find.fill(BARE)
    picker.box.get_by_label("Memory limit").fill("1g")
    expect(picker.readiness).to_have_text("● warm")
    picker.find.fill("tf1.10-gpu")
    expect(picker.box).not_to_contain_text("warm")


def test_what_a_cell_starts_and_stops_is_shown(picker: Picker) -> None:
    picker.notebook.run(f"%docker_env {BARE}")
    picker.notebook.run(f"%docker_env {OTHER}")
    expect(picker.environment(OTHER)).to_contain_text("cells run here")
    expect(picker.environment(BARE)).not_to_contain_text("cells run here")
    picker.notebook.run(f"%docker_stop {OTHER}")
    expect(picker.environment(OTHER)).to_have_count(0)
    expect(picker.environment("local")).to_contain_text("cells run here")


def test_an_error_is_shown_in_the_picker_and_nowhere_else(picker: Picker) -> None:
    picker.find.fill(BARE)
    picker.box.get_by_label("Memory limit").fill("much")
    expect(picker.line).to_have_value(f"%docker_env {BARE} --memory much")
    picker.start.click()
    expect(picker.log).to_contain_text("'much' is not a size. Write it as docker does: 512m, 2g.")
    picker.find.fill("localhost:1/unknown:1")
    picker.box.get_by_label("Memory limit").fill("")
    expect(picker.line).to_have_value("%docker_env localhost:1/unknown:1")
    expect(picker.details).to_contain_text("nothing is known of it")
    picker.start.click()
    expect(picker.log).to_contain_text("The image 'localhost:1/unknown:1' is not available")
    expect(picker.start).to_be_enabled()
    expect(picker.notebook.run("1 + 1")).to_contain_text("2")
    assert not is_in_container(picker.notebook)


def test_a_start_is_given_up_and_leaves_nothing(
    picker: Picker, server: Server, image: Image
) -> None:
    picker.notebook.run(HOLD)
    picker.find.fill(image(SLOW))
    picker.start.click()
    picker.button("Cancel").click()
    expect(picker.log).to_contain_text("was stopped; nothing of it is left")
    expect(picker.start).to_be_enabled()
    assert not is_in_container(picker.notebook)
    wait_until(lambda: not containers_of(server.folder), what="no container to be left")


def test_cells_run_while_an_image_starts(picker: Picker, server: Server, image: Image) -> None:
    picker.notebook.run(HOLD)
    picker.find.fill(image(SLOW))
    picker.start.click()
    expect(picker.button("Cancel")).to_be_visible()
    expect(picker.notebook.run("1 + 1")).to_contain_text("2")
    (server.folder / "go-on").touch()
    expect(picker.environment(SLOW)).to_contain_text("cells run here")
    assert is_in_container(picker.notebook)


def test_the_keyboard_is_enough(picker: Picker, page: Page) -> None:
    keyboard = page.keyboard
    picker.find.focus()
    keyboard.type("dockml 3.11")
    expect(picker.rows.filter(has_not_text="3.11")).to_have_count(0)
    expect(picker.row(OTHER)).to_have_count(1)
    label = focused(page)
    assert label == "Find"
    for label in ("Framework", "Built for", "Only what is here", "Images", "Row"):
        keyboard.press("Tab")
        assert focused(page) == label
    names = [text.split()[0] for text in picker.rows.all_inner_texts()]
    for _ in range(names.index(OTHER)):  # the first is chosen
        keyboard.press("ArrowUp")
    expect(picker.line).to_have_value(f"%docker_env {OTHER}")
    expect(picker.details).to_contain_text(OTHER)
    for label in ("GPUs", "Memory limit", "Ports", "Start"):
        keyboard.press("Tab")
        assert focused(page) == label
    keyboard.press("Enter")
    expect(picker.environment(OTHER)).to_contain_text("cells run here")
    expect(picker.start).to_be_enabled()
    while focused(page) != "Stop":
        keyboard.press("Tab")
    keyboard.press("Space")
    expect(picker.log).to_contain_text(f"Stopped '{OTHER}'")


def focused(page: Page) -> str:
    """Return the accessible name of what has the focus."""
    script = """() => {
        const e = document.activeElement;
        return e.labels?.[0]?.textContent || e.ariaLabel || e.textContent;
    }"""
    return str(page.evaluate(script)).strip()


def is_in_container(notebook: NotebookPage) -> bool:
    output = notebook.run("import os; os.path.exists('/run/dockml')")
    expect(output).to_contain_text(re.compile("True|False"))
    return "True" in output.inner_text()
