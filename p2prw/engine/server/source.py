"""Which of our GIDs a client is answered from, and whether it may have data sent to where it says it is. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from p2prw.engine import gids
from p2prw.engine.control.messages import Gid
from p2prw.engine.model import DeviceInfo
from p2prw.engine.server.admission import Networks
from p2prw.errors import PeerRefusedError, RemoteProtocolError


def choose_source(
    device: DeviceInfo,
    peer_gids: Sequence[Gid],
    gid: str,
    *,
    control_host: str,
    has_token: bool,
    networks: Networks,
    wanted_index: int | None,
) -> int:
    """Return the row of our GID table for a client whose queue pair is at `gid` and whose hello had `peer_gids`.

    RemoteProtocolError where it never announced that GID, PeerRefusedError `foreign_gid` where it talks from elsewhere,
    `address_not_allowed` where data would go outside `networks`.
    """
    rows = [entry for entry in peer_gids if entry.gid == gid]
    if not rows:
        raise RemoteProtocolError("the queue pair's GID is not in the client's table", code="bad_gid")
    # A GID of InfiniBand is no IP address, and leads out of no subnet.
    if not (all(entry.type == "ib" for entry in rows) and device.link_layer == "InfiniBand"):
        _check_address(gid, control_host, has_token)
        networks.check(str(gids.gid_to_address(gid)))
    return gids.pick_gid_pair(device.gids, gids.from_wire(rows), wanted_index).local.index


def _check_address(gid: str, control_host: str, has_token: bool) -> None:
    address = gids.gid_to_address(gid)
    control = gids.gid_to_address(gids.address_to_gid(control_host))
    both_loopback = address.is_loopback and control.is_loopback
    if address != control and not both_loopback and not has_token:
        # Else a stranger could aim our packets at somebody else.
        raise PeerRefusedError(
            f"the client wants data sent to {address}, but talks from {control}",
            why="without a token data goes only where the control connection comes from",
            fix="start the server with --token-file, or leave --device away at the client",
            code="foreign_gid",
        )
