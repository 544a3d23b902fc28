"""What every engine must do: one set of tests for `FakeEngine` and for the real one.

So the fake cannot drift: what the unit tests learn from it is true of Docker.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import re
import secrets
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import docker
import pytest

from dockml_magic import labels
from dockml_magic.engine import (
    ContainerState,
    DiskUsage,
    DockerEngine,
    Engine,
    Exec,
    NotStartableError,
    connect,
    make_archive,
)
from dockml_magic.errors import (
    ContainerNameTakenError,
    EngineError,
    ImageBuildError,
    ImageInUseError,
    ImageUnavailableError,
    MountError,
    PortTakenError,
)
from dockml_magic.options import PublishedPort
from dockml_magic.pull import PullProgress
from dockml_magic.spec import ContainerSpec, Mount
from tests.ports import free_ports
from tests.unit.fake_engine import FakeEngine, Ran, Run
from tests.waiting import wait_until

IMAGE = "dockml/bare:3.11"
LABEL = f"{labels.NAMESPACE}.contract-test"
PORT = 8000

RUNS_ON = "import time; time.sleep(600)"
WRITES_THREE_LINES = "print('one'); print('two'); print('three')"
ENDS_WITH_3 = "raise SystemExit(3)"
LISTENS = f"""
import socket
server = socket.create_server(('0.0.0.0', {PORT}))
while True:
    connection, _ = server.accept()
    connection.sendall(b'hello')
    connection.close()
"""

WRITES_TO_BOTH = "import sys; print('out', flush=True); sys.stderr.write('err'); sys.exit(3)"
ECHOES = "import sys; sys.stdout.write(sys.stdin.read())"

RAN = {
    WRITES_TO_BOTH: Ran(stdout="out\n", stderr="err", exit_code=3),
    ECHOES: Ran(echoes=True),
}
BEHAVIOUR = {
    RUNS_ON: Run(),
    WRITES_THREE_LINES: Run(output="one\ntwo\nthree\n", exit_code=0),
    ENDS_WITH_3: Run(exit_code=3),
    LISTENS: Run(),
}


@dataclass(frozen=True)
class Bench:
    """An engine to try, and how to ask it for containers that are removed after the test."""

    engine: Engine
    label: str

    def spec(self, code: str = RUNS_ON, **changes: object) -> ContainerSpec:
        """Return a container that runs a piece of Python."""
        spec = ContainerSpec(
            image=IMAGE,
            name=f"dockml-contract-{secrets.token_hex(6)}",
            entrypoint=("python3", "-c", code),
            user="0:0",
            workdir=PurePosixPath("/"),
            labels={LABEL: self.label},
            env={},
            auto_remove=False,
        )
        return replace(spec, **changes)  # type: ignore[arg-type]

    def create(self, code: str = RUNS_ON, **changes: object) -> str:
        """Create one and return its id."""
        return self.engine.create(self.spec(code, **changes))

    def started(self, code: str = RUNS_ON, **changes: object) -> str:
        """Create and start one and return its id."""
        container = self.create(code, **changes)
        self.engine.start(container)
        return container

    def status(self, container: str) -> str:
        """Return its status, "" when it is gone."""
        state = self.engine.inspect(container)
        return state.status if state else ""

    def listed(self, wanted: Mapping[str, str]) -> list[str]:
        """Return the ids of the containers with these labels, sorted."""
        return sorted(state.id for state in self.engine.list(wanted))


@pytest.fixture(scope="module")
def real_engine() -> Iterator[DockerEngine]:
    """The engine that the environment names. None is a failure: it was asked for."""
    from tests.images.build import build

    with closing(docker.from_env()) as client:
        build([IMAGE], client)
    engine = connect()
    yield engine
    engine._client.close()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.docker)])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Give each engine in turn; no container of the test is left."""
    engine: Engine
    if request.param == "fake":
        engine = FakeEngine(behave=lambda spec: BEHAVIOUR[spec.entrypoint[2]])
        engine.ran = lambda command: RAN[command[2]]
        engine.add_image(IMAGE, programs={"python3"})
    else:
        engine = request.getfixturevalue("real_engine")
    bench = Bench(engine, secrets.token_hex(6))
    yield bench
    for container in bench.listed({LABEL: bench.label}):
        engine.remove(container)


def host_port(state: ContainerState | None) -> int:
    assert state is not None
    return state.host_ports[PORT]


