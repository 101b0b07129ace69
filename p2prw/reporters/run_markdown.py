"""A run's document as Markdown: what a person wants to see under a pull request. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from p2prw.reporters.run_rows import figure_lines, rate_text
from p2prw.reporters.sanitise import clean

_MARKS = {"pass": "pass", "fail": "FAIL", "skip": "skip", "not_run": "not run"}


def run_markdown(document: Mapping[str, Any]) -> str:
    """Return the summary: the sum, one table, and how to do again what failed."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    params = document["params"]
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in params["rows_by_status"].items())
    yield f"### p2prw run: {_cell(params['name'])}"
    yield ""
    yield f"**{counts or 'no rows'}**, exit code {document['exit_code']}"
    yield f"({params['elapsed_s']:.1f} s, seed {params['seed']})"
    yield ""
    yield "| row | | rate | route | reason |"
    yield "|---|---|---|---|---|"
    for row in document["results"]:
        several = row["bw_bytes_per_s"] is None and figure_lines(row)
        rate = "; ".join(several) if several else rate_text(row)
        cells = (row["name"], _MARKS.get(row["status"], row["status"]), rate, row["route"] or "", row["reason"] or "")
        yield f"| {' | '.join(_cell(cell) for cell in cells)} |"
    failed = [row for row in document["results"] if row["status"] == "fail" and row["command"]]
    if failed:
        yield ""
        yield "To do again what failed:"
        yield ""
        # Indented, not fenced: no name in a command can end the block.
        for row in failed:
            for command in (*(f"{server} &" for server in row["servers"]), row["command"]):
                yield f"    {clean(command)}"
    for warning in document["warnings"]:
        yield ""
        yield f"Warning: {_cell(warning)}"


def _cell(text: str) -> str:
    """Return text that cannot leave its table cell, or become HTML."""
    safe = clean(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
    return safe.replace("*", "\\*").replace("_", "\\_").replace("[", "\\[")
