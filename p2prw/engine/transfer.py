"""The transfer loop: keep a window of WQEs posted, signal one in N, poll in batches, sample progress by time.

One thread drives everything: send queue, completions, staging jobs, control frames. Nothing here knows memory kinds
or prints; the ends (`ends.py`) say when bytes are ready and where they go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from p2prw.engine.completion import completion_error
from p2prw.engine.control.channel import MESSAGES_PER_LOOK, Channel
from p2prw.engine.control.messages import Committed, Digests, Filled, Message, Refuse, Window, error_from
from p2prw.engine.deadline import Deadline
from p2prw.engine.ends import LocalEnd, RemoteEnd, Span, StagedRemote, contexts_for
from p2prw.engine.events import Progress
from p2prw.engine.model import Completion, Opcode, Operation, RemoteSegment, Sge, WcStatus
from p2prw.engine.pace import Pace
from p2prw.engine.progress import PROGRESS_INTERVAL_S, LoopStats, RecentRate
from p2prw.engine.providers.base import Device, QueuePair
from p2prw.engine.rw import RwLimits
from p2prw.engine.waiting import Waiter
from p2prw.errors import DeadlineExceeded, RemoteProtocolError

FLUSH_BYTES = 8
_CHANNEL_CHECK_INTERVAL_S = 0.005


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What bounds the loop; all times in seconds on `clock`."""

    direction: Operation
    limits: RwLimits
    depth: int
    signal_every: int
    idle_s: float = 30.0
    drain_s: float = 5.0
    route: str = "cpu"


