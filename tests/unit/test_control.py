"""The host's end of the control channel, with all that can be at the other end."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dockml_magic.control import ControlChannel, KernelState, NonsenseError, parse_state
from dockml_magic.errors import KernelError
from tests.waiting import wait_until

REPORT = {
    "python": "3.11.2",
    "executable": "/usr/bin/python3",
    "machine": "x86_64",
    "libc": "glibc",
    "libc_version": "2.36",
    "wide_unicode": True,
    "ipykernel": "7.4.0",
    "kernel": "image",
}


def line(**changes: Any) -> bytes:
    said = {"generation": 1, "phase": "bound", "report": REPORT, "exit": None, **changes}
    return json.dumps(said).encode()


def with_fact(name: str, value: Any) -> bytes:
    return line(report={**REPORT, name: value})


def test_what_a_supervisor_says_is_a_state() -> None:
    assert parse_state(line()) == KernelState(generation=1, phase="bound", report=REPORT)
    ended = parse_state(line(phase="exited", exit={"code": 137, "out_of_memory": True}))
    assert (ended.exit_code, ended.out_of_memory) == (137, True)
    musl = {"libc": "musl", "libc_version": "", "kernelspecs": {"ir": "R"}, "problem": "no zmq"}
    assert parse_state(line(report=musl)).report == musl


NONSENSE = {
    "no JSON": b"hello",
    "no UTF-8": b"\xff\xfe",
    "no object": b"[]",
    "a number": b"1",
    "nothing": b"",
    "too deep": b"[" * 100_000,
    "a deep report": b'{"generation": 1, "phase": "bound", "exit": null, "report": {"a": '
    + b"[" * 100_000,
    "a part is missing": b'{"generation": 1, "phase": "bound", "report": {}}',
    "a generation that is a text": line(generation="1"),
    "a generation that is true": line(generation=True),
    "a generation below 0": line(generation=-1),
    "a generation without an end": line(generation=10**400),
    "another phase": line(phase="gone"),
    "a phase that is a list": line(phase=[]),
    "a report that is a list": line(report=[]),
    "an end that is a text": line(exit="137"),
    "an end without a code": line(exit={}),
    "a fact that is a number": with_fact("problem", 3),
    "a fact that is nothing": with_fact("problem", None),
    "kernelspecs that are a list": with_fact("kernelspecs", ["ir"]),
    "a language that is a list": with_fact("kernelspecs", {"ir": []}),
    "a way up in the Python": with_fact("python", "../../../../etc"),
    "a way up in the libc": with_fact("libc", "/../.."),
    "a way up in its version": with_fact("libc_version", "2.1/../../x"),
    "a way up in the machine": with_fact("machine", ".."),
    "an option of pip": with_fact("python", "--index-url=http://evil.example"),
    "a version of the libc that takes for ever": with_fact("libc_version", "2.99999999999"),
    "another origin": with_fact("kernel", "elsewhere"),
    "an interpreter with an end of a line": with_fact("executable", "/bin/sh\n"),
}


@pytest.mark.parametrize("said", NONSENSE.values(), ids=NONSENSE)
def test_what_no_supervisor_says_is_refused(said: bytes) -> None:
    with pytest.raises(NonsenseError):
        parse_state(said)


def test_what_a_container_says_can_be_shown() -> None:
    steering = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e\x00"
    report = parse_state(line(report={"problem": steering, "kernelspecs": {steering: steering}}))
    shown = "\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\u202e\\x00"
    assert report.report == {"problem": shown, "kernelspecs": {shown: shown}}
    assert len(parse_state(with_fact("problem", "x" * 500_000)).report["problem"]) == 4096


# --- over a socket --------------------------------------------------------------------------------


Serve = Callable[[Callable[[socket.socket], None]], Path]


@pytest.fixture
def serve(short_folder: Path) -> Iterator[Serve]:
    """Give a function that starts a supervisor of one's own, and returns its address."""
    server = socket.socket(socket.AF_UNIX)
    threads = []

    def start(behave: Callable[[socket.socket], None]) -> Path:
        server.bind(str(short_folder / "control"))
        server.listen(1)

        def run() -> None:
            connection, _ = server.accept()
            with connection:
                try:
                    behave(connection)
                except OSError:  # the host has hung up
                    return

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        return short_folder / "control"

    yield start
    server.close()
    for thread in threads:
        thread.join(10.0)
        assert not thread.is_alive()


def end_of(channel: ControlChannel) -> KernelState:
    state = channel.wait(lambda s: s.phase == "gone", timeout=20.0)
    assert state is not None
    channel.close()
    return state


def test_a_line_without_an_end_is_given_up_after_a_megabyte(serve: Serve) -> None:
    sent = 0

    def talk(connection: socket.socket) -> None:
        nonlocal sent
        connection.recv(100)
        while True:
            sent += connection.send(b"x" * 65536)

    state = end_of(ControlChannel(serve(talk), "key"))
    assert state.problem == "a line without an end"
    assert sent < 8_000_000


