"""What a row's exit code and document mean, held against what the row expects. Pure."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from p2prw.errors import worst_exit_code
from p2prw.reporters.document import SCHEMA
from p2prw.scenario.expect import Judgement, judge
from p2prw.scenario.model import Row, RowResult


def parse_document(stdout: str) -> dict[str, Any] | None:
    """Return the document that a command printed; None where it printed none (it was killed)."""
    try:
        document = json.loads(stdout)
    except ValueError:
        return None
    return document if isinstance(document, dict) and document.get("schema") == SCHEMA else None


def exit_code_of(code: int) -> int:
    """Return what an exit status counts for: a command that was killed, or ended in no way of ours, has failed (1)."""
    return code if code in (0, 1, 2, 3, 4, 5, 6, 7, 130, 143) else 1


def decide(
    row: Row,
    code: int,
    document: Mapping[str, Any] | None,
    *,
    elapsed_s: float,
    out_of_time: bool = False,
    stderr_tail: str = "",
) -> RowResult:
    """Return the verdict on a command that has ended with `code`; `out_of_time` where we ended it at its limit.

    A failure that is expected counts for nothing. An outcome that was expected and did not come counts 1 at least; a
    missed figure or fact counts 5; one that is not known makes the row a skip, never a pass.
    """
    counted = 6 if out_of_time else exit_code_of(code)
    judgements = tuple(judge(expectation, counted, document) for expectation in row.expect)
    outcomes = [judgement for judgement in judgements if judgement.expectation.is_outcome]
    missed_outcomes = [judgement for judgement in outcomes if judgement.outcome != "met"]
    result = RowResult(
        row=row,
        status="pass",
        command_exit_code=counted,
        judgements=judgements,
        elapsed_s=elapsed_s,
        document=document,
        stderr_tail=stderr_tail,
    )
    if missed_outcomes:
        return _changed(
            result,
            "fail",
            worst_exit_code([counted, 1]),
            "; ".join(judgement.shown() for judgement in missed_outcomes),
            _error_code(document) if counted else "expectation_missed",
        )
    if counted and not outcomes:
        why = _why_failed(code, document, stderr_tail)
        if out_of_time:
            why = "it was ended at its time limit"
        return _changed(result, "fail", counted, why, "time_limit" if out_of_time else _error_code(document))
    if counted:
        # As expected; its figures are those of something that failed.
        return _changed(result, "pass", 0, "; ".join(judgement.shown() for judgement in outcomes), None)
    return _thresholds(result, judgements)


def _thresholds(result: RowResult, judgements: tuple[Judgement, ...]) -> RowResult:
    missed = [judgement for judgement in judgements if judgement.outcome == "missed"]
    unknown = [judgement for judgement in judgements if judgement.outcome == "unknown"]
    if missed:
        return _changed(result, "fail", 5, "; ".join(judgement.shown() for judgement in missed), "threshold_missed")
    if unknown:
        return _changed(result, "skip", 0, "; ".join(judgement.shown() for judgement in unknown), None)
    return result


def _changed(result: RowResult, status: str, exit_code: int, reason: str | None, error_code: str | None) -> RowResult:
    return replace(result, status=status, exit_code=exit_code, reason=reason, error_code=error_code)


def _error_code(document: Mapping[str, Any] | None) -> str:
    error = (document or {}).get("error")
    return str(error["code"]) if error else "command_failed"


def _why_failed(code: int, document: Mapping[str, Any] | None, stderr_tail: str) -> str:
    error = (document or {}).get("error")
    if error:
        return f"{error['code']}: {error['what']}"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the command was killed by {name}"
    last = [line for line in stderr_tail.splitlines() if line.strip()]
    return f"the command ended with exit code {code}" + (f": {last[-1].strip()}" if last else "")
