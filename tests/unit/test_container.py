from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dockml_magic import container as containers
from dockml_magic import folders, planning
from dockml_magic.container import KernelContainer, _last_lines
from dockml_magic.control import KernelState
from dockml_magic.engine import EngineFacts
from dockml_magic.errors import (
    DockmlError,
    ImageUnavailableError,
    KernelBundleError,
    KernelDiedError,
    KernelError,
    KernelMissingError,
    MountError,
    PortTakenError,
)
from dockml_magic.image_memory import ImageMemory
from dockml_magic.spec import RUNTIME, ContainerSpec
from tests.unit.fake_engine import FakeEngine, Run

IMAGE = "me/mine:1"
ELSEWHERE = EngineFacts(version="24", api="1.43", endpoint="tcp://gpu1:2376", shares_files=False)


Plan = Callable[..., planning.KernelPlan]

# --- a start that fails ---------------------------------------------------------------------------


def fail_to_start(engine: FakeEngine, plan: planning.KernelPlan) -> DockmlError:
    """Start, and return the error; nothing may be left."""
    container = KernelContainer(engine, plan, print)
    with pytest.raises(DockmlError) as caught:
        container.start()
    assert engine.containers == []
    assert list(folders.runtime_root().iterdir()) == []
    assert container.container_id == ""
    return caught.value


def test_an_image_without_python_says_what_was_tried(engine: FakeEngine, plan: Plan) -> None:
    engine.add_image(IMAGE, programs=("sh",))
    error = fail_to_start(engine, plan())
    assert isinstance(error, KernelMissingError)
    assert error.message == (
        f"The image '{IMAGE}' has no Python (tried: python, python3, /opt/conda/bin/python, "
        "/usr/local/bin/python3, python2)."
    )
    assert [spec.entrypoint[0] for spec in engine.specs] == list(containers.PYTHONS)


def test_a_container_that_ends_at_once_shows_its_log(engine: FakeEngine, plan: Plan) -> None:
    engine.add_image(IMAGE)
    engine._behave = lambda spec: Run(output="exec format error\n", exit_code=1)
    error = fail_to_start(engine, plan())
    assert isinstance(error, KernelDiedError)
    assert error.exit_code == 1
    assert "ended at once (exit code 1)" in error.message
    assert error.log_tail.strip() == "exec format error"


def test_a_port_that_is_taken_leaves_nothing(engine: FakeEngine, plan: Plan) -> None:
    engine.add_image(IMAGE)
    engine.busy_ports.add(("127.0.0.1", 8501))
    error = fail_to_start(engine, plan(publish=("8501:8501",)))
    assert isinstance(error, PortTakenError)


def test_a_volume_that_does_not_exist_leaves_nothing(engine: FakeEngine, plan: Plan) -> None:
    engine.add_image(IMAGE)
    error = fail_to_start(engine, plan(volumes=("./missing:/missing",)))
    assert isinstance(error, MountError)


def test_an_image_that_went_meanwhile_leaves_nothing(engine: FakeEngine, plan: Plan) -> None:
    engine.add_image(IMAGE)
    made = plan()
    engine._images.clear()
    assert isinstance(fail_to_start(engine, made), ImageUnavailableError)


def test_a_start_that_is_abandoned_ends_soon(engine: FakeEngine, plan: Plan) -> None:
    engine.add_image(IMAGE)
    container = KernelContainer(engine, plan(), print)
    container.abandon()
    with pytest.raises(KernelError, match="The start was interrupted"):
        container.start()
    assert engine.containers == []


