"""Which sizes run: the sweep, its bounds, pieces for several queue pairs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.bench.sizes import SWEEP, bounded_sweep, lane_room, wanted_sizes


def test_the_sweep_is_perftests():
    assert SWEEP[0] == 2 and SWEEP[-1] == 8388608 and len(SWEEP) == 23


@pytest.mark.parametrize(
    ("sizes", "sweep", "expected"),
    [(None, False, (65536,)), ((5, 3), False, (5, 3)), (None, True, SWEEP)],
)
def test_what_was_asked_for_runs_in_that_order(sizes, sweep, expected):
    assert wanted_sizes(sizes, sweep, 65536) == expected


def test_a_bound_is_said_and_no_bound_says_nothing():
    assert bounded_sweep(SWEEP, 8 << 20) == (SWEEP, None)
    fitting, why = bounded_sweep(SWEEP, 5000)
    assert fitting[-1] == 4096 and why is not None and "4096" in why and "5000" in why
    fitting, why = bounded_sweep(SWEEP, 1)
    assert fitting == () and why is not None and "nothing" in why


@given(st.integers(1, 1 << 40), st.integers(1, 64))
def test_pieces_do_not_overlap_nor_leave_the_region(room, pairs):
    share = lane_room(room, pairs)
    assert share * pairs <= room
    assert pairs == 1 or share % 64 == 0 or room < 64 * pairs
