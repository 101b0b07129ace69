"""The end of the whole command: a stop, or --time-limit, whichever comes first."""

from __future__ import annotations

import pytest

from p2prw.engine.deadline import Deadline
from p2prw.engine.stop import StopRequest
from p2prw.errors import InterruptedTransfer, TimeLimitError


def test_without_a_limit_a_wait_may_last_what_it_asks():
    deadline = Deadline(lambda: 1e9, StopRequest())
    deadline.check()
    assert deadline.left_s(30.0) == 30.0


def test_a_limit_bounds_every_wait_and_then_ends_the_command():
    now = [100.0]
    deadline = Deadline(lambda: now[0], StopRequest(), limit_s=5.0)
    now[0] = 103.0
    deadline.check()
    assert deadline.left_s(30.0) == 2.0 and deadline.left_s(1.0) == 1.0
    now[0] = 105.0
    with pytest.raises(TimeLimitError, match="5 s"):
        deadline.left_s(1.0)
    with pytest.raises(TimeLimitError) as caught:
        deadline.check("while waiting for the grant")
    assert caught.value.why == "while waiting for the grant" and caught.value.exit_code == 6


@pytest.mark.parametrize(("number", "exit_code"), [(2, 130), (15, 143)])
def test_a_stop_wins_and_its_signal_is_the_exit_code(number, exit_code):
    stop = StopRequest()
    deadline = Deadline(lambda: 1e9, stop, limit_s=0.0)
    stop.set(number)
    with pytest.raises(InterruptedTransfer) as caught:
        deadline.check()
    assert caught.value.exit_code == exit_code
