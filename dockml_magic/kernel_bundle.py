"""The kernel bundle: the packages that give an image without ipykernel a kernel.

Built once on the host from pinned wheels (`resources/kernel_closure.csv`), kept in the cache, mounted
read-only. One folder per distribution, so that the launcher in the container puts on `sys.path` only
what the image lacks or has too old. Byte code is compiled by the image's own Python, as the mount is read-only later.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import importlib.resources
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dockml_magic import labels
from dockml_magic._version import __version__
from dockml_magic.engine import Engine
from dockml_magic.errors import DockmlError, KernelBundleError, KernelMissingError
from dockml_magic.spec import BUNDLES, ContainerSpec, Mount

log = logging.getLogger(__name__)

_GLIBC_TAGS = {(2, 5): "manylinux1", (2, 12): "manylinux2010", (2, 17): "manylinux2014"}
"""Older names of manylinux tags (PEP 600)."""

_COMPILE_TIMEOUT = 300.0

_CODE = "__pycache__"
"""The folder in which Python 3 keeps byte code, beside its sources."""


def bundle_name(report: Mapping[str, Any]) -> str:
    """Return the folder's name for an interpreter, as `resources/launch.py` looks for it."""
    version = "".join(str(report["python"]).split(".")[:2])
    return f"cp{version}-{report['libc']}{report['libc_version']}-{report['machine']}"


def closure(python: str) -> dict[str, tuple[str, bool]]:
    """Return {package: (version, has a wheel)} of the set for a Python such as "3.6"."""
    file = importlib.resources.files("dockml_magic") / "resources" / "kernel_closure.csv"
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return {
        r["package"]: (r["version"], r["kind"] != "sdist") for r in rows if r["python"] == python
    }


def ensure_bundle(
    report: Mapping[str, Any], folder: Path, engine: Engine, image: str, tell: Callable[[str], None]
) -> Path:
    """Return the bundle for an interpreter, building it where it is missing.

    Parameters
    ----------
    report : mapping
        What the launcher said of the interpreter: python, executable, libc, libc_version, machine.
    folder : Path
        The folder of all bundles.
    engine, image
        Used once to compile the bundle with the image's own Python.
    tell : callable
        Gets a line for the user when something takes time.

    Raises
    ------
    KernelMissingError
        If no set of packages is known for this Python or C library.
    KernelBundleError
        If the packages cannot be had; carries pip's last lines.
    """
    report = {"python": "?", "libc": "?", "machine": "?", **report}
    python = ".".join(str(report["python"]).split(".")[:2])
    pins = closure(python)
    if (
        not pins
        or report["libc"] != "glibc"
        or not report.get("libc_version")
        or not report.get("executable")
        or report["machine"] not in ("x86_64", "aarch64")
    ):
        raise KernelMissingError(
            f"No kernel is known for Python {report['python']} on {report['libc']}, {report['machine']}.",
            hint="Use an image with its own ipykernel, or a Python from 2.7 and 3.5 on glibc.",
        )
    target = folder / bundle_name(report)
    if (target / "bundle.json").is_file():
        return target
    try:
        _build(target, pins, python, report, engine, image, tell)
    except DockmlError:
        raise
    except OSError as error:
        raise KernelBundleError(
            f"The kernel bundle for Python {python} could not be built: {error.strerror or error}.",
            hint=f"It takes some 150 MB in {folder}: make room there, or set XDG_CACHE_HOME. See: df -h",
        ) from error
    return target


def _build(
    target: Path,
    pins: Mapping[str, tuple[str, bool]],
    python: str,
    report: Mapping[str, Any],
    engine: Engine,
    image: str,
    tell: Callable[[str], None],
) -> None:
    folder = target.parent
    with _locked(folder / f".{target.name}.lock"):
        if (target / "bundle.json").is_file():
            return
        tell(f"building the kernel bundle for Python {python}, once; this takes a moment")
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{target.name}-") as scratch:
            built = Path(scratch) / "bundle"
            built.mkdir()
            _download(pins, python, report, Path(scratch) / "wheels")
            distributions = _unpack(Path(scratch) / "wheels", built)
            (built / "bundle.json").write_text(
                json.dumps({"python": python, "distributions": distributions}, indent=1)
            )
            _open_for_reading(built)
            if engine.facts.shares_files:
                before = _contents(built)
                _compile(engine, image, str(report["executable"]), built)
                _keep_unchanged(built, before)
                _open_for_reading(built)
            shutil.rmtree(target, ignore_errors=True)
            built.rename(target)


