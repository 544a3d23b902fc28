from __future__ import annotations

import pytest

from dockml_magic.catalogue import Image
from dockml_magic.errors import ConfigError, MissingTagError, UnknownNameError
from dockml_magic.names import Query, choose, kernel_name, language_of, parse_query, suggest
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
    assert suggest("tf1.1O", project)[0] == "tf1.10"
    assert suggest("tf1.l0", project)[0] == "tf1.10"
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


# --- names of the catalogue -----------------------------------------------------------------------

# Written by hand from the rows and the rule in `names.rank`, not by running it.
TF, TORCH, DEEPO, CNSTARK = (
    "tensorflow/tensorflow:",
    "pytorch/pytorch:",
    "ufoym/deepo:",
    "cnstark/pytorch:",
)
NGC, AWS = "nvcr.io/nvidia/", "public.ecr.aws/deep-learning-containers/"
MEANS = {
    # ways to write the same
    "tf1.10": TF + "1.10.0-py3",
    "TF1.10": TF + "1.10.0-py3",
    "tf-1.10": TF + "1.10.0-py3",
    "tf_1.10": TF + "1.10.0-py3",
    "tf:1.10": TF + "1.10.0-py3",
    "tf==1.10": TF + "1.10.0-py3",
    "tensorflow1.10": TF + "1.10.0-py3",
    "tensorflow-1.10": TF + "1.10.0-py3",
    "tensorflow:1.10": TF + "1.10.0-py3",
    "tensorflow==1.10": TF + "1.10.0-py3",
    "tensorflow=1.10": TF + "1.10.0-py3",
    "tensorflow==1.10.*": TF + "1.10.0-py3",
    "tensorflow==1.10.0": TF + "1.10.0-py3",
    "TensorFlow:1.10.0-py3": TF + "1.10.0-py3",
    "tf1.10-cpu": TF + "1.10.0-py3",
    "tensorflow-cpu==1.10": TF + "1.10.0-py3",
    "tf1.10-gpu": TF + "1.10.0-gpu-py3",
    "TF1.10-GPU": TF + "1.10.0-gpu-py3",
    "tensorflow:1.10-gpu": TF + "1.10.0-gpu-py3",
    "tensorflow-gpu==1.10": TF + "1.10.0-gpu-py3",
    "tensorflow-gpu==1.10.0": TF + "1.10.0-gpu-py3",
    "tensorflow_gpu==1.10": TF + "1.10.0-gpu-py3",
    "tf-gpu==1.10": TF + "1.10.0-gpu-py3",
    "tensorflow:1.10.0-gpu-py3": TF + "1.10.0-gpu-py3",
    "pytorch1.1-cu100": TORCH + "1.1.0-cuda10.0-cudnn7.5-runtime",
    "pytorch:1.1-cuda10.0": TORCH + "1.1.0-cuda10.0-cudnn7.5-runtime",
    "pytorch:1.1.0-cuda10.0-cudnn7.5-runtime": TORCH + "1.1.0-cuda10.0-cudnn7.5-runtime",
    "torch==1.1": TORCH + "1.1.0-cuda10.0-cudnn7.5-runtime",
    "mxnet-cu101==1.5": "mxnet/python:1.5.0_gpu_cu101_py3_ub18",
    "paddlepaddle-gpu==2.5": "paddlepaddle/paddle:2.5.1-gpu-cuda11.7-cudnn8.4-trt8.4",
    # TensorFlow: Python 3 before 2, seen before derived, then the newest patch; Jupyter where it is there
    "tf": TF + "2.21.0",
    "tensorflow": TF + "2.21.0",
    "tensorflow:latest": TF + "2.21.0",
    "tf2": TF + "2.21.0",
    "tf2.x": TF + "2.21.0",
    "tf1": TF + "1.15.5",
    "tf1.x": TF + "1.15.5",
    "tf1.4": TF + "1.4.0-py3",
    "tf1.5": TF + "1.5.0-py3",
    "tf1.6": TF + "1.6.0-py3",
    "tf1.7": TF + "1.7.0-py3",
    "tf1.8": TF + "1.8.0-py3",
    "tf1.9": TF + "1.9.0-py3",
    "tf1.11": TF + "1.11.0-py3",
    "tf1.12": TF + "1.12.0-py3",
    "tf1.13": TF + "1.13.1-py3-jupyter",
    "tf1.14": TF + "1.14.0-py3-jupyter",
    "tf1.15": TF + "1.15.5",
    "tf2.0": TF + "2.0.4",
    "tf2.1": TF + "2.1.2",
    "tf2.2": TF + "2.2.2",
    "tf2.3": TF + "2.3.2",
    "tf2.4": TF + "2.4.1",
    "tf2.7": TF + "2.7.4",
    "tf2.8": TF + "2.8.4",
    "tf2.9": TF + "2.9.3-jupyter",
    "tf2.10": TF + "2.10.1",
    "tf2.11": TF + "2.11.1",
    "tf2.12": TF + "2.12.0-jupyter",
    "tf2.13": TF + "2.13.0",
    "tf2.15": TF + "2.15.0",
    "tf2.16": TF + "2.16.2",
    "tf2.17": TF + "2.17.0-jupyter",
    "tf2.20": TF + "2.20.0-jupyter",
    "tf1.10.1": TF + "1.10.1-py3",
    "tf2.1.0": TF + "2.1.0-py3-jupyter",
    "tf-gpu": TF + "2.17.0-gpu-jupyter",
    "tf1-gpu": TF + "1.15.5-gpu-jupyter",
    "tf1.4-gpu": TF + "1.4.0-gpu-py3",
    "tf1.7-gpu": TF + "1.7.1-gpu-py3",
    "tf1.12-gpu": TF + "1.12.0-gpu-py3",
    "tf1.13-gpu": TF + "1.13.1-gpu-py3-jupyter",
    "tf1.14-gpu": TF + "1.14.0-gpu-py3",
    "tf1.15-gpu": TF + "1.15.5-gpu-jupyter",
    "tf2.0-gpu": TF + "2.0.1-gpu-py3",
    "tf2.1-gpu": TF + "2.1.2-gpu",
    "tf2.3-gpu": TF + "2.3.1-gpu-jupyter",
    "tf2.4-gpu": TF + "2.4.1-gpu-jupyter",
    "tf2.8-gpu": TF + "2.8.4-gpu",
    "tf2.10-gpu": TF + "2.10.1-gpu",
    "tf2.13-gpu": TF + "2.13.0-gpu-jupyter",
    "tf2.15-gpu": TF + "2.15.0.post1-gpu-jupyter",
    "tf2.17-gpu": TF + "2.17.0-gpu-jupyter",
    # what is broken comes last: another publisher's, where there is one
    "tf2.18-gpu": TF + "2.18.0-gpu-jupyter",
    "tf2.19-gpu": AWS + "tensorflow-training:2.19.0-gpu-py312-cu125-ubuntu22.04-sagemaker",
    "tf2.21-gpu": AWS + "tensorflow-training:2.21.0-gpu-py312-cu129-amzn2023-sagemaker",
    # words
    "tf1.10-py2": TF + "1.10.1",
    "tf1.10-py27": TF + "1.10.1",
    "tf1.10-py3": TF + "1.10.0-py3",
    "tf1.10-py35": TF + "1.10.0-py3",
    "tf1.10-py3.5": TF + "1.10.0-py3",
    "tf1.10-gpu-py2": TF + "1.10.1-gpu",
    "tf1.10-py2-gpu": TF + "1.10.1-gpu",
    "tf1.10.0-gpu-py2": TF + "1.10.0-gpu",
    "tf1.12-devel": TF + "1.12.0-devel-py3",
    "tf1.12-gpu-devel": TF + "1.12.0-devel-gpu-py3",
    "tf1.12-cu9": TF + "1.12.0-gpu-py3",
    "tf1.12-cu90": TF + "1.12.0-gpu-py3",
    "tf1.13-cu100": TF + "1.13.1-gpu-py3-jupyter",
    "tf1.15-jupyter": TF + "1.15.5-py3-jupyter",
    "tf1.15-py36": TF + "1.15.5",
    "tf2.4-jupyter": TF + "2.4.0-jupyter",
    "tf2.1-gpu-jupyter": TF + "2.1.0-gpu-py3-jupyter",
    "tf2.3-cuda10.1": TF + "2.3.1-gpu-jupyter",
    "tf2-cu118": TF + "2.14.0-gpu",
    # PyTorch: its own images, though they have CUDA; for -cpu those of others
    "torch": TORCH + "2.12.0-cuda13.0-cudnn9-runtime",
    "torch-gpu": TORCH + "2.12.0-cuda13.0-cudnn9-runtime",
    "torch0.4": TORCH + "0.4.1-cuda9-cudnn7-runtime",
    "torch1.0": TORCH + "1.0.1-cuda10.0-cudnn7-runtime",
    "torch1.1": TORCH + "1.1.0-cuda10.0-cudnn7.5-runtime",
    "torch1.1-gpu": TORCH + "1.1.0-cuda10.0-cudnn7.5-runtime",
    "torch1.1-devel": TORCH + "1.1.0-cuda10.0-cudnn7.5-devel",
    "torch1.2": TORCH + "1.2-cuda10.0-cudnn7-runtime",
    "torch1.4": TORCH + "1.4-cuda10.1-cudnn7-runtime",
    "torch1.5": TORCH + "1.5.1-cuda10.1-cudnn7-runtime",
    "torch1.7": TORCH + "1.7.1-cuda11.0-cudnn8-runtime",
    "torch1.8": TORCH + "1.8.1-cuda11.1-cudnn8-runtime",
    "torch1.8-cu102": TORCH + "1.8.1-cuda10.2-cudnn7-runtime",
    "torch1.9-cu102": TORCH + "1.9.0-cuda10.2-cudnn7-runtime",
    "torch1.12": TORCH + "1.12.1-cuda11.3-cudnn8-runtime",
    "torch1.13": TORCH + "1.13.1-cuda11.6-cudnn8-runtime",
    "torch1.13-py39": TORCH + "1.13.0-cuda11.6-cudnn8-runtime",
    "torch2.0": TORCH + "2.0.1-cuda11.7-cudnn8-runtime",
    "torch2.0-py310": TORCH + "2.0.1-cuda11.7-cudnn8-runtime",
    "torch2.1": TORCH + "2.1.2-cuda12.1-cudnn8-runtime",
    "torch2.1-cu118": TORCH + "2.1.2-cuda11.8-cudnn8-runtime",
    "torch2.4": TORCH + "2.4.1-cuda12.4-cudnn9-runtime",
    "torch2-cu118": TORCH + "2.4.1-cuda11.8-cudnn9-runtime",
    "torch2.6": TORCH + "2.6.0-cuda12.6-cudnn9-runtime",
    "torch2.6-cu124": TORCH + "2.6.0-cuda12.4-cudnn9-runtime",
    "torch2.8": TORCH + "2.8.0-cuda12.9-cudnn9-runtime",
    "torch2.9": TORCH + "2.9.1-cuda12.8-cudnn9-runtime",
    "torch2.12-devel": TORCH + "2.12.0-cuda13.2-cudnn9-devel",
    "torch2.13": AWS + "pytorch:2.13.0-cpu-amzn2023",
    "torch2.13-gpu": AWS + "pytorch:2.13.0-cu133-amzn2023",
    "torch-cpu": AWS + "pytorch:2.13.0-cpu-amzn2023",
    "torch1.2-cpu": CNSTARK + "1.2.0-py3.7.13-ubuntu18.04",
    "torch2.1-cpu": CNSTARK + "2.1.2-py3.10.15-ubuntu22.04",
    "cnstark-torch1.4": CNSTARK + "1.4.0-py3.8.13-ubuntu18.04",
    "aws-torch2.6-gpu": AWS + "pytorch-training:2.6.0-gpu-py312-cu126-ubuntu22.04-ec2",
    # NVIDIA's, by the framework's version or by the release
    "ngc-tf": NGC + "tensorflow:24.11-tf2-py3",
    "ngc-tf1.15": NGC + "tensorflow:23.02-tf1-py3",
    "tf1.15-ngc": NGC + "tensorflow:23.02-tf1-py3",
    "ngc-tf1.15-cu11": NGC + "tensorflow:22.12-tf1-py3",
    "ngc-tf2.10": NGC + "tensorflow:22.12-tf2-py3",
    "ngc-torch23.10": NGC + "pytorch:23.10-py3",
    "ngc-torch1.8": NGC + "pytorch:21.02-py3",
    "ngc-torch2.6": NGC + "pytorch:25.01-py3",
    "torch1.14": NGC + "pytorch:23.01-py3",
    "jax": NGC + "jax:25.10-py3",
    "jax0.5": NGC + "jax:25.04-py3",
    "jax26.07": NGC + "jax:26.07-py3",
    "rapids": "rapidsai/notebooks:26.06-cuda13-py3.14",
    "rapids25.02": NGC + "rapidsai/base:25.02-cuda12.8-py3.12",
    "rapids25.04": "rapidsai/base:25.04-cuda12.8-py3.12",
    "rapids22.08": NGC + "rapidsai/rapidsai:22.08-cuda11.5-runtime-ubuntu20.04-py3.9",
    # others
    "mxnet": "mxnet/python:1.9.1_cpu_py3",
    "mxnet-gpu": "mxnet/python:1.5.0_gpu_cu101_py3_ub18",
    "mxnet1.1": "mxnet/python:1.1.0",
    "mxnet1.4-gpu": "mxnet/python:1.4.1_gpu_cu90_py3",
    "mxnet1.5": "mxnet/python:1.5.0_cpu_py3",
    "mxnet1.5-py2": "mxnet/python:1.5.0_cpu",
    "paddle": "paddlepaddle/paddle:2.6.2",
    "paddle1.8": "registry.baidubce.com/paddlepaddle/paddle:1.8.5",
    "paddle2.2-gpu": "paddlepaddle/paddle:2.2.2-gpu-cuda11.2-cudnn8",
    "paddle2.2-cu102": "registry.baidubce.com/paddlepaddle/paddle:2.2.2-gpu-cuda10.2-cudnn7",
    "paddle2.4": "paddlepaddle/paddle:2.4.0-cpu",
    "paddle3": "paddlepaddle/paddle:3.0.0b2-jupyter",
    "keras": DEEPO + "keras-py38-cpu",
    "keras-gpu": DEEPO + "keras-py38-cu113",
    "keras2.2": DEEPO + "keras-py36-cu90",
    "deepo": DEEPO + "cpu",
    "deepo-gpu": DEEPO + "latest",
    "deepo-py36-cu100": DEEPO + "all-py36-cu100",
    "deepo-py27": DEEPO + "all-py27-jupyter-cpu",
    "deepo-torch": DEEPO + "pytorch-py38-cpu",
    "deepo-torch-cu101": DEEPO + "pytorch-py36-cu101",
    "caffe": DEEPO + "caffe-py27-cpu",
    "caffe-gpu": DEEPO + "caffe-py36-cu113",
    "caffe2": DEEPO + "caffe2-py36-cpu",
    "chainer-gpu": DEEPO + "chainer-py38-cu113",
    "theano": DEEPO + "theano-py27-cpu",
    "darknet-gpu": DEEPO + "darknet-cu113",
    "transformers": "huggingface/transformers-pytorch-gpu:4.41.2",
    "kaggle-gpu": "gcr.io/kaggle-gpu-images/python:latest",
    "gpu-jupyter": "cschranz/gpu-jupyter:v1.10_cuda-12.9_ubuntu-24.04",
    "scipy": "quay.io/jupyter/scipy-notebook:2026-07-28",
    "r": "quay.io/jupyter/r-notebook:2026-07-28",
    "julia": "quay.io/jupyter/julia-notebook:latest",
    "python": "python:3.14-slim",
    "python2": "python:2.7-slim",
    "python2.7": "python:2.7-slim",
    "python3.6": "python:3.6-slim",
    "python3.9": "python:3.9-slim",
    "python3.9-slim": "python:3.9-slim",
    "python3.14": "python:3.14-slim",
    "python3.12.14": "python:3.12.14-slim",
    "python3.8-full": "python:3.8",
}


