"""The ends of a transfer: cutting segments, rings, and the peer's staging slots."""

from __future__ import annotations

import select
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import Commit, Committed, Fill, Filled, Segment, Staging
from p2prw.engine.ends import DirectRemote, RingLocal, Span, StagedRemote, contexts_for, cut_segments
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import DmaSegment, Operation, RemoteSegment
from p2prw.engine.rw import RwLimits
from p2prw.engine.staging import StagingRing
from p2prw.errors import RemoteProtocolError


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_cut_segments_covers_exactly_the_range(lengths, data):
    segments, start = [], 1000
    for key, length in enumerate(lengths):
        segments.append(RemoteSegment(start, length, key))
        start += length + 7
    total = sum(lengths)
    offset = data.draw(st.integers(0, total))
    length = data.draw(st.integers(0, total - offset))
    flat = [(s.address + i, s.rkey) for s in segments for i in range(s.length_bytes)]
    cut = [(s.address + i, s.rkey) for s in cut_segments(segments, offset, length) for i in range(s.length_bytes)]
    assert cut == flat[offset : offset + length]


def test_segments_shorter_than_the_grant_are_the_peers_fault():
    with pytest.raises(RemoteProtocolError) as caught:
        cut_segments([RemoteSegment(0, 10, 1)], 5, 6)
    assert caught.value.code == "bad_grant" and "1 bytes are missing" in str(caught.value.why)


def test_a_ring_fills_for_write_and_drains_for_read():
    memory = HostMemory.from_buffer(bytearray(range(200)))
    ring = StagingRing(memory, chunk_bytes=64, slots=2)
    vec = (DmaSegment(0x1000, 128, 9),)
    try:
        writing = RingLocal(ring, vec, Operation.WRITE, base_offset=10)
        first, second = writing.take(), writing.take()
        assert (first, second, writing.take()) == (0, 1, None)
        span = Span(64, 64, local_slot=1)
        assert not writing.prepare(span) and writing.settle(span)
        assert select.select([ring.wake_fileno()], [], [], 5)[0]
        assert writing.poll() == [(1, 64)]
        assert bytes(ring.buffer.load(64, 64)) == bytes(range(74, 138))
        assert writing.vec(span) == ((DmaSegment(0x1040, 64, 9),), 0)
        writing.give(1)
        assert writing.take() == 1
        reading = RingLocal(ring, vec, Operation.READ)
        ring.buffer.store(0, b"abc")
        drain = Span(100, 3, local_slot=0)
        assert reading.prepare(drain) and not reading.settle(drain)
        assert select.select([ring.wake_fileno()], [], [], 5)[0]
        assert reading.poll() == [(0, 100)]
        seen = bytearray(3)
        memory.read_at(100, memoryview(seen))
        assert seen == b"abc"
    finally:
        ring.close()


def test_staged_memory_asks_before_a_read_and_tells_after_a_write():
    ours, theirs = socket.socketpair()
    lease = "0" * 16
    staging = Staging(4096, (Segment(0x1000, 4096, 1), Segment(0x9000, 100, 2)))
    with Channel(ours) as channel, Channel(theirs) as peer:
        reading = StagedRemote(channel, lease, staging, Operation.READ, base_offset=1000)
        span = Span(4096, 4096, remote_slot=0)
        assert not reading.prepare(span) and reading.settle(span)
        assert peer.receive() == Fill(lease, 0, 5096, 4096)
        assert reading.answered(Filled(lease, 0, 5096)) == (0, 4096)
        with pytest.raises(RemoteProtocolError):
            reading.answered(Filled("1" * 16, 0, 5096))
        assert reading.segments(span) == (RemoteSegment(0x1000, 4096, 1),)
        with pytest.raises(RemoteProtocolError, match="shorter"):
            reading.segments(Span(0, 4096, remote_slot=1))
        writing = StagedRemote(channel, lease, staging, Operation.WRITE)
        assert writing.prepare(span) and not writing.settle(span)
        assert peer.receive() == Commit(lease, 0, 4096, 4096)
        assert writing.answered(Committed(lease, 0, 4096)) == (0, 4096)
        assert [writing.take(), writing.take(), writing.take()] == [0, 1, None]


def test_an_answer_of_the_other_direction_frees_no_slot():
    """`committed` under a READ would give a slot back that is still being written from."""
    ours, theirs = socket.socketpair()
    lease, staging = "0" * 16, Staging(4096, (Segment(0x1000, 4096, 1),))
    with Channel(ours) as channel, Channel(theirs):
        for direction, answer in ((Operation.READ, Committed), (Operation.WRITE, Filled)):
            remote = StagedRemote(channel, lease, staging, direction)
            with pytest.raises(RemoteProtocolError, match="not asked for"):
                remote.answered(answer(lease, 0, 0))


def test_contexts_are_one_for_each_remote_segment():
    class Local:
        span_bytes = None

        def vec(self, span: Span):
            return (DmaSegment(0, 1 << 20, 5),), span.offset

    remote = DirectRemote([RemoteSegment(0, 100, 1), RemoteSegment(5000, 300, 2)])
    limits = RwLimits(max_write_sge=4, max_read_sge=4)
    contexts = contexts_for(Span(50, 200), Local(), remote, Operation.WRITE, limits)  # type: ignore[arg-type]
    assert [(c.remote_addr, c.length_bytes, c.rkey) for c in contexts] == [(50, 50, 1), (5000, 150, 2)]
    assert contexts[1].wr(0).sges[0].address == 100
