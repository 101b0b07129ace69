"""The messages of the control channel: frozen dataclasses <-> one JSON object each. Pure; never pickle.

Every field a stranger can send is checked for type and range before a message object exists; anything else is a
`RemoteProtocolError` (`checks.py`). Frames are at most `MAX_FRAME_BYTES`; long lists are paged by the sender.

Who says what when is in `handshake.py`; bytes and deadlines are in `channel.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, TypeAlias, get_args

from p2prw.engine.control.checks import (
    boolean,
    build,
    integer,
    list_of,
    optional,
    optional_field,
    record,
    required_field,
    text,
)
from p2prw.engine.control.measuring import GoOn as GoOn
from p2prw.engine.control.measuring import Halt as Halt
from p2prw.engine.control.measuring import Pingpong as Pingpong
from p2prw.engine.control.measuring import Ponging as Ponging
from p2prw.engine.control.measuring import Reverse as Reverse
from p2prw.engine.control.measuring import Reversed as Reversed
from p2prw.engine.control.measuring import Reversing as Reversing
from p2prw.engine.control.records import (
    HEX_DIGEST,
    HEX_MAC,
    HEX_NONCE,
    LEASE,
    LENGTH,
    MAX_PROSE_CHARS,
    PROSE,
    REGION_NAME,
    U63,
)
from p2prw.engine.control.records import Attempt as Attempt
from p2prw.engine.control.records import Gid as Gid
from p2prw.engine.control.records import Held as Held
from p2prw.engine.control.records import QueuePairInfo as QueuePairInfo
from p2prw.engine.control.records import RegionInfo as RegionInfo
from p2prw.engine.control.records import RouteInfo as RouteInfo
from p2prw.engine.control.records import Segment as Segment
from p2prw.engine.control.records import Source as Source
from p2prw.engine.control.records import Staging as Staging
from p2prw.engine.control.records import Via as Via
from p2prw.errors import LocalProtocolError, P2prwError, PeerRefusedError, RemoteProtocolError

PROTOCOL_VERSION = 2
"""2: with a token, frames are sealed (`seal.py`). A peer of another version is refused, never met half way."""
MAX_FRAME_BYTES = 64 * 1024

DIGESTS_PER_PAGE = 1024
"""32 hex digits each: 36 KiB a page, inside a frame."""
REGIONS_PER_PAGE = 64

RESUME = "resume"
PINGPONG = "pingpong"
RATE_LIMIT = "rate_limit"
REVERSE = "reverse"
CAPABILITIES = (RESUME, PINGPONG, RATE_LIMIT, REVERSE)
"""What this release can do beyond its protocol version; both sides say so in their hello."""

# --- messages -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of both sides; the client speaks first."""

    TYPE: ClassVar[str] = "hello"
    version: int = required_field(integer(0, 65535))
    nonce: str = required_field(HEX_NONCE)
    auth: str = required_field(text(r"none|token", 5))
    """Server: whether a token is needed. Client: whether it has one."""
    capabilities: tuple[str, ...] = optional_field(list_of(text(max_chars=32), 64), ())
    gid_table: tuple[Gid, ...] = optional_field(list_of(record(Gid), 256), ())
    udp_port: int | None = optional_field(optional(integer(1, 65535)), None)
    agent: str = optional_field(text(max_chars=128), "")


@dataclass(frozen=True, slots=True)
class Auth:
    """Proof of the token (`auth.py`). The client proves first, then the server; the frames after it are sealed."""

    TYPE: ClassVar[str] = "auth"
    mac: str = required_field(HEX_MAC)


@dataclass(frozen=True, slots=True)
class ListRegions:
    """Ask for one page of the offered regions."""

    TYPE: ClassVar[str] = "list"
    page: int = optional_field(integer(0, 65535), 0)


@dataclass(frozen=True, slots=True)
class Regions:
    """One page of the offered regions."""

    TYPE: ClassVar[str] = "regions"
    regions: tuple[RegionInfo, ...] = required_field(list_of(record(RegionInfo), REGIONS_PER_PAGE))
    more: bool = required_field(boolean)


