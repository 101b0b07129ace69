"""Bandwidth: every lane is kept full, completions are polled in batches, the clock is read once a round.

Time is from the first post to the last completion. A round makes no object for a message: work requests were built
before, and what is outstanding is counted (`lane.py`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from p2prw.engine.bench.attendant import Attendant
from p2prw.engine.bench.statistics import Mark
from p2prw.engine.lane import Lane
from p2prw.engine.pace import Pace
from p2prw.engine.providers.base import Device, TellingDevice
from p2prw.engine.waiting import Waiter

MARKS = 200
"""A run is marked about this often, by messages or by time; intervals of equal time are made of them afterwards."""

_LONGEST_INTERVAL_S = 0.25


@dataclass(slots=True)
class BandwidthLoop:
    """Runs what `Lane.begin` was told, on all lanes. Drive `run()`; the figures are in `marks`, after a failure too."""

    device: Device
    lanes: Sequence[Lane]
    attendant: Attendant
    waiter: Waiter
    duration_s: float | None = None
    """Where the lanes have no number of messages."""
    pace: Pace | None = None
    """`--rate-limit`, of all lanes together."""
    marks: list[Mark] = field(default_factory=list)
    """The first post, then completions some way apart, then the last one."""
    _completed_s: float = 0.0
    _turn: int = 0

    @property
    def messages(self) -> int:
        """Completed so far, all lanes together."""
        return sum(lane.messages for lane in self.lanes)

    def run(self) -> Generator[None, None, None]:
        """Yield a few times a second; return when everything completed. Raises what `Attendant.attend` raises."""
        try:
            yield from self._rounds()
        finally:
            self._mark_last()

    def _rounds(self) -> Generator[None, None, None]:
        lanes, pump, attendant, clock = self.lanes, self.device.pump, self.attendant, self.attendant.deadline.clock
        left = [lane.left for lane in lanes]
        total = None if None in left else sum(lane.left or 0 for lane in lanes) // lanes[0].message_wqes
        messages_step = max(1, total // MARKS) if total is not None else 1 << 62
        started_s = now = clock()
        time_step_s = self.duration_s / MARKS if self.duration_s is not None else _LONGEST_INTERVAL_S
        end_s = started_s + self.duration_s if self.duration_s is not None else float("inf")
        self.marks[:] = [Mark(started_s, 0)]
        attendant.begin(now)
        next_messages, next_s = messages_step, started_s + time_step_s
        messages, is_first = 0, True
        posting: Sequence[Lane] = lanes
        polling: Sequence[Lane] = lanes
        by_qpn = {lane.queue_pair.local.qpn: lane for lane in lanes}
        telling = self.device if isinstance(self.device, TellingDevice) else None
        while True:
            if now >= end_s:
                end_s = float("inf")
                for lane in lanes:
                    lane.end()
                posting = lanes
                if all(lane.finished for lane in lanes):
                    # All that was posted had completed already; no completion will come to end the loop.
                    break
            # fast path: a lane has room again when something of it has completed, or when a chain of it has just left.
            if self.pace is None:
                posted = [lane for lane in posting if lane.post()]
            else:
                posted = self._post_paced(self.pace, now)
            busy = pump() or bool(posted)
            completed: list[Lane] = []
            if telling is not None and not is_first:
                polling = [by_qpn[qpn] for qpn in telling.take_completed() if qpn in by_qpn]
            is_first = False
            for lane in polling:
                completions = lane.queue_pair.poll()
                if completions:
                    messages -= lane.messages
                    lane.retire(completions)
                    messages += lane.messages
                    completed.append(lane)
            posting = [*posted, *completed]
            now = clock()
            if completed:
                self._completed_s = now
                if messages >= next_messages or now >= next_s:
                    self.marks.append(Mark(now, messages))
                    next_messages, next_s = messages + messages_step, now + time_step_s
                if all(lane.finished for lane in lanes):
                    break
            if now >= attendant.next_s and attendant.attend(now, self._activity()):
                yield
                now = clock()
            if not (busy or completed):
                pace_s = self.pace.wait_s(now) if self.pace is not None else 0.0
                self.waiter.wait(min(attendant.next_s - now, pace_s or float("inf")))

    def _post_paced(self, pace: Pace, now: float) -> list[Lane]:
        """Post what the pace has room for; every round begins with another lane. Returns those that posted."""
        lanes = list(self.lanes)
        self._turn = (self._turn + 1) % len(lanes)
        posted: list[Lane] = []
        for lane in lanes[self._turn :] + lanes[: self._turn]:
            most = pace.room(lane.wr_bytes, now)
            before = lane.posted
            if most and lane.post(most):
                pace.spend((lane.posted - before) * lane.wr_bytes, now)
                posted.append(lane)
        return posted

    def _activity(self) -> int:
        """Return what grows as long as work completes; who waits for the pace is not idle."""
        return self.messages if self.pace is None else self.messages + sum(lane.posted for lane in self.lanes)

    def settle(self, drain_s: float) -> None:
        """After a stop: post nothing, let what is in flight complete, at most `drain_s`; then mark what was done."""
        clock = self.attendant.deadline.clock
        deadline_s = clock() + drain_s
        while any(lane.completed < lane.signalled_until for lane in self.lanes) and clock() < deadline_s:
            busy = self.device.pump()
            for lane in self.lanes:
                completions = lane.queue_pair.poll()
                if completions:
                    lane.retire(completions)
                    self._completed_s, busy = clock(), True
            if not busy:
                self.waiter.wait(0.05)
        self._mark_last()

    def _mark_last(self) -> None:
        messages = self.messages
        if self.marks and messages > self.marks[-1].messages:
            self.marks.append(Mark(self._completed_s, messages))
