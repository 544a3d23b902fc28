"""What we created and nobody uses any more: found, told, and removed if asked to.

`find_holdings` looks, `decide` chooses and is pure, `remove` acts. What is not ours by its labels, belongs to another
user, is used by a container or is younger than ten minutes (a start may be going on) is never chosen; volumes and
networks are never touched.

=============  =====================================================  ==========================================
kind           goes                                                   with ``--all`` also
=============  =====================================================  ==========================================
container      never started; ended and not kept                      kept, and not running now
image          built from a Dockerfile that has changed or is gone;   every one that we built and no container has
               with extra packages for an image that is gone
layers         of a pull or a commit that was stopped
bundle         not built to the end; not started for 30 days          every one that no running container can have
image memory   of an image that is gone
compiled code  of an image that is gone
run folder     whose container is gone
handover       all of whose containers are gone
kept note      of an environment whose container is gone
=============  =====================================================  ==========================================
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dockml_magic import compiled, folders, kept, labels
from dockml_magic.diagnosis import size
from dockml_magic.display import Table, tell
from dockml_magic.engine import ContainerState, DiskUsage, Engine, ImageState, build_reference
from dockml_magic.errors import ConfigError, DockmlError
from dockml_magic.spec import RUNTIME

YOUNG = 600.0
"""Seconds: what is younger may belong to a start that goes on."""

BUNDLE_LASTS = 30 * 24 * 3600.0
"""Seconds without a start after which a kernel bundle goes. It is built again within a minute."""

Kind = Literal[
    "container",
    "image",
    "layers",
    "bundle",
    "image memory",
    "compiled code",
    "run folder",
    "handover",
    "kept note",
]

_OUR_REFERENCE = re.compile(r"dockml/(build|with):[0-9a-f]{8,64}")
_HELPERS = re.compile(r"dockml-(?:compile|gpus|with)-[\w.-]+")
"""Containers that run for a while, to compile a bundle, ask for GPUs or install packages: without a kernel."""

_OF_A_KERNEL = (labels.VERSION, labels.NAME, labels.WORKSPACE, labels.USER, labels.SESSION)
_NOT_RUNNING = ("created", "exited", "dead")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A folder among the kernel bundles.

    Attributes
    ----------
    is_whole : bool
        It was built to its end; else it is what a build left that was killed.
    used_at : float
        When a start last used it, or when it was last written.
    is_locked : bool
        Somebody builds it now.
    """

    path: Path
    size: int = 0
    is_whole: bool = True
    used_at: float = 0.0
    is_locked: bool = False


@dataclass(frozen=True, kw_only=True)
class KeptFile:
    """A file or folder of ours and what it is for.

    Attributes
    ----------
    names : tuple of str
        The image's id, the container's, or the sessions of the containers.
    changed_at : float
        When something in it was last written.
    is_answered : bool
        A run folder: somebody listens in it. Its container may be another engine's.
    shares_files : bool
        A run folder: its container is of an engine that mounts our files.
    """

    path: Path
    names: tuple[str, ...]
    changed_at: float
    size: int = 0
    is_answered: bool = False
    shares_files: bool = True


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """What there is, ours or not.

    Attributes
    ----------
    now : float
        The time, as seconds since 1970.
    uid : str
        Of the user, as in labels.
    shares_files : bool
        The engine mounts our files.
    containers, images : sequence
        All of the engine's.
    current : mapping of str to str
        For each Dockerfile in a label, the name of the image that a build would have today; "" where it is gone.
        One that cannot be read is left out.
    bundles, memories, compiled, run_folders, handovers : sequence
        Of this user.
    kept_notes : sequence
        Of this user's environments that are kept at this engine.
    usage : DiskUsage
        What takes how much.
    """

    now: float
    uid: str
    shares_files: bool = True
    containers: Sequence[ContainerState] = ()
    images: Sequence[ImageState] = ()
    current: Mapping[str, str] = field(default_factory=dict)
    bundles: Sequence[Bundle] = ()
    memories: Sequence[KeptFile] = ()
    compiled: Sequence[KeptFile] = ()
    run_folders: Sequence[KeptFile] = ()
    handovers: Sequence[KeptFile] = ()
    kept_notes: Sequence[KeptFile] = ()
    usage: DiskUsage = field(default_factory=DiskUsage)


