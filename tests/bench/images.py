"""The images and folders that a run makes for itself, all labelled, all removed in its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

import docker
import docker.errors

from dockml_magic.image_memory import ImageMemory
from dockml_magic.labels import NAMESPACE, WORKSPACE
from tests.images.bases import build_image

LABEL = f"{NAMESPACE}.bench"
"""On every container and image that the bench makes; its value is the run's folder.

A container has its image's labels, so that those of peers which take no label have it, too.
"""


class Images:
    """What one run makes.

    Parameters
    ----------
    engine : DockerClient
        Connected already.
    workspace : Path
        The run's folder.
    """

    def __init__(self, engine: docker.DockerClient, workspace: Path) -> None:
        self.engine = engine
        self.workspace = workspace
        self.label = f"{LABEL}={workspace}"
        self._made: dict[tuple[str, str], str] = {}
        self._numbers = count()

    def new_folder(self, name: str) -> Path:
        """Return a new folder in the workspace."""
        folder = self.workspace / f"{name}-{next(self._numbers)}"
        folder.mkdir()
        return folder

    def derive(
        self,
        name: str,
        base: str,
        lines: Sequence[str],
        files: Mapping[str, bytes] | None = None,
    ) -> str:
        """Return the reference of an image made of `base`, once in a run."""
        if (name, base) not in self._made:
            self._made[name, base] = self.new(name, base, lines, files)
        return self._made[name, base]

    def new(
        self,
        name: str,
        base: str,
        lines: Sequence[str] = (),
        files: Mapping[str, bytes] | None = None,
    ) -> str:
        """Return the reference of a new image made of `base`, whose id was never there before."""
        tag = f"dockml-bench/{name}:{self.workspace.name.lower()}-{next(self._numbers)}"
        recipe = "\n".join([f"FROM {base}", f"LABEL tag={tag}", *lines, ""])
        content = {"Dockerfile": recipe.encode(), **(files or {})}
        labels = {LABEL: str(self.workspace)}
        build_image(self.engine, tag, content, arguments={}, labels=labels)
        return tag

    def containers(self) -> set[str]:
        """Return the ids of this run's containers, whoever made them, stopped ones included."""
        found: set[str] = set()
        for label in (self.label, f"{WORKSPACE}={self.workspace}"):
            rows = self.engine.api.containers(all=True, filters={"label": label})
            found |= {row["Id"] for row in rows}
        return found

    def remove_all(self) -> None:
        """Remove this run's containers and images, and what is remembered of the latter.

        Until two looks find nothing: the engine may be at work for a request that was interrupted, or
        an image may be in use by a container that is on its way out.
        """
        api = self.engine.api
        looks_without = 0
        deadline = time.monotonic() + 30.0
        while looks_without < 2 and time.monotonic() < deadline:
            containers = self.containers()
            images = {row["Id"] for row in api.images(filters={"label": self.label})}
            looks_without = 0 if containers or images else looks_without + 1
            for number in containers:
                with contextlib.suppress(docker.errors.APIError):
                    api.remove_container(number, force=True, v=True)
            for number in images:
                ImageMemory.forget(number)
                with contextlib.suppress(docker.errors.APIError):
                    api.remove_image(number, force=True)
            time.sleep(0.5)
