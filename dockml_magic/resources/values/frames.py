# -*- coding: utf-8 -*-
"""pandas on the wire, column by column; without pandas a table is read as a dict of its columns.

A *vector* is what a column, a Series or an Index has its data in.
"""

from __future__ import absolute_import, division, print_function, unicode_literals

import datetime
import importlib
import re
import sys

from . import arrays, moments, plain
from .wire import INTS, PY2, TEXT, Builder, Damaged, _must

_NULLABLE = re.compile("(U?Int(8|16|32|64)|Float(32|64)|boolean)$")
_FREQUENCY = re.compile("[-0-9A-Za-z]{1,24}$")
# What pandas 2.2 calls otherwise than those before it.
_RENAMED = {
    "M": "ME",
    "Q": "QE",
    "A": "YE",
    "Y": "YE",
    "H": "h",
    "T": "min",
    "S": "s",
    "L": "ms",
    "U": "us",
    "N": "ns",
    "BM": "BME",
    "BQ": "BQE",
    "BA": "BYE",
}
# Codes of what is missing among texts.
_NONE, _NAN, _NA, _NAT = 1, 2, 3, 4


def find_pandas():
    """pandas, or None where there is none that can be loaded."""
    try:
        return sys.modules.get("pandas") or importlib.import_module("pandas")
    except Exception:  # noqa: BLE001  (an installation that is broken raises anything)
        return None


# ---------------------------------------------------------------------------------------------
# Writing


def find_writer(value, kind):
    pandas = sys.modules["pandas"]
    if not hasattr(pandas, "DataFrame"):  # it is only being imported
        return None
    for base, writer in (
        (pandas.DataFrame, _write_frame),
        (pandas.Series, _write_series),
        (pandas.Index, _write_index),
    ):
        if isinstance(value, base):
            return writer
    if value is pandas.NaT or value is getattr(pandas, "NA", pandas.NaT):
        return _write_missing
    if isinstance(value, pandas.Timestamp):
        return _write_timestamp
    if isinstance(value, pandas.Timedelta):
        return _write_delta
    if isinstance(value, pandas.Period):
        return lambda packer, value, number: [
            "period",
            [int(value.ordinal), plain.name_text(value.freqstr)],
        ]
    if isinstance(value, pandas.Interval):
        return lambda packer, value, number: [
            "interval",
            plain.name_text(value.closed),
            packer.items(
                [value.left, value.right], number, lambda k: plain.step((".left", ".right")[k])
            ),
        ]
    extension = getattr(getattr(pandas.api, "extensions", None), "ExtensionArray", None)
    if (
        isinstance(value, pandas.Categorical)
        or extension is not None
        and isinstance(value, extension)
    ):
        return _write_array
    return None


def _write_missing(packer, value, number):
    return ["missing", "NaT" if value is sys.modules["pandas"].NaT else "NA"]


def _unit_of(value):
    unit = getattr(value, "unit", None)
    return unit if isinstance(unit, TEXT) else "ns"


def _ticks_of(value):
    # .value is in nanoseconds in all versions, but may be too large for them; ._value is in the unit.
    return int(value._value if hasattr(value, "_value") else value.value)


def _write_timestamp(packer, value, number):
    zone = None if value.tzinfo is None else packer.element(value.tzinfo, number, plain.step(".tz"))
    offset = None if value.tzinfo is None else moments.microseconds(value.utcoffset())
    return ["timestamp", [_ticks_of(value), _unit_of(value), offset], [zone]]


def _write_delta(packer, value, number):
    return ["delta", [_ticks_of(value), _unit_of(value)]]


class _Vector(object):
    """A Series' or Index's data, to be written as a node of its own."""

    def __init__(self, owner):
        self.owner = owner


def _write_frame(packer, value, number):
    _tell_of_subclass(packer, value, "DataFrame")
    columns = value.columns
    names = [plain.short(name) for name in columns]
    vectors = [_Vector(value.iloc[:, k]) for k in range(len(columns))]
    return [
        "frame",
        None,
        packer.items(
            [value.index, columns], number, lambda k: plain.step((".index", ".columns")[k])
        ),
        [
            packer.element(vector, number, plain.step("[%s]" % name))
            for vector, name in zip(vectors, names)
        ],
    ]


