"""Bulk of one kind that a requester sends: the middle of a long message, and many WRITEs of one packet.

The requester decides what goes out (`requester.py`). Where a message has room for several full bursts of MIDDLE
packets, a `Run` makes them without asking again what they are, as long as nothing comes between: no resend, no narrow
window, no memory that went.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from struct import Struct
from typing import TYPE_CHECKING

from p2prw.engine.model import Opcode
from p2prw.engine.roce.burst import Burst, Connection
from p2prw.engine.roce.memory_table import MemoryFault
from p2prw.engine.roce.packet import ACK_REQUEST
from p2prw.engine.roce.psn import MAX_OUTSTANDING_PSNS, PSN_MASK
from p2prw.engine.roce.runs import MOST_BURSTS, Buffer, Train

if TYPE_CHECKING:
    from p2prw.engine.roce.requester import Requester
    from p2prw.engine.roce.work import SendWqe

ASKS_OF_A_WINDOW = 8
"""An ACK is asked for when this part of the window was sent. A window that shrinks at once to less than that, while
nothing on the way asks, would wait for the timer; a server's shares shrink in smaller steps."""

_WRITE = Opcode.RDMA_WRITE
_WRITE_HEAD = Struct(">IQII")
"""PSN word and RETH."""


class Run:
    """Full bursts of MIDDLE packets of one message whose data is one piece of memory."""

    __slots__ = (
        "_burst_bytes",
        "_connection",
        "_count",
        "_end_psn",
        "_first_psn",
        "_last_opcode",
        "_offset",
        "_opcode",
        "_view",
        "wqe",
    )

    def __init__(self, connection: Connection, opcode: int, wqe: SendWqe, view: memoryview, offset: int) -> None:
        """The data of the message begins at `view[offset]`."""
        self.wqe = wqe
        self._connection = connection
        self._opcode = opcode
        self._count = count = connection.max_segments
        self._burst_bytes = count * connection.mtu_bytes
        self._view = view
        self._offset = offset
        self._first_psn = wqe.first_psn
        self._last_opcode: int | None = None
        """Where the LAST is a packet like the others, but for its opcode."""
        if not wqe.has_imm and wqe.length_bytes % connection.mtu_bytes == 0:
            self._last_opcode = wqe.edge(starts=False, ends=True)[0]
        self._end_psn = wqe.end_psn - 1 - count
        """The last PSN from which a full burst ends before the LAST packet."""

    @classmethod
    def of(cls, connection: Connection, opcode: int, wqe: SendWqe) -> Run | None:
        """Return one for the message, None where its data is not one piece of plain memory."""
        window = wqe.data.plain_window(0)
        if window is None or window[2] < wqe.length_bytes:
            return None
        return cls(connection, opcode, wqe, window[0], window[1])

    def next_burst(self, requester: Requester) -> Burst | None:
        """Return the next one; None: something came between, or it is over, and the careful way decides."""
        psn, count, connection = requester.send_psn, self._count, self._connection
        sent_bytes, burst_bytes = requester.sent_bytes, self._burst_bytes
        window_bytes, mtu_bytes = requester.window_bytes, connection.mtu_bytes
        if (
            window_bytes - (sent_bytes - requester.acked_bytes) < burst_bytes + mtu_bytes
            or psn > self._end_psn
            or psn <= self._first_psn
            or psn != requester.max_sent_psn
            or connection.max_segments != count
            or psn + count - requester.una_psn >= MAX_OUTSTANDING_PSNS
        ):
            return None
        offset = self._offset + (psn - self._first_psn) * mtu_bytes
        try:
            data = self._view[offset : offset + burst_bytes]
        except ValueError:
            # Released: the key was revoked.
            return None
        sent_bytes += burst_bytes
        asks = sent_bytes - requester.asked_bytes >= window_bytes // ASKS_OF_A_WINDOW
        if asks:
            requester.asked_bytes = sent_bytes
        buffers = connection.middle_run(self._opcode, psn, [data], count, ack_last=asks)
        requester.send_psn = requester.max_sent_psn = psn + count
        requester.sent_bytes = sent_bytes
        requester.counters.packets_sent += count
        segment_bytes = connection.segment_bytes
        return Burst(buffers, segment_bytes, segment_bytes * count, connection.destination, count)

    def train(self, requester: Requester, most: int, now: float) -> Train | None:
        """Return the FIRST if it is its turn, up to `most` of the bursts that come next, and the LAST if it is whole.

        None where the careful way decides. What leaves is what it and `next_burst` would send in turn.
        """
        psn, count, connection, wqe = requester.send_psn, self._count, self._connection, self.wqe
        if psn < self._first_psn or psn != requester.max_sent_psn or not 1 < connection.max_segments == count:
            return None
        sent_bytes, burst_bytes, window_bytes = requester.sent_bytes, self._burst_bytes, requester.window_bytes
        mtu_bytes, starts = connection.mtu_bytes, psn == self._first_psn
        if starts:
            sent_bytes += mtu_bytes
        run_psn = psn + starts
        room_bytes = window_bytes - (sent_bytes - requester.acked_bytes)
        packets = wqe.end_psn - run_psn
        allowed = min(requester.una_psn + MAX_OUTSTANDING_PSNS - 1 - run_psn, room_bytes // mtu_bytes)
        fills, last_opcode = False, None
        if self._last_opcode is not None and packets <= allowed and packets <= most * count:
            last_opcode = self._last_opcode
        else:
            middles = min(packets - 1, most * count, allowed)
            if self._last_opcode is None and middles == packets - 1:
                # Those that do not fill a burst leave with the LAST.
                middles -= middles % count
            packets, fills = middles, middles == allowed
            if packets < 1:
                return None
        bursts = -(-packets // count)
        offset = self._offset + (psn - self._first_psn) * mtu_bytes
        try:
            data = self._view[offset : offset + (starts + packets) * mtu_bytes]
        except ValueError:
            # Released: the key was revoked.
            return None
        step_bytes = max(1, window_bytes // ASKS_OF_A_WINDOW)
        first = max(0, -(-(requester.asked_bytes + step_bytes - sent_bytes) // burst_bytes) - 1)
        asks = _every(min(first, MOST_BURSTS), -(-step_bytes // burst_bytes)) & (1 << bursts) - 1
        if last_opcode is not None or fills:
            asks |= 1 << bursts - 1

        def left(number: int) -> None:
            if not number:
                return
            number -= starts
            requester.sent(wqe, starts + min(number * count, packets))
            asked = asks & (1 << number) - 1
            if asked:
                requester.asked_bytes = min(sent_bytes + asked.bit_length() * burst_bytes, requester.sent_bytes)
            if requester.deadline is None and requester.timeout_s is not None:
                requester.deadline = now + requester.timeout_s

        return connection.train(
            *(self._opcode, psn, data, bursts, left),
            asks=asks,
            last_opcode=last_opcode,
            first=wqe.edge(starts=True, ends=False) if starts else None,
        )


@functools.lru_cache(maxsize=256)
def _every(first: int, step: int) -> int:
    """Return bits `first`, `first` + `step`, ..., for as many bursts as a train may have."""
    return sum(1 << place for place in range(first, MOST_BURSTS, step))


def small_writes(unsent: Iterable[SendWqe], psn: int, most: int) -> tuple[list[bytes], list[Buffer]]:
    """Return PSN word with RETH, and data, of the WRITEs of one packet and one length that come first, at most `most`.

    Only the last asks for an ACK, which speaks for all.
    """
    heads: list[bytes] = []
    pieces: list[Buffer] = []
    pack, length, last = _WRITE_HEAD.pack, 0, None
    for wqe in unsent:
        length = length or wqe.length_bytes
        if len(heads) >= most or wqe.length_bytes != length:
            break
        if wqe.opcode != _WRITE or wqe.psns != 1 or wqe.local_error is not None:
            break
        try:
            found = wqe.data.gather(0, length)
        except MemoryFault:
            # Its turn comes when it is the first; what stands before it still goes out.
            break
        pieces.append(found[0] if len(found) == 1 else b"".join(found))
        heads.append(pack(psn & PSN_MASK, wqe.remote_addr, wqe.rkey, length))
        psn, last = psn + 1, wqe
    if last is not None:
        heads[-1] = pack(psn - 1 & PSN_MASK | ACK_REQUEST, last.remote_addr, last.rkey, length)
    return heads, pieces
