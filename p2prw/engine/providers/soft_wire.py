"""What passes between the software device's socket and its RoCE core: bursts in and out, waiting ones, refused ones.

Every way a socket can fail ends here as a loss that the protocol repairs, a burst that waits, or a fallback to single
datagrams. Capture and fault injection sit here too, off the fast path.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from p2prw.engine.inject import FaultedBurst, FaultInjector, moved_icrc
from p2prw.engine.pcap import PcapWriter
from p2prw.engine.providers.soft_socket import (
    GRO_ANCILLARY_BYTES,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    BoundSocket,
    pack_address,
    unpack_address,
)
from p2prw.engine.roce.burst import Burst
from p2prw.engine.roce.runs import PURE, Awaited, RunCodec, Train

RECEIVES_PER_PUMP = 16
"""Bursts taken from the socket before timers and sends get their turn, so that acknowledgements are not late."""
SENDS_PER_PUMP = 32
_RECEIVE_BYTES = 65536
_KNOWN_SEGMENTS = 64
"""Sizes that are remembered: a stranger may send any."""
_GSO_REFUSALS = (errno.EIO, errno.EINVAL, errno.EMSGSIZE)

Endpoint = tuple[str, int]


class Deliver(Protocol):
    """RoceDevice.receive_burst."""

    def __call__(self, view: memoryview, segment_bytes: int, source: Endpoint, now: float, index: int = 0, /) -> None:
        """Take what arrived."""


class _Waiting(NamedTuple):
    """A burst the socket had no room for; copied, because memory may be deregistered before it goes."""

    data: bytes
    segment_bytes: int
    destination: Endpoint


class Wire:
    """Driven by `SoftDevice.pump`; hands what arrives to `deliver` (RoceDevice.receive_burst)."""

    def __init__(
        self,
        bound: BoundSocket,
        deliver: Deliver,
        *,
        on_gso_refused: Callable[[str], None],
        injector: FaultInjector | None = None,
        capture: PcapWriter | None = None,
        awaited: Callable[[], Awaited | None] | None = None,
        wanting: Collection[int] = (),
        codec: RunCodec = PURE,
    ) -> None:
        """`awaited` (RoceDevice.awaited): what comes next may be put in its place by `codec`, if that can.

        `wanting` (RoceDevice.wanting): not empty while something should be sent before more is received.
        """
        self.sock = bound.sock
        self.endpoint: Endpoint = (bound.local.address, bound.udp_port)
        self.is_ipv4 = bound.local.is_ipv4
        self.warnings = bound.warnings
        self.injector = injector
        self.capture = capture
        # counters
        self.send_failures = 0
        """Datagrams or bursts the kernel refused; the protocol repairs them as losses."""
        self.receive_failures = 0
        self.segmented_sends = 0
        # things to send
        self._waiting: deque[_Waiting] = deque()
        self._is_full = False
        """The rest of a train waits for room; the core has it still."""
        self._send_runs = codec.send if injector is None and capture is None else None
        self._may_train = self._send_runs is not None
        # kept for re-use
        self._deliver = deliver
        self._on_gso_refused = on_gso_refused
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._segments: dict[tuple[int, int, bytes], int] = {}
        self._ancillary: dict[int, list[tuple[int, int, bytes]]] = {}
        self._take_runs = codec.take if awaited is not None and self._may_train else None
        self._awaited = awaited
        self._wanting = wanting
        self._scope_id = bound.local.scope_id
        self._told: set[int | None] = set()

    def wants_write(self) -> bool:
        """Return True while bursts wait for room in the send buffer."""
        return self._is_full or bool(self._waiting)

    @property
    def takes_trains(self) -> bool:
        """Whether `send` may be given a `Train`; not after one was refused, until a segmented send has worked."""
        return self._may_train

    def next_timer(self) -> float | None:
        """Return when a packet that fault injection holds must go on; None: none is held."""
        return self.injector.next_timer() if self.injector else None

    # --- receiving -------------------------------------------------------------------------------------------------

    def receive(self, now: float) -> tuple[bool, bool]:
        """Take at most RECEIVES_PER_PUMP bursts; return whether there were any, and whether there are no more.

        Fewer where something should, and can, be sent before.
        """
        recvmsg_into, deliver = self.sock.recvmsg_into, self._deliver
        buffers, view, segments = [self._buffer], self._view, self._segments
        is_plain = self.injector is None and self.capture is None
        received = 0
        while received < RECEIVES_PER_PUMP and not (received and self._wanting and not self.wants_write()):
            if self._take_runs is not None and self._awaited is not None and (awaited := self._awaited()) is not None:
                # fast path: the middle of a long message
                bursts, error = self._take_awaited(awaited, RECEIVES_PER_PUMP - received, now)
                received += bursts
                if error == errno.EAGAIN:
                    return received > 0, True
                if error:
                    self.receive_failures += 1
                    received += 1
                continue
            received += 1
            try:
                length_bytes, ancillary, _, source = recvmsg_into(buffers, GRO_ANCILLARY_BYTES)
            except BlockingIOError:
                return received > 1, True
            except OSError:
                # An ICMP error about an earlier datagram; whom it hit finds out by timeout.
                self.receive_failures += 1
                continue
            segment_bytes = length_bytes
            if ancillary:
                # fast path: what the kernel says of a burst is nearly always what it said of the one before.
                segment_bytes = segments.get(ancillary[0]) or self._segment_bytes(ancillary[0], length_bytes)
            if is_plain:
                # fast path: no copy, no look at single packets.
                deliver(view[:length_bytes], segment_bytes, source[:2], now)
            else:
                self._receive_examined(view[:length_bytes], segment_bytes, source[:2], now)
        return True, False

    def _take_awaited(self, awaited: Awaited, most: int, now: float) -> tuple[int, int]:
        """Take bursts as long as they are what is awaited; return how many arrived, and the errno that ended it or 0.

        What else arrived is delivered as always.
        """
        assert self._take_runs is not None
        address = pack_address(awaited.source, self._scope_id)
        packets, bursts, asked, ended, error, rest = self._take_runs(
            self.sock.fileno(), self._buffer, address, *awaited[1:13], most
        )
        # What is left of a burst counts where it is delivered.
        awaited.took(bursts - (rest is not None), packets, asked, ended, now)
        if rest is not None:
            length_bytes, position, index, segment_bytes, packed = rest
            source = unpack_address(packed)
            self._deliver(self._view[position:length_bytes], segment_bytes, source, now, index)
        return bursts, error

    def _segment_bytes(self, told: tuple[int, int, bytes], length_bytes: int) -> int:
        """Read the first ancillary message of a burst; UDP_GRO is the only one that was asked for."""
        level, kind, data = told
        if kind != UDP_GRO or level != SOL_UDP:
            return length_bytes
        if len(self._segments) >= _KNOWN_SEGMENTS:
            self._segments.clear()
        segment_bytes = self._segments[told] = int.from_bytes(data[:4], sys.byteorder)
        return segment_bytes

    def _receive_examined(self, view: memoryview, segment_bytes: int, source: Endpoint, now: float) -> None:
        if self.capture:
            self._record(view, segment_bytes, source, self.endpoint, received=True)
        if not self.injector:
            self._deliver(view, segment_bytes, source, now)
            return
        for burst in self.injector.receiving.apply(view, segment_bytes, source, now):
            self._deliver(memoryview(burst.data), burst.segment_bytes, burst.endpoint, now)

    def release_held(self, now: float) -> bool:
        """Let packets go that fault injection held back for long enough; return whether there were any."""
        if not self.injector:
            return False
        arrived = self.injector.receiving.release(now)
        for burst in arrived:
            self._deliver(memoryview(burst.data), burst.segment_bytes, burst.endpoint, now)
        leaving = self.injector.sending.release(now)
        for burst in leaving:
            self._transmit_copied(burst)
        return bool(arrived or leaving)

    # --- sending ---------------------------------------------------------------------------------------------------

    def send(self, bursts: Iterable[Burst | Train], now: float) -> bool:
        """Send what waits, then at most SENDS_PER_PUMP of `bursts`, until the socket is full. True: something went."""
        worked = self._is_full = False
        while self._waiting:
            # What waits was yielded earlier, so it goes first: the core counts on order.
            first = self._waiting.popleft()
            if not self._transmit([first.data], first.segment_bytes, len(first.data), first.destination):
                return worked
            worked = True
        is_plain = self.injector is None and self.capture is None
        sent = 0
        for burst in bursts:
            if isinstance(burst, Train):
                number = self._send_train(burst)
                sent += number
                if number < burst.sends and not self._is_full:
                    # It was refused: what is the matter is found out burst by burst, at once.
                    return True
                if self._is_full or sent >= SENDS_PER_PUMP:
                    break
                continue
            sent += 1
            if is_plain:
                # fast path: the kernel gathers the pieces.
                self._transmit(burst.buffers, burst.segment_bytes, burst.length_bytes, burst.destination)
            else:
                self._send_examined(burst, now)
            if self._waiting or sent >= SENDS_PER_PUMP:
                break
        return worked or sent > 0

    def _send_train(self, train: Train) -> int:
        """Send as much of it as goes; return the number of sends."""
        assert self._send_runs is not None
        sent, error = self._send_runs(self.sock.fileno(), pack_address(train.destination, self._scope_id), *train[:14])
        train.left(sent)
        # Without bursts FIRST and LAST are one send, and segmented.
        alone = train.bursts and train.first_head is not None
        self.segmented_sends += min(train.bursts or 1, max(0, sent - alone))
        if error == errno.EAGAIN:
            self._is_full = True
        elif error:
            self._may_train = False
        return sent

    def _send_examined(self, burst: Burst, now: float) -> None:
        data = b"".join(burst.buffers)
        if self.injector:
            going = self.injector.sending.apply(memoryview(data), burst.segment_bytes, burst.destination, now)
        else:
            going = [FaultedBurst(data, burst.segment_bytes, burst.destination)]
        for one in going:
            self._transmit_copied(one)

    def _transmit_copied(self, burst: FaultedBurst) -> None:
        if self._waiting:
            # The order of what waits is kept; one burst may have become several.
            self._waiting.append(_Waiting(bytes(burst.data), burst.segment_bytes, burst.endpoint))
        else:
            self._transmit([burst.data], burst.segment_bytes, len(burst.data), burst.endpoint)

    def _transmit(
        self,
        buffers: Sequence[bytes | bytearray | memoryview],
        segment_bytes: int,
        length_bytes: int,
        destination: Endpoint,
    ) -> bool:
        """Send one burst; False when the socket is full and the burst waits (at the head) for room."""
        try:
            if 0 < segment_bytes < length_bytes:
                ancillary = self._ancillary.get(segment_bytes)
                if ancillary is None:
                    ancillary = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", segment_bytes))]
                    self._ancillary[segment_bytes] = ancillary
                self.segmented_sends += 1
                self.sock.sendmsg(buffers, ancillary, 0, destination)
                self._may_train = self._send_runs is not None
            else:
                self.sock.sendmsg(buffers, (), 0, destination)
        except BlockingIOError:
            self._waiting.appendleft(_Waiting(b"".join(buffers), segment_bytes, destination))
            return False
        except OSError as exc:
            return self._refused(exc, b"".join(buffers), segment_bytes, destination)
        if self.capture:
            self._record(memoryview(b"".join(buffers)), segment_bytes, self.endpoint, destination)
        return True

    def _refused(self, exc: OSError, data: bytes, segment_bytes: int, destination: Endpoint) -> bool:
        """Send a burst in single datagrams where the kernel refuses segmentation; else count a loss."""
        if 0 < segment_bytes < len(data) and exc.errno in _GSO_REFUSALS:
            self._on_gso_refused(f"the kernel refuses them: {errno.errorcode.get(exc.errno or 0, exc.errno)}")
            return self._transmit_singly(data, segment_bytes, destination)
        self.send_failures += 1
        if exc.errno not in self._told:
            self._told.add(exc.errno)
            too_long = f" ({len(data)} bytes do not fit the route: take a smaller --mtu)"
            hint = too_long if exc.errno == errno.EMSGSIZE else ""
            self.warnings.append(f"sending to {destination[0]} port {destination[1]} fails: {exc.strerror}{hint}")
        return True

    def _transmit_singly(self, data: bytes, segment_bytes: int, destination: Endpoint) -> bool:
        singles = []
        for place, start in enumerate(range(0, len(data), segment_bytes)):
            payload = data[start : start + segment_bytes]
            # Each was sealed as segment `place` of a burst; alone its identification is 0.
            singles.append(moved_icrc(payload, place, 0) if self.is_ipv4 else payload)
        for index, payload in enumerate(singles):
            if not self._transmit([payload], 0, len(payload), destination):
                # The one that did not fit is at the head of the queue already; the others follow it.
                rest = [_Waiting(later, 0, destination) for later in singles[index + 1 :]]
                self._waiting = deque([self._waiting[0], *rest, *list(self._waiting)[1:]])
                return False
        return True

    # --- capture and end -------------------------------------------------------------------------------------------

    def _record(
        self, view: memoryview, segment_bytes: int, source: Endpoint, destination: Endpoint, *, received: bool = False
    ) -> None:
        if self.capture is None:
            return
        try:
            self.capture.write_burst(view, segment_bytes, source, destination, received=received)
        except OSError as exc:
            # A full disk must not end a transfer.
            self._end_capture(exc)

    def _end_capture(self, failed: OSError | None = None) -> None:
        capture, self.capture = self.capture, None
        if capture is None:
            return
        try:
            capture.close()
        except OSError as exc:
            failed = failed or exc
        if failed:
            self.warnings.append(f"the capture {capture.path} ends early: {failed.strerror}")

    def close(self) -> None:
        """Close capture and socket; what waits is dropped."""
        self._waiting.clear()
        self._end_capture()
        self.sock.close()
