"""A block device as a sink: written in place, so it is refused while anything else lives on it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from p2prw.engine.memory.file_errors import file_error
from p2prw.engine.memory.file_io import RangeOfFile, expect_order
from p2prw.engine.model import MemorySpec, Offer
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError
from p2prw.units import format_size


def block_device_bytes(path: str) -> int:
    """Return a block device's size; HostError where it cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise file_error("read", path, error) from error
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def device_users(device_number: str, sysfs: SysfsRoot, proc: Path = Path("/proc")) -> tuple[str, ...]:
    """Return who lives on block device `MAJ:MIN` or on its partitions: mounts, swap, device-mapper and RAID holders."""
    base = f"dev/block/{device_number}"
    parts = {device_number: base}
    for name in sysfs.list(base):
        number = sysfs.read_text(f"{base}/{name}/dev") if sysfs.exists(f"{base}/{name}/partition") else None
        if number:
            parts[number] = f"{base}/{name}"
    users = [f"held by {holder}" for path in parts.values() for holder in sysfs.list(f"{path}/holders")]
    for line in _lines(proc / "self" / "mountinfo"):
        # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw (Documentation/filesystems/proc.rst 3.5)
        words = line.split()
        source = words[words.index("-") + 2] if "-" in words and len(words) > words.index("-") + 2 else ""
        # btrfs mounts carry an anonymous number: the source's own number is looked at too.
        if len(words) > 4 and (words[2] in parts or _number_of(source) in parts):
            users.append(f"mounted on {words[4]}")
    users += [
        f"swap on {line.split()[0]}" for line in _lines(proc / "swaps")[1:] if _number_of(line.split()[0]) in parts
    ]
    return tuple(dict.fromkeys(users))


def partitions_of(path: str, device_number: str, sysfs: SysfsRoot) -> str | None:
    """Return what a write would lose: the partitions the kernel sees, or a table on the disk that it has not read."""
    base = f"dev/block/{device_number}"
    names = [name for name in sysfs.list(base) if sysfs.exists(f"{base}/{name}/partition")]
    if names:
        return f"partitions {', '.join(names[:4])}"
    try:
        with open(path, "rb") as device:  # noqa: PTH123
            head = device.read(4096 + 8)
    except OSError as error:
        raise file_error("read", path, error) from error
    # UEFI 5.3.1: the GPT header is in block 1, whose size is 512 or 4096 bytes.
    if b"EFI PART" in (head[512:520], head[4096:4104]):
        return "a partition table (GPT)"
    return "a partition table (MBR)" if _has_mbr(head[:512]) else None


def _has_mbr(sector: bytes) -> bool:
    # A FAT boot sector ends in the same two bytes; where a table has entries it has code or zeros (UEFI 5.2.1).
    if len(sector) < 512 or sector[510:] != b"\x55\xaa":
        return False
    entries = [sector[at : at + 16] for at in range(446, 510, 16)]
    used = [entry for entry in entries if entry[4] and any(entry[12:16])]
    return bool(used) and all(entry[0] in (0x00, 0x80) for entry in entries)


def is_named(path: str, named: str | None) -> bool:
    """Return True where `--force-block-device` names the device at `path`, whatever link leads there."""
    return named is not None and _number_of(os.path.realpath(path)) == _number_of(os.path.realpath(named)) != ""


def check_block_sink(
    path: str,
    base_offset: int,
    size_bytes: int | None,
    *,
    overwrite: bool,
    force_mounted: bool,
    sysfs: SysfsRoot,
    proc: Path = Path("/proc"),
) -> None:
    """Raise HostError where writing to the device in place is refused or bound to fail."""
    try:
        number = os.stat(path).st_rdev  # noqa: PTH116
    except OSError as error:
        raise file_error("look at", path, error) from error
    if not overwrite:
        raise HostError(
            f"{path} is a block device and would be overwritten in place",
            why="what is on it now cannot be had back",
            fix="--overwrite, when you are sure",
            code="exists",
        )
    if not force_mounted:
        _check_unused(path, f"{os.major(number)}:{os.minor(number)}", sysfs, proc)
    total = block_device_bytes(path)
    end = base_offset + (size_bytes or 0)
    if end > total:
        raise HostError(
            f"{path} has only {total} bytes ({format_size(total)})",
            why=f"offset= and size= ask for {end} bytes",
            fix=f"size={max(0, total - base_offset)}",
            code="no_space",
            errno=errno.ENOSPC,
        )
    os.close(_open(path, force_mounted))


def _check_unused(path: str, number: str, sysfs: SysfsRoot, proc: Path) -> None:
    users = device_users(number, sysfs, proc)
    if users:
        raise HostError(
            f"{path} is in use: {'; '.join(users[:4])}",
            why="writing to a device under a file system destroys it",
            fix=f"lsblk {path}; unmount it, name another device, or --force-block-device {path}",
            code="mounted",
            errno=errno.EBUSY,
        )
    partitions = partitions_of(path, number, sysfs)
    if partitions is not None:
        raise HostError(
            f"{path} has {partitions}",
            why="writing to the whole device loses every partition of it",
            fix=f"lsblk {path}; name one of its partitions, or --force-block-device {path}",
            code="partitioned",
        )


class BlockSink(RangeOfFile):
    """A `MemorySource` that writes a block device in place; commit is fsync, and abort cannot undo."""

    offers = frozenset({Offer.STAGED})
    is_device_memory = False
    digest_method = "owner-cpu"
    numa_node: int | None = None
    pci_address: str | None = None
    prepare_bytes = 0

    def __init__(
        self,
        spec: MemorySpec,
        path: str,
        *,
        base_offset: int,
        range_start: int,
        range_end: int,
        overwrite: bool,
        force_mounted: bool,
        sysfs: SysfsRoot,
        proc: Path = Path("/proc"),
    ) -> None:
        check_block_sink(
            path, base_offset, range_end, overwrite=overwrite, force_mounted=force_mounted, sysfs=sysfs, proc=proc
        )
        self.spec = spec
        self.length_bytes = range_end
        self.warnings: tuple[str, ...] = (
            f"{path} is written in place: after a failure part of the new bytes is on it",
        )
        self.closed = False
        self.path = path
        self.base_offset = base_offset
        self._range_start = range_start
        self.descriptor = _open(path, force_mounted)
        expect_order(self)

    def __repr__(self) -> str:
        return f"<BlockSink {self.path} {self.length_bytes} bytes fd={self.descriptor}>"

    def prepare_steps(self) -> Iterator[int]:
        """Nothing to prepare."""
        return iter(())

    def commit(self) -> None:
        """Have the device hold what was written."""
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            raise file_error("finish", self.path, error) from error

    def abort(self) -> None:
        """What was written stays written."""

    def close(self) -> None:
        """Close; a second call does nothing."""
        if not self.closed:
            self.closed = True
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)


def _open(path: str, force_mounted: bool) -> int:
    # O_EXCL without O_CREAT on a block device: the kernel itself refuses (EBUSY) while somebody holds it, and keeps
    # mounts away as long as we have it (open(2)).
    flags = os.O_RDWR | os.O_CLOEXEC | (0 if force_mounted else os.O_EXCL)
    try:
        return os.open(path, flags)
    except OSError as error:
        raise file_error("write", path, error) from error


def _number_of(path: str) -> str:
    try:
        number = os.stat(path).st_rdev if path.startswith("/") else 0  # noqa: PTH116
    except OSError:
        return ""
    return f"{os.major(number)}:{os.minor(number)}" if number else ""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
