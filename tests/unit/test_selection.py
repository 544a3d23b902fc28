from __future__ import annotations

import pytest

from dockml_magic.catalogue import Image, images
from dockml_magic.fit import Fit
from dockml_magic.options import RunOptions, parse_words, split_line
from dockml_magic.project import Project
from dockml_magic.selection import (
    NAME_WIDTH,
    Selection,
    line_of,
    shortened,
    text_of,
    words_of,
)

HERE = ["me/mine:1", "tensorflow/tensorflow:1.10.0-gpu-py3"]
FITS = Fit(verdict="fits", reason="It does.")


def judge(image: Image) -> Fit:
    return Fit(verdict="will not run", reason="It does not.") if image.publisher == "ngc" else FITS


@pytest.fixture(scope="module")
def selection() -> Selection:
    return Selection(Project(), HERE, judge)


def names(selection: Selection, text: str = "", **asked: object) -> list[str]:
    return [row.name for row in selection.find(text, **asked)]  # type: ignore[arg-type]


def test_everything_is_offered_what_is_here_first(selection: Selection) -> None:
    assert len(selection.rows) == len(images()) + 1
    assert names(selection)[:2] == ["tf1.10-gpu", "me/mine:1"]
    assert [row.name for row in selection.rows if row.is_here] == ["tf1.10-gpu", "me/mine:1"]


def test_environments_of_the_project_come_before_all() -> None:
    project = Project(environments={"ours": RunOptions(image="tf1.10"), "b": RunOptions()})
    first, second, *_ = Selection(project, [], judge).rows
    assert (first.name, first.image.framework, second.name) == ("ours", "tensorflow", "b")
    assert first.image.python == "3.5"


@pytest.mark.parametrize("name", ["tf1.10-gpu", "torch1.1", "TF2.4-GPU", "mxnet1.5"])
def test_a_name_finds_first_what_it_means(selection: Selection, name: str) -> None:
    from dockml_magic.names import choose

    meant = choose(name, RunOptions(), Project()).reference
    assert selection.find(name)[0].image.reference == meant


def test_words_stand_in_a_row_in_any_order(selection: Selection) -> None:
    found = selection.find("cu100 pytorch py36")
    assert found
    assert found == selection.find("PyTorch py36 CU100")
    for row in found:
        assert (row.image.framework, row.image.python) == ("pytorch", "3.6")
        assert row.image.cuda == "10.0"


def test_while_a_version_is_typed_longer_ones_stay_in_sight(selection: Selection) -> None:
    found = names(selection, "torch1.1")
    assert found[0].startswith("torch1.1-")
    assert any(name.startswith("torch1.10") for name in found)


def test_choosers_narrow_what_a_filter_finds(selection: Selection) -> None:
    everything = selection.find(framework="tensorflow", version="1.10")
    on_gpu = selection.find(framework="tensorflow", version="1.10", gpu=True)
    assert on_gpu
    assert set(on_gpu) < set(everything)
    assert {row.image.gpu for row in selection.find("tf", gpu=False)} == {False}
    assert names(selection, "tf", only_here=True) == ["tf1.10-gpu"]


def test_versions_are_a_frameworks_own_newest_first(selection: Selection) -> None:
    versions = selection.versions("tensorflow")
    assert versions.index("2.4") < versions.index("1.15") < versions.index("1.10")
    assert len(set(versions)) == len(versions)
    assert selection.versions("") == []
    assert ("TensorFlow", "tensorflow") in selection.frameworks()


@pytest.mark.parametrize("text", ["you/yours:2", "localhost:5000/a", "registry.example.com/a/b:1"])
def test_any_reference_can_be_picked(selection: Selection, text: str) -> None:
    (row,) = selection.find(text)
    assert (row.name, row.is_here, row.cells[3]) == (text, False, "")


def test_nothing_is_found_where_nothing_is_called_so(selection: Selection) -> None:
    assert selection.find("nonsense") == []


def test_a_row_has_its_marks(selection: Selection) -> None:
    assert selection.find("tf1.10-gpu")[0].cells == ("tf1.10-gpu", "3.5", "9.0", "✓ fits", "here")
    assert selection.find("ngc-tf1.15")[0].cells[3] == "✗ will not run"
    assert selection.find("tf1.10")[0].cells[3:] == ("CPU", "")


def test_every_row_fits_its_line(selection: Selection) -> None:
    places = {row.label.index(row.cells[3]) for row in selection.rows if row.image.gpu}
    assert len(places) == 1
    long = "cnstark/pytorch:1.13.1-py3.9.16-cuda11.7.1-devel-ubuntu20.04"
    assert len(shortened(long)) == NAME_WIDTH
    assert shortened(long).startswith("cnstark")
    assert shortened(long).endswith("devel-ubuntu20.04")
    assert shortened("tf1.10") == "tf1.10"


def test_the_line_says_what_was_chosen() -> None:
    assert line_of("tf1.10", words_of()) == "%docker_env tf1.10"
    words = words_of(gpus="device=0,1", memory=" 8g ", ports="8501:8501, 6006")
    line = line_of("tf1.10-gpu", words)
    assert line == "%docker_env tf1.10-gpu --gpus device=0,1 --memory 8g -p 8501:8501 -p 6006"


@pytest.mark.parametrize("value", ["8 g", "a'b", 'say "x"', "$HOME", "a\\b", "8g; ls"])
def test_the_line_is_quoted_as_the_magic_reads_it(value: str) -> None:
    line = line_of("my name", words_of(memory=value))
    _, rest = line.split(" ", 1)
    assert split_line(rest) == ["my name", "--memory", value]


def test_the_line_asks_for_what_the_picker_starts() -> None:
    words = words_of(gpus="none", memory="1g", ports="80")
    options = parse_words("%docker_env", words)
    assert options == RunOptions(gpus="none", memory=1024**3, publish=("80",))


def test_without_widgets_it_is_a_table_of_lines(selection: Selection) -> None:
    lines = text_of(selection.find("tf1.10-gpu")).splitlines()
    assert lines[0].split() == ["Python", "CUDA", "GPU", "Here", "To", "start", "it"]
    assert lines[1].split() == ["3.5", "9.0", "✓", "fits", "here", "%docker_env", "tf1.10-gpu"]
    many = text_of(selection.rows, most=5).splitlines()
    assert len(many) == 7
    assert many[-1].startswith(f"… and {len(selection.rows) - 5} more.")
    assert text_of([]) == "No image is called so. See all of them with: %docker_images"
