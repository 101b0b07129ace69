"""Runs of packets that arrive: taken apart once, then only compared, for as long as nothing changes."""

from __future__ import annotations

import pytest

from p2prw.engine.model import WcStatus
from p2prw.engine.roce.packet import pull_packet
from p2prw.engine.roce.runs import PURE
from p2prw.engine.roce.state import QueuePairState


def test_a_run_goes_on_only_where_it_comes_from_the_same_place_in_the_same_form(connected_devices):
    """What the device compares instead of taking apart: address, port, segment size, queue pair, opcode, P_Key."""
    link = connected_devices(b_memory=1 << 20)
    link.write(1, 0, 120 * 4096)
    bursts = link.collect(link.a)
    link.receive(link.b, bursts[:2])
    assert link.b.queue_pair.incoming.stream is not None
    expected = link.b.queue_pair.responder.expected_psn
    raw = b"".join(bytes(piece) for piece in bursts[2].buffers)
    size = bursts[2].segment_bytes
    good = (link.a.device.address, link.a.device.udp_port)
    for at, value in ((0, raw[0] ^ 0x20), (2, 0x7F), (7, raw[7] ^ 1)):
        other = raw[:at] + bytes([value]) + raw[at + 1 :]
        link.b.device.receive_burst(memoryview(other), size, good, link.now)
    for source in (("192.0.2.77", good[1]), (good[0], good[1] + 1)):
        link.b.device.receive_burst(memoryview(raw), size, source, link.now)
    link.b.device.receive_burst(memoryview(raw), size - 4, good, link.now)
    assert link.b.queue_pair.responder.expected_psn == expected, "none of these was taken"
    link.b.device.receive_burst(memoryview(raw), size, good, link.now)
    assert link.b.queue_pair.responder.expected_psn == expected + bursts[2].packets


def test_a_stream_ends_with_its_queue_pair(connected_devices):
    link = connected_devices(b_memory=1 << 20)
    link.write(1, 0, 120 * 4096)
    bursts = link.collect(link.a)
    link.receive(link.b, bursts[:2])
    link.b.registration.close()
    link.receive(link.b, bursts[2:3])
    assert link.b.queue_pair.incoming.stream is None and link.b.queue_pair.state is QueuePairState.ERR
    link.receive(link.b, bursts[3:])
    link.deliver(link.b)
    assert [c.status for c in link.poll()] == [WcStatus.REM_ACCESS_ERR]


def test_what_is_awaited_says_where_the_next_packets_belong(connected_devices):
    """And it is told what was taken: memory, PSNs, counters and the ACK are as if the packets had been delivered."""
    link = connected_devices(b_memory=1 << 20)
    assert link.b.device.awaited() is None, "nothing came yet"
    link.write(1, 0, 120 * 4096)
    bursts = link.collect(link.a)
    link.receive(link.b, bursts[:2])
    awaited = link.b.device.awaited()
    assert awaited is not None and awaited.packets == 118 - 15 and awaited.last_prefix is not None
    assert awaited.source == (link.a.device.address, link.a.device.udp_port)
    before = link.b.queue_pair.counters.packets_received
    raw = memoryview(b"".join(bytes(piece) for piece in bursts[2].buffers))
    run = (awaited.mtu_bytes, awaited.prefix, awaited.psn, awaited.seeds)
    taken = PURE.receive(raw, 0, bursts[2].packets, *run, 0, awaited.target, awaited.offset)
    assert taken == (15, False)
    awaited.took(1, 15, True, False, link.now)
    assert link.b.queue_pair.counters.packets_received == before + 15
    assert link.b.data[: 31 * 4096] == link.a.data[: 31 * 4096]
    (ack,) = link.collect(link.b)
    assert pull_packet(b"".join(ack.buffers)).bth.psn == pull_packet(bytes(raw[:4112])).bth.psn + 14 & 0xFFFFFF
    link.receive(link.b, bursts[3:])
    link.settle()
    assert [completion.status for completion in link.poll()] == [WcStatus.SUCCESS]
    assert link.b.device.awaited() is None, "between two messages"


def test_however_long_a_peers_message_is_little_of_it_is_awaited_at_once(connected_devices):
    """More packets than one call may hold once ended the device: 2 GiB in packets of 256 bytes are eight million."""
    link = connected_devices(b_memory=1 << 20)
    link.write(1, 0, 120 * 4096)
    link.receive(link.b, link.collect(link.a)[:2])
    responder = link.b.queue_pair.responder
    target, offset, psn, _, starts, ends = responder.awaited_run()
    assert ends and not starts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(responder, "awaited_run", lambda: (target, offset, psn, 1 << 23, False, ends))
        awaited = link.b.device.awaited()
    assert awaited is not None and awaited.packets == 1 << 16 and awaited.last_prefix is None
