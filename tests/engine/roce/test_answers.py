"""The queue of things to say stays short and in PSN order."""

from __future__ import annotations

import random

from p2prw.engine.roce.answers import AnswerQueue
from p2prw.engine.roce.memory_table import MemoryTable
from p2prw.engine.roce.packet import Reth

RETH = Reth(0x1000, 7, 3 * 256)


def queue(max_reads=2):
    return AnswerQueue(MemoryTable(random.Random(1).getrandbits), max_reads)


def state(answers):
    return [(item.psn, getattr(item, "syndrome", "read")) for item in answers.waiting]


def test_a_run_of_acks_becomes_one_but_not_across_a_read():
    answers = queue()
    answers.answer(1, 0x1F, 1)
    answers.answer(2, 0x1F, 2)
    assert answers.read(3, RETH, 256, 3) == 6
    answers.answer(6, 0x1F, 4)
    answers.answer(7, 0x1F, 5)
    assert state(answers) == [(2, 0x1F), (3, "read"), (7, 0x1F)]


def test_it_cannot_be_made_to_grow():
    """Duplicates and not-ready requests in turn must not pile up answers."""
    answers = queue()
    for _ in range(100):
        answers.answer(1, 0x1F, 1)
        answers.answer(2, 0x2C, 1)
        answers.answer(2, 0x60, 1)
    assert len(answers) == 3
    answers.drop_naks()
    assert state(answers) == [(1, 0x1F)]


def test_slots():
    answers = queue(max_reads=2)
    assert answers.takes_read
    answers.read(1, RETH, 256, 1)
    answers.read(4, RETH, 256, 2)
    assert not answers.takes_read
    assert answers.is_streaming
    assert answers.next_psn() == 1


def test_the_oldest_read_is_forgotten_when_its_slot_is_needed():
    answers = queue(max_reads=1)
    answers.read(1, RETH, 256, 1)
    answers.waiting.clear()
    answers.read(4, RETH, 256, 2)
    answers.waiting.clear()
    assert answers.restart_read(1, RETH, 256) == 0
    assert len(answers) == 0
    assert answers.restart_read(4, RETH, 256) == 0, "nothing of it was sent yet"
    assert len(answers) == 1
    answers.clear()
    answers.restart_read(4, RETH, 256)
    assert len(answers) == 0


def test_a_restart_tells_what_goes_a_second_time():
    answers = queue()
    reth = Reth(0x1000, 7, 2 * 256 + 10)
    answers.read(1, reth, 256, 1)
    slot = answers._slots[0]
    slot.psn = 3
    assert answers.restart_read(1, reth, 256) == 512
    slot.psn = 4
    assert answers.restart_read(2, Reth(0x1100, 7, 266), 256) == 266, "the last packet is a short one"
    assert answers.restart_read(3, Reth(0x1200, 7, 10), 256) == 0, "it has not come to that one again"
