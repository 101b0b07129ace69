"""The completer: ACKs, NAKs and READ responses to the requester's packets (the kernel's rxe_comp.c).

An answer at PSN p says that everything before p has arrived, READs excepted: a READ has arrived when its own responses
have. So an answer that lies beyond an incomplete READ means that a response was lost ("implied NAK").
"""

from __future__ import annotations

from p2prw.engine.model import WcStatus
from p2prw.engine.roce.memory_table import MemoryFault
from p2prw.engine.roce.opcodes import AETH_BYTES, BTH_BYTES, RcOpcode
from p2prw.engine.roce.packet import (
    INFINITE_RNR_RETRY,
    NAK_INVALID_REQUEST,
    NAK_PSN_SEQUENCE,
    NAK_REMOTE_ACCESS,
    NAK_REMOTE_OPERATION,
    RNR_TIMER_MS,
    pull_aeth,
)
from p2prw.engine.roce.psn import psn_unwrap
from p2prw.engine.roce.requester import Requester
from p2prw.engine.roce.runs import AwaitedRun
from p2prw.engine.roce.singles import RESPONSE_OVERHEAD_BYTES, responses_in
from p2prw.engine.roce.work import SendWqe

_FATAL_NAKS = {
    NAK_INVALID_REQUEST: WcStatus.REM_INV_REQ_ERR,
    NAK_REMOTE_ACCESS: WcStatus.REM_ACCESS_ERR,
    NAK_REMOTE_OPERATION: WcStatus.REM_OP_ERR,
}


