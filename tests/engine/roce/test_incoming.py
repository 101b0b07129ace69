"""Runs of packets that arrive: taken apart once, then only compared, for as long as nothing changes."""

from __future__ import annotations

from p2prw.engine.model import WcStatus
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
