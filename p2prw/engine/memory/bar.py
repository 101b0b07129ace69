"""A BAR of a PCI device, mapped from sysfs `resourceN` (`resourceN_wc` where there is one).

The mapping is VM_IO | VM_PFNMAP: no struct page is behind it, so nothing can pin it; the CPU copies, by the rules of
`device_access`. Source: drivers/pci/pci-sysfs.c (pci_mmap_resource), drivers/pci/mmap.c.
"""

from __future__ import annotations

import errno
import mmap
import os
from dataclasses import dataclass

from p2prw.engine.memory.device_access import DeviceBuffer
from p2prw.engine.memory.kernel_errors import kernel_error
from p2prw.engine.memory.mapped import MappedMemory, close_mapping
from p2prw.engine.memory.spec import format_memory_spec, size_option
from p2prw.engine.model import MemorySpec, Offer
from p2prw.engine.topology.pci import (
    PciBar,
    PciDevice,
    device_path,
    list_pci_devices,
    read_memory_decoding,
    read_pci_device,
)
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError
from p2prw.units import format_size


class BarMemory(MappedMemory):
    """A `MemorySource` of a BAR: a CPU mapping and no pages."""

    offers = frozenset({Offer.CPU_MAPPING})
    is_device_memory = True
    bulk = False

    def commit(self) -> None:
        """Have posted and write-combined stores arrive: a load from the same function pushes them (PCIe 6.0, 2.4.1)."""
        # Only where a load has no side effects.
        if self.bulk and self._writable and self.length_bytes:
            self.buffer.load(0, 1)


def is_vfio_driver(driver: str | None) -> bool:
    """Tell vfio-pci and its variants (mlx5-vfio-pci, ...): the function is there for `vfio:`."""
    return driver is not None and "vfio" in driver


def spec_through_vfio(spec: MemorySpec) -> str:
    """Return the same range as `vfio:` names it."""
    return format_memory_spec(MemorySpec("vfio", spec.arg, spec.options))


@dataclass(frozen=True, slots=True)
class BarRange:
    """What is to be mapped of which BAR."""

    device: PciDevice
    bar: PciBar
    offset: int
    length_bytes: int

    @property
    def bulk(self) -> bool:
        """Merging and reordering accesses is harmless."""
        return self.bar.is_prefetchable or self.bar.has_wc

    @property
    def pages(self) -> tuple[int, int, int]:
        """What is to be mapped for it: (first page's offset in the BAR, the range's offset in that page, bytes)."""
        page_start = self.offset // mmap.PAGESIZE * mmap.PAGESIZE
        if page_start and page_start == self.bar.length_bytes:
            # An empty range at the very end still needs a page to be mapped.
            page_start -= mmap.PAGESIZE
        delta = self.offset - page_start
        return page_start, delta, max(1, delta + self.length_bytes)


def check_bar(spec: MemorySpec, sysfs: SysfsRoot, *, writable: bool, force_bound_device: bool = False) -> BarRange:
    """Return the range a `bar:` spec means; HostError for everything that can be seen without a peer, mmap included."""
    wanted = find_range(spec, sysfs)
    _check_file(wanted, sysfs)
    device = wanted.device
    held_by_vfio = is_vfio_driver(device.driver)
    enable = sysfs.absolute(f"{device_path(device.address)}/enable")
    unbind = f"echo {device.address} | sudo tee {sysfs.absolute(device_path(device.address))}/driver/unbind"
    if writable and device.driver is not None and not force_bound_device:
        raise HostError(
            f"driver {device.driver} is bound to {device.address}",
            why="whoever opens it through VFIO owns it: this would be writing behind their back"
            if held_by_vfio
            else "writing to a BAR under its driver can hang the device or the host",
            fix=f"{spec_through_vfio(spec)}, or {unbind}"
            if held_by_vfio
            else f"{unbind}, or --force-bound-device when you know what lies there",
            code="bound_device",
        )
    if read_memory_decoding(sysfs, device.address) is False:
        raise HostError(
            f"{device.address} does not answer memory accesses: its memory decoding is off",
            why="reads would give all ones, and writes would be lost"
            + (f"; {device.driver} switches it off while nobody has opened it" if held_by_vfio else ""),
            fix=spec_through_vfio(spec)
            if held_by_vfio
            else f"echo 1 | sudo tee {enable}, or sudo setpci -s {device.address} COMMAND=2:2",
            code="decoding_off",
        )
    # The kernel decides at mmap, not at open; better now than when a peer waits.
    close_mapping(_map(wanted, sysfs, writable)[0])
    return wanted


