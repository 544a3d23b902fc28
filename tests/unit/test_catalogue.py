from __future__ import annotations

import importlib.resources
from dataclasses import fields

import pytest

from dockml_magic import catalogue, toml
from dockml_magic.catalogue import Image
from dockml_magic.names import choose
from dockml_magic.options import RunOptions
from dockml_magic.project import Project

FILE = importlib.resources.files("dockml_magic") / "resources" / "catalogue.toml"
ROWS = toml.loads(FILE.read_text(encoding="utf-8"))["images"]
IMAGES = sorted(catalogue.images().values(), key=lambda image: image.name)

each_image = pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)


@each_image
def test_an_entry_has_known_keys_of_the_right_kind(image: Image) -> None:
    kinds = {"str": str, "bool": bool}
    known = {field.name: kinds[str(field.type)] for field in fields(Image)}
    for key, value in ROWS[image.name].items():
        assert type(value) is known[key], key


@each_image
def test_an_entry_is_chosen_by_its_name(image: Image) -> None:
    choice = choose(image.name, RunOptions(), Project())
    assert choice.reference == image.reference
    assert choice.wants_gpu is image.gpu


@each_image
def test_a_reference_names_its_tag(image: Image) -> None:
    assert ":" in image.reference.rpartition("/")[2]


@each_image
def test_a_reference_has_the_form_of_one(image: Image) -> None:
    assert choose(image.reference, RunOptions(), Project()).reference == image.reference


@each_image
def test_a_name_is_as_it_is_looked_up(image: Image) -> None:
    assert image.name == image.name.lower()
    assert catalogue.find(image.name) == image


@each_image
def test_a_gpu_image_has_a_twin_without_gpu(image: Image) -> None:
    assert image.gpu == image.name.endswith("-gpu")
    if image.gpu:
        twin = catalogue.find(image.cpu_twin)
        assert twin is not None
        assert not twin.gpu
    else:
        assert image.cpu_twin == ""


@each_image
def test_it_is_said_how_sure_we_are(image: Image) -> None:
    assert image.sure in ("seen", "derived")


def test_titles_can_be_told_apart() -> None:
    assert len({image.title for image in IMAGES}) == len(IMAGES)


def test_an_unknown_name_is_none() -> None:
    assert catalogue.find("tf99") is None
