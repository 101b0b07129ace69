"""The cells of a smoke test as a grid: one row for each pair of memory on a device, filled in as results come. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2prw.engine.model import Operation
from p2prw.engine.smoke.model import Cell, CellDone, CellResult, CellStarted, SizeClass, SmokeEvent

HEAD = ("DEVICE", "MEMORY HERE", "REGION", "READ", "WRITE", "ROUTE")
CLASSES = " ".join(SizeClass)
"""What the three words under READ and WRITE stand for."""
WORDS = {"pass": "pass", "fail": "FAIL", "not_run": "----"}
WAITING, RUNNING, ABSENT = "....", ">>>>", "n/a"


@dataclass(slots=True)
class GridRow:
    """One pair on one device."""

    device: str
    local: str
    remote: str
    words: dict[tuple[Operation, SizeClass], str] = field(default_factory=dict)
    routes: dict[str, None] = field(default_factory=dict)
    """Routes that cells took (`odp/pin`), in the order in which they were met."""

    def operation_words(self, operation: Operation) -> str:
        """Return `pass FAIL ....`: small, odd, large."""
        return " ".join(self.words.get((operation, size), ABSENT).ljust(4) for size in SizeClass).rstrip()

    @property
    def route(self) -> str:
        """This end's route and the other's."""
        return ", ".join(self.routes) or "-"

    def columns(self) -> tuple[str, ...]:
        """Return the row under `HEAD`."""
        read, write = (self.operation_words(operation) for operation in (Operation.READ, Operation.WRITE))
        return (self.device, self.local, self.remote, read, write, self.route)


class Grid:
    """All rows; told the events of the runner."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.rows: list[GridRow] = []
        self.current: int = 0
        """The row in which a cell runs, or ran last."""
        self._index: dict[tuple[str, str, str], int] = {}
        for cell in cells:
            self._row(cell).words[cell.operation, cell.size_class] = WAITING

    @classmethod
    def of_results(cls, results: Iterable[CellResult]) -> Grid:
        """Return the grid of a test that has ended."""
        results = list(results)
        grid = cls(result.cell for result in results)
        for result in results:
            grid.take(CellDone(result))
        return grid

    def take(self, event: SmokeEvent) -> None:
        """Fill in what an event says."""
        if isinstance(event, CellStarted):
            self._row(event.cell).words[event.cell.operation, event.cell.size_class] = RUNNING
            self.current = self._index[_key(event.cell)]
        elif isinstance(event, CellDone):
            cell = event.result.cell
            row = self._row(cell)
            row.words[cell.operation, cell.size_class] = WORDS[event.result.status]
            self.current = self._index[_key(cell)]
            route = route_words(event.result)
            if route is not None:
                row.routes[route] = None

    def _row(self, cell: Cell) -> GridRow:
        key = _key(cell)
        if key not in self._index:
            self._index[key] = len(self.rows)
            self.rows.append(GridRow(*key))
        return self.rows[self._index[key]]


def route_words(result: CellResult) -> str | None:
    """Return `odp/pin`: the route at this end and at the other; None where the ends were not reached."""
    transfer = result.transfer
    if transfer is None or (transfer.local_route is None and transfer.remote_route is None):
        return None
    ends = (transfer.local_route, transfer.remote_route)
    return "/".join("?" if end is None else end.chosen + (" (p2p)" if end.peer_to_peer else "") for end in ends)


def _key(cell: Cell) -> tuple[str, str, str]:
    return cell.place, cell.local, cell.remote
