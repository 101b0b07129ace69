"""One queue pair of a run: what is posted, in which chains, which are signalled, what the counts say."""

from __future__ import annotations

import pytest

from p2prw.engine.lane import Lane, message_postings, walk_postings
from p2prw.engine.model import Completion, DmaSegment, Opcode, Operation, RemoteSegment, WcStatus
from p2prw.engine.providers.scripted import Script
from p2prw.engine.rw import RwLimits
from p2prw.errors import CompletionError, RequestError

LIMITS = RwLimits(max_write_sge=4, max_read_sge=4, max_bytes_per_wr=1000)


def posted_ids(rig) -> list[int]:
    return [post[0] for post in rig.lanes[0].queue_pair.posted]


def signals(rig) -> list[bool]:
    return [post[5] for post in rig.lanes[0].queue_pair.posted]


@pytest.mark.parametrize(
    ("size", "lengths"), [(1, [1]), (1000, [1000]), (2500, [1000, 1000, 500]), (1500, [1000, 500])]
)
def test_a_message_is_as_many_work_requests_as_limits_make_of_it(size, lengths):
    postings = message_postings(
        (DmaSegment(0x1000, 4096, 7),), [RemoteSegment(0x9000, 4096, 8)], Operation.WRITE, LIMITS, size
    )
    assert [sum(sge.length_bytes for sge in sges) for _, sges, _, _ in postings] == lengths
    assert [address for _, _, address, _ in postings] == [0x9000 + sum(lengths[:i]) for i in range(len(lengths))]
    assert {opcode for opcode, *_ in postings} == {Opcode.RDMA_WRITE}


def test_a_message_across_two_remote_segments_uses_both_keys():
    postings = message_postings(
        (DmaSegment(0, 4096, 7),), [RemoteSegment(0, 600, 8), RemoteSegment(5000, 600, 9)], Operation.READ, LIMITS, 900
    )
    assert [(address, rkey) for _, _, address, rkey in postings] == [(0, 8), (5000, 9)]
    assert {opcode for opcode, *_ in postings} == {Opcode.RDMA_READ}


VEC, REMOTE = (DmaSegment(0x1000, 1 << 20, 7),), [RemoteSegment(0x900000, 1 << 20, 8)]


@pytest.mark.parametrize(
    ("size", "walk", "offsets"),
    [(1000, 4096, [0, 1000, 2000, 3000]), (1000, 1000, [0]), (1000, 1999, [0]), (512, 1024, [0, 512])],
)
def test_a_walk_has_its_messages_side_by_side_at_both_ends(size, walk, offsets):
    messages = walk_postings(VEC, REMOTE, Operation.WRITE, LIMITS, size, walk, len(offsets))
    assert [address for ((_, _, address, _),) in messages] == [0x900000 + offset for offset in offsets]
    assert [sges[0].address for ((_, sges, _, _),) in messages] == [0x1000 + offset for offset in offsets]
    assert {sges[0].length_bytes for ((_, sges, _, _),) in messages} == {size}


def test_fewer_places_than_fit_are_evenly_apart():
    messages = walk_postings(VEC, REMOTE, Operation.READ, LIMITS, 8, 8 * 1001, 250)
    assert [address for ((_, _, address, _),) in messages] == list(range(0x900000, 0x900000 + 8 * 1000, 32))


def test_a_walk_over_pieces_that_cut_messages_unlike_is_refused():
    pieces = [RemoteSegment(0, 1500, 8), RemoteSegment(5000, 1500, 9)]
    assert len(walk_postings(VEC, pieces, Operation.WRITE, LIMITS, 500, 3000, 6)) == 6
    with pytest.raises(RequestError) as caught:
        walk_postings(VEC, pieces, Operation.WRITE, LIMITS, 1000, 3000, 3)
    assert caught.value.code == "walk_in_pieces" and "--walk" in (caught.value.fix or "")


