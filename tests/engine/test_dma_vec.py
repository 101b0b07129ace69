"""A dma vec cut by binary search gives the bytes a walk would give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.dma_vec import IndexedVec
from p2prw.engine.model import DmaSegment
from p2prw.errors import RequestError

vecs = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 40), st.integers(0, 9)), min_size=1, max_size=9)


def bytes_of(segments) -> list[tuple[int, int]]:
    return [(address + at, key) for address, length, key in segments for at in range(length)]


@given(vecs, st.data())
def test_a_cut_is_the_range_and_holds_no_empty_segment(raw, data):
    vec = IndexedVec([DmaSegment(*segment) for segment in raw])
    offset = data.draw(st.integers(0, vec.length_bytes - 1))
    length = data.draw(st.integers(1, vec.length_bytes - offset))
    cut = vec.cut(offset, length)
    assert bytes_of(cut) == bytes_of(raw)[offset : offset + length]
    assert all(segment.length_bytes > 0 for segment in cut)


@pytest.mark.parametrize(
    ("offset", "length", "errno"),
    [(-1, None, "EINVAL"), (0, -1, "EINVAL"), (11, 0, "EIO"), (10, None, "EIO"), (5, 6, "EINVAL")],
)
def test_ranges_outside_carry_the_kernels_errno(offset, length, errno):
    with pytest.raises(RequestError) as caught:
        IndexedVec([DmaSegment(0, 10, 1)]).rest(offset, length)
    assert caught.value.errno == errno


def test_the_rest_of_a_vec_and_of_none():
    vec = IndexedVec([DmaSegment(0, 10, 1)])
    assert (vec.rest(3, None), vec.rest(3, 2), vec.rest(10, 0)) == (7, 2, 0)
    with pytest.raises(RequestError) as caught:
        IndexedVec([]).rest(0, None)
    assert caught.value.code == "empty_vec"


@pytest.mark.parametrize("segment", [(0, 0, 1), (-1, 5, 1), (1 << 64, 1, 1), ((1 << 64) - 1, 2, 1), (0, 1, 1 << 32)])
def test_segments_no_adapter_takes_are_refused(segment):
    with pytest.raises(RequestError) as caught:
        IndexedVec([DmaSegment(*segment)])
    assert caught.value.code == "bad_segment"
