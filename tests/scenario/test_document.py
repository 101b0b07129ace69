"""Rows to the one document of a run: held against the shipped schema, exit codes in the contract's order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator

from p2prw.errors import HostError
from p2prw.reporters.document import add_failure
from p2prw.scenario.document import planned_rows, row_object, run_document, summary_line
from p2prw.scenario.model import RowResult, fill_addresses
from p2prw.schema import load_schema


@pytest.fixture
def make(scenario, outcome):
    """Return the document of rows with these (status, exit code) pairs."""
    read = {"n": "read: {peer: h/a, to: host}"}

    def build_document(*verdicts, **parts):
        steps = "\n".join(f"  - {{name: r{number}, {read['n']}}}" for number in range(len(verdicts)))
        plan = scenario(f"time_limit: 9s\nsteps:\n{steps}\n")
        results = [
            RowResult(
                row,
                status,
                code,
                reason="why not" if status != "pass" else None,
                error_code="some_code" if code else None,
                command="p2prw read h/a",
                command_exit_code=code if status in ("pass", "fail") else None,
                document=outcome(code, partial=code == 1) if status in ("pass", "fail") else None,
            )
            for row, (status, code) in zip(plan.rows, verdicts, strict=True)
        ]
        document = run_document(plan, results, elapsed_s=1.5, **parts)
        # The rows' own documents are shortened ones here; whole ones are in tests/commands/test_run.py.
        bare = {**document, "results": [{**row, "result": None} for row in document["results"]]}
        Draft202012Validator(load_schema()).validate(bare)
        return document

    return build_document


@pytest.mark.parametrize(
    ("codes", "worst"),
    [([0, 0], 0), ([5, 0], 5), ([5, 6], 6), ([6, 3], 3), ([3, 7], 7), ([7, 1], 1), ([1, 4], 4), ([4, 130], 130)],
)
def test_the_worst_row_decides(make, codes, worst):
    document = make(*(("fail" if code else "pass", code) for code in codes))
    assert document["exit_code"] == worst
    assert document["status"] == ("ok" if not worst else "interrupted" if worst == 130 else "failed")
    assert (document["error"] is None) == (worst == 0)


def test_the_error_names_the_rows_and_what_to_type(make):
    error = make(("pass", 0), ("fail", 5), ("fail", 7))["error"]
    assert error["code"] == "some_code" and error["what"] == "2 of 3 rows failed; worst: r2 failed"
    assert error["try"] == "p2prw read h/a"
    assert "missed what was expected" in make(("fail", 5))["error"]["what"]


def test_partial_says_that_something_is_missing(make):
    assert make(("pass", 0), ("skip", 0))["partial"] is False
    assert make(("pass", 0), ("not_run", 0))["partial"] is True
    assert make(("fail", 1))["partial"] is True
    # Its disk was full before the first byte; a missed figure and wrong bytes come after the last one.
    assert make(("fail", 3))["partial"] is True
    assert make(("fail", 5), ("fail", 4))["partial"] is False
    cut = make(("not_run", 0), signal_number=15)
    assert (cut["exit_code"], cut["partial"], cut["error"]["code"]) == (143, True, "terminated")
    late = make(("not_run", 0), ("pass", 0), out_of_time=True)
    assert late["exit_code"] == 6 and late["partial"]


def test_a_lost_comparison_and_an_unwritten_report_count_too(make):
    lost = make(("pass", 0), regressions=["r0: bw 10% lower"])
    assert (lost["exit_code"], lost["error"]["code"]) == (5, "threshold_missed")
    unwritten = make(("pass", 0))
    add_failure(unwritten, HostError("--junit: cannot write", code="report_file"))
    assert (unwritten["exit_code"], unwritten["error"]["code"]) == (3, "report_file")
    assert unwritten["warnings"] == ["--junit: cannot write"]


def test_summary(make):
    text = summary_line(make(("pass", 0), ("skip", 0), ("not_run", 0), ("fail", 1)))
    assert text == "4 rows: 1 pass, 1 fail, 1 skip, 1 not run in 1.5 s, exit code 1"


def test_a_plan_can_be_pasted(scenario, good):
    plan = scenario(good)
    rows = planned_rows(plan)
    document = run_document(plan, rows, elapsed_s=0.0)
    Draft202012Validator(load_schema()).validate(document)
    assert document["status"] == "planned" and document["exit_code"] == 0 and not document["partial"]
    assert rows[0].command.endswith("--listen 127.0.0.1:18515")
    assert rows[2].servers == (rows[0].command,)
    assert not [row for row in document["results"] if "${" in row["command"]]


def test_a_row_shows_rate_and_route(scenario, good, outcome):
    row = scenario(good).rows[2]
    shown = row_object(RowResult(row, "pass", document=outcome(), command="c"))
    assert shown["bw_bytes_per_s"] == 2**30 and shown["route"] == "cpu"
    assert shown["values"] == {"size": "4K", "op": "write", "host": "127.0.0.1"}
    assert row_object(RowResult(replace(row, action="smoke"), "pass", document=outcome()))["bw_bytes_per_s"] is None
    sizes = outcome(results=[{"bw_bytes_per_s": 1.0}, {"bw_bytes_per_s": 2.0}])
    assert row_object(RowResult(replace(row, action="bench"), "pass", document=sizes))["bw_bytes_per_s"] is None
    assert row_object(RowResult(replace(row, action="bench"), "pass", document=outcome()))["bw_bytes_per_s"] == 2**30


def test_marks_are_filled_with_what_is_known():
    assert fill_addresses("${@1}/a ${@11}", {1: "h:1"}) == "h:1/a ${@11}"
