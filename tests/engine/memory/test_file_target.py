"""Where a file sink may be, and what is said where it may not."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from p2prw.engine.memory.file_target import check_file_sink, check_space, resolve_target, status_or_none
from p2prw.errors import HostError


def test_a_link_stands_for_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("directory/file")
    assert resolve_target(str(tmp_path / "link")) == (
        os.path.realpath(tmp_path / "directory/file"),
        os.path.realpath(tmp_path / "directory"),
    )


def test_what_stands_there(tmp_path: Path) -> None:
    assert status_or_none(str(tmp_path / "f"), "f") is None
    (tmp_path / "f").write_bytes(b"abc")
    status = status_or_none(str(tmp_path / "f"), "f")
    assert status is not None and status.st_size == 3
    with pytest.raises(HostError) as caught:
        status_or_none(str(tmp_path / "f/g"), "f/g")
    assert (caught.value.code, caught.value.errno) == ("not_found", errno.errorcode[errno.ENOTDIR])


def test_a_file_system_that_names_no_size_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError) as caught:
        check_space("out", str(tmp_path), 1 << 62)
    assert caught.value.code == "no_space"
    unknown = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: unknown)
    check_space("out", str(tmp_path), 1 << 62)


def test_a_write_protected_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"x")
    plain = os.access
    # Root may write to everything, so the kernel's answer is played.
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(target) and plain(path, mode))
    with pytest.raises(HostError) as caught:
        check_file_sink(str(target), overwrite=True, needed_bytes=1)
    assert caught.value.code == "not_permitted"
    assert caught.value.fix == f"chmod u+w {target}"


def test_where_no_sink_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    expected = {
        "missing/out": "not_found",
        "file/out": "not_found",
        ".": "is_directory",
        "new/": "is_directory",
        "fifo": "not_a_file",
        "n" * 256: "bad_path",
    }
    for name, code in expected.items():
        with pytest.raises(HostError) as caught:
            check_file_sink(f"{tmp_path}/{name}", overwrite=True, needed_bytes=None)
        assert caught.value.code == code, name
        assert caught.value.fix and caught.value.why
    with pytest.raises(HostError) as caught:
        check_file_sink("/dev/null", overwrite=True, needed_bytes=None)
    assert caught.value.code == "not_a_file"


def test_a_read_only_file_system(small_disk: Path) -> None:
    if subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], capture_output=True).returncode:
        pytest.skip("cannot remount read-only here")
    with pytest.raises(HostError) as caught:
        check_file_sink(str(small_disk / "out"), overwrite=False, needed_bytes=1)
    assert (caught.value.code, caught.value.errno) == ("read_only", "EROFS")


def test_a_directory_without_the_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere, so the kernel's answer is played.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(HostError) as caught:
        check_file_sink(str(tmp_path / "out"), overwrite=False, needed_bytes=1)
    assert caught.value.code == "not_permitted"
