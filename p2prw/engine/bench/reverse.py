"""The other direction of a measurement, of one lane: memory that the server WRITEs to or READs from, and its figures.

It is memory of the lane's own, of the kind of our other end, with a key for just that; the server posts from `start`
to `halt` and counts for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2prw.engine.bench.verify import fill_generation
from p2prw.engine.client import Attached, LeaseClient
from p2prw.engine.control.messages import REVERSE, Halt, Reverse, Reversed, Reversing, Segment, Window
from p2prw.engine.ladder import climb
from p2prw.engine.lane import Lane
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.memory.prepare import prepare_memory
from p2prw.engine.model import Access, Operation, RemoteSegment, VerifyReport
from p2prw.engine.mover import Mover
from p2prw.engine.steps import finish
from p2prw.errors import HostError, P2prwError, PeerRefusedError, RemoteProtocolError

_ALLOCATED = frozenset({"host", "p2pmem", "udmabuf", "dmaheap", "dm", "cuda"})
"""Kinds of which there is a second piece for the asking."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """What the server did in one run, all lanes together."""

    messages: int
    elapsed_s: float
    """Of the lane that took longest."""
    msg_rate_per_s: float
    retransmitted_packets: int


@dataclass(slots=True)
class Oncoming:
    """Of one lane. `start` and `ready` before a run, `halt` and `result` after it."""

    one: Attached
    lane: Lane
    memory: MemorySource
    segments: tuple[RemoteSegment, ...]
    window_bytes: int
    operation: Operation

    def start(self, size_bytes: int, *, signal_every: int | None, post_list: int | None) -> None:
        """Ask the server to begin, as deep as our own direction."""
        segments = tuple(Segment(*segment) for segment in self.segments)
        self.one.link.channel.send(
            Reverse(
                self.one.grant.lease, size_bytes, segments, self.lane.depth, signal_every, post_list, self.window_bytes
            )
        )

    def ready(self, idle_s: float) -> None:
        """Wait until it has begun. PeerRefusedError where it will not."""
        answer: Reversing = self.one.link.expect(Reversing, "the server's readiness for both directions", idle_s)
        self._check_lease(answer)

    def halt(self) -> None:
        """Ask the server to end."""
        self.one.link.channel.send(Halt(self.one.grant.lease))

    def result(self, idle_s: float) -> Reversed:
        """Wait until nothing is on its way any more."""
        answer: Reversed = self.one.link.expect(Reversed, "the end of the other direction", idle_s)
        self._check_lease(answer)
        return answer

    def _check_lease(self, answer: Reversing | Reversed) -> None:
        if answer.lease != self.one.grant.lease:
            raise RemoteProtocolError(f"{answer.TYPE} for a lease that is not ours", code="bad_lease")

    def settle(self, drain_s: float) -> Reversed | None:
        """The same after Ctrl-C or a limit, which `result` would raise; None where it did not come in time."""
        link = self.one.link
        end_s = link.deadline.clock() + drain_s
        try:
            self.halt()
            while (left_s := end_s - link.deadline.clock()) > 0:
                message = link.channel.expect(
                    Reversed, Window, deadline_s=left_s, name="the end", pump=link.device.pump,
                    filenos=link.device.filenos(),
                )  # fmt: skip
                if isinstance(message, Reversed):
                    return message
        except P2prwError:
            pass
        return None

    def fill(self, generation: int, size_bytes: int) -> None:
        """Put a generation there: what the server READs, or what its WRITEs must replace."""
        fill_generation(self.memory, generation, size_bytes)

    def compare(self, mover: Mover) -> VerifyReport:
        """Compare what the last message left with where it came from."""
        return finish(mover.verify(self.memory, reverse=True))


def set_oncoming(client: LeaseClient, one: Attached, lane: Lane, lanes: int) -> Oncoming:
    """Open and register memory for the other direction; closed with the client, after the server was told.

    PeerRefusedError, HostError where both directions are not possible.
    """
    request, operation, device = client.request, client.request.operation, one.link.device
    if REVERSE not in client.capabilities:
        raise PeerRefusedError(
            "the server cannot measure in both directions",
            why="it is an older p2prw",
            fix="the same p2prw on both sides, or leave --bidirectional away",
            code="no_reverse",
        )
    spec = request.memory
    if spec.kind not in _ALLOCATED:
        raise HostError(
            f"there is no second piece of {spec.kind} memory for the other direction",
            why="the server needs memory of its own here, beside what is sent or filled by us",
            fix=f"leave --local-memory away, or one of {', '.join(sorted(_ALLOCATED))}",
            code="no_reverse",
        )
    reading = operation is Operation.READ
    prepared = prepare_memory(spec, "source" if reading else "sink", force_bound_device=request.force_bound_device)
    memory = prepared.open(one.grant.length)
    client.stack.callback(memory.close)
    reach = climb(
        device,
        memory,
        Access.REMOTE_READ if reading else Access.LOCAL_WRITE | Access.REMOTE_WRITE,
        length_bytes=one.grant.length,
        staged=prepared.staged,
        kind=spec.kind,
        wanted=request.route,
        force=request.force_route,
        path_mtu_bytes=min(lane.queue_pair.local.mtu_bytes, one.grant.queue_pair.mtu_bytes),
    )
    if reach.registration is None:
        raise HostError(
            f"local {spec.kind} memory is staged: the server's direction needs it registered whole",
            why="its bytes reach the device through chunks of host memory",
            fix="leave --local-memory away: host memory of the size needed",
            code="staged_memory",
        )
    client.stack.callback(reach.registration.close)
    window_bytes = max(1, device.receive_window_bytes() // lanes)
    return Oncoming(one, lane, memory, tuple(reach.registration.remote_segments()), window_bytes, operation)


def incoming_of(results: Sequence[Reversed]) -> Incoming:
    """Return the sum over lanes; rates are added, each over its own time, as perftest does."""
    return Incoming(
        messages=sum(one.messages for one in results),
        elapsed_s=max(one.elapsed_ns for one in results) / 1e9,
        msg_rate_per_s=sum(one.messages * 1e9 / one.elapsed_ns for one in results if one.elapsed_ns),
        retransmitted_packets=sum(one.retransmitted_packets for one in results),
    )
