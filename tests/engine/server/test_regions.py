"""Regions: what may be asked of them, and how long they are."""

from __future__ import annotations

import pytest

from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Operation, ServedRegion, ServeRequest
from p2prw.engine.server.regions import open_region
from p2prw.errors import HostError, PeerRefusedError, RequestError

WRITE, READ = Operation.WRITE, Operation.READ


def offered(spec: str, access: str = "rw", *, overwrite: bool = False):
    region = ServedRegion(name="r", memory=parse_memory_spec(spec), access=access)
    return open_region(region, ServeRequest(regions=(region,), overwrite=overwrite))


@pytest.mark.parametrize(
    ("offset", "length", "limit", "granted"),
    [
        (0, None, None, 8192),
        (0, None, 100, 100),
        (8000, None, 1000, 192),
        (8192, None, None, 0),
        (10, 20, 5, 20),
        (8192, 0, None, 0),
    ],
)
def test_a_length_is_granted(offset, length, limit, granted):
    region = offered("host,size=8KiB")
    assert region.check(WRITE, offset, length, limit) == granted
    region.close()


@pytest.mark.parametrize(
    ("access", "operation", "offset", "length", "code"),
    [
        ("r", WRITE, 0, None, "read_only"),
        ("w", READ, 0, None, "write_only"),
        ("rw", READ, 8193, None, "offset_past_end"),
        ("rw", WRITE, 1, 8192, "region_too_small"),
        ("rw", WRITE, 0, 1 << 62, "region_too_small"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(access, operation, offset, length, code):
    region = offered("host,size=8KiB", access)
    with pytest.raises(PeerRefusedError) as caught:
        region.check(operation, offset, length, None)
    assert caught.value.code == code and caught.value.why and caught.value.fix
    region.close()


def test_mapped_memory_needs_a_size_when_the_server_starts():
    with pytest.raises(RequestError) as caught:
        offered("host")
    assert caught.value.code == "missing_size"


def test_a_file_that_is_not_there_takes_any_size_and_appears_when_whole(tmp_path):
    region = offered(f"file:{tmp_path}/new.bin", "w")
    assert region.length_bytes is None and region.check(WRITE, 0, None, 500) == 500
    with pytest.raises(PeerRefusedError) as caught:
        region.check(WRITE, 0, None, None)
    assert caught.value.code == "missing_size"
    opened = region.open_for(WRITE, 0, 5)
    assert opened.prepare is not None
    opened.prepare()
    opened.memory.write_at(0, memoryview(b"hello"))
    assert not (tmp_path / "new.bin").exists()
    opened.memory.commit()
    opened.close()
    assert (tmp_path / "new.bin").read_bytes() == b"hello" and region.length_bytes == 5


def test_a_file_with_a_size_keeps_what_is_outside_the_range(tmp_path):
    path = tmp_path / "old.bin"
    path.write_bytes(b"0123456789")
    region = offered(f"file:{path},size=10")
    opened = region.open_for(WRITE, 3, 2)
    assert opened.prepare is not None
    opened.prepare()
    opened.memory.write_at(opened.base_offset, memoryview(b"XY"))
    assert path.read_bytes() == b"0123456789", "the old file stands until the new one is whole"
    opened.memory.commit()
    opened.close()
    assert path.read_bytes() == b"012XY56789"


def test_a_reader_reads_from_its_offset(tmp_path):
    path = tmp_path / "old.bin"
    path.write_bytes(b"0123456789")
    region = offered(f"file:{path}", "r")
    opened = region.open_for(READ, 4, 3)
    into = bytearray(3)
    opened.memory.read_at(opened.base_offset, memoryview(into))
    opened.close()
    assert into == b"456"


def test_a_missing_file_cannot_be_served_for_reading(tmp_path):
    with pytest.raises(HostError) as caught:
        offered(f"file:{tmp_path}/none.bin", "r")
    assert caught.value.exit_code == 3
