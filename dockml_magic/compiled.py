"""An image's compiled code: left by its first start, used by the later ones.

Images as they come have no byte code of Python's own library, and who runs in them may write none: Python would compile
it at every start, which takes as long as all the rest. `resources/start.py` has the format, and what uses it.

What a container leaves is nothing but bytes here: its size and its digest are checked, and it is never looked into. It
goes into containers of the same image only. It is taken from a start that was given nothing by which other code than
that image's own could run before it was left: no mount of the user's or of a project file's, and no option or variable
that is not known to be harmless (`HARMLESS`, `HARMLESS_VARIABLE`). The workspace is there, where Python does not look;
an image whose own variables have it look in the current folder (`PYTHONPATH=.`, an empty part in `LD_LIBRARY_PATH`) is
the exception.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.resources
import logging
import os
import re
import secrets
import zlib
from collections.abc import Collection
from dataclasses import replace
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

HARMLESS = frozenset(
    (
        *("gpus", "memory", "cpus", "shm_size", "ulimit", "ipc", "network", "publish", "add_host"),
        *("privileged", "cap_add", "cap_drop", "security_opt", "device"),
        *("image", "packages", "kernel", "pull", "transport", "engine", "name", "keep"),
        "workdir",  # as the workspace, which is where Python starts else, it is not where Python looks
    )
)
"""Options of a start that bring no code into it: what it has, what it may, and what is the image's own."""

HARMLESS_VARIABLE = re.compile(
    r"JPY_SESSION_NAME"  # what a Jupyter server tells each of its kernels
    # of libraries that nothing imports before the kernel is ready
    r"|(CUDA|NVIDIA|NCCL|CUDNN|TF|XLA|KERAS|TORCH|PYTORCH|OMP|KMP|MKL|OPENBLAS|HF|TRANSFORMERS|TOKENIZERS)_[A-Z0-9_]+",
    re.ASCII,
)
"""Names of variables that bring no code into a start."""

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


def is_wanted(folder: Path, options: RunOptions, variables: Collection[str]) -> bool:
    """Tell whether a start that has this folder is to leave compiled code.

    Not where something of the user's, or of a project file's, may run or be imported before the kernel is ready: what
    comes from there would get into other containers of the image.

    Parameters
    ----------
    folder : Path
        The image's.
    options : RunOptions
        Those of the start.
    variables : collection of str
        Names of those that it was given besides: not those that we carry into every container ourselves.
    """
    names = [*variables, *(text.partition("=")[0] for text in options.env)]
    has_only_the_images = _is_harmless(options) and all(map(HARMLESS_VARIABLE.fullmatch, names))
    return has_only_the_images and not (folder / _name()).exists()


def _is_harmless(options: RunOptions) -> bool:
    """Tell whether options bring nothing along, their variables aside."""
    user = options.user or "0"  # a name is what the image says; a number brings nothing along
    return all(part.isdecimal() for part in user.split(":")) and RunOptions() == replace(
        options, user=None, env=(), **{name: getattr(RunOptions(), name) for name in HARMLESS}
    )


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
