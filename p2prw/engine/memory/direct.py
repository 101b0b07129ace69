"""Direct I/O of a file or block device: O_DIRECT on a descriptor of its own, so that the drive itself moves the bytes.

With host memory that is a matter of caches. With P2P memory it is the whole point: the kernel hands the drive the bus
address of another device's memory and no CPU touches a byte (Linux 6.2, FOLL_PCI_P2PDMA in block/bio.c). So whatever
might quietly copy instead (a file system without direct I/O, one that no single drive holds) is refused.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from typing import Protocol

from p2prw.engine.memory.file_errors import file_error
from p2prw.engine.topology.pci import normalise_bdf
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

_BLKSSZGET = 0x1268  # include/uapi/linux/fs.h: the logical block size
# include/uapi/linux/fcntl.h, include/uapi/linux/stat.h (STATX_DIOALIGN came with Linux 6.1)
_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_BYTES = 256
_DIO_MEM_ALIGN, _DIO_OFFSET_ALIGN = 152, 156


class StagedFile(Protocol):
    """Files and block devices, sources and sinks, as direct I/O needs them."""

    descriptor: int
    path: str
    base_offset: int
    """Where in the file offset 0 of the memory lies."""


class DirectFile:
    """The direct way to an opened file. Positions are the file's own; they and all lengths count in `block_bytes`."""

    def __init__(self, memory: StagedFile, *, writable: bool, sysfs: SysfsRoot) -> None:
        """Open the same file a second time with O_DIRECT. HostError `no_direct_io` where the CPU would copy."""
        status = os.fstat(memory.descriptor)
        self.path = memory.path
        self.is_block_device = stat.S_ISBLK(status.st_mode)
        number = status.st_rdev if self.is_block_device else status.st_dev
        device = sysfs.real_path(f"dev/block/{os.major(number)}:{os.minor(number)}")
        self.drive = _controller(device)
        """PCI address of the controller that does the I/O; None where it is none, or more than one."""
        if self.is_block_device:
            self.block_bytes = _logical_block_bytes(memory)
        else:
            self.block_bytes = direct_alignment(memory.descriptor) or 0
            if not self.block_bytes or device is None:
                raise HostError(
                    f"{self.path} cannot be read and written past the page cache",
                    why="its file system promises no direct I/O (statx: no dio alignment), so the CPU would copy"
                    if device is not None
                    else "no single block device is behind its file system, so who moves the bytes cannot be told",
                    fix="the block device itself, a file on ext4 or xfs on it, or leave --via away",
                    code="no_direct_io",
                )
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_DIRECT | os.O_CLOEXEC
        try:
            # By descriptor: a sink still has its temporary name, and a source may have lost its name by now.
            self.descriptor = os.open(f"/proc/self/fd/{memory.descriptor}", flags)
        except OSError as error:
            failure = file_error("open for direct I/O", self.path, error)
            if error.errno == errno.EINVAL:
                failure.code, failure.why = "no_direct_io", "its file system does not know O_DIRECT"
                failure.fix = "the block device itself, or leave --via away"
            raise failure from error

    def __repr__(self) -> str:
        return f"<DirectFile {self.path} blocks of {self.block_bytes} bytes fd={self.descriptor}>"

    def read_into(self, into: memoryview, position: int) -> int:
        """Read until `into` is full or the file ends; return the count. OSError as preadv raises it."""
        done = 0
        while done < len(into):
            count = os.preadv(self.descriptor, [into[done:]], position + done)
            done += count
            if count % self.block_bytes or not count:
                # Only the end of the file is no multiple of a block, and from there nothing can be asked for.
                break
        return done

    def write_from(self, data: memoryview, position: int) -> None:
        """Write all of `data`. OSError as pwritev raises it."""
        done = 0
        while done < len(data):
            done += os.pwritev(self.descriptor, [data[done:]], position + done)

    def close(self) -> None:
        """Close; a second call does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def direct_alignment(descriptor: int) -> int | None:
    """Return what positions and lengths of direct I/O on a regular file must be multiples of; None where none is said.

    statx(2): both alignments are 0 where the file system would not do it. The alignment of memory never matters here:
    slots lie on pages.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if libc.statx(descriptor, b"", _AT_EMPTY_PATH, ctypes.c_uint(_STATX_DIOALIGN), answer) != 0:
        return None
    (mask,) = struct.unpack_from("=I", answer, 0)
    memory_align, offset_align = struct.unpack_from("=II", answer, _DIO_MEM_ALIGN)
    return int(offset_align) if mask & _STATX_DIOALIGN and memory_align and offset_align else None


def refused(action: str, path: str, drive: str | None, provider: str, error: OSError) -> HostError:
    """Return the HostError for direct I/O between `path` and P2P memory of `provider` that the kernel did not do."""
    number = error.errno or 0
    if number not in (errno.EREMOTEIO, errno.EINVAL, errno.EOPNOTSUPP, errno.EFAULT):
        return file_error(action, path, error)
    # Linux 7.3 in the lab: EREMOTEIO from a queue that takes no P2P memory (mm/gup.c without FOLL_PCI_P2PDMA), EINVAL
    # between two root ports.
    why = {
        errno.EREMOTEIO: "the kernel does not let its drive reach P2P memory: its queue takes none (device-mapper,"
        " RAID, SATA, USB), or the way between both PCI devices is not allowed",
        errno.EINVAL: "the kernel does not allow the way between both PCI devices: they share no upstream bridge, and"
        " the host bridge is on no whitelist",
        errno.EFAULT: "direct I/O into P2P memory came with Linux 6.2",
    }.get(number, "the file system or the drive's queue takes no P2P memory")
    look = f"p2prw topology {drive} {provider}" if drive else f"lsblk -s {path}"
    return HostError(
        f"cannot {action} {path} by DMA between its drive{f' {drive}' if drive else ''} and p2pmem of {provider}: "
        f"{os.strerror(number)}",
        why=why,
        fix=f"{look}; dmesg | grep -i peer-to-peer; or leave --via away",
        code="p2p_refused",
        errno=number,
    )


def _logical_block_bytes(memory: StagedFile) -> int:
    answer = bytearray(4)
    try:
        fcntl.ioctl(memory.descriptor, _BLKSSZGET, answer)
    except OSError as error:
        raise file_error("ask for the block size of", memory.path, error) from error
    return int(struct.unpack("=I", answer)[0])


def _controller(device: str | None) -> str | None:
    # devices/pci0000:00/0000:00:10.0/0000:01:00.0/nvme/nvme0/nvme0n1: the last PCI address is the controller's.
    found = [part for part in (device or "").split("/") if normalise_bdf(part) == part]
    return found[-1] if found else None
