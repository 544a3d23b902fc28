"""The host's end of the control channel, and what a peer can say there that is no supervisor."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockml_magic.control import ControlChannel
from tests.unit.waiting import wait_until

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


@pytest.mark.parametrize(
    "nonsense",
    [
        b"no json\n",
        b"[]\n",
        b"{}\n",
        b'"text"\n',
        b"\xff\xfe\n",
        b'{"generation": "one", "phase": "bound", "report": {}, "exit": null}\n',
        b'{"generation": 1, "phase": "bound", "report": 5, "exit": null}\n',
        b'{"generation": 1, "phase": "bound", "report": {}, "exit": 5}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (2 << 20),
    ],
    ids=lambda said: repr(said[:20]),
)
def test_nonsense_ends_the_channel_and_keeps_nobody_waiting(peer: Peer, nonsense: bytes) -> None:
    peer.say()
    assert peer.channel.wait(lambda state: state.phase == "bound", 20) is not None
    saying = threading.Thread(target=_say, args=(peer.connection, nonsense))
    saying.start()
    state = peer.channel.wait(lambda state: state.phase == "never", 20)
    assert state is not None
    assert state.phase == "gone"
    saying.join()


def _say(connection: socket.socket, nonsense: bytes) -> None:
    with contextlib.suppress(OSError):  # the other end had heard enough
        connection.sendall(nonsense)


def test_silence_is_counted_from_the_question_and_ends_with_an_answer(peer: Peer) -> None:
    assert peer.channel.silence() < 5.0
    assert json.loads(peer.connection.recv(1000)) == {"op": "say"}
    wait_until(lambda: peer.channel.silence() > 0.2)
    peer.connection.setblocking(False)
    with pytest.raises(BlockingIOError):  # one question is enough
        peer.connection.recv(1000)
    peer.say()
    wait_until(lambda: peer.channel.silence() < 0.2)
