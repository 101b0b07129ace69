"""Where the lab keeps things: one folder in the user's cache, shared by all checkouts, never in the repository."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.errors import MissingError

REPOSITORY = Path(__file__).resolve().parent.parent


def cache_folder() -> Path:
    """Return `${XDG_CACHE_HOME:-~/.cache}/p2prw-lab`, made if need be. MissingError where it cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "p2prw-lab"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MissingError(
            f"cannot make {folder} ({error.strerror}); set XDG_CACHE_HOME to a folder of yours"
        ) from None
    return folder


@contextmanager
def locked(path: Path, *, while_waiting: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on `path` (flock: it ends with the process, however that ends)."""
    from lab.say import say

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if while_waiting:
                say(while_waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
