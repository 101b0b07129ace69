"""Registered memory of a verbs device: mapped buffers cut into slices, one memory region of the binding each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from p2prw.engine.model import MAX_REMOTE_SEGMENTS, DmaSegment, DmaVec, RemoteSegment
from p2prw.engine.providers.verbs_binding import BindingError, BoundRegion

if TYPE_CHECKING:
    from p2prw.engine.memory.base import MappedBuffer

SLICE_BYTES = 1 << 30
"""Pinning a gibibyte takes some tenths of a second, during which pyverbs keeps the GIL and no signal is heard."""


def cut_buffers(
    buffers: Sequence[MappedBuffer], offset: int, length_bytes: int | None, slice_bytes: int = SLICE_BYTES
) -> Iterator[tuple[int, int]]:
    """Yield (virtual address, length) of the slices of [offset, offset + length) of the buffers as one string of bytes.

    Slices grow where a region would have more of them than a peer can be told of.
    """
    total = sum(one.length_bytes for one in buffers)
    left = total - offset if length_bytes is None else length_bytes
    room = max(1, MAX_REMOTE_SEGMENTS - len(buffers))
    slice_bytes = max(slice_bytes, -(-left // room))
    for buffer in buffers:
        if left <= 0:
            return
        if offset >= buffer.length_bytes:
            offset -= buffer.length_bytes
            continue
        take = min(buffer.length_bytes - offset, left)
        for start in range(0, take, slice_bytes):
            yield buffer.cpu_address + offset + start, min(slice_bytes, take - start)
        left -= take
        offset = 0


class HeldRegion:
    """See `verbs_binding.BoundRegion`. It does not own its memory: whoever mapped it closes this first."""

    def __init__(self, region: Any, address: int, length_bytes: int, call: Callable[..., object]) -> None:
        """`region`: the binding's object, with its lkey and rkey. `call` runs a verb; its errors are BindingErrors."""
        self._region: Any = region
        self._call = call
        self.lkey: int = region.lkey
        self.rkey: int = region.rkey
        self.address = address
        self.length_bytes = length_bytes

    def close(self) -> None:
        """ibv_dereg_mr."""
        region, self._region = self._region, None
        if region is not None:
            self._call(region.close)


class VerbsRegistration:
    """See `p2prw.engine.providers.base.Registration`."""

    def __init__(self, regions: Sequence[BoundRegion], on_close: Callable[[VerbsRegistration], None]) -> None:
        self._regions = list(regions)
        self._on_close = on_close
        self.vec: DmaVec = tuple(DmaSegment(one.address, one.length_bytes, one.lkey) for one in regions)
        self._remote = tuple(RemoteSegment(one.address, one.length_bytes, one.rkey) for one in regions)

    def remote_segments(self) -> tuple[RemoteSegment, ...]:
        """Return (address, length, rkey) of each slice."""
        return self._remote

    def close(self) -> None:
        """Deregister every slice, whatever the others say. Safe to call twice."""
        regions, self._regions = self._regions, []
        if not regions:
            return
        for region in regions:
            try:
                region.close()
            except BindingError:
                # A device that is gone takes its regions with it.
                pass
        self._on_close(self)
