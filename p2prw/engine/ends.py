"""The two ends of a transfer as the loop sees them: mapped memory, or slots that are filled and drained.

A transfer is cut into spans (byte ranges of the transfer). Between two mapped ends there is one span. Where an end is
staged, a span is at most one staging chunk, and each span passes these stations, in both directions the same words:

    take a slot where the bytes come from -> prepare -> take a slot where they go -> post and complete the work requests
    -> settle -> give each slot back as soon as it is done with

    WRITE   local staging prepares (pread into the slot)      remote staging settles (`commit`, pwrite from the slot)
    READ    remote staging prepares (`fill`, pread)           local staging settles (pwrite from the slot)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import Commit, Committed, Fill, Filled, Segment, Staging
from p2prw.engine.model import DmaSegment, DmaVec, Operation, RemoteSegment
from p2prw.engine.rw import RwContext, RwLimits, build_contexts
from p2prw.engine.staging import StagingRing
from p2prw.errors import RemoteProtocolError


@dataclass(slots=True)
class Span:
    """A byte range of the transfer on its way through the stations."""

    offset: int
    length_bytes: int
    local_slot: int = -1
    """-1: none yet."""
    remote_slot: int = -1
    local_ready: bool = False
    remote_ready: bool = False
    unsettled: int = 2
    contexts: tuple[RwContext, ...] = ()
    outstanding: int = 0
    posted: bool = False
    """All its work requests (and its flush) are in the send queue."""


class LocalEnd(Protocol):
    """Our memory. `span_bytes` None: spans of any length, always ready, always settled."""

    span_bytes: int | None

    def take(self) -> int | None:
        """Return a free slot, None while all are busy."""

    def give(self, slot: int) -> None:
        """Take a slot back."""

    def prepare(self, span: Span) -> bool:
        """Start to make the span's bytes reachable; True: they are."""

    def settle(self, span: Span) -> bool:
        """Start to put the arrived bytes where they belong; True: they are there."""

    def vec(self, span: Span) -> tuple[DmaVec, int]:
        """Return the dma vec the span lies in and the span's offset in it."""

    def poll(self) -> Sequence[tuple[int, int]]:
        """Return (slot, offset) of preparations and settlements that finished."""

    def start_at(self, offset: int) -> None:
        """Spans count from here from now on; no span is on its way."""


class _Mapped:
    """What both ends say of mapped memory: there are no slots, all of it is ready, and what arrived is in its place."""

    span_bytes: int | None = None

    def take(self) -> int | None:
        """Mapped memory has no slots."""
        return 0

    def give(self, slot: int) -> None:
        """Nothing to give back."""

    def prepare(self, span: Span) -> bool:
        """Mapped memory is ready."""
        return True

    def settle(self, span: Span) -> bool:
        """What arrived is where it belongs."""
        return True


class _Slotted:
    """The free slots of a staged end."""

    def __init__(self, slots: int) -> None:
        self._free: deque[int] = deque(range(slots))

    def take(self) -> int | None:
        """Return a free slot."""
        return self._free.popleft() if self._free else None

    def give(self, slot: int) -> None:
        """Take the slot back."""
        self._free.append(slot)


class DirectLocal(_Mapped):
    """Mapped memory that is registered whole."""

    def __init__(self, vec: DmaVec, base_offset: int = 0) -> None:
        self._vec = vec
        self._base_offset = base_offset

    def vec(self, span: Span) -> tuple[DmaVec, int]:
        """Return the whole vec and the span's place in it."""
        return self._vec, self._base_offset + span.offset

    def poll(self) -> Sequence[tuple[int, int]]:
        """Nothing is ever pending."""
        return ()

    def start_at(self, offset: int) -> None:
        """Count spans from `offset` of the vec."""
        self._base_offset = offset


class RingLocal(_Slotted):
    """A file (or bounced memory) behind a ring of registered chunks; a worker thread preads and pwrites."""

    def __init__(self, ring: StagingRing, vec: DmaVec, direction: Operation, base_offset: int = 0) -> None:
        super().__init__(ring.slots)
        self.span_bytes: int | None = ring.chunk_bytes
        self._ring = ring
        self._segment = vec[0]
        self._direction = direction
        self._base_offset = base_offset

    def prepare(self, span: Span) -> bool:
        """WRITE: read the source into the slot."""
        if self._direction is Operation.READ:
            return True
        self._ring.start_fill(span.local_slot, self._base_offset + span.offset, span.length_bytes)
        return False

    def settle(self, span: Span) -> bool:
        """READ: write the slot to the sink."""
        if self._direction is Operation.WRITE:
            return True
        self._ring.start_drain(span.local_slot, self._base_offset + span.offset, span.length_bytes)
        return False

    def vec(self, span: Span) -> tuple[DmaVec, int]:
        """Return the slot as a vec of one segment."""
        address, _, lkey = self._segment
        chunk = self.span_bytes or 0
        return (DmaSegment(address + span.local_slot * chunk, chunk, lkey),), 0

    def poll(self) -> Sequence[tuple[int, int]]:
        """Return finished jobs; the file's HostError is raised here."""
        finished = []
        for job in self._ring.poll():
            if job.error is not None:
                raise job.error
            finished.append((job.slot, job.offset - self._base_offset))
        return finished

    def start_at(self, offset: int) -> None:
        """Count spans from `offset` of the memory."""
        self._base_offset = offset


