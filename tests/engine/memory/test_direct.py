"""Direct I/O: who may do it, in blocks of which size, and what the kernel's refusals mean."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2prw.engine.memory import direct
from p2prw.engine.memory.direct import DirectFile, direct_alignment, refused
from p2prw.engine.memory.file import FileSource
from p2prw.engine.memory.spec import make_spec
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

DISK = "devices/pci0000:00/0000:00:10.0/0000:02:00.0/nvme/nvme1/nvme1n1"


@pytest.fixture
def source(tmp_path: Path) -> Iterator[FileSource]:
    (tmp_path / "in.bin").write_bytes(bytes(range(250)) * 41)
    opened = FileSource(make_spec("file", str(tmp_path / "in.bin"), {"offset": "512"}))
    yield opened
    opened.close()


@pytest.fixture
def sysfs(tmp_path: Path) -> SysfsRoot:
    """A machine whose file system of tmp_path is on an NVMe drive."""
    number = os.stat(tmp_path).st_dev
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    (tmp_path / "sys" / DISK).mkdir(parents=True)
    (tmp_path / f"sys/dev/block/{os.major(number)}:{os.minor(number)}").symlink_to(f"../../{DISK}")
    return SysfsRoot(tmp_path / "sys")


@pytest.fixture
def buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every file system that tests run on does direct I/O; the lab's does."""
    monkeypatch.setattr(os, "O_DIRECT", 0)
    monkeypatch.setattr(direct, "direct_alignment", lambda _: 512)


def test_the_drive_behind_a_file_is_named(source: FileSource, sysfs: SysfsRoot, buffered: None) -> None:
    file = DirectFile(source, writable=False, sysfs=sysfs)
    assert (file.drive, file.block_bytes, file.is_block_device) == ("0000:02:00.0", 512, False)
    into = bytearray(1024)
    assert file.read_into(memoryview(into), 512) == 1024
    assert bytes(into) == (bytes(range(250)) * 41)[512:1536]
    # The file ends inside a block: nothing is asked for from there.
    assert file.read_into(memoryview(bytearray(1024)), 10 * 1024 - 512) == 10250 - (10 * 1024 - 512)
    assert file.read_into(memoryview(bytearray(512)), 20480) == 0
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        file.write_from(memoryview(bytes(512)), 0)
    file.close()
    file.close()
    assert source.descriptor >= 0, "only the second descriptor is closed"


def test_writes_go_to_the_same_file(source: FileSource, sysfs: SysfsRoot, buffered: None) -> None:
    file = DirectFile(source, writable=True, sysfs=sysfs)
    file.write_from(memoryview(b"x" * 512), 512)
    file.close()
    assert Path(source.path).read_bytes()[511:1025] == bytes([11]) + b"x" * 512 + bytes([24])


def test_a_file_system_that_promises_nothing(
    source: FileSource, sysfs: SysfsRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "direct_alignment", lambda _: None)
    with pytest.raises(HostError, match="past the page cache") as caught:
        DirectFile(source, writable=False, sysfs=sysfs)
    assert caught.value.code == "no_direct_io" and "the CPU would copy" in str(caught.value.why)


def test_a_file_system_on_no_single_drive(source: FileSource, tmp_path: Path, buffered: None) -> None:
    with pytest.raises(HostError, match="past the page cache") as caught:
        DirectFile(source, writable=False, sysfs=SysfsRoot(tmp_path / "empty"))
    assert caught.value.code == "no_direct_io" and "no single block device" in str(caught.value.why)


@pytest.mark.parametrize(("number", "code"), [(errno.EINVAL, "no_direct_io"), (errno.EACCES, "not_permitted")])
def test_what_the_kernel_says_to_o_direct(
    source: FileSource, sysfs: SysfsRoot, buffered: None, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match="direct I/O") as caught:
        DirectFile(source, writable=False, sysfs=sysfs)
    assert (caught.value.code, caught.value.errno) == (code, errno.errorcode[number])


def test_alignment_is_asked_of_the_kernel(source: FileSource) -> None:
    """512, 4096, ... where this file system does direct I/O, None where it does not say so; never 0."""
    found = direct_alignment(source.descriptor)
    assert found is None or (found >= 1 and found & (found - 1) == 0)
    assert direct_alignment(-1) is None


@pytest.mark.parametrize(
    ("number", "code", "why"),
    [
        (errno.EREMOTEIO, "p2p_refused", "its queue takes none"),
        (errno.EINVAL, "p2p_refused", "share no upstream bridge"),
        (errno.EFAULT, "p2p_refused", "Linux 6.2"),
        (errno.EOPNOTSUPP, "p2p_refused", "takes no P2P memory"),
        (errno.EIO, "io_error", "storage"),
        (errno.ENOSPC, "no_space", "full"),
    ],
)
def test_refusals_are_explained(number: int, code: str, why: str) -> None:
    error = refused("read", "/dev/nvme1n1", "0000:02:00.0", "0000:01:00.0", OSError(number, os.strerror(number)))
    assert error.code == code and error.errno is not None
    assert why in str(error.why)
    if code == "p2p_refused":
        assert str(error.fix).startswith("p2prw topology 0000:02:00.0 0000:01:00.0;")
        assert "lsblk" in str(refused("read", "/dev/x", None, "0000:01:00.0", OSError(number, "")).fix)


def test_a_block_device_knows_its_blocks(
    source: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffered: None
) -> None:
    def ioctl(descriptor: int, request: int, answer: bytearray) -> int:
        assert request == 0x1268
        answer[:4] = (4096).to_bytes(4, "little")
        return 0

    monkeypatch.setattr(stat, "S_ISBLK", lambda _: True)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    file = DirectFile(source, writable=False, sysfs=SysfsRoot(tmp_path))
    assert (file.block_bytes, file.drive) == (4096, None), "a drive that is no PCI device has no address"
    file.close()

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOTTY, "")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(HostError, match="block size"):
        DirectFile(source, writable=False, sysfs=SysfsRoot(tmp_path))
