"""The same environments as kernels in the launcher: install, list and remove kernelspecs.

A kernelspec of ours names the provisioner, for every front end that uses jupyter_client, and has an
`argv` that works alone, for those that run it themselves (VS Code).
"""

from __future__ import annotations

import importlib.resources
import json
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.paths import jupyter_data_dir

from dockml_magic.errors import ConfigError, DockmlError
from dockml_magic.names import choose, kernel_name, language_of
from dockml_magic.options import RunOptions
from dockml_magic.planning import choose_here, engine_for, with_extras
from dockml_magic.project import find_project
from dockml_magic.provisioner import PROVISIONER_NAME
from dockml_magic.requirements import from_folder


@dataclass(frozen=True, kw_only=True)
class InstalledKernel:
    """One of our kernelspecs.

    Attributes
    ----------
    kernel_name, display_name : str
        As Jupyter knows it and shows it.
    folder : Path
        Where its kernel.json is.
    name : str
        What it runs.
    options : RunOptions
        How.
    """

    kernel_name: str
    display_name: str
    folder: Path
    name: str
    options: RunOptions


def build_kernel_json(name: str, options: RunOptions, title: str) -> dict[str, Any]:
    """Return the content of kernel.json; pure.

    Parameters
    ----------
    name : str
        What it runs.
    options : RunOptions
        How; the provisioner and `argv` get them as JSON.
    title : str
        How people call it; "(Docker)" is added.
    """
    plain = options.to_json()
    words = ["--options", json.dumps(plain)] if plain else []
    return {
        "argv": [
            sys.executable,
            "-m",
            "dockml_magic.launch",
            name,
            *words,
            "-f",
            "{connection_file}",
        ],
        "display_name": f"{title} (Docker)",
        "language": language_of(options.kernel) if options.kernel else "python",
        "interrupt_mode": "signal",
        "metadata": {
            "debugger": True,  # JupyterLab asks the kernel only where this says so
            "kernel_provisioner": {
                "provisioner_name": PROVISIONER_NAME,
                "config": {"name": name, "options": plain},
            },
        },
    }


def install(
    name: str,
    options: RunOptions,
    *,
    prefix: str | None = None,
    for_user: bool = False,
    display_name: str = "",
) -> InstalledKernel:
    """Write a kernelspec for `name`; an older one of the same name is replaced.

    Parameters
    ----------
    name, options
        What it runs, and how: see `build_kernel_json`.
    prefix : str, optional
        Install below this prefix. Default is this Python environment's own (sys.prefix).
    for_user : bool
        Install for the user instead, for all their Python environments.
    display_name : str
        What the launcher shows; default is the catalogue's or the project's title.

    Raises
    ------
    ConfigError
        If the name means nothing, or the folder may not be written.
    """
    if options.keep:
        raise ConfigError(
            "A kernel of the launcher belongs to its front end, and cannot be kept.",
            hint="Leave --keep out; %docker_env NAME --keep is kept.",
        )
    options = replace(options, packages=from_folder(options.packages, Path.cwd()))
    choice = choose(name, options, find_project(Path.cwd()))
    title = display_name or _distinct_title(choice.title, options)
    base = (
        Path(jupyter_data_dir()) if for_user else Path(prefix or sys.prefix) / "share" / "jupyter"
    )
    # Several kernels of one image lie beside each other.
    of_image = f"{name}-{options.kernel}" if options.kernel else name
    folder = base / "kernels" / kernel_name(options.name or of_image)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        content = build_kernel_json(name, options, title)
        (folder / "kernel.json").write_text(json.dumps(content, indent=2) + "\n")
        resources = importlib.resources.files("dockml_magic") / "resources"
        for logo in ("logo-svg.svg", "logo-64x64.png", "logo-32x32.png"):
            (folder / logo).write_bytes((resources / logo).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"The kernel cannot be written to '{folder}': {error.strerror}.",
            hint="Use --for-user, or --prefix with a folder of yours that Jupyter searches.",
        ) from error
    return InstalledKernel(
        kernel_name=folder.name,
        display_name=content["display_name"],
        folder=folder,
        name=name,
        options=options,
    )


def _distinct_title(title: str, options: RunOptions) -> str:
    """Return the title with what sets this kernel apart: two equal ones cannot be told in a launcher."""
    if options.kernel:
        language = language_of(options.kernel)
        says_it = options.kernel.lower().startswith(language.lower())
        title = f"{options.kernel if says_it else language} in {title}"
    return f"{title} {options.name}" if options.name else title


def installed() -> list[InstalledKernel]:
    """Return all our kernelspecs that this Jupyter finds, by name."""
    found = []
    for name, folder in sorted(KernelSpecManager().find_kernel_specs().items()):
        try:
            spec = json.loads((Path(folder) / "kernel.json").read_text())
            provisioner = spec["metadata"]["kernel_provisioner"]
            config = provisioner["config"]
            if provisioner["provisioner_name"] == PROVISIONER_NAME:
                found.append(
                    InstalledKernel(
                        kernel_name=name,
                        display_name=spec["display_name"],
                        folder=Path(folder),
                        name=config["name"],
                        options=RunOptions.from_json(config["options"]),
                    )
                )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not one of ours
    return found


def can_start(kernel: InstalledKernel) -> str:
    """Return "yes", or what comes first, or "no" and why."""
    interpreter = json.loads((kernel.folder / "kernel.json").read_text())["argv"][0]
    if not os.access(interpreter, os.X_OK):
        return f"no: its Python '{interpreter}' is gone; install it again"
    try:
        engine = engine_for(kernel.options)
        choice, base = choose_here(kernel.name, kernel.options, Path.cwd(), engine)
        _, image = with_extras(choice, base, engine)
    except DockmlError as error:
        return f"no: {error.message}"
    if base and not image:
        return "yes, after its packages are installed"
    return "yes" if image else "yes, after its image is pulled"


def remove(name: str) -> list[Path]:
    """Remove the kernelspec of `name` (with or without "dockml-") wherever Jupyter finds it.

    Raises
    ------
    ConfigError
        If there is none, or its folder may not be removed.
    """
    wanted = {name, kernel_name(name)}
    folders = [kernel.folder for kernel in installed() if kernel.kernel_name in wanted]
    if not folders:
        known = ", ".join(kernel.kernel_name for kernel in installed()) or "none"
        raise ConfigError(f"No kernel of ours is called '{name}' (installed: {known}).")
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise ConfigError(f"'{folder}' cannot be removed: {error.strerror}.") from error
    return folders
