"""Every row of the catalogue, and how it is searched."""

from __future__ import annotations

from pathlib import Path

import pytest

from dockml_magic import catalogue
from dockml_magic.catalogue import FRAMEWORKS, Image, begins, minor, numbers, problems, search
from dockml_magic.names import all_images, choose, find, parse_query
from dockml_magic.options import RunOptions
from dockml_magic.project import Project

ROWS = catalogue.rows()
IMAGES = list(catalogue.images().values())
NOBODY = Project()

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row["reference"])
each_image = pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.reference)


# --- every row ------------------------------------------------------------------------------------


@each_row
def test_a_row_has_the_form_of_one(row: dict[str, str]) -> None:
    assert problems(row) == []


@each_image
def test_a_name_means_its_image_and_no_other(image: Image) -> None:
    choice = choose(image.name, RunOptions(), NOBODY)
    assert choice.reference == image.reference
    assert choice.image == image


@each_image
def test_a_reference_is_itself_and_what_is_known_of_it_is_found(image: Image) -> None:
    choice = choose(image.reference, RunOptions(), NOBODY)
    assert (choice.reference, choice.image) == (image.reference, image)
    assert not choice.wants_gpu


@each_image
def test_a_short_name_of_an_image_for_a_gpu_asks_for_one(image: Image) -> None:
    query = parse_query(image.name)
    if query is not None and image.gpu:
        plain_is_on_gpu = image.publisher in ("ngc", "deepo") or image.framework in (
            "jax",
            "kaggle",
        )
        assert query.asks_for_gpu or plain_is_on_gpu or image.framework == "huggingface"
    if not image.gpu:
        assert not choose(image.name, RunOptions(), NOBODY).wants_gpu


@each_image
def test_a_twin_starts_without_a_gpu_and_has_the_same_version(image: Image) -> None:
    if not image.gpu or image.framework in catalogue.NEEDS_GPU:
        assert image.cpu_twin == ""
        return
    twin = choose(image.cpu_twin, RunOptions(), NOBODY)
    assert not twin.wants_gpu
    assert twin.image is not None
    assert twin.image.framework == image.framework
    assert minor(twin.image.version) == minor(image.version) or not image.numbers


def test_there_are_many_and_each_is_there_once() -> None:
    assert len(ROWS) >= 700
    assert len({row["name"] for row in ROWS}) == len(ROWS)
    assert len({row["reference"] for row in ROWS}) == len(ROWS)


def test_the_readme_names_every_framework_and_counts_the_images() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"{len(ROWS)} images of {len(FRAMEWORKS)} frameworks" in readme
    for words in FRAMEWORKS.values():
        assert f"`{words.word}`" in readme


def test_every_framework_has_images_and_words_of_its_own() -> None:
    assert {image.framework for image in IMAGES} == set(FRAMEWORKS)
    words = [word for f in FRAMEWORKS.values() for word in (f.word, *f.aliases)]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("word", [f.word for f in FRAMEWORKS.values()])
def test_the_word_of_a_framework_means_an_image_that_is_not_broken(word: str) -> None:
    assert find(word, NOBODY)[0].broken == ""


@pytest.mark.parametrize(
    ("column", "cell", "problem"),
    [
        ("reference", "a:b:c", "reference is 'a:b:c'"),
        ("reference", "gcr.io/kaggle-images/python", "Its reference has no tag"),
        ("reference", "tensorflow/tensorflow:2.5.3", "among the tags that do not exist"),
        ("framework", "tf", "framework is 'tf'"),
        ("version", "one", "version is 'one'"),
        ("gpu", "true", "gpu is 'true'"),
        ("python", "3", "python is '3'"),
        ("cuda", "10", "cuda is '10'"),
        ("cuda", "10.0", "It has CUDA and is not built for a GPU"),
        ("cudnn", "7", "It has cuDNN and no CUDA"),
        ("has_ipykernel", "unknown", "has_ipykernel is 'unknown'"),
        ("flavour", "jupyter", "flavour is 'jupyter'"),
        ("sure", "", "sure is ''"),
        ("unsure", "cunda", "unsure names 'cunda'"),
        ("broken", "no gpu", "broken is 'no gpu'"),
        ("digest", "sha256:12", "digest is 'sha256:12'"),
        ("source", "", "source is ''"),
        ("name", "TF1.10", "not in small letters"),
    ],
)
def test_a_row_that_is_wrong_is_told(column: str, cell: str, problem: str) -> None:
    row = next(row for row in ROWS if row["name"] == "tf1.10")
    assert problem in " ".join(problems({**row, column: cell}))