class RemoteEnd(Protocol):
    """The peer's memory."""

    span_bytes: int | None

    def take(self) -> int | None:
        """Return a free slot, None while all are busy."""

    def give(self, slot: int) -> None:
        """Take a slot back."""

    def prepare(self, span: Span) -> bool:
        """Ask the peer to make the span's bytes reachable; True: they are."""

    def settle(self, span: Span) -> bool:
        """Ask the peer to take the written bytes; True: nothing to ask."""

    def segments(self, span: Span) -> tuple[RemoteSegment, ...]:
        """Return the remote segments that hold exactly the span."""


def cut_segments(segments: Sequence[RemoteSegment], offset: int, length_bytes: int) -> tuple[RemoteSegment, ...]:
    """Return the pieces of `segments`, taken as one string of bytes, that hold [offset, offset + length)."""
    pieces: list[RemoteSegment] = []
    for address, segment_bytes, rkey in segments:
        if length_bytes <= 0:
            break
        if offset >= segment_bytes:
            offset -= segment_bytes
            continue
        take = min(segment_bytes - offset, length_bytes)
        pieces.append(RemoteSegment(address + offset, take, rkey))
        length_bytes -= take
        offset = 0
    if length_bytes > 0:
        raise RemoteProtocolError(
            "the granted segments are shorter than the granted length",
            why=f"{length_bytes} bytes are missing",
            code="bad_grant",
        )
    return tuple(pieces)


class DirectRemote(_Mapped):
    """Remote memory that is registered whole; its segments start at the lease's first byte."""

    def __init__(self, segments: Sequence[RemoteSegment], base_offset: int = 0) -> None:
        self._segments = tuple(segments)
        self._base_offset = base_offset

    def segments(self, span: Span) -> tuple[RemoteSegment, ...]:
        """Return the pieces that hold the span."""
        return cut_segments(self._segments, self._base_offset + span.offset, span.length_bytes)


class StagedRemote(_Slotted):
    """Remote memory behind the server's staging slots: `fill` before a READ, `commit` after a WRITE.

    A free slot is a credit; there are never more frames on the way than slots.
    """

    def __init__(
        self, channel: Channel, lease: str, staging: Staging, direction: Operation, base_offset: int = 0
    ) -> None:
        super().__init__(len(staging.slots))
        self.span_bytes: int | None = staging.chunk_bytes
        self._channel = channel
        self._lease = lease
        self._slots: tuple[Segment, ...] = staging.slots
        self._direction = direction
        self._base_offset = base_offset

    def prepare(self, span: Span) -> bool:
        """READ: have the server fill the slot."""
        if self._direction is Operation.WRITE:
            return True
        self._channel.send(Fill(self._lease, span.remote_slot, self._base_offset + span.offset, span.length_bytes))
        return False

    def settle(self, span: Span) -> bool:
        """WRITE: have the server take the slot."""
        if self._direction is Operation.READ:
            return True
        self._channel.send(Commit(self._lease, span.remote_slot, self._base_offset + span.offset, span.length_bytes))
        return False

    def segments(self, span: Span) -> tuple[RemoteSegment, ...]:
        """Return the slot's memory."""
        slot = self._slots[span.remote_slot]
        if slot.length < span.length_bytes:
            raise RemoteProtocolError("a granted staging slot is shorter than its chunk", code="bad_grant")
        return (RemoteSegment(slot.address, span.length_bytes, slot.rkey),)

    def answered(self, message: Filled | Committed) -> tuple[int, int]:
        """Return (slot, offset in the transfer) of an answer; RemoteProtocolError when we asked for no such thing."""
        if isinstance(message, Filled) != (self._direction is Operation.READ):
            raise RemoteProtocolError(f"{message.TYPE} that was not asked for", code="unexpected_message")
        if message.lease != self._lease:
            raise RemoteProtocolError(f"{message.TYPE} for a lease that is not ours", code="bad_lease")
        return message.slot, message.offset - self._base_offset


def contexts_for(
    span: Span, local: LocalEnd, remote: RemoteEnd, direction: Operation, limits: RwLimits
) -> tuple[RwContext, ...]:
    """Return one rw context for each remote segment of the span."""
    vec, offset = local.vec(span)
    return build_contexts(vec, remote.segments(span), direction, limits, offset, span.length_bytes)
