"""How a signal handler or a program asks a running transfer or server to end in good order."""

from __future__ import annotations

from collections.abc import Callable

from p2prw.errors import InterruptedTransfer


class StopRequest:
    """Set from a signal handler, looked at by the loops. Setting an int is all a handler does, so it is safe there.

    Every long wait has it at hand, so a wait also says here what it is for: `tell` is called with a few words.
    """

    __slots__ = ("signal_number", "tell", "times")

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self.signal_number: int | None = None
        self.times = 0
        self.tell = tell

    def set(self, signal_number: int = 2) -> None:
        """Ask to stop; `signal_number` decides the exit code (128 + n)."""
        self.signal_number = signal_number
        self.times += 1

    def check(self) -> None:
        """Raise InterruptedTransfer once it is set."""
        if self:
            raise InterruptedTransfer(signal_number=self.signal_number or 2)

    def waits_for(self, text: str) -> None:
        """Say what is waited for, to whoever wants to know."""
        if self.tell is not None:
            self.tell(text)

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
