"""Host memory: present before it is handed out, filled, bound, counted against limits, or a program's own."""

from __future__ import annotations

import ctypes
import errno
import mmap
import platform
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from p2prw.engine.memory import host
from p2prw.engine.memory.host import HostMemory, check_host, open_host, open_scratch
from p2prw.engine.memory.prepare import prepare_memory
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Offer
from p2prw.engine.pattern import parse_pattern
from p2prw.engine.stop import StopRequest
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, InterruptedTransfer, RequestError

PAGE = mmap.PAGESIZE


def resident_pages(address: int, pages: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    states = (ctypes.c_ubyte * pages)()
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(pages * PAGE), states) == 0
    return sum(state & 1 for state in states)


def test_every_page_is_present() -> None:
    memory = open_host(parse_memory_spec("host,size=1M"))
    (buffer,) = memory.buffers()
    assert buffer.cpu_address % PAGE == 0
    assert resident_pages(buffer.cpu_address, 256) == 256
    assert buffer.view is not None and not buffer.view.readonly
    assert bytes(buffer.view) == bytes(1024 * 1024)
    assert memory.offers == {Offer.PAGES, Offer.CPU_MAPPING}
    assert not memory.is_device_memory
    memory.close()


def test_pages_are_touched_on_old_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_MADV_POPULATE_WRITE", 9999)  # EINVAL, as before Linux 5.14
    memory = open_scratch(64 * PAGE)
    assert resident_pages(memory.buffers()[0].cpu_address, 64) == 64
    memory.close()


def test_memory_that_takes_long_says_so_and_hears_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    stop = StopRequest(told.append)
    monkeypatch.setattr(host, "_SLOW_BYTES", 2 * PAGE)
    open_host(parse_memory_spec(f"host,size={PAGE}"), stop=stop).close()
    assert not told
    prepare_memory(parse_memory_spec(f"host,size={2 * PAGE}"), "source").open(None, stop).close()
    assert told == ["taking 8 KiB of host memory"]
    stop.set(2)
    with pytest.raises(InterruptedTransfer):
        open_host(parse_memory_spec("host,size=1M"), stop=stop)


def test_a_kernel_without_pages_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, *_: object) -> None:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    with pytest.raises(HostError) as caught:
        open_host(parse_memory_spec("host,size=1M"))
    assert (caught.value.code, caught.value.errno) == ("not_enough_memory", "ENOMEM")


@pytest.mark.parametrize("length", [0, 1, PAGE - 1, PAGE + 1, 3 * PAGE])
def test_any_length(length: int) -> None:
    memory = open_scratch(length)
    (buffer,) = memory.buffers()
    assert memory.length_bytes == buffer.length_bytes == length
    assert buffer.view is not None and len(buffer.view) == length
    assert buffer.cpu_address or not length
    memory.close()


def test_load_is_a_view_and_store_writes() -> None:
    memory = open_scratch(100)
    (buffer,) = memory.buffers()
    seen = buffer.load(10, 4)
    assert isinstance(seen, memoryview)
    buffer.store(10, b"abcd")
    assert bytes(seen) == b"abcd"


def test_pattern() -> None:
    memory = open_host(parse_memory_spec("host,size=100003,pattern=words:5"))
    assert bytes(memory.buffers()[0].load(0, 100003)) == parse_pattern("words:5").bytes_at(0, 100003)
    with pytest.raises(RequestError):
        check_host(parse_memory_spec("host,size=1,pattern=nonsense"), 1, SysfsRoot())


def test_elastic_takes_the_size_it_is_given() -> None:
    assert open_host(parse_memory_spec("host"), 77).length_bytes == 77
    # The user's size wins over the transfer's.
    assert open_host(parse_memory_spec("host,size=100"), 77).length_bytes == 100
    with pytest.raises(RequestError) as caught:
        open_host(parse_memory_spec("host"))
    assert (caught.value.code, caught.value.fix) == ("missing_size", "host,size=64MiB")


