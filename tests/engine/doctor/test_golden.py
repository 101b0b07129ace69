"""Whole hosts (tests/golden_doctor): what `p2prw doctor` says of each, word by word, and how it ends.

Snapshots are only read: what has to be tried (software device, bindings, memory) is left out. After a change on
purpose, `P2PRW_UPDATE_GOLDEN=1 pytest tests/engine/doctor/test_golden.py` writes the texts again: read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from p2prw.engine.doctor.checks import examine, failures
from p2prw.engine.doctor.findings import Ask
from p2prw.engine.doctor.view import HostView
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.topology.snapshot import open_tree
from p2prw.reporters.doctor_rows import doctor_lines, finding_row, summary, verdict_error
from p2prw.reporters.document import build, error_object
from p2prw.schema import load_schema

GOLDEN = Path(__file__).resolve().parents[2] / "golden_doctor"
VALIDATOR = Draft202012Validator(load_schema())
P2PMEM, BAR = "p2pmem:0000:44:00.0", "bar:0000:03:00.0/0"

# Machine, what was named, what must be said: (id, status). Written by hand; the texts beside them are for reading.
CASES: list[tuple[str, Ask, int, set[tuple[str, str]]]] = [
    ("laptop", Ask(), 0, {("verbs_device", "warn"), ("lockdown", "warn"), ("acs", "unknown"), ("iommu", "ok")}),
    ("container", Ask(), 0, {("device_file", "warn"), ("locked_memory", "warn"), ("kernel_options", "unknown")}),
    ("container", Ask("mlx5_0"), 3, {("device_file", "fail"), ("locked_memory", "fail"), ("port_state", "ok")}),
    ("mlx5-port-down", Ask(), 0, {("port_state", "warn"), ("gids_missing", "warn"), ("acs_redirect", "warn")}),
    ("mlx5-port-down", Ask(pair=("mlx5_0", P2PMEM)), 3, {("port_state", "fail"), ("pair", "ok")}),
    ("healthy", Ask("mlx5_0", memory=parse_memory_spec(P2PMEM)), 0, {("pairs", "ok"), ("acs", "ok")}),
    ("healthy", Ask(pair=("mlx5_0", P2PMEM)), 0, {("pair", "ok")}),
    ("lockdown", Ask(), 0, {("lockdown", "warn"), ("bars", "ok")}),
    ("lockdown", Ask(memory=parse_memory_spec(BAR)), 3, {("lockdown", "fail")}),
    ("memlock-64k", Ask(), 0, {("locked_memory", "warn"), ("device_file", "warn"), ("gids", "ok")}),
    ("memlock-64k", Ask("rxe0"), 3, {("locked_memory", "fail"), ("device_file", "fail")}),
    ("exclusive-namespaces", Ask("mlx5_0"), 3, {("rdma_namespaces", "fail"), ("verbs_device", "fail")}),
    ("slow-clock", Ask(), 0, {("clock_source", "warn"), ("gids_link_local", "warn"), ("lockdown", "unknown")}),
    ("gpu-two-sockets", Ask(), 0, {("pairs", "warn"), ("kernel_options", "warn")}),
    ("gpu-two-sockets", Ask(pair=("mlx5_0", "0000:81:00.0")), 3, {("pair", "fail")}),
]


def case_name(ask: Ask) -> str:
    device = "" if ask.device == "auto" else ask.device
    named = (device, ask.memory.kind if ask.memory else "", "pair" if ask.pair else "")
    return "+".join(filter(None, named)) or "plain"


@pytest.mark.parametrize(
    ("machine", "ask", "code", "said"), CASES, ids=[f"{case[0]}-{case_name(case[1])}" for case in CASES]
)
def test_hosts(machine: str, ask: Ask, code: int, said: set[tuple[str, str]]) -> None:
    findings = examine(HostView(open_tree(GOLDEN / machine)), ask)
    assert said <= {(finding.id, finding.status.value) for finding in findings}
    bad = failures(findings)
    rows = [finding_row(finding) for finding in findings]
    parts = {"error": error_object(verdict_error(bad))} if bad else {}
    VALIDATOR.validate(build("doctor", 3 if bad else 0, results=rows, **parts))
    assert (3 if bad else 0) == code
    text = "\n".join([*doctor_lines(rows), "", summary(rows), f"exit {code}", ""])
    golden = GOLDEN / machine / f"{case_name(ask)}.txt"
    if os.environ.get("P2PRW_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_every_machine_and_text_is_used() -> None:
    used = {(machine, f"{case_name(ask)}.txt") for machine, ask, _, _ in CASES}
    assert used == {(path.parent.name, path.name) for path in GOLDEN.glob("*/*.txt")}
    assert {machine for machine, *_ in CASES} == {path.name for path in GOLDEN.iterdir()}
    assert all(open_tree(path).machine.note for path in GOLDEN.iterdir())  # type: ignore[attr-defined]


@pytest.mark.parametrize("machine", sorted(path.name for path in GOLDEN.iterdir()))
def test_whatever_is_not_ok_has_something_to_paste(machine: str) -> None:
    for finding in examine(HostView(open_tree(GOLDEN / machine)), Ask("mlx5_0")):
        assert finding.status == "ok" or finding.fix, finding.id
