from __future__ import annotations

import contextlib
import gc
import io
import os
import platform
import re
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import docker
import pytest

from dockml_magic.engine import (
    DockerEngine,
    EngineFacts,
    NotStartableError,
    build_reference,
    connect,
    find_endpoint,
    gpu_route,
    make_archive,
)
from dockml_magic.engine.complaints import error_of, unreachable
from dockml_magic.engine.endpoints import does_share_files
from dockml_magic.engine.gpus import ask_for_gpus, find_cdi_gpus
from dockml_magic.errors import (
    ContainerNameTakenError,
    EngineError,
    EngineTooOldError,
    EngineUnreachableError,
    GpuUnavailableError,
    ImageUnavailableError,
    PortTakenError,
)
from dockml_magic.options import GpuRequest

REAL_INIT = docker.APIClient.__init__
SOCKET = "unix:///var/run/docker.sock"
RUNC = (
    "failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: "
)
CONNECTIVITY = "driver failed programming external connectivity on endpoint x (0123): "


# --- an engine that hangs, and one that is only slow ---------------------------------------------


class SlowEngine:
    """Listens at a socket; answers what it is told to, each after some seconds, and is silent about the rest."""

    def __init__(self, listener: socket.socket, answers: dict[bytes, tuple[float, bytes]]) -> None:
        self.answers = answers
        self._listener = listener
        self._listener.listen()
        name = listener.getsockname()
        self.endpoint = f"unix://{name}" if isinstance(name, str) else f"tcp://127.0.0.1:{name[1]}"
        self._taken: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._taken.append(self._listener.accept()[0])
                threading.Thread(target=self._serve, args=(self._taken[-1],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while asked := connection.recv(65536):
                for path, (seconds, body) in list(self.answers.items()):
                    if path in asked.partition(b"\r\n")[0]:
                        time.sleep(seconds)
                        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
                        connection.sendall(head.encode() + b"\r\n\r\n" + body)

    def close(self) -> None:
        for connection in (self._listener, *self._taken):
            connection.close()


ALIVE = {
    b"/_ping": (0.0, b"OK"),
    b"/version": (0.0, b'{"ApiVersion": "1.41", "Version": "20.10.5"}'),
    b"/info": (0.0, b"{}"),
}


def be_patient(monkeypatch: pytest.MonkeyPatch, seconds: float = 30.0) -> None:
    """Wait for the answer to a ping as long as a busy machine may take for it, or as long as this."""
    for name in ("_PING", "_LONG_PING"):
        monkeypatch.setattr(f"dockml_magic.engine.pings.{name}", seconds)


@pytest.fixture(params=["unix", "tcp"])
def slow(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SlowEngine]:
    monkeypatch.setattr(docker.APIClient, "__init__", REAL_INIT)
    be_patient(monkeypatch)
    is_unix = request.param == "unix"
    listener = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "s") if is_unix else ("127.0.0.1", 0))
    engine = SlowEngine(listener, dict(ALIVE))
    yield engine
    engine.close()


def test_an_engine_that_takes_a_connection_and_never_answers_is_told_of(
    slow: SlowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch, 0.5)
    slow.answers.clear()
    since = time.monotonic()
    with pytest.raises(EngineUnreachableError, match="it hangs") as caught:
        connect(slow.endpoint)
    assert time.monotonic() - since < 60, "it did not wait for the SDK's 120 s"
    assert "journalctl -u docker" in caught.value.hint


