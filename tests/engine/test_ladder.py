"""The ladder climbed: what is tried in which order, what each attempt says, what holds, and what is never left open."""

from __future__ import annotations

import errno
import mmap
import os
from types import SimpleNamespace
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.ahead import OurSource, source_ahead
from p2prw.engine.ladder import NoRouteError, climb
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Access, Offer, Route, Timeouts
from p2prw.engine.pattern import parse_pattern
from p2prw.engine.providers.scripted import ScriptedDevice
from p2prw.engine.providers.verbs_binding import HcaFacts
from p2prw.engine.providers.verbs_open import open_verbs_device
from p2prw.engine.providers.verbs_scripted import ScriptedBinding, VerbsScript, write_sysfs
from p2prw.engine.routes import check_whole_pages
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError
from p2prw.units import MIB

PAGES = frozenset({Offer.PAGES, Offer.CPU_MAPPING})
IPV4 = ("0000:0000:0000:0000:0000:ffff:7f00:0001", "RoCE v2")


def memory_of(kind, offers=PAGES, *, device_memory=True, dmabuf=None):
    """Host bytes that pass for another kind."""
    memory: Any = HostMemory.from_buffer(bytearray(b"\x5a" * 8192))
    memory.spec = parse_memory_spec({"host": "host,size=8KiB", "file": "file:x"}.get(kind, f"{kind}:0000:01:00.0/2"
                                    if kind in ("bar", "vfio") else f"{kind}:0000:01:00.0"))  # fmt: skip
    memory.offers = offers
    memory.is_device_memory = device_memory
    if dmabuf is not None:
        memory.dmabuf = lambda: dmabuf
    return memory


@pytest.fixture
def rig(tmp_path):
    opened, scripts = [], []

    def make(driver="rxe", **script):
        write_sysfs(tmp_path, driver=driver, gids=[IPV4])
        binding = ScriptedBinding(VerbsScript(**script))
        device = open_verbs_device("rxe0", binding=binding, sysfs=SysfsRoot(tmp_path))
        opened.append(device)
        scripts.append(binding.script)
        return device, binding.script

    yield make
    for device in opened:
        device.close()
    for script in scripts:
        assert (script.regions_open, script.queue_pairs_open, script.contexts_open) == (0, 0, 0)


def special(script, memory):
    buffer = memory.buffers()[0]
    script.special.append(range(buffer.cpu_address, buffer.cpu_address + buffer.length_bytes))
    return memory


def told(report):
    return [(one.route, one.ok, one.errno or one.wc_status) for one in report.attempts]


def test_p2pmem_on_rxe_ends_on_odp_after_pin_gave_efault(rig):
    device, script = rig(pin_errno=errno.EFAULT)
    reach: Any = climb(device, special(script, memory_of("p2pmem")), Access.LOCAL_WRITE, staged=False)
    assert told(reach.report) == [("pin", False, "EFAULT"), ("odp", True, None)]
    assert (reach.report.chosen, reach.report.mover, reach.report.peer_to_peer) == ("odp", "cpu", False)
    assert "p2pmem mapping" in str(reach.report.attempts[0].why)
    assert reach.registration is not None and not reach.staged
    reach.registration.close()
    assert script.regions_open == 0


def test_without_leave_to_copy_bounce_is_no_rung_but_by_name(rig):
    device, script = rig(pin_errno=errno.EFAULT, odp_fails_in_use=True)
    memory = special(script, memory_of("p2pmem"))
    with pytest.raises(NoRouteError) as caught:
        climb(device, memory, Access.LOCAL_WRITE, staged=False, may_copy=False)
    assert told(caught.value.report) == [("pin", False, "EFAULT"), ("odp", False, "LOC_PROT_ERR")]
    reach: Any = climb(device, memory, Access.LOCAL_WRITE, staged=False, wanted=Route.BOUNCE, may_copy=False)
    assert told(reach.report) == [("bounce", True, None)] and reach.staged


def test_p2pmem_on_a_nic_is_peer_to_peer(rig):
    device, script = rig(driver="mlx5_core", pin_errno=errno.EFAULT)
    reach: Any = climb(device, special(script, memory_of("p2pmem")), Access.LOCAL_WRITE, staged=False)
    assert (reach.report.chosen, reach.report.mover, reach.report.peer_to_peer) == ("odp", "nic", True)
    reach.registration.close()


