from __future__ import annotations

from argparse import Namespace

import pytest

from dockml_magic.catalogue import Image, images
from dockml_magic.display import Table, Tables
from dockml_magic.errors import ConfigError, UnknownNameError
from dockml_magic.images import add_search_options, explain, tables_of_images
from dockml_magic.names import REASONS, Query, choose, rank
from dockml_magic.options import RunOptions, build_parser
from dockml_magic.project import Project

HERE = ["me/mine:1", "tensorflow/tensorflow:1.10.0-py3"]


def asked(*words: str) -> Namespace:
    parser = build_parser("images", "")
    add_search_options(parser)
    return parser.parse_args(words)


def listed(*words: str, local: list[str] | None = HERE, project: Project | None = None) -> Table:
    """Return the list of images that these words find."""
    return tables_of_images(asked(*words), project or Project(), local).tables[-1]


def column(table: Table, head: str) -> list[str]:
    return [row[table.head.index(head)] for row in table.rows]


# --- the list -------------------------------------------------------------------------------------


def test_without_words_there_is_an_overview_and_what_is_here() -> None:
    overview, here = tables_of_images(asked(), Project(), HERE).tables
    first = dict(zip(overview.head, overview.rows[0], strict=True))
    assert (first["NAME"], first["FRAMEWORK"]) == ("tf", "TensorFlow")
    assert (first["VERSIONS"], first["HERE"]) == ("1.4 … 2.21", "1")
    assert sum(map(int, column(overview, "IMAGES"))) == len(images())
    assert "--version" in overview.note
    assert column(here, "REFERENCE") == ["tensorflow/tensorflow:1.10.0-py3", "me/mine:1"]
    assert column(here, "NAME") == ["tf1.10", ""]


def test_a_name_lists_what_it_can_mean_the_one_it_means_first() -> None:
    table = listed("tf1.10")
    assert column(table, "NAME")[0] == "tf1.10"
    assert column(table, "HERE")[0] == "here"
    assert set(column(table, "HERE")[1:]) == {""}


def test_a_framework_lists_the_newest_first() -> None:
    assert column(listed("mxnet"), "REFERENCE")[0].startswith("mxnet/python:1.9.1")


def test_any_other_word_is_looked_for_as_text() -> None:
    assert all(
        "rapidsai" in text for text in column(listed("nvcr.io/nvidia/rapidsai"), "REFERENCE")
    )


@pytest.mark.parametrize(
    ("words", "head", "expected"),
    [
        (["torch", "--cuda", "11"], "CUDA", "11."),
        (["torch", "--python", "3.8"], "PYTHON", "3.8"),
        (["--version", "1.10", "tf"], "REFERENCE", "tensorflow"),
    ],
)
def test_options_narrow(words: list[str], head: str, expected: str) -> None:
    found = column(listed(*words), head)
    assert found
    assert all(expected in cell for cell in found)


def test_images_for_a_gpu_and_others_are_told_apart() -> None:
    assert "tf1.10" not in column(listed("tf1.10", "--gpu"), "NAME")
    assert "tf1.10-gpu" not in column(listed("tf1.10", "--cpu"), "NAME")


def test_only_what_is_here_can_be_asked_for() -> None:
    assert column(listed("--local"), "REFERENCE") == [HERE[1], HERE[0]]
    assert column(listed("tf", "--local"), "REFERENCE") == [HERE[1]]
    assert column(listed("mine", "--local"), "REFERENCE") == [HERE[0]]


def test_podmans_references_are_known() -> None:
    table = listed("--local", local=["docker.io/library/python:3.9-slim"])
    assert column(table, "NAME") == ["python3.9"]


def test_without_an_engine_the_catalogue_is_still_there() -> None:
    table = listed("tf1.10", local=None)
    assert table.rows
    assert table.note == "No Docker engine answers: what is here is not marked."
    assert listed("--local", local=None).empty == table.note


def test_nothing_found_is_said() -> None:
    assert str(listed("zzz")).startswith("No such image. Narrow it:")


def test_a_name_that_no_image_meets_is_told_with_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match=r"newest is 2\.21; there are 1\.4 … 2\.21"):
        listed("tf1.99")


