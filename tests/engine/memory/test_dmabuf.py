"""CPU accesses to a dma-buf stand between SYNC START and END, whatever happens in between."""

from __future__ import annotations

import errno
import mmap

import pytest

from p2prw.engine.memory.dmabuf import DMA_BUF_IOCTL_SYNC, DmabufMemory, check_allocation, map_fresh, page_rounded
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, RequestError

SPEC = parse_memory_spec("dmaheap:system,size=100")
START_READ, START_WRITE, END_READ, END_WRITE = 1, 2, 5, 6


@pytest.fixture
def memory(door):
    descriptor = door.new_file("dmabuf")
    made = map_fresh(DmabufMemory, SPEC, 100, descriptor, door, mapped_from=descriptor)
    door.calls.clear()
    yield made
    made.close()


def syncs(door) -> list[int]:
    assert all(request == DMA_BUF_IOCTL_SYNC for request, _ in door.calls)
    return [int.from_bytes(argument, "little") for _, argument in door.calls]


def test_copies_are_bracketed(door, memory) -> None:
    memory.write_at(3, memoryview(b"hello"))
    assert syncs(door) == [START_WRITE, END_WRITE]
    into = bytearray(5)
    assert memory.read_at(3, memoryview(into)) == 5 and into == b"hello"
    assert syncs(door)[2:] == [START_READ, END_READ]
    with pytest.raises(HostError):
        memory.write_at(98, memoryview(b"hello"))
    assert syncs(door)[4:] == [START_WRITE, END_WRITE], "an access that fails ends too"


def test_an_interrupted_sync_is_tried_again_and_a_failing_one_is_told(door, memory) -> None:
    errnos = [errno.EINTR, errno.EAGAIN]

    def answer(_: int, argument: bytearray) -> int:
        if errnos:
            raise OSError(errnos.pop(0), "scripted")
        return 0

    door.answers[DMA_BUF_IOCTL_SYNC] = answer
    memory.write_at(0, memoryview(b"x"))
    assert syncs(door) == [START_WRITE, START_WRITE, START_WRITE, END_WRITE]
    errnos.append(errno.EIO)
    with pytest.raises(HostError) as caught:
        memory.read_at(0, memoryview(bytearray(1)))
    assert (caught.value.code, caught.value.errno) == ("dmabuf_sync", "EIO")


def test_a_pattern_is_stored_under_sync(door) -> None:
    spec = parse_memory_spec("dmaheap:system,pattern=words:1")
    descriptor = door.new_file("dmabuf")
    memory = map_fresh(DmabufMemory, spec, 100, descriptor, door, mapped_from=descriptor)
    assert syncs(door) == [START_WRITE, END_WRITE]
    assert any(memory.buffers()[0].load(0, 100))
    memory.close()
    with pytest.raises(HostError):
        memory.buffers()


def test_what_cannot_be_mapped_is_closed(door, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> mmap.mmap:
        raise OSError(errno.ENOMEM, "scripted")

    monkeypatch.setattr(door, "map", refuse)
    descriptor = door.new_file("dmabuf")
    with pytest.raises(HostError) as caught:
        map_fresh(DmabufMemory, SPEC, 100, descriptor, door, mapped_from=descriptor)
    assert (caught.value.code, caught.value.errno) == ("cannot_map", "ENOMEM")


def test_what_is_checked_before(tmp_path, fake_proc) -> None:
    assert [page_rounded(size) for size in (0, 1, 4096, 4097)] == [4096, 4096, 4096, 8192]
    sysfs = SysfsRoot(tmp_path)
    with pytest.raises(HostError) as caught:
        check_allocation(SPEC, 1 << 40, sysfs, fake_proc())
    assert caught.value.code == "not_enough_memory" and "dmaheap memory" in caught.value.what
    with pytest.raises(RequestError):
        check_allocation(parse_memory_spec("udmabuf,pattern=nonsense"), 1, sysfs, fake_proc())
