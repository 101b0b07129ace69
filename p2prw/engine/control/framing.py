"""Frames of the control channel: a 4-byte big-endian length, then one JSON object of at most 64 KiB. Pure.

The parser owns bytes that arrived in slices of any size and gives back whole bodies. It never holds more than one frame
and one read, so a peer cannot make it grow. It also tells a stranger (a browser, an `ib_write_bw`, a port scanner) by
its first bytes: the first byte of a valid frame is always zero.

What is in a body is `messages.py`; sockets and deadlines are `channel.py`.
"""

from __future__ import annotations

import re
import struct

from p2prw.engine.control.messages import MAX_FRAME_BYTES
from p2prw.errors import LocalProtocolError, RemoteProtocolError

HEADER = struct.Struct(">I")
READ_BYTES = 64 * 1024
"""Feed at most this much at a time."""

_STRANGERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"(?:GET|POST|PUT|HEAD|OPTIONS|DELETE|PATCH|CONNECT|TRACE|PRI) "), "an HTTP client"),
    (re.compile(rb"HTTP/\d"), "an HTTP server"),
    # RFC 8446 section 5.1: ContentType handshake (22) or alert (21), then legacy_record_version 3.x.
    (re.compile(rb"[\x15\x16]\x03[\x00-\x04]"), "a TLS peer"),
    (re.compile(rb"SSH-"), "an SSH server"),
    (re.compile(rb"\d{3}[ -]"), "an FTP or mail server"),
    # perftest sends its version string ("6.06", NUL padded) or KEY_PRINT_FMT, hex words joined by colons
    # (perftest src/perftest_communication.c).
    (re.compile(rb"\d+\.\d+[\x00.]|[0-9a-f]{4}:[0-9a-f]{4}:[0-9a-f]{6}:"), "perftest (ib_write_bw and its siblings)"),
)


def frame(body: bytes) -> bytes:
    """Return `body` with its length before it. LocalProtocolError when it does not fit a frame."""
    if not 0 < len(body) <= MAX_FRAME_BYTES:
        raise LocalProtocolError(f"a control frame holds 1 to {MAX_FRAME_BYTES} bytes, not {len(body)}")
    return HEADER.pack(len(body)) + body


def name_stranger(head: bytes) -> str | None:
    """Return who speaks like `head` ("an HTTP client"), or None when that is not known."""
    return next((name for pattern, name in _STRANGERS if pattern.match(head)), None)


def not_p2prw(head: bytes) -> RemoteProtocolError:
    """Return the error for a peer whose first bytes are no frame of ours."""
    name = name_stranger(head)
    return RemoteProtocolError(
        f"the other end is not p2prw: it speaks like {name}" if name else "the other end is not p2prw",
        why=f"its first bytes are {bytes(head[:16])!r}, no control frame",
        fix="check host and port: the other side must be `p2prw serve`",
        code="not_p2prw",
    )


class FrameParser:
    """Driven by two calls: `feed` bytes as they arrive, then `next_frame` until it gives None.

    Once an error was raised the parser is of no further use: close the connection.
    """

    __slots__ = ("_buffer", "_frames")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._frames = 0

    def __repr__(self) -> str:
        return f"<FrameParser frames={self._frames} held={len(self._buffer)}>"

    @property
    def held_bytes(self) -> int:
        """Bytes that are not yet part of a frame that was given back; 0 between frames."""
        return len(self._buffer)

    @property
    def frames(self) -> int:
        """Whole frames given back so far."""
        return self._frames

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes that arrived, at most READ_BYTES, after `next_frame` gave None. LocalProtocolError otherwise."""
        if len(data) > READ_BYTES or len(self._buffer) >= HEADER.size + MAX_FRAME_BYTES:
            raise LocalProtocolError("the frame parser is fed faster than it is emptied")
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """Return the next whole body, or None: feed more. RemoteProtocolError as soon as the length cannot be right."""
        buffer = self._buffer
        # A length of at most 64 KiB starts with a zero byte: a stranger is known by the first byte it sends.
        if buffer and buffer[0] != 0:
            raise self._bad_length()
        if len(buffer) < HEADER.size:
            return None
        (length,) = HEADER.unpack_from(buffer)
        if not 0 < length <= MAX_FRAME_BYTES:
            raise self._bad_length()
        end = HEADER.size + length
        if len(buffer) < end:
            return None
        body = bytes(buffer[HEADER.size : end])
        # Cheap: CPython keeps the front gap of a bytearray and moves nothing (Objects/bytearrayobject.c).
        del buffer[:end]
        self._frames += 1
        return body

    def _bad_length(self) -> RemoteProtocolError:
        if self._frames == 0:
            return not_p2prw(bytes(self._buffer[:64]))
        length = int.from_bytes(self._buffer[: HEADER.size], "big")
        if length == 0:
            return RemoteProtocolError("the peer sent a control frame of length 0", code="bad_frame")
        return RemoteProtocolError(
            f"the peer announced a control frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed",
            code="frame_too_long",
        )
