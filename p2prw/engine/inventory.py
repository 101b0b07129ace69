"""Everything `p2prw devices` shows: what moves bytes, by which routes, what memory there is, and what cannot be seen.

Needs no privilege and no RDMA. What cannot be seen is a row of its own with the reason: an empty list must never look
like "there is none".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from p2prw.engine.devices import list_devices
from p2prw.engine.memory.cuda_driver import CudaDriver, CudaError
from p2prw.engine.model import DeviceInfo
from p2prw.engine.providers.verbs_sysfs import CLASS, hca_names, read_hca
from p2prw.engine.routes import KindRoutes, routes_by_kind
from p2prw.engine.topology.memory_devices import MemoryDevice, list_memory_devices
from p2prw.engine.topology.pci import PCI_DEVICES, normalise_bdf
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device that moves bytes, and which routes it may take to which kind of memory."""

    info: DeviceInfo
    routes: tuple[KindRoutes, ...]


@dataclass(frozen=True, slots=True)
class Unseen:
    """Something that may be there and cannot be seen from here."""

    what: str
    why: str
    fix: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """One host."""

    devices: tuple[DeviceRow, ...]
    memory: tuple[MemoryDevice, ...]
    unseen: tuple[Unseen, ...]


def take_inventory(
    verbs_binding: str = "auto", sysfs: SysfsRoot | None = None, dev: SysfsRoot | None = None
) -> Inventory:
    """Return what this host has. An attribute that may not be read becomes a row of `unseen`, never an error."""
    sysfs, dev = sysfs or SysfsRoot(), dev or SysfsRoot("/dev")
    unseen: list[Unseen] = []
    infos: tuple[DeviceInfo, ...] = ()
    memory: tuple[MemoryDevice, ...] = ()
    try:
        infos = list_devices(verbs_binding, sysfs)
    except HostError as error:
        unseen.append(Unseen("devices", error.what, error.fix or "ip link set dev lo up"))
    try:
        memory = list_memory_devices(sysfs, dev)
    except HostError as error:
        unseen.append(Unseen("memory of PCI devices", error.what, error.fix or "run as root"))
    memory = _with_sizes(infos, memory)
    if any(row.kind == "cuda" for row in memory):
        try:
            memory = _with_numbers(memory)
        except (OSError, CudaError) as error:
            unseen.append(Unseen("numbers of GPUs", f"libcuda does not tell: {error}", "nvidia-smi -L"))
    return Inventory(
        tuple(DeviceRow(info, routes_by_kind(info, _unfit(sysfs, info))) for info in infos),
        memory,
        (*unseen, *_unseen(sysfs, dev, memory)),
    )


def _with_sizes(infos: tuple[DeviceInfo, ...], memory: tuple[MemoryDevice, ...]) -> tuple[MemoryDevice, ...]:
    """Fill in how much memory of their own the NICs have that could be opened."""
    sizes = {info.pci_address: info.limits.max_dm_bytes for info in infos if info.opened and info.pci_address}

    def sized(row: MemoryDevice) -> MemoryDevice:
        if row.kind != "dm" or row.pci_address not in sizes:
            return row
        size = sizes[row.pci_address]
        return replace(row, size_bytes=size, usable=size > 0, note=None if size else "the device offers none")

    return tuple(map(sized, memory))


def _with_numbers(
    memory: tuple[MemoryDevice, ...], open_driver: Callable[[], CudaDriver] = CudaDriver
) -> tuple[MemoryDevice, ...]:
    """Name GPUs as `cuda:` counts them: CUDA's own order, which sysfs does not know. OSError, CudaError."""
    driver = open_driver()
    numbers = {normalise_bdf(driver.pci_address(gpu)): gpu for gpu in range(driver.count())}

    def numbered(row: MemoryDevice) -> MemoryDevice:
        number = numbers.get(row.pci_address) if row.kind == "cuda" else None
        return row if number is None else replace(row, spec=f"cuda:{number}", note=None)

    return tuple(map(numbered, memory))


def _unfit(sysfs: SysfsRoot, info: DeviceInfo) -> str | None:
    hca = read_hca(sysfs, info.name) if info.provider == "verbs" else None
    return hca.unfit if hca else None


def _unseen(sysfs: SysfsRoot, dev: SysfsRoot, memory: tuple[MemoryDevice, ...]) -> list[Unseen]:
    found = []
    if not hca_names(sysfs):
        found.append(
            Unseen(
                "verbs devices",
                f"{sysfs.absolute(CLASS)} "
                + ("is empty: no driver made one" if sysfs.exists(CLASS) else "is not there: no RDMA core is loaded"),
                "modprobe -a ib_uverbs rdma_rxe; rdma link add rxe0 type rxe netdev eth0   (software RoCE)",
            )
        )
    if not sysfs.list(PCI_DEVICES):
        found.append(
            Unseen(
                "PCI memory",
                f"{sysfs.absolute(PCI_DEVICES)} shows no device: a container or virtual machine without PCI",
                "p2prw devices   (on the host itself)",
            )
        )
    kinds = {row.kind for row in memory}
    if "udmabuf" not in kinds:
        found.append(Unseen("udmabuf", f"{dev.absolute('udmabuf')} is not there", "modprobe udmabuf"))
    if "dmaheap" not in kinds:
        found.append(
            Unseen(
                "dma-buf heaps",
                f"{dev.absolute('dma_heap')} is not there: no CONFIG_DMABUF_HEAPS, or a container without it",
                "docker run --device /dev/dma_heap/system   (in a container)",
            )
        )
    return found
