"""Runs the cells of a plan in order, each with a deadline; every cell gets a result, whatever happens.

One thread drives the cells; a loopback's server has its own. After two cells in a row that could not even connect the
rest of the device's cells is not run: a peer that is gone must not cost a wait for each of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from p2prw.engine.deadline import Deadline
from p2prw.engine.model import ErrorReport, Operation, TransferRequest, TransferResult
from p2prw.engine.outcome import error_report
from p2prw.engine.session import run_transfer
from p2prw.engine.smoke.budget import PROBE_BYTES, Budget, make_budget, probe_of, resized
from p2prw.engine.smoke.model import (
    Cell,
    CellDone,
    CellResult,
    CellRunning,
    CellStarted,
    SizeClass,
    SmokeEvent,
    SmokePlan,
    SmokeRequest,
)
from p2prw.engine.smoke.servers import Serving, fill_file, serving
from p2prw.engine.stop import StopRequest
from p2prw.errors import InterruptedTransfer, P2prwError, TimeLimitError
from p2prw.units import MIB

CELL_S = 20.0
"""A cell that takes longer hangs, whatever it says; more for large ones:"""
SLOWEST_BYTES_PER_S = 4 * MIB
RECONNECT_S = 1.0
"""Once a server was reached, it is there or it is gone."""
BUSY_PAUSE_S = 0.2
_UNREACHED = frozenset({"connect_refused", "connect_timeout"})
_MOST_UNREACHED = 2

Events = Generator[SmokeEvent, None, None]


class Runner:
    """The state of one run: results so far, and what stops it."""

    def __init__(
        self,
        plan: SmokePlan,
        request: SmokeRequest,
        stop: StopRequest,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self.request = request
        self.clock = clock
        self.deadline = Deadline(clock, stop, request.timeouts.time_limit_s)
        self.results: list[CellResult] = []
        self.end: P2prwError | None = None
        """The signal or the limit that ended the run."""
        self.budget: Budget | None = None

    def run(self) -> Events:
        """Yield what happens; `results` then has every cell."""
        self.budget = make_budget(self.request, self.plan.cells, self.clock())
        for place, cells in groupby(self.plan.cells, key=lambda cell: cell.place):
            yield from self._device(place, list(cells))

    def _device(self, place: str, cells: list[Cell]) -> Events:
        loopback = self.plan.servers.get(place)
        with ExitStack() as stack:
            server: Serving | None = None
            if loopback is not None and not self._ended():
                try:
                    server = stack.enter_context(serving(loopback, self.request))
                except P2prwError as error:
                    yield from self._all_failed(cells, error)
                    return
            unreached = 0
            reached = False
            for cell in cells:
                if self._ended():
                    yield self._not_run(cell, str(self.end and self.end.what))
                    continue
                if unreached >= _MOST_UNREACHED:
                    yield self._not_run(cell, "the server cannot be reached any more")
                    continue
                yield CellStarted(cell)
                result = yield from self._fitted(cell, server, reached)
                if self.budget is not None:
                    self.budget.ended(cell, result.elapsed_s)
                code = result.error.code if result.error else None
                unreached = unreached + 1 if code in _UNREACHED else 0
                reached = reached or unreached == 0
                self.results.append(result)
                yield CellDone(result)

    def _ended(self) -> bool:
        if self.end is None:
            try:
                self.deadline.check("in the middle of the smoke test")
            except P2prwError as error:
                self.end = error
        return self.end is not None

    def _fitted(self, cell: Cell, server: Serving | None, reached: bool) -> Generator[SmokeEvent, None, CellResult]:
        """Run a cell; a large one of `--full` is as large as the time allows."""
        if self.budget is None or cell.size_class is not SizeClass.LARGE or cell.size_bytes <= PROBE_BYTES:
            return (yield from self._cell(cell, server, reached))
        loopback = self.plan.servers.get(cell.place)
        address = loopback.address if loopback is not None else ""
        first = yield from self._cell(probe_of(cell, self.request, address), server, reached)
        if first.status != "pass" or self._ended():
            return first
        fitting_bytes = self.budget.fitting_bytes(self.clock(), first.elapsed_s, cell.size_bytes)
        if fitting_bytes <= PROBE_BYTES:
            return first
        if fitting_bytes < cell.size_bytes:
            cell = resized(cell, fitting_bytes, self.request, address)
        result = yield from self._cell(cell, server, reached=True)
        return replace(result, elapsed_s=first.elapsed_s + result.elapsed_s)

    def _cell(self, cell: Cell, server: Serving | None, reached: bool) -> Generator[SmokeEvent, None, CellResult]:
        began_s = self.clock()
        end_s = began_s + CELL_S + cell.size_bytes / SLOWEST_BYTES_PER_S
        try:
            if cell.kind == "file" and cell.operation is Operation.WRITE:
                fill_file(cell.memory.arg or "", cell.size_bytes, cell.seed)
            while True:
                left_s = self.deadline.left_s(max(0.001, end_s - self.clock()))
                transfer = yield from self._transfer(cell, server, reached, left_s)
                busy = transfer.error is not None and transfer.error.code == "busy"
                if not busy or self.clock() + BUSY_PAUSE_S >= end_s or self._ended():
                    return self._judge(cell, transfer, self.clock() - began_s, server.failure if server else None)
                # Another smoke test is at the same region; it has it for moments only.
                time.sleep(BUSY_PAUSE_S)
        except P2prwError as error:
            return self._failed(cell, error, self.clock() - began_s)
        finally:
            if cell.kind == "file":
                with suppress(OSError):
                    Path(cell.memory.arg or "").unlink(missing_ok=True)

    def _transfer(
        self, cell: Cell, server: Serving | None, reached: bool, left_s: float
    ) -> Generator[SmokeEvent, None, TransferResult]:
        request = self.request
        retry_s = min(request.timeouts.connect_retry_s, RECONNECT_S) if reached else request.timeouts.connect_retry_s
        peer = server.address if server is not None else cell.peer
        assert peer is not None
        events = run_transfer(
            TransferRequest(
                operation=cell.operation,
                peer=peer,
                region=cell.region,
                region_offset=cell.offset_bytes,
                memory=cell.memory,
                size_bytes=cell.size_bytes,
                device=cell.device,
                ib_port=cell.ib_port,
                verbs_binding=request.verbs_binding,
                timeouts=replace(request.timeouts, connect_retry_s=retry_s, time_limit_s=left_s),
                token=server.token if server is not None else request.token,
                tls=None if server is not None else request.tls,
                force_bound_device=request.force_bound_device,
                inject=request.inject,
            ),
            stop=self.deadline.stop,
        )
        while True:
            try:
                progress = next(events)
            except StopIteration as end:
                result: TransferResult = end.value
                return result
            yield CellRunning(cell, progress.bytes_done)

    def _judge(
        self, cell: Cell, transfer: TransferResult, elapsed_s: float, server_failure: Exception | None
    ) -> CellResult:
        error, code = transfer.error, transfer.exit_code
        if error is None and transfer.verify.status == "verified":
            return CellResult(cell, "pass", 0, elapsed_s, transfer=transfer)
        if self._ended() and error is not None and error.code in ("interrupted", "terminated", "time_limit"):
            return CellResult(cell, "not_run", 0, elapsed_s, f"{error.what} in the middle of it", error, transfer)
        if error is not None and error.code == "time_limit":
            # Its own deadline, not the user's: the cell hangs.
            error = ErrorReport(
                code="cell_deadline",
                what=f"it had not ended after {elapsed_s:.0f} s",
                why=error.why or "neither progress nor an error came in time",
                fix=cell.command,
            )
            code = 1
        if error is None:
            error = ErrorReport(
                "unverified", f"the bytes were not verified: {transfer.verify.status}", fix=cell.command
            )
            code = 4
        if server_failure is not None:
            error = replace(error, why=f"the serving end of the loopback has ended: {server_failure}")
        return CellResult(cell, "fail", code, elapsed_s, error.what, error, transfer)

    def _failed(self, cell: Cell, error: P2prwError, elapsed_s: float) -> CellResult:
        if isinstance(error, (InterruptedTransfer, TimeLimitError)):
            self.end = self.end or error
            return CellResult(cell, "not_run", 0, elapsed_s, error.what, error_report(error))
        return CellResult(cell, "fail", error.exit_code, elapsed_s, error.what, error_report(error))

    def _not_run(self, cell: Cell, reason: str) -> CellDone:
        if self.budget is not None:
            self.budget.ended(cell, 0.0)
        self.results.append(CellResult(cell, "not_run", reason=reason))
        return CellDone(self.results[-1])

    def _all_failed(self, cells: Iterable[Cell], error: P2prwError) -> Events:
        for cell in cells:
            if self.budget is not None:
                self.budget.ended(cell, 0.0)
            self.results.append(self._failed(cell, error, 0.0))
            yield CellDone(self.results[-1])