def _tell_of_subclass(packer, value, name):
    if type(value).__module__.split(".")[0] != "pandas":
        packer.note("%s: %s" % (plain.name_of(type(value)), name))
    if getattr(value, "attrs", None):
        packer.note("%s.attrs are left out" % name)


def _write_series(packer, value, number):
    _tell_of_subclass(packer, value, "Series")
    steps = ("", ".index", ".name")
    return [
        "series",
        None,
        packer.items(
            [_Vector(value), value.index, value.name], number, lambda k: plain.step(steps[k])
        ),
    ]


def _write_array(packer, value, number):
    pandas = sys.modules["pandas"]
    return [
        "pandas-array",
        None,
        [packer.element(_Vector(pandas.Series(value)), number, plain.step(""))],
    ]


def _write_index(packer, value, number):
    import numpy

    pandas = sys.modules["pandas"]
    if isinstance(value, pandas.MultiIndex):
        codes = value.codes if hasattr(value, "codes") else value.labels
        widths = [numpy.ascontiguousarray(part, numpy.int64) for part in codes]
        return [
            "multi-index",
            [len(value), [packer.buffer(arrays.Data(part, "C")) for part in widths]],
            packer.items(list(value.levels), number, lambda k: plain.step(".levels[%d]" % k)),
            packer.items(list(value.names), number),
        ]
    name = packer.element(value.name, number, plain.step(".name"))
    if isinstance(value, pandas.RangeIndex):
        parts = [getattr(value, part, None) for part in ("start", "stop", "step")]
        if None in parts:
            parts = [value._start, value._stop, value._step]
        return ["range-index", [int(part) for part in parts], [name]]
    frequency = (
        getattr(value, "freqstr", None)
        if isinstance(value, (pandas.DatetimeIndex, pandas.TimedeltaIndex))
        else None
    )
    frequency = None if frequency is None else plain.name_text(frequency)
    return ["index", frequency, [packer.element(_Vector(value), number, plain.step("")), name]]


def _write_vector(packer, vector, number):
    import numpy

    owner = vector.owner
    dtype = owner.dtype
    kind = type(dtype).__name__
    if isinstance(dtype, numpy.dtype) and dtype.kind != "O":
        return _plain_vector(packer, numpy.asarray(owner.values))
    if kind == "CategoricalDtype":
        return _write_category(packer, owner, number)
    if kind == "DatetimeTZDtype":
        array = owner.array if hasattr(owner, "array") else owner.values
        data = numpy.asarray(array, dtype=str("M8[%s]" % dtype.unit))
        zone = packer.element(dtype.tz, number, plain.step(".tz"))
        return [
            "vector",
            [
                "zoned",
                arrays.dtype_detail(data.dtype),
                len(data),
                packer.buffer(arrays.Data(data, "C")),
            ],
            [zone],
        ]
    if kind == "PeriodDtype":
        array = owner.array if hasattr(owner, "array") else owner.values
        data = numpy.asarray(array.asi8 if hasattr(array, "asi8") else owner.asi8)
        return [
            "vector",
            [
                "period",
                plain.name_text(dtype.freq.freqstr),
                len(data),
                packer.buffer(arrays.Data(data, "C")),
            ],
        ]
    if kind == "IntervalDtype":
        array = owner.array if hasattr(owner, "array") else owner.values
        pandas = sys.modules["pandas"]
        sides = [_Vector(pandas.Index(array.left)), _Vector(pandas.Index(array.right))]
        return [
            "vector",
            ["interval", plain.name_text(array.closed), len(array)],
            packer.items(sides, number, lambda k: plain.step("")),
        ]
    if kind == "StringDtype":
        return _write_strings(packer, owner, dtype, number)
    if _NULLABLE.match(TEXT(dtype)) and hasattr(owner.array, "_mask"):
        data, mask = owner.array._data, owner.array._mask
        if mask.any():
            data = data.copy()
            data[mask] = 0  # what stands there is nobody's
        detail = arrays.dtype_detail(data.dtype)
        buffers = [packer.buffer(arrays.Data(data, "C")), packer.buffer(arrays.Data(mask, "C"))]
        return ["vector", ["nullable", TEXT(dtype), detail, len(data)] + buffers]
    if kind == "SparseDtype":
        packer.note("sparse column: dense")
        return _plain_vector(
            packer,
            numpy.asarray(
                owner.array.to_dense() if hasattr(owner.array, "to_dense") else owner.array
            ),
        )
    if kind != "dtype" and not isinstance(dtype, numpy.dtype):
        found = _nearest(owner)
        if found is not None:
            packer.note("column of %s: %s" % (dtype, found.dtype))
            return _write_vector(packer, _Vector(found), number)
        packer.note("column of %s: objects" % dtype)
        array = owner.array if hasattr(owner, "array") else owner
        return _write_objects(packer, numpy.asarray(array, dtype=object).tolist(), "object", number)
    return _write_objects(packer, numpy.asarray(owner.values).tolist(), "object", number)


