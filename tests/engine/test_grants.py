"""A grant is held against what was asked for and against itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2prw.engine.control.messages import Gid, Grant, QueuePairInfo, RouteInfo, Segment, Staging
from p2prw.engine.grants import check_grant
from p2prw.errors import RemoteProtocolError

GID = "0" * 20 + "ffff0a000001"
TABLE = (Gid(0, "0" * 31 + "1", "rocev2"), Gid(1, GID, "rocev2"))
GRANT = Grant(
    lease="0" * 16,
    length=8192,
    segments=(Segment(0x1000, 4096, 1), Segment(0x9000, 4096, 2)),
    window_bytes=65536,
    route=RouteInfo("cpu", "cpu", False, "host", "soft0", "soft"),
    queue_pair=QueuePairInfo(5, 6, GID, 4096, 16, 16),
)
STAGED = replace(GRANT, segments=(), staging=Staging(4096, (Segment(0, 4096, 1), Segment(4096, 5000, 1))))


def check(grant: Grant, asked_bytes: int | None = None, limit_bytes: int | None = None) -> None:
    check_grant(grant, asked_bytes=asked_bytes, limit_bytes=limit_bytes, peer_gids=TABLE)


@pytest.mark.parametrize(
    "grant",
    [
        GRANT,
        STAGED,
        replace(GRANT, length=5000),
        replace(GRANT, length=0, segments=()),
        replace(GRANT, segments=(Segment((1 << 64) - 8192, 8192, 1),)),
    ],
)
def test_what_an_honest_server_grants(grant: Grant) -> None:
    check(grant)
    check(grant, asked_bytes=grant.length, limit_bytes=grant.length)


@pytest.mark.parametrize(("asked", "limit"), [(8191, None), (8193, None), (None, 8191), (0, None)])
def test_another_length_than_was_asked_for(asked: int | None, limit: int | None) -> None:
    with pytest.raises(RemoteProtocolError, match="another length") as caught:
        check(GRANT, asked, limit)
    assert caught.value.code == "bad_grant" and caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("grant", "words"),
    [
        (replace(GRANT, segments=()), "8192 bytes are missing"),
        (replace(GRANT, segments=(*GRANT.segments[:1], Segment(0x9000, 4095, 2))), "1 bytes are missing"),
        (replace(GRANT, segments=(Segment((1 << 64) - 8191, 8192, 1),)), "8192 bytes at 0xffffffffffffe001"),
        (replace(STAGED, staging=Staging(4096, ())), "a chunk is 4096 bytes"),
        (replace(STAGED, staging=Staging(4097, STAGED.staging.slots)), "a chunk is 4097 bytes"),  # type: ignore[union-attr]
        (replace(STAGED, staging=Staging(4096, (Segment((1 << 64) - 1, 4096, 1),))), "4096 bytes at"),
    ],
)
def test_memory_that_cannot_hold_what_was_granted(grant: Grant, words: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check(grant)
    assert caught.value.code == "bad_grant" and words in str(caught.value.why)


def test_data_goes_to_nobody_the_server_did_not_name_as_itself() -> None:
    elsewhere = replace(GRANT.queue_pair, gid="0" * 20 + "ffff0a000002")
    with pytest.raises(RemoteProtocolError) as caught:
        check(replace(GRANT, queue_pair=elsewhere))
    assert caught.value.code == "bad_gid"
