"""The labels on everything we create; we only ever touch what carries them."""

from __future__ import annotations

NAMESPACE = "io.github.dockml-magic"

VERSION = f"{NAMESPACE}.version"
"""Version of dockml_magic that created it."""

NAME = f"{NAMESPACE}.name"
"""The environment's name, as the user typed it."""

WORKSPACE = f"{NAMESPACE}.workspace"
"""The host folder that is mounted."""

USER = f"{NAMESPACE}.user"
"""Host uid of the one who started it."""

SESSION = f"{NAMESPACE}.session"
"""One id per container: names its runtime folder."""

BUILT_FROM = f"{NAMESPACE}.built-from"
"""The Dockerfile that an image was built from."""

BASE = f"{NAMESPACE}.base"
"""On an image with extra packages: the image below, as it was called."""

REQUIREMENTS = f"{NAMESPACE}.requirements"
"""The packages that it was given, one a line."""

KEEPS = f"{NAMESPACE}.keeps"
"""On an image: the reference whose pull came as far as its layers, and not to its end."""

KEPT = f"{NAMESPACE}.kept"
"""On a container: it was started to outlive its notebook, and stays when it is stopped."""

COMMITS = f"{NAMESPACE}.commits"
"""On an image without a name: the reference that is being made of it."""
