"""An image made of a container."""

from __future__ import annotations

import io
import json
import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from dockml_magic import labels
from dockml_magic.engine.archives import PIECE, Pieces, make_archive
from dockml_magic.engine.complaints import raise_refusal
from dockml_magic.errors import EngineError, EngineUnreachableError

if TYPE_CHECKING:
    from dockml_magic.engine.client import DockerEngine

log = logging.getLogger(__name__)

_METADATA = "ARG|CMD|ENTRYPOINT|ENV|EXPOSE|HEALTHCHECK|LABEL|MAINTAINER|ONBUILD|SHELL|STOPSIGNAL|USER|VOLUME"

_METADATA_STEPS = tuple(
    re.compile(rf"(?:/bin/sh -c )?(?:#\(nop\) +)?(?:{words})\b")
    for words in (_METADATA, f"{_METADATA}|WORKDIR")
)
"""How steps are told in an image's history that make no layer: WORKDIR may, where it makes the folder."""

_RUNS_AS: dict[str, Any] = {"User": "", "Entrypoint": [], "Cmd": [], "WorkingDir": "", "Env": []}
"""What of an image's configuration says how it runs, and what is none of it."""


class Commit:
    """Makes an image of a container's files, and of the configuration of the container's image.

    What an engine commits by itself has the container's variables, and no change can take one away. So that
    image gets no name, and lives until an image of the same layers with a configuration of ours is loaded:
    without their contents, as `KeptLayers` does it, or where the engine cannot do that as an archive of all of it.
    As a layer (see `Engine.commit`) it gets its name at once.

    The engine goes on with a commit whoever asked has gone. A thread waits for it, and cleans up after an interrupt.
    """

    def __init__(
        self,
        engine: DockerEngine,
        container_id: str,
        reference: str,
        message: str,
        author: str,
        as_layer: Mapping[str, str] | None,
    ) -> None:
        self._api = engine._client.api  # noqa: SLF001  # a part of it
        self._engine = engine
        self._container_id = container_id
        self._reference = reference
        self._message = message
        self._author = author
        self._as_layer = as_layer
        self._is_abandoned = False
        self._problem: BaseException | None = None

    def run(self) -> None:
        """Do it, and return when it is done."""
        thread = threading.Thread(target=self._try, name="dockml-commit", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)
        except BaseException:
            self._is_abandoned = True
            raise
        if self._problem is not None:
            raise self._problem

    def _try(self) -> None:
        try:
            self._commit()
        except Exception as error:  # noqa: BLE001  # raised where it was asked for
            self._problem = error

    def _commit(self) -> None:
        api = self._api
        base = api.inspect_container(self._container_id)["Image"]
        try:
            base_config = api.inspect_image(base).get("Config") or {}
        except self._engine._errors.ImageNotFound as error:  # noqa: SLF001
            raise EngineError(
                "The image that this container was made of is not here any more.",
                hint="Copy out of the container what you need: docker cp",
            ) from error
        if self._as_layer is not None:
            image_labels = {**(base_config.get("Labels") or {}), **self._as_layer}
            config = {key: base_config.get(key) or empty for key, empty in _RUNS_AS.items()}
            repository, _, tag = self._reference.rpartition(":")
            # Nothing in it writes any more; and not every engine can pause.
            query = {"repo": repository, "tag": tag, "pause": "false"}
            self._give_name(lambda: self._ask_engine(query, {**config, "Labels": image_labels}))
            return
        raw = self._ask_engine({"changes": f"LABEL {labels.COMMITS}={self._reference}"}, {})
        try:
            made = api.inspect_image(raw)
            diff_ids = made["RootFS"]["Layers"]
            about = {
                "architecture": made.get("Architecture", ""),
                "os": made.get("Os") or "linux",
                "author": self._author,
                "comment": self._message,
                "created": made["Created"],
                "config": base_config,
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
                "history": self._history(base, diff_ids, made["Created"]),
            }
            if made.get("Variant"):
                about["variant"] = made["Variant"]
            written = json.dumps({key: value for key, value in about.items() if value}).encode()
            self._give_name(lambda: self._load(written, diff_ids, raw))
        finally:
            api.remove_image(raw, force=True, noprune=True)

    def _ask_engine(self, query: Mapping[str, str], config: Mapping[str, Any]) -> str:
        """Have the engine commit; return the image's id."""
        api = self._api
        # Not api.commit: it gives up after its time-out, and a large layer takes minutes.
        response = api.post(
            f"{api.base_url}/v{api.api_version}/commit",
            params={"container": self._container_id, **query},
            json=config,
            timeout=None,
        )
        raise_refusal(response, self._reference)
        return str(response.json()["Id"])

    def _give_name(self, make: Callable[[], object]) -> None:
        """Make what has the name, unless an interrupt came; one that comes meanwhile takes the name away again.

        But not where there was an image of that name: it would be lost.
        """
        if self._is_abandoned:
            return
        was_there = self._engine.find_image(self._reference) is not None
        make()
        if self._is_abandoned and not was_there:
            self._api.remove_image(self._reference, noprune=True)

    def _history(self, base: str, diff_ids: Sequence[str], created: str) -> list[dict[str, Any]]:
        """Return the base's history and this step; of the base nothing where its layers cannot be told."""
        rows = list(reversed(self._api.history(base)))
        below = len(self._api.inspect_image(base)["RootFS"].get("Layers") or ())
        steps: list[dict[str, Any]] = []
        for metadata in _METADATA_STEPS:
            empty = [not row["Size"] and bool(metadata.match(row["CreatedBy"])) for row in rows]
            if empty.count(False) == below:
                steps = [
                    {
                        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row["Created"])),
                        "created_by": row["CreatedBy"],
                        "comment": row["Comment"],
                        "empty_layer": is_empty,
                    }
                    for row, is_empty in zip(rows, empty, strict=True)
                ]
                break
        own = {
            "created": created,
            "created_by": "dockml commit",
            "author": self._author,
            "comment": self._message,
            "empty_layer": len(diff_ids) == below,
        }
        return [{key: value for key, value in step.items() if value} for step in [*steps, own]]

    def _load(self, config: bytes, diff_ids: Sequence[str], raw: str) -> None:
        paths = [f"{diff_id.partition(':')[2]}/layer.tar" for diff_id in diff_ids]
        try:
            self._engine.load(iter([self._archive(config, paths)]))
        except EngineUnreachableError:
            raise
        except EngineError as error:
            log.info("the engine does not load layers that it has: %s", error)
            with tempfile.TemporaryFile() as file:
                self._write_archive(file, config, raw)
                file.seek(0)
                self._engine.load(iter(lambda: file.read(PIECE), b""))

    def _archive(self, config: bytes, paths: Sequence[str]) -> bytes:
        manifest = [{"Config": "config.json", "RepoTags": [self._reference], "Layers": paths}]
        return make_archive(
            {
                PurePosixPath("manifest.json"): json.dumps(manifest).encode(),
                PurePosixPath("config.json"): config,
            }
        )

    def _write_archive(self, file: IO[bytes], config: bytes, raw: str) -> None:
        """Write the raw image's archive with another configuration."""
        import tarfile  # here, as above

        paths: list[str] = []
        whole = Pieces(self._engine.save([raw]))
        with (
            tarfile.open(fileobj=whole, mode="r|") as read,  # type: ignore[call-overload]
            tarfile.open(fileobj=file, mode="w") as written,
        ):
            for member in read:
                content = read.extractfile(member) if member.isfile() else None
                if member.name == "manifest.json" and content is not None:
                    paths = json.load(content)[0]["Layers"]
                elif member.name not in ("repositories", "index.json", "oci-layout"):
                    written.addfile(member, content)
            with tarfile.open(fileobj=io.BytesIO(self._archive(config, paths))) as ours:
                for member in ours:
                    written.addfile(member, ours.extractfile(member))
