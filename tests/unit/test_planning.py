from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest

from dockml_magic import folders, labels, layers, planning
from dockml_magic.container import KernelContainer
from dockml_magic.engine import EngineFacts, ImageState
from dockml_magic.errors import (
    ConfigError,
    ImageBuildError,
    ImageInUseError,
    ImageUnavailableError,
    MountError,
    ProjectFileError,
    UnknownContainerError,
    UnknownNameError,
)
from dockml_magic.image_memory import ImageMemory
from dockml_magic.images import explain
from dockml_magic.options import RunOptions
from dockml_magic.planning import (
    choose_here,
    engine_for,
    find_container,
    make_plan,
    our_containers,
    pull_for,
    pull_image,
    remove_image,
    table_of_containers,
    with_extras,
)
from dockml_magic.requirements import Extras, read_extras
from dockml_magic.spec import RUNTIME, ContainerSpec, Mount
from tests.unit.fake_engine import FakeEngine

IMAGE = "me/mine:1"
ELSEWHERE = EngineFacts(version="24", api="1.43", endpoint="tcp://gpu1:2376", shares_files=False)


Plan = Callable[..., planning.KernelPlan]

# --- what a name means here -----------------------------------------------------------------------


def test_an_image_that_is_here_is_chosen(engine: FakeEngine, workspace: Path) -> None:
    image = engine.add_image(IMAGE)
    choice, found = choose_here(IMAGE, RunOptions(), workspace, engine)
    assert (choice.reference, found) == (IMAGE, image)


def test_a_known_image_may_be_missing_and_nothing_is_fetched(
    engine: FakeEngine, workspace: Path
) -> None:
    choice, found = choose_here("tf1.10", RunOptions(), workspace, engine)
    assert choice.title == "TensorFlow 1.10"
    assert found is None
    assert engine.pulled == []


def test_the_project_of_the_folder_is_used(engine: FakeEngine, workspace: Path) -> None:
    (workspace.parent / "dockml.toml").write_text("[environments.mine]\nimage = 'me/mine:1'")
    choice, _ = choose_here("mine", RunOptions(), workspace, engine)
    assert choice.reference == IMAGE


def test_a_wrong_project_file_is_told(engine: FakeEngine, workspace: Path) -> None:
    (workspace / "dockml.toml").write_text("[environments.mine]\nimages = 'x'")
    with pytest.raises(ProjectFileError, match=r"environments\.mine\.images"):
        choose_here("mine", RunOptions(), workspace, engine)


def test_a_workspace_that_does_not_exist_is_told(engine: FakeEngine, workspace: Path) -> None:
    with pytest.raises(MountError, match=r"The workspace '.*/missing' does not exist"):
        choose_here(IMAGE, RunOptions(), workspace / "missing", engine)


def test_a_mistyped_name_comes_with_the_nearest_ones(engine: FakeEngine, workspace: Path) -> None:
    engine.add_image("tf110")
    with pytest.raises(UnknownNameError) as caught:
        choose_here("tff1.10", RunOptions(), workspace, engine)
    assert "tf1.10" in caught.value.suggestions


def test_a_bare_word_that_is_a_local_image_is_chosen(engine: FakeEngine, workspace: Path) -> None:
    image = engine.add_image("mine")
    assert choose_here("mine", RunOptions(), workspace, engine)[1] == image


def test_a_written_form_of_a_name_may_be_a_local_image(engine: FakeEngine, workspace: Path) -> None:
    choice, _ = choose_here("tensorflow:1.10-gpu", RunOptions(gpus="none"), workspace, engine)
    assert choice.reference == "tensorflow/tensorflow:1.10.0-gpu-py3"
    image = engine.add_image("tensorflow:1.10-gpu")
    choice, found = choose_here("tensorflow:1.10-gpu", RunOptions(), workspace, engine)
    assert (choice.reference, found) == ("tensorflow:1.10-gpu", image)


def test_what_is_not_sure_is_said_before_a_pull_and_not_of_an_image_that_is_here(
    engine: FakeEngine, plan: Plan, told: list[str]
) -> None:
    reference = "tensorflow/tensorflow:1.4.0-py3"
    engine.registry[reference] = ["python"]
    plan("tf1.4")
    assert "a tag that follows from its neighbours" in told[0]
    told.clear()
    plan("tf1.4")
    assert told == []


