"""Memory that a spec can name: p2pmem providers, BARs, VFIO functions, GPUs, NIC memory, dma-buf exporters in /dev.

Rows of plain facts from sysfs and /dev; nothing is opened, and nothing needs a right. Whether bytes can get there is
`engine/routes.py` (which road) and the topology's verdict (which path).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from p2prw.engine.topology.pci import PciBar, PciDevice, device_path, list_pci_devices
from p2prw.engine.topology.sysfs import SysfsRoot

DM_DRIVERS = frozenset({"mlx5_core", "mana"})
"""PCI drivers whose RDMA side has ibv_alloc_dm (rdma-core: providers/mlx5, providers/mana)."""
_BRIDGE = 0x0604
_DISPLAY, _ACCELERATOR = 0x03, 0x12
_NVIDIA = 0x10DE


@dataclass(frozen=True, slots=True)
class MemoryDevice:
    """One row of `p2prw devices`."""

    kind: str
    """The memory kind: `p2pmem`, `bar`, `vfio`, `cuda`, `dm`, `udmabuf`, `dmaheap`; or `gpu` where no kind fits."""
    spec: str | None
    """What to type: `bar:0000:01:00.0/2`; None where it cannot be told from sysfs."""
    pci_address: str | None
    size_bytes: int | None
    """None where nothing but the driver knows, or the size is asked for (dma-buf exporters)."""
    available_bytes: int | None
    """p2pmem only."""
    driver: str | None
    numa_node: int | None
    description: str
    usable: bool
    note: str | None
    """Why it cannot be used, or what it needs."""
    bar: int | None = None
    prefetchable: bool | None = None
    is_64bit: bool | None = None
    iommu_group: int | None = None


def list_memory_devices(sysfs: SysfsRoot, dev: SysfsRoot | None = None) -> tuple[MemoryDevice, ...]:
    """Return PCI memory in address order (bridges are left out), then dma-buf exporters found in `dev` (/dev)."""
    dev = dev or SysfsRoot("/dev")
    rows = [row for device in list_pci_devices(sysfs) for row in _memory_of(device, sysfs, dev)]
    return (*rows, *_exporters(dev))


def _memory_of(device: PciDevice, sysfs: SysfsRoot, dev: SysfsRoot) -> Iterator[MemoryDevice]:
    if device.class_code >> 8 == _BRIDGE:
        return
    group = _iommu_group(sysfs, device.address)
    if device.p2pmem is not None:
        note = None if device.p2pmem.can_allocate else "no p2pmem/allocate: needs Linux 6.2"
        note = note or no_right(sysfs, f"{device_path(device.address)}/p2pmem/allocate")
        yield MemoryDevice(
            kind="p2pmem",
            spec=f"p2pmem:{device.address}",
            pci_address=device.address,
            size_bytes=device.p2pmem.size_bytes,
            available_bytes=device.p2pmem.available_bytes,
            driver=device.driver,
            numa_node=device.numa_node,
            description=f"P2P memory of {_a(device.class_name)}" + (", published" if device.p2pmem.published else ""),
            usable=note is None,
            note=note,
            iommu_group=group,
        )
    yield from _special(device, group)
    for bar in device.bars:
        usable, note = _bar_verdict(sysfs, device, bar)
        yield _bar_row("bar", device, bar, group, usable, note)
        if usable and is_vfio(device.driver):
            yield _bar_row("vfio", device, bar, group, *_vfio_verdict(dev, group))


def _bar_row(
    kind: str, device: PciDevice, bar: PciBar, group: int | None, usable: bool, note: str | None
) -> MemoryDevice:
    return MemoryDevice(
        kind=kind,
        spec=f"{kind}:{device.address}/{bar.index}",
        pci_address=device.address,
        size_bytes=bar.length_bytes,
        available_bytes=None,
        driver=device.driver,
        numa_node=device.numa_node,
        description=f"{bar.description} of {_a(device.class_name)}" + (", write-combining" if bar.has_wc else ""),
        usable=usable,
        note=note,
        bar=bar.index,
        prefetchable=bar.is_prefetchable if bar.is_memory else None,
        is_64bit=bar.is_64bit if bar.is_memory else None,
        iommu_group=group,
    )


def _special(device: PciDevice, group: int | None) -> Iterator[MemoryDevice]:
    """Memory behind a driver of its own: GPUs, and what an RDMA NIC has on board."""
    window = max((bar.length_bytes for bar in device.bars if bar.is_prefetchable), default=None)
    base_class = device.class_code >> 16
    if base_class in (_DISPLAY, _ACCELERATOR) and device.driver is not None and window is not None:
        is_cuda = device.vendor_id == _NVIDIA and device.driver == "nvidia"
        yield MemoryDevice(
            kind="cuda" if is_cuda else "gpu",
            spec=None,
            pci_address=device.address,
            size_bytes=window,
            available_bytes=None,
            driver=device.driver,
            numa_node=device.numa_node,
            description=f"memory of {_a(device.class_name)}, seen through its largest BAR",
            usable=is_cuda,
            note="cuda:N, where nvidia-smi -L counts N" if is_cuda else f"no memory kind for driver {device.driver}",
            iommu_group=group,
        )
    if device.infiniband and device.driver in DM_DRIVERS:
        yield MemoryDevice(
            kind="dm",
            spec="dm",
            pci_address=device.address,
            size_bytes=None,
            available_bytes=None,
            driver=device.driver,
            numa_node=device.numa_node,
            description=f"memory on the NIC {', '.join(device.infiniband)}",
            usable=True,
            note="sysfs does not say how much",
            iommu_group=group,
        )


def _exporters(dev: SysfsRoot) -> Iterator[MemoryDevice]:
    if dev.exists("udmabuf"):
        yield _exporter("udmabuf", "udmabuf", dev, "udmabuf", "dma-buf of anonymous memory")
    for heap in dev.list("dma_heap"):
        yield _exporter("dmaheap", f"dmaheap:{heap}", dev, f"dma_heap/{heap}", f"dma-buf of the heap {heap!r}")


def _exporter(kind: str, spec: str, dev: SysfsRoot, path: str, what: str) -> MemoryDevice:
    may = dev.may_open(path)
    return MemoryDevice(
        kind=kind,
        spec=spec,
        pci_address=None,
        size_bytes=None,
        available_bytes=None,
        driver=None,
        numa_node=None,
        description=f"{what} ({dev.absolute(path)})",
        usable=may,
        note=None if may else f"this user may not open {dev.absolute(path)}",
    )


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "AEIOUaeiou" or noun.startswith("NVMe") else f"a {noun}"


def is_vfio(driver: str | None) -> bool:
    """Tell whether a function is handed to VFIO: vfio-pci, or a variant driver such as mlx5_vfio_pci."""
    return driver is not None and "vfio" in driver


def _vfio_verdict(dev: SysfsRoot, group: int | None) -> tuple[bool, str | None]:
    """The group file is the older way in; /dev/vfio/devices (iommufd) is not looked at here."""
    path = f"vfio/{group}"
    if group is None or not dev.exists(path):
        return False, "no group in /dev/vfio: it takes an IOMMU, or noiommu mode"
    return (True, None) if dev.may_open(path) else (False, f"this user may not open {dev.absolute(path)}")


def _iommu_group(sysfs: SysfsRoot, address: str) -> int | None:
    name = sysfs.link_name(f"{device_path(address)}/iommu_group")
    return int(name) if name is not None and name.isdigit() else None


def no_right(sysfs: SysfsRoot, path: str) -> str | None:
    """Return what to say where this process may not open a file that is there."""
    if sysfs.may_open(path):
        return None
    return f"this user may not open {path.rpartition('/devices/')[2].partition('/')[2]} (root's)"


def _bar_verdict(sysfs: SysfsRoot, device: PciDevice, bar: PciBar) -> tuple[bool, str | None]:
    if not bar.is_memory:
        return False, "I/O ports cannot be mapped"
    if not bar.is_assigned:
        return False, "no address was assigned to it"
    if not bar.mappable:
        return False, f"no resource{bar.index} in sysfs"
    right = no_right(sysfs, f"{device_path(device.address)}/resource{bar.index}")
    if right is not None:
        return False, right
    if device.driver is not None:
        return True, f"driver {device.driver} is bound: a sink needs --force-bound-device"
    return True, None
