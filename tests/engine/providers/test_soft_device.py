"""The software device on loopback: bytes move over a real socket in every shape; what cannot work is refused."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import Access, Opcode, QueuePairOptions, WcStatus
from p2prw.engine.providers import soft_device
from p2prw.engine.providers.base import Device
from p2prw.engine.providers.soft_address import gid_of
from p2prw.errors import HostError

Connect = Callable[..., Any]
Wires = Callable[[Any], Any]
SIZE = 1 << 20
PATTERN = bytes(range(256)) * (SIZE // 256)


def test_info_tells_the_truth(connect: Connect) -> None:
    device: Device = connect().client
    info = device.info
    assert (info.provider, info.driver, info.mover, info.link_layer) == ("soft", "soft", "cpu", "Ethernet")
    assert (info.state, info.netdev, info.address, info.active_mtu_bytes) == ("ACTIVE", "lo", "127.0.0.1", 4096)
    assert [(gid.index, gid.gid, gid.type) for gid in info.gids] == [(0, gid_of("127.0.0.1"), "rocev2")]
    (fileno,) = device.filenos()
    with socket.socket(fileno=socket.dup(fileno)) as same:
        assert same.getsockname() == ("127.0.0.1", info.udp_port)


def test_window_is_half_the_buffer(connect: Connect) -> None:
    device = connect().client
    assert device.receive_window_bytes() == device.receive_buffer_bytes // 2 > 0


def test_numbers_that_a_forger_must_guess_are_drawn_from_the_systems_generator(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/threat-model.md counts on 24 bits of QPN and PSN, 32 of rkey and 44 of the page of a registration."""
    drawn: list[tuple[int, int]] = []
    draw = secrets.randbits

    def record(bits: int) -> int:
        drawn.append((bits, draw(bits)))
        return drawn[-1][1]

    monkeypatch.setattr(secrets, "randbits", record)
    device = connect().client
    queue_pair = device.create_queue_pair(QueuePairOptions())
    memory = HostMemory.from_buffer(bytearray(64)).buffers()
    (segment,) = device.register(memory, Access.REMOTE_WRITE).remote_segments()
    assert {(24, queue_pair.local.qpn), (24, queue_pair.local.psn), (32, segment.rkey)} <= set(drawn)
    assert (44, (segment.address >> 12) - 1) in drawn


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "singles"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_write_then_read(connect: Connect, fake_socket: Wires, address: str, gso: bool) -> None:
    pair = connect(address, gso=gso)
    wire = fake_socket(pair.client)
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert pair.far.bytes == PATTERN
    assert any(segmented for _, segmented in wire.sent) is gso
    pair.near.bytes[:] = bytes(SIZE)
    assert pair.run(Opcode.RDMA_READ) is WcStatus.SUCCESS
    assert pair.near.bytes == PATTERN
    assert pair.queue.counters.retransmitted_packets == 0
    assert pair.client.core.counters.icrc_errors == 0


@pytest.mark.parametrize("mtu", [256, 1024, 2048])
def test_every_path_mtu(connect: Connect, mtu: int) -> None:
    pair = connect(options=QueuePairOptions(mtu_bytes=mtu))
    assert pair.run(Opcode.RDMA_WRITE, length=100_001) is WcStatus.SUCCESS
    assert pair.far.bytes[:100_001] == PATTERN[:100_001]
    assert pair.far.bytes[100_001:] == bytes(SIZE - 100_001)


def test_peers_with_and_without_gso_understand_each_other(connect: Connect) -> None:
    pair = connect(client={"gso": False})
    for opcode in (Opcode.RDMA_WRITE, Opcode.RDMA_READ):
        assert pair.run(opcode) is WcStatus.SUCCESS
    assert pair.far.bytes == PATTERN


def test_traffic_class_is_set(connect: Connect) -> None:
    pair = connect(options=QueuePairOptions(traffic_class=0x68))
    assert pair.client.wire.sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0x68
    six = connect("::1", options=QueuePairOptions(traffic_class=0x68))
    assert six.client.wire.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 0x68
    assert six.run(Opcode.RDMA_WRITE, length=9) is WcStatus.SUCCESS, "the ICRC masks it"


def test_wrong_key_is_a_completion_not_an_exception(connect: Connect) -> None:
    pair = connect()
    pair.far_keys.close()
    assert pair.run(Opcode.RDMA_WRITE, length=8) is WcStatus.REM_ACCESS_ERR


def test_silent_peer_ends_by_timeout(connect: Connect) -> None:
    pair = connect(options=QueuePairOptions(timeout=10, retry_cnt=1))
    pair.server.close()
    assert pair.run(Opcode.RDMA_WRITE, length=8) is WcStatus.RETRY_EXC_ERR
    assert pair.queue.counters.timeouts == 2


@pytest.mark.parametrize(("address", "why"), [("127.0.0.1", "identification up"), ("::1", "brought no answer")])
def test_segmented_sends_that_never_arrive_are_given_up(
    connect: Connect, fake_socket: Wires, address: str, why: str
) -> None:
    pair = connect(address, options=QueuePairOptions(timeout=12))
    wire = fake_socket(pair.client)
    wire.loses_segments = True
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert pair.far.bytes == PATTERN
    assert pair.client.gso is False
    (warning,) = pair.client.warnings
    assert "3 retransmission timeouts in a row brought no answer" in warning
    assert warning.endswith(why)