def _nearest(owner):
    """A column of Arrow's types as one of NumPy's or pandas' own."""
    if type(owner.dtype).__name__ != "ArrowDtype":
        return None
    pandas = sys.modules["pandas"]
    kind = owner.dtype.kind
    try:
        if kind in "iufb":
            name = {"b": "boolean", "i": "Int%d", "u": "UInt%d", "f": "Float%d"}[kind]
            return pandas.Series(owner.array).astype(
                name if kind == "b" else name % (owner.dtype.itemsize * 8)
            )
        if TEXT(owner.dtype) in ("string[pyarrow]", "large_string[pyarrow]"):
            return pandas.Series(owner.array).astype("string")
        if kind == "M" and owner.dtype.pyarrow_dtype.tz is not None:
            return pandas.Series(owner.array).astype(
                pandas.DatetimeTZDtype(owner.dtype.pyarrow_dtype.unit, owner.dtype.pyarrow_dtype.tz)
            )
        if (
            kind in "mM"
            and hasattr(owner.dtype.pyarrow_dtype, "unit")
            and TEXT(owner.dtype).startswith(("timestamp", "duration"))
        ):
            return pandas.Series(owner.array).astype(owner.dtype.numpy_dtype)
    except (TypeError, ValueError, NotImplementedError):
        pass
    return None


def _plain_vector(packer, data):
    import numpy

    if data.ndim != 1:
        data = data.reshape(-1)
    detail = arrays.dtype_detail(data.dtype)
    if detail is None:
        packer.note("column of %s: float32" % data.dtype)
        data = data.astype(numpy.float32)
        detail = arrays.dtype_detail(data.dtype)
    return ["vector", ["plain", detail, len(data), packer.buffer(arrays.Data(data, "C"))]]


def _write_category(packer, owner, number):
    import numpy

    categories = owner.cat if hasattr(owner, "cat") else owner
    codes = numpy.asarray(categories.codes)
    return [
        "vector",
        [
            "category",
            bool(categories.ordered),
            arrays.dtype_detail(codes.dtype),
            len(codes),
            packer.buffer(arrays.Data(codes, "C")),
        ],
        [packer.element(categories.categories, number, plain.step(".categories"))],
    ]


def _write_strings(packer, owner, dtype, number):
    """pandas' own strings: `str` of pandas 3, with nan for what is missing, or `string`, with NA."""
    kind = "str" if dtype.na_value is not sys.modules["pandas"].NA else "string"
    missing = _NAN if kind == "str" else _NA
    found = _held_by_arrow(packer, owner.array)
    if found is None:
        import numpy

        lost = numpy.asarray(owner.isna())
        texts = numpy.asarray(owner.array, dtype=object)
        if lost.any():
            texts = texts.copy()
            texts[lost] = ""
        items, mask = packer.items(texts.tolist(), number), lost
    else:
        items, mask = found
    number = None
    if mask is not None and mask.any():
        number = packer.buffer((mask * missing).astype("u1").tobytes())
    return ["vector", ["texts", kind, len(owner), number], items]


