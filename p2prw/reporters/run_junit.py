"""A run's document as JUnit XML: one suite, one case a row. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from p2prw.reporters.junit import Case, Outcome, Suite, junit_xml
from p2prw.reporters.run_rows import figure_lines, rate_text

_OUTCOMES: dict[str, Outcome] = {"pass": "passed", "skip": "skipped", "not_run": "skipped"}


def run_junit(document: Mapping[str, Any], started_at_iso: str) -> bytes:
    """Return the XML of a run."""
    params = document["params"]
    properties = {"seed": str(params["seed"]), "scenario": str(params["scenario"])}
    cases = tuple(_case(params["name"], row) for row in document["results"])
    return junit_xml([Suite(params["name"], cases, started_at_iso, properties=properties)])


def _case(suite: str, row: Mapping[str, Any]) -> Case:
    # What could not be tried (no device, no memory, no server) is an error; what was tried and is wrong a failure.
    failed: Outcome = "error" if row["exit_code"] == 3 else "failed"
    return Case(
        name=row["name"],
        classname=f"{suite}.{row['step']}",
        time_s=row["elapsed_s"],
        outcome=_OUTCOMES.get(row["status"], failed),
        message=row["reason"],
        details="\n".join(_details(row)),
        properties={
            "route": row["route"] or "-",
            "rate": "; ".join(figure_lines(row)) or rate_text(row) or "-",
            "command": row["command"] or "-",
        },
        type=row["error_code"] or "",
    )


def _details(row: Mapping[str, Any]) -> Iterator[str]:
    if row["reason"]:
        yield row["reason"]
    for judgement in row["expect"]:
        yield f"{judgement['text']}: {judgement['outcome']}, measured {judgement['measured']}"
    for command in (*row["servers"], row["command"]):
        yield f"$ {command}"
