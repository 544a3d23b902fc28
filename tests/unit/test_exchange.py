"""Values between processes of this machine that stand for kernels in containers, on every Python that is here."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from dockml_magic import doors, exchange, segments
from dockml_magic.errors import (
    ConfigError,
    DockmlError,
    ExchangeError,
    KernelDiedError,
    KernelError,
    NameMissingError,
    NoMemoryError,
    ValueRefusedError,
)
from dockml_magic.exchange import ContainerSide, OwnKernel, hand_over, hand_several_over
from dockml_magic.folders import RuntimeFolder
from tests.unit.test_supervisor import VERSIONS, the_python
from tests.waiting import interrupt_when, wait_until

SHELL = Path(__file__).with_name("stand_in_shell.py")
SMALL = {"n": [1, "two", None], "deep": {"x": 1.5}}
BIG = b"ab" * 500_000


class StandIn:
    """A kernel in a container, as its relay and its container: a process that answers one after the other."""

    is_ipython = True

    def __init__(self, python: str, folder: Path, *, shares_files: bool = True) -> None:
        self.kernel_info = {"language_info": {"version": python.rpartition("python")[2] or "3"}}
        self.session = folder.name
        self.shares_files = shares_files
        self.runtime = RuntimeFolder(folder)
        self.runtime.make()
        self.process = subprocess.Popen(
            [python, "-u", str(SHELL)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.interrupts = 0
        self._unheard = 0
        self._read = b""
        self._lock = threading.RLock()
        self.asked: list[Mapping[str, Any]] = []

    def give_file(self, name: str, content: bytes) -> PurePosixPath:
        self.runtime.write(name, content)
        return PurePosixPath(self.runtime.shared / name)

    def evaluate(self, expression: str, tell: Callable[[str], None] = lambda _: None) -> str:
        return str(self.talk({"expression": expression}, lambda: False)["text"])

    def ask(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        buffers: Sequence[bytes] = (),
        *,
        interrupted: Callable[[], bool] = lambda: True,
        tell: Callable[[str], None] = lambda _: None,
    ) -> tuple[dict[str, Any], list[Any]]:
        self.asked.append(content)
        pieces = [base64.b64encode(piece).decode() for piece in buffers]
        asked = {"message": msg_type, "content": content, "buffers": pieces}
        told = self.talk(asked, interrupted)
        assert told["type"] == msg_type.replace("request", "reply")
        return told["content"], [memoryview(base64.b64decode(piece)) for piece in told["buffers"]]

    def run(self, code: str) -> None:
        self.talk({"run": code}, lambda: True)

    def value(self, expression: str) -> Any:
        hexadecimal = (
            f"__import__('binascii').hexlify(__import__('json').dumps({expression}).encode())"
        )
        found = str(self.talk({"expression": hexadecimal}, lambda: True)["text"])
        return json.loads(bytes.fromhex(found.lstrip("b").strip("'")))

    def talk(self, asked: dict[str, Any], interrupted: Callable[[], bool]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self._lock:
            line = json.dumps(asked).encode() + b"\n"
            stop: KeyboardInterrupt | None = None
            while True:
                try:
                    if line:  # here, as an interrupt may come before the next line does
                        with contextlib.suppress(BrokenPipeError):
                            self.process.stdin.write(line)
                            self.process.stdin.flush()
                        line = b""
                    answer = self._read_answer()
                except KeyboardInterrupt as error:
                    stop = error
                    line = b""
                    if not interrupted():
                        self._unheard += 1
                        raise
                    self.interrupts += 1
                    self.process.send_signal(signal.SIGINT)
                    continue
                if answer:
                    if self._unheard:
                        self._unheard -= 1
                        continue
                    if stop is not None:
                        raise stop
                    told: dict[str, Any] = json.loads(answer)
                    assert "raised" not in told, told["raised"]
                    return told

    def _read_answer(self) -> bytes:
        """Return the next line of the kernel, nothing where there is none yet."""
        assert self.process.stdout is not None
        if b"\n" not in self._read:
            if not select.select([self.process.stdout], [], [], 0.05)[0]:
                return b""
            piece = os.read(self.process.stdout.fileno(), 1 << 20)
            if not piece:
                raise KernelDiedError("The kernel died.")
            self._read += piece
        answer, newline, rest = self._read.partition(b"\n")
        if not newline:
            return b""
        self._read = rest
        return bytes(answer)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.runtime.remove()


Start = Callable[..., StandIn]


@pytest.fixture(autouse=True)
def keeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[doors.Doorkeeper]:
    """A doorkeeper, and with it memory, for each test."""
    fresh = doors.Doorkeeper()
    monkeypatch.setattr(exchange, "KEEPER", fresh)
    yield fresh
    fresh.close()


@pytest.fixture
def start(short_folder: Path) -> Iterator[Start]:
    started: list[StandIn] = []

    def start_one(version: str = "3.11", *, shares_files: bool = True) -> StandIn:
        folder = short_folder / f"k{len(started)}"
        kernel = StandIn(the_python(version), folder, shares_files=shares_files)
        kernel.kernel_info = {"language_info": {"version": version}}
        started.append(kernel)
        return kernel

    yield start_one
    for kernel in started:
        kernel.end()


def side_of(kernel: StandIn) -> ContainerSide:
    return ContainerSide(kernel.session, kernel, kernel)  # type: ignore[arg-type]


@pytest.fixture
def pair(start: Start) -> tuple[StandIn, ContainerSide, StandIn, ContainerSide]:
    one, other = start(), start()
    return one, side_of(one), other, side_of(other)


# --- what arrives -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["memory", "channel"])
@pytest.mark.parametrize("version", VERSIONS)
def test_values_go_in_and_out_of_every_python(start: Start, version: str, way: str) -> None:
    kernel = start(version, shares_files=way == "memory")
    side = side_of(kernel)
    own: dict[str, Any] = {"small": SMALL, "big": BIG}
    done = hand_over(OwnKernel(own), side, {"small": "s", "big": "b"})
    assert (done.shared, done.bytes > len(BIG)) == (way == "memory", True)
    assert kernel.value("[s, len(b), type(b).__name__]") == [
        SMALL,
        len(BIG),
        "str" if version == "2.7" else "bytes",
    ]
    assert done.types == {"s": "dict", "b": "str" if version == "2.7" else "bytes"}
    kernel.run("s['n'].append(b)")
    hand_over(side, OwnKernel(own), {"s": "back"})
    assert own["back"]["n"][:3] == SMALL["n"]
    assert own["back"]["n"][3] in (BIG, BIG.decode())
    assert own["back"]["deep"] == SMALL["deep"]


@pytest.mark.parametrize(
    ("old", "new"), [("2.7", "3.13"), ("3.13", "2.7"), ("3.6", "3.13"), ("3.13", "3.6")]
)
def test_values_go_from_one_python_to_another(start: Start, old: str, new: str) -> None:
    one, other = start(old), start(new)
    one.run("big = bytearray(b'ab' * 500000); small = {'a': [1, 2]}")
    done = hand_over(side_of(one), side_of(other), {"big": "large", "small": "small"})
    assert done.shared
    assert other.value("[len(large), small, type(large).__name__]") == [
        len(BIG),
        {"a": [1, 2]},
        "bytearray",
    ]


@pytest.mark.parametrize("ways", list(itertools.product([True, False], repeat=2)))
def test_values_go_between_kernels_with_shared_memory_and_without(
    start: Start, ways: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "PIECE", 300_000)
    one, other = (start(shares_files=way) for way in ways)
    one.run(f"big = {BIG[:2]!r} * {len(BIG) // 2}; small = [1]")
    done = hand_over(side_of(one), side_of(other), {"big": "b", "small": "s"})
    assert done.shared is all(ways)
    assert other.value("[len(b), b == b'ab' * 500000, s]") == [len(BIG), True, [1]]
    for kernel in (one, other):
        held = "__import__('sys').modules['dockml_values.agent']._held"
        assert kernel.value(f"len({held})") == 0


def test_this_process_does_not_grow_by_what_others_hand_over(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide],
) -> None:
    one, source, other, target = pair
    one.run("big = bytearray(256 << 20)")
    hand_over(source, target, {"big": "warm"})
    before = resident()
    for _ in range(3):
        assert hand_over(source, target, {"big": "big"}).shared
    assert resident() - before < 16 << 20
    assert other.value("len(big)") == 256 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_copy_is_no_shared_memory(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide], keeper: doors.Doorkeeper
) -> None:
    one, source, _, target = pair
    one.run("big = bytearray(1 << 20)")
    assert not hand_over(source, target, {"big": "big"}, copy=True).shared
    assert not any(s.is_used() for s in keeper.pool._segments)


def test_where_the_socket_cannot_be_reached_values_go_over_the_channel(start: Start) -> None:
    kernel = start()
    side = side_of(kernel)
    kernel.run("import socket\ndef refuse(*_): raise IOError('SELinux')\nsocket.socket = refuse")
    done = hand_over(OwnKernel({"x": BIG}), side, {"x": "x"})
    assert not done.shared
    assert not side.shares
    assert kernel.value("len(x)") == len(BIG)


def test_where_the_container_took_the_socket_away_values_go_over_the_channel(start: Start) -> None:
    kernel = start()
    side = side_of(kernel)
    hand_over(OwnKernel({"x": 1}), side, {"x": "x"})
    (name,) = (p.name for p in kernel.runtime.shared.iterdir() if p.is_socket())
    (kernel.runtime.shared / name).rename(kernel.runtime.shared / "moved")
    hand_over(OwnKernel({"x": BIG}), side, {"x": "x"})
    assert kernel.value("len(x)") == len(BIG)


def test_a_restarted_kernel_gets_what_answers_in_it_again(start: Start) -> None:
    kernel = start()
    first = side_of(kernel)
    hand_over(OwnKernel({"x": 1}), first, {"x": "x"})
    first.close()
    kernel.run("import sys\nfor n in [n for n in sys.modules if 'dockml' in n]: del sys.modules[n]")
    hand_over(OwnKernel({"x": BIG}), side_of(kernel), {"x": "x"})
    assert kernel.value("len(x)") == len(BIG)
    assert len([p for p in kernel.runtime.shared.iterdir() if p.is_socket()]) == 1


def test_two_notebooks_hand_over_to_the_same_kernel(start: Start) -> None:
    kernel = start()
    sides = [side_of(kernel), side_of(kernel)]
    for number, side in enumerate(sides):
        hand_over(OwnKernel({"x": BIG}), side, {"x": f"x{number}"})
        hand_over(side, OwnKernel({}), {f"x{number}": "back"})
    assert kernel.value("[len(x0), len(x1)]") == [len(BIG)] * 2


def test_threads_hand_over_at_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = start()
    side = side_of(kernel)
    evaluate, made_ready = kernel.evaluate, []

    def evaluate_slowly(*arguments: Any) -> str:
        made_ready.append(arguments)
        time.sleep(0.2)  # all of them come here, if they may
        return evaluate(*arguments)

    monkeypatch.setattr(kernel, "evaluate", evaluate_slowly)
    threads = [
        threading.Thread(target=lambda n=n: hand_over(OwnKernel({"x": BIG}), side, {"x": f"x{n}"}))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kernel.value("sum(len(globals()['x%d' % n]) for n in range(8))") == 8 * len(BIG)
    assert len(made_ready) == 1


# --- what does not ----------------------------------------------------------------------------


def test_all_missing_names_are_named_and_nothing_is_handed_over(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide],
) -> None:
    one, source, other, target = pair
    one.run("here = 1")
    with pytest.raises(NameMissingError) as missing:
        hand_over(source, target, {"gone": "a", "here": "b", "lost": "c"})
    assert missing.value.names == ("gone", "lost")
    with pytest.raises(NameMissingError, match="'a' in the notebook's own kernel"):
        hand_over(OwnKernel({}), target, {"a": "a"})
    assert other.value("sorted({'a', 'b', 'c'} & set(globals()))") == []


def test_what_is_refused_says_so_and_nothing_is_handed_over(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide],
) -> None:
    one, source, other, target = pair
    one.run("good = 1; bad = [object()]")
    with pytest.raises(ValueRefusedError, match=r"bad.*object"):
        hand_over(source, target, {"good": "good", "bad": "bad"})
    with pytest.raises(ValueRefusedError, match=r"o.*object"):
        hand_over(OwnKernel({"o": object()}), target, {"o": "o"})
    assert other.value("'good' in globals()") is False


@pytest.mark.parametrize(
    "names", [{}, {"a b": "x"}, {"x": "1x"}, {"x": "for"}, {"a": "x", "b": "x"}, {"x": "x.y"}]
)
def test_names_are_checked(names: dict[str, str]) -> None:
    namespace: dict[str, Any] = {"x": 1, "a": 1, "b": 2}
    with pytest.raises(ConfigError):
        hand_over(OwnKernel(namespace), OwnKernel(namespace), names)


def test_a_name_that_python_2_cannot_have_is_refused(start: Start) -> None:
    with pytest.raises(ConfigError, match="Python 2"):
        hand_over(OwnKernel({"x": 1}), side_of(start("2.7")), {"x": "größe"})


def test_another_language_is_refused_in_one_line(start: Start) -> None:
    kernel = start()
    kernel.is_ipython = False
    with pytest.raises(ExchangeError, match="no Python under IPython"):
        hand_over(OwnKernel({"x": 1}), side_of(kernel), {"x": "x"})
    assert kernel.asked == []


def test_too_much_for_this_machine_is_refused_with_numbers(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide],
    monkeypatch: pytest.MonkeyPatch,
    keeper: doors.Doorkeeper,
) -> None:
    one, source, other, target = pair
    monkeypatch.setattr(segments, "find_available_memory", lambda: segments._RESERVE + (1 << 20))
    one.run("big = bytearray(3 << 20)")
    with pytest.raises(NoMemoryError, match=r"3 MiB.*1 MiB free") as refused:
        hand_over(source, target, {"big": "big"})
    assert refused.value.free == 1 << 20
    with pytest.raises(NoMemoryError):
        hand_over(OwnKernel({"big": bytearray(3 << 20)}), target, {"big": "big"})
    assert len(keeper.pool) == 0
    assert other.value("'big' in globals()") is False


@pytest.mark.parametrize("way", [True, False])
def test_too_much_for_the_container_is_refused_before_it_is_touched(
    start: Start, way: bool, keeper: doors.Doorkeeper
) -> None:
    one, other = start(shares_files=way), start()
    one.run("big = bytearray(64 << 20); x = 1")
    source, target = side_of(one), side_of(other)
    hand_over(source, target, {"x": "x"})
    one.run(
        "import sys; agent = sys.modules['dockml_values.agent']\n"
        "agent.find_room = lambda: (5 << 20, 300 << 20)"
    )
    with pytest.raises(NoMemoryError, match=r"64 MiB more.*5 MiB left.*300 MiB.") as refused:
        hand_over(source, target, {"big": "big"})
    assert "--memory" in refused.value.hint
    assert all(s.touched == 0 for s in keeper.pool._segments)


@pytest.mark.parametrize("way", ["out", "in, copied"])
def test_memory_that_is_kept_for_speed_goes_before_a_value_is_refused(
    start: Start, keeper: doors.Doorkeeper, way: str
) -> None:
    kernel = start()
    side = side_of(kernel)
    own = OwnKernel({"value": bytes(1 << 20)})
    large = 64 << 20  # from there on the sender keeps its mapping
    kernel.run(f"value = bytes({large})")
    for _ in range(2):
        hand_over(side, own, {"value": "was"})
    keeper.lease(1 << 20, frozenset({OwnKernel.party, "other"})).close()
    idle = set(keeper.pool._segments)
    kernel.run(
        "import sys; agent = sys.modules['dockml_values.agent']; kept = [len(agent._mappings)]\n"
        "def find_room():\n"
        "    kept.append(len(agent._mappings))\n"
        "    return (1000 if len(kept) == 2 else 1 << 30), 2 << 30\n"
        "agent.find_room = find_room; value = bytes(1 << 20)"
    )
    if way == "out":
        hand_over(side, own, {"value": "now"})
    else:
        hand_over(own, side, {"value": "now"}, copy=True)
    assert kernel.value("kept") == [1, 1, 0]
    assert [s.parties for s in idle & set(keeper.pool._segments)] == [{OwnKernel.party, "other"}]


@pytest.mark.parametrize("way", [True, False])
def test_a_text_that_is_too_much_for_the_container_is_refused_however_many_have_fitted(
    start: Start, way: bool
) -> None:
    kernel = start(shares_files=way)
    side = side_of(kernel)
    hand_over(OwnKernel({"x": "before"}), side, {"x": "x"})
    kernel.run(
        "import sys; agent = sys.modules['dockml_values.agent']; asked = []\n"
        "def find_room():\n"
        "    asked.append(1)\n"
        "    return (1000 if len(asked) in (2, 4, 5) else 1 << 30), 2 << 30\n"
        "agent.find_room = find_room"
    )
    if way:
        kernel.run(
            "asked.append(0)"
        )  # else there is memory for the payload that is looked for first
    value = ["x" * (5 << 20), "y" * (5 << 20)]
    with pytest.raises(NoMemoryError, match=r"5 MiB more"):
        hand_over(OwnKernel({"x": value}), side, {"x": "x"})
    assert kernel.value("x") == "before"


# --- interrupts and deaths --------------------------------------------------------------------

SLOW = """
import sys, time
agent = sys.modules['dockml_values.agent']
def slow(*_, **__):
    open({path!r}, 'w').close()
    time.sleep(60)
