"""A digest under way: bounded work, full pages, and a client that does not read."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from p2prw.engine.control.messages import DIGESTS_PER_PAGE, Digest, Digests
from p2prw.engine.digest import digest_block
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.server.digesting import Digesting
from p2prw.errors import HostError, RemoteProtocolError

DATA = random.Random("digesting").randbytes(10_000)
LEASE = "0" * 16


class FakeChannel:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.queued_bytes = 0
        self.sent: list[Digests] = []

    def send(self, message: Digests) -> None:
        self.sent.append(message)


def digesting(offset: int, length: int, block_bytes: int, base_offset: int = 0, whole: int = len(DATA)) -> Digesting:
    return Digesting(Digest(LEASE, offset, length, block_bytes), HostMemory.from_buffer(DATA), base_offset, whole)


def finish(one: Digesting, channel: FakeChannel) -> int:
    steps = 0
    while not one.done:
        assert one.step(channel)  # type: ignore[arg-type]
        steps += 1
    return steps


def test_blocks_of_the_range_count_from_the_lease():
    channel = FakeChannel()
    finish(digesting(10, 250, 100, base_offset=7, whole=260), channel)
    blocks = tuple(digest_block(DATA[start : min(start + 100, 267)]) for start in (17, 117, 217))
    assert channel.sent == [Digests(LEASE, 10, blocks, False, "owner-cpu")]


def test_pages_are_full_but_the_last_and_each_step_is_bounded():
    channel, blocks = FakeChannel(), 2 * DIGESTS_PER_PAGE + 3
    assert finish(digesting(0, 2 * blocks, 2), channel) == -(-blocks // 4)
    assert [(page.offset, len(page.digests), page.more) for page in channel.sent] == [
        (0, DIGESTS_PER_PAGE, True),
        (2 * DIGESTS_PER_PAGE, DIGESTS_PER_PAGE, True),
        (4 * DIGESTS_PER_PAGE, 3, False),
    ]


def test_who_does_not_read_is_sent_nothing_more():
    channel, one = FakeChannel(), digesting(0, 100, 10)
    channel.queued_bytes = 1 << 20
    assert not one.step(channel) and not channel.sent and not one.done  # type: ignore[arg-type]
    channel.queued_bytes = 0
    finish(one, channel)
    assert len(channel.sent[0].digests) == 10


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, 101), (100, 1), (1 << 62, 1)])
def test_outside_the_lease(offset, length):
    with pytest.raises(RemoteProtocolError) as caught:
        digesting(offset, length, 10, whole=100)
    assert caught.value.code == "bad_range"


def unreadable(code: str) -> Any:
    def read_at(offset: int, into: memoryview) -> int:
        raise HostError("cannot be read", why="a test", code=code)

    return SimpleNamespace(read_at=read_at, digest_method="owner-loopback-read")


def test_what_nobody_here_can_read_is_left_to_the_client():
    channel, one = FakeChannel(), Digesting(Digest(LEASE, 5, 50, 10), unreadable("no_loopback"), 0, 100)
    finish(one, channel)
    assert channel.sent == [Digests(LEASE, 5, (), False, "client-read-back")]
    with pytest.raises(HostError):
        finish(Digesting(Digest(LEASE, 5, 50, 10), unreadable("io_error"), 0, 100), channel)
