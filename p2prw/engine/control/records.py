"""The records inside control messages, and the words they are checked by: rows, segments, routes. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from p2prw.engine.control.checks import (
    boolean,
    integer,
    list_of,
    one_of,
    optional,
    optional_field,
    record,
    required_field,
    text,
)

U63 = (1 << 63) - 1
_U24, U32, U64 = (1 << 24) - 1, (1 << 32) - 1, (1 << 64) - 1

HEX_GID = text(r"[0-9a-f]{32}", 32)
UNICAST_GID = text(r"(?!0{32}|ff|0{20}ffff(?:00|[ef]))[0-9a-f]{32}", 32)
"""Nobody, everybody and groups have no queue pair: not ::, 0.0.0.0/8, ff00::/8 and what is above 224.0.0.0."""
HEX_NONCE = text(r"[0-9a-f]{64}", 64)
HEX_MAC = text(r"[0-9a-f]{64}", 64)
HEX_DIGEST = text(r"([0-9a-f]{32})?", 32)
"""Empty: a block that has not arrived; only where `Digest.noted` asked."""
REGION_NAME = text(r"[A-Za-z0-9_.-]{1,64}", 64)
LEASE = text(r"[0-9a-f]{16}", 16)
MAX_PROSE_CHARS = 2048
PROSE = text(max_chars=MAX_PROSE_CHARS)
LENGTH = integer(0, U63)


@dataclass(frozen=True, slots=True)
class Gid:
    """A row of the sender's GID table."""

    index: int = required_field(integer(0, 65535))
    gid: str = required_field(HEX_GID)
    type: str = required_field(text(r"rocev2|rocev1|ib", 8))
    netdev: str | None = optional_field(optional(text(max_chars=64)), None)
    up: bool = optional_field(boolean, True)


@dataclass(frozen=True, slots=True)
class QueuePairInfo:
    """The sender's end of the queue pair (`model.QueuePairAttributes` on the wire)."""

    qpn: int = required_field(integer(1, _U24))
    psn: int = required_field(integer(0, _U24))
    gid: str = required_field(UNICAST_GID)
    mtu_bytes: int = required_field(one_of(256, 512, 1024, 2048, 4096))
    max_rd_atomic: int = required_field(integer(0, 255))
    max_dest_rd_atomic: int = required_field(integer(0, 255))
    udp_port: int = optional_field(integer(1, 65535), 4791)
    lid: int = optional_field(integer(0, 65535), 0)


@dataclass(frozen=True, slots=True)
class Segment:
    """One contiguous piece of a granted region."""

    address: int = required_field(integer(0, U64))
    length: int = required_field(integer(0, U63))
    rkey: int = required_field(integer(0, U32))


@dataclass(frozen=True, slots=True)
class Staging:
    """The server's staging slots of one lease, for regions that are not mapped (files, bounced memory)."""

    chunk_bytes: int = required_field(integer(1, 1 << 30))
    slots: tuple[Segment, ...] = required_field(list_of(record(Segment), 256))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One rung of the ladder at the server."""

    route: str = required_field(text(max_chars=16))
    ok: bool = required_field(boolean)
    errno: str | None = optional_field(optional(text(max_chars=64)), None)
    wc_status: str | None = optional_field(optional(text(max_chars=64)), None)
    why: str | None = optional_field(optional(PROSE), None)


@dataclass(frozen=True, slots=True)
class Via:
    """A served file is staged in a device's memory (`model.ViaReport` on the wire)."""

    memory: str = required_field(text(max_chars=32))
    pci_address: str = required_field(text(max_chars=32))
    mover: str = required_field(text(r"drive", 5))
    peer_to_peer: bool = required_field(boolean)
    drive: str | None = optional_field(optional(text(max_chars=32)), None)
    host_bytes: int = optional_field(LENGTH, 0)


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """How the server reaches the region (`model.RouteReport` on the wire)."""

    chosen: str = required_field(text(r"dmabuf|pin|odp|dm|cpu|bounce", 16))
    mover: str = required_field(text(r"nic|cpu", 3))
    peer_to_peer: bool = required_field(boolean)
    memory: str = required_field(text(max_chars=32))
    device: str = required_field(text(max_chars=64))
    driver: str = required_field(text(max_chars=64))
    staged: bool = optional_field(boolean, False)
    attempts: tuple[Attempt, ...] = optional_field(list_of(record(Attempt), 16), ())
    via: Via | None = optional_field(optional(record(Via)), None)


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """One offered region, as `regions` lists it."""

    name: str = required_field(REGION_NAME)
    kind: str = required_field(text(max_chars=32))
    length: int | None = required_field(optional(LENGTH))
    """None: an elastic sink that takes whatever size is written."""
    access: str = required_field(text(r"r|w|rw", 2))
    staged: bool = optional_field(boolean, False)
    busy: bool = optional_field(boolean, False)


@dataclass(frozen=True, slots=True)
class Source:
    """What the bytes of a transfer come from (`model.SourceIdentity` on the wire)."""

    name: str = required_field(text(max_chars=64))
    offset: int = required_field(LENGTH)
    bytes: int = required_field(LENGTH)
    mtime_ns: int | None = optional_field(optional(integer(-U63, U63)), None)


@dataclass(frozen=True, slots=True)
class Held:
    """A written lease that can go on where an earlier one stopped."""

    manifest: bool = required_field(boolean)
    """The sink notes what arrives, so only what is noted counts; false: the memory itself is all there is."""
    fresh: bool = required_field(boolean)
    """Nothing from before counts."""
    restarted: str | None = optional_field(optional(PROSE), None)
    """Why what was kept does not count."""
