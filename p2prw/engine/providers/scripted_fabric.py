"""What connects scripted devices: keys, addresses and queue pair numbers, all counted up, never random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2prw.engine.model import Access, DmaSegment

if TYPE_CHECKING:
    from p2prw.engine.memory.base import MappedBuffer
    from p2prw.engine.providers.scripted import ScriptedQueuePair

_ADDRESS_GAP_BYTES = 1 << 20  # unmapped space between registrations, so that overruns hit nothing


@dataclass(slots=True)
class Region:
    """One registered piece of one buffer."""

    segment: DmaSegment
    buffer: MappedBuffer
    base: int
    access: Access


class ScriptedFabric:
    """Shared by the devices that are to reach each other."""

    def __init__(self) -> None:
        self.regions: dict[int, Region] = {}
        self.queue_pairs: dict[int, ScriptedQueuePair] = {}
        self._next_key = 0x1000
        self._next_address = 0x10_0000_0000
        self._next_qpn = 0x11

    def add_region(self, buffer: MappedBuffer, base: int, length_bytes: int, access: Access) -> DmaSegment:
        """Give `length_bytes` of a buffer from `base` an address and a key."""
        segment = DmaSegment(self._next_address, length_bytes, self._next_key)
        self.regions[segment.lkey] = Region(segment, buffer, base, access)
        self._next_key += 1
        self._next_address += (length_bytes // _ADDRESS_GAP_BYTES + 2) * _ADDRESS_GAP_BYTES
        return segment

    def add_queue_pair(self, pair: ScriptedQueuePair) -> int:
        """Return a fresh queue pair number."""
        self._next_qpn += 1
        self.queue_pairs[self._next_qpn] = pair
        return self._next_qpn

    def find(self, key: int, address: int, length_bytes: int, access: Access) -> Region | None:
        """Return the region when key, range and rights are good."""
        region = self.regions.get(key)
        if region is None or access & ~region.access:
            return None
        offset = address - region.segment.address
        return region if 0 <= offset <= region.segment.length_bytes - length_bytes else None
