"""The lock on a real engine: from a real registry, with packages from an index, in old and new Pythons."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

import dockml_magic
from dockml_magic import labels
from dockml_magic.engine import DockerEngine
from dockml_magic.errors import ImageUnavailableError
from dockml_magic.layers import list_packages
from dockml_magic.lock import parse_lock
from dockml_magic.options import RunOptions
from dockml_magic.planning import allow_project, check_lock, lock_environments, make_plan
from tests.integration.conftest import Image, Layers
from tests.integration.index import Index, serving, write_package
from tests.integration.registry import can_run_a_second_engine, push, running_registry

PIP = "dockml/pip:3.11"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    write_package(folder, "tiny", "1.0")
    write_package(folder, "big", "1.0", needs="tiny")
    return folder


@pytest.fixture
def index(packages: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with serving(packages, monkeypatch) as index:
        yield index


@pytest.fixture
def remove(engine: DockerEngine, layers: Layers) -> Callable[[str], None]:
    """Give a function that removes an image, if it is there."""

    def remove_image(reference: str) -> None:
        with contextlib.suppress(docker.errors.ImageNotFound):
            engine._client.api.remove_image(reference, force=True)

    return remove_image


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    """A registry that the engine reaches on the loopback."""
    if not can_run_a_second_engine():
        pytest.skip("it takes docker-registry")
    with (
        tempfile.TemporaryDirectory(prefix="dk-lock-") as folder,
        running_registry(Path(folder)) as port,
    ):
        yield f"127.0.0.1:{port}"


def lines_of(code: Callable[[Callable[[str], None]], object]) -> list[str]:
    told: list[str] = []
    code(told.append)
    return told


def start(
    name: str, workspace: Path, engine: DockerEngine, **options: object
) -> tuple[str, list[str]]:
    """Return what a start of NAME would run, fetched, and what is told."""
    told: list[str] = []
    asked = RunOptions(**options)  # type: ignore[arg-type]
    plan = make_plan(name, asked, workspace, engine=engine, tell=told.append)
    return plan.choice.reference, told


def test_an_image_is_held_by_its_digest_and_packages_by_their_versions(
    registry: str, engine: DockerEngine, image: Image, workspace: Path, index: Index,
    remove: Callable[[str], None], packages: Path, tmp_path: Path,
) -> None:  # fmt: skip
    client, tag = engine._client, f"{registry}/team/ner:1"
    client.api.tag(image(PIP), f"{registry}/team/ner", "1")
    push(client, tag)
    (workspace / "dockml.toml").write_text(f'[environments.ner]\nimage = "{tag}"\nwith = ["big"]\n')
    allow_project("ner", RunOptions(), workspace)  # the index is on this machine
    try:
        locked = lock_environments([], workspace, engine, print).environments["ner"]
        assert locked.digest.startswith(f"{registry}/team/ner@sha256:")
        assert {"big==1.0", "tiny==1.0", "pip==23.2.1"} <= set(locked.packages)
        assert locked.python.startswith("3.11.")
        reference, told = start("ner", workspace, engine)
        assert told == []  # the layer that was locked is here
        # The world moves on: the tag is another image, and the index has another version.
        write_package(packages, "tiny", "2.0")
        client.api.tag(image("dockml/pip:3.11"), f"{registry}/team/kept", "1")
        (tmp_path / "Dockerfile").write_text(f"FROM {image(PIP)}\nLABEL moved=on\n")
        engine.build(tmp_path / "Dockerfile", tag, {}, lambda line: None)
        push(client, tag)
        moved = (
            f"{tag} is another image here than dockml.lock says; the locked one is used. "
            "To lock what there is now: dockml lock ner"
        )
        assert start("ner", workspace, engine) == (reference, [moved])
        assert check_lock([], workspace, engine) == [f"ner: {moved}"]
        # Another machine has nothing of it: the image comes by its digest, the packages at their versions.
        for here in (reference, f"{registry}/team/kept:1", tag):
            remove(here)
        for found in client.api.images(filters={"label": labels.REQUIREMENTS}):
            if (found["Labels"] or {}).get(labels.BASE) == tag:
                remove(found["Id"])
        remove(locked.digest)
        assert engine.find_image(locked.digest) is None
        with dockml_magic.start("ner", folder=workspace) as environment:
            assert environment.reference == reference
            assert environment.run("import big, tiny; tiny.answer").text == "'1.0'"
        assert engine.find_image(locked.digest) is not None
        assert engine.find_image(tag) is None  # nobody asked for what it is now
        # Nobody has to ask anybody for what is here.
        index.close()
        assert start("ner", workspace, engine) == (reference, [])
    finally:
        for here in (tag, f"{registry}/team/kept:1", locked.digest):
            remove(here)


def test_a_locked_image_of_this_machine_only_is_told_where_it_is_gone(
    engine: DockerEngine,
    image: Image,
    workspace: Path,
    remove: Callable[[str], None],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    name = "dockml/lock-test:1"
    (workspace / "dockml.toml").write_text(f'[environments.ner]\nimage = "{name}"\n')
    try:
        for number in (1, 2):
            (folder / "Dockerfile").write_text(f"FROM {image(PIP)}\nLABEL number={number}\n")
            engine.build(folder / "Dockerfile", name, {}, lambda line: None)
            if number == 1:
                told = lines_of(lambda tell: lock_environments([], workspace, engine, tell))
                assert any("another machine will not get it" in line for line in told)
                text = (workspace / "dockml.lock").read_text()
                locked = parse_lock(workspace / "dockml.lock", text).environments["ner"]
        assert start("ner", workspace, engine)[0] == locked.id
        remove(locked.id)
        with pytest.raises(ImageUnavailableError, match="no registry has it"):
            start("ner", workspace, engine)
        assert start("ner", workspace, engine, image=name)[0] == name
    finally:
        remove(name)
        remove(locked.id)


@pytest.mark.parametrize(
    ("name", "python", "has"),
    [
        ("dockml/bare:3.13", "3.13.", set()),
        ("dockml/bare:3.6", "3.6.", set()),
        ("dockml/tensorflow:1.10.0-py27", "2.7.", {"tensorflow==1.10.0", "enum34", "pip==20.3.4"}),
        ("dockml/r:4", "3.11.", set()),
    ],
)
def test_what_is_installed_is_listed_in_any_python(
    engine: DockerEngine, image: Image, layers: Layers, name: str, python: str, has: set[str]
) -> None:
    found = engine.find_image(image(name))
    assert found is not None
    inventory = list_packages(found, name, engine)
    assert inventory.python.startswith(python)
    names = {line.partition("==")[0] for line in inventory.packages}
    assert has <= {*inventory.packages, *names}
    assert "ipykernel" not in names or has


def test_the_command_locks_and_checks(
    engine: DockerEngine, image: Image, layers: Layers, workspace: Path
) -> None:
    def dockml(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from dockml_magic.cli import main; main()", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=workspace,
        )

    (workspace / "dockml.toml").write_text(f'[environments.ner]\nimage = "{image(PIP)}"\n')
    done = dockml("lock", "--check")
    assert (done.returncode, "has no dockml.lock" in done.stdout) == (1, True)
    done = dockml("lock")
    assert done.returncode == 0, done.stderr
    assert f"{PIP}, Python 3.11." in done.stdout
    assert dockml("lock", "--check").stdout == "dockml.lock is up to date.\n"
    (workspace / "dockml.toml").write_text('[environments.ner]\nimage = "dockml/bare:3.11"\n')
    done = dockml("lock", "--check")
    assert done.returncode == 1
    assert "the image is 'dockml/bare:3.11', was 'dockml/pip:3.11'" in done.stdout
    (workspace / "dockml.lock").write_text("version = 1\nversion = 2\n")
    done = dockml("lock", "--check")
    assert done.returncode == 1
    assert "dockml.lock:2:" in done.stderr
    assert "Traceback" not in done.stderr
