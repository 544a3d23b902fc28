"""A pull: how far it is, and why it failed. No I/O here.

`PullMeter` turns the engine's events into a `PullProgress`; `pull_error` turns what the engine said into
an error that tells what to do.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dockml_magic.errors import ConfigError, EngineError, ImageUnavailableError

DOCKER_HUB = "docker.io"

SPEED_WINDOW = 5.0
"""Seconds over which the speed is taken."""

_SHORTEST_WINDOW = 0.5

Phase = Literal["expected", "waiting", "downloading", "downloaded", "unpacking", "done", "here"]
"""Of a layer. "expected" is one of the manifest that the engine has not spoken of yet, "here" one it had before."""

_PHASES: Mapping[str, Phase] = {
    "Pulling fs layer": "waiting",
    "Waiting": "waiting",
    "Downloading": "downloading",
    "Verifying Checksum": "downloaded",
    "Download complete": "downloaded",
    "Extracting": "unpacking",
    "Pull complete": "done",
    "Already exists": "here",
}


@dataclass(frozen=True, kw_only=True)
class ImageName:
    """A reference, taken apart.

    Attributes
    ----------
    host : str
        The registry, "docker.io" where none is named.
    repository : str
        As the registry calls it: "library/python".
    tag : str
        A tag, or a digest ("sha256:…").
    """

    host: str
    repository: str
    tag: str

    @property
    def is_on_docker_hub(self) -> bool:
        """The registry is Docker Hub, whose mirrors an engine may have."""
        return self.host == DOCKER_HUB


_PATH = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?=[^/]*[.:]|localhost/)(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::\d+)?"
_REFERENCE = re.compile(rf"(?:{_HOST}/)?{_PATH}(?:/{_PATH})*(?::[\w][\w.-]{{0,127}})?", re.ASCII)


def is_reference(text: str) -> bool:
    """Tell whether a text can be the name of an image, with or without a tag, as Docker reads it."""
    return len(text) <= 255 and _REFERENCE.fullmatch(text) is not None


def check_reference(text: str) -> str:
    """Return a name for an image. Raises `ConfigError` for what is none."""
    if not is_reference(text):
        raise ConfigError(
            f"'{text}' cannot be the name of an image.",
            hint="Write it as in me/mine:1 - small letters, digits and . _ - between them, then :TAG",
        )
    return text


def split_reference(reference: str) -> ImageName:
    """Return what a reference names, with Docker's defaults."""
    name, _, digest = reference.partition("@")
    path, _, tag = name.rpartition(":")
    if not path or "/" in tag:
        path, tag = name, "latest"
    first, _, rest = path.partition("/")
    host = DOCKER_HUB
    if rest and ("." in first or ":" in first or first == "localhost"):
        host, path = DOCKER_HUB if first == f"index.{DOCKER_HUB}" else first, rest
    if host == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    return ImageName(host=host, repository=path, tag=digest or tag)


# --- how far it is --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LayerProgress:
    """One layer of an image that is being pulled.

    Attributes
    ----------
    id : str
        The first 12 digits of its digest.
    phase : Phase
        What is being done with it.
    done : int
        Bytes that have arrived, compressed.
    total : int or None
        Bytes to download; None as long as nobody has said.
    unpacked : int
        Bytes of the compressed layer that are unpacked.
    retry_in : int
        Seconds until the engine tries the download again, 0 where it does not wait for that.
    """

    id: str
    phase: Phase = "waiting"
    done: int = 0
    total: int | None = None
    unpacked: int = 0
    retry_in: int = 0

    def __str__(self) -> str:
        """Return what is being done with it, in words."""
        if self.retry_in:
            return f"failed, next try in {self.retry_in} s"
        if self.phase == "downloading":
            of = f" of {format_size(self.total)}" if self.total else ""
            return f"downloading, {format_size(self.done)}{of}"
        size = f", {format_size(self.total)}" if self.total else ""
        return "here already" if self.phase == "here" else self.phase + size


