"""Write and read every memory kind of this host over every device, each cell verified."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from p2prw.commands.app import App
from p2prw.commands.options import HelpfulCommand, settings_options
from p2prw.commands.show import show_config
from p2prw.reporters.base import Format

if TYPE_CHECKING:
    from rich.console import RenderableType

    from p2prw.engine.smoke.model import SmokeEvent, SmokePlan, SmokeRequest, SmokeResult
    from p2prw.errors import P2prwError

EPILOG = """\
Examples:
  p2prw smoke                                     (every device with itself)
  p2prw smoke --device rxe0 --memory p2pmem       (one NIC, controller memory)
  p2prw smoke --memory bar:0000:00:04.0/2         (a BAR: only when named)
  p2prw smoke 10.0.0.1 --token-file token --junit smoke.xml
      (with `p2prw serve --smoke --listen 10.0.0.1 --token-file token` there)

It writes to nothing that is somebody else's: no BAR, no block device, no file of
yours. What is left out is listed, with the reason, and is no failure.

Environment: P2PRW_<OPTION>, as P2PRW_TIME_LIMIT=60s; the command line wins.
Exit codes: 0 all cells passed, else the worst: 4 wrong bytes, 1 a transfer failed,
7 refused by the peer, 3 environment, 6 time limit; 2 usage, 130/143 signal."""


@click.command(cls=HelpfulCommand, epilog=EPILOG, short_help="Test every device and memory kind in a minute.")
@click.argument("peer", metavar="[PEER]", required=False)
@settings_options("smoke")
@click.pass_obj
def smoke(app: App, /, peer: str | None, **line: Any) -> int:
    """Write and read every memory kind of this host over every device, small, odd and large, each cell verified.

    Without PEER every device talks to itself. With PEER (HOST[:PORT] or [V6]:PORT, where `p2prw serve --smoke` runs)
    this host's memory is tested against the regions that are there for it.
    """
    settings = app.settings("smoke", line)
    from secrets import randbits

    from p2prw.config_smoke import smoke_request

    def make_request() -> SmokeRequest:
        # 32 bits: a seed is read out over the telephone.
        return smoke_request(settings, peer, randbits(32))

    if settings["show_config"]:
        return show_config(app, settings, make_request)
    request = make_request()
    # To the very end: a signal while the outcome is written must not put another document in its place.
    with app.watching():
        if settings["junit"]:
            from p2prw.engine.whole_file import check_directory

            check_directory(settings["junit"], "--junit")
        return _test(app, request, settings["junit"])


def _test(app: App, request: SmokeRequest, junit_path: str | None) -> int:
    """Run the test and show the outcome; return the exit code."""
    began_iso = _now_iso()
    result = _run(app, request)
    error = _write_junit(junit_path, result, began_iso) if junit_path else None
    from p2prw.commands.report import report_on
    from p2prw.reporters.document import add_failure
    from p2prw.reporters.smoke_rows import smoke_document, smoke_lines
    from p2prw.reporters.text import error_lines

    document = smoke_document(result)
    failures = [] if error is None else [error]
    for failure in failures:
        add_failure(document, failure)
    # After the others: it holds the whole outcome.
    unreported = report_on(app, document)
    if unreported is not None:
        failures.append(unreported)
        add_failure(document, unreported)

    def page() -> Iterable[RenderableType]:
        from p2prw.reporters.smoke_live import smoke_page

        return smoke_page(result)

    code = app.listing(document, smoke_lines(result), page)
    for one in (result.error, *failures):
        for text in error_lines(one) if one is not None else ():
            app.stderr.line(text)
    return code


def _run(app: App, request: SmokeRequest) -> SmokeResult:
    from p2prw.engine.smoke.model import CellDone
    from p2prw.engine.smoke.session import smoke as run_smoke
    from p2prw.engine.steps import finish
    from p2prw.reporters.json import StreamPrinter
    from p2prw.reporters.smoke_rows import cell_row, describe_cell
    from p2prw.reporters.smoke_view import choose_smoke_view

    view = choose_smoke_view(app.mode, app.stderr, app.environ)
    stream = StreamPrinter(app.stdout) if app.mode.format is Format.STREAM else None

    # Until there is a table: it shows by itself what is under way.
    app.stop.tell = app.note

    def on_plan(plan: SmokePlan) -> None:
        app.stop.tell = None
        view.planned(plan)
        if app.report is not None:
            app.report.more["plan.txt"] = "".join(f"{describe_cell(cell)}\n" for cell in plan.cells)
        if stream is not None:
            stream.event("plan", command="smoke", cells=len(plan.cells), skips=len(plan.skips), seed=request.seed)

    def show(event: SmokeEvent) -> None:
        view.take(event)
        if stream is not None and isinstance(event, CellDone):
            stream.event("cell", cell=cell_row(event.result))

    with app.drawing(view):
        return finish(run_smoke(request, stop=app.stop, on_plan=on_plan), show)


def _write_junit(path: str, result: SmokeResult, began_iso: str) -> P2prwError | None:
    """Write the file; what went wrong with it is part of the outcome, not instead of it."""
    from p2prw.engine.whole_file import write_whole
    from p2prw.errors import P2prwError
    from p2prw.reporters.junit import junit_xml
    from p2prw.reporters.smoke_junit import smoke_suites

    try:
        write_whole(path, junit_xml(smoke_suites(result, began_iso)), "--junit")
    except P2prwError as error:
        return error
    return None


def _now_iso() -> str:
    from datetime import datetime

    return datetime.now().isoformat(timespec="seconds")
