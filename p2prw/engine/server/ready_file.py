"""Small files that others wait for or read at any moment: whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from p2prw.errors import HostError


def write_whole(path: str, text: bytes, *, option: str, code: str) -> None:
    """Replace `path` by `text` in one step. HostError `code`, which names the `option` that asked for it."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(text)
        temporary.chmod(0o644)  # whoever waits for it may be another user, whatever our umask is
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise HostError(
            f"cannot write {path} ({option}): {error.strerror}",
            why=f"it is written beside its final name, in {target.parent}, and renamed",
            fix=f"ls -ld {target.parent}; {option} in a directory that can be written to",
            code=code,
            errno=error.errno,
        ) from error
