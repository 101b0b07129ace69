"""Completions tell when the first one comes, and when not all were taken."""

from __future__ import annotations

from p2prw.engine.model import Completion, Opcode, QueuePairOptions, Sge, WcStatus
from p2prw.engine.roce.completions import CompletionQueue


def completion(wr_id: int) -> Completion:
    return Completion(wr_id, WcStatus.SUCCESS, Opcode.RDMA_WRITE, 1, 2)


def test_the_first_tells_and_what_is_left_tells_again():
    told: list[int] = []
    queue = CompletionQueue(lambda: told.append(len(queue)))
    for wr_id in range(5):
        queue.append(completion(wr_id))
    assert len(told) == 1
    assert [one.wr_id for one in queue.take(2)] == [0, 1]
    assert len(told) == 2, "three are left"
    assert [one.wr_id for one in queue.take(3)] == [2, 3, 4]
    assert len(told) == 2 and queue.take(9) == []
    queue.append(completion(5))
    assert len(told) == 3


def test_a_device_names_those_that_have_something_to_poll(connected_devices):
    link = connected_devices()
    other = link.a.device.create_queue_pair(QueuePairOptions())
    assert link.a.device.take_completed() == ()
    for wr_id in range(3):
        link.write(wr_id, 0, 64)
    link.settle()
    assert list(link.a.device.take_completed()) == [link.a.queue_pair.local.qpn]
    assert link.a.device.take_completed() == (), "told once"
    assert len(link.a.queue_pair.poll(2)) == 2
    assert list(link.a.device.take_completed()) == [link.a.queue_pair.local.qpn], "one is left"
    assert len(link.a.queue_pair.poll(2)) == 1
    link.write(4, 0, 64)
    link.a.queue_pair.close()
    assert link.a.device.take_completed() == () and other.poll() == []


def test_work_that_fails_at_once_is_told_of(connected_devices):
    link = connected_devices()
    link.a.queue_pair.post_rdma(1, Opcode.RDMA_WRITE, [Sge(0, 10, 99)], 0, 0, signaled=True)
    assert list(link.a.device.take_completed()) == [link.a.queue_pair.local.qpn]
