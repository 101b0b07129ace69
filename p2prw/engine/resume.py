"""What of a transfer has arrived before: both ends' digests are compared before a block is skipped.

Where the sink notes what arrives (a file), only blocks that it noted, and that still hold what was noted, are looked
at; one of them that differs from the source means that the source is another one, and all of it is moved again. Other
memory notes nothing (a block device, a server's region): all of it is compared, and what differs is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import DIGESTS_PER_PAGE, Digest, Digests
from p2prw.engine.digest import BLOCK_BYTES, digest_blocks
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.memory.file_resume import ResumableSink
from p2prw.engine.model import Operation
from p2prw.engine.verify import receive_digests

MOST_RANGES = 4096
"""Ranges that are remembered; with more holes than that some blocks that have arrived are moved again."""


@dataclass(slots=True)
class Survey:
    """Compares [0, length) of a lease with what is at the sink. Drive `run()`; then look at `missing`."""

    channel: Channel
    lease: str
    operation: Operation
    local: MemorySource
    length_bytes: int
    manifest: bool
    """The sink, at whichever end, notes what arrives."""
    expect: Callable[[str], Digests]
    read_remote: Callable[[int, int], bytes | None]
    tick: Callable[[], None]
    """Called between blocks: keeps the device going and looks at stop and time limit."""
    missing: list[tuple[int, int]] = field(default_factory=list)
    """(start, end) of what is to be moved, in order."""
    held_bytes: int = 0
    changed_offset: int | None = None
    """Where a noted block differs from the source: it is not the source that the sink was filled from."""
    _page_offset: int = 0
    _blocks_done: int = 0

    def run(self) -> Generator[int, None, None]:
        """Yield the bytes looked at so far, now and then."""
        stride = DIGESTS_PER_PAGE * BLOCK_BYTES
        for offset in range(0, self.length_bytes, stride):
            length = min(stride, self.length_bytes - offset)
            held = yield from self._held(offset, length)
            for _, run in groupby(enumerate(held), lambda pair: bool(pair[1])):
                blocks = list(run)
                start = offset + blocks[0][0] * BLOCK_BYTES
                end = min(offset + (blocks[-1][0] + 1) * BLOCK_BYTES, self.length_bytes)
                wanted = [digest for _, digest in blocks]
                source = (yield from self._source(start, end - start)) if wanted[0] else [None] * len(wanted)
                for index, (have, want) in enumerate(zip(wanted, source, strict=True)):
                    self._take_in(start + index * BLOCK_BYTES, same=have == want, noted=bool(have))
            yield offset + length
        if self.changed_offset is not None:
            self.missing, self.held_bytes = [(0, self.length_bytes)], 0

    def _take_in(self, start: int, *, same: bool, noted: bool) -> None:
        end = min(start + BLOCK_BYTES, self.length_bytes)
        if same:
            self.held_bytes += end - start
            return
        if noted and self.manifest and self.changed_offset is None:
            self.changed_offset = start
        if self.missing and (self.missing[-1][1] == start or len(self.missing) >= MOST_RANGES):
            first, before = self.missing.pop()
            self.held_bytes -= start - before
            start = first
        self.missing.append((start, end))

    def _held(self, offset: int, length: int) -> Generator[int, None, list[str]]:
        """Return the sink's digests of one page, "" for blocks that have not arrived."""
        if self.operation is Operation.WRITE:
            return self._remote(offset, length, noted=self.manifest)
        if isinstance(self.local, ResumableSink):
            return (yield from self._local(self.local.held_digests(offset, length)))
        return (yield from self._local(digest_blocks(self.local, offset, length)))

    def _source(self, offset: int, length: int) -> Generator[int, None, list[str]]:
        if self.operation is Operation.READ:
            return self._remote(offset, length)
        return (yield from self._local(digest_blocks(self.local, offset, length)))

    def _remote(self, offset: int, length: int, *, noted: bool = False) -> list[str]:
        self.channel.send(Digest(self.lease, offset, length, BLOCK_BYTES, noted))
        digests, _ = receive_digests(
            self.expect, self.lease, offset, length, read_remote=self.read_remote, tick=self.tick
        )
        return digests

    def _local(self, digests: Iterator[str]) -> Generator[int, None, list[str]]:
        found = []
        for digest in digests:
            found.append(digest)
            self._blocks_done += 1
            if self._blocks_done % 8 == 0:
                self.tick()
                yield min(self._blocks_done * BLOCK_BYTES, self.length_bytes)
        return found