def _held_by_arrow(packer, array):
    """Items and mask of strings that Arrow holds, as it holds them; None where it does not."""
    arrow = sys.modules.get("pyarrow")
    chunks = getattr(array, "_pa_array", None)
    if arrow is None or chunks is None or len(chunks) < plain.PACKED_FROM:
        return None
    import numpy

    try:
        mask = None
        if chunks.null_count:
            mask = chunks.is_null().to_numpy()
        whole = chunks.cast(arrow.large_string()).combine_chunks()
        if isinstance(whole, arrow.ChunkedArray):
            whole = arrow.concat_arrays(whole.chunks)
        offsets, data = whole.buffers()[1:]
        offsets = numpy.frombuffer(offsets, "<i8", len(whole) + 1, whole.offset * 8)
        first, last = int(offsets[0]), int(offsets[-1])
        if first:
            offsets = offsets - first
        data = memoryview(data)[first:last] if data is not None else b""
        items = {
            "strings": packer.buffer(Buffer(data)),
            "ends": packer.buffer(arrays.Data(offsets[1:], "C")),
        }
        return items, mask
    except (AttributeError, TypeError, arrow.ArrowException):
        return None  # an Arrow that has this otherwise


class Buffer(object):
    """A buffer that somebody else's object holds."""

    def __init__(self, data):
        self.data = memoryview(data)
        self.size = self.data.nbytes

    def write(self, window, offset):
        import numpy

        if window.is_file:
            window.write(offset, self.data)
            return
        # As one copy without the interpreter's lock.
        there = numpy.frombuffer(window.view, numpy.uint8, self.size, offset)
        numpy.copyto(there, numpy.frombuffer(self.data, numpy.uint8))


def _write_objects(packer, values, kind, number):
    """A column of objects: texts in one buffer, where it has but texts and what is missing."""
    pandas = sys.modules["pandas"]
    kinds = set(map(type, values))
    text = bytes if PY2 and bytes in kinds else TEXT
    lost = {
        type(None): _NONE,
        float: _NAN,
        type(getattr(pandas, "NA", None)): _NA,
        type(pandas.NaT): _NAT,
    }
    lost[type(None)] = _NONE
    if text in kinds and all(found is text or found in lost for found in kinds):
        if kinds == {text}:
            return ["vector", ["texts", kind, len(values), None], packer.items(values, number)]
        codes = bytearray(len(values))
        texts = list(values)
        for k, value in enumerate(values):
            if type(value) is not text:
                if type(value) is float and value == value:
                    break
                codes[k] = lost[type(value)]
                texts[k] = text()
        else:
            return [
                "vector",
                ["texts", kind, len(values), packer.buffer(bytes(codes))],
                packer.items(texts, number),
            ]
    return ["vector", ["objects", len(values)], packer.items(values, number)]


plain.add_writer(_Vector, _write_vector)


# ---------------------------------------------------------------------------------------------
# Reading


def _read_vector(reader, node):
    detail = node[1]
    _must(isinstance(detail, list) and detail and detail[0] in _VECTORS, "a column is none")
    return _VECTORS[detail[0]](reader, node, *detail[1:])


def _length(detail):
    _must(type(detail) in INTS and 0 <= detail < 1 << 62, "a length is none")
    return (detail,)


def _read_plain(reader, node, dtype, length, number):
    return _own(find_pandas(), arrays.read_data(reader, dtype, _length(length), "C", number))


def _own(pandas, data):
    """Data as pandas can work with: before 2.0 much of it fails on what is read-only, and knows but ns."""
    if pandas is None or int(pandas.__version__.split(".")[0]) >= 2:
        return data
    numpy = arrays.find_numpy()
    if data.dtype.kind in "mM" and not data.dtype.str.endswith("[ns]"):
        found = data.astype(data.dtype.str[:3] + "[ns]")
        if not ((found.astype(data.dtype) == data) | numpy.isnat(data)).all():
            return data.astype(object)  # what nanoseconds cannot say
        return found
    return numpy.array(data)


def _read_zoned(reader, node, dtype, length, number):
    _must(isinstance(dtype, TEXT) and dtype[1:2] == "M", "a column is none")
    data = arrays.read_data(reader, dtype, _length(length), "C", number)
    _must(isinstance(node[2], list) and len(node[2]) == 1, "a column is none")
    zone = reader.value(node[2][0])
    pandas = find_pandas()
    if pandas is None:
        reader.note("time zone of a column: UTC (no pandas here)")
        return data
    index = pandas.DatetimeIndex(_own(pandas, data)).tz_localize("UTC")
    if zone is None:
        reader.note("a column's time zone is not known here: UTC")
    else:
        found = _in_zone(pandas, index, zone)
        if found is None:
            reader.note("time zone %s is not known here: UTC" % plain.short(zone))
        else:
            index = found
    return index.array if hasattr(index, "array") else index


