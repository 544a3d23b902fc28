"""The peers: each in a virtual environment of its own, made once from public packages.

What a peer relays to runs in the image that our cells run in, on the host's network, which is the
fastest there is. ipyparallel starts no containers: its engine runs on the host.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager

from tests.bench.clients import connected, run_cell, started
from tests.bench.floor import LABEL

ENVIRONMENTS = Path(__file__).parents[2] / "build" / "peers"
"""They stay from run to run; git ignores them."""

_MARK = "DOCKML_BENCH"
_INSIDE = "DOCKML_BENCH_CONTAINER"


class Absent(Exception):
    """A peer cannot run here; says why."""


@dataclass(frozen=True, kw_only=True)
class Relay:
    """A kernel whose cells run in another one.

    Attributes
    ----------
    client : BlockingKernelClient
        Of the kernel that relays.
    direct : BlockingKernelClient
        Of the kernel that is relayed to, or, where two clients of it would disturb the peer, of
        another one that was started alike.
    prefix : str
        What makes a cell of `client` run there.
    """

    client: BlockingKernelClient
    direct: BlockingKernelClient
    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one peer runs for one measurement.

    Attributes
    ----------
    python : Path
        Of its virtual environment.
    workspace : Path
        The run's folder: every container carries it as a label, every process in its environment.
    folder : Path
        The peer's own in it: home, kernelspecs, connection files.
    image : str
        What the kernel that is relayed to runs in.
    """

    python: Path
    workspace: Path
    folder: Path
    image: str

    def environ(self) -> dict[str, str]:
        """Return the variables of the peer's processes, which leave the user's files alone."""
        return {
            **os.environ,
            _MARK: str(self.workspace),
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),  # SoS has its connection files there
            "IPYTHONDIR": str(self.folder / "ipython"),
            "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
            "JUPYTER_DATA_DIR": str(self.folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
        }

    def subkernel(self) -> list[str]:
        """Return the command of the image's kernel."""
        docker = shutil.which("docker")
        if docker is None:
            raise Absent("there is no docker command here")
        home = [] if os.getuid() == 0 else ["--env", "HOME=/tmp"]
        return [
            *(docker, "run", "--rm", "--network", "host"),
            *("--label", f"{LABEL}={self.workspace}"),
            *("--user", f"{os.getuid()}:{os.getgid()}", *home, "--env", f"{_INSIDE}=yes"),
            *("--volume", f"{self.workspace}:{self.workspace}"),
            *("--workdir", str(self.workspace), "--entrypoint", "python3", self.image),
            *("-m", "ipykernel_launcher", "-f", "{connection_file}"),
        ]

    def kernel_of(self, module: str) -> list[str]:
        """Return the command of a kernel of the peer's environment."""
        return [str(self.python), "-m", module, "-f", "{connection_file}"]

    def write_spec(self, name: str, argv: list[str]) -> None:
        """Write a kernelspec that the peer finds."""
        path = self.folder / "data" / "kernels" / name / "kernel.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"argv": argv, "display_name": name, "language": "python"}))

    @contextmanager
    def started(self, name: str, argv: list[str]) -> Iterator[BlockingKernelClient]:
        """Start a kernel and give its client; NAME.json is its connection file."""
        path = self.folder / "runtime" / f"{name}.json"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        manager = KernelManager(
            kernel_name=name,
            kernel_spec_manager=_OneKernel(
                KernelSpec(argv=argv, display_name=name, language="python")
            ),
            connection_file=str(path),
        )
        with started(manager, self.folder, self.environ()) as client:
            yield client

    def connection(self, pattern: str) -> dict[str, object]:
        """Return the content of the only connection file that is called like this."""
        (path,) = self.folder.rglob(pattern)
        connection: dict[str, object] = json.loads(path.read_text())
        return connection


class _OneKernel(KernelSpecManager):
    def __init__(self, spec: KernelSpec) -> None:
        super().__init__()
        self._spec = spec

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return self._spec


@contextmanager
def _allthekernels(place: Place) -> Iterator[Relay]:
    place.write_spec("bench", place.subkernel())
    with place.started("outer", place.kernel_of("allthekernels")) as client:
        run_cell(client, ">!bench\npass")
        _check_inside(client)
        with connected(place.connection("outer-bench.json")) as direct:
            yield Relay(client=client, direct=direct)


