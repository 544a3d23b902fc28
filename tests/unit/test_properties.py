"""What holds for every text and every message: it is read, or refused with an error of ours; and round trips hold.

Each parser gets texts that are near to what it reads, and any others.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import socket
import string
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import zmq
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jupyter_client.session import DELIM, Session

from dockml_magic import folders, handover, options, pieces
from dockml_magic.container import _last_lines
from dockml_magic.control import KernelState, NonsenseError, parse_state
from dockml_magic.display import Table
from dockml_magic.errors import ConfigError, DockmlError, harmless
from dockml_magic.fit import parse_nvidia_smi
from dockml_magic.image_memory import ImageMemory
from dockml_magic.layers import parse_status
from dockml_magic.messages import MalformedMessageError, Message
from dockml_magic.names import choose, kernel_name, parse_query
from dockml_magic.options import RunOptions
from dockml_magic.project import Project, find_project
from dockml_magic.pull import PullMeter, format_seconds, format_size, pull_error, split_reference
from dockml_magic.relay import checked_reply

TEXT = st.text(max_size=60)
NEAR = st.text(alphabet="0123456789abgkmtx.,:/=-_[]\"'~ \t\né\0", max_size=30)
"""Of the characters that parsers look at."""
ANY = TEXT | NEAR
LINE = st.text(alphabet=st.characters(exclude_characters="\0"), max_size=40)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=12,
)


def refusal(work: Callable[[], object]) -> str:
    """Return what is said by an error of the reader's making, "" without one. No other may be raised."""
    try:
        work()
    except ConfigError as error:
        return str(error)
    return ""


PARSERS: dict[str, Callable[[str], object]] = {
    "bytes": options.parse_bytes,
    "cpus": options.parse_cpus,
    "volume": options.parse_volume,
    "publish": options.parse_publish,
    "env": lambda text: options.parse_env(text, {}),
    "gpus": options.parse_gpus,
    "capability": options.parse_capability,
    "security option": options.parse_security_opt,
    "device": options.parse_device,
    "ulimit": options.parse_ulimit,
    "host": options.parse_add_host,
    "ipc": options.parse_ipc,
    "line": options.split_line,
}


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
@given(text=ANY)
@example(text="1" * 5000)
@example(text="²")
@example(text="٣")
@example(text="1e999")
@example(text="\ud800")
def test_a_text_is_an_option_or_is_refused(parse: Callable[[str], object], text: str) -> None:
    said = refusal(lambda: parse(text))
    assert said == harmless(said)


@given(words=st.lists(ANY, max_size=6))
def test_words_are_options_or_are_refused(words: list[str]) -> None:
    try:
        options.parse_words("%docker_env", [word for word in words if word not in ("-h", "--help")])
    except ConfigError:
        return


@given(words=st.lists(LINE))
def test_words_go_through_a_line_unharmed(words: list[str]) -> None:
    assert options.split_line(shlex.join(words)) == words


ENV_NAME = st.text(alphabet=string.ascii_letters + "_", min_size=1, max_size=10)


@given(key=ENV_NAME, value=LINE)
def test_values_of_variables_go_through_unharmed(key: str, value: str) -> None:
    assert options.parse_env(f"{key}={value}", {}) == (key, value)
    (word,) = options.parse_words("x", ["-e", f"{key}={value}"]).env
    assert word == f"{key}={value}"


PATH = st.text(
    alphabet=st.characters(exclude_characters="\0:", exclude_categories=["Cs"]), max_size=20
).map(lambda text: "/" + text)


@given(source=PATH | st.lists(PATH, min_size=1, max_size=3).map(":".join), target=PATH,
       mode=st.sampled_from(["", ":ro", ":rw"]))  # fmt: skip
def test_paths_of_a_volume_go_through_unharmed(source: str, target: str, mode: str) -> None:
    volume = options.parse_volume(f"{source}:{target}{mode}")
    assert (volume.source, volume.target, volume.read_only) == (source, target, mode == ":ro")


