"""The table of opcodes against the sizes of the specification."""

from __future__ import annotations

from p2prw.engine.roce.opcodes import (
    CNP_OPCODE,
    ENDS,
    HEADER_BYTES,
    IS_READ_REQUEST,
    IS_REQUEST,
    STARTS,
    TRAITS,
    UNSUPPORTED,
    RcOpcode,
)

# "UDP payload minus data" of the opcode table, without the ICRC (drivers/infiniband/sw/rxe/rxe_opcode.c).
HEADERS = {
    RcOpcode.SEND_ONLY: 12,
    RcOpcode.SEND_LAST_WITH_IMM: 16,
    RcOpcode.WRITE_FIRST: 28,
    RcOpcode.WRITE_MIDDLE: 12,
    RcOpcode.WRITE_LAST_WITH_IMM: 16,
    RcOpcode.WRITE_ONLY_WITH_IMM: 32,
    RcOpcode.READ_REQUEST: 28,
    RcOpcode.READ_RESPONSE_FIRST: 16,
    RcOpcode.READ_RESPONSE_MIDDLE: 12,
    RcOpcode.READ_RESPONSE_ONLY: 16,
    RcOpcode.ACKNOWLEDGE: 16,
    RcOpcode.ATOMIC_ACKNOWLEDGE: 24,
    RcOpcode.COMPARE_SWAP: 40,
    RcOpcode.SEND_ONLY_WITH_INVALIDATE: 16,
}


def test_header_sizes():
    assert {opcode: HEADER_BYTES[opcode] for opcode in HEADERS} == HEADERS


def test_unknown_opcodes_have_neither_size_nor_traits():
    known = {int(opcode) for opcode in RcOpcode}
    for value in range(256):
        if value not in known:
            assert HEADER_BYTES[value] == 0
            assert TRAITS[value] == 0
    assert CNP_OPCODE not in known


def test_only_is_first_and_last_at_once():
    for opcode in RcOpcode:
        if TRAITS[opcode] & IS_REQUEST and not TRAITS[opcode] & (UNSUPPORTED | IS_READ_REQUEST):
            assert bool(TRAITS[opcode] & STARTS) is ("FIRST" in opcode.name or "ONLY" in opcode.name)
            assert bool(TRAITS[opcode] & ENDS) is ("LAST" in opcode.name or "ONLY" in opcode.name)
