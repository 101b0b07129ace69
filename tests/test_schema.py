"""The shipped schemas: valid themselves, closed, and refusing what must not be said."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from p2prw.engine.model import PHASES, RouteReport
from p2prw.errors import InterruptedTransfer, RequestError
from p2prw.reporters.document import build, error_document
from p2prw.schema import load_schema

RESULT = Draft202012Validator(load_schema())
STREAM = Draft202012Validator(load_schema("stream.schema.json"))
CPU = RouteReport("cpu", "cpu", False, "host", "soft0", "soft")


@pytest.mark.parametrize("name", ["result.schema.json", "stream.schema.json"])
def test_schemas_are_schemas(name):
    Draft202012Validator.check_schema(load_schema(name))


def test_schema_knows_every_phase():
    assert set(load_schema()["properties"]["phases"]["properties"]) == {f"{phase}_s" for phase in PHASES}


@pytest.mark.parametrize("error", [RequestError("x"), InterruptedTransfer(), InterruptedTransfer(signal_number=15)])
def test_failures_are_documents(error):
    document = error_document("write", error)
    RESULT.validate(document)
    assert document["exit_code"] == error.exit_code


@pytest.mark.parametrize(
    "parts",
    [
        {"status": "ok", "exit_code": 1},
        {"status": "failed"},
        {"results": [{"bytes": 1}], "command": "write"},
        {"route": {"local": CPU, "remote": None}, "phases": {"steady_s": -1}},
        {"phases": {"lunch_s": 1.0}},
        {"error": {"code": "Not snake", "what": "x"}},
    ],
)
def test_what_must_not_be_said_is_refused(parts):
    document = build("write")
    RESULT.validate(document)
    document |= build("write", **{name: value for name, value in parts.items() if name not in ("exit_code", "command")})
    document["exit_code"] = parts.get("exit_code", 0)
    with pytest.raises(ValidationError):
        RESULT.validate(document)


def test_a_cpu_never_moves_peer_to_peer():
    lie = RouteReport("cpu", "cpu", True, "bar", "soft0", "soft")
    with pytest.raises(ValidationError):
        RESULT.validate(build("write", route={"local": lie, "remote": None}))


def test_stream_lines_are_checked():
    STREAM.validate({"schema": "p2prw-stream/1", "event": "warning", "text": "x"})
    for bad in ({"event": "lunch"}, {"event": "progress"}, {"event": "result"}):
        with pytest.raises(ValidationError):
            STREAM.validate({"schema": "p2prw-stream/1", **bad})
