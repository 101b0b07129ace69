"""Cells in order, with a scripted transfer behind them: every cell gets a result, whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2prw.engine.events import Progress
from p2prw.engine.model import (
    ErrorReport,
    Operation,
    PeerAddress,
    Timeouts,
    TransferRequest,
    TransferResult,
    VerifyReport,
)
from p2prw.engine.peer import list_regions
from p2prw.engine.server.server import Server
from p2prw.engine.smoke import runner as module
from p2prw.engine.smoke.model import CellDone, CellRunning, CellStarted, Preset, SmokeDevice, SmokeMemory, SmokeRegion
from p2prw.engine.smoke.plan import make_plan
from p2prw.engine.smoke.runner import CELL_S, RECONNECT_S, Runner
from p2prw.engine.smoke.servers import fill_file, serving
from p2prw.engine.stop import StopRequest
from p2prw.errors import HostError, PeerRefusedError

Outcome = Callable[[TransferRequest], TransferResult]


def result(request: TransferRequest, code: str | None = None, exit_code: int = 0, verify: str = "verified"):
    error = ErrorReport(code, f"{code} happened") if code else None
    return TransferResult(
        command=request.operation.value,
        status="failed" if error else "ok",
        exit_code=exit_code,
        params={},
        environment={},
        local_route=None,
        remote_route=None,
        results=(),
        verify=VerifyReport(verify),
        phases={},
        error=error,
    )


class Stage:
    """A plan against a peer, a clock set by hand, and transfers that do what they are told."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, request: Any, folder: Path, memories: list[SmokeMemory]
    ) -> None:
        self.now = 100.0
        self.stop = StopRequest()
        self.requests: list[TransferRequest] = []
        self.outcome: Outcome = result
        region_bytes = 8 << 20 if request.preset is Preset.FULL else 1 << 20
        regions = [SmokeRegion("smoke-host", "host", region_bytes)]
        self.plan = make_plan(request, [SmokeDevice("auto", "", "auto")], memories, regions, str(folder))
        self.runner = Runner(self.plan, request, self.stop, lambda: self.now)

        def run_transfer(request: TransferRequest, stop: StopRequest):
            assert stop is self.stop
            self.requests.append(request)
            yield Progress("steady", 5, 10, 1.0, 1.0, 1, 1, "cpu")
            return self.outcome(request)

        monkeypatch.setattr(module, "run_transfer", run_transfer)
        monkeypatch.setattr("time.sleep", lambda seconds: self.tick(seconds))

    def tick(self, seconds: float) -> None:
        self.now += seconds

    def run(self) -> list[str]:
        self.events = list(self.runner.run())
        assert [one.cell for one in self.runner.results] == list(self.plan.cells), "no cell is lost"
        return [one.status for one in self.runner.results]


@pytest.fixture
def stage(monkeypatch, ask, tmp_path):
    def make(*kinds: str, **changes: Any) -> Stage:
        request = ask(peer=PeerAddress("h"), token=b"t", **changes)
        return Stage(monkeypatch, request, tmp_path, [SmokeMemory(kind, kind) for kind in kinds or ("host",)])

    return make


def test_each_cell_is_started_run_and_done(stage):
    one = stage(inject="drop=1%")
    assert one.run() == ["pass"] * 6
    assert [type(event) for event in one.events] == [CellStarted, CellRunning, CellDone] * 6
    for cell, request in zip(one.plan.cells, one.requests, strict=True):
        assert (request.operation, request.size_bytes, request.memory) == (cell.operation, cell.size_bytes, cell.memory)
        assert (request.region, request.region_offset) == (cell.region, cell.offset_bytes)
        assert (request.token, request.inject, request.peer) == (b"t", "drop=1%", PeerAddress("h"))