def test_a_start_that_is_abandoned_as_it_connects_ends_soon_too(
    engine: FakeEngine, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_image(IMAGE)
    container = KernelContainer(engine, plan(), print)

    class Channel:
        """Comes up as another thread gives the start up, and finds a container that takes its time."""

        def __init__(self, address: object, key: str) -> None:
            container.abandon()

        def wait(self, wanted: object, timeout: float) -> KernelState:
            return KernelState(generation=1)

        def stop(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(containers, "ControlChannel", Channel)
    monkeypatch.setattr(
        KernelContainer, "_wait_bound", lambda *_: pytest.fail("it waits for the kernel")
    )
    with pytest.raises(KernelError, match="The start was interrupted"):
        container.start()
    assert engine.containers == []


# --- removing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stuck", [False, True])
def test_a_removal_that_the_engine_has_only_begun_is_waited_for(
    engine: FakeEngine,
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    is_stuck: bool,
) -> None:
    engine.add_image(IMAGE)
    container = KernelContainer(engine, plan(), print)
    container._make_runtime(folders.RuntimeFolder(folders.runtime_root() / container.session))
    container.container_id = engine.create(container._spec("python"))
    begun: list[threading.Timer] = []
    remove = engine.remove

    def begin(container_id: str, *, force: bool = True) -> None:
        if not is_stuck:
            begun.append(threading.Timer(0.3, remove, [container_id]))
            begun[0].start()

    monkeypatch.setattr(engine, "remove", begin)
    monkeypatch.setattr("dockml_magic.engine.contract._REMOVAL_PATIENCE", 0.5 if is_stuck else 30.0)
    with caplog.at_level("WARNING"):
        container.remove()
    container._give_up_claim()
    assert len(engine.containers) == is_stuck
    assert ("may be left behind" in caplog.text) is is_stuck
    for timer in begun:
        timer.join()


# --- what is remembered of an image ---------------------------------------------------------------


def test_what_was_found_out_is_kept_by_the_images_id() -> None:
    memory = ImageMemory("python3", "/usr/bin/python3", "bundle")
    memory.write("sha256:0123")
    assert ImageMemory.read("sha256:0123") == memory
    assert ImageMemory.read("sha256:4567") == ImageMemory()
    ImageMemory.forget("sha256:0123")
    ImageMemory.forget("sha256:0123")
    assert ImageMemory.read("sha256:0123") == ImageMemory()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"colour": "red"}'])
def test_a_memory_of_another_version_is_none(text: str) -> None:
    ImageMemory("python3").write("sha256:0123")
    (path,) = (folders.cache_root() / "images").iterdir()
    path.write_text(text)
    assert ImageMemory.read("sha256:0123") == ImageMemory()


def test_only_what_is_remembered_is_tried(engine: FakeEngine, plan: Plan) -> None:
    image = engine.add_image(IMAGE, programs=())
    ImageMemory("/opt/python").write(image.id)
    error = fail_to_start(engine, plan())
    assert "(tried: /opt/python)" in error.message
    assert ImageMemory.read(image.id) == ImageMemory()


@pytest.mark.parametrize(
    ("interpreter", "is_used"),
    [
        ("/usr/bin/python3", True),
        ("/opt/venv/bin/python", True),
        ("", True),
        ("/proc/self/cwd/python", False),
        ("/proc/1/cwd/python", False),
        ("/dev/fd/7", False),
        ("/usr/bin/../../proc/self/cwd/python", False),
        ("/run/dockml/python", False),
        ("./python", False),
        ("/data/venv/bin/python", False),
        ("{workspace}/venv/bin/python", False),
    ],
)
def test_an_interpreter_that_may_be_a_projects_own_is_not_remembered_for_another(
    engine: FakeEngine, plan: Plan, workspace: Path, interpreter: str, is_used: bool
) -> None:
    image = engine.add_image(IMAGE)
    interpreter = interpreter.format(workspace=workspace)
    ImageMemory("python3", interpreter, "image").write(image.id)
    container = KernelContainer(engine, plan(volumes=("named:/data",)), print)
    found = container._memory()
    expected = (interpreter, "image") if is_used else ("", "")
    assert (found.entry, found.interpreter, found.kernel) == ("python3", *expected)


def test_a_start_is_told_of_no_interpreter_of_a_projects_own(
    engine: FakeEngine, plan: Plan
) -> None:
    image = engine.add_image(IMAGE)
    ImageMemory("python", "/proc/self/cwd/python", "image").write(image.id)
    configs = []

    def behave(spec: ContainerSpec) -> Run:
        (runtime,) = (mount.host_path for mount in spec.mounts if mount.target == RUNTIME)
        assert runtime is not None
        configs.append(json.loads((runtime / "config.json").read_text()))
        return Run(exit_code=1)

    engine._behave = behave
    fail_to_start(engine, plan())
    assert [(config["interpreter"], config["kernel"]) for config in configs] == [("", "")] * 2


# --- a container that is started again ---------------------------------------------------------------


@pytest.fixture
def stopped(engine: FakeEngine, plan: Plan, tmp_path: Path) -> dict[str, Any]:
    """What is noted of a kept container, which has stopped; it has the folder `data` in `above`."""
    engine.add_image(IMAGE)
    (tmp_path / "above" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "above")
    (tmp_path / "secret").mkdir()
    volumes = (f"{tmp_path / 'link' / 'data'}:/data", f"{tmp_path / 'above'}:/above")
    container = KernelContainer(engine, replace(plan(volumes=volumes), kept=True), print)
    described = []
    container.created = lambda made: described.append(made.describe())
    engine._behave = lambda spec: Run(exit_code=0)
    with pytest.raises(KernelDiedError):
        container._start_planned()
    assert container._runtime is not None
    container._runtime.remove()
    return described[0] | {"container_id": container.container_id}


def start_again(engine: FakeEngine, described: dict[str, Any]) -> DockmlError:
    """Start what has stopped, which fails as nothing runs in a container of this engine."""
    plan = planning.KernelPlan.from_json(described["plan"])
    container = KernelContainer(engine, plan, print)
    with pytest.raises(DockmlError) as caught:
        container.start_again(json.loads(json.dumps(described)))
    return caught.value


def put_link(path: Path, target: Path) -> None:
    path.rename(path.with_name("was"))
    path.symlink_to(target)


def test_a_folder_in_whose_place_a_link_was_put_is_not_mounted_again(
    engine: FakeEngine, stopped: dict[str, Any], tmp_path: Path
) -> None:
    data = tmp_path / "above" / "data"
    assert isinstance(start_again(engine, stopped), KernelDiedError)
    put_link(data, tmp_path / "secret")
    error = start_again(engine, stopped)
    assert isinstance(error, MountError)
    assert f"'{data}', which '{IMAGE}' mounts, leads to '{tmp_path / 'secret'}'" in error.message
    assert f"%docker_env {IMAGE} --fresh" in str(error)
    assert [found.status for found in engine.containers] == ["exited"]
    data.unlink()
    data.symlink_to(data)  # one that leads nowhere
    assert isinstance(start_again(engine, stopped), (MountError, KernelDiedError))


def test_nor_is_one_below_a_folder_that_was_replaced_nor_the_workspace(
    engine: FakeEngine, stopped: dict[str, Any], tmp_path: Path, workspace: Path
) -> None:
    (tmp_path / "secret" / "data").mkdir()
    put_link(tmp_path / "above", tmp_path / "secret")
    assert isinstance(start_again(engine, stopped), MountError)
    (tmp_path / "above").unlink()
    (tmp_path / "was").rename(tmp_path / "above")
    assert isinstance(start_again(engine, stopped), KernelDiedError)
    put_link(workspace, tmp_path / "secret")
    assert isinstance(start_again(engine, stopped), MountError)


def test_a_workspace_that_was_a_link_already_is_mounted_again(
    engine: FakeEngine, plan: Plan, tmp_path: Path, workspace: Path
) -> None:
    engine.add_image(IMAGE)
    link = tmp_path / "project"
    link.symlink_to(workspace)
    made = KernelContainer(engine, replace(plan(), workspace=link, kept=True), print)
    made._make_runtime(folders.RuntimeFolder(folders.runtime_root() / made.session))
    made._sources = containers._resolved_sources(made._spec("python"))
    assert made._sources == {str(link): str(workspace.resolve())}
    made._raise_if_moved()
    link.unlink()
    link.symlink_to(tmp_path)
    with pytest.raises(MountError):
        made._raise_if_moved()


# --- kernel bundles ----------------------------------------------------------------------------------


class AsksForEver:
    """Stands for a control channel at whose other end each kernel wants another bundle."""

    def __init__(self) -> None:
        self.state = KernelState(phase="starting", generation=0)

    def start(self, env: object, cwd: object) -> None:
        pass

    def wait(self, condition: Callable[[KernelState], bool], timeout: float) -> KernelState:
        number = self.state.generation + 1
        report = {"python": "3.11.2", "libc": "glibc", "libc_version": f"2.{number}"}
        self.state = KernelState(phase="need_bundle", generation=number, report=report)
        assert condition(self.state)
        return self.state


def test_an_image_gets_two_kernel_bundles_in_a_start_and_no_more(
    engine: FakeEngine, plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine.add_image(IMAGE)
    asked: list[str] = []

    def build(report: Mapping[str, Any], *_: object) -> Path:
        asked.append(report["libc_version"])
        return tmp_path

    monkeypatch.setattr(containers, "ensure_bundle", build)
    container = KernelContainer(engine, plan(), print)
    container._control = AsksForEver()  # type: ignore[assignment]
    with pytest.raises(KernelBundleError, match="one kernel bundle after the other"):
        container._wait_bound(generation=1)
    assert asked == ["2.1", "2.2"]


# --- what an image has instead ---------------------------------------------------------------------


def not_started(container: KernelContainer, **report: object) -> DockmlError:
    with pytest.raises(DockmlError) as caught:
        container._raise_not_started(KernelState(phase="failed", report=report))
    return caught.value


def test_a_kernel_that_the_image_lacks_is_told_with_those_it_has(
    engine: FakeEngine, plan: Plan
) -> None:
    engine.add_image(IMAGE)
    container = KernelContainer(engine, plan(kernel="ir"), print)
    error = not_started(container, kernelspecs={"julia-1.9": "julia", "bash": "bash"})
    assert isinstance(error, KernelMissingError)
    assert error.message == f"The image '{IMAGE}' has no kernel 'ir'."
    assert error.hint == "It has: bash (bash), julia-1.9 (julia). Run one with: --kernel bash"
    assert "It has no kernelspec" in not_started(container, kernelspecs={}).hint


def test_where_no_python_can_run_a_kernel_the_others_are_told(
    engine: FakeEngine, plan: Plan
) -> None:
    engine.add_image(IMAGE)
    container = KernelContainer(engine, plan(), print)
    error = not_started(container, problem="too old", kernelspecs={"ir": "R"})
    assert error.message.endswith("can run a kernel: too old")
    assert error.hint == "It has: ir (R). Run one with: --kernel ir"
    assert "Python 2.7" in not_started(container, problem="too old").hint


# --- how a kernel ended ---------------------------------------------------------------------------


@pytest.fixture
def dead(engine: FakeEngine, plan: Plan) -> KernelContainer:
    engine.add_image(IMAGE)
    return KernelContainer(engine, replace(plan(memory=64 * 1024**2)), print)


def test_a_kernel_that_was_killed_for_memory_says_which_limit(dead: KernelContainer) -> None:
    error = dead.death(KernelState(phase="exited", exit_code=137, out_of_memory=True), "It died")
    assert error.message == "It died: killed for memory, its limit is 64 MiB (--memory)."
    assert error.out_of_memory


def test_one_that_is_gone_before_it_was_there_may_have_been_short_of_memory(
    dead: KernelContainer,
) -> None:
    with pytest.raises(KernelDiedError) as caught:
        dead._raise_not_started(KernelState(phase="gone"))
    assert "with 64 MiB (--memory): its container is gone." in caught.value.message
    assert "give it more with --memory" in str(caught.value.hint)


def test_a_kernel_that_a_signal_ended_says_which(dead: KernelContainer) -> None:
    error = dead.death(KernelState(phase="exited", exit_code=139), "It died")
    assert error.message.startswith("It died (exit code 139")
    assert "SIGSEGV" in error.message


@pytest.mark.parametrize(("is_paused", "asked"), [(False, 3), (True, 1)])
def test_signals_settle_as_long_as_a_busy_machine_takes(
    dead: KernelContainer, monkeypatch: pytest.MonkeyPatch, asked: int, *, is_paused: bool
) -> None:
    answers = [True, False, False]
    control = SimpleNamespace(settle=lambda _: answers.pop())
    dead._control = control  # type: ignore[assignment]
    monkeypatch.setattr(dead, "find_pause", lambda: is_paused)
    dead.settle_signals()
    assert len(answers) == 3 - asked


def test_what_a_kernel_wrote_last_is_waited_for(
    dead: KernelContainer, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = "dockml: the kernel has ended\n"
    looks = iter(["", "said\n", "said\n", f"said\nlast\n{ended}"])
    monkeypatch.setattr(engine, "logs", lambda *_: next(looks))
    dead.container_id = "one"
    state = KernelState(phase="exited", exit_code=1)
    dead._control = SimpleNamespace(state=state)  # type: ignore[assignment]
    assert dead.death(state, "It died").log_tail == "said\nlast"


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        ("", ""),
        ("one\ntwo\n", "one\ntwo"),
        ("".join(f"{n}\n" for n in range(30)), "\n".join(str(n) for n in range(10, 30))),
        ("of the last\ndockml: another kernel starts\n", ""),
        (
            "of the last\ndockml: the kernel has ended\ndockml: another kernel starts\nits own\n"
            "dockml: the kernel has ended\n",
            "its own",
        ),
        (
            "said\nFatal Python error: Aborted\n" + "frame\n" * 40,
            "Fatal Python error: Aborted" + "\nframe" * 19,
        ),
    ],
    ids=["nothing", "all", "last", "nothing of this kernel", "of this kernel", "crash"],
)
def test_the_last_lines_are_of_this_kernel_and_the_first_of_a_crash(log: str, shown: str) -> None:
    assert _last_lines(log) == shown


def test_a_container_that_is_gone_is_told(dead: KernelContainer) -> None:
    assert "its container is gone" in dead.death(KernelState(phase="gone"), "It died").message
