"""Build the images that the tests run.

Run as ``python -m tests.images.build [NAME ... | --all | --list]``; ``--verify`` runs each image
afterwards, without a network and as a user it does not know. An image is built again only when
what it is made of has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import docker
from docker.errors import ContainerError, DockerException, ImageNotFound

from tests.images import hostpip
from tests.images.bases import DEBIAN, Bases, Failed, build_image, library
from tests.machine.packages import NotAllowed, say

HASH = "dockml.test.hash"
STAGE = "dockml.test.stage"

TF_CHECK = """
import tensorflow as tf
with tf.Session() as session:
    assert session.run(tf.reduce_sum(tf.constant([[1.0, 2.0], [3.0, 4.0]]))) == 10
print("tensorflow " + tf.__version__)
"""
TF2_CHECK = """
import tensorflow as tf
assert tf.reduce_sum(tf.constant([[1.0, 2.0], [3.0, 4.0]])).numpy() == 10
print("tensorflow " + tf.__version__)
"""
TORCH_CHECK = """
import torch
x = torch.ones(2, 2, requires_grad=True)
(x * x * 3).sum().backward()
assert x.grad.tolist() == [[6, 6], [6, 6]]
print("torch " + torch.__version__)
"""
PLOT_CHECK = """
import io, matplotlib
matplotlib.use("Agg")
from matplotlib import pyplot
pyplot.plot([1, 2]); pyplot.savefig(io.BytesIO())
print("matplotlib " + matplotlib.__version__)
"""
VALUES_CHECK = """
import pandas, pyarrow
print("pandas " + pandas.__version__ + ", pyarrow " + pyarrow.__version__)
"""
NUMPY_CHECK = "import numpy; print('numpy ' + numpy.__version__)"
KERNEL_CHECK = """
import ipykernel.kernelapp
print("ipykernel " + ipykernel.__version__)
"""
LACKS = """
import importlib.util, sys
assert not any(map(importlib.util.find_spec, {lacks})), "{lacks} should not be there"
print("python " + sys.version.split()[0])
"""
LACKS_KERNEL = LACKS.format(lacks=["ipykernel"])
LACKS_PYTHON = "! ls /usr/bin/python* /usr/local/bin/python* && echo no python"
LACKS_ALL = LACKS.format(lacks=["ipykernel", "pip", "setuptools", "wheel", "ensurepip"])
R_CHECK = """
library(IRkernel)
png(tempfile(), type = "cairo")
plot(1:2)
stopifnot(file.exists("/usr/share/jupyter/kernels/ir/kernel.json"))
cat("IRkernel ", format(packageVersion("IRkernel")), "\\n", sep = "")
"""
PIP_CHECK = "import pip; print('pip ' + pip.__version__)"
FOLDER_CHECK = "import os; print(os.getcwd())"
BROKEN_CHECK = """
try:
    import ipykernel
except ImportError as error:
    print("ImportError: %s" % error)
else:
    raise SystemExit("ipykernel can be imported")
