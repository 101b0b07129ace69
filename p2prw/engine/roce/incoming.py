"""What arrives at one queue pair: single packets, and runs of them, given to the half of it that they are for.

Everything here is of a packet whose source was found good; of a run, the ICRC is checked on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from p2prw.engine.providers.base import QueuePairCounters
from p2prw.engine.roce.burst import MAX_BURST_BYTES
from p2prw.engine.roce.completer import Completer
from p2prw.engine.roce.icrc import Flow
from p2prw.engine.roce.opcodes import (
    AETH_BYTES,
    BTH_BYTES,
    HEADER_BYTES,
    ICRC_BYTES,
    IS_ACK,
    IS_READ_RESPONSE,
    IS_REQUEST,
    MIDDLE_OVERHEAD_BYTES,
    RETH_BYTES,
    TRAITS,
    RcOpcode,
)
from p2prw.engine.roce.packet import ACK_REQUEST, pull_reth
from p2prw.engine.roce.psn import PSN_MASK
from p2prw.engine.roce.responder import Responder
from p2prw.engine.roce.runs import Awaited, AwaitedRun, RunCodec
from p2prw.engine.roce.singles import RESPONSE_OVERHEAD_BYTES, WRITE_OVERHEAD_BYTES
from p2prw.engine.roce.state import TAKES_REQUESTS, TAKES_RESPONSES, QueuePairState

_MOST_AWAITED = 1 << 16
"""Packets; far beyond what one call takes. The peer chooses how long its message is."""
_ONE_OPCODE = 1 << 56
"""In a prefix, which is the first 8 bytes of a BTH."""
_MARKS = 0xFF00_0000
"""Byte 4 of a BTH, which enters the ICRC as ones."""
_WRITE_FIRST = int(RcOpcode.WRITE_FIRST)
_FIRST_BYTES = BTH_BYTES + RETH_BYTES + ICRC_BYTES
_MOST_SEGMENTS = 128
"""UDP_MAX_SEGMENTS of Linux 6.9 and later; bounds what is remembered for one size of a peer's choosing."""


class Half(Protocol):
    """What takes the runs of one kind: the responder WRITEs, the completer READ responses."""

    def awaited_run(self) -> AwaitedRun | None:
        """Return where they go on; None: the careful path decides."""

    def took_run(self, packets: int, asked: bool, ended: bool, now: float) -> None:
        """So many are in their place; `asked`: one of them asked for an ACK; `ended`: the last was the LAST."""


