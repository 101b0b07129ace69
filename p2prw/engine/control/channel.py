"""The control connection: framed messages over non-blocking TCP, with a name and a deadline for every wait.

It owns the socket, the outgoing queue (bounded: a peer that never reads is dropped) and the clock of its waits. It does
not know who says what when (`handshake.py`, the session, the server). Errors of the socket are translated here, once.
How the connection comes to stand (names, retries) is `connect.py`.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from p2prw.engine.control.connect import connect_socket, plain_address, set_tcp_options
from p2prw.engine.control.framing import READ_BYTES, FrameParser, frame, not_p2prw
from p2prw.engine.control.handshake import Handshake
from p2prw.engine.control.messages import Hello, Message, Refuse, decode, encode, error_from
from p2prw.engine.control.seal import Seal
from p2prw.engine.model import PeerAddress, Timeouts, TlsClient
from p2prw.engine.stop import StopRequest
from p2prw.errors import DeadlineExceeded, PeerGone, PeerRefusedError, RemoteProtocolError

if TYPE_CHECKING:
    from p2prw.engine.control.tls import TlsFilter

MAX_QUEUED_BYTES = 1024 * 1024
"""Frames queued towards a peer that does not read; beyond it the peer is dropped."""
MESSAGES_PER_LOOK = 512
"""Taken in at most before a loop looks at its clock again: more than a staged region has slots to answer for."""

STRANGER_LINE = b"p2prw: this port takes p2prw control connections only, see `p2prw --help`\r\n"

_TLS_RECORD_TYPES = range(20, 24)
"""First byte of what a TLS peer may say (RFC 8446 section 5.1, ContentType); a frame begins with 0."""

# How long one poll of `expect` lasts before `pump` and `stop` are looked at again.
_SLICE_S = 0.05
_LONG_WAIT_S = 2.0
"""A wait that lasts longer is told of."""
_BLIND_PUMP_SLICE_S = 0.002  # when `pump` has descriptors that we cannot wait for


class Channel:
    """One end of a control connection.

    Nothing here blocks but `connect` and `expect`. After PeerGone or RemoteProtocolError only `close` makes sense.
    """

    def __init__(self, sock: socket.socket, tls: TlsFilter | None = None) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._tls = tls
        self._wanted_tls = False
        """We opened TLS and the peer answered without: only a refusal is taken from it."""
        self._parser = FrameParser()
        self._queue = bytearray()
        self._broken: OSError | None = None
        self._closed = False
        self._seal: Seal | None = None
        self.received_body = b""
        """The frame of the message that `receive` gave last, as it was on the wire, but for its seal."""
        self.local_address = PeerAddress("local", 0)
        self.peer_address = PeerAddress("local", 0)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            set_tcp_options(sock)
            self.local_address = plain_address(sock.getsockname())
            try:
                self.peer_address = plain_address(sock.getpeername())
            except OSError as error:
                # Accepted, and gone again before we looked: the first receive says so.
                self._broken = error

    @classmethod
    def connect(
        cls, peer: PeerAddress, timeouts: Timeouts, *, tls: TlsClient | None = None, stop: StopRequest | None = None
    ) -> Channel:
        """Connect to a server, trying again for `timeouts.connect_retry_s`.

        HostError with code resolve_failed, connect_refused, connect_unreachable or connect_timeout, and those of
        `tls.client_filter`; InterruptedTransfer once `stop` is set.
        """
        tls_filter = None
        if tls is not None:
            from p2prw.engine.control.tls import client_filter

            tls_filter = client_filter(tls, peer.host)
        return cls(connect_socket(peer, timeouts.connect_retry_s, stop=stop), tls_filter)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "broken" if self._broken else "open"
        return f"<Channel {self.local_address} -> {self.peer_address} {state} queued={len(self._queue)}>"

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor to wait for: readable always, writable while `wants_write`; -1 once closed."""
        return self._sock.fileno()

    @property
    def binding(self) -> bytes:
        """What a proof of the token is bound to: SHA-256 of the server's certificate; empty without TLS."""
        return self._tls.binding if self._tls is not None else b""

    @property
    def has_tls(self) -> bool:
        """A TLS handshake was finished here."""
        return self._tls is not None and self._tls.established

    def seal_from(self, handshake: Handshake) -> None:
        """Seal every frame from here on, where the finished `handshake` was one with a token."""
        self._seal = handshake.make_seal()

    # --- sending ---

    @property
    def wants_write(self) -> bool:
        """Bytes are queued: call `flush` when the descriptor turns writable."""
        return bool(self._queue)

    @property
    def queued_bytes(self) -> int:
        """Bytes queued; a sender of many pages goes on when it is small."""
        tls = self._tls
        return len(self._queue) + (tls.unsent_bytes + tls.untaken_bytes if tls is not None else 0)

    def send(self, message: Message) -> None:
        """Queue a message and write what the socket takes. PeerGone when the peer does not read for too long.

        A broken connection is reported by `receive`, after the last messages (a refusal, perhaps) that arrived.
        """
        if self._tls is not None and isinstance(message, Refuse):
            if self._tls.failed:
                return  # the alert has said it
            if not self._tls.begun:
                # Whom we do not even begin TLS with is told why in plain words.
                self._tls = None
        body = encode(message)
        data = frame(body if self._seal is None else self._seal.close(body))
        if self.queued_bytes + len(data) > MAX_QUEUED_BYTES:
            raise self._not_reading()
        if self._tls is not None:
            self._tls.write(data)
        else:
            self._queue += data
        self.flush()

    def _not_reading(self) -> PeerGone:
        return PeerGone(
            f"{self.peer_address} stopped reading the control channel",
            why=f"{self.queued_bytes} bytes wait for it, at most {MAX_QUEUED_BYTES} may",
            fix="look at the peer: is it stopped, or swamped?",
            code="peer_not_reading",
        )

    def flush(self) -> bool:
        """Write what the socket takes; return True when nothing is left to write."""
        if self._tls is not None:
            self._queue += self._tls.take()
        while self._queue and not self._broken:
            try:
                sent = self._sock.send(self._queue)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                self._broken = error
            else:
                del self._queue[:sent]
        if self._broken:
            self._queue.clear()
        return not self._queue

    # --- receiving ---

    def receive(self) -> Message | None:
        """Return the next message, or None when there is no whole one; never blocks.

        PeerGone on end of file or reset, RemoteProtocolError on anything that is no message of ours, PeerRefusedError
        where one end wants TLS and the other does not, or does not trust the other's certificate.
        """
        while True:
            body = self._parser.next_frame()
            if body is not None:
                if self._seal is not None:
                    body = self._seal.open(body)
                self.received_body = body
                message = decode(body)
                if self._wanted_tls and not isinstance(message, Refuse):
                    raise _no_tls_there()
                return message
            if self._tls is not None:
                plain = self._tls.read(READ_BYTES)
                if self._tls.ended:
                    raise self._gone(None)
                if plain:
                    self._parser.feed(plain)
                    continue
            try:
                data = self._sock.recv(READ_BYTES)
            except (BlockingIOError, InterruptedError):
                if self._broken:
                    raise self._gone(self._broken) from self._broken
                return None
            except OSError as error:
                raise self._gone(error) from error
            if not data:
                # After a failed send the kernel reports the end of file only: the send had the reason.
                raise self._gone(self._broken)
            self._take_in(data)

    def _take_in(self, data: bytes) -> None:
        tls = self._tls
        if tls is None:
            self._parser.feed(data)
        elif tls.begun or data[0] in _TLS_RECORD_TYPES:
            if self.queued_bytes > MAX_QUEUED_BYTES:
                # TLS answers by itself (KeyUpdate, RFC 8446 section 4.6.3): who asks for that must read, too.
                raise self._not_reading()
            try:
                tls.feed(data)
            finally:
                self.flush()  # the next flight, or the alert that says what was wrong
        elif tls.server_side and data[0] == 0:
            self._tls = None
            raise PeerRefusedError(
                "the server speaks TLS only, the client came without",
                why="it was started with --tls-cert",
                fix="--tls-ca FILE with its CA, or --tls-fingerprint with what the server prints when it starts",
                code="tls_required",
            )
        elif tls.server_side:
            raise not_p2prw(data[:64])
        elif data[0] == 0:
            self._tls, self._wanted_tls = None, True
            self._parser.feed(data)
        else:
            raise _no_tls_there() if data.startswith(STRANGER_LINE[:6]) else not_p2prw(data[:64])

    def expect(
        self,
        *types: type[Message],
        deadline_s: float,
        name: str,
        pump: Callable[[], object] | None = None,
        filenos: Iterable[int] = (),
        next_timer_s: Callable[[], float | None] | None = None,
        stop: StopRequest | None = None,
    ) -> Message:
        """Wait for a message of one of `types`; `name` is the wait's name in errors ("the grant").

        `pump` is called between polls, so that a device goes on; give its `filenos` to wake up for them. One that has
        none is pumped each few milliseconds, but where `next_timer_s` says that it has nothing to do (None).
        Errors: DeadlineExceeded after `deadline_s` seconds, PeerRefusedError for a refusal, RemoteProtocolError for a
        message of another type, InterruptedTransfer once `stop` is set, and those of `receive`.
        """
        deadline = time.monotonic() + deadline_s
        poll = select.poll()
        extra = tuple(filenos)
        for descriptor in extra:
            poll.register(descriptor, select.POLLIN)
        blind = pump is not None and not extra
        told_s = deadline - deadline_s + _LONG_WAIT_S
        while True:
            message = self.receive()
            if message is not None:
                return self._expected(message, types, name)
            now = time.monotonic()
            if stop is not None:
                stop.check()
                if now >= told_s:
                    told_s = float("inf")
                    stop.waits_for(f"waiting for {name} from {self.peer_address}, {deadline_s:.0f} s at most")
            remaining_s = deadline - now
            if remaining_s <= 0:
                raise self.overdue(deadline_s, name)
            if pump:
                pump()
            self.flush()
            poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._queue else 0))
            idles = not blind or (next_timer_s is not None and next_timer_s() is None)
            poll.poll(max(1.0, min(remaining_s, _SLICE_S if idles else _BLIND_PUMP_SLICE_S) * 1000))

    def overdue(self, waited_s: float, name: str) -> DeadlineExceeded:
        """Return the error of a wait for `name` that ran out."""
        return DeadlineExceeded(
            f"waited {waited_s:.3g} s for {name} from {self.peer_address}",
            why="the peer took the connection and does not answer: it is busy, stopped, or no p2prw server",
            fix=f"look at the peer's own output; there: ss -ltnp 'sport = :{self.peer_address.port}'",
            code="deadline",
        )

    def _expected(self, message: Message, types: tuple[type[Message], ...], name: str) -> Message:
        if isinstance(message, types):
            return message
        if isinstance(message, Refuse):
            raise error_from(message)
        raise RemoteProtocolError(
            f"the peer sent {message.TYPE!r} instead of {name}",
            why=f"expected {' or '.join(repr(item.TYPE) for item in types)}",
            code="unexpected_message",
        )

    def run_handshake(
        self,
        handshake: Handshake,
        *,
        deadline_s: float,
        pump: Callable[[], object] | None = None,
        filenos: Iterable[int] = (),
        stop: StopRequest | None = None,
    ) -> Hello:
        """Run `handshake` to its end and return the peer's hello; raises its error, and those of `expect`."""
        end = time.monotonic() + deadline_s
        for message in handshake.start():
            self.send(message)
        while not handshake.done and not handshake.failed:
            message = self.expect(
                *handshake.expected_types(),
                deadline_s=max(0.0, end - time.monotonic()),
                name="the handshake",
                pump=pump,
                filenos=filenos,
                stop=stop,
            )
            for answer in handshake.receive(message, self.received_body, self.binding):
                self.send(answer)
        if handshake.error:
            raise handshake.error
        assert handshake.peer is not None
        self.seal_from(handshake)
        return handshake.peer

    def _gone(self, error: OSError | None) -> PeerGone:
        if error is None:
            what = f"{self.peer_address} closed the control connection"
        else:
            what = f"the control connection to {self.peer_address} broke: {error.strerror or error}"
        why = "the process there ended, or the network between was lost"
        if self._parser.held_bytes:
            what += " in the middle of a message"
        elif not self._parser.frames:
            why = "it said nothing before: no p2prw server, or one that is shutting down"
        return PeerGone(
            what,
            why=why,
            fix="look at the output of the other side; start it again, then repeat",
            errno=error.errno if error else None,
        )

    # --- the end ---

    def refuse_stranger(self) -> None:
        """Tell whoever is no p2prw so in one plain line, and close."""
        self._queue.clear()
        try:
            self._sock.send(STRANGER_LINE)
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        """Write what the socket takes at once, then close. Safe to call twice."""
        if self._closed:
            return
        if self._tls is not None:
            self._tls.close()
        self.flush()
        self._closed = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
            # Closing with unread bytes makes the kernel send a reset, which can overtake our last message.
            for _ in range(16):
                if not self._sock.recv(READ_BYTES):
                    break
        except OSError:
            pass
        self._sock.close()


def _no_tls_there() -> PeerRefusedError:
    return PeerRefusedError(
        "the server speaks no TLS, the client insists on it",
        why="it was started without --tls-cert; or somebody in between wants to read along",
        fix="start the server with --tls-cert, or leave --tls-ca and --tls-fingerprint away at the client",
        code="tls_not_used",
    )
