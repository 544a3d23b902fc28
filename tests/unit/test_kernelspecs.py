from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from dockml_magic import planning
from dockml_magic.errors import ConfigError, UnknownNameError
from dockml_magic.kernelspecs import build_kernel_json, can_start, install, installed, remove
from dockml_magic.options import RunOptions
from dockml_magic.requirements import Extras
from tests.unit.fake_engine import FakeEngine

OPTIONS = RunOptions(memory=4 * 1024**3, env=("A=b c",), gpus="none")


@pytest.fixture(autouse=True)
def prefix(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python environment of the test's own, that Jupyter searches."""
    folder = tmp_path / "venv"
    monkeypatch.setattr(sys, "prefix", str(folder))
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "share" / "jupyter"))
    return folder


@pytest.fixture
def here(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine that this machine has."""
    monkeypatch.setattr(planning.engines, "connect", lambda name: engine)
    return engine


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "kernel.json").read_text())
    return content


def test_a_kernel_names_our_provisioner_and_has_an_argv_that_works_alone() -> None:
    content = build_kernel_json("tf1.10", OPTIONS, "TensorFlow 1.10")
    assert content["display_name"] == "TensorFlow 1.10 (Docker)"
    assert content["interrupt_mode"] == "signal"
    assert content["metadata"]["kernel_provisioner"] == {
        "provisioner_name": "dockml-provisioner",
        "config": {"name": "tf1.10", "options": OPTIONS.to_json()},
    }
    argv = content["argv"]
    assert argv[:4] == [sys.executable, "-m", "dockml_magic.launch", "tf1.10"]
    assert argv[-2:] == ["-f", "{connection_file}"]


def test_options_come_through_both_ways_unchanged() -> None:
    content = json.loads(json.dumps(build_kernel_json("tf1.10", OPTIONS, "T")))
    config = content["metadata"]["kernel_provisioner"]["config"]
    assert RunOptions.from_json(config["options"]) == OPTIONS
    argv = content["argv"]
    assert RunOptions.from_json(json.loads(argv[argv.index("--options") + 1])) == OPTIONS


def test_without_options_the_argv_is_short() -> None:
    argv = build_kernel_json("tf1.10", RunOptions(), "T")["argv"]
    assert argv[1:] == ["-m", "dockml_magic.launch", "tf1.10", "-f", "{connection_file}"]


def test_a_kernel_goes_to_this_python_environment(prefix: Path) -> None:
    kernel = install("tf1.10", OPTIONS)
    assert kernel.folder == prefix / "share" / "jupyter" / "kernels" / "dockml-tf1.10"
    assert kernel.display_name == "TensorFlow 1.10 (Docker)"
    names = sorted(path.name for path in kernel.folder.iterdir())
    assert names == ["kernel.json", "logo-32x32.png", "logo-64x64.png", "logo-svg.svg"]
    assert read(kernel.folder) == build_kernel_json("tf1.10", OPTIONS, "TensorFlow 1.10")


def test_a_kernel_goes_where_it_is_told(tmp_path: Path) -> None:
    assert install("tf1.10", OPTIONS, prefix=str(tmp_path / "x")).folder.is_relative_to(
        tmp_path / "x" / "share" / "jupyter" / "kernels"
    )
    folder = install("tf1.10", OPTIONS, for_user=True).folder
    assert folder.parent == Path(os.environ["JUPYTER_DATA_DIR"]) / "kernels"


def test_two_kernels_of_one_image_can_be_told_apart() -> None:
    one, two = install("tf1.10", RunOptions()), install("tf1.10", RunOptions(name="second"))
    assert one.folder != two.folder
    assert one.display_name != two.display_name


def test_a_title_of_the_user_or_the_project_is_shown(workspace: Path) -> None:
    (workspace / "dockml.toml").write_text(
        "[environments.mine]\ntitle = 'Mine'\nimage = 'me/mine:1'"
    )
    assert install("mine", RunOptions()).display_name == "Mine (Docker)"
    assert install("mine", RunOptions(), display_name="X").display_name == "X (Docker)"


def test_what_means_nothing_is_not_installed() -> None:
    with pytest.raises(UnknownNameError):
        install("not a name", RunOptions())
    assert installed() == []


def test_installing_again_replaces(prefix: Path) -> None:
    install("tf1.10", OPTIONS)
    kernel = install("tf1.10", RunOptions())
    assert [found.options for found in installed()] == [RunOptions()]
    assert read(kernel.folder)["metadata"]["kernel_provisioner"]["config"]["options"] == {}


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="The kernel cannot be written") as caught:
        install("tf1.10", RunOptions(), prefix=str(tmp_path / "file"))
    assert "--prefix" in caught.value.hint


def test_only_kernels_of_ours_are_listed(prefix: Path) -> None:
    kernel = install("tf1.10", OPTIONS)
    other = kernel.folder.with_name("other")
    other.mkdir()
    (other / "kernel.json").write_text('{"argv": [], "display_name": "x", "metadata": {}}')
    broken = kernel.folder.with_name("broken")
    broken.mkdir()
    (broken / "kernel.json").write_text("{")
    assert installed() == [kernel]


def test_jupyter_finds_it() -> None:
    install("tf1.10", OPTIONS)
    assert KernelSpecManager().get_kernel_spec("dockml-tf1.10").metadata["kernel_provisioner"]


@pytest.mark.parametrize("name", ["tf1.10", "dockml-tf1.10"])
def test_a_kernel_is_removed_by_either_name(name: str) -> None:
    kept, kernel = install("tf1.4", OPTIONS), install("tf1.10", OPTIONS)
    assert remove(name) == [kernel.folder]
    assert not kernel.folder.exists()
    assert kept.folder.exists()


def test_removing_what_is_not_ours_is_refused() -> None:
    install("tf1.10", OPTIONS)
    with pytest.raises(ConfigError, match=r"called 'python3' \(installed: dockml-tf1.10\)"):
        remove("python3")


def test_whether_it_can_start_here_is_told(here: FakeEngine) -> None:
    kernel = install("tf1.10", RunOptions())
    assert can_start(kernel) == "yes, after its image is pulled"
    here.add_image("tensorflow/tensorflow:1.10.0-py3")
    assert can_start(kernel) == "yes"


def test_packages_of_a_kernel_do_not_depend_on_where_it_starts(
    here: FakeEngine, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "requirements.txt").write_text("scipy\n")
    kernel = install("me/mine:1", RunOptions(packages=("pandas", "-r requirements.txt")))
    assert kernel.options.packages == ("pandas", f"-r {workspace}/requirements.txt")
    assert installed()[0].options == kernel.options
    monkeypatch.chdir(tmp_path)
    assert can_start(kernel) == "yes, after its image is pulled"
    base = here.add_image("me/mine:1")
    assert can_start(kernel) == "yes, after its packages are installed"
    here.add_image(Extras(lines=("pandas", "scipy")).reference(base.id))
    assert can_start(kernel) == "yes"
    (workspace / "requirements.txt").unlink()
    assert can_start(kernel).startswith("no: The requirements file")


def test_why_it_cannot_start_here_is_told(here: FakeEngine, workspace: Path) -> None:
    kernel = install("tf1.10", RunOptions())
    (workspace / "dockml.toml").write_text("[x]")
    assert can_start(kernel).startswith("no: ")
    content = read(kernel.folder)
    content["argv"][0] = "/no/such/python"
    (kernel.folder / "kernel.json").write_text(json.dumps(content))
    assert can_start(kernel).startswith("no: its Python '/no/such/python' is gone")


@pytest.mark.parametrize(
    ("kernel", "language", "title", "kernel_name"),
    [
        ("ir", "R", "R in me/r:4 (Docker)", "dockml-me-r-4-ir"),
        ("julia-1.9", "julia", "julia-1.9 in me/r:4 (Docker)", "dockml-me-r-4-julia-1.9"),
    ],
)
def test_kernels_of_other_languages_lie_beside_each_other(
    kernel: str, language: str, title: str, kernel_name: str
) -> None:
    install("me/r:4", RunOptions())
    found = install("me/r:4", RunOptions(kernel=kernel))
    assert (found.display_name, found.kernel_name) == (title, kernel_name)
    assert read(found.folder)["language"] == language
    assert len(installed()) == 2
    remove(kernel_name)
    assert [left.kernel_name for left in installed()] == ["dockml-me-r-4"]
