"""What waits ready, when, and for whom: with kernels that only stand in, on an engine that only remembers."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dockml_magic import kept, planning, segments, trust, warm
from dockml_magic.container import KernelContainer
from dockml_magic.display import Table
from dockml_magic.engine import ContainerState
from dockml_magic.environment import Environment, Environments
from dockml_magic.errors import KernelError, StartAbandonedError
from dockml_magic.host_settings import read_host_settings
from dockml_magic.image_memory import ImageMemory
from dockml_magic.options import RunOptions
from dockml_magic.project import find_project
from dockml_magic.warm import Facts, WarmEnvironments, is_on, why_not
from tests.unit.fake_engine import FakeEngine
from tests.waiting import wait_until

IMAGE = "me/mine:1"
Plan = Callable[..., planning.KernelPlan]


class StandIn:
    """Is started when it is let, and says what was done to it."""

    made_ones: list[StandIn] = []  # noqa: RUF012
    may_start = threading.Event()
    error: Exception | None = None

    def __init__(
        self, name: str, options: RunOptions, folder: Path, tell: object, plan: Any
    ) -> None:
        self.name, self.options, self.plan = name, options, plan
        self.engine = planning.engine_for(options)
        self.container_id = "c0"
        self.told: list[str] = []
        self.made = StandInContainer(plan)
        self.is_alive = self.is_abandoned = self.is_stopped = self.is_ordinary = False
        self.made_ones.append(self)

    def tell(self, line: str) -> None:
        self.told.append(line)

    def start(self) -> None:
        while not self.may_start.wait(0.01):
            if self.is_abandoned:
                raise StartAbandonedError(self.name)
        if self.error:
            raise self.error
        self.is_alive = True

    def abandon(self) -> None:
        self.is_abandoned = True

    def stop(self) -> None:
        self.is_alive, self.is_stopped = False, True

    def decide_anew(self) -> None:
        self.is_ordinary = True


class StandInContainer:
    runtime = None
    was_asked = was_forgotten = False

    def __init__(self, plan: Any) -> None:
        self.plan = plan

    def is_made_by(self, plan: Any) -> bool:
        return bool(self.plan.image.id == plan.image.id)

    def ask_to_end(self) -> None:
        self.was_asked = True

    def forget(self) -> None:
        self.was_forgotten = True


@pytest.fixture(autouse=True)
def stand_ins(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """Have an image that was started before, and environments that only stand in."""
    monkeypatch.setattr(planning.engines, "connect", lambda name: engine)
    monkeypatch.setattr(warm, "Environment", StandIn)
    monkeypatch.setattr(warm, "DEBOUNCE", 0.02)
    # Whatever else runs here.
    monkeypatch.setattr(segments, "find_available_memory", lambda: 4 << 30)
    monkeypatch.setattr(StandIn, "made_ones", [])
    monkeypatch.setattr(StandIn, "may_start", threading.Event())
    StandIn.may_start.set()
    ImageMemory("python").write(engine.add_image(IMAGE).id)
    return StandIn


@pytest.fixture
def shelf(workspace: Path) -> Iterator[WarmEnvironments]:
    """What waits in a notebook in which nothing runs; nothing does after the test."""
    shelf = WarmEnvironments(Environments())
    yield shelf
    shelf.stop_all()


def write(folder: Path, *names: str, entry: str = "", is_agreed: bool = True) -> None:
    """Write a project file that wants these warm, and let the user have started them."""
    text = "".join(
        f'[environments.{name}]\nimage = "{IMAGE}"\nwarm = true\n{entry}\n' for name in names
    )
    (folder / "dockml.toml").write_text(text)
    for name in names:
        if is_agreed:
            trust.agree(find_project(folder), name, IMAGE)


def planned(name: str, folder: Path, **options: Any) -> Any:
    """Return what a line of the user's comes to."""
    asked = RunOptions(**options)
    plan = planning.plan_here(name, asked, folder, planning.engine_for(asked))
    return StandIn(name, asked, folder, None, plan)


