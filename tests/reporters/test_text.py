"""Plain lines: when they come, what they say."""

from __future__ import annotations

import io

import pytest

from p2prw.engine.events import Progress
from p2prw.engine.model import (
    MemorySpec,
    Operation,
    PeerAddress,
    RouteAttempt,
    RouteReport,
    TransferRequest,
    TransferResult,
    TransferStats,
    VerifyReport,
)
from p2prw.engine.outcome import error_report
from p2prw.errors import HostError
from p2prw.reporters.output import Output
from p2prw.reporters.text import QuietView, TextView, error_lines, progress_line, result_lines, route_text, time_left_s

REQUEST = TransferRequest(
    operation=Operation.READ,
    peer=PeerAddress("::1", 9),
    region="r",
    region_offset=4096,
    memory=MemorySpec("file", "a", {}, "file:a"),
)
HALF = Progress("steady", 32 << 20, 64 << 20, 1.0, 32 * 2.0**20, 48, 64, "cpu", 2)


def result(**changes):
    values = {
        "command": "read",
        "status": "ok",
        "exit_code": 0,
        "params": {},
        "environment": {},
        "local_route": None,
        "remote_route": None,
        "results": (TransferStats("read", 100, 100, 0.5, 200.0, 4, 1, 3, 32, 5, 1, 2, 3),),
        "verify": VerifyReport("unverified", why="shared"),
        "phases": {},
    }
    return TransferResult(**{**values, **changes})


def test_progress_line_has_every_figure():
    line = progress_line(HALF)
    for part in ("steady", "32 MiB of 64 MiB", "32.0 MiB/s (0.27 Gb/s)", "1.00 s left", "48 in flight", "route cpu"):
        assert part in line
    assert line.endswith("2 retries")


def test_no_time_left_without_a_rate():
    assert time_left_s(Progress("map", 0, 10, 0.0, 0.0, 0, 1, "cpu")) is None


def test_a_wait_before_anything_moves_is_a_line():
    stream = io.StringIO()
    TextView(Output(stream)).waiting("waiting for the grant")
    QuietView(Output(stream)).waiting("nothing")
    assert stream.getvalue() == "waiting for the grant\n"


def test_a_line_every_few_seconds():
    stream = io.StringIO()
    now = [0.0]
    view = TextView(Output(stream), clock=lambda: now[0], interval_s=2.0)
    view.started(REQUEST)
    for tenth in range(70):
        now[0] = tenth / 10
        view.progress(HALF)
    view.warning("slow")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "read [::1]:9/r+4096 -> file:a"
    assert len(lines) == 1 + 3 + 1
    assert lines[-1] == "warning: slow"


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (RouteReport("cpu", "cpu", False, "bar", "soft0", "soft"), "cpu (not peer-to-peer), bar memory, soft0 [soft]"),
        (RouteReport("dmabuf", "nic", True, "vfio", "mlx5_0", "mlx5"), "dmabuf (peer-to-peer)"),
        (RouteReport("pin", "nic", False, "host", "mlx5_0", "mlx5"), "pin (moved by the NIC, not peer-to-peer)"),
        (RouteReport("cpu", "cpu", False, "file", "soft0", "soft", staged=True), "file memory, staged"),
        (None, "not reached"),
    ],
)
def test_routes_tell_the_truth(route, words):
    assert words in route_text(route)


def test_result_names_retries_attempts_and_warnings():
    attempts = (RouteAttempt("pin", False, "EFAULT"), RouteAttempt("bounce", True))
    route = RouteReport("bounce", "cpu", False, "bar", "rxe0", "rxe", attempts=attempts)
    text = "\n".join(result_lines(result(local_route=route, warnings=("careful",)), REQUEST))
    assert "read      100 B (100 bytes)  [::1]:9/r+4096 -> file:a" in text
    assert "local: pin was not taken: EFAULT" in text
    assert "5 packets sent again, 2 sequence NAKs, 1 RNR NAK, 3 timeouts" in text
    assert "unverified: shared" in text
    assert "warning   careful" in text


def test_nothing_to_move_has_no_rate_and_no_digest():
    row = TransferStats("read", 0, 0, 0.0, None, 0, 0, 0, 32)
    verify = VerifyReport("verified", "owner-cpu")
    text = "\n".join(result_lines(result(results=(row,), verify=verify), None))
    assert "None" not in text and "rate" not in text
    assert "verified  nothing to compare: 0 bytes" in text


def test_a_failure_without_a_byte_is_told_by_its_error_alone():
    row = TransferStats("read", 200, 0, 0.0, None, 0, 0, 0, 32)
    route = RouteReport("pin", "nic", False, "host", "a", "b", attempts=(RouteAttempt("odp", False, "EFAULT"),))
    failed = result(
        status="failed",
        results=(row,),
        error=error_report(HostError("no", why="because", fix="do")),
        local_route=route,
        phases={"map": 1.0},
        warnings=("careful",),
    )
    assert list(result_lines(failed, REQUEST)) == ["route     local: odp was not taken: EFAULT", "warning   careful"]


def test_partial_result_says_so():
    row = TransferStats("read", 200, 100, 0.5, 200.0, 4, 1, 3, 32)
    assert (
        next(result_lines(result(results=(row,), partial=True), None))
        == "read      100 B (100 bytes) of 200 B, partial"
    )


def test_mismatch_names_offset_and_class():
    verify = VerifyReport(
        "mismatch", "owner-cpu", "xxh3-128", 1, 1, 0.1, "aa", "bb", first_bad_offset=4096, classification="all_ones"
    )
    text = "\n".join(result_lines(result(verify=verify), None))
    assert "MISMATCH at offset 4096: all_ones; local aa, remote bb" in text


def test_error_block():
    assert error_lines(HostError("no\x07", why="because", fix="do")) == [
        "Error: no\\x07",
        "  why:  because",
        "  try:  do",
    ]