# --- Dockerfiles ----------------------------------------------------------------------------------


@pytest.fixture
def dockerfile(workspace: Path, engine: FakeEngine) -> Path:
    engine.add_image("me/base:1", programs=["python3"])
    path = workspace / "Dockerfile"
    path.write_text("FROM me/base:1\nCOPY . /here\n")
    return path


@pytest.mark.parametrize("name", [".", "./Dockerfile", "Dockerfile"])
def test_a_dockerfile_is_built_once(
    engine: FakeEngine, dockerfile: Path, plan: Plan, told: list[str], name: str
) -> None:
    first = plan(name)
    reference = first.choice.reference
    assert reference.startswith("dockml/build:")
    assert [built for built, _ in engine.built] == [reference]
    assert told == [f"building {reference} from {name}", "FROM me/base:1", "COPY . /here"]
    assert plan(name).image == first.image
    assert len(engine.built) == 1
    plan(name, pull="always")
    assert len(engine.built) == 2


def test_a_change_in_the_folder_builds_anew(
    engine: FakeEngine, dockerfile: Path, plan: Plan
) -> None:
    references = [plan(".").choice.reference]
    (dockerfile.parent / "requirements.txt").write_text("torch")
    references.append(plan(".").choice.reference)
    dockerfile.write_text("FROM me/base:1\n")
    references.append(plan(".").choice.reference)
    assert len(set(references)) == len(engine.built) == 3


def test_a_dockerfile_may_have_another_name_and_place(
    engine: FakeEngine, dockerfile: Path, plan: Plan
) -> None:
    folder = dockerfile.parent / "docker"
    folder.mkdir()
    dockerfile.rename(folder / "gpu.Dockerfile")
    assert plan("docker/gpu.Dockerfile").choice.name == "docker/gpu.Dockerfile"
    assert len(engine.built) == 1


def test_an_environment_of_the_project_may_be_built(
    engine: FakeEngine, dockerfile: Path, plan: Plan
) -> None:
    (dockerfile.parent / "dockml.toml").write_text("[environments.mine]\nimage = './Dockerfile'")
    assert plan("mine").choice.name == "mine"
    assert len(engine.built) == 1


@pytest.mark.parametrize("name", [".", "./Dockerfile", "gpu.Dockerfile"])
def test_a_dockerfile_that_is_not_there_is_told(plan: Plan, name: str) -> None:
    with pytest.raises(ConfigError, match=r"There is no Dockerfile '.*Dockerfile'"):
        plan(name)


def test_a_build_that_fails_is_told_with_its_last_lines(dockerfile: Path, plan: Plan) -> None:
    dockerfile.write_text("FROM me/base:1\nRUN false\n")
    with pytest.raises(ImageBuildError) as caught:
        plan(".")
    assert str(caught.value).splitlines()[-2:] == [
        "Last lines of the build:",
        "  | Step: RUN false",
    ]


