"""A path that the kernel allows and the machine does not carry: bytes are lost and every return code says success.

With an IOMMU, QEMU translates what a device sends before it looks at switches: a bus address, which the kernel takes
for two devices under one switch, has no translation, so the write ends as a DMA fault in the log and nowhere else. It
is why p2prw reads the bytes back.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
from pathlib import Path

import pytest

LENGTH = 64 * 1024
FILLER = b"\xee" * LENGTH


@pytest.fixture
def controller_memory(nvme):
    path = Path("/sys/bus/pci/devices") / nvme("a") / "p2pmem/allocate"
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), LENGTH) as memory:
        memory[:] = FILLER
        yield memory


def read_direct(disk: Path, memory: mmap.mmap) -> int:
    descriptor = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        return os.preadv(descriptor, [memory], 0)
    finally:
        os.close(descriptor)


def test_bytes_do_not_arrive_and_nobody_says_so(controller_memory, nvme, nvme_disk, outside, text_of) -> None:
    data = random.Random(8).randbytes(LENGTH)
    outside.poke("nvme-b", 0, data)
    with mmap.mmap(-1, LENGTH) as host:
        assert read_direct(nvme_disk("b"), host) == LENGTH
        assert host[:] == data, "the disk and the way to host memory are sound"
    assert read_direct(nvme_disk("b"), controller_memory) == LENGTH, "the kernel allowed it and saw no error"
    assert controller_memory[:] == FILLER, "and nothing arrived"
    faults = [line for line in text_of("dmesg").splitlines() if "[DMA Write" in line]
    assert any(f"[{nvme('b')}]" in line for line in faults), "the IOMMU stopped it and only the log knows"


def test_own_memory_needs_no_path(controller_memory, nvme_disk, outside) -> None:
    data = random.Random(9).randbytes(LENGTH)
    outside.poke("nvme-a", 0, data)
    assert read_direct(nvme_disk("a"), controller_memory) == LENGTH
    assert controller_memory[:] == data


def test_other_root_port_is_refused(controller_memory, nvme_disk) -> None:
    with pytest.raises(OSError) as caught:
        read_direct(nvme_disk("c"), controller_memory)
    assert caught.value.errno in (errno.EINVAL, errno.EREMOTEIO)


def test_acs_redirects_at_the_root_ports(text_of) -> None:
    listing = text_of("lspci", "-vvv", "-s", "00:10.0")
    assert "SrcValid+" in listing
    assert "ReqRedir+ CmpltRedir+ UpstreamFwd+" in listing
