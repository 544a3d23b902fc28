"""What the first start found out about an image, kept by its id so that only that start looks."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from dockml_magic import folders
from dockml_magic.spec import RUNTIME

log = logging.getLogger(__name__)

_NOT_THE_IMAGES = ("/proc", "/dev", "/sys", str(RUNTIME))
"""Folders that are not the image's in any container."""


@dataclass(frozen=True)
class ImageMemory:
    """What is known of one image; "" where nothing is.

    Attributes
    ----------
    entry : str
        The supervisor's interpreter.
    interpreter, kernel : str
        The kernel's, and where its ipykernel is from: "image" or "bundle".
    kernelspec : str
        The image's kernelspec that runs, if it is not Python's.
    """

    entry: str = ""
    interpreter: str = ""
    kernel: str = ""
    kernelspec: str = ""

    @staticmethod
    def _path(image_id: str) -> Path:
        folder = folders.cache_root() / "images"
        with contextlib.suppress(OSError):  # a disk that is full: nothing is remembered then
            folder.mkdir(exist_ok=True)
        return folder / f"{image_id.rpartition(':')[2]}.json"

    @classmethod
    def read(cls, image_id: str) -> ImageMemory:
        """Return what is known of an image; nothing where it was not started yet."""
        try:
            found = cls(**json.loads(cls._path(image_id).read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            return cls()
        return found if all(isinstance(value, str) for value in vars(found).values()) else cls()

    def of_image_alone(self, mounted: Iterable[str]) -> ImageMemory:
        """Return this without an interpreter that is not the image's own in a container.

        It was told by a container, in which a project's own code may have run: at `/proc/self/cwd/python` the
        next one would run what lies in its workspace.

        Parameters
        ----------
        mounted : iterable of str
            Where folders of the user's are in that container.
        """
        path = PurePosixPath(self.interpreter)
        is_elsewhere = any(map(path.is_relative_to, (*_NOT_THE_IMAGES, *mounted)))
        if self.interpreter and (is_elsewhere or not path.is_absolute() or ".." in path.parts):
            return replace(self, interpreter="", kernel="")
        return self

    @classmethod
    def forget(cls, image_id: str) -> None:
        """Have the next start look again."""
        cls._path(image_id).unlink(missing_ok=True)

    def write(self, image_id: str) -> None:
        """Keep this, in place of what was known."""
        path = self._path(image_id)
        if self.read(image_id) != self:
            scratch = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
            try:
                scratch.write_text(json.dumps(self.__dict__))
                scratch.replace(path)
            except OSError as error:
                log.warning("what was found out about an image is not kept: %s", error)
                with contextlib.suppress(OSError):
                    scratch.unlink(missing_ok=True)
