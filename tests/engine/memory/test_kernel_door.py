"""The door itself, on files that are everywhere."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import termios
from pathlib import Path

import pytest

from p2prw.engine.memory.kernel_door import KERNEL


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(mmap.PAGESIZE))
    descriptor = KERNEL.open(str(path), os.O_RDWR)
    assert not os.get_inheritable(descriptor)
    mapping = KERNEL.map(descriptor, mmap.PAGESIZE, 0, writable=True)
    KERNEL.pwrite(descriptor, b"abc", 5)
    assert mapping[5:8] == b"abc" == KERNEL.pread(descriptor, 3, 5)
    read_only = KERNEL.map(descriptor, mmap.PAGESIZE, 0, writable=False)
    with pytest.raises(TypeError):
        read_only[0] = 1
    KERNEL.close(descriptor)
    with pytest.raises(OSError) as caught:
        KERNEL.close(descriptor)
    assert caught.value.errno == errno.EBADF


def test_an_ioctl_writes_into_its_argument_and_keeps_errno() -> None:
    near, far = os.pipe()
    try:
        os.write(far, b"12345")
        waiting = bytearray(4)
        assert KERNEL.ioctl(near, termios.FIONREAD, waiting) == 0
        assert struct.unpack("=i", waiting) == (5,)
        with pytest.raises(OSError) as caught:
            KERNEL.ioctl(near, 0x12345678, 7)
        assert caught.value.errno == errno.ENOTTY
    finally:
        os.close(near)
        os.close(far)
