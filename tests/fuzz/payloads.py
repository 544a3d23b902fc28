"""Payloads to be hostile with: forged, and changed where it hurts."""

import copy
import json
import random
from collections.abc import Sequence

from dockml_magic.resources.values import wire
from tests.unit.golden import golden

HOSTILE = [
    -1, 0, 1, 2, 31, 63, 64, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**64, -(2**63), 10**19,
    1.5, -0.0, None, True, False, "", "x", "nan", "<f8", "<U9", "|O", "|V2147483647", "<M8[ns]", "C", "F", "1",
    "\x00", "../../etc/passwd", "UTC", "ff" * 40, [], [0], [1], [[0]], [-1], [10**9], {}, {"ints": 0}, {"floats": 0},
    {"texts": 0, "by": "\n", "count": 2}, {"strings": 0, "ends": 1}, {"of": "<f8", "shape": [2**40]},
]  # fmt: skip


def forge(
    document: object, buffers: Sequence[bytes] = (), *, sizes: Sequence[object] | None = None
) -> bytes:
    """A payload whose frame is right, with any document in it; its list of buffers is made to fit."""
    if isinstance(document, dict) and (sizes is not None or "buffers" in document):
        document = {
            **document,
            "buffers": list(sizes) if sizes is not None else [len(part) for part in buffers],
        }
    raw = document if isinstance(document, bytes) else json.dumps(document).encode("ascii")
    return frame(raw, buffers)


def frame(raw: bytes, buffers: Sequence[bytes] = ()) -> bytes:
    offsets, total = wire._layout(len(raw), [len(part) for part in buffers])
    payload = bytearray(total)
    payload[: wire.HEADER.size] = wire.HEADER.pack(
        wire.MAGIC, len(raw), total, wire._checksum(raw), 0
    )
    payload[wire.HEADER.size : wire.HEADER.size + len(raw)] = raw
    for offset, part in zip(offsets, buffers, strict=True):
        payload[offset : offset + len(part)] = part
    return bytes(payload)


def forge_nodes(*nodes: object, buffers: Sequence[bytes] = (), root: object = None) -> bytes:
    """A payload of these nodes, of which the first is the value "x"."""
    roots = [["x", [0] if root is None else root]]
    return forge(
        {"format": 1, "roots": roots, "nodes": list(nodes), "buffers": [], "notes": []}, buffers
    )


def take_apart(payload: bytes) -> tuple[dict[str, object], list[bytes]] | None:
    """Document and buffers of a payload; None if it is none."""
    try:
        _, length, *_ = wire.HEADER.unpack(payload[: wire.HEADER.size])
        document = json.loads(payload[wire.HEADER.size : wire.HEADER.size + length])
        offsets, _ = wire._layout(length, document["buffers"])
        return document, [
            payload[o : o + s] for o, s in zip(offsets, document["buffers"], strict=True)
        ]
    except (ValueError, KeyError, TypeError, wire.struct.error, RecursionError):
        return None


def seeds() -> list[bytes]:
    """A payload of each kind of value that this Python has."""
    sets = [values for _, make, is_here in golden.SETS if is_here() for values in make()]
    sets += library_values()
    return [wire.pack([pair]).to_bytes() for pair in sets]


def library_values() -> list[tuple[str, object]]:
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp
    from PIL import Image

    n = 40
    frame = pd.DataFrame(
        {
            "i": np.arange(n),
            "s": [f"é{k}" for k in range(n)],
            "o": pd.Series([None, "x", float("nan"), "y"] * 10, dtype=object),
            "c": pd.Categorical(["u", "v"] * 20),
            "t": pd.date_range("2020-01-01", periods=n, tz="Europe/Berlin"),
            "I": pd.Series([1, None] * 20, dtype="Int64"),
            "str": pd.Series(["a", None] * 20, dtype="string"),
            "p": pd.period_range("2020-01", periods=n, freq="M"),
        }
    )
    frame["iv"] = pd.cut(frame["i"], 3)
    matrix = sp.random(9, 9, 0.3, random_state=0)
    return [
        ("frame", frame),
        ("multi", frame[["i", "s", "c"]].set_index(["s", "c"])),
        ("series", pd.Series([1, 2], index=["a", "b"], name="q")),
        ("moments", pd.date_range("2020-01-01", periods=3)),
        ("scalars", [pd.Timestamp("2020-01-01", tz="Europe/Berlin"), pd.Timedelta("1s"), pd.NaT]),
        ("period", pd.Period("2020-01", "M")),
        *((name, matrix.asformat(name)) for name in ("csr", "csc", "bsr", "coo", "dia", "lil")),
        ("pictures", [Image.new(mode, (5, 3), 1) for mode in ("L", "1", "P", "I")]),
    ]  # fmt: skip


def mutate(payload: bytes, seed: int, other: bytes | None = None) -> bytes:
    """The payload with something in its document or buffers changed, and the frame made right again."""
    rng = random.Random(seed)
    apart = take_apart(payload)
    if apart is None or rng.random() < 0.1:
        return _with_bits_flipped(payload, rng)
    document, buffers = apart
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        choice = rng.random()
        if choice < 0.2 and buffers:
            k = rng.randrange(len(buffers))
            buffers[k] = _with_bits_flipped(buffers[k], rng)
        elif choice < 0.3 and buffers:
            k = rng.randrange(len(buffers))
            buffers[k] = buffers[k][: rng.randrange(len(buffers[k]) + 1)] + bytes(
                rng.choice([0, 0, 1, 8])
            )
        elif choice < 0.4 and other is not None and (apart := take_apart(other)) is not None:
            # A node of another value, whose references and buffers are not what they were.
            theirs = apart[0].get("nodes")
            ours = document.get("nodes")
            if isinstance(theirs, list) and isinstance(ours, list) and theirs and ours:
                ours[rng.randrange(len(ours))] = copy.deepcopy(rng.choice(theirs))
                buffers += apart[1][:2]
        else:
            _change_somewhere(document, rng)
    return forge(document, buffers)


def _change_somewhere(document: object, rng: random.Random) -> None:
    places: list[tuple[list[object] | dict[str, object], object]] = []
    todo = [document]
    while todo:
        part = todo.pop()
        keys = (
            range(len(part)) if isinstance(part, list) else part if isinstance(part, dict) else ()
        )
        for key in keys:
            places.append((part, key))
            todo.append(part[key])
    if not places:
        return
    part, key = rng.choice(places)
    choice = rng.random()
    if choice < 0.5:
        part[key] = copy.deepcopy(rng.choice(HOSTILE))
    elif choice < 0.6:
        del part[key]
    elif choice < 0.7 and isinstance(part, list):
        part.insert(key, copy.deepcopy(part[key]))
    elif type(part[key]) is int:
        part[key] += rng.choice([-1, 1, 7, -(2**31), 2**32])
    else:
        there, place = rng.choice(places)
        part[key] = copy.deepcopy(there[place])


def _with_bits_flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 3])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)
