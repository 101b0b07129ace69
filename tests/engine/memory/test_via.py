"""A ring in P2P memory: what may be asked, whole blocks, tails, poison; the drive's DMA is played by plain reads."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from p2prw import api
from p2prw.engine.memory import direct
from p2prw.engine.memory.file import FileRegion, FileSource
from p2prw.engine.memory.file_sink import FileSink
from p2prw.engine.memory.spec import make_spec, parse_memory_spec
from p2prw.engine.memory.via import BouncedStage, ControllerStage, check_via, poison_at, ring_room
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, LocalProtocolError, RequestError
from p2prw.reporters.document import transfer_document
from p2prw.reporters.text import result_lines
from p2prw.schema import load_schema

VIA = parse_memory_spec("p2pmem:0000:01:00.0")
DISK = "devices/pci0000:00/0000:00:10.0/0000:02:00.0/nvme/nvme1/nvme1n1"
DATA = random.Random(1).randbytes(20_000)


@pytest.fixture
def machine(golden_sysfs: Callable[[str], SysfsRoot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SysfsRoot:
    """A controller with 768 KiB of memory, and tmp_path on a drive in blocks of 512 bytes."""
    sysfs = golden_sysfs("nvme-cmb")
    number = os.stat(tmp_path).st_dev
    (sysfs.path / "dev/block").mkdir(parents=True)
    (sysfs.path / DISK).mkdir(parents=True)
    (sysfs.path / f"dev/block/{os.major(number)}:{os.minor(number)}").symlink_to(f"../../{DISK}")
    monkeypatch.setattr(os, "O_DIRECT", 0)
    monkeypatch.setattr(direct, "direct_alignment", lambda _: 512)
    return sysfs


@pytest.fixture
def stage(machine: SysfsRoot) -> Iterator[Callable[..., ControllerStage]]:
    """Make stages of 4 slots of 4 KiB; closed afterwards."""
    made: list[ControllerStage] = []

    def make(memory: Any, *, start: int = 0, length_bytes: int = len(DATA), chunk: int = 4096) -> ControllerStage:
        made.append(
            ControllerStage(VIA, memory, 4 * chunk, chunk, start=start, length_bytes=length_bytes, sysfs=machine)
        )
        return made[-1]

    yield make
    for one in made:
        one.close()
        one.close()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[FileSource]:
    (tmp_path / "in.bin").write_bytes(DATA)
    opened = FileSource(make_spec("file", str(tmp_path / "in.bin"), {}))
    yield opened
    opened.close()


def sink_for(path: Path, length: int, **options: str) -> FileSink:
    sink = FileRegion(make_spec("file", str(path), options), overwrite=True).open_writer(0, length)
    assert isinstance(sink, FileSink)
    return sink


def test_what_may_be_asked(machine: SysfsRoot) -> None:
    check_via(VIA, "file", machine)
    for via, kind, code in (("host,size=1MiB", "file", "via_kind"), ("p2pmem:0000:01:00.0", "host", "via_needs_file")):
        with pytest.raises(RequestError) as caught:
            check_via(parse_memory_spec(via), kind, machine)
        assert caught.value.code == code and caught.value.fix
    with pytest.raises(RequestError, match="what is offered here"):
        check_via(VIA, None, machine)
    with pytest.raises(HostError) as gone:
        check_via(parse_memory_spec("p2pmem:0000:7f:00.0"), "file", machine)
    assert gone.value.code == "no_device"


@pytest.mark.parametrize(
    ("via", "staging", "chunk", "expected"),
    [
        ("", 32 << 20, 4 << 20, (0xC0000, 0x60000)),
        (",size=64KiB", 32 << 20, 4 << 20, (65536, 32768)),
        ("", 1 << 16, 4096, (65536, 4096)),
    ],
)
def test_a_ring_takes_what_is_there(
    machine: SysfsRoot, via: str, staging: int, chunk: int, expected: tuple[int, int]
) -> None:
    assert ring_room(parse_memory_spec(VIA.text + via), staging, chunk, machine) == expected


def test_too_little_for_two_slots(machine: SysfsRoot) -> None:
    with pytest.raises(HostError) as caught:
        ring_room(parse_memory_spec(VIA.text + ",size=4KiB"), 1 << 20, 4096, machine)
    assert caught.value.code == "not_enough_memory"


def test_the_ring_is_poisoned_and_the_report_names_both_devices(stage: Any, source: FileSource) -> None:
    made = stage(source)
    assert bytes(made.buffer.load(0, 16384)) == poison_at(0, 16384)
    report = made.report
    assert (report.memory, report.pci_address, report.mover) == ("p2pmem", "0000:01:00.0", "drive")
    assert (report.peer_to_peer, report.drive, report.host_bytes) == (True, "0000:02:00.0", 0)


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (512, 7), (1, 5), (8, 8), (123_457, 4099)])
def test_poison_has_the_phase_of_its_offset(offset: int, length: int) -> None:
    assert poison_at(offset, length) == poison_at(0, offset % 8 + length)[offset % 8 :]
    assert len(poison_at(offset, length)) == length
    assert 0 not in poison_at(0, 8) and 0xFF not in poison_at(0, 8), "told from zeros and aborted reads"


def test_a_source_is_read_in_whole_blocks(stage: Any, source: FileSource) -> None:
    made = stage(source)
    assert made.fill(4096, 512, 700) == 700
    assert bytes(made.buffer.load(4096, 1024)) == DATA[512:1536], "the block that the transfer ends in came whole"
    assert made.fill(0, 19968, 32) == 32, "the file ends inside the block"
    assert made.fill(0, 19968, 100) == 32, "and a file that shrank is noticed"
    with pytest.raises(LocalProtocolError):
        made.drain(0, 0, 512)


def test_where_no_block_begins(stage: Any, source: FileSource, tmp_path: Path) -> None:
    made = stage(source)
    with pytest.raises(HostError, match="byte 100 ") as caught:
        made.fill(0, 100, 512)
    assert (caught.value.code, caught.value.errno) == ("not_aligned", "EINVAL")
    assert "multiples of 512" in str(caught.value.fix)
    with pytest.raises(HostError, match="byte 3 "):
        stage(source, start=3)
    with pytest.raises(HostError, match="every 5000 bytes"):
        stage(source, chunk=5000)
    shifted = FileSource(make_spec("file", str(tmp_path / "in.bin"), {"offset": "10"}))
    with pytest.raises(HostError, match="byte 10 "):
        stage(shifted)
    shifted.close()


def test_a_sink_with_a_tail(stage: Any, tmp_path: Path) -> None:
    """The last part of a block goes through the host, and the file is no longer than it should be."""
    target = tmp_path / "out.bin"
    sink = sink_for(target, 5000)
    sink.check_write(0, 5000)
    made = stage(sink, length_bytes=5000)
    assert made.report.host_bytes == 5000 % 512
    made.buffer.store(0, DATA[:4096])
    made.buffer.store(8192, DATA[4096:5000])
    made.drain(8192, 4096, 904)
    made.drain(0, 0, 4096)
    with pytest.raises(HostError, match="outside what may be written"):
        made.drain(0, 4608, 512)
    sink.commit()
    assert target.read_bytes() == DATA[:5000]
    sink.close()


def test_a_tail_inside_a_file_keeps_what_follows(stage: Any, tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"k" * 4096)
    sink = sink_for(target, 700, size="4096")
    sink.check_write(0, 700)
    made = stage(sink, length_bytes=700)
    made.buffer.store(0, DATA[:700])
    made.drain(0, 0, 700)
    sink.commit()
    assert target.read_bytes() == DATA[:700] + b"k" * 3396
    sink.close()


def test_what_the_kernel_refuses_is_found_before_anything_moves(
    stage: Any, source: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(121, "Remote I/O error")

    def descriptors() -> int:
        links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        return sum(os.path.realpath(link) == source.path for link in links)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", refuse)
        with pytest.raises(HostError, match=r"by DMA between its drive 0000:02:00\.0") as caught:
            stage(source)
    assert (caught.value.code, caught.value.errno) == ("p2p_refused", "EREMOTEIO")
    assert descriptors() == 1, "the second descriptor is closed again"
    # A new file has no block to try: there the first write finds out.
    sink = sink_for(tmp_path / "out.bin", 4096)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", refuse)
        patch.setattr(os, "pwritev", refuse)
        made = stage(sink, length_bytes=4096)
        with pytest.raises(HostError) as written:
            made.drain(0, 0, 4096)
    assert written.value.code == "p2p_refused"
    sink.close()


def test_bounced_the_host_memory_holds_what_the_ring_holds(stage: Any, source: FileSource, tmp_path: Path) -> None:
    made = stage(source)
    bounced = BouncedStage(made)
    assert bounced.buffer is not made.buffer
    assert bounced.fill(4096, 0, 1000) == 1000
    assert bytes(bounced.buffer.load(4096, 1000)) == DATA[:1000] == bytes(made.buffer.load(4096, 1000))
    bounced.close()
    sink = sink_for(tmp_path / "out.bin", 1000)
    sink.check_write(0, 1000)
    out = BouncedStage(stage(sink, length_bytes=1000))
    out.buffer.store(0, DATA[:1000])
    out.drain(0, 0, 1000)
    sink.commit()
    assert (tmp_path / "out.bin").read_bytes() == DATA[:1000]
    out.close()
    sink.close()


# --- whole transfers through a ring ---------------------------------------------------------------------------


@pytest.fixture
def here(machine: SysfsRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process runs on the machine."""
    monkeypatch.setattr(SysfsRoot.__init__, "__defaults__", (str(machine.path),))


