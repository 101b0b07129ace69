"""The user-space twin of the kernel's `struct rdma_rw_ctx`: a dma vec and a remote address become work requests.

This module owns the choice of type, the splitting rules and both counts; `drivers/infiniband/core/rw.c` is the model.
It is arithmetic: prefix sums over segments are built once, `wr(i)` computes the i-th work request from them, and
nothing grows with the size of the transfer. No clock, no socket, no posting: that is `engine/transfer.py`.

The kernel's rules, kept:
    type        1 segment left after `offset`: SINGLE_WR; more: MULTI_WR; `needs_mr`: MR
    offset      whole segments are skipped, the first one left is shortened; types are chosen by what is left
    splitting   MULTI_WR takes up to max_sge segments a WR, in order; none is merged, none is split
    remote      WR i starts at remote_addr + the bytes of all WRs before it; the rkey is the same in all

What user space changes:
    groups      The segments of one kernel WR are a *group*. A group longer than `max_bytes_per_wr` is cut into WRs of
                that many bytes (the last is shorter). WRs never span groups, so a WR lies within max_sge segments and
                has at most max_sge SGEs, and `wr(i)` is two binary searches. Greedy filling across groups would save
                at most one WR a group and would need a walk over all WRs.
    MR          REG_MR and LOCAL_INV can't be posted through libibverbs, memory is registered ahead, segment by segment.
                An MR context here is WRs of one SGE, so each group is one segment. `kernel_ops`, `kernel_op(i)` and
                `kernel_wqes` say what the kernel would do. Its fallback to MULTI_WR when the MR pool is empty (EAGAIN)
                has no meaning here: there is no pool.
    sizes       Totals are not u32. An SGE is below 2^32 bytes: a longer segment without a byte limit is cut.
    size 0      gives 0 WRs, where `rdma_rw_ctx_init_bvec` returns EINVAL.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate, pairwise
from typing import NamedTuple

from p2prw.engine.dma_vec import U32_END, U64_END, IndexedVec
from p2prw.engine.model import (
    MAX_REMOTE_SEGMENTS,
    DmaSegment,
    DmaVec,
    Opcode,
    Operation,
    RemoteSegment,
    Sge,
    WorkRequest,
)
from p2prw.engine.rw_rules import (
    MAX_MR_PAGES,
    RwLimits,
    bad_request,
    can_use_mr,
    mapping_problem,
    mr_factor,
    needs_mr,
)

__all__ = [
    "KernelOp",
    "MAX_MR_PAGES",
    "MAX_SGE_BYTES",
    "RwContext",
    "RwLimits",
    "RwType",
    "build_contexts",
    "can_use_mr",
    "mr_factor",
    "needs_mr",
    "rw_ctx_init",
]

MAX_SGE_BYTES = (1 << 32) - 4096
"""Where a segment of 2^32 bytes or more is cut when nothing else cuts it: `struct ibv_sge` has a u32 length."""


class RwType(StrEnum):
    """`enum` of `rdma_rw_ctx.type`, as far as it makes sense in user space (no SIG_MR, no IOVA)."""

    SINGLE_WR = "SINGLE_WR"
    MULTI_WR = "MULTI_WR"
    MR = "MR"


class KernelOp(NamedTuple):
    """One operation of the kernel's context: one RDMA WR (and, for MR, its REG_MR and LOCAL_INV)."""

    segments: int
    length_bytes: int
    remote_addr: int


