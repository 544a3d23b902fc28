"""An image's compiled code: left by its first start, used by the later ones.

Images as they come have no byte code of Python's own library, and who runs in them may write none: Python would compile
it at every start, which takes as long as all the rest. `resources/start.py` has the format, and what uses it.

What a container leaves is nothing but bytes here: its size and its digest are checked, and it is never looked into. It
goes into containers of the same image only, and was left before anything else than that image's own code ran.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.resources
import logging
import os
import secrets
import zlib
from collections.abc import Collection
from pathlib import Path

from dockml_magic import folders
from dockml_magic._version import __version__
from dockml_magic.folders import RuntimeFolder
from dockml_magic.options import RunOptions

log = logging.getLogger(__name__)

NAME = "compiled"
"""Of the file in the runtime folder."""

SCRIPTS = ("launch.py", "later.py")
"""Ours, of which the code is kept, too."""

MOST_BYTES = 80 * 1024 * 1024
"""Of one image; Python 3.11 and ipykernel 7 have five million."""

MOST_IMAGES = 24
"""Those that were started least recently go."""


def root() -> Path:
    """Return the folder of what all images have."""
    return folders.cache_root() / "compiled"


def ensure_folder(image_id: str) -> Path | None:
    """Return an image's folder, which its containers mount; None where there is no room for it."""
    folder = root() / image_id.rpartition(":")[2]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)  # any user in there may read it
        os.utime(folder)
    except OSError as error:
        log.info("compiled code is not kept: %s", error)
        return None
    return folder


def is_wanted(folder: Path, options: RunOptions, given: Collection[str]) -> bool:
    """Tell whether a start that has this folder is to leave compiled code.

    Not where something of the user's may run or be imported before the kernel is ready: what comes from there
    would get into other containers of the image.
    """
    is_the_images = not options.volumes and not any(name.startswith("PYTHON") for name in given)
    return is_the_images and not (folder / _name()).exists()


def keep(folder: Path, runtime: RuntimeFolder, digest: str) -> None:
    """Put into an image's folder what its first start has left; where anything is odd, nothing."""
    try:
        code = runtime.read(NAME, MOST_BYTES)
        if hashlib.sha256(code).hexdigest() != digest:
            log.info("compiled code is not what the kernel has reported")
            return
        runtime.unlist(NAME)
        scratch = root() / f".{folder.name}-{secrets.token_hex(4)}"
        try:
            scratch.write_bytes(code)
            scratch.chmod(0o644)
            scratch.replace(folder / _name())
            _empty(folder, but=_name())  # of what an earlier version of ours has left
        finally:
            scratch.unlink(missing_ok=True)
        _make_room(folder)
    except OSError as error:
        log.info("compiled code is not kept: %s", error)


def forget(image_id: str) -> None:
    """Have the next start of an image leave its code anew."""
    with contextlib.suppress(OSError):
        _empty(root() / image_id.rpartition(":")[2])


@functools.cache
def _name() -> str:
    """Return what a file is called that this version of ours has left, as our own scripts are in it too."""
    resources = importlib.resources.files("dockml_magic") / "resources"
    ours = b"".join((resources / name).read_bytes() for name in SCRIPTS)
    return f"{__version__}-{zlib.crc32(ours):08x}.code"


def _make_room(ours: Path) -> None:
    """Remove what was used least recently of the images that are too many."""
    ages = {}
    for folder in root().iterdir():
        with contextlib.suppress(OSError):  # another process removes it
            if folder.is_dir() and folder != ours and any(folder.iterdir()):
                ages[folder] = folder.stat().st_mtime
    for folder in sorted(ages, key=lambda found: -ages[found])[MOST_IMAGES - 1 :]:
        _empty(folder)


def _empty(folder: Path, but: str = "") -> None:
    """Remove what is in an image's folder, which stays: a container may have it mounted, or be about to."""
    for file in folder.iterdir():
        if file.name != but:
            file.unlink(missing_ok=True)
