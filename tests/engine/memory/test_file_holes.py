"""Which zeros become holes, and what the kernel says to it."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.memory.file_holes import PIECE_BYTES, data_ranges, fallocate, punch, zero_runs

P = PIECE_BYTES


def runs(data: bytes, position: int = 0, end_of_file: int = 1 << 40) -> list[tuple[int, int]]:
    return zero_runs(memoryview(data), position, end_of_file)


def test_runs_are_whole_pieces_of_the_file() -> None:
    assert runs(bytes(P - 1)) == []
    assert runs(bytes(P)) == [(0, P)]
    assert runs(bytes(3 * P + 1)) == [(0, 3 * P)]
    assert runs(bytes(3 * P), position=1) == [(P - 1, 3 * P - 1)]
    assert runs(bytes(P) + b"x" + bytes(P - 1) + bytes(P)) == [(0, P), (2 * P, 3 * P)]
    assert runs(b"") == []


def test_the_piece_that_the_file_ends_in_is_a_whole_one() -> None:
    assert runs(bytes(P + 5), end_of_file=P + 5) == [(0, P + 5)]
    assert runs(bytes(5), position=7 * P, end_of_file=7 * P + 5) == [(0, 5)]
    assert runs(bytes(5), position=7 * P + 1, end_of_file=7 * P + 6) == []
    assert runs(bytes(P) + b"1234x", end_of_file=P + 5) == [(0, P)]


@pytest.mark.parametrize("place", [0, 1, P // 2, P - 1])
def test_one_byte_that_is_no_zero_is_enough(place: int) -> None:
    data = bytearray(3 * P)
    data[P + place] = 1
    assert runs(bytes(data)) == [(0, P), (2 * P, 3 * P)]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 2 * P)), min_size=1, max_size=6), st.integers(0, 3 * P))
def test_runs_hold_zeros_only_in_order_and_no_whole_piece_is_missed(
    parts: list[tuple[bool, int]], position: int
) -> None:
    data = b"".join((b"\x01" if is_data else b"\x00") * length for is_data, length in parts)
    end_of_file = position + len(data)
    found = runs(data, position, end_of_file)
    assert all(start < end and not any(data[start:end]) for start, end in found)
    assert all(one[1] < two[0] for one, two in itertools.pairwise(found))
    for start in range(-position % P, len(data), P):
        covered = any(one <= start and start + len(data[start : start + P]) <= two for one, two in found)
        assert covered == (not any(data[start : start + P]))


def test_a_hole_reads_as_zeros_and_gives_its_blocks_back(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * (4 * P + 100))
    descriptor = os.open(path, os.O_RDWR)
    try:
        assert punch(descriptor, P, 2 * P, 4 * P + 100) and punch(descriptor, 3 * P, 4 * P + 100, 4 * P + 100)
        os.fsync(descriptor)
        assert os.fstat(descriptor).st_size == 4 * P + 100
        assert os.fstat(descriptor).st_blocks * 512 == 2 * P
        assert list(data_ranges(descriptor, 0, 4 * P + 100)) == [(0, P), (2 * P, 3 * P)]
        assert list(data_ranges(descriptor, 100, 200)) == [(100, 200)]
        assert list(data_ranges(descriptor, P, 2 * P)) == []
        assert list(data_ranges(descriptor, 9 * P, 10 * P)) == [], "beyond its end"
    finally:
        os.close(descriptor)
    assert path.read_bytes() == b"x" * P + bytes(P) + b"x" * P + bytes(P + 100)


def test_a_file_system_that_tells_of_no_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lseek(descriptor: int, offset: int, how: int) -> int:
        raise OSError(errno.EINVAL, "")

    monkeypatch.setattr("p2prw.engine.memory.file_holes.os.lseek", lseek)
    assert list(data_ranges(0, 5, 10)) == [(5, 10)]


def test_what_lseek_cannot_for_another_reason_is_no_secret() -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError) as caught:
            list(data_ranges(read_end, 0, 1))
        assert caught.value.errno == errno.ESPIPE
    finally:
        os.close(read_end)
        os.close(write_end)


def test_fallocate_says_what_it_cannot() -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError) as caught:
            fallocate(write_end, 0, 1)
        assert caught.value.errno == errno.ESPIPE
    finally:
        os.close(read_end)
        os.close(write_end)