@pytest.mark.parametrize(("name", "reference"), MEANS.items(), ids=MEANS)
def test_a_name_means_the_image_a_specialist_would_choose(name: str, reference: str) -> None:
    assert choose(name, RunOptions(), NO_PROJECT).reference == reference


def test_there_are_many_names_in_the_table() -> None:
    assert len(MEANS) >= 150


@pytest.mark.parametrize(
    "name",
    [
        *[
            "tf1.10-gpu",
            "tf1.10-cu90",
            "ngc-tf1.15",
            "rapids",
            "tensorflow-gpu==1.10",
            "torch1.1-gpu",
        ],
        "pytorch1.1-cu100",
    ],
)
def test_these_names_ask_for_gpus(name: str) -> None:
    assert choose(name, RunOptions(), NO_PROJECT).wants_gpu


@pytest.mark.parametrize(
    "name", ["tf1.10", "torch1.1", "torch1.1-devel", "jax", "keras2.2", "deepo"]
)
def test_these_names_leave_gpus_to_the_user(name: str) -> None:
    assert not choose(name, RunOptions(), NO_PROJECT).wants_gpu


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("tf1.10", "TensorFlow 1.10"),
        ("TF1.10-GPU", "TensorFlow 1.10 GPU"),
        ("ngc-tf1.15", "TensorFlow 1.15 (NGC)"),
        ("pytorch1.1-cu100", "PyTorch 1.1 cu10.0"),
        ("tf1.10-py2-jupyter", "TensorFlow 1.10 with Jupyter py2"),
        ("python3.8-full", "Python 3.8 full"),
        ("torch-cpu", "PyTorch CPU"),
    ],
)
def test_a_title_says_what_was_asked_for(name: str, title: str) -> None:
    assert choose(name, RunOptions(), NO_PROJECT).title == title


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("tf1.10-py36", Query(framework="tensorflow", version="1.10", python=(3, 6))),
        ("tf-py310", Query(framework="tensorflow", python=(3, 10))),
        ("torch-cu11", Query(framework="pytorch", cuda=(11,))),
        ("torch-cu9", Query(framework="pytorch", cuda=(9,))),
        ("torch-cu92", Query(framework="pytorch", cuda=(9, 2))),
        ("torch-cu118", Query(framework="pytorch", cuda=(11, 8))),
        ("torch-cuda11.8", Query(framework="pytorch", cuda=(11, 8))),
        ("torch-cudnn7.5", Query(framework="pytorch", cudnn=(7, 5))),
        ("cnstark-torch2.0-ubuntu20.04",
         Query(framework="pytorch", version="2.0", publisher="cnstark", base_os="ubuntu20.04")),
        ("caffe2", Query(framework="caffe2")),
        ("paddle3.0.0b2", Query(framework="paddle", version="3.0.0b2")),
        ("gpu-jupyter1.9", Query(framework="tensorflow+pytorch", version="1.9")),
        ("ubuntu", None),
        ("torchserve", None),
        ("tf1.10-mine", None),
        ("tf1.10-gpu-cpu", None),
        ("tf1.10-py2-py3", None),
        ("tf1.10==1.10", None),
        ("tf1.10-ubuntu20", None),
        ("tensorflow/tensorflow", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_name_is_read_as_what_it_asks_for(name: str, query: Query | None) -> None:
    assert parse_query(name) == query


# --- what comes before the catalogue --------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorflow:1.10-gpu", "tf1.10", "jax"])
def test_a_local_image_of_that_name_comes_first(name: str) -> None:
    choice = choose(name, RunOptions(), NO_PROJECT, is_here=lambda reference: reference == name)
    assert choice.reference == name
    assert not choice.wants_gpu


@pytest.mark.parametrize(
    "reference", ["python:3.11", "julia:1.10", "r-base:4.6.1", "rapidsai/base:1"]
)
def test_images_of_docker_hubs_library_and_of_namespaces_stay_references(reference: str) -> None:
    assert choose(reference, RunOptions(), NO_PROJECT).reference == reference


def test_what_is_known_of_a_reference_is_told() -> None:
    image = choose("tensorflow/tensorflow:1.10.0-gpu-py3", RunOptions(), NO_PROJECT).image
    assert image is not None
    assert (image.name, image.cuda) == ("tf1.10-gpu", "9.0")
    assert choose("me/mine:1", RunOptions(), NO_PROJECT).image is None


def test_an_own_image_comes_before_the_catalogues() -> None:
    own = Image(name="tf1.10", reference="me/tf:1.10", framework="tensorflow", version="1.10",
                title="Mine", is_own=True)  # fmt: skip
    project = Project(images={"tf1.10": own})
    assert choose("TF1.10", RunOptions(), project).reference == "me/tf:1.10"
    assert choose("TF1.10", RunOptions(), project).title == "Mine"
    assert choose("tensorflow==1.10", RunOptions(), project).reference == "me/tf:1.10"
    assert choose("tf1.10-gpu", RunOptions(), project).reference == TF + "1.10.0-gpu-py3"


def test_an_own_image_may_have_any_name() -> None:
    own = Image(name="mine", reference="me/mine:1", gpu=True, is_own=True, title="mine")
    choice = choose("mine", RunOptions(), Project(images={"mine": own}))
    assert (choice.reference, choice.wants_gpu, choice.is_known) == ("me/mine:1", True, True)


def test_an_own_image_is_found_by_its_framework_and_asks_for_gpus_as_others_do() -> None:
    own = Image(name="ours", reference="me/torch:7", framework="pytorch", version="1.13.1",
                gpu=True, is_own=True)  # fmt: skip
    project = Project(images={"ours": own})
    assert choose("torch1.13", RunOptions(), project).reference == "me/torch:7"
    assert not choose("torch1.13", RunOptions(), project).wants_gpu
    assert choose("torch1.13-gpu", RunOptions(), project).wants_gpu
    assert choose("torch1.12", RunOptions(), project).image != own


def test_the_fit_decides_among_images_for_a_gpu_and_only_there() -> None:
    def newer_only(image: Image) -> int:
        return int(image.publisher == "ngc")

    def reference(name: str) -> str:
        return choose(name, RunOptions(), NO_PROJECT, fits=newer_only).reference

    assert reference("tf1.15-gpu") == NGC + "tensorflow:23.02-tf1-py3"
    assert reference("tf1.15") == TF + "1.15.5"


def test_the_next_candidates_are_kept() -> None:
    choice = choose("tf1.13-gpu", RunOptions(), NO_PROJECT)
    assert [image.reference for image in choice.others][:2] == [
        TF + "1.13.1-gpu-py3",
        TF + "1.13.1-gpu",
    ]


# --- Dockerfiles ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [".", "./Dockerfile", "./here", "../up", "/abs/olute", "~/mine", "Dockerfile", "a/Dockerfile",
     "gpu.Dockerfile", "docker/gpu.dockerfile", "Dockerfile.gpu"],
)  # fmt: skip
def test_the_path_of_a_dockerfile_is_one(name: str) -> None:
    choice = choose(name, RunOptions(), NO_PROJECT)
    assert (choice.dockerfile, choice.reference, choice.is_known) == (name, "", True)


