"""Pulls through a real engine, from a real registry, and what goes wrong on the way."""

from __future__ import annotations

import base64
import contextlib
import gc
import itertools
import json
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import nbformat
import pytest

from dockml_magic import labels
from dockml_magic.engine import DockerEngine, connect
from dockml_magic.errors import EngineUnreachableError, ImageUnavailableError
from dockml_magic.planning import pull_image
from dockml_magic.pull import PullProgress
from tests.images.build import build
from tests.integration.notebook import IPYKERNELS, Cell, Notebook, containers_of, python_with
from tests.integration.registry import (
    OUTSIDE,
    Fault,
    MirroredEngine,
    Proxy,
    can_run_a_second_engine,
    in_network_of,
    own_certificate,
    push,
    push_for_another_machine,
    push_layers,
    refused,
    running_registry,
)
from tests.waiting import wait_until

SIZES = (1000, 2_000_000, 3_000_000, 2_000_000, 10)
NAME = "dockml/layers:1.10.0-py3"
RUNS = "dockml/bare:3.11"

Pull = Callable[[str], list[PullProgress]]
Refusal = Callable[[str], ImageUnavailableError]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for the second engine, with a short path."""
    with tempfile.TemporaryDirectory(prefix="dk-pull-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def registry_port(folder: Path) -> Iterator[int]:
    if not can_run_a_second_engine():
        pytest.skip(
            "only root can start a second engine; it takes dockerd, docker-registry, unshare"
        )
    with running_registry(folder) as port:
        yield port


@pytest.fixture(scope="module")
def layers(registry_port: int) -> list[str]:
    """Put an image into the registry; give the digests of its layers."""
    with contextlib.closing(docker.from_env()) as client:
        push_for_another_machine(client, registry_port, "dockml/elsewhere:1")
        return push_layers(client, registry_port, NAME, SIZES)


@pytest.fixture(scope="module")
def the_proxy(registry_port: int) -> Iterator[Proxy]:
    proxy = Proxy(registry_port)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def second(folder: Path, the_proxy: Proxy) -> Iterator[MirroredEngine]:
    """Start an engine that reaches nothing but the proxy, its mirror."""
    engine = MirroredEngine(folder, the_proxy.address)
    address = ("127.0.0.1", the_proxy.port)
    the_proxy.serve(in_network_of(engine.pid, lambda: socket.create_server(address)))
    yield engine
    engine.close()


@pytest.fixture
def proxy(the_proxy: Proxy, layers: list[str]) -> Iterator[Proxy]:
    yield the_proxy
    the_proxy.heal()


@pytest.fixture
def mirrored(second: MirroredEngine, proxy: Proxy) -> Iterator[DockerEngine]:
    """Give the second engine, without an image."""
    engine = connect(second.endpoint)
    for image in engine.local_references() + kept(engine):
        engine._client.api.remove_image(image, force=True)
    yield engine
    engine._client.close()


@pytest.fixture
def pull(mirrored: DockerEngine) -> Pull:
    """Give a function that pulls, and returns what was reported."""

    def run(reference: str) -> list[PullProgress]:
        reports: list[PullProgress] = []
        mirrored.pull(reference, reports.append)
        return reports

    return run


@pytest.fixture
def refusal(mirrored: DockerEngine) -> Refusal:
    """Give a function that pulls what cannot be pulled, and returns the error."""

    def run(reference: str) -> ImageUnavailableError:
        with pytest.raises(ImageUnavailableError) as caught:
            pull_image(reference, mirrored, lambda line: None)
        assert caught.value.reference == reference
        assert 2 <= len(str(caught.value).splitlines()) <= 3
        assert mirrored.find_image(reference) is None
        return caught.value

    return run


# --- how far it is --------------------------------------------------------------------------------


def test_a_pull_is_reported_from_begin_to_end(
    pull: Pull, proxy: Proxy, mirrored: DockerEngine
) -> None:
    proxy.faults.append(Fault("blobs", pause=0.02))
    reports = pull(NAME)
    assert mirrored.find_image(NAME)
    assert (reports[0].phase, reports[0].layers) == ("asking", ())
    assert list(dict.fromkeys(p.phase for p in reports))[:2] == ["asking", "downloading"]
    last = reports[-1]
    assert last.is_complete
    assert last.done == last.total
    assert len(last.layers) == len(SIZES)
    assert sum(SIZES) < last.done < sum(SIZES) * 1.01 + 10_000
    assert any(p.speed for p in reports)
    assert all(a.done <= b.done for a, b in itertools.pairwise(reports))


def test_a_second_pull_downloads_nothing(pull: Pull, proxy: Proxy) -> None:
    pull(NAME)
    proxy.asked.clear()
    assert str(pull(NAME)[-1]).startswith("nothing to download")
    assert not [path for _, path, _ in proxy.asked if "blobs" in path]


def test_what_is_downloaded_is_known_before_the_layers_say_so(
    mirrored: DockerEngine, proxy: Proxy, layers: list[str]
) -> None:
    stall = Fault("|".join(layers), after=0, then="stall")
    proxy.faults.append(stall)
    reports: list[PullProgress] = []

    def report(progress: PullProgress) -> None:
        reports.append(progress)
        if progress.total is not None or len(reports) > 300:  # after a minute
            stall.go_on.set()

    mirrored.pull(NAME, report)
    assert next(p for p in reports if p.total is not None).done == 0
    assert {p.total for p in reports if p.is_settled} == {reports[-1].total}


def test_a_layer_that_is_cut_goes_on(pull: Pull, proxy: Proxy, layers: list[str]) -> None:
    proxy.faults.append(Fault(layers[2], after=1_000_000, then="cut", times=1))
    reports = pull(NAME)
    assert any("next try in" in str(p) for p in reports)
    assert reports[-1].is_complete
    assert reports[-1].done == reports[-1].total


# --- stop -----------------------------------------------------------------------------------------


class Stop(Exception):
    """Raised by a report."""


def kept(engine: DockerEngine) -> list[str]:
    """Return the images that keep the layers of pulls that did not come to their end."""
    found: list[str] = engine._client.api.images(quiet=True, filters={"label": labels.KEEPS})
    return found


def test_a_stopped_pull_stops_at_the_engine_and_goes_on_where_it_was(
    mirrored: DockerEngine, pull: Pull, proxy: Proxy, second: MirroredEngine, layers: list[str]
) -> None:
    stall = Fault(layers[2], after=1_000_000, then="stall")
    proxy.faults.append(stall)
    said_before = second.log().count("context canceled")

    def report(progress: PullProgress) -> None:
        if stall.happened.is_set() and "nothing arrives" in str(progress):
            raise Stop

    for times in (1, 2):
        with pytest.raises(Stop):
            mirrored.pull(NAME, report)
        wait_until(
            lambda: second.log().count("context canceled") >= said_before + times,  # noqa: B023
            what="the engine to stop",
        )
    assert not [t for t in threading.enumerate() if t.name == "dockml-pull"]
    assert mirrored.find_image(NAME) is None
    assert NAME not in mirrored.local_references()
    assert len(kept(mirrored)) == 1
    proxy.heal()
    last = pull(NAME)[-1]
    assert last.is_complete
    assert [layer.phase for layer in last.layers] == ["here", "here", "done", "done", "done"]
    blobs = [path for _, path, _ in proxy.asked if "blobs" in path]
    assert not [path for path in blobs if path.endswith((layers[0], layers[1]))]
    assert kept(mirrored) == []


def test_a_pull_that_failed_goes_on_where_it_was(
    mirrored: DockerEngine, pull: Pull, refusal: Refusal, proxy: Proxy, layers: list[str]
) -> None:
    missing = refused(layers[2], 404, "BLOB_UNKNOWN", "blob unknown")
    proxy.faults.append(missing)
    missing.until = lambda: bool(kept(mirrored))
    refusal(NAME)
    proxy.heal()
    assert pull(NAME)[-1].layers[0].phase == "here"
    assert kept(mirrored) == []


def test_a_pull_that_gets_no_answer_can_be_stopped(
    mirrored: DockerEngine, pull: Pull, proxy: Proxy
) -> None:
    stall = Fault("manifests", then="stall")
    proxy.faults.append(stall)

    def report(progress: PullProgress) -> None:
        assert progress.phase == "asking"
        if stall.happened.is_set():
            raise Stop

    with pytest.raises(Stop):
        mirrored.pull(NAME, report)
    proxy.heal()
    assert pull(NAME)[-1].is_complete


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["{proxy}/", ""], ids=["registry", "mirror"])
def test_an_unknown_tag_comes_with_the_nearest(refusal: Refusal, proxy: Proxy, where: str) -> None:
    error = refusal(where.format(proxy=proxy.address) + "dockml/layers:1.10.0")
    assert "has no tag '1.10.0' of 'dockml/layers'" in error.message
    assert "1.10.0-py3" in error.hint


def test_an_unknown_repository_is_told(refusal: Refusal, proxy: Proxy) -> None:
    error = refusal(f"{proxy.address}/dockml/nope:1")
    assert "has no tag '1' of 'dockml/nope'" in error.message
    assert "spelling of both" in error.hint


@pytest.mark.parametrize(
    ("status", "code", "message", "says"),
    [
        (401, "UNAUTHORIZED", "authentication required", r"not show it to you.*\n.*docker login 127"),
        (403, "DENIED", "requested access is denied", r"does not show it to you.*\n.*docker login"),
        (404, "MANIFEST_UNKNOWN", "manifest unknown", r"has no tag"),
        (404, "NAME_UNKNOWN", "repository name not known", r"does not show it to you.*\n.*spelling"),
        (429, "TOOMANYREQUESTS", "You have reached your pull rate limit.", r"rate limit.*\n.*login"),
        (500, "UNKNOWN", "unknown error", r"failed: .*500.*\n.*later"),
    ],
)  # fmt: skip
def test_a_registry_that_refuses_is_told_with_its_cure(
    refusal: Refusal, proxy: Proxy, status: int, code: str, message: str, says: str
) -> None:
    basic = {"WWW-Authenticate": 'Basic realm="x"'} if status == 401 else {}
    proxy.faults.append(refused("manifests", status, code, message, **basic))
    assert re.search(says, str(refusal(f"{proxy.address}/{NAME}")))


def test_a_company_proxy_that_blocks_is_told(refusal: Refusal, proxy: Proxy) -> None:
    proxy.faults.append(Fault("/v2/", status=403, body=b"<html>Blocked by policy</html>"))
    error = refusal(f"{proxy.address}/{NAME}")
    assert "Blocked by policy" in error.message
    assert "exception" in error.hint


def test_a_layer_that_is_missing_is_told(refusal: Refusal, proxy: Proxy, layers: list[str]) -> None:
    proxy.faults.append(refused(layers[2], 404, "BLOB_UNKNOWN", "blob unknown"))
    assert "failed: unknown blob" in refusal(f"{proxy.address}/{NAME}").message


def test_a_registry_that_hangs_up_is_told(refusal: Refusal, proxy: Proxy) -> None:
    proxy.faults.append(Fault("manifests", then="cut"))
    error = refusal(f"{proxy.address}/dockml/elsewhere:build")  # whose manifest no engine keeps
    assert "does not reach" in error.message
    assert "HTTPS_PROXY" in error.hint


@pytest.mark.parametrize("reference", ["dockml/far:1", "registry.example.com/far:1"])
def test_a_registry_that_cannot_be_reached_is_told_with_mirror_and_proxy(
    refusal: Refusal, reference: str
) -> None:
    error = refusal(reference)
    assert "the engine does not reach" in error.message
    assert "HTTPS_PROXY" in error.hint
    assert ("registry-mirrors" in error.hint) == (reference == "dockml/far:1")


def test_a_certificate_that_nobody_signed_is_told_with_its_place(
    refusal: Refusal, proxy: Proxy, second: MirroredEngine, folder: Path
) -> None:
    plain = in_network_of(second.pid, lambda: socket.create_server((OUTSIDE, 5443)))
    proxy.serve(own_certificate(folder, OUTSIDE).wrap_socket(plain, server_side=True))
    error = refusal(f"{OUTSIDE}:5443/{NAME}")
    assert "does not trust the registry's certificate" in error.message
    assert f"/etc/docker/certs.d/{OUTSIDE}:5443/ca.crt" in error.hint


def test_a_registry_without_tls_is_told_with_the_setting(
    refusal: Refusal, proxy: Proxy, second: MirroredEngine
) -> None:
    proxy.serve(in_network_of(second.pid, lambda: socket.create_server((OUTSIDE, 5080))))
    error = refusal(f"{OUTSIDE}:5080/{NAME}")
    assert "speaks plain HTTP" in error.message
    assert f'"insecure-registries": ["{OUTSIDE}:5080"]' in error.hint


def test_an_image_for_another_machine_is_told(refusal: Refusal, proxy: Proxy) -> None:
    error = refusal(f"{proxy.address}/dockml/elsewhere:1")
    assert "not built for this engine's machine" in error.message
    assert "docker manifest inspect" in error.hint


def test_a_disk_without_room_ends_the_pull_before_the_layers_come(
    refusal: Refusal, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.faults.append(Fault("blobs", pause=0.05))
    little = type("Usage", (), {"free": 5_000_000})
    monkeypatch.setattr("dockml_magic.planning.shutil.disk_usage", lambda path: little)
    error = refusal(NAME)
    assert "14 MB unpacked, and 5.0 MB are free" in error.message


def test_a_disk_that_fills_up_is_told(refusal: Refusal, proxy: Proxy) -> None:
    said = "write /var/lib/docker/tmp/x: no space left on device"
    proxy.faults.append(refused("manifests", 400, "UNKNOWN", said))
    assert "the engine's disk is full" in refusal(f"{proxy.address}/{NAME}").message


# --- logins ---------------------------------------------------------------------------------------

USER, PASSWORD = "ada", "s3cret-of-ada"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

HELPER = """#!/bin/sh
read host
echo "$1 $host" >> {log}
echo '{{"ServerURL": "'$host'", "Username": "ada", "Secret": "s3cret-of-ada"}}'
"""


@pytest.fixture
def asks_login(proxy: Proxy) -> Proxy:
    """Make the registry show its images to Ada only."""
    proxy.login = f"Basic {BASIC}"
    return proxy


@pytest.fixture
def docker_config(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a function that writes what `docker login` writes."""
    folder = own_folders / "docker-config"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return lambda **settings: (folder / "config.json").write_text(json.dumps(settings)) and None


