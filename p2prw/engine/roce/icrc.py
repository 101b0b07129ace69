"""The invariant CRC of RoCEv2, made and checked without seeing the IP header.

CRC-32 (polynomial 0xEDB88320, reflected) over 8 bytes of ones (the masked LRH), the IP and UDP headers, BTH, extension
headers, payload and pad, with these fields set to ones first: IPv4 TOS, TTL and header checksum; IPv6 traffic class,
flow label and hop limit; UDP checksum; BTH byte 4. It stands little-endian at the end of the packet
(drivers/infiniband/sw/rxe/rxe_icrc.c).

All that a UDP socket hides of the IPv4 header is the identification: a sender that follows this module's rules puts
the segment index there (0 for a single datagram); for other senders it is guessed as "last + 1" or solved for, because
CRC is linear. A solved check is worth 16 of the 32 bits.
"""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Callable
from struct import Struct
from typing import Literal, cast

from p2prw.engine.roce.packet import Readable

IcrcCheck = Literal["full", "solve", "off"]


def _fastest_crc32() -> tuple[str, Callable[..., int]]:
    """Return name and function: zlib-ng does 4 KiB in a quarter of the standard library's time."""
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        pass
    else:
        return "zlib-ng", cast("Callable[..., int]", zlib_ng.crc32)
    try:
        from isal import isal_zlib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return "zlib", zlib.crc32
    return "isal", cast("Callable[..., int]", isal_zlib.crc32)


CRC32_LIBRARY, crc32 = _fastest_crc32()

ICRC_RESIDUE = 0x2144DF1C
"""CRC-32 of anything followed by its own little-endian CRC-32: one pass checks, no field is read."""

_LRH_SEED = zlib.crc32(b"\xff" * 8)
_IPV4 = Struct(">BBHHHBBH4s4s")
_IPV6 = Struct(">IHBB16s16s")
_UDP = Struct(">HHHH")
_DONT_FRAGMENT = 0x4000
_UDP_HEADER_BYTES = 8
_IPV4_AFTER_ID_BYTES = 14
_MAX_CACHED = 128


def icrc_of_ip_packet(packet: Readable) -> int:
    """Return the ICRC over a whole IP packet whose last 4 bytes (the ICRC) are left off; the slow, plain reference."""
    data = bytearray(packet)
    if data[0] >> 4 == 4:
        data[1] = data[8] = 0xFF
        data[10:12] = b"\xff\xff"
        udp = 20
    else:
        data[0:4] = b"\x6f\xff\xff\xff"
        data[7] = 0xFF
        udp = 40
    data[udp + 6 : udp + 8] = b"\xff\xff"
    data[udp + 12] = 0xFF
    return zlib.crc32(data, _LRH_SEED)


def packed_address(address: str) -> bytes:
    """Return 4 or 16 bytes; an IPv6 zone (`%eth0`) is not part of the address. ValueError when it is none."""
    return ipaddress.ip_address(address.partition("%")[0]).packed


