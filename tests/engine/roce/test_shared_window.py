"""Queue pairs with one peer: one window, turns, and nobody who keeps the others waiting for ever."""

from __future__ import annotations

import random
from collections import Counter
from itertools import groupby
from typing import Any

import pytest

from p2prw.engine.model import Opcode, QueuePairOptions, WcStatus
from p2prw.engine.roce.device import RoceDevice
from p2prw.engine.roce.outgoing import Run

KIB, MTU = 1024, 4096
WRITE, READ = Opcode.RDMA_WRITE, Opcode.RDMA_READ
WRITE_ONLY = 0x0A


class Many:
    """Several queue pairs between the two ends of a link, each with a piece of both memories."""

    def __init__(self, link: Any, count: int, grant_bytes: int, **options: Any) -> None:
        self.link = link
        self.near = [link.a.queue_pair]
        self.far = [link.b.queue_pair]
        for _ in range(count - 1):
            near, far = (end.device.create_queue_pair(QueuePairOptions(**options)) for end in (link.a, link.b))
            near.connect(far.local)
            far.connect(near.local)
            self.near.append(near)
            self.far.append(far)
        self.number = {far.local.qpn: index for index, far in enumerate(self.far)}
        for near in self.near:
            near.set_window(grant_bytes)

    def post(self, index: int, offset: int, length: int, opcode: Opcode = WRITE, wr_id: int = 0, **more: Any) -> None:
        remote = self.link.b.registration.remote_segments()[0]
        more = {"rkey": remote.rkey, "signaled": True, **more}
        sges = self.link.a.sges(offset, length)
        self.near[index].post_rdma(wr_id, opcode, sges, remote.address + offset, **more)

    @property
    def in_flight(self) -> int:
        return sum(near.bytes_in_flight for near in self.near)

    def owner(self, lab: Any, burst: Any) -> int:
        return self.number[lab.packets([burst])[0].bth.dest_qpn]

    def statuses(self, index: int) -> list[WcStatus]:
        return [completion.status for completion in self.near[index].poll(1000)]


def test_one_sends_half_the_window_before_the_next_one_does(connected_devices, lab):
    link = connected_devices()
    many = Many(link, 3, 128 * KIB)
    for index in range(3):
        many.post(index, index * 300_000, 300_000)
    bursts = link.collect(link.a)
    turns = [(index, list(of_one)) for index, of_one in groupby(bursts, lambda burst: many.owner(lab, burst))]
    assert [index for index, _ in turns] == [0, 1], "the window is full then"
    for _, of_one in turns:
        packets = lab.packets(of_one)
        assert sum(len(packet.payload) for packet in packets) == 192 * KIB
        assert packets[-1].bth.ack_request, "what ends a turn wants its ACK, or the window might stay full"
    assert many.in_flight == 384 * KIB
    link.receive(link.b, bursts)
    link.settle()
    assert [many.statuses(index) for index in range(3)] == [[WcStatus.SUCCESS]] * 3
    assert link.b.data[:900_000] == link.a.data[:900_000]


def test_an_answer_that_comes_at_once_makes_no_turn_longer(connected_devices, lab):
    link = connected_devices()
    many = Many(link, 3, 128 * KIB)
    for index in range(3):
        many.post(index, index * 340_000, 340_000)
    sent: list[tuple[int, int]] = []
    while bursts := link.collect(link.a, max_bursts=1):
        sent.append((many.owner(lab, bursts[0]), sum(len(packet.payload) for packet in lab.packets(bursts))))
        link.receive(link.b, bursts)
        link.deliver(link.b)
    turns = [(index, sum(size for _, size in of_one)) for index, of_one in groupby(sent, lambda one: one[0])]
    rest = 340_000 - 192 * KIB
    assert turns == [*((index, 192 * KIB) for index in range(3)), *((index, rest) for index in range(3))]


def test_reads_take_turns_too(connected_devices, lab):
    link = connected_devices()
    many = Many(link, 4, 64 * KIB)
    for index in range(4):
        for number in range(8):
            many.post(index, index * 256 * KIB + number * 32 * KIB, 32 * KIB, READ)
    bursts = link.collect(link.a)
    turns = [(index, list(of_one)) for index, of_one in groupby(bursts, lambda burst: many.owner(lab, burst))]
    assert [index for index, _ in turns] == [0, 1]
    for _, of_one in turns:
        assert [packet.reth.length_bytes for packet in lab.packets(of_one)] == [32 * KIB] * 4
    link.receive(link.b, bursts)
    answers = [lab.packets([burst])[0].bth.dest_qpn for burst in link.collect(link.b)]
    assert [len(list(same)) for _, same in groupby(answers)] == [12, 12], "FIRST, MIDDLEs with LAST: not in turn"


