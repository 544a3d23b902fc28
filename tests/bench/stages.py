"""``python -m tests.bench.stages [--write] [IMAGE]``: where the time of a routed `pass` cell goes, stage by stage.

With `--write` the table goes into CONTRIBUTING, where the last one was.

The front end, the notebook's kernel and the container's are on one machine and have one clock, so that what each
notes of a message can be put in one line.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import docker
from jupyter_client.manager import KernelManager

from tests.bench.bench import IPYKERNEL7, Bench
from tests.bench.clients import run_cell, until_heard
from tests.bench.readme import put
from tests.bench.sessions import ROOT
from tests.bench.table import number, quartiles

CELLS = 300
WARM_UP = 20
_PAUSE = 0.003
"""Seconds after a cell in which the notebook's kernel notes that it has sent what the front end has by now."""
BEGIN = "<!-- python -m tests.bench.stages --write: -->"

_NOTE = """
import time, json
noted = []
def note(what):
    noted.append((what, time.perf_counter()))
def before(owner, name, what):
    original = getattr(owner, name)
    def noting(*args, **more):
        note(what)
        return original(*args, **more)
    setattr(owner, name, noting)
"""
_IN_NOTEBOOK = f"""{_NOTE}
from dockml_magic import forwarding
before(forwarding.ShellChannel, "_receive", "read")
before(forwarding.Forwarder, "_reply", "reply read")
before(forwarding.Forwarder, "_pass_on", "idle read")
import zmq
kinds = {{zmq.DEALER: "sent", zmq.ROUTER: "reply sent"}}  # to the container; to the front end
def send(socket, *args, sending=forwarding.send, **more):
    note(kinds.get(socket.socket_type, "idle sent"))  # as it begins: whom it wakes may run before it returns
    sending(socket, *args, **more)
forwarding.send = send
"""
_IN_CONTAINER = f"""{_NOTE}
kernel = get_ipython().kernel
def wrap(holder, key, began, ended):
    original = holder[key] if isinstance(holder, dict) else getattr(holder, key)
    async def noting(*args, **more):
        note(began)
        try:
            return await original(*args, **more)
        finally:
            note(ended)
    if isinstance(holder, dict):
        holder[key] = noting
    else:
        setattr(holder, key, noting)
wrap(kernel.shell_handlers, "execute_request", "handled", "done")
wrap(kernel, "do_execute", "run", "ran")
"""

STAGES = (
    ("began", "read", "the front end's client sends it, the notebook's kernel reads it"),
    ("read", "sent", "ours: whose it is, signed anew, passed on"),
    ("sent", "handled", "the container's kernel reads it"),
    ("handled", "run", "the container's kernel says that it is busy, and what it runs"),
    ("run", "ran", "IPython runs the cell"),
    ("ran", "reply read", "the container's kernel replies, the notebook's reads that"),
    ("reply read", "reply sent", "ours: checked, signed anew, passed on"),
    (
        "ran",
        "idle read",
        "beside it: the container's kernel says that it is idle, the notebook's reads that",
    ),
    ("idle read", "idle sent", "ours: checked, signed anew, passed on"),
    ("both sent", "ended", "the front end's client reads both"),
)
"""From one moment to another, and what lies between them."""


def measure(bench: Bench, image: str) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each stage, by the moment in which it ends and in words, and of the whole."""
    with _notebook(bench) as client:
        run_cell(client, _IN_NOTEBOOK)
        run_cell(client, "%load_ext dockml_magic")
        run_cell(client, f"%docker_env {image}")
        run_cell(client, _IN_CONTAINER)
        windows = []
        for _ in range(WARM_UP + CELLS):
            began = time.perf_counter()
            run_cell(client, "pass")
            windows.append((began, time.perf_counter()))
            time.sleep(_PAUSE)
        noted = json.loads(run_cell(client, "print(json.dumps(noted))").stdout)
        noted += json.loads(
            run_cell(client, "%%docker_cell local\nprint(json.dumps(noted))").stdout
        )
    stages: dict[tuple[str, str], list[float]] = {}
    for began, ended in windows[WARM_UP:]:
        # The last of each: a cell's busy comes before its idle.
        until = ended + _PAUSE
        moments = {what: at for what, at in sorted(noted, key=_at) if began <= at <= until}
        moments |= {"began": began, "ended": ended}
        if (
            moments.get("idle sent", 0.0) > moments.get("idle read", ended)
            and "reply sent" in moments
        ):
            moments["both sent"] = min(max(moments["reply sent"], moments["idle sent"]), ended)
            for before, after, what in STAGES:
                stages.setdefault((after, what), []).append(moments[after] - moments[before])
            stages.setdefault(("all", ""), []).append(ended - began)
    return stages


def _at(noted: Sequence[Any]) -> float:
    return float(noted[1])


@contextmanager
def _notebook(bench: Bench) -> Iterator[Any]:
    manager = KernelManager(kernel_name="python3")
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    manager.start_kernel(cwd=str(bench.workspace), env=bench.environ(), **silent)
    client = manager.client()
    client.start_channels(stdin=False, hb=False)
    try:
        until_heard(client)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)


def table(image: str, stages: dict[tuple[str, str], list[float]]) -> str:
    """Return the stages as CONTRIBUTING has them."""
    whole = stages[("all", "")]
    lines = [
        f"A routed `pass` cell in {image}: {number(median(whole) * 1000)} ms, of {len(whole)} cells; "
        f"{os.cpu_count()} cores, Python {platform.python_version()}.",
        "",
        "| stage | median (quartiles), ms |",
        "|---|---|",
    ]
    for (end, what), seconds in stages.items():
        if end != "all":
            low, middle, high = (number(value * 1000) for value in quartiles(seconds))
            lines.append(f"| {what} | {middle} ({low} to {high}) |")
    ours = sum(median(seconds) for (_, what), seconds in stages.items() if what.startswith("ours"))
    lines.append(f"| ours, of these | {number(ours * 1000)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and print, or write."""
    words = [word for word in sys.argv[1:] if word != "--write"]
    image = words[0] if words else IPYKERNEL7
    with tempfile.TemporaryDirectory(prefix="dockml-bench-") as folder:
        bench = Bench(engine=docker.from_env(), workspace=Path(folder), quick=True)
        try:
            text = table(image, measure(bench, image))
        finally:
            bench.images.remove_all()
    print(text)
    if "--write" in sys.argv:
        page = ROOT / "CONTRIBUTING.md"
        page.write_text(put(text, page.read_text(), BEGIN))
    return 0


if __name__ == "__main__":
    sys.exit(main())