def test_a_build_gets_the_proxies_and_pips_settings(
    engine: FakeEngine, dockerfile: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("PIP_INDEX_URL", "https://pypi.example.com/simple")
    monkeypatch.setenv("SECRET", "1")
    plan(".")
    args = engine.built[0][1]
    assert args["HTTPS_PROXY"] == args["https_proxy"] == "http://proxy:3128"
    assert args["PIP_INDEX_URL"] == "https://pypi.example.com/simple"
    assert not {"SECRET", "LANG", "TERM", "PIP_CERT"} & set(args)


# --- extra packages -------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> list[tuple[str, Extras]]:
    """What was installed: the image below, and the packages."""
    done: list[tuple[str, Extras]] = []

    def ensure_layer(
        base: ImageState,
        name: str,
        extras: Extras,
        on: FakeEngine,
        tell: Callable[[str], None],
        given: dict[str, str],
    ) -> ImageState:
        done.append((name, extras))
        return engine.find_image(extras.reference(base.id)) or engine.add_image(
            extras.reference(base.id)
        )

    monkeypatch.setattr(layers, "ensure_layer", ensure_layer)
    return done


def test_packages_go_on_top_of_the_image(
    engine: FakeEngine, plan: Plan, installed: list[tuple[str, Extras]]
) -> None:
    base = engine.add_image(IMAGE)
    made = plan(packages=("pandas==0.24",))
    assert installed == [(IMAGE, Extras(lines=("pandas==0.24",)))]
    assert made.choice.reference == installed[0][1].reference(base.id)
    assert made.image == engine.find_image(made.choice.reference) != base
    assert made.choice.image_in_words == f"{IMAGE} with pandas==0.24"
    assert plan().choice.image_in_words == plan().choice.reference == IMAGE


def test_the_image_below_is_fetched_first_and_its_facts_are_used(
    engine: FakeEngine, plan: Plan, installed: list[tuple[str, Extras]]
) -> None:
    reference = "tensorflow/tensorflow:1.10.0-py3"
    engine.registry[reference] = ["python"]
    made = plan("tf1.10", packages=("pandas",))
    assert engine.pulled == [reference]
    assert installed[0][0] == reference
    assert made.choice.base == reference
    assert made.choice.image is not None
    assert made.choice.image.reference == reference


def test_packages_go_on_top_of_what_was_built(
    engine: FakeEngine, dockerfile: Path, plan: Plan, installed: list[tuple[str, Extras]]
) -> None:
    made = plan(".", packages=("pandas",))
    assert installed[0][0] == made.choice.base == engine.built[0][0]


def test_variables_that_the_container_is_given_may_be_named_by_requirements(
    engine: FakeEngine, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, str]] = []
    monkeypatch.setattr(
        layers, "ensure_layer", lambda *words: (found.append(words[-1]), engine.add_image("x"))[1]
    )
    monkeypatch.setenv("TOKEN", "of the host")
    monkeypatch.setenv("OTHER", "not named")
    engine.add_image(IMAGE)
    plan(packages=("pandas",), env=("TOKEN", "A=b", "NOT_THERE"))
    assert found == [{"TOKEN": "of the host", "A": "b"}]


def test_packages_of_the_project_and_of_the_line_add_up(
    engine: FakeEngine, workspace: Path, plan: Plan, installed: list[tuple[str, Extras]]
) -> None:
    engine.add_image(IMAGE)
    (workspace / "requirements.txt").write_text("scipy\n")
    (workspace / "more.txt").write_text("tqdm\n")
    (workspace / "dockml.toml").write_text(
        f"[environments.ner]\nimage = '{IMAGE}'\nwith = ['pandas']\nrequirements = 'requirements.txt'"
    )
    plan("ner", packages=("numpy", "-r more.txt"))
    assert installed[0][1].lines == ("pandas", "scipy", "numpy", "tqdm")


def test_a_requirements_file_that_is_not_there_is_told(engine: FakeEngine, plan: Plan) -> None:
    engine.add_image(IMAGE)
    with pytest.raises(
        ConfigError, match=r"requirements file '.*/gone\.txt' cannot be read: No such"
    ):
        plan(packages=("-r gone.txt",))


def test_a_dry_run_shows_packages_and_installs_nothing(engine: FakeEngine, workspace: Path) -> None:
    options = RunOptions(packages=("pandas==0.24", "x @ https://ann:secret@h/x.whl"))
    engine.registry["python:3.11-slim"] = ["python"]

    def dry_run() -> str:
        choice, image = choose_here("python:3.11-slim", options, workspace, engine)
        choice, image = with_extras(choice, image, engine)
        return " ".join(str(explain(choice, is_here=image is not None)).split())

    assert (
        "packages pandas==0.24, x @ https://****@h/x.whl is here no: it would be pulled, and the"
        in dry_run()
    )
    base = engine.add_image("python:3.11-slim")
    reference = read_extras(options.packages, workspace, lambda path: "").reference(base.id)
    text = dry_run()
    assert f"image {reference} on top of python:3.11-slim packages pandas==0.24" in text
    assert "is here no: it would be built" in text
    assert "secret" not in text
    engine.add_image(reference)
    assert "is here yes" in dry_run()