agent.{what} = slow
"""


@pytest.mark.parametrize(
    ("way", "what"),
    [
        ("memory", "pack"),
        ("memory", "unpack"),
        ("memory", "write"),
        ("channel", "pack"),
        ("channel", "unpack"),
        ("channel", "_write_into"),
    ],
)
def test_an_interrupt_stops_a_hand_over_and_leaves_the_names_as_they_were(
    start: Start, tmp_path: Path, way: str, what: str
) -> None:
    one, other = start(shares_files=way == "memory"), start(shares_files=way == "memory")
    source, target = side_of(one), side_of(other)
    one.run("x = bytearray(1 << 20); y = 1")
    other.run("x = 'before'")
    hand_over(source, target, {"y": "y"})
    for kernel in (one, other):
        hand_over(OwnKernel({"y": 1}), source if kernel is one else target, {"y": "y"})
        kernel.run(SLOW.format(path=str(tmp_path / "slow"), what=what))
    thread = interrupt_when((tmp_path / "slow").exists)
    with pytest.raises(KeyboardInterrupt):
        hand_over(source, target, {"x": "x"})
    thread.join()
    assert one.interrupts + other.interrupts == 1
    assert other.value("x") == "before"
    assert held_by(one) == held_by(other) == 0


def held_by(kernel: StandIn) -> int:
    """Return how much waits in a kernel to be read or bound."""
    count = kernel.value("len(__import__('sys').modules['dockml_values.agent']._held)")
    assert isinstance(count, int)
    return count


def test_who_waits_for_a_busy_kernel_over_the_channel_interrupts_nothing_of_others(
    start: Start, tmp_path: Path
) -> None:
    kernel = start(shares_files=False)
    side = side_of(kernel)
    hand_over(OwnKernel({"x": 1}), side, {"x": "x"})
    kernel.run(
        "import os, sys, time; agent = sys.modules['dockml_values.agent']\n"
        "real = agent._OPERATIONS['drop']\n"
        f"def busy(request):\n open({str(tmp_path / 'busy')!r}, 'w').close()\n"
        f" while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
        " return real(request)\n"
        "agent._OPERATIONS['drop'] = busy"
    )
    kernel._lock = threading.RLock()
    thread = interrupt_when((tmp_path / "busy").exists, then=tmp_path / "go")
    with pytest.raises(KeyboardInterrupt):
        hand_over(side, OwnKernel({}), {"x": "x"})
    thread.join()
    assert kernel.interrupts == 0


# --- several at once --------------------------------------------------------------------------

FAILS = """
import sys
agent = sys.modules['dockml_values.agent']
def fail(*_, **__):
    raise MemoryError
