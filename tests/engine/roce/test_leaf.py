"""The compiled functions against the plain ones: equal bytes and equal decisions, whatever arrives."""

from __future__ import annotations

import mmap
import struct
import zlib
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2prw.engine.roce import leaf
from p2prw.engine.roce.leaf import choose_codec, codec_of
from p2prw.engine.roce.runs import PURE, build_run, receive_run

POOL = bytes(range(256)) * 140
PREFIX = bytes.fromhex("0740ffff00000011")
PREFIX_WORD = int.from_bytes(PREFIX, "big")
# 52 and 84 are no path MTUs: the code for what is left after whole blocks of 64 and 16 bytes.
SIZES = st.sampled_from([4, 16, 52, 64, 84, 128, 256, 256, 1024, 4096])
PSNS = st.one_of(st.integers(0, 0xFFFFFF), st.integers(0xFFFFF0, 0xFFFFFF), st.integers(1 << 24, 1 << 40))


@st.composite
def runs(draw):
    mtu, count = draw(SIZES), draw(st.integers(1, 8))
    start = draw(st.integers(0, 255))
    seeds = draw(st.lists(st.integers(0, 0xFFFFFFFF), min_size=count, max_size=count + 2))
    return SimpleNamespace(
        mtu=mtu,
        count=count,
        data=memoryview(POOL)[start : start + mtu * count],
        seeds=seeds,
        psn=draw(PSNS),
        ack_last=draw(st.booleans()),
    )


def build(function, run):
    return b"".join(function(PREFIX, run.seeds, run.psn, run.data, run.mtu, run.count, ack_last=run.ack_last))


@pytest.fixture(scope="module", params=["fastest", "slice-by-8"])
def engine(request, compiled_leaf):
    """The leaf, with the fastest way of computing CRCs that this processor has, and with the one that all have."""
    fastest = compiled_leaf.engines()[0]
    compiled_leaf.use_engine(fastest if request.param == "fastest" else request.param)
    yield compiled_leaf
    compiled_leaf.use_engine(fastest)


@given(run=runs())
def test_the_same_bytes_go_out(engine, run):
    assert build(engine.build_run, run) == build(build_run, run)


DAMAGES = ("none", "flip", "swap", "repeat", "drop", "cut", "marks", "other seed", "no seeds")


@given(run=runs(), damage=st.sampled_from(DAMAGES), place=st.integers(0, 1 << 16), draw=st.data())
def test_the_same_packets_are_taken(engine, run, damage, place, draw):
    """Good, corrupted, truncated, reordered: the same number taken, the same memory written and no other."""
    wire = bytearray(build(build_run, run))
    segment, seeds, count = run.mtu + 16, list(run.seeds), run.count
    at, other = place % count * segment, place // 7 % count * segment
    if damage == "flip":
        wire[place % len(wire)] ^= 1 << place % 8
    elif damage == "swap":
        wire[at : at + segment], wire[other : other + segment] = wire[other : other + segment], wire[at : at + segment]
    elif damage == "repeat":
        wire[at : at + segment] = wire[other : other + segment]
    elif damage == "drop":
        del wire[at : at + segment]
        count -= 1
    elif damage == "cut":
        # What the device hands over is never longer than what is there: it counts whole packets.
        del wire[place % len(wire) :]
        count = len(wire) // segment
    elif damage == "marks":
        wire[at + 4] ^= 0xC0
    elif damage == "other seed":
        seeds[place % len(seeds)] ^= 1
    index = draw.draw(st.integers(0, 1), label="index")
    before = draw.draw(st.integers(0, 5), label="before")
    # Where each packet begins a line, whole lines are stored past the caches.
    offset = draw.draw(st.sampled_from([0, 64, 1, 8, 9, 16, 32]), label="offset")
    view = memoryview(bytes(before) + wire)
    seen = []
    for function in (receive_run, engine.receive_run):
        target = mmap.mmap(-1, offset + count * run.mtu + 3)
        checked = None if damage == "no seeds" else [0] * index + seeds
        result = function(
            *(view, before, count, run.mtu, PREFIX_WORD, run.psn, checked, index, memoryview(target), offset),
        )
        seen.append((result, target[:]))
        target.close()
    assert seen[0] == seen[1]
    if damage in ("none", "marks", "no seeds"):
        assert seen[0][0] == (count, run.ack_last)


@given(data=st.binary(max_size=400))
@settings(max_examples=50)
def test_the_crc_is_zlibs_at_every_length(engine, data):
    if data:
        (packet,) = engine.build_run(PREFIX, [0], 5, memoryview(data), len(data), 1, ack_last=False)
        assert packet == PREFIX + b"\0\0\0\5" + data + struct.pack("<I", zlib.crc32(b"\0\0\0\5" + data))