# --- the plan -------------------------------------------------------------------------------------


def test_a_plan_of_an_image_that_is_here_pulls_nothing(
    engine: FakeEngine, plan: Plan, workspace: Path, told: list[str]
) -> None:
    image = engine.add_image(IMAGE)
    made = plan()
    assert (made.image, made.workspace, made.transport) == (image, workspace, "ipc")
    assert engine.pulled == told == []


def test_a_missing_image_is_pulled_and_the_user_told(
    engine: FakeEngine, plan: Plan, told: list[str]
) -> None:
    engine.registry[IMAGE] = ("python",)
    assert plan().image == engine.find_image(IMAGE)
    assert engine.pulled == [IMAGE]
    assert told == [
        f"pulling {IMAGE}",
        "1.0 MB to download",
        f"pulled {IMAGE}: 1.0 MB in 0.0 s",
    ]


def test_pull_policies_are_dockers(engine: FakeEngine, plan: Plan) -> None:
    engine.registry[IMAGE] = ("python",)
    with pytest.raises(ImageUnavailableError, match="it is not here, and --pull is never"):
        plan(pull="never")
    plan(pull="missing")
    plan(pull="missing")
    assert engine.pulled == [IMAGE]
    plan(pull="always")
    assert engine.pulled == [IMAGE, IMAGE]


def test_a_pull_takes_names_and_fetches_what_is_here_too(
    engine: FakeEngine, workspace: Path, told: list[str]
) -> None:
    reference = "tensorflow/tensorflow:1.10.0-gpu-py3"
    engine.registry[reference] = ("python",)
    for _ in range(2):
        pull_for("tf1.10-gpu", RunOptions(), workspace, engine=engine, tell=told.append)
    assert engine.pulled == [reference, reference]
    with pytest.raises(UnknownNameError):
        pull_for("tf1.100", RunOptions(), workspace, engine=engine, tell=told.append)


@pytest.mark.parametrize(
    ("free", "fits"), [(3_000_000, True), (2_500_000, True), (1_999_999, False)]
)
def test_a_pull_looks_for_room_on_the_engines_disk(
    workspace: Path, told: list[str], monkeypatch: pytest.MonkeyPatch, free: int, *, fits: bool
) -> None:
    engine = FakeEngine(replace(FakeEngine().facts, root=workspace))
    engine.registry[IMAGE] = ("python",)
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(planning.shutil, "disk_usage", {workspace: usage}.__getitem__)
    if fits:
        pull_image(IMAGE, engine, told.append)
        assert any("may not fit" in line for line in told) == (free < 3_000_000)
    else:
        with pytest.raises(ImageUnavailableError, match=r"2\.0 MB unpacked, and 2\.0 MB are free"):
            pull_image(IMAGE, engine, told.append)
    assert engine.pulled == ([IMAGE] if fits else [])


def test_an_image_for_another_machine_is_told(told: list[str]) -> None:
    engine = FakeEngine(replace(FakeEngine().facts, architecture="arm64"))
    engine.registry[IMAGE] = ("python",)
    pull_image(IMAGE, engine, told.append)
    assert "built for amd64, and this engine's machine is arm64" in told[-1]


def test_an_image_that_nobody_has_is_told(plan: Plan) -> None:
    with pytest.raises(ImageUnavailableError, match=IMAGE):
        plan()


def test_the_transport_is_chosen_by_the_engine(engine: FakeEngine, plan: Plan) -> None:
    engine.add_image(IMAGE)
    elsewhere = FakeEngine(ELSEWHERE)
    elsewhere.add_image(IMAGE)
    assert plan().transport == "ipc"
    assert plan(engine=elsewhere).transport == "tcp"


@pytest.mark.parametrize(("asked", "callers"), [("tcp", None), (None, "tcp"), ("ipc", "tcp")])
def test_the_transport_can_be_asked_for_and_the_callers_wins(
    engine: FakeEngine, workspace: Path, asked: str | None, callers: str | None
) -> None:
    engine.add_image(IMAGE)
    made = make_plan(
        IMAGE, RunOptions(transport=asked), workspace, engine=engine, tell=print, transport=callers
    )
    assert made.transport == "tcp"