agent.unpack = fail
"""


@pytest.mark.parametrize("way", ["memory", "channel"])
@pytest.mark.parametrize("last", ["other", "own"])
def test_where_one_target_fails_no_other_gets_anything(start: Start, way: str, last: str) -> None:
    one, other, third = start(), start(), start(shares_files=way == "memory")
    own: dict[str, Any] = {"x": "before"}
    source, target, failing = side_of(one), side_of(other), side_of(third)
    one.run("x = bytearray(1 << 20); g = (n for n in range(3)); s = 'after'")
    for side in (target, failing):
        hand_over(OwnKernel({"x": "before"}), side, {"x": "x"})
    third.run(FAILS)
    ways: list[Any] = [(source, target, {"x": "x", "g": "g"}), (source, failing, {"s": "x"})]
    ways.insert(1 if last == "other" else 2, (source, OwnKernel(own), {"s": "x"}))
    with pytest.raises(ExchangeError):
        hand_several_over(ways)
    assert own == {"x": "before"}
    assert other.value("x") == "before"
    assert other.value("'g' in globals()") is False
    assert held_by(other) == held_by(third) == 0
    assert target._door is not None
    assert target._door.tickets == {}


def test_several_targets_get_theirs_and_iterators_go_on(start: Start) -> None:
    one, other, third = start(), start(), start(shares_files=False)
    own: dict[str, Any] = {}
    source = side_of(one)
    one.run("x = bytearray(1 << 20); g = (n for n in range(3)); s = 'text'")
    done = hand_several_over(
        [
            (source, side_of(other), {"x": "x", "g": "g"}),
            (source, side_of(third), {"x": "x", "s": "t"}),
            (source, OwnKernel(own), {"s": "t"}),
        ]
    )
    assert [hand.shared for hand in done] == [True, False, False]
    assert [dict(hand.types) for hand in done[1:]] == [
        {"x": "bytearray", "t": "str"},
        {"t": "str"},
    ]
    assert other.value("[len(x), list(g)]") == [1 << 20, [0, 1, 2]]
    assert third.value("[len(x), t]") == [1 << 20, "text"]
    assert own == {"t": "text"}
    assert held_by(other) == held_by(third) == 0


def test_one_target_is_asked_once_for_each_source_and_binds_all_at_once(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide],
) -> None:
    one, source, other, target = pair
    one.run("x = 1")
    hand_several_over(
        [
            (source, target, {"x": "a"}),
            (OwnKernel({"y": 2, "g": iter([1])}), target, {"y": "b", "g": "g"}),
        ]
    )
    assert len(one.asked) == 1
    assert len(other.asked) == 2
    assert other.value("[a, b, list(g)]") == [1, 2, [1]]
    assert held_by(other) == 0
    hand_over(source, target, {"x": "c"})
    assert len(one.asked) == 2
    assert len(other.asked) == 3


def test_an_interrupt_while_one_of_several_arrives_leaves_all_as_they_were(
    start: Start, tmp_path: Path
) -> None:
    one, other, third = start(), start(), start()
    source, target, slow = side_of(one), side_of(other), side_of(third)
    one.run("x = bytearray(1 << 20)")
    for side in (target, slow):
        hand_over(OwnKernel({"x": "before"}), side, {"x": "x"})
    third.run(SLOW.format(path=str(tmp_path / "slow"), what="unpack"))
    thread = interrupt_when((tmp_path / "slow").exists)
    with pytest.raises(KeyboardInterrupt):
        hand_several_over([(source, target, {"x": "x"}), (source, slow, {"x": "x"})])
    thread.join()
    assert other.value("x") == third.value("x") == "before"
    assert held_by(other) == held_by(third) == 0


SLOW_TO_BIND = """
import os, sys, time
agent = sys.modules['dockml_values.agent']
bind = agent._bind
def slow(*given):
    open({path!r}, 'w').close()
    while not os.path.exists({go!r}):
        time.sleep(0.01)
    bind(*given)
