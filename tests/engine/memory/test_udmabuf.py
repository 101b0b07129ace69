"""udmabuf: what is asked of the kernel, what it may answer, and, where this host has /dev/udmabuf, the real one."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

import pytest

from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.memory.udmabuf import DEVICE, UDMABUF_CREATE, check_udmabuf, open_udmabuf
from p2prw.engine.model import Offer
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

SPEC = parse_memory_spec("udmabuf,size=10000,pattern=words:3")


@pytest.fixture
def sysfs(tmp_path: Path) -> SysfsRoot:
    (tmp_path / "module/udmabuf/parameters").mkdir(parents=True)
    (tmp_path / "module/udmabuf/parameters/size_limit_mb").write_text("1\n")
    return SysfsRoot(tmp_path)


def test_pages_of_a_sealed_memfd(door, sysfs, fake_proc) -> None:
    seen: dict[str, int] = {}

    def create(_: int, argument: bytearray) -> int:
        memfd, flags, offset, size = struct.unpack("=IIQQ", argument)
        seen.update(flags=flags, offset=offset, size=size, seals=fcntl.fcntl(memfd, fcntl.F_GET_SEALS))
        seen["length"] = os.fstat(memfd).st_size
        descriptor: int = door.new_file("dmabuf")
        return descriptor

    door.answers[UDMABUF_CREATE] = create
    memory = open_udmabuf(SPEC, 10000, sysfs, fake_proc(), door)
    assert seen == {"flags": 1, "offset": 0, "size": 12288, "seals": fcntl.F_SEAL_SHRINK, "length": 12288}
    assert (memory.length_bytes, memory.is_device_memory) == (10000, False)
    # Its mapping is the memfd's: ordinary shared memory, which can be pinned.
    assert memory.offers == {Offer.DMABUF, Offer.CPU_MAPPING, Offer.PAGES}
    descriptor, offset = memory.dmabuf()
    assert (door.names[descriptor], offset) == ("dmabuf", 0)
    (buffer,) = memory.buffers()
    assert buffer.view is not None and len(buffer.view) == 10000
    assert any(buffer.view), "the pattern is in it"
    memory.close()
    memory.close()


def test_above_the_limit_of_the_module(door, sysfs, fake_proc) -> None:
    with pytest.raises(HostError) as caught:
        check_udmabuf(SPEC, 1024 * 1024 + 1, sysfs, fake_proc(), door)
    assert (caught.value.code, caught.value.errno) == ("too_big", "EINVAL")
    assert "echo 2 | sudo tee" in str(caught.value.fix) and "size=1MiB" in str(caught.value.fix)
    check_udmabuf(SPEC, 1024 * 1024, sysfs, fake_proc(), door)


@pytest.mark.parametrize(
    ("number", "code", "fix"),
    [
        (errno.ENOENT, "no_device", "modprobe udmabuf"),
        (errno.EACCES, "not_permitted", "chmod a+rw /dev/udmabuf"),
        (errno.EPERM, "not_permitted", "--device /dev/udmabuf"),
        (errno.EIO, "cannot_open", "dmesg"),
    ],
)
def test_no_device(door, sysfs, fake_proc, number, code, fix) -> None:
    door.open_errnos[DEVICE] = number
    with pytest.raises(HostError) as caught:
        open_udmabuf(SPEC, 4096, sysfs, fake_proc(), door)
    assert (caught.value.code, caught.value.errno) == (code, errno.errorcode[number])
    assert fix in str(caught.value.fix) and caught.value.why


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EINVAL, "too_big"),
        (errno.ENOMEM, "not_enough_memory"),
        (errno.ENOTTY, "no_udmabuf"),
        (errno.EIO, "cannot_allocate"),
    ],
)
def test_the_kernel_refuses(door, sysfs, fake_proc, number, code) -> None:
    door.answers[UDMABUF_CREATE] = number
    with pytest.raises(HostError) as caught:
        open_udmabuf(SPEC, 4096, sysfs, fake_proc(), door)
    assert (caught.value.code, caught.value.errno) == (code, errno.errorcode[number])
    assert caught.value.fix and caught.value.why


@pytest.mark.skipif(
    not os.access(DEVICE, os.R_OK | os.W_OK), reason=f"needs {DEVICE} (modprobe udmabuf, root); the lab has it"
)
def test_the_real_one() -> None:
    memory = open_udmabuf(SPEC, 10000, SysfsRoot())
    descriptor, _ = memory.dmabuf()
    assert os.lseek(descriptor, 0, os.SEEK_END) == 12288
    memory.write_at(5, memoryview(b"abc"))
    into = bytearray(3)
    assert memory.read_at(5, memoryview(into)) == 3 and into == b"abc"
    memory.close()
