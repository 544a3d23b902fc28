"""Fuzz the reader of payloads, guided by coverage: python -m tests.fuzz [--seconds N] [--runs N] [--seed N] [FOLDER].

FOLDER keeps what was found to reach new code, for the next run. What must hold: a payload is read or refused with
`Damaged`; nothing is executed, no file or process opened, no memory taken that the payload does not account for.
"""

import argparse
import contextlib
import importlib
import os
import resource
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["dockml_magic.resources.values"]):
    from dockml_magic.resources import values

    for name in ("arrays", "frames", "moments", "pictures", "plain", "sparse", "tensors", "wire"):
        importlib.import_module("dockml_magic.resources.values." + name)

from tests.fuzz import payloads

MOST_MEMORY = 512 << 20  # above what it takes after the seeds
NEVER = (
    "exec",
    "compile",
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "pickle.find_class",
    "socket.connect",
)
watching = False


class Executed(BaseException):
    """What arrived made Python do what it must never do."""


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not watching:
        return
    if event == "exec" and arguments[0].co_name == "<module>":
        return  # a library that loads a module of its own
    if event in NEVER:
        raise Executed(f"{event} {arguments!r}"[:500])
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise Executed(f"{event} {arguments!r}"[:500])


def read(payload: bytes) -> None:
    global watching
    watching = True
    try:
        with contextlib.suppress(values.Damaged):
            found = values.unpack(payload, copy=len(payload) % 2 == 0)
            for value in found.values.values():
                if type(value).__module__.split(".")[0] in ("numpy", "pandas", "scipy", "PIL"):
                    with contextlib.suppress(Exception):
                        repr(value)
    finally:
        watching = False
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > most_memory:
        raise MemoryError(f"a payload of {len(payload)} bytes took too much memory")


def mutate(data: bytes, size: int, seed: int) -> bytes:
    other = known[seed % len(known)]
    if payloads.take_apart(data) is None:
        data = other
    changed = payloads.mutate(data, seed, other)
    return changed if len(changed) <= size else data[:size]


def main() -> None:
    global known, most_memory
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--runs", type=int, default=-1, help="inputs to try, -1: as many as there is time for"
    )
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("folder", nargs="?", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    known = payloads.seeds()
    most_memory = sys.maxsize
    for payload in known:
        values.unpack(payload)
    most_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + MOST_MEMORY
    sys.addaudithook(watch)
    with tempfile.TemporaryDirectory() as folder:
        where = options.folder or Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        for number, payload in enumerate(known):
            (where / f"seed-{number}").write_bytes(payload)
        arguments = [
            sys.argv[0],
            str(where),
            f"-max_total_time={options.seconds}",
            f"-runs={options.runs}",
            f"-seed={options.seed}",
            "-timeout=20",
            "-rss_limit_mb=0",
        ]
        arguments += [
            "-max_len=65536",
            f"-artifact_prefix={os.environ.get('FUZZ_FOUND', where)}/",
            "-print_final_stats=1",
        ]
        atheris.Setup(arguments, read, custom_mutator=mutate)
        atheris.Fuzz()


main()
