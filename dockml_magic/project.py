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
    warm = true

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
from collections.abc import Callable, Collection
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
    parse_add_host,
    parse_bytes,
    parse_capability,
    parse_cpus,
    parse_device,
    parse_env,
    parse_gpus,
    parse_ipc,
    parse_publish,
    parse_security_opt,
    parse_ulimit,
    parse_volume,
)
from dockml_magic.requirements import FILE, from_folder, parse_packages

FILE_NAMES = ("dockml.toml", "pyproject.toml")
LOCK_NAME = "dockml.lock"


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
    entries : dict of str to str
        What stands for the whole entry of an environment, to see that it has changed.
    warm : tuple of str
        The environments that are to wait ready, in the file's order. It says nothing of what runs, so it is no part
        of `entries`.
    """

    path: Path | None = None
    environments: dict[str, RunOptions] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    entries: dict[str, str] = field(default_factory=dict)
    warm: tuple[str, ...] = ()

    @property
    def lock_path(self) -> Path | None:
        """Where its lock is, or would be."""
        return self.path and self.path.parent / LOCK_NAME


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
            if path.is_file() and (read := _read(path)) is not None:
                project = _parse(*read)
                return dataclasses.replace(project, images=own | project.images)
    return Project(images=own)


@dataclass(frozen=True)
class _Place:
    """An entry of a file, by the keys that lead to it."""

    path: Path
    text: str
    keys: tuple[str, ...] = ()

    def __truediv__(self, key: str) -> _Place:
        return dataclasses.replace(self, keys=(*self.keys, key))

    def error(self, problem: str, hint: str = "") -> ProjectFileError:
        return ProjectFileError(
            str(self.path),
            toml.dotted(self.keys),
            problem,
            hint=hint,
            line=toml.line_of(self.text, self.keys),
        )

    def unknown(self, known: Collection[str], value: Any = None) -> ProjectFileError:
        """Return the error for an entry that is none of the known ones."""
        word = self.keys[-1]
        near = _OTHER_WORDS.get(word.lower(), "")
        if near not in known:
            import difflib  # here: `%load_ext` does without it

            near = next(iter(difflib.get_close_matches(word.lower(), known, n=1)), "")
        hint = f"Known: {', '.join(known)}."
        if near:
            hint = f"Did you mean {near}? {hint}"
        elif isinstance(value, dict):
            table = toml.dotted((*self.keys[:-2], f"{self.keys[-2]}.{word}"))
            hint = f"Quote a name that has a dot: [{table}]"
        return self.error("unknown entry.", hint)


def _user_images() -> dict[str, Image]:
    path = user_images_file()
    if not path.is_file() or (read := _read(path)) is None:
        return {}
    place, table = read
    for word in table:
        if word != "images":
            raise (place / word).unknown(["images"])
    return _images(place, table)


def _read(path: Path) -> tuple[_Place, dict[str, Any]] | None:
    """Return our part of the file, None where a pyproject.toml has none."""
    is_ours = path.name != "pyproject.toml"
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        data = toml.loads(text)
    except toml.TOMLDecodeError as error:
        if not is_ours and "[tool.dockml" not in text:  # somebody else's to complain about
            return None
        problem, line, column = toml.place_of(error)
        raise ProjectFileError(
            str(path),
            "",
            f"not valid TOML: {problem}.",
            hint='Texts stand in quotes, and so does a name that has a dot: [images."tf1.10"]',
            line=line,
            column=column,
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        hint = "Look after that file, or move it away, then try again."
        raise ProjectFileError(str(path), "", f"cannot be read: {why}.", hint=hint) from error
    if is_ours:
        return _Place(path, text), data
    tool = data.get("tool")
    if not isinstance(tool, dict) or "dockml" not in tool:
        return None
    place = _Place(path, text, ("tool", "dockml"))
    if not isinstance(tool["dockml"], dict):
        raise place.error("not a table.", "Example: [tool.dockml.environments.ner]")
    return place, tool["dockml"]


def _parse(place: _Place, table: dict[str, Any]) -> Project:
    for word in table:
        if word not in ("environments", "images"):
            raise (place / word).unknown(("environments", "images"))
    environments, titles, warm = {}, {}, []
    below = place / "environments"
    entries = table.get("environments", {})
    if not isinstance(entries, dict):
        raise below.error("not a table.", f"Example: [{toml.dotted((*below.keys, 'ner'))}]")
    for name, entry in entries.items():
        at = below / name
        if not isinstance(entry, dict):
            raise at.error("not a table.", f"Example: [{toml.dotted(at.keys)}]")
        if name == "local" or not re.fullmatch(r"[^\W_][^\x00-\x1f\x7f]*", name):
            raise at.error(
                "not a name for an environment.",
                "It begins with a letter or a digit, and 'local' is the notebook's own kernel.",
            )
        own, environments[name] = _environment(at, entry)
        titles[name] = own.get("title", "")
        if own.get("warm"):
            warm.append(name)
    from dockml_magic.lock import entry_of

    return Project(
        path=place.path,
        environments=environments,
        titles=titles,
        images=_images(place, table),
        entries={
            name: entry_of({word: value for word, value in entry.items() if word != "warm"})
            for name, entry in entries.items()
        },
        warm=tuple(warm),
    )


def _images(place: _Place, table: dict[str, Any]) -> dict[str, Image]:
    below = place / "images"
    entries = table.get("images", {})
    if not isinstance(entries, dict):
        raise below.error("not a table.", f"Example: [{toml.dotted((*below.keys, 'tf1.10'))}]")
    return {name.lower(): _image(below / name, name.lower(), e) for name, e in entries.items()}


def _image(at: _Place, name: str, entry: Any) -> Image:
    """Return an entry as an image; what it leaves open is the catalogue's, where it has the name."""
    if not isinstance(entry, dict):
        raise at.error("not a table.", 'Quote a name that has a dot: [images."tf1.10"]')
    if not _IMAGE_NAME.fullmatch(name) or name == "local":
        raise at.error("not a name.", "Letters, digits and . _ - make one, as in my-tf1.10.")
    ours = catalogue.images().get(name)
    values: dict[str, Any] = {}
    for word, value in entry.items():
        if word not in _IMAGE_READERS:
            raise (at / word).unknown(_IMAGE_READERS, value)
        values[word] = _entry(at / word, _IMAGE_READERS[word], value, _IMAGE_EXAMPLES[word])
    if ours is None and "reference" not in values:
        hint = 'Say what the engine pulls: reference = "registry.example.com/mine:1"'
        raise at.error("it has no reference.", hint)
    if values.get("reference", ours and ours.reference) != (ours and ours.reference):
        values = {"digest": "", "broken": "", "sure": "seen", "unsure": (), **values}
    image = dataclasses.replace(
        ours or Image(name=name, reference=""), is_own=True, source=str(at.path), **values
    )
    return image if image.title else dataclasses.replace(image, title=name)


