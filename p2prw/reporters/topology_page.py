"""`p2prw topology` on a terminal: the rows of `topology_rows`, painted and folded to its width."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from p2prw.reporters.listing import table
from p2prw.reporters.page import hanging, heading, safe
from p2prw.reporters.topology_rows import (
    LEGEND,
    WORDS,
    Row,
    hints,
    matrix,
    rows_of,
    topology_lines,
    tree,
    verdict_lines,
)

_VERDICTS = {
    "bus_address": "bold green",
    "through_host_bridge": "bold cyan",
    "not_supported": "bold red",
    "unknown": "bold yellow",
    "no_dma_path": "bold magenta",
}
_ROLES = {"client": "bold blue", "provider": "bold magenta"}


def topology_page(rows: Sequence[Row]) -> Iterator[RenderableType]:
    """Return what to print, part by part."""
    pairs = rows_of(rows, "pair")
    if not pairs:
        yield from (Text(safe(line), overflow="fold") for line in topology_lines(rows))
        return
    for indent, fold, title, details, row in tree(rows, ascii_only=False):
        yield Text.assemble((indent, "dim"), (safe(title), _style(row)), overflow="fold")
        for detail in details:
            style = "red" if "REDIRECTS" in detail else "yellow" if "unknown" in detail else "dim"
            yield hanging(f"{fold}  ", detail, style=style)
    if len(pairs) == 1:
        yield from _verdict(pairs[0])
    else:
        yield from _matrix(pairs)


def _style(row: Row) -> str:
    role = next((style for role, style in _ROLES.items() if role in row.get("roles", ())), "")
    if row["row"] == "host_bridge":
        return "bold" if not row["on_path"] else "bold cyan"
    return role or ("bold" if row["on_path"] else "")


def _verdict(row: Row) -> Iterator[RenderableType]:
    (_, title), *rest = verdict_lines(row)
    name, _, answer = title.rpartition(": ")
    yield Text.assemble("\n", (safe(name), "bold"), "  ", (answer, _VERDICTS[row["verdict"]]), overflow="fold")
    for head, text in rest:
        yield hanging(head, text, style="cyan" if "try" in head else "")


def _matrix(pairs: Sequence[Row]) -> Iterator[RenderableType]:
    yield heading("Every client with every memory")
    styles = {word: _VERDICTS[verdict].removeprefix("bold ") for verdict, word in WORDS.items()}
    for head, body in matrix(pairs, most_columns=5):
        lines = table(head, body)
        yield Text(f"{lines[0]}", style="bold", overflow="fold")
        for line in lines[1:]:
            text = Text(line, overflow="fold")
            for word, style in styles.items():
                text.highlight_regex(rf"(?<=  ){re.escape(word)}(?= |$)", style)
            yield text
    yield hanging("", LEGEND, style="dim")
    for hint in hints(pairs):
        yield hanging("", hint)
