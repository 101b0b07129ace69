"""Every state and every step: a legal state or an error of the caller."""

from __future__ import annotations

import itertools

import pytest

from p2prw.engine.roce.state import (
    TAKES_RECEIVES,
    TAKES_REQUESTS,
    TAKES_RESPONSES,
    TAKES_SENDS,
    TRANSITIONS,
    QueuePairState,
    Step,
    next_state,
)
from p2prw.errors import LocalProtocolError

S = QueuePairState


@pytest.mark.parametrize(("state", "step"), list(itertools.product(S, Step)))
def test_every_state_and_step(state, step):
    if (state, step) in TRANSITIONS:
        assert next_state(state, step) in S
    else:
        with pytest.raises(LocalProtocolError, match=state.value):
            next_state(state, step)


def test_the_way_up_and_the_end():
    state = S.RESET
    for step in (Step.INITIALIZE, Step.READY_TO_RECEIVE, Step.READY_TO_SEND, Step.FAIL, Step.FAIL):
        state = next_state(state, step)
    assert state is S.ERR


def test_what_states_allow():
    assert {S.RTR, S.RTS} == TAKES_REQUESTS
    assert {S.RTS} == TAKES_RESPONSES
    assert {S.RTS, S.ERR} == TAKES_SENDS
    assert {S.INIT, S.RTR, S.RTS, S.ERR} == TAKES_RECEIVES
