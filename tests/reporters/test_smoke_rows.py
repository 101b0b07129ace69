"""Rows, document, grid and text of a smoke test."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from p2prw.engine.model import ErrorReport, Operation
from p2prw.engine.smoke.model import CellDone, CellResult, CellStarted
from p2prw.reporters.smoke_grid import RUNNING, WAITING, Grid
from p2prw.reporters.smoke_rows import done_line, smoke_document, smoke_lines
from p2prw.schema import load_schema

SCHEMA = Draft202012Validator(load_schema())
WORST = ErrorReport("verify_mismatch", "1 of 12 cells failed", "rxe0 read host odd", "p2prw read ...")


def checked(result):
    document = smoke_document(result)
    SCHEMA.validate(document)
    return document


def test_a_document_of_passes(outcome):
    document = checked(outcome())
    assert (document["status"], document["exit_code"], document["partial"]) == ("ok", 0, False)
    assert document["verify"]["status"] == "verified"
    assert document["summary"] == {
        "cells": 12, "passed": 12, "failed": 0, "skipped": 2, "not_run": 0, "elapsed_s": 3.0,
    }  # fmt: skip
    rows = document["results"]
    assert [row["status"] for row in rows] == ["pass"] * 12 + ["skip"] * 2
    assert document["params"]["seed"] == 7
    first, last = rows[0], rows[11]
    assert (first["memory"], first["operation"], first["size_class"], first["region"]) == (
        "host", "read", "small", "smoke-host",
    )  # fmt: skip
    assert last["route"]["local"]["attempts"][0] == {
        "route": "pin", "ok": False, "errno": "EFAULT", "wc_status": None, "why": "no pages",
    }  # fmt: skip
    assert rows[12]["device"] == "soft:eth0"
    assert first["command"].startswith("p2prw read 10.9.0.1/smoke-host --to host,size=64,pattern=random:")
    assert first["serve_command"].startswith("p2prw serve --region smoke-host=host,")


def test_a_document_of_a_failure(outcome):
    document = checked(outcome({2: ("fail", 4)}, exit_code=4, error=WORST))
    assert (document["status"], document["exit_code"], document["partial"]) == ("failed", 4, False)
    assert document["verify"]["status"] == "mismatch"
    assert document["error"]["what"] == "1 of 12 cells failed"
    assert document["results"][2]["error"]["code"] == "verify_mismatch"
    assert document["summary"]["failed"] == 1


@pytest.mark.parametrize(("code", "status"), [(130, "interrupted"), (143, "interrupted"), (6, "failed")])
def test_a_document_of_an_interrupted_test_is_partial(outcome, code, status):
    others = dict.fromkeys(range(5, 12), ("not_run", 0))
    document = checked(outcome(others, exit_code=code, error=ErrorReport("x", "stopped"), stopped=True))
    assert (document["status"], document["partial"], document["exit_code"]) == (status, True, code)
    assert document["verify"]["status"] == "unverified"
    assert document["summary"]["not_run"] == 7
    assert len([row for row in document["results"] if row["row"] == "cell"]) == 12


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"verify": "mismatch"}),
        (0, {"exit_code": 4}),
        (0, {"status": "skip"}),
        (2, {"error": None}),
        (2, {"exit_code": 0}),
        (12, {"reason": None}),
        (12, {"more": 1}),
    ],
)
def test_rows_that_contradict_themselves_are_refused(outcome, number, change):
    document = checked(outcome({2: ("fail", 4)}, exit_code=4, error=WORST))
    document["results"][number] |= change
    with pytest.raises(ValidationError):
        SCHEMA.validate(document)


def test_text_has_the_grid_the_routes_the_failures_and_the_skips(outcome):
    lines = list(smoke_lines(outcome({2: ("fail", 4), 11: ("not_run", 0)}, exit_code=4, error=WORST)))
    text = "\n".join(lines)
    assert lines[1].split() == ["rxe0", "host", "host", "pass", "FAIL", "pass", "pass", "pass", "pass", "pin/pin"]
    assert lines[2].split()[1:] == ["p2pmem:0000:01:00.0", "host", *["pass"] * 5, "----", "odp/pin"]
    assert text.count("rxe0 p2pmem:0000:01:00.0: pin is not available (EFAULT)") == 1
    failed = text.index("FAIL     rxe0 read host <- host odd")
    assert failed < text.index("  serve: p2prw serve") < text.index("  again: p2prw read")
    assert "skip     soft:eth0: loopback again" in text
    assert "not run  1 cell: interrupted" in text
    assert lines[-1] == "10 passed, 1 failed, 1 not run, 2 skipped in 3.00 s; seed 7"


def test_a_hundred_failures_do_not_fill_the_screen(outcome):
    one = outcome(dict.fromkeys(range(12), ("fail", 1)), exit_code=1, error=WORST)
    many = outcome(cells=one.cells * 10, exit_code=1, error=WORST)
    lines = list(smoke_lines(many))
    assert sum("again:" in line for line in lines) == 5
    assert "FAIL     70 more; --json has them all" in lines
    assert len(lines) < 80


def test_a_grid_fills_in(cells):
    grid = Grid(cells)
    assert [(row.device, row.local, row.remote) for row in grid.rows] == [
        ("rxe0", "host", "host"),
        ("rxe0", "p2pmem:0000:01:00.0", "host"),
    ]
    assert grid.rows[0].operation_words(Operation.READ) == f"{WAITING} {WAITING} {WAITING}"
    grid.take(CellStarted(cells[6]))
    assert (grid.current, grid.rows[1].operation_words(Operation.READ).split()[0]) == (1, RUNNING)
    grid.take(CellDone(CellResult(cells[6], "fail", 1, reason="x")))
    assert grid.rows[1].columns()[3:] == ("FAIL .... ....", ".... .... ....", "-")


def test_one_line_for_each_cell(outcome):
    result = outcome({1: ("fail", 4), 2: ("not_run", 0)})
    passed, failed, left = (done_line(one) for one in result.cells[:3])
    assert passed == "pass    rxe0 read host <- host small, 64 B; route pin/pin; 250.0 ms"
    assert failed.startswith("fail    rxe0 write host -> host small, 64 B; bytes")
    assert left.startswith("not run rxe0 read host <- host odd, ")