def _environment(at: _Place, entry: dict[str, Any]) -> tuple[dict[str, Any], RunOptions]:
    """Return what an environment says beside its options, and these."""
    own: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for word, value in entry.items():
        if word not in _OWN_READERS and word not in _READERS:
            raise (at / word).unknown((*_OWN_READERS, *_READERS), value)
        reader = {**_OWN_READERS, **_READERS}[word]
        read = _entry(at / word, reader, value, _EXAMPLES.get(word, ""))
        if word in _OWN_READERS:
            own[word] = read
        elif word in _PACKAGES:
            values["packages"] = values.get("packages", ()) + read
        else:
            values[word] = read
    return own, RunOptions(**values)


def _entry(at: _Place, reader: Callable[[Any, Path], Any], value: Any, example: str) -> Any:
    """Return what an entry comes to; where it cannot be used that is told with an example, if there is one."""
    try:
        return reader(value, at.path.parent)
    except ConfigError as error:
        example = example and f"Example: {at.keys[-1]} = {example}"
        raise at.error(error.message, f"{error.hint} {example}".strip()) from error


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


def _checked(parse: Callable[[str], object]) -> Callable[[Any, Path], tuple[str, ...]]:
    """Return what reads a list of texts, each of which can be parsed."""

    def read(value: Any, _: Path) -> tuple[str, ...]:
        for text in (texts := _texts(value)):
            parse(text)
        return tuple(texts)

    return read


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


