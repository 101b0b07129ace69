"""What a responder has to say, in PSN order: ACKs, NAKs, and READ responses made when the driver asks for them.

Because it is one queue, no ACK can pass a READ whose responses are not out yet, and a run of ACKs becomes one. READ
responses are read from memory, through the memory table, at the moment they are sent.
"""

from __future__ import annotations

from collections import deque

from p2prw.engine.model import Access
from p2prw.engine.providers.base import QueuePairCounters
from p2prw.engine.roce.burst import Burst, Connection
from p2prw.engine.roce.memory_table import MemoryFault, MemoryTable
from p2prw.engine.roce.opcodes import RcOpcode
from p2prw.engine.roce.packet import ACK_NO_CREDITS, PSN_WORD, Reth, push_aeth
from p2prw.engine.roce.psn import PSN_MASK, packets_of
from p2prw.engine.roce.runs import Train
from p2prw.engine.roce.singles import RESPONSE_OVERHEAD_BYTES

_REMOTE_READ = int(Access.REMOTE_READ)
_READ_FIRST, _READ_MIDDLE = int(RcOpcode.READ_RESPONSE_FIRST), int(RcOpcode.READ_RESPONSE_MIDDLE)
_READ_LAST = int(RcOpcode.READ_RESPONSE_LAST)


class Answer:
    """An ACK or NAK waiting to be sent."""

    __slots__ = ("msn", "psn", "syndrome")

    def __init__(self, psn: int, syndrome: int, msn: int) -> None:
        self.psn = psn
        self.syndrome = syndrome
        self.msn = msn

    @property
    def is_nak(self) -> bool:
        """PSN sequence, RNR, or one that ends the queue pair."""
        return self.syndrome >> 5 != 0


class ReadSlot:
    """One READ of the peer: kept after its last response, to answer a restart. `psn` is the next response to send."""

    __slots__ = (
        *("address", "end_psn", "first_psn", "floor_psn", "is_answered", "length_bytes", "msn", "psn", "rkey"),
        *("is_again", "starts"),
    )

    def __init__(self, first_psn: int, reth: Reth, mtu_bytes: int, msn: int) -> None:
        self.first_psn = first_psn
        self.end_psn = first_psn + packets_of(reth.length_bytes, mtu_bytes)
        self.address = reth.remote_addr
        self.rkey = reth.rkey
        self.length_bytes = reth.length_bytes
        self.msn = msn
        self.psn = first_psn
        self.floor_psn = first_psn
        """No restart before this PSN: the requester has had what lies before (rxe and hfi1: "should not back up")."""
        self.starts = True
        """The next response is the first after the request or a restart, so its opcode is FIRST or ONLY."""
        self.is_again = False
        """It was asked for again: what went out in one burst may have been lost for that, and leaves one by one now."""
        self.is_answered = False
        """All its responses went out once; if it waits again, then because the request came again."""


