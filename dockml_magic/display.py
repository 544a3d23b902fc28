"""How we speak to the reader: plain lines, and tables in text and HTML."""

from __future__ import annotations

import contextlib
import html
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from dockml_magic.pull import format_size
from dockml_magic.pull_view import LineView, NotebookView, PullView, TerminalView, shown


@runtime_checkable
class ShowsPulls(Protocol):
    """A way to tell the reader something that can show a pull too. Any other one gets lines."""

    def pull_view(self) -> PullView:
        """Return what shows the next pull."""


class Teller:
    """Speaks to the reader of this process's output."""

    def __call__(self, line: str) -> None:
        """Say one line, now."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def pull_view(self) -> PullView:
        """Return a widget in a notebook, a bar in a terminal, else lines."""
        if _is_in_notebook():
            return NotebookView()
        return TerminalView(sys.stdout) if sys.stdout.isatty() else LineView(self)


def write_stream(stream: str, text: str) -> None:
    """Write a piece of a container's output to our own stream of that name, now."""
    file = sys.stderr if stream == "stderr" else sys.stdout
    file.write(text)
    file.flush()


tell = Teller()
"""Say one line to the reader, now; and show pulls."""


def show_pull(reference: str, tell: Callable[[str], None]) -> AbstractContextManager[PullView]:
    """Show a pull to whom `tell` speaks to. See `pull_view.shown`."""
    return shown(reference, tell.pull_view() if isinstance(tell, ShowsPulls) else LineView(tell))


class Progress:
    """How far something is that has a known size: one line that changes, or where nothing can, the first one.

    Parameters
    ----------
    what : str
        What is being done.
    total : int
        Bytes.
    tell : callable
        Gets lines; our own `tell` can change one.
    """

    def __init__(self, what: str, total: int, tell: Callable[[str], None]) -> None:
        self._tell = tell
        is_ours = isinstance(tell, Teller)
        self._in_notebook = is_ours and _is_in_notebook()
        self._in_terminal = is_ours and not self._in_notebook and sys.stdout.isatty()
        self._output: Any = None
        self.next(what, total)

    def next(self, what: str, total: int) -> None:
        """Go on with something else."""
        self._what, self._total = what, total
        self._began = self._due = time.monotonic()
        if not (self._in_notebook or self._in_terminal):
            self._tell(what)
        else:
            self.show(0)

    def show(self, done: int) -> None:
        """Show how much is done. May be called as often as one likes."""
        now = time.monotonic()
        if now < self._due or not (self._in_notebook or self._in_terminal):
            return
        self._due = now + _SHOW_INTERVAL
        percent = f", {min(100, 100 * done // self._total)} %" if self._total else ""
        speed = f", {format_size(done / (now - self._began))}/s" if now > self._began + 1 else ""
        self._write(f"{self._what}: {format_size(done)}{percent}{speed}")

    def say(self, line: str) -> None:
        """Say something in between."""
        self.clear()
        self._tell(line)

    def clear(self) -> None:
        """Take the line away."""
        if self._in_terminal or self._output is not None:
            self._write("")

    def _write(self, text: str) -> None:
        if self._in_terminal:
            width = shutil.get_terminal_size().columns
            sys.stdout.write(f"\r\x1b[K{text[: max(1, width - 1)]}")
            sys.stdout.flush()
            return
        from IPython.display import display

        if self._output is None:
            self._output = display(  # type: ignore[no-untyped-call]
                {"text/plain": text}, raw=True, display_id=True
            )
        else:
            self._output.update({"text/plain": text}, raw=True)


_SHOW_INTERVAL = 0.3


@contextlib.contextmanager
def show_progress(what: str, total: int, tell: Callable[[str], None]) -> Iterator[Progress]:
    """Show how far something is, until it ends, however it does."""
    progress = Progress(what, total, tell)
    try:
        yield progress
    finally:
        progress.clear()


def _is_in_notebook() -> bool:
    """Tell whether this is a kernel: front ends show its widgets, or else the text beside them."""
    if "IPython" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


class Table:
    """A small table that shows itself as text in a terminal and as HTML in a notebook.

    Parameters
    ----------
    head : sequence of str
        The columns' names.
    rows : sequence of sequence of str
        The cells.
    empty : str
        What to say when there is no row.
    note : str
        A sentence to say below the rows.
    """

    def __init__(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], empty: str, note: str = ""
    ) -> None:
        self.head = list(head)
        self.rows = [list(row) for row in rows]
        self.empty = empty
        self.note = note

    def __str__(self) -> str:
        """Return it as aligned text."""
        if not self.rows:
            return self.empty
        lines = [self.head, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*text, *filter(None, [self.note])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self.rows:
            return html.escape(self.empty)
        head = "".join(
            f"<th style='text-align:left'>{html.escape(cell)}</th>" for cell in self.head
        )
        body = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in self.rows
        )
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


class Tables:
    """Tables one below the other."""

    def __init__(self, *tables: Table) -> None:
        self.tables = tables

    def __str__(self) -> str:
        """Return them as text, with an empty line between."""
        return "\n\n".join(map(str, self.tables))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables)  # ours
