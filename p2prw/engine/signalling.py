"""How often a work request is signalled: one in N, for progress and for room in the send queue. Pure."""

from __future__ import annotations

from p2prw.units import MIB

_MOST_BYTES_UNSEEN = 4 * MIB


def signal_interval(depth: int, chunk_bytes: int, wanted: int | None, post_list: int | None = None) -> int:
    """Return N of "one in N is signalled": at most depth / 2, and a completion at least every 4 MiB for progress.

    `post_list`: work requests leave in chains of so many.
    """
    most = min(depth // 4, _MOST_BYTES_UNSEEN // max(1, chunk_bytes)) if wanted is None else min(wanted, depth // 2)
    every = max(1, most)
    if post_list and post_list % every:
        # What a chain leaves unsignalled must not take the room that the next one waits for.
        every = min(every, max(1, depth - post_list + 1))
    return every
