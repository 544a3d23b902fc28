"""The magics about images: list, fetch, build, remove them; to a file and back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from IPython.core.magic import line_magic, magics_class

from dockml_magic.display import Tables, tell
from dockml_magic.folders import current_folder
from dockml_magic.images import add_search_options, tables_of_images
from dockml_magic.magic_lines import MagicLines
from dockml_magic.names import known_names
from dockml_magic.options import (
    RunOptions,
    add_build_arguments,
    add_load_arguments,
    add_pull_arguments,
    add_rmi_arguments,
    add_save_arguments,
)
from dockml_magic.planning import (
    build_image,
    engine_for,
    find_local_image,
    local_references,
    pull_for,
    remove_image,
)
from dockml_magic.project import find_project


@magics_class
class ImageMagics(MagicLines):
    """The `%docker_` magics about images."""

    ARGUMENTS = {  # noqa: RUF012 - declared as ClassVar above
        "docker_images": add_search_options,
        "docker_pull": add_pull_arguments,
        "docker_build": add_build_arguments,
        "docker_rmi": add_rmi_arguments,
        "docker_save": add_save_arguments,
        "docker_load": add_load_arguments,
    }

    def names_for(self, magic: str) -> Iterable[str]:
        """Return the names of images: those that are here, and where one can be fetched all."""
        if magic in ("docker_build", "docker_load"):
            return []
        if magic in ("docker_rmi", "docker_save"):
            return local_references() or []
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

    @line_magic
    def docker_build(self, line: str) -> None:
        """Build an image: %docker_build [-t NAME] [-f DOCKERFILE] [--build-arg KEY=VALUE] [--pull] PATH.

        PATH is a folder with a Dockerfile, or a Dockerfile. Proxies and pip's settings of this machine are given to
        the build. Without -t the image is the one that %docker_env PATH starts.
        """
        if (parsed := self.parse("docker_build", line)) is None:
            return
        reference = build_image(
            engine_for(RunOptions(engine=parsed.engine)),
            Path(parsed.path).expanduser(),
            dockerfile=Path(parsed.file).expanduser() if parsed.file else None,
            tag=parsed.tag,
            args=parsed.build_arg,
            pull=parsed.pull,
            tell=tell,
        )
        path = "./" if parsed.path == "." else parsed.path
        name = parsed.tag or (path if "/" in path else f"./{path}")
        tell(f"built {reference}. Start it with: %docker_env {name}")

    @line_magic
    def docker_rmi(self, line: str) -> None:
        """Remove images: %docker_rmi [-f] IMAGE [IMAGE ...].

        One that containers use stays, and they are named. With -f, as Docker has it, one that only stopped
        containers use goes, and one that running ones use loses its name.
        """
        if (parsed := self.parse("docker_rmi", line)) is None:
            return
        engine = engine_for(RunOptions(engine=parsed.engine))
        for reference in [
            find_local_image(name, engine, current_folder()) for name in parsed.images
        ]:
            for gone in remove_image(reference, engine, force=parsed.force):
                tell(gone)

    @line_magic
    def docker_save(self, line: str) -> None:
        """Write images to a file: %docker_save IMAGE [IMAGE ...] [-o FILE] [--force].

        FILE ends in .tar, .tar.gz (the default), .tar.xz or .tar.zst, and is read again and checked before it gets
        its name. On another machine: %docker_load -i FILE, or docker load -i FILE. An environment is made an
        image with: %docker_commit ENV IMAGE
        """
        if (parsed := self.parse("docker_save", line)) is None:
            return
        engine = engine_for(RunOptions(engine=parsed.engine))
        references = [find_local_image(name, engine, current_folder()) for name in parsed.images]
        from dockml_magic.backup import (
            backup_path,
            save_images,
        )  # here: `%load_ext` does without it

        path = backup_path(parsed.output, references, current_folder())
        save_images(engine, references, path, tell, force=parsed.force)

    @line_magic
    def docker_load(self, line: str) -> None:
        """Take in the images of a file: %docker_load -i FILE.

        The file is read to its end and checked before the engine gets it.
        """
        if (parsed := self.parse("docker_load", line)) is None:
            return
        engine = engine_for(RunOptions(engine=parsed.engine))
        from dockml_magic.backup import load_images  # here: `%load_ext` does without it

        for name in load_images(engine, Path(parsed.input).expanduser(), tell):
            tell(f"loaded {name}. Start it with: %docker_env {name}")