def test_without_a_login_it_is_told_how_to_log_in(refusal: Refusal, asks_login: Proxy) -> None:
    error = refusal(f"{asks_login.address}/{NAME}")
    assert f"docker login {asks_login.address}" in error.hint


def test_the_login_of_docker_login_is_used_and_not_shown(
    pull: Pull,
    asks_login: Proxy,
    docker_config: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    asks_login.faults.append(Fault("blobs", pause=0.01))
    docker_config(auths={asks_login.address: {"auth": BASIC}})
    reports = pull(f"{asks_login.address}/{NAME}")
    assert reports[-1].is_complete
    assert ("GET", f"Basic {BASIC}") in [
        (method, login)
        for method, path, login in asks_login.asked
        if path.endswith("manifests/1.10.0-py3")
    ]
    for secret in (PASSWORD, BASIC):
        assert secret not in caplog.text
        assert secret not in repr(reports)


@pytest.mark.parametrize("setting", ["credsStore", "credHelpers"])
def test_a_credential_helper_is_asked(
    pull: Pull,
    asks_login: Proxy,
    docker_config: Callable[..., None],
    own_folders: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
) -> None:
    program = own_folders / "docker-credential-ours"
    program.write_text(HELPER.format(log=own_folders / "asked"))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(own_folders), prepend=":")
    address = asks_login.address
    docker_config(**{setting: "ours" if setting == "credsStore" else {address: "ours"}})
    assert pull(f"{address}/{NAME}")[-1].is_complete
    assert f"get {address}" in (own_folders / "asked").read_text()


