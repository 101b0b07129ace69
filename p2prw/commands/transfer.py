"""What `write` and `read` share: settings, request, the engine's generator, the reporter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from p2prw.commands.app import App
from p2prw.commands.show import show_config

if TYPE_CHECKING:
    from p2prw.engine.model import TransferResult


def run_data_command(app: App, command: str, target: str | None, line: Mapping[str, Any]) -> int:
    """Run one transfer and return its exit code."""
    settings = app.settings(command, line)
    from p2prw.config_requests import transfer_request

    if settings["show_config"]:
        return show_config(app, settings, lambda: transfer_request(settings, target))
    request = transfer_request(settings, target)
    app.pin(settings)
    from p2prw.engine.session import run_transfer
    from p2prw.engine.steps import finish
    from p2prw.reporters.choose import choose_reporter

    reporter = choose_reporter(app.mode, app.stdout, app.stderr, app.environ)
    if request.resume or request.retries:
        app.parting = "p2prw: left at once; what has arrived at a file is kept: --resume goes on from there"
    with app.drawing(reporter), app.watching():
        reporter.started(request)
        app.stop.tell = reporter.view.waiting
        events = run_transfer(request, dry_run=settings["dry_run"], stop=app.stop, keep_plan=app.report is not None)
        result = _reported(app, finish(events, reporter.progress), planned=settings["dry_run"])
        app.reported = True
        reporter.finished(result)
    return int(result.exit_code)


def _reported(app: App, result: TransferResult, *, planned: bool) -> TransferResult:
    """Return the outcome as it is to be shown; a plan that was kept for the report alone goes into it alone."""
    if app.report is None:
        return result
    from p2prw.commands.report import reported_result
    from p2prw.engine.plan import plan_lines

    if result.plan is not None:
        app.report.more["plan.txt"] = "".join(f"{line}\n" for line in plan_lines(result.plan))
    return reported_result(app, result if planned else replace(result, plan=None))
