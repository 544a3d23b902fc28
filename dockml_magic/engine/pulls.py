"""A pull: its events as they come, and the layers that it has fetched so far, kept for the next one."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from dockml_magic import labels
from dockml_magic.engine.answers import label_filter, references_of, refusal_in
from dockml_magic.engine.archives import make_archive
from dockml_magic.engine.contract import EngineFacts
from dockml_magic.pull import PullProgress

if TYPE_CHECKING:
    import docker
    import requests

    from dockml_magic.registry import Layer, Registry

log = logging.getLogger(__name__)

_LAST_WORDS = 5.0
"""Seconds that the thread that reads a pull's events has to see that it was ended."""

REPORT_INTERVAL = 0.2
"""Seconds between two reports of a pull."""


class Events:
    """The events of a pull as they come, and {} whenever none has come for a while.

    Two threads wait for the engine and the registry, as who iterates must see an interrupt or a stop at once.
    Leaving ends the pull: an engine drops it when its client has gone.

    Parameters
    ----------
    ask : callable
        Asks the engine, and returns its answer when that begins.
    registry : Registry
        Asked for the layers, which arrive as {"layers": …}.
    facts : EngineFacts
        Of the engine.
    """

    def __init__(
        self, ask: Callable[[], requests.Response], registry: Registry, facts: EngineFacts
    ) -> None:
        self._ask = ask
        self._registry = registry
        self._facts = facts
        self._arrived: queue.SimpleQueue[dict[str, Any] | Exception | None] = queue.SimpleQueue()
        self._response: requests.Response | None = None
        self._has_left = False
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="dockml-pull", daemon=True)

    def __enter__(self) -> Iterator[dict[str, Any]]:
        self._reader.start()
        if self._facts.architecture:
            threading.Thread(target=self._ask_layers, name="dockml-layers", daemon=True).start()
        return self._events()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._has_left = True
            if self._response is None:  # the engine has not answered yet; `_read` will see
                return
        # Closing alone would not wake the thread that reads, and so not end the connection.
        with (
            contextlib.suppress(OSError, ValueError, AttributeError),  # it has ended by itself
            socket.socket(fileno=os.dup(self._response.raw.fileno())) as connection,
        ):
            connection.shutdown(socket.SHUT_RDWR)
        self._reader.join(_LAST_WORDS)
        self._response.close()

    def _events(self) -> Iterator[dict[str, Any]]:
        while True:
            try:
                event = self._arrived.get(timeout=REPORT_INTERVAL)
            except queue.Empty:
                event = {}
            if isinstance(event, Exception):
                raise event
            if event is None:
                return
            yield event

    def _read(self) -> None:
        import requests.exceptions
        import urllib3.exceptions

        try:
            response = self._ask()
            with self._lock:
                if self._has_left:
                    response.close()
                    return
                self._response = response
        except (requests.exceptions.RequestException, OSError) as error:
            self._arrived.put(error)
            return
        try:
            if not response.ok:
                self._arrived.put({"error": refusal_in(response)})
            for line in response.iter_lines() if response.ok else ():
                self._arrived.put(json.loads(line) if line else {})
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
            ValueError,
            AttributeError,  # what urllib3 makes of a connection that is closed under it
        ) as error:
            log.debug("the engine's answer broke off: %s", error)
        finally:
            self._arrived.put(None)

    def _ask_layers(self) -> None:
        if layers := self._registry.layers(self._facts.architecture):
            self._arrived.put({"layers": layers})


class KeptLayers:
    """The layers that are complete, kept for a pull that may not come to its end.

    An engine drops them with the pull, as no image has them. So it is given one, without a name: an image of
    the layers that are complete, which is loaded without their contents, as the engine has these already.
    `docker image prune` removes it as any other that nobody uses. An engine that cannot do that (containerd's
    store) has its own way of keeping them.

    Parameters
    ----------
    api : docker.APIClient
        The engine.
    reference : str
        The image that is pulled.
    facts : EngineFacts
        Of the engine.

    Attributes
    ----------
    layers : sequence of Layer
        Of the image, once they are known; without them nothing is kept.
    """

    def __init__(self, api: docker.APIClient, reference: str, facts: EngineFacts) -> None:
        self._api = api
        self._reference = reference
        self._facts = facts
        self._kept = 0
        self.layers: Sequence[Layer] = ()

    def update(self, progress: PullProgress) -> None:
        """Keep what is complete by now."""
        phases = {layer.id: layer.phase for layer in progress.layers}
        complete = list(
            itertools.takewhile(
                lambda layer: layer.diff_id and phases.get(layer.id) in ("done", "here"),
                self.layers,
            )
        )
        if self._kept < len(complete) < len(self.layers):
            self._kept = len(complete)
            self._replace_by([layer.diff_id for layer in complete])

    def drop(self) -> None:
        """Keep nothing any more: the image itself has the layers."""
        self._replace_by([])

    def _replace_by(self, diff_ids: Sequence[str]) -> None:
        import docker.errors
        import requests.exceptions

        with contextlib.suppress(
            docker.errors.DockerException, requests.exceptions.RequestException
        ):
            own = {labels.KEEPS: self._reference, labels.USER: str(os.getuid())}
            before = [
                image["Id"]
                for image in self._api.images(filters={"label": label_filter(own)})
                if image.get("Labels") == own and not references_of(image)
            ]  # an image that a user has built has more, or a name
            kept, archive = self._image(diff_ids)
            if diff_ids and kept not in before:
                said = list(self._api.load_image(archive))
                if any("error" in event for event in said):
                    self.layers = ()  # it cannot
            for image_id in set(before) - {kept if diff_ids else ""}:
                self._api.remove_image(image_id, force=True)

    def _image(self, diff_ids: Sequence[str]) -> tuple[str, bytes]:
        """Return an image's id and its archive."""
        about = {
            "architecture": self._facts.architecture,
            "os": "linux",
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "config": {"Labels": {labels.KEEPS: self._reference, labels.USER: str(os.getuid())}},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        }
        config = json.dumps(about).encode()
        paths = [f"{diff_id.partition(':')[2]}/layer.tar" for diff_id in diff_ids]
        manifest = [{"Config": "config.json", "RepoTags": None, "Layers": paths}]
        archive = make_archive(
            {
                PurePosixPath("manifest.json"): json.dumps(manifest).encode(),
                PurePosixPath("config.json"): config,
            }
        )
        return f"sha256:{hashlib.sha256(config).hexdigest()}", archive