def test_an_image_of_the_project_may_be_a_dockerfile() -> None:
    project = Project(environments={"mine": RunOptions(image="/here/Dockerfile")})
    assert choose("mine", RunOptions(), project).dockerfile == "/here/Dockerfile"


# --- what is doubtful, what is not there ----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "doubt"),
    [
        ("tf1.10", ""),
        ("tf1.4", "'tf1.4' is tensorflow/tensorflow:1.4.0-py3: a tag that follows from its neighbours and "
         "was not seen in any source. It may not exist."),
        ("keras2.2", "whose version is not confirmed"),
        ("tf2.18-gpu", "TensorFlow does not find the GPU in it"),
        ("julia1.10", "no other is known to work. It has no Python"),
        ("tensorflow/tensorflow:2.18.0-gpu", "What helps: pip install tensorflow[and-cuda]"),
        ("tensorflow/tensorflow:1.4.0-py3", ""),
        ("tensorflow/tensorflow:2.10.0-py3", "probably does not exist: tags ended in -py3 up to 2.1"),
    ],
)  # fmt: skip
def test_what_is_not_sure_is_said(name: str, doubt: str) -> None:
    found = choose(name, RunOptions(), NO_PROJECT).doubt
    assert doubt in found
    assert bool(found) is bool(doubt)


