"""The IOMMU group of a function and how it translates: what ACS redirect is for, and what device addresses mean."""

from __future__ import annotations

from dataclasses import dataclass

from p2prw.engine.topology.pci import device_path
from p2prw.engine.topology.sysfs import SysfsRoot

_MODES = {
    "identity": "identity: device addresses are physical ones",
    "DMA": "DMA: translated",
    "DMA-FQ": "DMA-FQ: translated, flushed in batches",
    "blocked": "blocked: no DMA",
    "unmanaged": "unmanaged: user space has it (VFIO)",
}


@dataclass(frozen=True, slots=True)
class IommuGroup:
    """Functions that the IOMMU cannot tell apart."""

    number: str
    mode: str | None
    """`identity`, `DMA`, `DMA-FQ`, ...; None where the kernel does not say."""

    @property
    def translates(self) -> bool:
        """Device addresses are not physical addresses."""
        return (self.mode or "").startswith("DMA")

    @property
    def description(self) -> str:
        """Group and mode in words."""
        return f"group {self.number}, {_MODES.get(self.mode or '', self.mode or 'mode unknown')}"


def read_iommu_group(sysfs: SysfsRoot, address: str) -> IommuGroup | None:
    """Return the group of a function; None where no IOMMU translates for it."""
    number = sysfs.link_name(f"{device_path(address)}/iommu_group")
    if number is None:
        return None
    return IommuGroup(number, sysfs.read_text(f"kernel/iommu_groups/{number}/type") or None)
