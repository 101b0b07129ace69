"""An errno, a table of reasons, and what a user reads."""

from __future__ import annotations

import errno

import pytest

from p2prw.engine.memory.kernel_errors import Reason, kernel_error

REASONS: dict[int, Reason] = {
    errno.EACCES: ("not_permitted", "root's", "sudo"),
    errno.EINVAL: ("bad_range", "not whole pages", "size="),
}


@pytest.mark.parametrize(
    ("error", "code", "why", "fix", "name"),
    [
        (OSError(errno.EACCES, "whatever"), "not_permitted", "root's", "sudo", "EACCES"),
        # Python's mmap refuses some lengths before the kernel does.
        (ValueError("mmap length is greater than file size"), "bad_range", "not whole pages", "size=", "EINVAL"),
        (OSError(errno.EIO, "whatever"), "cannot_map", "the kernel gave no other reason", "dmesg | tail", "EIO"),
        (OSError("no errno at all"), "cannot_map", "the kernel gave no other reason", "dmesg | tail", None),
    ],
)
def test_what_the_table_lacks_has_a_remedy_too(error, code, why, fix, name):
    found = kernel_error("cannot map it", error, REASONS, code="cannot_map")
    assert (found.code, found.why, found.fix, found.errno) == (code, why, fix, name)
    assert found.what.startswith("cannot map it: ") and found.exit_code == 3


def test_one_reason_for_every_errno():
    found = kernel_error("cannot map it", OSError(errno.ENOMEM, ""), code="too_much", why="a limit", fix="ulimit -v")
    assert (found.code, found.why, found.fix, found.errno) == ("too_much", "a limit", "ulimit -v", "ENOMEM")
