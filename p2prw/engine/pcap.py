"""A capture of what the software device sends and receives, in the pcap format that Wireshark and tshark read.

A UDP socket shows payloads only, so IP and UDP headers are written anew: the same addresses, ports, lengths, DF and
identification that the ICRC was computed with. Fields the ICRC masks (TTL, TOS, hop limit) are made up; checksums are
right. The IPv4 identification of a received packet is solved for from its ICRC; a packet that arrived spoiled shows
the segment's index there, and a wrong ICRC.
"""

from __future__ import annotations

import ipaddress
import struct
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from p2prw.engine.roce.icrc import ICRC_RESIDUE, Flow, crc32, solve_ip_id
from p2prw.errors import HostError

# draft-ietf-opsawg-pcap, section 4: nanosecond time stamps in the writer's byte order.
_MAGIC_NANOSECONDS = 0xA1B23C4D
# draft-ietf-opsawg-pcaplinktype: the packet starts with an IPv4 or IPv6 header.
_LINKTYPE_RAW = 101
_SNAPLEN_BYTES = 262144
_FILE_HEADER = struct.Struct("<IHHiIII")
_RECORD_HEADER = struct.Struct("<IIII")
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_IPV6 = struct.Struct(">IHBB16s16s")
_UDP = struct.Struct(">HHHH")
_IPPROTO_UDP = 17
_DONT_FRAGMENT = 0x4000
_TTL = 64

Endpoint = tuple[str, int]


@lru_cache(maxsize=256)
def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address.partition("%")[0]).packed


def _ones_complement_sum(data: bytes | memoryview) -> int:
    """Return the 16-bit one's complement sum of RFC 1071, not inverted: arithmetic modulo 65535."""
    value = int.from_bytes(data, "big") << (8 if len(data) & 1 else 0)
    return value % 0xFFFF


def _checksum(total: int) -> int:
    return 0xFFFF - total % 0xFFFF


def headers(source: Endpoint, destination: Endpoint, payload: bytes | memoryview, identification: int) -> bytes:
    """Return the IP and UDP headers of one datagram as Linux sends them from the software device's socket."""
    source_ip, destination_ip = _packed(source[0]), _packed(destination[0])
    udp_bytes = _UDP.size + len(payload)
    pseudo = source_ip + destination_ip + struct.pack(">IxxxB", udp_bytes, _IPPROTO_UDP)
    unsummed = _UDP.pack(source[1], destination[1], udp_bytes, 0)
    total = _ones_complement_sum(pseudo) + _ones_complement_sum(unsummed) + _ones_complement_sum(payload)
    # RFC 768: a computed zero is sent as all ones, which _checksum gives.
    udp = _UDP.pack(source[1], destination[1], udp_bytes, _checksum(total))
    if len(source_ip) == 16:
        return _IPV6.pack(6 << 28, udp_bytes, _IPPROTO_UDP, _TTL, source_ip, destination_ip) + udp
    fields = (0x45, 0, 20 + udp_bytes, identification, _DONT_FRAGMENT, _TTL, _IPPROTO_UDP)
    checksum = _checksum(_ones_complement_sum(_IPV4.pack(*fields, 0, source_ip, destination_ip)))
    return _IPV4.pack(*fields, checksum, source_ip, destination_ip) + udp


@lru_cache(maxsize=256)
def _flow(source: Endpoint, destination: Endpoint) -> Flow:
    return Flow((_packed(source[0]), source[1]), (_packed(destination[0]), destination[1]))


def true_identification(source: Endpoint, destination: Endpoint, payload: memoryview, assumed: int) -> int:
    """Return the IPv4 identification that makes the ICRC of a UDP payload right; `assumed` when none does."""
    flow = _flow(source, destination)
    if not flow.is_ipv4 or len(payload) < 16:
        return assumed
    masked = bytes(payload[:4]) + b"\xff" + bytes(payload[5:8])
    found = crc32(payload[8:], crc32(masked, flow.compute_seed(assumed, len(payload))))
    difference = solve_ip_id(found ^ ICRC_RESIDUE, len(payload)) if found != ICRC_RESIDUE else 0
    return assumed if difference is None else assumed ^ difference


class PcapWriter:
    """One capture file; the driver calls `write_burst` for each burst that passes the socket."""

    def __init__(self, path: str | Path, wall_clock_ns: Callable[[], int] = time.time_ns) -> None:
        """Create or overwrite `path`; HostError with errno when that cannot be done."""
        self.path = Path(path)
        self.packets = 0
        self._wall_clock_ns = wall_clock_ns
        try:
            self._file = self.path.open("wb", buffering=1 << 20)
        except OSError as exc:
            raise HostError(
                f"cannot write the capture {path}: {exc.strerror}",
                why=f"--pcap creates it in {self.path.absolute().parent}",
                fix=f"ls -ld {self.path.absolute().parent}; --pcap in a directory that can be written to",
                code="pcap_unwritable",
                errno=exc.errno,
            ) from exc
        self._file.write(_FILE_HEADER.pack(_MAGIC_NANOSECONDS, 2, 4, 0, 0, _SNAPLEN_BYTES, _LINKTYPE_RAW))

    def write_burst(
        self,
        view: memoryview,
        segment_bytes: int,
        source: Endpoint,
        destination: Endpoint,
        *,
        received: bool = False,
    ) -> None:
        """Append the datagrams of a burst, `segment_bytes` of payload each (0: one datagram); OSError: disk full.

        Segment i we send carries identification i; for `received` ones it is found out.
        """
        step = segment_bytes or len(view) or 1
        seconds, nanoseconds = divmod(self._wall_clock_ns(), 1_000_000_000)
        for index, start in enumerate(range(0, max(len(view), 1), step)):
            payload = view[start : start + step]
            identification = true_identification(source, destination, payload, index) if received else index
            header = headers(source, destination, payload, identification)
            length_bytes = len(header) + len(payload)
            self._file.write(_RECORD_HEADER.pack(seconds, nanoseconds, length_bytes, length_bytes))
            self._file.write(header)
            self._file.write(payload)
            self.packets += 1

    def flush(self) -> None:
        """Hand everything to the kernel, so that a reader sees whole packets."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close. Safe to call twice."""
        self._file.close()

    def __enter__(self) -> PcapWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