@dataclass(frozen=True, kw_only=True)
class LeftOver:
    """Something that nobody uses.

    Attributes
    ----------
    id : str
        The engine's id, or a path.
    name : str
        As people know it.
    why : str
        Why nobody uses it.
    size : int
        Bytes that its removal frees, about.
    references : tuple of str
        An image's names.
    problem : str
        Why it could not be removed.
    """

    kind: Kind
    id: str
    name: str
    why: str
    size: int = 0
    references: tuple[str, ...] = ()
    problem: str = ""


# --- decide ---------------------------------------------------------------------------------------


def decide(holdings: Holdings, *, everything: bool = False) -> list[LeftOver]:
    """Return what goes, in the order in which it can be removed; pure.

    Parameters
    ----------
    holdings : Holdings
        What there is.
    everything : bool
        Also what is only unused now.
    """
    containers = list(_containers(holdings, everything=everything))
    gone = {left.id for left in containers}
    remaining = [c for c in holdings.containers if c.id not in gone]
    return [
        *containers,
        *_images(holdings, remaining, everything=everything),
        *_bundles(holdings, everything=everything),
        *_of_images("image memory", holdings.memories, holdings),
        *_of_images("compiled code", holdings.compiled, holdings),
        *_run_folders(holdings, remaining),
        *_handovers(holdings, remaining),
        *_kept_notes(holdings, remaining),
    ]


def is_ours(
    container: ContainerState,
    image_labels: Mapping[str, str] | None,
    uid: str,
    *,
    shares_files: bool = True,
) -> bool:
    """Tell whether a container is one that we created for this user.

    A container has its image's labels too, so one that the user runs from an image committed from an environment
    carries ours without being ours: a session that the image has as well is nobody's proof. And each of ours has its
    runtime folder mounted, which is called like the session.

    Parameters
    ----------
    container : ContainerState
        As listed.
    image_labels : mapping or None
        Of its image; None where that is not known.
    uid : str
        The user's.
    shares_files : bool
        The engine mounts our files.
    """
    found = container.labels
    if image_labels is None or found.get(labels.USER) != uid or labels.VERSION not in found:
        return False
    if labels.SESSION not in found:
        is_inherited = labels.USER in image_labels
        return not is_inherited and bool(_HELPERS.fullmatch(container.name))
    session = found[labels.SESSION]
    return (
        all(label in found for label in _OF_A_KERNEL)
        and bool(folders.SESSION.fullmatch(session))
        and image_labels.get(labels.SESSION) != session
        and (not shares_files or Path(runtime_folder(container)).name == session)
    )


def runtime_folder(container: ContainerState) -> str:
    """Return the runtime folder of which a container has the shared part mounted, "" where there is none."""
    shared = container.mounts.get(str(RUNTIME), "")
    return str(Path(shared).parent) if shared else ""


def our_containers(holdings: Holdings) -> list[ContainerState]:
    """Return this user's containers, running or not."""
    of_images = {image.id: image.labels for image in holdings.images}
    return [
        container
        for container in holdings.containers
        if is_ours(
            container,
            of_images.get(container.image_id),
            holdings.uid,
            shares_files=holdings.shares_files,
        )
    ]


def _is_young(holdings: Holdings, since: float) -> bool:
    return holdings.now - since < YOUNG


def _containers(holdings: Holdings, *, everything: bool) -> Iterator[LeftOver]:
    for container in our_containers(holdings):
        if container.status not in _NOT_RUNNING or _is_young(holdings, container.created_at):
            continue
        is_kernels = labels.SESSION in container.labels and not container.name.endswith("-why")
        if container.status == "created":
            why = "created and never started"
        elif not is_kernels:
            why = "ended, and was of use for a moment only"
        elif everything:
            why = "kept, and does not run: what was installed in it goes too"
        else:
            continue
        yield LeftOver(
            kind="container",
            id=container.id,
            name=container.name,
            why=f"{why}; {age(holdings.now - container.created_at)} old",
            size=holdings.usage.containers.get(container.id, 0),
        )


