"""The table that fills in, on terminals of several sizes; and which view a command gets."""

from __future__ import annotations

import io
import re

import pytest

from p2prw.engine.smoke.model import CellDone, CellRunning, CellStarted, SmokePlan
from p2prw.reporters.base import Mode
from p2prw.reporters.live import Terminal
from p2prw.reporters.output import Output
from p2prw.reporters.smoke_live import LiveSmokeView, smoke_page
from p2prw.reporters.smoke_view import PlainSmokeView, QuietSmokeView, choose_smoke_view


class Tty(io.StringIO):
    def isatty(self):
        return True


def terminal(width, height):
    environ = {"TERM": "xterm-256color", "NO_COLOR": "1"}
    stream = Tty()
    console = Terminal(
        file=stream, width=width, height=height, _environ=environ, force_terminal=True, markup=False, highlight=False
    )
    return stream, console, environ


def make(cells, width=80, height=24):
    stream, console, environ = terminal(width, height)
    now = [0.0]
    view = LiveSmokeView(Output(stream), environ, clock=lambda: now[0], console=console)
    view.planned(SmokePlan(tuple(cells), (), {}))
    return view, stream, now


def frame(view, width):
    stream, console, _ = terminal(width, 99)
    console.print(view._render())
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).splitlines()]


def test_eighty_columns_show_every_outcome(outcome, cells):
    view, _, _ = make(cells)
    for result in outcome({7: ("fail", 1)}).cells[:9]:
        view.take(CellStarted(result.cell))
        view.take(CellRunning(result.cell, 1 << 20))
        view.take(CellDone(result))
    lines = frame(view, 80)
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["rxe0", "host", "host", *["pass"] * 6, "pin/pin"]
    assert lines[2].split() == [
        "rxe0",
        "p2pmem:0000:01:00.0",
        "host",
        "pass",
        "pass",
        "....",
        "FAIL",
        "....",
        "....",
        "odp/pin",
    ]
    assert lines[-1] == "9 of 12 cells, 1 failed (each: small odd large)"
    assert "1 MiB moved" in lines[-2]


def test_a_low_terminal_shows_the_rows_around_the_running_cell(cells):
    from dataclasses import replace

    many = [replace(cell, device=f"mlx5_{number}") for number in range(20) for cell in cells[:1]]
    view, _, _ = make(many, height=12)
    view.take(CellStarted(many[15]))
    lines = frame(view, 80)
    assert len(lines) <= 12
    assert any(line.startswith("mlx5_15") and ">>>>" in line for line in lines)
    assert "13 rows not shown" in lines[-1]


def test_it_redraws_ten_times_a_second_at_most_and_cleans_up(outcome, cells):
    view, stream, now = make(cells)
    sizes = set()
    for step in range(100):
        now[0] = step / 100
        view.take(CellRunning(cells[0], step))
        sizes.add(len(stream.getvalue()))
    assert len(sizes) <= 11
    view.close()
    view.close()
    assert "\x1b[?25h" in stream.getvalue()


def test_the_result_is_the_same_table_painted(outcome):
    stream, console, _ = terminal(80, 24)
    for part in smoke_page(outcome({2: ("fail", 4)}, exit_code=4)):
        console.print(part, crop=False)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "pass FAIL pass" in text
    assert "bytes\\x1b[2J differ" in text
    assert "11 passed, 1 failed, 0 not run, 2 skipped" in text
    lines = [line.rstrip() for line in text.splitlines()]
    commands = [line for line in lines if "p2prw " in line]
    assert commands[0].endswith("--device rxe0 --insecure"), "one line, to be pasted"
    assert [line.split()[:3] for line in commands] == [["serve:", "p2prw", "serve"], ["again:", "p2prw", "read"]]
    assert max(len(line) for line in lines if line not in commands) <= 80


def test_which_view(outcome, cells):
    terminal_environ = {"TERM": "xterm"}
    assert isinstance(choose_smoke_view(Mode(), Output(Tty()), terminal_environ), LiveSmokeView)
    assert isinstance(choose_smoke_view(Mode(quiet=True), Output(Tty()), terminal_environ), QuietSmokeView)
    stream = io.StringIO()
    view = choose_smoke_view(Mode(), Output(stream), terminal_environ)
    assert isinstance(view, PlainSmokeView)
    view.planned(SmokePlan(cells, (), {}))
    view.take(CellStarted(cells[0]))
    view.take(CellDone(outcome().cells[0]))
    view.close()
    assert stream.getvalue().splitlines()[0] == "12 cells on rxe0"
    assert len(stream.getvalue().splitlines()) == 2


@pytest.mark.parametrize("gone", [BrokenPipeError, OSError])
def test_a_terminal_that_left_ends_nothing(cells, gone):
    view, stream, now = make(cells)

    def write(_text):
        raise gone

    stream.write = write
    now[0] = 9.0
    view.take(CellStarted(cells[0]))
    view.take(CellRunning(cells[0], 1))
    view.close()
    assert view.stderr.broken
