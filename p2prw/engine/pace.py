"""Whose limit of the rate holds, and a token bucket: when may the next work request leave? Pure; time is an argument.

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


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Most bytes posted in a second, all queue pairs together."""

    bytes_per_s: float
    by: str
    """`client`: our own `--rate-limit`. `server`: its `--client-rate-limit`."""


def lower_limit(own_bytes_per_s: float | None, servers_bytes_per_s: float | None) -> RateLimit | None:
    """Return the lower one of our limit and what a server allows each client, None where there is neither."""
    limits = ((own_bytes_per_s, "client"), (servers_bytes_per_s, "server"))
    given = [RateLimit(rate, by) for rate, by in limits if rate is not None]
    return min(given, key=lambda limit: limit.bytes_per_s, default=None)


@dataclass(slots=True)
class Pace:
    """One limit, for all queue pairs together. Ask `room`, post that much, `spend` it."""

    rate_bytes_per_s: float
    by: str = "client"
    """Whose limit it is, as in `RateLimit`."""
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


def pace_at(limit: RateLimit | None) -> Pace | None:
    """Return a pace, None where there is no limit."""
    return None if limit is None else Pace(limit.bytes_per_s, limit.by)


def paced_chunk_bytes(chunk_bytes: int, limit: RateLimit | None) -> int:
    """Return `chunk_bytes`, or less, so that a slow limit still sends ten work requests a second and shows progress."""
    if limit is None:
        return chunk_bytes
    share = int(limit.bytes_per_s / _WRS_PER_S) // _SMALLEST_BYTES * _SMALLEST_BYTES
    return min(chunk_bytes, max(_SMALLEST_BYTES, share))
