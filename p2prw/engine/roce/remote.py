"""Who a peer is: its GID and what that means, attributes that no queue pair can have, addresses it may send from."""

from __future__ import annotations

import ipaddress

from p2prw.engine.model import QueuePairAttributes
from p2prw.engine.roce.icrc import Flow, packed_address
from p2prw.engine.roce.psn import PSN_MASK
from p2prw.errors import HostError

ROCE_UDP_PORT = 4791
MTU_SIZES = (256, 512, 1024, 2048, 4096)
_MAX_FLOWS = 64


def gid_of(address: str) -> str:
    """Return 32 hex digits; IPv4 as ::ffff:a.b.c.d."""
    packed = packed_address(address)
    return (packed if len(packed) == 16 else b"\0" * 10 + b"\xff\xff" + packed).hex()


def address_of(gid: str) -> tuple[bytes, str]:
    """Return the packed and the printed address of a GID; HostError when it is none."""
    try:
        packed = bytes.fromhex(gid)
        if len(packed) != 16:
            raise ValueError(gid)
    except ValueError:
        raise HostError(f"the peer's GID is no GID: {gid!r}", why="it has 32 hex digits", code="bad_gid") from None
    if packed[:12] == b"\0" * 10 + b"\xff\xff":
        packed = packed[12:]
    return packed, str(ipaddress.ip_address(packed))


def gid_text(gid: str) -> str:
    """Return the address of a GID for messages."""
    return address_of(gid)[1]


def check_attributes(remote: QueuePairAttributes) -> None:
    """Raise HostError where the peer's queue pair cannot be."""
    for good, what in (
        (remote.mtu_bytes in MTU_SIZES, f"path MTU {remote.mtu_bytes}, not one of {MTU_SIZES}"),
        (0 < remote.qpn <= PSN_MASK, f"QPN {remote.qpn:#x}, not of 24 bits"),
        (0 <= remote.psn <= PSN_MASK, f"PSN {remote.psn:#x}, not of 24 bits"),
        (0 < remote.udp_port <= 0xFFFF, f"UDP port {remote.udp_port}"),
    ):
        if not good:
            raise HostError("the peer's queue pair cannot be", why=what, code="bad_queue_pair")


class Sources:
    """Where packets of one connected peer may come from, and the CRC seeds for each such place."""

    def __init__(
        self, remote: QueuePairAttributes, remote_address: bytes, local_address: bytes, local_port: int
    ) -> None:
        self._remote_port = remote.udp_port
        self._remote_address = remote_address
        self._local = (local_address, local_port)
        self._flows: dict[tuple[str, int], Flow] = {}

    def flow_from(self, source: tuple[str, int]) -> Flow | None:
        """Return the CRC seeds for packets from `source`; None: it is not the peer.

        A peer that told us port 4791 may be a NIC or rxe, whose source port is a hash: then only the address counts.
        """
        flow = self._flows.get(source)
        if flow is not None:
            return flow
        if self._remote_port not in (ROCE_UDP_PORT, source[1]):
            return None
        try:
            packed = packed_address(source[0])
        except ValueError:
            return None
        if len(packed) == 16 and len(self._remote_address) == 4 and packed[:12] == b"\0" * 10 + b"\xff\xff":
            packed = packed[12:]
        if packed != self._remote_address:
            return None
        if len(self._flows) >= _MAX_FLOWS:
            self._flows.clear()
        flow = self._flows[source] = Flow((packed, source[1]), self._local)
        return flow