class Flow:
    """One direction between two UDP endpoints: CRCs over everything before the BTH, kept for re-use.

    Driven by nobody: the same questions always get the same answers; only `last_id` (what the peer's IPv4
    identification was last found to be) changes.
    """

    __slots__ = ("_destination", "_masked_ports", "_prefixed", "_seeds", "_source", "is_ipv4", "last_id")

    def __init__(self, source: tuple[bytes, int], destination: tuple[bytes, int]) -> None:
        self._source = source[0]
        self._destination = destination[0]
        self._masked_ports = (source[1], destination[1])
        self.is_ipv4 = len(source[0]) == 4
        self.last_id: int | None = None
        self._seeds: dict[tuple[int, int], int] = {}
        self._prefixed: dict[tuple[bytes, int], list[int]] = {}

    def compute_seed(self, ip_id: int, udp_payload_bytes: int) -> int:
        """Return the CRC up to the BTH of a datagram with this IPv4 identification (ignored on IPv6) and size."""
        udp_bytes = udp_payload_bytes + _UDP_HEADER_BYTES
        udp = _UDP.pack(*self._masked_ports, udp_bytes, 0xFFFF)
        if self.is_ipv4:
            ip = _IPV4.pack(
                *(0x45, 0xFF, udp_bytes + 20, ip_id, _DONT_FRAGMENT, 0xFF, 17, 0xFFFF),
                *(self._source, self._destination),
            )
        else:
            ip = _IPV6.pack(0x6FFFFFFF, udp_bytes, 17, 0xFF, self._source, self._destination)
        return crc32(ip + udp, _LRH_SEED)

    def seed(self, ip_id: int, udp_payload_bytes: int) -> int:
        """Return the same as `compute_seed`, remembered."""
        key = (ip_id, udp_payload_bytes)
        seed = self._seeds.get(key)
        if seed is None:
            if len(self._seeds) > _MAX_CACHED:
                self._seeds.clear()
            seed = self._seeds[key] = self.compute_seed(ip_id, udp_payload_bytes)
        return seed

    def prefixed_seeds(self, prefix: bytes, udp_payload_bytes: int, count: int) -> list[int]:
        """Return at least `count` CRCs up to and with the first 8 bytes of the BTH, for segment 0, 1, ... of a burst.

        `prefix` has byte 4 already set to 0xFF. What is left of a packet (PSN word, data, ICRC) is one piece of
        memory, so a received packet costs one call.
        """
        key = (prefix, udp_payload_bytes)
        seeds = self._prefixed.get(key)
        if seeds is None:
            if len(self._prefixed) > _MAX_CACHED:
                self._prefixed.clear()
            seeds = self._prefixed[key] = []
        if len(seeds) < count:
            seeds.extend(crc32(prefix, self.compute_seed(i, udp_payload_bytes)) for i in range(len(seeds), count))
        return seeds

    def check(self, view: memoryview, index: int, *, solve: bool) -> bool:
        """Tell whether the ICRC of one whole UDP payload, segment `index` of its burst, is right.

        With `solve` an IPv4 identification other than `index` is tried as the last one plus one, then solved for.
        """
        length_bytes = len(view)
        masked = bytes(view[:4]) + b"\xff" + bytes(view[5:8])
        rest = view[8:]
        guess = index
        if solve and self.is_ipv4 and self.last_id is not None:
            # This sender counts in its own way (rxe, a NIC): its next number is the better first guess.
            guess = (self.last_id + 1) & 0xFFFF
            seed = self.compute_seed(guess, length_bytes)
        else:
            seed = self.seed(index, length_bytes)
        found = crc32(rest, crc32(masked, seed))
        if found == ICRC_RESIDUE:
            if guess != index:
                self.last_id = guess
            return True
        if not solve or not self.is_ipv4:
            return False
        difference = solve_ip_id(found ^ ICRC_RESIDUE, length_bytes)
        if difference is None:
            return False
        found_id = difference ^ guess
        # Back in step with our own rule: from here on all 32 bits check again.
        self.last_id = None if found_id == index else found_id
        return True


def solve_ip_id(difference: int, udp_payload_bytes: int) -> int | None:
    """Return the XOR of the true and the assumed IPv4 identification that explains a CRC difference, else None.

    The difference of two CRCs is D(x) x^(32 + 8 n) mod P for a difference D of 16 bits that lies n bytes before the
    end; dividing by the power leaves D itself, in the top half of the (reflected) register, or garbage.
    """
    factor = _inverse_shifts.get(udp_payload_bytes)
    if factor is None:
        if len(_inverse_shifts) > 4096:
            _inverse_shifts.clear()
        after_bytes = _IPV4_AFTER_ID_BYTES + _UDP_HEADER_BYTES + udp_payload_bytes
        factor = _inverse_shifts[udp_payload_bytes] = _power_of_x(-(8 * after_bytes + 32))
    value = _multiply(difference, factor)
    if value & 0xFFFF:
        return None
    return (value >> 16 & 0xFF) << 8 | value >> 24


_inverse_shifts: dict[int, int] = {}

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31
_ORDER = (1 << 32) - 1
"""x^(2^32 - 1) = 1 modulo the CRC-32 polynomial, which is primitive."""


def _multiply(a: int, b: int) -> int:
    """Return a(x) b(x) mod P, both reflected (bit 31 is x^0); zlib's multmodp."""
    product = 0
    mask = _ONE
    while mask:
        if a & mask:
            product ^= b
        mask >>= 1
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


def _power_of_x(exponent: int) -> int:
    """Return x^exponent mod P; negative exponents divide."""
    exponent %= _ORDER
    result, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            result = _multiply(result, square)
        square = _multiply(square, square)
        exponent >>= 1
    return result
