"""Zeros become holes: which pieces of what is to be written hold nothing else, and how a file gives up its blocks.

A hole is punched, not left out: it then reads as zeros whatever was there, so nothing need be known about the range.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

PIECE_BYTES = 64 * 1024
"""Pieces of the file, from its start, that are looked at as a whole: a hole may lose so much at either end."""

# What copy_file_range(2) and fallocate(2) say where the file system cannot do it.
CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EPERM, errno.EBADF, errno.ETXTBSY})
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # include/uapi/linux/falloc.h
_ZEROS = bytes(PIECE_BYTES)


def zero_runs(data: memoryview, position: int, end_of_file: int) -> list[tuple[int, int]]:
    """Return the runs of whole pieces of zeros as [start, end) of `data`, which goes to `position` of the file.

    The piece that the file ends in counts as a whole one.
    """
    runs: list[tuple[int, int]] = []
    length = len(data)
    is_last = position + length == end_of_file
    for start in range(-position % PIECE_BYTES, length, PIECE_BYTES):
        # fast path: most data is told by its first byte, the rest by a comparison that ends where they differ
        if data[start]:
            continue
        piece = data[start : start + PIECE_BYTES]
        if (len(piece) == PIECE_BYTES or is_last) and _ZEROS.startswith(piece):
            end = start + len(piece)
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
    return runs


def punch(descriptor: int, start: int, end: int, end_of_file: int) -> bool:
    """Make [start, end) a hole; False where the file system cannot. OSError as fallocate(2) raises it.

    At the end of the file its last block goes too.
    """
    if end == end_of_file:
        end = -(-end // PIECE_BYTES) * PIECE_BYTES
    return fallocate(descriptor, start, end - start, _PUNCH_HOLE | _KEEP_SIZE)


def data_ranges(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield what of [start, end) is no hole; all of it where the file system does not tell."""
    while start < end:
        try:
            first = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno not in CANNOT:
                raise
            yield start, end
            return
        if first >= end:
            return
        start = os.lseek(descriptor, first, os.SEEK_HOLE)
        yield first, min(start, end)


def fallocate(descriptor: int, offset: int, length_bytes: int, mode: int = 0) -> bool:
    """Reserve blocks, or what `mode` says; False where the file system cannot. OSError for ENOSPC, EDQUOT, EFBIG.

    Not os.posix_fallocate: where the file system cannot, glibc writes to every block instead, which takes as long as
    the transfer itself.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # On 32-bit glibc plain fallocate takes a 32-bit offset.
    function = getattr(libc, "fallocate64", None) or libc.fallocate
    while function(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length_bytes)) != 0:
        number = ctypes.get_errno()
        if number == errno.EINTR:
            continue
        if number in CANNOT:
            return False
        raise OSError(number, os.strerror(number))
    return True
