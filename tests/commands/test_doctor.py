"""`p2prw doctor` from the line: exit codes, one document, and what is named."""

from __future__ import annotations

import pytest

from p2prw.engine.doctor import checks
from p2prw.engine.doctor.findings import Finding, Status


@pytest.fixture
def says(monkeypatch):
    """Replace the checks by one that says this; returns what was asked."""
    asked = []

    def replace(*findings):
        def run(host, ask):
            asked.append(ask)
            yield from findings

        only = [checks.Check("only", "Test", run)]
        plain = checks.examine
        monkeypatch.setattr(checks, "examine", lambda host, ask: plain(host, ask, only))
        return asked

    return replace


OK = Finding("a", Status.OK, "fine")
WARN = Finding("b", Status.WARN, "so so", "why", "fix it")
FAIL = Finding("c", Status.FAIL, "broken", "why", "fix it")
UNKNOWN = Finding("d", Status.UNKNOWN, "not seen", "why", "sudo")


@pytest.mark.parametrize(
    ("findings", "options", "code"),
    [
        ([OK, UNKNOWN], [], 0),
        ([OK, UNKNOWN], ["--strict"], 0),
        ([OK, WARN], [], 0),
        ([OK, WARN], ["--strict"], 3),
        ([WARN, FAIL], [], 3),
    ],
)
def test_exit_codes(run, says, findings, options, code):
    says(*findings)
    document, result = run.json("doctor", "--json", *options)
    assert result.exit_code == code
    assert [row["id"] for row in document["results"]] == [one.id for one in findings]
    assert (document["error"] is None) == (code == 0)


def test_text(run, says):
    says(OK, FAIL)
    result = run("doctor")
    assert result.exit_code == 3
    assert "fail     broken\n         why:  why\n         try:  fix it\n" in result.stdout
    assert result.stdout.endswith("1 ok, 0 warn, 1 fail, 0 unknown\n")


def test_what_is_named_is_asked(run, says):
    asked = says(OK)
    line = ["--device", "mlx5_0", "-i", "2", "--memory", "bar:01:00.0/2", "--pair", "mlx5_1", "p2pmem:0000:02:00.0"]
    assert run("doctor", *line).exit_code == 0
    (ask,) = asked
    assert (ask.device, ask.ib_port, ask.pair) == ("mlx5_0", 2, ("mlx5_1", "p2pmem:0000:02:00.0"))
    assert ask.memory.kind == "bar" and ask.memory.arg == "0000:01:00.0/2"
    assert run("doctor", env={"P2PRW_PAIR": "mlx5_1 p2pmem:0000:02:00.0"}).exit_code == 0
    assert asked[-1].pair == ("mlx5_1", "p2pmem:0000:02:00.0")


def test_usage(run, says):
    says(OK)
    document, result = run.json("doctor", "--json", "--memory", "lunch")
    assert (result.exit_code, document["error"]["code"]) == (2, "unknown_kind")
    assert run("doctor", env={"P2PRW_PAIR": "one"}).exit_code == 2
    assert "pair" in run("doctor", "--pair", "a", "b", "--show-config").stdout


def test_a_collected_host(run, tmp_path):
    """Round the circle: collected here, looked at there; no probe runs and no name of this host is asked."""
    target = tmp_path / "host"
    collected = run("doctor", "--collect", str(target))
    assert collected.exit_code in (0, 3) and f"wrote {target}/machine.json" in collected.stderr
    again, result = run.json("doctor", "--sysfs", str(target), "--json")
    assert result.exit_code == 0
    ids = {row["id"] for row in again["results"]}
    assert "clock_source" in ids and not ids & {"software_device", "udp_4791", "verbs_binding"}
    document, result = run.json("doctor", "--sysfs", str(tmp_path / "nowhere"), "--json")
    assert (result.exit_code, document["error"]["code"]) == (3, "no_sysfs_tree")
    refused, result = run.json("doctor", "--collect", str(target), "--json")
    assert (result.exit_code, refused["error"]["code"]) == (3, "exists")


def test_this_host_for_real(run):
    document, result = run.json("doctor", "--json")
    assert result.exit_code in (0, 3)
    assert {row["id"] for row in document["results"]} >= {"software_device", "locked_memory", "clock_source"}
