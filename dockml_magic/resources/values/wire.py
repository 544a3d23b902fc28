# -*- coding: utf-8 -*-
"""The frame, the document, and the walk through a value; what each type is, is in the modules beside.

A payload is a header, a document (ASCII JSON) and buffers. The document is a flat table of nodes that
refer to each other by number, so neither depth nor cycles need recursion::

    {"format": 1, "roots": [[name, element], ...], "nodes": [node, ...],
     "buffers": [size, ...], "notes": [text, ...]}

    node     [kind, detail, items, ...]   detail: any JSON, without references
    items    [element, ...]  or one of the packed forms, an object: {"ints": buffer} ...
    element  null, true, 7, 1.5, "text": itself;  [i]: node i

Whoever reads treats a payload as hostile: everything is checked before it is used, and nothing is
allocated that the payload's own length does not account for.
"""

from __future__ import absolute_import, division, print_function, unicode_literals

import binascii
import gc
import importlib
import json
import mmap
import os
import re
import struct
import sys

FORMAT = 1
MAGIC = b"DockmlV\x01"
HEADER = struct.Struct(str("<8sQQII"))  # magic, length of document, total, CRC-32 of document, 0
ALIGNED = 64
FILE_PIECE = 1 << 22  # bytes written at a time, between two looks for an interrupt
LARGE_COPY = 1 << 22  # bytes from which on a copy is announced before it is made
PIECE = 1 << 24  # bytes copied at a time where a copy holds the interpreter's lock

MOST_NOTES = 100
LONGEST_NOTE = 400

PY2 = sys.version_info[0] == 2
TEXT = type("")
LONG = int if not PY2 else long  # noqa: F821
INTS = (int, LONG)


class Refused(Exception):
    """A value that cannot be handed over.

    Attributes
    ----------
    message
        The variable and the place in it, and its type.
    hint
        What to convert it to.
    """

    def __init__(self, message, hint=""):
        Exception.__init__(self, message, hint)
        self.message = message
        self.hint = hint

    def __str__(self):
        said = self.message + (" " + self.hint if self.hint else "")
        return said.encode("utf-8", "replace") if PY2 else said


class Damaged(ValueError):
    """A payload that is not one of ours, or not as it was sent."""


# ---------------------------------------------------------------------------------------------
# Writing


class Packed(object):
    """What one or several values are on the wire."""

    def __init__(self, document, buffers, notes):
        self.document = document
        self.notes = notes
        self._buffers = buffers
        self.sizes = [buffer.size for buffer in buffers]
        self._offsets, self.total = _layout(len(document), self.sizes)

    def write_into(self, view):
        """Lay header, document and buffers out in a writable buffer of at least `total` bytes."""
        window = view if isinstance(view, Window) else Window(view)
        window.write(
            0, HEADER.pack(MAGIC, len(self.document), self.total, _checksum(self.document), 0)
        )
        window.write(HEADER.size, self.document)
        end = HEADER.size + len(self.document)
        for buffer, offset in zip(self._buffers, self._offsets):
            window.write(end, bytes(bytearray(offset - end)))  # nothing of what was there before
            if buffer.size:
                buffer.write(window, offset)
            end = offset + buffer.size

    def to_bytes(self):
        """The payload as bytes; the space between buffers is zero."""
        whole = bytearray(self.total)
        self.write_into(whole)
        return bytes(whole)


class Window(object):
    """A writable buffer, on Python 2 also an mmap, which is no memoryview's there."""

    is_file = False

    def __init__(self, view):
        self.view = view
        if not PY2:
            view = memoryview(view)
            if view.format != "B" or view.ndim != 1:
                view = view.cast("B")
        self._cells = view

    def write(self, offset, data):
        if PY2:
            data = data if isinstance(data, bytes) else bytes(data)
        else:
            data = memoryview(data).cast("B")
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            self._cells[offset + start : offset + start + len(piece)] = piece


class File(Window):
    """A file that is shared memory of which nothing was touched yet.

    Writing to it takes half the time of writing to its mapping: its pages are neither cleared before nor mapped.
    What cannot be written in one piece goes through a mapping, `view`.
    """

    is_file = True

    def __init__(self, descriptor, size):
        self._descriptor = descriptor
        self._size = size
        self._mapping = None

    @property
    def view(self):
        if self._mapping is None:
            self._mapping = mmap.mmap(self._descriptor, self._size)
        return self._mapping

    def write(self, offset, data):
        data = memoryview(data).cast("B")
        for start in range(0, len(data), FILE_PIECE):
            piece = data[start : start + FILE_PIECE]
            while len(piece):
                written = os.pwrite(self._descriptor, piece, offset + start)
                piece, start = piece[written:], start + written

    def close(self):
        if self._mapping is not None:
            self._mapping.close()