GOOD_BUILD = (PREFIX, [1, 2], 5, memoryview(bytes(512)), 256, 2)
GOOD_RECEIVE = (memoryview(bytes(544)), 0, 2, 256, 5, 5, [1, 2], 0, memoryview(bytearray(512)), 0)
BIG = (1 << 63) - 1


def spoilt(good, place, value):
    return (*good[:place], value, *good[place + 1 :])


@pytest.mark.parametrize(
    ("place", "value", "error"),
    [
        *[(0, PREFIX[:7], ValueError), (0, "prefix", TypeError), (1, [1], ValueError), (1, (1, 2), ValueError)],
        *[(1, [1, "2"], TypeError), (1, [1, -1], OverflowError), (2, "5", TypeError)],
        *[(3, memoryview(bytes(511)), ValueError), (3, memoryview(bytes(1024))[::2], BufferError)],
        *[(4, value, ValueError) for value in (257, 0, -256, BIG, 1 << 20)],
        *[(5, value, ValueError) for value in (3, 0, -1, BIG, 1 << 20)],
        *[(4, 1 << 64, OverflowError), (5, 1 << 64, OverflowError)],
    ],
)
def test_a_run_that_does_not_fit_is_not_built(compiled_leaf, place, value, error):
    compiled_leaf.build_run(*GOOD_BUILD, ack_last=True)
    with pytest.raises(error):
        compiled_leaf.build_run(*spoilt(GOOD_BUILD, place, value), ack_last=True)


@pytest.mark.parametrize(
    ("place", "value", "error"),
    [
        *[(0, memoryview(bytes(543)), ValueError), (1, 1, ValueError), (1, -1, ValueError), (1, BIG, ValueError)],
        *[(2, value, ValueError) for value in (3, -1, BIG, 1 << 20)],
        *[(3, value, ValueError) for value in (257, 0, -1, BIG, 1 << 20)],
        *[(4, -1, OverflowError), (6, [1], ValueError), (6, (1, 2), ValueError)],
        *[(7, value, ValueError) for value in (1, 2, 3, -1, BIG)],
        *[(8, memoryview(bytearray(511)), ValueError), (8, memoryview(bytes(512)), BufferError)],
        *[(9, value, ValueError) for value in (1, -1, BIG, 513)],
    ],
)
def test_a_run_that_does_not_fit_is_not_looked_at(compiled_leaf, place, value, error):
    assert compiled_leaf.receive_run(*GOOD_RECEIVE) == (0, False)
    with pytest.raises(error):
        compiled_leaf.receive_run(*spoilt(GOOD_RECEIVE, place, value))


def test_memory_that_is_gone_is_not_touched(compiled_leaf):
    target = memoryview(bytearray(512))
    target.release()
    with pytest.raises(ValueError, match="released"):
        compiled_leaf.receive_run(*spoilt(GOOD_RECEIVE, 8, target))


def test_arguments_are_counted(compiled_leaf):
    for call in (
        lambda: compiled_leaf.build_run(*GOOD_BUILD, True),
        lambda: compiled_leaf.build_run(*GOOD_BUILD),
        lambda: compiled_leaf.build_run(*GOOD_BUILD, last=True),
        lambda: compiled_leaf.receive_run(*GOOD_RECEIVE[:9]),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(LookupError):
        compiled_leaf.use_engine("abacus")


def test_nothing_is_kept(compiled_leaf):
    """Buffers are let go in every case: an mmap under a view that is still held could not be closed."""
    data, target, view = bytearray(512), bytearray(512), bytearray(544)
    compiled_leaf.build_run(*spoilt(GOOD_BUILD, 3, data), ack_last=True)
    compiled_leaf.receive_run(view, *GOOD_RECEIVE[1:8], target, 0)
    for bad in (3, "x"):
        with pytest.raises((TypeError, ValueError)):
            compiled_leaf.build_run(*spoilt(spoilt(GOOD_BUILD, 3, data), 1, [1, bad][: bad == "x" or 1]), ack_last=True)
        with pytest.raises(ValueError, match="fit"):
            compiled_leaf.receive_run(view, *GOOD_RECEIVE[1:8], target, 3)
    for buffer in (data, target, view):
        buffer.clear()  # BufferError while anybody holds it


def test_a_binary_from_another_time_is_left_alone(compiled_leaf):
    assert codec_of(None) is None
    assert codec_of(SimpleNamespace(INTERFACE=leaf.INTERFACE + 1)) is None  # type: ignore[arg-type]
    codec = codec_of(compiled_leaf)
    assert codec is not None and codec.name == f"compiled ({compiled_leaf.engines()[0]})"


def test_who_switches_it_off_gets_python(compiled_leaf, monkeypatch):
    monkeypatch.setattr(leaf, "COMPILED", codec_of(compiled_leaf))
    assert choose_codec(leaf=False) is PURE
    assert choose_codec().name.startswith("compiled")
    monkeypatch.setattr(leaf, "COMPILED", None)
    assert choose_codec() is PURE
