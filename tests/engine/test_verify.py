"""Verification block by block: what each kind of difference is called, and where it begins."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

import p2prw.engine.verify as verify_module
from p2prw.engine.ahead import SourceAhead
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import DIGESTS_PER_PAGE, Digest, Digests
from p2prw.engine.digest import BLOCK_BYTES, digest_block, digest_blocks
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import Operation, VerifyReport
from p2prw.engine.verify import Previous, Verifier
from p2prw.errors import RemoteProtocolError
from p2prw.units import MIB

LEASE = "0" * 16


class Peer:
    """Answers each digest request from its own memory."""

    def __init__(self, remote: bytearray, *, page: int = DIGESTS_PER_PAGE) -> None:
        ours, theirs = socket.socketpair()
        self.channel, self._there = Channel(ours), Channel(theirs)
        self.remote = remote
        self._page = page
        self._pages: list[Digests] = []
        self.requests: list[Digest] = []

    def expect(self, name: str) -> Digests:
        while (message := self._there.receive()) is not None:
            assert isinstance(message, Digest)
            self.requests.append(message)
            source = HostMemory.from_buffer(self.remote)
            blocks = list(digest_blocks(source, message.offset, message.length, message.block_bytes))
            for first in range(0, len(blocks), self._page):
                page = tuple(blocks[first : first + self._page])
                more = first + self._page < len(blocks)
                self._pages.append(Digests(LEASE, message.offset + first * message.block_bytes, page, more=more))
        return self._pages.pop(0)

    def close(self) -> None:
        self.channel.close()
        self._there.close()


def verify(
    local: bytearray,
    peer: Peer,
    operation: Operation = Operation.WRITE,
    read_remote: Callable[[int, int], bytes | None] | None = None,
    expect: Callable[[str], Digests] | None = None,
    previous: tuple[Previous, ...] = (),
    ahead: SourceAhead | None = None,
) -> VerifyReport:
    verifier = Verifier(
        channel=peer.channel,
        lease=LEASE,
        operation=operation,
        local=HostMemory.from_buffer(local),
        length_bytes=len(local),
        clock=lambda: 0.0,
        expect=expect or peer.expect,
        read_remote=read_remote or (lambda offset, length: bytes(peer.remote[offset : offset + length])),
        tick=lambda: None,
        previous=previous,
        ahead=ahead,
    )
    steps = verifier.run()
    try:
        while True:
            next(steps)
    except StopIteration as finished:
        report: VerifyReport = finished.value
    finally:
        peer.close()
    return report


def data(length: int) -> bytearray:
    return bytearray(bytes(range(1, 252)) * (length // 251 + 1))[:length]


@pytest.mark.parametrize("length", [1, BLOCK_BYTES, 3 * BLOCK_BYTES + 5])
def test_equal_memory_is_verified_with_one_digest_of_digests(length):
    report = verify(data(length), Peer(data(length), page=2))
    assert report.status == "verified" and report.local_digest == report.remote_digest
    assert report.blocks == -(-length // BLOCK_BYTES) and report.method == "owner-cpu"


class Ahead:
    """The first `blocks` digests of `source`; a peer was asked up to `asked_bytes`."""

    def __init__(self, source: bytearray, blocks: int, asked_bytes: int = 0) -> None:
        every = list(digest_blocks(HostMemory.from_buffer(source), 0, len(source), BLOCK_BYTES))
        self.digests = every[:blocks]
        self.asked_bytes = asked_bytes

    def take_in(self, page: Digests) -> None:
        raise AssertionError

    def stop(self) -> None:
        raise AssertionError


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("blocks", [0, 1, 3, 4])
def test_what_was_digested_ahead_at_our_end_is_not_digested_again(monkeypatch, blocks, bad):
    length = 3 * BLOCK_BYTES + 5
    source, peer = data(length), Peer(data(length), page=2)
    peer.remote[2 * MIB + 9] ^= bad
    ahead, seen = Ahead(source, blocks), []

    def counted(memory: HostMemory, *args: int) -> Iterator[str]:
        seen.append(args[:2])
        return digest_blocks(memory, *args)

    monkeypatch.setattr(verify_module, "digest_blocks", counted)
    report = verify(source, peer, ahead=ahead)
    assert seen[0] == (min(blocks * BLOCK_BYTES, length), max(0, length - blocks * BLOCK_BYTES))
    assert (report.status, report.blocks, report.blocks_ahead) == ("mismatch" if bad else "verified", 4, blocks)
    assert report.first_bad_offset == (2 * MIB + 9 if bad else None)


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("blocks", [0, 2, 4])
def test_what_the_peer_digested_ahead_is_not_asked_for_again(blocks, bad):
    length = 3 * BLOCK_BYTES + 5
    sink, peer = data(length), Peer(data(length), page=2)
    sink[2 * MIB + 9] ^= bad
    peer.channel.send(Digest(LEASE, 0, length, BLOCK_BYTES))
    early = [peer.expect("early") for _ in range(blocks // 2)]
    ahead = Ahead(peer.remote, blocks, asked_bytes=length)
    assert [digest for page in early for digest in page.digests] == ahead.digests
    report = verify(sink, peer, Operation.READ, ahead=ahead)
    assert (report.status, report.blocks, report.blocks_ahead) == ("mismatch" if bad else "verified", 4, blocks)
    assert report.first_bad_offset == (2 * MIB + 9 if bad else None)
    asked = [(request.offset, request.length) for request in peer.requests]
    assert asked == [(0, length)] + [(2 * MIB, MIB)] * bad, "and once more for the block that differs"


def test_a_source_that_changed_after_it_was_digested_ahead_is_unstable():
    source = data(2 * MIB)
    ahead = Ahead(source, 2)
    source[MIB + 3] ^= 1
    report = verify(source, Peer(bytearray(source)), ahead=ahead)
    assert (report.status, report.first_bad_offset) == ("unstable", MIB) and "the local bytes" in str(report.why)


def test_more_than_a_stride_is_compared_stride_by_stride(monkeypatch):
    monkeypatch.setattr(verify_module, "DIGESTS_PER_PAGE", 2)
    length = 5 * BLOCK_BYTES + 7
    peer = Peer(data(length), page=2)
    report = verify(data(length), peer, ahead=Ahead(data(length), 3))
    assert (report.status, report.blocks, report.blocks_ahead) == ("verified", 6, 3)
    peer = Peer(data(length), page=2)
    peer.channel.send(Digest(LEASE, 0, 2 * BLOCK_BYTES, BLOCK_BYTES))
    peer.expect("early")
    peer.channel.send(Digest(LEASE, 2 * BLOCK_BYTES, BLOCK_BYTES, BLOCK_BYTES))
    ahead = Ahead(peer.remote, 2, asked_bytes=3 * BLOCK_BYTES)
    report = verify(data(length), peer, Operation.READ, ahead=ahead)
    assert (report.status, report.blocks, report.blocks_ahead) == ("verified", 6, 2)
    assert [request.offset for request in peer.requests] == [block * BLOCK_BYTES for block in (0, 2, 3, 4)]


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.READ])
@pytest.mark.parametrize(
    ("spoil", "classification"),
    [
        (lambda b: b.__setitem__(slice(100, 200), b"\xff" * 100), "all_ff"),
        (lambda b: b.__setitem__(100, b[100] ^ 4), "corrupt"),
    ],
)
def test_a_difference_is_placed_and_named_on_the_side_that_received(operation, spoil, classification):
    good, bad = data(2 * MIB + 77), data(2 * MIB + 77)
    tail = bad[2 * MIB - MIB :]
    spoil(tail)
    bad[MIB:] = tail
    local, remote = (good, bad) if operation is Operation.WRITE else (bad, good)
    report = verify(local, Peer(remote), operation)
    assert (report.status, report.classification) == ("mismatch", classification)
    assert report.first_bad_offset is not None and MIB + 100 <= report.first_bad_offset < MIB + 104
    assert "1 of 3 blocks differ" in str(report.why)


def test_memory_that_moves_is_unstable():
    local, remote = data(MIB), data(MIB)
    remote[5] ^= 1
    peer = Peer(remote)
    calls = [0]

    def expect(name: str) -> Digests:
        page = peer.expect(name)
        calls[0] += 1
        peer.remote[6] ^= 0xFF  # somebody goes on writing
        return page

    report = verify(local, peer, expect=expect)
    assert report.status == "unstable" and "remote" in str(report.why) and calls[0] == 2


def test_a_block_that_cannot_be_read_back_is_still_a_mismatch():
    local, remote = data(MIB), data(MIB)
    remote[5] ^= 1
    report = verify(local, Peer(remote), read_remote=lambda *_: None)
    assert (report.status, report.first_bad_offset) == ("mismatch", 0)


def test_digests_that_differ_over_bytes_that_do_not_are_called_incoherent():
    local, remote = data(MIB), data(MIB)
    remote[5] ^= 1
    report = verify(local, Peer(remote), read_remote=lambda *_: bytes(local))
    assert report.classification == "incoherent"


POISON = Previous(lambda offset, length: b"\x99" * length, "the ring")
OTHER = Previous(lambda offset, length: b"\x77" * length)


@pytest.mark.parametrize("before", [(POISON,), (OTHER, POISON), (POISON, OTHER)])
def test_what_was_there_before_says_that_nothing_arrived(before):
    local, remote = data(MIB), data(MIB)
    remote[4096:] = b"\x99" * (MIB - 4096)
    report = verify(local, Peer(remote), previous=before)
    assert (report.first_bad_offset, report.classification) == (4096, "never_arrived")
    assert str(report.why).endswith("; the ring")
    assert verify(local, Peer(remote)).classification == "corrupt"


def test_bytes_that_come_back_through_the_ring_that_lost_them():
    """The peer's file is digested from the file, but read back through its ring: poison again."""
    local, remote = bytearray(b"\x99" * MIB), data(MIB)
    report = verify(local, Peer(remote), Operation.READ, lambda *_: b"\x99" * MIB, previous=(OTHER, POISON))
    assert (report.first_bad_offset, report.classification) == (0, "never_arrived")


