"""Opens PCI functions through VFIO and speaks its ioctls: group and container, or the device's own file and iommufd.

Source: include/uapi/linux/vfio.h, Documentation/driver-api/vfio.rst. Owns descriptors and nothing else; no DMA is ever
set up for the function, so an IOMMU keeps it away from all memory. Every failure says what to type.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from p2prw.engine.memory.bar import is_vfio_driver
from p2prw.engine.memory.kernel_door import KERNEL, KernelDoor
from p2prw.engine.memory.kernel_errors import Reason, kernel_error
from p2prw.engine.topology.pci import device_path
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

_BASE = ord(";") << 8
# _IO(';', 100 + n)
SET_IOMMU = _BASE + 102
GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_GET_DEVICE_FD = _BASE + 103, _BASE + 104, _BASE + 106
DEVICE_GET_REGION_INFO, DEVICE_FEATURE, DEVICE_BIND_IOMMUFD = _BASE + 108, _BASE + 117, _BASE + 118
_TYPE1V2_IOMMU, _NOIOMMU_IOMMU = 3, 8
_GROUP_VIABLE = 1
_STATUS = struct.Struct("=II")  # argsz, flags
_BIND = struct.Struct("=IIiI")  # argsz, flags, iommufd, out_devid
_REGION = struct.Struct("=IIIIQQ")  # argsz, flags, index, cap_offset, size, offset
_REGION_MMAP = 4
_CONFIG_REGION = 7  # VFIO_PCI_CONFIG_REGION_INDEX; 0 to 5 are the BARs
_FEATURE_GET, _FEATURE_DMA_BUF = 1 << 16, 11
_FEATURE = struct.Struct("=IIIIII")  # argsz, flags; region_index, open_flags, flags, nr_ranges
_RANGE = struct.Struct("=QQ")  # offset, length
_COMMAND, _COMMAND_MEMORY = 4, 2  # PCI Local Bus 3.0, 6.2.2


@dataclass(frozen=True, slots=True)
class VfioRegion:
    """A BAR as the device file offers it."""

    offset: int
    """In the device file."""
    length_bytes: int
    can_map: bool


class VfioFunction:
    """One opened function. Its dma-bufs are revoked when it is closed."""

    def __init__(self, door: KernelDoor, descriptor: int, on_close: Callable[[], None]) -> None:
        self._door = door
        self._descriptor = descriptor
        self._on_close = on_close

    def region(self, index: int) -> VfioRegion:
        """VFIO_DEVICE_GET_REGION_INFO. OSError."""
        argument = bytearray(_REGION.pack(_REGION.size, 0, index, 0, 0, 0))
        self._door.ioctl(self._descriptor, DEVICE_GET_REGION_INFO, argument)
        _, flags, _, _, length_bytes, offset = _REGION.unpack(argument)
        return VfioRegion(offset, length_bytes, bool(flags & _REGION_MMAP))

    def map(self, region: VfioRegion, offset: int, length_bytes: int, *, writable: bool) -> mmap.mmap:
        """Map a page-aligned piece of a BAR. OSError."""
        return self._door.map(self._descriptor, length_bytes, region.offset + offset, writable=writable)

    def export(self, index: int, ranges: list[tuple[int, int]]) -> int:
        """VFIO_DEVICE_FEATURE_DMA_BUF: return a dma-buf of the (offset, length) ranges, one after the other. OSError.

        Several ranges make one buffer: the kernel's own dma vec.
        """
        body = b"".join(_RANGE.pack(*one) for one in ranges)
        flags = _FEATURE_GET | _FEATURE_DMA_BUF
        head = _FEATURE.pack(_FEATURE.size + len(body), flags, index, os.O_RDWR | os.O_CLOEXEC, 0, len(ranges))
        return self._door.ioctl(self._descriptor, DEVICE_FEATURE, bytearray(head + body))

    def enable_memory(self) -> bool:
        """Switch memory decoding on where it is off (mappings would fault, dma-bufs are revoked); tell if it is."""
        config = self.region(_CONFIG_REGION)
        command = int.from_bytes(self._door.pread(self._descriptor, 2, config.offset + _COMMAND), "little")
        if command & _COMMAND_MEMORY:
            return True
        word = (command | _COMMAND_MEMORY).to_bytes(2, "little")
        self._door.pwrite(self._descriptor, word, config.offset + _COMMAND)
        return bool(self._door.pread(self._descriptor, 1, config.offset + _COMMAND)[0] & _COMMAND_MEMORY)

    def close(self) -> None:
        """Close the function; its group too where it was the last. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._door.close(descriptor)
            self._on_close()


@dataclass(slots=True)
class _Group:
    descriptors: list[int] = field(default_factory=list)
    users: int = 0


