"""Cells with much output, and whether all of it came. The standard library: peers' front ends run it too."""

from __future__ import annotations

import base64
import inspect
from itertools import count

from tests.bench.clients import Cell

FULL = {"lines": 20_000, "bytes": 50_000_000, "images": 1_000}
QUICK = {"lines": 2_000, "bytes": 5_000_000, "images": 50}


def image(number: int) -> bytes:
    """Return the bytes of an image of 100 kB, each different; its source runs in the kernels too."""
    return b"\x89PNG\r\n\x1a\n" + b"%08d" % number * 12_499


def prelude(kind: str, n: int) -> str:
    """Return the cell to run once before."""
    if kind == "bytes":
        return f"shown = ''.join('%07d.' % i for i in range({n // 8}))"
    return (
        "from IPython.display import Image\n" + inspect.getsource(image)
        if kind == "images"
        else "pass"
    )


def cell(kind: str, n: int) -> str:
    """Return the cell that is measured."""
    if kind == "lines":
        return f"for i in range({n}): print('line', i)"
    if kind == "bytes":
        return "display({'text/plain': shown}, raw=True)"
    return f"for i in range({n}): display(Image(image(i), format='png'))"


def is_complete(kind: str, n: int, ran: Cell) -> bool:
    """Tell whether all of the output came, in its order."""
    if kind == "lines":
        return ran.stdout == "".join(f"line {i}\n" for i in range(n))
    if kind == "bytes":
        return ran.text == "".join(f"{i:07d}." for i in range(n // 8))
    came = (base64.b64decode(output["data"]["image/png"]) for output in ran.outputs)
    return len(ran.outputs) == n and all(map(bytes.__eq__, came, map(image, count())))