@pytest.fixture
def busy_port(bench: Bench) -> Iterator[int]:
    """Give a port of 127.0.0.1 that a program on the host listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        if isinstance(bench.engine, FakeEngine):
            bench.engine.busy_ports.add(("127.0.0.1", port))
        yield port


@pytest.fixture
def free_port() -> int:
    """Give a port of 127.0.0.1 that nothing listens on."""
    return free_ports(1)[0]


# --- images ---------------------------------------------------------------------------------------


def test_an_image_that_is_here_is_found(bench: Bench) -> None:
    image = bench.engine.find_image(IMAGE)
    assert image is not None
    assert image.id.startswith("sha256:")
    assert image.size > 1_000_000
    assert image.architecture


def test_an_image_that_is_not_here_is_none(bench: Bench) -> None:
    assert bench.engine.find_image("dockml/no-such-image:1") is None


def test_a_reference_without_tag_is_latest(bench: Bench) -> None:
    assert bench.engine.find_image("dockml/bare") is None


def test_local_references_are_tags(bench: Bench) -> None:
    references = bench.engine.local_references()
    assert IMAGE in references
    assert references == sorted(references)


def test_a_pull_that_cannot_be_done_names_the_reference(bench: Bench) -> None:
    reference = "localhost:1/dockml/no-such-image:1"
    told: list[PullProgress] = []
    with pytest.raises(ImageUnavailableError, match="localhost:1/dockml/no-such-image:1") as caught:
        bench.engine.pull(reference, told.append)
    assert caught.value.reference == reference
    assert caught.value.hint
    assert told[0].reference == reference
    assert {progress.phase for progress in told} == {"asking"}


def test_what_a_report_raises_ends_the_pull(bench: Bench) -> None:
    class Stopped(Exception):
        pass

    def report(progress: PullProgress) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        bench.engine.pull("localhost:1/dockml/no-such-image:1", report)


@pytest.fixture
def built(bench: Bench, tmp_path: Path) -> Iterator[str]:
    """An image of this test's, with a label of its own, under one name."""
    reference = f"dockml/contract-test:{secrets.token_hex(6)}"
    if isinstance(bench.engine, FakeEngine):
        bench.engine.add_image(reference, programs={"python3"}, labels={LABEL: bench.label})
    else:
        path = dockerfile(tmp_path, f"LABEL {LABEL}={bench.label}")
        bench.engine.build(path, reference, {}, lambda line: None)
    yield reference
    for container in bench.listed({LABEL: bench.label}):
        bench.engine.remove(container)
    for image in bench.engine.images({LABEL: bench.label}):
        bench.engine.remove_image(image.id, force=True)


def tag(bench: Bench, reference: str, other: str) -> None:
    if isinstance(bench.engine, FakeEngine):
        bench.engine.tag(reference, other)
    else:
        assert isinstance(bench.engine, DockerEngine)
        repository, _, of = other.partition(":")
        bench.engine._client.api.tag(reference, repository, of)


# What has all names of an image compared has an image of its own: other tests give IMAGE more names, meanwhile.
def test_an_image_is_found_by_its_id(bench: Bench, built: str) -> None:
    image = bench.engine.find_image(built)
    assert image is not None
    assert bench.engine.find_image(image.id) == image


def test_images_are_listed_by_label(bench: Bench, built: str) -> None:
    (image,) = bench.engine.images({LABEL: bench.label})
    found = bench.engine.find_image(built)
    assert found is not None
    assert (image.id, image.references, image.size) == (found.id, (built,), found.size)
    assert image.labels[LABEL] == found.labels[LABEL] == bench.label
    assert image.id in {other.id for other in bench.engine.images({LABEL: ""})}
    assert bench.engine.images({LABEL: f"not-{bench.label}"}) == []


def test_all_images_are_listed_where_no_label_is_wanted(bench: Bench) -> None:
    image = bench.engine.find_image(IMAGE)
    assert image is not None
    (listed,) = (other for other in bench.engine.images({}) if other.id == image.id)
    assert IMAGE in listed.references
    assert listed.size > 1_000_000


def test_an_image_is_removed_with_its_last_name(bench: Bench, built: str) -> None:
    image = bench.engine.find_image(built)
    assert image is not None
    other = f"{built}-too"
    tag(bench, built, other)
    assert bench.engine.remove_image(built) == [f"Untagged: {built}"]
    assert bench.engine.find_image(built) is None
    gone = bench.engine.remove_image(other)
    assert gone[0] == f"Untagged: {other}"
    assert f"Deleted: {image.id}" in gone
    assert bench.engine.find_image(image.id) is None


def test_an_image_that_is_not_here_cannot_be_removed(bench: Bench) -> None:
    with pytest.raises(ImageUnavailableError, match="dockml/no-such-image:1") as caught:
        bench.engine.remove_image("dockml/no-such-image:1")
    assert caught.value.reference == "dockml/no-such-image:1"


def test_an_image_with_two_names_is_not_removed_by_its_id(bench: Bench, built: str) -> None:
    image = bench.engine.find_image(built)
    assert image is not None
    tag(bench, built, f"{built}-too")
    with pytest.raises(ImageInUseError, match="multiple repositories"):
        bench.engine.remove_image(image.id)
    assert len(bench.engine.remove_image(image.id, force=True)) >= 3


