"""`dockml prune` on an engine of its own: ours goes, and whatever a stranger calls his things, they stay."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import docker
import pytest

from dockml_magic import folders, labels, prune
from dockml_magic import kept as notes
from dockml_magic.engine import DockerEngine, build_reference, connect
from dockml_magic.engine.pulls import KeptLayers
from dockml_magic.options import build_parser
from dockml_magic.prune import decide, find_holdings
from dockml_magic.spec import RUNTIME, ContainerSpec, Mount
from tests.images.build import build
from tests.integration.registry import MirroredEngine, can_run_a_second_engine
from tests.integration.strangers import untouched_strangers

IMAGE = "dockml/bare:3.11"

pytestmark = pytest.mark.usefixtures(
    "own_bundles"
)  # those of the other tests would be removed, too
WAITS = ["python3", "-c", "import time; time.sleep(600)"]
ME = str(os.getuid())
PULLED = "tensorflow/tensorflow:1.10.0"


def our_labels(session: str, **changes: str) -> dict[str, str]:
    found = {
        labels.VERSION: "0.1",
        labels.NAME: "tf1.10",
        labels.WORKSPACE: "/home/ada",
        labels.USER: ME,
        labels.SESSION: session,
    }
    return found | changes


@pytest.fixture(scope="module")
def second() -> Iterator[str]:
    """Start an engine that nobody else uses, with one image; give its endpoint."""
    if not can_run_a_second_engine():
        pytest.skip("only root can start a second engine; it takes dockerd, unshare and ip")
    build([IMAGE])
    with tempfile.TemporaryDirectory(prefix="dk-prune-") as name:
        second = MirroredEngine(Path(name), "127.0.0.1:9")
        try:
            host = ["docker", "--host", second.endpoint]
            with subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE) as saved:
                subprocess.run([*host, "load"], stdin=saved.stdout, check=True, capture_output=True)
            yield second.endpoint
        finally:
            second.close()


@pytest.fixture
def other(second: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerEngine]:
    """Give the second engine, which has nothing but the image."""
    monkeypatch.setenv("DOCKER_HOST", second)
    engine = connect(second)
    with untouched_strangers(engine, IMAGE):
        yield engine
    client = engine._client
    for container in client.containers.list(all=True):
        container.remove(force=True)
    for image in client.images.list():
        if IMAGE not in image.tags:
            client.images.remove(image.id, force=True)
    client.networks.prune()
    for volume in client.volumes.list():
        volume.remove()
    client.close()


@pytest.fixture
def client(other: DockerEngine) -> docker.DockerClient:
    return other._client


@pytest.fixture
def at_any_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let things go that were made just now."""
    monkeypatch.setattr(prune, "YOUNG", -5.0)


def run(engine: DockerEngine, *words: str) -> tuple[int, str]:
    """Run `dockml prune`; return its exit code and what it says."""
    parser, said = build_parser("dockml prune", ""), list[str]()
    prune.add_prune_arguments(parser)
    parsed: argparse.Namespace = parser.parse_args(words)
    return prune.prune(engine, parsed, said.append), "\n".join(said)


def create_ours(engine: DockerEngine, session: str, **changes: Any) -> str:
    """Create a container as a start does."""
    folder = folders.RuntimeFolder(folders.runtime_root() / session).shared
    folder.mkdir(parents=True, exist_ok=True)
    spec: dict[str, Any] = {
        "image": IMAGE,
        "name": f"dockml-{session}",
        "entrypoint": tuple(WAITS),
        "user": "0:0",
        "workdir": PurePosixPath("/"),
        "labels": our_labels(session),
        "env": {},
        "mounts": (Mount(target=RUNTIME, host_path=folder),),
        "network": "none",
        "auto_remove": False,
    }
    return engine.create(ContainerSpec(**spec | changes))


def build_ours(engine: DockerEngine, folder: Path, content: str) -> str:
    """Build a Dockerfile as %docker_env does; return the image's name."""
    folder.mkdir(exist_ok=True)
    dockerfile = folder / "Dockerfile"
    dockerfile.write_text(content)
    reference = build_reference(dockerfile)
    engine.build(dockerfile, reference, {}, lambda line: None)
    return reference


def keep_layers(engine: DockerEngine) -> str:
    """Keep a layer as a pull does that is stopped; return the image's id."""
    layer = engine._client.api.inspect_image(IMAGE)["RootFS"]["Layers"][0]
    KeptLayers(engine._client.api, PULLED, engine.facts)._replace_by([layer])
    (kept,) = (i for i in engine.images({labels.KEEPS: ""}) if len(i.labels) == 2)
    return kept.id


