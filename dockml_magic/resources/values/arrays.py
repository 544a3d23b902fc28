# -*- coding: utf-8 -*-
"""NumPy's arrays and scalars on the wire; without NumPy they are read as lists and numbers."""

from __future__ import absolute_import, division, print_function, unicode_literals

import base64
import datetime
import importlib
import re
import struct
import sys

from . import plain
from .wire import INTS, PY2, TEXT, Builder, Damaged, Refused, Simpler, _must

DEEPEST_DTYPE = 16

_SIMPLE = re.compile(
    r"([<>|])([biufcSUVmM])([0-9]{1,18})(?:\[([0-9]{0,9})(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?$"
)
_SIZES = {
    "b": (1,),
    "i": (1, 2, 4, 8),
    "u": (1, 2, 4, 8),
    "f": (2, 4, 8, 12, 16),
    "c": (8, 16, 24, 32),
    "m": (8,),
    "M": (8,),
}


def find_numpy():
    """NumPy, or None where there is none that can be loaded."""
    try:
        return sys.modules.get("numpy") or importlib.import_module("numpy")
    except Exception:  # noqa: BLE001  (an installation that is broken raises anything)
        return None


# ---------------------------------------------------------------------------------------------
# dtypes


def dtype_detail(dtype):
    """A dtype as JSON: text, or an object for a structure; None where it holds Python objects."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        found = dtype_detail(base)
        return found and {"of": found, "shape": [int(part) for part in shape]}
    if dtype.names is not None:
        types, offsets, titles = [], [], []
        for name in dtype.names:
            field = dtype.fields[name]
            found = dtype_detail(field[0])
            if found is None:
                return None
            types.append(found)
            offsets.append(int(field[1]))
            titles.append(plain.name_text(field[2]) if len(field) > 2 else None)
        names = [plain.name_text(name) for name in dtype.names]
        found = {
            "names": names,
            "types": types,
            "offsets": offsets,
            "size": int(dtype.itemsize),
            "aligned": bool(dtype.isalignedstruct),
        }
        if any(isinstance(title, TEXT) for title in titles):
            found["titles"] = [title if isinstance(title, TEXT) else None for title in titles]
        return found
    told = dtype.str
    told = told.decode("ascii") if isinstance(told, bytes) else told
    import numpy

    if (
        not _SIMPLE.match(told)
        or numpy.dtype(str(told)) != dtype
        or dtype.kind == "V"
        and dtype.type is not numpy.void
    ):
        return None
    return told


def dtype_of(numpy, detail, depth=0):
    """The dtype of a detail, checked by a grammar of ours."""
    _must(depth < DEEPEST_DTYPE, "a dtype is too deep")
    if isinstance(detail, TEXT):
        parts = _simple_parts(detail)
        try:
            dtype = numpy.dtype(str(detail))
        except TypeError:
            raise Damaged("NumPy %s has no dtype %s" % (numpy.__version__, detail))
        _must(dtype.itemsize == parts[3], "a dtype is not of its size")
        return dtype
    _must(isinstance(detail, dict), "a dtype is none")
    if set(detail) == {"of", "shape"}:
        shape = shape_of(detail["shape"])
        base = dtype_of(numpy, detail["of"], depth + 1)
        _must(base.itemsize * count_of(shape) < 1 << 31, "a dtype is too long")
        return numpy.dtype((base, shape))
    keys = {"names", "types", "offsets", "size", "aligned"}
    _must(set(detail) - {"titles"} == keys, "a dtype is none")
    names, types, offsets = detail["names"], detail["types"], detail["offsets"]
    size = detail["size"]
    for part in (names, types, offsets):
        _must(isinstance(part, list) and len(part) == len(names), "a dtype is none")
    _must(
        type(size) in INTS and 0 <= size < 1 << 31 and type(detail["aligned"]) is bool,
        "a dtype is none",
    )
    for name in names:
        _must(isinstance(name, TEXT), "a field has no name")
    for offset in offsets:
        _must(type(offset) in INTS and 0 <= offset <= size, "a field is nowhere")
    formats = [dtype_of(numpy, part, depth + 1) for part in types]
    for found, offset in zip(formats, offsets):
        _must(offset + found.itemsize <= size, "a field is longer than what it is in")
    if PY2:
        names = [name.encode("utf-8") for name in names]
    built = {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}
    if "titles" in detail:
        titles = built["titles"] = detail["titles"]
        _must(isinstance(titles, list) and len(titles) == len(names), "a dtype is none")
        for title in titles:
            _must(title is None or isinstance(title, TEXT), "a field has no title")
    return numpy.dtype({str(key): value for key, value in built.items()}, align=detail["aligned"])


def _simple_parts(detail):
    """Byte order, kind, number, size in bytes, and the unit of a simple dtype."""
    match = _SIMPLE.match(detail)
    _must(match is not None, "a dtype is none")
    order, kind, number, count, unit = match.groups()
    number = int(number)
    size = number * 4 if kind == "U" else number
    _must(number in _SIZES.get(kind, (number,)) and size < 1 << 31, "a dtype is none")
    _must(unit is None or kind in "mM", "a dtype is none")
    return order, kind, number, size, count, unit


def shape_of(detail):
    _must(isinstance(detail, list) and len(detail) <= 64, "a shape is none")
    for part in detail:
        _must(type(part) in INTS and 0 <= part < 1 << 62, "a shape is none")
    return tuple(detail)


def count_of(shape):
    count = 1
    for part in shape:
        count *= part
    return count


def size_of(detail, depth=0):
    """Bytes of one element."""
    _must(depth < DEEPEST_DTYPE, "a dtype is too deep")
    if isinstance(detail, TEXT):
        return _simple_parts(detail)[3]
    _must(isinstance(detail, dict), "a dtype is none")
    if "of" in detail:
        return size_of(detail["of"], depth + 1) * count_of(shape_of(detail["shape"]))
    size = detail["size"]
    _must(type(size) in INTS and 0 <= size < 1 << 31, "a dtype is none")
    return size


# ---------------------------------------------------------------------------------------------
# Writing


class Data(object):
    """A buffer that is an array's data, copied when the payload is laid out and not before."""

    def __init__(self, array, order):
        self.array = array
        self.order = order
        self.size = int(array.nbytes)

    def write(self, window, offset):
        import numpy

        if self.array.dtype.names is not None:
            # Bytes between fields are nobody's: none of what was there before.
            numpy.ndarray((self.size,), numpy.uint8, window.view, offset)[...] = 0
        elif window.is_file and self.array.flags[str("%s_CONTIGUOUS" % self.order)]:
            window.write(offset, self.array.ravel(str(self.order)).view(numpy.uint8))
            return
        there = numpy.ndarray(
            self.array.shape, self.array.dtype, window.view, offset, None, str(self.order)
        )
        numpy.copyto(there, self.array)


