"""Two RoCE stacks in one process, joined by lists of datagrams, with time stepped by hand."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from p2prw.engine.model import Access, Completion, Opcode, QueuePairOptions, Sge
from p2prw.engine.roce.device import Burst, RoceDevice, RoceQueuePair
from p2prw.engine.roce.memory_table import MemoryRegistration
from p2prw.engine.roce.opcodes import MIDDLE_OVERHEAD_BYTES, RcOpcode
from p2prw.engine.roce.packet import Packet, pull_packet
from p2prw.engine.roce.runs import PURE, RunCodec, Train, build_run, receive_run

ALL_RIGHTS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ


class PlainBuffer:
    """Host memory: a MappedBuffer over a bytearray, with a view."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytearray(data)
        self.length_bytes = len(self.data)
        self.cpu_address = 0x7FFF_0000_0000
        self.view: memoryview | None = memoryview(self.data)

    def load(self, offset: int, length_bytes: int) -> bytes | memoryview:
        assert offset >= 0 and offset + length_bytes <= self.length_bytes
        return bytes(self.data[offset : offset + length_bytes])

    def store(self, offset: int, data: bytes | memoryview) -> None:
        assert offset >= 0 and offset + len(data) <= self.length_bytes
        self.data[offset : offset + len(data)] = data


class DeviceBuffer(PlainBuffer):
    """Device memory: no view, so every byte goes through load and store, which may be told to fail."""

    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self.view = None
        self.is_broken = False

    def load(self, offset: int, length_bytes: int) -> bytes | memoryview:
        if self.is_broken:
            raise OSError("device gone")
        return super().load(offset, length_bytes)

    def store(self, offset: int, data: bytes | memoryview) -> None:
        if self.is_broken:
            raise OSError("device gone")
        super().store(offset, data)


class End:
    """One device with one queue pair and one registered buffer."""

    def __init__(
        self, device: RoceDevice, options: QueuePairOptions, memory: list[PlainBuffer], access: Access
    ) -> None:
        self.device = device
        self.queue_pair: RoceQueuePair = device.create_queue_pair(options)
        self.memory = memory
        self.registration: MemoryRegistration = device.memory.register(memory, access)

    @property
    def data(self) -> bytes:
        return b"".join(bytes(buffer.data) for buffer in self.memory)

    def sges(self, offset: int = 0, length_bytes: int | None = None) -> list[Sge]:
        """Return the SGEs for a byte range of all buffers taken as one."""
        total = sum(buffer.length_bytes for buffer in self.memory)
        end = total if length_bytes is None else offset + length_bytes
        found, start = [], 0
        for segment in self.registration.vec:
            low, high = max(offset, start), min(end, start + segment.length_bytes)
            if low < high:
                found.append(Sge(segment.address + low - start, high - low, segment.lkey))
            start += segment.length_bytes
        return found


def bursts_of(train: Train) -> Iterator[Burst]:
    """Make what a train sends one by one, of the plain functions."""
    segment_bytes = train.mtu_bytes + MIDDLE_OVERHEAD_BYTES
    left = len(train.data) // train.mtu_bytes
    if not train.bursts:
        assert train.first_head is not None and train.tail_head is not None and left == 2
        first = alone(train.first_head, train.data[: train.mtu_bytes], train.first_seed, train.destination)
        ending = alone(train.tail_head, train.data[train.mtu_bytes :], train.tail_seed, train.destination)
        size = first.length_bytes
        assert size == ending.length_bytes
        yield Burst([*first.buffers, *ending.buffers], size, 2 * size, train.destination, 2)
        return
    psn, data = train.psn, train.data
    if train.first_head is not None:
        yield alone(train.first_head, data[: train.mtu_bytes], train.first_seed, train.destination)
        data, left = data[train.mtu_bytes :], left - 1
    if train.tail_head is not None:
        left -= 1
    for index in range(train.bursts):
        here = min(left, train.packets)
        middles = here - (train.last_prefix is not None and here == left)
        asks = bool(train.asks >> index & 1)
        buffers: list[Any] = []
        if middles:
            ack_last = asks and middles == here
            buffers += build_run(train.prefix, train.seeds, psn, data, train.mtu_bytes, middles, ack_last=ack_last)
        if middles < here:
            assert train.last_prefix is not None
            last = data[middles * train.mtu_bytes :]
            seeds = [train.last_seed]
            buffers += build_run(train.last_prefix, seeds, psn + middles, last, train.mtu_bytes, 1, ack_last=asks)
        yield Burst(buffers, segment_bytes, here * segment_bytes, train.destination, here)
        left, psn, data = left - here, psn + here, data[here * train.mtu_bytes :]
    assert not left
    if train.tail_head is not None:
        yield alone(train.tail_head, data, train.tail_seed, train.destination)


