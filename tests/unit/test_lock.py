from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from dockml_magic import layers, planning, toml
from dockml_magic.engine import ImageState
from dockml_magic.errors import (
    ConfigError,
    ImageUnavailableError,
    ProjectFileError,
    UntrustedProjectError,
)
from dockml_magic.layers import Inventory
from dockml_magic.lock import (
    Lock,
    LockedEnvironment,
    Now,
    compare,
    entry_of,
    parse_lock,
    write_lock,
)
from dockml_magic.options import RunOptions
from dockml_magic.planning import check_lock, choose_here, lock_environments
from dockml_magic.requirements import Extras
from tests.unit.fake_engine import FakeEngine

PATH = Path("/project/dockml.lock")
NER = LockedEnvironment(
    entry="0123456789abcdef",
    image="tf1.4",
    reference="tensorflow/tensorflow:1.4.0-py3",
    digest="tensorflow/tensorflow@sha256:" + "1" * 64,
    id="sha256:" + "2" * 64,
    platform="linux/amd64",
    python="3.5.2",
    requirements=("pandas==0.24",),
    constraints=("six==1.0",),
    packages=("numpy==1.14.5", "pandas==0.24.0", "six==1.0"),
)
NOW = Now(
    entry=NER.entry,
    image="tf1.4",
    reference=NER.reference,
    requirements=NER.requirements,
    constraints=NER.constraints,
    here=(NER.id,),
)

# --- the file -------------------------------------------------------------------------------------


def test_a_lock_is_written_to_be_read_by_people() -> None:
    text = write_lock(Lock(path=PATH, environments={"ner": NER}))
    lines = text.splitlines()
    assert lines[0].startswith("# What the environments of the project file came to")
    assert lines[3:9] == [
        "version = 1",
        "",
        "[environments.ner]",
        'entry = "0123456789abcdef"',
        'image = "tf1.4"',
        'reference = "tensorflow/tensorflow:1.4.0-py3"',
    ]
    assert lines[-5:] == [
        "packages = [",
        '    "numpy==1.14.5",',
        '    "pandas==0.24.0",',
        '    "six==1.0",',
        "]",
    ]


def test_one_package_more_is_one_line_more() -> None:
    more = replace(NER, packages=(*NER.packages, "tqdm==4.0"))
    one, two = (write_lock(Lock(path=PATH, environments={"b": NER, "a": e})) for e in (NER, more))
    added = [line for line in two.splitlines() if line not in one.splitlines()]
    assert added == ['    "tqdm==4.0",']
    assert len(two.splitlines()) == len(one.splitlines()) + 1


def test_what_was_written_is_read() -> None:
    chance = random.Random(1)

    def text() -> str:
        signs = "a.-\"\\'\n\t\x00\x1f\x7f\u2028é漢😀 #[]={}"
        return "x" + "".join(chance.choices(signs, k=chance.randint(0, 9)))

    for _ in range(300):
        values = {
            f.name: tuple(text() for _ in range(chance.randint(0, 3)))
            if f.type == "tuple[str, ...]"
            else text()
            for f in fields(LockedEnvironment)
        }
        name = text()[chance.randint(0, 1) :]
        lock = Lock(path=PATH, environments={name: LockedEnvironment(**values)})  # type: ignore[arg-type]
        assert parse_lock(PATH, write_lock(lock)) == lock


