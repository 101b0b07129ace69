"""From a PCI address to an opened function: every step the kernel may refuse, and nothing left open then."""

from __future__ import annotations

import errno

import pytest

from p2prw.engine.memory.vfio_function import (
    DEVICE_BIND_IOMMUFD,
    GROUP_GET_DEVICE_FD,
    GROUP_GET_STATUS,
    GROUP_SET_CONTAINER,
    SET_IOMMU,
    Vfio,
)
from p2prw.errors import HostError

OTHER = "0000:04:00.0"


def refusal(vfio, opener: Vfio | None = None) -> HostError:
    with pytest.raises(HostError) as caught:
        (opener or Vfio(vfio.door, vfio.dev)).open(vfio.sysfs, vfio.address)
    assert caught.value.why and caught.value.fix
    return caught.value


def requests(door) -> list[int]:
    return [request for request, _ in door.calls]


def test_container_then_group_then_function(vfio) -> None:
    vfio.group(7, vfio.address)
    opener = Vfio(vfio.door, vfio.dev)
    function = opener.open(vfio.sysfs, vfio.address)
    assert requests(vfio.door) == [GROUP_GET_STATUS, GROUP_SET_CONTAINER, SET_IOMMU, GROUP_GET_DEVICE_FD]
    names = list(vfio.door.names.values())
    assert names == [str(vfio.dev / "vfio/vfio"), str(vfio.dev / "vfio/7"), "device"]
    container = next(iter(vfio.door.names))
    assert vfio.door.calls[1][1] == container.to_bytes(4, "little") and vfio.door.calls[2][1] == 3
    region = function.region(2)
    assert (region.offset, region.length_bytes, region.can_map) == (2 << 20, vfio.bar_bytes, True)
    function.close()
    function.close()
    assert vfio.door.names == {}


def test_a_group_is_opened_once_and_shared(vfio) -> None:
    vfio.group(7, vfio.address)
    opener = Vfio(vfio.door, vfio.dev)
    first, second = (opener.open(vfio.sysfs, vfio.address) for _ in range(2))
    opener.check(vfio.sysfs, vfio.address)
    assert requests(vfio.door).count(SET_IOMMU) == 1
    assert sorted(vfio.door.names.values()).count("device") == 2
    first.close()
    assert str(vfio.dev / "vfio/7") in vfio.door.names.values()
    second.close()
    assert vfio.door.names == {}


def test_checking_opens_no_function(vfio) -> None:
    vfio.group(7, vfio.address)
    Vfio(vfio.door, vfio.dev).check(vfio.sysfs, vfio.address)
    assert GROUP_GET_DEVICE_FD not in requests(vfio.door) and vfio.door.names == {}


def test_memory_decoding_is_switched_on(vfio) -> None:
    vfio.group(7, vfio.address)
    function = Vfio(vfio.door, vfio.dev).open(vfio.sysfs, vfio.address)
    vfio.command = 0x0100
    assert function.enable_memory() and vfio.command == 0x0102
    assert function.enable_memory() and vfio.command == 0x0102
    vfio.command, vfio.decoding_sticks = 0, True
    assert not function.enable_memory()
    function.close()


def test_not_bound(vfio) -> None:
    vfio.bind("fpga_dma")
    error = refusal(vfio)
    assert (error.code, error.why) == ("not_bound_to_vfio", "its driver is fpga_dma")
    fix = str(error.fix)
    assert fix.index("driver_override") < fix.index("driver/unbind") < fix.index("drivers_probe")
    vfio.bind(None)
    assert "unbind" not in str(refusal(vfio).fix)
    vfio.bind("mlx5-vfio-pci")
    assert refusal(vfio).code == "no_iommu", "a variant driver is VFIO too"


def test_no_iommu(vfio) -> None:
    error = refusal(vfio)
    assert error.code == "no_iommu"
    assert "intel_iommu=on" in str(error.fix) and "enable_unsafe_noiommu_mode" in str(error.fix)


def test_unsafe_mode_without_an_iommu(vfio) -> None:
    vfio.group(3, vfio.address, name="vfio-noiommu")
    function = Vfio(vfio.door, vfio.dev).open(vfio.sysfs, vfio.address)
    assert str(vfio.dev / "vfio/noiommu-3") in vfio.door.names.values()
    assert (SET_IOMMU, 8) in vfio.door.calls
    function.close()


