"""Payloads that are cut off, changed or hostile are refused: nothing executed, nothing allocated for them."""

import mmap
import struct
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dockml_magic.resources.values import Damaged, arrays, pack, unpack
from tests.fuzz.payloads import forge, forge_nodes, frame, mutate, seeds

VALUE = {"text": ["é" * 3000, "b"], "ints": list(range(100)), "deep": [[({1, 2},)]]}
PAYLOAD = pack([("x", VALUE)]).to_bytes()
SEEDS = seeds()


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, len(PAYLOAD) // 2, len(PAYLOAD) - 1])
def test_a_payload_that_is_cut_off_is_refused(length):
    with pytest.raises(Damaged):
        unpack(PAYLOAD[:length])


def test_a_payload_in_a_larger_buffer_is_read():
    assert unpack(PAYLOAD + b"what was there before").values == {"x": VALUE}


def test_each_flipped_bit_of_frame_and_document_is_noticed():
    document = len(pack([("x", VALUE)]).document)
    for place in range(32 + document):
        changed = bytearray(PAYLOAD)
        changed[place] ^= 1 << place % 8
        with pytest.raises(Damaged):
            unpack(bytes(changed))


def test_another_version_says_so():
    with pytest.raises(Damaged, match="another version"):
        unpack(PAYLOAD[:7] + b"\x02" + PAYLOAD[8:])
    with pytest.raises(Damaged, match="another version"):
        unpack(forge({"format": 2, "roots": [], "nodes": [], "buffers": [], "notes": []}))


def doubled(levels):
    """Tuples of the one before, twice: 2 ** levels parts if one walks through them."""
    return [["tuple", None, [1, 2]]] + [["tuple", None, [[k], [k]]] for k in range(1, levels)]


def chained(levels, first=1):
    return [["tuple", None, [1, 2]]] + [
        ["tuple", None, [[k + first - 1]]] for k in range(1, levels)
    ]


ARRAY = ["array", ["<f8", [3], "C", 0]]
THREE = bytes(24)