class Bytes(object):
    """A buffer that is bytes already."""

    def __init__(self, data):
        self.data = data
        self.size = len(data)

    def write(self, window, offset):
        window.write(offset, self.data)


def pack(values):
    """Make one payload of several named values; what they share stays shared.

    Parameters
    ----------
    values
        Pairs of a name and a value.

    Returns
    -------
    Packed

    Raises
    ------
    Refused
        A value, or something in it, cannot be handed over.
    """
    packer = Packer()
    with _WithoutCollection():
        roots = [[_text_of_name(name), packer.element(value, None, name)] for name, value in values]
        packer.run()
    document = {
        "format": FORMAT,
        "roots": roots,
        "nodes": packer.nodes,
        "buffers": [buffer.size for buffer in packer.buffers],
        "notes": packer.notes,
    }
    return Packed(_ENCODER.encode(document).encode("ascii"), packer.buffers, packer.notes)


_ENCODER = json.JSONEncoder(
    ensure_ascii=True,
    allow_nan=False,
    sort_keys=True,
    separators=(str(","), str(":")),
    check_circular=False,
)


class Simpler(object):
    """Writes a value as a simpler one: `simplify(packer, value, parent, step)` gives that."""

    def __init__(self, simplify):
        self.simplify = simplify


class Step(object):
    """One step of a place, told only when something is refused."""

    __slots__ = ("form", "key")

    def __init__(self, form, key):
        self.form = form
        self.key = key

    def told(self):
        return self.form.replace("%", plain.short(self.key))


class Packer(object):
    """Turns values into nodes and buffers. Those who write a type get it, and the node's number."""

    def __init__(self):
        self.nodes = []
        self.buffers = []
        self.notes = []
        self._noted = set()
        self._writers = {}  # by type
        self._values = []  # what node i is of; keeps temporary objects alive, so that ids stay theirs
        self._kept = []
        self._places = []  # (number of the node it was found in or None, step)
        self._known = {}  # id of a value: its node

    def element(self, value, parent, step):
        """The element that stands for a value, found at `step` of node `parent`."""
        kind = type(value)
        if kind is TEXT:
            if len(value) <= plain.LONGEST_TEXT and not plain.has_surrogates(value):
                return value
        elif value is None or kind is bool:
            return value
        elif kind is int or kind is LONG:
            if -0x8000000000000000 <= value <= 0x7FFFFFFFFFFFFFFF:
                return value
        elif kind is float:
            if value - value == 0:
                return value
        known = self._known.get(id(value))
        if known is not None:
            return [known]
        writer = self._writers.get(kind)
        if writer is None:
            writer = self._writers[kind] = self._find_writer(value, kind, parent, step)
        if isinstance(writer, Simpler):
            found = self.element(writer.simplify(self, value, parent, step), parent, step)
            if isinstance(found, list):
                self._known[id(value)] = found[0]  # the same object again is the same node
                self._kept.append(value)
            return found
        number = len(self.nodes)
        self.nodes.append(writer)
        self._values.append(value)
        self._places.append((parent, step))
        self._known[id(value)] = number
        return [number]

    def items(self, values, parent, step=None):
        """Items for a list of values; `step(k)` says where the k-th was found."""
        if len(values) >= plain.PACKED_FROM:
            packed = plain.packed_items(self, values)
            if packed is not None:
                return packed
        element = self.element
        if step is None:
            return [element(value, parent, Step("[%]", k)) for k, value in enumerate(values)]
        return [element(value, parent, step(k)) for k, value in enumerate(values)]

    def buffer(self, data):
        """Add a buffer (bytes, or what has `size` and `write`); its number."""
        self.buffers.append(Bytes(data) if isinstance(data, bytes) else data)
        return len(self.buffers) - 1

    def note(self, text):
        if text not in self._noted and len(self.notes) < MOST_NOTES:
            self._noted.add(text)
            self.notes.append(text[:LONGEST_NOTE])

    def place(self, parent, step):
        """Where something is, as Python would write it: ``summary['model'][0]``."""
        steps = []
        while parent is not None:
            steps.append(step)
            parent, step = self._places[parent]
        told = _text_of_name(step)
        for step in reversed(steps[-20:]):
            told += step.told()
        return told if len(steps) <= 20 else told + "…"

    def place_of(self, number):
        return self.place(*self._places[number])

    def run(self):
        number = 0
        while number < len(self.nodes):
            writer = self.nodes[number]
            self.nodes[number] = writer(self, self._values[number], number)
            number += 1

    def _find_writer(self, value, kind, parent, step):
        writer = plain.find_writer(value, kind)
        if writer is not None:
            return writer
        for module in _loaded_modules():
            writer = module.find_writer(value, kind)
            if writer is not None:
                return writer
        writer = plain.find_base_writer(value, kind)
        if writer is not None:
            return writer
        message, hint = plain.refusal(value, kind, self.place(parent, step))
        raise Refused(message, hint)


