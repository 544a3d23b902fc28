"""Looking into environments, running commands in them, and images made of them, from a notebook and a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockml_magic.engine import DockerEngine
from tests.integration.conftest import Image, variables_of_its_own
from tests.integration.notebook import Notebook, python_with

BARE = "dockml/bare:3.11"
PIP = "dockml/pip:3.11"
SECRET = "hunter2-a-secret"
DOCKML = [sys.executable, "-m", "dockml_magic"]
REPORT = (
    "import getpass, os; print(os.getuid(), getpass.getuser(), os.environ['HOME'], os.getcwd())"
)


@pytest.fixture(scope="module")
def notebook(
    engine: DockerEngine,
    image: Image,
    lasting_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Notebook]:
    """A notebook with the extension loaded and the environment `tf`, shared by the tests."""
    image(BARE)
    folder = tmp_path_factory.mktemp("life")
    workspace = folder / "it's a workspace"
    workspace.mkdir()
    with (
        variables_of_its_own(folder / "own", engine, lasting_cache) as variables,
        Notebook(workspace, python_with("ipykernel7"), variables) as notebook,
    ):
        notebook.ok("%load_ext dockml_magic")
        notebook.use(BARE, "--name", "tf-life", "-e", f"TOKEN={SECRET}")
        notebook.ok("%docker_env local")
        yield notebook


def test_a_command_runs_beside_the_kernel_as_the_kernel_does(notebook: Notebook) -> None:
    inside = notebook.ok(f"%%docker_cell tf-life\n{REPORT}").printed()
    cell = notebook.ok(f'%docker_exec tf-life python -c "{REPORT}"')
    assert cell.printed() == inside
    assert str(notebook.folder) in inside
