"""What is no transfer on stdout: tables of regions, devices, versions and settings, and documents of failures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from p2prw.reporters.base import Format, Mode
from p2prw.reporters.document import dump_pretty
from p2prw.reporters.json import StreamPrinter
from p2prw.reporters.output import Output
from p2prw.reporters.sanitise import clean
from p2prw.units import format_size


def show_document(mode: Mode, stdout: Output, document: Mapping[str, Any], lines: Iterable[str] = ()) -> None:
    """Write the document as the mode asks; `lines` are its text."""
    if mode.format is Format.JSON:
        stdout.raw(dump_pretty(document))
    elif mode.format is Format.STREAM:
        StreamPrinter(stdout).event("result", result=document)
    else:
        for line in lines:
            stdout.line(line)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return aligned lines, safe for a terminal; no head where there are no rows."""
    cells = [[clean("-" if cell is None else str(cell)) for cell in row] for row in rows]
    if not cells:
        return []
    cells.insert(0, list(head))
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def region_lines(rows: Iterable[Mapping[str, Any]], peer: str) -> list[str]:
    """Return the table of a server's regions."""
    lines = table(
        ("REGION", "KIND", "SIZE", "ACCESS", "STATE"),
        [
            (
                row["name"],
                row["kind"] + (" (staged)" if row["staged"] else ""),
                "any" if row["size_bytes"] is None else format_size(row["size_bytes"]),
                row["access"],
                "busy" if row["busy"] else "free",
            )
            for row in rows
        ],
    )
    return lines or [f"{peer} offers no region"]


def setting_lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return `--show-config`: name, value, where it came from."""
    return table(("SETTING", "VALUE", "FROM"), [(row["name"], _shown(row), row["origin"]) for row in rows])


def _shown(row: Mapping[str, Any]) -> str:
    value = row["value"]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "-"
    return str(row.get("meaning", "-")) if value is None else str(value)
