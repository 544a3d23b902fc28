"""`resources/launch.py` as a real process of this machine, on every Python that is here.

What an image has is a folder on PYTHONPATH; its kernel is `stand_in_kernel.py`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dockml_magic import kernel_bundle
from dockml_magic.control import ControlChannel, KernelState
from dockml_magic.errors import KernelError
from tests.ports import free_ports
from tests.unit.conftest import LAUNCHER
from tests.waiting import wait_until

STAND_IN = Path(__file__).with_name("stand_in_kernel.py")
VERSIONS = ("2.7", "3.6", "3.9", "3.11", "3.13")
EXTREMES = (VERSIONS[0], VERSIONS[-1])
KEY = "the key"
TIMEOUT = 20.0

HIDE_SITE_PACKAGES = """
import os, sys
sys.path[:] = [folder for folder in sys.path if not folder.endswith("-packages")]
listdir = os.listdir
def list_image(folder="."):
    foreign = "share/jupyter" in folder and not folder.startswith(os.environ["HOME"])
    return [] if foreign else listdir(folder)
os.listdir = list_image
"""
"""Neither the packages nor the Jupyter kernels of this machine are the image's."""
AS_SUBREAPER = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1); os.execv(sys.argv[1], sys.argv[1:])"
)
"""Orphans go to a container's first process; prctl(PR_SET_CHILD_SUBREAPER) makes it so here too."""
WITH_CHANGE = """
import sys
sys.path.insert(0, {folder!r})
import launch
{change}
launch.Supervisor({config!r}).run()
"""


@functools.cache
def pyenv_versions() -> Path:
    """Return the folder in which pyenv, if it is here, keeps its Pythons."""
    with contextlib.suppress(OSError):
        done = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False)
        return Path(done.stdout.strip() or "/nonexistent") / "versions"
    return Path("/nonexistent")


@functools.cache
def find_python(version: str) -> str | None:
    """Return a Python of this version that runs: one of pyenv's, or one on PATH."""
    found = sorted(pyenv_versions().glob(f"{version}.*/bin/python{version}"))
    candidates = [*map(str, found), shutil.which(f"python{version}")]
    code = "import sys; sys.stdout.write(sys.executable or '')"
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout:
            return done.stdout
    return None


def the_python(version: str) -> str:
    if (python := find_python(version)) is None:
        pytest.skip(f"needs a Python {version}, on PATH or of pyenv")
    return python


