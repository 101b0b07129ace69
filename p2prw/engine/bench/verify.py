"""`--verify`: what the last generation left behind, compared at both ends.

The same bytes go again and again, so only the last write of each byte can be checked. So that it cannot pass on what an
earlier size left there, every size has its own data: the source of a WRITE is filled with a new generation before the
run, and the sink of a READ with bytes that are not the peer's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from p2prw.engine.attach import Scratch
from p2prw.engine.client import Attached
from p2prw.engine.ends import cut_segments
from p2prw.engine.lane import Lane, Posting
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.model import Opcode, Operation, RemoteSegment, Sge, TransferRequest, VerifyReport
from p2prw.engine.mover import Mover
from p2prw.engine.pattern import STEP_BYTES, Pattern
from p2prw.engine.steps import finish

_FLUSH_BYTES = 8


def fill_generation(memory: MemorySource, generation: int, size_bytes: int) -> None:
    """Put generation `generation` into the first `size_bytes` of `memory`."""
    pattern = Pattern("words", generation)
    piece = bytearray(min(size_bytes, STEP_BYTES))
    for offset in range(0, size_bytes, STEP_BYTES):
        view = memoryview(piece)[: size_bytes - offset]
        pattern.fill(view, offset)
        memory.write_at(offset, view)


@dataclass(slots=True)
class GenerationCheck:
    """Fills and compares the memory of one lane."""

    request: TransferRequest
    attached: Attached
    lane: Lane
    scratch: Scratch

    def fill(self, generation: int, size_bytes: int) -> None:
        """Put generation `generation` into the first `size_bytes` of our memory.

        Device memory that was brought along as a source is left as it is: it is not ours to overwrite.
        """
        if self.request.operation is Operation.WRITE and self.attached.memory.spec.kind != "host":
            return
        fill_generation(self.attached.memory, generation, size_bytes)

    def flush_postings(self, size_bytes: int) -> tuple[Posting, ...]:
        """Return the READ of the last bytes that is to follow the WRITEs; none where it is not needed or not allowed.

        A WRITE completion does not say that the bytes are visible at the target; a READ behind it does.
        """
        grant = self.attached.grant
        if self.request.operation is Operation.READ or not grant.flushable:
            return ()
        length = min(_FLUSH_BYTES, size_bytes)
        segments = [RemoteSegment(s.address, s.length, s.rkey) for s in grant.segments]
        (piece, *_) = cut_segments(segments, size_bytes - length, length)
        sge = Sge(self.scratch.sge.address, piece.length_bytes, self.scratch.sge.lkey)
        return ((Opcode.RDMA_READ, (sge,), piece.address, piece.rkey),)

    def mover(self, size_bytes: int) -> Mover:
        """Return what reads bad blocks back."""
        one = self.attached
        assert one.local is not None
        grant = replace(one.grant, length=size_bytes)
        mover = Mover(self.request, one.link, grant, one.limits, self.scratch, one.local.route)
        # Ids go on counting up: a completion retires everything with a smaller one.
        mover.stats.wqes_posted = self.lane.first_wr_id + self.lane.posted
        return mover

    def compare(self, size_bytes: int) -> VerifyReport:
        """Compare the first `size_bytes` of both ends; return what was found."""
        return finish(self.mover(size_bytes).verify(self.attached.memory))