"""


@dataclass(frozen=True)
class Recipe:
    """What an image is made of, and how to see that it works."""

    base: str
    folder: str
    python: str = ""
    requirements: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    pip: str = "pip"
    check: tuple[str, ...] = field(default=(), repr=False)


def _on(python: str, folder: str, *requirements: str, check: str = "", pip: str = "pip") -> Recipe:
    return Recipe(
        f"python:{python}-slim",
        folder,
        python=python,
        requirements=requirements,
        pip=pip,
        check=("-c", check),
    )


# The last pip for these Pythons; a newer one cannot be had, the one they came with is too old.
PIP_36 = "pip==21.3.1"
PIP_35 = PIP_27 = "pip==20.3.4"

RECIPES: dict[str, Recipe] = {
    "dockml/tensorflow:1.4.0": _on(
        "3.6",
        "installed",
        "tensorflow==1.4.0",
        "numpy==1.14.5",
        "matplotlib==3.0.3",
        pip=PIP_36,
        check=TF_CHECK + PLOT_CHECK + LACKS_KERNEL,
    ),
    "dockml/tensorflow:1.10.0": _on(
        "3.6",
        "installed",
        "tensorflow==1.10.0",
        "numpy==1.14.5",
        "matplotlib==3.0.3",
        pip=PIP_36,
        check=TF_CHECK + PLOT_CHECK + LACKS_KERNEL,
    ),
    "dockml/tensorflow:2.15.1": _on(
        "3.11",
        "installed",
        "tensorflow-cpu==2.15.1",
        "numpy==1.26.4",
        check=TF2_CHECK + LACKS_KERNEL,
    ),
    "dockml/pytorch:1.1.0": _on(
        "3.6",
        "installed",
        "torch==1.1.0",
        "numpy==1.16.4",
        "matplotlib==3.0.3",
        pip=PIP_36,
        check=TORCH_CHECK + PLOT_CHECK + LACKS_KERNEL,
    ),
    # Later versions of these either need a newer Python or do not say that they do.
    "dockml/tensorflow:1.10.0-py27": _on(
        "2.7",
        "installed-py27",
        "tensorflow==1.10.0",
        "ipykernel==4.10.1",
        "protobuf<3.18",
        "numpy<1.15",
        "grpcio<1.40",
        "markdown<3.2",
        "werkzeug<1",
        "mock<4",
        "ipython<6",
        "tornado<6",
        pip=PIP_27,
        check=TF_CHECK + KERNEL_CHECK,
    ),
    "dockml/ipykernel:5": _on(
        "3.6", "installed", "ipykernel==5.5.6", pip=PIP_36, check=KERNEL_CHECK
    ),
    "dockml/ipykernel:7": _on("3.11", "installed", "ipykernel==7.4.0", check=KERNEL_CHECK),
    # The same, and what gateway_provisioners' launcher imports: for the benchmark.
    "dockml/peers:3.11": _on(
        "3.11", "installed", "ipykernel==7.4.0", "pycryptodomex==3.23.0", check=KERNEL_CHECK
    ),
    # What values are measured with.
    "dockml/values:3.11": _on(
        "3.11",
        "installed",
        "ipykernel==7.4.0",
        "numpy==2.4.6",
        "pandas==3.1.1",
        "pyarrow==26.0.1",
        check=VALUES_CHECK,
    ),
    "dockml/widgets:3.11": _on(
        "3.11", "installed", "ipykernel==7.4.0", "ipywidgets==8.1.7", check=KERNEL_CHECK
    ),
    **{
        f"dockml/bare:{python}": _on(python, "bare", check=LACKS_ALL)
        for python in ("3.5", "3.6", "3.9", "3.11", "3.13", "3.14")
    },
    "dockml/numpy:1.14.5-py35": _on(
        "3.5", "installed", "numpy==1.14.5", pip=PIP_35, check=NUMPY_CHECK
    ),
    "dockml/pip:3.11": _on("3.11", "plain", check=LACKS_KERNEL + PIP_CHECK),
    "dockml/entrypoint:3.11": _on("3.11", "entrypoint", check=FOLDER_CHECK),
    "dockml/broken:3.11": _on("3.11", "broken", check=BROKEN_CHECK),
    "dockml/nopython:1": Recipe(DEBIAN, "plain", check=("sh", "-c", LACKS_PYTHON)),
    "dockml/r:4": Recipe(
        DEBIAN,
        "r",
        packages=("python3", "r-base-core", "r-cran-irkernel"),
        check=("Rscript", "-e", R_CHECK),
    ),
}


def build(
    names: Iterable[str], engine: docker.DockerClient | None = None, *, verify: bool = False
) -> dict[str, str]:
    """Build the images that are not there or are made of something else by now.

    Parameters
    ----------
    names
        References such as ``dockml/tensorflow:1.10.0``; the leading ``dockml/`` may be left out.
    engine
        A client of the engine to build with; by default the one that the environment names.
    verify
        Whether to run each image as well.

    Returns
    -------
    dict
        The names that were asked for, with the references of the images.

    Raises
    ------
    Failed
        An image could not be built; the message has the end of the log.
    """
    wanted = {name: _reference(name) for name in names}
    _provide(engine or docker.from_env(), wanted.values(), verify=verify)
    return wanted


def _provide(
    client: docker.DockerClient, references: Iterable[str], *, verify: bool
) -> dict[str, float]:
    """Build what has to be built; return the seconds that each image took."""
    bases = Bases(client)
    seconds = {}
    with _one_at_a_time():
        for reference in dict.fromkeys(references):
            began = time.monotonic()
            _build(client, bases, reference)
            if verify:
                say(f"{reference}: runs: {_verify(client, reference)}")
            seconds[reference] = time.monotonic() - began
    return seconds


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Wait for other builds of this user: they share the bases, and the clearing up after them."""
    path = Path(tempfile.gettempdir()) / f"dockml-images-{os.getuid()}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _reference(name: str) -> str:
    reference = name if name in RECIPES else f"dockml/{name}"
    if reference not in RECIPES:
        raise Failed(f"there is no image {name}, but: {', '.join(RECIPES)}")
    return reference