def find_writer(value, kind):
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.ndarray):
        if kind is numpy.ndarray:
            return write_array
        if value is numpy.ma.masked:
            return lambda packer, value, number: ["maskedconstant", None]
        if isinstance(value, numpy.ma.MaskedArray):
            return _write_masked
        return Simpler(_simplify_subclass)
    if isinstance(value, numpy.generic):
        return _write_scalar
    return None


def _simplify_subclass(packer, value, parent, step):
    import numpy

    if type(value) is not numpy.memmap:
        packer.note("%s: an array" % plain.name_of(type(value)))
    return numpy.asarray(value).view(numpy.ndarray)


def write_array(packer, value, number):
    shape = [int(part) for part in value.shape]
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    if value.dtype.kind == "O":
        return [
            "objects",
            [shape, order],
            packer.items(value.ravel().tolist(), number, _object_step(shape)),
        ]
    detail = dtype_detail(value.dtype)
    if detail is None:
        value, detail = _nearest(packer, value, number)
        if value.dtype.kind == "O":
            return ["objects", [shape, order], packer.items(value.ravel().tolist(), number)]
    return ["array", [detail, shape, order, packer.buffer(Data(value, order))]]


def _object_step(shape):
    from .wire import Step

    if len(shape) == 1:
        return None
    return lambda k: Step(".flat[%]", k)


def _nearest(packer, value, number):
    """An array of a dtype that is not NumPy's own, or new, as one of the plain."""
    import numpy

    name = str(value.dtype)
    if value.dtype.names is None and value.dtype.kind == "V" or value.dtype.kind not in "OV":
        if type(value.dtype).__name__ == "StringDType":
            return value.astype(object), None
        try:
            found = value.astype(numpy.float32)
        except (TypeError, ValueError):
            pass
        else:
            packer.note("array of %s: float32" % name)
            return found, dtype_detail(found.dtype)
    raise Refused(
        "%s is an array of dtype %s, which cannot be handed over."
        % (packer.place_of(number), name),
        "Hand over its fields one by one, or .astype() a plain dtype.",
    )


