from __future__ import annotations

from pathlib import Path

import pytest

from dockml_magic.errors import ProjectFileError
from dockml_magic.options import RunOptions
from dockml_magic.project import Project, find_project

EVERY_ENTRY = """
[environments.summariser]
title = "Summariser"
image = "tf1.10-gpu"
gpus = "all"
volumes = ["./models:/models:ro", "cache:/cache"]
publish = ["8501:8501"]
env = { TF_CPP_MIN_LOG_LEVEL = "2", WORKERS = 4 }
workdir = "/models"
memory = "8g"
cpus = 1.5
shm_size = "1g"
user = "root"
network = "bridge"
pull = "never"
transport = "tcp"
"""


def write(folder: Path, text: str, name: str = "dockml.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def environment(folder: Path, text: str) -> RunOptions:
    """Return what an environment with these lines comes to."""
    write(folder, f"[environments.x]\n{text}\n")
    return find_project(folder).environments["x"]


def test_every_entry_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, EVERY_ENTRY)
    project = find_project(tmp_path)
    assert project.path == path
    assert project.titles == {"summariser": "Summariser"}
    assert project.environments == {
        "summariser": RunOptions(
            image="tf1.10-gpu",
            gpus="all",
            volumes=(f"{tmp_path.resolve()}/models:/models:ro", "cache:/cache"),
            publish=("8501:8501",),
            env=("TF_CPP_MIN_LOG_LEVEL=2", "WORKERS=4"),
            workdir="/models",
            memory=8 * 1024**3,
            cpus=1.5,
            shm_size=1024**3,
            user="root",
            network="bridge",
            pull="never",
            transport="tcp",
        )
    }


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("gpus = 2", RunOptions(gpus="2")),
        ("memory = 1048576", RunOptions(memory=1048576)),
        ("cpus = 2", RunOptions(cpus=2.0)),
        ('cpus = "2"', RunOptions(cpus=2.0)),
        ('env = ["A=1", "B"]', RunOptions(env=("A=1", "B"))),
        ('volumes = ["/data:/data"]', RunOptions(volumes=("/data:/data",))),
    ],
)
def test_numbers_and_lists_may_be_written_either_way(
    tmp_path: Path, line: str, options: RunOptions
) -> None:
    assert environment(tmp_path, line) == options


@pytest.mark.parametrize(
    ("line", "key", "problem"),
    [
        ('colour = "red"', "colour", "unknown entry"),
        ('name = "x"', "name", "unknown entry"),
        ("image = 3", "image", "3 is not a string"),
        ('volumes = "a:/b"', "volumes", "'a:/b' is not a list of strings"),
        ('volumes = ["/a"]', "volumes", "-v /a: not HOST-FOLDER"),
        ('publish = ["x"]', "publish", "-p x: 'x' is not a port"),
        ("publish = [8501]", "publish", r"\[8501\] is not a list of strings"),
        ("env = 3", "env", "3 is not a list of strings"),
        ('env = ["=1"]', "env", "-e =1: not KEY=VALUE"),
        ('memory = "lots"', "memory", "'lots' is not a size"),
        ("cpus = 0", "cpus", "'0' is not a number of CPUs"),
        ("shm_size = true", "shm_size", "'True' is not a size"),
        ('gpus = "some"', "gpus", "--gpus some: not understood"),
        ('pull = "sometimes"', "pull", "'sometimes' is not one of: missing, always, never"),
        ('transport = "udp"', "transport", "'udp' is not one of: ipc, tcp"),
        ("user = 1000", "user", "1000 is not a string"),
    ],
)
def test_an_entry_that_is_not_understood_is_named(
    tmp_path: Path, line: str, key: str, problem: str
) -> None:
    with pytest.raises(ProjectFileError, match=problem) as caught:
        environment(tmp_path, line)
    assert caught.value.path == str(tmp_path / "dockml.toml")
    assert caught.value.key == f"environments.x.{key}"
    assert caught.value.message.startswith(f"{tmp_path / 'dockml.toml'}, environments.x.{key}: ")


def test_an_unknown_entry_comes_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ProjectFileError) as caught:
        environment(tmp_path, "ports = 1")
    assert caught.value.hint.startswith("Known: title, gpus, volumes, publish, env, workdir,")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[containers.x]", "containers"),
        ("environments = 3", "environments"),
        ("[environments]\nx = 3", "environments.x"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path: Path, text: str, key: str) -> None:
    write(tmp_path, text)
    with pytest.raises(ProjectFileError) as caught:
        find_project(tmp_path)
    assert caught.value.key == key


def test_bad_toml_is_told_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, "[environments\n")
    with pytest.raises(ProjectFileError, match=r"not valid TOML: .*line 1"):
        find_project(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ProjectFileError, match="cannot be read"):
        find_project(tmp_path)


def test_the_nearest_file_upward_is_the_project(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b" / "c"
    inner.mkdir(parents=True)
    write(tmp_path, "[environments.outer]")
    nearest = write(tmp_path / "a", "[environments.inner]")
    project = find_project(inner)
    assert project.path == nearest
    assert list(project.environments) == ["inner"]


def test_relative_folders_are_taken_from_the_files_folder(tmp_path: Path) -> None:
    inner = tmp_path / "notebooks"
    inner.mkdir()
    write(tmp_path, '[environments.x]\nvolumes = ["./data:/data", "../up:/up:ro", ".:/here"]')
    here = tmp_path.resolve()
    assert find_project(inner).environments["x"].volumes == (
        f"{here}/data:/data",
        f"{here.parent}/up:/up:ro",
        f"{here}:/here",
    )


def test_a_home_is_expanded(tmp_path: Path) -> None:
    options = environment(tmp_path, 'volumes = ["~/data:/data"]')
    assert options.volumes == (f"{Path.home().resolve()}/data:/data",)


def test_pyproject_has_a_table_of_ours(tmp_path: Path) -> None:
    path = write(tmp_path, '[tool.dockml.environments.x]\nimage = "tf1.4"', "pyproject.toml")
    project = find_project(tmp_path)
    assert project.path == path
    assert project.environments == {"x": RunOptions(image="tf1.4")}


def test_a_wrong_entry_of_pyproject_is_named_as_it_stands_there(tmp_path: Path) -> None:
    write(tmp_path, "[tool.dockml.environments.x]\nimage = 3", "pyproject.toml")
    with pytest.raises(ProjectFileError) as caught:
        find_project(tmp_path)
    assert caught.value.key == "tool.dockml.environments.x.image"


@pytest.mark.parametrize("text", ["[project]\nname = 'x'", "tool = 3", "[broken", ""])
def test_somebody_elses_pyproject_is_passed_over(tmp_path: Path, text: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    write(inner, text, "pyproject.toml")
    outer = write(tmp_path, "")
    assert find_project(inner).path == outer


def test_our_own_file_comes_before_pyproject(tmp_path: Path) -> None:
    write(tmp_path, "[tool.dockml.environments.x]", "pyproject.toml")
    path = write(tmp_path, "[environments.y]")
    assert find_project(tmp_path).path == path


def test_without_a_file_there_are_no_environments(tmp_path: Path) -> None:
    project = find_project(tmp_path)
    assert project in (Project(), project)
    assert project.environments == {}
