"""Sizes, times and rates: what is read, what is refused, what is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.errors import RequestError
from p2prw.units import (
    counted,
    exact_size,
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
    typed_size,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("64", 64),
        ("64K", 65536),
        ("64k", 65536),
        ("64KiB", 65536),
        ("64KB", 65536),
        ("1M", 1 << 20),
        ("1.5M", 3 << 19),
        ("4G", 4 << 30),
        ("2TiB", 2 << 40),
        ("0x1000", 4096),
        ("0x1B", 27),
        ("0x10K", 16384),
        (" 7 ", 7),
        (12, 12),
    ],
)
def test_sizes_are_1024_based(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "K", "-1", -1, "1.0001K", "1X", "64 K K", "ten", "1e6", "0x", "1,5M", True])
def test_what_is_no_size_is_refused_with_examples(text):
    with pytest.raises(RequestError) as caught:
        parse_size(text, "--size")
    assert caught.value.code == "bad_size" and "64KiB" in str(caught.value.fix) and "--size" in caught.value.what


@given(st.integers(0, 1 << 60))
def test_a_plain_number_is_itself(number):
    assert parse_size(str(number)) == parse_size(hex(number)) == number


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10", 10.0), ("10s", 10.0), ("500ms", 0.5), ("2m", 120.0), ("1h", 3600.0), ("7us", 7e-6), (3, 3.0)],
)
def test_times(text, expected):
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "-1", -1, "1d", "soon", "1 2", True])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(RequestError) as caught:
        parse_duration(text)
    assert caught.value.code == "bad_duration"


def test_what_is_shown():
    assert [format_size(n) for n in (0, 4097, 65536, 3 << 19, 1 << 30)] == [
        "0 B",
        "4.00 KiB",
        "64 KiB",
        "1.50 MiB",
        "1 GiB",
    ]
    assert [exact_size(n) for n in (0, 1, 4097, 65536, 3 << 30, 5 << 50)] == [
        "0 bytes",
        "1 byte",
        "4097 bytes",
        "64 KiB",
        "3 GiB",
        "5120 TiB",
    ]
    assert all(parse_size(typed_size(n)) == n for n in (0, 1, 4097, 65536, 3 << 30, (1 << 63) - 1, 1 << 63))
    assert format_size(1 << 63) == "8 EiB" and format_size(3 << 40) == "3 TiB"
    assert format_rate(160) == "0.00015 MiB/s (0.0000013 Gb/s)", "what is small is not nothing"
    assert format_rate(0.0) == "0.0 MiB/s (0.00 Gb/s)"
    assert (counted(1, "block"), counted(0, "block"), counted(2, "retry", "retries")) == (
        "1 block",
        "0 blocks",
        "2 retries",
    )
    assert format_rate(1 << 30) == "1024.0 MiB/s (8.59 Gb/s)" and format_rate(None) == "-"
    assert [format_duration(s) for s in (125.0, 1.239, 0.0123, 0.000085)] == ["2m05s", "1.24 s", "12.3 ms", "85 us"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 GiB/s", 2.0**30),
        ("1.5MiB/s", 1.5 * 2**20),
        ("1GB/s", 1e9),
        ("10Gb/s", 1.25e9),
        ("10 Gbit/s", 1.25e9),
        ("8Mbps", 1e6),
        ("7B/s", 7.0),
        ("1 KiB/s", 1024.0),
    ],
)
def test_rates_are_binary_with_an_i_and_bits_with_a_small_b(text, expected):
    assert parse_rate(text) == expected


@pytest.mark.parametrize("text", ["", "fast", "1 GiB", "1 G/s", "GiB/s", "-1 MB/s", "1 XB/s", "1 GiB/m"])
def test_what_is_no_rate_is_refused_with_examples(text):
    with pytest.raises(RequestError) as caught:
        parse_rate(text, "--min-bw")
    assert caught.value.code == "bad_rate" and "GiB/s" in str(caught.value.fix) and "--min-bw" in caught.value.what
