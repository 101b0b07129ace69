"""A sink is nothing or whole: temporary names, full disks, kills, modes, links."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from p2prw.engine.memory import file_holes, file_sink
from p2prw.engine.memory.file_holes import PIECE_BYTES, fallocate
from p2prw.engine.memory.file_sink import COPY_STEP_BYTES, FileSink
from p2prw.engine.memory.file_target import check_file_sink
from p2prw.engine.memory.spec import make_spec
from p2prw.errors import HostError
from p2prw.units import MIB


def sink_at(path: Path, length: int, *, keep_rest: bool = False, overwrite: bool = False, start: int = 0) -> FileSink:
    spec = make_spec("file", str(path), {})
    return FileSink(
        spec, str(path), range_start=start, range_end=start + length, keep_rest=keep_rest, overwrite=overwrite
    )


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_the_target_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    sink = sink_at(target, 6)
    (temporary,) = names(tmp_path)
    assert temporary.startswith(".out.p2prw-") and temporary.endswith(".part")
    sink.write_at(0, memoryview(b"abc"))
    sink.write_at(3, memoryview(b"def"))
    assert not target.exists()
    into = bytearray(10)
    assert sink.read_at(2, memoryview(into)) == 4
    assert into[:4] == b"cdef"
    sink.commit()
    assert names(tmp_path) == ["out"]
    assert target.read_bytes() == b"abcdef"
    # The digest may be asked for after the rename, and a second commit or an abort changes nothing.
    assert sink.read_at(0, memoryview(into)) == 6
    sink.commit()
    sink.abort()
    sink.close()
    sink.close()
    assert target.read_bytes() == b"abcdef"
    assert sink.buffers() == ()


def test_abort_and_close_leave_nothing(tmp_path: Path) -> None:
    for finish in ("abort", "close"):
        sink = sink_at(tmp_path / "out", 100)
        sink.write_at(0, memoryview(b"x"))
        getattr(sink, finish)()
        assert names(tmp_path) == []
        sink.close()
    with pytest.raises(HostError) as caught:
        sink.write_at(0, memoryview(b"x"))
    assert caught.value.code == "memory_closed"


def test_somebody_removed_the_temporary(tmp_path: Path) -> None:
    sink = sink_at(tmp_path / "out", 1)
    os.unlink(tmp_path / names(tmp_path)[0])
    with pytest.raises(HostError):
        sink.commit()
    sink.close()


def test_the_size_is_exact_even_if_not_all_was_written(tmp_path: Path) -> None:
    sink = sink_at(tmp_path / "out", 10)
    sink.write_at(2, memoryview(b"x"))
    sink.commit()
    assert (tmp_path / "out").read_bytes() == b"\0\0x" + bytes(7)
    empty = sink_at(tmp_path / "empty", 0)
    empty.commit()
    assert (tmp_path / "empty").read_bytes() == b""


def test_writes_outside_the_range(tmp_path: Path) -> None:
    sink = sink_at(tmp_path / "out", 4, start=4)
    for offset, length in ((3, 1), (0, 8), (7, 2), (8, 1)):
        with pytest.raises(HostError) as caught:
            sink.write_at(offset, memoryview(bytes(length)))
        assert caught.value.code == "out_of_range"
    sink.close()


# --- an existing target -----------------------------------------------------------------------------------------


def test_an_existing_target_needs_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"precious")
    with pytest.raises(HostError) as caught:
        sink_at(target, 1)
    assert (caught.value.code, caught.value.errno) == ("exists", "EEXIST")
    assert "--overwrite" in (caught.value.fix or "")
    sink = sink_at(target, 3, overwrite=True)
    sink.write_at(0, memoryview(b"new"))
    assert target.read_bytes() == b"precious"
    sink.commit()
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("links", [True, False])
def test_a_target_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        # FAT and some FUSE file systems.
        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "out"
    sink = sink_at(target, 3)
    target.write_bytes(b"somebody was quicker")
    with pytest.raises(HostError) as caught:
        sink.commit()
    assert caught.value.code == "exists"
    sink.close()
    assert target.read_bytes() == b"somebody was quicker"
    assert names(tmp_path) == ["out"]
    other = sink_at(tmp_path / "other", 3)
    other.commit()
    assert names(tmp_path) == ["other", "out"]


def test_mode_and_owner_are_kept_without_set_uid(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    target.chmod(0o4751)
    if os.geteuid() == 0:
        os.chown(target, 12, 34)
        target.chmod(0o4751)
    sink = sink_at(target, 3, overwrite=True)
    sink.commit()
    status = target.stat()
    assert stat.S_IMODE(status.st_mode) == 0o751
    if os.geteuid() == 0:
        assert (status.st_uid, status.st_gid) == (12, 34)


def test_a_new_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        sink_at(tmp_path / "out", 1).commit()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_a_symbolic_link_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/real")
    sink = sink_at(tmp_path / "link", 2)
    sink.write_at(0, memoryview(b"ab"))
    assert names(tmp_path / "elsewhere")[0].startswith(".real.p2prw-")
    sink.commit()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere/real").read_bytes() == b"ab"


def test_the_longest_name(tmp_path: Path) -> None:
    for name in ("n" * 255, "\N{SNOWMAN}" * 85):
        sink = sink_at(tmp_path / name, 1)
        sink.commit()
        sink.close()
        assert names(tmp_path) == [name]
        os.unlink(tmp_path / name)


# --- keeping the rest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["copy_file_range", "pread"])
def test_the_rest_is_copied_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    if by == "pread":

        def refuse(*_: object) -> int:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    target = tmp_path / "out"
    content = os.urandom(2 * COPY_STEP_BYTES + 7)
    target.write_bytes(content)
    sink = sink_at(target, 4, keep_rest=True, overwrite=True, start=COPY_STEP_BYTES - 2)
    done = list(sink.prepare_steps())
    assert done == sorted(done)
    assert done[-1] == sink.prepare_bytes == 2 * len(content)
    assert len(done) >= 4
    sink.write_at(COPY_STEP_BYTES - 2, memoryview(b"ABCD"))
    sink.commit()
    expected = bytearray(content)
    expected[COPY_STEP_BYTES - 2 : COPY_STEP_BYTES + 2] = b"ABCD"
    assert target.read_bytes() == expected


def test_an_old_file_that_shrinks_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"0123456789")
    sink = sink_at(target, 2, keep_rest=True, overwrite=True)
    os.truncate(target, 5)
    sink.write_at(0, memoryview(b"AB"))
    sink.commit()
    assert target.read_bytes() == b"AB234" + bytes(5)


def test_a_write_runs_what_preparing_is_left(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"0123456789")
    sink = sink_at(target, 1, keep_rest=True, overwrite=True, start=9)
    next(iter(sink.prepare_steps()))
    sink.write_at(9, memoryview(b"X"))
    sink.commit()
    assert target.read_bytes() == b"012345678X"


# --- full disks -------------------------------------------------------------------------------------------------


def test_a_full_disk_is_seen_before_anything_is_written(small_disk: Path) -> None:
    with pytest.raises(HostError) as caught:
        check_file_sink(str(small_disk / "out"), overwrite=False, needed_bytes=2 * 1024**2)
    assert (caught.value.code, caught.value.errno) == ("no_space", "ENOSPC")
    assert "1 MiB are free" in (caught.value.why or "")
    sink = sink_at(small_disk / "out", 2 * 1024**2)
    with pytest.raises(HostError) as caught:
        list(sink.prepare_steps())
    assert caught.value.code == "no_space"
    assert names(small_disk) == []


def test_a_disk_that_fills_up_while_space_is_reserved(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sink, "check_space", lambda *_: None)
    sink = sink_at(small_disk / "out", 2 * 1024**2)
    with pytest.raises(HostError) as caught:
        sink.write_at(0, memoryview(b"x"))
    assert (caught.value.code, caught.value.errno) == ("no_space", "ENOSPC")
    assert "2 MiB are needed" in (caught.value.why or "")
    assert names(small_disk) == []
    assert sink.closed


def test_reserved_space_is_really_reserved(small_disk: Path) -> None:
    sink = sink_at(small_disk / "out", 900 * 1024)
    list(sink.prepare_steps())
    with pytest.raises(OSError, match="No space"), open(small_disk / "other", "wb") as other:
        other.write(bytes(900 * 1024))
    os.unlink(small_disk / "other")
    sink.write_at(0, memoryview(bytes(900 * 1024)))
    sink.commit()
    sink.close()


def test_a_file_system_without_fallocate(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (file_sink, file_holes):
        monkeypatch.setattr(module, "fallocate", lambda *_: False)
    sink = sink_at(small_disk / "out", 900 * 1024)
    assert list(sink.prepare_steps()) == [900 * 1024]
    (small_disk / "other").write_bytes(bytes(500 * 1024))
    with pytest.raises(HostError) as caught:
        sink.write_at(0, memoryview(bytes(900 * 1024)))
    assert caught.value.code == "no_space"
    sink.close()
    assert names(small_disk) == ["other"]


# --- holes ------------------------------------------------------------------------------------------------------


def held_bytes(path: Path) -> int:
    """What the file occupies. Nothing is said of what writing leaves for later: it is synced before."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return os.stat(path).st_blocks * 512


