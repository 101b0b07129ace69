"""Digests of a transfer's source while its bytes travel, where they have the processor's idle time for it.

That is: from host memory, between two ends on rxe. They wait for each other's packets, and two fifths of the
processors' time were idle (in the lab's guest). A NIC would be measured with a digest on its memory bus, and the
software device needs the processor itself: there the source is digested afterwards. The sink always is: nothing that
arrived is final before the flush.
"""

from __future__ import annotations

import threading
from typing import Protocol

from p2prw.engine.affinity import own_processors
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import Digest, Digests
from p2prw.engine.digest import BLOCK_BYTES, InPlace, digest_block, make_ready
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.model import Operation, RouteReport
from p2prw.errors import RemoteProtocolError
from p2prw.units import MIB

ASK_BYTES = 8 * MIB
"""What a peer is asked for at once: so little that it does not share it among threads (`digest.py`), which would take
both processors of a small guest from the transfer for a moment."""
_LEAST_BYTES = 16 * MIB


class SourceAhead(Protocol):
    """Digests that are being made. `digests` is of the source's first blocks, in order, as far as they are there."""

    digests: list[str]
    asked_bytes: int
    """The peer was asked up to here; 0: it was not asked."""

    def take_in(self, page: Digests) -> None:
        """Take in what the peer sent meanwhile. RemoteProtocolError where it was not asked for."""

    def stop(self) -> None:
        """Begin nothing more; our memory is not read when this returns."""


def source_ahead(
    channel: Channel,
    lease: str,
    operation: Operation,
    local: RouteReport,
    remote: RouteReport,
    memory: MemorySource,
    length_bytes: int,
) -> SourceAhead | None:
    """Begin with the digests of [0, length_bytes) of a lease's source; None where they must not be made ahead.

    `memory` is ours.
    """
    source = local if operation is Operation.WRITE else remote
    if (
        length_bytes < _LEAST_BYTES
        or source.memory != "host"
        or source.staged
        or not local.driver == remote.driver == "rxe"
        or own_processors() == 1
    ):
        return None
    view = memory.in_place().view if isinstance(memory, InPlace) else None
    if operation is Operation.READ:
        return PeerSource(channel, lease, length_bytes, shares=view is not None)
    return None if view is None else OurSource(view[:length_bytes])


class OurSource:
    """A thread that digests `view`; XXH3 of a block runs without the interpreter."""

    asked_bytes = 0

    def __init__(self, view: memoryview) -> None:
        self.digests: list[str] = []
        self._stopped = False
        # daemon: a program that ends in the middle of a transfer does not wait for it.
        self._thread = threading.Thread(target=self._run, args=(view,), name="p2prw-ahead", daemon=True)
        self._thread.start()

    def _run(self, view: memoryview) -> None:
        for start in range(0, len(view), BLOCK_BYTES):
            if self._stopped:
                return
            self.digests.append(digest_block(view[start : start + BLOCK_BYTES]))

    def take_in(self, page: Digests) -> None:
        """Nobody was asked."""
        raise RemoteProtocolError("digests that were not asked for", code="unexpected_message")

    def stop(self) -> None:
        """Wait for the block that is being digested."""
        self._stopped = True
        self._thread.join()


class PeerSource:
    """The server digests its region, a little at a time; what is under way at the end is the verifier's."""

    def __init__(self, channel: Channel, lease: str, length_bytes: int, *, shares: bool) -> None:
        """`shares`: our sink will be digested by several threads; what they need is loaded meanwhile."""
        self.digests: list[str] = []
        self.asked_bytes = 0
        self._channel = channel
        self._lease = lease
        self._length_bytes = length_bytes
        self._ask()
        self._thread = threading.Thread(target=make_ready, name="p2prw-ahead", daemon=True) if shares else None
        if self._thread is not None:
            self._thread.start()

    def _ask(self) -> None:
        start, end = self.asked_bytes, min(self.asked_bytes + ASK_BYTES, self._length_bytes)
        if start < end:
            self._channel.send(Digest(self._lease, start, end - start, BLOCK_BYTES))
            self.asked_bytes = end

    def take_in(self, page: Digests) -> None:
        """Take in a page, and ask for more after the last one."""
        have = len(self.digests)
        asked = -(-self.asked_bytes // BLOCK_BYTES)
        if (
            page.lease != self._lease
            or page.offset != have * BLOCK_BYTES
            or page.method != "owner-cpu"
            or not 0 < len(page.digests) <= asked - have
        ):
            raise RemoteProtocolError("a page of digests that was not asked for", code="unexpected_message")
        self.digests += page.digests
        if len(self.digests) == asked:
            self._ask()

    def stop(self) -> None:
        """Nothing of ours is read; what the peer was asked for last is still to come."""
        if self._thread is not None:
            self._thread.join()
