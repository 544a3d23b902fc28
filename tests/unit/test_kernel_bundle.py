from __future__ import annotations

import os
import socket
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dockml_magic import kernel_bundle
from dockml_magic.errors import KernelBundleError, KernelMissingError
from dockml_magic.kernel_bundle import (
    _least,
    _open_for_reading,
    _platforms,
    _unpack,
    bundle_name,
    closure,
    ensure_bundle,
)
from tests.unit.fake_engine import FakeEngine

PYTHONS = ("2.7", *(f"3.{minor}" for minor in range(5, 15)))
REPORT: dict[str, Any] = {
    "python": "3.11.2",
    "executable": "/usr/bin/python3",
    "machine": "x86_64",
    "libc": "glibc",
    "libc_version": "2.36",
}


def write_wheel(
    folder: Path, name: str, version: str, files: dict[str, str], *requires: str
) -> None:
    metadata = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(metadata))


def test_a_bundle_is_named_after_python_libc_and_machine() -> None:
    assert bundle_name(REPORT) == "cp311-glibc2.36-x86_64"
    assert bundle_name(REPORT | {"python": "2.7.18"}) == "cp27-glibc2.36-x86_64"


@pytest.mark.parametrize("python", PYTHONS)
def test_every_python_has_a_set_of_packages_with_all_that_a_kernel_needs(python: str) -> None:
    pins = closure(python)
    names = {name.lower().replace("-", "_") for name in pins}
    assert names >= {"ipykernel", "ipython", "jupyter_client", "jupyter_core", "pyzmq", "tornado"}
    assert names >= {"traitlets", "pygments"}
    assert all(version[0].isdigit() for version, _ in pins.values())


def test_an_unknown_python_has_no_set() -> None:
    assert closure("3.4") == closure("3.99") == {}


def test_platforms_are_those_that_a_c_library_can_load() -> None:
    platforms = _platforms(REPORT | {"libc_version": "2.17"})
    assert platforms[:3] == [
        "manylinux_2_17_x86_64",
        "manylinux2014_x86_64",
        "manylinux_2_16_x86_64",
    ]
    assert platforms[-2:] == ["manylinux_2_5_x86_64", "manylinux1_x86_64"]
    assert "manylinux2010_x86_64" in platforms
    assert _platforms(REPORT)[0] == "manylinux_2_36_x86_64"


@pytest.mark.parametrize(
    ("fact", "value"), [("python", "3.4.10"), ("libc", "musl"), ("machine", "riscv64")]
)
def test_a_python_that_no_kernel_is_known_for_is_told(
    fact: str, value: str, tmp_path: Path, engine: FakeEngine
) -> None:
    with pytest.raises(KernelMissingError, match=f"No kernel is known .*{value}"):
        ensure_bundle(REPORT | {fact: value}, tmp_path, engine, "me/mine:1", print)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_there_is_used(tmp_path: Path, engine: FakeEngine) -> None:
    folder = tmp_path / bundle_name(REPORT)
    folder.mkdir()
    (folder / "bundle.json").touch()
    told: list[str] = []
    assert ensure_bundle(REPORT, tmp_path, engine, "me/mine:1", told.append) == folder
    assert told == []
    assert engine.specs == []


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "built"
    folder.mkdir()
    return folder


def test_each_distribution_is_unpacked_into_a_folder_of_its_own(wheels: Path, built: Path) -> None:
    write_wheel(wheels, "one", "1.0", {"one/__init__.py": "1"}, "Two.Parts>=0.9")
    write_wheel(wheels, "two_parts", "2.0", {"two.py": "2"})
    assert _unpack(wheels, built) == [
        {"name": "one", "version": "1.0", "folder": "one", "at_least": "0"},
        {"name": "two_parts", "version": "2.0", "folder": "two_parts", "at_least": "0.9"},
    ]
    assert (built / "one" / "one" / "__init__.py").read_text() == "1"
    assert (built / "two_parts" / "two.py").read_text() == "2"


def test_data_folders_of_a_wheel_go_where_an_installer_puts_them(wheels: Path, built: Path) -> None:
    files = {
        "one/__init__.py": "",
        "one-1.0.data/purelib/one/pure.py": "pure",
        "one-1.0.data/platlib/one/plat.py": "plat",
        "one-1.0.data/scripts/one": "#!python",
    }
    write_wheel(wheels, "one", "1.0", files)
    _unpack(wheels, built)
    package = built / "one" / "one"
    assert sorted(path.name for path in package.iterdir()) == ["__init__.py", "plat.py", "pure.py"]
    assert not (built / "one" / "one-1.0.data").exists()


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_an_old_source_distribution_gives_its_python_files(
    wheels: Path, built: Path, tmp_path: Path, suffix: str
) -> None:
    source = tmp_path / "backports_abc-0.5"
    for path in ("package/__init__.py", "tests/__init__.py", "docs/x.txt", "module.py", "setup.py"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).touch()
    archive = wheels / f"backports_abc-0.5{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            for path_ in source.rglob("*"):
                zipped.write(path_, path_.relative_to(tmp_path))
    else:
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(source, source.name)
    (row,) = _unpack(wheels, built)
    assert (row["name"], row["version"]) == ("backports_abc", "0.5")
    found = sorted(path.name for path in (built / "backports_abc").iterdir())
    assert found == ["module.py", "package"]


