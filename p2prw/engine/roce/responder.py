"""The responder: request packets in; ACKs, NAKs and READ responses out (the kernel's rxe_resp.c).

The order of checks is rxe's: PSN, opcode sequence, rights of the queue pair, resources, length, key and range; then
execute, then acknowledge. A byte moves only after all of them.

What it has to say goes to `answers.AnswerQueue`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from p2prw.engine.model import Access, Completion, Opcode, WcStatus
from p2prw.engine.providers.base import QueuePairCounters
from p2prw.engine.roce.answers import AnswerQueue
from p2prw.engine.roce.burst import Burst, Connection
from p2prw.engine.roce.memory_table import MemoryFault, MemoryRegion, MemoryTable
from p2prw.engine.roce.opcodes import (
    BTH_BYTES,
    ENDS,
    IS_READ_REQUEST,
    IS_SEND,
    IS_WRITE,
    RETH_BYTES,
    STARTS,
    UNSUPPORTED,
    WITH_IMM,
    RcOpcode,
)
from p2prw.engine.roce.packet import (
    ACK_NO_CREDITS,
    MAX_MESSAGE_BYTES,
    NAK_INVALID_REQUEST,
    NAK_PSN_SEQUENCE,
    NAK_REMOTE_ACCESS,
    NAK_REMOTE_OPERATION,
    RNR_NAK,
    Reth,
    pull_immdt,
    pull_reth,
)
from p2prw.engine.roce.psn import PSN_MASK, psn_unwrap
from p2prw.engine.roce.runs import AwaitedRun, Buffer, Train
from p2prw.engine.roce.singles import receive_writes
from p2prw.engine.roce.work import ReceiveWqe

_REMOTE_WRITE, _REMOTE_READ = int(Access.REMOTE_WRITE), int(Access.REMOTE_READ)


class _RefusedRequest(Exception):
    """The packet must be answered with a NAK that ends the queue pair."""

    def __init__(self, syndrome: int, receive_status: WcStatus | None = None) -> None:
        super().__init__(f"NAK {syndrome:#x}")
        self.syndrome = syndrome
        self.receive_status = receive_status


class Responder:
    """Receive side of one queue pair. Driven by received request packets and by `next_burst`."""

    def __init__(
        self,
        *,
        qpn: int,
        memory: MemoryTable,
        min_rnr_timer: int,
        max_dest_rd_atomic: int,
        counters: QueuePairCounters,
        fail: Callable[[], None],
    ) -> None:
        self._qpn = qpn
        self._memory = memory
        self._min_rnr_timer = min_rnr_timer
        self.counters = counters
        self._fail = fail
        self.connection: Connection | None = None
        self.refused_traits = 0
        """Traits of requests that the queue pair does not let a peer make (what qp_access_flags leave out)."""
        self.receives: deque[ReceiveWqe] = deque()
        self.completions: deque[Completion] = deque()
        # where we are in the peer's stream
        self.expected_psn = 0
        self.msn = 0
        self._nak_sent = False
        """A gap was reported (or an RNR); ahead-of-order packets are dropped in silence until it is filled."""
        # the message in progress
        self._kind = 0
        """IS_WRITE, IS_SEND or 0 between messages."""
        self._length = 0
        self._done = 0
        self._write_address = 0
        self._write_rkey = 0
        self._receive: ReceiveWqe | None = None
        # things to send
        self.answers = AnswerQueue(memory, max_dest_rd_atomic)
        self.is_ending = False
        """A NAK that ends the queue pair is on its way out."""

    # --- requests in -------------------------------------------------------------------------------------------

    def receive_request(
        self, opcode: int, traits: int, view: memoryview, header_bytes: int, pad_bytes: int, psn: int, asks: bool
    ) -> None:
        """Take one request packet. `view` is the whole UDP payload, at least as long as its headers, pad and ICRC."""
        psn = psn_unwrap(self.expected_psn, psn)
        if psn != self.expected_psn:
            if psn > self.expected_psn:
                self._out_of_sequence()
            else:
                self._duplicate(traits, view, psn)
            return
        data = view[header_bytes : len(view) - 4 - pad_bytes]
        try:
            if not self._execute(opcode, traits, view, data, pad_bytes, asks):
                return
        except _RefusedRequest as refusal:
            self._refuse(refusal.syndrome, refusal.receive_status)
        except MemoryFault as fault:
            if self._kind == IS_SEND:
                self._refuse(NAK_REMOTE_OPERATION, WcStatus.LOC_PROT_ERR)
            else:
                self._refuse(NAK_REMOTE_ACCESS if fault.is_protection else NAK_REMOTE_OPERATION)

    def _execute(
        self, opcode: int, traits: int, view: memoryview, data: memoryview, pad_bytes: int, asks: bool
    ) -> bool:
        """Check and carry out the expected packet; False: not now (RNR)."""
        # opcode sequence: IBTA Vol 1 9.7.4.1.3
        kind = traits & (IS_WRITE | IS_SEND)
        if bool(traits & STARTS) is bool(self._kind) or (self._kind and kind != self._kind):
            raise _RefusedRequest(NAK_INVALID_REQUEST)
        # rights of the queue pair
        if traits & (UNSUPPORTED | self.refused_traits):
            raise _RefusedRequest(NAK_INVALID_REQUEST)
        if traits & IS_READ_REQUEST:
            self._accept_read(view, data)
            return True
        # resources: a SEND takes a receive WQE with its first packet, a WRITE with immediate data with its last
        needs_receive = traits & STARTS if kind == IS_SEND else traits & WITH_IMM
        if needs_receive and not self.receives:
            self._receiver_not_ready()
            return False
        self._check_length(traits, view, data, pad_bytes)
        if kind == IS_WRITE:
            self._place_write(data)
        else:
            if traits & STARTS:
                self._receive = self.receives.popleft()
            self._place_send(data)
        if traits & ENDS:
            imm = pull_immdt(view, BTH_BYTES + (RETH_BYTES if kind == IS_WRITE and traits & STARTS else 0))
            self._end_message(kind, imm if traits & WITH_IMM else None)
        self._accept(1, asks)
        return True

    def _check_length(self, traits: int, view: memoryview, data: memoryview, pad_bytes: int) -> None:
        """Hold the packet against path MTU and message length; a starting one also sets up the message."""
        mtu = self.connection.mtu_bytes if self.connection else 0
        length, done = self._length, self._done
        if traits & STARTS:
            done = 0
            if traits & IS_WRITE:
                reth = pull_reth(view, BTH_BYTES)
                length = reth.length_bytes
            else:
                length = self.receives[0].data.length_bytes
        size = len(data)
        if traits & ENDS:
            good = size <= mtu and pad_bytes == -size & 3 and (size > 0 or bool(traits & STARTS))
        else:
            good = size == mtu and not pad_bytes
        if good and traits & IS_WRITE:
            left = length - done
            good = length <= MAX_MESSAGE_BYTES and (size == left if traits & ENDS else left > mtu)
        if not good:
            raise _RefusedRequest(NAK_INVALID_REQUEST)
        if traits & IS_SEND and done + size > length:
            if traits & STARTS:
                self._receive = self.receives.popleft()
            raise _RefusedRequest(NAK_INVALID_REQUEST, WcStatus.LOC_LEN_ERR)
        if traits & STARTS:
            if traits & IS_WRITE:
                # A zero-length WRITE succeeds without a look at address and key (IBTA Vol 1 9.7.4.1.4, C9-88).
                if length and self._memory.find(reth.rkey, reth.remote_addr, length, _REMOTE_WRITE) is None:
                    raise _RefusedRequest(NAK_REMOTE_ACCESS)
                self._write_address, self._write_rkey = reth.remote_addr, reth.rkey
            self._kind = traits & (IS_WRITE | IS_SEND)
            self._length, self._done = length, 0

    def _place_write(self, data: memoryview) -> None:
        if len(data):
            region, offset = self._write_target(len(data))
            region.store(offset, data)
            self._done += len(data)
            self.counters.peer_bytes += len(data)

    def _write_target(self, length_bytes: int) -> tuple[MemoryRegion, int]:
        """Look the key up again: it may have been revoked between two packets."""
        address = self._write_address + self._done
        region = self._memory.find(self._write_rkey, address, length_bytes, _REMOTE_WRITE)
        if region is None:
            raise _RefusedRequest(NAK_REMOTE_ACCESS)
        return region, address - region.address

    def _place_send(self, data: memoryview) -> None:
        if self._receive is not None and len(data):
            self._receive.data.scatter(self._done, data)
            self._done += len(data)

    def _end_message(self, kind: int, imm_data: bytes | None) -> None:
        self.msn += 1
        if kind == IS_SEND:
            assert self._receive is not None
            opcode = Opcode.SEND if imm_data is None else Opcode.SEND_WITH_IMM
            self._complete(self._receive, WcStatus.SUCCESS, opcode, self._done, imm_data)
        elif imm_data is not None:
            wqe = self.receives.popleft()
            self._complete(wqe, WcStatus.SUCCESS, Opcode.RDMA_WRITE_WITH_IMM, self._length, imm_data)
        self._kind = 0
        self._receive = None

    def _complete(
        self, wqe: ReceiveWqe, status: WcStatus, opcode: Opcode, length_bytes: int, imm_data: bytes | None = None
    ) -> None:
        self.completions.append(Completion(wqe.wr_id, status, opcode, length_bytes, self._qpn, imm_data))

    def _accept(self, psns: int, asks: bool) -> None:
        self.expected_psn += psns
        if self._nak_sent:
            self._nak_sent = False
            # The gap closed by itself (reordering): a NAK that is still waiting would only cause resends.
            self.answers.drop_naks()
        if asks:
            self._acknowledge()

    def _acknowledge(self) -> None:
        """ACK everything up to now."""
        self.answers.answer(self.expected_psn - 1, ACK_NO_CREDITS, self.msn)

    def awaited_run(self) -> AwaitedRun | None:
        """Return where the MIDDLEs of the WRITE in progress go on; None: the careful path decides."""
        connection = self.connection
        if self._kind != IS_WRITE or self._nak_sent or connection is None or self.refused_traits & IS_WRITE:
            return None
        left = self._length - self._done
        address = self._write_address + self._done
        region = self._memory.find(self._write_rkey, address, left, _REMOTE_WRITE)
        if region is None or region.view is None:
            return None
        # A MIDDLE leaves at least one byte for the LAST.
        middles, is_whole = (left - 1) // connection.mtu_bytes, not left % connection.mtu_bytes
        if not middles and not is_whole:
            return None
        return region.view, address - region.address, self.expected_psn, middles, False, is_whole

    def took_run(self, packets: int, asked: bool, ended: bool, _now: float) -> None:
        """So many of them are in their place."""
        assert self.connection is not None
        length_bytes = packets * self.connection.mtu_bytes
        self._done += length_bytes
        self.counters.peer_bytes += length_bytes
        if ended:
            self._end_message(IS_WRITE, None)
        self._accept(packets, asked)

    def receive_first(self, psn: int, reth: Reth, data: memoryview, asks: bool) -> bool:
        """Take the first packet of a WRITE that is as expected into plain memory; False: the careful path decides."""
        length, mtu = reth.length_bytes, self.connection.mtu_bytes if self.connection else 0
        if (
            psn != self.expected_psn & PSN_MASK
            or self._kind
            or self._nak_sent
            or self.refused_traits & IS_WRITE
            or len(data) != mtu
            or not mtu < length <= MAX_MESSAGE_BYTES
        ):
            return False
        region = self._memory.find(reth.rkey, reth.remote_addr, length, _REMOTE_WRITE)
        if region is None or region.view is None:
            return False
        region.store(reth.remote_addr - region.address, data)
        self._kind, self._length, self._done = IS_WRITE, length, mtu
        self._write_address, self._write_rkey = reth.remote_addr, reth.rkey
        self.counters.peer_bytes += mtu
        self._accept(1, asks)
        return True

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
    ) -> int:
        """Take up to `count` WRITEs of one packet at `position`; return how many, 0: use the careful path."""
        if self._kind or self._nak_sent or self.refused_traits & IS_WRITE:
            return 0
        if psn_unwrap(self.expected_psn, psn) != self.expected_psn:
            return 0
        done, asked = receive_writes(
            view, position, count, length_bytes, prefix, psn, seeds, index, self._memory, _REMOTE_WRITE
        )
        if done:
            self.msn += done
            self.counters.peer_bytes += done * length_bytes
            self._accept(done, asked)
        return done

    # --- requests that are not as expected ---------------------------------------------------------------------

    def _out_of_sequence(self) -> None:
        if not self._nak_sent:
            self._nak_sent = True
            self.answers.answer(self.expected_psn, NAK_PSN_SEQUENCE, self.msn)

    def _receiver_not_ready(self) -> None:
        self._nak_sent = True
        self.answers.answer(self.expected_psn, RNR_NAK | self._min_rnr_timer, self.msn)

    def _refuse(self, syndrome: int, receive_status: WcStatus | None = None, psn: int | None = None) -> None:
        """NAK and end: the queue pair goes to ERR now, the NAK (after READ responses before it) still goes out."""
        wqe, self._receive = self._receive, None
        if wqe is not None:
            self._complete(wqe, receive_status or WcStatus.WR_FLUSH_ERR, Opcode.SEND, 0)
        self.answers.drop_naks()
        self.answers.answer(self.expected_psn if psn is None else psn, syndrome, self.msn)
        self._kind = 0
        self.is_ending = True
        self._fail()

    def _duplicate(self, traits: int, view: memoryview, psn: int) -> None:
        """Never execute again: ACK what is done; a READ is answered afresh from memory."""
        self.counters.duplicates += 1
        if traits & (IS_WRITE | IS_SEND):
            self._acknowledge()
        elif traits & IS_READ_REQUEST:
            mtu = self.connection.mtu_bytes if self.connection else 1
            self.counters.peer_bytes_again += self.answers.restart_read(psn, pull_reth(view, BTH_BYTES), mtu)

    def _accept_read(self, view: memoryview, data: memoryview) -> None:
        reth = pull_reth(view, BTH_BYTES)
        length = reth.length_bytes
        if not self.answers.takes_read or len(data) or length > MAX_MESSAGE_BYTES:
            raise _RefusedRequest(NAK_INVALID_REQUEST)
        if length and self._memory.find(reth.rkey, reth.remote_addr, length, _REMOTE_READ) is None:
            raise _RefusedRequest(NAK_REMOTE_ACCESS)
        self.msn += 1
        self.counters.peer_bytes += length
        mtu = self.connection.mtu_bytes if self.connection else 1
        end_psn = self.answers.read(self.expected_psn, reth, mtu, self.msn)
        self._accept(end_psn - self.expected_psn, asks=False)

    # --- things to send ----------------------------------------------------------------------------------------

    def next_burst(self) -> Burst | None:
        """Return the next answer or the next burst of READ responses; None: nothing to say."""
        connection = self.connection
        if not self.answers or connection is None:
            return None
        try:
            burst = self.answers.next_burst(connection)
        except MemoryFault as fault:
            psn = self.answers.next_psn()
            self.answers.clear()
            self._refuse(NAK_REMOTE_ACCESS if fault.is_protection else NAK_REMOTE_OPERATION, psn=psn)
            burst = self.answers.next_burst(connection)
        self.counters.packets_sent += burst.packets
        return burst

    def next_train(self, most: int) -> Train | None:
        """Return at most `most` full bursts of READ responses that come next, in one; None: something else does."""
        return self.answers.next_train(self.connection, most, self.counters) if self.connection else None

    def answer_packet(self, connection: Connection, index: int) -> list[Buffer]:
        """Take off the ACK or NAK that comes next; return it as segment `index` of a burst."""
        psn, aeth = self.answers.next_answer()
        self.counters.packets_sent += 1
        buffers, _ = connection.packet(RcOpcode.ACKNOWLEDGE, psn, aeth, index=index)
        return buffers

    def flush(self) -> None:
        """Complete posted receives as flushed; unless a NAK is on its way out, say no more."""
        if self._receive is not None:
            self._complete(self._receive, WcStatus.WR_FLUSH_ERR, Opcode.SEND, 0)
            self._receive = None
        while self.receives:
            self._complete(self.receives.popleft(), WcStatus.WR_FLUSH_ERR, Opcode.SEND, 0)
        self._kind = 0
        if not self.is_ending:
            self.answers.clear()
