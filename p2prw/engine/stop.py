"""How a signal handler or a program asks a running transfer or server to end in good order."""

from __future__ import annotations


class StopRequest:
    """Set from a signal handler, looked at by the loops. Setting an int is all a handler does, so it is safe there."""

    __slots__ = ("signal_number", "times")

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.times = 0

    def set(self, signal_number: int = 2) -> None:
        """Ask to stop; `signal_number` decides the exit code (128 + n)."""
        self.signal_number = signal_number
        self.times += 1

    def end_now(self) -> None:
        """Ask as somebody does who asks twice."""
        self.set()
        self.set()

    @property
    def at_once(self) -> bool:
        """Asked twice: what would still be waited for is not."""
        return self.times > 1

    def __bool__(self) -> bool:
        return self.signal_number is not None
