"""Shared memory: who uses it, when it is used again, and when there is none."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dockml_magic import segments
from dockml_magic.segments import NoRoomError, Pool

US = frozenset({"a", "b"})
OTHERS = frozenset({"a", "c"})
SIZE = 1 << 20


@pytest.fixture
def pool() -> Pool:
    return Pool()


def write(descriptor: int, size: int = SIZE) -> None:
    with mmap.mmap(descriptor, size) as memory:
        memory[:] = b"x" * size


@contextmanager
def another_process(work: Callable[[], object]) -> Iterator[int]:
    """Have a child do something and wait; it is killed in the end."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kept = work()
            os.write(tell, b"!")
            signal.pause()
        finally:
            del kept
            os._exit(1)
    os.close(tell)
    assert os.read(ready, 1) == b"!"
    os.close(ready)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_memory_that_all_have_let_go_is_used_again(pool: Pool) -> None:
    lease = pool.lease(SIZE, US)
    descriptor = lease.segment.share(writable=True)
    write(descriptor)
    os.close(descriptor)
    lease.close()
    again = pool.lease(SIZE - 4096, US)
    assert again.segment is lease.segment
    assert again.segment.touched == SIZE
    assert len(pool) == 1


def test_memory_is_not_used_again_for_other_kernels(pool: Pool) -> None:
    first = pool.lease(SIZE, US)
    first.close()
    assert pool.lease(SIZE, OTHERS).segment is not first.segment


def test_memory_is_not_used_again_for_much_less_or_for_more(pool: Pool) -> None:
    first = pool.lease(SIZE, US)
    first.close()
    assert pool.lease(SIZE // 4, US).segment is not first.segment
    assert pool.lease(SIZE + 1, US).segment is not first.segment


def test_memory_on_its_way_is_in_use_though_nobody_has_it(pool: Pool) -> None:
    lease = pool.lease(SIZE, US)
    assert lease.segment.is_used()
    assert pool.lease(SIZE, US).segment is not lease.segment


def test_a_lease_that_is_lost_is_let_go(pool: Pool) -> None:
    segment = pool.lease(SIZE, US).segment
    assert not segment.is_used()


def test_an_old_lease_does_not_let_go_of_the_next_one(pool: Pool) -> None:
    old = pool.lease(SIZE, US)
    old.close()
    new = pool.lease(SIZE, US)
    assert new.segment is old.segment
    old.close()
    del old
    assert new.segment.is_used()


@pytest.mark.parametrize("writable", [True, False])
def test_memory_is_in_use_while_a_process_has_its_descriptor(pool: Pool, writable: bool) -> None:
    lease = pool.lease(SIZE, US)
    descriptor = lease.segment.share(writable=writable)
    with another_process(lambda: descriptor):
        os.close(descriptor)
        lease.close()
        assert lease.segment.is_used()
    assert not lease.segment.is_used()


def test_memory_is_in_use_while_a_process_maps_it_and_free_when_that_is_killed(pool: Pool) -> None:
    lease = pool.lease(SIZE, US)
    descriptor = lease.segment.share(writable=False)

    def map_it() -> object:
        memory = mmap.mmap(descriptor, SIZE, access=mmap.ACCESS_COPY)
        os.close(descriptor)
        return memory

    with another_process(map_it):
        os.close(descriptor)
        lease.close()
        assert lease.segment.is_used()
        assert pool.lease(SIZE, US).segment is not lease.segment
    assert not lease.segment.is_used()


def test_nobody_can_change_its_size(pool: Pool) -> None:
    descriptor = pool.lease(SIZE, US).segment.share(writable=True)
    for size in (0, 4096, 2 * SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    os.close(descriptor)


def test_memory_that_nobody_uses_is_closed_after_a_while(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = pool.lease(SIZE, US)
    descriptor = lease.segment.descriptor
    monkeypatch.setattr(segments, "IDLE_TIME", -1.0)
    assert pool.sweep()
    assert pool.sweep()  # it is still leased
    lease.close()
    assert pool.sweep()  # since now
    assert not pool.sweep()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_memory_that_is_used_again_is_not_idle(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "IDLE_TIME", -1.0)
    pool.lease(SIZE, US).close()
    pool.sweep()
    lease = pool.lease(SIZE, US)
    assert pool.sweep()
    lease.close()
    assert pool.sweep()
    assert not pool.sweep()


def test_more_than_there_is_is_refused_before_it_is_touched(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "find_available_memory", lambda: segments._RESERVE + 2 * SIZE)
    with pytest.raises(NoRoomError) as refused:
        pool.lease(3 * SIZE, US)
    assert (refused.value.needed, refused.value.free) == (3 * SIZE, 2 * SIZE)
    assert len(pool) == 0
    pool.lease(2 * SIZE, US)


def test_what_is_promised_and_not_touched_counts(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "find_available_memory", lambda: segments._RESERVE + 3 * SIZE)
    kept = pool.lease(2 * SIZE, US)
    with pytest.raises(NoRoomError) as refused:
        pool.lease(2 * SIZE, US)
    assert refused.value.free == SIZE
    kept.close()
    pool.lease(3 * SIZE, OTHERS)  # the other one made room
    assert len(pool) == 1


def test_many_in_use_are_left_to_their_users(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MOST_KEPT", 3)
    users = []
    for number in range(10):
        lease = pool.lease(4096, US)
        descriptor = lease.segment.share(writable=True)
        memory = mmap.mmap(descriptor, 4096)
        memory[0] = number
        os.close(descriptor)
        lease.close()
        users.append(memory)
    assert len(pool) == 3
    assert [memory[0] for memory in users] == list(range(10))


def test_memory_that_is_asked_for_and_not_written_to_is_not_given_for_ever(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "MOST_KEPT", 3)
    monkeypatch.setattr(segments, "MOST_SEGMENTS", 5)
    descriptors = []
    for _ in range(5):
        lease = pool.lease(4096, US)
        descriptors.append(lease.segment.share(writable=True))
        lease.close()
    with pytest.raises(NoRoomError) as refused:
        pool.lease(4096, US)
    assert refused.value.count == 5
    for descriptor in descriptors:
        os.close(descriptor)


def test_without_memfd_it_is_a_file_without_a_name_that_stays_here(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pool.lease(SIZE, US).segment.can_travel
    monkeypatch.delattr(os, "memfd_create")
    lease = pool.lease(SIZE, OTHERS)
    assert not lease.segment.can_travel
    assert os.fstat(lease.segment.descriptor).st_nlink == 0
    descriptor = lease.segment.share(writable=True)
    write(descriptor)
    os.close(descriptor)
    assert os.pread(lease.segment.descriptor, 2, SIZE - 2) == b"xx"
