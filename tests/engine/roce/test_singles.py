"""Runs of whole messages of one packet each, against the plain way of doing the same."""

from __future__ import annotations

import random

import pytest

from p2prw.engine.model import Access
from p2prw.engine.roce.burst import MAX_BURST_BYTES, Connection
from p2prw.engine.roce.icrc import Flow
from p2prw.engine.roce.memory_table import MemoryTable
from p2prw.engine.roce.opcodes import RcOpcode
from p2prw.engine.roce.packet import ACK_REQUEST, BTH, PSN_WORD, push_aeth, push_reth
from p2prw.engine.roce.psn import PSN_MASK
from p2prw.engine.roce.singles import receive_writes, responses_in

COUNT = 4
WRITE, RESPONSE = RcOpcode.WRITE_ONLY, RcOpcode.READ_RESPONSE_ONLY


@pytest.fixture
def connection():
    return Connection(Flow((b"\x7f\0\0\1", 1), (b"\x7f\0\0\2", 2)), ("127.0.0.2", 2), 0x11, 4096, 64)


@pytest.fixture
def memory(lab):
    """Return a table, the registration of COUNT * 4096 bytes, and the buffer behind it."""
    table = MemoryTable(random.Random(3).getrandbits)
    buffer = lab.PlainBuffer(bytes(COUNT * 4096))
    return table, table.register([buffer], Access.LOCAL_WRITE | Access.REMOTE_WRITE), buffer


def extensions(opcode, segment, length):
    if opcode == WRITE:
        return [push_reth(segment.address + i * 4096, segment.lkey, length) for i in range(COUNT)]
    return [push_aeth(0x1F, i) for i in range(COUNT)]


def burst_of(connection, opcode, psn, extension, pieces):
    heads = [PSN_WORD.pack(psn + i & PSN_MASK) + extension[i] for i in range(len(pieces))]
    if opcode == WRITE:
        heads[-1] = PSN_WORD.pack(psn + len(pieces) - 1 & PSN_MASK | ACK_REQUEST) + extension[-1]
    return connection.singles(opcode, heads, pieces)


@pytest.mark.parametrize("opcode", [WRITE, RESPONSE])
@pytest.mark.parametrize("length", [1, 3, 64, 1024, 1025, 4095, 4096])
@pytest.mark.parametrize("psn", [5, 0xFFFFFE])
def test_a_run_is_the_same_as_its_packets_one_by_one(connection, memory, lab, opcode, length, psn):
    extension = extensions(opcode, memory[1].vec[0], length)
    pieces = [memoryview(lab.pattern(length, i)) for i in range(COUNT)]
    burst = burst_of(connection, opcode, psn, extension, pieces)
    slow = b""
    for i in range(COUNT):
        asks = opcode == WRITE and i == COUNT - 1
        buffers, size = connection.packet(opcode, psn + i, extension[i], [pieces[i]], length, ack_request=asks, index=i)
        assert size == burst.segment_bytes
        slow += b"".join(buffers)
    assert b"".join(burst.buffers) == slow
    assert (burst.length_bytes, burst.packets) == (len(slow), COUNT)


def test_a_burst_of_messages_fits_one_send(connection):
    assert connection.singles_of(64) == 64
    assert connection.singles_of(4096) == MAX_BURST_BYTES // 4096
    connection.stop_segmenting()
    assert (connection.singles_of(64), connection.max_segments) == (1, 1)


