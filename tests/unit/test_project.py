from __future__ import annotations

from pathlib import Path

import pytest

from dockml_magic import toml
from dockml_magic.catalogue import Image
from dockml_magic.errors import ProjectFileError
from dockml_magic.options import RunOptions
from dockml_magic.project import (
    _IMAGE_EXAMPLES,
    _IMAGE_READERS,
    Project,
    find_project,
    user_images_file,
)

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
        ('with = ["pandas==0.24", "a b"]', RunOptions(packages=("pandas==0.24", "a", "b"))),
        ('with = "a,b"', RunOptions(packages=("a", "b"))),
        ('requirements = "/r.txt"\nwith = ["a"]', RunOptions(packages=("-r /r.txt", "a"))),
        ('requirements = ["/r.txt", "/s.txt"]', RunOptions(packages=("-r /r.txt", "-r /s.txt"))),
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
        ("with = 3", "with", "3 is not a list of strings"),
        ('with = ["a=1"]', "with", "a=1: not a requirement"),
        ('with = ["-r r.txt"]', "with", "a file stands in an entry of its own"),
        ("packages = ['a']", "packages", "unknown entry"),
    ],
)
def test_an_entry_that_is_not_understood_is_named(
    tmp_path: Path, line: str, key: str, problem: str
) -> None:
    with pytest.raises(ProjectFileError, match=problem) as caught:
        environment(tmp_path, line)
    assert caught.value.path == str(tmp_path / "dockml.toml")
    assert caught.value.key == f"environments.x.{key}"
    line = line.count("\n") + 2
    assert caught.value.line == line
    where = f"{tmp_path / 'dockml.toml'}:{line}: environments.x.{key}: "
    assert caught.value.message.startswith(where)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("memroy", "memory"), ("ports", "publish"), ("Mounts", "volumes"), ("environment", "env"),
     ("packages", "with"), ("gpu", "gpus"), ("requirement", "requirements"), ("colour", "")],
)  # fmt: skip
def test_an_unknown_entry_comes_with_the_nearest_and_the_known_ones(
    tmp_path: Path, word: str, meant: str
) -> None:
    with pytest.raises(ProjectFileError) as caught:
        environment(tmp_path, f"image = 'a:1'\n{word} = 1")
    assert caught.value.line == 3
    nearest = f"Did you mean {meant}? " if meant else ""
    known = "Known: title, warm, gpus, volumes, publish, env, workdir,"
    assert caught.value.hint.startswith(nearest + known)


@pytest.mark.parametrize(
    ("line", "example"),
    [
        ("image = 3", 'image = "tf1.10"'),
        ("publish = [8501]", 'publish = ["8501:8501"]'),
        ("volumes = '/a:/b'", 'volumes = ["./models:/models:ro"]'),
        ("env = { A = ['b'] }", 'env = { TF_CPP_MIN_LOG_LEVEL = "2" }'),
        ("memory = 'lots'", 'Write it as docker does: 512m, 2g. Example: memory = "8g"'),
        ("title = 3", 'title = "Our summariser"'),
        ('warm = "yes"', "warm = true"),
    ],
)
def test_a_mistake_comes_with_an_example(tmp_path: Path, line: str, example: str) -> None:
    with pytest.raises(ProjectFileError) as caught:
        environment(tmp_path, line)
    assert caught.value.hint.endswith(example)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{ A = ['b'] }", r"A = \['b'\] is neither a string nor a number"),
        ("{ A = true }", "A = True is neither"),
        ("{ 'A B' = 'c' }", "'A B' is not the name of a variable"),
        ("{ 'A=B' = 'c' }", "'A=B' is not the name of a variable"),
    ],
)
def test_a_variable_that_cannot_be_one_is_told(tmp_path: Path, value: str, problem: str) -> None:
    with pytest.raises(ProjectFileError, match=problem):
        environment(tmp_path, f"env = {value}")


WAYS = """# environments
[environments]
a = { image = "x:1", memroy = "1g" }
b.image = "x:1"
b.memroy = "1g"
"c.d".memroy = "1g"

[environments.e]
volumes = [
  "memroy = 1:/x",  # memroy
]
env = { memroy = \"\"\"
memroy = 1
\"\"\" }
memroy = "1g"
[environments . 'f']
memroy = "1g"
[environments.g.memroy]
"""


