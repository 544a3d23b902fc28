"""Tensors of torch and TensorFlow 2, between kernels that have them and kernels that have not."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from dockml_magic import Environment
from dockml_magic.errors import ValueRefusedError
from dockml_magic.exchange import OwnKernel, hand_over
from tests.integration.conftest import StartEnvironments

pytestmark = pytest.mark.timeout(600)  # torch is installed once

VERSION = "torch==2.13.0"
"""Whichever build the package index has; the CPU's will do."""

FOLDER = Path(__file__).parents[2] / "build"

BARE, NUMPY, TORCH, TF2 = "bare:3.11", "tensorflow:1.10.0", "pytorch:1.1.0", "tensorflow:2.15.1"
"""Without NumPy; with it, and a TensorFlow that makes no eager tensors; torch without bfloat16; TensorFlow 2."""

LARGE = 50_000
"""Numbers that are handed over in shared memory."""


@pytest.fixture(scope="module")
def environments(start_environments: StartEnvironments) -> Iterator[dict[str, Environment]]:
    """One of each image, for all tests here."""
    with start_environments(BARE, NUMPY, TORCH, TF2) as environments:
        yield environments


@pytest.fixture
def own() -> dict[str, Any]:
    """Give the variables of this process."""
    return {}


# --- torch ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    """Give a torch that has bfloat16.

    It is in a folder of its own, kept from run to run: with it in the environment of all tests, notebooks would
    get tensors where they are to get arrays.
    """
    folder = FOLDER / VERSION
    if not folder.exists():
        FOLDER.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as fresh:
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-compile",
                "--target",
            ]
            subprocess.run([*command, f"{fresh}/torch", VERSION], check=True)
            Path(fresh, "torch").rename(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        yield importlib.import_module("torch")


@pytest.fixture(scope="module")
def bfloat16(torch: Any) -> Any:
    """Give a tensor."""
    numbers = [[1.5, -2.0, float("inf")], [0.0, 2.0**100, 1 / 3]]
    return torch.tensor(numbers, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("target", "kind", "note"),
    [
        (BARE, "list", "tensor of bfloat16: list (no NumPy here)"),
        (NUMPY, "ndarray", "tensor of bfloat16: array of float32"),
        (TORCH, "Tensor", "tensor of bfloat16: float32"),
        (TF2, "ndarray", "tensor of bfloat16: array of float32"),
    ],
)
def test_bfloat16_keeps_its_numbers_where_torch_or_the_type_is_missing_and_back(
    environments: dict[str, Environment],
    own: dict[str, Any],
    torch: Any,
    bfloat16: Any,
    target: str,
    kind: str,
    note: str,
) -> None:
    done = environments[target].put("b", bfloat16)
    assert done.types["b"].startswith(kind)
    assert note in done.notes
    hand_over(environments[target].side, OwnKernel(own), {"b": "back"})
    back = torch.as_tensor(own["back"])
    assert torch.equal(back.to(torch.bfloat16), bfloat16)
    assert kind == "list" or str(back.dtype) == "torch.float32"


def test_bfloat16_in_shared_memory_keeps_its_numbers(
    environments: dict[str, Environment], own: dict[str, Any], torch: Any
) -> None:
    large = torch.arange(LARGE, dtype=torch.float32).to(torch.bfloat16)
    assert environments[TORCH].put("large", large).bytes > 2 * LARGE
    hand_over(environments[TORCH].side, OwnKernel(own), {"large": "large"})
    assert own["large"].dtype == torch.float32
    assert torch.equal(own["large"], large.float())


def test_within_one_version_bfloat16_and_gradients_stay(
    own: dict[str, Any], torch: Any, bfloat16: Any
) -> None:
    asks = torch.ones(2, requires_grad=True)
    history = asks * 2
    values = {
        "b": bfloat16,
        "asks": asks,
        "weights": torch.nn.Parameter(bfloat16),
        "history": history,
    }
    done = hand_over(OwnKernel(values), OwnKernel(own), {name: name for name in values})
    assert own["b"].dtype == own["weights"].dtype == torch.bfloat16
    assert torch.equal(own["b"], bfloat16)
    assert type(own["weights"]) is torch.nn.Parameter
    assert [own[name].requires_grad for name in values] == [False, True, True, True]
    assert own["history"].is_leaf
    assert set(done.notes) == {"tensor with a history of operations: without it"}


def test_what_asks_for_a_gradient_does_so_in_an_older_torch_and_back(
    environments: dict[str, Environment], own: dict[str, Any], torch: Any
) -> None:
    environments[TORCH].put("w", torch.nn.Parameter(torch.ones(2, 2)))
    environments[TORCH].run("import torch; (w * 3).sum().backward(); grad = w.grad")
    assert (
        environments[TORCH].run("type(w).__name__, w.requires_grad").text == "('Parameter', True)"
    )
    hand_over(environments[TORCH].side, OwnKernel(own), {"w": "w", "grad": "grad"})
    assert type(own["w"]) is torch.nn.Parameter
    assert own["w"].requires_grad
    assert own["grad"].tolist() == [[3, 3], [3, 3]]


def test_a_tensor_of_a_gpu_arrives_on_the_cpu_and_that_is_said(
    environments: dict[str, Environment], torch: Any
) -> None:
    class OnGpu(torch.Tensor):  # type: ignore[misc]
        """Says that it is there, as no GPU is here; its data is not."""

        @property
        def device(self) -> Any:
            return torch.device("cuda", 1)

    tensor = torch.arange(6.0).reshape(2, 3).as_subclass(OnGpu)
    done = environments[TORCH].put("t", tensor)
    assert "tensor on cuda:1: on the CPU" in done.notes
    assert environments[TORCH].run("t.device.type, t.tolist()").text == (
        "('cpu', [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])"
    )


def test_a_tensor_without_data_is_refused(environments: dict[str, Environment], torch: Any) -> None:
    with pytest.raises(
        ValueRefusedError, match=r"without data \(device meta\), which cannot be handed over\."
    ):
        environments[TORCH].put("m", torch.empty(2, device="meta"))


# --- TensorFlow 2 -----------------------------------------------------------------------------

MAKE_TF2 = f"""
import tensorflow as tf
eager = tf.constant([[1.0, 2.0], [3.0, 4.0]])
variable = tf.Variable([1, 2, 3], trainable=False)
bfloat16 = tf.constant([1.5, -2.0, 2.0 ** 100], tf.bfloat16)
texts = tf.constant([['eins', 'zwei'], ['drei', '']])
scalar = tf.constant(7)
large = tf.range({LARGE})
"""
NAMES = ("eager", "variable", "bfloat16", "texts", "scalar", "large")


@pytest.fixture(scope="module")
def tf2(environments: dict[str, Environment]) -> Environment:
    environments[TF2].run(MAKE_TF2)
    return environments[TF2]


def test_tensors_of_tensorflow_2_are_arrays_where_it_is_not(
    tf2: Environment, own: dict[str, Any]
) -> None:
    done = hand_over(tf2.side, OwnKernel(own), {name: name for name in NAMES})
    assert all(type(own[name]) is numpy.ndarray for name in NAMES)
    assert own["eager"].tolist() == [[1, 2], [3, 4]]
    assert own["eager"].dtype == "float32"
    assert own["variable"].tolist() == [1, 2, 3]
    assert (own["bfloat16"].dtype, own["bfloat16"].tolist()) == ("float32", [1.5, -2.0, 2.0**100])
    assert own["texts"].tolist() == [[b"eins", b"zwei"], [b"drei", b""]]
    assert own["scalar"].shape == ()
    assert own["large"].tolist() == list(range(LARGE))
    assert set(done.notes) >= {
        "tensor: array (no tensorflow here)",
        "tensor of bfloat16: array of float32",
    }


def test_tensors_of_tensorflow_2_are_tensors_again_where_it_is(tf2: Environment) -> None:
    """The same kernel is both sides: it gets what another one with this version gets."""
    done = hand_over(tf2.side, tf2.side, {name: f"{name}_2" for name in NAMES})
    assert not [note for note in done.notes if "read-only" not in note]
    assert done.types["variable_2"].startswith("ResourceVariable")
    for name in NAMES:
        same = f"bool(tf.reduce_all({name} == {name}_2)), {name}.dtype == {name}_2.dtype"
        assert tf2.run(same).text == "(True, True)", name
    assert tf2.run("variable_2.trainable, tf.is_tensor(texts_2)").text == "(False, True)"
    assert (
        tf2.run("variable_2.assign_add([1, 1, 1]); variable_2.numpy().tolist()").text == "[2, 3, 4]"
    )


def test_arrays_go_to_tensorflow_2_and_back(tf2: Environment, own: dict[str, Any]) -> None:
    tf2.put("x", numpy.arange(6.0).reshape(2, 3))
    tf2.run("y = tf.matmul(x, x, transpose_b=True); s = {'weights': [y, y + 1]}")
    hand_over(tf2.side, OwnKernel(own), {"y": "y", "s": "s"})
    assert own["y"].tolist() == [[5, 14], [14, 50]]
    assert own["s"]["weights"][1].tolist() == [[6, 15], [15, 51]]


def test_what_tensorflow_2_has_without_a_value_is_refused(tf2: Environment) -> None:
    tf2.run("ragged = tf.ragged.constant([[1], [2, 3]]); given = tf.data.Dataset.range(3)")
    tf2.run("model = tf.keras.Sequential([tf.keras.layers.Dense(1)])")
    for name, hint in (
        ("ragged", "to_list"),
        ("model", "get_weights"),
        ("given", "as_numpy_iterator"),
    ):
        with pytest.raises(ValueRefusedError, match=f"^{name} is ") as refused:
            tf2.get(name)
        assert hint in refused.value.hint
