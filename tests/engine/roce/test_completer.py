"""Answers and losses: numbered scenarios, each a sentence, stepped by hand."""

from __future__ import annotations

import pytest

from p2prw.engine.model import WcStatus
from p2prw.engine.roce.opcodes import RcOpcode
from p2prw.engine.roce.packet import push_aeth

PSN = 0x1000
PAGE = 4096
TIMEOUT_S = 4.096e-6 * 2**17


def counters(link):
    return link.a.queue_pair.counters


def test_loss_1_the_only_packet_is_lost_and_sent_again_when_the_timer_fires(connected_devices, lab):
    link = connected_devices()
    link.write(1, 0, 100)
    assert link.a.device.next_timer() is None
    lost = link.drop(link.a)
    assert link.a.device.next_timer() == pytest.approx(link.now + TIMEOUT_S)
    assert link.a.queue_pair.bytes_in_flight == 100
    link.a.device.handle_timer(link.now + TIMEOUT_S * 0.99)
    assert link.collect(link.a) == []
    link.now += TIMEOUT_S
    link.a.device.handle_timer(link.now)
    assert link.a.device.next_timer() is None
    assert link.a.queue_pair.bytes_in_flight == 0
    again = link.deliver(link.a)
    assert b"".join(again[0].buffers) == b"".join(lost[0].buffers)
    assert link.a.device.next_timer() == pytest.approx(link.now + TIMEOUT_S)
    link.deliver(link.b)
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]
    assert link.a.device.next_timer() is None
    assert (counters(link).timeouts, counters(link).retransmitted_packets) == (1, 1)


def test_loss_2_a_packet_in_the_middle_is_lost_and_the_nak_makes_us_resume_with_middle(connected_devices, lab):
    link = connected_devices(gso_segments=1)
    link.write(1, 0, 6 * PAGE)
    bursts = link.collect(link.a)
    link.receive(link.b, bursts[:2] + bursts[3:])
    naks = link.collect(link.b)
    # One NAK though three packets came ahead, and no ACK past it.
    assert [(p.bth.psn, p.aeth.syndrome) for p in lab.packets(naks)] == [(PSN + 2, 0x60)]
    link.receive(link.a, naks)
    assert counters(link).sequence_naks == 1
    assert link.a.queue_pair.bytes_in_flight == 0
    again = link.collect(link.a)
    assert [(name, psn) for name, psn, _ in lab.requests(again)] == [
        ("WRITE_MIDDLE", PSN + 2),
        ("WRITE_MIDDLE", PSN + 3),
        ("WRITE_MIDDLE", PSN + 4),
        ("WRITE_LAST", PSN + 5),
    ]
    assert link.a.queue_pair.bytes_in_flight == 4 * PAGE
    link.receive(link.b, again)
    link.settle()
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]
    assert link.b.data[: 6 * PAGE] == link.a.data[: 6 * PAGE]
    assert counters(link).timeouts == 0


def test_loss_3_a_second_nak_for_the_same_gap_does_not_start_a_second_retry(connected_devices):
    link = connected_devices(gso_segments=1)
    link.write(1, 0, 4 * PAGE)
    bursts = link.collect(link.a)
    link.receive(link.b, bursts[1:])
    naks = link.collect(link.b)
    link.receive(link.a, naks + naks)
    assert counters(link).sequence_naks == 2
    assert link.a.queue_pair.requester.retries_left == 5
    assert len(link.collect(link.a)) == 4
    link.receive(link.a, naks)
    assert link.collect(link.a) == []


def test_loss_4_the_ack_is_lost_and_the_duplicate_is_acknowledged_but_not_executed_again(connected_devices):
    link = connected_devices()
    link.write(1, 0, 100)
    link.deliver(link.a)
    link.drop(link.b)
    # What the server's own program wrote after the message must survive the duplicate.
    link.b.memory[0].data[0] ^= 0xFF
    kept = link.b.data
    link.run_timers()
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]
    assert link.b.data == kept
    assert link.b.queue_pair.counters.duplicates == 1


def test_loss_5_acks_are_cumulative(connected_devices):
    link = connected_devices()
    for i in range(4):
        link.write(i, 0, 100)
        link.deliver(link.a)
    answers = link.collect(link.b)
    assert len(answers) == 1
    link.receive(link.a, answers)
    assert [c.wr_id for c in link.poll()] == [0, 1, 2, 3]


