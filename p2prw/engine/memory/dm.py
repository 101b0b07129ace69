"""Memory of the NIC itself: allocated through the opened verbs device, reached by that NIC and by nobody else.

No CPU mapping, no pages, no dma-buf. It is bound to the first device that registers it, because only a device can
allocate it, and lives until it is closed, so that what one client wrote the next one reads. Its owner reads it, for
digests, by RDMA over a loopback queue pair.
"""

from __future__ import annotations

from typing import Protocol

from p2prw.engine.memory.base import MappedBuffer
from p2prw.engine.memory.mapped import check_range
from p2prw.engine.model import Access, DeviceInfo, MemorySpec, Offer
from p2prw.engine.providers.base import Registration
from p2prw.errors import HostError


class NicAllocation(Protocol):
    """Device memory that was allocated."""

    def register(self, access: Access, offset: int, length_bytes: int) -> Registration:
        """ibv_reg_dm_mr of a range. HostError with errno."""

    def copy_out(self, offset: int, into: memoryview) -> None:
        """Read by loopback. HostError where the port has none."""

    def copy_in(self, offset: int, data: memoryview) -> None:
        """Write by loopback."""

    def close(self) -> None:
        """Free it. Safe to call twice, and after its device was closed."""


class NicDevice(Protocol):
    """A device that may have memory of its own."""

    info: DeviceInfo

    def allocate_dm(self, length_bytes: int) -> NicAllocation:
        """ibv_alloc_dm. HostError with errno."""


class NicMemory:
    """A `MemorySource` of NIC device memory: a promise of `length_bytes` until a device registers it."""

    offers: frozenset[Offer] = frozenset()
    is_device_memory = True
    digest_method = "owner-loopback-read"
    numa_node: int | None = None

    def __init__(self, spec: MemorySpec, length_bytes: int) -> None:
        self.spec = spec
        self.length_bytes = length_bytes
        self.pci_address: str | None = None
        self.warnings: tuple[str, ...] = ()
        self._device: NicDevice | None = None
        self._allocation: NicAllocation | None = None

    def __repr__(self) -> str:
        where = "unbound" if self._device is None else self._device.info.name
        return f"<NicMemory {self.spec.text} {self.length_bytes} bytes {where}>"

    def register_on(self, device: NicDevice, access: Access, offset: int, length_bytes: int | None) -> Registration:
        """Register a range on `device`, which allocates the memory the first time. HostError."""
        if self._device is None:
            self._allocation = device.allocate_dm(max(1, self.length_bytes))
            self._device = device
            self.pci_address = device.info.pci_address
        if self._device is not device:
            raise HostError(
                f"the memory lies on {self._device.info.name}, and this client came in over {device.info.name}",
                why="device memory belongs to one NIC; the first transfer decided which",
                fix=f"connect to an address of {self._device.info.name}, or serve with --listen on one address",
                code="other_device",
            )
        length = self.length_bytes - offset if length_bytes is None else length_bytes
        return self._bound().register(access, offset, length)

    def buffers(self) -> tuple[MappedBuffer, ...]:
        """Nothing is mapped."""
        return ()

    def read_at(self, offset: int, into: memoryview) -> int:
        """Have the NIC copy bytes out; short only at the end."""
        count = max(0, min(len(into), self.length_bytes - offset))
        if count:
            self._bound().copy_out(offset, into[:count])
        return count

    def write_at(self, offset: int, data: memoryview) -> None:
        """Have the NIC copy `data` in."""
        check_range(self, offset, len(data))
        if len(data):
            self._bound().copy_in(offset, data)

    def commit(self) -> None:
        """Memory is whole as it stands."""

    def abort(self) -> None:
        """Memory has nothing to throw away."""

    def close(self) -> None:
        """Free it. Safe to call twice."""
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            allocation.close()

    def _bound(self) -> NicAllocation:
        if self._allocation is None:
            raise HostError(
                f"{self.spec.text} is in no NIC",
                why="it is allocated when a transfer registers it, and freed when it is closed",
                fix="start a new transfer",
                code="memory_closed",
            )
        return self._allocation
