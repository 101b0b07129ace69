"""One reliable connected queue pair of the software device.

The laws:
    - A packet is looked at only after its source, its ICRC, and the state of the queue pair were found good (the first
      two by the device, the third by `state.TAKES_*`).
    - PSNs are given out when work is posted and never change; a WR completes in the order it was posted, once.
    - The first work request that fails carries the reason, all after it WR_FLUSH_ERR, and the state is ERR for good.
    - In ERR nothing is sent but the NAK that led there, and the READ responses that stand before it.
    - Payload is read from registered memory when a packet is made, and made again from memory when sent again.
    - The bytes on the wire towards the peer never exceed the window, but for one packet when nothing else is out; the
      queue pairs with one peer have one window, the sum of what they were granted (`shared_window`).

Who does what: `requester` sends requests, `completer` takes their answers, `responder` serves the peer's requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from p2prw.engine.model import Access, Completion, Opcode, QueuePairAttributes, QueuePairOptions, Sge, WcStatus
from p2prw.engine.providers.base import QueuePairCounters
from p2prw.engine.roce.burst import Burst, Connection
from p2prw.engine.roce.completer import Completer
from p2prw.engine.roce.completions import CompletionQueue
from p2prw.engine.roce.icrc import Flow
from p2prw.engine.roce.incoming import Incoming
from p2prw.engine.roce.memory_table import MemoryFault, MemoryTable, ScatterList
from p2prw.engine.roce.opcodes import AETH_BYTES, IS_READ_REQUEST, IS_WRITE, MIN_PACKET_BYTES
from p2prw.engine.roce.packet import MAX_MESSAGE_BYTES
from p2prw.engine.roce.psn import MAX_OUTSTANDING_PSNS, PSN_MASK, packets_of
from p2prw.engine.roce.remote import Sources, address_of, check_attributes
from p2prw.engine.roce.requester import Requester
from p2prw.engine.roce.responder import Responder
from p2prw.engine.roce.runs import PURE, Buffer, RunCodec, Train
from p2prw.engine.roce.shared_window import Share
from p2prw.engine.roce.spoil import SpoiltList
from p2prw.engine.roce.state import (
    TAKES_RECEIVES,
    TAKES_SENDS,
    QueuePairState,
    Step,
    next_state,
)
from p2prw.engine.roce.work import ReceiveWqe, SendWqe
from p2prw.errors import HostError, LocalProtocolError

ACK_BYTES = MIN_PACKET_BYTES + AETH_BYTES
_READ, _RTS = Opcode.RDMA_READ, QueuePairState.RTS


class RoceQueuePair:
    """providers.base.QueuePair, and SEND with a receive queue. Driven by its device."""

    def __init__(
        self,
        *,
        local: QueuePairAttributes,
        local_address: bytes,
        options: QueuePairOptions,
        memory: MemoryTable,
        gso_segments: int,
        batching: bool = True,
        wake: Callable[[RoceQueuePair], None],
        want_turn: Callable[[int], None],
        completed: Callable[[int], None],
        join: Callable[[RoceQueuePair], None],
        forget: Callable[[RoceQueuePair], None],
        codec: RunCodec = PURE,
    ) -> None:
        """`wake` is called when there may be something to send that no packet or timer of ours brought about.

        With its QPN are called `want_turn`, as `Requester` says, and `completed`, when `poll` will find something;
        `join` when it is connected, `forget` when it is closed.
        """
        self.local = local
        self.remote: QueuePairAttributes | None = None
        self.depth = options.depth
        self.options = options
        self.counters = QueuePairCounters()
        self.state = next_state(QueuePairState.RESET, Step.INITIALIZE)
        self.mtu_bytes = local.mtu_bytes
        self._local_address = local_address
        self._memory = memory
        self._gso_segments = gso_segments
        self._codec = codec
        self._batching = batching
        self._wake = wake
        self._join = join
        self._forget = forget
        self.is_awake = False
        """The device asks it for bursts; its own note."""
        self._last_list: tuple[Sequence[Sge], ScatterList] | None = None
        self._completions = CompletionQueue(partial(completed, local.qpn))
        self._is_requests_turn = False
        # where packets may come from
        self._sources: Sources | None = None
        # the halves
        self.requester = Requester(
            qpn=local.qpn,
            psn=local.psn,
            timeout_s=4.096e-6 * 2**options.timeout if options.timeout else None,
            retry_cnt=options.retry_cnt,
            rnr_retry=options.rnr_retry,
            counters=self.counters,
            completions=self._completions,
            fail=self._fail,
            want_turn=want_turn,
        )
        self.share = Share(self.requester, partial(wake, self))
        """Of the window towards the peer."""
        self.completer = Completer(self.requester)
        self.responder = Responder(
            qpn=local.qpn,
            memory=memory,
            min_rnr_timer=options.min_rnr_timer,
            max_dest_rd_atomic=local.max_dest_rd_atomic,
            counters=self.counters,
            fail=self._fail,
        )
        self.incoming = Incoming(self.responder, self.completer, self.counters, codec)

    def __repr__(self) -> str:
        requester = self.requester
        return (
            f"<RoceQueuePair {self.local.qpn:#x} {self.state} psn={requester.send_psn & PSN_MASK:#x} "
            f"queued={len(requester.queue)}/{self.depth} in_flight={requester.bytes_in_flight}B>"
        )

    # --- the user's calls --------------------------------------------------------------------------------------

    def connect(self, remote: QueuePairAttributes, now: float = 0.0) -> None:
        """Go to RTR and RTS; the path MTU is the smaller of both. HostError when the peer cannot be reached so."""
        packed, printed = address_of(remote.gid)
        if len(packed) != len(self._local_address):
            raise HostError(
                "the two ends have addresses of different families",
                why=f"{address_of(self.local.gid)[1]} here, {printed} there",
                fix="give both ends an IPv4 or both an IPv6 address (--gid-index, --device soft:ADDRESS)",
                code="address_family",
            )
        check_attributes(remote)
        self._enter(Step.READY_TO_RECEIVE)
        self.remote = remote
        self.mtu_bytes = self.incoming.mtu_bytes = min(self.local.mtu_bytes, remote.mtu_bytes)
        self._sources = Sources(remote, packed, self._local_address, self.local.udp_port)
        flow = Flow((self._local_address, self.local.udp_port), (packed, remote.udp_port))
        destination = (printed, remote.udp_port)
        connection = Connection(flow, destination, remote.qpn, self.mtu_bytes, self._gso_segments, self._codec)
        if not self._batching:
            connection.max_singles = 1
        self.responder.connection = connection
        self.responder.expected_psn = remote.psn
        self._enter(Step.READY_TO_SEND)
        self.requester.connection = connection
        self.requester.max_reads = min(self.local.max_rd_atomic, remote.max_dest_rd_atomic)
        self._join(self)

    def post_rdma(
        self,
        wr_id: int,
        opcode: Opcode,
        sges: Sequence[Sge],
        remote_addr: int,
        rkey: int,
        *,
        signaled: bool,
        imm_data: bytes | None = None,
        spoil_at: int | None = None,
    ) -> None:
        """Post an RDMA_WRITE, RDMA_WRITE_WITH_IMM or RDMA_READ; `imm_data` is 4 bytes as they go on the wire.

        `spoil_at`: this byte of it goes wrong on purpose, under a right ICRC (`spoil`).
        """
        if opcode not in (Opcode.RDMA_WRITE, Opcode.RDMA_WRITE_WITH_IMM, Opcode.RDMA_READ):
            raise LocalProtocolError(f"post_rdma with {opcode!r}", code="bad_opcode")
        self._post(wr_id, opcode, sges, remote_addr, rkey, signaled, imm_data, spoil_at)

    def post_send(self, wr_id: int, sges: Sequence[Sge], *, signaled: bool, imm_data: bytes | None = None) -> None:
        """Post a SEND, with immediate data when 4 bytes are given."""
        opcode = Opcode.SEND if imm_data is None else Opcode.SEND_WITH_IMM
        self._post(wr_id, opcode, sges, 0, 0, signaled, imm_data)

    def _post(
        self,
        wr_id: int,
        opcode: Opcode,
        sges: Sequence[Sge],
        remote_addr: int,
        rkey: int,
        signaled: bool,
        imm_data: bytes | None,
        spoil_at: int | None = None,
    ) -> None:
        requester = self.requester
        if self.state not in TAKES_SENDS:
            raise LocalProtocolError(f"work posted to a queue pair in {self.state}", code="queue_pair_state")
        if len(requester.queue) >= self.depth:
            raise LocalProtocolError(f"more than {self.depth} work requests outstanding", code="queue_full")
        if len(sges) > self.options.max_send_sge:
            raise LocalProtocolError(f"{len(sges)} SGEs, at most {self.options.max_send_sge}", code="too_many_sges")
        if imm_data is not None and len(imm_data) != 4:
            raise LocalProtocolError("immediate data has 4 bytes", code="bad_imm_data")
        is_read = opcode == _READ
        if is_read and requester.max_reads < 1:
            raise LocalProtocolError("READ to a peer that takes none (max_dest_rd_atomic 0)", code="no_rd_atomic")
        length = sges[0].length_bytes if len(sges) == 1 else sum(sge.length_bytes for sge in sges)
        psns = packets_of(length, self.mtu_bytes)
        if length > MAX_MESSAGE_BYTES or psns > MAX_OUTSTANDING_PSNS:
            raise LocalProtocolError(f"message of {length} bytes at path MTU {self.mtu_bytes}", code="message_too_long")
        error = None
        last = self._last_list
        if last is not None and last[0] is sges and spoil_at is None and not is_read:
            # fast path: the same SGEs as before (a tuple, so they have not changed); a key that was revoked since is
            # found out when the memory is read
            data = last[1]
        else:
            access = Access.LOCAL_WRITE if is_read else Access.LOCAL_READ
            try:
                if spoil_at is None:
                    data = ScatterList(self._memory, sges, access)
                    if type(sges) is tuple and not is_read:
                        self._last_list = (sges, data)
                else:
                    data = SpoiltList(self._memory, sges, access, spoil_at)
            except MemoryFault:
                data, error = ScatterList(self._memory, (), Access.LOCAL_READ), WcStatus.LOC_PROT_ERR
        wqe = SendWqe(
            *(wr_id, opcode, data, remote_addr, rkey, signaled, imm_data, requester.next_psn, psns),
            *(requester.posted_bytes, length, error),
        )
        if self.state is QueuePairState.ERR:
            requester.complete(wqe, WcStatus.WR_FLUSH_ERR)
            return
        requester.post(wqe)
        if error is not None:
            requester.report_local_error()
        if not self.is_awake:
            self._wake(self)

    def post_recv(self, wr_id: int, sges: Sequence[Sge] = ()) -> None:
        """Post a buffer for a SEND, or an empty one for immediate data. Completions come from `poll_recv`."""
        if self.state not in TAKES_RECEIVES:
            raise LocalProtocolError(f"receive posted to a queue pair in {self.state}", code="queue_pair_state")
        try:
            data = ScatterList(self._memory, sges, Access.LOCAL_WRITE)
        except MemoryFault as fault:
            raise LocalProtocolError("receive into memory that is not registered for it", why=str(fault)) from None
        self.responder.receives.append(ReceiveWqe(wr_id, data))
        if self.state is QueuePairState.ERR:
            self.responder.flush()

    def set_access(self, access: Access) -> None:
        """Say what the peer may do at all (qp_access_flags); without this call, WRITE and READ where keys allow it."""
        refused = 0 if access & Access.REMOTE_WRITE else IS_WRITE
        self.responder.refused_traits = refused | (0 if access & Access.REMOTE_READ else IS_READ_REQUEST)

    def set_window(self, window_bytes: int) -> None:
        """Bound the data on the wire in both directions: WRITEs and SENDs towards the peer, READ responses from it."""
        self.share.grant(window_bytes, window_bytes)
        self._wake(self)

    def set_read_window(self, window_bytes: int) -> None:
        """Bound the READ responses alone, by our own receive buffer; call it after `set_window`."""
        self.share.grant(None, window_bytes)
        self._wake(self)

    def poll(self, max_completions: int = 64) -> list[Completion]:
        """Return completions of the send queue, oldest first."""
        return self._completions.take(max_completions) if self._completions else []

    def poll_recv(self, max_completions: int = 64) -> list[Completion]:
        """Return completions of the receive queue, oldest first; `opcode` is the peer's."""
        completions = self.responder.completions
        return [completions.popleft() for _ in range(min(max_completions, len(completions)))]

    def close(self) -> None:
        """Leave the device; what is outstanding is dropped without a completion. Safe to call twice."""
        self.requester.flush()
        self.responder.is_ending = False
        self.responder.flush()
        self._completions.clear()
        self.responder.completions.clear()
        self._enter(Step.FAIL)
        self.share.leave()
        self._forget(self)

    # --- driven by the device ----------------------------------------------------------------------------------

    @property
    def bytes_in_flight(self) -> int:
        """Data sent and not acknowledged."""
        return self.requester.bytes_in_flight

    def flow_from(self, source: tuple[str, int]) -> Flow | None:
        """Return the CRC seeds for packets from `source`; None: it is not the connected peer."""
        sources = self._sources
        return sources.flow_from(source) if sources is not None else None

    def next_burst(self, now: float) -> Burst | None:
        """Return one burst: ACKs first (the peer's window waits for them), READ responses and requests in turn."""
        responder, burst = self.responder, None
        if not responder.answers.waiting:
            # fast path: only requests, if any
            self._is_requests_turn = False
            return self.share.ask(now) if self.state is _RTS else None
        self._is_requests_turn = responder.answers.is_streaming and not self._is_requests_turn
        if self._is_requests_turn and self.state is _RTS:
            burst = self.share.ask(now)
        if burst is None and responder.answers:
            burst = responder.next_burst()
        if burst is None and self.state is _RTS:
            burst = self.share.ask(now)
        return burst

    def next_train(self, most: int, now: float) -> Train | None:
        """Return at most `most` bursts of a long message in one, where no decision lies between them; else None."""
        answers, requester = self.responder.answers, self.requester
        unsent = requester.unsent
        if answers.waiting:
            if unsent:
                # READ responses and requests take turns, burst by burst.
                return None
            if self.state is _RTS:
                # It has nothing to send: whoever waits for the shared window does not wait for the responses as well.
                self.share.ask(now)
            return self.responder.next_train(most)
        if not unsent or unsent[0].psns == 1 or unsent[0].is_read or self.state is not _RTS:
            return None
        if requester.rnr_deadline is not None or not (self.share.is_free or self.share.may_go_on()):
            return None
        run = requester.run_of_next()
        return run.train(requester, most, now) if run is not None else None

    def next_timer(self) -> float | None:
        """Return when `handle_timer` must be called (absolute), None: nothing runs."""
        return self.requester.next_timer()

    def handle_timer(self, now: float) -> None:
        """Run what is due."""
        self.requester.handle_timer(now)

    def _enter(self, step: Step) -> None:
        self.state = next_state(self.state, step)
        self.incoming.enter(self.state)

    def _fail(self, status: WcStatus = WcStatus.WR_FLUSH_ERR) -> None:
        """Go to ERR: the oldest work request gets `status`, everything else is flushed."""
        self._enter(Step.FAIL)
        self.requester.flush(status)
        self.responder.flush()
        self.share.leave()


def shared_answers(first: RoceQueuePair, others: Iterable[RoceQueuePair]) -> Burst | None:
    """One burst with the next ACK or NAK of every queue pair with the peer of `first`; None: fewer than two."""
    connection = first.responder.connection
    if connection is None or not first.responder.answers.is_answer:
        return None
    most, destination = connection.singles_of(ACK_BYTES), connection.destination
    together: list[tuple[RoceQueuePair, Connection]] = []
    for queue_pair in others:
        if len(together) >= most:
            break
        responder = queue_pair.responder
        other = responder.connection
        if other is not None and responder.answers.is_answer and other.destination == destination:
            together.append((queue_pair, other))
    if len(together) < 2:
        return None
    buffers: list[Buffer] = []
    for index, (queue_pair, other) in enumerate(together):
        buffers += queue_pair.responder.answer_packet(other, index)
    return Burst([b"".join(buffers)], ACK_BYTES, ACK_BYTES * len(together), destination, len(together))