def test_an_engine_that_begins_to_hang_is_told_of_by_the_next_call_and_answers_later(
    slow: SlowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = connect(slow.endpoint)
    slow.answers.clear()
    be_patient(monkeypatch, 0.5)
    since = time.monotonic()
    with pytest.raises(EngineUnreachableError, match="it hangs"):
        engine.list({})
    assert time.monotonic() - since < 60, "it did not wait for the SDK's 120 s"
    be_patient(monkeypatch)
    slow.answers.update({**ALIVE, b"/containers/json": (0.0, b"[]")})
    assert engine.list({}) == []


def test_a_call_that_is_only_slow_is_waited_for(
    slow: SlowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dockml_magic.engine.pings.QUIET", 0.05)
    engine = connect(slow.endpoint)
    slow.answers[b"/containers/json"] = (1.5, b"[]")
    assert engine.list({}) == []


@pytest.mark.parametrize("slow", ["unix"], indirect=True)
@pytest.mark.parametrize(
    "load", ["9999.0 9.0 9.0 1/900 1", "0.0 0.0 0.0 9999/9999 1", "0.0 0.0 0.0 0/1 1"]
)
def test_an_engine_that_waits_for_its_turn_on_an_overloaded_machine_gets_longer_to_answer(
    slow: SlowEngine, monkeypatch: pytest.MonkeyPatch, load: str
) -> None:
    engine = connect(slow.endpoint)
    monkeypatch.setattr("dockml_magic.engine.pings._PING", 0.1)
    hangs = "9999" not in load
    after = 120.0 if hangs else 2.5
    slow.answers |= {b"/_ping": (1.0, b"OK"), b"/containers/json": (after, b"[]")}
    read_text = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path, *a, **k: load if str(path) == "/proc/loadavg" else read_text(path, *a, **k),
    )
    if not hangs:
        assert engine.list({}) == []
    else:
        with pytest.raises(EngineUnreachableError, match="it hangs"):
            engine.list({})


def test_a_call_ends_after_its_time_out_though_a_ping_is_answered(
    slow: SlowEngine,
) -> None:
    engine = connect(slow.endpoint)
    engine._client.api.timeout = 1.0  # type: ignore[assignment]  # a float works
    with pytest.raises(EngineUnreachableError, match="does not answer"):
        engine.list({})


# --- what the engine says, and what we say --------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (RUNC + 'exec: "python": executable file not found in $PATH: unknown', NotStartableError),
        (
            RUNC + 'exec: "/opt/conda/bin/python": stat /opt/conda/bin/python: '
            "no such file or directory: unknown",
            NotStartableError,
        ),
        (RUNC + 'exec: "/etc/passwd": permission denied: unknown', NotStartableError),
        (
            "crun: executable file `python` not found in $PATH: No such file or directory: "
            "OCI runtime attempted to invoke a command that was not found",
            NotStartableError,
        ),
        ("No such image: a/b:1", ImageUnavailableError),
        ("manifest for a/b:1 not found: manifest unknown: manifest unknown", ImageUnavailableError),
        (
            'could not select device driver "" with capabilities: [[gpu]]',
            GpuUnavailableError,
        ),
        ("failed to discover GPU vendor from CDI: no known GPU vendor found", GpuUnavailableError),
        (
            "OCI runtime create failed: nvidia-container-cli: requirement error: "
            "unsatisfied condition: cuda>=12.4",
            GpuUnavailableError,
        ),
        ("AMD CDI spec not found", GpuUnavailableError),
        ("network nosuch not found", EngineError),
        ("unable to find user nobody2: no matching entries in passwd file", EngineError),
        (
            "error while creating mount source path '/x': mkdir /x: permission denied",
            EngineError,
        ),
        ("Minimum memory limit allowed is 6MB", EngineError),
        ("something new", EngineError),
    ],
)
def test_what_the_engine_says_becomes_an_error_of_ours(said: str, error: type[EngineError]) -> None:
    found = error_of(said, "a/b:1", "mine")
    assert type(found) is error
    assert len(found.message.splitlines()) == 1
    assert "?" not in found.message


CLI = (
    RUNC + "error running prestart hook #0: exit status 1, stdout: , stderr: nvidia-container-cli: "
)