agent._bind = slow
"""


def test_an_interrupt_while_names_are_bound_leaves_none_behind(
    start: Start, tmp_path: Path
) -> None:
    one, other, third = start(), start(), start()
    source, target, last = side_of(one), side_of(other), side_of(third)
    one.run("x = 'after'")
    for side in (target, last):
        hand_over(OwnKernel({"x": "before"}), side, {"x": "x"})
    other.run(SLOW_TO_BIND.format(path=str(tmp_path / "slow"), go=str(tmp_path / "go")))
    thread = interrupt_when((tmp_path / "slow").exists, then=tmp_path / "go")
    with pytest.raises(KeyboardInterrupt):
        hand_several_over([(source, target, {"x": "x"}), (source, last, {"x": "x"})])
    thread.join()
    assert other.value("x") == third.value("x") == "after"
    assert held_by(other) == held_by(third) == 0


def test_a_death_while_names_are_bound_is_told_and_the_others_have_theirs(start: Start) -> None:
    one, other, third = start(), start(), start()
    source, target, last = side_of(one), side_of(other), side_of(third)
    one.run("x = 'after'")
    hand_over(OwnKernel({"x": "before"}), target, {"x": "x"})
    other.run("import os, sys\nsys.modules['dockml_values.agent']._bind = lambda *_: os._exit(1)")
    with pytest.raises(KernelDiedError):
        hand_several_over([(source, target, {"x": "x"}), (source, last, {"x": "x"})])
    assert third.value("x") == "after"


def test_memory_that_is_written_again_and_again_is_mapped_once(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide],
) -> None:
    one, source, other, target = pair
    one.run("x = bytearray(1 << 20)")
    hand_over(source, target, {"x": "x"})
    one.run(
        "import sys, time; agent = sys.modules['dockml_values.agent']\n"
        "agent._LARGE = 1; agent._KEPT_TIME = 1000.0; mapped = []; real = agent.mmap.mmap\n"
        "def note(*given, **more):\n mapped.append(given); return real(*given, **more)\n"
        "agent.mmap.mmap = note"
    )
    # The receiver keeps what arrived until the next one is there, as an array that is a view does.
    other.run(
        "import sys; agent = sys.modules['dockml_values.agent']; read, bind = agent.read, agent._bind\n"
        "arrived, memory = [], []\n"
        "def keep(*given):\n arrived.append(read(*given)); return arrived[0]\n"
        "def let_go(*given):\n memory[:] = [arrived.pop()]; bind(*given)\n"
        "agent.read, agent._bind = keep, let_go"
    )
    for _ in range(8):
        hand_over(source, target, {"x": "x"})
    assert one.value("[len(mapped), len(agent._mappings)]") == [2, 2]
    one.run("agent._KEPT_TIME = 1.0")
    hand_over(source, target, {"x": "x"})
    wait_until(lambda: one.value("len(agent._mappings)") == 0)


def test_what_was_given_up_before_its_turn_does_nothing_then(start: Start, tmp_path: Path) -> None:
    kernel = start()
    side = side_of(kernel)
    hand_over(OwnKernel({"x": "before"}), side, {"x": "x"})
    busy = threading.Thread(
        target=kernel.run,
        args=[
            f"import os, time\nopen({str(tmp_path / 'busy')!r}, 'w').close()\n"
            f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(.01)"
        ],
    )
    busy.start()
    wait_until((tmp_path / "busy").exists)
    # The kernel gets the request and comes to it after it was given up.
    kernel._lock = threading.RLock()
    assert kernel.process.stdin is not None
    ticket = doors.PutTicket(None)
    assert side._door is not None
    token = side._door.admit(ticket)
    asked = {"op": "put", "names": {"x": "x"}, "streams": {}, "copy": False, "token": token}
    payload = exchange.pack([("x", "after")]).to_bytes()
    asked |= {"with": [], "door": side._inside(side._door)}
    pieces = [base64.b64encode(payload).decode()]
    line = {"message": "dockml_values_request", "content": asked, "buffers": pieces}
    kernel.process.stdin.write(json.dumps(line).encode() + b"\n")
    kernel.process.stdin.flush()
    side._door.dismiss(token)
    (tmp_path / "go").touch()
    busy.join()
    while not (answer := kernel._read_answer()):
        pass
    told = json.loads(answer)
    assert told["content"]["error"] == "closed"
    assert kernel.value("x") == "before"


@pytest.mark.parametrize("dies", ["source", "target"])
def test_the_death_of_either_side_is_an_error_and_frees_the_memory(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide],
    tmp_path: Path,
    dies: str,
    keeper: doors.Doorkeeper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, source, other, target = pair
    one.run("x = bytearray(1 << 20); y = 1")
    hand_over(source, target, {"y": "y"})
    dying, what = (one, "write") if dies == "source" else (other, "unpack")
    dying.run(SLOW.format(path=str(tmp_path / "slow"), what=what))

    def kill() -> None:
        wait_until((tmp_path / "slow").exists)
        dying.process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(KernelDiedError):
        hand_over(source, target, {"x": "x"})
    thread.join()
    assert len(keeper.pool) == 1
    monkeypatch.setattr(segments, "IDLE_TIME", 0.0)
    wait_until(lambda: len(keeper.pool) == 0)


def test_memory_is_freed_when_the_receiver_lets_go_or_is_killed(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide],
    keeper: doors.Doorkeeper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, source, other, target = pair
    one.run("x = bytearray(1 << 20)")
    agent = "__import__('sys').modules['dockml_values.agent']"
    monkeypatch.setattr(segments, "IDLE_TIME", 0.0)
    for end in (lambda: other.run("del memory"), other.process.kill):
        hand_over(source, target, {"x": "x"})
        if len(keeper.pool) == 0:
            hand_over(source, target, {"x": "x"})
        # As an array that is a view does.
        other.run(
            f"agent = {agent}\nif 'read' not in globals(): read = agent.read\n"
            "def keep(*given):\n global memory\n memory = read(*given)\n return memory\n"
            "agent.read = keep"
        )
        hand_over(source, target, {"x": "x"})
        time.sleep(2.2)
        assert len(keeper.pool) == 1
        end()
        wait_until(lambda: len(keeper.pool) == 0)


# --- hostile answers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "pieces"),
    [
        ({}, []),
        ({"size": 1}, []),
        ({"size": -1, "notes": []}, []),
        ({"size": 1 << 70}, []),
        ({"size": True}, []),
        ({"size": 1000}, [b"less"]),
        ({}, [b""]),
        ({"streams": [1]}, [b""]),
        ({"streams": {"other": 1}}, [b""]),
        ({"streams": {"x": "one"}}, [b""]),
        ({"streams": {}}, [bytes(1 << 20)]),
        ({"streams": {}}, [b"ABC"]),
        ({"streams": {}}, [b"ABC"] * 1000),
        ({"error": ["list"]}, []),
        ({"error": "memory", "needed": "much", "free": None}, []),
        ({"error": "missing", "names": 5}, []),
        ({"error": "refused", "message": 5, "hint": {}}, []),
        ({"end": True}, []),
    ],
)
@pytest.mark.parametrize("way", [True, False])
def test_an_answer_that_is_none_is_an_error_and_nothing_is_bound(
    start: Start,
    answer: dict[str, Any],
    pieces: list[bytes],
    way: bool,
    keeper: doors.Doorkeeper,
) -> None:
    kernel = start(shares_files=way)
    side = side_of(kernel)
    own: dict[str, Any] = {}
    kernel.ask = lambda *_, **__: (dict(answer), list(pieces))  # type: ignore[method-assign]
    with pytest.raises(DockmlError):
        hand_over(side, OwnKernel(own), {"x": "x"})
    assert own == {}
    assert all(s.touched == 0 and not s.is_used() for s in keeper.pool._segments)
    with pytest.raises(DockmlError):
        hand_over(OwnKernel({"x": BIG}), side, {"x": "x"})


@pytest.mark.parametrize("answer", ["", "None", "[" * 100_000])
def test_a_kernel_in_which_nothing_answers_is_refused(start: Start, answer: str) -> None:
    kernel = start()
    kernel.evaluate = lambda *_: answer  # type: ignore[method-assign]
    with pytest.raises(ExchangeError, match="no Python under IPython"):
        hand_over(side_of(kernel), OwnKernel({}), {"x": "x"})
    assert kernel.asked == []


def test_an_iterator_that_would_end_its_kernel_ends_alone(start: Start) -> None:
    kernel = start()
    own: dict[str, Any] = {}
    kernel.run("def f():\n    raise SystemExit('out')\n    yield 1\ng = f()")
    hand_over(side_of(kernel), OwnKernel(own), {"g": "g"})
    with pytest.raises(RuntimeError, match="SystemExit: out"):
        next(own["g"])
    assert kernel.value("1") == 1


def test_a_payload_that_is_none_is_refused(start: Start) -> None:
    kernel = start()
    own: dict[str, Any] = {}
    side = side_of(kernel)
    kernel.run("x = bytearray(1 << 20)")
    hand_over(OwnKernel({"y": 1}), side, {"y": "y"})
    kernel.run(
        "import sys; agent = sys.modules['dockml_values.agent']\n"
        "def nothing(packed, descriptor, is_fresh): agent.os.pwrite(descriptor, b'x' * 100, 0)\n"
        "agent.write = nothing"
    )
    with pytest.raises(ExchangeError, match="not what is handed over"):
        hand_over(side, OwnKernel(own), {"x": "x"})
    assert own == {}


# --- hostile visitors -------------------------------------------------------------------------


@pytest.fixture
def visit() -> Iterator[Callable[[doors.Door], Visitor]]:
    """Give a function that connects to a door as who is in the container does."""
    with contextlib.ExitStack() as visits:
        yield lambda door: visits.enter_context(contextlib.closing(Visitor(door)))


class Visitor:
    def __init__(self, door: doors.Door) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        try:
            self.socket.connect(str(door._runtime.shared / door.name))
        except OSError:
            self.socket.close()
            raise

    def close(self) -> None:
        self.socket.close()

    def send(self, line: bytes) -> None:
        self.socket.sendall(line)

    def ask(self, said: object) -> Any:
        with contextlib.suppress(BrokenPipeError):
            self.send(json.dumps(said).encode() + b"\n")
        try:
            line, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 16, 4)
        except ConnectionResetError:
            line, descriptors = b"", []
        told = json.loads(line) if line else {"closed": "hung up"}
        return told | {"descriptors": descriptors} if descriptors else told

    def is_hung_up(self) -> bool:
        try:
            return self.socket.recv(1 << 16) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def door(keeper: doors.Doorkeeper, short_folder: Path) -> Iterator[doors.Door]:
    runtime = RuntimeFolder(short_folder / "r")
    runtime.make()
    with contextlib.closing(keeper.open(runtime)) as door:
        yield door
    runtime.remove()


Visit = Callable[[doors.Door], Visitor]


def take_ticket(keeper: doors.Doorkeeper) -> doors.TakeTicket:
    return doors.TakeTicket(lambda size: keeper.lease(size, frozenset({"a"})))


def test_a_kernel_gets_the_memory_it_asks_for(
    visit: Visit, door: doors.Door, keeper: doors.Doorkeeper
) -> None:
    ticket = take_ticket(keeper)
    visitor = visit(door)
    assert visitor.ask({"token": door.admit(ticket)}) == {"go": True}
    told = visitor.ask({"size": 100_000})
    (descriptor,) = told.pop("descriptors")
    assert told == {"fresh": True}
    assert os.fstat(descriptor).st_size >= 100_000
    os.close(descriptor)
    assert ticket.lease is not None
    assert ticket.lease.size == 100_000


def test_a_kernel_that_is_short_of_memory_gets_some_back_once(
    visit: Visit, door: doors.Door
) -> None:
    given: list[bool] = []
    visitor = visit(door)
    ticket = doors.PutTicket(None, lambda: given.append(True))
    assert visitor.ask({"token": door.admit(ticket)}) == {"go": True}
    assert [visitor.ask({"short": True}) for _ in range(2)] == [{}, {}]
    assert given == [True]


def test_a_token_is_good_once_and_at_its_own_door(
    visit: Visit, door: doors.Door, keeper: doors.Doorkeeper, short_folder: Path
) -> None:
    runtime = RuntimeFolder(short_folder / "r2")
    runtime.make()
    token = door.admit(take_ticket(keeper))
    with contextlib.closing(keeper.open(runtime)) as other:
        assert "closed" in visit(other).ask({"token": token})
    runtime.remove()
    assert visit(door).ask({"token": token}) == {"go": True}
    assert "closed" in visit(door).ask({"token": token})


@pytest.mark.parametrize(
    "said", [{}, {"token": None}, {"token": ["x"]}, {"token": "x" * 32}, [], 5, None, "x"]
)
def test_who_has_no_token_gets_nothing(visit: Visit, door: doors.Door, said: object) -> None:
    visitor = visit(door)
    assert "closed" in visitor.ask(said)
    assert visitor.is_hung_up()


@pytest.mark.parametrize(
    "line", [b"\n", b"\xff\xfe\n", b"[" * 4000 + b"\n", b"x" * 5000, b'{"token"\n']
)
def test_who_talks_nonsense_is_sent_away(visit: Visit, door: doors.Door, line: bytes) -> None:
    visitor = visit(door)
    visitor.send(line)
    with contextlib.suppress(ConnectionResetError):
        answer = visitor.socket.recv(1 << 16)
        assert answer == b"" or "closed" in json.loads(answer)
        assert visitor.is_hung_up()


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "1", None, [1], 1 << 62, 1 << 200])
def test_what_is_no_size_gets_no_memory(
    visit: Visit, door: doors.Door, keeper: doors.Doorkeeper, size: object
) -> None:
    visitor = visit(door)
    visitor.ask({"token": door.admit(take_ticket(keeper))})
    assert "closed" in visitor.ask({"size": size})
    assert len(keeper.pool) == 0


def test_more_than_there_is_gets_no_memory(
    visit: Visit, door: doors.Door, keeper: doors.Doorkeeper
) -> None:
    ticket = take_ticket(keeper)
    visitor = visit(door)
    visitor.ask({"token": door.admit(ticket)})
    assert visitor.ask({"size": 1 << 50}) == {"error": "room"}
    assert ticket.problem is not None
    assert len(keeper.pool) == 0
    assert "closed" in visitor.ask({"size": 1 << 20})


def test_one_request_gets_memory_once(
    visit: Visit, door: doors.Door, keeper: doors.Doorkeeper
) -> None:
    visitor = visit(door)
    visitor.ask({"token": door.admit(take_ticket(keeper))})
    for descriptor in visitor.ask({"size": 4096})["descriptors"]:
        os.close(descriptor)
    assert "closed" in visitor.ask({"size": 4096})
    assert len(keeper.pool) == 1


def test_who_is_given_up_gets_nothing_more(
    visit: Visit, door: doors.Door, keeper: doors.Doorkeeper
) -> None:
    token = door.admit(take_ticket(keeper))
    visitor = visit(door)
    visitor.ask({"token": token})
    door.dismiss(token)
    assert "closed" in visitor.ask({"size": 4096})
    late = door.admit(doors.PutTicket(None))
    door.dismiss(late)
    assert "closed" in visit(door).ask({"token": late})


def test_whether_names_are_bound_is_decided_once(visit: Visit, door: doors.Door) -> None:
    ticket = doors.PutTicket(None)
    visitor = visit(door)
    visitor.ask({"token": door.admit(ticket)})
    assert visitor.ask({"ready": True}) == {"bind": True}
    assert ticket.is_done
    assert not ticket.withdraw()
    assert ticket.is_done
    stopped = doors.PutTicket(None)
    visitor = visit(door)
    visitor.ask({"token": door.admit(stopped)})
    assert stopped.withdraw()
    assert "closed" in visitor.ask({"ready": True})


def test_who_says_nothing_keeps_nobody_waiting_and_is_sent_away(
    visit: Visit, door: doors.Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "_PATIENCE", 2.0)
    silent = [visit(door) for _ in range(5)]
    silent[0].send(b'{"tok')
    assert visit(door).ask({"token": door.admit(doors.PutTicket(None))}) == {"go": True}
    assert all(visitor.is_hung_up() for visitor in silent)


def test_a_crowd_is_sent_away_and_closes_its_own_door_only(
    visit: Visit, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "_MOST_BAD", 30)
    one, other = start(), start()
    loud, quiet = side_of(one), side_of(other)
    for side in (loud, quiet):
        hand_over(OwnKernel({"x": 1}), side, {"x": "x"})
    assert loud._door is not None
    for _ in range(200):
        with contextlib.suppress(OSError):
            visit(loud._door)
    wait_until(lambda: not loud.shares)
    for side in (loud, quiet):
        hand_over(OwnKernel({"x": BIG}), side, {"x": "x"})
    assert quiet.shares
    assert one.value("len(x)") == other.value("len(x)") == len(BIG)


# --- iterators --------------------------------------------------------------------------------

NEXT_FAILS = "try:\n    next(g)\nexcept RuntimeError as error:\n    text = str(error)"
COUNT = """
made = []
def count():
    for n in range(5):
        made.append(n)
        yield [n, b'x' * size]
