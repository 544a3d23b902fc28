"""Compare rows of the catalogue with what their registries say, and write it down.

Run as ``python -m tests.catalogue.refresh NAME...`` to see the differences, with ``--write`` to put them into
``images.csv``. A NAME is the name or the reference of a row. Nothing is pulled but the manifest and the image's
configuration, a few kilobytes; Docker Hub counts each as a pull.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from dockml_magic import catalogue

FILE = Path(catalogue.__file__).parent / "resources" / "images.csv"
_ARCHITECTURE = "amd64"
_TIMEOUT = 20
_MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "docker.distribution.manifest.v2",
        "docker.distribution.manifest.list.v2",
        "oci.image.manifest.v1",
        "oci.image.index.v1",
    )
)


class NotTold(Exception):
    """The registry does not say; the message says why."""


@dataclass(frozen=True)
class Place:
    """Where an image is: the registry's URL, the repository in it, and the tag."""

    url: str
    repository: str
    tag: str


def place_of(reference: str) -> Place:
    """Return where the engine would look for a reference."""
    repository, _, tag = reference.rpartition(":")
    host, slash, rest = repository.partition("/")
    if not slash or not (set(host) & set(".:") or host == "localhost"):
        path = repository if slash else f"library/{repository}"
        return Place("https://registry-1.docker.io", path, tag)
    is_here = urlsplit(f"//{host}").hostname in ("localhost", "127.0.0.1")
    return Place(f"{'http' if is_here else 'https'}://{host}", rest, tag)


class Registry:
    """A registry, asked by its HTTP API, version 2, without a login."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._session = requests.Session()
        self._session.headers["Accept"] = _MANIFESTS

    def get(self, what: str) -> bytes:
        """Return what is at a path of the repository. Raises `NotTold`."""
        url = f"{self._place.url}/v2/{self._place.repository}/{what}"
        try:
            answer = self._session.get(url, timeout=_TIMEOUT)
            if answer.status_code == 401 and "Authorization" not in self._session.headers:
                self._fetch_token(answer.headers.get("WWW-Authenticate", ""))
                answer = self._session.get(url, timeout=_TIMEOUT)
        except requests.RequestException as error:
            raise NotTold(f"{self._place.url} does not answer: {error}") from error
        if answer.status_code == 404:
            raise NotTold("there is no such tag: move it to suspect_tags.csv, with the next best")
        if not answer.ok:
            raise NotTold(f"{self._place.url} refuses: {answer.status_code} {answer.reason}")
        return answer.content

    def _fetch_token(self, challenge: str) -> None:
        asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        if "realm" in asked:
            answer = self._session.get(asked.pop("realm"), params=asked, timeout=_TIMEOUT)
            given = answer.json() if answer.ok else {}
            if token := given.get("token") or given.get("access_token"):
                self._session.headers["Authorization"] = f"Bearer {token}"

    def manifest(self) -> tuple[str, dict[str, Any]]:
        """Return digest and manifest of the build for `_ARCHITECTURE`."""
        content = self.get(f"manifests/{self._place.tag}")
        found: dict[str, Any] = parse(content)
        if "manifests" not in found:
            return digest_of(content), found
        for build in found["manifests"]:
            platform = build.get("platform", {})
            if (platform.get("os"), platform.get("architecture")) == ("linux", _ARCHITECTURE):
                return build["digest"], parse(self.get(f"manifests/{build['digest']}"))
        raise NotTold(f"it has no build for linux/{_ARCHITECTURE}")


def digest_of(content: bytes) -> str:
    """Return what a registry calls this content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def parse(content: bytes) -> dict[str, Any]:
    """Return JSON. Raises `NotTold` for what is none, as a company's proxy may answer."""
    import json

    try:
        found: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise NotTold("the answer is no JSON: is a proxy between?") from error
    return found


def facts_of(config: dict[str, Any]) -> dict[str, str]:
    """Return the columns that an image's configuration tells; pure.

    Python's version from the variable that the official images set, or from a step of the build that installed it
    with conda; CUDA and cuDNN from the variables of NVIDIA's images.
    """
    env = dict(pair.partition("=")[::2] for pair in (config.get("config") or {}).get("Env") or ())
    steps = " ".join(step.get("created_by", "") for step in config.get("history") or ())
    python = env.get("PYTHON_VERSION", "")
    if not python and (found := re.search(r"\bpython=(\d\.\d+)", steps)):
        python = found[1]
    labels = (config.get("config") or {}).get("Labels") or {}
    cudnn = env.get("NV_CUDNN_VERSION") or env.get("CUDNN_VERSION") or ""
    cudnn = cudnn or labels.get("com.nvidia.cudnn.version", "")
    system = labels.get("org.opencontainers.image.ref.name", "")
    facts = {
        "python": _two(python),
        "cuda": _two(env.get("CUDA_VERSION", "")),
        "cudnn": _two(cudnn),
        "base_os": system + labels.get("org.opencontainers.image.version", "")
        if system == "ubuntu"
        else "",
    }
    return {column: value for column, value in facts.items() if value}


def _two(version: str) -> str:
    """Return the first two parts of a version."""
    found = re.match(r"\d+\.\d+", version)
    return found[0] if found else ""


def refreshed(row: dict[str, str], digest: str, facts: dict[str, str], day: str) -> dict[str, str]:
    """Return a row with what a registry said of it on a day; pure."""
    told = {"digest": digest, "sure": "seen", **facts}
    unsure = [word for word in row["unsure"].split() if word not in told]
    source = re.sub(r"; registry \d{4}-\d\d-\d\d$", "", row["source"])
    return {**row, **told, "unsure": " ".join(unsure), "source": f"{source}; registry {day}"}


def ask(reference: str) -> tuple[str, dict[str, str]]:
    """Return digest and facts of an image, from its registry. Raises `NotTold`."""
    registry = Registry(place_of(reference))
    digest, manifest = registry.manifest()
    if "config" not in manifest:
        raise NotTold("its manifest is of the first format, which tells nothing")
    return digest, facts_of(parse(registry.get(f"blobs/{manifest['config']['digest']}")))


def as_text(rows: Sequence[dict[str, str]]) -> str:
    """Return rows as images.csv has them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main(words: Sequence[str] | None = None, file: Path = FILE) -> int:
    """Compare, tell, and write if asked to. Returns 1 where a registry did not tell."""
    parser = argparse.ArgumentParser(prog="tests.catalogue.refresh", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--write", action="store_true", help="put it into images.csv")
    parsed = parser.parse_args(words)
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    wanted = set(parsed.names)
    if unknown := wanted - {row[key] for row in rows for key in ("name", "reference")}:
        parser.error(f"no row has the name or the reference {', '.join(sorted(unknown))}")
    day = datetime.now(timezone.utc).date().isoformat()
    failed = False
    for place, row in enumerate(rows):
        if not wanted & {row["name"], row["reference"]}:
            continue
        print(f"{row['name']} ({row['reference']})")
        try:
            new = refreshed(row, *ask(row["reference"]), day)
        except NotTold as error:
            print(f"  not told: {error}")
            failed = True
            continue
        for column, value in new.items():
            if value != row[column]:
                print(f"  {column}: {row[column] or 'nothing'} -> {value or 'nothing'}")
        for problem in catalogue.problems(new):
            print(f"  wrong: {problem}")
        rows[place] = new
    if parsed.write:
        file.write_text(as_text(rows), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