@pytest.mark.parametrize(
    ("name", "line"), [("a", 3), ("b", 5), ("c.d", 6), ("e", 15), ("f", 17), ("g", 18)]
)
def test_the_line_is_found_however_it_is_written(tmp_path: Path, name: str, line: int) -> None:
    assert toml.line_of(WAYS, ("environments", name, "memroy")) == line
    # And told, where it is the only mistake.
    if name == "g":
        return
    kept = WAYS.replace("[environments.g.memroy]", "").replace("memroy", "memory")
    lines = kept.splitlines(keepends=True)
    lines[line - 1] = WAYS.splitlines(keepends=True)[line - 1]
    write(tmp_path, "".join(lines))
    with pytest.raises(ProjectFileError) as caught:
        find_project(tmp_path)
    assert caught.value.line == line
    assert caught.value.key == toml.dotted(("environments", name, "memroy"))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[containers.x]", "containers"),
        ("environments = 3", "environments"),
        ("[environments]\nx = 3", "environments.x"),
        ("[[environments]]\nx = 3", "environments"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path: Path, text: str, key: str) -> None:
    write(tmp_path, text)
    with pytest.raises(ProjectFileError) as caught:
        find_project(tmp_path)
    assert caught.value.key == key


def test_bad_toml_is_told_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, "[environments\n")
    with pytest.raises(
        ProjectFileError, match=r"dockml\.toml:1:14: not valid TOML: Expected"
    ) as caught:
        find_project(tmp_path)
    assert (caught.value.line, caught.value.column) == (1, 14)
    path.write_text("[environments.x]\nimage = tf1.10\n")
    with pytest.raises(ProjectFileError, match=r"dockml\.toml:2:9: not valid TOML") as caught:
        find_project(tmp_path)
    assert "Texts stand in quotes" in caught.value.hint
    path.write_text("x = [1,")
    with pytest.raises(ProjectFileError, match=r"not valid TOML: .* end of"):
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


def test_a_name_with_a_dot_wants_quotes(tmp_path: Path) -> None:
    write(tmp_path, "[environments.tf1.10]\nimage = 'a:1'")
    with pytest.raises(ProjectFileError, match=r"toml:1: environments\.tf1\.10: unknown") as caught:
        find_project(tmp_path)
    assert caught.value.hint == 'Quote a name that has a dot: [environments."tf1.10"]'


@pytest.mark.parametrize("name", ["local", "-x", "", "a\\nb"])
def test_an_environment_that_could_not_be_named_is_told(tmp_path: Path, name: str) -> None:
    write(tmp_path, f'[environments."{name}"]')
    with pytest.raises(ProjectFileError, match="not a name for an environment"):
        find_project(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool]\ndockml = 3", r"toml:2: tool\.dockml: not a table"),
        ("[tool.dockml.environments.x]\nimage = tf", r"toml:2:9: not valid TOML"),
        ("[project]\n[tool.dockml]\nimage = 3", r"toml:3: tool\.dockml\.image: unknown entry"),
    ],
)
def test_a_mistake_in_our_part_of_pyproject_is_told(
    tmp_path: Path, text: str, message: str
) -> None:
    write(tmp_path, text, "pyproject.toml")
    with pytest.raises(ProjectFileError, match=message):
        find_project(tmp_path)


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


# --- the user's own images ------------------------------------------------------------------------

EVERY_FACT = """
[images."My-TF1.10"]
reference = "registry.example.com:5000/team/tf:1.10"
title = "Our TensorFlow"
framework = "tf"
version = "1.10.0"
gpu = true
python = "3.6"
python_exe = "/opt/python"
cuda = "9.0"
cudnn = "7"
has_ipykernel = false
base_os = "ubuntu18.04"
notes = "ask Ann"
cpu_twin = "tf1.10"
"""


def test_an_image_of_ones_own_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, EVERY_FACT)
    assert find_project(tmp_path).images == {
        "my-tf1.10": Image(
            name="my-tf1.10",
            reference="registry.example.com:5000/team/tf:1.10",
            title="Our TensorFlow",
            framework="tensorflow",
            version="1.10.0",
            gpu=True,
            python="3.6",
            python_exe="/opt/python",
            cuda="9.0",
            cudnn="7",
            has_ipykernel="no",
            base_os="ubuntu18.04",
            notes="ask Ann",
            cpu_twin="tf1.10",
            source=str(path),
            is_own=True,
        )
    }


def test_pyproject_may_have_images_too(tmp_path: Path) -> None:
    write(tmp_path, '[tool.dockml.images.mine]\nreference = "me/mine:1"', "pyproject.toml")
    image = find_project(tmp_path).images["mine"]
    assert (image.reference, image.title) == ("me/mine:1", "mine")


