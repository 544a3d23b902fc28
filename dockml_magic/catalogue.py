"""Short names such as tf1.10-gpu, and the images they stand for."""

from __future__ import annotations

import functools
import importlib.resources
from dataclasses import dataclass

from dockml_magic import toml


@dataclass(frozen=True, kw_only=True)
class Image:
    """One entry of the catalogue.

    Attributes
    ----------
    name : str
        What the user types.
    reference : str
        What the engine pulls.
    title : str
        How people call it.
    gpu : bool
        Built for an NVIDIA GPU; a start asks for all GPUs unless told otherwise.
    cpu_twin : str
        The name of the same framework without GPU, or "".
    sure : str
        "seen" or "derived": how sure we are that the tag exists.
    """

    name: str
    reference: str
    title: str
    gpu: bool = False
    cpu_twin: str = ""
    sure: str = "seen"


@functools.cache
def images() -> dict[str, Image]:
    """Return all entries, by name."""
    file = importlib.resources.files("dockml_magic") / "resources" / "catalogue.toml"
    rows = toml.loads(file.read_text(encoding="utf-8"))["images"]
    return {name: Image(name=name, **row) for name, row in rows.items()}


def find(name: str) -> Image | None:
    """Return the entry called `name`, in whatever case; None where there is none.

    Does not look at the engine: an image may be known and not yet pulled.
    """
    return images().get(name.lower())
