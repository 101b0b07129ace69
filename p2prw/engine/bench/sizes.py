"""Which message sizes a run has, and what bounded them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

SWEEP = tuple(1 << power for power in range(1, 24))
"""2 bytes to 8 MiB, as perftest's -a."""
_ALIGN_BYTES = 64
MOST_PLACES = 16384
"""Of a walk, of all queue pairs together: 64 MiB by pages. Their work requests are built before the run."""


def wanted_sizes(sizes: Sequence[int] | None, sweep: bool, default_bytes: int) -> tuple[int, ...]:
    """Return the sizes as asked for, in the order in which they run."""
    if sweep:
        return SWEEP
    return tuple(sizes) if sizes else (default_bytes,)


def walk_places(walk_bytes: int, size_bytes: int, queue_pairs: int) -> int:
    """Return how many messages one round of a queue pair has: all that fit, or fewer, evenly apart."""
    return min(walk_bytes // size_bytes, max(2, MOST_PLACES // queue_pairs))


def lane_room(room_bytes: int, queue_pairs: int) -> int:
    """Return what each queue pair gets of `room_bytes`: its own piece, because two writers may not share one."""
    share = room_bytes // queue_pairs
    # A piece may start anywhere, but one that shares a cache line with its neighbour would measure that.
    return share if queue_pairs == 1 else share // _ALIGN_BYTES * _ALIGN_BYTES or share


def bounded_sweep(sizes: Sequence[int], room_bytes: int) -> tuple[tuple[int, ...], str | None]:
    """Return the sizes that fit into `room_bytes` and a sentence about those that do not, None where all do."""
    fitting = tuple(size for size in sizes if size <= room_bytes)
    if len(fitting) == len(sizes):
        return fitting, None
    last = f"{fitting[-1]} bytes" if fitting else "nothing"
    return fitting, f"the sweep ends at {last}: each queue pair has {room_bytes} bytes to send in"
