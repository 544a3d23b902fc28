# -*- coding: utf-8 -*-
"""Python's own types on the wire."""

from __future__ import absolute_import, division, print_function, unicode_literals

import base64
import collections
import decimal
import re
import struct
import sys

from .wire import INTS, LONG, PY2, TEXT, Builder, Bytes, Simpler, Step, _must

LONGEST_TEXT = 2048  # longer text is a buffer
LONGEST_BYTES = 512
PACKED_FROM = 32  # so many of one type are one buffer

_NARROW = sys.maxunicode == 0xFFFF
_SURROGATES = re.compile(
    "[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]"
    if _NARROW
    else "[\ud800-\udfff]"
)


def has_surrogates(text):
    return _SURROGATES.search(text) is not None


# ---------------------------------------------------------------------------------------------
# Many of one type

SEPARATORS = ("\x00", "\n", "\x1f", "\x1e", "\x01", "\x02", "\x03", "\x04", "\ue000", "\uf8ff")


def packed_items(packer, values):
    """Items in one buffer, if all values are of one type that can; else None."""
    kinds = set(map(type, values))
    if kinds == {TEXT}:
        return packed_texts(packer, values)
    if kinds == {float}:
        return {"floats": packer.buffer(struct.pack(str("<%dd") % len(values), *values))}
    if kinds <= {int, LONG}:
        try:
            return {"ints": packer.buffer(struct.pack(str("<%dq") % len(values), *values))}
        except struct.error:
            return None
    if PY2 and kinds == {bytes}:
        try:
            texts = [value.decode("ascii") for value in values]
        except UnicodeDecodeError:
            return None
        packed = packed_texts(packer, texts)
        return packed and dict(packed, py2=True)
    return None


def packed_texts(packer, values):
    """Text joined by what is in none of it."""
    for separator in SEPARATORS:
        joined = separator.join(values)
        if joined.count(separator) == len(values) - 1:
            data = data_of(joined)
            return data and {"texts": packer.buffer(data), "by": separator, "count": len(values)}
    return None


def data_of(text):
    """Text in UTF-8; None where it has surrogates. Python 2 would let them pass."""
    if PY2 and has_surrogates(text):
        return None
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return None


