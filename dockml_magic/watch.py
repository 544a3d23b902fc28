"""What containers do: their logs, and what they use."""

from __future__ import annotations

import codecs
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dockml_magic import labels
from dockml_magic.display import Table
from dockml_magic.engine import ContainerState, ContainerStats, Engine
from dockml_magic.gpu import GpuUse, find_gpu_use
from dockml_magic.pull import format_size

_BETWEEN = 0.5
"""Seconds between the two looks from which a busy CPU is told."""

_AT_ONCE = 4

_PROC = Path("/proc")


def show_log(
    engine: Engine,
    container_id: str,
    write: Callable[[str], None],
    *,
    tail: int | None = None,
    follow: bool = False,
    timestamps: bool = False,
) -> None:
    """Write a container's log, from the last `tail` lines on.

    With `follow`, to the container's end, or an interrupt, which is no error then.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = engine.stream_logs(container_id, tail=tail, follow=follow, timestamps=timestamps)
    try:
        for piece in pieces:
            write(decoder.decode(piece))
    except KeyboardInterrupt:
        if not follow:
            raise
    finally:
        pieces.close()


def table_of_stats(engine: Engine, containers: Sequence[ContainerState]) -> Table:
    """Return what containers use, as `docker stats` says it; of GPUs too where this machine has one."""
    running = [container for container in containers if container.status == "running"]
    ids = [container.id for container in running]
    with ThreadPoolExecutor(_AT_ONCE) as threads:  # an engine takes its time for each
        before = dict(zip(ids, threads.map(engine.stats, ids), strict=True))
        if running:
            time.sleep(_BETWEEN)
        after = dict(zip(ids, threads.map(engine.stats, ids), strict=True))
    gpus = _gpu_use_of(ids) if engine.facts.shares_files else None
    rows = []
    for container in containers:
        first, last = before.get(container.id), after.get(container.id)
        use = _use(first, last) if first and last else [container.status, "", "", ""]
        if gpus is not None:
            use += _gpu_use(gpus.get(container.id))
        rows.append([container.labels.get(labels.NAME, ""), *use, container.id[:12]])
    of_gpus = [] if gpus is None else ["GPU MEM", "GPU %"]
    head = ["NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "PIDS", *of_gpus, "CONTAINER ID"]
    return Table(head, rows, empty="No environment runs. Start one with: %docker_env NAME")


def _use(first: ContainerStats, last: ContainerStats) -> list[str]:
    limit = last.memory_limit
    return [
        f"{last.cpu_percent(first):.1f} %",
        f"{format_size(last.memory)} / {format_size(limit)}",
        f"{100 * last.memory / limit:.1f} %" if limit else "",
        "" if last.pids is None else str(last.pids),
    ]


def _gpu_use(use: GpuUse | None) -> list[str]:
    if use is None:
        return ["", ""]
    return [format_size(use.memory), "" if use.utilisation is None else f"{use.utilisation} %"]


def _gpu_use_of(container_ids: Sequence[str]) -> Mapping[str, GpuUse] | None:
    """Return what the processes of each container use of the GPUs; None without a GPU."""
    by_process = find_gpu_use()
    if by_process is None:
        return None
    used: dict[str, GpuUse] = {}
    for pid, use in by_process.items():
        group = ""
        with contextlib.suppress(OSError):
            group = (_PROC / str(pid) / "cgroup").read_text()
        for container_id in container_ids:
            if container_id in group:
                used[container_id] = used.get(container_id, GpuUse()) + use
    return used