def begin(shelf: WarmEnvironments, folder: Path, *names: str) -> None:
    """Load the extension, and wait until these are ready, and it is known what they take."""
    shelf.begin(folder)
    wait_until(lambda: [one.name for one in shelf if one.is_ready] == list(names))
    wait_until(lambda: "dockml-warm" not in [thread.name for thread in threading.enumerate()])


def test_what_the_project_file_wants_waits_and_is_used_once(
    shelf: WarmEnvironments, workspace: Path
) -> None:
    write(workspace, "one", "two")
    begin(shelf, workspace, "one", "two")
    first = StandIn.made_ones[0]
    assert first.plan.exclusive
    assert shelf.take(planned("one", workspace)) is first
    assert first.is_ordinary
    assert not first.is_stopped
    assert shelf.names() == ["two"]
    same = planned("two", workspace, image=IMAGE)
    assert shelf.take(same) is StandIn.made_ones[1]
    assert StandIn.made_ones[1].options == same.options  # what was typed
    assert shelf.take(planned("one", workspace)) is None
    assert shelf.take(planned("other", workspace, image=IMAGE)) is None


@pytest.mark.parametrize("options", [{"memory": 1 << 30}, {"env": ("A=1",)}, {"pull": "missing"}])
def test_what_is_asked_otherwise_ends_it(
    shelf: WarmEnvironments, workspace: Path, options: dict[str, Any]
) -> None:
    write(workspace, "one")
    begin(shelf, workspace, "one")
    assert shelf.take(planned("one", workspace, **options)) is None
    assert StandIn.made_ones[0].is_stopped
    assert shelf.names() == []


def test_another_image_under_its_name_ends_it(
    shelf: WarmEnvironments, workspace: Path, engine: FakeEngine
) -> None:
    write(workspace, "one")
    begin(shelf, workspace, "one")
    engine.add_image(IMAGE)
    assert shelf.take(planned("one", workspace)) is None
    assert StandIn.made_ones[0].is_stopped


def test_one_that_died_while_it_waited_is_none(shelf: WarmEnvironments, workspace: Path) -> None:
    write(workspace, "one")
    begin(shelf, workspace, "one")
    StandIn.made_ones[0].is_alive = False
    assert shelf.take(planned("one", workspace)) is None
    assert shelf.names() == []


