from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from dockml_magic import labels
from dockml_magic.errors import ConfigError
from dockml_magic.names import Choice
from dockml_magic.options import GpuRequest, PublishedPort, RunOptions
from dockml_magic.spec import (
    BUNDLES,
    DEFAULT_SHM_SIZE,
    HOME,
    RUNTIME,
    UNNEEDED_CAPABILITIES,
    ContainerSpec,
    HostFacts,
    InnerUser,
    Mount,
    container_spec,
    inner_user,
)

HOST = HostFacts(uid=1000, gid=100, user="ada", environ={"HERE": "of the host"})
WORKSPACE = Path("/home/ada/notebooks")
RUNTIME_FOLDER = Path("/run/user/1000/dockml/0123456789ab")
BUNDLES_FOLDER = Path("/home/ada/.cache/dockml/bundles")


def choice(wants_gpu: bool = False, **options: Any) -> Choice:
    return Choice(
        name="tf1.10",
        reference="tensorflow/tensorflow:1.10.0-py3",
        title="TensorFlow 1.10",
        options=RunOptions(**options),
        wants_gpu=wants_gpu,
    )


def spec_of(
    of: Choice | None = None,
    host: HostFacts = HOST,
    tcp_ports: tuple[PublishedPort, ...] = (),
    **options: Any,
) -> ContainerSpec:
    return container_spec(
        of or choice(**options),
        host=host,
        session="0123456789ab",
        workspace=WORKSPACE,
        runtime=RUNTIME_FOLDER,
        bundles=BUNDLES_FOLDER,
        tcp_ports=tcp_ports,
        version="0.1.0",
    )


# --- what every container gets --------------------------------------------------------------------


def test_the_image_and_a_name_of_its_own() -> None:
    spec = spec_of()
    assert spec.image == "tensorflow/tensorflow:1.10.0-py3"
    assert spec.name == "dockml-0123456789ab"
    assert spec.auto_remove


def test_a_name_that_is_given_is_the_containers() -> None:
    assert spec_of(name="mine").name == "mine"


def test_labels_say_whose_it_is() -> None:
    assert spec_of().labels == {
        labels.VERSION: "0.1.0",
        labels.NAME: "tf1.10",
        labels.WORKSPACE: str(WORKSPACE),
        labels.USER: "1000",
        labels.SESSION: "0123456789ab",
    }
    assert all(label.startswith(f"{labels.NAMESPACE}.") for label in spec_of().labels)


def test_the_workspace_is_mounted_at_the_same_path_and_worked_in() -> None:
    spec = spec_of()
    assert spec.mounts == (
        Mount(target=PurePosixPath(WORKSPACE), host_path=WORKSPACE),
        Mount(target=RUNTIME, host_path=RUNTIME_FOLDER),
        Mount(target=BUNDLES, host_path=BUNDLES_FOLDER, read_only=True),
    )
    assert spec.workdir == PurePosixPath(WORKSPACE)


def test_nothing_of_ours_is_mounted_where_files_are_not_shared() -> None:
    spec = spec_of(host=replace(HOST, shares_files=False))
    assert spec.mounts == ()
    assert spec.workdir == RUNTIME


def test_shared_memory_is_enough_for_a_data_loader() -> None:
    assert spec_of().shm_size == DEFAULT_SHM_SIZE == 2 * 1024**3
    assert spec_of(shm_size=5).shm_size == 5


def test_limits_and_network_are_passed_on() -> None:
    spec = spec_of(memory=4, cpus=1.5, network="none", workdir="/work")
    assert (spec.memory, spec.cpus, spec.network) == (4, 1.5, "none")
    assert spec.workdir == PurePosixPath("/work")
    spec = spec_of()
    assert (spec.memory, spec.cpus, spec.network) == (None, None, None)


# --- users ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "engine_sets", "inner"),
    [
        (None, "0:0", InnerUser(uid=1000, gid=100, name="ada")),
        ("1000", "0:0", InnerUser(uid=1000, gid=0, name="ada")),
        ("1000:100", "0:0", InnerUser(uid=1000, gid=100, name="ada")),
        ("1234:5", "0:0", InnerUser(uid=1234, gid=5, name="user1234")),
        ("root", "root", None),
        ("0", "0", None),
        ("jovyan", "jovyan", None),
        ("jovyan:users", "jovyan:users", None),
        ("1234:users", "1234:users", None),
    ],
)
def test_the_launcher_becomes_a_number_and_the_engine_sets_a_name(
    asked: str | None, engine_sets: str, inner: InnerUser | None
) -> None:
    assert spec_of(user=asked).user == engine_sets
    assert inner_user(choice(user=asked), HOST) == inner


def test_a_rootless_engine_makes_its_root_the_user() -> None:
    host = replace(HOST, rootless=True)
    assert inner_user(choice(), host) is None
    assert spec_of(host=host).user == "0:0"


def test_a_user_that_is_asked_for_is_used_on_a_rootless_engine_too() -> None:
    host = replace(HOST, rootless=True)
    assert inner_user(choice(user="1234"), host) == InnerUser(uid=1234, gid=0, name="user1234")


def test_root_at_the_host_is_root_inside() -> None:
    host = replace(HOST, uid=0, gid=0, user="root")
    assert inner_user(choice(), host) is None
    assert spec_of(host=host).user == "0:0"


def test_the_home_of_an_unknown_user_is_ours() -> None:
    assert not HOME.is_relative_to(RUNTIME)


# --- volumes, ports, variables, GPUs --------------------------------------------------------------


