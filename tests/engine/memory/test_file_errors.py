"""What a user reads when the kernel refuses a file."""

from __future__ import annotations

import errno

import pytest

from p2prw.engine.memory.file_errors import file_error


@pytest.mark.parametrize(
    ("number", "code", "fix"),
    [
        (errno.ENOENT, "not_found", "ls -l /srv"),
        (errno.EACCES, "not_permitted", "ls -ld /srv /srv/x"),
        (errno.EROFS, "read_only", "findmnt -T /srv"),
        (errno.ENOSPC, "no_space", "df -h /srv"),
        (errno.EDQUOT, "no_space", "quota -s"),
        (errno.EFBIG, "file_too_large", "ulimit -f unlimited, or another file system"),
        (errno.EISDIR, "is_directory", "name a file in it: file:/srv/x/NAME"),
        (errno.EBUSY, "busy", "lsblk /srv/x"),
        (errno.EIO, "io_error", "dmesg | tail"),
        (errno.EXFULL, "io_error", "dmesg | tail"),
    ],
)
def test_each_errno_has_a_remedy(number: int, code: str, fix: str) -> None:
    error = file_error("write", "/srv/x", OSError(number, "whatever"))
    assert (error.code, error.fix, error.errno) == (code, fix, errno.errorcode[number])
    assert error.what.startswith("cannot write /srv/x: ")
    assert error.exit_code == 3