@pytest.mark.parametrize(
    ("said", "message", "cure"),
    [
        # docker/cli#2425, NVIDIA/nvidia-docker#1034
        (
            'could not select device driver "" with capabilities: [[gpu]]',
            "its NVIDIA part is not installed",
            "nvidia-container-toolkit",
        ),
        # infiniflow/ragflow#9573
        (
            'could not select device driver "nvidia" with capabilities: [[gpu]]',
            "its NVIDIA part is not installed",
            "nvidia-ctk runtime configure",
        ),
        # ShaneIsrael/fireshare#689
        (
            "failed to discover GPU vendor from CDI: no known GPU vendor found",
            "its NVIDIA part is not installed",
            "restart of Docker",
        ),
        ("AMD CDI spec not found", "its NVIDIA part is not installed", "nvidia-container-toolkit"),
        ("unknown or invalid runtime name: nvidia", "its NVIDIA part is not installed", "--gpus none"),
        # warmshao/FasterLivePortrait#116
        (
            "setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all",
            "does not know the GPU by CDI",
            "nvidia-ctk cdi generate",
        ),
        (
            "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=7",
            "nvidia.com/gpu=7",
            "nvidia-ctk cdi list",
        ),
        # NVIDIA/nvidia-docker#1442, NVIDIA/nvidia-container-toolkit#152
        (
            CLI + "requirement error: unsatisfied condition: cuda>=12.4, please update your driver to a "
            "newer version, or use an earlier cuda container: unknown",
            "older than this image's CUDA 12.4 asks for",
            "A driver of 550.54.14 or newer",
        ),
        # NVIDIA/nvidia-docker#536
        (
            CLI + "requirement error: unsatisfied condition: cuda >= 9.0",
            "older than this image's CUDA 9.0 asks for",
            "NVIDIA_DISABLE_REQUIRE=1",
        ),
        (
            CLI + "requirement error: unsatisfied condition: brand = tesla",
            "not what this image asks for",
            "older CUDA",
        ),
        (CLI + "device error: 7: unknown device: unknown", "no such GPU", "nvidia-smi -L"),
        (CLI + "device error: unknown device id: 0:3", "MIG instance", "--gpus auto"),
        (CLI + "device error: mig device is not usable", "refused a MIG instance", "device=MIG-"),
        (
            CLI + "initialization error: nvml error: driver/library version mismatch: unknown",
            "the old one still runs",
            "restart of this machine",
        ),
        (
            CLI + "initialization error: load library failed: libnvidia-ml.so.1: cannot open shared "
            "object file: no such file or directory: unknown",
            "driver does not run",
            "nvidia-smi",
        ),
        (CLI + "initialization error: nvml error: driver not loaded", "does not run", "nvidia-smi"),
        (CLI + "ldcache error: process failed", "toolkit refused", "--gpus none"),
    ],
)  # fmt: skip
def test_trouble_with_gpus_is_told_with_its_cure(said: str, message: str, cure: str) -> None:
    error = error_of(said, "a/b:1", "mine")
    assert type(error) is GpuUnavailableError
    assert message in error.message
    assert cure in error.hint
    assert len(error.message.splitlines()) == 1


@pytest.mark.parametrize(
    "said", ["manifest for nvidia/mig:1 not found: manifest unknown", "unknown device eth7"]
)
def test_trouble_with_other_things_is_not_taken_for_gpus(said: str) -> None:
    assert type(error_of(said, "nvidia/mig:1", "mine")) is not GpuUnavailableError