def test_a_route_that_registers_and_fails_in_use_is_not_taken(rig):
    device, script = rig(pin_errno=errno.EFAULT, odp_fails_in_use=True)
    reach: Any = climb(device, special(script, memory_of("p2pmem")), Access.LOCAL_WRITE, staged=False)
    assert told(reach.report) == [("pin", False, "EFAULT"), ("odp", False, "LOC_PROT_ERR"), ("bounce", True, None)]
    assert reach.staged and reach.registration is None
    assert (reach.report.mover, reach.report.staged, reach.report.peer_to_peer) == ("cpu", True, False)
    assert script.regions_open == 0


def test_odp_that_ignores_offsets_is_taken_for_whole_pages_only(rig):
    """What Linux 7.3's rxe does: bytes go to the start of the page, silently."""
    device, script = rig(pin_errno=errno.EFAULT, odp_ignores_offsets=True)
    page = mmap.mmap(-1, 8192)
    memory: Any = HostMemory.from_buffer(page, parse_memory_spec("p2pmem:0000:01:00.0"))
    memory.is_device_memory = True
    special(script, memory)
    for offset, mtu_bytes, chosen in ((0, 4096, "odp"), (0, 1024, "bounce"), (8, 4096, "bounce"), (0, None, "bounce")):
        reach: Any = climb(
            device,
            memory,
            Access.LOCAL_WRITE,
            offset=offset,
            length_bytes=4096,
            staged=False,
            path_mtu_bytes=mtu_bytes,
        )
        assert reach.report.chosen == chosen
        if chosen == "odp":
            reach.registration.close()
            check_whole_pages(reach.report, "local", 8192, None)
            with pytest.raises(HostError, match="1000 bytes"):
                check_whole_pages(reach.report, "local", 8192, 1000)
        else:
            assert "start of each page" in reach.report.attempts[1].why
            check_whole_pages(reach.report, "local", 1000)


def test_pin_by_name_on_p2pmem_ends_with_the_errno_and_what_it_means(rig):
    device, script = rig(pin_errno=errno.EFAULT)
    memory = special(script, memory_of("p2pmem"))
    with pytest.raises(NoRouteError) as caught:
        climb(device, memory, Access.LOCAL_WRITE, staged=False, wanted=Route.PIN)
    error = caught.value
    assert (error.exit_code, error.errno, error.code) == (3, "EFAULT", "no_route")
    assert "EFAULT" in str(error.why) and "--route odp" in str(error.fix)
    assert told(error.report) == [("pin", False, "EFAULT")]


def test_a_bar_bounces_and_is_refused_by_class_where_pages_are_needed(rig):
    device, script = rig(pin_errno=errno.EFAULT)
    memory = special(script, memory_of("bar", frozenset({Offer.CPU_MAPPING})))
    assert climb(device, memory, Access.LOCAL_WRITE, staged=False).report.chosen == "bounce"
    with pytest.raises(HostError) as caught:
        climb(device, memory, Access.LOCAL_WRITE, staged=False, wanted=Route.ODP)
    assert caught.value.errno is None and "rxe" in str(caught.value.why) and "struct page" in str(caught.value.why)
    with pytest.raises(HostError) as caught:
        climb(device, memory, Access.LOCAL_WRITE, staged=False, wanted=Route.PIN, force=True)
    assert caught.value.errno == "EFAULT", "--force-route shows the kernel's own answer"
    # A BAR is never read to prove a route: reading may change the device.
    script.odp_fails_in_use = True
    reach: Any = climb(device, memory, Access.LOCAL_WRITE, staged=False, wanted=Route.ODP, force=True)
    assert "first real chunk" in str(reach.report.attempts[0].why)
    reach.registration.close()


