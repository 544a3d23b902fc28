from __future__ import annotations

import json
from pathlib import Path

import pytest

from dockml_magic import doctor, planning
from dockml_magic.cli import Dockml, main
from dockml_magic.errors import EngineUnreachableError
from tests.unit.fake_engine import FakeEngine


@pytest.fixture(autouse=True)
def connected(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning.engines, "connect", lambda name: engine)
    Dockml.clear_instance()


def test_images_are_searched(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.add_image("tensorflow/tensorflow:1.10.0-py3")
    main(["images", "tensorflow==1.10", "--cpu", "--python", "3"])
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "NAME",
        "REFERENCE",
        "PYTHON",
        "CUDA",
        "CUDNN",
        "KERNEL",
        "SURE",
        "HERE",
    ]
    assert first.split() == [
        "tf1.10",
        "tensorflow/tensorflow:1.10.0-py3",
        "3.5",
        "yes",
        "seen",
        "here",
    ]


def test_images_are_listed_without_an_engine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str | None) -> FakeEngine:
        raise EngineUnreachableError("No engine.")

    monkeypatch.setattr(planning.engines, "connect", refuse)
    main(["images"])
    assert "No Docker engine answers" in capsys.readouterr().out


def test_a_mistake_is_two_lines_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["images", "--cuda", "new"])
    assert caught.value.code == 1
    assert capsys.readouterr().err == "'new' is not a version.\nWrite it as in --version 1.10\n"


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a user whom /etc/passwd does not know, with no HOME."""

    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", refuse)
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name)


def test_a_user_without_a_home_is_told_so(
    no_home: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ps"])
    assert ended.value.code == 1
    problem, hint = capsys.readouterr().err.splitlines()
    assert "You have no home folder" in problem
    assert "export HOME" in hint


def test_the_doctor_reports_of_a_user_without_a_home(
    no_home: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine()
    monkeypatch.setattr(doctor.engines, "connect", lambda *args, **kwargs: engine)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.err == ""
    found = {(row["check"], row["status"]): row["message"] for row in json.loads(said.out)}
    assert "export HOME" in found["disk", "fail"]
    assert "needs a home folder" in found["left-overs", "not checked"]
    assert {check.name for check in doctor.CHECKS} == {check for check, _ in found}
    assert "This check itself failed" not in said.out
