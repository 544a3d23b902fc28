from __future__ import annotations

import argparse
import json
from dataclasses import fields

import pytest

from dockml_magic.errors import ConfigError
from dockml_magic.options import (
    GpuRequest,
    PublishedPort,
    RunOptions,
    Ulimit,
    Volume,
    add_run_options,
    allows_new_privileges,
    build_parser,
    options_from,
    parse_add_host,
    parse_bytes,
    parse_capability,
    parse_cpus,
    parse_device,
    parse_env,
    parse_gpus,
    parse_ipc,
    parse_publish,
    parse_security_opt,
    parse_ulimit,
    parse_volume,
    parse_words,
    split_line,
)

EVERYTHING = RunOptions(
    gpus="all",
    volumes=("/data:/data:ro", "models:/models"),
    publish=("8501:8501",),
    env=("A=1", "B"),
    workdir="/work",
    memory=4 * 1024**3,
    cpus=1.5,
    shm_size=512 * 1024**2,
    user="1000:1000",
    network="none",
    name="mine",
    image="tf1.10",
    packages=("pandas==0.24", "-r more.txt"),
    kernel="ir",
    pull="never",
    transport="tcp",
    privileged=True,
    cap_add=("SYS_PTRACE",),
    cap_drop=("ALL",),
    security_opt=("seccomp=unconfined",),
    device=("/dev/fuse",),
    ulimit=("memlock=-1",),
    add_host=("db:10.0.0.5",),
    ipc="host",
    engine="default",
    keep=True,
)
EVERY_WORD = """--gpus all -v /data:/data:ro --volume models:/models -p 8501:8501 -e A=1 --env B -w /work
    -m 4g --cpus 1.5 --shm-size 512m -u 1000:1000 --network none --name mine --image tf1.10
    --with pandas==0.24 --with '-r more.txt' --kernel ir --pull never --transport tcp --engine default
    --keep --privileged --cap-add SYS_PTRACE
    --cap-drop ALL --security-opt seccomp=unconfined --device /dev/fuse --ulimit memlock=-1
    --add-host db:10.0.0.5 --ipc host"""


# --- sizes and numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1073741824", 1024**3),
        ("100b", 100),
        ("4k", 4096),
        ("512m", 512 * 1024**2),
        ("2g", 2 * 1024**3),
        ("2G", 2 * 1024**3),
        ("2gb", 2 * 1024**3),
        ("2GiB", 2 * 1024**3),
        ("1.5g", 3 * 512 * 1024**2),
        (" 1 t ", 1024**4),
    ],
)
def test_sizes_are_read_as_docker_writes_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "g", "0", "-1g", "2x", "1,5g", "2 g g", "nan", "0.4", "1e9"])
def test_what_is_not_a_size_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"'{text}' is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(("text", "cpus"), [("2", 2.0), ("1.5", 1.5), (".5", 0.5)])
def test_cpus_may_be_a_fraction(text: str, cpus: float) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", "0", "-1", "two", "inf", "nan"])
def test_what_is_not_a_number_of_cpus_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"'{text}' is not a number of CPUs"):
        parse_cpus(text)


# --- volumes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("/data:/data", Volume(source="/data", target="/data")),
        ("/data:/d:ro", Volume(source="/data", target="/d", read_only=True)),
        ("/data:/d:rw", Volume(source="/data", target="/d")),
        ("./models:/m:ro,rw", Volume(source="./models", target="/m", read_only=True)),
        ("models:/m", Volume(source="models", target="/m")),
        ("/a:b:/m", Volume(source="/a:b", target="/m")),
        ("./a:b:c:/m:ro", Volume(source="./a:b:c", target="/m", read_only=True)),
    ],
)
def test_a_volume_is_source_target_and_mode(text: str, volume: Volume) -> None:
    assert parse_volume(text) == volume


@pytest.mark.parametrize(
    "text", ["", "/data", "/a:b", ":/b", "/a:/b:ro:x", "/a:/b:rx", "/a:/b:z", "a:b:/c"]
)
def test_what_is_not_a_volume_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"-v {text}: "):
        parse_volume(text)


