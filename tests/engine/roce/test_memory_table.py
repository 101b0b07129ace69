"""Keys, bounds and rights: nothing outside a registration is ever touched."""

from __future__ import annotations

import random

import pytest

from p2prw.engine.model import Access, Sge
from p2prw.engine.roce.memory_table import MemoryFault, MemoryTable, ScatterList
from p2prw.errors import HostError

RW = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ


@pytest.fixture
def table():
    return MemoryTable(random.Random(3).getrandbits)


def test_one_key_for_each_buffer_and_only_for_the_range(table, lab):
    buffers = [lab.PlainBuffer(bytes(100)), lab.PlainBuffer(bytes(50)), lab.PlainBuffer(bytes(70))]
    registration = table.register(buffers, RW, offset=120, length_bytes=60)
    assert [segment.length_bytes for segment in registration.vec] == [30, 30]
    assert len({segment.lkey for segment in registration.vec}) == 2
    assert [tuple(s) for s in registration.remote_segments()] == [tuple(s) for s in registration.vec]
    first = table.find(registration.vec[0].lkey, registration.vec[0].address, 30, RW)
    first.store(0, memoryview(b"x"))
    assert buffers[1].data.index(b"x") == 20


def test_no_cpu_address_leaves(table, lab):
    buffer = lab.PlainBuffer(bytes(100))
    segments = [table.register([buffer], RW).vec[0] for _ in range(50)]
    assert all(abs(segment.address - buffer.cpu_address) > 1 << 20 for segment in segments)
    assert all(segment.address and segment.address % 4096 == 0 for segment in segments)
    assert len({segment.address for segment in segments}) == 50


def test_keys_are_never_zero_and_never_twice(lab):
    draws = iter([0, 7, 1, 7, 0, 9, 2])
    table = MemoryTable(lambda bits: next(draws))
    keys = [table.register([lab.PlainBuffer(bytes(1))], RW).vec[0].lkey for _ in range(2)]
    assert keys == [7, 9]


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 101), (100, 1), (101, None), (50, -1)])
def test_ranges_outside_the_memory_are_refused(table, lab, offset, length):
    with pytest.raises(HostError) as caught:
        table.register([lab.PlainBuffer(bytes(100))], RW, offset, length)
    assert caught.value.errno == "EINVAL"


def test_nothing_to_register_is_no_key(table, lab):
    assert table.register([lab.PlainBuffer(bytes(4))], RW, 4, 0).vec == ()
    assert len(table) == 0


@pytest.mark.parametrize(
    ("key_delta", "start", "length", "access", "good"),
    [
        (0, 0, 100, Access.REMOTE_READ, True),
        (0, 99, 1, Access.REMOTE_READ, True),
        (0, 100, 0, Access.REMOTE_READ, True),
        (0, 99, 2, Access.REMOTE_READ, False),
        (0, -1, 1, Access.REMOTE_READ, False),
        (0, 0, 1 << 31, Access.REMOTE_READ, False),
        (0, 0, 1, Access.REMOTE_WRITE, False),
        (0, 0, 1, Access.REMOTE_READ | Access.LOCAL_WRITE, False),
        (0, 0, 1, Access.LOCAL_READ, True),
        (1, 0, 1, Access.REMOTE_READ, False),
    ],
)
def test_find(table, lab, key_delta, start, length, access, good):
    (segment,) = table.register([lab.PlainBuffer(bytes(100))], Access.REMOTE_READ).vec
    assert (table.find(segment.lkey + key_delta, segment.address + start, length, access) is not None) is good


@pytest.mark.parametrize("kind", ["PlainBuffer", "DeviceBuffer"])
def test_a_closed_registration_gives_nothing_and_lets_go(table, lab, kind):
    buffer = getattr(lab, kind)(bytes(100))
    registration = table.register([buffer], RW)
    (segment,) = registration.vec
    region = table.find(segment.lkey, segment.address, 10, RW)
    scatter = ScatterList(table, [Sge(*segment)], Access.LOCAL_WRITE)
    registration.close()
    registration.close()
    assert len(table) == 0
    assert table.find(segment.lkey, segment.address, 10, RW) is None
    assert not region.is_open
    for act in (
        lambda: region.load(0, 1),
        lambda: region.store(0, memoryview(b"x")),
        lambda: scatter.gather(0, 1),
        lambda: scatter.scatter(0, memoryview(b"x")),
    ):
        with pytest.raises(MemoryFault) as caught:
            act()
        assert caught.value.is_protection
    assert scatter.plain_window(0) is None
    if buffer.view is not None:
        buffer.view.release()
    buffer.data.append(0)  # BufferError if a view were still held


def test_failing_memory_is_not_a_protection_fault(table, lab):
    buffer = lab.DeviceBuffer(bytes(100))
    (segment,) = table.register([buffer], RW).vec
    region = table.find(segment.lkey, segment.address, 100, RW)
    buffer.is_broken = True
    for act in (lambda: region.load(0, 8), lambda: region.store(0, memoryview(b"x"))):
        with pytest.raises(MemoryFault) as caught:
            act()
        assert not caught.value.is_protection


def test_a_short_load_is_a_fault(table, lab):
    buffer = lab.DeviceBuffer(bytes(10))
    (segment,) = table.register([buffer], RW).vec
    buffer.load = lambda offset, length: b""
    with pytest.raises(MemoryFault, match="short"):
        table.find(segment.lkey, segment.address, 10, RW).load(0, 8)


@pytest.mark.parametrize("kind", ["PlainBuffer", "DeviceBuffer"])
def test_scatter_and_gather_over_several_pieces(table, lab, kind):
    buffers = [getattr(lab, kind)(bytes(5)) for _ in range(3)]
    vec = table.register(buffers, RW).vec
    sges = [Sge(vec[2].address + 1, 4, vec[2].lkey), Sge(vec[0].address, 0, vec[0].lkey), Sge(*vec[0])]
    scatter = ScatterList(table, sges, Access.LOCAL_WRITE)
    assert scatter.length_bytes == 9
    scatter.scatter(2, memoryview(b"abcd"))
    assert bytes(buffers[2].data) == b"\0\0\0ab"
    assert bytes(buffers[0].data) == b"cd\0\0\0"
    assert [bytes(piece) for piece in scatter.gather(3, 3)] == [b"b", b"cd"]
    assert scatter.gather(4, 0) == []
    window = scatter.plain_window(5)
    assert (window is None) is (kind == "DeviceBuffer")
    assert window is None or window[1:] == (1, 4)


def test_a_wrong_sge_is_a_fault(table, lab):
    (segment,) = table.register([lab.PlainBuffer(bytes(10))], Access.REMOTE_READ).vec
    ScatterList(table, [Sge(*segment)], Access.LOCAL_READ)
    for sge, access in (
        (Sge(segment.address, 11, segment.lkey), Access.LOCAL_READ),
        (Sge(segment.address, 1, segment.lkey ^ 1), Access.LOCAL_READ),
        (Sge(*segment), Access.LOCAL_WRITE),
    ):
        with pytest.raises(MemoryFault):
            ScatterList(table, [sge], access)
