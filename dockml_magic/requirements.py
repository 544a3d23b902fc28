"""Extra packages, as pip's requirements: what `--with` and a requirements file say, and the layer that has them.

A layer is an image on top of another one, called "dockml/with:…" after all that decides what is in it.
Files are read by who calls, and pip runs in `layers.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dockml_magic.errors import ConfigError

REPOSITORY = "dockml/with"
"""What layers are called, before the tag that stands for what is in them."""

FILE = "-r "
"""How an entry of `RunOptions.packages` begins that is the path of a requirements file."""

_TAG_LENGTH = 32
_SHOWN = 60
"""Characters of a layer's requirements that are shown in a line."""

_EXAMPLE = (
    'Write it as pip does: --with pandas==0.24, --with "numpy<1.17 pandas", --with "-r FILE".'
)

_BETWEEN = re.compile(r"[\s,]+(?=[A-Za-z])(?![^\[]*\])")
"""What stands between two requirements: a version, which a comma may precede too, begins with no letter.
Extras stand in brackets."""

_PRIVATE = re.compile(r"(?<=://)[^/\s@]+@")
"""User and password in a URL."""

_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
"""What pip replaces in a requirements file."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What is to be installed on top of an image.

    Attributes
    ----------
    lines : tuple of str
        Requirements, as a requirements file has them; options of pip's come first.
    constraints : tuple of str
        Versions that a lock holds, "numpy==1.16.4"; of what is not asked for nothing is installed.
    files : tuple of (str, Path)
        The files that this is from, links followed, those that a file names too; each with the entry of
        `RunOptions.packages` that led there. No part of what is installed.
    """

    lines: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    files: tuple[tuple[str, Path], ...] = field(default=(), compare=False)

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that the lines name, which pip replaces."""
        return tuple(dict.fromkeys(_VARIABLE.findall("\n".join(self.lines))))

    def __str__(self) -> str:
        """Return them in a line, shortened, without what is private."""
        text = ", ".join(hide_private(line) for line in self.lines)
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"

    def reference(self, base_id: str) -> str:
        """Return the layer's name on top of an image: the same for the same, in any order."""
        content = json.dumps([1, base_id, sorted(self.lines), sorted(self.constraints)])
        return f"{REPOSITORY}:{hashlib.sha256(content.encode()).hexdigest()[:_TAG_LENGTH]}"


def hide_private(text: str) -> str:
    """Return a text without the users and passwords in its URLs."""
    return _PRIVATE.sub("****@", text)


def parse_packages(text: str) -> tuple[str, ...]:
    """Return the entries in one `--with`: requirements, or "-r FILE".

    Several may be set apart by spaces or commas: "numpy<1.17 pandas>=0.24,<0.25".

    Raises
    ------
    ConfigError
        If it is not what pip calls a requirement.
    """
    text = text.strip()
    if match := re.fullmatch(r"(?:-r|--requirement)[\s=]*(\S.*)", text):
        return (f"{FILE}{match[1]}",)
    if _is_requirement(text):
        return (text,)
    parts = tuple(filter(None, _BETWEEN.split(text.strip(", "))))
    if not parts:
        raise ConfigError("--with: nothing is named.", hint=_EXAMPLE)
    for part in parts:
        if not _is_requirement(part):
            raise ConfigError(_problem(part), hint=_hint(part))
    return parts


def _is_requirement(text: str) -> bool:
    # Here, as it takes a sixth of the time in which the extension loads.
    from packaging.requirements import InvalidRequirement, Requirement

    if _is_path(text) and "://" not in text:
        return False
    try:
        Requirement(text)
    except InvalidRequirement:
        return False
    return True


def _problem(text: str) -> str:
    if text.startswith("-"):
        return f"--with {text}: this option of pip cannot stand here."
    if _is_path(text):
        return f"--with {text}: a path of this machine, which the image does not have."
    return f"--with {hide_private(text)}: not a requirement."


