"""The token bucket, by hand-stepped time."""

from __future__ import annotations

import pytest

from p2prw.engine.pace import BURST_S, Pace, RateLimit, lower_limit, pace_at, paced_chunk_bytes
from p2prw.units import KIB, MIB


def post_for(pace: Pace, seconds: float, length: int, look_every_s: float) -> list[float]:
    """Post whenever there is room, looking at equal times; returns when each work request left."""
    left, steps = [], round(seconds / look_every_s)
    for step in range(steps):
        now = 100.0 + step * look_every_s
        for _ in range(pace.room(length, now)):
            pace.spend(length, now)
            left.append(now)
    return left


@pytest.mark.parametrize("look_every_s", [0.0001, 0.001, 0.004])
@pytest.mark.parametrize("length", [4 * KIB, 64 * KIB, MIB])
def test_the_rate_is_reached_and_not_passed_however_often_one_looks(length, look_every_s):
    rate = 100 * MIB
    left = post_for(Pace(rate), 2.0, length, look_every_s)
    assert len(left) * length == pytest.approx(2.0 * rate, abs=rate * BURST_S + 2 * length)


def test_no_stretch_holds_more_than_its_share_and_one_burst():
    rate, length = 10 * MIB, 8 * KIB
    pace = Pace(rate)
    left = post_for(pace, 0.5, length, 0.001)
    # Nobody looked for a second: what was not sent meanwhile is lost, but for the burst.
    pause = 100.5 + 1.0
    for step in range(500):
        now = pause + step * 0.001
        for _ in range(pace.room(length, now)):
            pace.spend(length, now)
            left.append(now)
    for first in range(0, len(left), 7):
        for last in range(first, len(left), 5):
            most = rate * (left[last] - left[first] + BURST_S) + length
            assert (last - first + 1) * length <= most + 1


def test_one_that_is_bigger_than_a_burst_leaves_and_is_paid_for():
    pace = Pace(MIB)
    assert pace.wait_s(5.0) == 0 and pace.room(10 * MIB, 5.0) == 1
    pace.spend(10 * MIB, 5.0)
    assert pace.room(1, 14.9) == 0 and pace.wait_s(14.9) == pytest.approx(0.1)
    assert pace.room(1, 15.0) > 0


def test_a_slow_limit_cuts_work_requests_so_that_ten_leave_in_a_second():
    assert paced_chunk_bytes(MIB, None) == MIB
    assert paced_chunk_bytes(MIB, RateLimit(1e9, "client")) == MIB
    assert paced_chunk_bytes(MIB, RateLimit(1 * MIB, "server")) == 102400 == MIB // 10 // 4096 * 4096
    assert paced_chunk_bytes(MIB, RateLimit(100.0, "client")) == 4096
    assert paced_chunk_bytes(512, RateLimit(100.0, "client")) == 512


def test_no_limit_is_no_pace():
    assert pace_at(None) is None
    pace = pace_at(RateLimit(5.0, "server"))
    assert pace is not None and (pace.rate_bytes_per_s, pace.by) == (5.0, "server")


def test_the_lower_limit_holds_and_says_whose_it_is():
    assert lower_limit(None, None) is None
    assert lower_limit(5.0, None) == lower_limit(5.0, 6) == RateLimit(5.0, "client")
    assert lower_limit(None, 4) == lower_limit(5.0, 4) == RateLimit(4, "server")
    assert lower_limit(5.0, 5) == RateLimit(5.0, "client"), "then the server's is no news to the user"
