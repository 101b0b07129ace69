"""Machines to test on: golden sysfs trees with mappable BARs, a small disk, a /proc and a /dev made to order."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2prw.engine.topology.pci import list_pci_devices
from p2prw.engine.topology.sysfs import SysfsRoot

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


@pytest.fixture
def golden_sysfs(tmp_path: Path) -> Callable[[str], SysfsRoot]:
    """Return a function from a machine's name to a writable copy of its tree, with files as big as their BARs."""

    def load(machine: str) -> SysfsRoot:
        target = tmp_path / machine
        shutil.copytree(GOLDEN / machine / "sys", target, symlinks=True)
        sysfs = SysfsRoot(target)
        for device in list_pci_devices(sysfs):
            directory = target / "bus/pci/devices" / device.address
            for bar in device.bars:
                for name in (f"resource{bar.index}", f"resource{bar.index}_wc"):
                    if (directory / name).exists():
                        os.truncate(directory / name, bar.length_bytes)
            if device.p2pmem is not None and device.p2pmem.can_allocate:
                os.truncate(directory / "p2pmem/allocate", device.p2pmem.size_bytes)
        return sysfs

    return load


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a 1 MiB tmpfs; only root can, others skip."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "p2prw-test", str(directory)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture
def fake_proc(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a /proc with some memory, cgroup lines, mounts and swaps."""

    def make(
        available_kib: int | None = 1024 * 1024, cgroup: str = "", mountinfo: str = "", swaps: str = "Filename\n"
    ) -> Path:
        proc = tmp_path / "proc"
        (proc / "self").mkdir(parents=True, exist_ok=True)
        if available_kib is not None:
            text = f"MemTotal:       {2 * available_kib} kB\nMemFree:  1 kB\nMemAvailable:   {available_kib} kB\n"
            (proc / "meminfo").write_text(text)
        (proc / "self/cgroup").write_text(cgroup)
        (proc / "self/mountinfo").write_text(mountinfo)
        (proc / "swaps").write_text(swaps)
        return proc

    return make


class ScriptedDoor:
    """A `KernelDoor`: files are memfds that can be mapped, and a script answers opens and ioctls."""

    def __init__(self) -> None:
        self.open_errnos: dict[str, int] = {}
        """Path -> errno."""
        self.answers: dict[int, int | Callable[[int, bytearray | int], int]] = {}
        """Request -> errno, or what answers (descriptor, argument)."""
        self.calls: list[tuple[int, bytes | int]] = []
        self.names: dict[int, str] = {}
        """Every descriptor that is open."""

    def new_file(self, name: str, length_bytes: int = mmap.PAGESIZE) -> int:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(descriptor, length_bytes)
        self.names[descriptor] = name
        return descriptor

    def open(self, path: str, flags: int) -> int:
        number = self.open_errnos.get(path, 0)
        if number:
            raise OSError(number, os.strerror(number), path)
        return self.new_file(path)

    def ioctl(self, descriptor: int, request: int, argument: bytearray | int = 0) -> int:
        assert descriptor in self.names
        self.calls.append((request, argument if isinstance(argument, int) else bytes(argument)))
        answer = self.answers.get(request, 0)
        if callable(answer):
            return answer(descriptor, argument)
        if answer:
            raise OSError(answer, os.strerror(answer))
        return 0

    def map(self, descriptor: int, length_bytes: int, offset: int, *, writable: bool) -> mmap.mmap:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(descriptor, length_bytes, mmap.MAP_SHARED, protection, offset=offset)

    def pread(self, descriptor: int, length_bytes: int, offset: int) -> bytes:
        return os.pread(descriptor, length_bytes, offset)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> None:
        os.pwrite(descriptor, data, offset)

    def close(self, descriptor: int) -> None:
        del self.names[descriptor]
        os.close(descriptor)


@pytest.fixture
def door() -> Iterator[ScriptedDoor]:
    """A kernel that is played; whatever it handed out must be closed in the end."""
    scripted = ScriptedDoor()
    yield scripted
    left = dict(scripted.names)
    for descriptor in left:
        os.close(descriptor)
    assert not left, "descriptors were left open"


class ScriptedVfio:
    """/dev/vfio of one machine, and a tree in which one function is bound to vfio-pci. BAR 2 is `bar_bytes` long.

    The device file has each region at index << 20 (the kernel: << 40), and counts what was opened.
    """

    bar_bytes = 1 << 18
    address = "0000:03:00.0"

    def __init__(self, door: ScriptedDoor, sysfs: SysfsRoot, dev: Path) -> None:
        self.door, self.sysfs, self.dev = door, sysfs, dev
        self.status_flags, self.region_flags = 1, 4
        self.command = 0
        self.decoding_sticks = False
        """Writes to the command register are lost."""
        self.exported: list[tuple[int, list[tuple[int, int]]]] = []
        door.answers[_VFIO + 103] = self._status
        door.answers[_VFIO + 106] = self._device
        door.answers[_VFIO + 108] = self._region
        door.answers[_VFIO + 117] = self._feature
        door.pread, door.pwrite = self._pread, self._pwrite  # type: ignore[method-assign,assignment]
        self.bind("vfio-pci")

    def bind(self, driver: str | None, address: str | None = None) -> None:
        base = self.sysfs.absolute(f"bus/pci/devices/{address or self.address}")
        (base / "driver").unlink(missing_ok=True)
        if driver is not None:
            (self.sysfs.path / "bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
            (base / "driver").symlink_to(self.sysfs.path / "bus/pci/drivers" / driver)

    def group(self, number: int, *addresses: str, name: str | None = None) -> None:
        group = self.sysfs.path / f"kernel/iommu_groups/{number}"
        (group / "devices").mkdir(parents=True)
        if name is not None:
            (group / "name").write_text(f"{name}\n")
        for address in addresses:
            base = self.sysfs.absolute(f"bus/pci/devices/{address}")
            (base / "iommu_group").symlink_to(group)
            (group / "devices" / address).symlink_to(base)

    def _status(self, _: int, argument: bytearray | int) -> int:
        assert isinstance(argument, bytearray)
        argument[4:8] = self.status_flags.to_bytes(4, "little")
        return 0

    def _device(self, _: int, argument: bytearray | int) -> int:
        assert isinstance(argument, bytearray) and argument == self.address.encode() + b"\0"
        return self.door.new_file("device", 8 << 20)

    def _region(self, _: int, argument: bytearray | int) -> int:
        assert isinstance(argument, bytearray) and argument[:4] == (32).to_bytes(4, "little")
        index = int.from_bytes(argument[8:12], "little")
        argument[4:8] = self.region_flags.to_bytes(4, "little")
        argument[16:24] = self.bar_bytes.to_bytes(8, "little")
        argument[24:32] = (index << 20).to_bytes(8, "little")
        return 0

    def _feature(self, _: int, argument: bytearray | int) -> int:
        """Say what drivers/vfio/pci/vfio_pci_dmabuf.c says."""
        assert isinstance(argument, bytearray)
        argsz, flags, index, open_flags, zero, count = struct.unpack_from("=6I", argument)
        assert (flags, open_flags, zero) == (1 << 16 | 11, os.O_RDWR | os.O_CLOEXEC, 0) and argsz == len(argument)
        ranges = list(struct.iter_unpack("=QQ", argument[24:]))
        assert len(ranges) == count
        if index >= 6:
            raise OSError(errno.ENODEV, "scripted")
        for offset, length in ranges:
            if not length or offset % 4096 or length % 4096 or offset + length > self.bar_bytes:
                raise OSError(errno.EINVAL, "scripted")
        if not ranges:
            raise OSError(errno.EINVAL, "scripted")
        self.exported.append((index, ranges))
        return self.door.new_file("dmabuf", sum(length for _, length in ranges))

    def _pread(self, _: int, length_bytes: int, offset: int) -> bytes:
        assert offset == (7 << 20) + 4
        return self.command.to_bytes(2, "little")[:length_bytes]

    def _pwrite(self, _: int, data: bytes, offset: int) -> None:
        assert offset == (7 << 20) + 4
        if not self.decoding_sticks:
            self.command = int.from_bytes(data, "little")


_VFIO = ord(";") << 8


@pytest.fixture
def vfio(door: ScriptedDoor, golden_sysfs: Callable[[str], SysfsRoot], tmp_path: Path) -> ScriptedVfio:
    """An FPGA bound to vfio-pci; its IOMMU group is yours to make."""
    return ScriptedVfio(door, golden_sysfs("fpga"), tmp_path / "dev")
