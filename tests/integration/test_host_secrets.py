"""What others on this machine can see and reach of a kernel: keys, sockets, files, ports."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

from dockml_magic import folders, handover
from dockml_magic.engine import DockerEngine
from tests.integration.conftest import Image, Inspect, StartKernel
from tests.integration.kernels import Kernel

BARE = "dockml/bare:3.11"
NOBODY = "65534"


def addresses_of(ports: set[int]) -> set[str]:
    """Return the addresses of this machine on which somebody listens on these ports."""
    shown = subprocess.run(["ss", "-Hlntu"], capture_output=True, text=True, check=True).stdout
    found = [row.split()[4].rpartition(":") for row in shown.splitlines()]
    return {address for address, _, port in found if port.isdecimal() and int(port) in ports}


def own_listeners() -> set[object]:
    """Return what this process listens on, other than Unix sockets."""
    return {c.laddr for c in psutil.Process().net_connections("inet") if not c.raddr}


def command_lines() -> str:
    """Return the command lines of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def as_nobody(*command: str) -> int:
    """Run a command as another user without any rights; return its exit code."""
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    become = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    rights = ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]
    return subprocess.run([*become, *rights, *command], check=False, capture_output=True).returncode


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the keeper outlives us
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_no_key_is_logged_or_shown_and_nobody_else_reaches_a_kernel(
    engine: DockerEngine,
    image: Image,
    start: StartKernel,
    inspect: Inspect,
    caplog: pytest.LogCaptureFixture,
    transport: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    before = own_listeners()
    kernel: Kernel = start(image(BARE), "--transport", transport)
    kernel.ok("print('works')")
    container = kernel.manager.provisioner.container
    key = container.plan.key
    assert len(key) >= 32

    assert own_listeners() <= before
    published = inspect(kernel)["NetworkSettings"]["Ports"]
    ports = {int(binding["HostPort"]) for bound in published.values() for binding in bound or ()}
    assert len(ports) == (5 if transport == "tcp" else 0)
    assert addresses_of(ports) == ({"127.0.0.1"} if transport == "tcp" else set())

    info = {"workspace": "/", "container": container.describe()}
    assert handover.hand_over(kernel.manager.connection_file, [info])
    told = command_lines()
    handed_over = handover._file_for(kernel.manager.connection_file)
    assert handed_over.stat().st_mode & 0o777 == 0o600
    handover.end_handover(kernel.manager.connection_file)
    assert str(handed_over) in told, "the keeper's command line was looked at"
    assert key not in told

    kernel.disconnect()
    kernel.manager.restart_kernel(now=True)
    kernel.ok("print('works')")
    assert key not in caplog.text
    assert "container" in caplog.text
    assert key not in engine.logs(container.container_id, 1000)
    assert key not in repr(container.plan)
    assert key not in str(container.state)
    assert key not in str(inspect(kernel))

    assert Path(kernel.manager.connection_file).stat().st_mode & 0o077 == 0
    assert folders.runtime_root().stat().st_mode & 0o777 == 0o700
    if os.getuid() == 0:
        shared = container._runtime.shared
        folders.runtime_root().parent.chmod(0o755)  # the test's own is closed as well
        Path(kernel.manager.connection_file).parent.chmod(0o755)
        assert as_nobody("true") == 0
        assert as_nobody("ls", str(folders.runtime_root().parent)) == 0
        for path in (shared, shared / "config.json", Path(kernel.manager.connection_file)):
            assert as_nobody("test", "-r", str(path)) == 1, path


def test_each_kernel_has_a_key_and_a_folder_of_its_own(image: Image, start: StartKernel) -> None:
    one, two = start(image(BARE)), start(image(BARE))
    containers = [kernel.manager.provisioner.container for kernel in (one, two)]
    assert containers[0].plan.key != containers[1].plan.key
    found = two.ok(
        "import os, json\n"
        "def mine(path):\n"
        "    try:\n"
        "        return open(path).read()\n"
        "    except (OSError, UnicodeDecodeError):\n"
        "        return ''\n"
        "print([mine(os.path.join(folder, name)) for folder, _, names in os.walk('/run') for name in names\n"
        "       if name.endswith('.json')])"
    ).stdout
    assert containers[1].plan.key in found
    assert containers[0].plan.key not in found
    assert not Path(str(containers[0]._runtime.path)).is_relative_to(Path.cwd())
    assert (
        one.ok(f"import os; os.path.exists({str(containers[1]._runtime.path)!r})").result == "False"
    )
