"""Fault injection: what can be asked for, that it is deterministic, and that packets keep a right ICRC on their way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.inject import (
    MAX_SEGMENTS,
    REORDER_DISTANCE,
    REORDER_HOLD_S,
    ByteFlip,
    FaultCounts,
    FaultedBurst,
    FaultInjector,
    FaultPlan,
    FaultShim,
    moved_icrc,
    parse_faults,
    wrong_rkey,
)
from p2prw.engine.model import Opcode
from p2prw.engine.roce.icrc import Flow, crc32
from p2prw.errors import RequestError

PEER = ("10.9.0.2", 4791)
FLOW = Flow((bytes([10, 9, 0, 1]), 4791), (bytes([10, 9, 0, 2]), 4791))
FLOW6 = Flow((bytes(15) + b"\1", 4791), (bytes(15) + b"\2", 4791))


def sealed(body: bytes, place: int, flow: Flow = FLOW) -> bytes:
    """A UDP payload: `body` and the ICRC it has as segment `place` of a burst."""
    masked = body[:4] + b"\xff" + body[5:8]
    icrc = crc32(body[8:], crc32(masked, flow.compute_seed(place, len(body) + 4)))
    return body + icrc.to_bytes(4, "little")


def burst(count: int, size: int = 64, first: int = 0, flow: Flow = FLOW) -> bytes:
    """`count` packets, each telling its number in its body."""
    return b"".join(
        sealed((first + place).to_bytes(4, "big").rjust(size - 4, b"\xaa"), place, flow) for place in range(count)
    )


def packets_of(bursts: list[FaultedBurst]) -> list[tuple[int, bytes]]:
    """(place in its burst, packet) of everything that goes on."""
    return [
        (start // one.segment_bytes, bytes(one.data[start : start + one.segment_bytes]))
        for one in bursts
        for start in range(0, len(one.data), one.segment_bytes)
    ]


def number(packet: bytes) -> int:
    return int.from_bytes(packet[-8:-4], "big")


def feed(shim: FaultShim, bursts: int, per_burst: int = 15, flow: Flow = FLOW) -> list[tuple[int, bytes]]:
    going: list[tuple[int, bytes]] = []
    for index in range(bursts):
        data = burst(per_burst, first=index * per_burst, flow=flow)
        going += packets_of(shim.apply(memoryview(data), 64, PEER, 0.0))
    return going + packets_of(shim.release(REORDER_HOLD_S))


# --- the text -----------------------------------------------------------------------------------------------


def test_parse_all() -> None:
    assert parse_faults("drop=1%,dup=0.5%, reorder=2% ,corrupt=0.01,seed=0x10") == FaultPlan(
        drop=0.01, duplicate=0.005, reorder=0.02, corrupt=0.01, seed=16
    )


def test_parse_one() -> None:
    assert parse_faults("drop=100%") == FaultPlan(drop=1.0)


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("corrupt=0", FaultPlan(corrupt_offset=0)),
        ("corrupt=1", FaultPlan(corrupt_offset=1)),
        ("corrupt=4096", FaultPlan(corrupt_offset=4096)),
        ("corrupt=1MiB,seed=3", FaultPlan(corrupt_offset=1 << 20, seed=3)),
        ("drop=1,corrupt=0x10", FaultPlan(drop=1.0, corrupt_offset=16)),
        ("corrupt=1%", FaultPlan(corrupt=0.01)),
        ("corrupt=100%", FaultPlan(corrupt=1.0)),
        ("corrupt=1.0", FaultPlan(corrupt=1.0)),
        ("corrupt=0.01", FaultPlan(corrupt=0.01)),
    ],
)
def test_a_byte_offset_is_told_from_a_rate(text: str, plan: FaultPlan) -> None:
    """A rate has a percent sign or a point; everything else after corrupt= counts bytes."""
    assert parse_faults(text) == plan


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("drp=1%", "did you mean 'drop'?"),
        ("duplicate=1%", "did you mean 'dup'?"),
        ("sed=1,drop=1%", "did you mean 'seed'?"),
        ("zzz=1", "there are drop, dup, reorder, corrupt, rkey and seed"),
        ("drop=101%", "from 0% to 100%"),
        ("drop=-1%", "from 0% to 100%"),
        ("drop", "from 0% to 100%"),
        ("drop=1%,drop=2%", "given twice"),
        ("seed=1,seed=2,drop=1", "given twice"),
        ("corrupt=1%,corrupt=4096", "given twice"),
        ("corrupt=4096,corrupt=1%", "given twice"),
        ("corrupt=4,corrupt=5", "given twice"),
        ("corrupt=", "no rate"),
        ("seed=x", "no whole number"),
        ("seed=3", "names no fault"),
        ("", "names no fault"),
    ],
)
def test_parse_errors_say_what_to_type(text: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_faults(text)
    assert says in str(caught.value)
    assert caught.value.fix is not None
    assert parse_faults(caught.value.fix.removeprefix("--inject ")).drop == 0.01


@pytest.mark.parametrize("value", ["lots", "-1", "1XiB", "1 2"])
def test_neither_rate_nor_offset(value: str) -> None:
    with pytest.raises(RequestError, match="neither a rate nor a byte offset") as caught:
        parse_faults(f"corrupt={value}")
    assert "corrupt=1%" in str(caught.value.fix) and "corrupt=4096" in str(caught.value.fix)


def test_a_flip_strikes_one_request_once_and_only_data() -> None:
    flip = ByteFlip(5000)
    assert flip.strike(Opcode.RDMA_WRITE, 4096) is None
    assert flip.strike(Opcode.RDMA_READ, 1 << 20) is None, "a flush is no data of a WRITE"
    assert flip.strike(Opcode.RDMA_WRITE, 0) is None
    assert flip.strike(Opcode.RDMA_WRITE, 4096) == 5000 - 4096 and flip.struck
    assert flip.strike(Opcode.RDMA_WRITE, 1 << 20) is None
    assert ByteFlip(0).strike(Opcode.RDMA_READ, 1) == 0
    assert not ByteFlip(0).struck


@given(st.text(alphabet="dropuceatsn=%,.0123456789 ", max_size=40))
def test_parse_never_fails_otherwise(text: str) -> None:
    try:
        plan = parse_faults(text)
    except RequestError:
        return
    assert min(plan.drop, plan.duplicate, plan.reorder, plan.corrupt) >= 0
    assert max(plan.drop, plan.duplicate, plan.reorder, plan.corrupt) <= 1


# --- the ICRC of a packet that moved --------------------------------------------------------------------------


@given(st.binary(min_size=12, max_size=300), st.integers(0, 63), st.integers(0, 63))
def test_moved_icrc_is_right_for_the_new_place(body: bytes, old: int, new: int) -> None:
    moved = moved_icrc(sealed(body, old), old, new)
    assert FLOW.check(memoryview(moved), new, solve=False)
    assert moved[:-4] == body


def test_moved_icrc_does_not_heal() -> None:
    packet = bytearray(sealed(b"x" * 60, 3))
    packet[20] ^= 1
    assert not FLOW.check(memoryview(moved_icrc(packet, 3, 0)), 0, solve=False)


# --- the shim -----------------------------------------------------------------------------------------------


def test_nothing_asked_nothing_done() -> None:
    shim = FaultShim(FaultPlan(), "tx", ipv4=True)
    view = memoryview(burst(15))
    (one,) = shim.apply(view, 64, PEER, 0.0)
    assert one.data is view, "an untouched burst is passed on without a copy"
    assert (one.segment_bytes, one.endpoint) == (64, PEER)
    assert shim.counts == FaultCounts(packets=15)
    assert shim.next_timer() is None


def test_single_datagram_without_segment_size() -> None:
    shim = FaultShim(FaultPlan(duplicate=1.0), "tx", ipv4=True)
    packet = sealed(b"y" * 60, 0)
    going = packets_of(shim.apply(memoryview(packet), 0, PEER, 0.0))
    assert [place for place, _ in going] == [0, 1]
    assert all(FLOW.check(memoryview(data), place, solve=False) for place, data in going)


def test_drop_all() -> None:
    shim = FaultShim(FaultPlan(drop=1.0), "tx", ipv4=True)
    assert feed(shim, 4) == []
    assert shim.counts == FaultCounts(packets=60, dropped=60)


@pytest.mark.parametrize("flow", [FLOW, FLOW6], ids=["ipv4", "ipv6"])
def test_what_survives_is_whole_and_rightly_sealed(flow: Flow) -> None:
    plan = FaultPlan(drop=0.1, duplicate=0.1, reorder=0.1, seed=5)
    shim = FaultShim(plan, "tx", ipv4=flow.is_ipv4)
    going = feed(shim, 40, flow=flow)
    assert all(flow.check(memoryview(packet), place, solve=False) for place, packet in going)
    numbers = [number(packet) for _, packet in going]
    counts = shim.counts
    assert counts.packets == 600
    assert len(set(numbers)) == 600 - counts.dropped
    assert len(numbers) == 600 - counts.dropped + counts.duplicated
    assert min(counts.dropped, counts.duplicated, counts.reordered) > 30
    assert numbers != sorted(numbers)


def test_corrupt_flips_one_bit_and_shows() -> None:
    shim = FaultShim(FaultPlan(corrupt=0.2, seed=1), "rx", ipv4=True)
    going = feed(shim, 20)
    wrong = [packet for place, packet in going if not FLOW.check(memoryview(packet), place, solve=False)]
    # A flip in BTH byte 4 is outside the ICRC by definition.
    assert 0 < len(wrong) <= shim.counts.corrupted
    assert shim.counts.corrupted - len(wrong) <= 3
    assert len(going) == 300


def test_reordered_packet_comes_soon_after() -> None:
    shim = FaultShim(FaultPlan(reorder=0.05, seed=9), "tx", ipv4=True)
    numbers = [number(packet) for _, packet in feed(shim, 60)]
    late = [position - index for position, index in enumerate(numbers)]
    assert shim.counts.reordered > 10
    assert sorted(numbers) == list(range(900))
    assert 1 <= max(late) <= 2 * REORDER_DISTANCE


def test_held_packet_is_let_go_by_the_timer() -> None:
    shim = FaultShim(FaultPlan(reorder=1.0), "tx", ipv4=True)
    data = bytearray(burst(1))
    assert shim.apply(memoryview(data), 64, PEER, 10.0) == []
    kept = bytes(data)
    data[:] = bytes(64)
    assert shim.next_timer() == 10.0 + REORDER_HOLD_S
    assert shim.release(10.0) == []
    (one,) = shim.release(10.0 + REORDER_HOLD_S)
    assert (bytes(one.data), one.endpoint) == (kept, PEER), "what is held is a copy"
    assert shim.next_timer() is None


def test_same_seed_same_fate_however_bursts_are_cut() -> None:
    plan = FaultPlan(drop=0.2, corrupt=0.1, duplicate=0.1, seed=3)
    fifteen, one = (FaultShim(plan, "tx", ipv4=False) for _ in range(2))
    a = [number(packet) for _, packet in feed(fifteen, 8, 15)]
    b = [number(packet) for _, packet in feed(one, 120, 1)]
    # Corruption may hit the number itself; the counts and the positions say the rest.
    assert fifteen.counts == one.counts
    assert len(a) == len(b)
    assert feed(FaultShim(plan, "tx", ipv4=False), 8) == feed(FaultShim(plan, "tx", ipv4=False), 8)
    assert feed(FaultShim(plan, "tx", ipv4=False), 8) != feed(FaultShim(plan, "rx", ipv4=False), 8)


def test_bursts_stay_within_what_one_send_takes() -> None:
    shim = FaultShim(FaultPlan(duplicate=1.0), "tx", ipv4=True)
    bursts = shim.apply(memoryview(burst(60)), 64, PEER, 0.0)
    assert [len(one.data) // one.segment_bytes for one in bursts] == [MAX_SEGMENTS, 120 - MAX_SEGMENTS]
    shim = FaultShim(FaultPlan(duplicate=1.0), "tx", ipv4=False)
    bursts = shim.apply(memoryview(bytes(15 * 4112)), 4112, PEER, 0.0)
    assert all(len(one.data) <= 65507 for one in bursts)


def test_short_last_packet_ends_a_burst() -> None:
    shim = FaultShim(FaultPlan(duplicate=1.0), "tx", ipv4=True)
    data = burst(1) + sealed(b"z" * 20, 1)
    bursts = shim.apply(memoryview(data), 64, PEER, 0.0)
    assert [(len(one.data), one.segment_bytes) for one in bursts] == [(64 + 64 + 24, 64), (24, 24)]


def test_injector_counts_both_directions() -> None:
    injector = FaultInjector(FaultPlan(drop=1.0, reorder=0.0), ipv4=True)
    injector.sending.apply(memoryview(burst(3)), 64, PEER, 0.0)
    injector.receiving.apply(memoryview(burst(2)), 64, PEER, 0.0)
    assert injector.counts == FaultCounts(packets=5, dropped=5)
    assert injector.next_timer() is None


@pytest.mark.parametrize("flow", [FLOW, FLOW6])
@pytest.mark.parametrize("opcode", [0x06, 0x0A, 0x0B, 0x0C])
def test_a_wrong_rkey_keeps_a_right_icrc(flow, opcode):
    body = bytes([opcode]) + bytes(range(1, 12)) + bytes(range(100, 116)) + b"payload!"
    found = wrong_rkey(sealed(body, 0, flow))
    assert found is not None
    changed = [index for index, (old, new) in enumerate(zip(body, found, strict=False)) if old != new]
    assert changed == [20], "one byte of the key, after BTH and virtual address"
    assert found == sealed(found[:-4], 0, flow)


def test_packets_without_a_key_are_left_alone():
    for opcode in (0x07, 0x08, 0x0D, 0x11):
        assert wrong_rkey(sealed(bytes([opcode]) + bytes(39), 0)) is None
    assert wrong_rkey(bytes([0x0A]) + bytes(20)) is None


def test_other_plans_keep_their_fates_when_keys_are_spoilt():
    with_keys = FaultShim(parse_faults("rkey=100%,seed=5"), "tx", ipv4=True)
    going = feed(with_keys, 4)
    assert with_keys.counts.wrong_rkeys == 0 and len(going) == 60, "these packets carry none"
    write = sealed(bytes([0x0A]) + bytes(39), 0)
    (struck,) = with_keys.apply(memoryview(write), len(write), PEER, 0.0)
    assert bytes(struck.data) == wrong_rkey(write) and with_keys.counts.wrong_rkeys == 1
