"""Where the time of a command went: one running phase at a time, on a clock that is passed in."""

from __future__ import annotations

from collections.abc import Callable

from p2prw.engine.model import PHASES


class PhaseClock:
    """Adds up seconds per phase; entering a phase ends the one before it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_s = clock()
        self._current: str | None = None
        self._since_s = self._started_s
        self.seconds: dict[str, float] = {}

    @property
    def current(self) -> str | None:
        """The running phase."""
        return self._current

    @property
    def total_s(self) -> float:
        """Seconds since this clock was made."""
        return self._clock() - self._started_s

    def enter(self, phase: str | None) -> None:
        """End the running phase and begin `phase` (one of `model.PHASES`), or none."""
        if phase is not None and phase not in PHASES:
            raise ValueError(f"unknown phase {phase!r}")
        now_s = self._clock()
        if self._current is not None:
            self.seconds[self._current] = self.seconds.get(self._current, 0.0) + now_s - self._since_s
        self._current, self._since_s = phase, now_s

    def add(self, phase: str, seconds: float) -> None:
        """Book time that was measured elsewhere."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
