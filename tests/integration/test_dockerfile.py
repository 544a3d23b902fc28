"""A Dockerfile as a NAME, on a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import dockml_magic
from dockml_magic import labels
from dockml_magic.engine import DockerEngine, connect
from dockml_magic.errors import ImageBuildError
from tests.integration.conftest import Image


@pytest.fixture
def dockerfile(image: Image, workspace: Path) -> Iterator[Path]:
    """A Dockerfile on our base; what was built from it is removed."""
    path = workspace / "Dockerfile"
    path.write_text(f"FROM {image('dockml/ipykernel:7')}\nCOPY greeting /\n")
    (workspace / "greeting").write_text("hello")
    yield path
    engine = connect()
    for built in builds(engine, path):
        engine._client.api.remove_image(built)


def builds(engine: DockerEngine, dockerfile: Path) -> list[str]:
    """Return the images that were built from this file."""
    made_from = {"label": f"{labels.BUILT_FROM}={dockerfile}"}
    found = engine._client.api.images(filters=made_from)
    return [tag for image in found for tag in image["RepoTags"] or ()]


def test_it_is_built_runs_and_is_built_again_when_it_changes(
    dockerfile: Path, workspace: Path
) -> None:
    for greeting, count in [("hello", 1), ("hello", 1), ("goodbye", 2)]:
        (workspace / "greeting").write_text(greeting)
        with dockml_magic.start("./Dockerfile") as environment:
            assert environment.reference.startswith("dockml/build:")
            assert environment.run("print(open('/greeting').read())").stdout == f"{greeting}\n"
        assert len(builds(connect(), dockerfile)) == count


def test_a_build_that_fails_shows_its_last_lines(dockerfile: Path) -> None:
    base = dockerfile.read_text().splitlines()[0]
    dockerfile.write_text(f"{base}\nRUN echo so far && false\n")
    with pytest.raises(ImageBuildError) as raised:
        dockml_magic.start(".")
    text = str(raised.value)
    assert "could not be built: The command '/bin/sh -c echo so far && false'" in text
    assert text.splitlines()[-1].startswith("  | so far")
