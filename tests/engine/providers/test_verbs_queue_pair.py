"""A verbs queue pair: bring-up from exchanged attributes, one chain for many posts, statuses by name."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import Access, Opcode, QueuePairOptions, Sge, WcStatus
from p2prw.engine.providers.verbs_binding import PortFacts
from p2prw.engine.providers.verbs_open import open_verbs_device
from p2prw.engine.providers.verbs_scripted import ScriptedBinding, VerbsScript, write_sysfs
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, LocalProtocolError, TransferError

GIDS = [
    ("fe80:0000:0000:0000:0000:00ff:fe00:0001", "RoCE v2"),
    ("0000:0000:0000:0000:0000:ffff:0a09:0001", "RoCE v2"),
]


@pytest.fixture
def rig(tmp_path):
    """Open a server's device over a scripted binding."""
    opened = []

    def make(script=None, role="server", port=None, **sysfs):
        write_sysfs(tmp_path, **{"gids": GIDS, **sysfs})
        binding = ScriptedBinding(script)
        if port is not None:
            binding.port = port
        device = open_verbs_device("rxe0", role=role, binding=binding, sysfs=SysfsRoot(tmp_path))
        opened.append(device)
        return device, binding

    yield make
    for device in opened:
        device.close()


def test_bring_up_uses_the_smaller_of_both_sides_and_the_pinned_gid(rig):
    device, binding = rig()
    pair = device.create_queue_pair(QueuePairOptions(gid_index=1, max_rd_atomic=8, traffic_class=106, service_level=3))
    assert pair.local.gid == GIDS[1][0].replace(":", "") and pair.local.udp_port == 4791
    assert 0 <= pair.local.psn < 1 << 24 and pair.local.mtu_bytes == 4096
    peer = replace(pair.local, psn=5, mtu_bytes=1024, max_rd_atomic=2, max_dest_rd_atomic=4)
    pair.connect(peer)
    bound = binding.pairs[pair.local.qpn]
    path, send = bound.path, bound.send
    assert (path.path_mtu_bytes, path.rq_psn, path.sgid_index, path.dgid) == (1024, 5, 1, pair.local.gid)
    assert (path.is_global, path.dlid, path.traffic_class, path.service_level) == (True, 0, 106, 3)
    assert path.hop_limit > 1 and path.max_dest_rd_atomic == 2
    # 7 would be "for ever" on rxe.
    assert (send.sq_psn, send.timeout, send.retry_cnt, send.rnr_retry) == (pair.local.psn, 17, 6, 6)
    assert send.max_rd_atomic == 4


@pytest.mark.parametrize(
    ("lid", "grh", "gid", "is_global"),
    [
        (9, False, "fe80000000000000000000000000000f", False),
        (9, True, "fe80000000000000000000000000000f", True),
        (9, False, "fec0000000000000000000000000000f", True),
        (0, False, "fe80000000000000000000000000000f", True),
    ],
)
def test_infiniband_goes_by_lid_with_a_global_header_where_it_must(rig, lid, grh, gid, is_global):
    device, binding = rig(link_layer="InfiniBand", driver="mlx5_core", port=PortFacts(4096, 1 << 30, 4, grh))
    pair = device.create_queue_pair(QueuePairOptions())
    assert pair.local.lid == 4
    pair.connect(replace(pair.local, lid=lid, gid=gid))
    path = binding.pairs[pair.local.qpn].path
    assert (path.is_global, path.dlid) == (is_global, lid)


def test_a_client_grants_no_remote_rights(rig):
    device, binding = rig(role="client")
    pair = device.create_queue_pair(QueuePairOptions())
    assert binding.pairs[pair.local.qpn].access == int(Access.LOCAL_WRITE)


@pytest.mark.parametrize(("step", "word"), [("INIT", "--pkey-index"), ("RTR", "--gid-index"), ("RTS", "--timeout")])
def test_a_step_that_is_refused_names_the_likely_attribute(rig, step, word):
    device, binding = rig(VerbsScript(modify_errno={step: errno.EINVAL}))
    with pytest.raises(HostError, match=step) as caught:
        pair = device.create_queue_pair(QueuePairOptions())
        pair.connect(pair.local)
    assert caught.value.errno == "EINVAL" and word in str(caught.value.fix)
    device.close()
    assert binding.script.queue_pairs_open == 0


