"""What a NAME means: an environment of the project, a Dockerfile, a name of the catalogue, or a reference.

A name of the catalogue says what is wanted, `FRAMEWORK[VERSION][-WORD...]`, in the ways people write it:
tf1.10-gpu, tensorflow:1.10-gpu, tensorflow-gpu==1.10, pytorch1.1-cu100, ngc-tf1.15. `parse_query` reads it,
`rank` is the rule for choosing among the images that meet it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from dockml_magic import catalogue
from dockml_magic.catalogue import (
    FRAMEWORKS,
    MOVING,
    NEEDS_GPU,
    PUBLISHERS,
    REFERENCE,
    Image,
    begins,
    minor,
    numbers,
)
from dockml_magic.errors import ConfigError, MissingTagError, UnknownNameError
from dockml_magic.options import RunOptions
from dockml_magic.project import Project, is_dockerfile
from dockml_magic.requirements import Extras

_LANGUAGES = {"ir": "R", "r": "R", "ark": "R", "xpython": "python", "ijavascript": "javascript"}
LOCAL = "local"
"""The name of the notebook's own kernel."""

Fits = Callable[[Image], int]
"""How well an image fits this machine's GPU: the higher the better, 0 where nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What a name of the catalogue asks for; None, "" or () where it says nothing.

    Attributes
    ----------
    framework : str
        A key of `FRAMEWORKS`.
    version : str
        What the version begins with.
    publisher : str
        A key of `PUBLISHERS`.
    gpu : bool or None
        Built for a GPU, or not.
    jupyter : bool
        With a kernel in it.
    flavour : str
        "runtime" or "devel".
    python, cuda, cudnn : tuple of int
        What those versions begin with.
    base_os : str
        Such as "ubuntu20.04".
    slim : bool or None
        Of Python's own images: the small ones, or the full ones with compilers.
    """

    framework: str
    version: str = ""
    publisher: str = ""
    gpu: bool | None = None
    jupyter: bool = False
    flavour: str = ""
    python: tuple[int, ...] = ()
    cuda: tuple[int, ...] = ()
    cudnn: tuple[int, ...] = ()
    base_os: str = ""
    slim: bool | None = None

    @property
    def asks_for_gpu(self) -> bool:
        """A container of it shall have GPUs: -gpu, -cu100 and ngc- say so."""
        return (
            self.gpu is True
            or bool(self.cuda)
            or (self.publisher == "ngc" and self.gpu is None)
            or (self.framework in NEEDS_GPU and self.gpu is None)
        )

    @property
    def title(self) -> str:
        """How people call what is asked for: "TensorFlow 1.10 GPU"."""
        words = [FRAMEWORKS[self.framework].title, self.version]
        words += ["GPU"] if self.gpu else ["CPU"] if self.gpu is False else []
        words += ["with Jupyter"] if self.jupyter else []
        words += [self.flavour, _dotted("py", self.python), _dotted("cu", self.cuda)]
        words += [_dotted("cudnn", self.cudnn), self.base_os]
        words += {True: ["slim"], False: ["full"], None: []}[self.slim]
        words += [f"({self.publisher.upper()})"] if self.publisher else []
        return " ".join(filter(None, words))

    def matches(self, image: Image) -> bool:
        """Tell whether an image is one of those that are asked for."""
        return (
            image.framework == self.framework
            and self._has_version(image)
            and self.publisher in ("", image.publisher)
            and self.gpu in (None, image.gpu)
            and (not self.jupyter or image.has_ipykernel == "yes")
            and self.flavour in ("", image.flavour)
            and begins(numbers(image.python), self.python)
            and begins(numbers(image.cuda), self.cuda)
            and begins(numbers(image.cudnn), self.cudnn)
            and self.base_os in ("", image.base_os)
            and self.slim in (None, "slim" in image.tag)
        )

    def _has_version(self, image: Image) -> bool:
        asked = numbers(self.version)
        return begins(image.numbers, asked) or (bool(asked) and begins(image.release, asked))


def _dotted(word: str, version: tuple[int, ...]) -> str:
    return word + ".".join(map(str, version)) if version else ""


