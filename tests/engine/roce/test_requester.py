"""What the requester puts on the wire and when: segmentation, bursts, windows, READ pieces."""

from __future__ import annotations

import pytest

from p2prw.engine.model import WcStatus

PSN = 0x1000


def test_a_long_write_is_first_alone_then_full_bursts_that_ask_now_and_then(connected_devices, lab):
    link = connected_devices(b_memory=1 << 20)
    link.write(1, 0, 40 * 4096 + 1)
    bursts = link.collect(link.a)
    assert [b.packets for b in bursts] == [1, 15, 15, 10]
    assert [b.segment_bytes for b in bursts] == [4128, 4112, 4112, 4112]
    assert all(b.length_bytes <= 65507 for b in bursts)
    sent = lab.requests(bursts)
    assert [psn for _, psn, _ in sent] == list(range(PSN, PSN + 41))
    assert sent[0] == ("WRITE_FIRST", PSN, False)
    assert {name for name, _, _ in sent[1:-1]} == {"WRITE_MIDDLE"}
    assert sent[-1] == ("WRITE_LAST", PSN + 40, True)
    assert [psn - PSN for _, psn, asks in sent if asks] == [15, 40], "an eighth of the window, and the end"
    assert link.a.queue_pair.bytes_in_flight == 40 * 4096 + 1


@pytest.mark.parametrize("window_packets", [1, 2, 3, 15, 16, 20, 40])
@pytest.mark.parametrize("gso_segments", [1, 64])
def test_what_fills_the_window_asks(connected_devices, lab, gso_segments, window_packets):
    """Else it would stay shut until the timer fires."""
    link = connected_devices(b_memory=1 << 20, gso_segments=gso_segments)
    link.a.queue_pair.set_window(window_packets * 4096)
    link.write(1, 0, 200 * 4096)
    for _ in range(200):
        sent = lab.requests(bursts := link.collect(link.a))
        if not sent:
            break
        assert sent[-1][2], "the last packet before the window is full"
        link.receive(link.b, bursts)
        link.deliver(link.b)
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]
    assert link.a.queue_pair.counters.timeouts == 0


def test_the_first_packet_of_a_resend_does_not_wait_for_an_old_ask(connected_devices, lab):
    link = connected_devices(b_memory=1 << 20)
    link.write(1, 0, 100 * 4096)
    asked = [psn for _, psn, asks in lab.requests(link.collect(link.a)) if asks]
    link.now += link.a.device.next_timer() - link.now
    link.a.device.handle_timer(link.now)
    assert [psn for _, psn, asks in lab.requests(link.collect(link.a)) if asks] == asked


@pytest.mark.parametrize(
    ("length", "shape"),
    [(16 * 4096, [1, 15]), (17 * 4096, [1, 15, 1]), (2 * 4096, [1, 1]), (2 * 4096 - 1, [1, 1]), (3 * 4096, [1, 2])],
)
def test_a_last_rides_along_where_it_is_no_longer_than_the_middles(connected_devices, length, shape):
    link = connected_devices()
    link.write(1, 0, length)
    assert [b.packets for b in link.collect(link.a)] == shape


def test_a_full_last_with_immediate_data_is_longer_and_goes_alone(connected_devices):
    link = connected_devices()
    link.b.queue_pair.post_recv(5)
    link.write(1, 0, 3 * 4096, imm_data=b"\1\2\3\4")
    bursts = link.collect(link.a)
    assert [(b.packets, b.length_bytes) for b in bursts] == [(1, 4128), (1, 4112), (1, 4116)]


def test_without_gso_every_packet_is_a_burst(connected_devices):
    link = connected_devices(gso_segments=1)
    link.write(1, 0, 5 * 4096)
    bursts = link.collect(link.a)
    assert [b.packets for b in bursts] == [1] * 5
    assert all(b.segment_bytes == b.length_bytes for b in bursts)


@pytest.mark.parametrize("window", [1, 4096, 4097, 10_000, 65536, 100_000])
def test_the_window_is_never_exceeded_and_never_stalls(connected_devices, window):
    """Each ACK moves the window; a window smaller than a packet lets one packet out at a time."""
    link = connected_devices()
    link.a.queue_pair.set_window(window)
    link.write(1, 0, 300_000)
    link.write(2, 0, 7, 400_000)
    for _ in range(1000):
        bursts = link.collect(link.a)
        assert link.a.queue_pair.bytes_in_flight <= max(window, 4096)
        if not bursts:
            break
        link.receive(link.b, bursts)
        link.deliver(link.b)
    assert [c.wr_id for c in link.poll()] == [1, 2]
    assert link.a.queue_pair.counters.timeouts == 0
    assert link.a.data[:300_000] == link.b.data[:300_000]


def test_a_first_that_fills_the_window_asks_for_its_ack(connected_devices, lab):
    link = connected_devices()
    link.a.queue_pair.set_window(4096)
    link.write(1, 0, 3 * 4096)
    assert lab.requests(link.collect(link.a)) == [("WRITE_FIRST", PSN, True)]


