from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dockml_magic.backup import backup_path, load_images, read_archive, save_images
from dockml_magic.engine import Engine
from dockml_magic.errors import ArchiveError, BackupStopped, ImageUnavailableError
from tests.unit.fake_engine import FakeEngine, image_archive

IMAGE = "me/mine:1"


def ignore(line: str) -> None:
    pass


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.add_image(IMAGE)
    return engine


# --- names of files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("references", "name"),
    [
        (["me/mine:1"], "me_mine_1.tar.gz"),
        (["python:3.11-slim", "b"], "python_3.11-slim.tar.gz"),
        (["r.io:5000/a__b/c"], "r.io_5000_a_b_c.tar.gz"),
    ],
)
def test_without_a_name_the_file_has_the_images(references: list[str], name: str) -> None:
    assert backup_path(None, references, Path("/work")) == Path("/work", name)


@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.tar.gz", "../a b.tar.xz", "/x.tar.zst"])
def test_a_name_that_says_how_is_taken(name: str) -> None:
    assert backup_path(name, [IMAGE], Path("/work")) == Path("/work") / name


@pytest.mark.parametrize("name", ["x", "x.zip", "x.gz", ".tar.gz", "x.tar.bz2", "x.tar.gz.part"])
def test_a_name_that_does_not_say_how_is_refused(name: str) -> None:
    with pytest.raises(ArchiveError, match="does not say what it is to be"):
        backup_path(name, [IMAGE], Path("/work"))


# --- save -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", ".tar.zst"])
def test_what_is_saved_is_compressed_as_its_name_says_and_loads(
    engine: FakeEngine, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    contents = save_images(engine, [IMAGE], path, ignore)
    assert (contents.names, contents.images) == ((IMAGE,), 1)
    begin = {".tar": b"", ".tar.gz": b"\x1f\x8b", ".tar.xz": b"\xfd7zXZ", ".tar.zst": b"\x28\xb5"}
    assert path.read_bytes().startswith(begin[suffix])
    assert tarfile.is_tarfile(path) == (suffix != ".tar.zst")
    other = FakeEngine()
    assert load_images(other, path, ignore) == [IMAGE]
    assert other.local_references() == [IMAGE]


def test_a_file_that_is_there_stays(engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_text("worth")
    with pytest.raises(ArchiveError, match="is there already") as caught:
        save_images(engine, [IMAGE], path, ignore)
    assert "--force" in caught.value.hint
    assert path.read_text() == "worth"
    save_images(engine, [IMAGE], path, ignore, force=True)
    assert tarfile.is_tarfile(path)


class Broken:
    """An engine whose archive breaks off in a way of its own."""

    def __init__(self, engine: FakeEngine, problem: BaseException | None, cut: int = 0) -> None:
        self._engine, self._problem, self._cut = engine, problem, cut

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def save(self, references: list[str]) -> Iterator[bytes]:
        pieces = list(self._engine.save(references))
        yield from pieces[: -self._cut or None]
        if self._problem is not None:
            raise self._problem


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("problem", "raised", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ArchiveError, "There is no room for"),
        (OSError(errno.EIO, "I/O error"), ArchiveError, "cannot be written: I/O error"),
        (KeyboardInterrupt(), BackupStopped, "was stopped"),
        (ZeroDivisionError(), ZeroDivisionError, None),
        (None, ArchiveError, "not a whole archive"),
    ],
)
def test_a_backup_that_fails_leaves_nothing_and_what_was_there(
    engine: FakeEngine,
    tmp_path: Path,
    problem: BaseException | None,
    raised: type[BaseException],
    says: str | None,
    force: bool,
) -> None:
    path = tmp_path / "x.tar.gz"
    if force:
        path.write_text("old")
    with pytest.raises(raised, match=says):
        save_images(Broken(engine, problem, cut=9), [IMAGE], path, ignore, force=force)
    assert left_in(tmp_path) == (["x.tar.gz"] if force else [])
    assert not force or path.read_text() == "old"


def test_an_archive_that_lacks_an_image_is_no_backup(engine: FakeEngine, tmp_path: Path) -> None:
    engine.add_image("me/other:1")
    broken = Broken(engine, None)
    broken.save = lambda references: engine.save([IMAGE])  # type: ignore[method-assign]
    with pytest.raises(ArchiveError, match="has not all of the images"):
        save_images(broken, [IMAGE, "me/other:1"], tmp_path / "x.tar", ignore)
    assert left_in(tmp_path) == []


