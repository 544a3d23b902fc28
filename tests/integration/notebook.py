"""A notebook as a front end drives it: a real host kernel, and every message it sends back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from types import TracebackType
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.client import KernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

from tests.waiting import wait_until

PATIENCE = 90.0
"""Seconds after which a message that does not come is a failure."""

LONG_SLEEP = "[time.sleep(0.1) for _ in range(6000)]"
"""What a cell does that is to be interrupted: a signal between Python's last look and a long sleep would be lost."""

IPYKERNELS = ("ipykernel7", "ipykernel6")


def python_with(ipykernel: str) -> Path:
    """Return the interpreter of the host kernel: this one, or that of the environment beside it."""
    if ipykernel == IPYKERNELS[0]:
        return Path(sys.executable)
    return Path(sys.prefix).with_name(f".venv-{ipykernel}") / "bin" / "python"


@dataclass
class Cell:
    """What one request gave: its reply, and what was published under it, in order."""

    reply: dict[str, Any] = field(default_factory=dict)
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def of(self, msg_type: str) -> list[dict[str, Any]]:
        """Return the contents of all messages of a type."""
        return [content for kind, content in self.messages if kind == msg_type]

    def printed(self, name: str = "stdout") -> str:
        """Return a stream's text."""
        return "".join(c["text"] for c in self.of("stream") if c["name"] == name)

    @property
    def result(self) -> str:
        """The last expression's text."""
        return "".join(content["data"]["text/plain"] for content in self.of("execute_result"))

    @property
    def traceback(self) -> str:
        """What the front end shows of an error."""
        return "\n".join("\n".join(content["traceback"]) for content in self.of("error"))

    @property
    def is_idle(self) -> bool:
        """The kernel has said that it is done with it."""
        return any(content["execution_state"] == "idle" for content in self.of("status"))