def _in_zone(pandas, value, zone):
    """A Timestamp or an index in another zone, as pandas itself would hold that; None where it cannot."""
    name = zone if isinstance(zone, TEXT) else moments.name_of(zone)
    _must(name is None or moments.is_name(name), "a time zone is none")
    candidates = [zone, name]
    if (
        name is not None
        and int(pandas.__version__.split(".")[0]) < 2
        and type(zone).__module__ != "pytz"
    ):
        candidates = [name, zone]  # of pytz, which it knows best
    for known in candidates:
        if known is None:
            continue
        try:
            return value.tz_convert(str(known) if isinstance(known, TEXT) else known)
        except Exception:  # noqa: BLE001  (pandas raises what its zones' library does)
            pass
    return None


def _read_category(reader, node, ordered, dtype, length, number):
    _must(
        type(ordered) is bool and isinstance(dtype, TEXT) and dtype[1:2] == "i",
        "categories are none",
    )
    categories = reader.value(node[2][0])
    numpy, pandas = arrays.find_numpy(), find_pandas()
    codes = arrays.flat_values(dtype, reader.bytes(number), length) if numpy is None else None
    if numpy is not None:
        codes = numpy.array(arrays.read_data(reader, dtype, _length(length), "C", number))
        if len(codes):
            _must(
                -1 <= int(codes.min()) and int(codes.max()) < len(categories), "a category is none"
            )
    if pandas is None:
        reader.note("categories: their values (no pandas here)")
        found = [
            None if code == -1 else categories[code]
            for code in (codes if numpy is None else codes.tolist())
        ]
        _must(
            numpy is not None or all(-1 <= code < len(categories) for code in codes),
            "a category is none",
        )
        return found
    _must(isinstance(categories, pandas.Index), "categories are none")
    return pandas.Categorical.from_codes(codes, categories=categories, ordered=ordered)


def _read_period(reader, node, frequency, length, number):
    data = arrays.read_data(reader, "<i8", _length(length), "C", number)
    _must(isinstance(frequency, TEXT) and _FREQUENCY.match(frequency), "a frequency is none")
    pandas = find_pandas()
    if pandas is None:
        reader.note("periods: their numbers (no pandas here)")
        return data
    numpy = arrays.find_numpy()
    if hasattr(pandas, "arrays") and hasattr(pandas.arrays, "PeriodArray"):
        dtype = _first_that_works(pandas.PeriodDtype, frequency)
        return pandas.arrays.PeriodArray(numpy.array(data), dtype=dtype)
    return pandas.PeriodIndex._from_ordinals(numpy.array(data), freq=str(frequency))


def _first_that_works(make, frequency):
    names = [frequency]
    match = re.match("([0-9-]*)([A-Za-z]+)(.*)$", frequency)
    for old, new in _RENAMED.items():
        if match and match.group(2) in (old, new):
            names.append(match.group(1) + (new if match.group(2) == old else old) + match.group(3))
    for name in names:
        try:
            return make(str(name))
        except Exception as error:  # noqa: BLE001  (of whichever class, in whichever pandas)
            found = error
    raise Damaged("a frequency is not known here: %s" % plain.short(found))


def _read_interval(reader, node, closed, length):
    left, right = reader.values(node[2])
    _must(closed in ("left", "right", "both", "neither"), "intervals are none")
    pandas = find_pandas()
    if pandas is None:
        reader.note("intervals: pairs (no pandas here)")
        return [tuple(pair) for pair in zip(_listed(left), _listed(right))]
    index = pandas.IntervalIndex.from_arrays(
        pandas.Index(left), pandas.Index(right), closed=str(closed)
    )
    return index.array if hasattr(index, "array") else index


