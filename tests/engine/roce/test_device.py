"""The device end to end: two stacks in memory, every operation, every awkward size, and whatever else arrives."""

from __future__ import annotations

import random
import struct
import zlib
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2prw.engine.model import Opcode, QueuePairOptions, WcStatus
from p2prw.engine.roce.device import RoceDevice
from p2prw.errors import HostError

MIB = 1 << 20
SIZES = [0, 1, 3, 255, 256, 4095, 4096, 4097, 8192, 65536, MIB - 1, MIB, MIB + 1]
V6 = ("fd00::1", "fd00::2")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "how",
    [{}, {"addresses": V6}, {"fast_paths": False}, {"icrc_check": "off"}, {"gso_segments": 1}, {"mtu": 1024}],
    ids=str,
)
def test_write_then_read_back(connected_devices, size, how):
    link = connected_devices(a_memory=2 * MIB + 8, b_memory=MIB + 8, **how)
    source = link.a.data[:size]
    before = link.b.data
    link.write(1, 0, size, remote_offset=3)
    link.settle()
    assert [(c.wr_id, c.status, c.opcode, c.byte_len) for c in link.poll()] == [
        (1, WcStatus.SUCCESS, Opcode.RDMA_WRITE, size)
    ]
    assert link.b.data == before[:3] + source + before[3 + size :]
    link.read(2, MIB + 5, size, remote_offset=3)
    link.settle()
    assert [(c.wr_id, c.status) for c in link.poll()] == [(2, WcStatus.SUCCESS)]
    assert link.a.data[MIB + 5 : MIB + 5 + size] == source
    assert link.a.device.next_timer() is None
    assert link.a.queue_pair.bytes_in_flight == 0
    for end in (link.a, link.b):
        assert end.device.counters.icrc_errors == 0
        assert end.queue_pair.counters.retransmitted_packets == 0
        assert end.queue_pair.counters.duplicates == 0


@pytest.mark.parametrize("kind", ["PlainBuffer", "DeviceBuffer"])
@pytest.mark.parametrize("sizes", [[1, 4095, 5000, 3, 100_000], [7] * 16, [4096] * 8])
def test_scattered_local_memory(connected_devices, lab, kind, sizes):
    """Packet borders fall anywhere in the SGEs, with and without a plain view."""
    total = sum(sizes)
    memory = [getattr(lab, kind)(lab.pattern(size, size)) for size in sizes]
    link = connected_devices(a_memory=memory, b_memory=total + 10)
    original = link.a.data
    link.write(1, 0, total, 5)
    link.settle()
    assert link.b.data[5 : 5 + total] == original
    link.b.memory[0].data[5 : 5 + total] = original[::-1]
    link.read(2, 0, total, 5)
    link.settle()
    assert link.a.data == original[::-1]
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS] * 2


def test_fast_paths_change_nothing_on_the_wire_or_in_memory(connected_devices):
    """With loss and reordering, packet for packet and counter for counter."""
    runs = []
    for fast_paths, trains in ((True, False), (False, False), (True, True)):
        rng, wire = random.Random(5), []
        link = connected_devices(fast_paths=fast_paths, timeout=10)
        link.trains = trains
        link.a.queue_pair.set_window(150_000)
        link.write(1, 0, 300_000)
        link.read(2, 400_000, 300_000, 300_000)
        for _ in range(200):
            for end in (link.a, link.b):
                bursts = link.collect(end)
                wire += [b"".join(burst.buffers) for burst in bursts]
                bursts = [burst for burst in bursts if rng.random() > 0.1]
                rng.shuffle(bursts)
                link.receive(link.other(end), bursts)
            link.now += 0.002
            link.a.device.handle_timer(link.now)
        runs.append((wire, link.a.data, link.b.data, link.poll(), repr(link.a.queue_pair.counters)))
        assert [c.wr_id for c in runs[-1][3]] == [1, 2]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize(
    ("length", "gso_segments", "expected"),
    [
        (2 * 4096, 64, [2]),
        (2 * 4096, 1, [1, 1]),
        (2 * 4096 - 4, 64, [1, 1]),
        (2 * 4096 + 4, 64, [1, 2]),
        (3 * 4096, 64, [1, 1, 1]),
    ],
)
def test_a_first_response_leaves_with_its_last_where_both_are_as_long(
    connected_devices, lab, trains, length, gso_segments, expected
):
    link = connected_devices(gso_segments=gso_segments)
    link.trains = trains
    link.read(1, 0, length)
    link.deliver(link.a)
    bursts = link.collect(link.b)
    assert [burst.packets for burst in bursts] == expected
    assert [packet.bth.psn for packet in lab.packets(bursts)] == [0x1000 + place for place in range(sum(expected))]
    link.receive(link.a, bursts)
    assert [completion.status for completion in link.poll()] == [WcStatus.SUCCESS]
    assert link.a.data[:length] == link.b.data[:length]


