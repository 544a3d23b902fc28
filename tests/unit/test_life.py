from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_core.application import JupyterApp

from dockml_magic import labels, planning, watch
from dockml_magic.cli import main
from dockml_magic.engine import ContainerState
from dockml_magic.errors import (
    CommandStopped,
    CommitStopped,
    ConfigError,
    ContainerNotRunningError,
    ImageBuildError,
    ImageUnavailableError,
)
from dockml_magic.gpu import GpuUse, find_gpu_use
from dockml_magic.options import parse_tail, split_command
from dockml_magic.planning import build_image, commit_container, find_local_image
from dockml_magic.pull import check_reference, is_reference
from dockml_magic.shell import Command, open_shell, run_command
from dockml_magic.spec import ContainerSpec
from dockml_magic.watch import show_log, table_of_stats
from tests.unit.fake_engine import FakeEngine, Ran, Run
from tests.unit.test_gpu import nvml, refuse

IMAGE = "me/mine:1"


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine(behave=lambda spec: Run(output="one\ntwo\n"))
    engine.add_image(IMAGE)
    return engine


@pytest.fixture
def container(engine: FakeEngine, workspace: Path) -> ContainerState:
    """The running container of an environment `tf`."""
    spec = ContainerSpec(
        image=IMAGE,
        name="dockml-1",
        entrypoint=("python3", "/run/dockml/launch.py"),
        user="0:0",
        workdir=PurePosixPath("/"),
        labels={
            labels.NAME: "tf",
            labels.SESSION: "1",
            labels.USER: str(os.getuid()),
            labels.WORKSPACE: str(workspace),
        },
        env={},
        auto_remove=False,
    )
    made = engine.create(spec)
    engine.start(made)
    state = engine.inspect(made)
    assert state is not None
    return state


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "head", "command"),
    [
        (["tf", "ls", "-h"], ["tf"], ["ls", "-h"]),
        (["-w", "/tmp", "tf", "ls"], ["-w", "/tmp", "tf"], ["ls"]),
        (["-w/tmp", "--env=A=b", "tf", "-x"], ["-w/tmp", "--env=A=b", "tf"], ["-x"]),
        (["-e", "-A=b", "tf", "--", "x"], ["-e", "-A=b", "tf"], ["--", "x"]),
        (["--", "-tf", "ls"], ["--", "-tf"], ["ls"]),
        (["-h"], ["-h"], []),
        (["-w"], ["-w"], []),
        ([], [], []),
    ],
)
def test_a_commands_words_begin_after_the_environment(
    words: list[str], head: list[str], command: list[str]
) -> None:
    assert split_command(words) == (head, command)


def test_a_number_of_lines() -> None:
    assert (parse_tail("20"), parse_tail("0"), parse_tail("all")) == (20, 0, None)
    for text in ("-1", "x", "", "1.5"):
        with pytest.raises(ConfigError):
            parse_tail(text)


@pytest.mark.parametrize(
    "text",
    ["a", "me/mine", "me/mine:1", "r.io:5000/a/b_c__d-e.f:V1.0-x", "localhost/x", "[::1]:5000/x", "a--b"],
)  # fmt: skip
def test_names_that_docker_takes(text: str) -> None:
    assert check_reference(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "Me/mine", "a b", "-a", "a/", "/a", "a:", "a:-x", "a..b", "a___b", "a@sha256:1", "a\n", "é",
     "a" * 256, "a:" + "b" * 129, "../a", "a/b:c:d"],
)  # fmt: skip
def test_names_that_docker_does_not_take(text: str) -> None:
    assert not is_reference(text)
    with pytest.raises(ConfigError, match="cannot be the name of an image"):
        check_reference(text)


# --- commands -------------------------------------------------------------------------------------


def test_a_command_goes_through_the_launcher(engine: FakeEngine, container: ContainerState) -> None:
    engine.ran = lambda words: Ran(stdout="out", stderr="err", exit_code=3)
    written: list[tuple[str, str]] = []
    command = Command(words=("ls", "-h"), workdir="/tmp", env={"HOME": "/x"})
    code = run_command(engine, container, command, lambda *piece: written.append(piece))
    assert (code, written) == (3, [("stdout", "out"), ("stderr", "err")])
    [(where, words, options)] = engine.commands
    assert where == container.id
    assert words[:4] == ["python3", "/run/dockml/launch.py", "exec", "/run/dockml/config.json"]
    asked = {"become": True, "lease": True, "shell": False, "given": ["HOME"]}
    assert json.loads(words[4]) == asked
    assert words[5:] == ["ls", "-h"]
    assert options == {"user": "", "workdir": "/tmp", "env": {"HOME": "/x"}, "tty": False}


