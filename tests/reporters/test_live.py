"""The live view on a fake terminal, with a clock set by hand."""

from __future__ import annotations

import io

from rich.console import Console

from p2prw.engine.events import Progress
from p2prw.engine.model import MemorySpec, Operation, PeerAddress, TransferRequest
from p2prw.reporters.live import LiveView, Terminal, render
from p2prw.reporters.output import Output

REQUEST = TransferRequest(
    operation=Operation.WRITE,
    peer=PeerAddress("h"),
    region="r",
    memory=MemorySpec("host", None, {}, "host,[red]size=1M[/red]\x1b[2J"),
)


def sample(done):
    return Progress("steady", done << 20, 64 << 20, 1.0, 32 * 2.0**20, 48, 64, "cpu", 2)


class Tty(io.StringIO):
    def isatty(self):
        return True


def make(environ=None, width=80):
    stream = Tty()
    now = [0.0]
    environ = environ or {"TERM": "xterm-256color"}
    console = Terminal(file=stream, width=width, _environ=environ, force_terminal=True, markup=False, highlight=False)
    return LiveView(Output(stream), environ, clock=lambda: now[0], console=console), stream, now


def test_every_figure_fits_eighty_columns():
    stream = io.StringIO()
    Console(file=stream, width=80, _environ={}).print(render("write x", sample(32)))
    first, *rest = stream.getvalue().splitlines()
    assert "write x" in first and "50%" in first and "1.00 s left" in first
    for part in ("32 MiB of 64 MiB", "32.0 MiB/s (0.27 Gb/s)", "48 WQEs in flight", "route cpu", "2 retries", "steady"):
        assert part in "\n".join(rest)


def test_redraws_ten_times_a_second_at_most():
    view, stream, now = make()
    view.started(REQUEST)
    sizes = set()
    for step in range(100):
        now[0] = step / 100
        view.progress(sample(step % 64))
        sizes.add(len(stream.getvalue()))
    assert len(sizes) <= 11


def test_a_wait_is_shown_at_once_under_the_title():
    view, stream, _ = make()
    view.started(REQUEST)
    view.progress(sample(3))
    view.waiting("cannot connect\x1b[2J; tried again for 10 s")
    assert "cannot connect\\x1b[2J; tried again for 10 s" in stream.getvalue()


def test_what_is_printed_above_finds_no_moving_lines_in_its_way():
    view, stream, _ = make()
    view.started(REQUEST)
    view.progress(sample(3))
    view.above(lambda: stream.write("ROW\n"))
    before, after = stream.getvalue().split("ROW\n")
    assert before.endswith(("\x1b[2K", "\x1b[?25h")), "erased, the cursor where they began"
    assert "3 MiB of 64 MiB" in after, "and drawn again"


def test_leaves_the_terminal_as_it_was():
    view, stream, _ = make()
    view.started(REQUEST)
    view.progress(sample(3))
    assert "\x1b[?25l" in stream.getvalue()
    view.close()
    view.close()
    assert "\x1b[?25h" in stream.getvalue()
    assert stream.getvalue().endswith(("\x1b[2K", "\x1b[?25h"))


def test_names_are_neither_markup_nor_control():
    view, stream, _ = make(width=200)
    view.started(REQUEST)
    view.progress(sample(3))
    assert "[red]size=1M[/red]\\x1b[2J" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()


def test_no_color():
    view, stream, _ = make({"TERM": "xterm-256color", "NO_COLOR": "1"})
    view.started(REQUEST)
    view.progress(sample(3))
    view.warning("careful")
    view.close()
    assert "careful" in stream.getvalue()
    assert "\x1b[3" not in stream.getvalue()


def test_a_terminal_that_left_ends_nothing():
    view, stream, _ = make()
    view.started(REQUEST)

    def gone(_text):
        raise BrokenPipeError

    stream.write = gone
    view.progress(sample(3))
    view.progress(sample(4))
    view.close()
    assert view.stderr.broken
