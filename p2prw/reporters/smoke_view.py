"""stderr of `p2prw smoke` while it runs: nothing, a plain line for each cell, or a table that fills in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from p2prw.engine.smoke.model import CellDone, SmokeEvent, SmokePlan
from p2prw.reporters.base import Mode, is_live_terminal
from p2prw.reporters.output import Output
from p2prw.reporters.smoke_rows import done_line


class SmokeView(Protocol):
    """Told what happens; `close` always, also when an exception ends the command."""

    def planned(self, plan: SmokePlan) -> None:
        """Say what is about to be done."""

    def take(self, event: SmokeEvent) -> None:
        """Show one event; cheap to over-call."""

    def close(self) -> None:
        """Leave the terminal as it was found. Safe to call twice."""


class QuietSmokeView:
    """--quiet: the outcome is enough."""

    def planned(self, plan: SmokePlan) -> None:
        """Say nothing."""

    def take(self, event: SmokeEvent) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Nothing to close."""


class PlainSmokeView(QuietSmokeView):
    """No terminal: one line for each cell that has ended."""

    def __init__(self, stderr: Output) -> None:
        self.stderr = stderr

    def planned(self, plan: SmokePlan) -> None:
        """Say how much there is to do."""
        devices = dict.fromkeys(cell.place for cell in plan.cells)
        self.stderr.line(f"{len(plan.cells)} cells on {', '.join(devices)}")

    def take(self, event: SmokeEvent) -> None:
        """Print what has ended."""
        if isinstance(event, CellDone):
            self.stderr.line(done_line(event.result))


def choose_smoke_view(mode: Mode, stderr: Output, environ: Mapping[str, str]) -> SmokeView:
    """Return the view; rich is imported only where the table is the one."""
    if mode.quiet:
        return QuietSmokeView()
    if is_live_terminal(stderr.stream, environ):
        from p2prw.reporters.smoke_live import LiveSmokeView

        return LiveSmokeView(stderr, environ)
    return PlainSmokeView(stderr)