class Machine:
    """Stands for a container: an interpreter, what the image has, and the runtime folder."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python = python
        self.folder = folder
        self.image = folder / "image"
        self.programs = folder / "bin"
        self.bundles = folder / "bundles"
        self.runtime = folder / "run"
        self.home = folder / "user"
        parts = (self.image, self.programs, self.bundles, self.runtime, self.home, folder / "lib")
        for part in parts:
            part.mkdir()
        (folder / "lib" / "sitecustomize.py").write_text(HIDE_SITE_PACKAGES)
        self._events = folder / "events"
        self._events.touch()
        self.process: subprocess.Popen[bytes] | None = None
        self._channels: list[ControlChannel] = []
        self.config: dict[str, Any] = {
            "key": KEY,
            "control": str(self.runtime / "control"),
            "connection": {
                "transport": "ipc",
                "ip": str(self.runtime / "kernel"),
                **{f"{name}_port": i + 1 for i, name in enumerate(_SOCKETS)},
            },
            "connection_file": str(self.runtime / "connection.json"),
            "extra_arguments": [],
            "bundles": str(self.bundles),
            "grace": 30.0,
            "interpreter": "",
            "kernel": "",
            "user": None,
        }

    # --- the image --------------------------------------------------------------------------------

    def install(self, name: str, version: str = "1.0", *, into: Path | None = None) -> Path:
        """Put a distribution into the image (or elsewhere) and return its package's folder."""
        site = into or self.image
        package = site / name
        package.mkdir(parents=True)
        (site / f"{name}-{version}.dist-info").mkdir()
        (package / "__init__.py").write_text(f"__version__ = {version!r}\n")
        if name == "ipykernel":
            shutil.copy(STAND_IN, package / "kernelapp.py")
        return package

    def give_image_a_kernel(self) -> None:
        self.install("ipykernel", "4.10.1")
        self.install("zmq", "17.0")

    def build_bundle(self, report: dict[str, Any], **at_least: str) -> Path:
        """Make a bundle of ipykernel 9.0, zmq 9.0 and what else is named; return its folder."""
        bundle = self.bundles / kernel_bundle.bundle_name(report)
        rows = []
        for name in ("ipykernel", "zmq", *at_least):
            self.install(name, "9.0", into=bundle / name)
            least = at_least.get(name, "0")
            rows.append({"name": name, "version": "9.0", "folder": name, "at_least": least})
        (bundle / "bundle.json").write_text(json.dumps({"distributions": rows}))
        return bundle

    def add_program(self, name: str, script: str) -> None:
        """Put a program on the image's PATH."""
        path = self.programs / name
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)

    def add_kernelspec(self, name: str, language: str, **entries: Any) -> Path:
        """Put a kernelspec into the image, by default of a program that is not there; return its folder."""
        folder = self.home / ".local/share/jupyter/kernels" / name
        folder.mkdir(parents=True)
        spec = {"argv": ["not-here"], "display_name": name, "language": language, **entries}
        (folder / "kernel.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
        return folder

    # --- the supervisor ---------------------------------------------------------------------------

    def write_config(self, **changes: Any) -> None:
        self.config.update(changes)
        self.config_path.write_text(json.dumps(self.config))
        connection = json.dumps(self.config["connection"])
        (self.runtime / "connection.json").write_text(connection)

    def start(self, *words: str, **changes: Any) -> None:
        """Start the supervisor; `words` go to the stand-in, `changes` to its configuration."""
        self.write_config(extra_arguments=list(words), **changes)
        self.run([self.python, str(LAUNCHER), "supervise", str(self.config_path)])

    @property
    def config_path(self) -> Path:
        return self.runtime / "config.json"

    def start_with(self, change: str) -> None:
        """Start it with something in the script changed."""
        self.write_config()
        values = {"folder": str(LAUNCHER.parent), "config": str(self.config_path)}
        self.run([self.python, "-c", WITH_CHANGE.format(change=change, **values)])

    def run(self, command: list[str]) -> None:
        env = {
            "PATH": str(self.programs),
            "HOME": str(self.home),
            "PYTHONPATH": f"{self.folder / 'lib'}{os.pathsep}{self.image}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "STAND_IN_EVENTS": str(self._events),
        }
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command, env=env, cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def connect(self, key: str = KEY) -> ControlChannel:
        """Open a control channel as the host does, and wait for the first state."""
        control = self.config["control"]
        address = Path(control) if isinstance(control, str) else ("127.0.0.1", control)
        before = len(self._channels)

        def is_connected() -> bool:
            assert self.is_running, f"the supervisor ended: {self.log}"
            with contextlib.suppress(OSError):
                self._channels.append(ControlChannel(address, key))
            return len(self._channels) > before

        wait_until(is_connected)
        channel = self._channels[-1]
        channel.wait(lambda state: state.generation > 0, TIMEOUT)
        return channel

    def connect_raw(self, *lines: bytes) -> socket.socket:
        """Connect and say these lines."""
        wait_until(lambda: Path(self.config["control"]).exists())
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(TIMEOUT)
        # It is there a moment before anybody listens.
        wait_until(lambda: connection.connect_ex(self.config["control"]) == 0)
        connection.sendall(b"".join(line + b"\n" for line in lines))
        return connection

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait(self) -> int:
        """Wait for the supervisor's end and return its exit code."""
        assert self.process is not None
        return self.process.wait(TIMEOUT)

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return what the stand-in has noted."""
        rows = [json.loads(line) for line in self._events.read_text().splitlines()]
        return [row for row in rows if row["event"] == event]

    @property
    def kernel_pid(self) -> int:
        return int(self.events("started")[-1]["pid"])

    def close(self) -> None:
        """End all of it, whatever state it is in."""
        for channel in self._channels:
            channel.close()
        if self.process is None:
            return
        if self.is_running:
            self.process.terminate()
        try:
            self.wait()
        finally:
            if self.is_running:
                self.process.kill()
                self.process.wait()
            for event in self.events("started"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(event["pid"], signal.SIGKILL)


_SOCKETS = ("shell", "iopub", "stdin", "control", "hb")


@pytest.fixture(params=VERSIONS)
def machine(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Machine]:
    """A machine with each Python in turn, and nothing installed."""
    machine = Machine(the_python(request.param), short_folder)
    yield machine
    machine.close()


extremes = pytest.mark.parametrize("machine", EXTREMES, indirect=True)
newest = pytest.mark.parametrize("machine", EXTREMES[-1:], indirect=True)


def wait_for(channel: ControlChannel, phase: str, generation: int = 0) -> KernelState:
    state = channel.wait(lambda s: s.phase == phase and s.generation >= generation, TIMEOUT)
    assert state is not None, f"still {channel.state}"
    assert state.phase == phase, f"{state.phase} while waiting for {phase}"
    return state


def is_process(pid: int) -> bool:
    """Tell whether this process runs; one that is dead and not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- a kernel from the image ----------------------------------------------------------------------


def test_the_images_own_kernel_is_bound_and_reported(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    state = wait_for(machine.connect(), "bound")
    assert state.generation == 1
    assert state.exit_code is None
    assert state.report["kernel"] == "image"
    assert state.report["ipykernel"] == "4.10.1"
    assert Path(state.report["executable"]).resolve() == Path(machine.python).resolve()
    version = subprocess.run(
        [machine.python, "-c", "import platform; print(platform.python_version())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert state.report["python"] == version
    names = [Path(f"{machine.runtime}/kernel-{port}") for port in range(1, 6)]
    assert all(path.stat().st_mode & 0o777 == 0o666 for path in names)


COUNT_ATTEMPTS = """
attempt = launch.Supervisor._attempt
def counted(self):
    sys.stderr.write("attempt\\n")
    sys.stderr.flush()
    attempt(self)
launch.Supervisor._attempt = counted
"""


def facts_of(python: str) -> dict[str, Any]:
    """Return what the launcher says of an interpreter."""
    code = f"import json, sys; sys.path.insert(0, {str(LAUNCHER.parent)!r}); import launch; "
    code += "print(json.dumps(launch.facts()))"
    done = subprocess.run([python, "-B", "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("version", "attempts"), [(None, 1), ("0.1", 2)])
def test_an_image_without_a_kernel_gets_the_bundles_at_once(
    machine: Machine, version: str | None, attempts: int
) -> None:
    machine.build_bundle(facts_of(machine.python))
    if version:  # it has one, which is broken: that is known when it was tried
        package = machine.install("ipykernel", version)
        (package / "kernelapp.py").write_text("raise ImportError('broken')")
    machine.start_with(COUNT_ATTEMPTS)
    assert wait_for(machine.connect(), "bound").report["kernel"] == "bundle"
    assert machine.log.count("attempt") == attempts


# --- compiled code, which the first start leaves --------------------------------------------------


def start_recording(
    machine: Machine, *mounts: Path, most: str = "unlimited", **changes: Any
) -> ControlChannel:
    """Start as a container does, with the scripts in the runtime folder, and these mounts in it.

    No file gets larger than `most` blocks.
    """
    (machine.folder / "compiled").mkdir()
    mountinfo = machine.folder / "mountinfo"
    lines = [f"1 1 0:1 / {path} rw - x x rw\n" for path in (Path("/"), *mounts)]
    mountinfo.write_text("".join(lines))
    for name in ("start.py", "launch.py", "later.py"):
        text = LAUNCHER.with_name(name).read_text()
        text = text.replace("/proc/self/mountinfo", str(mountinfo))
        text = text.replace("/opt/dockml/compiled", str(machine.folder / "compiled"))
        (machine.runtime / name).write_text(text)
    machine.write_config(**{"records": True, **changes})
    script = machine.runtime / "start.py"
    limited = ["/bin/sh", "-c", f'ulimit -f {most}; exec "$@"', "sh"]
    machine.run([*limited, machine.python, str(script), "supervise", str(machine.config_path)])
    return machine.connect()


def test_the_first_kernel_leaves_compiled_code_and_says_which(machine: Machine) -> None:
    machine.give_image_a_kernel()
    channel = start_recording(machine, machine.runtime, machine.bundles)
    left = machine.runtime / "compiled"
    # It is told while the kernel still starts.
    state = channel.wait(lambda state: "compiled" in state.report, TIMEOUT)
    assert state is not None
    code = left.read_bytes()
    assert state.report["compiled"] == hashlib.sha256(code).hexdigest()
    assert str(machine.image / "ipykernel" / "kernelapp.py").encode() in code
    assert not (machine.runtime / "begun").exists()
    wait_for(channel, "bound")
    # Nor is there anything of what was compiled ahead, and whoever did it.
    assert [path.name for path in machine.runtime.iterdir() if path.name.startswith("ahead")] == []
    left.unlink()
    # By now the user's own code has run.
    channel.signal(signal.SIGKILL)
    wait_for(channel, "exited")
    channel.start({}, None)
    assert "compiled" not in wait_for(channel, "bound", generation=2).report
    assert not left.exists()


@extremes
def test_where_modules_may_come_from_a_mount_none_is_left(machine: Machine) -> None:
    machine.give_image_a_kernel()
    channel = start_recording(machine, machine.image)
    assert "compiled" not in wait_for(channel, "bound").report
    assert not (machine.runtime / "compiled").exists()


@extremes
def test_where_there_is_no_room_for_it_none_is_left(machine: Machine) -> None:
    machine.give_image_a_kernel()
    channel = start_recording(machine, most="16")
    assert "compiled" not in wait_for(channel, "bound").report
    assert not {"begun", "compiled"} & {path.name for path in machine.runtime.iterdir()}


@extremes
def test_where_none_is_asked_for_none_is_left(machine: Machine) -> None:
    machine.give_image_a_kernel()
    channel = start_recording(machine, records=False)
    assert "compiled" not in wait_for(channel, "bound").report
    assert not (machine.runtime / "compiled").exists()


@extremes
def test_a_signal_reaches_the_kernel_which_goes_on(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    channel = machine.connect()
    wait_for(channel, "bound")
    channel.signal(signal.SIGINT)
    wait_until(lambda: machine.events("interrupted"))
    assert channel.state.phase == "bound"
    assert is_process(machine.kernel_pid)


def test_a_restart_is_in_place_with_the_env_and_folder_that_are_given(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    channel = machine.connect()
    wait_for(channel, "bound")
    channel.signal(signal.SIGKILL)
    assert wait_for(channel, "exited").exit_code == 128 + signal.SIGKILL
    assert machine.is_running
    channel.start({"STAND_IN_GIVEN": "yes"}, str(machine.image))
    state = wait_for(channel, "bound", generation=2)
    assert state.generation == 2
    assert state.exit_code is None
    first, second = machine.events("started")
    assert first["pid"] != second["pid"]
    assert str(LAUNCHER.parent) not in first["path"]
    assert (first["given"], second["given"]) == (None, "yes")
    assert (first["cwd"], second["cwd"]) == (str(machine.folder), str(machine.image))


@newest
def test_a_third_kernel_keeps_the_env_of_the_second(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    channel = machine.connect()
    for generation, env in enumerate([{"STAND_IN_GIVEN": "yes"}, {}], 2):
        wait_for(channel, "bound", generation - 1)
        channel.signal(signal.SIGKILL)
        wait_for(channel, "exited")
        channel.start(env, None)
    wait_for(channel, "bound", 3)
    assert [event["given"] for event in machine.events("started")] == [None, "yes", "yes"]


@newest
def test_the_exit_code_of_a_kernel_is_told(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    channel = machine.connect()
    wait_for(channel, "bound")
    channel.signal(signal.SIGUSR1)
    state = wait_for(channel, "exited")
    assert (state.exit_code, state.out_of_memory) == (7, False)


@newest
def test_a_kernel_that_dies_at_start_has_exited(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start("dies")
    state = wait_for(machine.connect(), "exited")
    assert state.exit_code == 3
    assert state.report["kernel"] == "image"


@newest
def test_a_start_while_a_kernel_runs_changes_nothing(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    channel = machine.connect()
    wait_for(channel, "bound")
    channel.start({}, None)
    channel.signal(signal.SIGINT)
    wait_until(lambda: machine.events("interrupted"))
    assert channel.state.generation == 1
    assert len(machine.events("started")) == 1


# --- the control channel --------------------------------------------------------------------------


@extremes
def test_who_does_not_begin_with_the_key_is_refused_without_a_word(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    wrong = (b'{"key": "wrong"}', b'{"key": null}', b'{"op": "stop"}')
    for line in (*wrong, b"GET / HTTP/1.1", b"\xff\xfe\x00", b"3", b"[]", b"null"):
        with machine.connect_raw(line, b'{"op": "stop"}') as stranger:
            assert stranger.recv(1) == b"", line
    assert wait_for(machine.connect(), "bound").generation == 1


@extremes
def test_a_line_that_is_not_understood_ends_the_connection_only(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    channel = machine.connect()
    wait_for(channel, "bound")
    key = json.dumps({"key": KEY}).encode()
    for signum in (b"", b'"x"', b"null", b"100000000000000000000"):
        with machine.connect_raw(key, b'{"op": "signal", "signum": %s}' % signum) as other:
            while other.recv(65536):
                pass
    channel.signal(signal.SIGINT)
    wait_until(lambda: machine.events("interrupted"))


@newest
def test_a_signal_that_does_not_exist_is_ignored(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    channel = machine.connect()
    wait_for(channel, "bound")
    channel.signal(999)
    channel.signal(signal.SIGINT)
    wait_until(lambda: machine.events("interrupted"))
    assert channel.state.phase == "bound"


def test_the_end_of_a_child_is_waited_for_through_the_signals_of_others(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 2.7 raises where a signal comes meanwhile."""
    outcomes: list[object] = [OSError(errno.EINTR, ""), OSError(errno.EINTR, ""), (7, 0)]

    def wait(pid: int, options: int) -> object:
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    monkeypatch.setattr(launch.os, "waitpid", wait)
    launch.collect(7)
    assert outcomes == []
    outcomes.append(ChildProcessError(errno.ECHILD, ""))
    launch.collect(7)


@newest
def test_a_line_may_come_in_pieces(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    with machine.connect_raw() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for piece in (b'{"ke', b'y": "the', b' key"}\n'):
            connection.sendall(piece)
        assert b"generation" in connection.recv(65536)


@newest
def test_all_connections_are_told(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    one, two = machine.connect(), machine.connect()
    wait_for(one, "bound")
    wait_for(two, "bound")
    one.signal(signal.SIGUSR1)
    assert wait_for(one, "exited").exit_code == wait_for(two, "exited").exit_code == 7


# --- the lease ------------------------------------------------------------------------------------


def test_the_container_ends_when_the_last_connection_is_gone(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start(grace=0.01)
    one, two = machine.connect(), machine.connect()
    wait_for(one, "bound")
    one.close()
    two.signal(signal.SIGINT)
    wait_until(lambda: machine.events("interrupted"))
    assert machine.is_running
    two.close()
    assert machine.wait() == 0
    wait_until(lambda: not is_process(machine.kernel_pid))


@newest
def test_who_comes_back_within_the_grace_time_finds_the_kernel(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    channel = machine.connect()
    wait_for(channel, "bound")
    channel.close()
    assert wait_for(machine.connect(), "bound").generation == 1
    assert len(machine.events("started")) == 1


@newest
def test_a_stranger_does_not_hold_the_lease(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start(grace=0.01)
    channel = machine.connect()
    with machine.connect_raw() as stranger:
        channel.close()
        assert machine.wait() == 0
        assert stranger.recv(1) == b""


@extremes
def test_a_container_that_is_kept_outlives_its_connections(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start(grace=0.0, keep=True)
    channel = machine.connect()
    wait_for(channel, "bound")
    channel.close()
    with machine.connect_raw(json.dumps({"key": KEY}).encode()) as connection:
        assert json.loads(connection.recv(65536))["phase"] == "bound"
        connection.sendall(b'{"op": "keep", "keep": false}\n')
    assert machine.wait() == 0


@newest
def test_a_container_can_be_kept_later(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start(grace=0.0)
    with machine.connect_raw(json.dumps({"key": KEY}).encode()) as connection:
        while b'"bound"' not in connection.recv(65536):
            pass
        connection.sendall(b'{"op": "keep", "keep": true}\n')
    assert wait_for(machine.connect(), "bound").generation == 1


@newest
def test_nobody_ever_connects(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start_with("launch.FIRST_CONTACT = 0.05")
    assert machine.wait() == 0


JUMP = """
import itertools, time
launch.FIRST_CONTACT = 0.3
jumps = itertools.count()
time.time = lambda: {sign}86400.0 * next(jumps)
"""


@extremes
def test_a_clock_that_is_set_back_keeps_no_container_alive(machine: Machine) -> None:
    machine.start_with(JUMP.format(sign="-"))
    assert machine.wait() == 0


@extremes
def test_a_clock_that_is_set_ahead_ends_no_lease(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.config["grace"] = 10.0
    machine.start_with(JUMP.format(sign="").replace("0.3", "20.0"))
    first = machine.connect()
    wait_for(first, "bound")
    first.close()
    second = machine.connect()  # within the grace time, which a day would have ended
    wait_for(second, "bound")
    second.stop()
    assert machine.wait() == 0


# --- the end --------------------------------------------------------------------------------------


@extremes
def test_stop_ends_kernel_and_container(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    channel = machine.connect()
    wait_for(channel, "bound")
    channel.stop()
    assert machine.wait() == 0
    wait_for(channel, "gone")
    wait_until(lambda: not is_process(machine.kernel_pid))
    assert list(machine.runtime.iterdir()) == []
    with pytest.raises(KernelError, match="The container is gone"):
        channel.signal(signal.SIGINT)


@newest
def test_a_kernel_that_does_not_end_when_asked_is_killed(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start("stubborn")
    channel = machine.connect()
    wait_for(channel, "bound")
    channel.stop()
    assert machine.wait() == 0
    wait_until(lambda: not is_process(machine.kernel_pid))


@extremes
def test_sigterm_ends_kernel_and_container(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    wait_for(machine.connect(), "bound")
    assert machine.process is not None
    machine.process.send_signal(signal.SIGTERM)
    assert machine.wait() == 0
    wait_until(lambda: not is_process(machine.kernel_pid))


@newest
def test_sigint_of_the_container_interrupts_the_kernel(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start()
    channel = machine.connect()
    wait_for(channel, "bound")
    assert machine.process is not None
    machine.process.send_signal(signal.SIGINT)
    wait_until(lambda: machine.events("interrupted"))
    assert channel.state.phase == "bound"


@extremes
def test_orphans_are_collected(machine: Machine) -> None:
    machine.give_image_a_kernel()
    gate = machine.folder / "events.wait"
    gate.touch()
    machine.write_config(extra_arguments=["orphan"])
    program = [machine.python, str(LAUNCHER), "supervise", str(machine.config_path)]
    machine.run([machine.python, "-c", AS_SUBREAPER, *program])
    channel = machine.connect()
    wait_for(channel, "bound")
    assert machine.process is not None
    children = Path(f"/proc/{machine.process.pid}/task/{machine.process.pid}/children")
    wait_until(lambda: len(children.read_text().split()) == 2)
    gate.unlink()
    wait_until(lambda: len(children.read_text().split()) == 1)
    assert channel.state.phase == "bound"


# --- the kernel bundle, and other interpreters ----------------------------------------------------


@extremes
def test_an_own_ipykernel_that_is_broken_is_passed_over_for_the_bundle(machine: Machine) -> None:
    machine.give_image_a_kernel()
    (machine.image / "ipykernel" / "kernelapp.py").write_text("raise ImportError('broken')")
    machine.start()
    channel = machine.connect()
    state = wait_for(channel, "need_bundle")
    assert state.report["problem"] == "ImportError: broken"
    bundle = machine.build_bundle(dict(state.report))
    channel.start({}, None)
    assert wait_for(channel, "bound", generation=2).report["ipykernel"] == "9.0"
    (started,) = machine.events("started")
    assert started["origin"]["ipykernel"].startswith(str(bundle))
    assert started["origin"]["zmq"].startswith(str(machine.image))


def test_of_the_bundle_what_is_missing_goes_last_and_what_is_too_old_goes_first(
    machine: Machine,
) -> None:
    for name, version in (("tornado", "4.10"), ("decorator", "5.0"), ("jedi", "0.19.dev1")):
        machine.install(name, version)
    machine.start()
    channel = machine.connect()
    state = wait_for(channel, "need_bundle")
    assert "No module named" in state.report["problem"]
    bundle = machine.build_bundle(
        dict(state.report), tornado="4.11", decorator="4.9", jedi="0.19", wcwidth="0"
    )
    channel.start({}, None)
    state = wait_for(channel, "bound", generation=2)
    assert (state.report["kernel"], state.report["ipykernel"]) == ("bundle", "9.0")
    (started,) = machine.events("started")
    ours = [path for path in started["path"] if path.startswith(str(bundle))]
    first, *rest = (Path(path).name for path in ours)
    assert first == "tornado"
    assert started["path"][0] == ours[0]
    assert rest == ["ipykernel", "zmq", "wcwidth"]
    assert started["path"][-3:] == ours[1:]


@newest
def test_a_bundle_that_is_there_is_used_at_the_first_start(machine: Machine) -> None:
    machine.start()
    report = dict(wait_for(machine.connect(), "need_bundle").report)
    machine.close()
    machine.build_bundle(report)
    machine.start()
    state = wait_for(machine.connect(), "bound")
    assert (state.generation, state.report["kernel"]) == (1, "bundle")


@newest
def test_a_bundle_that_does_not_run_is_told(machine: Machine) -> None:
    machine.start()
    channel = machine.connect()
    report = dict(wait_for(channel, "need_bundle").report)
    bundle = machine.build_bundle(report)
    (bundle / "zmq" / "zmq" / "__init__.py").write_text("raise ImportError('libzmq.so')")
    channel.start({}, None)
    state = wait_for(channel, "failed", generation=2)
    assert state.report["problem"] == "ImportError: libzmq.so"


@newest
def test_another_python_of_the_image_that_has_a_kernel_is_used(machine: Machine) -> None:
    other = machine.folder / "other"
    for name in ("ipykernel", "zmq"):
        machine.install(name, "6.0", into=other)
    find = f"PYTHONPATH={machine.folder}/lib:{other}"
    machine.add_program("python3", f'{find} exec {machine.python} "$@"\n')
    machine.start()
    state = wait_for(machine.connect(), "bound")
    assert (state.report["kernel"], state.report["ipykernel"]) == ("image", "6.0")


@newest
def test_what_is_remembered_of_an_image_is_the_only_thing_tried(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.start(interpreter=str(machine.folder / "no-python"), kernel="image")
    assert wait_for(machine.connect(), "failed").generation == 1
    assert machine.events("started") == []


@newest
def test_a_user_who_may_run_no_python_is_told(machine: Machine) -> None:
    machine.start_with("launch.find_program = lambda name: None")
    state = wait_for(machine.connect(), "failed")
    assert f"user {os.getuid()} may run no Python here" in state.report["problem"]
    assert machine.python in state.report["problem"]


# --- kernels of other languages -------------------------------------------------------------------

STAND_IN_PROGRAM = "from ipykernel.kernelapp import IPKernelApp; IPKernelApp.launch_instance()"


def test_the_kernelspec_that_is_asked_for_is_run_as_jupyter_would(machine: Machine) -> None:
    machine.give_image_a_kernel()
    folder = machine.add_kernelspec(
        "Lang",
        "Läng",
        argv=[machine.python, "-c", STAND_IN_PROGRAM, "-f", "{connection_file}"],
        env={"STAND_IN_GIVEN": "${HOME}/given"},
        interrupt_mode="message",
    )
    assert folder.name == "Lang"  # Jupyter finds it as "lang"
    machine.start(kernelspec="lang")
    channel = machine.connect()
    assert wait_for(channel, "bound").report == {
        "kernel": "spec",
        "kernelspec": "lang",
        "language": "Läng",
        "interrupt_mode": "message",
        "executable": machine.python,
    }
    (started,) = machine.events("started")
    assert started["given"] == f"{machine.home}/given"
    channel.signal(signal.SIGKILL)
    assert wait_for(channel, "exited").exit_code == 137
    channel.start({}, None)
    wait_for(channel, "bound", generation=2)


@newest
def test_the_folder_of_the_kernelspec_is_filled_in(machine: Machine) -> None:
    script = 'import sys; open("arguments", "w").write(" ".join(sys.argv[1:]))'
    folder = machine.add_kernelspec(
        "lang", "Lang", argv=[machine.python, "-c", script, "{resource_dir}/main", "{other}"]
    )
    machine.start(kernelspec="lang")
    assert wait_for(machine.connect(), "exited").exit_code == 0
    assert (machine.folder / "arguments").read_text() == f"{folder}/main {{other}}"


@newest
def test_a_kernelspec_whose_program_is_not_there_is_told(machine: Machine) -> None:
    machine.add_kernelspec("lang", "Lang")
    machine.start(kernelspec="lang")
    assert wait_for(machine.connect(), "exited").exit_code == 126
    assert "cannot start lang" in machine.log


@newest
def test_a_kernelspec_that_is_not_there_is_told_with_those_that_are(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.add_kernelspec("ir", "R")
    machine.add_kernelspec("broken", "R")
    (machine.home / ".local/share/jupyter/kernels/broken/kernel.json").write_text("{")
    machine.start(kernelspec="julia")
    report = wait_for(machine.connect(), "failed").report
    assert report["kernelspecs"] == {"ir": "R"}
    assert "no kernelspec 'julia'" in report["problem"]
    assert machine.events("started") == []


@newest
def test_an_own_ipykernel_comes_before_a_kernelspec(machine: Machine) -> None:
    machine.give_image_a_kernel()
    machine.add_kernelspec("ir", "R")
    machine.start()
    assert wait_for(machine.connect(), "bound").report["kernel"] == "image"


@extremes
def test_the_only_kernel_of_another_language_comes_before_the_bundle(machine: Machine) -> None:
    machine.add_kernelspec("ir", "R")
    machine.add_kernelspec("python3", "python")
    machine.start()
    channel = machine.connect()
    assert wait_for(channel, "other_kernel").report == {"kernelspecs": {"ir": "R"}}


@newest
@pytest.mark.parametrize("asked", ["python", "python3"])
def test_python_can_be_asked_for_where_another_language_is(machine: Machine, asked: str) -> None:
    machine.add_kernelspec("ir", "R")
    machine.start(kernelspec=asked)
    channel = machine.connect()
    machine.build_bundle(dict(wait_for(channel, "need_bundle").report))
    channel.start({}, None)
    assert wait_for(channel, "bound", generation=2).report["kernel"] == "bundle"


@newest
def test_of_several_other_languages_none_is_chosen(machine: Machine) -> None:
    machine.add_kernelspec("ir", "R")
    machine.add_kernelspec("julia-1.9", "julia")
    machine.start()
    report = wait_for(machine.connect(), "need_bundle").report
    assert report["kernelspecs"] == {"ir": "R", "julia-1.9": "julia"}


# --- TCP ------------------------------------------------------------------------------------------


@extremes
def test_over_tcp_a_kernel_is_bound_when_its_five_ports_listen(
    machine: Machine,
) -> None:
    control, *ports = free_ports(6)
    connection = dict(zip((f"{name}_port" for name in _SOCKETS), ports, strict=True))
    machine.give_image_a_kernel()
    machine.start(
        control=control, control_ip="127.0.0.1", connection={"transport": "tcp", **connection}
    )
    channel = machine.connect()
    wait_for(channel, "bound")
    for port in ports:
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT).close()
    channel.signal(signal.SIGKILL)
    wait_for(channel, "exited")
    channel.start({}, None)
    wait_for(channel, "bound", generation=2)


# --- its pure parts, which the host's side must agree with ----------------------------------------


def test_both_sides_look_for_a_bundle_in_the_same_folder(launch: ModuleType) -> None:
    report = launch.facts()
    index = Path(launch.bundle_index({"bundles": "/bundles"}, report))
    assert index == Path("/bundles") / kernel_bundle.bundle_name(report) / "bundle.json"


@pytest.mark.parametrize(
    ("older", "newer"),
    [("4.9", "4.10"), ("1", "1.1"), ("2.0rc1", "2.1"), ("", "0"), ("7.34.0", "8.0.0.dev0")],
)
def test_versions_are_compared_by_their_numbers(launch: ModuleType, older: str, newer: str) -> None:
    assert launch.version_tuple(older) < launch.version_tuple(newer)


def test_distributions_are_found_by_the_names_of_their_metadata(
    launch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("prompt_toolkit-3.0.1.dist-info", "Jupyter.Core-4.6.egg-info", "six-1.16-py2.7.egg")
    for name in (*names, "readme.txt", "bare.dist-info"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path), str(tmp_path / "missing")])
    assert launch.installed_distributions() == {
        "prompt_toolkit": "3.0.1",
        "jupyter_core": "4.6",
        "six": "1.16",
    }
