"""Hostile packets, half with a right ICRC, at a live queue pair and with PSNs it looks at.

Whatever arrives, no exception leaves the device, no byte outside a grant is read or written, and the queue pair goes
on working or is in ERR with all its work flushed for a reason that one can tell from the packet.

The ICRC is made here by the plain definition, not by the device's own code.
"""

from __future__ import annotations

import gc
import ipaddress
import random
import struct
import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import pytest

from p2prw.engine.model import Access, Opcode, QueuePairAttributes, QueuePairOptions, Sge, WcStatus
from p2prw.engine.roce.device import RoceDevice
from p2prw.engine.roce.icrc import IcrcCheck
from p2prw.engine.roce.packet import pull_packet, push_aeth, push_bth, push_reth
from p2prw.engine.roce.psn import packets_of
from p2prw.engine.roce.queue_pair import RoceQueuePair
from p2prw.engine.roce.remote import gid_of
from p2prw.engine.roce.runs import PURE, RunCodec
from p2prw.engine.roce.state import QueuePairState

PACKETS = 7_000
"""Of each storm; there are eight. Ten times as many with --long."""
MTU = 256
REGION_BYTES = 4096
GUARD_BYTES = 64
SECRET = 0xEE
"""What lies wherever the peer has no right to read. No packet carries it, so it can only come from there."""
NO_SECRET = bytes(0xED if value == SECRET else value for value in range(256))
FATAL = {0x61: WcStatus.REM_INV_REQ_ERR, 0x62: WcStatus.REM_ACCESS_ERR, 0x63: WcStatus.REM_OP_ERR}
PATHS: list[tuple[str, str, IcrcCheck]] = [
    ("fd00::1", "fd00::2", "full"),
    ("10.0.0.1", "10.0.0.2", "full"),
    ("10.0.0.1", "10.0.0.2", "solve"),
    ("127.0.0.1", "127.0.0.2", "off"),
]
ANSWERS = frozenset(range(0x0D, 0x12))
PEER_PORT = 40001
Codecs = tuple[RunCodec, ...]
"""Each new queue pair takes the next one."""
each_path = pytest.mark.parametrize(
    ("peer_address", "address", "check"), PATHS, ids=["ipv6", "ipv4", "ipv4-solve", "unchecked"]
)


class Wire:
    """Makes what the peer sends."""

    def __init__(self, source: str, destination: str) -> None:
        self.addresses = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
        self.source = (source, PEER_PORT)
        self._seeds: dict[tuple[int, int], int] = {}

    def seal(self, packet: bytes, index: int = 0) -> bytes:
        """Return `packet` with its ICRC, as segment `index` of a burst."""
        size = len(packet) + 4 + 8
        seed = self._seeds.get((size, index))
        if seed is None:
            udp = struct.pack(">HHHH", PEER_PORT, 4791, size, 0xFFFF)
            if len(self.addresses) == 8:
                head = struct.pack(">BBHHHBBH", 0x45, 0xFF, size + 20, index, 0x4000, 0xFF, 17, 0xFFFF)
            else:
                head = struct.pack(">IHBB", 0x6FFFFFFF, size, 17, 0xFF)
            seed = self._seeds[size, index] = zlib.crc32(b"\xff" * 8 + head + self.addresses + udp)
        icrc = zlib.crc32(packet[5:], zlib.crc32(packet[:4] + b"\xff", seed)) if len(packet) > 4 else seed
        return packet + struct.pack("<I", icrc)


class Memory:
    """A MappedBuffer between guards. Without a view it is a device's memory, and may be broken."""

    def __init__(self, fill: bytes, *, has_view: bool = True) -> None:
        assert len(fill) == REGION_BYTES
        guard = bytes([SECRET]) * GUARD_BYTES
        self.raw = bytearray(guard + fill + guard)
        self.length_bytes = len(self.raw)
        self.cpu_address = 0x7FFF_0000_0000
        self.view: memoryview | None = memoryview(self.raw) if has_view else None
        self.is_broken = False

    def load(self, offset: int, length_bytes: int) -> bytes | memoryview:
        if self.is_broken:
            raise OSError("device gone")
        assert offset >= GUARD_BYTES and offset + length_bytes <= GUARD_BYTES + REGION_BYTES
        return bytes(self.raw[offset : offset + length_bytes])

    def store(self, offset: int, data: bytes | memoryview) -> None:
        if self.is_broken:
            raise OSError("device gone")
        assert offset >= GUARD_BYTES and offset + len(data) <= GUARD_BYTES + REGION_BYTES
        self.raw[offset : offset + len(data)] = data

    @property
    def data(self) -> bytes:
        return bytes(self.raw[GUARD_BYTES:-GUARD_BYTES])

    def check_guards(self) -> None:
        assert self.raw.count(SECRET, 0, GUARD_BYTES) == GUARD_BYTES
        assert self.raw.count(SECRET, len(self.raw) - GUARD_BYTES) == GUARD_BYTES


def make_device(rng: random.Random, address: str, check: IcrcCheck) -> RoceDevice:
    def random_bits(count: int) -> int:
        """Keys and PSNs without the secret byte; PSNs near the wrap as often as not."""
        while True:
            value = rng.getrandbits(count)
            if count == 24 and rng.random() < 0.5:
                value |= 0xFFFF00
            if SECRET not in value.to_bytes(8, "big"):
                return value

    return RoceDevice(address, 4791, port_mtu_bytes=MTU, random_bits=random_bits, icrc_check=check, gso_segments=16)


