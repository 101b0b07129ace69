"""What `p2prw bench` shows: the view of a transfer on stderr, rows on stdout as they come, then what they depend on."""

from __future__ import annotations

from typing import Any, Protocol

from p2prw.engine.bench.model import BenchProgress, BenchRequest, BenchResult, BenchRow
from p2prw.engine.events import Progress
from p2prw.reporters.base import Format, Mode
from p2prw.reporters.bench_text import (
    describe_bench,
    head_line,
    perftest_head,
    perftest_line,
    row_line,
    summary_lines,
)
from p2prw.reporters.document import dump_pretty, plain, transfer_document
from p2prw.reporters.json import StreamPrinter
from p2prw.reporters.output import Output
from p2prw.reporters.text import QuietView
from p2prw.units import format_size


class BenchPrinter(Protocol):
    """stdout: told of each row and of the whole."""

    def row(self, row: BenchRow) -> None:
        """Take one row, as soon as it is there."""

    def finished(self, result: BenchResult) -> None:
        """Show the outcome; rows that were not told yet are those of a run that failed."""


class BenchReporter:
    """Told what happens, in this order; `close` always."""

    def __init__(self, view: QuietView, printer: BenchPrinter) -> None:
        self.view = view
        self.printer = printer
        self._step = 0

    def started(self, request: BenchRequest) -> None:
        """Say what is about to be done."""
        self.view.announce(describe_bench(request))

    def progress(self, progress: BenchProgress) -> None:
        """Take one sample."""
        if progress.step != self._step:
            self._step = progress.step
            self.view.retitle(
                f"{progress.test} {progress.operation} of {format_size(progress.size_bytes)} "
                f"({progress.step} of {progress.steps})"
            )
        self.view.progress(_as_transfer(progress))

    def row(self, row: BenchRow) -> None:
        """Take one row."""
        self.view.above(lambda: self.printer.row(row))

    def finished(self, result: BenchResult) -> None:
        """Clear the view, print the result, then say what failed where the eye lands last."""
        self.view.close()
        self.printer.finished(result)
        self.view.finished(result)

    def close(self) -> None:
        """Leave the terminal as it was found. Safe to call twice."""
        self.view.close()


def _as_transfer(progress: BenchProgress) -> Progress:
    done = progress.messages_done * progress.size_bytes
    if progress.messages_total is not None:
        total = progress.messages_total * progress.size_bytes
    else:
        # By time: what it will be at this rate, so that the time left is right.
        total = int(progress.bw_bytes_per_s * max(progress.duration_s or 0.0, progress.elapsed_s))
    return Progress(
        phase="steady",
        bytes_done=done,
        bytes_total=total,
        elapsed_s=progress.elapsed_s,
        bw_bytes_per_s=progress.bw_bytes_per_s,
        wqes_in_flight=progress.wqes_in_flight,
        wqes_total=progress.messages_done,
        # The route is the result's to tell: no sample knows it.
        route="",
    )


class _Rows:
    """Rows told so far, so that `finished` prints only the others."""

    def __init__(self, stdout: Output) -> None:
        self.stdout = stdout
        self._told = 0
        self._head = ""

    def row(self, row: BenchRow) -> None:
        """Print one row, under a head where the test changes."""
        self._told += 1
        head, line = self.lines(row)
        if head != self._head:
            self._head = head
            self.stdout.raw(head + "\n")
        self.stdout.raw(line + "\n")

    def lines(self, row: BenchRow) -> tuple[str, str]:
        """Return (head of its table, the row)."""
        return head_line(row), row_line(row)

    def finished(self, result: BenchResult) -> None:
        """Print what is left."""
        for row in result.results[self._told :]:
            self.row(row)


class TextTable(_Rows):
    """Our own table, the chart, and what the figures depend on."""

    def finished(self, result: BenchResult) -> None:
        """Print what is left, then the summary."""
        super().finished(result)
        for line in summary_lines(result):
            self.stdout.fact(line)


class PerftestTable(_Rows):
    """Exactly perftest's columns, and nothing else."""

    def __init__(self, stdout: Output, *, gbits: bool, peak: bool) -> None:
        super().__init__(stdout)
        self._gbits = gbits
        self._peak = peak

    def lines(self, row: BenchRow) -> tuple[str, str]:
        """Return perftest's head and row."""
        head = perftest_head(row.test, gbits=self._gbits)
        return head, perftest_line(row, gbits=self._gbits, peak=self._peak)


class BenchDocument:
    """One `p2prw/1` document, at the end."""

    def __init__(self, stdout: Output) -> None:
        self.stdout = stdout

    def row(self, row: BenchRow) -> None:
        """Say nothing."""

    def finished(self, result: BenchResult) -> None:
        """Print the document."""
        self.stdout.raw(dump_pretty(bench_document(result)))


class BenchStream:
    """NDJSON: one line for each row, then the document."""

    def __init__(self, stdout: Output) -> None:
        self.stream = StreamPrinter(stdout)
        self._told = 0

    def row(self, row: BenchRow) -> None:
        """Print one line."""
        self._told += 1
        self.stream.event("measured", row=plain(row))

    def finished(self, result: BenchResult) -> None:
        """Print what is left and the last line."""
        for row in result.results[self._told :]:
            self.row(row)
        self.stream.event("result", result=bench_document(result))


def bench_document(result: BenchResult) -> dict[str, Any]:
    """Return the `p2prw/1` document; `against` is there where another tool was measured too."""
    document = transfer_document(result)
    if result.against is not None:
        document["against"] = plain(result.against)
    return document


def choose_printer(mode: Mode, stdout: Output, *, perftest: bool, gbits: bool, peak: bool) -> BenchPrinter:
    """Return what stdout gets."""
    if mode.format is Format.JSON:
        return BenchDocument(stdout)
    if mode.format is Format.STREAM:
        return BenchStream(stdout)
    return PerftestTable(stdout, gbits=gbits, peak=peak) if perftest else TextTable(stdout)