@pytest.mark.parametrize("chunk", [1 << 30, 300])
def test_a_walk_posts_its_messages_in_turn_and_counts_whole_ones(make_bench, chunk):
    rig = make_bench(depth=8)
    (lane,), ((vec, segments),) = rig.lanes, rig.memory
    messages = walk_postings(vec, segments, rig.operation, RwLimits(4, 4, chunk), 500, 1500, 3)
    each = len(messages[0])
    assert each == (1 if chunk > 500 else 2)
    lane.begin(tuple(one for message in messages for one in message), 500, messages=7, signal_every=2, stops=3)
    assert (lane.left, lane.wr_bytes) == (7 * each, 500 / each)
    while not lane.finished:
        lane.post()
        rig.device.pump()
        lane.retire(lane.queue_pair.poll())
    assert lane.messages == 7
    starts = [post[3] - segments[0].address for post in lane.queue_pair.posted][::each]
    assert starts == [0, 500, 1000, 0, 500, 1000, 0]
    lane.begin(lane.postings, 500, messages=None, signal_every=2, stops=3)
    lane.post(1)
    lane.end()
    assert (lane.posted + lane.left) % each == 0 and lane.left, "the last message becomes whole, its end is signalled"


def test_the_queue_is_filled_and_never_over_filled(make_bench):
    rig = make_bench(depth=8)
    rig.begin(64, 100, signal_every=4)
    lane = rig.lanes[0]
    assert lane.post() and not lane.post()
    assert lane.outstanding == 8 and signals(rig) == [False, False, False, True] * 2


def test_the_last_one_is_signalled_whatever_the_interval(make_bench):
    rig = make_bench(depth=8)
    rig.begin(64, 6, signal_every=4)
    rig.lanes[0].post()
    assert signals(rig) == [False, False, False, True, False, True]
    assert rig.lanes[0].left == 0 and rig.lanes[0].signalled == 2


def test_a_chain_waits_until_it_fits_as_a_whole(make_bench):
    rig = make_bench(depth=8, script=Script(completions_per_pump=1))
    rig.begin(64, 11, signal_every=1, post_list=3)
    lane = rig.lanes[0]

    def complete_one() -> None:
        rig.device.pump()
        lane.retire(lane.queue_pair.poll())

    assert lane.post() and lane.post() and lane.outstanding == 6
    assert not lane.post(), "two places are no room for a chain of three"
    complete_one()
    assert lane.post() and lane.outstanding == 8
    complete_one()
    assert not lane.post()
    complete_one()
    assert lane.post() and lane.left == 0 and lane.posted == 11, "the last chain may be shorter"


def test_one_completion_stands_for_all_before_it(make_bench):
    rig = make_bench(depth=8)
    rig.begin(2500, 2, chunk=1000, signal_every=4)
    lane = rig.lanes[0]
    lane.post()
    lane.retire([Completion(3, WcStatus.SUCCESS, Opcode.RDMA_WRITE, 1000, 1)])
    assert (lane.completed, lane.outstanding, lane.messages) == (4, 2, 1), "three work requests make a message"


def test_ids_go_on_from_run_to_run(make_bench):
    """Both providers retire by id: an id that came again would retire the wrong ones."""
    rig = make_bench(depth=4)
    for _ in range(3):
        for _ in rig.bandwidth(64, 10).run():
            pass
    assert posted_ids(rig) == list(range(30))


@pytest.mark.parametrize(("posted", "signal_every", "expected"), [(3, 4, 3), (4, 4, 0), (5, 4, 1)])
def test_the_end_makes_the_message_whole_and_its_last_request_signalled(make_bench, posted, signal_every, expected):
    rig = make_bench(depth=8)
    rig.begin(2500, None, chunk=1000, signal_every=signal_every)
    lane = rig.lanes[0]
    lane.depth = posted
    lane.post()
    lane.depth = 8
    lane.end()
    if posted == 4:
        expected = 2  # the second message of three lacks two
    assert lane.left == expected
    lane.post()
    assert lane.posted % 3 == 0 and lane.signalled_until == lane.posted


