"""The responder's checks in their order, and each NAK."""

from __future__ import annotations

import pytest

from p2prw.engine.model import Access, Opcode, Sge, WcStatus
from p2prw.engine.roce.opcodes import RcOpcode
from p2prw.engine.roce.packet import push_reth
from p2prw.engine.roce.state import QueuePairState

PSN = 0x1000
PAGE = 4096
R, W = Access.REMOTE_READ, Access.REMOTE_WRITE


def reth(link, length, offset=0, rkey=None):
    remote = link.b.registration.remote_segments()[0]
    return push_reth(remote.address + offset, remote.rkey if rkey is None else rkey, length)


# name, opcode, extension(link), data, NAK
REFUSED = [
    ("middle first", RcOpcode.WRITE_MIDDLE, lambda link: b"", bytes(PAGE), 0x61),
    ("last first", RcOpcode.WRITE_LAST, lambda link: b"", b"x", 0x61),
    ("send middle first", RcOpcode.SEND_MIDDLE, lambda link: b"", bytes(PAGE), 0x61),
    ("only shorter than its RETH", RcOpcode.WRITE_ONLY, lambda link: reth(link, 5), b"abcd", 0x61),
    ("only longer than its RETH", RcOpcode.WRITE_ONLY, lambda link: reth(link, 3), b"abcd", 0x61),
    ("only longer than the path MTU", RcOpcode.WRITE_ONLY, lambda link: reth(link, PAGE + 4), bytes(PAGE + 4), 0x61),
    ("first shorter than the path MTU", RcOpcode.WRITE_FIRST, lambda link: reth(link, 9000), bytes(100), 0x61),
    ("first of a message of one packet", RcOpcode.WRITE_FIRST, lambda link: reth(link, PAGE), bytes(PAGE), 0x61),
    ("longer than 2^31", RcOpcode.WRITE_FIRST, lambda link: reth(link, (1 << 31) + 1), bytes(PAGE), 0x61),
    ("READ longer than 2^31", RcOpcode.READ_REQUEST, lambda link: reth(link, (1 << 31) + 1), b"", 0x61),
    ("READ with data", RcOpcode.READ_REQUEST, lambda link: reth(link, 4), b"data", 0x61),
    ("atomic", RcOpcode.FETCH_ADD, lambda link: bytes(28), b"", 0x61),
    ("invalidate", RcOpcode.SEND_ONLY_WITH_INVALIDATE, lambda link: bytes(4), b"", 0x61),
    ("unknown rkey", RcOpcode.WRITE_ONLY, lambda link: reth(link, 4, rkey=1), b"abcd", 0x62),
    ("end out of range", RcOpcode.WRITE_ONLY, lambda link: reth(link, 4, offset=(1 << 20) - 3), b"abcd", 0x62),
    ("start out of range", RcOpcode.WRITE_ONLY, lambda link: reth(link, 4, offset=-1), b"abcd", 0x62),
    ("tail out of range", RcOpcode.WRITE_FIRST, lambda link: reth(link, (1 << 20) + 1), bytes(PAGE), 0x62),
    ("READ unknown rkey", RcOpcode.READ_REQUEST, lambda link: reth(link, 4, rkey=1), b"", 0x62),
    ("READ out of range", RcOpcode.READ_REQUEST, lambda link: reth(link, 4, offset=(1 << 20) - 3), b"", 0x62),
]


