"""The one door to libcuda.so.1: init, device, primary context, memory, its dma-buf. Everything through ctypes, late.

Source: the CUDA driver API (cuda.h); names with _v2 are what the header's plain names mean. A `CudaError` carries the
driver's own name of the failure; what it means for a user is `cuda.py`'s.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

LIBRARY = "libcuda.so.1"
# CUdevice_attribute
ATTRIBUTE_DMA_BUF_SUPPORTED = 124
# CUmemRangeHandleType, CUmemRangeFlags
_HANDLE_DMA_BUF_FD = 1
_FLAG_MAPPING_TYPE_PCIE = 1
# CUpointer_attribute
_POINTER_SYNC_MEMOPS = 6
# CUflushGPUDirectRDMAWritesTarget, CUflushGPUDirectRDMAWritesScope
_FLUSH_CURRENT_CONTEXT, _FLUSH_TO_OWNER = 0, 100
# CUresult
_NOT_SUPPORTED, _INVALID_VALUE = 801, 1


class CudaError(Exception):
    """A driver call failed. `name` is `CUDA_ERROR_...`, `number` its CUresult."""

    def __init__(self, call: str, number: int, name: str) -> None:
        super().__init__(f"{call}: {name}")
        self.call = call
        self.number = number
        self.name = name


class CudaDoor(Protocol):
    """What `cuda:` asks of the driver; a fake one is enough to test it."""

    def count(self) -> int:
        """cuDeviceGetCount, after cuInit."""

    def attribute(self, gpu: int, attribute: int) -> int:
        """cuDeviceGetAttribute."""

    def pci_address(self, gpu: int) -> str:
        """cuDeviceGetPCIBusId."""

    def open_context(self, gpu: int) -> Any:
        """cuDevicePrimaryCtxRetain: the context that the CUDA runtime of this process uses too."""

    def close_context(self, gpu: int) -> None:
        """cuDevicePrimaryCtxRelease."""

    def allocate(self, context: Any, length_bytes: int) -> int:
        """cuMemAlloc, zeroed; return the device pointer."""

    def free(self, context: Any, pointer: int) -> None:
        """cuMemFree."""

    def synchronise_copies(self, context: Any, pointer: int) -> None:
        """CU_POINTER_ATTRIBUTE_SYNC_MEMOPS: a copy that returned is done, which a NIC relies on."""

    def export(self, context: Any, pointer: int, length_bytes: int) -> int:
        """cuMemGetHandleForAddressRange: a dma-buf of whole host pages."""

    def copy_out(self, context: Any, pointer: int, into: memoryview) -> None:
        """cuMemcpyDtoH, after what a NIC wrote was made visible."""

    def copy_in(self, context: Any, pointer: int, data: memoryview) -> None:
        """cuMemcpyHtoD."""


class CudaDriver:
    """libcuda itself. OSError where it cannot be loaded, CudaError where it finds no driver."""

    def __init__(self, library: Any = None) -> None:
        self._library = ctypes.CDLL(LIBRARY) if library is None else library
        self._call("cuInit", ctypes.c_uint(0))

    def count(self) -> int:
        """GPUs that this process may see."""
        number = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(number))
        return number.value

    def attribute(self, gpu: int, attribute: int) -> int:
        """One attribute of a GPU."""
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), self._device(gpu))
        return value.value

    def pci_address(self, gpu: int) -> str:
        """`0000:01:00.0`."""
        text = ctypes.create_string_buffer(32)
        self._call("cuDeviceGetPCIBusId", text, ctypes.c_int(len(text)), self._device(gpu))
        return text.value.decode()

    def open_context(self, gpu: int) -> Any:
        """Retain the primary context."""
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device(gpu))
        return context

    def close_context(self, gpu: int) -> None:
        """Release it."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._device(gpu))

    def allocate(self, context: Any, length_bytes: int) -> int:
        """Allocate and zero: the driver does not promise that somebody else's bytes are gone."""
        self._enter(context)
        pointer = ctypes.c_ulonglong()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(length_bytes))
        try:
            self._call("cuMemsetD8_v2", pointer, ctypes.c_ubyte(0), ctypes.c_size_t(length_bytes))
            self._call("cuCtxSynchronize")
        except CudaError:
            self._call("cuMemFree_v2", pointer)
            raise
        return pointer.value

    def free(self, context: Any, pointer: int) -> None:
        """Give it back."""
        self._enter(context)
        self._call("cuMemFree_v2", ctypes.c_ulonglong(pointer))

    def synchronise_copies(self, context: Any, pointer: int) -> None:
        """Set SYNC_MEMOPS."""
        self._enter(context)
        on = ctypes.c_uint(1)
        self._call(
            "cuPointerSetAttribute", ctypes.byref(on), ctypes.c_int(_POINTER_SYNC_MEMOPS), ctypes.c_ulonglong(pointer)
        )

    def export(self, context: Any, pointer: int, length_bytes: int) -> int:
        """Ask for a mapping over PCIe (newer drivers, coherent platforms), else for the plain one."""
        self._enter(context)
        descriptor = ctypes.c_int(-1)
        for flags in (_FLAG_MAPPING_TYPE_PCIE, 0):
            try:
                self._call(
                    "cuMemGetHandleForAddressRange",
                    ctypes.byref(descriptor),
                    ctypes.c_ulonglong(pointer),
                    ctypes.c_size_t(length_bytes),
                    ctypes.c_int(_HANDLE_DMA_BUF_FD),
                    ctypes.c_ulonglong(flags),
                )
            except CudaError as error:
                if flags and error.number in (_INVALID_VALUE, _NOT_SUPPORTED):
                    continue
                raise
            break
        return descriptor.value

    def copy_out(self, context: Any, pointer: int, into: memoryview) -> None:
        """Copy to host memory; ctypes releases the GIL meanwhile."""
        self._enter(context)
        try:
            # A NIC's writes may not be in order with the GPU's own reads (CUDA driver API, GPUDirect RDMA writes).
            self._call(
                "cuFlushGPUDirectRDMAWrites", ctypes.c_int(_FLUSH_CURRENT_CONTEXT), ctypes.c_int(_FLUSH_TO_OWNER)
            )
        except CudaError as error:
            # GPUs that keep the order by themselves, and drivers before CUDA 11.3, have no such call.
            if error.number != _NOT_SUPPORTED:
                raise
        target = (ctypes.c_char * len(into)).from_buffer(into)
        self._call("cuMemcpyDtoH_v2", target, ctypes.c_ulonglong(pointer), ctypes.c_size_t(len(into)))

    def copy_in(self, context: Any, pointer: int, data: memoryview) -> None:
        """Copy from host memory."""
        self._enter(context)
        self._call("cuMemcpyHtoD_v2", ctypes.c_ulonglong(pointer), bytes(data), ctypes.c_size_t(len(data)))

    def _enter(self, context: Any) -> None:
        # A context is current for one thread, and digests may run on another than the one that opened it.
        self._call("cuCtxSetCurrent", context)

    def _device(self, gpu: int) -> ctypes.c_int:
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(gpu))
        return device

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            # Older than the call: cuMemGetHandleForAddressRange came with CUDA 11.7.
            raise CudaError(name, _NOT_SUPPORTED, f"this {LIBRARY} has no {name}") from None
        number = int(function(*arguments))
        if number:
            raise CudaError(name, number, self._name(number))

    def _name(self, number: int) -> str:
        text = ctypes.c_char_p()
        known = self._library.cuGetErrorName(ctypes.c_int(number), ctypes.byref(text)) == 0
        return text.value.decode() if known and text.value else f"CUresult {number}"
