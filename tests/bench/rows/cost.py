"""What we cost where nothing happens, and with many environments."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psutil

from tests.bench.bench import LOCAL, PYTHON311, Bench
from tests.bench.sessions import Session, opened, running
from tests.bench.table import US, Figure, Goal

_LOAD = (
    "import time\n"
    "began = time.perf_counter()\n"
    "get_ipython().run_line_magic('load_ext', 'dockml_magic')\n"
    "print(time.perf_counter() - began)"
)


def extension(bench: Bench) -> Iterator[Figure]:
    """Give the time that `%load_ext dockml_magic` takes in a new notebook."""
    samples = []
    for _ in range(bench.repetitions(7)):
        with running(bench.local()) as session:
            samples.append(float(session.said(_LOAD)))
    yield Figure(
        row="extension",
        title="`%load_ext dockml_magic` in a new notebook",
        samples={US: samples},
        goals={US: Goal(factor=0, plus=0.06, strictly=True)},
        unit="ms",
        scale=1000,
    )


def memory(bench: Bench) -> Iterator[Figure]:
    """Give the memory that idle environments add to the host kernel."""
    firsts, others = [], []
    for _ in range(1 if bench.quick else 3):
        with running(bench.local()) as session:
            sizes = [_resident(session)]
            session.run("%load_ext dockml_magic")
            for name in ("one", "two", "three"):
                session.run(f"%docker_env {PYTHON311} --name {bench.workspace.name}-{name}")
                session.run("1+1")
                time.sleep(0.2)
                sizes.append(_resident(session))
        firsts.append(sizes[1] - sizes[0])
        others.append((sizes[3] - sizes[1]) / 2)
    for what, samples in (("the extension and the first", firsts), ("each further", others)):
        yield Figure(
            row="memory",
            title=f"memory of {what} idle environment in the notebook's kernel",
            samples={US: samples},
            goals={US: Goal(factor=0, plus=3.0, strictly=True)} if samples is others else {},
            unit="MB",
        )


def _resident(session: Session) -> float:
    assert session.kernel_pid is not None
    return float(psutil.Process(session.kernel_pid).memory_info().rss) / 1e6


def idle(bench: Bench) -> Iterator[Figure]:
    """Give the CPU time of an idle environment, in its container and in the notebook's kernel."""
    seconds = 3.0 if bench.quick else 30.0
    how_many = 3
    before = bench.images.containers()
    names = [f"{bench.workspace.name}-{i}" for i in range(how_many)]
    notebook = bench.notebook(*(f"%docker_env {PYTHON311} --name {name}" for name in names))
    with running(bench.local()) as plain, running(notebook) as session:
        time.sleep(2)  # what is done once after a start
        containers = sorted(bench.images.containers() - before)
        began = time.perf_counter()
        at_first = [_cpu(plain), _cpu(session), *(_cpu_inside(bench, it) for it in containers)]
        time.sleep(seconds)
        passed = time.perf_counter() - began
        at_last = [_cpu(plain), _cpu(session), *(_cpu_inside(bench, it) for it in containers)]
    local, host, *inside = ((b - a) / passed for a, b in zip(at_first, at_last, strict=True))
    added = max(host - local, 0.0) / how_many
    yield Figure(
        row="idle",
        title=f"CPU of an idle environment, of {how_many} over {seconds:g} s",
        samples={
            LOCAL: [local],
            US: [one + added for one in inside],
            f"{US}, in the notebook's kernel alone": [added],
        },
        floor=LOCAL,
        goals={US: Goal(factor=0, plus=0.001, strictly=True)},
        unit="%",
        scale=100,
    )


def _cpu(session: Session) -> float:
    assert session.kernel_pid is not None
    times = psutil.Process(session.kernel_pid).cpu_times()
    return float(times.user + times.system)


def _cpu_inside(bench: Bench, container: str) -> float:
    stats = bench.engine.api.stats(container, stream=False, one_shot=True)
    return float(stats["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9


def many(bench: Bench) -> Iterator[Figure]:
    """Give the start of the next environment and a `pass` cell in each, with many alive."""
    counts = (1, 3) if bench.quick else (1, 10, 50, 100)
    starts: dict[str, list[float]] = {}
    passes: dict[str, list[float]] = {}
    sizes: dict[str, list[float]] = {}
    supervisors: dict[str, list[float]] = {}
    first = _alive(counts[0])
    with opened(bench.notebook()) as session:
        session.start()
        empty = _resident(session)
        names: list[str] = []

        def begin() -> float:
            names.append(f"{bench.workspace.name}-{len(names)}")
            ran = session.run(f"%docker_env {PYTHON311} --name {names[-1]}")
            return float(ran["seconds"]) + float(session.run("1+1")["seconds"])

        for count in counts:
            while len(names) < count:
                begin()
            who = _alive(count)
            for name in names:
                session.run(f"%docker_env {name}")
                passes.setdefault(who, []).extend(session.cells("pass", 3, skip=1))
            sizes[who] = [(_resident(session) - empty) / count]
            supervisors[who] = _supervisors(bench)
            starts[who] = []
            for _ in range(bench.repetitions(4)):
                starts[who].append(begin())
                session.run(f"%docker_rm -f {names.pop()}")
    common = {"row": "many", "floor": first}
    last = _alive(counts[-1])
    yield Figure(
        **common,
        title="start of the next one, with so many alive",
        samples=starts,
        us=last,
        goals={first: Goal(factor=1.3)},
    )
    yield Figure(
        **common,
        title="`pass` in each, with so many alive",
        samples=passes,
        us=last,
        goals={first: Goal(factor=1.2)},
        unit="ms",
        scale=1000,
    )
    yield Figure(
        **common,
        title="memory for each in the notebook's kernel, with so many alive",
        samples=sizes,
        us=last,
        goals={last: Goal(factor=0, plus=3.0, strictly=True)},
        unit="MB",
    )
    yield Figure(
        **common,
        title="memory of a container's supervisor, the kernel's aside, with so many alive",
        samples={who: found for who, found in supervisors.items() if found},
        us=last,
        unit="MB",
    )


def _supervisors(bench: Bench) -> list[float]:
    """Return the MB of each container's first process, shared pages divided; none if we may not look."""
    found = []
    for number in bench.images.containers():
        pid = bench.engine.api.inspect_container(number)["State"]["Pid"]
        with contextlib.suppress(psutil.Error):
            found.append(float(psutil.Process(pid).memory_full_info().pss) / 1e6)
    return found


def _alive(count: int) -> str:
    return f"{US}, {count} alive"