def _images(
    holdings: Holdings, remaining: Sequence[ContainerState], *, everything: bool
) -> Iterator[LeftOver]:
    used = {container.image_id for container in remaining} | {c.image for c in remaining}
    used |= {image.labels[labels.BASE] for image in holdings.images if labels.BASE in image.labels}
    here = {reference for image in holdings.images for reference in image.references}
    for image in holdings.images:
        if (
            image.id in used
            or used.intersection(image.references)
            or image.labels.get(labels.USER) != holdings.uid
            or _is_young(holdings, image.created_at)
        ):
            continue
        kind: Kind = "image" if image.references else "layers"
        why = (
            _why_not_wanted(image, holdings.current, here, everything=everything)
            if image.references
            else _why_not_continued(image)
        )
        if why:
            yield LeftOver(
                kind=kind,
                id=image.id,
                name=_short(image),
                why=f"{why}; {age(holdings.now - image.created_at)} old",
                size=holdings.usage.images.get(image.id, image.size),
                references=image.references,
            )


def _why_not_wanted(
    image: ImageState, current: Mapping[str, str], here: AbstractSet[str], *, everything: bool
) -> str:
    """Return why nobody wants a named image, "" where somebody may, or where it is not ours alone."""
    kinds = {match[1] for r in image.references if (match := _OUR_REFERENCE.fullmatch(r))}
    if not all(map(_OUR_REFERENCE.fullmatch, image.references)) or len(kinds) != 1:
        return ""
    if kinds == {"with"} and labels.BASE in image.labels:
        base = image.labels[labels.BASE]
        if not here & {base, f"{base}:latest"}:
            return f"has extra packages for an image that is gone: {base}"
        return f"no container has it; extra packages for {base}" if everything else ""
    if kinds == {"build"} and labels.BUILT_FROM in image.labels:
        dockerfile = image.labels[labels.BUILT_FROM]
        if current.get(dockerfile) == "":
            return f"its Dockerfile is gone: {dockerfile}"
        if dockerfile in current and current[dockerfile] not in image.references:
            return f"its Dockerfile has changed: {dockerfile}"
        return f"no container has it; built from {dockerfile}" if everything else ""
    return ""


def _why_not_continued(image: ImageState) -> str:
    """Return why an image without a name is only what a stopped pull or commit left, "" where it is not."""
    if set(image.labels) == {labels.KEEPS, labels.USER}:  # one of a user's has inherited more
        return f"keeps the layers of a pull of {image.labels[labels.KEEPS]} that was stopped"
    if labels.COMMITS in image.labels and all(label in image.labels for label in _OF_A_KERNEL):
        return f"of a commit of {image.labels[labels.COMMITS]} that did not come to its end"
    return ""


def _short(image: ImageState) -> str:
    """Return an image's name with a tag that fits on a line."""
    if not image.references:
        return image.id.rpartition(":")[2][:12]
    name, _, tag = image.references[0].partition(":")
    return f"{name}:{tag[:12]}"


def _bundles(holdings: Holdings, *, everything: bool) -> Iterator[LeftOver]:
    running = [c for c in our_containers(holdings) if c.status not in _NOT_RUNNING]
    here = {container.labels.get(labels.SESSION) for container in holdings.containers}
    # Another engine's containers may have any of them.
    elsewhere = any(f.is_answered and not here.intersection(f.names) for f in holdings.run_folders)
    for bundle in holdings.bundles:
        if bundle.is_locked or _is_young(holdings, bundle.used_at):
            continue
        unused = age(holdings.now - bundle.used_at)
        # A container that has it was created before the bundle was last used.
        may_be_in_use = elsewhere or any(c.created_at <= bundle.used_at + YOUNG for c in running)
        if not bundle.is_whole:
            why = f"not built to the end; {unused} old"
        elif may_be_in_use:
            continue
        elif everything or holdings.now - bundle.used_at > BUNDLE_LASTS:
            why = f"no start used it for {unused}"
        else:
            continue
        yield LeftOver(
            kind="bundle",
            id=str(bundle.path),
            name=bundle.path.name,
            why=why,
            size=bundle.size,
        )


