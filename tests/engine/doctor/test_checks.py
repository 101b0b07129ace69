"""The list itself: every check runs on an empty host, ids are stable words, and what may not be read is unknown."""

from __future__ import annotations

import re

from p2prw.engine.doctor.checks import CHECKS, Check, examine, failures
from p2prw.engine.doctor.findings import Ask, Finding, Status
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.errors import HostError


def test_an_empty_host_has_findings_and_no_failure(host):
    found = examine(host())
    assert len(found) > 10
    assert not failures(found)
    assert failures(found, strict=True), "no RDMA device is a warning"
    assert "software device: ok" in found[0].title
    for finding in found:
        assert re.fullmatch(r"[a-z0-9_]+", finding.id) and finding.theme
        assert finding.status is Status.OK or finding.fix, f"{finding.id} has nothing to paste"
        assert finding.title and not finding.title.endswith(".")


def test_what_is_named_is_required(host):
    ask = Ask(device="mlx5_0", memory=parse_memory_spec("p2pmem:0000:01:00.0"))
    assert {finding.id for finding in failures(examine(host(), ask))} >= {"verbs_device", "p2pmem"}


def test_the_nic_of_a_pair_is_required_where_it_is_a_verbs_device(host):
    pair = Ask(pair=("rxe0", "p2pmem:0000:01:00.0"))
    port = "sys/class/infiniband/rxe0/ports/1"
    view = host({"sys/class/infiniband/rxe0/node_type": "1: CA", f"{port}/state": "1: DOWN"})
    assert "port_state" in {finding.id for finding in failures(examine(view, pair))}
    assert "port_state" not in {finding.id for finding in failures(examine(view))}
    by_other_name = Ask(pair=("nvme0", "p2pmem:0000:01:00.0"))
    assert {finding.id for finding in failures(examine(view, by_other_name))} == {"pair", "p2pmem"}


def test_ids_of_checks_are_unique():
    assert len({check.id for check in CHECKS}) == len(CHECKS)


def test_a_check_that_may_not_look_says_unknown_and_keeps_what_it_said(host):
    def half(view, ask):
        yield Finding("first", Status.OK, "seen")
        raise HostError(
            "cannot read config: Permission denied", fix="run as root", code="not_permitted", errno="EACCES"
        )

    found = examine(host(), checks=[Check("second", "PCI", half)])
    assert [(one.id, one.status, one.theme) for one in found] == [("first", "ok", "PCI"), ("second", "unknown", "PCI")]
    assert not failures(found, strict=True), "what could not be seen is no failure"
    assert found[1].details["errno"] == "EACCES"
