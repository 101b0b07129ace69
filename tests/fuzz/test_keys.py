"""The memory table against a model: keys, addresses and lengths from the dice, registrations that come and go.

What the table lets through is exactly what was registered, with the rights it was registered with, byte for byte.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from p2prw.engine.model import Access, Sge
from p2prw.engine.roce.memory_table import MemoryFault, MemoryRegistration, MemoryTable, ScatterList

LOOKUPS = 10_000
GUARD_BYTES = 64
BUFFER_BYTES = 512
RIGHTS = (Access.LOCAL_WRITE, Access.REMOTE_READ, Access.REMOTE_WRITE)


class Buffer:
    """A MappedBuffer between guards, with or without a view."""

    def __init__(self, has_view: bool) -> None:
        self.raw = bytearray(b"\xee" * (BUFFER_BYTES + 2 * GUARD_BYTES))
        self.length_bytes = len(self.raw)
        self.cpu_address = 0x7FFF_0000_0000
        self.view = memoryview(self.raw) if has_view else None

    def load(self, offset: int, length_bytes: int) -> bytes:
        return bytes(self.raw[offset : offset + length_bytes])

    def store(self, offset: int, data: bytes | memoryview) -> None:
        self.raw[offset : offset + len(data)] = data


@dataclass
class Known:
    """One registration as the model knows it."""

    registration: MemoryRegistration
    buffer: Buffer
    start: int
    length_bytes: int
    access: Access

    @property
    def key(self) -> int:
        return self.registration.vec[0].lkey


def test_lookups(kit) -> None:
    dice = random.Random("keys")
    table = MemoryTable(dice.getrandbits)
    buffers = [Buffer(has_view) for has_view in (True, True, False)]
    known: list[Known] = []
    dead: list[int] = []
    outcomes: Counter[bool] = Counter()
    for _ in range(kit.inputs(LOOKUPS)):
        if len(known) < 4 or dice.random() < 0.02:
            start = GUARD_BYTES + dice.randrange(BUFFER_BYTES)
            length = dice.randrange(1, GUARD_BYTES + BUFFER_BYTES - start + 1)
            buffer, access = dice.choice(buffers), Access(0)
            for right in RIGHTS:
                access |= right if dice.random() < 0.5 else Access(0)
            known.append(Known(table.register([buffer], access, start, length), buffer, start, length, access))
        elif len(known) > 12 or dice.random() < 0.02:
            gone = known.pop(dice.randrange(len(known)))
            dead = [*dead[-8:], gone.key]
            gone.registration.close()
        one = dice.choice(known)
        address, key = one.registration.vec[0].address, one.key
        offset = dice.choice([0, one.length_bytes - 1, one.length_bytes, -1, dice.randrange(BUFFER_BYTES), -(1 << 63)])
        length = dice.choice([1, one.length_bytes, one.length_bytes - offset, dice.randrange(BUFFER_BYTES), 1 << 31])
        length = max(0, length)
        if dice.random() < 0.2:
            key = dice.choice([0, dice.getrandbits(32), key ^ 1 << dice.randrange(32), *dead])
        wanted = dice.choice(RIGHTS)
        model = next((item for item in known if item.key == key), None)
        allowed = model is not None and bool(model.access & wanted)
        if model is not None:
            low = address + offset - model.registration.vec[0].address
            allowed = allowed and low >= 0 and low + length <= model.length_bytes
        region = table.find(key, address + offset, length, int(wanted))
        assert (region is not None) == allowed
        outcomes[allowed] += 1
        if region is None:
            if length:
                with pytest.raises(MemoryFault):
                    ScatterList(table, [Sge(address + offset, length, key)], wanted)
            continue
        assert model is not None
        # What is stored through it lies where it was registered, and nowhere else.
        was = bytes(model.buffer.raw)
        data = dice.randbytes(length)
        ScatterList(table, [Sge(address + offset, length, key)], wanted).scatter(0, memoryview(data))
        place = model.start + low
        assert bytes(model.buffer.raw) == was[:place] + data + was[place + length :]
        for buffer in buffers:
            assert buffer.raw.count(0xEE, 0, GUARD_BYTES) == GUARD_BYTES
            assert buffer.raw.count(0xEE, GUARD_BYTES + BUFFER_BYTES) == GUARD_BYTES
        assert len(table) == len(known)
    assert min(outcomes[True], outcomes[False]) > sum(outcomes.values()) // 20, outcomes
