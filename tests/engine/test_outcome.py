"""What a result says: nothing secret, units in names, no division by nothing."""

from __future__ import annotations

import json

import pytest

from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Operation, PeerAddress, TransferRequest
from p2prw.engine.outcome import environment, error_report, parameters, stats_row, status_of
from p2prw.engine.progress import LoopStats
from p2prw.engine.providers.base import QueuePairCounters
from p2prw.engine.providers.scripted import ScriptedDevice
from p2prw.errors import HostError, InterruptedTransfer

REQUEST = TransferRequest(
    operation=Operation.WRITE,
    peer=PeerAddress("fd00::1", 99),
    region="r",
    memory=parse_memory_spec("host,size=1MiB"),
    token=b"very secret",
)


def test_parameters_never_hold_the_token():
    shown = parameters(REQUEST, 77)
    assert "secret" not in json.dumps(shown) and "secret" not in repr(REQUEST)
    assert shown["peer"] == "[fd00::1]:99" and shown["size_bytes"] == 77
    assert parameters(REQUEST, None)["size_bytes"] is None


def test_the_environment_names_what_the_figures_depend_on():
    facts = environment(ScriptedDevice().info)
    assert {"p2prw", "python", "kernel", "machine", "cpus", "device"} <= set(facts)
    assert "device" not in environment(None)
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize(
    ("error", "planned", "word"),
    [
        (None, False, "ok"),
        (None, True, "planned"),
        (HostError("x"), True, "failed"),
        (InterruptedTransfer(), False, "interrupted"),
    ],
)
def test_status_words(error, planned, word):
    assert status_of(error, planned=planned) == word


def test_a_row_without_a_completion_has_no_rate():
    row = stats_row(Operation.READ, 100, 4096, LoopStats(), QueuePairCounters(retransmitted_packets=3))
    assert (row.bw_bytes_per_s, row.elapsed_s, row.bytes, row.retransmitted_packets) == (None, 0.0, 0, 3)
    stats = LoopStats(bytes_done=100, first_post_s=1.0, last_completion_s=3.0)
    assert stats_row(Operation.READ, 100, 4096, stats, QueuePairCounters()).bw_bytes_per_s == 50.0


def test_an_error_keeps_every_word():
    report = error_report(HostError("what", why="why", fix="fix", code="c", errno=28, side="remote"))
    assert (report.what, report.why, report.fix, report.code, report.errno, report.side) == (
        "what",
        "why",
        "fix",
        "c",
        "ENOSPC",
        "remote",
    )
