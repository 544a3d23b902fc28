"""The catalogue: images of every framework and version, and what is known of each.

The rows are in `resources/images.csv`, tags that do not exist in `resources/suspect_tags.csv`. What is
known comes from documents, not from pulls: `sure` says whether a tag was seen in a source or only follows from
the pattern of its neighbours, `unsure` which facts of a row were not confirmed.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

MOVING = ("latest", "rolling", "nightly")
"""Versions of images whose tag moves: what is in them is not known before they are pulled."""

REFERENCE = re.compile(
    r"(?:(?:[a-zA-Z0-9.-]+(?::\d+)?)/)?[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
    r"(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?|sha256:[0-9a-f]{64}"
)
"""What the engine takes for an image."""


class Framework(NamedTuple):
    """How people call a framework.

    Attributes
    ----------
    word : str
        In our short names: "tf".
    title : str
        In sentences: "TensorFlow".
    aliases : tuple of str
        Other ways to write it.
    home : tuple of str
        How references of its own publisher begin; the others' come after them.
    """

    word: str
    title: str
    aliases: tuple[str, ...] = ()
    home: tuple[str, ...] = ()


FRAMEWORKS = {
    "tensorflow": Framework("tf", "TensorFlow", ("tensorflow",), ("tensorflow/tensorflow:",)),
    "pytorch": Framework("torch", "PyTorch", ("pytorch",), ("pytorch/pytorch:",)),
    "jax": Framework("jax", "JAX", (), ("nvcr.io/nvidia/jax:",)),
    "mxnet": Framework("mxnet", "MXNet", (), ("mxnet/python:",)),
    "paddle": Framework(
        "paddle",
        "PaddlePaddle",
        ("paddlepaddle",),
        ("paddlepaddle/paddle:", "registry.baidubce.com/", "hub.baidubce.com/"),
    ),
    "keras": Framework("keras", "Keras"),
    "rapids": Framework(
        "rapids", "RAPIDS", ("rapidsai",), ("nvcr.io/nvidia/rapidsai/", "rapidsai/")
    ),
    "chainer": Framework("chainer", "Chainer"),
    "caffe": Framework("caffe", "Caffe"),
    "caffe2": Framework("caffe2", "Caffe2"),
    "cntk": Framework("cntk", "CNTK"),
    "theano": Framework("theano", "Theano"),
    "darknet": Framework("darknet", "Darknet"),
    "all-in-one": Framework("deepo", "Deepo", ("all-in-one",)),
    "tensorflow+pytorch": Framework("gpu-jupyter", "TensorFlow and PyTorch", ("tf+torch",)),
    "huggingface": Framework("transformers", "Hugging Face Transformers", ("huggingface",)),
    "python": Framework("python", "Python"),
    "scipy": Framework("scipy", "SciPy"),
    "datascience": Framework("datascience", "Data science"),
    "pyspark": Framework("pyspark", "PySpark", ("spark",)),
    "jupyter": Framework("jupyter", "Jupyter"),
    "kaggle": Framework("kaggle", "Kaggle"),
    "r": Framework("r", "R"),
    "julia": Framework("julia", "Julia"),
}

PUBLISHERS = {
    "ngc": ("nvcr.io/nvidia/",),
    "deepo": ("ufoym/deepo:",),
    "aws": ("public.ecr.aws/deep-learning-containers/",),
    "cnstark": ("cnstark/pytorch:",),
}
"""Words for who made an image, and how their references begin."""


NEEDS_GPU = ("rapids",)
"""Frameworks that do nothing without a GPU."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of the catalogue.

    Attributes
    ----------
    name : str
        The short name that means this image and no other; its reference, where no short one can.
    reference : str
        What the engine pulls.
    framework : str
        A key of `FRAMEWORKS`, or "" for an entry of the user's that names none.
    version : str
        The framework's. One of `MOVING` where the tag moves, "" where nobody says.
    title : str
        How people call it.
    gpu : bool
        Built for an NVIDIA GPU.
    python, cuda, cudnn : str
        Versions, "" where not known or not in it. Python's has two parts.
    python_exe : str
        Where Python is, or "".
    has_ipykernel : str
        "yes", "no", or "" where not known.
    flavour : str
        "runtime", "devel" (with compilers) or "" where there are no two.
    base_os : str
        Such as "ubuntu18.04".
    sure : str
        "seen" (the tag stands in a source) or "derived" (from the pattern of its neighbours).
    unsure : tuple of str
        Fields of this row that were not confirmed.
    broken : str
        Why it does not work, in a sentence; "" where nothing is known against it.
    digest : str
        Of the manifest, "sha256:…", where somebody recorded it.
    source : str
        Where all this is from; "dockml.toml …" for an entry of the user's.
    notes : str
        What else is known.
    cpu_twin : str
        The name to use without a GPU, "" for an image that needs none.
    is_own : bool
        An entry of the user's, which comes before ours.
    """

    name: str
    reference: str
    framework: str = ""
    version: str = ""
    title: str = ""
    gpu: bool = False
    python: str = ""
    python_exe: str = ""
    cuda: str = ""
    cudnn: str = ""
    has_ipykernel: str = ""
    flavour: str = ""
    base_os: str = ""
    sure: str = "seen"
    unsure: tuple[str, ...] = ()
    broken: str = ""
    digest: str = ""
    source: str = ""
    notes: str = ""
    cpu_twin: str = ""
    is_own: bool = False

    @property
    def tag(self) -> str:
        """The tag of its reference, "" where it has none."""
        repository, _, tag = self.reference.partition("@")[0].rpartition(":")
        return tag if repository and "/" not in tag else ""

    @property
    def publisher(self) -> str:
        """Who made it: a key of `PUBLISHERS`, or ""."""
        for word, beginnings in PUBLISHERS.items():
            if self.reference.startswith(beginnings):
                return word
        return ""

    @property
    def is_home(self) -> bool:
        """Its framework's own publisher made it."""
        home = FRAMEWORKS[self.framework].home if self.framework else ()
        return self.reference.startswith(home)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version as numbers, () where it has none: "2.6.0a0+df5b" is (2, 6, 0, 0)."""
        return numbers(self.version)

    @property
    def release(self) -> tuple[int, ...]:
        """The release of NVIDIA's that its tag begins with: (23, 10) for 23.10-py3; else ()."""
        match = re.match(r"(\d\d)\.(\d\d)-", self.tag) if self.publisher == "ngc" else None
        return (int(match[1]), int(match[2])) if match else ()

    @property
    def is_prerelease(self) -> bool:
        """Its version came before the finished one. NVIDIA's builds all call themselves so: not they."""
        return self.publisher != "ngc" and bool(re.match(r"[\d.]+(?:a|b|rc|dev)\d", self.version))


