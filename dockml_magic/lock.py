"""The lock: `dockml.lock`, beside the project file, has the image and the packages that each environment came to.

Pure: read, written, compared. Who makes one, and who starts from it, is `planning.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dockml_magic import toml
from dockml_magic.errors import ProjectFileError

VERSION = 1

_HEAD = """\
# What the environments of the project file came to: written by `dockml lock`, used by %docker_env.
# Keep it with the project. To bring it up to date: dockml lock
"""
_LOCK_AGAIN = "Write it anew with: dockml lock"


@dataclass(frozen=True, kw_only=True)
class LockedEnvironment:
    """What an environment came to.

    Attributes
    ----------
    entry : str
        Stands for all that the project file says of it.
    image : str
        What the project file asks for.
    reference : str
        The image that this was.
    digest : str
        By which a registry knows it, "repository@sha256:…"; "" where none does.
    id : str
        By which the engine knew it; for another machine it may be another.
    platform : str
        Of the image: "linux/amd64".
    python : str
        Version of the Python whose packages these are.
    requirements, constraints : tuple of str
        What was to be installed on top, with the files that the project file names.
    packages : tuple of str
        All that is installed: "numpy==1.14.5", sorted.
    """

    entry: str
    image: str
    reference: str
    digest: str = ""
    id: str
    platform: str
    python: str
    requirements: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    @property
    def is_built(self) -> bool:
        """Its image is built from a Dockerfile, whose folder is what names it."""
        return self.reference.startswith("dockml/build:")

    @property
    def versions(self) -> tuple[str, ...]:
        """The packages as pip's constraints; what pip does not take as one is left out."""
        return tuple(line for line in self.packages if _is_requirement(line))


@dataclass(frozen=True, kw_only=True)
class Lock:
    """A lock file: its environments, by name."""

    path: Path
    environments: Mapping[str, LockedEnvironment] = field(default_factory=dict)


