"""A routed cell gives what the same cell gives in a kernel of its own: message by message.

Two kernels of one image are driven side by side in one folder: a `dockml-` kernel whose client we are
(direct), and an environment of a notebook (routed). Each cell of `corpus` is sent to both. What both say is
compared: the channel, the order, the parent, the type, the content, the metadata and the buffers.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session

from dockml_magic import planning
from dockml_magic.engine import DockerEngine
from tests.integration.conftest import Image, variables_of_its_own
from tests.integration.corpus import CORPUS, PRELUDE, Cell, Request, cell, execute
from tests.integration.kernels import Kernel
from tests.integration.notebook import Notebook, containers_of, python_with
from tests.waiting import wait_until

PATIENCE = 60.0
"""Seconds after which a message that does not come is a failure."""


@dataclass(frozen=True)
class Place:
    """An image, and the ipykernel of the notebook beside it."""

    image: str
    ipykernel: str
    has: frozenset[str]

    def __str__(self) -> str:
        return f"{self.image.partition('/')[2]}-{self.ipykernel}"


BARE = ("dockml/bare:3.11", frozenset({"", "python3", "await", "new", "no matplotlib"}))
PY27 = ("dockml/tensorflow:1.10.0-py27", frozenset({"", "python2", "no matplotlib"}))
PY36 = ("dockml/tensorflow:1.10.0", frozenset({"", "python3", "await", "matplotlib"}))
PLACES = [
    Place(image, ipykernel, has)
    for (image, has), ipykernel in (
        (BARE, "ipykernel7"),
        (BARE, "ipykernel6"),
        (PY27, "ipykernel7"),
        (PY36, "ipykernel6"),
    )
]
CASES = [
    pytest.param(place, cell, id=f"{place}-{cell.name}")
    for place in PLACES
    for cell in CORPUS
    if cell.needs in place.has
]

DEATH_PLACES = [
    place
    for place in PLACES
    if (place.image, place.ipykernel) in ((BARE[0], "ipykernel7"), (PY36[0], "ipykernel6"))
]
DEATHS = {
    "os._exit": "print('before', flush=True); time.sleep(0.5); os._exit(3)",
    "kill -9": "print('before', flush=True); time.sleep(0.5); os.kill(os.getpid(), 9)",
    "a crash": "print('before', flush=True); time.sleep(0.5); import ctypes; ctypes.string_at(0)",
}


NO_DROPS = (
    "import zmq\n"
    "_thread = get_ipython().kernel.iopub_socket.io_thread\n"
    "_thread.schedule(lambda to=_thread, option=zmq.XPUB_NODROP: to.socket.setsockopt(option, 1))\n"
    "del zmq, _thread"
)
"""Has a kernel wait for a front end that is late, as a routed one does: these tests run on busy machines."""


# --- what legitimately differs ----------------------------------------------------------------

HEADER_OF_A_PROCESS = {
    "msg_id": "made up by who sends",
    "session": "the kernel's process",
    "date": "the time",
    "username": "of the kernel's process; a notebook's own kernel has another user than a container",
}
METADATA_OF_A_PROCESS = {"started": "the time", "engine": "the kernel's process"}
CONTENT_OF_A_PROCESS = {"engine_uuid": "the kernel's process"}
OF_THE_NOTEBOOK = {
    "comm_info_request": "answered by the notebook's own kernel, which knows the comms of all",
}
"""Requests whose answers have the protocol version of the kernel that sends them."""
NOT_IN_THE_PROTOCOL = {
    "comm_reply": "ipykernel 4 answers what has no answer, when it aborts; front ends drop it",
}
TEXT = [
    (re.compile(r"\b0x[0-9a-f]{6,16}\b"), "0xADDRESS", "where in memory an object lies"),
    (
        re.compile(r"/ipykernel_\d+/"),
        "/ipykernel_PID/",
        "the kernel's process id, in a file's name",
    ),
]
FIGURES = re.compile(r"\d+(\.\d+)?(e[+-]\d+)? ?(ns|us|\u00b5s|\u03bcs|ms|s)\b")
"""How long something took, in the cells that print it."""


def without_differences(value: Any, *, figures: bool) -> Any:
    """Return (a part of) a content or of metadata without what legitimately differs."""
    if isinstance(value, str):
        for pattern, name, _reason in TEXT:
            value = pattern.sub(name, value)
        return FIGURES.sub("TIME", value) if figures else value
    if isinstance(value, Mapping):
        return {
            without_differences(key, figures=figures): without_differences(item, figures=figures)
            for key, item in value.items()
            if key not in CONTENT_OF_A_PROCESS
        }
    if isinstance(value, list):
        return [without_differences(item, figures=figures) for item in value]
    return value


@dataclass(frozen=True)
class Said:
    """A message of a kernel, without ids and times."""

    parent: str
    type: str
    content: Any
    metadata: Any
    buffers: tuple[bytes, ...]
    header: Mapping[str, Any]

    @property
    def stream(self) -> object:
        """What adjacent messages have in common that one kernel may split otherwise than another."""
        if self.type != "stream" or self.buffers or set(self.content) != {"name", "text"}:
            return id(self)
        return self.parent, self.content["name"]

    @property
    def is_of_stderr(self) -> bool:
        """It is what was written to stderr."""
        return self.type == "stream" and self.content["name"] == "stderr"


def merged(messages: Sequence[Said]) -> list[Said]:
    """Return the messages with adjacent texts of one stream as one: their sizes are a matter of time."""
    whole: list[Said] = []
    for _, group in groupby(messages, key=lambda said: said.stream):
        parts = list(group)
        if len(parts) == 1:
            whole += parts
        else:
            text = "".join(part.content["text"] for part in parts)
            whole.append(replace(parts[0], content={**parts[0].content, "text": text}))
    return whole


def in_any_order(messages: Sequence[Said]) -> list[Said]:
    """Return the messages with the lines of each stream sorted, and put behind all others."""
    texts: Counter[object] = Counter()
    lines: dict[object, list[str]] = {}
    first: dict[object, Said] = {}
    others = []
    for said in merged(messages):
        if said.type == "stream":
            first.setdefault(said.stream, said)
            texts[said.stream] += 1
            lines.setdefault(said.stream, []).append(said.content["text"])
        else:
            others.append(said)
    return others + [
        replace(said, content={**said.content, "text": sorted("".join(lines[key]).splitlines())})
        for key, said in first.items()
    ]


# --- a front end ------------------------------------------------------------------------------


@dataclass
class Record:
    """All that a kernel said, channel by channel."""

    iopub: list[Said] = field(default_factory=list)
    shell: list[Said] = field(default_factory=list)
    stdin: list[Said] = field(default_factory=list)

    def printed(self, text: str) -> bool:
        """Tell whether a text was printed."""
        texts = (said.content["text"] for said in self.iopub if said.type == "stream")
        return not text or any(text in printed for printed in texts)


class FrontEnd:
    """Sends messages to a kernel, answers its questions, and keeps all that it says.

    Parameters
    ----------
    manager : KernelManager
        Its kernel runs.
    """

    def __init__(self, manager: KernelManager) -> None:
        self._session = Session(
            key=manager.session.key, signature_scheme=manager.session.signature_scheme
        )
        identity = self._session.bsession
        manager.context.rcvhwm = 0  # we are slower than what we drive, and nothing may be dropped
        self._channels = {
            "iopub": manager.connect_iopub(),
            "shell": manager.connect_shell(identity=identity),
            "stdin": manager.connect_stdin(identity=identity),
        }
        self._poller = zmq.Poller()
        for socket in self._channels.values():
            self._poller.register(socket, zmq.POLLIN)
        self.next_count = 1
        self._record = Record()
        self._sent: dict[str, Mapping[str, Any]] = {}
        self._fences: set[str] = set()
        self._replied: dict[str, Mapping[str, Any]] = {}
        self._idle: set[str] = set()
        self._answers: list[str] = []
        self._cell = cell("getting ready")
        self._make_ready()

    def close(self) -> None:
        """Close the sockets."""
        for socket in self._channels.values():
            socket.close(linger=0)

    def run(self, cell: Cell) -> Record:
        """Send a cell and return all that came of it."""
        self._begin(cell)
        for step in cell.steps:
            sent = {self.send(request): request for request in step}
            self.wait(partial(self._are_done, sent))
            self.fence(cell.ends_with if step is cell.steps[-1] else "")
        assert not self._answers, f"nobody asked for {self._answers}"
        return self._record

    def run_until(self, cell: Cell, seen: Callable[[Record], bool]) -> Record:
        """Send a cell that does not come to its end, and return what came up to a moment."""
        self._begin(cell)
        for request in cell.steps[0]:
            self.send(request)
        self.wait(lambda: seen(self._record))
        return self._record

    def _begin(self, cell: Cell) -> None:
        self._cell = cell
        self._record = Record()
        self._sent.clear()
        self._answers = list(cell.answers)

    def send(self, request: Request) -> str:
        """Send a request and return its id."""
        header = self._session.msg_header(request.msg_type)
        self._sent[header["msg_id"]] = header
        self._session.send(
            self._channels["shell"],
            {
                "header": header,
                "parent_header": {},
                "metadata": dict(request.metadata),
                "content": dict(request.content),
            },
            buffers=list(request.buffers),
        )
        return str(header["msg_id"])

    def fence(self, text: str = "") -> None:
        """Return when a text was printed, and all that was published up to now has arrived.

        Old kernels abort what comes within a tenth of a second after an error.
        """
        self.wait(lambda: self._record.printed(text))
        request = execute("", silent=True, store_history=False)
        status = "aborted"
        while status == "aborted":
            fence = self.send(request)
            del self._sent[fence]
            self._fences.add(fence)
            self.wait(partial(self._are_done, {fence: request}))
            status = self._replied[fence]["status"]

    def wait(self, seen: Callable[[], object]) -> None:
        """Take in messages until a condition holds."""
        while not seen():
            events = self._poller.poll(round(PATIENCE * 1000))
            assert events, f"nothing more came within {PATIENCE:.0f} s after {self.tail()}"
            for channel, socket in self._channels.items():
                if any(socket is ready for ready, _ in events):
                    self._take_all(channel, socket)

    def tail(self) -> str:
        """Return the last that came, in short."""
        return "; ".join(
            f"{channel}: {[said.type for said in messages[-5:]]}"
            for channel, messages in vars(self._record).items()
        )

    def _are_done(self, sent: Mapping[str, Request]) -> bool:
        return all(
            msg_id in self._idle and (msg_id in self._replied or not request.is_answered)
            for msg_id, request in sent.items()
        )

    def _take_all(self, channel: str, socket: zmq.Socket[bytes]) -> None:
        while True:
            _, message = self._session.recv(socket)
            if message is None:
                return
            self._take(channel, message)

    def _take(self, channel: str, message: Mapping[str, Any]) -> None:
        content, parent_id = message["content"], message["parent_header"].get("msg_id", "")
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            self._idle.add(parent_id)
        if channel == "shell":
            self._replied[parent_id] = content
        if parent_id in self._fences:
            return
        if message["msg_type"] == "execute_reply" and "execution_count" in content:
            self.next_count = max(self.next_count, content["execution_count"] + 1)
        metadata = {k: v for k, v in message["metadata"].items() if k not in METADATA_OF_A_PROCESS}
        header = {k: v for k, v in message["header"].items() if k not in HEADER_OF_A_PROCESS}
        if message["parent_header"].get("msg_type") in OF_THE_NOTEBOOK:
            del header["version"]
        said = Said(
            parent=self._name_of_parent(message["parent_header"]),
            type=message["msg_type"],
            content=without_differences(content, figures=self._cell.figures),
            metadata=without_differences(metadata, figures=self._cell.figures),
            buffers=tuple(bytes(buffer) for buffer in message["buffers"]),
            header=header,
        )
        is_left_out = self._cell.complains and said.is_of_stderr
        if not is_left_out and said.type not in NOT_IN_THE_PROTOCOL:
            getattr(self._record, channel).append(said)
        if channel == "stdin":
            assert self._answers, f"a question too many: {content}"
            answer = {"value": self._answers.pop(0)}
            self._session.send(
                self._channels["stdin"], "input_reply", answer, parent=dict(message["header"])
            )

    def _name_of_parent(self, header: Mapping[str, Any]) -> str:
        for i, sent in enumerate(self._sent.values()):
            if sent["msg_id"] == header.get("msg_id"):
                changed = {
                    key for key in {*sent, *header} - {"date"} if header.get(key) != sent.get(key)
                }
                return f"request {i}" + (f", changed in {sorted(changed)}" if changed else "")
        return f"a {header.get('msg_type', 'nothing')} that is not ours"

    def _make_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE
        info = Request("kernel_info_request", {})
        while not any(msg_id in self._idle and msg_id in self._replied for msg_id in self._sent):
            assert time.monotonic() < deadline, "the kernel does not answer"
            self.send(info)
            if self._poller.poll(100):
                for channel, socket in self._channels.items():
                    self._take_all(channel, socket)
        self.wait(lambda: all(msg_id in self._replied for msg_id in self._sent))
        self.fence()


# --- both -------------------------------------------------------------------------------------


class Pair:
    """A direct kernel and a routed one, of the same image, in the same folder."""

    def __init__(self, place: Place, folder: Path, variables: Mapping[str, str]) -> None:
        self.place = place
        self._folder = folder
        self._variables = variables
        self._running = ExitStack()
        self.renew()

    def renew(self) -> None:
        """Start both anew."""
        self.close()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._variables.items():
                patch.setenv(name, value)
            patch.setattr(planning, "_engines", {})
            self.kernel = Kernel.of(self.place.image)
            self._running.callback(self.kernel.stop)
            self.kernel.start(cwd=str(self._folder))
        self.direct = FrontEnd(self.kernel.manager)
        self._running.callback(self.direct.close)
        self.notebook = self._running.enter_context(
            Notebook(self._folder, python_with(self.place.ipykernel), self._variables)
        )
        self.notebook.ok("%load_ext dockml_magic")
        self.notebook.use(self.place.image)
        self.notebook.client.stop_channels()
        self.routed = FrontEnd(self.notebook.manager)
        self._running.callback(self.routed.close)
        self.routed.next_count = 3  # the two lines above were cells
        self.level()
        self.direct.run(cell("no drops", NO_DROPS))
        self.level()
        for side in self.direct, self.routed:
            side.run(cell("prelude", PRELUDE))
        self.is_usable = True

    def close(self) -> None:
        """End both."""
        self._running.close()
        wait_until(lambda: not containers_of(self._folder), what="no container")

    def level(self) -> None:
        """Bring both to the same execution count."""
        while self.direct.next_count != self.routed.next_count:
            behind = min(self.direct, self.routed, key=lambda side: side.next_count)
            behind.run(cell("level", "pass"))


@pytest.fixture(scope="module")
def pairs(
    engine: DockerEngine,
    image: Image,
    lasting_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Place], Pair]]:
    """Give a function that returns the pair of kernels for a place; one pair at a time runs."""
    running: list[Pair] = []
    own = tmp_path_factory.mktemp("own")
    with variables_of_its_own(own / "own", engine, lasting_cache) as variables:

        def pair_for(place: Place) -> Pair:
            if running and running[-1].place != place:
                running.pop().close()
            if not running:
                image(place.image)
                running.append(Pair(place, tmp_path_factory.mktemp("both"), variables))
            (pair,) = running
            if not pair.is_usable:
                pair.renew()
            pair.level()
            return pair

        try:
            yield pair_for
        finally:
            for pair in running:
                pair.close()


# --- how they differ --------------------------------------------------------------------------


def short(value: Any, other: Any) -> str:
    """Return what a reader needs of a value to see how it differs from another."""
    text, beside = (v if isinstance(v, str) else repr(v) for v in (value, other))
    at = next((i for i, (a, b) in enumerate(zip(text, beside, strict=False)) if a != b), 0)
    start = max(0, at - 60)
    cut = text[start : at + 140]
    return f"{'…' if start else ''}{cut!r} ({len(text)} characters)"


def describe(a: Said | None, b: Said | None) -> str:
    """Return how two messages differ."""
    if a is None or b is None:
        there = a or b
        assert there is not None
        return f"only {'direct' if a else 'routed'}: {there.type} {repr(there.content)[:300]}"
    if a.type != b.type:
        return f"direct {a.type} {repr(a.content)[:200]}, routed {b.type} {repr(b.content)[:200]}"
    lines = [a.type]
    for name in ("parent", "header", "content", "metadata", "buffers"):
        one, other = getattr(a, name), getattr(b, name)
        if one != other:
            lines.append(f"    {name}: direct {short(one, other)}")
            lines.append(f"    {name}: routed {short(other, one)}")
    return "\n".join(lines)


def differences(cell: Cell, direct: Record, routed: Record) -> list[str]:
    """Return how what two kernels said of a cell differs, in words."""
    found = []
    for channel in ("iopub", "shell", "stdin"):
        order = in_any_order if cell.threads and channel == "iopub" else merged
        pairs = zip_longest(order(getattr(direct, channel)), order(getattr(routed, channel)))
        found += [f"{channel} {i}: {describe(a, b)}" for i, (a, b) in enumerate(pairs) if a != b]
    return found


# --- the tests --------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "cell"), CASES)
def test_routed_gives_what_direct_gives(
    pairs: Callable[[Place], Pair], place: Place, cell: Cell
) -> None:
    pair = pairs(place)
    pair.is_usable = False  # unless both come to their end
    direct = pair.direct.run(cell)
    routed = pair.routed.run(cell)
    pair.is_usable = True
    found = differences(cell, direct, routed)
    if found:
        pytest.fail("\n".join([f"{len(found)} differ", *found[:6]]), pytrace=False)


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("place", DEATH_PLACES, ids=str)
def test_a_kernel_that_dies_has_said_the_same_and_the_notebook_lives(
    pairs: Callable[[Place], Pair], place: Place, death: str
) -> None:
    pair = pairs(place)
    pair.is_usable = False
    dying = cell(death, DEATHS[death])
    direct = pair.direct.run_until(dying, lambda record: record.printed("before"))
    routed = pair.routed.run(dying)
    end = len(direct.iopub)
    said = replace(routed, iopub=routed.iopub[:end], shell=[])
    assert differences(dying, direct, said) == []
    assert [(m.type, m.parent) for m in routed.iopub[end:]] == [
        ("error", "request 0"),
        ("status", "request 0"),
    ]
    error, idle = (m.content for m in routed.iopub[end:])
    assert error["ename"] == "KernelDiedError"
    assert idle == {"execution_state": "idle"}
    (reply,) = routed.shell
    assert reply.content == {
        "status": "error",
        "execution_count": pair.routed.next_count - 1,
        **error,
    }
    assert_the_notebook_lives(pair.routed)


@pytest.mark.parametrize("place", DEATH_PLACES, ids=str)
def test_a_kernel_that_exits_has_said_the_same_and_the_notebook_lives(
    pairs: Callable[[Place], Pair], place: Place
) -> None:
    pair = pairs(place)
    pair.is_usable = False
    leaving = cell("exit", "print('before'); exit()")

    def over(record: Record) -> bool:
        idle = {"execution_state": "idle"}
        return bool(record.shell) and any(said.content == idle for said in record.iopub)

    direct, routed = (side.run_until(leaving, over) for side in (pair.direct, pair.routed))
    assert differences(leaving, direct, routed) == []
    (reply,) = routed.shell
    assert [item["source"] for item in reply.content["payload"]] == ["ask_exit"]
    assert_the_notebook_lives(pair.routed)


def assert_the_notebook_lives(routed: FrontEnd) -> None:
    """Assert that cells say that their kernel is dead, and that the notebook's own one is not."""

    def is_over() -> bool:
        (reply,) = routed.run(cell("after its end", "6 * 7")).shell
        return bool(reply.content["status"] == "error")

    wait_until(is_over, what="a cell to fail")
    own = routed.run(cell("the notebook's own kernel", "%docker_env local\n6 * 7"))
    (result,) = (said for said in own.iopub if said.type == "execute_result")
    assert result.content["data"] == {"text/plain": "42"}
