"""A notebook without a browser: a real host kernel, and a client that runs cells in any kernel."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

CELL_TIMEOUT = 120.0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell that has run: how long until its reply and its idle were in, and its output."""

    seconds: float
    reply: dict[str, Any]
    outputs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stdout(self) -> str:
        """What it printed."""
        return "".join(m["text"] for m in self.outputs if m.get("name") == "stdout")

    @property
    def text(self) -> str:
        """The plain text of all it displayed."""
        return "".join(m["data"].get("text/plain", "") for m in self.outputs if "data" in m)


def run_cell(client: BlockingKernelClient, code: str) -> Cell:
    """Run a cell as a front end does, and raise where it fails."""
    began = time.perf_counter()
    msg_id = client.execute(code, allow_stdin=False)
    outputs = []
    while True:
        message = client.get_iopub_msg(timeout=CELL_TIMEOUT)
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        if message["msg_type"] == "status":
            if message["content"]["execution_state"] == "idle":
                break
        elif message["msg_type"] in ("stream", "display_data", "execute_result", "error"):
            outputs.append(message["content"])
    while True:
        reply = client.get_shell_msg(timeout=CELL_TIMEOUT)
        if reply["parent_header"].get("msg_id") == msg_id:
            break
    seconds = time.perf_counter() - began
    if reply["content"]["status"] != "ok":
        raise RuntimeError(f"the cell {code[:60]!r} failed: {reply['content']}")
    return Cell(seconds=seconds, reply=reply["content"], outputs=outputs)


@contextmanager
def connected(info: Mapping[str, Any]) -> Iterator[BlockingKernelClient]:
    """Connect a client to a kernel that runs, and go on when its output is seen to arrive."""
    client = BlockingKernelClient()
    client.load_connection_info(dict(info))
    client.start_channels(stdin=False, hb=False)
    try:
        until_heard(client)
        yield client
    finally:
        client.stop_channels()


def until_heard(client: BlockingKernelClient) -> None:
    """Return when the shell has answered and the first IOPub message has come: ready, no later."""
    client.kernel_info()
    client.shell_channel.socket.poll(60_000)
    while not client.iopub_channel.socket.poll(50):
        client.kernel_info()


@contextmanager
def started(manager: KernelManager, folder: Path, env: Mapping[str, str]) -> Iterator[
    BlockingKernelClient
]:  # fmt: skip
    """Start a manager's kernel, give its client, and shut it down in the end."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    manager.start_kernel(cwd=str(folder), env=dict(env), **silent)
    client = manager.client()
    client.start_channels(stdin=False, hb=False)
    try:
        client.wait_for_ready(timeout=60)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