def test_loss_6_read_responses_are_lost_in_the_middle_and_asked_for_from_the_gap(connected_devices, lab):
    """A response ahead of the gap is an implied NAK: the READ is restarted at once, without the timer."""
    link = connected_devices(gso_segments=1)
    link.read(1, 0, 6 * PAGE)
    link.deliver(link.a)
    responses = link.collect(link.b)
    link.receive(link.a, responses[:2] + responses[3:])
    again = lab.packets(link.collect(link.a))
    assert [(p.bth.psn, p.reth.length_bytes) for p in again] == [(PSN + 2, 4 * PAGE)]
    remote = link.b.registration.remote_segments()[0]
    assert again[0].reth.remote_addr == remote.address + 2 * PAGE
    link.a.device.handle_timer(link.now + 10)
    link.now += 10
    link.deliver(link.a)
    restarted = link.collect(link.b)
    assert [(RcOpcode(p.bth.opcode).name, p.bth.psn) for p in lab.packets(restarted)] == [
        ("READ_RESPONSE_FIRST", PSN + 2),
        ("READ_RESPONSE_MIDDLE", PSN + 3),
        ("READ_RESPONSE_MIDDLE", PSN + 4),
        ("READ_RESPONSE_LAST", PSN + 5),
    ]
    link.receive(link.a, restarted)
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]
    assert link.a.data[: 6 * PAGE] == link.b.data[: 6 * PAGE]


@pytest.mark.parametrize("opcode", [RcOpcode.READ_RESPONSE_FIRST, RcOpcode.READ_RESPONSE_MIDDLE])
def test_loss_7_a_restart_may_begin_with_first_or_with_middle(connected_devices, lab, opcode):
    """rxe answers a mid-range restart with MIDDLE...LAST, others with FIRST: the PSN decides, not the opcode."""
    link = connected_devices(gso_segments=1)
    link.read(1, 0, 4 * PAGE)
    link.deliver(link.a)
    responses = link.collect(link.b)
    link.receive(link.a, [responses[0], responses[2]])
    link.drop(link.a)
    data = link.b.data
    aeth = push_aeth(0x1F, 1) if opcode == RcOpcode.READ_RESPONSE_FIRST else b""
    link.inject(link.a, opcode, PSN + 1, aeth, data[PAGE : 2 * PAGE])
    link.receive(link.a, responses[2:])
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]
    assert link.a.data[: 4 * PAGE] == data[: 4 * PAGE]


def test_loss_8_an_ack_beyond_an_incomplete_read_restarts_the_read(connected_devices, lab):
    link = connected_devices()
    link.read(1, 0, 2 * PAGE)
    link.write(2, 0, 10, 50_000)
    link.deliver(link.a)
    answers = link.collect(link.b)
    assert [RcOpcode(p.bth.opcode).name for p in lab.packets(answers)] == [
        "READ_RESPONSE_FIRST",
        "READ_RESPONSE_LAST",
        "ACKNOWLEDGE",
    ]
    link.receive(link.a, answers[-1:])
    assert link.poll() == []
    assert lab.requests(link.deliver(link.a)) == [("READ_REQUEST", PSN, True), ("WRITE_ONLY", PSN + 2, True)]
    link.settle()
    assert [c.wr_id for c in link.poll()] == [1, 2]
    assert counters(link).timeouts == 0


def test_loss_9_a_read_response_acknowledges_the_writes_before_it(connected_devices, lab):
    link = connected_devices()
    link.write(1, 0, 10)
    link.read(2, 0, 10)
    link.deliver(link.a)
    answers = link.collect(link.b)
    link.receive(link.a, [b for b in answers if lab.packets([b])[0].bth.opcode != RcOpcode.ACKNOWLEDGE])
    assert [c.wr_id for c in link.poll()] == [1, 2]


def test_loss_10_everything_is_lost_until_the_retries_are_used_up(connected_devices):
    link = connected_devices(retry_cnt=2)
    link.write(1, 0, 10)
    link.write(2, 0, 10)
    for _ in range(3):
        assert sum(burst.packets for burst in link.drop(link.a)) == 2
        link.now += TIMEOUT_S + 0.001
        link.a.device.handle_timer(link.now)
    assert [(c.wr_id, c.status) for c in link.poll()] == [(1, WcStatus.RETRY_EXC_ERR), (2, WcStatus.WR_FLUSH_ERR)]
    assert counters(link).timeouts == 3
    assert link.collect(link.a) == []
    assert link.a.device.next_timer() is None
    assert "ERR" in repr(link.a.queue_pair)


