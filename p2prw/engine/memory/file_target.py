"""The place where a file sink is to be: may it be written, does something stand there, is there room."""

from __future__ import annotations

import errno
import os
import stat

from p2prw.engine.memory.file_errors import file_error
from p2prw.errors import HostError
from p2prw.units import format_size


def check_file_sink(path: str, *, overwrite: bool, needed_bytes: int | None) -> None:
    """Raise HostError where a sink at `path` is bound to fail: no directory, no right, exists, no space."""
    target, directory = resolve_target(path)
    if path.endswith("/"):
        raise file_error("write", path, OSError(errno.EISDIR, ""))
    status = status_or_none(target, path)
    if status is not None:
        _check_existing(path, status, overwrite)
    if not os.path.isdir(directory):  # noqa: PTH112
        raise HostError(
            f"cannot create {path}: there is no directory {directory}",
            why="directories are not made along with a file: a typing error would make one too",
            fix=f"mkdir -p {directory}",
            code="not_found",
            errno=errno.ENOENT,
        )
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        raise file_error("create", path, OSError(errno.EROFS, ""))
    if not os.access(directory, os.W_OK | os.X_OK):
        raise HostError(
            f"cannot create a file in {directory}: {os.strerror(errno.EACCES)}",
            why="a sink is written under a temporary name beside its target, so its directory must be writable",
            fix=f"ls -ld {directory}",
            code="not_permitted",
            errno=errno.EACCES,
        )
    if needed_bytes is not None:
        check_space(path, directory, needed_bytes)


def resolve_target(path: str) -> tuple[str, str]:
    """Return (target, its directory); a symbolic link stays and what it names is replaced."""
    target = os.path.realpath(path)
    return target, os.path.dirname(target)  # noqa: PTH120


def status_or_none(target: str, path: str) -> os.stat_result | None:
    """Return what stands at `target`, None for nothing; `path` is the user's word for it."""
    try:
        return os.stat(target)  # noqa: PTH116
    except FileNotFoundError:
        return None
    except OSError as error:
        raise file_error("write", path, error) from error


def _check_existing(path: str, status: os.stat_result, overwrite: bool) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise file_error("write", path, OSError(errno.EISDIR, ""))
    if not stat.S_ISREG(status.st_mode):
        raise HostError(
            f"{path} is not a file or block device",
            why="pipes, sockets and character devices cannot be written at an offset",
            fix="name a regular file",
            code="not_a_file",
        )
    if not overwrite:
        raise exists_error(path)
    if not os.access(path, os.W_OK):
        raise HostError(
            f"{path} is write-protected",
            why="its mode does not let this user write to it, so it is not replaced either",
            fix=f"chmod u+w {path}",
            code="not_permitted",
            errno=errno.EACCES,
        )


def exists_error(path: str) -> HostError:
    """Return the error for a target that is there and was not to be replaced."""
    return HostError(
        f"{path} exists",
        why="a sink does not replace a file unless told to",
        fix="--overwrite, or another name",
        code="exists",
        errno=errno.EEXIST,
    )


def check_space(path: str, directory: str, needed_bytes: int) -> None:
    """Raise HostError `no_space` where `directory` has less than `needed_bytes` left for us."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    # Some network file systems report no size at all: then only writing tells.
    if status.f_blocks and needed_bytes > free:
        raise HostError(
            f"no space for {path}: {format_size(needed_bytes)} are needed",
            why=f"{format_size(free)} are free in {directory}",
            fix=f"df -h {directory}",
            code="no_space",
            errno=errno.ENOSPC,
        )
