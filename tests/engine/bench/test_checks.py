"""What a request leads to, and what it may not ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2prw import api
from p2prw.engine.bench.checks import check_request, check_slowest, check_staged, plan_steps
from p2prw.engine.bench.model import BenchRequest
from p2prw.engine.bench.session import run_bench
from p2prw.engine.bench.sizes import SWEEP
from p2prw.engine.model import Operation
from p2prw.engine.pace import RateLimit
from p2prw.errors import HostError, RequestError

READ, WRITE = Operation.READ, Operation.WRITE


@pytest.fixture
def ask():
    connection = api.make_request(WRITE, "127.0.0.1/mem", "host")

    def make(limit=None, **wishes):
        return BenchRequest(connection=replace(connection, rate_limit_bytes_per_s=limit), **wishes)

    return make


@pytest.mark.parametrize(
    ("wishes", "operation", "expected"),
    [
        ({}, WRITE, [("bw", 65536, 5000, 1)]),
        ({}, READ, [("bw", 65536, 1000, 1)]),
        ({"tests": ("lat",)}, WRITE, [("lat", 2, 1000, 1)]),
        ({"sizes": (8, 4), "iterations": 7}, WRITE, [("bw", 8, 7, 2), ("bw", 4, 7, 2)]),
        ({"duration_s": 1.0}, READ, [("bw", 65536, None, 1)]),
        (
            {"tests": ("bw", "lat"), "sizes": (8,), "operations": (WRITE, READ)},
            READ,
            [("bw", 8, 1000, 4), ("lat", 8, 1000, 4)],
        ),
    ],
)
def test_numbers_and_sizes_are_perftests_unless_given(ask, wishes, operation, expected):
    steps = plan_steps(ask(**wishes), operation)
    assert [(step.test, step.size_bytes, step.messages, step.of) for step in steps] == expected


def test_a_walk_goes_round_once_at_least_unless_a_number_is_given(ask):
    (step,) = plan_steps(ask(walk_bytes=64 << 20, sizes=(4096,)), WRITE)
    assert step.messages == 16384
    (step,) = plan_steps(ask(walk_bytes=64 << 20, sizes=(4096,), queue_pairs=64), WRITE)
    assert step.messages == 5000, "256 places for each of 64"
    (step,) = plan_steps(ask(walk_bytes=64 << 20, sizes=(4096,), iterations=7), WRITE)
    assert step.messages == 7


def test_a_byte_that_the_next_message_overwrites_is_not_flipped(ask):
    request = ask()
    for faults, refused in (("corrupt=100", True), ("corrupt=1%", False), (None, False)):
        asked = replace(request, connection=replace(request.connection, inject=faults))
        if refused:
            with pytest.raises(RequestError, match="corrupt=OFFSET"):
                check_request(asked)
            check_request(replace(asked, iterations=1, warm_up=0))
        else:
            check_request(asked)


def test_a_sweep_has_every_size(ask):
    assert [step.size_bytes for step in plan_steps(ask(sweep=True), READ)] == list(SWEEP)


@pytest.mark.parametrize(
    ("wishes", "word"),
    [
        ({"sweep": True, "sizes": (1,)}, "-a and --sizes"),
        ({"iterations": 1, "duration_s": 1.0}, "--iters and --duration"),
        ({"queue_pairs": 2, "tests": ("bw", "lat")}, "one queue pair"),
        ({"walk_bytes": 1 << 20, "both_ways": True}, "--walk and --bidirectional"),
        ({"walk_bytes": 1 << 20, "verify": True}, "--walk and --verify"),
        ({"walk_bytes": 1 << 20, "tests": ("lat",), "lat_by": "ping-pong"}, "--walk and --lat-by ping-pong"),
        ({"walk_bytes": 65535}, "--walk 65535 bytes has no room for a message of 64 KiB"),
        ({"min_bw_bytes_per_s": 1.0, "tests": ("lat",)}, "--min-bw"),
        ({"max_latency_us": {"p99": 1.0}}, "--max-lat"),
        ({"sizes": (4, 0)}, "at least one byte"),
        ({"duration_s": 0.0}, "--duration"),
        ({"limit": 1e9, "tests": ("bw", "lat")}, "--rate-limit and a latency test"),
        ({"limit": 1e4, "sizes": (64, 1 << 20)}, "takes 105 s at --rate-limit"),
    ],
)
def test_wishes_that_exclude_each_other_are_refused_before_anything_is_opened(ask, wishes, word):
    with pytest.raises(RequestError, match=word) as refused:
        run_bench(ask(**wishes))
    assert refused.value.exit_code == 2 and refused.value.why and refused.value.fix


def test_a_sound_request_passes(ask):
    check_request(ask(tests=("bw", "lat"), min_bw_bytes_per_s=1.0, max_latency_us={"p99": 5.0}, sizes=(1, 2)))


@pytest.mark.parametrize("which", ["remote", "local"])
def test_staged_memory_is_no_measurement(which):
    class Staged:
        class grant:
            staging = object() if which == "remote" else None

            class route:
                memory = "file"

        class local:
            class route:
                staged, memory = True, "file"

    with pytest.raises(HostError, match="registered whole") as refused:
        check_staged(Staged, "mem")  # type: ignore[arg-type]
    assert refused.value.code == ("staged_region" if which == "remote" else "staged_memory")


def test_a_servers_limit_is_named_where_a_message_is_too_big_for_it():
    check_slowest(None, 1 << 40, 30.0)
    check_slowest(RateLimit(1e6, "server"), 30_000_000, 30.0)
    with pytest.raises(RequestError, match="takes 31 s at the server's --client-rate-limit") as refused:
        check_slowest(RateLimit(1e6, "server"), 31_000_000, 30.0)
    assert refused.value.fix == "--sizes 16MiB, or a higher --client-rate-limit"