RUN_OPTIONS = st.builds(
    RunOptions,
    **{
        name: st.lists(LINE, max_size=3).map(tuple)
        for name in ("volumes", "publish", "env", "cap_add", "device", "security_opt", "ulimit")
    },
    **{
        name: st.none() | LINE.filter(bool)
        for name in ("gpus", "workdir", "user", "network", "name", "image", "kernel", "ipc")
    },
    memory=st.none() | st.integers(1, 1 << 50),
    cpus=st.none() | st.floats(0.01, 1000),
    privileged=st.booleans(),
)


@given(asked=RUN_OPTIONS, below=RUN_OPTIONS)
def test_options_survive_json_and_fill_each_other(asked: RunOptions, below: RunOptions) -> None:
    assert RunOptions.from_json(json.loads(json.dumps(asked.to_json()))) == asked
    assert asked.over(RunOptions()) == asked
    assert RunOptions().over(asked) == asked
    merged = asked.over(below)
    assert merged.env == below.env + asked.env
    assert merged.memory == (below.memory if asked.memory is None else asked.memory)


# --- names ----------------------------------------------------------------------------------------

NAME = st.lists(
    st.sampled_from(
        ["tf", "torch", "1.10", "2", "-", "==", ":", "gpu", "cu100", "py3", "x", "/", "é"]
    ),
    max_size=6,
).map("".join)


@given(name=ANY | NAME)
def test_a_name_means_something_or_is_refused(name: str) -> None:
    refusal(lambda: (parse_query(name), choose(name, RunOptions(), Project())))


@given(name=ANY | NAME)
def test_a_kernels_name_is_one_of_jupyters(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9._-]+", kernel_name(name), re.ASCII)


@given(reference=ANY)
def test_every_reference_has_its_parts(reference: str) -> None:
    name = split_reference(reference)
    assert isinstance(name.host, str)
    assert name.host


# --- project files --------------------------------------------------------------------------------

WORDS = ("image", "gpus", "volumes", "publish", "env", "memory", "cpus", "user", "network", "pull", "title",
         "device", "ulimit", "add_host", "ipc", "privileged", "cap_add", "security_opt", "x y")  # fmt: skip


def toml_of(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml_of(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_of, value)) + "]"
    return json.dumps(value)


