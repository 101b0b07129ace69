"""Files as sources, and as regions that a server offers."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from p2prw.engine.memory.file import FileRegion, FileSource, file_path, run_steps
from p2prw.engine.memory.spec import make_spec, parse_memory_spec
from p2prw.engine.model import MemorySpec, Offer
from p2prw.errors import HostError, LocalProtocolError, RequestError


def spec_of(path: Path, **options: int) -> MemorySpec:
    return make_spec("file", str(path), {key: str(value) for key, value in options.items()})


def read(source: FileSource, offset: int, length: int) -> bytes:
    into = bytearray(length)
    return bytes(into[: source.read_at(offset, memoryview(into))])


def put(region: FileRegion, offset: int, data: bytes, elastic: bool | None = None) -> None:
    writer = region.open_writer(offset, len(data), elastic)
    run_steps(writer.prepare_steps())
    writer.write_at(offset, memoryview(data))
    writer.commit()
    writer.close()


# --- sources ----------------------------------------------------------------------------------------------------


def test_reads_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    source = FileSource(spec_of(path))
    assert source.length_bytes == 10
    assert source.offers == {Offer.STAGED}
    assert source.buffers() == ()
    assert read(source, 0, 10) == b"0123456789"
    assert read(source, 8, 10) == b"89"
    assert read(source, 10, 1) == read(source, 11, 1) == b""
    with pytest.raises(LocalProtocolError):
        source.write_at(0, memoryview(b"x"))
    source.commit()
    source.abort()
    source.close()
    source.close()


def test_the_kernel_is_told_to_read_ahead_and_may_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, ...]] = []

    def refuse(*words: int) -> None:
        told.append(words)
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    (tmp_path / "f").write_bytes(b"0123")
    source = FileSource(spec_of(tmp_path / "f"))
    assert told == [(source.descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)]
    assert read(source, 0, 4) == b"0123"
    source.close()
    sink = FileRegion(spec_of(tmp_path / "g")).open_writer(0, 4)
    assert told[1:] == [(sink.descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)]
    sink.close()


def test_a_window_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    source = FileSource(spec_of(path, offset=2, size=5))
    assert source.length_bytes == 5
    assert read(source, 3, 10) == b"56"
    assert FileSource(spec_of(path, offset=4)).length_bytes == 6
    assert FileSource(spec_of(path, offset=10)).length_bytes == 0


@pytest.mark.parametrize(
    ("options", "fix"),
    [({"offset": 11}, "offset= of at most 10"), ({"size": 11}, "size=10"), ({"offset": 4, "size": 7}, "size=6")],
)
def test_a_window_past_the_end(tmp_path: Path, options: dict[str, int], fix: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    with pytest.raises(HostError) as caught:
        FileSource(spec_of(path, **options))
    assert (caught.value.code, caught.value.fix) == ("source_too_short", fix)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(10000))
    source = FileSource(spec_of(path))
    os.truncate(path, 4096)
    assert read(source, 0, 4096) == bytes(4096)
    with pytest.raises(HostError) as caught:
        read(source, 4000, 1000)
    assert caught.value.code == "source_changed"
    assert "ends at 4096, not 10000" in caught.value.what


def test_a_file_that_grows_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(100))
    source = FileSource(spec_of(path), expected_bytes=50)
    assert source.length_bytes == 50
    os.truncate(path, 1000)
    assert len(read(source, 0, 1000)) == 50


def test_a_file_that_shrank_between_check_and_open(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(100))
    with pytest.raises(HostError) as caught:
        FileSource(spec_of(path), expected_bytes=101)
    assert caught.value.code == "source_changed"


def test_what_cannot_be_a_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fsencode(tmp_path / "socket"))
        expected = {
            "missing": "not_found",
            "fifo/x": "not_found",
            "fifo": "not_a_file",
            "loop": "bad_path",
            "n" * 300: "bad_path",
            ".": "is_directory",
            "socket": "no_device",
        }
        for name, code in expected.items():
            with pytest.raises(HostError) as caught:
                FileSource(spec_of(tmp_path / name))
            assert caught.value.code == code, name
            assert caught.value.fix and caught.value.why
    with pytest.raises(HostError) as caught:
        FileSource(parse_memory_spec("file:/dev/zero"))
    assert caught.value.code == "not_a_file"


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    source = FileSource(spec_of(path))

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    # Root may read everything, and disks seldom break on demand: the kernel's answers are played.
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError) as caught:
        FileSource(spec_of(path))
    assert (caught.value.code, caught.value.errno) == ("not_permitted", "EACCES")
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(HostError) as caught:
        read(source, 0, 1)
    assert (caught.value.code, caught.value.errno) == ("io_error", "EIO")


def test_short_reads_are_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    source = FileSource(spec_of(path))
    plain = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: plain(fd, [buffers[0][:3]], at))
    assert read(source, 0, 10) == b"0123456789"


def test_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert file_path(parse_memory_spec("file:~/x")) == "/somewhere/x"


# --- regions ----------------------------------------------------------------------------------------------------


def test_an_elastic_write_from_the_start_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"a much longer old file")
    region = FileRegion(spec_of(path), overwrite=True)
    assert region.elastic
    assert region.length_bytes == 22
    put(region, 0, b"new")
    assert path.read_bytes() == b"new"
    assert region.length_bytes == 3


def test_an_elastic_write_further_in_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    region = FileRegion(spec_of(path), overwrite=True)
    put(region, 4, b"XY")
    assert path.read_bytes() == b"0123XY6789"
    put(region, 12, b"end")
    assert path.read_bytes() == b"0123XY6789\0\0end"
    put(region, 0, b"AB", elastic=False)
    assert path.read_bytes() == b"AB23XY6789\0\0end"


def test_an_elastic_write_makes_the_file(tmp_path: Path) -> None:
    region = FileRegion(spec_of(tmp_path / "f"))
    assert region.length_bytes == 0
    put(region, 2, b"ab")
    assert (tmp_path / "f").read_bytes() == b"\0\0ab"


def test_a_region_of_fixed_size(tmp_path: Path) -> None:
    path = tmp_path / "f"
    region = FileRegion(spec_of(path, size=8), overwrite=True)
    assert not region.elastic
    assert region.length_bytes == 8
    put(region, 2, b"ab")
    assert path.read_bytes() == b"\0\0ab\0\0\0\0"
    put(region, 0, b"x")
    assert path.read_bytes() == b"x\0ab\0\0\0\0"
    with pytest.raises(RequestError) as caught:
        region.open_writer(4, 5)
    assert caught.value.code == "size_does_not_fit"


def test_a_region_inside_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    region = FileRegion(spec_of(path, offset=4, size=4), overwrite=True)
    put(region, 1, b"X")
    # What lies outside the region is somebody else's and is kept.
    assert path.read_bytes() == b"01234X6789"
    reader = region.open_reader()
    assert read(reader, 0, 9) == b"4X67"
    elastic = FileRegion(spec_of(path, offset=8), overwrite=True)
    assert elastic.length_bytes == 2
    put(elastic, 0, b"ABCD")
    assert path.read_bytes() == b"01234X67ABCD"


def test_a_reader_keeps_the_file_it_opened(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    region = FileRegion(spec_of(path), overwrite=True)
    reader = region.open_reader()
    put(region, 0, b"new!")
    assert read(reader, 0, 9) == b"old"
    assert read(region.open_reader(), 0, 9) == b"new!"


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    region = FileRegion(spec_of(tmp_path / "f"))
    first = region.open_writer(0, 4)
    with pytest.raises(HostError) as caught:
        region.open_writer(4, 4)
    assert caught.value.code == "busy"
    first.close()
    region.open_writer(4, 4).close()
    assert list(tmp_path.iterdir()) == []


def test_checks_of_each_role(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for role, code in (("source", "not_found"), ("sink", None), ("both", None)):
        if code is None:
            FileRegion(spec_of(path)).check(role)
            continue
        with pytest.raises(HostError) as caught:
            FileRegion(spec_of(path)).check(role)
        assert caught.value.code == code
    path.write_bytes(b"x")
    FileRegion(spec_of(path)).check("source")
    FileRegion(spec_of(path)).check("both")
    FileRegion(spec_of(path), overwrite=True).check("sink")
    with pytest.raises(HostError) as caught:
        FileRegion(spec_of(path)).check("sink")
    assert caught.value.code == "exists"
    # A server that may only read goes on; the client's write is what is refused.
    with pytest.raises(HostError) as caught:
        FileRegion(spec_of(path)).open_writer(0, 1)
    assert (caught.value.code, caught.value.fix) == ("exists", "--overwrite, or another name")


def test_a_client_sink_needs_a_size_when_elastic(tmp_path: Path) -> None:
    region = FileRegion(spec_of(tmp_path / "f"))
    with pytest.raises(RequestError):
        region.open_sink(None)
    sink = region.open_sink(5)
    assert sink.length_bytes == 5
    sink.commit()
    assert (tmp_path / "f").read_bytes() == bytes(5)
