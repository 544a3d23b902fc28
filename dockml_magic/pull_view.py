"""How a pull is shown: a widget in a notebook, a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import html
import shutil
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TextIO

from dockml_magic.errors import PullStopped
from dockml_magic.pull import PullProgress, format_size

_BAR = 24
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class PullView(Protocol):
    """Shows one pull."""

    def show(self, progress: PullProgress) -> None:
        """Show how far it is. Called several times a second."""

    def say(self, line: str) -> None:
        """Say something about it in between."""

    def end(self, line: str) -> None:
        """Replace it by its last line, "" by nothing."""


class _Remembering:
    """Passes everything on to a view, and keeps how far it was."""

    def __init__(self, reference: str, view: PullView) -> None:
        self._view = view
        self.last = PullProgress(reference=reference)
        self.say, self.end = view.say, view.end

    def show(self, progress: PullProgress) -> None:
        self.last = progress
        self._view.show(progress)


@contextlib.contextmanager
def shown(reference: str, view: PullView) -> Iterator[PullView]:
    """Show a pull from its begin to its end, however it ends.

    Raises
    ------
    PullStopped
        For an interrupt.
    """
    seen = _Remembering(reference, view)
    try:
        yield seen
    except KeyboardInterrupt:
        view.end(f"stopped pulling {reference}")
        raise PullStopped(reference) from None
    except BaseException:
        view.end("")
        raise
    view.end(f"pulled {reference}: {seen.last}")


class LineView:
    """A few plain lines, for logs and files.

    Parameters
    ----------
    tell : callable
        Gets them.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._has_begun = False
        self._has_told_size = False

    def show(self, progress: PullProgress) -> None:
        """Say that it begins, and how large it is once that is known."""
        if not self._has_begun:
            self._tell(f"pulling {progress.reference}")
            self._has_begun = True
        if progress.is_settled and not self._has_told_size and not progress.is_complete:
            self._has_told_size = True
            if progress.total:
                self._tell(f"{format_size(progress.total)} to download")

    def say(self, line: str) -> None:
        """Say it."""
        self._tell(line)

    def end(self, line: str) -> None:
        """Say it."""
        if line:
            self._tell(line)


class TerminalView:
    """A bar in the last line of a terminal.

    Parameters
    ----------
    stream : text file
        The terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._has_begun = False

    def show(self, progress: PullProgress) -> None:
        """Draw the bar anew."""
        if not self._has_begun:
            self._stream.write(f"pulling {progress.reference}\n")
            self._has_begun = True
        filled = round((progress.fraction or 0.0) * _BAR)
        text = f"[{'#' * filled}{'.' * (_BAR - filled)}] {progress}"
        width = shutil.get_terminal_size().columns
        self._write(text[: max(1, width - 1)])

    def say(self, line: str) -> None:
        """Say it above the bar."""
        self._write(f"{line}\n")

    def end(self, line: str) -> None:
        """Put it where the bar was."""
        self._write(f"{line}\n" if line else "")

    def _write(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()


class PullWidget:
    """A widget that shows a pull: a bar with bytes, speed and time left, and a list of layers to unfold.

    Attributes
    ----------
    box : ipywidgets.VBox
        What to display.
    """

    def __init__(self) -> None:
        import ipywidgets as widgets

        self._title = widgets.Label()
        self._bar = widgets.FloatProgress(
            min=0.0, max=1.0, layout=widgets.Layout(width="16em", margin="0 1em 0 0")
        )
        self._words = widgets.Label()
        self._table = widgets.HTML()
        self._layers = widgets.Accordion(children=[self._table], selected_index=None)
        self._layers.layout.display = "none"
        self._bar.tooltip = "How much of the image has arrived"
        line = widgets.HBox([self._bar, self._words], layout=widgets.Layout(flex_flow="row wrap"))
        self.box = widgets.VBox([self._title, line, self._layers])

    def show(self, progress: PullProgress) -> None:
        """Show how far it is."""
        self._title.value = f"Pulling {progress.reference}"
        self._bar.value = progress.fraction or 0.0
        self._words.value = str(progress)
        if progress.layers:
            ready = sum(layer.phase in ("done", "here") for layer in progress.layers)
            self._layers.set_title(0, f"{ready} of {len(progress.layers)} layers")
            self._table.value = _table_of_layers(progress)
            self._layers.layout.display = None

    def say(self, line: str) -> None:
        """Say it in place of the title."""
        self._title.value = line

    def close(self) -> None:
        """Take it away."""
        for widget in (self._layers, self._table, self._words, self._bar, self._title):
            widget.close()
        for child in self.box.children:
            child.close()
        self.box.close()


def _table_of_layers(progress: PullProgress) -> str:
    rows = "".join(
        f"<tr><td style='text-align:left'><code>{html.escape(layer.id)}</code></td>"
        f"<td style='text-align:left'>{html.escape(str(layer))}</td></tr>"
        for layer in progress.layers
    )
    return f"<table>{rows}</table>"


class NotebookView:
    """A `PullWidget` as an output of a cell, with a line of text for who shows no widgets.

    In the end the line takes its place, so that a saved or converted notebook holds just that.
    """

    def __init__(self) -> None:
        self._widget: PullWidget | None = None
        self._output: Any = None
        self._notes: list[str] = []

    def show(self, progress: PullProgress) -> None:
        """Show how far it is."""
        from IPython.display import display

        if self._widget is None:
            self._widget = PullWidget()
            self._widget.show(progress)
            view = {"version_major": 2, "version_minor": 0, "model_id": self._widget.box.model_id}
            self._output = display(  # type: ignore[no-untyped-call]
                {_WIDGET_VIEW: view, "text/plain": f"pulling {progress.reference}"},
                raw=True,
                display_id=True,
            )
            return
        self._widget.show(progress)

    def say(self, line: str) -> None:
        """Keep it beside the last line."""
        self._notes.append(line)
        if self._widget is not None:
            self._widget.say(line)

    def end(self, line: str) -> None:
        """Put it in the widget's place."""
        if self._widget is None:
            return
        self._output.update({"text/plain": "\n".join([*self._notes, line]).strip()}, raw=True)
        self._widget.close()