GOOD = write_lock(Lock(path=PATH, environments={"ner": NER}))


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("version = 1", "version = 2", 4, "version: its version is 2, and this dockml_magic reads 1"),
        ("version = 1\n", "", None, "its version is None"),
        ('image = "tf1.4"', "image = tf1.4", 8, "not a lock file"),
        ('image = "tf1.4"', "image = 3", 8, r"environments\.ner\.image: not a string"),
        ('image = "tf1.4"\n', "", 6, r"environments\.ner: it has no 'image'"),
        ('    "six==1.0",\n]\npackages', "    6,\n]\npackages", 17, "constraints: not a list of strings"),
        ("[environments.ner]", "environments = 3\n[x]", 6, "environments: not a table"),
        ("[environments.ner]", "[environments]\nner = 3\n[x]", 7, r"environments\.ner: not a table"),
        ('python = "3.5.2"', '<<<<<<< HEAD\npython = "3.5.2"\n=======', 13, "a conflict of two versions"),
    ],
)  # fmt: skip
def test_a_lock_that_is_not_understood_is_told_with_its_line(
    old: str, new: str, line: int | None, problem: str
) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    with pytest.raises(ProjectFileError, match=problem) as caught:
        parse_lock(PATH, text)
    lines = text.splitlines()
    assert caught.value.line == line, lines[(caught.value.line or 1) - 1]
    assert caught.value.message.startswith(f"{PATH}:{line}:" if line else f"{PATH}: ")
    assert caught.value.hint == "Write it anew with: dockml lock"


def test_versions_that_pip_does_not_take_are_no_constraints() -> None:
    locked = replace(NER, packages=("a==1.0", "b==unknown", "c==1.0 beta", "d==1.0+cu100"))
    assert locked.versions == ("a==1.0", "d==1.0+cu100")


def test_an_entry_is_the_same_however_it_is_written() -> None:
    one = toml.loads("[x]\nimage = 'a'\nenv.A = '1'\nsince = 2020-01-01")["x"]
    two = toml.loads("x = { since = 2020-01-01, env = { A = '1' }, image = \"a\" }")["x"]
    assert entry_of(one) == entry_of(two) != entry_of({**one, "image": "b"})


# --- has the world moved --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "holds", "told"),
    [
        ({}, (True, True, True), ""),
        ({"here": ("sha256:x", NER.digest)}, (True, True, True), ""),
        ({"here": ()}, (True, True, False), ""),
        (
            {"here": ("sha256:x",)},
            (True, True, False),
            "tensorflow/tensorflow:1.4.0-py3 is another image here than dockml.lock says; the locked one is used",
        ),
        (
            {"entry": "x", "image": "tf1.10"},
            (False, False, True),
            "dockml.toml has changed since dockml.lock: the image is 'tf1.10', was 'tf1.4'; the lock is not used",
        ),
        (
            {"entry": "x", "requirements": ("numpy", "pandas==0.25")},
            (True, False, True),
            "dockml.toml has changed since dockml.lock: packages +numpy +pandas==0.25 -pandas==0.24; its versions "
            "are not used",
        ),
        (
            {"constraints": ()},
            (True, False, True),
            "dockml.toml has changed since dockml.lock: the constraints of the packages; its versions are not used",
        ),
        (
            {"entry": "x"},
            (True, True, True),
            "dockml.toml has changed since dockml.lock: an entry that is neither its image nor its packages",
        ),
        (
            {"entry": "x", "here": ("sha256:x",)},
            (True, True, False),
            "dockml.toml has changed since dockml.lock: an entry that is neither its image nor its packages; "
            "tensorflow/tensorflow:1.4.0-py3 is another image here than dockml.lock says; the locked one is used",
        ),
    ],
)  # fmt: skip
def test_what_has_moved_is_told(
    now: dict[str, object], holds: tuple[bool, bool, bool], told: str
) -> None:
    verdict = compare(NER, replace(NOW, **now))  # type: ignore[arg-type]
    assert (verdict.holds_image, verdict.holds_versions, verdict.is_here) == holds
    last = ". To lock what there is now: dockml lock ner" if told else ""
    assert verdict.told("ner", "dockml.toml", "dockml.lock") == told + last


