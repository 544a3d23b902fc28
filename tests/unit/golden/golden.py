# -*- coding: utf-8 -*-
"""Write and read the golden payloads in any Python from 2.7: python golden.py PACKAGE_FOLDER [--write].

PACKAGE_FOLDER is the folder of the codec, `dockml_magic/resources/values`. What this Python makes of the values
below must be the files beside, byte for byte; what it reads from them must come out the same again.
"""

from __future__ import absolute_import, division, print_function, unicode_literals

import collections
import datetime
import decimal
import importlib
import io
import os
import sys

PY2 = sys.version_info[0] == 2
HERE = os.path.dirname(os.path.abspath(__file__))


def make_plain():
    ordered = collections.OrderedDict
    circle = [1]
    circle.append({"circle": circle})
    shared = [b"".decode()]
    numbers = xrange if PY2 else range  # noqa: F821
    return [
        ("nothing", None),
        ("truth", [True, False]),
        ("ints", [0, -1, 2**63 - 1, -(2**63), 2**63, 2**64, -(2**200), 10**5000]),
        ("floats", [0.1, -0.0, 1e16, 1e300, 5e-324, float("inf"), float("-inf"), float("nan")]),
        ("complex", complex(1.5, float("-inf"))),
        ("text", ["", "é", "😀", '\x00\n"\\', "\u2028", "x" * 3000, "é" * 3000]),
        ("surrogate", "a\ud800b"),
        ("bytes", [bytearray(b""), bytearray(b"\x00\xff"), bytearray(range(256)) * 3]),
        ("many ints", list(range(-20, 20))),
        ("many floats", [k / 4 for k in range(40)]),
        ("many texts", ["é%d" % k for k in range(40)]),
        ("many texts with zeros", ["\x00\n%d" % k for k in range(40)]),
        ("mixed", [None, 1, 1.5, "x"] * 10),
        ("tuple", (1, ("a", (None,)))),
        ("dict", ordered([(1, "int"), ("b", {"only": 1}), (tuple([1, 2]), [3])])),
        ("counter", collections.Counter("a")),
        ("set", {3, 1, 2, "b", "a", None, 2.5, tuple([1, 2]), frozenset([1])}),
        ("frozenset", frozenset(["é", "a"])),
        ("deque", collections.deque([1, 2], 5)),
        ("range", numbers(1, 11, 2)),
        ("decimal", [decimal.Decimal("-1.50"), decimal.Decimal("NaN"), decimal.Decimal("1E+400")]),
        ("moment", [datetime.datetime(2020, 2, 29, 1, 2, 3, 4), datetime.date(2020, 2, 29)]),
        ("time", datetime.time(1, 2, 3, 4)),
        ("length", datetime.timedelta(-1, 2, 3)),
        ("circle", circle),
        ("shared", [shared, (shared,), {"x": shared}]),
    ]


def make_bytes():
    return [("bytes", [b"", b"\x00\xff", b"abc", b"\xfe" * 2000])]


def make_py2():
    # What these are written from is Python 2's str.
    return [
        ("str", [b"", b"abc", "é".encode("utf-8"), b"\xff\xfe", b"y" * 3000]),
        ("many", [b"a", b"b"] * 20),
    ]