def test_a_reader_whose_peer_sleeps_keeps_segmentation(connect: Connect) -> None:
    """Its request is one packet: that nothing comes back says nothing about segmented sends."""
    pair = connect(options=QueuePairOptions(timeout=12))
    assert pair.run(Opcode.RDMA_READ) is WcStatus.SUCCESS
    pair.post(Opcode.RDMA_READ)
    while pair.queue.counters.timeouts < 5:
        if not pair.client.pump():
            time.sleep(0.002)
    pair.settle()
    assert pair.client.gso is True
    assert pair.client.warnings == []


def test_timer_is_told_in_seconds_from_now(connect: Connect) -> None:
    pair = connect(options=QueuePairOptions(timeout=17))
    assert pair.client.next_timer_s() is None
    pair.post(Opcode.RDMA_WRITE, length=8)
    pair.client.pump()
    wait_s = pair.client.next_timer_s()
    assert wait_s is not None
    assert 0.3 < wait_s <= 0.55


def test_other_address_family_is_refused(connect: Connect) -> None:
    four, six = connect("127.0.0.1"), connect("::1")
    fresh = four.client.create_queue_pair(QueuePairOptions())
    with pytest.raises(HostError, match="not of the family") as caught:
        fresh.connect(six.far_queue.local)
    assert caught.value.code == "address_family"


def test_path_mtu_that_does_not_fit_the_route_is_refused(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = connect()
    monkeypatch.setattr(soft_device, "path_mtu_to", lambda local, destination: 1500)
    fresh = pair.client.create_queue_pair(QueuePairOptions())
    with pytest.raises(HostError) as caught:
        fresh.connect(pair.far_queue.local)
    assert (caught.value.code, caught.value.fix) == ("mtu_too_large", "--mtu 1024")


def test_close_twice_and_use_after(connect: Connect) -> None:
    pair = connect()
    device = pair.client
    pair.post(Opcode.RDMA_WRITE)
    device.close()
    device.close()
    assert device.pump() is False
    assert device.filenos() == ()
    assert len(device.core.memory) == 0
    assert "queue_pairs=0" in repr(device)


def test_queue_pair_close_twice(connect: Connect) -> None:
    pair = connect()
    pair.queue.close()
    pair.queue.close()
    assert pair.client.pump() in (True, False)
    assert pair.client.next_timer_s() is None


@pytest.mark.parametrize(("gso", "write_window", "read_window"), [(True, 2 << 20, 2 << 20), (False, 1 << 19, 1 << 18)])
def test_windows_are_what_a_loss_may_cost(connect: Connect, gso: bool, write_window: int, read_window: int) -> None:
    pair = connect(gso=gso)
    requester = pair.client.core._queue_pairs[pair.queue.local.qpn].requester
    pair.queue.set_window(64 << 20)
    assert (requester.window_bytes, requester.read_window_bytes) == (write_window, read_window)
    pair.queue.set_window(10_000)
    assert (requester.window_bytes, requester.read_window_bytes) == (10_000, read_window)


def test_read_window_is_a_share_of_our_own_buffer(connect: Connect) -> None:
    device = connect().client
    device.receive_buffer_bytes = 400_000
    assert device.read_window_bytes() == 200_000
    device.create_queue_pair(QueuePairOptions())
    assert device.read_window_bytes() == 100_000


def test_queue_pairs_share_what_one_may_have_under_way(connect: Connect) -> None:
    """More of it than a cache holds is copied from memory; less than two bursts would wait for every ACK."""
    pair = connect()
    pairs = pair.client.core._queue_pairs
    pair.queue.set_window(64 << 20)
    others = [pair.client.create_queue_pair(QueuePairOptions()) for _ in range(3)]
    assert pairs[pair.queue.local.qpn].requester.window_bytes == 512 * 1024
    others += [pair.client.create_queue_pair(QueuePairOptions()) for _ in range(60)]
    assert pairs[pair.queue.local.qpn].requester.window_bytes == 128 * 1024
    for other in others:
        other.close()
    assert pairs[pair.queue.local.qpn].requester.window_bytes == 2 << 20
    pair.queue.set_window(10_000)
    others = [pair.client.create_queue_pair(QueuePairOptions()) for _ in range(3)]
    assert pairs[pair.queue.local.qpn].requester.window_bytes == 10_000, "never more than the peer granted"


def test_timers_wait_for_what_has_arrived(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that slept past its timeout reads the answers in its socket before it resends anything."""
    monkeypatch.setattr(soft_device, "_TIMER_GRACE_S", 60.0)
    pair = connect(options=QueuePairOptions(timeout=10), gso=False)
    pair.far.bytes[:] = PATTERN
    pair.post(Opcode.RDMA_READ, length=256 * 1024)
    pair.client.pump()
    for _ in range(20):
        pair.server.pump()
    time.sleep(0.02)
    # 64 responses wait, 16 are read by a call: the timer (4 ms) is long over and still must not fire.
    pair.client.pump()
    assert pair.queue.counters.timeouts == 0
    assert [completion.status for completion in pair.settle()] == [WcStatus.SUCCESS]
    assert pair.queue.counters.retransmitted_packets == 0