@pytest.mark.parametrize(
    ("said", "port"),
    [
        (CONNECTIVITY + "Bind for 127.0.0.1:8501 failed: port is already allocated", "127.0.0.1:8501"),
        (
            CONNECTIVITY + "Error starting userland proxy: listen tcp4 127.0.0.1:8501: bind: "
            "address already in use",
            "127.0.0.1:8501",
        ),
        (
            "failed to set up container networking: " + CONNECTIVITY
            + "failed to bind host port for 127.0.0.1:8501:172.17.0.2:80/tcp: address already in use",
            "127.0.0.1:8501",
        ),
        ("failed to bind host port 0.0.0.0:53/tcp: address already in use", "0.0.0.0:53"),
        ("cannot listen on the TCP port: listen tcp4 :8080: bind: address already in use", ":8080"),
        ("Bind for [::1]:8080 failed: port is already allocated", "[::1]:8080"),
    ],
)  # fmt: skip
def test_a_port_that_is_taken_is_named(said: str, port: str) -> None:
    error = error_of(said, "a/b:1", "mine")
    assert type(error) is PortTakenError
    assert error.message == f"The host port {port} is in use already."
    assert "-p" in error.hint


@pytest.mark.parametrize(
    "said",
    [
        'Conflict. The container name "/mine" is already in use by container "0123". You have to '
        "remove (or rename) that container to be able to reuse that name.",
        'creating container storage: the container name "mine" is already in use by 0123. You have '
        "to remove that container to be able to reuse that name: that name is already in use",
    ],
)
def test_a_name_that_is_taken_is_named(said: str) -> None:
    error = error_of(said, "a/b:1", "mine")
    assert type(error) is ContainerNameTakenError
    assert error.message == "Another container is called 'mine' already."
    assert "docker rm -f mine" in error.hint


def test_what_we_do_not_know_is_said_in_the_engines_words_on_one_line() -> None:
    error = error_of("something\n  new", "", "")
    assert error.message == "The Docker engine refused: something new."


def test_an_unknown_network_says_how_to_see_them() -> None:
    error = error_of("network nosuch not found", "a/b:1", "mine")
    assert "docker network ls" in error.hint


# --- no engine ------------------------------------------------------------------------------------


def test_no_permission_says_which_group_and_that_a_new_login_is_needed() -> None:
    error = unreachable(SOCKET, PermissionError(13, "Permission denied"))
    assert error.message == (
        "You may not use the Docker engine: no permission for /var/run/docker.sock."
    )
    assert "usermod -aG docker $USER" in error.hint
    assert "new login" in error.hint


def test_no_socket_says_how_to_install_and_start_one(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    error = unreachable(f"unix://{path}", FileNotFoundError(2, "No such file or directory"))
    assert error.message == f"No Docker engine here: {path} does not exist."
    assert "install" in error.hint
    assert "systemctl start docker" in error.hint


def test_a_socket_nobody_listens_on_says_how_to_start_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    path.touch()
    error = unreachable(f"unix://{path}", ConnectionRefusedError(111, "Connection refused"))
    assert error.message == f"The Docker engine is not running: unix://{path} refuses connections."
    assert "systemctl start docker" in error.hint


def test_anything_else_is_told_with_the_endpoint() -> None:
    error = unreachable("tcp://host:2375", OSError("no route"))
    assert error.message == "The Docker engine does not answer at tcp://host:2375: no route."


def test_an_engine_that_hangs_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "docker.sock").touch()
    there = f"unix://{tmp_path}/docker.sock"
    error = unreachable(there, OSError("UnixHTTPConnectionPool(...): Read timed out."))
    assert (
        error.message
        == f"The Docker engine at {there} takes requests and does not answer them: it hangs."
    )
    assert "journalctl -u docker" in error.hint


# --- where the engine is --------------------------------------------------------------------------


@pytest.fixture
def docker_config() -> Path:
    """The file in which Docker's command line keeps its settings."""
    path = Path(os.environ["DOCKER_CONFIG"]) / "config.json"
    path.parent.mkdir()
    path.write_text("{}")
    return path


@pytest.fixture
def context(docker_config: Path) -> str:
    """A Docker context called work, which is not the current one."""
    docker.ContextAPI.create_context("work", host="unix:///run/work.sock")
    assert (docker_config.parent / "contexts").is_dir()
    return "work"


def test_an_endpoint_is_taken_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/other.sock")
    assert find_endpoint("tcp://127.0.0.1:2375")[0] == "tcp://127.0.0.1:2375"


