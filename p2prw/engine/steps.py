"""Work that is a generator: it yields on the way, so that somebody can look and stop it, and returns its outcome."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

Step = TypeVar("Step")
Outcome = TypeVar("Outcome")


def finish(steps: Generator[Step, None, Outcome], each: Callable[[Step], object] | None = None) -> Outcome:
    """Run a transfer, a smoke test or a measurement to its end and return its outcome; `each` is shown every step."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome
        if each is not None:
            each(step)
