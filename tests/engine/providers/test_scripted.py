"""The scripted provider behaves as a device does, and goes wrong exactly as told."""

from __future__ import annotations

import errno

import pytest

from p2prw.engine.model import Access, DeviceLimits, Opcode, QueuePairOptions, RemoteSegment, Sge, WcStatus
from p2prw.engine.providers.scripted import (
    Fault,
    ManualClock,
    Script,
    ScriptedDevice,
    ScriptedFabric,
    ScriptedQueuePair,
    ScriptedRegistration,
)
from p2prw.errors import HostError, LocalProtocolError

ALL = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE
PATTERN = bytes(range(256)) * 16


class Buffer:
    def __init__(self, content: bytes) -> None:
        self.data = bytearray(content)
        self.view: memoryview | None = None
        self.length_bytes = len(content)
        self.cpu_address = 0

    def load(self, offset: int, length_bytes: int) -> bytes:
        return bytes(self.data[offset : offset + length_bytes])

    def store(self, offset: int, data: bytes | memoryview) -> None:
        assert offset + len(data) <= self.length_bytes
        self.data[offset : offset + len(data)] = data


class Rig:
    """A client and a server on one fabric, 4 KiB each, connected."""

    def __init__(self, *faults: Fault, depth: int = 16, access: Access = ALL, **script: float) -> None:
        self.clock = ManualClock()
        fabric = ScriptedFabric()
        self.client = ScriptedDevice(fabric=fabric, clock=self.clock, script=Script(faults, **script))  # type: ignore[arg-type]
        self.server = ScriptedDevice("scripted1", fabric=fabric, clock=self.clock)
        self.local, self.remote = Buffer(PATTERN), Buffer(bytes(4096))
        self.local_keys: ScriptedRegistration = self.client.register([self.local], Access.LOCAL_WRITE)
        self.remote_keys: ScriptedRegistration = self.server.register([self.remote], access)
        self.pair: ScriptedQueuePair = self.client.create_queue_pair(QueuePairOptions(depth=depth))
        self.far_pair = self.server.create_queue_pair(QueuePairOptions())
        self.pair.connect(self.far_pair.local)
        self.far_pair.connect(self.pair.local)

    def post(
        self, wr_id: int, offset: int = 0, length: int = 256, *, read: bool = False, signaled: bool = True
    ) -> None:
        (near,), (far,) = self.local_keys.vec, self.remote_keys.remote_segments()
        opcode = Opcode.RDMA_READ if read else Opcode.RDMA_WRITE
        sges = [Sge(near.address + offset, length, near.lkey)]
        self.pair.post_rdma(wr_id, opcode, sges, far.address + offset, far.rkey, signaled=signaled)

    def results(self) -> list[tuple[int, WcStatus]]:
        while self.client.pump():
            pass
        return [(completion.wr_id, completion.status) for completion in self.pair.poll()]


def test_write_and_read_move_bytes() -> None:
    rig = Rig()
    rig.post(1, 0, 1024)
    assert rig.remote.data == bytes(4096), "nothing moves before pump"
    assert rig.results() == [(1, WcStatus.SUCCESS)]
    assert rig.remote.data == PATTERN[:1024] + bytes(3072)
    rig.local.data[:] = bytes(4096)
    rig.post(2, 0, 1024, read=True)
    assert rig.results() == [(2, WcStatus.SUCCESS)]
    assert rig.local.data == PATTERN[:1024] + bytes(3072)


def test_scattered_over_segments_of_a_registered_range() -> None:
    clock, fabric = ManualClock(), ScriptedFabric()
    device = ScriptedDevice(fabric=fabric, clock=clock)
    buffers = [Buffer(PATTERN[:100]), Buffer(PATTERN[:100])]
    keys = device.register(buffers, ALL, offset=60, length_bytes=80)
    assert [segment.length_bytes for segment in keys.vec] == [40, 40]
    assert len({segment.lkey for segment in keys.vec}) == 2
    sink = device.register([Buffer(bytes(80))], ALL)
    pair = device.create_queue_pair(QueuePairOptions())
    pair.connect(pair.local)
    sges = [Sge(segment.address, segment.length_bytes, segment.lkey) for segment in keys.vec]
    target = sink.remote_segments()[0]
    pair.post_rdma(7, Opcode.RDMA_WRITE, sges, target.address, target.rkey, signaled=True)
    assert device.pump()
    (completion,) = pair.poll()
    assert (completion.status, completion.byte_len, completion.qp_num) == (WcStatus.SUCCESS, 80, pair.local.qpn)
    region = fabric.regions[target.rkey]
    assert bytes(region.buffer.load(0, 80)) == PATTERN[60:100] + PATTERN[:40]


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, 101), (90, 11), (101, 0)])
def test_register_outside_is_refused(offset: int, length: int) -> None:
    with pytest.raises(HostError) as caught:
        ScriptedDevice().register([Buffer(bytes(100))], ALL, offset=offset, length_bytes=length)
    assert caught.value.errno == "EINVAL"