def alone(head: bytes, payload: memoryview, seed: int, destination: tuple[str, int]) -> Burst:
    """Make one packet of its headers, its data and the CRC up to its PSN word."""
    icrc = zlib.crc32(payload, zlib.crc32(head[8:], seed))
    packet: list[Any] = [head, payload, icrc.to_bytes(4, "little")]
    size = len(head) + len(payload) + 4
    return Burst(packet, size, size, destination, 1)


def unfolded(device: RoceDevice, now: float) -> Iterator[Burst]:
    """What a driver sends that makes the bursts of trains itself; who stops has sent what he was given."""
    for item in device.trains_to_send(now):
        if isinstance(item, Burst):
            yield item
            continue
        sent = 0
        try:
            for burst in bursts_of(item):
                sent += 1
                yield burst
        finally:
            item.left(sent)


def is_awaited(raw: memoryview, mtu_bytes: int, extension_bytes: int, prefix: int, psn: int, seeds: Any) -> bool:
    """Tell whether one packet that came alone is the FIRST or LAST with these first 8 bytes and this PSN."""
    if len(raw) != mtu_bytes + MIDDLE_OVERHEAD_BYTES + extension_bytes:
        return False
    word = int.from_bytes(raw[8:12], "big") & 0x7FFFFFFF
    if bytes(raw[:4]) + bytes(raw[5:8]) != prefix.to_bytes(8, "big")[:4] + prefix.to_bytes(8, "big")[5:]:
        return False
    if word != psn & 0xFFFFFF or (extension_bytes and raw[12] >> 5):
        return False
    return seeds is None or zlib.crc32(raw[8:-4], seeds[0]) == int.from_bytes(raw[-4:], "little")


def take_awaited(device: RoceDevice, raw: memoryview, segment_bytes: int, source: tuple[str, int], now: float) -> int:
    """Put what is awaited of a burst in its place, with the plain functions; return how many packets that were."""
    awaited = device.awaited()
    if awaited is None or awaited.source != source:
        return 0
    mtu, target, extension = awaited.mtu_bytes, awaited.target, awaited.extension_bytes
    done, last, asked = 0, 0, False
    edge = (awaited.first_prefix, awaited.first_seeds) if awaited.first_prefix is not None else None
    if edge is None and extension and not awaited.packets and awaited.last_prefix is not None:
        edge, last = (awaited.last_prefix, awaited.last_seeds), 1
    if edge is not None:
        if not is_awaited(raw, mtu, extension, edge[0] or 0, awaited.psn, edge[1]):
            return 0
        target[awaited.offset : awaited.offset + mtu] = raw[12 + extension : -4]
        awaited.took(1, 1, bool(raw[8] & 0x80), bool(last), now)
        return 1
    if segment_bytes != mtu + MIDDLE_OVERHEAD_BYTES:
        return 0
    count = len(raw) // segment_bytes
    most = min(count, awaited.packets, count if awaited.seeds is None else len(awaited.seeds))
    run = (mtu, awaited.prefix, awaited.psn, awaited.seeds, 0, target, awaited.offset)
    done, asked = receive_run(raw, 0, most, *run)
    if awaited.last_prefix is not None and not extension and done == awaited.packets and done < count:
        end = (
            mtu,
            awaited.last_prefix,
            awaited.psn + done,
            awaited.last_seeds,
            done,
            target,
            awaited.offset + done * mtu,
        )
        last, asks = receive_run(raw, done * segment_bytes, 1, *end)
        asked = asked or asks
    took = done + last
    awaited.took(took * segment_bytes == len(raw), took, asked, bool(last), now)
    return took


