"""Which GID of ours talks to which GID of theirs. Pure; both whole tables are known before a queue pair is made.

Two sides that each pick "their" default is how perftest users end up with pairs that cannot talk.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from p2prw.engine.control.messages import Gid
from p2prw.engine.model import GidEntry
from p2prw.errors import HostError, RequestError


def gid_to_address(gid: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IP address a RoCE GID stands for; ::ffff:a.b.c.d is IPv4."""
    address = ipaddress.IPv6Address(int(gid, 16))
    return address.ipv4_mapped or address


def address_to_gid(address: str) -> str:
    """Return the 32 hex digits of the GID of an IP address."""
    parsed = ipaddress.ip_address(address.split("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        parsed = ipaddress.IPv6Address(f"::ffff:{parsed}")
    return f"{int(parsed):032x}"


@dataclass(frozen=True, slots=True)
class GidPair:
    """The chosen rows and why."""

    local: GidEntry
    remote: GidEntry
    reason: str


def to_wire(entries: Sequence[GidEntry]) -> tuple[Gid, ...]:
    """Return a GID table as hello carries it: zero GIDs skipped."""
    return tuple(Gid(e.index, e.gid, e.type, e.netdev, e.up) for e in entries if int(e.gid, 16))


def from_wire(entries: Sequence[Gid]) -> tuple[GidEntry, ...]:
    """Return the peer's table as the model holds it."""
    return tuple(GidEntry(e.index, e.gid, e.type, e.netdev, e.up) for e in entries)


def pick_gid_pair(local: Sequence[GidEntry], remote: Sequence[GidEntry], pinned: int | None = None) -> GidPair:
    """Return the pair that fits best: same family, RoCEv2 over v1, routable over link-local, netdev up.

    `pinned` is --gid-index. RequestError when it names no row, HostError when no pair has a common family and type.
    """
    rows = [entry for entry in local if pinned is None or entry.index == pinned]
    if not rows:
        known = ", ".join(str(entry.index) for entry in local) or "none"
        raise RequestError(
            f"--gid-index {pinned}: no such GID on this port",
            why=f"it has: {known}",
            fix="p2prw devices",
            code="bad_gid_index",
        )
    best: tuple[tuple[bool, ...], GidEntry, GidEntry] | None = None
    for mine in rows:
        for theirs in remote:
            ours, others = gid_to_address(mine.gid), gid_to_address(theirs.gid)
            if ours.version != others.version or mine.type != theirs.type:
                continue
            score = (
                mine.up and theirs.up,
                not (ours.is_link_local or others.is_link_local),
                mine.type == "rocev2",
                # Loopback talks to loopback only.
                ours.is_loopback == others.is_loopback,
            )
            if best is None or score > best[0]:
                best = (score, mine, theirs)
    if best is None:
        raise HostError(
            "no GID of this side fits one of the peer",
            why=f"here: {_show(rows)}; there: {_show(remote)}",
            fix="give both sides an address of the same family, or pin one with --gid-index",
            code="no_gid_pair",
        )
    _, mine, theirs = best
    return GidPair(
        mine,
        theirs,
        f"gid {mine.index} ({mine.type} {gid_to_address(mine.gid)}{f', {mine.netdev}' if mine.netdev else ''})"
        f" <-> gid {theirs.index} ({theirs.type} {gid_to_address(theirs.gid)})",
    )


def _show(entries: Sequence[GidEntry]) -> str:
    return ", ".join(f"{e.index}: {e.type} {gid_to_address(e.gid)}" for e in entries) or "none"
