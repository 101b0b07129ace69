"""The access rules of device memory, watched by a memory that records every access."""

from __future__ import annotations

import mmap
import struct
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.memory.device_access import DeviceBuffer, MappedPort, aligned_spans

SIZE = 96


class RecordingPort:
    """A device that keeps its bytes and a list of what was done to it."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.accesses: list[tuple[str, int, int]] = []

    def load(self, offset: int, width: int) -> int:
        self.accesses.append(("load", offset, width))
        return int.from_bytes(self.content[offset : offset + width], "little")

    def store(self, offset: int, width: int, value: int) -> None:
        self.accesses.append(("store", offset, width))
        self.content[offset : offset + width] = value.to_bytes(width, "little")

    def load_words(self, offset: int, into: memoryview) -> None:
        for place in range(0, len(into), 8):
            struct.pack_into("<Q", into, place, self.load(offset + place, 8))

    def store_words(self, offset: int, data: memoryview) -> None:
        for place in range(0, len(data), 8):
            self.store(offset + place, 8, struct.unpack_from("<Q", data, place)[0])


RANGES = st.integers(0, SIZE).flatmap(lambda start: st.tuples(st.just(start), st.integers(0, SIZE - start)))


@given(RANGES, st.sampled_from([0, 1, 4, 4096]))
def test_only_aligned_accesses_and_each_byte_once(wanted: tuple[int, int], base: int) -> None:
    offset, length = wanted
    content = bytes(range(SIZE))
    port = RecordingPort(bytes(base) + content)
    buffer = DeviceBuffer(port, base, SIZE)

    assert buffer.load(offset, length) == content[offset : offset + length]
    buffer.store(offset, bytes(255 - byte for byte in content[offset : offset + length]))

    # The right bytes, and no others.
    expected = bytearray(content)
    expected[offset : offset + length] = bytes(255 - byte for byte in content[offset : offset + length])
    assert port.content == bytes(base) + expected
    for operation in ("load", "store"):
        touched: list[int] = []
        for kind, position, width in port.accesses:
            if kind == operation:
                assert width in (1, 2, 4, 8)
                assert position % width == 0
                touched += range(position, position + width)
        assert touched == list(range(base + offset, base + offset + length))
    # Never read-modify-write: all loads are those of the load.
    assert [kind for kind, _, _ in port.accesses] == sorted(kind for kind, _, _ in port.accesses)


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 20))
def test_widest_first(offset: int, length: int) -> None:
    spans = list(aligned_spans(offset, length))
    end = offset + length
    for position, width, accesses in spans:
        assert accesses == 1 or width == 8
        # Twice as wide would be unaligned or would pass the end.
        assert width == 8 or position % (2 * width) or position + 2 * width > end
    assert sum(width * accesses for _, width, accesses in spans) == length
    assert len(spans) <= 7


@pytest.mark.parametrize("bulk", [True, False])
@given(wanted=RANGES, skew=st.integers(0, 9))
def test_mapped_memory_moves_the_right_bytes(bulk: bool, wanted: tuple[int, int], skew: int) -> None:
    offset, length = wanted
    content = bytes(range(SIZE))
    with mmap.mmap(-1, mmap.PAGESIZE) as mapping:
        mapping[:SIZE] = content
        buffer = DeviceBuffer.over(mapping, 0, SIZE, bulk=bulk)
        assert buffer.load(offset, length) == content[offset : offset + length]
        # Into and out of host memory of any alignment.
        host = bytearray(skew + length + 1)
        buffer.load_into(offset, memoryview(host)[skew : skew + length])
        assert host == bytes(skew) + content[offset : offset + length] + b"\0"
        data = bytes(skew) + bytes(reversed(content[offset : offset + length]))
        buffer.store(offset, memoryview(data)[skew:])
        expected = bytearray(content)
        expected[offset : offset + length] = data[skew:]
        assert mapping[: SIZE + 8] == bytes(expected) + bytes(8)
        del buffer


def test_a_mapping_of_odd_length() -> None:
    # A BAR of 16 bytes is mapped as 16 bytes; a region may even end inside a word.
    memory = bytearray(range(13))
    port = MappedPort(memoryview(memory), bulk=True)
    buffer = DeviceBuffer(port, 0, 13)
    assert buffer.load(0, 13) == bytes(range(13))
    buffer.store(8, b"abcde")
    assert memory[8:] == b"abcde"
    with pytest.raises(IndexError):
        buffer.load(8, 6)
    with pytest.raises(IndexError):
        buffer.store(-1, b"a")


def test_bulk_copies_are_strided() -> None:
    """A contiguous numpy copy is a memmove of any width: both sides must have gaps, so that words move one by one."""
    seen: list[tuple[int, int]] = []

    class Watched(numpy.ndarray):
        def __setitem__(self, key: Any, value: Any) -> None:
            seen.append((self[key].strides[0], value.strides[0]))
            super().__setitem__(key, value)

    memory = bytearray(64)
    port = MappedPort(memoryview(memory), bulk=True)
    port._words = port._words.view(Watched)
    port.store_words(0, memoryview(bytes(range(64))))
    assert memory == bytes(range(64))
    assert seen == [(16, 16), (16, 16)]


def test_the_address_is_the_mapping_s() -> None:
    with mmap.mmap(-1, 8192) as mapping:
        first = DeviceBuffer.over(mapping, 0, 16, bulk=True)
        second = DeviceBuffer.over(mapping, 24, 16, bulk=True)
        assert first.cpu_address % mmap.PAGESIZE == 0
        assert second.cpu_address - first.cpu_address == 24
        assert first.view is None
        del first, second
