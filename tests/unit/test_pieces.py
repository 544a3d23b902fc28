from __future__ import annotations

import itertools
import random

import pytest

from dockml_magic.pieces import Piece, has_own_line, split_cell


def ours(code: str) -> Piece:
    return Piece(code=code, is_ours=True)


def code(code: str) -> Piece:
    return Piece(code=code, is_ours=False)


@pytest.mark.parametrize(
    "cell",
    [
        "1 + 1",
        "1 + 1\n\n2",
        'print "hi"  # Python 2',
        "!ls\n%pip install x\n%matplotlib inline",
        "%%time\n%docker_ps",
        "%%bash\necho\n%docker_env local\n",
        "\n\n%%writefile x\n%docker_env tf1.10",
        "    %docker_env indented",
        "if True:\n    %docker_env indented",
        "x = 5 %docker_env",
        "# %docker_env in a comment",
        's = """\n%docker_env in a string\n"""',
        "s = '''\n%docker_env\n'''\nt = 1",
        "%docker",
        "%docker run -it x",
        "%load_ext dockml_magic_other",
        "%load_ext autoreload",
        "µ = 'ä'\r\nx",
    ],
)
def test_a_cell_without_a_line_of_ours_is_one_piece(cell: str) -> None:
    assert split_cell(cell) == [code(cell)]


@pytest.mark.parametrize("cell", ["", "\n", "  \n\n  "])
def test_an_empty_cell_has_no_pieces(cell: str) -> None:
    assert split_cell(cell) == []


@pytest.mark.parametrize(
    "line",
    [
        "%docker_env",
        "%docker_env tf1.10 -e 'A=\"b\"'",
        "%docker_ps -a",
        "%docker_stop tf1.10",
        "%load_ext dockml_magic",
        "%reload_ext dockml_magic",
        "%unload_ext  dockml_magic",
    ],
)
def test_a_line_of_ours_is_a_piece_of_its_own(line: str) -> None:
    assert split_cell(line) == [ours(line)]
    assert split_cell(f"a\n{line}\nb\nc") == [code("a\n"), ours(line), code("b\nc")]


def test_code_goes_before_and_after_our_lines_in_order() -> None:
    cell = "a = 1\n%docker_env x\n\nb = 2\nc = 3\n%docker_env y\n%docker_ps\nd = 4\n"
    assert split_cell(cell) == [
        code("a = 1\n"),
        ours("%docker_env x"),
        code("\nb = 2\nc = 3\n"),
        ours("%docker_env y"),
        ours("%docker_ps"),
        code("d = 4\n"),
    ]


@pytest.mark.parametrize(
    "cell",
    ["%%docker_cell tf1.10\nx = 1\n%docker_env y\n", "\n  %%docker_cell local\n1", "%%docker_cell"],
)
def test_a_cell_magic_of_ours_is_ours_as_a_whole(cell: str) -> None:
    assert split_cell(cell) == [ours(cell)]


def test_another_cell_magic_after_our_line_keeps_its_body() -> None:
    cell = "%docker_env x\n%%time\n%docker_ps\n1\n"
    assert split_cell(cell) == [ours("%docker_env x"), code("%%time\n%docker_ps\n1\n")]


def test_a_cell_magic_stands_only_where_code_begins() -> None:
    cell = "x = 1\n%%time\n%docker_ps\n"
    assert split_cell(cell) == [code("x = 1\n%%time\n"), ours("%docker_ps")]


def test_our_line_after_a_closed_string_is_ours() -> None:
    cell = 's = """\n%docker_env no\n"""\n%docker_env yes\n'
    assert split_cell(cell) == [code('s = """\n%docker_env no\n"""\n'), ours("%docker_env yes")]


def test_a_string_on_one_line_is_closed() -> None:
    assert split_cell('"""x"""\n%docker_ps')[-1] == ours("%docker_ps")


def test_our_line_may_go_on_after_a_backslash_as_ipython_has_it() -> None:
    cell = "a\n%docker_env tf1.10 \\\n    --memory 4g \\\n    -p 80\nb\n"
    assert split_cell(cell) == [
        code("a\n"),
        ours("%docker_env tf1.10 \\\n    --memory 4g \\\n    -p 80"),
        code("b\n"),
    ]


def test_a_backslash_at_the_very_end_goes_on_nowhere() -> None:
    assert split_cell("%docker_env tf1.10 \\") == [ours("%docker_env tf1.10 \\")]


LINES = (
    "x = 1",
    "",
    "   ",
    "%docker_env tf1.10",
    "%docker_ps -a",
    "%docker_env a \\",
    "%%time",
    "%load_ext dockml_magic",
    's = """',
    "'''",
    "    indented",
    'print \'x\' # """',
    "%matplotlib inline",
    "µ",
)


@pytest.mark.parametrize("seed", range(200))
def test_the_pieces_joined_give_the_cell_back(seed: int) -> None:
    chosen = random.Random(seed)
    cell = "\n".join(chosen.choices(LINES, k=chosen.randrange(1, 9)))
    pieces = split_cell(cell)
    joined = "".join(piece.code + ("\n" if piece.is_ours else "") for piece in pieces)
    assert _without_empty_lines(joined) == _without_empty_lines(cell)
    assert all(piece.code.strip() for piece in pieces)
    neighbours = itertools.pairwise(pieces)
    assert not any(not one.is_ours and not two.is_ours for one, two in neighbours)


def _without_empty_lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("%docker_env x", True),
        ("a = 1\n%load_ext dockml_magic", True),
        ("%%docker_cell x\n1", True),
        ("", False),
        ("1 + 1", False),
        ('s = """\n%docker_env x\n"""', False),
        ("import dockml_magic", False),
    ],
)
def test_a_line_of_ours_is_found(cell: str, expected: bool) -> None:
    assert has_own_line(cell) is expected
