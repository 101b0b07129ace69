"""The phase clock: one phase at a time, summed, on a clock that is passed in."""

from __future__ import annotations

import pytest

from p2prw.engine.phases import PhaseClock


def test_time_is_booked_on_the_phase_that_runs():
    now = [10.0]
    phases = PhaseClock(lambda: now[0])
    phases.enter("open")
    now[0] = 11.5
    phases.enter("exchange")
    now[0] = 12.0
    phases.enter("open")
    now[0] = 12.25
    assert phases.current == "open" and phases.total_s == 2.25
    phases.enter(None)
    now[0] = 99.0
    assert phases.seconds == {"open": 1.75, "exchange": 0.5}


def test_an_unknown_phase_is_a_defect():
    with pytest.raises(ValueError, match="coffee"):
        PhaseClock(lambda: 0.0).enter("coffee")
