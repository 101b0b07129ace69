"""The lab's own words go to standard error; standard output belongs to the command in the guest."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write one line of progress or complaint."""
    sys.stderr.write(f"lab: {text}\n")
    sys.stderr.flush()
