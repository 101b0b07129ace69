"""Files staged in controller memory (`--via`): the drive DMAs to and from the ring, RDMA goes on from there.

The whole chain: disk b -> P2P DMA -> memory of controller a -> RDMA over rxe -> remote memory -> file. The disks are
filled and looked at from outside the guest.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.digest import digest_block
from p2prw.engine.model import QueuePairOptions, Route, Timeouts, ViaReport
from p2prw.units import KIB, MIB

OPTIONS = QueuePairOptions(timeout=18)
PATIENT = Timeouts(handshake_s=60.0, idle_s=60.0)
ADDRESS = "10.9.0.1"
CHUNK = 256 * KIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def served(folder):
    """Where the chain ends."""
    regions = {
        "mem": "host,size=8MiB",
        "known": "host,size=8MiB,pattern=words:5",
        "arrived": f"file:{folder}/arrived.bin",
    }
    with api.serving(regions, listen=f"{ADDRESS}:0", device="rxe0", insecure=True, queue_pair=OPTIONS) as address:
        yield str(address)


@pytest.fixture
def via(nvme):
    return f"p2pmem:{nvme('a')}"


@pytest.fixture
def move(served, via) -> Any:
    """`move("write", "mem", "file:...")` through the ring over rxe0."""

    def run(operation: str, target: str, memory: str, **options: Any) -> Any:
        do = api.write if operation == "write" else api.read
        options = {"device": "rxe0", "queue_pair": OPTIONS, "via": via, "staging_chunk_bytes": CHUNK, **options}
        return do(f"{served}/{target}", memory, **options)

    return run


def check(result: Any) -> None:
    assert (result.error, result.exit_code, result.verify.status) == (None, 0, "verified")


def test_the_whole_chain_moves_8_mib_of_known_data(move, nvme, nvme_disk, outside, folder):
    data = random.Random(31).randbytes(8 * MIB)
    outside.poke("nvme-b", 0, data)
    result = move("write", "arrived", f"file:{nvme_disk('b')},size=8MiB")
    check(result)
    assert (folder / "arrived.bin").read_bytes() == data
    assert result.verify.local_digest == result.verify.remote_digest
    route = result.local_route
    assert (route.chosen, route.mover, route.peer_to_peer) == ("odp", "cpu", False), "rxe's CPU carries this leg"
    assert (route.memory, route.staged) == ("file", True)
    assert route.via == ViaReport("p2pmem", nvme("a"), "drive", True, nvme("b"), 0), "and the drive carries that one"
    assert route.attempts[0].route == "pin" and not route.attempts[0].ok
    assert result.remote_route.via is None


def test_remote_memory_into_a_disk_with_an_odd_tail(move, nvme_disk, outside):
    before = random.Random(32).randbytes(4 * KIB)
    outside.poke("nvme-b", 17 * MIB, before)
    result = move("read", "known+4096", f"file:{nvme_disk('b')},offset=16MiB", size_bytes=MIB + 1, overwrite=True)
    check(result)
    assert result.local_route.via.host_bytes == 1
    arrived = outside.peek("nvme-b", 16 * MIB, MIB + 4 * KIB)
    assert digest_block(arrived[:MIB]) != digest_block(bytes(MIB))
    assert arrived[MIB + 1 :] == before[1:], "the rest of the last block is kept"
    back = move("write", "mem", f"file:{nvme_disk('b')},offset=16MiB", size_bytes=MIB + 1)
    check(back)
    assert back.verify.local_digest == result.verify.local_digest
    assert back.local_route.via.host_bytes == 0, "a source's last block is read whole by the drive"


def test_a_server_stages_its_disk_too(via, nvme, nvme_disk, outside):
    data = random.Random(33).randbytes(MIB + 4 * KIB)
    outside.poke("nvme-b", 24 * MIB, data)
    options: dict[str, Any] = {"via": via, "staging_chunk_bytes": CHUNK, "insecure": True}
    common: dict[str, Any] = {"device": "rxe0", "queue_pair": OPTIONS, "timeouts": PATIENT}
    disk = f"file:{nvme_disk('b')},offset=24MiB,size=4MiB"
    with api.serving({"disk": disk}, listen=f"{ADDRESS}:0", **options, **common) as address:
        read: Any = api.read(f"{address}/disk", "host", size_bytes=MIB + 1, **common)
        check(read)
        assert read.remote_route.chosen == "odp"
        assert read.remote_route.via == ViaReport("p2pmem", nvme("a"), "drive", True, nvme("b"), 0)
        source = "host,size=1MiB,pattern=words:8"
        wrote: Any = api.write(f"{address}/disk+2MiB", source, **common)
        check(wrote)
        odd: Any = api.read(f"{address}/disk+3", "host", size_bytes=4 * KIB, **common)
    assert outside.peek("nvme-b", 26 * MIB, 64) != bytes(64)
    assert (odd.exit_code, odd.error.code, odd.error.side) == (7, "not_aligned", "remote")
    assert "multiples of 512" in odd.error.fix


def test_the_software_device_takes_the_ring_too(via, nvme_disk, outside):
    data = random.Random(34).randbytes(MIB)
    outside.poke("nvme-b", 32 * MIB, data)
    disk = f"file:{nvme_disk('b')},offset=32MiB,size=1MiB"
    with api.serving({"mem": "host,size=2MiB"}, timeouts=PATIENT) as address:
        result: Any = api.write(f"{address}/mem", disk, via=via, staging_chunk_bytes=CHUNK, timeouts=PATIENT)
    check(result)
    assert (result.local_route.chosen, result.local_route.via.mover) == ("cpu", "drive")


def test_what_would_be_copied_is_refused_or_asked_for(move, nvme_disk):
    disk = f"file:{nvme_disk('b')},size=64KiB"
    pinned = move("write", "mem", disk, route=Route.PIN)
    assert (pinned.exit_code, pinned.error.code, pinned.error.errno) == (3, "no_route", "EREMOTEIO")
    assert "--route bounce" in pinned.error.fix
    small = move("write", "mem", disk, queue_pair=QueuePairOptions(timeout=18, mtu_bytes=1024))
    assert (small.exit_code, small.error.code) == (3, "no_route"), "odp cannot, and nobody asked for a copy"
    direct = move("write", "mem", disk, require_direct=True)
    assert (direct.exit_code, direct.error.code) == (3, "not_direct")
    bounced = move("write", "mem", disk, route=Route.BOUNCE)
    check(bounced)
    assert (bounced.local_route.chosen, bounced.local_route.via.peer_to_peer) == ("bounce", True)


def test_a_path_that_the_kernel_refuses(move, nvme, nvme_disk):
    result = move("write", "mem", f"file:{nvme_disk('b')},size=64KiB", via=f"p2pmem:{nvme('c')}")
    assert (result.exit_code, result.error.code) == (3, "p2p_refused")
    assert result.error.errno in ("EINVAL", "EREMOTEIO") and "share no upstream bridge" in result.error.why
    assert f"p2prw topology {nvme('b')} {nvme('c')}" in result.error.fix
    assert result.results[0].bytes == 0 and result.local_route is None


def test_no_block_begins_there(move, nvme_disk):
    result = move("write", "mem", f"file:{nvme_disk('b')},offset=100,size=64KiB")
    assert (result.exit_code, result.error.code, result.error.errno) == (3, "not_aligned", "EINVAL")


def test_a_file_system_that_would_copy_is_refused(move, folder):
    (folder / "plain.bin").write_bytes(bytes(64 * KIB))
    result = move("write", "mem", f"file:{folder}/plain.bin")
    assert (result.exit_code, result.error.code) == (3, "no_direct_io")


@pytest.fixture
def ext4(nvme_disk, tmp_path, text_of):
    """A file system on disk c, which goes into the memory of controller c."""
    text_of("mkfs.ext4", "-q", "-F", str(nvme_disk("c")))
    text_of("mount", str(nvme_disk("c")), str(tmp_path))
    yield tmp_path
    text_of("umount", str(tmp_path))


def test_plain_files_on_a_file_system_that_can(move, ext4, nvme):
    data = random.Random(35).randbytes(MIB + 77)
    (ext4 / "source.bin").write_bytes(data)
    options = {"via": f"p2pmem:{nvme('c')}"}
    check(move("write", "mem", f"file:{ext4}/source.bin", **options))
    back = move("read", "mem", f"file:{ext4}/back.bin", size_bytes=len(data), **options)
    check(back)
    assert (ext4 / "back.bin").read_bytes() == data
    assert back.local_route.via == ViaReport("p2pmem", nvme("c"), "drive", True, nvme("c"), len(data) % 512)
    assert sorted(path.name for path in ext4.glob("*.bin")) == ["back.bin", "source.bin"]


def test_the_command_line_and_its_example(served, folder, nvme, nvme_disk, repository):
    """configs/nvme_chain.yaml with this machine's addresses."""
    text = (repository / "configs/nvme_chain.yaml").read_text()
    for old, new in (
        ("0000:01:00.0", nvme("a")),
        ("/dev/nvme1n1", str(nvme_disk("b"))),
        ("10.0.0.1:18515", served),
        ("token_file: token", ""),
        ("size: 8MiB", "size: 1MiB"),  # 8 MiB move above
    ):
        assert old in text
        text = text.replace(old, new)
    config = folder / "chain.yaml"
    config.write_text(text)
    command = ["p2prw", "write", "-c", str(config), "--json", "--device", "rxe0", "--timeout", "18"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    document = json.loads(done.stdout)
    assert (done.returncode, document["verify"]["status"]) == (0, "verified"), done.stderr
    assert document["route"]["local"]["via"]["drive"] == nvme("b")


def test_nothing_is_left(nvme):
    pool = Path("/sys/bus/pci/devices") / nvme("a") / "p2pmem"
    size, available = (int((pool / name).read_text()) for name in ("size", "available"))
    assert size - available < 1 << 20, "the ring's memory is back in the pool"
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    assert not [link for link in links if os.path.realpath(link).startswith("/dev/nvme")]
