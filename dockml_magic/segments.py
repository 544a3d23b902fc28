"""Shared memory for values on their way from one kernel to another: made here, used over there.

A segment is a memfd: it has no name and no folder, and the system frees it when the last one lets go, however
that one ended. Its size is sealed, so that nobody can make another's mapping fault. Who still uses a segment
is known by a lock (flock) on the descriptor that was passed on, which lasts as long as any copy of that
descriptor or any mapping of it. A segment that all have let go is used again, as its pages are there already:
to touch new ones takes three quarters of the time of a copy.

Nothing is mapped here: this process does not grow.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
import threading
import time
from pathlib import Path

IDLE_TIME = 10.0
"""Seconds for which memory stays that nobody uses any more."""

MOST_KEPT = 64
"""Segments after which those in use are left to their users: the system frees them, and they are not used again."""

MOST_SEGMENTS = 256
"""Segments at once that are not written to yet: what is, counts as memory in use."""

_RESERVE = 256 << 20
"""Bytes of this machine's memory that are left to others."""

_F_ADD_SEALS = 1033
_SEALS = 0x1 | 0x2 | 0x4
"""F_SEAL_SEAL, F_SEAL_SHRINK and F_SEAL_GROW of Linux."""


class NoRoomError(Exception):
    """There is no memory for a segment.

    Attributes
    ----------
    needed, free : int
        Bytes.
    count : int
        How many segments there are, where these are too many; else 0.
    """

    def __init__(self, needed: int, free: int, count: int = 0) -> None:
        super().__init__(f"{needed} bytes are needed, {free} are free, {count} segments")
        self.needed = needed
        self.free = free
        self.count = count


class Segment:
    """Some shared memory. While it is leased, or somebody else has it, it is not used again.

    Attributes
    ----------
    capacity : int
        Bytes.
    parties : frozenset of str
        Who may ever have it. Another kernel must not: one that had it before may have kept a mapping, and hidden
        that by unlocking the lock.
    can_travel : bool
        It may be given to containers.
    """

    def __init__(self, capacity: int, parties: frozenset[str]) -> None:
        self.capacity = capacity
        self.parties = parties
        self.is_leased = True
        self.idle_since: float | None = None
        self.can_travel = hasattr(os, "memfd_create")
        if self.can_travel:
            self.descriptor = os.memfd_create("dockml", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(self.descriptor, capacity)
            if self.can_travel:
                fcntl.fcntl(self.descriptor, _F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(self.descriptor)
            raise

    def share(self, *, writable: bool) -> int:
        """Return a descriptor for who is to use it, to be closed here once that one has it."""
        mode = os.O_RDWR if writable else os.O_RDONLY
        descriptor = os.open(f"/proc/self/fd/{self.descriptor}", mode | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @property
    def touched(self) -> int:
        """The bytes of it that take memory by now."""
        return os.fstat(self.descriptor).st_blocks * 512

    def is_used(self) -> bool:
        """Tell whether anybody has it."""
        if self.is_leased:
            return True
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)


class Lease:
    """A segment while it is on its way: nobody else gets it. Let go by `close`, or with the object."""

    def __init__(self, segment: Segment, size: int) -> None:
        self.segment = segment
        self.size = size
        self._is_open = True

    def close(self) -> None:
        """Leave it to those who have it."""
        if self._is_open:
            self._is_open = False
            self.segment.is_leased = False

    def __del__(self) -> None:
        self.close()


class Pool:
    """All segments of this process."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._segments)

    def lease(self, size: int, parties: frozenset[str]) -> Lease:
        """Return memory for so many bytes: what was used before by the same, else new.

        Raises
        ------
        NoRoomError
        """
        if size < 1:
            raise ValueError("a segment has a size")
        with self._lock:
            fitting = [
                s
                for s in self._segments
                if s.parties == parties
                and size <= s.capacity <= 2 * size + mmap.PAGESIZE
                and not s.is_used()
            ]
            if fitting:
                segment = min(fitting, key=lambda s: s.capacity)
                segment.is_leased, segment.idle_since = True, None
                return Lease(segment, size)
            if size > self._room():
                self._close([s for s in self._segments if not s.is_used()])
            if size > (room := self._room()):
                raise NoRoomError(size, max(0, room))
            if len(self._segments) >= MOST_KEPT:
                full = [s for s in self._segments if s.touched >= s.capacity and not s.is_leased]
                self._close(full[: len(self._segments) - MOST_KEPT + 1])
            if len(self._segments) >= MOST_SEGMENTS:
                raise NoRoomError(size, max(0, room), len(self._segments))
            capacity = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            segment = Segment(capacity, parties)
            self._segments.append(segment)
            return Lease(segment, size)

    def _room(self) -> int:
        """Return the bytes that a new segment may have, those counted that are promised already."""
        promised = sum(max(0, s.capacity - s.touched) for s in self._segments)
        return find_available_memory() - _RESERVE - promised

    def sweep(self) -> bool:
        """Close what nobody has used for a while; return whether there is anything left."""
        now = time.monotonic()
        with self._lock:
            late = []
            for segment in self._segments:
                if segment.is_used():
                    segment.idle_since = None
                elif segment.idle_since is None:
                    segment.idle_since = now
                elif now - segment.idle_since > IDLE_TIME:
                    late.append(segment)
            self._close(late)
            return bool(self._segments)

    def drop_idle(self, party: str) -> None:
        """Close what nobody uses and this one may have written to, for which it counts until then."""
        with self._lock:
            self._close([s for s in self._segments if party in s.parties and not s.is_used()])

    def close(self) -> None:
        """Let go of all of them; those who have them keep them."""
        with self._lock:
            self._close(list(self._segments))

    def _close(self, segments: list[Segment]) -> None:
        for segment in segments:
            self._segments.remove(segment)
            segment.close()


def find_available_memory() -> int:
    """Return the bytes that can be used on this machine without swapping; many where nobody says so."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 1 << 62
