"""The staging ring: slots, jobs on threads, waking a selector, errors, and closing while a thread hangs."""

from __future__ import annotations

import os
import select
import threading
import time
from pathlib import Path

import pytest

from p2prw.engine import staging
from p2prw.engine.memory.file import FileSource
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.memory.mapped import MappedMemory
from p2prw.engine.memory.prepare import prepare_memory
from p2prw.engine.memory.spec import make_spec
from p2prw.engine.staging import StagingJob, StagingRing
from p2prw.errors import HostError, LocalProtocolError, RequestError


def wait(ring: StagingRing, count: int = 1) -> list[StagingJob]:
    """Sleep on the descriptor, as a loop does, until `count` jobs came."""
    jobs: list[StagingJob] = []
    while len(jobs) < count:
        assert select.select([ring.wake_fileno()], [], [], 20)[0], "no wake-up"
        jobs += ring.poll()
    return jobs


def slot_of(ring: StagingRing, slot: int) -> memoryview:
    view = ring.buffer.view
    assert view is not None
    return view[slot * ring.chunk_bytes : (slot + 1) * ring.chunk_bytes]


class Gate:
    """Memory whose reads wait until they are let through."""

    def __init__(self, data: bytes) -> None:
        self.memory = HostMemory.from_buffer(bytearray(data))
        self.entered = threading.Event()
        self.open = threading.Event()

    def source(self) -> MappedMemory:
        plain = self.memory.read_at

        def read_at(offset: int, into: memoryview) -> int:
            self.entered.set()
            assert self.open.wait(20)
            return plain(offset, into)

        self.memory.read_at = read_at  # type: ignore[method-assign]
        return self.memory


def test_a_file_through_the_ring_into_a_file(tmp_path: Path) -> None:
    data = os.urandom(300_001)
    (tmp_path / "in").write_bytes(data)
    source = FileSource(make_spec("file", str(tmp_path / "in"), {}))
    sink = prepare_memory(make_spec("file", str(tmp_path / "out"), {}), "sink").open(len(data))
    fill = StagingRing(source, chunk_bytes=4096, slots=5)
    drain = StagingRing(sink, chunk_bytes=4096, slots=5)
    offsets = list(range(0, len(data), 4096))
    pending = 0
    while offsets or pending:
        while offsets and (slot := fill.acquire()) is not None:
            offset = offsets.pop(0)
            fill.start_fill(slot, offset, min(4096, len(data) - offset))
            pending += 1
        for job in wait(fill):
            assert (job.kind, job.error) == ("fill", None)
            slot_of(drain, job.slot)[: job.length_bytes] = slot_of(fill, job.slot)[: job.length_bytes]
            drain.start_drain(job.slot, job.offset, job.length_bytes)
            (done,) = wait(drain)
            assert (done.kind, done.slot, done.offset, done.error) == ("drain", job.slot, job.offset, None)
            fill.release(job.slot)
            pending -= 1
    assert fill.close() and drain.close()
    sink.commit()
    sink.close()
    assert (tmp_path / "out").read_bytes() == data


def test_slots_lie_one_after_the_other_in_one_mapping() -> None:
    with_memory = HostMemory.from_buffer(bytearray(10))
    ring = StagingRing(with_memory, chunk_bytes=100, slots=3)
    assert ring.buffer.length_bytes == 300
    assert ring.buffer.view is not None
    slot_of(ring, 1)[:3] = b"abc"
    assert bytes(ring.buffer.view[99:104]) == b"\0abc\0"
    assert ring.buffer.cpu_address % 4096 == 0
    ring.close()


def test_books_of_slots() -> None:
    ring = StagingRing(HostMemory.from_buffer(bytearray(10)), chunk_bytes=4, slots=2)
    assert ring.free_slots == 2
    assert [ring.acquire(), ring.acquire(), ring.acquire()] == [0, 1, None]
    ring.release(1)
    assert (ring.free_slots, ring.acquire()) == (1, 1)
    ring.release(0)
    for slot in (0, 2, -1):
        with pytest.raises(LocalProtocolError):
            ring.release(slot)
    ring.close()


