"""Which reporter a command gets: by format, by --quiet, by what stderr is."""

from __future__ import annotations

from collections.abc import Mapping

from p2prw.reporters.base import Both, Format, Mode, Reporter, is_live_terminal
from p2prw.reporters.output import Output
from p2prw.reporters.text import QuietView, TextPrinter, TextView


def choose_reporter(mode: Mode, stdout: Output, stderr: Output, environ: Mapping[str, str]) -> Both:
    """Return view and printer; rich is imported only where the live view is the one."""
    return Both(choose_view(mode, stderr, environ), _printer(mode, stdout))


def choose_view(mode: Mode, stderr: Output, environ: Mapping[str, str]) -> QuietView:
    """Return what stderr gets."""
    if mode.quiet:
        return QuietView(stderr)
    if is_live_terminal(stderr.stream, environ):
        from p2prw.reporters.live import LiveView

        return LiveView(stderr, environ)
    return TextView(stderr)


def _printer(mode: Mode, stdout: Output) -> Reporter:
    if mode.format is Format.TEXT:
        return TextPrinter(stdout)
    from p2prw.reporters.json import JsonPrinter, StreamPrinter

    return JsonPrinter(stdout) if mode.format is Format.JSON else StreamPrinter(stdout)