def mark_used(report: Mapping[str, Any], folder: Path) -> None:
    """Note that a start used this interpreter's bundle: `dockml prune` removes those that none has used for long."""
    with contextlib.suppress(OSError, KeyError):
        os.utime(folder / bundle_name(report) / "bundle.json")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time build a bundle."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(
    pins: Mapping[str, tuple[str, bool]], python: str, report: Mapping[str, Any], into: Path
) -> None:
    """Fetch the wheels for a Python that is not ours; pip follows the host's index settings."""
    short = python.replace(".", "")
    if python == "2.7":
        abi = "cp27mu" if report.get("wide_unicode") else "cp27m"
    else:
        abi = f"cp{short}m" if python in ("3.5", "3.6", "3.7") else f"cp{short}"
    target = ["--python-version", str(report["python"]), "--implementation", "cp"]
    for tag in (abi, "abi3", "none"):
        target += ["--abi", tag]
    for platform in _platforms(report):
        target += ["--platform", platform]
    wheels = [f"{name}=={version}" for name, (version, has_wheel) in pins.items() if has_wheel]
    sources = [f"{name}=={version}" for name, (version, has_wheel) in pins.items() if not has_wheel]
    _pip_download([*target, "--only-binary", ":all:", *wheels], into)
    for source in sources:
        _pip_download(["--no-binary", ":all:", source], into)


def _platforms(report: Mapping[str, Any]) -> list[str]:
    """Return the wheel platforms that a C library of this version can load."""
    major, minor = map(int, str(report["libc_version"]).split(".")[:2])
    machine = report["machine"]
    platforms = []
    for version in range(minor, 4, -1):
        platforms.append(f"manylinux_{major}_{version}_{machine}")
        if alias := _GLIBC_TAGS.get((major, version)):
            platforms.append(f"{alias}_{machine}")
    return platforms


def _pip_download(arguments: list[str], into: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(into)]
    done = subprocess.run(  # noqa: S603 - no shell; the words come from our own table
        [*command, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-4:])
        if "No space left" in tail or "quota exceeded" in tail:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise KernelBundleError(
            f"The packages for a kernel could not be downloaded:\n{tail}",
            hint="This is needed once per Python version. Behind a company proxy, set pip's index-url "
            "or https_proxy as for any pip install, then try again.",
        )


def _unpack(wheels: Path, built: Path) -> list[dict[str, str]]:
    """Unpack each distribution into a folder of its own; return the list for bundle.json."""
    versions: dict[str, str] = {}
    requirements: list[str] = []
    for file in sorted(wheels.iterdir()):
        name, version = (
            _unpack_wheel(file, built, requirements)
            if file.suffix == ".whl"
            else _unpack_source(file, built)
        )
        versions[name] = version
    return [
        {"name": name, "version": version, "folder": name, "at_least": _least(name, requirements)}
        for name, version in sorted(versions.items())
    ]


def _unpack_wheel(file: Path, built: Path, requirements: list[str]) -> tuple[str, str]:
    name, version = _normal(file.name.split("-")[0]), file.name.split("-")[1]
    from email.parser import HeaderParser  # here: `%load_ext` does without it

    folder = built / name
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)  # zipfile keeps names inside
        metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(metadata).decode("utf-8"))
        requirements += headers.get_all("Requires-Dist") or []
    for data in folder.glob("*.data"):
        for part in ("purelib", "platlib"):
            if (data / part).is_dir():
                shutil.copytree(data / part, folder, dirs_exist_ok=True)
        shutil.rmtree(data)
    return name, version