def test_a_row_with_other_columns_is_told() -> None:
    assert problems({"name": "x"})[0].startswith("Its columns are not name, framework, version")


# --- tags that are not there ----------------------------------------------------------------------


@pytest.mark.parametrize("suspect", catalogue.suspect_tags().values(), ids=lambda s: s.reference)
def test_a_suspect_tag_has_a_next_best_that_is_one(suspect: catalogue.SuspectTag) -> None:
    assert suspect.verdict in ("missing", "doubtful")
    assert suspect.reason
    assert suspect.source
    assert suspect.reference not in {image.reference for image in IMAGES}
    best = find(suspect.next_best, NOBODY)[0]
    assert best.broken == ""


# --- versions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.10.0", (1, 10, 0)),
        ("1.15.0.post1", (1, 15, 0, 1)),
        ("2.6.0a0+df5bbc09d1", (2, 6, 0, 0)),
        ("26.06", (26, 6)),
        ("2026-07-28", (2026, 7, 28)),
        ("latest", ()),
        ("", ()),
    ],
)
def test_a_version_is_its_numbers(version: str, expected: tuple[int, ...]) -> None:
    assert numbers(version) == expected


def test_a_version_begins_with_whole_numbers() -> None:
    assert begins((1, 10, 0), (1, 10))
    assert begins((1, 10, 0), ())
    assert not begins((1, 10, 0), (1, 1))
    assert not begins((1,), (1, 10))


@pytest.mark.parametrize(
    ("version", "expected"),
    [("1.10.0", "1.10"), ("26.06", "26.06"), ("2.6.0a0+df5b", "2.6"), ("2026-07-28", ""), ("", "")],
)
def test_a_minor_version_is_written_as_the_whole_one(version: str, expected: str) -> None:
    assert minor(version) == expected


# --- search ---------------------------------------------------------------------------------------


def names(images: list[Image]) -> list[str]:
    return [image.name for image in images]


def test_without_a_question_everything_is_found_newest_first() -> None:
    found = search(IMAGES)
    assert len(found) == len(IMAGES)
    assert found[0].framework == "tensorflow"
    versions = [image.numbers for image in found if image.framework == "tensorflow"]
    assert versions == sorted(versions, reverse=True)


def test_every_question_narrows() -> None:
    found = search(
        IMAGES, framework="tensorflow", version="1.10", python="3.5", cuda="9.0", gpu=True
    )
    assert [image.reference for image in found] == [
        "tensorflow/tensorflow:1.10.1-gpu-py3",
        "tensorflow/tensorflow:1.10.0-gpu-py3",
    ]


def test_a_version_is_asked_by_whole_numbers() -> None:
    assert {i.numbers[:2] for i in search(IMAGES, framework="pytorch", version="1.1")} == {(1, 1)}
    assert {i.cuda for i in search(IMAGES, cuda="11")} > {"11.0", "11.8"}
    assert {i.python for i in search(IMAGES, python="3.1")} == set()


def test_only_local_ones_can_be_asked_for() -> None:
    here = ["tensorflow/tensorflow:1.10.0-py3", "me/mine:1"]
    assert names(search(IMAGES, local=here)) == ["tf1.10"]
    assert search(IMAGES, local=[]) == []


def test_text_is_looked_for_word_by_word_in_name_reference_and_title() -> None:
    assert "tf1.10-gpu" in names(search(IMAGES, text="TensorFlow 1.10 gpu"))
    assert "ngc-torch23.10" in names(search(IMAGES, text="nvcr pytorch:23.10"))
    assert search(IMAGES, text="tensorflow caffe") == []


def test_own_images_are_searched_too() -> None:
    own = Image(name="mine", reference="me/mine:1", is_own=True)
    found = search(all_images(Project(images={"mine": own})))
    assert found[-1] == own
