"""What is shown of images: the list of `dockml images`, and what a NAME comes to (`--dry-run`).

Pure: who calls gives the project and the references that the engine has.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import replace

from dockml_magic.catalogue import FRAMEWORKS, Image, minor, numbers, search
from dockml_magic.display import Table, Tables
from dockml_magic.errors import ConfigError
from dockml_magic.names import Choice, all_images, find, parse_query, rank
from dockml_magic.project import Project
from dockml_magic.requirements import hide_private

_HEAD = ["NAME", "REFERENCE", "PYTHON", "CUDA", "CUDNN", "KERNEL", "SURE", "HERE"]
_NEXT = 3
"""Further candidates that `explain` names."""

_KERNELS = {"yes": "its own", "no": "from the bundle", "": "its own, or from the bundle"}

_NARROW = (
    "Narrow it: a framework or a name (tf, torch1.1, tf1.15-gpu), --version 2, --python 3.8, --cuda 11, "
    "--gpu, --cpu, --local."
)


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dockml images` and `%docker_images`."""
    parser.add_argument(
        "what", nargs="?", default="", metavar="FRAMEWORK", help="a framework, a name, or a text"
    )
    for option, of in (("version", "the framework"), ("python", "Python"), ("cuda", "CUDA")):
        parser.add_argument(
            f"--{option}",
            type=_parse_version,
            metavar="VERSION",
            help=f"version of {of}, or how it begins",
        )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--gpu", action="store_true", default=None, help="built for a GPU")
    kind.add_argument(
        "--cpu", action="store_false", dest="gpu", default=None, help="not built for one"
    )
    parser.add_argument("--local", action="store_true", help="only what is on this machine")


def _parse_version(text: str) -> str:
    if not numbers(text):
        raise ConfigError(f"'{text}' is not a version.", hint="Write it as in --version 1.10")
    return text


def tables_of_images(
    parsed: argparse.Namespace, project: Project, local: Sequence[str] | None
) -> Tables:
    """Return what `dockml images` shows: an overview where nothing is asked, else the images found.

    Parameters
    ----------
    parsed : argparse.Namespace
        What was asked, as `add_search_options` declares it.
    project : Project
        The user's own images.
    local : sequence of str or None
        References that the engine has, None where no engine answers.

    Raises
    ------
    UnknownNameError
        If a name is asked for that no image meets.
    """
    here = [_plain(reference) for reference in local or ()]
    everything = all_images(project)
    known = {image.reference for image in everything}
    strangers = [Image(name=name, reference=name, sure="") for name in here if name not in known]
    note = "" if local is not None else "No Docker engine answers: what is here is not marked."
    if not any(vars(parsed).values()) and parsed.gpu is None:
        found = search(everything, local=here)
        return Tables(_overview(everything, here), _list([*found, *strangers], here, note=note))
    query = parse_query(parsed.what)
    found = search(
        find(parsed.what, project) if query else everything,
        version=parsed.version or "",
        python=parsed.python or "",
        cuda=parsed.cuda or "",
        gpu=parsed.gpu,
        local=here if parsed.local else None,
        text="" if query else parsed.what,
    )
    if query and query.version:  # the first is what the name means
        found.sort(key=rank(query))
    if parsed.local and not any((parsed.version, parsed.python, parsed.cuda, query)):
        found += [image for image in strangers if parsed.what.lower() in image.reference]
    return Tables(_list(found, here, note=note))


def _plain(reference: str) -> str:
    """Return a reference as people write it; podman lists Docker Hub's in full."""
    return reference.removeprefix("docker.io/").removeprefix("library/")


def _overview(everything: Sequence[Image], here: Collection[str]) -> Table:
    rows = []
    for framework, words in FRAMEWORKS.items():
        images = [image for image in everything if image.framework == framework]
        versions = {image.numbers: image.version for image in images if minor(image.version)}
        ends = [minor(versions[end(versions)]) for end in (min, max)] if versions else []
        count = sum(image.reference in here for image in images)
        rows.append(
            [
                words.word,
                words.title,
                " … ".join(dict.fromkeys(ends)),
                str(len(images)),
                str(count or ""),
            ]
        )
    return Table(["NAME", "FRAMEWORK", "VERSIONS", "IMAGES", "HERE"], rows, empty="", note=_NARROW)


def _list(images: Sequence[Image], here: Collection[str], note: str) -> Table:
    rows = [
        [
            "" if image.name == image.reference else image.name,
            image.reference,
            _fact(image, "python"),
            _fact(image, "cuda"),
            _fact(image, "cudnn"),
            _fact(image, "has_ipykernel"),
            how_sure(image),
            "here" if image.reference in here else "",
        ]
        for image in images
    ]
    return Table(_HEAD, rows, empty=note or "No such image. " + _NARROW, note=note)


def _fact(image: Image, field: str) -> str:
    """Return what is known, with "?" where it is not confirmed."""
    value = str(getattr(image, field))
    return f"{value}?" if value and field in image.unsure else value


def how_sure(image: Image) -> str:
    """Return in a word how sure an image is: "seen", "derived", "broken", "own"."""
    return "broken" if image.broken else "own" if image.is_own else image.sure


def explain(choice: Choice, *, is_here: bool, problem: str = "", warm: str = "") -> Table:
    """Return what a start of `choice` would do and why this image: the table of `--dry-run`.

    Parameters
    ----------
    choice : Choice
        What the NAME came to.
    is_here : bool
        Its image needs no pull.
    problem : str
        Why it would not start after all, or "".
    warm : str
        What is to be said of one that waits ready, or "".
    """
    image = choice.image
    options = replace(choice.options, gpus=None, image=None, packages=()).to_json()
    for size in ("memory", "shm_size"):
        if size in options:
            options[size] = f"{options[size] / 1024**3:.3g}g"
    fetched = "built" if choice.dockerfile or choice.base else "pulled"
    if choice.extras and not choice.base:
        fetched += ", and the packages installed"
    rows = [
        ["name", choice.name],
        ["image", choice.reference],
        ["built from", choice.dockerfile],
        ["on top of", choice.base],
        ["lock", " ".join(choice.notes)],
        ["packages", ", ".join(map(hide_private, choice.extras.lines)) if choice.extras else ""],
        ["is here", "yes" if is_here else f"no: it would be {fetched}"],
    ]
    if image is not None:
        cuda = ", ".join(filter(None, (_fact(image, "cuda"), _fact(image, "cudnn"))))
        rows += [
            ["framework", image.title or "not known"],
            ["Python", _fact(image, "python") or "not known"],
            ["CUDA, cuDNN", cuda or "none"],
            ["kernel", _KERNELS[image.has_ipykernel]],
            ["how sure", f"{image.sure}, {image.source}"],
            ["not confirmed", ", ".join(image.unsure).replace("_", " ")],
            ["notes", image.notes],
            ["broken", image.broken],
            ["why this one", choice.why],
        ]
        for place, other in enumerate(choice.others[:_NEXT]):
            rows.append(["" if place else "then", f"{other.reference} ({how_sure(other)})"])
    asked = "all, as the name says" if choice.wants_gpu else choice.options.gpus or "none"
    rows += [
        ["GPUs", asked],
        ["options", ", ".join(f"{option}={value}" for option, value in options.items())],
        ["warm", warm],
        ["beware", "" if is_here else choice.doubt],
        ["would not start", problem],
    ]
    return Table(["DRY RUN", choice.title], [row for row in rows if row[1]], empty="")
