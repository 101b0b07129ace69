"""JUnit XML: valid for both schemas, counts that add up, any text."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from p2prw.reporters.junit import Case, Suite, junit_xml

XSD = etree.XMLSchema(etree.parse(str(Path(__file__).parents[1] / "data/junit-10.xsd")))
STAMP = "2026-01-31T12:00:00"
CASES = (
    Case("write host small", "smoke.soft0", 0.25, "passed", properties={"route": "cpu"}),
    Case(
        "read host small", "smoke.soft0", 1.5, "failed", "digests differ", "line 1\nline 2", {"try": "p2prw x"}, "bad"
    ),
    Case("read bar", "smoke.soft0", 0, "skipped", "never written unasked"),
    Case("open", "smoke.soft0", 1e-9, "error", "no device"),
)


def parsed(document: bytes) -> Any:
    root = etree.fromstring(document)
    XSD.assertValid(root)
    return root


def test_outcomes_and_counts():
    root = parsed(junit_xml([Suite("smoke", CASES, STAMP, properties={"seed": "7"}), Suite("empty", (), STAMP)]))
    first, second = root
    assert [first.get(name) for name in ("tests", "failures", "errors", "skipped", "time")] == [
        "4",
        "1",
        "1",
        "1",
        "1.750",
    ]
    assert (first.get("id"), second.get("id"), second.get("tests")) == ("0", "1", "0")
    assert first.find("properties/property").attrib == {"name": "seed", "value": "7"}
    passed, failed, skipped, error = first.findall("testcase")
    assert len(passed) == 0
    assert failed[0].tag == "failure"
    assert failed[0].attrib == {"message": "digests differ", "type": "bad"}
    assert failed[0].text == "line 1\nline 2\ntry = p2prw x"
    assert skipped[0].attrib == {"message": "never written unasked"}
    assert (error[0].tag, error[0].get("type"), error.get("time")) == ("error", "error", "0.000")
    assert (
        first.findtext("system-out")
        == "smoke.soft0.write host small: route = cpu\nsmoke.soft0.read host small: try = p2prw x"
    )


def test_what_the_stricter_schema_of_ant_wants():
    (suite,) = parsed(junit_xml([Suite("smoke", CASES, STAMP)]))
    required = {"name", "package", "id", "timestamp", "hostname", "tests", "failures", "errors", "time"}
    assert required <= set(suite.attrib)
    assert [child.tag for child in suite] == ["properties", *["testcase"] * 4, "system-out", "system-err"]
    for case in suite.findall("testcase"):
        assert set(case.attrib) == {"name", "classname", "time"}
        assert {child.tag for child in case} <= {"failure", "error", "skipped"}
        assert len(case) <= 1


@pytest.mark.parametrize("stamp", [STAMP, f"{STAMP}.123", f"{STAMP}+00:00", f"{STAMP}Z"])
def test_time_stamps_lose_fraction_and_zone(stamp):
    (suite,) = parsed(junit_xml([Suite("smoke", (), stamp)]))
    assert suite.get("timestamp") == STAMP


def test_a_time_stamp_that_is_none_is_a_defect():
    with pytest.raises(ValueError, match="not a time stamp"):
        junit_xml([Suite("smoke", (), "yesterday")])


def test_forbidden_characters_are_shown_and_the_rest_is_kept():
    text = "a\x1b[2J\x00\udc80\ufffe<&>\"'\n\tZoë \U0001f600"
    (suite,) = parsed(junit_xml([Suite("smoke", (Case("n", "c", 0, "failed", text, text),), STAMP)]))
    wanted = "a\\x1b[2J\\x00\\udc80\\ufffe<&>\"'\n\tZoë \U0001f600"
    failure = suite.find("testcase/failure")
    assert (failure.text, failure.get("message")) == (wanted, wanted)


@given(st.text(), st.sampled_from(["passed", "failed", "error", "skipped"]), st.floats(0, 1e6))
def test_any_text_gives_a_valid_document(text, outcome, time_s):
    case = Case(text, text, time_s, outcome, text, text, {text: text}, text)
    document = junit_xml([Suite(text, (case, case), STAMP, text, {text: text})])
    parsed(document)
    ElementTree.fromstring(document)
