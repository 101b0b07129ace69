"""What listings share on a terminal: a console on stdout, headings, and text that folds under itself.

Names from outside go in as `Text`, never as markup, and cleaned of control characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from p2prw.reporters.live import Terminal
from p2prw.reporters.output import Output
from p2prw.reporters.sanitise import clean as safe

__all__ = ["hanging", "heading", "print_page", "safe", "to_paste"]


def print_page(parts: Iterable[RenderableType], stdout: Output, environ: Mapping[str, str]) -> None:
    """Print the parts on a terminal, folded to its width; quiet when the reader has gone."""
    if stdout.broken:
        return
    console = Terminal(file=stdout.stream, _environ=environ, markup=False, highlight=False)
    try:
        for part in parts:
            # Text that asks for it is wrapped by the terminal: what is to be pasted must stay one line.
            console.print(part, crop=False)
        stdout.stream.flush()
    except BrokenPipeError:
        stdout.give_up()


def heading(text: str) -> Text:
    """Return a heading with an empty line above it."""
    return Text(f"\n{text}", style="bold")


def to_paste(label: str, command: str) -> RenderableType:
    """Return a command in one line, however long: the terminal wraps it, and copying it gives it back whole."""
    # In a group: printed by itself a Text is joined into another one, which forgets that it must not wrap.
    return Group(Text.assemble((label, "dim"), safe(command), no_wrap=True, overflow="ignore"))


def hanging(indent: str, text: str, style: str = "") -> RenderableType:
    """Return text that folds under itself, behind `indent` (which may hold a label such as `why:`)."""
    if not indent.strip():
        return Padding(Text(safe(text), style=style, overflow="fold"), (0, 0, 0, len(indent)), expand=False)
    grid = Table.grid(padding=0)
    grid.add_column(width=len(indent), no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(indent, style="dim"), Text(safe(text), style=style))
    return grid