def test_a_peer_off_port_4791_cannot_be_reached_by_a_nic(rig):
    device, _ = rig()
    pair = device.create_queue_pair(QueuePairOptions())
    with pytest.raises(HostError, match="4791") as caught:
        pair.connect(replace(pair.local, udp_port=40000))
    assert caught.value.code == "udp_port"


def test_a_gid_that_is_not_there_is_refused(rig):
    device, _ = rig()
    with pytest.raises(HostError, match="GID 9"):
        device.create_queue_pair(QueuePairOptions(gid_index=9))


def connected(rig, script=None, depth=8):
    device, binding = rig(script)
    pair = device.create_queue_pair(QueuePairOptions(depth=depth, gid_index=1))
    pair.connect(pair.local)
    memory = HostMemory.from_buffer(bytearray(range(256)))
    registration = device.register(memory.buffers(), Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ)
    address, _, lkey = registration.vec[0]
    return device, binding, pair, address, lkey, registration.remote_segments()[0].rkey, memory


def test_posts_leave_as_one_chain_and_one_signalled_completion_retires_all(rig):
    device, binding, pair, address, lkey, rkey, memory = connected(rig)
    for wr_id in range(4):
        sge = Sge(address + wr_id, 1, lkey)
        pair.post_rdma(wr_id, Opcode.RDMA_WRITE, (sge,), address + 100 + wr_id, rkey, signaled=wr_id == 3)
    assert binding.script.chains == [] and pair.outstanding == 4 and device.next_timer_s() is not None
    device.pump()
    assert binding.script.chains == [4]
    (done,) = pair.poll()
    assert (done.wr_id, done.status, done.opcode, done.byte_len) == (3, WcStatus.SUCCESS, Opcode.RDMA_WRITE, 1)
    assert pair.outstanding == 0 and device.next_timer_s() is None
    assert bytes(memory.buffers()[0].load(100, 4)) == bytes(range(4))


def test_200_000_posts_grow_nothing(rig):
    _, binding, pair, address, lkey, rkey, _ = connected(rig)
    for wr_id in range(20_000):
        pair.post_rdma(wr_id, Opcode.RDMA_WRITE, (Sge(address, 64, lkey),), address + 64, rkey, signaled=True)
        pair.poll()
    assert pair.outstanding == 0 and sum(binding.script.chains) == 20_000


def test_errors_keep_their_wr_and_become_statuses(rig):
    _, _, pair, address, lkey, rkey, _ = connected(rig)
    pair.post_rdma(1, Opcode.RDMA_READ, (Sge(address, 4, lkey),), address, rkey, signaled=False)
    pair.post_rdma(2, Opcode.RDMA_WRITE, (Sge(address, 4, lkey),), address, rkey + 1, signaled=False)
    pair.post_rdma(3, Opcode.RDMA_WRITE, (Sge(address, 4, lkey),), address, rkey, signaled=True)
    assert [(one.wr_id, one.status, one.byte_len) for one in pair.poll()] == [
        (2, WcStatus.REM_ACCESS_ERR, 0),
        (3, WcStatus.WR_FLUSH_ERR, 0),
    ]


def test_too_many_at_once_is_our_own_fault(rig):
    _, _, pair, address, lkey, rkey, _ = connected(rig, depth=2)
    for wr_id in range(2):
        pair.post_rdma(wr_id, Opcode.RDMA_WRITE, (Sge(address, 4, lkey),), address, rkey, signaled=True)
    with pytest.raises(LocalProtocolError):
        pair.post_rdma(2, Opcode.RDMA_WRITE, (Sge(address, 4, lkey),), address, rkey, signaled=True)
    pair.poll()
    with pytest.raises(LocalProtocolError):
        pair.post_rdma(3, Opcode.RDMA_WRITE, (Sge(address, 4, lkey),) * 17, address, rkey, signaled=True)