@pytest.mark.parametrize(
    ("opcode", "extension", "data", "syndrome"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused_requests_get_their_nak_touch_nothing_and_end_the_queue_pair(
    connected_devices, opcode, extension, data, syndrome
):
    link = connected_devices()
    before = link.b.data
    link.b.queue_pair.post_recv(7, link.b.sges(0, 10))
    link.b.queue_pair.post_rdma(8, Opcode.RDMA_WRITE, [], 0, 0, signaled=True)
    link.inject(link.b, opcode, PSN, extension(link), data)
    assert link.b.queue_pair.state is QueuePairState.ERR
    assert link.answers(link.b) == [("ACKNOWLEDGE", PSN, syndrome)]
    assert link.answers(link.b) == []
    assert link.b.data == before
    assert [(c.wr_id, c.status) for c in link.poll(link.b)] == [(8, WcStatus.WR_FLUSH_ERR)]
    assert [(c.wr_id, c.status) for c in link.b.queue_pair.poll_recv()] == [(7, WcStatus.WR_FLUSH_ERR)]
    link.inject(link.b, RcOpcode.WRITE_ONLY, PSN, reth(link, 1), b"x")
    assert link.answers(link.b) == []
    assert link.b.data == before


@pytest.mark.parametrize(
    ("second", "extension", "data"),
    [
        (RcOpcode.WRITE_FIRST, True, bytes(PAGE)),
        (RcOpcode.WRITE_ONLY, True, b"x"),
        (RcOpcode.READ_REQUEST, True, b""),
        (RcOpcode.SEND_LAST, False, b"x"),
        (RcOpcode.SEND_MIDDLE, False, bytes(PAGE)),
        (RcOpcode.WRITE_LAST, False, b"x" * 9),  # one byte too many
        (RcOpcode.WRITE_LAST, False, b"x" * 7),
        (RcOpcode.WRITE_LAST, False, b""),
        (RcOpcode.WRITE_MIDDLE, False, bytes(PAGE)),  # where the LAST should be
    ],
)
def test_a_message_must_go_on_as_it_began(connected_devices, second, extension, data):
    link = connected_devices()
    link.inject(link.b, RcOpcode.WRITE_FIRST, PSN, reth(link, PAGE + 8), bytes(PAGE))
    link.inject(link.b, second, PSN + 1, reth(link, 1) if extension else b"", data)
    assert link.answers(link.b)[-1] == ("ACKNOWLEDGE", PSN + 1, 0x61)


def test_wrong_padding_is_an_invalid_request(connected_devices):
    """The pad count must be that of the data: rxe checks it on the last packet of a WRITE."""
    link = connected_devices(icrc_check="off")
    connection = link.a.queue_pair.responder.connection
    buffers, _ = connection.packet(RcOpcode.WRITE_ONLY, PSN, reth(link, 4), [memoryview(b"abcd")], 4)
    raw = bytearray(b"".join(buffers)) + bytes(4)
    raw[1] |= 0x30
    source = (link.a.device.address, link.a.device.udp_port)
    link.b.device.receive_burst(memoryview(raw), len(raw), source, 0.0)
    assert link.answers(link.b) == [("ACKNOWLEDGE", PSN, 0x61)]


@pytest.mark.parametrize("opcode", [RcOpcode.WRITE_ONLY, RcOpcode.READ_REQUEST])
def test_length_0_succeeds_without_a_look_at_address_and_key(connected_devices, opcode):
    link = connected_devices()
    link.inject(link.b, opcode, PSN, push_reth(0, 0, 0), ack_request=True)
    name = "ACKNOWLEDGE" if opcode == RcOpcode.WRITE_ONLY else "READ_RESPONSE_ONLY"
    assert link.answers(link.b) == [(name, PSN, 0x1F)]


@pytest.mark.parametrize(
    ("opcode", "access", "good"),
    [
        (RcOpcode.WRITE_ONLY, W, True),
        (RcOpcode.WRITE_ONLY, R, False),
        (RcOpcode.READ_REQUEST, R, True),
        (RcOpcode.READ_REQUEST, W, False),
    ],
)
def test_rights_of_the_memory_and_of_the_queue_pair(connected_devices, opcode, access, good):
    data = b"abcd" if opcode == RcOpcode.WRITE_ONLY else b""
    link = connected_devices(b_access=access | Access.LOCAL_WRITE)
    link.inject(link.b, opcode, PSN, reth(link, 4), data, ack_request=True)
    assert link.answers(link.b)[0][2] == (0x1F if good else 0x62)
    link = connected_devices()
    link.b.queue_pair.set_access(access)
    link.inject(link.b, opcode, PSN, reth(link, 4), data, ack_request=True)
    assert link.answers(link.b)[0][2] == (0x1F if good else 0x61)


def test_packets_ahead_get_one_nak_until_the_gap_is_filled(connected_devices):
    link = connected_devices()
    for psn in (PSN + 2, PSN + 3):
        link.inject(link.b, RcOpcode.WRITE_ONLY, psn, reth(link, 1), b"x")
    assert link.answers(link.b) == [("ACKNOWLEDGE", PSN, 0x60)]
    link.inject(link.b, RcOpcode.WRITE_ONLY, PSN + 4, reth(link, 1), b"x")
    assert link.answers(link.b) == []
    link.inject(link.b, RcOpcode.WRITE_ONLY, PSN, reth(link, 1), b"x", ack_request=True)
    link.inject(link.b, RcOpcode.WRITE_ONLY, PSN + 2, reth(link, 1), b"x")
    assert link.answers(link.b) == [("ACKNOWLEDGE", PSN, 0x1F), ("ACKNOWLEDGE", PSN + 1, 0x60)]


def test_a_packet_is_executed_only_in_its_turn(connected_devices):
    link = connected_devices()
    before = link.b.data
    link.inject(link.b, RcOpcode.WRITE_ONLY, PSN + 1, reth(link, 4), b"late")
    link.inject(link.b, RcOpcode.WRITE_ONLY, PSN - 1, reth(link, 4), b"old!")
    assert link.b.data == before
    assert link.answers(link.b) == [("ACKNOWLEDGE", PSN, 0x60), ("ACKNOWLEDGE", PSN - 1, 0x1F)]


def test_no_ack_without_a_request_for_one(connected_devices):
    link = connected_devices()
    link.inject(link.b, RcOpcode.WRITE_ONLY, PSN, reth(link, 1), b"x")
    assert link.answers(link.b) == []


def test_a_revoked_key_stops_a_write_between_two_packets(connected_devices):
    link = connected_devices()
    before = link.b.data
    link.inject(link.b, RcOpcode.WRITE_FIRST, PSN, reth(link, 3 * PAGE), b"\1" * PAGE)
    link.b.registration.close()
    link.inject(link.b, RcOpcode.WRITE_MIDDLE, PSN + 1, b"", b"\2" * PAGE)
    assert link.answers(link.b) == [("ACKNOWLEDGE", PSN + 1, 0x62)]
    assert link.b.data == b"\1" * PAGE + before[PAGE:]


@pytest.mark.parametrize("kind", ["revoked", "broken"])
def test_memory_that_goes_while_a_read_is_answered(connected_devices, lab, kind):
    """What was sent stands, the rest is a NAK, and nothing else is sent."""
    memory = lab.DeviceBuffer(lab.pattern(100 * PAGE))
    link = connected_devices(b_memory=[memory])
    link.read(1, 0, 40 * PAGE)
    link.read(2, 0, 40 * PAGE)
    link.deliver(link.a)
    link.deliver(link.b, max_bursts=2)
    if kind == "revoked":
        link.b.registration.close()
    else:
        memory.is_broken = True
    link.settle()
    status = WcStatus.REM_ACCESS_ERR if kind == "revoked" else WcStatus.REM_OP_ERR
    assert [(c.wr_id, c.status) for c in link.poll()] == [(1, status), (2, WcStatus.WR_FLUSH_ERR)]
    assert link.b.queue_pair.state is QueuePairState.ERR


def test_a_write_into_memory_that_breaks_is_a_remote_operational_error(connected_devices, lab):
    memory = lab.DeviceBuffer(bytes(100))
    link = connected_devices(b_memory=[memory])
    memory.is_broken = True
    link.write(1, 0, 50)
    link.settle()
    assert [c.status for c in link.poll()] == [WcStatus.REM_OP_ERR]


# --- READ --------------------------------------------------------------------------------------------------------


def test_no_ack_passes_a_read_whose_responses_are_not_out(connected_devices):
    """READ responses are made lazily; the ACK of the WRITE behind it waits for the last of them."""
    link = connected_devices(gso_segments=1)
    link.write(0, 0, 10, 900_000)
    link.read(1, 0, 4 * PAGE)
    link.write(2, 0, 10, 900_000)
    link.write(3, 0, 10, 900_000)
    link.deliver(link.a)
    said = link.answers(link.b)
    assert [(name, psn - PSN) for name, psn, _ in said] == [
        ("ACKNOWLEDGE", 0),
        ("READ_RESPONSE_FIRST", 1),
        ("READ_RESPONSE_MIDDLE", 2),
        ("READ_RESPONSE_MIDDLE", 3),
        ("READ_RESPONSE_LAST", 4),
        ("ACKNOWLEDGE", 6),
    ]


def test_read_responses_are_read_when_they_are_sent(connected_devices, lab):
    link = connected_devices(gso_segments=1)
    link.read(1, 0, 2 * PAGE)
    link.deliver(link.a)
    (first,) = link.collect(link.b, max_bursts=1)
    link.b.memory[0].data[PAGE] = 0xAA
    (last,) = link.collect(link.b)
    assert lab.packets([last])[0].payload[0] == 0xAA
    assert lab.packets([first])[0].aeth.msn == 1


def test_a_repeated_read_is_executed_afresh_and_never_backs_up(connected_devices):
    link = connected_devices(gso_segments=1)
    link.inject(link.b, RcOpcode.READ_REQUEST, PSN, reth(link, 4 * PAGE))
    assert len(link.answers(link.b)) == 4
    link.inject(link.b, RcOpcode.READ_REQUEST, PSN + 2, reth(link, 2 * PAGE, 2 * PAGE))
    assert [(name, psn - PSN) for name, psn, _ in link.answers(link.b)] == [
        ("READ_RESPONSE_FIRST", 2),
        ("READ_RESPONSE_LAST", 3),
    ]
    link.inject(link.b, RcOpcode.READ_REQUEST, PSN + 1, reth(link, 3 * PAGE, PAGE))
    assert link.answers(link.b) == []
    link.inject(link.b, RcOpcode.READ_REQUEST, PSN + 3, reth(link, PAGE, 3 * PAGE))
    assert [(name, psn - PSN) for name, psn, _ in link.answers(link.b)] == [("READ_RESPONSE_ONLY", 3)]
    counters = link.b.queue_pair.counters
    assert counters.duplicates == 3
    assert (counters.peer_bytes, counters.peer_bytes_again) == (4 * PAGE, 3 * PAGE)


@pytest.mark.parametrize(
    ("psn", "length", "offset"),
    [(1, 4 * PAGE, PAGE), (1, 2 * PAGE, PAGE), (1, 3 * PAGE, 0), (-5, 4 * PAGE, 0)],
    ids=["beyond its end", "before its end", "other address", "never asked"],
)
def test_a_restart_that_fits_no_read_is_dropped(connected_devices, psn, length, offset):
    link = connected_devices()
    link.inject(link.b, RcOpcode.READ_REQUEST, PSN, reth(link, 4 * PAGE))
    link.drop(link.b)
    link.inject(link.b, RcOpcode.READ_REQUEST, PSN + psn, reth(link, length, offset))
    assert link.answers(link.b) == []


def test_a_restart_while_responses_wait_starts_over_in_place(connected_devices):
    link = connected_devices(gso_segments=1)
    link.inject(link.b, RcOpcode.READ_REQUEST, PSN, reth(link, 3 * PAGE))
    link.inject(link.b, RcOpcode.READ_REQUEST, PSN + 3, reth(link, 2 * PAGE))
    link.inject(link.b, RcOpcode.WRITE_ONLY, PSN + 5, reth(link, 1), b"x", ack_request=True)
    link.drop(link.b)
    link.inject(link.b, RcOpcode.READ_REQUEST, PSN + 3, reth(link, 2 * PAGE))
    link.inject(link.b, RcOpcode.READ_REQUEST, PSN + 1, reth(link, 2 * PAGE, PAGE))
    link.inject(link.b, RcOpcode.WRITE_ONLY, PSN + 5, reth(link, 1), b"x", ack_request=True)
    assert [psn - PSN for _, psn, _ in link.answers(link.b)] == [1, 2, 3, 4, 5]


def test_a_repeated_read_of_a_revoked_key_is_refused(connected_devices):
    link = connected_devices()
    link.inject(link.b, RcOpcode.READ_REQUEST, PSN, reth(link, 10))
    link.drop(link.b)
    again = reth(link, 10)
    link.b.registration.close()
    link.inject(link.b, RcOpcode.READ_REQUEST, PSN, again)
    assert link.answers(link.b) == [("ACKNOWLEDGE", PSN, 0x62)]


def test_more_reads_than_slots_are_refused(connected_devices):
    link = connected_devices(max_rd_atomic=2)
    for i in range(3):
        link.inject(link.b, RcOpcode.READ_REQUEST, PSN + i, reth(link, 10))
    assert [(psn - PSN, syndrome) for _, psn, syndrome in link.answers(link.b)] == [(0, 0x1F), (1, 0x1F), (2, 0x61)]


def test_no_slots_at_all(connected_devices):
    link = connected_devices(max_rd_atomic=0)
    link.inject(link.b, RcOpcode.READ_REQUEST, PSN, reth(link, 10))
    assert link.answers(link.b) == [("ACKNOWLEDGE", PSN, 0x61)]


# --- SEND and immediate data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, PAGE, PAGE + 1, 100_000])
@pytest.mark.parametrize("imm", [None, b"\xde\xad\xbe\xef"])
def test_send(connected_devices, length, imm):
    link = connected_devices()
    link.b.queue_pair.post_recv(5, link.b.sges(1000, 100_000))
    link.a.queue_pair.post_send(1, link.a.sges(0, length), signaled=True, imm_data=imm)
    link.settle()
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]
    (received,) = link.b.queue_pair.poll_recv()
    assert received[:4] == (5, WcStatus.SUCCESS, Opcode.SEND if imm is None else Opcode.SEND_WITH_IMM, length)
    assert received.imm_data == imm
    assert link.b.data[1000 : 1000 + length] == link.a.data[:length]


@pytest.mark.parametrize("length", [0, 5, PAGE, 3 * PAGE, 3 * PAGE - 2])
def test_write_with_immediate_data(connected_devices, length):
    link = connected_devices()
    link.b.queue_pair.post_recv(5)
    link.write(1, 0, length, imm_data=b"\1\2\3\4")
    link.settle()
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]
    (received,) = link.b.queue_pair.poll_recv()
    assert received[:4] == (5, WcStatus.SUCCESS, Opcode.RDMA_WRITE_WITH_IMM, length)
    assert received.imm_data == b"\1\2\3\4"
    assert link.b.data[:length] == link.a.data[:length]


