"""Frames that nobody in between can change, drop, repeat or reorder: each carries a MAC over its number and its body.

    frame = length, body, HMAC-SHA-256(key of the sender, number of the frame as 8 bytes || body)

Each direction has its own key (`auth.session_key`) and counts its own frames from 0, so a frame is good once, in one
place of one session. What is in the body (region, offset, length, rkey, QPN, the end of the transfer) needs no other
protection. Nothing is hidden: that is TLS's work. Pure; tampering ends the connection, so no state is mended here.
"""

from __future__ import annotations

import hashlib
import hmac

from p2prw.engine.control.auth import MAC_BYTES
from p2prw.errors import RemoteProtocolError


class Seal:
    """Both directions of one session; driven by the channel for each frame after the handshake."""

    __slots__ = ("_receive_key", "_received", "_send_key", "_sent")

    def __init__(self, send_key: bytes, receive_key: bytes) -> None:
        self._send_key = send_key
        self._receive_key = receive_key
        self._sent = 0
        self._received = 0

    def __repr__(self) -> str:
        return f"<Seal sent={self._sent} received={self._received}>"

    def close(self, body: bytes) -> bytes:
        """Return `body` with its MAC behind it; it must be sent next."""
        mac = _mac(self._send_key, self._sent, body)
        self._sent += 1
        return body + mac

    def open(self, sealed: bytes) -> bytes:
        """Return the body of the next frame that came. RemoteProtocolError `bad_seal` unless it is the peer's."""
        body, found = sealed[:-MAC_BYTES], sealed[-MAC_BYTES:]
        if not hmac.compare_digest(_mac(self._receive_key, self._received, body), found):
            raise RemoteProtocolError(
                f"control frame {self._received} was not sealed by the peer",
                why="somebody between the two changed, dropped, repeated or made up a frame",
                fix="find out who is between the two hosts; --tls-cert at the server also hides what is said",
                code="bad_seal",
            )
        self._received += 1
        return body


def _mac(key: bytes, number: int, body: bytes) -> bytes:
    return hmac.new(key, number.to_bytes(8, "big") + body, hashlib.sha256).digest()
