"""Rows in order and in parallel, servers, limits and signals; with real processes, because those are what it runs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from p2prw.engine.stop import StopRequest
from p2prw.scenario.runner import Runner

SERVER = "  - {name: srv, serve: {regions: {a: 'host,size=64MiB'}}}\n"
QUICK = "read: {peer: '${srv.address}/a', to: host, size: 4K}"
# Slow on purpose, so that there is time to stop it.
SLOW = (
    "read: {peer: '${srv.address}/a', to: host, chunk: 64KiB, connect_retry: 2s}, "
    "device: {mtu: 256, no_gso: true, tx_depth: 1}"
)


@pytest.fixture
def run(scenario, environ, host):
    """Run a file to its end; `during(event, runner)` is told every event. Nothing may live afterwards."""

    def go(text, during=lambda event, runner: None, **options):
        runner = Runner(scenario(text, **options), environ, host, StopRequest())
        pids = []
        for event in runner.run():
            pids += [server.child.process.pid for server in runner.servers.values()]
            during(event, runner)
        assert not [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists()], "a server is still there"
        return {result.row.name: result for result in runner.ordered()}

    return go


def test_rows_and_their_server(run):
    seen = []
    found = run(
        f"steps:\n{SERVER}  - {{name: r, {QUICK}}}\n", lambda event, _: seen.append((event.kind, event.row.name))
    )
    assert seen == [("started", "srv"), ("started", "r"), ("finished", "r"), ("finished", "srv")]
    assert {name: result.status for name, result in found.items()} == {"srv": "pass", "r": "pass"}
    row = found["r"]
    assert row.document is not None and row.document["command"] == "read"
    address = found["srv"].command.partition("--listen ")[2]
    assert f"read {address}/a" in row.command and row.servers == (found["srv"].command,)
    assert int(address.partition(":")[2]) not in (0, 18515), "the port it really had"


def test_the_first_failure_stops_it_where_that_was_asked(run):
    text = (
        f"steps:\n{SERVER}  - {{name: bad, read: {{peer: '${{srv.address}}/b', to: host}}}}\n  - {{name: r, {QUICK}}}\n"
    )
    found = run(text)
    assert [found[name].status for name in ("srv", "bad", "r")] == ["pass", "fail", "pass"]
    assert (found["bad"].exit_code, found["bad"].error_code) == (7, "unknown_region")
    found = run("on_failure: stop\n" + text)
    assert [found[name].status for name in ("srv", "bad", "r")] == ["pass", "fail", "not_run"]
    assert found["r"].reason == "stopped at the first failure (bad)"


def test_skips_reach_the_rows_that_need_a_server(run, host):
    text = f"steps:\n{SERVER.replace('name: srv', 'name: srv, skip_unless: root')}  - {{name: r, {QUICK}}}\n"
    found = run(text)
    assert [(result.status, result.exit_code) for result in found.values()] == [("skip", 0), ("skip", 0)]
    assert "this process is not root" in found["r"].reason


def test_a_server_that_cannot_start_is_one_failure(run, tmp_path):
    text = f"steps:\n{SERVER.replace('host,size=64MiB', f'file:{tmp_path}')}  - {{name: r, {QUICK}}}\n"
    found = run(text)
    assert (found["srv"].status, found["srv"].exit_code) == ("fail", 3)
    assert (found["r"].status, found["r"].exit_code) == ("not_run", 0)
    assert "srv did not start" in found["r"].reason


def test_parallel_rows_overlap(run):
    running: set[str] = set()
    most: list[int] = []

    def watch(event, _):
        (running.add if event.kind == "started" else running.discard)(event.row.name)
        most.append(len(running & {"a", "b"}))

    found = run(f"steps:\n{SERVER}  - parallel: [{{name: a, {QUICK}}}, {{name: b, {QUICK}}}]\n", watch)
    assert max(most) == 2 and {result.status for result in found.values()} == {"pass"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_every_row_has_its_say(run, number):
    started = time.monotonic()

    def interrupt(event, runner):
        if event.kind == "started" and event.row.name == "r":
            runner.stop.set(number)

    found = run(f"steps:\n{SERVER}  - {{name: r, {SLOW}}}\n  - {{name: later, {QUICK}}}\n", interrupt)
    assert (found["r"].status, found["r"].exit_code) == ("fail", 128 + number)
    assert found["r"].reason == "interrupted in the middle of it"
    assert (found["later"].status, found["later"].reason) == ("not_run", "interrupted")
    assert found["srv"].status == "pass" and time.monotonic() - started < 60


def test_the_scenario_has_a_time_limit(run):
    def late(event, runner):
        if event.kind == "started" and event.row.name == "r":
            runner.clock = lambda: runner.started_s + 4000.0

    found = run(f"time_limit: 1h\nsteps:\n{SERVER}  - {{name: r, {SLOW}}}\n  - {{name: later, {QUICK}}}\n", late)
    assert (found["r"].status, found["r"].exit_code, found["r"].error_code) == ("fail", 6, "time_limit")
    assert found["later"].status == "not_run" and "time limit of 3600 s" in found["later"].reason


def test_a_row_has_a_time_limit(run):
    found = run(f"steps:\n{SERVER}  - {{name: r, time_limit: 2s, {SLOW}}}\n  - {{name: later, {QUICK}}}\n")
    assert (found["r"].exit_code, found["r"].error_code) == (6, "time_limit")
    assert found["later"].status == "pass"


def test_a_peer_that_is_killed(run):
    def kill(event, runner):
        if event.kind == "started" and event.row.name == "r":
            os.kill(runner.servers[1].child.process.pid, signal.SIGKILL)

    found = run(f"steps:\n{SERVER}  - {{name: r, {SLOW}}}\n", kill)
    assert found["r"].status == "fail" and found["r"].error_code in ("peer_lost", "connect_refused")
    assert (found["srv"].exit_code, found["srv"].error_code) == (1, "server_died")
    assert "SIGKILL" in found["srv"].reason