@dataclass(frozen=True, slots=True)
class Open:
    """Ask for a byte range of a region. `length` None: to the end of the region."""

    TYPE: ClassVar[str] = "open"
    region: str = required_field(REGION_NAME)
    offset: int = required_field(LENGTH)
    length: int | None = required_field(optional(LENGTH))
    op: str = required_field(text(r"write|read", 5))
    queue_pair: QueuePairInfo = required_field(record(QueuePairInfo))
    limit: int | None = optional_field(optional(LENGTH), None)
    """With length None: the client's own memory is this long, so grant at most this."""
    shared: bool = optional_field(boolean, False)
    window_bytes: int | None = optional_field(optional(integer(1, U63)), None)
    """What the server may have on the wire towards the client (READ responses)."""
    source: Source | None = optional_field(optional(record(Source)), None)
    """WRITE: go on with what an earlier transfer from this source left, and leave what arrives to the next one."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The range is leased. Segments are directly reachable; or `staging` is set and `segments` is empty."""

    TYPE: ClassVar[str] = "grant"
    lease: str = required_field(LEASE)
    length: int = required_field(LENGTH)
    segments: tuple[Segment, ...] = required_field(list_of(record(Segment), 256))
    window_bytes: int = required_field(integer(1, U63))
    route: RouteInfo = required_field(record(RouteInfo))
    queue_pair: QueuePairInfo = required_field(record(QueuePairInfo))
    staging: Staging | None = optional_field(optional(record(Staging)), None)
    region_length: int | None = optional_field(optional(LENGTH), None)
    flushable: bool = optional_field(boolean, True)
    """The keys allow READ too, so a WRITE can be flushed and read back; false for write-only memory."""
    source: Source | None = optional_field(optional(record(Source)), None)
    """READ: what the region is now; a client that resumes holds it against what it had."""
    held: Held | None = optional_field(optional(record(Held)), None)
    """WRITE with a `source`; missing where this region cannot resume."""
    notes: tuple[str, ...] = optional_field(list_of(PROSE, 8), ())
    """What the client's user should know."""
    rate_limit_bytes_per_s: int | None = optional_field(optional(integer(1, U63)), None)
    """Most that the client may move in a second, all its queue pairs together: it paces itself."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """No, with a reason the client shows to its user. `fix` is what to try."""

    TYPE: ClassVar[str] = "refuse"
    code: str = required_field(text(r"[a-z0-9_]{1,64}", 64))
    what: str = required_field(PROSE)
    why: str | None = optional_field(optional(PROSE), None)
    fix: str | None = optional_field(optional(PROSE), None)


@dataclass(frozen=True, slots=True)
class Fill:
    """READ of a staged region: put region bytes [offset, offset + length) of the lease into `slot`."""

    TYPE: ClassVar[str] = "fill"
    lease: str = required_field(LEASE)
    slot: int = required_field(integer(0, 255))
    offset: int = required_field(LENGTH)
    length: int = required_field(LENGTH)


@dataclass(frozen=True, slots=True)
class Filled:
    """The slot holds the bytes asked for."""

    TYPE: ClassVar[str] = "filled"
    lease: str = required_field(LEASE)
    slot: int = required_field(integer(0, 255))
    offset: int = required_field(LENGTH)


@dataclass(frozen=True, slots=True)
class Commit:
    """WRITE of a staged region: `slot` holds bytes [offset, offset + length) of the lease; take them."""

    TYPE: ClassVar[str] = "commit"
    lease: str = required_field(LEASE)
    slot: int = required_field(integer(0, 255))
    offset: int = required_field(LENGTH)
    length: int = required_field(LENGTH)


@dataclass(frozen=True, slots=True)
class Committed:
    """The slot's bytes were taken; the slot is free again (one credit)."""

    TYPE: ClassVar[str] = "committed"
    lease: str = required_field(LEASE)
    slot: int = required_field(integer(0, 255))
    offset: int = required_field(LENGTH)


@dataclass(frozen=True, slots=True)
class Window:
    """Unasked for: the bytes this client may have on the wire from now on."""

    TYPE: ClassVar[str] = "window"
    window_bytes: int = required_field(integer(1, U63))


@dataclass(frozen=True, slots=True)
class Digest:
    """Digest the final memory of [offset, offset + length) of the lease, block by block."""

    TYPE: ClassVar[str] = "digest"
    lease: str = required_field(LEASE)
    offset: int = required_field(LENGTH)
    length: int = required_field(LENGTH)
    block_bytes: int = required_field(integer(4096, 1 << 30))
    noted: bool = optional_field(boolean, False)
    """Under a `held.manifest`: only blocks that have arrived before; the others answer ""."""
    reverse: bool = optional_field(boolean, False)
    """Not the lease's bytes: those that a `reverse` has READ, from its first byte on."""


