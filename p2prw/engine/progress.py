"""What a transfer has counted so far, and how fast it is just now. No clock: time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

PROGRESS_INTERVAL_S = 0.125
_RATE_WINDOW_S = 1.0


@dataclass(slots=True)
class LoopStats:
    """What the loop counted; filled while it runs, so that a failure can say what was moved."""

    bytes_done: int = 0
    wqes_posted: int = 0
    wqes_signalled: int = 0
    kernel_wqes: int = 0
    wqes_in_flight: int = 0
    first_post_s: float | None = None
    first_completion_s: float | None = None
    last_completion_s: float | None = None

    @property
    def elapsed_s(self) -> float:
        """First post to last data completion."""
        if self.first_post_s is None or self.last_completion_s is None:
            return 0.0
        return max(0.0, self.last_completion_s - self.first_post_s)

    def add(self, later: LoopStats) -> None:
        """Take in what a later loop of the same transfer counted."""
        self.bytes_done += later.bytes_done
        self.wqes_posted += later.wqes_posted
        self.wqes_signalled += later.wqes_signalled
        self.kernel_wqes += later.kernel_wqes
        self.wqes_in_flight = later.wqes_in_flight
        self.first_post_s = self.first_post_s if self.first_post_s is not None else later.first_post_s
        if self.first_completion_s is None:
            self.first_completion_s = later.first_completion_s
        if later.last_completion_s is not None:
            self.last_completion_s = later.last_completion_s


class RecentRate:
    """Bytes per second over the last second, from samples of what has been done so far."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def at(self, now: float, bytes_done: int) -> float:
        """Take in a sample and return the rate it ends; 0 for the first one."""
        samples = self._samples
        samples.append((now, bytes_done))
        while len(samples) > 2 and samples[1][0] < now - _RATE_WINDOW_S:
            samples.popleft()
        began_s, began_bytes = samples[0]
        return (bytes_done - began_bytes) / (now - began_s) if now > began_s else 0.0
