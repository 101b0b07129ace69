"""The lanes of one operation, and one test at one size after the other on them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain

from p2prw.engine.attach import make_scratch
from p2prw.engine.bench.attendant import Attendant
from p2prw.engine.bench.checks import Step
from p2prw.engine.bench.latency import LatencyLoop, TimedLoop
from p2prw.engine.bench.loop import BandwidthLoop
from p2prw.engine.bench.model import BenchProgress, BenchRequest, BenchRow
from p2prw.engine.bench.pingpong import PingpongLoop, Table, ask_for, set_table
from p2prw.engine.bench.reverse import Incoming, Oncoming, incoming_of, set_oncoming
from p2prw.engine.bench.row import RunFacts, bandwidth_row, both_ways_row, latency_row
from p2prw.engine.bench.verify import GenerationCheck
from p2prw.engine.client import Attached, LeaseClient
from p2prw.engine.deadline import Deadline
from p2prw.engine.lane import Lane, Posting, message_postings, walk_postings
from p2prw.engine.model import Operation, RemoteSegment, VerifyReport
from p2prw.engine.mover import verify_error
from p2prw.engine.pace import pace_at
from p2prw.engine.phases import PhaseClock
from p2prw.engine.signalling import signal_interval
from p2prw.engine.verify import UNVERIFIED
from p2prw.engine.waiting import Waiter
from p2prw.errors import P2prwError

_WARM_UP_MESSAGES = 100
_WARM_UP_BYTES = 64 * 1024 * 1024
_TIMED_BYTES_IN_FLIGHT = 64 * 1024 * 1024
"""A run by time ends when what was posted has completed; 128 messages of 8 MiB would add seconds to it."""

_PACED_COMPLETIONS_PER_S = 10
_PACED_CHAINS_PER_S = 10

Event = BenchProgress | BenchRow


@dataclass(slots=True)
class Ledger:
    """What the result will say, filled on the way, so that a failure has what was measured before it."""

    phases: PhaseClock
    rows: list[BenchRow] = field(default_factory=list)
    steps_begun: int = 0
    generations: int = 0
    verify: VerifyReport = UNVERIFIED


class Measurement:
    """Drive `measure` with one step after the other; the lanes are those of attached clients, all on one device."""

    def __init__(
        self,
        request: BenchRequest,
        operation: Operation,
        clients: Sequence[LeaseClient],
        attached: Sequence[Attached],
        deadline: Deadline,
        ledger: Ledger,
        stack: ExitStack,
    ) -> None:
        """`stack` closes what is registered here."""
        self.request = request
        self.operation = operation
        self.attached = attached
        self.ledger = ledger
        self.device = attached[0].link.device
        self.lanes = [_lane_of(client, request.depth) for client in clients]
        peers = [(one.link.channel, lane.queue_pair) for one, lane in zip(attached, self.lanes, strict=True)]
        self.attendant = Attendant(peers, operation, deadline, request.connection.timeouts.idle_s)
        self.pace = pace_at(attached[0].rate_limit)
        self.waiter = Waiter(self.device, [channel.fileno() for channel, _ in peers], busily=self.pace is None)
        self.table: Table | None = None
        if _by_pingpong(request, operation):
            most = attached[0].grant.length
            self.table = set_table(stack, self.device, attached[0], clients[0].capabilities, most)
        self.oncoming: list[Oncoming] = []
        if request.both_ways:
            self.oncoming = [
                set_oncoming(client, one, lane, len(self.lanes))
                for client, one, lane in zip(clients, attached, self.lanes, strict=True)
            ]
        self.checks: list[GenerationCheck] = []
        if request.verify:
            scratch = make_scratch(stack, self.device)
            for client, one, lane in zip(clients, attached, self.lanes, strict=True):
                self.checks.append(GenerationCheck(client.request, one, lane, scratch))

    def measure(self, step: Step) -> Generator[Event, None, None]:
        """Warm up, run, verify, and yield the row; the row of a run that failed is kept too."""
        ledger, phases = self.ledger, self.ledger.phases
        ledger.steps_begun += 1
        for check in self.checks:
            ledger.generations += 1
            check.fill(ledger.generations, step.size_bytes)
        for oncoming in self.oncoming if self.checks else ():
            ledger.generations += 1
            oncoming.fill(ledger.generations, step.size_bytes)
        postings = [self._postings(one, step.size_bytes) for one in self.attached]
        warm_up = _warm_up(self.request, step, self.pace.rate_bytes_per_s if self.pace is not None else None)
        phases.enter("first_byte")
        if warm_up:
            for _ in self._bandwidth(step, postings, messages=warm_up).run():
                pass
        phases.enter("steady")
        before = self._retransmitted()
        loop: BandwidthLoop | LatencyLoop | PingpongLoop
        incoming: Incoming | None = None
        if step.test == "bw":
            loop = self._bandwidth(step, postings, messages=step.messages, duration_s=self.request.duration_s)
        else:
            loop = self._latency(step, postings[0])
        complete = False
        try:
            self._start_oncoming(step)
            for _ in loop.run():
                yield self._progress(step, loop)
            incoming = self._halt_oncoming()
            complete = True
        except P2prwError:
            if self.attendant.deadline.stop and isinstance(loop, BandwidthLoop):
                phases.enter("drain")
                loop.settle(self.request.connection.timeouts.drain_s)
                incoming = self._settle_oncoming()
            raise
        finally:
            # Also when the program drops the generator in the middle of the run: what was measured is kept.
            facts = RunFacts(
                self.operation,
                step.size_bytes,
                complete,
                warm_up,
                self._retransmitted() - before,
                walk_bytes=self.request.walk_bytes,
                walk_places=self.request.walk_places(step.size_bytes),
            )
            row = bandwidth_row(loop, facts) if isinstance(loop, BandwidthLoop) else latency_row(loop, facts)
            if self.oncoming:
                row = both_ways_row(row, incoming)
            ledger.rows.append(row)
        if self.checks:
            phases.enter("verify")
            self._verify(step)
            row = ledger.rows[-1]
        yield row

    def _verify(self, step: Step) -> None:
        """Flush all lanes, compare each; the row gets the verdict. VerifyError where one is not verified."""
        flushes = [check.flush_postings(step.size_bytes) for check in self.checks]
        if all(flushes):
            for lane, postings in zip(self.lanes, flushes, strict=True):
                lane.begin(postings, 0, messages=1, signal_every=1)
            for _ in BandwidthLoop(self.device, self.lanes, self.attendant, self.waiter).run():
                pass
        for check in self.checks:
            self._book(check.compare(step.size_bytes))
        for oncoming, check in zip(self.oncoming, self.checks, strict=False):
            self._book(oncoming.compare(check.mover(step.size_bytes)))

    def _book(self, report: VerifyReport) -> None:
        ledger = self.ledger
        ledger.verify = report
        ledger.rows[-1] = replace(ledger.rows[-1], verify=report.status)
        if report.status != "verified":
            raise verify_error(report)

    # --- the server's direction

    def _start_oncoming(self, step: Step) -> None:
        """Have the servers post the same towards us from now on; together, then wait for all."""
        request = self.request
        for oncoming in self.oncoming:
            oncoming.start(step.size_bytes, signal_every=request.connection.signal_every, post_list=request.post_list)
        for oncoming in self.oncoming:
            oncoming.ready(request.connection.timeouts.idle_s)
        self.attendant.leases = [oncoming.one.grant.lease for oncoming in self.oncoming]

    def _halt_oncoming(self) -> Incoming | None:
        """Our direction is done: end the other one, and return what it did."""
        self.attendant.leases = ()
        for oncoming in self.oncoming:
            oncoming.halt()
        idle_s = self.request.connection.timeouts.idle_s
        return incoming_of([oncoming.result(idle_s) for oncoming in self.oncoming]) if self.oncoming else None

    def _settle_oncoming(self) -> Incoming | None:
        drain_s = self.request.connection.timeouts.drain_s
        results = [oncoming.settle(drain_s) for oncoming in self.oncoming]
        known = [result for result in results if result is not None]
        return incoming_of(known) if known and len(known) == len(results) else None

    def _postings(self, one: Attached, size_bytes: int) -> tuple[Posting, ...]:
        """Return the work requests of one message, or of all that make a round of a walk."""
        assert one.local is not None
        segments = [RemoteSegment(s.address, s.length, s.rkey) for s in one.grant.segments]
        ends = (one.local.vec, segments, self.operation, one.limits, size_bytes)
        walk_bytes, places = self.request.walk_bytes, self.request.walk_places(size_bytes)
        if walk_bytes is None or places is None:
            return message_postings(*ends)
        return tuple(chain.from_iterable(walk_postings(*ends, walk_bytes, places)))

    def _bandwidth(
        self,
        step: Step,
        postings: Sequence[tuple[Posting, ...]],
        *,
        messages: int | None,
        duration_s: float | None = None,
    ) -> BandwidthLoop:
        request, stops = self.request, self.request.walk_places(step.size_bytes) or 1
        for lane, own in zip(self.lanes, postings, strict=True):
            lane.depth = min(request.depth, lane.queue_pair.depth)
            if duration_s is not None:
                lane.depth = min(lane.depth, max(2, _TIMED_BYTES_IN_FLIGHT // step.size_bytes) * (len(own) // stops))
            post_list = self._post_list(lane.depth, step.size_bytes)
            lane.begin(
                own,
                step.size_bytes,
                messages=messages,
                signal_every=self._signal_every(lane.depth, step.size_bytes, post_list),
                post_list=post_list,
                stops=stops,
            )
        return BandwidthLoop(self.device, self.lanes, self.attendant, self.waiter, duration_s, self.pace)

    def _post_list(self, depth: int, size_bytes: int) -> int | None:
        """Return how many work requests leave as one; under a server's limit a chain is no longer than 0.1 s of it."""
        wanted = self.request.post_list
        if not wanted:
            return None
        if self.pace is not None and self.pace.by == "server":
            wanted = min(wanted, max(1, int(self.pace.rate_bytes_per_s / size_bytes / _PACED_CHAINS_PER_S)))
        return min(wanted, depth)

    def _signal_every(self, depth: int, size_bytes: int, post_list: int | None) -> int:
        """Return the interval; under a limit a completion should come a few times a second all the same."""
        wanted = self.request.connection.signal_every
        every = signal_interval(depth, size_bytes, wanted, post_list)
        if self.pace is not None and wanted is None:
            every = min(every, max(1, int(self.pace.rate_bytes_per_s / size_bytes / _PACED_COMPLETIONS_PER_S)))
        return every

    def _latency(self, step: Step, postings: tuple[Posting, ...]) -> LatencyLoop | PingpongLoop:
        lane, stops = self.lanes[0], self.request.walk_places(step.size_bytes) or 1
        if self.table is not None:
            lane.begin(postings, step.size_bytes, messages=0, signal_every=1)
            idle_s = self.request.connection.timeouts.idle_s
            ask_for(self.attached[0], self.table, step.size_bytes, idle_s)
            return PingpongLoop(
                self.device,
                lane,
                self.attendant,
                self.waiter,
                step.messages,
                self.request.duration_s,
                pace=self.pace,
                table=self.table,
            )
        lane.begin(postings, step.size_bytes, messages=0, signal_every=max(1, lane.depth // 2), stops=stops)
        duration_s = self.request.duration_s
        return LatencyLoop(self.device, lane, self.attendant, self.waiter, step.messages, duration_s, pace=self.pace)

    def _retransmitted(self) -> int:
        return sum(lane.queue_pair.counters.retransmitted_packets for lane in self.lanes)

    def _progress(self, step: Step, loop: BandwidthLoop | TimedLoop) -> BenchProgress:
        if isinstance(loop, BandwidthLoop):
            started_s, messages, lanes = loop.marks[0].at_s, loop.messages, len(self.lanes)
        else:
            started_s, messages, lanes = loop.first_post_s, len(loop.samples_us), 1
        elapsed_s = self.attendant.deadline.clock() - started_s
        return BenchProgress(
            test=step.test,
            operation=self.operation.value,
            size_bytes=step.size_bytes,
            step=self.ledger.steps_begun,
            steps=step.of,
            messages_done=messages,
            messages_total=step.messages * lanes if step.messages is not None else None,
            elapsed_s=elapsed_s,
            duration_s=self.request.duration_s,
            bw_bytes_per_s=messages * step.size_bytes / elapsed_s if elapsed_s > 0 else 0.0,
            wqes_in_flight=sum(lane.outstanding for lane in self.lanes),
        )


def _by_pingpong(request: BenchRequest, operation: Operation) -> bool:
    return request.lat_by == "ping-pong" and operation is Operation.WRITE and "lat" in request.tests


def _lane_of(client: LeaseClient, depth: int) -> Lane:
    assert client.queue_pair is not None
    return Lane(client.queue_pair, min(depth, client.queue_pair.depth))


def _warm_up(request: BenchRequest, step: Step, rate_bytes_per_s: float | None) -> int:
    """Return how many messages go before the clock starts; under a rate limit no more than a second of them."""
    if request.warm_up is not None:
        return request.warm_up
    few = _WARM_UP_MESSAGES if step.messages is None else min(_WARM_UP_MESSAGES, -(-step.messages // 10))
    most_bytes = min(_WARM_UP_BYTES, rate_bytes_per_s or _WARM_UP_BYTES)
    return max(1, min(few, int(most_bytes) // step.size_bytes))
