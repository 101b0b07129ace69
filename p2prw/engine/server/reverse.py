"""The server's half of a measurement in both directions: the client's operation, towards the client, until `halt`.

What a WRITE sends is what the client may read anyway; what a READ brings goes into memory of the server's own, never
into the region. Both over the client's own queue pair, to keys that it gave.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from p2prw.engine.attach import read_chunk_bytes
from p2prw.engine.control.measuring import REVERSE_ALLOWANCE_S
from p2prw.engine.control.messages import Reverse, Reversed
from p2prw.engine.lane import Lane, Posting, message_postings
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.memory.host import open_scratch
from p2prw.engine.model import Access, DmaVec, Operation, RemoteSegment
from p2prw.engine.providers.base import Device, QueuePair
from p2prw.engine.rw import RwLimits
from p2prw.engine.signalling import signal_interval
from p2prw.errors import PeerRefusedError, RemoteProtocolError
from p2prw.units import MIB

MOST_READ_BYTES = 64 * MIB
"""Memory of the server's own that one client may have it READ into."""
_SLICE_S = 0.0005
"""The other clients wait for this long at most."""
_ADDRESSES = 1 << 64


@dataclass(slots=True)
class ReverseRun:
    """Drive `step`; `take_result` has the figures once everything has completed after `halt`."""

    device: Device
    lane: Lane
    lease: str
    sink: MemorySource | None = None
    """What READs fill."""
    clock: Callable[[], float] = time.monotonic
    finished: bool = False
    _started_s: float = 0.0
    _completed_s: float = 0.0
    _heard_s: float = 0.0
    _retransmitted: int = 0
    _halted: tuple[int, float] | None = None
    """Messages, and when the last of them had completed, when the client said halt."""
    _stack: ExitStack = field(default_factory=ExitStack)

    def begin(self, postings: tuple[Posting, ...], message: Reverse) -> None:
        """Post from the next `step` on."""
        lane, size_bytes = self.lane, message.length
        post_list = min(message.post_list, lane.depth) if message.post_list else None
        signal_every = signal_interval(lane.depth, size_bytes, message.signal_every, post_list)
        lane.begin(postings, size_bytes, messages=None, signal_every=signal_every, post_list=post_list)
        self._retransmitted = lane.queue_pair.counters.retransmitted_packets
        self._started_s = self._completed_s = self._heard_s = self.clock()

    def go_on(self) -> None:
        """Take in that the client is still there."""
        self._heard_s = self.clock()

    def halt(self) -> None:
        """Post one more message and then none. What completes from here on has nobody against it: not counted."""
        if self._halted is not None:
            raise RemoteProtocolError("halt of what was halted", code="unexpected_message")
        lane = self.lane
        self._halted = lane.messages, self._completed_s
        wqes = lane.message_wqes
        lane.left = -lane.posted % wqes + wqes

    def step(self) -> bool:
        """Post and retire for a slice of time, as long as there is something to do; True when there was anything.

        CompletionError where the client's memory is not what it said.
        """
        lane, pump, poll = self.lane, self.device.pump, self.lane.queue_pair.poll
        now = self.clock()
        end_s, moved = now + _SLICE_S, False
        # A client that is stuck, or gone without a word, must not be sent to for ever.
        posts = self._halted is not None or now - self._heard_s < REVERSE_ALLOWANCE_S
        while not self.finished:
            busy = posts and lane.post()
            busy = pump() or busy
            completions = poll()
            now = self.clock()
            if completions:
                lane.retire(completions)
                self._completed_s, busy = now, True
                self.finished = lane.finished
            moved = moved or busy
            if not busy or now >= end_s:
                break
        return moved

    def take_result(self) -> Reversed | None:
        """Return the answer to `halt`; None before it is `finished`."""
        if not self.finished:
            return None
        messages, completed_s = self._halted or (0, 0.0)
        if not messages:
            messages, completed_s = self.lane.messages, self._completed_s
        retransmitted = self.lane.queue_pair.counters.retransmitted_packets - self._retransmitted
        return Reversed(self.lease, messages, round((completed_s - self._started_s) * 1e9), retransmitted)

    def close(self) -> None:
        """Free the memory that READs filled. Safe to call twice."""
        self._stack.close()


def start_reverse(
    message: Reverse,
    operation: Operation,
    device: Device,
    queue_pair: QueuePair,
    vec: DmaVec,
    *,
    first_wr_id: int,
    window_bytes: int,
    max_send_sge: int,
    clock: Callable[[], float] = time.monotonic,
) -> ReverseRun:
    """Return what answers `message`; `vec` is the lease's memory, `window_bytes` what we may have sent to us.

    RemoteProtocolError where the client's memory is too short, PeerRefusedError where ours would be too much.
    """
    segments = [RemoteSegment(s.address, s.length, s.rkey) for s in message.segments]
    if sum(s.length_bytes for s in segments) < message.length:
        raise RemoteProtocolError("reverse into less memory than a message has", code="bad_range")
    if any(s.address + s.length_bytes > _ADDRESSES for s in segments):
        raise RemoteProtocolError("reverse into memory that ends beyond 2^64", code="bad_range")
    run = ReverseRun(device, Lane(queue_pair, min(message.depth, queue_pair.depth), first_wr_id), message.lease)
    run.clock = clock
    with ExitStack() as stack:
        if operation is Operation.READ:
            if message.length > MOST_READ_BYTES:
                raise PeerRefusedError(
                    f"the server reads no {message.length} bytes at once",
                    why=f"a READ in both directions fills memory of its own, {MOST_READ_BYTES // MIB} MiB at most",
                    fix="--sizes 64M, or leave --bidirectional away",
                    code="reverse_too_big",
                )
            run.sink = open_scratch(message.length)
            stack.callback(run.sink.close)
            registration = device.register(run.sink.buffers(), Access.LOCAL_WRITE)
            stack.callback(registration.close)
            vec = registration.vec
        elif message.window_bytes is not None:
            queue_pair.set_window(message.window_bytes)
        chunk_bytes = read_chunk_bytes(operation, device.info, message.length, window_bytes)
        limits = RwLimits.for_device(device.info.limits, max_send_sge=max_send_sge, chunk_bytes=chunk_bytes)
        run.begin(message_postings(vec, segments, operation, limits, message.length), message)
        run._stack = stack.pop_all()
    return run
