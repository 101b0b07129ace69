"""BARs of the golden machines; plain files play resourceN, and the kernel's refusals are played."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable

import pytest

from p2prw.engine.memory.bar import check_bar, open_bar
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Offer
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

Load = Callable[[str], SysfsRoot]
REGISTERS, MEMORY = "bar:0000:03:00.0/0", "bar:0000:03:00.0/2"


def file_bytes(sysfs: SysfsRoot, name: str, start: int, length: int) -> bytes:
    with sysfs.absolute(f"bus/pci/devices/{name}").open("rb") as file:
        file.seek(start)
        return file.read(length)


def refusal(spec: str, sysfs: SysfsRoot, *, writable: bool = True) -> HostError:
    with pytest.raises(HostError) as caught:
        check_bar(parse_memory_spec(spec), sysfs, writable=writable)
    assert caught.value.fix and caught.value.why
    return caught.value


def test_a_prefetchable_bar_through_its_wc_file(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("fpga")
    memory = open_bar(parse_memory_spec(MEMORY), sysfs, writable=True)
    assert memory.length_bytes == 0x200000
    assert memory.offers == {Offer.CPU_MAPPING}
    assert memory.is_device_memory
    assert memory.bulk
    assert memory.warnings == ()
    assert (memory.pci_address, memory.numa_node) == ("0000:03:00.0", None)
    (buffer,) = memory.buffers()
    assert buffer.view is None
    buffer.store(3, b"0123456789abcdefghij")
    assert buffer.load(0, 24) == b"\0\0\x000123456789abcdefghij\0"
    assert file_bytes(sysfs, "0000:03:00.0/resource2_wc", 3, 20) == b"0123456789abcdefghij"
    assert file_bytes(sysfs, "0000:03:00.0/resource2", 3, 20) == bytes(20)
    memory.commit()
    memory.close()


def test_registers_go_word_by_word(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("fpga")
    memory = open_bar(parse_memory_spec(REGISTERS), sysfs, writable=True)
    assert not memory.bulk
    assert "word by word" in memory.warnings[0]
    memory.write_at(1, memoryview(bytes(range(30))))
    assert file_bytes(sysfs, "0000:03:00.0/resource0", 0, 32) == b"\0" + bytes(range(30)) + b"\0"
    memory.commit()


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 4100, 0x1FFFFF, 0x200000])
def test_any_range_of_a_bar(golden_sysfs: Load, offset: int) -> None:
    sysfs = golden_sysfs("fpga")
    memory = open_bar(parse_memory_spec(f"{MEMORY},offset={offset}"), sysfs, writable=True)
    assert memory.length_bytes == 0x200000 - offset
    count = min(9, memory.length_bytes)
    memory.write_at(0, memoryview(b"ABCDEFGHI")[:count])
    assert file_bytes(sysfs, "0000:03:00.0/resource2_wc", offset, count) == b"ABCDEFGHI"[:count]
    assert offset % mmap.PAGESIZE == memory.buffers()[0].cpu_address % mmap.PAGESIZE
    sized = check_bar(parse_memory_spec(f"{MEMORY},offset={offset},size={count}"), sysfs, writable=True)
    assert (sized.offset, sized.length_bytes) == (offset, count)


def test_a_source_is_mapped_read_only(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("fpga")
    memory = open_bar(parse_memory_spec("bar:0000:05:00.0/2"), sysfs, writable=False)
    assert "driver fpga_dma is bound" in memory.warnings[0]
    assert memory.numa_node == 1
    assert memory.buffers()[0].load(0, 3) == bytes(3)
    with pytest.raises(HostError) as caught:
        memory.write_at(0, memoryview(b"x"))
    assert caught.value.code == "not_writable"
    memory.commit()


def test_a_bound_device_needs_force(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("fpga")
    error = refusal("bar:0000:05:00.0/2", sysfs)
    assert error.code == "bound_device"
    assert "fpga_dma" in error.what
    assert "--force-bound-device" in (error.fix or "") and "driver/unbind" in (error.fix or "")
    spec = parse_memory_spec("bar:0000:05:00.0/2")
    open_bar(spec, sysfs, writable=True, force_bound_device=True).write_at(0, memoryview(b"x"))
    assert file_bytes(sysfs, "0000:05:00.0/resource2_wc", 0, 1) == b"x"


def test_what_cannot_be_mapped(golden_sysfs: Load) -> None:
    fpga, odd = golden_sysfs("fpga"), golden_sysfs("odd-bars")
    error = refusal("bar:0000:04:00.0/0", fpga)
    assert error.code == "decoding_off"
    assert "echo 1 | sudo tee" in (error.fix or "") and "setpci" in (error.fix or "")
    error = refusal("bar:0000:06:00.0/2", odd)
    assert (error.code, error.fix) == ("io_bar", "bar:0000:06:00.0/0")
    assert refusal("bar:0000:07:00.0/0", odd).code == "not_mappable"
    assert "inside a page" in refusal("bar:0000:07:00.0/0", odd).what
    assert refusal("bar:0000:07:00.0/1", odd).code == "bar_unassigned"
    assert refusal("bar:0000:07:00.0/3", odd).errno == "ENOENT"


def test_what_is_not_there_is_listed(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("fpga")
    error = refusal("bar:0000:7f:00.0/0", sysfs)
    assert (error.code, error.errno) == ("no_device", "ENODEV")
    assert "devices with BARs: 0000:03:00.0, 0000:04:00.0, 0000:05:00.0" in (error.why or "")
    error = refusal("bar:0000:03:00.0/3", sysfs)
    assert (error.code, error.fix) == ("no_bar", "bar:0000:03:00.0/0")
    assert "upper half of 64-bit BAR 2" in (error.why or "")
    assert "2: 2 MiB 64-bit prefetchable memory" in (error.why or "")
    error = refusal("bar:0000:09:00.0/0", golden_sysfs("odd-bars"))
    assert error.why == "it has no BARs"


@pytest.mark.parametrize(
    ("options", "fix"),
    [("offset=2097153", "offset=2097152,size=0"), ("offset=1M,size=2M", "offset=1048576,size=1048576")],
)
def test_outside_the_bar(golden_sysfs: Load, options: str, fix: str) -> None:
    error = refusal(f"{MEMORY},{options}", golden_sysfs("fpga"))
    assert (error.code, error.fix) == ("out_of_range", f"{MEMORY},{fix}")
    assert "2097152 bytes (2 MiB)" in error.what


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (errno.EACCES, "not_permitted", "0600"),
        (errno.EPERM, "not_permitted", "lockdown"),
        (errno.EROFS, "read_only", "container"),
        (errno.ENOENT, "no_device", "removed"),
        (errno.EIO, "cannot_open", ""),
    ],
)
def test_what_the_kernel_says_to_open(
    golden_sysfs: Load, monkeypatch: pytest.MonkeyPatch, number: int, code: str, word: str
) -> None:
    sysfs = golden_sysfs("fpga")

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    error = refusal(MEMORY, sysfs)
    assert (error.code, error.errno) == (code, errno.errorcode[number])
    assert word in (error.why or "")


@pytest.mark.parametrize(
    ("spec", "number", "code", "why", "fix"),
    [
        ("bar:0000:05:00.0/2", errno.EINVAL, "bar_held", "driver fpga_dma holds", "iomem=relaxed"),
        (MEMORY, errno.EINVAL, "bar_held", "CONFIG_IO_STRICT_DEVMEM", "boot with iomem=relaxed"),
        (MEMORY, errno.EPERM, "not_permitted", "lockdown", "lockdown"),
        (MEMORY, errno.ENOMEM, "not_enough_memory", "ulimit -v", "size="),
        (MEMORY, errno.EIO, "cannot_map", "", "dmesg"),
    ],
)
def test_what_the_kernel_says_to_mmap(
    golden_sysfs: Load, monkeypatch: pytest.MonkeyPatch, spec: str, number: int, code: str, why: str, fix: str
) -> None:
    sysfs = golden_sysfs("fpga")

    def refuse(*_: object, **__: object) -> mmap.mmap:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mmap, "mmap", refuse)
    error = refusal(spec, sysfs, writable=False)
    assert (error.code, error.errno) == (code, errno.errorcode[number])
    assert why in (error.why or "")
    assert fix in (error.fix or "")


def test_a_device_behind_vfio_pci_is_another_kind(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("fpga")
    driver = sysfs.absolute("bus/pci/devices/0000:05:00.0/driver")
    driver.unlink()
    driver.symlink_to("../../../bus/pci/drivers/vfio-pci")
    error = refusal("bar:0000:05:00.0/2,size=4K", sysfs)
    assert error.code == "bound_device" and "VFIO" in str(error.why)
    assert str(error.fix).startswith("vfio:0000:05:00.0/2,size=4K, or ") and "--force" not in str(error.fix)
    config = sysfs.absolute("bus/pci/devices/0000:05:00.0/config")
    config.write_bytes(bytes(64))
    error = refusal("bar:0000:05:00.0/2,size=4K", sysfs, writable=False)
    assert (error.code, error.fix) == ("decoding_off", "vfio:0000:05:00.0/2,size=4K")