@dataclass(frozen=True, slots=True, repr=False)
class RwContext:
    """The work requests of one transfer to or from one remote segment; made by `rw_ctx_init`.

    Unlike the kernel's it is not used up by posting: `wr(i)` may be asked for any i, in any order, at any time.
    """

    type: RwType
    reason: str
    """Why this type, in words."""
    kernel_function: str
    """The function of drivers/infiniband/core/rw.c that takes the same decision."""
    opcode: Opcode
    segments: DmaVec
    """What is left of the dma vec: offset skipped, first and last segment shortened."""
    remote_addr: int
    rkey: int
    length_bytes: int
    limits: RwLimits
    max_sge: int
    """Segments a group: the most SGEs a WR can have. 1 for MR."""
    bytes_per_wr: int
    """Bytes of every WR but the last of each group."""
    nr_wqes: int
    """What we post: RDMA WRs only."""
    kernel_ops: int
    """`ctx.nr_ops` of the kernel for the same vec."""
    kernel_wqes: int
    """What `rdma_rw_ctx_init` would return: for MR, REG_MR included, on the first use of each MR."""
    kernel_wqes_reused: int
    """The same with recycled MRs: LOCAL_INV included, except after READ_WITH_INV (iWARP READ)."""
    _starts: tuple[int, ...] = field(compare=False)
    """_starts[k]: bytes before segment k; one more entry at the end."""
    _first_wr: tuple[int, ...] = field(compare=False)
    """_first_wr[g]: WRs before group g; one more entry at the end."""

    def __repr__(self) -> str:
        return (
            f"<RwContext {self.type} {self.opcode.name} {self.length_bytes} B in {len(self.segments)} segments"
            f" -> {self.nr_wqes} WRs @{self.remote_addr:#x}>"
        )

    def _span(self, index: int) -> tuple[int, int, int, int]:
        """Return (first segment of the group, one past its last, first byte, one past the last byte) of a WR."""
        if not 0 <= index < self.nr_wqes:
            raise IndexError(f"work request {index} of {self.nr_wqes}")
        starts = self._starts
        group = bisect_right(self._first_wr, index) - 1
        low = group * self.max_sge
        high = min(low + self.max_sge, len(starts) - 1)
        start = starts[low] + (index - self._first_wr[group]) * self.bytes_per_wr
        return low, high, start, min(start + self.bytes_per_wr, starts[high])

    def wr(self, index: int) -> WorkRequest:
        """Return work request `index`, computed: O(log segments) plus its SGEs. IndexError outside [0, nr_wqes)."""
        low, high, start, end = self._span(index)
        starts, segments = self._starts, self.segments
        k = bisect_right(starts, start, low, high) - 1
        sges = []
        position = start
        while position < end:
            address, _, lkey = segments[k]
            stop = min(starts[k + 1], end)
            sges.append(Sge(address + position - starts[k], stop - position, lkey))
            position = stop
            k += 1
        return WorkRequest(self.opcode, tuple(sges), self.remote_addr + start, self.rkey, end - start)

    def wr_offset(self, index: int) -> int:
        """Return the bytes of this context that come before work request `index`."""
        return self._span(index)[2]

    def wr_bytes(self, index: int) -> int:
        """Return the bytes of work request `index`."""
        _, _, start, end = self._span(index)
        return end - start

    def wr_bytes_range(self) -> tuple[int, int]:
        """Return the fewest and the most bytes of any WR, without walking WRs; (0, 0) when there are none."""
        if not self.nr_wqes:
            return 0, 0
        edges = self._group_edges()
        sizes = [end - start for start, end in pairwise(edges)]
        # The last WR of a group has the rest, or a full WR when nothing is left over.
        fewest = min((size - 1) % self.bytes_per_wr + 1 for size in sizes)
        return fewest, min(max(sizes), self.bytes_per_wr)

    def sge_count(self) -> int:
        """Return the SGEs of all WRs, without walking WRs: pieces = segments + cuts that fall inside a segment."""
        edges = self._group_edges()
        on_a_cut = 0
        for low, base in zip(range(0, len(self.segments), self.max_sge), edges, strict=False):
            inner = self._starts[low + 1 : min(low + self.max_sge, len(self.segments))]
            on_a_cut += sum((start - base) % self.bytes_per_wr == 0 for start in inner)
        cuts = self.nr_wqes - (len(self._first_wr) - 1)
        return len(self.segments) + cuts - on_a_cut

    def _group_edges(self) -> tuple[int, ...]:
        """Return where each group starts, and where the last one ends, in bytes."""
        return (*self._starts[: len(self.segments) : self.max_sge], self.length_bytes)

    def kernel_op(self, index: int) -> KernelOp:
        """Return operation `index` of the kernel's context for the same vec. IndexError outside [0, kernel_ops)."""
        low, high = self._kernel_op_segments(index)
        start = self._starts[low]
        return KernelOp(high - low, self._starts[high] - start, self.remote_addr + start)

    def kernel_mr_problem(self) -> str | None:
        """Return why the kernel's MR path would end with EINVAL for this vec, or None. Walks segments, not bytes."""
        if self.type is not RwType.MR:
            return None
        pages = min(self.limits.pages_per_mr, MAX_MR_PAGES)
        for index in range(self.kernel_ops):
            low, high = self._kernel_op_segments(index)
            problem = mapping_problem(self.segments[low:high], pages)
            if problem:
                return f"ib_map_mr_sg maps fewer segments than asked (EINVAL): {problem}"
        return None

    def _kernel_op_segments(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self.kernel_ops:
            raise IndexError(f"kernel operation {index} of {self.kernel_ops}")
        per_op = min(self.limits.pages_per_mr, MAX_MR_PAGES) if self.type is RwType.MR else self.max_sge
        low = index * per_op
        return low, min(low + per_op, len(self.segments))


def _check_remote(remote_addr: int, length_bytes: int, rkey: int) -> None:
    if remote_addr < 0 or remote_addr + length_bytes > U64_END or not 0 <= rkey < U32_END:
        raise bad_request(
            f"remote address {remote_addr:#x} with {length_bytes} bytes and rkey {rkey:#x} is not usable",
            "bad_remote_segment",
            "EOVERFLOW",
            why="it must end at or below 2^64 and have a 32-bit key",
        )


def _make_context(
    segments: DmaVec, remote_addr: int, rkey: int, direction: Operation, limits: RwLimits, length: int
) -> RwContext:
    _check_remote(remote_addr, length, rkey)
    nents = len(segments)
    reading = direction is Operation.READ
    max_sge = limits.max_read_sge if reading else limits.max_write_sge
    mr_reason = needs_mr(direction, nents, limits)
    if not nents:
        rw_type, max_sge, kernel_ops = RwType.SINGLE_WR, 1, 0
        reason, function = "size 0: nothing to post (the kernel returns EINVAL)", "rdma_rw_ctx_init_bvec"
    elif mr_reason:
        kernel_ops = -(-nents // min(limits.pages_per_mr, MAX_MR_PAGES))
        rw_type, max_sge = RwType.MR, 1
        reason, function = mr_reason, "rdma_rw_io_needs_mr"
    elif nents == 1:
        rw_type, kernel_ops = RwType.SINGLE_WR, 1
        reason, function = "one segment and no MR needed", "rdma_rw_init_single_wr"
    else:
        rw_type, kernel_ops = RwType.MULTI_WR, -(-nents // max_sge)
        reason, function = f"{nents} segments, up to {max_sge} SGEs a WR, no MR needed", "rdma_rw_init_map_wrs"
    # Per MR operation: RDMA + REG_MR, and LOCAL_INV before it once the MR was used (READ_WITH_INV needs none).
    first, reused = (2, 2 if reading and limits.iwarp else 3) if rw_type is RwType.MR else (1, 1)

    starts = (0, *accumulate(segment[1] for segment in segments))
    bytes_per_wr = limits.max_bytes_per_wr or max(length, 1)
    if bytes_per_wr >= U32_END and any(segment[1] >= U32_END for segment in segments):
        bytes_per_wr = MAX_SGE_BYTES
    edges = (*starts[:nents:max_sge], length)
    first_wr = (0, *accumulate(-(-(end - start) // bytes_per_wr) for start, end in pairwise(edges)))
    return RwContext(
        type=rw_type,
        reason=reason,
        kernel_function=function,
        opcode=Opcode.RDMA_READ if reading else Opcode.RDMA_WRITE,
        segments=segments,
        remote_addr=remote_addr,
        rkey=rkey,
        length_bytes=length,
        limits=limits,
        max_sge=max_sge,
        bytes_per_wr=bytes_per_wr,
        nr_wqes=first_wr[-1],
        kernel_ops=kernel_ops,
        kernel_wqes=kernel_ops * first,
        kernel_wqes_reused=kernel_ops * reused,
        _starts=starts,
        _first_wr=first_wr,
    )


def rw_ctx_init(
    dma_vec: Sequence[DmaSegment],
    remote_addr: int,
    rkey: int,
    direction: Operation,
    limits: RwLimits,
    offset: int = 0,
    length: int | None = None,
) -> RwContext:
    """Return the context that moves bytes [offset, offset + length) of `dma_vec` to or from `remote_addr`.

    `length` None: to the end of the vec. RequestError with the kernel's errno: EIO when the offset skips everything
    (`rdma_rw_ctx_init`), EINVAL for an empty vec, a segment of 0 bytes or a range past the end, EOVERFLOW when the
    remote range passes 2^64.
    """
    indexed = IndexedVec(dma_vec)
    rest = indexed.rest(offset, length)
    segments = indexed.cut(offset, rest) if rest else ()
    return _make_context(segments, remote_addr, rkey, direction, limits, rest)


def build_contexts(
    dma_vec: Sequence[DmaSegment],
    remote_segments: Sequence[RemoteSegment],
    direction: Operation,
    limits: RwLimits,
    offset: int = 0,
    length: int | None = None,
    *,
    remote_offset: int = 0,
) -> tuple[RwContext, ...]:
    """Return one context for each remote segment that the transfer touches, in order; none for size 0.

    The remote segments are taken as one string of bytes, of which the first `remote_offset` are skipped. `length` None:
    the smaller of what is left on either side. Raises what `rw_ctx_init` raises, E2BIG for more than
    `MAX_REMOTE_SEGMENTS`, EINVAL when the remote side is too short.
    """
    if len(remote_segments) > MAX_REMOTE_SEGMENTS:
        raise bad_request(
            f"{len(remote_segments)} remote segments, at most {MAX_REMOTE_SEGMENTS} make a region",
            "too_many_segments",
            "E2BIG",
        )
    remote_rest = sum(segment.length_bytes for segment in remote_segments) - remote_offset
    indexed = IndexedVec(dma_vec)
    if length is None:
        length = max(0, min(indexed.rest(offset, None), remote_rest))
    rest = indexed.rest(offset, length)
    if remote_offset < 0 or rest > remote_rest:
        raise bad_request(
            f"{rest} bytes at offset {remote_offset} do not fit the remote region",
            "remote_too_short",
            "EINVAL",
            why=f"{max(0, remote_rest)} bytes are left there",
            fix=f"--size {max(0, remote_rest)}",
        )
    contexts = []
    skip = remote_offset
    for address, length_bytes, rkey in remote_segments:
        piece = min(length_bytes - skip, rest)
        if piece > 0:
            segments = indexed.cut(offset, piece)
            contexts.append(_make_context(segments, address + skip, rkey, direction, limits, piece))
            offset += piece
            rest -= piece
        skip = max(0, skip - length_bytes)
    return tuple(contexts)
