"""The transfer loop over a scripted device: window, signals, completions, errors, deadlines, drain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2prw.engine.control.messages import Digests, Filled, Refuse, Window
from p2prw.engine.model import Opcode, Operation, WcStatus
from p2prw.engine.pace import Pace
from p2prw.engine.providers.scripted import Fault, Script
from p2prw.errors import (
    CompletionError,
    DeadlineExceeded,
    InterruptedTransfer,
    PeerGone,
    PeerRefusedError,
    RemoteProtocolError,
    TimeLimitError,
)

WRITE, READ = Operation.WRITE, Operation.READ


@pytest.mark.parametrize("operation", [WRITE, READ])
@pytest.mark.parametrize("length", [1, 3, 4095, 4096, 4097, 100_001])
def test_every_byte_moves_whatever_the_size(make_rig, operation, length):
    rig = make_rig(length, operation)
    progress = list(rig.loop.run())
    assert rig.near == rig.far and any(rig.far)
    assert rig.loop.stats.bytes_done == length == progress[-1].bytes_done == progress[-1].bytes_total


def test_several_remote_segments_are_one_string_of_bytes(make_rig):
    rig = make_rig(10_007, segments=7, chunk=1000)
    list(rig.loop.run())
    assert rig.near == rig.far
    assert len({post[4] for post in rig.queue_pair.posted}) == 7, "each segment has its own rkey"


def test_the_window_is_kept_full_and_never_over_full(make_rig):
    rig = make_rig(64 * 4096, depth=8, signal_every=2, script=Script(completions_per_pump=1))
    list(rig.loop.run())
    assert rig.device.counts.peak_outstanding == 8


@pytest.mark.parametrize(("signal_every", "signalled"), [(1, 64), (2, 32), (4, 16)])
def test_one_in_n_is_signalled(make_rig, signal_every, signalled):
    rig = make_rig(64 * 4096, depth=8, signal_every=signal_every)
    list(rig.loop.run())
    assert rig.device.counts.signaled_posts == signalled == rig.loop.stats.wqes_signalled
    assert rig.loop.stats.wqes_posted == 64


def test_a_queue_that_would_fill_unsignalled_is_signalled(make_rig):
    """With 1 in 100 on a queue of 4 no completion would ever come."""
    rig = make_rig(64 * 4096, depth=4, signal_every=100)
    list(rig.loop.run())
    assert rig.near == rig.far
    assert rig.device.counts.signaled_posts >= 64 // 4


def test_a_lost_completion_is_made_good_by_the_next(make_rig):
    rig = make_rig(8 * 4096, signal_every=2, script=Script(faults=(Fault(1, lose_completion=True),)))
    list(rig.loop.run())
    assert rig.loop.stats.bytes_done == 8 * 4096


def test_a_write_ends_with_a_flushing_read_of_each_segments_last_bytes(make_rig):
    rig = make_rig(10_000, segments=2, flush=True)
    list(rig.loop.run())
    reads = [post for post in rig.queue_pair.posted if post[1] is Opcode.RDMA_READ]
    assert [sum(sge.length_bytes for sge in post[2]) for post in reads] == [8, 8]
    last_writes = [post for post in rig.queue_pair.posted if post[1] is Opcode.RDMA_WRITE]
    assert rig.queue_pair.posted[-2:] == reads, "the flush follows all writes on the same queue pair"
    final = last_writes[-1]
    assert reads[-1][3] == final[3] + sum(sge.length_bytes for sge in final[2]) - 8
    assert rig.loop.stats.bytes_done == 10_000, "flushed bytes are not counted as moved"


def test_a_flush_waits_for_room_in_the_queue(make_rig):
    rig = make_rig(8 * 4096, depth=1, signal_every=1, segments=4, flush=True)
    list(rig.loop.run())
    reads = [post for post in rig.queue_pair.posted if post[1] is Opcode.RDMA_READ]
    assert len(reads) == 4 and rig.near == rig.far


def test_reads_are_not_flushed(make_rig):
    rig = make_rig(10_000, READ, flush=True)
    list(rig.loop.run())
    assert all(post[1] is Opcode.RDMA_READ for post in rig.queue_pair.posted)
    assert sum(sge.length_bytes for post in rig.queue_pair.posted for sge in post[2]) == 10_000


@pytest.mark.parametrize(
    ("status", "code", "side"),
    [
        (WcStatus.REM_ACCESS_ERR, "remote_access", "remote"),
        (WcStatus.RETRY_EXC_ERR, "retry_exceeded", "local"),
        (WcStatus.RNR_RETRY_EXC_ERR, "rnr_retry_exceeded", "local"),
        (WcStatus.LOC_PROT_ERR, "local_protection", "local"),
        (WcStatus.GENERAL_ERR, "completion_error", "local"),
    ],
)
def test_a_completion_error_is_named_explained_and_says_what_was_moved(make_rig, status, code, side):
    rig = make_rig(16 * 4096, signal_every=1, script=Script(faults=(Fault(5, status=status),)))
    with pytest.raises(CompletionError) as caught:
        list(rig.loop.run())
    error = caught.value
    # A key, range or right that the peer's device refuses is a refusal.
    exit_code = 7 if code == "remote_access" else 1
    assert (error.exit_code, error.code, error.wc_status, error.side) == (exit_code, code, status.name, side)
    assert error.why and error.fix and f"of {16 * 4096} bytes" in error.what
    assert rig.loop.stats.bytes_done == 5 * 4096


def test_silence_ends_at_the_idle_timeout_not_before(make_rig):
    rig = make_rig(16 * 4096, script=Script(faults=(Fault(4, stall=True),)), idle_s=3.0, tick_s=0.5)
    with pytest.raises(DeadlineExceeded, match="--idle-timeout") as caught:
        list(rig.loop.run())
    assert caught.value.code == "idle_timeout" and f"{4 * 4096} of {16 * 4096} bytes" in str(caught.value.why)


def test_the_time_limit_ends_a_transfer_that_still_moves(make_rig):
    rig = make_rig(1 << 20, limit_s=5.0, tick_s=0.25, script=Script(completions_per_pump=1))
    with pytest.raises(TimeLimitError) as caught:
        list(rig.loop.run())
    assert caught.value.exit_code == 6 and 0 < rig.loop.stats.bytes_done < 1 << 20


def test_a_stop_drains_what_is_in_flight_and_posts_nothing_more(make_rig):
    rig = make_rig(64 * 4096, depth=8, script=Script(completions_per_pump=1))
    steps = rig.loop.run()
    next(steps)
    rig.stop.set(15)
    posted = rig.device.counts.posts
    with pytest.raises(InterruptedTransfer) as caught:
        list(steps)
    assert caught.value.exit_code == 143
    assert rig.device.counts.posts <= posted + 8, "at most the round that was under way"
    assert rig.device.counts.outstanding == 0
    assert rig.loop.stats.bytes_done == rig.device.counts.posted_bytes


def test_a_stop_does_not_wait_for_what_never_tells_that_it_is_done(make_rig):
    """At a rate limit the last work requests are few and unsignalled: no completion will come for them."""
    rig = make_rig(64 * 4096, depth=16, signal_every=8)
    rig.loop.pace = Pace(3 * 4096.0)
    rig.loop.settings = replace(rig.loop.settings, drain_s=1e9)
    steps = rig.loop.run()
    while rig.loop.stats.wqes_posted < 3:
        next(steps)
        rig.clock.advance(1.0)
    rig.stop.set(2)
    with pytest.raises(InterruptedTransfer):
        list(steps)
    assert rig.loop.stats.wqes_signalled == 0 and rig.loop.stats.wqes_in_flight >= 3


def test_a_stop_with_a_dead_wire_gives_up_after_the_drain_time(make_rig):
    rig = make_rig(64 * 4096, script=Script(faults=(Fault(0, stall=True),)), tick_s=0.1)
    steps = rig.loop.run()
    next(steps)
    rig.stop.set(2)
    with pytest.raises(InterruptedTransfer) as caught:
        list(steps)
    assert caught.value.exit_code == 130


def test_a_window_frame_bounds_what_we_send(make_rig):
    rig = make_rig(64 * 4096, script=Script(completions_per_pump=1))
    rig.peer.send(Window(123_456))
    list(rig.loop.run())
    assert rig.device.counts.windows == [123_456]


def test_a_window_frame_does_not_bound_what_comes_to_us(make_rig):
    rig = make_rig(64 * 4096, READ, script=Script(completions_per_pump=1))
    rig.peer.send(Window(123_456))
    list(rig.loop.run())
    assert rig.device.counts.windows == []


@pytest.mark.parametrize("every_round", [1, 4000])
def test_a_peer_that_sends_nothing_but_windows_is_idle(make_rig, monkeypatch, every_round):
    """However many: the loop looks at its clock in between, and a window moves nothing."""
    rig = make_rig(64 * 4096, script=Script(faults=(Fault(4, stall=True),)), idle_s=3.0, tick_s=0.1)
    monkeypatch.setattr(rig.loop.channel, "receive", iter([*[Window(1 << 20)] * every_round, None] * 1000).__next__)
    with pytest.raises(DeadlineExceeded) as caught:
        list(rig.loop.run())
    assert caught.value.code == "idle_timeout"
    assert len(rig.device.counts.windows) <= 512 * 100


def test_digests_go_to_who_asked_for_them_and_move_nothing(make_rig, monkeypatch):
    rig = make_rig(64 * 4096, READ, script=Script(faults=(Fault(4, stall=True),)), idle_s=3.0, tick_s=0.1)
    page, taken = Digests("0" * 16, 0, ("f" * 32,), more=False), list[Digests]()
    rig.loop.take_in_digests = taken.append
    monkeypatch.setattr(rig.loop.channel, "receive", iter([page, None] * 1000).__next__)
    with pytest.raises(DeadlineExceeded) as caught:
        list(rig.loop.run())
    assert caught.value.code == "idle_timeout"
    assert 5 < len(taken) < 100 and taken[0] is page


def test_digests_that_nobody_asked_for_end_the_transfer(make_rig):
    rig = make_rig(64 * 4096, READ, script=Script(faults=(Fault(4, stall=True),)))
    rig.peer.send(Digests("0" * 16, 0, ("f" * 32,), more=False))
    with pytest.raises(RemoteProtocolError, match="digests in the middle of a transfer"):
        list(rig.loop.run())


def test_a_peer_that_goes_ends_the_transfer_at_once(make_rig):
    rig = make_rig(64 * 4096, script=Script(faults=(Fault(4, stall=True),)))
    rig.peer.close()
    with pytest.raises(PeerGone):
        list(rig.loop.run())


def test_a_refusal_in_mid_transfer_is_shown_as_the_peer_said_it(make_rig):
    rig = make_rig(64 * 4096, script=Script(faults=(Fault(4, stall=True),)))
    rig.peer.send(Refuse("no_space", "no space left on the sink", "the file system is full", "free some"))
    with pytest.raises(PeerRefusedError) as caught:
        list(rig.loop.run())
    assert (caught.value.code, caught.value.side, caught.value.exit_code) == ("no_space", "remote", 7)


def test_an_answer_nobody_asked_for_is_a_protocol_error(make_rig):
    rig = make_rig(64 * 4096, script=Script(faults=(Fault(4, stall=True),)))
    rig.peer.send(Filled("0" * 16, 0, 0))
    with pytest.raises(RemoteProtocolError) as caught:
        list(rig.loop.run())
    assert caught.value.code == "unexpected_message"


def test_progress_is_sampled_by_time_not_by_completion(make_rig):
    rig = make_rig(1 << 20, tick_s=0.001, script=Script(bytes_per_s=1e6))
    samples = list(rig.loop.run())
    assert rig.device.counts.completions > 100
    assert 4 <= len(samples) <= 20, f"about 8 a second of {rig.clock.now:.1f} s"
    done = [sample.bytes_done for sample in samples]
    assert done == sorted(done) and samples[-1].phase == "drain"
    steady = samples[len(samples) // 2]
    assert steady.bw_bytes_per_s == pytest.approx(1e6, rel=0.2) and steady.wqes_in_flight > 0


def test_the_rate_is_first_post_to_last_completion(make_rig):
    rig = make_rig(1 << 20, tick_s=0.0001, script=Script(bytes_per_s=4e6))
    list(rig.loop.run())
    assert rig.loop.stats.elapsed_s == pytest.approx((1 << 20) / 4e6, rel=0.05)


class Sleeper:
    """Sleeps on the rig's clock."""

    def __init__(self, clock):
        self.clock = clock

    def wait(self, at_most_s):
        self.clock.advance(max(at_most_s, 1e-5))


