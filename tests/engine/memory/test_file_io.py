"""Short reads and writes are gone on with, and a file closed meanwhile is not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from p2prw.engine.memory.file_io import read_all, write_all


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