def test_the_environment_names_the_engine(
    monkeypatch: pytest.MonkeyPatch, context: str, docker_config: Path
) -> None:
    assert find_endpoint(None)[0] == SOCKET
    docker_config.write_text('{"currentContext": "work"}')
    assert find_endpoint(None)[0] == "unix:///run/work.sock"
    docker_config.write_text("{}")
    monkeypatch.setenv("DOCKER_CONTEXT", context)
    assert find_endpoint(None)[0] == "unix:///run/work.sock"
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/other.sock")
    assert find_endpoint(None)[0] == "unix:///run/other.sock"


def test_a_context_is_its_endpoint(context: str) -> None:
    assert find_endpoint(context)[0] == "unix:///run/work.sock"
    assert find_endpoint("default")[0] == SOCKET


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK's open()
def test_an_unknown_context_comes_with_the_known_ones(context: str) -> None:
    with pytest.raises(EngineUnreachableError, match="no Docker context called 'wrok'") as caught:
        find_endpoint("wrok")
    assert "'default'" in caught.value.hint
    assert "'work'" in caught.value.hint


def test_an_unknown_context_of_the_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "wrok")
    with pytest.raises(EngineUnreachableError, match="no Docker context called 'wrok'"):
        find_endpoint(None)


def test_an_unknown_current_context_is_told(docker_config: Path) -> None:
    docker_config.write_text('{"currentContext": "wrok"}')
    with pytest.raises(EngineUnreachableError, match="no Docker context called 'wrok'"):
        find_endpoint(None)


HERE = {"OperatingSystem": "Debian", "KernelVersion": platform.release(), "Name": platform.node()}


@pytest.mark.parametrize(
    ("endpoint", "info", "shares"),
    [
        (SOCKET, HERE, True),
        (SOCKET, HERE | {"Name": socket.gethostname()}, True),
        (SOCKET, {"Name": platform.node()}, True),
        ("tcp://127.0.0.1:2375", HERE, False),
        (SOCKET, HERE | {"OperatingSystem": "Docker Desktop"}, False),
        (SOCKET, HERE | {"KernelVersion": "1.0-linuxkit"}, False),
        (SOCKET, HERE | {"Name": "another-machine"}, False),
    ],
)
def test_files_are_shared_with_an_engine_on_this_very_system(
    endpoint: str, info: dict[str, Any], *, shares: bool
) -> None:
    assert does_share_files(endpoint, info) is shares


# --- how it gives GPUs ----------------------------------------------------------------------------

PLAIN = EngineFacts(version="28", api="1.50", endpoint=SOCKET, shares_files=True)


@pytest.mark.parametrize(
    ("facts", "route"),
    [
        (PLAIN, "device-requests"),
        (replace(PLAIN, gpu_hook=True, runtimes=("runc", "nvidia")), "device-requests"),
        (replace(PLAIN, gpu_hook=False, runtimes=("runc", "nvidia")), "runtime"),
        (replace(PLAIN, gpu_hook=None, runtimes=("runc", "nvidia")), "device-requests"),
        (replace(PLAIN, gpu_hook=False, runtimes=("runc",)), "device-requests"),
        (replace(PLAIN, gpu_hook=True, cdi_gpus=("nvidia.com/gpu=0",)), "cdi"),
        (
            replace(PLAIN, gpu_hook=False, runtimes=("nvidia",), cdi_gpus=("nvidia.com/gpu=0",)),
            "cdi",
        ),
    ],
)
def test_gpus_go_the_way_that_the_engine_offers(facts: EngineFacts, route: str) -> None:
    assert gpu_route(facts) == route


