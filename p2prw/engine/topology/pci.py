"""PCI devices as sysfs shows them: BARs, driver, NUMA node, class, published P2P memory. Plain data, no verdicts.

Sources: drivers/pci/pci-sysfs.c (`resource`, `enable`, `numa_node`), drivers/pci/p2pdma.c (`p2pmem/`),
include/linux/ioport.h (IORESOURCE_*).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2prw.engine.topology.sysfs import SysfsRoot

PCI_DEVICES = "bus/pci/devices"
STANDARD_BARS = 6

# include/linux/ioport.h
IORESOURCE_IO = 0x100
IORESOURCE_MEM = 0x200
IORESOURCE_PREFETCH = 0x2000
IORESOURCE_MEM_64 = 0x100000
IORESOURCE_DISABLED = 0x10000000
IORESOURCE_UNSET = 0x20000000

_BDF = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])", re.IGNORECASE)

# include/linux/pci_ids.h, the classes one meets next to an RDMA NIC; the rest is shown as a number.
_CLASSES = {
    0x0108: "NVMe controller",
    0x0200: "Ethernet controller",
    0x0207: "InfiniBand controller",
    0x0280: "network controller",
    0x0300: "VGA controller",
    0x0302: "3D controller",
    0x0380: "display controller",
    0x0500: "RAM",
    0x0580: "memory controller",
    0x0604: "PCI bridge",
    0x1200: "processing accelerator",
    0xFF00: "unassigned class",
}


def normalise_bdf(text: str) -> str | None:
    """Return `0000:01:00.0` for `01:00.0` or `0:1:0.0`; None where the text is no PCI address."""
    match = _BDF.fullmatch(text.strip())
    if not match:
        return None
    domain, bus, device, function = match.groups()
    if int(device, 16) > 0x1F:
        return None
    return f"{int(domain or '0', 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}.{function}"


@dataclass(frozen=True, slots=True)
class PciBar:
    """One standard BAR (0 to 5) that is there; absent ones are not listed."""

    index: int
    start: int
    """Bus address as the CPU sees it (root's view of `resource`)."""
    length_bytes: int
    flags: int
    mappable: bool
    """`resourceN` exists."""
    has_wc: bool
    """`resourceN_wc` exists: prefetchable, and the architecture can write-combine."""

    @property
    def is_memory(self) -> bool:
        """A memory BAR, not I/O ports."""
        return bool(self.flags & IORESOURCE_MEM)

    @property
    def is_prefetchable(self) -> bool:
        """Reads have no side effects and accesses may be merged."""
        return bool(self.flags & IORESOURCE_PREFETCH)

    @property
    def is_64bit(self) -> bool:
        """It takes the next BAR's place too."""
        return bool(self.flags & IORESOURCE_MEM_64)

    @property
    def is_assigned(self) -> bool:
        """Firmware or kernel found it a place in the address space."""
        return not self.flags & (IORESOURCE_UNSET | IORESOURCE_DISABLED)

    @property
    def description(self) -> str:
        """`64-bit prefetchable memory`, as lspci would say it."""
        if not self.is_memory:
            return "I/O ports"
        width = "64-bit" if self.is_64bit else "32-bit"
        return f"{width} {'prefetchable' if self.is_prefetchable else 'non-prefetchable'} memory"


@dataclass(frozen=True, slots=True)
class P2pmem:
    """A device's `p2pmem/` group: memory its driver gave to pci_p2pdma_add_resource."""

    size_bytes: int
    available_bytes: int
    """Free now; it may be fragmented, so one allocation of all of it can still fail."""
    published: bool
    """Kernel users such as nvmet may pick it; it does not bound allocation from user space."""
    can_allocate: bool
    """`p2pmem/allocate` exists (Linux 6.2)."""


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One function."""

    address: str
    vendor_id: int
    device_id: int
    class_code: int
    """24 bits: class, subclass, programming interface."""
    driver: str | None
    numa_node: int | None
    bars: tuple[PciBar, ...]
    p2pmem: P2pmem | None
    netdevs: tuple[str, ...]
    infiniband: tuple[str, ...]
    enabled: bool | None
    """`enable` counter above zero: somebody called pci_enable_device."""

    @property
    def class_name(self) -> str:
        """The class in words, or its number."""
        return class_name(self.class_code)

    def bar(self, index: int) -> PciBar | None:
        """Return BAR `index`; None where it is absent."""
        return next((bar for bar in self.bars if bar.index == index), None)


def class_name(class_code: int) -> str:
    """Return a class in words, or its number."""
    return _CLASSES.get(class_code >> 8, f"class {class_code >> 8:04x}")


def device_path(address: str) -> str:
    """Return the sysfs directory of a function, relative to the root."""
    return f"{PCI_DEVICES}/{address}"


def read_bars(sysfs: SysfsRoot, address: str) -> tuple[PciBar, ...]:
    """Return the BARs 0 to 5 that are there. Line n of `resource` is `start end flags`; all zero is absent."""
    base = device_path(address)
    bars = []
    for index, line in enumerate((sysfs.read_text(f"{base}/resource") or "").splitlines()[:STANDARD_BARS]):
        try:
            start, end, flags = (int(word, 16) for word in line.split())
        except ValueError:
            continue
        if not flags or (start == 0 and end == 0):
            continue
        file = f"{base}/resource{index}"
        bars.append(PciBar(index, start, end - start + 1, flags, sysfs.exists(file), sysfs.exists(f"{file}_wc")))
    return tuple(bars)


def read_p2pmem(sysfs: SysfsRoot, address: str) -> P2pmem | None:
    """Return the `p2pmem/` group; None where the driver published none."""
    base = f"{device_path(address)}/p2pmem"
    size_bytes = sysfs.read_int(f"{base}/size")
    if size_bytes is None:
        return None
    return P2pmem(
        size_bytes=size_bytes,
        available_bytes=sysfs.read_int(f"{base}/available") or 0,
        published=sysfs.read_text(f"{base}/published") == "1",
        can_allocate=sysfs.exists(f"{base}/allocate"),
    )


def read_numa_node(sysfs: SysfsRoot, address: str) -> int | None:
    """Return the NUMA node; None where firmware named none (-1)."""
    node = sysfs.read_int(f"{device_path(address)}/numa_node")
    return node if node is not None and node >= 0 else None


def read_memory_decoding(sysfs: SysfsRoot, address: str) -> bool | None:
    """Tell whether the function answers memory accesses; None where nothing says so.

    The command register (PCI Local Bus 3.0, 6.2.2: offset 4, bit 1) is the truth and its 64 bytes are readable by all;
    `enable` only counts pci_enable_device calls, and firmware may have switched decoding on without one.
    """
    config = sysfs.read_bytes(f"{device_path(address)}/config", 64)
    if config is not None and len(config) >= 6:
        # All ones is a function that does not answer at all: D3cold, or fallen off the bus.
        return config[:4] != b"\xff\xff\xff\xff" and bool(config[4] & 0x02)
    enable_count = sysfs.read_int(f"{device_path(address)}/enable")
    return None if enable_count is None else enable_count > 0


def read_pci_device(sysfs: SysfsRoot, address: str) -> PciDevice | None:
    """Return one function; None where it is not there."""
    base = device_path(address)
    if not sysfs.exists(base):
        return None
    enable_count = sysfs.read_int(f"{base}/enable")
    return PciDevice(
        address=address,
        vendor_id=sysfs.read_int(f"{base}/vendor") or 0,
        device_id=sysfs.read_int(f"{base}/device") or 0,
        class_code=sysfs.read_int(f"{base}/class") or 0,
        driver=sysfs.link_name(f"{base}/driver"),
        numa_node=read_numa_node(sysfs, address),
        bars=read_bars(sysfs, address),
        p2pmem=read_p2pmem(sysfs, address),
        netdevs=sysfs.list(f"{base}/net"),
        infiniband=sysfs.list(f"{base}/infiniband"),
        enabled=None if enable_count is None else enable_count > 0,
    )


def list_pci_devices(sysfs: SysfsRoot) -> tuple[PciDevice, ...]:
    """Return all functions in address order; a function that goes away meanwhile is left out."""
    found = (read_pci_device(sysfs, address) for address in sysfs.list(PCI_DEVICES))
    return tuple(device for device in found if device is not None)