def make_arrays():
    import numpy

    structured = numpy.zeros(
        2,
        numpy.dtype(
            [(str("a"), str("<i2")), (str("b"), str(">f8"), (2,)), (str("c"), str("<U2"))],
            align=True,
        ),
    )
    structured["a"] = [1, 2]
    structured["b"] = 0.5
    structured["c"] = ["é", "xy"]
    return [
        (
            "ints",
            [
                numpy.arange(3, dtype=str("%si%d") % (order, size))
                for size in (1, 2, 4, 8)
                for order in (str("<"), str(">"))
            ],
        ),
        ("floats", numpy.array([[0.5, -0.0], [numpy.inf, 1e300]])),
        ("fortran", numpy.asfortranarray(numpy.arange(6, dtype=str("<u4")).reshape(2, 3))),
        ("strided", numpy.arange(20, dtype=str("<i8"))[::3]),
        ("zero", numpy.zeros((0, 3), str("<f4"))),
        ("one", numpy.array(7, str("<i4"))),
        ("truth", numpy.array([True, False])),
        ("text", numpy.array(["é", "xyz"])),
        ("bytes", numpy.array([bytearray(b"a").decode(), "xyz"]).astype(str("S3"))),
        ("moments", numpy.array(["2020-02-29T01:02:03", "NaT"], str("<M8[us]"))),
        ("lengths", numpy.array([1, -1], str("<m8[D]"))),
        ("objects", numpy.array([None, "x", 1.5], object)),
        ("structured", structured),
        ("masked", numpy.ma.array([1, 2], mask=[0, 1], dtype=str("<i8"))),
        (
            "scalars",
            [
                numpy.float32(1.5),
                numpy.bool_(True),
                numpy.datetime64("2020-01-01", str("D")),
                numpy.int64(-1),
            ],
        ),
        ("half", numpy.array([0.5, 65504, 6e-8], str("<f2"))),
        ("complex", numpy.array([1 + 2j], str("<c16"))),
    ]


# Where a payload is written alike: by all, by Python 3, by Python 2, where NumPy is.
SETS = [
    ("plain", make_plain, lambda: True),
    ("bytes", make_bytes, lambda: not PY2),
    ("py2", make_py2, lambda: PY2),
    ("arrays", make_arrays, lambda: has_numpy()),
]
# What the arrays are without NumPy; of some of them.
AS_LISTS = {
    "floats": [[0.5, -0.0], [float("inf"), 1e300]],
    "fortran": [[0, 1, 2], [3, 4, 5]],
    "strided": [0, 3, 6, 9, 12, 15, 18],
    "zero": [],
    "one": 7,
    "truth": [True, False],
    "text": ["é", "xyz"],
    "moments": [datetime.datetime(2020, 2, 29, 1, 2, 3), None],
    "objects": [None, "x", 1.5],
    "structured": [(1, [0.5, 0.5], "é"), (2, [0.5, 0.5], "xy")],
    "masked": [1, None],
}


def has_numpy():
    try:
        importlib.import_module("numpy")
    except ImportError:
        return False
    return True


def check(values, write=False):
    """Compare all; what differs, as lines of text."""
    wrong = []
    for name, make, is_written_here in SETS:
        path = os.path.join(HERE, name + ".bin")
        if write and is_written_here():
            with io.open(path, "wb") as file:
                file.write(values.pack(make()).to_bytes())
        elif write and not os.path.exists(path):
            continue
        with io.open(path, "rb") as file:
            golden = file.read()
        found = values.unpack(golden)
        if is_written_here():
            if values.pack(make()).to_bytes() != golden:
                wrong.append("%s.bin is written otherwise" % name)
            again = [
                (key, found.values[key if key in found.values else str(key)]) for key, _ in make()
            ]
            if values.pack(again).to_bytes() != golden:
                wrong.append("%s.bin is another when it was read" % name)
            continue
        expected = dict(AS_LISTS if name == "arrays" else make())
        for key in expected:
            value = found.values[key if key in found.values else str(key)]
            if name == "py2":  # text where it is some
                value = [
                    part.encode("utf-8") if not isinstance(part, bytes) else part for part in value
                ]
            if value != expected[key]:
                wrong.append("%s.bin: %s is read as %r" % (name, key, value))
    return wrong


def main():
    folder = os.path.abspath(sys.argv[1])
    sys.path.insert(0, os.path.dirname(folder))
    sys.dont_write_bytecode = True
    values = importlib.import_module(os.path.basename(folder))
    wrong = check(values, write="--write" in sys.argv)
    for line in wrong:
        print(line)
    print(
        "Python %s: %s"
        % (sys.version.split()[0], "not as it should be" if wrong else "as it should be")
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
