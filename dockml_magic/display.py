"""How we speak to the reader: plain lines, and tables in text and HTML."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from dockml_magic.errors import harmless
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
        sys.stdout.write(harmless(line) + "\n")
        sys.stdout.flush()

    def pull_view(self) -> PullView:
        """Return a widget in a notebook, a bar in a terminal, else lines."""
        if _is_in_notebook():
            return NotebookView()
        return TerminalView(sys.stdout) if sys.stdout.isatty() else LineView(self)


tell = Teller()
"""Say one line to the reader, now; and show pulls."""


def show_pull(reference: str, tell: Callable[[str], None]) -> AbstractContextManager[PullView]:
    """Show a pull to whom `tell` speaks to. See `pull_view.shown`."""
    return shown(reference, tell.pull_view() if isinstance(tell, ShowsPulls) else LineView(tell))


def _is_in_notebook() -> bool:
    """Tell whether this is a kernel: front ends show its widgets, or else the text beside them."""
    if "IPython" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


class Table:
    """A small table that shows itself as text in a terminal and as HTML in a notebook.

    Names in it are others': what could steer a terminal is written out.

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
        self.rows = [[_cell(text) for text in row] for row in rows]
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


def _cell(text: str) -> str:
    return harmless(text).replace("\n", "\\n").replace("\t", "\\t")


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
