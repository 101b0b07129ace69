"""Streams, safe text, choice of reporter, documents."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.model import Operation, RouteAttempt
from p2prw.reporters.base import Format, Mode, is_live_terminal, output_mode
from p2prw.reporters.choose import choose_reporter
from p2prw.reporters.document import dump, plain
from p2prw.reporters.json import JsonPrinter, StreamPrinter
from p2prw.reporters.listing import table
from p2prw.reporters.output import Output, fold
from p2prw.reporters.sanitise import clean
from p2prw.reporters.text import QuietView, TextPrinter, TextView


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_terminal(columns, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(stream, "fileno", lambda: 1)
    monkeypatch.setattr("os.get_terminal_size", lambda number: os.terminal_size((columns, 24)))
    return stream, Output(stream)


def test_facts_fold_between_words_under_themselves_on_a_terminal_only(monkeypatch):
    text = "phases    map 33.1 ms, exchange 9.7 ms, open 20.1 ms"
    stream, output = on_terminal(32, monkeypatch)
    output.fact(text)
    assert stream.getvalue().splitlines() == ["phases    map 33.1 ms, exchange", "          9.7 ms, open 20.1 ms"]
    stream, output = on_terminal(32, monkeypatch)
    output.line(text)
    assert stream.getvalue() == text + "\n", "what is to be pasted is folded by the terminal, which can undo it"
    pipe = io.StringIO()
    Output(pipe).fact(text)
    assert pipe.getvalue() == text + "\n"


def test_folding_keeps_a_figure_with_its_unit_and_a_command_whole():
    assert fold("rate      203.4 MiB/s (1.71 Gb/s) over 7.5 s", 29) == [
        "rate      203.4 MiB/s",
        "          (1.71 Gb/s) over",
        "          7.5 s",
    ]
    assert fold("      $ p2prw write a b c", 10) == ["      $ p2prw write a b c"]


@pytest.mark.parametrize("columns", [1, 5, 20])
def test_facts_survive_terminals_of_hardly_any_width(columns, monkeypatch):
    stream, output = on_terminal(columns, monkeypatch)
    output.fact("          remote  cpu (not peer-to-peer), soft0")
    assert "".join(stream.getvalue().split()) == "remotecpu(notpeer-to-peer),soft0"


@given(st.text())
def test_clean_text_is_printable_and_plain_text_is_kept(text):
    cleaned = clean(text)
    assert cleaned.isprintable() or all(c.isprintable() or c.isspace() for c in cleaned)
    assert not set(cleaned) & {"\x1b", "\n", "\r", "\x9b", "\u202e", "\u2028"}
    cleaned.encode()
    if text.isascii() and text.isprintable():
        assert cleaned == text


@pytest.mark.parametrize(
    ("text", "wanted"), [("a\x1b[2J", "a\\x1b[2J"), ("\u202eabc", "\\u202eabc"), ("\udc80", "\\udc80"), ("Zoë", "Zoë")]
)
def test_clean(text, wanted):
    assert clean(text) == wanted


def test_a_broken_pipe_is_quiet_and_for_ever():
    class Broken(io.StringIO):
        writes = 0

        def write(self, text):
            self.writes += 1
            raise BrokenPipeError

    stream = Broken()
    output = Output(stream)
    output.line("a")
    output.line("b")
    assert (output.broken, stream.writes) == (True, 1)


def test_a_poor_locale_gets_escapes():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Output(stream).line("Zoë · x")
    assert raw.getvalue() == b"Zo\\xeb \\xb7 x\n"


@pytest.mark.parametrize(
    ("stream", "environ", "live"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
        (io.StringIO(), {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)
def test_live_only_on_a_terminal(stream, environ, live):
    assert is_live_terminal(stream, environ) is live


@pytest.mark.parametrize(
    ("mode", "view", "printer"),
    [
        (Mode(), TextView, TextPrinter),
        (Mode(Format.JSON), TextView, JsonPrinter),
        (Mode(Format.STREAM), TextView, StreamPrinter),
        (Mode(Format.TEXT, quiet=True), QuietView, TextPrinter),
        (Mode(Format.JSON, quiet=True), QuietView, JsonPrinter),
    ],
)
def test_choice(mode, view, printer):
    reporter = choose_reporter(mode, Output(io.StringIO()), Output(io.StringIO()), {})
    assert (type(reporter.view), type(reporter.printer)) == (view, printer)


def test_live_is_chosen_on_a_terminal():
    reporter = choose_reporter(Mode(), Output(io.StringIO()), Output(Terminal()), {"TERM": "xterm"})
    assert type(reporter.view).__name__ == "LiveView"
    assert "p2prw.reporters.live" in sys.modules


@pytest.mark.parametrize(
    ("arguments", "environ", "mode"),
    [
        ([], {}, Mode()),
        (["write", "--json"], {}, Mode(Format.JSON)),
        (["write", "--json_stream", "--quiet"], {}, Mode(Format.STREAM, quiet=True)),
        (["--", "--json"], {}, Mode()),
        ([], {"P2PRW_JSON": "yes", "P2PRW_DEBUG": "0"}, Mode(Format.JSON)),
        (["--no-json"], {"P2PRW_JSON": "1"}, Mode()),
    ],
)
def test_output_mode_before_parsing(arguments, environ, mode):
    assert output_mode(arguments, environ) == mode


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (math.nan, None),
        (-math.inf, None),
        ({Operation.WRITE: (1, True)}, {"write": [1, True]}),
        (Colour.RED, "red"),
        (b"secret", "<6 bytes>"),
        (RouteAttempt("pin", False), {"route": "pin", "ok": False, "errno": None, "wc_status": None, "why": None}),
        (io, str(io)),
    ],
)
def test_plain(value, wanted):
    assert plain(value) == wanted
    assert json.loads(dump({"v": value}))["v"] == wanted


def test_table_is_aligned_and_safe():
    assert table(("A", "B"), [("x\n", None), ("long", 1)]) == ["A      B", "x\\x0a  -", "long   1"]
    assert table(("A",), []) == []
