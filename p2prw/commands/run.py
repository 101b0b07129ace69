"""Run a scenario file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from p2prw.commands.app import App
from p2prw.commands.complete import files
from p2prw.commands.options import EXIT_CODES_RUN, HelpfulCommand, settings_options
from p2prw.errors import P2prwError, RequestError
from p2prw.reporters.base import Format, is_live_terminal

if TYPE_CHECKING:
    from p2prw.config import Settings
    from p2prw.scenario.model import Scenario

EPILOG = f"""\
Examples:
  p2prw run configs/matrix_loopback.yaml
  p2prw run configs/matrix_loopback.yaml --dry-run
  p2prw run ci.yaml --var size=1GiB --junit results.xml --markdown summary.md
  p2prw run --schema > p2prw-scenario.schema.json

`p2prw help scenario` explains the format. Each row runs as a process of its own,
with the command line that is printed for it.

{EXIT_CODES_RUN}"""


@click.command(
    cls=HelpfulCommand,
    epilog=EPILOG,
    short_help="Run a scenario file: transfers, servers and what is expected of them.",
)
@click.argument("scenario", metavar="SCENARIO.yaml", required=False, shell_complete=files)
@settings_options("run")
@click.pass_obj
def run(app: App, /, scenario: str | None, **line: Any) -> int:
    """Run the steps of a scenario file and hold what comes of them against what is expected.

    Prints, for each row, the command that does it again.
    """
    settings = app.settings("run", line)
    if settings["schema"]:
        from p2prw.reporters.document import dump_pretty
        from p2prw.scenario.schema import scenario_schema

        app.reported = True
        app.stdout.raw(dump_pretty(scenario_schema()))
        return 0
    if scenario is None:
        raise RequestError(
            "SCENARIO.yaml is missing",
            why="a scenario says what is to be run",
            fix="p2prw run configs/matrix_loopback.yaml   (p2prw help scenario explains the format)",
            code="missing_scenario",
        )
    from p2prw.scenario.read import read_scenario

    if app.report is not None:
        app.report.more["scenario.yaml"] = _text_of(scenario)
    planned = read_scenario(
        scenario,
        app.environ,
        variables=_variables(settings["var"] or ()),
        seed=settings["seed"],
        on_failure=settings["on_failure"],
        time_limit_s=settings["time_limit"],
    )
    if settings["baseline"] is not None:
        # Before anything runs: half an hour later is too late to say that the file is none.
        from p2prw.commands.compare import read_result

        read_result(settings["baseline"])
    if app.report is not None:
        app.report.more["plan.txt"] = _plan_text(planned)
    if settings["dry_run"]:
        return _show_plan(app, planned)
    from p2prw.engine.whole_file import check_directory

    for name in ("junit", "markdown"):
        if settings[name] is not None:
            check_directory(settings[name], f"--{name}")
    return _run(app, planned, settings)


def _variables(texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise RequestError(
                f"--var: cannot read {text!r} as NAME=VALUE",
                why="it gives a variable of the file another value",
                fix="--var size=1MiB",
                code="bad_value",
            )
        found[name] = value
    return found


def _text_of(path: str) -> str:
    """Return the file for a report, also where it is no scenario; why not, where it cannot be read."""
    from p2prw.config_files import read_whole
    from p2prw.config_yaml import CONFIG_FILE

    try:
        return read_whole(path, CONFIG_FILE).decode("utf-8", "replace")
    except P2prwError as error:
        return f"not read: {error.what}\n"


def _plan_text(scenario: Scenario) -> str:
    from p2prw.scenario.document import planned_rows

    return "".join(f"{result.row.name}: {result.command}\n" for result in planned_rows(scenario))


def _show_plan(app: App, scenario: Scenario) -> int:
    from p2prw.commands.report import report_on
    from p2prw.reporters.document import add_failure
    from p2prw.reporters.run_rows import run_lines
    from p2prw.scenario.document import planned_rows, run_document

    document = run_document(scenario, planned_rows(scenario), elapsed_s=0.0)
    unreported = report_on(app, document)
    if unreported is not None:
        add_failure(document, unreported)
    code = app.listing(document, run_lines(document, f"{len(scenario.rows)} rows planned, nothing was run"))
    _say_what_failed(app, document)
    return code


def _run(app: App, scenario: Scenario, settings: Settings) -> int:
    from p2prw.reporters.run_rows import run_lines
    from p2prw.scenario.document import run_document, summary_line
    from p2prw.scenario.needs import ThisHost
    from p2prw.scenario.runner import Runner

    started_s, started_at = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    # To the very end: a signal while the outcome is written must not put another document in its place.
    with app.watching():
        runner = Runner(scenario, app.environ, ThisHost(app.environ), app.stop)
        _follow(app, runner)
        parts: dict[str, Any] = {
            "elapsed_s": time.monotonic() - started_s,
            "signal_number": app.stop.signal_number,
            "out_of_time": runner.out_of_time,
        }
        results = runner.ordered()
        document = run_document(scenario, results, **parts)
        lost, missing = _compared(settings["baseline"], settings["tolerance"], document)
        if lost or missing:
            document = run_document(scenario, results, **parts, regressions=lost, warnings=missing)
        _write_reports(app, settings, document, started_at)
        code = app.listing(document, app.stdout.folded(run_lines(document, summary_line(document))))
        _say_what_failed(app, document)
        return code


def _compared(path: str | None, tolerance: float, document: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return (lines of what became worse, notes of what could not be compared)."""
    if path is None:
        return [], []
    from p2prw.commands.compare import read_result
    from p2prw.scenario.compare import compare, only_in

    baseline = read_result(path)
    try:
        changes = compare(baseline, document, tolerance)
    except RequestError as error:
        # What cannot be compared has not been shown to be as good.
        return [f"{error.what} ({error.code})"], []
    gone, _ = only_in(baseline, document)
    lost = [change.shown() for change in changes if change.worse]
    return lost, [f"in {path}, but not in this run: {name}" for name in gone]


