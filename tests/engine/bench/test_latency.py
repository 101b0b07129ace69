"""The latency loop over a scripted device whose clock ticks: one at a time, timed from post to completion."""

from __future__ import annotations

import pytest

from p2prw.engine.bench.row import RunFacts, latency_row
from p2prw.engine.model import Operation, WcStatus
from p2prw.engine.pace import Pace
from p2prw.engine.providers.scripted import Fault, Script
from p2prw.errors import CompletionError, DeadlineExceeded, InterruptedTransfer


def drive(loop) -> int:
    return sum(1 for _ in loop.run())


@pytest.mark.parametrize("operation", list(Operation))
def test_one_message_at_a_time_each_signalled(make_bench, operation):
    rig = make_bench(operation=operation, script=Script(latency_s=0.001))
    loop = rig.latency(64, 50, signal_every=4)
    drive(loop)
    assert len(loop.samples_us) == 50
    assert rig.device.counts.peak_outstanding == 1
    assert rig.device.counts.signaled_posts == rig.device.counts.posts == 50
    assert all(sample == pytest.approx(1000, rel=0.1) for sample in loop.samples_us), "1 ms each way and back"


def test_a_message_of_several_work_requests_is_one_sample(make_bench):
    rig = make_bench(script=Script(latency_s=0.001))
    loop = rig.latency(10_000, 5, chunk=4096)
    drive(loop)
    assert len(loop.samples_us) == 5 and rig.device.counts.posts == 15
    assert rig.device.counts.peak_outstanding == 3


def test_one_slow_message_is_one_slow_sample(make_bench):
    rig = make_bench(script=Script(latency_s=0.0001, faults=(Fault(7, delay_s=0.05),)))
    loop = rig.latency(64, 20)
    drive(loop)
    slow = [index for index, sample in enumerate(loop.samples_us) if sample > 40_000]
    assert slow == [7]


def test_a_run_by_time_ends(make_bench):
    rig = make_bench(script=Script(latency_s=0.001))
    loop = rig.latency(64, None, duration_s=0.1)
    drive(loop)
    assert len(loop.samples_us) == pytest.approx(100, abs=15)
    assert loop.last_completion_s - loop.first_post_s == pytest.approx(0.1, abs=0.01)


def test_samples_before_a_failure_are_kept(make_bench):
    rig = make_bench(script=Script(latency_s=0.001, faults=(Fault(10, WcStatus.RETRY_EXC_ERR),)))
    loop = rig.latency(64, 100)
    with pytest.raises(CompletionError):
        drive(loop)
    assert len(loop.samples_us) == 10


def test_a_completion_that_never_comes_is_waited_for_no_longer_than_told(make_bench):
    rig = make_bench(script=Script(faults=(Fault(2, stall=True),)), tick_s=0.001, idle_s=0.3)
    loop = rig.latency(64, 100)
    with pytest.raises(DeadlineExceeded):
        drive(loop)
    assert len(loop.samples_us) == 2


def test_ctrl_c_ends_it_between_two_messages_and_in_the_middle_of_one(make_bench):
    rig = make_bench(script=Script(latency_s=0.001))
    steps = rig.latency(64, 1_000_000).run()
    next(steps)
    rig.stop.set(2)
    with pytest.raises(InterruptedTransfer):
        list(steps)
    rig = make_bench(script=Script(faults=(Fault(0, stall=True),)), tick_s=0.001)
    rig.stop.set(2)
    with pytest.raises(InterruptedTransfer):
        drive(rig.latency(64, 10))


class Sleeper:
    """Waits by the rig's clock, which moves when it is looked at."""

    def __init__(self, clock):
        self.clock = clock

    def wait(self, at_most_s):
        end_s = self.clock() + at_most_s
        while self.clock() < end_s:
            pass


def test_a_servers_limit_lies_between_two_samples_and_in_none(make_bench):
    rig = make_bench(script=Script(latency_s=0.001), tick_s=1e-5)
    loop = rig.latency(1000, 50)
    loop.pace, loop.waiter = Pace(50_000, "server"), Sleeper(rig.attendant.deadline.clock)
    drive(loop)
    assert all(sample == pytest.approx(1000, rel=0.2) for sample in loop.samples_us)
    assert loop.last_completion_s - loop.first_post_s == pytest.approx(49 * 0.02, abs=0.03)
    row = latency_row(loop, RunFacts(Operation.WRITE, 1000, True, 0, 0))
    assert (row.rate_limit_bytes_per_s, row.rate_limit_by) == (50_000, "server")


def test_a_stop_is_heard_while_the_limit_is_waited_for(make_bench):
    rig = make_bench(script=Script(latency_s=0.001), tick_s=1e-3)
    loop = rig.latency(1000, 50)
    loop.pace = Pace(100.0, "server")
    rig.stop.set()
    with pytest.raises(InterruptedTransfer):
        drive(loop)
    assert len(loop.samples_us) <= 1
