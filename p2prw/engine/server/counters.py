"""What a server has done since it started, and what it holds now: the figures behind its metrics. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from p2prw.engine.providers.base import DeviceUsage
from p2prw.engine.server.leases import Lease


@dataclass(slots=True)
class ServerCounters:
    """Cumulative. Labels come from a fixed set of words of ours, or from the names of regions: nobody can make more."""

    connections: Counter[str] = field(default_factory=Counter)
    """Connections that are over, by outcome: `left`, `failed`, `refused`, `stranger`, `turned_away`."""
    transfers: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Leases that are over, by region, operation and outcome: `kept` or `broken_off`."""
    kept_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Bytes of transfers that were released whole, by region and operation."""
    errors: Counter[str] = field(default_factory=Counter)
    """What clients were told, by code."""

    def count_transfer(self, lease: Lease, kept_bytes: int | None) -> None:
        """Count a lease that is over; None: it was broken off."""
        region, operation = lease.region, lease.operation.value
        self.transfers[region, operation, "broken_off" if kept_bytes is None else "kept"] += 1
        if kept_bytes is not None:
            self.kept_bytes[region, operation] += kept_bytes


@dataclass(frozen=True, slots=True)
class ServerState:
    """What is held at one moment."""

    clients: int
    leases: int
    devices: Mapping[str, DeviceUsage]
    """By the name of the device, with its address where it is a software device."""

    @property
    def queue_pairs(self) -> int:
        """On all devices."""
        return sum(usage.queue_pairs for usage in self.devices.values())

    @property
    def registrations(self) -> int:
        """On all devices."""
        return sum(usage.registrations for usage in self.devices.values())
