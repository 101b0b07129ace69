"""A file sink that a killed transfer leaves behind in good order, so that the next one goes on with it.

Every block that arrived is fsynced, then noted in a manifest beside the temporary file. Killed at any moment, at most
the blocks that were on their way are lost; whatever is found later is digested again before it counts.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from p2prw.engine.digest import BLOCK_BYTES, digest_block
from p2prw.engine.memory.file_errors import file_error
from p2prw.engine.memory.file_parts import lock_part, resume_paths
from p2prw.engine.memory.file_sink import FileSink
from p2prw.engine.memory.manifest import Manifest, open_own
from p2prw.engine.model import MemorySpec, SourceIdentity
from p2prw.errors import HostError

_MOST_PARTIAL_BLOCKS = 4096
"""Blocks that came in pieces and are not whole yet; beyond it the oldest is not noted, and moved again."""


def most_unsynced_blocks(length_bytes: int) -> int:
    """Return how many blocks may wait for the next fdatasync: a 64th of the transfer, at most 16."""
    return min(16, length_bytes // BLOCK_BYTES // 64)


class ResumableSink(FileSink):
    """A `FileSink` under a name that can be found again. Block n begins at `range_start + n * BLOCK_BYTES`."""

    def __init__(self, spec: MemorySpec, path: str, *, source: SourceIdentity, **where: Any) -> None:
        """`source`: what the bytes come from; `where`: as for FileSink. HostError `busy`: somebody resumes it now."""
        self._source = source
        self._manifest: Manifest | None = None
        self._arrived: dict[int, int] = {}
        """Blocks that are not whole yet -> bytes of them."""
        self._unsynced: dict[int, str] = {}
        self._syncing = False
        self._turn = threading.Condition()
        super().__init__(spec, path, **where)
        self._most_unsynced = most_unsynced_blocks(self.length_bytes - self._range_start)

    @property
    def restarted(self) -> str | None:
        """Why what had been kept is of no use; None where it is, or where there was nothing."""
        return self._manifest.restarted if self._manifest is not None else None

    @property
    def keeps(self) -> bool:
        """Something has arrived that closing leaves behind."""
        return self._manifest is not None and self._manifest.holds_any and not self._committed

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write, and see to it that the blocks that are whole now are noted. Called by several threads.

        One thread at a time syncs. The others leave their blocks to it and go on, up to a bound: so there is one
        fdatasync for many chunks, and no more that a kill can lose.
        """
        super().write_at(offset, data)
        arrived = {}
        for index in self._take_in(offset - self._range_start, len(data)):
            start = self._range_start + index * BLOCK_BYTES - offset
            inside = start >= 0 and start + self._block_bytes(index) <= len(data)
            block = data[start : start + self._block_bytes(index)] if inside else self._read_block(index)
            arrived[index] = digest_block(block)
        with self._turn:
            self._unsynced |= arrived
            while self._syncing and len(self._unsynced) > self._most_unsynced:
                self._turn.wait()
            if self._syncing or not self._unsynced:
                return
            self._syncing = True
        try:
            self._sync()
        except BaseException:
            with self._turn:
                self._syncing = False
                self._turn.notify_all()
            raise

    def _sync(self) -> None:
        """fdatasync, then note; again while there is more."""
        assert self._manifest is not None
        while True:
            with self._turn:
                arrived, self._unsynced = self._unsynced, {}
                self._turn.notify_all()
                if not arrived:
                    # Whoever comes from here on syncs: within one lock, so that nobody leaves blocks to nobody.
                    self._syncing = False
                    return
            try:
                os.fdatasync(self.descriptor)
            except OSError as error:
                raise file_error("write", self.path, error) from error
            for index, digest in arrived.items():
                self._manifest.note(index, digest)

    def held_digests(self, offset: int, length_bytes: int) -> Iterator[str]:
        """Yield for each block of the range its digest where it has arrived and is still what was noted, else ""."""
        assert self._manifest is not None
        first = (offset - self._range_start) // BLOCK_BYTES
        noted = self._manifest.digests(first, -(-length_bytes // BLOCK_BYTES))
        for index, digest in enumerate(noted, first):
            yield digest if digest and digest == digest_block(self._read_block(index)) else ""

    def forget(self) -> None:
        """Start over: nothing that has arrived counts."""
        if self._manifest is not None:
            self._manifest.forget()

    def commit(self) -> None:
        """As FileSink; the manifest goes last, so that no moment has a part without one."""
        super().commit()
        if self._manifest is not None:
            self._manifest.remove()

    def abort(self) -> None:
        """Remove the temporary file and its manifest; nothing happens after `commit`."""
        if not self._committed and self._manifest is not None:
            self._manifest.remove()
        super().abort()

    # --- what FileSink asks -----------------------------------------------------------------------------------

    def _leave(self) -> None:
        if not self.keeps:
            self.abort()

    def _create_temporary(self, existing: os.stat_result | None) -> str:
        part, manifest = resume_paths(self._target)
        self.descriptor = self._open_part(part, existing)
        # One with bytes in it has had its space reserved: it is an earlier transfer's.
        is_new = os.fstat(self.descriptor).st_size == 0
        if existing is not None:
            self._take_over(existing)
        where = {"base": self.base_offset, "start": self._range_start, "end": self.length_bytes}
        source = {f"source_{name}": value for name, value in asdict(self._source).items()}
        self._manifest = Manifest(manifest, {**source, "block_bytes": BLOCK_BYTES, **where}, part_is_new=is_new)
        try:
            # What another transfer left must not show through where this one does not write.
            os.ftruncate(self.descriptor, 0 if self._manifest.fresh else self._kept_bytes())
        except OSError as error:
            raise file_error("create", self.path, error) from error
        return part

    def _kept_bytes(self) -> int:
        return min(self._final_bytes, os.fstat(self.descriptor).st_size)

    def _open_part(self, part: str, existing: os.stat_result | None) -> int:
        for _ in range(10):
            descriptor = open_own(part, 0o666 if existing is None else 0o600)
            if os.fstat(descriptor).st_nlink == 1 and lock_part(descriptor):
                return descriptor
            links = os.fstat(descriptor).st_nlink
            os.close(descriptor)
            if links == 1:
                raise HostError(
                    f"{self.path} is being written by another process",
                    why=f"it holds {part}",
                    fix="try again when it has finished, or leave --resume away",
                    code="busy",
                )
            if links > 1:
                # Killed between link() and unlink() of the last commit: it is the target itself, and must not change.
                os.unlink(part)  # noqa: PTH108
        raise HostError(
            f"cannot hold {part}", why="it comes and goes", fix="try again later, or leave --resume away", code="busy"
        )

    def _notes(self) -> tuple[str, ...]:
        # What is kept is gone on with.
        return ()

    def _ranges_to_copy(self) -> list[tuple[int, int]]:
        # The rest of the target is taken as it is now; what is written is not: a block that has arrived must stay.
        start, end = self.base_offset + self._range_start, self.base_offset + self.length_bytes
        return [(0, min(start, self._copy_bytes)), (end, self._copy_bytes)]

    def _close_descriptors(self) -> None:
        super()._close_descriptors()
        if self._manifest is not None:
            self._manifest.close()

    # --- blocks -----------------------------------------------------------------------------------------------

    def _block_bytes(self, index: int) -> int:
        return min(BLOCK_BYTES, self.length_bytes - self._range_start - index * BLOCK_BYTES)

    def _read_block(self, index: int) -> bytes:
        block = bytearray(self._block_bytes(index))
        count = self.read_at(self._range_start + index * BLOCK_BYTES, memoryview(block))
        return bytes(block[:count])

    def _take_in(self, start: int, length_bytes: int) -> list[int]:
        """Return the blocks that [start, start + length) makes whole.

        Bytes are counted, not ranges: a peer that writes a byte twice can make us note a block too early. That costs
        it a move: the digest of what the block then holds is not the source's.
        """
        whole = []
        with self._turn:
            for index in range(start // BLOCK_BYTES, -(-(start + length_bytes) // BLOCK_BYTES)):
                first = index * BLOCK_BYTES
                size = self._block_bytes(index)
                here = min(start + length_bytes, first + size) - max(start, first)
                arrived = self._arrived.pop(index, 0) + here
                if arrived >= size:
                    whole.append(index)
                else:
                    self._arrived[index] = arrived
            while len(self._arrived) > _MOST_PARTIAL_BLOCKS:
                del self._arrived[next(iter(self._arrived))]
        return whole
