"""The bytes of a RoCEv2 packet: BTH and extension headers in and out. All big-endian, except the ICRC.

`pull_x` reads at an offset of a received buffer and checks nothing; `push_x` returns bytes. `pull_packet` and
`push_packet` take and make one whole UDP payload: they serve tests, tools and traces; the device's packet path works
on the same structs inline.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from p2prw.engine.roce.opcodes import (
    BTH_BYTES,
    HEADER_BYTES,
    IS_ACK,
    IS_READ_REQUEST,
    IS_READ_RESPONSE,
    IS_WRITE,
    MIN_PACKET_BYTES,
    STARTS,
    TRAITS,
    WITH_IMM,
    RcOpcode,
)
from p2prw.engine.roce.psn import PSN_MASK
from p2prw.errors import RemoteProtocolError

# IBTA Vol 1 9.2: opcode, SE M PadCnt TVer, P_Key | FECN BECN resv6, DestQP | A resv7, PSN.
BTH = Struct(">III")
# IBTA Vol 1 9.3.1: VA, R_Key, DMA length of the whole message.
RETH = Struct(">QII")
# IBTA Vol 1 9.3.5: syndrome, MSN.
AETH = Struct(">I")
PREFIX = Struct(">BBHI")
PSN_WORD = Struct(">I")
ICRC_FIELD = Struct("<I")

ACK_REQUEST = 0x80000000
MIGRATED = 0x40
"""BTH.M as a queue pair in path state "migrated" sends it; rxe ignores it, some NICs take a slow path without."""
DEFAULT_PKEY = 0xFFFF
PADDING = (b"", b"\0", b"\0\0", b"\0\0\0")
MAX_MESSAGE_BYTES = 1 << 31

# AETH syndromes, IBTA Vol 1 9.7.5.2.
ACK_NO_CREDITS = 0x1F
"""ACK, "no credit information": what rxe always sends."""
RNR_NAK = 0x20
NAK_PSN_SEQUENCE = 0x60
NAK_INVALID_REQUEST = 0x61
NAK_REMOTE_ACCESS = 0x62
NAK_REMOTE_OPERATION = 0x63

INFINITE_RNR_RETRY = 7
"""IBTA Vol 1 9.9.2.1.1; for retry_cnt 7 means seven (rxe reads that as for ever too, we never do)."""

RNR_TIMER_MS: tuple[float, ...] = (
    *(655.36, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.32, 0.48, 0.64, 0.96, 1.28, 1.92),
    *(2.56, 3.84, 5.12, 7.68, 10.24, 15.36, 20.48, 30.72, 40.96, 61.44, 81.92, 122.88, 163.84, 245.76, 327.68, 491.52),
)
"""Milliseconds for each RNR timer code (IBTA Vol 1 9.7.5.2.8, drivers/infiniband/sw/rxe/rxe_comp.c)."""


class Bth(NamedTuple):
    """Base transport header."""

    opcode: int
    solicited: bool
    migrated: bool
    pad_bytes: int
    tver: int
    pkey: int
    dest_qpn: int
    ack_request: bool
    psn: int


class Reth(NamedTuple):
    """RDMA extended transport header."""

    remote_addr: int
    rkey: int
    length_bytes: int


class Aeth(NamedTuple):
    """ACK extended transport header."""

    syndrome: int
    msn: int


class Packet(NamedTuple):
    """One UDP payload, taken apart. `icrc` is what stood on the wire (little-endian), unchecked."""

    bth: Bth
    reth: Reth | None
    aeth: Aeth | None
    imm_data: bytes | None
    payload: bytes
    icrc: int


Readable = bytes | bytearray | memoryview


def pull_bth(data: Readable, offset: int = 0) -> Bth:
    """Read the 12 bytes at `offset`."""
    word0, word1, word2 = BTH.unpack_from(data, offset)
    return Bth(
        opcode=word0 >> 24,
        solicited=bool(word0 & 0x800000),
        migrated=bool(word0 & 0x400000),
        pad_bytes=(word0 >> 20) & 3,
        tver=(word0 >> 16) & 0xF,
        pkey=word0 & 0xFFFF,
        dest_qpn=word1 & 0xFFFFFF,
        ack_request=bool(word2 & ACK_REQUEST),
        psn=word2 & PSN_MASK,
    )


def push_prefix(opcode: int, dest_qpn: int, *, pad_bytes: int = 0, solicited: bool = False) -> bytes:
    """Return the first 8 bytes of a BTH: all of it that does not change within a run of packets."""
    flags = MIGRATED | pad_bytes << 4 | (0x80 if solicited else 0)
    return PREFIX.pack(opcode, flags, DEFAULT_PKEY, dest_qpn)


def push_bth(
    opcode: int,
    dest_qpn: int,
    psn: int,
    *,
    ack_request: bool = False,
    pad_bytes: int = 0,
    solicited: bool = False,
) -> bytes:
    """Return 12 bytes; `psn` may be absolute."""
    word = psn & PSN_MASK | (ACK_REQUEST if ack_request else 0)
    return push_prefix(opcode, dest_qpn, pad_bytes=pad_bytes, solicited=solicited) + PSN_WORD.pack(word)


def pull_reth(data: Readable, offset: int) -> Reth:
    """Read the 16 bytes at `offset`."""
    return Reth(*RETH.unpack_from(data, offset))


def push_reth(remote_addr: int, rkey: int, length_bytes: int) -> bytes:
    """Return 16 bytes."""
    return RETH.pack(remote_addr, rkey, length_bytes)


def pull_aeth(data: Readable, offset: int) -> Aeth:
    """Read the 4 bytes at `offset`."""
    (word,) = AETH.unpack_from(data, offset)
    return Aeth(word >> 24, word & 0xFFFFFF)


def push_aeth(syndrome: int, msn: int) -> bytes:
    """Return 4 bytes; `msn` is cut to 24 bits."""
    return AETH.pack(syndrome << 24 | msn & 0xFFFFFF)


def pull_immdt(data: Readable, offset: int) -> bytes:
    """Return the 4 bytes of immediate data at `offset`, as they stand on the wire (network order)."""
    return bytes(data[offset : offset + 4])


def pull_packet(data: Readable) -> Packet:
    """Take one UDP payload apart. RemoteProtocolError: unknown opcode, wrong TVer, or too short for its headers."""
    if len(data) < MIN_PACKET_BYTES:
        raise RemoteProtocolError(f"packet of {len(data)} bytes", why="a RoCEv2 packet has at least 16", code="runt")
    bth = pull_bth(data)
    header_bytes = HEADER_BYTES[bth.opcode]
    if not header_bytes or bth.tver:
        raise RemoteProtocolError(f"opcode {bth.opcode:#04x} version {bth.tver}", code="unknown_opcode")
    end = len(data) - 4 - bth.pad_bytes
    if end < header_bytes:
        raise RemoteProtocolError(f"packet of {len(data)} bytes", why="shorter than its headers", code="runt")
    traits, offset = TRAITS[bth.opcode], BTH_BYTES
    reth = aeth = imm_data = None
    if traits & IS_READ_REQUEST or (traits & IS_WRITE and traits & STARTS):
        reth, offset = pull_reth(data, offset), offset + RETH.size
    if traits & IS_ACK or (traits & IS_READ_RESPONSE and bth.opcode != RcOpcode.READ_RESPONSE_MIDDLE):
        aeth, offset = pull_aeth(data, offset), offset + AETH.size
    if traits & WITH_IMM:
        imm_data = pull_immdt(data, offset)
    (icrc,) = ICRC_FIELD.unpack_from(data, len(data) - 4)
    return Packet(bth, reth, aeth, imm_data, bytes(data[header_bytes:end]), icrc)


def push_packet(bth: bytes, extension: bytes = b"", payload: bytes = b"", icrc: int = 0) -> bytes:
    """Return one UDP payload; the pad bytes follow BTH.PadCnt, which the caller has set to (-len) & 3."""
    return bth + extension + payload + PADDING[-len(payload) & 3] + ICRC_FIELD.pack(icrc)