def test_a_line_waits_for_one_that_starts(
    shelf: WarmEnvironments, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StandIn.may_start.clear()
    write(workspace, "one")
    shelf.begin(workspace)
    wait_until(lambda: shelf.names() == ["one"])
    assert [one.status for one in shelf] == ["warming"]
    begun: list[Environment] = []
    monkeypatch.setattr(warm, "_SHORT", 0.02)

    def tell(one: StandIn, line: str) -> None:
        one.told.append(line)
        StandIn.may_start.set()

    monkeypatch.setattr(StandIn, "tell", tell)
    asked = planned("one", workspace)
    taken = shelf.take(asked, begun.append)
    assert [taken] == begun == StandIn.made_ones[:1]
    assert asked.told == ["'one' is being started already, to be warm; waiting for it"]


def test_a_line_that_is_given_up_meanwhile_says_so(
    shelf: WarmEnvironments, workspace: Path
) -> None:
    StandIn.may_start.clear()
    write(workspace, "one")
    shelf.begin(workspace)
    wait_until(lambda: shelf.names() == ["one"])
    with pytest.raises(StartAbandonedError):
        shelf.take(planned("one", workspace), lambda environment: environment.abandon())
    assert shelf.names() == []


def test_an_interrupt_of_the_waiting_ends_the_start(
    shelf: WarmEnvironments, workspace: Path
) -> None:
    StandIn.may_start.clear()
    write(workspace, "one")
    shelf.begin(workspace)
    wait_until(lambda: shelf.names() == ["one"])

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shelf.take(planned("one", workspace), interrupt)
    assert StandIn.made_ones[0].is_abandoned
    assert shelf.names() == []


def test_a_start_that_fails_is_silent_and_the_line_starts_its_own(
    shelf: WarmEnvironments, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "error", KernelError("It fell over.\nIn two lines."))
    write(workspace, "one")
    shelf.begin(workspace)
    wait_until(lambda: bool(shelf.reasons))
    assert shelf.reasons == {"one": "It fell over."}
    assert shelf.take(planned("one", workspace)) is None


def test_a_project_file_that_is_wrong_is_left_to_the_first_line(
    shelf: WarmEnvironments, workspace: Path
) -> None:
    (workspace / "dockml.toml").write_text("[environments.x]\nwarm = 1")
    shelf._warm_project(workspace)
    assert (shelf.names(), dict(shelf.reasons)) == ([], {})


def test_what_was_stopped_is_not_warmed_again(shelf: WarmEnvironments, workspace: Path) -> None:
    write(workspace, "one")
    begin(shelf, workspace, "one")
    assert shelf.stop("one")
    assert StandIn.made_ones[0].is_stopped
    assert not shelf.stop("one")
    shelf._warm_project(workspace)
    assert (shelf.names(), len(StandIn.made_ones)) == ([], 1)


def test_what_runs_already_is_not_warmed(workspace: Path) -> None:
    environments = Environments()
    shelf = WarmEnvironments(environments)
    write(workspace, "one")
    environments._running["one"] = planned("one", workspace)
    shelf._warm_project(workspace)
    assert shelf.names() == []


def test_the_end_of_the_process_ends_what_waits_and_what_starts(
    shelf: WarmEnvironments, workspace: Path
) -> None:
    write(workspace, "one", "two")
    shelf._warm("one", RunOptions(), workspace)
    StandIn.may_start.clear()
    shelf.begin(workspace)
    wait_until(lambda: len(shelf.names()) == 2)
    shelf.end()
    assert [(c.made.was_asked, c.made.was_forgotten) for c in StandIn.made_ones] == [
        (True, True),
        (True, True),
    ]
    assert shelf.names() == []
    StandIn.may_start.set()
    wait_until(lambda: StandIn.made_ones[1].is_stopped)


def test_unloading_ends_them(shelf: WarmEnvironments, workspace: Path) -> None:
    write(workspace, "one", "two")
    begin(shelf, workspace, "one", "two")
    shelf.stop_all()
    assert all(one.is_stopped for one in StandIn.made_ones)
    shelf._warm_project(workspace)
    assert len(StandIn.made_ones) == 2


# --- whether ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "more", "reason"),
    [
        ({}, {}, ""),
        ({"publish": ("8501",)}, {}, ""),
        ({"publish": ("8501:8501",)}, {}, "it publishes ports"),
        ({"keep": True}, {}, "what is started with keep"),
        ({}, {"is_kept": True}, "it is kept already. Attach with: %docker_env one"),
        ({}, {"is_agreed": False}, "start it once yourself"),
        ({}, {"is_known": False}, "its image was never started here"),
        ({}, {"free": (1 << 30) - 1}, "memory is short: 1.1 GB are free."),
        ({}, {"free": 1 << 30}, ""),
        ({}, {"free": 3 << 30, "takes": 2 << 30}, "memory is short: 3.2 GB are free."),
    ],
)
def test_what_keeps_one_from_being_started(
    plan: Plan, options: dict[str, Any], more: dict[str, Any], reason: str
) -> None:
    why = why_not(Facts(name="one", plan=plan(IMAGE, **options), **more))
    assert why.startswith(reason)
    assert bool(why) is bool(reason)


