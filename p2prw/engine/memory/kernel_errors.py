"""What an errno means to the person at the keyboard: a table of reasons makes it a HostError."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from p2prw.errors import HostError

Reason = tuple[str, str, str]
"""(code, why, fix) of an error."""


def kernel_error(
    what: str,
    error: OSError | ValueError,
    reasons: Mapping[int, Reason] | None = None,
    *,
    code: str = "cannot_open",
    why: str = "the kernel gave no other reason",
    fix: str = "dmesg | tail",
) -> HostError:
    """Return what the kernel's errno means here: "`what`: its words", by `reasons`, or the rest where they lack it.

    A ValueError is that of Python's mmap, for what mmap(2) answers with EINVAL.
    """
    number = error.errno if isinstance(error, OSError) else errno.EINVAL
    code, why, fix = (reasons or {}).get(number or 0, (code, why, fix))
    return HostError(f"{what}: {os.strerror(number or 0)}", why=why, fix=fix, code=code, errno=number or None)
