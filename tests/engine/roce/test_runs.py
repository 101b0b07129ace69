"""The two hot loops, each against the plain way of doing the same."""

from __future__ import annotations

import pytest

from p2prw.engine.roce.burst import Connection
from p2prw.engine.roce.icrc import Flow
from p2prw.engine.roce.opcodes import RcOpcode
from p2prw.engine.roce.packet import BTH, pull_bth
from p2prw.engine.roce.runs import build_run, receive_run

MTU = 256
SEGMENT = MTU + 16
OPCODE = RcOpcode.WRITE_MIDDLE


@pytest.fixture
def connection():
    return Connection(Flow((b"\x7f\0\0\1", 1), (b"\x7f\0\0\2", 2)), ("127.0.0.2", 2), 0x11, MTU, 64)


def run_of(connection, count, psn, data, ack_last=True):
    sent, masked = connection.prefix(OPCODE)
    seeds = connection.flow.prefixed_seeds(masked, SEGMENT, count)
    return bytearray(b"".join(build_run(sent, seeds, psn, memoryview(data), MTU, count, ack_last=ack_last))), seeds


@pytest.mark.parametrize("count", [1, 2, 15])
@pytest.mark.parametrize("ack_last", [True, False])
@pytest.mark.parametrize("psn", [5, 0xFFFFFE])
def test_a_run_is_the_same_as_its_packets_one_by_one(connection, lab, count, ack_last, psn):
    data = lab.pattern(count * MTU)
    wire, _ = run_of(connection, count, psn, data, ack_last)
    slow = b""
    for i in range(count):
        piece = [memoryview(data)[i * MTU : (i + 1) * MTU]]
        asks = ack_last and i == count - 1
        buffers, size = connection.packet(OPCODE, psn + i, b"", piece, MTU, ack_request=asks, index=i)
        assert size == SEGMENT
        slow += b"".join(buffers)
    assert wire == slow


def receive(wire, seeds, psn, count, index=0, offset=3):
    target = bytearray(offset + count * MTU + 1)
    word0, word1, _ = BTH.unpack_from(wire, 0)
    view = memoryview(wire)
    result = receive_run(view, 0, count, MTU, word0 << 32 | word1, psn, seeds, index, memoryview(target), offset)
    return result, bytes(target)


@pytest.mark.parametrize("psn", [5, 0xFFFFFE])
def test_a_good_run_is_taken_whole(connection, lab, psn):
    data = lab.pattern(4 * MTU)
    wire, seeds = run_of(connection, 4, psn, data)
    assert receive(wire, seeds, psn, 4) == ((4, True), bytes(3) + data + bytes(1))
    wire, seeds = run_of(connection, 4, psn, data, ack_last=False)
    assert receive(wire, seeds, psn, 4) == ((4, False), bytes(3) + data + bytes(1))


def ill_opcode(wire, at):
    wire[at] = RcOpcode.WRITE_LAST


def ill_psn(wire, at):
    wire[at + 11] ^= 1


def ill_qpn(wire, at):
    wire[at + 7] ^= 1


def ill_data(wire, at):
    wire[at + 100] ^= 1


def ill_icrc(wire, at):
    wire[at + SEGMENT - 1] ^= 1


def ill_pad(wire, at):
    wire[at + 1] |= 0x10


@pytest.mark.parametrize("damage", [ill_opcode, ill_psn, ill_qpn, ill_data, ill_icrc, ill_pad])
@pytest.mark.parametrize("place", [0, 2])
def test_the_run_ends_before_the_first_packet_that_is_not_as_expected(connection, lab, damage, place):
    data = lab.pattern(4 * MTU)
    wire, seeds = run_of(connection, 4, 5, data)
    word0, word1, _ = BTH.unpack_from(wire, 0)
    damage(wire, place * SEGMENT)
    target = bytearray(4 * MTU)
    done, asked = receive_run(memoryview(wire), 0, 4, MTU, word0 << 32 | word1, 5, seeds, 0, memoryview(target), 0)
    assert (done, asked) == (place, False)
    assert target == data[: place * MTU] + bytes((4 - place) * MTU)


def test_switch_marks_are_let_through(connection, lab):
    data = lab.pattern(2 * MTU)
    wire, seeds = run_of(connection, 2, 5, data)
    wire[SEGMENT + 4] = 0x80
    assert receive(wire, seeds, 5, 2)[0] == (2, True)


def test_without_seeds_nothing_is_checked(connection, lab):
    data = lab.pattern(2 * MTU)
    wire, _ = run_of(connection, 2, 5, data)
    ill_icrc(wire, SEGMENT)
    assert receive(wire, None, 5, 2) == ((2, True), bytes(3) + data + bytes(1))


def test_a_seed_belongs_to_a_place_in_the_burst(connection, lab):
    wire, seeds = run_of(connection, 2, 5, lab.pattern(2 * MTU))
    assert receive(wire, [*seeds, 0], 5, 2, index=1)[0] == (0, False)
    assert pull_bth(wire).psn == 5
