"""Memory of a NIC: nothing until a device registers it, that device's alone, and kept until it is closed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2prw.engine.memory.dm import NicMemory
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Access
from p2prw.errors import HostError


class Nic:
    """A device with bytes of its own."""

    def __init__(self, name: str) -> None:
        self.info: Any = SimpleNamespace(name=name, pci_address="0000:41:00.0")
        self.bytes: bytearray | None = None
        self.registered: list[tuple[Access, int, int]] = []

    def allocate_dm(self, length_bytes: int) -> Nic:
        assert self.bytes is None
        self.bytes = bytearray(length_bytes)
        return self

    def register(self, access: Access, offset: int, length_bytes: int) -> Any:
        self.registered.append((access, offset, length_bytes))
        return "registration"

    def copy_out(self, offset: int, into: memoryview) -> None:
        assert self.bytes is not None
        into[:] = self.bytes[offset : offset + len(into)]

    def copy_in(self, offset: int, data: memoryview) -> None:
        assert self.bytes is not None
        self.bytes[offset : offset + len(data)] = data

    def close(self) -> None:
        self.bytes = None


@pytest.fixture
def memory():
    return NicMemory(parse_memory_spec("dm,size=100"), 100)


def test_it_is_allocated_once_and_kept(memory) -> None:
    nic = Nic("mlx5_0")
    assert (memory.offers, memory.buffers(), memory.is_device_memory) == (frozenset(), (), True)
    assert memory.digest_method == "owner-loopback-read"
    with pytest.raises(HostError) as caught:
        memory.read_at(0, memoryview(bytearray(1)))
    assert caught.value.code == "memory_closed" and caught.value.fix
    assert memory.register_on(nic, Access.REMOTE_READ, 10, 20) == "registration"
    assert memory.pci_address == "0000:41:00.0"
    memory.write_at(3, memoryview(b"kept"))
    memory.register_on(nic, Access.REMOTE_WRITE, 5, None)
    assert nic.registered == [(Access.REMOTE_READ, 10, 20), (Access.REMOTE_WRITE, 5, 95)]
    into = bytearray(200)
    assert memory.read_at(3, memoryview(into)) == 97 and into[:4] == b"kept"
    assert memory.read_at(100, memoryview(into)) == 0
    with pytest.raises(HostError) as caught:
        memory.write_at(99, memoryview(b"ab"))
    assert caught.value.code == "out_of_range"
    memory.commit()
    memory.abort()
    memory.close()
    memory.close()
    assert nic.bytes is None


def test_another_nic_cannot_reach_it(memory) -> None:
    memory.register_on(Nic("mlx5_0"), Access.REMOTE_READ, 0, 100)
    with pytest.raises(HostError) as caught:
        memory.register_on(Nic("mlx5_1"), Access.REMOTE_READ, 0, 100)
    assert caught.value.code == "other_device"
    assert "mlx5_0" in caught.value.what and "mlx5_1" in caught.value.what


def test_nothing_is_still_one_byte(memory) -> None:
    nic = Nic("mlx5_0")
    empty = NicMemory(parse_memory_spec("dm"), 0)
    empty.register_on(nic, Access.REMOTE_READ, 0, 0)
    assert nic.bytes is not None and len(nic.bytes) == 1
    empty.close()