def test_a_read_that_waits_for_room_is_asked_for_whole(connected_devices, lab):
    """Half of the window is free before one more is asked for, not a scrap of it."""
    link = connected_devices()
    many = Many(link, 3, 256 * KIB)
    for index in range(3):
        many.post(index, index * 300 * KIB, 300 * KIB, READ)
    asked: list[tuple[int, int]] = []
    for _ in range(50):
        requests = link.collect(link.a)
        asked += [(many.owner(lab, one), lab.packets([one])[0].reth.length_bytes) for one in requests]
        link.receive(link.b, requests)
        link.deliver(link.b, max_bursts=1)
        if len(asked) == 2:
            arrived = sum(near.counters.packets_received for near in many.near) * MTU
    assert asked == [(0, 300 * KIB), (1, 300 * KIB), (2, 300 * KIB)]
    assert 600 * KIB - arrived <= 384 * KIB + 15 * MTU, "nor does it wait for the window to be empty"
    link.settle()
    assert [many.statuses(index) for index in range(3)] == [[WcStatus.SUCCESS]] * 3
    assert link.a.data[: 900 * KIB] == link.b.data[: 900 * KIB]


def test_a_turn_goes_on_with_a_train(connected_devices, monkeypatch):
    """A message that had to wait for room is not gone on with burst by burst."""
    singly: list[Any] = []
    plain = Run.next_burst

    def next_burst(run: Run, requester: Any) -> Any:
        singly.append(plain(run, requester))
        return singly[-1]

    monkeypatch.setattr(Run, "next_burst", next_burst)
    link = connected_devices(a_memory=2 * KIB * KIB, b_memory=2 * KIB * KIB)
    link.trains = True
    many = Many(link, 2, 512 * KIB)
    for index in range(2):
        many.post(index, index * KIB * KIB, KIB * KIB)
    link.settle()
    assert [many.statuses(index) for index in range(2)] == [[WcStatus.SUCCESS]] * 2
    assert singly and set(singly) == {None}, "it was asked, and had nothing that a train had not"
    assert link.a.data == link.b.data


def test_many_responses_are_sent_in_turn(connected_devices, monkeypatch):
    monkeypatch.setattr("p2prw.engine.roce.device._RESPONSES_PER_TURN_BYTES", 64 * KIB)
    link = connected_devices()
    many = Many(link, 2, 1 << 20)
    for index in range(2):
        many.post(index, index * 400_000, 400_000, READ)
    link.deliver(link.a)
    bursts = link.collect(link.b)
    sizes = [burst.length_bytes for burst in bursts]
    assert sum(sizes[:2]) >= 64 * KIB > sizes[0], "FIRST and one burst of MIDDLEs end a turn"
    link.receive(link.a, bursts)
    assert [many.statuses(index) for index in range(2)] == [[WcStatus.SUCCESS]] * 2


def test_alone_again_it_has_the_whole_window(connected_devices):
    link = connected_devices()
    mine, requester = link.a.queue_pair, link.a.queue_pair.requester
    mine.set_window(100 * KIB)
    assert mine.share.ask == requester.next_burst, "one alone is not asked for its turn"
    many = Many(link, 2, 100 * KIB)
    assert mine.share.ask != requester.next_burst
    many.post(0, 0, 300_000)
    many.post(1, 300_000, 300_000)
    link.deliver(link.a)
    assert many.in_flight <= 200 * KIB
    many.near[1].close()
    assert (requester.window_bytes, requester.read_window_bytes) == (100 * KIB, 100 * KIB)
    link.settle()
    assert mine.share.ask == requester.next_burst
    assert many.statuses(0) == [WcStatus.SUCCESS]


@pytest.mark.parametrize("ends", ["close", "refuse"])
@pytest.mark.parametrize("who", [0, 1, 2])
def test_who_leaves_passes_its_turn_on(connected_devices, ends, who):
    """The one whose turn it is, the one that waits for room, one in the line: the others go on."""
    link = connected_devices()
    many = Many(link, 4, 16 * KIB)
    for index in range(4):
        wrong: dict[str, Any] = {"rkey": 1} if ends == "refuse" and index == who else {}
        many.post(index, index * 200_000, 200_000, **wrong)
    link.receive(link.b, link.collect(link.a))
    if ends == "close":
        many.near[who].close()
    link.settle()
    for index in set(range(4)) - {who}:
        assert many.statuses(index) == [WcStatus.SUCCESS]
    if ends == "refuse":
        assert many.statuses(who) == [WcStatus.REM_ACCESS_ERR]
    assert many.in_flight == 0


