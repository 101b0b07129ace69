"""The server's half of a ping-pong: watch memory, and WRITE back whatever arrives.

Two processes that both watch memory halve a round trip, as ib_write_lat does: no interrupt and no completion is in the
way. What goes back is what the client may read anyway, over its own queue pair, into memory whose key it gave.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from p2prw.engine.completion import completion_error
from p2prw.engine.control.measuring import TAGS
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.model import DmaVec, Opcode, Sge, WcStatus
from p2prw.engine.providers.base import Device, QueuePair
from p2prw.engine.waiting import looks_at, watch
from p2prw.errors import PeerRefusedError

_SLICE_S = 0.0005
"""The other clients wait for this long at most."""
_SPIN_S = 0.25
"""After this long without a message the loop may sleep: a client that left must not cost a core."""


def watched_view(memory: MemorySource, offset: int, length_bytes: int) -> memoryview:
    """Return the bytes to watch. PeerRefusedError `no_pingpong` where a CPU cannot watch them cheaply."""
    buffers = memory.buffers()
    view = buffers[0].view if len(buffers) == 1 and memory.spec.kind == "host" else None
    if view is None:
        raise PeerRefusedError(
            f"{memory.spec.kind} memory cannot be watched for a ping-pong",
            why="both ends look at the last byte again and again; that needs host memory",
            fix="p2prw serve --region scratch=host,size=64MiB, or --lat-by completion",
            code="no_pingpong",
        )
    return view[offset : offset + length_bytes]


@dataclass(slots=True)
class Pingpong:
    """Drive `step`; it answers what has arrived and returns whether to call it again at once."""

    device: Device
    queue_pair: QueuePair
    view: memoryview
    """The message's bytes in our memory."""
    vec: DmaVec
    """The same bytes as the device knows them."""
    remote_addr: int
    rkey: int
    posted_before: int = 0
    """By an earlier one on this queue pair: ids go on counting, so that its last completions are not ours."""
    clock: Callable[[], float] = time.monotonic
    answered: int = 0
    _completed: int = 0
    _last_s: float = field(default=0.0)

    def __post_init__(self) -> None:
        self.view[-1] = 0
        self._last_s = self.clock()

    def step(self) -> bool:
        """Answer for a slice of time. CompletionError where the client's memory is not what it said."""
        last, now = len(self.view) - 1, self.clock()
        end_s = now + _SLICE_S
        (segment,) = self.vec
        sges = (Sge(segment.address, len(self.view), segment.lkey),)
        view, looks = self.view, looks_at(self.device)
        while now < end_s:
            self._pump()
            now = self.clock()
            room = self.answered - self._completed < self.queue_pair.depth
            if room and watch(view, last, self.answered % TAGS + 1, looks):
                self.queue_pair.post_rdma(
                    self.posted_before + self.answered,
                    Opcode.RDMA_WRITE,
                    sges,
                    self.remote_addr,
                    self.rkey,
                    signaled=True,
                )
                # It leaves now; what has completed meanwhile is looked at when the answer is on its way.
                self.device.pump()
                self.answered += 1
                self._last_s = now
        return now - self._last_s < _SPIN_S

    def _pump(self) -> None:
        self.device.pump()
        for completion in self.queue_pair.poll():
            if completion.status is not WcStatus.SUCCESS:
                raise completion_error(completion, 0, 0)
            self._completed = max(0, completion.wr_id + 1 - self.posted_before)
