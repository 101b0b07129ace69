"""One client's account under `--client-rate-limit`: what it moved against what time has allowed it. Pure.

A client that keeps to the limit posts at most rate x (t + 10 ms) bytes and one work request in any stretch of t
seconds (`engine/pace.py`). What it posted may come late and all at once, after losses or a stall, so what it did not
use is kept for it for a while. It is held to what the limit lets it have moved, not to how the wire bunched it.
"""

from __future__ import annotations

from p2prw.errors import PeerRefusedError
from p2prw.units import MIB, format_rate

TOLERANCE = 0.1
"""Two clocks, and the few bytes of flushing READs."""
BURST_S = 1.0
BURST_BYTES = MIB
"""Beyond the rate: a second of it and this much, for work requests that count as a whole when they begin."""
KEPT_S = 30.0
"""What was not used for longer is forgotten: nobody saves up for an hour and then takes the whole link."""
AGAIN = 16
"""READ responses that are sent again have an account of their own, so many times as large: losses need them."""


class RateAccount:
    """Of one connection: who ends its lease and takes another has no new burst. Fed with cumulative counts."""

    def __init__(self, rate_bytes_per_s: float) -> None:
        """Its time begins with the first `check`."""
        self.rate_bytes_per_s = rate_bytes_per_s
        self._per_s = rate_bytes_per_s * (1 + TOLERANCE)
        self._burst_bytes = rate_bytes_per_s * BURST_S + BURST_BYTES
        self._since_s = self._last_s = float("-inf")
        self._left_bytes = self._burst_bytes
        self._left_again_bytes = self._burst_bytes * AGAIN
        self._moved_bytes = self._again_bytes = self._ahead_bytes = 0

    def begin_lease(self, ahead_bytes: int = 0) -> None:
        """Counts begin at 0 again. `ahead_bytes`: what is counted before it moves, such as slots filled in advance."""
        self._moved_bytes = self._again_bytes = 0
        self._ahead_bytes = ahead_bytes

    def check(self, moved_bytes: int, again_bytes: int, now: float) -> None:
        """Book what was moved since the last call. PeerRefusedError `rate_exceeded` where that is too much."""
        if self._since_s == float("-inf"):
            self._since_s = self._last_s = now
        if moved_bytes == self._moved_bytes and again_bytes == self._again_bytes:
            return
        allowed = (now - self._last_s) * self._per_s
        most = self._burst_bytes + KEPT_S * self._per_s
        self._left_bytes = min(self._left_bytes + allowed, most) - (moved_bytes - self._moved_bytes)
        again = again_bytes - self._again_bytes
        self._left_again_bytes = min(self._left_again_bytes + allowed * AGAIN, most * AGAIN) - again
        self._last_s, self._moved_bytes, self._again_bytes = now, moved_bytes, again_bytes
        is_too_much = self._left_bytes + self._ahead_bytes < 0
        if is_too_much or self._left_again_bytes < 0:
            what = f"{moved_bytes} bytes" if is_too_much else f"{again_bytes} bytes once more"
            raise PeerRefusedError(
                f"{what} in {now - self._since_s:.1f} s are more than this client may move",
                why=f"--client-rate-limit is {format_rate(self.rate_bytes_per_s)}; a tenth more, a second of it and "
                f"{BURST_BYTES} bytes at once are let pass",
                fix=f"--rate-limit {max(1, int(self.rate_bytes_per_s))}B/s (an older p2prw does not know of the "
                "server's), or a higher --client-rate-limit at the server",
                code="rate_exceeded",
            )