@pytest.mark.parametrize(
    ("source", "is_path"),
    [("/data", True), ("./data", True), ("..", True), ("~/data", True), ("data", False)],
)
def test_a_source_that_looks_like_a_path_is_one(source: str, *, is_path: bool) -> None:
    assert Volume(source=source, target="/d").is_host_path is is_path


# --- what is passed on ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [("SYS_PTRACE", "SYS_PTRACE"), ("cap_net_admin", "NET_ADMIN"), ("all", "ALL")],
)
def test_capabilities_are_read_as_docker_writes_them(text: str, name: str) -> None:
    assert parse_capability(text) == name


@pytest.mark.parametrize("text", ["", "SYS PTRACE", "--privileged", "CAP_", "SYS_1", "A,B"])
def test_what_is_not_a_capability_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"'{text}' is not a capability"):
        parse_capability(text)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("no-new-privileges", "no-new-privileges=true"),
        ("no-new-privileges:true", "no-new-privileges=true"),
        ("no-new-privileges=false", "no-new-privileges=false"),
        ("seccomp=unconfined", "seccomp=unconfined"),
        ("seccomp:unconfined", "seccomp=unconfined"),
        ("seccomp=/a b/c=d.json", "seccomp=/a b/c=d.json"),
        ("label=type:container_t", "label=type:container_t"),
    ],
)
def test_security_options_are_read_as_docker_writes_them(text: str, option: str) -> None:
    assert parse_security_opt(text) == option


@pytest.mark.parametrize(
    "text",
    ["", "=", "seccomp", "seccomp=", "no-new-privileges=maybe", "systempaths=unconfined", "x=y"],
)
def test_what_is_not_a_security_option_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--security-opt {text}: not understood"):
        parse_security_opt(text)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ([], None),
        (["seccomp=unconfined"], None),
        (["no-new-privileges"], False),
        (["no-new-privileges=false"], True),
        (["no-new-privileges=false", "no-new-privileges"], False),
    ],
)
def test_the_last_word_on_new_privileges_holds(options: list[str], *, allowed: bool | None) -> None:
    assert allows_new_privileges(options) is allowed


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("/dev/fuse", "/dev/fuse:/dev/fuse:rwm"),
        ("/dev/fuse:r", "/dev/fuse:/dev/fuse:r"),
        ("/dev/a:/dev/b", "/dev/a:/dev/b:rwm"),
        ("/dev/a:/dev/b:rw", "/dev/a:/dev/b:rw"),
    ],
)
def test_devices_are_read_as_docker_writes_them(text: str, device: str) -> None:
    assert parse_device(text) == device


@pytest.mark.parametrize(
    "text",
    ["", "fuse", "/dev/a:b", "/dev/a:rr", "/a:/b:/c", "/a:/b:rwm:x", "/a:", "/a::r", "/a:/b:"],
)
def test_what_is_not_a_device_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--device {text}: not HOST"):
        parse_device(text)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("memlock=-1", Ulimit(name="memlock", soft=-1, hard=-1)),
        ("nofile=1024:4096", Ulimit(name="nofile", soft=1024, hard=4096)),
        ("core=0", Ulimit(name="core", soft=0, hard=0)),
        ("nofile=1024:-1", Ulimit(name="nofile", soft=1024, hard=-1)),
    ],
)
def test_limits_are_read_as_docker_writes_them(text: str, limit: Ulimit) -> None:
    assert parse_ulimit(text) == limit


@pytest.mark.parametrize("text", ["", "nofile", "nofile=", "files=1", "nofile=1:2:3", "nofile=2:1",
                                  "nofile=-1:5", "nofile=-2", "nofile=1e3"])  # fmt: skip
def test_what_is_not_a_limit_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--ulimit {text}: "):
        parse_ulimit(text)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("db:10.0.0.5", "db:10.0.0.5"),
        ("db=10.0.0.5", "db:10.0.0.5"),
        ("six:::1", "six:::1"),
        ("six:[2001:db8::1]", "six:2001:db8::1"),
        ("host.docker.internal:host-gateway", "host.docker.internal:host-gateway"),
    ],
)
def test_hosts_are_read_as_docker_writes_them(text: str, host: str) -> None:
    assert parse_add_host(text) == host


