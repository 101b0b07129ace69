"""GPU memory over a driver that is played: alignment, patterns, what is given back, what a user is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from p2prw.engine.memory.cuda import GPU_PAGE_BYTES, check_cuda, open_cuda
from p2prw.engine.memory.cuda_driver import CudaError
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Offer
from p2prw.engine.pattern import parse_pattern
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

RAW = 0x7F0000000100
SPEC = parse_memory_spec("cuda:1,size=100000,pattern=words:4")


class Driver:
    """Two GPUs whose memory is host memory; `fails` names the call that fails, and how."""

    def __init__(self) -> None:
        self.fails: dict[str, CudaError] = {}
        self.exports = 1
        self.contexts: list[int] = []
        self.memory: bytearray | None = None
        self.exported: list[tuple[int, int]] = []
        self.synchronised = False

    def _step(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]

    def count(self) -> int:
        self._step("count")
        return 2

    def attribute(self, gpu: int, attribute: int) -> int:
        self._step("attribute")
        assert (gpu, attribute) == (1, 124)
        return self.exports

    def pci_address(self, gpu: int) -> str:
        return "0000:41:00.0"

    def open_context(self, gpu: int) -> Any:
        self._step("open_context")
        self.contexts.append(gpu)
        return "context"

    def close_context(self, gpu: int) -> None:
        self.contexts.remove(gpu)

    def allocate(self, context: Any, length_bytes: int) -> int:
        self._step("allocate")
        self.memory = bytearray(length_bytes)
        return RAW

    def free(self, context: Any, pointer: int) -> None:
        assert pointer == RAW
        self.memory = None

    def synchronise_copies(self, context: Any, pointer: int) -> None:
        self._step("synchronise_copies")
        self.synchronised = True

    def export(self, context: Any, pointer: int, length_bytes: int) -> int:
        self._step("export")
        self.exported.append((pointer, length_bytes))
        return os.memfd_create("gpu", os.MFD_CLOEXEC)

    def copy_out(self, context: Any, pointer: int, into: memoryview) -> None:
        self._step("copy_out")
        assert self.memory is not None
        into[:] = self.memory[pointer - RAW : pointer - RAW + len(into)]

    def copy_in(self, context: Any, pointer: int, data: memoryview) -> None:
        self._step("copy_in")
        assert self.memory is not None
        self.memory[pointer - RAW : pointer - RAW + len(data)] = data


@pytest.fixture
def driver():
    played = Driver()
    yield played
    assert (played.contexts, played.memory) == ([], None), "memory and context are given back"


def refusal(call: Callable[[], object]) -> HostError:
    with pytest.raises(HostError) as caught:
        call()
    assert caught.value.why and caught.value.fix
    return caught.value


def test_memory_of_a_gpu(driver, tmp_path) -> None:
    memory = open_cuda(SPEC, 100_000, SysfsRoot(tmp_path), lambda: driver)
    assert memory.offers == {Offer.DMABUF} and memory.is_device_memory
    assert (memory.length_bytes, memory.pci_address, memory.numa_node) == (100_000, "0000:41:00.0", None)
    (buffer,) = memory.buffers()
    # cuMemAlloc gave an address inside a GPU page; pages are what is exported and pinned.
    assert buffer.cpu_address % GPU_PAGE_BYTES == 0 and buffer.cpu_address > RAW
    assert buffer.view is None and driver.synchronised
    into = bytearray(100_001)
    assert memory.read_at(0, memoryview(into)) == 100_000
    assert into[:-1] == parse_pattern("words:4").bytes_at(0, 100_000)
    memory.write_at(99_997, memoryview(b"end"))
    assert buffer.load(99_996, 4)[1:] == b"end"
    descriptor, offset = memory.dmabuf()
    assert offset == 0 and driver.exported == [(buffer.cpu_address, 2 * GPU_PAGE_BYTES)]
    assert memory.dmabuf()[0] == descriptor and len(driver.exported) == 1
    os.fstat(descriptor)
    memory.close()
    memory.close()
    with pytest.raises(OSError):
        os.fstat(descriptor)
    assert refusal_code(memory.dmabuf) == "memory_closed"


def refusal_code(call: Callable[[], object]) -> str:
    with pytest.raises(HostError) as caught:
        call()
    return caught.value.code


def test_a_gpu_that_exports_nothing(driver, tmp_path) -> None:
    driver.exports = 0
    memory = open_cuda(SPEC, 1, SysfsRoot(tmp_path), lambda: driver)
    assert memory.offers == frozenset()
    error = refusal(memory.dmabuf)
    assert (error.code, error.errno) == ("no_cuda_dmabuf", "EOPNOTSUPP")
    assert "nvidia-peermem" in str(error.fix) and driver.exported == []
    memory.close()


def test_an_export_that_fails(driver, tmp_path) -> None:
    driver.fails["export"] = CudaError("cuMemGetHandleForAddressRange", 801, "CUDA_ERROR_NOT_SUPPORTED")
    memory = open_cuda(SPEC, 1, SysfsRoot(tmp_path), lambda: driver)
    error = refusal(memory.dmabuf)
    assert error.code == "no_cuda_dmabuf" and "open kernel modules" in str(error.why)
    memory.close()


@pytest.mark.parametrize(
    ("step", "number", "name", "code"),
    [
        ("open_context", 2, "CUDA_ERROR_OUT_OF_MEMORY", "not_enough_memory"),
        ("allocate", 2, "CUDA_ERROR_OUT_OF_MEMORY", "not_enough_memory"),
        ("synchronise_copies", 1, "CUDA_ERROR_INVALID_VALUE", "cuda_failed"),
        ("attribute", 1, "CUDA_ERROR_INVALID_VALUE", "cuda_failed"),
        ("copy_in", 700, "CUDA_ERROR_ILLEGAL_ADDRESS", "cuda_failed"),
    ],
)
def test_steps_that_fail_leave_nothing(driver, tmp_path, step, number, name, code) -> None:
    driver.fails[step] = CudaError(f"cu_{step}", number, name)
    error = refusal(lambda: open_cuda(SPEC, 4096, SysfsRoot(tmp_path), lambda: driver))
    assert error.code == code and name in error.what


def test_reading_a_gpu_that_fell_off(driver, tmp_path) -> None:
    memory = open_cuda(SPEC, 4096, SysfsRoot(tmp_path), lambda: driver)
    driver.fails["copy_out"] = CudaError("cuMemcpyDtoH", 999, "CUDA_ERROR_UNKNOWN")
    assert "CUDA_ERROR_UNKNOWN" in refusal(lambda: memory.read_at(0, memoryview(bytearray(1)))).what
    memory.close()


def test_no_such_gpu(driver, monkeypatch) -> None:
    error = refusal(lambda: check_cuda(parse_memory_spec("cuda:2"), lambda: driver))
    assert (error.code, error.fix, error.errno) == ("no_device", "cuda:1", "ENODEV")
    monkeypatch.setattr(driver, "count", lambda: 0)
    error = refusal(lambda: check_cuda(parse_memory_spec("cuda:0"), lambda: driver))
    assert error.code == "no_device" and "CUDA_VISIBLE_DEVICES" in str(error.why)


def test_no_driver(monkeypatch) -> None:
    # The real door, with the name of a library that nobody has.
    monkeypatch.setattr("p2prw.engine.memory.cuda_driver.LIBRARY", "libcuda-of-nobody.so.1")
    error = refusal(lambda: check_cuda(parse_memory_spec("cuda:0")))
    assert (error.code, error.errno) == ("no_cuda", "ENOENT")
    assert "libcuda-of-nobody" in str(error.why) and "host,size=64MiB" in str(error.fix)

    def start() -> Driver:
        raise CudaError("cuInit", 100, "CUDA_ERROR_NO_DEVICE")

    error = refusal(lambda: check_cuda(parse_memory_spec("cuda:0"), start))
    assert error.code == "no_cuda" and "CUDA_ERROR_NO_DEVICE" in error.what and "nvidia-smi" in str(error.fix)