def test_ipc_needs_an_engine_that_shares_files(plan: Plan, workspace: Path) -> None:
    elsewhere = FakeEngine(ELSEWHERE)
    elsewhere.add_image(IMAGE)
    with pytest.raises(ConfigError, match="--transport ipc needs an engine on this machine"):
        make_plan(IMAGE, RunOptions(transport="ipc"), workspace, engine=elsewhere, tell=print)


@pytest.mark.parametrize("network", ["none", "host"])
def test_tcp_needs_a_network_with_ports(engine: FakeEngine, plan: Plan, network: str) -> None:
    engine.add_image(IMAGE)
    assert plan(network=network).transport == "ipc"
    with pytest.raises(ConfigError, match=f"--network {network} leaves no port"):
        plan(network=network, transport="tcp")


def test_a_kernel_of_another_language_is_reached_over_tcp_unless_it_is_known_on_ipc(
    engine: FakeEngine, plan: Plan, workspace: Path
) -> None:
    engine.add_image(IMAGE)
    assert plan(kernel="julia-1.9").transport == "tcp"
    assert plan(kernel="julia-1.9").kernelspec == "julia-1.9"
    asked = RunOptions(kernel="julia-1.9", transport="ipc")
    assert make_plan(IMAGE, asked, workspace, engine=engine, tell=print).transport == "ipc"
    assert plan(kernel="ir").transport == "ipc"
    assert plan(kernel="python3").transport == "ipc"
    with pytest.raises(ConfigError, match=r"--network none .* 'julia-1.9' is not known") as caught:
        plan(kernel="julia-1.9", network="none")
    assert "Try --transport ipc" in caught.value.hint


def test_a_remembered_kernel_of_another_language_is_planned_unless_another_is_asked_for(
    engine: FakeEngine, plan: Plan
) -> None:
    ImageMemory("python3", kernelspec="julia-1.9").write(engine.add_image(IMAGE).id)
    assert (plan().kernelspec, plan().transport) == ("julia-1.9", "tcp")
    assert (plan(kernel="python").kernelspec, plan(kernel="python").transport) == ("python", "ipc")


def test_keys_differ_and_are_not_shown(engine: FakeEngine, plan: Plan) -> None:
    engine.add_image(IMAGE)
    one, two = plan(), plan()
    assert one.key != two.key
    assert one.key not in repr(one)


def test_a_workspace_whose_name_docker_cannot_be_told_is_refused(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.add_image(IMAGE)
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    with pytest.raises(MountError, match="is not UTF-8") as caught:
        planning.make_plan(IMAGE, RunOptions(), folder, engine=engine, tell=print)
    assert str(caught.value).encode()
    folder.rmdir()


# --- whose containers -----------------------------------------------------------------------------


def test_only_containers_of_this_user_are_ours(engine: FakeEngine, plan: Plan) -> None:
    engine.add_image(IMAGE)
    container = KernelContainer(engine, plan(), print)
    container._runtime = folders.RuntimeFolder(folders.runtime_root() / "one")
    container._runtime.make()
    spec = container._spec("python")
    mine = engine.create(spec)
    engine.create(replace(spec, name="other", labels={**spec.labels, labels.USER: "99999"}))
    engine.create(replace(spec, name="foreign", labels={}))
    assert [found.id for found in our_containers(engine)] == [mine]
    shown = str(table_of_containers(engine))
    assert mine[:12] in shown
    assert len(shown.splitlines()) == 2
    assert spec.labels[labels.USER] == str(os.getuid())


def test_an_engine_is_connected_once_per_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning.engines, "connect", lambda name: FakeEngine())
    first = engine_for(RunOptions())
    assert engine_for(RunOptions(memory=5)) is first
    assert engine_for(RunOptions(engine="unix:///other.sock")) is not first
    monkeypatch.setenv("DOCKER_HOST", "unix:///another.sock")
    assert engine_for(RunOptions()) is not first


# --- which container a name means -----------------------------------------------------------------