class AnswerQueue:
    """Things to send for one responder. At most one ACK and one NAK wait behind the last READ, so it stays short."""

    def __init__(self, memory: MemoryTable, max_reads: int) -> None:
        self._memory = memory
        self._max_reads = max_reads
        self.waiting: list[Answer | ReadSlot] = []
        """In PSN order; for others to see whether there is anything."""
        self._slots: deque[ReadSlot] = deque()

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def is_streaming(self) -> bool:
        """READ responses come next; there may be many."""
        return bool(self.waiting) and isinstance(self.waiting[0], ReadSlot)

    @property
    def takes_read(self) -> bool:
        """A slot is free: one whose responses were all out once may be used again, even if they are asked for anew."""
        busy = sum(isinstance(item, ReadSlot) and not item.is_answered for item in self.waiting)
        return busy < self._max_reads

    def answer(self, psn: int, syndrome: int, msn: int) -> None:
        """Queue an ACK or NAK; it takes the place of one of its kind that waits with no READ after it."""
        waiting = self.waiting
        for place in range(len(waiting) - 1, -1, -1):
            item = waiting[place]
            if isinstance(item, ReadSlot):
                break
            if item.syndrome >> 5 == syndrome >> 5:
                item.psn, item.syndrome, item.msn = psn, syndrome, msn
                return
        waiting.append(Answer(psn, syndrome, msn))

    def drop_naks(self) -> None:
        """Forget a NAK that was not sent: what it complains about is over."""
        self.waiting = [item for item in self.waiting if isinstance(item, ReadSlot) or not item.is_nak]

    def clear(self) -> None:
        """Say nothing more."""
        self.waiting.clear()
        self._slots.clear()

    def read(self, psn: int, reth: Reth, mtu_bytes: int, msn: int) -> int:
        """Queue the responses of a new READ; return the PSN after it."""
        slot = ReadSlot(psn, reth, mtu_bytes, msn)
        if len(self._slots) >= self._max_reads:
            # The requester has one READ more than it may, unless it has all of the oldest: a repeated request that
            # still waits (after a timeout that came too soon) crossed the responses on the way.
            oldest = self._slots.popleft()
            self.waiting = [item for item in self.waiting if item is not oldest]
        self._slots.append(slot)
        self.waiting.append(slot)
        return slot.end_psn

    def restart_read(self, psn: int, reth: Reth, mtu_bytes: int) -> int:
        """Answer a repeated READ request from `psn` on; silently not when it is none of ours or backs up.

        Returns how many bytes that were sent before are to be sent again.

        A restart asks for the rest of a READ, to its very end; anything else was not sent by a sane requester.
        """
        for slot in self._slots:
            if slot.first_psn <= psn < slot.end_psn:
                offset = (psn - slot.first_psn) * mtu_bytes
                same = reth == (slot.address + offset, slot.rkey, slot.length_bytes - offset)
                if psn < slot.floor_psn or not same:
                    return 0
                again = min(slot.psn - psn, -(-reth.length_bytes // mtu_bytes)) * mtu_bytes
                slot.psn = slot.floor_psn = psn
                slot.starts = slot.is_again = True
                waiting = [item for item in self.waiting if item is not slot]
                place = 0
                while place < len(waiting) and waiting[place].psn < psn:
                    place += 1
                waiting.insert(place, slot)
                self.waiting = waiting
                return max(0, min(again, reth.length_bytes))
        return 0

    def next_psn(self) -> int:
        """Return the PSN of what comes next."""
        return self.waiting[0].psn

    def next_burst(self, connection: Connection) -> Burst:
        """Take off and return what comes next. MemoryFault: the memory of a READ cannot be reached any more."""
        item = self.waiting[0]
        if isinstance(item, Answer):
            del self.waiting[0]
            return connection.single(RcOpcode.ACKNOWLEDGE, item.psn, push_aeth(item.syndrome, item.msn))
        burst = self._small_responses(connection, item) or self._responses(connection, item)
        if item.psn >= item.end_psn:
            self._answered()
        return burst

    def next_train(self, connection: Connection, most: int, counters: QueuePairCounters) -> Train | None:
        """Return the FIRST response if it is its turn, at most `most` bursts of MIDDLEs, and the LAST if it is whole.

        None: something else comes next.
        """
        slot, count, mtu_bytes = self.waiting[0], connection.max_segments, connection.mtu_bytes
        if not isinstance(slot, ReadSlot) or count < 2:
            return None
        psn, starts = slot.psn, slot.starts
        middles = slot.end_psn - psn - starts - 1
        if middles < 0:
            return None
        # A LAST with less data is shorter than a MIDDLE and leaves with those that do not fill a burst.
        is_whole = not slot.length_bytes % mtu_bytes
        bursts = min(most, -(-middles // count) if is_whole else middles // count)
        middles = min(bursts * count, middles)
        trails = is_whole and psn + starts + middles + 1 == slot.end_psn
        if not bursts and (slot.is_again or not (starts and trails)):
            return None
        packets = starts + middles + trails
        length, address = packets * mtu_bytes, slot.address + (psn - slot.first_psn) * mtu_bytes
        region = self._memory.find(slot.rkey, address, length, _REMOTE_READ)
        if region is None or region.view is None:
            return None

        def left(number: int) -> None:
            if not number:
                return
            done = packets
            if bursts:
                done = starts + min((number - starts) * count, middles) + (number > starts + bursts)
            slot.psn = psn + done
            slot.starts = False
            counters.packets_sent += done
            if slot.psn >= slot.end_psn:
                self._answered()

        data, aeth = region.load(address - region.address, length), push_aeth(ACK_NO_CREDITS, slot.msn)
        return connection.train(
            *(_READ_MIDDLE, psn, data, bursts, left),
            first=(_READ_FIRST, aeth) if starts else None,
            tail=(_READ_LAST, aeth) if trails else None,
        )

    def _answered(self) -> None:
        """All responses of the READ that comes next are out."""
        slot = self.waiting.pop(0)
        assert isinstance(slot, ReadSlot)
        slot.is_answered = True

    @property
    def is_answer(self) -> bool:
        """An ACK or NAK comes next."""
        return bool(self.waiting) and isinstance(self.waiting[0], Answer)

    def next_answer(self) -> tuple[int, bytes]:
        """Take off the ACK or NAK that comes next; return its PSN and its AETH."""
        item = self.waiting.pop(0)
        assert isinstance(item, Answer)
        return item.psn, push_aeth(item.syndrome, item.msn)

    def _small_responses(self, connection: Connection, first: ReadSlot) -> Burst | None:
        """Answers of one packet and one length that come next, as one burst; None: too few for that.

        All but the last are taken off; that is the caller's.
        """
        length = first.length_bytes
        waiting = self.waiting
        if first.end_psn - first.first_psn != 1 or not length or len(waiting) < 2:
            return None
        most = connection.singles_of(length + (-length & 3) + RESPONSE_OVERHEAD_BYTES)
        heads: list[bytes] = []
        pieces: list[memoryview] = []
        for item in waiting:
            if len(heads) >= most or isinstance(item, Answer):
                break
            if item.length_bytes != length or item.end_psn - item.first_psn != 1:
                break
            try:
                pieces.append(self._load(item, 0, length))
            except MemoryFault:
                # Its turn comes when it is the first.
                break
            heads.append(PSN_WORD.pack(item.psn & PSN_MASK) + push_aeth(ACK_NO_CREDITS, item.msn))
        count = len(heads)
        if count < 2:
            return None
        for item in waiting[:count]:
            assert isinstance(item, ReadSlot)
            item.starts = False
            item.psn += 1
            item.is_answered = True
        del waiting[1:count]
        return connection.singles(RcOpcode.READ_RESPONSE_ONLY, heads, pieces)

    def _responses(self, connection: Connection, slot: ReadSlot) -> Burst:
        """FIRST or ONLY alone; then MIDDLEs, with a LAST that its AETH does not make longer than they are.

        A FIRST and its LAST are a burst where nothing lies between them and both are full.
        """
        mtu, psn = connection.mtu_bytes, slot.psn
        offset = (psn - slot.first_psn) * mtu
        left = slot.length_bytes - offset
        packets = slot.end_psn - psn
        aeth = push_aeth(ACK_NO_CREDITS, slot.msn)
        if slot.starts and packets == 2 and left == 2 * mtu and connection.max_segments > 1 and not slot.is_again:
            # Both have an AETH, so both are as long: one burst. MIDDLEs have none.
            data = self._load(slot, offset, left)
            first, size = connection.packet(_READ_FIRST, psn, aeth, [data[:mtu]], mtu)
            last, _ = connection.packet(_READ_LAST, psn + 1, aeth, [data[mtu:]], mtu, index=1)
            slot.starts = False
            slot.psn += 2
            return Burst(first + last, size, 2 * size, connection.destination, 2)
        if slot.starts or packets == 1:
            size = min(mtu, left)
            pieces = [self._load(slot, offset, size)] if size else None
            opcode = _OPCODES[slot.starts, packets == 1]
            slot.starts = False
            slot.psn += 1
            return connection.single(opcode, psn, aeth, pieces, size)
        middles = min(packets - 1, connection.max_segments)
        run_bytes = middles * mtu
        tail_bytes = left - run_bytes
        takes_last = middles == packets - 1 < connection.max_segments and tail_bytes + 4 <= mtu
        data = self._load(slot, offset, left if takes_last else run_bytes)
        run = [data[:run_bytes]]
        buffers = connection.middle_run(RcOpcode.READ_RESPONSE_MIDDLE, psn, run, middles, ack_last=False)
        total, count = middles * connection.segment_bytes, middles
        if takes_last:
            tail = [data[run_bytes:]]
            more, size = connection.packet(_READ_LAST, psn + middles, aeth, tail, tail_bytes, index=middles)
            buffers += more
            total += size
            count += 1
        slot.psn += count
        segment = connection.segment_bytes if count > 1 else total
        return Burst(buffers, segment, total, connection.destination, count)

    def _load(self, slot: ReadSlot, offset: int, length_bytes: int) -> memoryview:
        """Look the key up again: it may have been revoked since the request was accepted."""
        address = slot.address + offset
        region = self._memory.find(slot.rkey, address, length_bytes, _REMOTE_READ)
        if region is None:
            raise MemoryFault("the key of a READ was revoked")
        return region.load(address - region.address, length_bytes)


_OPCODES: dict[tuple[bool, bool], RcOpcode] = {
    # starts, ends
    (True, True): RcOpcode.READ_RESPONSE_ONLY,
    (True, False): RcOpcode.READ_RESPONSE_FIRST,
    (False, True): RcOpcode.READ_RESPONSE_LAST,
}
