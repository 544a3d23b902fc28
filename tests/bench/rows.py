"""The figures, one function each: ours and what it is compared with, in turns, in one run."""

from __future__ import annotations

import base64
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import docker
import psutil
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager

import dockml_magic
from dockml_magic.kernelspecs import build_kernel_json
from dockml_magic.options import RunOptions
from tests.bench.clients import Cell, connected, run_cell, started
from tests.bench.floor import Floor
from tests.bench.peers import Absent, Peer, Relay
from tests.bench.table import Row, difference, in_turns, missing, ratio

PYTHON311 = "dockml/bare:3.11"
PEERS_IMAGE = "dockml/ipykernel:7"
"""Has a kernel of its own, which the peers need."""
IMAGES = (PYTHON311, PEERS_IMAGE, "dockml/tensorflow:1.10.0")

_LOCAL = "%%docker_cell local\n"
_INFO = (
    _LOCAL + "import json\n"
    "info = get_ipython()._dockml_magics.environments.active._container.connection_info\n"
    "print(json.dumps(info | {'key': info['key'].decode()}))"
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the figures share.

    Attributes
    ----------
    engine : DockerClient
        For what is made by hand.
    workspace : Path
        Every container of this run carries it as a label.
    quick : bool
        A smoke run.
    peers : tuple of Peer
        Whom the figures that have them put beside us.
    """

    engine: docker.DockerClient
    workspace: Path
    quick: bool
    peers: tuple[Peer, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """The images that are started."""
        return IMAGES[:1] if self.quick else IMAGES

    def repetitions(self, full: int) -> int:
        """Return how many samples are taken."""
        return 2 if self.quick else full

    def environ(self) -> dict[str, str]:
        """Return the variables of a host kernel, which leaves the user's history alone."""
        return {**os.environ, "IPYTHONDIR": str(self.workspace / ".ipython")}

    def notebook(self) -> Any:
        """Return a context manager: the client of a new host kernel."""
        return started(KernelManager(kernel_name="python3"), self.workspace, self.environ())

    @contextmanager
    def routed(self, image: str) -> Iterator[BlockingKernelClient]:
        """Give a notebook's client whose cells run in a container."""
        with self.notebook() as notebook:
            run_cell(notebook, "%load_ext dockml_magic")
            run_cell(notebook, f"%docker_env {image}")
            yield notebook

    @contextmanager
    def launched(self, image: str) -> Iterator[tuple[BlockingKernelClient, dict[str, Any]]]:
        """Give the client of a kernel of the launcher, and how another one connects to it."""
        manager = KernelManager(kernel_name="bench", kernel_spec_manager=_InMemory(image))
        with started(manager, self.workspace, os.environ) as client:
            info = dict(manager.get_connection_info())
            info["key"] = info["key"].decode() if isinstance(info["key"], bytes) else info["key"]
            yield client, info


def start(bench: Bench) -> Iterator[Row]:
    """Give `%docker_env`'s way to the first result, against the floor."""
    for image in bench.images:
        paths = _bundle_paths(bench, image)

        def ours(image: str = image) -> float:
            began = time.perf_counter()
            with dockml_magic.start(image, folder=bench.workspace) as environment:
                text = environment.run("1+1").text
                seconds = time.perf_counter() - began
            assert text == "2"
            return seconds

        def by_hand(image: str = image, paths: list[str] = paths) -> float:
            floor = Floor(bench.engine, image, paths, bench.workspace)
            try:
                return floor.start()
            finally:
                floor.stop()

        samples = in_turns(ours, by_hand, bench.repetitions(9))
        yield ratio(f"start {image}", "the same by hand", *samples, at_most=1.25)


def _bundle_paths(bench: Bench, image: str) -> list[str]:
    """Return what of the bundle is on the path of a kernel in this image."""
    code = "import json, sys; print(json.dumps([p for p in sys.path if '/dockml/bundles/' in p]))"
    with dockml_magic.start(image, folder=bench.workspace) as environment:
        paths: list[str] = json.loads(environment.run(code).stdout)
    return paths


def first(bench: Bench) -> Iterator[Row]:
    """Give the first start of a notebook: `%load_ext`, `%docker_env` and a cell, all imports in it."""

    def ours() -> float:
        with bench.notebook() as notebook:
            return sum(
                run_cell(notebook, code).seconds
                for code in ("%load_ext dockml_magic", f"%docker_env {PYTHON311}", "1+1")
            )

    def plain() -> float:
        began = time.perf_counter()
        with bench.notebook() as notebook:
            run_cell(notebook, "1+1")
            return time.perf_counter() - began

    samples = in_turns(ours, plain, bench.repetitions(5))
    yield ratio(f"first start of a notebook, {PYTHON311}", "plain local kernel", *samples)


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """The seconds of `pass` cells: relayed, direct, and in each block by how much these differ."""

    relayed: list[float] = field(default_factory=list)
    direct: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)