def test_a_version_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="'new' is not a version"):
        asked("tf", "--version", "new")


def test_what_is_not_sure_is_marked() -> None:
    table = listed("mxnet1.5-py2-cpu")
    assert (column(table, "PYTHON"), column(table, "SURE")) == (["2.7?"], ["derived"])
    assert "broken" in column(listed("tf2.20-gpu"), "SURE")


def test_own_images_are_listed() -> None:
    own = Image(
        name="mine", reference="me/mine:1", framework="tensorflow", version="1.10", is_own=True
    )
    table = listed("tf1.10", project=Project(images={"mine": own}))
    assert (column(table, "NAME")[0], column(table, "SURE")[0]) == ("mine", "own")


def test_tables_stand_below_each_other() -> None:
    tables = Tables(Table(["A"], [["1"]], empty="", note="so"), Table(["B"], [["2"]], empty=""))
    assert str(tables) == repr(tables) == "A\n1\nso\n\nB\n2"
    assert tables._repr_html_().count("<table>") == 2
    assert "<p>so</p>" in tables._repr_html_()


# --- a dry run ------------------------------------------------------------------------------------


def facts(name: str, *, is_here: bool = False, problem: str = "", **options: str) -> dict[str, str]:
    choice = choose(name, RunOptions(**options), Project())  # type: ignore[arg-type]
    table = explain(choice, is_here=is_here, problem=problem)
    return {row[0]: row[1] for row in reversed(table.rows)}


def test_it_says_what_is_known() -> None:
    found = facts("tf1.10-gpu", is_here=True)
    assert found["image"] == "tensorflow/tensorflow:1.10.0-gpu-py3"
    assert found["is here"] == "yes"
    assert found["CUDA, cuDNN"] == "9.0, 7.1"
    assert found["GPUs"] == "all, as the name says"
    assert found["framework"] == "TensorFlow 1.10.0 GPU"


def test_it_says_what_is_not_confirmed_and_what_is_broken() -> None:
    assert "version" in facts("keras2.2")["not confirmed"]
    assert "cuDNN 8.9" in facts("tf2.18-gpu")["beware"]
    assert "cuDNN 8.9" in facts("tf2.18-gpu", is_here=True)["broken"]
    assert "cuDNN 8.9" in facts("tensorflow/tensorflow:2.18.0-gpu")["beware"]
    assert "It may not exist" in facts("tf1.4")["beware"]
    assert "beware" not in facts("tf1.4", is_here=True)


def test_of_a_reference_only_what_the_catalogue_has_is_known() -> None:
    assert "Python" not in facts("me/mine:1")
    assert facts("tensorflow/tensorflow:1.10.0-py3")["Python"] == "3.5"
    assert "why this one" not in facts("tensorflow/tensorflow:1.10.0-py3")


def test_a_dockerfile_would_be_built() -> None:
    found = facts("./gpu.Dockerfile")
    assert (found["built from"], found["is here"]) == ("./gpu.Dockerfile", "no: it would be built")


def test_what_the_user_asked_for_is_said() -> None:
    found = facts("tf1.10", gpus="1", network="none", problem="No.")
    assert (found["GPUs"], found["options"], found["would not start"]) == (
        "1",
        "network=none",
        "No.",
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tf1.10.0", "it has Python 3"),
        ("tf1.11-py3", "it is for CPUs, and no GPU is asked for"),
        ("tf1.10-py3-gpu", "its tag was seen, the next one's is derived"),
        ("tf2.9-gpu", "its version is the newest"),
        ("tf2.19-gpu", "the next one is known not to work"),
        ("torch1.1-gpu", "it is runtime: smaller than devel"),
        ("torch2.8-gpu", "its CUDA is the newest"),
        ("mxnet1.5-cu101", "its Python is the newest"),
        ("paddle3-gpu", "its CUDA is the newest"),
        ("python3.9", "its tag begins as the version was written"),
    ],
)
def test_it_says_why_this_one(name: str, why: str) -> None:
    assert facts(name)["why this one"] == why


def test_every_part_of_the_rule_has_a_reason() -> None:
    key = rank(Query(framework="tensorflow"))(images()["tf1.10"])
    assert len(key) == len(REASONS)
