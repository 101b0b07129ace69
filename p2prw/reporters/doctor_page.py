"""`p2prw doctor` on a terminal: a mark for each finding, folded to its width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from p2prw.reporters.doctor_rows import Row, more_of, summary, themes
from p2prw.reporters.page import hanging, heading, safe

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "unknown": "magenta"}
_MARKS = {"ok": "✔", "warn": "!", "fail": "✘", "unknown": "?"}
# In the C locale; words in the plain listing's spelling.
_PLAIN_MARKS = {"ok": "+", "warn": "!", "fail": "x", "unknown": "?"}


def doctor_page(
    rows: Iterable[Row], *, verbose: bool = False, encoding: str | None = "utf-8"
) -> Iterator[RenderableType]:
    """Return what to print, part by part; marks are ASCII where `encoding` has no others."""
    rows = list(rows)
    marks = _MARKS if (encoding or "").lower().startswith("utf") else _PLAIN_MARKS
    for number, (theme, members) in enumerate(themes(rows).items()):
        yield heading(theme) if number else Text(theme, style="bold")
        for row in members:
            yield _finding(row, marks)
            for label, text in more_of(row, verbose=verbose):
                yield hanging(f"    {label}:  ", text, style="cyan" if label == "try" else "")
    failed = any(row["status"] == "fail" for row in rows)
    yield Text(f"\n{summary(rows)}", style="bold red" if failed else "bold")


def _finding(row: Row, marks: dict[str, str]) -> RenderableType:
    status = row["status"]
    grid = Table.grid(padding=0)
    grid.add_column(width=4, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(f"  {marks[status]} ", style=_STYLES[status]), Text(safe(row["title"])))
    return grid