def _write_scalar(packer, value, number):
    import numpy

    if isinstance(value, numpy.dtype(str("U")).type):
        return ["scalar", ["U", plain.points(TEXT(value))]]
    if isinstance(value, numpy.dtype(str("S")).type):
        return ["scalar", ["S", base64.b64encode(bytes(value)).decode("ascii")]]
    detail = dtype_detail(value.dtype)
    if detail is None:
        found, detail = _nearest(packer, numpy.asarray(value), number)
        value = found[()]
    data = value.tobytes()
    return ["scalar", [detail, base64.b64encode(data).decode("ascii")]]


def _write_masked(packer, value, number):
    import numpy

    if type(value) not in (numpy.ma.MaskedArray,):
        packer.note("%s: a masked array" % plain.name_of(type(value)))
    mask = None if value.mask is numpy.ma.nomask else numpy.asarray(value.mask)
    fill = value._fill_value  # None: the default of its dtype
    fill = None if fill is None else value.fill_value
    return [
        "masked",
        [bool(value.hardmask)],
        packer.items(
            [numpy.asarray(value.data).view(numpy.ndarray), mask, fill],
            number,
            lambda k: plain.step((".data", ".mask", ".fill_value")[k]),
        ),
    ]


# ---------------------------------------------------------------------------------------------
# Reading


def _read_array(reader, node):
    detail, shape, order, number = node[1]
    return read_data(reader, detail, shape_of(shape), order, number)


def read_data(reader, detail, shape, order, number):
    """The array of a buffer: a view where every byte may be any, else a copy that is checked."""
    _must(order in ("C", "F"), "an array has no order")
    count = count_of(shape)
    offset, size = reader.extent(number)
    _must(size_of(detail) * count == size, "an array is not of its size")
    numpy = find_numpy()
    if numpy is None:
        reader.note("array: list (no NumPy here)")
        return nested(flat_values(detail, reader.bytes(number), count), shape, order)
    dtype = dtype_of(numpy, detail)
    if size == 0:
        return numpy.zeros(shape, dtype, str(order))
    structural = _is_structural(dtype)
    if structural or reader.copy:
        found = numpy.ndarray(shape, dtype, reader.payload, offset, None, str(order)).copy(
            str(order)
        )
        if structural:
            must_be_sound(numpy, found)
        return found
    found = numpy.ndarray(shape, dtype, reader.payload, offset, None, str(order))
    found.flags.writeable = False
    reader.views += 1
    return found


def _is_structural(dtype):
    """Whether not every byte is one that it may have."""
    if dtype.subdtype is not None:
        return _is_structural(dtype.subdtype[0])
    if dtype.names is not None:
        return any(_is_structural(dtype.fields[name][0]) for name in dtype.names)
    return dtype.kind in "bU"


def must_be_sound(numpy, array):
    """Refuse truth values that are neither and letters that are none. The array is our own copy."""
    todo = [array]
    while todo:
        array = todo.pop()
        if array.dtype.names is not None:
            todo.extend(array[name] for name in array.dtype.names)
        elif array.size and array.dtype.kind == "b":
            whole = numpy.ascontiguousarray(array).reshape(-1)
            _must(int(whole.view(numpy.uint8).max()) <= 1, "a truth value is neither")
        elif array.size and array.dtype.kind == "U" and array.dtype.itemsize:
            whole = numpy.ascontiguousarray(array).reshape(-1)
            letters = whole.view(numpy.dtype(numpy.uint32).newbyteorder(array.dtype.byteorder))
            _must(int(letters.max()) <= 0x10FFFF, "a letter is none")


def _shape_and_order(node):
    shape, order = node[1]
    _must(order in ("C", "F"), "an array has no order")
    return shape_of(shape), order


def _shell_objects(reader, node):
    shape, order = _shape_and_order(node)
    items = node[2]
    numpy = find_numpy()
    if numpy is None:
        return []
    count = count_of(shape)
    if isinstance(items, list):
        _must(count == len(items), "an array is not of its size")
    else:
        _must(count <= reader.length, "an array is not of its size")
    return numpy.empty(shape, object, str(order))