def test_unsignalled_requests_are_retired_by_the_next_completion() -> None:
    rig = Rig(depth=4)
    for wr_id in range(4):
        rig.post(wr_id, signaled=wr_id == 3)
    with pytest.raises(LocalProtocolError, match="more than 4"):
        rig.post(9)
    assert rig.client.counts.outstanding == 4
    assert rig.results() == [(3, WcStatus.SUCCESS)]
    assert rig.client.counts.outstanding == 0
    rig.post(4)
    assert rig.results() == [(4, WcStatus.SUCCESS)]
    assert (rig.client.counts.peak_outstanding, rig.client.counts.signaled_posts) == (4, 2)


def test_post_before_connect_is_our_defect() -> None:
    pair = ScriptedDevice().create_queue_pair(QueuePairOptions())
    with pytest.raises(LocalProtocolError, match="not connected"):
        pair.post_rdma(1, Opcode.RDMA_WRITE, [], 0, 0, signaled=True)


def test_poll_takes_at_most_what_is_asked() -> None:
    rig = Rig()
    for wr_id in range(5):
        rig.post(wr_id)
    rig.client.pump()
    assert [completion.wr_id for completion in rig.pair.poll(2)] == [0, 1]
    assert [completion.wr_id for completion in rig.pair.poll()] == [2, 3, 4]
    assert rig.pair.poll() == []
    assert (rig.client.counts.polls, rig.client.counts.empty_polls, rig.client.counts.completions) == (3, 1, 5)


# --- what goes wrong by itself ----------------------------------------------------------------------------------


def test_wrong_key_range_and_right() -> None:
    for access, rkey_change, offset, length, read, expected in (
        (ALL, 1, 0, 8, False, WcStatus.REM_ACCESS_ERR),
        (ALL, 0, 4090, 8, False, WcStatus.LOC_PROT_ERR),
        (Access.REMOTE_READ, 0, 0, 8, False, WcStatus.REM_ACCESS_ERR),
        (Access.REMOTE_WRITE, 0, 0, 8, True, WcStatus.REM_ACCESS_ERR),
        (Access.REMOTE_READ, 0, 0, 8, True, WcStatus.SUCCESS),
    ):
        rig = Rig(access=access)
        segment = rig.remote_keys.vec[0]
        rig.remote_keys.vec = (segment._replace(lkey=segment.lkey + rkey_change),)
        rig.post(1, offset, length, read=read)
        assert rig.results() == [(1, expected)]


def test_remote_range_is_checked_apart_from_the_local_one() -> None:
    rig = Rig()
    (near,), (far,) = rig.local_keys.vec, rig.remote_keys.remote_segments()
    sges = [Sge(near.address, 16, near.lkey)]
    rig.pair.post_rdma(1, Opcode.RDMA_WRITE, sges, far.address + 4090, far.rkey, signaled=True)
    assert rig.results() == [(1, WcStatus.REM_ACCESS_ERR)]
    assert rig.remote.data == bytes(4096)


def test_key_is_dead_after_close() -> None:
    rig = Rig()
    assert rig.remote_keys.remote_segments() == (RemoteSegment(*rig.remote_keys.vec[0]),)
    rig.remote_keys.close()
    rig.remote_keys.close()
    assert rig.server.counts.registrations_open == 0
    rig.post(1)
    assert rig.results() == [(1, WcStatus.REM_ACCESS_ERR)]


def test_peer_gone_is_retry_exceeded() -> None:
    rig = Rig()
    rig.far_pair.close()
    rig.far_pair.close()
    rig.post(1)
    assert rig.results() == [(1, WcStatus.RETRY_EXC_ERR)]
    assert rig.server.counts.queue_pairs_open == 0


# --- what goes wrong by script ----------------------------------------------------------------------------------


def test_error_flushes_what_is_behind_signalled_or_not() -> None:
    rig = Rig(Fault(1, WcStatus.REM_OP_ERR))
    for wr_id in range(4):
        rig.post(wr_id, 256 * wr_id, signaled=False)
    assert rig.results() == [(1, WcStatus.REM_OP_ERR), (2, WcStatus.WR_FLUSH_ERR), (3, WcStatus.WR_FLUSH_ERR)]
    assert rig.remote.data == PATTERN[:256] + bytes(3840)
    assert rig.pair.is_error
    rig.post(9)
    assert rig.results() == [(9, WcStatus.WR_FLUSH_ERR)]


