"""One queue pair of a measurement: the work requests of a message, built once, and counts instead of queues.

Work requests complete in order and their ids count up by one, so what is outstanding is a subtraction: nothing is kept
for a work request that is on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2prw.engine.completion import completion_error
from p2prw.engine.ends import cut_segments
from p2prw.engine.model import Completion, DmaVec, Opcode, Operation, RemoteSegment, Sge, WcStatus
from p2prw.engine.providers.base import Chain, ChainingQueuePair, QueuePair
from p2prw.engine.rw import RwLimits, build_contexts
from p2prw.errors import RequestError

Posting = tuple[Opcode, tuple[Sge, ...], int, int]
"""opcode, SGEs, remote address, rkey: what `post_rdma` wants beside id and signal."""


def message_postings(
    vec: DmaVec,
    segments: Sequence[RemoteSegment],
    operation: Operation,
    limits: RwLimits,
    size_bytes: int,
    offset: int = 0,
) -> tuple[Posting, ...]:
    """Return the work requests of one message, `offset` bytes into both ends.

    One, unless memory is in pieces or a device's limit cuts it.
    """
    remote = cut_segments(segments, offset, size_bytes)
    postings: list[Posting] = []
    for context in build_contexts(vec, remote, operation, limits, offset, size_bytes):
        for index in range(context.nr_wqes):
            wr = context.wr(index)
            postings.append((wr.opcode, wr.sges, wr.remote_addr, wr.rkey))
    return tuple(postings)


def walk_postings(
    vec: DmaVec,
    segments: Sequence[RemoteSegment],
    operation: Operation,
    limits: RwLimits,
    size_bytes: int,
    walk_bytes: int,
    places: int,
) -> tuple[tuple[Posting, ...], ...]:
    """Return `places` messages, one round of a walk, evenly apart in the first `walk_bytes` of both ends.

    They begin at multiples of the size. RequestError where pieces of memory cut them into unlike numbers of work
    requests.
    """
    stride = walk_bytes // size_bytes // places * size_bytes
    messages = tuple(
        message_postings(vec, segments, operation, limits, size_bytes, offset)
        for offset in range(0, places * stride, stride)
    )
    if len({len(message) for message in messages}) > 1:
        raise RequestError(
            f"memory in pieces cuts the messages of {size_bytes} bytes of a walk into unlike work requests",
            why="then a message is not the same work everywhere",
            fix="another --size, or leave --walk away",
            code="walk_in_pieces",
        )
    return messages


@dataclass(slots=True)
class Lane:
    """A queue pair and the run that is on it; `begin` starts one. All counts are of work requests of this run."""

    queue_pair: QueuePair
    depth: int
    first_wr_id: int = 0
    postings: tuple[Posting, ...] = ()
    """Of one message, or of one round of a walk; posted in turn."""
    message_wqes: int = 1
    """Work requests of one message."""
    size_bytes: int = 0
    signal_every: int = 1
    post_list: int | None = None
    left: int | None = 0
    """Still to be posted; None while only the time decides."""
    posted: int = 0
    completed: int = 0
    signalled: int = 0
    signalled_until: int = 0
    """Posted up to and including the last signalled one: the most that can ever be seen to complete."""

    chain: Chain | None = None
    """The work request of a message, where a message is one and the queue pair can keep it ready."""

    @property
    def outstanding(self) -> int:
        """Posted and not yet seen to complete."""
        return self.posted - self.completed

    @property
    def messages(self) -> int:
        """Whole messages that completed."""
        return self.completed // self.message_wqes

    @property
    def finished(self) -> bool:
        """Everything was posted and completed."""
        return self.left == 0 and self.completed == self.posted

    def begin(
        self,
        postings: tuple[Posting, ...],
        size_bytes: int,
        *,
        messages: int | None,
        signal_every: int,
        post_list: int | None = None,
        stops: int = 1,
    ) -> None:
        """Start a run of `messages` (None: until `end`); `postings` are those of `stops` messages.

        `signal_every` is at most half the depth, or 1. That bound keeps a full queue from standing still: there is
        always a signalled one in it.
        """
        self.first_wr_id += self.posted
        self.postings, self.size_bytes = postings, size_bytes
        self.message_wqes = len(postings) // stops
        self.signal_every, self.post_list = signal_every, post_list
        self.left = None if messages is None else messages * self.message_wqes
        if self.chain is not None:
            self.chain.close()
            self.chain = None
        if len(postings) == 1 and self.left != 1 and isinstance(self.queue_pair, ChainingQueuePair):
            length = min(self.depth, post_list or self.depth)
            self.chain = self.queue_pair.build_chain(*postings[0], length=length, signal_every=signal_every)
        self.posted = self.completed = self.signalled = self.signalled_until = 0

    def end(self) -> None:
        """Post no more than what makes the last message whole and the last work request a signalled one."""
        rest = -self.posted % self.message_wqes
        if not rest and self.signalled_until < self.posted:
            rest = self.message_wqes
        self.left = rest

    @property
    def wr_bytes(self) -> float:
        """Bytes of a work request, on average."""
        return self.size_bytes / self.message_wqes

    def post(self, most: int | None = None) -> bool:
        """Post what there is room for, at most one chain of `post_list`; True when anything was posted.

        At most `most`, but for a chain: that leaves as a whole.
        """
        left, chain = self.left, self.post_list
        count = self.depth - self.posted + self.completed
        if left is not None and left < count:
            count = left
        if chain is not None:
            # A chain leaves as a whole or waits; only the last one may be shorter.
            if count < chain and count != left:
                return False
            count = min(count, chain)
        elif most is not None:
            count = min(count, most)
        if count <= 0:
            return False
        post_rdma, postings, every = self.queue_pair.post_rdma, self.postings, self.signal_every
        kinds, posted, base = len(postings), self.posted, self.first_wr_id
        last = -1 if left is None else posted + left - 1
        for number in range(self._post_chain(posted, count, last), posted + count):
            opcode, sges, remote_addr, rkey = postings[number % kinds]
            signaled = (number + 1) % every == 0 or number == last
            if signaled:
                self.signalled += 1
                self.signalled_until = number + 1
            post_rdma(base + number, opcode, sges, remote_addr, rkey, signaled=signaled)
        self.posted = posted + count
        if left is not None:
            self.left = left - count
        return True

    def _post_chain(self, posted: int, count: int, last: int) -> int:
        """Post what ends with a signalled work request as chains; return the first number that is left over."""
        # fast path: one call for all of them, however many there are.
        chain, every = self.chain, self.signal_every
        if chain is None:
            return posted
        end = posted + count
        for stop in (end - end % every, end):
            if stop > posted and (stop % every == 0 or stop - 1 == last):
                chain.post(self.first_wr_id + posted, stop - posted)
                self.signalled += stop // every - posted // every + (stop % every > 0)
                self.signalled_until = posted = stop
        return posted

    def retire(self, completions: Sequence[Completion]) -> None:
        """Count completions; each stands for everything posted before it. CompletionError for one that failed."""
        for completion in completions:
            if completion.status is not WcStatus.SUCCESS:
                done = self.messages * self.size_bytes
                total = self.posted // self.message_wqes * self.size_bytes
                raise completion_error(completion, done, total)
            self.completed = completion.wr_id + 1 - self.first_wr_id