def test_a_loss_of_the_burst_of_a_first_and_its_last_is_repaired(connected_devices):
    link = connected_devices(timeout=10)
    link.read(1, 0, 8192)
    link.deliver(link.a)
    link.drop(link.b)
    link.run_timers()
    assert [completion.status for completion in link.poll()] == [WcStatus.SUCCESS]
    assert link.a.data[:8192] == link.b.data[:8192]


def spy(end, original, taken):
    def call(*arguments):
        count = original(*arguments)
        taken.append((end, count))
        return count

    return call


def count_packets(half, original, taken, packets, asked, ended, now):
    taken.append((half, packets))
    original(packets, asked, ended, now)


def test_the_fast_paths_are_taken(connected_devices, monkeypatch):
    taken: list = []
    looked: list = []
    link = connected_devices()
    for half in (link.a.queue_pair.completer, link.b.queue_pair.responder):
        monkeypatch.setattr(half, "took_run", partial(count_packets, half, half.took_run, taken))
    for end in (link.a, link.b):
        incoming = end.queue_pair.incoming
        monkeypatch.setattr(incoming, "receive_run", spy(end, incoming.receive_run, looked))
    link.write(1, 0, 100 * 4096)
    link.read(2, 0, 100 * 4096)
    link.settle()
    for half in (link.a.queue_pair.completer, link.b.queue_pair.responder):
        assert sum(n for at, n in taken if at is half) == 98
    assert [end for end, n in looked if n] == [link.b, link.a], "only the first burst of each is taken apart"


def exchange(link, seed):
    """Many small and some large messages both ways over two queue pairs, with loss; return all that can be seen."""
    rng = random.Random(seed)
    pairs = [(link.a.queue_pair, link.b.queue_pair)]
    extra = tuple(end.device.create_queue_pair(QueuePairOptions(timeout=10)) for end in (link.a, link.b))
    extra[0].connect(extra[1].local)
    extra[1].connect(extra[0].local)
    pairs.append(extra)
    remote = link.b.registration.remote_segments()[0]
    completed: list = [[], []]
    for i in range(60):
        opcode = Opcode.RDMA_WRITE if rng.random() < 0.6 else Opcode.RDMA_READ
        length = rng.choice([1, 64, 64, 64, 1000, 4096, 4096, 9000])
        for which, (mine, _) in enumerate(pairs):
            # Each work request has a place of its own at both ends: the order between queue pairs does not matter.
            at = (i * 2 + which) * 8192 % (1 << 20)
            sges = tuple(link.a.sges(at, min(length, 8192)))
            mine.post_rdma(i, opcode, sges, remote.address + at, remote.rkey, signaled=i % 5 == 4)
    for _ in range(400):
        for end in (link.a, link.b):
            bursts = [burst for burst in link.collect(end) if rng.random() > 0.1]
            link.receive(link.other(end), bursts)
        link.now += 0.01
        for end in (link.a, link.b):
            end.device.handle_timer(link.now)
        for which, (mine, _) in enumerate(pairs):
            completed[which] += mine.poll()
    return [[(c.wr_id, c.status) for c in one] for one in completed], link.a.data, link.b.data


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_batching_changes_nothing_that_can_be_seen(connected_devices, seed):
    results = [exchange(connected_devices(batching=batching, timeout=10), seed) for batching in (True, False)]
    assert results[0] == results[1]
    expected = [(i, WcStatus.SUCCESS) for i in range(4, 60, 5)]
    assert results[0][0] == [expected, expected]


def test_small_messages_leave_together(connected_devices, lab):
    link = connected_devices()
    for i in range(40):
        link.write(i, i * 64, 64, i * 64)
    for i in range(3):
        link.write(40 + i, i * 4096, 4096, 8192 + i * 4096)
    requests = link.deliver(link.a)
    assert [burst.packets for burst in requests] == [40, 3]
    assert [asks for _, _, asks in lab.requests(requests)] == [False] * 39 + [True, False, False, True]
    answers = link.deliver(link.b)
    assert sum(burst.packets for burst in answers) == 1
    assert [c.wr_id for c in link.poll()] == list(range(43))
    for i in range(10):
        link.read(i, i * 64, 64, i * 4096)
    assert [burst.packets for burst in link.deliver(link.a)] == [10]
    assert [burst.packets for burst in link.deliver(link.b)] == [10]
    assert [c.wr_id for c in link.poll()] == list(range(10))
    assert [link.a.data[i * 64 : i * 64 + 64] for i in range(10)] == [
        link.b.data[i * 4096 : i * 4096 + 64] for i in range(10)
    ]


