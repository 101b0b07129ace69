"""Random operations on a random network, against a model that is two bytearrays.

Two devices in one process, time stepped by hand. The model rests on these rules of the reliable connected service:

- WRITEs of one queue pair land in the order they were posted; a READ sees every WRITE posted before it.
- A WRITE posted while a READ of the same bytes is outstanding may be seen by that READ or not (IBTA Vol 1 10.8.3.3,
  no fence; a repeated READ is executed again). So such bytes have more than one right value until the READ is done.
- The memory of a work request belongs to the queue pair until it completes, so a READ's sink overlaps nothing else.
- What a failed or flushed work request has done is anyone's guess, but only within its own bytes.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from p2prw.engine.model import Access, Completion, Opcode, QueuePairOptions, Sge, WcStatus
from p2prw.engine.roce.device import RoceDevice
from p2prw.engine.roce.memory_table import MemoryRegistration
from p2prw.engine.roce.opcodes import BTH_BYTES, HEADER_BYTES, IS_READ_REQUEST, IS_WRITE, TRAITS
from p2prw.engine.roce.psn import packets_of, psn_unwrap
from p2prw.engine.roce.runs import PURE, RunCodec
from p2prw.engine.roce.state import QueuePairState

RUNS = 1000
"""Hypothesis ends many a run before its last step: with 1000 there are some 40,000 steps."""
STEPS = 50
LEAST_FIRED = 1000
REGION_BYTES = 64 * 1024
GUARD_BYTES = 64
GUARD = bytes(range(0xA0, 0xA0 + GUARD_BYTES))
RETRY_CNT = 7
TIMEOUT = 12
ALL = 1 << 20

FIRED: Counter[str] = Counter()
SEEN: Counter[str] = Counter()
"""What happened besides: statuses, restarts, RNR waits; so that a run that tests nothing is noticed."""


class Memory:
    """A MappedBuffer whose registered bytes lie between guards; without a view it stands for device memory."""

    def __init__(self, data: bytes, *, has_view: bool) -> None:
        self.raw = bytearray(GUARD + data + GUARD)
        self.length_bytes = len(self.raw)
        self.cpu_address = 0x7FFF_0000_0000
        self.view: memoryview | None = memoryview(self.raw) if has_view else None

    def load(self, offset: int, length_bytes: int) -> bytes | memoryview:
        assert offset >= 0 and offset + length_bytes <= self.length_bytes
        return bytes(self.raw[offset : offset + length_bytes])

    def store(self, offset: int, data: bytes | memoryview) -> None:
        assert offset >= 0 and offset + len(data) <= self.length_bytes
        self.raw[offset : offset + len(data)] = data

    @property
    def data(self) -> memoryview:
        return memoryview(self.raw)[GUARD_BYTES:-GUARD_BYTES]

    def check_guards(self) -> None:
        assert self.raw[:GUARD_BYTES] == GUARD
        assert self.raw[-GUARD_BYTES:] == GUARD


class Ends:
    """One side's memory: one or two buffers that the model sees as one string of bytes."""

    def __init__(self, device: RoceDevice, data: bytes, cuts: list[int], *, has_view: bool) -> None:
        self.device = device
        edges = [0, *cuts, len(data)]
        self.starts = edges[:-1]
        self.buffers = [Memory(data[low:high], has_view=has_view) for low, high in itertools.pairwise(edges)]
        self.generation = 0
        self.registrations: list[MemoryRegistration] = []
        self.register()

    def register(self) -> None:
        """Close what was registered and register it anew, under other keys."""
        for registration in self.registrations:
            registration.close()
        rights = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ
        self.registrations = [
            self.device.memory.register([buffer], rights, GUARD_BYTES, len(buffer.data)) for buffer in self.buffers
        ]
        self.generation += 1

    @property
    def data(self) -> bytes:
        return b"".join(buffer.data for buffer in self.buffers)

    def get(self, offset: int, length_bytes: int) -> bytes:
        return self.data[offset : offset + length_bytes]

    def put(self, offset: int, data: bytes) -> None:
        """What the application itself writes."""
        for start, buffer in zip(self.starts, self.buffers, strict=True):
            low, high = max(offset, start), min(offset + len(data), start + len(buffer.data))
            if low < high:
                buffer.data[low - start : high - start] = data[low - offset : high - offset]

    def sges(self, offset: int, length_bytes: int, piece_bytes: int) -> list[Sge]:
        """Return SGEs of at most `piece_bytes`, but not more than 16 in all."""
        piece_bytes = max(piece_bytes, length_bytes // 12 + 1)
        found = []
        for start, buffer, registration in zip(self.starts, self.buffers, self.registrations, strict=True):
            low, high = max(offset, start), min(offset + length_bytes, start + len(buffer.data))
            segment = registration.vec[0]
            while low < high:
                size = min(piece_bytes, high - low)
                found.append(Sge(segment.address + low - start, size, segment.lkey))
                low += size
        return found


@dataclass
class Work:
    """One posted work request, as the model sees it."""

    wr_id: int
    is_read: bool
    signaled: bool
    local: int
    remote: int
    data: bytes
    """What a WRITE carries, or what a READ must bring."""
    local_generation: int
    remote_generation: int
    imm_index: int | None = None
    others: list[tuple[int, bytes]] = field(default_factory=list)
    """READ only: (remote offset, data) of WRITEs posted later, which it may see or not."""

    @property
    def length_bytes(self) -> int:
        return len(self.data)

    def overlaps_local(self, offset: int, length_bytes: int) -> bool:
        return self.local < offset + length_bytes and offset < self.local + self.length_bytes


Flight = tuple[int, list[bytes]]
"""IPv4 identification of the first datagram, and datagrams that GRO would hand over as one."""


class Network(RuleBasedStateMachine):
    """Client `a` posts, server `b` only answers; everything between them is in the hands of the rules."""

    @initialize(
        mtu=st.sampled_from([256, 512, 1024, 2048, 4096]),
        path=st.sampled_from(["ipv6", "ipv6", "ipv4 solve", "ipv4 full"]),
        gso_segments=st.sampled_from([64, 64, 1]),
        window=st.sampled_from([1 << 16, 1 << 16, 20_000, 5000, 1000, 1]),
        read_window=st.sampled_from([1 << 16, 1 << 16, 20_000, 5000, 1000, 1]),
        max_rd_atomic=st.sampled_from([1, 2, 16]),
        views=st.sampled_from([(True, True), (True, True), (True, False), (False, True), (False, False)]),
        fast_paths=st.sampled_from([True, True, False]),
        codecs=st.tuples(st.integers(0, 1), st.integers(0, 1)),
        seed=st.integers(0, 1 << 16),
    )
    def start(
        self,
        mtu: int,
        path: str,
        gso_segments: int,
        window: int,
        read_window: int,
        max_rd_atomic: int,
        views: tuple[bool, bool],
        fast_paths: bool,
        codecs: tuple[int, int],
        seed: int,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.mtu, self.gso_segments = mtu, gso_segments
        self.window, self.read_window = window, read_window
        self.options = QueuePairOptions(
            timeout=TIMEOUT, retry_cnt=RETRY_CNT, rnr_retry=7, max_rd_atomic=max_rd_atomic, mtu_bytes=mtu
        )
        addresses = ("fd00::1", "fd00::2") if path == "ipv6" else ("10.0.0.1", "10.0.0.2")
        devices = [
            RoceDevice(
                address,
                port,
                port_mtu_bytes=4096,
                random_bits=self.random_bits,
                icrc_check="solve" if path == "ipv4 solve" else "full",
                gso_segments=gso_segments,
                fast_paths=fast_paths,
                codec=self.codecs[codec % len(self.codecs)],
            )
            for address, port, codec in zip(addresses, (40001, 4791), codecs, strict=True)
        ]
        cut = self.rng.randrange(1, REGION_BYTES)
        self.a = Ends(devices[0], self.rng.randbytes(REGION_BYTES), [cut], has_view=views[0])
        self.b = Ends(devices[1], self.rng.randbytes(REGION_BYTES), [], has_view=views[1])
        self.local = bytearray(self.a.data)
        self.remote = bytearray(self.b.data)
        """The model: what completed work made of the two memories."""
        self.wr_id = 0
        self.wires: dict[str, list[Flight]] = {"a": [], "b": []}
        self.connect()

    # --- plumbing ----------------------------------------------------------------------------------------------

    codecs: tuple[RunCodec, ...] = (PURE,)
    """Both, where the compiled one can be built; each end has one of them."""
    bits_asked = 0
    qa: Any = None
    qb: Any = None

    def random_bits(self, count: int) -> int:
        """QPNs that never come back (a stale packet must not find a new queue pair), PSNs just before the wrap."""
        if count != 24:
            return self.rng.getrandbits(count)
        self.bits_asked += 1
        if self.bits_asked % 2:
            return 0x100 + self.bits_asked
        return 0xFFFFFF - self.rng.randrange(64) if self.rng.random() < 0.7 else self.rng.getrandbits(24)

    def connect(self) -> None:
        """Give both ends a new queue pair; what is still on the wire belongs to nobody."""
        if self.qa is not None and self.qb is not None:
            self.qa.close()
            self.qb.close()
        self.qa = self.a.device.create_queue_pair(self.options)
        self.qb = self.b.device.create_queue_pair(self.options)
        self.qa.connect(self.qb.local, self.now)
        self.qb.connect(self.qa.local, self.now)
        self.qa.set_window(self.window)
        self.qa.set_read_window(self.read_window)
        self.pending: deque[Work] = deque()
        self.is_revoked = False
        # what the network saw of the client's stream
        self.sent: dict[int, int] = {}
        self.asked: dict[int, int] = {}
        self.una = self.qa.requester.una_psn
        self.timeouts_at_progress = 0
        # immediate data
        self.imms: list[tuple[bytes, int]] = []
        self.imms_seen = 0
        self.receives_posted = 0

    def collect(self, name: str, limit: int) -> int:
        """Move at most `limit` bursts from a device onto its wire."""
        end = self.a if name == "a" else self.b
        taken = 0
        if limit:
            for burst in end.device.bursts_to_send(self.now):
                raw = b"".join(burst.buffers)
                size = burst.segment_bytes
                assert len(raw) == burst.length_bytes <= 65507
                datagrams = [raw[i : i + size] for i in range(0, len(raw), size)]
                assert len(datagrams) == burst.packets <= self.gso_segments
                if name == "a":
                    self.watch(datagrams)
                self.wires[name].append((0, datagrams))
                taken += 1
                if taken == limit:
                    break
            # What cannot be read from memory when it is due fails without an answer from anybody.
            self.look()
        return taken

    def watch(self, datagrams: list[bytes]) -> None:
        """Account for what the client sends, independently of its own books."""
        for datagram in datagrams:
            (psn_word,) = struct.unpack_from(">I", datagram, 8)
            psn = psn_unwrap(self.una, psn_word & 0xFFFFFF)
            opcode, pad = datagram[0], datagram[1] >> 4 & 3
            assert psn >= self.una, "what is acknowledged is not sent again"
            if TRAITS[opcode] & IS_READ_REQUEST:
                (length,) = struct.unpack_from(">I", datagram, BTH_BYTES + 12)
                self.asked[psn] = psn + packets_of(length, self.mtu)
            elif TRAITS[opcode] & IS_WRITE:
                self.sent[psn] = len(datagram) - HEADER_BYTES[opcode] - pad - 4

    def hand_over(self, name: str, flight: Flight) -> None:
        """Give a flight of `name` to the other device and see what came of it."""
        _first_id, datagrams = flight
        sender, receiver = (self.a, self.b) if name == "a" else (self.b, self.a)
        raw = memoryview(bytearray(b"".join(datagrams)))
        source = (sender.device.address, sender.device.udp_port)
        receiver.device.receive_burst(raw, len(datagrams[0]), source, self.now)
        self.look()

    def look(self) -> None:
        """Follow the client's progress and take completions."""
        requester = self.qa.requester
        if requester.una_psn != self.una and self.qa.state is QueuePairState.RTS:
            assert requester.una_psn > self.una
            self.una = requester.una_psn
            self.timeouts_at_progress = self.qa.counters.timeouts
            self.sent = {psn: size for psn, size in self.sent.items() if psn >= self.una}
            self.asked = {psn: end for psn, end in self.asked.items() if end > self.una}
        for completion in self.qb.poll_recv(1000):
            if completion.status is WcStatus.SUCCESS:
                imm_data, length = self.imms[self.imms_seen]
                self.imms_seen += 1
                assert (completion.opcode, completion.imm_data, completion.byte_len) == (
                    *(Opcode.RDMA_WRITE_WITH_IMM, imm_data, length),
                )
            else:
                assert completion.status is WcStatus.WR_FLUSH_ERR
        self.take_completions()

    # --- the model ---------------------------------------------------------------------------------------------

    def take_completions(self) -> None:
        errors: list[Completion] = []
        for completion in self.qa.poll(1000):
            if completion.status is not WcStatus.SUCCESS:
                errors.append(completion)
                continue
            assert not errors, "nothing succeeds after an error"
            self.retire_before(completion.wr_id)
            work = self.pending.popleft()
            assert work.signaled
            assert completion.opcode is (
                Opcode.RDMA_READ
                if work.is_read
                else Opcode.RDMA_WRITE
                if work.imm_index is None
                else Opcode.RDMA_WRITE_WITH_IMM
            )
            assert completion.byte_len == work.length_bytes
            self.retire(work)
        if errors:
            self.fail(errors)

    def retire_before(self, wr_id: int) -> None:
        """Unsignalled work is done when later work completes."""
        while self.pending and self.pending[0].wr_id != wr_id:
            work = self.pending.popleft()
            assert not work.signaled, "a completion is missing or out of order"
            self.retire(work)
        assert self.pending, "a completion for nothing"

    def retire(self, work: Work) -> None:
        """`work` has succeeded: its bytes are where they belong."""
        SEEN["read done" if work.is_read else "write done"] += 1
        if work.is_read:
            found = self.a.get(work.local, work.length_bytes)
            if found != work.data:
                good = self.equals(found, work.data)
                for offset, data in work.others:
                    self.allow(good, found, work.remote, offset, data)
                assert good.all(), "a READ brought bytes that never were there"
            self.local[work.local : work.local + work.length_bytes] = found
        else:
            end = work.remote + work.length_bytes
            self.remote[work.remote : end] = work.data
            found = self.b.get(work.remote, work.length_bytes)
            if found != work.data:
                good = self.equals(found, work.data)
                for later in self.pending:
                    if not later.is_read:
                        self.allow(good, found, work.remote, later.remote, later.data)
                assert good.all(), "a WRITE completed before its data was in place"
            if work.imm_index is not None:
                assert self.imms_seen > work.imm_index, "completed before the receiver knew"

    @staticmethod
    def equals(found: bytes | bytearray, wanted: bytes | bytearray) -> Any:
        return np.frombuffer(found, np.uint8) == np.frombuffer(wanted, np.uint8)

    @staticmethod
    def allow(good: Any, found: bytes | bytearray, base: int, offset: int, data: bytes) -> None:
        """Let `data`, which lies at `offset`, be right for `found`, which lies at `base`."""
        low, high = max(base, offset), min(base + len(found), offset + len(data))
        if low < high:
            here = np.frombuffer(found, np.uint8)[low - base : high - base]
            good[low - base : high - base] |= here == np.frombuffer(data, np.uint8)[low - offset : high - offset]

    def fail(self, errors: list[Completion]) -> None:
        """The queue pair is in error: was it allowed to, is every work request accounted for, is the rest intact?"""
        assert self.qa.state is QueuePairState.ERR
        first = errors[0]
        self.retire_before(first.wr_id)
        assert [completion.wr_id for completion in errors] == [work.wr_id for work in self.pending]
        assert {completion.status for completion in errors[1:]} <= {WcStatus.WR_FLUSH_ERR}
        culprit = self.pending[0]
        SEEN[first.status.name] += 1
        SEEN["WR_FLUSH_ERR"] += len(errors) - 1
        if first.status is WcStatus.REM_ACCESS_ERR:
            assert culprit.remote_generation < self.b.generation
        elif first.status is WcStatus.LOC_PROT_ERR:
            assert culprit.local_generation < self.a.generation
        else:
            assert first.status is WcStatus.RETRY_EXC_ERR
            # One resend may come of a NAK; all others need a timeout each.
            assert self.qa.counters.timeouts - self.timeouts_at_progress >= RETRY_CNT
        self.check_remains()
        assert self.a.device.next_timer() is None
        self.connect()

    def check_remains(self) -> None:
        """Unfinished work has touched nothing but its own bytes, and brought nothing but its own data."""
        found = self.b.data
        good = self.equals(found, self.remote)
        for work in self.pending:
            if not work.is_read:
                self.allow(good, found, 0, work.remote, work.data)
        assert good.all(), "remote memory holds what nobody wrote"
        self.remote = bytearray(found)
        found = self.a.data
        good = self.equals(found, self.local)
        for work in self.pending:
            if work.is_read:
                self.allow(good, found, 0, work.local, work.data)
                for offset, data in work.others:
                    # the part of a later WRITE that this READ asked for, where it lands in local memory
                    low, high = max(offset, work.remote), min(offset + len(data), work.remote + work.length_bytes)
                    if low < high:
                        self.allow(good, found, 0, work.local + low - work.remote, data[low - offset : high - offset])
        assert good.all(), "local memory holds what nobody read"
        self.local = bytearray(found)

    def expected_remote(self, offset: int, length_bytes: int) -> bytes:
        """What a READ posted now must bring."""
        view = bytearray(self.remote[offset : offset + length_bytes])
        for work in self.pending:
            if not work.is_read:
                low, high = max(offset, work.remote), min(offset + length_bytes, work.remote + work.length_bytes)
                if low < high:
                    view[low - offset : high - offset] = work.data[low - work.remote : high - work.remote]
        return bytes(view)

    def free_local(self, offset: int, length_bytes: int, *, sink: bool) -> int | None:
        """Return a place at or after `offset` that no outstanding work forbids."""
        for start in (offset, 0):
            position = start
            while position + length_bytes <= REGION_BYTES:
                busy = [
                    work.local + work.length_bytes
                    for work in self.pending
                    if (sink or work.is_read) and work.overlaps_local(position, length_bytes)
                ]
                if not busy:
                    return position
                position = max(busy)
        return None

    # --- rules -------------------------------------------------------------------------------------------------

    lengths = st.tuples(st.sampled_from([0, 0, 1, 2, 3, 5, 8, 13]), st.sampled_from([0, 1, 3, 4, 100, 255, -1]))
    places = st.integers(0, REGION_BYTES - 1)
    sends = st.sampled_from([ALL, ALL, 5, 2, 1, 0])

    def length_of(self, drawn: tuple[int, int]) -> int:
        return max(0, drawn[0] * self.mtu + drawn[1])

    @precondition(lambda self: len(self.pending) < self.qa.depth)
    @rule(
        drawn=lengths, local=places, remote=places, piece=st.integers(1, 9000), signaled=st.booleans(),
        imm=st.sampled_from([None, None, None, "ready", "later"]), fresh=st.booleans(), sends=sends,
    )  # fmt: skip
    def post_write(
        self,
        drawn: tuple[int, int],
        local: int,
        remote: int,
        piece: int,
        signaled: bool,
        imm: str | None,
        fresh: bool,
        sends: int,
    ) -> None:
        length = self.length_of(drawn)
        remote = min(remote, REGION_BYTES - length)
        if fresh and (place := self.free_local(local, length, sink=True)) is not None:
            data = self.rng.randbytes(length)
            self.a.put(place, data)
            self.local[place : place + length] = data
        else:
            place = self.free_local(local, length, sink=False)
        if place is None:
            return
        FIRED["post write"] += 1
        data = self.a.get(place, length)
        for work in self.pending:
            if work.is_read and work.remote < remote + length and remote < work.remote + work.length_bytes:
                SEEN["write under a read"] += 1
                work.others.append((remote, data))
        opcode, imm_data, imm_index = Opcode.RDMA_WRITE, None, None
        if imm is not None:
            opcode, imm_data, imm_index = Opcode.RDMA_WRITE_WITH_IMM, self.rng.randbytes(4), len(self.imms)
            self.imms.append((imm_data, length))
            if imm == "ready":
                self.post_receives()
        self.post(opcode, False, signaled, place, remote, data, piece, imm_data, imm_index)
        self.collect("a", sends)

    @precondition(lambda self: len(self.pending) < self.qa.depth)
    @rule(drawn=lengths, local=places, remote=places, piece=st.integers(1, 9000), signaled=st.booleans(), sends=sends)
    def post_read(
        self, drawn: tuple[int, int], local: int, remote: int, piece: int, signaled: bool, sends: int
    ) -> None:
        length = self.length_of(drawn)
        remote = min(remote, REGION_BYTES - length)
        place = self.free_local(local, length, sink=True)
        if place is None:
            return
        FIRED["post read"] += 1
        self.post(Opcode.RDMA_READ, True, signaled, place, remote, self.expected_remote(remote, length), piece)
        self.collect("a", sends)

    def post(
        self,
        opcode: Opcode,
        is_read: bool,
        signaled: bool,
        local: int,
        remote: int,
        data: bytes,
        piece: int,
        imm_data: bytes | None = None,
        imm_index: int | None = None,
    ) -> None:
        self.wr_id += 1
        self.pending.append(
            Work(
                *(self.wr_id, is_read, signaled, local, remote, data),
                *(self.a.generation, self.b.generation, imm_index),
            )
        )
        target = self.b.registrations[0].remote_segments()[0]
        sges = self.a.sges(local, len(data), piece)
        self.qa.post_rdma(
            *(self.wr_id, opcode, sges, target.address + remote, target.rkey), signaled=signaled, imm_data=imm_data
        )

    def post_receives(self) -> None:
        """Let the server have a receive for all immediate data on its way."""
        while self.receives_posted < len(self.imms):
            self.receives_posted += 1
            self.qb.post_recv(self.receives_posted)

    def flights(self) -> list[tuple[str, int]]:
        return [(name, index) for name, wire in self.wires.items() for index in range(len(wire))]

    def pick(self, which: int) -> tuple[str, int]:
        flights = self.flights()
        return flights[which % len(flights)]

    has_traffic = precondition(lambda self: bool(self.wires["a"] or self.wires["b"]))
    picks = st.integers(0, 1 << 16)

    @has_traffic
    @rule(sends=sends)
    def deliver_all(self, sends: int) -> None:
        self.deliver("a", ALL, True, sends)
        self.deliver("b", ALL, True, sends)

    @has_traffic
    @rule(name=st.sampled_from("ab"), count=st.sampled_from([1, 2, 4, ALL]), whole=st.booleans(), sends=sends)
    def deliver(self, name: str, count: int, whole: bool, sends: int) -> None:
        if not self.wires[name]:
            name = "b" if name == "a" else "a"
        flights, self.wires[name] = self.wires[name][:count], self.wires[name][count:]
        FIRED["deliver"] += bool(flights)
        for first_id, datagrams in flights:
            if whole:
                self.hand_over(name, (first_id, datagrams))
            else:
                for index, datagram in enumerate(datagrams):
                    self.hand_over(name, (first_id + index, [datagram]))
        self.collect("b", sends)
        self.collect("a", sends)

    @has_traffic
    @rule(which=picks, low=picks, high=picks, merged=st.booleans())
    def drop(self, which: int, low: int, high: int, merged: bool) -> None:
        """Lose a part of a flight, or all of it. What is left may still be handed over as one: GRO knows no PSN."""
        FIRED["drop"] += 1
        name, place = self.pick(which)
        first_id, datagrams = self.wires[name].pop(place)
        low, high = sorted((low % (len(datagrams) + 1), high % (len(datagrams) + 1)))
        if low == high:
            return
        if merged and low > 0:
            self.wires[name].insert(place, (first_id, datagrams[:low] + datagrams[high:]))
            return
        rest = [(first_id, datagrams[:low]), (first_id + high, datagrams[high:])]
        self.wires[name][place:place] = [flight for flight in rest if flight[1]]

    @has_traffic
    @rule(which=picks, where=picks)
    def duplicate(self, which: int, where: int) -> None:
        FIRED["duplicate"] += 1
        name, place = self.pick(which)
        wire = self.wires[name]
        wire.insert(place + 1 + where % (len(wire) - place), wire[place])

    @has_traffic
    @rule(which=picks, where=picks, cut=picks)
    def reorder(self, which: int, where: int, cut: int) -> None:
        """Hold a flight, or the later part of one, back or let it overtake."""
        FIRED["reorder"] += 1
        name, place = self.pick(which)
        wire = self.wires[name]
        first_id, datagrams = wire.pop(place)
        cut %= len(datagrams)
        if cut:
            wire.insert(place, (first_id, datagrams[:cut]))
        wire.insert(where % (len(wire) + 1), (first_id + cut, datagrams[cut:]))

    @rule(step=st.sampled_from([0.0, 0.3, 0.7, "timer", "timer"]), receives=st.booleans(), sends=sends)
    def tick(self, step: float | str, receives: bool, sends: int) -> None:
        """Let time pass: some of the retransmission timeout, or up to the next timer."""
        FIRED["tick"] += 1
        if receives:
            self.post_receives()
        if not isinstance(step, str):
            self.now += step * 4.096e-6 * 2**TIMEOUT
        elif (timer := self.a.device.next_timer()) is not None:
            self.now = max(self.now, timer)
        self.run_timers()
        self.collect("a", sends)

    def run_timers(self) -> None:
        for end in (self.a, self.b):
            end.device.handle_timer(self.now)
            timer = end.device.next_timer()
            assert timer is None or timer > self.now, "a timer in the past"
        self.look()

    @precondition(lambda self: not self.is_revoked)
    @rule(side=st.sampled_from("bba"), sends=sends)
    def invalidate(self, side: str, sends: int) -> None:
        """Close a registration under the feet of whatever is outstanding; the memory gets new keys."""
        FIRED["invalidate"] += 1
        self.is_revoked = True
        (self.b if side == "b" else self.a).register()
        self.collect("b", sends)
        self.collect("a", sends)
        self.look()

    @precondition(lambda self: len(self.pending) > 2)
    @rule()
    def settle(self) -> None:
        """A network that loses nothing, for as long as it takes."""
        FIRED["settle"] += 1
        stalls = 0
        for _ in range(5000):
            una = self.una
            moved = self.collect("a", ALL) + self.collect("b", ALL)
            for name in "ab":
                flights, self.wires[name] = self.wires[name], []
                for flight in flights:
                    self.hand_over(name, flight)
                    moved += 1
            if self.una != una:
                stalls = 0
            if moved:
                continue
            self.post_receives()
            timer = self.a.device.next_timer()
            if timer is None:
                break
            before, timeouts = self.qa, self.qa.counters.timeouts
            self.now = max(self.now, timer)
            self.run_timers()
            stalls = stalls + (self.qa.counters.timeouts > timeouts) if self.qa is before else 0
            assert stalls <= 2 or self.qb.state is QueuePairState.ERR, "resending does not help"
        else:
            raise AssertionError("never settled")
        assert all(not work.signaled for work in self.pending), "signalled work was forgotten"
        while self.pending:
            self.retire(self.pending.popleft())
        assert self.qa.bytes_in_flight == 0
        assert self.a.device.next_timer() is None
        assert self.b.device.next_timer() is None
        assert self.a.data == self.local
        assert self.b.data == self.remote
        if self.qb.state is QueuePairState.ERR:
            SEEN["server in error, client idle"] += 1
        if self.is_revoked:
            self.connect()

    # --- what always holds -------------------------------------------------------------------------------------

    @invariant()
    def laws_hold(self) -> None:
        self.guards_stand()
        self.window_is_kept()
        self.somebody_wakes_us()
        self.server_fails_for_a_reason()
        self.nothing_piles_up()
        SEEN["RNR wait"] += self.qa.requester.rnr_deadline is not None

    def guards_stand(self) -> None:
        for buffer in (*self.a.buffers, *self.b.buffers):
            buffer.check_guards()

    def window_is_kept(self) -> None:
        assert self.qa.bytes_in_flight <= max(self.window, self.mtu)
        sent = sum(self.sent.values())
        assert sent <= self.window or len([size for size in self.sent.values() if size]) <= 1
        asked = sum(end - max(psn, self.una) for psn, end in self.wanted().items())
        assert asked <= max(1, self.read_window // self.mtu)
        assert len(self.wanted()) <= self.options.max_rd_atomic

    def wanted(self) -> dict[int, int]:
        """READ requests that are still to be answered; a repeated one begins later and ends where the first did."""
        ends: dict[int, int] = {}
        for psn, end in self.asked.items():
            ends[end] = min(psn, ends.get(end, psn))
        return {psn: end for end, psn in ends.items()}

    def somebody_wakes_us(self) -> None:
        """Outstanding work that waits for an answer, with nothing more to send, has a timer."""
        requester = self.qa.requester
        if self.una < requester.send_psn and requester.queue:
            assert self.a.device.next_timer() is not None

    def server_fails_for_a_reason(self) -> None:
        if self.qb.state is not QueuePairState.RTS:
            assert self.qb.state is QueuePairState.ERR
            assert self.is_revoked

    def nothing_piles_up(self) -> None:
        assert len(self.qb.responder.answers) <= 2 * self.options.max_rd_atomic + 4
        assert len(self.qa.requester.reads) <= self.options.max_rd_atomic + 1

    def teardown(self) -> None:
        if hasattr(self, "pending"):
            if self.pending:
                self.settle()
            SEEN["runs"] += 1


@pytest.mark.slow
@pytest.mark.no_cover  # three times as fast; tests of each part hold the coverage
def test_random_operations_on_a_random_network(codecs: tuple[RunCodec, ...], monkeypatch: Any) -> None:
    monkeypatch.setattr(Network, "codecs", codecs)
    FIRED.clear()
    SEEN.clear()
    run_state_machine_as_test(
        Network,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            derandomize=True,
            database=None,
            deadline=None,
            # Phase.shrink makes a failure small, but takes minutes: add it by hand.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    rules = ("post write", "post read", "deliver", "drop", "duplicate", "reorder", "tick", "invalidate", "settle")
    assert SEEN["runs"] >= RUNS
    assert sum(FIRED.values()) >= RUNS * STEPS // 2
    assert {name: FIRED[name] for name in rules if FIRED[name] < LEAST_FIRED} == {}
    for name in ("REM_ACCESS_ERR", "LOC_PROT_ERR", "WR_FLUSH_ERR", "RNR wait", "write under a read", "read done"):
        assert SEEN[name] >= 50, name


def test_a_repeated_read_request_takes_no_slot_from_the_next_one(connected_devices: Any) -> None:
    """Found by the machine: a timeout that came too soon, and the next READ was refused as one too many (0x61)."""
    link = connected_devices(max_rd_atomic=1, mtu=256, a_memory=4096, b_memory=4096)
    link.read(1, 0, 600)
    first = link.collect(link.a)
    link.now = link.a.device.next_timer()
    link.a.device.handle_timer(link.now)
    link.receive(link.b, first)
    again = link.collect(link.a)
    link.deliver(link.b)
    link.read(2, 1000, 600, remote_offset=1000)
    link.receive(link.b, again + link.collect(link.a))
    link.settle()
    assert [(done.wr_id, done.status) for done in link.poll()] == [(1, WcStatus.SUCCESS), (2, WcStatus.SUCCESS)]
    assert link.a.data[:600] + link.a.data[1000:1600] == link.b.data[:600] + link.b.data[1000:1600]


@pytest.mark.parametrize("operation", ["write", "read"])
@pytest.mark.parametrize("hole", [1, 4, 8])
def test_a_burst_with_a_hole_is_taken_up_to_the_hole(connected_devices: Any, operation: str, hole: int) -> None:
    """GRO joins what arrives and knows no PSN; too rare for the machine to meet it in the middle of a fast run."""
    link = connected_devices(addresses=("fd00::1", "fd00::2"), mtu=256, a_memory=8192, b_memory=8192)
    getattr(link, operation)(1, 0, 256 * 12)
    if operation == "read":
        link.deliver(link.a)
    sender, receiver = (link.a, link.b) if operation == "write" else (link.b, link.a)
    bursts = link.collect(sender)
    place = next(i for i, burst in enumerate(bursts) if burst.packets >= 10)
    size, raw = bursts[place].segment_bytes, b"".join(bursts[place].buffers)
    rest = raw[: hole * size] + raw[(hole + 1) * size :]
    bursts[place] = bursts[place]._replace(buffers=[rest], length_bytes=len(rest))
    link.receive(receiver, bursts)
    link.run_timers()
    assert [done.status for done in link.poll()] == [WcStatus.SUCCESS]
    assert link.a.data[: 256 * 12] == link.b.data[: 256 * 12]
    assert link.a.queue_pair.counters.retransmitted_packets > 0
