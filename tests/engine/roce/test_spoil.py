"""A byte that goes wrong under a right ICRC: the wire sees nothing, memory does, and only in that byte."""

from __future__ import annotations

import random

import pytest

from p2prw.engine.model import Access, Sge, WcStatus
from p2prw.engine.roce.memory_table import MemoryTable
from p2prw.engine.roce.spoil import FLIPPED_BIT, SpoiltList

SIZE = 20_000


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ FLIPPED_BIT]) + data[at + 1 :]


@pytest.mark.parametrize("at", [0, 4095, 4096, 9999, SIZE - 1])
@pytest.mark.parametrize("move", ["write", "read"])
def test_one_bit_is_wrong_and_nobody_on_the_wire_notices(connected_devices, lab, move, at):
    link = connected_devices()
    source, sink = (link.a, link.b) if move == "write" else (link.b, link.a)
    data = lab.pattern(SIZE, 5)
    source.memory[0].data[:SIZE] = data
    getattr(link, move)(1, 0, SIZE, spoil_at=at)
    link.settle()
    assert [done.status for done in link.poll()] == [WcStatus.SUCCESS]
    assert sink.data[:SIZE] == flipped(data, at)
    assert source.data[:SIZE] == data, "the source keeps its bytes"
    for end in (link.a, link.b):
        assert end.queue_pair.counters.icrc_errors == 0
        assert end.queue_pair.counters.retransmitted_packets == 0


def test_sent_again_it_is_as_wrong_as_before(connected_devices, lab):
    link = connected_devices()
    link.write(1, 0, SIZE, spoil_at=4097)
    link.drop(link.a)
    link.run_timers()
    assert link.b.data[:SIZE] == flipped(link.a.data[:SIZE], 4097)


def test_pieces_before_and_after_are_windows_into_memory(lab):
    table = MemoryTable(random.Random(3).getrandbits)
    buffers = [lab.PlainBuffer(bytes([value]) * 10) for value in (1, 2, 3)]
    vec = table.register(buffers, Access.LOCAL_READ | Access.LOCAL_WRITE).vec
    spoilt = SpoiltList(table, [Sge(*segment) for segment in vec], Access.LOCAL_WRITE, spoil_at=13)
    first, second, third = spoilt.gather(5, 20)
    assert (bytes(first), bytes(third)) == (b"\1" * 5, b"\3" * 5)
    assert bytes(second) == flipped(b"\2" * 10, 3)
    assert bytes(buffers[1].data) == b"\2" * 10
    assert spoilt.plain_window(0) is None
