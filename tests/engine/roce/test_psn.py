"""24-bit sequence arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.roce.psn import PSN_HALF, PSN_MASK, packets_of, psn_distance, psn_unwrap


@pytest.mark.parametrize(
    ("start", "end", "distance"),
    [(0, 0, 0), (0, 1, 1), (1, 0, -1), (PSN_MASK, 0, 1), (0, PSN_MASK, -1), (0, PSN_HALF - 1, PSN_HALF - 1)],
)
def test_distance(start, end, distance):
    assert psn_distance(start, end) == distance


@given(st.integers(-(1 << 30), 1 << 40), st.integers(-PSN_HALF, PSN_HALF - 1))
def test_unwrap_finds_the_absolute_psn_near_the_reference(reference, offset):
    psn = reference + offset
    assert psn_unwrap(reference, psn & PSN_MASK) == psn
    assert psn_distance(reference & PSN_MASK, psn & PSN_MASK) == offset


@pytest.mark.parametrize(("length", "packets"), [(0, 1), (1, 1), (4096, 1), (4097, 2), (1 << 31, 1 << 19)])
def test_packets_of(length, packets):
    assert packets_of(length, 4096) == packets
