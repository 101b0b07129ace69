"""A stop request is false until set, and keeps the signal."""

from __future__ import annotations

from p2prw.engine.stop import StopRequest


def test_it_is_false_until_set():
    stop = StopRequest()
    assert not stop
    stop.set(15)
    assert stop and stop.signal_number == 15 and not stop.at_once
    stop.set(2)
    assert stop.at_once


def test_who_need_not_wait_asks_twice_in_one_word():
    stop = StopRequest()
    stop.end_now()
    assert stop and stop.at_once
