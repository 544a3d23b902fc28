"""A kernel as a front end has it: a kernelspec on disk, an ordinary manager, a client."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_core.paths import jupyter_data_dir

from dockml_magic.kernelspecs import build_kernel_json
from dockml_magic.names import kernel_name
from dockml_magic.options import parse_words

PATIENCE = 60.0
"""Seconds after which a message that does not come is a failure."""


@dataclass
class Ran:
    """What a cell gave."""

    reply: Mapping[str, Any] = field(default_factory=dict)
    stdout: str = ""
    stderr: str = ""
    result: str = ""
    traceback: str = ""

    def take(self, message: Mapping[str, Any]) -> None:
        """Take in one IOPub message."""
        content = message["content"]
        match message["msg_type"]:
            case "stream" if content["name"] == "stdout":
                self.stdout += content["text"]
            case "stream":
                self.stderr += content["text"]
            case "execute_result":
                self.result = content["data"]["text/plain"]
            case "error":
                self.traceback = "\n".join(content["traceback"])


def write_kernelspec(name: str, *options: str) -> str:
    """Write a kernelspec into the test's own Jupyter folder; return its name."""
    spec_name = kernel_name(name)
    folder = Path(jupyter_data_dir()) / "kernels" / spec_name
    folder.mkdir(parents=True, exist_ok=True)
    content = build_kernel_json(name, parse_words("test", options), name)
    (folder / "kernel.json").write_text(json.dumps(content))
    return spec_name


class Kernel:
    """A kernel, its manager and a client that is ready."""

    def __init__(self, manager: KernelManager) -> None:
        self.manager = manager
        self._client: BlockingKernelClient | None = None

    @classmethod
    def of(cls, name: str, *options: str) -> Kernel:
        """Return the kernel for a name and options as words; it is not started yet."""
        spec_name = write_kernelspec(name, *options)
        return cls(KernelManager(kernel_name=spec_name, shutdown_wait_time=PATIENCE))

    def start(self, **keywords: Any) -> Kernel:
        """Start it with the keywords of `KernelManager.start_kernel`."""
        self.manager.start_kernel(**keywords)
        return self

    @property
    def client(self) -> BlockingKernelClient:
        """A client that has seen the kernel answer."""
        if self._client is None:
            self._client = self.manager.client()
            self._client.start_channels()
            self._client.wait_for_ready(timeout=PATIENCE)
        return self._client

    @property
    def container_id(self) -> str:
        """The engine's id of its container, "" without one."""
        container = self.manager.provisioner.container
        return container.container_id if container else ""

    @property
    def report(self) -> Mapping[str, Any]:
        """What is known of its interpreter."""
        return self.manager.provisioner.container.state.report

    def run(self, code: str, when_printed: Callable[[], object] | None = None) -> Ran:
        """Run a cell and return what it gave once the kernel is idle again.

        `when_printed` is called as soon as the cell has printed something.
        """
        ran = Ran()

        def take(message: Mapping[str, Any]) -> None:
            is_first = message["msg_type"] == "stream" and not ran.stdout
            ran.take(message)
            if is_first and when_printed is not None:
                when_printed()

        ran.reply = self.client.execute_interactive(
            code, output_hook=take, allow_stdin=False, timeout=PATIENCE
        )["content"]
        return ran

    def ok(self, code: str) -> Ran:
        """Run a cell that must not fail."""
        ran = self.run(code)
        assert ran.reply["status"] == "ok", ran.traceback or ran.reply
        return ran

    def disconnect(self) -> None:
        """Close the client; the next cell opens a new one."""
        if self._client is not None:
            self._client.stop_channels()
            self._client = None

    def stop(self, *, now: bool = True) -> None:
        """End it and all that belongs to it. Not running is no error."""
        self.disconnect()
        if self.manager.provisioner is not None:
            self.manager.shutdown_kernel(now=now)
