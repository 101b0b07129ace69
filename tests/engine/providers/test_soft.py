"""The software device on loopback: bytes move over a real socket, and everything a socket can do to us is survived."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2prw.engine.inject import parse_faults
from p2prw.engine.model import Access, Completion, Opcode, QueuePairOptions, Sge, WcStatus
from p2prw.engine.providers import soft
from p2prw.engine.providers.base import Device, QueuePair, Registration
from p2prw.engine.providers.soft import SoftDevice, list_soft_devices, open_soft_device
from p2prw.engine.providers.soft_address import gid_of
from p2prw.engine.providers.soft_selftest import SelfTest
from p2prw.errors import HostError, RequestError

ALL = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE
SIZE = 1 << 20
PATTERN = bytes(range(256)) * (SIZE // 256)
DEADLINE_S = 30


class Buffer:
    def __init__(self, content: bytes) -> None:
        self.bytes = memoryview(bytearray(content))
        self.view: memoryview | None = self.bytes
        self.length_bytes = len(content)
        self.cpu_address = 0

    def load(self, offset: int, length_bytes: int) -> memoryview:
        return self.bytes[offset : offset + length_bytes]

    def store(self, offset: int, data: bytes | memoryview) -> None:
        self.bytes[offset : offset + len(data)] = data


class Pair:
    """Client and server devices in one process, 1 MiB of memory and a connected queue pair each."""

    def __init__(self, client: SoftDevice, server: SoftDevice, options: QueuePairOptions) -> None:
        self.client, self.server = client, server
        self.near, self.far = Buffer(PATTERN), Buffer(bytes(SIZE))
        self.near_keys: Registration = client.register([self.near], Access.LOCAL_WRITE)
        self.far_keys: Registration = server.register([self.far], ALL)
        self.queue: QueuePair = client.create_queue_pair(options)
        self.far_queue: QueuePair = server.create_queue_pair(options)
        self.far_queue.connect(self.queue.local)
        self.queue.connect(self.far_queue.local)

    def post(self, opcode: Opcode, offset: int = 0, length: int = SIZE, wr_id: int = 1) -> None:
        (near,), (far,) = self.near_keys.vec, self.far_keys.remote_segments()
        sges = [Sge(near.address + offset, length, near.lkey)]
        self.queue.post_rdma(wr_id, opcode, sges, far.address + offset, far.rkey, signaled=True)

    def settle(self, until: Callable[[], bool] | None = None) -> list[Completion]:
        """Pump both sides until something completes (or `until` holds)."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            worked = self.client.pump() | self.server.pump()
            if until is not None:
                if until():
                    return []
            elif found := self.queue.poll():
                return found
            if not worked:
                waits = [t for t in (self.client.next_timer_s(), self.server.next_timer_s()) if t is not None]
                time.sleep(min([0.002, *waits]))
        raise AssertionError(f"nothing completed within {DEADLINE_S} s: {self.queue!r}")

    def run(self, opcode: Opcode, **post: int) -> WcStatus:
        self.post(opcode, **post)
        (completion,) = self.settle()
        return completion.status


