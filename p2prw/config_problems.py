"""What is wrong with a file, all of it: errors are collected, and raised together, in the order of the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from p2prw.errors import RequestError

MOST_SHOWN = 10
_PLACE = re.compile(r":(\d+):(\d+):")


class AlreadyReported(Exception):
    """What was read is not whole, and why has been reported: what depends on it is not looked at."""


class Problems:
    """Collects errors, each once."""

    def __init__(self) -> None:
        self.errors: dict[str, RequestError] = {}
        self.reported = 0
        """How often something was reported, again or not."""
        self.incomplete = False
        """A part that later parts refer to could not be read: what they miss is no error of theirs."""

    def report(self, error: RequestError) -> None:
        """Take an error."""
        self.reported += 1
        if not (self.incomplete and error.code == "unknown_variable"):
            self.errors.setdefault(error.what, error)

    @contextmanager
    def catch(self, *, refers: bool = False) -> Iterator[None]:
        """Take the error of what is done inside, and go on; `refers`: others refer to what is read there."""
        before = self.reported
        try:
            yield
        except RequestError as error:
            self.report(error)
        except AlreadyReported:
            pass
        self.incomplete |= refers and self.reported > before

    def stop_since(self, before: int) -> None:
        """Raise AlreadyReported where more than `before` was reported."""
        if self.reported > before:
            raise AlreadyReported

    def raise_them(self) -> None:
        """Raise the first of the file with the others as its `more`; nothing where there is none."""
        found = sorted(self.errors.values(), key=_place)
        if found:
            first, *others = found
            first.more, first.unshown = tuple(others[: MOST_SHOWN - 1]), max(0, len(found) - MOST_SHOWN)
            raise first


def _place(error: RequestError) -> tuple[float, int]:
    match = _PLACE.search(error.what)
    # What has no place is about the file as a whole, and often for the want of what stands before it.
    return (int(match[1]), int(match[2])) if match else (float("inf"), 0)
