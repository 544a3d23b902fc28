"""What the rows share: the engine, this run's folder, who is compared, and the forms that we come in."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

import dockml_magic
from dockml_magic.kernelspecs import build_kernel_json
from dockml_magic.options import RunOptions
from tests.bench.floor import Floor
from tests.bench.images import Images
from tests.bench.peers import Peer
from tests.bench.sessions import MARK, Contestant, Session, environ, opened, plain_spec, running
from tests.bench.table import US, Absent, Turns

PYTHON311 = "dockml/bare:3.11"
IPYKERNEL7 = "dockml/ipykernel:7"
"""Has a kernel of its own, which the peers need."""
IPYKERNEL5 = "dockml/ipykernel:5"
TENSORFLOW = "dockml/tensorflow:1.10.0"
TENSORFLOW27 = "dockml/tensorflow:1.10.0-py27"
NO_KERNEL = (PYTHON311, TENSORFLOW)

FLOOR = "by hand, with the SDK"
LOCAL = "plain local kernel"
KERNEL = f"{US}, as a kernel"
LAUNCHER = f"{US}, by its launcher"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One run.

    Attributes
    ----------
    engine : DockerClient
        For what is made by hand.
    workspace : Path
        Every container of this run carries it as a label.
    quick : bool
        A smoke run.
    peers : tuple of Peer
        Whom the rows put beside us.
    """

    engine: docker.DockerClient
    workspace: Path
    quick: bool
    peers: tuple[Peer, ...] = ()
    images: Images = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", Images(self.engine, self.workspace))

    def repetitions(self, full: int) -> int:
        """Return how many samples are taken."""
        return min(full, 2) if self.quick else full

    def some(self, *images: str) -> tuple[str, ...]:
        """Return the images of a row, one of them in a smoke run."""
        return images[:1] if self.quick else images

    def environ(self) -> dict[str, str]:
        """Return the variables of our kernels, which leave the user's history alone."""
        return {
            **environ(),
            # Where we are run from a checkout.
            **{k: v for k, v in os.environ.items() if k == "PYTHONPATH"},
            "IPYTHONDIR": str(self.workspace / ".ipython"),
            MARK: str(self.workspace),
        }

    def _ours(self, who: str, spec: dict[str, Any], **more: Any) -> Contestant:
        return Contestant(
            who=who,
            spec=spec,
            python=Path(sys.executable),
            folder=self.workspace,
            environ=self.environ(),
            **more,
        )

    def local(self) -> Contestant:
        """Return an ipykernel without a container."""
        return self._ours(LOCAL, plain_spec("local"))

    def notebook(self, *prelude: str) -> Contestant:
        """Return a notebook that has our extension."""
        return self._ours(US, plain_spec("python3"), prelude=("%load_ext dockml_magic", *prelude))

    def routed(self, image: str) -> Contestant:
        """Return a notebook whose cells run in a container."""
        return self._ours(
            US,
            plain_spec("python3"),
            prelude=("%load_ext dockml_magic", f"%docker_env {image}"),
            restart="%docker_restart",
            stop="%docker_stop",
        )

    def as_kernel(self, image: str) -> Contestant:
        """Return a kernel of the launcher's page, started through our provisioner."""
        return self._ours(KERNEL, build_kernel_json(image, RunOptions(), "bench"))

    def by_launcher(self, image: str) -> Contestant:
        """Return the same, started by its argv as VS Code does."""
        spec = build_kernel_json(image, RunOptions(), "bench")
        return self._ours(LAUNCHER, {**spec, "metadata": {}})

    def floor(self, image: str, paths: list[str]) -> Floor:
        """Return a container with a kernel, by hand."""
        return Floor(self.engine, image, paths, self.workspace)

    def bundle_paths(self, image: str) -> list[str]:
        """Return what of the bundle is on the path of a kernel in this image."""
        code = (
            "import json, sys; print(json.dumps([p for p in sys.path if '/dockml/bundles/' in p]))"
        )
        with dockml_magic.start(image, folder=self.workspace) as environment:
            paths: list[str] = json.loads(environment.run(code).stdout)
        return paths

    def peers_in(
        self, image: str, turns: Turns, *, of: Callable[[Peer], bool] = lambda peer: True
    ) -> list[Contestant]:
        """Return the peers' kernels in `image`; note in `turns` who has none, and why."""
        found = []
        for peer in filter(of, self.peers):
            with turns.excusing(peer.title):
                if image in NO_KERNEL:
                    raise Absent("needs ipykernel in the image")
                found.append(peer.contestant(self.images, image))
        return found

    @contextmanager
    def sessions(
        self, contestants: list[Contestant], turns: Turns, *, start: bool = True
    ) -> Iterator[dict[str, Session]]:
        """Give the front ends of those whose kernel starts; note why the others' do not."""
        with ExitStack() as stack:
            found = {}
            for contestant in contestants:
                with turns.excusing(contestant.who):
                    enter = running if start else opened
                    found[contestant.who] = stack.enter_context(enter(contestant))
            yield found


def starts_containers(peer: Peer) -> bool:
    """Tell whether a peer starts containers by itself."""
    return peer.starts_containers