def test_a_failed_completion_says_how_far_the_run_was(make_bench):
    rig = make_bench(depth=8)
    rig.begin(64, 100, signal_every=1)
    lane = rig.lanes[0]
    lane.post()
    with pytest.raises(CompletionError, match=r"REM_ACCESS_ERR after 192 of 512 bytes"):
        lane.retire(
            [
                Completion(2, WcStatus.SUCCESS, Opcode.RDMA_WRITE, 64, 1),
                Completion(3, WcStatus.REM_ACCESS_ERR, Opcode.RDMA_WRITE, 64, 1),
            ]
        )
    assert lane.messages == 3


def test_a_new_lane_has_nothing_to_do(make_bench):
    assert isinstance(make_bench().lanes[0], Lane) and make_bench().lanes[0].finished


class Chaining:
    """A queue pair that keeps chains, over one that does not: posts of a chain are logged as what they stand for."""

    def __init__(self, inner):
        self.inner, self.calls, self.open = inner, [], 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def build_chain(self, opcode, sges, remote_addr, rkey, *, length, signal_every):
        self.open += 1
        return ChainOf(self, (opcode, sges, remote_addr, rkey), length, signal_every)


class ChainOf:
    def __init__(self, pair, posting, length, signal_every):
        self.pair, self.posting, self.length, self.signal_every = pair, posting, length, signal_every

    def post(self, wr_id, count):
        assert 0 < count <= self.length
        self.pair.calls.append(count)
        for place in range(count):
            signaled = (count - 1 - place) % self.signal_every == 0
            self.pair.inner.post_rdma(wr_id + place, *self.posting, signaled=signaled)

    def close(self):
        self.pair.open -= 1


@pytest.mark.parametrize("post_list", [None, 3, 4])
@pytest.mark.parametrize(("depth", "signal_every", "messages"), [(8, 4, 100), (8, 3, 101), (16, 1, 50), (8, 2, 1)])
def test_a_queue_pair_that_keeps_chains_gets_the_same_posts(make_bench, depth, signal_every, messages, post_list):
    """The fast path, and the same run without it."""
    seen = []
    for chaining in (True, False):
        rig = make_bench(depth=depth)
        lane = rig.lanes[0]
        inner = lane.queue_pair
        if chaining:
            lane.queue_pair = Chaining(inner)
        for _ in range(2):
            for _ in rig.bandwidth(64, messages, signal_every=signal_every, post_list=post_list).run():
                pass
        assert lane.finished and lane.messages == messages
        seen.append(([tuple(post) for post in inner.posted], lane.signalled, lane.signalled_until))
        if chaining:
            assert lane.queue_pair.open == (messages > 1), "the chain of the run before is closed"
            calls = lane.queue_pair.calls
    assert seen[0] == seen[1]
    if post_list is None and messages > 1 and depth % signal_every == 0:
        assert sum(calls) == 2 * messages, "nothing was posted one by one"


def test_a_message_of_several_requests_is_posted_one_by_one(make_bench):
    rig = make_bench(depth=8)
    rig.lanes[0].queue_pair = Chaining(rig.lanes[0].queue_pair)
    rig.begin(2500, 2, chunk=1000, signal_every=4)
    assert rig.lanes[0].chain is None and rig.lanes[0].post() and rig.lanes[0].queue_pair.calls == []


def test_a_limit_holds_for_posts_and_not_for_a_chain_that_leaves_as_a_whole(make_bench):
    rig = make_bench(depth=8)
    rig.begin(64, 100, signal_every=4)
    assert rig.lanes[0].post(3) and rig.lanes[0].posted == 3
    rig.begin(64, 100, signal_every=4, post_list=4)
    assert rig.lanes[0].post(1) and rig.lanes[0].posted == 4
