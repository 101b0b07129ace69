"""Whether a grant can be true: what a server says of a lease, held against what was asked for and against itself. Pure.

A server owns what it grants and can spoil it. It cannot make us post what its words do not cover: that is looked at
here, before anything is registered.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2prw.engine.control.messages import Gid, Grant, Segment
from p2prw.errors import RemoteProtocolError

_U64_END = 1 << 64


def check_grant(grant: Grant, *, asked_bytes: int | None, limit_bytes: int | None, peer_gids: Iterable[Gid]) -> None:
    """Raise RemoteProtocolError `bad_grant` or `bad_gid` for a grant that cannot be used.

    `asked_bytes`: the size that was asked for; `limit_bytes`: what our memory holds; None: no such bound. `peer_gids`:
    the table of the server's hello.
    """
    length = grant.length
    if (limit_bytes is not None and length > limit_bytes) or (asked_bytes is not None and length != asked_bytes):
        raise _bad("another length than was asked for", f"{length} bytes")
    if grant.queue_pair.gid not in {row.gid for row in peer_gids}:
        # Packets go only to addresses that belong to the one we shook hands with.
        raise RemoteProtocolError("the queue pair's GID is not in the server's table", code="bad_gid")
    if not length:
        return
    staging = grant.staging
    segments = grant.segments if staging is None else staging.slots
    _check_ends(segments)
    if staging is None:
        reached = sum(segment.length for segment in segments)
        if reached < length:
            raise _bad("segments that are shorter than the granted length", f"{length - reached} bytes are missing")
    elif not segments or min(slot.length for slot in segments) < staging.chunk_bytes:
        raise _bad("no staging slots, or some that are shorter than a chunk", f"a chunk is {staging.chunk_bytes} bytes")


def _check_ends(segments: Iterable[Segment]) -> None:
    for segment in segments:
        if segment.address + segment.length > _U64_END:
            raise _bad("memory beyond 2^64", f"{segment.length} bytes at {segment.address:#x}")


def _bad(what: str, why: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"the server granted {what}", why=why, code="bad_grant")
