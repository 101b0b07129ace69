"""Files that are read whole, and no further than they may be long: settings, scenarios, results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2prw.errors import HostError, RequestError
from p2prw.units import format_size


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file is for, in the words of the errors about it."""

    name: str
    most_bytes: int
    why: str
    """What it must be."""
    fix: str
    """What to type beside `ls -l` where it cannot be read."""
    unreadable: str
    """`code` where it cannot be read."""
    bad: str
    """`code` where it is something else."""


def read_whole(path: str, kind: FileKind) -> bytes:
    """Return what is in it. HostError: it cannot be read; RequestError: it is too long to be one."""
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(kind.most_bytes + 1)
    except OSError as error:
        raise HostError(
            f"{kind.name} {path}: {(error.strerror or 'cannot read').lower()}",
            why=kind.why,
            fix=f"ls -l {path}; {kind.fix}",
            code=kind.unreadable,
            errno=error.errno,
        ) from error
    if len(data) > kind.most_bytes:
        raise RequestError(
            f"{kind.name} {path} is longer than {format_size(kind.most_bytes)}",
            why="is it another file?",
            fix=kind.fix,
            code=kind.bad,
        )
    return data