def test_a_tag_that_does_not_exist_is_refused_with_the_next_best() -> None:
    with pytest.raises(MissingTagError) as caught:
        choose("tensorflow/tensorflow:2.5.3", RunOptions(), NO_PROJECT)
    assert str(caught.value).splitlines() == [
        "There is no image 'tensorflow/tensorflow:2.5.3': patch releases often have no image.",
        "Next best: tf2.5 (tensorflow/tensorflow:2.5.1).",
    ]


def test_a_tag_that_is_here_exists() -> None:
    reference = "tensorflow/tensorflow:2.5.3"
    choice = choose(reference, RunOptions(), NO_PROJECT, is_here=lambda _: True)
    assert (choice.reference, choice.doubt) == (reference, "")


@pytest.mark.parametrize(
    ("name", "hint", "first"),
    [
        ("tf1.99", "There is no TensorFlow 1.99: newest is 2.21; there are 1.4 … 2.21.", "tf1.15"),
        ("tf3", "There is no TensorFlow 3: newest is 2.21", "tf2.21"),
        ("tf2.5.3", "There is no TensorFlow 2.5.3", "tf2.5"),
        (
            "torch99-gpu",
            "There is no PyTorch 99: newest is 2.13; there are 0.4 … 2.13.",
            "aws-torch2.13-gpu",
        ),
        ("rapids24.04", "There is no RAPIDS 24.04: newest is 26.06", "ngc-rapids24.06"),
        ("tf1.10-py36", "There is TensorFlow 1.10, but not so.", "tf1.10"),
        ("ngc-keras", "There is no Keras of ngc.", "deepo-keras-gpu"),
        (
            "caffe1.0",
            "There is no Caffe 1.0: only images whose version is not known.",
            "deepo-caffe",
        ),
    ],
)
def test_a_name_that_no_image_meets_comes_with_what_there_is(
    name: str, hint: str, first: str
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        choose(name, RunOptions(), NO_PROJECT)
    assert hint in caught.value.hint
    assert caught.value.suggestions[0] == first
