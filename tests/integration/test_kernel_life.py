"""The life of a kernel chosen in the launcher: crashes and what is said of them, the menu's restart, many starts.

Crashes and restarts go through the kernel manager of jupyter_server, and with it through its restarter.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.paths import jupyter_runtime_dir
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from traitlets.config import Config

from dockml_magic import folders, planning
from dockml_magic.engine import DockerEngine
from tests.integration.conftest import Image, StartKernel
from tests.integration.kernels import PATIENCE, Kernel, Ran, write_kernelspec
from tests.integration.notebook import never_taken_for_dead
from tests.waiting import wait_until

BARE = "dockml/bare:3.11"

LIVES = {"ipc": 200, "tcp": 50}
"""Kernels that the soak test starts, runs and stops."""

AT_A_TIME = 4

A_MOMENT = "import ctypes, os, time; time.sleep(0.3)\n"
"""Long enough for the kernel to have said which cell it runs: what it has not sent dies with it."""

EXIT = A_MOMENT + "os._exit(3)"
KILL = A_MOMENT + "os.kill(os.getpid(), 9)"
SEGFAULT = A_MOMENT + "ctypes.string_at(0)"
TOO_MUCH = A_MOMENT + "x = b'x' * (300 << 20)"


# --- a server ------------------------------------------------------------------------------------


class Served:
    """A kernel as Jupyter's server has it: its manager, a front end's client, and what both noted."""

    def __init__(self, manager: AsyncMappingKernelManager, kernel_id: str) -> None:
        self.manager = manager
        self.kernel_id = kernel_id
        self.notes: list[tuple[str, str]] = []
        manager.add_restart_callback(kernel_id, lambda: self.notes.append(("restarting", "")))

    @property
    def kernel(self) -> Any:
        """The kernel's own manager."""
        return self.manager.get_kernel(self.kernel_id)

    @property
    def container_id(self) -> str:
        """The engine's id of its container."""
        return str(self.kernel.provisioner.container.container_id)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncKernelClient]:
        """Give a client that has seen the kernel answer."""
        client = self.kernel.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=PATIENCE)
            yield client
        finally:
            client.stop_channels()

    async def run(self, code: str) -> Ran:
        """Run a cell to its end."""
        ran = Ran()
        async with self.client() as client:
            reply = await client.execute_interactive(code, output_hook=ran.take, timeout=PATIENCE)
        ran.reply = reply["content"]
        return ran

    async def crash(self, code: str) -> None:
        """Run a cell that ends the kernel, note what comes under it, and wait for the next kernel."""
        async with self.client() as client:
            msg_id = client.execute(code)
            while ("restarting", "") not in self.notes:
                message = await client.get_iopub_msg(timeout=PATIENCE)
                if message["msg_type"] != "stream":
                    assert message["msg_type"] in ("status", "execute_input", "iopub_welcome")
                elif message["parent_header"]["msg_id"] == msg_id:
                    self.notes.append((message["content"]["name"], message["content"]["text"]))
                    await self.until(lambda: ("restarting", "") in self.notes)
        await self.until(lambda: self.kernel.provisioner.container.poll() is None)
        await self.kernel.ready

    @staticmethod
    async def until(condition: Callable[[], object]) -> None:
        """Return as soon as `condition` holds."""
        await asyncio.to_thread(wait_until, condition, PATIENCE)


@asynccontextmanager
async def served(workspace: Path, *options: str) -> AsyncIterator[Served]:
    """Start a kernel as Jupyter's server does, and shut it down as that does."""
    log = logging.getLogger("the server's")
    config = Config({"KernelRestarter": {"time_to_dead": 1.0}})
    manager = AsyncMappingKernelManager(config=config, log=log, root_dir=str(workspace))
    kernel_id = await manager.start_kernel(kernel_name=write_kernelspec(BARE, *options))
    try:
        yield Served(manager, kernel_id)
    finally:
        await manager.shutdown_all(now=True)


