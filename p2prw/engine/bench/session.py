"""A whole measurement: attach every queue pair, run every test at every size, report.

One operation after the other, each under leases of its own: exclusive, so that nobody else moves the memory meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from p2prw.engine import outcome
from p2prw.engine.bench.checks import Step, check_request, check_slowest, check_staged, plan_steps
from p2prw.engine.bench.measure import Event, Ledger, Measurement
from p2prw.engine.bench.model import BenchRequest, BenchResult
from p2prw.engine.bench.row import missed_thresholds
from p2prw.engine.bench.sizes import SWEEP, bounded_sweep, lane_room
from p2prw.engine.client import Attached, LeaseClient
from p2prw.engine.deadline import Deadline
from p2prw.engine.model import MemorySpec, Operation, TransferRequest
from p2prw.engine.peer import list_regions
from p2prw.engine.phases import PhaseClock
from p2prw.engine.stop import StopRequest
from p2prw.engine.verify import UNVERIFIED
from p2prw.errors import HostError, P2prwError, PeerRefusedError, RequestError
from p2prw.units import typed_size


def run_bench(
    request: BenchRequest, *, stop: StopRequest | None = None, clock: Callable[[], float] = time.monotonic
) -> Generator[Event, None, BenchResult]:
    """Yield BenchProgress a few times a second and each BenchRow when it is there; return the BenchResult.

    A failure is in the result, with what was measured before it. Only a request that contradicts itself raises
    (RequestError), here and now.
    """
    check_request(request)
    stop = StopRequest() if stop is None else stop  # not `or`: a request that is not set is false
    return _BenchRun(request, stop, clock).run()


class _BenchRun:
    """The state of one `run_bench`."""

    def __init__(self, request: BenchRequest, stop: StopRequest, clock: Callable[[], float]) -> None:
        self.request = request
        self.ledger = Ledger(
            PhaseClock(clock),
            verify=UNVERIFIED if request.verify else replace(UNVERIFIED, why=_why_unverified(request)),
        )
        self.deadline = Deadline(clock, stop, request.connection.timeouts.time_limit_s)
        self.warnings: list[str] = []
        self.first: LeaseClient | None = None

    def run(self) -> Generator[Event, None, BenchResult]:
        error: P2prwError | None = None
        try:
            for operation in self.request.operations:
                yield from self._operation(operation)
        except P2prwError as caught:
            error = caught
        self.ledger.phases.enter(None)
        partial = error is not None and any(row.messages for row in self.ledger.rows)
        return self._result(error or missed_thresholds(self.request, self.ledger.rows), partial)

    def _operation(self, operation: Operation) -> Generator[Event, None, None]:
        clients: list[LeaseClient] = []
        with ExitStack() as stack:
            # Also when the program drops the generator: every peer is told, and nothing stays open.
            stack.callback(self._close, clients)
            try:
                attached = self._attach(operation, clients)
                with ExitStack() as registered:
                    measurement = Measurement(
                        self.request, operation, clients, attached, self.deadline, self.ledger, registered
                    )
                    steps = self._steps(operation, min(one.grant.length for one in attached))
                    slowest = max(step.size_bytes for step in steps)
                    check_slowest(attached[0].rate_limit, slowest, self.request.connection.timeouts.idle_s)
                    for step in steps:
                        yield from measurement.measure(step)
                self.ledger.phases.enter("close")
                for client in clients:
                    client.release(keep=True)
            except P2prwError as error:
                if not clients:
                    raise
                raise clients[0].explain(error, None) from error

    def _steps(self, operation: Operation, room_bytes: int) -> list[Step]:
        steps = plan_steps(self.request, operation)
        if not self.request.sweep:
            return steps
        fitting, why = bounded_sweep(SWEEP, min(room_bytes, self.request.walk_bytes or room_bytes))
        if not fitting:
            raise HostError(
                f"region {self.request.connection.region!r} has no room for a message",
                why=why,
                fix="a smaller offset or fewer queue pairs; p2prw regions PEER shows the sizes",
                code="region_too_small",
            )
        if why:
            self.warnings.append(why)
        return [step for step in steps if step.size_bytes in fitting]

    def _attach(self, operation: Operation, clients: list[LeaseClient]) -> list[Attached]:
        """Open a lease and a queue pair for each lane, side by side in the region; all on one device."""
        request = self.request
        wanted = max(step.size_bytes for step in plan_steps(request, operation))
        span: int | None = request.walk_bytes or wanted
        if request.sweep and request.walk_bytes is None:
            # One queue pair takes what it is granted; several must know before what there is to be shared.
            span = self._share(wanted) if request.queue_pairs > 1 else None
        attached = []
        for index in range(request.queue_pairs):
            connection = _connection(request, operation, index, span, wanted)
            device = clients[0].device if clients else None
            client = LeaseClient(connection, self.deadline, self.ledger.phases, device=device)
            clients.append(client)
            self.first = self.first or client
            try:
                one = client.attach()
            except PeerRefusedError as error:
                if error.code == "region_too_small" and span is not None and (index or request.walk_bytes):
                    whole = request.connection.region_offset + request.queue_pairs * span
                    error.fix = f"a region of {typed_size(whole)} there, or less of -q, -s and --walk"
                raise
            except RequestError as error:
                if error.code == "size_does_not_fit" and span is not None:
                    option = "--sizes" if request.walk_bytes is None else "--walk"
                    error.what = f"{option} {typed_size(span)} is more than the local memory holds"
                    error.fix = f"a smaller {option}, or leave --local-memory away: host memory of the size needed"
                raise
            check_staged(one, request.connection.region)
            attached.append(one)
        return attached

    def _share(self, wanted: int) -> int:
        connection = self.request.connection
        regions = list_regions(
            connection.peer, connection.token, connection.timeouts, tls=connection.tls, stop=self.deadline.stop
        )
        length = next((one.length for one in regions if one.name == connection.region), None)
        if length is None:
            return wanted  # no such region, or one without a size: the server says what is wrong with it
        return min(wanted, max(1, lane_room(length - connection.region_offset, self.request.queue_pairs)))

    def _close(self, clients: list[LeaseClient]) -> None:
        self.ledger.phases.enter("close")
        for client in reversed(clients):
            client.abandon()
            client.close()

    def _result(self, error: P2prwError | None, partial: bool) -> BenchResult:
        client, ledger = self.first, self.ledger
        warnings = list(self.warnings)
        if client is not None:
            warnings += [*client.warnings, *getattr(client.device, "warnings", ())]
        environment = client.environment if client else outcome.environment(None)
        return BenchResult(
            status=outcome.status_of(error, planned=False),
            exit_code=error.exit_code if error else 0,
            params=_parameters(self.request),
            environment={**environment, **_clock_facts()},
            local_route=client.local_route if client else None,
            remote_route=client.remote_route if client else None,
            results=tuple(ledger.rows),
            verify=ledger.verify,
            phases=dict(ledger.phases.seconds),
            # Both operations may warn of the same.
            warnings=tuple(dict.fromkeys(warnings)),
            partial=partial,
            error=outcome.error_report(error) if error else None,
        )


def _connection(
    request: BenchRequest, operation: Operation, index: int, span: int | None, wanted: int
) -> TransferRequest:
    """Return the transfer request of one lane; `span` None takes what is granted, up to `wanted`."""
    connection = request.connection
    length = wanted if span is None else span
    memory = connection.memory
    if memory.kind == "host" and "size" not in memory.options:
        options = {**memory.options, "size": str(length)}
        memory = MemorySpec("host", None, options, ",".join(("host", *(f"{k}={v}" for k, v in options.items()))))
    return replace(
        connection,
        operation=operation,
        queue_pair=replace(
            connection.queue_pair,
            peer_writes=request.lat_by == "ping-pong" or (request.both_ways and operation is Operation.WRITE),
            peer_reads=request.both_ways and operation is Operation.READ,
        ),
        memory=memory,
        region_offset=connection.region_offset + index * length,
        size_bytes=span,
        chunk_bytes=wanted,
    )


def _why_unverified(request: BenchRequest) -> str:
    return "--verify compares the last generation" if request.walk_bytes is None else "a walk is not compared"


def _parameters(request: BenchRequest) -> dict[str, Any]:
    parameters = outcome.parameters(request.connection, None)
    for name in ("size_bytes", "chunk_bytes", "staging_bytes", "verify"):
        del parameters[name]
    return {
        **parameters,
        "operations": [operation.value for operation in request.operations],
        "tests": list(request.tests),
        "sizes_bytes": list(request.sizes) if request.sizes else None,
        "sweep": request.sweep,
        "iterations": request.iterations,
        "duration_s": request.duration_s,
        "warm_up_messages": request.warm_up,
        "queue_pairs": request.queue_pairs,
        "walk_bytes": request.walk_bytes,
        "post_list": request.post_list,
        "lat_by": request.lat_by,
        "bidirectional": request.both_ways,
        "signal_every": request.connection.signal_every,
        "verify": request.verify,
        "min_bw_bytes_per_s": request.min_bw_bytes_per_s,
        "max_latency_us": dict(request.max_latency_us),
    }


def _clock_facts() -> dict[str, Any]:
    info = time.get_clock_info("monotonic")
    return {"clock": info.implementation, "clock_resolution_s": info.resolution}