class Link:
    """Client `a`, server `b`, the time, and what is on the wire. Nothing moves by itself."""

    def __init__(self, a: End, b: End) -> None:
        self.a = a
        self.b = b
        self.now = 100.0
        self.trains = False
        """Ask the devices for trains, and make their bursts as a driver would."""
        self.takes = False
        """Put what a device awaits in its place, as a driver would."""

    def collect(self, end: End, *, max_bursts: int = 10_000) -> list[Burst]:
        """Take what `end` wants to send off it; not delivering it loses it."""
        bursts: list[Burst] = []
        for burst in unfolded(end.device, self.now) if self.trains else end.device.bursts_to_send(self.now):
            bursts.append(burst)
            if len(bursts) >= max_bursts:
                break
        return bursts

    drop = collect

    def other(self, end: End) -> End:
        return self.b if end is self.a else self.a

    def receive(self, end: End, bursts: list[Burst]) -> None:
        """Give bursts of the other end to `end`, each as the kernel would with GRO."""
        source = (self.other(end).device.address, self.other(end).device.udp_port)
        for burst in bursts:
            raw = bytearray(b"".join(burst.buffers))
            assert len(raw) == burst.length_bytes
            assert burst.destination == (end.device.address, end.device.udp_port)
            view, segment_bytes, index = memoryview(raw), burst.segment_bytes, 0
            if self.takes:
                index = take_awaited(end.device, view, segment_bytes, source, self.now)
                view = view[index * segment_bytes :]
            if len(view) or not raw:
                end.device.receive_burst(view, segment_bytes, source, self.now, index)

    def inject(self, end: End, opcode: int, psn: int, extension: bytes = b"", data: bytes = b"", **more: Any) -> None:
        """Give `end` one well-made packet as its peer would send it."""
        connection = self.other(end).queue_pair.responder.connection
        assert connection is not None
        burst = connection.single(opcode, psn, extension, [memoryview(data)] if data else None, len(data), **more)
        self.receive(end, [burst])

    def answers(self, end: End) -> list[tuple[str, int, int]]:
        """Collect what `end` says without delivering it: (opcode name, PSN, syndrome or -1)."""
        return [
            (RcOpcode(p.bth.opcode).name, p.bth.psn, p.aeth.syndrome if p.aeth else -1)
            for p in packets(self.collect(end))
        ]

    def deliver(self, sender: End, *, max_bursts: int = 10_000) -> list[Burst]:
        """Carry everything `sender` wants to send over to the other end."""
        bursts = self.collect(sender, max_bursts=max_bursts)
        self.receive(self.other(sender), bursts)
        return bursts

    def settle(self, rounds: int = 2000) -> None:
        """Deliver both ways until nothing moves; time stands still."""
        for _ in range(rounds):
            if not self.deliver(self.a) + self.deliver(self.b):
                return
        raise AssertionError("did not settle")

    def run_timers(self, rounds: int = 200) -> None:
        """Settle, and step time from timer to timer until none runs."""
        for _ in range(rounds):
            self.settle()
            timers = [t for t in (self.a.device.next_timer(), self.b.device.next_timer()) if t is not None]
            if not timers:
                return
            self.now = max(self.now, min(timers))
            self.a.device.handle_timer(self.now)
            self.b.device.handle_timer(self.now)
        raise AssertionError("timers never stopped")

    def write(self, wr_id: int, offset: int, length_bytes: int, remote_offset: int = 0, **more: Any) -> None:
        self._rdma(Opcode.RDMA_WRITE, wr_id, offset, length_bytes, remote_offset, **more)

    def read(self, wr_id: int, offset: int, length_bytes: int, remote_offset: int = 0, **more: Any) -> None:
        self._rdma(Opcode.RDMA_READ, wr_id, offset, length_bytes, remote_offset, **more)

    def _rdma(
        self, opcode: Opcode, wr_id: int, offset: int, length_bytes: int, remote_offset: int, **more: Any
    ) -> None:
        remote = self.b.registration.remote_segments()[0]
        more = {"signaled": True, "rkey": remote.rkey, "remote_addr": remote.address + remote_offset, **more}
        if "imm_data" in more:
            opcode = Opcode.RDMA_WRITE_WITH_IMM
        self.a.queue_pair.post_rdma(wr_id, opcode, self.a.sges(offset, length_bytes), **more)

    def poll(self, end: End | None = None) -> list[Completion]:
        return (end or self.a).queue_pair.poll(1000)


