# -*- coding: utf-8 -*-
"""Tensors of torch and TensorFlow on the wire; where their library is not, they are read as arrays."""

from __future__ import absolute_import, division, print_function, unicode_literals

import importlib
import struct
import sys

from . import arrays, plain
from .wire import TEXT, Builder, Refused, _must

# Types that NumPy has not travel as numbers of their width.
_AS_NUMBERS = {"bfloat16": "int16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


def find_writer(value, kind):
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "Tensor") and isinstance(value, torch.Tensor):
        return _write_torch
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or not hasattr(tensorflow, "Variable"):
        return None
    if isinstance(value, tensorflow.Variable) or kind.__name__ in (
        "ResourceVariable",
        "RefVariable",
    ):
        return _write_variable
    if isinstance(value, tensorflow.Tensor):
        return _write_tensor
    if kind.__name__ in ("SparseTensor", "RaggedTensor", "IndexedSlices"):
        return _refuse_composed
    return None


def _refused(packer, number, what, hint):
    return Refused("%s is %s, which cannot be handed over." % (packer.place_of(number), what), hint)


# ---------------------------------------------------------------------------------------------
# Writing


def _write_torch(packer, value, number):
    torch = sys.modules["torch"]
    if arrays.find_numpy() is None:
        raise _refused(
            packer, number, "a tensor where there is no NumPy", "Convert it with .tolist()."
        )
    if TEXT(value.device) == "meta":
        raise _refused(
            packer, number, "a tensor without data (device meta)", "Hand over its shape."
        )
    if value.layout != torch.strided:
        raise _refused(packer, number, "a sparse tensor", "Convert it with .to_dense().")
    name = plain.name_text(str(value.dtype)).replace("torch.", "")
    asks = bool(value.requires_grad)
    device = TEXT(value.device)
    if device != "cpu":
        packer.note("tensor on %s: on the CPU" % device)
    if asks and value.grad_fn is not None:
        packer.note("tensor with a history of operations: without it")
    parameter = isinstance(value, torch.nn.Parameter)
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        packer.note("%s: a tensor" % plain.name_of(type(value)))
    plain_value = value.detach().cpu()
    if getattr(plain_value, "is_quantized", False):
        packer.note("quantized tensor: float32")
        plain_value = plain_value.dequantize()
        name = "float32"
    for resolve in ("resolve_conj", "resolve_neg"):
        if hasattr(plain_value, resolve):
            plain_value = getattr(plain_value, resolve)()
    if name in _AS_NUMBERS:
        try:
            plain_value = plain_value.contiguous().view(getattr(torch, _AS_NUMBERS[name]))
        except (TypeError, AttributeError, RuntimeError):  # an old one cannot
            packer.note("tensor of %s: float32" % name)
            plain_value = plain_value.float()
            name = "float32"
    try:
        found = plain_value.numpy()
    except (TypeError, RuntimeError) as error:
        raise _refused(
            packer,
            number,
            "a tensor of %s (%s)" % (name, plain.short(error)),
            "Convert it with .float().",
        )
    detail = ["torch", name, "parameter" if parameter else "tensor", asks]
    return ["tensor", detail, [packer.element(found, number, plain.step(""))]]


def _number_of_tensorflow(packer, found, number, name, kind, trainable):
    import numpy

    if name == "string":  # of bytes
        found = numpy.asarray(found, dtype=object)
        shape = [int(part) for part in found.shape]
        items = packer.items(found.reshape(-1).tolist(), number)
        return ["tensor", ["tensorflow", name, kind, trainable, shape], items]
    found = numpy.asarray(found)
    if name in _AS_NUMBERS and found.dtype.itemsize == numpy.dtype(str(_AS_NUMBERS[name])).itemsize:
        found = found.view(str(_AS_NUMBERS[name]))
    return [
        "tensor",
        ["tensorflow", name, kind, trainable],
        [packer.element(found, number, plain.step(""))],
    ]


def _write_variable(packer, value, number):
    tensorflow = sys.modules["tensorflow"]
    name = plain.name_text(value.dtype.base_dtype.name)
    trainable = bool(getattr(value, "trainable", True))
    if hasattr(value, "numpy") and _is_eager(tensorflow):
        return _number_of_tensorflow(packer, value.numpy(), number, name, "variable", trainable)
    compatible = getattr(getattr(tensorflow, "compat", None), "v1", tensorflow)
    get_session = getattr(compatible, "get_default_session", None) or tensorflow.get_default_session
    session = get_session()
    told = plain.name_text(value.name)
    if session is None:
        raise _refused(
            packer,
            number,
            "the TensorFlow variable %s, whose value is in a session, and none is the default"
            % told,
            "Hand over what sess.run(...) gives for it, or do this inside `with sess.as_default():`.",
        )
    try:
        found = session.run(value)
    except Exception as error:  # noqa: BLE001  (of classes that are not here by name)
        raise _refused(
            packer,
            number,
            "the TensorFlow variable %s, whose value the default session cannot give (%s)"
            % (told, type(error).__name__),
            "Initialize it first, or hand over what sess.run(...) of its own session gives.",
        )
    return _number_of_tensorflow(packer, found, number, name, "variable", trainable)


def _is_eager(tensorflow):
    ask = getattr(tensorflow, "executing_eagerly", None)
    return ask is not None and ask()


