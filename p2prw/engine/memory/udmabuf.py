"""Pages of a memfd as a dma-buf, made by /dev/udmabuf: the dma-buf that needs no device, so the one to try a NIC with.

Source: drivers/dma-buf/udmabuf.c, include/uapi/linux/udmabuf.h. The memfd itself is what gets mapped: it is ordinary
shared memory, so its mapping has struct pages, which the mapping of a dma-buf (VM_PFNMAP) has not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from p2prw.engine.memory.dmabuf import DmabufMemory, check_allocation, map_fresh, page_rounded
from p2prw.engine.memory.kernel_door import KERNEL, KernelDoor
from p2prw.engine.memory.kernel_errors import kernel_error
from p2prw.engine.model import MemorySpec, Offer
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError
from p2prw.units import MIB, format_size

DEVICE = "/dev/udmabuf"
UDMABUF_CREATE = 0x40187542  # _IOW('u', 0x42, struct udmabuf_create)
_CREATE = struct.Struct("=IIQQ")  # memfd, flags, offset, size
_FLAGS_CLOEXEC = 1
_SIZE_LIMIT = "module/udmabuf/parameters/size_limit_mb"


class UdmabufMemory(DmabufMemory):
    """A `MemorySource` of memfd pages behind a dma-buf."""

    offers = frozenset({Offer.DMABUF, Offer.CPU_MAPPING, Offer.PAGES})


def check_udmabuf(
    spec: MemorySpec, length_bytes: int, sysfs: SysfsRoot, proc: Path = Path("/proc"), door: KernelDoor = KERNEL
) -> None:
    """Raise HostError where `open_udmabuf` is bound to fail: no device, no right, above the module's limit."""
    door.close(_open(door))
    limit_mb = sysfs.read_int(_SIZE_LIMIT)
    if limit_mb is not None and length_bytes > limit_mb * MIB:
        raise HostError(
            f"a udmabuf of {format_size(length_bytes)} is more than the kernel makes",
            why=f"{sysfs.absolute(_SIZE_LIMIT)} is {limit_mb}",
            fix=f"echo {-(-length_bytes // MIB)} | sudo tee {sysfs.absolute(_SIZE_LIMIT)}, or size={limit_mb}MiB",
            code="too_big",
            errno=errno.EINVAL,
        )
    check_allocation(spec, length_bytes, sysfs, proc)


def open_udmabuf(
    spec: MemorySpec,
    length_bytes: int,
    sysfs: SysfsRoot,
    proc: Path = Path("/proc"),
    door: KernelDoor = KERNEL,
) -> DmabufMemory:
    """Make a memfd that cannot shrink, a dma-buf of it, and map it. The kernel allocates and pins every page in it."""
    check_udmabuf(spec, length_bytes, sysfs, proc, door)
    size = page_rounded(length_bytes)
    memfd = os.memfd_create("p2prw-udmabuf", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memfd, size)
        # udmabuf takes a memfd only where nobody can take its pages away again.
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        device = _open(door)
        try:
            descriptor = door.ioctl(device, UDMABUF_CREATE, bytearray(_CREATE.pack(memfd, _FLAGS_CLOEXEC, 0, size)))
        except OSError as error:
            raise _create_error(error, size) from error
        finally:
            door.close(device)
        return map_fresh(UdmabufMemory, spec, length_bytes, descriptor, door, mapped_from=memfd)
    finally:
        os.close(memfd)


def _open(door: KernelDoor) -> int:
    try:
        return door.open(DEVICE, os.O_RDWR)
    except OSError as error:
        reasons = {
            errno.ENOENT: (
                "no_device",
                "this kernel has no udmabuf (CONFIG_UDMABUF), or the container hides it",
                "sudo modprobe udmabuf; docker run --device /dev/udmabuf",
            ),
            errno.EACCES: ("not_permitted", "it belongs to root or to group kvm", f"sudo, or sudo chmod a+rw {DEVICE}"),
            errno.EPERM: ("not_permitted", "the container's device rules forbid it", f"docker run --device {DEVICE}"),
        }
        raise kernel_error(f"cannot open {DEVICE}", error, reasons) from error


def _create_error(error: OSError, size_bytes: int) -> HostError:
    reasons = {
        errno.EINVAL: (
            "too_big",
            "it is above the module's size_limit_mb, or this kernel wants other seals on the memfd",
            f"echo {-(-size_bytes // MIB)} | sudo tee /sys/{_SIZE_LIMIT}",
        ),
        errno.ENOMEM: ("not_enough_memory", "the pages cannot be allocated or pinned", "a smaller size="),
        errno.ENOTTY: ("no_udmabuf", f"{DEVICE} is something else here", f"ls -l {DEVICE}"),
    }
    return kernel_error(f"cannot make a udmabuf of {format_size(size_bytes)}", error, reasons, code="cannot_allocate")
