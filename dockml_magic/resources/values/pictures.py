# -*- coding: utf-8 -*-
"""PIL's images on the wire, as the pixels that they are; without PIL they are read as arrays."""

from __future__ import absolute_import, division, print_function, unicode_literals

import importlib
import sys

from . import arrays, plain
from .wire import TEXT, Builder, Refused, _must

# Bytes of a pixel; 0: eight are one byte.
_MODES = {
    "1": 0,
    "L": 1,
    "P": 1,
    "LA": 2,
    "La": 2,
    "PA": 2,
    "RGB": 3,
    "YCbCr": 3,
    "LAB": 3,
    "HSV": 3,
    "RGBA": 4,
    "RGBX": 4,
    "RGBa": 4,
    "CMYK": 4,
    "I": 4,
    "F": 4,
    "I;16": 2,
    "I;16B": 2,
}
_KEPT = ("transparency", "icc_profile")


def find_writer(value, kind):
    image = sys.modules.get("PIL.Image")
    return _write if image is not None and isinstance(value, image.Image) else None


def _write(packer, value, number):
    mode = plain.name_text(value.mode)
    if mode not in _MODES:
        raise Refused(
            "%s is a picture of mode %s, which cannot be handed over."
            % (packer.place_of(number), mode),
            "Convert it with .convert('RGB').",
        )
    if getattr(value, "n_frames", 1) > 1:
        packer.note("picture of several frames: one")
    data = value.tobytes() if value.size[0] and value.size[1] else b""
    palette = value.getpalette() if mode in ("P", "PA") else None
    if value.info.get("exif"):
        packer.note("picture: without its EXIF")
    info = {
        plain.name_text(key): value.info[key] for key in _KEPT if value.info.get(key) is not None
    }
    return [
        "picture",
        [mode, [int(part) for part in value.size], packer.buffer(data)],
        [
            packer.element(
                bytes(bytearray(palette)) if palette else None, number, plain.step(".getpalette()")
            ),
            packer.element(info, number, plain.step(".info")),
        ],
    ]


def _read(reader, node):
    mode, size, number = node[1]
    _must(isinstance(mode, TEXT) and mode in _MODES, "a picture is none")
    width, height = plain.small_ints(size, 2)
    _must(0 <= width < 1 << 31 and 0 <= height < 1 << 31, "a picture is none")
    per = _MODES[mode]
    row = width * per if per else (width + 7) // 8
    data = reader.bytes(number)
    _must(len(data) == row * height, "a picture is not of its size")
    palette, info = reader.values(node[2])
    _must(palette is None or len(palette) <= 1024 and len(palette) % 3 == 0, "a palette is none")
    image = _find_image()
    if image is None:
        return _nearest(reader, mode, width, height, data)
    if not data:
        return image.new(str(mode), (width, height))
    found = image.frombytes(str(mode), (width, height), data)
    if palette is not None:
        found.putpalette(bytearray(palette) if mode == "P" else palette)
    reader.later(lambda: found.info.update({str(key): info[key] for key in info if key in _KEPT}))
    return found


def _find_image():
    try:
        return importlib.import_module("PIL.Image")
    except Exception:  # noqa: BLE001  (an installation that is broken raises anything)
        return None


def _nearest(reader, mode, width, height, data):
    numpy = arrays.find_numpy()
    if numpy is None or mode in ("1", "I;16B"):
        reader.note("picture: dict of mode, size and data (no PIL here)")
        return {"mode": mode, "size": (width, height), "data": data}
    reader.note("picture of mode %s: array (no PIL here)" % mode)
    kinds = {"I": "<i4", "F": "<f4", "I;16": "<u2"}
    found = numpy.frombuffer(data, str(kinds.get(mode, "u1"))).copy()
    per = 1 if mode in kinds else _MODES[mode]
    return found.reshape((height, width) if per == 1 else (height, width, per))


BUILDERS = {"picture": Builder(_read)}
