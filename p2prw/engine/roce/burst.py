"""What goes to the driver, and how single packets and bursts are put together for one connected queue pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from p2prw.engine.roce.icrc import Flow, crc32
from p2prw.engine.roce.opcodes import ICRC_BYTES, MIDDLE_OVERHEAD_BYTES
from p2prw.engine.roce.packet import ACK_REQUEST, ICRC_FIELD, PADDING, PSN_WORD, push_prefix
from p2prw.engine.roce.psn import PSN_MASK
from p2prw.engine.roce.runs import PURE, Buffer, RunCodec, Train
from p2prw.engine.roce.singles import build_singles

MAX_BURST_BYTES = 65487
"""UDP payload of one send: 65507 on IPv4, less on paths with IP options; both families stay below."""


class Burst(NamedTuple):
    """One system call's worth: whole UDP payloads back to back, all `segment_bytes` long; the last may be shorter."""

    buffers: list[Buffer]
    """In iovec order; views into registered memory, good until the registration is closed."""
    segment_bytes: int
    """Equal to length_bytes for a single datagram."""
    length_bytes: int
    destination: tuple[str, int]
    packets: int


class Connection:
    """What both halves of a connected queue pair need to make packets: path, MTU, QPN, CRC seeds.

    The i-th segment of a burst is sent with IPv4 identification i (Linux 6.12 net/ipv4/af_inet.c, inet_gso_segment),
    a datagram alone with 0, so seeds belong to a place in the burst.
    """

    def __init__(
        self,
        flow: Flow,
        destination: tuple[str, int],
        dest_qpn: int,
        mtu_bytes: int,
        gso_segments: int,
        codec: RunCodec = PURE,
    ) -> None:
        self.flow = flow
        self.destination = destination
        self.dest_qpn = dest_qpn
        self.mtu_bytes = mtu_bytes
        self.codec = codec
        self.segment_bytes = mtu_bytes + MIDDLE_OVERHEAD_BYTES
        self.max_segments = max(1, min(gso_segments, MAX_BURST_BYTES // self.segment_bytes))
        """MIDDLE packets of one burst."""
        self.max_singles = gso_segments
        """Packets of one burst that are a message each; 1: every one is a burst of its own."""
        self._prefixes: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        self._runs: dict[int, tuple[bytes, list[int]]] = {}

    def stop_segmenting(self) -> None:
        """Make every packet a burst of its own from now on."""
        self.max_segments = self.max_singles = 1

    def prefix(self, opcode: int, pad_bytes: int = 0) -> tuple[bytes, bytes]:
        """Return the first 8 bytes of the BTH as sent and as they enter the ICRC (byte 4 all ones)."""
        pair = self._prefixes.get((opcode, pad_bytes))
        if pair is None:
            sent = push_prefix(opcode, self.dest_qpn, pad_bytes=pad_bytes)
            pair = self._prefixes[opcode, pad_bytes] = (sent, sent[:4] + b"\xff" + sent[5:])
        return pair

    def packet(
        self,
        opcode: int,
        psn: int,
        extension: bytes = b"",
        pieces: list[memoryview] | None = None,
        length_bytes: int = 0,
        *,
        ack_request: bool = False,
        index: int = 0,
    ) -> tuple[list[Buffer], int]:
        """Return iovecs and size of one packet, segment `index` of its burst; `pieces` hold `length_bytes` of data."""
        pad_bytes = -length_bytes & 3
        sent, masked = self.prefix(opcode, pad_bytes)
        size = len(sent) + 4 + len(extension) + length_bytes + pad_bytes + ICRC_BYTES
        word = psn & PSN_MASK
        rest = PSN_WORD.pack(word | ACK_REQUEST if ack_request else word) + extension
        icrc = crc32(rest, crc32(masked, self.flow.seed(index, size)))
        buffers: list[Buffer] = [sent + rest]
        if pieces:
            for piece in pieces:
                icrc = crc32(piece, icrc)
            buffers += pieces
        if pad_bytes:
            icrc = crc32(PADDING[pad_bytes], icrc)
        buffers.append(PADDING[pad_bytes] + ICRC_FIELD.pack(icrc))
        return buffers, size

    def single(
        self,
        opcode: int,
        psn: int,
        extension: bytes = b"",
        pieces: list[memoryview] | None = None,
        length_bytes: int = 0,
        *,
        ack_request: bool = False,
    ) -> Burst:
        """Return one packet as a burst of its own."""
        buffers, size = self.packet(opcode, psn, extension, pieces, length_bytes, ack_request=ack_request)
        return Burst(buffers, size, size, self.destination, 1)

    def singles(self, opcode: int, heads: Sequence[bytes], pieces: Sequence[Buffer]) -> Burst:
        """Return a burst of one packet for each head (PSN word and extension headers) and its data, all of one size."""
        length_bytes = len(pieces[0])
        pad_bytes = -length_bytes & 3
        sent, masked = self.prefix(opcode, pad_bytes)
        size = len(sent) + len(heads[0]) + length_bytes + pad_bytes + ICRC_BYTES
        count = len(heads)
        seeds = self.flow.prefixed_seeds(masked, size, count)
        buffers = build_singles(sent, seeds, heads, pieces)
        return Burst(buffers, size, size * count, self.destination, count)

    def singles_of(self, packet_bytes: int) -> int:
        """Return how many packets of one size a burst may hold."""
        return min(self.max_singles, MAX_BURST_BYTES // packet_bytes)

    def _run_start(self, opcode: int) -> tuple[bytes, list[int]]:
        """Return prefix and seeds of MIDDLE packets, for as many as a burst holds."""
        run = self._runs.get(opcode)
        if run is None:
            sent, masked = self.prefix(opcode)
            seeds = self.flow.prefixed_seeds(masked, self.segment_bytes, self.max_segments)
            run = self._runs[opcode] = (sent, seeds)
        return run

    def train(
        self,
        opcode: int,
        psn: int,
        data: memoryview,
        bursts: int,
        left: Callable[[int], None],
        *,
        asks: int = 0,
        last_opcode: int | None = None,
        first: tuple[int, bytes] | None = None,
        tail: tuple[int, bytes] | None = None,
    ) -> Train:
        """Return full bursts of MIDDLE packets, or with `last_opcode` all to the end of a message of whole packets.

        With `first`, opcode and extension headers, `psn` is that of a packet that leaves before them; `tail` is the
        same of one that leaves after them.
        """
        (sent, seeds), last, last_seed, packets = self._run_start(opcode), None, 0, self.max_segments
        if last_opcode is not None:
            last, last_seeds = self._run_start(last_opcode)
            last_seed = last_seeds[(len(data) // self.mtu_bytes - 1 - (first is not None)) % packets]
        first_head, first_seed = self._alone(first, psn)
        # Without bursts between them both are one.
        tail_head, tail_seed = self._alone(tail, psn + len(data) // self.mtu_bytes - 1, 0 if bursts else 1)
        if first is not None:
            psn += 1
        return Train(
            *(sent, seeds, psn, data, self.mtu_bytes, packets, bursts, asks, last, last_seed),
            *(first_head, first_seed, tail_head, tail_seed, self.destination, left),
        )

    def _alone(self, packet: tuple[int, bytes] | None, psn: int, index: int = 0) -> tuple[bytes | None, int]:
        """Return BTH and extension headers of a packet with a path MTU of data, and the CRC up to the PSN word."""
        if packet is None:
            return None, 0
        sent, masked = self.prefix(packet[0])
        head = sent + PSN_WORD.pack(psn & PSN_MASK) + packet[1]
        return head, self.flow.prefixed_seeds(masked, len(head) + self.mtu_bytes + ICRC_BYTES, index + 1)[index]

    def middle_run(
        self, opcode: int, psn: int, pieces: list[memoryview], count: int, *, ack_last: bool
    ) -> list[Buffer]:
        """Return the iovecs of `count` MIDDLE packets whose data lies in `pieces`."""
        if len(pieces) == 1:
            # fast path: the data is one piece of memory
            sent, seeds = self._run_start(opcode)
            return self.codec.build(sent, seeds, psn, pieces[0], self.mtu_bytes, count, ack_last=ack_last)
        buffers: list[Buffer] = []
        rest = iter(pieces)
        piece = next(rest)
        for index in range(count):
            parts: list[memoryview] = []
            missing = self.mtu_bytes
            while missing:
                if not len(piece):
                    piece = next(rest)
                part = piece[:missing]
                parts.append(part)
                piece = piece[len(part) :]
                missing -= len(part)
            asks = ack_last and index == count - 1
            buffers += self.packet(opcode, psn + index, b"", parts, self.mtu_bytes, ack_request=asks, index=index)[0]
        return buffers