class Notebook:
    """A host kernel and the client of a front end.

    Parameters
    ----------
    folder : Path
        The notebook's.
    python : Path
        The interpreter of its kernel.
    variables : mapping of str to str
        What is set for that kernel beyond the environment of the tests.
    """

    def __init__(self, folder: Path, python: Path, variables: Mapping[str, str] = {}) -> None:
        self.folder = folder
        # A front end ends a kernel by force after 2.5 and 5 s; the faults are elsewhere, here it may take its time.
        self.manager = KernelManager(shutdown_wait_time=PATIENCE)
        argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self.manager._kernel_spec = KernelSpec(argv=argv, language="python")
        self._variables = dict(variables)
        self._cells: dict[str, Cell] = {}
        self._replies: dict[str, dict[str, Any]] = {}
        self._finished: set[str] = set()
        self._stacks = os.memfd_create("stacks")
        weakref.finalize(self, os.close, self._stacks)

    def __enter__(self) -> Notebook:
        self.manager.start_kernel(cwd=str(self.folder), env={**os.environ, **self._variables})
        self._connect()
        return self

    def _connect(self) -> None:
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)
        # Whoever reads of a cell that did not end wants to know where the kernel was.
        register = (
            "import faulthandler, signal\n"
            f"faulthandler.register(signal.SIGUSR1, open('/proc/{os.getpid()}/fd/{self._stacks}', 'w'))\n"
            "del faulthandler, signal"
        )
        reply = self._reply(self.client.execute(register, silent=True, store_history=False))
        assert reply["status"] == "ok", reply

    def stacks(self) -> str:
        """Return what the threads of the host kernel do; nothing of one that a server has started."""
        if not self.manager.has_kernel:
            return ""
        self.manager.signal_kernel(signal.SIGUSR1)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: os.fstat(self._stacks).st_size, timeout=5.0)
        time.sleep(0.2)  # for the rest of it
        return os.pread(self._stacks, 1 << 20, 0).decode()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel()

    @property
    def pid(self) -> int:
        """The host kernel's process."""
        return int(self.manager.provisioner.pid)

    def send(self, code: str, **more: Any) -> str:
        """Send a cell and do not wait; return its id."""
        more.setdefault("stop_on_error", True)
        msg_id = self.client.execute(code, **{"allow_stdin": False, **more})
        self._cells[msg_id] = Cell()
        return msg_id

    def send_all(self, *cells: str) -> list[str]:
        """Send cells as "Run All" does, and return their ids; none begins before all of them are there."""
        first = self.send("input()", allow_stdin=True, store_history=False)
        ids = [self.send(cell) for cell in cells]
        self.answer("")
        self.finish(first)
        return ids

    def run(self, code: str, **more: Any) -> Cell:
        """Run a cell to its end."""
        return self.finish(self.send(code, **more))

    def use(self, name: str, *options: str) -> Cell:
        """Switch to an environment, or start it."""
        return self.ok(" ".join(["%docker_env", name, *options]))

    def ok(self, code: str, **more: Any) -> Cell:
        """Run a cell that must not fail."""
        cell = self.run(code, **more)
        # An ipykernel before 6 does so just after an error.
        while cell.reply["status"] == "aborted":
            cell = self.run(code, **more)
        assert cell.reply["status"] == "ok", cell.traceback or cell.reply
        return cell

    def finish(self, msg_id: str) -> Cell:
        """Wait for a cell's reply and its last output."""
        cell = self._cells[msg_id]
        self.wait(msg_id, lambda cell: cell.is_idle)
        cell.reply = self._reply(msg_id)
        self._finished.add(msg_id)
        return cell

    def wait(self, msg_id: str, seen: Callable[[Cell], bool]) -> Cell:
        """Take in output until what is looked for was published under a cell."""
        cell = self._cells[msg_id]
        deadline = time.monotonic() + PATIENCE
        while not seen(cell):
            try:
                message = self.client.get_iopub_msg(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise AssertionError(
                    f"not seen within {PATIENCE:.0f} s in {cell}\n{self.stacks()}"
                ) from None
            parent = message["parent_header"].get("msg_id", "")
            self._cells.setdefault(parent, Cell()).messages.append(
                (message["msg_type"], message["content"])
            )
        return cell

    def wait_printed(self, msg_id: str, text: str) -> None:
        """Wait until a running cell has printed something."""
        self.wait(msg_id, lambda cell: text in cell.printed())

    def answer(self, value: str) -> str:
        """Answer the question that a running cell asks; return the prompt."""
        prompt = self.wait_asked()
        self.client.input(value)
        return prompt

    def wait_asked(self) -> str:
        """Wait for a question; return its prompt. One of a cell that has ended is none any more."""
        while True:
            question = self.client.get_stdin_msg(timeout=PATIENCE)
            if question["parent_header"].get("msg_id") not in self._finished:
                return str(question["content"]["prompt"])

    def ask(self, request: str, *arguments: Any) -> dict[str, Any]:
        """Send a complete, inspect or is_complete request; return its reply."""
        return self._reply(getattr(self.client, request)(*arguments))

    def interrupt(self) -> None:
        """Press the stop button."""
        self.manager.interrupt_kernel()

    def restart(self) -> None:
        """Restart the host kernel, as a front end's menu does: what was loaded is gone."""
        self.client.stop_channels()
        self.manager.restart_kernel()
        self._connect()

    def kill(self) -> None:
        """End the host kernel as `kill -9` does."""
        self.manager.signal_kernel(signal.SIGKILL)

    def _reply(self, msg_id: str) -> dict[str, Any]:
        while msg_id not in self._replies:
            message = self.client.get_shell_msg(timeout=PATIENCE)
            self._replies[message["parent_header"]["msg_id"]] = message["content"]
        return self._replies.pop(msg_id)


@contextmanager
def not_before_it_is_told(notebook: Notebook) -> Iterator[str]:
    """Give the end of a cell that fails for what it publishes: its reply does not come before that is read."""
    go_on = notebook.folder / "go-on"
    go_on.unlink(missing_ok=True)
    try:
        yield "\nimport os, time\nwhile not os.path.exists('go-on'): time.sleep(0.05)"
    finally:
        go_on.touch()


def holding_starts(folder: Path) -> str:
    """Return an option with which the kernel of an environment comes up once there is a file `go-on` in the folder."""
    (folder / "sitecustomize.py").write_text(
        "import os, time\n"
        "while (\n"
        "    'kernel' in open('/proc/self/cmdline').read().split('\\0')\n"
        f"    and not os.path.exists({str(folder / 'go-on')!r})\n"
        "):\n"
        "    time.sleep(0.05)\n"
    )
    return f"-e PYTHONPATH={folder}"


def never_taken_for_dead(client: KernelClient) -> None:
    """Have a client wait for a kernel that binds its heartbeat later than a second from now."""
    client.hb_channel.time_to_dead = PATIENCE


def containers_of(folder: Path) -> list[str]:
    """Return the containers whose workspace this is, running or not."""
    label = f"label=io.github.dockml-magic.workspace={folder}"
    listed = subprocess.run(
        ["docker", "ps", "-aq", "--filter", label], capture_output=True, text=True, check=True
    )
    return listed.stdout.split()