def test_a_credential_helper_that_fails_does_not_hinder_and_is_named(
    pull: Pull, refusal: Refusal, proxy: Proxy, docker_config: Callable[..., None]
) -> None:
    docker_config(credsStore="missing")
    reference = f"{proxy.address}/{NAME}"
    assert pull(reference)[-1].is_complete
    proxy.login = f"Basic {BASIC}"
    error = refusal(f"{proxy.address}/dockml/elsewhere:1")
    assert "docker-credential-missing failed" in error.message


def test_settings_that_cannot_be_read_do_not_hinder(
    pull: Pull, proxy: Proxy, docker_config: Callable[..., None]
) -> None:
    docker_config(auths={"x": "no login"})
    assert pull(f"{proxy.address}/{NAME}")[-1].is_complete


def test_a_login_that_is_refused_is_told_without_it(
    refusal: Refusal, asks_login: Proxy, docker_config: Callable[..., None]
) -> None:
    wrong = base64.b64encode(b"ada:wrong-secret").decode()
    docker_config(auths={asks_login.address: {"auth": wrong}})
    error = refusal(f"{asks_login.address}/{NAME}")
    assert "docker login" in error.hint
    assert "wrong-secret" not in str(error)
    assert wrong not in str(error)


# --- in a notebook, and in a terminal -------------------------------------------------------------


