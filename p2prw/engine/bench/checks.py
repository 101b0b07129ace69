"""What can be said before anything runs: the steps of a measurement, and requests that contradict themselves."""

from __future__ import annotations

from dataclasses import dataclass

from p2prw.engine.bench.model import DEFAULT_SIZE_BYTES, BenchRequest
from p2prw.engine.bench.sizes import wanted_sizes
from p2prw.engine.client import Attached
from p2prw.engine.inject import parse_faults
from p2prw.engine.model import Operation
from p2prw.engine.pace import RateLimit, lower_limit
from p2prw.errors import HostError, RequestError
from p2prw.units import exact_size, format_rate, format_size, typed_size


@dataclass(frozen=True, slots=True)
class Step:
    """One test at one size."""

    test: str
    size_bytes: int
    messages: int | None
    """Of each queue pair; None where the time decides."""
    of: int
    """How many steps all operations have together; a sweep that is bounded has fewer."""


def plan_steps(request: BenchRequest, operation: Operation) -> list[Step]:
    """Return the steps of one operation in the order in which they run."""
    sizes = {test: wanted_sizes(request.sizes, request.sweep, DEFAULT_SIZE_BYTES[test]) for test in request.tests}
    of = sum(map(len, sizes.values())) * len(request.operations)
    return [
        Step(test, size, request.messages_for(test, operation, size), of)
        for test in request.tests
        for size in sizes[test]
    ]


def check_request(request: BenchRequest) -> None:
    """Raise RequestError where two wishes exclude each other."""
    faults = parse_faults(request.connection.inject) if request.connection.inject else None
    if faults is not None and faults.corrupt_offset is not None and (request.iterations, request.warm_up) != (1, 0):
        raise _usage(
            "--inject corrupt=OFFSET changes a byte of one message, which the next one overwrites",
            "a measurement sends the same bytes again and again",
            "--iters 1 --warm-up 0 --verify, or p2prw write --inject corrupt=4096",
        )
    if request.sweep and request.sizes:
        raise _usage(
            "-a and --sizes exclude each other", "one is every size, the other is those given", "give one of them"
        )
    if request.iterations is not None and request.duration_s is not None:
        raise _usage("--iters and --duration exclude each other", "a run ends by count or by time", "give one of them")
    if request.lat_by == "ping-pong" and ("lat" not in request.tests or Operation.WRITE not in request.operations):
        raise _usage(
            "--lat-by ping-pong measures the latency of writes, and none is asked for",
            "a READ is a round trip by itself: its latency is always by completion",
            "--test lat --op write --lat-by ping-pong",
        )
    if request.queue_pairs > 1 and "lat" in request.tests:
        raise _usage(
            f"latency is measured on one queue pair, not on {request.queue_pairs}",
            "a message alone on the wire is what is timed",
            "--test bw, or leave -q away",
        )
    if request.both_ways and "lat" in request.tests:
        raise _usage(
            "--bidirectional measures bandwidth, not latency",
            "a message alone on the wire has nothing against it",
            "--test bw, or leave -b away",
        )
    _check_walk(request)
    limit = request.connection.rate_limit_bytes_per_s
    if request.both_ways and limit is not None:
        raise _usage(
            "--rate-limit and --bidirectional exclude each other",
            "it bounds what is posted here; what the server posts it does not",
            "leave one of them away",
        )
    if limit is not None and "lat" in request.tests:
        raise _usage(
            "--rate-limit and a latency test exclude each other",
            "latency has one message on the wire, which no limit of posting slows",
            "--test bw, or leave --rate-limit away",
        )
    slowest = max(wanted_sizes(request.sizes, request.sweep, DEFAULT_SIZE_BYTES["bw"]))
    check_slowest(lower_limit(limit, None), slowest, request.connection.timeouts.idle_s)
    if request.min_bw_bytes_per_s is not None and "bw" not in request.tests:
        raise _usage("--min-bw without a bandwidth test", "only --test bw measures a rate", "--test bw or --test all")
    if request.max_latency_us and "lat" not in request.tests:
        raise _usage("--max-lat without a latency test", "only --test lat measures it", "--test lat or --test all")
    if any(size < 1 for size in request.sizes or ()):
        raise _usage("a message has at least one byte", "0 bytes move nothing", "--sizes 2")
    if request.duration_s is not None and request.duration_s <= 0:
        raise _usage("--duration must be more than nothing", "no message would be measured", "--duration 5s")


def _check_walk(request: BenchRequest) -> None:
    walk_bytes = request.walk_bytes
    if walk_bytes is None:
        return
    for other, given in (
        ("--bidirectional", request.both_ways),
        ("--lat-by ping-pong", request.lat_by == "ping-pong"),
        ("--verify", request.verify),
    ):
        if given:
            raise _usage(
                f"--walk and {other} exclude each other",
                f"{other} is of one message's bytes, and a walk has others each time",
                "leave one of them away",
            )
    if request.sweep:
        return  # ends where the walk does
    longest = max(max(wanted_sizes(request.sizes, False, DEFAULT_SIZE_BYTES[test])) for test in request.tests)
    if walk_bytes < longest:
        raise _usage(
            f"--walk {exact_size(walk_bytes)} has no room for a message of {exact_size(longest)}",
            "each queue pair goes round so much memory, message by message",
            f"--walk {typed_size(longest * 64)}, or smaller --sizes",
        )


def check_slowest(limit: RateLimit | None, slowest_bytes: int, idle_s: float) -> None:
    """Raise RequestError where a message takes so long under a limit that its run would count as dead."""
    if limit is None or slowest_bytes / limit.bytes_per_s <= idle_s:
        return
    option = "--rate-limit" if limit.by == "client" else "the server's --client-rate-limit"
    fits = max(1, int(limit.bytes_per_s * idle_s))
    raise _usage(
        f"a message of {format_size(slowest_bytes)} takes {slowest_bytes / limit.bytes_per_s:.0f} s at {option} "
        f"{format_rate(limit.bytes_per_s)}",
        "that is longer than --idle-timeout, after which a run counts as dead",
        f"--sizes {typed_size(1 << fits.bit_length() - 1)}, or a higher {option.rpartition(' ')[2]}",
    )


def check_staged(attached: Attached, region: str) -> None:
    """Raise HostError where bytes would pass through staging: that measures copies, not the wire."""
    if attached.grant.staging is not None:
        raise HostError(
            f"region {region!r} is staged: a measurement needs memory that is registered whole",
            why=f"its bytes ({attached.grant.route.memory}) reach the device through chunks of host memory",
            fix="p2prw serve --region scratch=host,size=64MiB; p2prw write measures a whole transfer into files",
            code="staged_region",
        )
    if attached.local is not None and attached.local.route.staged:
        raise HostError(
            f"local {attached.local.route.memory} memory is staged: a measurement needs it registered whole",
            why="its bytes reach the device through chunks of host memory",
            fix="leave --local-memory away: host memory of the size needed",
            code="staged_memory",
        )


def _usage(what: str, why: str, fix: str) -> RequestError:
    return RequestError(what, why=why, fix=fix, code="usage")
