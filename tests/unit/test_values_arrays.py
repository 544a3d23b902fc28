"""NumPy's arrays, SciPy's sparse matrices and PIL's images on the wire and back."""

import datetime
import gc
import mmap
import subprocess
import sys
import weakref

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis.extra import numpy as npst
from PIL import Image

from dockml_magic.resources.values import Refused, pack, unpack


def over(value, **options):
    return unpack(pack([("x", value)]).to_bytes(), **options).values["x"]


def assert_same(found, value):
    assert type(found) is type(value)
    assert found.dtype == value.dtype
    assert found.shape == value.shape
    assert found.tobytes() == value.tobytes()


dtypes = (
    npst.boolean_dtypes()
    | npst.integer_dtypes(endianness="?")
    | npst.unsigned_integer_dtypes(endianness="?")
    | npst.floating_dtypes(endianness="?")
    | npst.complex_number_dtypes(endianness="?")
    | npst.datetime64_dtypes(endianness="?")
    | npst.timedelta64_dtypes(endianness="?")
    | npst.byte_string_dtypes()
    | npst.unicode_string_dtypes(endianness="?")
)


@settings(deadline=None)
@given(npst.arrays(dtypes | npst.array_dtypes(dtypes), npst.array_shapes(min_dims=0, min_side=0)))
def test_an_array_arrives_as_it_was(value):
    assert_same(over(value), value)
    turned = value.T
    assert_same(over(turned), turned)


@settings(deadline=None)
@given(npst.arrays(dtypes, (3,)))
def test_a_scalar_arrives_as_it_was(value):
    for one in value:
        found = over(one)
        assert type(found) is type(one)
        assert np.asarray(found).tobytes() == np.asarray(one).tobytes()


def test_an_order_is_kept():
    assert over(np.asfortranarray(np.ones((2, 3)))).flags.f_contiguous
    assert over(np.ones((2, 3))).flags.c_contiguous


def test_the_layout_of_a_structure_is_kept():
    gaps = np.dtype(
        {"names": ["a", "b"], "formats": ["<i2", ">f8"], "offsets": [4, 16], "itemsize": 40}
    )
    aligned = np.dtype(
        [("a", "i1"), ("b", "f8"), ("in", [("c", "U2"), ("d", "M8[s]", (2,))])], align=True
    )
    for dtype in (gaps, aligned):
        found = over(np.zeros(3, dtype)).dtype
        assert found == dtype
        assert found.itemsize == dtype.itemsize
        assert found.isalignedstruct == dtype.isalignedstruct
        assert [found.fields[name][1] for name in found.names] == [
            dtype.fields[name][1] for name in dtype.names
        ]


def test_what_lies_between_fields_is_not_handed_over():
    value = np.frombuffer(
        b"\xff" * 80, np.dtype({"names": ["a"], "formats": ["u1"], "offsets": [3], "itemsize": 40})
    )
    payload = pack([("x", value)]).to_bytes()
    assert payload.count(b"\xff") == 2


def test_the_space_between_buffers_is_cleared():
    packed = pack([("x", [np.ones(3), np.ones(5)])])
    used = bytearray(b"\xff" * packed.total)
    packed.write_into(used)
    assert bytes(used) == packed.to_bytes()


def test_objects_in_arrays_arrive_also_when_they_hold_the_array():
    value = np.empty((2, 3), object)
    value[0] = [None, "x", [1, 2]]
    value[1] = [np.arange(3), value, (1, 2)]
    found = over(value)
    assert found.shape == (2, 3)
    assert found[0].tolist() == [None, "x", [1, 2]]
    assert found[1, 1] is found
    assert found[1, 0].tolist() == [0, 1, 2]
    assert found[1, 2] == (1, 2)


@pytest.mark.parametrize(
    "value",
    [
        np.ma.array([1, 2, 3], mask=[0, 1, 0]),
        np.ma.array([1.5, 2.5], mask=False, fill_value=7.0),
        np.ma.array(["a", "b"], mask=[1, 0], hard_mask=True),
        np.ma.masked_all((2, 2), dtype=[("a", "i4"), ("b", "f8")]),
    ],
)
def test_a_masked_array_arrives_as_it_was(value):
    found = over(value)
    assert_same(found.data, value.data)
    assert np.array_equal(found.mask, value.mask)
    assert found.fill_value == value.fill_value
    assert found.hardmask == value.hardmask
    assert over(np.ma.masked) is np.ma.masked