RING: dict[str, Any] = {"device": "soft0", "via": "p2pmem:0000:01:00.0", "staging_chunk_bytes": 8192}


def test_out_of_a_file_and_into_one(here: None, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(300_001)
    (tmp_path / "in.bin").write_bytes(data)
    with api.serving({"mem": "host,size=1MiB"}, device="soft0") as address:
        wrote = api.write(f"{address}/mem", f"file:{tmp_path}/in.bin", **RING)
        assert (wrote.error, wrote.verify.status) == (None, "verified")
        read = api.read(f"{address}/mem", f"file:{tmp_path}/out.bin", size_bytes=len(data), **RING)
        assert (read.error, read.verify.status) == (None, "verified")
    assert (tmp_path / "out.bin").read_bytes() == data
    for result, host_bytes in ((wrote, 0), (read, len(data) % 512)):
        route = result.local_route
        assert route is not None and route.via is not None
        assert (route.chosen, route.memory, route.staged, route.peer_to_peer) == ("cpu", "file", True, False)
        assert (route.via.mover, route.via.peer_to_peer, route.via.host_bytes) == ("drive", True, host_bytes)
        text = "\n".join(result_lines(result, None))
        assert "staged via p2pmem:0000:01:00.0 (DMA by drive 0000:02:00.0, peer-to-peer" in text
        assert ("the last 481 bytes through host memory" in text) is bool(host_bytes)
        document = transfer_document(result)
        jsonschema.validate(document, load_schema())
        assert document["route"]["local"]["via"]["host_bytes"] == host_bytes
        assert document["params"]["via"] == "p2pmem:0000:01:00.0"


def test_a_server_with_a_ring(here: None, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(100_000)
    (tmp_path / "f.bin").write_bytes(data)
    with api.serving({"f": f"file:{tmp_path}/f.bin", "mem": "host,size=4KiB"}, **RING) as address:
        read = api.read(f"{address}/f", "host", device="soft0")
        assert (read.error, read.verify.status) == (None, "verified")
        wrote = api.write(f"{address}/f+51200", "host,size=1001,pattern=words:3", device="soft0")
        assert (wrote.error, wrote.verify.status) == (None, "verified")
        refused = api.read(f"{address}/f+7", "host", device="soft0", size_bytes=10)
        plain = api.write(f"{address}/mem", "host,size=4KiB", device="soft0")
    assert read.remote_route is not None and read.remote_route.via is not None
    assert read.remote_route.via.drive == "0000:02:00.0"
    assert wrote.remote_route is not None and wrote.remote_route.via is not None
    assert wrote.remote_route.via.host_bytes == 1001 % 512
    assert refused.error is not None and (refused.exit_code, refused.error.code) == (7, "not_aligned")
    assert plain.remote_route is not None and plain.remote_route.via is None, "only files are staged"
    kept = (tmp_path / "f.bin").read_bytes()
    assert kept[:51200] == data[:51200] and kept[52201:] == data[52201:] and kept != data
    with pytest.raises(RequestError, match="for files and block devices"), api.serving({"a": "host,size=4KiB"}, **RING):
        pass


@pytest.mark.parametrize("side", ["local", "remote"])
def test_a_drive_that_says_it_did_and_did_not(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    """Every return code is a success and no byte comes: the file's digest finds it."""
    (tmp_path / "f.bin").write_bytes(random.Random(4).randbytes(100_000))
    monkeypatch.setattr(direct.DirectFile, "read_into", lambda self, into, position: len(into))
    with api.serving({"f": f"file:{tmp_path}/f.bin", "mem": "host,size=1MiB"}, **RING) as address:
        if side == "local":
            result = api.write(f"{address}/mem", f"file:{tmp_path}/f.bin", **RING)
        else:
            result = api.read(f"{address}/f", "host", device="soft0")
    assert result.error is not None and (result.exit_code, result.error.code) == (4, "verify_mismatch")
    assert (result.verify.first_bad_offset, result.verify.classification) == (0, "never_arrived")
    assert f"poison of the {side} ring" in str(result.verify.why)
    assert "p2prw topology 0000:02:00.0 0000:01:00.0" in str(result.verify.why)


def test_require_direct_is_not_met_by_a_cpu(here: None, tmp_path: Path) -> None:
    (tmp_path / "f.bin").write_bytes(bytes(8192))
    with api.serving({"mem": "host,size=1MiB"}, device="soft0") as address:
        result = api.write(f"{address}/mem", f"file:{tmp_path}/f.bin", require_direct=True, **RING)
    assert result.error is not None and (result.exit_code, result.error.code) == (3, "not_direct")