@pytest.mark.parametrize(
    "page",
    [
        Digests(LEASE, 4096, ("0" * 32,), more=False),
        Digests("1" * 16, 0, ("0" * 32,), more=False),
        Digests(LEASE, 0, (), more=True),
        Digests(LEASE, 0, ("0" * 32, "0" * 32), more=False),
    ],
)
def test_pages_that_were_not_asked_for_are_the_peers_fault(page):
    with pytest.raises(RemoteProtocolError):
        verify(data(100), Peer(data(100)), expect=lambda _: page)


def test_long_ranges_are_asked_for_page_by_page():
    """A request never covers more blocks than a page of digests holds, so no frame grows with the transfer."""
    blocks = DIGESTS_PER_PAGE + 3
    zeros = digest_block(bytes(BLOCK_BYTES))
    ours, theirs = socket.socketpair()
    asked: list[int] = []

    class Zeros:
        digest_method = "owner-cpu"

        def read_at(self, offset: int, into: memoryview) -> int:
            into[:] = bytes(len(into))
            return len(into)

    with Channel(ours) as channel, Channel(theirs) as there:

        def expect(name: str) -> Digests:
            message = there.receive()
            assert isinstance(message, Digest)
            asked.append(message.length // BLOCK_BYTES)
            return Digests(LEASE, message.offset, (zeros,) * asked[-1], more=False)

        verifier = Verifier(
            channel=channel,
            lease=LEASE,
            operation=Operation.WRITE,
            local=Zeros(),  # type: ignore[arg-type]
            length_bytes=blocks * BLOCK_BYTES,
            clock=lambda: 0.0,
            expect=expect,
            read_remote=lambda *_: None,
            tick=lambda: None,
        )
        compared = list(verifier.run())
    assert asked == [DIGESTS_PER_PAGE, 3]
    assert compared == sorted(compared) and verifier.blocks_done == blocks