@pytest.fixture(scope="module")
def runnable(registry_port: int) -> str:
    """Put an image with a Python into the registry."""
    build([RUNS])
    with contextlib.closing(docker.from_env()) as client:
        reference = f"127.0.0.1:{registry_port}/{RUNS}"
        client.images.get(RUNS).tag(reference)
        push(client, reference)
        client.images.remove(reference)
    return RUNS


@pytest.fixture(params=IPYKERNELS)
def notebook(request: pytest.FixtureRequest, workspace: Path) -> Iterator[Notebook]:
    with Notebook(workspace, python_with(request.param)) as found:
        found.ok("%load_ext dockml_magic")
        yield found


def widget_states(cell: Cell) -> list[dict[str, object]]:
    """Return what a cell's widgets have been told."""
    return [c["data"]["state"] for c in cell.of("comm_open") if "state" in c["data"]] + [
        c["data"]["state"] for c in cell.of("comm_msg") if "state" in c["data"]
    ]


def test_a_notebook_shows_the_pull_and_goes_on_in_the_container(
    notebook: Notebook, mirrored: DockerEngine, proxy: Proxy, runnable: str
) -> None:
    if mirrored.find_image(runnable) is not None:
        mirrored._client.images.remove(runnable)  # the test before this one has fetched it
    stall = Fault("/blobs/", after=3_000_000, then="stall")
    proxy.faults.append(stall)
    engine = f"--engine {mirrored.facts.endpoint} --network none"
    sent = notebook.send(f"%docker_env {runnable} {engine}")
    notebook.wait(sent, lambda cell: bool(re.search(r"\d [kM]B of ", str(widget_states(cell)))))
    stall.go_on.set()
    cell = notebook.finish(sent)
    assert cell.reply["status"] == "ok", cell.traceback
    [shown] = cell.of("display_data")
    assert shown["data"]["text/plain"] == f"pulling {runnable}"
    assert "application/vnd.jupyter.widget-view+json" in shown["data"]
    [last] = cell.of("update_display_data")
    assert list(last["data"]) == ["text/plain"]
    assert re.fullmatch(rf"pulled {re.escape(runnable)}: \d+ MB in .*", last["data"]["text/plain"])
    assert cell.printed().startswith("Cells run in")
    assert notebook.ok("1 + 1").result == "2"


