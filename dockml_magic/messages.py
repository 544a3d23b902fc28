"""A Jupyter message as it travels, in frames: looked into where we must, passed on as it is.

The wire protocol: routing frames, a delimiter, the signature, then header, parent header, metadata,
content (JSON each) and any number of buffers. A message that is passed on from one connection to
another keeps all of these and gets a new signature.
https://jupyter-client.readthedocs.io/en/stable/messaging.html#the-wire-protocol
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from hmac import compare_digest
from typing import Any

import zmq
from jupyter_client.jsonutil import json_default
from jupyter_client.session import DELIM, Session

_VERIFIED_UP_TO = 1 << 20
"""Bytes of content up to which a kernel's signature is checked. A kernel that signs wrongly is found out
by its first small message; its sockets are the user's own, and hashing 50 MB once more takes 30 ms."""


_LARGEST_HEADER = 1 << 20
"""Bytes of a header; usual ones have a few hundred."""


_NOBLOCK, _SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)


def receive(socket: zmq.Socket[bytes]) -> list[zmq.Frame]:
    """Return the frames of the message that has arrived.

    As pyzmq's `recv_multipart`, which also asks the socket after each frame; `send` is likewise `send_multipart`
    without what it checks. That is half of what either takes, for every message of a cell.

    Raises
    ------
    zmq.Again
        If none has arrived.
    """
    frames = [socket.recv(_NOBLOCK, copy=False)]
    while frames[-1].more:
        frames.append(socket.recv(copy=False))
    return frames


def send(
    socket: zmq.Socket[bytes], frames: Sequence[zmq.Frame | bytes], *, blocking: bool = True
) -> None:
    """Send a message; large frames are not copied.

    Raises
    ------
    zmq.Again
        If it is not to block, and would.
    """
    flags = 0 if blocking else _NOBLOCK
    for frame in frames[:-1]:
        socket.send(frame, flags | _SNDMORE, copy=False)
    socket.send(frames[-1], flags, copy=False)


class MalformedMessageError(ValueError):
    """Frames that are no Jupyter message, or one that was signed with another key."""


class Message:
    """A message as it was received.

    Parameters
    ----------
    frames : sequence of zmq.Frame
        All of them.

    Attributes
    ----------
    frames : sequence of zmq.Frame
        As received.
    prefix : list of zmq.Frame
        Routing identities, or the topic.
    parts : list of zmq.Frame or bytes
        Header, parent header, metadata, content, buffers.
    header : dict
    type, id : str

    Raises
    ------
    MalformedMessageError
    """

    def __init__(self, frames: Sequence[zmq.Frame]) -> None:
        i = _find_delimiter(frames)
        self.frames = frames
        self.prefix: list[zmq.Frame] = list(frames[:i])
        self.parts: list[zmq.Frame | bytes] = list(frames[i + 2 :])
        if len(self.parts) < 4:
            raise MalformedMessageError("parts are missing")
        self._signature = frames[i + 1]
        self.header = self._decode(0)
        try:
            self.type: str = self.header["msg_type"]
            self.id: str = self.header["msg_id"]
        except KeyError as error:
            raise MalformedMessageError(f"its header has no {error}") from None
        if not isinstance(self.type, str) or not isinstance(self.id, str):
            raise MalformedMessageError("its header has no type or no id")

    def verify(self, session: Session, *, up_to: int = _VERIFIED_UP_TO) -> None:
        """Check that it was signed with a session's key; contents of more than `up_to` bytes are not.

        Raises
        ------
        MalformedMessageError
        """
        if (
            not session.key
        ):  # then nothing is checked, as in jupyter_client; some kernels sign even so
            return
        if len(self.parts[3]) <= up_to and not compare_digest(
            self._signature.bytes, session.sign(self._signed())
        ):
            raise MalformedMessageError("its signature is wrong")

    def signed_by(self, session: Session) -> list[zmq.Frame | bytes]:
        """Return it as frames, signed with another session's key. Large parts are not copied."""
        return [*self.prefix, DELIM, session.sign(self._signed()), *self.parts]

    def said_by(self, session: Session) -> list[zmq.Frame | bytes]:
        """Return it as frames, as a message of another session.

        JupyterLab takes a kernel's change of session for a restart, and drops what it has not dealt with yet.
        """
        if self.header.get("session") != session.session:
            self.header["session"] = session.session
            try:
                self.parts[0] = json.dumps(self.header).encode()
            except RecursionError as error:
                raise MalformedMessageError("its header is too deep") from error
        return self.signed_by(session)

    def leave_subshell(self) -> None:
        """Let it be for no subshell: the notebook's are not another kernel's."""
        del self.header["subshell_id"]
        self.parts[0] = json.dumps(self.header).encode()

    @classmethod
    def of_parts(cls, parts: Sequence[bytes]) -> Message:
        """Return the message with these parts, from the header on; its topic is its type.

        Raises
        ------
        MalformedMessageError
        """
        message = cls([zmq.Frame(DELIM), zmq.Frame(b""), *map(zmq.Frame, parts)])
        message.prefix = [zmq.Frame(message.type.encode())]
        return message

    def replace_parent(self, header: Mapping[str, Any]) -> None:
        """Let it belong to another request."""
        self.parts[1] = json.dumps(header, default=json_default).encode()
        self.parent = dict(header)

    @cached_property
    def parent(self) -> dict[str, Any]:
        """The parent header."""
        return self._decode(1)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The content, decoded."""
        return self._decode(3)

    @property
    def parent_id(self) -> str:
        """The msg_id of the request that this belongs to, "" where there is none."""
        return str(self.parent.get("msg_id", ""))

    def replace_content(self, content: Mapping[str, Any]) -> None:
        """Let it say something else."""
        self.parts[3] = json.dumps(content).encode()
        self.content = dict(content)

    def _signed(self) -> list[Any]:
        return [part if isinstance(part, bytes) else part.buffer for part in self.parts[:4]]

    def _decode(self, i: int) -> dict[str, Any]:
        part = self.parts[i]
        if i < 2 and len(part) > _LARGEST_HEADER:
            raise MalformedMessageError("its header is too long")
        try:
            # As jupyter_client does: a lone surrogate in a text makes bytes that are not UTF-8.
            text = (part if isinstance(part, bytes) else part.bytes).decode(errors="replace")
            decoded = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MalformedMessageError("it is not JSON") from error
        if not isinstance(decoded, dict):
            raise MalformedMessageError("it is not a JSON object")
        return decoded


def _find_delimiter(frames: Sequence[zmq.Frame]) -> int:
    for i, frame in enumerate(frames):
        if len(frame) == len(DELIM) and frame.bytes == DELIM:
            return i
    raise MalformedMessageError("it has no delimiter")