@pytest.mark.parametrize(
    ("driver", "dmabuf_errno", "expected"),
    [
        ("rxe", 0, [("dmabuf", False, None), ("bounce", True, None)]),
        ("mlx5_core", errno.EINVAL, [("dmabuf", False, "EINVAL"), ("bounce", True, None)]),
        ("mlx5_core", 0, [("dmabuf", True, None)]),
    ],
)
def test_page_less_dmabufs_by_driver(rig, driver, dmabuf_errno, expected):
    device, _ = rig(driver=driver, dmabuf_errno=dmabuf_errno)
    memory = memory_of("vfio", frozenset({Offer.DMABUF, Offer.CPU_MAPPING}), dmabuf=(3, 0))
    reach: Any = climb(device, memory, Access.LOCAL_WRITE, staged=False)
    assert told(reach.report) == expected
    if reach.registration is not None:
        reach.registration.close()


def test_host_memory_is_pinned_and_needs_no_proof(rig):
    device, script = rig()
    reach: Any = climb(device, memory_of("host", device_memory=False), Access.LOCAL_WRITE, staged=False)
    assert told(reach.report) == [("pin", True, None)] and script.chains == []
    reach.registration.close()


def test_files_go_through_a_ring_of_pinned_chunks(rig):
    device, _ = rig()
    reach: Any = climb(
        device, memory_of("file", frozenset({Offer.STAGED}), device_memory=False), Access.LOCAL_WRITE, staged=True
    )
    assert (reach.staged, reach.report.chosen, reach.report.staged) == (True, "pin", True)


def test_other_providers_have_the_cpu_alone():
    device = ScriptedDevice()
    reach: Any = climb(device, memory_of("host", device_memory=False), Access.LOCAL_WRITE, staged=False)
    assert told(reach.report) == [("cpu", True, None)] and device.counts.registrations_open == 1
    reach.registration.close()
    assert climb(device, memory_of("file", frozenset({Offer.STAGED})), Access.LOCAL_WRITE, staged=True).staged


# --- whole transfers over the scripted binding --------------------------------------------------------------

NIC_FACTS = HcaFacts(32, 32, 16384, 128, 128, 32767, max_dm_bytes=1 << 21)
QUICK = Timeouts(connect_retry_s=0.2, handshake_s=5.0, idle_s=5.0, drain_s=1.0)


@pytest.fixture
def verbs(tmp_path, monkeypatch, request):
    """A machine with one RoCE device (rxe, or a NIC) that carries 127.0.0.1, and a script of its answers."""
    root = tmp_path / "sys"
    driver = getattr(request, "param", "rxe")
    gids = [("fe80:0000:0000:0000:0000:00ff:fe00:0001", "RoCE v2"), IPV4]
    write_sysfs(root, driver=driver, gids=gids, netdev="lo")
    binding = ScriptedBinding(hca=None if driver == "rxe" else NIC_FACTS)
    monkeypatch.setattr("p2prw.engine.devices.SysfsRoot", lambda: SysfsRoot(root))
    monkeypatch.setattr("p2prw.engine.providers.verbs_binding.load_binding", lambda wanted="auto": binding)
    monkeypatch.setattr("p2prw.engine.providers.verbs_open.load_binding", lambda wanted="auto": binding)
    yield SimpleNamespace(script=binding.script, root=root, binding=binding, driver=driver)
    script = binding.script
    assert script.dms_open == 0
    assert (script.regions_open, script.queue_pairs_open, script.contexts_open) == (0, 0, 0), "everything is given back"


def test_whole_transfers_run_over_a_verbs_device(verbs, tmp_path):
    source, back = tmp_path / "a.bin", tmp_path / "b.bin"
    source.write_bytes(bytes(range(253)) * 9001)
    regions = {"mem": "host,size=3MiB", "sink": f"file:{tmp_path}/sink.bin"}
    with api.serving(regions, timeouts=QUICK) as address:
        wrote: Any = api.write(f"{address}/mem+77773", "host,size=2MiB,pattern=words:9", size_bytes=MIB + 1)
        assert (wrote.error, wrote.exit_code, wrote.verify.status) == (None, 0, "verified")
        assert wrote.environment["device"]["binding"] == "scripted" and wrote.environment["device"]["name"] == "rxe0"
        assert "rxe0 carries 127.0.0.1" in wrote.environment["device"]["reason"]
        for route in (wrote.local_route, wrote.remote_route):
            assert (route.chosen, route.mover, route.driver) == ("pin", "cpu", "rxe")
        read: Any = api.read(f"{address}/mem+77773", "host", size_bytes=MIB + 1, route=Route.BOUNCE)
        assert (read.exit_code, read.verify.local_digest) == (0, wrote.verify.remote_digest)
        assert read.local_route.chosen == "bounce" and read.local_route.staged
        assert api.write(f"{address}/sink", f"file:{source}", staging_chunk_bytes=65536).exit_code == 0
        result: Any = api.read(f"{address}/sink", f"file:{back}", staging_chunk_bytes=65536)
        assert (result.exit_code, result.remote_route.staged) == (0, True)
    assert back.read_bytes() == source.read_bytes()
    assert max(verbs.script.chains) > 1, "posts leave in chains"