def peer_attributes(rng: random.Random, address: str, max_rd_atomic: int) -> QueuePairAttributes:
    return QueuePairAttributes(
        qpn=0x77,
        psn=rng.choice([0, 0xFFFFF8, rng.getrandbits(24)]),
        gid=gid_of(address),
        mtu_bytes=MTU,
        max_rd_atomic=max_rd_atomic,
        max_dest_rd_atomic=max_rd_atomic,
        udp_port=PEER_PORT,
    )


def mutate(rng: random.Random, packet: bytes) -> bytes:
    """Change one thing about a packet without ICRC."""
    data = bytearray(packet)
    match rng.randrange(13):
        case 0:
            data[0] = rng.choice([rng.randrange(0x18), rng.randrange(256)])
        case 1:
            data[1] ^= rng.choice([0x10, 0x20, 0x30, 0x40, 0x80, 0x01])  # pad, M, SE, TVer
        case 2:
            data[2 + rng.randrange(2)] ^= 1 << rng.randrange(8)  # P_Key
        case 3:
            data[4] = rng.randrange(256)  # FECN, BECN
        case 4:
            data[8] ^= 1 << rng.randrange(8)  # AckReq, resv7
        case 5:
            psn = int.from_bytes(data[9:12], "big") + rng.choice([-(1 << 23), -5, -2, -1, 1, 2, 5, 1 << 22, 1 << 23])
            data[9:12] = (psn & 0xFFFFFF).to_bytes(3, "big")
        case 6:
            del data[12 + rng.randrange(max(1, len(data) - 12)) :]
        case 7:
            data += rng.randbytes(rng.randrange(1, 40))
        case 8 | 9 if len(data) > 12:
            place = rng.randrange(12, min(len(data), 32))  # RETH, AETH, ImmDt
            data[place] = rng.choice([0, 0xFF, data[place] ^ 1 << rng.randrange(8), rng.randrange(256)])
        case 10 if len(data) >= 28:
            data[24:28] = rng.choice([0, 1, MTU, MTU + 1, 1 << 31, (1 << 31) + 1, 0xFFFFFFFF]).to_bytes(4, "big")
        case 11:
            for _ in range(rng.randrange(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case _:
            data[5 + rng.randrange(3)] ^= 1 << rng.randrange(8)  # DestQP
    return bytes(data)


def clean(packet: bytes) -> bytes:
    """Keep the secret out of what a packet may carry as data."""
    return packet[:12] + packet[12:].translate(NO_SECRET)


@dataclass
class Shot:
    """One call of `receive_burst`."""

    raw: bytes
    segment_bytes: int
    packets: list[bytes]
    """Sealed packets as aimed; empty where nothing in it can be right."""
    count: int


def take_aim(rng: random.Random, wire: Wire, packets: list[bytes], *, is_sealed: bool) -> Shot:
    """Put packets without ICRC together as the kernel might: one alone, several of one size, or in odd pieces."""
    packets = [clean(packet) for packet in packets]
    sealed = [wire.seal(packet, index) for index, packet in enumerate(packets)]
    segment = len(sealed[0])
    if any(len(packet) != segment for packet in sealed[:-1]) or len(sealed[-1]) > segment:
        # not of one size: only the first can be where the device looks for it
        sealed, packets = sealed[:1], packets[:1]
    if is_sealed:
        return Shot(b"".join(sealed), segment, sealed, len(sealed))
    data = bytearray(b"".join(sealed))
    match rng.randrange(5):
        case 0:
            for start in range(0, len(data), segment):
                place = rng.choice([at for at in range(min(segment, len(data) - start)) if at != 4])
                data[start + place] ^= 1 << rng.randrange(8)
        case 1:
            for start in range(0, len(data), segment):
                end = min(start + segment, len(data))
                data[end - 4 : end] = rng.randbytes(4)
        case 2:
            del data[rng.randrange(len(data)) :]
        case 3:
            data[:] = rng.randbytes(rng.randrange(1, 400))
            if len(data) > 8:
                data[:8] = sealed[0][:8]
        case _:
            segment = rng.choice([-1, 0, 1, 15, 16, 17, segment - 1, segment + 1, 1 << 20, rng.randrange(1, 300)])
    # cut to odd pieces, the first packets may still be whole
    whole = []
    size = segment if 0 < segment <= len(data) else len(data)
    for index, packet in enumerate(sealed):
        if bytes(data[index * size : (index + 1) * size]) == packet:
            whole.append(packet)
    return Shot(bytes(data).translate(NO_SECRET) if not whole else bytes(data), segment, whole, len(sealed))


def growth_of(half: list[int]) -> int:
    gc.collect()
    half.append(len(gc.get_objects()))
    return half[-1] - half[0]


def check_caches(queue_pair: RoceQueuePair) -> None:
    """Nothing a peer sends is kept without bound."""
    assert queue_pair._sources is not None
    assert len(queue_pair._sources._flows) <= 64
    for flow in queue_pair._sources._flows.values():
        assert len(flow._seeds) <= 130
        assert len(flow._prefixed) <= 130
        assert all(len(seeds) <= 256 for seeds in flow._prefixed.values())


def blow(storm: Responding | Requesting, packets: int, is_bounded: Callable[[], bool]) -> None:
    """Send so many packets, at least half of them sealed; nothing grows, and nothing of one queue pair outlives it."""
    half: list[int] = []
    while storm.sent < packets:
        storm.shoot(is_sealed=storm.sealed <= storm.sent / 2)
        if not half and storm.sent >= packets // 2:
            growth_of(half)
        assert is_bounded()
    assert storm.sealed >= packets // 2
    assert growth_of(half) < 1000
    check_caches(storm.queue_pair)
    assert len(storm.device._queue_pairs) == 1


# --- requests at a responder ---------------------------------------------------------------------------------------


class Responding:
    """A server with memory of every kind of right, and one live queue pair."""

    def __init__(
        self, rng: random.Random, peer_address: str, address: str, check: IcrcCheck, codecs: Codecs = (PURE,)
    ) -> None:
        self.rng, self.check = rng, check
        self.codecs = cycle(codecs)
        self.wire = Wire(peer_address, address)
        self.device = make_device(rng, address, check)
        self.peer_address = peer_address
        plain = rng.randbytes(REGION_BYTES).translate(NO_SECRET)
        secret = bytes([SECRET]) * REGION_BYTES
        both = Access.REMOTE_READ | Access.REMOTE_WRITE
        self.memory = {
            "both": (Memory(plain), both),
            "read": (Memory(plain), Access.REMOTE_READ),
            "write": (Memory(secret), Access.REMOTE_WRITE),
            "none": (Memory(secret), Access.LOCAL_WRITE),
            "device": (Memory(plain, has_view=False), both),
            "receive": (Memory(secret), Access.LOCAL_WRITE),
        }
        self.keys = {
            name: self.device.memory.register([memory], access, GUARD_BYTES, REGION_BYTES).vec[0]
            for name, (memory, access) in self.memory.items()
        }
        self.fixed = {name: self.memory[name][0].data for name in ("read", "none")}
        self.seen: Counter[int] = Counter()
        self.sent = self.sealed = self.strangers = 0
        self.survived = self.died = self.failed_in_message = self.lengths_checked = 0
        self.queue_pair: RoceQueuePair = self.device.create_queue_pair(QueuePairOptions())
        self.renew()

    def renew(self) -> None:
        """Take a new queue pair, with some receives and some work of its own to flush."""
        self.queue_pair.close()
        self.device.codec = next(self.codecs)
        max_reads = self.rng.choice([1, 2, 16])
        self.queue_pair = self.device.create_queue_pair(QueuePairOptions(max_rd_atomic=max_reads))
        self.queue_pair.connect(peer_attributes(self.rng, self.peer_address, max_reads))
        self.receives = self.rng.randrange(4)
        for wr_id in range(self.receives):
            place, size = self.rng.randrange(2048), self.rng.choice([0, 10, 300, 1000])
            key = self.keys["receive"]
            self.queue_pair.post_recv(wr_id, [Sge(key.address + place, size, key.lkey)])
        self.works = self.rng.randrange(3)
        key = self.keys["read"]
        for wr_id in range(self.works):
            self.queue_pair.post_rdma(
                wr_id, Opcode.RDMA_WRITE, [Sge(key.address, 100, key.lkey)], 0, 0, signaled=bool(wr_id)
            )
        self.received: list[WcStatus] = []
        self.last_syndrome = -1
        self.saw_ack = False
        self.grants: list[tuple[int, int, int]] = []

    def target(self) -> tuple[int, int, int]:
        """Return address, key and a length: most of the time within a region, not always one with the right."""
        rng = self.rng
        key = self.keys[rng.choice(["both", "both", "both", "both", "write", "read", "none", "device", "device"])]
        length = rng.choice([0, 1, 3, 100, MTU - 1, MTU, MTU + 1, 2 * MTU, 3 * MTU + 7])
        offset = rng.randrange(REGION_BYTES - length + 1)
        if rng.random() < 0.03:
            offset = rng.choice([-1, REGION_BYTES - length + 1, REGION_BYTES, -(1 << 40), 1 << 62])
        rkey = key.lkey if rng.random() > 0.02 else rng.getrandbits(32)
        return (key.address + offset) & (1 << 64) - 1, rkey, length

    def data(self, length: int) -> bytes:
        start = self.rng.randrange(1024)
        return POOL[start : start + length]

    def packet(self, opcode: int, psn: int, extension: bytes = b"", data: bytes = b"") -> bytes:
        pad = -len(data) & 3
        asks = self.rng.random() < 0.5
        bth = push_bth(opcode, self.queue_pair.local.qpn, psn, ack_request=asks, pad_bytes=pad)
        return bth + extension + data + bytes(pad)

    def requests(self) -> list[bytes]:
        """Return the packets of one request as a good peer sends it, or the next packets of one begun before."""
        rng, psn = self.rng, self.queue_pair.responder.expected_psn
        if rng.random() < 0.12:
            psn += rng.choice([-300, -3, -2, -1, -1, 1, 2, 9])
        psn &= 0xFFFFFF
        if self.queue_pair.responder._kind and rng.random() < 0.9:
            left = self.queue_pair.responder._length - self.queue_pair.responder._done
            base = 6 if self.queue_pair.responder._kind & 8 else 0
            count = rng.randrange(1, 4)
            if left > MTU:
                return [self.packet(base + 1, psn + i, b"", self.data(MTU)) for i in range(min(count, left // MTU))]
            return [self.packet(base + 2, psn, b"", self.data(max(1, left)))]
        address, rkey, length = self.target()
        kind = rng.randrange(20)
        if kind < 9:
            if length <= MTU:
                return [self.packet(0x0A, psn, push_reth(address, rkey, length), self.data(length))]
            first = [self.packet(0x06, psn, push_reth(address, rkey, length), self.data(MTU))]
            if rng.random() < 0.5:
                return first
            middles = packets_of(length, MTU) - 2
            return first + [self.packet(0x07, psn + 1 + i, b"", self.data(MTU)) for i in range(middles)]
        if kind < 14:
            return [self.packet(0x0C, psn, push_reth(address, rkey, length))]
        if kind < 16:
            length = min(length, MTU)
            extension = push_reth(address, rkey, length) + b"imm!"
            return [self.packet(0x0B, psn, extension, self.data(length))]
        if kind < 18:
            if rng.random() < 0.5:
                return [self.packet(0x04, psn, b"", self.data(min(length, MTU)))]
            return [self.packet(0x00, psn, b"", self.data(MTU))]
        if kind == 18:
            return [self.packet(rng.choice([0x13, 0x14, 0x16, 0x17, 0x01, 0x02, 0x08]), psn, rng.randbytes(28))]
        return [self.packet(0x81, psn, bytes(16)), self.packet(rng.choice([0x0D, 0x10, 0x11]), psn, bytes(4))]

    def shoot(self, *, is_sealed: bool) -> None:
        rng, queue_pair = self.rng, self.queue_pair
        packets = self.requests()
        if rng.random() < (0.25 if is_sealed else 0.5):
            place = rng.randrange(len(packets))
            packets[place] = mutate(rng, packets[place])
        device_memory = self.memory["device"][0]
        device_memory.is_broken = rng.random() < 0.1
        shot = take_aim(rng, self.wire, packets, is_sealed=is_sealed)
        # a READ response acknowledges what was posted before its PSN
        self.saw_ack |= not ANSWERS.isdisjoint(shot.raw[:: max(shot.segment_bytes, 1)])
        before = self.snapshot()
        responder = queue_pair.responder
        left, psn = responder._length - responder._done, responder.expected_psn
        self.device.receive_burst(memoryview(bytearray(shot.raw)), shot.segment_bytes, self.wire.source, 5.0)
        self.sent += shot.count
        self.sealed += shot.count if is_sealed else 0
        after = self.snapshot()
        self.check_memory()
        self.check_grant(shot, before, after)
        if len(shot.packets) == 1 and len(shot.raw) == shot.segment_bytes:
            self.check_length(shot.packets[0], left, psn)
        if not shot.packets and self.check == "full":
            assert before == after, "a packet with a wrong ICRC did something"
        if queue_pair.state is QueuePairState.ERR and len(shot.raw) == max(shot.segment_bytes, 1):
            assert before[1:] == after[1:], "a refused packet left its mark in memory"
        if rng.random() < 0.8:
            self.drain()
        device_memory.is_broken = False
        self.judge()
        if rng.random() < 0.05:
            self.check_stranger()

    def check_stranger(self) -> None:
        """A packet that would be good from the peer does nothing, and is answered with nothing, from elsewhere."""
        rng = self.rng
        self.drain()
        before = self.snapshot()
        packets = [clean(packet) for packet in self.requests()]
        source = rng.choice([("192.0.2.7", PEER_PORT), ("2001:db8::7", PEER_PORT), ("0.0.0.0", 0)])
        if rng.random() < 0.3:
            # From the peer's own address, at a queue pair that it does not have.
            qpn = (self.queue_pair.local.qpn ^ 1 << rng.randrange(24)).to_bytes(3, "big")
            packets, source = [packet[:5] + qpn + packet[8:] for packet in packets], self.wire.source
        for packet in packets:
            raw = bytearray(self.wire.seal(packet))
            self.device.receive_burst(memoryview(raw), len(raw), source, 5.0)
        self.strangers += 1
        assert self.snapshot() == before
        assert not list(self.device.bursts_to_send(5.0)), "a stranger was answered"

    def snapshot(self) -> tuple[object, ...]:
        responder = self.queue_pair.responder
        state = (self.queue_pair.state, responder.expected_psn, responder.msn, len(responder.answers))
        return (state, *(bytes(memory.raw) for memory, _access in self.memory.values()))

    def check_grant(self, shot: Shot, before: tuple[object, ...], after: tuple[object, ...]) -> None:
        """Nothing changes but what a RETH of the message in progress, or of this shot, spans."""
        size = shot.segment_bytes if 0 < shot.segment_bytes <= len(shot.raw) else len(shot.raw) or 1
        for start in range(0, len(shot.raw), size):
            packet = shot.raw[start : start + size]
            if packet[0] in (0x06, 0x0A, 0x0B) and len(packet) >= 32:
                address, rkey, length = struct.unpack_from(">QII", packet, 12)
                self.grants.append((rkey, address, address + length))
        for place, (name, key) in enumerate(self.keys.items(), start=1):
            if name == "receive" or before[place] == after[place]:
                continue
            was, now = before[place], after[place]
            assert isinstance(was, bytes) and isinstance(now, bytes)
            for rkey, low, high in self.grants:
                if rkey == key.lkey:
                    first = max(0, low - key.address + GUARD_BYTES)
                    last = max(first, min(len(was), high - key.address + GUARD_BYTES))
                    was = was[:first] + now[first:last] + was[last:]
            assert was == now, f"memory {name!r} changed beyond the length of the message"
        if not self.queue_pair.responder._kind:
            self.grants.clear()
        del self.grants[:-4]

    def check_length(self, packet: bytes, left: int, psn: int) -> None:
        """A WRITE packet that was accepted has the length that its opcode and its message call for."""
        if self.queue_pair.responder.expected_psn == psn or self.queue_pair.state is not QueuePairState.RTS:
            return
        opcode, pad = packet[0], packet[1] >> 4 & 3
        header = {0x06: 28, 0x07: 12, 0x08: 12, 0x09: 16, 0x0A: 28, 0x0B: 32}.get(opcode)
        if header is None:
            return
        size = len(packet) - header - pad - 4
        self.lengths_checked += 1
        if opcode in (0x06, 0x0A, 0x0B):
            (left,) = struct.unpack_from(">I", packet, 24)
        if opcode in (0x06, 0x07):
            assert size == MTU < left
            assert not pad
        else:
            assert size == left <= MTU
            assert pad == -size & 3

    def check_memory(self) -> None:
        for memory, _access in self.memory.values():
            memory.check_guards()
        for name, data in self.fixed.items():
            assert self.memory[name][0].data == data, f"memory {name!r} was written"

    def drain(self) -> None:
        """Look at what the server answers."""
        for burst in self.device.bursts_to_send(5.0):
            raw = b"".join(burst.buffers)
            for start in range(0, len(raw), burst.segment_bytes):
                packet = pull_packet(raw[start : start + burst.segment_bytes])
                if packet.bth.opcode == 0x11:
                    assert packet.aeth is not None
                    self.seen[packet.aeth.syndrome] += 1
                    self.last_syndrome = packet.aeth.syndrome
                elif 0x0D <= packet.bth.opcode <= 0x10:
                    assert SECRET not in packet.payload, "memory left the host that nobody had a right to"
                    self.seen[packet.bth.opcode] += 1

    def judge(self) -> None:
        queue_pair = self.queue_pair
        self.received += [completion.status for completion in queue_pair.poll_recv(100)]
        if queue_pair.state is QueuePairState.ERR:
            self.drain()
            self.died += 1
            done = queue_pair.poll(100)
            # A mutated opcode may have made an ACK or a NAK for the server's own work: then that is what it says.
            errors_here = [completion for completion in done if completion.status is not WcStatus.SUCCESS]
            statuses = {completion.status for completion in errors_here}
            assert statuses <= {WcStatus.WR_FLUSH_ERR} or self.last_syndrome not in FATAL
            assert self.last_syndrome in FATAL or statuses & set(FATAL.values()), "the peer was not told"
            assert [completion.wr_id for completion in errors_here] == list(
                range(self.works - len(errors_here), self.works)
            )
            assert len(errors_here) == self.works or self.saw_ack
            self.received += [completion.status for completion in queue_pair.poll_recv(100)]
            assert len(self.received) == self.receives
            errors = [status for status in self.received if status is not WcStatus.SUCCESS]
            assert errors == self.received[len(self.received) - len(errors) :]
            assert set(errors[1:]) <= {WcStatus.WR_FLUSH_ERR}
            assert set(errors) <= {WcStatus.WR_FLUSH_ERR, WcStatus.LOC_LEN_ERR, WcStatus.LOC_PROT_ERR}
            self.failed_in_message += bool(errors and errors[0] is not WcStatus.WR_FLUSH_ERR)
            self.check_silence()
            self.renew()
        elif self.rng.random() < 0.05:
            self.check_working()

    @property
    def is_dead(self) -> bool:
        assert self.queue_pair.state in (QueuePairState.RTS, QueuePairState.ERR)
        return self.queue_pair.state is QueuePairState.ERR

    def check_silence(self) -> None:
        """In ERR nothing is executed and nothing answered."""
        before = self.snapshot()
        key = self.keys["both"]
        request = self.packet(
            0x0A, self.queue_pair.responder.expected_psn, push_reth(key.address, key.lkey, 4), b"\1\2\3\4"
        )
        raw = bytearray(self.wire.seal(request))
        self.device.receive_burst(memoryview(raw), len(raw), self.wire.source, 5.0)
        assert self.snapshot() == before
        assert not list(self.device.bursts_to_send(5.0))

    def check_working(self) -> None:
        """A plain WRITE is executed and acknowledged; in the middle of another message it ends the queue pair."""
        self.drain()
        responder, key = self.queue_pair.responder, self.keys["both"]
        if self.is_dead:
            return
        in_message, psn, data = bool(responder._kind), responder.expected_psn, self.data(32)
        bth = push_bth(0x0A, self.queue_pair.local.qpn, psn, ack_request=True)
        raw = bytearray(self.wire.seal(bth + push_reth(key.address, key.lkey, 32) + data))
        self.device.receive_burst(memoryview(raw), len(raw), self.wire.source, 5.0)
        self.last_syndrome = -1
        self.drain()
        if in_message:
            assert self.is_dead
            assert self.last_syndrome == 0x61
        else:
            self.survived += 1
            assert not self.is_dead
            assert self.last_syndrome == 0x1F
            assert responder.expected_psn == psn + 1
            assert self.memory["both"][0].data[:32] == data


POOL = random.Random(99).randbytes(8192).translate(NO_SECRET)


@each_path
def test_requests_at_a_responder(kit, peer_address: str, address: str, check: IcrcCheck, codecs: Codecs) -> None:
    storm = Responding(random.Random(f"{address} {check}"), peer_address, address, check, codecs)
    packets = kit.inputs(PACKETS)
    blow(storm, packets, lambda: len(storm.queue_pair.responder.answers) <= 3 * 16 + 2)
    # every branch was taken, and often
    for syndrome in (0x1F, 0x60, 0x61, 0x62, 0x63, 0x20 | QueuePairOptions().min_rnr_timer, 0x0D, 0x0E, 0x0F, 0x10):
        assert storm.seen[syndrome] >= packets // 3000, f"{syndrome:#x}"
    assert storm.survived >= packets // 600
    assert storm.died >= packets // 100
    assert storm.failed_in_message >= packets // 7000
    assert storm.lengths_checked >= packets // 100
    assert storm.strangers >= packets // 100


@pytest.mark.parametrize("max_reads", [1, 16])
def test_answers_do_not_pile_up_while_the_socket_is_full(max_reads: int) -> None:
    rng = random.Random(max_reads)
    storm = Responding(rng, *PATHS[0])
    longest = 0
    for _ in range(2000):
        packets = storm.requests()
        for packet in packets:
            raw = bytearray(storm.wire.seal(clean(packet)))
            storm.device.receive_burst(memoryview(raw), len(raw), storm.wire.source, 5.0)
        longest = max(longest, len(storm.queue_pair.responder.answers))
        if storm.queue_pair.state is QueuePairState.ERR:
            storm.renew()
    assert 3 <= longest <= 3 * 16 + 2


# --- answers at a requester ----------------------------------------------------------------------------------------


@dataclass
class Posted:
    """One work request that the storm's books hold."""

    wr_id: int
    opcode: Opcode
    signaled: bool
    length_bytes: int
    first_psn: int
    slot: int

    @property
    def end_psn(self) -> int:
        return self.first_psn + packets_of(self.length_bytes, MTU)


class Requesting:
    """A client with work outstanding, whose peer answers as it likes."""

    SLOT_BYTES = 1024
    GAP_BYTES = 128
    """At the end of each slot; no READ's sink reaches it."""

    def __init__(
        self, rng: random.Random, peer_address: str, address: str, check: IcrcCheck, codecs: Codecs = (PURE,)
    ) -> None:
        self.rng, self.check = rng, check
        self.codecs = cycle(codecs)
        self.wire = Wire(peer_address, address)
        self.device = make_device(rng, address, check)
        self.peer_address = peer_address
        self.now = 10.0
        self.source = Memory(POOL[:REGION_BYTES])
        self.sink = Memory(bytes([SECRET]) * REGION_BYTES)
        registration = self.device.memory.register([self.source], Access.LOCAL_READ, GUARD_BYTES, REGION_BYTES)
        self.source_key = registration.vec[0]
        self.register_sink()
        self.statuses: Counter[WcStatus] = Counter()
        self.sent = self.sealed = self.survived = 0
        self.wr_id = 0
        self.queue_pair: RoceQueuePair = self.device.create_queue_pair(QueuePairOptions())
        self.renew()

    def register_sink(self) -> None:
        self.sink_registration = self.device.memory.register([self.sink], Access.LOCAL_WRITE, GUARD_BYTES, REGION_BYTES)
        self.sink_is_open = True

    def renew(self) -> None:
        rng = self.rng
        self.queue_pair.close()
        self.device.codec = next(self.codecs)
        if not self.sink_is_open:
            self.register_sink()
        max_reads = rng.choice([1, 2, 16])
        self.queue_pair = self.device.create_queue_pair(
            QueuePairOptions(retry_cnt=rng.choice([0, 1, 7]), rnr_retry=rng.choice([0, 1, 7]), max_rd_atomic=max_reads)
        )
        self.queue_pair.connect(peer_attributes(rng, self.peer_address, max_reads))
        self.queue_pair.set_window(rng.choice([1, 600, 4096]))
        self.next_psn = self.queue_pair.local.psn
        self.posted: deque[Posted] = deque()
        self.post()

    def post(self) -> None:
        """Keep up to four work requests outstanding; each READ has a slot of the sink to itself."""
        rng = self.rng
        while len(self.posted) < 4:
            self.wr_id += 1
            opcode = rng.choice([Opcode.RDMA_WRITE, Opcode.RDMA_READ, Opcode.RDMA_READ, Opcode.SEND])
            length = rng.choice([0, 1, 255, 256, 257, 512, 700, self.SLOT_BYTES - self.GAP_BYTES])
            slot = min(set(range(4)) - {work.slot for work in self.posted})
            work = Posted(self.wr_id, opcode, rng.random() < 0.7, length, self.next_psn, slot)
            self.next_psn = work.end_psn
            self.posted.append(work)
            if opcode is Opcode.RDMA_READ:
                start = GUARD_BYTES + slot * self.SLOT_BYTES
                self.sink.raw[start : start + self.SLOT_BYTES] = bytes([SECRET]) * self.SLOT_BYTES
                key = self.sink_registration.vec[0]
                offset = slot * self.SLOT_BYTES
            else:
                key, offset = self.source_key, rng.randrange(REGION_BYTES - length)
            cut = rng.randrange(length + 1)
            sges = [Sge(key.address + offset, cut, key.lkey), Sge(key.address + offset + cut, length - cut, key.lkey)]
            if opcode is Opcode.SEND:
                self.queue_pair.post_send(work.wr_id, sges, signaled=work.signaled)
            else:
                self.queue_pair.post_rdma(work.wr_id, opcode, sges, 0x5000, 0x99, signaled=work.signaled)

    def collect(self) -> None:
        for _burst in self.device.bursts_to_send(self.now):
            pass

    def work_at(self, psn: int) -> Posted | None:
        return next((work for work in self.posted if work.first_psn <= psn < work.end_psn), None)

    def response(self, psn: int, size: int | None = None, opcode: int | None = None) -> bytes:
        """Return the READ response with absolute PSN `psn`, right in all that is not given."""
        work = self.work_at(psn)
        if size is None:
            size = MTU if work is None else min(MTU, work.length_bytes - (psn - work.first_psn) * MTU)
        if opcode is None:
            opcode = 0x0E if size == MTU and self.rng.random() < 0.6 else self.rng.choice([0x0D, 0x0F, 0x10])
        pad = -size & 3
        extension = b"" if opcode == 0x0E else push_aeth(0x1F, 1)
        return push_bth(opcode, self.queue_pair.local.qpn, psn, pad_bytes=pad) + extension + POOL[:size] + bytes(pad)

    def ack(self, psn: int, syndrome: int = 0x1F) -> bytes:
        return push_bth(0x11, self.queue_pair.local.qpn, psn) + push_aeth(syndrome, self.rng.randrange(16))

    def answers(self) -> list[bytes]:
        rng, requester = self.rng, self.queue_pair.requester
        una, sent = requester.una_psn, requester.max_sent_psn
        work = self.work_at(una)
        if work is not None and work.opcode is Opcode.RDMA_READ and rng.random() < 0.6:
            psn = una + (rng.choice([-1, 1, 2]) if rng.random() < 0.1 else 0)
            if rng.random() < 0.03:
                return [self.response(psn, rng.choice([0, 1, 100, MTU, MTU + 4]))]
            if rng.random() < 0.4:
                return [self.response(at, MTU, 0x0E) for at in range(psn, max(psn + 1, work.end_psn - 1))]
            return [self.response(psn)]
        psn = rng.randrange(una - 2, sent + 3)
        choice = rng.random()
        if choice < 0.55:
            return [self.ack(psn, rng.choice([0x1F, 0x1F, rng.randrange(32)]))]
        if choice < 0.70:
            return [self.ack(psn, 0x20 | rng.randrange(32))]
        if choice < 0.85:
            return [self.ack(psn, 0x60)]
        if choice < 0.91:
            return [self.ack(psn, rng.choice([0x61, 0x62, 0x63]))]
        if choice < 0.95:
            return [self.ack(psn, rng.choice([0x40, 0x5F, 0x64, 0x7F, 0x80, 0xFF, rng.randrange(256)]))]
        return [push_bth(rng.choice([0x12, 0x81, 0x0A, 0x0C]), self.queue_pair.local.qpn, psn) + bytes(16)]

    def shoot(self, *, is_sealed: bool) -> None:
        rng = self.rng
        self.now += 1e-4
        if rng.random() < 0.9:
            self.collect()
        packets = self.answers()
        if rng.random() < (0.2 if is_sealed else 0.5):
            place = rng.randrange(len(packets))
            packets[place] = mutate(rng, packets[place])
        if rng.random() < 0.002:
            self.sink_registration.close()
            self.sink_is_open = False
        shot = take_aim(rng, self.wire, packets, is_sealed=is_sealed)
        requester = self.queue_pair.requester
        before = (requester.una_psn, requester.send_psn, requester.retries_left, self.sink.data)
        retries = (requester.retries_left, requester.rnr_retries_left)
        self.device.receive_burst(memoryview(bytearray(shot.raw)), shot.segment_bytes, self.wire.source, self.now)
        self.sent += shot.count
        self.sealed += shot.count if is_sealed else 0
        if not shot.packets and self.check == "full":
            after = (requester.una_psn, requester.send_psn, requester.retries_left, self.sink.data)
            assert before == after, "a packet with a wrong ICRC did something"
        self.check_memory()
        self.judge(self.excuses(shot, retries))
        if (timer := self.device.next_timer()) is not None and rng.random() < 0.05:
            self.now = max(self.now, timer)
            self.device.handle_timer(self.now)
            timer = self.device.next_timer()
            assert timer is None or timer > self.now
            self.judge({WcStatus.RETRY_EXC_ERR, WcStatus.LOC_PROT_ERR})
        if rng.random() < 0.05:
            self.check_working()
        self.post()

    def excuses(self, shot: Shot, retries: tuple[int, int]) -> set[WcStatus]:
        """Which errors this shot may lead to."""
        found = set()
        if not self.sink_is_open:
            found.add(WcStatus.LOC_PROT_ERR)
        packets = shot.packets
        if self.check != "full" and not packets:
            size = shot.segment_bytes if 0 < shot.segment_bytes <= len(shot.raw) else len(shot.raw)
            packets = [shot.raw[at : at + size] for at in range(0, len(shot.raw), size or 1)]
        for packet in packets:
            if packet[0] == 0x11 and len(packet) >= 20:
                if packet[12] in FATAL:
                    found.add(FATAL[packet[12]])
                if packet[12] >> 5 == 1 and retries[1] <= len(packets):
                    found.add(WcStatus.RNR_RETRY_EXC_ERR)
            elif 0x0D <= packet[0] <= 0x10:
                found.add(WcStatus.BAD_RESP_ERR)
            elif packet[0] < 0x18:
                # A request in its turn that makes no sense: refused by NAK, and what we had out is flushed with it.
                found.add(WcStatus.WR_FLUSH_ERR)
            if retries[0] < len(packets) or retries[0] <= 1:
                found.add(WcStatus.RETRY_EXC_ERR)
        return found

    def check_memory(self) -> None:
        self.source.check_guards()
        self.sink.check_guards()
        assert self.source.data == POOL[:REGION_BYTES]
        raw = self.sink.raw
        for slot in range(4):
            end = GUARD_BYTES + (slot + 1) * self.SLOT_BYTES
            assert raw.count(SECRET, end - self.GAP_BYTES, end) == self.GAP_BYTES, "beyond the sink"

    def judge(self, excuses: set[WcStatus]) -> None:
        """One completion for each, in order; a READ that succeeded has every byte."""
        errors = []
        for completion in self.queue_pair.poll(100):
            self.statuses[completion.status] += 1
            if completion.status is not WcStatus.SUCCESS:
                errors.append(completion)
                continue
            assert not errors
            while self.posted[0].wr_id != completion.wr_id:
                assert not self.posted[0].signaled
                self.retire(self.posted.popleft())
            self.retire(self.posted.popleft())
        requester = self.queue_pair.requester
        if not errors:
            assert self.queue_pair.state is QueuePairState.RTS
            while self.posted and not self.posted[0].signaled and self.posted[0].end_psn <= requester.una_psn:
                self.retire(self.posted.popleft())
            assert len(self.posted) == len(requester.queue)
            return
        assert self.queue_pair.state is QueuePairState.ERR
        while self.posted[0].wr_id != errors[0].wr_id:
            assert not self.posted[0].signaled
            self.retire(self.posted.popleft())
        assert [error.wr_id for error in errors] == [work.wr_id for work in self.posted]
        assert {error.status for error in errors[1:]} <= {WcStatus.WR_FLUSH_ERR}
        assert errors[0].status in excuses, (errors[0], excuses)
        assert self.device.next_timer() is None
        said = [pull_packet(b"".join(burst.buffers)) for burst in self.device.bursts_to_send(self.now)]
        if errors[0].status is WcStatus.WR_FLUSH_ERR:
            assert [packet.aeth and packet.aeth.syndrome in FATAL for packet in said] == [True]
        else:
            assert not said
        self.renew()

    def retire(self, work: Posted) -> None:
        if work.opcode is Opcode.RDMA_READ:
            start = GUARD_BYTES + work.slot * self.SLOT_BYTES
            assert not self.sink.raw.count(SECRET, start, start + work.length_bytes), "done before all bytes came"
            end = start + self.SLOT_BYTES
            assert self.sink.raw.count(SECRET, start + work.length_bytes, end) == self.SLOT_BYTES - work.length_bytes

    @property
    def is_dead(self) -> bool:
        assert self.queue_pair.state in (QueuePairState.RTS, QueuePairState.ERR)
        return self.queue_pair.state is QueuePairState.ERR

    def check_working(self) -> None:
        """With a peer that behaves, everything outstanding gets done."""
        queue_pair, requester = self.queue_pair, self.queue_pair.requester
        for _ in range(200):
            if requester.rnr_deadline is not None:
                self.now = max(self.now, requester.rnr_deadline)
                self.device.handle_timer(self.now)
            self.collect()
            if self.is_dead or not self.posted:
                break
            psn = requester.una_psn
            work = self.work_at(psn)
            assert work is not None and psn < requester.max_sent_psn, "nothing goes out any more"
            if work.opcode is Opcode.RDMA_READ:
                packet = self.response(psn)
            else:
                packet = self.ack(min(work.end_psn, requester.max_sent_psn) - 1)
            raw = bytearray(self.wire.seal(packet))
            self.device.receive_burst(memoryview(raw), len(raw), self.wire.source, self.now)
            assert requester.una_psn > psn or self.is_dead
            if self.is_dead:
                break
            self.judge(set())
        if self.is_dead:
            assert not self.sink_is_open
            self.judge({WcStatus.LOC_PROT_ERR})
        else:
            assert not self.posted
            assert self.device.next_timer() is None
            assert queue_pair.bytes_in_flight == 0
            self.survived += 1


@each_path
def test_answers_at_a_requester(kit, peer_address: str, address: str, check: IcrcCheck, codecs: Codecs) -> None:
    storm = Requesting(random.Random(f"{address} {check} answers"), peer_address, address, check, codecs)
    packets = kit.inputs(PACKETS)
    blow(storm, packets, lambda: len(storm.queue_pair.requester.reads) <= 17)
    assert len(storm.device.memory) == 2
    for status in (
        *(WcStatus.SUCCESS, WcStatus.WR_FLUSH_ERR, WcStatus.LOC_PROT_ERR, WcStatus.BAD_RESP_ERR),
        *(WcStatus.REM_INV_REQ_ERR, WcStatus.REM_ACCESS_ERR, WcStatus.REM_OP_ERR),
        *(WcStatus.RETRY_EXC_ERR, WcStatus.RNR_RETRY_EXC_ERR),
    ):
        assert storm.statuses[status] >= packets // 7000, status.name
    assert storm.survived >= packets // 600
