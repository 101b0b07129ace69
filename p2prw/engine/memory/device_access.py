"""How the CPU may touch device memory: naturally aligned loads and stores of 8, 4, 2 or 1 bytes, nothing else.

A memcpy is free to widen, narrow, repeat and overlap accesses; a device register is not free to like that, and arm64
answers an unaligned one with SIGBUS. So every range is cut into an aligned head, a run of 8-byte words and a tail
(widest first), each byte is touched exactly once, and a partial word is never read, changed and written back.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from p2prw.engine.memory.mapped import address_of

if TYPE_CHECKING:
    # Loaded when device memory is opened: host memory and files do without.
    import numpy

WORD_BYTES = 8
_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
_CODECS = {width: struct.Struct(f"={letter}") for width, letter in _FORMATS.items()}


class Span(NamedTuple):
    """`accesses` times `width` bytes each, from `offset` up."""

    offset: int
    width: int
    accesses: int


def aligned_spans(offset: int, length_bytes: int) -> Iterator[Span]:
    """Cut a range into naturally aligned accesses, widest first; at most one span of more than one access."""
    end = offset + length_bytes
    while offset < end:
        room = end - offset
        width = WORD_BYTES
        while offset % width or width > room:
            width //= 2
        count = room // WORD_BYTES if width == WORD_BYTES else 1
        yield Span(offset, width, count)
        offset += width * count


class WordPort(Protocol):
    """The accesses themselves. Offsets are multiples of the width; the recording fake of the tests is one too."""

    def load(self, offset: int, width: int) -> int:
        """Load one word of 8, 4, 2 or 1 bytes, in the host's byte order."""

    def store(self, offset: int, width: int, value: int) -> None:
        """Store one word."""

    def load_words(self, offset: int, into: memoryview) -> None:
        """Fill `into` (a multiple of 8 bytes) by 8-byte loads."""

    def store_words(self, offset: int, data: memoryview) -> None:
        """Store `data` (a multiple of 8 bytes) by 8-byte stores."""


class MappedPort:
    """Accesses to a mapping, which begins on a page boundary, so that offsets and addresses agree in their low bits.

    `bulk`: many words by one strided numpy copy, for memory where order and merging do not matter (prefetchable,
    write-combining, p2pmem); else word by word and in order.
    """

    def __init__(self, mapping: mmap.mmap | memoryview, *, bulk: bool) -> None:
        self._bytes = memoryview(mapping)
        import numpy

        words_bytes = len(self._bytes) // WORD_BYTES * WORD_BYTES
        # An element of a cast view is one memcpy of constant size, which compilers turn into one load or store.
        self._views = {
            width: self._bytes[: len(self._bytes) // width * width].cast(letter) for width, letter in _FORMATS.items()
        }
        self._words = numpy.frombuffer(self._bytes[:words_bytes], dtype=numpy.uint64)
        self._bulk = bulk

    def load(self, offset: int, width: int) -> int:
        """Load one word."""
        return int(self._views[width][offset // width])

    def store(self, offset: int, width: int, value: int) -> None:
        """Store one word."""
        self._views[width][offset // width] = value

    def load_words(self, offset: int, into: memoryview) -> None:
        """Fill `into` by 8-byte loads; releases the GIL in bulk."""
        first, count = offset // WORD_BYTES, len(into) // WORD_BYTES
        if self._bulk:
            import numpy

            words = self._words[first : first + count]
            target = numpy.frombuffer(into, dtype=numpy.uint64)
            if target.flags.aligned:
                _copy_strided(words, target)
            else:
                # An unaligned side would send numpy down a path of byte moves.
                aligned = numpy.empty(count, dtype=numpy.uint64)
                _copy_strided(words, aligned)
                into[:] = aligned.tobytes()
            return
        view = self._views[WORD_BYTES]
        struct.pack_into(f"={count}Q", into, 0, *(view[index] for index in range(first, first + count)))

    def store_words(self, offset: int, data: memoryview) -> None:
        """Store `data` by 8-byte stores; releases the GIL in bulk."""
        first, count = offset // WORD_BYTES, len(data) // WORD_BYTES
        if self._bulk:
            import numpy

            source = numpy.frombuffer(data, dtype=numpy.uint64)
            _copy_strided(source if source.flags.aligned else source.copy(), self._words[first : first + count])
            return
        view = self._views[WORD_BYTES]
        for index, (value,) in enumerate(struct.iter_unpack("=Q", data), first):
            view[index] = value


def _copy_strided(
    source: numpy.ndarray[tuple[int], numpy.dtype[numpy.uint64]],
    target: numpy.ndarray[tuple[int], numpy.dtype[numpy.uint64]],
) -> None:
    # Every second word, then the others: with a stride of 16 bytes on both sides numpy moves element by element, where
    # a contiguous copy is a memmove of whatever width the C library likes.
    target[0::2] = source[0::2]
    target[1::2] = source[1::2]


class DeviceBuffer:
    """A `MappedBuffer` over device memory: no plain view, only `load` and `store`."""

    view: memoryview | None = None

    def __init__(self, port: WordPort, base_offset: int, length_bytes: int, cpu_address: int = 0) -> None:
        """Be bytes [base_offset, base_offset + length_bytes) of what `port` reaches."""
        self.length_bytes = length_bytes
        self.cpu_address = cpu_address
        self._port = port
        self._base = base_offset

    @classmethod
    def over(cls, mapping: mmap.mmap, base_offset: int, length_bytes: int, *, bulk: bool) -> DeviceBuffer:
        """Return a buffer over part of a mapping."""
        return cls(MappedPort(mapping, bulk=bulk), base_offset, length_bytes, address_of(mapping) + base_offset)

    def load(self, offset: int, length_bytes: int) -> bytes:
        """Return a copy of `length_bytes` bytes from `offset`."""
        into = bytearray(length_bytes)
        self.load_into(offset, memoryview(into))
        return bytes(into)

    def load_into(self, offset: int, into: memoryview) -> None:
        """Copy `len(into)` bytes from `offset`, each loaded once."""
        self._check(offset, len(into))
        start = self._base + offset
        for position, width, count in aligned_spans(start, len(into)):
            place = position - start
            if width == WORD_BYTES:
                self._port.load_words(position, into[place : place + width * count])
            else:
                _CODECS[width].pack_into(into, place, self._port.load(position, width))

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """Put `data` at `offset`, each byte stored once."""
        self._check(offset, len(data))
        source, start = memoryview(data), self._base + offset
        for position, width, count in aligned_spans(start, len(source)):
            place = position - start
            if width == WORD_BYTES:
                self._port.store_words(position, source[place : place + width * count])
            else:
                self._port.store(position, width, _CODECS[width].unpack_from(source, place)[0])

    def _check(self, offset: int, length_bytes: int) -> None:
        # Bounds are checked by whoever hands out keys and leases; beyond the mapping lies another device's memory.
        if offset < 0 or length_bytes < 0 or offset + length_bytes > self.length_bytes:
            raise IndexError(f"{length_bytes} bytes at {offset} are outside {self.length_bytes} bytes of device memory")
