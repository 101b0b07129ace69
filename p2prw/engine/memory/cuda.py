"""GPU memory: allocated in the primary context of a GPU, exported as a dma-buf, filled and read by cuMemcpy.

Its bytes have no address that this CPU may load from: the software device refuses it, and nothing bounces it. What is
there offers a dma-buf; without one, nvidia-peermem pins the GPU address itself (route `pin`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, TypeVar

from p2prw.engine.memory.cuda_driver import ATTRIBUTE_DMA_BUF_SUPPORTED, CudaDoor, CudaDriver, CudaError
from p2prw.engine.memory.mapped import MappedMemory, fill_as_asked
from p2prw.engine.model import MemorySpec, Offer
from p2prw.engine.topology.pci import normalise_bdf, read_numa_node
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError
from p2prw.units import format_size

_T = TypeVar("_T")

GPU_PAGE_BYTES = 64 * 1024
"""GPU pages are 64 KiB; nvidia-peermem and cuMemGetHandleForAddressRange want whole ones."""


class CudaBuffer:
    """GPU memory as a `MappedBuffer`: its address is the GPU's, for nvidia-peermem; bytes go through the driver."""

    view: memoryview | None = None

    def __init__(self, door: CudaDoor, context: Any, pointer: int, length_bytes: int) -> None:
        self.length_bytes = length_bytes
        self.cpu_address = pointer
        self._door = door
        self._context = context

    def load(self, offset: int, length_bytes: int) -> bytes:
        """Return a copy."""
        into = bytearray(length_bytes)
        self.load_into(offset, memoryview(into))
        return bytes(into)

    def load_into(self, offset: int, into: memoryview) -> None:
        """Copy `len(into)` bytes from `offset`."""
        _explained("read", lambda: self._door.copy_out(self._context, self.cpu_address + offset, into))

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """Copy `data` to `offset`."""
        _explained("fill", lambda: self._door.copy_in(self._context, self.cpu_address + offset, memoryview(data)))


class CudaMemory(MappedMemory):
    """A `MemorySource` of GPU memory: a dma-buf, where driver and GPU can; no CPU mapping, no pages."""

    is_device_memory = True

    def __init__(
        self,
        spec: MemorySpec,
        length_bytes: int,
        allocation: _Allocation,
        *,
        exports: bool,
        pci_address: str | None,
        numa_node: int | None,
    ) -> None:
        buffer = CudaBuffer(allocation.door, allocation.context, allocation.pointer, length_bytes)
        super().__init__(spec, buffer, pci_address=pci_address, numa_node=numa_node)
        self.offers = frozenset({Offer.DMABUF}) if exports else frozenset()
        self._allocation: _Allocation | None = allocation
        self._descriptor: int | None = None

    def dmabuf(self) -> tuple[int, int]:
        """Return (descriptor, 0); exported at the first call. HostError with the driver's own name of the failure."""
        allocation = self._allocation
        if self._descriptor is None and allocation is not None:
            if Offer.DMABUF not in self.offers:
                raise HostError(
                    f"{self.spec.text} exports no dma-buf",
                    why="CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED is 0: it takes NVIDIA's open kernel modules",
                    fix="modinfo nvidia | grep license (Dual MIT/GPL is the open one); or modprobe nvidia-peermem",
                    code="no_cuda_dmabuf",
                    errno=errno.EOPNOTSUPP,
                )
            self._descriptor = _explained("export", allocation.export)
        if self._descriptor is None:
            raise self._closed_error()
        return self._descriptor, 0

    def close(self) -> None:
        """Close the dma-buf, free the memory, let go of the context. Safe to call twice."""
        super().close()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            allocation.close()


