"""The codec in containers: golden payloads in every Python, tensors in the frameworks that have them."""

import base64
import subprocess
from pathlib import Path

import pytest

import dockml_magic
from tests.unit.golden import golden

PACKAGE = Path(dockml_magic.__file__).parent / "resources" / "values"
GOLDEN = Path(golden.__file__).parent


@pytest.mark.parametrize(
    "image",
    [
        "python:2.7-slim",
        "dockml/bare:3.5",
        "dockml/numpy:1.14.5-py35",
        "dockml/bare:3.6",
        "dockml/bare:3.9",
        "dockml/bare:3.11",
        "dockml/bare:3.13",
        "dockml/bare:3.14",
        "dockml/tensorflow:1.10.0",
        "dockml/tensorflow:1.10.0-py27",
        "dockml/pytorch:1.1.0",
    ],
)
def test_a_container_writes_and_reads_the_golden_payloads(image):
    ran = subprocess.run(
        [
            "docker",
            "run",
            "--rm",
            "--network=none",
            "--entrypoint=python",
            "-v",
            f"{PACKAGE}:/mnt/dockml_values:ro",
            "-v",
            f"{GOLDEN}:/mnt/golden:ro",
            image,
            "-B",
            "/mnt/golden/golden.py",
            "/mnt/dockml_values",
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "as it should be" in ran.stdout


TORCH = """
import torch
t = torch.arange(6.0).reshape(2, 3)
values = [("plain", t), ("turned", t.t()), ("asks", t.clone().requires_grad_(True)), ("empty", torch.zeros(0, 3)),
          ("parameter", torch.nn.Parameter(t)), ("state", torch.nn.Linear(2, 1).state_dict())]
"""
# What arrives in a Python that has none of it.
TOLD = """
import numpy
def told(value):
    if isinstance(value, dict):
        return sorted((str(key), told(part)) for key, part in value.items())
    value = getattr(value, "detach", lambda: value)()
    return type(value).__name__, str(value.dtype).replace("torch.", ""), numpy.asarray(value).shape
"""
VARIABLE = """
import tensorflow as tf
weights = tf.Variable([[1.0, 2.0]], name="weights")
def refused(value):
    try:
        dockml_values.pack([("model", {"w": value})])
    except dockml_values.Refused as error:
        return str(error)
without, step = refused(weights), refused(weights + 1)
session = tf.InteractiveSession()
empty = refused(weights)
session.run(tf.global_variables_initializer())
found = dockml_values.unpack(dockml_values.pack([("w", weights)]).to_bytes())
print(repr((without, step, empty, found.values["w"].tolist(), [str(note) for note in found.notes])))
"""


def run_in(image, code, payload=b""):
    """Run code in a container, where `dockml_values` is the codec and `payload` what came in."""
    prelude = (
        "import base64, os, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "sys.path.insert(0, '/mnt')\n"
        "import dockml_values\n"
        "payload = base64.b64decode(sys.stdin.read())\n"
    )
    ran = subprocess.run(
        [
            "docker",
            "run",
            "--rm",
            "-i",
            "--network=none",
            "--entrypoint=python",
            "-v",
            f"{PACKAGE}:/mnt/dockml_values:ro",
            image,
            "-B",
            "-c",
            prelude + code,
        ],
        input=base64.b64encode(payload),
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout.decode()


@pytest.fixture(scope="module")
def tensors():
    """Tensors of torch 1.1, as they leave it."""
    send = "print(base64.b64encode(dockml_values.pack(values).to_bytes()).decode())"
    return base64.b64decode(run_in("dockml/pytorch:1.1.0", TORCH + send))


def test_tensors_arrive_in_torch_as_they_were(tensors):
    assert_same = TORCH + (
        "found = dockml_values.unpack(payload)\n"
        "assert found.notes == [], found.notes\n"
        "for name, value in values[:-1]:\n"
        "    there = found.values[name]\n"
        "    assert type(there) is type(value) and there.dtype == value.dtype, name\n"
        "    assert there.shape == value.shape and torch.equal(there, value), name\n"
        "    assert there.requires_grad == value.requires_grad, name\n"
        "assert set(found.values['state']) == {'weight', 'bias'}\n"
        "found.values['plain'][0, 0] = 7  # one's own\n"
        "assert found.values['plain'][0, 0] == 7\n"
        "print('the same')"
    )
    assert run_in("dockml/pytorch:1.1.0", assert_same, tensors).strip() == "the same"


@pytest.mark.parametrize("image", ["dockml/tensorflow:1.10.0", "dockml/tensorflow:1.10.0-py27"])
def test_tensors_are_arrays_where_there_is_no_torch_and_that_is_said(image, tensors):
    tell = TOLD + (
        "found = dockml_values.unpack(payload)\n"
        "print(repr([told(found.values), [str(note) for note in found.notes]]))"
    )
    values, notes = eval(run_in(image, tell, tensors))
    assert dict(values) == {
        "plain": ("ndarray", "float32", (2, 3)),
        "turned": ("ndarray", "float32", (3, 2)),
        "asks": ("ndarray", "float32", (2, 3)),
        "empty": ("ndarray", "float32", (0, 3)),
        "parameter": ("ndarray", "float32", (2, 3)),
        "state": [
            ("bias", ("ndarray", "float32", (1,))),
            ("weight", ("ndarray", "float32", (1, 2))),
        ],
    }
    assert set(notes) == {"tensor: array (no torch here)", "tensor that requires a gradient: array"}


@pytest.mark.parametrize("image", ["dockml/tensorflow:1.10.0", "dockml/tensorflow:1.4.0"])
def test_a_variable_of_tensorflow_1_is_its_value_in_the_default_session(image):
    without, step, empty, value, notes = eval(run_in(image, VARIABLE).splitlines()[-1])
    assert without.startswith(
        "model['w'] is the TensorFlow variable weights:0, whose value is in a session"
    )
    assert step.startswith("model['w'] is the TensorFlow tensor add:0, which is a step of a graph")
    assert "FailedPreconditionError" in empty
    for told in (without, step, empty):
        assert "sess.run(...)" in told
    assert value == [[1.0, 2.0]]
    assert notes == ["tensor: array"]
