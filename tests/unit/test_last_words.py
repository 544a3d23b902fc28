from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client.session import Session

from dockml_magic.errors import KernelDiedError
from dockml_magic.last_words import LastWords
from tests.waiting import wait_until

PATIENCE_MS = 20_000

STATUS = b'{"msg_type": "status"}'
BUSY = b'{"execution_state": "busy"}'
PARENT = b'{"msg_type": "execute_request", "msg_id": "1"}'


class StandInContainer:
    """A container whose kernel is a publisher of this test, and ends when the test says so."""

    def __init__(self, runtime: Path) -> None:
        self.connection_info = {
            "transport": "ipc",
            "ip": str(runtime / "kernel"),
            "iopub_port": 2,
            "key": b"secret",
            "signature_scheme": "hmac-sha256",
        }
        self.state = object()
        self.exit_code: int | None = None
        self.session = Session(key=b"secret", signature_scheme="hmac-sha256")
        self.address = f"ipc://{runtime / 'kernel-2'}"
        self.iopub = zmq.Context.instance().socket(zmq.XPUB)
        self.iopub.setsockopt(zmq.XPUB_VERBOSE, 1)  # every subscriber is seen, not only the first
        self.iopub.bind(self.address)

    def poll(self) -> int | None:
        return self.exit_code

    def death(self, state: object, what: str, again: str) -> KernelDiedError:
        return KernelDiedError(f"{what} (exit code {self.exit_code}).", hint=again)

    def wait_for_subscriber(self) -> None:
        assert self.iopub.poll(PATIENCE_MS)
        self.iopub.recv()

    def say(self, state: str, request: dict[str, Any]) -> None:
        message = self.session.msg("status", {"execution_state": state}, parent=request)
        self.session.send(self.iopub, message, ident=b"kernel.1.status")

    def die(self) -> None:
        self.iopub.close(linger=1000)
        self.exit_code = 3


@pytest.fixture
def container(short_folder: Path) -> Iterator[StandInContainer]:
    container = StandInContainer(short_folder)
    yield container
    container.iopub.close(linger=0)


@pytest.fixture
def log() -> list[str]:
    return []


Watch = Callable[..., LastWords]


@pytest.fixture
def watch(container: StandInContainer, log: list[str]) -> Iterator[Watch]:
    """Give a function that watches the kernel; the watch ends with the test."""
    watches = []

    def begin(is_meant: Callable[[], bool] = lambda: False) -> LastWords:
        watches.append(LastWords(container, "tf1.10", is_meant, log.append))  # type: ignore[arg-type]
        container.wait_for_subscriber()
        return watches[-1]

    yield begin
    for last_words in watches:
        last_words.close()
    assert "dockml-last-words" not in [thread.name for thread in threading.enumerate()]


class FrontEnd:
    """A subscriber to all that the kernel publishes."""

    def __init__(self, container: StandInContainer) -> None:
        self.session = Session(key=b"secret", signature_scheme="hmac-sha256")
        self.iopub = zmq.Context.instance().socket(zmq.SUB)
        self.iopub.subscribe(b"")
        self.iopub.connect(container.address)

    def hear(self) -> dict[str, Any]:
        """Return the next message, which must be signed as it should."""
        assert self.iopub.poll(PATIENCE_MS)
        _, frames = self.session.feed_identities(self.iopub.recv_multipart())
        return self.session.deserialize(frames)


@pytest.fixture
def front_ends(container: StandInContainer) -> Iterator[list[FrontEnd]]:
    both = [FrontEnd(container), FrontEnd(container)]
    for _ in both:
        container.wait_for_subscriber()
    yield both
    for front_end in both:
        front_end.iopub.close(linger=0)


def request(container: StandInContainer, msg_type: str) -> dict[str, Any]:
    return container.session.msg(msg_type)


