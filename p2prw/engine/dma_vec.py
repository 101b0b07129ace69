"""A dma vec with prefix sums: checked once, then ranges are cut from it by binary search. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from p2prw.engine.model import DmaSegment, DmaVec
from p2prw.engine.rw_rules import bad_request

U32_END = 1 << 32
U64_END = 1 << 64


class IndexedVec:
    """A checked dma vec with prefix sums, so that many contexts can be cut from it without walking it again."""

    def __init__(self, dma_vec: Sequence[DmaSegment]) -> None:
        for k, (address, length, lkey) in enumerate(dma_vec):
            # Some adapters read a zero SGE length as 2^31 bytes, so it must never reach one.
            if length < 1 or address < 0 or address + length > U64_END or not 0 <= lkey < U32_END:
                raise bad_request(
                    f"segment {k} of the dma vec is not usable: address {address:#x}, {length} bytes, lkey {lkey:#x}",
                    "bad_segment",
                    "EINVAL",
                    why="a segment has at least one byte, ends at or below 2^64 and has a 32-bit key",
                )
        self.vec: DmaVec = tuple(dma_vec)
        self.starts: tuple[int, ...] = (0, *accumulate(segment[1] for segment in self.vec))
        self.length_bytes = self.starts[-1]

    def rest(self, offset: int, length: int | None) -> int:
        """Return the bytes meant by [offset, offset + length), checked; None: to the end."""
        total = self.length_bytes
        if offset < 0 or (length is not None and length < 0):
            raise bad_request(f"offset {offset}, length {length}: neither can be negative", "bad_range", "EINVAL")
        if length is None and not total:
            raise bad_request("the dma vec is empty", "empty_vec", "EINVAL", why="there is no memory to move")
        # The kernel warns and gives EIO when skipping the offset leaves no segment.
        if offset > total or (offset == total and length != 0):
            raise bad_request(
                f"offset {offset} is past the end of the memory ({total} bytes)",
                "offset_past_end",
                "EIO",
                fix=f"an offset below {total}",
            )
        if length is not None and offset + length > total:
            raise bad_request(
                f"{length} bytes at offset {offset} end past the memory ({total} bytes)",
                "length_past_end",
                "EINVAL",
                fix=f"--size {total - offset}",
            )
        return total - offset if length is None else length

    def cut(self, offset: int, length: int) -> DmaVec:
        """Return the segments of a checked, non-empty range: whole ones as they are, first and last shortened."""
        starts = self.starts
        first = bisect_right(starts, offset) - 1
        end = bisect_left(starts, offset + length)
        skip = offset - starts[first]
        surplus = starts[end] - (offset + length)
        segments = list(self.vec[first:end])
        if skip:
            address, length_bytes, lkey = segments[0]
            segments[0] = DmaSegment(address + skip, length_bytes - skip, lkey)
        if surplus:
            address, length_bytes, lkey = segments[-1]
            segments[-1] = DmaSegment(address, length_bytes - surplus, lkey)
        return tuple(segments)