_ALIASES = {
    alias: framework
    for framework, words in FRAMEWORKS.items()
    for alias in (words.word, *words.aliases)
}
_NAME = re.compile(
    rf"(?:(?P<publisher>{'|'.join(PUBLISHERS)})-)?"
    rf"(?P<framework>{'|'.join(sorted(map(re.escape, _ALIASES), key=len, reverse=True))})"
    r"(?:(?:==|[-_:=]?)(?P<version>\d+(?:\.\d+)*(?:\.?(?:a|b|rc|post)\d+)?)(?:\.[x*])?|:latest)?"
    r"(?P<words>(?:[-_][a-z0-9.]+)*)"
    r"(?:==(?P<pinned>\d+(?:\.\d+)*(?:\.?(?:a|b|rc|post)\d+)?)(?:\.\*)?)?"
)
_WORD = re.compile(
    r"(?P<kind>py|cudnn|cuda|cu|ubuntu)(?P<digits>\d+)(?:\.(?P<rest>\d+(?:\.\d+)*))?"
)
WORDS = (
    "-gpu -cpu -jupyter -runtime -devel -py3 -py36 -cu100 -cudnn7 -ubuntu20.04 -slim -ngc -deepo"
)
"""What may follow a framework and its version, for messages."""


def parse_query(name: str) -> Query | None:
    """Return what a name asks for, None where it is none of the catalogue's.

    Pure text: whether an image meets it is another matter. "tensorflow-gpu==1.10" and "tf1.10-gpu" are the
    same; "ubuntu" and "tf1.10-mine" are None.
    """
    match = _NAME.fullmatch(name.lower())
    if match is None or (match["version"] and match["pinned"]):
        return None
    found: dict[str, object] = {
        "framework": _ALIASES[match["framework"]],
        "version": match["version"] or match["pinned"] or "",
        "publisher": match["publisher"] or "",
    }
    for word in re.split("[-_]", match["words"])[1:]:
        meaning = _meaning(word)
        if meaning is None or any(found.get(key) for key in meaning):
            return None
        found |= meaning
    return Query(**found)  # type: ignore[arg-type]


def _meaning(word: str) -> dict[str, object] | None:
    """Return what a word of a name asks for; None where it is unknown."""
    simple: dict[str, dict[str, object]] = {
        "gpu": {"gpu": True},
        "cpu": {"gpu": False},
        "jupyter": {"jupyter": True},
        "notebook": {"jupyter": True},
        "runtime": {"flavour": "runtime"},
        "devel": {"flavour": "devel"},
        "slim": {"slim": True},
        "full": {"slim": False},
        **{publisher: {"publisher": publisher} for publisher in PUBLISHERS},
    }
    if word in simple:
        return simple[word]
    match = _WORD.fullmatch(word)
    if match is None:
        return None
    kind, digits, rest = match["kind"], match["digits"], match["rest"]
    if kind == "ubuntu":
        return {"base_os": word} if rest else None
    if not rest and kind == "py":  # py36, py310
        digits, rest = digits[:1], digits[1:]
    elif not rest and kind in ("cu", "cuda") and 20 < int(digits) < 1000:
        digits, rest = digits[:-1], digits[-1]  # cu100, cu90; cu11 is any of 11
    field = {"py": "python", "cu": "cuda"}.get(kind, kind)
    return {field: numbers(f"{digits}.{rest}" if rest else digits)}


def rank(query: Query, fits: Fits = lambda _: 0) -> Callable[[Image], tuple[object, ...]]:
    """Return the sort key that puts the image to choose for `query` first. This is the rule.

    1. Your own entries (`dockml.toml`, `images.toml`) before ours.
    2. What works before what is known not to: no GPU found in it, no Python, another processor.
    3. What fits this machine's GPU better, where a GPU is asked for and its fit is known.
    4. The framework's own publisher before others.
    5. Without a GPU word, an image for CPUs before one with CUDA, which is larger and may want a driver.
    6. Python 3 before Python 2.
    7. The surest first: a tag that was seen before one that is derived.
    8. A finished version before a pre-release, a confirmed one before a guess, then the newest: so `tf1.10` is the
       newest 1.10 that has an image; a tag that stays before one that moves, as "latest" does.
    9. An image with a kernel before one without.
    10. Runtime before devel, which is larger; slim before full.
    11. The newest CUDA, then the newest Python.
    12. The tag that begins as the version was written, then the shorter one.
    """

    def key(image: Image) -> tuple[object, ...]:
        return (
            not image.is_own,
            bool(image.broken),
            -fits(image) if query.asks_for_gpu else 0,
            not image.is_home,
            image.gpu and not query.asks_for_gpu,
            image.python.startswith("2."),
            image.sure != "seen",
            image.is_prerelease,
            "version" in image.unsure and not image.release,
            _newest(image.numbers),
            _newest(image.release),
            image.version in MOVING,
            ("yes", "", "no").index(image.has_ipykernel),
            image.flavour == "devel",
            "slim" not in image.tag,
            _newest(numbers(image.cuda)),
            _newest(numbers(image.python)),
            not (query.version and f"{image.tag}-".startswith(f"{query.version}-")),
            len(image.reference),
            image.reference,
        )

    return key