def _env(value: Any, _: Path) -> tuple[str, ...]:
    if isinstance(value, dict):
        for key, text in value.items():
            if isinstance(text, bool) or not isinstance(text, str | int | float):
                raise ConfigError(f"{key} = {text!r} is neither a string nor a number.")
            if not key or "=" in key or any(c.isspace() for c in key):
                raise ConfigError(f"{key!r} is not the name of a variable.")
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


_OWN_READERS: dict[str, Callable[[Any, Path], Any]] = {"title": _text, "warm": _yes}
"""Entries that are no options of a start."""

_READERS: dict[str, Callable[[Any, Path], Any]] = {
    "gpus": _gpus,
    "volumes": _volumes,
    "publish": _checked(parse_publish),
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
    "keep": _yes,
    "privileged": _yes,
    "cap_add": _checked(parse_capability),
    "cap_drop": _checked(parse_capability),
    "security_opt": _checked(parse_security_opt),
    "device": _checked(parse_device),
    "ulimit": _checked(parse_ulimit),
    "add_host": _checked(parse_add_host),
    "ipc": lambda value, folder: parse_ipc(_text(value, folder)),
}

_EXAMPLES = {
    "title": '"Our summariser"',
    "warm": "true",
    "gpus": '"all"',
    "volumes": '["./models:/models:ro"]',
    "publish": '["8501:8501"]',
    "env": '{ TF_CPP_MIN_LOG_LEVEL = "2" }',
    "workdir": '"/models"',
    "memory": '"8g"',
    "cpus": "1.5",
    "shm_size": '"2g"',
    "user": '"1000:1000"',
    "network": '"bridge"',
    "image": '"tf1.10"',
    "with": '["pandas==0.24"]',
    "requirements": '"requirements.txt"',
    "kernel": '"ir"',
    "pull": '"missing"',
    "transport": '"ipc"',
    "keep": "true",
    "privileged": "true",
    "cap_add": '["SYS_PTRACE"]',
    "cap_drop": '["ALL"]',
    "security_opt": '["no-new-privileges=false"]',
    "device": '["/dev/fuse"]',
    "ulimit": '["memlock=-1"]',
    "add_host": '["db:10.0.0.5"]',
    "ipc": '"host"',
}

_OTHER_WORDS = {
    "port": "publish",
    "ports": "publish",
    "volume": "volumes",
    "mount": "volumes",
    "mounts": "volumes",
    "environment": "env",
    "gpu": "gpus",
    "packages": "with",
    "pip": "with",
    "dockerfile": "image",
    "build": "image",
    "mem_limit": "memory",
    "mem": "memory",
    "cwd": "workdir",
    "working_dir": "workdir",
    "containers": "environments",
    "preload": "warm",
    "prestart": "warm",
    "autostart": "warm",
}
"""What others call our entries."""

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

_IMAGE_EXAMPLES = {
    "reference": '"registry.example.com/mine:1"',
    "title": '"Our TensorFlow 1.10"',
    "framework": '"tensorflow"',
    "version": '"1.10.0"',
    "gpu": "true",
    "python": '"3.6"',
    "python_exe": '"/usr/bin/python3"',
    "cuda": '"9.0"',
    "cudnn": '"7"',
    "has_ipykernel": "true",
    "base_os": '"ubuntu16.04"',
    "digest": '"sha256:..."',
    "notes": '"with our tokenizer"',
    "cpu_twin": '"tf1.10"',
}
