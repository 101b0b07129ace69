"""Files are whole or absent, and devices are never renamed over."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

import pytest

from p2prw.engine.whole_file import write_whole
from p2prw.errors import HostError


def test_a_file_is_made_and_replaced(tmp_path):
    path = tmp_path / "report.xml"
    for data in (b"first", b"second"):
        write_whole(str(path), data, "--junit")
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_mode_holds_whatever_the_umask_is(tmp_path):
    path = tmp_path / "ready"
    old = os.umask(0o077)
    try:
        write_whole(str(path), b"x", "--ready-file", mode=0o644)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        write_whole(str(path), b"x", "--junit")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)


def test_what_is_there_stays_where_it_may_not_be_replaced(tmp_path):
    path = tmp_path / "r.tar.gz"
    write_whole(str(path), b"first", "--report", overwrite=False)
    with pytest.raises(HostError, match="file exists") as caught:
        write_whole(str(path), b"second", "--report", overwrite=False)
    assert caught.value.errno == "EEXIST"
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_a_symbolic_link_stays_one(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_whole(str(link), b"new", "--junit")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_device_is_written_into(tmp_path):
    reader, writer = os.openpty()
    name = os.ttyname(writer)
    write_whole(name, b"x\n", "--junit")
    assert stat.S_ISCHR(os.stat(name).st_mode)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("place", ["missing/report.xml", "."])
@pytest.mark.parametrize(("option", "code"), [("--junit", {}), ("--metrics-file", {"code": "metrics_file"})])
def test_what_cannot_be_written_is_said(tmp_path, place, option, code):
    with pytest.raises(HostError) as caught:
        write_whole(str(tmp_path / place), b"x", option, **code)
    assert caught.value.code == code.get("code", "report_file")
    assert caught.value.errno in ("ENOENT", "EISDIR")
    assert caught.value.what.startswith(f"{option}: cannot write ") and option in str(caught.value.fix)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "report.xml"
    path.write_bytes(b"old")

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(self, mode):
        self.touch()
        return Full()

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(HostError, match="no space left") as caught:
        write_whole(str(path), b"new", "--junit")
    monkeypatch.undo()
    assert caught.value.errno == "ENOSPC"
    assert [p.name for p in tmp_path.iterdir()] == ["report.xml"]
    assert path.read_bytes() == b"old"
