"""Captures: read back by scapy and, where it is installed, by tshark's InfiniBand dissector."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from p2prw.engine.pcap import PcapWriter, headers, true_identification
from p2prw.engine.roce.icrc import Flow, crc32
from p2prw.engine.roce.opcodes import RcOpcode
from p2prw.engine.roce.packet import push_aeth, push_bth, push_packet, push_reth
from p2prw.errors import HostError

V4 = (("10.9.0.1", 50000), ("10.9.0.2", 4791))
V6 = (("fd00:9::1", 50000), ("fd00:9::2", 4791))
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "rocev2.json").read_text())["vectors"]


def flow_between(source: tuple[str, int], destination: tuple[str, int]) -> Flow:
    from p2prw.engine.roce.icrc import packed_address

    return Flow((packed_address(source[0]), source[1]), (packed_address(destination[0]), destination[1]))


def sealed(payload: bytes, identification: int, ends: tuple[tuple[str, int], tuple[str, int]]) -> bytes:
    masked = payload[:4] + b"\xff" + payload[5:8]
    seed = flow_between(*ends).compute_seed(identification, len(payload))
    return payload[:-4] + struct.pack("<I", crc32(payload[8:-4], crc32(masked, seed)))


def write_message(ends: tuple[tuple[str, int], tuple[str, int]], mtu_bytes: int = 256) -> list[tuple[bytes, int]]:
    """A WRITE of three packets and its ACK, as bursts of (payloads, segment size)."""
    data = bytes(range(256))
    first = push_packet(
        push_bth(RcOpcode.WRITE_FIRST, 0x11, 7), push_reth(0x7F00_0000_1000, 0x1234, 2 * mtu_bytes + 5), data
    )
    middle = push_packet(push_bth(RcOpcode.WRITE_MIDDLE, 0x11, 8), b"", data)
    last = push_packet(push_bth(RcOpcode.WRITE_LAST, 0x11, 9, ack_request=True, pad_bytes=3), b"", b"hello")
    return [
        (sealed(first, 0, ends), 0),
        (sealed(middle, 0, ends) + sealed(last, 1, ends), len(middle)),
    ]


def capture(path: Path, ends: tuple[tuple[str, int], tuple[str, int]]) -> None:
    with PcapWriter(path, wall_clock_ns=lambda: 1_700_000_000_123_456_789) as writer:
        for payloads, segment_bytes in write_message(ends):
            writer.write_burst(memoryview(payloads), segment_bytes, *ends)
        back = ends[::-1]
        ack = push_packet(push_bth(RcOpcode.ACKNOWLEDGE, 0x22, 9), push_aeth(0x1F, 1))
        # A peer that counts its identifications in its own way.
        writer.write_burst(memoryview(sealed(ack, 0x9489, back)), 0, *back, received=True)
        assert writer.packets == 4


@pytest.mark.parametrize("ends", [V4, V6], ids=["ipv4", "ipv6"])
def test_scapy_reads_it_and_agrees_on_every_field(
    tmp_path: Path, ends: tuple[tuple[str, int], tuple[str, int]]
) -> None:
    from scapy.contrib.roce import BTH
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.packet import bind_layers
    from scapy.utils import RawPcapReader

    # Answers go to the port the peer named, which scapy does not know as RoCE.
    bind_layers(UDP, BTH, dport=50000)
    path = tmp_path / "x.pcap"
    capture(path, ends)
    with RawPcapReader(str(path)) as reader:
        records = list(reader)
        assert (reader.nano, reader.linktype) == (True, 101)
    is_ipv4 = ":" not in ends[0][0]
    packets = [(IP if is_ipv4 else IPv6)(raw) for raw, _ in records]
    assert [p[BTH].opcode for p in packets] == [6, 7, 8, 0x11]
    assert [p[BTH].psn for p in packets] == [7, 8, 9, 9]
    for packet, (raw, meta) in zip(packets, records, strict=True):
        assert (meta.sec, meta.usec, meta.wirelen) == (1_700_000_000, 123_456_789, len(raw))
        assert packet[BTH].compute_icrc(b"") == raw[-4:], "scapy computes the ICRC from the whole packet"
        # Rebuilt with its own checksums and lengths, the packet is the same.
        again = packet.copy()
        del again[UDP].chksum, again[UDP].len
        if is_ipv4:
            del again[IP].chksum, again[IP].len
            assert str(packet[IP].flags) == "DF"
        assert bytes(again) == raw
    assert [(p.src, p.sport, p.dst, p.dport) for p in packets[:3]] == [(*ends[0], *ends[1])] * 3
    if is_ipv4:
        assert [p[IP].id for p in packets] == [0, 0, 1, 0x9489]


def test_identification_of_captured_packets_is_found() -> None:
    found = 0
    for vector in VECTORS:
        raw = bytes.fromhex(vector["ip_packet"])
        if raw[0] >> 4 == 6 or vector["number"] == 15:
            continue
        source, destination = (".".join(map(str, raw[at : at + 4])) for at in (12, 16))
        ports = struct.unpack_from(">HH", raw, 20)
        real = struct.unpack_from(">H", raw, 4)[0]
        ends = ((source, ports[0]), (destination, ports[1]))
        assert true_identification(*ends, memoryview(raw[28:]), 0) == real
        found += 1
    assert found == 14


def test_spoiled_packet_keeps_the_assumed_identification() -> None:
    payload = bytearray(write_message(V4)[0][0])
    payload[30] ^= 4
    assert true_identification(*V4, memoryview(payload), 3) == 3
    assert true_identification(*V4, memoryview(b"short"), 5) == 5


@pytest.mark.parametrize("size", [0, 1, 2, 3, 17])
def test_checksums_of_odd_and_empty_payloads(size: int) -> None:
    from scapy.layers.inet import IP, UDP

    payload = b"\xff" * size
    raw = headers(("10.0.0.1", 1000), ("10.0.0.2", 2000), payload, 5) + payload
    again = IP(raw)
    udp, ip = again[UDP].chksum, again[IP].chksum
    del again[UDP].chksum, again[IP].chksum
    rebuilt = IP(bytes(again))
    assert (rebuilt[UDP].chksum, rebuilt[IP].chksum) == (udp, ip)


def test_empty_datagram_is_one_record(tmp_path: Path) -> None:
    with PcapWriter(tmp_path / "e.pcap") as writer:
        writer.write_burst(memoryview(b""), 0, *V4, received=True)
    assert (tmp_path / "e.pcap").stat().st_size == 24 + 16 + 28


def test_unwritable_path_names_errno(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        PcapWriter(tmp_path / "no" / "x.pcap")
    assert (caught.value.errno, caught.value.code) == ("ENOENT", "pcap_unwritable")


def test_flush_makes_packets_visible_and_close_twice_is_safe(tmp_path: Path) -> None:
    path = tmp_path / "f.pcap"
    writer = PcapWriter(path)
    writer.write_burst(memoryview(write_message(V4)[0][0]), 0, *V4)
    writer.flush()
    assert path.stat().st_size > 24 + 16
    writer.close()
    writer.close()


@pytest.mark.parametrize("ends", [V4, V6], ids=["ipv4", "ipv6"])
def test_tshark_dissects_it(tmp_path: Path, ends: tuple[tuple[str, int], tuple[str, int]]) -> None:
    tshark = shutil.which("tshark")
    if tshark is None:
        pytest.skip("tshark is not installed: apt-get install tshark")
    path = tmp_path / "x.pcap"
    capture(path, ends)
    names = ["infiniband.bth.opcode", "infiniband.bth.psn", "infiniband.bth.destqp", "infiniband.invariant.crc"]
    command = [tshark, "-r", str(path), "-T", "fields"]
    output = subprocess.run(
        [*command, *(part for name in names for part in ("-e", name))],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    rows = [line.split("\t") for line in output.splitlines()]
    assert [(int(r[0], 0), int(r[1]), int(r[2], 16)) for r in rows] == [
        (0x06, 7, 0x11),
        (0x07, 8, 0x11),
        (0x08, 9, 0x11),
        (0x11, 9, 0x22),
    ]
    payloads = [p for p, _ in write_message(ends)]
    assert rows[0][3] == "0x" + payloads[0][-4:].hex()
    broken = subprocess.run(
        [tshark, "-r", str(path), "-Y", "_ws.malformed || udp.checksum.status == 0 || ip.checksum.status == 0"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert broken == ""
