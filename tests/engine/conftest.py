"""What the engine's tests share: a scripted pair of ends joined by a transfer loop, and a served pair over the wire."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from p2prw.engine.control.channel import Channel
from p2prw.engine.deadline import Deadline
from p2prw.engine.ends import DirectLocal, DirectRemote
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import Access, Operation, QueuePairOptions, RemoteSegment, Sge
from p2prw.engine.providers.scripted import ManualClock, Script, ScriptedDevice, ScriptedFabric, ScriptedQueuePair
from p2prw.engine.rw import RwLimits
from p2prw.engine.stop import StopRequest
from p2prw.engine.transfer import LoopSettings, TransferLoop


@dataclass
class Rig:
    """A loop over a scripted device; `far` is the peer's memory, `peer` the other end of the control channel."""

    loop: TransferLoop
    device: ScriptedDevice
    queue_pair: ScriptedQueuePair
    near: bytearray
    far: bytearray
    clock: ManualClock
    stop: StopRequest
    peer: Channel


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    """Build rigs; everything is closed afterwards."""
    with ExitStack() as stack:

        def make(
            length: int = 1 << 20,
            operation: Operation = Operation.WRITE,
            *,
            script: Script | None = None,
            depth: int = 8,
            signal_every: int = 2,
            chunk: int = 4096,
            segments: int = 1,
            flush: bool = False,
            idle_s: float = 30.0,
            limit_s: float | None = None,
            tick_s: float = 0.0,
        ) -> Rig:
            clock, stop, fabric = ManualClock(), StopRequest(), ScriptedFabric()

            def ticking() -> float:
                clock.advance(tick_s)
                return clock.now

            time = ticking if tick_s else clock
            device = ScriptedDevice("near", fabric=fabric, script=script, clock=time)
            other = ScriptedDevice("far", fabric=fabric, clock=clock)
            near = bytearray(bytes(range(1, 256)) * (length // 255 + 1))[:length]
            far = bytearray(length)
            if operation is Operation.READ:
                near, far = far, near
            options = QueuePairOptions(depth=depth)
            pair, peer_pair = device.create_queue_pair(options), other.create_queue_pair(options)
            pair.connect(peer_pair.local)
            peer_pair.connect(pair.local)
            local = device.register(HostMemory.from_buffer(near).buffers(), Access.LOCAL_WRITE)
            rights = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ
            remote: list[RemoteSegment] = []
            piece = -(-length // segments)
            for start in range(0, length, piece):
                size = min(piece, length - start)
                one = other.register(HostMemory.from_buffer(far).buffers(), rights, offset=start, length_bytes=size)
                remote += one.remote_segments()
            scratch = device.register(HostMemory.from_buffer(bytearray(64)).buffers(), Access.LOCAL_WRITE)
            ours, theirs = socket.socketpair()
            channel, peer = stack.enter_context(Channel(ours)), stack.enter_context(Channel(theirs))
            loop = TransferLoop(
                device=device,
                queue_pair=pair,
                channel=channel,
                local=DirectLocal(local.vec),
                remote=DirectRemote(remote),
                total_bytes=length,
                settings=LoopSettings(
                    direction=operation,
                    limits=RwLimits(max_write_sge=4, max_read_sge=4, max_bytes_per_wr=chunk),
                    depth=depth,
                    signal_every=signal_every,
                    idle_s=idle_s,
                    drain_s=1.0,
                ),
                deadline=Deadline(time, stop, limit_s),
                flush_sge=Sge(*scratch.vec[0]) if flush else None,
            )
            return Rig(loop, device, pair, near, far, clock, stop, peer)

        yield make