def _of_images(kind: Kind, files: Sequence[KeptFile], holdings: Holdings) -> Iterator[LeftOver]:
    here = {image.id for image in holdings.images}
    for file in files:
        if not here.intersection(file.names) and not _is_young(holdings, file.changed_at):
            yield _file(kind, file, "this engine does not have its image", file.names[0][:19])


def _run_folders(holdings: Holdings, remaining: Iterable[ContainerState]) -> Iterator[LeftOver]:
    sessions = {container.labels.get(labels.SESSION) for container in remaining}
    for folder in holdings.run_folders:
        if not (
            folder.is_answered
            or folder.shares_files != holdings.shares_files  # another engine's
            or sessions.intersection(folder.names)
            or _is_young(holdings, folder.changed_at)
        ):
            yield _file("run folder", folder, "its container is gone", folder.path.name)


def _handovers(holdings: Holdings, remaining: Iterable[ContainerState]) -> Iterator[LeftOver]:
    sessions = {container.labels.get(labels.SESSION) for container in remaining}
    answered = {
        name for folder in holdings.run_folders if folder.is_answered for name in folder.names
    }
    for handover in holdings.handovers:
        if not (
            (sessions | answered).intersection(handover.names)
            or _is_young(holdings, handover.changed_at)
        ):
            yield _file("handover", handover, "its containers are gone", handover.path.name)


def _kept_notes(holdings: Holdings, remaining: Iterable[ContainerState]) -> Iterator[LeftOver]:
    here = {container.id for container in remaining}
    for note in holdings.kept_notes:
        # A container is created before it is noted, and files are looked at first: it would be here.
        if not here.intersection(note.names) and not _is_young(holdings, note.changed_at):
            yield _file("kept note", note, "its container is gone", note.names[0][:12])


def _file(kind: Kind, found: KeptFile, why: str, name: str) -> LeftOver:
    return LeftOver(kind=kind, id=str(found.path), name=name, why=why, size=found.size)


