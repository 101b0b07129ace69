"""Bursts made by a `Run` are those that the careful way makes, whatever comes between; and it does make them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.model import Opcode, Sge, WcStatus
from p2prw.engine.roce.outgoing import Run

MIB = 1 << 20
MTU = 4096

steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 120 * MTU)),
        # Whole packets to the end, short messages among them.
        st.tuples(
            st.sampled_from(["write", "read"]),
            st.one_of(st.integers(1, 4), st.integers(14, 120)).map(lambda n: n * MTU),
        ),
        st.tuples(st.just("read"), st.integers(1, 20 * MTU)),
        st.tuples(st.sampled_from(["carry", "lose"]), st.integers(1, 12)),
        st.tuples(st.sampled_from(["answer", "lose_answers", "time", "singles", "revoke"]), st.just(0)),
        st.tuples(st.just("window"), st.integers(1, 2 * MIB)),
    ),
    min_size=4,
    max_size=25,
)


def play(lab: Any, scenario: list[tuple[str, int]], *, trains: bool = False, takes: bool = False) -> list[Any]:
    """Return everything one end sent and completed, and what the other one received."""
    link = lab.connected_devices(b_memory=MIB, timeout=14, retry_cnt=2)
    link.trains, link.takes = trains, takes
    sent: list[Any] = []
    for number, (step, value) in enumerate([("write", 100 * MTU), *scenario]):
        match step:
            case "write" | "read":
                if link.a.registration.vec and link.a.queue_pair.state.name == "RTS":
                    getattr(link, step)(number, value % 1000, value)
            case "carry" | "lose":
                bursts = link.collect(link.a, max_bursts=value)
                sent += [(b.segment_bytes, b.packets, b"".join(b.buffers)) for b in bursts]
                if step == "carry":
                    link.receive(link.b, bursts)
            case "answer":
                link.deliver(link.b)
            case "lose_answers":
                link.drop(link.b)
            case "time":
                at = link.a.device.next_timer()
                sent.append(at)
                if at is not None:
                    link.now = max(link.now, at)
                    link.a.device.handle_timer(link.now)
            case "window":
                link.a.queue_pair.set_window(value)
            case "singles":
                link.a.queue_pair.requester.connection.stop_segmenting()
            case "revoke":
                link.a.registration.close()
        sent += link.poll()
        requester = link.a.queue_pair.requester
        sent.append((requester.send_psn, requester.bytes_in_flight, requester.asked_bytes, requester.deadline))
    ends = [(end.queue_pair.counters, end.device.counters, end.data) for end in (link.a, link.b)]
    return [*sent, *ends]


@given(scenario=steps)
def test_a_run_sends_what_the_careful_way_sends(lab, scenario):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "of", lambda *_: None)
        careful = play(lab, scenario)
    assert play(lab, scenario) == careful


@given(scenario=steps)
def test_trains_are_what_the_careful_way_sends(lab, scenario):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "of", lambda *_: None)
        careful = play(lab, scenario)
    assert play(lab, scenario, trains=True) == careful


@given(scenario=steps)
def test_what_is_taken_as_awaited_is_what_the_careful_way_takes(lab, scenario):
    assert play(lab, scenario, trains=True, takes=True) == play(lab, scenario)


def test_a_message_is_one_train_and_all_but_its_first_packet_is_taken_as_a_run(connected_devices, monkeypatch):
    link = connected_devices(b_memory=MIB)
    link.trains = link.takes = True
    link.a.queue_pair.set_window(2 * MIB)
    made: list[tuple[int, int]] = []
    taken: list[int] = []
    plain_train, responder = Run.train, link.b.queue_pair.responder
    plain_took = responder.took_run

    def train(self, *arguments):
        found = plain_train(self, *arguments)
        if found is not None:
            made.append((found.sends, len(found.data) // MTU))
        return found

    def took_run(packets, *more):
        taken.append(packets)
        plain_took(packets, *more)

    monkeypatch.setattr(Run, "train", train)
    monkeypatch.setattr(responder, "took_run", took_run)
    for number, pages in enumerate((40, 2, 16, 40)):
        link.write(number, 0, pages * MTU)
    link.settle()
    assert [completion.status for completion in link.poll()] == 4 * [WcStatus.SUCCESS]
    assert made == [(4, 40), (2, 2), (2, 16), (4, 40)]
    assert sum(taken) == sum((40, 2, 16, 40)) - 4
    assert link.a.data[: 40 * MTU] == link.b.data[: 40 * MTU]


@pytest.fixture
def made(monkeypatch):
    """Counts the bursts that runs made."""
    counted: list[int] = []
    plain = Run.next_burst

    def count(self, requester):
        burst = plain(self, requester)
        if burst is not None:
            counted.append(burst.packets)
        return burst

    monkeypatch.setattr(Run, "next_burst", count)
    return counted


def test_all_full_bursts_are_made_by_a_run(connected_devices, made):
    link = connected_devices(b_memory=MIB)
    link.a.queue_pair.set_window(2 * MIB)
    link.write(1, 0, MIB)
    assert [burst.packets for burst in link.deliver(link.a)] == [1] + 17 * [15]
    assert made == 16 * [15], "what the LAST rides in is no full burst of MIDDLEs"
    link.settle()
    assert [completion.status for completion in link.poll()] == [WcStatus.SUCCESS]
    assert link.a.data == link.b.data


def test_memory_of_several_pieces_or_without_a_view_makes_no_run(lab, connected_devices, made):
    pieces = [lab.PlainBuffer(lab.pattern(MIB // 2)), lab.PlainBuffer(lab.pattern(MIB // 2, 2))]
    for memory in (pieces, [lab.DeviceBuffer(lab.pattern(MIB))]):
        link = connected_devices(a_memory=memory, b_memory=MIB)
        link.write(1, 0, MIB)
        link.settle()
        assert link.a.data == link.b.data
    # The second piece of the first memory is long enough for one.
    assert set(made) <= {15}
    assert len(made) < 10


def test_a_key_that_is_revoked_in_the_middle_fails_the_write(connected_devices, made):
    link = connected_devices(b_memory=MIB)
    link.write(1, 0, MIB)
    link.receive(link.b, link.collect(link.a, max_bursts=4))
    link.a.registration.close()
    link.settle()
    assert made
    assert [completion.status for completion in link.poll()] == [WcStatus.LOC_PROT_ERR]


def test_no_sge_is_read_beyond_its_end(connected_devices, made):
    link = connected_devices(a_memory=4 * MIB, b_memory=4 * MIB)
    (segment,) = link.a.registration.vec
    remote = link.b.registration.remote_segments()[0]
    sges = (Sge(segment.address + 5, MIB - 3, segment.lkey),)
    link.a.queue_pair.post_rdma(1, Opcode.RDMA_WRITE, sges, remote.address, remote.rkey, signaled=True)
    link.settle()
    assert made
    assert link.b.data[: MIB - 3] == link.a.data[5 : MIB + 2]
