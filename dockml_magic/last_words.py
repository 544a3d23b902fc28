"""How a kernel died, told to its front end: in the log, and below the cell that was running.

When a kernel's process is gone, Jupyter says no more than that, and its front ends show nothing but
"appears to have died". Nobody listens at the kernel's IOPub socket then, and over `ipc` that socket is a file in
a folder of ours. Until the next kernel takes it over we publish there: the front ends have not yet noticed more
than a lost connection, come back to it, and take our message for the last output of the cell.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.session import Session

from dockml_magic.container import KernelContainer
from dockml_magic.errors import KernelDiedError
from dockml_magic.messages import Message

_LOOK_INTERVAL = 0.5
"""Seconds between two looks at whether it lives and which cell it runs."""

_TIME_TO_HEAR = 1.0
_LISTEN_INTERVAL = 0.05
"""Seconds that a front end has at least: ZeroMQ tries to connect again every 0.1 to 0.2 s. They are counted by so many,
as this process may stand still, and the front end as well."""

_MOST_MESSAGES = 2000
_LARGEST_STATUS = 64 * 1024
"""How many messages are kept from one look to the next, and how many bytes one may have."""

_TIME_TO_LEARN = 10.0
"""Seconds for the engine to hand over the log, which a busy one takes its time for."""

_TIME_TO_LINGER = 10.0
"""Seconds after which nobody can be expected any more."""


class LastWords:
    """Watches one kernel until it is closed, and says how it died if it does.

    Parameters
    ----------
    container : KernelContainer
        Where the kernel runs.
    name : str
        How its user calls it.
    is_meant : callable
        Tells whether the kernel's end was asked for; nothing is said then.
    warn : callable
        Gets the text for the log.
    """

    def __init__(
        self,
        container: KernelContainer,
        name: str,
        is_meant: Callable[[], bool],
        warn: Callable[[str], None],
    ) -> None:
        self._container = container
        self._name = name
        self._is_meant = is_meant
        self._warn = warn
        self._info = container.connection_info
        self._wake = threading.Event()
        self._closing = False
        self._heard = threading.Event()
        self._running: dict[str, Any] = {}
        self._iopub: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._iopub.setsockopt(zmq.LINGER, 0)
        self._iopub.setsockopt(zmq.RCVHWM, _MOST_MESSAGES)
        self._iopub.setsockopt(zmq.MAXMSGSIZE, _LARGEST_STATUS)
        self._iopub.subscribe(b"kernel.")  # status and what is as small, but no output
        self._iopub.connect(self._address)
        self._thread = threading.Thread(target=self._watch, name="dockml-last-words", daemon=True)
        self._thread.start()

    def wait_until_heard(self) -> None:
        """Wait, for a second as a rule, until the front ends know how the kernel died. Call when it has."""
        self._wake.set()
        self._heard.wait(_TIME_TO_LEARN + _TIME_TO_HEAR)

    def close(self) -> None:
        """End the watch, and leave the address to the next kernel."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    @property
    def _address(self) -> str:
        separator = "-" if self._info["transport"] == "ipc" else ":"
        return (
            f"{self._info['transport']}://{self._info['ip']}{separator}{self._info['iopub_port']}"
        )

    def _watch(self) -> None:
        with self._iopub:
            while not self._closing and self._container.poll() is None:
                self._wake.wait(_LOOK_INTERVAL)
                self._wake.clear()
                self._listen()
            self._listen()
        try:
            if not self._closing and not self._is_meant():
                self._say()
        finally:
            self._heard.set()

    def _listen(self) -> None:
        """Take in what was published, and remember the request of the cell that runs."""
        while self._iopub.poll(0):
            frames = self._iopub.recv_multipart(copy=False)
            try:
                message = Message(frames)
                if (
                    message.type == "status"
                    and message.parent["msg_id"]
                    and message.parent["msg_type"] == "execute_request"
                ):
                    busy = message.content["execution_state"] == "busy"
                    self._running = message.parent if busy else {}
            except (LookupError, TypeError, ValueError):
                continue  # not for us to judge

    def _say(self) -> None:
        death = self._container.death(
            self._container.state,
            f"The kernel of '{self._name}' died",
            again="Restart it: it gets a new container.",
        )
        self._warn(str(death))
        if self._info["transport"] == "ipc":
            self._publish(death)

    def _publish(self, death: KernelDiedError) -> None:
        """Send it to each front end as it comes back, until we are closed."""
        session = Session(key=self._info["key"], signature_scheme=self._info["signature_scheme"])
        message = session.msg(
            "stream", {"name": "stderr", "text": f"{death}\n"}, parent=self._running
        )
        ours = f"{self._info['ip']}-last-words"
        publisher: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XPUB)
        with publisher:
            publisher.setsockopt(zmq.LINGER, 0)
            # A subscriber gets what we say it subscribed to: a topic of its own, so that it hears us once.
            publisher.setsockopt(zmq.XPUB_MANUAL, 1)
            try:
                publisher.bind(f"ipc://{ours}")
                # ZeroMQ removes a file that it bound whenever it gets to close it. Under this name there is none.
                Path(ours).rename(self._address.removeprefix("ipc://"))
            except (OSError, zmq.ZMQError):
                return  # the folder is gone
            began = time.monotonic()
            count, quiet = 0, 0.0
            while not self._closing and time.monotonic() < began + _TIME_TO_LINGER:
                if not publisher.poll(round(_LISTEN_INTERVAL * 1000)):
                    quiet += _LISTEN_INTERVAL
                elif publisher.recv().startswith(b"\x01"):
                    count += 1
                    topic = b"stream.stderr-%d-" % count
                    publisher.setsockopt(zmq.SUBSCRIBE, topic)
                    publisher.send_multipart(session.serialize(message, ident=topic))
                if quiet >= _TIME_TO_HEAR:
                    self._heard.set()
