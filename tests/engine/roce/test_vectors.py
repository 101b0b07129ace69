"""Golden RoCEv2 packets from a Linux rxe, a ConnectX and a script, against our codec and, as a second opinion, scapy.

`tests/vectors/rocev2.json` says how each was captured.
"""

from __future__ import annotations

import ipaddress
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from p2prw.engine.roce.icrc import Flow, icrc_of_ip_packet, solve_ip_id
from p2prw.engine.roce.opcodes import RcOpcode
from p2prw.engine.roce.packet import pull_bth, pull_packet, push_aeth, push_bth, push_packet, push_reth

FILE = Path(__file__).parents[2] / "vectors" / "rocev2.json"
DOCUMENT = json.loads(FILE.read_text())
VECTORS = DOCUMENT["vectors"]
CNP = 0x81
DF_CLEAR = 15
"""The one vector without "don't fragment", which no sender of RoCE leaves out."""


def each(*, without: tuple[int, ...] = ()) -> pytest.MarkDecorator:
    chosen = [v for v in VECTORS if v["number"] not in without]
    return pytest.mark.parametrize(
        "vector", chosen, ids=[f"{v['number']:02}-{v['source']}-{v['what']}" for v in chosen]
    )


class Frame:
    """One vector's IP packet, cut by hand with struct only."""

    def __init__(self, vector: dict[str, Any]) -> None:
        self.raw = bytes.fromhex(vector["ip_packet"])
        self.is_ipv4 = self.raw[0] >> 4 == 4
        ip_bytes = 20 if self.is_ipv4 else 40
        addresses = self.raw[12:20] if self.is_ipv4 else self.raw[8:40]
        half = len(addresses) // 2
        self.source, self.destination = addresses[:half], addresses[half:]
        self.identification = struct.unpack_from(">H", self.raw, 4)[0] if self.is_ipv4 else 0
        self.ports = struct.unpack_from(">HH", self.raw, ip_bytes)
        self.payload = self.raw[ip_bytes + 8 :]
        self.icrc = struct.unpack_from("<I", self.raw, len(self.raw) - 4)[0]

    def flow(self) -> Flow:
        return Flow((self.source, self.ports[0]), (self.destination, self.ports[1]))


def test_there_are_twenty_and_each_names_its_origin() -> None:
    assert [v["number"] for v in VECTORS] == list(range(1, 21))
    assert {v["source"] for v in VECTORS} == set(DOCUMENT["sources"]) == {"CX", "rxe", "gen"}


@each()
def test_reference_icrc(vector: dict[str, Any]) -> None:
    frame = Frame(vector)
    assert icrc_of_ip_packet(frame.raw[:-4]) == frame.icrc


@each(without=(DF_CLEAR,))
def test_flow_accepts_with_the_true_identification(vector: dict[str, Any]) -> None:
    frame = Frame(vector)
    assert frame.flow().check(memoryview(frame.payload), frame.identification, solve=False)


@each(without=(DF_CLEAR,))
def test_flow_solves_an_identification_it_cannot_see(vector: dict[str, Any]) -> None:
    frame = Frame(vector)
    assert frame.flow().check(memoryview(frame.payload), 0, solve=True)


@each(without=(DF_CLEAR,))
def test_flow_refuses_any_single_bit_error(vector: dict[str, Any]) -> None:
    frame = Frame(vector)
    for position in range(0, len(frame.payload) * 8, 7):
        spoiled = bytearray(frame.payload)
        spoiled[position >> 3] ^= 1 << (position & 7)
        if position >> 3 == 4:
            # FECN and BECN may change on the way: the ICRC does not cover their byte.
            continue
        assert not frame.flow().check(memoryview(spoiled), frame.identification, solve=False)


def test_flow_refuses_a_packet_that_may_be_fragmented() -> None:
    frame = Frame(VECTORS[DF_CLEAR - 1])
    assert not frame.flow().check(memoryview(frame.payload), frame.identification, solve=True)


