"""Images to a file and back: compressed, checked, never half.

An archive is what `docker save` makes: a tar of `manifest.json`, a configuration for each image, and layers. It is
only read here, member by member, and never unpacked: whoever made it may mean ill.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import importlib
import json
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

from dockml_magic.display import show_progress
from dockml_magic.engine import Engine
from dockml_magic.errors import ArchiveError, BackupStopped, ImageUnavailableError
from dockml_magic.pull import format_size, is_reference

Compression = Literal["", "gz", "xz", "zst", "bz2"]

_SUFFIXES: Mapping[str, Compression] = {
    ".tar": "",
    ".tar.gz": "gz",
    ".tgz": "gz",
    ".tar.xz": "xz",
    ".txz": "xz",
    ".tar.zst": "zst",
    ".tzst": "zst",
}
_MAGIC: Mapping[bytes, Compression] = {
    b"\x1f\x8b": "gz",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"BZh": "bz2",
}

_GZIP_LEVEL = 3
"""Level 6 takes twice as long, for a twentieth less."""

_PIECE = 1024 * 1024

_LONGEST_HEADER = 1024 * 1024
"""Bytes of a name, or of what else a header may hold, in a tar that is no attack on our memory."""

_LARGEST_TEXT = 4 * 1024 * 1024
_MOST_TEXT = 64 * 1024 * 1024
"""Bytes of JSON that are kept: of one member, and of all."""

_MOST_MEMBERS = 200_000

_DIGEST = re.compile(r"[0-9a-f]{64}")

_ROTTEN = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    ValueError,
    RecursionError,
)
"""What reading raises that is not whole, or not what it says."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is in an archive, all of which was found whole.

    Attributes
    ----------
    names : tuple of str
        References that its images have.
    images : int
        How many there are, those without a name too.
    size : int
        Bytes of it, not compressed.
    """

    names: tuple[str, ...]
    images: int
    size: int


# --- save -----------------------------------------------------------------------------------------


def backup_path(output: str | None, references: Sequence[str], folder: Path) -> Path:
    """Return the file for a backup: `output`, or one named after the first image.

    Raises
    ------
    ArchiveError
        If its name does not say how it is to be compressed.
    """
    if output is None:
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", references[0]).strip("._")
        return folder / f"{name}.tar.gz"
    path = folder / Path(output).expanduser()
    _compression_of(path)
    return path


def _compression_of(path: Path) -> Compression:
    for suffix, compression in _SUFFIXES.items():
        if path.name.endswith(suffix) and path.name != suffix:
            return compression
    raise ArchiveError(
        f"'{path.name}' does not say what it is to be.",
        hint="End it in .tar.gz (or .tar, .tar.xz, .tar.zst).",
    )


def save_images(
    engine: Engine,
    references: Sequence[str],
    path: Path,
    tell: Callable[[str], None],
    *,
    force: bool = False,
) -> Contents:
    """Write images to a file, read it again, and only then give it its name.

    Parameters
    ----------
    engine : Engine
        Who has them.
    references : sequence of str
        The images.
    path : Path
        The file; its suffix says how it is compressed.
    tell : callable
        Gets lines for the user; `display.tell` shows how far it is.
    force : bool
        Replace a file that is there.

    Raises
    ------
    ArchiveError
        If it cannot be written, or is not whole when it is read again. Nothing is left then.
    ImageUnavailableError
        If an image is not here.
    BackupStopped
        For an interrupt; nothing is left.
    """
    compression = _compression_of(path)
    sizes = {}
    for reference in references:
        image = engine.find_image(reference)
        if image is None:
            raise ImageUnavailableError(reference, "it is not on this machine.")
        sizes[image.id] = image.size
    if path.exists() and not force:
        raise ArchiveError(
            f"'{path}' is there already.", hint="Choose another name, or replace it with --force."
        )
    total = sum(sizes.values())
    temporary = None
    try:
        _check_room(path, total, compression)
        if compression == "zst":
            _zstd()
        with (
            tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=f".{path.name}.", delete=False
            ) as file,
            show_progress(f"saving {', '.join(references)}", total, tell) as progress,
        ):
            temporary = Path(file.name)
            with _compressed(file, compression) as writer:
                done = 0
                for piece in engine.save(references):
                    writer.write(piece)
                    done += len(piece)
                    progress.show(done)
            file.flush()
            os.fsync(file.fileno())
            progress.next(f"checking {path.name}", done)
            file.seek(0)
            contents = _checked(file, path, show=progress.show)
            missing = {_tagged(r) for r in references if _is_name(r)} - set(contents.names)
            if missing or contents.images != len(sizes):
                raise ArchiveError(
                    f"What the engine gave for '{path.name}' has not all of the images.",
                    hint="Try once more.",
                )
        temporary.replace(path)
        temporary = None
    except KeyboardInterrupt:
        raise BackupStopped(f"The backup to '{path}' was stopped.") from None
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
    size = path.stat().st_size
    tell(
        f"saved {', '.join(contents.names) or ', '.join(references)} in {_from_here(path)} "
        f"({format_size(size)}), and checked it"
    )
    return contents


def _from_here(path: Path) -> Path:
    """Return a path as one would type it here."""
    with contextlib.suppress(OSError, ValueError):  # elsewhere, or the current folder is gone
        return path.relative_to(Path.cwd())
    return path


def _is_name(reference: str) -> bool:
    """Tell whether it is a name, and not an id or a digest, which an archive does not have."""
    return is_reference(reference) and not re.fullmatch(r"(?:sha256:)?[0-9a-f]{12,64}", reference)


def _tagged(reference: str) -> str:
    return reference if ":" in reference.rpartition("/")[2] else f"{reference}:latest"


def _check_room(path: Path, total: int, compression: Compression) -> None:
    if not path.parent.is_dir():
        raise ArchiveError(f"There is no folder '{path.parent}'.", hint="Create it first.")
    if path.is_dir():
        raise ArchiveError(f"'{path}' is a folder.", hint="Name a file in it.")
    free = shutil.disk_usage(path.parent).free
    if not compression and total > free:
        raise ArchiveError(
            f"'{path}' needs {format_size(total)}, and {format_size(free)} are free there.",
            hint="Choose another folder, or compress it: .tar.gz",
        )


def _write_error(path: Path, error: OSError) -> ArchiveError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArchiveError(
            f"There is no room for '{path}'; nothing of it is left.",
            hint="Choose another folder with -o, or make room.",
        )
    return ArchiveError(f"'{path}' cannot be written: {error.strerror or error}.")


# --- load -----------------------------------------------------------------------------------------


def load_images(engine: Engine, path: Path, tell: Callable[[str], None]) -> list[str]:
    """Check an archive from its begin to its end, give it to the engine, and return the names it brought.

    Raises
    ------
    ArchiveError
        If it is not whole, or no archive of images. The engine is untouched then.
    BackupStopped
        For an interrupt.
    """
    root = engine.facts.root
    room = None
    if root is not None:
        with contextlib.suppress(OSError):  # a folder that only root may look into
            room = shutil.disk_usage(root).free
    try:
        with path.open("rb") as file:
            packed = path.stat().st_size
            with show_progress(f"checking {path.name}", packed, tell) as progress:
                contents = _checked(
                    file, path, room=room, show=lambda _: progress.show(file.tell())
                )
                for name in contents.names:
                    if (old := engine.find_image(name)) is not None:
                        progress.say(
                            f"{name} was here already; the image it named was {old.id[7:19]}"
                        )
                file.seek(0)
                progress.next(f"loading {path.name}", packed)

                def pieces() -> Iterator[bytes]:
                    reader = _plain(file)
                    while piece := reader.read(_PIECE):
                        progress.show(file.tell())
                        yield piece

                return engine.load(pieces())
    except KeyboardInterrupt:
        raise BackupStopped(f"Loading '{path}' was stopped.") from None
    except OSError as error:
        raise ArchiveError(f"'{path}' cannot be read: {error.strerror or error}.") from error


# --- what is in it --------------------------------------------------------------------------------


def _checked(
    file: IO[bytes],
    path: Path,
    *,
    room: int | None = None,
    show: Callable[[int], None] = lambda _: None,
) -> Contents:
    """Return what is in an archive; raise `ArchiveError` where it is not whole."""
    try:
        return read_archive(_plain(file), room=room, show=show)
    except Exception as error:
        # zstd's error is of a package that need not be there.
        if not isinstance(error, _ROTTEN) and type(error).__name__ != "ZstdError":
            raise
        raise ArchiveError(
            f"'{path}' is not a whole archive of images: {_in_a_line(error)}.",
            hint="It may have been cut off or changed on its way: copy it again, or save it anew.",
        ) from error


def _in_a_line(error: BaseException) -> str:
    return ascii(" ".join(str(error).split()))[1:-1].rstrip(".")[:300] or type(error).__name__


def read_archive(
    file: IO[bytes], *, room: int | None = None, show: Callable[[int], None] = lambda _: None
) -> Contents:
    """Read an archive to its end, and hold every part against its digest.

    Parameters
    ----------
    file : binary file
        Not compressed; read once, forwards.
    room : int, optional
        Bytes after which reading ends, as the engine has no room for more.
    show : callable
        Told how many bytes were read.

    Raises
    ------
    ValueError, tarfile.TarError
        For what is wrong with it; what `file` raises goes through.
    """
    forward = _Forward(file, room, show)
    members = _Members()
    with tarfile.open(fileobj=cast("IO[bytes]", forward), mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
            members.take(archive, member, forward)
    forward.drain()
    return members.contents(forward.position)


class _Forward:
    """A file that is read once: what tarfile needs of a file, and no more at a time than our memory has room for.

    tarfile reads a long name, or a header's extensions, whole, however large they say they are.
    """

    def __init__(self, file: IO[bytes], room: int | None, show: Callable[[int], None]) -> None:
        self._file = file
        self._room = room
        self._show = show
        self._size = 0
        self.position = 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise ValueError("a header in it is far too large")
        parts = []
        while size > 0 and (part := self._file.read(size)):
            parts.append(part)
            size -= len(part)
            self.position += len(part)
            self.count(len(part))
        return b"".join(parts)

    def count(self, size: int) -> None:
        """Note that so many bytes more have to be kept."""
        self._size += size
        self._show(self.position)
        if self._room is not None and self._size > self._room:
            raise ValueError(
                f"it holds more than the {format_size(self._room)} that are free on the engine's disk"
            )

    def tell(self) -> int:
        return self.position

    def seek(self, position: int, _: int = 0) -> int:
        if position < self.position:
            raise ValueError("it is not in order")
        while self.position < position:
            if not self.read(min(_PIECE, position - self.position)):
                raise EOFError("it ends too early")
        return position

    def drain(self) -> None:
        """Read what is behind the last member: a checksum stands at the end."""
        while self.read(_PIECE):
            pass


class _Members:
    """The members of an archive, as far as they matter: digests, and texts."""

    def __init__(self) -> None:
        self._digests: dict[str, set[str]] = {}
        self._texts: dict[str, bytes] = {}
        self._links: dict[str, str] = {}
        self._count = 0

    def take(self, archive: tarfile.TarFile, member: tarfile.TarInfo, forward: _Forward) -> None:
        """Read one."""
        self._count += 1
        if self._count > _MOST_MEMBERS:
            raise ValueError("it has far too many members")
        name = _inside(member.name)
        if member.isdir():
            return
        if member.issym():  # `docker save` writes a layer once, and links to it
            self._links[name] = _inside(str(PurePosixPath(name).parent / member.linkname))
            return
        if not member.isreg() or member.issparse():
            raise ValueError(f"'{member.name}' is no plain file")
        content = archive.extractfile(member)
        assert content is not None
        self._digests[name], text = _read_member(content, member.size, forward)
        self._texts.pop(name, None)
        if text is not None:
            self._texts[name] = text
            if sum(map(len, self._texts.values())) > _MOST_TEXT:
                raise ValueError("it has far too much text")
        blob = re.fullmatch(r"blobs/sha256/([0-9a-f]{64})", name)
        if blob and blob[1] not in self._digests[name]:
            raise ValueError(f"'{name}' has another content than its name says")

    def contents(self, size: int) -> Contents:
        """Return what is in it, where all that `manifest.json` names is there and whole."""
        if "manifest.json" not in self._texts:
            raise ValueError("it has no manifest.json, as `docker save` writes it")
        manifest = json.loads(self._texts["manifest.json"])
        if not isinstance(manifest, list) or not manifest:
            raise ValueError("its manifest.json names no image")
        names: list[str] = []
        for entry in manifest:
            if not isinstance(entry, dict):
                raise ValueError("its manifest.json is not one of images")  # noqa: TRY004
            self._check_image(entry)
            for name in entry.get("RepoTags") or ():
                if not isinstance(name, str) or not is_reference(name):
                    raise ValueError(f"{name!r} is no name for an image")
                names.append(name)
        return Contents(names=tuple(dict.fromkeys(names)), images=len(manifest), size=size)

    def _check_image(self, entry: Mapping[str, Any]) -> None:
        name, layers = _inside(str(entry.get("Config"))), entry.get("Layers")
        if name not in self._texts:
            raise ValueError(f"'{name}' is missing")
        named = _DIGEST.search(PurePosixPath(name).name)
        if named and named[0] not in self._digests[name]:
            raise ValueError(f"'{name}' has another content than its name says")
        config = json.loads(self._texts[name])
        try:
            diff_ids = config["rootfs"]["diff_ids"] or []
        except (KeyError, TypeError):
            raise ValueError(f"'{name}' is no image's configuration") from None
        if not isinstance(diff_ids, list) or not isinstance(layers, list | None):
            raise ValueError(f"'{name}' is no image's configuration")  # noqa: TRY004
        if len(layers or ()) != len(diff_ids):
            raise ValueError(f"'{name}' has another number of layers")
        for layer, diff_id in zip(layers or (), diff_ids, strict=True):
            path = _inside(str(layer))
            path = self._links.get(path, path)
            if path not in self._digests:
                raise ValueError(f"the layer '{path}' is missing")
            if str(diff_id).removeprefix("sha256:") not in self._digests[path]:
                raise ValueError(f"the layer '{path}' is damaged")


def _read_member(content: IO[bytes], size: int, forward: _Forward) -> tuple[set[str], bytes | None]:
    """Return a member's digests, compressed and not, and itself where it is a short text."""
    whole, inner = hashlib.sha256(), hashlib.sha256()
    unpack: Any = None
    text: bytes | None = b"" if size <= _LARGEST_TEXT else None
    is_first = True
    while piece := content.read(_PIECE):
        whole.update(piece)
        if is_first and piece.startswith(b"\x1f\x8b"):  # as a registry has layers
            unpack = zlib.decompressobj(wbits=31)
        if is_first and not piece.startswith((b"{", b"[")):
            text = None
        is_first = False
        if text is not None:
            text += piece
        if unpack is not None:
            rest = piece
            while rest and not unpack.eof:
                plain = unpack.decompress(rest, _PIECE)
                forward.count(len(plain))
                inner.update(plain)
                rest = unpack.unconsumed_tail
    digests = {whole.hexdigest()}
    if unpack is not None:
        inner.update(unpack.flush())
        digests.add(inner.hexdigest())
    return digests, text