def test_a_build_holds_as_long_as_its_folder_does() -> None:
    locked = replace(NER, image="./docker", reference="dockml/build:1", digest="")
    now = replace(NOW, image="./docker", reference="dockml/build:1", here=())
    assert compare(locked, now).told("ner", "dockml.toml", "dockml.lock") == ""
    assert compare(locked, now).holds_versions
    verdict = compare(locked, replace(now, reference="dockml/build:2"))
    assert not verdict.holds_image
    assert verdict.told("ner", "dockml.toml", "dockml.lock").startswith(
        "what './docker' builds is another image than dockml.lock says; the lock is not used."
    )


# --- written, and started from --------------------------------------------------------------------

IMAGE = "me/mine:1"
DIGEST = "me/mine@sha256:" + "3" * 64
PACKAGES = ("numpy==1.14.5", "pandas==0.24.0")

Install = list[Extras]


@pytest.fixture
def project(workspace: Path) -> Path:
    path = workspace / "dockml.toml"
    path.write_text(
        f"[environments.ner]\nimage = '{IMAGE}'\n[environments.two]\nimage = '{IMAGE}'\n"
    )
    return path


@pytest.fixture
def installed(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Install:
    """What was installed; and all images have the same packages."""
    done: Install = []

    def ensure_layer(
        base: ImageState,
        name: str,
        extras: Extras,
        on: FakeEngine,
        tell: Callable[[str], None],
        given: dict[str, str],
    ) -> ImageState:
        reference = extras.reference(base.id)
        if (found := engine.find_image(reference)) is None:
            done.append(extras)
            found = engine.add_image(reference)
        return found

    inventory = Inventory(python="3.6.15", packages=PACKAGES)
    monkeypatch.setattr(layers, "ensure_layer", ensure_layer)
    monkeypatch.setattr(layers, "list_packages", lambda image, name, engine: inventory)
    return done


def add(engine: FakeEngine, *digests: str, reference: str = IMAGE) -> ImageState:
    state = replace(engine.add_image(reference), digests=digests)
    engine._images[reference].state = state
    return state


def lock(engine: FakeEngine, folder: Path, *names: str) -> Lock:
    return lock_environments(names, folder, engine, lambda line: None)


Plan = Callable[..., planning.KernelPlan]


def test_a_lock_has_what_each_environment_comes_to(
    engine: FakeEngine, project: Path, installed: Install, told: list[str]
) -> None:
    image = add(engine, "other/mine@sha256:00", DIGEST)
    made = lock_environments([], project.parent, engine, told.append)
    ner = made.environments["ner"]
    assert (ner.image, ner.reference, ner.digest, ner.id) == (IMAGE, IMAGE, DIGEST, image.id)
    assert (ner.platform, ner.python, ner.packages) == ("linux/amd64", "3.6.15", PACKAGES)
    assert parse_lock(made.path, made.path.read_text()) == made
    assert made.path == project.parent / "dockml.lock"
    assert told == [
        *("ner:", f"{IMAGE}, Python 3.6.15, 2 packages"),
        *("two:", f"{IMAGE}, Python 3.6.15, 2 packages"),
        f"wrote {made.path}",
    ]
    assert [path.name for path in project.parent.iterdir()] == ["dockml.toml", "dockml.lock"]


def test_a_lock_pulls_what_is_missing_and_says_what_no_registry_has(
    engine: FakeEngine, project: Path, installed: Install, told: list[str]
) -> None:
    engine.registry[IMAGE] = ["python"]
    lock_environments(["ner"], project.parent, engine, told.append)
    assert engine.pulled == [IMAGE]
    assert any("another machine will not get it" in line for line in told)


def test_some_environments_are_locked_and_the_others_stay(
    engine: FakeEngine, project: Path, installed: Install
) -> None:
    add(engine)
    first = lock(engine, project.parent)
    add(engine, DIGEST)
    second = lock(engine, project.parent, "two")
    assert second.environments["ner"] == first.environments["ner"]
    assert second.environments["two"] != first.environments["two"]
    project.write_text(
        f"[environments.two]\nimage = '{IMAGE}'\n[environments.new]\nimage = '{IMAGE}'"
    )
    assert set(lock(engine, project.parent, "new").environments) == {"two", "new"}


@pytest.mark.parametrize("names", [[], ["gone"]])
def test_what_cannot_be_locked_is_told(
    engine: FakeEngine, workspace: Path, names: list[str]
) -> None:
    with pytest.raises(ConfigError, match="No project file of"):
        lock(engine, workspace, *names)
    (workspace / "dockml.toml").write_text("[environments.ner]")
    if names:
        with pytest.raises(ConfigError, match="'gone' is not an environment of") as caught:
            lock(engine, workspace, *names)
        assert caught.value.hint == "Known: ner."


def test_what_the_user_has_not_allowed_is_not_locked(
    engine: FakeEngine, project: Path, installed: Install
) -> None:
    """A lock pulls, builds and installs as a start does."""
    engine.registry[IMAGE] = ["python"]
    (project.parent.parent / "keys").write_text("of-the-host")
    (project.parent / "r.txt").write_text("-r ../keys")
    project.write_text(
        f"[environments.ner]\nimage = '{IMAGE}'\nenv = ['SECRET']\nrequirements = 'r.txt'\n"
    )
    with pytest.raises(UntrustedProjectError) as caught:
        lock(engine, project.parent)
    keys = project.parent.parent.resolve() / "keys"
    assert caught.value.asked == (
        "the value of your variable SECRET",
        f"{keys}, to read as a list of packages",
    )
    assert engine.pulled == installed == []
    assert not (project.parent / "dockml.lock").exists()
    planning.allow_project("ner", RunOptions(), project.parent)
    assert lock(engine, project.parent).environments["ner"].requirements == ("of-the-host",)


def test_a_start_from_a_lock_that_holds_says_nothing(
    engine: FakeEngine, project: Path, installed: Install, plan: Plan, told: list[str]
) -> None:
    image = add(engine, DIGEST)
    lock(engine, project.parent)
    made = plan("ner")
    assert (made.choice.reference, made.image) == (IMAGE, image)
    assert told == []
    assert check_lock([], project.parent, engine) == []


def test_a_tag_that_moved_is_told_and_the_locked_image_is_used(
    engine: FakeEngine, project: Path, installed: Install, plan: Plan, told: list[str]
) -> None:
    image = add(engine, DIGEST)
    lock(engine, project.parent)
    add(engine, reference="me/kept:1")
    engine._images["me/kept:1"].state = image
    add(engine, "me/mine@sha256:00")  # the tag is another image now
    made = plan("ner")
    assert (made.choice.reference, made.image.id) == (DIGEST, image.id)
    assert len(told) == 1
    assert told[0].startswith(
        f"{IMAGE} is another image here than dockml.lock says; the locked one"
    )
    assert check_lock(["ner"], project.parent, engine) == [f"ner: {told[0]}"]
    told.clear()
    assert plan("ner", image=IMAGE).choice.reference == IMAGE
    assert told == ["--image: dockml.lock is not used for this start"]


def test_a_locked_image_that_is_missing_is_pulled_by_its_digest(
    engine: FakeEngine, project: Path, installed: Install, plan: Plan
) -> None:
    add(engine, DIGEST)
    lock(engine, project.parent)
    engine._images.clear()
    engine.registry |= {IMAGE: ["python"], DIGEST: ["python"]}
    assert plan("ner").choice.reference == DIGEST
    assert engine.pulled == [DIGEST]
    plan("ner", pull="always")
    assert engine.pulled == [DIGEST, DIGEST]


def test_a_locked_image_that_its_registry_has_no_more_is_told(
    engine: FakeEngine, project: Path, installed: Install, plan: Plan
) -> None:
    add(engine, DIGEST)
    lock(engine, project.parent)
    engine._images.clear()
    with pytest.raises(ImageUnavailableError, match=DIGEST) as caught:
        plan("ner")
    assert caught.value.hint.startswith("It is the one that dockml.lock has.")
    assert caught.value.hint.endswith(
        f"dockml lock ner. To start without the lock: --image {IMAGE}"
    )


def test_a_locked_image_that_was_only_local_cannot_be_had_elsewhere(
    engine: FakeEngine, project: Path, installed: Install, plan: Plan
) -> None:
    image = add(engine)
    lock(engine, project.parent)
    engine.registry[IMAGE] = ["python"]
    engine.tag(image.id, "me/kept:1")
    add(engine)
    assert plan("ner").choice.reference == image.id  # another tag still has it
    del engine._images["me/kept:1"]
    with pytest.raises(ImageUnavailableError, match="no registry has it") as caught:
        plan("ner")
    assert f"%docker_env ner --image {IMAGE}" in caught.value.hint
    assert plan("ner", image=IMAGE).choice.reference == IMAGE


def test_requirements_are_installed_at_the_locked_versions(
    engine: FakeEngine, project: Path, installed: Install, plan: Plan, told: list[str]
) -> None:
    project.write_text(f"[environments.ner]\nimage = '{IMAGE}'\nwith = ['pandas']\n")
    image = add(engine, DIGEST)
    lock(engine, project.parent)
    assert installed == [Extras(lines=("pandas",))]
    held = Extras(lines=("pandas",), constraints=PACKAGES)
    # The layer that was locked is the one that is started: nothing is installed again.
    assert plan("ner").choice.reference == held.reference(image.id)
    assert len(installed) == 1
    # On another machine it is.
    for reference in list(engine._images):
        if reference.startswith("dockml/with:"):
            del engine._images[reference]
    plan("ner")
    assert installed[1:] == [held]
    assert told == []


def test_packages_of_the_line_override_the_locked_versions(
    engine: FakeEngine, project: Path, installed: Install, plan: Plan, told: list[str]
) -> None:
    project.write_text(f"[environments.ner]\nimage = '{IMAGE}'\nwith = ['pandas']\n")
    add(engine, DIGEST)
    lock(engine, project.parent)
    plan("ner", packages=("tqdm",))
    assert installed[1:] == [Extras(lines=("pandas", "tqdm"))]
    assert told == ["--with: the versions in dockml.lock are not used for this start"]


def test_changed_requirements_are_told_and_installed(
    engine: FakeEngine, project: Path, installed: Install, plan: Plan, told: list[str]
) -> None:
    project.write_text(f"[environments.ner]\nimage = '{IMAGE}'\nrequirements = 'r.txt'\n")
    (project.parent / "r.txt").write_text("pandas==0.24\n")
    add(engine, DIGEST)
    lock(engine, project.parent)
    (project.parent / "r.txt").write_text("pandas==0.25\n")
    plan("ner")
    assert installed[1:] == [Extras(lines=("pandas==0.25",))]
    assert "has changed since dockml.lock: packages +pandas==0.25 -pandas==0.24; its" in told[0]
    assert check_lock([], project.parent, engine) == [f"ner: {told[0]}"]


def test_a_password_of_a_requirement_is_not_in_the_lock(
    engine: FakeEngine, project: Path, installed: Install
) -> None:
    line = "x @ https://ann:secret@example.com/x.whl"
    project.write_text(f"[environments.ner]\nimage = '{IMAGE}'\nwith = ['{line}']\n")
    add(engine)
    made = lock(engine, project.parent)
    assert "secret" not in made.path.read_text()
    assert check_lock([], project.parent, engine) == []


def test_a_dockerfile_is_locked_by_what_it_is_built_from(
    engine: FakeEngine, project: Path, installed: Install, plan: Plan, told: list[str]
) -> None:
    engine.add_image("me/base:1")
    (project.parent / "Dockerfile").write_text("FROM me/base:1\n")
    project.write_text("[environments.ner]\nimage = '.'\n")
    locked = lock(engine, project.parent).environments["ner"]
    assert locked.image == "./."
    assert locked.is_built
    assert plan("ner").choice.reference == locked.reference
    assert told == []
    (project.parent / "Dockerfile").write_text("FROM me/base:1\nRUN true\n")
    assert plan("ner").choice.reference != locked.reference
    assert told[0].startswith(
        "what './.' builds is another image than dockml.lock says; the lock is"
    )


def test_what_is_not_in_the_lock_starts_as_ever_and_is_found_by_a_check(
    engine: FakeEngine, project: Path, installed: Install, plan: Plan, told: list[str]
) -> None:
    add(engine)
    assert check_lock([], project.parent, engine) == [
        f"{project.parent} has no dockml.lock. Write it with: dockml lock"
    ]
    lock(engine, project.parent, "two")
    assert plan("ner").choice.reference == IMAGE
    assert told == []
    assert check_lock([], project.parent, engine) == [
        "ner: it is not in dockml.lock. Add it with: dockml lock ner"
    ]
    project.write_text(f"[environments.ner]\nimage = '{IMAGE}'\n")
    assert check_lock([], project.parent, engine)[1:] == [
        "two: it is in dockml.lock, and not in dockml.toml"
    ]


def test_a_corrupt_lock_is_told_with_its_line(
    engine: FakeEngine, project: Path, plan: Plan
) -> None:
    add(engine)
    (project.parent / "dockml.lock").write_text("version = 1\n[environments.ner]\nid = 3\n")
    with pytest.raises(ProjectFileError, match=r"dockml\.lock:2: environments\.ner: it has no"):
        plan("ner")
    (project.parent / "dockml.lock").write_bytes(b"\xff")
    with pytest.raises(ProjectFileError, match=r"dockml\.lock: cannot be read"):
        plan("ner")


def test_a_dry_run_shows_what_moved(engine: FakeEngine, project: Path, installed: Install) -> None:
    add(engine, DIGEST)
    lock(engine, project.parent)
    project.write_text(f"[environments.ner]\nimage = '{IMAGE}'\nmemory = '1g'")
    choice, _ = choose_here("ner", RunOptions(), project.parent, engine)
    assert choice.notes[0].startswith("dockml.toml has changed since dockml.lock: an entry")


# --- what is installed ----------------------------------------------------------------------------

LISTS = Path(planning.__file__).parent / "resources" / "packages.py"


def test_packages_are_listed_as_an_import_finds_them(tmp_path: Path) -> None:
    """Those of wheels, of setuptools in its ways, twice, without a version, and in bytes of another time."""
    first, second = tmp_path / "first", tmp_path / "second"
    about = {
        first / "A.B_c-1.0.dist-info" / "METADATA": b"Name: A.B_c\nVersion: 1.0\n\nVersion: 9\n",
        first / "old-2.0.egg-info": b"Metadata-Version: 1.0\nName: old\nVersion: 2.0\n",
        first / "older.egg-info" / "PKG-INFO": b"Name: older\nVersion: 3.0\nAuthor: J\xf6rg\n",
        first / "egg-4.0-py3.6.egg" / "EGG-INFO" / "PKG-INFO": b"name: egg\nversion: 4.0\n",
        first / "none.dist-info" / "METADATA": b"Name: none\n",
        second / "a-b-c.dist-info" / "METADATA": b"Name: a-b-c\nVersion: 0.1\n",
    }
    for path, content in about.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (first / "empty.dist-info").mkdir()
    done = subprocess.run(
        [sys.executable, "-S", str(LISTS)],
        env={"PYTHONPATH": f"{first}:{second}:{tmp_path / 'missing'}"},
        capture_output=True,
        check=True,
    )
    listed = json.loads(done.stdout)
    assert listed["packages"] == {"a-b-c": "1.0", "old": "2.0", "older": "3.0", "egg": "4.0"}
    assert listed["python"] == sys.version.split()[0]