@pytest.mark.parametrize(
    ("bytes_per_s", "sizes"),
    [
        (1 << 30, [1 << 20, 8 << 20] * 2),
        (1 << 17, [1 << 20, 8 << 20] * 2),
        (1 << 14, [1 << 20, 4 << 20, 1 << 20, 3 << 20]),
        (1 << 10, [1 << 20] * 2),
    ],
    ids=["fast", "as fast as it must be", "slow", "too slow for anything more"],
)
def test_full_makes_its_large_cells_as_large_as_the_time_allows(stage, bytes_per_s, sizes):
    one = stage(preset=Preset.FULL)

    def slow(request: TransferRequest) -> TransferResult:
        one.tick((request.size_bytes or 0) / bytes_per_s)
        done: TransferResult = result(request)
        return done

    one.outcome = slow
    list(one.runner.run())
    assert [request.size_bytes for request in one.requests if (request.size_bytes or 0) >= 1 << 20] == sizes
    large = [found.cell for found in one.runner.results if found.cell.size_class == "large"]
    assert [cell.wanted_bytes for cell in large] == [None if cell.size_bytes == 8 << 20 else 8 << 20 for cell in large]
    assert [found.cell.number for found in one.runner.results] == [cell.number for cell in one.plan.cells]


def test_each_cell_has_a_deadline_and_only_the_first_waits_for_the_server(stage):
    one = stage()
    one.run()
    assert [request.timeouts.connect_retry_s for request in one.requests] == [10.0] + [RECONNECT_S] * 5
    for request in one.requests:
        assert CELL_S <= request.timeouts.time_limit_s <= CELL_S + 1


def test_a_failure_keeps_its_code_and_the_rest_runs(stage):
    one = stage()
    one.outcome = lambda request: result(request, *(("verify_mismatch", 4) if len(one.requests) == 2 else ()))
    assert one.run() == ["pass", "fail", "pass", "pass", "pass", "pass"]
    failed = one.runner.results[1]
    assert (failed.exit_code, failed.reason, failed.error.code) == (4, "verify_mismatch happened", "verify_mismatch")


def test_what_was_not_verified_is_no_pass(stage):
    one = stage()
    one.outcome = lambda request: result(request, verify="unverified")
    assert one.run() == ["fail"] * 6
    assert {found.exit_code for found in one.runner.results} == {4}


def test_a_cell_that_hangs_fails_at_its_deadline(stage):
    one = stage(timeouts=Timeouts(time_limit_s=1000.0))

    def hang(request):
        one.tick(request.timeouts.time_limit_s)
        return result(request, "time_limit", 6)

    one.outcome = hang
    assert one.run() == ["fail"] * 6
    assert {found.error.code for found in one.runner.results} == {"cell_deadline"}
    assert {found.exit_code for found in one.runner.results} == {1}


def test_the_time_limit_of_all_ends_what_is_left_as_not_run(stage):
    one = stage(timeouts=Timeouts(time_limit_s=30.0))

    def slow(request):
        wanted_s = 14.0
        one.tick(min(wanted_s, request.timeouts.time_limit_s))
        return result(request, *(("time_limit", 6) if request.timeouts.time_limit_s < wanted_s else ()))

    one.outcome = slow
    assert one.run() == ["pass", "pass", "not_run", "not_run", "not_run", "not_run"]
    assert one.runner.end is not None
    assert one.runner.end.exit_code == 6
    assert len(one.requests) == 3


def test_a_signal_ends_what_is_left_as_not_run(stage):
    one = stage()

    def stopped(request):
        if len(one.requests) < 3:
            return result(request)
        one.stop.set(15)
        return replace(result(request, "terminated", 143), status="interrupted")

    one.outcome = stopped
    assert one.run() == ["pass", "pass", "not_run", "not_run", "not_run", "not_run"]
    assert one.runner.end.exit_code == 143
    assert "in the middle" in one.runner.results[2].reason


def test_a_busy_region_is_tried_again(stage):
    one = stage()
    one.outcome = lambda request: result(request, *(("busy", 7) if len(one.requests) < 4 else ()))
    assert one.run() == ["pass"] * 6
    assert len(one.requests) == 9


