"""Jupyter servers for a browser: JupyterLab or Notebook, in a folder of notebooks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import nbformat

from tests.integration.notebook import containers_of
from tests.integration.test_kernelspecs import notebook_of
from tests.waiting import wait_until

OPTIONS = [
    "--no-browser",
    "--port=0",
    "--allow-root",
    "--IdentityProvider.token=",
    "--ServerApp.disable_check_xsrf=True",
    "--KernelManager.shutdown_wait_time=60",  # 5 s are short where a machine is busy
]
_ADDRESS = re.compile(r"http://(?:localhost|127\.0\.0\.1):\d+/")
_NEWS = "lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
_NO_NEWS = {"fetchNews": "false", "checkForUpdates": False}


class Server:
    """A Jupyter server, and the folder that it shows.

    Parameters
    ----------
    program : str
        The Python module to run, such as "jupyterlab".
    folder : Path
        Of notebooks.
    own : Path
        For its log, and the kernels that are installed for it.
    variables : mapping of str to str
        What is set for it beyond the environment of the tests.
    """

    def __init__(self, program: str, folder: Path, own: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self._program = program
        self._log = own / "server.log"
        self._prefix = own / "prefix"
        self._variables = {
            **os.environ,
            **variables,
            "JUPYTER_PATH": str(self._prefix / "share" / "jupyter"),
        }
        settings = Path(variables["JUPYTER_CONFIG_DIR"]) / _NEWS
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps(_NO_NEWS))

    def __enter__(self) -> Server:
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._program, *OPTIONS],
                cwd=self.folder,
                env=self._variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_until(
            lambda: _ADDRESS.search(self._log.read_text()), what="the server to start", timeout=90
        )
        wait_until(self._listens, what="the server to listen", timeout=90)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.signal(signal.SIGTERM)

    def signal(self, signum: signal.Signals) -> None:
        """Signal it, which it ends of; return when it has."""
        self._process.send_signal(signum)
        self._process.wait()

    @property
    def address(self) -> str:
        """Where it listens; ends with a slash."""
        return str(_ADDRESS.findall(self._log.read_text())[-1])

    def install_kernel(self, name: str, *options: str) -> None:
        """Install a kernel where this server finds it."""
        words = ["kernels", "install", name, "--prefix", str(self._prefix), *options]
        subprocess.run(
            [str(Path(sys.executable).with_name("dockml")), *words],
            env=self._variables,
            check=True,
            capture_output=True,
        )

    def write_notebook(self, name: str, *cells: str, kernel: str = "python3") -> None:
        """Write a notebook of these cells into the folder."""
        nbformat.write(notebook_of(kernel, *cells), self.folder / name)

    def end_kernels(self) -> None:
        """Shut all kernels down, as a front end does."""
        for session in self._ask("GET", "api/sessions"):
            self._ask("DELETE", f"api/sessions/{session['id']}")
        wait_until(lambda: not containers_of(self.folder), what="no container to be left")

    def open_notebook(self, name: str) -> Path:
        """Start a kernel for a notebook, as a front end does; return its connection file."""
        wanted = {"path": name, "name": name, "type": "notebook", "kernel": {"name": "python3"}}
        session = self._ask("POST", "api/sessions", wanted)
        return Path(
            self._variables["JUPYTER_RUNTIME_DIR"], f"kernel-{session['kernel']['id']}.json"
        )

    def _listens(self) -> bool:
        """Say whether it can be asked: it says where it listens before it does."""
        try:
            self._ask("GET", "api/status")
        except urllib.error.URLError:
            return False
        return True

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read() or "null")