REASONS = (
    "it is your own entry",
    "the next one is known not to work",
    "it fits this machine's GPU better than the next one",
    "it is the framework's own publisher's",
    "it is for CPUs, and no GPU is asked for",
    "it has Python 3",
    "its tag was seen, the next one's is derived",
    "the next one is a pre-release",
    "its version is confirmed",
    "its version is the newest",
    "its release is the newest",
    "its tag stays, the next one's moves",
    "it has a kernel, or may have one",
    "it is runtime: smaller than devel",
    "it is slim: smaller than the full one",
    "its CUDA is the newest",
    "its Python is the newest",
    "its tag begins as the version was written",
    "its reference is the shortest",
    "its reference is the first of the alphabet",
)
"""What each part of the sort key of `rank` says where it is the one that decides."""


def reason(query: Query, first: Image, second: Image, fits: Fits = lambda _: 0) -> str:
    """Return why `first` comes before `second`, which differ."""
    key = rank(query, fits)
    pairs = zip(key(first), key(second), REASONS, strict=True)
    return next((text for one, other, text in pairs if one != other), REASONS[-1])


def _newest(version: tuple[int, ...]) -> tuple[int, ...]:
    """Return a sort key that puts newer versions first, and none last."""
    return (*(-number for number in version), 1)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a NAME came to.

    Attributes
    ----------
    name : str
        The environment's name.
    reference : str
        The image; "" while `dockerfile` is not built.
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
    image : Image or None
        What the catalogue knows of the reference.
    others : tuple of Image
        What else the name could have meant, best first.
    dockerfile : str
        The path to build from, as it was written, or "".
    doubt : str
        What to tell the user before the image is pulled, or "".
    why : str
        What decided for the image and against the next one, or "".
    extras : Extras or None
        What is to be installed on top of the image.
    base : str
        The image below, where `reference` is that with the extras.
    notes : tuple of str
        What to tell of the lock, which holds the image or does not any more.
    """

    name: str
    reference: str
    title: str
    options: RunOptions
    wants_gpu: bool = False
    cpu_twin: str = ""
    is_known: bool = True
    image: Image | None = None
    others: tuple[Image, ...] = ()
    dockerfile: str = ""
    doubt: str = ""
    why: str = ""
    extras: Extras | None = None
    base: str = ""
    notes: tuple[str, ...] = ()

    @property
    def image_in_words(self) -> str:
        """Return what runs as people would say it: a layer by its base and what it adds."""
        return f"{self.base} with {self.extras}" if self.base else self.reference


def choose(
    name: str,
    options: RunOptions,
    project: Project,
    *,
    is_here: Callable[[str], bool] = lambda _: False,
    fits: Fits = lambda _: 0,
) -> Choice:
    """Return what `name` means here: the project first, then the catalogue, then a reference.

    Parameters
    ----------
    name : str
        As the user typed it.
    options : RunOptions
        As the user typed them.
    project : Project
        The project file's environments, and the user's own images.
    is_here : callable
        Tells whether the engine has an image of this reference: it comes before the catalogue.
    fits : callable
        How well an image fits this machine's GPU; see `rank`.

    Raises
    ------
    UnknownNameError
        If it is none of these, not even the form of a reference, or nothing meets what it asks for.
    MissingTagError
        If it is a tag that is known not to exist.
    ConfigError
        If it is the name of the notebook's own kernel.
    """
    if name == LOCAL:
        raise ConfigError(
            "'local' is the notebook's own kernel: no container runs it.",
            hint="Cells run in it again with: %docker_env local. Choose another name for an environment.",
        )
    entry = project.environments.get(name)
    if entry is not None:
        options = options.over(entry)
    asked = options.image or name
    # A bare word is far more often a mistyped name than an image of Docker Hub's library.
    is_known = bool(entry or options.image or "/" in name)
    choice = Choice(
        name=options.name or name,
        reference=asked,
        title=asked,
        options=options,
        is_known=is_known,
    )
    if is_dockerfile(asked):
        choice = dataclasses.replace(choice, reference="", dockerfile=asked, is_known=True)
    elif candidates := find(asked, project, fits=fits, is_here=is_here):
        choice = _chosen(choice, asked, candidates, fits)
    elif not REFERENCE.fullmatch(asked):
        raise UnknownNameError(asked, suggest(asked, project))
    else:
        image = next((i for i in all_images(project) if i.reference == asked), None)
        doubt = _fault(image) if image else _doubt_about_tag(asked, is_here)
        choice = dataclasses.replace(choice, image=image, doubt=doubt)
    if title := project.titles.get(name):
        choice = dataclasses.replace(choice, title=title)
    return choice


def find(
    name: str,
    project: Project,
    *,
    fits: Fits = lambda _: 0,
    is_here: Callable[[str], bool] = lambda _: False,
) -> list[Image]:
    """Return the images that a name of the catalogue can mean, the one to choose first.

    Empty where it is no name of the catalogue but, perhaps, a reference: it has a "/", it is in Docker Hub's library
    as `python:3.11` is, or the engine has an image that is called so.

    Raises
    ------
    UnknownNameError
        If it asks for what no image is.
    """
    own = project.images.get(name.lower())
    if own is None and (_is_reference(name) or (REFERENCE.fullmatch(name) and is_here(name))):
        return []
    query = parse_query(name)
    among = all_images(project)
    if own is not None:
        rest = sorted(filter(query.matches, among), key=rank(query, fits)) if query else []
        return [own, *(image for image in rest if image is not own)]
    if query is None:
        return []
    found = sorted(filter(query.matches, among), key=rank(query, fits))
    if not found:
        raise _nothing_meets(name, query, among)
    return found


def _is_reference(name: str) -> bool:
    """Tell whether it can only be a reference: of a registry, a namespace, or Docker Hub's library."""
    return "/" in name or (":" in name and name.partition(":")[0] in _library())


