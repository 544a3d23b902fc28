from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest

from dockml_magic import display, pull_view
from dockml_magic.display import Teller, show_pull
from dockml_magic.errors import ImageUnavailableError, PullStopped
from dockml_magic.pull import LayerProgress, PullProgress
from dockml_magic.pull_view import LineView, NotebookView, PullWidget, TerminalView

IMAGE = "me/mine:1"
ASKING = PullProgress(reference=IMAGE)
LAYERS = (
    LayerProgress(id="aaaaaaaaaaaa", phase="downloading", done=1_000_000, total=4_000_000),
    LayerProgress(id="bbbbbbbbbbbb", phase="here"),
)
HALF = PullProgress(reference=IMAGE, layers=LAYERS, speed=1e6, elapsed=1.0)
DONE = PullProgress(
    reference=IMAGE,
    layers=(LayerProgress(id="aaaaaaaaaaaa", phase="done", done=4_000_000, total=4_000_000),),
    elapsed=4.0,
    is_complete=True,
)
LAST = f"pulled {IMAGE}: 4.0 MB in 4.0 s"


@pytest.fixture
def told() -> list[str]:
    return []


def pull(tell: Callable[[str], None], *reports: PullProgress | BaseException) -> None:
    """Show a pull that reports these, or ends with one that is raised."""
    with show_pull(IMAGE, tell) as view:
        for report in reports:
            if isinstance(report, BaseException):
                raise report
            view.show(report)


# --- plain lines ----------------------------------------------------------------------------------


def test_who_takes_lines_gets_the_begin_the_size_and_the_end(told: list[str]) -> None:
    pull(told.append, ASKING, ASKING, HALF, HALF, DONE)
    assert told == [f"pulling {IMAGE}", "4.0 MB to download", LAST]


def test_an_interrupt_says_that_the_pull_was_stopped(told: list[str]) -> None:
    with pytest.raises(PullStopped, match=IMAGE):
        pull(told.append, HALF, KeyboardInterrupt())
    assert told[-1] == f"stopped pulling {IMAGE}"


def test_an_error_is_left_to_who_raises_it(told: list[str]) -> None:
    with pytest.raises(ImageUnavailableError):
        pull(told.append, ASKING, ImageUnavailableError(IMAGE, "gone."))
    assert told == [f"pulling {IMAGE}"]


def test_who_shows_pulls_himself_is_let() -> None:
    class Mine(Teller):
        def pull_view(self) -> pull_view.PullView:
            return LineView(lines.append)

    lines: list[str] = []
    pull(Mine(), ASKING)
    assert lines[0] == f"pulling {IMAGE}"


# --- a terminal -----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def shown(self) -> list[str]:
        """Return the lines that are left to see."""
        lines = self.getvalue().split("\n")
        return [line.rpartition("\r\x1b[K")[2] for line in lines]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    found = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    return found


def test_a_terminal_has_a_bar_in_its_last_line(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    view = Teller().pull_view()
    assert isinstance(view, TerminalView)
    view.show(ASKING)
    assert terminal.shown() == [f"pulling {IMAGE}", f"[{'.' * 24}] asking the registry"]
    view.show(HALF)
    bar = f"[{'#' * 6}{'.' * 18}] 1.0 MB of 4.0 MB, 1.0 MB/s, 3.0 s left"
    assert terminal.shown() == [f"pulling {IMAGE}", bar]
    view.say("it may not fit")
    view.show(HALF)
    assert terminal.shown() == [f"pulling {IMAGE}", "it may not fit", bar]
    view.end(LAST)
    assert terminal.shown() == [f"pulling {IMAGE}", "it may not fit", LAST, ""]


def test_a_narrow_terminal_is_not_overrun(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    view = TerminalView(terminal)
    view.show(HALF)
    assert len(terminal.shown()[-1]) == 39


def test_an_error_takes_the_bar_away(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(ImageUnavailableError):
        pull(Teller(), HALF, ImageUnavailableError(IMAGE, "gone."))
    assert terminal.shown() == [f"pulling {IMAGE}", ""]


def test_a_file_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert isinstance(Teller().pull_view(), LineView)


# --- a notebook -----------------------------------------------------------------------------------


class Output:
    """Notes what is displayed, and what takes its place."""

    def __init__(self) -> None:
        self.shown: list[dict[str, Any]] = []

    def display(self, data: dict[str, Any], **_: Any) -> Output:
        self.shown.append(data)
        return self

    def update(self, data: dict[str, Any], **_: Any) -> None:
        self.shown.append(data)


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Output:
    import IPython.display

    found = Output()
    monkeypatch.setattr(IPython.display, "display", found.display)
    monkeypatch.setattr(display, "_is_in_notebook", lambda: True)
    return found


def test_a_notebook_shows_a_widget_and_in_the_end_the_line_only(output: Output) -> None:
    pull(Teller(), ASKING, HALF, DONE)
    first, last = output.shown
    assert first["text/plain"] == f"pulling {IMAGE}"
    assert first["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert last == {"text/plain": LAST}


def test_a_warning_stays_beside_the_last_line(output: Output) -> None:
    view = NotebookView()
    view.show(HALF)
    view.say("it may not fit")
    view.end(LAST)
    assert output.shown[-1] == {"text/plain": f"it may not fit\n{LAST}"}


def test_nothing_is_displayed_where_nothing_was_pulled(output: Output) -> None:
    NotebookView().end("")
    assert output.shown == []


def test_the_widget_has_a_bar_words_and_the_layers() -> None:
    widget = PullWidget()
    title, line, layers = widget.box.children
    bar, words = line.children
    widget.show(ASKING)
    assert (title.value, words.value) == (f"Pulling {IMAGE}", "asking the registry")
    assert layers.layout.display == "none"
    widget.show(HALF)
    assert bar.value == 0.25
    assert words.value == "1.0 MB of 4.0 MB, 1.0 MB/s, 3.0 s left"
    assert layers.layout.display is None
    assert layers.titles == ("1 of 2 layers",)
    assert layers.selected_index is None
    assert "downloading, 1.0 MB of 4.0 MB" in layers.children[0].value
    assert "here already" in layers.children[0].value
    widget.close()
    assert widget.box.comm is None
