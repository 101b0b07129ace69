"""Rows and plain text of `p2prw doctor`; `doctor_page` paints them for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from p2prw.errors import HostError
from p2prw.reporters.document import plain

if TYPE_CHECKING:
    from p2prw.engine.doctor.findings import Finding

Row = Mapping[str, Any]
STATUSES = ("ok", "warn", "fail", "unknown")
"""In the order of the summary; also the words in front of each line."""


def finding_row(finding: Finding) -> dict[str, Any]:
    """Return one row of the document's `results`."""
    return {
        "id": finding.id,
        "theme": finding.theme,
        "subject": finding.subject,
        "status": finding.status.value,
        "title": finding.title,
        "why": finding.why,
        "try": finding.fix,
        "details": plain(finding.details),
    }


def verdict_error(bad: Sequence[Finding]) -> HostError:
    """Return what the document says of a host that does not pass."""
    first = bad[0]
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return HostError(f"{first.title}{more}", why=first.why, fix=first.fix, code=f"doctor_{first.id}")


def summary(rows: Iterable[Row]) -> str:
    """Return `12 ok, 2 warn, 0 fail, 1 unknown`."""
    counts = dict.fromkeys(STATUSES, 0)
    for row in rows:
        counts[row["status"]] += 1
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def themes(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows under their headings, in order."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["theme"], []).append(row)
    return grouped


def more_of(row: Row, *, verbose: bool) -> Iterator[tuple[str, str]]:
    """Return the labelled lines under a finding: why and try where it is not ok; facts with --verbose."""
    if row["why"] and (verbose or row["status"] != "ok"):
        yield "why", row["why"]
    if row["try"] and row["status"] != "ok":
        yield "try", row["try"]
    if verbose:
        yield "id", row["id"] + (f", {row['subject']}" if row["subject"] else "")
        for name, value in row["details"].items():
            yield name, _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def doctor_lines(rows: Iterable[Row], *, verbose: bool = False) -> list[str]:
    """Return one line for each finding, `STATUS  title`, and indented ones under what is not ok."""
    lines: list[str] = []
    for theme, members in themes(rows).items():
        lines += ["", theme] if lines else [theme]
        for row in members:
            lines.append(f"{row['status']:<7}  {row['title']}")
            lines += [f"         {label}:  {text}" for label, text in more_of(row, verbose=verbose)]
    return lines
