"""pread and pwrite until all is done, and the range a sink may write of its file. Both calls release the GIL."""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress
from functools import lru_cache
from typing import Any, Protocol

from p2prw.engine.memory.base import MappedBuffer
from p2prw.engine.memory.file_errors import file_error
from p2prw.errors import HostError


class OpenFile(Protocol):
    """Whoever owns a descriptor; -1 once it is closed.

    The loops ask for it anew each time: a thread that hung in one call while the owner closed must not go on with a
    number that meanwhile belongs to another file.
    """

    descriptor: int


def read_all(file: OpenFile, into: memoryview, offset: int) -> int:
    """Read until `into` is full or the file ends; return the count. OSError as pread raises it."""
    done = 0
    while done < len(into):
        count = os.preadv(file.descriptor, [into[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def write_all(file: OpenFile, data: memoryview, offset: int) -> None:
    """Write all of `data`; pwrite may stop early and say why only when asked again. OSError as pwrite raises it."""
    done = 0
    while done < len(data):
        done += os.pwrite(file.descriptor, data[done:], offset + done)


def expect_order(file: OpenFile) -> None:
    """Tell the kernel that the file is read from its start to its end, so that it reads ahead of us.

    Threads that read pieces of one file by turns look like jumps to it, and then it reads little at a time: two of
    them, 2 GiB that no cache had, 1.05 instead of 1.5 GB/s and 3.3 instead of 0.4 s of CPU time (medians of five). A
    hint: where it cannot be given nothing is lost.
    """
    with suppress(OSError):
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)


_PAGE_BYTES = mmap.PAGESIZE
_SYNC_FILE_RANGE_WRITE = 2  # include/uapi/linux/fs.h


def start_writeback(file: OpenFile, offset: int, length_bytes: int) -> None:
    """Have the kernel begin to write what was just stored: the disk works while more bytes arrive, and fsync is short.

    A hint: where it cannot be given nothing is lost, and what goes wrong is said by fsync. Pages that are covered only
    in part are left out: their other bytes are still to come, and would wait for the disk.
    """
    start = -(-offset // _PAGE_BYTES) * _PAGE_BYTES
    length = (offset + length_bytes) // _PAGE_BYTES * _PAGE_BYTES - start
    function = _sync_file_range()
    if length > 0 and function is not None:
        function(file.descriptor, ctypes.c_int64(start), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)


@lru_cache(maxsize=1)
def _sync_file_range() -> Any:
    return getattr(ctypes.CDLL(None), "sync_file_range", None)


class RangeOfFile:
    """What sinks of files and of block devices share: bytes [range start, `length_bytes`) behind one descriptor."""

    descriptor: int
    length_bytes: int
    path: str
    base_offset: int
    _range_start: int

    def buffers(self) -> tuple[MappedBuffer, ...]:
        """Files and block devices are staged: nothing is mapped."""
        return ()

    def read_at(self, offset: int, into: memoryview) -> int:
        """Read back what has been written (or kept), for the digest; also after `commit`."""
        wanted = max(0, min(len(into), self.length_bytes - offset))
        try:
            return read_all(self, into[:wanted], self.base_offset + offset)
        except OSError as error:
            raise file_error("read back", self.path, error) from error

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`. HostError: `no_space`, `out_of_range` and what else a file can meet."""
        self.check_write(offset, len(data))
        try:
            self._store(data, self.base_offset + offset)
        except OSError as error:
            raise file_error("write", self.path, error) from error
        start_writeback(self, self.base_offset + offset, len(data))

    def check_write(self, offset: int, length_bytes: int) -> None:
        """Raise HostError `out_of_range` where that may not be written; finish what comes before the first byte."""
        if offset < self._range_start or offset + length_bytes > self.length_bytes:
            raise HostError(
                f"{length_bytes} bytes at {offset} lie outside what may be written of {self.path}",
                why=f"the range is {self._range_start} to {self.length_bytes}",
                fix="a size and an offset that lie in the range",
                code="out_of_range",
            )
        self._before_write()

    def _store(self, data: memoryview, position: int) -> None:
        write_all(self, data, position)

    def _before_write(self) -> None:
        """Finish what must come before the first byte."""
