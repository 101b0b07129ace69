"""Opcodes of the reliable connected service, and what each means for the length and place of a packet.

Values: IBTA Vol 1 9.2, as in Linux include/rdma/ib_pack.h. Header sizes: drivers/infiniband/sw/rxe/rxe_opcode.c.
"""

from __future__ import annotations

from enum import IntEnum

BTH_BYTES = 12
RETH_BYTES = 16
AETH_BYTES = 4
IMMDT_BYTES = 4
IETH_BYTES = 4
ATOMIC_ETH_BYTES = 28
ATOMIC_ACK_ETH_BYTES = 8
ICRC_BYTES = 4
MIN_PACKET_BYTES = BTH_BYTES + ICRC_BYTES
MIDDLE_OVERHEAD_BYTES = BTH_BYTES + ICRC_BYTES
"""UDP payload minus data of a MIDDLE packet: the size all segments of a GSO burst share."""


class RcOpcode(IntEnum):
    """BTH opcode of a reliable connected packet (top three bits 000)."""

    SEND_FIRST = 0x00
    SEND_MIDDLE = 0x01
    SEND_LAST = 0x02
    SEND_LAST_WITH_IMM = 0x03
    SEND_ONLY = 0x04
    SEND_ONLY_WITH_IMM = 0x05
    WRITE_FIRST = 0x06
    WRITE_MIDDLE = 0x07
    WRITE_LAST = 0x08
    WRITE_LAST_WITH_IMM = 0x09
    WRITE_ONLY = 0x0A
    WRITE_ONLY_WITH_IMM = 0x0B
    READ_REQUEST = 0x0C
    READ_RESPONSE_FIRST = 0x0D
    READ_RESPONSE_MIDDLE = 0x0E
    READ_RESPONSE_LAST = 0x0F
    READ_RESPONSE_ONLY = 0x10
    ACKNOWLEDGE = 0x11
    ATOMIC_ACKNOWLEDGE = 0x12
    COMPARE_SWAP = 0x13
    FETCH_ADD = 0x14
    SEND_LAST_WITH_INVALIDATE = 0x16
    SEND_ONLY_WITH_INVALIDATE = 0x17


CNP_OPCODE = 0x81
"""Congestion notification; ignored, as rxe does."""

# Traits of an opcode, as bits: one table lookup on the packet path instead of a chain of comparisons.
STARTS = 0x01
ENDS = 0x02
WITH_IMM = 0x04
IS_WRITE = 0x08
IS_SEND = 0x10
IS_READ_REQUEST = 0x20
IS_READ_RESPONSE = 0x40
IS_ACK = 0x80
UNSUPPORTED = 0x100
"""A valid request that this device does not offer (atomics, invalidation): answered with NAK invalid request."""

IS_REQUEST = IS_WRITE | IS_SEND | IS_READ_REQUEST | UNSUPPORTED

_TABLE: dict[RcOpcode, tuple[int, int]] = {
    RcOpcode.SEND_FIRST: (0, IS_SEND | STARTS),
    RcOpcode.SEND_MIDDLE: (0, IS_SEND),
    RcOpcode.SEND_LAST: (0, IS_SEND | ENDS),
    RcOpcode.SEND_LAST_WITH_IMM: (IMMDT_BYTES, IS_SEND | ENDS | WITH_IMM),
    RcOpcode.SEND_ONLY: (0, IS_SEND | STARTS | ENDS),
    RcOpcode.SEND_ONLY_WITH_IMM: (IMMDT_BYTES, IS_SEND | STARTS | ENDS | WITH_IMM),
    RcOpcode.WRITE_FIRST: (RETH_BYTES, IS_WRITE | STARTS),
    RcOpcode.WRITE_MIDDLE: (0, IS_WRITE),
    RcOpcode.WRITE_LAST: (0, IS_WRITE | ENDS),
    RcOpcode.WRITE_LAST_WITH_IMM: (IMMDT_BYTES, IS_WRITE | ENDS | WITH_IMM),
    RcOpcode.WRITE_ONLY: (RETH_BYTES, IS_WRITE | STARTS | ENDS),
    RcOpcode.WRITE_ONLY_WITH_IMM: (RETH_BYTES + IMMDT_BYTES, IS_WRITE | STARTS | ENDS | WITH_IMM),
    RcOpcode.READ_REQUEST: (RETH_BYTES, IS_READ_REQUEST | STARTS | ENDS),
    RcOpcode.READ_RESPONSE_FIRST: (AETH_BYTES, IS_READ_RESPONSE | STARTS),
    RcOpcode.READ_RESPONSE_MIDDLE: (0, IS_READ_RESPONSE),
    RcOpcode.READ_RESPONSE_LAST: (AETH_BYTES, IS_READ_RESPONSE | ENDS),
    RcOpcode.READ_RESPONSE_ONLY: (AETH_BYTES, IS_READ_RESPONSE | STARTS | ENDS),
    RcOpcode.ACKNOWLEDGE: (AETH_BYTES, IS_ACK),
    RcOpcode.ATOMIC_ACKNOWLEDGE: (AETH_BYTES + ATOMIC_ACK_ETH_BYTES, 0),
    RcOpcode.COMPARE_SWAP: (ATOMIC_ETH_BYTES, UNSUPPORTED | STARTS | ENDS),
    RcOpcode.FETCH_ADD: (ATOMIC_ETH_BYTES, UNSUPPORTED | STARTS | ENDS),
    RcOpcode.SEND_LAST_WITH_INVALIDATE: (IETH_BYTES, UNSUPPORTED | ENDS),
    RcOpcode.SEND_ONLY_WITH_INVALIDATE: (IETH_BYTES, UNSUPPORTED | STARTS | ENDS),
}

HEADER_BYTES: tuple[int, ...] = tuple(
    BTH_BYTES + _TABLE[RcOpcode(value)][0] if value in _TABLE else 0 for value in range(256)
)
"""BTH and extension headers of each opcode; 0: unknown, the packet is dropped."""

TRAITS: tuple[int, ...] = tuple(_TABLE[RcOpcode(value)][1] if value in _TABLE else 0 for value in range(256))

EDGES: dict[tuple[bool, bool, bool, bool], int] = {
    # is SEND, starts, ends, with immediate data
    (False, True, False, False): int(RcOpcode.WRITE_FIRST),
    (False, False, True, False): int(RcOpcode.WRITE_LAST),
    (False, False, True, True): int(RcOpcode.WRITE_LAST_WITH_IMM),
    (False, True, True, False): int(RcOpcode.WRITE_ONLY),
    (False, True, True, True): int(RcOpcode.WRITE_ONLY_WITH_IMM),
    (True, True, False, False): int(RcOpcode.SEND_FIRST),
    (True, False, True, False): int(RcOpcode.SEND_LAST),
    (True, False, True, True): int(RcOpcode.SEND_LAST_WITH_IMM),
    (True, True, True, False): int(RcOpcode.SEND_ONLY),
    (True, True, True, True): int(RcOpcode.SEND_ONLY_WITH_IMM),
}
"""FIRST, LAST and ONLY packets of a WRITE or SEND. Plain ints: an enum member costs more than the rest of a lookup."""
