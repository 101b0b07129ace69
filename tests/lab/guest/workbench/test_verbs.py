"""Whole transfers over the kernel's rxe by both bindings: every kind of memory, every route, verified at both ends."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import Access, Opcode, QueuePairOptions, Route, Sge, WcStatus
from p2prw.engine.providers.verbs_open import open_verbs_device
from p2prw.units import KIB, MIB

BINDINGS = ("pyverbs", "ibverbs")
# The lab is slow: a retransmission timer of 1 s.
OPTIONS = QueuePairOptions(timeout=18)
ADDRESS = "10.9.0.1"


@pytest.fixture(scope="module", params=BINDINGS)
def binding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verbs")


@pytest.fixture(scope="module")
def served(binding: str, folder: Path, nvme: Any, ivshmem: str) -> Iterator[str]:
    """One resident server for all tests of a binding."""
    regions = {
        "mem": "host,size=8MiB",
        "known": "host,size=8MiB,pattern=words:5",
        "large": "host,size=17MiB,pattern=words:6",
        "file": f"file:{folder}/served-{binding}.bin",
        "cmb": f"p2pmem:{nvme('a')},size=4MiB",
        "bar": f"bar:{ivshmem}/2,offset=8MiB,size=4MiB",
    }
    options: dict[str, Any] = {
        "device": "rxe0",
        "verbs_binding": binding,
        "queue_pair": OPTIONS,
        "insecure": True,
    }
    with api.serving(regions, listen=f"{ADDRESS}:0", **options) as address:
        yield str(address)


@pytest.fixture
def move(served: str, binding: str) -> Any:
    """`move("write", "mem+3", "host,...", size_bytes=...)`: the result."""

    def run(operation: str, target: str, memory: str, **options: Any) -> Any:
        do = api.write if operation == "write" else api.read
        options = {"device": "rxe0", "verbs_binding": binding, "queue_pair": OPTIONS, **options}
        return do(f"{served}/{target}", memory, **options)

    return run


def check(result: Any, binding: str, *, local: str, remote: str) -> None:
    assert (result.error, result.exit_code, result.verify.status) == (None, 0, "verified")
    assert result.environment["device"]["binding"] == binding
    assert (result.local_route.chosen, result.remote_route.chosen) == (local, remote)
    for route in (result.local_route, result.remote_route):
        assert (route.mover, route.peer_to_peer, route.driver) == ("cpu", False, "rxe")


@pytest.mark.parametrize("operation", ["write", "read"])
def test_host_to_host_with_odd_sizes_and_offsets(move, binding, operation):
    source = "host,size=2MiB,pattern=words:9" if operation == "write" else "host"
    target = "mem+77773" if operation == "write" else "known+77773"
    result = move(operation, target, source, size_bytes=MIB + 1)
    check(result, binding, local="pin", remote="pin")
    assert result.results[0].bytes == MIB + 1


@pytest.mark.parametrize("operation", ["read", "write"])
def test_the_source_is_digested_while_its_bytes_travel(move, binding, operation):
    memory = "host,size=17MiB,pattern=words:7" if operation == "write" else "host,size=17MiB"
    result = move(operation, "large", memory, size_bytes=16 * MIB + 1)
    check(result, binding, local="pin", remote="pin")
    assert result.verify.blocks == 17 and 0 < result.verify.blocks_ahead <= 17


@pytest.mark.parametrize("size", [0, 1, 3, 4096])
def test_small_sizes(move, size):
    result = move("write", "mem+1", "host,size=8KiB,pattern=words:3", size_bytes=size)
    assert (result.error, result.exit_code, result.results[0].bytes) == (None, 0, size)


def test_file_to_file_and_back(move, binding, folder):
    source, back = folder / f"source-{binding}.bin", folder / f"back-{binding}.bin"
    source.write_bytes(random.Random(1).randbytes(MIB + 1))
    wrote = move("write", "file", f"file:{source}", staging_chunk_bytes=256 * KIB)
    check(wrote, binding, local="pin", remote="pin")
    assert wrote.local_route.staged and wrote.remote_route.staged
    read = move("read", "file", f"file:{back}", staging_chunk_bytes=256 * KIB)
    check(read, binding, local="pin", remote="pin")
    assert back.read_bytes() == source.read_bytes()


def test_p2pmem_to_host_goes_by_odp_and_says_why_not_by_pin(move, binding, nvme):
    result = move("write", "mem+77773", f"p2pmem:{nvme('a')},size=2MiB", size_bytes=MIB + 1)
    check(result, binding, local="odp", remote="pin")
    pin, odp = result.local_route.attempts
    # EREMOTEIO for a source (read-only registration), EFAULT for a sink (mm/gup.c).
    assert (pin.route, pin.ok, pin.errno) == ("pin", False, "EREMOTEIO") and "p2pmem" in pin.why
    assert (odp.route, odp.ok) == ("odp", True)


def test_host_memory_into_a_p2pmem_sink(move, binding, nvme):
    result = move("read", "known+77773", f"p2pmem:{nvme('a')},size=2MiB", size_bytes=MIB + 1)
    check(result, binding, local="odp", remote="pin")


def test_host_to_p2pmem_and_back(move, binding):
    for target, route in (("cmb+4096", "odp"), ("cmb+1", "bounce")):
        wrote = move("write", target, "host,size=2MiB,pattern=words:4", size_bytes=MIB + 1)
        check(wrote, binding, local="pin", remote=route)
        read = move("read", target, "host", size_bytes=MIB + 1)
        check(read, binding, local="pin", remote=route)
        assert read.verify.local_digest == wrote.verify.local_digest
    why = read.remote_route.attempts[1].why
    assert "start of each page" in why, "rxe's ODP ignores the offset in a page; where it no longer does, say so here"


def test_small_packets_bounce_too(move, binding, nvme):
    small = QueuePairOptions(timeout=18, mtu_bytes=1024)
    result = move("write", "mem", f"p2pmem:{nvme('a')},size=64KiB", queue_pair=small)
    check(result, binding, local="bounce", remote="pin")


def test_pieces_that_are_no_pages_are_refused(move, nvme):
    result = move("write", "mem", f"p2pmem:{nvme('a')},size=64KiB", chunk_bytes=1000)
    assert (result.exit_code, result.error.code) == (3, "not_whole_pages")


def test_p2pmem_to_p2pmem_of_another_controller(move, binding, nvme):
    there = f"p2pmem:{nvme('c')},size=2MiB"
    for operation, target, remote in (("read", "cmb", "odp"), ("write", "cmb+1", "bounce")):
        result = move(operation, target, there, size_bytes=MIB + 1)
        check(result, binding, local="odp", remote=remote)


def test_a_bar_as_source_bounces(move, binding, ivshmem, outside):
    data = random.Random(2).randbytes(MIB + 1)
    outside.poke("ivshmem-shared", 5, data)
    result = move("write", "mem+3", f"bar:{ivshmem}/2,offset=5,size={MIB + 1}")
    check(result, binding, local="bounce", remote="pin")
    assert result.local_route.staged


def test_a_bar_as_sink_bounces_and_holds_the_bytes_seen_from_outside(move, binding, outside, folder):
    data = random.Random(3).randbytes(MIB + 1)
    source = folder / "bar.bin"
    source.write_bytes(data)
    result = move("write", "bar+5", f"file:{source}")
    check(result, binding, local="pin", remote="bounce")
    assert outside.peek("ivshmem-shared", 8 * MIB + 5, MIB + 1) == data


def test_pin_by_name_on_p2pmem_ends_3_and_explains_efault(move, nvme):
    result = move("write", "mem", f"p2pmem:{nvme('a')},size=64KiB", route=Route.PIN)
    assert (result.exit_code, result.error.code, result.error.errno) == (3, "no_route", "EREMOTEIO")
    result = move("read", "known", f"p2pmem:{nvme('a')},size=64KiB", route=Route.PIN)
    assert (result.exit_code, result.error.code, result.error.errno) == (3, "no_route", "EFAULT")
    assert "no mainline kernel pins it" in result.error.why and "--route odp" in result.error.fix
    assert result.local_route.attempts[0].errno == "EFAULT"


def test_odp_by_name(move, binding, nvme):
    result = move("write", "mem", f"p2pmem:{nvme('a')},size=64KiB", route=Route.ODP)
    check(result, binding, local="odp", remote="pin")


def test_bounce_by_name_on_p2pmem(move, binding, nvme):
    result = move("read", "known", f"p2pmem:{nvme('a')},size=64KiB", route=Route.BOUNCE)
    check(result, binding, local="bounce", remote="pin")


def test_page_less_memory_is_refused_by_class_and_the_kernel_says_the_same_when_forced(move, ivshmem):
    bar = f"bar:{ivshmem}/2,size=64KiB"
    refused = move("write", "mem", bar, route=Route.PIN)
    assert (refused.exit_code, refused.error.code, refused.error.errno) == (3, "route_unavailable", None)
    assert "rxe" in refused.error.why and "struct page" in refused.error.why
    forced = move("write", "mem", bar, route=Route.PIN, force_route=True)
    assert (forced.exit_code, forced.error.errno) == (3, "EFAULT")
    # ODP registers, and the first real chunk finds out.
    used = move("write", "mem", bar, route=Route.ODP, force_route=True)
    assert used.exit_code == 1 and used.error.wc_status is not None


def test_require_direct_ends_3(move, nvme):
    result = move("write", "mem", f"p2pmem:{nvme('a')},size=64KiB", require_direct=True)
    assert (result.exit_code, result.error.code, result.error.side) == (3, "not_direct", "local")
    result = move("write", "cmb", "host,size=64KiB", require_direct=True)
    assert (result.exit_code, result.error.code, result.error.side) == (3, "not_direct", "remote")
    assert move("write", "mem", "host,size=64KiB", require_direct=True).exit_code == 0, "it binds device memory only"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_reposted_work_requests_grow_nothing(binding, pytestconfig):
    """64 bytes each, in chains of 32, one in 32 signalled, over a queue pair connected to itself.

    40,000, and 200,000 with --long: one Python object kept for each would be more than 1 MiB.
    """
    count = 200_000 if pytestconfig.getoption("--long") else 40_000
    with open_verbs_device("rxe0", role="server", binding=binding) as device:
        pair: Any = device.create_queue_pair(QueuePairOptions(depth=64, gid_index=1))
        pair.connect(pair.local)
        rights = Access.LOCAL_WRITE | Access.REMOTE_WRITE
        memory = HostMemory.from_buffer(bytearray(1 << 16))
        registration = device.register(memory.buffers(), rights)
        (address, _, lkey), (_, _, rkey) = registration.vec[0], registration.remote_segments()[0]

        def post(first: int, count: int) -> None:
            for wr_id in range(first, first + count):
                sge = Sge(address + 64 * (wr_id % 500), 64, lkey)
                signaled = wr_id % 32 == 31
                pair.post_rdma(wr_id, Opcode.RDMA_WRITE, (sge,), address + 32768, rkey, signaled=signaled)
                if signaled:
                    device.pump()
                    while pair.outstanding:
                        for done in pair.poll():
                            assert done.status is WcStatus.SUCCESS

        post(0, 6400)
        before = resident_bytes()
        post(6400, count)
        assert resident_bytes() - before < MIB


def test_auto_takes_rxe_where_the_way_to_the_peer_goes(move):
    result = move("write", "mem", "host,size=64KiB", device="auto")
    assert result.exit_code == 0 and result.environment["device"]["name"] == "rxe0"
    assert "carries 10.9.0.1" in result.environment["device"]["reason"]
