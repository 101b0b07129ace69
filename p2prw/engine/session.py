"""One transfer from the client's side, phase by phase: attach (`client.py`), then

    [resume ->] first_byte, steady, drain -> verify -> close

With `--retries` all of it again where the way to the peer, or the peer, was lost. `run_transfer` never raises a
P2prwError: the outcome, its error and its exit code are in the TransferResult, so that a failure says what was moved as
well as a success does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

from p2prw.engine import attempts, outcome
from p2prw.engine.attach import make_scratch
from p2prw.engine.client import Attached, LeaseClient
from p2prw.engine.control.messages import RESUME
from p2prw.engine.deadline import Deadline
from p2prw.engine.events import Progress
from p2prw.engine.memory.file_resume import ResumableSink
from p2prw.engine.model import (
    Offer,
    Operation,
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
from p2prw.engine.progress import PROGRESS_INTERVAL_S, LoopStats
from p2prw.engine.signalling import signal_interval
from p2prw.engine.stop import StopRequest
from p2prw.engine.verify import UNVERIFIED
from p2prw.errors import P2prwError, RequestError, VerifyError

__all__ = ["list_regions", "run_transfer"]

_STARTING_OVER = "--resume: starting over"


def run_transfer(
    request: TransferRequest,
    *,
    dry_run: bool = False,
    keep_plan: bool = False,
    stop: StopRequest | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[Progress, None, TransferResult]:
    """Yield Progress a few times a second and return the TransferResult; raises no P2prwError.

    `dry_run` does everything but post work requests: the plan is in `result.plan`, as with `keep_plan`. `clock` is
    monotonic seconds.
    """
    stop = StopRequest() if stop is None else stop  # not `or`: a request that is not set is false
    deadline = Deadline(clock, stop, request.timeouts.time_limit_s)
    results: list[TransferResult] = []
    kept = False
    while True:
        run = _TransferRun(request, dry_run, keep_plan, deadline, clock, attempt=len(results))
        results.append((yield from run.run()))
        kept = run.kept if run.kept is not None else kept
        if len(results) > request.retries or not attempts.may_pass(results):
            break
        try:
            yield from _pause(attempts.wait_s(len(results)), run, deadline, sleep)
        except P2prwError as error:
            # Stopped, or out of time, between two attempts.
            results[-1] = replace(
                results[-1],
                status=outcome.status_of(error, planned=False),
                exit_code=error.exit_code,
                error=outcome.error_report(error),
            )
            break
    result = attempts.merge(results)
    if kept and result.error is not None:
        note = "what has arrived is kept: the same command with --resume goes on from there"
        result = replace(result, warnings=(*result.warnings, note))
    return result


def _pause(
    wait_s: float, run: _TransferRun, deadline: Deadline, sleep: Callable[[float], None]
) -> Generator[Progress, None, None]:
    """Wait, with a look at stop and time limit a few times a second."""
    end_s = deadline.clock() + wait_s
    while (left_s := end_s - deadline.clock()) > 0:
        deadline.check("while waiting to connect again")
        yield Progress(
            phase="reconnect",
            bytes_done=run.skipped_bytes + run.stats.bytes_done,
            bytes_total=run.client.length_bytes or 0,
            elapsed_s=0.0,
            bw_bytes_per_s=0.0,
            wqes_in_flight=0,
            wqes_total=run.stats.wqes_posted,
            route="",
            reconnects=run.attempt + 1,
        )
        sleep(min(left_s, PROGRESS_INTERVAL_S))


class _TransferRun:
    """The state of one attempt of `run_transfer`."""

    def __init__(
        self,
        request: TransferRequest,
        dry_run: bool,
        keep_plan: bool,
        deadline: Deadline,
        clock: Callable[[], float],
        attempt: int,
    ) -> None:
        self.request = request
        self.dry_run = dry_run
        self.keep_plan = keep_plan or dry_run
        self.attempt = attempt
        self.phases = PhaseClock(clock)
        # A dry run leaves alone what is kept; what a drive writes past us (--via) cannot be noted.
        resume = (request.resume or request.retries > 0) and not dry_run and request.via is None
        self.client = LeaseClient(request, deadline, self.phases, resume=resume)
        self.attached: Attached | None = None
        self.skipped_bytes = 0
        self.kept: bool | None = None
        """After a failure: something lies at the sink that can be gone on with; None: not known here."""
        # --- what the result says, filled on the way
        self.stats = LoopStats()
        self.verify: VerifyReport = UNVERIFIED
        self.plan: dict[str, Any] | None = None

    def run(self) -> Generator[Progress, None, TransferResult]:
        error: P2prwError | None = None
        try:
            try:
                for progress in self._transfer():
                    yield progress if not self.attempt else replace(progress, reconnects=self.attempt)
            except P2prwError as caught:
                error = self.client.explain(caught, self.stats.bytes_done)
                self._keep_or_forget(error)
            self.phases.enter("close")
        finally:
            # Also when the program drops the generator: the peer is told, and nothing stays open.
            self.client.abandon()
            self.client.close()
        self.phases.enter(None)
        return self._result(error)

    def _transfer(self) -> Generator[Progress, None, None]:
        request, phases, client = self.request, self.phases, self.client
        if request.resume and (request.shared or request.via is not None):
            raise RequestError(
                f"--resume and {'--shared' if request.shared else '--via'} exclude each other",
                why="what others may overwrite cannot be gone on with"
                if request.shared
                else "a drive writes past the block digests that resuming needs",
                fix="leave one of them away",
                code="usage",
            )
        attached = self.attached = client.attach()
        local = attached.local
        if local is None:
            self.verify = VerifyReport(status="verified", method="owner-cpu")
        if self.keep_plan:
            self.plan = self._describe(attached)
        if local is not None and not self.dry_run:
            link, grant, limits = attached.link, attached.grant, attached.limits
            scratch = make_scratch(client.stack, link.device)
            mover = Mover(request, link, grant, limits, scratch, local.route, self.stats)
            ranges = (yield from self._survey(mover, attached)) if client.resume else None
            verifies = request.verify and not request.shared
            if verifies and ranges is None:
                mover.digest_ahead(attached.memory)
            yield from mover.move(local, phases, ranges)
            if verifies:
                phases.enter("verify")
                self.verify = yield from mover.verify(attached.memory)
                if self.verify.status != "verified":
                    raise verify_error(self.verify)
        phases.enter("close")
        client.release(keep=not self.dry_run)

    def _survey(self, mover: Mover, attached: Attached) -> Generator[Progress, None, list[tuple[int, int]] | None]:
        """Return the ranges that are still to be moved, None for all of it; says why where that is no resume."""
        client, memory, held = self.client, attached.memory, attached.grant.held
        manifest, restarted, fresh = attached.notes_arrivals, None, held is None
        if isinstance(memory, ResumableSink):
            restarted, fresh = memory.restarted, not memory.keeps
        elif held is not None:
            restarted, fresh = held.restarted, held.fresh
        elif self.request.operation is Operation.READ:
            # A block device holds what was written; other memory went with the process that had it.
            fresh = Offer.STAGED not in memory.offers
        if restarted is not None:
            client.warnings.append(f"{_STARTING_OVER}: {restarted} since the transfer that broke off")
        if fresh or not (manifest or self.request.resume or self.attempt):
            if self.request.resume and not manifest and restarted is None:
                old = self.request.operation is Operation.WRITE and RESUME not in client.capabilities
                why = "the server's release cannot" if old else "this sink keeps nothing"
                client.warnings.append(f"--resume: {why}, all of it is moved")
            return None
        self.phases.enter("resume")
        survey = yield from mover.survey(memory, manifest=manifest)
        if survey.changed_offset is not None:
            client.start_over(attached)
            client.warnings.append(
                f"{_STARTING_OVER}: what arrived before differs from the source at byte {survey.changed_offset}"
            )
        self.skipped_bytes = survey.held_bytes
        return survey.missing

    def _keep_or_forget(self, error: P2prwError) -> None:
        """After a failure: bytes that failed verification are not gone on with; others are."""
        attached, client = self.attached, self.client
        if attached is None or not client.resume or not attached.notes_arrivals:
            return
        if isinstance(error, VerifyError):
            self.kept = False
            try:
                client.start_over(attached)
            except P2prwError:
                # The peer is gone; then the digests will tell the next one.
                pass
        elif self.skipped_bytes or self.stats.bytes_done:
            self.kept = True

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
                    request.operation,
                    client.length_bytes,
                    client.chunk_bytes,
                    self.stats,
                    client.queue_pair.counters,
                    self.skipped_bytes,
                    client.rate_limit,
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