@dataclass(frozen=True, slots=True)
class Digests:
    """One page of XXH3-128 digests, in order from `offset`; `method` as in `model.VerifyReport`."""

    TYPE: ClassVar[str] = "digests"
    lease: str = required_field(LEASE)
    offset: int = required_field(LENGTH)
    digests: tuple[str, ...] = required_field(list_of(HEX_DIGEST, DIGESTS_PER_PAGE))
    more: bool = required_field(boolean)
    method: str = optional_field(text(r"owner-cpu|owner-loopback-read|client-read-back", 32), "owner-cpu")


@dataclass(frozen=True, slots=True)
class Restart:
    """The client's source is not what the sink's blocks came from: forget them all. No answer."""

    TYPE: ClassVar[str] = "restart"
    lease: str = required_field(LEASE)


@dataclass(frozen=True, slots=True)
class Release:
    """The client is done. `keep`: the transfer was whole (and verified where asked), so a sink may appear.

    Without it a sink is thrown away, or under `held.manifest` left for the next one to go on with.
    """

    TYPE: ClassVar[str] = "release"
    lease: str = required_field(LEASE)
    keep: bool = required_field(boolean)


@dataclass(frozen=True, slots=True)
class Released:
    """The lease is gone, its keys with it, and a kept sink is under its name."""

    TYPE: ClassVar[str] = "released"
    lease: str = required_field(LEASE)


Message: TypeAlias = (
    Hello
    | Auth
    | ListRegions
    | Regions
    | Open
    | Grant
    | Refuse
    | Fill
    | Filled
    | Commit
    | Committed
    | Window
    | Digest
    | Digests
    | Restart
    | Pingpong
    | Ponging
    | Reverse
    | Reversing
    | GoOn
    | Halt
    | Reversed
    | Release
    | Released
)
MESSAGE_TYPES: dict[str, type[Any]] = {cls.TYPE: cls for cls in get_args(Message)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def encode(message: Message) -> bytes:
    """Return the JSON bytes of one frame (without its length). LocalProtocolError when it does not fit a frame."""
    body = json.dumps({"type": message.TYPE, **_plain(message)}, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise LocalProtocolError(
            f"control message {message.TYPE!r} is {len(body)} bytes, a frame holds {MAX_FRAME_BYTES}"
        )
    return body


def decode(body: bytes | bytearray | memoryview) -> Message:
    """Return the message in one frame, every field checked; RemoteProtocolError for anything else."""
    if len(body) > MAX_FRAME_BYTES:
        raise RemoteProtocolError(
            f"control frame of {len(body)} bytes, at most {MAX_FRAME_BYTES} are allowed",
            code="frame_too_long",
        )
    try:
        document = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError("control frame is not JSON", code="bad_message") from error
    if type(document) is not dict or type(document.get("type")) is not str:
        raise RemoteProtocolError("control frame is not an object with a type", code="bad_message")
    cls = MESSAGE_TYPES.get(document["type"])
    if cls is None:
        raise RemoteProtocolError(f"control message of unknown type {document['type'][:40]!r}", code="unknown_message")
    version = document.get("version")
    if cls is Hello and type(version) is int and version != PROTOCOL_VERSION and 0 <= version <= 65535:
        # Another version's hello may look different; its version is all we need to say so.
        return Hello(version=version, nonce="0" * 64, auth="none")
    message: Message = build(cls, document, document["type"])
    return message


def refuse_from(error: P2prwError) -> Refuse:
    """Return the refusal that tells a peer about `error`, cut to what a message may hold."""

    def cut(prose: str | None) -> str | None:
        return prose[:MAX_PROSE_CHARS] if prose else None

    return Refuse(code=error.code, what=error.what[:MAX_PROSE_CHARS], why=cut(error.why), fix=cut(error.fix))


def error_from(refuse: Refuse) -> PeerRefusedError:
    """Return the error that shows a peer's refusal to our user."""
    what, why = refuse.what or "the peer refused", refuse.why or "it gave no reason"
    return PeerRefusedError(what, why=why, fix=refuse.fix, code=refuse.code, side="remote")