def test_an_entry_of_the_catalogue_is_changed_in_what_is_said(tmp_path: Path) -> None:
    write(tmp_path, '[images."tf1.4"]\nreference = "mirror.example.com/tensorflow:1.4.0-py3"')
    image = find_project(tmp_path).images["tf1.4"]
    assert image.reference == "mirror.example.com/tensorflow:1.4.0-py3"
    assert (image.python, image.version, image.title) == ("3.5", "1.4.0", "TensorFlow 1.4.0")
    assert image.sure == "seen"  # the catalogue's doubt was about another tag
    write(tmp_path, '[images."tf1.4"]\nnotes = "slow here"')
    image = find_project(tmp_path).images["tf1.4"]
    assert (image.reference, image.sure) == ("tensorflow/tensorflow:1.4.0-py3", "derived")


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("[images.x]", "images.x", "it has no reference"),
        ("images = 3", "images", "not a table"),
        ("[images]\nx = 'a:1'", "images.x", "not a table"),
        ("[images.tf1.10]\nreference = 'a:1'", "images.tf1", "it has no reference|unknown entry|not a table"),
        ("[images.x]\nreference = 'A B'", "images.x.reference", "'A B' is not a reference"),
        ("[images.x]\nreference = 3", "images.x.reference", "3 is not a string"),
        ("[images.x]\nimage = 'a:1'", "images.x.image", "unknown entry"),
        ("[images.x]\nreference = 'a:1'\ngpu = 'yes'", "images.x.gpu", "'yes' is not true or false"),
        ("[images.x]\nreference = 'a:1'\nversion = 'new'", "images.x.version", "'new' is not a version"),
        ("[images.x]\nreference = 'a:1'\ncuda = 10.0", "images.x.cuda", "10.0 is not a string"),
        ("[images.x]\nreference = 'a:1'\nframework = 'tfx'", "images.x.framework", "no framework"),
        ("[images.local]\nreference = 'a:1'", "images.local", "not a name"),
        ("[images.'a/b']\nreference = 'a:1'", 'images."a/b"', "not a name"),
    ],
)  # fmt: skip
def test_an_image_that_is_not_understood_is_named(
    tmp_path: Path, text: str, key: str, problem: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ProjectFileError, match=problem) as caught:
        find_project(tmp_path)
    assert caught.value.path == str(path)
    assert caught.value.key.startswith(key)


@pytest.mark.parametrize("word", _IMAGE_READERS)
def test_an_image_entry_is_told_with_an_example_that_is_understood(
    tmp_path: Path, word: str
) -> None:
    example = f"{word} = {_IMAGE_EXAMPLES[word]}"
    write(tmp_path, f'[images."tf1.4"]\n{word} = 3.5')
    with pytest.raises(ProjectFileError) as caught:
        find_project(tmp_path)
    assert caught.value.hint.endswith(f"Example: {example}")
    write(tmp_path, f'[images."tf1.4"]\n{example}')
    assert find_project(tmp_path).images["tf1.4"]


def user_file(text: str) -> Path:
    path = user_images_file()
    path.parent.mkdir(parents=True)
    return write(path.parent, text, path.name)


def test_the_users_own_file_is_for_every_project(tmp_path: Path) -> None:
    user_file('[images.both]\nreference = "me/own:1"\n[images.own]\nreference = "me/own:2"')
    assert set(find_project(tmp_path).images) == {"both", "own"}
    write(tmp_path, '[images.both]\nreference = "me/project:1"')
    project = find_project(tmp_path)
    assert project.images["both"].reference == "me/project:1"
    assert project.images["own"].reference == "me/own:2"


def test_the_users_own_file_is_where_settings_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/somewhere")
    assert user_images_file() == Path("/somewhere/dockml/images.toml")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert user_images_file() == Path.home() / ".config/dockml/images.toml"


@pytest.mark.parametrize(
    ("text", "key"),
    [("[environments.x]", "environments"), ("[images.x]", "images.x"), ("[images", "")],
)
def test_a_mistake_in_the_users_own_file_is_named(tmp_path: Path, text: str, key: str) -> None:
    path = user_file(text)
    with pytest.raises(ProjectFileError) as caught:
        find_project(tmp_path)
    assert (caught.value.path, caught.value.key) == (str(path), key)


@pytest.mark.parametrize("name", ["./docker", "docker/Dockerfile", "gpu.Dockerfile"])
def test_a_dockerfile_of_an_environment_is_taken_from_the_files_folder(
    tmp_path: Path, name: str
) -> None:
    options = environment(tmp_path, f'image = "{name}"')
    assert options.image == str((tmp_path / name).resolve())


def test_a_requirements_file_is_taken_from_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    write(tmp_path, '[environments.x]\nrequirements = "requirements.txt"')
    options = find_project(tmp_path / "notebooks").environments["x"]
    assert options.packages == (f"-r {tmp_path}/requirements.txt",)
