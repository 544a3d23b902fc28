"""How checks run and how facts are gathered; what facts mean is in test_diagnosis.py."""

from __future__ import annotations

import errno
import grp
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jupyter_core.paths
import pytest

from dockml_magic import doctor, folders, kernelspecs
from dockml_magic import engine as engines
from dockml_magic.cli import Doctor, main
from dockml_magic.diagnosis import EngineSight, Finding
from dockml_magic.doctor import CHECKS, Check, Context, Report, examine
from dockml_magic.doctor_magics import DoctorMagics
from dockml_magic.errors import ConfigError, EngineUnreachableError
from dockml_magic.options import RunOptions
from tests.unit.fake_engine import FakeEngine

WELL = Check("well", lambda context: "fine", lambda facts: [Finding("ok", facts)])


def unreachable(*_: object, **__: object) -> FakeEngine:
    raise EngineUnreachableError("Nothing answers.", hint="Start it.")


@pytest.fixture
def connected(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Let the doctor find an engine that remembers."""
    monkeypatch.setattr(engines, "connect", lambda name, timeout: engine)
    return engine


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "connect", unreachable)


# --- running checks -------------------------------------------------------------------------------


def test_a_check_that_fails_itself_is_its_line_and_ends_no_other() -> None:
    def raise_it(_: Context) -> None:
        raise ZeroDivisionError("by nothing")

    def raise_ours(_: Context) -> None:
        raise ConfigError("The folder is not yours.", hint="?")

    def raise_the_systems(_: Context) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/there")

    broken = Check("broken", raise_it, WELL.judge)
    ours = Check("ours", raise_ours, WELL.judge)
    misjudged = Check("misjudged", WELL.gather, lambda facts: facts.nothing)
    disk = Check("disk", raise_the_systems, WELL.judge)
    report = examine(checks=[WELL, broken, ours, misjudged, disk, replace(WELL, name="last")])
    assert [(f.check, f.status) for f in report.findings] == [
        ("well", "ok"),
        ("broken", "fail"),
        ("ours", "fail"),
        ("misjudged", "fail"),
        ("disk", "fail"),
        ("last", "ok"),
    ]
    said = [finding.message for finding in report.findings]
    assert said[1] == "This check itself failed: ZeroDivisionError: by nothing"
    assert said[2] == "The folder is not yours."
    assert said[4] == "Read-only file system: /there."
    assert "Traceback" not in str(report)
    assert report.exit_code == 1


def test_a_check_that_does_not_end_is_a_fail_and_holds_nobody_up() -> None:
    ended = threading.Event()
    hangs = Check("hangs", lambda context: ended.wait(60), WELL.judge)
    before = time.monotonic()
    report = examine(checks=[hangs, hangs, hangs, WELL], patience=2.0)
    took = time.monotonic() - before
    ended.set()
    assert [f.status for f in report.findings] == ["fail", "fail", "fail", "ok"]
    assert report.findings[0].message == "No answer within 2 s."
    assert took < 30, "the three waited for together"


def test_what_needs_an_engine_is_not_checked_without_one(no_engine: None) -> None:
    needs = replace(WELL, name="needs", needs_engine=True)
    report = examine(checks=[CHECKS[0], needs, WELL])
    assert [f.status for f in report.findings] == ["fail", "not checked", "ok"]
    assert report.findings[0].message == "Nothing answers."
    assert report.findings[0].hint == "Start it."


def test_passwords_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "ada:hunter2@proxy:3128")
    monkeypatch.setenv("PIP_INDEX_URL", "https://t0ken@pypi.example.com/simple")
    tells = Check(
        "tells",
        lambda context: None,
        lambda facts: [Finding("warn", "ada:hunter2 and t0ken", "http://a:b@c hunter2")],
    )
    proxy = next(check for check in CHECKS if check.name == "proxy")
    report = examine(checks=[WELL, tells, proxy])
    for shown in (str(report), report.to_json(), report._repr_html_()):
        assert "proxy:3128" in shown
        assert "hunter2" not in shown
        assert "t0ken" not in shown


# --- the report -----------------------------------------------------------------------------------

REPORT = Report(
    [
        Finding("ok", "Docker answers.", check="engine"),
        Finding("warn", "<b> is nearly full.", "Make room.\nThen try again.", check="disk"),
    ]
)


@pytest.mark.parametrize(
    ("statuses", "code", "summary"),
    [
        (["ok", "ok"], 0, "All is well."),
        (["ok", "not checked"], 0, "All is well."),
        (
            ["ok", "warn"],
            0,
            "1 warn. What is marked warn does not keep environments from starting.",
        ),
        (["fail", "warn", "not checked"], 1, "1 fail, 1 warn, 1 not checked."),
        (["fail", "fail"], 1, "2 fail."),
    ],
)
def test_the_end_says_it_in_a_sentence(statuses: list[Any], code: int, summary: str) -> None:
    report = Report([Finding(status, "?") for status in statuses])
    assert report.exit_code == code
    assert report.summary == summary
    assert str(report).endswith(f"\n\n{summary}")


def test_a_terminal_shows_a_line_each_and_below_it_what_to_do() -> None:
    ok, warn, first, second, *_ = str(REPORT).splitlines()
    assert ok == "ok           engine  Docker answers."
    assert warn == "warn         disk    <b> is nearly full."
    assert [first.strip(), second.strip()] == ["> Make room.", "> Then try again."]


def test_long_lines_are_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    path = "/a/very/long/path" * 6
    shown = str(Report([Finding("ok", f"{'word ' * 30}{path}", check="engine")])).splitlines()
    assert len(shown) > 4
    assert any(line.strip() == path for line in shown)
    assert all(len(line) <= 70 for line in shown if path not in line)


def test_a_notebook_shows_a_table_whose_words_need_no_colour() -> None:
    shown = REPORT._repr_html_()
    assert shown.startswith("<table>")
    assert ">warn</td>" in shown
    assert "&lt;b&gt; is nearly full." in shown
    assert "Make room.<br>Then try again." in shown
    assert "What is marked warn" in shown
    assert "color" not in shown


def test_json_has_these_keys_for_each_line() -> None:
    assert json.loads(REPORT.to_json()) == [
        {"check": "engine", "status": "ok", "message": "Docker answers.", "hint": ""},
        {
            "check": "disk",
            "status": "warn",
            "message": "<b> is nearly full.",
            "hint": "Make room.\nThen try again.",
        },
    ]


# --- the checks -----------------------------------------------------------------------------------


def test_every_check_has_a_name_of_its_own_and_the_engines_is_first() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert names[0] == "engine"
    assert not CHECKS[0].needs_engine


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ask_registry", lambda url: "no connection.")


def test_every_check_has_a_line_with_an_engine_and_without(
    connected: FakeEngine, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [check.name for check in CHECKS]
    report = examine()
    assert list(dict.fromkeys(finding.check for finding in report.findings)) == names
    assert not [f for f in report.findings if "This check itself failed" in f.message]
    monkeypatch.setattr(engines, "connect", unreachable)
    without = examine()
    assert list(dict.fromkeys(finding.check for finding in without.findings)) == names
    assert not [f for f in without.findings if "This check itself failed" in f.message]
    unchecked = {f.check for f in without.findings if f.status == "not checked"}
    assert unchecked == {"rights", "architecture", "disk", "left-overs"}


def exit_code_of(words: list[str]) -> int:
    """Run the command line; its applications are singletons, which must not outlast a test."""
    for application in Doctor._walk_mro():
        application._instance = None
    try:
        with pytest.raises(SystemExit) as ended:
            main(words)
    finally:
        Doctor.clear_instance()
    return int(ended.value.code or 0)


def test_the_command_prints_lines_or_json_and_exits_with_one_if_something_fails(
    connected: FakeEngine,
    no_network: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for words in (["doctor"], ["doctor", "--json"]):
        code = exit_code_of(words)
        shown = capsys.readouterr().out
        fails = "\nfail " in shown or '"status": "fail"' in shown
        assert code == int(fails)
    assert {"check", "status", "message", "hint"} == set(json.loads(shown)[0])
    monkeypatch.setattr(engines, "connect", unreachable)
    assert exit_code_of(["doctor"]) == 1
    assert "fail         engine" in capsys.readouterr().out


def test_the_magic_gives_a_table_or_json(
    connected: FakeEngine, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    magics = DoctorMagics(shell=None)
    assert isinstance(magics.docker_doctor(""), Report)
    assert magics.docker_doctor("--json") is None
    assert json.loads(capsys.readouterr().out)[0]["check"] == "engine"
    assert magics.docker_doctor("-h") is None
    assert "Say what keeps environments from starting" in capsys.readouterr().out


# --- gathering: the engine ------------------------------------------------------------------------


@pytest.fixture
def unix_socket(short_folder: Path) -> Iterator[Path]:
    import socket

    path = short_folder / "docker.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        yield path


def test_a_socket_is_described_by_who_may_use_it(
    unix_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unix_socket.chmod(0o660)
    found = doctor._find_socket(f"unix://{unix_socket}")
    assert found is not None
    assert found.exists
    assert found.is_usable
    owner = unix_socket.stat().st_gid
    assert found.group == ("" if owner == 0 else grp.getgrgid(owner).gr_name)
    assert found.has_group


def test_a_group_is_the_databases_and_the_processes(
    unix_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = os.stat_result((stat.S_IFSOCK | 0o660, *[0] * 4, 4242, *[0] * 4))
    monkeypatch.setattr(Path, "stat", lambda self: about)
    entry = grp.struct_group(("docker", "x", 4242, ["ada"]))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: entry)
    for user, is_member in (("ada", True), ("bob", False)):
        monkeypatch.setattr(doctor, "_user", lambda user=user: user)
        found = doctor._find_socket(f"unix://{unix_socket}")
        assert found is not None
        assert (found.group, found.is_member, found.has_group) == ("docker", is_member, False)


def test_a_socket_that_is_not_there_does_not_exist() -> None:
    found = doctor._find_socket("unix:///nowhere/docker.sock")
    assert found is not None
    assert not found.exists
    assert doctor._find_socket("tcp://127.0.0.1:2375") is None


def test_an_endpoint_that_fails_is_kept_with_who_named_it(
    no_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    sight = doctor.find_engine(Context())
    assert (sight.endpoint, sight.said_by) == ("unix:///nowhere/docker.sock", "DOCKER_HOST")
    assert (sight.message, sight.facts) == ("Nothing answers.", None)


def test_a_context_that_does_not_exist_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "wrok")
    sight = doctor.find_engine(Context())
    assert "no Docker context called 'wrok'" in sight.message
    assert sight.endpoint == ""


def test_other_sockets_of_this_user_are_found(
    no_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(os.environ["HOME"]) / ".colima/default/docker.sock"
    place.parent.mkdir(parents=True)
    place.touch()
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert f"unix://{place}" in doctor.find_engine(Context()).others


# --- gathering: room ------------------------------------------------------------------------------


def rooms(**facts: Any) -> dict[str, Any]:
    engine = FakeEngine(replace(FakeEngine().facts, **facts))
    return {room.what: room for room in doctor.find_rooms(Context(engine=engine))}


def test_room_is_measured_where_we_and_the_engine_write(tmp_path: Path) -> None:
    found = rooms(root=tmp_path)
    assert set(found) == {"engine", "runtime", "cache", "shm"}
    assert found["engine"].path == str(tmp_path)
    assert found["runtime"].path == str(folders.runtime_root())
    for what in ("engine", "runtime", "cache"):
        assert found[what].problem == ""
        assert 0 < found[what].free <= found[what].total
    assert list(folders.runtime_root().iterdir()) == []
    assert list(folders.bundles_root().iterdir()) == []


def test_an_engines_disk_that_is_not_ours_to_see_is_left_open() -> None:
    assert rooms(root=None)["engine"].free is None
    assert rooms(root=Path("/not/there"))["engine"].free is None


def test_a_runtime_folder_of_somebody_else_is_a_problem() -> None:
    folders.runtime_root().chmod(0o755)
    assert "is not yours alone" in rooms()["runtime"].problem


def test_a_cache_that_is_a_file_is_a_problem() -> None:
    Path(os.environ["XDG_CACHE_HOME"]).write_text("")
    assert rooms()["cache"].problem == "Not a directory."


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(folders.Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert rooms()["cache"].problem == "you have no home folder (export HOME=/home/me)."


# --- gathering: network ---------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """Give a function that starts a server which answers with a status, and returns its URL."""
    monkeypatch.setattr(doctor, "_REGISTRY_TIMEOUT", (60.0, 60.0))
    running: list[ThreadingHTTPServer] = []

    def start(status: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/v2/" else 500)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}/"

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


@pytest.mark.parametrize(
    ("status", "problem"),
    [(200, ""), (401, ""), (403, "it answers HTTP 403."), (502, "it answers HTTP 502.")],
)
def test_a_registry_answers_as_one_or_not(
    server: Callable[[int], str], status: int, problem: str
) -> None:
    assert doctor._ask_registry(server(status)) == problem


def test_a_registry_that_is_not_there() -> None:
    assert doctor._ask_registry("http://127.0.0.1:9/") == "no connection."
    assert doctor._ask_registry("http://no.such.host.invalid/") == "its name is not known."
    assert doctor._ask_registry("registry.example.com") == "MissingSchema."


def test_a_registry_behind_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert "the proxy" in doctor._ask_registry("http://registry.example.com/")


def test_the_mirrors_and_docker_hub_are_asked(
    server: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, hub = server(200), server(404), server(401)
    monkeypatch.setattr(doctor, "_DOCKER_HUB", hub)
    engine = FakeEngine(replace(FakeEngine().facts, mirrors=(good, bad)))
    found = doctor.find_reach(Context(engine=engine))
    assert [(p.url, p.is_mirror, bool(p.problem)) for p in found.places] == [
        (good, True, False),
        (bad, True, True),
        (hub, False, False),
    ]
    assert found.host_proxy == ""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert doctor.find_reach(Context()).host_proxy == "http://127.0.0.1:9"


def test_settings_are_those_of_the_environment_and_of_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = tmp_path / "pip.conf"
    pip.write_text("[global]\nindex-url = https://a/simple\ncert = /no/cert\ntimeout = 7\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(pip))
    monkeypatch.setenv("PIP_INDEX_URL", "https://b/simple")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    monkeypatch.setenv("no_proxy", "a")
    monkeypatch.setenv("SSL_CERT_FILE", str(pip))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/bundle")
    found = doctor.find_network_settings(Context())
    assert found.proxies == {"HTTPS_PROXY": "http://proxy:1", "no_proxy": "a"}
    assert found.missing_files == {"REQUESTS_CA_BUNDLE": "/no/bundle", "PIP_CERT": "/no/cert"}
    assert found.pip["index-url"] == "https://b/simple"
    assert found.pip["timeout"] == "7"


def test_localhost_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "127.0.0.1" in doctor.find_addresses(Context())

    def unknown(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(doctor.socket, "getaddrinfo", unknown)
    assert doctor.find_addresses(Context()) == []


# --- gathering: GPUs, Jupyter ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "kind", "is_one"),
    [("0x10de", "0x030200", True), ("0x10de", "0x040300", False), ("0x8086", "0x030000", False)],
)
def test_an_nvidia_card_is_seen_without_its_driver(
    tmp_path: Path, vendor: str, kind: str, is_one: bool
) -> None:
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (tmp_path / "0000:02:00.0").mkdir()
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    assert doctor._has_nvidia_card(tmp_path) == is_one


def command(folder: Path, text: str) -> None:
    folder.mkdir()
    path = folder / "jupyter"
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("#!/opt/other/bin/python3.9\nimport sys\n", "/opt/other/bin/python3.9"),
        ("#!/bin/sh\n'''exec' \"/opt/o/bin/python\" \"$0\" \"$@\"\n' '''\n", "/opt/o/bin/python"),
        (f"#!{sys.executable}\n", ""),
        (f"#!{Path(sys.executable).parent}/python3.99\n", ""),
        ("#!/usr/bin/env bash\nexec pyenv exec jupyter\n", ""),
        ("", ""),
    ],
)
def test_the_jupyter_of_a_terminal_may_be_another_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, python: str
) -> None:
    command(tmp_path / "bin", text)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found, its_python = doctor._other_jupyter()
    assert its_python == python
    assert found == (str(tmp_path / "bin" / "jupyter") if python else "")


def test_no_jupyter_at_all_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._other_jupyter() == ("", "")


def test_this_environment_is_as_its_packages_say(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.find_jupyter(Context())
    assert all(found.versions.values())
    assert found.has_provisioner
    assert found.python == sys.executable
    monkeypatch.setattr(doctor.importlib.metadata, "entry_points", _no_entry_points)
    assert not doctor.find_jupyter(Context()).has_provisioner


def _no_entry_points(group: str) -> Any:
    from importlib.metadata import EntryPoints

    return EntryPoints(())


def test_the_widgets_of_jupyterlab_are_looked_for_in_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jupyter_core.paths, "jupyter_path", lambda: [str(tmp_path)])
    assert not doctor.find_jupyter(Context()).has_widgets_in_lab
    there = tmp_path / "labextensions/@jupyter-widgets/jupyterlab-manager"
    there.mkdir(parents=True)
    (there / "package.json").write_text("{}")
    assert doctor.find_jupyter(Context()).has_widgets_in_lab


def test_our_kernels_are_looked_at_and_others_are_not(workspace: Path) -> None:
    good, gone, bad, odd = (
        kernelspecs.install("tf1.10", RunOptions(name=name), for_user=True).folder / "kernel.json"
        for name in ("good", "gone", "bad", "odd")
    )
    gone.write_text(gone.read_text().replace(sys.executable, "/old/env/bin/python"))
    bad.write_text(bad.read_text()[:-20])
    odd.write_text(odd.read_text().replace('"options": {', '"options": {"colour": "red", '))
    other = good.parent.parent / "python3"
    other.mkdir()
    (other / "kernel.json").write_text('{"argv": ["/old/python"]}')
    found = {kernel.name: kernel.problem for kernel in doctor.find_kernels(Context())}
    assert set(found) == {f"dockml-{name}" for name in ("good", "gone", "bad", "odd")}
    assert found["dockml-good"] == ""
    assert found["dockml-gone"] == "its Python is gone: /old/env/bin/python"
    assert "JSONDecodeError" in found["dockml-bad"]
    assert "colour" in found["dockml-odd"]


def test_the_sight_of_the_engine_reaches_the_checks_after_it(connected: FakeEngine) -> None:
    rights = next(check for check in CHECKS if check.name == "rights")
    report = examine(checks=[CHECKS[0], rights])
    assert [f.status for f in report.findings] == ["ok", "ok"]
    assert isinstance(Context().sight, EngineSight)
