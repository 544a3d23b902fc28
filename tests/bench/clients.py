"""A front end without a browser: runs cells in any kernel. Needs jupyter_client alone: peers run it too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient

CELL_TIMEOUT = 120.0
READY_TIMEOUT = 60.0


@dataclass(frozen=True)
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


def run_cell(client: BlockingKernelClient, code: str, timeout: float = CELL_TIMEOUT) -> Cell:
    """Run a cell as a front end does, and raise where it fails."""
    began = time.perf_counter()
    msg_id = client.execute(code, allow_stdin=False)
    outputs = []
    while True:
        message = client.get_iopub_msg(timeout=timeout)
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        if message["msg_type"] == "status":
            if message["content"]["execution_state"] == "idle":
                break
        elif message["msg_type"] in ("stream", "display_data", "execute_result", "error"):
            outputs.append(message["content"])
    reply = wait_for_reply(client, msg_id, timeout)
    seconds = time.perf_counter() - began
    if reply["status"] != "ok":
        raise RuntimeError(
            f"the cell {code[:60]!r} failed: {reply.get('ename')}: {reply.get('evalue')}"
        )
    return Cell(seconds, reply, outputs)


def wait_for_reply(client: BlockingKernelClient, msg_id: str, timeout: float) -> dict[str, Any]:
    """Return the content of the reply to a message."""
    while True:
        reply = client.get_shell_msg(timeout=timeout)
        if reply["parent_header"].get("msg_id") == msg_id:
            content: dict[str, Any] = reply["content"]
            return content


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


def until_heard(client: BlockingKernelClient, is_alive: Callable[[], bool] = lambda: True) -> None:
    """Return when the shell has answered and the first IOPub message has come: ready, no later."""
    deadline = time.monotonic() + READY_TIMEOUT
    client.kernel_info()
    while not client.shell_channel.socket.poll(500):
        if not is_alive():
            raise RuntimeError("the kernel died as it started")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the kernel did not answer within {READY_TIMEOUT:g} s")
    while not client.iopub_channel.socket.poll(50):
        client.kernel_info()
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing of the kernel's output came within {READY_TIMEOUT:g} s")
