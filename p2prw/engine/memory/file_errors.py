"""What the kernel says about files, in words with a remedy: one table for sources, sinks and block devices."""

from __future__ import annotations

import errno
import os

from p2prw.engine.memory.kernel_errors import Reason, kernel_error
from p2prw.errors import HostError

_MEANINGS: dict[int, Reason] = {
    errno.ENOENT: ("not_found", "it, or a directory on the way to it, does not exist", "ls -l {parent}"),
    errno.ENOTDIR: ("not_found", "a part of the path is a file, not a directory", "ls -l {parent}"),
    errno.EACCES: (
        "not_permitted",
        "this user may not do that with the file or a directory on the way to it",
        "ls -ld {parent} {path}",
    ),
    errno.EPERM: ("not_permitted", "the file is immutable, or a security module forbids it", "lsattr {path}"),
    errno.EROFS: ("read_only", "the file system is mounted read-only", "findmnt -T {parent}"),
    errno.ENOSPC: ("no_space", "the file system is full", "df -h {parent}"),
    errno.EDQUOT: ("no_space", "the disk quota is used up", "quota -s"),
    errno.EFBIG: (
        "file_too_large",
        "the file would pass the largest size that ulimit -f or the file system allows",
        "ulimit -f unlimited, or another file system",
    ),
    errno.ENAMETOOLONG: ("bad_path", "a name in the path is longer than the file system takes", "a shorter name"),
    errno.ELOOP: ("bad_path", "symbolic links lead in a circle", "readlink -f {path}"),
    errno.EISDIR: ("is_directory", "it is a directory", "name a file in it: file:{path}/NAME"),
    errno.EBUSY: ("busy", "somebody else holds it: a mount, swap, RAID, LVM or device-mapper", "lsblk {path}"),
    errno.ETXTBSY: ("busy", "it is a running program", "another file"),
    errno.ENXIO: ("no_device", "no device answers behind it", "lsblk"),
    errno.ENOMEDIUM: ("no_device", "there is no medium in the drive", "lsblk"),
    errno.EIO: ("io_error", "the storage below reported an error", "dmesg | tail"),
    errno.ESTALE: ("io_error", "the NFS server no longer knows the file", "mount it again"),
}


def file_error(action: str, path: str, error: OSError) -> HostError:
    """Return the HostError for `error` met while doing `action` ("read", "create") to `path`; the caller raises it."""
    parent = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120 (text in a message)
    meanings = {
        number: (code, why, fix.format(path=path, parent=parent)) for number, (code, why, fix) in _MEANINGS.items()
    }
    return kernel_error(f"cannot {action} {path}", error, meanings, code="io_error")
