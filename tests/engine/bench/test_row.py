"""Rows of runs, whole and cut short, and the thresholds they are held to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2prw import api
from p2prw.engine.bench.model import BenchRequest
from p2prw.engine.bench.reverse import Incoming
from p2prw.engine.bench.row import RunFacts, bandwidth_row, both_ways_row, latency_row, missed_thresholds
from p2prw.engine.bench.statistics import Mark
from p2prw.engine.model import Operation

FACTS = RunFacts(Operation.WRITE, 64, True, 10, 3)


@pytest.fixture
def bandwidth(make_bench):
    rig = make_bench(queue_pairs=2)
    loop = rig.bandwidth(64, 50, signal_every=4)
    for _ in loop.run():
        pass
    # Two intervals, of 60 and 40 messages.
    loop.marks[:] = [
        Mark(1.0 + place / 8, messages) for place, messages in enumerate((0, 15, 30, 45, 60, 70, 80, 90, 100))
    ]
    return loop


@pytest.fixture
def latency(make_bench):
    loop = make_bench().latency(64, 4)
    for _ in loop.run():
        pass
    loop.samples_us[:] = type(loop.samples_us)("d", [4.0, 1.0, 2.0, 3.0])
    return loop


def test_a_bandwidth_row_is_messages_over_time(bandwidth):
    row = bandwidth_row(bandwidth, FACTS)
    assert (row.messages, row.bytes, row.elapsed_s) == (100, 6400, 1.0)
    assert (row.bw_bytes_per_s, row.msg_rate_per_s) == (6400.0, 100.0)
    assert (row.bw_min_bytes_per_s, row.bw_median_bytes_per_s, row.bw_max_bytes_per_s) == (5120.0, 6400.0, 7680.0)
    assert (row.queue_pairs, row.tx_depth, row.intervals, row.warm_up_messages) == (2, 8, 2, 10)
    assert (row.wqes_posted, row.wqes_signalled, row.retransmitted_packets) == (100, 26, 3)
    assert row.lat_p50_us is None and row.histogram == ()


def test_a_latency_row_has_its_distribution(latency):
    row = latency_row(latency, FACTS)
    assert (row.lat_min_us, row.lat_p50_us, row.lat_p99_us, row.lat_max_us, row.lat_avg_us) == (1.0, 2.0, 4.0, 4.0, 2.5)
    assert sum(bucket.count for bucket in row.histogram) == row.messages == 4
    assert row.lat_by == "completion" and row.bw_median_bytes_per_s is None


def test_a_run_that_never_began_has_no_figures(make_bench):
    rig = make_bench()
    for row in (
        bandwidth_row(rig.bandwidth(64, 5), replace(FACTS, complete=False)),
        latency_row(rig.latency(64, 5), replace(FACTS, complete=False)),
    ):
        assert (row.messages, row.bytes, row.elapsed_s, row.complete) == (0, 0, 0.0, False)
        assert row.bw_bytes_per_s is None and row.msg_rate_per_s is None and row.lat_p50_us is None


@pytest.mark.parametrize(
    ("wishes", "missed"),
    [
        ({"min_bw_bytes_per_s": 6400.0}, None),
        ({"min_bw_bytes_per_s": 6401.0}, "below --min-bw"),
        ({"max_latency_us": {"p99": 4.0, "max": 4.0}}, None),
        ({"max_latency_us": {"p50": 1.9}}, "p50 of 2.0 us is above --max-lat p50=1.9us"),
        ({"max_latency_us": {"p50": 1.9, "avg": 1.0}}, "1 more missed"),
        ({}, None),
    ],
)
def test_every_row_is_held_to_the_thresholds_of_its_test(bandwidth, latency, wishes, missed):
    rows = [bandwidth_row(bandwidth, FACTS), latency_row(latency, FACTS)]
    request = BenchRequest(connection=api.make_request(Operation.WRITE, "h/r", "host"), **wishes)
    error = missed_thresholds(request, rows)
    if missed is None:
        assert error is None
    else:
        assert error is not None and missed in error.what
        assert (error.exit_code, error.code) == (5, "threshold_missed") and error.why and error.fix


def test_two_directions_are_added_and_have_no_intervals(bandwidth):
    row = both_ways_row(bandwidth_row(bandwidth, FACTS), Incoming(50, 0.5, 100.0, 4))
    assert (row.messages, row.out_messages, row.in_messages, row.bytes) == (150, 100, 50, 150 * 64)
    assert (row.out_bw_bytes_per_s, row.in_bw_bytes_per_s, row.bw_bytes_per_s) == (6400.0, 6400.0, 12800.0)
    assert (row.msg_rate_per_s, row.in_elapsed_s, row.retransmitted_packets) == (200.0, 0.5, 7)
    assert (row.both_ways, row.intervals, row.bw_median_bytes_per_s) == (True, 0, None)


def test_a_direction_that_nobody_told_of_makes_no_sum(bandwidth):
    row = both_ways_row(bandwidth_row(bandwidth, FACTS), None)
    assert (row.both_ways, row.out_messages, row.in_messages) == (True, 100, None)
    assert row.out_bw_bytes_per_s == 6400.0 and row.bw_bytes_per_s is row.msg_rate_per_s is None
