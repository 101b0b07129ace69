"""One byte of a work request that is wrong on purpose though its ICRC is right: what only verification can catch.

Memory keeps its bytes. For a WRITE the packet is made, and sealed, from a copy with the bit flipped; for a READ the bit
is flipped while the byte is put in its place. A retransmission makes the same mistake again.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2prw.engine.model import Access, Sge
from p2prw.engine.roce.memory_table import MemoryTable, ScatterList

FLIPPED_BIT = 0x01


class SpoiltList(ScatterList):
    """A scatter list whose byte `spoil_at` has its lowest bit flipped, whichever way the bytes go."""

    __slots__ = ("_spoil_at",)

    def __init__(self, table: MemoryTable, sges: Sequence[Sge], access: Access, spoil_at: int) -> None:
        super().__init__(table, sges, access)
        self._spoil_at = spoil_at

    def gather(self, offset: int, length_bytes: int) -> list[memoryview]:
        """Return the bytes; the piece that holds the spoilt one is a copy."""
        pieces = super().gather(offset, length_bytes)
        for index, piece in enumerate(pieces):
            if offset <= self._spoil_at < offset + len(piece):
                pieces[index] = self._flipped(piece, self._spoil_at - offset)
            offset += len(piece)
        return pieces

    def scatter(self, offset: int, data: memoryview) -> None:
        """Put `data` at `offset`, the spoilt byte flipped."""
        if offset <= self._spoil_at < offset + len(data):
            data = self._flipped(data, self._spoil_at - offset)
        super().scatter(offset, data)

    def plain_window(self, offset: int) -> tuple[memoryview, int, int] | None:
        """Return None: every byte must come through `scatter`."""
        return None

    @staticmethod
    def _flipped(data: memoryview, at: int) -> memoryview:
        copy = bytearray(data)
        copy[at] ^= FLIPPED_BIT
        return memoryview(copy)
