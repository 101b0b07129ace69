"""JUnit XML from cases: what CI systems show as tests. Pure; `whole_file.write_whole` puts it on disk.

Written so that both schemas in use accept it: the one of Jenkins' xUnit plugin (junit-10.xsd) and the stricter one of
Ant (JUnit.xsd, Windy Road), which wants every suite to have properties, system-out and system-err, a package and an
id, a time stamp without a zone, and nothing in a test case but its outcome. So a case's properties stand in its suite's
system-out, and once more in the text of what failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal
from xml.etree import ElementTree

from p2prw.reporters.sanitise import escape

Outcome = Literal["passed", "failed", "error", "skipped"]

# Everything but XML 1.0's production [2] Char: such a character makes a parser drop the whole file.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# xs:dateTime to the second: the pattern of Ant's schema.
_SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


@dataclass(frozen=True, slots=True)
class Case:
    """One test case. `failed` is a wrong outcome of what was tested; `error` is that it could not be tested."""

    name: str
    classname: str
    time_s: float
    outcome: Outcome
    message: str | None = None
    """One line: why it failed or was skipped."""
    details: str | None = None
    """Many lines: shown when the case is opened."""
    properties: Mapping[str, str] = field(default_factory=dict)
    type: str = ""
    """The error's code; CI systems group by it. Empty: the outcome."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases that ran together, in order."""

    name: str
    cases: tuple[Case, ...]
    timestamp_iso: str
    """When it began, `2026-01-31T12:00:00`; a fraction or zone is cut off."""
    hostname: str = "localhost"
    properties: Mapping[str, str] = field(default_factory=dict)


def junit_xml(suites: Iterable[Suite]) -> bytes:
    """Return the document, UTF-8. ValueError for a time stamp that is none: that is a defect."""
    root = ElementTree.Element("testsuites")
    for number, suite in enumerate(suites):
        root.append(_suite_element(suite, number))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _suite_element(suite: Suite, number: int) -> ElementTree.Element:
    stamp = _SECONDS.match(suite.timestamp_iso)
    if stamp is None:
        raise ValueError(f"not a time stamp: {suite.timestamp_iso!r}")
    outcomes = [case.outcome for case in suite.cases]
    element = _element(
        "testsuite",
        name=suite.name,
        package="p2prw",
        id=str(number),
        timestamp=stamp[0],
        hostname=suite.hostname,
        tests=str(len(outcomes)),
        failures=str(outcomes.count("failed")),
        errors=str(outcomes.count("error")),
        skipped=str(outcomes.count("skipped")),
        time=_seconds(sum(case.time_s for case in suite.cases)),
    )
    properties = ElementTree.SubElement(element, "properties")
    for name, value in suite.properties.items():
        properties.append(_element("property", name=name, value=value))
    element.extend(_case_element(case) for case in suite.cases)
    lines = [f"{case.classname}.{case.name}: {line}" for case in suite.cases for line in _property_lines(case)]
    ElementTree.SubElement(element, "system-out").text = _text("\n".join(lines))
    ElementTree.SubElement(element, "system-err").text = ""
    return element


def _case_element(case: Case) -> ElementTree.Element:
    element = _element("testcase", name=case.name, classname=case.classname, time=_seconds(case.time_s))
    if case.outcome == "passed":
        return element
    message = case.message or case.outcome
    if case.outcome == "skipped":
        element.append(_element("skipped", message=message))
        return element
    child = _element(
        "failure" if case.outcome == "failed" else "error", message=message, type=case.type or case.outcome
    )
    child.text = _text("\n".join([case.details or message, *_property_lines(case)]))
    element.append(child)
    return element


def _property_lines(case: Case) -> Iterator[str]:
    return (f"{name} = {value}" for name, value in case.properties.items())


def _element(tag: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.Element(tag, {name: _text(value) for name, value in attributes.items()})


def _text(text: str) -> str:
    return _FORBIDDEN.sub(lambda match: escape(match[0]), text)


def _seconds(seconds: float) -> str:
    # At most three decimals and no sign: SUREFIRE_TIME of junit-10.xsd.
    return f"{max(0.0, seconds):.3f}"