@pytest.mark.parametrize("difference", [0x0001, 0x0100, 0x8000, 0xFFFF, 0x1234])
def test_solved_difference_is_the_one_made(difference: int) -> None:
    frame = Frame(VECTORS[1])
    flow = frame.flow()
    size = len(frame.payload)
    delta = flow.compute_seed(5, size) ^ flow.compute_seed(5 ^ difference, size)
    # Carry the difference of the seeds on over the payload: CRC of zeros, without start and end inversions.
    raw = zlib.crc32(bytes(size), delta ^ 0xFFFFFFFF) ^ zlib.crc32(bytes(size), 0xFFFFFFFF)
    assert solve_ip_id(raw, size) == difference


@each()
def test_base_header(vector: dict[str, Any]) -> None:
    expected = vector["expected"]
    bth = pull_bth(Frame(vector).payload)
    assert (bth.opcode, bth.dest_qpn, bth.psn) == (expected["opcode"], expected["dest_qpn"], expected["psn"])
    assert (bth.ack_request, bth.migrated, bth.pad_bytes) == (
        expected["ack_request"],
        expected["migrated"],
        expected["pad_bytes"],
    )
    assert (bth.tver, bth.pkey, bth.solicited) == (0, 0xFFFF, False)


@each(without=(1,))
def test_whole_packet(vector: dict[str, Any]) -> None:
    expected, frame = vector["expected"], Frame(vector)
    packet = pull_packet(frame.payload)
    assert RcOpcode(packet.bth.opcode).name == expected["name"]
    assert (list(packet.reth) if packet.reth else None) == expected["reth"]
    assert (list(packet.aeth) if packet.aeth else None) == expected["aeth"]
    assert (packet.imm_data.hex() if packet.imm_data else None) == expected["imm_data"]
    assert packet.payload.hex() == expected["data"]
    assert packet.icrc == frame.icrc


@each(without=(1,))
def test_built_again_from_its_parts(vector: dict[str, Any]) -> None:
    expected, frame = vector["expected"], Frame(vector)
    bth = push_bth(
        expected["opcode"],
        expected["dest_qpn"],
        expected["psn"],
        ack_request=expected["ack_request"],
        pad_bytes=expected["pad_bytes"],
    )
    extension = push_reth(*expected["reth"]) if expected["reth"] else b""
    extension += push_aeth(*expected["aeth"]) if expected["aeth"] else b""
    extension += bytes.fromhex(expected["imm_data"] or "")
    built = push_packet(bth, extension, bytes.fromhex(expected["data"]))
    # We set BTH.M, rxe and the script do not; nothing else may differ (the ICRC is the driver's flow's work).
    assert built[1] & 0x40
    assert built[:1] + bytes([built[1] & ~0x40]) + built[2:-4] == frame.payload[:-4]


@each()
def test_scapy_agrees_on_headers_and_icrc(vector: dict[str, Any]) -> None:
    from scapy.contrib.roce import AETH, BTH
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6

    frame, expected = Frame(vector), vector["expected"]
    parsed = (IP if frame.is_ipv4 else IPv6)(frame.raw)
    bth = parsed[BTH]
    ours = pull_bth(frame.payload)
    assert (bth.opcode, bth.dqpn, bth.psn, bth.padcount) == (ours.opcode, ours.dest_qpn, ours.psn, ours.pad_bytes)
    assert (bool(bth.ackreq), bool(bth.migreq), bth.pkey) == (ours.ack_request, ours.migrated, ours.pkey)
    assert bool(bth.becn) == expected["becn"]
    assert bth.compute_icrc(b"") == frame.raw[-4:]
    if expected["aeth"] and expected["name"] == "ACKNOWLEDGE":
        assert [parsed[AETH].syndrome, parsed[AETH].msn] == expected["aeth"]


def test_scapy_builds_the_captured_cnp() -> None:
    from scapy.contrib.roce import cnp
    from scapy.layers.inet import IP, UDP

    frame = Frame(VECTORS[0])
    packet = IP(frame.raw)
    source, destination = (str(ipaddress.ip_address(raw)) for raw in (frame.source, frame.destination))
    built = bytes(
        IP(src=source, dst=destination, id=packet.id, flags=packet.flags, tos=packet.tos, ttl=packet.ttl)
        / UDP(sport=frame.ports[0], dport=frame.ports[1], chksum=0)
        / cnp(0x118)
    )
    assert built == frame.raw
    assert pull_bth(frame.payload).opcode == CNP