def _write_tensor(packer, value, number):
    name = plain.name_text(value.dtype.base_dtype.name)
    if not hasattr(value, "numpy") or not _is_eager(sys.modules["tensorflow"]):
        raise _refused(
            packer,
            number,
            "the TensorFlow tensor %s, which is a step of a graph and has no value"
            % plain.name_text(value.name),
            "Hand over what sess.run(...) gives for it.",
        )
    return _number_of_tensorflow(packer, value.numpy(), number, name, "tensor", False)


def _refuse_composed(packer, value, number):
    hints = {
        "SparseTensor": "Convert it with tf.sparse.to_dense(...).",
        "RaggedTensor": "Convert it with .to_list() or .to_tensor().",
        "IndexedSlices": "Convert it with tf.convert_to_tensor(...).",
    }
    raise _refused(packer, number, "a %s" % type(value).__name__, hints[type(value).__name__])


# ---------------------------------------------------------------------------------------------
# Reading


def _read(reader, node):
    library, name, kind, asks = node[1][:4]
    _must(
        library in ("torch", "tensorflow") and kind in ("tensor", "variable", "parameter"),
        "a tensor is none",
    )
    _must(isinstance(name, TEXT) and len(name) < 40 and type(asks) is bool, "a tensor is none")
    numpy = arrays.find_numpy()
    if library == "tensorflow" and name == "string":
        found = _strings(reader, numpy, reader.values(node[2]), arrays.shape_of(node[1][4]))
    else:
        _must(isinstance(node[2], list) and len(node[2]) == 1, "a tensor is none")
        found = reader.value(node[2][0])
    if numpy is None and name == "bfloat16":
        reader.note("tensor of bfloat16: list (no NumPy here)")
        return _floats(reader, node[2][0])
    if numpy is None:
        of = "tensor of %s: list of its bytes" % name if name in _AS_NUMBERS else "tensor: list"
        reader.note("%s (no NumPy here)" % of)
        return found
    _must(isinstance(found, (numpy.ndarray, numpy.generic)), "a tensor is none")
    if name in _AS_NUMBERS:
        _must(
            found.dtype.itemsize == numpy.dtype(str(_AS_NUMBERS[name])).itemsize, "a tensor is none"
        )
    make = _make_torch if library == "torch" else _make_tensorflow
    made = make(reader, numpy, found, name, kind, asks)
    if made is not None:
        return made
    if name == "bfloat16":
        whole = numpy.ascontiguousarray(found).reshape(found.shape)
        found = (whole.view(numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
        made = make(reader, numpy, found, "float32", kind, asks)
        if made is not None:
            reader.note("tensor of bfloat16: float32")
            return made
        reader.note("tensor of bfloat16: array of float32")
    elif name in _AS_NUMBERS:
        reader.note("tensor of %s: array of its bytes" % name)
    elif library == "torch" and asks:
        reader.note("tensor that requires a gradient: array")
    else:
        reader.note(
            "tensor: array" + ("" if sys.modules.get(library) else " (no %s here)" % library)
        )
    return found


def _floats(reader, element):
    """What an array of bfloat16, as numbers of its width, is in lists of floats."""
    _must(isinstance(element, list), "a tensor is none")
    part = reader.nodes[element[0]]
    _must(part[0] == "array", "a tensor is none")
    _, shape, order, number = part[1]
    data = reader.bytes(number)
    count = arrays.count_of(arrays.shape_of(shape))
    _must(len(data) == 2 * count, "a tensor is not of its size")
    halves = struct.unpack(str("<%dH" % count), data)
    wholes = struct.pack(str("<%dI" % count), *[half << 16 for half in halves])
    floats = list(struct.unpack(str("<%df" % count), wholes))
    return arrays.nested(floats, arrays.shape_of(shape), order)


def _strings(reader, numpy, values, shape):
    for value in values:
        _must(isinstance(value, bytes), "a tensor is none")
    if numpy is None:
        _must(arrays.count_of(shape) == len(values), "a tensor is not of its size")
        return arrays.nested(values, shape, "C")
    found = numpy.empty(len(values), object)
    arrays.fill_objects(found, values)
    return found.reshape(shape)


def _import(reader, library):
    try:
        return sys.modules.get(library) or importlib.import_module(library)
    except Exception:  # noqa: BLE001  (an installation that is broken raises anything)
        return None


def _make_torch(reader, numpy, found, name, kind, asks):
    torch = _import(reader, "torch")
    if torch is None:
        return None
    try:
        # A tensor knows no read-only: over pages that are, writing to it ends the process.
        made = torch.from_numpy(reader.writable(found))
        if name in _AS_NUMBERS:
            if not hasattr(torch, name):
                return None
            made = made.view(getattr(torch, name))
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return None  # a dtype that this one has not
    if kind == "parameter":
        return torch.nn.Parameter(made, requires_grad=asks)
    return made.requires_grad_(True) if asks else made


def _make_tensorflow(reader, numpy, found, name, kind, asks):
    tensorflow = _import(reader, "tensorflow")
    if tensorflow is None or not hasattr(tensorflow, "Variable") or not _is_eager(tensorflow):
        return None
    try:
        made = tensorflow.constant(found)
        if name in _AS_NUMBERS:
            made = tensorflow.bitcast(made, getattr(tensorflow, name))
        return tensorflow.Variable(made, trainable=asks) if kind == "variable" else made
    except (AttributeError, TypeError, ValueError):
        return None  # a dtype that this one has not


BUILDERS = {"tensor": Builder(_read)}
