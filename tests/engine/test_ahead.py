"""Digests of a source while its bytes travel: where they are made, what is asked for, and what a peer may send."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace

import pytest

from p2prw.engine import ahead, digest
from p2prw.engine.ahead import ASK_BYTES, OurSource, PeerSource, source_ahead
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import Digest, Digests
from p2prw.engine.digest import BLOCK_BYTES, digest_block
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import Operation, RouteReport
from p2prw.errors import RemoteProtocolError
from p2prw.units import MIB

LEASE = "0" * 16


@pytest.fixture
def channels():
    ours, theirs = (Channel(end) for end in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def route(driver: str = "rxe", memory: str = "host") -> RouteReport:
    return RouteReport("pin", "cpu", False, memory, "rxe0", driver)


def page(first: int, count: int, *, lease: str = LEASE, method: str = "owner-cpu") -> Digests:
    digests = tuple(f"{block:032x}" for block in range(first, first + count))
    return Digests(lease, first * BLOCK_BYTES, digests, more=False, method=method)


def test_a_thread_digests_our_memory_block_by_block():
    data = bytes(range(256)) * (3 * BLOCK_BYTES // 256) + b"the rest"
    source = OurSource(memoryview(data))
    source._thread.join()
    assert source.digests == [digest_block(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)]
    assert source.asked_bytes == 0
    with pytest.raises(RemoteProtocolError):
        source.take_in(page(0, 1))


def test_stopped_it_touches_the_memory_no_more(monkeypatch):
    began, goes_on = threading.Event(), threading.Event()

    def slow(block: memoryview) -> str:
        began.set()
        assert goes_on.wait(10)
        return digest_block(block)

    monkeypatch.setattr(ahead, "digest_block", slow)
    memory = bytearray(8 * BLOCK_BYTES)
    source = OurSource(memoryview(memory)[:])
    assert began.wait(10)
    threading.Timer(0.05, goes_on.set).start()
    source.stop()
    assert len(source.digests) == 1, "the block that was under way"
    source._thread.join()
    memory.clear()  # BufferError while anything looks at it


def test_the_peer_is_asked_for_a_little_at_a_time(channels):
    ours, theirs = channels
    blocks = ASK_BYTES // BLOCK_BYTES
    source = PeerSource(ours, LEASE, ASK_BYTES + BLOCK_BYTES + 5, shares=True)
    assert theirs.receive() == Digest(LEASE, 0, ASK_BYTES, BLOCK_BYTES)
    source.take_in(page(0, 3))
    assert theirs.receive() is None and source.asked_bytes == ASK_BYTES
    source.take_in(page(3, blocks - 3))
    assert theirs.receive() == Digest(LEASE, ASK_BYTES, BLOCK_BYTES + 5, BLOCK_BYTES)
    assert source.asked_bytes == ASK_BYTES + BLOCK_BYTES + 5
    source.take_in(page(blocks, 2))
    assert theirs.receive() is None and len(source.digests) == blocks + 2
    source.stop()


def test_what_is_asked_for_is_not_shared_among_threads_there(monkeypatch):
    monkeypatch.setattr(digest, "_digest_together", lambda *_: pytest.fail("shared"))
    list(digest.digest_blocks(HostMemory.from_buffer(bytearray(ASK_BYTES)), 0, ASK_BYTES, BLOCK_BYTES))


@pytest.mark.parametrize(
    "answer",
    [
        page(0, 9),
        page(1, 1),
        page(0, 0),
        page(0, 1, lease="1" * 16),
        page(0, 0, method="client-read-back"),
        page(0, 1, method="owner-loopback-read"),
    ],
)
def test_a_page_that_answers_something_else_ends_it(channels, answer):
    source = PeerSource(channels[0], LEASE, 32 * MIB, shares=False)
    source.stop()
    with pytest.raises(RemoteProtocolError, match="not asked for"):
        source.take_in(answer)


def test_no_page_is_taken_after_the_last(channels):
    source = PeerSource(channels[0], LEASE, 8 * MIB, shares=True)
    source.stop()
    source.take_in(page(0, 8))
    with pytest.raises(RemoteProtocolError):
        source.take_in(page(8, 1))


class TestWhere:
    @pytest.fixture(autouse=True)
    def two_processors(self, monkeypatch):
        monkeypatch.setattr(ahead, "own_processors", lambda: 2)

    @pytest.fixture
    def begin(self, channels):
        memory = HostMemory.from_buffer(bytearray(16 * MIB))

        def make(operation, source=None, other=None, length_bytes=16 * MIB, memory=memory):
            ends = [source or route(), other or route(memory="file")]
            local, remote = ends if operation is Operation.WRITE else reversed(ends)
            made = source_ahead(channels[0], LEASE, operation, local, remote, memory, length_bytes)
            if made is not None:
                made.stop()
            return made

        return make

    def test_host_memory_between_two_rxe(self, begin, channels):
        assert isinstance(begin(Operation.WRITE), OurSource)
        assert channels[1].receive() is None
        assert isinstance(begin(Operation.READ), PeerSource)
        assert isinstance(channels[1].receive(), Digest)
        assert isinstance(begin(Operation.READ, memory=object()), PeerSource), "into a file of ours"

    @pytest.mark.parametrize("operation", list(Operation))
    def test_nothing_else(self, begin, channels, monkeypatch, operation):
        for driver in ("mlx5_core", "siw", "soft", "scripted"):
            assert begin(operation, route(driver)) is None, driver
            assert begin(operation, other=route(driver)) is None, driver
        for kind in ("p2pmem", "file", "udmabuf"):
            assert begin(operation, route(memory=kind)) is None, kind
        assert begin(operation, replace(route(), staged=True)) is None
        assert begin(operation, length_bytes=16 * MIB - 1) is None
        monkeypatch.setattr(ahead, "own_processors", lambda: 1)
        assert begin(operation) is None, "--cpu 0: it would be the transfer's own processor"
        assert channels[1].receive() is None

    def test_nothing_that_cannot_be_read_where_it_lies(self, begin):
        memory = HostMemory.from_buffer(bytearray(16))
        memory.buffer.view = None
        assert begin(Operation.WRITE, memory=memory) is None
        assert begin(Operation.WRITE, memory=object()) is None
