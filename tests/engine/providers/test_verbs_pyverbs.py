"""The pyverbs binding over a fake with pyverbs' traps: nothing closed twice, nothing signalled that was not asked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from p2prw.engine.model import Opcode, Sge
from p2prw.engine.providers.verbs_binding import UNSIGNALLED, BindingError, PathFacts, Posted, SendFacts
from p2prw.engine.providers.verbs_pyverbs import ExtendedQueuePair, PlainQueuePair, PyverbsBinding

PATH = PathFacts(1, 77, 5, 4096, 4, 12, "0" * 20 + "ffff0a090001", 1, True, 0, 0, 106, 64)
SEND = SendFacts(9, 17, 6, 6, 4)


class PyverbsRDMAError(Exception):
    def __init__(self, message, error_code=-1):
        super().__init__(message)
        self.error_code = error_code


class Struct(SimpleNamespace):
    """A C struct behind Python attributes."""

    def close(self):
        self.closed = getattr(self, "closed", 0) + 1


class SendWR(Struct):
    """Copies SGEs when built; a second close is a double free."""

    made = 0
    open = 0

    def __init__(self, opcode, num_sge, sg, send_flags):
        super().__init__(opcode=opcode, send_flags=send_flags, sges=[(one.addr, one.length, one.lkey) for one in sg])
        assert num_sge == len(sg) >= 1
        SendWR.made += 1
        SendWR.open += 1

    def set_wr_rdma(self, rkey, addr):
        self.remote = (addr, rkey)

    def close(self):
        assert not hasattr(self, "closed"), "double free"
        super().close()
        SendWR.open -= 1


class QueuePair(Struct):
    """QP and QPEx."""

    def __init__(self, creator, attr, log, extended):
        super().__init__(qp_num=55, attr=attr, log=log, wr_id=0, wr_flags=0)
        if extended and getattr(log, "no_extended", False):
            raise PyverbsRDMAError("Failed to create QP", 95)

    def to_init(self, attr):
        self.log.steps.append(attr)

    to_rtr = to_rts = to_init

    def post_send(self, wr):
        self.log.calls.append("post_send")
        while wr is not None:
            assert not hasattr(wr, "closed")
            self.log.posted.append((wr.wr_id, wr.opcode, wr.send_flags, *wr.remote, wr.sges))
            wr = getattr(wr, "next_wr", None)

    def wr_start(self):
        self.log.calls.append("start")

    def wr_rdma_write(self, rkey, addr):
        self.pending = (self.wr_id, 0, self.wr_flags, addr, rkey)

    def wr_rdma_read(self, rkey, addr):
        self.pending = (self.wr_id, 4, self.wr_flags, addr, rkey)

    def wr_set_sge(self, sge):
        self.log.posted.append((*self.pending, [(sge.addr, sge.length, sge.lkey)]))

    def wr_set_sge_list(self, count, sges):
        self.log.posted.append((*self.pending, [(sge.addr, sge.length, sge.lkey) for sge in sges[:count]]))

    def wr_complete(self):
        self.log.calls.append("complete")
        if self.log.complete_errno:
            raise PyverbsRDMAError("ibv_wr_complete failed.", self.log.complete_errno)


class ExtendedQueue(Struct):
    """CQEX: end_poll may only follow a start_poll that found something; poll_next is broken on rxe."""

    def __init__(self, log):
        super().__init__(log=log)
        self.polling: bool = False

    def start_poll(self, attr):
        assert not self.polling
        if not self.log.completions:
            return 2
        self.polling = True
        self.wr_id, self.status = self.log.completions.pop(0)
        return 0

    def read_vendor_err(self):
        return 99

    def end_poll(self):
        assert self.polling
        self.polling = False


def fake_pyverbs(log):
    def memory_region(pd, length, access, address=None, dmabuf=None, offset=0):
        if log.reg_errno:
            raise PyverbsRDMAError("Failed to register a MR", log.reg_errno)
        return Struct(lkey=3, rkey=4)

    device = Struct(max_sge=32, max_sge_rd=30, max_qp_wr=100, max_qp_rd_atom=16, max_qp_init_rd_atom=8, max_cqe=1000)
    port = Struct(active_mtu=5, max_msg_sz=1 << 23, lid=4, flags=1)

    def query_device_ex():
        if log.max_dm_size is None:
            raise PyverbsRDMAError("Failed to query device", 95)
        return Struct(max_dm_size=log.max_dm_size)

    def allocate(ctx, attributes):
        if not log.max_dm_size:
            raise PyverbsRDMAError("Failed to allocate device memory", 95)
        return Struct(attributes=attributes)

    def device_memory_region(pd, length, access, dm, offset):
        if not access & 32:
            raise PyverbsRDMAError("Failed to register a DM MR", 22)  # libibverbs, cmd_dm.c
        log.calls.append(("reg_dm_mr", length, access, offset))
        return Struct(lkey=5, rkey=6)

    context = Struct(query_device=lambda: device, query_port=lambda number: port, query_device_ex=query_device_ex)

    def open_context(name):
        if name != "rxe0":
            raise PyverbsRDMAError("Failed to open device")
        return context

    def plain_queue(ctx, entries):
        def poll(most):
            found = [Struct(wr_id=a, status=b, vendor_err=99) for a, b in log.completions[:most]]
            del log.completions[:most]
            return len(found), found

        return Struct(poll=poll)

    return SimpleNamespace(
        error=PyverbsRDMAError,
        device=SimpleNamespace(
            get_device_list=lambda: [Struct(name=b"rxe0")],
            Context=open_context,
            DM=allocate,
            AllocDmAttr=lambda length: length,
        ),
        pd=SimpleNamespace(PD=lambda ctx: Struct()),
        mr=SimpleNamespace(MR=memory_region, DmaBufMR=memory_region, DMMR=device_memory_region),
        cq=SimpleNamespace(
            CQ=plain_queue, CQEX=lambda ctx, attr: ExtendedQueue(log), CqInitAttrEx=Struct, PollCqAttr=Struct
        ),
        qp=SimpleNamespace(
            QP=lambda creator, attr: QueuePair(creator, attr, log, False),
            QPEx=lambda creator, attr: QueuePair(creator, attr, log, True),
            QPAttr=Struct,
            QPCap=Struct,
            QPInitAttr=Struct,
            QPInitAttrEx=Struct,
        ),
        wr=SimpleNamespace(SGE=lambda addr, length, lkey: Struct(addr=addr, length=length, lkey=lkey), SendWR=SendWR),
        addr=SimpleNamespace(GID=lambda text: text, GlobalRoute=Struct, AHAttr=Struct),
    )


@pytest.fixture
def log():
    return SimpleNamespace(
        steps=[],
        posted=[],
        calls=[],
        completions=[],
        reg_errno=0,
        complete_errno=0,
        no_extended=False,
        max_dm_size=None,
    )


@pytest.fixture
def context(log):
    return PyverbsBinding(fake_pyverbs(log)).open("rxe0")


def test_names_limits_and_errors(log, context):
    binding = PyverbsBinding(fake_pyverbs(log))
    assert binding.device_names() == ("rxe0",)
    assert context.query_device().max_sge_rd == 30
    assert context.query_port(1).grh_required and context.query_port(1).active_mtu_bytes == 4096
    with pytest.raises(BindingError) as caught:
        binding.open("mlx5_0")
    assert caught.value.number == 0
    log.reg_errno = 14
    with pytest.raises(BindingError) as caught:
        context.register(0, 1, 1)
    assert caught.value.errno_name == "EFAULT"


def test_registrations_close_once(context):
    region = context.register(4096, 100, 7)
    assert (region.address, region.length_bytes, region.lkey, region.rkey) == (4096, 100, 3, 4)
    inner = region._region
    region.close()
    region.close()
    assert inner.closed == 1
    assert context.register_dmabuf(9, 8192, 100, 1).address == 8192
    context.close()
    context.close()


def test_device_memory_is_zero_based(log, context):
    for size, told in ((None, 0), (0, 0), (1 << 17, 1 << 17)):
        log.max_dm_size = size
        assert context.query_device().max_dm_bytes == told
    memory = context.allocate_dm(8192)
    assert memory._memory.attributes == 8192
    region = memory.register(4096, 100, 7)
    # Peers count from 0, wherever in the device memory the region begins.
    assert (region.address, region.length_bytes, region.lkey, region.rkey) == (0, 100, 5, 6)
    assert log.calls == [("reg_dm_mr", 100, 7 | 32, 4096)]
    region.close()
    inner = memory._memory
    memory.close()
    memory.close()
    assert inner.closed == 1


def test_no_device_memory(log, context):
    log.max_dm_size = 0
    with pytest.raises(BindingError) as caught:
        context.allocate_dm(4096)
    assert caught.value.errno_name == "EOPNOTSUPP"
    del context._modules.mr.DMMR
    log.max_dm_size = 1 << 17
    assert context.query_device().max_dm_bytes == 0
    with pytest.raises(BindingError, match="no device memory"):
        context.allocate_dm(4096)


@pytest.mark.parametrize("extended", [True, False])
def test_bring_up_is_the_same_for_both_kinds(log, context, extended):
    log.no_extended = not extended
    pair = context.create_queue_pair(4, 2)
    assert isinstance(pair, ExtendedQueuePair if extended else PlainQueuePair)
    assert pair._qp.attr.sq_sig_all == 0, "the default makes every request complete"
    pair.to_init(1, 0, 7)
    pair.to_rtr(PATH)
    pair.to_rts(SEND)
    init, rtr, rts = log.steps
    assert (init.port_num, init.qp_access_flags) == (1, 7)
    assert (rtr.path_mtu, rtr.dest_qp_num, rtr.rq_psn, rtr.max_dest_rd_atomic, rtr.min_rnr_timer) == (5, 77, 5, 4, 12)
    assert rtr.ah_attr.is_global == 1 and rtr.ah_attr.gr.dgid == "0000:0000:0000:0000:0000:ffff:0a09:0001"
    assert rtr.ah_attr.gr.hop_limit == 64 and rtr.ah_attr.gr.sgid_index == 1
    assert (rts.sq_psn, rts.timeout, rts.retry_cnt, rts.rnr_retry, rts.max_rd_atomic) == (9, 17, 6, 6, 4)


@pytest.mark.parametrize("extended", [True, False])
def test_posts_and_completions(log, context, extended):
    log.no_extended = not extended
    pair = context.create_queue_pair(4, 2)
    two = (Sge(1, 8, 3), Sge(100, 9, 3))
    pair.post([Posted(4, Opcode.RDMA_WRITE, two[:1], 64, 7, False), Posted(5, Opcode.RDMA_READ, two, 72, 7, True)])
    assert log.posted == [
        (4, 0, 0, 64, 7, [(1, 8, 3)]),
        (5, 4, 2, 72, 7, [(1, 8, 3), (100, 9, 3)]),
    ]
    assert log.calls == (["start", "complete"] if extended else ["post_send"] * 2)
    assert pair.poll(4) == []
    log.completions = [(5, 0), (6, 10), (7, 5)]
    assert [tuple(one) for one in pair.poll(2)] == [(5, 0, 0), (6, 10, 99)]
    assert [tuple(one) for one in pair.poll(2)] == [(7, 5, 99)]
    pair.close()
    pair.close()


def test_a_chain_that_is_refused_keeps_its_errno(log, context):
    log.complete_errno = 12
    pair = context.create_queue_pair(4, 1)
    with pytest.raises(BindingError) as caught:
        pair.post([Posted(0, Opcode.RDMA_WRITE, (Sge(1, 8, 3),), 64, 7, True)])
    assert caught.value.errno_name == "ENOMEM"


def test_plain_work_requests_are_kept_and_each_is_freed_once(log, context):
    SendWR.made = SendWR.open = 0
    log.no_extended = True
    pair = context.create_queue_pair(4, 1)
    for round_number in range(3):
        for slot in range(4):
            sge = Sge(slot, 8, 3)
            pair.post([Posted(4 * round_number + slot, Opcode.RDMA_WRITE, (sge,), round_number, 7, True)])
    assert SendWR.made == 4, "the same SGEs: rewritten"
    assert [one[0] for one in log.posted] == list(range(12)) and log.posted[-1][3] == 2
    pair.post([Posted(12, Opcode.RDMA_READ, (Sge(0, 8, 3),), 0, 7, True)])
    assert (SendWR.made, SendWR.open) == (5, 4)
    pair.close()
    pair.close()
    assert SendWR.open == 0


@pytest.mark.parametrize("extended", [True, False])
def test_a_chain_is_linked_once_and_posted_from_where_it_is_short_enough(log, context, extended):
    SendWR.made = SendWR.open = 0
    log.no_extended = not extended
    pair = context.create_queue_pair(8, 1)
    request = Posted(0, Opcode.RDMA_READ, (Sge(1, 8, 3),), 64, 7, False)
    chain = pair.build_chain(request, 8, 3)
    chain.post(8, range(101, 109, 3))
    ids = [UNSIGNALLED + 1, 101, UNSIGNALLED + 2, UNSIGNALLED + 1, 104, UNSIGNALLED + 2, UNSIGNALLED + 1, 107]
    assert [one[0] for one in log.posted] == ids
    assert [one[2] for one in log.posted] == [2 if one < UNSIGNALLED else 0 for one in ids]
    assert {one[3:5] for one in log.posted} == {(64, 7)} and {one[1] for one in log.posted} == {4}
    log.posted.clear()
    chain.post(2, range(109, 110))
    assert [one[0] for one in log.posted] == [UNSIGNALLED + 1, 109]
    assert log.calls == ["post_send"] * 2 and SendWR.made == 8, "one call each, nothing built for it"
    chain.close()
    chain.close()
    assert SendWR.open == 0