@pytest.mark.parametrize("verbs", ["rxe", "mlx5_core"], indirect=True)
def test_a_source_that_rxe_carries_may_be_digested_meanwhile(verbs, monkeypatch):
    asked: list[tuple[str, int]] = []

    def begin(*args):
        ahead = source_ahead(*args)
        asked.append((args[2].value, args[6]))
        assert (ahead is not None) == (verbs.driver == "rxe")
        if isinstance(ahead, OurSource):
            ahead._thread.join()
        return ahead

    monkeypatch.setattr("p2prw.engine.mover.source_ahead", begin)
    monkeypatch.setattr("p2prw.engine.ahead.own_processors", lambda: 2)
    size = 17 * MIB
    with api.serving({"mem": f"host,size={size}"}, timeouts=QUICK) as address:
        wrote: Any = api.write(f"{address}/mem", f"host,size={size},pattern=words:9")
        assert (wrote.error, wrote.verify.status, wrote.verify.blocks) == (None, "verified", 17)
        assert wrote.verify.blocks_ahead == (17 if verbs.driver == "rxe" else 0)
        read: Any = api.read(f"{address}/mem", f"host,size={size}")
        assert (read.error, read.verify.local_digest) == (None, wrote.verify.local_digest)
        assert api.write(f"{address}/mem", f"host,size={size}", verify=False).exit_code == 0
    assert asked == [("write", size), ("read", size)], "nothing where nothing is verified"


def test_a_lost_key_and_a_bad_route_end_with_their_codes(verbs):
    with api.serving({"mem": "host,size=1MiB"}, timeouts=QUICK) as address:
        cpu: Any = api.write(f"{address}/mem", "host,size=1MiB", route=Route.CPU)
        assert (cpu.exit_code, cpu.error.code) == (3, "route_unavailable")
        odp: Any = api.write(f"{address}/mem", "host,size=64KiB", route=Route.ODP)
        assert (odp.exit_code, odp.local_route.chosen) == (0, "odp")
        verbs.script.odp_errno = errno.EOPNOTSUPP
        failed: Any = api.write(f"{address}/mem", "host,size=64KiB", route=Route.ODP)
        assert (failed.exit_code, failed.error.code, failed.error.errno) == (3, "no_route", "EOPNOTSUPP")
        assert [one.errno for one in failed.local_route.attempts] == ["EOPNOTSUPP"]


def told_by(route):
    return (route.chosen, route.mover, route.peer_to_peer, route.staged)


@pytest.mark.parametrize("verbs", ["mlx5_core"], indirect=True)
def test_device_memory_of_a_nic_is_written_read_and_verified_by_loopback(verbs):
    with api.serving({"dm": "dm,size=1MiB"}, timeouts=QUICK) as address:
        wrote: Any = api.write(f"{address}/dm+4096", "host,size=512KiB,pattern=words:9", size_bytes=300_001)
        assert (wrote.error, wrote.verify.status, wrote.verify.method) == (None, "verified", "owner-loopback-read")
        assert told_by(wrote.remote_route) == ("dm", "nic", True, False)
        # What one client wrote, the next one reads: the memory belongs to the region, not to the lease.
        read: Any = api.read(f"{address}/dm+4096", "dm", size_bytes=300_001, require_direct=True)
        assert (read.error, read.verify.status, read.verify.method) == (None, "verified", "owner-loopback-read")
        assert read.verify.local_digest == wrote.verify.local_digest
        assert told_by(read.local_route) == told_by(read.remote_route) == ("dm", "nic", True, False)
        bounced: Any = api.read(f"{address}/dm", "dm", size_bytes=4096, route=Route.BOUNCE)
        assert (bounced.exit_code, bounced.error.code) == (3, "route_unavailable")