class Completer:
    """Answers for one requester. Driven by received packets whose ICRC and source were right."""

    def __init__(self, requester: Requester) -> None:
        self._requester = requester

    def receive_aeth(self, view: memoryview, psn: int, now: float) -> None:
        """ACKNOWLEDGE: an ACK or any NAK. `view` is the whole UDP payload, long enough for its headers."""
        requester = self._requester
        syndrome, _msn = pull_aeth(view, BTH_BYTES)
        psn = psn_unwrap(requester.una_psn, psn)
        if not requester.una_psn <= psn < requester.max_sent_psn:
            return  # old, or about something never sent
        kind = syndrome >> 5
        if kind == 0:
            self._advance(psn + 1, now)
        elif kind == 1:
            self._receiver_not_ready(psn, syndrome & 0x1F, now)
        elif syndrome == NAK_PSN_SEQUENCE:
            requester.counters.sequence_naks += 1
            if self._advance(psn, now) and not requester.is_going_back and requester.queue:
                requester.retry()
        elif (status := _FATAL_NAKS.get(syndrome)) is not None and self._advance(psn, now, fatal=True):
            requester.fail(status)

    def receive_ack(self, psn: int, now: float) -> bool:
        """Take a plain ACK; False: it says nothing new, or speaks of what was never sent."""
        requester = self._requester
        psn = psn_unwrap(requester.una_psn, psn)
        if not requester.una_psn <= psn < requester.max_sent_psn:
            return False
        self._advance(psn + 1, now)
        return True

    def _advance(self, end_psn: int, now: float, *, fatal: bool = False) -> bool:
        """Acknowledge all before `end_psn`. False: a READ response is missing, and it is being asked for again.

        A fatal NAK behind an incomplete READ fails the READ: the peer is in error and will not answer again.
        """
        requester = self._requester
        before = requester.una_psn
        complete = requester.acknowledge(end_psn)
        if requester.una_psn != before:
            requester.progress(now)
        if not complete and not fatal:
            if not requester.is_going_back:
                requester.retry()
            return False
        return True

    def _receiver_not_ready(self, psn: int, timer: int, now: float) -> None:
        requester = self._requester
        requester.counters.rnr_naks += 1
        if not self._advance(psn, now) or requester.rnr_deadline is not None or not requester.queue:
            return
        if requester.rnr_retries_left == 0:
            requester.fail(WcStatus.RNR_RETRY_EXC_ERR)
            return
        if requester.rnr_retry != INFINITE_RNR_RETRY:
            requester.rnr_retries_left -= 1
        requester.go_back()
        requester.rnr_deadline = now + RNR_TIMER_MS[timer] / 1000

    # --- READ responses ----------------------------------------------------------------------------------------

    def _read_at(self, psn: int, now: float) -> SendWqe | None:
        """Return the READ whose next response has PSN `psn` (absolute); None: old, ahead, or nobody's."""
        requester = self._requester
        if not requester.una_psn <= psn < requester.max_sent_psn:
            if psn < requester.una_psn:
                requester.counters.duplicates += 1
            return None
        # A response implicitly acknowledges the requests before its READ (IBTA Vol 1 9.7.5.1.2).
        if requester.una_psn < psn and not self._advance(psn, now):
            return None
        if requester.una_psn != psn or not requester.queue or not requester.queue[0].is_read:
            return None
        return requester.queue[0]

    def receive_read_response(self, opcode: int, view: memoryview, pad_bytes: int, psn: int, now: float) -> None:
        """Take one response. The opcode only tells its headers' length: a restart may begin with any (rxe: MIDDLE)."""
        requester = self._requester
        psn = psn_unwrap(requester.una_psn, psn)
        wqe = self._read_at(psn, now)
        connection = requester.connection
        if wqe is None or connection is None:
            return
        header_bytes = BTH_BYTES
        if opcode != RcOpcode.READ_RESPONSE_MIDDLE:
            header_bytes += AETH_BYTES
            if view[BTH_BYTES] >> 5:
                return  # a READ response is never a NAK
        data = view[header_bytes : len(view) - 4 - pad_bytes]
        offset = (psn - wqe.first_psn) * connection.mtu_bytes
        if len(data) != min(connection.mtu_bytes, wqe.length_bytes - offset):
            requester.fail(WcStatus.BAD_RESP_ERR)
            return
        try:
            wqe.data.scatter(offset, data)
        except MemoryFault as fault:
            requester.fail(WcStatus.LOC_PROT_ERR if fault.is_protection else WcStatus.LOC_QP_OP_ERR)
            return
        requester.acknowledged(wqe, psn + 1)
        requester.progress(now)

    def receive_only_run(
        self,
        view: memoryview,
        position: int,
        count: int,
        length_bytes: int,
        prefix: int,
        psn: int,
        seeds: list[int] | None,
        index: int,
        now: float,
    ) -> int:
        """Take up to `count` answers of one packet at `position`, each a whole READ; 0: use the careful path."""
        requester = self._requester
        queue = requester.queue
        if psn_unwrap(requester.una_psn, psn) != requester.una_psn:
            return 0
        count = min(count, requester.max_sent_psn - requester.una_psn)
        count = responses_in(view, position, count, length_bytes, prefix, psn, seeds, index)
        start = position + BTH_BYTES + AETH_BYTES
        step = length_bytes + (-length_bytes & 3) + RESPONSE_OVERHEAD_BYTES
        done = 0
        while done < count and queue:
            wqe = queue[0]
            if not wqe.is_read or wqe.psns != 1 or wqe.length_bytes != length_bytes:
                break
            try:
                wqe.data.scatter(0, view[start : start + length_bytes])
            except MemoryFault:
                break
            requester.acknowledged(wqe, wqe.end_psn)
            start += step
            done += 1
        if done:
            requester.progress(now)
        return done

    def awaited_run(self) -> AwaitedRun | None:
        """Return where the responses to the oldest READ go on; None: the careful path decides."""
        requester = self._requester
        connection, una = requester.connection, requester.una_psn
        if connection is None or not requester.queue or not requester.reads:
            return None
        wqe, piece, mtu = requester.queue[0], requester.reads[0], connection.mtu_bytes
        if not wqe.is_read or not max(wqe.first_psn, piece.first_psn) <= una < piece.end_psn:
            return None
        window = wqe.data.plain_window((una - wqe.first_psn) * mtu)
        if window is None:
            return None
        target, start, left = window
        starts, packets = una == piece.first_psn, min(left // mtu, piece.end_psn - una)
        # What ends in another SGE, or with less than a packet, goes the careful way from there.
        ends = packets == piece.end_psn - una
        middles = packets - starts - ends if ends else min(packets, piece.end_psn - 1 - una) - starts
        return (target, start, una, middles, starts, ends) if packets > starts else None

    def took_run(self, packets: int, _asked: bool, _ended: bool, now: float) -> None:
        """So many of them are in their place."""
        requester = self._requester
        requester.acknowledged(requester.queue[0], requester.una_psn + packets)
        requester.progress(now)
