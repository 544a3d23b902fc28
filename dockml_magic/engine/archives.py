"""Tar archives, as an engine takes and gives them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

PIECE = 1024 * 1024
"""Bytes of an archive that are taken at a time."""


def make_archive(files: Mapping[PurePosixPath, bytes | None], uid: int = 0, gid: int = 0) -> bytes:
    """Return a tar with these files; None stands for a folder. All belong to uid and gid."""
    import tarfile  # here: `%load_ext` does without it

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(str(path).lstrip("/"))
            entry.uid, entry.gid = uid, gid
            if content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            else:
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class Pieces:
    """A file to read, of pieces as they come."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer at the end."""
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
