"""Compare two results."""

from __future__ import annotations

import json
from typing import Any

import click

from p2prw.commands.app import App
from p2prw.commands.complete import files
from p2prw.commands.options import HelpfulCommand, settings_options
from p2prw.config_files import FileKind, read_whole
from p2prw.errors import RequestError, ThresholdError

EPILOG = """\
Examples:
  p2prw run ci.yaml --json > today.json
  p2prw compare yesterday.json today.json
  p2prw compare yesterday.json today.json --tolerance 10% --json

A and B are documents of write, read, bench, smoke or run (--json). Compared are
bandwidth, below 4 KiB the message rate, and latency (p50, p99; lower is better).
Runs that differ in route, size, operation, device kind, MTU, depth, chunk or queue
pairs are refused, with the difference.

Exit codes: 0 none is worse, 2 usage or unlike runs, 3 a file cannot be read,
5 worse than the tolerance."""

RESULT_FILE = FileKind(
    "result",
    256 << 20,
    "it is a result that --json printed",
    "p2prw run SCENARIO.yaml --json > result.json",
    unreadable="result_file",
    bad="bad_result",
)


@click.command(cls=HelpfulCommand, epilog=EPILOG, short_help="Compare two results; refuse unlike ones.")
@click.argument("before", metavar="A", shell_complete=files)
@click.argument("after", metavar="B", shell_complete=files)
@settings_options("compare")
@click.pass_obj
def compare(app: App, /, before: str, after: str, **line: Any) -> int:
    """Compare the figures of two result documents, B with A as the baseline."""
    settings = app.settings("compare", line)
    from p2prw.reporters.document import build, error_object
    from p2prw.scenario.compare import compare as compare_documents
    from p2prw.scenario.compare import only_in

    old, new = read_result(before), read_result(after)
    changes = compare_documents(old, new, settings["tolerance"])
    worse = [change for change in changes if change.worse]
    gone, added = only_in(old, new)
    warnings = [f"only in {before}: {name}" for name in gone] + [f"only in {after}: {name}" for name in added]
    parts: dict[str, Any] = {}
    if worse:
        error = ThresholdError(
            f"{len(worse)} of {len(changes)} figures are more than {settings['tolerance']:.0%} worse than in {before}",
            why="; ".join(change.shown() for change in worse[:3]),
            fix="measure both again on a quiet machine, or --tolerance 10%",
        )
        parts = {"error": error_object(error)}
    document = build(
        "compare",
        5 if worse else 0,
        params={"before": before, "after": after, "tolerance": settings["tolerance"]},
        results=[change.row() for change in changes],
        warnings=warnings,
        **parts,
    )
    lines = [change.shown() for change in changes] + [f"warning: {text}" for text in warnings]
    return app.listing(document, [*lines, f"{len(changes)} compared, {len(worse)} worse"])


def read_result(path: str) -> dict[str, Any]:
    """Return a result document from a file. HostError: cannot be read; RequestError: it is none."""
    from p2prw.reporters.document import SCHEMA

    data = read_whole(path, RESULT_FILE)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA or not _has_figures(document):
        raise RequestError(
            f"{path} is no result of p2prw",
            why=f"a result is one JSON document with schema {SCHEMA}",
            fix=RESULT_FILE.fix,
            code="bad_result",
        )
    return document


def _has_figures(document: dict[str, Any]) -> bool:
    """Whether its results are such as we print."""
    from p2prw.scenario.compare import figures

    try:
        return all(figure.value > 0 for figure in figures(document)) and isinstance(document["results"], list)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return False
