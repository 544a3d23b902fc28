"""What an image picker offers: its rows, which of them are found, and the line that starts one. All pure."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dockml_magic.catalogue import FRAMEWORKS, REFERENCE, Image, minor, search
from dockml_magic.fit import Fit
from dockml_magic.names import Fits, all_images, parse_query, rank
from dockml_magic.project import Project

NAME_WIDTH = 33
"""Characters of a row's name; longer ones lose their middle."""

FIT_MARKS = {
    "fits": "✓ fits",
    "slow first start": "~ slow first start",
    "not known": "? not known",
    "will not run": "✗ will not run",
}
"""How a verdict stands in a list."""

_COLUMNS = (NAME_WIDTH, 6, 6, 18, 4)
HEAD = ("Name", "Python", "CUDA", "GPU", "Here")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image that can be picked.

    Attributes
    ----------
    name : str
        What `%docker_env` takes for it.
    image : Image
        What is known of it.
    is_here : bool
        The engine has it.
    fit : Fit
        Whether this machine's GPUs can be used by it.
    words : str
        What a filter's words are looked for in, in small letters.
    """

    name: str
    image: Image
    is_here: bool
    fit: Fit
    words: str

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """What stands in the columns of `HEAD`."""
        image = self.image
        gpu = FIT_MARKS[self.fit.verdict] if image.gpu else "CPU" if image.source else ""
        return self.name, image.python, image.cuda, gpu, "here" if self.is_here else ""

    @property
    def label(self) -> str:
        """The row as one line of text, its columns aligned."""
        return aligned((shortened(self.name), *self.cells[1:]))


def aligned(cells: Sequence[str]) -> str:
    """Return cells at the columns' places, for letters of one width."""
    pairs = zip(cells, _COLUMNS, strict=True)
    return "  ".join(cell.ljust(width) for cell, width in pairs).rstrip()


def shortened(name: str) -> str:
    """Return a name that fits its column: the end, where versions stand, counts more than the middle."""
    if len(name) <= NAME_WIDTH:
        return name
    head = NAME_WIDTH // 3
    return f"{name[:head]}…{name[head + 1 - NAME_WIDTH :]}"


