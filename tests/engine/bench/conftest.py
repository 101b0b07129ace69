"""A measurement's loops over a scripted device: lanes, an attendant with the peer's end of its channel, a clock."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from p2prw.engine.bench.attendant import Attendant
from p2prw.engine.bench.latency import LatencyLoop
from p2prw.engine.bench.loop import BandwidthLoop
from p2prw.engine.control.channel import Channel
from p2prw.engine.deadline import Deadline
from p2prw.engine.lane import Lane, message_postings
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import Access, DmaVec, Operation, QueuePairOptions, RemoteSegment
from p2prw.engine.providers.scripted import Script, ScriptedDevice, ScriptedFabric
from p2prw.engine.rw import RwLimits
from p2prw.engine.stop import StopRequest
from p2prw.engine.waiting import Waiter


@dataclass
class BenchRig:
    """Everything a loop needs; `peers` are the other ends of the control channels."""

    device: ScriptedDevice
    lanes: list[Lane]
    attendant: Attendant
    waiter: Waiter
    stop: StopRequest
    peers: list[Channel]
    operation: Operation
    memory: list[tuple[DmaVec, tuple[RemoteSegment, ...]]]
    near: bytearray
    far: bytearray

    def begin(
        self,
        size: int,
        messages: int | None,
        *,
        chunk: int = 1 << 30,
        signal_every: int = 2,
        post_list: int | None = None,
    ) -> None:
        limits = RwLimits(max_write_sge=4, max_read_sge=4, max_bytes_per_wr=chunk)
        for lane, (vec, segments) in zip(self.lanes, self.memory, strict=True):
            postings = message_postings(vec, segments, self.operation, limits, size)
            lane.begin(postings, size, messages=messages, signal_every=signal_every, post_list=post_list)

    def bandwidth(
        self, size: int, messages: int | None, *, duration_s: float | None = None, **how: Any
    ) -> BandwidthLoop:
        self.begin(size, messages, **how)
        return BandwidthLoop(self.device, self.lanes, self.attendant, self.waiter, duration_s)

    def latency(self, size: int, messages: int | None, *, duration_s: float | None = None, **how: Any) -> LatencyLoop:
        self.begin(size, 0, **how)
        return LatencyLoop(self.device, self.lanes[0], self.attendant, self.waiter, messages, duration_s)


@pytest.fixture
def make_bench() -> Iterator[Callable[..., BenchRig]]:
    """Build rigs; channels are closed afterwards. The clock ticks `tick_s` at each look."""
    with ExitStack() as stack:

        def make(
            *,
            operation: Operation = Operation.WRITE,
            queue_pairs: int = 1,
            depth: int = 8,
            room: int = 1 << 16,
            script: Script | None = None,
            tick_s: float = 1e-5,
            idle_s: float = 30.0,
            limit_s: float | None = None,
            keep_log: bool = True,
        ) -> BenchRig:
            now, stop, fabric = [0.0], StopRequest(), ScriptedFabric()

            def clock() -> float:
                now[0] += tick_s
                return now[0]

            device = ScriptedDevice("near", fabric=fabric, script=script, clock=clock, keep_log=keep_log)
            other = ScriptedDevice("far", fabric=fabric, clock=clock)
            near, far = bytearray(b"\x5a" * room * queue_pairs), bytearray(room * queue_pairs)
            rights = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ
            lanes, memory, peers, pairs = [], [], [], []
            for index in range(queue_pairs):
                pair = device.create_queue_pair(QueuePairOptions(depth=depth))
                peer_pair = other.create_queue_pair(QueuePairOptions(depth=depth))
                pair.connect(peer_pair.local)
                start = {"offset": index * room, "length_bytes": room}
                local = device.register(HostMemory.from_buffer(near).buffers(), Access.LOCAL_WRITE, **start)
                remote = other.register(HostMemory.from_buffer(far).buffers(), rights, **start)
                memory.append((local.vec, remote.remote_segments()))
                lanes.append(Lane(pair, depth))
                ours, theirs = socket.socketpair()
                pairs.append((stack.enter_context(Channel(ours)), pair))
                peers.append(stack.enter_context(Channel(theirs)))
            attendant = Attendant(pairs, operation, Deadline(clock, stop, limit_s), idle_s)
            waiter = Waiter(device, [channel.fileno() for channel, _ in pairs])
            return BenchRig(device, lanes, attendant, waiter, stop, peers, operation, memory, near, far)

        yield make
