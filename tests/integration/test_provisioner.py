"""The provisioner's contract, through the ordinary managers of jupyter_client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.provisioning import KernelProvisionerFactory
from traitlets.config import Config

from dockml_magic import folders
from dockml_magic.engine import DockerEngine
from dockml_magic.errors import ConfigError, KernelError
from tests.integration.conftest import Image, Inspect, StartKernel, write_wheel
from tests.integration.kernels import PATIENCE, Kernel, Ran, write_kernelspec
from tests.waiting import wait_until

WAIT_TO_BE_INTERRUPTED = "import time; print('here', flush=True)\nwhile True: time.sleep(0.1)"
"""Not one long sleep: Python does not notice a signal that comes just before it begins."""

both_transports = pytest.mark.parametrize("transport", ["ipc", "tcp"])
now_or_polite = pytest.mark.parametrize(
    ("transport", "now"),
    [("ipc", True), ("ipc", False), ("tcp", False)],
    ids=["ipc-now", "ipc-polite", "tcp-polite"],
)


@pytest.fixture
def bare(image: Image) -> str:
    """An image that gets its kernel from the bundle."""
    return image("dockml/bare:3.11")


@both_transports
def test_a_started_kernel_is_alive_and_runs_cells(
    start: StartKernel, bare: str, transport: str
) -> None:
    kernel = start(bare, "--transport", transport)
    assert kernel.manager.is_alive()
    assert kernel.manager.has_kernel
    assert asyncio.run(kernel.manager.provisioner.poll()) is None
    ran = kernel.ok("print('out'); 1 + 1")
    assert (ran.stdout, ran.result) == ("out\n", "2")


@both_transports
def test_interrupt_ends_the_running_cell_and_not_the_kernel(
    start: StartKernel, bare: str, transport: str
) -> None:
    kernel = start(bare, "--transport", transport)
    kernel.ok("kept = 1")
    ran = kernel.run(WAIT_TO_BE_INTERRUPTED, when_printed=kernel.manager.interrupt_kernel)
    assert ran.reply["ename"] == "KeyboardInterrupt"
    assert kernel.ok("kept").result == "1"


def test_any_signal_reaches_the_kernel(start: StartKernel, bare: str) -> None:
    kernel = start(bare)
    kernel.ok(
        "import signal, time; seen = []; signal.signal(signal.SIGUSR1, lambda *a: seen.append(1))"
    )
    kernel.manager.signal_kernel(signal.SIGUSR1)
    kernel.ok("while not seen: time.sleep(0.01)")


@pytest.mark.parametrize(("method", "code"), [("kill", 137), ("terminate", 143)])
def test_wait_and_poll_tell_how_the_kernel_ended(
    start: StartKernel, bare: str, method: str, code: int
) -> None:
    provisioner = start(bare).manager.provisioner
    asyncio.run(getattr(provisioner, method)())
    assert asyncio.run(provisioner.wait()) == code
    assert asyncio.run(provisioner.poll()) == code
    assert not provisioner.has_process


@now_or_polite
def test_shutdown_leaves_nothing(
    start: StartKernel, bare: str, engine: DockerEngine, transport: str, now: bool
) -> None:
    kernel = start(bare, "--transport", transport)
    container_id = kernel.container_id
    connection_file = Path(kernel.manager.connection_file)
    kernel.ok("1")
    kernel.stop(now=now)
    assert engine.inspect(container_id) is None
    assert not list(folders.runtime_root().iterdir())
    assert not connection_file.exists()
    assert not kernel.manager.is_alive()
    assert not kernel.manager.has_kernel


def test_a_second_shutdown_is_no_error(start: StartKernel, bare: str) -> None:
    kernel = start(bare)
    kernel.stop()
    kernel.stop()


@now_or_polite
def test_restart_is_in_place(
    start: StartKernel, bare: str, inspect: Inspect, transport: str, now: bool
) -> None:
    kernel = start(bare, "--transport", transport)
    before = inspect(kernel)
    kernel.ok("variable = 1; open('/var/tmp/file', 'w').write('kept')")
    kernel.manager.restart_kernel(now=now)
    kernel.disconnect()
    assert inspect(kernel)["State"]["StartedAt"] == before["State"]["StartedAt"]
    assert inspect(kernel)["Id"] == before["Id"]
    assert kernel.ok("open('/var/tmp/file').read()").result == "'kept'"
    assert kernel.run("variable").reply["ename"] == "NameError"


def test_a_client_survives_a_restart(start: StartKernel, bare: str) -> None:
    """Front ends keep their sockets over a restart, whose addresses must not change."""
    kernel = start(bare)
    kernel.ok("variable = 1")
    before = dict(kernel.manager.get_connection_info())
    kernel.manager.restart_kernel(now=True)
    assert kernel.manager.get_connection_info() == before
    kernel.client.wait_for_ready(timeout=PATIENCE)
    assert kernel.run("variable").reply["ename"] == "NameError"


def test_what_pip_installed_survives_a_restart(
    start: StartKernel, image: Image, workspace: Path
) -> None:
    write_wheel(workspace)
    kernel = start(image("dockml/pip:3.11"), "--network", "none")
    kernel.ok("%pip install --no-index ./tiny-1.0-py3-none-any.whl")
    kernel.manager.restart_kernel(now=True)
    kernel.disconnect()
    assert kernel.ok("import tiny; tiny.answer").result == "42"


def test_a_crashed_kernel_is_restarted_in_place_by_the_restarter(
    bare: str, workspace: Path
) -> None:
    spec_name = write_kernelspec(bare)

    async def crash_and_come_back() -> tuple[str, str, int]:
        manager = AsyncIOLoopKernelManager(
            kernel_name=spec_name, config=Config({"KernelRestarter": {"time_to_dead": 0.1}})
        )
        restarted = asyncio.Event()
        await manager.start_kernel(cwd=str(workspace))
        manager.add_restart_callback(restarted.set)
        container = manager.provisioner.container
        before = container.container_id
        container.signal(signal.SIGSEGV)
        await asyncio.wait_for(restarted.wait(), PATIENCE)
        while (container.state.generation, container.state.phase) != (2, "bound"):
            await asyncio.sleep(0.05)
        await manager.ready  # its own last steps of the restart
        after = manager.provisioner.container.container_id
        alive = await manager.is_alive()
        await manager.shutdown_kernel(now=True)
        return before, after, alive

    before, after, alive = asyncio.run(asyncio.wait_for(crash_and_come_back(), PATIENCE))
    assert before == after
    assert alive


def test_an_async_manager_runs_the_whole_life(bare: str, workspace: Path) -> None:
    spec_name = write_kernelspec(bare)

    async def live() -> None:
        manager = AsyncKernelManager(kernel_name=spec_name)
        await manager.start_kernel(cwd=str(workspace))
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=PATIENCE)
            ran = Ran()
            reply = await client.execute_interactive("6 * 7", output_hook=ran.take)
            assert (reply["content"]["status"], ran.result) == ("ok", "42")
            await manager.interrupt_kernel()
            await manager.restart_kernel()
            await client.wait_for_ready(timeout=PATIENCE)
            assert await manager.is_alive()
        finally:
            client.stop_channels()
            await manager.shutdown_kernel()
        assert not await manager.is_alive()

    asyncio.run(live())


def test_a_start_that_is_cancelled_leaves_nothing(
    bare: str, workspace: Path, ours: Callable[[], list[object]]
) -> None:
    spec_name = write_kernelspec(bare)

    async def start_and_give_up() -> None:
        manager = AsyncKernelManager(kernel_name=spec_name)
        starting = asyncio.ensure_future(manager.start_kernel(cwd=str(workspace)))
        while not ours():
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(start_and_give_up())
    assert not ours()
    assert not list(folders.runtime_root().iterdir())


# --- a second manager ------------------------------------------------------------------------------

START_AND_TELL = """
import asyncio, json, sys
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name=sys.argv[1])
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
client.execute_interactive("variable = 'from the first manager'")
client.stop_channels()
print(json.dumps(asyncio.run(manager.provisioner.get_provisioner_info())), flush=True)
sys.stdin.readline()
"""


def adopt(spec_name: str, info: dict[str, Any]) -> Kernel:
    """Return a kernel that another manager started, as a front end that was restarted does."""
    manager = KernelManager(kernel_name=spec_name)
    provisioner = KernelProvisionerFactory.instance().create_provisioner_instance(
        info["kernel_id"], manager.kernel_spec, parent=manager
    )
    asyncio.run(provisioner.load_provisioner_info(info))
    manager.provisioner = provisioner
    manager.load_connection_info(provisioner.connection_info)
    manager._attempted_start = True  # or it would not let itself be restarted
    return Kernel(manager)


@pytest.fixture
def first_process(
    bare: str, workspace: Path, request: pytest.FixtureRequest
) -> Callable[[str], tuple[subprocess.Popen[str], dict[str, Any], str]]:
    """Give a function that starts a kernel in another process and returns what that said of it."""

    def start_there(transport: str) -> tuple[subprocess.Popen[str], dict[str, Any], str]:
        spec_name = write_kernelspec(bare, "--transport", transport)
        process = subprocess.Popen(
            [sys.executable, "-c", START_AND_TELL, spec_name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        request.addfinalizer(lambda: process.__exit__(None, None, None))
        request.addfinalizer(process.kill)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline()), spec_name

    return start_there


@both_transports
def test_a_second_manager_takes_a_kernel_over_when_the_first_process_ends(
    first_process: Callable[..., Any], engine: DockerEngine, transport: str
) -> None:
    process, info, spec_name = first_process(transport)
    kernel = adopt(spec_name, info)
    process.communicate("end\n", timeout=PATIENCE)
    kept = "import time; time.sleep(3); variable"  # longer than a container lives without a lease
    assert kernel.ok(kept).result == "'from the first manager'"
    assert (
        kernel.run(WAIT_TO_BE_INTERRUPTED, when_printed=kernel.manager.interrupt_kernel).reply[
            "ename"
        ]
        == "KeyboardInterrupt"
    )
    kernel.manager.restart_kernel(now=True)
    kernel.disconnect()
    assert kernel.run("variable").reply["ename"] == "NameError"
    kernel.stop()
    assert engine.inspect(info["container"]["container_id"]) is None


def test_a_kernel_whose_container_is_gone_cannot_be_taken_over(
    first_process: Callable[..., Any], engine: DockerEngine
) -> None:
    process, info, spec_name = first_process("ipc")
    process.communicate("end\n", timeout=PATIENCE)
    wait_until(lambda: engine.inspect(info["container"]["container_id"]) is None)
    with pytest.raises(KernelError, match="gone"):
        adopt(spec_name, info)


# --- arguments of start_kernel -----------------------------------------------------------------------


def test_extra_arguments_reach_ipykernel_also_after_a_restart(
    start: StartKernel, bare: str
) -> None:
    kernel = start(bare, extra_arguments=["--IPKernelApp.exec_lines=['marker = 42']"])
    assert kernel.ok("marker").result == "42"
    kernel.manager.restart_kernel(now=True)
    kernel.disconnect()
    assert kernel.ok("marker").result == "42"


def test_the_kernel_works_in_the_folder_it_was_given(
    start: StartKernel, bare: str, workspace: Path
) -> None:
    (workspace / "sub folder").mkdir()
    kernel = start(bare, cwd=str(workspace / "sub folder"))
    assert kernel.ok("import os; os.getcwd()").result == repr(str(workspace / "sub folder"))


def test_variables_given_to_the_start_arrive_and_the_hosts_do_not(
    start: StartKernel, bare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST_SECRET", "not for containers")
    kernel = start(bare, env={**os.environ, "GIVEN": "one"})
    read = "import os; [os.environ.get(name) for name in ('GIVEN', 'HOST_SECRET')]"
    assert kernel.ok(read).result == "['one', None]"
    kernel.manager.restart_kernel(now=True, env={**os.environ, "GIVEN": "two"})
    kernel.disconnect()
    assert kernel.ok(read).result == "['two', None]"


# --- transports ------------------------------------------------------------------------------------


def test_a_local_engine_is_reached_without_any_port(
    start: StartKernel, bare: str, inspect: Inspect
) -> None:
    kernel = start(bare)
    assert kernel.manager.transport == "ipc"
    assert not inspect(kernel)["HostConfig"]["PortBindings"]


def test_tcp_ports_are_published_on_the_loopback_address_only(
    start: StartKernel, bare: str, inspect: Inspect
) -> None:
    kernel = start(bare, "--transport", "tcp")
    bindings = inspect(kernel)["NetworkSettings"]["Ports"].values()
    assert {binding["HostIp"] for of_port in bindings for binding in of_port} == {"127.0.0.1"}
    assert len(bindings) == 5
    assert (kernel.manager.transport, kernel.manager.ip) == ("tcp", "127.0.0.1")


def test_an_engine_without_our_files_gets_them_copied_and_is_reached_over_tcp(
    start: StartKernel, bare: str, inspect: Inspect, far_engine: DockerEngine
) -> None:
    kernel = start(bare)
    found = inspect(kernel)
    assert kernel.manager.transport == "tcp"
    assert not found["Mounts"]
    ports = found["NetworkSettings"]["Ports"].values()
    assert {binding["HostIp"] for of_port in ports for binding in of_port} == {"127.0.0.1"}
    assert kernel.ok("1 + 1").result == "2"
    ran = kernel.run(WAIT_TO_BE_INTERRUPTED, when_printed=kernel.manager.interrupt_kernel)
    assert ran.reply["ename"] == "KeyboardInterrupt"
    kernel.manager.restart_kernel(now=True)
    kernel.disconnect()
    assert kernel.ok("1 + 1").result == "2"
    assert inspect(kernel)["Id"] == found["Id"]


@pytest.mark.parametrize("options", [("--transport", "ipc"), ("--network", "none")], ids=" ".join)
def test_what_an_engine_without_our_files_cannot_do_is_said(
    start: StartKernel, bare: str, far_engine: DockerEngine, options: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match=options[0]):
        start(bare, *options)
