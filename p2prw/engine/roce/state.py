"""States of a reliable connected queue pair, and what each allows: a table, nothing else (IBTA Vol 1 10.3.1).

SQE and SQD are missing on purpose: SQE exists only for unreliable services, and nobody here drains a send queue.
"""

from __future__ import annotations

from enum import StrEnum

from p2prw.errors import LocalProtocolError


class QueuePairState(StrEnum):
    """Names as in `enum ibv_qp_state`."""

    RESET = "RESET"
    INIT = "INIT"
    RTR = "RTR"
    RTS = "RTS"
    ERR = "ERR"


class Step(StrEnum):
    """What can happen to a queue pair as a whole."""

    INITIALIZE = "initialize"
    READY_TO_RECEIVE = "ready_to_receive"
    READY_TO_SEND = "ready_to_send"
    FAIL = "fail"


TRANSITIONS: dict[tuple[QueuePairState, Step], QueuePairState] = {
    (QueuePairState.RESET, Step.INITIALIZE): QueuePairState.INIT,
    (QueuePairState.INIT, Step.READY_TO_RECEIVE): QueuePairState.RTR,
    (QueuePairState.RTR, Step.READY_TO_SEND): QueuePairState.RTS,
    **{(state, Step.FAIL): QueuePairState.ERR for state in QueuePairState},
}
"""A missing key is an error of the caller."""

TAKES_REQUESTS = frozenset({QueuePairState.RTR, QueuePairState.RTS})
TAKES_RESPONSES = frozenset({QueuePairState.RTS})
TAKES_SENDS = frozenset({QueuePairState.RTS, QueuePairState.ERR})
"""Work posted in ERR is flushed."""
TAKES_RECEIVES = frozenset(QueuePairState) - {QueuePairState.RESET}


def next_state(state: QueuePairState, step: Step) -> QueuePairState:
    """Return the state after `step`; LocalProtocolError when the table has none."""
    try:
        return TRANSITIONS[state, step]
    except KeyError:
        raise LocalProtocolError(
            f"queue pair in {state} cannot {step.value.replace('_', ' ')}", code="queue_pair_state"
        ) from None
