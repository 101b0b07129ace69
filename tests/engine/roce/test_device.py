"""The device end to end: two stacks in memory, every operation, every awkward size."""

from __future__ import annotations

import pytest

from p2prw.engine.model import Opcode, WcStatus

MIB = 1 << 20
SIZES = [0, 1, 3, 255, 256, 4095, 4096, 4097, 8192, 65536, MIB - 1, MIB]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("addresses", [("127.0.0.1", "127.0.0.2"), ("fd00::1", "fd00::2")])
def test_write_then_read_back(connected_devices, size, addresses):
    link = connected_devices(addresses=addresses, a_memory=2 * MIB + 8, b_memory=MIB + 8)
    source = link.a.data[:size]
    before = link.b.data
    link.write(1, 0, size, remote_offset=3)
    link.settle()
    assert [(c.wr_id, c.status, c.opcode, c.byte_len) for c in link.poll()] == [
        (1, WcStatus.SUCCESS, Opcode.RDMA_WRITE, size)
    ]
    assert link.b.data == before[:3] + source + before[3 + size :]
    link.read(2, MIB + 5, size, remote_offset=3)
    link.settle()
    assert [(c.wr_id, c.status) for c in link.poll()] == [(2, WcStatus.SUCCESS)]
    assert link.a.data[MIB + 5 : MIB + 5 + size] == source
    assert link.a.device.next_timer() is None
    assert link.a.queue_pair.bytes_in_flight == 0
    for end in (link.a, link.b):
        assert end.device.counters.icrc_errors == 0
        assert end.queue_pair.counters.retransmitted_packets == 0
        assert end.queue_pair.counters.duplicates == 0
