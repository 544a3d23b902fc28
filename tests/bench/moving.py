"""Runs in a notebook's own kernel: moves values by every way there is, and says how long each took.

Two containers, `one` and `two`, are started by our API; every way uses their kernels and this one. What is moved
is checked afterwards, outside the time.
"""

from __future__ import annotations

import gc
import mmap
import os
import secrets
import time
from pathlib import Path
from typing import Any

import numpy

import dockml_magic
from dockml_magic import segments
from dockml_magic.doors import KEEPER
from dockml_magic.exchange import hand_over

HOST, ONE, TWO = "host", "one", "two"

_SAVE = {
    "npy": "numpy.save({path!r}, {name})",
    "pickle": "with open({path!r}, 'wb') as file: pickle.dump({name}, file, protocol=4)",
    "arrow": (
        "table = pyarrow.Table.from_pandas({name}, preserve_index=False)\n"
        "with pyarrow.OSFile({path!r}, 'wb') as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:\n"
        "    writer.write_table(table)\n"
        "del table"
    ),
}
_LOAD = {
    "npy": "{name} = numpy.load({path!r})",
    "pickle": "with open({path!r}, 'rb') as file: {name} = pickle.load(file)",
    "arrow": (
        "with pyarrow.memory_map({path!r}) as source:\n"
        "    {name} = pyarrow.ipc.open_file(source).read_all().to_pandas()"
    ),
}
_IMPORTS = "import gc, pickle\nimport numpy, pandas, pyarrow, pyarrow.ipc"

_MAKE = {
    "array": "numpy.arange({n} // 4, dtype='float32')",
    "dict": "{{'a': 1, 'b': [1.5, None, 'text'], 'c': {{'d': b'bytes', 2: True}}}}",
    "frame": (
        "pandas.DataFrame({{"
        "'i': numpy.arange({n}), 'j': numpy.arange({n}, dtype='int32') % 1000, 'f': numpy.arange({n}) / 7, "
        "'g': numpy.arange({n}, dtype='float32'), 'b': numpy.arange({n}) % 3 == 0, "
        "'t': pandas.date_range('2020-01-01', periods={n}, freq='s'), "
        "'d': pandas.to_timedelta(numpy.arange({n}), unit='s'), "
        "'c': pandas.Categorical.from_codes(numpy.arange({n}) % 4, ['north', 'east', 'south', 'west']), "
        "'s': pandas.Series(['name %d' % (i % 50000) for i in range({n})]), "
        "'u': pandas.Series(['k%d' % i for i in range({n})])}})"
    ),
}
_CHECK = {
    "array": (
        "assert {name}.shape == ({n} // 4,) and {name}.dtype == 'float32'\n"
        "assert {name}[-1] == numpy.float32({n} // 4 - 1)"
    ),
    "dict": "assert {name} == {make}",
    "frame": "assert {name}.shape == ({n}, 10) and {name}['u'].iloc[-1] == 'k%d' % ({n} - 1)",
}


class Mover:
    """This kernel and two containers.

    Parameters
    ----------
    image : str
        Has NumPy, pandas and pyarrow.
    folder : str
        The workspace: the same path on all sides.
    """

    def __init__(self, image: str, folder: str) -> None:
        self.folder = Path(folder)
        self.places: dict[str, Any] = {HOST: {}}
        self.kind, self.n = "", 0
        self._run(HOST, _IMPORTS)
        for name in (ONE, TWO):
            self.places[name] = dockml_magic.start(image, folder=self.folder)
            self._run(name, _IMPORTS)

    def _run(self, place: str, code: str) -> None:
        if place == HOST:
            exec(code, self.places[HOST])
        else:
            self.places[place].run(code)

    def make(self, kind: str, n: int) -> None:
        """Make the value `x` on the host and in the first container; all others go."""
        self.kind, self.n = kind, n
        for place in self.places:
            self._run(place, "x = y = None\ngc.collect()")
            if place != TWO:
                self._run(place, "x = " + _MAKE[kind].format(n=n))
        self.forget()

    def forget(self) -> None:
        """Give back the shared memory that nobody uses, so that the next hand-over gets new pages."""
        for place in self.places:
            self._run(place, "y = None\ngc.collect()")
        gc.collect()
        kept = segments.IDLE_TIME
        segments.IDLE_TIME = -1.0
        try:
            for _ in range(2):
                KEEPER.pool.sweep()
        finally:
            segments.IDLE_TIME = kept

    def move(self, way: str, source: str, target: str) -> float:
        """Return the seconds that a way took; what arrived as `y` is right."""
        path = self.folder / f"value-{secrets.token_hex(4)}.npy"  # NumPy adds it anyway
        if way == "first":
            self.forget()
        began = time.perf_counter()
        if way in ("first", "again"):
            self._hand_over(source, target)
        else:
            self._run(source, _SAVE[way].format(path=str(path), name="x"))
            self._run(target, _LOAD[way].format(path=str(path), name="y"))
        seconds = time.perf_counter() - began
        path.unlink(missing_ok=True)
        make = _MAKE[self.kind].format(n=self.n)
        self._run(target, _CHECK[self.kind].format(n=self.n, name="y", make=make))
        return seconds

    def _hand_over(self, source: str, target: str) -> None:
        if source == HOST:
            self.places[target].put("y", self.places[HOST]["x"])
        elif target == HOST:
            self.places[HOST]["y"] = self.places[source].get("x")
        else:
            hand_over(self.places[source].side, self.places[target].side, {"x": "y"})

    def empty(self) -> float:
        """Return the seconds of an empty cell in a container."""
        began = time.perf_counter()
        self.places[ONE].run("pass")
        return time.perf_counter() - began

    def by_hand(self, *, warm: bool) -> float:
        """Return the seconds of copying the array once into a new file of shared memory.

        `warm`: of copying it there again, where all pages have been touched.
        """
        value = self.places[HOST]["x"]
        path = Path("/dev/shm") / f"dockml-bench-{os.getpid()}"
        try:
            began = time.perf_counter()
            with path.open("w+b") as file:
                file.truncate(value.nbytes)
                with mmap.mmap(file.fileno(), value.nbytes) as mapped:
                    target = numpy.frombuffer(mapped, dtype=value.dtype)
                    numpy.copyto(target, value)
                    if warm:
                        began = time.perf_counter()
                        numpy.copyto(target, value)
                    seconds = time.perf_counter() - began
                    assert target[-1] == value[-1]
                    del target
            return seconds
        finally:
            path.unlink(missing_ok=True)

    def growth(self, n: int) -> float:
        """Return by how many MB this kernel has grown at most in a hand-over between the containers.

        True in a kernel that has had no large values of its own.
        """
        self._run(ONE, "x = " + _MAKE["array"].format(n=n))
        before = _peak()
        self._hand_over(ONE, TWO)
        return (_peak() - before) / 1000

    def stop(self) -> None:
        """Stop the containers."""
        for name in (ONE, TWO):
            self.places.pop(name).stop()


def _peak() -> float:
    """Return the most kB that this process ever had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1])
    raise AssertionError
