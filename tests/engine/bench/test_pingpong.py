"""Write latency by ping-pong, against a real server in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.bench.model import BenchRequest, BenchResult
from p2prw.engine.bench.session import run_bench
from p2prw.engine.control import messages
from p2prw.engine.model import Operation
from p2prw.errors import RequestError

WRITE, READ = Operation.WRITE, Operation.READ


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with api.serving({"mem": "host,size=64KiB,pattern=words:5"}) as address:
        yield str(address)


def measure(target: str, **wishes: Any) -> BenchResult:
    wishes = {"tests": ("lat",), "lat_by": "ping-pong", "iterations": 30, "warm_up": 5, **wishes}
    connection = api.make_request(WRITE, target, wishes.pop("memory", "host"))
    result: BenchResult = api.finish(run_bench(BenchRequest(connection=connection, **wishes)))
    return result


def test_every_size_is_half_a_round_trip_and_the_bytes_arrive(served):
    result = measure(f"{served}/mem", sizes=(1, 8, 5000), verify=True)
    assert result.error is None and result.exit_code == 0
    for row, size in zip(result.results, (1, 8, 5000), strict=True):
        assert (row.size_bytes, row.lat_by, row.messages, row.verify) == (size, "ping-pong", 30, "verified")
        assert row.lat_min_us is not None and row.lat_p50_us is not None and row.lat_max_us is not None
        assert 0 < row.lat_min_us <= row.lat_p50_us <= row.lat_max_us
        assert sum(bucket.count for bucket in row.histogram) == 30
        # Two half round trips a message, one after the other, are the time of the run.
        assert row.lat_avg_us is not None
        assert 30 * 2 * row.lat_avg_us <= row.elapsed_s * 1e6 * 1.01


def test_more_messages_than_tags(served):
    result = measure(f"{served}/mem", sizes=(8,), iterations=600)
    assert [row.messages for row in result.results] == [600]


def test_reads_stay_by_completion(served):
    result = measure(f"{served}/mem", operations=(WRITE, READ), sizes=(8,))
    assert [(row.operation, row.lat_by) for row in result.results] == [("write", "ping-pong"), ("read", "completion")]


def test_by_time(served):
    (row,) = measure(f"{served}/mem", sizes=(8,), iterations=None, duration_s=0.1).results
    assert row.complete and row.messages > 0 and row.elapsed_s >= 0.1


def test_write_only_memory_is_not_given_back():
    with api.serving({"mem": "host,size=64KiB"}, access="w") as address:
        result = measure(f"{address}/mem", sizes=(8,))
    assert result.error is not None and result.error.code == "bad_right" and result.exit_code == 7


def test_an_older_server_is_named(served, monkeypatch):
    monkeypatch.setattr("p2prw.engine.server.client.CAPABILITIES", (messages.RESUME,))
    result = measure(f"{served}/mem", sizes=(8,))
    assert result.error is not None and (result.error.code, result.exit_code) == ("no_pingpong", 7)


@pytest.mark.parametrize("wishes", [{"tests": ("bw",)}, {"operations": (READ,)}])
def test_what_has_no_ping_pong_is_usage(served, wishes):
    with pytest.raises(RequestError, match="ping-pong"):
        measure(f"{served}/mem", **wishes)


def test_a_server_that_is_ready_for_another_lease_is_not_ready(served, monkeypatch):
    answer = messages.Ponging

    def lie(lease: str) -> messages.Ponging:
        return answer("f" * 16)

    monkeypatch.setattr("p2prw.engine.server.posting.Ponging", lie)
    result = measure(f"{served}/mem", sizes=(8,))
    assert result.exit_code == 7 and result.error is not None and result.error.code == "bad_lease"