def _fill_objects(reader, node, shell):
    shape, order = _shape_and_order(node)
    values = reader.values(node[2])
    _must(len(values) == count_of(shape), "an array is not of its size")
    if isinstance(shell, list):
        reader.note("array: list (no NumPy here)")
        found = nested(values, shape, "C")
        shell.extend(found if shape else [found])
        return
    fill_objects(shell, values)


def fill_objects(array, values):
    """Put values into an object array, in C order; a sequence is one element as any."""
    kinds = set(map(type, values))
    if kinds <= _SCALARS and array.ndim == 1:
        if values:
            array[:] = values
        return
    import numpy

    for place, value in zip(numpy.ndindex(array.shape), values):
        array[place] = value


_SCALARS = {
    type(None),
    bool,
    int,
    float,
    TEXT,
    bytes,
    plain.LONG,
    datetime.date,
    datetime.timedelta,
}


def _read_scalar(reader, node):
    detail, data = node[1]
    numpy = find_numpy()
    if detail == "U":
        text = plain.text_of_points(data)
        return text if numpy is None else numpy.dtype(str("U")).type(text)
    _must(isinstance(data, TEXT), "a number is none")
    data = base64.b64decode(data.encode("ascii"))
    if detail == "S":
        return data if numpy is None else numpy.dtype(str("S")).type(data)
    _must(size_of(detail) == len(data), "a number is not of its size")
    if numpy is None:
        return flat_values(detail, data, 1)[0]
    dtype = dtype_of(numpy, detail)
    if not data:
        return numpy.zeros((), dtype)[()]
    found = numpy.ndarray((), dtype, data).copy()
    if _is_structural(dtype):
        must_be_sound(numpy, found)
    return found[()]


def _read_masked(reader, node):
    hard = node[1][0]
    _must(
        type(hard) is bool and isinstance(node[2], list) and len(node[2]) == 3,
        "a masked array is none",
    )
    data, mask, fill = reader.values(node[2])
    numpy = find_numpy()
    if numpy is None:
        reader.note("masked array: list, None where masked")
        return _with_none(data, mask)
    _must(isinstance(data, numpy.ndarray), "a masked array is none")
    if mask is None:
        mask = numpy.ma.nomask
    else:
        _must(isinstance(mask, numpy.ndarray) and mask.shape == data.shape, "a mask is none")
        mask = mask.copy()  # it is small, and masking is what one does with it
    return numpy.ma.MaskedArray(data, mask, fill_value=fill, hard_mask=hard)


def _with_none(data, mask):
    if mask is None or mask is False:
        return data
    if isinstance(data, list) and isinstance(mask, list):
        return [_with_none(part, masked) for part, masked in zip(data, mask)]
    return None if mask is True else data


def _read_masked_constant(reader, node):
    numpy = find_numpy()
    if numpy is None:
        reader.note("numpy.ma.masked: None")
        return None
    return numpy.ma.masked


# Without NumPy


def nested(values, shape, order):
    """Nested lists of a flat one; a number for a shape without dimensions."""
    if not shape:
        return values[0]
    if not values:
        return []
    if order == "F" and len(shape) > 1:
        values = _in_c_order(values, shape)
    for part in reversed(shape[1:]):
        values = [values[start : start + part] for start in range(0, len(values), part)]
    return values


def _in_c_order(values, shape):
    strides, step = [], 1
    for part in shape:
        strides.append(step)
        step *= part
    places = [0]
    for part, stride in zip(shape, strides):
        places = [place + k * stride for place in places for k in range(part)]
    return [values[place] for place in places]


_STRUCT = {
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "f4": "f",
    "f8": "d",
    "m8": "q",
    "M8": "q",
}