def open_bar(spec: MemorySpec, sysfs: SysfsRoot, *, writable: bool, force_bound_device: bool = False) -> BarMemory:
    """Map it. A source is mapped read-only."""
    wanted = check_bar(spec, sysfs, writable=writable, force_bound_device=force_bound_device)
    mapping, delta = _map(wanted, sysfs, writable)
    warnings = []
    if not wanted.bulk:
        warnings.append(f"{spec.text}: not prefetchable, so it is copied word by word, and loads may have side effects")
    if wanted.device.driver is not None and not writable:
        warnings.append(f"{spec.text}: driver {wanted.device.driver} is bound and may be using it")
    try:
        memory = BarMemory(
            spec,
            DeviceBuffer.over(mapping, delta, wanted.length_bytes, bulk=wanted.bulk),
            mapping=mapping,
            writable=writable,
            numa_node=wanted.device.numa_node,
            pci_address=wanted.device.address,
            warnings=tuple(warnings),
        )
    except BaseException:
        close_mapping(mapping)
        raise
    memory.bulk = wanted.bulk
    return memory


def find_range(spec: MemorySpec, sysfs: SysfsRoot) -> BarRange:
    """Return the range that a `bar:` or `vfio:` spec names; HostError where there is no such device, BAR or range."""
    address, _, number = (spec.arg or "").rpartition("/")
    device = read_pci_device(sysfs, address)
    if device is None:
        known = [other.address for other in list_pci_devices(sysfs) if any(bar.is_memory for bar in other.bars)]
        raise HostError(
            f"there is no PCI device {address}",
            why=f"{sysfs.absolute(device_path(address))} does not exist; devices with BARs: "
            + (", ".join(known[:16]) or "none")
            + (f" and {len(known) - 16} more" if len(known) > 16 else ""),
            fix="p2prw devices",
            code="no_device",
            errno=errno.ENODEV,
        )
    bar = device.bar(int(number))
    if bar is None:
        present = "; ".join(f"{b.index}: {format_size(b.length_bytes)} {b.description}" for b in device.bars)
        upper = device.bar(int(number) - 1)
        is_upper_half = upper is not None and upper.is_64bit
        raise HostError(
            f"{address} has no BAR {number}",
            why=(f"it is the upper half of 64-bit BAR {int(number) - 1}; " if is_upper_half else "")
            + (f"its BARs are {present}" if present else "it has no BARs"),
            fix=f"{spec.kind}:{address}/{device.bars[0].index}" if device.bars else "p2prw devices",
            code="no_bar",
        )
    _check_memory(spec, device, bar)
    offset = size_option(spec, "offset") or 0
    size = size_option(spec)
    if offset > bar.length_bytes or offset + (size or 0) > bar.length_bytes:
        raise HostError(
            f"BAR {bar.index} of {address} is {bar.length_bytes} bytes ({format_size(bar.length_bytes)})",
            why=f"offset={offset} and size={size or 0} ask for {offset + (size or 0)}",
            fix=f"{spec.kind}:{address}/{bar.index},offset={min(offset, bar.length_bytes)},"
            f"size={max(0, bar.length_bytes - offset)}",
            code="out_of_range",
            errno=errno.EINVAL,
        )
    return BarRange(device, bar, offset, bar.length_bytes - offset if size is None else size)


def _check_memory(spec: MemorySpec, device: PciDevice, bar: PciBar) -> None:
    name = f"BAR {bar.index} of {device.address}"
    memory_bars = [other for other in device.bars if other.is_memory]
    if not bar.is_memory:
        raise HostError(
            f"{name} is I/O ports, not memory",
            why="ports are reached by in and out instructions; there is nothing to map",
            fix=f"{spec.kind}:{device.address}/{memory_bars[0].index}" if memory_bars else "p2prw devices",
            code="io_bar",
        )
    if not bar.is_assigned:
        raise HostError(
            f"{name} has no address",
            why="firmware and kernel found no room for it",
            fix='boot with pci=realloc, or switch "Above 4G decoding" on in the firmware',
            code="bar_unassigned",
        )