TOML = st.recursive(
    st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.text(alphabet=string.printable[:95], max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(alphabet=string.ascii_letters, min_size=1, max_size=5), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(entries=st.dictionaries(st.sampled_from(WORDS), TOML, max_size=5),
       table=st.sampled_from(["environments.x", "environments", "images.x", "images", "else"]))  # fmt: skip
def test_a_project_file_is_read_or_refused(
    tmp_path: Path, entries: dict[str, object], table: str
) -> None:
    lines = [f"{json.dumps(word)} = {toml_of(value)}" for word, value in entries.items()]
    (tmp_path / "dockml.toml").write_text("\n".join([f"[{table}]", *lines, ""]))
    said = refusal(lambda: find_project(tmp_path))
    assert not said or str(tmp_path) in said


@given(content=st.binary(max_size=200))
def test_what_is_no_project_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dockml.toml").write_bytes(content)
    said = refusal(lambda: find_project(tmp_path))
    assert not said or str(tmp_path) in said


# --- cells ----------------------------------------------------------------------------------------

CELL = st.lists(
    st.sampled_from(
        ["%docker_env x", "%docker_ps", "%%docker_cell x", "%%time", "'''", '"""', "x = 1", "  y", "\\",
         "%docker_env \\", "%load_ext dockml_magic", "", "#", "é\u2028b", "\f", "\x1c"]
    )
    | st.text(max_size=10),
    max_size=8,
)  # fmt: skip


@given(lines=CELL)
def test_no_text_of_a_cell_is_lost(lines: list[str]) -> None:
    code = "\n".join(lines)
    cut = pieces.split_cell(code)

    def letters(text: str) -> str:
        return "".join(text.split())

    assert letters("".join(piece.code for piece in cut)) == letters(code)
    assert pieces.has_own_line(code) == any(piece.is_ours for piece in cut)


# --- messages -------------------------------------------------------------------------------------

SESSION = Session(key=b"key")
PART = st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode())


@given(frames=st.lists(st.just(DELIM) | PART, max_size=9))
def test_frames_are_a_message_or_are_refused(frames: list[bytes]) -> None:
    try:
        message = Message([zmq.Frame(frame) for frame in frames])
        message.verify(SESSION)
        assert isinstance(message.parent, dict)
        assert isinstance(message.content, dict)
        assert isinstance(message.parent_id, str)
        message.said_by(SESSION)
    except MalformedMessageError:
        return


@given(
    content=st.dictionaries(TEXT, TEXT, max_size=4), header=st.dictionaries(TEXT, TEXT, max_size=4)
)
def test_a_message_that_is_passed_on_is_the_same(
    content: dict[str, Any], header: dict[str, Any]
) -> None:
    sent = SESSION.msg("stream", content)
    sent["header"] = {**header, **sent["header"]}
    frames = [b"topic", *SESSION.serialize(sent)]
    message = Message([zmq.Frame(bytes(frame)) for frame in frames])
    message.verify(SESSION)
    other = Session(key=b"other")
    passed_on = [bytes(f) for f in message.said_by(other)]
    again = Message([zmq.Frame(frame) for frame in passed_on])
    again.verify(other)
    assert bytes(again.parts[3]) == frames[6]
    assert again.header == {**sent["header"], "session": other.session} | {
        "date": again.header["date"]
    }
    with pytest.raises(MalformedMessageError):
        again.verify(SESSION)


@given(content=st.dictionaries(st.sampled_from(["status", "payload", "execution_count", "x"]), JSON),
       code=st.sampled_from(["exit()", "x = 1"]))  # fmt: skip
def test_a_reply_asks_for_nothing_but_what_it_may(content: dict[str, Any], code: str) -> None:
    try:
        reply = checked_reply(content, code)
    except MalformedMessageError:
        return
    allowed = {"page", "set_next_input", *(["ask_exit"] if "exit" in code else [])}
    assert all(item["source"] in allowed for item in reply.get("payload") or [])


# --- what an image's Python says of an installation ---------------------------------------------------


@given(said=PART | st.fixed_dictionaries(
    {
        "phase": st.sampled_from(["done", "need_pip"]) | JSON,
        "code": st.integers() | JSON,
        "python": st.sampled_from(["3.6.15", "2.7.15+"]) | JSON | NEAR,
    },
    optional={"executable": JSON | TEXT, "packages": st.dictionaries(TEXT, TEXT) | JSON},
).map(lambda said: json.dumps(said).encode()))  # fmt: skip
def test_a_status_is_one_or_is_refused(said: bytes) -> None:
    try:
        status = parse_status(said)
    except NonsenseError:
        return
    assert status.phase in ("done", "need_pip")
    assert re.fullmatch(r"([0-9]+\.[0-9]+[.0-9a-zA-Z_]*[+]?)?", status.python)
    for text in (status.executable, *status.packages, *status.packages.values()):
        assert len(text.encode().splitlines()) <= 1
        assert harmless(text) == text


# --- the control channel, at both ends ------------------------------------------------------------


@given(line=PART | st.fixed_dictionaries(
    {"generation": JSON, "phase": st.sampled_from(["bound", "gone"]) | JSON, "report": JSON, "exit": JSON}
).map(lambda said: json.dumps(said).encode()))  # fmt: skip
def test_a_line_is_a_state_or_is_refused(line: bytes) -> None:
    try:
        state = parse_state(line)
    except NonsenseError:
        return
    assert isinstance(state, KernelState)
    assert json.dumps(dict(state.report)).isprintable()


@given(lines=st.lists(PART | st.builds(
    lambda op, more: json.dumps({**more, "op": op}).encode(),
    st.sampled_from(["signal", "keep", "else"]) | JSON,
    st.dictionaries(st.sampled_from(["signum", "keep", "key"]), JSON),
), max_size=4), knows_key=st.booleans())  # fmt: skip
def test_a_supervisor_obeys_or_hangs_up(
    launch: ModuleType, tmp_path: Path, lines: list[bytes], *, knows_key: bool
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"key": "k", "grace": 1.0}))
    supervisor = launch.Supervisor(str(config))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        supervisor.connections[theirs] = b""
        first = [b'{"key": "k"}'] if knows_key else []
        ours.sendall(b"".join(line.replace(b"\n", b" ") + b"\n" for line in (*first, *lines)))
        supervisor._receive(theirs)
        assert knows_key or not supervisor.trusted
        assert not supervisor.stopping
    for fd in (supervisor.wake_read, supervisor.wake_write):
        launch.os.close(fd)


