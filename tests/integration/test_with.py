"""Extra packages on top of an image, on a real engine: `--with`, and a project file's."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

import dockml_magic
from dockml_magic import labels, planning
from dockml_magic.engine import DockerEngine, ImageState
from dockml_magic.errors import ImageBuildError, UntrustedProjectError
from dockml_magic.layers import ensure_layer
from dockml_magic.options import RunOptions
from dockml_magic.requirements import Extras
from tests.integration.conftest import Image, Layers
from tests.integration.index import Index, serving, use, write_package
from tests.integration.registry import own_certificate
from tests.waiting import wait_until

PIP = "dockml/pip:3.11"

Build = Callable[..., str]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    for version in ("1.0", "2.0"):
        write_package(folder, "tiny", version)
    write_package(folder, "big", "1.0", needs="tiny")
    return folder


@pytest.fixture
def index(packages: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index that this test's pip is told of, and no other."""
    with serving(packages, monkeypatch) as index:
        yield index


@pytest.fixture(autouse=True)
def only_our_layers(layers: Layers) -> None:
    """Have the engine's layers for ourselves in every test."""


@pytest.fixture
def build(engine: DockerEngine, image: Image) -> Build:
    """Give a function that builds a layer on a test image, and returns its reference."""

    def run(name: str, *lines: str, tell: Callable[[str], None] = print) -> str:
        base = engine.find_image(image(name))
        assert base is not None
        extras = Extras(lines=lines)
        ensure_layer(base, name, extras, engine, tell)
        return extras.reference(base.id)

    return run


def run_in(engine: DockerEngine, reference: str, code: str) -> str:
    """Return what a piece of Python prints in a container of an image."""
    return engine._client.containers.run(
        reference, entrypoint=["python3", "-c", code], remove=True, network="none"
    ).decode()


def config(engine: DockerEngine, reference: str) -> dict[str, Any]:
    """Return how an image runs; "/" and no folder are the same to the engine, as are no program and none."""
    found = engine._client.api.inspect_image(reference)["Config"]
    found["WorkingDir"] = found["WorkingDir"] or "/"
    return {k: v for k, v in found.items() if v and k not in ("Image", "Hostname")}


def containers(engine: DockerEngine) -> list[str]:
    """Return those in which this user's packages are installed."""
    found = engine.list({labels.USER: str(os.getuid())})
    return [container.name for container in found if container.name.startswith("dockml-with-")]