@functools.cache
def _library() -> frozenset[str]:
    """Return the repositories of Docker Hub's library that are in the catalogue."""
    references = (image.reference for image in catalogue.images().values())
    return frozenset(text.partition(":")[0] for text in references if "/" not in text)


def _chosen(choice: Choice, asked: str, candidates: Sequence[Image], fits: Fits) -> Choice:
    image, *others = candidates
    query = parse_query(asked)
    if query is None or (image.is_own and image.name == asked.lower()):
        title = image.title or image.reference
        wants_gpu = image.gpu
    else:
        title = query.title
        wants_gpu = query.asks_for_gpu
    return dataclasses.replace(
        choice,
        reference=image.reference,
        title=title,
        wants_gpu=wants_gpu and choice.options.gpus is None,
        cpu_twin=image.cpu_twin,
        is_known=True,
        image=image,
        others=tuple(others),
        doubt=_doubt_about(asked, image, query),
        why=reason(query, image, others[0], fits) if query and others else "",
    )


def _doubt_about(asked: str, image: Image, query: Query | None) -> str:
    """Return what the user should know before an image is pulled that was found by name."""
    if image.broken:
        return f"'{asked}' is {image.reference}: no other is known to work. {_fault(image)}"
    if image.sure == "derived":
        return (
            f"'{asked}' is {image.reference}: a tag that follows from its neighbours and was not seen "
            "in any source. It may not exist."
        )
    asked_version = numbers(query.version) if query else ()
    if asked_version and "version" in image.unsure and begins(image.numbers, asked_version):
        return f"'{asked}' is {image.reference}, whose version is not confirmed: {image.notes}."
    return ""


