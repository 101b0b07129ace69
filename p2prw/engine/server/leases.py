"""Who holds which byte range of which region: writers exclusive, readers shared. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from p2prw.engine.model import Operation


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one client to [offset, offset + length) of a region."""

    id: str
    region: str
    offset: int
    length_bytes: int
    operation: Operation
    shared: bool
    holder: str
    """The client, as `HOST:PORT`."""

    def conflicts(self, other: Lease) -> bool:
        """Return True when both cannot stand at the same time.

        Two readers can. A writer and anybody else cannot where their ranges overlap, unless both chose `--shared`.
        """
        if self.region != other.region or (self.shared and other.shared):
            return False
        if self.operation is Operation.READ and other.operation is Operation.READ:
            return False
        return self.offset < other.offset + other.length_bytes and other.offset < self.offset + self.length_bytes


class LeaseTable:
    """All leases of a server. Small: at most one for each client."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def conflict(self, wanted: Lease) -> Lease | None:
        """Return a standing lease that `wanted` conflicts with."""
        return next((lease for lease in self._leases.values() if wanted.conflicts(lease)), None)

    def add(self, lease: Lease) -> None:
        """Let `lease` stand; the caller asked `conflict` first."""
        self._leases[lease.id] = lease

    def remove(self, lease_id: str) -> None:
        """End a lease; unknown ones are no error (a client may leave twice)."""
        self._leases.pop(lease_id, None)

    def busy(self, region: str) -> bool:
        """Return True when a writer holds any part of the region."""
        return any(lease.region == region and lease.operation is Operation.WRITE for lease in self._leases.values())
