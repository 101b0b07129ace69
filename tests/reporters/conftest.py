"""Outcomes of a smoke test, made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from p2prw.engine.model import (
    ErrorReport,
    RouteAttempt,
    RouteReport,
    TransferResult,
    TransferStats,
    VerifyReport,
)
from p2prw.engine.smoke.model import Cell, CellResult, Preset, Skip, SmokeDevice, SmokeMemory, SmokeRequest, SmokeResult
from p2prw.engine.smoke.plan import make_plan

PIN, ODP = RouteAttempt("pin", ok=False, errno="EFAULT", why="no pages"), RouteAttempt("odp", ok=True)
P2PMEM_ROUTE = RouteReport("odp", "cpu", False, "p2pmem", "rxe0", "rxe", attempts=(PIN, ODP))
HOST_ROUTE = RouteReport("pin", "cpu", False, "host", "rxe0", "rxe")


def transfer(cell: Cell, error: ErrorReport | None, exit_code: int) -> TransferResult:
    size = cell.size_bytes
    return TransferResult(
        command=cell.operation.value,
        status="failed" if error else "ok",
        exit_code=exit_code,
        params={},
        environment={},
        local_route=P2PMEM_ROUTE if cell.kind == "p2pmem" else HOST_ROUTE,
        remote_route=HOST_ROUTE,
        results=(TransferStats(cell.operation.value, size, size, 0.5, size / 0.5, 1, 1, 1, 1 << 20),),
        verify=VerifyReport("mismatch" if exit_code == 4 else "verified"),
        phases={},
        error=error,
    )


@pytest.fixture
def cells() -> tuple[Cell, ...]:
    """Twelve of rxe0: host and p2pmem here, host there."""
    memories = [SmokeMemory("host", "host"), SmokeMemory("p2pmem", "p2pmem:0000:01:00.0", 4 << 20)]
    device = SmokeDevice("rxe0", "10.9.0.1", "verbs")
    return make_plan(SmokeRequest(seed=7, preset=Preset.QUICK), [device], memories, None, "/t").cells


@pytest.fixture
def outcome(cells: tuple[Cell, ...]) -> Callable[..., SmokeResult]:
    """All pass but the given: {number: (status, exit code)}."""

    def make(others: dict[int, tuple[str, int]] | None = None, **changes: Any) -> SmokeResult:
        results = []
        for cell in cells:
            status, code = (others or {}).get(cell.number, ("pass", 0))
            error = (
                ErrorReport("verify_mismatch", "bytes\x1b[2J differ", "why not", "try it") if status == "fail" else None
            )
            done = None if status == "not_run" else transfer(cell, error, code)
            reason = None if status == "pass" else "interrupted" if status == "not_run" else "bytes\x1b[2J differ"
            results.append(CellResult(cell, status, code, 0.25, reason, error, done))
        values: dict[str, Any] = {
            "request": SmokeRequest(seed=7),
            "cells": tuple(results),
            "skips": (Skip("soft:eth0", None, "loopback again"), Skip(None, "bar", "somebody's device")),
            "exit_code": 0,
            "elapsed_s": 3.0,
        }
        return SmokeResult(**{**values, **changes})

    return make
