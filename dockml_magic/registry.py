"""What a registry tells besides the engine: an image's layers, and which tags there are.

Both are an aid: whatever goes wrong here, the answer is empty, and the pull goes its way through the engine.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dockml_magic.pull import ImageName

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

Login = tuple[str, str]
"""User and password."""

_MANIFESTS = ", ".join(
    [
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
    ]
)
_TIMEOUT = (3.0, 6.0)
_LARGEST_ANSWER = 16 * 1024**2
"""Bytes that are read of an answer: manifests have thousands, lists of tags may have a million."""
_CERTIFICATES = Path("/etc/docker/certs.d")
_DOCKER_HUB = "https://registry-1.docker.io"
_ENOUGH = 20
"""Pulls that Docker Hub must still allow for us to read a manifest, which it counts as one."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer as the registry has it.

    Attributes
    ----------
    id : str
        The first 12 digits of its digest, as engines show it.
    size : int
        Bytes, compressed.
    diff_id : str
        The digest of what is in it; "" if unknown.
    """

    id: str
    size: int
    diff_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Registry:
    """Where an image is, and how the engine gets there.

    Attributes
    ----------
    name : ImageName
        The image.
    mirrors : sequence of str
        URLs of the engine's mirrors of Docker Hub.
    is_plain : bool
        The engine would speak plain HTTP to it.
    login : (str, str) or None
        The reader's user and password there.
    """

    name: ImageName
    mirrors: Sequence[str] = ()
    is_plain: bool = False
    login: Login | None = field(default=None, repr=False)

    def layers(self, architecture: str) -> list[Layer]:
        """Return the layers from the bottom up, [] if they are unknown.

        Parameters
        ----------
        architecture : str
            Of the build that the engine takes: "amd64".
        """
        for place in self._places():
            with _nothing_if_it_fails():
                manifest = place.manifest(self.name.tag, architecture)
                layers = manifest.get("layers") or ()
                diff_ids: list[str] = [""] * len(layers)
                with _nothing_if_it_fails():
                    config = place.get(f"blobs/{manifest['config']['digest']}").json()
                    diff_ids = config["rootfs"]["diff_ids"]
                if layers:
                    return [
                        Layer(
                            id=layer["digest"].partition(":")[2][:12],
                            size=int(layer["size"]),
                            diff_id=diff_id,
                        )
                        for layer, diff_id in zip(layers, diff_ids, strict=True)
                    ]
        return []

    def tags(self) -> list[str]:
        """Return the tags of its repository, [] if they are unknown."""
        for place in self._places():
            with _nothing_if_it_fails():
                if tags := place.get("tags/list").json().get("tags"):
                    return [str(tag) for tag in tags]
        return []

    def _places(self) -> Iterator[_Place]:
        import requests

        with requests.Session() as session:
            if self.name.is_on_docker_hub:
                for mirror in self.mirrors:  # which no engine gives the login for Docker Hub
                    yield _Place(session, mirror.rstrip("/"), self.name, None)
                yield _Place(session, _DOCKER_HUB, self.name, self.login)
                return
            host = self.name.host
            is_plain = self.is_plain or is_loopback(host)
            base = f"{'http' if is_plain else 'https'}://{host}"
            yield _Place(session, base, self.name, self.login)


@dataclass
class _Place:
    """One address at which a registry answers."""

    session: requests.Session
    base: str
    name: ImageName
    login: Login | None = field(repr=False)

    def manifest(self, tag: str, architecture: str) -> dict[str, Any]:
        """Return the manifest of the build for a machine; {} where reading it would cost too much."""
        left = self.get(f"manifests/{tag}", method="HEAD").headers.get("ratelimit-remaining", "")
        if left and int(left.partition(";")[0]) < _ENOUGH:
            return {}
        found: dict[str, Any] = self.get(f"manifests/{tag}").json()
        for build in found.get("manifests") or ():
            platform = build.get("platform") or {}
            if (platform.get("os"), platform.get("architecture")) == ("linux", architecture):
                return self.manifest(build["digest"], architecture)
        return found

    def get(self, what: str, method: str = "GET") -> requests.Response:
        """Ask, and log in if that is wanted. Raises for every answer that is no success."""
        url = f"{self.base}/v2/{self.name.repository}/{what}"
        response = self._ask(method, url)
        if response.status_code == 401:
            challenge = response.headers.get("WWW-Authenticate", "")
            response = self._ask(method, url, **self._answer_to(challenge))
        response.raise_for_status()
        return response

    def _ask(self, method: str, url: str, **more: Any) -> requests.Response:
        certificate = _CERTIFICATES / urlsplit(url).netloc / "ca.crt"
        response = self.session.request(
            method,
            url,
            headers={"Accept": _MANIFESTS, **more.pop("headers", {})},
            timeout=_TIMEOUT,
            verify=str(certificate) if certificate.is_file() else True,
            stream=True,
            **more,
        )
        read = 0
        blocks = []
        for block in response.iter_content(65536):
            read += len(block)
            if read > _LARGEST_ANSWER:
                response.close()
                raise ValueError("an answer without an end")
            blocks.append(block)
        response._content = b"".join(blocks)  # noqa: SLF001 - what `content` and `json` would read without a limit
        return response

    def _answer_to(self, challenge: str) -> dict[str, Any]:
        """Return what to add to a request so that it answers the registry's question for a login."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() != "bearer":
            return {"auth": self.login} if self.login else {}
        asked: Mapping[str, str] = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = asked["realm"]
        if urlsplit(realm).scheme != "https" and urlsplit(self.base).scheme == "https":
            return {}
        scope = f"repository:{self.name.repository}:pull"
        response = self.session.get(
            realm,
            params={"service": asked.get("service", ""), "scope": asked.get("scope", scope)},
            auth=self.login,
            timeout=_TIMEOUT,
        )
        response.raise_for_status()
        given = response.json()
        return {
            "headers": {"Authorization": f"Bearer {given.get('token') or given['access_token']}"}
        }


@contextlib.contextmanager
def _nothing_if_it_fails() -> Iterator[None]:
    import requests

    try:
        yield
    except (
        requests.RequestException,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as e:
        log.debug("the registry was of no help: %s", type(e).__name__)


def is_loopback(host: str) -> bool:
    """Tell whether a registry is on this machine, where engines do without TLS."""
    name = host.rpartition(":")[0] or host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