def test_an_interrupted_pull_leaves_the_notebook_as_it_was(
    notebook: Notebook, mirrored: DockerEngine, proxy: Proxy, layers: list[str]
) -> None:
    stall = Fault(layers[2], after=1_000_000, then="stall")
    proxy.faults.append(stall)
    cell = notebook.send(f"%docker_env {NAME} --engine {mirrored.facts.endpoint}")
    assert stall.happened.wait(60)
    notebook.wait(cell, lambda cell: "nothing arrives" in str(widget_states(cell)))
    notebook.interrupt()
    ended = notebook.finish(cell)
    assert ended.reply["ename"] == "PullStopped"
    assert len(ended.traceback.splitlines()) == 2
    assert "The same line fetches it" in ended.traceback
    assert [c["data"] for c in ended.of("update_display_data")] == [
        {"text/plain": f"stopped pulling {NAME}"}
    ]
    assert containers_of(notebook.folder) == []
    assert mirrored.find_image(NAME) is None
    assert notebook.ok("'where it was'").result == "'where it was'"


def test_a_pull_that_fails_shows_its_two_lines_and_no_bar(
    notebook: Notebook, mirrored: DockerEngine, proxy: Proxy
) -> None:
    reference = f"{proxy.address}/dockml/layers:1.10.0"
    cell = notebook.run(f"%docker_env {reference} --engine {mirrored.facts.endpoint}")
    assert cell.reply["ename"] == "ImageUnavailableError"
    assert "1.10.0-py3" in cell.traceback
    assert [c["data"] for c in cell.of("update_display_data")] == [{"text/plain": ""}]