def received(connection, memory, wire, psn, length, *, seeds=True):
    table, _, buffer = memory
    view = memoryview(wire)
    word0, word1, _ = BTH.unpack_from(view)
    sent, masked = connection.prefix(word0 >> 24, -length & 3)
    assert bytes(view[:8]) == sent
    known = connection.flow.prefixed_seeds(masked, len(wire) // COUNT, COUNT) if seeds else None
    common = (view, 0, COUNT, length, word0 << 32 | word1, psn, known, 0)
    if word0 >> 24 == RESPONSE:
        return responses_in(*common)
    count, asked = receive_writes(*common, table, int(Access.REMOTE_WRITE))
    for i in range(COUNT):
        there = bytes(buffer.data[i * 4096 : i * 4096 + length])
        assert any(there) == (i < count), "a packet that was not taken moved a byte"
    return count, asked


@pytest.mark.parametrize("length", [1, 62, 1500])
@pytest.mark.parametrize("psn", [5, 0xFFFFFE])
def test_a_good_run_is_taken_whole(connection, memory, length, psn):
    pieces = [bytes([i + 1]) * length for i in range(COUNT)]
    wire = b"".join(burst_of(connection, WRITE, psn, extensions(WRITE, memory[1].vec[0], length), pieces).buffers)
    assert received(connection, memory, wire, psn, length) == (COUNT, True)
    assert [bytes(memory[2].data[i * 4096 : i * 4096 + length]) for i in range(COUNT)] == pieces
    wire = b"".join(burst_of(connection, RESPONSE, psn, extensions(RESPONSE, None, length), pieces).buffers)
    assert received(connection, memory, wire, psn, length) == COUNT


def spoilt(wire, segment_bytes, at):
    wire = bytearray(wire)
    wire[2 * segment_bytes + at] ^= 1
    return wire


# Bytes of a WRITE ONLY: 5 QPN, 11 PSN, 19 address, 23 rkey, 27 length, 28 data. Of a response: 12 syndrome.
@pytest.mark.parametrize(
    ("opcode", "at", "seen_without_icrc"),
    [
        *((WRITE, at, True) for at in (0, 7, 11, 13, 23, 27)),
        *((WRITE, at, False) for at in (28, -1)),
        *((RESPONSE, at, True) for at in (0, 7, 11)),
        *((RESPONSE, at, False) for at in (16, -1)),
    ],
)
def test_the_third_packet_is_not_as_expected(connection, memory, opcode, at, seen_without_icrc):
    length, psn = 64, 9
    pieces = [bytes([i + 1]) * length for i in range(COUNT)]
    burst = burst_of(connection, opcode, psn, extensions(opcode, memory[1].vec[0], length), pieces)
    wire = spoilt(b"".join(burst.buffers), burst.segment_bytes, at if at >= 0 else burst.segment_bytes + at)
    two = (2, False) if opcode == WRITE else 2
    whole = (COUNT, True) if opcode == WRITE else COUNT
    assert received(connection, memory, wire, psn, length) == two
    memory[2].data[:] = bytes(len(memory[2].data))
    unchecked = received(connection, memory, wire, psn, length, seeds=False)
    assert unchecked == (two if seen_without_icrc else whole)


def test_a_write_out_of_range_or_without_right_ends_the_run(connection, memory, lab):
    segment, length = memory[1].vec[0], 64
    beyond = extensions(WRITE, segment, length)
    beyond[1] = push_reth(segment.address + segment.length_bytes - length + 1, segment.lkey, length)
    pieces = [bytes([i + 1]) * length for i in range(COUNT)]
    wire = b"".join(burst_of(connection, WRITE, 1, beyond, pieces).buffers)
    assert received(connection, memory, wire, 1, length) == (1, False)
    memory[2].data[:] = bytes(len(memory[2].data))
    readable = memory[0].register([lab.PlainBuffer(bytes(4096))], Access.REMOTE_READ).vec[0]
    beyond[0] = push_reth(readable.address, readable.lkey, length)
    wire = b"".join(burst_of(connection, WRITE, 1, beyond, pieces).buffers)
    assert received(connection, memory, wire, 1, length) == (0, False)


def test_device_memory_without_a_view_is_left_to_the_careful_path(connection, memory, lab):
    device = memory[0].register([lab.DeviceBuffer(bytes(4 * 4096))], Access.LOCAL_WRITE | Access.REMOTE_WRITE).vec[0]
    wire = b"".join(burst_of(connection, WRITE, 1, extensions(WRITE, device, 64), [b"\1" * 64] * COUNT).buffers)
    assert received(connection, memory, wire, 1, 64) == (0, False)
