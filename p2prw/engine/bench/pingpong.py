"""Write latency by ping-pong: our WRITE, the peer's WRITE back, both seen by watching memory; half the round trip."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass, field

from p2prw.engine.bench.latency import SPIN_S, TimedLoop
from p2prw.engine.client import Attached
from p2prw.engine.control.measuring import TAGS
from p2prw.engine.control.messages import PINGPONG, Pingpong, Ponging
from p2prw.engine.memory.host import open_scratch
from p2prw.engine.model import Access
from p2prw.engine.providers.base import Device
from p2prw.engine.waiting import looks_at, watch
from p2prw.errors import HostError, PeerRefusedError, RemoteProtocolError

_PATIENCE_S = 0.1
"""An answer that takes longer is waited for asleep."""


@dataclass(slots=True)
class Table:
    """The two memories that both ends watch: what we send from, and what the peer writes back into."""

    source: memoryview
    sink: memoryview
    address: int
    rkey: int


def set_table(stack: ExitStack, device: Device, one: Attached, capabilities: tuple[str, ...], most_bytes: int) -> Table:
    """Register memory for the answers. PeerRefusedError, HostError where a ping-pong is not possible."""
    if PINGPONG not in capabilities:
        raise PeerRefusedError(
            "the server has no ping-pong",
            why="it is an older p2prw",
            fix="the same p2prw on both sides, or --lat-by completion",
            code="no_pingpong",
        )
    buffers = one.memory.buffers()
    source = buffers[0].view if len(buffers) == 1 else None
    if source is None or one.memory.spec.kind != "host":
        raise HostError(
            f"{one.memory.spec.kind} memory cannot be watched for a ping-pong",
            why="both ends look at the last byte again and again; that needs host memory",
            fix="leave --local-memory away, or --lat-by completion",
            code="no_pingpong",
        )
    memory = open_scratch(most_bytes)
    stack.callback(memory.close)
    registration = device.register(memory.buffers(), Access.LOCAL_WRITE | Access.REMOTE_WRITE)
    stack.callback(registration.close)
    sink = memory.buffers()[0].view
    assert sink is not None
    (segment,) = registration.remote_segments()
    return Table(source, sink, segment.address, segment.rkey)


@dataclass(slots=True)
class PingpongLoop(TimedLoop):
    """Half of what lies between a message and its answer. Drive `run()` once."""

    lat_by = "ping-pong"
    table: Table = field(kw_only=True)

    def run(self) -> Generator[None, None, None]:
        """Yield a few times a second; return after `messages` or `duration_s`."""
        attendant, samples, lane = self.attendant, self.samples_us, self.lane
        clock, pump, poll = attendant.deadline.clock, self.device.pump, lane.queue_pair.poll
        source, sink, last = self.table.source, self.table.sink, lane.size_bytes - 1
        per_message, looks = lane.message_wqes, looks_at(self.device)
        limit, end_s = self.begin()
        now = self.first_post_s
        while len(samples) < limit and now < end_s:
            tag = len(samples) % TAGS + 1
            source[last] = tag
            lane.left = per_message
            if self.pace is not None:
                yield from self.await_turn(self.pace)
            posted_s = clock()
            while sink[last] != tag:
                busy = lane.post() if lane.left else False
                busy = pump() or busy
                if watch(sink, last, tag, looks):
                    break
                lane.retire(poll())
                now = clock()
                if now >= attendant.next_s and now - posted_s > SPIN_S:
                    if attendant.attend(now, len(samples)):
                        yield
                    if not busy and now - posted_s > _PATIENCE_S:
                        self.waiter.wait(min(SPIN_S, attendant.next_s - now))
            now = clock()
            samples.append((now - posted_s) * 0.5e6)
            self.last_completion_s = now
            lane.retire(poll())
            if now >= attendant.next_s and attendant.attend(now, len(samples)):
                yield
        # The last answers may overtake the acknowledgements of what they answer.
        while lane.completed < lane.posted:
            busy = pump()
            lane.retire(poll())
            now = clock()
            if now >= attendant.next_s:
                attendant.attend(now, len(samples))
            if not busy:
                self.waiter.wait(SPIN_S)


def ask_for(one: Attached, table: Table, size_bytes: int, idle_s: float) -> None:
    """Have the server answer messages of this size from now on; both sides count from the first."""
    table.sink[size_bytes - 1] = 0
    one.link.channel.send(Pingpong(one.grant.lease, size_bytes, table.address, table.rkey))
    answer: Ponging = one.link.expect(Ponging, "the server's readiness for a ping-pong", idle_s)
    if answer.lease != one.grant.lease:
        raise RemoteProtocolError("a ping-pong with a lease that is not ours", code="bad_lease")