def test_after_nonsense_the_connection_is_closed_and_the_reason_kept(serve: Serve) -> None:
    closed = threading.Event()

    def talk(connection: socket.socket) -> None:
        connection.sendall(line() + b"\n" + b"[]\n" + line(phase="exited") + b"\n")
        while connection.recv(100):
            pass
        closed.set()

    channel = ControlChannel(serve(talk), "key")
    state = end_of(channel)
    assert closed.wait(30.0)
    assert (state.phase, state.problem) == ("gone", "not a line of a supervisor")
    with pytest.raises(KernelError, match="The container is gone"):
        channel.stop()


def test_one_that_does_not_read_does_not_hold_us(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dockml_magic.control._SEND_TIMEOUT", b"\1\0\0\0\0\0\0\0" + bytes(8))
    done = threading.Event()
    channel = ControlChannel(serve(lambda connection: done.wait(20.0) and None), "key")
    with pytest.raises(KernelError, match="The container is gone"):
        channel.start({"A": "x" * 10_000_000}, None)
    done.set()
    channel.close()


def test_what_threads_and_a_signal_handler_send_at_once_arrives_line_by_line(serve: Serve) -> None:
    received = bytearray()

    def talk(connection: socket.socket) -> None:
        while received.count(b"\n") < 1 + 40 + 400 + 10:
            received.extend(connection.recv(4096))

    channel = ControlChannel(serve(talk), "key")
    saved = signal.signal(signal.SIGALRM, lambda *_: channel.signal(2))
    try:
        small = threading.Thread(target=lambda: [channel.keep(keep=True) for _ in range(400)])
        small.start()
        for n in range(40):
            if n % 4 == 0:
                signal.setitimer(signal.ITIMER_REAL, 0.002)
            channel.start({"A": "x" * 300_000}, None)
            wait_until(lambda: signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0))
        small.join()
        wait_until(lambda: received.count(b"\n") == 1 + 40 + 400 + 10)
    finally:
        signal.signal(signal.SIGALRM, saved)
    said = [json.loads(line)["op"] for line in received.splitlines()[1:]]
    assert {op: said.count(op) for op in said} == {"start": 40, "keep": 400, "signal": 10}
    channel.close()


def test_a_link_to_a_socket_is_not_followed(serve: Serve, short_folder: Path) -> None:
    link = short_folder / "link"
    target = serve(lambda connection: connection.recv(100))
    link.symlink_to(target)
    with pytest.raises(OSError):  # noqa: PT011
        ControlChannel(link, "key")
    ControlChannel(target, "key").close()


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, os.mkfifo])
def test_what_is_no_socket_is_refused_at_once(short_folder: Path, make: Any) -> None:
    make(short_folder / "control")
    with pytest.raises(ConnectionRefusedError):
        ControlChannel(short_folder / "control", "key")


STATE = {"generation": 1, "phase": "bound", "report": {}, "exit": None}


class Peer:
    """Says what a test wants it to."""

    def __init__(self, path: Path) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(1)
        self.channel = ControlChannel(path, "the key")
        self.connection, _ = self._server.accept()
        self.connection.recv(1000)

    def say(self, state: object = STATE) -> None:
        self.connection.sendall(json.dumps(state).encode() + b"\n")

    def close(self) -> None:
        self.channel.close()
        self.connection.close()
        self._server.close()


@pytest.fixture
def peer(short_folder: Path) -> Iterator[Peer]:
    peer = Peer(short_folder / "control")
    yield peer
    peer.close()


def test_silence_is_counted_from_the_question_and_ends_with_an_answer(peer: Peer) -> None:
    assert peer.channel.silence() < 5.0
    assert json.loads(peer.connection.recv(1000)) == {"op": "say"}
    wait_until(lambda: peer.channel.silence() > 0.2)
    peer.connection.setblocking(False)
    with pytest.raises(BlockingIOError):  # one question is enough
        peer.connection.recv(1000)
    peer.say()
    wait_until(lambda: peer.channel.silence() < 0.2)


def test_it_is_settled_when_what_was_told_before_has_been_done(peer: Peer) -> None:
    peer.channel.signal(2)
    settled = threading.Thread(target=peer.channel.settle, args=(60.0,))
    settled.start()
    told = b""
    while told.count(b"say") < 2:
        told += peer.connection.recv(1000)
    assert b"signal" in told.partition(b"say")[0]
    peer.say()  # of its own accord, before it had read that
    settled.join(0.2)
    assert settled.is_alive()
    peer.say()
    settled.join(10)
    assert not settled.is_alive()


def test_one_that_does_not_answer_is_not_waited_for(peer: Peer) -> None:
    assert not peer.channel.settle(0.05)
