"""The account of one lease: who keeps to the limit is never ended, who does not is, and how soon."""

from __future__ import annotations

import random

import pytest

from p2prw.engine.pace import Pace
from p2prw.engine.server.rate import AGAIN, BURST_BYTES, BURST_S, KEPT_S, TOLERANCE, RateAccount
from p2prw.errors import PeerRefusedError

RATE = 1e6
BURST = RATE * BURST_S + BURST_BYTES
SECOND = RATE * (1 + TOLERANCE)


def refusal(account: RateAccount, moved: float, now: float, again: float = 0) -> PeerRefusedError | None:
    try:
        account.check(int(moved), int(again), now)
    except PeerRefusedError as error:
        return error
    return None


def begun(ahead_bytes: int = 0) -> RateAccount:
    account = RateAccount(RATE)
    account.begin_lease(ahead_bytes)
    account.check(0, 0, 50.0)
    return account


def test_a_burst_and_then_the_rate():
    account = begun()
    assert refusal(account, BURST, 50.0) is None
    assert refusal(account, BURST + SECOND, 51.0) is None
    error = refusal(account, BURST + SECOND + 2, 51.0)
    assert error is not None and error.exit_code == 7 and error.code == "rate_exceeded"
    assert "in 1.0 s are more than this client may move" in error.what
    assert error.why and "--client-rate-limit is 1.0 MiB/s (0.0080 Gb/s)" in error.why
    assert error.fix and error.fix.startswith("--rate-limit 1000000B/s")


def test_time_begins_with_the_first_look():
    account = RateAccount(RATE)
    account.check(0, 0, 1e6)
    assert refusal(account, BURST + 1, 1e6) is not None


def test_what_was_not_used_is_kept_for_a_while_only():
    saved = BURST + KEPT_S * SECOND
    for idle_s in (KEPT_S, 3600.0):
        account = begun()
        assert refusal(account, saved, 50 + idle_s) is None
        account = begun()
        assert refusal(account, saved + 2, 50 + idle_s) is not None


def test_what_is_counted_ahead_is_let_pass():
    assert refusal(begun(4096), BURST + 4096, 50.0) is None
    assert refusal(begun(4096), BURST + 4097, 50.0) is not None


def test_a_new_lease_is_no_new_burst():
    account = begun()
    assert refusal(account, BURST, 50.0) is None
    account.begin_lease()
    assert refusal(account, 1, 50.0) is not None
    account = begun(4096)
    assert refusal(account, BURST, 50.0) is None
    account.begin_lease()
    assert refusal(account, SECOND, 51.0) is None, "counts begin at 0, what is allowed goes on"
    assert refusal(account, SECOND + 2, 51.0) is not None


def test_what_is_sent_again_has_a_wider_account_of_its_own():
    account = begun()
    assert refusal(account, BURST, 50.0, again=AGAIN * BURST) is None
    error = refusal(account, BURST, 51.0, again=AGAIN * (BURST + SECOND) + 16)
    assert error is not None and error.code == "rate_exceeded" and "once more" in error.what


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("chunk", [4096, 100_000])
def test_a_client_that_keeps_to_its_pace_is_never_ended(seed, chunk):
    """Its bytes arrive late and in heaps, and its clock is a few percent fast."""
    rng = random.Random(seed)
    pace, account = Pace(RATE), begun()
    posted = arrived = 0
    stalled_until_s, now, theirs_s = 0.0, 50.0, 50.0
    while now < 50 + 300:
        now += rng.choice((0.001, 0.02, 0.3, 2.0))
        while theirs_s + pace.wait_s(theirs_s) <= 50 + (now - 50) * 1.05:
            theirs_s += pace.wait_s(theirs_s)
            posted += chunk
            pace.spend(chunk, theirs_s)
        if rng.random() < 0.01:
            stalled_until_s = now + rng.uniform(0, 20)
        if now >= stalled_until_s:
            arrived = posted
        account.check(arrived, 0, now)
    assert arrived > 0.9 * 300 * RATE


@pytest.mark.parametrize("factor", [1.3, 2.0, 50.0])
def test_a_client_that_goes_faster_is_ended_within_its_allowance(factor):
    account, now, moved = begun(), 50.0, 0.0
    while refusal(account, moved, now) is None:
        now += 0.01
        moved += factor * RATE * 0.01
    assert moved <= BURST + (now - 50) * SECOND + factor * RATE * 0.01
    assert now - 50 < BURST / (RATE * (factor - 1 - TOLERANCE)) + 0.05
