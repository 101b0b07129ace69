"""The software RoCEv2 device without its socket: bursts and time in, bursts, completions and a timer out.

A driver does four things and nothing else is needed: hand in what arrived (`receive_burst`), send what
`bursts_to_send` yields, call `handle_timer` when `next_timer` is due, and tell the time. Randomness and time are
arguments. Whatever arrives, no exception leaves `receive_burst`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

from p2prw.engine.model import QueuePairAttributes, QueuePairOptions
from p2prw.engine.roce.burst import Burst
from p2prw.engine.roce.icrc import IcrcCheck, packed_address
from p2prw.engine.roce.incoming import Stream
from p2prw.engine.roce.memory_table import MemoryTable
from p2prw.engine.roce.opcodes import MIDDLE_OVERHEAD_BYTES, MIN_PACKET_BYTES, TRAITS, RcOpcode
from p2prw.engine.roce.packet import BTH, DEFAULT_PKEY
from p2prw.engine.roce.psn import PSN_MASK
from p2prw.engine.roce.queue_pair import ACK_BYTES, RoceQueuePair, shared_answers
from p2prw.engine.roce.remote import MTU_SIZES, ROCE_UDP_PORT, gid_of
from p2prw.engine.roce.runs import PURE, Awaited, RunCodec, Train
from p2prw.engine.roce.shared_window import Share, SharedWindow
from p2prw.errors import HostError

__all__ = ["ROCE_UDP_PORT", "Burst", "DeviceCounters", "RoceDevice", "RoceQueuePair"]

MAX_RD_ATOMIC = 255
MAX_QUEUE_PAIRS = 4096
_MIDDLES = frozenset({int(RcOpcode.WRITE_MIDDLE), int(RcOpcode.READ_RESPONSE_MIDDLE)})
_SINGLES = frozenset({int(RcOpcode.WRITE_ONLY), int(RcOpcode.READ_RESPONSE_ONLY)})
_ACKNOWLEDGE = int(RcOpcode.ACKNOWLEDGE)
_ALONE = frozenset({_ACKNOWLEDGE, int(RcOpcode.WRITE_FIRST)})
"""Packets that often come by themselves."""
_RESPONSES_PER_TURN_BYTES = 512 * 1024
"""READ responses of one queue pair before the next one has its turn: a change with every burst is slow to receive."""
_TRAIN_BURSTS = 18
"""Of one queue pair before the next one has its turn: 1 MiB in packets of 4096 bytes."""
_FIRST_QPN = 2  # after the management queue pairs


@dataclass(slots=True)
class DeviceCounters:
    """Cumulative since the device was made; packets that reached no queue pair are counted only here."""

    bursts_received: int = 0
    dropped_malformed: int = 0
    """Too short, wrong TVer or P_Key, or an opcode that means nothing to us (CNP among them)."""
    dropped_unknown_qpn: int = 0
    dropped_wrong_source: int = 0
    icrc_errors: int = 0


class RoceDevice:
    """Queue pairs and memory behind one UDP address. `address` is where packets to us arrive; the ICRC covers it."""

    def __init__(
        self,
        address: str,
        udp_port: int,
        *,
        port_mtu_bytes: int,
        random_bits: Callable[[int], int],
        icrc_check: IcrcCheck = "full",
        gso_segments: int = 1,
        codec: RunCodec = PURE,
        fast_paths: bool = True,
        batching: bool = True,
        most_bytes: int = 1 << 62,
        most_read_bytes: int = 1 << 62,
    ) -> None:
        """`gso_segments`: most datagrams of one send (1: the driver has no UDP_SEGMENT).

        `fast_paths` (runs are taken as runs) and `batching` (several messages in one burst, queue pairs that take
        turns): off for tests. `most_bytes` and `most_read_bytes`: what the queue pairs with one peer together have
        under way towards it, and as READ responses from it, whatever was granted.
        """
        if port_mtu_bytes not in MTU_SIZES:
            raise HostError(f"path MTU {port_mtu_bytes}", why=f"it is one of {MTU_SIZES}", code="bad_mtu")
        self.address = address
        self.udp_port = udp_port
        self.port_mtu_bytes = port_mtu_bytes
        self.icrc_check: IcrcCheck = icrc_check
        self.gso_segments = gso_segments
        self.codec = codec
        self.counters = DeviceCounters()
        self.memory = MemoryTable(random_bits)
        self._packed_address = packed_address(address)
        self._random_bits = random_bits
        self._fast_paths = fast_paths
        self._batching = batching
        self._queue_pairs: dict[int, RoceQueuePair] = {}
        self._most = most_bytes, most_read_bytes
        self._windows: dict[tuple[str, int], SharedWindow] = {}
        """By the peer's address and port."""
        self._sending: list[Share] = []
        self._streaming: RoceQueuePair | None = None
        """Who took a run last."""
        self._completed: set[int] = set()
        self._quiet_until = 0.0
        """No timer of a queue pair is due before."""
        self._shortest_timeout_s = float("inf")
        self.wanting: set[int] = set()
        """QPNs of those that should send something before more is received."""
        self._awake: deque[RoceQueuePair] = deque()
        """Those that may have something to send, in the order of their turns. All others are not even asked."""

    def __repr__(self) -> str:
        return f"<RoceDevice {self.address} port {self.udp_port}, {len(self._queue_pairs)} queue pairs>"

    def create_queue_pair(self, options: QueuePairOptions) -> RoceQueuePair:
        """Create a queue pair in INIT with random QPN and PSN. HostError when an option is out of range."""
        mtu = options.mtu_bytes if options.mtu_bytes is not None else self.port_mtu_bytes
        for good, what in (
            (mtu in MTU_SIZES and mtu <= self.port_mtu_bytes, f"path MTU {mtu} (the port has {self.port_mtu_bytes})"),
            (0 <= options.timeout <= 31, f"timeout {options.timeout} (0 to 31)"),
            (0 <= options.retry_cnt <= 7, f"retry_cnt {options.retry_cnt} (0 to 7)"),
            (0 <= options.rnr_retry <= 7, f"rnr_retry {options.rnr_retry} (0 to 7)"),
            (0 <= options.min_rnr_timer <= 31, f"min_rnr_timer {options.min_rnr_timer} (0 to 31)"),
            (0 <= options.max_rd_atomic <= MAX_RD_ATOMIC, f"max_rd_atomic {options.max_rd_atomic} (0 to 255)"),
            (options.depth >= 1, f"depth {options.depth} (at least 1)"),
            (len(self._queue_pairs) < MAX_QUEUE_PAIRS, f"more than {MAX_QUEUE_PAIRS} queue pairs"),
        ):
            if not good:
                raise HostError("the software device cannot make this queue pair", why=what, errno="EINVAL")
        qpn = self._random_bits(24)
        while qpn < _FIRST_QPN or qpn == 0xFFFFFF or qpn in self._queue_pairs:
            qpn = self._random_bits(24)
        local = QueuePairAttributes(
            qpn=qpn,
            psn=self._random_bits(24),
            gid=gid_of(self.address),
            mtu_bytes=mtu,
            max_rd_atomic=options.max_rd_atomic,
            max_dest_rd_atomic=options.max_rd_atomic,
            udp_port=self.udp_port,
        )
        queue_pair = self._queue_pairs[qpn] = RoceQueuePair(
            local=local,
            local_address=self._packed_address,
            options=options,
            memory=self.memory,
            gso_segments=self.gso_segments,
            codec=self.codec,
            batching=self._batching,
            wake=self._wake,
            want_turn=self.wanting.add,
            completed=self._completed.add,
            join=self._join,
            forget=self._forget,
        )
        self._quiet_until = 0.0
        self._shortest_timeout_s = min(self._shortest_timeout_s, queue_pair.requester.timeout_s or float("inf"))
        return queue_pair

    def _wake(self, queue_pair: RoceQueuePair) -> None:
        if not queue_pair.is_awake:
            queue_pair.is_awake = True
            self._awake.append(queue_pair)

    def _join(self, queue_pair: RoceQueuePair) -> None:
        connection = queue_pair.requester.connection
        # Who waits for an answer without end would keep what it has under way from the others for as long.
        if connection is None or queue_pair.requester.timeout_s is None or not self._batching:
            return
        shared = self._windows.get(connection.destination)
        if shared is None:
            shared = self._windows[connection.destination] = SharedWindow(*self._most, self._sending)
        shared.join(queue_pair.share, connection.mtu_bytes)

    def _forget(self, queue_pair: RoceQueuePair) -> None:
        if self._streaming is queue_pair:
            self._streaming = None
        if self._queue_pairs.get(queue_pair.local.qpn) is queue_pair:
            del self._queue_pairs[queue_pair.local.qpn]
            self._completed.discard(queue_pair.local.qpn)
            connection = queue_pair.requester.connection
            if connection is not None:
                shared = self._windows.get(connection.destination)
                if shared is not None and not shared.shares:
                    del self._windows[connection.destination]

    def receive_burst(
        self, view: memoryview, segment_bytes: int, source: tuple[str, int], now: float, index: int = 0
    ) -> None:
        """Take `view`: UDP payloads of `segment_bytes` each back to back, the last may be shorter. Not kept.

        `index`: the place of the first in the burst as it arrived, where what came before was `awaited`.
        What cannot be right is counted and dropped, as rxe does it (drivers/infiniband/sw/rxe/rxe_recv.c).
        """
        counters = self.counters
        counters.bursts_received += 1
        total = len(view)
        if not 0 < segment_bytes <= total:
            segment_bytes = total
        position = 0
        if self._fast_paths and total >= MIN_PACKET_BYTES and view[0] in _ALONE:
            # fast path: the answers that a peer's windows wait for, and what a long WRITE begins with
            while self._receive_alone(view[position : position + segment_bytes], source, now, index):
                position, index = position + segment_bytes, index + 1
        check, solve, queue_pairs = self.icrc_check != "off", self.icrc_check == "solve", self._queue_pairs
        while position < total:
            end = min(position + segment_bytes, total)
            if end - position < MIN_PACKET_BYTES:
                counters.dropped_malformed += 1
                return  # all packets but the last have the same size, so nothing useful follows
            word0, word1, word2 = words = BTH.unpack_from(view, position)
            queue_pair = queue_pairs.get(word1 & 0xFFFFFF)
            if queue_pair is not None and (stream := queue_pair.incoming.stream) is not None:
                count = (total - position) // segment_bytes
                if (
                    stream.word0 == word0
                    and stream.word1 == word1
                    and stream.segment_bytes == segment_bytes
                    and stream.source == source
                    and count
                    and (stream.seeds is None or (stream.flow.last_id is None and index + count <= len(stream.seeds)))
                ):
                    # fast path: a run that goes on where the last one ended
                    if not queue_pair.is_awake:
                        self._wake(queue_pair)
                    taken = stream.receive(view, position, count, index, now)
                    if taken:
                        self._streaming = queue_pair
                        queue_pair.counters.packets_received += taken
                        position += taken * segment_bytes
                        index += taken
                        continue
            if word0 & 0x000F_FFFF != DEFAULT_PKEY or not TRAITS[word0 >> 24]:
                counters.dropped_malformed += 1
            elif queue_pair is None:
                counters.dropped_unknown_qpn += 1
            elif (flow := queue_pair.flow_from(source)) is None:
                counters.dropped_wrong_source += 1
            else:
                opcode = word0 >> 24
                if not queue_pair.is_awake:
                    self._wake(queue_pair)
                count = (total - position) // segment_bytes
                if self._fast_paths and count and (flow.last_id is None or not check):
                    taken = 0
                    if opcode in _MIDDLES:
                        if not word0 & 0x0030_0000 and segment_bytes == queue_pair.mtu_bytes + MIDDLE_OVERHEAD_BYTES:
                            # fast path: a run of MIDDLE packets that continues the message in progress
                            taken = queue_pair.incoming.receive_run(
                                *(view, position, count, segment_bytes, words, source),
                                *(flow, index, check, now),
                            )
                            if taken:
                                self._streaming = queue_pair
                    elif opcode in _SINGLES:
                        # fast path: messages of one packet each
                        taken = queue_pair.incoming.receive_singles(
                            *(opcode, view, position, count, segment_bytes, word0 << 32 | word1, word2 & PSN_MASK),
                            *(flow, index, check, now),
                        )
                    if taken:
                        position += taken * segment_bytes
                        index += taken
                        continue
                packet = view[position:end]
                if not check or flow.check(packet, index, solve=solve):
                    queue_pair.incoming.receive_packet(word0, word2, packet, now)
                    if queue_pair.requester.rnr_deadline is not None:
                        # The one wait that may be shorter than any timeout.
                        self._quiet_until = 0.0
                else:
                    counters.icrc_errors += 1
                    queue_pair.counters.icrc_errors += 1
            position = end
            index += 1

    def _receive_alone(self, view: memoryview, source: tuple[str, int], now: float, index: int) -> bool:
        """Take an ACK, or the first packet of a WRITE; False: the careful path decides."""
        size = len(view)
        if size < MIN_PACKET_BYTES:
            return False
        word0, word1, word2 = BTH.unpack_from(view)
        opcode = word0 >> 24
        if opcode not in _ALONE or (opcode == _ACKNOWLEDGE and size != ACK_BYTES):
            return False
        queue_pair = self._queue_pairs.get(word1 & 0xFFFFFF)
        if queue_pair is None or word0 & 0x003F_FFFF != DEFAULT_PKEY:
            return False
        flow = queue_pair.flow_from(source)
        if flow is None or (self.icrc_check != "off" and not flow.check(view, index, solve=self.icrc_check == "solve")):
            return False
        if not queue_pair.incoming.receive_alone(word0, word2, view, now):
            return False
        if opcode != _ACKNOWLEDGE:
            # What comes next is most likely its middle.
            self._streaming = queue_pair
        if not queue_pair.is_awake:
            self._wake(queue_pair)
        return True

    def awaited(self) -> Awaited | None:
        """Return what comes next if the run goes on that came last; what of it was taken must be told before the rest.

        As of now: ask again before each time it is used.
        """
        queue_pair = self._streaming
        if queue_pair is None or (stream := queue_pair.incoming.stream) is None:
            return None
        return stream.awaited(partial(self._took, queue_pair, stream))

    def _took(
        self, queue_pair: RoceQueuePair, stream: Stream, bursts: int, packets: int, asked: bool, ended: bool, now: float
    ) -> None:
        self.counters.bursts_received += bursts
        if packets:
            queue_pair.counters.packets_received += packets
            stream.half.took_run(packets, asked, ended, now)
            # Room for another READ is looked for when one of them ends.
            if (asked or ended) and not queue_pair.is_awake:
                self._wake(queue_pair)

    def bursts_to_send(self, now: float) -> Iterator[Burst]:
        """Yield bursts, one at a time, queue pairs in turn. A burst that was yielded counts as sent.

        Each is made when it is asked for: a driver whose socket is full stops here and comes back.
        """
        return cast("Iterator[Burst]", self._outgoing(now, 0))

    def trains_to_send(self, now: float) -> Iterator[Burst | Train]:
        """As `bursts_to_send`, for a driver that makes the bursts of a `Train` itself and says how many have left."""
        return self._outgoing(now, _TRAIN_BURSTS)

    def _outgoing(self, now: float, train_bursts: int) -> Iterator[Burst | Train]:
        awake, responded_bytes = self._awake, 0
        self.wanting.clear()
        while self._sending:
            # What was acknowledged since may not make a turn longer.
            share = self._sending.pop()
            if share.is_sending:
                share.recall()
        while awake:
            queue_pair = awake[0]
            if train_bursts and (train := queue_pair.next_train(train_bursts, now)) is not None:
                # fast path: the middle of a long message, or of its responses
                awake.rotate(-1)
                responded_bytes = 0
                yield train
                continue
            burst = None
            if len(awake) > 1 and self._batching:
                # fast path: what several queue pairs have to acknowledge to one peer leaves together
                burst = shared_answers(queue_pair, awake)
            if burst is None:
                burst = queue_pair.next_burst(now)
            if burst is None:
                queue_pair.is_awake = False
                awake.popleft()
                queue_pair.share.rest()
                responded_bytes = 0
                continue
            if len(awake) > 1:
                responded_bytes += burst.length_bytes
                if responded_bytes >= _RESPONSES_PER_TURN_BYTES or not queue_pair.responder.answers.is_streaming:
                    awake.rotate(-1)
                    responded_bytes = 0
            yield burst

    def take_completed(self) -> Collection[int]:
        """Return the QPNs of the queue pairs that have had completions to poll since the last call."""
        if not self._completed:
            return ()
        completed = tuple(self._completed)
        self._completed.clear()
        return completed

    def next_timer(self) -> float | None:
        """Return the absolute time at which `handle_timer` must be called next; None: no timer runs."""
        earliest: float | None = None
        for queue_pair in self._queue_pairs.values():
            timer = queue_pair.next_timer()
            if timer is not None and (earliest is None or timer < earliest):
                earliest = timer
        return earliest

    def is_timer_due(self, now: float) -> bool:
        """Return whether `next_timer` is at or before `now`, seldom asking every queue pair."""
        if now < self._quiet_until:
            # fast path: a timer that was started since then runs for its timeout.
            return False
        at = self.next_timer()
        self._quiet_until = now + self._shortest_timeout_s
        if at is not None and at < self._quiet_until:
            self._quiet_until = at
        return at is not None and at <= now

    def handle_timer(self, now: float) -> None:
        """Run the timers that are due: resends, ends of RNR waits, queue pairs that give up."""
        for queue_pair in list(self._queue_pairs.values()):
            queue_pair.handle_timer(now)
            self._wake(queue_pair)
