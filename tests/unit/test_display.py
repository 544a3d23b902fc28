from __future__ import annotations

import pytest

from dockml_magic.display import Table, tell


@pytest.fixture
def table() -> Table:
    return Table(["NAME", "IMAGE"], [["tf1.10", "a:1"], ["x", "<b> & c"]], empty="None yet.")


def test_a_table_is_aligned_text(table: Table) -> None:
    assert str(table).splitlines() == ["NAME    IMAGE", "tf1.10  a:1", "x       <b> & c"]
    assert repr(table) == str(table)


def test_a_table_is_html_in_a_notebook_with_its_text_escaped(table: Table) -> None:
    html = table._repr_html_()
    assert html.count("<tr>") == 3
    assert "&lt;b&gt; &amp; c" in html
    assert "<b>" not in html


def test_a_table_without_rows_says_so() -> None:
    table = Table(["NAME"], [], empty="None <yet>.")
    assert str(table) == "None <yet>."
    assert table._repr_html_() == "None &lt;yet&gt;."


def test_a_line_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    tell("building")
    assert capsys.readouterr().out == "building\n"
