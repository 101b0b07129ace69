"""One transfer from the client's side, phase by phase: attach (`client.py`), then

    first_byte, steady, drain -> verify -> close

`run_transfer` never raises a P2prwError: the outcome, its error and its exit code are in the TransferResult, so that a
failure says what was moved as well as a success does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

from p2prw.engine import outcome
from p2prw.engine.attach import make_scratch
from p2prw.engine.client import Attached, LeaseClient
from p2prw.engine.deadline import Deadline
from p2prw.engine.events import Progress
from p2prw.engine.model import (
    RemoteSegment,
    TransferRequest,
    TransferResult,
    TransferStats,
    VerifyReport,
)
from p2prw.engine.mover import Mover, verify_error
from p2prw.engine.peer import list_regions
from p2prw.engine.phases import PhaseClock
from p2prw.engine.plan import describe_plan
from p2prw.engine.stop import StopRequest
from p2prw.engine.transfer import LoopStats, signal_interval
from p2prw.engine.verify import UNVERIFIED
from p2prw.errors import P2prwError

__all__ = ["list_regions", "run_transfer"]


def run_transfer(
    request: TransferRequest,
    *,
    dry_run: bool = False,
    stop: StopRequest | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Progress, None, TransferResult]:
    """Yield Progress a few times a second and return the TransferResult; raises no P2prwError.

    `dry_run` does everything but post work requests: the plan is in `result.plan`. `clock` is monotonic seconds.
    """
    stop = StopRequest() if stop is None else stop  # not `or`: a request that is not set is false
    return (yield from _TransferRun(request, dry_run, stop, clock).run())


class _TransferRun:
    """The state of one `run_transfer`."""

    def __init__(self, request: TransferRequest, dry_run: bool, stop: StopRequest, clock: Callable[[], float]) -> None:
        self.request = request
        self.dry_run = dry_run
        self.phases = PhaseClock(clock)
        self.client = LeaseClient(request, Deadline(clock, stop, request.timeouts.time_limit_s), self.phases)
        # --- what the result says, filled on the way
        self.stats = LoopStats()
        self.verify: VerifyReport = UNVERIFIED
        self.plan: dict[str, Any] | None = None

    def run(self) -> Generator[Progress, None, TransferResult]:
        error: P2prwError | None = None
        try:
            try:
                yield from self._transfer()
            except P2prwError as caught:
                error = self.client.explain(caught, self.stats.bytes_done)
            self.phases.enter("close")
        finally:
            # Also when the program drops the generator: the peer is told, and nothing stays open.
            self.client.abandon()
            self.client.close()
        self.phases.enter(None)
        return self._result(error)

    def _transfer(self) -> Generator[Progress, None, None]:
        request, phases, client = self.request, self.phases, self.client
        attached = client.attach()
        local = attached.local
        if local is None:
            self.verify = VerifyReport(status="verified", method="owner-cpu")
        if self.dry_run:
            self.plan = self._describe(attached)
        elif local is not None:
            link, grant, limits = attached.link, attached.grant, attached.limits
            scratch = make_scratch(client.stack, link.device)
            mover = Mover(request, link, grant, limits, scratch, local.route, self.stats)
            yield from mover.move(local, phases)
            if request.verify and not request.shared:
                phases.enter("verify")
                self.verify = yield from mover.verify(attached.memory)
                if self.verify.status != "verified":
                    raise verify_error(self.verify)
        phases.enter("close")
        client.release(keep=not self.dry_run)

    def _describe(self, attached: Attached) -> dict[str, Any]:
        """Return the plan of the transfer; where an end is staged, of one chunk, and how many chunks there are."""
        grant, local, limits = attached.grant, attached.local, attached.limits
        depth = self.request.queue_pair.depth
        segments = grant.staging.slots[:1] if grant.staging is not None else grant.segments
        remote = tuple(RemoteSegment(s.address, s.length, s.rkey) for s in segments)
        length = grant.length
        sizes = [grant.staging.chunk_bytes] if grant.staging is not None else []
        if local is not None and local.end.span_bytes is not None:
            sizes.append(local.end.span_bytes)
        chunk = min([*sizes, length])
        plan = describe_plan(
            local.vec if local is not None else (),
            remote,
            self.request.operation,
            limits,
            depth=depth,
            signal_every=signal_interval(depth, self.client.chunk_bytes, self.request.signal_every),
            length=chunk,
        )
        if sizes:
            plan["staging"] = {"chunk_bytes": chunk, "chunks": -(-length // chunk) if chunk else 0}
        plan["transfer_bytes"] = length
        return plan

    def _result(self, error: P2prwError | None) -> TransferResult:
        request, client = self.request, self.client
        rows: tuple[TransferStats, ...] = ()
        if client.queue_pair is not None and client.length_bytes is not None and not self.dry_run:
            rows = (
                outcome.stats_row(
                    request.operation, client.length_bytes, client.chunk_bytes, self.stats, client.queue_pair.counters
                ),
            )
        verify = self.verify
        if request.shared:
            verify = replace(UNVERIFIED, why="shared: other clients may write to the same bytes")
        elif not request.verify:
            verify = replace(UNVERIFIED, why="--no-verify")
        elif self.dry_run:
            verify = replace(UNVERIFIED, why="dry run")
        return TransferResult(
            command=request.operation.value,
            status=outcome.status_of(error, planned=self.dry_run),
            exit_code=error.exit_code if error else 0,
            params=outcome.parameters(request, client.length_bytes),
            environment=client.environment,
            local_route=client.local_route,
            remote_route=client.remote_route,
            results=rows,
            verify=verify,
            phases=dict(self.phases.seconds),
            warnings=(*client.warnings, *getattr(client.device, "warnings", ())),
            partial=error is not None and self.stats.bytes_done > 0,
            error=outcome.error_report(error) if error else None,
            plan=self.plan,
        )