@pytest.fixture
def container(engine: FakeEngine, workspace: Path) -> Callable[..., str]:
    """Give a function that starts a container of an environment: ``container("tf", folder=…, uid=…)``."""
    engine.add_image(IMAGE)

    def start(
        name: str = "tf", *, folder: Path = workspace, uid: int | None = None, called: str = ""
    ) -> str:
        session = secrets.token_hex(6)
        spec = ContainerSpec(
            image=IMAGE,
            name=called or f"dockml-{session}",
            entrypoint=("python",),
            user="0:0",
            workdir=PurePosixPath("/"),
            labels={
                labels.NAME: name,
                labels.SESSION: session,
                labels.USER: str(os.getuid() if uid is None else uid),
                labels.WORKSPACE: str(folder),
            },
            env={},
        )
        made = engine.create(spec)
        engine.start(made)
        return made

    return start


def strange_container(engine: FakeEngine, name: str) -> str:
    engine.add_image(IMAGE)
    return engine.create(
        ContainerSpec(
            image=IMAGE, name=name, entrypoint=("python",), user="", workdir=PurePosixPath("/"),
            labels={}, env={},
        )
    )  # fmt: skip


def test_an_environments_name_means_its_container(
    engine: FakeEngine, workspace: Path, container: Callable[..., str]
) -> None:
    mine = container("tf")
    container("torch")
    found = find_container("tf", engine, workspace)
    assert (found.id, found.status) == (mine, "running")


def test_this_workspaces_environment_comes_first(
    engine: FakeEngine, workspace: Path, container: Callable[..., str]
) -> None:
    container("tf", folder=workspace / "other")
    mine = container("tf")
    assert find_container("tf", engine, workspace).id == mine


def test_another_workspaces_environment_will_do(
    engine: FakeEngine, workspace: Path, container: Callable[..., str]
) -> None:
    other = container("tf", folder=workspace / "other")
    assert find_container("tf", engine, workspace).id == other


def test_the_containers_own_name_and_its_id_will_do(
    engine: FakeEngine, workspace: Path, container: Callable[..., str]
) -> None:
    mine = container("tf", called="my-own")
    container("tf")
    assert find_container("my-own", engine, workspace).id == mine
    assert find_container(mine, engine, workspace).id == mine
    assert find_container(mine[:12], engine, workspace).id == mine


def test_an_environments_name_comes_before_another_containers(
    engine: FakeEngine, workspace: Path, container: Callable[..., str]
) -> None:
    container("torch", called="tf")
    mine = container("tf")
    assert find_container("tf", engine, workspace).id == mine


def test_a_digit_or_two_are_no_id(
    engine: FakeEngine, workspace: Path, container: Callable[..., str]
) -> None:
    mine = container("tf")
    with pytest.raises(ConfigError):
        find_container(mine[:2], engine, workspace)


def test_several_of_one_name_are_told_apart(
    engine: FakeEngine, workspace: Path, container: Callable[..., str]
) -> None:
    ids = [container("tf"), container("tf")]
    with pytest.raises(ConfigError, match="2 of your environments") as caught:
        find_container("tf", engine, workspace)
    for one in ids:
        assert one[:12] in caught.value.message
    assert str(workspace) in caught.value.message


def test_an_unknown_name_is_told_with_those_there_are(
    engine: FakeEngine, workspace: Path, container: Callable[..., str]
) -> None:
    container("tf")
    container("torch")
    with pytest.raises(UnknownContainerError, match=r"'x' \(there are: 't\w+', 't\w+'\)"):
        find_container("x", engine, workspace)


@pytest.mark.parametrize("name", ["", "-f", "a b", "../x", "x\n", "/", "é"])
def test_what_cannot_be_a_name_is_not_asked_of_the_engine(
    engine: FakeEngine, workspace: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "inspect", lambda _: pytest.fail("asked"))
    with pytest.raises(UnknownContainerError):
        find_container(name, engine, workspace)


def test_a_strangers_container_is_left_alone(engine: FakeEngine, workspace: Path) -> None:
    strange_container(engine, "database")
    with pytest.raises(ConfigError, match="not one of dockml_magic's") as caught:
        find_container("database", engine, workspace)
    assert "docker logs database" in caught.value.hint


