# -*- coding: utf-8 -*-
"""SciPy's sparse matrices on the wire; without SciPy they are read as a dict of their arrays."""

from __future__ import absolute_import, division, print_function, unicode_literals

import importlib
import sys

from . import arrays, plain
from .wire import Builder, _must

_PARTS = {
    "csr": ("data", "indices", "indptr"),
    "csc": ("data", "indices", "indptr"),
    "bsr": ("data", "indices", "indptr"),
    "coo": ("data", "row", "col"),
    "dia": ("data", "offsets"),
}


def find_sparse():
    """scipy.sparse, or None where there is none that can be loaded."""
    try:
        return importlib.import_module("scipy.sparse")
    except Exception:  # noqa: BLE001  (an installation that is broken raises anything)
        return None


def find_writer(value, kind):
    sparse = sys.modules.get("scipy.sparse")
    return _write if sparse is not None and sparse.issparse(value) else None


def _write(packer, value, number):
    wanted = value.format
    if len(value.shape) != 2:
        packer.note("sparse array of %d dimensions: dense" % len(value.shape))
        return arrays.write_array(packer, value.toarray(), number)
    if wanted not in _PARTS:  # lil, dok: lists and dicts
        value = value.tocsr()
        value.sort_indices()
    names = _PARTS[value.format]
    return [
        "sparse",
        [wanted, value.format, [int(part) for part in value.shape], _is_array(value)],
        packer.items(
            [getattr(value, name) for name in names], number, lambda k: plain.step("." + names[k])
        ),
    ]


def _is_array(value):
    return type(value).__name__.endswith("_array")


def _read(reader, node):
    wanted, form, shape, is_array = node[1]
    # Not from any to any: of a few numbers that could make more than there is memory for.
    is_kept = wanted == form or form == "csr" and wanted in ("lil", "dok")
    _must(form in _PARTS and is_kept, "a sparse matrix is none")
    shape = arrays.shape_of(shape)
    _must(len(shape) == 2 and type(is_array) is bool, "a sparse matrix is none")
    parts = reader.values(node[2])
    _must(len(parts) == len(_PARTS[form]), "a sparse matrix is none")
    numpy, sparse = arrays.find_numpy(), find_sparse()
    if numpy is None or sparse is None:
        reader.note("sparse matrix: dict of its arrays (no SciPy here)")
        found = dict(zip([str(name) for name in _PARTS[form]], parts))
        found.update({str("format"): str(form), str("shape"): shape})
        return found
    for part in parts:
        _must(isinstance(part, numpy.ndarray) and part.dtype.kind != "O", "a sparse matrix is none")
    data = parts[0]
    # Where things are is checked on copies of our own: nobody can change them any more.
    places = [numpy.array(part) for part in parts[1:]]
    for part in places:
        _must(part.ndim == 1 and part.dtype.kind in "iu", "a sparse matrix is none")
    _CHECKS[form](numpy, data, places, shape)
    make = getattr(
        sparse, form + ("_array" if is_array and hasattr(sparse, form + "_array") else "_matrix")
    )
    if form == "coo":
        found = make((data, (places[0], places[1])), shape=shape)
    else:
        found = make((data,) + tuple(places), shape=shape)
    return found if wanted == form else found.asformat(str(wanted))


def _within(numpy, part, end):
    _must(
        not len(part) or 0 <= int(part.min()) and int(part.max()) < end,
        "an index of a sparse matrix is nowhere",
    )


def _check_compressed(numpy, data, places, shape, rows, columns):
    indices, ends = places
    _must(len(ends) == rows + 1 and int(ends[0]) == 0, "a sparse matrix is none")
    _must(
        bool((ends[1:] >= ends[:-1]).all()) and int(ends[-1]) == len(indices) == len(data),
        "an index of a sparse matrix is nowhere",
    )
    _within(numpy, indices, columns)


def _check_rows(numpy, data, places, shape):
    _must(data.ndim == 1, "a sparse matrix is none")
    _check_compressed(numpy, data, places, shape, shape[0], shape[1])


def _check_columns(numpy, data, places, shape):
    _must(data.ndim == 1, "a sparse matrix is none")
    _check_compressed(numpy, data, places, shape, shape[1], shape[0])


def _check_blocks(numpy, data, places, shape):
    _must(data.ndim == 3 and data.shape[1] > 0 and data.shape[2] > 0, "a sparse matrix is none")
    _must(
        shape[0] % data.shape[1] == 0 and shape[1] % data.shape[2] == 0, "a sparse matrix is none"
    )
    _check_compressed(
        numpy, data, places, shape, shape[0] // data.shape[1], shape[1] // data.shape[2]
    )


def _check_coordinates(numpy, data, places, shape):
    _must(
        data.ndim == 1 and len(data) == len(places[0]) == len(places[1]), "a sparse matrix is none"
    )
    _within(numpy, places[0], shape[0])
    _within(numpy, places[1], shape[1])


def _check_diagonals(numpy, data, places, shape):
    _must(data.ndim == 2 and data.shape[0] == len(places[0]), "a sparse matrix is none")
    offsets = places[0]
    _must(len(numpy.unique(offsets)) == len(offsets), "a sparse matrix is none")
    _must(
        not len(offsets) or -shape[0] < int(offsets.min()) and int(offsets.max()) < shape[1],
        "an index of a sparse matrix is nowhere",
    )


_CHECKS = {
    "csr": _check_rows,
    "csc": _check_columns,
    "bsr": _check_blocks,
    "coo": _check_coordinates,
    "dia": _check_diagonals,
}

BUILDERS = {"sparse": Builder(_read)}