def note_as_kept(engine: DockerEngine, session: str, container_id: str) -> Path:
    """Note a container as a kept environment's."""
    container = {"container_id": container_id, "session": session, "plan": {"kept": True}}
    notes.write("tf1.10", {"workspace": "/home/ada", "container": container}, engine)
    return folders.state_root() / "kept" / f"{session}.json"


def everything_of(client: docker.DockerClient) -> dict[str, set[str]]:
    """Return the ids of all that an engine has."""
    return {
        "containers": {c.id for c in client.containers.list(all=True)},
        "images": {image.id for image in client.images.list()},
        "names": {tag for image in client.images.list() for tag in image.tags},
        "volumes": {volume.id for volume in client.volumes.list()},
        "networks": {network.id for network in client.networks.list()},
    }


def make_strangers_things(client: docker.DockerClient, tmp_path: Path) -> None:
    """Make what looks like ours, and is not, in every way that labels and names allow."""

    def stranger(name: str, image: str = IMAGE, **more: Any) -> Any:
        return client.containers.create(image, WAITS, name=name, network_mode="none", **more)

    session = "0123456789ab"
    mounted = {"volumes": {str(tmp_path / session): {"bind": str(RUNTIME)}}}
    (tmp_path / session).mkdir()
    stranger(f"dockml-{session}", **mounted)
    for number, label in enumerate(our_labels(session)):
        partly = our_labels(session)
        del partly[label]
        stranger(f"dockml-partly-{number}", labels=partly, **mounted)
    stranger("dockml-another-users", labels=our_labels(session, **{labels.USER: "4242"}), **mounted)
    stranger("dockml-elsewhere", labels=our_labels(session))
    stranger("web", labels={labels.VERSION: "0.1", labels.USER: ME})
    stranger("runs", labels=our_labels(session), **mounted).start()
    (paused := stranger("is-paused", labels=our_labels(session), **mounted)).start()
    paused.pause()
    (ended := stranger("has-ended", entrypoint=["python3", "-c", "pass"])).start()
    ended.wait()
    ended.commit("mine", "1", changes=[f"LABEL {k}={v}" for k, v in our_labels(session).items()])
    stranger("of-a-committed-image", "mine:1", **mounted)

    def build_as(tag: str | None, **its_labels: str) -> None:
        words = " ".join(f'"{name}"="{value}"' for name, value in its_labels.items())
        path = tmp_path / "strangers"
        path.mkdir(exist_ok=True)
        (path / "Dockerfile").write_text(f"FROM {IMAGE}\nLABEL of={tag} {words}")
        client.images.build(path=str(path), tag=tag)

    built = {labels.BUILT_FROM: "/not/there/Dockerfile", labels.USER: ME}
    build_as(f"dockml/build:{'a' * 64}")
    build_as(f"dockml/build:{'b' * 64}", **{labels.USER: ME})
    build_as(f"dockml/build:{'c' * 64}", **{**built, labels.USER: "4242"})
    build_as("dockml/build:latest", **built)
    build_as("mine:2", **built)
    build_as(None, **built)
    build_as(None, **{labels.KEEPS: PULLED, labels.USER: ME})
    client.volumes.create("dockml-0123456789ab", labels=our_labels(session))
    client.networks.create("dockml-0123456789ab", driver="bridge", labels=our_labels(session))


