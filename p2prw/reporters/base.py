"""What a reporter is: two halves, one for each stream, told the same four things.

stderr  a view      `live` on a terminal, `text` lines elsewhere, nothing with --quiet
stdout  a printer   the result as text, one JSON document, or NDJSON
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TextIO

from p2prw.engine.events import Progress
from p2prw.engine.model import TransferRequest, TransferResult


class Format(StrEnum):
    """What stdout carries."""

    TEXT = "text"
    JSON = "json"
    STREAM = "json-stream"


@dataclass(frozen=True, slots=True)
class Mode:
    """How a command was asked to speak."""

    format: Format = Format.TEXT
    quiet: bool = False
    debug: bool = False


class Reporter(Protocol):
    """Told what happens, in this order; `close` always, also when an exception ends the command."""

    def started(self, request: TransferRequest) -> None:
        """Say what is about to be done."""

    def progress(self, progress: Progress) -> None:
        """Take one sample; cheap to over-call."""

    def warning(self, text: str) -> None:
        """Say something that is not a failure."""

    def finished(self, result: TransferResult) -> None:
        """Show the outcome."""

    def close(self) -> None:
        """Leave the terminal as it was found. Safe to call twice."""


class View(Reporter, Protocol):
    """The half on stderr."""

    def waiting(self, text: str) -> None:
        """Show what is waited for, before anything moves."""


class Both:
    """Two reporters told the same; the view is closed before the printer writes."""

    def __init__(self, view: View, printer: Reporter) -> None:
        self.view = view
        self.printer = printer

    def started(self, request: TransferRequest) -> None:
        """Tell both."""
        self.view.started(request)
        self.printer.started(request)

    def progress(self, progress: Progress) -> None:
        """Tell both."""
        self.view.progress(progress)
        self.printer.progress(progress)

    def warning(self, text: str) -> None:
        """Tell both."""
        self.view.warning(text)
        self.printer.warning(text)

    def finished(self, result: TransferResult) -> None:
        """Clear the view, then print the result, then say what failed where the eye lands last."""
        self.view.close()
        self.printer.finished(result)
        self.view.finished(result)

    def close(self) -> None:
        """Close both."""
        self.view.close()
        self.printer.close()


def is_live_terminal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return True where moving output makes sense: a terminal that can move its cursor."""
    try:
        return stream.isatty() and environ.get("TERM", "dumb").lower() not in ("dumb", "unknown", "")
    except (ValueError, AttributeError):
        return False


def output_mode(arguments: Iterable[str], environ: Mapping[str, str]) -> Mode:
    """Return how to speak before options are parsed, so that a usage error can be a JSON document too."""
    words = set()
    for argument in arguments:
        if argument == "--":
            break
        if argument.startswith("--"):
            words.add(argument.replace("_", "-"))

    def asked(option: str, variable: str) -> bool:
        no = f"--no-{option[2:]}"
        if option in words:
            return True
        return no not in words and environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on")

    form = Format.TEXT
    if asked("--json-stream", "P2PRW_JSON_STREAM"):
        form = Format.STREAM
    if asked("--json", "P2PRW_JSON"):
        form = Format.JSON
    return Mode(form, asked("--quiet", "P2PRW_QUIET"), asked("--debug", "P2PRW_DEBUG"))