def _hint(text: str) -> str:
    if text.startswith("-"):
        return "Of the options there is only -r FILE. An index is set as for any pip: PIP_INDEX_URL, pip.conf."
    if _is_path(text):
        return "Use a Dockerfile that copies it, or put it into an index."
    if match := re.fullmatch(r"([A-Za-z][\w.\[\]-]*)=([^=].*)", text):
        return f"Did you mean {match[1]}=={match[2]}?"
    return _EXAMPLE


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.endswith((".whl", ".tar.gz", ".zip"))


def read_extras(packages: Iterable[str], folder: Path, read: Callable[[Path], str]) -> Extras:
    """Return what entries of `RunOptions.packages` come to, with the files that they name.

    Parameters
    ----------
    packages : iterable of str
        Requirements, and "-r FILE".
    folder : Path
        Where relative paths of files begin.
    read : callable
        Returns a file's text; an OSError or UnicodeDecodeError is told.

    Raises
    ------
    ConfigError
        If a file cannot be read, or has a line that means something of this machine.
    """
    lines: list[str] = []
    constraints: list[str] = []
    files: list[tuple[str, Path]] = []
    for entry in packages:
        if entry.startswith(FILE):
            path = folder / Path(entry.removeprefix(FILE)).expanduser()
            files += [(entry, file) for file in _read_file(path, read, lines, constraints, ())]
        else:
            lines.append(entry)
    unique = list(dict.fromkeys(lines))
    return Extras(
        lines=tuple(sorted(unique, key=lambda line: not line.startswith("-"))),
        constraints=tuple(dict.fromkeys(constraints)),
        files=tuple(dict.fromkeys(files)),
    )


def _hint_of_missing(name: str) -> str:
    """Return what to do where a requirements file is not there: perhaps it is no file that was meant."""
    if re.search(r"[=<>~]=|[<>]", name):
        return f'A package is asked for by: with = ["{name}"] in the project file, --with {name} on a line.'
    return "In a project file its path is taken from that file's folder, on a line from the notebook's."