def paced(rig, rate_bytes_per_s):
    rig.loop.pace = Pace(rate_bytes_per_s)
    rig.loop._waiter = Sleeper(rig.clock)
    return rig


@pytest.mark.parametrize("depth", [2, 64])
def test_a_pace_bounds_the_rate_and_every_byte_moves(make_rig, depth):
    rig = paced(make_rig(256 * 4096, depth=depth), 1024 * 1024)
    list(rig.loop.run())
    assert rig.near == rig.far
    # One work request leaves before the limit is felt.
    assert rig.loop.stats.elapsed_s == pytest.approx(255 / 256, abs=0.01)


def test_who_waits_for_the_pace_is_not_idle(make_rig):
    rig = paced(make_rig(6 * 4096, idle_s=1.0), 4096 / 0.7)
    list(rig.loop.run())
    assert rig.loop.stats.elapsed_s == pytest.approx(5 * 0.7, abs=0.05)


def test_a_pace_does_not_hide_a_dead_wire(make_rig):
    rig = paced(make_rig(64 * 4096, depth=4, idle_s=1.0, script=Script(faults=(Fault(2, stall=True),))), 1e6)
    with pytest.raises(DeadlineExceeded):
        list(rig.loop.run())
    assert rig.loop.stats.wqes_posted == 6, "the two that completed, and a full queue"


