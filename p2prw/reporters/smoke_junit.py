"""A smoke test as JUnit suites: one for each device, and one for what does not take part on any."""

from __future__ import annotations

from p2prw.engine.smoke.model import CellResult, Skip, SmokeResult
from p2prw.reporters.junit import Case, Outcome, Suite
from p2prw.reporters.smoke_grid import route_words

# What was not run was not tested, and CI that reads nothing but this file must not take it for green.
_OUTCOMES: dict[str, Outcome] = {"pass": "passed", "fail": "failed", "not_run": "error"}


def smoke_suites(result: SmokeResult, timestamp_iso: str) -> list[Suite]:
    """Return the suites; `timestamp_iso` is when the test began."""
    devices = dict.fromkeys(
        [one.cell.place for one in result.cells] + [skip.device for skip in result.skips if skip.device]
    )
    suites = [
        Suite(
            f"smoke {device}",
            (
                *(_case(one) for one in result.cells if one.cell.place == device),
                *(_skipped(skip, device) for skip in result.skips if skip.device == device),
            ),
            timestamp_iso,
            properties={"seed": str(result.request.seed), "preset": result.request.preset.value},
        )
        for device in devices
    ]
    anywhere = tuple(_skipped(skip, "host") for skip in result.skips if skip.device is None)
    return [*suites, Suite("smoke host", anywhere, timestamp_iso)] if anywhere else suites


def _case(one: CellResult) -> Case:
    cell = one.cell
    properties = {"command": cell.command}
    if cell.serve_command:
        properties["serve_command"] = cell.serve_command
    route = route_words(one)
    if route:
        properties["route"] = route
    details = None
    if one.error is not None:
        details = "\n".join(filter(None, (one.error.what, one.error.why)))
    return Case(
        name=f"{cell.operation} {cell.local} {cell.remote} {cell.size_class}",
        classname=f"smoke.{cell.place}",
        time_s=one.elapsed_s,
        outcome=_OUTCOMES[one.status],
        message=one.reason,
        details=details,
        properties=properties,
        type=one.error.code if one.error else one.status,
    )


def _skipped(skip: Skip, device: str) -> Case:
    name = " ".join(filter(None, (skip.memory, skip.region))) or device
    return Case(name, f"smoke.{device}", 0.0, "skipped", skip.reason)