def test_a_group_that_is_not_viable_names_who_is_in_the_way(vfio) -> None:
    vfio.group(7, vfio.address, OTHER, "0000:05:00.0")
    vfio.bind("pcieport", OTHER)
    vfio.status_flags = 0
    error = refusal(vfio)
    assert error.code == "group_not_viable"
    assert "0000:05:00.0 (fpga_dma)" in str(error.why) and OTHER not in str(error.why)


@pytest.mark.parametrize(
    ("file", "number", "code", "fix"),
    [
        ("vfio", errno.ENOENT, "no_vfio", "modprobe vfio-pci"),
        ("vfio", errno.EACCES, "not_permitted", "chmod"),
        ("vfio", errno.EPERM, "not_permitted", "docker"),
        ("7", errno.ENOENT, "no_vfio", "docker"),
        ("7", errno.EBUSY, "vfio_busy", "fuser"),
        ("7", errno.EACCES, "not_permitted", "chown"),
        ("7", errno.EPERM, "not_permitted", "sudo"),
        ("7", errno.EIO, "cannot_open", "dmesg"),
    ],
)
def test_files_that_cannot_be_opened(vfio, file, number, code, fix) -> None:
    vfio.group(7, vfio.address)
    vfio.door.open_errnos[str(vfio.dev / "vfio" / file)] = number
    error = refusal(vfio)
    assert (error.code, error.errno) == (code, errno.errorcode[number])
    assert fix in str(error.fix)


@pytest.mark.parametrize(
    ("request_number", "number", "code", "fix"),
    [
        (SET_IOMMU, errno.EPERM, "unsafe_interrupts", "allow_unsafe_interrupts"),
        (SET_IOMMU, errno.ENODEV, "no_iommu", "vfio_iommu_type1"),
        (GROUP_SET_CONTAINER, errno.EPERM, "not_permitted", "sudo"),
        (GROUP_GET_STATUS, errno.EIO, "cannot_open", "dmesg"),
        (GROUP_GET_DEVICE_FD, errno.ENODEV, "cannot_open", "lspci"),
    ],
)
def test_steps_that_are_refused(vfio, request_number, number, code, fix) -> None:
    vfio.group(7, vfio.address)
    vfio.door.answers[request_number] = number
    error = refusal(vfio)
    assert (error.code, error.errno) == (code, errno.errorcode[number])
    assert fix in str(error.fix)


@pytest.fixture
def own_file(vfio):
    """The device has a file of its own, and there is /dev/iommu (CONFIG_VFIO_DEVICE_CDEV)."""
    (vfio.sysfs.absolute(f"bus/pci/devices/{vfio.address}") / "vfio-dev/vfio0").mkdir(parents=True)
    (vfio.dev / "vfio/devices").mkdir(parents=True)
    (vfio.dev / "vfio/devices/vfio0").touch()
    (vfio.dev / "iommu").touch()
    vfio.door.answers[DEVICE_BIND_IOMMUFD] = 0
    return vfio


def test_through_the_own_file_no_group_is_asked(own_file) -> None:
    vfio = own_file
    opener = Vfio(vfio.door, vfio.dev)
    opener.check(vfio.sysfs, vfio.address)
    assert vfio.door.calls == []
    function = opener.open(vfio.sysfs, vfio.address)
    assert list(vfio.door.names.values()) == [str(vfio.dev / "iommu"), str(vfio.dev / "vfio/devices/vfio0")]
    iommufd = next(iter(vfio.door.names))
    ((request, argument),) = vfio.door.calls
    assert request == DEVICE_BIND_IOMMUFD and argument[8:12] == iommufd.to_bytes(4, "little")
    assert function.region(2).length_bytes == vfio.bar_bytes
    function.close()
    assert vfio.door.names == {}


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EPERM, "unsafe_interrupts"), (errno.EBUSY, "vfio_busy"), (errno.EIO, "cannot_open")]
)
def test_an_iommufd_that_is_refused(own_file, number, code) -> None:
    own_file.door.answers[DEVICE_BIND_IOMMUFD] = number
    assert refusal(own_file).code == code
    own_file.door.open_errnos[str(own_file.dev / "vfio/devices/vfio0")] = errno.EBUSY
    assert refusal(own_file).code == "vfio_busy"
