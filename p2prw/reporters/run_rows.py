"""Rows of `p2prw run` for people: one line each as they end, and the commands that do a failed one again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from p2prw.reporters.output import Output
from p2prw.units import format_duration, format_rate, format_size

MARKS = {"pass": "pass", "fail": "FAIL", "skip": "skip", "not_run": "----", "planned": "plan"}


def row_line(row: Mapping[str, Any]) -> str:
    """Return `pass  write[size=4K]  1.2 GiB/s  route cpu`, with the reason where there is one."""
    parts = [f"{MARKS[row['status']]}  {row['name']}"]
    rate = rate_text(row)
    if rate:
        parts.append(rate)
    if row["route"]:
        parts.append(f"route {row['route']}")
    if row["status"] in ("pass", "fail") and row["elapsed_s"]:
        parts.append(format_duration(row["elapsed_s"]))
    line = "  ".join(parts)
    return f"{line}: {row['reason']}" if row["reason"] else line


def rate_text(row: Mapping[str, Any]) -> str:
    """Return the rate of a row, or how many figures it measured where they are several; "" for none."""
    if row["bw_bytes_per_s"] is not None:
        return format_rate(row["bw_bytes_per_s"])
    lines = figure_lines(row)
    return f"{len(lines)} figures" if len(lines) > 1 else "".join(lines)


def figure_lines(row: Mapping[str, Any]) -> list[str]:
    """Return what a bench row measured, a line for each test, operation and size."""
    if row["action"] != "bench" or not row["result"]:
        return []
    return [_figure_line(entry) for entry in row["result"]["results"]]


def _figure_line(entry: Mapping[str, Any]) -> str:
    what = f"{entry['operation']} {format_size(entry['size_bytes'])}"
    if entry["test"] == "bw":
        messages = "-" if entry["msg_rate_per_s"] is None else f"{entry['msg_rate_per_s']:.0f}"
        return f"{what}: {format_rate(entry['bw_bytes_per_s'])}, {messages} messages/s"
    if entry["lat_p50_us"] is None:
        return f"{what}: no latency"
    return f"{what}: p50 {entry['lat_p50_us']:.1f} us, p99 {entry['lat_p99_us']:.1f} us"


def run_lines(document: Mapping[str, Any], summary: str) -> Iterator[str]:
    """Return the text of stdout: each row, how to do it again, what was compared, the sum."""
    rows: Iterable[Mapping[str, Any]] = document["results"]
    for row in rows:
        yield row_line(row)
        if row["bw_bytes_per_s"] is None:
            figures = figure_lines(row)
            yield from (f"      {line}" for line in figures if len(figures) > 1)
        for judgement in row["expect"]:
            if judgement["outcome"] != "met" and not (row["reason"] or "").startswith(judgement["text"]):
                yield f"      {judgement['text']}: {judgement['outcome']}"
        if row["command"]:
            # Its server's command stands at the server's own row; JSON has both at each.
            yield f"      $ {row['command']}"
    for warning in document["warnings"]:
        yield f"warning: {warning}"
    yield summary


class RunLines:
    """stderr where it is no terminal: a line for each row that ends."""

    def __init__(self, stderr: Output, total: int) -> None:
        self.stderr = stderr
        self.total = total
        self.ended = 0

    def started(self, row: Mapping[str, Any]) -> None:
        """Say nothing: the line comes with the end."""

    def finished(self, row: Mapping[str, Any]) -> None:
        """Say what came of it."""
        self.ended += 1
        self.stderr.line(f"{self.ended}/{self.total}  {row_line(row)}")

    def close(self) -> None:
        """Nothing to close."""
