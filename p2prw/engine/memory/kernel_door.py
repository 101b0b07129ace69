"""The door to /dev files that are driven by ioctl: udmabuf, dma-heaps, VFIO. Six calls, for which a test can script."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Protocol


class KernelDoor(Protocol):
    """What the memory kinds ask of the kernel. Every call raises OSError with the kernel's errno."""

    def open(self, path: str, flags: int) -> int:
        """Return a new descriptor, close-on-exec."""

    def ioctl(self, descriptor: int, request: int, argument: bytearray | int = 0) -> int:
        """Return what the ioctl returns; it may write into a `bytearray`."""

    def map(self, descriptor: int, length_bytes: int, offset: int, *, writable: bool) -> mmap.mmap:
        """Map [offset, offset + length) shared."""

    def pread(self, descriptor: int, length_bytes: int, offset: int) -> bytes:
        """Read at an offset."""

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> None:
        """Write at an offset."""

    def close(self, descriptor: int) -> None:
        """Close a descriptor that one of these calls returned."""


class Kernel:
    """The kernel itself."""

    def open(self, path: str, flags: int) -> int:
        """open(2)."""
        return os.open(path, flags | os.O_CLOEXEC)

    def ioctl(self, descriptor: int, request: int, argument: bytearray | int = 0) -> int:
        """ioctl(2). A `bytearray`, never `bytes`: with those Python drops the return value, and a new fd with it."""
        if isinstance(argument, int):
            return int(fcntl.ioctl(descriptor, request, argument))
        return int(fcntl.ioctl(descriptor, request, argument, True))

    def map(self, descriptor: int, length_bytes: int, offset: int, *, writable: bool) -> mmap.mmap:
        """mmap(2), MAP_SHARED."""
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(descriptor, length_bytes, mmap.MAP_SHARED, protection, offset=offset)

    def pread(self, descriptor: int, length_bytes: int, offset: int) -> bytes:
        """pread(2)."""
        return os.pread(descriptor, length_bytes, offset)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> None:
        """pwrite(2)."""
        os.pwrite(descriptor, data, offset)

    def close(self, descriptor: int) -> None:
        """close(2)."""
        os.close(descriptor)


KERNEL: KernelDoor = Kernel()
