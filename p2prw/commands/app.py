"""What every command is handed: streams, environment, the stop request, and how it was asked to speak.

Made once, in `p2prw.cli`; commands never look at `sys` or `os.environ` themselves, so tests need not patch them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from p2prw.engine.stop import StopRequest
from p2prw.reporters.base import Format, Mode, is_live_terminal
from p2prw.reporters.output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from p2prw.commands.report import Report
    from p2prw.config import Settings


class Closing(Protocol):
    """A view or a reporter."""

    def close(self) -> None:
        """Stop drawing; what is on the screen is whole."""


@dataclass(slots=True)
class App:
    """The outside world of one run of the command line."""

    stdout: Output
    stderr: Output
    environ: Mapping[str, str]
    arguments: tuple[str, ...] = ()
    mode: Mode = field(default_factory=Mode)
    command: str = "p2prw"
    stop: StopRequest = field(default_factory=StopRequest)
    stop_is_watched: bool = False
    """True while the engine looks at `stop`; else a signal ends the command at once."""
    signals_heeded: int = 1
    """While `stop_is_watched`: so many are the engine's to answer; the next one ends the command at once."""
    parting: str = ""
    """What a second signal, which ends the command at once, still says on stderr."""
    live: bool = False
    """True while a live view may have hidden the cursor."""
    reported: bool = False
    """True once the outcome is on stdout, or on its way: a document is written once."""
    report: Report | None = None
    """The archive that was asked for; from here on it is written however the command ends."""

    def settings(self, command: str, line: Mapping[str, Any]) -> Settings:
        """Return the effective settings; from here on the command speaks as they say."""
        from p2prw.config import resolve, unknown_variable_notes
        from p2prw.errors import RequestError

        settings = resolve(command, line, self.environ)
        as_json, as_stream = settings["json"], settings.get("json_stream", False)
        if as_json and as_stream:
            raise RequestError(
                "--json and --json-stream exclude each other",
                why="stdout holds one document, or one line for each event",
                fix="give one of them",
                code="usage",
            )
        form = Format.JSON if as_json else Format.STREAM if as_stream else Format.TEXT
        self.mode = replace(self.mode, format=form, quiet=settings["quiet"], debug=settings["debug"])
        for note in unknown_variable_notes(settings.unknown_variables):
            self.note(f"warning: {note}")
        if settings.get("report") is not None:
            from p2prw.commands.report import asked_report

            self.report = asked_report(settings, self.arguments)
        return settings

    def pin(self, settings: Settings) -> None:
        """Bind the process to the CPUs of --cpu, before it starts anything. HostError where that cannot be."""
        if settings["cpu"] is not None:
            from p2prw.engine.affinity import pin

            pin(settings["cpu"])

    @contextmanager
    def drawing(self, view: Closing | None) -> Iterator[None]:
        """While `view` draws on stderr, and may have hidden the cursor; it is closed afterwards."""
        self.live = is_live_terminal(self.stderr.stream, self.environ) and not self.mode.quiet
        try:
            yield
        finally:
            if view is not None:
                view.close()
            self.live = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the engine looks at `stop`: a signal is its to answer."""
        self.stop_is_watched = True
        try:
            yield
        finally:
            self.stop_is_watched = False

    def note(self, text: str) -> None:
        """Say something on stderr, unless --quiet."""
        if not self.mode.quiet:
            self.stderr.line(text)

    def listing(
        self,
        document: Mapping[str, Any],
        lines: Iterable[str],
        page: Callable[[], Iterable[RenderableType]] | None = None,
    ) -> int:
        """Show an outcome that is no transfer: the document or its text. Returns the exit code.

        `page` is the same text painted with rich; it is made and used on a terminal only.
        """
        from p2prw.reporters.listing import show_document

        self.reported = True
        if page and self.mode.format is Format.TEXT and is_live_terminal(self.stdout.stream, self.environ):
            from p2prw.reporters.page import print_page

            print_page(page(), self.stdout, self.environ)
        else:
            show_document(self.mode, self.stdout, document, lines)
        code: int = document["exit_code"]
        return code
