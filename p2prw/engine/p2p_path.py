"""What the PCI tree says about the way from a NIC to device memory, in the words of a route attempt.

Asked only after a route has failed, or when bytes are to be copied: it reads configuration space, so never on a path
that moves bytes, and never for devices that move them with the CPU.
"""

from __future__ import annotations

from typing import Protocol

from p2prw.engine.memory.base import MemorySource
from p2prw.engine.model import DeviceInfo
from p2prw.engine.topology.verdict import Verdict

PATH_ERRNOS = frozenset({"EINVAL", "EREMOTEIO", "EIO"})
"""What exporters and drivers answer when P2PDMA does not let them (dma_buf_phys_vec_to_sgt, dma_map_sgtable)."""


class JudgingDevice(Protocol):
    """A device that knows its place in the PCI tree."""

    info: DeviceInfo

    def path_to(self, pci_address: str) -> Verdict | None:
        """Return the kernel's P2PDMA verdict for memory of that function; None where there is nothing to judge."""


class PathReason:
    """The verdict for one device and one memory, worked out when it is first asked for."""

    def __init__(self, device: JudgingDevice, memory: MemorySource) -> None:
        self._device = device
        self._memory = memory
        self._verdict: Verdict | None = None
        self._asked = False

    def _judged(self) -> Verdict | None:
        address = self._memory.pci_address
        if not self._asked:
            self._asked = True
            if self._memory.is_device_memory and address is not None and self._device.info.mover == "nic":
                self._verdict = self._device.path_to(address)
        return self._verdict

    def words(self) -> str | None:
        """Return the verdict and its reasons in a sentence; None where there is nothing to say."""
        verdict = self._judged()
        if verdict is None:
            return None
        way = f"{self._device.info.name} -> {self._memory.pci_address}"
        if verdict.works:
            return f"the P2PDMA path {way} is allowed ({verdict.kind}, distance {verdict.distance}): it is not that"
        return f"P2PDMA {way} is {verdict.kind}: {verdict.why}"

    def explain(self, errno: str | None, why: str | None, fix: str | None) -> tuple[str | None, str | None]:
        """Return (why, fix) of a failed registration with what the path adds to them."""
        words = self.words() if errno in PATH_ERRNOS else None
        if words is None:
            return why, fix
        verdict = self._judged()
        if verdict is not None and not verdict.works:
            fix = f"{next(iter(verdict.fixes), 'dmesg | tail')}   (p2prw topology {self._pair()} says all)"
        return "; ".join(part for part in (why, words) if part), fix

    def _pair(self) -> str:
        return f"{self._device.info.name} {self._memory.pci_address}"