def test_a_blocked_read_blocks_nobody_else() -> None:
    gate = Gate(b"0123456789")
    ring = StagingRing(gate.source(), chunk_bytes=10, slots=2)
    ring.start_fill(0, 0, 10)
    assert gate.entered.wait(20)
    # The loop goes on: nothing is finished, nothing wakes it, the slot is taken.
    assert ring.poll() == []
    assert select.select([ring.wake_fileno()], [], [], 0)[0] == []
    for misuse in (lambda: ring.start_fill(0, 0, 1), lambda: ring.release(0)):
        with pytest.raises(LocalProtocolError):
            misuse()
    gate.open.set()
    (job,) = wait(ring)
    assert job.slot == 0
    assert bytes(slot_of(ring, 0)) == b"0123456789"
    assert select.select([ring.wake_fileno()], [], [], 0)[0] == []
    ring.start_fill(0, 5, 1)
    wait(ring)
    ring.close()


def test_the_memory_s_own_error_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(100))
    source = FileSource(make_spec("file", str(path), {}))
    ring = StagingRing(source, chunk_bytes=100, slots=1)
    os.truncate(path, 10)
    ring.start_fill(0, 0, 100)
    (job,) = wait(ring)
    assert isinstance(job.error, HostError)
    assert job.error.code == "source_changed"
    # The ring goes on after an error.
    ring.start_fill(0, 0, 10)
    assert wait(ring)[0].error is None
    ring.close()


def test_a_fill_past_the_end_is_an_error() -> None:
    ring = StagingRing(HostMemory.from_buffer(bytearray(10)), chunk_bytes=8, slots=1)
    ring.start_fill(0, 5, 8)
    (job,) = wait(ring)
    assert job.error is not None
    assert (job.error.code, "3 bytes too early" in job.error.what) == ("source_changed", True)
    ring.close()


def test_any_other_exception_is_named() -> None:
    memory = HostMemory.from_buffer(bytearray(10))

    def broken(offset: int, data: memoryview) -> None:
        raise OSError(5, "Input/output error")

    memory.write_at = broken  # type: ignore[method-assign]
    ring = StagingRing(memory, chunk_bytes=8, slots=1)
    ring.start_drain(0, 0, 8)
    (job,) = wait(ring)
    assert job.error is not None
    assert (job.error.code, job.error.errno) == ("staging_failed", "EIO")
    assert isinstance(job.error.__cause__, OSError)
    ring.close()


def test_big_slots_are_moved_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "PIECE_BYTES", 1000)
    data = os.urandom(2500)
    memory = HostMemory.from_buffer(bytearray(data))
    plain, sizes = memory.read_at, []

    def read_at(offset: int, into: memoryview) -> int:
        sizes.append(len(into))
        return plain(offset, into)

    memory.read_at = read_at  # type: ignore[method-assign]
    ring = StagingRing(memory, chunk_bytes=2500, slots=1)
    ring.start_fill(0, 0, 2500)
    wait(ring)
    assert sizes == [1000, 1000, 500]
    assert slot_of(ring, 0) == data
    ring.close()


def test_what_does_not_fit() -> None:
    memory = HostMemory.from_buffer(bytearray(10))
    for chunk, slots in ((0, 1), (1, 0)):
        with pytest.raises(RequestError):
            StagingRing(memory, chunk_bytes=chunk, slots=slots)
    ring = StagingRing(memory, chunk_bytes=4, slots=1)
    for slot, length in ((1, 1), (-1, 1), (0, 5), (0, -1)):
        with pytest.raises(LocalProtocolError):
            ring.start_fill(slot, 0, length)
    ring.start_fill(0, 0, 0)
    assert wait(ring)[0].error is None
    ring.close()


def test_closing_drops_what_waits_and_is_heard_once() -> None:
    gate = Gate(b"0123456789")
    ring = StagingRing(gate.source(), chunk_bytes=10, slots=4, workers=1)
    for slot in range(4):
        ring.start_fill(slot, 0, 10)
    assert gate.entered.wait(20)
    threading.Timer(0.05, gate.open.set).start()
    assert ring.close(20)
    assert ring.close()
    with pytest.raises(LocalProtocolError):
        ring.start_fill(0, 0, 1)
    assert [job.slot for job in ring.poll()] == [0]


def test_a_thread_that_hangs_on_does_not_hold_the_loop() -> None:
    gate = Gate(b"0123456789")
    ring = StagingRing(gate.source(), chunk_bytes=10, slots=1)
    ring.start_fill(0, 0, 10)
    assert gate.entered.wait(20)
    started = time.monotonic()
    assert not ring.close(0.05)
    assert time.monotonic() - started < 10
    assert not ring.close()
    # It comes back later: into memory that is still mapped, and without a wake-up to a descriptor that is gone.
    gate.open.set()
    for thread in ring._threads:
        thread.join(20)
        assert thread.daemon
    assert ring.close()