def test_an_image_that_a_container_uses_stays(bench: Bench, built: str) -> None:
    image = bench.engine.find_image(built)
    assert image is not None
    container = bench.create(image=built)
    with pytest.raises(ImageInUseError, match=container[:12]):
        bench.engine.remove_image(built)
    assert bench.engine.find_image(built) == image
    listed = bench.engine.list({LABEL: bench.label})
    assert [state.image_id for state in listed] == [image.id]
    state = bench.engine.inspect(container)
    assert state is not None
    assert state.image_id == image.id


def test_by_force_a_running_container_loses_only_the_name(bench: Bench, built: str) -> None:
    image = bench.engine.find_image(built)
    assert image is not None
    container = bench.started(image=built)
    assert bench.engine.remove_image(built, force=True) == [f"Untagged: {built}"]
    assert bench.engine.find_image(image.id) is not None
    with pytest.raises(ImageInUseError):
        bench.engine.remove_image(image.id, force=True)
    assert bench.status(container) == "running"


# --- create, start, inspect -----------------------------------------------------------------------


def test_a_created_container_does_not_run(bench: Bench) -> None:
    spec = bench.spec()
    container = bench.engine.create(spec)
    state = bench.engine.inspect(container)
    assert state is not None
    assert (state.id, state.status, state.name, state.image) == (
        container,
        "created",
        spec.name,
        IMAGE,
    )
    assert state.labels[LABEL] == bench.label


def test_a_started_container_runs(bench: Bench) -> None:
    assert bench.status(bench.started()) == "running"


def test_a_container_is_found_by_its_name_and_by_how_its_id_begins(bench: Bench) -> None:
    spec = bench.spec()
    container = bench.engine.create(spec)
    for name in (spec.name, container[:12]):
        state = bench.engine.inspect(name)
        assert state is not None
        assert state.id == container


def test_a_container_of_an_unknown_image_is_refused(bench: Bench) -> None:
    with pytest.raises(ImageUnavailableError, match="dockml/no-such-image:1") as caught:
        bench.create(image="dockml/no-such-image:1")
    assert caught.value.reference == "dockml/no-such-image:1"


def test_a_name_that_is_taken_is_refused(bench: Bench) -> None:
    spec = bench.spec()
    bench.engine.create(spec)
    with pytest.raises(ContainerNameTakenError, match=spec.name):
        bench.engine.create(spec)


def test_a_name_is_free_again_after_removal(bench: Bench) -> None:
    spec = bench.spec()
    bench.engine.remove(bench.engine.create(spec))
    assert bench.engine.create(spec)


