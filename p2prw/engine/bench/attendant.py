"""What goes on beside a timed loop, by time, never per message: control frames, Ctrl-C and limits, samples to show."""

from __future__ import annotations

import select
from collections.abc import Sequence
from dataclasses import dataclass, field

from p2prw.engine.control.channel import MESSAGES_PER_LOOK, Channel
from p2prw.engine.control.messages import GoOn, Refuse, Window, error_from
from p2prw.engine.deadline import Deadline
from p2prw.engine.model import Operation
from p2prw.engine.providers.base import QueuePair
from p2prw.errors import DeadlineExceeded, RemoteProtocolError

LOOK_INTERVAL_S = 0.005
GO_ON_INTERVAL_S = 1.0
"""A fifth of what a server of both directions allows."""
SAMPLE_INTERVAL_S = 0.125


@dataclass(slots=True)
class Attendant:
    """Call `attend` when `next_s` has come."""

    peers: Sequence[tuple[Channel, QueuePair]]
    operation: Operation
    deadline: Deadline
    idle_s: float
    leases: Sequence[str] = ()
    """While the servers post towards us, too: of each peer, for the word that they may go on."""
    next_s: float = 0.0
    _poller: select.poll | None = None
    _by_fileno: dict[int, tuple[Channel, QueuePair]] = field(default_factory=dict)
    _unheard: set[int] = field(default_factory=set)
    """Those that may have said something that no poll shows, because it was read from the socket already."""
    _go_on_s: float = 0.0
    _sample_s: float = 0.0
    _done: int = -1
    _active_s: float = 0.0

    def begin(self, now: float) -> None:
        """A run starts: nothing has been done, and that is no idleness yet."""
        self.next_s, self._sample_s = now, now + SAMPLE_INTERVAL_S
        self._done, self._active_s = -1, now
        self._go_on_s = now + GO_ON_INTERVAL_S
        self._poller = None

    def _speaking(self) -> list[tuple[Channel, QueuePair]]:
        """Return the peers that may have something to say: one call for all of them."""
        if self._poller is None:
            self._poller = select.poll()
            self._by_fileno = {channel.fileno(): (channel, queue_pair) for channel, queue_pair in self.peers}
            for fileno in self._by_fileno:
                self._poller.register(fileno, select.POLLIN)
            self._unheard = set(self._by_fileno)
        unheard, self._unheard = self._unheard, set()
        unheard.update(fileno for fileno, _ in self._poller.poll(0))
        return [self._by_fileno[fileno] for fileno in unheard]

    def attend(self, now: float, done: int) -> bool:
        """Return True when a sample is due; `done` is anything that grows as long as work completes.

        Raises what ends a run: InterruptedTransfer, TimeLimitError, DeadlineExceeded, PeerGone, what the peer refused.
        """
        self.next_s = now + LOOK_INTERVAL_S
        for channel, queue_pair in self._speaking():
            for _ in range(MESSAGES_PER_LOOK):
                match message := channel.receive():
                    case None:
                        break
                    case Window():
                        # It bounds what we send; READ responses come to us, where our own buffer is the bound.
                        if self.operation is Operation.WRITE:
                            queue_pair.set_window(message.window_bytes)
                    case Refuse():
                        raise error_from(message)
                    case _:
                        raise RemoteProtocolError(f"{message.TYPE} in the middle of a run", code="unexpected_message")
            else:
                self._unheard.add(channel.fileno())
        if now >= self._go_on_s:
            self._go_on_s = now + GO_ON_INTERVAL_S
            for (channel, _), lease in zip(self.peers, self.leases, strict=False):
                channel.send(GoOn(lease))
        if done != self._done:
            self._done, self._active_s = done, now
        self.deadline.check("while measuring")
        if now - self._active_s > self.idle_s:
            raise DeadlineExceeded(
                f"nothing completed for {self.idle_s:g} s (--idle-timeout)",
                why="the peer answers nothing, or the way there is blocked",
                fix="check that the peer is alive and that UDP passes; --idle-timeout",
                code="idle_timeout",
            )
        if now < self._sample_s:
            return False
        self._sample_s = now + SAMPLE_INTERVAL_S
        return True
