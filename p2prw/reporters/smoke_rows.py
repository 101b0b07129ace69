"""Rows, document and text of `p2prw smoke`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from p2prw.engine.smoke.model import Cell, CellResult, Skip, SmokeRequest, SmokeResult
from p2prw.errors import worst_exit_code
from p2prw.reporters.document import UNVERIFIED, build, error_object, plain
from p2prw.reporters.listing import table
from p2prw.reporters.smoke_grid import CLASSES, HEAD, Grid, route_words
from p2prw.units import counted, format_duration, format_rate, format_size

COMMAND_LABELS = frozenset({"serve:", "again:"})
"""Of notes that are to be pasted."""
SHOWN_FAILURES = 5
"""With what to type; ten times as many with a line each, then their number."""


def cell_row(result: CellResult) -> dict[str, Any]:
    """Return one row of `results`."""
    cell, transfer = result.cell, result.transfer
    stats = transfer.results[0] if transfer and transfer.results else None
    row: dict[str, Any] = {
        "row": "cell",
        "status": result.status,
        "device": cell.device,
        "ib_port": cell.ib_port,
        "memory": cell.local,
        "region": cell.region,
        "region_memory": cell.remote,
        "operation": cell.operation,
        "size_class": cell.size_class,
        "size_bytes": cell.size_bytes,
        "wanted_bytes": cell.wanted_bytes,
        "region_offset_bytes": cell.offset_bytes,
        "seed": cell.seed,
        "elapsed_s": result.elapsed_s,
        "bw_bytes_per_s": stats.bw_bytes_per_s if stats else None,
        "route": {
            "local": transfer.local_route if transfer else None,
            "remote": transfer.remote_route if transfer else None,
        },
        "verify": transfer.verify.status if transfer else None,
        "exit_code": result.exit_code,
        "reason": result.reason,
        "error": error_object(result.error) if result.error and result.status == "fail" else None,
        "command": cell.command,
        "serve_command": cell.serve_command,
    }
    return dict(plain(row))


def skip_row(skip: Skip) -> dict[str, Any]:
    """Return one row of `results` for what does not take part."""
    return {
        "row": "skip",
        "status": "skip",
        "device": skip.device,
        "memory": skip.memory,
        "region_memory": skip.region,
        "reason": skip.reason,
    }


def smoke_document(result: SmokeResult) -> dict[str, Any]:
    """Return the `p2prw/1` document."""
    failed = [one for one in result.cells if one.status == "fail"]
    status = "ok" if result.exit_code == 0 else "interrupted" if result.exit_code in (130, 143) else "failed"
    verify = dict(UNVERIFIED)
    if worst_exit_code([one.exit_code for one in failed]) == 4:
        verify |= {"status": "mismatch", "why": "see the cells"}
    elif result.count("pass") and not failed and not result.stopped:
        verify["status"] = "verified"
    document = build(
        "smoke",
        result.exit_code,
        status=status,
        params=_params(result.request),
        results=[*map(cell_row, result.cells), *map(skip_row, result.skips)],
        verify=verify,
        warnings=result.warnings,
        partial=result.stopped or result.count("not_run") > 0,
    )
    if result.error is not None:
        document["error"] = error_object(result.error)
    document["summary"] = {
        "cells": len(result.cells),
        "passed": result.count("pass"),
        "failed": result.count("fail"),
        "skipped": len(result.skips),
        "not_run": result.count("not_run"),
        "elapsed_s": result.elapsed_s,
    }
    return document


def _params(request: SmokeRequest) -> dict[str, Any]:
    return {
        "peer": None if request.peer is None else str(request.peer),
        "seed": request.seed,
        "preset": request.preset,
        "devices": list(request.devices),
        "memories": list(request.memories),
        "inject": request.inject,
        "time_limit_s": request.timeouts.time_limit_s,
    }


# --- text -----------------------------------------------------------------------------------------------------


def describe_cell(cell: Cell) -> str:
    """Return `soft0 write host -> file odd, 12345 bytes at 4099`."""
    arrow = "->" if cell.operation == "write" else "<-"
    place = f" at {cell.offset_bytes}" if cell.offset_bytes else ""
    size = format_size(cell.size_bytes) if cell.size_bytes % 1024 == 0 else f"{cell.size_bytes} B"
    return f"{cell.place} {cell.operation} {cell.local} {arrow} {cell.remote} {cell.size_class}, {size}{place}"


def done_line(result: CellResult) -> str:
    """Return one plain line for a cell that has ended."""
    parts = [f"{result.status.replace('_', ' '):<7} {describe_cell(result.cell)}"]
    if result.status == "pass":
        parts += [f"route {route_words(result)}", format_duration(result.elapsed_s)]
    elif result.reason:
        parts.append(result.reason)
    return "; ".join(parts)


def summary_line(result: SmokeResult) -> str:
    """Return what came of it in one line."""
    counts = f"{result.count('pass')} passed, {result.count('fail')} failed, {result.count('not_run')} not run"
    return f"{counts}, {len(result.skips)} skipped in {format_duration(result.elapsed_s)}; seed {result.request.seed}"


def smoke_lines(result: SmokeResult) -> Iterator[str]:
    """Return the text of a result: the grid, failures with what to type, what was not taken and why, the sum."""
    yield from table(HEAD, [row.columns() for row in Grid.of_results(result.cells).rows])
    yield from (label + text for label, text in smoke_notes(result))
    yield summary_line(result)


def smoke_notes(result: SmokeResult) -> Iterator[tuple[str, str]]:
    """Return (label, text) for each line between the grid and the sum; labels are equally wide."""
    for label, text in _notes(result):
        yield f"{label:<9}", text


def _notes(result: SmokeResult) -> Iterator[tuple[str, str]]:
    yield "", f"READ and WRITE: {CLASSES}; ROUTE: this end/the other"
    yield from _rates(result)
    yield from _fitted(result.cells)
    yield from dict.fromkeys(_not_available(result.cells))
    yield from _failures([one for one in result.cells if one.status == "fail"])
    for skip in result.skips:
        what = " ".join(filter(None, (skip.device, skip.memory, skip.region and f"with {skip.region}")))
        yield "skip", f"{what}: {skip.reason}"
    not_run = Counter(one.reason for one in result.cells if one.status == "not_run")
    for reason, number in not_run.items():
        yield "not run", f"{counted(number, 'cell')}: {reason}"


def _rates(result: SmokeResult) -> Iterator[tuple[str, str]]:
    """The fastest large cell of each device: an order of magnitude, not a benchmark."""
    best: dict[str, float] = {}
    for one in result.cells:
        stats = one.transfer.results[0] if one.status == "pass" and one.transfer and one.transfer.results else None
        if stats is not None and stats.bw_bytes_per_s is not None and one.cell.size_class == "large":
            best[one.cell.place] = max(best.get(one.cell.place, 0.0), stats.bw_bytes_per_s)
    for device, rate in best.items():
        yield "rate", f"{device}: {format_rate(rate)} at best, no benchmark"


def _fitted(results: Iterable[CellResult]) -> Iterator[tuple[str, str]]:
    """Say which cells are smaller than their class for want of time."""
    sizes: dict[str, list[int]] = {}
    wanted_bytes = 0
    for one in results:
        if one.cell.wanted_bytes is not None and one.status == "pass":
            sizes.setdefault(one.cell.place, []).append(one.cell.size_bytes)
            wanted_bytes = one.cell.wanted_bytes
    for device, found in sizes.items():
        least, most = format_size(min(found)), format_size(max(found))
        between = least if least == most else f"{least} to {most}"
        yield (
            "smaller",
            f"{device}: {counted(len(found), 'large cell')} of {between}, not {format_size(wanted_bytes)}: time",
        )


def _not_available(results: Iterable[CellResult]) -> Iterator[tuple[str, str]]:
    """Routes that were tried on the way to one that holds: no failure, but worth knowing."""
    for one in results:
        if one.status != "pass" or one.transfer is None:
            continue
        for memory, route in (
            (one.cell.local, one.transfer.local_route),
            (one.cell.remote, one.transfer.remote_route),
        ):
            for attempt in route.attempts if route else ():
                if not attempt.ok:
                    why = attempt.errno or attempt.wc_status or attempt.why or "failed"
                    yield "route", f"{one.cell.place} {memory}: {attempt.route} is not available ({why})"


def _failures(failed: list[CellResult]) -> Iterator[tuple[str, str]]:
    for number, one in enumerate(failed[: SHOWN_FAILURES * 10]):
        yield "FAIL", f"{describe_cell(one.cell)}: {one.reason}"
        if number >= SHOWN_FAILURES:
            continue
        if one.error and one.error.why:
            yield "  why:", one.error.why
        if one.cell.serve_command:
            yield "  serve:", one.cell.serve_command
        yield "  again:", one.cell.command
    left = len(failed) - SHOWN_FAILURES * 10
    if left > 0:
        yield "FAIL", f"{left} more; --json has them all"
