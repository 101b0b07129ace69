"""Does this kernel send the IPv4 headers that our ICRC assumes? Asked once when a device opens, without privilege.

With SO_TIMESTAMPING the kernel hands every sent frame back on the error queue (SOF_TIMESTAMPING_TX_SOFTWARE without
OPT_TSONLY; Documentation/networking/timestamping.rst), so its identification and DF can be read. It does not show what
a NIC that segments by itself writes into later segments: the driver's watch on retransmissions covers that.
"""

from __future__ import annotations

import select
import socket
import struct
from dataclasses import dataclass
from typing import Literal

from p2prw.engine.providers.soft_address import LocalAddress
from p2prw.engine.providers.soft_socket import UDP_SEGMENT, set_predictable_headers

# include/uapi/asm-generic/socket.h, include/uapi/linux/net_tstamp.h
_SO_TIMESTAMPING = 37
_TX_SOFTWARE = 1 << 1
_SOFTWARE = 1 << 4
_WAIT_MS = 200
_PAYLOAD = b"p2prw self-test"
_FRAME_BYTES = 2048
_IPV4_BYTES = 20
_DONT_FRAGMENT = 0x4000


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What came out: `ok`, `unavailable` (nothing was learnt) or `failed`."""

    verdict: Literal["ok", "unavailable", "failed"]
    why: str = ""
    single_ok: bool = True
    """False: single datagrams carry an identification we cannot foresee, so that IPv4 cannot work at all."""
    gso_ok: bool = True
    """False: only UDP_SEGMENT sends do."""


def run_self_test(local: LocalAddress, *, gso: bool) -> SelfTest:
    """Send one plain and one segmented datagram from `local` to itself and judge the frames the kernel built."""
    if local.family == socket.AF_INET6:
        return SelfTest("ok", "IPv6 headers hold nothing that cannot be foreseen")
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target,
        ):
            target.bind((local.address, 0))
            set_predictable_headers(sender)
            sender.bind((local.address, 0))
            sender.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _TX_SOFTWARE | _SOFTWARE)
            single = _sent_frame(sender, target, 1, None)
            segmented = _sent_frame(sender, target, 3, len(_PAYLOAD)) if gso else None
    except OSError as exc:
        return SelfTest("unavailable", f"the frame could not be read back: {exc}")
    return judge(single, segmented, gso=gso)


def _sent_frame(sender: socket.socket, target: socket.socket, segments: int, segment_bytes: int | None) -> bytes | None:
    """Send and return the frame as the kernel built it; None when it is not handed back in time."""
    ancillary = [] if segment_bytes is None else [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("H", segment_bytes))]
    sender.sendmsg([_PAYLOAD * segments], ancillary, 0, target.getsockname())
    waiter = select.poll()
    # The error queue shows as POLLERR, which cannot be asked for and cannot be left out.
    waiter.register(sender, 0)
    if not waiter.poll(_WAIT_MS):
        return None
    frame, _, _, _ = sender.recvmsg(_FRAME_BYTES, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
    return frame


def judge(single: bytes | None, segmented: bytes | None, *, gso: bool) -> SelfTest:
    """Compare captured frames with what the ICRC assumes: identification 0 and DF 1, of a segmented send too."""
    if single is None or (gso and segmented is None):
        return SelfTest("unavailable", "the kernel did not hand the frame back (sysctl net.core.tstamp_allow_data)")
    single_header = _ipv4_fields(single)
    if single_header is None:
        return SelfTest("unavailable", "no IPv4 header was found in the frame the kernel handed back")
    if single_header != (0, _DONT_FRAGMENT):
        return SelfTest("failed", _found(single_header, "a single datagram"), single_ok=False, gso_ok=False)
    if gso and segmented is not None:
        segmented_header = _ipv4_fields(segmented)
        if segmented_header is None:
            return SelfTest("unavailable", "no IPv4 header was found in the segmented frame")
        if segmented_header != (0, _DONT_FRAGMENT):
            return SelfTest("failed", _found(segmented_header, "a UDP_SEGMENT send"), gso_ok=False)
    return SelfTest("ok", "identification 0 and DF as the ICRC assumes")


def _found(fields: tuple[int, int], what: str) -> str:
    return f"{what} left with identification {fields[0]:#06x} and flags {fields[1]:#06x}, not 0x0000 and 0x4000"


def _ipv4_fields(frame: bytes) -> tuple[int, int] | None:
    """Return (identification, flags and offset) of the IPv4 header that lies before our payload."""
    at = frame.find(_PAYLOAD)
    start = at - 8 - _IPV4_BYTES
    if at < 0 or start < 0 or frame[start] != 0x45 or frame[start + 9] != socket.IPPROTO_UDP:
        return None
    identification, flags = struct.unpack_from(">HH", frame, start + 4)
    return identification, flags
