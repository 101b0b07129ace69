"""A smoke test as JUnit: what was not run is not green."""

from __future__ import annotations

from pathlib import Path

from lxml import etree

from p2prw.reporters.junit import junit_xml
from p2prw.reporters.smoke_junit import smoke_suites

XSD = etree.XMLSchema(etree.parse(str(Path(__file__).parents[1] / "data/junit-10.xsd")))


def test_suites_and_cases(outcome):
    result = outcome({2: ("fail", 4), 11: ("not_run", 0)}, exit_code=4)
    root = etree.fromstring(junit_xml(smoke_suites(result, "2026-01-31T12:00:00")))
    XSD.assertValid(root)
    rxe, eth, host = root
    assert [suite.get("name") for suite in root] == ["smoke rxe0", "smoke soft:eth0", "smoke host"]
    counts = [[suite.get(name) for name in ("tests", "failures", "errors", "skipped")] for suite in root]
    assert counts == [["12", "1", "1", "0"], ["1", "0", "0", "1"], ["1", "0", "0", "1"]]
    failed = rxe.findall("testcase")[2]
    assert (failed.get("name"), failed.get("classname")) == ("read host host odd", "smoke.rxe0")
    assert failed[0].get("type") == "verify_mismatch"
    for part in (
        "bytes\\x1b[2J differ",
        "why not",
        "command = p2prw read",
        "serve_command = p2prw serve",
        "route = pin/pin",
    ):
        assert part in failed[0].text
    assert rxe.findall("testcase")[11][0].get("message") == "interrupted"
    assert eth.find("testcase/skipped").get("message") == "loopback again"
    assert host.find("testcase").get("name") == "bar"


def test_case_names_are_unique_in_a_suite(outcome):
    (suite, *_) = smoke_suites(outcome(), "2026-01-31T12:00:00")
    assert len({case.name for case in suite.cases}) == len(suite.cases)
