"""When segmented sends are given up: never for ordinary loss, soon when they do not arrive at all."""

from __future__ import annotations

import random

from p2prw.engine.providers.base import QueuePairCounters
from p2prw.engine.providers.soft_watch import BARREN_TIMEOUTS, NAKS_TO_JUDGE, PACKETS_TO_TRUST, GsoWatch


def test_quiet_line() -> None:
    watch, counters = GsoWatch(), QueuePairCounters()
    for step in range(100):
        counters.packets_sent += 15
        counters.packets_received += 1
        assert watch.look(counters, 0, 1) is None, step


def test_barren_timeouts_in_a_row_are_a_reason() -> None:
    watch, counters = GsoWatch(), QueuePairCounters(packets_sent=100)
    for counters.timeouts in range(1, BARREN_TIMEOUTS):
        assert watch.look(counters, 0, counters.timeouts) is None
        assert watch.look(counters, 0, counters.timeouts) is None, "looking twice counts nothing twice"
    counters.timeouts += 1
    assert "3 retransmission timeouts" in (watch.look(counters, 0, counters.timeouts) or "")


def test_an_answer_between_timeouts_starts_again() -> None:
    watch, counters = GsoWatch(), QueuePairCounters(packets_sent=100)
    for sends in range(1, 20):
        counters.timeouts += 1
        counters.packets_received += 1
        assert watch.look(counters, 0, sends) is None


def test_timeouts_of_single_packets_are_no_reason() -> None:
    """A reader whose requests left one by one while the peer slept."""
    watch, counters = GsoWatch(), QueuePairCounters(packets_sent=100)
    for counters.timeouts in range(1, 20):
        assert watch.look(counters, 0, 1) is None


def test_only_the_first_segment_of_each_burst_arrives() -> None:
    """The peer takes segment 0 (its identification is right), drops the rest, NAKs at the next burst."""
    watch, counters = GsoWatch(), QueuePairCounters(packets_sent=480)
    assert watch.look(counters, 0, 1) is None
    verdicts = []
    for _ in range(NAKS_TO_JUDGE):
        counters.sequence_naks += 1
        counters.packets_received += 1
        counters.packets_sent += 480
        counters.retransmitted_packets += 479
        verdicts.append(watch.look(counters, 0, 1))
    assert verdicts[:-1] == [None] * (NAKS_TO_JUDGE - 1)
    assert verdicts[-1] == f"{NAKS_TO_JUDGE} sequence NAKs for {NAKS_TO_JUDGE} new packets"


def test_ten_percent_loss_keeps_gso() -> None:
    draw = random.Random(4).random
    watch, counters = GsoWatch(), QueuePairCounters()
    for _ in range(2000):
        fresh = 0
        while draw() > 0.1:
            fresh += 1
        counters.packets_sent += fresh + 200
        counters.retransmitted_packets += 200
        counters.packets_received += 1
        counters.sequence_naks += 1
        assert watch.look(counters, 0, 1) is None


def test_once_trusted_for_ever() -> None:
    watch, counters = GsoWatch(), QueuePairCounters(packets_sent=300, sequence_naks=2)
    assert watch.look(counters, PACKETS_TO_TRUST, 1) is None
    assert watch.is_trusted
    counters.timeouts = 7
    assert watch.look(counters, PACKETS_TO_TRUST, 1) is None


def test_a_crawl_earns_no_trust() -> None:
    watch, counters = GsoWatch(), QueuePairCounters(packets_sent=300, sequence_naks=20)
    assert watch.look(counters, 70, 1) is None
    assert not watch.is_trusted
