"""dma-bufs of the kernel's own making (udmabuf, dma-heap): made, mapped, moved by copy; and memory that is not here."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.memory.prepare import prepare_memory
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Offer, QueuePairOptions, Route, Timeouts
from p2prw.engine.pattern import parse_pattern
from p2prw.errors import HostError
from p2prw.units import KIB, MIB

# The lab is slow: a retransmission timer of 1 s, half a minute for the first word.
OPTIONS = QueuePairOptions(timeout=18)
PATIENT = Timeouts(handshake_s=60.0, idle_s=60.0)
KINDS = ("udmabuf", "dmaheap:system")
SIZE = 256 * KIB + 1


def told(route: Any) -> list[tuple[str, bool, str | None]]:
    return [(one.route, one.ok, one.errno or one.wc_status) for one in route.attempts]


@pytest.mark.parametrize(("text", "pages"), [("udmabuf", True), ("dmaheap:system", False)])
def test_a_buffer_is_made_and_mapped(text, pages):
    memory: Any = prepare_memory(parse_memory_spec(f"{text},size=10000,pattern=words:6"), "both").open()
    try:
        assert memory.offers == {Offer.DMABUF, Offer.CPU_MAPPING} | ({Offer.PAGES} if pages else set())
        descriptor, offset = memory.dmabuf()
        assert (offset, os.lseek(descriptor, 0, os.SEEK_END)) == (0, 12288)
        expected = parse_pattern("words:6").bytes_at(0, 10000)
        into = bytearray(10000)
        assert memory.read_at(0, memoryview(into)) == 10000 and into == expected
        # The same pages by the dma-buf's own mapping.
        with mmap.mmap(descriptor, 12288) as mapping:
            assert mapping[:10000] == expected
            mapping[9990:9995] = b"12345"
        assert bytes(memory.buffers()[0].load(9990, 5)) == b"12345"
    finally:
        memory.close()


def test_a_heap_that_is_not_there():
    with pytest.raises(HostError) as caught:
        prepare_memory(parse_memory_spec("dmaheap:nobodys,size=4K"), "both")
    assert (caught.value.code, caught.value.errno) == ("no_heap", "ENOENT")
    assert "system" in str(caught.value.why)


@pytest.fixture(scope="module", params=["pyverbs", "ibverbs"])
def rxe(request) -> Iterator[tuple[str, dict[str, Any]]]:
    """A server with a region of each kind, and what a client needs to know."""
    options: dict[str, Any] = {
        "device": "rxe0",
        "verbs_binding": str(request.param),
        "queue_pair": OPTIONS,
        "timeouts": PATIENT,
    }
    regions = {"mem": "host,size=1MiB", "udmabuf": "udmabuf,size=1MiB", "dmaheap:system": "dmaheap:system,size=1MiB"}
    named = {name.replace(":", "-"): memory for name, memory in regions.items()}
    with api.serving(named, listen="10.9.0.1:0", insecure=True, **options) as address:
        yield str(address), options


@pytest.mark.parametrize("kind", KINDS)
def test_rxe_imports_none_and_copies_both_ways(rxe, kind):
    address, options = rxe
    region = f"{address}/{kind.replace(':', '-')}+77"
    wrote: Any = api.write(region, f"{kind},size={SIZE},pattern=words:8", **options)
    assert (wrote.error, wrote.verify.status, wrote.verify.method) == (None, "verified", "owner-cpu")
    read: Any = api.read(region, kind, size_bytes=SIZE, **options)
    assert (read.error, read.verify.local_digest) == (None, wrote.verify.local_digest)
    for route in (wrote.local_route, wrote.remote_route, read.local_route, read.remote_route):
        assert told(route) == [("dmabuf", False, None), ("bounce", True, None)]
        assert "rxe moves bytes with the CPU through struct pages" in route.attempts[0].why
        assert (route.staged, route.mover, route.peer_to_peer) == (True, "cpu", False)


@pytest.mark.parametrize("kind", KINDS)
def test_dmabuf_by_name_is_refused_by_class_and_by_the_kernel_when_forced(rxe, kind):
    address, options = rxe
    source = f"{kind},size=64KiB"
    refused: Any = api.write(f"{address}/mem", source, route=Route.DMABUF, **options)
    assert (refused.exit_code, refused.error.code, refused.error.errno) == (3, "route_unavailable", None)
    assert "rxe" in refused.error.why and "struct pages" in refused.error.why
    forced: Any = api.write(f"{address}/mem", source, route=Route.DMABUF, force_route=True, **options)
    assert (forced.exit_code, forced.error.code, forced.error.errno) == (3, "no_route", "EOPNOTSUPP")
    assert "rxe cannot import a dma-buf" in forced.error.why


def test_pages_of_a_memfd_can_be_pinned_and_those_of_a_heap_cannot(rxe):
    address, options = rxe
    pinned: Any = api.write(f"{address}/mem", "udmabuf,size=64KiB,pattern=words:8", route=Route.PIN, **options)
    assert (pinned.error, pinned.verify.status, pinned.local_route.chosen) == (None, "verified", "pin")
    refused: Any = api.write(f"{address}/mem", "dmaheap:system,size=64KiB", route=Route.PIN, **options)
    assert (refused.exit_code, refused.error.code) == (3, "route_unavailable")
    forced: Any = api.write(f"{address}/mem", "dmaheap:system,size=64KiB", route=Route.PIN, force_route=True, **options)
    assert (forced.exit_code, forced.error.errno) == (3, "EFAULT") and "VM_PFNMAP" in forced.error.why


def test_memory_that_rxe_and_this_host_have_not(rxe):
    address, options = rxe
    dm: Any = api.write(f"{address}/mem", "dm,size=4KiB", **options)
    assert (dm.exit_code, dm.error.code) == (3, "route_unavailable") and "rxe0" in dm.error.what
    reason = "max_dm_size is 0" if options["verbs_binding"] == "pyverbs" else "--verbs-binding pyverbs"
    assert reason in dm.error.why and "host,size=64MiB" in dm.error.fix
    forced: Any = api.write(f"{address}/mem", "dm,size=4KiB", force_route=True, **options)
    assert (forced.exit_code, forced.error.code) == (3, "no_route")
    assert "device memory" in forced.error.why or "dm allocation" in forced.error.why
    cuda: Any = api.write(f"{address}/mem", "cuda:0,size=4KiB", **options)
    assert (cuda.exit_code, cuda.error.code, cuda.error.errno) == (3, "no_cuda", "ENOENT")
    assert "libcuda.so.1" in cuda.error.why
    with (
        pytest.raises(HostError) as caught,
        api.serving({"dm": "dm,size=4KiB"}, listen="10.9.0.1:0", insecure=True, **options),
    ):
        pass
    assert caught.value.code == "route_unavailable"


def test_the_software_device_loads_and_stores():
    # Opening a software device takes ten seconds here, so each kind is each end of one transfer.
    with api.serving({"udmabuf": "udmabuf,size=1MiB"}, timeouts=PATIENT) as address:
        source = f"dmaheap:system,size={SIZE},pattern=words:2"
        wrote: Any = api.write(f"{address}/udmabuf+3", source, timeouts=PATIENT)
        assert (wrote.error, wrote.verify.status) == (None, "verified")
        read: Any = api.read(f"{address}/udmabuf+3", "dmaheap:system", size_bytes=SIZE, timeouts=PATIENT)
        assert (read.error, read.verify.local_digest) == (None, wrote.verify.local_digest)
        for route in (wrote.local_route, wrote.remote_route, read.local_route, read.remote_route):
            assert told(route) == [("cpu", True, None)]
        dm: Any = api.write(f"{address}/udmabuf", "dm,size=4KiB", timeouts=PATIENT)
        assert (dm.exit_code, dm.error.code) == (3, "route_unavailable") and "no CPU mapping" in dm.error.why
    with pytest.raises(HostError, match="cannot reach dm memory"), api.serving({"dm": "dm,size=4KiB"}):
        pass


def test_more_than_the_module_allows():
    limit = "/sys/module/udmabuf/parameters/size_limit_mb"
    with open(limit) as file:
        before = file.read()
    try:
        with open(limit, "w") as file:
            file.write("1")
        with pytest.raises(HostError) as caught:
            prepare_memory(parse_memory_spec(f"udmabuf,size={MIB + 1}"), "both")
        assert (caught.value.code, caught.value.errno) == ("too_big", "EINVAL")
        prepare_memory(parse_memory_spec("udmabuf,size=1MiB"), "both").open().close()
    finally:
        with open(limit, "w") as file:
            file.write(before)
