"""A digest that a client asked for: a few blocks at each turn of the loop, pages as they are full."""

from __future__ import annotations

from collections.abc import Iterator

from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import DIGESTS_PER_PAGE, Digest, Digests
from p2prw.engine.digest import BLOCK_BYTES, digest_blocks
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.memory.file_resume import ResumableSink
from p2prw.errors import HostError, RemoteProtocolError

_BLOCKS_PER_STEP = 4
_MOST_QUEUED_BYTES = 256 * 1024


class Digesting:
    """The range that `request` names of `length_bytes` of `memory` from `base_offset` on. Drive `step` until `done`."""

    def __init__(self, request: Digest, memory: MemorySource, base_offset: int, length_bytes: int) -> None:
        """RemoteProtocolError where the client may not ask for that."""
        if request.length == 0 or request.offset + request.length > length_bytes:
            raise RemoteProtocolError("digest outside the lease", code="bad_range")
        start = base_offset + request.offset
        if request.noted and isinstance(memory, ResumableSink):
            if request.block_bytes != BLOCK_BYTES or request.offset % BLOCK_BYTES:
                raise RemoteProtocolError("digest of other blocks than the manifest's", code="bad_range")
            self._blocks: Iterator[str] = memory.held_digests(start, request.length)
        else:
            self._blocks = digest_blocks(memory, start, request.length, request.block_bytes)
        self.done = False
        self._request = request
        self._method = memory.digest_method
        self._offset = request.offset
        self._page: list[str] = []

    def step(self, channel: Channel) -> bool:
        """Digest a few blocks; False, and nothing done, while the client leaves what it was sent unread. HostError."""
        if channel.queued_bytes > _MOST_QUEUED_BYTES:
            return False
        request, page = self._request, self._page
        for _ in range(_BLOCKS_PER_STEP):
            try:
                digest = next(self._blocks, None)
            except HostError as error:
                if error.code != "no_loopback":
                    raise
                # Nobody here can read this memory; the client, whose keys reach it, can.
                channel.send(Digests(request.lease, self._offset, (), False, "client-read-back"))
                self.done = True
                break
            if digest is not None:
                page.append(digest)
            end = self._offset + len(page) * request.block_bytes
            self.done = digest is None or end >= request.offset + request.length
            if self.done or len(page) == DIGESTS_PER_PAGE:
                channel.send(Digests(request.lease, self._offset, tuple(page), not self.done, self._method))
                self._offset = end
                page.clear()
            if self.done:
                break
        return True
