"""What is called in libcuda, with which arguments, and what its answers become; the library is played."""

from __future__ import annotations

import ctypes

import pytest

from p2prw.engine.memory.cuda_driver import ATTRIBUTE_DMA_BUF_SUPPORTED, CudaDriver, CudaError


class Library:
    """libcuda: each function records its plain arguments and answers a CUresult from the script."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.results: dict[str, list[int]] = {}
        self.missing: set[str] = set()
        self.memory = ctypes.create_string_buffer(64)

    def __getattr__(self, name: str):
        if not name.startswith("cu") or name in self.missing:
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append((name, *(getattr(one, "value", one) for one in arguments)))
            result = self.results.get(name, [0])
            number = result.pop(0) if len(result) > 1 else result[0]
            return number or getattr(self, f"_{name}", lambda *_: 0)(*arguments)

        return call

    def _cuDeviceGetCount(self, out) -> int:
        out._obj.value = 2
        return 0

    def _cuDeviceGet(self, out, gpu) -> int:
        out._obj.value = 100 + gpu.value
        return 0

    def _cuDeviceGetAttribute(self, out, attribute, device) -> int:
        out._obj.value = int(attribute.value == 124 and device.value == 101)
        return 0

    def _cuDeviceGetPCIBusId(self, text, length, device) -> int:
        text.value = b"0000:41:00.0"
        return 0

    def _cuDevicePrimaryCtxRetain(self, out, device) -> int:
        out._obj.value = 0xC0
        return 0

    def _cuMemAlloc_v2(self, out, length) -> int:
        out._obj.value = 0x7F0000000100
        return 0

    def _cuMemGetHandleForAddressRange(self, out, pointer, length, kind, flags) -> int:
        out._obj.value = 42
        return 0

    def _cuMemcpyDtoH_v2(self, target, pointer, length) -> int:
        ctypes.memmove(target, b"fromthegpu", length.value)
        return 0

    def _cuGetErrorName(self, number, out) -> int:
        if number.value == 9999:
            return 1
        out._obj.value = {2: b"CUDA_ERROR_OUT_OF_MEMORY", 100: b"CUDA_ERROR_NO_DEVICE"}.get(
            number.value, b"CUDA_ERROR_OTHER"
        )
        return 0

    def called(self, name: str) -> list[tuple]:
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture
def library() -> Library:
    return Library()


def test_questions(library) -> None:
    driver = CudaDriver(library)
    assert library.called("cuInit") == [(0,)]
    assert driver.count() == 2
    assert [driver.attribute(gpu, ATTRIBUTE_DMA_BUF_SUPPORTED) for gpu in (0, 1)] == [0, 1]
    assert driver.pci_address(1) == "0000:41:00.0"


def test_memory_is_zeroed_and_freed(library) -> None:
    driver = CudaDriver(library)
    context = driver.open_context(1)
    pointer = driver.allocate(context, 65536)
    assert (pointer, library.called("cuMemsetD8_v2")) == (0x7F0000000100, [(0x7F0000000100, 0, 65536)])
    assert library.called("cuCtxSynchronize") == [()]
    driver.synchronise_copies(context, pointer)
    ((_, attribute, where),) = library.called("cuPointerSetAttribute")
    assert (attribute, where) == (6, pointer)
    driver.free(context, pointer)
    assert library.called("cuMemFree_v2") == [(pointer,)]
    driver.close_context(1)
    assert library.called("cuDevicePrimaryCtxRelease_v2") == [(101,)]
    # A context is current for one thread only: each call makes it so.
    assert library.called("cuCtxSetCurrent") == [(0xC0,)] * 3


def test_memory_that_cannot_be_zeroed_is_freed(library) -> None:
    library.results["cuMemsetD8_v2"] = [700]
    driver = CudaDriver(library)
    with pytest.raises(CudaError, match="CUDA_ERROR_OTHER"):
        driver.allocate(driver.open_context(0), 65536)
    assert len(library.called("cuMemFree_v2")) == 1


def test_copies(library) -> None:
    driver = CudaDriver(library)
    context = driver.open_context(0)
    into = bytearray(12)
    driver.copy_out(context, 0x100, memoryview(into)[1:11])
    assert into == b"\0fromthegpu\0"
    # What a NIC wrote is flushed before it is read, where the GPU has that to do.
    assert [call[0] for call in library.calls].index("cuFlushGPUDirectRDMAWrites") < [
        call[0] for call in library.calls
    ].index("cuMemcpyDtoH_v2")
    library.results["cuFlushGPUDirectRDMAWrites"] = [801]
    driver.copy_out(context, 0x100, memoryview(into)[1:11])
    library.missing.add("cuFlushGPUDirectRDMAWrites")
    driver.copy_out(context, 0x100, memoryview(into)[1:11])
    library.missing.clear()
    library.results["cuFlushGPUDirectRDMAWrites"] = [700]
    with pytest.raises(CudaError, match="CUDA_ERROR_OTHER"):
        driver.copy_out(context, 0x100, memoryview(into)[1:11])
    driver.copy_in(context, 0x200, memoryview(b"abc"))
    assert library.called("cuMemcpyHtoD_v2") == [(0x200, b"abc", 3)]


@pytest.mark.parametrize("first", [1, 801])
def test_an_older_driver_exports_without_the_pcie_flag(library, first) -> None:
    driver = CudaDriver(library)
    context = driver.open_context(0)
    assert driver.export(context, 0x10000, 65536) == 42
    library.results["cuMemGetHandleForAddressRange"] = [first, 0]
    assert driver.export(context, 0x10000, 65536) == 42
    assert [call[1:] for call in library.called("cuMemGetHandleForAddressRange")] == [
        (0x10000, 65536, 1, flags) for flags in (1, 1, 0)
    ]
    library.results["cuMemGetHandleForAddressRange"] = [2]
    with pytest.raises(CudaError, match="OUT_OF_MEMORY"):
        driver.export(context, 0x10000, 65536)


def test_failures_have_names(library) -> None:
    library.results["cuInit"] = [100]
    with pytest.raises(CudaError) as caught:
        CudaDriver(library)
    assert (caught.value.call, caught.value.number, caught.value.name) == ("cuInit", 100, "CUDA_ERROR_NO_DEVICE")
    library.results["cuInit"] = [9999]
    with pytest.raises(CudaError, match="CUresult 9999"):
        CudaDriver(library)
    del library.results["cuInit"]
    library.missing.add("cuMemGetHandleForAddressRange")
    driver = CudaDriver(library)
    with pytest.raises(CudaError, match=r"libcuda.so.1 has no cuMemGetHandle"):
        driver.export(driver.open_context(0), 0, 1)


def test_no_library(monkeypatch) -> None:
    monkeypatch.setattr("p2prw.engine.memory.cuda_driver.LIBRARY", "libcuda-of-nobody.so.1")
    with pytest.raises(OSError, match="libcuda-of-nobody"):
        CudaDriver()