def test_one_without_answers_does_not_hold_the_others_up(connected_devices, lab):
    link = connected_devices()
    many = Many(link, 3, 32 * KIB)
    for index in range(3):
        many.post(index, index * 300_000, 300_000)
    for _ in range(200):
        link.receive(link.b, [burst for burst in link.collect(link.a) if many.owner(lab, burst)])
        link.deliver(link.b)
    assert many.statuses(1) == many.statuses(2) == [WcStatus.SUCCESS], "and no time has passed"
    assert 0 < many.near[0].bytes_in_flight <= 48 * KIB


def test_two_without_answers_hold_the_others_up_for_one_timeout(connected_devices, lab):
    link = connected_devices(timeout=14, retry_cnt=7)
    many = Many(link, 3, 32 * KIB, timeout=14, retry_cnt=7)
    for index in range(3):
        many.post(index, index * 300_000, 300_000)
    done_after = []
    for _ in range(12):
        for _ in range(200):
            link.receive(link.b, [burst for burst in link.collect(link.a) if many.owner(lab, burst) == 2])
            link.deliver(link.b)
        done_after.append(len(many.near[2].poll()))
        link.now = max(link.now, link.a.device.next_timer() or 0)
        link.a.device.handle_timer(link.now)
    assert done_after.index(1) == 1
    assert many.statuses(0) == many.statuses(1) == [WcStatus.RETRY_EXC_ERR]


def test_who_waits_without_end_shares_with_nobody(connected_devices):
    link = connected_devices(timeout=0)
    many = Many(link, 3, 32 * KIB, timeout=0)
    for index in range(3):
        many.post(index, index * 300_000, 300_000)
    link.drop(link.a)
    assert [near.bytes_in_flight for near in many.near] == [32 * KIB] * 3


@pytest.mark.parametrize("grant_bytes", [1, 100, MTU, MTU + 1])
def test_windows_smaller_than_a_packet_let_one_out_at_a_time(connected_devices, grant_bytes):
    link = connected_devices()
    many = Many(link, 3, grant_bytes)
    for index in range(3):
        many.post(index, index * 50_000, 50_000)
    for _ in range(500):
        bursts = link.collect(link.a)
        assert many.in_flight <= max(3 * grant_bytes, MTU)
        link.receive(link.b, bursts)
        link.deliver(link.b)
    assert [many.statuses(index) for index in range(3)] == [[WcStatus.SUCCESS]] * 3


def test_whatever_is_granted_there_is_a_most(lab):
    link = lab.connected_devices(most_bytes=64 * KIB, most_read_bytes=32 * KIB)
    many = Many(link, 2, 1 << 20)
    for index in range(2):
        many.post(index, index * 300_000, 300_000)
    link.drop(link.a)
    assert many.in_flight == 64 * KIB


def is_due(device: RoceDevice, now: float) -> bool:
    timer = device.next_timer()
    return timer is not None and timer <= now


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("batching", "trains"), [(True, False), (True, True), (False, False)])
def test_whatever_is_lost_all_arrives_and_the_window_is_kept(connected_devices, lab, seed, batching, trains):
    """With `batching` off every queue pair keeps to its own part: the way this must give the same."""
    rng = random.Random(seed)
    count, grant_bytes = rng.randint(2, 6), rng.choice([3000, 20_000, 70_000])
    options = {"timeout": rng.choice([10, 14]), "retry_cnt": 7, "depth": 64}
    link = connected_devices(batching=batching, seed=seed, **options)
    link.trains = trains
    many = Many(link, count, grant_bytes, **options)
    wanted: Counter[int] = Counter()
    expected_a, expected_b = bytearray(link.a.data), bytearray(link.b.data)
    slots = list(range(64))
    rng.shuffle(slots)
    for wr_id, slot in enumerate(slots[: 8 * count]):
        index, offset, length = rng.randrange(count), slot * 16 * KIB, rng.choice([1, 64, 5000, 16 * KIB])
        opcode = rng.choice([WRITE, WRITE, READ])
        source, target = (expected_b, expected_a) if opcode is READ else (expected_a, expected_b)
        target[offset : offset + length] = source[offset : offset + length]
        many.post(index, offset, length, opcode, wr_id)
        wanted[index] += 1
    got: Counter[int] = Counter()
    for _ in range(4000):
        for sender, end in ((link.a, link.b), (link.b, link.a)):
            bursts = link.collect(sender, max_bursts=rng.choice([1, 3, 100]))
            link.receive(end, [burst for burst in bursts if rng.random() < 0.97])
        if batching:
            assert many.in_flight <= max(count * grant_bytes, MTU)
        for index, near in enumerate(many.near):
            got[index] += sum(completion.status is WcStatus.SUCCESS for completion in near.poll(1000))
        if got == wanted:
            break
        link.now += rng.choice([0.0, 0.0, 0.001, 0.02])
        for end in (link.a, link.b):
            assert end.device.is_timer_due(link.now) == is_due(end.device, link.now)
            if end.device.is_timer_due(link.now):
                end.device.handle_timer(link.now)
    assert got == wanted
    assert link.a.data == expected_a and link.b.data == expected_b


