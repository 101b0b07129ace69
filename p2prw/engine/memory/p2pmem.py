"""Memory that a PCI driver gave to the kernel's P2P pool (NVMe CMB): allocated by mapping sysfs `p2pmem/allocate`.

Rules of the attribute: drivers/pci/p2pdma.c (p2pmem_alloc_mmap): MAP_SHARED, offset 0, one contiguous piece of the
pool for each mapping, given back when it is unmapped.
"""

from __future__ import annotations

import errno
import mmap
import os

from p2prw.engine.memory.device_access import DeviceBuffer
from p2prw.engine.memory.kernel_errors import kernel_error
from p2prw.engine.memory.mapped import MappedMemory, check_pattern, close_mapping, fill_as_asked
from p2prw.engine.memory.spec import size_option
from p2prw.engine.model import MemorySpec, Offer
from p2prw.engine.topology.pci import device_path, list_pci_devices, read_numa_node, read_p2pmem
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError
from p2prw.units import format_size


class P2pmemMemory(MappedMemory):
    """A `MemorySource` of P2P memory."""

    offers = frozenset({Offer.PAGES, Offer.CPU_MAPPING})
    is_device_memory = True

    def dma_view(self) -> memoryview:
        """Return the mapping for system calls that make another device reach it (O_DIRECT); no CPU access by it."""
        self.buffer  # noqa: B018 (HostError where it is closed)
        assert self._mapping is not None
        return memoryview(self._mapping)


def check_p2pmem(spec: MemorySpec, sysfs: SysfsRoot) -> int:
    """Return how many bytes would be allocated; HostError where they cannot be."""
    address = spec.arg or ""
    base = device_path(address)
    if not sysfs.exists(base):
        raise HostError(
            f"there is no PCI device {address}",
            why=f"{sysfs.absolute(base)} does not exist; {_providers(sysfs)}",
            fix="p2prw devices",
            code="no_device",
            errno=errno.ENODEV,
        )
    pool = read_p2pmem(sysfs, address)
    if pool is None:
        driver = sysfs.link_name(f"{base}/driver")
        raise HostError(
            f"PCI device {address} offers no P2P memory",
            why=f"{sysfs.absolute(base)}/p2pmem does not exist: "
            + (f"its driver {driver} gave none" if driver else "no driver is bound to it")
            + f"; it takes an NVMe controller with a CMB and CONFIG_PCI_P2PDMA; {_providers(sysfs)}",
            fix=f"p2prw devices, or bar:{address}/N to use a BAR of it",
            code="no_p2pmem",
        )
    if not pool.can_allocate:
        raise HostError(
            f"this kernel cannot allocate P2P memory of {address} for user space",
            why=f"{sysfs.absolute(base)}/p2pmem/allocate came with Linux 6.2; this is {os.uname().release}",
            fix="a newer kernel",
            code="no_p2pmem_allocate",
        )
    size = size_option(spec)
    length = pool.available_bytes if size is None else size
    if length > pool.available_bytes or pool.available_bytes == 0:
        raise HostError(
            f"{address} has {format_size(pool.available_bytes)} of P2P memory left"
            + ("" if size is None else f", not {format_size(length)}"),
            why=f"its pool is {format_size(pool.size_bytes)}; kernel users and other processes hold the rest",
            fix=f"p2pmem:{address},size={pool.available_bytes}" if pool.available_bytes else "stop who holds it",
            code="not_enough_memory",
            errno=errno.ENOMEM,
        )
    check_pattern(spec)
    os.close(_open(sysfs, address))
    return length


def open_p2pmem(spec: MemorySpec, sysfs: SysfsRoot, *, uninitialised_matters: bool = False) -> P2pmemMemory:
    """Allocate and map it. Errors: HostError for ENOMEM (fragmented), ENODEV (driver left), EINVAL, EACCES."""
    length = check_p2pmem(spec, sysfs)
    address = spec.arg or ""
    descriptor = _open(sysfs, address)
    # Zero bytes cannot be mapped, and the pool hands out pages.
    mapped_bytes = max(1, -(-length // mmap.PAGESIZE)) * mmap.PAGESIZE
    try:
        mapping = mmap.mmap(descriptor, mapped_bytes)
    except (OSError, ValueError) as error:
        raise _map_error(error, address, length) from error
    finally:
        os.close(descriptor)
    try:
        memory = P2pmemMemory(
            spec,
            DeviceBuffer.over(mapping, 0, length, bulk=True),
            mapping=mapping,
            numa_node=read_numa_node(sysfs, address),
            pci_address=address,
            warnings=(f"p2pmem:{address} is freshly allocated: it holds whatever its last user left",)
            if uninitialised_matters and "pattern" not in spec.options
            else (),
        )
    except BaseException:
        close_mapping(mapping)
        raise
    return fill_as_asked(memory)


def _open(sysfs: SysfsRoot, address: str) -> int:
    path = sysfs.absolute(f"{device_path(address)}/p2pmem/allocate")
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        reasons = {
            errno.EACCES: ("not_permitted", "the file is mode 0660, root's", f"sudo, or sudo chgrp $USER {path}"),
            errno.EPERM: ("not_permitted", "kernel lockdown or a security module forbids it", "mokutil --sb-state"),
            errno.ENOENT: ("no_device", "its driver was unbound a moment ago", "p2prw devices"),
            errno.ENODEV: ("no_device", "its driver was unbound a moment ago", "p2prw devices"),
            errno.EROFS: ("read_only", "sysfs is mounted read-only, as in containers", "docker run --privileged"),
        }
        raise kernel_error(f"cannot open {path}", error, reasons) from error


def _map_error(error: OSError | ValueError, address: str, length_bytes: int) -> HostError:
    reasons = {
        errno.ENOMEM: (
            "not_enough_memory",
            "the pool is fragmented (an allocation is one contiguous piece), or somebody was quicker",
            f"a smaller p2pmem:{address},size=",
        ),
        errno.ENODEV: ("no_device", "the driver is being unbound", "p2prw devices"),
        errno.EACCES: ("not_permitted", "the file was opened without the right to write", "sudo"),
        errno.EPERM: ("not_permitted", "kernel lockdown or a security module forbids it", "mokutil --sb-state"),
        errno.EINVAL: ("cannot_map", "this kernel wants another form of mapping", "dmesg | tail"),
    }
    what = f"cannot allocate {format_size(length_bytes)} of P2P memory of {address}"
    return kernel_error(what, error, reasons, code="cannot_map")


def _providers(sysfs: SysfsRoot) -> str:
    found = [device.address for device in list_pci_devices(sysfs) if device.p2pmem is not None]
    return f"devices with P2P memory: {', '.join(found)}" if found else "no device of this host has P2P memory"
