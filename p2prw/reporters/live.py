"""The live view: rich progress on stderr, transient, redrawn by the one thread that runs the transfer.

Names go in as `Text`, never as markup. Listings use rich through `reporters/page.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from p2prw.engine.events import Progress
from p2prw.reporters.output import Output
from p2prw.reporters.sanitise import clean
from p2prw.reporters.text import QuietView, reconnects_text, time_left_s
from p2prw.units import counted, format_duration, format_rate, format_size

REDRAW_S = 0.1
"""10 Hz at most, whatever the engine sends."""


class Terminal(Console):
    """A console that reports a broken pipe; rich's own points stdout at /dev/null and exits."""

    def on_broken_pipe(self) -> None:
        """Called by rich in place of raising (since rich 13.8)."""
        self.quiet = True
        raise BrokenPipeError


class MovingView:
    """Lines on stderr that are redrawn in place and vanish; drawn by the one thread that does the work."""

    def __init__(
        self,
        stderr: Output,
        environ: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        console: Console | None = None,
    ) -> None:
        self.stderr = stderr
        self.clock = clock
        # rich obeys NO_COLOR itself, from the environment it is given.
        self.console = console or Terminal(file=stderr.stream, _environ=environ, markup=False, highlight=False)
        self.live: Live | None = None
        self.next_s = 0.0

    def begin(self, first: RenderableType | None = None) -> None:
        """Start drawing; without `first`, with the first thing that is drawn."""
        # auto_refresh would redraw from a thread of its own: one thread owns the screen here.
        self.live = Live(
            first,
            console=self.console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._guard(self.live.start, first is not None)

    def redraw(self, make: Callable[[], RenderableType]) -> None:
        """Redraw, at most every `REDRAW_S`; `make` is called only then."""
        now = self.clock()
        if self.live is None or now < self.next_s:
            return
        self.next_s = now + REDRAW_S
        self.draw(make())

    def draw(self, lines: RenderableType) -> None:
        """Draw at once."""
        if self.live is not None:
            self._guard(self.live.update, lines, refresh=True)

    def warning(self, text: str) -> None:
        """Print above the moving lines."""
        self._guard(self.console.print, Text(f"warning: {clean(text)}", style="yellow"))

    def above(self, write: Callable[[], None]) -> None:
        """Take the moving lines away while `write` prints to stdout, which may be the same terminal."""
        drawn = self.live.renderable if self.live is not None else None
        self.close()
        write()
        if drawn is not None:
            self.begin(drawn)

    def close(self) -> None:
        """Remove the moving lines and show the cursor again."""
        live, self.live = self.live, None
        if live is not None:
            self._guard(live.stop)

    def _guard(self, call: Callable[..., object], *arguments: object, **named: object) -> None:
        """Draw; a terminal that has gone is no reason to end the work."""
        try:
            call(*arguments, **named)
        except (BrokenPipeError, OSError):
            self.live = None
            self.stderr.broken = True


class LiveView(MovingView, QuietView):
    """Three lines that follow the transfer."""

    title = ""

    def announce(self, title: str) -> None:
        """Start drawing."""
        self.title = clean(title)
        self.begin(Text(self.title, no_wrap=True, overflow="ellipsis"))

    def retitle(self, title: str) -> None:
        """Show another title from the next redraw on."""
        self.title = clean(title)

    def waiting(self, text: str) -> None:
        """Show what is waited for under the title, until something moves."""
        self.next_s = 0.0
        self.redraw(lambda: Group(Text(self.title, style="bold"), Text(clean(text), style="dim")))

    def progress(self, progress: Progress) -> None:
        """Redraw."""
        self.redraw(lambda: render(self.title, progress))


def render(title: str, progress: Progress) -> Group:
    """Return three lines: name, bar, percent, time left; bytes, rate, phase; window, route, retries."""
    total = max(progress.bytes_total, 1)
    left = time_left_s(progress)
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=2, no_wrap=True)
    table.add_column(justify="right", no_wrap=True, min_width=4)
    table.add_column(justify="right", no_wrap=True, min_width=12)
    table.add_row(
        Text(title, style="bold"),
        ProgressBar(total=total, completed=min(progress.bytes_done, total)),
        Text(f"{progress.bytes_done * 100 // total}%"),
        Text(f"{format_duration(left)} left" if left is not None else ""),
    )
    # Two short lines, not one: 80 columns must show the retries, too.
    moved = (
        f"{format_size(progress.bytes_done)} of {format_size(progress.bytes_total)}",
        format_rate(progress.bw_bytes_per_s),
        progress.phase,
    )
    window = (
        f"{progress.wqes_in_flight} WQEs in flight",
        *((f"route {clean(progress.route)}",) if progress.route else ()),
        counted(progress.retries, "retry", "retries"),
        *((reconnects_text(progress.reconnects),) if progress.reconnects else ()),
    )
    lines = (Text(" · ".join(facts), style="dim", no_wrap=True, overflow="ellipsis") for facts in (moved, window))
    return Group(table, *lines)