def test_a_burst_of_messages_stays_within_the_window(connected_devices):
    link = connected_devices()
    link.a.queue_pair.set_window(1000)
    for i in range(40):
        link.write(i, 0, 64)
    assert [burst.packets for burst in link.deliver(link.a)] == [15]
    link.settle()
    assert len(link.poll()) == 40


def test_answers_of_several_queue_pairs_leave_together(connected_devices, lab):
    link = connected_devices()
    others = []
    for _ in range(3):
        mine, theirs = (end.device.create_queue_pair(QueuePairOptions()) for end in (link.a, link.b))
        mine.connect(theirs.local)
        theirs.connect(mine.local)
        others.append(mine)
    remote = link.b.registration.remote_segments()[0]
    for pair in (link.a.queue_pair, *others):
        pair.post_rdma(1, Opcode.RDMA_WRITE, link.a.sges(0, 64), remote.address, remote.rkey, signaled=True)
    link.deliver(link.a)
    answers = link.deliver(link.b)
    assert [(burst.packets, burst.segment_bytes) for burst in answers] == [(4, 20)]
    qpns = {pair.local.qpn for pair in (link.a.queue_pair, *others)}
    assert {packet.bth.dest_qpn for packet in lab.packets(answers)} == qpns
    assert [len(pair.poll()) for pair in (link.a.queue_pair, *others)] == [1, 1, 1, 1]


def test_a_key_revoked_between_two_posts_of_the_same_sges_is_refused(connected_devices):
    link = connected_devices()
    remote = link.b.registration.remote_segments()[0]
    sges = tuple(link.a.sges(0, 64))
    for i in range(2):
        link.a.queue_pair.post_rdma(i, Opcode.RDMA_WRITE, sges, remote.address, remote.rkey, signaled=True)
    link.settle()
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS] * 2
    link.a.registration.close()
    link.a.queue_pair.post_rdma(2, Opcode.RDMA_WRITE, sges, remote.address, remote.rkey, signaled=True)
    link.settle()
    assert [c.status for c in link.poll()] == [WcStatus.LOC_PROT_ERR]


def test_several_queue_pairs_take_turns_by_bursts_where_each_has_its_own_window(connected_devices, lab):
    link = connected_devices(batching=False)
    pairs = [(link.a.queue_pair, link.b.queue_pair)]
    for _ in range(2):
        pair = tuple(end.device.create_queue_pair(QueuePairOptions()) for end in (link.a, link.b))
        pair[0].connect(pair[1].local)
        pair[1].connect(pair[0].local)
        pairs.append(pair)
    remote = link.b.registration.remote_segments()[0]
    for i, (mine, _) in enumerate(pairs):
        mine.set_window(MIB)
        sges = link.a.sges(i * 300_000, 300_000)
        mine.post_rdma(i, Opcode.RDMA_WRITE, sges, remote.address + i * 300_000, remote.rkey, signaled=True)
    bursts = link.collect(link.a)
    order = [lab.packets([burst])[0].bth.dest_qpn for burst in bursts]
    assert all(len(set(order[i : i + 3])) == 3 for i in range(0, len(order), 3))
    link.receive(link.b, bursts)
    link.settle()
    assert [[c.wr_id for c in mine.poll()] for mine, _ in pairs] == [[0], [1], [2]]
    assert link.b.data[:900_000] == link.a.data[:900_000]


def test_our_requests_go_between_the_peers_read_responses(connected_devices, lab):
    link = connected_devices()
    link.read(1, 0, 500_000)
    link.deliver(link.a)
    remote = link.a.registration.remote_segments()[0]
    sges = link.b.sges(600_000, 200_000)
    link.b.queue_pair.post_rdma(9, Opcode.RDMA_WRITE, sges, remote.address + 600_000, remote.rkey, signaled=True)
    kinds = [lab.requests([burst])[0][0][:4] for burst in link.deliver(link.b)]
    assert kinds[:6] == ["WRIT", "READ"] * 3
    link.settle()
    assert [c.wr_id for c in link.poll(link.b)] == [9]
    assert [c.wr_id for c in link.poll()] == [1]