def test_immediate_data_without_a_receive_is_rnr_and_touches_no_memory(connected_devices):
    link = connected_devices(min_rnr_timer=3)
    before = link.b.data
    imm = RcOpcode.WRITE_ONLY_WITH_IMM
    for _ in range(2):
        link.inject(link.b, imm, PSN, reth(link, 4) + b"immd", b"abcd", ack_request=True)
    assert link.answers(link.b) == [("ACKNOWLEDGE", PSN, 0x23)]
    link.inject(link.b, RcOpcode.WRITE_ONLY, PSN + 1, reth(link, 4), b"next")
    assert link.answers(link.b) == []
    assert link.b.data == before
    link.b.queue_pair.post_recv(1)
    link.inject(link.b, imm, PSN, reth(link, 4) + b"immd", b"abcd", ack_request=True)
    assert link.answers(link.b) == [("ACKNOWLEDGE", PSN, 0x1F)]
    assert link.b.data[:4] == b"abcd"


@pytest.mark.parametrize("length", [11, PAGE + 1])
def test_a_send_longer_than_its_buffer(connected_devices, length):
    link = connected_devices()
    link.b.queue_pair.post_recv(5, link.b.sges(0, 10))
    before = link.b.data
    link.a.queue_pair.post_send(1, link.a.sges(0, length), signaled=True)
    link.settle()
    assert [c.status for c in link.poll()] == [WcStatus.REM_INV_REQ_ERR]
    assert [(c.wr_id, c.status) for c in link.b.queue_pair.poll_recv()] == [(5, WcStatus.LOC_LEN_ERR)]
    assert link.b.data == before


