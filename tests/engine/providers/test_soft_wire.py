"""Everything a socket can do to us is survived: full, refusing, failing, lying; faults on purpose; captures."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2prw.engine.inject import parse_faults
from p2prw.engine.model import Opcode, QueuePairOptions, WcStatus
from p2prw.engine.roce.runs import RunCodec

Connect = Callable[..., Any]
SIZE = 1 << 20
PATTERN = bytes(range(256)) * (SIZE // 256)

Wires = Callable[[Any], Any]


def test_full_socket_keeps_the_burst_and_asks_for_writable(connect: Connect, fake_socket: Wires) -> None:
    pair = connect()
    wire = fake_socket(pair.client)
    wire.send_errors = [errno.EAGAIN] * 3
    pair.post(Opcode.RDMA_WRITE)
    for _ in range(3):
        assert pair.client.pump() in (True, False)
        assert pair.client.wants_write()
        assert wire.sent == []
    assert [completion.status for completion in pair.settle()] == [WcStatus.SUCCESS]
    assert not pair.client.wants_write()
    assert pair.far.bytes == PATTERN
    assert pair.queue.counters.retransmitted_packets == 0


def test_waiting_burst_survives_deregistration(connect: Connect, fake_socket: Wires) -> None:
    """What waits is a copy: a view into memory that is being unmapped would keep it from closing."""
    pair = connect()
    wire = fake_socket(pair.client)
    wire.send_errors = [errno.EAGAIN]
    pair.post(Opcode.RDMA_WRITE, length=4096)
    pair.client.pump()
    pair.near_keys.close()
    pair.near.view = None
    pair.near.bytes.release()
    assert pair.client.wants_write()


WRITE_SENDS = 1 + 9 + 9
"""The FIRST, then what a window holds of packets in bursts of 15, twice."""


class Trains:
    """The compiled sends and receives of both ends, counted; the trains of `refusals` fail, after so many sends."""

    def __init__(self, pair: Any, codec: RunCodec) -> None:
        self.sent = self.taken = 0
        self.refusals: list[tuple[int, int]] = []
        for device in (pair.client, pair.server):
            wire = device.wire
            wire._send_runs, wire._take_runs, wire._may_train = self.send, self.take, True
        assert codec.send is not None and codec.take is not None
        self._send, self._take = codec.send, codec.take

    def send(self, *arguments: Any) -> tuple[int, int]:
        sends, error = 1, 0
        if self.refusals:
            sends, error = self.refusals.pop(0)
            first = arguments[12:14]
            starts = first[0] is not None
            bursts = max(0, sends - starts)
            size = (starts + bursts * arguments[7]) * arguments[6]
            arguments = (
                *arguments[:5],
                arguments[5][:size],
                *arguments[6:8],
                bursts,
                arguments[9],
                None,
                0,
                *first,
                None,
                0,
            )
        sent, failed = self._send(*arguments) if sends else (0, 0)
        self.sent += sent
        return sent, failed or error

    def take(self, *arguments: Any) -> Any:
        result = self._take(*arguments)
        self.taken += result[0]
        return result


@pytest.mark.parametrize("leaf", [False, True])
def test_half_of_the_reads_is_taken_in_before_more_are_asked_for(connect: Connect, leaf: bool) -> None:
    """Else both ends would do all of their work by turns, each while the other one waits."""
    pair = connect(leaf=leaf)
    pair.near.bytes[:] = bytes(SIZE)
    pair.far.bytes[:] = PATTERN
    for number in range(64):
        pair.post(Opcode.RDMA_READ, offset=number * 8192, length=8192, wr_id=number + 1)
    pair.client.pump()
    reads = pair.queue._core.requester.reads
    assert len(reads) == 16
    while pair.server.pump():
        pass
    pair.client.wire.receive(time.monotonic())
    assert len(reads) == 8, "all sixteen responses wait"
    assert pair.client.core.wanting == {pair.queue.local.qpn}
    pair.client.pump()
    assert len(reads) == 16, "they are asked for at once"
    assert not pair.client.core.wanting
    pair.settle(until=lambda: not reads)
    assert pair.near.bytes[: 64 * 8192] == PATTERN[: 64 * 8192]


@pytest.mark.parametrize("leaf", [False, True])
def test_a_read_ends_though_no_segmented_response_arrives(connect: Connect, fake_socket: Wires, leaf: bool) -> None:
    """A responder has no timer that could tell it: what is asked for again leaves packet by packet."""
    pair = connect(leaf=leaf, options=QueuePairOptions(timeout=12))
    fake_socket(pair.server).loses_segments = True
    if leaf:
        pair.server.wire._send_runs = None
    pair.far.bytes[:] = PATTERN
    pair.near.bytes[:] = bytes(SIZE)
    assert pair.run(Opcode.RDMA_READ, length=8192) is WcStatus.SUCCESS
    assert pair.near.bytes[:8192] == PATTERN[:8192]
    assert pair.queue.counters.timeouts == 1


@pytest.mark.parametrize("leaf", [False, True])
def test_pairs_of_responses_count_as_segmented_sends(connect: Connect, leaf: bool) -> None:
    pair = connect(leaf=leaf)
    before = pair.server.wire.segmented_sends
    assert pair.run(Opcode.RDMA_READ, length=8192) is WcStatus.SUCCESS
    assert pair.server.wire.segmented_sends == before + 1


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_long_messages_go_and_come_in_trains(connect: Connect, compiled_codec: RunCodec, address: str) -> None:
    pair = connect(address)
    trains = Trains(pair, compiled_codec)
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert pair.far.bytes == PATTERN
    assert trains.sent == WRITE_SENDS
    assert trains.taken == 256 - 1 - 15, "all but the FIRST, and what before it was seen for the first time"
    pair.near.bytes[:] = bytes(SIZE)
    assert pair.run(Opcode.RDMA_READ) is WcStatus.SUCCESS
    assert pair.near.bytes == PATTERN
    # The READ window is larger; the LAST response is longer than a MIDDLE.
    assert trains.sent == WRITE_SENDS + 1 + 17 + 1
    assert trains.taken == 2 * (256 - 1 - 15)
    assert pair.queue.counters.retransmitted_packets == 0


@pytest.mark.parametrize("sends", [0, 1, 3])
def test_the_rest_of_a_train_waits_for_room(connect: Connect, compiled_codec: RunCodec, sends: int) -> None:
    pair = connect()
    trains = Trains(pair, compiled_codec)
    trains.refusals = [(sends, errno.EAGAIN)]
    pair.post(Opcode.RDMA_WRITE)
    pair.client.pump()
    assert pair.client.wants_write() and trains.sent == sends
    assert [completion.status for completion in pair.settle()] == [WcStatus.SUCCESS]
    assert not pair.client.wants_write()
    assert pair.far.bytes == PATTERN
    assert pair.queue.counters.retransmitted_packets == 0


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOBUFS, errno.EIO])
def test_a_train_that_is_refused_goes_burst_by_burst(connect: Connect, compiled_codec: RunCodec, number: int) -> None:
    """Whatever it was, it is gone when a burst of its own is tried: nothing is lost, trains go on."""
    pair = connect()
    trains = Trains(pair, compiled_codec)
    trains.refusals = [(2, number), (0, number)]
    pair.post(Opcode.RDMA_WRITE)
    assert pair.client.pump(), "at once, not after a wait"
    assert [completion.status for completion in pair.settle()] == [WcStatus.SUCCESS]
    assert pair.far.bytes == PATTERN
    assert pair.client.gso and pair.client.warnings == []
    assert trains.sent == 2 and pair.queue.counters.retransmitted_packets == 0
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert trains.sent == 2 + WRITE_SENDS


def test_trains_that_the_kernel_refuses_for_good_end_segmentation(
    connect: Connect, fake_socket: Wires, compiled_codec: RunCodec
) -> None:
    pair = connect()
    fake_socket(pair.client).refuse_segments = errno.EIO
    trains = Trains(pair, compiled_codec)
    trains.refusals = [(0, errno.EIO)] * 100
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert pair.far.bytes == PATTERN
    assert pair.client.gso is False and trains.sent == 0
    assert len(trains.refusals) > 90, "it is not tried again and again"


def test_faults_and_captures_see_every_packet(connect: Connect, compiled_codec: RunCodec, tmp_path: Path) -> None:
    for pair in (connect(server={"inject": "drop=1%"}), connect(server={"pcap": str(tmp_path / "x.pcap")})):
        wire = pair.server.wire
        assert not wire.takes_trains and wire._take_runs is None


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EMSGSIZE])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_refused_segmentation_falls_back_to_singles(
    connect: Connect, fake_socket: Wires, address: str, number: int
) -> None:
    pair = connect(address)
    wire = fake_socket(pair.client)
    wire.refuse_segments = number
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert pair.far.bytes == PATTERN
    assert not any(segmented for _, segmented in wire.sent)
    assert pair.client.gso is False
    (warning,) = pair.client.warnings
    assert errno.errorcode[number] in warning
    # The burst that was refused went out packet by packet with ICRCs for lone datagrams: nothing was lost.
    assert pair.queue.counters.retransmitted_packets == 0


def test_refused_segmentation_with_a_full_socket_keeps_the_order(connect: Connect, fake_socket: Wires) -> None:
    pair = connect()
    wire = fake_socket(pair.client)
    wire.refuse_segments = errno.EIO
    pair.post(Opcode.RDMA_WRITE)
    real_send = wire.sendmsg
    sends = 0

    def sometimes_full(buffers: Any, ancillary: Any, flags: int, destination: Any) -> Any:
        nonlocal sends
        sends += 1
        if sends % 5 == 0:
            raise BlockingIOError(errno.EAGAIN, "full")
        return real_send(buffers, ancillary, flags, destination)

    wire.sendmsg = sometimes_full
    assert [completion.status for completion in pair.settle()] == [WcStatus.SUCCESS]
    assert pair.far.bytes == PATTERN
    assert pair.queue.counters.retransmitted_packets == 0


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOBUFS, errno.ENETUNREACH, errno.EMSGSIZE])
def test_send_error_is_a_loss_that_is_repaired_and_told_once(connect: Connect, fake_socket: Wires, number: int) -> None:
    pair = connect(options=QueuePairOptions(timeout=12), gso=False)
    wire = fake_socket(pair.client)
    wire.send_errors = [number, number]
    assert pair.run(Opcode.RDMA_WRITE, length=100_000) is WcStatus.SUCCESS
    assert pair.far.bytes[:100_000] == PATTERN[:100_000]
    assert pair.client.wire.send_failures == 2
    (warning,) = pair.client.warnings
    assert errno.errorcode[number] in warning
    assert ("--mtu" in warning) is (number == errno.EMSGSIZE)


def test_icmp_errors_on_receive_are_passed_over(connect: Connect, fake_socket: Wires) -> None:
    pair = connect()
    wire = fake_socket(pair.client)
    wire.receive_errors = [errno.ECONNREFUSED, errno.EHOSTUNREACH]
    assert pair.run(Opcode.RDMA_WRITE, length=8) is WcStatus.SUCCESS
    assert pair.client.wire.receive_failures == 2


def test_peer_that_closed_its_port_does_not_break_the_socket(connect: Connect) -> None:
    pair = connect(options=QueuePairOptions(timeout=8, retry_cnt=2))
    other = connect()
    pair.server.close()
    assert pair.run(Opcode.RDMA_WRITE, length=8) is WcStatus.RETRY_EXC_ERR
    assert other.run(Opcode.RDMA_WRITE, length=8) is WcStatus.SUCCESS


def test_garbage_and_foreign_packets_are_dropped(connect: Connect) -> None:
    pair = connect()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for garbage in (b"", b"x", bytes(16), b"\xff" * 1400, PATTERN[:4112]):
            stranger.sendto(garbage, ("127.0.0.1", pair.server.info.udp_port or 0))
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert pair.far.bytes == PATTERN


def test_gso_that_never_arrives_is_given_up(connect: Connect, fake_socket: Wires) -> None:
    """A NIC that segments wrongly: bursts vanish, single datagrams pass."""
    pair = connect(options=QueuePairOptions(timeout=11, retry_cnt=7))
    wire = fake_socket(pair.client)
    real_send = wire.sendmsg

    def singles_only(buffers: Any, ancillary: Any, flags: int, destination: Any) -> Any:
        return 0 if ancillary else real_send(buffers, ancillary, flags, destination)

    wire.sendmsg = singles_only
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert pair.far.bytes == PATTERN
    assert pair.client.gso is False
    assert "expect a third of the rate" in pair.client.warnings[0]


def test_gso_of_which_only_the_first_segment_arrives_is_given_up(connect: Connect, fake_socket: Wires) -> None:
    pair = connect(options=QueuePairOptions(timeout=11, retry_cnt=7))
    wire = fake_socket(pair.client)
    real_send = wire.sendmsg

    def only_first(buffers: Any, ancillary: Any, flags: int, destination: Any) -> Any:
        if not ancillary:
            return real_send(buffers, ancillary, flags, destination)
        data = b"".join(buffers)
        return real_send([data[: int.from_bytes(ancillary[0][2], "little")]], (), flags, destination)

    wire.sendmsg = only_first
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert pair.far.bytes == PATTERN
    assert pair.client.gso is False


# --- faults and captures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "singles"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("opcode", [Opcode.RDMA_WRITE, Opcode.RDMA_READ])
def test_injected_faults_are_repaired(connect: Connect, address: str, gso: bool, opcode: Opcode) -> None:
    faults = "drop=2%,dup=2%,reorder=2%,corrupt=1%,seed=7"
    pair = connect(address, gso=gso, client={"inject": faults}, options=QueuePairOptions(timeout=12, retry_cnt=7))
    if opcode is Opcode.RDMA_READ:
        pair.far.bytes[:] = PATTERN
        pair.near.bytes[:] = bytes(SIZE)
    assert pair.run(opcode) is WcStatus.SUCCESS
    assert pair.near.bytes == pair.far.bytes == PATTERN
    assert pair.client.injector is not None
    counts = pair.client.injector.counts
    assert min(counts.dropped, counts.duplicated, counts.reordered, counts.corrupted) > 0
    assert f"faults are injected on purpose: {faults}" in pair.client.warnings
    assert pair.client.injector.plan == parse_faults(faults)


def test_held_packet_runs_a_timer(connect: Connect) -> None:
    pair = connect(client={"inject": "reorder=100%"})
    pair.post(Opcode.RDMA_WRITE, length=8)
    pair.client.pump()
    wait_s = pair.client.next_timer_s()
    assert wait_s is not None
    assert wait_s < 0.01
    assert [completion.status for completion in pair.settle()] == [WcStatus.SUCCESS]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_capture_holds_both_directions_with_right_icrcs(connect: Connect, tmp_path: Path, address: str) -> None:
    from scapy.contrib.roce import BTH
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6
    from scapy.utils import RawPcapReader

    path = tmp_path / "x.pcap"
    pair = connect(address, client={"pcap": str(path)})
    assert pair.run(Opcode.RDMA_WRITE, length=50_000) is WcStatus.SUCCESS
    assert pair.run(Opcode.RDMA_READ, length=50_000) is WcStatus.SUCCESS
    pair.client.close()
    with RawPcapReader(str(path)) as reader:
        packets = [(IPv6 if ":" in address else IP)(raw) for raw, _ in reader]
    ports = {pair.client.info.udp_port, pair.server.info.udp_port}
    opcodes = set()
    for packet in packets:
        assert {packet.sport, packet.dport} == ports
        payload = bytes(packet.payload.payload)
        # scapy knows RoCE by its port only, which this test does not use.
        udp = packet.payload.copy()
        udp.remove_payload()
        whole = packet.copy()
        whole.payload.remove_payload()
        bth = (whole / BTH(payload))[BTH]
        assert bth.compute_icrc(b"") == payload[-4:]
        opcodes.add(bth.opcode)
    assert opcodes == {0x06, 0x07, 0x08, 0x11, 0x0C, 0x0D, 0x0E, 0x0F}


def test_full_disk_ends_the_capture_not_the_transfer(connect: Connect, tmp_path: Path) -> None:
    pair = connect(client={"pcap": str(tmp_path / "x.pcap")})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert pair.client.wire.capture is not None
    pair.client.wire.capture.write_burst = full
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert [w for w in pair.client.warnings if "ends early: No space left" in w]