class _Allocation:
    """Memory in a GPU's primary context, and the context."""

    def __init__(self, door: CudaDoor, gpu: int, length_bytes: int) -> None:
        self.door = door
        self._gpu = gpu
        self._length_bytes = max(1, -(-length_bytes // GPU_PAGE_BYTES)) * GPU_PAGE_BYTES
        self.context = door.open_context(gpu)
        self._raw: int | None = None
        try:
            # One page more than needed: cuMemAlloc aligns to 256 bytes, and pages are what is exported.
            self._raw = door.allocate(self.context, self._length_bytes + GPU_PAGE_BYTES)
            self.pointer = -(-self._raw // GPU_PAGE_BYTES) * GPU_PAGE_BYTES
            door.synchronise_copies(self.context, self._raw)
        except BaseException:
            self.close()
            raise

    def export(self) -> int:
        return self.door.export(self.context, self.pointer, self._length_bytes)

    def close(self) -> None:
        raw, self._raw = self._raw, None
        try:
            if raw is not None:
                self.door.free(self.context, raw)
        finally:
            self.door.close_context(self._gpu)


def check_cuda(spec: MemorySpec, load: Callable[[], CudaDoor] = CudaDriver) -> CudaDoor:
    """Return the driver; HostError where there is none, or no such GPU."""
    try:
        door = load()
    except OSError as error:
        raise HostError(
            "there is no CUDA driver here",
            why=str(error),
            fix="install NVIDIA's driver (libcuda.so.1 comes with it), docker run --gpus all, or host,size=64MiB",
            code="no_cuda",
            errno=errno.ENOENT,
        ) from error
    except CudaError as error:
        raise HostError(
            f"the CUDA driver does not start: {error.name}",
            why="libcuda.so.1 is there, but no GPU, or the kernel module is missing or of another version",
            fix="nvidia-smi; sudo modprobe nvidia",
            code="no_cuda",
        ) from error
    count = _explained("count", door.count)
    if int(spec.arg or 0) >= count:
        raise HostError(
            f"there is no GPU {spec.arg}",
            why=f"GPUs here: 0 to {count - 1}" if count else "the driver sees no GPU (CUDA_VISIBLE_DEVICES?)",
            fix=f"cuda:{count - 1}" if count else "nvidia-smi -L",
            code="no_device",
            errno=errno.ENODEV,
        )
    return door


def open_cuda(
    spec: MemorySpec, length_bytes: int, sysfs: SysfsRoot, load: Callable[[], CudaDoor] = CudaDriver
) -> CudaMemory:
    """Allocate zeroed or pattern-filled memory on the GPU."""
    door = check_cuda(spec, load)
    gpu = int(spec.arg or 0)
    address = normalise_bdf(_explained("find", lambda: door.pci_address(gpu)))
    allocation = _explained("allocate", lambda: _Allocation(door, gpu, length_bytes), length_bytes)
    try:
        memory = CudaMemory(
            spec,
            length_bytes,
            allocation,
            exports=bool(_explained("ask", lambda: door.attribute(gpu, ATTRIBUTE_DMA_BUF_SUPPORTED))),
            pci_address=address,
            numa_node=read_numa_node(sysfs, address) if address else None,
        )
    except BaseException:
        allocation.close()
        raise
    return fill_as_asked(memory)


def _explained(what: str, call: Callable[[], _T], length_bytes: int | None = None) -> _T:
    """Run `call`; what the driver says becomes a HostError."""
    try:
        return call()
    except CudaError as error:
        size = "" if length_bytes is None else f" {format_size(length_bytes)} of"
        code, why, fix = {
            "CUDA_ERROR_OUT_OF_MEMORY": ("not_enough_memory", "the GPU has not that much left", "nvidia-smi; size="),
            "CUDA_ERROR_NOT_SUPPORTED": (
                "no_cuda_dmabuf",
                "it takes NVIDIA's open kernel modules, CUDA 11.7 and a GPU that can",
                "modinfo nvidia | grep license; or modprobe nvidia-peermem",
            ),
        }.get(error.name, ("cuda_failed", f"{error.call} failed", "nvidia-smi; dmesg | tail"))
        raise HostError(f"cannot {what}{size} GPU memory: {error.name}", why=why, fix=fix, code=code) from error
