"""What `write` and `read` share: settings, request, the engine's generator, the reporter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2prw.commands.app import App
from p2prw.commands.show import show_config
from p2prw.reporters.base import is_live_terminal


def run_data_command(app: App, command: str, target: str | None, line: Mapping[str, Any]) -> int:
    """Run one transfer and return its exit code."""
    settings = app.settings(command, line)
    from p2prw.config_requests import transfer_request

    if settings["show_config"]:
        return show_config(app, settings, lambda: transfer_request(settings, target))
    request = transfer_request(settings, target)
    from p2prw.engine.session import run_transfer
    from p2prw.reporters.choose import choose_reporter

    reporter = choose_reporter(app.mode, app.stdout, app.stderr, app.environ)
    app.live = is_live_terminal(app.stderr.stream, app.environ) and not app.mode.quiet
    if request.resume or request.retries:
        app.parting = "p2prw: left at once; what has arrived at a file is kept: --resume goes on from there"
    app.stop_is_watched = True
    try:
        reporter.started(request)
        events = run_transfer(request, dry_run=settings["dry_run"], stop=app.stop)
        while True:
            try:
                progress = next(events)
            except StopIteration as end:
                result = end.value
                break
            reporter.progress(progress)
        app.reported = True
        reporter.finished(result)
    finally:
        app.stop_is_watched = False
        reporter.close()
        app.live = False
    return int(result.exit_code)