def test_a_driver_may_stop_after_any_burst(connected_devices):
    link = connected_devices()
    link.write(1, 0, 200_000)
    link.read(2, 300_000, 200_000)
    for _ in range(200):
        link.deliver(link.a, max_bursts=1)
        link.deliver(link.b, max_bursts=1)
    assert [c.wr_id for c in link.poll()] == [1, 2]
    assert link.a.data[300_000:500_000] == link.a.data[:200_000]


# --- what is dropped ---------------------------------------------------------------------------------------------


def one_write(link):
    link.write(1, 0, 100)
    (burst,) = link.collect(link.a)
    return bytearray(b"".join(burst.buffers))


def give(link, raw, source=None, segment=None):
    source = source or (link.a.device.address, link.a.device.udp_port)
    link.b.device.receive_burst(memoryview(raw), len(raw) if segment is None else segment, source, link.now)


@pytest.mark.parametrize(
    ("source", "drops"),
    [
        (("127.0.0.9", 40001), 1),
        (("127.0.0.1", 40002), 1),
        (("garbage", 40001), 1),
        (("::ffff:127.0.0.1", 40001), 0),
        (("127.0.0.1", 40001), 0),
    ],
)
def test_only_the_connected_peer_is_heard(connected_devices, source, drops):
    link = connected_devices()
    before = link.b.data
    give(link, one_write(link), source)
    assert link.b.device.counters.dropped_wrong_source == drops
    assert (link.b.data == before) is bool(drops)


def test_a_peer_on_4791_may_send_from_any_port(connected_devices, lab):
    """rxe and NICs send from a hashed port; the ICRC covers it, so seeds are kept for each, but not for ever."""
    link = connected_devices(ports=(4791, 4791), icrc_check="off")
    raw = one_write(link)
    for port in range(49152, 49352):
        give(link, bytearray(raw), ("127.0.0.1", port))
    assert link.b.device.counters.dropped_wrong_source == 0
    assert len(link.b.queue_pair._sources._flows) <= 64


@pytest.mark.parametrize(
    ("change", "counter"),
    [
        (lambda raw: raw.__setitem__(7, raw[7] ^ 1), "dropped_unknown_qpn"),
        (lambda raw: raw.__setitem__(1, raw[1] | 1), "dropped_malformed"),  # TVer
        (lambda raw: raw.__setitem__(3, 0x01), "dropped_malformed"),  # P_Key
        (lambda raw: raw.__setitem__(0, 0x15), "dropped_malformed"),  # reserved opcode
        (lambda raw: raw.__setitem__(0, 0x81), "dropped_malformed"),  # CNP
        (lambda raw: raw.__delitem__(slice(15, None)), "dropped_malformed"),  # runt
        (lambda raw: raw.__setitem__(50, raw[50] ^ 1), "icrc_errors"),
        (lambda raw: raw.__setitem__(8, raw[8] ^ 1), "icrc_errors"),
    ],
)
def test_what_cannot_be_right_is_counted_and_dropped(connected_devices, change, counter):
    link = connected_devices()
    before = link.b.data
    raw = one_write(link)
    change(raw)
    give(link, raw)
    assert getattr(link.b.device.counters, counter) == 1
    assert link.b.data == before
    assert link.collect(link.b) == []
    assert link.b.queue_pair.counters.icrc_errors == (counter == "icrc_errors")


@pytest.mark.parametrize("place", [0, 3, 14])
def test_a_packet_damaged_inside_a_burst_costs_a_retry_and_no_byte(connected_devices, place):
    link = connected_devices()
    link.write(1, 0, 16 * 4096)
    first, run = link.collect(link.a)
    link.receive(link.b, [first])
    raw = bytearray(b"".join(run.buffers))
    raw[place * 4112 + 2000] ^= 4
    give(link, raw, segment=run.segment_bytes)
    assert link.b.device.counters.icrc_errors == 1
    link.run_timers()
    assert [c.status for c in link.poll()] == [WcStatus.SUCCESS]
    assert link.b.data[: 16 * 4096] == link.a.data[: 16 * 4096]


def test_a_sender_with_identifications_of_its_own_needs_solving(connected_devices, lab):
    """rxe counts IPv4 ids its own way: `full` drops all of its packets, `solve` finds the id and follows it."""
    for mode, good in (("full", False), ("solve", True)):
        link = connected_devices(icrc_check=mode, gso_segments=1)
        link.write(1, 0, 8 * 4096)
        flow = link.a.queue_pair.requester.connection.flow
        for i, burst in enumerate(link.collect(link.a)):
            raw = bytearray(b"".join(burst.buffers))
            masked = raw[:4] + b"\xff" + raw[5:-4]
            raw[-4:] = struct.pack("<I", zlib.crc32(masked, flow.compute_seed(0x4321 + i + (i > 4), len(raw))))
            give(link, raw)
        link.deliver(link.b)
        assert [c.wr_id for c in link.poll()] == ([1] if good else [])
        assert link.b.device.counters.icrc_errors == (0 if good else 8)


