"""Short reads and writes are gone on with, a file closed meanwhile is not; writeback begins with each write."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from p2prw.engine.memory import file_io
from p2prw.engine.memory.file_io import read_all, start_writeback, write_all
from p2prw.engine.memory.file_sink import FileSink
from p2prw.engine.memory.spec import make_spec

WRITE_ONLY = 2  # SYNC_FILE_RANGE_WRITE: waiting for it (1, 4) would be an fsync in small pieces


@dataclass
class Owner:
    descriptor: int


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT))


def test_a_few_bytes_at_a_time(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:3], at))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:4]], at))
    write_all(owner, memoryview(b"0123456789"), 2)
    into = bytearray(20)
    assert read_all(owner, memoryview(into), 1) == 11
    assert into[:11] == b"\x000123456789"
    assert read_all(owner, memoryview(into), 100) == 0
    os.close(owner.descriptor)


def test_closed_in_the_middle(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, preadv, descriptor = os.pwrite, os.preadv, owner.descriptor

    def short_write(fd: int, data: memoryview, at: int) -> int:
        owner.descriptor = -1
        return pwrite(fd, data[:1], at)

    def short_read(fd: int, buffers: list[memoryview], at: int) -> int:
        owner.descriptor = -1
        return preadv(fd, [buffers[0][:1]], at)

    monkeypatch.setattr(os, "pwrite", short_write)
    monkeypatch.setattr(os, "preadv", short_read)
    with pytest.raises(OSError, match="Bad file descriptor"):
        write_all(owner, memoryview(b"abc"), 0)
    owner.descriptor = descriptor
    os.truncate(descriptor, 10)
    with pytest.raises(OSError, match="Bad file descriptor"):
        read_all(owner, memoryview(bytearray(3)), 0)
    os.close(descriptor)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the kernel is asked to write back, as (offset, length)."""
    calls: list[tuple[int, int]] = []

    def sync_file_range(descriptor: int, offset: Any, length: Any, flags: int) -> int:
        assert descriptor >= 0 and flags == WRITE_ONLY
        calls.append((offset.value, length.value))
        return -1

    monkeypatch.setattr(file_io, "_sync_file_range", lambda: sync_file_range)
    monkeypatch.setattr(file_io, "_PAGE_BYTES", 4096)
    return calls


@pytest.mark.parametrize(
    ("offset", "length", "whole_pages"),
    [(0, 8192, [(0, 8192)]), (1, 8192, [(4096, 4096)]), (4095, 2, []), (8192, 4095, []), (100, 12188, [(4096, 8192)])],
)
def test_only_whole_pages_are_written_back(
    owner: Owner, begun: list[tuple[int, int]], offset: int, length: int, whole_pages: list[tuple[int, int]]
) -> None:
    start_writeback(owner, offset, length)
    assert begun == whole_pages
    os.close(owner.descriptor)


def test_a_sink_begins_to_write_back_once_for_each_write(tmp_path: Path, begun: list[tuple[int, int]]) -> None:
    """So the disk works while more arrives; an answer of the kernel that it cannot changes nothing."""
    path = tmp_path / "sink"
    chunk = memoryview(b"x" * 65536)
    sink = FileSink(
        make_spec("file", str(path), {}), str(path), range_end=4 * len(chunk), keep_rest=False, overwrite=False
    )
    for index in (1, 0, 2, 3):
        sink.write_at(index * len(chunk), chunk)
    assert begun == [(index * len(chunk), len(chunk)) for index in (1, 0, 2, 3)]
    sink.commit()
    assert path.read_bytes() == bytes(chunk) * 4
    sink.close()


def test_the_kernel_takes_the_hint_and_a_library_without_it_is_none(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.pwrite(owner.descriptor, b"x" * 4096, 0)
    function = file_io._sync_file_range()
    assert function is None or function(owner.descriptor, ctypes.c_int64(0), ctypes.c_int64(4096), WRITE_ONLY) == 0
    start_writeback(owner, 0, 4096)
    monkeypatch.setattr(file_io, "_sync_file_range", lambda: None)
    start_writeback(owner, 0, 4096)
    os.close(owner.descriptor)
