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

from p2prw.engine.memory import file_sink
from p2prw.engine.memory.file_sink import COPY_STEP_BYTES, FileSink, fallocate
from p2prw.engine.memory.file_target import check_file_sink
from p2prw.engine.memory.spec import make_spec
from p2prw.errors import HostError


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
    monkeypatch.setattr(file_sink, "fallocate", lambda *_: False)
    sink = sink_at(small_disk / "out", 900 * 1024)
    assert list(sink.prepare_steps()) == [900 * 1024]
    (small_disk / "other").write_bytes(bytes(500 * 1024))
    with pytest.raises(HostError) as caught:
        sink.write_at(0, memoryview(bytes(900 * 1024)))
    assert caught.value.code == "no_space"
    sink.close()
    assert names(small_disk) == ["other"]


def test_fallocate_says_what_it_cannot() -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError) as caught:
            fallocate(write_end, 0, 1)
        assert caught.value.errno == errno.ESPIPE
    finally:
        os.close(read_end)
        os.close(write_end)


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
    from p2prw.engine.memory import file_sink
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
