"""P2P memory of the golden NVMe controller; the kernel's refusals are played, its file is a plain one."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from p2prw.engine.memory.p2pmem import check_p2pmem, open_p2pmem
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Offer
from p2prw.engine.pattern import parse_pattern
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, RequestError

Load = Callable[[str], SysfsRoot]
CMB = "p2pmem:0000:01:00.0"


def test_allocates_what_is_available(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("nvme-cmb")
    assert check_p2pmem(parse_memory_spec(CMB), sysfs) == 0xC0000
    memory = open_p2pmem(parse_memory_spec(f"{CMB},size=10001"), sysfs)
    assert memory.length_bytes == 10001
    assert memory.is_device_memory
    assert memory.offers == {Offer.PAGES, Offer.CPU_MAPPING}
    assert (memory.pci_address, memory.numa_node) == ("0000:01:00.0", 0)
    (buffer,) = memory.buffers()
    assert buffer.view is None
    buffer.store(1, b"abcdefghijklmnopq")
    assert buffer.load(0, 20) == b"\0abcdefghijklmnopq\0\0"
    into = bytearray(20000)
    assert memory.read_at(1, memoryview(into)) == 10000
    assert into[:17] == b"abcdefghijklmnopq"
    # The mapping is shared: the device sees what was stored.
    allocate = sysfs.absolute("bus/pci/devices/0000:01:00.0/p2pmem/allocate")
    with allocate.open("rb") as file:
        assert file.read(4) == b"\0abc"
    assert memory.warnings == ()
    memory.close()


def test_a_source_of_fresh_memory_is_warned_about(golden_sysfs: Load) -> None:
    memory = open_p2pmem(parse_memory_spec(f"{CMB},size=4K"), golden_sysfs("nvme-cmb"), uninitialised_matters=True)
    assert "freshly allocated" in memory.warnings[0]


def test_a_pattern_fills_it(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("nvme-cmb")
    spec = parse_memory_spec(f"{CMB},size=10001,pattern=random:5")
    memory = open_p2pmem(spec, sysfs, uninitialised_matters=True)
    into = bytearray(10001)
    assert memory.read_at(0, memoryview(into)) == 10001
    assert into == parse_pattern("random:5").bytes_at(0, 10001)
    assert memory.warnings == ()
    memory.close()
    with pytest.raises(RequestError, match="no pattern"):
        check_p2pmem(parse_memory_spec(f"{CMB},pattern=stripes"), sysfs)


def refusal(spec: str, sysfs: SysfsRoot) -> HostError:
    with pytest.raises(HostError) as caught:
        open_p2pmem(parse_memory_spec(spec), sysfs)
    assert caught.value.fix and caught.value.why
    return caught.value


def test_where_there_is_none(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("nvme-cmb")
    error = refusal("p2pmem:0000:7f:00.0", sysfs)
    assert (error.code, error.errno) == ("no_device", "ENODEV")
    assert "devices with P2P memory: 0000:01:00.0" in (error.why or "")
    error = refusal("p2pmem:0000:02:00.0", sysfs)
    assert error.code == "no_p2pmem"
    assert "its driver mlx5_core gave none" in (error.why or "")
    error = refusal("p2pmem:0000:03:00.0", golden_sysfs("fpga"))
    assert "no driver is bound" in (error.why or "")
    assert "no device of this host has P2P memory" in (error.why or "")
    error = refusal("p2pmem:0000:08:00.0", golden_sysfs("odd-bars"))
    assert error.code == "no_p2pmem_allocate"
    assert "Linux 6.2" in (error.why or "")


def test_not_enough_of_it(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("nvme-cmb")
    error = refusal(f"{CMB},size=1M", sysfs)
    assert (error.code, error.errno) == ("not_enough_memory", "ENOMEM")
    assert "768 KiB of P2P memory left, not 1 MiB" in error.what
    assert error.fix == f"{CMB},size=786432"
    sysfs.absolute("bus/pci/devices/0000:01:00.0/p2pmem/available").write_text("0\n")
    assert refusal(CMB, sysfs).fix == "stop who holds it"


@pytest.mark.parametrize(
    ("number", "code", "why"),
    [
        (errno.ENOMEM, "not_enough_memory", "fragmented"),
        (errno.ENODEV, "no_device", "unbound"),
        (errno.EACCES, "not_permitted", "right to write"),
        (errno.EPERM, "not_permitted", "lockdown"),
        (errno.EINVAL, "cannot_map", "another form"),
        (errno.EIO, "cannot_map", ""),
    ],
)
def test_what_the_kernel_says_to_mmap(
    golden_sysfs: Load, monkeypatch: pytest.MonkeyPatch, number: int, code: str, why: str
) -> None:
    sysfs = golden_sysfs("nvme-cmb")

    def refuse(*_: object) -> mmap.mmap:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mmap, "mmap", refuse)
    error = refusal(CMB, sysfs)
    assert (error.code, error.errno) == (code, errno.errorcode[number])
    assert why in (error.why or "") or "unbound" in why


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EACCES, "not_permitted"),
        (errno.EROFS, "read_only"),
        (errno.ENOENT, "no_device"),
        (errno.EIO, "cannot_open"),
    ],
)
def test_what_the_kernel_says_to_open(
    golden_sysfs: Load, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    sysfs = golden_sysfs("nvme-cmb")

    def refuse(path: Path, *_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    assert refusal(CMB, sysfs).code == code
