"""What a row's exit code and document mean for the row."""

from __future__ import annotations

import json

import pytest

from p2prw.scenario.expect import parse_expectation
from p2prw.scenario.model import Row
from p2prw.scenario.verdict import decide, exit_code_of, parse_document


def verdict(code, document, *expect, **options):
    row = Row(1, "w", "w", "write", 0, ("write",), "s.yaml:1:1", expect=tuple(map(parse_expectation, expect)))
    found = decide(row, code, document, elapsed_s=0.5, **options)
    return found.status, found.exit_code, found.error_code, found.reason or ""


def test_without_expectations_the_exit_code_decides(outcome):
    assert verdict(0, outcome()) == ("pass", 0, None, "")
    assert verdict(1, outcome(1)) == ("fail", 1, "remote_access", "remote_access: refused by the device")
    assert verdict(4, outcome(4))[:2] == ("fail", 4)


@pytest.mark.parametrize(
    ("expect", "status", "code", "error"),
    [
        (["error == RemoteAccess"], "pass", 0, None),
        (["error == RemoteAccess", "exit_code == 1"], "pass", 0, None),
        (["error != PeerLost"], "pass", 0, None),
        (["error == PeerLost"], "fail", 1, "remote_access"),
        (["error == RemoteAccess", "exit_code == 7"], "fail", 1, "remote_access"),
        (["bw >= 1 B/s"], "fail", 1, "remote_access"),
        (["error == RemoteAccess", "bw >= 900 GiB/s"], "pass", 0, None),
    ],
)
def test_a_failure_that_is_expected_counts_for_nothing(outcome, expect, status, code, error):
    assert verdict(1, outcome(1), *expect)[:3] == (status, code, error)


def test_a_failure_that_is_expected_and_does_not_come_counts_1(outcome):
    status, code, error, reason = verdict(0, outcome(), "error == RemoteAccess")
    assert (status, code, error) == ("fail", 1, "expectation_missed")
    assert reason == "error == RemoteAccess: missed, measured none"
    # A worse thing than the one expected stays what it is.
    assert verdict(4, outcome(4), "error == PeerLost")[:2] == ("fail", 4)
    assert verdict(3, outcome(3), "error == PeerLost")[:2] == ("fail", 1)


def test_a_missed_threshold_counts_5(outcome):
    assert verdict(0, outcome(), "bw >= 2 GiB/s")[:3] == ("fail", 5, "threshold_missed")
    assert verdict(0, outcome(), "bw >= 2 GiB/s", "bw >= 90% of link")[:2] == ("fail", 5)
    assert verdict(0, outcome(), "route == odp")[:2] == ("fail", 5)


def test_what_is_not_known_never_passes(outcome):
    status, code, _, reason = verdict(0, outcome(), "bw >= 90% of link", "route == cpu")
    assert (status, code) == ("skip", 0) and "link speed" in reason


def test_a_command_that_was_killed_or_said_nothing_has_failed():
    assert verdict(-9, None)[:3] == ("fail", 1, "command_failed")
    assert "killed by SIGKILL" in verdict(-9, None)[3]
    assert verdict(2, None, stderr_tail="\nError: no such option\n")[3].endswith("Error: no such option")
    assert verdict(0, None, out_of_time=True)[:3] == ("fail", 6, "time_limit")
    assert exit_code_of(99) == exit_code_of(-11) == 1


def test_only_a_document_of_ours_is_one(outcome):
    assert parse_document(json.dumps(outcome())) == outcome()
    for text in ("", "{", "[]", "{}", '{"schema": "other/1"}', "null"):
        assert parse_document(text) is None
