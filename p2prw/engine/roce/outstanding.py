"""The READ requests that a requester has on the wire, counted without a look at each."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class ReadPiece(NamedTuple):
    """One READ request on the wire: PSNs [first, end) of responses."""

    first_psn: int
    end_psn: int
    asked_psns: int
    """Of this one and all that were asked for before it, counted from any start."""


class OutstandingReads(deque[ReadPiece]):
    """In PSN order, from the oldest that is not answered whole on; some of them are to be asked for again."""

    __slots__ = ()

    def ask(self, first_psn: int, end_psn: int) -> None:
        """A new one, behind all others."""
        asked_psns = self[-1].asked_psns if self else 0
        self.append(ReadPiece(first_psn, end_psn, asked_psns + end_psn - first_psn))

    def at(self, psn: int) -> ReadPiece | None:
        """Return what was asked for and holds `psn`."""
        return next((piece for piece in self if piece.first_psn <= psn < piece.end_psn), None)

    def on_the_wire(self, una_psn: int, sent_psn: int) -> tuple[int, int]:
        """Return how many there are, and how many of their responses have not come.

        All before `una_psn` has; what ends behind `sent_psn` is to be asked for again.
        """
        if not self:
            return 0, 0
        count, first, last = len(self), self[0], self[-1]
        while last.end_psn > sent_psn:
            # Only after a loss.
            count -= 1
            if not count:
                return 0, 0
            last = self[count - 1]
        return count, last.asked_psns - first.asked_psns + first.end_psn - max(first.first_psn, una_psn)

    def answered(self, una_psn: int) -> None:
        """Forget those that end before `una_psn`: their responses all have come."""
        while self and self[0].end_psn <= una_psn:
            self.popleft()