def test_a_read_takes_a_psn_for_each_response(connected_devices, lab):
    link = connected_devices()
    link.read(1, 0, 3 * 4096)
    link.read(2, 0, 0)
    link.write(3, 0, 1)
    assert lab.requests(link.collect(link.a)) == [
        ("READ_REQUEST", PSN, True),
        ("READ_REQUEST", PSN + 3, True),
        ("WRITE_ONLY", PSN + 4, True),
    ]


def test_reads_keep_to_the_peers_slots(connected_devices, lab):
    link = connected_devices(max_rd_atomic=2)
    for i in range(5):
        link.read(i, i * 4096, 4096, i * 4096)
    assert len(lab.requests(link.collect(link.a))) == 2
    link.settle()  # nothing was delivered: both are lost
    assert link.poll() == []
    link.run_timers()
    assert [c.wr_id for c in link.poll()] == [0, 1, 2, 3, 4]
    assert link.a.data[: 5 * 4096] == link.b.data[: 5 * 4096]


def test_a_read_larger_than_the_window_is_asked_for_in_pieces(connected_devices, lab):
    """Two pieces of half the window are outstanding; the next goes when the first is in."""
    link = connected_devices()
    link.a.queue_pair.set_window(64 * 1024)
    link.read(1, 0, 256 * 1024)
    sent = lab.packets(link.collect(link.a))
    assert [(p.bth.psn, p.reth.length_bytes) for p in sent] == [(PSN, 32768), (PSN + 8, 32768)]
    assert link.a.queue_pair.requester.read_psns_in_flight == 16
    link.a.device.handle_timer(link.now + 1)
    for _ in range(50):
        link.deliver(link.a)
        assert link.a.queue_pair.requester.read_psns_in_flight <= 16
        link.deliver(link.b)
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]
    assert link.a.data[: 256 * 1024] == link.b.data[: 256 * 1024]


def test_reads_and_writes_have_windows_of_their_own(connected_devices):
    link = connected_devices()
    link.a.queue_pair.set_window(8192)
    link.a.queue_pair.set_read_window(1 << 20)
    link.read(1, 0, 1 << 20)
    link.write(2, 0, 1 << 20)
    link.collect(link.a)
    assert link.a.queue_pair.requester.read_psns_in_flight == 256
    assert link.a.queue_pair.bytes_in_flight == 8192


def test_one_read_goes_even_through_the_smallest_window(connected_devices, lab):
    link = connected_devices()
    link.a.queue_pair.set_window(1)
    link.read(1, 0, 20_000)
    assert lab.packets(link.collect(link.a, max_bursts=10))[0].reth.length_bytes == 4096
    link.run_timers()
    assert link.a.data[:20_000] == link.b.data[:20_000]


def test_psns_wrap(connected_devices, lab):
    link = connected_devices(a_psn=0xFFFFFE)
    link.write(1, 0, 5 * 4096)
    link.read(2, 500_000, 5 * 4096)
    bursts = link.collect(link.a)
    assert [psn for _, psn, _ in lab.requests(bursts)] == [0xFFFFFE, 0xFFFFFF, 0, 1, 2, 3]
    link.receive(link.b, bursts)
    link.settle()
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS] * 2
    assert link.a.data[500_000 : 500_000 + 5 * 4096] == link.a.data[: 5 * 4096]


def test_unsignalled_work_is_silent_unless_it_fails(connected_devices):
    link = connected_devices()
    link.write(1, 0, 10, signaled=False)
    link.write(2, 0, 10)
    link.settle()
    assert [c.wr_id for c in link.poll()] == [2]
    link.write(3, 0, 10, signaled=False, rkey=1)
    link.settle()
    assert [(c.wr_id, c.status) for c in link.poll()] == [(3, WcStatus.REM_ACCESS_ERR)]


@pytest.mark.parametrize("operation", ["write", "read"])
def test_local_memory_that_is_gone_fails_its_own_request_and_no_earlier_one(connected_devices, operation):
    link = connected_devices()
    link.write(1, 0, 10)
    getattr(link, operation)(2, 0, 100_000)
    getattr(link, operation)(3, 0, 10)
    link.deliver(link.a, max_bursts=1)
    if operation == "read":
        link.collect(link.a)
    link.a.registration.close()
    assert link.collect(link.a) == []
    assert link.poll() == []
    link.deliver(link.b)
    if operation == "read":
        # The READ was asked for; its response finds no memory.
        assert [c.wr_id for c in link.poll()] == [1]
        link.run_timers()
        assert [(c.wr_id, c.status) for c in link.poll()] == [(2, WcStatus.LOC_PROT_ERR), (3, WcStatus.WR_FLUSH_ERR)]
    else:
        assert [(c.wr_id, c.status) for c in link.poll()] == [
            (1, WcStatus.SUCCESS),
            (2, WcStatus.LOC_PROT_ERR),
            (3, WcStatus.WR_FLUSH_ERR),
        ]


def test_local_device_memory_that_breaks(connected_devices, lab):
    memory = lab.DeviceBuffer(lab.pattern(100))
    link = connected_devices(a_memory=[memory])
    memory.is_broken = True
    link.write(1, 0, 100)
    link.settle()
    assert [c.status for c in link.poll()] == [WcStatus.LOC_QP_OP_ERR]