@pytest.mark.parametrize(
    ("crash", "says"),
    [
        (EXIT, "died (exit code 3)."),
        (KILL, "died (exit code 137, SIGKILL)."),
        (SEGFAULT, "died (exit code 139, SIGSEGV)."),
        (TOO_MUCH, "died: killed for memory, its limit is 128 MiB (--memory)."),
    ],
    ids=["exit", "kill", "segfault", "memory"],
)
def test_a_crash_is_told_below_its_cell_and_in_the_log_and_mended_in_place(
    image: Image, workspace: Path, caplog: pytest.LogCaptureFixture, crash: str, says: str
) -> None:
    image(BARE)

    async def crash_and_go_on() -> None:
        async with served(workspace, "--memory", "128m") as kernel:
            before = kernel.container_id
            await kernel.run("open('/var/tmp/file', 'w').write('kept')")
            await kernel.crash(crash)
            # Whoever hears of the restart drops the cell: it is told before.
            (name, text), *_, last = kernel.notes
            assert name == "stderr"
            assert text.startswith(f"The kernel of '{BARE}' {says}\n")
            assert last == ("restarting", "")
            assert len(kernel.notes) == 2
            assert text.strip() in caplog.messages
            assert kernel.container_id == before
            assert (await kernel.run("open('/var/tmp/file').read()")).result == "'kept'"

    asyncio.run(crash_and_go_on())


def test_over_tcp_a_crash_is_told_in_the_log(
    start: StartKernel, image: Image, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = start(image(BARE), "--transport", "tcp")
    kernel.manager.provisioner.log = logging.getLogger("the server's")
    kernel.client.execute(EXIT)
    wait_until(lambda: "died (exit code 3)" in caplog.text, what="the death to be logged")


def test_pythons_report_of_a_crash_is_shown_and_not_with_the_next_one(
    start: StartKernel, image: Image
) -> None:
    kernel = start(image(BARE))
    assert "  | Fatal Python error: Segmentation fault" in last_words(kernel, SEGFAULT)
    kernel.manager.restart_kernel(now=True)
    kernel.disconnect()
    assert "Segmentation" not in last_words(kernel, EXIT)


def test_every_front_end_of_a_kernel_is_told_once(start: StartKernel, image: Image) -> None:
    kernel = start(image(BARE))
    other = BlockingKernelClient()
    other.load_connection_info(kernel.manager.get_connection_info())
    never_taken_for_dead(other)
    other.start_channels()
    try:
        other.wait_for_ready(timeout=PATIENCE)
        text = last_words(kernel, EXIT)
        heard: list[str] = []
        while text not in heard:
            heard.append(other.get_iopub_msg(timeout=PATIENCE)["content"].get("text", ""))
        kernel.manager.restart_kernel(now=True)
        kernel.disconnect()
        while "execute_result" not in heard:  # it comes back to the next kernel in its own time
            other.execute("6 * 7")
            message = other.get_iopub_msg(timeout=PATIENCE)
            heard += [message["msg_type"], message["content"].get("text", "")]
        assert heard.count(text) == 1
    finally:
        other.stop_channels()


def last_words(kernel: Kernel, crash: str) -> str:
    """Run a cell that ends the kernel; return what is said under it by another than the kernel."""
    msg_id = kernel.client.execute(crash)
    while True:
        message = kernel.client.get_iopub_msg(timeout=PATIENCE)
        is_its = message["parent_header"].get("msg_id") == msg_id
        if is_its and "died" in message["content"].get("text", ""):
            return str(message["content"]["text"])


def test_a_notebook_that_nbclient_ran_shows_why_its_kernel_died(
    image: Image, workspace: Path
) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(EXIT)])
    spec_name = write_kernelspec(image(BARE))
    client = NotebookClient(notebook, kernel_name=spec_name)
    with pytest.raises(DeadKernelError):
        client.execute(cwd=str(workspace))
    (output,) = notebook.cells[0].outputs
    assert output.name == "stderr"
    assert "died (exit code 3)" in output.text


