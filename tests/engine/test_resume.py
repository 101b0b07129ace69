"""What is skipped was compared at both ends; where the source changed, nothing is; memory stays small."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from p2prw.engine import resume
from p2prw.engine.control.messages import Digest, Digests
from p2prw.engine.digest import BLOCK_BYTES, digest_block
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import Operation
from p2prw.engine.resume import Survey
from p2prw.errors import RemoteProtocolError
from p2prw.units import MIB

LEASE = "0" * 16
LENGTH = 6 * MIB + 5


def block(number: int) -> bytes:
    return bytes([number % 250]) * BLOCK_BYTES


def source_bytes(length: int = LENGTH) -> bytearray:
    return bytearray(b"".join(block(number) for number in range(-(-length // BLOCK_BYTES)))[:length])


class Peer:
    """Answers digests of `memory`; of a manifest only the blocks in `noted`."""

    def __init__(self, memory: bytes, noted: set[int] | None = None, page: int = 4) -> None:
        self.memory, self.noted, self.page = memory, noted, page
        self.asked: list[Digest] = []
        self.answers: Iterator[Digests] = iter(())

    def send(self, message: Digest) -> None:
        self.asked.append(message)
        self.answers = self._answer(message)

    def _answer(self, message: Digest) -> Iterator[Digests]:
        digests = []
        for start in range(message.offset, message.offset + message.length, BLOCK_BYTES):
            data = self.memory[start : min(start + BLOCK_BYTES, message.offset + message.length)]
            skipped = message.noted and start // BLOCK_BYTES not in (self.noted or set())
            digests.append("" if skipped else digest_block(data))
        for start in range(0, len(digests), self.page):
            more = start + self.page < len(digests)
            offset = message.offset + start * BLOCK_BYTES
            yield Digests(message.lease, offset, tuple(digests[start : start + self.page]), more)

    def expect(self, name: str) -> Digests:
        return next(self.answers)


def survey(peer: Peer, memory: bytearray, operation: Operation = Operation.WRITE, manifest: bool = True) -> Survey:
    one = Survey(
        channel=peer,  # type: ignore[arg-type]
        lease=LEASE,
        operation=operation,
        local=HostMemory.from_buffer(memory),
        length_bytes=len(memory),
        manifest=manifest,
        expect=peer.expect,
        read_remote=lambda offset, length: peer.memory[offset : offset + length],
        tick=lambda: None,
    )
    for _ in one.run():
        pass
    return one


def test_noted_blocks_that_are_the_sources_are_skipped():
    memory = source_bytes()
    found = survey(Peer(bytes(memory), noted={0, 1, 4}), memory)
    assert found.missing == [(2 * MIB, 4 * MIB), (5 * MIB, LENGTH)]
    assert found.held_bytes == 3 * MIB and found.changed_offset is None


def test_all_and_nothing():
    memory = source_bytes()
    assert survey(Peer(bytes(memory), noted=set(range(7))), memory).missing == []
    nothing = survey(Peer(bytes(memory), noted=set()), memory)
    assert nothing.missing == [(0, LENGTH)] and nothing.held_bytes == 0


def test_one_noted_block_of_another_source_means_starting_over():
    memory = source_bytes()
    other = bytearray(memory)
    other[4 * MIB + 17] ^= 1
    found = survey(Peer(bytes(other), noted={0, 4}), memory)
    assert (found.missing, found.held_bytes, found.changed_offset) == ([(0, LENGTH)], 0, 4 * MIB)


def test_a_block_that_was_not_noted_may_hold_anything():
    memory = source_bytes()
    other = bytes(MIB) + bytes(memory[MIB:])
    found = survey(Peer(other, noted={1, 2}), memory)
    assert found.changed_offset is None and found.missing == [(0, MIB), (3 * MIB, LENGTH)]


@pytest.mark.parametrize("operation", list(Operation))
def test_memory_without_a_manifest_is_compared_whole(operation):
    """A block device or a server's memory: what differs is moved, whatever it is."""
    memory = source_bytes()
    other = bytearray(memory)
    other[2 * MIB] ^= 1
    other[LENGTH - 1] ^= 1
    peer = Peer(bytes(other))
    found = survey(peer, memory, operation, manifest=False)
    assert found.missing == [(2 * MIB, 3 * MIB), (6 * MIB, LENGTH)] and found.changed_offset is None
    assert found.held_bytes == 5 * MIB
    assert not any(message.noted for message in peer.asked)


def test_more_holes_than_are_remembered_are_moved_together(monkeypatch):
    monkeypatch.setattr(resume, "MOST_RANGES", 2)
    memory = source_bytes(9 * MIB)
    found = survey(Peer(bytes(memory), noted={1, 3, 5, 7}), memory)
    assert found.missing == [(0, MIB), (2 * MIB, 9 * MIB)]
    assert found.held_bytes == MIB


def test_memory_that_its_owner_cannot_read_is_read_back():
    """NIC memory: the answer is a page without digests, and our own READs take its place."""
    memory = source_bytes()
    other = bytearray(memory)
    other[2 * MIB] ^= 1

    class Nic(Peer):
        def expect(self, name: str) -> Digests:
            return Digests(LEASE, self.asked[-1].offset, (), False, "client-read-back")

    found = survey(Nic(bytes(other)), memory, manifest=False)
    assert found.missing == [(2 * MIB, 3 * MIB)]


def test_pages_that_answer_something_else_are_refused():
    memory = source_bytes()

    class Liar(Peer):
        def expect(self, name: str) -> Digests:
            page = super().expect(name)
            return Digests(page.lease, page.offset + BLOCK_BYTES, page.digests, page.more)

    with pytest.raises(RemoteProtocolError):
        survey(Liar(bytes(memory), noted={0}), memory)