def _check_file(wanted: BarRange, sysfs: SysfsRoot) -> None:
    device, bar = wanted.device, wanted.bar
    name = f"BAR {bar.index} of {device.address}"
    if not bar.mappable:
        file = sysfs.absolute(f"{device_path(device.address)}/resource{bar.index}")
        raise HostError(
            f"{name} cannot be mapped: there is no {file}",
            why="the kernel makes no such file for this device (non_mappable_bars), or the container hides it",
            fix="run on the host",
            code="not_mappable",
            errno=errno.ENOENT,
        )
    # pci_mmap_resource maps whole pages, so a small BAR that begins inside one would be off by that much.
    if bar.start % mmap.PAGESIZE:
        raise HostError(
            f"{name} begins inside a page ({bar.length_bytes} bytes at 0x{bar.start:x})",
            why="a mapping would show its neighbours' registers too",
            fix="pci=resource_alignment on the kernel command line moves it to a page of its own",
            code="not_mappable",
        )


def _map(wanted: BarRange, sysfs: SysfsRoot, writable: bool) -> tuple[mmap.mmap, int]:
    """Return (mapping, offset of the range's first byte in it)."""
    suffix = "_wc" if wanted.bar.has_wc else ""
    path = sysfs.absolute(f"{device_path(wanted.device.address)}/resource{wanted.bar.index}{suffix}")
    page_start, delta, length = wanted.pages
    try:
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        raise _open_error(error, str(path)) from error
    try:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(descriptor, length, mmap.MAP_SHARED, protection, offset=page_start), delta
    except (OSError, ValueError) as error:
        raise _map_error(error, str(path), wanted) from error
    finally:
        os.close(descriptor)


def _open_error(error: OSError, path: str) -> HostError:
    reasons = {
        errno.EACCES: ("not_permitted", "the file is mode 0600, root's", "sudo"),
        errno.EPERM: (
            "not_permitted",
            "kernel lockdown (Secure Boot) forbids it to root too",
            "cat /sys/kernel/security/lockdown; switch Secure Boot off, or use vfio-pci",
        ),
        errno.EROFS: ("read_only", "sysfs is mounted read-only, as in containers", "docker run --privileged"),
        errno.ENOENT: ("no_device", "the device was removed a moment ago", "p2prw devices"),
        errno.ENODEV: ("no_device", "the device was removed a moment ago", "p2prw devices"),
    }
    return kernel_error(f"cannot open {path}", error, reasons)


def _map_error(error: OSError | ValueError, path: str, wanted: BarRange) -> HostError:
    address, driver = wanted.device.address, wanted.device.driver
    held_by = (
        f"driver {driver} holds the BAR and the kernel keeps others out (CONFIG_IO_STRICT_DEVMEM)"
        if driver
        else "somebody holds the BAR exclusively (CONFIG_IO_STRICT_DEVMEM), or the range is not in it"
    )
    unbind = (
        f"vfio:{address}/{wanted.bar.index}, or "
        if is_vfio_driver(driver)
        else f"echo {address} | sudo tee /sys/bus/pci/devices/{address}/driver/unbind, or "
    )
    reasons = {
        errno.EINVAL: ("bar_held", held_by, (unbind if driver else "") + "boot with iomem=relaxed"),
        errno.EPERM: (
            "not_permitted",
            "kernel lockdown (Secure Boot) forbids mapping BARs, to root too",
            "cat /sys/kernel/security/lockdown; switch Secure Boot off, or use vfio-pci",
        ),
        errno.EACCES: ("not_permitted", "a security module forbids it", "sudo dmesg | tail"),
        errno.ENOMEM: ("not_enough_memory", "the address space limit (ulimit -v) is in the way", "a smaller size="),
        errno.ENODEV: ("no_device", "the device is being removed", "p2prw devices"),
    }
    return kernel_error(f"cannot map {format_size(wanted.length_bytes)} of {path}", error, reasons, code="cannot_map")