def test_a_region_that_stays_busy_fails_at_the_deadline(stage):
    one = stage()
    one.outcome = lambda request: result(request, "busy", 7)
    assert one.run() == ["fail"] * 6
    assert {found.exit_code for found in one.runner.results} == {7}


def test_a_peer_that_is_gone_costs_two_cells(stage):
    one = stage("host", "file")
    one.outcome = lambda request: result(request, *(("connect_refused", 3) if len(one.requests) > 4 else ()))
    assert one.run() == ["pass"] * 4 + ["fail"] * 2 + ["not_run"] * 6
    assert {found.reason for found in one.runner.results[6:]} == {"the server cannot be reached any more"}


def test_files_are_there_for_their_cell_only(stage, tmp_path):
    one = stage("file")
    seen = []

    def look(request):
        path = Path(request.memory.arg)
        seen.append(path.stat().st_size if path.exists() else None)
        if request.operation is Operation.READ:
            path.write_bytes(b"arrived")
        return result(request)

    one.outcome = look
    assert one.run() == ["pass"] * 6
    wanted = [cell.size_bytes if cell.operation is Operation.WRITE else None for cell in one.plan.cells]
    assert seen == wanted
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_fails_the_cell(stage, monkeypatch):
    one = stage("file")
    monkeypatch.setattr(module, "fill_file", lambda *_: (_ for _ in ()).throw(HostError("no space", code="smoke_file")))
    assert one.run() == ["pass", "fail"] * 3
    assert {found.exit_code for found in one.runner.results} == {0, 3}


# --- the serving end of a loopback ---


def loopback_plan(ask, tmp_path, **changes):
    device = SmokeDevice("soft0", "127.0.0.1", "soft")
    memories = [SmokeMemory("host", "host"), SmokeMemory("file", "file")]
    return make_plan(ask(**changes), [device], memories, None, str(tmp_path))


def test_a_server_that_cannot_start_fails_its_cells(ask, tmp_path):
    plan = loopback_plan(ask, tmp_path / "missing")
    runner = Runner(plan, ask(), StopRequest())
    list(runner.run())
    assert [one.status for one in runner.results] == ["fail"] * len(plan.cells)
    assert {(one.error.code, one.error.errno) for one in runner.results if one.error} == {("smoke_file", "ENOENT")}


def test_a_loopback_server_wants_its_token_and_leaves_nothing_behind(ask, tmp_path):
    plan = loopback_plan(ask, tmp_path)
    before = set(threading.enumerate())
    with serving(plan.servers["soft0"], ask()) as server:
        rows = {row.name: row for row in list_regions(server.address, server.token)}
        with pytest.raises(PeerRefusedError):
            list_regions(server.address, None)
    assert {name: row.access for name, row in rows.items()} == {"smoke-host": "rw", "smoke-file": "rw"}
    assert set(threading.enumerate()) == before


def test_a_server_that_ends_by_itself_is_named_in_what_fails_then(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(Server, "run", lambda *_: (_ for _ in ()).throw(HostError("the port went away")))
    plan = loopback_plan(ask, tmp_path)
    runner = Runner(plan, ask(timeouts=Timeouts(handshake_s=0.5)), StopRequest())
    list(runner.run())
    first = runner.results[0]
    assert (first.status, first.exit_code) == ("fail", 1)
    assert first.error is not None
    assert first.error.why == "the serving end of the loopback has ended: the port went away"


def test_files_hold_what_their_seed_says(tmp_path):
    fill_file(str(tmp_path / "a"), (4 << 20) + 5, 3)
    fill_file(str(tmp_path / "b"), (4 << 20) + 5, 4)
    first, second = (tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()
    assert len(first) == (4 << 20) + 5
    assert first != second
    assert first[: 1 << 20] != first[1 << 20 : 2 << 20]
