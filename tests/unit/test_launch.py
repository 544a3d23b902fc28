from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dockml_magic import launch
from dockml_magic.engine import Engine
from dockml_magic.errors import ConfigError, PortTakenError
from dockml_magic.kernelspecs import build_kernel_json
from dockml_magic.options import RunOptions

CONNECTION = {
    "transport": "tcp",
    "ip": "127.0.0.1",
    "shell_port": 1,
    "iopub_port": 2,
    "stdin_port": 3,
    "control_port": 4,
    "hb_port": 5,
    "key": "the key",
    "signature_scheme": "hmac-sha256",
}


class Stop(Exception):
    """The launcher has decided what to start."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Give the signals back, which the launcher takes."""
    saved = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in saved.items():
        signal.signal(number, handler)


@pytest.fixture
def connection_file(tmp_path: Path) -> Path:
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps(CONNECTION))
    return path


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, RunOptions, str]]:
    """What was planned: name, options and transport."""
    seen: list[tuple[str, RunOptions, str]] = []

    def make_plan(name: str, options: RunOptions, folder: Path, **more: Any) -> None:
        seen.append((name, options, more["transport"]))
        raise Stop

    monkeypatch.setattr(launch, "make_plan", make_plan)
    monkeypatch.setattr(launch, "engine_for", lambda options: None)
    return seen


@pytest.mark.parametrize(
    "options", [RunOptions(), RunOptions(memory=5, env=("A=b c",), gpus="none", name="mine")]
)
def test_a_kernelspecs_argv_is_understood_and_its_options_come_through(
    options: RunOptions, connection_file: Path, planned: list[tuple[str, RunOptions, str]]
) -> None:
    words = build_kernel_json("tf1.10", options, "T")["argv"][3:]
    with pytest.raises(Stop):
        launch.main(
            [
                word.format(connection_file=connection_file)
                if word[0] == "{" and word.endswith("file}")
                else word
                for word in words
            ]
        )
    assert planned == [("tf1.10", options, "tcp")]


def test_words_on_the_line_come_over_the_kernelspecs(
    connection_file: Path, planned: list[tuple[str, RunOptions, str]]
) -> None:
    more = ["--options", '{"memory": 5, "cpus": 2.0}', "--memory", "6"]
    with pytest.raises(Stop):
        launch.main(["tf1.10", "-f", str(connection_file), *more])
    assert planned[0][1] == RunOptions(memory=6, cpus=2.0)


@pytest.mark.parametrize(
    "change", [{"transport": "ipc"}, {"shell_port": 0}, {"hb_port": 0}, {"key": ""}]
)
def test_a_connection_file_must_name_five_ports_and_a_key(
    change: dict[str, Any], connection_file: Path
) -> None:
    connection_file.write_text(json.dumps(CONNECTION | change))
    with pytest.raises(ConfigError, match="does not name five TCP ports and a key"):
        launch._read_connection(connection_file)


@pytest.mark.parametrize("text", ["", "{", "{}", "\ufffe"])
def test_a_connection_file_that_is_none_is_told(text: str, connection_file: Path) -> None:
    connection_file.write_text(text)
    with pytest.raises(ConfigError, match="cannot be used"):
        launch._read_connection(connection_file)
    connection_file.unlink()
    with pytest.raises(ConfigError, match="cannot be used"):
        launch._read_connection(connection_file)


@pytest.mark.parametrize(
    "words", [[], ["tf1.10"], ["tf1.10", "-f", "x", "--memroy", "1"], ["x", "-f", "/missing"]]
)
def test_a_mistake_is_told_in_lines_and_ends_with_1(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(words) == 1
    said = capsys.readouterr().err
    assert said.strip()
    assert "Traceback" not in said


def test_ports_of_a_killed_predecessor_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    class Container:
        def __init__(self, *given: Any) -> None:
            pass

        def start(self) -> None:
            starts.append(1)
            if len(starts) < 3:
                raise PortTakenError("taken")

    engine: Engine | None = None
    monkeypatch.setattr(launch, "KernelContainer", Container)
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)
    assert isinstance(launch._start(engine, None), Container)  # type: ignore[arg-type]
    assert len(starts) == 3
    starts.clear()
    monkeypatch.setattr(launch, "_PORT_PATIENCE", -1.0)
    with pytest.raises(PortTakenError):
        launch._start(engine, None)  # type: ignore[arg-type]
    assert len(starts) == 1
