"""The floor: the same container, kernel and cell by hand, with the docker SDK and jupyter_client.

No part of dockml_magic is used but the label and the folder of the bundles.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import docker
import docker.errors
from jupyter_client.blocking.client import BlockingKernelClient

from dockml_magic import folders
from tests.bench.clients import run_cell, until_heard
from tests.bench.images import LABEL

_RUNTIME = "/run/dockml"
_BUNDLES = "/opt/dockml/bundles"
_KERNEL = (
    "import sys; sys.path.extend({paths!r}); from ipykernel.kernelapp import IPKernelApp; "
    "IPKernelApp.launch_instance(['-f', '{runtime}/connection.json'])"
)


class Floor:
    """A container with a kernel, by hand.

    Parameters
    ----------
    engine : DockerClient
        Connected already.
    image : str
        Its reference.
    paths : list of str
        What of the mounted bundles is on the kernel's sys.path.
    workspace : Path
        Mounted at the same path.
    """

    def __init__(
        self, engine: docker.DockerClient, image: str, paths: list[str], workspace: Path
    ) -> None:
        self._engine = engine
        self._image = image
        self._paths = paths
        self._workspace = workspace
        self._container: Any = None
        self._client = BlockingKernelClient()
        self._runtime = Path(tempfile.mkdtemp(prefix="dockml-bench-"))

    def start(self) -> float:
        """Return the seconds from nothing to the first result of a cell."""
        began = time.perf_counter()
        connection = {
            "transport": "ipc",
            "ip": f"{_RUNTIME}/kernel",
            "key": secrets.token_hex(32),
            "signature_scheme": "hmac-sha256",
            **{f"{name}_port": i + 1 for i, name in enumerate(_SOCKETS)},
        }
        (self._runtime / "connection.json").write_text(json.dumps(connection))
        api = self._engine.api
        created = api.create_container(
            image=self._image,
            entrypoint=["python", "-c", _KERNEL.format(paths=self._paths, runtime=_RUNTIME)],
            command=[],
            user=f"{os.getuid()}:{os.getgid()}",
            working_dir=str(self._workspace),
            labels={LABEL: str(self._workspace)},
            environment={} if os.getuid() == 0 else {"HOME": "/tmp"},
            host_config=api.create_host_config(
                auto_remove=True,
                shm_size=2 * 1024**3,
                binds=[
                    f"{self._workspace}:{self._workspace}:rw",
                    f"{self._runtime}:{_RUNTIME}:rw",
                    f"{folders.bundles_root()}:{_BUNDLES}:ro",
                ],
            ),
        )
        self._container = created["Id"]
        api.start(self._container)
        self._until_bound(began)
        connection["ip"] = str(self._runtime / "kernel")
        self._client.load_connection_info(connection)
        self._client.start_channels(stdin=False, hb=False)
        until_heard(self._client)
        cell = run_cell(self._client, "1+1")
        seconds = time.perf_counter() - began
        if cell.text != "2":
            raise RuntimeError(f"the floor's kernel answered {cell.text!r}")
        return seconds

    def _until_bound(self, began: float) -> None:
        paths = [self._runtime / f"kernel-{i + 1}" for i in range(len(_SOCKETS))]
        while not all(path.exists() for path in paths):
            if time.perf_counter() - began > 60:
                log = self._engine.api.logs(self._container, tail=20)
                raise RuntimeError(f"the floor's kernel did not start: {log.decode()}")
            time.sleep(0.002)

    def stop(self) -> float:
        """Return the seconds until its container is gone."""
        began = time.perf_counter()
        if self._container:
            with contextlib.suppress(docker.errors.APIError):
                self._engine.api.remove_container(self._container, force=True)
        seconds = time.perf_counter() - began
        if self._client.channels_running:
            self._client.stop_channels()
        shutil.rmtree(self._runtime, ignore_errors=True)
        return seconds


_SOCKETS = ("shell", "iopub", "stdin", "control", "hb")
