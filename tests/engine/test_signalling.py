"""One in N: progress at least every 4 MiB, and never a queue that fills unseen."""

from __future__ import annotations

import pytest

from p2prw.engine.signalling import signal_interval


@pytest.mark.parametrize(
    ("depth", "chunk", "wanted", "expected"),
    [(128, 1 << 20, None, 4), (128, 4096, None, 32), (2, 1 << 20, None, 1), (128, 4096, 1000, 64), (1, 1, 5, 1)],
)
def test_signal_interval(depth, chunk, wanted, expected):
    assert signal_interval(depth, chunk, wanted) == expected


@pytest.mark.parametrize(("post_list", "expected"), [(None, 8), (16, 8), (12, 8), (30, 3), (31, 2), (32, 8), (100, 1)])
def test_what_a_chain_leaves_unsignalled_does_not_take_the_room_of_the_next(post_list, expected):
    assert signal_interval(32, 4096, 8, post_list) == expected
