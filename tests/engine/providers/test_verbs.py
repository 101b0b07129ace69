"""The verbs device: what it says of itself, registrations by route, port loss, counters, closing."""

from __future__ import annotations

import errno

import pytest

from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import Access, Opcode, QueuePairOptions, Route, Sge
from p2prw.engine.providers.verbs import LONGEST_NAP_S, LOOK_INTERVAL_S
from p2prw.engine.providers.verbs_open import open_verbs_device
from p2prw.engine.providers.verbs_scripted import ScriptedBinding, VerbsScript, write_sysfs
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, TransferError

IPV4 = ("0000:0000:0000:0000:0000:ffff:0a09:0001", "RoCE v2")


@pytest.fixture
def rig(tmp_path):
    opened = []

    def make(script=None, **sysfs):
        write_sysfs(tmp_path, **{"gids": [IPV4], **sysfs})
        binding = ScriptedBinding(script)
        now = [0.0]
        device = open_verbs_device("rxe0", binding=binding, sysfs=SysfsRoot(tmp_path), clock=lambda: now[0])
        opened.append(device)
        return device, binding.script, now

    yield make
    for device in opened:
        device.close()


def test_it_says_what_it_is(rig):
    info = rig()[0].info
    assert (info.name, info.provider, info.driver, info.mover, info.binding) == (
        "rxe0",
        "verbs",
        "rxe",
        "cpu",
        "scripted",
    )
    assert (info.address, info.netdev, info.udp_port, info.link_layer) == ("10.9.0.1", "dummy0", 4791, "Ethernet")
    assert (info.limits.max_sge, info.limits.max_msg_bytes, info.active_mtu_bytes) == (32, 1 << 23, 4096)
    assert "CPU" in str(info.note)


def test_a_nic_says_so(rig):
    info = rig(driver="mlx5_core")[0].info
    assert (info.mover, info.pci_address, info.numa_node, info.note) == ("nic", "0000:00:02.0", 0, None)


def test_registrations_by_route_carry_errno_and_reason(rig):
    device, script, _ = rig(VerbsScript(pin_errno=errno.EFAULT))
    memory = HostMemory.from_buffer(bytearray(4096))
    buffer = memory.buffers()[0]
    device.register(memory.buffers(), Access.LOCAL_WRITE).close()
    script.special.append(range(buffer.cpu_address, buffer.cpu_address + 4096))
    with pytest.raises(HostError) as caught:
        device.register_by(Route.PIN, "p2pmem", memory.buffers(), Access.LOCAL_WRITE)
    assert (caught.value.errno, caught.value.code) == ("EFAULT", "cannot_register")
    assert "p2pmem mapping" in str(caught.value.why) and "--route odp" in str(caught.value.fix)
    odp = device.register_by(Route.ODP, "p2pmem", memory.buffers(), Access.LOCAL_WRITE, offset=8, length_bytes=100)
    assert tuple(odp.vec[0])[:2] == (buffer.cpu_address + 8, 100)
    for dmabuf in (None, (3, 0)):
        with pytest.raises(HostError) as caught:
            device.register_by(Route.DMABUF, "vfio", memory.buffers(), Access.LOCAL_WRITE, dmabuf=dmabuf)
        assert caught.value.errno == "EOPNOTSUPP"


def test_a_dmabuf_is_addressed_by_its_offset(rig):
    device, _, _ = rig(VerbsScript(dmabuf_errno=0), driver="mlx5_core")
    got = device.register_by(
        Route.DMABUF, "vfio", [], Access.LOCAL_WRITE, offset=4096, length_bytes=8192, dmabuf=(3, 65536)
    )
    assert tuple(got.vec[0])[:2] == (69632, 8192)


def test_a_slice_that_fails_takes_the_others_with_it(rig, monkeypatch):
    device, script, _ = rig()
    monkeypatch.setattr("p2prw.engine.providers.verbs_memory.SLICE_BYTES", 4096)
    monkeypatch.setattr("p2prw.engine.providers.verbs.cut_buffers", lambda *_: iter([(4096, 4096), (8192, 4096)]))
    script.special.append(range(8192, 12288))
    script.pin_errno = errno.ENOMEM
    with pytest.raises(HostError, match="ENOMEM") as caught:
        device.register([], Access.LOCAL_WRITE)
    assert "ulimit -l" in str(caught.value.fix)
    assert script.regions_open == 0


def test_a_port_that_goes_down_ends_what_waits_for_it(rig, tmp_path):
    device, _, now = rig()
    pair = device.create_queue_pair(QueuePairOptions())
    pair.connect(pair.local)
    device.pump()
    assert pair.poll() == []
    write_sysfs(tmp_path, gids=[IPV4], state="1: DOWN")
    now[0] += LOOK_INTERVAL_S
    device.pump()
    assert device.lost == "rxe0 port 1 is DOWN"
    # Nothing waits: nothing to say.
    assert pair.poll() == []
    memory = HostMemory.from_buffer(bytearray(64))
    address, _, lkey = device.register(memory.buffers(), Access.LOCAL_WRITE).vec[0]
    pair.post_rdma(0, Opcode.RDMA_WRITE, (Sge(address, 8, lkey),), address, 0, signaled=True)
    pair._bound.post = lambda batch: None
    with pytest.raises(TransferError, match="DOWN") as caught:
        pair.poll()
    assert caught.value.code == "port_lost"


def test_counters_of_the_port_are_added_up(rig, tmp_path):
    file = tmp_path / "class/infiniband/rxe0/ports/1/hw_counters/rcvd_pkts"
    file.parent.mkdir(parents=True)
    file.write_text("100\n")
    device, _, now = rig()
    pair = device.create_queue_pair(QueuePairOptions())
    file.write_text("130\n")
    now[0] += LOOK_INTERVAL_S
    device.pump()
    assert pair.counters.packets_received == 30
    file.unlink()
    now[0] += LOOK_INTERVAL_S
    device.pump()
    # A driver that counts nothing is taken for alive: hardware has retries of its own.
    assert pair.counters.packets_received == 31


def test_closing_the_device_closes_all_in_order_and_twice_is_no_error(rig):
    device, script, _ = rig()
    pair = device.create_queue_pair(QueuePairOptions())
    device.register(HostMemory.from_buffer(bytearray(64)).buffers(), Access.LOCAL_WRITE)
    device.close()
    device.close()
    pair.close()
    assert (script.regions_open, script.queue_pairs_open, script.contexts_open) == (0, 0, 0)
    assert device.filenos() == () and not device.wants_write() and device.receive_window_bytes() > 0


@pytest.mark.parametrize(("gap_s", "nap_s"), [(0.0001, 0.001), (0.032, 0.002), (1.0, LONGEST_NAP_S)])
def test_the_longer_a_completion_took_the_longer_the_nap_before_the_next_look(rig, gap_s, nap_s):
    device, _, now = rig()
    assert device.next_timer_s() is None, "nothing is out"
    pair = device.create_queue_pair(QueuePairOptions())
    pair.outstanding = 1
    device.completed()
    now[0] += gap_s
    device.completed()
    assert device.next_timer_s() == 0.0, "more may follow at once"
    now[0] += 0.001
    assert device.next_timer_s() == pytest.approx(nap_s)
