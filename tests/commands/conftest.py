"""A fake engine behind the command line: it records the request and plays a script."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

from p2prw.engine.events import Progress
from p2prw.engine.model import (
    ErrorReport,
    RouteReport,
    TransferRequest,
    TransferResult,
    TransferStats,
    VerifyReport,
)
from p2prw.schema import load_schema

ROUTE = RouteReport("cpu", "cpu", False, "host", "soft0", "soft")


def ok_result(request: TransferRequest, **changes: Any) -> TransferResult:
    size = request.size_bytes or 1 << 20
    values: dict[str, Any] = {
        "command": request.operation.value,
        "status": "ok",
        "exit_code": 0,
        "params": {"peer": str(request.peer), "region": request.region},
        "environment": {"device": request.device},
        "local_route": ROUTE,
        "remote_route": ROUTE,
        "results": (TransferStats(request.operation.value, size, size, 0.5, size / 0.5, 1, 1, 1, 1 << 20),),
        "verify": VerifyReport("verified", "owner-cpu", "xxh3-128", 1 << 20, 1, 0.01, "0" * 32, "0" * 32),
        "phases": {"open": 0.001, "steady": 0.5},
    }
    return TransferResult(**{**values, **changes})


def failed_result(request: TransferRequest) -> TransferResult:
    return ok_result(
        request,
        status="failed",
        exit_code=1,
        partial=True,
        verify=VerifyReport("unverified"),
        error=ErrorReport(
            "remote_access", "the peer's device refused\x1b[2J", "rkey 7", "ask again", "REM_ACCESS_ERR", None, "remote"
        ),
    )


@dataclass
class FakeEngine:
    """`p2prw.engine.session` for these tests."""

    result: Callable[[TransferRequest], TransferResult] = ok_result
    progress: list[Progress] = field(default_factory=list)
    regions: tuple[Any, ...] = ()
    raises: Exception | None = None
    requests: list[TransferRequest] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    during: Callable[[Any], None] | None = None

    @property
    def request(self) -> TransferRequest:
        return self.requests[-1]

    def run_transfer(
        self, request: TransferRequest, *, dry_run: bool = False, keep_plan: bool = False, stop: Any = None
    ) -> Generator[Progress, None, TransferResult]:
        self.requests.append(request)
        self.calls.append({"dry_run": dry_run, "keep_plan": keep_plan, "stop": stop})
        if self.raises:
            raise self.raises
        yield from self.progress
        if self.during:
            self.during(stop)
        return self.result(request)

    def list_regions(
        self, peer: Any, token: Any = None, timeouts: Any = None, *, tls: Any = None, stop: Any = None
    ) -> tuple[Any, ...]:
        self.calls.append({"peer": peer, "token": token, "timeouts": timeouts})
        if self.raises:
            raise self.raises
        return self.regions


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()
    module: Any = types.ModuleType("p2prw.engine.session")
    module.run_transfer = fake.run_transfer
    module.list_regions = fake.list_regions
    monkeypatch.setitem(sys.modules, "p2prw.engine.session", module)
    return fake


@pytest.fixture
def failing() -> Callable[[TransferRequest], TransferResult]:
    return failed_result


@pytest.fixture
def make_ok() -> Callable[..., TransferResult]:
    return ok_result


@dataclass
class Cli:
    """Runs the command line in this process; `P2PRW_` variables of the outside do not leak in."""

    base: Mapping[str, str | None]

    def __call__(self, *arguments: str, env: Mapping[str, str] | None = None) -> Result:
        from p2prw.cli import cli

        return CliRunner(env={**self.base, **(env or {})}).invoke(cli, list(arguments))

    def json(self, *arguments: str, env: Mapping[str, str] | None = None) -> tuple[dict[str, Any], Result]:
        """Run, and return the one document on stdout, held against the schema."""
        result = self(*arguments, env=env)
        document: dict[str, Any] = json.loads(result.stdout)
        Draft202012Validator(load_schema()).validate(document)
        assert document["exit_code"] == result.exit_code
        return document, result


@pytest.fixture
def run() -> Cli:
    import os

    return Cli({name: None for name in os.environ if name.startswith("P2PRW_")})