def _fault(image: Image) -> str:
    """Return what is broken in an image, and the cure that its notes name."""
    cure = image.notes.partition("cure: ")[2]
    return f"{image.broken} What helps: {cure}." if cure else image.broken


def _doubt_about_tag(reference: str, is_here: Callable[[str], bool]) -> str:
    """Return what is to be said against a reference; refuse one that does not exist."""
    suspect = catalogue.suspect_tags().get(reference)
    if suspect is None or is_here(reference):
        return ""
    best = find(suspect.next_best, Project())[0]
    if suspect.verdict == "missing":
        raise MissingTagError(reference, suspect.reason, suspect.next_best, best.reference)
    return (
        f"'{reference}' probably does not exist: {suspect.reason}. "
        f"Next best: {suspect.next_best} ({best.reference})."
    )


def _nothing_meets(name: str, query: Query, among: Iterable[Image]) -> UnknownNameError:
    """Return the error for a name that no image meets: what versions there are, the nearest names."""
    title = FRAMEWORKS[query.framework].title
    everything = [image for image in among if image.framework == query.framework]
    of_publisher = [i for i in everything if query.publisher in ("", i.publisher)] or everything
    same = Query(framework=query.framework, version=query.version, publisher=query.publisher)
    near = sorted(filter(same.matches, of_publisher), key=rank(query))
    if near:
        hint = f"There is {title} {query.version}".rstrip() + ", but not so."
    else:
        versions = {image.numbers[:2]: minor(image.version) for image in of_publisher}
        versions.pop((), None)
        asked = numbers(query.version)
        hint = f"There is no {title} {query.version}".rstrip()
        if of_publisher is everything and query.publisher:
            hint += f" of {query.publisher}."
            near = sorted(everything, key=rank(query))
        elif versions:
            oldest, newest = versions[min(versions)], versions[max(versions)]
            hint += f": newest is {newest}; there are {oldest} … {newest}."
            nearest = min(sorted(versions, reverse=True), key=lambda v: _distance(v, asked))
            near = [i for i in of_publisher if i.numbers[:2] == nearest]
            near.sort(key=rank(query))
        else:
            hint += ": only images whose version is not known."
            near = sorted(of_publisher, key=rank(query))
    names = [i.name for i in near if i.name != i.reference] or [i.reference for i in near]
    return UnknownNameError(name, names[:4], hint=hint)


def _distance(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(abs(a - b) for a, b in zip(one, other, strict=False))


def all_images(project: Project) -> list[Image]:
    """Return the user's own images and the catalogue's that they do not override."""
    ours = catalogue.images()
    if not project.images:
        return list(ours.values())
    own = project.images.values()
    return [*own, *(image for name, image in ours.items() if name not in project.images)]


def suggest(name: str, project: Project, local_references: Collection[str] = ()) -> list[str]:
    """Return the known names nearest to `name`, best first, at most four."""
    import difflib  # here: `%load_ext` does without it

    known = known_names(project, local_references)
    # Many names differ in one digit only: of these the one that looks like what was typed.
    digits = re.sub(r"(?<=[\d.])[ol]", lambda match: str("ol".index(match[0])), name.lower())
    return difflib.get_close_matches(digits, known, n=4, cutoff=0.5)


def known_names(project: Project, local_references: Collection[str] = ()) -> list[str]:
    """Return what can be started by name: the project's environments, short names, local images."""
    names = dict.fromkeys(project.environments)
    for image in all_images(project):
        if image.framework and not image.is_own:
            word = FRAMEWORKS[image.framework].word
            names[word] = names[word + minor(image.version)] = None
        if image.name != image.reference:
            names[image.name] = None
    return [*(names | dict.fromkeys(local_references))]


def language_of(kernelspec: str) -> str:
    """Return the language of an image's kernelspec, by its name alone: "R" for "ir", "julia" for "julia-1.9"."""
    word = re.match(r"[a-z+#]*", kernelspec.lower())
    assert word is not None
    return _LANGUAGES.get(word[0], word[0])


def kernel_name(name: str) -> str:
    """Return the name of the kernelspec of `name`, as Jupyter allows one: dockml-tf1.10."""
    return "dockml-" + re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")
