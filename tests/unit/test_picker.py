"""What a picker does besides being shown: the same code path, threads of its own, text without widgets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dockml_magic import planning
from dockml_magic.environment import Environment, Environments
from dockml_magic.errors import ConfigError, DockmlError, KernelError
from dockml_magic.options import RunOptions
from dockml_magic.picker import ImagePicker, _about
from dockml_magic.pull import PullProgress
from dockml_magic.selection import Row
from dockml_magic.warm import Waiting, WarmEnvironments
from tests.unit.fake_engine import FakeEngine
from tests.waiting import wait_until


class StandInWarm(WarmEnvironments):
    """Starts nothing, and says what it was asked for."""

    def __init__(self) -> None:
        super().__init__(Environments())
        self.picked: list[tuple[str, RunOptions]] = []

    def pick(self, name: str, options: RunOptions, folder: Path) -> None:
        self.picked.append((name, options))


class StandInNotebook:
    """Starts nothing, and says what it was asked for."""

    def __init__(self) -> None:
        self.environments = Environments()
        self.warm = StandInWarm()
        self.asked: list[tuple[str, RunOptions]] = []
        self.threads: list[threading.Thread] = []
        self.act: Callable[[Any], None] = lambda tell: None

    def switch_to(
        self,
        name: str,
        options: RunOptions,
        *,
        tell: Callable[[str], None],
        begun: Callable[[Environment], None],
    ) -> None:
        self.threads.append(threading.current_thread())
        self.asked.append((name, options))
        tell(f"starts {name}")
        self.act(tell)


@pytest.fixture
def notebook() -> StandInNotebook:
    return StandInNotebook()


@pytest.fixture
def picker(
    notebook: StandInNotebook,
    engine: FakeEngine,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ImagePicker]:
    """A picker on a machine with one image."""
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(planning.engines, "connect", lambda name: engine)
    engine.add_image("me/mine:1")
    picker = ImagePicker("me/mine:1", notebook=notebook)
    yield picker
    picker.close()


def start(picker: ImagePicker) -> None:
    """Press Start, and wait until what it does is done."""
    picker._start.click()
    wait_until_done(picker)


def wait_until_done(picker: ImagePicker) -> None:
    """Wait until what was begun is done, and that is shown."""
    wait_until(lambda: not picker._working.locked())
    wait_until(lambda: all(thread.name != "dockml-picker" for thread in threading.enumerate()))


def test_a_start_does_what_the_line_says_in_a_thread_of_its_own(
    picker: ImagePicker, notebook: StandInNotebook, capsys: pytest.CaptureFixture[str]
) -> None:
    picker._memory.value = "2g"
    picker._ports.value = "8501:8501 6006"
    assert "%docker_env me/mine:1 --memory 2g -p 8501:8501 -p 6006" in picker._line.value
    start(picker)
    options = RunOptions(memory=2 * 1024**3, publish=("8501:8501", "6006"))
    assert notebook.asked == [("me/mine:1", options)]
    assert notebook.threads[0] is not threading.current_thread()
    assert notebook.threads[0].daemon
    assert "starts me/mine:1" in picker._log.value
    assert capsys.readouterr() == ("", "")


def test_the_next_thing_can_be_done_while_the_images_are_listed_anew(
    picker: ImagePicker,
    notebook: StandInNotebook,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_asked, may_answer = threading.Event(), threading.Event()

    def list_slowly() -> list[str]:
        is_asked.set()
        may_answer.wait(30)
        return ["me/mine:1", "me/new:1"]

    monkeypatch.setattr(engine, "local_references", list_slowly)
    picker._start.click()
    assert is_asked.wait(30)
    assert not picker._start.disabled
    picker._start.click()
    wait_until(lambda: len(notebook.asked) == 2)
    may_answer.set()
    wait_until_done(picker)
    assert "Wait until" not in picker._log.value
    assert "me/new:1" in picker._local


def test_what_is_chosen_in_two_threads_at_once_is_both_shown(
    picker: ImagePicker, monkeypatch: pytest.MonkeyPatch
) -> None:
    picker._filter.value = ""
    find, is_in, may_end = picker._selection.find, threading.Event(), threading.Event()

    def find_slowly(*words: Any, **choices: Any) -> list[Row]:
        found = find(*words, **choices)
        if threading.current_thread() is subshell:
            is_in.set()
            may_end.wait(30)
        return found

    monkeypatch.setattr(picker._selection, "find", find_slowly)

    def choose_framework() -> None:
        picker._framework.value = "pytorch"

    def choose_processor() -> None:
        picker._processor.value = "gpu"

    subshell = threading.Thread(target=choose_framework)
    main = threading.Thread(target=choose_processor)
    subshell.start()
    assert is_in.wait(30)
    main.start()
    main.join(0.5)  # it waits; without turns it were done, and overtaken
    may_end.set()
    subshell.join(30)
    main.join(30)
    assert {(row.image.framework, row.image.gpu) for row in picker._found} == {("pytorch", True)}
    assert picker._list.options == tuple(row.label for row in picker._found[:200])


def test_what_cannot_begin_keeps_nothing_from_beginning(
    picker: ImagePicker, notebook: StandInNotebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(picker, "_show_line", fail)
        with pytest.raises(KeyboardInterrupt):
            picker._start_chosen()
    start(picker)
    assert [name for name, _ in notebook.asked] == ["me/mine:1"]


def test_an_environment_that_ends_as_it_is_looked_at_is_shown_as_dead() -> None:
    class Ending:
        name = reference = "one"
        waits_for_kernel = False
        is_alive = True

        @property
        def report(self) -> dict[str, str]:
            raise KernelError("It is gone.")

    ending: Any = Ending()
    assert _about(ending) == "dead"


def test_what_goes_wrong_is_said_in_the_picker(
    picker: ImagePicker, notebook: StandInNotebook, capsys: pytest.CaptureFixture[str]
) -> None:
    picker._memory.value = "much"
    start(picker)
    assert notebook.asked == []
    assert "&#x27;much&#x27; is not a size." in picker._log.value
    picker._memory.value = ""
    errors: list[Exception] = [ConfigError("<b>", hint="Do."), ValueError("odd")]

    def fail(tell: object) -> None:
        raise errors.pop(0)

    notebook.act = fail
    start(picker)
    assert "&lt;b&gt;</span>\nDo." in picker._log.value
    start(picker)
    assert "ValueError: odd" in picker._log.value
    assert not picker._start.disabled
    assert capsys.readouterr() == ("", "")


def test_one_thing_is_done_at_a_time_and_a_pull_can_be_given_up(
    picker: ImagePicker, notebook: StandInNotebook
) -> None:
    def pull(tell: Any) -> None:
        view = tell.pull_view()
        while True:
            view.show(PullProgress(reference="me/mine:1"))

    notebook.act = pull
    picker._start.click()
    wait_until(lambda: len(picker._progress.children) == 1)
    assert picker._start.disabled
    assert picker._stop.layout.display is None
    picker._start.click()
    assert "Wait until what was begun is done." in picker._log.value
    picker._stop.click()
    wait_until_done(picker)
    assert len(notebook.asked) == 1
    assert "The pull of &#x27;me/mine:1&#x27; was stopped." in picker._log.value
    assert picker._stop.layout.display == "none"


def test_an_engine_that_does_not_answer_is_said_and_the_catalogue_is_there(
    notebook: StandInNotebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: object) -> None:
        raise DockmlError("No engine.", hint="Start it.")

    monkeypatch.setattr(planning.engines, "connect", refuse)
    picker = ImagePicker("tf1.10", notebook=notebook)
    assert "No engine." in picker._log.value
    assert "tf1.10" in str(picker)
    picker.close()


def test_without_widgets_it_is_a_table(picker: ImagePicker) -> None:
    bundle = picker._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"] == str(picker)
    assert "here  %docker_env me/mine:1" in str(picker)


def test_no_thread_asks_for_figures_while_nothing_runs(picker: ImagePicker) -> None:
    picker._repr_mimebundle_()
    assert "dockml-figures" not in [thread.name for thread in threading.enumerate()]


def test_what_is_selected_and_here_is_to_wait_ready_while_it_is_looked_at(
    picker: ImagePicker, notebook: StandInNotebook
) -> None:
    picked = notebook.warm.picked
    picker._memory.value = "1g"
    assert picked == []  # nobody looks at it
    picker._repr_mimebundle_()
    mine, nothing = ("me/mine:1", RunOptions(memory=1 << 30)), ("", RunOptions())
    assert picked.pop() == mine
    picker._memory.value = "1"
    picker._memory.value = "1x"  # half typed
    assert picked.pop() == nothing
    picker._memory.value = ""
    assert picked.pop() == ("me/mine:1", RunOptions())
    picker._filter.value = "tf1.10-gpu"  # not here
    assert picked.pop() == nothing
    picker._filter.value = "me/mine:1"
    assert picked.pop() == ("me/mine:1", RunOptions())
    picker.close()
    assert picked.pop() == nothing


def test_what_is_selected_says_when_it_is_warm(
    picker: ImagePicker, notebook: StandInNotebook
) -> None:
    shown = picker._readiness
    assert shown.layout.display == "none"
    one: Any = SimpleNamespace(options=RunOptions())
    waiting = notebook.warm._found["me/mine:1"] = Waiting(name="me/mine:1", environment=one)
    notebook.environments.tell_change()
    assert ">warming<" in shown.value
    assert shown.layout.display is None
    waiting.is_ready = True
    notebook.environments.tell_change()
    assert ">● warm<" in shown.value
    picker._memory.value = "1g"  # which it does not have
    assert shown.value == ""
    picker._memory.value = ""
    assert "warm" in shown.value
    picker._filter.value = "tf1.10-gpu"
    assert (shown.value, shown.layout.display) == ("", "none")


def test_a_closed_picker_hears_of_no_change(notebook: StandInNotebook, picker: ImagePicker) -> None:
    assert len(notebook.environments.changed) == 1
    picker.close()
    assert notebook.environments.changed == []


def test_a_script_is_told_what_to_use_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: None)
    with pytest.raises(ConfigError, match="needs a notebook"):
        ImagePicker()
