"""Configuration space: what is said, and that nothing a file may hold is more than an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.topology.config_space import ACS_REDIRECT_MASK, Acs, PortType, Unreadable, parse_config


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("endpoint", PortType.ENDPOINT),
        ("root port", PortType.ROOT_PORT),
        ("upstream", PortType.UPSTREAM),
        ("downstream", PortType.DOWNSTREAM),
        ("pcie to pci", PortType.PCIE_TO_PCI),
        ("integrated", PortType.ROOT_ENDPOINT),
        (None, PortType.CONVENTIONAL),
    ],
)
def test_types(make_config, kind, expected) -> None:
    found = parse_config(bytes(make_config(kind=kind)))
    assert (found.port_type, found.type_unknown) == (expected, None)


def test_acs_control_decides_not_the_capability(make_config) -> None:
    off = parse_config(bytes(make_config(kind="downstream", acs=0x00)), 4096)
    on = parse_config(bytes(make_config(kind="downstream", acs=0x1D)), 4096)
    assert off.acs == Acs(0x5F, 0) and not off.acs.redirects
    assert on.acs is not None and on.acs.redirects
    assert on.acs.enabled() == ("SV", "RR", "CR", "UF")
    assert on.acs.supported() == ("SV", "TB", "RR", "CR", "UF", "DT")
    assert on.acs.cleared == 0x11


@pytest.mark.parametrize(
    ("bit", "name"), [(1, "SV"), (2, "TB"), (4, "RR"), (8, "CR"), (16, "UF"), (32, "EC"), (64, "DT")]
)
def test_each_bit(bit, name) -> None:
    """drivers/pci/p2pdma.c: RR, CR and EC redirect, the others do not."""
    acs = Acs(0x7F, bit)
    assert acs.enabled() == (name,)
    assert acs.redirects == (name in ("RR", "CR", "EC"))
    assert not Acs(0x7F, 0x7F & ~ACS_REDIRECT_MASK).redirects


def test_no_acs_capability_is_certain(make_config) -> None:
    found = parse_config(bytes(make_config()), 4096)
    assert (found.acs, found.acs_unknown) == (None, None)


def test_a_device_of_256_bytes_has_no_acs_also_without_privilege(make_config) -> None:
    raw = bytes(make_config(kind=None))
    for read in (raw, raw[:64]):
        found = parse_config(read, 256)
        assert (found.acs, found.acs_unknown) == (None, None)


@pytest.mark.parametrize("length", [64, 128])
def test_without_privilege_is_unknown_never_none(make_config, length) -> None:
    for size in (4096, None):
        found = parse_config(bytes(make_config(kind="root port", acs=0x1D))[:length], size)
        assert found.acs is None
        assert found.acs_unknown is Unreadable.NEEDS_ROOT
    assert parse_config(bytes(make_config())[:64], 4096).type_unknown is Unreadable.NEEDS_ROOT
    assert parse_config(bytes(make_config(kind=None))[:64], 256).port_type is PortType.CONVENTIONAL


def test_d3cold_reads_all_ones() -> None:
    for length in (64, 256, 4096):
        found = parse_config(b"\xff" * length, 4096)
        assert found.acs_unknown is found.type_unknown is Unreadable.NO_ANSWER


def test_a_vf_whose_ids_read_all_ones_is_there(make_config) -> None:
    found = parse_config(bytes(make_config(0xFFFF, 0xFFFF)), 4096)
    assert found.port_type is PortType.ENDPOINT
    assert found.acs_unknown is None


def test_loops_end(make_config) -> None:
    raw = make_config(kind="upstream")
    raw[0x40:0x42] = bytes([0x05, 0x50])
    raw[0x50:0x52] = bytes([0x05, 0x40])
    raw[0x100:0x104] = (0x0001 | 1 << 16 | 0x200 << 20).to_bytes(4, "little")
    raw[0x200:0x204] = (0x0003 | 1 << 16 | 0x100 << 20).to_bytes(4, "little")
    found = parse_config(bytes(raw), 4096)
    assert found.type_unknown is found.acs_unknown is Unreadable.LOOP


def test_truncated_in_the_list(make_config) -> None:
    raw = bytes(make_config(kind="downstream", acs=0x1D))
    for length in (100, 256, 0x14A):
        assert parse_config(raw[:length], 4096).acs_unknown is Unreadable.TRUNCATED
    assert parse_config(raw[:0x150], 4096).acs == Acs(0x5F, 0x1D), "what lies before the cut counts"


def test_pointers_out_of_bounds(make_config) -> None:
    raw = make_config()
    raw[0x34] = 0x10
    raw[0x100:0x104] = (0x0001 | 1 << 16 | 0xFFC << 20).to_bytes(4, "little")
    found = parse_config(bytes(raw), 4096)
    assert found.type_unknown is found.acs_unknown is Unreadable.GARBLED


def test_acs_of_all_ones_is_no_answer(make_config) -> None:
    found = parse_config(bytes(make_config(kind="root port", acs=0xFFFF)), 4096)
    assert found.acs_unknown is Unreadable.ALL_ONES


@pytest.mark.parametrize("raw", [None, b"", b"\0", b"\x86\x80"])
def test_nothing_to_read(raw) -> None:
    found = parse_config(raw, 4096)
    assert found.acs_unknown is not None and found.type_unknown is not None


@given(st.binary(max_size=4096), st.sampled_from([None, 64, 256, 4096, 7]))
def test_any_bytes_are_an_answer(raw, size) -> None:
    found = parse_config(raw, size)
    assert found.acs is None or found.acs_unknown is None
    assert (found.port_type is None) == (found.type_unknown is not None)


@given(st.data())
def test_a_spoilt_space_is_an_answer(data) -> None:
    raw = bytearray(4096)
    raw[0x06], raw[0x34] = 0x10, 0x40
    for _ in range(data.draw(st.integers(1, 40))):
        position = data.draw(st.sampled_from([0x34, *range(0x40, 0x80), *range(0x100, 0x140)]))
        raw[position] = data.draw(st.integers(0, 255))
    length = data.draw(st.sampled_from([64, 128, 256, 300, 4096]))
    found = parse_config(bytes(raw[:length]), 4096)
    if length < 4096 and found.acs is None:
        assert found.acs_unknown is not None or raw[0x100:0x104] in (bytes(4), b"\xff" * 4) or length > 256