def flat_values(detail, data, count):
    """What Python has for the elements of an array, as a flat list."""
    if isinstance(detail, dict):
        size = size_of(detail)
        if "of" in detail:
            shape = shape_of(detail["shape"])
            inner = count_of(shape)
            flat = flat_values(detail["of"], data, count * inner)
            return [nested(flat[k * inner : (k + 1) * inner], shape, "C") for k in range(count)]
        columns = []
        for part, offset in zip(detail["types"], detail["offsets"]):
            width = size_of(part)
            _must(
                type(offset) in INTS and 0 <= offset and offset + width <= size,
                "a field is nowhere",
            )
            cut = b"".join(
                [data[k * size + offset : k * size + offset + width] for k in range(count)]
            )
            columns.append(flat_values(part, cut, count))
        return list(zip(*columns)) if columns else [()] * count
    order, kind, number, size, per, unit = _simple_parts(detail)
    order = ">" if order == ">" else "<"
    if kind == "b":
        _must(not data.strip(b"\x00\x01"), "a truth value is neither")
        return [byte == 1 for byte in bytearray(data)]
    if kind in "SV":
        parts = [data[k * size : (k + 1) * size] for k in range(count)]
        return [part.rstrip(b"\x00") for part in parts] if kind == "S" else parts
    if kind == "U":
        found = []
        for k in range(count):
            letters = struct.unpack(str("%s%dI" % (order, number)), data[k * size : (k + 1) * size])
            found.append(plain.text_of_points(list(letters)).rstrip("\x00"))
        return found
    if kind == "c":
        flat = flat_values("%sf%d" % (order, number // 2), data, count * 2)
        return [complex(flat[k], flat[k + 1]) for k in range(0, len(flat), 2)]
    if kind == "f" and number == 2:
        return [_half(word) for word in struct.unpack(str("%s%dH" % (order, count)), data)]
    if kind == "f" and number > 8:
        return [_extended(data[k * size : (k + 1) * size], order) for k in range(count)]
    flat = list(
        struct.unpack(str("%s%d%s" % (order, count, _STRUCT["%s%d" % (kind, number)])), data)
    )
    if kind in "mM":
        return [_moment(kind, ticks, int(per or 1), unit) for ticks in flat]
    return flat


def _half(word):
    sign = -1.0 if word & 0x8000 else 1.0
    exponent, fraction = word >> 10 & 31, word & 1023
    if exponent == 31:
        return sign * float("inf") if not fraction else float("nan")
    if exponent == 0:
        return sign * fraction * 2.0**-24
    return sign * (1024 + fraction) * 2.0 ** (exponent - 25)


def _extended(data, order):
    """An 80-bit number of x86."""
    data = data if order == "<" else data[::-1]
    fraction, head = struct.unpack(str("<QH"), data[:10])
    sign = -1.0 if head & 0x8000 else 1.0
    exponent = head & 0x7FFF
    if exponent == 0x7FFF:
        return sign * float("inf") if not fraction << 1 & 0xFFFFFFFFFFFFFFFF else float("nan")
    try:
        return (
            sign * float(fraction) * 2.0 ** (exponent - 16383 - 63)
            if exponent > 15000
            else 0.0 * sign
        )
    except OverflowError:
        return sign * float("inf")


_MICROSECONDS = {
    "W": 604800 * 10**6,
    "D": 86400 * 10**6,
    "h": 3600 * 10**6,
    "m": 60 * 10**6,
    "s": 10**6,
    "ms": 1000,
    "us": 1,
}
_PER_MICROSECOND = {"ns": 10**3, "ps": 10**6, "fs": 10**9, "as": 10**12}


def _moment(kind, ticks, per, unit):
    """A datetime or timedelta for NumPy's; None for NaT, the number where Python has none."""
    if ticks == -0x8000000000000000:
        return None
    amount = ticks * per
    try:
        if unit in _PER_MICROSECOND:
            amount //= _PER_MICROSECOND[unit]
        elif unit in _MICROSECONDS:
            amount *= _MICROSECONDS[unit]
        elif kind == "M" and unit == "Y":
            return datetime.datetime(1970 + amount, 1, 1)
        elif kind == "M" and unit == "M":
            return datetime.datetime(1970 + amount // 12, amount % 12 + 1, 1)
        else:
            return ticks
        length = datetime.timedelta(microseconds=amount)
        return length if kind == "m" else datetime.datetime(1970, 1, 1) + length
    except (OverflowError, ValueError):
        return ticks


BUILDERS = {
    "array": Builder(_read_array),
    "objects": Builder(shell=_shell_objects, fill=_fill_objects),
    "scalar": Builder(_read_scalar),
    "masked": Builder(_read_masked),
    "maskedconstant": Builder(_read_masked_constant),
}