size = {size}
g = count()
"""


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize(("old", "new"), [("3.11", "3.11"), ("2.7", "3.13"), ("3.13", "2.7")])
def test_an_iterator_goes_on_over_there_one_value_at_a_time(
    start: Start, size: int, old: str, new: str, keeper: doors.Doorkeeper
) -> None:
    one, other = start(old), start(new)
    one.run(COUNT.format(size=size))
    source, target = side_of(one), side_of(other)
    done = hand_over(source, target, {"g": "it"})
    assert (done.types, done.bytes) == ({"it": "iterator"}, 0)
    assert one.value("made") == []
    assert other.value("next(it)[0]") == 0
    assert one.value("made") == [0]
    assert other.value("[[n, len(x)] for n, x in it]") == [[n, size] for n in range(1, 5)]
    assert other.value("list(it)") == []
    assert len(keeper.pool) <= 2


def test_an_iterator_goes_to_this_process_and_from_it(start: Start) -> None:
    kernel = start()
    side = side_of(kernel)
    own: dict[str, Any] = {"squares": (n * n for n in range(4))}
    hand_over(OwnKernel(own), side, {"squares": "s"})
    assert kernel.value("list(s)") == [0, 1, 4, 9]
    kernel.run(COUNT.format(size=100_000))
    hand_over(side, OwnKernel(own), {"g": "g"})
    assert [n for n, _ in own["g"]] == [0, 1, 2, 3, 4]


def test_what_an_iterator_raises_is_raised_over_there_with_its_name(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide],
) -> None:
    one, source, other, target = pair
    one.run("def bad():\n    yield 1\n    raise ValueError('oops')\ng = bad()")
    hand_over(source, target, {"g": "g"})
    other.run("found = next(g)\n" + NEXT_FAILS)
    assert "ValueError: oops" in other.value("text")
    assert other.value("[found, list(g)]") == [1, []]
    own: dict[str, Any] = {}
    one.run("g = bad()")
    hand_over(source, OwnKernel(own), {"g": "g"})
    assert next(own["g"]) == 1
    with pytest.raises(RuntimeError, match="ValueError: oops"):
        next(own["g"])


def test_what_an_iterator_gives_that_cannot_be_handed_over_is_an_error(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide],
) -> None:
    one, source, other, target = pair
    one.run("g = iter([object()])")
    hand_over(source, target, {"g": "g"})
    other.run(NEXT_FAILS)
    assert "object" in other.value("text")


def test_the_death_of_an_iterators_kernel_is_an_error_over_there(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide],
) -> None:
    one, source, other, target = pair
    one.run(COUNT.format(size=1))
    hand_over(source, target, {"g": "g"})
    assert other.value("next(g)[0]") == 0
    one.process.kill()
    other.run(NEXT_FAILS)
    assert "died" in other.value("text")


def test_an_iterator_without_its_notebook_is_an_error(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide],
) -> None:
    one, source, other, target = pair
    one.run(COUNT.format(size=1))
    hand_over(source, target, {"g": "g"})
    target.close()
    other.run(NEXT_FAILS)
    assert "gone" in other.value("text")


def test_who_lets_go_of_an_iterator_frees_it_where_it_is(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide],
) -> None:
    one, source, other, target = pair
    one.run(COUNT.format(size=1))
    hand_over(source, target, {"g": "g"})
    other.run("next(g); del g")
    streams = "len(__import__('sys').modules['dockml_values.agent']._streams)"
    wait_until(lambda: one.value(streams) == 0)
    assert target._door is not None
    wait_until(lambda: not target._door.tickets)  # type: ignore[union-attr]


def test_a_value_that_was_interrupted_on_its_way_is_the_next_one(
    pair: tuple[StandIn, ContainerSide, StandIn, ContainerSide], tmp_path: Path
) -> None:
    one, source, other, target = pair
    one.run(
        "import time, os\ndef slow():\n    yield 0\n"
        f"    open({str(tmp_path / 'asked')!r}, 'w').close()\n"
        f"    while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n    yield 1\n"
        "g = slow()"
    )
    hand_over(source, target, {"g": "g"})
    assert other.value("next(g)") == 0

    def interrupt() -> None:
        try:
            wait_until((tmp_path / "asked").exists)
            other.process.send_signal(signal.SIGINT)
            wait_until((tmp_path / "stopped").exists)
        finally:
            (tmp_path / "go").touch()

    stop = threading.Thread(target=interrupt)
    stop.start()
    other.run(
        "try:\n    next(g)\nexcept KeyboardInterrupt:\n    text = 'stopped'\n"
        f"open({str(tmp_path / 'stopped')!r}, 'w').close()"
    )
    stop.join()
    assert other.value("text") == "stopped"
    assert other.value("list(g)") == [1]


def test_an_iterator_to_where_nobody_can_ask_is_refused(start: Start) -> None:
    far = side_of(start(shares_files=False))
    with pytest.raises(ExchangeError, match="iterator"):
        hand_over(OwnKernel({"g": iter([1])}), far, {"g": "g"})


def test_an_iterator_within_one_kernel_is_refused(start: Start) -> None:
    kernel = start()
    kernel.run("g = iter([1])")
    side = side_of(kernel)
    with pytest.raises(ExchangeError, match="already"):
        hand_over(side, side, {"g": "h"})


@pytest.mark.parametrize("n", [0, -1, 2, True, "1", None, 1 << 70])
def test_values_of_an_iterator_cannot_be_asked_for_in_another_order(
    visit: Visit, start: Start, n: object
) -> None:
    kernel = start()
    side = side_of(kernel)
    made: list[int] = []
    hand_over(OwnKernel({"g": (made.append(i) or i for i in range(9))}), side, {"g": "g"})
    assert side._door is not None
    (token,) = side._door.tickets
    told = visit(side._door).ask({"token": token, "n": n})
    assert "closed" in told or "problem" in told
    assert made == []


def test_a_file_is_no_iterator() -> None:
    with Path(__file__).open() as file, pytest.raises(ValueRefusedError):
        hand_over(OwnKernel({"f": file}), OwnKernel({}), {"f": "f"})


def test_a_kernel_error_is_told_as_it_is(start: Start) -> None:
    kernel = start()
    side = side_of(kernel)
    hand_over(OwnKernel({"x": 1}), side, {"x": "x"})
    kernel.run(
        "import sys; agent = sys.modules['dockml_values.agent']\n"
        "def broken(*_, **__): raise OSError('no such thing')\nagent.pack = broken"
    )
    with pytest.raises(ExchangeError, match="no such thing"):
        hand_over(side, OwnKernel({}), {"x": "x"})
    assert issubclass(KernelError, DockmlError)


def test_an_iterator_is_dropped_without_waiting_for_the_kernel_that_has_it() -> None:
    """It may work on something, and wait for the one that drops it."""
    may_drop, dropped = threading.Event(), threading.Event()

    class Busy:
        def drop(self) -> None:
            assert may_drop.wait(30)
            dropped.set()

    busy: Any = Busy()
    ticket = exchange._ticket_for(busy)
    assert ticket.serve({"drop": True}) == ({}, None)
    assert ticket.is_over
    may_drop.set()
    assert dropped.wait(30)