def age(seconds: float) -> str:
    """Return a time in one number and a word, as Docker does: "3 days"."""
    for unit, length in (("week", 604800), ("day", 86400), ("hour", 3600)):
        if seconds >= 2 * length or (seconds >= length and unit == "hour"):
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{int(seconds // 60)} minutes"


# --- look -----------------------------------------------------------------------------------------


def find_holdings(engine: Engine, *, thorough: bool = True) -> Holdings:
    """Look at what there is; with `thorough`, also at the cache, Dockerfiles and sizes, which may take seconds."""
    bundles = list(find_bundles(folders.bundles_root())) if thorough else []
    root = folders.runtime_root()
    run_folders = list(_find_run_folders(root))
    handovers = list(_find_handovers(root))
    memories = list(_find_memories(folders.cache_root() / "images")) if thorough else []
    code = list(_find_compiled(compiled.root())) if thorough else []
    kept_notes = list(_find_kept_notes(engine.facts.endpoint))
    # Files first: a container that is created in between is then seen, and its folder is not.
    containers, images = engine.list({}), engine.images({})
    built_from = {image.labels.get(labels.BUILT_FROM, "") for image in images} - {""}
    dockerfiles = built_from if thorough else set()
    return Holdings(
        now=time.time(),
        uid=str(os.getuid()),
        shares_files=engine.facts.shares_files,
        containers=containers,
        images=images,
        current=dict(_current_references(dockerfiles)),
        bundles=bundles,
        memories=memories,
        compiled=code,
        run_folders=run_folders,
        handovers=handovers,
        kept_notes=kept_notes,
        usage=engine.disk_usage() if thorough else DiskUsage(),
    )


def _current_references(dockerfiles: Collection[str]) -> Iterator[tuple[str, str]]:
    for dockerfile in dockerfiles:
        try:
            yield dockerfile, build_reference(Path(dockerfile)) if Path(dockerfile).exists() else ""
        except (ConfigError, OSError):
            continue


def find_bundles(root: Path) -> Iterator[Bundle]:
    """Yield the bundles, and what builds left that did not come to their end."""
    for path in sorted(root.glob("*cp*-*")):
        if not path.is_dir() or path.is_symlink():
            continue
        with contextlib.suppress(OSError):
            marker = path / "bundle.json"
            is_scratch = path.name.startswith(".")
            is_whole = not is_scratch and marker.is_file()
            target = path.name[1:].rpartition("-")[0] if is_scratch else path.name
            yield Bundle(
                path=path,
                size=_size_of(path),
                is_whole=is_whole,
                used_at=(marker if is_whole else path).stat().st_mtime,
                is_locked=_is_locked(root / f".{target}.lock"),
            )


def _is_locked(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _find_memories(root: Path) -> Iterator[KeptFile]:
    for path in sorted(root.glob("*.json*")):
        with contextlib.suppress(OSError):
            found = path.stat()
            yield KeptFile(
                path=path,
                names=(f"sha256:{path.name.partition('.')[0]}",)
                if path.suffix == ".json"
                else ("",),
                changed_at=found.st_mtime,
                size=found.st_size,
            )


def _find_compiled(root: Path) -> Iterator[KeptFile]:
    for path in sorted(root.iterdir() if root.is_dir() else ()):
        with contextlib.suppress(OSError):
            number = "" if path.name.startswith(".") else f"sha256:{path.name}"
            changed_at = path.lstat().st_mtime
            yield KeptFile(path=path, names=(number,), changed_at=changed_at, size=_size_of(path))


def _find_run_folders(root: Path) -> Iterator[KeptFile]:
    for path in sorted(root.iterdir()):
        if not folders.SESSION.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        with contextlib.suppress(OSError):
            shared = folders.RuntimeFolder(path).shared
            inside = [path, *path.iterdir(), *(shared.iterdir() if shared.is_dir() else ())]
            yield KeptFile(
                path=path,
                names=(path.name,),
                changed_at=max(entry.lstat().st_mtime for entry in inside),
                size=_size_of(path),
                is_answered=folders.has_listener(shared / "control") or False,
                shares_files=not _listens_on_port(shared / "config.json"),
            )


def _listens_on_port(config: Path) -> bool:
    """Tell what a supervisor was told to listen on. The container may have put anything in the file's place."""
    with (
        contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError),
        os.fdopen(os.open(config, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file,
    ):
        return isinstance(json.loads(file.read(_LARGEST_CONFIG))["control"], int)
    return False


_LARGEST_CONFIG = 1 << 20
"""Bytes; a runtime folder's config.json has about a thousand."""


def _find_handovers(root: Path) -> Iterator[KeptFile]:
    for path in sorted(root.glob("*.handover")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = path.stat()
            sessions = tuple(info["container"]["session"] for info in json.loads(path.read_text()))
            yield KeptFile(path=path, names=sessions, changed_at=found.st_mtime, size=found.st_size)


def _find_kept_notes(endpoint: str) -> Iterator[KeptFile]:
    """Yield what is noted of environments at one engine: the others' containers cannot be seen now."""
    for found in kept.all_kept():
        path = kept.file_of(found)
        with contextlib.suppress(OSError):
            state = path.stat()
            if found.endpoint == endpoint:
                yield KeptFile(
                    path=path,
                    names=(found.container_id,),
                    changed_at=state.st_mtime,
                    size=state.st_size,
                )


def _size_of(folder: Path) -> int:
    """Return the bytes that a folder takes on the disk."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in (".", *names):
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_blocks * 512  # noqa: PTH118
    return total


# --- act ------------------------------------------------------------------------------------------


def remove(left: LeftOver, engine: Engine) -> LeftOver:
    """Remove one thing, if it is still unused; return it, with the problem if there is one."""
    try:
        if left.kind == "container":
            engine.remove(left.id, force=False)
        elif left.kind in ("image", "layers"):
            for reference in left.references or (left.id,):
                engine.remove_image(reference)
        else:
            _remove_files(left, engine)
    except DockmlError as error:
        return replace(left, problem=error.message)
    except OSError as error:
        return replace(left, problem=f"{error.strerror or error}: {error.filename or left.id}")
    return left


def _remove_files(left: LeftOver, engine: Engine) -> None:
    path = Path(left.id)
    if left.kind == "bundle":
        _remove_bundle(path)
    elif left.kind == "run folder":
        folder = folders.RuntimeFolder(path)
        if engine.list({labels.SESSION: path.name}) or folders.has_listener(
            folder.shared / "control"
        ):
            raise ConfigError("its container is there after all")
        folder.remove()
        if path.exists():
            raise ConfigError(
                f"something in {path} may not be removed, such as another user's files"
            )
    elif left.kind == "kept note":
        noted = [found for found in kept.all_kept() if kept.file_of(found) == path]
        if any(engine.inspect(found.container_id) is not None for found in noted):
            raise ConfigError("its container is there after all")
        path.unlink(missing_ok=True)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_bundle(path: Path) -> None:
    name = path.name[1:].rpartition("-")[0] if path.name.startswith(".") else path.name
    with (path.parent / f".{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError("it is being built now") from None
        shutil.rmtree(path)


# --- tell -----------------------------------------------------------------------------------------


def add_prune_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `dockml prune` takes on `parser`."""
    parser.add_argument(
        "-f", "--force", action="store_true", help="remove it; without, it is only listed"
    )
    parser.add_argument(
        "-a",
        "--all",
        action="store_true",
        help="also what is only unused now: kept environments that do not run, images built from Dockerfiles or "
        "with extra packages, kernel bundles",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--engine", metavar="CONTEXT|URL", help="Docker context or endpoint to use")


def prune(engine: Engine, parsed: argparse.Namespace, tell: Callable[[str], None] = tell) -> int:
    """Do what `dockml prune` was asked for; return its exit code."""
    holdings = find_holdings(engine)
    found = decide(holdings, everything=parsed.all)
    if parsed.force:
        found = [remove(left, engine) for left in found]
    if parsed.json:
        tell(json.dumps([_as_json(left, is_done=parsed.force) for left in found], indent=1))
    else:
        tell(describe(found, is_done=parsed.force, everything=parsed.all))
        if not parsed.all and (more := len(decide(holdings, everything=True)) - len(found)) > 0:
            tell(
                f"{more} more {'is' if more == 1 else 'are'} only unused now. See them with: dockml prune --all"
            )
        tell("What is not ours takes room too, and stays. See it with: docker system df")
    return 1 if any(left.problem for left in found) else 0


def _as_json(left: LeftOver, *, is_done: bool) -> dict[str, Any]:
    return {
        **asdict(left),
        "references": list(left.references),
        "removed": is_done and not left.problem,
    }


def describe(found: Sequence[LeftOver], *, is_done: bool, everything: bool = False) -> str:
    """Return what was found, or removed, in words."""
    if not found:
        return "Nothing to remove: whatever we created is in use."
    gone = [left for left in found if not left.problem]
    total = f"{len(gone)} thing{'' if len(gone) == 1 else 's'}, about {size(sum(left.size for left in gone))}"
    rows = [
        [
            left.kind,
            left.name,
            size(left.size),
            f"not removed: {left.problem}" if left.problem else left.why,
        ]
        for left in found
    ]
    memories = [left for left in found if left.kind == "image memory" and not left.problem]
    if len(memories) > 1:  # each of a few bytes: one line for all
        rows = [row for left, row in zip(found, rows, strict=True) if left not in memories]
        taken = size(sum(left.size for left in memories))
        why = "this engine does not have these images"
        rows.append(["image memory", f"{len(memories)} files", taken, why])
    table = str(Table(["KIND", "NAME", "FREES", "WHY"], rows, empty=""))
    if is_done:
        left = len(found) - len(gone)
        return f"{table}\nRemoved: {total}." + (f" Not removed: {left}." if left else "")
    words = "dockml prune --force" + (" --all" if everything else "")
    return f"{table}\nNobody uses these: {total}. Nothing is removed yet. To remove them: {words}"