# ---------------------------------------------------------------------------------------------
# Reading


class Unpacked(object):
    """What arrived.

    Attributes
    ----------
    values
        By name.
    notes
        What differs from what was sent, one line each.
    views
        Whether some of it is a read-only view of the payload.
    """

    def __init__(self, values, notes, views):
        self.values = values
        self.notes = notes
        self.views = views


def unpack(payload, copy=False, check_room=None):
    """Read a payload.

    Parameters
    ----------
    payload
        bytes, a memoryview or an mmap. Numeric data becomes views of it, which keep it alive.
    copy
        No views: private, writable copies.
    check_room
        Called with the bytes of a large copy before it is made; raises a MemoryError where there is no room for it.
        Arrays of a `copy` are for the caller to check.

    Raises
    ------
    Damaged
        It is not a payload of ours.
    """
    reader = Reader(payload, copy, check_room)
    try:
        with _WithoutCollection():
            return reader.read()
    except (Damaged, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  (libraries have exceptions of their own)
        raise Damaged("what it says cannot be: %s" % plain.short(error))


class Reader(object):
    """Turns nodes into values. Those who build a kind get it, the node's detail and its items."""

    def __init__(self, payload, copy, check_room=None):
        self.copy = copy
        self._check_room = check_room
        self.views = 0
        self.notes = []
        self._noted = set()
        self._later = []
        if PY2:
            # NumPy there reads bytes and mmaps, but no memoryviews.
            self._payload = payload.tobytes() if isinstance(payload, memoryview) else payload
            self.length = len(self._payload)
        else:
            self._payload = memoryview(payload)
            if self._payload.format != "B" or self._payload.ndim != 1:
                self._payload = self._payload.cast("B")
            self.length = self._payload.nbytes
        self.nodes = []
        self.built = []
        self.is_built = bytearray()
        self._weights = {}  # of the tuples: parts, depth

    def read(self):
        document = self._document()
        notes = document["notes"]
        _must(isinstance(notes, list) and len(notes) <= MOST_NOTES, "its notes are none")
        for note in notes:
            _must(isinstance(note, TEXT), "a note is no text")
            self.note(note)
        self.nodes = document["nodes"]
        _must(isinstance(self.nodes, list), "it has no list of nodes")
        for node in self.nodes:
            _must(
                isinstance(node, list) and len(node) >= 2 and isinstance(node[0], TEXT),
                "a node is none",
            )
        self.built = [None] * len(self.nodes)
        self.is_built = bytearray(len(self.nodes))
        self._build_all()
        values = {}
        roots = document["roots"]
        _must(isinstance(roots, list), "it has no list of roots")
        for root in roots:
            _must(
                isinstance(root, list) and len(root) == 2 and isinstance(root[0], TEXT),
                "a root is none",
            )
            name = str(root[0]) if PY2 and _is_ascii(root[0]) else root[0]
            _must(name not in values, "a name comes twice")
            values[name] = self.value(root[1])
        return Unpacked(values, self.notes, self.views > 0)

    def note(self, text):
        text = plain.printable(text)[:LONGEST_NOTE]
        if text not in self._noted and len(self.notes) < 2 * MOST_NOTES:
            self._noted.add(text)
            self.notes.append(text)

    # What builders use

    def value(self, element):
        """The value of an element whose node is built."""
        if isinstance(element, list):
            _must(
                len(element) == 1 and type(element[0]) is int and 0 <= element[0] < len(self.nodes),
                "a reference leads nowhere",
            )
            _must(self.is_built[element[0]], "a value contains itself where none can")
            return self.built[element[0]]
        _must(not isinstance(element, dict), "an element is none")
        return element

    def values(self, items):
        """The list of values of some items."""
        if isinstance(items, dict):
            return plain.unpacked_items(self, items)
        _must(isinstance(items, list), "items are none")
        value = self.value
        return [
            value(element) if isinstance(element, (list, dict)) else element for element in items
        ]

    def bytes(self, number):
        """A private copy of a buffer."""
        offset, size = self.extent(number)
        if size >= LARGE_COPY and self._check_room is not None:
            self._check_room(size)
        found = self._payload[offset : offset + size]
        return found if isinstance(found, bytes) else bytes(found)

    def extent(self, number):
        """Where a buffer is: offset, size."""
        _must(type(number) is int and 0 <= number < len(self._sizes), "a buffer is none of its own")
        return self._offsets[number], self._sizes[number]

    @property
    def payload(self):
        return self._payload

    def writable(self, array):
        """An array that may be written to: itself where the payload is private, else a copy."""
        if array.flags.writeable:
            return array
        self.views -= 1
        if not PY2 and not self._payload.readonly:
            array.flags.writeable = True
            return array
        return array.copy()

    def later(self, action):
        """Do something when all containers are filled."""
        self._later.append(action)

    # Its own

    def _document(self):
        _must(self.length >= HEADER.size, "it is shorter than a header")
        head = self._payload[: HEADER.size]
        magic, length, total, checksum, zero = HEADER.unpack(
            head if isinstance(head, bytes) else bytes(head)
        )
        if magic[:7] == MAGIC[:7] and magic != MAGIC:
            raise Damaged("it is of another version of dockml_magic; use the same on both sides")
        _must(magic == MAGIC and zero == 0, "it does not begin as ours do")
        _must(total <= self.length, "it is cut off: %d of %d bytes" % (self.length, total))
        _must(length <= total - HEADER.size, "its document is longer than itself")
        raw = self._payload[HEADER.size : HEADER.size + length]
        raw = raw if isinstance(raw, bytes) else bytes(raw)
        _must(_checksum(raw) == checksum, "its document is not as it was written")
        try:
            text = raw.decode("ascii")
            document = (_SLOW_DECODER if _LONG_NUMBER.search(text) else _DECODER).decode(text)
        except (ValueError, RuntimeError) as error:  # RecursionError is a RuntimeError
            raise Damaged("its document is no JSON of ours: %s" % plain.short(error))
        _must(
            isinstance(document, dict)
            and set(document) == {"format", "roots", "nodes", "buffers", "notes"},
            "its document is none",
        )
        _must(
            document["format"] == FORMAT,
            "it is of another version of dockml_magic; use the same on both sides",
        )
        sizes = document["buffers"]
        _must(isinstance(sizes, list), "it has no list of buffers")
        for size in sizes:
            _must(type(size) in INTS and 0 <= size <= total, "a buffer's size cannot be")
        self._sizes = sizes
        self._offsets, needed = _layout(length, sizes)
        _must(needed == total, "its buffers do not fill it")
        return document

    def _build_all(self):
        """Build mutable containers empty, what cannot change after its parts, and then fill the first."""
        nodes, built, is_built = self.nodes, self.built, self.is_built
        builders = [None] * len(nodes)
        known = {}
        for number, node in enumerate(nodes):
            builder = known.get(node[0])
            if builder is None:
                builder = known[node[0]] = _find_builder(node[0])
            builders[number] = builder
            if builder.shell is not None:
                built[number] = builder.shell(self, node)
                is_built[number] = 1
        opened = bytearray(len(nodes))
        for first in range(len(nodes)):
            stack = [first]
            while stack:
                number = stack[-1]
                if is_built[number]:
                    stack.pop()
                    continue
                missing = self._missing_parts(nodes[number])
                if missing:
                    _must(not opened[number], "a value contains itself where none can")
                    opened[number] = 1
                    stack.extend(missing)
                    continue
                if nodes[number][0] in _HASHED:
                    self._must_be_hashable(nodes[number])
                built[number] = builders[number].build(self, nodes[number])
                is_built[number] = 1
                if nodes[number][0] == "tuple":
                    self._weigh(number)
                stack.pop()
        for number, node in enumerate(nodes):
            if builders[number].fill is not None:
                if node[0] in _HASHED:
                    self._must_be_hashable(node)
                builders[number].fill(self, node, built[number])
        for action in self._later:
            action()

    def _weigh(self, number):
        """Note how many parts a tuple has, those of its parts included, and how deep it is."""
        weight, depth = 1, 1
        items = self.nodes[number][2]
        for element in items if isinstance(items, list) else ():
            if isinstance(element, list):
                theirs = self._weights.get(element[0], (1, 0))
                weight += theirs[0]
                depth = max(depth, theirs[1] + 1)
        self._weights[number] = (min(weight, 1 << 60), depth)

    def _must_be_hashable(self, node):
        """Refuse tuples as keys whose hash would take for ever, or all of the stack."""
        if not self._weights or len(node) < 3:
            return
        weight = 0
        for element in node[2] if isinstance(node[2], list) else ():
            if isinstance(element, list):
                theirs = self._weights.get(element[0], (1, 0))
                weight += theirs[0]
                _must(theirs[1] <= _DEEPEST_KEY, "a key is too deep")
        _must(weight <= 16 * self.length + 10000, "a key has too many parts")

    def _missing_parts(self, node):
        missing = []
        for items in node[2:]:
            if not isinstance(items, list):
                continue
            for element in items:
                if isinstance(element, list):
                    _must(
                        len(element) == 1
                        and type(element[0]) is int
                        and 0 <= element[0] < len(self.nodes),
                        "a reference leads nowhere",
                    )
                    if not self.is_built[element[0]]:
                        missing.append(element[0])
        return missing


_HASHED = ("set", "frozenset", "dict", "ordered", "counter", "vector")
_DEEPEST_KEY = 500


class Builder(object):
    """How a kind of node is read: `build` it, or make its `shell` and `fill` that in the end."""

    def __init__(self, build=None, shell=None, fill=None):
        self.build = build
        self.shell = shell
        self.fill = fill


def _find_builder(kind):
    builder = plain.BUILDERS.get(kind)
    if builder is not None:
        return builder
    for module, kinds in _MODULES.values():
        if kind in kinds:
            return _import(module).BUILDERS[kind]
    raise Damaged("it has a kind of value that is unknown here: %s" % plain.short(kind))


# ---------------------------------------------------------------------------------------------
# Both


# Library: the module here that knows its types, and the kinds of node that it reads.
_MODULES = {
    "PIL": ("pictures", ("picture",)),
    "datetime": ("moments", ("timedelta", "date", "time", "datetime", "zone")),
    "numpy": ("arrays", ("array", "objects", "scalar", "masked", "maskedconstant")),
    "pandas": (
        "frames",
        (
            "vector",
            "index",
            "range-index",
            "multi-index",
            "series",
            "frame",
            "pandas-array",
            "timestamp",
            "delta",
            "period",
            "interval",
            "missing",
        ),
    ),
    "scipy": ("sparse", ("sparse",)),
    "tensorflow": ("tensors", ("tensor",)),
    "torch": ("tensors", ("tensor",)),
}


def _import(name):
    return importlib.import_module("." + name, __package__)


def _loaded_modules():
    """Those of our modules whose library this Python has loaded."""
    found = []
    for library in sorted(_MODULES):
        name = _MODULES[library][0]
        if sys.modules.get(library) is not None and name not in found:
            found.append(name)
    return [_import(name) for name in found]


def _layout(length, sizes):
    """Where buffers are behind a document of some length, and how long it all is."""
    offsets = []
    end = HEADER.size + length
    for size in sizes:
        start = -(-end // ALIGNED) * ALIGNED
        offsets.append(start)
        end = start + size
    return offsets, end


def _checksum(document):
    return binascii.crc32(document) & 0xFFFFFFFF


def _must(holds, wrong):
    if not holds:
        raise Damaged(wrong)


def _text_of_name(name):
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else TEXT(name)


def _is_ascii(text):
    return all(ord(letter) < 128 for letter in text)


def _integer(digits):
    # Longer ones are nodes; here they would cost time that grows with their square.
    _must(len(digits) <= 20, "a number is too long")
    return int(digits)


def _constant(name):
    raise Damaged("%s is no number of JSON" % name)


# Perhaps in a text; then each number is looked at.
_LONG_NUMBER = re.compile("[0-9]{21}")
_DECODER = json.JSONDecoder(parse_constant=_constant)
_SLOW_DECODER = json.JSONDecoder(parse_constant=_constant, parse_int=_integer)


class _WithoutCollection(object):
    """Many containers are made, and none is garbage: collecting would double the time."""

    def __enter__(self):
        self._was = gc.isenabled()
        gc.disable()

    def __exit__(self, *_):
        if self._was:
            gc.enable()


from . import plain  # noqa: E402  (it needs the names above)
