"""Copies in and out of mapped memory, its bounds, and a mapping that outlives its last view."""

from __future__ import annotations

import mmap

import pytest

from p2prw.engine.memory.host import HostBuffer, HostMemory, open_scratch
from p2prw.engine.memory.mapped import MappedMemory, address_of, close_mapping
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.errors import HostError


def test_read_and_write_at() -> None:
    memory = open_scratch(10)
    memory.write_at(2, memoryview(b"abc"))
    memory.write_at(10, memoryview(b""))
    into = bytearray(b"-" * 20)
    assert memory.read_at(0, memoryview(into)) == 10
    assert into == b"\0\0abc\0\0\0\0\0" + b"-" * 10
    assert memory.read_at(8, memoryview(into)[:1]) == 1
    assert memory.read_at(10, memoryview(into)) == 0
    assert memory.read_at(11, memoryview(into)) == 0
    for offset, data in ((8, b"abc"), (-1, b"a"), (11, b"")):
        with pytest.raises(HostError) as caught:
            memory.write_at(offset, memoryview(data))
        assert caught.value.code == "out_of_range"
    memory.close()


def test_a_source_is_not_written() -> None:
    view = memoryview(bytearray(4))
    memory = MappedMemory(parse_memory_spec("host,size=4"), HostBuffer(view), writable=False)
    with pytest.raises(HostError) as caught:
        memory.write_at(0, memoryview(b"a"))
    assert caught.value.code == "not_writable"
    assert view == bytes(4)


def test_close_twice_and_use_after() -> None:
    memory = open_scratch(4096)
    memory.commit()
    memory.abort()
    assert "at 0x" in repr(memory)
    memory.close()
    memory.close()
    assert "closed" in repr(memory)
    with pytest.raises(HostError) as caught:
        memory.buffers()
    assert caught.value.code == "memory_closed"


def test_a_view_keeps_the_mapping() -> None:
    """A burst that still points into memory when it is closed must find its bytes, not a SIGSEGV."""
    memory = open_scratch(4096)
    memory.write_at(0, memoryview(b"still here"))
    held = memory.buffers()[0].load(0, 10)
    memory.close()
    assert held == b"still here"


def test_close_mapping_frees_when_nobody_looks() -> None:
    mapping = mmap.mmap(-1, 4096)
    close_mapping(mapping)
    assert mapping.closed


def test_addresses() -> None:
    data = bytearray(16)
    assert address_of(memoryview(data)[4:]) - address_of(memoryview(data)) == 4
    assert address_of(memoryview(b"")) == 0
    # No reference was kept: a bytearray with exports could not grow.
    data.append(1)
    assert HostMemory.from_buffer(data).buffers()[0].cpu_address == address_of(memoryview(data))
