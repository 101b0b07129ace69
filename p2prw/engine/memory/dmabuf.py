"""Host memory that the kernel hands out as a dma-buf: mapped for the CPU, and a descriptor that a NIC's driver imports.

Source: Documentation/driver-api/dma-buf.rst and include/uapi/linux/dma-buf.h: CPU accesses stand between SYNC START and
SYNC END, which move ownership between CPU caches and the devices that imported the buffer.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2prw.engine.memory.host import HostBuffer
from p2prw.engine.memory.kernel_door import KernelDoor
from p2prw.engine.memory.kernel_errors import kernel_error
from p2prw.engine.memory.limits import check_host_memory
from p2prw.engine.memory.mapped import MappedMemory, check_pattern, fill_as_asked
from p2prw.engine.model import MemorySpec, Offer
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.units import format_size

DMA_BUF_IOCTL_SYNC = 0x40086200  # _IOW('b', 0, struct dma_buf_sync): one u64
_SYNC_READ, _SYNC_WRITE, _SYNC_END = 1, 2, 4


class DmabufMemory(MappedMemory):
    """A `MemorySource` of host pages behind a dma-buf."""

    offers = frozenset({Offer.DMABUF, Offer.CPU_MAPPING})

    def __init__(
        self, spec: MemorySpec, length_bytes: int, mapping: mmap.mmap, descriptor: int, door: KernelDoor
    ) -> None:
        """Own `mapping` and the dma-buf `descriptor` from here on."""
        # Plain memory: the software device may use its view without SYNC, because then nobody imported the buffer.
        super().__init__(spec, HostBuffer(memoryview(mapping)[:length_bytes]), mapping=mapping)
        self._descriptor = descriptor
        self._door = door

    def dmabuf(self) -> tuple[int, int]:
        """Return (descriptor, 0): the memory begins where the dma-buf does. An importer keeps its own reference."""
        return self._descriptor, 0

    def read_at(self, offset: int, into: memoryview) -> int:
        """Copy what a device wrote, too."""
        with self._cpu_access(_SYNC_READ):
            return super().read_at(offset, into)

    def write_at(self, offset: int, data: memoryview) -> None:
        """Copy `data` to where a device sees it, too."""
        with self._cpu_access(_SYNC_WRITE):
            super().write_at(offset, data)

    def close(self) -> None:
        """Unmap and give the buffer back, as soon as no importer holds it."""
        super().close()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._door.close(descriptor)

    @contextmanager
    def _cpu_access(self, direction: int) -> Iterator[None]:
        self._sync(direction)
        try:
            yield
        finally:
            self._sync(direction | _SYNC_END)

    def _sync(self, flags: int) -> None:
        while True:
            try:
                self._door.ioctl(self._descriptor, DMA_BUF_IOCTL_SYNC, bytearray(flags.to_bytes(8, "little")))
            except (InterruptedError, BlockingIOError):
                continue  # dma-buf.rst: EINTR and EAGAIN are to be tried again
            except OSError as error:
                raise kernel_error(
                    f"the CPU may not touch {self.spec.text}",
                    error,
                    code="dmabuf_sync",
                    why="DMA_BUF_IOCTL_SYNC failed, so what devices and CPU see could differ",
                ) from error
            return


def page_rounded(length_bytes: int) -> int:
    """Return whole pages, at least one: nothing of zero bytes can be allocated or mapped."""
    return max(1, -(-length_bytes // mmap.PAGESIZE)) * mmap.PAGESIZE


def check_allocation(spec: MemorySpec, length_bytes: int, sysfs: SysfsRoot, proc: Path) -> None:
    """Raise where host memory of that size is not to be had, or the pattern cannot be read."""
    check_host_memory(length_bytes, sysfs, proc=proc, what=f"{spec.kind} memory")
    check_pattern(spec)


def map_fresh(
    kind: type[DmabufMemory],
    spec: MemorySpec,
    length_bytes: int,
    descriptor: int,
    door: KernelDoor,
    *,
    mapped_from: int,
) -> DmabufMemory:
    """Map a dma-buf that was just made (by the descriptor `mapped_from`) and fill in the pattern.

    `descriptor` is closed where that fails, by the memory otherwise. HostError where it cannot be mapped.
    """
    try:
        mapping = door.map(mapped_from, page_rounded(length_bytes), 0, writable=True)
    except (OSError, ValueError) as error:
        door.close(descriptor)
        raise kernel_error(
            f"cannot map {format_size(length_bytes)} of {spec.kind} memory",
            error,
            code="cannot_map",
            why="the address space limit (ulimit -v) is in the way, or this exporter cannot be mapped",
            fix="a smaller size=, or ulimit -v unlimited",
        ) from error
    return fill_as_asked(kind(spec, length_bytes, mapping, descriptor, door))