def test_without_its_image_nothing_is_started(shelf: WarmEnvironments, workspace: Path) -> None:
    write(workspace, "one")
    for image in ('"me/other:1"', '"./Dockerfile"', f'"{IMAGE}"\nwith = ["tiny"]'):
        text = f"[environments.one]\nimage = {image}\nwarm = true\n"
        (workspace / "dockml.toml").write_text(text)
        (workspace / "Dockerfile").write_text(f"FROM {IMAGE}")
        assert shelf._warm("one", RunOptions(), workspace).startswith("its image is not here")
    assert shelf._warm(IMAGE, RunOptions(pull="always"), workspace).startswith("its image is not")
    assert StandIn.made_ones == []


def test_nothing_is_started_that_the_user_has_not_started_as_the_file_stands(
    shelf: WarmEnvironments, workspace: Path
) -> None:
    write(workspace, "one", is_agreed=False)
    assert shelf._warm("one", RunOptions(), workspace).startswith("start it once yourself")
    shelf.note_started("one", planned("one", workspace, memory=1 << 30), workspace)
    assert shelf._warm("one", RunOptions(), workspace).startswith("start it once yourself")
    shelf.note_started("one", planned("one", workspace), workspace)
    file = trust.user_images_file().with_name("started.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    write(workspace, "one", entry='env = { A = "1" }', is_agreed=False)
    assert shelf._warm("one", RunOptions(), workspace).startswith("start it once yourself")
    write(workspace, "one", is_agreed=False)
    assert shelf._warm("one", RunOptions(), workspace) == ""
    file.chmod(0o666)  # others may have written it
    assert not trust.has_agreed(find_project(workspace), "one", IMAGE)


def test_what_asks_for_more_than_its_folder_is_not_started_unless_it_is_trusted(
    shelf: WarmEnvironments, workspace: Path
) -> None:
    write(workspace, "one", entry='volumes = ["/etc:/etc"]')
    assert "asks for more than its own folder" in shelf._warm("one", RunOptions(), workspace)
    assert StandIn.made_ones == []
    planning.allow_project("one", RunOptions(), workspace)
    assert shelf._warm("one", RunOptions(), workspace) == ""


def test_an_image_that_the_project_file_names_is_not_started_for_a_picker(
    shelf: WarmEnvironments, workspace: Path
) -> None:
    (workspace / "dockml.toml").write_text(f'[images."tf1.10"]\nreference = "{IMAGE}"')
    assert shelf._warm("tf1.10", RunOptions(), workspace).startswith("start it once yourself")


def test_one_that_is_kept_wins(
    shelf: WarmEnvironments, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(workspace, "one")
    monkeypatch.setattr(kept, "names", lambda folder: ["one"])
    assert shelf._warm("one", RunOptions(), workspace).startswith("it is kept already")


@pytest.mark.parametrize(
    ("value", "on"), [("", True), ("on", True), ("off", False), ("0", False), (" No ", False)]
)
def test_a_variable_switches_it_off(value: str, on: bool) -> None:
    assert is_on({"DOCKML_WARM": value}) is on
    assert is_on({})


def test_switched_off_nothing_is_started(
    shelf: WarmEnvironments, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKML_WARM", "off")
    write(workspace, "one")
    before = set(threading.enumerate())
    shelf.begin(workspace)
    shelf.pick(IMAGE, RunOptions(), workspace)
    assert set(threading.enumerate()) <= before


# --- memory that gets short -----------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that are free, and often looked at."""
    free = [4 << 30]
    monkeypatch.setattr(segments, "find_available_memory", lambda: free[0])
    monkeypatch.setattr(warm, "LOOK_AGAIN", 0.01)
    return free


def test_what_waits_ends_from_the_last_on_when_memory_gets_short_until_there_is_enough(
    shelf: WarmEnvironments, workspace: Path, free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StandIn.stop

    def stop_and_free(one: StandIn) -> None:
        stop(one)
        free[0] = max(free[0], 1 << 30)

    monkeypatch.setattr(StandIn, "stop", stop_and_free)
    write(workspace, "one", "two")
    begin(shelf, workspace, "one", "two")
    free[0] = (1 << 30) - 1
    wait_until(lambda: bool(shelf.reasons))
    assert shelf.reasons == {"two": "it was, until memory got short: 1.1 GB were free."}
    assert [one.is_stopped for one in StandIn.made_ones] == [False, True]
    assert shelf.names() == ["one"]
    assert shelf.take(planned("two", workspace)) is None
    assert shelf.take(planned("one", workspace)) is StandIn.made_ones[0]
    wait_until(lambda: not shelf._is_watched, what="the thread to end where nothing waits")


def test_what_waits_does_not_count_against_itself(
    shelf: WarmEnvironments, workspace: Path, free: list[int]
) -> None:
    write(workspace, "one")
    begin(shelf, workspace, "one")
    (one,) = shelf
    one.memory = shelf._takes = 3 << 30
    free[0] = 3 << 30  # what was there before it, less what it takes
    shelf._end_what_has_no_room([one])
    assert shelf.names() == ["one"]
    free[0] -= 1
    shelf._end_what_has_no_room([one])
    assert shelf.names() == []


def test_a_picked_one_ends_too_and_the_project_file_has_no_reason_for_it(
    shelf: WarmEnvironments, workspace: Path, free: list[int]
) -> None:
    shelf.pick(IMAGE, RunOptions(), workspace)
    wait_until(lambda: any(one.is_ready for one in shelf))
    free[0] = 0
    wait_until(lambda: shelf.names() == [])
    assert dict(shelf.reasons) == {}


def test_memory_of_this_machine_says_nothing_of_an_engine_on_another(
    shelf: WarmEnvironments, workspace: Path, free: list[int], engine: FakeEngine
) -> None:
    write(workspace, "one")
    begin(shelf, workspace, "one")
    engine._facts = replace(engine.facts, shares_files=False)
    free[0] = 0
    shelf._end_what_has_no_room(list(shelf))
    assert shelf.names() == ["one"]


def test_one_that_ends_for_memory_while_it_is_asked_for_is_started_anew(
    shelf: WarmEnvironments, workspace: Path, free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(workspace, "one")
    begin(shelf, workspace, "one")

    def is_made_by(container: StandInContainer, plan: Any) -> bool:
        free[0] = 0
        shelf._end_what_has_no_room(list(shelf))
        return True

    monkeypatch.setattr(StandInContainer, "is_made_by", is_made_by)
    assert shelf.take(planned("one", workspace)) is None
    wait_until(lambda: StandIn.made_ones[0].is_stopped)  # by the thread that looks after them
    assert not StandIn.made_ones[0].is_ordinary


# --- a picker's selection, and what is shown ----------------------------------------------------


def test_a_selection_is_warmed_when_it_stays_and_lets_the_one_before_go(
    shelf: WarmEnvironments, workspace: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "DEBOUNCE", 0.5)  # which no busy machine needs for four selections
    ImageMemory("python").write(engine.add_image("me/other:1").id)
    write(workspace, "one")
    begin(shelf, workspace, "one")
    for name in ("me/other:1", IMAGE, "me/other:1", IMAGE):
        shelf.pick(name, RunOptions(), workspace)
    wait_until(lambda: shelf.names() == ["one", IMAGE])
    assert [one.name for one in StandIn.made_ones] == ["one", IMAGE]
    shelf.pick(IMAGE, RunOptions(), workspace)  # the same
    shelf.pick(IMAGE, RunOptions(memory=1 << 30), workspace)
    wait_until(lambda: len(StandIn.made_ones) == 3 and shelf.names() == ["one", IMAGE])
    assert StandIn.made_ones[1].is_stopped
    shelf.pick("", RunOptions(), workspace)
    wait_until(lambda: shelf.names() == ["one"])
    assert not StandIn.made_ones[0].is_stopped


def test_whoever_shows_what_waits_hears_of_each_change(
    shelf: WarmEnvironments, workspace: Path
) -> None:
    seen: list[str] = []

    def look() -> None:
        waiting = shelf.find(IMAGE, RunOptions())
        seen.append(waiting.status if waiting else "")

    shelf._environments.changed.append(look)
    shelf.pick(IMAGE, RunOptions(), workspace)
    wait_until(lambda: len(seen) == 2)
    assert shelf.find(IMAGE, RunOptions(memory=1 << 30)) is None
    shelf.drop(IMAGE)
    assert seen == ["warming", "warm", ""]


def test_what_waits_and_what_it_takes_is_one_line(shelf: WarmEnvironments, workspace: Path) -> None:
    assert shelf.in_words == ""
    write(workspace, "one", "two")
    begin(shelf, workspace, "one", "two")
    waiting = list(shelf)
    waiting[0].memory = 57_000_000
    waiting[1].is_ready = False
    assert shelf.in_words == (
        "Warm, so that %docker_env NAME takes no time: one (57 MB), two (is being started). "
        "To end one that you do not need: %docker_stop one"
    )


def test_other_processes_see_which_containers_wait(
    engine: FakeEngine, plan: Plan, shelf: WarmEnvironments
) -> None:
    container = KernelContainer(engine, plan(IMAGE), print)
    container._make_runtime(
        planning.RuntimeFolder(planning.folders.runtime_root() / container.session)
    )
    container.container_id = engine.create(container._spec("python"))
    engine.start(container.container_id)

    def status() -> list[str]:
        table: Table = planning.table_of_containers(engine)
        return [row[2] for row in table.rows] + [table.note]

    assert status() == ["running", ""]
    warm._mark(container, 57_000_000)
    shown = f"Warm, so that %docker_env NAME takes no time in their notebooks: {IMAGE} (57 MB)."
    assert status() == ["warm", shown]
    warm._unmark(container)
    assert status() == ["running", ""]
    stands_in: Any = SimpleNamespace(made=container)
    shelf._mark(warm.Waiting(name="taken", environment=stands_in, is_picked=False))
    assert status() == ["running", ""]
    container._give_up_claim()


# --- the same container -------------------------------------------------------------------------


def made(engine: FakeEngine, plan: planning.KernelPlan) -> KernelContainer:
    """Return a container as a start leaves it."""
    container = KernelContainer(engine, plan, print)
    container._settings = read_host_settings()
    container._find_compiled()
    container._make_runtime(
        planning.RuntimeFolder(planning.folders.runtime_root() / container.session)
    )
    container._made_of = container._spec("python")
    assert len(container._made_of.mounts) == 4  # with the compiled code
    container._give_up_claim()
    return container


def test_a_container_is_the_same_where_nothing_that_makes_it_has_changed(
    engine: FakeEngine, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "1")
    container = made(engine, plan(IMAGE, env=("TOKEN",)))
    assert container.is_made_by(plan(IMAGE, env=("TOKEN",)))
    same = plan(IMAGE, env=("TOKEN",))
    for other in (
        plan(IMAGE, env=("TOKEN", "B=1")),
        plan(IMAGE, env=("TOKEN",), user="1:1"),
        replace(same, image=replace(same.image, id="sha256:0")),
        replace(same, workspace=same.workspace.parent),
        replace(same, transport="tcp"),
        replace(same, kernelspec="ir"),
        replace(same, kept=True),
    ):
        assert not container.is_made_by(other)
    for name, value in (("TOKEN", "2"), ("TZ", "Asia/Tokyo"), ("https_proxy", "http://p:1")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert not container.is_made_by(same)
    assert container.is_made_by(same)


def test_one_that_was_not_made_here_is_never_the_same(engine: FakeEngine, plan: Plan) -> None:
    assert not KernelContainer(engine, plan(IMAGE), print).is_made_by(plan(IMAGE))


def test_a_state_of_a_container_is_read_only_from_our_own_folders(engine: FakeEngine) -> None:
    found = ContainerState(
        id="c", name="c", status="running", image=IMAGE,
        labels={planning.labels.SESSION: "../../../etc"},
    )  # fmt: skip
    assert planning._warm_memory(found) is None