def _read_texts(reader, node, kind, length, number):
    _must(kind in ("object", "str", "string"), "texts are none")
    (length,) = _length(length)
    numpy, pandas = arrays.find_numpy(), find_pandas()
    codes = None if number is None else reader.bytes(number)
    _must(codes is None or len(codes) == length, "texts are more or fewer than they should be")
    if kind != "object" and pandas is not None:
        found = _kept_by_arrow(reader, pandas, kind, length, codes, node[2])
        if found is not None:
            return found
    values = reader.values(node[2])
    _must(len(values) == length, "texts are more or fewer than they should be")
    for value in values if isinstance(node[2], list) else ():
        _must(isinstance(value, (TEXT, bytes)), "a text is none")
    if codes is not None and codes.strip(b"\x00"):
        lost = {
            _NONE: None,
            _NAN: float("nan"),
            _NA: getattr(pandas, "NA", None),
            _NAT: getattr(pandas, "NaT", None),
        }
        if numpy is not None:
            where = numpy.flatnonzero(numpy.frombuffer(codes, numpy.uint8)).tolist()
        else:
            where = [k for k, code in enumerate(bytearray(codes)) if code]
        codes = bytearray(codes)
        for k in where:
            _must(codes[k] in lost, "a text is missing as none can")
            values[k] = lost[codes[k]]
    if numpy is None:
        return values
    array = numpy.empty(length, object)
    array[:] = values
    if kind == "object" or pandas is None or not hasattr(pandas, "StringDtype"):
        return array
    try:
        return pandas.array(
            array,
            dtype="str"
            if kind == "str" and _has_str(pandas)
            else "string"
            if kind == "string"
            else object,
        )
    except (TypeError, ValueError):
        return array


def _has_str(pandas):
    return int(pandas.__version__.split(".")[0]) >= 3


def _kept_by_arrow(reader, pandas, kind, length, codes, items):
    """An array of strings that Arrow holds, if they came so and pandas holds its own so; else None."""
    if (
        not isinstance(items, dict)
        or set(items) != {"strings", "ends"}
        or kind == "str"
        and not _has_str(pandas)
    ):
        return None
    try:
        dtype = pandas.Series(["x"], dtype="str" if kind == "str" else "string").dtype
        if dtype.storage != "pyarrow":
            return None
        arrow = importlib.import_module("pyarrow")
    except Exception:  # noqa: BLE001  (without, it goes the long way)
        return None
    import numpy

    ends = reader.bytes(items["ends"])
    data = reader.bytes(items["strings"])
    _must(len(ends) == 8 * length, "texts are more or fewer than they should be")
    offsets = numpy.zeros(length + 1, "<i8")
    offsets[1:] = numpy.frombuffer(ends, "<i8")
    _must(
        int(offsets[-1]) == len(data) and bool((offsets[1:] >= offsets[:-1]).all()),
        "a text is nowhere",
    )
    nulls = None
    if codes is not None:
        lost = numpy.frombuffer(codes, numpy.uint8) != 0
        nulls = arrow.py_buffer(numpy.packbits(~lost, bitorder="little"))
    found = arrow.LargeStringArray.from_buffers(
        length, arrow.py_buffer(offsets), arrow.py_buffer(data), nulls
    )
    try:
        found.validate(full=True)
    except arrow.ArrowException as error:
        raise Damaged("text is not UTF-8: %s" % plain.short(error))
    return dtype.__from_arrow__(found)


def _read_nullable(reader, node, name, dtype, length, data, mask):
    _must(isinstance(name, TEXT) and _NULLABLE.match(name), "a column is none")
    data = _own(find_pandas(), arrays.read_data(reader, dtype, _length(length), "C", data))
    mask = arrays.read_data(reader, "|b1", _length(length), "C", mask)
    numpy, pandas = arrays.find_numpy(), find_pandas()
    if pandas is not None:
        kinds = {
            "b": "BooleanArray",
            "i": "IntegerArray",
            "u": "IntegerArray",
            "f": "FloatingArray",
        }
        _must(data.dtype.kind in kinds, "a column is none")
        make = getattr(getattr(pandas, "arrays", None), kinds[data.dtype.kind], None)
        if make is not None:
            return make(data, numpy.array(mask))
    reader.note("column of %s: objects, None where missing" % name)
    values = [None if masked else value for value, masked in zip(_listed(data), _listed(mask))]
    if numpy is None:
        return values
    found = numpy.empty(len(values), object)
    found[:] = values
    return found