def test_another_user_is_the_engines_work(engine: FakeEngine, container: ContainerState) -> None:
    run_command(engine, container, Command(words=("id",), user="1:1"), lambda *piece: None)
    [(_, words, options)] = engine.commands
    assert not json.loads(words[4])["become"]
    assert options["user"] == "1:1"


def test_an_interrupt_ends_the_input_and_what_comes_then_is_shown(
    engine: FakeEngine, container: ContainerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.ran = lambda words: Ran(stdout="begin", echoes=True)
    written: list[str] = []

    def write(stream: str, text: str) -> None:
        written.append(text)
        if text == "begin":
            raise KeyboardInterrupt

    start = engine.exec

    def started(*arguments: Any, **keywords: Any) -> Any:
        running = start(*arguments, **keywords)
        running.write(b"the end")
        return running

    monkeypatch.setattr(engine, "exec", started)
    with pytest.raises(CommandStopped, match="'sleep 5' was stopped"):
        run_command(engine, container, Command(words=("sleep", "5")), write)
    assert written == ["begin", "the end"]


def test_bytes_that_are_cut_in_a_letter_are_joined(
    engine: FakeEngine, container: ContainerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = iter(
        [("stdout", "ä".encode()[:1]), ("stderr", b"!"), ("stdout", "ä".encode()[1:]), None]
    )
    running = SimpleNamespace(read=lambda: next(pieces), exit_code=lambda: 0, close=lambda: None)
    monkeypatch.setattr(engine, "exec", lambda *a, **k: running)
    written: list[str] = []
    run_command(engine, container, Command(words=("x",)), lambda _, text: written.append(text))
    assert written == ["!", "ä"]


@pytest.mark.parametrize(
    ("status", "hint"), [("exited", "%docker_start tf"), ("paused", "unpause")]
)
def test_in_what_does_not_run_nothing_is_started(
    engine: FakeEngine, container: ContainerState, status: str, hint: str
) -> None:
    with pytest.raises(ContainerNotRunningError, match=f"it is {status}") as caught:
        run_command(engine, replace(container, status=status), Command(words=("x",)), print)
    assert hint in caught.value.hint
    assert engine.commands == []


@pytest.mark.parametrize("code", [None, 137])
@pytest.mark.parametrize("magic", ["docker_env", "docker_start"])
def test_a_container_that_ends_under_a_command_is_told(
    engine: FakeEngine,
    container: ContainerState,
    monkeypatch: pytest.MonkeyPatch,
    code: int | None,
    magic: str,
) -> None:
    running = SimpleNamespace(read=lambda: None, exit_code=lambda: code, close=lambda: None)
    monkeypatch.setattr(engine, "exec", lambda *a, **k: running)
    kept = {labels.KEPT: "true"} if magic == "docker_start" else {}
    ended = replace(container, status="exited", labels={**container.labels, **kept})
    monkeypatch.setattr(engine, "inspect", lambda _: ended)
    with pytest.raises(ContainerNotRunningError, match="'tf' ended before the command") as caught:
        run_command(engine, container, Command(words=("x",)), print)
    assert caught.value.hint == f"Start it again with: %{magic} tf"


def test_a_command_that_was_killed_beside_its_container_has_an_exit_code(
    engine: FakeEngine, container: ContainerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = SimpleNamespace(read=lambda: None, exit_code=lambda: 137, close=lambda: None)
    monkeypatch.setattr(engine, "exec", lambda *a, **k: running)
    assert run_command(engine, container, Command(words=("x",)), print) == 137
    monkeypatch.setattr(engine, "inspect", lambda _: None)
    with pytest.raises(ContainerNotRunningError, match="'tf' ended before the command"):
        run_command(engine, container, Command(words=("x",)), print)


def test_a_shell_needs_a_terminal(engine: FakeEngine, container: ContainerState) -> None:
    with pytest.raises(ConfigError, match="needs a terminal"):
        open_shell(engine, container, Command())
    assert engine.commands == []


# --- logs and figures -----------------------------------------------------------------------------


def test_an_interrupt_is_how_following_a_log_ends(
    engine: FakeEngine, container: ContainerState
) -> None:
    def stop(text: str) -> None:
        raise KeyboardInterrupt

    show_log(engine, container.id, stop, follow=True)
    with pytest.raises(KeyboardInterrupt):
        show_log(engine, container.id, stop)


def test_figures_without_a_gpu(
    engine: FakeEngine, container: ContainerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "find_gpu_use", lambda: None)
    table = table_of_stats(engine, [container])
    assert table.head == ["NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "PIDS", "CONTAINER ID"]
    assert table.rows == [["tf", "20.0 %", "20 MB / 8.0 GB", "0.2 %", "3", container.id[:12]]]


def test_figures_of_gpus_are_those_of_the_containers_processes(
    engine: FakeEngine, container: ContainerState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    used = {
        1: GpuUse(memory=2_000_000_000, utilisation=30),
        2: GpuUse(memory=1_000_000_000),
        3: GpuUse(memory=9),
    }
    monkeypatch.setattr(watch, "find_gpu_use", lambda: used)
    monkeypatch.setattr(watch, "_PROC", tmp_path)
    for pid, group in ((1, container.id), (2, f"docker-{container.id}.scope"), (3, "0" * 64)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(f"0::/system.slice/{group}\n")
    table = table_of_stats(engine, [container])
    assert table.head[-3:] == ["GPU MEM", "GPU %", "CONTAINER ID"]
    assert table.rows[0][-3:-1] == ["3.0 GB", "30 %"]
    assert "3.0 GB" in table._repr_html_()


def test_a_container_that_does_not_run_has_no_figures(
    engine: FakeEngine, container: ContainerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "find_gpu_use", dict)
    engine.end(container.id, 0)
    (found,) = engine.containers
    assert table_of_stats(engine, [found]).rows == [
        ["tf", "exited", "", "", "", "", "", found.id[:12]]
    ]


def test_what_processes_use_of_several_gpus_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def process(pid: int, used: int | None) -> SimpleNamespace:
        return SimpleNamespace(pid=pid, usedGpuMemory=used)

    def sample(pid: int, percent: int) -> SimpleNamespace:
        return SimpleNamespace(pid=pid, smUtil=percent)

    running = {0: [process(1, 100), process(2, None)], 1: [process(1, 50)]}
    samples = {0: [sample(1, 5), sample(1, 10), sample(9, 1)], 1: [sample(1, 40)]}
    ended = nvml(
        monkeypatch,
        ["a", "b"],
        nvmlDeviceGetComputeRunningProcesses=lambda i: running[i],
        nvmlDeviceGetProcessUtilization=lambda i, since: samples[i],
    )
    assert find_gpu_use() == {1: GpuUse(memory=150, utilisation=50), 2: GpuUse(memory=0)}
    assert ended == ["shut down"]


def test_an_old_driver_does_not_say_how_busy_a_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(
        monkeypatch,
        ["a"],
        nvmlDeviceGetComputeRunningProcesses=lambda i: [SimpleNamespace(pid=1, usedGpuMemory=7)],
        nvmlDeviceGetProcessUtilization=refuse,
    )
    assert find_gpu_use() == {1: GpuUse(memory=7)}


def test_without_a_driver_nothing_is_known_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(monkeypatch, [], nvmlInit=refuse)
    assert find_gpu_use() is None


# --- images ---------------------------------------------------------------------------------------


def test_a_commit_is_told_with_the_line_that_starts_it(
    engine: FakeEngine, container: ContainerState, told: list[str]
) -> None:
    commit_container(engine, container, "me/new:1", message="m", author="a", tell=told.append)
    assert engine.committed == [(container.id, "me/new:1", "m", "a")]
    assert told[0].endswith("Start it with: %docker_env me/new:1")
    with pytest.raises(ConfigError):
        commit_container(engine, container, "Not One", tell=told.append)
    assert len(engine.committed) == 1


def test_a_commit_that_is_interrupted_says_what_becomes_of_it(
    engine: FakeEngine,
    container: ContainerState,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "commit", stop)
    with pytest.raises(CommitStopped, match=r"The commit of 'tf' was stopped.*\n.*paused until"):
        commit_container(engine, container, "me/new:1", tell=told.append)
    assert told == []


def test_an_image_is_meant_by_its_name_or_the_catalogues(
    engine: FakeEngine, container: ContainerState, workspace: Path
) -> None:
    engine.add_image("tensorflow/tensorflow:1.10.0-py3")
    assert find_local_image(IMAGE, engine, workspace) == IMAGE
    assert find_local_image("tf1.10", engine, workspace) == "tensorflow/tensorflow:1.10.0-py3"
    with pytest.raises(ImageUnavailableError, match="an environment is called so") as caught:
        find_local_image("tf", FakeEngineWithout(engine), workspace)  # type: ignore[arg-type]
    assert "%docker_commit tf IMAGE" in caught.value.hint
    with pytest.raises(ImageUnavailableError, match="not on this machine") as caught:
        find_local_image("me/mina:1", engine, workspace)
    assert IMAGE in caught.value.hint
    with pytest.raises(ImageUnavailableError) as caught:
        find_local_image("backup.tar.gz", engine, workspace)
    assert caught.value.hint == "A file to write to is named with: -o backup.tar.gz"


class FakeEngineWithout:
    """An engine with its containers and without images."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def find_image(self, reference: str) -> None:
        return None

    def local_references(self) -> list[str]:
        return []


def test_a_build_has_our_settings_and_the_readers(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:1")
    monkeypatch.setenv("FROM_HERE", "yes")
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\n")
    reference = build_image(
        engine, tmp_path, tag="me/built:1", args=["A=1", "FROM_HERE", "NOT_HERE"], tell=told.append
    )
    assert reference == "me/built:1"
    [(built, args)] = engine.built
    assert built == reference
    assert args["http_proxy"] == "http://proxy:1"
    assert {k: args.get(k) for k in ("A", "FROM_HERE", "NOT_HERE")} == {
        "A": "1",
        "FROM_HERE": "yes",
        "NOT_HERE": None,
    }
    assert told == [f"FROM {IMAGE}"]


def test_a_build_without_a_name_is_what_the_folder_starts(
    engine: FakeEngine, tmp_path: Path, told: list[str]
) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\n")
    reference = build_image(engine, tmp_path, tell=told.append)
    choice, image = planning.choose_here("./", planning.RunOptions(), tmp_path, engine)
    assert image is not None
    assert choice.reference == reference


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"args": ["A=1"]}, "needs a name of its own"),
        ({"tag": "Not One"}, "cannot be the name"),
        ({"dockerfile": Path("/no/such/file"), "tag": "x"}, "no Dockerfile '/no/such/file'"),
        ({"args": ["=1"], "tag": "x"}, "not KEY=VALUE"),
    ],
)
def test_a_build_that_is_asked_for_wrongly_builds_nothing(
    engine: FakeEngine, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\n")
    with pytest.raises(ConfigError, match=message):
        build_image(engine, tmp_path, tell=print, **asked)
    assert engine.built == []


def test_a_build_that_fails_is_one_of_our_errors(engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nRUN false\n")
    with pytest.raises(ImageBuildError):
        build_image(engine, tmp_path, tell=print)


# --- from the command line ------------------------------------------------------------------------


@pytest.fixture
def dockml(
    engine: FakeEngine,
    container: ContainerState,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Give a function that runs `dockml`: its exit code, output and errors."""
    monkeypatch.setattr(planning.engines, "connect", lambda name: engine)
    monkeypatch.chdir(workspace)

    def run(*words: str) -> tuple[int, str, str]:
        clear()
        try:
            main(list(words))
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        return (code, *capsys.readouterr())

    yield run
    clear()


def clear() -> None:
    """Forget the last command, as each has a process of its own."""
    applications = [JupyterApp]
    for application in applications:
        applications += application.__subclasses__()
        application.clear_instance()


Run_ = Callable[..., tuple[int, str, str]]


def test_a_commands_exit_code_is_ours(engine: FakeEngine, dockml: Run_) -> None:
    engine.ran = lambda words: Ran(stdout="out", stderr="err", exit_code=5)
    assert dockml("exec", "tf", "ls", "-h", "--help") == (5, "out", "err")
    assert engine.commands[0][1][5:] == ["ls", "-h", "--help"]


def test_logs_from_the_command_line(dockml: Run_) -> None:
    assert dockml("logs", "tf") == (0, "one\ntwo\n", "")
    assert dockml("logs", "--tail", "1", "tf") == (0, "two\n", "")
    assert dockml("logs")[0] == 1


def test_a_commit_and_its_backup_from_the_command_line(
    engine: FakeEngine, dockml: Run_, workspace: Path
) -> None:
    assert dockml("commit", "tf", "me/new:1", "-m", "why")[0] == 0
    code, said, _ = dockml("save", "me/new:1")
    assert (code, "checked it" in said) == (0, True)
    engine.remove_image("me/new:1")
    code, said, _ = dockml("load", "-i", "me_new_1.tar.gz")
    assert (code, said.splitlines()[-1]) == (0, "loaded me/new:1")
    assert engine.find_image("me/new:1") is not None
    assert dockml("commit", "tf")[0] == 1


def test_a_problem_is_two_lines(dockml: Run_) -> None:
    code, _, said = dockml("exec", "nobody", "ls")
    assert (code, len(said.splitlines())) == (1, 2)
    code, _, said = dockml("shell", "tf")
    assert (code, said.splitlines()[0]) == (1, "A shell needs a terminal, and this is none.")
