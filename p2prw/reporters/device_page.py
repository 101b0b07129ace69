"""`p2prw devices` on a terminal: the rows of `device_rows`, folded to its width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from p2prw.reporters.device_rows import (
    DEVICE_HEAD,
    MEMORY_HEAD,
    Row,
    detail_lines,
    device_cells,
    memory_cells,
    note_lines,
    route_lines,
    rows_of,
)
from p2prw.reporters.listing import table
from p2prw.reporters.page import hanging, heading

_STYLES = {"ACTIVE": "green", "DOWN": "red", " yes": "green", " no": "red", " nic ": "bold green"}


def device_page(rows: Iterable[Row], *, verbose: bool = False) -> Iterator[RenderableType]:
    """Return what to print, part by part."""
    rows = list(rows)
    devices, memories, unseen = (rows_of(rows, kind) for kind in ("device", "memory", "unseen"))
    yield from _painted(DEVICE_HEAD, [_without_echo(device_cells(row)) for row in devices])
    for note in note_lines(devices):
        yield hanging("  ", note, style="dim")
    yield heading("Routes to memory, by what is known before anything is tried")
    for text in route_lines(devices):
        yield hanging("  ", text)
    if verbose:
        yield heading("Devices one by one")
        for device in devices:
            for line in detail_lines(device):
                bare = line.lstrip()
                yield hanging(" " * (2 + len(line) - len(bare)), bare)
    yield heading("Memory of devices")
    # What it is takes a line of its own: beside the specs, which must not be cut, 80 columns leave no room for it.
    cells = [memory_cells(row) for row in memories]
    lines = _painted(MEMORY_HEAD[:-1], [row[:-1] for row in cells])
    yield next(lines, Text("  none", style="dim"))
    for painted, row in zip(lines, cells, strict=True):
        yield painted
        yield hanging("    ", row[-1], style="dim")
    if unseen:
        yield heading("Not seen")
    for one in unseen:
        yield hanging("  ", f"{one['what']}: {one['why']}")
        yield hanging("    try:  ", one["try"], style="cyan")


def _without_echo(cells: tuple[Any, ...]) -> tuple[Any, ...]:
    """`soft:fd00::2` has said its address already."""
    return (*cells[:-1], None) if cells[-1] and cells[-1] in cells[0] else cells


def _painted(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[Text]:
    """Return the lines of a table, its head first; a column in which nobody has anything is left out."""
    kept = [column for column in range(len(head)) if any(row[column] is not None for row in rows)]
    lines = table([head[column] for column in kept], [[row[column] for column in kept] for row in rows])
    for number, line in enumerate(lines):
        text = Text(line, style="bold" if number == 0 else "", overflow="fold")
        for word, style in _STYLES.items() if number else ():
            text.highlight_words([word], style)
        yield text