def test_another_users_container_is_left_alone(
    engine: FakeEngine, workspace: Path, container: Callable[..., str]
) -> None:
    container("tf", uid=os.getuid() + 1, called="theirs")
    with pytest.raises(UnknownContainerError):
        find_container("tf", engine, workspace)
    with pytest.raises(ConfigError, match=f"another user .uid {os.getuid() + 1}"):
        find_container("theirs", engine, workspace)


# --- removing images ------------------------------------------------------------------------------


def test_an_image_nobody_uses_is_removed(engine: FakeEngine) -> None:
    image = engine.add_image(IMAGE)
    assert remove_image(IMAGE, engine) == [f"Untagged: {IMAGE}", f"Deleted: {image.id}"]


def test_who_uses_an_image_is_named_and_the_order_of_removal(
    engine: FakeEngine, workspace: Path, container: Callable[..., str]
) -> None:
    strange_container(engine, "of-an-older-image-of-that-name")
    engine.add_image(IMAGE)
    mine = container("tf")
    with pytest.raises(ImageInUseError, match=r"by the environment 'tf' \(running, of /") as caught:
        remove_image(IMAGE, engine)
    assert "older" not in str(caught.value)
    assert caught.value.hint.splitlines()[1:] == [
        f"%docker_rm -f {mine[:12]}",
        "then:",
        f"%docker_rmi {IMAGE}",
    ]


def test_a_strangers_container_that_uses_an_image_is_named(engine: FakeEngine) -> None:
    strange_container(engine, "database")
    with pytest.raises(ImageInUseError, match=r"by the container 'database' \(created\)") as caught:
        remove_image(IMAGE, engine)
    assert "docker rm database" in caught.value.hint


# --- what was left ------------------------------------------------------------------------------------


def _created(engine: FakeEngine, *, mounted: Path | None, session: str = "0123456789ab") -> str:
    """Create a container with our labels, that mounts a runtime folder or not."""
    mounts = () if mounted is None else (Mount(target=RUNTIME, host_path=mounted),)
    return engine.create(
        ContainerSpec(
            image="me/mine:1",
            name=f"container-{len(engine.containers)}",
            entrypoint=("python",),
            user="0:0",
            workdir=PurePosixPath("/"),
            labels={labels.SESSION: session, labels.USER: str(os.getuid())},
            env={},
            mounts=mounts,
        )
    )


def test_only_what_was_never_started_and_is_ours_and_nobodys_is_removed(engine: FakeEngine) -> None:
    engine.add_image("me/mine:1")
    runtime = folders.runtime_root() / "0123456789ab"
    (runtime / "shared").mkdir(parents=True)
    (runtime / "shared" / "config.json").touch()
    ours = _created(engine, mounted=runtime / "shared")
    stranger = _created(engine, mounted=None)
    claim = folders.claim(runtime)
    planning._remove_never_started(engine)
    assert {c.id for c in engine.containers} == {ours, stranger}  # a start works on it
    os.close(claim)
    planning._remove_never_started(engine)
    assert [c.id for c in engine.containers] == [stranger]
    assert not runtime.exists()


def test_what_runs_is_never_removed_as_never_started(engine: FakeEngine) -> None:
    engine.add_image("me/mine:1")
    runtime = folders.runtime_root() / "0123456789ab"
    (runtime / "shared").mkdir(parents=True)
    container = _created(engine, mounted=runtime / "shared")
    engine.start(container)
    planning._remove_never_started(engine)
    assert [c.id for c in engine.containers] == [container]
    assert runtime.exists()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: os.mkfifo(path), "it is not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is not a file"),
        (lambda path: path.mkdir(), "it is not a file"),
        (lambda path: (path.touch(), os.truncate(path, 1 << 40)), "too large"),
        (lambda path: path.write_bytes(b"\xff"), "it is not text in UTF-8"),
        (lambda path: None, "No such file"),
    ],
)
def test_a_requirements_file_that_never_ends_is_told(
    workspace: Path, make: Callable[[Path], object], why: str
) -> None:
    make(workspace / "odd.txt")
    with pytest.raises(ConfigError, match=rf"odd\.txt' cannot be read: .*{why}"):
        read_extras(["-r odd.txt"], workspace, planning._read_text)
