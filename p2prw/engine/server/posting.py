"""What a server posts by itself, for a client that measures: the answers of a ping-pong, or the reverse direction.

At most one of them is under way for a lease. Only ever over that lease's queue pair, so only to the client that asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import GoOn, Halt, Pingpong, Ponging, Reverse, Reversing
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.model import DmaVec, Operation
from p2prw.engine.providers.base import Device, QueuePair
from p2prw.engine.server import pingpong, refusals
from p2prw.engine.server.reverse import ReverseRun, start_reverse
from p2prw.errors import RemoteProtocolError


@dataclass(slots=True)
class Poster:
    """Of one lease whose memory is registered whole. `hear`, then `step`; `close` ends it."""

    operation: Operation
    memory: MemorySource
    base_offset: int
    length_bytes: int
    readable: bool
    """The client may read what is leased."""
    vec: DmaVec
    device: Device
    queue_pair: QueuePair
    max_send_sge: int
    window_bytes: int
    """What this client may have on the wire towards us, as it was granted."""
    passive: bool = False
    """`--passive`: nothing is ever posted."""
    rate_limited: bool = False
    """`--client-rate-limit`: what is posted here would pass it by."""
    _pingpong: pingpong.Pingpong | None = None
    _reverse: ReverseRun | None = None
    _posted_before: int = 0
    """By earlier ones on this queue pair: ids go on counting, so that late completions are nobody else's."""

    @property
    def has_steps(self) -> bool:
        """`step` may find something to do."""
        return self._pingpong is not None or (self._reverse is not None and not self._reverse.finished)

    @property
    def read_sink(self) -> MemorySource | None:
        """What a reverse READ has filled, once it is halted and complete."""
        return self._reverse.sink if self._reverse is not None and self._reverse.finished else None

    def hear(self, message: Pingpong | Reverse | GoOn | Halt, channel: Channel) -> None:
        """Do as asked, and answer. PeerRefusedError, RemoteProtocolError where the client may not ask for that."""
        match message:
            case Pingpong():
                self._start_pingpong(message)
                channel.send(Ponging(message.lease))
            case Reverse():
                self._start_reverse(message)
                channel.send(Reversing(message.lease))
            case GoOn() | Halt() if self._reverse is None or self._reverse.finished:
                raise RemoteProtocolError(f"{message.TYPE} without a reverse", code="unexpected_message")
            case GoOn():
                self._reverse.go_on()
            case Halt():
                self._reverse.halt()

    def _check(self, message: Pingpong | Reverse) -> None:
        if self.passive:
            raise refusals.passive()
        if message.length > self.length_bytes:
            raise RemoteProtocolError(f"{message.TYPE} outside the lease", code="bad_range")
        if not self.readable:
            raise RemoteProtocolError(f"{message.TYPE} with a region that may not be read", code="bad_right")
        if self._reverse is not None and not self._reverse.finished:
            raise RemoteProtocolError(f"{message.TYPE} in the middle of a reverse", code="unexpected_message")

    def _start_pingpong(self, message: Pingpong) -> None:
        self._check(message)
        if self.operation is not Operation.WRITE:
            raise RemoteProtocolError("ping-pong outside a write lease", code="bad_range")
        if len(self.vec) != 1:
            raise RemoteProtocolError("ping-pong for a region that is not in one piece", code="unexpected_message")
        view = pingpong.watched_view(self.memory, self.base_offset, message.length)
        self.close()
        self._pingpong = pingpong.Pingpong(
            self.device, self.queue_pair, view, self.vec, message.address, message.rkey,
            posted_before=self._posted_before,
        )  # fmt: skip

    def _start_reverse(self, message: Reverse) -> None:
        self._check(message)
        if self.rate_limited:
            raise refusals.one_way()
        self.close()
        self._reverse = start_reverse(
            message, self.operation, self.device, self.queue_pair, self.vec, first_wr_id=self._posted_before,
            window_bytes=self.window_bytes, max_send_sge=self.max_send_sge,
        )  # fmt: skip

    def step(self, channel: Channel) -> bool:
        """Post and retire for a slice of time; return whether to call it again at once. CompletionError."""
        busy = False
        if self._pingpong is not None:
            busy = self._pingpong.step()
        if self._reverse is not None and not self._reverse.finished:
            busy = self._reverse.step() or busy
            if (result := self._reverse.take_result()) is not None:
                channel.send(result)
        return busy

    def close(self) -> None:
        """Stop, and free what was registered for it. Safe to call twice."""
        if self._pingpong is not None:
            self._posted_before += self._pingpong.answered
        if self._reverse is not None:
            self._posted_before += self._reverse.lane.posted
            self._reverse.close()
        self._pingpong = self._reverse = None
