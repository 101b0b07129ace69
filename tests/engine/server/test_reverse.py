"""The server's direction of a measurement, by hand: what it posts, when it stops, what it counts."""

from __future__ import annotations

import pytest

from p2prw.engine.control.measuring import REVERSE_ALLOWANCE_S
from p2prw.engine.control.messages import Reverse, Reversed, Segment
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import Access, Opcode, Operation, QueuePairOptions
from p2prw.engine.providers.scripted import Script, ScriptedDevice, ScriptedFabric
from p2prw.engine.server.reverse import MOST_READ_BYTES, start_reverse
from p2prw.errors import CompletionError, PeerRefusedError, RemoteProtocolError

WRITE, READ = Operation.WRITE, Operation.READ
LEASE = "0" * 16
DATA = bytes(range(64))


class Table:
    """A server's memory and a client's on one fabric, and the reverse between them; the clock ticks at each look."""

    def __init__(
        self, operation: Operation = WRITE, *, rights: Access | None = None, script: Script | None = None,
        depth: int = 4, tick_s: float = 1e-5, **asked: object,
    ) -> None:  # fmt: skip
        self.now, self.tick_s = 0.0, tick_s
        fabric = ScriptedFabric()
        self.server = ScriptedDevice("server", fabric=fabric, clock=self.clock, script=script)
        client = ScriptedDevice("client", fabric=fabric, clock=self.clock)
        self.here, self.there = bytearray(DATA), bytearray(DATA[::-1])
        if rights is None:
            rights = Access.REMOTE_READ if operation is READ else Access.LOCAL_WRITE | Access.REMOTE_WRITE
        ours = self.server.register(HostMemory.from_buffer(self.here).buffers(), Access.LOCAL_WRITE)
        (theirs,) = client.register(HostMemory.from_buffer(self.there).buffers(), rights).remote_segments()
        self.pair, other = (one.create_queue_pair(QueuePairOptions(depth=depth)) for one in (self.server, client))
        self.pair.connect(other.local)
        other.connect(self.pair.local)
        asked = {"length": 64, "segments": (Segment(*theirs),), "depth": depth, "signal_every": 1, **asked}
        self.run = start_reverse(
            Reverse(LEASE, **asked), operation, self.server, self.pair, ours.vec,  # type: ignore[arg-type]
            first_wr_id=7, window_bytes=1 << 20, max_send_sge=4, clock=self.clock,
        )  # fmt: skip

    def clock(self) -> float:
        self.now += self.tick_s
        return self.now

    def ended(self) -> Reversed:
        self.run.halt()
        for _ in range(100):
            self.run.step()
            if (result := self.run.take_result()) is not None:
                return result
        raise AssertionError("it does not end")


def test_a_write_carries_the_servers_bytes_until_it_is_halted():
    table = Table()
    assert table.run.step() and table.run.take_result() is None
    sent = table.server.counts.posts
    assert sent > 4 and table.there == DATA == table.here
    result = table.ended()
    assert result.lease == LEASE and 0 < result.messages <= sent and result.elapsed_ns > 0
    assert table.server.counts.outstanding == 0 and not table.run.step()
    assert {opcode for _, opcode, *_ in table.pair.posted} == {Opcode.RDMA_WRITE}
    assert [wr_id for wr_id, *_ in table.pair.posted] == list(range(7, 7 + table.server.counts.posts))


def test_the_last_message_leaves_after_the_halt():
    """What the client compares is what is there now, however long the queue was."""
    table = Table()
    table.run.step()
    table.here[:] = b"\x11" * 64
    table.ended()
    assert table.there == b"\x11" * 64


def test_a_read_fills_memory_of_the_servers_own():
    table = Table(READ)
    table.run.step()
    table.ended()
    assert table.here == DATA, "the region is not touched"
    assert table.run.sink is not None
    (buffer,) = table.run.sink.buffers()
    assert buffer.view is not None and bytes(buffer.view[:64]) == DATA[::-1]
    assert {opcode for _, opcode, *_ in table.pair.posted} == {Opcode.RDMA_READ}
    table.run.close()
    assert table.server.counts.registrations_open == 1, "the region's; the sink's is gone"


