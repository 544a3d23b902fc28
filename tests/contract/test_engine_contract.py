"""What every engine must do: one set of tests for `FakeEngine` and for the real one.

So the fake cannot drift: what the unit tests learn from it is true of Docker.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import docker
import pytest

from dockml_magic import labels
from dockml_magic.engine import (
    ContainerState,
    DockerEngine,
    Engine,
    NotStartableError,
    connect,
    make_archive,
)
from dockml_magic.errors import (
    ContainerNameTakenError,
    EngineError,
    ImageBuildError,
    ImageUnavailableError,
    MountError,
    PortTakenError,
)
from dockml_magic.options import PublishedPort
from dockml_magic.pull import PullProgress
from dockml_magic.spec import ContainerSpec, Mount
from tests.unit.fake_engine import FakeEngine, Run
from tests.unit.waiting import wait_until

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
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# --- images ---------------------------------------------------------------------------------------


def test_an_image_that_is_here_is_found(bench: Bench) -> None:
    image = bench.engine.find_image(IMAGE)
    assert image is not None
    assert image.id.startswith("sha256:")
    assert image.size > 1_000_000
    assert image.architecture


def test_an_image_is_found_by_its_id(bench: Bench) -> None:
    image = bench.engine.find_image(IMAGE)
    assert image is not None
    assert bench.engine.find_image(image.id) == image


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
    assert bench.engine.wait(container, timeout=20.0) == 3
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
    assert bench.engine.wait(container, timeout=20.0) == 0
    assert bench.engine.logs(container, tail=2) == "two\nthree\n"
    assert bench.engine.logs(container, tail=100) == "one\ntwo\nthree\n"


def test_stats_tell_what_a_running_container_uses(bench: Bench) -> None:
    container = bench.started(RUNS_ON)
    first, second = bench.engine.stats(container), bench.engine.stats(container)
    assert first is not None
    assert second is not None
    assert 0 < first.memory < first.memory_limit
    assert first.cpus >= 1
    assert second.system > first.system
    assert second.cpu >= first.cpu
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
    bench.engine.wait(container, timeout=20.0)
    assert bench.status(container) == "exited"


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
    bench.engine.wait(container, timeout=20.0)
    (state,) = bench.engine.list({LABEL: bench.label})
    assert (state.id, state.status, state.image) == (container, "exited", IMAGE)
    assert state.labels[LABEL] == bench.label


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


def test_what_a_running_container_has_changed_becomes_an_image(bench: Bench, layer: str) -> None:
    container = bench.started(env={"SECRET": "1"})
    bench.engine.copy_in(container, make_archive({PurePosixPath("/greeting"): b"hello"}))
    bench.engine.commit_layer(container, IMAGE, layer, {LABEL: "a layer"})
    base, made = bench.engine.find_image(IMAGE), bench.engine.find_image(layer)
    assert base is not None
    assert made is not None
    assert made.id != base.id
    assert (made.user, made.entrypoint) == (base.user, base.entrypoint)
    assert bench.status(container) == "running"
    assert bench.status(bench.started(image=layer, labels={LABEL: bench.label})) == "running"
    if isinstance(bench.engine, DockerEngine):
        about = bench.engine._client.api.inspect_image(layer)["Config"]
        assert about["Labels"][LABEL] == "a layer"
        below = bench.engine._client.api.inspect_image(IMAGE)["Config"]
        assert about["Cmd"] == below["Cmd"]


def test_a_layer_of_what_is_gone_is_refused(bench: Bench) -> None:
    with pytest.raises(EngineError):
        bench.engine.commit_layer("0" * 64, IMAGE, "dockml/contract-test:none", {})
    with pytest.raises(ImageUnavailableError):
        bench.engine.commit_layer(bench.started(), "dockml/none:1", "dockml/contract-test:none", {})
    assert bench.engine.find_image("dockml/contract-test:none") is None


def test_an_image_may_have_more_names(bench: Bench, layer: str) -> None:
    found = bench.engine.find_image(IMAGE)
    assert found is not None
    assert found.digests == ()  # it was built here
    bench.engine.tag(found.id, layer)
    assert bench.engine.find_image(layer) == found == bench.engine.find_image(IMAGE)
    assert layer in bench.engine.local_references()


def test_what_is_not_here_gets_no_name(bench: Bench) -> None:
    with pytest.raises(ImageUnavailableError):
        bench.engine.tag("dockml/none:1", "dockml/contract-test:none")
    assert bench.engine.find_image("dockml/contract-test:none") is None
