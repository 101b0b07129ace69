"""A buffer of a dma-heap (/dev/dma_heap/NAME): what drivers share their buffers with.

Source: drivers/dma-buf/dma-heap.c, heaps/system_heap.c, include/uapi/linux/dma-heap.h. The heap maps it by
remap_pfn_range, so there are no struct pages to pin behind the mapping, though there are behind the buffer.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from p2prw.engine.memory.dmabuf import DmabufMemory, check_allocation, map_fresh, page_rounded
from p2prw.engine.memory.kernel_door import KERNEL, KernelDoor
from p2prw.engine.memory.kernel_errors import kernel_error
from p2prw.engine.memory.spec import format_memory_spec
from p2prw.engine.model import MemorySpec
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError
from p2prw.units import format_size

HEAPS = Path("/dev/dma_heap")
DMA_HEAP_IOCTL_ALLOC = 0xC0184800  # _IOWR('H', 0, struct dma_heap_allocation_data)
_ALLOCATION = struct.Struct("=QIIQ")  # len, fd, fd_flags, heap_flags


def check_dmaheap(
    spec: MemorySpec,
    length_bytes: int,
    sysfs: SysfsRoot,
    proc: Path = Path("/proc"),
    door: KernelDoor = KERNEL,
    heaps: Path = HEAPS,
) -> None:
    """Raise HostError where `open_dmaheap` is bound to fail: no such heap, no right, no memory."""
    check_allocation(spec, length_bytes, sysfs, proc)
    door.close(_open(spec, door, heaps))


def open_dmaheap(
    spec: MemorySpec,
    length_bytes: int,
    sysfs: SysfsRoot,
    proc: Path = Path("/proc"),
    door: KernelDoor = KERNEL,
    heaps: Path = HEAPS,
) -> DmabufMemory:
    """Allocate zeroed memory from the heap and map it."""
    check_allocation(spec, length_bytes, sysfs, proc)
    size = page_rounded(length_bytes)
    heap = _open(spec, door, heaps)
    try:
        request = bytearray(_ALLOCATION.pack(size, 0, os.O_RDWR | os.O_CLOEXEC, 0))
        door.ioctl(heap, DMA_HEAP_IOCTL_ALLOC, request)
    except OSError as error:
        raise _allocation_error(error, spec, size) from error
    finally:
        door.close(heap)
    descriptor = _ALLOCATION.unpack(request)[1]
    return map_fresh(DmabufMemory, spec, length_bytes, descriptor, door, mapped_from=descriptor)


def _open(spec: MemorySpec, door: KernelDoor, heaps: Path) -> int:
    path = heaps / (spec.arg or "")
    try:
        return door.open(str(path), os.O_RDWR)
    except OSError as error:
        names = sorted(one.name for one in heaps.iterdir()) if heaps.is_dir() else []
        known = f"heaps here: {', '.join(names)}" if names else f"there is no {heaps}"
        reasons = {
            errno.ENOENT: (
                "no_heap",
                f"{known}; it takes CONFIG_DMABUF_HEAPS and a heap (CONFIG_DMABUF_HEAPS_SYSTEM for `system`)",
                format_memory_spec(MemorySpec("dmaheap", names[0], {"size": "16MiB"}))
                if names
                else f"udmabuf,size=16MiB, or docker run --device {path}",
            ),
            errno.EACCES: ("not_permitted", "heaps are mode 0600, root's", f"sudo, or sudo chmod a+rw {path}"),
            errno.EPERM: ("not_permitted", "the container's device rules forbid it", f"docker run --device {path}"),
        }
        raise kernel_error(f"cannot open {path}", error, reasons) from error


def _allocation_error(error: OSError, spec: MemorySpec, size_bytes: int) -> HostError:
    reasons = {
        errno.ENOMEM: (
            "not_enough_memory",
            "the heap has not that much, or it is more than half of this host's memory",
            f"a smaller dmaheap:{spec.arg},size=",
        ),
        errno.EINVAL: ("cannot_allocate", "this heap wants other flags or another size", "dmesg | tail"),
        errno.ENOTTY: ("no_heap", f"{spec.arg} is no dma-heap", f"ls -l {HEAPS}"),
    }
    what = f"cannot allocate {format_size(size_bytes)} from heap {spec.arg}"
    return kernel_error(what, error, reasons, code="cannot_allocate")
