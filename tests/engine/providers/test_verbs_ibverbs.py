"""The wheel's binding over a fake of its module: fields as libibverbs names them, slots rewritten, errors numbered."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from p2prw.engine.model import Opcode, Sge
from p2prw.engine.providers.verbs_binding import UNSIGNALLED, BindingError, PathFacts, Posted, SendFacts
from p2prw.engine.providers.verbs_ibverbs import IbverbsBinding

PATH = PathFacts(1, 77, 5, 1024, 4, 12, "0" * 20 + "ffff0a090001", 1, True, 0, 0, 106, 64)
SEND = SendFacts(9, 17, 6, 6, 4)


class Thing(SimpleNamespace):
    """Takes keywords, closes, remembers."""

    def close(self):
        self.closed = getattr(self, "closed", 0) + 1


class FakeWheel:
    __version__ = "1.2"

    def __init__(self):
        self.modified = []
        self.posted = []
        self.work_requests_made = 0
        self.completions = []
        self.fail = None

    def get_device_list(self):
        return [SimpleNamespace(name=b"rxe0", open=lambda: Thing(**self.context()))]

    def context(self):
        device = SimpleNamespace(max_sge=32, max_qp_wr=100, max_qp_rd_atom=16, max_cqe=1000)
        port = SimpleNamespace(active_mtu=3, max_msg_sz=1 << 23, lid=4)
        return {
            "query_device": lambda: device,
            "query_port": lambda port_number: port,
            "create_cq": lambda entries: Thing(
                poll=lambda most: [self.completions.pop(0) for _ in self.completions[:most]]
            ),
            "alloc_pd": lambda: Thing(reg_mr=self.reg_mr, reg_dmabuf_mr=self.reg_mr, create_qp=self.create_qp),
        }

    def reg_mr(self, *arguments):
        if self.fail is not None:
            raise OSError(self.fail, "ibv_reg_mr")
        self.registered = arguments
        return Thing(lkey=3, rkey=4)

    def create_qp(self, attributes):
        self.qp_attributes = attributes
        return Thing(
            qp_num=55, modify=lambda mask, **fields: self.modified.append((mask, fields)), post_send=self.posted.append
        )

    def QPInitAttr(self, *queues, **fields):
        return fields

    def AHAttr(self, **fields):
        return fields

    def SGE(self, address, length, lkey):
        return (address, length, lkey)

    def SendWR(self, **fields):
        self.work_requests_made += 1
        return SimpleNamespace(**fields)


@pytest.fixture
def wheel():
    return FakeWheel()


@pytest.fixture
def context(wheel):
    return IbverbsBinding(wheel).open("rxe0")


def test_names_limits_and_what_the_wheel_does_not_tell(wheel, context):
    binding = IbverbsBinding(wheel)
    assert (binding.name, binding.version, binding.device_names()) == ("ibverbs", "1.2", ("rxe0",))
    device, port = context.query_device(), context.query_port(1)
    assert (device.max_sge_rd, device.max_qp_init_rd_atom) == (32, 16)
    assert (port.active_mtu_bytes, port.lid, port.grh_required) == (1024, 4, False)
    with pytest.raises(BindingError) as caught:
        binding.open("mlx5_0")
    assert caught.value.errno_name == "ENODEV"


def test_registrations(wheel, context):
    region = context.register(4096, 100, 7)
    assert (region.address, region.length_bytes, region.lkey, region.rkey) == (4096, 100, 3, 4)
    assert wheel.registered == (4096, 100, 7)
    assert context.register_dmabuf(9, 8192, 100, 1).address == 8192 and wheel.registered == (8192, 100, 8192, 9, 1)
    wheel.fail = 14
    with pytest.raises(BindingError) as caught:
        context.register(0, 1, 1)
    assert caught.value.errno_name == "EFAULT"
    region.close()
    region.close()


def test_the_wheel_has_no_device_memory(context):
    assert context.query_device().max_dm_bytes == 0
    with pytest.raises(BindingError, match="--verbs-binding pyverbs"):
        context.allocate_dm(4096)


def test_bring_up_posts_and_polls(wheel, context):
    pair = context.create_queue_pair(4, 2)
    assert pair.qpn == 55 and wheel.qp_attributes["sq_sig_all"] is False and wheel.work_requests_made == 4
    pair.to_init(1, 0, 7)
    pair.to_rtr(PATH)
    pair.to_rts(SEND)
    init, rtr, rts = wheel.modified
    assert init == (1 | 8 | 16 | 32, {"qp_state": 1, "pkey_index": 0, "port_num": 1, "qp_access_flags": 7})
    assert rtr[0] == 1 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 15 | 1 << 17 | 1 << 20
    assert rtr[1]["ah_attr"]["dgid"] == bytes.fromhex(PATH.dgid) and rtr[1]["path_mtu"] == 3
    assert rts[0] == 1 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 16 and rts[1]["retry_cnt"] == 6
    requests = [Posted(n, Opcode.RDMA_READ, (Sge(n, 8, 3),), 64 * n, 4, n == 5) for n in (4, 5)]
    pair.post(requests)
    (chain,) = wheel.posted
    assert [(one.wr_id, one.opcode, one.send_flags, one.remote_addr, one.rkey, one.sg_list) for one in chain] == [
        (4, 4, 0, 256, 4, [(4, 8, 3)]),
        (5, 4, 2, 320, 4, [(5, 8, 3)]),
    ]
    pair.post(requests)
    assert wheel.work_requests_made == 4 and wheel.posted[1][0] is chain[0], "slots are rewritten, not made anew"
    wheel.completions = [
        SimpleNamespace(wr_id=5, status=0, vendor_err=1),
        SimpleNamespace(wr_id=6, status=10, vendor_err=1),
    ]
    assert [tuple(one) for one in pair.poll(8)] == [(5, 0, 0), (6, 10, 1)]
    pair.close()
    pair.close()
    context.close()
    context.close()


def test_a_chain_is_built_once(wheel, context):
    pair = context.create_queue_pair(8, 1)
    wheel.work_requests_made = 0
    chain = pair.build_chain(Posted(0, Opcode.RDMA_READ, (Sge(1, 8, 3),), 64, 7, False), 8, 3)
    chain.post(8, range(101, 109, 3))
    (works,) = wheel.posted
    ids = [UNSIGNALLED + 1, 101, UNSIGNALLED + 2, UNSIGNALLED + 1, 104, UNSIGNALLED + 2, UNSIGNALLED + 1, 107]
    assert [one.wr_id for one in works] == ids
    assert [one.send_flags for one in works] == [2 if one < UNSIGNALLED else 0 for one in ids]
    assert {(one.opcode, one.remote_addr, one.rkey, tuple(one.sg_list)) for one in works} == {(4, 64, 7, ((1, 8, 3),))}
    chain.post(2, range(109, 110))
    assert [one.wr_id for one in wheel.posted[1]] == [UNSIGNALLED + 1, 109] and wheel.work_requests_made == 8
    chain.close()