def test_a_mount_that_does_not_exist_is_refused_and_not_made(bench: Bench, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(MountError, match=str(missing)):
        bench.create(mounts=(Mount(target=PurePosixPath("/data"), host_path=missing),))
    assert not missing.exists()
    assert bench.listed({LABEL: bench.label}) == []


def test_a_program_that_the_image_lacks_is_told_at_the_start(bench: Bench) -> None:
    container = bench.create(entrypoint=("no-such-program", "-c", RUNS_ON))
    with pytest.raises(NotStartableError):
        bench.engine.start(container)
    assert bench.status(container) == "created"


def test_a_path_that_the_image_lacks_is_told_at_the_start(bench: Bench) -> None:
    container = bench.create(entrypoint=("/opt/no/such/program", "-c", RUNS_ON))
    with pytest.raises(NotStartableError):
        bench.engine.start(container)


def test_a_container_that_is_gone_cannot_be_started(bench: Bench) -> None:
    container = bench.create()
    bench.engine.remove(container)
    with pytest.raises(EngineError):
        bench.engine.start(container)


# --- ports ----------------------------------------------------------------------------------------


def test_the_engine_chooses_a_port_where_none_is_given(bench: Bench) -> None:
    container = bench.started(LISTENS, ports=(PublishedPort(container_port=PORT),))
    assert host_port(bench.engine.inspect(container)) > 1023


def test_a_port_that_is_given_is_used(bench: Bench, free_port: int) -> None:
    port = PublishedPort(container_port=PORT, host_port=free_port)
    container = bench.started(LISTENS, ports=(port,))
    assert host_port(bench.engine.inspect(container)) == free_port


def test_two_containers_get_two_ports(bench: Bench) -> None:
    ports = (PublishedPort(container_port=PORT),)
    states = [bench.engine.inspect(bench.started(LISTENS, ports=ports)) for _ in range(2)]
    assert len({host_port(state) for state in states}) == 2


def test_a_port_of_another_container_is_refused(bench: Bench, free_port: int) -> None:
    ports = (PublishedPort(container_port=PORT, host_port=free_port),)
    bench.started(LISTENS, ports=ports)
    with pytest.raises(PortTakenError, match=str(free_port)):
        bench.started(LISTENS, ports=ports)


def test_a_port_of_another_program_is_refused(bench: Bench, busy_port: int) -> None:
    with pytest.raises(PortTakenError, match=f"127.0.0.1:{busy_port} is in use"):
        bench.started(LISTENS, ports=(PublishedPort(container_port=PORT, host_port=busy_port),))


def test_a_container_without_ports_publishes_none(bench: Bench) -> None:
    state = bench.engine.inspect(bench.started())
    assert state is not None
    assert state.host_ports == {}


@pytest.mark.docker
def test_a_published_port_answers_on_this_machine_only(real_engine: DockerEngine) -> None:
    bench = Bench(real_engine, secrets.token_hex(6))
    container = bench.started(LISTENS, ports=(PublishedPort(container_port=PORT),))
    try:
        port = host_port(real_engine.inspect(container))
        wait_until(lambda: _answer("127.0.0.1", port) == b"hello")
        found = real_engine._client.api.inspect_container(container)["NetworkSettings"]["Ports"]
        assert [row["HostIp"] for row in found[f"{PORT}/tcp"]] == ["127.0.0.1"]
    finally:
        real_engine.remove(container)


def _answer(address: str, port: int) -> bytes:
    try:
        with socket.create_connection((address, port), timeout=5.0) as connection:
            return connection.recv(100)
    except OSError:
        return b""


# --- the end --------------------------------------------------------------------------------------


def test_wait_gives_the_exit_code(bench: Bench) -> None:
    container = bench.started(ENDS_WITH_3)
    assert bench.engine.wait(container, timeout=60.0) == 3
    state = bench.engine.inspect(container)
    assert state is not None
    assert (state.status, state.exit_code, state.out_of_memory) == ("exited", 3, False)


def test_wait_gives_nothing_while_the_container_runs(bench: Bench) -> None:
    assert bench.engine.wait(bench.started(), timeout=0.2) is None


def test_wait_gives_nothing_for_a_container_that_is_gone(bench: Bench) -> None:
    container = bench.create()
    bench.engine.remove(container)
    assert bench.engine.wait(container, timeout=0.2) is None


def test_logs_give_the_last_lines(bench: Bench) -> None:
    container = bench.started(WRITES_THREE_LINES)
    assert bench.engine.wait(container, timeout=60.0) == 0
    assert bench.engine.logs(container, tail=2) == "two\nthree\n"
    assert bench.engine.logs(container, tail=100) == "one\ntwo\nthree\n"


def streamed(bench: Bench, container: str, **how: Any) -> str:
    return b"".join(bench.engine.stream_logs(container, **how)).decode()


def test_logs_come_in_pieces(bench: Bench) -> None:
    container = bench.started(WRITES_THREE_LINES)
    assert bench.engine.wait(container, timeout=60.0) == 0
    assert streamed(bench, container) == "one\ntwo\nthree\n"
    assert streamed(bench, container, tail=2) == "two\nthree\n"
    assert streamed(bench, container, tail=0) == ""
    stamped = streamed(bench, container, tail=1, timestamps=True)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z three\n", stamped)


def test_logs_are_followed_to_the_end(bench: Bench) -> None:
    container = bench.started(WRITES_THREE_LINES)
    assert streamed(bench, container, follow=True) == "one\ntwo\nthree\n"


def test_there_are_no_logs_to_stream_of_what_is_gone(bench: Bench) -> None:
    with pytest.raises(EngineError):
        streamed(bench, "0" * 64)


@pytest.mark.docker
def test_what_comes_later_is_followed_and_left(real_engine: DockerEngine) -> None:
    bench = Bench(real_engine, secrets.token_hex(6))
    code = "import time\nwhile True: print('tick', flush=True); time.sleep(0.1)"
    container = bench.started(code)
    try:
        pieces = real_engine.stream_logs(container, follow=True)
        assert {next(pieces) for _ in range(3)} == {b"tick\n"}
        pieces.close()
        assert bench.status(container) == "running"
    finally:
        real_engine.remove(container)


def outputs(command: Exec) -> dict[str, bytes]:
    found = {"stdout": b"", "stderr": b""}
    while (piece := command.read()) is not None:
        found[piece[0]] += piece[1]
    return found


def test_a_command_tells_its_output_and_how_it_ended(bench: Bench) -> None:
    command = bench.engine.exec(bench.started(), ["python3", "-c", WRITES_TO_BOTH])
    with closing(command):
        assert outputs(command) == {"stdout": b"out\n", "stderr": b"err"}
        wait_until(lambda: command.exit_code() == 3)


def test_a_command_reads_what_is_sent_until_its_input_ends(bench: Bench) -> None:
    command = bench.engine.exec(bench.started(), ["python3", "-c", ECHOES])
    with closing(command):
        assert command.exit_code() is None
        wait_until(lambda: command.pid > 0)
        command.write(b"he")
        command.write(b"llo")
        command.close_input()
        assert select.select([command], [], [], 60.0)[0]
        assert outputs(command) == {"stdout": b"hello", "stderr": b""}
        wait_until(lambda: command.exit_code() == 0)
        command.write(b"too late")


@pytest.mark.docker
def test_a_command_runs_as_asked(real_engine: DockerEngine) -> None:
    bench = Bench(real_engine, secrets.token_hex(6))
    container = bench.started()
    code = (
        "import os, sys; print(os.getuid(), os.getcwd(), os.environ['A'], os.get_terminal_size())"
    )
    try:
        asked = {"user": "1234:1234", "workdir": "/tmp", "env": {"A": "1 = 2"}}
        with closing(
            real_engine.exec(container, ["python3", "-c", f"input(); {code}"], tty=True, **asked)  # type: ignore[arg-type]
        ) as command:
            command.resize(33, 111)
            command.write(b"\n")
            said = outputs(command)["stdout"].decode()
        assert "1234 /tmp 1 = 2 os.terminal_size(columns=111, lines=33)" in said
    finally:
        real_engine.remove(container)


def test_nothing_runs_in_a_container_that_has_ended(bench: Bench) -> None:
    container = bench.started(ENDS_WITH_3)
    bench.engine.wait(container, timeout=60.0)
    with pytest.raises(EngineError, match="not running"):
        bench.engine.exec(container, ["python3", "-c", WRITES_TO_BOTH])


def test_stats_tell_what_a_running_container_uses(bench: Bench) -> None:
    container = bench.started(RUNS_ON)
    first = bench.engine.stats(container)
    time.sleep(0.1)  # the system counts in hundredths of a second
    second = bench.engine.stats(container)
    assert first is not None
    assert second is not None
    assert 0 < first.memory < first.memory_limit
    assert first.cpus >= 1
    assert second.system > first.system
    assert second.cpu >= first.cpu
    assert first.pids is not None
    assert first.pids >= 1
    assert 0.0 <= second.cpu_percent(first) <= second.cpus * 100


def test_there_are_no_stats_of_what_does_not_run(bench: Bench) -> None:
    container = bench.started(ENDS_WITH_3)
    wait_until(lambda: bench.status(container) == "exited")
    assert bench.engine.stats(container) is None
    bench.engine.remove(container)
    assert bench.engine.stats(container) is None


def test_a_container_with_auto_remove_goes_when_it_ends(bench: Bench) -> None:
    container = bench.started(ENDS_WITH_3, auto_remove=True)
    wait_until(lambda: bench.engine.inspect(container) is None)
    assert bench.engine.logs(container, tail=10) == ""


def test_a_container_without_auto_remove_stays(bench: Bench) -> None:
    container = bench.started(ENDS_WITH_3)
    bench.engine.wait(container, timeout=60.0)
    assert bench.status(container) == "exited"


def test_a_stopped_container_stays_and_starts_again(bench: Bench) -> None:
    container = bench.started()
    bench.engine.stop(container)
    assert bench.status(container) == "exited"
    bench.engine.stop(container)
    bench.engine.start(container)
    assert bench.status(container) == "running"


def test_stopping_what_is_gone_is_success(bench: Bench) -> None:
    container = bench.create()
    bench.engine.remove(container)
    bench.engine.stop(container)


def test_a_running_container_is_removed(bench: Bench) -> None:
    container = bench.started()
    bench.engine.remove(container)
    assert bench.engine.inspect(container) is None


def test_a_running_container_with_auto_remove_is_removed(bench: Bench) -> None:
    container = bench.started(auto_remove=True)
    bench.engine.remove(container)
    wait_until(lambda: bench.engine.inspect(container) is None)


def test_removing_what_is_gone_is_success(bench: Bench) -> None:
    container = bench.create()
    bench.engine.remove(container)
    bench.engine.remove(container)


def test_what_never_was_is_gone(bench: Bench) -> None:
    never = "0" * 64
    bench.engine.remove(never)
    assert bench.engine.inspect(never) is None
    assert bench.engine.logs(never, tail=10) == ""
    assert bench.engine.read_file(never, PurePosixPath("/etc/hostname")) is None


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_running", [False, True])
def test_a_file_that_is_copied_in_can_be_read(bench: Bench, *, is_running: bool) -> None:
    container = bench.started() if is_running else bench.create()
    path = PurePosixPath("/run/dockml/some/file")
    content = bytes(range(256)) * 100
    bench.engine.copy_in(container, make_archive({path.parent: None, path: content}))
    assert bench.engine.read_file(container, path) == content


def test_a_file_is_read_up_to_a_limit(bench: Bench) -> None:
    container = bench.create()
    path = PurePosixPath("/run/dockml/some/file")
    bench.engine.copy_in(container, make_archive({path: bytes(1000)}))
    assert bench.engine.read_file(container, path, limit=1000) == bytes(1000)
    with pytest.raises(EngineError, match=r"'/run/dockml/some/file' .* has more than 999 B"):
        bench.engine.read_file(container, path, limit=999)
    # And one that is more than what an archive has around a file, of which not all is taken.
    bench.engine.copy_in(container, make_archive({path: bytes(9 * 1024 * 1024)}))
    with pytest.raises(EngineError, match=r"has more than 8\.4 MB, and is not read"):
        bench.engine.read_file(container, path)


def test_a_file_that_is_not_there_is_none(bench: Bench) -> None:
    assert bench.engine.read_file(bench.create(), PurePosixPath("/no/such/file")) is None


def test_a_folder_is_not_a_file(bench: Bench) -> None:
    container = bench.create()
    folder = PurePosixPath("/run/dockml")
    bench.engine.copy_in(container, make_archive({folder: None, folder / "file": b"x"}))
    assert bench.engine.read_file(container, folder) is None


def test_nothing_is_copied_into_a_container_that_is_gone(bench: Bench) -> None:
    container = bench.create()
    bench.engine.remove(container)
    with pytest.raises(EngineError):
        bench.engine.copy_in(container, make_archive({PurePosixPath("/file"): b"x"}))


# --- labels ---------------------------------------------------------------------------------------


def test_only_what_carries_the_label_is_listed(bench: Bench) -> None:
    mine = sorted([bench.create(), bench.started()])
    other = bench.create(labels={LABEL: bench.label, f"{LABEL}.other": "1"})
    assert bench.listed({LABEL: bench.label}) == sorted([*mine, other])
    assert bench.listed({LABEL: bench.label, f"{LABEL}.other": "1"}) == [other]
    assert bench.listed({LABEL: f"not-{bench.label}"}) == []


def test_an_empty_value_is_any_value(bench: Bench) -> None:
    container = bench.create()
    assert container in bench.listed({LABEL: ""})
    assert bench.listed({LABEL: bench.label, f"{LABEL}.other": ""}) == []


def test_what_has_ended_is_listed_too(bench: Bench) -> None:
    container = bench.started(ENDS_WITH_3)
    bench.engine.wait(container, timeout=60.0)
    (state,) = bench.engine.list({LABEL: bench.label})
    assert (state.id, state.status, state.image) == (container, "exited", IMAGE)
    assert state.labels[LABEL] == bench.label


# --- images from containers, and archives ---------------------------------------------------------


@pytest.fixture
def reference(bench: Bench) -> Iterator[str]:
    """A name for an image, which is removed after the test."""
    name = f"dockml/contract-test:{secrets.token_hex(6)}"
    yield name
    for container in bench.listed({LABEL: bench.label}):
        bench.engine.remove(container)
    if bench.engine.find_image(name) is not None:
        bench.engine.remove_image(name)


@pytest.mark.parametrize("code", [RUNS_ON, ENDS_WITH_3], ids=["running", "ended"])
def test_a_commit_makes_an_image(bench: Bench, reference: str, code: str) -> None:
    container = bench.started(code)
    if code == ENDS_WITH_3:
        bench.engine.wait(container, timeout=60.0)
    image = bench.engine.commit(container, reference, message="why", author="who")
    assert image == bench.engine.find_image(reference)
    base = bench.engine.find_image(IMAGE)
    assert base is not None
    assert image.id != base.id
    assert (image.entrypoint, image.user, image.architecture) == (
        base.entrypoint,
        base.user,
        base.architecture,
    )
    assert LABEL not in image.labels
    assert bench.engine.images({labels.COMMITS: reference}) == []
    assert bench.started(image=reference)


def test_a_container_that_is_gone_is_not_committed(bench: Bench, reference: str) -> None:
    container = bench.create()
    bench.engine.remove(container)
    with pytest.raises(EngineError):
        bench.engine.commit(container, reference)
    assert bench.engine.find_image(reference) is None


def test_what_is_saved_can_be_loaded(bench: Bench, built: str) -> None:
    image = bench.engine.find_image(built)
    assert image is not None
    pieces = list(bench.engine.save([built]))
    assert len(pieces) > 1
    bench.engine.remove_image(built)
    assert bench.engine.load(iter(pieces)) == [built]
    assert bench.engine.find_image(built) is not None
    if isinstance(bench.engine, DockerEngine):
        assert bench.engine.find_image(built) == image


def test_an_image_that_is_not_here_cannot_be_saved(bench: Bench) -> None:
    with pytest.raises(ImageUnavailableError, match="dockml/no-such-image:1"):
        list(bench.engine.save([IMAGE, "dockml/no-such-image:1"]))


@pytest.mark.docker
@pytest.mark.parametrize("was_there", [False, True])
def test_an_interrupt_while_the_image_gets_its_name_takes_the_name_away_again(
    real_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch, was_there: bool
) -> None:
    """But not one that was there before: that would be another image's, lost."""
    bench = Bench(real_engine, secrets.token_hex(6))
    reference = f"dockml/contract-test:{secrets.token_hex(6)}"
    container = bench.started()
    if was_there:
        real_engine.tag(IMAGE, reference)
    load, has_loaded = real_engine.load, threading.Event()

    def load_slowly(archive: Iterator[bytes]) -> list[str]:
        _thread.interrupt_main()
        time.sleep(1.0)  # `join` sees the interrupt within 0.2 s
        names = load(archive)
        has_loaded.set()
        return names

    monkeypatch.setattr(real_engine, "load", load_slowly)
    try:
        with pytest.raises(KeyboardInterrupt):
            real_engine.commit(container, reference)
        assert has_loaded.wait(60.0)
        wait_until(lambda: not real_engine.images({labels.COMMITS: reference}))
        assert (real_engine.find_image(reference) is not None) == was_there
    finally:
        real_engine.remove(container)
        if real_engine.find_image(reference):
            real_engine.remove_image(reference)


@pytest.mark.docker
def test_a_commit_has_the_files_and_nothing_of_the_containers_settings(
    real_engine: DockerEngine, tmp_path: Path
) -> None:
    """By both ways: layers that the engine has, and a whole archive."""
    bench = Bench(real_engine, secrets.token_hex(6))
    api = real_engine._client.api
    base = api.inspect_image(IMAGE)
    (tmp_path / "mounted").write_text("of the workspace")
    container = bench.started(
        "import time; open('/installed', 'w').write('yes'); print(flush=True); time.sleep(600)",
        env={"TOKEN": "hunter2-the-secret"},
        mounts=(Mount(target=PurePosixPath("/work"), host_path=tmp_path),),
        labels={LABEL: bench.label, labels.SESSION: "1"},
    )
    next(real_engine.stream_logs(container, follow=True))
    load = real_engine.load
    for way in ("layers", "archive"):
        reference = f"dockml/contract-test:{secrets.token_hex(6)}"
        loaded: list[int] = []

        def refuse_first(
            archive: Iterator[bytes], way: str = way, loaded: list[int] = loaded
        ) -> list[str]:
            loaded.append(1)
            if way == "archive" and len(loaded) == 1:
                raise EngineError("It has no such layer.")
            return load(archive)

        real_engine.load = refuse_first  # type: ignore[method-assign]
        try:
            real_engine.commit(container, reference, message="a why", author="A. Who")
            found = api.inspect_image(reference)
            assert found["Config"] == base["Config"]
            assert (found["Comment"], found["Author"]) == ("a why", "A. Who")
            assert found["RootFS"]["Layers"][:-1] == base["RootFS"]["Layers"]
            steps = [row["CreatedBy"] for row in api.history(reference)]
            assert steps == ["dockml commit", *(row["CreatedBy"] for row in api.history(IMAGE))]
            assert b"hunter2" not in b"".join(real_engine.save([reference]))
            made = bench.create(image=reference)
            assert real_engine.read_file(made, PurePosixPath("/installed")) == b"yes"
            assert real_engine.read_file(made, PurePosixPath("/work/mounted")) is None
        finally:
            real_engine.load = load  # type: ignore[method-assign]
            for other in bench.listed({LABEL: bench.label}):
                if other != container:
                    real_engine.remove(other)
            if real_engine.find_image(reference):
                real_engine.remove_image(reference)
        assert len(loaded) == {"layers": 1, "archive": 2}[way]
        assert real_engine.images({labels.COMMITS: reference}) == []
    real_engine.remove(container)


def test_a_list_says_when_each_was_created_of_what_image_and_what_is_mounted(
    bench: Bench, tmp_path: Path
) -> None:
    mount = Mount(target=PurePosixPath("/mine"), host_path=tmp_path)
    began = time.time()
    bench.create(mounts=(mount,))
    (state,) = bench.engine.list({LABEL: bench.label})
    image = bench.engine.find_image(IMAGE)
    assert image is not None
    assert state.image_id == image.id
    assert began - 5 < state.created_at < time.time() + 5
    assert state.mounts == {"/mine": str(tmp_path)}


def test_without_force_only_what_does_not_run_is_removed(bench: Bench) -> None:
    running, created = bench.started(), bench.create()
    with pytest.raises(EngineError, match="running container"):
        bench.engine.remove(running, force=False)
    bench.engine.remove(created, force=False)
    bench.engine.remove(created, force=False)
    assert bench.listed({LABEL: bench.label}) == [running]
    assert bench.status(running) == "running"


def test_the_disk_usage_counts_images_and_containers(bench: Bench) -> None:
    container = bench.create()
    image = bench.engine.find_image(IMAGE)
    assert image is not None
    usage = DiskUsage()

    def has_counted() -> bool:
        """Docker 20.10 does not count twice at a time, and tells who comes second nothing."""
        nonlocal usage
        with contextlib.suppress(EngineError):  # somebody removes a container while it counts
            usage = bench.engine.disk_usage()
        return container in usage.containers

    wait_until(has_counted)
    assert 0 <= usage.images[image.id] <= image.size <= usage.layers
    assert usage.containers[container] == 0


# --- builds ---------------------------------------------------------------------------------------


def dockerfile(folder: Path, *lines: str) -> Path:
    path = folder / "Dockerfile"
    path.write_text("\n".join([f"FROM {IMAGE}", *lines, ""]))
    return path


def test_a_build_is_told_line_by_line_and_its_image_is_here(bench: Bench, tmp_path: Path) -> None:
    reference = f"dockml/contract-test:{secrets.token_hex(6)}"
    lines: list[str] = []
    path = dockerfile(tmp_path, "RUN true")
    try:
        bench.engine.build(path, reference, {"PIP_INDEX_URL": "http://x/"}, lines.append)
        assert bench.engine.find_image(reference) is not None
        assert any("RUN true" in line for line in lines)
        assert not any("[Warning]" in line for line in lines)
        (built,) = bench.engine.images({labels.BUILT_FROM: str(path)})
        assert built.references == (reference,)
        assert built.labels[labels.USER] == str(os.getuid())
        assert built.created_at > time.time() - 600
    finally:
        if isinstance(bench.engine, DockerEngine):
            bench.engine._client.api.remove_image(reference)


@pytest.mark.parametrize(
    "lines", [["RUN false"], ["FROM dockml/contract-test:no-such-image"]], ids=["command", "base"]
)
def test_a_build_that_fails_says_where(bench: Bench, tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(ImageBuildError, match="could not be built") as caught:
        bench.engine.build(dockerfile(tmp_path, *lines), "dockml/contract-test:failed", {}, print)
    assert lines[-1] in caught.value.log_tail
    assert bench.engine.find_image("dockml/contract-test:failed") is None


# --- layers ---------------------------------------------------------------------------------------


@pytest.fixture
def layer(bench: Bench) -> Iterator[str]:
    """A reference for a layer, which is removed."""
    reference = f"dockml/contract-test:{secrets.token_hex(6)}"
    yield reference
    if isinstance(bench.engine, DockerEngine):
        bench.engine._client.api.remove_image(reference, force=True)


def test_what_a_running_container_has_changed_becomes_a_layer(bench: Bench, layer: str) -> None:
    container = bench.started(labels={labels.USER: "7", LABEL: bench.label})
    bench.engine.copy_in(container, make_archive({PurePosixPath("/greeting"): b"hello"}))
    made = bench.engine.commit(container, layer, as_layer={labels.BASE: "below"})
    assert made == bench.engine.find_image(layer)
    base = bench.engine.find_image(IMAGE)
    assert base is not None
    assert made.id != base.id
    # Its container's labels stay, which `prune` tells layers by.
    assert (made.labels[labels.BASE], made.labels[labels.USER]) == ("below", "7")
    root = "0:0"  # an image without a user has root
    assert (made.user or root, made.entrypoint) == (base.user or root, base.entrypoint)
    assert bench.status(container) == "running"
    assert bench.status(bench.started(image=layer, labels={LABEL: bench.label})) == "running"
    if isinstance(bench.engine, DockerEngine):
        about = bench.engine._client.api.inspect_image(layer)["Config"]
        below = bench.engine._client.api.inspect_image(IMAGE)["Config"]
        assert about["Cmd"] == below["Cmd"]


def test_a_layer_of_what_is_gone_is_refused(bench: Bench) -> None:
    with pytest.raises(EngineError):
        bench.engine.commit("0" * 64, "dockml/contract-test:none", as_layer={})
    assert bench.engine.find_image("dockml/contract-test:none") is None


def test_an_image_may_have_more_names(bench: Bench, built: str, layer: str) -> None:
    found = bench.engine.find_image(built)
    assert found is not None
    assert found.digests == ()  # it was built here
    bench.engine.tag(found.id, layer)
    again = bench.engine.find_image(layer)
    assert again == bench.engine.find_image(built)
    assert again is not None
    assert again.id == found.id
    assert set(again.references) == {*found.references, layer}
    assert layer in bench.engine.local_references()


def test_what_is_not_here_gets_no_name(bench: Bench) -> None:
    with pytest.raises(ImageUnavailableError):
        bench.engine.tag("dockml/none:1", "dockml/contract-test:none")
    assert bench.engine.find_image("dockml/contract-test:none") is None