def test_a_burst_that_the_network_cut_up_is_accepted_when_solving(connected_devices, lab):
    link = connected_devices(icrc_check="solve")
    link.write(1, 0, 16 * 4096)
    for burst in link.collect(link.a):
        for datagram in lab.split(burst):
            give(link, bytearray(datagram))
    link.deliver(link.b)
    assert [c.wr_id for c in link.poll()] == [1]
    assert link.b.device.counters.icrc_errors == 0


@pytest.mark.parametrize("segment", [-1, 0, 1, 15, 17, 10_000])
def test_segment_sizes_that_make_no_sense(connected_devices, segment):
    link = connected_devices()
    give(link, one_write(link), segment=segment)
    assert link.b.device.counters.bursts_received == 1


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_garbage_raises_or_moves_a_byte_outside_the_grant(lab, data):
    """Right ICRC check switched off, so that everything reaches the core: bytes outside stay as they were."""
    link = lab.connected_devices(b_memory=3 * 4096, mtu=256, icrc_check="off", fast_paths=data.draw(st.booleans()))
    guard = lab.pattern(3 * 4096, 99)
    link.b.memory[0].data[:] = guard
    registration = link.b.device.memory.register(link.b.memory, lab.ALL_RIGHTS, 4096, 4096)
    link.b.registration.close()
    link.b.registration = registration
    link.b.queue_pair.post_recv(1, link.b.sges(0, 300)[:0])
    link.write(1, 0, 600)
    link.read(2, 0, 600)
    raw = bytearray(b"".join(b"".join(burst.buffers) for burst in link.collect(link.a)))
    for _ in range(data.draw(st.integers(1, 30))):
        for _ in range(data.draw(st.integers(0, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(raw)))
        give(link, raw[:cut], segment=data.draw(st.sampled_from([272, 288, 32, 100, 1 << 16])))
        for burst in link.collect(link.b, max_bursts=50):
            assert burst.length_bytes <= 65507
    assert link.b.data[:4096] == guard[:4096]
    assert link.b.data[8192:] == guard[8192:]


# --- making devices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"mtu_bytes": 8192},
        {"mtu_bytes": 1500},
        {"mtu_bytes": 4096},
        {"timeout": 32},
        {"retry_cnt": 8},
        {"rnr_retry": -1},
        {"min_rnr_timer": 32},
        {"max_rd_atomic": 256},
        {"depth": 0},
    ],
)
def test_options_out_of_range_are_refused(options):
    device = RoceDevice("127.0.0.1", 4791, port_mtu_bytes=2048, random_bits=random.Random(1).getrandbits)
    with pytest.raises(HostError) as caught:
        device.create_queue_pair(QueuePairOptions(**options))
    assert caught.value.errno == "EINVAL"
    assert next(iter(options)) in str(caught.value) or "path MTU" in str(caught.value)


def test_a_port_mtu_that_is_none():
    with pytest.raises(HostError):
        RoceDevice("127.0.0.1", 4791, port_mtu_bytes=1500, random_bits=random.Random(1).getrandbits)


def test_queue_pair_numbers_are_random_unique_and_never_reserved():
    draws = iter([0, 1, 0xFFFFFF, 5, 0x111111, 5, 6, 0x222222])
    device = RoceDevice("fd00::1", 4791, port_mtu_bytes=4096, random_bits=lambda bits: next(draws))
    first, second = (device.create_queue_pair(QueuePairOptions()).local for _ in range(2))
    assert (first.qpn, first.psn, second.qpn, second.psn) == (5, 0x111111, 6, 0x222222)
    assert (first.gid, first.udp_port, first.mtu_bytes) == ("fd00" + "00" * 13 + "01", 4791, 4096)


def test_timers_are_the_earliest_of_all_queue_pairs(connected_devices):
    link = connected_devices()
    assert link.a.device.next_timer() is None
    link.write(1, 0, 1)
    link.drop(link.a)
    other = link.a.device.create_queue_pair(QueuePairOptions(timeout=10))
    other.connect(link.b.queue_pair.local)
    other.post_rdma(1, Opcode.RDMA_READ, [], 0, 0, signaled=True)
    link.drop(link.a)
    assert link.a.device.next_timer() == pytest.approx(link.now + 4.096e-6 * 2**10)