@pytest.mark.parametrize(
    ("request_", "visible", "names"),
    [
        (GpuRequest(count=-1), "all", ["nvidia.com/gpu=all"]),
        (GpuRequest(count=2), "0,1", ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]),
        (GpuRequest(device_ids=("1", "GPU-x")), "1,GPU-x", ["nvidia.com/gpu=1", "nvidia.com/gpu=GPU-x"]),
    ],
)  # fmt: skip
def test_a_request_is_the_same_whichever_way_it_goes(
    request_: GpuRequest, visible: str, names: list[str]
) -> None:
    runtime = {"runtime": "nvidia"}, {"NVIDIA_VISIBLE_DEVICES": visible}
    assert ask_for_gpus(request_, "runtime") == runtime
    cdi = {"device_requests": [{"Driver": "cdi", "DeviceIDs": names}]}, {}
    assert ask_for_gpus(request_, "cdi") == cdi
    host_config, env = ask_for_gpus(request_, "device-requests")
    [asked] = host_config["device_requests"]
    assert (asked["Count"], asked["DeviceIDs"]) == (request_.count, list(request_.device_ids))
    assert asked["Capabilities"] == [["gpu"]]
    assert env == {}


def test_gpus_that_a_new_engine_lists_are_known(tmp_path: Path) -> None:
    listed = [{"Source": "cdi", "ID": name} for name in ("nvidia.com/gpu=0", "amd.com/gpu=0")]
    info = {"DiscoveredDevices": listed, "CDISpecDirs": [str(tmp_path)]}
    assert find_cdi_gpus(info, look=False) == ("nvidia.com/gpu=0",)


def test_gpus_in_the_files_of_an_older_engine_are_known(tmp_path: Path) -> None:
    info = {"CDISpecDirs": ["/nowhere", str(tmp_path)]}
    (tmp_path / "other.yaml").write_text("kind: vendor.com/net")
    assert find_cdi_gpus(info, look=True) == ()
    (tmp_path / "nvidia.yaml").write_text("cdiVersion: 0.5.0\nkind: nvidia.com/gpu")
    assert find_cdi_gpus(info, look=True) == ("nvidia.com/gpu=all",)
    assert find_cdi_gpus(info, look=False) == ()
    assert find_cdi_gpus({}, look=True) == ()


# --- connecting -----------------------------------------------------------------------------------


class Client:
    """A client of an engine that says what it is told to."""

    api_version = "1.41"
    options: tuple[str, ...] = ()

    def __init__(self, **keywords: Any) -> None:
        self.base_url = keywords["base_url"]
        self.api = docker.APIClient.__new__(docker.APIClient)
        self.api.adapters = {}

    def version(self) -> dict[str, str]:
        return {"Version": "20.10.24", "ApiVersion": self.api_version}

    def info(self) -> dict[str, Any]:
        runtimes: dict[str, Any] = {"runc": {}, "nvidia": {}}
        return HERE | {"SecurityOptions": list(self.options), "Runtimes": runtimes}


def test_who_answers_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "DockerClient", Client)
    monkeypatch.setattr(Client, "options", ("name=seccomp,profile=default", "name=rootless"))
    facts = DockerEngine("unix:///run/user/1000/docker.sock").facts
    assert (facts.version, facts.api, facts.endpoint) == (
        "20.10.24",
        "1.41",
        "unix:///run/user/1000/docker.sock",
    )
    assert facts.shares_files
    assert facts.rootless
    assert facts.runtimes == ("runc", "nvidia")
    assert isinstance(facts.gpu_hook, bool)


@pytest.mark.parametrize("api_version", ["1.40", "1.9"])
def test_an_engine_that_is_too_old_is_refused(
    monkeypatch: pytest.MonkeyPatch, api_version: str
) -> None:
    monkeypatch.setattr(docker, "DockerClient", Client)
    monkeypatch.setattr(Client, "api_version", api_version)
    with pytest.raises(EngineTooOldError, match=f"its API is {api_version}, and 1.41"):
        connect()


def test_an_engine_on_another_machine_is_refused() -> None:
    with pytest.raises(EngineUnreachableError, match=r"another machine \(ssh://me@gpu1\)"):
        connect("ssh://me@gpu1")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its open socket