@dataclass(frozen=True, kw_only=True)
class PullProgress:
    """How far a pull is.

    Attributes
    ----------
    reference : str
        The image.
    layers : tuple of LayerProgress
        From the bottom up; none before the registry has answered.
    speed : float or None
        Bytes a second over the last seconds; None at first.
    elapsed : float
        Seconds since it began.
    is_complete : bool
        The engine has the image.
    """

    reference: str
    layers: tuple[LayerProgress, ...] = ()
    speed: float | None = None
    elapsed: float = 0.0
    is_complete: bool = False

    @property
    def wanted(self) -> tuple[LayerProgress, ...]:
        """The layers that were not here."""
        return tuple(layer for layer in self.layers if layer.phase != "here")

    @property
    def done(self) -> int:
        """Bytes that have arrived."""
        return sum(layer.done for layer in self.wanted)

    @property
    def total(self) -> int | None:
        """Bytes to download, compressed; None as long as a layer's size is not known."""
        sizes = [layer.total for layer in self.wanted]
        if not self.layers:
            return None
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def is_settled(self) -> bool:
        """It is known what has to be downloaded, and how much."""
        is_told = all(layer.phase != "expected" for layer in self.layers)
        return is_told and self.total is not None

    @property
    def phase(self) -> Literal["asking", "downloading", "unpacking", "done"]:
        """What is being done."""
        if self.is_complete:
            return "done"
        if not self.layers:
            return "asking"
        is_loading = any(
            layer.phase in ("expected", "waiting", "downloading") for layer in self.wanted
        )
        return "downloading" if is_loading else "unpacking"

    @property
    def fraction(self) -> float | None:
        """Of the present phase, 0 to 1; None where it cannot be said."""
        if self.is_complete:
            return 1.0
        if self.phase == "asking" or self.total is None:
            return None
        unpacked = sum(
            (layer.total or 0) if layer.phase == "done" else layer.unpacked for layer in self.wanted
        )
        done = self.done if self.phase == "downloading" else unpacked
        return min(1.0, done / self.total) if self.total else 1.0

    @property
    def seconds_left(self) -> float | None:
        """Until everything has arrived; None where it cannot be said."""
        if self.phase != "downloading" or self.total is None or not self.speed:
            return None
        return max(0, self.total - self.done) / self.speed

    def __str__(self) -> str:
        """Return it in words: bytes, speed and time left."""
        if self.phase == "asking":
            waited = f" ({format_seconds(self.elapsed)})" if self.elapsed >= 5 else ""
            return "asking the registry" + waited
        if self.phase == "done":
            loaded = format_size(self.done) if self.wanted else "nothing to download"
            return f"{loaded} in {format_seconds(self.elapsed)}"
        if self.phase == "unpacking":
            ready = sum(layer.phase == "done" for layer in self.wanted)
            return f"{format_size(self.done)} here, unpacking: {ready} of {len(self.wanted)} layers"
        parts = [
            f"{format_size(self.done)} of {format_size(self.total)}"
            if self.total is not None
            else f"{format_size(self.done)} of more than {format_size(self._known_total)}"
        ]
        retries = [layer.retry_in for layer in self.wanted if layer.retry_in]
        if retries:
            parts.append(f"the registry failed, next try in {min(retries)} s")
        elif self.speed is not None:
            parts.append(f"{format_size(self.speed)}/s" if self.speed >= 1 else "nothing arrives")
        if self.seconds_left is not None and not retries:
            parts.append(f"{format_seconds(self.seconds_left)} left")
        return ", ".join(parts)

    @property
    def _known_total(self) -> int:
        return sum(layer.total or 0 for layer in self.wanted)


