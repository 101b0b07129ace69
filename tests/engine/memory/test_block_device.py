"""Block devices as sinks: who lives on one, what is refused, and a loop device where one can be had."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2prw.engine.memory.block_device import (
    BlockSink,
    block_device_bytes,
    check_block_sink,
    device_users,
    is_named,
    partitions_of,
)
from p2prw.engine.memory.file import FileRegion, FileSource, run_steps
from p2prw.engine.memory.prepare import prepare_memory
from p2prw.engine.memory.spec import make_spec
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

MIB = 1024**2


@pytest.fixture
def disk(tmp_path: Path) -> SysfsRoot:
    """Disk 8:0 with partitions 8:1 (held by a dm device) and 8:2."""
    base = tmp_path / "sys/dev/block/8:0"
    for number in (1, 2):
        part = base / f"sda{number}"
        (part / "holders").mkdir(parents=True)
        (part / "partition").write_text(f"{number}\n")
        (part / "dev").write_text(f"8:{number}\n")
    (base / "queue").mkdir()
    (base / "holders").mkdir()
    (base / "sda1/holders/dm-0").mkdir()
    return SysfsRoot(tmp_path / "sys")


def test_who_lives_on_a_disk(disk: SysfsRoot, fake_proc: Callable[..., Path]) -> None:
    proc = fake_proc(
        mountinfo="22 1 8:2 / /home rw,noatime shared:1 - ext4 /dev/sda2 rw\n"
        "23 1 9:9 / /else rw - ext4 /dev/other rw\nnonsense\n"
    )
    assert device_users("8:0", disk, proc) == ("held by dm-0", "mounted on /home")
    # A partition is not in use because its neighbour is.
    assert device_users("8:1", disk, proc) == ()
    assert device_users("8:2", disk, proc) == ("mounted on /home",)


def test_mounts_and_swaps_named_by_their_source(
    disk: SysfsRoot, fake_proc: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from p2prw.engine.memory import block_device

    numbers = {"/dev/sda2": "8:2", "/dev/sda1": "8:1"}
    monkeypatch.setattr(block_device, "_number_of", lambda path: numbers.get(path, ""))
    proc = fake_proc(
        mountinfo="22 1 0:44 / /data rw - btrfs /dev/sda2 rw\n", swaps="Filename Type\n/dev/sda1 partition 1 0 -2\n"
    )
    assert device_users("8:0", disk, proc) == ("held by dm-0", "mounted on /data", "swap on /dev/sda1")


def test_nothing_to_read_is_nobody(tmp_path: Path) -> None:
    assert device_users("8:0", SysfsRoot(tmp_path), tmp_path) == ()


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    """A 1 MiB loop device; only root can, and not everywhere."""
    if os.geteuid() != 0:
        pytest.skip("a loop device needs root")
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xee" * MIB)
    try:
        made = subprocess.run(["losetup", "--show", "-f", str(backing)], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no losetup")
    if made.returncode:
        pytest.skip(f"cannot make a loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "-d", device], check=True, timeout=60)


def test_written_in_place(loop_device: str) -> None:
    spec = make_spec("file", loop_device, {"offset": "4096"})
    assert block_device_bytes(loop_device) == MIB
    with pytest.raises(HostError) as caught:
        prepare_memory(spec, "sink")
    assert caught.value.code == "exists"
    prepared = prepare_memory(spec, "sink", overwrite=True)
    assert prepared.length_bytes == MIB - 4096
    sink = prepared.open()
    assert isinstance(sink, BlockSink)
    assert "in place" in sink.warnings[0]
    sink.write_at(3, memoryview(b"hello"))
    into = bytearray(8)
    assert sink.read_at(0, memoryview(into)) == 8
    assert into == b"\xee\xee\xeehello"
    with pytest.raises(HostError) as caught:
        sink.write_at(MIB - 4096 - 2, memoryview(b"abc"))
    assert caught.value.code == "out_of_range"
    sink.commit()
    sink.abort()
    sink.close()
    sink.close()
    source = FileSource(spec)
    assert source.length_bytes == MIB - 4096
    assert source.read_at(3, memoryview(into)) == 8
    assert into == b"hello\xee\xee\xee"
    source.close()


def test_a_served_device(loop_device: str) -> None:
    region = FileRegion(make_spec("file", loop_device, {}), overwrite=True)
    region.check("both")
    assert not region.elastic
    assert region.length_bytes == MIB
    writer = region.open_writer(10, 5)
    run_steps(writer.prepare_steps())
    writer.write_at(10, memoryview(b"abcde"))
    writer.commit()
    writer.close()
    with pytest.raises(HostError) as caught:
        region.open_writer(MIB - 1, 2)
    assert caught.value.code == "no_space"


def test_a_device_that_somebody_holds(loop_device: str) -> None:
    """The kernel's own guard, for holders that /sys and /proc do not show."""
    holder = os.open(loop_device, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(HostError) as caught:
            check_block_sink(loop_device, 0, None, overwrite=True, force_mounted=False, sysfs=SysfsRoot())
        assert (caught.value.code, caught.value.errno) == ("busy", "EBUSY")
        check_block_sink(loop_device, 0, None, overwrite=True, force_mounted=True, sysfs=SysfsRoot())
    finally:
        os.close(holder)


def test_a_mounted_device(loop_device: str, tmp_path: Path) -> None:
    directory = tmp_path / "mounted"
    directory.mkdir()
    try:
        subprocess.run(["mkfs.ext4", "-q", loop_device], check=True, capture_output=True, timeout=60)
        subprocess.run(["mount", loop_device, str(directory)], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot make and mount a file system here: {error}")
    try:
        with pytest.raises(HostError) as caught:
            check_block_sink(loop_device, 0, None, overwrite=True, force_mounted=False, sysfs=SysfsRoot())
        assert caught.value.code == "mounted"
        assert f"mounted on {directory}" in caught.value.what
    finally:
        subprocess.run(["umount", str(directory)], check=True, timeout=60)


def test_a_missing_device(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        block_device_bytes(str(tmp_path / "sdz"))
    assert caught.value.code == "not_found"
    with pytest.raises(HostError):
        check_block_sink(str(tmp_path / "sdz"), 0, None, overwrite=True, force_mounted=False, sysfs=SysfsRoot(tmp_path))


ENTRY = bytes((0x80, 0, 2, 0, 0x83, 0, 0, 0)) + (2048).to_bytes(4, "little") + (4096).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("place", "data", "found"),
    [
        (0, bytes(4096), None),
        (446, ENTRY + bytes(48) + b"\x55\xaa", "MBR"),
        (512, b"EFI PART", "GPT"),
        (4096, b"EFI PART", "GPT"),
        # A FAT boot sector: code and messages where a table has its entries.
        (446, b"Non-system disk or disk error\r\nReplace and strike any key\0\0\0\0\0\0\0\0" + b"\x55\xaa", None),
        (446, bytes(64) + b"\x55\xaa", None),
    ],
    ids=["empty", "mbr", "gpt", "gpt-4k", "fat", "no-entries"],
)
def test_partition_tables_that_the_kernel_has_not_read(
    tmp_path: Path, place: int, data: bytes, found: str | None
) -> None:
    device = tmp_path / "disk"
    device.write_bytes(bytes(place) + data + bytes(8192))
    said = partitions_of(str(device), "8:0", SysfsRoot(tmp_path / "sys"))
    assert (said is None) if found is None else (said is not None and found in said)


def test_partitions_that_the_kernel_has_read(disk: SysfsRoot, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(8192))
    assert partitions_of(str(tmp_path / "disk"), "8:0", disk) == "partitions sda1, sda2"
    assert partitions_of(str(tmp_path / "disk"), "8:2", disk) is None


def test_a_partitioned_device_needs_the_flag_that_names_it(loop_device: str, tmp_path: Path) -> None:
    with open(loop_device, "r+b") as device:
        device.write(bytes(446) + ENTRY + bytes(48) + b"\x55\xaa")
    spec = make_spec("file", loop_device, {})
    for named in (None, "/dev/null", str(tmp_path)):
        with pytest.raises(HostError) as caught:
            prepare_memory(spec, "sink", overwrite=True, force_block_device=named)
        assert caught.value.code == "partitioned"
        assert f"--force-block-device {loop_device}" in (caught.value.fix or "")
    link = tmp_path / "disk"
    link.symlink_to(loop_device)
    assert is_named(str(link), loop_device)
    assert not is_named(str(tmp_path / "none"), str(tmp_path / "none"))
    prepared = prepare_memory(spec, "sink", overwrite=True, force_block_device=str(link))
    prepared.open().close()
