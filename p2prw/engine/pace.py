"""A token bucket for `--rate-limit`: when may the next work request leave? Pure; time is an argument.

It is kept as one moment: when everything that left would have left at exactly the rate. A work request may leave once
that moment has come, and moves it on by its own time on the wire. A loop that wakes up late catches up, by `BURST_S`
at most, so in any stretch of t seconds at most rate x (t + BURST_S) bytes and one work request are posted.
"""

from __future__ import annotations

from dataclasses import dataclass

BURST_S = 0.01
"""What a late wake-up may cost without costing rate: on a busy machine a sleep ends milliseconds late."""
_WRS_PER_S = 10
_SMALLEST_BYTES = 4096


@dataclass(slots=True)
class Pace:
    """One limit, for all queue pairs together. Ask `room`, post that much, `spend` it."""

    rate_bytes_per_s: float
    _free_s: float | None = None
    """None before the first one: nothing was late yet."""

    def wait_s(self, now: float) -> float:
        """Return how long to wait until something may leave; 0 when it may now."""
        return max(0.0, self._base_s(now) - now)

    def room(self, length_bytes: float, now: float) -> int:
        """Return how many work requests of this length may leave now."""
        ahead_s = now - self._base_s(now)
        return 0 if ahead_s < 0 else 1 + int(ahead_s * self.rate_bytes_per_s / length_bytes)

    def spend(self, length_bytes: float, now: float) -> None:
        """Book what left."""
        self._free_s = self._base_s(now) + length_bytes / self.rate_bytes_per_s

    def _base_s(self, now: float) -> float:
        return now if self._free_s is None else max(self._free_s, now - BURST_S)


def pace_at(rate_bytes_per_s: float | None) -> Pace | None:
    """Return a pace, None where there is no limit."""
    return None if rate_bytes_per_s is None else Pace(rate_bytes_per_s)


def paced_chunk_bytes(chunk_bytes: int, rate_bytes_per_s: float | None) -> int:
    """Return `chunk_bytes`, or less, so that a slow limit still sends ten work requests a second and shows progress."""
    if rate_bytes_per_s is None:
        return chunk_bytes
    share = int(rate_bytes_per_s / _WRS_PER_S) // _SMALLEST_BYTES * _SMALLEST_BYTES
    return min(chunk_bytes, max(_SMALLEST_BYTES, share))
