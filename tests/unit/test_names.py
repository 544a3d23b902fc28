from __future__ import annotations

import pytest

from dockml_magic.errors import ConfigError, UnknownNameError
from dockml_magic.names import choose, kernel_name, language_of, suggest
from dockml_magic.options import RunOptions
from dockml_magic.project import Project

NO_PROJECT = Project()


@pytest.mark.parametrize("name", ["tf1.10", "TF1.10"])
def test_a_name_of_the_catalogue_is_its_image(name: str) -> None:
    choice = choose(name, RunOptions(), NO_PROJECT)
    assert choice.reference == "tensorflow/tensorflow:1.10.0-py3"
    assert choice.title == "TensorFlow 1.10"
    assert choice.name == name
    assert choice.is_known
    assert not choice.wants_gpu


def test_a_gpu_name_asks_for_all_gpus_and_knows_its_twin() -> None:
    choice = choose("tf1.10-gpu", RunOptions(), NO_PROJECT)
    assert choice.wants_gpu
    assert choice.cpu_twin == "tf1.10"


@pytest.mark.parametrize("gpus", ["none", "1", "device=0"])
def test_a_gpu_name_leaves_gpus_to_the_user(gpus: str) -> None:
    assert not choose("tf1.10-gpu", RunOptions(gpus=gpus), NO_PROJECT).wants_gpu


@pytest.mark.parametrize(
    "reference",
    [
        "python:3.11-slim",
        "ubuntu",
        "tensorflow/tensorflow:1.10.0-gpu-py3",
        "ghcr.io/some-one/some_thing/image:v1.0_beta",
        "localhost:5000/image:1",
        "registry.example.com:443/a/b__c",
        "python@sha256:" + "0" * 64,
        "python:3.11@sha256:" + "0" * 64,
        "sha256:" + "0" * 64,
    ],
)
def test_any_reference_is_itself(reference: str) -> None:
    choice = choose(reference, RunOptions(), NO_PROJECT)
    assert choice.reference == choice.name == choice.title == reference


@pytest.mark.parametrize(("name", "is_known"), [("ubuntu", False), ("me/ubuntu", True)])
def test_a_bare_word_is_only_a_possible_reference(name: str, *, is_known: bool) -> None:
    assert choose(name, RunOptions(), NO_PROJECT).is_known is is_known


@pytest.mark.parametrize("name", ["", "Tensor Flow", "-x", "a//b", "me/UPPER", "a:b:c", "x:"])
def test_what_is_not_even_a_reference_is_unknown(name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        choose(name, RunOptions(), NO_PROJECT)
    assert caught.value.name == name


def test_an_unknown_name_comes_with_the_nearest_ones() -> None:
    with pytest.raises(UnknownNameError) as caught:
        choose("TF1_10!", RunOptions(), NO_PROJECT)
    assert caught.value.suggestions[0] == "tf1.10"
    assert "Did you mean 'tf1.10'" in caught.value.hint


def test_the_notebooks_own_kernel_is_no_container() -> None:
    with pytest.raises(ConfigError, match="'local' is the notebook's own kernel"):
        choose("local", RunOptions(), NO_PROJECT)


def test_the_project_comes_before_the_catalogue() -> None:
    mine = RunOptions(image="me/mine:1", memory=5)
    project = Project(environments={"tf1.10": mine}, titles={"tf1.10": "Mine"})
    choice = choose("tf1.10", RunOptions(), project)
    assert (choice.reference, choice.title, choice.options.memory) == ("me/mine:1", "Mine", 5)


def test_an_image_of_the_project_may_be_a_name_of_the_catalogue() -> None:
    project = Project(environments={"mine": RunOptions(image="tf1.10-gpu")})
    choice = choose("mine", RunOptions(), project)
    assert choice.name == "mine"
    assert choice.reference == "tensorflow/tensorflow:1.10.0-gpu-py3"
    assert choice.title == "TensorFlow 1.10 GPU"
    assert choice.wants_gpu


def test_an_environment_without_image_takes_the_one_of_its_name() -> None:
    project = Project(environments={"tf1.10": RunOptions(memory=5)}, titles={"tf1.10": ""})
    choice = choose("tf1.10", RunOptions(), project)
    assert choice.reference == "tensorflow/tensorflow:1.10.0-py3"
    assert choice.title == "TensorFlow 1.10"


def test_options_of_the_user_come_over_the_projects() -> None:
    project = Project(environments={"mine": RunOptions(image="a/b:1", memory=5, cpus=2.0)})
    choice = choose("mine", RunOptions(memory=6), project)
    assert (choice.options.memory, choice.options.cpus) == (6, 2.0)


def test_an_image_that_is_given_replaces_the_names_own() -> None:
    choice = choose("tf1.10-gpu", RunOptions(image="me/mine:1"), NO_PROJECT)
    assert (choice.name, choice.reference) == ("tf1.10-gpu", "me/mine:1")
    assert choice.is_known
    assert not choice.wants_gpu


def test_a_name_that_is_given_is_the_environments() -> None:
    choice = choose("tf1.10", RunOptions(name="second"), NO_PROJECT)
    assert choice.name == "second"


def test_suggestions_come_from_project_catalogue_and_engine() -> None:
    project = Project(environments={"summariser": RunOptions()})
    assert suggest("sumariser", project)[0] == "summariser"
    assert "python3.9" in suggest("pyton3.9", project)
    assert suggest("me/mime:1", project, ["me/mine:1"]) == ["me/mine:1"]
    assert suggest("zzzzzzzz", project) == []


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("tf1.10", "dockml-tf1.10"),
        ("Mine", "dockml-mine"),
        ("python:3.11-slim", "dockml-python-3.11-slim"),
        ("ghcr.io/a/b@sha256:00", "dockml-ghcr.io-a-b-sha256-00"),
        ("my env!", "dockml-my-env"),
    ],
)
def test_a_kernel_has_a_name_that_jupyter_allows(name: str, kernel: str) -> None:
    assert kernel_name(name) == kernel


@pytest.mark.parametrize(
    ("kernelspec", "language"),
    [
        ("ir", "R"),
        ("julia-1.9", "julia"),
        ("python3", "python"),
        ("bash", "bash"),
        ("xcpp17", "xcpp"),
    ],
)
def test_a_kernelspec_tells_its_language_by_its_name(kernelspec: str, language: str) -> None:
    assert language_of(kernelspec) == language
