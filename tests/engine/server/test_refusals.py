"""When a client must go, by time alone."""

from __future__ import annotations

import pytest

from p2prw.engine.model import Timeouts
from p2prw.engine.server import refusals

TIMEOUTS = Timeouts(handshake_s=10, idle_s=30, client_s=100)


@pytest.mark.parametrize(
    ("now", "last_heard_s", "authenticated", "code"),
    [
        (10.0, 0.0, False, None),
        (10.1, 0.0, False, "handshake_timeout"),
        # Talking does not help who is not through.
        (10.1, 10.0, False, "handshake_timeout"),
        (10.1, 0.0, True, None),
        (30.0, 0.0, True, None),
        (30.1, 0.0, True, "idle"),
        (100.0, 99.0, True, None),
        (100.1, 100.0, True, "client_time_limit"),
    ],
)
def test_who_must_go(now, last_heard_s, authenticated, code):
    error = refusals.overdue(TIMEOUTS, now, since_s=0.0, last_heard_s=last_heard_s, authenticated=authenticated)
    assert (error and error.code) == code


def test_without_a_limit_a_busy_client_stays():
    unlimited = Timeouts(client_s=None)
    assert refusals.overdue(unlimited, 1e9, since_s=0.0, last_heard_s=1e9, authenticated=True) is None


def test_every_refusal_says_what_to_do():
    for error in (refusals.full(3), refusals.stopping(), refusals.stopped(30)):
        assert error.exit_code == 7 and error.why and error.fix


def test_a_rate_that_cannot_be_seen_is_said_to_be_asked_for_only() -> None:
    text = refusals.unseen_rate("mlx5_0")
    assert "mlx5_0" in text and "unseen" in text and "staging" in text
