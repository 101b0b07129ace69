"""The messages by which a server takes part in a measurement: it posts towards the client that asks. Pure data.

Part of `messages.py`, which encodes and decodes them. A server that has neither `PINGPONG` nor `REVERSE` among its
capabilities knows none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from p2prw.engine.control.checks import integer, list_of, optional, optional_field, record, required_field
from p2prw.engine.control.records import LEASE, LENGTH, U32, U63, U64, Segment

TAGS = 255
"""The last byte of message n of a ping-pong is n modulo this, plus 1: never 0, which it is before the first."""
REVERSE_ALLOWANCE_S = 5.0
"""Of a `reverse`: how long the server goes on posting after the client's last word."""


@dataclass(frozen=True, slots=True)
class Pingpong:
    """Under a write lease: WRITE the first `length` bytes of the lease back to us each time a message has arrived.

    Message n (from 0) has arrived when the last of these bytes is n modulo `TAGS`, plus 1. It ends with the lease, or
    with the next one.
    """

    TYPE: ClassVar[str] = "pingpong"
    lease: str = required_field(LEASE)
    length: int = required_field(integer(1, U63))
    address: int = required_field(integer(0, U64))
    rkey: int = required_field(integer(0, U32))


@dataclass(frozen=True, slots=True)
class Ponging:
    """The server watches; the first message may come."""

    TYPE: ClassVar[str] = "ponging"
    lease: str = required_field(LEASE)


@dataclass(frozen=True, slots=True)
class Reverse:
    """Do the lease's operation towards us too, `length` bytes a message, again and again until `halt`.

    WRITE: the first bytes of the lease into `segments`. READ: `segments` into memory of the server's own, never into
    the region. It ends with the lease, and posts nothing `REVERSE_ALLOWANCE_S` after the client's last word on it.
    """

    TYPE: ClassVar[str] = "reverse"
    lease: str = required_field(LEASE)
    length: int = required_field(integer(1, U63))
    segments: tuple[Segment, ...] = required_field(list_of(record(Segment), 256))
    depth: int = required_field(integer(1, 32768))
    """Work requests outstanding at most."""
    signal_every: int | None = optional_field(optional(integer(1, 32768)), None)
    post_list: int | None = optional_field(optional(integer(1, 32768)), None)
    window_bytes: int | None = optional_field(optional(integer(1, U63)), None)
    """WRITE: what the server may have on the wire towards the client by this lease."""


@dataclass(frozen=True, slots=True)
class Reversing:
    """The server posts from now on."""

    TYPE: ClassVar[str] = "reversing"
    lease: str = required_field(LEASE)


@dataclass(frozen=True, slots=True)
class GoOn:
    """The client still wants what it asked for with `reverse`. No answer."""

    TYPE: ClassVar[str] = "go_on"
    lease: str = required_field(LEASE)


@dataclass(frozen=True, slots=True)
class Halt:
    """Enough: one more message, so that the last one holds what is there now; then `reversed`."""

    TYPE: ClassVar[str] = "halt"
    lease: str = required_field(LEASE)


@dataclass(frozen=True, slots=True)
class Reversed:
    """Nothing of a `reverse` is on its way any more; these messages had completed when it was halted."""

    TYPE: ClassVar[str] = "reversed"
    lease: str = required_field(LEASE)
    messages: int = required_field(LENGTH)
    elapsed_ns: int = required_field(LENGTH)
    """First post to last completion."""
    retransmitted_packets: int = required_field(LENGTH)
