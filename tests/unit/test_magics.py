from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

import dockml_magic
from dockml_magic import magics, planning
from dockml_magic.environment import Opened
from dockml_magic.errors import (
    ConfigError,
    LineStopped,
    NoSuchEnvironmentError,
    StartStopped,
    UnknownEnvironmentError,
    UnknownNameError,
)
from dockml_magic.gpu import HostGpus
from dockml_magic.options import RunOptions, options_from
from tests.unit.fake_engine import FakeEngine

Magic = Callable[[str], Any]


@pytest.fixture
def shell(ipython: InteractiveShell, workspace: Path) -> Iterator[InteractiveShell]:
    """The shell with the extension loaded."""
    dockml_magic.load_ipython_extension(ipython)
    yield ipython
    dockml_magic.unload_ipython_extension(ipython)


@pytest.fixture
def magic(shell: InteractiveShell) -> Magic:
    """Give a function that runs a line magic: ``magic("docker_ps -a")``."""

    def run(line: str) -> Any:
        name, _, rest = line.partition(" ")
        return shell.run_line_magic(name, rest)

    return run


def state(shell: InteractiveShell) -> list[Any]:
    """Return what the extension may change."""
    return [
        {kind: dict(found) for kind, found in shell.magics_manager.magics.items()},
        dict(shell.magics_manager.registry),
        list(shell.input_transformers_cleanup),
        sorted(vars(shell)),
    ]


@pytest.mark.parametrize(("how", "done"), [("new", "removed"), ("attached", "left")])
def test_an_interrupt_as_a_start_ends_leaves_it_as_it_was(
    shell: InteractiveShell, magic: Magic, monkeypatch: pytest.MonkeyPatch, how: str, done: str
) -> None:
    seen: list[str] = []
    environment = SimpleNamespace(
        remove=lambda: seen.append("removed"), detach=lambda: seen.append("left")
    )
    opened = Opened(environment=environment, how=how)  # type: ignore[arg-type]
    monkeypatch.setattr(magics, "open_environment", lambda *_, **__: opened)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(magics.DockerMagics, "_take_in", interrupt)
    with pytest.raises(StartStopped):
        magic("docker_env me/mine:1")
    assert seen == [done]


def test_unloading_gives_everything_back(ipython: InteractiveShell) -> None:
    before = state(ipython)
    dockml_magic.load_ipython_extension(ipython)
    assert state(ipython) != before
    dockml_magic.unload_ipython_extension(ipython)
    assert state(ipython) == before


def test_loading_and_unloading_twice_does_nothing(ipython: InteractiveShell) -> None:
    before = state(ipython)
    for change in (dockml_magic.load_ipython_extension, dockml_magic.unload_ipython_extension):
        change(ipython)
        once = state(ipython)
        change(ipython)
        assert state(ipython) == once
    assert state(ipython) == before


def test_without_a_name_it_is_said_where_cells_run(
    magic: Magic, capsys: pytest.CaptureFixture[str]
) -> None:
    table = magic("docker_env")
    assert "own kernel" in capsys.readouterr().out
    assert str(table) == "No environment runs. Start one with: %docker_env NAME"
    assert str(magic("docker_ps")) == str(table)


def test_going_back_is_always_possible(magic: Magic, capsys: pytest.CaptureFixture[str]) -> None:
    magic("docker_env local")
    assert capsys.readouterr().out == "Cells run in the notebook's own kernel.\n"


