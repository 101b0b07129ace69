"""The completions of a send queue, which say so when the first one comes: of sixty queue pairs, few have any."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from p2prw.engine.model import Completion


class CompletionQueue(deque[Completion]):
    """Filled by the requester, emptied by `take`."""

    def __init__(self, tell: Callable[[], None]) -> None:
        """`tell` is called when there is something to take, and when `take` leaves something."""
        super().__init__()
        self._tell = tell

    def append(self, completion: Completion, /) -> None:
        """Put a completion behind the others."""
        if not self:
            self._tell()
        super().append(completion)

    def take(self, most: int) -> list[Completion]:
        """Take off at most `most`, oldest first."""
        if len(self) <= most:
            taken = list(self)
            self.clear()
            return taken
        taken = [self.popleft() for _ in range(most)]
        self._tell()
        return taken