def _pass_cells(relays: Sequence[Relay], n: int) -> list[_Samples]:
    """Take n samples with each client in blocks of ten, so that noise meets all alike.

    Each block begins with cells that do not count: a kernel's clients hear what the cells of the
    others publish.
    """
    samples = [_Samples() for _ in relays]
    for block in range(n // 10):
        for i in range(len(relays)):
            which = (i + block) % len(relays)
            relay, taken = relays[which], samples[which]
            ways = [
                (taken.relayed, relay.client, f"{relay.prefix}pass"),
                (taken.direct, relay.direct, "pass"),
            ]
            for seconds, client, code in ways[:: -1 if block % 2 else 1]:
                seconds.extend([run_cell(client, code).seconds for _ in range(13)][3:])
            taken.added.append(median(taken.relayed[-10:]) - median(taken.direct[-10:]))
    return samples


def pass_cell(bench: Bench) -> Iterator[Row]:
    """Give a routed `pass` cell against a direct one to the same kernel, and beside the peers."""
    for image in dict.fromkeys([*bench.images, *([PEERS_IMAGE] if bench.peers else [])]):
        title = f"`pass` routed, {image}"
        with ExitStack() as stack:
            notebook = stack.enter_context(bench.routed(image))
            direct = stack.enter_context(connected(json.loads(run_cell(notebook, _INFO).stdout)))
            relays = [Relay(client=notebook, direct=direct)]
            present = []
            for peer in bench.peers if image == PEERS_IMAGE else ():
                try:
                    relays.append(stack.enter_context(peer.relayed(bench.workspace, image)))
                except Absent as error:
                    yield missing(title, peer.title, str(error))
                else:
                    present.append(peer)
            ours, *theirs = _pass_cells(relays, 20 if bench.quick else 300)
        yield difference(title, "direct client", ours.relayed, ours.direct, at_most=1.0)
        for peer, samples in zip(present, theirs, strict=True):
            yield difference(title, peer.title, ours.relayed, samples.relayed)
            yield difference(
                f"`pass`, what relaying adds to a direct client's, {image}",
                peer.title,
                ours.added,
                samples.added,
                at_most=0.0,
            )


def kernel(bench: Bench) -> Iterator[Row]:
    """Give a `pass` cell in a kernel of the launcher, which is connected as any kernel is."""
    with bench.launched(PYTHON311) as (client, info), connected(info) as direct:
        (ours,) = _pass_cells([Relay(client=client, direct=direct)], 20 if bench.quick else 300)
    figure = f"`pass` in a dockml- kernel, {PYTHON311}"
    yield difference(figure, "direct client", ours.relayed, ours.direct)


class _InMemory(KernelSpecManager):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._spec = KernelSpec(**build_kernel_json(name, RunOptions(), "bench"))

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return self._spec


def output(bench: Bench) -> Iterator[Row]:
    """Give the throughput of much output, all of it checked.

    The direct client has a kernel of its own in a second container: two clients of one kernel would
    each get, and pay for, the output of the other's cells.
    """
    lines, size, images = (2_000, 5_000_000, 50) if bench.quick else (20_000, 50_000_000, 1_000)
    printed = "".join(f"line {i}\n" for i in range(lines))
    shown = "".join(f"{i:07d}." for i in range(size // 8))
    kinds: dict[str, tuple[str, Callable[[Cell], bool]]] = {
        f"{lines:,} printed lines": (
            f"for i in range({lines}): print('line', i)",
            lambda cell: cell.stdout == printed,
        ),
        f"one display of {size // 1_000_000} MB": (
            "display({'text/plain': shown}, raw=True)",
            lambda cell: cell.text == shown,
        ),
        f"{images:,} images of 100 kB": (
            f"for i in range({images}): display(Image(image(i), format='png'))",
            lambda cell: len(cell.outputs) == images and all(map(_is_image, cell.outputs, count())),
        ),
    }
    with bench.routed(PYTHON311) as notebook, bench.launched(PYTHON311) as (direct, _):
        for client in (notebook, direct):
            run_cell(client, f"shown = ''.join('%07d.' % i for i in range({size // 8}))")
            run_cell(client, "from IPython.display import Image\n" + inspect.getsource(image))
        for what, (code, complete) in kinds.items():

            def seconds(
                client: BlockingKernelClient,
                what: str = what,
                code: str = code,
                complete: Callable[[Cell], bool] = complete,
            ) -> float:
                cell = run_cell(client, code)
                if not complete(cell):
                    raise RuntimeError(f"{what}: output was lost or reordered")
                return cell.seconds

            samples = in_turns(
                partial(seconds, notebook), partial(seconds, direct), bench.repetitions(11)
            )
            yield ratio(f"{what}, throughput", "direct client", *samples, throughput_at_least=0.9)


def image(number: int) -> bytes:
    """Return the bytes of an image of 100 kB, each different; its source runs in the kernels too."""
    return b"\x89PNG\r\n\x1a\n" + b"%08d" % number * 12_499


def _is_image(output: dict[str, Any], number: int) -> bool:
    return base64.b64decode(output["data"]["image/png"]) == image(number)


def memory(bench: Bench) -> Iterator[Row]:
    """Give the memory that idle environments add to the host kernel."""
    firsts, others = [], []
    for _ in range(1 if bench.quick else 3):
        with bench.notebook() as notebook:
            pid = int(run_cell(notebook, "import os; print(os.getpid())").stdout)
            sizes = [_resident(pid)]
            run_cell(notebook, "%load_ext dockml_magic")
            for name in ("one", "two", "three"):
                run_cell(notebook, f"%docker_env {PYTHON311} --name {bench.workspace.name}-{name}")
                run_cell(notebook, "1+1")
                time.sleep(0.2)
                sizes.append(_resident(pid))
        firsts.append(sizes[1] - sizes[0])
        others.append((sizes[3] - sizes[1]) / 2)
    for figure, samples in (("the extension and the first", firsts), ("each further", others)):
        yield Row(
            figure=f"memory of {figure} idle environment in the host kernel",
            reference="-",
            ours=samples,
            theirs=[],
            result=f"{median(samples):.1f} MB",
            unit="MB",
        )


def _resident(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def restart(bench: Bench) -> Iterator[Row]:
    """Give a restart in place to the next result, against a plain local kernel's."""
    manager = KernelManager(kernel_name="python3")
    with (
        dockml_magic.start(PYTHON311, folder=bench.workspace) as environment,
        started(manager, bench.workspace, bench.environ()) as client,
    ):

        def ours() -> float:
            began = time.perf_counter()
            environment.restart()
            environment.run("1+1")
            return time.perf_counter() - began

        def local() -> float:
            began = time.perf_counter()
            manager.restart_kernel(now=True)
            client.wait_for_ready(timeout=60)
            run_cell(client, "1+1")
            return time.perf_counter() - began

        samples = in_turns(ours, local, bench.repetitions(9))
    yield ratio(f"restart in place, {PYTHON311}", "plain local kernel", *samples)


def stop(bench: Bench) -> Iterator[Row]:
    """Give the time until an environment's container is gone, against the engine's forced removal."""

    def ours() -> float:
        environment = dockml_magic.start(PYTHON311, folder=bench.workspace)
        began = time.perf_counter()
        environment.stop()
        return time.perf_counter() - began

    paths = _bundle_paths(bench, PYTHON311)

    def by_hand() -> float:
        floor = Floor(bench.engine, PYTHON311, paths, bench.workspace)
        try:
            floor.start()
        except BaseException:
            floor.stop()
            raise
        return floor.stop()

    samples = in_turns(ours, by_hand, bench.repetitions(7))
    yield ratio(f"stop, {PYTHON311}", "docker rm -f by hand", *samples)


FIGURES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "start": start,
    "first": first,
    "pass": pass_cell,
    "kernel": kernel,
    "output": output,
    "memory": memory,
    "restart": restart,
    "stop": stop,
}
