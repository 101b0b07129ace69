"""A BAR behind vfio-pci: mapped by the rules of BARs, exported in whole pages, each refusal explained."""

from __future__ import annotations

import errno
import os

import pytest

from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.memory.vfio import check_vfio, open_vfio
from p2prw.engine.memory.vfio_function import DEVICE_FEATURE, Vfio
from p2prw.engine.model import Offer
from p2prw.errors import HostError

MEMORY, REGISTERS = "vfio:0000:03:00.0/2", "vfio:0000:03:00.0/0"


@pytest.fixture
def opened(vfio):
    """`opened("...,offset=3")`: the memory; closed afterwards."""
    vfio.group(7, vfio.address)
    vfio.bar_bytes = 0x200000
    made = []
    opener = Vfio(vfio.door, vfio.dev)

    def make(text: str, *, writable: bool = True):
        memory = open_vfio(parse_memory_spec(text), vfio.sysfs, writable=writable, vfio=opener, door=vfio.door)
        made.append(memory)
        return memory

    yield make
    for memory in made:
        memory.close()


def test_a_range_is_mapped_and_exported(vfio, opened) -> None:
    memory = opened(f"{MEMORY},offset=4099,size=5000")
    assert memory.offers == {Offer.DMABUF, Offer.CPU_MAPPING}
    assert memory.is_device_memory and memory.bulk and memory.warnings == ()
    assert (memory.length_bytes, memory.pci_address) == (5000, vfio.address)
    assert vfio.command & 2, "memory decoding was switched on"
    memory.write_at(2, memoryview(b"0123456789"))
    device = next(number for number, name in vfio.door.names.items() if name == "device")
    assert os.pread(device, 10, (2 << 20) + 4101) == b"0123456789"
    assert memory.buffers()[0].view is None, "by the access rules of device memory only"
    assert vfio.exported == [], "exported when it is asked for"
    descriptor, offset = memory.dmabuf()
    # 5000 bytes from 4099 on lie in two pages.
    assert (offset, vfio.exported) == (3, [(2, [(4096, 8192)])])
    assert memory.dmabuf() == (descriptor, offset) and len(vfio.exported) == 1
    assert vfio.door.names[descriptor] == "dmabuf"
    memory.commit()
    memory.close()
    assert vfio.door.names == {}
    for use in (memory.dmabuf, memory.buffers):
        with pytest.raises(HostError) as caught:
            use()
        assert caught.value.code == "memory_closed"


def test_two_regions_of_one_function(vfio, opened) -> None:
    first, second = opened(f"{MEMORY},size=4096"), opened(f"{MEMORY},offset=4096,size=4096")
    first.write_at(0, memoryview(b"first"))
    second.write_at(0, memoryview(b"second"))
    into = bytearray(5)
    first.read_at(0, memoryview(into))
    assert into == b"first"
    first.close()
    second.write_at(0, memoryview(b"still"))


def test_a_source_is_read_only(opened) -> None:
    memory = opened(f"{MEMORY},size=4096", writable=False)
    with pytest.raises(HostError) as caught:
        memory.write_at(0, memoryview(b"x"))
    assert caught.value.code == "not_writable"


def test_registers_and_resets_are_warned_of(vfio, opened) -> None:
    vfio.sysfs.absolute(f"bus/pci/devices/{vfio.address}/reset_method").write_text("flr bus\n")
    memory = opened(f"{REGISTERS},size=64")
    assert not memory.bulk
    assert "word by word" in memory.warnings[0] and "resets the function" in memory.warnings[1]


def test_a_kernel_range_vector(vfio, opened) -> None:
    """Two ranges make one dma-buf of their sum: the kernel's own dma vec."""
    function = opened(f"{MEMORY},size=4096")._function
    descriptor = function.export(2, [(8192, 4096), (0, 8192)])
    assert os.lseek(descriptor, 0, os.SEEK_END) == 12288
    assert vfio.exported == [(2, [(8192, 4096), (0, 8192)])]
    vfio.door.close(descriptor)


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (errno.ENOTTY, "no_vfio_dmabuf", "Linux 6.19"),
        (errno.EOPNOTSUPP, "no_vfio_dmabuf", "CONFIG_VFIO_PCI_DMABUF"),
        (errno.EINVAL, "no_vfio_dmabuf", "whole pages"),
        (errno.ENODEV, "revoked", "decoding"),
        (errno.EOVERFLOW, "out_of_range", "64 bits"),
        (errno.EPERM, "not_permitted", "security"),
        (errno.EIO, "no_vfio_dmabuf", "no other reason"),
    ],
)
def test_what_the_exporter_may_say(vfio, opened, number, code, says) -> None:
    memory = opened(f"{MEMORY},size=4096")
    vfio.door.answers[DEVICE_FEATURE] = number
    with pytest.raises(HostError) as caught:
        memory.dmabuf()
    assert (caught.value.code, says in str(caught.value.why)) == (code, True)
    assert caught.value.fix
    memory.write_at(0, memoryview(b"x"))  # the mapping is untouched: bounce goes on


def test_a_small_bar_maps_no_further_than_it_reaches(vfio, opened) -> None:
    vfio.bar_bytes = 256
    with pytest.raises(HostError) as caught:
        opened(f"{MEMORY},size=4096")
    assert caught.value.code == "not_mappable"
    vfio.bar_bytes, vfio.region_flags = 0x200000, 0
    with pytest.raises(HostError) as caught:
        opened(f"{MEMORY},size=4096")
    assert caught.value.code == "not_mappable" and "resource_alignment" in str(caught.value.fix)
    assert vfio.door.names == {}


def test_a_function_that_stays_silent(vfio, opened) -> None:
    vfio.decoding_sticks = True
    with pytest.raises(HostError) as caught:
        opened(MEMORY)
    assert caught.value.code == "decoding_off" and vfio.door.names == {}


def test_a_mapping_that_is_refused(vfio, opened, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise OSError(errno.EINVAL, "scripted")

    monkeypatch.setattr(vfio.door, "map", refuse)
    with pytest.raises(HostError) as caught:
        opened(MEMORY)
    assert (caught.value.code, caught.value.errno) == ("cannot_map", "EINVAL") and vfio.door.names == {}


@pytest.mark.parametrize(
    ("text", "code", "fix"),
    [
        ("vfio:0000:99:00.0/0", "no_device", "p2prw devices"),
        ("vfio:0000:03:00.0/5", "no_bar", "vfio:0000:03:00.0/0"),
        ("vfio:0000:03:00.0/2,offset=1GiB", "out_of_range", "vfio:0000:03:00.0/2,offset="),
    ],
)
def test_ranges_that_are_not_there(vfio, text, code, fix) -> None:
    with pytest.raises(HostError) as caught:
        check_vfio(parse_memory_spec(text), vfio.sysfs, Vfio(vfio.door, vfio.dev))
    assert caught.value.code == code and fix in str(caught.value.fix)


def test_an_io_bar(golden_sysfs, door) -> None:
    with pytest.raises(HostError) as caught:
        check_vfio(parse_memory_spec("vfio:0000:06:00.0/2"), golden_sysfs("odd-bars"), Vfio(door))
    assert (caught.value.code, caught.value.fix) == ("io_bar", "vfio:0000:06:00.0/0")
