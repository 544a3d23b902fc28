from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from jupyter_client.session import Session

from dockml_magic import environment as environments
from dockml_magic import folders, kept, labels, planning
from dockml_magic.cli import Dockml, Remove, Stop
from dockml_magic.control import OutputState
from dockml_magic.engine import ContainerState, EngineFacts
from dockml_magic.environment import Environment, Missed, open_environment
from dockml_magic.errors import ConfigError, EngineUnreachableError, KernelPausedError
from dockml_magic.kept import Kept
from dockml_magic.messages import Message
from dockml_magic.options import RunOptions, parse_words
from dockml_magic.relay import Relay
from dockml_magic.requirements import Extras
from dockml_magic.spec import ContainerSpec
from tests.unit.fake_engine import FakeEngine

IMAGE = "me/mine:1"

Keep = Callable[..., Kept]


@pytest.fixture(autouse=True)
def connected(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning.engines, "connect", lambda name: engine)
    monkeypatch.setattr(kept, "_STOP_TIMEOUT", 0.05)
    engine.add_image(IMAGE)


@pytest.fixture
def keep(engine: FakeEngine, plan: Callable[..., planning.KernelPlan], workspace: Path) -> Keep:
    """Give a function that starts a container and notes that it is kept."""

    def make(
        name: str = "mine",
        *options: str,
        stays: bool = True,
        session: str = "0123456789ab",
        folder: Path = workspace,
    ) -> Kept:
        spec = ContainerSpec(
            image=IMAGE,
            name=f"dockml-{session}",
            entrypoint=("python",),
            user="0:0",
            workdir=workspace,  # type: ignore[arg-type]
            labels={labels.SESSION: session},
            env={},
            auto_remove=not stays,
        )
        container = engine.create(spec)
        engine.start(container)
        made = plan(keep=stays).to_json() | {"kept": stays}
        asked = parse_words("test", options).to_json()
        runtime = folders.runtime_root() / session
        runtime.mkdir(exist_ok=True)
        info = {
            "name": IMAGE,
            "options": asked,
            "asked": asked,
            "workspace": str(folder),
            "container": {
                "container_id": container,
                "session": session,
                "runtime": str(runtime),
                "control": str(runtime / "control"),
                "key": "secret",
                "plan": made,
            },
        }
        kept.write(name, info, engine)
        (found,) = [k for k in kept.all_kept() if k.session == session]
        return found

    return make


def files() -> list[Path]:
    return list((folders.state_root() / "kept").iterdir())


# --- what is noted ---------------------------------------------------------------------------------


def test_one_is_found_by_its_name_and_workspace(keep: Keep, workspace: Path) -> None:
    found = keep("mine", "--memory", "4g")
    assert kept.find("mine", workspace) == found
    assert found.asked == RunOptions(memory=4 * 1024**3)
    assert found.stays
    assert kept.find("other", workspace) is None
    assert kept.find("mine", workspace.parent) is None
    assert kept.names(workspace) == ["mine"]


def test_the_note_is_its_users_alone_and_the_key_is_shown_nowhere(keep: Keep) -> None:
    found = keep()
    (path,) = files()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert "secret" in path.read_text()
    assert "secret" not in repr(found)


def test_a_note_that_others_may_write_or_that_is_none_is_not_believed(
    keep: Keep, workspace: Path
) -> None:
    keep()
    (path,) = files()
    text = path.read_text()
    for wrong in ("", "{", "[]", "3", json.dumps({"name": "mine"}), text.replace('"name"', '"x"')):
        path.write_text(wrong)
        assert kept.all_kept() == []
    path.write_text(text)
    path.chmod(0o666)
    assert kept.find("mine", workspace) is None