def _build(client: docker.DockerClient, bases: Bases, reference: str) -> None:
    """Build one image unless it is there already."""
    recipe = RECIPES[reference]
    base = bases.provide(recipe.base)
    folder = Path(__file__).parent / recipe.folder
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
    arguments = {"BASE": recipe.base}
    if recipe.python:
        arguments["LIBRARY"] = library(recipe.python)
    if recipe.requirements:
        arguments["PIP"] = recipe.pip
        files["requirements.txt"] = "\n".join([*recipe.requirements, ""]).encode()
    if recipe.packages:
        arguments["PACKAGES"] = " ".join(recipe.packages)
    made_of = hashlib.sha256(repr((files, arguments, base.id)).encode()).hexdigest()[:16]
    try:
        if client.images.get(reference).labels.get(HASH) == made_of:
            return
    except ImageNotFound:
        pass
    say(f"{reference}: building")
    if recipe.requirements:
        files |= hostpip.files()
    if recipe.requirements or recipe.packages:
        arguments |= hostpip.proxies()
    try:
        build_image(client, reference, files, arguments=arguments, labels={HASH: made_of})
    finally:
        # The first stage has the host's settings in it, and is as large as the image.
        for label in (STAGE, HASH):
            client.images.prune(filters={"dangling": True, "label": label})


def _verify(client: docker.DockerClient, reference: str) -> str:
    """Run the image's check and return what it printed on one line."""
    recipe = RECIPES[reference]
    try:
        output = client.containers.run(
            reference,
            entrypoint=["python"] if recipe.python else [],
            command=list(recipe.check),
            user="12345:12345",
            network_mode="none",
            remove=True,
        )
    except ContainerError as error:
        raise Failed(f"{reference}: does not work\n{(error.stderr or b'').decode()}") from error
    return ", ".join(output.decode().splitlines())


def table(client: docker.DockerClient, seconds: dict[str, float]) -> str:
    """Return a table of images: reference, size if the engine has it, and seconds taken."""
    rows = []
    for reference, taken in seconds.items():
        try:
            size = f"{client.images.get(reference).attrs['Size'] / 1e6:.0f} MB"
        except ImageNotFound:
            size = "not built"
        rows.append(f"{reference:32}{size:>12}{taken:8.1f} s")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what the command line names."""
    parser = argparse.ArgumentParser(prog="tests.images.build", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as tensorflow:1.10.0")
    parser.add_argument("--all", action="store_true", help="build all images")
    parser.add_argument("--list", action="store_true", help="only list the images")
    parser.add_argument("--verify", action="store_true", help="run the images as well")
    chosen = parser.parse_args(arguments)
    if not (chosen.names or chosen.all or chosen.list):
        parser.error("name an image, or --all, or --list")
    try:
        client = docker.from_env()
        seconds = dict.fromkeys(RECIPES, 0.0)
        if not chosen.list:
            references = [_reference(name) for name in chosen.names or RECIPES]
            seconds = _provide(client, references, verify=chosen.verify)
        say(table(client, seconds))
        say(f"{len(seconds)} images in {sum(seconds.values()):.1f} s")
    except (Failed, NotAllowed) as error:
        print(error, file=sys.stderr)
        return 1
    except DockerException as error:
        print(f"{error}\n(python -m tests.machine.engine ensure starts an engine)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
