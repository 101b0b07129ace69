"""The bandwidth loop over a scripted device: how many, how deep, how long, what is kept after a failure."""

from __future__ import annotations

import gc
import sys
from itertools import pairwise

import pytest

from p2prw.engine.bench.loop import BandwidthLoop
from p2prw.engine.bench.row import RunFacts, bandwidth_row
from p2prw.engine.model import Operation, WcStatus
from p2prw.engine.pace import Pace
from p2prw.engine.providers.scripted import Fault, Script
from p2prw.errors import CompletionError, DeadlineExceeded, InterruptedTransfer, PeerGone, TimeLimitError


def drive(loop) -> int:
    return sum(1 for _ in loop.run())


@pytest.mark.parametrize("operation", list(Operation))
@pytest.mark.parametrize(("size", "messages", "chunk"), [(1, 1, 4096), (64, 1001, 4096), (10_000, 33, 4096)])
def test_every_message_is_posted_and_completes_once(make_bench, operation, size, messages, chunk):
    rig = make_bench(operation=operation)
    if operation is Operation.READ:
        rig.near, rig.far = rig.far, rig.near
    loop = rig.bandwidth(size, messages, chunk=chunk)
    drive(loop)
    per_message = -(-size // chunk)
    assert rig.device.counts.posts == messages * per_message
    assert rig.device.counts.posted_bytes == messages * size
    assert loop.messages == loop.marks[-1].messages == messages
    assert rig.lanes[0].finished and rig.lanes[0].outstanding == 0


def test_never_more_than_the_depth_is_outstanding_and_the_depth_is_used(make_bench):
    rig = make_bench(depth=16, script=Script(completions_per_pump=3))
    drive(rig.bandwidth(64, 500, signal_every=4))
    assert rig.device.counts.peak_outstanding == 16


@pytest.mark.parametrize(("signal_every", "messages", "signalled"), [(1, 64, 64), (4, 64, 16), (8, 60, 8)])
def test_one_in_n_is_signalled_and_the_last_one(make_bench, signal_every, messages, signalled):
    rig = make_bench(depth=16)
    drive(rig.bandwidth(64, messages, signal_every=signal_every))
    assert rig.device.counts.signaled_posts == rig.lanes[0].signalled == signalled


def test_lanes_share_the_device_and_have_their_own_memory(make_bench):
    rig = make_bench(queue_pairs=3, room=4096)
    loop = rig.bandwidth(4096, 20)
    drive(loop)
    assert loop.messages == 60 and [lane.messages for lane in rig.lanes] == [20, 20, 20]
    assert rig.far == rig.near, "each lane wrote its own piece"


@pytest.mark.parametrize("post_list", [None, 4])
@pytest.mark.parametrize("duration_s", [None, 0.05])
def test_only_lanes_of_which_the_device_tells_are_polled(make_bench, post_list, duration_s):
    """And nothing else is different: the same is posted, and all of it completes."""
    rigs = []
    for tells in (False, True):
        rig = make_bench(queue_pairs=8, depth=8, script=Script(completions_per_pump=3))
        if tells:
            pairs = [lane.queue_pair for lane in rig.lanes]
            rig.device.take_completed = lambda pairs=pairs: [pair.local.qpn for pair in pairs if pair._completions]
        messages = 100 if duration_s is None else None
        loop = rig.bandwidth(64, messages, signal_every=4, post_list=post_list, duration_s=duration_s)
        drive(loop)
        assert all(lane.finished for lane in rig.lanes)
        assert loop.messages == loop.marks[-1].messages == sum(lane.messages for lane in rig.lanes)
        rigs.append(rig)
    asking, told = (rig.device.counts for rig in rigs)
    assert told.empty_polls <= 8 < asking.empty_polls, "all in the first round, for what is left of earlier"
    assert asking.posts == told.posts if duration_s is None else told.posts > 100
    assert asking.peak_outstanding == told.peak_outstanding


def test_what_completed_before_the_first_round_is_found_though_nobody_tells_of_it(make_bench):
    rig = make_bench(queue_pairs=2)
    rig.device.take_completed = list
    rig.begin(64, 1)
    for lane in rig.lanes:
        lane.post()
    while not all(lane.queue_pair._completions for lane in rig.lanes):
        rig.device.pump()
    drive(BandwidthLoop(rig.device, rig.lanes, rig.attendant, rig.waiter))
    assert all(lane.finished and lane.messages == 1 for lane in rig.lanes)


def test_marks_grow_and_end_with_the_last_completion(make_bench):
    rig = make_bench(script=Script(latency_s=0.001, bytes_per_s=1e6))
    loop = rig.bandwidth(1000, 400, signal_every=1)
    drive(loop)
    assert loop.marks[0].messages == 0 and loop.marks[-1].messages == 400
    assert all(
        later.at_s > earlier.at_s and later.messages > earlier.messages for earlier, later in pairwise(loop.marks)
    )
    assert 50 < len(loop.marks) <= 202
    elapsed_s = loop.marks[-1].at_s - loop.marks[0].at_s
    assert elapsed_s == pytest.approx(0.4, rel=0.1), "400 kB at 1 MB/s"


def test_a_run_by_time_ends_and_all_that_was_posted_counts(make_bench):
    rig = make_bench(script=Script(bytes_per_s=1e6))
    loop = rig.bandwidth(1000, None, duration_s=0.2, signal_every=4)
    drive(loop)
    elapsed_s = loop.marks[-1].at_s - loop.marks[0].at_s
    assert elapsed_s == pytest.approx(0.2, abs=0.03)
    assert loop.messages == rig.device.counts.posts == pytest.approx(200, abs=25)
    assert rig.lanes[0].outstanding == 0


@pytest.mark.parametrize("signal_every", [1, 2, 4])
def test_a_run_whose_time_ended_when_nothing_was_outstanding_ends(make_bench, signal_every):
    """A process that slept through its time finds all that it had posted completed."""
    rig = make_bench(tick_s=1.0, idle_s=30.0)
    loop = rig.bandwidth(64, None, duration_s=0.5, signal_every=signal_every)
    drive(loop)
    assert loop.messages == rig.device.counts.posts == 8, "one round, of the depth"


def test_no_object_is_made_for_a_message(make_bench):
    """What is allocated does not grow with the number of messages (marks are at most 200 and a few)."""
    rig = make_bench(depth=64, keep_log=False)

    def blocks_after(messages: int) -> int:
        loop = rig.bandwidth(64, messages, signal_every=16)
        gc.collect()
        before = sys.getallocatedblocks()
        drive(loop)
        gc.collect()
        return sys.getallocatedblocks() - before

    blocks_after(8000)  # what is made once
    assert blocks_after(40_000) <= blocks_after(8000) + 300, "both have up to 200 marks"


def test_progress_is_sampled_by_time(make_bench):
    rig = make_bench(script=Script(bytes_per_s=1e6), tick_s=1e-4)
    loop = rig.bandwidth(1000, 1000)
    assert drive(loop) == pytest.approx(1.0 / 0.125, abs=2)


def test_a_failed_completion_keeps_what_was_measured(make_bench):
    rig = make_bench(script=Script(faults=(Fault(50, WcStatus.REM_ACCESS_ERR),)))
    loop = rig.bandwidth(64, 1000, signal_every=1)
    with pytest.raises(CompletionError):
        drive(loop)
    assert loop.marks[-1].messages <= loop.messages == 50


def test_a_stop_drains_what_is_in_flight_and_posts_no_more(make_bench):
    rig = make_bench(script=Script(bytes_per_s=1e6))
    loop = rig.bandwidth(1000, 100_000, signal_every=4)
    steps = loop.run()
    next(steps)
    rig.stop.set(2)
    with pytest.raises(InterruptedTransfer):
        list(steps)
    posts = rig.device.counts.posts
    loop.settle(5.0)
    lane = rig.lanes[0]
    assert rig.device.counts.posts == posts
    assert lane.completed == lane.signalled_until > 0
    assert loop.marks[-1].messages == loop.messages


def test_a_drain_that_finds_no_end_gives_up(make_bench):
    rig = make_bench(script=Script(faults=(Fault(3, stall=True),)), tick_s=0.01, idle_s=0.2)
    loop = rig.bandwidth(1000, 100, signal_every=1)
    with pytest.raises(DeadlineExceeded, match="--idle-timeout"):
        drive(loop)
    loop.settle(0.1)
    assert loop.messages == 3


def test_a_time_limit_ends_the_run(make_bench):
    rig = make_bench(script=Script(bytes_per_s=1e6), limit_s=0.1)
    with pytest.raises(TimeLimitError):
        drive(rig.bandwidth(1000, 100_000))


def test_a_peer_that_leaves_ends_the_run(make_bench):
    rig = make_bench(script=Script(bytes_per_s=1e6))
    rig.peers[0].close()
    with pytest.raises(PeerGone):
        drive(rig.bandwidth(1000, 100_000))


class Sleeper:
    """Sleeps on the rig's clock, which ticks at each look."""

    def __init__(self, clock):
        self.clock = clock

    def wait(self, at_most_s):
        end_s = self.clock() + at_most_s
        while self.clock() < end_s:
            pass


def paced(rig, loop, rate_bytes_per_s):
    loop.pace = Pace(rate_bytes_per_s)
    loop.waiter = Sleeper(rig.attendant.deadline.clock)
    return loop


@pytest.mark.parametrize("queue_pairs", [1, 3])
@pytest.mark.parametrize("post_list", [None, 4])
def test_a_pace_bounds_all_lanes_together(make_bench, queue_pairs, post_list):
    rig = make_bench(queue_pairs=queue_pairs, depth=8)
    loop = paced(rig, rig.bandwidth(1000, 300 // queue_pairs, signal_every=2, post_list=post_list), 300_000)
    drive(loop)
    elapsed_s = loop.marks[-1].at_s - loop.marks[0].at_s
    assert loop.messages == 300 and elapsed_s == pytest.approx(1.0, abs=0.03)
    assert bandwidth_row(loop, RunFacts(Operation.WRITE, 1000, True, 0, 0)).rate_limit_bytes_per_s == 300_000


def test_lanes_take_turns_under_a_pace(make_bench):
    rig = make_bench(queue_pairs=3, depth=8)
    loop = paced(rig, rig.bandwidth(1000, None, signal_every=2, duration_s=0.5), 300_000)
    drive(loop)
    done = [lane.messages for lane in rig.lanes]
    assert sum(done) == pytest.approx(150, abs=12) and max(done) - min(done) <= 4


def test_who_waits_for_the_pace_is_not_idle(make_bench):
    rig = make_bench(idle_s=1.0, tick_s=1e-3)
    loop = paced(rig, rig.bandwidth(1000, 4, signal_every=2), 1000 / 0.7)
    drive(loop)
    assert loop.messages == 4