def test_the_running_cell_is_told_to_every_front_end_and_to_the_log(
    container: StandInContainer, watch: Watch, front_ends: list[FrontEnd], log: list[str]
) -> None:
    last_words = watch()
    done, running = (request(container, "execute_request") for _ in range(2))
    container.say("busy", done)
    container.say("idle", done)
    container.say("busy", running)
    container.say("busy", request(container, "complete_request"))
    for front_end in front_ends:
        for _ in range(4):
            front_end.hear()
    wait_until(lambda: last_words._running.get("msg_id") == running["header"]["msg_id"])
    container.die()
    for front_end in front_ends:
        message = front_end.hear()
        assert message["msg_type"] == "stream"
        assert message["parent_header"]["msg_id"] == running["header"]["msg_id"]
        assert message["content"]["name"] == "stderr"
        assert message["content"]["text"] == f"{log[0]}\n"
    last_words.wait_until_heard()
    assert log[0].startswith("The kernel of 'tf1.10' died (exit code 3).\n")
    assert len(log) == 1
    for front_end in front_ends:  # each heard it once
        assert not front_end.iopub.poll(0)


def test_without_a_running_cell_it_belongs_to_none(
    container: StandInContainer, watch: Watch, front_ends: list[FrontEnd]
) -> None:
    watch()
    container.die()
    assert front_ends[0].hear()["parent_header"] == {}


def test_an_end_that_was_asked_for_is_not_told(
    container: StandInContainer, watch: Watch, log: list[str]
) -> None:
    last_words = watch(is_meant=lambda: True)
    container.die()
    last_words.wait_until_heard()
    last_words.close()
    assert not log


def test_a_kernel_that_lives_is_left_alone(watch: Watch, log: list[str]) -> None:
    watch().close()
    assert not log


@pytest.mark.parametrize(
    "frames",
    [
        [b"kernel.1.status"],
        [b"kernel.1.status", b"<IDS|MSG>"],
        [b"kernel.1.status", b"<IDS|MSG>", b"", b"{", b"[]", b"{}", b"{}"],
        [b"kernel.1.status", b"<IDS|MSG>", b"", b"[]", b"[]", b"{}", b"{}"],
        [b"kernel.1.status", b"<IDS|MSG>", b"", STATUS, b"{}", b"{}", b"{}"],
        [
            b"kernel.1.status",
            b"<IDS|MSG>",
            b"",
            STATUS,
            b'{"msg_type": "execute_request"}',
            b"{}",
            BUSY,
        ],
        [b"kernel.1.status", b"<IDS|MSG>", b"", STATUS, PARENT, b"{}", b"\xff"],
    ],
    ids=["alone", "empty", "no JSON", "other JSON", "no parent", "parent without id", "no text"],
)
def test_malformed_messages_do_not_end_the_watch(
    container: StandInContainer,
    watch: Watch,
    front_ends: list[FrontEnd],
    frames: list[bytes],
) -> None:
    watch()
    container.iopub.send_multipart(frames)
    assert front_ends[0].iopub.poll(PATIENCE_MS)
    assert front_ends[0].iopub.recv_multipart() == frames
    container.die()
    assert front_ends[0].hear()["parent_header"] == {}


def test_the_next_kernel_gets_the_address(
    container: StandInContainer, watch: Watch, front_ends: list[FrontEnd]
) -> None:
    last_words = watch()
    container.die()
    front_ends[0].hear()
    last_words.close()
    path = Path(container.address.removeprefix("ipc://"))
    path.unlink()  # as the supervisor does before it starts the next kernel
    container.iopub = zmq.Context.instance().socket(zmq.XPUB)
    container.iopub.bind(container.address)
    # A subscriber subscribes again only while it looks for messages.
    wait_until(lambda: front_ends[0].iopub.poll(1) or container.iopub.poll(1))
    container.wait_for_subscriber()
    container.say("starting", {})
    assert front_ends[0].hear()["content"] == {"execution_state": "starting"}
