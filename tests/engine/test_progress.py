"""What was counted, by one loop or several, and the rate of the last second."""

from __future__ import annotations

import pytest

from p2prw.engine.progress import LoopStats, RecentRate


def test_a_loop_that_moved_nothing_took_no_time() -> None:
    assert LoopStats().elapsed_s == LoopStats(first_post_s=3.0).elapsed_s == 0.0
    assert LoopStats(first_post_s=3.0, last_completion_s=5.5).elapsed_s == 2.5


def test_several_loops_are_one_transfer() -> None:
    """From the first post of all to the last completion of all; one that moved nothing changes neither."""
    whole = LoopStats()
    for later in (
        LoopStats(wqes_posted=1, first_post_s=1.0),
        LoopStats(10, 2, 1, 2, 1, first_post_s=2.0, first_completion_s=3.0, last_completion_s=4.0),
        LoopStats(20, 3, 1, 3, 0, first_post_s=5.0, first_completion_s=6.0, last_completion_s=7.0),
        LoopStats(),
    ):
        whole.add(later)
    assert (whole.bytes_done, whole.wqes_posted, whole.wqes_signalled, whole.kernel_wqes) == (30, 6, 2, 5)
    assert (whole.first_post_s, whole.first_completion_s, whole.last_completion_s) == (1.0, 3.0, 7.0)
    assert whole.wqes_in_flight == 0 and whole.elapsed_s == 6.0


def test_the_rate_is_that_of_the_last_second() -> None:
    rate = RecentRate()
    assert rate.at(10.0, 500) == 0.0, "what was there before the first look is nobody's rate"
    assert rate.at(10.0, 600) == 0.0, "two looks at one time"
    assert rate.at(10.5, 1500) == 2000.0
    for step in range(1, 40):
        last = rate.at(10.5 + step / 8, 1500)
    assert last == 0.0, "it stands still"


def test_a_loop_that_slept_for_long_has_a_rate_all_the_same() -> None:
    rate = RecentRate()
    rate.at(0.0, 0)
    rate.at(0.1, 100)
    assert rate.at(60.1, 6100) == pytest.approx(100.0)
