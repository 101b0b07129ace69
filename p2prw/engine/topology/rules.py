"""The kernel's P2PDMA rules as data: host bridges, processors, drivers, and the kernel each came with. No sysfs here.

Source: drivers/pci/p2pdma.c (pci_p2pdma_whitelist, cpu_supports_p2pdma), mainline 6.17 to 7.2. Distributions may add
host bridges of their own; none of mainline's is for an ARM or POWER server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, int]

FIRST_FROM_USER_SPACE: Version = (6, 2)
"""p2pmem/allocate; before it P2PDMA memory was for drivers only."""
CPU_DRIVERS = frozenset({"hfi1", "ib_qib", "qib"})
"""PCI devices whose driver moves payload with the CPU (rdmavt): there is no DMA to the memory."""


@dataclass(frozen=True, slots=True)
class HostBridgeRule:
    """One entry of pci_p2pdma_whitelist."""

    vendor_id: int
    device_id: int | None
    """None: any device of the vendor."""
    name: str
    same_host_bridge: bool = False
    """REQ_SAME_HOST_BRIDGE: root ports of one host bridge reach each other, those of two do not."""
    since: Version | None = None
    """The mainline release it came with; None: older than P2PDMA from user space."""


def _intel(name: str, *device_ids: int, same: bool = False, since: Version | None = None) -> list[HostBridgeRule]:
    return [HostBridgeRule(0x8086, device_id, name, same, since) for device_id in device_ids]


WHITELIST: tuple[HostBridgeRule, ...] = (
    *_intel("Xeon E5 / Core i7 (Sandy Bridge-E)", 0x3C00, 0x3C01, same=True),
    *_intel("Xeon E7 v3 / E5 v3 (Haswell-E)", 0x2F00, 0x2F01, same=True),
    *_intel("Xeon Skylake-E root port", 0x2030, 0x2031, 0x2032, 0x2033),
    *_intel("Xeon Skylake-E", 0x2020),
    *_intel("Xeon Ice Lake and later", 0x09A2),
    *_intel("Xeon DSA or IAA, first on its root bus", 0x0B25, 0x0CFE, 0x11FB, 0x1212, 0x1216, since=(7, 2)),
    *_intel("Xeon QAT, first on its root bus", 0x4940, 0x4942, 0x4944, 0x4946, 0x4948, since=(7, 2)),
    HostBridgeRule(0x1AE0, None, "Google SoC", since=(7, 1)),
)
"""AMD has no entry: the processor decides (`is_zen`)."""

_BY_ID = {(rule.vendor_id, rule.device_id): rule for rule in WHITELIST}


def host_bridge_rule(vendor_id: int, device_id: int) -> HostBridgeRule | None:
    """Return the entry for a host bridge's first device; None where there is none in any release."""
    return _BY_ID.get((vendor_id, device_id)) or _BY_ID.get((vendor_id, None))


@dataclass(frozen=True, slots=True)
class Processor:
    """What cpu_supports_p2pdma asks."""

    vendor: str
    family: int | None

    @property
    def is_zen(self) -> bool:
        """AMD family 17h and later forward between any two root ports; Hygon's copies are not asked for."""
        return self.vendor == "AuthenticAMD" and (self.family or 0) >= 0x17

    @property
    def description(self) -> str:
        """Vendor and family as the kernel sees them."""
        return f"{self.vendor} family {self.family:#x}" if self.family is not None else self.vendor


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the rules ask of the host besides PCI; None where it could not be read."""

    processor: Processor | None = None
    kernel: Version | None = None
    is_guest: bool = False
    """A hypervisor stands between: its idea of the PCI tree need not be the machine's."""


def parse_processor(cpuinfo: str | None) -> Processor | None:
    """Return the processor of /proc/cpuinfo; one without a `vendor_id` (ARM, POWER) is no AMD one."""
    if not cpuinfo or ":" not in cpuinfo:
        return None
    vendor = re.search(r"^vendor_id\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    family = re.search(r"^cpu family\s*:\s*(\d{1,9})\s*$", cpuinfo, re.MULTILINE)
    return Processor(vendor[1] if vendor else "not x86", int(family[1]) if family else None)


def parse_kernel(release: str | None) -> Version | None:
    """Return (6, 18) for `6.18.44-generic`."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d)", release or "")
    return (int(match[1]), int(match[2])) if match else None


def format_version(version: Version) -> str:
    """Return `Linux 6.2`."""
    return f"Linux {version[0]}.{version[1]}"
