"""Values between real containers, as cells hand them over: %docker_cp, and %%docker_cell's -i and -o."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Image, OpenNotebook
from tests.integration.notebook import (
    IPYKERNELS,
    LONG_SLEEP,
    PATIENCE,
    Notebook,
)
from tests.integration.test_terminal import Terminal
from tests.waiting import wait_until

BARE = "dockml/bare:3.11"
TF = "dockml/tensorflow:1.10.0"
TF_PY27 = "dockml/tensorflow:1.10.0-py27"

PROJECT = f"""
[environments.new]
image = "{BARE}"

[environments."tf1.10"]
image = "{TF}"

[environments.old]
image = "{TF_PY27}"
"""


PATIENT = "from dockml_magic import value_magics; value_magics._PATIENCE = 60.0"
"""Has a kernel say which names it has, however busy its machine is."""


@pytest.fixture(scope="module", params=IPYKERNELS)
def shared(request: pytest.FixtureRequest, open_notebook: OpenNotebook) -> Iterator[Notebook]:
    """A notebook with environments on Python 2.7, 3.6 and 3.11, for all of these tests."""
    with open_notebook(request.param, BARE, TF, TF_PY27, project=PROJECT) as notebook:
        for name in ("new", "tf1.10", "old"):
            notebook.use(name)
        notebook.ok(f"%%docker_cell local\n{PATIENT}")
        yield notebook


@pytest.fixture
def notebook(shared: Notebook) -> Notebook:
    """That notebook; cells run in its own kernel."""
    shared.ok("%docker_env local")
    return shared


def test_a_summary_goes_through_three_pythons(notebook: Notebook) -> None:
    notebook.ok("text = ['Ein Satz.', 'Noch ein ☃.']; counts = {'Satz': 1, 2: (3.5, None)}")
    cell = notebook.ok(
        "%%docker_cell tf1.10 -i text,n=counts -o lengths,n\n"
        "import numpy, sys\n"
        "lengths = numpy.array([len(t) for t in text])\n"
        "n[2] = n[2] + (sys.version_info[:2],)"
    )
    lines = [line for line in cell.printed().splitlines() if not line.startswith("  ")]
    told = [line.partition("  (")[0] for line in lines]
    assert told == ["text, counts → tf1.10:text, n", "tf1.10:lengths, n → the notebook"]
    notebook.ok("%docker_cp tf1.10:lengths,n old:")
    assert (
        notebook.ok("%%docker_cell old\nlengths.tolist(), sorted(n.items())").result
        == "([9, 11], [(2, (3.5, None, (3, 6))), (u'Satz', 1)])"
    )
    notebook.ok("%%docker_cell old -o new:more=total\ntotal = int(lengths.sum()) ** 30")
    assert notebook.ok("%%docker_cell new -q -i n\nmore == 20 ** 30, n").result == (
        "(True, {'Satz': 1, 2: (3.5, None, (3, 6))})"
    )


def test_what_the_receiver_has_no_library_for_arrives_as_the_nearest_thing(
    notebook: Notebook,
) -> None:
    notebook.ok("%%docker_cell tf1.10\nimport numpy\nmatrix = numpy.eye(2)")
    first, note = notebook.ok("%docker_cp tf1.10:matrix new:").printed().splitlines()
    assert first.startswith("tf1.10:matrix → new  (list, ")
    assert note == "  array: list (no NumPy here)"
    assert notebook.ok("%%docker_cell new\nmatrix").result == "[[1.0, 0.0], [0.0, 1.0]]"


def test_a_cell_that_fails_hands_nothing_back(notebook: Notebook) -> None:
    notebook.ok("kept = 'as it was'")
    cell = notebook.run("%%docker_cell new -o kept\nkept = 'new'\n1 / 0")
    assert cell.reply["ename"] == "ZeroDivisionError"
    assert notebook.ok("kept").result == "'as it was'"


def test_where_one_of_two_targets_has_no_room_the_other_gets_nothing(notebook: Notebook) -> None:
    notebook.ok("big = 'before'")
    notebook.ok("%docker_cp -q big new:")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, ({}, -1))"
    notebook.ok(f"%%docker_cell old\n{limit.format(1 << 20)}")
    cell = notebook.run(
        "%%docker_cell tf1.10 -o new:big -o old:big -o big\nbig = bytearray(50 << 20)"
    )
    assert cell.reply["ename"] == "ExchangeError"
    assert "'old' cannot do it" in cell.reply["evalue"]
    assert "→" not in cell.printed()
    assert notebook.ok("%%docker_cell new\nbig").result == "'before'"
    assert notebook.ok("big").result == "'before'"
    notebook.ok(f"%%docker_cell old\n{limit.format(-1)}")
    cell = notebook.ok(
        "%%docker_cell tf1.10 -o new:big -o old:big -o big\nbig = bytearray(50 << 20)"
    )
    assert cell.printed().count("→") == 3
    for place in ("new", "old", "local"):
        assert notebook.ok(f"%%docker_cell {place}\nlen(big) >> 20").result == "50"


def test_what_a_cell_lacks_is_its_error_and_stops_those_behind_it(notebook: Notebook) -> None:
    first, second = notebook.send_all(
        "%%docker_cell new -q -o made,lost\nmade = 1\nprint('ran')", "1 + 1"
    )
    cell = notebook.finish(first)
    assert cell.reply["ename"] == "NameMissingError"
    assert cell.printed() == "ran\n"
    assert "There is no variable 'lost' in 'new'." in cell.traceback
    assert "dockml_magic" not in cell.traceback
    assert notebook.finish(second).reply["status"] == "aborted"
    assert notebook.ok("'made' in globals()").result == "False"


def test_a_cell_does_not_run_without_its_values(notebook: Notebook) -> None:
    notebook.ok("lock = __import__('threading').Lock(); fine = 1")
    notebook.ok("%%docker_cell new\nfine = 'as it was'")
    cell = notebook.run("%%docker_cell new -i fine,lock\nprint('ran')")
    assert cell.reply["ename"] == "ValueRefusedError"
    assert "lock is of type" in cell.traceback
    assert cell.printed() == ""
    cell = notebook.run("%%docker_cell new -i fine -i tf1.10:lost\nprint('ran')")
    assert cell.reply["ename"] == "NameMissingError"
    assert notebook.ok("%%docker_cell new\nfine").result == "'as it was'"


def test_a_copy_stands_among_the_lines_of_a_cell(notebook: Notebook) -> None:
    cell = notebook.ok(
        "%docker_env tf1.10\n"
        "first = [1, 2]\n"
        "%docker_cp -q tf1.10:first new:second\n"
        "%docker_env new\n"
        "second + [3]"
    )
    assert cell.result == "[1, 2, 3]"


def test_the_namespace_there_gets_the_values_and_nothing_else(notebook: Notebook) -> None:
    names = "%%docker_cell new\nsorted(name for name in globals() if not name.strip('_i0123456789') == '')"
    before = eval(notebook.ok(names).result)
    notebook.ok("one = 1")
    notebook.ok("%docker_cp one new:brand_new")
    assert set(eval(notebook.ok(names).result)) - set(before) == {"brand_new"}


def test_an_iterator_arrives_as_one(notebook: Notebook) -> None:
    notebook.ok("%%docker_cell tf1.10\nimport numpy\nrows = (numpy.full(3, i) for i in range(4))")
    notebook.ok("%docker_cp tf1.10:rows local:")
    assert notebook.ok("[int(sum(row)) for row in rows]").result == "[0, 3, 6, 9]"


def test_tab_knows_the_values_of_each_environment(notebook: Notebook) -> None:
    notebook.ok("%%docker_cell tf1.10\nsummary_there = 1")
    notebook.ok("summary_here = 1")
    for code, found in (
        ("%docker_cp tf1.10:summ", "summary_there"),
        ("%docker_cp summ", "summary_here"),
        ("%%docker_cell new -i x=tf1.10:summ", "summary_there"),
        ("%%docker_cell tf1.10 -o summ", "summary_there"),
    ):
        reply = notebook.ask("complete", code, len(code))
        assert reply["matches"] == [found], code
    reply = notebook.ask("complete", "%docker_cp tf1.10:", len("%docker_cp tf1.10:"))
    assert "summary_there" in reply["matches"]
    assert not {"print", "summary_here", "get_ipython"} & set(reply["matches"])


def test_the_stop_button_ends_the_wait_for_an_environment_that_is_busy(notebook: Notebook) -> None:
    mark = notebook.folder / "busy"
    notebook.ok(
        "%%docker_cell new\n"
        "import threading, time\n"
        "class Slow:\n"
        "    def __iter__(self): return self\n"
        f"    def __next__(self): open({str(mark)!r}, 'w').close(); {LONG_SLEEP}\n"
        "slow = Slow()"
    )
    notebook.ok("%docker_cp -q new:slow local:")
    msg_id = notebook.send("next(slow)")
    wait_until(mark.exists, what="the iterator to work", timeout=PATIENCE)
    notebook.interrupt()
    assert notebook.finish(msg_id).reply["status"] == "error"
    assert notebook.ok("%%docker_cell new\n1 + 1").result == "2"


def test_values_are_handed_over_in_a_terminal(workspace: Path, image: Image) -> None:
    image(BARE)
    terminal = Terminal(workspace, "--simple-prompt")
    try:
        terminal.run("%load_ext dockml_magic", PATIENT, "words = ['one', 'two']")
        shown = terminal.run(
            f"%%docker_cell {BARE} --name bare -i words -o lengths",
            "lengths = [len(w) for w in words]",
            "",
            "",
        )
        assert "words → bare" in shown
        assert "bare:lengths → the notebook" in shown
        assert terminal.run("lengths").strip().endswith("[3, 3]")
        assert "bare:words → again" in terminal.run("%docker_cp bare:words again")
        assert terminal.run("again").strip().endswith("['one', 'two']")
        assert "Did you mean words?" in terminal.run("%docker_cp bare:wrds again")
        assert terminal.is_at_home
    finally:
        terminal.end()