def _read_file(
    path: Path,
    read: Callable[[Path], str],
    lines: list[str],
    constraints: list[str],
    above: tuple[Path, ...],
) -> Iterator[Path]:
    """Take in a requirements file and those that it names, and give them; `above` are the files that led here.

    A file is read by the path that is given, all links followed, so that it is the one of which that is said.
    """
    file = Path(os.path.realpath(path))
    if file in above:
        raise ConfigError(f"'{path}' names itself.", hint="Take out the line with -r.")
    yield file
    try:
        text = read(file)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(
            f"The requirements file '{path}' cannot be read: {why}.",
            hint=_hint_of_missing(path.name),
        ) from error
    for number, line in _logical_lines(text):
        if match := re.fullmatch(r"(-r|--requirement|-c|--constraint)[\s=]*(\S+)", line):
            into = lines if match[1].startswith(("-r", "--r")) else constraints
            yield from _read_file(path.parent / match[2], read, into, constraints, (*above, file))
        elif line.startswith(("-e", "--editable", "-f", "--find-links")) or _is_path(line):
            if "://" in line and not line.startswith(("-e", "--editable")):
                lines.append(line)
                continue
            raise ConfigError(
                f"{path}:{number}: '{line}' is of this machine, and the image does not have it.",
                hint="Use a Dockerfile that copies it, or put it into an index.",
            )
        else:
            lines.append(line)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Give the lines of a requirements file as pip reads them, each with the number it begins at."""
    begun, pending = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        begun = begun if pending else number
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            pending += line[:-1].strip() + " "
            continue
        whole = re.sub(r"(^|\s+)#.*$", "", pending + line.strip()).strip()
        pending = ""
        if whole:
            yield begun, whole
    if pending.strip():
        yield begun, pending.strip()


def from_folder(packages: Iterable[str], folder: Path) -> tuple[str, ...]:
    """Return entries of `RunOptions.packages` whose files do not depend on where one is."""
    return tuple(
        f"{FILE}{(folder / Path(entry.removeprefix(FILE)).expanduser()).absolute()}"
        if entry.startswith(FILE)
        else entry
        for entry in packages
    )


# --- what pip says --------------------------------------------------------------------------------


def why_pip_failed(output: str, python: str) -> tuple[str, str]:
    """Return what went wrong when pip failed, and what to do: (why, hint).

    Parameters
    ----------
    output : str
        All that pip wrote.
    python : str
        The version of the Python it ran under.
    """
    wanted = re.search(
        r"No matching distribution found for ([^\n]+?)(?: \(from [^\n]*\))?$", output, re.M
    )
    for pattern, why, hint in _CAUSES:
        if re.search(pattern, output, re.IGNORECASE):
            return why, hint
    if wanted:
        return _no_such_distribution(output, wanted[1], python)
    for pattern, why, hint in _LATER_CAUSES:
        if re.search(pattern, output, re.IGNORECASE):
            return why, hint.format(python=python)
    return "pip failed", "The last lines say why. Correct the requirements, and run the same again."


def _no_such_distribution(output: str, wanted: str, python: str) -> tuple[str, str]:
    name = re.split(r"[<>=!~\[;@ (]", wanted, maxsplit=1)[0]
    listed = re.search(r"\(from versions: ([^)]*)\)", output)
    versions = [v.strip() for v in listed[1].split(",")] if listed and listed[1] else []
    versions = [v for v in versions if v and v != "none"]
    too_new = re.search(r"require a different python version: ([^\n]*)", output, re.IGNORECASE)
    if versions:
        shown = ", ".join(versions[-6:])
        why = f"there is no {wanted} for Python {python}"
        return why, f"The newest there are for this Python: {shown}."
    if too_new:
        why = f"no version of {name} that is asked for is for Python {python}"
        return (
            why,
            "Ask for an older version, or leave the version out; or use an image with another Python.",
        )
    return (
        f"the index has no {name} for Python {python}",
        "Is the name spelled as on PyPI, and the index reached? Another index: PIP_EXTRA_INDEX_URL, or pip's "
        "configuration.",
    )


_NETWORK = (
    "Without a network only layers that were built before can be used. Behind a company network set https_proxy, "
    "or pip's index-url, as for any pip install; the image is built with them."
)
_CAUSES: Sequence[tuple[str, str, str]] = (
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed",
        "pip does not trust the index's certificate",
        "Name the file with your company's certificate authority in PIP_CERT or SSL_CERT_FILE: it is given to pip.",
    ),
    (
        r"\b(?:401|403|407) (?:Client )?Error|HTTP error (?:401|403|407)|status code 40[137]|User for \S+:"
        r"|Tunnel connection failed: 407",
        "the index, or the proxy, refused",
        "Check user and password in pip's index-url, or in the proxy's URL.",
    ),
    (r"No space left on device", "the engine's disk is full", "See what takes it: docker system df"),
    (
        r"ProxyError|Cannot connect to proxy",
        "the proxy does not answer",
        "Check http_proxy and https_proxy. A proxy on this machine must listen where containers reach it.",
    ),
    (
        r"NewConnectionError|Name or service not known|name resolution|ConnectTimeoutError|ReadTimeoutError"
        r"|Read timed out|Network is unreachable|Connection refused",
        "pip does not reach the index",
        _NETWORK,
    ),
)  # fmt: skip
_LATER_CAUSES: Sequence[tuple[str, str, str]] = (
    (
        r"ResolutionImpossible|conflicting dependencies|Double requirement given",
        "the requirements contradict each other",
        "Leave the version of one of them open, and let pip choose.",
    ),
    (
        r"Invalid requirement|InvalidRequirement",
        "pip does not understand a requirement",
        "An older pip in the image may not know a newer way to write it.",
    ),
    (
        r"requires a different Python|is not a supported wheel|Unsupported Python|python_requires|requires Python '",
        "a package is not for this Python",
        "Ask for a version that is for Python {python}.",
    ),
    (
        r"gcc|cc1plus|Microsoft Visual|command '\S+' failed|Failed building wheel|Failed to build|setup\.py",
        "a package has to be compiled, and the image cannot do that",
        "Ask for a version that has a wheel for Python {python}, or use a Dockerfile that installs a compiler first.",
    ),
)  # fmt: skip
