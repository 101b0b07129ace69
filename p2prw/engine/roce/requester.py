"""The requester: posted work requests in, request packets out (the kernel's rxe_req.c). Answers: completer.py.

    una_psn <= send_psn <= max_sent_psn <= next_psn        (absolute, see psn.py)
    |          |           |               +-- for the next work request posted
    |          |           +-- highest ever sent: what an answer may speak about
    |          +-- goes back to una_psn when packets were lost (go-back-N)
    +-- oldest not acknowledged; inside a READ: the next response expected. It never goes back.

A READ is asked for in pieces that fit the read window, because nothing else slows a READ responder down; each piece is
a READ request like any other, and is asked for again with the same end, so that it stays within one responder slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from p2prw.engine.model import Completion, WcStatus
from p2prw.engine.providers.base import QueuePairCounters
from p2prw.engine.roce.burst import Burst, Connection
from p2prw.engine.roce.memory_table import MemoryFault
from p2prw.engine.roce.opcodes import BTH_BYTES, ICRC_BYTES, IMMDT_BYTES, RETH_BYTES, RcOpcode
from p2prw.engine.roce.outgoing import ASKS_OF_A_WINDOW, Run, small_writes
from p2prw.engine.roce.outstanding import OutstandingReads
from p2prw.engine.roce.packet import ACK_REQUEST, PSN_WORD, push_reth
from p2prw.engine.roce.psn import MAX_OUTSTANDING_PSNS, PSN_MASK
from p2prw.engine.roce.singles import WRITE_OVERHEAD_BYTES
from p2prw.engine.roce.work import SendWqe

DEFAULT_WINDOW_BYTES = 512 * 1024
"""Until the peer grants one: 128 packets of 4096 bytes, what rxe itself keeps outstanding."""

LEAST_READS_WANTED = 8
"""READs that may be asked for together; fewer are not worth to stop receiving (measured: a fifth slower)."""


class Requester:
    """Send queue of one queue pair. Driven by `post`, `next_burst`, the completer, and the queue pair's timer."""

    def __init__(
        self,
        *,
        qpn: int,
        psn: int,
        timeout_s: float | None,
        retry_cnt: int,
        rnr_retry: int,
        counters: QueuePairCounters,
        completions: deque[Completion],
        fail: Callable[[WcStatus], None],
        want_turn: Callable[[int], object],
    ) -> None:
        """`want_turn`: half of `max_reads` is left; more should be asked for before their peer has nothing to do."""
        self._qpn = qpn
        self.counters = counters
        self._completions = completions
        self.fail = fail
        self.connection: Connection | None = None
        # things to send
        self.queue: deque[SendWqe] = deque()
        self.unsent: deque[SendWqe] = deque()
        self.run: Run | None = None
        """Of the long message that went out last."""
        self.next_psn = psn
        self.send_psn = psn
        self.max_sent_psn = psn
        # flow control
        self.una_psn = psn
        self.window_bytes = DEFAULT_WINDOW_BYTES
        self.read_window_bytes = DEFAULT_WINDOW_BYTES
        self.max_reads = 1
        self.reads = OutstandingReads()
        self.posted_bytes = 0
        """WRITE and SEND data posted so far."""
        self.sent_bytes = 0
        self.acked_bytes = 0
        self.asked_bytes = 0
        """Where in the stream of WRITE and SEND data an ACK was last asked for."""
        # loss recovery
        self.timeout_s = timeout_s
        self.retry_cnt = retry_cnt
        self.rnr_retry = rnr_retry
        self.retries_left = retry_cnt
        self.rnr_retries_left = rnr_retry
        self.is_going_back = False
        """A go-back was started and nothing has come of it yet: more NAKs say nothing new (rxe's started_retry)."""
        self.deadline: float | None = None
        self.rnr_deadline: float | None = None
        self._want_turn = want_turn

    @property
    def bytes_in_flight(self) -> int:
        """Data of WRITEs and SENDs on the wire and not acknowledged."""
        return self.sent_bytes - self.acked_bytes

    @property
    def read_psns_in_flight(self) -> int:
        """Response packets of READs that were asked for and have not come; not of one that is to be asked for again."""
        return self.reads.on_the_wire(self.una_psn, self.send_psn)[1]

    # --- posting ---------------------------------------------------------------------------------------------

    def post(self, wqe: SendWqe) -> None:
        """Queue it; its PSNs start at `next_psn`, its data at `posted_bytes`."""
        self.queue.append(wqe)
        self.unsent.append(wqe)
        self.next_psn = wqe.end_psn
        if not wqe.is_read:
            self.posted_bytes += wqe.length_bytes

    # --- sending ---------------------------------------------------------------------------------------------

    def next_burst(self, now: float) -> Burst | None:
        """Return what may go out now, at most one burst; None: nothing to send, or blocked until an answer comes."""
        connection = self.connection
        if not self.unsent or self.rnr_deadline is not None or connection is None:
            return None
        wqe = self.unsent[0]
        if wqe.local_error is not None:
            return None
        run = self.run
        try:
            if run is not None and run.wqe is wqe:
                # fast path: more of what went out last
                burst = run.next_burst(self) or self._message(connection, wqe)
            elif wqe.is_read:
                burst = self._asks(connection, wqe)
            elif wqe.psns == 1:
                burst = self._small_writes(connection, wqe) or self._message(connection, wqe)
            else:
                burst = self._message(connection, wqe)
        except MemoryFault as fault:
            wqe.local_error = WcStatus.LOC_PROT_ERR if fault.is_protection else WcStatus.LOC_QP_OP_ERR
            self.report_local_error()
            return None
        if burst is not None and self.deadline is None and self.timeout_s is not None:
            self.deadline = now + self.timeout_s
        return burst

    def run_of_next(self) -> Run | None:
        """Return the run of the WRITE or SEND that comes next, or goes on; None: the careful way decides."""
        run, wqe, connection = self.run, self.unsent[0], self.connection
        if run is not None and run.wqe is wqe:
            return run
        if connection is None or self.send_psn != wqe.first_psn:
            return None
        self.run = run = Run.of(connection, _SEND_MIDDLE if wqe.is_send else _WRITE_MIDDLE, wqe)
        return run

    def report_local_error(self) -> None:
        """Fail with the oldest work request's own error, if it has one."""
        if self.queue and (error := self.queue[0].local_error) is not None:
            self.fail(error)

    def _message(self, connection: Connection, wqe: SendWqe) -> Burst | None:
        """Next burst of a WRITE or SEND: FIRST or ONLY alone, MIDDLEs (and a LAST no longer than they) together."""
        mtu, psn = connection.mtu_bytes, self.send_psn
        sent = psn - wqe.first_psn
        offset = sent * mtu
        left = wqe.length_bytes - offset
        packets = self._packets_allowed(mtu if mtu < left else left, mtu)
        if packets <= 0:
            return None
        after = wqe.end_psn - psn - 1
        if not sent or not after:
            length = mtu if after else left
            opcode, extension = wqe.edge(starts=not sent, ends=not after)
            pieces = wqe.data.gather(offset, length)
            # A FIRST that more packets follow at once need not ask; a window that is full must be opened by an ACK.
            asks = not after or packets == 1
            burst = connection.single(opcode, psn, extension, pieces, length, ack_request=asks)
            self.sent(wqe, 1)
            if asks:
                self.asked_bytes = self.sent_bytes
            if not sent and wqe.psns > 2 * connection.max_segments > 2:
                self.run = Run.of(connection, _SEND_MIDDLE if wqe.is_send else _WRITE_MIDDLE, wqe)
            return burst
        middles = min(after, connection.max_segments, packets)
        run_bytes = middles * mtu
        pieces = wqe.data.gather(offset, run_bytes)
        end_bytes = wqe.start_bytes + offset + run_bytes
        # A window that is full is opened by an ACK only; before that, every ACK costs both ends as much as a burst.
        asks = middles == packets or end_bytes - self.asked_bytes >= self.window_bytes // ASKS_OF_A_WINDOW
        tail_bytes = left - run_bytes
        takes_last = (
            middles == after
            and middles < connection.max_segments
            and middles < packets
            and tail_bytes + (IMMDT_BYTES if wqe.has_imm else 0) <= mtu
        )
        if asks or takes_last:
            self.asked_bytes = end_bytes + (tail_bytes if takes_last else 0)
        middle = _SEND_MIDDLE if wqe.is_send else _WRITE_MIDDLE
        buffers = connection.middle_run(middle, psn, pieces, middles, ack_last=asks and not takes_last)
        total, count = middles * connection.segment_bytes, middles
        if takes_last:
            opcode, extension = wqe.edge(starts=False, ends=True)
            tail = wqe.data.gather(offset + run_bytes, tail_bytes)
            more, size = connection.packet(
                opcode, psn + middles, extension, tail, tail_bytes, ack_request=True, index=middles
            )
            buffers, total, count = buffers + more, total + size, count + 1
        self.sent(wqe, count)
        return Burst(buffers, min(connection.segment_bytes, total), total, connection.destination, count)

    def _small_writes(self, connection: Connection, first: SendWqe) -> Burst | None:
        """Next burst where several WRITEs of one packet and one length come next; None: too few for that.

        Only the last asks for an ACK, which speaks for all.
        """
        length = first.length_bytes
        if not length or len(self.unsent) < 2 or connection.max_singles < 2:
            return None
        most = self._packets_allowed(length, length)
        most = min(most, connection.singles_of(length + (-length & 3) + WRITE_OVERHEAD_BYTES))
        heads, pieces = small_writes(self.unsent, self.send_psn, most)
        count = len(heads)
        if count < 2:
            return None
        for _ in range(count - 1):
            self.unsent.popleft()
        last = self.unsent[0]
        self.sent(last, count)
        return connection.singles(_WRITE_ONLY, heads, pieces)

    def _packets_allowed(self, next_bytes: int, mtu_bytes: int) -> int:
        """Return how many packets window and PSN space leave room for; one always may go when nothing is out."""
        psns = MAX_OUTSTANDING_PSNS - (self.send_psn - self.una_psn)
        in_flight = self.sent_bytes - self.acked_bytes
        room = self.window_bytes - in_flight
        if next_bytes > room:
            return min(1, psns) if not in_flight else 0
        return min(psns, max(1, room // mtu_bytes))

    def _asks(self, connection: Connection, wqe: SendWqe) -> Burst | None:
        """Next burst of READ requests: as many as the window and the peer's slots allow, up to a WRITE or SEND."""
        heads: list[bytes] = []
        most, mtu = connection.singles_of(_ASK_BYTES), connection.mtu_bytes
        unsent, limit = self.unsent, max(1, self.read_window_bytes // mtu)
        outstanding, in_flight = self.reads.on_the_wire(self.una_psn, self.send_psn)
        while outstanding < self.max_reads:
            psn = self.send_psn
            # Only what is asked for again stands among the pieces already.
            known = self.reads.at(psn) if psn < self.max_sent_psn else None
            left = wqe.end_psn - psn
            if known is not None:
                count = known.end_psn - psn
            else:
                count = left if left <= limit and not outstanding else min(left, max(1, limit // 2))
            if in_flight and in_flight + count > limit:
                break
            if psn + count - self.una_psn > MAX_OUTSTANDING_PSNS and psn > self.una_psn:
                break
            offset = (psn - wqe.first_psn) * mtu
            reth = push_reth(wqe.remote_addr + offset, wqe.rkey, min(count * mtu, wqe.length_bytes - offset))
            if known is None:
                self.reads.ask(psn, psn + count)
            self.sent(wqe, count, packets=1)
            heads.append(PSN_WORD.pack(psn & PSN_MASK | ACK_REQUEST) + reth)
            outstanding, in_flight = outstanding + 1, in_flight + count
            if len(heads) >= most or not unsent:
                break
            wqe = unsent[0]
            if not wqe.is_read or wqe.local_error is not None:
                break
        return connection.singles(_READ_REQUEST, heads, [b""] * len(heads)) if heads else None

    def sent(self, wqe: SendWqe, psns: int, packets: int | None = None) -> None:
        """So many PSNs of `wqe` have left, in as many packets but for a READ request."""
        packets = psns if packets is None else packets
        psn, most = self.send_psn, self.max_sent_psn
        if psn < most:
            self.counters.retransmitted_packets += min(packets, most - psn)
        self.counters.packets_sent += packets
        self.send_psn = psn = psn + psns
        self.max_sent_psn = most if psn < most else psn
        if not wqe.is_read:
            done = (psn - wqe.first_psn) * (self.connection.mtu_bytes if self.connection else 1)
            length = wqe.length_bytes
            self.sent_bytes = wqe.start_bytes + (done if done < length else length)
        if psn >= wqe.end_psn:
            self.unsent.popleft()

    # --- what the completer and timers do to the queue ---------------------------------------------------------

    def seek(self, psn: int) -> None:
        """Send from `psn` on: back after a loss, forward when an old answer made a resend pointless."""
        self.send_psn = psn
        self.unsent = deque(wqe for wqe in self.queue if wqe.end_psn > psn)

    def acknowledge(self, end_psn: int) -> bool:
        """Everything before `end_psn` has arrived, up to the first READ; False: one lies before `end_psn`."""
        queue, complete = self.queue, self._completions.append
        una = self.una_psn
        while una < end_psn and queue:
            wqe = queue[0]
            if wqe.is_read:
                return False
            una = wqe.end_psn
            if una > end_psn:
                self.acknowledged(wqe, end_psn)
                break
            del queue[0]
            self.una_psn = una
            self.acked_bytes = wqe.start_bytes + wqe.length_bytes
            if wqe.signaled:
                complete(Completion(wqe.wr_id, _SUCCESS, wqe.opcode, wqe.length_bytes, self._qpn))
        self.sent_bytes = max(self.sent_bytes, self.acked_bytes)
        return True

    def acknowledged(self, wqe: SendWqe, end_psn: int) -> None:
        """Everything before `end_psn`, which lies in or after `wqe`, has arrived."""
        self.una_psn = end_psn
        if not wqe.is_read:
            mtu = self.connection.mtu_bytes if self.connection else 1
            done = min((end_psn - wqe.first_psn) * mtu, wqe.length_bytes)
            self.acked_bytes = wqe.start_bytes + done
            self.sent_bytes = max(self.sent_bytes, self.acked_bytes)
        if end_psn >= wqe.end_psn:
            self.queue.popleft()
            if wqe.signaled:
                self.complete(wqe, WcStatus.SUCCESS)

    def progress(self, now: float) -> None:
        """Something new was acknowledged: fresh retries, fresh timer."""
        self.retries_left = self.retry_cnt
        self.rnr_retries_left = self.rnr_retry
        self.is_going_back = False
        if self.send_psn < self.una_psn:
            self.seek(self.una_psn)
        reads = self.reads
        if reads and reads[0].end_psn <= self.una_psn:
            before, half = len(reads), self.max_reads // 2
            reads.answered(self.una_psn)
            if half >= LEAST_READS_WANTED and len(reads) <= half < before and self.unsent:
                self._want_turn(self._qpn)
        outstanding = self.send_psn > self.una_psn
        self.deadline = now + self.timeout_s if outstanding and self.timeout_s is not None else None
        if self.queue and self.queue[0].local_error is not None:
            self.report_local_error()

    def go_back(self) -> None:
        """Send everything from `una_psn` on again. The timer starts with the first packet."""
        self.is_going_back = True
        self.sent_bytes = self.asked_bytes = self.acked_bytes
        self.deadline = None
        self.seek(self.una_psn)

    def retry(self) -> None:
        """Go back once more, or give up: the oldest work request fails with RETRY_EXC_ERR."""
        if self.retries_left == 0:
            self.fail(WcStatus.RETRY_EXC_ERR)
            return
        self.retries_left -= 1
        self.go_back()

    def next_timer(self) -> float | None:
        """Return when `handle_timer` must be called."""
        return self.rnr_deadline if self.rnr_deadline is not None else self.deadline

    def handle_timer(self, now: float) -> None:
        """Resend after a timeout (IBTA Vol 1 9.7.6.1.3) or when the RNR wait is over."""
        if self.rnr_deadline is not None:
            if now >= self.rnr_deadline:
                self.rnr_deadline = None
                self.go_back()
        elif self.deadline is not None and now >= self.deadline:
            self.counters.timeouts += 1
            self.retry()

    def complete(self, wqe: SendWqe, status: WcStatus) -> None:
        """Report one work request."""
        self._completions.append(Completion(wqe.wr_id, status, wqe.opcode, wqe.length_bytes, self._qpn))

    def flush(self, first: WcStatus = WcStatus.WR_FLUSH_ERR) -> None:
        """Complete everything with an error: the oldest with `first`, the rest as flushed."""
        status = first
        for wqe in self.queue:
            self.complete(wqe, status)
            status = WcStatus.WR_FLUSH_ERR
        self.queue.clear()
        self.unsent.clear()
        self.reads.clear()
        self.sent_bytes = self.acked_bytes
        self.send_psn = self.una_psn = self.max_sent_psn = self.next_psn
        self.deadline = self.rnr_deadline = None


# Plain ints: looking an enum member up by name costs more than the rest of a table access.
_WRITE_MIDDLE, _SEND_MIDDLE = int(RcOpcode.WRITE_MIDDLE), int(RcOpcode.SEND_MIDDLE)
_WRITE_ONLY, _READ_REQUEST = int(RcOpcode.WRITE_ONLY), int(RcOpcode.READ_REQUEST)
_SUCCESS = WcStatus.SUCCESS
_ASK_BYTES = BTH_BYTES + RETH_BYTES + ICRC_BYTES