def entry_of(entry: Mapping[str, Any]) -> str:
    """Return what stands for an environment's table in the project file, however it is written there."""
    text = json.dumps(entry, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_requirement(line: str) -> bool:
    # Here, as it takes a sixth of the time in which the extension loads.
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        Requirement(line)
    except InvalidRequirement:
        return False
    return True


# --- the file -------------------------------------------------------------------------------------


def parse_lock(path: Path, text: str) -> Lock:
    """Return what a lock file says.

    Raises
    ------
    ProjectFileError
        If it cannot be understood; with the line.
    """

    def error(keys: Sequence[str], problem: str) -> ProjectFileError:
        line = toml.line_of(text, keys) if keys else None
        return ProjectFileError(str(path), toml.dotted(keys), problem, hint=_LOCK_AGAIN, line=line)

    try:
        data = toml.loads(text)
    except toml.TOMLDecodeError as failure:
        problem, line, column = toml.place_of(failure)
        conflict = re.search(r"^(?:<{7}|={7}|>{7})( |$)", text, re.MULTILINE)
        if conflict:
            line, column = text.count("\n", 0, conflict.start()) + 1, None
            problem = "a conflict of two versions of it is left in it"
        raise ProjectFileError(
            str(path),
            "",
            f"not a lock file: {problem}.",
            hint=_LOCK_AGAIN,
            line=line,
            column=column,
        ) from failure
    if data.get("version") != VERSION:
        raise error(
            ("version",) if "version" in data else (),
            f"its version is {data.get('version')!r}, and this dockml_magic reads {VERSION}.",
        )
    tables = data.get("environments", {})
    if not isinstance(tables, dict):
        raise error(("environments",), "not a table.")
    environments = {}
    for name, table in tables.items():
        keys = ("environments", name)
        if not isinstance(table, dict):
            raise error(keys, "not a table.")
        values: dict[str, Any] = {}
        for f in fields(LockedEnvironment):
            is_list = f.type == "tuple[str, ...]"
            is_optional = is_list or f.name == "digest"
            value = table.get(f.name, [] if is_list else "")
            if f.name not in table and not is_optional:
                raise error(keys, f"it has no '{f.name}'.")
            if not _is_text(value, is_list=is_list):
                raise error((*keys, f.name), f"not a {'list of strings' if is_list else 'string'}.")
            values[f.name] = tuple(value) if is_list else value
        environments[name] = LockedEnvironment(**values)
    return Lock(path=path, environments=environments)


def _is_text(value: Any, *, is_list: bool) -> bool:
    if is_list:
        return isinstance(value, list) and all(isinstance(part, str) for part in value)
    return isinstance(value, str)


def write_lock(lock: Lock) -> str:
    """Return a lock file's text: the same for the same, with a line for each package."""
    parts = [f"{_HEAD}\nversion = {VERSION}\n"]
    for name, locked in sorted(lock.environments.items()):
        lines = [f"[{toml.dotted(('environments', name))}]"]
        for f in fields(locked):
            value = getattr(locked, f.name)
            if isinstance(value, str) and value:
                lines.append(f"{f.name} = {toml.quoted(value)}")
            elif value:
                lines += [f"{f.name} = [", *(f"    {toml.quoted(part)}," for part in value), "]"]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


# --- has the world moved --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Now:
    """What the project file asks for now, and what this machine has.

    Attributes
    ----------
    entry, image, requirements, constraints
        As in a `LockedEnvironment`.
    reference : str
        The image that NAME would come to without the lock.
    here : tuple of str
        Id and digests of the image that is called here as the locked one was; empty where there is none.
    """

    entry: str
    image: str
    reference: str
    requirements: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    here: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What of a lock still holds.

    Attributes
    ----------
    holds_image, holds_versions : bool
        Its image is the one to run, its versions are those to install.
    is_here : bool
        The image that is called as the locked one was is that one.
    changes : tuple of str
        What has changed in the project file since it was written, in words.
    other_image : str
        What is another image here, in words, or "".
    """

    holds_image: bool
    holds_versions: bool
    is_here: bool
    changes: tuple[str, ...] = ()
    other_image: str = ""

    def told(self, name: str, project: str, lock: str) -> str:
        """Return in a line what has moved, "" where nothing has; `project` and `lock` are the files' names."""
        changes = ", ".join(self.changes)
        said = [f"{project} has changed since {lock}: {changes}"] if changes else []
        said += [f"{self.other_image} than {lock} says"] if self.other_image else []
        if not said:
            return ""
        used = ""
        if self.other_image and self.holds_image:
            used = "; the locked one is used"
        elif not self.holds_image:
            used = "; the lock is not used"
        elif not self.holds_versions:
            used = "; its versions are not used"
        return f"{'; '.join(said)}{used}. To lock what there is now: dockml lock {name}"


def compare(locked: LockedEnvironment, now: Now) -> Verdict:
    """Return what of a lock still holds."""
    changes: list[str] = []
    other_image = ""
    same_image = locked.image == now.image
    same_packages = (locked.requirements, locked.constraints) == (
        now.requirements,
        now.constraints,
    )
    if not same_image:
        changes.append(f"the image is '{now.image}', was '{locked.image}'")
    if not same_packages:
        changes.append(_difference(locked.requirements, now.requirements))
    if locked.entry != now.entry and not changes:
        changes.append("an entry that is neither its image nor its packages")
    is_here = bool({locked.id, locked.digest} & {*now.here})
    if same_image and locked.is_built:
        is_here = locked.reference == now.reference
        if not is_here:
            other_image = f"what '{now.image}' builds is another image"
    elif same_image and now.here and not is_here:
        other_image = f"{locked.reference} is another image here"
    holds_image = same_image and not (locked.is_built and not is_here)
    return Verdict(
        holds_image=holds_image,
        holds_versions=holds_image and same_packages,
        is_here=is_here,
        changes=tuple(changes),
        other_image=other_image,
    )


def _difference(before: Iterable[str], now: Iterable[str]) -> str:
    was, new = set(before), set(now)
    words = [f"+{line}" for line in sorted(new - was)] + [f"-{line}" for line in sorted(was - new)]
    return f"packages {' '.join(words)}" if words else "the constraints of the packages"