def test_ours_goes_and_a_strangers_stays_whatever_he_calls_it(
    other: DockerEngine, client: docker.DockerClient, tmp_path: Path, at_any_age: None
) -> None:
    make_strangers_things(client, tmp_path)
    in_use = build_ours(other, tmp_path / "in-use", f"FROM {IMAGE}\nENV A=1")
    client.containers.create(in_use, WAITS, name="a-strangers", network_mode="none")
    also_mine = build_ours(other, tmp_path / "also-mine", f"FROM {IMAGE}\nENV A=2")
    client.images.get(also_mine).tag("mine", "3")
    running = create_ours(other, "bbbbbbbbbbbb")
    other.start(running)
    stay = everything_of(client)

    never_started = create_ours(other, "cccccccccccc")
    kept = create_ours(other, "dddddddddddd", entrypoint=("python3", "-c", "pass"))
    other.start(kept)
    other.wait(kept, 30)
    changed = build_ours(other, tmp_path / "changed", f"FROM {IMAGE}\nENV A=3")
    (tmp_path / "changed/Dockerfile").write_text("FROM scratch")
    current = build_ours(other, tmp_path / "current", f"FROM {IMAGE}\nENV A=4")
    layers = keep_layers(other)
    lost = folders.runtime_root() / "eeeeeeeeeeee"
    lost.mkdir()
    noted = note_as_kept(other, "dddddddddddd", kept)
    of_nothing = note_as_kept(other, "eeeeeeeeeeee", "e" * 64)

    before = everything_of(client)
    code, said = run(other)
    assert code == 0
    assert everything_of(client) == before, "a dry run changes nothing"
    listed = {row["id"] for row in json.loads(run(other, "--json")[1])}
    ours_by_default = {
        never_started,
        client.images.get(changed).id,
        layers,
        str(lost),
        str(of_nothing),
    }
    ours_by_default.add(str(folders.runtime_root() / "cccccccccccc"))
    assert listed == ours_by_default

    code, said = run(other, "--force")
    assert code == 0, said
    after = everything_of(client)
    assert before["containers"] - after["containers"] == {never_started}
    assert before["names"] - after["names"] == {changed}
    assert not lost.exists()
    assert (noted.exists(), of_nothing.exists()) == (True, False)
    assert (folders.runtime_root() / "bbbbbbbbbbbb").exists()
    assert (folders.runtime_root() / "dddddddddddd").exists()

    code, said = run(other, "--force", "--all")
    assert code == 0, said
    assert everything_of(client) == stay
    assert kept not in stay["containers"]
    assert not noted.exists()
    assert current not in stay["names"]


def test_what_was_made_just_now_stays(
    other: DockerEngine, client: docker.DockerClient, tmp_path: Path
) -> None:
    create_ours(other, "cccccccccccc")
    build_ours(other, tmp_path / "changed", f"FROM {IMAGE}\nENV A=5")
    (tmp_path / "changed/Dockerfile").write_text("FROM scratch")
    keep_layers(other)
    (folders.runtime_root() / "eeeeeeeeeeee").mkdir()
    before = everything_of(client)
    code, said = run(other, "--force", "--all")
    assert (code, everything_of(client)) == (0, before), said
    assert (folders.runtime_root() / "eeeeeeeeeeee").exists()


def test_only_what_an_image_has_alone_is_said_to_be_freed(
    other: DockerEngine, client: docker.DockerClient, tmp_path: Path, at_any_age: None
) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big/file").write_bytes(os.urandom(5_000_000))
    build_ours(other, tmp_path / "big", f"FROM {IMAGE}\nCOPY file /file")
    (tmp_path / "big/Dockerfile").unlink()
    (left,) = (left for left in decide(find_holdings(other)) if left.kind == "image")
    assert 5_000_000 <= left.size < 5_100_000
    before = client.df()["LayersSize"]
    assert prune.remove(left, other).problem == ""
    assert before - client.df()["LayersSize"] == left.size


def test_one_that_somebody_takes_into_use_meanwhile_is_told_and_the_others_go(
    other: DockerEngine,
    client: docker.DockerClient,
    tmp_path: Path,
    at_any_age: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = create_ours(other, "cccccccccccc")
    created = create_ours(other, "dddddddddddd")
    image = build_ours(other, tmp_path / "changed", f"FROM {IMAGE}\nENV A=6")
    (tmp_path / "changed/Dockerfile").write_text("FROM scratch")

    def find(engine: DockerEngine) -> prune.Holdings:
        holdings = find_holdings(engine)
        engine.start(taken)
        client.containers.create(image, WAITS, name="a-strangers", network_mode="none")
        return holdings

    monkeypatch.setattr(prune, "find_holdings", find)
    code, said = run(other, "--force")
    assert code == 1
    assert said.count("not removed: ") == 3  # the container, its folder, the image
    assert "You cannot remove a running container" in said
    state = other.inspect(taken)
    assert state is not None
    assert state.status == "running"
    assert other.inspect(created) is None
    assert other.find_image(image) is not None


def test_the_command_does_as_the_function_does(
    other: DockerEngine, tmp_path: Path, own_folders: Path
) -> None:
    lost = folders.runtime_root() / "eeeeeeeeeeee"
    (lost / "shared").mkdir(parents=True)
    (lost / "shared" / "launch.py").touch()
    for path in (lost / "shared" / "launch.py", lost / "shared", lost):
        os.utime(path, (0, 0))

    def dockml(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from dockml_magic.cli import main; main()"]
        return subprocess.run([*command, *words], capture_output=True, text=True, check=False)

    dry = dockml("prune")
    assert dry.returncode == 0, dry.stderr
    assert "eeeeeeeeeeee" in dry.stdout
    assert lost.exists()
    assert dockml("prune", "--force", "--json").returncode == 0
    assert not lost.exists()
    assert dockml("prune", "--what").returncode == 1