def test_what_is_not_here_is_not_saved(engine: FakeEngine, tmp_path: Path) -> None:
    with pytest.raises(ImageUnavailableError, match="me/none:1"):
        save_images(engine, [IMAGE, "me/none:1"], tmp_path / "x.tar", ignore)
    assert left_in(tmp_path) == []


def test_a_folder_that_is_not_there_and_one_that_is_in_the_way_are_told(
    engine: FakeEngine, tmp_path: Path
) -> None:
    with pytest.raises(ArchiveError, match="There is no folder"):
        save_images(engine, [IMAGE], tmp_path / "none" / "x.tar", ignore)
    (tmp_path / "x.tar").mkdir()
    with pytest.raises(ArchiveError, match="is a folder"):
        save_images(engine, [IMAGE], tmp_path / "x.tar", ignore, force=True)


# --- what is whole --------------------------------------------------------------------------------


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def members_of(content: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    found = []
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            reader = tar.extractfile(member)
            found.append((member, reader.read() if reader else b""))
    return found


def changed(name: str, content: bytes | None) -> bytes:
    """Return a good archive in which one member is other, or missing."""
    rows = members_of(image_archive([IMAGE], [b"first layer", b"second layer"]))
    return archive(
        *(
            (member, content if member.name.endswith(name) and content is not None else was)
            for member, was in rows
            if content is not None or not member.name.endswith(name)
        )
    )


def with_member(member: tarfile.TarInfo, content: bytes = b"") -> bytes:
    return archive(*members_of(image_archive([IMAGE])), (member, content))


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def test_a_whole_archive_is_read() -> None:
    content = image_archive([IMAGE, "me/too:2"], [b"first layer", b"second" * 1_000_000])
    contents = read_archive(io.BytesIO(content))
    assert (contents.names, contents.images) == ((IMAGE, "me/too:2"), 1)
    assert contents.size >= 6_000_000


def test_the_newer_form_with_compressed_layers_is_read() -> None:
    layer = b"a layer" * 1000
    blob = gzip.compress(layer)
    digest = hashlib.sha256
    config = json.dumps({"rootfs": {"diff_ids": [f"sha256:{digest(layer).hexdigest()}"]}}).encode()
    paths = [f"blobs/sha256/{digest(part).hexdigest()}" for part in (config, blob)]
    manifest = [{"Config": paths[0], "RepoTags": [IMAGE], "Layers": paths[1:]}]
    content = archive(
        (named("blobs", tarfile.DIRTYPE), b""),
        (named(paths[0]), config),
        (named(paths[1]), blob),
        (named("index.json"), b"{}"),
        (named("manifest.json"), json.dumps(manifest).encode()),
    )
    assert read_archive(io.BytesIO(content)).names == (IMAGE,)
    with pytest.raises(ValueError, match="another content than its name says"):
        read_archive(io.BytesIO(content.replace(b"rootfs", b"rootfz")))


def test_a_layer_that_is_a_link_to_another_images_is_read() -> None:
    rows = members_of(image_archive([IMAGE]))
    layer = next(member.name for member, _ in rows if member.name.endswith("layer.tar"))
    link = named("other/layer.tar", tarfile.SYMTYPE, f"../{layer}")
    manifest = json.loads(rows[-1][1])
    manifest.append({**manifest[0], "RepoTags": ["me/too:2"], "Layers": ["other/layer.tar"]})
    content = archive(
        *rows[:-1], (link, b""), (named("manifest.json"), json.dumps(manifest).encode())
    )
    assert read_archive(io.BytesIO(content)).names == (IMAGE, "me/too:2")


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (changed("manifest.json", None), "no manifest.json"),
        (changed("layer.tar", None), "is missing"),
        (changed("layer.tar", b"other"), "is damaged"),
        (changed("manifest.json", b"[]"), "names no image"),
        (changed("manifest.json", b"{}"), "names no image"),
        (changed("manifest.json", b"[1]"), "not one of images"),
        (changed("manifest.json", b'[{"Config": 1}]'), "'1' is missing"),
        (changed("manifest.json", b"[{"), ""),
        (changed("manifest.json", DEEP), ""),
        (changed("manifest.json", b'[{"Config": "../../etc/passwd"}]'), "leads out of it"),
        (with_member(named("../../etc/cron.d/x")), "leads out of it"),
        (with_member(named("/etc/passwd")), "leads out of it"),
        (with_member(named("a/../../x")), "leads out of it"),
        (with_member(named("x", tarfile.SYMTYPE, "../../etc/passwd")), "leads out of it"),
        (with_member(named("x", tarfile.SYMTYPE, "/etc/passwd")), "leads out of it"),
        (with_member(named("x", tarfile.LNKTYPE, "manifest.json")), "no plain file"),
        (with_member(named("x", tarfile.CHRTYPE)), "no plain file"),
        (with_member(named("x", tarfile.FIFOTYPE)), "no plain file"),
        (b"", ""),
        (b"\0" * 10240, ""),
        (b"hello" * 1000, ""),
    ],
)  # fmt: skip
def test_what_is_not_whole_or_hostile_is_refused_and_the_engine_untouched(
    engine: FakeEngine, tmp_path: Path, content: bytes, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "load", lambda pieces: pytest.fail("the engine got it"))
    for name, pack in (("x.tar", bytes), ("x.tar.gz", gzip.compress), ("x.tar.xz", lzma.compress)):
        path = tmp_path / name
        path.write_bytes(pack(content))
        with pytest.raises(ArchiveError, match="is not a whole archive of images") as caught:
            load_images(engine, path, ignore)
        assert why in caught.value.message


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_an_archive_that_is_cut_off_anywhere_is_refused(
    engine: FakeEngine, tmp_path: Path, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "load", lambda pieces: pytest.fail("the engine got it"))
    whole = pack(image_archive([IMAGE], [os.urandom(5000)]))
    path = tmp_path / "x"
    end = whole.rfind(b"manifest.json") if pack is bytes else len(whole) - 1
    for length in range(1, end, max(1, end // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(ArchiveError):
            load_images(engine, path, ignore)


def test_names_with_escape_sequences_are_refused_and_not_shown(
    engine: FakeEngine, tmp_path: Path
) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(image_archive(["me/\x1b[2Jmine:1"]))
    with pytest.raises(ArchiveError, match="is no name for an image") as caught:
        load_images(engine, path, ignore)
    assert "\x1b" not in str(caught.value)


def test_a_header_that_says_it_is_huge_is_not_read() -> None:
    """It would be read into memory: a name of 2 GB, which compresses to nothing."""
    header = named("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    header.size = 2 * 1024**3

    class Zeros(io.RawIOBase):
        def __init__(self) -> None:
            self.asked = 0
            self._begin = header.tobuf()

        def read(self, size: int = -1) -> bytes:
            self.asked = max(self.asked, size)
            data, self._begin = self._begin[:size], self._begin[size:]
            return data or b"\0" * size

    zeros = Zeros()
    with pytest.raises(ValueError, match="far too large"):
        read_archive(zeros)  # type: ignore[arg-type]
    assert zeros.asked <= 1024 * 1024


def test_a_bomb_ends_where_the_engines_disk_does(tmp_path: Path) -> None:
    bomb = gzip.compress(image_archive([IMAGE], [b"\0" * 20_000_000]))
    assert len(bomb) < 100_000
    with pytest.raises(ValueError, match=r"more than the 5\.0 MB that are free"):
        read_archive(gzip.GzipFile(fileobj=io.BytesIO(bomb)), room=5_000_000)
    inner = image_archive([IMAGE], [gzip.compress(b"\0" * 20_000_000)])
    with pytest.raises(ValueError, match="that are free"):
        read_archive(io.BytesIO(inner), room=5_000_000)


def test_a_file_that_is_not_there_is_told(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="cannot be read: No such file"):
        load_images(engine, tmp_path / "none.tar", ignore)


def test_an_interrupted_load_is_no_traceback(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_images(engine, [IMAGE], tmp_path / "x.tar", ignore)

    def interrupt(pieces: Iterator[bytes]) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "load", interrupt)
    with pytest.raises(BackupStopped):
        load_images(engine, tmp_path / "x.tar", ignore)


def test_what_a_name_meant_before_is_told(engine: FakeEngine, tmp_path: Path) -> None:
    told: list[str] = []
    save_images(engine, [IMAGE], tmp_path / "x.tar", ignore)
    load_images(engine, tmp_path / "x.tar", told.append)
    assert any(line.startswith(f"{IMAGE} was here already") for line in told)
