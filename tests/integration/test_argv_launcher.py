"""The kernelspec's argv, run by hand as VS Code does: TCP, five given ports, 127.0.0.1, signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from dockml_magic.container import PORT_NAMES
from dockml_magic.kernelspecs import build_kernel_json
from dockml_magic.options import RunOptions
from tests.integration.conftest import Image
from tests.integration.notebook import LONG_SLEEP, PATIENCE, containers_of, never_taken_for_dead
from tests.ports import free_ports
from tests.waiting import wait_until

PARENT = """
import json, subprocess, sys
launcher = subprocess.Popen(json.loads(sys.argv[1]))
open("launcher", "w").write(str(launcher.pid))
launcher.wait()
"""


@dataclass
class Launched:
    """A launcher that was started, and a client of the ports it was given."""

    process: subprocess.Popen[str]
    client: BlockingKernelClient
    folder: Path

    def run(self, code: str) -> dict[str, Any]:
        """Run a cell; return its reply with what it printed."""
        printed: list[str] = []

        def take(message: dict[str, Any]) -> None:
            printed.append(message["content"].get("text", ""))

        reply = self.client.execute_interactive(
            code, output_hook=take, allow_stdin=False, timeout=PATIENCE
        )
        return {**reply["content"], "printed": "".join(printed)}

    def wait_for_end(self) -> int:
        """Wait until the launcher has ended; return its exit code."""
        return self.process.wait(timeout=30)


Launch = Callable[..., Launched]


def answers(client: BlockingKernelClient) -> bool:
    """Tell whether a kernel serves the ports by now; a client takes one that does not yet for dead."""
    client.kernel_info()
    try:
        client.get_shell_msg(timeout=0.5)
    except Empty:
        return False
    return True


def argv_for(reference: str, connection_file: Path) -> list[str]:
    """Return what a front end runs."""
    argv = build_kernel_json(reference, RunOptions(), "Title")["argv"]
    return [word.replace("{connection_file}", str(connection_file)) for word in argv]


@pytest.fixture
def bare(image: Image) -> str:
    return image("dockml/bare:3.11")


@pytest.fixture
def launch(workspace: Path, bare: str) -> Iterator[Launch]:
    """Give a function that starts a launcher, on the same ports each time, as a front end does."""
    file = workspace / "connection.json"
    connection = {"ip": "127.0.0.1", "transport": "tcp", "signature_scheme": "hmac-sha256"}
    ports = dict(zip(PORT_NAMES, free_ports(5), strict=True))
    running: list[Launched] = []

    def start(*before: str) -> Launched:
        file.write_text(json.dumps({**connection, **ports, "key": f"key {len(running)}"}))
        argv = argv_for(bare, file)
        older = set(containers_of(workspace))
        process = subprocess.Popen([*before, json.dumps(argv)] if before else argv, text=True)
        # A killed one serves the ports, with another key, until its container has ended.
        wait_until(
            lambda: older.isdisjoint(containers_of(workspace)),
            timeout=PATIENCE,
            what="the older one to be gone",
        )
        client = BlockingKernelClient(connection_file=str(file))
        client.load_connection_file()
        never_taken_for_dead(client)
        client.start_channels()
        running.append(Launched(process, client, workspace))
        wait_until(lambda: answers(client), timeout=PATIENCE, what="the kernel to answer")
        client.wait_for_ready(timeout=PATIENCE)
        return running[-1]

    yield start
    for launched in running:
        launched.client.stop_channels()
        launched.process.kill()
        launched.process.wait()


def test_cells_run_over_the_given_ports_of_this_machine_only(launch: Launch) -> None:
    launched = launch()
    assert launched.run("import os; print(os.path.exists('/run/dockml'))")["printed"] == "True\n"
    (container,) = containers_of(launched.folder)
    form = "{{json .NetworkSettings.Ports}}"
    shown = subprocess.run(
        ["docker", "inspect", "--format", form, container], capture_output=True, check=True
    )
    published = [bound for all_ in json.loads(shown.stdout).values() for bound in all_ or []]
    ports = json.loads((launched.folder / "connection.json").read_text())
    assert {bound["HostIp"] for bound in published} == {"127.0.0.1"}
    assert {int(bound["HostPort"]) for bound in published} == {ports[name] for name in PORT_NAMES}


def test_sigint_interrupts_the_cell_and_keeps_its_variables(launch: Launch) -> None:
    launched = launch()
    msg_id = launched.client.execute(
        f"x = 42; open('sleeping', 'w').close(); import time; {LONG_SLEEP}"
    )
    wait_until((launched.folder / "sleeping").exists, what="the cell to run")
    launched.process.send_signal(signal.SIGINT)
    reply = launched.client._recv_reply(msg_id, timeout=PATIENCE)
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert launched.run("print(x)")["printed"] == "42\n"


def test_a_shutdown_request_ends_it_with_exit_code_0(launch: Launch) -> None:
    launched = launch()
    launched.client.shutdown()
    assert launched.wait_for_end() == 0
    assert containers_of(launched.folder) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_that_ends_the_launcher_ends_the_container(launch: Launch, signum: int) -> None:
    launched = launch()
    launched.process.send_signal(signum)
    launched.wait_for_end()
    wait_until(lambda: not containers_of(launched.folder), what="no container")


def test_the_death_of_whoever_started_it_ends_the_container(launch: Launch) -> None:
    launched = launch(sys.executable, "-c", PARENT)
    pid = int((launched.folder / "launcher").read_text())
    launched.process.kill()
    launched.wait_for_end()
    wait_until(lambda: not containers_of(launched.folder), what="no container")
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="the launcher to end")


@pytest.mark.parametrize("end", ["shutdown", "kill -9"])
def test_a_second_start_on_the_same_ports_works_at_once(launch: Launch, end: str) -> None:
    first = launch()
    first.run("x = 1")
    if end == "shutdown":
        first.client.shutdown()
    else:
        first.process.kill()
    first.wait_for_end()
    first.client.stop_channels()
    assert launch().run("print('x' in globals())")["printed"] == "False\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("not json", "cannot be used"),
        ("{}", "cannot be used"),
        ('{"transport": "ipc"}', "does not name five TCP ports"),
    ],
)
def test_a_bad_connection_file_is_told_in_a_line_or_two(
    workspace: Path, bare: str, content: str | None, said: str
) -> None:
    file = workspace / "connection.json"
    if content is not None:
        file.write_text(content)
    done = subprocess.run(
        argv_for(bare, file), capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert containers_of(workspace) == []


def test_a_cell_that_ends_the_kernel_ends_the_launcher_with_its_code(launch: Launch) -> None:
    launched = launch()
    launched.client.execute("import os; os._exit(3)")
    assert launched.wait_for_end() == 3
    wait_until(lambda: not containers_of(launched.folder), what="no container")
