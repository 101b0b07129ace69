"""A BAR of a function that is bound to vfio-pci: mapped for the CPU through VFIO, exported as a dma-buf for a NIC.

vfio-pci is the driver here: there is nobody to write behind the back of, and --force-bound-device has no say. Nothing
has struct pages, neither the mapping (VM_IO, VM_PFNMAP) nor the dma-buf (drivers/vfio/pci/vfio_pci_dmabuf.c).
"""

from __future__ import annotations

import errno
import mmap
import os

from p2prw.engine.memory.bar import BarMemory, BarRange, find_range
from p2prw.engine.memory.device_access import DeviceBuffer
from p2prw.engine.memory.kernel_door import KERNEL, KernelDoor
from p2prw.engine.memory.kernel_errors import kernel_error
from p2prw.engine.memory.mapped import close_mapping
from p2prw.engine.memory.vfio_function import VFIO, Vfio, VfioFunction
from p2prw.engine.model import MemorySpec, Offer
from p2prw.engine.topology.pci import device_path
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError
from p2prw.units import format_size


class VfioMemory(BarMemory):
    """A `MemorySource` of a BAR behind vfio-pci: a CPU mapping, a dma-buf, no pages."""

    offers = frozenset({Offer.DMABUF, Offer.CPU_MAPPING})

    def __init__(
        self,
        spec: MemorySpec,
        wanted: BarRange,
        function: VfioFunction,
        mapping: mmap.mmap,
        *,
        writable: bool,
        warnings: tuple[str, ...],
        door: KernelDoor,
    ) -> None:
        """Own `function` and `mapping` from here on."""
        super().__init__(
            spec,
            DeviceBuffer.over(mapping, wanted.pages[1], wanted.length_bytes, bulk=wanted.bulk),
            mapping=mapping,
            writable=writable,
            numa_node=wanted.device.numa_node,
            pci_address=wanted.device.address,
            warnings=warnings,
        )
        self.bulk = wanted.bulk
        self._range = wanted
        self._function: VfioFunction | None = function
        self._door = door
        self._descriptor: int | None = None

    def dmabuf(self) -> tuple[int, int]:
        """Return (descriptor, offset of the memory's first byte in it). HostError with the exporter's errno.

        Exported at the first call; the kernel exports whole pages, so the pages around the range are.
        """
        page_start, delta, length = self._range.pages
        if self._descriptor is None and self._function is not None:
            whole_pages = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
            try:
                self._descriptor = self._function.export(self._range.bar.index, [(page_start, whole_pages)])
            except OSError as error:
                raise _export_error(error, self._range) from error
        if self._descriptor is None:
            raise self._closed_error()
        return self._descriptor, delta

    def close(self) -> None:
        """Unmap, let go of the dma-buf and the function. vfio-pci revokes the buffer, and resets what can be reset."""
        super().close()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._door.close(descriptor)
        function, self._function = self._function, None
        if function is not None:
            function.close()


def check_vfio(spec: MemorySpec, sysfs: SysfsRoot, vfio: Vfio = VFIO) -> BarRange:
    """Return the range a `vfio:` spec means; HostError for everything that shows without opening the function."""
    wanted = find_range(spec, sysfs)
    vfio.check(sysfs, wanted.device.address)
    return wanted


def open_vfio(
    spec: MemorySpec, sysfs: SysfsRoot, *, writable: bool, vfio: Vfio = VFIO, door: KernelDoor = KERNEL
) -> VfioMemory:
    """Open the function, see that it answers, map the range. A source is mapped read-only."""
    wanted = find_range(spec, sysfs)
    function = vfio.open(sysfs, wanted.device.address)
    try:
        mapping = _map(wanted, function, writable)
        try:
            warnings = _warnings(spec, wanted, sysfs)
            return VfioMemory(spec, wanted, function, mapping, writable=writable, warnings=warnings, door=door)
        except BaseException:
            close_mapping(mapping)
            raise
    except BaseException:
        function.close()
        raise


def _map(wanted: BarRange, function: VfioFunction, writable: bool) -> mmap.mmap:
    name = f"BAR {wanted.bar.index} of {wanted.device.address}"
    page_start, _, length = wanted.pages
    try:
        if not function.enable_memory():
            raise HostError(
                f"{wanted.device.address} does not answer memory accesses: its memory decoding stays off",
                why="it is in reset or in a low-power state, and does not leave it",
                fix=f"lspci -vvs {wanted.device.address}; dmesg | tail",
                code="decoding_off",
            )
        region = function.region(wanted.bar.index)
        if not region.can_map or region.length_bytes < page_start + length:
            raise HostError(
                f"{name} cannot be mapped through VFIO",
                why="vfio-pci maps a BAR that fills whole pages which no other resource shares",
                fix="pci=resource_alignment on the kernel command line moves it to pages of its own",
                code="not_mappable",
            )
        return function.map(region, page_start, length, writable=writable)
    except (OSError, ValueError) as error:
        raise kernel_error(
            f"cannot map {format_size(wanted.length_bytes)} of {name} through VFIO",
            error,
            code="cannot_map",
            why="the function was reset or unbound a moment ago, or the address space limit (ulimit -v) is in the way",
        ) from error


def _warnings(spec: MemorySpec, wanted: BarRange, sysfs: SysfsRoot) -> tuple[str, ...]:
    found = []
    if not wanted.bulk:
        found.append(f"{spec.text}: not prefetchable, so it is copied word by word, and loads may have side effects")
    if sysfs.read_text(f"{device_path(wanted.device.address)}/reset_method"):
        # vfio_pci_core_enable and vfio_pci_core_disable, drivers/vfio/pci/vfio_pci_core.c
        found.append(f"{spec.text}: vfio-pci resets the function when it is opened first and closed last")
    return tuple(found)


def _export_error(error: OSError, wanted: BarRange) -> HostError:
    name = f"BAR {wanted.bar.index} of {wanted.device.address}"
    reasons = {
        errno.ENOTTY: (
            "no_vfio_dmabuf",
            f"VFIO_DEVICE_FEATURE_DMA_BUF came with Linux 6.19; this is {os.uname().release}",
            "a newer kernel, or leave --route away (bounce)",
        ),
        errno.EOPNOTSUPP: (
            "no_vfio_dmabuf",
            f"{wanted.device.driver} exports no dma-bufs (CONFIG_VFIO_PCI_DMABUF, or a driver variant without them)",
            "vfio-pci itself, or leave --route away (bounce)",
        ),
        errno.EINVAL: (
            "no_vfio_dmabuf",
            "the exported range is whole pages of a memory BAR, and this one is not (a BAR smaller than a page?)",
            "leave --route away (bounce)",
        ),
        errno.ENODEV: ("revoked", "its memory decoding is off, it is in reset, or it has no such BAR", "dmesg | tail"),
        errno.EOVERFLOW: ("out_of_range", "the range ends beyond 64 bits", "a smaller size="),
        errno.EPERM: ("not_permitted", "a security module forbids it", "sudo dmesg | tail"),
    }
    return kernel_error(f"cannot export {name} as a dma-buf", error, reasons, code="no_vfio_dmabuf")
