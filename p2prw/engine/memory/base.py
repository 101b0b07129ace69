"""What memory of any kind looks like to the rest of the engine: mapped buffers, or staged bytes, and who owns them."""

from __future__ import annotations

from typing import Protocol

from p2prw.engine.model import MemorySpec, Offer


class MappedBuffer(Protocol):
    """One contiguous piece of memory the CPU can reach. Lengths and offsets are bytes.

    `load` and `store` obey the access rules of the memory (device memory: naturally aligned 8, 4, 2, 1 byte accesses,
    widest first, never read-modify-write). `view` is the plain fast path: a writable memoryview of bytes where accesses
    of any width and order are safe (host memory), else None.
    """

    length_bytes: int
    cpu_address: int
    """Virtual address of the first byte, for `ibv_reg_mr`. A verbs device tells peers this address (an MR's
    iova is its virtual address, ibv_reg_mr(3)); the software device makes addresses up."""
    view: memoryview | None

    def load(self, offset: int, length_bytes: int) -> bytes | memoryview:
        """Return `length_bytes` bytes from `offset`; a view only where it cannot be torn by device access rules."""

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """Put `data` at `offset`."""


class MemorySource(Protocol):
    """Opened memory of one kind. Sources and sinks alike; opened through `memory.prepare.prepare_memory`."""

    spec: MemorySpec
    length_bytes: int
    offers: frozenset[Offer]
    is_device_memory: bool
    digest_method: str
    """How its owner comes to its bytes: `owner-cpu`, or `owner-loopback-read` where the CPU cannot read it."""
    numa_node: int | None
    pci_address: str | None
    warnings: tuple[str, ...]

    def buffers(self) -> tuple[MappedBuffer, ...]:
        """Return the mapped pieces in order; empty for staged memory."""

    def read_at(self, offset: int, into: memoryview) -> int:
        """Copy bytes from `offset` into `into` as their owner sees them; return the count (short only at the end).

        Used for staging and for digests. Releases the GIL for files. At most 4 MiB a call.
        """

    def write_at(self, offset: int, data: memoryview) -> None:
        """Copy `data` to `offset`; for staging. Raises HostError (ENOSPC and friends)."""

    def commit(self) -> None:
        """Make a sink whole under its own name (fsync, rename); no-op for memory."""

    def abort(self) -> None:
        """Throw away an unfinished sink; no-op for memory. Safe to call after commit."""

    def close(self) -> None:
        """Unmap and close; aborts an uncommitted sink. Safe to call twice."""