def test_a_wait_for_a_receive_is_found_due_though_it_is_short(connected_devices):
    link = connected_devices(min_rnr_timer=1)
    assert not link.a.device.is_timer_due(link.now)
    link.a.queue_pair.post_send(1, link.a.sges(0, 100), signaled=True)
    link.deliver(link.a)
    assert not link.a.device.is_timer_due(link.now), "a timeout runs"
    link.deliver(link.b)
    timer = link.a.device.next_timer()
    assert timer is not None and timer < link.now + 0.01
    assert not link.a.device.is_timer_due(link.now) and link.a.device.is_timer_due(timer)


@pytest.mark.parametrize("trains", [False, True])
def test_a_long_answer_of_one_does_not_keep_the_turn_from_the_others(connected_devices, lab, trains):
    """A READ of 8 MiB is asked for in one piece, as NICs do; requests of two queue pairs come behind it."""
    size = 8 * KIB * KIB
    link = connected_devices(a_memory=size, b_memory=size, most_bytes=2 * KIB * KIB)
    link.trains = trains
    many = Many(link, 2, 512 * KIB)
    many.far[0].set_read_window(64 * KIB * KIB)
    remote = link.a.registration.remote_segments()[0]
    many.far[0].post_rdma(1, READ, link.b.sges(0, size), remote.address, remote.rkey, signaled=True)
    requests = link.collect(link.b)
    assert len(requests) == 1
    link.receive(link.a, requests)
    link.receive(link.b, link.collect(link.a, max_bursts=2))
    passed = 0
    for index in range(2):
        many.post(index, 0, 4000)
        while True:
            bursts = link.collect(link.a, max_bursts=16)
            link.receive(link.b, bursts)
            passed += len(bursts)
            assert passed < 100, "of 137 that the answer takes"
            if (WRITE_ONLY, index) in [(lab.packets([one])[0].bth.opcode, many.owner(lab, one)) for one in bursts]:
                break


def test_reads_that_lost_their_responses_leave_room_to_ask_again(lab):
    """Of each the first response came; the rest of the piece is under way no more, or nobody would ever ask."""
    link = lab.connected_devices(mtu=1024, gso_segments=1, most_read_bytes=8 * 1024, timeout=14)
    options = QueuePairOptions(timeout=14)
    pairs = [(link.a.queue_pair, link.b.queue_pair)]
    for _ in range(2):
        mine, theirs = (end.device.create_queue_pair(options) for end in (link.a, link.b))
        mine.connect(theirs.local)
        theirs.connect(mine.local)
        pairs.append((mine, theirs))
    remote = link.b.registration.remote_segments()[0]
    for number, (mine, _) in enumerate(pairs):
        sges = link.a.sges(0, 4096)
        mine.post_rdma(number, Opcode.RDMA_READ, sges, remote.address, remote.rkey, signaled=True)
    for _ in range(12):
        link.deliver(link.a)
        first: dict[int, Any] = {}
        for burst in link.collect(link.b):
            first.setdefault(lab.packets([burst])[0].bth.dest_qpn, burst)
        link.receive(link.a, list(first.values()))
        link.now += 1
        link.a.device.handle_timer(link.now)
        if all(mine.requester.una_psn > mine.requester.reads[0].first_psn for mine, _ in pairs if mine.requester.reads):
            break
    link.run_timers()
    assert [c.status for mine, _ in pairs for c in mine.poll()] == 3 * [WcStatus.SUCCESS]
