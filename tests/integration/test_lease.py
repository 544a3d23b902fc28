"""The lease: when the process that holds a kernel is gone, however it went, so is the container."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dockml_magic import container as containers
from dockml_magic import planning
from dockml_magic.control import ControlChannel
from dockml_magic.engine import DockerEngine
from dockml_magic.options import RunOptions
from tests.integration.conftest import Image, StartKernel
from tests.integration.kernels import write_kernelspec
from tests.waiting import wait_until

LIMIT = 30.0
"""Seconds after which no container may be left: of a busy machine, it takes 2 to 3 otherwise."""

HOLD = """
import sys
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name=sys.argv[1])
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
client.execute(sys.argv[2])
print(manager.provisioner.container.container_id, flush=True)
sys.stdin.readline()
client.stop_channels()
"""

STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "while True: pass"])
while True: pass
"""


def is_gone(engine: DockerEngine, container_id: str) -> bool:
    return engine.inspect(container_id) is None


@pytest.mark.parametrize(
    ("end", "options", "cell"),
    [
        (signal.SIGKILL, (), "pass"),
        (signal.SIGKILL, ("--transport", "tcp"), "pass"),
        (signal.SIGKILL, ("--user", "12345:12345"), STUBBORN),
        (signal.SIGTERM, (), "pass"),
        (None, (), "pass"),
    ],
    ids=["kill -9", "kill -9, tcp", "kill -9, stubborn kernel", "kill", "exit"],
)
def test_the_end_of_the_process_ends_the_container(
    image: Image,
    engine: DockerEngine,
    workspace: Path,
    end: signal.Signals | None,
    options: tuple[str, ...],
    cell: str,
) -> None:
    spec_name = write_kernelspec(image("dockml/ipykernel:7"), *options)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, spec_name, cell],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        container_id = process.stdout.readline().strip()
        assert not is_gone(engine, container_id)
        if end is not None:
            process.send_signal(end)
        else:
            process.communicate("end\n")
        process.wait()
        wait_until(lambda: is_gone(engine, container_id), LIMIT)


@pytest.mark.parametrize("is_far", [False, True], ids=["local", "far"])
def test_the_last_of_two_connections_holds_the_lease(
    start: StartKernel,
    image: Image,
    engine: DockerEngine,
    is_far: bool,
    request: pytest.FixtureRequest,
) -> None:
    if is_far:
        request.getfixturevalue("far_engine")
    kernel = start(image("dockml/ipykernel:7"))
    kernel.ok(
        "pass"
    )  # without our connection its client would take it for dead, while it becomes ready
    container = kernel.manager.provisioner.container
    far_address = container._control._socket.getpeername()
    address = far_address if is_far else container._runtime.shared / "control"
    second = ControlChannel(address, container.plan.key)
    assert second.wait(lambda state: state.generation > 0, LIMIT)  # it has been let in
    container._control.close()
    assert kernel.ok("import time; time.sleep(3); 1 + 1").result == "2"  # the grace is 2 s
    second.close()
    wait_until(lambda: is_gone(engine, container.container_id), LIMIT)


def test_who_does_not_know_the_key_is_told_nothing(start: StartKernel, image: Image) -> None:
    kernel = start(image("dockml/ipykernel:7"))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(kernel.manager.provisioner.container._runtime.shared / "control"))
        stranger.sendall(json.dumps({"key": "guessed"}).encode() + b'\n{"op": "stop"}\n')
        assert stranger.recv(100) == b""
    assert kernel.ok("1 + 1").result == "2"


def test_docker_stop_ends_it_at_once(
    start: StartKernel, image: Image, engine: DockerEngine
) -> None:
    """The first process of a container is deaf to SIGTERM, unless it listens."""
    kernel = start(image("dockml/ipykernel:7"))
    container_id = kernel.container_id
    engine._client.api.kill(container_id, signal="SIGTERM")
    wait_until(lambda: is_gone(engine, container_id), LIMIT)
    wait_until(lambda: not kernel.manager.is_alive())


def test_a_container_that_was_never_started_is_removed_by_the_next_process(
    engine: DockerEngine, image: Image, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planning.make_plan(
        image("bare:3.11"), RunOptions(), workspace, engine=engine, tell=print
    )
    created: list[str] = []

    def killed(container_id: str) -> None:
        created.append(container_id)
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(engine, "start", killed)
        patch.setattr(engine, "remove", lambda container_id: None)
        with pytest.raises(_Killed):
            containers.KernelContainer(engine, plan, print).start()
    monkeypatch.setattr(planning, "_engines", {})
    next_engine = planning.engine_for(RunOptions())
    assert isinstance(next_engine, DockerEngine)
    next_engine._client.close()
    assert is_gone(engine, created[0])


class _Killed(BaseException):
    """Stands for the end of the process."""
