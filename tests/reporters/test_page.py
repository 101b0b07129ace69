"""Printing on a terminal: folded, coloured where it may be, and quiet when the reader has gone."""

from __future__ import annotations

import io
import os

from rich.text import Text

from p2prw.reporters.output import Output
from p2prw.reporters.page import hanging, heading, print_page


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(*parts, **environ):
    stream = Terminal()
    print_page(parts, Output(stream), {"TERM": "xterm-256color", "COLUMNS": "40", **environ})
    return stream.getvalue()


def test_text_folds_under_itself():
    lines = show(hanging("  try:  ", "word " * 12)).splitlines()
    assert len(lines) == 2 and "try:" in lines[0] and lines[1].startswith("        word")
    assert show(hanging("    ", "x " * 30)).splitlines()[1].startswith("    x")


def test_colours_obey_no_color():
    assert "\x1b[" in show(Text("x", style="green"))
    assert "\x1b[32m" not in show(Text("x", style="green"), NO_COLOR="1")
    assert "title" in show(heading("title"))


def test_a_reader_that_has_gone_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        output = Output(stream)
        print_page([Text("x" * 100_000)], output, {})
        assert output.broken
        print_page([Text("again")], output, {})
