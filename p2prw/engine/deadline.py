"""What bounds every wait of one command: a stop request and `--time-limit`, on one clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from p2prw.engine.stop import StopRequest
from p2prw.errors import InterruptedTransfer, TimeLimitError


@dataclass(slots=True)
class Deadline:
    """The end of the whole command. `at_s` is absolute on `clock`; None: no limit."""

    clock: Callable[[], float]
    stop: StopRequest
    limit_s: float | None = None
    at_s: float | None = None

    def __post_init__(self) -> None:
        if self.limit_s is not None:
            self.at_s = self.clock() + self.limit_s

    def check(self, doing: str = "") -> None:
        """Raise InterruptedTransfer after a stop, TimeLimitError after the limit."""
        if self.stop:
            raise InterruptedTransfer(signal_number=self.stop.signal_number or 2)
        if self.at_s is not None and self.clock() >= self.at_s:
            raise self.error(doing)

    def left_s(self, at_most_s: float) -> float:
        """Return how long a wait may last; TimeLimitError when no time is left."""
        if self.at_s is None:
            return at_most_s
        left_s = self.at_s - self.clock()
        if left_s <= 0:
            raise self.error()
        return min(at_most_s, left_s)

    def error(self, doing: str = "") -> TimeLimitError:
        """Return the error of a limit that ran out."""
        return TimeLimitError(
            f"the time limit of {self.limit_s:g} s ran out",
            why=doing or "it bounds the whole command",
            fix="a larger --time-limit",
        )
