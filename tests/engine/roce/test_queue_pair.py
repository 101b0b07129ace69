"""Posting, connecting, closing: what the user of a queue pair may do and what he is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2prw.engine.model import Opcode, QueuePairOptions, Sge, WcStatus
from p2prw.engine.roce.state import QueuePairState
from p2prw.errors import HostError, LocalProtocolError


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"gid": "fd" + "00" * 15}, "address_family"),
        ({"mtu_bytes": 1500}, "bad_queue_pair"),
        ({"qpn": 0}, "bad_queue_pair"),
        ({"qpn": 1 << 24}, "bad_queue_pair"),
        ({"psn": -1}, "bad_queue_pair"),
        ({"udp_port": 70000}, "bad_queue_pair"),
    ],
)
def test_a_peer_that_cannot_be(connected_devices, change, code):
    link = connected_devices(connect=False)
    with pytest.raises(HostError) as caught:
        link.a.queue_pair.connect(replace(link.b.queue_pair.local, **change))
    assert caught.value.code == code
    assert link.a.queue_pair.state is QueuePairState.INIT


def test_connecting_twice_is_our_mistake(connected_devices):
    link = connected_devices()
    with pytest.raises(LocalProtocolError):
        link.a.queue_pair.connect(link.b.queue_pair.local)


@pytest.mark.parametrize(("here", "there", "path"), [(4096, 1024, 1024), (256, 4096, 256)])
def test_the_path_mtu_is_the_smaller_one(connected_devices, lab, here, there, path):
    link = connected_devices(connect=False)
    link.a.queue_pair = link.a.device.create_queue_pair(QueuePairOptions(mtu_bytes=here))
    link.b.queue_pair = link.b.device.create_queue_pair(QueuePairOptions(mtu_bytes=there))
    link.a.queue_pair.connect(link.b.queue_pair.local)
    link.b.queue_pair.connect(link.a.queue_pair.local)
    link.write(1, 0, 2 * path)
    assert [len(p.payload) for p in lab.packets(link.deliver(link.a))] == [path, path]
    link.settle()
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]


def test_nothing_can_be_posted_before_the_connection(connected_devices):
    link = connected_devices(connect=False)
    with pytest.raises(LocalProtocolError, match="INIT"):
        link.write(1, 0, 1)


def test_what_cannot_be_posted(connected_devices):
    link = connected_devices(depth=2, max_send_sge=2)
    queue_pair, sge = link.a.queue_pair, link.a.sges(0, 1)[0]
    cases = [
        ("bad_opcode", lambda: queue_pair.post_rdma(1, Opcode.SEND, [sge], 0, 0, signaled=True)),
        ("too_many_sges", lambda: queue_pair.post_rdma(1, Opcode.RDMA_WRITE, [sge] * 3, 0, 0, signaled=True)),
        ("bad_imm_data", lambda: queue_pair.post_send(1, [sge], signaled=True, imm_data=b"12345")),
        (
            "message_too_long",
            lambda: queue_pair.post_rdma(1, Opcode.RDMA_WRITE, [Sge(0, 1 << 31, 1), Sge(0, 1, 1)], 0, 0, signaled=True),
        ),
    ]
    for code, post in cases:
        with pytest.raises(LocalProtocolError) as caught:
            post()
        assert caught.value.code == code
    link.write(1, 0, 1)
    link.write(2, 0, 1)
    with pytest.raises(LocalProtocolError) as caught:
        link.write(3, 0, 1)
    assert caught.value.code == "queue_full"
    link.settle()
    link.write(3, 0, 1)


def test_a_message_of_too_many_psns(connected_devices):
    link = connected_devices(mtu=256)
    with pytest.raises(LocalProtocolError) as caught:
        link.a.queue_pair.post_rdma(1, Opcode.RDMA_READ, [Sge(0, (1 << 30) + 1, 1)], 0, 0, signaled=True)
    assert caught.value.code == "message_too_long"


def test_read_to_a_peer_without_slots(connected_devices):
    link = connected_devices(max_rd_atomic=0)
    with pytest.raises(LocalProtocolError) as caught:
        link.read(1, 0, 1)
    assert caught.value.code == "no_rd_atomic"


def test_a_wrong_lkey_is_a_local_protection_error(connected_devices):
    link = connected_devices()
    link.write(1, 0, 1)
    link.a.queue_pair.post_rdma(2, Opcode.RDMA_WRITE, [Sge(0, 10, 99)], 0, 0, signaled=False)
    link.write(3, 0, 1)
    assert link.poll() == []
    link.settle()
    assert [(c.wr_id, c.status) for c in link.poll()] == [
        (1, WcStatus.SUCCESS),
        (2, WcStatus.LOC_PROT_ERR),
        (3, WcStatus.WR_FLUSH_ERR),
    ]


def test_a_receive_into_foreign_memory(connected_devices):
    with pytest.raises(LocalProtocolError, match="not registered"):
        connected_devices().b.queue_pair.post_recv(1, [Sge(0, 10, 99)])


def test_poll_gives_as_many_as_asked(connected_devices):
    link = connected_devices()
    for i in range(5):
        link.write(i, 0, 1)
    link.settle()
    assert [c.wr_id for c in link.a.queue_pair.poll(2)] == [0, 1]
    assert [c.wr_id for c in link.a.queue_pair.poll()] == [2, 3, 4]
    assert link.a.queue_pair.poll() == []


def test_close(connected_devices):
    link = connected_devices()
    link.write(1, 0, 1)
    link.b.queue_pair.post_recv(2)
    for end in (link.a, link.b):
        end.queue_pair.close()
        end.queue_pair.close()
    assert link.collect(link.a) == []
    assert link.poll() == []
    assert link.b.queue_pair.poll_recv() == []
    assert link.a.device.next_timer() is None


def test_packets_before_the_connection_are_dropped(connected_devices):
    """The peer that connects first loses its first message to a timeout, as with rxe."""
    link = connected_devices(connect=False)
    link.a.queue_pair.connect(link.b.queue_pair.local)
    link.write(1, 0, 1)
    link.deliver(link.a)
    assert link.b.device.counters.dropped_wrong_source == 1
    link.b.queue_pair.connect(link.a.queue_pair.local)
    link.run_timers()
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]
    assert link.a.queue_pair.counters.timeouts == 1


def test_repr_says_where_it_stands(connected_devices):
    link = connected_devices()
    link.write(1, 0, 77)
    link.collect(link.a)
    assert repr(link.a.queue_pair) == (
        f"<RoceQueuePair {link.a.queue_pair.local.qpn:#x} RTS psn=0x1001 queued=1/128 in_flight=77B>"
    )
    assert "1 queue pairs" in repr(link.a.device)