@pytest.mark.parametrize("verbs", ["mlx5_core"], indirect=True)
def test_where_its_owner_cannot_read_it_the_client_reads_it_back(verbs):
    verbs.script.loopback = False
    with api.serving({"dm": "dm,size=2MiB"}, timeouts=QUICK) as address:
        wrote: Any = api.write(f"{address}/dm", "host,size=2MiB,pattern=words:9", size_bytes=MIB + 1)
        assert (wrote.error, wrote.verify.status, wrote.verify.method) == (None, "verified", "client-read-back")
        assert wrote.verify.local_digest == wrote.verify.remote_digest and wrote.verify.blocks == 2
    with api.serving({"sink": "dm,size=64KiB"}, access="w", timeouts=QUICK) as address:
        blind: Any = api.write(f"{address}/sink", "host,size=64KiB")
        assert (blind.exit_code, blind.error.code, blind.error.side) == (3, "cannot_verify", "remote")
        assert api.write(f"{address}/sink", "host,size=64KiB", verify=False).exit_code == 0


def test_memory_that_a_device_can_never_reach_is_refused_before_ready(verbs):
    with pytest.raises(HostError) as caught, api.serving({"dm": "dm,size=64KiB"}, timeouts=QUICK):
        pass
    assert caught.value.code == "route_unavailable" and "rxe0" in caught.value.what
    with api.serving({"mem": "host,size=64KiB"}, timeouts=QUICK) as address:
        refused: Any = api.write(f"{address}/mem", "dm,size=64KiB")
        assert (refused.exit_code, refused.error.code) == (3, "route_unavailable")
        assert "max_dm_size is 0" in refused.error.why
        verbs.script.dm_errno = errno.EOPNOTSUPP
        forced: Any = api.write(f"{address}/mem", "dm,size=64KiB", force_route=True)
        assert (forced.exit_code, forced.error.errno) == (3, "EOPNOTSUPP"), "--force-route asks the driver"


class Shared(HostMemory):
    """Memory behind a dma-buf that the scripted NIC can import: the same bytes by both ways."""

    offers = frozenset({Offer.DMABUF, Offer.CPU_MAPPING})
    descriptor = offset = 0

    def dmabuf(self):
        return self.descriptor, self.offset

    def close(self):
        super().close()
        os.close(self.descriptor)


@pytest.fixture
def dmabufs(verbs, monkeypatch):
    """`udmabuf` memory that is a memfd; `fails` makes the exporter refuse."""
    state = SimpleNamespace(fails=None)

    def open_played(spec, length_bytes, *_):
        mapping = mmap.mmap(-1, length_bytes + 4096)
        memory: Any = Shared.from_buffer(memoryview(mapping)[4096 : 4096 + length_bytes], spec)
        if "pattern" in spec.options:
            parse_pattern(spec.options["pattern"]).fill(memory.buffers()[0].view)
        memory.descriptor, memory.offset = os.memfd_create("played"), 4096
        verbs.binding.dmabufs[memory.descriptor] = memory.buffers()[0].cpu_address - 4096
        if state.fails is not None:
            memory.dmabuf = state.fails
        return memory

    monkeypatch.setattr("p2prw.engine.memory.prepare.check_udmabuf", lambda *_: None)
    monkeypatch.setattr("p2prw.engine.memory.prepare.open_udmabuf", open_played)
    return state


@pytest.mark.parametrize("verbs", ["mlx5_core"], indirect=True)
def test_a_nic_imports_a_dmabuf_at_its_offset(verbs, dmabufs):
    verbs.script.dmabuf_errno = 0
    with api.serving({"u": "udmabuf,size=256KiB", "mem": "host,size=256KiB"}, timeouts=QUICK) as address:
        wrote: Any = api.write(f"{address}/u+5", "udmabuf,size=128KiB,pattern=words:3")
        assert (wrote.error, wrote.verify.status) == (None, "verified")
        # Host memory behind a dma-buf is not device memory: direct, and not peer to peer.
        assert told_by(wrote.local_route) == told_by(wrote.remote_route) == ("dmabuf", "nic", False, False)
        read: Any = api.read(f"{address}/u+5", "udmabuf", size_bytes=131072)
        assert (read.error, read.verify.local_digest) == (None, wrote.verify.local_digest)
        verbs.script.dmabuf_errno = errno.EINVAL
        bounced: Any = api.read(f"{address}/u+5", "host", size_bytes=131072)
        assert told_by(bounced.remote_route) == ("bounce", "nic", False, True)
        assert told(bounced.remote_route) == [("dmabuf", False, "EINVAL"), ("bounce", True, None)]
        assert bounced.verify.local_digest == wrote.verify.local_digest