def test_data_is_a_read_only_view_and_with_copy_one_s_own():
    value = np.arange(1000.0)
    packed = pack([("x", value)])
    pages = mmap.mmap(-1, packed.total)
    packed.write_into(pages)
    found = unpack(pages)
    assert found.views
    assert not found.values["x"].flags.writeable
    assert np.shares_memory(found.values["x"], np.frombuffer(pages, np.uint8))
    private = unpack(pages, copy=True)
    assert not private.views
    assert private.values["x"].flags.writeable
    assert not np.shares_memory(private.values["x"], np.frombuffer(pages, np.uint8))


def test_a_view_keeps_the_payload_and_lets_it_go():
    class Pages(mmap.mmap):
        pass

    packed = pack([("x", np.arange(1000.0))])
    pages = Pages(-1, packed.total)
    packed.write_into(pages)
    alive = weakref.ref(pages)
    found = unpack(pages).values["x"]
    del pages
    gc.collect()
    assert alive() is not None
    assert found[999] == 999
    del found
    gc.collect()
    assert alive() is None


def test_what_is_no_plain_array_is_told():
    class Quantity(np.ndarray):
        pass

    packed = pack([("x", np.ones(2).view(Quantity))])
    assert packed.notes == [
        "tests.unit.test_values_arrays.test_what_is_no_plain_array_is_told.<locals>.Quantity: an array"
    ]
    assert type(unpack(packed.to_bytes()).values["x"]) is np.ndarray
    with pytest.raises(Refused, match=r"^x\['a'\] is an array of dtype"):
        pack([("x", {"a": np.array([(1, None)], dtype=[("n", "i4"), ("o", object)])})])


@pytest.mark.parametrize("form", ["csr", "csc", "bsr", "coo", "dia", "lil", "dok"])
@pytest.mark.parametrize("make", [sp.csr_matrix, sp.csr_array])
def test_a_sparse_matrix_arrives_as_it_was(form, make):
    value = make(np.eye(6)[:, ::2] * 3).asformat(form)
    found = over(value)
    assert type(found) is type(value)
    assert found.dtype == value.dtype
    assert (found.toarray() == value.toarray()).all()


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"]
)
def test_a_picture_arrives_as_it_was(mode):
    pixels = np.arange(11 * 7 * 3, dtype="u1").reshape(7, 11, 3)
    whole = Image.fromarray(pixels)
    value = (
        whole.convert("L").convert(mode)
        if mode == "I;16"
        else whole.convert("RGB").convert(mode)
        if mode != "LAB"
        else Image.frombytes("LAB", (11, 7), pixels.tobytes())
    )
    value.info["transparency"] = 3
    found = over(value)
    assert (found.mode, found.size, found.tobytes()) == (mode, (11, 7), value.tobytes())
    assert found.getpalette() == value.getpalette()
    assert found.info["transparency"] == 3


def test_without_numpy_arrays_are_lists_and_that_is_said():
    values = {
        "floats": np.array([[1.5, -0.0]], order="F"),
        "half": np.array([0.5, 65504, np.inf], "f2"),
        "long": np.array([1, -0.1, 1e300], np.longdouble),
        "fortran": np.asfortranarray(np.arange(24, dtype=">i2").reshape(2, 3, 4)),
        "moments": np.array(["2020-02-29T01:02:03.000004", "NaT"], "M8[ns]"),
        "months": np.array(["2020-02"], "M8[M]"),
        "text": np.array(["é", "xy"]),
        "one": np.float32(0.5),
        "structured": np.array([(1, "a")], [("n", "<i4"), ("s", "U3")]),
        "masked": np.ma.array([[1, 2], [3, 4]], mask=[[0, 1], [0, 0]]),
        "sparse": sp.coo_matrix(np.eye(2)),
    }
    payload = pack(list(values.items())).to_bytes()
    code = (
        "import sys\n"
        "for name in ('numpy', 'scipy', 'pandas'): sys.modules[name] = None\n"
        "from dockml_magic.resources.values import unpack\n"
        "found = unpack(sys.stdin.buffer.read())\n"
        "print((found.values, found.notes))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], input=payload, capture_output=True, check=True
    )
    found, notes = eval(ran.stdout, {"datetime": datetime, "inf": float("inf")})
    assert found.pop("sparse")["data"] == [1.0, 1.0]
    assert found == {
        "floats": [[1.5, -0.0]],
        "half": [0.5, 65504.0, float("inf")],
        "long": [1.0, -0.1, 1e300],
        "fortran": np.arange(24).reshape(2, 3, 4).tolist(),
        "moments": [datetime.datetime(2020, 2, 29, 1, 2, 3, 4), None],  # noqa: DTZ001
        "months": [datetime.datetime(2020, 2, 1)],  # noqa: DTZ001
        "text": ["é", "xy"],
        "one": 0.5,
        "structured": [(1, "a")],
        "masked": [[1, None], [3, 4]],
    }
    assert "array: list (no NumPy here)" in notes
