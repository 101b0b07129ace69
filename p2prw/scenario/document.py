"""All rows of a scenario as one `p2prw/1` document. Pure: results in, JSON-able data out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from p2prw.errors import InterruptedTransfer, P2prwError, ThresholdError, TimeLimitError, worst_exit_code
from p2prw.reporters.document import build, error_object
from p2prw.scenario.model import RowResult, Scenario, command_line

_WHOLE = frozenset({0, 4, 5})
"""Exit codes of commands that did all their work; what is wrong is its outcome."""
STATUSES = ("pass", "fail", "skip", "not_run", "planned")


def row_object(result: RowResult) -> dict[str, Any]:
    """Return one row of `results`."""
    row, document = result.row, result.document or {}
    rates = [entry["bw_bytes_per_s"] for entry in document.get("results", ()) if entry.get("bw_bytes_per_s")]
    # A smoke's cells, and a bench's sizes, have no rate in common; one size has.
    one = row.action in ("write", "read") or (row.action == "bench" and len(rates) == 1)
    route = document.get("route", {}).get("local")
    return {
        "number": row.number,
        "name": row.name,
        "step": row.step,
        "action": row.action,
        "values": dict(row.values),
        "repeat": row.repeat,
        "status": result.status,
        "exit_code": result.exit_code,
        "reason": result.reason,
        "error_code": result.error_code,
        "elapsed_s": result.elapsed_s,
        "bw_bytes_per_s": rates[0] if rates and one else None,
        "route": route["chosen"] if route else None,
        "expect": [
            {
                "text": judgement.expectation.text,
                "outcome": judgement.outcome,
                "measured": judgement.measured,
                "why": judgement.why,
            }
            for judgement in result.judgements
        ],
        "command": result.command,
        "servers": list(result.servers),
        "command_exit_code": result.command_exit_code,
        "result": result.document,
    }


def planned_rows(scenario: Scenario) -> list[RowResult]:
    """Return the rows of a dry run: the commands, with the addresses that the servers would have."""
    addresses = scenario.planned_addresses()
    planned = []
    for row in scenario.rows:
        words = row.command_words(addresses)
        if row.action == "serve":
            words = (*words, "--listen", row.planned_address)
        planned.append(RowResult(row, "planned", command=command_line(words)))
    commands = {result.row.number: result.command for result in planned}
    return [
        RowResult(
            result.row,
            "planned",
            command=result.command,
            servers=tuple(commands[number] for number in result.row.servers),
        )
        for result in planned
    ]


def run_document(
    scenario: Scenario,
    results: Sequence[RowResult],
    *,
    elapsed_s: float,
    signal_number: int | None = None,
    out_of_time: bool = False,
    regressions: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the document of a run; `regressions` are lines of a comparison that was lost (5)."""
    counts = Counter(result.status for result in results)
    codes = [result.exit_code for result in results]
    if signal_number is not None:
        codes.append(128 + signal_number)
    if out_of_time:
        codes.append(6)
    if regressions:
        codes.append(5)
    code = worst_exit_code(codes)
    failed = [result for result in results if result.status == "fail"]
    not_run = counts["not_run"]
    cut = any(_was_cut(result) for result in failed)
    document = build(
        "run",
        code,
        params={
            "scenario": scenario.path,
            "name": scenario.name,
            "seed": scenario.seed,
            "on_failure": scenario.on_failure,
            "time_limit_s": scenario.time_limit_s,
            "variables": dict(scenario.variables),
            "elapsed_s": elapsed_s,
            "rows_by_status": {status: counts[status] for status in STATUSES if counts[status]},
        },
        results=[row_object(result) for result in results],
        warnings=list(warnings),
        partial=bool(not_run or cut or signal_number is not None or out_of_time),
    )
    if code:
        document["status"] = "interrupted" if code in (130, 143) else "failed"
        document["error"] = error_object(_error(code, scenario, failed, regressions))
    elif results and all(result.status == "planned" for result in results):
        document["status"] = "planned"
    return document


def _was_cut(result: RowResult) -> bool:
    """Return True where a row that failed did not come to its end: its peer, its disk or its time was gone before."""
    document = result.document
    # Without a document it was killed: what it did is not known. A smoke whose cells fail has run all of them.
    if document is None or document.get("partial") or result.row.action == "smoke":
        return document is None or bool(document.get("partial"))
    return result.command_exit_code not in _WHOLE


def _error(code: int, scenario: Scenario, failed: Sequence[RowResult], regressions: Sequence[str]) -> P2prwError:
    """Return the one error of the document: the worst row's, in the words of the whole."""
    if code in (130, 143):
        return InterruptedTransfer("the scenario was interrupted", signal_number=code - 128)
    worst = [result for result in failed if result.exit_code == code]
    if not worst and code == 6:
        return TimeLimitError(
            f"the scenario's time limit of {scenario.time_limit_s:g} s ran out",
            why="rows that had not begun were not run",
            fix="--time-limit, or time_limit: in the file",
        )
    if not worst and code == 5:
        return ThresholdError(
            f"{len(regressions)} rows are worse than the baseline",
            why="; ".join(regressions[:3]),
            fix="p2prw compare BASELINE RESULT shows each; --tolerance says how much worse is too much",
        )
    first = worst[0]
    names = ", ".join(result.row.name for result in worst[:3]) + (", ..." if len(worst) > 3 else "")
    kind = ThresholdError if code == 5 else P2prwError
    what = "missed what was expected of it" if code == 5 else "failed"
    return kind(
        f"{len(failed)} of {len(scenario.rows)} rows failed; worst: {names} {what}",
        why=first.reason or "see the row",
        fix=" & ".join((*first.servers, first.command)) or f"p2prw run {scenario.path}",
        code=first.error_code,
    )


def summary_line(document: Mapping[str, Any]) -> str:
    """Return `38 rows: 36 pass, 1 fail, 1 skip in 12.3 s, exit code 5`."""
    counts = document["params"]["rows_by_status"]
    words = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items())
    elapsed_s = document["params"]["elapsed_s"]
    return f"{sum(counts.values())} rows: {words or 'none'} in {elapsed_s:.1f} s, exit code {document['exit_code']}"
