"""Patterns give the same bytes for a position however they are asked for, and say what is wrong with a name."""

from __future__ import annotations

import os
import struct
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2prw.engine import pattern as pattern_module
from p2prw.engine.pattern import Pattern, mix64, parse_pattern
from p2prw.errors import HostError, RequestError
from p2prw.units import KIB, MIB


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(range(251)) * 3)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("words", Pattern("words", 1)),
        ("words:7", Pattern("words", 7)),
        ("words:0xffffffffffffffff", Pattern("words", (1 << 64) - 1)),
        ("zero", Pattern("zero")),
        ("random:3", Pattern("random", 3)),
        ("random", Pattern("random", 1)),
    ],
)
def test_names_and_seeds(text, expected):
    assert parse_pattern(text) == expected
    assert parse_pattern(str(expected)) == expected


def test_a_file_is_named_with_its_path(data_file):
    assert str(parse_pattern(f"file:{data_file}")) == f"file:{data_file}"


@pytest.mark.parametrize(
    ("text", "code", "fix"),
    [
        ("wrods:3", "unknown_pattern", "words"),
        ("Zero", "unknown_pattern", "zero"),
        ("rand", "unknown_pattern", "random"),
        ("flie:x", "unknown_pattern", "file:PATH"),
        ("", "unknown_pattern", "words:1"),
        ("words:", "bad_pattern", "words:42"),
        ("words:x", "bad_pattern", "words:42"),
        ("random:-1", "bad_pattern", "random:42"),
        ("words:0x10000000000000000", "bad_pattern", "words:42"),
        ("zero:1", "bad_pattern", "zero"),
        ("file:", "bad_pattern", "file:/path/to/data"),
    ],
)
def test_what_is_wrong_comes_with_what_to_type(text, code, fix):
    with pytest.raises(RequestError) as caught:
        parse_pattern(text)
    assert (caught.value.code, caught.value.fix) == (code, fix)


def test_a_file_that_cannot_be_repeated_is_refused_at_once(tmp_path):
    with pytest.raises(HostError) as missing:
        parse_pattern(f"file:{tmp_path / 'nope'}")
    assert (missing.value.code, missing.value.errno) == ("pattern_file", "ENOENT")
    (tmp_path / "empty").touch()
    with pytest.raises(RequestError, match="empty"):
        parse_pattern(f"file:{tmp_path / 'empty'}")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(HostError) as fifo:
        parse_pattern(f"file:{tmp_path / 'fifo'}")
    assert fifo.value.errno == "ESPIPE"


def test_words_are_splitmix64():
    # First outputs of the reference splitmix64 for seed 1234567.
    assert [mix64(1234567, k) for k in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    data = parse_pattern("words:1234567").bytes_at(0, 24)
    assert struct.unpack("<3Q", data) == (6457827717110365317, 3203168211198807973, 9817491932198370423)


@given(
    st.integers(0, (1 << 64) - 1),
    st.one_of(st.integers(0, 64), st.integers(128 * KIB - 20, 128 * KIB + 20), st.integers(0, 1 << 50)),
    st.one_of(st.integers(0, 40), st.integers(128 * KIB - 20, 128 * KIB + 20)),
)
@settings(max_examples=60, deadline=None)
def test_words_at_any_offset_are_the_words_of_those_positions(seed, offset, length):
    data = Pattern("words", seed).bytes_at(offset, length)
    first, last = offset // 8, (offset + length + 7) // 8
    head = [first + k for k in range(min(4, last - first))]
    for k in head:
        word = struct.pack("<Q", mix64(seed, k))
        low, high = max(k * 8, offset), min(k * 8 + 8, offset + length)
        assert data[low - offset : high - offset] == word[low - k * 8 : high - k * 8]
    # The end too, across the block the generator works in.
    k = last - 1
    if length:
        word = struct.pack("<Q", mix64(seed, k))
        low, high = max(k * 8, offset), min(k * 8 + 8, offset + length)
        assert data[low - offset : high - offset] == word[low - k * 8 : high - k * 8]
    assert len(data) == length


@pytest.mark.parametrize("name", ["words:5", "random:5", "zero", "FILE", "BIGFILE"])
def test_pieces_agree_with_the_whole(name, data_file, tmp_path, monkeypatch):
    if name == "BIGFILE":
        # A file longer than a step is read in pieces; a small step makes that cheap to test.
        monkeypatch.setattr(pattern_module, "STEP_BYTES", 100)
    pattern = parse_pattern(f"file:{data_file}" if "FILE" in name else name)
    total = 600 * KIB + 13 if "FILE" not in name else 3000
    whole = pattern.bytes_at(0, total)
    assert len(whole) == total
    for cut in (1, 7, total // 3, total // 2 + 3):
        view = memoryview(bytearray(total))
        pattern.fill(view[:cut])
        pattern.fill(view[cut:], cut)
        assert view == whole
    if "FILE" in name:
        content = data_file.read_bytes()
        assert whole == (content * 4)[:total]


def test_zero_clears_and_seeds_differ():
    dirty = memoryview(bytearray(b"\xaa" * (5 * MIB)))
    parse_pattern("zero").fill(dirty[1:])
    assert dirty[0] == 0xAA
    assert bytes(dirty[1:]) == bytes(5 * MIB - 1)
    for kind in ("words", "random"):
        assert Pattern(kind, 1).bytes_at(0, 64) != Pattern(kind, 2).bytes_at(0, 64)
        # Position dependent: no block repeats.
        assert Pattern(kind, 1).bytes_at(0, 64) != Pattern(kind, 1).bytes_at(256 * KIB, 64)


def test_views_of_other_formats_are_filled_as_bytes():
    words = memoryview(bytearray(64)).cast("Q")
    parse_pattern("words:9").fill(words)
    assert list(words) == [mix64(9, k) for k in range(8)]


def test_random_is_the_same_bytes_on_every_machine():
    assert parse_pattern("random:1").bytes_at(0, 16).hex() == RANDOM_1


RANDOM_1 = "4802f668a6f4e0fe7f88e3934c3c435f"


@pytest.mark.parametrize("step_bytes", [100, 4 * MIB])
def test_a_file_that_shrinks_is_an_error_not_garbage(data_file, monkeypatch, step_bytes):
    monkeypatch.setattr(pattern_module, "STEP_BYTES", step_bytes)
    pattern = parse_pattern(f"file:{data_file}")
    monkeypatch.setattr(pattern_module, "_file_length", lambda path: 753)
    data_file.write_bytes(b"")
    with pytest.raises(HostError, match="shorter"):
        pattern.bytes_at(0, 1000)


def test_a_file_that_vanishes_is_a_host_error(data_file):
    pattern = parse_pattern(f"file:{data_file}")
    data_file.unlink()
    with pytest.raises(HostError) as caught:
        pattern.bytes_at(0, 10)
    assert caught.value.errno == "ENOENT"


def test_a_file_that_may_not_be_opened_any_more_is_a_host_error(data_file, monkeypatch):
    pattern = parse_pattern(f"file:{data_file}")
    monkeypatch.setattr(pattern_module, "_file_length", lambda path: 753)
    data_file.unlink()
    with pytest.raises(HostError, match="cannot read"):
        pattern.bytes_at(0, 10)


def test_importing_and_parsing_needs_no_numpy():
    code = (
        "import sys; from p2prw.engine.pattern import parse_pattern; parse_pattern('words:1');"
        " sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
