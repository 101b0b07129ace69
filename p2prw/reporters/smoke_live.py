"""The table of `p2prw smoke` that fills in on a terminal, and the same table once more, painted, as the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from p2prw.engine.smoke.model import CellDone, CellRunning, SmokeEvent, SmokePlan, SmokeResult
from p2prw.reporters.live import MovingView
from p2prw.reporters.page import hanging, to_paste
from p2prw.reporters.sanitise import clean
from p2prw.reporters.smoke_grid import CLASSES, HEAD, RUNNING, WORDS, Grid, GridRow
from p2prw.reporters.smoke_rows import COMMAND_LABELS, describe_cell, smoke_notes, summary_line
from p2prw.units import format_size

_STYLES = {WORDS["pass"]: "green", WORDS["fail"]: "bold red", WORDS["not_run"]: "yellow", RUNNING: "cyan"}
_OTHER_LINES = 5
"""Of the terminal: the head of the table, the cell that runs, the counts, and one to spare."""


class LiveSmokeView(MovingView):
    """Rows around the cell that runs, as many as the terminal has lines for."""

    grid: Grid
    counts: dict[str, int]
    cells = 0
    running = ""

    def planned(self, plan: SmokePlan) -> None:
        """Show the empty table."""
        self.grid = Grid(plan.cells)
        self.cells = len(plan.cells)
        self.counts = dict.fromkeys(WORDS, 0)
        self.begin(self._render())

    def take(self, event: SmokeEvent) -> None:
        """Fill in what happened."""
        self.grid.take(event)
        if isinstance(event, CellDone):
            self.counts[event.result.status] += 1
        else:
            moved = f", {format_size(event.bytes_done)} moved" if isinstance(event, CellRunning) else ""
            self.running = describe_cell(event.cell) + moved
        self.redraw(self._render)

    def _render(self) -> RenderableType:
        rows = self.grid.rows
        shown = max(1, self.console.height - _OTHER_LINES)
        first = min(max(0, self.grid.current - shown // 2), max(0, len(rows) - shown))
        done = sum(self.counts.values())
        counts = f"{done} of {self.cells} cells, {self.counts['fail']} failed (each: {CLASSES})"
        hidden = len(rows) - min(shown, len(rows))
        more = f", {hidden} rows not shown" if hidden else ""
        return Group(
            grid_table(rows[first : first + shown]),
            Text(clean(self.running), style="dim", no_wrap=True, overflow="ellipsis"),
            Text(counts + more, style="bold red" if self.counts["fail"] else "bold"),
        )


def grid_table(rows: Sequence[GridRow]) -> Table:
    """Return the table; what must not be cut (the outcomes) is not, what can be (names) is."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for title in HEAD:
        outcome = title in ("READ", "WRITE")
        table.add_column(title, no_wrap=True, overflow="ellipsis", min_width=14 if outcome else None)
    for row in rows:
        table.add_row(*(_painted(clean(text)) for text in row.columns()))
    return table


def smoke_page(result: SmokeResult) -> Iterator[RenderableType]:
    """Return the result as it stands on a terminal."""
    yield grid_table(Grid.of_results(result.cells).rows)
    for label, text in smoke_notes(result):
        if label.strip() in COMMAND_LABELS:
            yield to_paste(label, text)
        else:
            yield hanging(label, text, "red" if label.startswith("FAIL") else "")
    yield Text(summary_line(result), style="bold red" if result.exit_code else "bold green")


def _painted(text: str) -> Text:
    painted = Text(text)
    for word, style in _STYLES.items():
        painted.highlight_words([word], style)
    return painted
