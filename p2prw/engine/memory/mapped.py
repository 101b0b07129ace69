"""What all mapped kinds share: one buffer, copies in and out of it, its pattern, a mapping that outlives its users."""

from __future__ import annotations

import ctypes
import mmap
from typing import Protocol, TypeVar

from p2prw.engine.memory.base import MappedBuffer, MemorySource
from p2prw.engine.model import MemorySpec, Offer
from p2prw.errors import HostError

Memory = TypeVar("Memory", bound=MemorySource)
_FILL_BYTES = 4 * 1024**2
"""Most bytes of one `write_at`, see `MemorySource`."""


class CopyBuffer(MappedBuffer, Protocol):
    """A mapped buffer that can also copy straight into somebody's memory."""

    def load_into(self, offset: int, into: memoryview) -> None:
        """Copy `len(into)` bytes from `offset`; the caller has checked the range."""


def address_of(buffer: memoryview | mmap.mmap) -> int:
    """Return the virtual address of a buffer's first byte (0 for an empty one); no reference to it is kept."""
    if len(buffer) == 0:
        return 0
    view = memoryview(buffer)
    if not view.readonly:
        return ctypes.addressof(ctypes.c_char.from_buffer(view))
    # Imported here, for what ctypes does not take: loading it is a third of the start of `p2prw write`.
    import numpy

    return int(numpy.frombuffer(view, dtype=numpy.uint8).__array_interface__["data"][0])


def check_pattern(spec: MemorySpec) -> None:
    """RequestError where `pattern=` cannot be read."""
    if "pattern" in spec.options:
        # Imported here: most memory has no pattern.
        from p2prw.engine.pattern import parse_pattern

        parse_pattern(spec.options["pattern"])


def fill_as_asked(memory: Memory) -> Memory:
    """Store the bytes of `pattern=` in all of `memory`, by its own `write_at`; it is closed where that fails."""
    text = memory.spec.options.get("pattern")
    if text is None:
        return memory
    from p2prw.engine.pattern import parse_pattern

    try:
        pattern = parse_pattern(text)
        for offset in range(0, memory.length_bytes, _FILL_BYTES):
            piece = pattern.bytes_at(offset, min(_FILL_BYTES, memory.length_bytes - offset))
            memory.write_at(offset, memoryview(piece))
    except BaseException:
        memory.close()
        raise
    return memory


def check_range(memory: MemorySource, offset: int, length_bytes: int) -> None:
    """HostError `out_of_range` where [offset, offset + length) is not all of it in `memory`."""
    if offset < 0 or offset + length_bytes > memory.length_bytes:
        raise HostError(
            f"{length_bytes} bytes at {offset} do not fit into {memory.spec.text or memory.spec.kind}",
            why=f"it is {memory.length_bytes} bytes",
            fix="a size and an offset that lie in the range",
            code="out_of_range",
        )


def close_mapping(mapping: mmap.mmap) -> None:
    """Unmap now, or, while views are still exported, when the last of them goes."""
    try:
        mapping.close()
    except BufferError:
        # A registration or a burst still holds a slice: unmapping under it would be a SIGSEGV, so its end unmaps.
        pass


class MappedMemory:
    """A `MemorySource` of one mapped buffer; host, p2pmem and BAR memory are its subclasses."""

    offers: frozenset[Offer] = frozenset({Offer.CPU_MAPPING})
    is_device_memory = False
    digest_method = "owner-cpu"

    def __init__(
        self,
        spec: MemorySpec,
        buffer: CopyBuffer,
        *,
        mapping: mmap.mmap | None = None,
        writable: bool = True,
        numa_node: int | None = None,
        pci_address: str | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.spec = spec
        self.length_bytes = buffer.length_bytes
        self.numa_node = numa_node
        self.pci_address = pci_address
        self.warnings = warnings
        self._buffer: CopyBuffer | None = buffer
        self._mapping = mapping
        self._writable = writable

    def __repr__(self) -> str:
        state = "closed" if self._buffer is None else f"at 0x{self._buffer.cpu_address:x}"
        return f"<{type(self).__name__} {self.spec.text or self.spec.kind} {self.length_bytes} bytes {state}>"

    @property
    def buffer(self) -> CopyBuffer:
        """The one buffer; HostError after close."""
        if self._buffer is None:
            raise self._closed_error()
        return self._buffer

    def _closed_error(self) -> HostError:
        return HostError(
            f"{self.spec.text or self.spec.kind} is closed",
            why="its transfer has ended",
            fix="start a new transfer",
            code="memory_closed",
        )

    def buffers(self) -> tuple[MappedBuffer, ...]:
        """Return the one mapped piece."""
        return (self.buffer,)

    def read_at(self, offset: int, into: memoryview) -> int:
        """Copy up to `len(into)` bytes from `offset`; return the count, short only at the end."""
        count = max(0, min(len(into), self.length_bytes - offset))
        if count:
            self.buffer.load_into(offset, into[:count])
        return count

    def write_at(self, offset: int, data: memoryview) -> None:
        """Copy `data` to `offset`. HostError where it does not fit or the memory is read-only."""
        if not self._writable:
            raise HostError(
                f"{self.spec.text or self.spec.kind} was opened as a source, it cannot be written",
                why="a source is only read",
                fix="name it as the sink (--to, or access=w)",
                code="not_writable",
            )
        check_range(self, offset, len(data))
        if len(data):
            self.buffer.store(offset, data)

    def commit(self) -> None:
        """Memory is whole as it stands."""

    def abort(self) -> None:
        """Memory has nothing to throw away."""

    def close(self) -> None:
        """Unmap; a second call does nothing."""
        self._buffer = None
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            close_mapping(mapping)