@pytest.mark.parametrize("name", ["env", "images", "pick", "ps", "pull", "stop", "restart"])
def test_every_magic_has_help(magic: Magic, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert magic(f"docker_{name} -h") is None
    assert capsys.readouterr().out.startswith(f"usage: %docker_{name}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("docker_env tf1.10 --memroy 4g", "unrecognized arguments: --memroy 4g"),
        ("docker_env tf1.10 'x", "No closing quotation"),
        ("docker_stop", "no environment is active"),
        ("docker_restart", "no environment is active"),
    ],
)
def test_a_mistake_is_told(magic: Magic, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        magic(line)


def test_what_does_not_run_cannot_be_restarted(magic: Magic) -> None:
    with pytest.raises(
        UnknownEnvironmentError, match=r"'x' runs in this notebook \(running: none\)"
    ):
        magic("docker_restart x")


@pytest.mark.parametrize("name", ["docker_stop", "docker_rm"])
def test_what_is_not_there_cannot_be_stopped_or_removed(magic: Magic, name: str) -> None:
    with pytest.raises(NoSuchEnvironmentError, match=r"called 'x' \(there are: none\)") as caught:
        magic(f"{name} x")
    assert "%docker_ps" in caught.value.hint


def test_a_cell_needs_an_environment(shell: InteractiveShell) -> None:
    with pytest.raises(ConfigError, match="%%docker_cell needs a NAME"):
        shell.run_cell_magic("docker_cell", "", "1")


def test_a_local_cell_runs_here(shell: InteractiveShell) -> None:
    shell.run_cell_magic("docker_cell", "local", "answer = 6 * 7")
    assert shell.user_ns["answer"] == 42


def test_an_unknown_name_leaves_cells_where_they_were(
    magic: Magic, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning.engines, "connect", lambda name: engine)
    with pytest.raises(UnknownNameError, match=r"'tf1\.100' is not a known name"):
        magic("docker_env tf1.100")
    assert "No environment runs" in str(magic("docker_env"))
    assert engine.specs == []


@pytest.fixture
def connected(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine that the magics reach."""
    monkeypatch.setattr(planning.engines, "connect", lambda name: engine)
    return engine


def test_a_dry_run_says_what_would_start_and_starts_nothing(
    magic: Magic, connected: FakeEngine
) -> None:
    lines = str(magic("docker_env tf1.13 --memory 4g --dry-run")).splitlines()
    assert lines[0].split(maxsplit=2) == ["DRY", "RUN", "TensorFlow 1.13"]
    table = dict(line.split("  ", 1) for line in lines)
    facts = {key: value.strip() for key, value in table.items()}
    assert facts["image"] == "tensorflow/tensorflow:1.13.1-py3-jupyter"
    assert facts["is here"] == "no: it would be pulled"
    assert facts["Python"] == "3.5"
    assert facts["kernel"] == "its own"
    assert facts["how sure"].startswith("seen, ")
    assert facts["why this one"] == "it has a kernel, or may have one"
    assert facts["then"] == "tensorflow/tensorflow:1.13.1-py3 (seen)"
    assert facts["GPUs"] == "none"
    assert facts["options"] == "memory=4g"
    assert "would not start" not in facts
    assert (connected.pulled, connected.specs) == ([], [])
    assert "No environment runs" in str(magic("docker_env"))


def test_a_dry_run_says_that_it_would_not_start(
    magic: Magic, connected: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "find_gpus", lambda: HostGpus(why_none="it has no GPU"))
    table = str(magic("docker_env tf1.10-gpu --dry-run"))
    assert "tensorflow/tensorflow:1.10.0-gpu-py3" in table
    assert "all, as the name says" in table
    assert "'tf1.10-gpu' needs an NVIDIA GPU, and this machine has none: it has no GPU." in table


def test_images_are_listed(magic: Magic, connected: FakeEngine) -> None:
    connected.add_image("tensorflow/tensorflow:1.10.0-py3")
    table = magic("docker_images tf1.10 --local")
    assert [row[0] for row in table.tables[0].rows] == ["tf1.10"]
    assert "<td" in table._repr_html_()


def test_a_pull_is_shown_and_starts_nothing(
    magic: Magic,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(planning.engines, "connect", lambda name: engine)
    engine.registry["me/mine:1"] = ("python",)
    magic("docker_pull me/mine:1")
    assert capsys.readouterr().out.splitlines()[0::2] == [
        "pulling me/mine:1",
        "pulled me/mine:1: 1.0 MB in 0.0 s",
    ]
    assert engine.pulled == ["me/mine:1"]
    assert engine.specs == []
    with pytest.raises(ConfigError):
        magic("docker_pull")


def test_a_pull_is_completed_with_what_can_be_pulled(
    shell: InteractiveShell, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning.engines, "connect", lambda name: engine)

    def completed(line: str) -> list[str]:
        event = SimpleNamespace(line=line, text_until_cursor=line, symbol=line.rpartition(" ")[2])
        hooks = shell.strdispatchers["complete_command"].s_matches(line.partition(" ")[0])
        return next(iter(hooks))(event)

    assert {"tf1.10", "tf1.10-gpu"} <= set(completed("%docker_pull tf1"))
    assert "local" in completed("%docker_env lo")
    assert "local" not in completed("%docker_pull lo")
    assert completed("%docker_pull x --") == ["--engine", "--help", "-h"]


@pytest.mark.parametrize("cell", ["x = 1\n", "%%time\npass\n", "!ls\n", "%docker_ps\n"])
def test_a_cell_is_left_alone_while_no_environment_is_active(
    shell: InteractiveShell, cell: str
) -> None:
    before = shell.transform_cell(cell)
    dockml_magic.unload_ipython_extension(shell)
    assert shell.transform_cell(cell) == before


def test_an_open_block_is_not_complete(shell: InteractiveShell) -> None:
    assert shell.check_complete("for i in range(3):")[0] == "incomplete"
    assert shell.check_complete("1 + 1")[0] == "complete"


def test_a_cell_with_our_line_is_cut_into_calls(shell: InteractiveShell) -> None:
    one, two, three = shell.transform_cell("a = 1\n%docker_ps -a\nprint 'x'\n").splitlines()
    assert "a = 1" in one
    assert two == "get_ipython().run_line_magic('docker_ps', '-a')"
    assert "print 'x'" in three
    assert compile("\n".join([one, two, three]), "cell", "exec")


def test_a_parser_is_built_once_and_keeps_nothing_of_a_line(shell: InteractiveShell) -> None:
    magics = shell._dockml_magics
    first = magics.parse("docker_env", "tf1.10 -v /a:/a -e X=1 --fresh")
    second = magics.parse("docker_env", "tf1.10 -v /b:/b")
    assert magics.parser("docker_env") is magics.parser("docker_env")
    assert options_from(first) == RunOptions(volumes=("/a:/a",), env=("X=1",))
    assert options_from(second) == RunOptions(volumes=("/b:/b",))
    assert (first.fresh, second.fresh) == (True, False)


def test_an_interrupt_of_a_line_is_told_without_our_stack(
    magic: Magic, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(planning.engines, "connect", interrupted)
    with pytest.raises(LineStopped) as told:
        magic("docker_ps -a")
    assert told.value._render_traceback_() == ["LineStopped: %docker_ps was stopped."]