def test_packages_are_installed_once_and_then_need_no_network(
    index: Index, engine: DockerEngine, image: Image, workspace: Path,
    layers: Layers, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", "dockml_magic.environment")
    base = image(PIP)
    before = engine.find_image(base)
    with dockml_magic.start(base, "--with", "tiny==1.0") as environment:
        assert environment.run("import tiny; tiny.answer").text == "'1.0'"
    said = caplog.text
    caplog.clear()
    assert f"installing tiny==1.0 on top of {base}, once" in said
    assert "Successfully installed tiny-1.0" in said
    asked = len(index.asked)
    assert asked
    index.close()
    with dockml_magic.start(base, "--with", "tiny==1.0", "--network", "none") as environment:
        assert environment.run("import tiny; tiny.answer").text == "'1.0'"
        assert environment.reference.startswith("dockml/with:")
        assert environment.image_in_words == f"{base} with tiny==1.0"
    assert "tiny" not in caplog.text
    assert len(index.asked) == asked
    assert len(layers()) == 1
    assert engine.find_image(base) == before
    below, layer = config(engine, base), config(engine, environment.reference)
    for found in (below, layer):
        found.pop("Labels", None)
    assert layer == below  # no user, no variable of ours


def test_the_layer_runs_as_its_base_does(
    index: Index, engine: DockerEngine, image: Image, workspace: Path, build: Build,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "Dockerfile").write_text(
        f"FROM {image(PIP)}\nENV GREETING='hello you'\nUSER 1234:1234\nWORKDIR /srv\n"
        'ENTRYPOINT ["/usr/bin/env"]\nCMD ["true"]\nEXPOSE 8080\nLABEL whose=mine\n'
    )
    name = "dockml/with-test:base"
    engine.build(folder / "Dockerfile", name, {}, lambda line: None)
    try:
        base = engine.find_image(name)
        assert base is not None
        extras = Extras(lines=("tiny",))
        ensure_layer(base, name, extras, engine, print)
        reference = extras.reference(base.id)
        below, layer = config(engine, name), config(engine, reference)
        added = set(layer["Labels"]) - set(below["Labels"])
        ours = {label: layer["Labels"].pop(label) for label in added}
        assert layer == below
        assert ours == {
            labels.BASE: name,
            labels.REQUIREMENTS: "tiny",
            labels.VERSION: dockml_magic.__version__,
        }
        assert layer["Labels"][labels.USER] == str(os.getuid())  # as of its base, which we built
        check = "import os, tiny; print(os.getuid(), os.getcwd(), tiny.answer)"
        assert run_in(engine, reference, check) == "1234 /srv 2.0\n"
        engine._client.api.remove_image(reference)
    finally:
        engine._client.api.remove_image(name, force=True)


@pytest.mark.parametrize("name", ["dockml/bare:3.6", "dockml/r:4"])
def test_an_image_without_pip_is_given_one_and_keeps_none(
    index: Index, engine: DockerEngine, build: Build, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.6, and a Debian's own Python 3.11, which its packages are managed by."""
    # The pip itself comes by this machine's own settings.
    from dockml_magic import folders, layers

    own = dict(os.environ)
    for variable in ("PIP_CONFIG_FILE", "PIP_INDEX_URL"):
        monkeypatch.delenv(variable)
    for python in ("3.11", "3.6"):
        layers.pip_wheel(python, folders.cache_root() / "pips", name)
    for variable in ("PIP_CONFIG_FILE", "PIP_INDEX_URL"):
        monkeypatch.setenv(variable, own[variable])
    reference = build(name, "big")
    assert run_in(engine, reference, "import big, tiny; print(tiny.answer)") == "2.0\n"
    check = "import importlib.util as u; print(u.find_spec('pip'))"
    assert run_in(engine, reference, check) == "None\n"


def test_python_2_and_the_pip_of_its_time(index: Index, engine: DockerEngine, build: Build) -> None:
    reference = build("dockml/tensorflow:1.10.0-py27", "big", "tiny==1.0")
    said = engine._client.containers.run(
        reference, entrypoint=["python", "-c", "import big, tiny; print(tiny.answer)"], remove=True
    )
    assert said == b"1.0\n"


def test_nothing_private_gets_into_the_image(
    packages: Path, engine: DockerEngine, build: Build, tmp_path: Path, image: Image,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Behind a proxy that looks into TLS: its authority and the index's password are for pip only."""
    secure = Index(packages, own_certificate(tmp_path, "127.0.0.1"))
    secure.login = "ann:s3cr3t-of-ann"
    use(secure, monkeypatch)
    authority = (tmp_path / "certificate.pem").read_text()
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "certificate.pem"))
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(variable, raising=False)
    reference = build(PIP, "tiny==2.0")
    assert run_in(engine, reference, "import tiny; print(tiny.answer)") == "2.0\n"
    about = str(engine._client.api.history(reference)) + str(engine._client.api.inspect_image(reference))  # fmt: skip
    saved = b"".join(engine._client.images.get(reference).save())
    secrets = ["s3cr3t-of-ann", authority.splitlines()[1]]
    inside = "".join(_texts(saved))
    assert "answer = '2.0'" in inside  # so we have looked into the layers
    for secret in secrets:
        assert secret not in about
        assert secret not in inside
        assert secret not in capsys.readouterr().out
    secure.close()


def _texts(saved: bytes) -> Iterator[str]:
    """Give the content of all files of a saved image, layers unpacked."""
    with tarfile.open(fileobj=io.BytesIO(saved)) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is None:
                continue
            data = content.read()
            yield data.decode("latin-1")
            if tarfile.is_tarfile(io.BytesIO(data)) and member.name.endswith((".tar", "layer.tar")):
                with tarfile.open(fileobj=io.BytesIO(data)) as layer:
                    yield "\n".join(layer.getnames())


@pytest.mark.parametrize(
    ("line", "says", "hint"),
    [
        ("tinny", "the index has no tinny for Python 3.11", "Is the name spelled as on PyPI"),
        ("tiny==7", "there is no tiny==7 for Python 3.11", "1.0, 2.0"),
    ],
)
def test_what_pip_says_is_shown_with_what_to_do(
    index: Index, engine: DockerEngine, build: Build, layers: Layers,
    line: str, says: str, hint: str,
) -> None:  # fmt: skip
    with pytest.raises(ImageBuildError, match=says) as caught:
        build(PIP, line)
    assert re.search(hint, caught.value.hint)
    assert "ERROR: " in caught.value.log_tail
    assert containers(engine) == layers() == []


def test_without_a_network_it_says_so(
    index: Index, engine: DockerEngine, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.close()
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ImageBuildError, match="pip does not reach the index") as caught:
        build(PIP, "tiny")
    assert "layers that were built before" in caught.value.hint


def test_an_image_that_makes_up_its_python_is_given_nothing_of_this_machine(
    engine: DockerEngine,
    image: Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layers: Layers,
) -> None:
    """It needs a pip, and names the folder to look for one: there may be links under such a name."""
    (tmp_path / "secret").write_text("of the host")
    (tmp_path / "pip-1-py3-none-any.whl").symlink_to("secret")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import platform\nplatform.python_version = lambda: '/proc/self/cwd'\n"
    )
    (folder / "Dockerfile").write_text(
        f"FROM {image('dockml/bare:3.11')}\nENV PYTHONPATH=/more\nCOPY sitecustomize.py /more/\n"
    )
    name = "dockml/with-test:hostile"
    engine.build(folder / "Dockerfile", name, {}, lambda line: None)
    try:
        base = engine.find_image(name)
        assert base is not None
        with pytest.raises(ImageBuildError, match="says what no script of ours says: not the ver"):
            ensure_layer(base, name, Extras(lines=("tiny",)), engine, print)
        assert containers(engine) == layers() == []
    finally:
        engine._client.api.remove_image(name, force=True)