@pytest.mark.parametrize(
    ("nodes", "buffers"),
    [
        ([["list", None, [[1]]]], []),
        ([["list", None, [[-1]]]], []),
        ([["list", None, [[True]]]], []),
        ([["list", None, [[0, 0]]]], []),
        ([["list", None, [{}]]], []),
        ([["list", None, {"ints": 0}]], [b"1234567"]),
        ([["list", None, {"ints": 1}]], [b""]),
        ([["list", None, {"texts": 0, "by": "\n", "count": 10**12}]], [b"a\nb"]),
        ([["list", None, {"texts": 0, "by": "a", "count": 2}]], [b"a\nb"]),
        ([["list", None, {"texts": 0, "by": "\n", "count": 2}]], [b"\xff\n"]),
        ([["list", None, {"strings": 0, "ends": 1}]], [b"ab", (9).to_bytes(8, "little")]),
        ([["list", None, {"strings": 0, "ends": 1}]], [b"ab", (-1).to_bytes(8, "little", signed=True)]),
        ([["tuple", None, [[0]]]], []),
        ([["tuple", None, [[1]]], ["tuple", None, [[0]]]], []),
        ([["set", None, [[1]]], ["list", None, []]], []),
        ([["set", None, [[60]]], *doubled(60)], []),
        ([["dict", None, [[20000]], [1]], *chained(20000)], []),
        ([["dict", None, [1, 2], [1]]], []),
        ([["frozenset", None, [[0]]]], []),
        ([["int", "9" * 10 + "x"]], []),
        ([["int", 7]], []),
        ([["float", "1e5"]], []),
        ([["decimal", "__import__('os')"]], []),
        ([["range", ["0", "1", "0"]]], []),
        ([["datetime", [2020, 13, 1, 0, 0, 0, 0, 0, None], [None]]], []),
        ([["datetime", [2020, 1, 1, 0, 0, 0, 0, 0, 10**30], [None]]], []),
        ([["zone", {"by": "dateutil", "name": "/etc/passwd", "offset": None}]], []),
        ([["zone", {"by": "os", "name": "system", "offset": None}]], []),
        ([["timestamp", [0, "ns", 0], ["dateutil//etc/passwd"]]], []),
        ([["bytes", 3]], []),
        ([["text", 0]], [b"\xed\xa0\x80"]),
        ([["eval", "1"]], []),
        ([[]], []),
        ([["list"]], []),
        ([7], []),
        ([["array", ["<f8", [4], "C", 0]]], [THREE]),
        ([["array", ["<f8", [-3], "C", 0]]], [THREE]),
        ([["array", ["<f8", [2**40, 2**40, 0, 3], "C", 0]]], [THREE]),
        ([["array", ["<f8", [3], "K", 0]]], [THREE]),
        ([["array", ["|O", [3], "C", 0]]], [THREE]),
        ([["array", ["f8,f8", [3], "C", 0]]], [THREE]),
        ([["array", ["<i3", [8], "C", 0]]], [THREE]),
        ([["array", ["|b1", [3], "C", 0]]], [b"\0\1\2"]),
        ([["array", ["<U1", [1], "C", 0]]], [b"\0\0\x11\0"]),
        ([["array", [{"of": {"of": "<f8", "shape": [2**31]}, "shape": [2**31]}, [0], "C", 0]]], [b""]),
        (
            [["array", [{"names": ["a"], "types": ["<f8"], "offsets": [17], "size": 24, "aligned": False}, [1], "C", 0]]],
            [THREE],
        ),
        ([["objects", [[10**9], "C"], [1]]], []),
        ([["objects", [[10**9], "C"], {"ints": 0}]], [THREE]),
        ([["masked", [False], [[1], [2], None]], ARRAY, ["array", ["|b1", [2], "C", 1]]], [THREE, b"\0\1"]),
        # a row outside, a column outside, rows that go back, a matrix made larger than itself
        ([["sparse", ["coo", "coo", [2, 2], False], [[1], [2], [2]]], ARRAY, ["array", ["<i8", [3], "C", 1]]], [THREE, b"\7" + bytes(23)]),
        ([["sparse", ["csr", "csr", [2, 2], False], [[1], [2], [2]]], ARRAY, ["array", ["<i8", [3], "C", 1]]], [THREE, b"\0" * 8 + b"\3" + bytes(15)]),
        ([["sparse", ["csr", "coo", [2**40, 2], False], [[1], [2], [2]]], ARRAY, ["array", ["<i8", [3], "C", 1]]], [THREE, bytes(24)]),
        # a code without a category
        (
            [["series", None, [[1], [3], None]], ["vector", ["category", False, "|i1", 1, 0], [[2]]], ["index", None, [[4], None]], ["range-index", [0, 1, 1], [None]], ["vector", ["objects", 1], ["a"]]],
            [b"\1"],
        ),
        (
            [["multi-index", [1, [0]], [[1]], [None]], ["index", None, [[2], None]], ["vector", ["objects", 1], ["a"]]],
            [(5).to_bytes(8, "little")],
        ),
        ([["frame", None, [[1], [1]], [[0]]], ["range-index", [0, 1, 1], [None]]], []),
        ([["vector", ["period", "os.system", 3, 0]]], [THREE]),
        ([["vector", ["texts", "object", 2, 0], ["a", "b"]]], [b"\0\7"]),
        ([["picture", ["RGB", [10**5, 10**5], 0], [None, [1]]], ["dict", None, [], []]], [THREE]),
        ([["tensor", ["torch", "float32", "code", False], [[1]]], ARRAY], [THREE]),
    ],
)  # fmt: skip
def test_a_hostile_node_is_refused(nodes, buffers):
    with pytest.raises(Damaged):
        unpack(forge_nodes(*nodes, buffers=buffers))


@pytest.mark.parametrize(
    ("nodes", "buffers"),
    [
        ([["tensor", ["torch", "bfloat16", "tensor", False], [[1]]], ARRAY], [THREE]),
        ([["tensor", ["torch", "bfloat16", "tensor", False], [7]]], []),
        ([["tensor", ["torch", "bfloat16", "tensor", False], [[1]]], ["list", None, [1]]], []),
    ],
)
def test_a_hostile_tensor_is_refused_where_there_is_no_numpy(monkeypatch, nodes, buffers):
    monkeypatch.setattr(arrays, "find_numpy", lambda: None)
    with pytest.raises(Damaged):
        unpack(forge_nodes(*nodes, buffers=buffers))


