"""The peers: each in a virtual environment of its own, made once from public packages.

Those that start containers do it as they do, in the image that our cells run in, or one made of it where
they need more. What the others relay to runs in that image on the host's network, which is the fastest
there is. ipyparallel starts no containers: its engine runs on the host.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.bench.images import Images
from tests.bench.sessions import MARK, Contestant, environ
from tests.bench.table import Absent

ENVIRONMENTS = Path(__file__).parents[2] / "build" / "peers"
"""They stay from run to run; git ignores them."""

GATEWAY_IMAGE = "dockml/peers:3.11"
"""dockml/ipykernel:7, and what gateway_provisioners' launcher needs besides."""

SECOND = "bench2"
"""SoS's second kernel in a container; the first is `bench`."""

_INSIDE = "DOCKML_BENCH_CONTAINER"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one peer runs for one measurement.

    Attributes
    ----------
    python : Path
        Of its virtual environment.
    folder : Path
        The peer's own: home, kernelspecs, connection files.
    image : str
        What the kernel that is relayed to runs in.
    images : Images
        Of this run.
    """

    python: Path
    folder: Path
    image: str
    images: Images

    def environ(self) -> dict[str, str]:
        """Return the variables of the peer's processes, which leave the user's files alone."""
        return {
            **environ(),
            MARK: str(self.images.workspace),
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),  # SoS has its connection files there
            "IPYTHONDIR": str(self.folder / "ipython"),
            "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
            "JUPYTER_DATA_DIR": str(self.folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
        }

    def subkernel(self) -> dict[str, Any]:
        """Return the kernelspec of the image's kernel."""
        docker = shutil.which("docker")
        if docker is None:
            raise Absent("there is no docker command here")
        home = [] if os.getuid() == 0 else ["--env", "HOME=/tmp"]
        workspace = self.images.workspace
        return self.spec(
            "bench",
            [
                *(docker, "run", "--rm", "--network", "host"),
                *("--label", self.images.label),
                *("--user", f"{os.getuid()}:{os.getgid()}", *home, "--env", f"{_INSIDE}=yes"),
                *("--volume", f"{workspace}:{workspace}"),
                *("--workdir", str(workspace), "--entrypoint", "python3", self.image),
                *("-m", "ipykernel_launcher", "-f", "{connection_file}"),
            ],
        )

    def kernel_of(self, module: str) -> dict[str, Any]:
        """Return the kernelspec of a kernel of the peer's environment."""
        return self.spec(module, [str(self.python), "-m", module, "-f", "{connection_file}"])

    def spec(self, name: str, argv: list[str], **more: Any) -> dict[str, Any]:
        """Return a kernelspec."""
        return {"argv": argv, "display_name": name, "language": "python", **more}

    def write_spec(self, name: str, spec: dict[str, Any]) -> None:
        """Write a kernelspec that the peer finds."""
        path = self.folder / "data" / "kernels" / name / "kernel.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(spec))

    def contestant(self, who: str, spec: dict[str, Any], **more: Any) -> Contestant:
        """Return a kernel of this place."""
        return Contestant(
            who=who,
            spec=spec,
            python=self.python,
            folder=self.folder,
            environ=self.environ(),
            **more,
        )

    def connection_file(self, name: str) -> str:
        """Return where a kernel's connection file is to be."""
        runtime = self.folder / "runtime"
        runtime.mkdir(mode=0o700, exist_ok=True)
        return str(runtime / f"{name}.json")


def _envkernel(place: Place) -> Contestant:
    workspace = place.images.workspace
    argv = [
        *(str(place.python.with_name("envkernel")), "docker", "run"),
        *("--connection-file", "{connection_file}", "--workdir", str(workspace), place.image),
        *(f"--label={place.images.label}", "--env=HOME=/tmp", f"-w={workspace}"),
        *("--", "python", "-m", "ipykernel_launcher", "-f", "{connection_file}"),
    ]
    return place.contestant("envkernel 1.1.1", place.spec("ek", argv))


def _dockernel(place: Place) -> Contestant:
    image = place.images.derive(
        "dockernel",
        place.image,
        ["ENV HOME=/tmp", "CMD python -m ipykernel_launcher -f $DOCKERNEL_CONNECTION_FILE"],
    )
    argv = [str(place.python), "-m", "dockernel", "start", image, "{connection_file}"]
    return place.contestant("dockernel 1.0.2", place.spec("dk", argv, interrupt_mode="message"))