def test_an_interrupt_ends_the_build(
    index: Index, engine: DockerEngine, build: Build, layers: Layers
) -> None:
    held = threading.Event()
    index.on_request = lambda: (os.kill(os.getpid(), signal.SIGINT), held.wait(30))  # type: ignore[assignment, func-returns-value]
    try:
        with pytest.raises(KeyboardInterrupt):
            build(PIP, "tiny")
        assert containers(engine) == layers() == []
    finally:
        held.set()


def test_two_builds_at_once_give_one_layer(
    index: Index, engine: DockerEngine, image: Image, layers: Layers
) -> None:
    base = engine.find_image(image(PIP))
    assert base is not None
    told: list[str] = []
    found: list[ImageState] = []

    def run() -> None:
        found.append(ensure_layer(base, PIP, Extras(lines=("tiny",)), engine, told.append))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert {image.id for image in found} == set(layers())
    assert sum("installing tiny" in line for line in told) == 1


KILLED = """
import sys
from dockml_magic import layers
from dockml_magic.engine import connect
from dockml_magic.requirements import Extras

give = layers._Script.give

def impatient(self, files):
    give(self, {n: c.replace(b"PATIENCE = 300", b"PATIENCE = 40") for n, c in files.items()})

layers._Script.give = impatient
engine = connect()
layers.ensure_layer(engine.find_image(sys.argv[1]), sys.argv[1], Extras(lines=("tiny",)), engine, print)
"""


def has_volume(engine: DockerEngine, name: str) -> bool:
    """Tell whether an engine has a volume."""
    try:
        engine._client.api.inspect_volume(name)
    except docker.errors.NotFound:
        return False
    return True


def test_a_build_whose_notebook_was_killed_ends_itself(
    index: Index, engine: DockerEngine, image: Image, monkeypatch: pytest.MonkeyPatch,
    layers: Layers, tmp_path: Path,
) -> None:  # fmt: skip
    """Within a minute or so; here the container is told to be less patient."""
    held = threading.Event()
    index.on_request = lambda: held.wait(60)  # type: ignore[assignment, return-value]
    process = subprocess.Popen([sys.executable, "-c", KILLED, image(PIP)])
    try:
        wait_until(lambda: bool(index.asked), what="pip to ask")
        process.kill()
        process.wait()
        (name,) = containers(engine)
        about = engine._client.api.inspect_container(name)
        (volume,) = (mount["Name"] for mount in about["Mounts"])
        wait_until(lambda: not containers(engine), timeout=40, what="the container to end itself")
        assert layers() == []
        wait_until(lambda: not has_volume(engine, volume), what="its volume to go, which goes last")
    finally:
        held.set()


def test_requirements_of_the_project_file(
    index: Index, engine: DockerEngine, image: Image, workspace: Path,
    layers: Layers,
) -> None:  # fmt: skip
    (workspace / "requirements.txt").write_text("# ours\nbig\n-c versions.txt\n")
    (workspace / "versions.txt").write_text("tiny==1.0\n")
    (workspace / "dockml.toml").write_text(
        f'[environments.ner]\nimage = "{image(PIP)}"\nrequirements = "requirements.txt"\n'
    )
    # The index is on this machine, so pip runs in its network, which a file gets for no image unasked.
    with pytest.raises(UntrustedProjectError, match="the network 'host' while packages are inst"):
        dockml_magic.start("ner")
    assert layers() == index.asked == []
    planning.allow_project("ner", RunOptions(), workspace)
    with dockml_magic.start("ner") as environment:
        assert environment.run("import big, tiny; tiny.answer").text == "'1.0'"
    (workspace / "versions.txt").write_text("tiny==2.0\n")
    choice, base = planning.choose_here("ner", RunOptions(), workspace, engine)
    choice, layer = planning.with_extras(choice, base, engine)
    assert base is not None
    assert layer is None  # it would be built anew