def split(burst: Burst) -> list[bytes]:
    """Return the datagrams of a burst."""
    raw = b"".join(burst.buffers)
    size = burst.segment_bytes or len(raw)
    return [raw[i : i + size] for i in range(0, len(raw), size)]


def packets(bursts: list[Burst]) -> list[Packet]:
    return [pull_packet(datagram) for burst in bursts for datagram in split(burst)]


def pattern(length_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length_bytes)


def requests(bursts: list[Burst]) -> list[tuple[str, int, bool]]:
    """Return (opcode name, PSN, AckReq) of every packet."""
    return [(RcOpcode(p.bth.opcode).name, p.bth.psn, p.bth.ack_request) for p in packets(bursts)]


def make(
    *,
    a_memory: list[PlainBuffer] | int = 1 << 20,
    b_memory: list[PlainBuffer] | int = 1 << 20,
    mtu: int = 4096,
    addresses: tuple[str, str] = ("127.0.0.1", "127.0.0.2"),
    ports: tuple[int, int] = (40001, 4791),
    gso_segments: int = 64,
    a_access: Access = ALL_RIGHTS,
    b_access: Access = ALL_RIGHTS,
    a_psn: int | None = 0x1000,
    seed: int = 7,
    icrc_check: Any = "full",
    fast_paths: bool = True,
    codec: RunCodec = PURE,
    batching: bool = True,
    connect: bool = True,
    most_bytes: int = 1 << 62,
    most_read_bytes: int = 1 << 62,
    **options: Any,
) -> Link:
    rng = random.Random(seed)
    ends = []
    for address, port, memory, access in zip(addresses, ports, (a_memory, b_memory), (a_access, b_access), strict=True):
        device = RoceDevice(
            address,
            port,
            port_mtu_bytes=mtu,
            random_bits=rng.getrandbits,
            icrc_check=icrc_check,
            gso_segments=gso_segments,
            fast_paths=fast_paths,
            codec=codec,
            batching=batching,
            most_bytes=most_bytes,
            most_read_bytes=most_read_bytes,
        )
        if isinstance(memory, int):
            memory = [PlainBuffer(pattern(memory, port))]
        ends.append(End(device, QueuePairOptions(**options), memory, access))
    link = Link(*ends)
    if a_psn is not None:  # a known first PSN of requests makes scenarios readable
        requester = link.a.queue_pair.requester
        requester.next_psn = requester.send_psn = requester.max_sent_psn = requester.una_psn = a_psn
        link.a.queue_pair.local = replace(link.a.queue_pair.local, psn=a_psn)
    if connect:
        link.a.queue_pair.connect(link.b.queue_pair.local)
        link.b.queue_pair.connect(link.a.queue_pair.local)
    return link


class Lab:
    """What tests need of this file, without importing it."""

    PlainBuffer = PlainBuffer
    DeviceBuffer = DeviceBuffer
    ALL_RIGHTS = ALL_RIGHTS
    connected_devices = staticmethod(make)
    split = staticmethod(split)
    packets = staticmethod(packets)
    requests = staticmethod(requests)
    pattern = staticmethod(pattern)
    bursts_of = staticmethod(bursts_of)


@pytest.fixture(scope="session")
def lab() -> type[Lab]:
    return Lab


@pytest.fixture(params=["python", "compiled"])
def connected_devices(request: pytest.FixtureRequest) -> Callable[..., Link]:
    """Return a factory of two connected ends; see `make` for what can be chosen."""
    codec = PURE if request.param == "python" else request.getfixturevalue("compiled_codec")
    return partial(make, codec=codec)