def test_a_note_of_another_machine_is_left_alone(
    keep: Keep, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep()
    monkeypatch.setattr(kept, "_machine", lambda: "another that shares the home")
    assert kept.find("mine", workspace) is None
    assert len(files()) == 1


def test_one_whose_container_is_gone_is_forgotten(
    engine: FakeEngine, keep: Keep, workspace: Path
) -> None:
    found = keep()
    engine.remove(found.container_id)
    assert kept.find("mine", workspace) is None
    assert files() == []


def test_a_container_that_is_not_the_one_of_the_note_is_not_touched(
    engine: FakeEngine, keep: Keep, workspace: Path
) -> None:
    found = keep()
    spec = engine._containers[found.container_id].spec
    spec.labels[labels.SESSION] = "another"  # type: ignore[index]
    assert kept.find("mine", workspace) is None
    kept.remove(found, force=True)
    assert [state.id for state in engine.containers] == [found.container_id]


def test_one_of_another_engine_is_not_forgotten(
    engine: FakeEngine, keep: Keep, workspace: Path
) -> None:
    keep()
    engine._facts = EngineFacts(version="24", api="1.43", endpoint="unix:///o", shares_files=True)
    assert kept.find("mine", workspace) is None
    assert len(files()) == 1


# --- what can be done with it ----------------------------------------------------------------------


def test_a_stop_leaves_one_that_was_started_to_stay(engine: FakeEngine, keep: Keep) -> None:
    found = keep()
    runtime = Path(found.info["container"]["runtime"])
    assert runtime.is_dir()
    kept.stop(found)
    assert not runtime.exists()
    assert [state.status for state in engine.containers] == ["exited"]
    assert kept.all_kept() == [found]
    kept.stop(found)
    kept.remove(found, force=False)
    assert engine.containers == []
    assert files() == []


def test_a_stop_removes_one_that_was_kept_later(engine: FakeEngine, keep: Keep) -> None:
    kept.stop(keep(stays=False))
    assert engine.containers == []
    assert files() == []


def test_a_stop_of_a_paused_one_asks_the_engine_for_what_it_can_do(
    engine: FakeEngine, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    later, stays = keep("later", stays=False), keep("stays", session="a" * 12)
    inspect = engine.inspect

    def paused(container_id: str) -> ContainerState | None:
        state = inspect(container_id)
        return state and replace(state, status="paused")

    monkeypatch.setattr(engine, "inspect", paused)
    kept.stop(later)
    with pytest.raises(KernelPausedError, match="'stays' is paused") as caught:
        kept.stop(stays)
    assert f"docker unpause {stays.container_id[:12]}" in caught.value.hint
    assert "%docker_rm -f stays" in caught.value.hint
    assert [state.id for state in engine.containers] == [stays.container_id]
    with pytest.raises(KernelPausedError):
        kept.raise_if_paused(stays)


def test_one_that_runs_is_only_removed_by_force(engine: FakeEngine, keep: Keep) -> None:
    found = keep()
    with pytest.raises(ConfigError, match="'mine' runs") as caught:
        kept.remove(found, force=False)
    assert "%docker_rm -f mine" in caught.value.hint
    kept.remove(found, force=True)
    assert engine.containers == []
    assert not Path(found.info["container"]["runtime"]).exists()


def test_the_command_line_takes_names_and_ids(
    engine: FakeEngine, keep: Keep, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keep()
    other = keep("theirs", session="ba9876543210", folder=tmp_path)
    for command, *words in (
        (Stop, "mine"),
        (Remove, "mine"),
        (Remove, "-f", other.container_id[:12]),
    ):
        app = command()
        app.parse_command_line(words)
        app.start()
    assert {Dockml.subcommands[name][0] for name in ("stop", "rm")} == {Stop, Remove}
    assert capsys.readouterr().out.splitlines() == [
        "Stopped 'mine'.",
        "Removed 'mine'.",
        f"Removed '{other.container_id[:12]}'.",
    ]
    assert engine.containers == []


@pytest.mark.parametrize("name", ["theirs", "dockml-x", "abc", ""])
def test_a_name_that_is_not_kept_is_refused_with_those_that_are(keep: Keep, name: str) -> None:
    keep()
    with pytest.raises(ConfigError, match="There is no kept environment") as caught:
        kept.get(name, Path.cwd())
    assert caught.value.hint == "Kept: mine."


@pytest.mark.parametrize("command", [Stop, Remove])
def test_that_an_engine_does_not_answer_is_told_before_that_it_has_no_such_name(
    command: type[Stop | Remove], keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(name: str | None) -> NoReturn:
        raise EngineUnreachableError("It hangs.")

    monkeypatch.setattr(planning.engines, "connect", hang)
    app = command()
    app.parse_command_line(["nosuch"])
    with pytest.raises(EngineUnreachableError, match="It hangs"):
        app.start()


# --- one at a time ---------------------------------------------------------------------------------

HOLDS = """
import sys
from pathlib import Path
from dockml_magic import kept
with kept.starting("mine", Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_another_process_waits_until_the_first_has_started_it(workspace: Path) -> None:
    told: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(workspace)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(kept.__file__).parent.parent)},
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with kept.starting("another", workspace, told.append):
            assert told == []

        def tell(line: str) -> None:
            told.append(line)
            assert other.stdin is not None
            other.stdin.close()

        with kept.starting("mine", workspace, tell):
            assert other.wait() == 0
    assert told == ["another notebook starts 'mine' just now; waiting"]
    assert files() == []


def test_many_threads_hold_it_one_after_the_other(workspace: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def hold(n: int) -> None:
        with kept.starting("mine", workspace, str):
            inside.append(n)
            most.append(len(inside))
            inside.remove(n)

    threads = [threading.Thread(target=hold, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


# --- which one a line means ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "is_same"),
    [
        ("", True),
        ("--name mine", True),
        ("--keep", True),
        ("--memory 4g -e A=1", True),
        ("--memory 4g -e A=1 --keep", True),
        ("--memory 4g", False),
        ("--memory 5g -e A=1", False),
        ("--name other", False),
    ],
)
def test_a_line_means_the_one_that_was_started_so(typed: str, is_same: bool) -> None:
    asked = parse_words("test", ["--memory", "4g", "-e", "A=1", "--keep"])
    assert kept.is_same(parse_words("test", typed.split()), asked, "mine") is is_same


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done instead of starting kernels."""
    done: list[str] = []

    def note(what: str) -> Callable[..., Any]:
        def act(*_: Any, **__: Any) -> str:
            done.append(what)
            return what

        return act

    monkeypatch.setattr(Environment, "attach", note("attach"))
    monkeypatch.setattr(Environment, "start_again", note("again"))
    monkeypatch.setattr(Environment, "start", note("new"))
    return done


def open_it(*options: str, fresh: bool = False) -> str:
    words = parse_words("test", options)
    return open_environment(
        IMAGE, words, Path.cwd(), tell=str, show=lambda *_: None, fresh=fresh
    ).how


def test_what_is_not_kept_is_started(workspace: Path, done: list[str]) -> None:
    assert open_it() == open_it("--keep") == "new"
    assert done == ["new", "new"]


def test_one_that_runs_is_attached_to(keep: Keep, done: list[str]) -> None:
    keep()
    assert open_it("--name", "mine") == "attached"
    assert open_it("--name", "mine", "--keep") == "attached"
    assert done == ["attach", "attach"]


def test_one_that_has_stopped_is_started_again(
    engine: FakeEngine, keep: Keep, done: list[str]
) -> None:
    kept.stop(keep())
    assert open_it("--name", "mine") == "again"
    assert done == ["again"]


def test_one_that_was_started_with_other_options_is_left_alone(keep: Keep, done: list[str]) -> None:
    keep("mine", "--memory", "4g")
    with pytest.raises(ConfigError, match="'mine' is kept, with the options it was started with"):
        open_it("--name", "mine", "--memory", "5g")
    assert done == []


def test_fresh_removes_what_is_kept_first(engine: FakeEngine, keep: Keep, done: list[str]) -> None:
    keep("mine", "--memory", "4g")
    assert open_it("--name", "mine", "--memory", "5g", fresh=True) == "new"
    assert engine.containers == []
    assert done == ["new"]


def test_the_project_file_can_keep(workspace: Path) -> None:
    (workspace / "dockml.toml").write_text(f'[environments.mine]\nimage = "{IMAGE}"\nkeep = true\n')
    assert Environment("mine", RunOptions(), workspace, str).keeps
    (workspace / "dockml.toml").write_text(f'[environments.mine]\nimage = "{IMAGE}"\nkeep = 1\n')
    with pytest.raises(ConfigError, match="1 is not true or false"):
        Environment("mine", RunOptions(), workspace, str)


def test_a_stopped_one_is_not_planned_anew(
    keep: Keep, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = keep()

    def refuse(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("its image may have another tag by now")

    monkeypatch.setattr(environments, "make_plan", refuse)
    environment = Environment._described(found.info, str)
    assert environment.reference == IMAGE
    assert environment.options == found.asked


# --- what was missed -------------------------------------------------------------------------------


def message(msg_type: str, content: dict[str, Any], parent: str = "cell") -> Message:
    header = {"msg_type": msg_type, "msg_id": f"{msg_type}-id", "session": "of the kernel"}
    parts = [header, {"msg_id": parent, "session": "of a notebook"}, {}, content]
    return Message.of_parts([json.dumps(part).encode() for part in parts])


def stream(text: str, name: str = "stdout", parent: str = "cell") -> Message:
    return message("stream", {"name": name, "text": text}, parent)


def test_what_a_stream_says_is_one_output() -> None:
    missed = Missed()
    said = [stream("a"), stream("b"), stream("c", "stderr"), stream("d"), message("error", {})]
    for output in said:
        missed.add(output)
    outputs = missed.outputs()
    assert [(m.type, m.content.get("text")) for m in outputs] == [
        ("stream", "ab"),
        ("stream", "c"),
        ("stream", "d"),
        ("error", None),
    ]


def test_an_interrupt_while_the_missed_is_shown_shows_nothing_twice(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = [
        list(stream("missed").parts),
        OutputState(busy=True, dropped=0, takes=True),
        OutputState(busy=False, dropped=0, takes=True),
    ]
    shown: list[str] = []
    interrupts: list[str] = []

    def tell(text: str) -> None:
        shown.append(text)
        if "still busy" in text:
            os.kill(os.getpid(), signal.SIGINT)

    container = SimpleNamespace(state=SimpleNamespace(attached=0))
    monkeypatch.setattr(Environment, "_container", container)
    monkeypatch.setattr(Environment, "interrupt", lambda self: interrupts.append("SIGINT"))
    waiting = SimpleNamespace(read=lambda timeout: said.pop(0))
    environment = Environment(IMAGE, RunOptions(name="mine"), workspace, tell=tell)
    environment._wait_until_idle(
        waiting,  # type: ignore[arg-type]
        lambda _, messages: shown.extend(m.content["text"] for m in messages),
    )
    assert said == []
    assert interrupts == ["SIGINT"]
    assert [text.partition(" ")[0] for text in shown] == ["While", "missed", "'mine'"]


def test_what_was_cleared_is_not_shown() -> None:
    missed = Missed()
    for output in (stream("1"), message("clear_output", {"wait": True}), stream("2")):
        missed.add(output)
    missed.add(stream("of another cell", parent="another"))
    assert [m.content["text"] for m in missed.outputs()] == ["2of another cell"]


def test_a_message_gets_another_parent_and_stays_what_it_was() -> None:
    moved = stream("text")
    moved.replace_parent({"msg_id": "new", "session": "s"})
    assert moved.parent_id == "new"
    topic, _, _, *parts = moved.said_by(Session(key=b"key"))
    again = Message.of_parts([bytes(memoryview(part)) for part in parts])
    assert again.parent == {"msg_id": "new", "session": "s"}
    assert again.content == stream("text").content
    assert bytes(memoryview(topic)) == b"stream"


# --- whose output it is ----------------------------------------------------------------------------


@pytest.fixture
def relay(short_folder: Path) -> Any:
    info = {"transport": "ipc", "ip": f"{short_folder}/kernel", "key": b"key"}
    ports = {f"{name}_port": 1 for name in ("shell", "iopub", "stdin", "control", "hb")}
    relay = Relay({**info, **ports, "signature_scheme": "hmac-sha256"}, lambda: None, lambda: None)
    yield relay
    relay.close()


def test_only_what_this_notebook_asked_for_is_shown_in_it(relay: Relay) -> None:
    theirs = stream("theirs")
    assert not relay.may_publish(theirs)
    relay.note_sent(theirs.parent_id)
    assert relay.may_publish(theirs)


def test_what_concerns_our_own_widget_is_ours_whoever_moves_it(relay: Relay) -> None:
    relay.has_comm = lambda comm_id: comm_id == "ours"
    assert relay.may_publish(message("comm_msg", {"comm_id": "ours"}))
    assert not relay.may_publish(message("comm_msg", {"comm_id": "theirs"}))
    assert not relay.may_publish(message("comm_open", {"comm_id": "ours"}))


IMAGE_NAME = RunOptions(name="tf", keep=True, memory=1 << 30)


@pytest.mark.parametrize(
    ("typed", "options", "what", "meant"),
    [
        ("tf", RunOptions(), "image:1", ("image:1", IMAGE_NAME)),
        ("tf", RunOptions(name="tf"), "image:1", ("image:1", IMAGE_NAME)),
        ("tf", RunOptions(), "tf", ("tf", IMAGE_NAME)),
        ("tf", RunOptions(memory=5), "image:1", ("image:1", RunOptions(memory=5, name="tf"))),
        ("tf", RunOptions(memory=5), "tf", ("tf", RunOptions(memory=5))),
        ("image:1", RunOptions(name="tf"), "image:1", ("image:1", RunOptions(name="tf"))),
        ("other:2", RunOptions(name="tf"), "image:1", ("other:2", RunOptions(name="tf"))),
    ],
)
def test_what_is_started_where_a_name_was_typed_that_was_given_by_name(
    typed: str, options: RunOptions, what: str, meant: tuple[str, RunOptions]
) -> None:
    assert kept.meant(typed, options, known="tf", what=what, asked=IMAGE_NAME) == meant


def test_a_layer_is_known_by_what_it_adds_after_it_was_noted(
    plan: Callable[..., planning.KernelPlan],
) -> None:
    made = plan()
    layered = replace(made.choice, base=IMAGE, extras=Extras(lines=("six",), constraints=("a==1",)))
    noted = json.loads(json.dumps(replace(made, choice=layered).to_json()))
    read = planning.KernelPlan.from_json(noted)
    assert read.choice.image_in_words == f"{IMAGE} with six"
    assert read.choice.extras == layered.extras
