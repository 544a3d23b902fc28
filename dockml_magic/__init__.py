"""Notebook cells in GPU containers of any framework version.

`%load_ext dockml_magic`, then `%docker_env tf1.10-gpu`: the following cells run in a container of that
version. For scripts there is `start`, for finding an image `ImagePicker`. Importing this package does
nothing and is cheap: everything heavy waits until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dockml_magic._version import __version__

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from dockml_magic.environment import Environment, start
    from dockml_magic.picker import ImagePicker

__all__ = [
    "Environment",
    "ImagePicker",
    "__version__",
    "load_ipython_extension",
    "start",
    "unload_ipython_extension",
]


def __getattr__(name: str) -> Any:
    if name in ("Environment", "start"):
        from dockml_magic import environment

        return getattr(environment, name)
    if name == "ImagePicker":
        from dockml_magic.picker import ImagePicker

        return ImagePicker
    raise AttributeError(f"module 'dockml_magic' has no attribute '{name}'")


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics and make this notebook ready to route cells. Called by %load_ext.

    Parameters
    ----------
    shell : InteractiveShell
        The notebook's.
    """
    from dockml_magic.magics import load

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Stop this notebook's environments and give everything back. Called by %unload_ext."""
    from dockml_magic.magics import unload

    unload(shell)