def unpacked_items(reader, items):
    """The list of values of items in a buffer."""
    if set(items) == {"ints"} or set(items) == {"floats"}:
        ((form, number),) = items.items()
        data = reader.bytes(number)
        _must(len(data) % 8 == 0, "a buffer of numbers has odd bytes")
        return list(
            struct.unpack(str("<%d%s") % (len(data) // 8, "q" if form == "ints" else "d"), data)
        )
    if set(items) == {"strings", "ends"}:
        return _strings(reader.bytes(items["strings"]), reader.bytes(items["ends"]))
    _must(set(items) - {"py2"} == {"texts", "by", "count"}, "items are none")
    separator = items["by"]
    _must(separator in SEPARATORS, "a separator is none")
    found = text_of(reader.bytes(items["texts"])).split(separator)
    _must(len(found) == items["count"], "texts are more or fewer than they should be")
    if PY2 and items.get("py2"):
        return [text.encode("utf-8") for text in found]
    return found


def _strings(data, ends):
    """Strings behind each other, of which the ends are known: Arrow's way."""
    _must(len(ends) % 8 == 0, "a buffer of numbers has odd bytes")
    ends = struct.unpack(str("<%dq") % (len(ends) // 8), ends)
    found, start = [], 0
    text = text_of(data)
    if len(text) == len(data):  # a letter is a byte
        data = text
    for end in ends:
        _must(start <= end <= len(data), "a text is nowhere")
        found.append(data[start:end])
        start = end
    _must(start == len(data), "a text is nowhere")
    return found if data is text else [text_of(part) for part in found]


def text_of(data):
    """UTF-8, strictly: Python 2 lets surrogates pass."""
    text = data.decode("utf-8")
    _must(not (PY2 and has_surrogates(text)), "text is not UTF-8")
    return text


# ---------------------------------------------------------------------------------------------
# Writing


def _write_data(packer, data):
    """The detail for some bytes: text of Base64, or the number of a buffer."""
    if len(data) <= LONGEST_BYTES:
        return base64.b64encode(data).decode("ascii")
    return packer.buffer(data)


def _write_text(packer, value, number):
    data = data_of(value)
    if data is None:
        return ["points", points(value)]
    return ["text", packer.buffer(data)]


def points(value):
    return [ord(letter) for letter in value]


def _write_py2_text(packer, value, number):
    try:
        text = value.decode("utf-8")
        if has_surrogates(text) or text.encode("utf-8") != value:
            text = None
    except UnicodeDecodeError:
        text = None
    if text is not None and len(text) <= LONGEST_TEXT:
        return ["py2", text]
    return ["py2bytes" if text is None else "py2text", _write_data(packer, value)]


def _write_bytes(packer, value, number):
    return ["bytes", _write_data(packer, bytes(value))]


def _write_bytearray(packer, value, number):
    if len(value) > LONGEST_BYTES:
        return ["bytearray", packer.buffer(Bytes(value))]  # itself: a copy may be what memory lacks
    return ["bytearray", _write_data(packer, bytes(value))]


def _write_int(packer, value, number):
    return ["int", "%x" % value]


def _write_float(packer, value, number):
    return ["float", _float_detail(value)]


def _float_detail(value):
    if value != value:
        return "nan"
    if value - value != 0:
        return "inf" if value > 0 else "-inf"
    return value


def _write_complex(packer, value, number):
    return ["complex", [_float_detail(value.real), _float_detail(value.imag)]]


def _write_list(packer, value, number):
    return ["list", None, packer.items(value, number)]


def _write_tuple(packer, value, number):
    return ["tuple", None, packer.items(value, number)]


def _write_set(kind):
    def write(packer, value, number):
        return [kind, None, packer.items(_in_order(value), number, _in_set)]

    return write


def _in_set(k):
    return Step("{…}", None)


def _in_order(values):
    """Elements of a set in the order of their kinds and what they are, the same in every Python."""
    return sorted(values, key=_sort_key)


def _sort_key(value):
    kind = type(value)
    if value is None or kind is bool:
        return (0, 0 if value is None else 1 + value, "")
    if kind in INTS or kind is float and value - value == 0:
        return (1, value, "")
    if kind is TEXT:
        return (
            2,
            0,
            value.encode("utf-32-be", "surrogatepass") if not PY2 else value.encode("utf-32-be"),
        )
    if kind is bytes:
        return (3, 0, value)
    from .wire import Refused, pack

    try:
        return (4, 0, pack([("", value)]).document)
    except Refused:
        return (5, 0, b"")  # the walk will refuse it, and knows the place


def _write_dict(kind):
    def write(packer, value, number):
        # As the base sees it: a subclass's own idea of its keys may run anything.
        keys = list((collections.OrderedDict if kind == "ordered" else dict).__iter__(value))
        if sys.version_info < (3, 6) and kind in ("dict", "counter"):
            keys = _in_order(keys)  # it has none of its own
        return [
            kind,
            None,
            packer.items(keys, number, lambda k: Step(".keys()[%]", k)),
            packer.items(
                [dict.__getitem__(value, key) for key in keys],
                number,
                lambda k: Step("[%]", keys[k]),
            ),
        ]

    return write


def _write_deque(packer, value, number):
    return ["deque", value.maxlen, packer.items(list(value), number)]


def _write_range(packer, value, number):
    return ["range", ["%x" % part for part in _range_parts(value)]]


def _range_parts(value):
    if not PY2:
        return value.start, value.stop, value.step
    # Python 2's tells its parts only so.
    parts = [int(part) for part in repr(value)[len("xrange(") : -1].split(",")]
    if len(parts) == 1:
        return 0, parts[0], 1
    return parts[0], parts[1], parts[2] if len(parts) == 3 else 1


def _write_decimal(packer, value, number):
    return ["decimal", TEXT(value)]


_WRITERS = {
    list: _write_list,
    tuple: _write_tuple,
    set: _write_set("set"),
    frozenset: _write_set("frozenset"),
    dict: _write_dict("dict"),
    collections.OrderedDict: _write_dict("ordered"),
    collections.Counter: _write_dict("counter"),
    collections.deque: _write_deque,
    bytearray: _write_bytearray,
    complex: _write_complex,
    float: _write_float,
    int: _write_int,
    LONG: _write_int,
    bytes: _write_py2_text if PY2 else _write_bytes,
    TEXT: _write_text,
    decimal.Decimal: _write_decimal,
    (xrange if PY2 else range): _write_range,  # noqa: F821
}


def add_writer(kind, writer):
    """Let a module beside write a type of its own."""
    _WRITERS[kind] = writer


def find_writer(value, kind):
    """Who writes a type of Python's own, exactly."""
    return _WRITERS.get(kind)


def name_of(kind):
    module = getattr(kind, "__module__", None)
    name = getattr(kind, "__qualname__", None) or kind.__name__
    name = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    if module in (None, "builtins", "__builtin__", "__main__"):
        return name
    return "%s.%s" % (module, name)


def name_text(name):
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name


def step(told):
    return Step(told, None)


def short(value):
    """A value in a message: its repr, cut."""
    try:
        told = repr(value)
    except Exception:  # noqa: BLE001  (somebody else's)
        told = "<%s>" % type(value).__name__
    if isinstance(told, bytes):
        told = told.decode("utf-8", "replace")
        if told.startswith(("u'", 'u"')):
            told = told[1:]
    told = printable(told)
    return told if len(told) <= 60 else told[:57] + "..."


_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text):
    """Text without what moves a terminal's cursor."""
    return _CONTROLS.sub("?", text)


# ---------------------------------------------------------------------------------------------
# Like Python's own


def find_base_writer(value, kind):
    """Who writes a subclass of Python's own types, or what is plain at heart; None for the others."""
    enum = sys.modules.get("enum")
    if enum is not None and isinstance(value, enum.Enum):
        return Simpler(_simplify_enum)
    if isinstance(value, type):
        return None
    if hasattr(kind, "__dataclass_fields__"):
        return Simpler(_simplify_dataclass)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return _write_named_tuple
    for base, writer in _BASES:
        if isinstance(value, base):
            return writer
    return None


def _simplify_enum(packer, value, parent, step):
    packer.note("Enum %s: its value" % name_of(type(value)))
    return value.value


def _simplify_dataclass(packer, value, parent, step):
    packer.note("dataclass %s: dict" % name_of(type(value)))
    return _Fields(value)


class _Fields(object):
    """The fields of a dataclass, to be written as a dict."""

    def __init__(self, value):
        self.value = value


def _write_fields(packer, value, number):
    value = value.value
    names = [name for name in type(value).__dataclass_fields__ if hasattr(value, name)]
    return [
        "dict",
        None,
        packer.items(names, number),
        packer.items(
            [getattr(value, name) for name in names], number, lambda k: step("." + names[k])
        ),
    ]


def _write_named_tuple(packer, value, number):
    packer.note("namedtuple %s: tuple" % name_of(type(value)))
    fields = list(type(value)._fields)
    parts = list(tuple.__iter__(value))
    named = (lambda k: step("." + name_text(fields[k]))) if len(fields) == len(parts) else None
    return ["tuple", None, packer.items(parts, number, named)]


def _simplified_to(told, convert):
    def simplify(packer, value, parent, step):
        packer.note("%s: %s" % (name_of(type(value)), told))
        return convert(value)

    return Simpler(simplify)


def _as_node(told, write):
    def write_base(packer, value, number):
        packer.note("%s: %s" % (name_of(type(value)), told))
        return write(packer, value, number)

    return write_base


# What is first is tried first.
_BASES = (
    (bool, _simplified_to("bool", bool)),
    (
        INTS,
        _simplified_to(
            "int",
            lambda value: int.__index__(value) if isinstance(value, int) else LONG.__index__(value),
        ),
    ),
    (
        float,
        _simplified_to(
            "float", lambda value: float.__add__(value, 0.0) if value else float.__float__(value)
        ),
    ),
    (complex, _simplified_to("complex", lambda value: complex(value.real, value.imag))),
    (TEXT, _simplified_to("str", lambda value: TEXT.__getitem__(value, slice(None)))),
    (
        bytes,
        _simplified_to(
            "str" if PY2 else "bytes", lambda value: bytes.__getitem__(value, slice(None))
        ),
    ),
    (bytearray, _as_node("bytearray", _write_bytearray)),
    (collections.Counter, _as_node("Counter", _write_dict("counter"))),
    (collections.OrderedDict, _as_node("OrderedDict", _write_dict("ordered"))),
    (dict, _as_node("dict", _write_dict("dict"))),
    (
        list,
        _as_node(
            "list",
            lambda packer, value, number: _write_list(
                packer, list.__getitem__(value, slice(None)), number
            ),
        ),
    ),
    (
        tuple,
        _as_node(
            "tuple",
            lambda packer, value, number: _write_tuple(
                packer, tuple(tuple.__iter__(value)), number
            ),
        ),
    ),
    (set, _as_node("set", _write_set("set"))),
    (frozenset, _as_node("frozenset", _write_set("frozenset"))),
    (collections.deque, _as_node("deque", _write_deque)),
    (decimal.Decimal, _as_node("Decimal", _write_decimal)),
)

_WRITERS[_Fields] = _write_fields


# ---------------------------------------------------------------------------------------------
# What cannot

_HINTS = (
    # module (or the beginning of it), type or None for any, what to do
    ("torch.nn", None, "Hand over its state_dict(), and build the model in the other environment."),
    ("torch", "Generator", "Hand over its get_state()."),
    ("torch.utils.data", None, "Hand over the tensors that it gives."),
    ("tensorflow", "Session", "Hand over what sess.run(...) gives."),
    (
        "tensorflow",
        "Graph",
        "Hand over what sess.run(...) gives, or graph.as_graph_def().SerializeToString().",
    ),
    (
        "tensorflow.python.data",
        None,
        "Hand over what it gives: its as_numpy_iterator(), or what sess.run(...) gives for get_next().",
    ),
    ("tensorflow.python.training", None, "Make it in the other environment, too."),
    ("keras", None, "Hand over its get_weights() and to_json()."),
    ("tensorflow.python.keras", None, "Hand over its get_weights() and to_json()."),
    ("sklearn", None, "Hand over its get_params() and the arrays that it learned (coef_, …)."),
    (
        "matplotlib",
        None,
        "Save it as a picture: figure.savefig(buffer), and hand over buffer.getvalue().",
    ),
    ("polars", None, "Convert it with .to_pandas()."),
    ("pyarrow", None, "Convert it with .to_pandas()."),
    ("xarray", None, "Convert it with .to_dataframe(), or .values."),
    ("dask", None, "Convert it with .compute()."),
    ("jax", None, "Convert it with numpy.asarray(...)."),
    ("mxnet", None, "Convert it with .asnumpy()."),
    ("cupy", None, "Convert it with .get()."),
    ("pathlib", None, "Convert it with str(...)."),
    ("uuid", None, "Convert it with str(...)."),
    ("ipaddress", None, "Convert it with str(...)."),
    ("fractions", None, "Hand over its numerator and denominator."),
    ("re", None, "Hand over its .pattern."),
    ("_sre", None, "Hand over its .pattern."),
    ("_io", None, "Hand over what .read() gives."),
    ("io", None, "Hand over what .read() gives."),
    ("array", None, "Convert it with list(...) or numpy.array(...)."),
    ("numpy", "dtype", "Convert it with str(...)."),
    ("numpy.random", "Generator", "Hand over its .bit_generator.state."),
    ("numpy.random", "RandomState", "Hand over its .get_state()."),
    ("functools", None, "Define it in the other environment, too."),
    ("_thread", None, "Make one in the other environment."),
    ("thread", None, "Make one in the other environment."),
    ("threading", None, "Make one in the other environment."),
    ("types", "SimpleNamespace", "Convert it with vars(...)."),
)
_HINTS_OF_TYPES = {
    "function": "Define it in the other environment, too.",
    "builtin_function_or_method": "Define it in the other environment, too.",
    "method": "Hand over the object's data, and define its class in the other environment, too.",
    "instancemethod": "Hand over the object's data, and define its class in the other environment, too.",
    "type": "Define it in the other environment, too.",
    "classobj": "Define it in the other environment, too.",
    "module": "Import it in the other environment, too.",
    "generator": "Convert it with list(...), or hand it over by itself: then it arrives as an iterator.",
    "coroutine": "Await it, and hand over what it gives.",
    "dict_keys": "Convert it with list(...).",
    "dict_values": "Convert it with list(...).",
    "dict_items": "Convert it with list(...).",
    "mappingproxy": "Convert it with dict(...).",
    "memoryview": "Convert it with bytes(...).",
    "buffer": "Convert it with bytes(...).",
    "file": "Hand over what .read() gives.",
    "slice": "Hand over its start, stop and step.",
    "ellipsis": "Leave it out.",
}


def refusal(value, kind, place):
    """The message and the hint for a value that cannot be handed over."""
    name = name_of(kind)
    return "%s is of type %s, which cannot be handed over." % (place, name), _hint(value, kind)


def _hint(value, kind):
    for base in kind.__mro__:
        module = getattr(base, "__module__", None) or ""
        for beginning, name, hint in _HINTS:
            if (module == beginning or module.startswith(beginning + ".")) and name in (
                None,
                base.__name__,
            ):
                return hint
    hint = _HINTS_OF_TYPES.get(kind.__name__)
    if hint is not None:
        return hint
    if isinstance(value, type):
        return _HINTS_OF_TYPES["type"]
    if isinstance(value, BaseException):
        return "Convert it with str(...)."
    if hasattr(kind, "__attrs_attrs__"):
        return "Convert it with attr.asdict(...)."
    if hasattr(kind, "model_dump"):
        return "Convert it with .model_dump()."
    if hasattr(kind, "__next__") or PY2 and hasattr(kind, "next"):
        return _HINTS_OF_TYPES["generator"]
    if hasattr(kind, "to_pandas"):
        return "Convert it with .to_pandas()."
    if hasattr(kind, "__array__"):
        return "Convert it with numpy.asarray(...)."
    if hasattr(kind, "keys") and hasattr(kind, "__getitem__"):
        return "Convert it with dict(...)."
    return "Convert it to a dict, a list or an array (vars(...) may do), or write a file in the workspace."


# ---------------------------------------------------------------------------------------------
# Reading


def _read_data(reader, detail):
    if isinstance(detail, TEXT):
        return base64.b64decode(detail.encode("ascii"))
    return reader.bytes(detail)


def _read_points(reader, node):
    return text_of_points(node[1])


def text_of_points(points):
    """Text of the numbers of its letters."""
    _must(isinstance(points, list), "text is none")
    for point in points:
        _must(type(point) is int and 0 <= point <= 0x10FFFF, "a letter is none")
    return "".join([(unichr if PY2 else chr)(point) for point in points])  # noqa: F821


def _read_py2(reader, node):
    _must(isinstance(node[1], TEXT), "text is none")
    return node[1].encode("utf-8") if PY2 else node[1]


def _read_py2_text(reader, node):
    data = _read_data(reader, node[1])
    return data if PY2 else text_of(data)


def _read_py2_bytes(reader, node):
    data = _read_data(reader, node[1])
    if not PY2:
        reader.note("Python 2 str that is not UTF-8: bytes")
    return data


def _read_int(reader, node):
    _must(isinstance(node[1], TEXT), "a number is none")
    return hexadecimal(node[1])


def hexadecimal(text):
    _must(isinstance(text, TEXT) and re.match("-?[0-9a-f]+$", text), "a number is none")
    return int(text, 16)


def number_of(detail):
    if detail in ("nan", "inf", "-inf"):
        return float(detail)
    _must(type(detail) is float, "a number is none")
    return detail


def _read_complex(reader, node):
    real, imag = node[1]
    return complex(number_of(real), number_of(imag))


def _read_range(reader, node):
    start, stop, step = [hexadecimal(part) for part in node[1]]
    if PY2:
        try:
            return xrange(start, stop, step)  # noqa: F821
        except OverflowError:
            pass
        raise ValueError("a range has numbers that Python 2 cannot have in one")
    return range(start, stop, step)


_DECIMAL = re.compile(r"-?([0-9]+(\.[0-9]+)?(E[+-]?[0-9]{1,20})?|Infinity|s?NaN[0-9]*)$")


def _read_decimal(reader, node):
    _must(isinstance(node[1], TEXT) and _DECIMAL.match(node[1]), "a Decimal is none")
    return decimal.Decimal(node[1])


def small_ints(detail, count):
    """A list of so many ints, as they are."""
    _must(isinstance(detail, list) and len(detail) == count, "numbers are missing")
    for part in detail:
        _must(type(part) in INTS, "a number is none")
    return detail


def _fill_list(reader, node, shell):
    shell.extend(reader.values(node[2]))


def _fill_set(reader, node, shell):
    values = reader.values(node[2])
    shell.update(values)
    if len(shell) != len(values):
        reader.note("a set has fewer elements: some are equal here")


def _read_frozenset(reader, node):
    return frozenset(reader.values(node[2]))


def _fill_dict(reader, node, shell):
    keys, values = reader.values(node[2]), reader.values(node[3])
    _must(len(keys) == len(values), "a dict has more keys than values, or fewer")
    if type(shell) is dict:
        shell.update(zip(keys, values))
    else:
        for key, value in zip(keys, values):
            shell[key] = value
    if len(shell) != len(keys):
        reader.note("a dict has fewer keys: some are equal here")


def _make_deque(reader, node):
    longest = node[1]
    _must(longest is None or type(longest) in INTS and longest >= 0, "a deque's length is none")
    return collections.deque(maxlen=longest)


BUILDERS = {
    "list": Builder(shell=lambda reader, node: [], fill=_fill_list),
    "tuple": Builder(lambda reader, node: tuple(reader.values(node[2]))),
    "set": Builder(shell=lambda reader, node: set(), fill=_fill_set),
    "frozenset": Builder(_read_frozenset),
    "dict": Builder(shell=lambda reader, node: {}, fill=_fill_dict),
    "ordered": Builder(shell=lambda reader, node: collections.OrderedDict(), fill=_fill_dict),
    "counter": Builder(shell=lambda reader, node: collections.Counter(), fill=_fill_dict),
    "deque": Builder(shell=_make_deque, fill=_fill_list),
    "bytes": Builder(lambda reader, node: _read_data(reader, node[1])),
    "bytearray": Builder(lambda reader, node: bytearray(_read_data(reader, node[1]))),
    "text": Builder(lambda reader, node: text_of(reader.bytes(node[1]))),
    "points": Builder(_read_points),
    "py2": Builder(_read_py2),
    "py2text": Builder(_read_py2_text),
    "py2bytes": Builder(_read_py2_bytes),
    "int": Builder(_read_int),
    "float": Builder(lambda reader, node: number_of(node[1])),
    "complex": Builder(_read_complex),
    "range": Builder(_read_range),
    "decimal": Builder(_read_decimal),
}