def test_loss_11_progress_gives_fresh_retries(connected_devices):
    link = connected_devices(retry_cnt=1, gso_segments=1)
    link.a.queue_pair.set_window(PAGE)
    link.write(1, 0, 6 * PAGE)
    for _ in range(6):
        link.drop(link.a)
        link.now += TIMEOUT_S + 0.001
        link.a.device.handle_timer(link.now)
        link.deliver(link.a)
        link.deliver(link.b)
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]
    assert counters(link).timeouts == 6


def test_loss_12_retry_cnt_7_is_seven_not_for_ever(connected_devices):
    link = connected_devices(retry_cnt=7)
    link.write(1, 0, 10)
    for _ in range(8):
        assert link.poll() == []
        link.drop(link.a)
        link.now += 1
        link.a.device.handle_timer(link.now)
    assert [c.status for c in link.poll()] == [WcStatus.RETRY_EXC_ERR]


def test_loss_13_timeout_0_waits_for_ever(connected_devices):
    link = connected_devices(timeout=0)
    link.write(1, 0, 10)
    link.drop(link.a)
    assert link.a.device.next_timer() is None


def test_loss_14_reordered_bursts_arrive_whole(connected_devices):
    """The NAK for the gap that closed by itself is taken back, so nothing is sent twice."""
    link = connected_devices()
    link.write(1, 0, 16 * PAGE)
    link.write(2, 0, 10, 500_000)
    bursts = link.collect(link.a)
    link.receive(link.b, [bursts[0], bursts[2], bursts[1], bursts[2]])
    link.settle()
    assert [c.wr_id for c in link.poll()] == [1, 2]
    assert counters(link).retransmitted_packets == 0
    assert counters(link).sequence_naks == 0


def test_loss_15_an_old_answer_after_a_retry_makes_the_resend_pointless(connected_devices):
    link = connected_devices()
    link.write(1, 0, 16 * PAGE)
    link.deliver(link.a)
    late = link.collect(link.b)
    link.now += 1
    link.a.device.handle_timer(link.now)
    link.receive(link.a, late)
    assert link.collect(link.a) == []
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]


def test_loss_16_a_revoked_local_key_stops_a_resend(connected_devices):
    """No copy is kept: what is sent again is read again."""
    link = connected_devices()
    link.write(1, 0, 10)
    link.drop(link.a)
    link.a.registration.close()
    link.now += 1
    link.a.device.handle_timer(link.now)
    assert link.collect(link.a) == []
    assert [c.status for c in link.poll()] == [WcStatus.LOC_PROT_ERR]


@pytest.mark.parametrize(
    ("syndrome", "status"),
    [(0x61, WcStatus.REM_INV_REQ_ERR), (0x62, WcStatus.REM_ACCESS_ERR), (0x63, WcStatus.REM_OP_ERR)],
)
def test_a_fatal_nak_fails_its_request_completes_earlier_and_flushes_later_ones(connected_devices, syndrome, status):
    link = connected_devices()
    for i in range(3):
        link.write(i, 0, 10)
    link.drop(link.a)
    link.inject(link.a, RcOpcode.ACKNOWLEDGE, PSN + 1, push_aeth(syndrome, 1))
    assert [(c.wr_id, c.status) for c in link.poll()] == [
        (0, WcStatus.SUCCESS),
        (1, status),
        (2, WcStatus.WR_FLUSH_ERR),
    ]
    link.write(3, 0, 10)
    assert [(c.wr_id, c.status) for c in link.poll()] == [(3, WcStatus.WR_FLUSH_ERR)]


@pytest.mark.parametrize("syndrome", [0x40, 0x5F, 0x64, 0x7F, 0x80, 0xFF])
def test_reserved_syndromes_mean_nothing(connected_devices, syndrome):
    link = connected_devices()
    link.write(1, 0, 10)
    link.drop(link.a)
    link.inject(link.a, RcOpcode.ACKNOWLEDGE, PSN, push_aeth(syndrome, 1))
    assert link.poll() == []
    assert link.a.queue_pair.bytes_in_flight == 10


def test_credits_are_ignored(connected_devices):
    link = connected_devices()
    link.write(1, 0, 10)
    link.drop(link.a)
    link.inject(link.a, RcOpcode.ACKNOWLEDGE, PSN, push_aeth(0x00, 1))
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]


