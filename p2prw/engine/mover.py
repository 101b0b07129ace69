"""Moves and verifies one granted transfer: drives the loop, times its phases, compares digests, reads blocks back."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from p2prw.engine import routes
from p2prw.engine.ahead import SourceAhead, source_ahead
from p2prw.engine.attach import SCRATCH_BYTES, LocalAttachment, Scratch, attach_remote
from p2prw.engine.control.messages import Digests, Grant
from p2prw.engine.ends import DirectLocal, LocalEnd, RemoteEnd
from p2prw.engine.events import Progress
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.memory.via import poison_at
from p2prw.engine.model import DmaSegment, Operation, RouteReport, TransferRequest, VerifyReport
from p2prw.engine.pace import Pace, lower_limit, pace_at
from p2prw.engine.peer import PeerLink
from p2prw.engine.phases import PhaseClock
from p2prw.engine.progress import PROGRESS_INTERVAL_S, LoopStats
from p2prw.engine.resume import Survey
from p2prw.engine.rw import RwLimits
from p2prw.engine.signalling import signal_interval
from p2prw.engine.transfer import LoopSettings, TransferLoop
from p2prw.engine.verify import Previous, Verifier
from p2prw.errors import P2prwError, VerifyError

Report = TypeVar("Report")


@dataclass(slots=True)
class Mover:
    """One granted transfer whose ends are attached. `stats` is filled while it runs."""

    request: TransferRequest
    link: PeerLink
    grant: Grant
    limits: RwLimits
    scratch: Scratch
    route: RouteReport
    """How our end reaches its memory."""
    stats: LoopStats = field(default_factory=LoopStats)
    _pace: Pace | None = field(init=False)
    _ahead: SourceAhead | None = None

    def __post_init__(self) -> None:
        self._pace = pace_at(lower_limit(self.request.rate_limit_bytes_per_s, self.grant.rate_limit_bytes_per_s))

    def digest_ahead(self, memory: MemorySource) -> None:
        """Have the source digested while `move` runs, where that takes nothing from it; `memory` is ours."""
        grant, operation = self.grant, self.request.operation
        remote = routes.from_wire(grant.route)
        self._ahead = source_ahead(self.link.channel, grant.lease, operation, self.route, remote, memory, grant.length)

    def move(
        self, local: LocalAttachment, phases: PhaseClock, ranges: Sequence[tuple[int, int]] | None = None
    ) -> Generator[Progress, None, None]:
        """Move every byte of the grant, or those of `ranges`; raises what `TransferLoop.run` raises.

        Books three phases. Progress counts what is not in `ranges` as done.
        """
        clock, whole = self.link.deadline.clock, self.grant.length
        if ranges is None:
            ranges = ((0, whole),)
        done = whole - sum(end - start for start, end in ranges)
        phases.enter("first_byte")
        began_s = clock()
        try:
            for start, end in ranges:
                for progress in self._move_range(local, start, end - start):
                    yield progress if end - start == whole else _within(progress, done, whole)
                done += end - start
        finally:
            phases.enter(None)
            ended_s = clock()
            # The loop knows when its first and last completion came; the three phases share its time by that.
            first_s = min(self.stats.first_completion_s or ended_s, ended_s)
            last_s = max(first_s, self.stats.last_completion_s or ended_s)
            phases.seconds["first_byte"] = first_s - began_s
            phases.seconds["steady"] = last_s - first_s
            phases.seconds["drain"] = max(0.0, ended_s - last_s)
            if self._ahead is not None:
                self._ahead.stop()

    def _move_range(self, local: LocalAttachment, start: int, length_bytes: int) -> Generator[Progress, None, None]:
        operation = self.request.operation
        local.end.start_at(start)
        remote = attach_remote(self.link.channel, self.grant, operation, base_offset=start)
        loop = self._loop(operation, local.end, remote, length_bytes)
        loop.first_wr_id = self.stats.wqes_posted
        loop.extra_filenos = local.filenos
        if self.grant.flushable:
            loop.flush_sge = self.scratch.sge
        loop.pace = self._pace
        if self._ahead is not None:
            loop.take_in_digests = self._ahead.take_in
        try:
            yield from loop.run()
        finally:
            self.stats.add(loop.stats)

    def survey(self, memory: MemorySource, *, manifest: bool) -> Generator[Progress, None, Survey]:
        """Find out what has arrived before; `manifest`: the sink notes what arrives."""
        survey = Survey(
            channel=self.link.channel,
            lease=self.grant.lease,
            operation=self.request.operation,
            local=memory,
            length_bytes=self.grant.length,
            manifest=manifest,
            expect=self._expect_digests,
            read_remote=self.read_back,
            tick=self._tick,
        )
        yield from self._compared(survey.run(), "resume")
        return survey

    def verify(self, memory: MemorySource, *, reverse: bool = False) -> Generator[Progress, None, VerifyReport]:
        """Compare both ends and return the report, whatever it says. Raises what the waits raise.

        `reverse`: what the server did with `memory` of ours, by the same operation.
        """
        operation = self.request.operation
        # What the server READ is in memory of its own, to which we have no key.
        read_by_peer = reverse and operation is Operation.READ
        if reverse:
            # Seen from here the bytes went the other way.
            operation = Operation.WRITE if read_by_peer else Operation.READ
        verifier = Verifier(
            channel=self.link.channel,
            lease=self.grant.lease,
            operation=operation,
            local=memory,
            length_bytes=self.grant.length,
            clock=self.link.deadline.clock,
            expect=self._expect_digests,
            read_remote=(lambda _offset, _length: None) if read_by_peer else self.read_back,
            tick=self._tick,
            previous=() if reverse else self._previous(memory),
            reverse=read_by_peer,
            ahead=self._ahead,
        )
        return (yield from self._compared(verifier.run(), "verify"))

    def _expect_digests(self, name: str) -> Digests:
        page: Digests = self.link.expect(Digests, name, self.request.timeouts.idle_s)
        return page

    def _tick(self) -> None:
        self.link.device.pump()
        self.link.deadline.check("while comparing digests")

    def _compared(self, steps: Generator[int, None, Report], phase: str) -> Generator[Progress, None, Report]:
        """Run a comparison to its end; its steps are bytes compared so far."""
        clock = self.link.deadline.clock
        next_s = clock()
        while True:
            try:
                compared = next(steps)
            except StopIteration as finished:
                report: Report = finished.value
                return report
            if clock() >= next_s:
                next_s = clock() + PROGRESS_INTERVAL_S
                yield Progress(
                    phase=phase,
                    bytes_done=compared,
                    bytes_total=self.grant.length,
                    elapsed_s=self.stats.elapsed_s,
                    bw_bytes_per_s=0.0,
                    wqes_in_flight=0,
                    wqes_total=self.stats.wqes_posted,
                    route=self.route.chosen,
                )

    def _previous(self, memory: MemorySource) -> tuple[Previous, ...]:
        """Return what is known of what was there before: the poison of a ring, the `pattern=` of a sink of ours."""
        rings = [
            Previous(
                poison_at,
                f"they are the poison of the {side} ring in p2pmem of {ring.pci_address}: what was to be put there by "
                f"DMA never arrived (p2prw topology {ring.drive or 'DRIVE'} {ring.pci_address})",
            )
            for side, ring in (("local", self.route.via), ("remote", self.grant.route.via))
            if ring is not None
        ]
        pattern = memory.spec.options.get("pattern")
        if pattern is None or self.request.operation is Operation.WRITE:
            return tuple(rings)
        # Imported here: patterns need numpy, and most transfers need no pattern.
        from p2prw.engine.pattern import parse_pattern

        return (*rings, Previous(parse_pattern(pattern).bytes_at))

    def read_back(self, offset: int, length_bytes: int) -> bytes | None:
        """Return remote bytes by RDMA READ into the scratch memory; None where that cannot be done."""
        queue_pair = self.link.queue_pair
        if not self.grant.flushable or queue_pair is None or length_bytes > SCRATCH_BYTES:
            return None
        queue_pair.set_window(self.link.device.receive_window_bytes())
        remote = attach_remote(self.link.channel, self.grant, Operation.READ, base_offset=offset)
        loop = self._loop(Operation.READ, DirectLocal((DmaSegment(*self.scratch.sge),)), remote, length_bytes)
        loop.first_wr_id = self.stats.wqes_posted
        loop.pace = self._pace
        try:
            for _ in loop.run():
                pass
        except P2prwError:
            # The mismatch stands whatever happened here; it is reported without its first bad byte.
            return None
        back = bytearray(length_bytes)
        self.scratch.memory.read_at(0, memoryview(back))
        return bytes(back)

    def _loop(self, operation: Operation, local: LocalEnd, remote: RemoteEnd, length_bytes: int) -> TransferLoop:
        request, queue_pair = self.request, self.link.queue_pair
        assert queue_pair is not None
        depth = min(request.queue_pair.depth, queue_pair.depth)
        chunk_bytes = self.limits.max_bytes_per_wr or request.chunk_bytes
        return TransferLoop(
            device=self.link.device,
            queue_pair=queue_pair,
            channel=self.link.channel,
            local=local,
            remote=remote,
            total_bytes=length_bytes,
            settings=LoopSettings(
                direction=operation,
                limits=self.limits,
                depth=depth,
                signal_every=signal_interval(depth, chunk_bytes, request.signal_every),
                idle_s=request.timeouts.idle_s,
                drain_s=request.timeouts.drain_s,
                route=self.route.chosen,
            ),
            deadline=self.link.deadline,
        )


def _within(progress: Progress, done_before: int, whole_bytes: int) -> Progress:
    """Return the progress of a range as the whole transfer's."""
    return replace(progress, bytes_done=done_before + progress.bytes_done, bytes_total=whole_bytes)


def verify_error(report: VerifyReport) -> VerifyError:
    """Return the error of a report that is not `verified`."""
    where = f", first at byte {report.first_bad_offset}" if report.first_bad_offset is not None else ""
    kind = f", {report.classification}" if report.classification else ""
    return VerifyError(
        f"verification failed: {report.status}{where}{kind}",
        why=report.why,
        fix="run again with --pcap FILE; if it fails at the same place again, suspect the memory or its path",
        code="verify_unstable" if report.status == "unstable" else "verify_mismatch",
    )
