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
    Volume,
    add_run_options,
    build_parser,
    options_from,
    parse_bytes,
    parse_cpus,
    parse_env,
    parse_gpus,
    parse_publish,
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
    engine="default",
)
EVERY_WORD = """--gpus all -v /data:/data:ro --volume models:/models -p 8501:8501 -e A=1 --env B -w /work
    -m 4g --cpus 1.5 --shm-size 512m -u 1000:1000 --network none --name mine --image tf1.10
    --with pandas==0.24 --with '-r more.txt' --kernel ir --pull never --transport tcp --engine default"""


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
    ],
)
def test_a_volume_is_source_target_and_mode(text: str, volume: Volume) -> None:
    assert parse_volume(text) == volume


@pytest.mark.parametrize("text", ["", "/data", "/a:b", ":/b", "/a:/b:ro:x", "/a:/b:rx", "/a:/b:z"])
def test_what_is_not_a_volume_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"-v {text}: "):
        parse_volume(text)


@pytest.mark.parametrize(
    ("source", "is_path"),
    [("/data", True), ("./data", True), ("..", True), ("~/data", True), ("data", False)],
)
def test_a_source_that_looks_like_a_path_is_one(source: str, *, is_path: bool) -> None:
    assert Volume(source=source, target="/d").is_host_path is is_path


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
