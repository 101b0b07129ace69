"""Block digests of final memory: XXH3-128 for each block, and one digest over them; run by the side that owns it.

A generator, so that one thread can drive a device between two blocks. Host memory is hashed where it lies, much of it
by several threads (XXH3 of a large piece runs without the interpreter); other memory passes through one reused buffer
of at most 4 MiB. XXH3 finds accidents, not attackers: it is no proof against a peer that lies.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from p2prw.engine.affinity import own_processors
from p2prw.errors import HostError, RequestError
from p2prw.units import KIB, MIB

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

ALGORITHM = "xxh3-128"
BLOCK_BYTES = MIB
MAX_READ_BYTES = 4 * MIB
"""Most bytes of one `read_at` (see `MemorySource.read_at`), and of what one thread hashes before the next may."""
_MOST_THREADS = 4
"""Of the process, whoever digests: a server's loop must not wait for a processor behind its digests."""
_LEAST_SHARED_BYTES = 16 * MIB
_LEAST_SHARED_BLOCK_BYTES = 256 * KIB
"""xxhash keeps the interpreter while it hashes less than 100,000 bytes."""


class Readable(Protocol):
    """The part of `MemorySource` that a digest needs."""

    def read_at(self, offset: int, into: memoryview) -> int:
        """Copy bytes from `offset` into `into`; return the count, short only at the end."""


class Plain(Protocol):
    """The part of `MappedBuffer` that is looked at; `view` is None where memory must not be read that way."""

    view: memoryview | None


@runtime_checkable
class InPlace(Protocol):
    """Memory that may be read where it lies."""

    def in_place(self) -> Plain:
        """Return the buffer that is all of it."""


def digest_block(data: bytes | bytearray | memoryview) -> str:
    """Return the XXH3-128 of one block, 32 hex digits."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


def digest_blocks(
    source: Readable, offset: int, length_bytes: int, block_bytes: int = BLOCK_BYTES
) -> Generator[str, None, None]:
    """Yield the XXH3-128 (32 hex digits) of each block of [offset, offset + length_bytes); the last may be shorter.

    Blocks longer than 4 MiB are hashed in pieces; shorter ones are read one by one, at most `block_bytes` between two
    yields. HostError (EIO) when the memory ends before the range does.
    """
    if block_bytes < 1:
        raise RequestError(f"a digest block of {block_bytes} bytes", fix=str(BLOCK_BYTES), code="bad_size")
    import xxhash

    in_place = source.in_place() if isinstance(source, InPlace) else None
    end = offset + length_bytes
    if (
        in_place is not None
        and length_bytes >= _LEAST_SHARED_BYTES
        and _LEAST_SHARED_BLOCK_BYTES <= block_bytes <= MAX_READ_BYTES
        and (threads := _threads()) > 1
    ):
        offset = yield from _digest_together(in_place, offset, end, block_bytes, threads)
    buffer = memoryview(bytearray(min(MAX_READ_BYTES, block_bytes, length_bytes)))
    hasher = xxhash.xxh3_128()
    while offset < end:
        block_end = min(offset + block_bytes, end)
        while offset < block_end:
            if in_place is not None and (view := in_place.view) is not None:
                # fast path: plain memory is hashed where it lies, in no more than a read's bytes at a time
                stop = min(block_end, offset + MAX_READ_BYTES, len(view))
                if stop > offset:
                    hasher.update(view[offset:stop])
                    offset = stop
                    continue
            piece = buffer[: block_end - offset]
            got = source.read_at(offset, piece)
            if not 0 < got <= len(piece):
                raise HostError(
                    f"the memory ended at byte {offset}, {end - offset} bytes early, while it was digested",
                    why="it got shorter since it was opened",
                    fix="run again when nothing else writes to it",
                    code="short_memory",
                    errno="EIO",
                )
            hasher.update(piece[:got])
            offset += got
        yield hasher.hexdigest()
        hasher.reset()


def _digest_together(memory: Plain, offset: int, end: int, block_bytes: int, threads: int) -> Generator[str, None, int]:
    """Yield the digests of [offset, end) in order; return where `memory` ended, or went away."""
    pool, ahead = _pool(threads), deque["Future[list[str]]"]()
    step = MAX_READ_BYTES // block_bytes * block_bytes
    started = offset
    try:
        while True:
            while len(ahead) < 2 * threads and started < end and (view := memory.view) is not None:
                stop = min(started + step, end)
                if stop > len(view):
                    break
                # The slice is made here: memory that is closed meanwhile is unmapped when the last slice goes.
                ahead.append(pool.submit(_digest_piece, view[started:stop], block_bytes))
                started = stop
            if not ahead:
                return started
            yield from ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


def _digest_piece(piece: memoryview, block_bytes: int) -> list[str]:
    return [digest_block(piece[start : start + block_bytes]) for start in range(0, len(piece), block_bytes)]


def make_ready() -> None:
    """Import what digests of large memory need, so that they need not wait for it; begins no thread."""
    import xxhash  # noqa: F401

    _pool(_threads())


def _threads() -> int:
    return min(_MOST_THREADS, own_processors())


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads, "p2prw-digest")


# A pool that was inherited by a fork has no threads and does not know it: its child would wait for ever.
os.register_at_fork(after_in_child=_pool.cache_clear)


class TotalDigest:
    """The XXH3-128 over concatenated 16-byte block digests; the same for blocks digested on different sides."""

    def __init__(self) -> None:
        import xxhash

        self._hasher = xxhash.xxh3_128()

    def add(self, block_digests: Sequence[str]) -> None:
        """Take in the next blocks' digests."""
        self._hasher.update(bytes.fromhex("".join(block_digests)))

    def hexdigest(self) -> str:
        """Return 32 hex digits."""
        return self._hasher.hexdigest()