def test_an_engine_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(docker.APIClient, "__init__", REAL_INIT)
    with pytest.raises(EngineUnreachableError, match="No Docker engine here") as caught:
        connect(f"unix://{tmp_path}/docker.sock")
    assert caught.value.__cause__ is not None
    del caught
    gc.collect()


def test_a_unit_test_cannot_reach_docker() -> None:
    with pytest.raises(pytest.fail.Exception, match="a unit test reached for Docker"):
        connect()


# --- archives -------------------------------------------------------------------------------------


def test_an_archive_has_the_files_folders_and_owner_it_was_given() -> None:
    files = {PurePosixPath("/run/x"): None, PurePosixPath("/run/x/file"): b"content"}
    with tarfile.open(fileobj=io.BytesIO(make_archive(files, uid=5, gid=6))) as archive:
        folder, file = archive.getmembers()
        assert (folder.name, folder.isdir(), folder.mode) == ("run/x", True, 0o755)
        assert (file.name, file.mode, file.uid, file.gid) == ("run/x/file", 0o644, 5, 6)
        content = archive.extractfile(file)
        assert content is not None
        assert content.read() == b"content"


def test_an_archive_of_nothing_is_one() -> None:
    with tarfile.open(fileobj=io.BytesIO(make_archive({}))) as archive:
        assert archive.getmembers() == []


# --- what an image that is built is called --------------------------------------------------------


def folder_with(folder: Path, **files: str) -> Path:
    """Write these files ("__" is a dot) and return the Dockerfile's path."""
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder / "Dockerfile"


def test_a_build_is_named_by_its_content(tmp_path: Path) -> None:
    path = folder_with(tmp_path, Dockerfile="FROM a\nCOPY . /", data="1")
    reference = build_reference(path)
    assert re.fullmatch(r"dockml/build:[0-9a-f]{64}", reference)
    assert build_reference(path) == reference
    folder_with(tmp_path, data="2")
    assert build_reference(path) != reference
    folder_with(tmp_path, data="1")
    assert build_reference(path) == reference
    (tmp_path / "data").chmod(0o755)
    assert build_reference(path) != reference


def test_what_dockerignore_leaves_out_does_not_count(tmp_path: Path) -> None:
    path = folder_with(
        tmp_path, Dockerfile="FROM a\nCOPY . /", data__csv="1", __dockerignore="# big\n*.csv\n"
    )
    reference = build_reference(path)
    folder_with(tmp_path, data__csv="2")
    assert build_reference(path) == reference
    folder_with(tmp_path, data__txt="2")
    assert build_reference(path) != reference


def test_links_of_a_context_are_not_followed(tmp_path: Path) -> None:
    path = folder_with(tmp_path, Dockerfile="FROM a\nCOPY . /")
    (tmp_path / "link").symlink_to("nowhere")
    reference = build_reference(path)
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("elsewhere")
    assert build_reference(path) != reference


@pytest.mark.parametrize(
    ("step", "counts"),
    [
        ("RUN pip install torch", False),
        ("COPY --from=base /a /a", False),
        ("# COPY nothing", False),
        ("COPY a b", True),
        ("  copy a b", True),
        ("ADD a b", True),
        ("ONBUILD COPY a b", True),
        ("RUN --mount=type=bind,target=/src make", True),
    ],
)
def test_files_count_only_where_they_are_copied(tmp_path: Path, step: str, *, counts: bool) -> None:
    path = folder_with(tmp_path, Dockerfile=f"FROM a\n{step}\n", notebook__ipynb="1")
    reference = build_reference(path)
    folder_with(tmp_path, notebook__ipynb="2")
    assert (build_reference(path) != reference) is counts
    folder_with(tmp_path, Dockerfile=f"FROM b\n{step}\n")
    assert build_reference(path) != reference