# --- what others print ----------------------------------------------------------------------------


@given(text=st.text(max_size=80))
@example(text="\x1b]52;c;x\x07\x1b[31mred\x1b[0m\x9b2J\u202e\ud800\r")
def test_a_text_that_is_shown_steers_no_terminal(text: str) -> None:
    shown = harmless(text)
    without_colours = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", without_colours)
    assert harmless(shown) == shown
    shown.encode()
    if text.isprintable():
        assert shown == text


@given(rows=st.lists(st.tuples(TEXT, TEXT), max_size=4))
def test_a_table_has_a_line_for_each_row_and_no_markup_of_others(
    rows: list[tuple[str, str]],
) -> None:
    table = Table(["A", "B"], rows, empty="none")
    assert len(str(table).split("\n")) == (len(rows) + 1 if rows else 1)
    shown = table._repr_html_()
    assert shown.count("<tr>") == (len(rows) + 1 if rows else 0)
    assert set(re.findall(r"</?(\w+)", shown)) <= {"table", "thead", "tbody", "tr", "th", "td"}


@given(log=st.text(max_size=300))
def test_the_last_lines_of_a_log_are_few(log: str) -> None:
    assert len(_last_lines(log).splitlines()) <= 20


@given(text=st.text(max_size=100) | st.lists(st.lists(ANY, min_size=5, max_size=6)).map(
    lambda rows: (lambda out: (csv.writer(out).writerows(rows), out.getvalue())[1])(io.StringIO())
))  # fmt: skip
def test_gpus_are_found_in_any_text(text: str) -> None:
    gpus, driver = parse_nvidia_smi(text)
    assert [gpu.index for gpu in gpus] == list(range(len(gpus)))
    assert isinstance(driver, str)


STATUS = st.sampled_from(
    ["Pulling fs layer", "Waiting", "Downloading", "Extracting", "Pull complete", "Retrying in 5 seconds",
     "Already exists", "Download complete", "Status: done"]
)  # fmt: skip
SIZE = st.integers(0, 1 << 45)


@given(events=st.lists(st.fixed_dictionaries({"status": STATUS | TEXT}, optional={
    "id": st.sampled_from("abc"),
    "progressDetail": st.fixed_dictionaries({}, optional={"current": SIZE, "total": SIZE, "units": st.just("s")}),
}), max_size=12))  # fmt: skip
def test_a_pull_is_never_more_than_complete(events: list[dict[str, Any]]) -> None:
    meter = PullMeter("a:1", clock=iter(range(10_000)).__next__)
    for event in events:
        meter.take(event)
        progress = meter.progress()
        assert progress.fraction is None or 0 <= progress.fraction <= 1
        assert str(progress)


@given(said=ANY, tags=st.lists(ANY, max_size=5))
def test_every_failure_of_a_pull_is_an_error_of_ours(said: str, tags: list[str]) -> None:
    assert isinstance(pull_error("me/mine:1", said, tags), DockmlError)


@given(seconds=st.floats(0, 1e9), size=st.none() | st.floats(0, 1e18))
def test_times_and_sizes_can_be_told(seconds: float, size: float | None) -> None:
    assert format_seconds(seconds)
    assert format_size(size)


# --- what we have written ourselves, and somebody has changed --------------------------------------


@given(memory=st.builds(ImageMemory, TEXT, TEXT, TEXT, TEXT))
@settings(max_examples=20)
def test_a_memory_of_an_image_is_kept(memory: ImageMemory) -> None:
    memory.write("sha256:0123")
    assert ImageMemory.read("sha256:0123") == memory


@given(content=PART)
def test_a_changed_memory_of_an_image_is_none(content: bytes) -> None:
    (folders.cache_root() / "images").mkdir(exist_ok=True)
    (folders.cache_root() / "images" / "0123.json").write_bytes(content)
    found = ImageMemory.read("sha256:0123")
    assert all(isinstance(value, str) for value in vars(found).values())


@given(content=PART)
def test_a_changed_handover_hands_over_nothing_that_is_not_a_container(content: bytes) -> None:
    handover._file_for("connection.json").write_bytes(content)
    assert all(isinstance(info, dict) for info in handover.find_handed_over("connection.json"))
