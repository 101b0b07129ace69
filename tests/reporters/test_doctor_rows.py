"""Findings as rows and plain lines."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from p2prw.engine.doctor.findings import Finding, Status
from p2prw.reporters.doctor_rows import doctor_lines, finding_row, summary, verdict_error
from p2prw.reporters.document import build, error_object
from p2prw.schema import load_schema

OK = Finding("mtu", Status.OK, "path MTU 4096", theme="RDMA", subject="rxe0/1", details={"mtu_bytes": 4096, "up": True})
BAD = Finding("port_state", Status.FAIL, "rxe0/1 is DOWN", "no link", "ip link set dev x up", theme="RDMA")
LOST = Finding("lockdown", Status.UNKNOWN, "not known", "no file", "cat it", theme="Kernel", details={"none": None})
VALIDATOR = Draft202012Validator(load_schema())


def document(*findings, exit_code=0, **parts):
    return build("doctor", exit_code, results=[finding_row(one) for one in findings], **parts)


def test_documents_are_valid():
    VALIDATOR.validate(document(OK, LOST))
    error = verdict_error([BAD, BAD])
    assert (error.code, error.what) == ("doctor_port_state", "rxe0/1 is DOWN (and 1 more)")
    VALIDATOR.validate(document(OK, BAD, exit_code=3, error=error_object(error)))


@pytest.mark.parametrize("change", [{"try": None}, {"status": "perhaps"}, {"id": "Not snake"}, {"extra": 1}])
def test_the_schema_refuses_other_findings(change):
    with pytest.raises(ValidationError):
        VALIDATOR.validate(build("doctor", results=[{**finding_row(BAD), **change}]))


def test_lines():
    rows = [finding_row(one) for one in (OK, BAD, LOST)]
    assert doctor_lines(rows) == [
        "RDMA",
        "ok       path MTU 4096",
        "fail     rxe0/1 is DOWN",
        "         why:  no link",
        "         try:  ip link set dev x up",
        "",
        "Kernel",
        "unknown  not known",
        "         why:  no file",
        "         try:  cat it",
    ]
    assert summary(rows) == "1 ok, 0 warn, 1 fail, 1 unknown"


def test_verbose_shows_ids_and_facts():
    text = "\n".join(doctor_lines([finding_row(OK), finding_row(LOST)], verbose=True))
    assert "id:  mtu, rxe0/1" in text and "mtu_bytes:  4096" in text and "up:  yes" in text and "none:  -" in text