class Vfio:
    """Opens functions. The kernel lets a group be opened once at a time, so its users in this process share it."""

    def __init__(self, door: KernelDoor = KERNEL, dev: Path = Path("/dev")) -> None:
        self._door = door
        self._dev = dev
        self._groups: dict[str, _Group] = {}
        self._lock = threading.Lock()

    def check(self, sysfs: SysfsRoot, address: str) -> None:
        """Raise HostError where `open` is bound to fail. The function itself stays closed: opening one resets it."""
        _require_driver(sysfs, address)
        if self._own_file(sysfs, address) is None:
            name = self._join_group(sysfs, address)
            self._leave_group(name)

    def open(self, sysfs: SysfsRoot, address: str) -> VfioFunction:
        """Open a function. HostError for each of the many ways in which that fails."""
        _require_driver(sysfs, address)
        own = self._own_file(sysfs, address)
        if own is not None:
            return self._open_own(own)
        name = self._join_group(sysfs, address)
        try:
            argument = bytearray(address.encode() + b"\0")
            descriptor = self._door.ioctl(self._groups[name].descriptors[-1], GROUP_GET_DEVICE_FD, argument)
        except OSError as error:
            self._leave_group(name)
            raise kernel_error(
                f"VFIO does not hand out {address}",
                error,
                why="it was unbound from vfio-pci a moment ago, or it cannot be enabled or woken up",
                fix=f"lspci -vs {address}; dmesg | tail",
            ) from error
        return VfioFunction(self._door, descriptor, lambda: self._leave_group(name))

    # --- the group and its container

    def _join_group(self, sysfs: SysfsRoot, address: str) -> str:
        with self._lock:
            number = sysfs.link_name(f"{device_path(address)}/iommu_group")
            if number is None:
                raise HostError(
                    f"{address} is in no IOMMU group",
                    why="VFIO needs an IOMMU that is on, or its unsafe mode without one",
                    fix="boot with intel_iommu=on (AMD: on by itself; firmware: VT-d or AMD-Vi), or echo Y | sudo tee "
                    "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode and bind the device again",
                    code="no_iommu",
                )
            unsafe = sysfs.read_text(f"{device_path(address)}/iommu_group/name") == "vfio-noiommu"
            name = f"noiommu-{number}" if unsafe else number
            group = self._groups.get(name)
            if group is None:
                group = self._open_group(sysfs, address, name, _NOIOMMU_IOMMU if unsafe else _TYPE1V2_IOMMU)
                self._groups[name] = group
            group.users += 1
            return name

    def _leave_group(self, name: str) -> None:
        with self._lock:
            group = self._groups[name]
            group.users -= 1
            if group.users == 0:
                del self._groups[name]
                for descriptor in reversed(group.descriptors):
                    self._door.close(descriptor)

    def _open_group(self, sysfs: SysfsRoot, address: str, name: str, iommu_type: int) -> _Group:
        group = _Group()
        try:
            file = self._dev / "vfio/vfio"
            container = self._open_file(file, _container_reasons(file))
            group.descriptors.append(container)
            file = self._dev / "vfio" / name
            descriptor = self._open_file(file, _group_reasons(file))
            group.descriptors.append(descriptor)
            status = bytearray(_STATUS.pack(_STATUS.size, 0))
            self._step(f"ask the state of IOMMU group {name}", descriptor, GROUP_GET_STATUS, status)
            if not _STATUS.unpack(status)[1] & _GROUP_VIABLE:
                raise _not_viable(sysfs, address, name)
            number = container.to_bytes(4, "little")
            self._step(f"put IOMMU group {name} into a container", descriptor, GROUP_SET_CONTAINER, bytearray(number))
            self._step(f"give IOMMU group {name} an address space", container, SET_IOMMU, iommu_type)
        except BaseException:
            for opened in reversed(group.descriptors):
                self._door.close(opened)
            raise
        return group

    def _step(self, what: str, descriptor: int, request: int, argument: bytearray | int) -> None:
        try:
            self._door.ioctl(descriptor, request, argument)
        except OSError as error:
            raise _step_error(what, request, error) from error

    def _open_file(self, path: Path, reasons: dict[int, Reason]) -> int:
        try:
            return self._door.open(str(path), os.O_RDWR)
        except OSError as error:
            raise kernel_error(f"cannot open {path}", error, reasons) from error

    # --- the device's own file (Linux 6.6 with CONFIG_VFIO_DEVICE_CDEV)

    def _own_file(self, sysfs: SysfsRoot, address: str) -> Path | None:
        """Return /dev/vfio/devices/vfioN where it and /dev/iommu are there."""
        for name in sysfs.list(f"{device_path(address)}/vfio-dev"):
            path = self._dev / "vfio/devices" / name
            if path.exists() and (self._dev / "iommu").exists():
                return path
        return None

    def _open_own(self, path: Path) -> VfioFunction:
        iommu = self._dev / "iommu"
        iommufd = self._open_file(iommu, _container_reasons(iommu))
        try:
            descriptor = self._open_file(path, _group_reasons(path))
            try:
                argument = bytearray(_BIND.pack(_BIND.size, 0, iommufd, 0))
                self._step(f"bind {path} to an iommufd", descriptor, DEVICE_BIND_IOMMUFD, argument)
            except BaseException:
                self._door.close(descriptor)
                raise
        except BaseException:
            self._door.close(iommufd)
            raise
        return VfioFunction(self._door, descriptor, lambda: self._door.close(iommufd))


