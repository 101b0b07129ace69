"""A stop request is false until set, and keeps the signal."""

from __future__ import annotations

from p2prw.engine.stop import StopRequest


def test_it_is_false_until_set():
    stop = StopRequest()
    assert not stop
    stop.set(15)
    assert stop and stop.signal_number == 15
