"""Digests are those of xxhash over the same blocks, whatever way the memory hands out its bytes."""

from __future__ import annotations

import threading
import time

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine import digest
from p2prw.engine.digest import ALGORITHM, BLOCK_BYTES, MAX_READ_BYTES, TotalDigest, digest_block, digest_blocks
from p2prw.errors import HostError, RequestError
from p2prw.units import KIB, MIB


class Bytes:
    """Memory that notes how it was read, at most `most` bytes a call."""

    def __init__(self, data: bytes, most: int = 1 << 62) -> None:
        self.data, self.most = data, most
        self.reads: list[tuple[int, int]] = []
        self.buffers: set[int] = set()

    def read_at(self, offset: int, into: memoryview) -> int:
        self.reads.append((offset, len(into)))
        self.buffers.add(id(into.obj))
        piece = self.data[offset : offset + min(len(into), self.most)]
        into[: len(piece)] = piece
        return len(piece)


def of(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


@given(
    st.binary(min_size=1, max_size=3000),
    st.integers(0, 500),
    st.integers(0, 3000),
    st.integers(1, 700),
    st.integers(1, 900),
)
def test_blocks_are_hashed_one_by_one(data, offset, length, block, most):
    offset = min(offset, len(data))
    length = min(length, len(data) - offset)
    part = data[offset : offset + length]
    expected = [of(part[k : k + block]) for k in range(0, length, block)]
    assert list(digest_blocks(Bytes(data, most), offset, length, block)) == expected


def test_an_algorithm_has_a_name_and_a_known_value():
    assert ALGORITHM == "xxh3-128"
    assert BLOCK_BYTES == MIB
    # XXH3-128 of no bytes, from the xxHash specification's test values.
    assert digest_block(b"") == "99aa06d3014798d86001c324468d497f"


class Plain(Bytes):
    """Memory that may be read where it lies, unless it is not `viewable` after all."""

    def __init__(self, data: bytes, *, viewable: bool = True) -> None:
        super().__init__(data)
        self.view = memoryview(data) if viewable else None

    def in_place(self) -> Plain:
        return self


@pytest.mark.parametrize("block", [1000, MIB, 16 * MIB])
def test_plain_memory_is_hashed_where_it_lies(block):
    data = bytes(range(251)) * (6 * MIB // 251)
    plain, hidden = Plain(data), Plain(data, viewable=False)
    digests = list(digest_blocks(plain, 7, len(data) - 7, block))
    assert digests == list(digest_blocks(hidden, 7, len(data) - 7, block))
    assert digests == [of(data[k : k + block]) for k in range(7, len(data), block)]
    assert plain.reads == []
    assert hidden.reads


@pytest.fixture
def hashed_by(monkeypatch):
    """Three processors, and the names of the threads that hashed blocks."""
    names: list[str] = []

    def noting(piece):
        names.append(threading.current_thread().name)
        return digest_block(piece)

    monkeypatch.setattr(digest, "own_processors", lambda: 3)
    monkeypatch.setattr(digest, "digest_block", noting)
    return names


@pytest.mark.parametrize("block", [256 * KIB, MIB, 3 * MIB, 4 * MIB])
def test_much_plain_memory_is_hashed_by_several_threads(hashed_by, block):
    data = bytes(range(251)) * (41 * MIB // 251)
    plain = Plain(data)
    digests = list(digest_blocks(plain, 9, len(data) - 9, block))
    assert digests == [of(data[k : k + block]) for k in range(9, len(data), block)]
    assert plain.reads == []
    assert len(hashed_by) == len(digests)
    assert all(name.startswith("p2prw-digest") for name in hashed_by) and len(set(hashed_by)) <= 3


@pytest.mark.parametrize(("size", "block"), [(15 * MIB, MIB), (20 * MIB, 128 * KIB), (20 * MIB, 8 * MIB)])
def test_what_several_threads_would_not_make_faster_is_hashed_by_this_one(hashed_by, size, block):
    data = bytes(size)
    assert len(list(digest_blocks(Plain(data), 0, size, block))) == -(-size // block)
    assert hashed_by == []


def test_on_one_processor_this_thread_hashes(hashed_by, monkeypatch):
    monkeypatch.setattr(digest, "own_processors", lambda: 1)
    assert list(digest_blocks(Plain(bytes(20 * MIB)), 0, 20 * MIB)) == [of(bytes(MIB))] * 20
    assert hashed_by == []


def test_memory_that_several_threads_hash_may_end_or_go_away(hashed_by):
    plain = Plain(bytes(20 * MIB))
    with pytest.raises(HostError) as caught:
        list(digest_blocks(plain, 0, 22 * MIB))
    assert caught.value.code == "short_memory" and plain.reads[0] == (20 * MIB, MIB)
    gone = Plain(bytes(64 * MIB))
    blocks = digest_blocks(gone, 0, 64 * MIB)
    next(blocks)
    gone.view, gone.data = None, b""
    with pytest.raises(HostError):
        list(blocks)
    # Nothing is held by who stops half-way.
    memory = bytearray(64 * MIB)
    left = Plain(bytes(0))
    left.view = memoryview(memory)
    blocks = digest_blocks(left, 0, len(memory))
    next(blocks)
    blocks.close()
    left.view = None
    wait_for(lambda: is_resizable(memory))


def is_resizable(memory: bytearray) -> bool:
    try:
        memory.append(0)
    except BufferError:
        return False
    return True


def wait_for(condition) -> None:
    """A thread that was hashing may need a moment more."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_plain_memory_that_ends_early_is_an_error():
    with pytest.raises(HostError) as caught:
        list(digest_blocks(Plain(b"abc"), 0, 4))
    assert caught.value.code == "short_memory"


def test_long_blocks_pass_through_one_buffer_of_4_mib():
    data = bytes(range(256)) * (9 * MIB // 256)
    source = Bytes(data)
    assert list(digest_blocks(source, 0, len(data), 16 * MIB)) == [of(data)]
    assert [size for _, size in source.reads] == [MAX_READ_BYTES, MAX_READ_BYTES, MIB]
    assert len(source.buffers) == 1


def test_it_can_be_interleaved_with_other_work():
    source = Bytes(bytes(8 * KIB))
    blocks = digest_blocks(source, 0, 8 * KIB, 4 * KIB)
    next(blocks)
    assert source.reads == [(0, 4 * KIB)]


def test_size_zero_has_no_blocks():
    assert list(digest_blocks(Bytes(b""), 0, 0)) == []
    assert TotalDigest().hexdigest() == of(b"")


def test_memory_that_ends_early_is_an_error_not_a_digest():
    blocks = digest_blocks(Bytes(bytes(6 * KIB)), 0, 8 * KIB, 4 * KIB)
    next(blocks)
    with pytest.raises(HostError, match=r"ended at byte 6144, 2048 bytes early") as caught:
        next(blocks)
    assert (caught.value.code, caught.value.errno) == ("short_memory", "EIO")


def test_a_block_has_at_least_one_byte():
    with pytest.raises(RequestError):
        next(digest_blocks(Bytes(b"x"), 0, 1, 0))


def test_the_total_is_over_the_block_digests():
    parts = [b"one", b"two", b"three"]
    total = TotalDigest()
    for part in parts:
        total.add([of(part)])
    assert total.hexdigest() == of(b"".join(xxhash.xxh3_128_digest(p) for p in parts))