class Stream:
    """MIDDLE packets of one kind from one place, found good once; the next burst of it is compared, not taken apart."""

    __slots__ = (
        *("codec", "extension_bytes", "first_prefix", "first_seeds", "flow", "half", "last_prefix", "last_seeds"),
        *("mtu_bytes", "prefix", "seeds", "segment_bytes", "source", "word0", "word1"),
    )

    def __init__(
        self,
        word0: int,
        word1: int,
        mtu_bytes: int,
        source: tuple[str, int],
        flow: Flow,
        seeds: list[int] | None,
        half: Half,
        codec: RunCodec,
    ) -> None:
        self.word0 = word0
        self.word1 = word1
        self.mtu_bytes = mtu_bytes
        self.segment_bytes = mtu_bytes + MIDDLE_OVERHEAD_BYTES
        self.source = source
        self.flow = flow
        self.seeds = seeds
        self.prefix = word0 << 32 | word1
        self.last_prefix = self.prefix + _ONE_OPCODE
        """Of the LAST that would end a message of these; all have their FIRST, MIDDLE and LAST in a row."""
        self.first_prefix: int | None = None
        """Of the FIRST, where it may be awaited: it is known where the responses to a READ belong."""
        self.last_seeds: list[int] | None = None
        self.first_seeds: list[int] | None = None
        self.extension_bytes = 0
        places = min(_MOST_SEGMENTS, -(-MAX_BURST_BYTES // self.segment_bytes))
        if word0 >> 24 == RcOpcode.READ_RESPONSE_MIDDLE:
            self.first_prefix, self.extension_bytes, places = self.prefix - _ONE_OPCODE, AETH_BYTES, 1
        if seeds is not None:
            edge_bytes = self.segment_bytes + self.extension_bytes
            self.last_seeds = flow.prefixed_seeds(_masked(self.last_prefix), edge_bytes, places)
            if self.first_prefix is not None:
                self.first_seeds = flow.prefixed_seeds(_masked(self.first_prefix), edge_bytes, 1)
        self.half = half
        self.codec = codec

    def awaited(self, took: Callable[[int, int, bool, bool, float], None]) -> Awaited | None:
        """Return what comes next if the run goes on; None: nothing that can be taken without a look at each packet."""
        if self.seeds is not None and self.flow.last_id is not None:
            return None
        run = self.half.awaited_run()
        if run is None:
            return None
        target, offset, psn, packets, starts, ends = run
        last = self.last_prefix if ends and packets <= _MOST_AWAITED else None
        packets = min(packets, _MOST_AWAITED)
        first = self.first_prefix if starts else None
        if not packets and last is None and first is None:
            return None
        return Awaited(
            *(self.source, self.mtu_bytes, self.prefix, psn, self.seeds, target, offset, packets),
            *(last, self.last_seeds, first, self.first_seeds, self.extension_bytes, took),
        )

    def receive(self, view: memoryview, position: int, count: int, index: int, now: float) -> int:
        """Take up to `count` packets at `position`; return how many were taken, 0: use the careful path."""
        awaited = self.half.awaited_run()
        if awaited is None:
            return 0
        target, offset, psn, most, starts, _ = awaited
        # Where a READ was asked for again, a peer may begin with any opcode (rxe: MIDDLE).
        most += starts
        done, asked = self.codec.receive(
            *(view, position, most if most < count else count, self.mtu_bytes, self.prefix, psn),
            *(self.seeds, index, target, offset),
        )
        if done:
            self.half.took_run(done, asked, False, now)
        return done


class Incoming:
    """Driven by the device with packets, by the queue pair with its state."""

    def __init__(
        self, responder: Responder, completer: Completer, counters: QueuePairCounters, codec: RunCodec
    ) -> None:
        self._responder = responder
        self._completer = completer
        self._counters = counters
        self._codec = codec
        self._state = QueuePairState.INIT
        self.mtu_bytes = 0
        self.stream: Stream | None = None
        """Where the last run came from: while it goes on, the device only compares."""

    def enter(self, state: QueuePairState) -> None:
        """Go by another state from here on."""
        self._state = state
        self.stream = None

    def receive_run(
        self,
        view: memoryview,
        position: int,
        count: int,
        segment_bytes: int,
        words: tuple[int, int, int],
        source: tuple[str, int],
        flow: Flow,
        index: int,
        check: bool,
        now: float,
    ) -> int:
        """Take as many MIDDLE packets of one kind as are in order; the device deals with the next one by itself.

        `words` are the three of the BTH.
        """
        word0, word1, _ = words
        is_write = word0 >> 24 == RcOpcode.WRITE_MIDDLE
        if self._state not in (TAKES_REQUESTS if is_write else TAKES_RESPONSES):
            return 0
        seeds = flow.prefixed_seeds(_masked(word0 << 32 | word1), segment_bytes, index + count) if check else None
        half: Half = self._responder if is_write else self._completer
        stream = Stream(word0, word1, self.mtu_bytes, source, flow, seeds, half, self._codec)
        taken = stream.receive(view, position, count, index, now)
        if taken:
            self.stream = stream
        self._counters.packets_received += taken
        return taken

    def receive_singles(
        self,
        opcode: int,
        view: memoryview,
        position: int,
        count: int,
        segment_bytes: int,
        prefix: int,
        psn: int,
        flow: Flow,
        index: int,
        check: bool,
        now: float,
    ) -> int:
        """Take as many messages of one packet and one size as are in order, in the manner of `receive_run`."""
        pad_bytes = prefix >> 52 & 3
        is_write = opcode == RcOpcode.WRITE_ONLY
        length_bytes = segment_bytes - pad_bytes - (WRITE_OVERHEAD_BYTES if is_write else RESPONSE_OVERHEAD_BYTES)
        count = min(count, _MOST_SEGMENTS - index)
        if not 0 < length_bytes <= self.mtu_bytes or pad_bytes != -length_bytes & 3 or count < 1:
            return 0
        seeds = flow.prefixed_seeds(_masked(prefix), segment_bytes, index + count) if check else None
        run = (view, position, count, length_bytes, prefix, psn, seeds, index)
        taken = 0
        if is_write and self._state in TAKES_REQUESTS:
            taken = self._responder.receive_only_run(*run)
        elif not is_write and self._state in TAKES_RESPONSES:
            taken = self._completer.receive_only_run(*run, now)
        self._counters.packets_received += taken
        return taken

    def receive_alone(self, word0: int, word2: int, view: memoryview, now: float) -> bool:
        """Take an ACK or the first packet of a WRITE, P_Key, TVer, source and ICRC of which were right.

        False, and nothing done: not in this state, or there is more to say about it.
        """
        if word0 >> 24 == _WRITE_FIRST:
            if self._state not in TAKES_REQUESTS or len(view) < _FIRST_BYTES:
                return False
            reth, data = pull_reth(view, BTH_BYTES), view[_FIRST_BYTES - ICRC_BYTES : -ICRC_BYTES]
            if not self._responder.receive_first(word2 & PSN_MASK, reth, data, bool(word2 & ACK_REQUEST)):
                return False
        elif (
            self._state not in TAKES_RESPONSES
            or view[BTH_BYTES] >> 5
            or not self._completer.receive_ack(word2 & PSN_MASK, now)
        ):
            return False
        self._counters.packets_received += 1
        return True

    def receive_packet(self, word0: int, word2: int, view: memoryview, now: float) -> None:
        """Take one packet whose P_Key, TVer, source and ICRC were right. Whatever it holds, nothing is raised."""
        opcode = word0 >> 24
        traits, header_bytes, pad_bytes = TRAITS[opcode], HEADER_BYTES[opcode], word0 >> 20 & 3
        if len(view) < header_bytes + pad_bytes + 4:
            return
        self._counters.packets_received += 1
        if traits & IS_REQUEST:
            if self._state in TAKES_REQUESTS:
                asks = bool(word2 & ACK_REQUEST)
                self._responder.receive_request(opcode, traits, view, header_bytes, pad_bytes, word2 & PSN_MASK, asks)
        elif self._state in TAKES_RESPONSES:
            if traits & IS_ACK:
                self._completer.receive_aeth(view, word2 & PSN_MASK, now)
            elif traits & IS_READ_RESPONSE:
                self._completer.receive_read_response(opcode, view, pad_bytes, word2 & PSN_MASK, now)


def _masked(prefix: int) -> bytes:
    """Return the first 8 bytes of a BTH as they enter the ICRC."""
    return (prefix | _MARKS).to_bytes(8, "big")