@pytest.mark.parametrize(
    "text", ["", "db", "db:", ":10.0.0.5", "db:ten", "d b:10.0.0.5", "db:1.2.3"]
)
def test_what_is_not_a_host_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--add-host {text}: not NAME:IP"):
        parse_add_host(text)


@pytest.mark.parametrize("text", ["none", "private", "shareable", "host", "container:db"])
def test_modes_of_shared_memory_are_dockers(text: str) -> None:
    assert parse_ipc(text) == text
    with pytest.raises(ConfigError, match=f"--ipc x{text}: not understood"):
        parse_ipc(f"x{text}")


# --- ports ----------------------------------------------------------------------------------------


def port(
    inner: int, outer: int | None, ip: str = "127.0.0.1", protocol: str = "tcp"
) -> PublishedPort:
    return PublishedPort(container_port=inner, host_port=outer, host_ip=ip, protocol=protocol)


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [port(80, None)]),
        ("8080:80", [port(80, 8080)]),
        (":80", [port(80, None)]),
        ("0.0.0.0:8080:80", [port(80, 8080, "0.0.0.0")]),
        ("127.0.0.1::80", [port(80, None)]),
        ("[::1]:8080:80", [port(80, 8080, "::1")]),
        ("[::]::80", [port(80, None, "::")]),
        ("8080:80/udp", [port(80, 8080, protocol="udp")]),
        ("80/sctp", [port(80, None, protocol="sctp")]),
        ("8000-8002", [port(8000, None), port(8001, None), port(8002, None)]),
        ("9000-9001:80-81", [port(80, 9000), port(81, 9001)]),
        ("10.0.0.1:9000-9001:80-81/udp", [
            port(80, 9000, "10.0.0.1", "udp"),
            port(81, 9001, "10.0.0.1", "udp"),
        ]),
        ("65535:65535", [port(65535, 65535)]),
    ],
)  # fmt: skip
def test_ports_are_read_as_docker_writes_them(text: str, ports: list[PublishedPort]) -> None:
    assert parse_publish(text) == ports


@pytest.mark.parametrize("text", ["80", "8080:80", "80-90", ":80", "80/udp"])
def test_a_port_without_an_address_is_for_this_machine_only(text: str) -> None:
    assert {found.host_ip for found in parse_publish(text)} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is not a port"),
        ("http", "'http' is not a port"),
        ("80:", "'' is not a port"),
        ("-1:80", "'-1' is not a port"),
        ("0:80", "'0' is not between 1 and 65535"),
        ("65536", "'65536' is not between 1 and 65535"),
        ("90-80", "'90-80' is not between 1 and 65535"),
        ("8000-8002:80-81", "the two ranges differ in length"),
        ("80/http", "unknown protocol 'http'"),
        ("127.0.0.1:80", "'127.0.0.1' is not a port"),
    ],
)
def test_what_is_not_a_port_is_named(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_publish(text)
    assert caught.value.message == f"-p {text}: {why}."


# --- variables and GPUs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("A=1", ("A", "1")),
        ("A=", ("A", "")),
        ("A=b=c d", ("A", "b=c d")),
        ("HERE", ("HERE", "of the host")),
        ("NOT_HERE", None),
    ],
)
def test_a_variable_has_a_value_or_the_hosts(text: str, pair: tuple[str, str] | None) -> None:
    assert parse_env(text, {"HERE": "of the host"}) == pair


@pytest.mark.parametrize("text", ["", "=1", "A B=1", "A B"])
def test_what_is_not_a_variable_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"-e {text}: not KEY=VALUE"):
        parse_env(text, {})


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("all", GpuRequest(count=-1)),
        ("2", GpuRequest(count=2)),
        ("device=0,1", GpuRequest(device_ids=("0", "1"))),
        ('"device=0,1"', GpuRequest(device_ids=("0", "1"))),
        ("device=GPU-3a23c669", GpuRequest(device_ids=("GPU-3a23c669",))),
        ("none", None),
        ("auto", GpuRequest(count=1)),
    ],
)
def test_gpus_are_read_as_docker_writes_them(text: str, request_: GpuRequest | None) -> None:
    assert parse_gpus(text) == request_


