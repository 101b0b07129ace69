"""Which failures are tried again, how long that waits, and what one result says of several attempts."""

from __future__ import annotations

import pytest

from p2prw.engine.attempts import may_pass, merge, wait_s
from p2prw.engine.model import ErrorReport, TransferResult, TransferStats, VerifyReport
from p2prw.errors import InterruptedTransfer


def attempt(code: str | None = None, exit_code: int = 1, moved: int = 0, skipped: int = 0, **more) -> TransferResult:
    row = TransferStats("write", 100, moved, 2.0, moved / 2, 3, 2, 3, 10, timeouts=1, skipped_bytes=skipped)
    values = {
        "command": "write",
        "status": "ok" if code is None else "failed",
        "exit_code": 0 if code is None else exit_code,
        "params": {},
        "environment": {},
        "local_route": None,
        "remote_route": None,
        "results": (row,) if moved or skipped else (),
        "verify": VerifyReport("verified" if code is None else "unverified"),
        "phases": {"steady": 1.0},
        "error": None if code is None else ErrorReport(code, f"{code} happened"),
    }
    return TransferResult(**{**values, **more})


@pytest.mark.parametrize("code", ["peer_lost", "retry_exceeded", "idle_timeout", "flushed", "idle"])
def test_a_lost_peer_may_come_back(code):
    assert may_pass([attempt(code)])


@pytest.mark.parametrize(
    "code", ["verify_mismatch", "no_space", "usage", "interrupted", "time_limit", "bad_grant", None]
)
def test_what_will_not_pass_is_not_tried_again(code):
    assert not may_pass([attempt(code)])
    assert not may_pass([attempt("peer_lost"), attempt(code)])


@pytest.mark.parametrize("code", ["connect_refused", "busy", "connect_timeout", "too_many_clients"])
def test_a_peer_that_was_never_reached_is_not_waited_for(code):
    assert not may_pass([attempt(code, 3)])
    assert may_pass([attempt("peer_lost"), attempt(code, 3)])


def test_waits_double_up_to_a_bound():
    assert [wait_s(number) for number in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert wait_s(1000) == 30
    assert sum(wait_s(number) for number in range(1, 6)) > 30, "a server's --idle-timeout"


def test_one_attempt_is_its_own_result():
    one = attempt(moved=5)
    assert merge([one]) is one


def test_counts_are_summed_and_what_came_before_is_not():
    first = attempt("peer_lost", moved=40, skipped=10, warnings=("same", "one"))
    result = merge([first, attempt(moved=60, skipped=40, warnings=("same",))])
    (row,) = result.results
    assert (row.bytes, row.skipped_bytes, row.reconnects, row.elapsed_s) == (100, 10, 1, 4.0)
    assert row.bw_bytes_per_s == 25.0 and row.wqes_posted == 6 and row.timeouts == 2
    assert (result.status, result.exit_code, result.error, result.partial) == ("ok", 0, None, False)
    assert result.phases == {"steady": 2.0} and result.verify.status == "verified"
    assert result.warnings == ("same", "one", "attempt 1: peer_lost happened; tried again after 1.00 s")


def test_the_worst_error_is_told():
    result = merge([attempt("peer_lost", moved=40), attempt("connect_refused", 3)])
    assert (result.exit_code, result.error and result.error.code, result.partial) == (1, "peer_lost", True)
    assert result.results[0].reconnects == 1 and result.results[0].bytes == 40
    stopped = attempt("interrupted", InterruptedTransfer().exit_code, status="interrupted")
    result = merge([attempt("peer_lost", moved=40), stopped])
    assert (result.exit_code, result.status) == (130, "interrupted")
    assert merge([attempt("peer_lost"), attempt("peer_lost")]).results == ()