def _inside(name: str) -> str:
    """Return a member's name, made plain; raise `ValueError` where it leads out of the archive."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                raise ValueError(f"{name!r} leads out of it")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    if name.startswith("/"):
        raise ValueError(f"{name!r} leads out of it")
    return "/".join(parts)


# --- compression ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _compressed(file: IO[bytes], compression: Compression) -> Iterator[IO[bytes]]:
    """Give what writes compressed into a file, which stays open."""
    writer: Any
    if compression == "gz":
        writer = gzip.GzipFile(fileobj=file, mode="wb", compresslevel=_GZIP_LEVEL, filename="")
    elif compression == "xz":
        writer = lzma.LZMAFile(file, "wb", preset=1)  # noqa: SIM115  # it is one
    elif compression == "zst":
        writer = _zstd()(file, "wb")
    else:
        yield file
        return
    with writer:
        yield writer


def _plain(file: IO[bytes]) -> IO[bytes]:
    """Return what reads a file without its compression, which its first bytes tell."""
    begin = file.read(6)
    file.seek(-len(begin), os.SEEK_CUR)
    for magic, compression in _MAGIC.items():
        if begin.startswith(magic):
            if compression == "gz":
                return cast("IO[bytes]", gzip.GzipFile(fileobj=file, mode="rb"))
            if compression == "xz":
                return cast("IO[bytes]", lzma.LZMAFile(file, "rb"))
            if compression == "bz2":
                return cast("IO[bytes]", bz2.BZ2File(file, "rb"))
            return cast("IO[bytes]", _zstd()(file, "rb"))
    return file


def _zstd() -> Callable[[IO[bytes], str], Any]:
    """Return what opens a file that zstd compresses: Python's own from 3.14 on, else a package."""
    try:
        return cast(
            "Callable[[IO[bytes], str], Any]", importlib.import_module("compression.zstd").ZstdFile
        )
    except ImportError:
        pass
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError:
        raise ArchiveError(
            "This Python has no zstd.",
            hint="pip install zstandard, or use .tar.gz. To decompress a file: zstd -d FILE",
        ) from None

    def open_file(file: IO[bytes], mode: str) -> Any:
        if mode == "wb":
            return zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False)
        return zstandard.ZstdDecompressor().stream_reader(
            file, read_across_frames=True, closefd=False
        )

    return open_file