def _follow(app: App, runner: Any) -> None:
    """Run all rows and show them as they begin and end."""
    from p2prw.reporters.json import StreamPrinter
    from p2prw.scenario.document import row_object
    from p2prw.scenario.model import RowResult

    stream = StreamPrinter(app.stdout) if app.mode.format is Format.STREAM else None
    view = _view(app, runner.scenario)
    with app.drawing(view):
        for event in runner.run():
            row = row_object(event.result or RowResult(event.row, "running"))
            if stream is not None:
                stream.event("row", state=event.kind, row=row)
            if view is not None:
                (view.started if event.kind == "started" else view.finished)(row)


def _view(app: App, scenario: Scenario) -> Any:
    if app.mode.quiet:
        return None
    if is_live_terminal(app.stderr.stream, app.environ):
        from p2prw.reporters.run_live import RunView

        return RunView(app.stderr, app.environ, f"{scenario.name}, seed {scenario.seed}", len(scenario.rows))
    from p2prw.reporters.run_rows import RunLines

    return RunLines(app.stderr, len(scenario.rows))


def _write_reports(app: App, settings: Settings, document: dict[str, Any], started_at: str) -> None:
    """Write the files that were asked for; what goes wrong with them becomes part of the document."""
    from p2prw.commands.report import report_on
    from p2prw.engine.whole_file import write_whole
    from p2prw.errors import HostError
    from p2prw.reporters.document import add_failure

    makers: dict[str, Callable[[], bytes]] = {
        "junit": lambda: _junit(document, started_at),
        "markdown": lambda: _markdown(document),
    }
    for name, make in makers.items():
        path = settings[name]
        if path is None:
            continue
        try:
            write_whole(path, make(), f"--{name}")
        except HostError as error:
            add_failure(document, error)
    # The last: it holds the whole outcome.
    unreported = report_on(app, document)
    if unreported is not None:
        add_failure(document, unreported)


def _junit(document: Mapping[str, Any], started_at: str) -> bytes:
    from p2prw.reporters.run_junit import run_junit

    return run_junit(document, started_at)


def _markdown(document: Mapping[str, Any]) -> bytes:
    from p2prw.reporters.run_markdown import run_markdown

    return run_markdown(document).encode()


def _say_what_failed(app: App, document: Mapping[str, Any]) -> None:
    """Say the worst once more where the eye lands last."""
    if document["error"] is None:
        return
    error = document["error"]
    for head, text in (("Error:", error["what"]), ("  why: ", error["why"]), ("  try: ", error["try"])):
        if text is not None:
            (app.stderr.line if "try" in head else app.stderr.fact)(f"{head} {text}")
