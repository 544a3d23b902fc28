"""The project file: `dockml.toml`, or `[tool.dockml]` in `pyproject.toml`, found upward.

A table per environment, with the words of `docker run`'s options::

    [environments.summariser]
    image = "tensorflow/tensorflow:1.10.0-gpu-py3"
    gpus = "all"
    volumes = ["./models:/models:ro"]
    publish = ["8501:8501"]
    env = { TF_CPP_MIN_LOG_LEVEL = "2" }
    memory = "8g"
    with = ["pandas==0.24"]
    requirements = "requirements.txt"

`image` may be a short name of the catalogue, or a Dockerfile. Relative folders are taken from the file's folder.

A table per image adds to the catalogue, or changes the entry of that name::

    [images."tf1.10"]
    reference = "registry.example.com/tensorflow:1.10"

The user's own file, `~/.config/dockml/images.toml`, has the same tables for every project.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dockml_magic import catalogue, toml
from dockml_magic.catalogue import FRAMEWORKS, Image
from dockml_magic.errors import ConfigError, ProjectFileError
from dockml_magic.options import (
    PULL_POLICIES,
    TRANSPORTS,
    RunOptions,
    parse_bytes,
    parse_cpus,
    parse_env,
    parse_gpus,
    parse_publish,
    parse_volume,
)
from dockml_magic.requirements import FILE, from_folder, parse_packages

FILE_NAMES = ("dockml.toml", "pyproject.toml")


@dataclass(frozen=True, kw_only=True)
class Project:
    """What a project file says.

    Attributes
    ----------
    path : Path or None
        The file, None where there is none.
    environments : dict of str to RunOptions
        By name.
    titles : dict of str to str
        How the launcher calls an environment, where the file says so.
    images : dict of str to Image
        The user's own images, by name: this file's, and those of their own file.
    """

    path: Path | None = None
    environments: dict[str, RunOptions] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)


def is_dockerfile(name: str) -> bool:
    """Tell whether a NAME is the path of a Dockerfile, or of a folder with one; looks at the text only."""
    last = name.rpartition("/")[2]
    return (
        name.startswith(("./", "../", "/", "~/"))
        or name in (".", "..")
        or last == "Dockerfile"
        or last.startswith("Dockerfile.")
        or last.lower().endswith(".dockerfile")
    )


def user_images_file() -> Path:
    """Return the path of the user's own file of images; it need not be there."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "dockml" / "images.toml"


def find_project(folder: Path) -> Project:
    """Return the project of `folder`: the nearest file upward that is one, and the user's own images.

    Raises
    ------
    ProjectFileError
        If the file cannot be read, is not TOML or has an entry that is not understood.
    """
    own = _user_images()
    for parent in (folder, *folder.parents):
        for file_name in FILE_NAMES:
            path = parent / file_name
            if path.is_file() and (table := _read(path)) is not None:
                project = _parse(path, table)
                return dataclasses.replace(project, images=own | project.images)
    return Project(images=own)


def _user_images() -> dict[str, Image]:
    path = user_images_file()
    if not path.is_file():
        return {}
    table = _read(path) or {}
    if unknown := sorted(set(table) - {"images"}):
        raise ProjectFileError(str(path), unknown[0], "unknown entry.", hint="Known: images.")
    return _images(path, "", table)