@pytest.mark.parametrize(
    ("requirements", "least"),
    [
        ([], "0"),
        (["tornado"], "0"),
        (["tornado>=4.0", "tornado>=4.2,<7", "other>=9"], "4.2"),
        (["Tornado (>=6.1)"], "6.1"),
        (["tornado~=5.1", "tornado!=6"], "5.1"),
        (["tornado==5.*"], "5"),
        (["tornado>=9 ; extra == 'test'"], "0"),
        (["not a requirement at all", "tornado>=1"], "1"),
    ],
)
def test_the_least_version_is_what_the_others_ask_for(requirements: list[str], least: str) -> None:
    assert _least("tornado", requirements) == least


def test_any_user_of_a_container_may_read_a_bundle(built: Path) -> None:
    (built / "package").mkdir(mode=0o700)
    (built / "package" / "module.py").touch(mode=0o600)
    _open_for_reading(built)
    assert (built / "package").stat().st_mode & 0o777 == 0o755
    assert (built / "package" / "module.py").stat().st_mode & 0o777 == 0o644


# --- an image that is out for others ---------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    built = tmp_path / "bundle"
    (built / "zmq" / "zmq").mkdir(parents=True)
    (built / "zmq" / "zmq" / "__init__.py").write_text("version = 1")
    (built / "bundle.json").write_text("{}")
    return built


def test_an_image_that_compiles_a_bundle_adds_byte_code_and_nothing_else(
    bundle: Path, tmp_path: Path
) -> None:
    before = kernel_bundle._contents(bundle)
    cache = bundle / "zmq" / "zmq" / "__pycache__"
    cache.mkdir()
    (cache / "__init__.cpython-311.pyc").write_bytes(b"code")
    (bundle / "zmq" / "sitecustomize.py").write_text("evil()")
    (bundle / "zmq" / "link.pyc").symlink_to(tmp_path)
    (bundle / "zmq" / "folder").symlink_to(tmp_path)
    os.mkfifo(bundle / "zmq" / "fifo.pyc")
    kernel_bundle._keep_unchanged(bundle, before)
    found = {path.name for path in bundle.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert found == {"__init__.py", "__init__.cpython-311.pyc", "bundle.json"}


def test_what_an_image_adds_to_a_bundle_beside_byte_code_goes_whatever_it_is(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kernel_bundle._contents(bundle)
    cache = bundle / "zmq" / "zmq" / "__pycache__"
    hidden = bundle / "zmq" / "hidden"
    for folder in (
        cache / "deeper",
        bundle / "zmq" / "empty",
        bundle / "__pycache__" / "__pycache__",
        hidden / "__pycache__",
        hidden / "closed" / "more",
    ):
        folder.mkdir(parents=True)
    (cache / "__init__.cpython-311.pyc").write_bytes(b"code")
    (hidden / "closed" / "more" / "evil.py").touch()
    for path in (
        hidden / "evil.pyc",
        cache / "deeper" / "__init__.pyc",
        cache / "other.cpython-311.pyc",
        bundle / "zmq" / "sitecustomize.pyc",  # without a source, Python would import it
        bundle / "__pycache__" / "__init__.cpython-311.pyc",
    ):
        path.write_bytes(b"code")
    monkeypatch.chdir(bundle)  # for a short name
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("__init__.pyc")
    for folder in (hidden / "closed", hidden, cache):
        folder.chmod(0)
    kernel_bundle._keep_unchanged(bundle, before)
    assert {str(path.relative_to(bundle)) for path in bundle.rglob("*")} == {
        "__pycache__",
        "bundle.json",
        "zmq",
        "zmq/zmq",
        "zmq/zmq/__init__.py",
        "zmq/zmq/__pycache__",
        "zmq/zmq/__pycache__/__init__.cpython-311.pyc",
    }


def test_byte_code_of_python_2_lies_beside_its_source(bundle: Path) -> None:
    before = kernel_bundle._contents(bundle)
    code = bundle / "zmq" / "zmq" / "__init__.pyc"
    code.write_bytes(b"code")
    kernel_bundle._keep_unchanged(bundle, before)
    assert code.exists()


def test_a_bundle_has_no_rights_but_to_be_read_after_an_image_compiled_it(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(pins: object, python: object, report: object, into: Path) -> None:
        into.mkdir()
        write_wheel(into, "ipykernel", "6.0", {"ipykernel/__init__.py": ""})

    def compile_it(engine: object, image: object, executable: object, built: Path) -> None:
        cache = built / "ipykernel" / "ipykernel" / "__pycache__"
        cache.mkdir()
        (cache / "__init__.cpython-311.pyc").write_bytes(b"code")
        (cache / "__init__.cpython-311.pyc").chmod(0o6777)
        (built / "ipykernel" / "ipykernel" / "__init__.py").chmod(0o4755)
        cache.chmod(0o2777)

    monkeypatch.setattr(kernel_bundle, "_download", download)
    monkeypatch.setattr(kernel_bundle, "_compile", compile_it)
    target = ensure_bundle(REPORT, tmp_path, engine, "me/mine:1", print)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in target.rglob("*")}
    assert modes.pop("__init__.cpython-311.pyc") == 0o644
    assert modes.pop("__pycache__") == 0o755
    assert set(modes.values()) == {0o644, 0o755}


@pytest.mark.parametrize("change", ["write", "remove", "link"])
def test_a_bundle_whose_files_an_image_changed_is_given_to_no_other(
    bundle: Path, tmp_path: Path, change: str
) -> None:
    before = kernel_bundle._contents(bundle)
    path = bundle / "zmq" / "zmq" / "__init__.py"
    if change == "write":
        path.write_text("version = 2")
    else:
        path.unlink()
    if change == "link":
        (tmp_path / "same").write_text("version = 1")
        path.symlink_to(tmp_path / "same")
    with pytest.raises(KernelBundleError, match="The image changed the packages"):
        kernel_bundle._keep_unchanged(bundle, before)
