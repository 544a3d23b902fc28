"""What an image that is built from a Dockerfile is called."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from dockml_magic.errors import ConfigError

_COPIES = re.compile(
    r"^\s*(?:COPY(?!\s+--from)|ADD|ONBUILD|FROM\s+\S*onbuild|RUN\s+--mount|#\s*syntax\s*=)",
    re.IGNORECASE | re.MULTILINE,
)
"""A step of a Dockerfile that may read the files beside it."""


def build_reference(dockerfile: Path) -> str:
    """Return the name of the image that is built from a Dockerfile in its folder: "dockml/build:…".

    It stands for the content of the Dockerfile and, where that copies any, of the files that the engine gets, which
    are those that `.dockerignore` leaves in: the image is built again when, and only when, one of them has changed.
    A notebook beside a Dockerfile that copies nothing may be saved as often as one likes.
    """
    from docker.utils.build import exclude_paths

    folder = dockerfile.parent
    ignore = folder / ".dockerignore"
    content = hashlib.sha256(dockerfile.name.encode())
    try:
        if not _COPIES.search(dockerfile.read_text(encoding="utf-8", errors="replace")):
            content.update(dockerfile.read_bytes())
            return f"dockml/build:{content.hexdigest()}"
        patterns = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
        patterns = [p for line in patterns if (p := line.strip()) and not p.startswith("#")]
        for name in sorted(exclude_paths(str(folder), patterns, dockerfile.name)):
            path = folder / name
            mode = path.lstat().st_mode
            content.update(f"\0{name}\0{mode:o}\0".encode(errors="surrogateescape"))
            if stat.S_ISLNK(mode):
                content.update(os.fsencode(path.readlink()))
            elif stat.S_ISREG(mode):
                with path.open("rb") as file:
                    while block := file.read(1024 * 1024):
                        content.update(block)
    except OSError as error:
        raise ConfigError(
            f"The folder of '{dockerfile}' cannot be read: {error.strerror}: {error.filename}.",
            hint="Name what the build does not need in a .dockerignore there.",
        ) from error
    return f"dockml/build:{content.hexdigest()}"