@dataclass(slots=True)
class TransferLoop:
    """Moves [0, total_bytes) between two ends over one queue pair. Drive `run()`; then look at `stats`."""

    device: Device
    queue_pair: QueuePair
    channel: Channel
    local: LocalEnd
    remote: RemoteEnd
    total_bytes: int
    settings: LoopSettings
    deadline: Deadline
    flush_sge: Sge | None = None
    """Scratch memory for the flushing READ after a WRITE; None: no flush."""
    extra_filenos: tuple[int, ...] = ()
    first_wr_id: int = 0
    pace: Pace | None = None
    take_in_digests: Callable[[Digests], None] | None = None
    """For the digests that `ahead.py` asks the peer for; None: there are none."""
    stats: LoopStats = field(default_factory=LoopStats)
    _spans: deque[Span] = field(default_factory=deque)
    _unposted: deque[Span] = field(default_factory=deque)
    _outstanding: deque[tuple[int, Span, int]] = field(default_factory=deque)
    _next_offset: int = 0
    _next_wr_id: int = 0
    _last_signalled: int = -1
    _post_cursor: tuple[int, int] = (0, 0)
    """(context, WR) of the span at the head of `_unposted`."""
    _last_activity_s: float = 0.0
    _packets_seen: int = 0
    _rate: RecentRate = field(default_factory=RecentRate)
    _waiter: Waiter | None = None

    def run(self) -> Generator[Progress, None, None]:
        """Yield Progress a few times a second; return when every byte is settled. Raises P2prwError otherwise."""
        self._next_wr_id = self.first_wr_id
        now = self._last_activity_s = self.deadline.clock()
        next_progress_s, next_channel_s = now, now
        self._packets_seen = self.queue_pair.counters.packets_received
        while self._next_offset < self.total_bytes or self._spans:
            self._admit()
            posted = self._post()
            busy = self.device.pump()
            completions = self.queue_pair.poll()
            if completions:
                self._retire(completions)
            busy = bool(completions) or posted or busy
            now = self.deadline.clock()
            if not busy or now >= next_channel_s:
                next_channel_s = now + _CHANNEL_CHECK_INTERVAL_S
                busy = self._hear() or busy
            if now >= next_progress_s:
                next_progress_s = now + PROGRESS_INTERVAL_S
                yield self._progress("steady" if self.stats.first_completion_s is not None else "first_byte", now)
            self._check_deadlines(now)
            if not busy:
                self._wait(min(next_progress_s - now, self._pace_s(now)))
        yield self._progress("drain", self.deadline.clock())

    # --- stations ---------------------------------------------------------------------------------------

    def _span_limit(self) -> int:
        limits = [size for size in (self.local.span_bytes, self.remote.span_bytes) if size is not None]
        return min(limits) if limits else self.total_bytes

    def _admit(self) -> None:
        """Begin spans as far as the end that the bytes come from has slots.

        The other end's slot is taken when a span is posted: the one reads ahead while the other still writes.
        """
        from_local = self.settings.direction is Operation.WRITE
        source = self.local if from_local else self.remote
        while self._next_offset < self.total_bytes:
            span = Span(self._next_offset, min(self._span_limit(), self.total_bytes - self._next_offset))
            if not self._take_slot(span, local=from_local):
                return
            # Mapped memory has slots without end; then the other end's are what bounds the spans.
            if source.span_bytes is None and not self._take_slot(span, local=not from_local):
                return
            self._next_offset += span.length_bytes
            self._spans.append(span)
            self._unposted.append(span)

    def _take_slot(self, span: Span, *, local: bool) -> bool:
        """Give the span a slot at one end, which begins to prepare it; False while all slots there are taken."""
        slot = self.local.take() if local else self.remote.take()
        if slot is None:
            return False
        if local:
            span.local_slot = slot
            span.local_ready = self.local.prepare(span)
        else:
            span.remote_slot = slot
            span.remote_ready = self.remote.prepare(span)
        return True

    def _is_ready(self, span: Span) -> bool:
        """Both ends are; a slot that is still missing where the bytes go is taken now."""
        if span.local_slot < 0 and span.remote_ready:
            self._take_slot(span, local=True)
        elif span.remote_slot < 0 and span.local_ready:
            self._take_slot(span, local=False)
        return span.local_ready and span.remote_ready

    def _post(self) -> bool:
        """Post what is ready, in order, while the send queue has room; True when anything was posted."""
        settings, stats, outstanding, pace = self.settings, self.stats, self._outstanding, self.pace
        now = self.deadline.clock() if pace is not None else 0.0
        any_posted = False
        while self._unposted:
            span = self._unposted[0]
            if not self._is_ready(span):
                break
            if not span.contexts:
                span.contexts = contexts_for(span, self.local, self.remote, settings.direction, settings.limits)
                stats.kernel_wqes += sum(context.kernel_wqes for context in span.contexts)
            opcode = Opcode.RDMA_WRITE if settings.direction is Operation.WRITE else Opcode.RDMA_READ
            context_index, wr_index = self._post_cursor
            while context_index < len(span.contexts):
                context = span.contexts[context_index]
                count = context.nr_wqes
                while wr_index < count:
                    if len(outstanding) >= settings.depth or (pace is not None and not pace.room(1, now)):
                        self._post_cursor = (context_index, wr_index)
                        return any_posted
                    request = context.wr(wr_index)
                    if pace is not None:
                        pace.spend(request.length_bytes, now)
                        # Who waits for the pace is not idle; one whose completions stay away runs out of depth.
                        self._last_activity_s = now
                    wr_index += 1
                    last = wr_index == count and context_index == len(span.contexts) - 1
                    signaled = last or self._must_signal()
                    self._post_one(span, opcode, request.sges, request.remote_addr, request.rkey, signaled)
                    outstanding[-1] = (outstanding[-1][0], span, request.length_bytes)
                    any_posted = True
                context_index, wr_index = context_index + 1, 0
            if (
                self.flush_sge is not None
                and settings.direction is Operation.WRITE
                and not self._post_flush(span, context_index)
            ):
                return any_posted
            span.posted = True
            self._post_cursor = (0, 0)
            self._unposted.popleft()
        return any_posted

    def _must_signal(self) -> bool:
        # With the queue full and nothing signalled no completion would ever come: the entry that fills it is signalled.
        return (self._next_wr_id + 1) % self.settings.signal_every == 0 or (
            len(self._outstanding) == self.settings.depth - 1
        )

    def _post_flush(self, span: Span, context_index: int) -> bool:
        """READ the last bytes of each remote segment: a WRITE completion alone does not say that they are visible.

        The cursor runs on past the contexts: position n + i is the flush of segment i.
        """
        segments = self.remote.segments(span)
        done = context_index - len(span.contexts)
        for position in range(done, len(segments)):
            if len(self._outstanding) >= self.settings.depth:
                self._post_cursor = (len(span.contexts) + position, 0)
                return False
            segment: RemoteSegment = segments[position]
            length = min(FLUSH_BYTES, segment.length_bytes)
            assert self.flush_sge is not None
            sge = Sge(self.flush_sge.address, length, self.flush_sge.lkey)
            address = segment.address + segment.length_bytes - length
            self._post_one(span, Opcode.RDMA_READ, (sge,), address, segment.rkey, True)
        return True

    def _post_one(
        self, span: Span, opcode: Opcode, sges: tuple[Sge, ...], remote_addr: int, rkey: int, signaled: bool
    ) -> None:
        stats = self.stats
        if stats.first_post_s is None:
            stats.first_post_s = self._last_activity_s = self.deadline.clock()
        wr_id = self._next_wr_id
        self._next_wr_id = wr_id + 1
        self.queue_pair.post_rdma(wr_id, opcode, sges, remote_addr, rkey, signaled=signaled)
        self._outstanding.append((wr_id, span, 0))
        span.outstanding += 1
        stats.wqes_posted += 1
        stats.wqes_signalled += signaled
        self._last_signalled = wr_id if signaled else self._last_signalled

    def _retire(self, completions: list[Completion]) -> None:
        now = self.deadline.clock()
        outstanding, stats = self._outstanding, self.stats
        for completion in completions:
            if completion.status is not WcStatus.SUCCESS:
                raise completion_error(completion, stats.bytes_done, self.total_bytes)
            # A completion retires every older work request too, signalled or not.
            while outstanding and outstanding[0][0] <= completion.wr_id:
                _, span, length_bytes = outstanding.popleft()
                span.outstanding -= 1
                if length_bytes:
                    stats.bytes_done += length_bytes
                    stats.last_completion_s = now
                    if stats.first_completion_s is None:
                        stats.first_completion_s = now
                if span.posted and not span.outstanding:
                    self._completed(span)
        self._last_activity_s = now

    def _completed(self, span: Span) -> None:
        if self.local.settle(span):
            self._settled(span, local=True)
        if self.remote.settle(span):
            self._settled(span, local=False)

    def _settled(self, span: Span, *, local: bool) -> None:
        if local:
            self.local.give(span.local_slot)
        else:
            self.remote.give(span.remote_slot)
        span.unsettled -= 1
        if not span.unsettled:
            self._spans.remove(span)

    # --- what others say ----------------------------------------------------------------------------------

    def _hear(self) -> bool:
        """Take in staging jobs and control frames; True when there were any."""
        heard = moved = False
        for slot, offset in self.local.poll():
            heard = moved = True
            span = self._span_at(offset, slot, local=True)
            if span.local_ready:
                self._settled(span, local=True)
            else:
                span.local_ready = True
        for _ in range(MESSAGES_PER_LOOK):
            if (message := self.channel.receive()) is None:
                break
            heard = True
            # Neither moves anything: a peer that sends only those is as idle as a silent one.
            moved = moved or not isinstance(message, Window | Digests)
            self._take_in(message)
        if self.channel.wants_write:
            self.channel.flush()
        packets = self.queue_pair.counters.packets_received
        if moved or packets != self._packets_seen:
            self._packets_seen = packets
            self._last_activity_s = self.deadline.clock()
        return heard

    def _take_in(self, message: Message) -> None:
        match message:
            case Window():
                # It bounds what we send. READ responses come to us: there our own socket buffer is the bound.
                if self.settings.direction is Operation.WRITE:
                    self.queue_pair.set_window(message.window_bytes)
            case Filled() | Committed() if isinstance(self.remote, StagedRemote):
                slot, offset = self.remote.answered(message)
                span = self._span_at(offset, slot, local=False)
                if isinstance(message, Filled) and not span.remote_ready:
                    span.remote_ready = True
                elif isinstance(message, Committed) and span.posted and not span.outstanding:
                    self._settled(span, local=False)
                else:
                    raise RemoteProtocolError(f"{message.TYPE} that was not asked for", code="unexpected_message")
            case Digests() if self.take_in_digests is not None:
                self.take_in_digests(message)
            case Refuse():
                raise error_from(message)
            case _:
                raise RemoteProtocolError(f"{message.TYPE} in the middle of a transfer", code="unexpected_message")

    def _span_at(self, offset: int, slot: int, *, local: bool) -> Span:
        for span in self._spans:
            if span.offset == offset and (span.local_slot if local else span.remote_slot) == slot:
                return span
        raise RemoteProtocolError(f"an answer for slot {slot} at offset {offset}, which is not on its way")

    # --- time ---------------------------------------------------------------------------------------------

    def _progress(self, phase: str, now: float) -> Progress:
        stats = self.stats
        stats.wqes_in_flight = len(self._outstanding)
        return Progress(
            phase=phase,
            bytes_done=stats.bytes_done,
            bytes_total=self.total_bytes,
            elapsed_s=now - stats.first_post_s if stats.first_post_s is not None else 0.0,
            bw_bytes_per_s=self._rate.at(now, stats.bytes_done),
            wqes_in_flight=stats.wqes_in_flight,
            wqes_total=stats.wqes_posted,
            route=self.settings.route,
            retries=self.queue_pair.counters.retransmitted_packets,
        )

    def _check_deadlines(self, now: float) -> None:
        if self.deadline.stop:
            self._drain()
        self.deadline.check(f"{self.stats.bytes_done} of {self.total_bytes} bytes were moved")
        if now - self._last_activity_s > self.settings.idle_s:
            raise DeadlineExceeded(
                f"nothing moved for {self.settings.idle_s:g} s (--idle-timeout)",
                why=f"{self.stats.bytes_done} of {self.total_bytes} bytes were moved, "
                f"{len(self._outstanding)} WQEs in flight",
                fix="check that the peer is alive and that UDP passes; --idle-timeout",
                code="idle_timeout",
            )

    def _drain(self) -> None:
        """After a stop: post nothing, let what is in flight complete (the signalled tell), at most `drain_s`."""
        deadline_s = self.deadline.clock() + self.settings.drain_s
        outstanding = self._outstanding
        while outstanding and outstanding[0][0] <= self._last_signalled and self.deadline.clock() < deadline_s:
            busy = self.device.pump()
            completions = self.queue_pair.poll()
            if completions:
                self._retire(completions)
            elif not busy:
                self._wait(0.05)

    def _pace_s(self, now: float) -> float:
        """Return when the rate limit lets the next work request leave, where that is all it waits for."""
        if self.pace is None or not self._unposted or len(self._outstanding) >= self.settings.depth:
            return float("inf")
        head = self._unposted[0]
        return self.pace.wait_s(now) if head.local_ready and head.remote_ready else float("inf")

    def _wait(self, at_most_s: float) -> None:
        if self._waiter is None:
            self._waiter = Waiter(self.device, (self.channel.fileno(), *self.extra_filenos))
        self._waiter.wait(at_most_s)