def test_volumes_follow_ours_in_order() -> None:
    volumes = ("/data:/data:ro", "models:/models", "./here:/here", "~/x:/x")
    assert spec_of(volumes=volumes).mounts[3:] == (
        Mount(target=PurePosixPath("/data"), host_path=Path("/data"), read_only=True),
        Mount(target=PurePosixPath("/models"), volume="models"),
        Mount(target=PurePosixPath("/here"), host_path=WORKSPACE / "here"),
        Mount(target=PurePosixPath("/x"), host_path=(Path.home() / "x").resolve()),
    )


def test_the_home_of_nobody_is_told() -> None:
    with pytest.raises(ConfigError, match="~no-such-user/x"):
        spec_of(volumes=("~no-such-user/x:/x",))


def test_ports_of_the_user_follow_the_kernels() -> None:
    kernel = PublishedPort(container_port=5901)
    spec = spec_of(tcp_ports=(kernel,), publish=("8501:8501", "80-81"))
    assert spec.ports == (
        kernel,
        PublishedPort(container_port=8501, host_port=8501),
        PublishedPort(container_port=80),
        PublishedPort(container_port=81),
    )


def test_variables_of_the_user_win_over_what_is_carried() -> None:
    host = replace(HOST, carried={"LANG": "C", "TZ": "UTC"})
    spec = spec_of(host=host, env=("LANG=de", "HERE", "NOT_HERE", "A=1", "A=2"))
    assert spec.env == {"LANG": "de", "TZ": "UTC", "HERE": "of the host", "A": "2"}


def test_the_hosts_other_variables_stay_out() -> None:
    assert spec_of().env == {}


@pytest.mark.parametrize(
    ("of", "gpus"),
    [
        (choice(), None),
        (choice(gpus="none"), None),
        (choice(gpus="2"), GpuRequest(count=2)),
        (choice(gpus="device=1"), GpuRequest(device_ids=("1",))),
        (choice(wants_gpu=True), GpuRequest(count=-1)),
    ],
)
def test_gpus_are_asked_for_by_option_or_by_name(of: Choice, gpus: GpuRequest | None) -> None:
    assert spec_of(of).gpus == gpus


@pytest.mark.parametrize("options", [{"volumes": ("x",)}, {"publish": ("x",)}, {"gpus": "x"}])
def test_an_option_that_is_not_understood_is_told(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="x"):
        spec_of(**options)


# --- rights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "security"),
    [
        ({}, ("no-new-privileges=true",)),
        (
            {"security_opt": ("seccomp=unconfined",)},
            ("no-new-privileges=true", "seccomp=unconfined"),
        ),
        ({"security_opt": ("no-new-privileges=false",)}, ()),
        ({"security_opt": ("no-new-privileges=false", "label=disable")}, ("label=disable",)),
        ({"privileged": True}, ()),
        ({"privileged": True, "security_opt": ("no-new-privileges",)}, ("no-new-privileges=true",)),
    ],
)
def test_there_are_no_new_privileges_unless_asked_otherwise(
    options: dict[str, Any], security: tuple[str, ...]
) -> None:
    assert spec_of(**options).security_opt == security


def test_rights_are_only_those_that_are_asked_for() -> None:
    spec = spec_of()
    assert not spec.privileged
    assert (spec.cap_add, spec.devices, spec.ulimits) == ((), (), ())
    assert (spec.extra_hosts, spec.ipc) == ((), None)
    spec = spec_of(
        cap_add=("cap_sys_ptrace",),
        cap_drop=("net_raw",),
        device=("/dev/fuse",),
        ulimit=("core=0",),
        add_host=("db:10.0.0.5",),
        ipc="host",
    )
    assert (spec.cap_add, spec.cap_drop[0]) == (("SYS_PTRACE",), "NET_RAW")
    assert spec.devices == ("/dev/fuse:/dev/fuse:rwm",)
    assert [(limit.name, limit.soft) for limit in spec.ulimits] == [("core", 0)]
    assert (spec.extra_hosts, spec.ipc) == (("db:10.0.0.5",), "host")


def test_where_no_kernel_is_root_the_image_is_not_either_with_more_than_the_launcher_needs() -> (
    None
):
    assert spec_of().cap_drop == spec_of(user="1234:5").cap_drop == UNNEEDED_CAPABILITIES
    needed = {"CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"}
    of_files = {"NET_RAW", "NET_BIND_SERVICE"}
    assert not (needed | of_files).intersection(UNNEEDED_CAPABILITIES)


@pytest.mark.parametrize(
    "options",
    [
        {"user": "0"},
        {"user": "root"},
        {"user": "jovyan"},
        {"privileged": True},
        {"security_opt": ("no-new-privileges=false",)},
    ],
)
def test_who_asks_for_root_or_for_rights_gets_dockers_defaults(options: dict[str, Any]) -> None:
    assert spec_of(**options).cap_drop == ()
    assert spec_of(cap_drop=("mknod",), **options).cap_drop == ("MKNOD",)


@pytest.mark.parametrize("host", [replace(HOST, rootless=True), replace(HOST, uid=0, gid=0)])
def test_a_user_who_is_root_in_the_container_has_dockers_defaults(host: HostFacts) -> None:
    assert spec_of(host=host).cap_drop == ()


def test_a_capability_that_is_asked_for_stays() -> None:
    added = spec_of(cap_add=("cap_mknod", "sys_ptrace"))
    assert set(UNNEEDED_CAPABILITIES) - set(added.cap_drop) == {"MKNOD"}
    assert spec_of(cap_add=("ALL",)).cap_drop == ()
    assert spec_of(cap_drop=("ALL",), cap_add=("SETUID", "SETGID")).cap_drop == ("ALL",)
    both = spec_of(cap_drop=("setpcap", "chown")).cap_drop
    assert sorted(both) == sorted({*UNNEEDED_CAPABILITIES, "CHOWN"})