def _require_driver(sysfs: SysfsRoot, address: str) -> None:
    driver = sysfs.link_name(f"{device_path(address)}/driver")
    if is_vfio_driver(driver):
        return
    base = sysfs.absolute(device_path(address))
    unbind = f"echo {address} | sudo tee {base}/driver/unbind; " if driver else ""
    raise HostError(
        f"{address} is not bound to vfio-pci",
        why=f"its driver is {driver}" if driver else "no driver is bound to it",
        fix=f"sudo modprobe vfio-pci; echo vfio-pci | sudo tee {base}/driver_override; {unbind}"
        f"echo {address} | sudo tee {sysfs.absolute('bus/pci/drivers_probe')}",
        code="not_bound_to_vfio",
    )


def _not_viable(sysfs: SysfsRoot, address: str, name: str) -> HostError:
    members = [
        f"{other} ({driver})"
        for other in sysfs.list(f"{device_path(address)}/iommu_group/devices")
        if other != address
        and (driver := sysfs.link_name(f"{device_path(other)}/driver")) is not None
        and not is_vfio_driver(driver)
        and driver not in ("pci-stub", "pcieport")
    ]
    return HostError(
        f"IOMMU group {name} of {address} is not viable",
        why="other functions of the group have drivers of their own: " + (", ".join(members) or "unknown ones"),
        fix="unbind them or bind them to vfio-pci too; a slot behind a port with ACS has a group of its own",
        code="group_not_viable",
    )


def _container_reasons(path: Path) -> dict[int, Reason]:
    return {
        errno.ENOENT: ("no_vfio", "the vfio module is not loaded, or the container hides it", "sudo modprobe vfio-pci"),
        errno.EACCES: ("not_permitted", "the file is not yours", f"sudo, or sudo chmod a+rw {path}"),
        errno.EPERM: ("not_permitted", "the container's device rules forbid it", "docker run --device /dev/vfio"),
    }


def _group_reasons(path: Path) -> dict[int, Reason]:
    return {
        errno.ENOENT: ("no_vfio", "the container hides it, or the device was unbound", "docker run --device /dev/vfio"),
        errno.EBUSY: ("vfio_busy", "another process (a virtual machine?) has it open", f"sudo fuser -v {path}"),
        errno.EACCES: ("not_permitted", "the file is root's", f"sudo, or sudo chown $USER {path}"),
        errno.EPERM: (
            "not_permitted",
            "the container's device rules forbid it, or it is a noiommu group, which needs CAP_SYS_RAWIO",
            "sudo, or docker run --device /dev/vfio",
        ),
    }


def _step_error(what: str, request: int, error: OSError) -> HostError:
    every_step: dict[int, dict[int, Reason]] = {
        SET_IOMMU: {
            errno.EPERM: _unsafe_interrupts("vfio_iommu_type1"),
            errno.ENODEV: ("no_iommu", "no IOMMU backend is loaded", "sudo modprobe vfio_iommu_type1"),
        },
        GROUP_SET_CONTAINER: {errno.EPERM: ("not_permitted", "a noiommu group needs CAP_SYS_RAWIO", "sudo")},
        DEVICE_BIND_IOMMUFD: {
            errno.EPERM: _unsafe_interrupts("iommufd"),
            errno.EBUSY: ("vfio_busy", "another process has it open", "sudo fuser -v /dev/vfio/*"),
        },
    }
    return kernel_error(f"cannot {what}", error, every_step.get(request, {}))


def _unsafe_interrupts(module: str) -> Reason:
    return (
        "unsafe_interrupts",
        "this IOMMU does not remap interrupts, so the device could forge them",
        f"on a machine of your own: echo 1 | sudo tee /sys/module/{module}/parameters/allow_unsafe_interrupts",
    )


VFIO = Vfio()
"""This process's open groups."""