@pytest.mark.parametrize("psn", [PSN - 1, PSN + 1, PSN + 0x7FFFFF, PSN + 0x800000])
@pytest.mark.parametrize("syndrome", [0x1F, 0x60, 0x62, 0x21])
def test_answers_about_what_was_never_sent_are_ignored(connected_devices, psn, syndrome):
    link = connected_devices()
    link.write(1, 0, 10)
    link.drop(link.a)
    link.inject(link.a, RcOpcode.ACKNOWLEDGE, psn, push_aeth(syndrome, 1))
    assert link.poll() == []
    assert link.a.queue_pair.bytes_in_flight == 10


def test_rnr_waits_the_time_it_was_told_then_sends_from_there(connected_devices, lab):
    """Code 12 is 0.64 ms; the ACK timer does not run meanwhile."""
    link = connected_devices(min_rnr_timer=12)
    link.a.queue_pair.post_send(1, link.a.sges(0, 10), signaled=True)
    link.deliver(link.a)
    link.deliver(link.b)
    assert link.a.device.next_timer() == pytest.approx(link.now + 0.64e-3)
    assert link.collect(link.a) == []
    link.a.device.handle_timer(link.now + 0.6e-3)
    assert link.collect(link.a) == []
    link.b.queue_pair.post_recv(9, link.b.sges(0, 100))
    link.run_timers()
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]
    assert [(c.wr_id, c.byte_len) for c in link.b.queue_pair.poll_recv()] == [(9, 10)]
    assert (counters(link).rnr_naks, counters(link).timeouts) == (1, 0)


def test_rnr_retries_are_used_up(connected_devices):
    link = connected_devices(rnr_retry=2)
    link.a.queue_pair.post_send(1, link.a.sges(0, 10), signaled=True)
    link.run_timers()
    assert [c.status for c in link.poll()] == [WcStatus.RNR_RETRY_EXC_ERR]
    assert counters(link).rnr_naks == 3


def test_rnr_retry_7_goes_on(connected_devices):
    link = connected_devices(rnr_retry=7)
    link.a.queue_pair.post_send(1, link.a.sges(0, 10), signaled=True)
    with pytest.raises(AssertionError, match="timers never stopped"):
        link.run_timers(rounds=50)
    assert link.poll() == []
    link.b.queue_pair.post_recv(9, link.b.sges(0, 10))
    link.run_timers()
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]


def test_a_response_of_the_wrong_length_is_a_bad_response(connected_devices):
    link = connected_devices()
    link.read(1, 0, 100)
    link.drop(link.a)
    link.inject(link.a, RcOpcode.READ_RESPONSE_ONLY, PSN, push_aeth(0x1F, 1), b"x" * 99)
    assert [c.status for c in link.poll()] == [WcStatus.BAD_RESP_ERR]


@pytest.mark.parametrize("kind", ["write", "none"])
def test_a_response_nobody_asked_for_is_dropped(connected_devices, kind):
    link = connected_devices()
    before = link.a.data
    if kind == "write":
        link.write(1, 0, 10)
        link.drop(link.a)
    link.inject(link.a, RcOpcode.READ_RESPONSE_ONLY, PSN, push_aeth(0x1F, 1), b"x" * 10)
    link.inject(link.a, RcOpcode.READ_RESPONSE_MIDDLE, PSN, b"", b"x" * PAGE)
    assert link.a.data == before
    assert link.poll() == []


def test_a_response_with_a_nak_syndrome_is_dropped(connected_devices):
    link = connected_devices()
    link.read(1, 0, 10)
    link.drop(link.a)
    link.inject(link.a, RcOpcode.READ_RESPONSE_ONLY, PSN, push_aeth(0x60, 1), b"x" * 10)
    assert link.poll() == []


def test_a_duplicate_response_is_counted_and_changes_nothing(connected_devices):
    link = connected_devices()
    link.read(1, 0, 10)
    link.deliver(link.a)
    responses = link.deliver(link.b)
    link.a.memory[0].data[0] ^= 0xFF
    kept = link.a.data
    link.receive(link.a, responses)
    assert link.a.data == kept
    assert counters(link).duplicates == 1


def test_read_into_memory_closed_meanwhile(connected_devices):
    link = connected_devices()
    link.read(1, 0, 10)
    link.deliver(link.a)
    link.a.registration.close()
    link.deliver(link.b)
    assert [c.status for c in link.poll()] == [WcStatus.LOC_PROT_ERR]
