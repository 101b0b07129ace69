"""Keys and addresses of scripted devices: counted up, bounded, and with rights."""

from __future__ import annotations

import itertools

from p2prw.engine.model import Access
from p2prw.engine.providers.scripted_fabric import ScriptedFabric


class Buffer:
    def __init__(self, length_bytes: int) -> None:
        self.length_bytes = length_bytes
        self.cpu_address = 0
        self.view: memoryview | None = None

    def load(self, offset: int, length_bytes: int) -> bytes:
        return bytes(length_bytes)

    def store(self, offset: int, data: bytes | memoryview) -> None:
        raise AssertionError("looking memory up moves nothing")


def test_regions_never_touch_and_keys_never_repeat() -> None:
    fabric = ScriptedFabric()
    segments = [fabric.add_region(Buffer(size), 0, size, Access.LOCAL_READ) for size in (1, 4096, 5 << 20, 7)]
    assert len({segment.lkey for segment in segments}) == 4
    for before, after in itertools.pairwise(segments):
        assert before.address + before.length_bytes < after.address


def test_find_checks_key_range_and_rights() -> None:
    fabric = ScriptedFabric()
    address, _, key = fabric.add_region(Buffer(100), 20, 50, Access.REMOTE_READ)
    found = fabric.find(key, address, 50, Access.REMOTE_READ)
    assert found is not None
    assert found.base == 20
    assert fabric.find(key, address + 50, 0, Access.LOCAL_READ) is found
    assert fabric.find(key + 1, address, 1, Access.REMOTE_READ) is None
    assert fabric.find(key, address - 1, 2, Access.REMOTE_READ) is None
    assert fabric.find(key, address + 49, 2, Access.REMOTE_READ) is None
    assert fabric.find(key, address, 1, Access.REMOTE_READ | Access.REMOTE_WRITE) is None
