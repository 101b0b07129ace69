"""Each way of going wrong, made on purpose, is named and placed; and no input makes the classifier itself fail."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2prw.engine.diagnose import CLASSIFICATIONS, MAX_SHIFT_BYTES, classify
from p2prw.engine.pattern import parse_pattern
from p2prw.errors import LocalProtocolError
from p2prw.units import KIB, MIB

BLOCK = parse_pattern("words:1").bytes_at(0, 64 * KIB)
OLD = parse_pattern("words:2").bytes_at(0, 64 * KIB)
POISON = b"\xa5" * len(BLOCK)


def with_bytes(at: int, data: bytes, block: bytes = BLOCK) -> bytes:
    return block[:at] + data + block[at + len(data) :]


def test_equal_bytes_are_identical_and_say_what_that_means():
    diagnosis = classify(BLOCK, BLOCK, offset_bytes=MIB)
    assert (diagnosis.classification, diagnosis.bad_bytes, diagnosis.last_bad_offset) == ("identical", 0, None)
    assert diagnosis.first_bad_offset == MIB + len(BLOCK)
    assert "changed in between" in diagnosis.why


@pytest.mark.parametrize(("start", "end"), [(0, 64 * KIB), (4096, 8192), (100, 108), (64 * KIB - 9, 64 * KIB)])
@pytest.mark.parametrize(
    ("filler", "expected", "hint"), [(b"\xff", "all_ff", "ACS redirect"), (b"\0", "all_zero", "IOMMU")]
)
def test_aborted_reads_and_dropped_writes(start, end, filler, expected, hint):
    diagnosis = classify(BLOCK, with_bytes(start, filler * (end - start)), offset_bytes=MIB)
    assert diagnosis.classification == expected
    # A byte that was 0xFF or 0 anyway is not bad.
    assert MIB + start <= diagnosis.first_bad_offset < MIB + start + 4
    assert MIB + end - 4 <= diagnosis.last_bad_offset < MIB + end
    assert hint in diagnosis.why


def test_ff_in_several_places_is_still_all_ff():
    found = with_bytes(0, b"\xff" * 256, with_bytes(8192, b"\xff" * 256))
    diagnosis = classify(BLOCK, found)
    assert diagnosis.classification == "all_ff"
    assert diagnosis.why.startswith(f"{diagnosis.bad_bytes} of 65536 bytes are bad: ")
    assert 500 <= diagnosis.bad_bytes <= 512


def test_one_byte_of_ff_proves_nothing():
    assert BLOCK[100] != 0xFF
    assert classify(BLOCK, with_bytes(100, b"\xff")).classification == "corrupt"


def test_a_tiny_block_may_be_all_ff():
    assert classify(b"abcd", b"\xff" * 4).classification == "all_ff"


def test_previous_content_means_it_never_arrived():
    diagnosis = classify(BLOCK, with_bytes(512, POISON[:1024]), previous=POISON)
    assert (diagnosis.classification, diagnosis.first_bad_offset) == ("never_arrived", 512)
    # Known content goes before looks: memory that was zero before and still is got no write.
    assert classify(BLOCK, bytes(len(BLOCK)), previous=bytes(len(BLOCK))).classification == "never_arrived"


def test_an_older_generation_is_stale_and_counted():
    found = with_bytes(4096, OLD[4096:8192])
    diagnosis = classify(BLOCK, found, previous=POISON, older=(POISON, OLD))
    assert diagnosis.classification == "stale"
    assert "generation 2 before" in diagnosis.why
    assert classify(BLOCK, found).classification == "corrupt"


@pytest.mark.parametrize(("code", "width"), [("Q", 8), ("I", 4), ("H", 2)])
def test_byte_order_within_words(code, width):
    n = 4096 // width
    swapped = struct.pack(f">{n}{code}", *struct.unpack(f"<{n}{code}", BLOCK[8192 : 8192 + 4096]))
    for found in (with_bytes(8192, swapped), with_bytes(8192, swapped)[: 8192 + 4096 + 3]):
        diagnosis = classify(BLOCK[: len(found)], found)
        assert diagnosis.classification == "swapped"
        assert f"{width}-byte word" in diagnosis.why


@pytest.mark.parametrize("size", [4, 8, 256, 1024, 4096, 32 * KIB])
@pytest.mark.parametrize(("a", "distance"), [(0, 1), (12, 1), (0, 5), (12, 5)])
def test_exchanged_chunks(size, a, distance):
    if size == 32 * KIB:
        # Only this pair fits the block.
        a, distance = 0, 1
    b = a + distance * size
    found = with_bytes(a, BLOCK[b : b + size], with_bytes(b, BLOCK[a : a + size]))
    diagnosis = classify(BLOCK, found)
    assert (diagnosis.classification, diagnosis.first_bad_offset) == ("swapped", a)
    assert f"1 pair of {size}-byte chunks" in diagnosis.why


def test_dwords_exchanged_in_every_word():
    words = struct.unpack("<16384I", BLOCK)
    found = struct.pack("<16384I", *(word for k in range(0, 16384, 2) for word in (words[k + 1], words[k])))
    assert "8192 pairs of 4-byte chunks" in classify(BLOCK, found).why


@given(st.integers(-MAX_SHIFT_BYTES, MAX_SHIFT_BYTES).filter(bool), st.integers(0, 128 * KIB), st.booleans())
@settings(max_examples=30, deadline=None)
def test_shifts_are_found_with_their_distance(shift, at, repeated):
    block = LONG
    if shift > 0:
        # Late: bytes were pushed in, or the same bytes were written twice.
        pushed = block[at : at + shift] if repeated else bytes(shift)
        found = (block[:at] + pushed + block[at:])[: len(block)]
    else:
        found = block[:at] + block[at - shift :] + POISON[:1] * -shift
    diagnosis = classify(block, found, offset_bytes=1 << 40)
    assert (diagnosis.classification, diagnosis.shift_bytes) == ("shifted", shift)
    assert at <= diagnosis.first_bad_offset - (1 << 40) < at + abs(shift) * repeated + 8
    assert f"{abs(shift)} bytes {'later' if shift > 0 else 'earlier'}" in diagnosis.why


LONG = parse_pattern("random:9").bytes_at(0, 256 * KIB)


def test_a_shift_in_the_middle_leaves_a_gap_behind():
    # Lost 100 bytes at 4096; what follows is right again from 8192 on.
    found = BLOCK[:4096] + BLOCK[4196:8192] + OLD[:100] + BLOCK[8192:]
    diagnosis = classify(BLOCK, found)
    assert (diagnosis.classification, diagnosis.shift_bytes) == ("shifted", -100)


def test_a_shift_of_text_that_repeats_is_the_smallest_that_explains():
    period = b"0123456789abcdef" * 4096
    diagnosis = classify(period, period[5:] + period[:5])
    assert (diagnosis.classification, diagnosis.shift_bytes) == ("shifted", -5)


def test_a_flipped_bit_is_corrupt_with_counts():
    found = with_bytes(1000, bytes([BLOCK[1000] ^ 0x10]))
    diagnosis = classify(BLOCK, found)
    assert (diagnosis.classification, diagnosis.bad_bytes, diagnosis.bad_bits) == ("corrupt", 1, 1)
    assert (diagnosis.first_bad_offset, diagnosis.last_bad_offset) == (1000, 1000)
    assert "1 flipped bit in 1 byte:" in diagnosis.why


def test_scattered_bytes_and_other_data_are_corrupt():
    scattered = bytearray(BLOCK)
    for at in range(0, len(BLOCK), 1000):
        scattered[at] ^= 0xFF
    assert "few and scattered" in classify(BLOCK, bytes(scattered)).why
    assert "wrong source" in classify(BLOCK, OLD).why


def test_lengths_must_agree():
    with pytest.raises(LocalProtocolError):
        classify(BLOCK, BLOCK[1:])
    with pytest.raises(LocalProtocolError):
        classify(BLOCK, OLD, previous=b"x")
    with pytest.raises(LocalProtocolError):
        classify(BLOCK, OLD, older=(b"x",))


@given(st.binary(max_size=300), st.data())
@settings(max_examples=300, deadline=None)
def test_any_two_blocks_get_a_diagnosis(expected, data):
    found = data.draw(st.binary(min_size=len(expected), max_size=len(expected)))
    diagnosis = classify(expected, found, older=(found[::-1],))
    assert diagnosis.classification in CLASSIFICATIONS
    bad = [k for k in range(len(expected)) if expected[k] != found[k]]
    assert diagnosis.bad_bytes == len(bad)
    if bad:
        assert (diagnosis.first_bad_offset, diagnosis.last_bad_offset) == (bad[0], bad[-1])
        assert diagnosis.bad_bits == sum((expected[k] ^ found[k]).bit_count() for k in bad)
    else:
        assert diagnosis.classification == "identical"


@given(st.lists(st.sampled_from([b"\0" * 16, b"\xff" * 16, b"ab" * 8, b"0123456789abcdef"]), max_size=40), st.randoms())
@settings(max_examples=150, deadline=None)
def test_dull_data_gets_a_diagnosis_too(pieces, dice):
    expected = b"".join(pieces)
    shuffled = list(pieces)
    dice.shuffle(shuffled)
    diagnosis = classify(expected, b"".join(shuffled))
    assert diagnosis.classification in CLASSIFICATIONS
    assert (diagnosis.classification == "identical") == (shuffled == list(pieces))