class Slotted:
    """An end with slots: `began` are the offsets it was asked to prepare; what it settles waits in `unsettled`."""

    def __init__(self, inner, slots, *, settles=True):
        self.inner, self.settles = inner, settles
        self.span_bytes = 4096
        self.free = list(range(slots))
        self.began, self.unsettled = [], []

    def take(self):
        return self.free.pop(0) if self.free else None

    def give(self, slot):
        assert slot not in self.free
        self.free.append(slot)

    def prepare(self, span):
        self.began.append(span.offset // 4096)
        return True

    def settle(self, span):
        if not self.settles:
            self.unsettled.append(span)
        return self.settles

    def poll(self):
        return ()

    def vec(self, span):
        return self.inner.vec(span)

    def segments(self, span):
        return self.inner.segments(span)


def slotted(rig, source_slots, sink_slots, **sink):
    loop = rig.loop
    if loop.settings.direction is WRITE:
        loop.local, loop.remote = Slotted(loop.local, source_slots), Slotted(loop.remote, sink_slots, **sink)
        return loop.local, loop.remote
    loop.local, loop.remote = Slotted(loop.local, sink_slots, **sink), Slotted(loop.remote, source_slots)
    return loop.remote, loop.local


@pytest.mark.parametrize("operation", [WRITE, READ])
def test_bytes_are_read_ahead_while_the_end_they_go_to_has_all_its_slots_in_hand(make_rig, operation):
    rig = make_rig(64 * 4096, operation, idle_s=3.0, tick_s=0.1)
    source, sink = slotted(rig, 4, 2, settles=False)
    with pytest.raises(DeadlineExceeded):
        list(rig.loop.run())
    assert [span.offset // 4096 for span in sink.unsettled] == [0, 1]
    assert source.began == [0, 1, 2, 3, 4, 5], "two have gone to the sink, four fill the source's slots"


@pytest.mark.parametrize("operation", [WRITE, READ])
@pytest.mark.parametrize("slots", [(1, 1), (1, 3), (4, 2), (2, 64)])
def test_every_byte_moves_whatever_slots_the_ends_have(make_rig, operation, slots):
    rig = make_rig(33 * 4096 + 5, operation)
    source, sink = slotted(rig, *slots)
    list(rig.loop.run())
    assert rig.near == rig.far
    assert source.began == sink.began == list(range(34)), "in order at both ends"
    assert (len(source.free), len(sink.free)) == slots, "every slot came back"


@pytest.mark.parametrize("operation", [WRITE, READ])
def test_mapped_memory_has_no_more_spans_than_the_other_end_has_slots(make_rig, operation):
    rig = make_rig(64 * 4096, operation, idle_s=3.0, tick_s=0.1)
    mapped = rig.loop.local if operation is WRITE else rig.loop.remote
    slotted(rig, 1, 3, settles=False)
    if operation is WRITE:
        rig.loop.local = mapped
    else:
        rig.loop.remote = mapped
    with pytest.raises(DeadlineExceeded):
        list(rig.loop.run())
    assert len(rig.loop._spans) == 3