def sparse(path: Path, length: int, *pieces: tuple[int, bytes]) -> bytes:
    """A file with holes, and what it reads as."""
    with path.open("wb") as file:
        file.truncate(length)
        for offset, piece in pieces:
            file.seek(offset)
            file.write(piece)
    return path.read_bytes()


def test_zeros_are_holes_and_the_rest_is_not(tmp_path: Path) -> None:
    data = bytearray(8 * MIB + 1000)
    data[3 * MIB : 4 * MIB] = os.urandom(MIB)
    data[5 * MIB + 17] = 1
    sink = sink_at(tmp_path / "out", len(data))
    for start in range(0, len(data), 4 * MIB):
        sink.write_at(start, memoryview(data)[start : start + 4 * MIB])
    sink.commit()
    sink.close()
    assert (tmp_path / "out").read_bytes() == data
    assert held_bytes(tmp_path / "out") == MIB + PIECE_BYTES


def test_nothing_but_zeros_holds_nothing(tmp_path: Path) -> None:
    for length in (1, 4096, PIECE_BYTES, PIECE_BYTES + 1, 3 * MIB + 5):
        sink = sink_at(tmp_path / "out", length, overwrite=True)
        sink.write_at(0, memoryview(bytes(length)))
        sink.commit()
        sink.close()
        assert (tmp_path / "out").read_bytes() == bytes(length)
        assert held_bytes(tmp_path / "out") == 0


