"""pread and pwrite until all is done: for sources, sinks and block devices. Both release the GIL."""

from __future__ import annotations

import os
from typing import Protocol


class OpenFile(Protocol):
    """Whoever owns a descriptor; -1 once it is closed.

    The loops ask for it anew each time: a thread that hung in one call while the owner closed must not go on with a
    number that meanwhile belongs to another file.
    """

    descriptor: int


def read_all(file: OpenFile, into: memoryview, offset: int) -> int:
    """Read until `into` is full or the file ends; return the count. OSError as pread raises it."""
    done = 0
    while done < len(into):
        count = os.preadv(file.descriptor, [into[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def write_all(file: OpenFile, data: memoryview, offset: int) -> None:
    """Write all of `data`; pwrite may stop early and say why only when asked again. OSError as pwrite raises it."""
    done = 0
    while done < len(data):
        done += os.pwrite(file.descriptor, data[done:], offset + done)