def _unpack_source(file: Path, built: Path) -> tuple[str, str]:
    """Take the Python files of an old source distribution; their C parts are optional speed-ups."""
    import tarfile  # here: `%load_ext` does without it

    stem = file.name.removesuffix(".tar.gz").removesuffix(".zip")
    name, version = _normal(stem.rpartition("-")[0]), stem.rpartition("-")[2]
    with tempfile.TemporaryDirectory() as scratch:
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                archive.extractall(scratch)  # noqa: S202 - likewise
        else:
            with tarfile.open(file) as archive:
                archive.extractall(scratch, filter="data")
        source = Path(scratch) / stem
        folder = built / name
        folder.mkdir()
        for entry in source.iterdir():
            if (entry / "__init__.py").is_file() and entry.name not in ("test", "tests"):
                shutil.copytree(entry, folder / entry.name)
            elif entry.suffix == ".py" and entry.name != "setup.py":
                shutil.copy(entry, folder)
    return name, version


def _normal(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


def _least(name: str, requirements: list[str]) -> str:
    """Return the oldest version of a distribution that the others in the bundle accept."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.version import Version

    least = Version("0")
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if _normal(requirement.name) != name or "extra" in str(requirement.marker or ""):
            continue
        for specifier in requirement.specifier:
            if specifier.operator in (">=", ">", "==", "~="):
                least = max(least, Version(specifier.version.removesuffix(".*")))
    return str(least)


def _open_for_reading(folder: Path) -> None:
    """Let any user of a container read it, whatever our umask is."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _contents(folder: Path) -> dict[Path, str]:
    """Return the digest of each file."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def _keep_unchanged(built: Path, before: Mapping[Path, str]) -> None:
    """See to it that an image that compiled a bundle has added byte code of its sources, and done nothing else.

    Other images get the bundle too.

    Raises
    ------
    KernelBundleError
        If a file is another one than it was.
    """
    known = {folder for path in before for folder in path.parents}
    folders = [built]
    while folders:
        folder = folders.pop()
        folder.chmod(0o755)  # one that nobody may read would hide what is in it
        for path in folder.iterdir():
            mode = path.lstat().st_mode
            is_code = (
                path.suffix in (".pyc", ".pyo") and stat.S_ISREG(mode) and _source(path) in before
            )
            if stat.S_ISDIR(mode) and (path in known or (path.name == _CODE and folder in known)):
                folders.append(path)
            elif stat.S_ISDIR(mode):
                _remove_folder(path)
            elif stat.S_ISLNK(mode) or (path not in before and not is_code):
                path.unlink()
    if {path: digest for path, digest in _contents(built).items() if path in before} != before:
        raise KernelBundleError(
            "The image changed the packages of the kernel bundle while it compiled them, which no Python does.",
            hint="Do not use this image, or find out what its Python is.",
        )


def _source(code: Path) -> Path:
    """Return the source that a file of byte code is of: Python would import one without a source, too."""
    folder = code.parent.parent if code.parent.name == _CODE else code.parent
    return folder / f"{code.name.partition('.')[0]}.py"


def _remove_folder(folder: Path) -> None:
    """Remove a folder that an image has made, whoever may read it and what is in it."""
    folder.chmod(0o700)
    for place, names, _ in os.walk(folder):  # looks into those when it has been told of them
        for path in (Path(place, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder)


def _compile(engine: Engine, image: str, executable: str, built: Path) -> None:
    """Write the byte code with the image's own Python; without it, each start would compile anew."""
    container = engine.create(
        ContainerSpec(
            image=image,
            name=f"dockml-compile-{built.parent.name.strip('.')}",
            entrypoint=(executable, "-m", "compileall", "-q", str(BUNDLES)),
            user=f"{os.getuid()}:{os.getgid()}",
            workdir=PurePosixPath("/"),
            labels={labels.VERSION: __version__, labels.USER: str(os.getuid())},
            env={},
            mounts=(Mount(target=BUNDLES, host_path=built),),
            network="none",
            auto_remove=False,
        )
    )
    try:
        engine.start(container)
        code = engine.wait(container, _COMPILE_TIMEOUT)
        if code:  # some files in wheels are templates for another Python: slower, not wrong
            log.debug("compileall ended with %s", code)
    finally:
        engine.remove(container)
