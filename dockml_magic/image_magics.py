"""The magics about images: list and fetch them."""

from __future__ import annotations

from collections.abc import Iterable

from IPython.core.magic import line_magic, magics_class

from dockml_magic.display import Tables, tell
from dockml_magic.folders import current_folder
from dockml_magic.images import add_search_options, tables_of_images
from dockml_magic.magic_lines import MagicLines
from dockml_magic.names import known_names
from dockml_magic.options import RunOptions, add_pull_arguments
from dockml_magic.planning import engine_for, local_references, pull_for
from dockml_magic.project import find_project


@magics_class
class ImageMagics(MagicLines):
    """The `%docker_` magics about images."""

    ARGUMENTS = {  # noqa: RUF012 - declared as ClassVar above
        "docker_images": add_search_options,
        "docker_pull": add_pull_arguments,
    }

    def names_for(self, magic: str) -> Iterable[str]:
        """Return the names of images."""
        return known_names(find_project(current_folder()), local_references() or [])

    @line_magic
    def docker_images(self, line: str) -> Tables | None:
        """List images: what there is of a framework, for which Python and CUDA, and what is here.

        %docker_images                      every framework, and the images on this machine
        %docker_images tf1.15 --cuda 10     TensorFlow 1.15 on any CUDA 10
        %docker_images --local              only what is here

        NAME is what you give to %docker_env. A fact with a "?" is not confirmed. SURE says whether the tag was seen in
        a published source or is derived from its neighbours.
        """
        if (parsed := self.parse("docker_images", line)) is None:
            return None
        return tables_of_images(parsed, find_project(current_folder()), local_references())

    @line_magic
    def docker_pull(self, line: str) -> None:
        """Fetch an image, or its newest build: %docker_pull NAME.

        NAME is what %docker_env takes. The layers that are here are not downloaded again.
        """
        if (parsed := self.parse("docker_pull", line)) is not None:
            options = RunOptions(engine=parsed.engine)
            engine = engine_for(options)
            pull_for(parsed.what, options, current_folder(), engine=engine, tell=tell)