def test_limits_are_looked_at_first(fake_proc: Callable[..., Path], tmp_path: Path) -> None:
    proc = fake_proc(available_kib=64 * 1024)
    with pytest.raises(HostError) as caught:
        open_host(parse_memory_spec("host,size=1G"), sysfs=SysfsRoot(tmp_path), proc=proc)
    assert caught.value.code == "not_enough_memory"


def test_no_address_space_is_explained(fake_proc: Callable[..., Path], tmp_path: Path) -> None:
    proc = fake_proc(available_kib=None)
    for size in ("4096T", "0xffffffffffffffffff"):
        with pytest.raises(HostError) as caught:
            open_host(parse_memory_spec(f"host,size={size}"), sysfs=SysfsRoot(tmp_path), proc=proc)
        assert (caught.value.code, caught.value.errno) == ("not_enough_memory", "ENOMEM")


def test_huge_pages_that_are_free_but_reserved(golden_sysfs: Callable[[str], SysfsRoot]) -> None:
    real = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    if real.exists() and int(real.read_text()) > 0:
        pytest.skip("this host has huge pages to give; the test needs one without")
    with pytest.raises(HostError) as caught:
        open_host(parse_memory_spec("host,size=2M,hugepages=2M"), sysfs=golden_sysfs("fpga"))
    assert caught.value.code == "no_hugepages"
    assert caught.value.fix == "sudo sysctl vm.nr_hugepages=1"


def test_huge_pages_for_real() -> None:
    pool = Path("/proc/sys/vm/nr_hugepages")
    try:
        before = pool.read_text()
        pool.write_text("2\n")
    except OSError as error:
        pytest.skip(f"cannot reserve huge pages here: {error}")
    try:
        if int(pool.read_text()) < 2:
            pytest.skip("the kernel found no huge pages to reserve")
        memory = open_host(parse_memory_spec("host,size=3M,hugepages=2M"))
        assert memory.length_bytes == 3 * 1024**2
        assert memory.buffers()[0].cpu_address % (2 * 1024**2) == 0
        memory.close()
    finally:
        pool.write_text(before)


def test_numa_binding() -> None:
    if not Path("/sys/devices/system/node/node0").exists():
        pytest.skip("this kernel has no NUMA nodes")
    try:
        memory = open_host(parse_memory_spec("host,size=1M,numa=0"))
    except HostError as error:
        if error.errno in ("EPERM", "ENOSYS"):
            pytest.skip(f"mbind is not allowed here: {error}")
        raise
    assert memory.numa_node == 0
    maps = Path("/proc/self/numa_maps")
    if maps.exists():
        line = next(
            row for row in maps.read_text().splitlines() if row.startswith(f"{memory.buffers()[0].cpu_address:x} ")
        )
        assert "bind:0" in line
    memory.close()


def test_numa_binding_refused(golden_sysfs: Callable[[str], SysfsRoot], monkeypatch: pytest.MonkeyPatch) -> None:
    sysfs = golden_sysfs("fpga")
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(HostError) as caught:
        open_host(parse_memory_spec("host,size=1M,numa=1"), sysfs=sysfs)
    assert caught.value.code == "numa_bind"
    assert "numactl" in (caught.value.fix or "")


def test_memory_of_a_program() -> None:
    owned = bytearray(b"0123456789")
    memory = HostMemory.from_buffer(owned)
    assert memory.length_bytes == 10
    memory.write_at(0, memoryview(b"ab"))
    assert owned == b"ab23456789"
    array = numpy.arange(4, dtype=numpy.uint64)
    assert HostMemory.from_buffer(array).length_bytes == 32
    assert HostMemory.from_buffer(b"").length_bytes == 0
    assert memory.spec.kind == "host"
    assert memory.spec.options == {"size": "10"}
    with pytest.raises(RequestError) as caught:
        HostMemory.from_buffer(array[::2])
    assert caught.value.code == "not_contiguous"


def test_bytes_are_a_source_only() -> None:
    memory = HostMemory.from_buffer(b"constant")
    into = bytearray(8)
    assert memory.read_at(0, memoryview(into)) == 8
    assert into == b"constant"
    with pytest.raises(HostError):
        memory.write_at(0, memoryview(b"x"))