class Selection:
    """All images that can be picked, ready for being filtered at every keystroke.

    Parameters
    ----------
    project : Project
        Its environments and images come first.
    local : collection of str
        References of the images that are here.
    judge : callable
        Returns whether an image fits this machine's GPUs.
    fits : callable
        The same as a number, as `names.rank` takes it.
    """

    def __init__(
        self,
        project: Project,
        local: Collection[str],
        judge: Callable[[Image], Fit],
        fits: Fits = lambda _: 0,
    ) -> None:
        self._local = frozenset(local)
        self._judge = judge
        self._fits = fits
        known = _by_publisher(search(all_images(project)))
        references = {image.reference for image in known}
        named = [self._row(name, image) for name, image in _environments(project, known)]
        of_catalogue = [self._row(image.name, image) for image in known]
        others = [
            self._row(reference, _unknown(reference))
            for reference in sorted(self._local - references)
        ]
        here = [row for row in of_catalogue if row.is_here]
        elsewhere = [row for row in of_catalogue if not row.is_here]
        self.rows = [*named, *here, *others, *elsewhere]

    def _row(self, name: str, image: Image) -> Row:
        is_here = image.reference in self._local
        compact = image.python.replace(".", "")
        words = [name, image.reference, image.title, image.framework, image.base_os]
        words += [f"python{image.python} py{compact}"] if compact else []
        words += [f"cuda{image.cuda} cu{image.cuda.replace('.', '')}"] if image.cuda else []
        words += ["gpu" if image.gpu else "cpu", "here local" if is_here else ""]
        return Row(
            name=name,
            image=image,
            is_here=is_here,
            fit=self._judge(image),
            words=" ".join(words).lower(),
        )

    def find(
        self,
        text: str = "",
        *,
        framework: str = "",
        version: str = "",
        gpu: bool | None = None,
        only_here: bool = False,
    ) -> list[Row]:
        """Return the rows that meet everything that is asked, the likeliest first.

        Parameters
        ----------
        text : str
            A NAME, whose first row is what `%docker_env NAME` takes; or words that all stand in a row.
        framework : str
            A key of `FRAMEWORKS`.
        version : str
            The first two parts of the framework's version.
        gpu : bool, optional
            Only images built for a GPU, or only others.
        only_here : bool
            Only images that the engine has.
        """
        among = [
            row
            for row in self.rows
            if framework in ("", row.image.framework)
            and version in ("", minor(row.image.version))
            and gpu in (None, row.image.gpu)
            and (row.is_here or not only_here)
        ]
        wanted = text.strip()
        if not wanted:
            return among
        words = wanted.lower().split()
        named = [row for row in among if row.name.lower() == wanted.lower()]
        query = parse_query(wanted)
        meant = [row for row in among if query.matches(row.image)] if query else []
        if query and meant:  # and rows that are called so, but not all that have such a Python
            key = rank(query, self._fits)
            meant.sort(key=lambda row: key(row.image))
            holding = [row for row in among if words[0] in f"{row.name} {row.image.reference}"]
        else:
            holding = [row for row in among if all(word in row.words for word in words)]
            holding.sort(key=lambda row: not row.name.lower().startswith(words[0]))
        found = list(dict.fromkeys([*named, *meant, *holding]))
        is_reference = REFERENCE.fullmatch(wanted) and ("/" in wanted or ":" in wanted)
        if is_reference and not any(wanted in (row.name, row.image.reference) for row in found):
            found.append(self._row(wanted, _unknown(wanted)))
        return found

    def frameworks(self) -> list[tuple[str, str]]:
        """Return title and key of the frameworks there are, as a chooser wants them."""
        there = {row.image.framework for row in self.rows}
        return [(words.title, key) for key, words in FRAMEWORKS.items() if key in there]

    def versions(self, framework: str) -> list[str]:
        """Return the versions of a framework, of two parts, newest first."""
        of_it = [row.image for row in self.rows if row.image.framework == framework]
        of_it.sort(key=lambda image: image.numbers, reverse=True)
        return list(dict.fromkeys(filter(None, (minor(image.version) for image in of_it))))


def _by_publisher(images: Iterable[Image]) -> list[Image]:
    """Put a framework's own images before others' of the same version, and short names before references."""
    versions = itertools.groupby(images, key=lambda image: (image.framework, image.numbers))
    return [
        image
        for _, group in versions
        for image in sorted(group, key=lambda i: (not i.is_home, i.name == i.reference, i.gpu))
    ]


def _environments(project: Project, known: Iterable[Image]) -> Iterable[tuple[str, Image]]:
    """Return the project's environments and their images; a name of the catalogue is looked up there."""
    by_name: Mapping[str, Image] = {i.name: i for i in known} | {i.reference: i for i in known}
    for name, options in project.environments.items():
        asked = options.image or name
        yield name, by_name.get(asked) or _unknown(asked)


def _unknown(reference: str) -> Image:
    """Return an image of which nothing is known."""
    return Image(name=reference, reference=reference, title=reference)


def words_of(*, gpus: str = "", memory: str = "", ports: str = "") -> list[str]:
    """Return the options of `%docker_env` for what was chosen; ports are set apart by blanks or commas."""
    words = ["--gpus", gpus] if gpus else []
    words += ["--memory", memory.strip()] if memory.strip() else []
    for port in ports.replace(",", " ").split():
        words += ["-p", port]
    return words


def line_of(name: str, words: Sequence[str]) -> str:
    """Return the line that starts `name` with these options."""
    return f"%docker_env {shlex.join([name, *words])}"


def text_of(rows: Sequence[Row], most: int = 20) -> str:
    """Return rows as text, each with the line that starts it; for who sees no widgets."""
    if not rows:
        return "No image is called so. See all of them with: %docker_images"
    head = [*HEAD[1:], "To start it"]
    lines = [[*row.cells[1:], line_of(row.name, [])] for row in rows[:most]]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *lines]
    )
    if len(rows) > most:
        text += f"\n… and {len(rows) - most} more. Search with: %docker_images -h"
    return text
