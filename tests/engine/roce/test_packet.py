"""Headers out and in again; whole packets; what is no packet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.roce import packet as p
from p2prw.engine.roce.opcodes import RcOpcode
from p2prw.errors import RemoteProtocolError

U8, U24, U32, U64 = (st.integers(0, (1 << n) - 1) for n in (8, 24, 32, 64))


@given(U8, U24, U24, st.booleans(), st.integers(0, 3), st.booleans())
def test_bth_comes_back(opcode, qpn, psn, asks, pad, solicited):
    data = p.push_bth(opcode, qpn, psn, ack_request=asks, pad_bytes=pad, solicited=solicited)
    assert len(data) == 12
    assert p.pull_bth(data) == p.Bth(opcode, solicited, True, pad, 0, 0xFFFF, qpn, asks, psn)


@given(U64, U32, U32)
def test_reth_comes_back(address, rkey, length):
    assert p.pull_reth(b"x" + p.push_reth(address, rkey, length), 1) == (address, rkey, length)


@given(U8, U24)
def test_aeth_comes_back(syndrome, msn):
    assert p.pull_aeth(p.push_aeth(syndrome, msn), 0) == (syndrome, msn)


def test_msn_wraps():
    assert p.pull_aeth(p.push_aeth(0x1F, 0x1000001), 0).msn == 1


@given(st.binary(max_size=9), U32)
def test_whole_write_comes_back(payload, icrc):
    opcode = RcOpcode.WRITE_ONLY_WITH_IMM
    bth = p.push_bth(opcode, 0x11, 5, pad_bytes=-len(payload) & 3)
    data = p.push_packet(bth, p.push_reth(1, 2, len(payload)) + b"immd", payload, icrc)
    found = p.pull_packet(data)
    assert (found.reth, found.imm_data, found.payload, found.icrc) == ((1, 2, len(payload)), b"immd", payload, icrc)
    assert found.aeth is None


@given(st.binary(max_size=80))
def test_anything_is_a_packet_or_a_remote_protocol_error(data):
    try:
        assert p.pull_packet(data).bth.opcode == data[0]
    except RemoteProtocolError as error:
        assert error.code in ("runt", "unknown_opcode")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "runt"),
        (bytes(15), "runt"),
        (bytes([0x0C]) + bytes(20), "runt"),  # a READ request without its RETH
        (bytes([0x0A, 0x30]) + bytes(30), "runt"),  # pad that eats the headers
        (bytes([0x15]) + bytes(20), "unknown_opcode"),
        (bytes([0x04, 0x01]) + bytes(20), "unknown_opcode"),  # TVer 1
    ],
)
def test_what_is_no_packet(data, code):
    with pytest.raises(RemoteProtocolError) as caught:
        p.pull_packet(data)
    assert caught.value.code == code


def test_rnr_timers_are_in_ascending_order_but_for_code_0():
    assert len(p.RNR_TIMER_MS) == 32
    assert list(p.RNR_TIMER_MS[1:]) == sorted(p.RNR_TIMER_MS[1:])
    assert p.RNR_TIMER_MS[0] == 655.36
    assert p.RNR_TIMER_MS[12] == 0.64