@pytest.mark.parametrize("text", ["0", "-1", "some", "device=", "device", "devices=1"])
def test_what_is_not_gpus_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--gpus {text}: not understood"):
        parse_gpus(text)


# --- layers and JSON ------------------------------------------------------------------------------


def test_options_over_others_win_where_they_say_something() -> None:
    above = RunOptions(memory=1, user="root", pull="always")
    below = RunOptions(memory=2, cpus=2.0, pull="never")
    assert above.over(below) == RunOptions(memory=1, user="root", pull="always", cpus=2.0)


def test_lists_add_up_with_the_upper_ones_last() -> None:
    above, below = RunOptions(env=("A=2",)), RunOptions(env=("A=1", "B=1"))
    assert above.over(below).env == ("A=1", "B=1", "A=2")


def test_nothing_over_something_is_that() -> None:
    assert RunOptions().over(EVERYTHING) == EVERYTHING
    assert EVERYTHING.over(RunOptions()) == EVERYTHING


def test_the_example_says_everything() -> None:
    default = RunOptions()
    for field in fields(RunOptions):
        assert getattr(EVERYTHING, field.name) != getattr(default, field.name), field.name


@pytest.mark.parametrize("options", [RunOptions(), EVERYTHING, RunOptions(env=("A=ä \"'",))])
def test_options_survive_json(options: RunOptions) -> None:
    assert RunOptions.from_json(json.loads(json.dumps(options.to_json()))) == options


def test_json_has_only_what_was_asked_for() -> None:
    assert RunOptions().to_json() == {}
    assert RunOptions(memory=5, env=("A=1",)).to_json() == {"memory": 5, "env": ["A=1"]}


def test_an_entry_of_another_version_is_named() -> None:
    with pytest.raises(ConfigError, match="Unknown option 'colour' in the kernelspec"):
        RunOptions.from_json({"memory": 5, "colour": "red"})


# --- words ----------------------------------------------------------------------------------------


def test_every_option_has_dockers_spelling() -> None:
    assert parse_words("%docker_env", split_line(EVERY_WORD)) == EVERYTHING


def test_every_option_can_be_typed() -> None:
    parser = build_parser("x", "")
    add_run_options(parser)
    assert options_from(parser.parse_args([])) == RunOptions()
    typed = {action.dest for action in parser._actions} - {"help"}
    assert typed == {field.name for field in fields(RunOptions)}


def test_no_words_are_no_options() -> None:
    assert parse_words("%docker_env", []) == RunOptions()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memroy", "4g"], "%docker_env: unrecognized arguments: --memroy 4g."),
        (["--mem", "4g"], "%docker_env: unrecognized arguments: --mem 4g."),
        (["--memory"], "%docker_env: argument -m/--memory: expected one argument."),
    ],
)
def test_a_wrong_option_is_named_and_help_is_near(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_words("%docker_env", words)
    assert caught.value.message == message
    assert caught.value.hint == "See the options with: %docker_env -h"


def test_a_wrong_choice_lists_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"--pull: invalid choice: 'sometimes'.*missing.*never"):
        parse_words("%docker_env", ["--pull", "sometimes"])


def test_a_wrong_value_is_explained_by_its_reader() -> None:
    with pytest.raises(ConfigError, match="'lots' is not a size"):
        parse_words("%docker_env", ["--memory", "lots"])


def test_help_is_text_and_ends_nothing() -> None:
    parser = build_parser("%docker_env", "Start an environment.")
    add_run_options(parser)
    assert "spelled as in docker run" in parser.format_help()
    assert isinstance(parser, argparse.ArgumentParser)


def test_a_line_is_split_as_in_a_shell_and_nothing_is_expanded() -> None:
    line = """tf1.10 -e 'A=b c' -v "$HOME/x y":/x *"""
    assert split_line(line) == ["tf1.10", "-e", "A=b c", "-v", "$HOME/x y:/x", "*"]


def test_an_open_quote_is_told() -> None:
    with pytest.raises(ConfigError, match="No closing quotation") as caught:
        split_line("tf1.10 -e 'A=b")
    assert caught.value.hint == "Check the quotes."
