"""The images that the tests' images are made from: pulled, or else assembled from local parts.

An official base such as ``python:3.6-slim`` is pulled where the engine reaches its registry. Where
it does not, an image of the same name is made of this host's own Debian release (mmdebstrap) and a
CPython that is installed here, copied to /usr/local as in the official one. A Python that few have
installed yet comes from a newer Debian. Such images carry the label ``dockml.test.assembled``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import docker
import requests
from docker.errors import APIError, BuildError, ImageNotFound
from docker.models.images import Image

from tests.images import python35
from tests.machine import packages
from tests.machine.packages import say

PYTHONS = ("2.7", "3.6", "3.9", "3.11", "3.13")
DEBIAN = "debian:stable-slim"
ASSEMBLED = "dockml.test.assembled"
RECIPE = "dockml.test.recipe"

RELEASES = {"3.14": "forky"}
"""Pythons that are not installed everywhere, and the Debian release that has them."""

FOLDER = Path(__file__).parent / "base"
DEBIAN_FOLDER = Path(__file__).parent / "debian-python"
PROBE_LIMIT = 10
# A large wheel on a slow line is downloaded without a word.
BUILD_LIMIT = 1800
LOG_LINES = 30
# What the official slim image has besides a minimal Debian, and the OpenMP that frameworks want.
PACKAGES = ("ca-certificates", "libgomp1", "netbase", "tzdata")
# What a container of the tests needs, of a Debian whose packages are only unpacked: a third of the time.
UNPACKED = (
    "base-files", "base-passwd", "bash", "coreutils", "dash", "findutils", "grep", "libc-bin", "libstdc++6",
    "sed", "tzdata",
)  # fmt: skip
# What the official image drops as well, and what belongs to the local installation.
LEFT_OUT = (
    "__pycache__", "*.pyc", "*.pyo", "test", "tests", "idle_test", "idlelib", "tkinter", "lib-tk",
    "turtledemo", "site-packages", "config", "config-*", "_tkinter*.so", "nis*.so",
)  # fmt: skip
UNNEEDED_FILES = ("doc", "info", "locale", "man")


class Failed(Exception):
    """An image could not be made, or does not work; the message says why."""


def library(version: str) -> str:
    """Return the folder of the standard library in a base."""
    return f"/usr/local/lib/python{version}"


@contextlib.contextmanager
def patience(engine: docker.DockerClient, seconds: float) -> Iterator[None]:
    """Let the engine be silent for so long, whatever limit the client came with."""
    before, engine.api.timeout = engine.api.timeout, seconds
    try:
        yield
    finally:
        engine.api.timeout = before


def build_image(
    engine: docker.DockerClient,
    reference: str,
    files: Mapping[str, bytes],
    *,
    trees: Mapping[str, Path] | None = None,
    arguments: Mapping[str, str],
    labels: Mapping[str, str],
) -> Image:
    """Build an image from files and folders, which all belong to root in it.

    Raises
    ------
    Failed
        With the end of the build's log.
    """
    with tempfile.TemporaryFile() as stream:
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                entry.mode = 0o755 if content.startswith(b"#!") else 0o644
                tar.addfile(entry, io.BytesIO(content))
            for name, tree in (trees or {}).items():
                tar.add(tree, arcname=name, filter=_as_root)
        stream.seek(0)
        try:
            with patience(engine, BUILD_LIMIT):
                image, _ = engine.images.build(
                    fileobj=stream,
                    custom_context=True,
                    tag=reference,
                    buildargs=dict(arguments),
                    labels=dict(labels),
                    # The engine's own network may have no way out where the host has one.
                    network_mode="host",
                    rm=True,
                    forcerm=True,
                )
        except BuildError as error:
            lines = "".join(part.get("stream", "") for part in error.build_log).splitlines()
            raise Failed("\n".join([*lines[-LOG_LINES:], f"{reference}: {error.msg}"])) from error
    return image


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mode |= 0o555 if entry.isdir() or entry.mode & 0o100 else 0o444
    return entry


class Bases:
    """Provides bases; asks the registry at most once in its life."""

    def __init__(self, engine: docker.DockerClient) -> None:
        self._engine = engine
        self._registry: bool | None = None

    def provide(self, reference: str) -> Image:
        """Return the base with this reference, making it if it is not there.

        Raises
        ------
        Failed
            It cannot be pulled, and a part of it is not installed here.
        """
        image = self._local(reference)
        version = reference.removeprefix("python:").removesuffix("-slim")
        recipe = _recipe(version)
        if image is not None and image.labels.get(RECIPE, recipe) == recipe:
            return image
        if self._registry_answers(reference):
            say(f"{reference}: pulling the official image")
            with patience(self._engine, BUILD_LIMIT):
                return self._engine.images.pull(*reference.split(":"))
        if reference == DEBIAN:
            debian = self._debian()
            debian.tag(*reference.split(":"))
            return debian
        return self._python(version, reference)

    def _local(self, reference: str) -> Image | None:
        try:
            return self._engine.images.get(reference)
        except ImageNotFound:
            return None

    def _registry_answers(self, reference: str) -> bool:
        """Ask by the engine, as it may know mirrors that we do not."""
        if self._registry is None:
            try:
                with patience(self._engine, PROBE_LIMIT):
                    self._engine.api.inspect_distribution(reference)
                self._registry = True
            except (APIError, requests.Timeout):
                say("the registry does not answer: assembling bases from what is installed here")
                self._registry = False
        return self._registry

    def _debian(self) -> Image:
        """Return this host's release as a minimal image, the layer that all our bases share."""
        release = platform.freedesktop_os_release()["VERSION_CODENAME"]
        repository = "dockml/debian"
        image = self._local(f"{repository}:{release}")
        if image is not None and image.labels.get(RECIPE) == _recipe():
            return image
        _install_mmdebstrap()
        say(f"{repository}:{release}: assembling with mmdebstrap")
        chosen = f"--include={','.join(sorted({*PACKAGES, *_shared_libraries()}))}"
        return self._unpack(repository, release, ["--variant=minbase", chosen], _recipe())

    def _unpack(self, repository: str, release: str, options: Sequence[str], recipe: str) -> Image:
        """Return a Debian release as an image."""
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "debian.tar"
            command = ["mmdebstrap", "--quiet", *options]
            command += [f"--dpkgopt=path-exclude=/usr/share/{x}/*" for x in UNNEEDED_FILES]
            done = subprocess.run(
                [*command, release, str(archive), *_mirrors()],
                check=False,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise Failed(f"mmdebstrap failed:\n{done.stderr[-2000:]}")
            labels = f"LABEL {ASSEMBLED}=1 {RECIPE}={recipe}"
            with patience(self._engine, BUILD_LIMIT):
                self._engine.api.import_image_from_file(
                    str(archive),
                    repository=repository,
                    tag=release,
                    changes=[labels, 'CMD ["bash"]'],
                )
        return self._engine.images.get(f"{repository}:{release}")

    def _python(self, version: str, reference: str) -> Image:
        try:
            prefix, full = find_interpreter(version)
        except Failed:
            if version in RELEASES:
                return self._python_of_debian(version, reference)
            if version == python35.VERSION:
                return self._python35(reference)
            raise
        say(f"{reference}: assembling from the CPython {full} installed here")
        with tempfile.TemporaryDirectory() as folder:
            _copy_interpreter(prefix, version, Path(folder))
            return self._image_of(Path(folder), version, full, reference)

    def _image_of(self, local: Path, version: str, full: str, reference: str) -> Image:
        """Return an image with this as its /usr/local."""
        return build_image(
            self._engine,
            reference,
            {"Dockerfile": (FOLDER / "Dockerfile").read_bytes()},
            trees={"local": local},
            arguments={"DEBIAN": self._debian().id, "VERSION": full},
            labels={ASSEMBLED: "1", RECIPE: _recipe(version)},
        )

    def _python35(self, reference: str) -> Image:
        prefix, _ = find_interpreter("3.6")
        say(f"{reference}: assembling from an executable of panda3d's and the library of 3.6")
        with tempfile.TemporaryDirectory() as installed, tempfile.TemporaryDirectory() as folder:
            _copy_interpreter(prefix, "3.6", Path(installed))
            try:
                python35.assemble(Path(installed) / "lib" / "python3.6", Path(folder))
            except subprocess.CalledProcessError as error:
                raise Failed(f"{reference} could not be assembled: {error}") from error
            return self._image_of(Path(folder), python35.VERSION, python35.FULL, reference)

    def _python_of_debian(self, version: str, reference: str) -> Image:
        release = RELEASES[version]
        _install_mmdebstrap()
        say(f"{reference}: assembling from Debian {release} with mmdebstrap")
        options = [
            "--variant=extract",
            f"--include={','.join([*UNPACKED, f'python{version}'])}",
            # A mirror may stand still; its packages are signed nevertheless.
            '--aptopt=Acquire::Check-Valid-Until "false"',
        ]
        recipe = _recipe(version)
        debian = self._unpack("dockml/debian", release, options, recipe)
        return build_image(
            self._engine,
            reference,
            {"Dockerfile": (DEBIAN_FOLDER / "Dockerfile").read_bytes()},
            arguments={"DEBIAN": debian.id, "VERSION": version},
            labels={ASSEMBLED: "1", RECIPE: recipe},
        )


def _install_mmdebstrap() -> None:
    packages.install(("mmdebstrap",) if os.geteuid() == 0 else ("mmdebstrap", "uidmap"))


def _recipe(version: str = "") -> str:
    """Return a hash of how a base is assembled; one made in another way is made again."""
    parts: tuple[object, ...] = (
        PYTHONS, PACKAGES, LEFT_OUT, UNNEEDED_FILES, (FOLDER / "Dockerfile").read_text(),
    )  # fmt: skip
    if version in RELEASES:
        dockerfile = (DEBIAN_FOLDER / "Dockerfile").read_text()
        parts = (RELEASES[version], UNPACKED, UNNEEDED_FILES, dockerfile)
    if version == python35.VERSION:
        parts = (*parts, *(path.read_text() for path in python35.SOURCES))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def find_interpreter(version: str) -> tuple[Path, str]:
    """Find an installed CPython that can be copied.

    Returns
    -------
    tuple of Path and str
        Its prefix and its full version.

    Raises
    ------
    Failed
        There is none. Debian's own does not count: its prefix, /usr, holds everything else too.
    """
    probe = (
        "import sys; print(getattr(sys, 'base_prefix', sys.prefix)); "
        "print('.'.join(map(str, sys.version_info[:3])))"
    )
    for program in _interpreters(version):
        done = subprocess.run([program, "-c", probe], check=False, capture_output=True, text=True)
        lines = done.stdout.split()
        # A pyenv shim is there for versions that are not switched on, and fails.
        if done.returncode == 0 and lines[0] != "/usr" and lines[1].startswith(f"{version}."):
            return Path(lines[0]), lines[1]
    raise Failed(
        f"python:{version}-slim cannot be pulled, and no CPython {version} is installed here to"
        f" assemble it from: give the engine a registry mirror, or run: pyenv install {version}"
    )


def _interpreters(version: str) -> Iterator[Path]:
    for folder in os.get_exec_path():
        program = Path(folder) / f"python{version}"
        if program.exists():
            yield program
    for command, below in ((["pyenv", "root"], "versions"), (["uv", "python", "dir"], "")):
        if shutil.which(command[0]):
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            installed = (Path(done.stdout.strip()) / below).glob(f"*/bin/python{version}")
            yield from sorted(installed)


def _copy_interpreter(prefix: Path, version: str, target: Path) -> None:
    for name in ("bin", "lib"):
        (target / name).mkdir()
    for program in prefix.glob("bin/python*"):
        if not program.name.endswith((".py", "-config")):
            shutil.copy2(program, target / "bin", follow_symlinks=False)
    for name in (f"libpython{version}*.so*", "libpython3.so"):
        for shared in prefix.glob(f"lib/{name}"):
            shutil.copy2(shared, target / "lib", follow_symlinks=False)
    shutil.copytree(
        prefix / f"lib/python{version}",
        target / f"lib/python{version}",
        symlinks=True,
        ignore=shutil.ignore_patterns(*LEFT_OUT),
    )
    (target / f"lib/python{version}/site-packages").mkdir()
    major = version.partition(".")[0]
    for name in ("python", f"python{major}"):
        if not (target / "bin" / name).exists():
            (target / "bin" / name).symlink_to(f"python{version}")
    if shutil.which("strip"):  # saves a quarter of the image
        for binary in (*target.rglob("*.so"), *target.glob("lib/*.so.*")):
            if not binary.is_symlink():
                binary.chmod(0o755)
                subprocess.run(["strip", "--strip-unneeded", binary], check=True)


def _shared_libraries() -> set[str]:
    """Return the Debian packages with the libraries that the installed interpreters load."""
    left_out = shutil.ignore_patterns(*LEFT_OUT)
    binaries: list[Path] = []
    for version in PYTHONS:
        try:
            prefix, _ = find_interpreter(version)
        except Failed:
            continue
        folder = prefix / f"lib/python{version}/lib-dynload"
        names = {path.name for path in folder.glob("*.so")}
        binaries += [folder / name for name in names - left_out(str(folder), list(names))]
        binaries.append(prefix / f"bin/python{version}")
    listed = subprocess.run(["ldd", *binaries], check=True, capture_output=True, text=True).stdout
    words = (line.split() for line in listed.splitlines() if "=> /" in line)
    paths = {line[2] for line in words}
    # Debian's /lib is a link to /usr/lib, and a package may list its file under either.
    either = [form for path in paths for form in (path, path.removeprefix("/usr"), f"/usr{path}")]
    owners = subprocess.run(["dpkg", "-S", *either], check=False, capture_output=True, text=True)
    return {line.split(":")[0] for line in owners.stdout.splitlines()}


def _mirrors() -> list[str]:
    """Return the mirror that this host uses for its own release, if apt knows one: it has others, too."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(SITE)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = [line.split() for line in listed.splitlines()]
    own = platform.freedesktop_os_release()["VERSION_CODENAME"]
    return [site for name, site in found if name == own][:1]
