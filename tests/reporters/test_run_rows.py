"""How a run is shown: lines, the live table, JUnit, Markdown. One document, four views."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import pytest
from rich.console import Console

from p2prw.reporters.live import Terminal
from p2prw.reporters.output import Output
from p2prw.reporters.run_junit import run_junit
from p2prw.reporters.run_live import RunView
from p2prw.reporters.run_markdown import run_markdown
from p2prw.reporters.run_rows import RunLines, row_line, run_lines


def row(number, status="pass", **changes):
    values = {
        "number": number,
        "name": f"r{number}",
        "step": "r",
        "action": "write",
        "status": status,
        "exit_code": 5 if status == "fail" else 0,
        "reason": None if status == "pass" else "bw >= 2 GiB/s: missed, measured 1 MiB/s",
        "error_code": "threshold_missed" if status == "fail" else None,
        "elapsed_s": 0.5,
        "bw_bytes_per_s": 2.0**20 if status in ("pass", "fail") else None,
        "route": "cpu",
        "expect": [],
        "command": f"p2prw write h/a{number}",
        "servers": ["p2prw serve --listen h"],
    }
    return {**values, **changes}


@pytest.fixture
def document():
    rows = [row(1), row(2, "fail"), row(3, "skip"), row(4, "not_run", command="")]
    return {
        "results": rows,
        "params": {"name": "a|b", "seed": 7, "scenario": "s.yaml", "elapsed_s": 2.0, "rows_by_status": {"pass": 1}},
        "exit_code": 5,
        "warnings": ["--junit: no space"],
    }


def test_lines_show_reasons_and_commands(document):
    lines = list(run_lines(document, "sum"))
    assert lines[0] == "pass  r1  1.0 MiB/s (0.0084 Gb/s)  route cpu  500.0 ms"
    assert lines[1] == "      $ p2prw write h/a1"
    assert lines[2].startswith("FAIL  r2") and lines[2].endswith("measured 1 MiB/s")
    assert lines[-2:] == ["warning: --junit: no space", "sum"]
    assert not [line for line in lines if line.strip() == "$"], "a row without a command shows none"


@pytest.fixture
def bench_row():
    entry = {
        "operation": "write",
        "size_bytes": 65536,
        "test": "bw",
        "bw_bytes_per_s": 2.0**30,
        "msg_rate_per_s": 16384.0,
    }
    late = {"operation": "read", "size_bytes": 2, "test": "lat", "lat_p50_us": 10.04, "lat_p99_us": 20.0}
    none = {**late, "lat_p50_us": None, "lat_p99_us": None}
    return row(1, action="bench", bw_bytes_per_s=None, result={"results": [entry, late, none]})


def test_a_bench_row_shows_all_it_measured(bench_row):
    figures = ["write 64 KiB: 1024.0 MiB/s (8.59 Gb/s), 16384 messages/s", "read 2 B: p50 10.0 us, p99 20.0 us",
               "read 2 B: no latency"]  # fmt: skip
    params = {"name": "n", "seed": 1, "scenario": "s", "elapsed_s": 1.0, "rows_by_status": {}}
    document = {"results": [bench_row], "warnings": [], "exit_code": 0, "params": params}
    lines = list(run_lines(document, "sum"))
    assert lines[0] == "pass  r1  3 figures  route cpu  500.0 ms"
    assert lines[1:4] == [f"      {figure}" for figure in figures]
    assert "; ".join(figures) in run_markdown(document)
    assert f"rate = {'; '.join(figures)}" in run_junit(document, "2026-01-31T12:00:00").decode()
    one = {**bench_row, "result": {"results": bench_row["result"]["results"][1:2]}}
    assert row_line(one) == "pass  r1  read 2 B: p50 10.0 us, p99 20.0 us  route cpu  500.0 ms"
    assert row_line({**one, "result": None}) == "pass  r1  route cpu  500.0 ms"


def test_lines_show_each_expectation_that_the_reason_does_not_name():
    judged = [
        {"text": "bw >= 2 GiB/s", "outcome": "missed", "measured": 1.0, "why": None},
        {"text": "route == odp", "outcome": "missed", "measured": "cpu", "why": None},
    ]
    lines = list(run_lines({"results": [row(1, "fail", expect=judged)], "warnings": []}, "sum"))
    assert "      route == odp: missed" in lines and not any(line.strip().startswith("bw >=") for line in lines)


def test_piped_stderr_counts_rows():
    stream = io.StringIO()
    view = RunLines(Output(stream), 2)
    view.started(row(1))
    view.finished(row(1))
    view.finished(row(2, "skip", name="\x1b[2J"))
    view.close()
    assert stream.getvalue().splitlines() == [
        f"1/2  {row_line(row(1))}",
        f"2/2  skip  \\x1b[2J  route cpu: {row(2, 'skip')['reason']}",
    ]


def test_the_live_table_fits_the_terminal_and_vanishes():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, height=24, color_system=None)
    view = RunView(Output(stream), {}, "title", 100, console=console, clock=lambda: 1.0)
    for number in range(1, 60):
        view.started(row(number, "running", elapsed_s=0.0))
        view.finished(row(number))
    view.started(row(60, "running", name="now\x1b[2J"))
    screen = io.StringIO()
    Console(file=screen, width=80, height=24, color_system=None).print(view.render(24))
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert len(lines) <= 24 and all(len(line) <= 80 for line in lines)
    assert "title" in lines[0] and lines[-1].strip() == "59 of 100 rows, 1 running"
    assert any("now\\x1b[2J" in line for line in lines) and any("r59" in line for line in lines)
    assert not any(" r5 " in line for line in lines), "old rows make room"
    view.close()
    view.close()
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l"), "the cursor is back"


def test_a_terminal_that_went_away_ends_nothing():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    console = Terminal(file=Gone(), force_terminal=True, width=80, height=24)
    view = RunView(Output(io.StringIO()), {}, "title", 1, console=console)
    view.started(row(1, "running"))
    view.finished(row(1))
    view.close()
    assert view.live is None


def test_junit_counts_and_says_how_to_do_it_again(document):
    document["results"].append(row(5, "fail", exit_code=3, error_code="no_device"))
    root = ElementTree.fromstring(run_junit(document, "2026-01-31T12:00:00"))
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == (
        "5",
        "1",
        "1",
        "2",
    )
    failure = suite.find("testcase[@name='r2']/failure")
    assert failure is not None and failure.get("type") == "threshold_missed"
    assert "$ p2prw serve --listen h" in (failure.text or "") and "$ p2prw write h/a2" in (failure.text or "")


def test_markdown_is_one_table_that_names_cannot_break(document):
    document["results"][0]["name"] = "a|b<script>\n|"
    text = run_markdown(document)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4 and "<script>" not in text
    assert "a\\|b&lt;script>\\\\x0a\\|" in table[2]
    assert "    p2prw serve --listen h &\n    p2prw write h/a2\n" in text
    assert "Warning: --junit: no space" in text
