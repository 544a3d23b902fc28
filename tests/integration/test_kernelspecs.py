"""Environments as kernels: installed, listed, started by Jupyter's own programs, removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pexpect
import pytest
from nbclient import NotebookClient

from dockml_magic.kernelspecs import build_kernel_json
from dockml_magic.options import RunOptions
from tests.integration.conftest import Image
from tests.integration.notebook import PATIENCE
from tests.integration.test_terminal import plain

BIN = Path(sys.prefix) / "bin"
JUPYTER = str(BIN / "jupyter")
PROJECT = """
[environments.mine]
image = "dockml/bare:3.11"
title = "My own"
env = { GREETING = "hello" }
"""

Run = Callable[..., str]
Install = Callable[..., Path]


@pytest.fixture
def prefix(workspace: Path, tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels are installed in these tests, and where Jupyter finds them."""
    image("dockml/bare:3.11")
    (workspace / "dockml.toml").write_text(PROJECT)
    prefix = tmp_path / "prefix"
    monkeypatch.setenv("JUPYTER_PATH", str(prefix / "share" / "jupyter"))
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    return prefix


@pytest.fixture(params=["dockml", "jupyter dockml"])
def dockml(request: pytest.FixtureRequest, prefix: Path) -> Run:
    """Give a function that runs the command line, under either of its names."""
    return lambda *words, code=0: run(*request.param.split(), *words, code=code)


def run(program: str, *words: str, code: int = 0) -> str:
    """Run a program of this Python environment; return all that it said."""
    done = subprocess.run(
        [str(BIN / program), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def install(prefix: Path, name: str, *options: str) -> Path:
    """Install a kernel; return its folder."""
    said = run("dockml", "kernels", "install", name, "--prefix", str(prefix), *options)
    return Path(said.split(" in ")[-1].strip())


def notebook_of(name: str, *cells: str) -> nbformat.NotebookNode:
    """Return a notebook that names a kernel, with these cells."""
    kernelspec = {"name": name, "display_name": name, "language": "python"}
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code) for code in cells],
        metadata={"kernelspec": kernelspec},
    )


def test_install_list_and_remove(dockml: Run, prefix: Path) -> None:
    for name in ("tf1.10", "dockml/bare:3.11", "mine"):
        dockml("kernels", "install", name, "--prefix", str(prefix))
    folders = sorted((prefix / "share" / "jupyter" / "kernels").iterdir())
    assert [f.name for f in folders] == ["dockml-dockml-bare-3.11", "dockml-mine", "dockml-tf1.10"]
    for folder in folders:
        assert {"kernel.json", "logo-svg.svg", "logo-64x64.png", "logo-32x32.png"} <= {
            file.name for file in folder.iterdir()
        }
    titles = [json.loads((f / "kernel.json").read_text())["display_name"] for f in folders]
    assert titles == ["dockml/bare:3.11 (Docker)", "My own (Docker)", "TensorFlow 1.10 (Docker)"]
    listed = dockml("kernels", "list")
    assert all(folder.name in listed and str(folder) in listed for folder in folders)
    dockml("kernels", "remove", "mine")
    assert "dockml-mine" not in dockml("kernels", "list")
    assert "No kernel of ours is called 'mine'" in dockml("kernels", "remove", "mine", code=1)


def test_two_kernels_of_one_image_are_told_apart(prefix: Path) -> None:
    plain = install(prefix, "tf1.10")
    named = install(prefix, "tf1.10", "--name", "big", "--memory", "4g")
    titles = {json.loads((f / "kernel.json").read_text())["display_name"] for f in (plain, named)}
    assert len({plain.name, named.name}) == len(titles) == 2


def test_the_default_place_is_this_python_environment(prefix: Path) -> None:
    help_ = run("dockml", "kernels", "install", "--help")
    assert "into this Python environment (the default)" in " ".join(help_.split())
    spec = build_kernel_json("tf1.10", RunOptions(), "TensorFlow 1.10")
    assert spec["argv"][:4] == [sys.executable, "-m", "dockml_magic.launch", "tf1.10"]
    assert spec["metadata"]["kernel_provisioner"]["provisioner_name"] == "dockml-provisioner"


def test_list_says_whether_a_kernel_can_start_here(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine", "tf1.4", "tf1.10-gpu"):
        install(prefix, name, *(["--image", "dockml/none:1"] if name == "tf1.4" else []))

    def state_of() -> dict[str, str]:
        rows = run("dockml", "kernels", "list").splitlines()
        return {row.split()[0]: row for row in rows}

    states = state_of()
    assert " yes  " in states["dockml-mine"]
    assert "yes, after its image is pulled" in states["dockml-tf1.4"]
    assert "no: 'tf1.10-gpu' needs an NVIDIA GPU" in states["dockml-tf1.10-gpu"]
    monkeypatch.setenv("DOCKER_HOST", f"unix://{prefix}/nobody.sock")
    assert "no: " in state_of()["dockml-mine"]
    assert "nobody.sock" in state_of()["dockml-mine"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["kernels", "install", "no-such-name-!"], "not a known name"),
        (["kernels", "install", "tf1.10", "--no-such-option"], "--no-such-option"),
        (["kernels"], "needs a command"),
        ([], "needs a command"),
    ],
)
def test_a_bad_command_is_told_without_a_stack(prefix: Path, words: list[str], said: str) -> None:
    shown = run("dockml", *words, code=1)
    assert said in shown
    assert "Traceback" not in shown


def test_nbclient_runs_a_notebook_with_it(prefix: Path, workspace: Path) -> None:
    name = install(prefix, "mine").name
    notebook = notebook_of(name, "import os; print(os.environ['GREETING'], os.getcwd())", "6 * 7")
    NotebookClient(notebook, resources={"metadata": {"path": str(workspace)}}).execute()
    first, second = (cell.outputs[0] for cell in notebook.cells)
    assert first.text == f"hello {workspace}\n"
    assert second.data["text/plain"] == "42"


def test_papermill_gives_it_parameters(prefix: Path, workspace: Path) -> None:
    name = install(prefix, "mine").name
    notebook = notebook_of(name, "a = 1", "import os; a * 6, os.path.exists('/run/dockml')")
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, workspace / "in.ipynb")
    run("papermill", "in.ipynb", "out.ipynb", "-p", "a", "7")
    done = nbformat.read(workspace / "out.ipynb", as_version=4)
    assert done.cells[-1].outputs[0].data["text/plain"] == "(42, True)"


def test_nbconvert_executes_a_notebook_that_names_it(prefix: Path, workspace: Path) -> None:
    name = install(prefix, "mine").name
    notebook = notebook_of(name, "import os; os.path.exists('/run/dockml')")
    nbformat.write(notebook, workspace / "in.ipynb")
    run("jupyter", "nbconvert", "--to", "notebook", "--execute", "--output", "out", "in.ipynb")
    done = nbformat.read(workspace / "out.ipynb", as_version=4)
    assert done.cells[0].outputs[0].data["text/plain"] == "True"


def test_jupyter_console_talks_to_it(prefix: Path) -> None:
    name = install(prefix, "mine").name
    console = pexpect.spawn(
        JUPYTER,
        ["console", "--simple-prompt", "--kernel", name],
        encoding="utf-8",
        timeout=PATIENCE,
        dimensions=(40, 160),
    )
    console.expect(r"In \[1\]: ")
    console.sendline("import os; os.environ['GREETING'] * 2")
    console.expect("Out")
    console.expect(r"In \[2\]: ")
    assert "'hellohello'" in plain(console.before or "")
    console.sendline("quit")
    console.expect(pexpect.EOF)
    console.close()
