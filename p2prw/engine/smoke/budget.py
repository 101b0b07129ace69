"""How large the large cells of `--full` may be, so that it ends in a stated time also where a device is slow. Pure.

Before a large cell its first `PROBE_BYTES` go by themselves, with data of their own; what that took says how much fits
into the cell's share of the time that is left. Where nothing fits the probe is the cell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from p2prw.engine.model import Operation
from p2prw.engine.pattern import mix64
from p2prw.engine.smoke.commands import client_command, target_of
from p2prw.engine.smoke.model import Cell, Preset, SizeClass, SmokeRequest
from p2prw.engine.smoke.regions import spec_of
from p2prw.units import MIB

FULL_S = 600.0
"""What `--full` is given; where its smallest cells take longer, it takes longer."""
PROBE_BYTES = MIB


@dataclass(slots=True)
class Budget:
    """The time of one run. `ended` each cell, in whatever order they come."""

    end_s: float
    """On the clock of the caller's `now`."""
    large: int
    """Cells of the large class that have not ended."""
    others: int
    _others_s: float = 0.0
    _others_ended: int = 0

    def ended(self, cell: Cell, elapsed_s: float) -> None:
        """Book a cell that has ended, or will never begin (`elapsed_s` 0)."""
        if cell.size_class is SizeClass.LARGE:
            self.large -= 1
            return
        self.others -= 1
        self._others_s += elapsed_s
        self._others_ended += 1

    def share_s(self, now: float) -> float:
        """Return how long the next large cell may take: its part of what the other cells will leave."""
        each_s = self._others_s / max(1, self._others_ended)
        return max(0.0, (self.end_s - now - each_s * self.others) / max(1, self.large))

    def fitting_bytes(self, now: float, probe_s: float, most_bytes: int) -> int:
        """Return how much fits into the next large cell's share, in whole MiB, at most `most_bytes`.

        `probe_s`: what PROBE_BYTES took. Setting up is in it, so what is said is rather too little.
        """
        times = int(self.share_s(now) / max(probe_s, 1e-6))
        return min(most_bytes, max(1, times) * PROBE_BYTES)


def make_budget(request: SmokeRequest, cells: Iterable[Cell], now: float) -> Budget | None:
    """Return the budget of a run that begins now; None where its cells are as large as they are."""
    if request.preset is not Preset.FULL:
        return None
    cells = list(cells)
    large = sum(cell.size_class is SizeClass.LARGE for cell in cells)
    return Budget(now + FULL_S, large, len(cells) - large)


def resized(cell: Cell, size_bytes: int, request: SmokeRequest, address: str, *, seed: int | None = None) -> Cell:
    """Return `cell` with another size, and other data where a `seed` is given; it says what its class wanted.

    `address`: where the loopback's server listens; with a peer it is not looked at.
    """
    seed = cell.seed if seed is None else seed
    memory = cell.memory
    if cell.kind != "file":
        memory = spec_of(cell.kind, cell.local, size_bytes, seed)
    target = target_of(request.peer, address, cell.region, cell.offset_bytes)
    where = {"device": cell.device, "ib_port": cell.ib_port, "request": request}
    return replace(
        cell,
        size_bytes=size_bytes,
        seed=seed,
        memory=memory,
        command=client_command(Operation(cell.operation), target, memory, size_bytes, **where),  # type: ignore[arg-type]
        wanted_bytes=cell.wanted_bytes or cell.size_bytes,
    )


def probe_of(cell: Cell, request: SmokeRequest, address: str) -> Cell:
    """Return the first piece of a large cell as a cell of its own, with other bytes: it proves nothing for the rest."""
    return resized(cell, PROBE_BYTES, request, address, seed=mix64(cell.seed, 2))
