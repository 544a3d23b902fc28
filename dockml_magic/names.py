"""What a NAME means: an environment of the project, a short name of the catalogue, or a reference."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass

from dockml_magic import catalogue
from dockml_magic.errors import ConfigError, UnknownNameError
from dockml_magic.options import RunOptions
from dockml_magic.project import Project

_REFERENCE = re.compile(
    r"(?:(?:[a-zA-Z0-9.-]+(?::\d+)?)/)?[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
    r"(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?|sha256:[0-9a-f]{64}"
)
_LANGUAGES = {"ir": "R", "r": "R", "ark": "R", "xpython": "python", "ijavascript": "javascript"}
LOCAL = "local"
"""The name of the notebook's own kernel."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a NAME came to.

    Attributes
    ----------
    name : str
        The environment's name.
    reference : str
        The image.
    title : str
        How people call it.
    options : RunOptions
        The user's options over the project's.
    wants_gpu : bool
        All GPUs are asked for because of the name, not by an option.
    cpu_twin : str
        The name to use without a GPU, or "".
    is_known : bool
        The project file or the catalogue has it; otherwise it is only a possible reference.
    """

    name: str
    reference: str
    title: str
    options: RunOptions
    wants_gpu: bool = False
    cpu_twin: str = ""
    is_known: bool = True


def choose(name: str, options: RunOptions, project: Project) -> Choice:
    """Return what `name` means here: the project first, then the catalogue, then a reference.

    Raises
    ------
    UnknownNameError
        If it is none of these, not even the form of a reference.
    ConfigError
        If it is the name of the notebook's own kernel.
    """
    if name == LOCAL:
        raise ConfigError("'local' is the notebook's own kernel: no container runs it.")
    entry = project.environments.get(name)
    if entry is not None:
        options = options.over(entry)
    image = catalogue.find(options.image or name)
    reference = image.reference if image else options.image or name
    title = project.titles.get(name) or (image.title if image else "")
    # A bare word is far more often a mistyped name than an image of Docker Hub's library.
    is_known = bool(image or entry or options.image or "/" in name)
    if not _REFERENCE.fullmatch(reference):
        raise UnknownNameError(name, suggest(name, project))
    return Choice(
        name=options.name or name,
        reference=reference,
        title=title or reference,
        options=options,
        wants_gpu=bool(image and image.gpu and options.gpus is None),
        cpu_twin=image.cpu_twin if image else "",
        is_known=is_known,
    )


def suggest(name: str, project: Project, local_references: Collection[str] = ()) -> list[str]:
    """Return the known names nearest to `name`, best first, at most four."""
    known = known_names(project, local_references)
    return difflib.get_close_matches(name.lower(), known, n=4, cutoff=0.5)


def known_names(project: Project, local_references: Collection[str] = ()) -> list[str]:
    """Return what can be started by name: the project's environments, short names, local images."""
    return [*project.environments, *catalogue.images(), *local_references]


def language_of(kernelspec: str) -> str:
    """Return the language of an image's kernelspec, by its name alone: "R" for "ir", "julia" for "julia-1.9"."""
    word = re.match(r"[a-z+#]*", kernelspec.lower())
    assert word is not None
    return _LANGUAGES.get(word[0], word[0])


def kernel_name(name: str) -> str:
    """Return the name of the kernelspec of `name`, as Jupyter allows one: dockml-tf1.10."""
    return "dockml-" + re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")