def test_delay_and_latency_run_on_the_injected_clock() -> None:
    rig = Rig(Fault(1, delay_s=5.0), latency_s=1.0)
    rig.post(0)
    rig.post(1)
    rig.post(2)
    assert (rig.results(), rig.client.next_timer_s()) == ([], 1.0)
    rig.clock.advance(1.0)
    assert (rig.results(), rig.client.next_timer_s()) == ([(0, WcStatus.SUCCESS)], 5.0)
    rig.clock.advance(4.9)
    assert rig.results() == []
    rig.clock.advance(0.1)
    # Order is kept: the one behind was ready earlier and still comes after.
    assert rig.results() == [(1, WcStatus.SUCCESS), (2, WcStatus.SUCCESS)]
    assert rig.client.next_timer_s() is None


def test_rate_of_the_wire() -> None:
    rig = Rig(bytes_per_s=1024)
    for wr_id in range(4):
        rig.post(wr_id, length=512)
    seen = []
    for _ in range(5):
        seen.append([wr_id for wr_id, _ in rig.results()])
        rig.clock.advance(0.5)
    assert seen == [[], [0], [1], [2], [3]]


def test_short_window_lets_few_bytes_out_at_a_time() -> None:
    rig = Rig(latency_s=1.0)
    rig.pair.set_window(600)
    for wr_id in range(4):
        rig.post(wr_id)
    rounds = []
    for _ in range(3):
        rounds.append([wr_id for wr_id, _ in rig.results()])
        rig.clock.advance(1.0)
    assert rounds == [[], [0, 1], [2, 3]]
    rig.pair.set_window(1)
    rig.post(4)
    rig.client.pump()
    rig.clock.advance(1.0)
    assert rig.results() == [(4, WcStatus.SUCCESS)], "one request always goes"
    assert rig.client.counts.windows == [600, 1]


def test_lost_completion_is_retired_by_a_later_one() -> None:
    rig = Rig(Fault(0, lose_completion=True))
    rig.post(0)
    assert rig.results() == []
    assert rig.client.counts.outstanding == 1
    assert rig.remote.data[:256] == PATTERN[:256]
    rig.post(1)
    assert rig.results() == [(1, WcStatus.SUCCESS)]
    assert rig.client.counts.outstanding == 0


def test_stall_never_ends() -> None:
    rig = Rig(Fault(1, stall=True))
    for wr_id in range(3):
        rig.post(wr_id)
    assert rig.results() == [(0, WcStatus.SUCCESS)]
    rig.clock.advance(1e9)
    assert (rig.results(), rig.client.next_timer_s()) == ([], None)


def test_lost_and_spoilt_data_complete_with_success() -> None:
    rig = Rig(Fault(0, lose_data=True), Fault(1, spoil_at=3))
    rig.post(0, 0, 16)
    rig.post(1, 16, 16)
    assert [status for _, status in rig.results()] == [WcStatus.SUCCESS] * 2
    assert rig.remote.data[:16] == bytes(16)
    expected = bytearray(PATTERN[16:32])
    expected[3] ^= 0xFF
    assert rig.remote.data[16:32] == expected


def test_few_completions_for_each_pump() -> None:
    rig = Rig(completions_per_pump=2)
    for wr_id in range(5):
        rig.post(wr_id)
    assert [rig.client.pump() and len(rig.pair.poll()) for _ in range(4)] == [2, 2, 1, False]


def test_scripted_refusals() -> None:
    device = ScriptedDevice(script=Script(register_errno=errno.ENOMEM, connect_errno=errno.ETIMEDOUT))
    with pytest.raises(HostError) as caught:
        device.register([Buffer(b"x")], ALL)
    assert caught.value.errno == "ENOMEM"
    pair = device.create_queue_pair(QueuePairOptions())
    with pytest.raises(HostError) as caught:
        pair.connect(pair.local)
    assert caught.value.errno == "ETIMEDOUT"
    with pytest.raises(HostError) as caught:
        ScriptedDevice(limits=DeviceLimits(max_qp_wr=8)).create_queue_pair(QueuePairOptions(depth=9))
    assert caught.value.errno == "EINVAL"


def test_counts_log_and_close() -> None:
    rig = Rig()
    rig.post(5, 0, 100, signaled=False)
    counts = rig.client.counts
    assert (counts.posts, counts.posted_bytes, counts.signaled_posts) == (1, 100, 0)
    assert (counts.registrations_made, counts.queue_pairs_made) == (1, 1)
    assert [post[0] for post in rig.pair.posted] == [5]
    assert "RTS outstanding=1/16" in repr(rig.pair)
    rig.client.close()
    rig.client.close()
    assert (counts.registrations_open, counts.queue_pairs_open, counts.outstanding) == (0, 0, 0)
    assert (rig.client.filenos(), rig.client.wants_write(), rig.client.receive_window_bytes()) == ((), False, 1 << 30)
