"""rkey or lkey -> memory, with bounds and rights checked before a byte moves.

A peer never sees a CPU address: every registered buffer gets a random I/O virtual address and a random key, and both
mean nothing once the registration is closed. Nothing else in the RoCE core touches memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2prw.engine.memory.base import MappedBuffer
from p2prw.engine.model import Access, DmaSegment, DmaVec, RemoteSegment, Sge
from p2prw.errors import HostError

_IOVA_PAGE_BITS = 12
_IOVA_PAGES_BITS = 44


class MemoryFault(Exception):
    """Memory could not be reached. `is_protection` tells a wrong key, range or right from a failing device."""

    def __init__(self, why: str, *, is_protection: bool = True) -> None:
        super().__init__(why)
        self.is_protection = is_protection


class MemoryRegion:
    """One registered piece of one buffer. Offsets are bytes from its own start, already checked by the caller."""

    __slots__ = ("_base", "_buffer", "address", "denied", "key", "length_bytes", "view")

    def __init__(
        self, buffer: MappedBuffer, base: int, length_bytes: int, access: Access, address: int, key: int
    ) -> None:
        self._buffer: MappedBuffer | None = buffer
        self._base = base
        self.length_bytes = length_bytes
        self.denied = ~int(access)
        """Rights it does not give, as a plain int: IntFlag arithmetic costs a microsecond a packet."""
        self.address = address
        self.key = key
        self.view: memoryview | None = None if buffer.view is None else buffer.view[base : base + length_bytes]

    @property
    def is_open(self) -> bool:
        """False once the key has been revoked."""
        return self._buffer is not None

    def load(self, offset: int, length_bytes: int) -> memoryview:
        """Return the bytes; a window into the memory itself where that is allowed."""
        if self.view is not None:
            return self.view[offset : offset + length_bytes]
        if self._buffer is None:
            raise MemoryFault("the registration is closed")
        try:
            data = memoryview(self._buffer.load(self._base + offset, length_bytes))
        except Exception as exc:  # foreign code: a device that fell off the bus must cost one queue pair, not all
            raise MemoryFault(f"load failed: {exc}", is_protection=False) from exc
        if len(data) != length_bytes:
            raise MemoryFault("load came back short", is_protection=False)
        return data

    def store(self, offset: int, data: memoryview) -> None:
        """Put `data` at `offset`."""
        if self.view is not None:
            self.view[offset : offset + len(data)] = data
            return
        if self._buffer is None:
            raise MemoryFault("the registration is closed")
        try:
            self._buffer.store(self._base + offset, data)
        except Exception as exc:  # as in load
            raise MemoryFault(f"store failed: {exc}", is_protection=False) from exc

    def revoke(self) -> None:
        """Let go of the memory: an mmap under a live view could not be closed."""
        self._buffer = None
        if self.view is not None:
            self.view.release()
            self.view = None


class MemoryRegistration:
    """Keys for a byte range of some buffers (providers.base.Registration)."""

    def __init__(self, table: MemoryTable, regions: tuple[MemoryRegion, ...]) -> None:
        self._table = table
        self._regions = regions
        self.vec: DmaVec = tuple(DmaSegment(region.address, region.length_bytes, region.key) for region in regions)

    def remote_segments(self) -> tuple[RemoteSegment, ...]:
        """Return what a peer needs; the keys work only for the rights that were registered."""
        return tuple(RemoteSegment(*segment) for segment in self.vec)

    def close(self) -> None:
        """Revoke the keys. Safe to call twice."""
        self._table.revoke(self._regions)
        self._regions = ()


class MemoryTable:
    """All registrations of one device. `random_bits(n)` returns n random bits."""

    def __init__(self, random_bits: Callable[[int], int]) -> None:
        self._random_bits = random_bits
        self._regions: dict[int, MemoryRegion] = {}

    def __len__(self) -> int:
        return len(self._regions)

    def register(
        self,
        buffers: Sequence[MappedBuffer],
        access: Access,
        offset: int = 0,
        length_bytes: int | None = None,
    ) -> MemoryRegistration:
        """Register [offset, offset + length) of the buffers taken as one string of bytes; one key for each buffer.

        Buffers outside the range get none. HostError (EINVAL) when the range does not lie within the buffers.
        """
        total = sum(buffer.length_bytes for buffer in buffers)
        end = total if length_bytes is None else offset + length_bytes
        if not 0 <= offset <= end <= total:
            raise HostError(
                f"cannot register bytes {offset} to {end}",
                why=f"the memory has {total} bytes",
                fix="--size and +OFFSET within the memory",
                code="bad_range",
                errno="EINVAL",
            )
        regions: list[MemoryRegion] = []
        start = 0
        for buffer in buffers:
            low, high = max(offset, start), min(end, start + buffer.length_bytes)
            if low < high:
                regions.append(self._add(buffer, low - start, high - low, access))
            start += buffer.length_bytes
        return MemoryRegistration(self, tuple(regions))

    def _add(self, buffer: MappedBuffer, base: int, length_bytes: int, access: Access) -> MemoryRegion:
        key = self._random_bits(32)
        while not key or key in self._regions:
            key = self._random_bits(32)
        # Never the CPU address: a peer must not learn where this process keeps its memory. Not 0 either, so that a
        # forgotten address does not happen to work.
        address = (1 + self._random_bits(_IOVA_PAGES_BITS)) << _IOVA_PAGE_BITS
        region = self._regions[key] = MemoryRegion(buffer, base, length_bytes, access, address, key)
        return region

    def revoke(self, regions: Sequence[MemoryRegion]) -> None:
        """Forget the keys at once; work that uses them from here on fails with a protection error."""
        for region in regions:
            self._regions.pop(region.key, None)
            region.revoke()

    def find(self, key: int, address: int, length_bytes: int, access: int) -> MemoryRegion | None:
        """Return the region when key, range and all rights in `access` are good, else None."""
        region = self._regions.get(key)
        if region is None:
            return None
        offset = address - region.address
        if offset < 0 or offset + length_bytes > region.length_bytes or region.denied & access:
            return None
        return region


class ScatterList:
    """The SGEs of one work request as one string of bytes. Every access looks at the regions' state again."""

    __slots__ = ("_pieces", "length_bytes")

    def __init__(self, table: MemoryTable, sges: Sequence[Sge], access: Access) -> None:
        """Resolve lkeys; MemoryFault when one is wrong, out of range or lacks `access`."""
        pieces: list[tuple[int, int, MemoryRegion, int]] = []
        rights = int(access)
        position = 0
        for sge in sges:
            if sge.length_bytes:
                region = table.find(sge.lkey, sge.address, sge.length_bytes, rights)
                if region is None:
                    raise MemoryFault(f"SGE at {sge.address:#x}, {sge.length_bytes} bytes, lkey {sge.lkey:#x}")
                pieces.append((position, position + sge.length_bytes, region, sge.address - region.address))
                position += sge.length_bytes
        self._pieces = pieces
        self.length_bytes = position

    def gather(self, offset: int, length_bytes: int) -> list[memoryview]:
        """Return the bytes [offset, offset + length) in as few pieces as the SGEs allow."""
        if len(self._pieces) == 1:
            # fast path: one SGE in plain memory
            _, _, region, base = self._pieces[0]
            if region.view is not None:
                return [region.view[base + offset : base + offset + length_bytes]] if length_bytes else []
        found: list[memoryview] = []
        end = offset + length_bytes
        for start, stop, region, base in self._pieces:
            if stop > offset and start < end:
                if not region.is_open:
                    raise MemoryFault("the registration is closed")
                low = max(start, offset)
                found.append(region.load(base + low - start, min(stop, end) - low))
        return found

    def scatter(self, offset: int, data: memoryview) -> None:
        """Put `data` at `offset`. Bounds were checked by the caller against `length_bytes`."""
        end = offset + len(data)
        for start, stop, region, base in self._pieces:
            if stop > offset and start < end:
                if not region.is_open:
                    raise MemoryFault("the registration is closed")
                low, high = max(start, offset), min(stop, end)
                region.store(base + low - start, data[low - offset : high - offset])

    def plain_window(self, offset: int) -> tuple[memoryview, int, int] | None:
        """Return (view, offset in it, bytes left in it) for the piece that holds `offset`; None: use scatter."""
        for start, stop, region, base in self._pieces:
            if start <= offset < stop:
                if region.view is None:
                    return None
                return region.view, base + offset - start, stop - offset
        return None