@pytest.mark.parametrize("now", [True, False], ids=["now", "polite"])
def test_a_restart_from_the_menu_keeps_the_container_and_a_shutdown_removes_it(
    image: Image,
    workspace: Path,
    engine: DockerEngine,
    caplog: pytest.LogCaptureFixture,
    now: bool,
) -> None:
    image(BARE)

    async def restart_and_end() -> str:
        async with served(workspace) as kernel:
            before = kernel.container_id
            await kernel.run("variable = 1; open('/var/tmp/file', 'w').write('kept')")
            await kernel.manager.restart_kernel(kernel.kernel_id, now=now)
            assert kernel.container_id == before
            assert (await kernel.run("open('/var/tmp/file').read()")).result == "'kept'"
            assert (await kernel.run("variable")).reply["ename"] == "NameError"
            await kernel.manager.shutdown_kernel(kernel.kernel_id, now=now)
            assert engine.inspect(before) is None
        return before

    asyncio.run(restart_and_end())
    assert "died" not in caplog.text  # nobody is told of an end that was asked for


# --- many lives --------------------------------------------------------------------------------------

LINES = "".join(f"line {i}\n" for i in range(20))
SAY_THEM = (
    "import sys\nfor i in range(20):\n    print('line %d' % i)\nsys.stderr.write('done\\n');\n6 * 7"
)


async def live_once(spec_name: str, workspace: Path, *, now: bool) -> None:
    """Start a kernel, run a cell, see that every message of it has come, and stop."""
    manager = AsyncKernelManager(kernel_name=spec_name)
    await manager.start_kernel(cwd=str(workspace))
    client = manager.client()
    client.start_channels()
    kinds: list[str] = []
    ran = Ran()

    def take(message: dict[str, Any]) -> None:
        ran.take(message)
        if message["msg_type"] != "stream":  # of which there may be one or many
            kinds.append(message["msg_type"])

    try:
        await client.wait_for_ready(timeout=PATIENCE)
        await client.execute_interactive(SAY_THEM, output_hook=take, timeout=PATIENCE)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=now)
    assert kinds == ["status", "execute_input", "execute_result", "status"]
    assert (ran.stdout, ran.stderr, ran.result) == (LINES, "done\n", "42")


async def live(spec_name: str, workspace: Path, times: int) -> None:
    """Run that many lives, a few at a time."""
    numbers = iter(range(times))

    async def one_after_the_other() -> None:
        for number in numbers:
            await live_once(spec_name, workspace, now=number % 2 == 0)

    await asyncio.gather(*[one_after_the_other() for _ in range(AT_A_TIME)])


def held() -> dict[str, object]:
    """Return what this process holds, and what lies in the folders that its kernels use."""
    gc.collect()
    for engine in planning._engines.values():
        engine._client.api.close()  # idle connections to the engine, kept for the next request
    sockets = Path("/proc/net/unix").read_text().splitlines()
    runtime = folders.runtime_root()
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "sockets": [line for line in sockets if str(runtime) in line],
        "folders": list(runtime.iterdir()),
        "connection files": list(Path(jupyter_runtime_dir()).glob("*")),
    }


ENDING = {"dockml-end", "dockml-control"}
"""Threads that nobody waits for."""


@pytest.mark.timeout(1000)
@pytest.mark.parametrize(("transport", "times"), LIVES.items())
def test_many_kernels_lose_no_message_and_leave_nothing(
    image: Image,
    workspace: Path,
    ours: Callable[[], list[object]],
    transport: str,
    times: int,
) -> None:
    spec_name = write_kernelspec(image(BARE), "--transport", transport)
    asyncio.run(live(spec_name, workspace, AT_A_TIME))  # what is made once and kept is there now
    wait_until(lambda: not ENDING & {thread.name for thread in threading.enumerate()})
    before = held()
    asyncio.run(live(spec_name, workspace, times))
    wait_until(lambda: held() == before, what=f"all to be given back: {before}")
    assert not ours()