def _gateway(place: Place) -> Contestant:
    if place.image != "dockml/ipykernel:7":
        raise Absent("its launcher would have to be in the image")
    (package,) = place.python.parents[1].glob("lib/python3*/site-packages/gateway_provisioners")
    launchers = package / "kernel-launchers"
    bootstrap = (launchers / "bootstrap" / "bootstrap-kernel.sh").read_text()
    bootstrap = bootstrap.replace("${install_dir}", "/usr/local/bin").replace("$$$$", "$$")
    inside = "/usr/local/bin/kernel-launchers/python/scripts"
    image = place.images.derive(
        "gateway",
        GATEWAY_IMAGE,
        [
            f"COPY launch_ipykernel.py server_listener.py {inside}/",
            "COPY bootstrap-kernel.sh /usr/local/bin/",
            'CMD ["/usr/local/bin/bootstrap-kernel.sh"]',
        ],
        {
            "launch_ipykernel.py": (launchers / "python/scripts/launch_ipykernel.py").read_bytes(),
            "server_listener.py": (launchers / "shared/scripts/server_listener.py").read_bytes(),
            "bootstrap-kernel.sh": bootstrap.encode(),
        },
    )
    launch = launchers / "docker" / "scripts" / "launch_docker.py"
    words = ("kernel-id", "port-range", "response-address", "public-key", "transport-encryption")
    argv = [str(place.python), str(launch)]
    for word in words:
        argv += [f"--{word}", f"{{{word.replace('-', '_')}}}"]
    config = {"provisioner_name": "docker-provisioner", "config": {"image_name": image}}
    spec = place.spec("gp", argv, metadata={"kernel_provisioner": config})
    contestant = place.contestant("gateway_provisioners 0.5.0", spec)
    environ = {**contestant.environ, "KERNEL_USERNAME": "bob"}  # it refuses root
    return replace(contestant, environ=environ)


def _allthekernels(place: Place) -> Contestant:
    place.write_spec("bench", place.subkernel())
    return place.contestant(
        "allthekernels 1.2.0",
        place.kernel_of("allthekernels"),
        prelude=(">!bench\npass", _CHECK_INSIDE),
        connection_file=place.connection_file("outer"),
        inner="outer-bench.json",
    )


def _sos(place: Place) -> Contestant:
    # SoS takes any client's "idle" for that of its own cell, so that the direct one needs a kernel
    # of its own.
    kernel = place.kernel_of("sos_notebook.kernel")
    place.write_spec("sos", kernel)
    for name in ("bench", SECOND):
        place.write_spec(name, place.subkernel())
    return place.contestant(
        "SoS Notebook 0.24.7",
        kernel,
        prelude=("%use bench -l Python3", _CHECK_INSIDE),
        connection_file=place.connection_file("outer"),
        twin=place.contestant("twin", place.subkernel()),
    )


def _ipyparallel(place: Place) -> Contestant:
    return place.contestant(
        "ipyparallel 9.2.0 %%px",
        place.kernel_of("ipykernel_launcher"),
        prelude=(
            "import ipyparallel\n"
            "cluster = ipyparallel.Cluster(n=1)\n"
            "view = cluster.start_and_connect_sync(activate=True)[:]",
            "%%px\nimport ipyparallel\nipyparallel.bind_kernel()",
        ),
        prefix="%%px\n",
        connection_file=place.connection_file("outer"),
        inner="kernel-*.json",
    )


# By the reply: the output of a relayed cell may come after its idle.
_CHECK_INSIDE = f"import os\nassert os.environ[{_INSIDE!r}] == 'yes'"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One of them.

    Attributes
    ----------
    name, title : str
        Of its folders, and as the table calls it.
    requirements : tuple of str
        What is installed; a change makes the environment anew.
    make : callable
        Gives its kernel in a place.
    starts_containers : bool
        By itself: it can be compared in how it starts and ends them.
    relays : bool
        Its cells pass through a kernel of its own.
    """

    name: str
    title: str
    requirements: tuple[str, ...]
    make: Callable[[Place], Contestant] = field(repr=False)
    starts_containers: bool = False
    relays: bool = False

    def contestant(self, images: Images, image: str) -> Contestant:
        """Return its kernel in `image`; raise `Absent` where it has none here."""
        python = self.install()
        folder = images.new_folder(f"peer-{self.name}")
        return self.make(Place(python=python, folder=folder, image=image, images=images))

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
            pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet"]
            for command in (
                [sys.executable, "-m", "venv", "--without-pip", str(folder)],
                [*pip, "--disable-pip-version-check", "install", *self.requirements],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    said = (done.stderr + done.stdout).strip().splitlines() or ["no word"]
                    raise Absent(f"not installed: {said[-1]}")
            ready.write_text(wanted)
        return python


_KERNEL = "ipykernel>=7,<8"
_ALL = (
    Peer(
        name="envkernel",
        title="envkernel 1.1.1",
        requirements=("envkernel==1.1.1", _KERNEL),
        make=_envkernel,
        starts_containers=True,
    ),
    Peer(
        name="dockernel",
        title="dockernel 1.0.2",
        requirements=("dockernel==1.0.2", _KERNEL),
        make=_dockernel,
        starts_containers=True,
    ),
    Peer(
        name="gateway",
        title="gateway_provisioners 0.5.0",
        requirements=("gateway_provisioners[docker]==0.5.0", _KERNEL),
        make=_gateway,
        starts_containers=True,
    ),
    Peer(
        name="allthekernels",
        title="allthekernels 1.2.0",
        requirements=("allthekernels==1.2.0", _KERNEL),
        make=_allthekernels,
        relays=True,
    ),
    Peer(
        name="sos",
        title="SoS Notebook 0.24.7",
        requirements=(
            "sos-notebook==0.24.7",
            "sos==0.25.2",
            "sos-python==0.20.3",
            "numpy",
            _KERNEL,
        ),
        make=_sos,
        relays=True,
    ),
    Peer(
        name="ipyparallel",
        title="ipyparallel 9.2.0 %%px",
        requirements=("ipyparallel==9.2.0", "numpy", _KERNEL),
        make=_ipyparallel,
        relays=True,
    ),
)
PEERS = {peer.name: peer for peer in _ALL}
