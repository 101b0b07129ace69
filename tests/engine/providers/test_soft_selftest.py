"""The start-up test of IPv4 headers: with this kernel, and with captured frames that tell of other ones."""

from __future__ import annotations

import struct

import pytest

from p2prw.engine.providers.soft_address import LocalAddress
from p2prw.engine.providers.soft_selftest import judge, run_self_test

HERE = LocalAddress("127.0.0.1", "lo", 65536, True)


def frame(identification: int = 0, flags: int = 0x4000, link_header: bytes = bytes(14)) -> bytes:
    ip = struct.pack(">BBHHHBBH8s", 0x45, 0, 43, identification, flags, 64, 17, 0, bytes(8))
    return link_header + ip + struct.pack(">HHHH", 1, 2, 23, 0) + b"p2prw self-test"


@pytest.mark.parametrize("gso", [True, False])
def test_this_kernel(gso: bool) -> None:
    result = run_self_test(HERE, gso=gso)
    assert result.verdict in ("ok", "unavailable"), result.why
    assert result.single_ok
    assert result.gso_ok


def test_ipv6_needs_no_test() -> None:
    assert run_self_test(LocalAddress("::1", "lo", 65536, True), gso=True).verdict == "ok"


def test_address_that_cannot_be_bound_is_unavailable() -> None:
    result = run_self_test(LocalAddress("203.0.113.9", "x", 1500, True), gso=True)
    assert result.verdict == "unavailable"
    assert "Cannot assign" in result.why


@pytest.mark.parametrize("link_header", [b"", bytes(14), bytes(18)], ids=["tun", "ethernet", "vlan"])
def test_right_frames(link_header: bytes) -> None:
    good = frame(link_header=link_header)
    assert judge(good, good, gso=True).verdict == "ok"
    assert judge(good, None, gso=False).verdict == "ok"


@pytest.mark.parametrize(("identification", "flags"), [(0xBF62, 0x4000), (0, 0)], ids=["random-id", "no-df"])
def test_wrong_single_frame_means_no_ipv4(identification: int, flags: int) -> None:
    result = judge(frame(identification, flags), frame(), gso=True)
    assert (result.verdict, result.single_ok, result.gso_ok) == ("failed", False, False)
    assert f"identification {identification:#06x} and flags {flags:#06x}" in result.why


def test_wrong_segmented_frame_means_no_gso() -> None:
    result = judge(frame(), frame(0x1234), gso=True)
    assert (result.verdict, result.single_ok, result.gso_ok) == ("failed", True, False)
    assert "UDP_SEGMENT" in result.why


@pytest.mark.parametrize(
    ("single", "segmented"),
    [(None, None), (frame(), None), (b"nonsense", frame()), (frame(), b"nonsense"), (frame()[22:], frame())],
)
def test_nothing_learnt_is_unavailable(single: bytes | None, segmented: bytes | None) -> None:
    result = judge(single, segmented, gso=True)
    assert (result.verdict, result.single_ok, result.gso_ok) == ("unavailable", True, True)
    assert result.why