class PullMeter:
    """Turns the events of an engine's pull into how far it is.

    Parameters
    ----------
    reference : str
        The image.
    clock : callable, optional
        Gives seconds.
    """

    def __init__(
        self,
        reference: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reference = reference
        self._clock = clock
        self._began = clock()
        self._layers: dict[str, LayerProgress] = {}
        self._samples: deque[tuple[float, int]] = deque()
        self._is_complete = False

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Take in what the manifest says: bytes of each layer, by the first 12 digits of its digest."""
        for layer_id, size in sizes.items():
            was = self._layers.get(layer_id) or LayerProgress(id=layer_id, phase="expected")
            if was.total is None:
                is_here = was.phase in ("downloaded", "unpacking", "done")
                self._layers[layer_id] = replace(
                    was, total=size, done=size if is_here else was.done
                )

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in an event of the engine: a decoded line of what `POST /images/create` answers."""
        status, layer_id = str(event.get("status", "")), str(event.get("id", ""))
        if status.startswith("Status: "):
            self._is_complete = True
            for layer in self._layers.values():
                if layer.phase == "expected":  # an image that is up to date is not looked into
                    self._layers[layer.id] = replace(layer, phase="here")
        retry = re.fullmatch(r"Retrying in (\d+) seconds?", status)
        if not layer_id or not (retry or status in _PHASES):
            return
        was = self._layers.get(layer_id) or LayerProgress(id=layer_id)
        if retry:
            self._layers[layer_id] = replace(was, phase="waiting", retry_in=int(retry[1]))
            return
        phase = _PHASES[status]
        detail = event.get("progressDetail") or {}
        # Engines with containerd's store tell the seconds of unpacking, not its bytes.
        current = 0 if detail.get("units") else int(detail.get("current") or 0)
        total = int(detail.get("total") or 0)
        size, done, unpacked = was.total, was.done, was.unpacked
        if phase == "downloading":
            # A download that goes on after a failure counts only what was missing.
            size = max(size or 0, total) or None
            done = current + ((size or 0) - total if total > 0 else 0)
        elif phase in ("downloaded", "unpacking", "done"):
            # A small layer is there before it has said how large it is.
            size = done = size if size is not None else done
        if phase == "unpacking":
            unpacked = current
        self._layers[layer_id] = LayerProgress(
            id=layer_id, phase=phase, done=done, total=size, unpacked=unpacked
        )

    def progress(self) -> PullProgress:
        """Return how far it is now. Ask now and then: the speed is taken between these calls."""
        now = self._clock()
        progress = PullProgress(
            reference=self._reference,
            layers=tuple(self._layers.values()),
            elapsed=now - self._began,
            is_complete=self._is_complete,
        )
        if progress.layers:
            self._samples.append((now, progress.done))
        while len(self._samples) > 2 and self._samples[1][0] <= now - SPEED_WINDOW:
            self._samples.popleft()
        return replace(progress, speed=self._speed())

    def _speed(self) -> float | None:
        if not self._samples:
            return None
        (since, before), (now, done) = self._samples[0], self._samples[-1]
        if now - since < _SHORTEST_WINDOW:
            return None
        return max(0, done - before) / (now - since)


def format_size(size: float | None) -> str:
    """Return bytes as Docker writes them, in powers of 1000: "1.2 GB"."""
    value, units = float(size or 0), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    digits = 1 if 0 < value < 9.95 and units[0] != "B" else 0
    return f"{value:.{digits}f} {units[0]}"


def format_seconds(seconds: float) -> str:
    """Return a duration as a reader wants it: "4.2 s", "3 min 5 s", "1 h 20 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# --- room -----------------------------------------------------------------------------------------

_UNPACKED = 2.0
"""How many times its compressed size an image takes once it is unpacked; about that for most frameworks'."""

_AT_MOST = 3.0
"""The same for a pull in which everything has arrived before the first layer is unpacked."""


def check_room(progress: PullProgress, free: int, folder: Path) -> str:
    """Return a warning where an image may not fit on the engine's disk, "" where it does.

    Parameters
    ----------
    progress : PullProgress
        Settled.
    free : int
        Bytes on that disk.
    folder : Path
        The engine's, on it.

    Raises
    ------
    ImageUnavailableError
        If it will not fit.
    """
    download = progress.total or 0
    if free >= download * _AT_MOST:
        return ""
    says = (
        f"it takes about {format_size(download * _UNPACKED)} unpacked, and {format_size(free)} are "
        f"free on the engine's disk ({folder})"
    )
    if free < download * _UNPACKED:
        raise ImageUnavailableError(progress.reference, f"{says}.", hint=_SPACE_HINT)
    return f"{progress.reference} may not fit: {says}"


# --- why it failed --------------------------------------------------------------------------------

_SPACE_HINT = (
    "See what takes it: docker system df. Remove what nobody uses: docker image prune, docker builder prune.\n"
    'Or give the engine a larger disk: "data-root" in /etc/docker/daemon.json.'
)
_RESTART = "sudo systemctl restart docker"
_MIRROR = f'"registry-mirrors": ["https://MIRROR"] in /etc/docker/daemon.json, then: {_RESTART}'
_PROXY = (
    "Behind a company network the engine needs its proxy: sudo systemctl edit docker, there "
    f"[Service] Environment=HTTPS_PROXY=http://PROXY:PORT, then: {_RESTART}"
)


@dataclass(frozen=True)
class _Cause:
    """Why a pull failed.

    In `reason` and hints stand {host}, {repository}, {tag}, {login} (the command) and {said} (the engine's words).

    Attributes
    ----------
    pattern : str
        What the engine says; a regular expression, in any case.
    reason, hint : str
        What we say.
    hub_hint : str
        The hint for Docker Hub, where it is another.
    """

    pattern: str
    reason: str
    hint: str
    hub_hint: str = ""


_NO_TAG = r"manifest unknown|manifest for .* not found|: not found$|no such image"

_CAUSES = (
    _Cause(
        r"no space left on device|disk quota exceeded", "the engine's disk is full.", _SPACE_HINT
    ),
    _Cause(
        r"toomanyrequests|too many requests|\b429\b|rate limit",
        "{host} lets this address pull no more for now (its rate limit).",
        "Wait a while, or log in: {login}",
        "More is allowed after: docker login. Else wait; it counts over 6 hours.\n"
        f"Or ask for a mirror of it: {_MIRROR}",
    ),
    _Cause(
        r"no matching manifest|does not match the (?:specified|detected) .*platform",
        "it is not built for this engine's machine: {said}.",
        "Choose another image or tag. What it is built for: docker manifest inspect {host}/{repository}:{tag}",
    ),
    _Cause(
        r"schema ?1\b|manifest\.v1\+|image format v1",
        "it is in a format of before 2017 that this engine reads no more: {said}.",
        "Choose a newer tag. Or pull it with an older engine, push it from there, and pull that.",
    ),
    _Cause(
        r"certificate has expired|not yet valid",
        "the registry's certificate is out of date, or this machine's clock is wrong: {said}.",
        "Look at the clock: date. Else the registry's administrator has to renew the certificate.",
    ),
    _Cause(
        r"x509:|certificate signed by unknown|failed to verify certificate",
        "the engine does not trust the registry's certificate: {said}.",
        "Ask for the certificate of the authority that signed it, and put it into\n"
        "/etc/docker/certs.d/{host}/ca.crt (no restart needed).",
        "A company proxy reads the connection. Put its certificate into /usr/local/share/ca-certificates/NAME.crt,\n"
        f"then: sudo update-ca-certificates && {_RESTART}",
    ),
    _Cause(
        r"HTTP response to HTTPS client|first record does not look like a TLS",
        "{host} speaks plain HTTP, and the engine wants TLS.",
        'If you trust the network between: "insecure-registries": ["{host}"] in /etc/docker/daemon.json,\n'
        f"then: {_RESTART}",
    ),
    _Cause(
        r"invalid reference format|must be lowercase|invalid tag|invalid repository name",
        "{said}.",
        "A reference is REPOSITORY:TAG in small letters, such as python:3.11-slim.",
    ),
    _Cause(
        r"\bunauthorized\b|access denied|^denied\b|: denied\b|requested access|no basic auth credentials"
        r"|name unknown|repository .*(?:not known|does not exist)|incorrect username",
        "{host} has no '{repository}', or does not show it to you ({said}).",
        "Check the spelling. If it is private: {login}",
    ),
    _Cause(
        _NO_TAG,
        "{host} has no tag '{tag}' of '{repository}'.",
        "Check the spelling of both.",
        "Check the spelling of both. All tags: https://hub.docker.com/r/{repository}/tags",
    ),
    _Cause(
        r"unexpected HTTP status|error parsing HTTP|unknown blob|blob unknown|verification failed"
        r"|unexpected status|Internal Server Error|Bad Gateway|Service Unavailable",
        "{host}, or a proxy before it, failed: {said}.",
        "Try again later. If your company's proxy refuses, ask for an exception for {host}.",
    ),
    _Cause(
        r"dial tcp|lookup |no such host|timeout|timed out|deadline exceeded|refused|reset by peer|EOF"
        r"|unreachable|proxyconnect|request canceled|broken pipe|no route",
        "the engine does not reach {host}, or loses it: {said}.",
        _PROXY,
        f"{_PROXY}\nOr ask for a mirror: {_MIRROR}",
    ),
)
"""The first whose pattern is found counts."""


def pull_error(reference: str, said: str, tags: Sequence[str] = ()) -> EngineError:
    """Return our error for what the engine said of a pull.

    Parameters
    ----------
    reference : str
        The image.
    said : str
        In the engine's words.
    tags : sequence of str
        Of the repository, or those of it that are known; for suggestions.
    """
    name = split_reference(reference)
    words = {
        **vars(name),
        "repository": name.repository.removeprefix("library/"),
        "said": " ".join(said.split()).rstrip("."),
        "login": "docker login" if name.is_on_docker_hub else f"docker login {name.host}",
    }
    near = ", ".join(nearest_tags(name.tag, tags))
    if near and is_unknown_tag(said):
        return ImageUnavailableError(
            reference,
            "{host} has no tag '{tag}' of '{repository}'.".format_map(words),
            hint=f"The nearest tags are: {near}.",
        )
    for cause in _CAUSES:
        if re.search(cause.pattern, words["said"], re.IGNORECASE):
            hint = (cause.hub_hint if name.is_on_docker_hub else "") or cause.hint
            reason = cause.reason.format_map(words)
            return ImageUnavailableError(reference, reason, hint=hint.format_map(words))
    return ImageUnavailableError(
        reference,
        f"{words['said']}.",
        hint="The engine's own log may say more: journalctl -u docker",
    )


def is_unknown_tag(said: str) -> bool:
    """Tell whether the engine said that there is no such tag, so that others are worth looking for."""
    return re.search(_NO_TAG, said, re.IGNORECASE) is not None


def nearest_tags(tag: str, tags: Sequence[str]) -> list[str]:
    """Return the tags that are nearest to one that does not exist, best first."""
    from difflib import get_close_matches  # here: `%load_ext` does without it

    longer = sorted(known for known in tags if known.startswith((f"{tag}-", f"{tag}.")))
    near = get_close_matches(tag, tags, n=4, cutoff=0.5)
    return list(dict.fromkeys([*longer[:2], *near]))[:4]
