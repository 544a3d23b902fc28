"""The project file: `dockml.toml`, or `[tool.dockml]` in `pyproject.toml`, found upward.

A table per environment, with the words of `docker run`'s options::

    [environments.summariser]
    image = "tensorflow/tensorflow:1.10.0-gpu-py3"
    gpus = "all"
    volumes = ["./models:/models:ro"]
    publish = ["8501:8501"]
    env = { TF_CPP_MIN_LOG_LEVEL = "2" }
    memory = "8g"

`image` may be a short name of the catalogue. Relative folders are taken from the file's folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dockml_magic import toml
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
    """

    path: Path | None = None
    environments: dict[str, RunOptions] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)


def find_project(folder: Path) -> Project:
    """Return the project of `folder`: the nearest file upward that is one.

    Raises
    ------
    ProjectFileError
        If the file cannot be read, is not TOML or has an entry that is not understood.
    """
    for parent in (folder, *folder.parents):
        for file_name in FILE_NAMES:
            path = parent / file_name
            if path.is_file() and (table := _read(path)) is not None:
                return _parse(path, table)
    return Project()


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
    if path.name == "dockml.toml":
        return data
    tool = data.get("tool")
    table = tool.get("dockml") if isinstance(tool, dict) else None
    return table if isinstance(table, dict) else None


def _parse(path: Path, table: dict[str, Any]) -> Project:
    prefix = "tool.dockml." if path.name == "pyproject.toml" else ""
    if unknown := sorted(set(table) - {"environments"}):
        raise ProjectFileError(
            str(path), prefix + unknown[0], "unknown entry.", hint="Known: environments."
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
    return Project(path=path, environments=environments, titles=titles)


def _options(path: Path, key: str, entry: dict[str, Any]) -> RunOptions:
    known = [f.name for f in fields(RunOptions) if f.name not in ("name", "engine")]
    values: dict[str, Any] = {}
    for word, value in entry.items():
        where = f"{key}.{word}"
        if word not in known:
            raise ProjectFileError(
                str(path), where, "unknown entry.", hint=f"Known: title, {', '.join(known)}."
            )
        try:
            values[word] = _READERS[word](value, path.parent)
        except ConfigError as error:
            raise ProjectFileError(str(path), where, error.message, hint=error.hint) from error
    return RunOptions(**values)


def _text(value: Any, _: Path) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{value!r} is not a string.")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"{value!r} is not a list of strings.")
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
    "image": _text,
    "kernel": _text,
    "pull": _choice(PULL_POLICIES),
    "transport": _choice(TRANSPORTS),
}
