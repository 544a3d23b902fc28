"""What goes and, above all, what stays."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from dockml_magic import compiled, folders, kept, labels, prune
from dockml_magic.engine import ContainerState, DiskUsage, ImageState, build_reference
from dockml_magic.image_memory import ImageMemory
from dockml_magic.kernel_bundle import mark_used
from dockml_magic.options import build_parser
from dockml_magic.prune import Bundle, Holdings, KeptFile, LeftOver, age, decide, find_holdings
from dockml_magic.spec import RUNTIME, ContainerSpec, Mount
from tests.unit.fake_engine import FakeEngine

NOW = 1_800_000_000.0
DAY = 24 * 3600.0
ME = "1000"
SESSION = "0123456789ab"
OURS = {
    labels.VERSION: "0.1",
    labels.NAME: "tf1.10",
    labels.WORKSPACE: "/home/ada",
    labels.USER: ME,
    labels.SESSION: SESSION,
}
HELPER = {labels.VERSION: "0.1", labels.USER: ME}
PYTHON = ImageState(id="sha256:py", references=("python:3.11",), created_at=NOW - 99 * DAY)
RUN = str(RUNTIME)


def container(**changes: Any) -> ContainerState:
    old = ContainerState(
        id="c1",
        name=f"dockml-{SESSION}",
        status="created",
        image="python:3.11",
        labels=OURS,
        created_at=NOW - DAY,
        image_id=PYTHON.id,
        mounts={RUN: f"/tmp/dockml-1000/{SESSION}/shared"},
    )
    return replace(old, **changes)


def without(label: str) -> dict[str, str]:
    return {name: value for name, value in OURS.items() if name != label}


def held(**changes: Any) -> Holdings:
    return replace(Holdings(now=NOW, uid=ME, images=(PYTHON,)), **changes)


def going(holdings: Holdings, *, everything: bool = False) -> list[str]:
    return [left.id for left in decide(holdings, everything=everything)]


# --- containers -----------------------------------------------------------------------------------


def test_a_container_that_never_started_goes() -> None:
    usage = DiskUsage(containers={"c1": 4096})
    (left,) = decide(held(containers=[container()], usage=usage))
    assert (left.kind, left.name, left.size) == ("container", f"dockml-{SESSION}", 4096)
    assert left.why == "created and never started; 24 hours old"


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("status", ["running", "paused", "restarting", "removing"])
def test_one_that_runs_never_goes(status: str, everything: bool) -> None:
    assert going(held(containers=[container(status=status)]), everything=everything) == []


@pytest.mark.parametrize("status", ["exited", "dead"])
def test_a_kept_one_goes_only_with_all(status: str) -> None:
    holdings = held(containers=[container(status=status)])
    assert going(holdings) == []
    assert going(holdings, everything=True) == ["c1"]


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize(
    "stranger",
    [
        {"labels": {}},
        *({"labels": without(label)} for label in OURS),
        {"labels": {**OURS, labels.USER: "1001"}},
        {
            "labels": {**OURS, labels.SESSION: "../../../etc"},
            "mounts": {RUN: "/x/../../../etc/shared"},
        },
        {"labels": {**OURS, labels.SESSION: "mine"}, "mounts": {RUN: "/x/mine/shared"}},
        {"mounts": {}},
        {"mounts": {RUN: "/srv/mine/shared"}},
        {"mounts": {"/data": f"/srv/{SESSION}/shared"}},
        {"image_id": "sha256:unknown"},
        {"labels": HELPER, "name": "web"},
        {"labels": HELPER, "name": "my-dockml-compile-x"},
        {"labels": {labels.USER: ME}, "name": "dockml-compile-cp311"},
    ],
    ids=str,
)
def test_a_strangers_container_stays(stranger: Mapping[str, Any], everything: bool) -> None:
    for status in ("created", "exited", "dead"):
        holdings = held(containers=[container(status=status, **stranger)])
        assert going(holdings, everything=everything) == []


def test_a_container_of_a_committed_image_has_our_labels_and_is_the_users() -> None:
    committed = ImageState(id="sha256:mine", references=("mine:1",), labels=OURS)
    inherits = container(image="mine:1", image_id="sha256:mine")
    holdings = held(containers=[inherits], images=(PYTHON, committed))
    assert going(holdings, everything=True) == []
    helper = container(image_id="sha256:mine", name="dockml-gpus-1", labels=HELPER, mounts={})
    assert going(replace(holdings, containers=[helper]), everything=True) == []
    again = "ab0123456789"
    one_of_ours = container(
        image_id="sha256:mine",
        labels={**OURS, labels.SESSION: again},
        mounts={RUN: f"/tmp/dockml-1000/{again}/shared"},
    )
    assert going(replace(holdings, containers=[one_of_ours])) == ["c1"]


def test_without_shared_files_there_is_no_mount_to_know_ours_by() -> None:
    assert going(held(containers=[container(mounts={})], shares_files=False)) == ["c1"]


@pytest.mark.parametrize(
    "name",
    [
        "dockml-compile-cp311-glibc2.36-x86_64-abc",
        "dockml-gpus-0123456789ab",
        "dockml-with-0123456789ab",
    ],
)
def test_what_was_of_use_for_a_moment_goes_when_it_has_ended(name: str) -> None:
    helper = container(name=name, labels=HELPER, mounts={}, status="exited")
    assert going(held(containers=[helper])) == ["c1"]
    assert going(held(containers=[replace(helper, status="running")])) == []


def test_one_that_was_run_again_to_learn_why_goes() -> None:
    again = container(name=f"dockml-{SESSION}-why", status="exited")
    assert going(held(containers=[again])) == ["c1"]


@pytest.mark.parametrize("everything", [False, True])
def test_nothing_younger_than_ten_minutes_goes(everything: bool) -> None:
    since = NOW - 599
    build = ImageState(
        id="i", references=("dockml/build:0123456789ab",), created_at=since,
        labels={labels.BUILT_FROM: "/gone", labels.USER: ME},
    )  # fmt: skip
    layers = ImageState(id="l", created_at=since, labels={labels.KEEPS: "tf:1", labels.USER: ME})
    some = KeptFile(path=Path("/x"), names=("x",), changed_at=since)
    holdings = held(
        containers=[container(created_at=since), container(status="exited", created_at=since)],
        images=(PYTHON, build, layers),
        current={"/gone": ""},
        bundles=[
            Bundle(path=Path("/b"), used_at=since),
            Bundle(path=Path("/.b-1"), used_at=since, is_whole=False),
        ],
        memories=[some],
        run_folders=[some],
        handovers=[some],
        kept_notes=[some],
    )
    assert going(holdings, everything=everything) == []
    later = replace(holdings, now=NOW + 2)
    assert len(going(later, everything=everything)) == (10 if everything else 8)


# --- images ---------------------------------------------------------------------------------------

TAG = "0123456789abcdef" * 4
BUILD = ImageState(
    id="sha256:b",
    references=(f"dockml/build:{TAG}",),
    labels={labels.BUILT_FROM: "/home/ada/Dockerfile", labels.USER: ME},
    created_at=NOW - 2 * DAY,
    size=300,
)
LAYERS = ImageState(
    id="sha256:kept",
    labels={labels.KEEPS: "tensorflow/tensorflow:1.10.0", labels.USER: ME},
    created_at=NOW - DAY,
    size=500,
)
SAME = {"/home/ada/Dockerfile": BUILD.references[0]}
CHANGED = {"/home/ada/Dockerfile": "dockml/build:other"}
GONE = {"/home/ada/Dockerfile": ""}


@pytest.mark.parametrize(
    ("current", "goes", "why"),
    [
        (CHANGED, True, "its Dockerfile has changed"),
        (GONE, True, "its Dockerfile is gone"),
        (SAME, False, "no container has it"),
        ({}, False, "no container has it"),
    ],
)
def test_a_built_image_goes_when_its_dockerfile_is_another(
    current: Mapping[str, str], goes: bool, why: str
) -> None:
    holdings = held(images=(PYTHON, BUILD), current=current)
    assert going(holdings) == ([BUILD.id] if goes else [])
    (left,) = decide(holdings, everything=True)
    assert why in left.why
    assert left.references == BUILD.references
    assert left.name == "dockml/build:0123456789ab"


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize(
    "image",
    [
        replace(BUILD, labels={}),
        replace(BUILD, labels={labels.BUILT_FROM: "/home/ada/Dockerfile"}),
        replace(BUILD, labels={labels.USER: ME}),
        replace(BUILD, labels={**BUILD.labels, labels.USER: "1001"}),
        replace(BUILD, references=("mine:1",)),
        replace(BUILD, references=(*BUILD.references, "mine:1")),
        replace(BUILD, references=("dockml/build:latest",)),
        replace(BUILD, references=("example.com/dockml/build:0123456789ab",)),
        replace(BUILD, references=("dockml/bare:3.11",)),
        replace(BUILD, references=()),
        replace(LAYERS, labels={labels.KEEPS: "tf:1"}),
        replace(LAYERS, labels={**LAYERS.labels, "maintainer": "ada"}),
        replace(LAYERS, labels={**LAYERS.labels, labels.USER: "1001"}),
        replace(LAYERS, references=("mine:1",)),
        replace(LAYERS, labels={}),
    ],
    ids=str,
)
def test_a_strangers_image_stays(image: ImageState, everything: bool) -> None:
    holdings = held(images=(PYTHON, image), current=GONE)
    assert going(holdings, everything=everything) == []


@pytest.mark.parametrize("status", ["running", "exited", "created"])
def test_an_image_of_a_container_stays_whose_ever_it_is(status: str) -> None:
    for user in (
        container(labels={}, image_id=BUILD.id, status=status),
        container(labels={}, image_id="?", image=BUILD.references[0], status=status),
    ):
        holdings = held(containers=[user], images=(PYTHON, BUILD, LAYERS), current=GONE)
        assert going(holdings, everything=True) == [LAYERS.id]


def test_an_image_goes_with_the_container_that_goes() -> None:
    ours = container(image_id=BUILD.id, image=BUILD.references[0])
    holdings = held(containers=[ours], images=(PYTHON, BUILD), current=GONE)
    assert going(holdings) == ["c1", BUILD.id]


def test_layers_of_a_stopped_pull_go() -> None:
    (left,) = decide(held(images=(PYTHON, LAYERS)))
    assert left.kind == "layers"
    assert "a pull of tensorflow/tensorflow:1.10.0 that was stopped" in left.why


def test_what_images_share_is_not_counted_as_freed() -> None:
    holdings = held(images=(PYTHON, BUILD), current=GONE)
    assert decide(holdings)[0].size == 300
    usage = DiskUsage(images={BUILD.id: 20})
    assert decide(replace(holdings, usage=usage))[0].size == 20


WITH = ImageState(
    id="sha256:w",
    references=("dockml/with:0123456789ab",),
    labels={**HELPER, f"{labels.NAMESPACE}.base": "python:3.11"},
    created_at=NOW - DAY,
)


def test_extra_packages_go_with_the_image_that_they_are_for() -> None:
    assert going(held(images=(PYTHON, WITH))) == []
    assert going(held(images=(PYTHON, WITH)), everything=True) == [WITH.id]
    (left,) = decide(held(images=(WITH,)))
    assert left.why.startswith("has extra packages for an image that is gone: python:3.11")
    untagged = replace(WITH, labels={**WITH.labels, f"{labels.NAMESPACE}.base": "mine"})
    mine = replace(PYTHON, references=("mine:latest",))
    assert going(held(images=(mine, untagged))) == []


@pytest.mark.parametrize(
    "image",
    [
        replace(WITH, labels=HELPER),
        replace(WITH, labels={**WITH.labels, labels.USER: "1001"}),
        replace(WITH, references=("mine:1",)),
        replace(WITH, references=()),
        replace(WITH, references=("dockml/build:0123456789ab",)),
        replace(WITH, references=(*WITH.references, "dockml/build:0123456789ab")),
    ],
    ids=str,
)
def test_a_strangers_image_with_packages_stays(image: ImageState) -> None:
    assert going(held(images=(image,)), everything=True) == []


def test_an_image_below_another_stays() -> None:
    on_top = replace(WITH, labels={**HELPER, f"{labels.NAMESPACE}.base": BUILD.references[0]})
    holdings = held(images=(PYTHON, BUILD, on_top), current=GONE)
    assert going(holdings) == []
    assert going(held(images=(PYTHON, BUILD), current=GONE)) == [BUILD.id]


def test_what_a_commit_left_goes() -> None:
    left = ImageState(
        id="sha256:raw",
        labels={**OURS, labels.COMMITS: "mine:1"},
        created_at=NOW - DAY,
    )
    assert going(held(images=(PYTHON, left))) == [left.id]
    assert going(held(images=(PYTHON, replace(left, references=("mine:1",))))) == []
    assert going(held(images=(PYTHON, replace(left, labels=OURS)))) == []


# --- bundles --------------------------------------------------------------------------------------

BUNDLE = Bundle(path=Path("/b/cp311"), size=105, used_at=NOW - 31 * DAY)
HALF = Bundle(path=Path("/b/.cp36-x"), is_whole=False, used_at=NOW - DAY)


def test_a_bundle_goes_after_thirty_days_without_a_start() -> None:
    younger = replace(BUNDLE, used_at=NOW - 29 * DAY)
    assert going(held(bundles=[BUNDLE])) == [str(BUNDLE.path)]
    assert going(held(bundles=[younger])) == []
    assert going(held(bundles=[younger]), everything=True) == [str(BUNDLE.path)]


def test_a_bundle_that_was_not_built_to_the_end_goes() -> None:
    assert going(held(bundles=[HALF], containers=[container(status="running")])) == [str(HALF.path)]


@pytest.mark.parametrize("bundle", [BUNDLE, HALF])
def test_a_bundle_that_is_being_built_stays(bundle: Bundle) -> None:
    assert going(held(bundles=[replace(bundle, is_locked=True)]), everything=True) == []


@pytest.mark.parametrize("status", ["running", "paused"])
def test_a_bundle_that_a_running_container_may_have_stays(status: str) -> None:
    older = container(status=status, created_at=NOW - 40 * DAY)
    newer = container(status=status, created_at=NOW - 20 * DAY)
    assert going(held(bundles=[BUNDLE], containers=[older]), everything=True) == []
    assert going(held(bundles=[BUNDLE], containers=[newer])) == [str(BUNDLE.path)]


def test_a_bundle_stays_while_containers_of_another_engine_run() -> None:
    elsewhere = KeptFile(path=Path("/r/x"), names=("x",), changed_at=0.0, is_answered=True)
    assert going(held(bundles=[BUNDLE], run_folders=[elsewhere]), everything=True) == []


# --- files ----------------------------------------------------------------------------------------

FOLDER = KeptFile(path=Path(f"/r/{SESSION}"), names=(SESSION,), changed_at=NOW - DAY, size=7)


def test_a_run_folder_goes_when_its_container_is_gone() -> None:
    assert going(held(run_folders=[FOLDER])) == [str(FOLDER.path)]
    for status in ("running", "exited", "removing"):
        holdings = held(run_folders=[FOLDER], containers=[container(status=status)])
        assert going(holdings) == []


def test_a_run_folder_of_a_container_stays_whatever_else_its_labels_say() -> None:
    strange = container(labels={labels.SESSION: SESSION}, mounts={})
    assert going(held(run_folders=[FOLDER], containers=[strange])) == []


def test_a_run_folder_goes_with_the_container_that_goes() -> None:
    assert going(held(run_folders=[FOLDER], containers=[container()])) == ["c1", str(FOLDER.path)]


def test_a_run_folder_of_another_engine_stays() -> None:
    assert going(held(run_folders=[replace(FOLDER, is_answered=True)])) == []
    assert going(held(run_folders=[replace(FOLDER, shares_files=False)])) == []
    assert going(held(run_folders=[FOLDER], shares_files=False)) == []


def test_a_handover_goes_when_all_its_containers_are_gone() -> None:
    handover = KeptFile(path=Path("/r/1.handover"), names=(SESSION, "x"), changed_at=NOW - DAY)
    assert going(held(handovers=[handover])) == ["/r/1.handover"]
    assert going(held(handovers=[handover], containers=[container(status="running")])) == []
    answered = replace(FOLDER, is_answered=True)
    assert going(held(handovers=[handover], run_folders=[answered])) == []


def test_a_note_of_a_kept_environment_goes_with_its_container() -> None:
    note = KeptFile(path=Path("/s/kept/1.json"), names=("c1",), changed_at=NOW - DAY)
    assert going(held(kept_notes=[note])) == ["/s/kept/1.json"]
    for status in ("running", "paused", "exited"):
        assert going(held(kept_notes=[note], containers=[container(status=status)])) == []
    # That is removed by --all: `container` has the id c1.
    ended = container(status="exited")
    assert going(held(kept_notes=[note], containers=[ended]), everything=True) == [
        "c1",
        "/s/kept/1.json",
    ]


def test_the_memory_of_an_image_that_is_gone_goes() -> None:
    gone = KeptFile(path=Path("/i/gone.json"), names=("sha256:gone",), changed_at=NOW - DAY)
    here = KeptFile(path=Path("/i/py.json"), names=(PYTHON.id,), changed_at=NOW - DAY)
    assert going(held(memories=[gone, here])) == ["/i/gone.json"]


def test_the_compiled_code_of_an_image_that_is_gone_goes() -> None:
    gone = KeptFile(path=Path("/c/gone"), names=("sha256:gone",), changed_at=NOW - DAY)
    here = KeptFile(path=Path("/c/py"), names=(PYTHON.id,), changed_at=NOW - DAY)
    young = replace(gone, path=Path("/c/young"), changed_at=NOW)
    assert going(held(compiled=[gone, here, young])) == ["/c/gone"]


def test_the_memories_of_many_images_are_one_line() -> None:
    many = [
        LeftOver(kind="image memory", id=f"/i/{n}", name=str(n), why="?", size=90) for n in range(9)
    ]
    other = LeftOver(kind="bundle", id="/b", name="cp311", why="?", size=0)
    shown = prune.describe([*many, other], is_done=False).splitlines()
    assert len(shown) == 4
    assert "9 files" in shown[2]
    assert "810 B" in shown[2]
    assert "10 things" in shown[3]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 minutes"), (3599, "59 minutes"), (3600, "1 hour"), (2 * DAY - 1, "47 hours"),
     (2 * DAY, "2 days"), (15 * DAY, "2 weeks")],
)  # fmt: skip
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text


# --- look, and act --------------------------------------------------------------------------------


def make_old(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (time.time() - DAY, time.time() - DAY))


def run_folder(session: str = SESSION, control: object = str(RUNTIME / "control")) -> Path:
    folder = folders.runtime_root() / session
    shared = folders.RuntimeFolder(folder).shared
    shared.mkdir(parents=True)
    (shared / "config.json").write_text(json.dumps({"control": control}))
    make_old(shared / "config.json", shared, folder)
    return folder


def bundle_folder(name: str, *, whole: bool = True) -> Path:
    folder = folders.bundles_root() / name
    folder.mkdir()
    (folder / "code.py").write_bytes(bytes(9000))
    if whole:
        (folder / "bundle.json").write_text("{}")
        make_old(folder / "bundle.json")
    make_old(folder)
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def our_spec(folder: Path, **changes: Any) -> ContainerSpec:
    spec = ContainerSpec(
        image="me/mine:1",
        name=f"dockml-{SESSION}",
        entrypoint=("python",),
        user="0:0",
        workdir=PurePosixPath("/"),
        labels={**OURS, labels.USER: str(os.getuid())},
        env={},
        mounts=(Mount(target=RUNTIME, host_path=folder / "shared"),),
        auto_remove=False,
    )
    return replace(spec, **changes)


def make_container_old(engine: FakeEngine, container_id: str) -> None:
    engine._containers[container_id].created_at -= DAY


def asked(*words: str) -> argparse.Namespace:
    parser = build_parser("dockml prune", "")
    prune.add_prune_arguments(parser)
    return parser.parse_args(words)


def test_what_is_on_the_disk_is_seen(engine: FakeEngine) -> None:
    whole, half = bundle_folder("cp311-glibc2.36-x86_64"), bundle_folder(".cp36-glibc2.36-x86_64-x")
    damaged = bundle_folder("cp39-glibc2.36-x86_64", whole=False)
    (folders.bundles_root() / "notes-about-cp311").write_text("mine")
    ImageMemory("python").write("sha256:gone")
    code = compiled.ensure_folder("sha256:gone")
    assert code is not None
    (code / "0.1.0.code").write_bytes(b"x" * 9000)
    (compiled.root() / ".gone-0123").touch()
    folder, far = run_folder(), run_folder("aaaaaaaaaaaa", control=5900)
    (folders.runtime_root() / "not-ours").mkdir()
    handover = folders.runtime_root() / "1.handover"
    handover.write_text(json.dumps([{"container": {"session": SESSION}}]))
    (folders.runtime_root() / "2.handover").write_text("[")
    with locked(folders.bundles_root() / ".cp36-glibc2.36-x86_64.lock"):
        found = find_holdings(engine)
    assert {b.path: (b.is_whole, b.is_locked) for b in found.bundles} == {
        whole: (True, False),
        half: (False, True),
        damaged: (False, False),
    }
    assert all(bundle.size >= 9000 for bundle in found.bundles)
    assert {f.path: f.shares_files for f in found.run_folders} == {folder: True, far: False}
    assert [(f.path, f.names) for f in found.handovers] == [(handover, (SESSION,))]
    assert [f.names for f in found.memories] == [("sha256:gone",)]
    assert [(f.names, f.size >= 9000) for f in found.compiled] == [
        (("",), False),
        (("sha256:gone",), True),
    ]


def note_as_kept(engine: FakeEngine, session: str, container_id: str = "c9") -> Path:
    """Note an environment as kept, a day ago."""
    container = {"container_id": container_id, "session": session, "plan": {"kept": True}}
    kept.write("tf", {"workspace": "/home/ada", "container": container}, engine)
    path = folders.state_root() / "kept" / f"{session}.json"
    make_old(path)
    return path


def test_only_notes_of_this_engine_and_this_machine_are_looked_at(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = note_as_kept(engine, SESSION)
    data = json.loads(path.read_text())
    for number, change in enumerate(({"endpoint": "ssh://far"}, {"machine": "another"})):
        other = path.with_name(f"aaaaaaaaaaa{number}.json")
        other.write_text(json.dumps({**data, "session": other.stem, **change}))
        other.chmod(0o600)
        make_old(other)
    (path.parent / "notes.json").write_text("mine")
    (note,) = find_holdings(engine).kept_notes
    assert (note.path, note.names) == (path, ("c9",))


def test_a_note_whose_container_is_there_after_all_is_not_removed(engine: FakeEngine) -> None:
    path = note_as_kept(engine, SESSION)
    (left,) = decide(find_holdings(engine))
    assert (left.kind, left.id) == ("kept note", str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "inspect", lambda container_id: container())
        assert prune.remove(left, engine).problem == "its container is there after all"
    assert path.exists()
    assert prune.remove(left, engine).problem == ""
    assert not path.exists()


def test_a_run_folder_in_which_somebody_listens_is_answered(engine: FakeEngine) -> None:
    folder = run_folder()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "shared" / "control"))
        server.listen()
        make_old(folder / "shared" / "control", folder / "shared", folder)
        assert find_holdings(engine).run_folders[0].is_answered
        assert going(find_holdings(engine)) == []
    assert going(find_holdings(engine)) == []
    assert not folder.exists()  # whoever asks for the root of such folders has them removed


def test_a_dockerfile_is_compared_with_what_was_built_from_it(
    engine: FakeEngine, workspace: Path
) -> None:
    same, changed, gone = (workspace / name for name in ("same", "changed", "gone"))
    for dockerfile in (same, changed, gone):
        dockerfile.write_text(f"FROM {dockerfile.name}")
        made_by = {labels.BUILT_FROM: str(dockerfile), labels.USER: str(os.getuid())}
        engine.add_image(build_reference(dockerfile), labels=made_by)
    changed.write_text("FROM another")
    gone.unlink()
    later = replace(find_holdings(engine), now=time.time() + 3600)
    whys = {left.why.partition(":")[0] for left in decide(later)}
    assert whys == {"its Dockerfile has changed", "its Dockerfile is gone"}


def test_a_start_that_uses_a_bundle_makes_it_younger() -> None:
    folder = bundle_folder("cp311-glibc2.36-x86_64")
    report = {"python": "3.11.2", "libc": "glibc", "libc_version": "2.36", "machine": "x86_64"}
    mark_used(report, folders.bundles_root())
    assert time.time() - (folder / "bundle.json").stat().st_mtime < 60
    mark_used({**report, "python": "3.6.1"}, folders.bundles_root())
    assert not (folders.bundles_root() / "cp36-glibc2.36-x86_64").exists()


@pytest.fixture
def left_behind(engine: FakeEngine) -> list[Path | str]:
    """One of each kind, with a container that is in use beside them."""
    engine.add_image("me/mine:1")
    folder = run_folder()
    never_started = engine.create(our_spec(folder))
    make_container_old(engine, never_started)
    half = bundle_folder(".cp36-glibc2.36-x86_64-x")
    ImageMemory("python").write("sha256:gone")
    memory = folders.cache_root() / "images" / "gone.json"
    make_old(memory)
    code = compiled.ensure_folder("sha256:gone")
    assert code is not None
    (code / "0.1.0.code").touch()
    make_old(code)
    return [never_started, half, memory, code, folder]


def test_a_dry_run_changes_nothing_and_says_how_to_do_it(
    engine: FakeEngine, left_behind: Sequence[Path | str], told: list[str]
) -> None:
    assert prune.prune(engine, asked(), told.append) == 0
    assert [c.id for c in engine.containers] == left_behind[:1]
    assert all(path.exists() for path in left_behind if isinstance(path, Path))
    said = "\n".join(told)
    assert "5 things, about" in said
    assert "Nothing is removed yet. To remove them: dockml prune --force" in said
    assert "docker system df" in said


def test_force_removes_what_the_dry_run_lists(
    engine: FakeEngine, left_behind: Sequence[Path | str], told: list[str]
) -> None:
    assert prune.prune(engine, asked("-f"), told.append) == 0
    assert engine.containers == []
    assert not any(path.exists() for path in left_behind if isinstance(path, Path))
    assert "Removed: 5 things" in told[0]
    assert prune.prune(engine, asked("-f"), told.append) == 0
    assert told[-2] == "Nothing to remove: whatever we created is in use."


def test_one_that_cannot_be_removed_is_told_and_the_others_go(
    engine: FakeEngine,
    left_behind: Sequence[Path | str],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, half, memory, _, folder = left_behind
    # Somebody starts it between the look and the removal.
    monkeypatch.setattr(
        engine,
        "remove",
        lambda container_id, force: (
            engine.start(container_id),
            FakeEngine.remove(engine, container_id, force=force),
        ),
    )
    assert prune.prune(engine, asked("--force"), told.append) == 1
    assert [c.status for c in engine.containers] == ["running"]
    assert isinstance(folder, Path)
    assert folder.exists(), "its container is there after all"
    assert not Path(half).exists()
    assert not Path(memory).exists()
    assert "not removed: The Docker engine refused: You cannot remove a running" in told[0]
    assert "Removed: 3 things" in told[0]
    assert told[0].endswith("Not removed: 2.")


def test_a_bundle_that_somebody_begins_to_build_is_not_removed(engine: FakeEngine) -> None:
    half = bundle_folder(".cp36-glibc2.36-x86_64-x")
    (left,) = decide(find_holdings(engine))
    with locked(folders.bundles_root() / ".cp36-glibc2.36-x86_64.lock"):
        assert prune.remove(left, engine).problem == "it is being built now"
    assert half.exists()
    assert prune.remove(left, engine).problem == ""
    assert not half.exists()


def test_a_file_that_may_not_be_removed_is_told_with_its_path(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = LeftOver(kind="run folder", id=str(run_folder()), name=SESSION, why="")

    monkeypatch.setattr(folders.RuntimeFolder, "remove", lambda self: None)
    assert f"something in {left.id} may not be removed" in prune.remove(left, engine).problem


def test_all_is_told_of_and_asked_for(engine: FakeEngine, told: list[str]) -> None:
    bundle_folder("cp311-glibc2.36-x86_64")
    prune.prune(engine, asked(), told.append)
    assert "1 more is only unused now. See them with: dockml prune --all" in told
    told.clear()
    prune.prune(engine, asked("--all"), told.append)
    assert "To remove them: dockml prune --force --all" in told[0]
    assert "only unused now" not in "\n".join(told)


def test_json_is_for_programs(
    engine: FakeEngine, left_behind: Sequence[Path | str], told: list[str]
) -> None:
    prune.prune(engine, asked("--json"), told.append)
    (text,) = told
    first, *rest = json.loads(text)
    assert len(rest) == 4
    assert set(first) == {"kind", "id", "name", "why", "size", "references", "problem", "removed"}
    assert (first["kind"], first["removed"]) == ("container", False)
    told.clear()
    prune.prune(engine, asked("--json", "--force"), told.append)
    assert all(row["removed"] for row in json.loads(told[0]))