def test_a_receive_buffer_that_is_gone(connected_devices):
    link = connected_devices()
    link.b.queue_pair.post_recv(5, link.b.sges(0, 10))
    link.b.registration.close()
    link.a.queue_pair.post_send(1, link.a.sges(0, 5), signaled=True)
    link.settle()
    assert [c.status for c in link.poll()] == [WcStatus.REM_OP_ERR]
    assert [(c.wr_id, c.status) for c in link.b.queue_pair.poll_recv()] == [(5, WcStatus.LOC_PROT_ERR)]


def test_a_message_cut_off_by_an_error_gives_its_receive_back(connected_devices):
    link = connected_devices()
    link.b.queue_pair.post_recv(5, link.b.sges(0, 3 * PAGE))
    link.inject(link.b, RcOpcode.SEND_FIRST, PSN, b"", bytes(PAGE))
    link.inject(link.b, RcOpcode.WRITE_ONLY, PSN + 1, reth(link, 1), b"x")
    assert [(c.wr_id, c.status) for c in link.b.queue_pair.poll_recv()] == [(5, WcStatus.WR_FLUSH_ERR)]
    link.b.queue_pair.post_recv(6, [Sge(*link.b.registration.vec[0])])
    assert [(c.wr_id, c.status) for c in link.b.queue_pair.poll_recv()] == [(6, WcStatus.WR_FLUSH_ERR)]


@pytest.mark.parametrize("length", [1, 100, PAGE, PAGE + 1, 40 * PAGE, 40 * PAGE + 3])
def test_what_the_peer_writes_and_reads_is_counted_once(connected_devices, length):
    link = connected_devices()
    for number in range(3):
        link.write(2 * number, 0, length)
        link.read(2 * number + 1, 0, length)
        link.settle()
    counters = link.b.queue_pair.counters
    assert (counters.peer_bytes, counters.peer_bytes_again) == (6 * length, 0)
    assert link.a.queue_pair.counters.peer_bytes == 0


def test_a_write_that_comes_again_is_not_counted_again(connected_devices):
    link = connected_devices()
    for _ in range(3):
        link.inject(link.b, RcOpcode.WRITE_ONLY, PSN, reth(link, 4), b"abcd")
    counters = link.b.queue_pair.counters
    assert (counters.peer_bytes, counters.duplicates) == (4, 2)