def test_zeros_over_what_was_written_before_are_zeros(tmp_path: Path) -> None:
    """A client may write the same bytes again, and a block that failed once comes again."""
    sink = sink_at(tmp_path / "out", MIB)
    sink.write_at(0, memoryview(os.urandom(MIB)))
    sink.write_at(4096, memoryview(bytes(MIB - 8192)))
    sink.write_at(PIECE_BYTES, memoryview(b"x" * 10))
    sink.commit()
    sink.close()
    data = (tmp_path / "out").read_bytes()
    assert data[4096 : MIB - 4096] == bytes(PIECE_BYTES - 4096) + b"x" * 10 + bytes(MIB - 4096 - PIECE_BYTES - 10)
    assert any(data[:4096]) and any(data[-4096:])


def test_the_holes_of_what_is_kept_of_a_file_stay_holes(tmp_path: Path) -> None:
    before = sparse(tmp_path / "out", 6 * MIB + 7, (MIB, b"a" * 100), (5 * MIB, b"b" * MIB))
    sink = sink_at(tmp_path / "out", 1000, keep_rest=True, overwrite=True, start=2 * MIB)
    done = list(sink.prepare_steps())
    assert done == sorted(done) and done[-1] == sink.prepare_bytes
    sink.write_at(2 * MIB, memoryview(b"c" * 1000))
    sink.commit()
    sink.close()
    assert (tmp_path / "out").read_bytes() == before[: 2 * MIB] + b"c" * 1000 + before[2 * MIB + 1000 :]
    assert held_bytes(tmp_path / "out") <= 4096 + 4096 + MIB


def test_a_file_system_that_makes_no_holes_gets_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def no_punching(descriptor: int, offset: int, length: int, mode: int = 0) -> bool:
        asked.append(mode)
        return not mode and fallocate(descriptor, offset, length)

    monkeypatch.setattr(file_holes, "fallocate", no_punching)
    data = os.urandom(PIECE_BYTES) + bytes(PIECE_BYTES) + os.urandom(PIECE_BYTES) + bytes(3 * PIECE_BYTES)
    sink = sink_at(tmp_path / "out", 2 * len(data))
    for start in (0, len(data)):
        sink.write_at(start, memoryview(data))
    sink.commit()
    sink.close()
    assert (tmp_path / "out").read_bytes() == data * 2
    assert held_bytes(tmp_path / "out") == 2 * len(data)
    assert asked == [3], "it is asked once"


# --- killed -----------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from p2prw.engine.memory.file_sink import FileSink
from p2prw.engine.memory.spec import make_spec
path, when = sys.argv[1:]
sink = FileSink(make_spec("file", path, {}), path, range_end=1 << 20, keep_rest=False, overwrite=True)
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
sink.write_at(0, memoryview(bytes(1 << 19)))
if when == "fsync":
    os.fsync = die
if when == "rename":
    os.replace = die
if when == "after":
    sink._close_descriptors = die
    from p2prw.engine.memory import file_holes, file_sink
    file_sink._sync_directory = die
if when == "half":
    die()
sink.write_at(1 << 19, memoryview(bytes(1 << 19)))
sink.commit()
"""


@pytest.mark.parametrize("when", ["half", "fsync", "rename", "after"])
@pytest.mark.parametrize("existing", [True, False])
def test_killed_at_any_point_the_target_is_old_or_whole(
    tmp_path: Path, repository: Path, when: str, existing: bool
) -> None:
    target = tmp_path / "out"
    if existing:
        target.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), when], cwd=repository, timeout=60)
    assert done.returncode == -signal.SIGKILL
    if when == "after":
        assert target.read_bytes() == bytes(1 << 20)
    elif existing:
        assert target.read_bytes() == b"old"
    else:
        assert not target.exists()
    left = [name for name in names(tmp_path) if name != "out"]
    assert len(left) == (0 if when == "after" else 1)
    assert all(name.endswith(".part") for name in left)