@pytest.mark.parametrize("verbs", ["mlx5_core"], indirect=True)
def test_an_exporter_that_refuses_is_an_attempt(verbs, dmabufs):
    def refuse():
        raise HostError("cannot export", why="scripted", fix="a newer kernel", errno=errno.ENOTTY)

    dmabufs.fails = refuse
    with api.serving({"mem": "host,size=256KiB"}, timeouts=QUICK) as address:
        wrote: Any = api.write(f"{address}/mem", "udmabuf,size=128KiB,pattern=words:3")
        assert told(wrote.local_route) == [("dmabuf", False, "ENOTTY"), ("bounce", True, None)]
        assert wrote.verify.status == "verified"
        pinned: Any = api.write(f"{address}/mem", "udmabuf,size=128KiB", route=Route.DMABUF)
        assert (pinned.exit_code, pinned.error.errno, pinned.error.fix) == (3, "ENOTTY", "a newer kernel")


def test_rxe_imports_no_dmabuf_and_says_so(verbs, dmabufs):
    with api.serving({"u": "udmabuf,size=256KiB"}, timeouts=QUICK) as address:
        wrote: Any = api.write(f"{address}/u", "udmabuf,size=128KiB,pattern=words:3")
        for route in (wrote.local_route, wrote.remote_route):
            assert told(route) == [("dmabuf", False, None), ("bounce", True, None)]
        assert wrote.verify.status == "verified"
        refused: Any = api.write(f"{address}/u", "udmabuf,size=4KiB", route=Route.DMABUF)
        assert (refused.exit_code, refused.error.code, refused.error.errno) == (3, "route_unavailable", None)
        forced: Any = api.write(f"{address}/u", "udmabuf,size=4KiB", route=Route.DMABUF, force_route=True)
        assert (forced.exit_code, forced.error.errno) == (3, "EOPNOTSUPP")


def test_attempts_point_to_the_path_through_the_pci_tree(rig, tmp_path):
    """The NIC at 00:02.0 and the memory at 00:03.0 have only an unlisted host bridge above both."""
    device, _ = rig(driver="mlx5_core", dmabuf_errno=errno.EINVAL)
    for slot in (2, 3):
        function = tmp_path / f"devices/pci0000:00/0000:00:0{slot}.0"
        function.mkdir(exist_ok=True)
        for name, text in (("vendor", "0x1234"), ("device", "0x0001"), ("class", "0x020000")):
            (function / name).write_text(f"{text}\n")
        (function / "config").write_bytes(b"\x34\x12\x01\x00" + bytes(252))
    (tmp_path / "bus/pci/devices/0000:00:03.0").symlink_to(tmp_path / "devices/pci0000:00/0000:00:03.0")
    memory = memory_of("vfio", frozenset({Offer.DMABUF, Offer.CPU_MAPPING}), dmabuf=(3, 0))
    memory.pci_address = "0000:00:03.0"
    refused, bounced = climb(device, memory, Access.REMOTE_WRITE, staged=False).report.attempts
    for attempt in (refused, bounced):
        assert "P2PDMA rxe0 -> 0000:00:03.0 is" in (attempt.why or "")
        assert "do not share an upstream bridge" in (attempt.why or "")
    with pytest.raises(NoRouteError) as caught:
        climb(device, memory, Access.REMOTE_WRITE, staged=False, wanted=Route.DMABUF)
    assert "p2prw topology rxe0 0000:00:03.0" in (caught.value.fix or "")
    memory.pci_address = "0000:00:09.0"
    assert climb(device, memory, Access.REMOTE_WRITE, staged=False).report.attempts[1].why is None