def test_the_magic_pulls_and_pulls_again(
    notebook: Notebook, mirrored: DockerEngine, proxy: Proxy, layers: list[str]
) -> None:
    line = f"%docker_pull {NAME} --engine {mirrored.facts.endpoint}"
    assert notebook.ok(line).of("update_display_data")[0]["data"]["text/plain"].startswith("pulled")
    assert mirrored.find_image(NAME)
    [last] = notebook.ok(line).of("update_display_data")
    assert "nothing to download" in last["data"]["text/plain"]


def test_an_executed_notebook_holds_one_plain_line(
    workspace: Path, mirrored: DockerEngine, proxy: Proxy, layers: list[str]
) -> None:
    cells = ["%load_ext dockml_magic", f"%docker_pull {NAME} --engine {mirrored.facts.endpoint}"]
    written = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    nbformat.write(written, workspace / "pull.ipynb")
    subprocess.run(
        [*(sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook"), "pull.ipynb"],
        check=True,
        capture_output=True,
    )
    executed = nbformat.read(workspace / "pull.nbconvert.ipynb", as_version=4)
    [output] = executed.cells[1].outputs
    assert list(output.data) == ["text/plain"]
    assert output.data["text/plain"].startswith(f"pulled {NAME}: 7.0 MB in")


@pytest.mark.parametrize("has_terminal", [True, False])
def test_the_command_pulls(
    mirrored: DockerEngine, proxy: Proxy, layers: list[str], *, has_terminal: bool
) -> None:
    proxy.faults.append(Fault("blobs", pause=0.01))
    command = [str(Path(sys.executable).with_name("dockml")), "pull", NAME]
    command += ["--engine", mirrored.facts.endpoint]
    if has_terminal:
        command = ["script", "--quiet", "--return", "--command", shlex.join(command), "/dev/null"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = done.stdout.split("\n")
    assert lines[0].strip() == f"pulling {NAME}"
    assert f"pulled {NAME}: 7.0 MB in" in lines[-2]
    assert ("[####" in done.stdout) == has_terminal
    assert ("\x1b[K" in done.stdout) == has_terminal


def test_control_c_ends_the_command_with_two_lines(
    mirrored: DockerEngine, proxy: Proxy, layers: list[str]
) -> None:
    stall = Fault(layers[2], after=1_000_000, then="stall")
    proxy.faults.append(stall)
    command = [str(Path(sys.executable).with_name("dockml")), "pull", NAME]
    with subprocess.Popen(
        [*command, "--engine", mirrored.facts.endpoint], stderr=subprocess.PIPE, text=True
    ) as running:
        assert stall.happened.wait(60)
        running.send_signal(signal.SIGINT)
        said = running.communicate()[1]
    assert running.returncode == 130
    assert said.splitlines()[0] == f"The pull of '{NAME}' was stopped."
    assert len(said.splitlines()) == 2


# --- an engine that goes away ---------------------------------------------------------------------


@pytest.mark.filterwarnings(
    # Docker's SDK leaves a socket that it could not connect to the garbage collector.
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)
def test_an_engine_that_goes_away_is_told(proxy: Proxy, layers: list[str]) -> None:
    stall = Fault(layers[2], after=1_000_000, then="stall")
    proxy.faults.append(stall)
    with tempfile.TemporaryDirectory(prefix="dk-pull-") as name:
        second = MirroredEngine(Path(name), proxy.address)
        address = ("127.0.0.1", proxy.port)
        proxy.serve(in_network_of(second.pid, lambda: socket.create_server(address)))
        mirrored = connect(second.endpoint)

        def report(progress: PullProgress) -> None:
            if stall.happened.is_set():
                second.process.terminate()

        with pytest.raises(EngineUnreachableError) as caught:
            mirrored.pull(NAME, report)
        second.close()
        mirrored._client.close()
    assert "went away while it pulled" in caught.value.message
    assert "systemctl status docker" in caught.value.hint
    del caught, mirrored
    gc.collect()
