"""The kernel's own answer: a controller reads its disk into another controller's memory, where the rules allow it."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LENGTH = 256 * 1024


@contextmanager
def allocated(address: str) -> Iterator[mmap.mmap]:
    path = Path("/sys/bus/pci/devices") / address / "p2pmem/allocate"
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), LENGTH) as memory:
        yield memory


def read_direct(disk: Path, memory: mmap.mmap) -> int:
    descriptor = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        return os.preadv(descriptor, [memory], 0)
    finally:
        os.close(descriptor)


def test_disk_to_controller_memory_under_one_switch(nvme, nvme_disk, outside) -> None:
    data = random.Random(3).randbytes(LENGTH)
    outside.poke("nvme-b", 0, data)
    with allocated(nvme("a")) as memory:
        assert read_direct(nvme_disk("b"), memory) == LENGTH
        assert memory[:] == data


def test_refused_between_root_ports(nvme, nvme_disk) -> None:
    """QEMU's host bridge and processor are on no whitelist, and these two have no common upstream bridge."""
    with allocated(nvme("c")) as memory, pytest.raises(OSError) as caught:
        read_direct(nvme_disk("b"), memory)
    assert caught.value.errno in (errno.EINVAL, errno.EREMOTEIO)