def _read(path: Path) -> dict[str, Any] | None:
    """Return our part of the file, None where a pyproject.toml has none."""
    try:
        data = toml.loads(path.read_text(encoding="utf-8"))
    except toml.TOMLDecodeError as error:
        if path.name == "pyproject.toml":  # somebody else's to complain about
            return None
        raise ProjectFileError(str(path), "", f"not valid TOML: {error}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectFileError(str(path), "", f"cannot be read: {error}.") from error
    if path.name != "pyproject.toml":
        return data
    tool = data.get("tool")
    table = tool.get("dockml") if isinstance(tool, dict) else None
    return table if isinstance(table, dict) else None


def _parse(path: Path, table: dict[str, Any]) -> Project:
    prefix = "tool.dockml." if path.name == "pyproject.toml" else ""
    if unknown := sorted(set(table) - {"environments", "images"}):
        raise ProjectFileError(
            str(path), prefix + unknown[0], "unknown entry.", hint="Known: environments, images."
        )
    environments, titles = {}, {}
    entries = table.get("environments", {})
    if not isinstance(entries, dict):
        raise ProjectFileError(str(path), f"{prefix}environments", "not a table.")
    for name, entry in entries.items():
        key = f"{prefix}environments.{name}"
        if not isinstance(entry, dict):
            raise ProjectFileError(str(path), key, "not a table.")
        entry = dict(entry)
        titles[name] = str(entry.pop("title", ""))
        environments[name] = _options(path, key, entry)
    return Project(
        path=path,
        environments=environments,
        titles=titles,
        images=_images(path, prefix, table),
    )


def _images(path: Path, prefix: str, table: dict[str, Any]) -> dict[str, Image]:
    entries = table.get("images", {})
    if not isinstance(entries, dict):
        raise ProjectFileError(str(path), f"{prefix}images", "not a table.")
    return {
        name.lower(): _image(path, f"{prefix}images.{name}", name.lower(), entry)
        for name, entry in entries.items()
    }


def _image(path: Path, key: str, name: str, entry: Any) -> Image:
    """Return an entry as an image; what it leaves open is the catalogue's, where it has the name."""
    if not isinstance(entry, dict):
        raise ProjectFileError(
            str(path), key, "not a table.", hint='Quote a name that has a dot: [images."tf1.10"]'
        )
    if not _IMAGE_NAME.fullmatch(name) or name == "local":
        raise ProjectFileError(
            str(path),
            key,
            "not a name.",
            hint="Letters, digits and . _ - make one, as in my-tf1.10.",
        )
    ours = catalogue.images().get(name)
    values: dict[str, Any] = {}
    for word, value in entry.items():
        where = f"{key}.{word}"
        if word not in _IMAGE_READERS:
            hint = f"Known: {', '.join(_IMAGE_READERS)}."
            raise ProjectFileError(str(path), where, "unknown entry.", hint=hint)
        try:
            values[word] = _IMAGE_READERS[word](value, path.parent)
        except ConfigError as error:
            raise ProjectFileError(str(path), where, error.message, hint=error.hint) from error
    if ours is None and "reference" not in values:
        hint = 'Say what the engine pulls: reference = "registry.example.com/mine:1"'
        raise ProjectFileError(str(path), key, "it has no reference.", hint=hint)
    if values.get("reference", ours and ours.reference) != (ours and ours.reference):
        values = {"digest": "", "broken": "", "sure": "seen", "unsure": (), **values}
    image = dataclasses.replace(
        ours or Image(name=name, reference=""), is_own=True, source=str(path), **values
    )
    return image if image.title else dataclasses.replace(image, title=name)


def _options(path: Path, key: str, entry: dict[str, Any]) -> RunOptions:
    values: dict[str, Any] = {}
    known = list(_READERS)
    for word, value in entry.items():
        where = f"{key}.{word}"
        if word not in known:
            raise ProjectFileError(
                str(path), where, "unknown entry.", hint=f"Known: title, {', '.join(known)}."
            )
        try:
            read = _READERS[word](value, path.parent)
        except ConfigError as error:
            raise ProjectFileError(str(path), where, error.message, hint=error.hint) from error
        if word in _PACKAGES:
            values["packages"] = values.get("packages", ()) + read
        else:
            values[word] = read
    return RunOptions(**values)


def _text(value: Any, _: Path) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{value!r} is not a string.")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"{value!r} is not a list of strings.")
    return value


def _reference(value: Any, folder: Path) -> str:
    text = _text(value, folder)
    if not catalogue.REFERENCE.fullmatch(text):
        raise ConfigError(f"'{text}' is not a reference.", hint="Example: python:3.11-slim")
    return text


def _image_or_dockerfile(value: Any, folder: Path) -> str:
    text = _text(value, folder)
    return str((folder / Path(text).expanduser()).resolve()) if is_dockerfile(text) else text


def _version(value: Any, folder: Path) -> str:
    text = _text(value, folder)
    if not re.fullmatch(r"\d[\w.+-]*", text):
        raise ConfigError(f"'{text}' is not a version.", hint='Example: "1.10"')
    return text


def _framework(value: Any, folder: Path) -> str:
    text = _text(value, folder).lower()
    for framework, words in FRAMEWORKS.items():
        if text in (framework, words.word, *words.aliases):
            return framework
    known = ", ".join(FRAMEWORKS)
    raise ConfigError(f"'{text}' is no framework of the catalogue.", hint=f"Known: {known}.")


def _yes(value: Any, _: Path) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{value!r} is not true or false.")
    return value


def _volumes(value: Any, folder: Path) -> tuple[str, ...]:
    found = []
    for text in _texts(value):
        volume = parse_volume(text)
        source = volume.source
        if volume.is_host_path:
            source = str(volume.host_path(folder))
        found.append(f"{source}:{volume.target}{':ro' if volume.read_only else ''}")
    return tuple(found)


def _with(value: Any, _: Path) -> tuple[str, ...]:
    found = []
    for text in [value] if isinstance(value, str) else _texts(value):
        for entry in parse_packages(text):
            if entry.startswith(FILE):
                raise ConfigError(
                    f"{entry}: a file stands in an entry of its own.",
                    hint=f'Write: requirements = "{entry.removeprefix(FILE)}"',
                )
            found.append(entry)
    return tuple(found)


def _requirements(value: Any, folder: Path) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else _texts(value)
    return from_folder((f"{FILE}{name}" for name in names), folder)


def _publish(value: Any, _: Path) -> tuple[str, ...]:
    for text in (texts := _texts(value)):
        parse_publish(text)
    return tuple(texts)


def _env(value: Any, _: Path) -> tuple[str, ...]:
    if isinstance(value, dict):
        return tuple(f"{key}={text}" for key, text in value.items())
    for text in (texts := _texts(value)):
        parse_env(text, {})
    return tuple(texts)


def _gpus(value: Any, _: Path) -> str:
    parse_gpus(str(value))
    return str(value)


def _choice(choices: tuple[str, ...]) -> Callable[[Any, Path], str]:
    def read(value: Any, _: Path) -> str:
        if value not in choices:
            raise ConfigError(f"{value!r} is not one of: {', '.join(choices)}.")
        return str(value)

    return read


_READERS: dict[str, Callable[[Any, Path], Any]] = {
    "gpus": _gpus,
    "volumes": _volumes,
    "publish": _publish,
    "env": _env,
    "workdir": _text,
    "memory": lambda value, _: parse_bytes(str(value)),
    "cpus": lambda value, _: parse_cpus(str(value)),
    "shm_size": lambda value, _: parse_bytes(str(value)),
    "user": _text,
    "network": _text,
    "image": _image_or_dockerfile,
    "with": _with,
    "requirements": _requirements,
    "kernel": _text,
    "pull": _choice(PULL_POLICIES),
    "transport": _choice(TRANSPORTS),
}

_PACKAGES = ("with", "requirements")
"""Entries that come to `RunOptions.packages`."""

_IMAGE_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")

_IMAGE_READERS: dict[str, Callable[[Any, Path], Any]] = {
    "reference": _reference,
    "title": _text,
    "framework": _framework,
    "version": _version,
    "gpu": _yes,
    "python": _version,
    "python_exe": _text,
    "cuda": _version,
    "cudnn": _version,
    "has_ipykernel": lambda value, folder: "yes" if _yes(value, folder) else "no",
    "base_os": _text,
    "digest": _text,
    "notes": _text,
    "cpu_twin": _text,
}