def test_what_completes_after_the_halt_is_not_counted():
    table = Table(script=Script(latency_s=0.002))
    while not table.run.lane.messages:
        table.run.step()
        table.now += 0.001
    done, before_s = table.run.lane.messages, table.now
    table.now += 1.0
    result = table.ended()
    assert result.messages == done and result.elapsed_ns <= before_s * 1e9
    assert table.server.counts.posts > done


def test_a_run_so_short_that_nothing_had_completed_counts_what_came():
    table = Table(script=Script(latency_s=0.0001))
    result = table.ended()
    assert result.messages == table.server.counts.posts == 1 and result.elapsed_ns > 0


def test_a_client_that_says_nothing_is_sent_nothing_more():
    table = Table()
    table.run.step()
    table.now += REVERSE_ALLOWANCE_S
    table.run.step()
    posts = table.server.counts.posts
    assert not table.run.step() and table.server.counts.posts == posts and table.server.counts.outstanding == 0
    table.run.go_on()
    assert table.run.step() and table.server.counts.posts > posts, "a word, and it goes on"
    assert table.ended().messages > 0


def test_a_step_is_a_slice_of_time_and_an_idle_one_ends_at_once():
    table = Table(tick_s=1e-4)
    table.run.step()
    assert table.now < 0.003
    waits = Table(script=Script(latency_s=10.0))
    assert waits.run.step() and not waits.run.step(), "the queue is full and nothing completes: others have the time"
    assert waits.server.counts.posts == waits.server.counts.peak_outstanding == 4


def test_depth_signals_and_chains_are_the_clients():
    table = Table(depth=16, signal_every=4, post_list=8, script=Script(latency_s=10.0))
    table.run.step()
    assert table.server.counts.posts == 16
    assert [signaled for *_, signaled in table.pair.posted] == [False, False, False, True] * 4
    shallow = Table(depth=16, script=Script(latency_s=10.0))
    assert shallow.run.lane.depth == 16
    deep = Table(depth=8, length=64, segments=(Segment(0, 64, 1),))
    assert deep.run.lane.depth == 8, "no more than the queue pair holds"


@pytest.mark.parametrize("operation", [WRITE, READ])
def test_memory_that_is_not_the_clients_to_offer_ends_it(operation):
    table = Table(operation, rights=Access.LOCAL_WRITE)
    with pytest.raises(CompletionError):
        for _ in range(5):
            table.run.step()


@pytest.mark.parametrize(
    "segments", [(), (Segment(0, 63, 1),), (Segment(0, 40, 1), Segment(99, 23, 1)), (Segment((1 << 64) - 63, 64, 1),)]
)
def test_less_memory_than_a_message_is_refused(segments):
    with pytest.raises(RemoteProtocolError) as caught:
        Table(segments=segments)
    assert caught.value.code == "bad_range"


def test_memory_in_pieces_is_written_in_pieces():
    table = Table(segments=(Segment(0, 40, 1), Segment(99, 24, 2)), script=Script(latency_s=10.0))
    table.run.step()
    assert [(address, rkey) for _, _, _, address, rkey, _ in table.pair.posted[:2]] == [(0, 1), (99, 2)]


def test_a_client_does_not_make_the_server_take_memory_without_end():
    with pytest.raises(PeerRefusedError) as caught:
        Table(READ, length=MOST_READ_BYTES + 1, segments=(Segment(0, MOST_READ_BYTES + 1, 1),))
    assert caught.value.code == "reverse_too_big" and caught.value.fix


def test_a_second_halt_breaks_the_protocol():
    table = Table()
    table.run.halt()
    with pytest.raises(RemoteProtocolError):
        table.run.halt()


def test_the_clients_window_bounds_what_is_written():
    assert Table(window_bytes=4242).server.counts.windows == [4242]
    assert Table(READ, window_bytes=4242).server.counts.windows == []