def test_bfloat16_is_floats_where_there_is_no_numpy(monkeypatch):
    monkeypatch.setattr(arrays, "find_numpy", lambda: None)
    array = ["array", ["<i2", [1, 3], "C", 0]]
    tensor = ["tensor", ["torch", "bfloat16", "tensor", False], [[1]]]
    found = unpack(forge_nodes(tensor, array, buffers=[struct.pack("<3H", 0x3FC0, 0xC000, 0x7F80)]))
    assert list(found.values.values()) == [[[1.5, -2.0, float("inf")]]]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100000,
        b'{"format":1,"roots":[],"nodes":[],"buffers":[],"notes":[' + b"1" * 100000 + b"]}",
        b'{"format":1,"roots":[["x",NaN]],"nodes":[],"buffers":[],"notes":[]}',
        b'{"format":1,"roots":[["x",1],["x",2]],"nodes":[],"buffers":[],"notes":[]}',
        b'{"format":1,"roots":[["x",1]],"nodes":[],"buffers":[1],"notes":[]}',
        b'{"format":1,"roots":[["x",1]],"nodes":[],"buffers":[-64],"notes":[]}',
        b'{"format":1,"roots":[["x",1]],"nodes":[],"buffers":[1e3],"notes":[]}',
        b'{"format":1,"roots":[["x",1]],"nodes":[],"buffers":[],"notes":[1]}',
        "{\"é\": 1}".encode(),
    ],
)  # fmt: skip
def test_a_hostile_document_is_refused(document):
    with pytest.raises(Damaged):
        unpack(frame(document))


def test_a_note_from_there_cannot_move_a_terminals_cursor():
    found = unpack(
        forge({"format": 1, "roots": [], "nodes": [], "buffers": [], "notes": ["\x1b[2Jgone\n"]})
    )
    assert found.notes == ["?[2Jgone?"]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(range(len(SEEDS))), st.sampled_from(range(len(SEEDS))), st.integers(0, 2**32)
)
def test_any_changed_payload_is_read_or_refused(which, other, seed):
    changed = mutate(SEEDS[which], seed, SEEDS[other])
    tracemalloc.start()
    try:
        unpack(changed)
    except Damaged:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < (16 << 20) + 64 * len(changed)


def test_what_was_checked_is_a_copy_that_nobody_else_can_change():
    """The sender still has the pages: texts, categories and indices must not change after the check."""
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp

    matrix = sp.csr_matrix(np.eye(40))
    sent = {
        "texts": [f"text {k}" for k in range(50)],
        "frame": pd.DataFrame(
            {"c": pd.Categorical(["u", "v"] * 20), "s": [f"é{k}" for k in range(40)]}
        ),
        "truth": np.array([True, False] * 100),
        "letters": np.array(["é", "xyz"] * 100),
    }
    packed = pack([*sent.items(), ("matrix", matrix)])
    pages = mmap.mmap(-1, packed.total)
    packed.write_into(pages)
    found = unpack(memoryview(pages).toreadonly()).values
    pages[32 + len(packed.document) :] = b"\xff" * (packed.total - 32 - len(packed.document))
    pd.testing.assert_frame_equal(found.pop("frame"), sent.pop("frame"))
    assert (found["matrix"].indices == matrix.indices).all()
    assert (found["matrix"].indptr == matrix.indptr).all()
    for name, value in sent.items():
        assert np.array_equal(found[name], value), name


def test_reading_imports_no_pickle_and_runs_no_code():
    code = (
        "import sys\n"
        "from tests.fuzz.payloads import forge_nodes\n"
        "from dockml_magic.resources.values import Damaged, pack, unpack\n"
        "payload = pack([('x', [1, 'a', {'b': 2.5}])]).to_bytes()\n"
        "unpack(payload)\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, arguments: seen.append(event))\n"
        "unpack(payload)\n"
        "print(sorted(set(seen) - {'object.__getattr__'}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
