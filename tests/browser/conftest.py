"""The browser tests run on the same engine, images and folders as those on real containers."""

from tests.integration.conftest import (
    engine,
    image,
    lasting_cache,
    nothing_is_left,
    ours,
    own_folders,
)

__all__ = [
    "engine",
    "image",
    "lasting_cache",
    "nothing_is_left",
    "ours",
    "own_folders",
]
