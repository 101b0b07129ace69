"""What unfinished sinks are called beside their target, who still works on one, and what may be cleared away.

`.NAME.p2prw-XXXXXXXX.part` holds the bytes. X is random, or for a sink that can be resumed a digest of NAME, so that
the next command finds it; then `.NAME.p2prw-XXXXXXXX.manifest` stands beside it. Whoever writes a part holds a lock on
it (flock(2)), which the kernel drops however its process ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex

from p2prw.engine.digest import BLOCK_BYTES
from p2prw.engine.memory.manifest import noted_blocks
from p2prw.units import format_size

PART, MANIFEST = ".part", ".manifest"
# What is left of NAME_MAX: the mark must fit into a name; what is cut off is only for the reader's eye.
_ROOM_BYTES = 255 - len(".") - len(".p2prw-XXXXXXXX.manifest")


def part_path(directory: str, name: str, mark: str, ending: str = PART) -> str:
    """Return the temporary path for the target `name`; `mark` is 8 hex digits."""
    shown = os.fsdecode(os.fsencode(name)[:_ROOM_BYTES])
    return os.path.join(directory, f".{shown}.p2prw-{mark}{ending}")  # noqa: PTH118


def resume_paths(target: str) -> tuple[str, str]:
    """Return where an unfinished sink for `target` and its manifest are kept."""
    import xxhash

    directory, name = os.path.split(target)
    mark = xxhash.xxh3_64_hexdigest(os.fsencode(name))[:8]
    return part_path(directory, name, mark), part_path(directory, name, mark, MANIFEST)


def lock_part(descriptor: int) -> bool:
    """Take the lock that says "somebody works on this"; False: somebody does already, or it was cleared away."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # No locks here (some FUSE and NFS): then nothing is ever cleared away either.
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
    # Whoever cleared it away between our open and our lock left us a file without a name.
    return os.fstat(descriptor).st_nlink > 0


def remove_orphans(target: str) -> None:
    """Clear away parts that nobody works on and that cannot be resumed: their process was killed. Never raises."""
    directory, name = os.path.split(target)
    before, after = re.escape(part_path("", name, "", "")), re.escape(PART)
    pattern = re.compile(f"{before}[0-9a-f]{{8}}{after}")
    try:
        names = [entry for entry in os.listdir(directory) if pattern.fullmatch(entry)]  # noqa: PTH208
    except OSError:
        return
    for entry in names:
        path = os.path.join(directory, entry)  # noqa: PTH118
        if not noted_blocks(path.removesuffix(PART) + MANIFEST):
            _remove_if_orphan(path)
    part, manifest = resume_paths(target)
    if not os.path.lexists(part):
        # Killed between the rename of a part and the removal of its manifest.
        _unlink(manifest)


def _remove_if_orphan(path: str) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _unlink(path)
            _unlink(path.removesuffix(PART) + MANIFEST)
    except OSError:
        # Somebody works on it, or there are no locks here to tell.
        pass
    finally:
        os.close(descriptor)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108
    except OSError:
        # Gone already, or not ours to remove.
        pass


def leftover_note(target: str) -> str | None:
    """Return what to tell a user who did not ask to resume where an unfinished sink for `target` is kept, else None."""
    part, manifest = resume_paths(target)
    blocks = noted_blocks(manifest) if os.path.lexists(part) else None
    if not blocks:
        return None
    return (
        f"{target}: an unfinished transfer is kept ({format_size(blocks * BLOCK_BYTES)} of it have arrived); "
        f"--resume goes on with it, rm {shlex.quote(part)} {shlex.quote(manifest)} throws it away"
    )
