"""Pairs by turns: a real measurement of ours, another tool that prints what was recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from p2prw import api
from p2prw.against.session import figure, run_against
from p2prw.against.tools import parse_command
from p2prw.engine.bench.model import BenchRequest, BenchResult
from p2prw.engine.model import Operation
from p2prw.errors import HostError, RequestError
from p2prw.units import KIB, MIB

WRITE, READ = Operation.WRITE, Operation.READ


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with api.serving({"mem": "host,size=256KiB"}) as address:
        yield f"{address}/mem"


@pytest.fixture
def compare(target, fake_tool):
    def run(line: str = "-t ucp_put_bw", *, pairs: int = 2, how: str = "", at: str = "", **wishes) -> BenchResult:
        request = BenchRequest(
            connection=api.make_request(WRITE, at or target, "host"),
            **{"sizes": (64 * KIB,), "iterations": 20, "warm_up": 5, **wishes},
        )
        steps = run_against(request, parse_command(f"FAKE={how} {fake_tool} {line}"), pairs, os.environ)
        return api.finish(steps)

    return run


def test_both_sides_the_ratio_and_what_differs(compare):
    result = compare()
    against = result.against
    assert (result.status, result.exit_code, len(result.results)) == ("ok", 0, 2)
    assert against is not None and against.pairs == 2
    assert against.p2prw.bw_bytes_per_s == tuple(row.bw_bytes_per_s for row in result.results)
    assert against.other.bw_median_bytes_per_s == pytest.approx(65.24 * MIB)
    assert against.ratio == pytest.approx(against.p2prw.bw_median_bytes_per_s / against.other.bw_median_bytes_per_s)
    assert against.ratio_low <= against.ratio <= against.ratio_high
    assert "-s 65536 -n 20 -O 128 -w 5 -f -p " in against.client and against.client.endswith("127.0.0.1")
    assert any("soft0" in text for text in against.differs)
    assert result.params["pairs"] == 2 and "ucp_put_bw" in result.params["against"]


def test_by_time_the_tool_sends_as_many_messages_as_we_did(compare):
    result = compare(iterations=None, duration_s=0.05, pairs=1)
    assert result.against is not None and f"-n {result.results[0].messages} " in result.against.client


@pytest.mark.parametrize(("how", "code"), [("fails", "tool_failed"), ("mute", "tool_output")])
def test_a_tool_that_fails_ends_the_run_with_what_was_measured(compare, how, code):
    result = compare(how=how)
    assert result.error is not None and (result.error.code, result.exit_code) == (code, 3)
    assert result.partial and len(result.results) == 1 and result.against is None


def test_a_missing_tool_is_told_before_anything_is_measured(target):
    request = BenchRequest(connection=api.make_request(WRITE, target, "host"))
    nothing: dict[str, str] = {}
    for environ in (os.environ, nothing):
        with pytest.raises(HostError) as caught:
            run_against(request, parse_command("/nowhere/ucx_perftest -t ucp_put_bw"), 1, environ)
        assert caught.value.code == "no_tool" and "ucx-utils" in (caught.value.fix or "")


def test_our_own_failure_is_the_result(compare, target):
    result = compare(at=target.replace("/mem", "/none"))
    assert result.error is not None and result.error.code == "unknown_region" and result.against is None


@pytest.mark.parametrize(
    ("wishes", "line"),
    [
        ({"sizes": (KIB, 2 * KIB)}, "-t ucp_put_bw"),
        ({"operations": (WRITE, READ)}, "-t ucp_put_bw"),
        ({"operations": (READ,)}, "-t ucp_put_bw"),
        ({"at": "192.0.2.1:18515/mem"}, "-t ucp_put_bw"),
        ({"at": "somewhere:18515/mem"}, "-t ucp_put_bw"),
        ({}, "-t ucp_put_bw -s 4096"),
        ({"tests": ("lat",)}, "-t ucp_put_lat"),
    ],
)
def test_unlike_things_are_refused_before_anything_runs(compare, wishes, line):
    with pytest.raises(RequestError):
        compare(line, **wishes)


def test_both_directions_against_a_tool_that_has_one_are_refused(compare):
    with pytest.raises(RequestError, match="ucp_put_bw"):
        compare(both_ways=True)


def test_both_directions_are_the_sum_or_ours_as_the_other_tool_counts(target):
    row = api.bench(target, sizes=(KIB,), iterations=20, both_ways=True).results[0]
    assert figure(row, one_way=False) == row.bw_bytes_per_s
    assert figure(row, one_way=True) == row.out_bw_bytes_per_s
    alone = api.bench(target, sizes=(KIB,), iterations=20).results[0]
    assert figure(alone, one_way=True) == alone.bw_bytes_per_s