Connect = Callable[..., Pair]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Open a client and a server on ports of their own (4791 may belong to others on this machine)."""
    opened: list[SoftDevice] = []

    def make(
        address: str = "127.0.0.1",
        *,
        client: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        options: QueuePairOptions | None = None,
        **both: Any,
    ) -> Pair:
        for role, more in (("client", client), ("server", server)):
            arguments: dict[str, Any] = {"local_address": None, "udp_port": 0, "role": role, **both, **(more or {})}
            opened.append(open_soft_device(f"soft:{address}", **arguments))
        # 16: 0.27 s, so that a lost packet costs little here.
        return Pair(opened[-2], opened[-1], options or QueuePairOptions(timeout=16))

    yield make
    for device in opened:
        device.close()


class FakeSocket:
    """The real socket, but for what the next sends and receives raise."""

    def __init__(self, device: SoftDevice) -> None:
        self.real = device._sock
        self.send_errors: list[int] = []
        self.receive_errors: list[int] = []
        self.refuse_segments: int | None = None
        self.sent: list[tuple[int, bool]] = []
        """(bytes, segmented) of each send that went out."""
        device._sock = self  # type: ignore[assignment]

    def sendmsg(self, buffers: Any, ancillary: Any, flags: int, destination: Any) -> int:
        if self.send_errors:
            number = self.send_errors.pop(0)
            raise OSError(number, errno.errorcode[number])
        if ancillary and self.refuse_segments is not None:
            raise OSError(self.refuse_segments, "no segmentation here")
        self.sent.append((sum(map(len, buffers)), bool(ancillary)))
        return self.real.sendmsg(buffers, ancillary, flags, destination)

    def recvmsg_into(self, *args: Any) -> Any:
        if self.receive_errors:
            number = self.receive_errors.pop(0)
            raise OSError(number, errno.errorcode[number])
        return self.real.recvmsg_into(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


# --- opening --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"name": "mlx5_0"}, RequestError, "does not name a software device"),
        ({"inject": "drp=1%"}, RequestError, "did you mean 'drop'"),
        ({"pcap": "/nonexistent/x.pcap"}, HostError, "cannot write the capture"),
        ({"name": "soft:203.0.113.9"}, HostError, "not an address of this host"),
    ],
)
def test_opening_fails_with_a_reason(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    wanted: dict[str, Any] = {"name": "soft0", "local_address": None, "udp_port": 0, "role": "server", **arguments}
    with pytest.raises(error, match=says):
        open_soft_device(**wanted)


def test_unforeseeable_identification_refuses_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = SelfTest("failed", "a single datagram left with identification 0xbf62", single_ok=False, gso_ok=False)
    monkeypatch.setattr(soft, "run_self_test", lambda local, gso: verdict)
    with pytest.raises(HostError) as caught:
        open_soft_device("soft0", local_address=None, udp_port=0, role="client")
    assert caught.value.code == "unforeseeable_header"
    assert "0xbf62" in str(caught.value)


def test_wrong_segmented_identification_turns_gso_off(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = SelfTest("failed", "a UDP_SEGMENT send left with identification 0x1234", gso_ok=False)
    monkeypatch.setattr(soft, "run_self_test", lambda local, gso: verdict)
    pair = connect()
    assert pair.client.gso is False
    assert "segmented sends are off: a UDP_SEGMENT send left" in pair.client.warnings[0]
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS


def test_list_is_every_up_address_and_opens_by_name() -> None:
    listed = list_soft_devices()
    assert [info.name for info in listed if info.address == "127.0.0.1"] == ["soft0"]
    assert len({info.name for info in listed}) == len(listed)
    for info in listed:
        assert info.udp_port is None
        with open_soft_device(info.name, local_address=None, udp_port=0, role="server") as device:
            assert device.info.gids == info.gids


# --- moving bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "singles"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_write_then_read(connect: Connect, address: str, gso: bool) -> None:
    pair = connect(address, gso=gso)
    wire = FakeSocket(pair.client)
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
    assert pair.client._sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0x68
    six = connect("::1", options=QueuePairOptions(traffic_class=0x68))
    assert six.client._sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 0x68
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


def test_timer_is_told_in_seconds_from_now(connect: Connect) -> None:
    pair = connect(options=QueuePairOptions(timeout=17))
    assert pair.client.next_timer_s() is None
    pair.post(Opcode.RDMA_WRITE, length=8)
    pair.client.pump()
    wait_s = pair.client.next_timer_s()
    assert wait_s is not None
    assert 0.3 < wait_s <= 0.55


# --- connecting to what cannot work -----------------------------------------------------------------------------


def test_other_address_family_is_refused(connect: Connect) -> None:
    four, six = connect("127.0.0.1"), connect("::1")
    fresh = four.client.create_queue_pair(QueuePairOptions())
    with pytest.raises(HostError, match="not of the family") as caught:
        fresh.connect(six.far_queue.local)
    assert caught.value.code == "address_family"


def test_path_mtu_that_does_not_fit_the_route_is_refused(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = connect()
    monkeypatch.setattr(soft, "path_mtu_to", lambda local, destination: 1500)
    fresh = pair.client.create_queue_pair(QueuePairOptions())
    with pytest.raises(HostError) as caught:
        fresh.connect(pair.far_queue.local)
    assert (caught.value.code, caught.value.fix) == ("mtu_too_large", "--mtu 1024")


# --- what sockets do ---------------------------------------------------------------------------------------------


def test_full_socket_keeps_the_burst_and_asks_for_writable(connect: Connect) -> None:
    pair = connect()
    wire = FakeSocket(pair.client)
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


def test_waiting_burst_survives_deregistration(connect: Connect) -> None:
    """What waits is a copy: a view into memory that is being unmapped would keep it from closing."""
    pair = connect()
    wire = FakeSocket(pair.client)
    wire.send_errors = [errno.EAGAIN]
    pair.post(Opcode.RDMA_WRITE, length=4096)
    pair.client.pump()
    pair.near_keys.close()
    pair.near.view = None
    pair.near.bytes.release()
    assert pair.client.wants_write()


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EMSGSIZE])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_refused_segmentation_falls_back_to_singles(connect: Connect, address: str, number: int) -> None:
    pair = connect(address)
    wire = FakeSocket(pair.client)
    wire.refuse_segments = number
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert pair.far.bytes == PATTERN
    assert not any(segmented for _, segmented in wire.sent)
    assert pair.client.gso is False
    (warning,) = pair.client.warnings
    assert errno.errorcode[number] in warning
    # The burst that was refused went out packet by packet with ICRCs for lone datagrams: nothing was lost.
    assert pair.queue.counters.retransmitted_packets == 0


def test_refused_segmentation_with_a_full_socket_keeps_the_order(connect: Connect) -> None:
    pair = connect()
    wire = FakeSocket(pair.client)
    wire.refuse_segments = errno.EIO
    pair.post(Opcode.RDMA_WRITE)
    real_send = wire.sendmsg
    sends = 0

    def sometimes_full(buffers: Any, ancillary: Any, flags: int, destination: Any) -> int:
        nonlocal sends
        sends += 1
        if sends % 5 == 0:
            raise BlockingIOError(errno.EAGAIN, "full")
        return real_send(buffers, ancillary, flags, destination)

    wire.sendmsg = sometimes_full  # type: ignore[method-assign]
    assert [completion.status for completion in pair.settle()] == [WcStatus.SUCCESS]
    assert pair.far.bytes == PATTERN
    assert pair.queue.counters.retransmitted_packets == 0


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOBUFS, errno.ENETUNREACH, errno.EMSGSIZE])
def test_send_error_is_a_loss_that_is_repaired_and_told_once(connect: Connect, number: int) -> None:
    pair = connect(options=QueuePairOptions(timeout=12), gso=False)
    wire = FakeSocket(pair.client)
    wire.send_errors = [number, number]
    assert pair.run(Opcode.RDMA_WRITE, length=100_000) is WcStatus.SUCCESS
    assert pair.far.bytes[:100_000] == PATTERN[:100_000]
    assert pair.client.send_failures == 2
    (warning,) = pair.client.warnings
    assert errno.errorcode[number] in warning
    assert ("--mtu" in warning) is (number == errno.EMSGSIZE)


def test_icmp_errors_on_receive_are_passed_over(connect: Connect) -> None:
    pair = connect()
    wire = FakeSocket(pair.client)
    wire.receive_errors = [errno.ECONNREFUSED, errno.EHOSTUNREACH]
    assert pair.run(Opcode.RDMA_WRITE, length=8) is WcStatus.SUCCESS
    assert pair.client.receive_failures == 2


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


def test_gso_that_never_arrives_is_given_up(connect: Connect) -> None:
    """A NIC that segments wrongly: bursts vanish, single datagrams pass."""
    pair = connect(options=QueuePairOptions(timeout=11, retry_cnt=7))
    wire = FakeSocket(pair.client)
    real_send = wire.sendmsg

    def singles_only(buffers: Any, ancillary: Any, flags: int, destination: Any) -> int:
        return 0 if ancillary else real_send(buffers, ancillary, flags, destination)

    wire.sendmsg = singles_only  # type: ignore[method-assign]
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert pair.far.bytes == PATTERN
    assert pair.client.gso is False
    assert "expect a third of the rate" in pair.client.warnings[0]


def test_gso_of_which_only_the_first_segment_arrives_is_given_up(connect: Connect) -> None:
    pair = connect(options=QueuePairOptions(timeout=11, retry_cnt=7))
    wire = FakeSocket(pair.client)
    real_send = wire.sendmsg

    def only_first(buffers: Any, ancillary: Any, flags: int, destination: Any) -> int:
        if not ancillary:
            return real_send(buffers, ancillary, flags, destination)
        data = b"".join(buffers)
        return real_send([data[: int.from_bytes(ancillary[0][2], "little")]], (), flags, destination)

    wire.sendmsg = only_first  # type: ignore[method-assign]
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert pair.far.bytes == PATTERN
    assert pair.client.gso is False


# --- faults and captures ------------------------------------------------------------------------------------------


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

    assert pair.client._capture is not None
    pair.client._capture.write_burst = full  # type: ignore[method-assign]
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS
    assert [w for w in pair.client.warnings if "ends early: No space left" in w]


# --- closing ------------------------------------------------------------------------------------------------------


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
