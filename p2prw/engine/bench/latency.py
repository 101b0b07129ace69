"""Latency: one message at a time, timed from its post to the moment its completion is seen.

That is a whole round trip for READ and WRITE alike: the completion of a WRITE is the peer's acknowledgement. Half a
round trip by ping-pong needs the peer's CPU to watch memory: `pingpong.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import ClassVar

from p2prw.engine.bench.attendant import Attendant
from p2prw.engine.lane import Lane
from p2prw.engine.pace import Pace
from p2prw.engine.providers.base import Device
from p2prw.engine.waiting import Waiter

MAX_SAMPLES = 10_000_000
"""80 MB; a run by time ends there."""
SPIN_S = 0.002
"""Look again and again for this long before sleeping: to be woken costs more than what is measured."""


@dataclass(slots=True)
class TimedLoop:
    """What times one message after the other on one lane; the figures are in `samples_us`, also after a failure."""

    lat_by: ClassVar[str]
    device: Device
    lane: Lane
    attendant: Attendant
    waiter: Waiter
    messages: int | None
    duration_s: float | None = None
    samples_us: array[float] = field(default_factory=lambda: array("d"))
    first_post_s: float = 0.0
    last_completion_s: float = 0.0
    pace: Pace | None = None
    """A server's limit: what is waited for it lies between two samples."""

    def begin(self) -> tuple[int, float]:
        """The clock starts; return the most messages, and the time at which none is begun any more."""
        now = self.first_post_s = self.last_completion_s = self.attendant.deadline.clock()
        self.attendant.begin(now)
        end_s = now + self.duration_s if self.duration_s is not None else float("inf")
        return MAX_SAMPLES if self.messages is None else self.messages, end_s

    def await_turn(self, pace: Pace) -> Generator[None, None, None]:
        """Wait until the limit lets a message leave, and book it. Raises what `Attendant.attend` raises."""
        attendant = self.attendant
        now = attendant.deadline.clock()
        while (wait_s := pace.wait_s(now)) > 0:
            busy = self.device.pump()
            now = attendant.deadline.clock()
            if now >= attendant.next_s and attendant.attend(now, len(self.samples_us)):
                yield
            if not busy:
                self.waiter.wait(min(wait_s, attendant.next_s - now))
                now = attendant.deadline.clock()
        pace.spend(self.lane.size_bytes, now)


class LatencyLoop(TimedLoop):
    """From post to completion. Drive `run()` once."""

    __slots__ = ()
    lat_by = "completion"

    def run(self) -> Generator[None, None, None]:
        """Yield a few times a second; return after `messages` or `duration_s`."""
        attendant, samples = self.attendant, self.samples_us
        clock: Callable[[], float] = attendant.deadline.clock
        lane, pump, poll = self.lane, self.device.pump, self.lane.queue_pair.poll
        per_message = lane.message_wqes
        limit, end_s = self.begin()
        now = self.first_post_s
        while len(samples) < limit and now < end_s:
            # One message, signalled at its end: `begin` was told so, and here it is told again for the next.
            lane.left = per_message
            if self.pace is not None:
                yield from self.await_turn(self.pace)
            posted_s = clock()
            while lane.left or lane.completed < lane.posted:
                busy = lane.post() if lane.left else False
                busy = pump() or busy
                completions = poll()
                now = clock()
                if completions:
                    lane.retire(completions)
                elif now >= attendant.next_s and now - posted_s > SPIN_S:
                    if attendant.attend(now, len(samples)):
                        yield
                    if not busy:
                        self.waiter.wait(attendant.next_s - now)
            samples.append((now - posted_s) * 1e6)
            self.last_completion_s = now
            if now >= attendant.next_s and attendant.attend(now, len(samples)):
                yield