class SuspectTag(NamedTuple):
    """A tag that stands in somebody's file and is not there, or probably not.

    Attributes
    ----------
    reference : str
        The image.
    verdict : str
        "missing" (known not to exist) or "doubtful".
    reason : str
        How that is known, as the rest of a sentence.
    next_best : str
        A name to use instead.
    source : str
        Where it was found.
    """

    reference: str
    verdict: str
    reason: str
    next_best: str
    source: str


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, () where it does not begin with one."""
    if not version[:1].isdigit():
        return ()
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


def minor(version: str) -> str:
    """Return the first two parts of a version, as they are written: "26.06", "2.6" of "2.6.0a0+df5b"."""
    match = re.match(r"\d+(?:\.\d+)?", version)
    return match[0] if match and "-" not in version else ""  # a date is none that people type


def begins(whole: tuple[int, ...], part: tuple[int, ...]) -> bool:
    """Tell whether a version begins with another: (1, 10, 0) with (1, 10), and (1, 1, 0) not."""
    return whole[: len(part)] == part


@functools.cache
def images() -> dict[str, Image]:
    """Return all images, by name. Reads the file once, when first asked."""
    return {row["name"]: _image(row) for row in rows()}


def rows() -> list[dict[str, str]]:
    """Return the rows of images.csv as they stand there."""
    return _read("images.csv")


@functools.cache
def suspect_tags() -> dict[str, SuspectTag]:
    """Return tags that do not exist or probably do not, by reference."""
    return {row["reference"]: SuspectTag(**row) for row in _read("suspect_tags.csv")}


def _read(file_name: str) -> list[dict[str, str]]:
    file = importlib.resources.files("dockml_magic") / "resources" / file_name
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def _image(row: dict[str, str]) -> Image:
    framework, version, gpu = row["framework"], row["version"], row["gpu"] == "yes"
    facts: dict[str, Any] = dict(row)  # of text, but for these
    facts["gpu"] = gpu
    facts["unsure"] = tuple(row["unsure"].split())
    facts["title"] = title_of(framework, version, gpu=gpu)
    facts["cpu_twin"] = twin_of(framework, version) if gpu else ""
    return Image(**facts)


def title_of(framework: str, version: str, *, gpu: bool) -> str:
    """Return how people call it: "TensorFlow 1.10.0 GPU"."""
    words = [
        FRAMEWORKS[framework].title,
        "" if version in MOVING else version,
        "GPU" if gpu else "",
    ]
    return " ".join(filter(None, words))


def twin_of(framework: str, version: str) -> str:
    """Return the name that means the same without a GPU: "tf1.10"."""
    return "" if framework in NEEDS_GPU else FRAMEWORKS[framework].word + minor(version)


_VERSION = r"\d+(?:\.\d+)*"
_FORMS = {
    "name": r"\S+",
    "framework": "|".join(map(re.escape, FRAMEWORKS)),
    "version": rf"(?:{_VERSION}(?:\.?(?:a|b|rc|post|dev)\d+)?(?:\+\w+)?|\d{{4}}-\d\d-\d\d|{'|'.join(MOVING)})?",
    "gpu": r"(?:yes)?",
    "reference": REFERENCE.pattern,
    "python": r"(?:\d\.\d+)?",
    "python_exe": r"(?:/\S+|python3)?",
    "cuda": r"(?:\d+\.\d+)?",
    "cudnn": rf"(?:{_VERSION})?",
    "has_ipykernel": r"(?:yes|no)?",
    "flavour": r"(?:runtime|devel)?",
    "base_os": r"(?:[a-z]+ ?[a-z]*[\d.]*)?",
    "sure": r"seen|derived",
    "unsure": r"(?:\w+(?: \w+)*)?",
    "broken": r"(?:[A-Z].*\.)?",
    "digest": r"(?:sha256:[0-9a-f]{64})?",
    "source": r".+",
    "notes": r".*",
}


def problems(row: dict[str, str]) -> list[str]:
    """Return what is wrong with a row of images.csv, one sentence each."""
    if list(row) != list(_FORMS):
        return [f"Its columns are not {', '.join(_FORMS)}."]
    found = [
        f"{column} is {cell!r}, which has not the form of one."
        for column, form in _FORMS.items()
        if not re.fullmatch(form, cell := row[column])
    ]
    found += [
        f"unsure names {word!r}, which is no column."
        for word in row["unsure"].split()
        if word not in _FORMS
    ]
    if row["cudnn"] and not row["cuda"]:
        found.append("It has cuDNN and no CUDA.")
    if row["cuda"] and not row["gpu"]:
        found.append("It has CUDA and is not built for a GPU.")
    if row["name"] != row["name"].lower():
        found.append("Its name is not in small letters.")
    if ":" not in row["reference"].rpartition("/")[2]:
        found.append("Its reference has no tag.")
    if row["reference"] in suspect_tags():
        found.append("Its reference is among the tags that do not exist.")
    return found


def search(
    among: Iterable[Image],
    *,
    framework: str = "",
    version: str = "",
    python: str = "",
    cuda: str = "",
    gpu: bool | None = None,
    local: Collection[str] | None = None,
    text: str = "",
) -> list[Image]:
    """Return the images that meet everything that is asked, newest version first.

    Parameters
    ----------
    among : iterable of Image
        What to search, such as `names.all_images(project)`.
    framework : str
        A key of `FRAMEWORKS`.
    version, python, cuda : str
        What the image's begins with: "1.10" finds 1.10.0 and not 1.1.
    gpu : bool, optional
        Only images built for a GPU, or only others.
    local : collection of str, optional
        Only images with one of these references.
    text : str
        Words that stand, all of them, in its name, reference or title.
    """
    words = text.lower().split()
    found = [
        image
        for image in among
        if framework in ("", image.framework)
        and begins(image.numbers, numbers(version))
        and begins(numbers(image.python), numbers(python))
        and begins(numbers(image.cuda), numbers(cuda))
        and gpu in (None, image.gpu)
        and (local is None or image.reference in local)
        and (not words or _holds(image, words))
    ]
    found.sort(key=lambda image: image.name)
    found.sort(key=lambda image: image.numbers, reverse=True)
    found.sort(key=lambda image: _ORDER.get(image.framework, len(_ORDER)))
    return found


_ORDER = {framework: place for place, framework in enumerate(FRAMEWORKS)}


def _holds(image: Image, words: list[str]) -> bool:
    text = f"{image.name} {image.reference} {image.title}".lower()
    return all(word in text for word in words)