def _read_objects(reader, node, length):
    values = reader.values(node[2])
    _must(len(values) == _length(length)[0], "objects are more or fewer than they should be")
    numpy = arrays.find_numpy()
    if numpy is None:
        return values
    found = numpy.empty(len(values), object)
    arrays.fill_objects(found, values)
    return found


_VECTORS = {
    "plain": _read_plain,
    "zoned": _read_zoned,
    "category": _read_category,
    "period": _read_period,
    "interval": _read_interval,
    "texts": _read_texts,
    "nullable": _read_nullable,
    "objects": _read_objects,
}


def _listed(values):
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _read_index(reader, node):
    frequency = node[1]
    vector, name = reader.values(node[2])
    pandas = find_pandas()
    if pandas is None:
        reader.note("Index: its values (no pandas here)")
        return vector
    dtype = (
        {"dtype": object}
        if getattr(getattr(vector, "dtype", None), "kind", None) == "O"
        and isinstance(vector, arrays.find_numpy().ndarray)
        else {}
    )
    index = pandas.Index(vector, name=name, **dtype)
    if frequency is not None:
        _must(isinstance(frequency, TEXT) and _FREQUENCY.match(frequency), "a frequency is none")
        index = _with_frequency(index, frequency)
    return index


def _with_frequency(index, frequency):
    def try_one(name):
        found = index.copy()
        found.freq = name
        return found

    try:
        return _first_that_works(try_one, frequency)
    except Damaged:
        return index


def _read_range_index(reader, node):
    start, stop, step = plain.small_ints(node[1], 3)
    _must(step != 0, "a range is none")
    pandas = find_pandas()
    if pandas is None:
        return _Range(start, stop, step)
    _must(isinstance(node[2], list) and len(node[2]) == 1, "a range is none")
    return pandas.RangeIndex(start, stop, step, name=reader.value(node[2][0]))


class _Range(object):
    """A RangeIndex where there is no pandas: rows are numbered, and a list is, too."""

    def __init__(self, *parts):
        self.parts = parts


def _read_multi_index(reader, node):
    length, numbers = node[1]
    levels, names = reader.values(node[2]), reader.values(node[3])
    _must(
        isinstance(numbers, list) and len(numbers) == len(levels) == len(names), "an index is none"
    )
    numpy, pandas = arrays.find_numpy(), find_pandas()
    codes = []
    for number, level in zip(numbers, levels):
        found = arrays.read_data(reader, "<i8", _length(length), "C", number)
        found = list(found) if numpy is None else numpy.array(found)
        _must(
            not len(found) or -1 <= min(found) and max(found) < len(level)
            if numpy is None
            else True,
            "an index is none",
        )
        _must(
            numpy is None
            or not len(found)
            or -1 <= int(found.min())
            and int(found.max()) < len(level),
            "an index is none",
        )
        codes.append(found)
    if pandas is None:
        reader.note("MultiIndex: tuples (no pandas here)")
        columns = [
            [None if code == -1 else level[code] for code in found]
            for level, found in zip(levels, codes)
        ]
        return list(zip(*columns))
    try:
        return pandas.MultiIndex(levels=levels, codes=codes, names=names)
    except TypeError:
        return pandas.MultiIndex(levels=levels, labels=codes, names=names)


def _read_series(reader, node):
    vector, index, name = reader.values(node[2])
    pandas = find_pandas()
    if pandas is None:
        if isinstance(index, _Range):
            reader.note("Series: its values (no pandas here)")
        else:
            reader.note("Series: its values, without its index (no pandas here)")
        return vector
    return pandas.Series(vector, index=index, name=name, **_dtype_of(vector))


def _dtype_of(vector):
    # pandas 3 makes strings of objects that are all text.
    return {"dtype": object} if str(getattr(vector, "dtype", "")) == "object" else {}


