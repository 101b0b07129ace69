"""p2prw's own measurement and another tool's, by turns: pairs, medians, an interval, and what differs."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace

from p2prw.against.child import check_tool, free_port, open_ports, run_pair
from p2prw.against.tools import Command, Found, Launch, Setup, Wanted, by_hand, check, parse_output, plan
from p2prw.engine import outcome
from p2prw.engine.bench.checks import plan_steps
from p2prw.engine.bench.measure import Event
from p2prw.engine.bench.model import Against, BenchRequest, BenchResult, BenchRow, Side
from p2prw.engine.bench.session import run_bench
from p2prw.engine.bench.statistics import ratio_of_medians
from p2prw.engine.deadline import Deadline
from p2prw.engine.model import Operation
from p2prw.engine.stop import StopRequest
from p2prw.errors import HostError, P2prwError, RequestError

_HOST = "127.0.0.1"
_SEED = 1
"""Of the bootstrap: the same figures give the same interval."""


def run_against(
    request: BenchRequest,
    command: Command,
    pairs: int,
    environ: Mapping[str, str],
    *,
    stop: StopRequest | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Event, None, BenchResult]:
    """Yield as `run_bench` does; return its result with a row for each of our runs and `against`.

    RequestError, here and now, where the two would not measure the same, HostError where there is no such tool. Every
    other failure is in the result.
    """
    wanted = _wanted(request)
    check(command, wanted)
    check_tool(command.program, {**environ, **command.environ})
    stop = StopRequest() if stop is None else stop
    return _Pairs(request, command, wanted, pairs, environ, stop, clock).run()


class _Pairs:
    def __init__(
        self,
        request: BenchRequest,
        command: Command,
        wanted: Wanted,
        pairs: int,
        environ: Mapping[str, str],
        stop: StopRequest,
        clock: Callable[[], float],
    ) -> None:
        self.request = request
        self.command = command
        self.wanted = wanted
        self.pairs = pairs
        self.environ = environ
        self.deadline = Deadline(clock, stop, request.connection.timeouts.time_limit_s)
        self.launch: Launch | None = None
        self.shown = ("", "")
        self.rows: list[BenchRow] = []
        self.found: list[Found] = []

    def run(self) -> Generator[Event, None, BenchResult]:
        result: BenchResult | None = None
        error: P2prwError | None = None
        for number in range(self.pairs):
            # Who goes first changes, so that what the first run leaves behind (heat, caches) is nobody's advantage.
            # Only the first pair must begin with ours: it says on which device the other one has to run.
            for ours in (True, False) if number % 2 == 0 else (False, True):
                try:
                    if ours:
                        self.deadline.check("between two runs")
                        result = yield from self._ours()
                        if result.error is not None:
                            return self._result(result, None)
                        if self.launch is None:
                            self.launch = self._plan(result)
                    else:
                        self._theirs()
                except P2prwError as caught:
                    error = caught
                    break
            if error is not None:
                break
        assert result is not None, "the first run of all is ours"
        return self._result(result, error)

    def _ours(self) -> Generator[Event, None, BenchResult]:
        left_s = self.deadline.left_s(float("inf"))
        timeouts = self.request.connection.timeouts
        if timeouts.time_limit_s is not None:
            timeouts = replace(timeouts, time_limit_s=left_s)
        connection = replace(self.request.connection, timeouts=timeouts)
        result = yield from run_bench(
            replace(self.request, connection=connection), stop=self.deadline.stop, clock=self.deadline.clock
        )
        self.rows += result.results
        return result

    def _plan(self, result: BenchResult) -> Launch:
        """Return what the other tool is told, now that our first run says on which device it has to run."""
        device = result.environment["device"]
        mtu = (result.environment.get("negotiated") or {}).get("path_mtu_bytes")
        row = self.rows[0]
        wanted = replace(self.wanted, depth=row.tx_depth, warm_up=row.warm_up_messages)
        if self.request.duration_s is not None:
            # By time: as many messages as ours took, so that the two run for about as long.
            wanted = replace(wanted, iterations=max(1, (row.out_messages or row.messages) // row.queue_pairs))
        if row.rate_limit_by == "server":
            raise HostError(
                f"--against {self.command.name}: the two would not measure the same",
                why="the server's --client-rate-limit holds p2prw back, and not the other tool",
                fix="serve without --client-rate-limit",
                code="unlike",
            )
        return plan(self.command, wanted, Setup(device["name"], device["driver"], mtu))

    def _theirs(self) -> None:
        assert self.launch is not None
        options, words = self.command.tool.options, self.launch.words
        port = free_port(os.getpid() + len(self.found), open_ports())
        address = (options.server_address, _HOST) if options.server_address else ()
        server = (self.command.program, *words, *address, options.server_port, str(port))
        client = (self.command.program, *words, options.client_port, str(port), _HOST)
        self.shown = (shlex.join(server), shlex.join(client))
        found = parse_output(
            self.command, run_pair(server, client, self.environ, port, self.deadline, assigned=self.command.environ)
        )
        if found.size_bytes not in (None, self.wanted.size_bytes):
            raise HostError(
                f"{self.command.name} measured {found.size_bytes} bytes, p2prw {self.wanted.size_bytes}",
                why="its output says so",
                fix=f"run it by hand: {by_hand(client, self.command.environ)}",
                code="unlike",
            )
        self.found.append(found)

    def _result(self, last: BenchResult, error: P2prwError | None) -> BenchResult:
        if error is not None:
            last = replace(
                last,
                status=outcome.status_of(error, planned=False),
                exit_code=error.exit_code,
                error=outcome.error_report(error),
                partial=bool(self.rows),
            )
        params = {**last.params, "against": shlex.join((self.command.program, *self.command.words)),
                  "pairs": self.pairs}  # fmt: skip
        return replace(last, params=params, results=tuple(self.rows), against=self._against())

    def _against(self) -> Against | None:
        whole = min(len(self.rows), len(self.found))
        if not whole:
            return None
        assert self.launch is not None
        theirs = [one.lat_us or one.bw_bytes_per_s or 0.0 for one in self.found[:whole]]
        ours = [figure(row, one_way=self.command.tool.always_both_ways) or 0.0 for row in self.rows[:whole]]
        ratio = ratio_of_medians(ours, theirs, seed=_SEED)
        latency = self.wanted.test == "lat"
        return Against(
            tool=self.command.name,
            test=self.wanted.test,
            operation=self.wanted.operation.value,
            size_bytes=self.wanted.size_bytes,
            environ=dict(self.command.environ),
            server=self.shown[0],
            client=self.shown[1],
            pairs=whole,
            p2prw=Side.of(ours, latency=latency),
            other=Side.of(theirs, latency=latency),
            ratio=ratio.ratio,
            ratio_low=ratio.low,
            ratio_high=ratio.high,
            differs=self.launch.differs,
        )


def _wanted(request: BenchRequest) -> Wanted:
    steps = [step for operation in request.operations for step in plan_steps(request, operation)]
    if len(steps) != 1:
        raise RequestError(
            f"--against compares one test of one operation at one size, not {len(steps)}",
            why="each needs pairs of its own",
            fix='--test bw --op write -s 64K --against "ib_write_bw"',
            code="usage",
        )
    if not _is_here(request.connection.peer.host):
        raise RequestError(
            f"--against runs both ends of the other tool on this host; {request.connection.peer} is another one",
            why="what crosses a network and what does not are no pair",
            fix="p2prw serve on this host, and its address",
            code="unlike",
        )
    (step,) = steps
    return Wanted(
        test=step.test,
        operation=request.operations[0],
        size_bytes=step.size_bytes,
        iterations=step.messages or 1000,
        depth=request.depth,
        queue_pairs=request.queue_pairs,
        lat_by=_lat_by(request, step.test),
        signal_every=request.connection.signal_every,
        both_ways=request.both_ways,
        walk_bytes=request.walk_bytes,
        is_limited=request.connection.rate_limit_bytes_per_s is not None,
    )


def figure(row: BenchRow, *, one_way: bool) -> float | None:
    """Return what is compared: of both directions the sum, or ours where the other tool says no more."""
    if row.test == "lat":
        return row.lat_p50_us
    return row.out_bw_bytes_per_s if row.both_ways and one_way else row.bw_bytes_per_s


def _lat_by(request: BenchRequest, test: str) -> str | None:
    if test != "lat":
        return None
    return request.lat_by if request.operations[0] is Operation.WRITE else "completion"


def _is_here(host: str) -> bool:
    from ipaddress import ip_address

    from p2prw.engine.providers.soft_address import local_addresses

    if host == "localhost":
        return True
    try:
        address = ip_address(host.split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or str(address) in {one.address for one in local_addresses()}
