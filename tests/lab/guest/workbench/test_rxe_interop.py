"""The software device and the kernel's rxe as peers, over a wire between two network namespaces."""

from __future__ import annotations

import random
import time
from itertools import product
from typing import Any

import pytest

from p2prw.engine.memory.prepare import prepare_memory
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Access, Opcode, QueuePairOptions, Sge, WcStatus
from p2prw.engine.providers.soft import open_soft_device

LENGTH = 1 << 20
ALL = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE
SIZES = (1, 3, 4096, 256 * 1024 + 1)
GID_INDEX = {"10.9.1.2": 1, "fd09:1::2": 2}


class Wire:
    """Both ends connected: `soft` in namespace `peer`, `verbs` on rxe1."""

    def __init__(self, in_peer, verbs_end, address: str, mtu_bytes: int) -> None:
        self.memory = prepare_memory(parse_memory_spec(f"host,size={LENGTH}"), "both").open()
        self.view: Any = self.memory.buffers()[0].view
        with in_peer():
            self.device = open_soft_device(f"soft:{address}", local_address=None, udp_port=4791, role="server")
        self.keys = self.device.register(self.memory.buffers(), ALL)
        self.vec, self.remote = self.keys.vec, self.keys.remote_segments()
        self.soft: Any = self.device.create_queue_pair(QueuePairOptions(mtu_bytes=mtu_bytes))
        self.verbs = verbs_end("rxe1", gid_index=GID_INDEX[address], length_bytes=LENGTH, mtu_bytes=mtu_bytes)
        self.soft.connect(self.verbs.attributes())
        self.verbs.connect(self.soft.local)

    def state(self, side: str) -> str:
        """Return the queue pair's state at one side, by the names of ibv_qp_state; `soft` is given time to hear."""
        if side == "rxe":
            return {3: "RTS", 6: "ERR"}[self.verbs.state()]
        self.device.pump()
        return str(self.soft._core.state.name)

    def lose(self, side: str) -> None:
        """Take one end away without a word."""
        if side == "rxe":
            self.verbs.qp.close()
        else:
            self.device.close()

    def run(
        self,
        requester: str,
        opcode: Opcode,
        offset: int,
        length: int,
        *,
        rkey_change: int = 0,
        remote_offset: int | None = None,
    ) -> int:
        """Move [offset, offset + length) between the two memories; return the completion's status."""
        (segment,), (remote,) = self.vec, self.remote
        there = offset if remote_offset is None else remote_offset
        if requester == "soft":
            sges = [Sge(segment.address + offset, length, segment.lkey)]
            target = self.verbs.mr.buf + there
            self.soft.post_rdma(7, opcode, sges, target, self.verbs.mr.rkey ^ rkey_change, signaled=True)
        else:
            self.verbs.post(7, opcode, offset, length, remote.address + there, remote.rkey ^ rkey_change)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.device.pump()
            done = [(each.wr_id, int(each.status)) for each in self.soft.poll()] + self.verbs.poll()
            if done:
                assert [wr_id for wr_id, _ in done] == [7]
                return int(done[0][1])
        raise AssertionError(f"no completion after 60 s; counters {self.soft.counters}")

    def close(self) -> None:
        self.device.close()
        self.view = None
        self.memory.close()


@pytest.fixture(scope="module", params=[f"{mtu}-{ip}" for mtu, ip in product((1024, 4096), ("v4", "v6"))])
def addresses(request) -> tuple[int, str]:
    mtu, version = request.param.split("-")
    return int(mtu), "10.9.1.2" if version == "v4" else "fd09:1::2"


@pytest.fixture
def wire(addresses, in_peer, verbs_end):
    mtu, address = addresses
    wire = Wire(in_peer, verbs_end, address, mtu)
    yield wire
    wire.close()


@pytest.mark.parametrize("requester", ["soft", "rxe"])
def test_write_and_read(wire, requester) -> None:
    filler = random.Random(9)
    for number, size in enumerate(SIZES):
        offset = 64 * number + number  # odd offsets too
        sent = filler.randbytes(size)
        near, far = (soft_side, rxe_side) if requester == "soft" else (rxe_side, soft_side)
        near(wire).put(offset, sent)
        far(wire).put(offset, bytes(size + 1))
        assert wire.run(requester, Opcode.RDMA_WRITE, offset, size) == WcStatus.SUCCESS
        assert far(wire).get(offset, size + 1) == sent + b"\0", f"WRITE of {size} bytes"
        back = filler.randbytes(size)
        far(wire).put(offset, back)
        assert wire.run(requester, Opcode.RDMA_READ, offset, size) == WcStatus.SUCCESS
        assert near(wire).get(offset, size) == back, f"READ of {size} bytes"


@pytest.mark.parametrize("requester", ["soft", "rxe"])
def test_wrong_key_is_refused(wire, requester) -> None:
    assert wire.run(requester, Opcode.RDMA_WRITE, 0, 4096, rkey_change=0x10000) == WcStatus.REM_ACCESS_ERR


@pytest.fixture
def one_wire(in_peer, verbs_end):
    wire = Wire(in_peer, verbs_end, "10.9.1.2", 4096)
    yield wire
    wire.close()


@pytest.mark.parametrize("requester", ["soft", "rxe"])
def test_a_range_beyond_the_memory_is_refused_and_ends_both_sides(one_wire, requester) -> None:
    """By one byte: remote access error at the requester, and neither queue pair takes anything any more."""
    wire = one_wire
    assert wire.run(requester, Opcode.RDMA_READ, 0, 4096, remote_offset=LENGTH - 4095) == WcStatus.REM_ACCESS_ERR
    assert wire.state("soft") == wire.state("rxe") == "ERR"


@pytest.mark.parametrize(("requester", "opcode"), [("soft", Opcode.RDMA_WRITE), ("rxe", Opcode.RDMA_READ)])
def test_a_peer_that_is_gone_is_noticed_in_time(one_wire, requester, opcode) -> None:
    """No NAK, no answer, no control channel: retries run out."""
    wire = one_wire
    began = time.monotonic()
    wire.lose("rxe" if requester == "soft" else "soft")
    assert wire.run(requester, opcode, 0, 4096) == WcStatus.RETRY_EXC_ERR
    assert time.monotonic() - began < 60


class soft_side:
    def __init__(self, wire: Wire) -> None:
        self.view = wire.view

    def put(self, offset: int, data: bytes) -> None:
        self.view[offset : offset + len(data)] = data

    def get(self, offset: int, length: int) -> bytes:
        return bytes(self.view[offset : offset + length])


class rxe_side:
    def __init__(self, wire: Wire) -> None:
        self.mr = wire.verbs.mr

    def put(self, offset: int, data: bytes) -> None:
        self.mr.write(data, len(data), offset)

    def get(self, offset: int, length: int) -> bytes:
        return bytes(self.mr.read(length, offset))