def _read_frame(reader, node):
    index, columns = reader.values(node[2])
    vectors = reader.values(node[3])
    pandas = find_pandas()
    if pandas is None:
        reader.note("DataFrame: dict of its columns (no pandas here)")
        if isinstance(columns, _Range):
            start, _, step = columns.parts
            columns = [start + k * step for k in range(len(vectors))]
        _must(len(columns) == len(vectors), "a DataFrame is none")
        found = dict(zip(_listed(columns), vectors))
        if len(found) != len(vectors):
            reader.note("a DataFrame has columns of the same name: the last is here")
        if not isinstance(index, _Range):
            reader.note("DataFrame: its index is left out")
        return found
    _must(
        isinstance(index, pandas.Index) and isinstance(columns, pandas.Index), "a DataFrame is none"
    )
    _must(len(columns) == len(vectors), "a DataFrame is none")
    if not vectors:
        return pandas.DataFrame(index=index, columns=columns)
    for vector in vectors:
        _must(
            len(vector) == len(index) and not isinstance(vector, (dict, TEXT)),
            "a column has another length",
        )
    found = pandas.DataFrame(
        {
            k: pandas.Series(vector, index=index, copy=False, **_dtype_of(vector))
            for k, vector in enumerate(vectors)
        },
        index=index,
        **_NO_COPY(pandas),
    )
    found.columns = columns
    return found


def _NO_COPY(pandas):
    major, minor = [int(part) for part in pandas.__version__.split(".")[:2]]
    return {"copy": False} if (major, minor) >= (1, 3) else {}


def _read_pandas_array(reader, node):
    return reader.value(node[2][0])


_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _ticks(detail):
    ticks, unit = detail[:2]
    _must(type(ticks) in INTS and abs(ticks) < 1 << 63 and unit in _PER_SECOND, "a moment is none")
    return ticks, unit


def _read_timestamp(reader, node):
    ticks, unit = _ticks(node[1])
    zone, offset = reader.value(node[2][0]), node[1][2]
    pandas = find_pandas()
    if pandas is None:
        reader.note("Timestamp: datetime (no pandas here)")
        if ticks % max(1, _PER_SECOND[unit] // 10**6):
            reader.note("Timestamp: its nanoseconds are left out")
        micro = ticks * 10**6 // _PER_SECOND[unit]
        if offset is None:
            return datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=micro)
        _must(type(offset) in INTS, "an offset is none")
        value = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=micro + offset)
        return moments.in_zone(reader, value, zone, offset)
    value = pandas.Timestamp(ticks, unit=str(unit))
    if hasattr(value, "as_unit"):
        value = value.as_unit(str(unit))
    if offset is None:
        return value
    value = value.tz_localize("UTC")
    found = None if zone is None else _in_zone(pandas, value, zone)
    return value.tz_convert(moments.fixed(offset, None)) if found is None else found


def _read_delta(reader, node):
    ticks, unit = _ticks(node[1])
    pandas = find_pandas()
    if pandas is None:
        reader.note("Timedelta: timedelta (no pandas here)")
        return datetime.timedelta(microseconds=ticks * 10**6 // _PER_SECOND[unit])
    value = pandas.Timedelta(ticks, unit=str(unit))
    return value.as_unit(str(unit)) if hasattr(value, "as_unit") else value


def _read_period_scalar(reader, node):
    ordinal, frequency = node[1]
    _must(
        type(ordinal) in INTS and isinstance(frequency, TEXT) and _FREQUENCY.match(frequency),
        "a period is none",
    )
    pandas = find_pandas()
    if pandas is None:
        reader.note("Period: its number (no pandas here)")
        return ordinal
    return _first_that_works(lambda name: pandas.Period(ordinal=ordinal, freq=name), frequency)


def _read_interval_scalar(reader, node):
    left, right = reader.values(node[2])
    pandas = find_pandas()
    if pandas is None:
        reader.note("Interval: a pair (no pandas here)")
        return (left, right)
    _must(node[1] in ("left", "right", "both", "neither"), "an interval is none")
    return pandas.Interval(left, right, closed=str(node[1]))


def _read_missing(reader, node):
    _must(node[1] in ("NaT", "NA"), "what is missing is none")
    return getattr(find_pandas(), node[1], None)


BUILDERS = {
    "vector": Builder(_read_vector),
    "index": Builder(_read_index),
    "range-index": Builder(_read_range_index),
    "multi-index": Builder(_read_multi_index),
    "series": Builder(_read_series),
    "frame": Builder(_read_frame),
    "pandas-array": Builder(_read_pandas_array),
    "timestamp": Builder(_read_timestamp),
    "delta": Builder(_read_delta),
    "period": Builder(_read_period_scalar),
    "interval": Builder(_read_interval_scalar),
    "missing": Builder(_read_missing),
}
