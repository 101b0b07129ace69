"""dma-heaps: what is asked of the kernel, what it may answer, and, where this host has one, the real one."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from p2prw.engine.memory.dmaheap import DMA_HEAP_IOCTL_ALLOC, HEAPS, check_dmaheap, open_dmaheap
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Offer
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

SPEC = parse_memory_spec("dmaheap:system,size=5000,pattern=words:7")
HEAP = str(HEAPS / "system")


def test_an_allocation(door, tmp_path, fake_proc) -> None:
    seen: dict[str, int] = {}

    def allocate(_: int, argument: bytearray) -> int:
        length, _, fd_flags, heap_flags = struct.unpack("=QIIQ", argument)
        seen.update(length=length, fd_flags=fd_flags, heap_flags=heap_flags)
        argument[8:12] = struct.pack("=I", door.new_file("dmabuf", length))
        return 0

    door.answers[DMA_HEAP_IOCTL_ALLOC] = allocate
    memory = open_dmaheap(SPEC, 5000, SysfsRoot(tmp_path), fake_proc(), door)
    assert seen == {"length": 8192, "fd_flags": os.O_RDWR | os.O_CLOEXEC, "heap_flags": 0}
    # remap_pfn_range: a mapping without struct pages.
    assert memory.offers == {Offer.DMABUF, Offer.CPU_MAPPING}
    assert not memory.is_device_memory
    descriptor, offset = memory.dmabuf()
    assert (door.names[descriptor], offset) == ("dmabuf", 0)
    buffer = memory.buffers()[0]
    assert buffer.view is not None
    assert os.pread(descriptor, 5000, 0) == bytes(buffer.view), "it is the buffer that is mapped"
    assert any(buffer.view)
    memory.close()


@pytest.mark.parametrize(
    ("number", "code", "fix"),
    [
        (errno.ENOENT, "no_heap", "dmaheap:linux\\,cma,size=16MiB"),
        (errno.EACCES, "not_permitted", "chmod a+rw"),
        (errno.EPERM, "not_permitted", "docker run --device"),
        (errno.EIO, "cannot_open", "dmesg"),
    ],
)
def test_no_heap(door, tmp_path, fake_proc, number, code, fix) -> None:
    heaps = tmp_path / "dma_heap"
    heaps.mkdir()
    (heaps / "linux,cma").touch()
    door.open_errnos[str(heaps / "system")] = number
    with pytest.raises(HostError) as caught:
        check_dmaheap(SPEC, 4096, SysfsRoot(tmp_path), fake_proc(), door, heaps)
    assert (caught.value.code, caught.value.errno) == (code, errno.errorcode[number])
    assert fix in str(caught.value.fix) and caught.value.why


def test_no_heaps_at_all(door, tmp_path, fake_proc) -> None:
    door.open_errnos[str(tmp_path / "nothing/system")] = errno.ENOENT
    with pytest.raises(HostError) as caught:
        check_dmaheap(SPEC, 4096, SysfsRoot(tmp_path), fake_proc(), door, tmp_path / "nothing")
    assert "CONFIG_DMABUF_HEAPS" in str(caught.value.why) and "udmabuf" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOMEM, "not_enough_memory"),
        (errno.EINVAL, "cannot_allocate"),
        (errno.ENOTTY, "no_heap"),
        (errno.EIO, "cannot_allocate"),
    ],
)
def test_the_heap_refuses(door, tmp_path, fake_proc, number, code) -> None:
    door.answers[DMA_HEAP_IOCTL_ALLOC] = number
    with pytest.raises(HostError) as caught:
        open_dmaheap(SPEC, 4096, SysfsRoot(tmp_path), fake_proc(), door)
    assert (caught.value.code, caught.value.errno) == (code, errno.errorcode[number])
    assert caught.value.fix and caught.value.why


@pytest.mark.skipif(not os.access(HEAP, os.R_OK | os.W_OK), reason=f"needs {HEAP} (root); the lab has it")
def test_the_real_one() -> None:
    memory = open_dmaheap(SPEC, 5000, SysfsRoot())
    descriptor, _ = memory.dmabuf()
    assert os.lseek(descriptor, 0, os.SEEK_END) == 8192
    memory.write_at(5, memoryview(b"abc"))
    into = bytearray(3)
    assert memory.read_at(5, memoryview(into)) == 3 and into == b"abc"
    memory.close()