@contextmanager
def _sos(place: Place) -> Iterator[Relay]:
    # SoS takes any client's "idle" for that of its own cell, so that the direct one needs a kernel
    # of its own.
    kernel = place.kernel_of("sos_notebook.kernel")
    place.write_spec("sos", kernel)
    place.write_spec("bench", place.subkernel())
    with (
        place.started("outer", kernel) as client,
        place.started("twin", place.subkernel()) as direct,
    ):
        run_cell(client, "%use bench -l Python3")
        _check_inside(client)
        yield Relay(client=client, direct=direct)


@contextmanager
def _ipyparallel(place: Place) -> Iterator[Relay]:
    with place.started("outer", place.kernel_of("ipykernel_launcher")) as client:
        run_cell(
            client,
            "import ipyparallel\n"
            "cluster = ipyparallel.Cluster(n=1)\n"
            "cluster.start_and_connect_sync(activate=True)",
        )
        try:
            run_cell(client, "%%px\nimport ipyparallel\nipyparallel.bind_kernel()")
            with connected(place.connection("kernel-*.json")) as direct:
                yield Relay(client=client, direct=direct, prefix="%%px\n")
        finally:
            run_cell(client, "cluster.stop_cluster_sync()")


def _check_inside(client: BlockingKernelClient) -> None:
    # By the reply: the output of a relayed cell may come after its idle.
    run_cell(client, f"import os\nassert os.environ[{_INSIDE!r}] == 'yes'")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One of them.

    Attributes
    ----------
    name, title : str
        Of its folders, and as the table calls it.
    requirements : tuple of str
        What is installed; a change makes the environment anew.
    relay : callable
        Gives its relay; each figure that a peer has is a field like this one.
    """

    name: str
    title: str
    requirements: tuple[str, ...]
    relay: Callable[[Place], AbstractContextManager[Relay]]

    @contextmanager
    def relayed(self, workspace: Path, image: str) -> Iterator[Relay]:
        """Give its relay to a kernel in `image`; end its processes afterwards."""
        python = self.install()
        folder = workspace / f"peer-{self.name}"
        place = Place(python=python, workspace=workspace, folder=folder, image=image)
        place.folder.mkdir()
        with self.relay(place) as relay:
            yield relay

    def install(self) -> Path:
        """Return the Python of its environment, which is made where it is not there yet."""
        folder = ENVIRONMENTS / self.name
        wanted = f"{sys.version}\n" + "\n".join(self.requirements)
        ready = folder / "ready"
        python = folder / "bin" / "python"
        ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
        with (ENVIRONMENTS / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if ready.exists() and ready.read_text() == wanted:
                return python
            print(f"Installing {self.title} into {folder}", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            for command in (
                [sys.executable, "-m", "venv", str(folder)],
                [*pip, *self.requirements],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    said = (done.stderr + done.stdout).strip().splitlines() or ["no word"]
                    raise Absent(f"not installed: {said[-1]}")
            ready.write_text(wanted)
        return python


_ALL = (
    Peer(
        name="allthekernels",
        title="allthekernels 1.2.0",
        requirements=("allthekernels==1.2.0", "ipykernel>=7,<8"),
        relay=_allthekernels,
    ),
    Peer(
        name="sos",
        title="SoS Notebook 0.24.7",
        requirements=(
            "sos-notebook==0.24.7",
            "sos==0.25.2",
            "sos-python==0.20.3",
            "ipykernel>=7,<8",
        ),
        relay=_sos,
    ),
    Peer(
        name="ipyparallel",
        title="ipyparallel 9.2.0 %%px",
        requirements=("ipyparallel==9.2.0", "ipykernel>=7,<8"),
        relay=_ipyparallel,
    ),
)
PEERS = {peer.name: peer for peer in _ALL}


def end_processes(workspace: Path) -> None:
    """End what the peers started in this run and left behind: processes that carry its folder."""
    left = [p for p in psutil.process_iter() if _marked(p, workspace)]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(left, timeout=5)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def _marked(process: psutil.Process, workspace: Path) -> bool:
    try:
        environ: dict[str, str] = process.environ()
    except psutil.Error:
        return False
    return environ.get(_MARK) == str(workspace)
