from __future__ import annotations

import re
import subprocess
import sys

import pytest

import dockml_magic
from dockml_magic.doctor_magics import DoctorMagics
from dockml_magic.image_magics import ImageMagics
from dockml_magic.life_magics import LifeMagics
from dockml_magic.magics import DockerMagics
from dockml_magic.value_magics import ValueMagics

MAGICS = {
    "line": {
        "docker_build",
        "docker_commit",
        "docker_cp",
        "docker_doctor",
        "docker_env",
        "docker_exec",
        "docker_images",
        "docker_keep",
        "docker_load",
        "docker_logs",
        "docker_pick",
        "docker_ps",
        "docker_pull",
        "docker_restart",
        "docker_rm",
        "docker_start",
        "docker_rmi",
        "docker_save",
        "docker_stats",
        "docker_stop",
    },
    "cell": {"docker_cell"},
}
DOCKYTERS = {
    "docker",
    "docker_status",
    "docker_backend",
    "docker_profile",
    "docker_on",
    "docker_off",
}
"""What the extension dockyter owns; both can be loaded in one notebook."""


def test_these_names_are_public() -> None:
    assert sorted(dockml_magic.__all__) == [
        "Environment",
        "ImagePicker",
        "__version__",
        "load_ipython_extension",
        "start",
        "unload_ipython_extension",
    ]


def test_every_public_name_is_there() -> None:
    for name in dockml_magic.__all__:
        assert getattr(dockml_magic, name) is not None


def test_any_other_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'stop'"):
        dockml_magic.stop  # noqa: B018


def test_the_version_is_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", dockml_magic.__version__)


OURS = (DockerMagics, ImageMagics, LifeMagics, DoctorMagics, ValueMagics)


def test_these_magics_are_ours() -> None:
    found = {kind: {m for lines in OURS for m in lines.magics[kind]} for kind in MAGICS}
    assert found == MAGICS


def test_every_magic_declares_its_arguments() -> None:
    for lines in OURS:
        names = {*lines.magics["line"], *(f"%{name}" for name in lines.magics["cell"])}
        assert set(lines.ARGUMENTS) == names


def test_magics_of_other_extensions_are_left_alone() -> None:
    ours = set().union(*MAGICS.values())
    assert ours.isdisjoint(DOCKYTERS)
    assert all(name.startswith("docker_") for name in ours)


@pytest.mark.parametrize("name", sorted(set().union(*MAGICS.values())))
def test_a_magic_says_what_it_does(name: str) -> None:
    text = next(getattr(lines, name) for lines in OURS if hasattr(lines, name)).__doc__
    assert text
    assert text.splitlines()[0].endswith((".", ":"))


def imported_by(statement: str) -> set[str]:
    """Return the names of the modules that a statement imports in a fresh Python."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


HEAVY = {
    "IPython",
    "asyncio",
    "docker",
    "ipywidgets",
    "jupyter_client",
    "pynvml",
    "requests",
    "zmq",
}


LATER = {
    f"dockml_magic.{name}"
    for name in (
        "backup",
        "doctor",
        "doors",
        "exchange",
        "fit",
        "layers",
        "lock",
        "parcels",
        "picker",
        "provisioner",
        "registry",
        "segments",
        "shell",
        "watch",
    )
}
"""What only a start needs, or only some lines do."""


def test_importing_the_package_is_cheap() -> None:
    assert imported_by("import dockml_magic").isdisjoint(HEAVY)


def test_loading_the_extension_imports_nothing_that_a_later_line_can() -> None:
    found = imported_by("from dockml_magic import magics")
    assert "dockml_magic.routing" in found
    assert found.isdisjoint(LATER)


def test_the_floors_below_the_engine_need_no_docker_and_no_jupyter() -> None:
    modules = (
        "catalogue, errors, images, names, options, project, spec, host_settings, engine, container"
    )
    found = imported_by(f"from dockml_magic import {modules}")
    assert found.isdisjoint(HEAVY - {"asyncio"})
