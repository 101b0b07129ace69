"""The live table of `p2prw run`: rows fill in on stderr, redrawn by the one thread that runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2prw.reporters.live import MovingView
from p2prw.reporters.output import Output
from p2prw.reporters.run_rows import MARKS, rate_text
from p2prw.reporters.sanitise import clean
from p2prw.units import format_duration

STYLES = {"pass": "green", "fail": "bold red", "skip": "yellow", "not_run": "dim", "running": "cyan"}
LINES_AROUND = 4
"""Title, head, sum and the line under it."""


class RunView(MovingView):
    """A table of rows, redrawn when one begins or ends; what stays is the result on stdout."""

    def __init__(
        self,
        stderr: Output,
        environ: Mapping[str, str],
        title: str,
        total: int,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stderr, environ, clock=clock, console=console)
        self.title = clean(title)
        self.total = total
        self.rows: dict[int, tuple[str, Mapping[str, Any], float]] = {}
        self.begin()

    def started(self, row: Mapping[str, Any]) -> None:
        """Show a row as running."""
        self.rows[row["number"]] = ("running", row, self.clock())
        self.draw(self.render(self.console.height))

    def finished(self, row: Mapping[str, Any]) -> None:
        """Show what came of it."""
        self.rows[row["number"]] = (row["status"], row, self.clock())
        self.draw(self.render(self.console.height))

    def render(self, height: int) -> Table:
        """Return the table: what runs, and as many of the last rows as fit."""
        running = [entry for entry in self.rows.values() if entry[0] == "running"]
        ended = [entry for entry in self.rows.values() if entry[0] != "running"]
        room = max(height - LINES_AROUND - len(running), 1)
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(no_wrap=True, min_width=4)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, justify="right", min_width=8)
        table.add_row("", Text(self.title, style="bold"), "", "")
        for status, row, since_s in [*ended[-room:], *running]:
            table.add_row(*self._cells(status, row, since_s))
        table.add_row("", Text(self._sum(ended, running), style="dim"), "", "")
        return table

    def _cells(self, status: str, row: Mapping[str, Any], since_s: float) -> list[Text]:
        mark = Text(MARKS.get(status, "..."), style=STYLES.get(status, ""))
        name = Text(clean(row["name"]))
        if status == "running":
            return [mark, name, Text(row["action"], style="dim"), Text(format_duration(self.clock() - since_s))]
        if row["reason"]:
            name.append(f"  {clean(row['reason'])}", style="dim")
        rate = rate_text(row).partition(" (")[0]
        return [mark, name, Text(" ".join(filter(None, (rate, row["route"])))), Text(format_duration(row["elapsed_s"]))]

    def _sum(self, ended: Sequence[Any], running: Sequence[Any]) -> str:
        words = [f"{len(ended)} of {self.total} rows"]
        for status in ("fail", "skip"):
            count = sum(entry[0] == status for entry in ended)
            if count:
                words.append(f"{count} {status}")
        if running:
            words.append(f"{len(running)} running")
        return ", ".join(words)
