"""Seeds, the library ladder, and the three ways of checking; the bytes themselves are in test_vectors.py."""

from __future__ import annotations

import struct
import sys
import zlib

import pytest

from p2prw.engine.roce import icrc
from p2prw.engine.roce.icrc import Flow, packed_address

A, B = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02"
V6A, V6B = bytes(15) + b"\x01", bytes(15) + b"\x02"


def datagram(flow: Flow, ip_id: int, body: bytes) -> memoryview:
    """A UDP payload of 12 + n bytes with the ICRC of a datagram of identification `ip_id`."""
    masked = body[:4] + b"\xff" + body[5:]
    crc = zlib.crc32(masked, flow.compute_seed(ip_id, len(body) + 4))
    return memoryview(bytearray(body + struct.pack("<I", crc)))


def test_libraries_are_tried_fastest_first(monkeypatch):
    names = []
    for missing in ([], ["zlib_ng"], ["zlib_ng", "isal"]):
        for name in missing:
            monkeypatch.setitem(sys.modules, name, None)
        name, function = icrc._fastest_crc32()
        names.append(name)
        assert function(b"123456789") == 0xCBF43926
        assert function(b"6789", function(b"12345")) == 0xCBF43926
    assert names[0] == icrc.CRC32_LIBRARY
    assert names[2] == "zlib"


@pytest.mark.parametrize("length", [16, 17, 32, 1040, 4112])
@pytest.mark.parametrize("ip_id", [0, 1, 14, 0x1234, 0xFFFF])
def test_an_unknown_identification_is_solved_and_then_followed(length, ip_id):
    flow = Flow((A, 49152), (B, 4791))
    body = bytes(range(256)) * 17
    first = datagram(flow, ip_id, body[: length - 4])
    assert not flow.check(first, 7, solve=False)
    assert flow.check(first, 7, solve=True)
    assert flow.last_id == ip_id
    following = datagram(flow, (ip_id + 1) & 0xFFFF, body[: length - 4])
    assert flow.check(following, 0, solve=True)
    damaged = bytearray(following)
    damaged[9] ^= 1
    assert not flow.check(memoryview(damaged), 0, solve=True)


def test_a_sender_that_falls_back_in_step_is_checked_in_full_again():
    flow = Flow((A, 4791), (B, 4791))
    assert flow.check(datagram(flow, 500, bytes(20)), 0, solve=True)
    assert flow.check(datagram(flow, 3, bytes(20)), 3, solve=True)
    assert flow.last_id is None


def test_ipv6_has_nothing_to_solve():
    flow = Flow((V6A, 4791), (V6B, 4791))
    good = datagram(flow, 0, bytes(20))
    assert flow.check(good, 5, solve=False)
    good[19] ^= 0x80
    assert not flow.check(good, 5, solve=True)


def test_marks_set_by_switches_do_not_matter():
    flow = Flow((A, 4791), (B, 4791))
    packet = datagram(flow, 0, bytes(20))
    packet[4] = 0xC0  # FECN and BECN
    assert flow.check(packet, 0, solve=False)


def test_seed_caches_stay_small():
    flow = Flow((A, 4791), (B, 4791))
    for length in range(16, 1016):
        assert flow.seed(0, length) == flow.compute_seed(0, length)
        flow.prefixed_seeds(bytes(8), length, 2)
    assert len(flow._seeds) <= 130
    assert len(flow._prefixed) <= 130


def test_prefixed_seeds_are_one_for_each_segment():
    flow = Flow((A, 4791), (B, 4791))
    few = list(flow.prefixed_seeds(b"prefix!!", 4112, 2))
    more = flow.prefixed_seeds(b"prefix!!", 4112, 15)
    assert more[:2] == few
    assert more[14] == zlib.crc32(b"prefix!!", flow.compute_seed(14, 4112))


def test_addresses():
    assert packed_address("10.0.0.1") == A
    assert packed_address("::1%lo") == V6A
    with pytest.raises(ValueError, match="does not appear"):
        packed_address("localhost")
