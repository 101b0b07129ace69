"""Which addresses may come, and how much one client may have. Pure.

What counts is what is granted: once a client has a key, its READs and WRITEs of the granted range pass the server by,
as often as it likes until the lease ends. What is moved is counted where it can be seen (`rate.py`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from p2prw.engine.server.rate import RateAccount
from p2prw.errors import PeerRefusedError


class Networks:
    """The networks of `--allow`; none: everybody may come."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)

    def check(self, host: str) -> None:
        """Raise PeerRefusedError unless `host`, an address (IPv4-mapped ones as IPv4), lies in one of them."""
        if not self._networks:
            return
        address = ipaddress.ip_address(host.partition("%")[0])
        if not any(address in network for network in self._networks):
            raise PeerRefusedError(
                f"{host} may not use this server",
                why="its address is in none of the networks of --allow",
                fix="add its network to --allow at the server",
                code="address_not_allowed",
            )


class Allowance:
    """What one client was granted so far, against its limits."""

    def __init__(self, most_bytes: int | None, most_regions: int | None, rate_bytes_per_s: float | None = None) -> None:
        self.account = RateAccount(rate_bytes_per_s) if rate_bytes_per_s is not None else None
        """Of what it moves, where that is limited."""
        self.granted_bytes = 0
        self.regions: dict[str, None] = {}
        """Names, in the order they were first granted."""
        self._most_bytes = most_bytes
        self._most_regions = most_regions

    def check(self, region: str, length_bytes: int) -> None:
        """Raise PeerRefusedError when a lease of so many bytes would be too much."""
        most, regions = self._most_bytes, self._most_regions
        if most is not None and self.granted_bytes + length_bytes > most:
            left = most - self.granted_bytes
            raise PeerRefusedError(
                f"{length_bytes} bytes are more than this client may have",
                why=f"--client-bytes is {most}, {left} of them are left to it",
                fix=f"--size {left}" if left else "connect again, or a larger --client-bytes at the server",
                code="client_bytes",
            )
        if regions is not None and region not in self.regions and len(self.regions) >= regions:
            raise PeerRefusedError(
                f"region {region!r} is one more than this client may use",
                why=f"--client-regions is {regions}, and it has used {', '.join(self.regions)}",
                fix="connect again, or a larger --client-regions at the server",
                code="client_regions",
            )

    def take(self, region: str, length_bytes: int) -> None:
        """Count a lease that was granted."""
        self.granted_bytes += length_bytes
        self.regions.setdefault(region)