def test_a_send_queue_that_takes_nothing_is_a_transfer_error(rig):
    device, _, pair, address, lkey, rkey, _ = connected(rig, VerbsScript(post_errno=errno.ENOMEM))
    pair.post_rdma(0, Opcode.RDMA_WRITE, (Sge(address, 4, lkey),), address, rkey, signaled=True)
    with pytest.raises(TransferError) as caught:
        device.pump()
    assert caught.value.errno == "ENOMEM" and caught.value.code == "post_failed"


def test_a_depth_the_device_cannot_do_is_cut_to_what_it_can(rig):
    device, _ = rig()
    assert device.create_queue_pair(QueuePairOptions(depth=32768)).depth == 16384


def chain_of(pair, address, lkey, rkey, *, length=8, signal_every=4):
    sges = (Sge(address, 1, lkey),)
    return pair.build_chain(Opcode.RDMA_WRITE, sges, address + 100, rkey, length=length, signal_every=signal_every)


def test_a_chain_is_one_post_and_its_signalled_ones_complete(rig):
    _, binding, pair, address, lkey, rkey, memory = connected(rig)
    chain = chain_of(pair, address, lkey, rkey)
    chain.post(0, 8)
    assert binding.script.chains == [8] and pair.outstanding == 8
    with pytest.raises(LocalProtocolError, match="more than 8"):
        chain.post(8, 1)
    done = pair.poll()
    assert [(one.wr_id, one.status, one.byte_len) for one in done] == [(3, 0, 1), (7, 0, 1)]
    assert pair.outstanding == 0
    # A shorter one: signalled are the last and every fourth before it.
    chain.post(8, 6)
    assert [one.wr_id for one in pair.poll()] == [9, 13] and pair.outstanding == 0
    assert bytes(memory.buffers()[0].load(100, 1)) == b"\0"


def test_a_chain_leaves_after_what_was_gathered_before_it(rig):
    _, binding, pair, address, lkey, rkey, _ = connected(rig)
    chain = chain_of(pair, address, lkey, rkey)
    pair.post_rdma(0, Opcode.RDMA_WRITE, (Sge(address, 1, lkey),), address + 4, rkey, signaled=False)
    chain.post(1, 4)
    assert binding.script.chains == [1, 4] and pair.outstanding == 5
    assert [one.wr_id for one in pair.poll()] == [4] and pair.outstanding == 0


def test_one_that_fails_in_the_middle_of_a_chain_is_named_by_its_number(rig):
    _, binding, pair, address, lkey, rkey, _ = connected(rig)
    pair.post_rdma(0, Opcode.RDMA_WRITE, (Sge(address, 1, lkey),), address + 4, rkey, signaled=False)
    chain = chain_of(pair, address, lkey, rkey)
    chain.post(1, 3)
    region = binding.regions[rkey]
    bound = binding.pairs[pair.local.qpn]
    carry, carried = bound._carry, []

    def fail_at_the_second(request):
        carried.append(request)
        if len(carried) == 2:
            region.close()
        return carry(request)

    bound._carry = fail_at_the_second
    chain.post(4, 4)
    done = pair.poll()
    assert [(one.wr_id, one.status) for one in done] == [
        (3, WcStatus.SUCCESS),
        (5, WcStatus.REM_ACCESS_ERR),
        (6, WcStatus.WR_FLUSH_ERR),
        (7, WcStatus.WR_FLUSH_ERR),
    ]
    assert pair.outstanding == 0


def test_a_chain_that_is_refused_keeps_errno_and_is_freed_with_its_queue_pair(rig):
    _, binding, pair, address, lkey, rkey, _ = connected(rig)
    chain = chain_of(pair, address, lkey, rkey)
    binding.script.post_errno = errno.ENOMEM
    with pytest.raises(TransferError, match="did not take 4") as caught:
        chain.post(0, 4)
    assert caught.value.errno == "ENOMEM" and pair.outstanding == 0
    with pytest.raises(LocalProtocolError, match="SGEs"):
        pair.build_chain(Opcode.RDMA_READ, (Sge(1, 1, 1),) * 99, 0, rkey, length=1, signal_every=1)
    pair.close()
    chain.post(0, 1)
    chain.close()
    assert pair.outstanding == 0
