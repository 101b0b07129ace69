"""How measurements look: our table, perftest's exact columns, chart, picture, document, stream."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from p2prw import api
from p2prw.engine.bench.model import (
    Against,
    BenchProgress,
    BenchRequest,
    BenchResult,
    BenchRow,
    Bucket,
    Side,
)
from p2prw.engine.model import ErrorReport, Operation, RouteReport, VerifyReport
from p2prw.reporters.base import Format, Mode
from p2prw.reporters.bench import BenchReporter, bench_document, choose_printer
from p2prw.reporters.bench_svg import nice_top, svg_plot
from p2prw.reporters.bench_text import chart_lines, describe_bench, head_line, row_line
from p2prw.reporters.output import Output
from p2prw.reporters.text import QuietView, TextView
from p2prw.schema import load_schema
from p2prw.units import MIB

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "bench"
ROUTE = RouteReport("cpu", "cpu", False, "host", "soft0", "soft")

BW = BenchRow(
    test="bw",
    operation="write",
    size_bytes=65536,
    complete=True,
    queue_pairs=1,
    tx_depth=128,
    signal_every=32,
    post_list=None,
    wqes_per_message=1,
    warm_up_messages=100,
    messages=5000,
    bytes=327680000,
    elapsed_s=0.25,
    msg_rate_per_s=20000.0,
    bw_bytes_per_s=1310720000.0,
    bw_min_bytes_per_s=1000000000.0,
    bw_median_bytes_per_s=1300000000.0,
    bw_max_bytes_per_s=1500000000.0,
    intervals=20,
    wqes_posted=5000,
    wqes_signalled=157,
)
LAT = BenchRow(
    test="lat",
    operation="read",
    size_bytes=2,
    complete=True,
    queue_pairs=1,
    tx_depth=1,
    signal_every=1,
    post_list=None,
    wqes_per_message=1,
    warm_up_messages=100,
    messages=1000,
    bytes=2000,
    elapsed_s=0.05,
    msg_rate_per_s=20000.0,
    bw_bytes_per_s=40000.0,
    lat_by="completion",
    lat_min_us=30.125,
    lat_avg_us=41.5,
    lat_p50_us=40.25,
    lat_p90_us=55.0,
    lat_p99_us=80.5,
    lat_p999_us=100.75,
    lat_max_us=120.0,
    lat_stdev_us=9.87,
    histogram=(Bucket(32.0, 38.1, 1000),),
    wqes_posted=1000,
    wqes_signalled=1000,
    verify="verified",
)
CUT = replace(BW, complete=False, messages=0, bytes=0, elapsed_s=0.0, msg_rate_per_s=None, bw_bytes_per_s=None,
              bw_min_bytes_per_s=None, bw_median_bytes_per_s=None, bw_max_bytes_per_s=None, intervals=0)  # fmt: skip


def result(*rows: BenchRow, **changes) -> BenchResult:
    whole = BenchResult(
        status="ok",
        exit_code=0,
        params={"peer": "127.0.0.1:18515", "region": "scratch"},
        environment={
            "cpus": 2,
            "python": "3.11.7",
            "kernel": "6.18",
            "clock": "clock_gettime(CLOCK_MONOTONIC)",
            "device": {"name": "rxe0", "driver": "rxe", "binding": "pyverbs"},
            "negotiated": {"path_mtu_bytes": 1024},
        },
        local_route=ROUTE,
        remote_route=ROUTE,
        results=rows,
        verify=VerifyReport("unverified", why="--verify compares the last generation"),
        phases={"open": 0.01, "steady": 0.25},
        warnings=("the sweep ends at 4096 bytes",),
    )
    return replace(whole, **changes)


def printed(told: list[BenchRow], whole: BenchResult, mode: Mode | None = None, **how) -> str:
    stdout = io.StringIO()
    options = {"perftest": False, "gbits": False, "peak": True, **how}
    reporter = BenchReporter(
        QuietView(Output(io.StringIO())), choose_printer(mode or Mode(), Output(stdout), **options)
    )
    for row in told:
        reporter.row(row)
    reporter.finished(whole)
    reporter.close()
    return stdout.getvalue()


def expected(name: str, found: str) -> str:
    """The golden file; written anew when it is deleted, so that a change is looked at in the diff."""
    path = GOLDEN / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found)
        pytest.fail(f"{path} was made; look at it and run again")
    return path.read_text()


def test_the_text_of_a_whole_result():
    rows = [BW, replace(BW, size_bytes=4096, bw_bytes_per_s=655360000.0), LAT, replace(LAT, size_bytes=64)]
    found = printed(rows, result(*rows))
    assert found == expected("text.txt", found)


def test_a_row_cut_short_says_so_and_shows_no_figure_it_has_not():
    line = row_line(CUT)
    assert "cut short" in line and "None" not in line and " - " in line
    assert len(head_line(CUT)) == len(line.split("  cut short")[0]), "columns stand under their heads"


def test_tables_fit_eighty_columns_and_say_what_became_of_the_data():
    for row in (BW, LAT, BOTH):
        unverified = row_line(replace(row, verify="unverified"))
        assert len(head_line(row)) == len(unverified) <= 80
        assert row_line(replace(row, verify="verified")) == unverified + "  verified"


def test_a_small_rate_is_not_nothing():
    line = row_line(replace(BW, size_bytes=2, bw_bytes_per_s=2000.0, bw_min_bytes_per_s=100.0))
    assert "0.0019" in line and " 0.0 " not in line


class Watched(QuietView):
    """A view that notes what is printed while its moving lines are away."""

    away = False

    def above(self, write):
        self.away = True
        write()
        self.away = False


def test_rows_are_printed_while_the_moving_lines_are_away(monkeypatch):
    stdout, view, seen = Output(io.StringIO()), Watched(Output(io.StringIO())), []
    printer = choose_printer(Mode(), stdout, perftest=False, gbits=False, peak=True)
    monkeypatch.setattr(printer, "row", lambda row: seen.append(view.away))
    reporter = BenchReporter(view, printer)
    reporter.row(BW)
    assert seen == [True], "stdout may be the very terminal that the moving lines stand on"


BOTH = replace(BW, both_ways=True, messages=9000, bytes=589824000, msg_rate_per_s=36000.0, bw_bytes_per_s=2359296000.0,
               out_messages=5000, out_bw_bytes_per_s=1310720000.0, in_messages=4000, in_elapsed_s=0.25,
               in_bw_bytes_per_s=1048576000.0, bw_min_bytes_per_s=None, bw_median_bytes_per_s=None,
               bw_max_bytes_per_s=None, intervals=0)  # fmt: skip


def test_both_directions_have_a_table_of_their_own():
    head, line = head_line(BOTH), row_line(BOTH)
    assert len(head) == len(line), "columns stand under their heads"
    assert "2250.0" in line and "1250.0" in line and "1000.0" in line and "36000" in line and "18.87" in line
    cut = row_line(replace(CUT, both_ways=True))
    assert "None" not in cut and " - " in cut
    assert "both directions at once" in printed([BOTH], result(BOTH))


def test_perftest_gets_the_sum_and_no_peak():
    line = printed([BOTH], result(BOTH), perftest=True).splitlines()[1]
    assert line.split() == ["65536", "9000", "0.00", "2250.00", "0.036000"]


@pytest.mark.parametrize(
    ("name", "rows", "how"),
    [
        ("perftest_bw.txt", [BW, replace(BW, size_bytes=8388608)], {}),
        ("perftest_bw_gbits_no_peak.txt", [BW], {"gbits": True, "peak": False}),
        ("perftest_lat.txt", [LAT], {}),
    ],
)
def test_perftests_columns_exactly_and_nothing_else(name, rows, how):
    found = printed(rows, result(*rows), perftest=True, **how)
    assert found == expected(name, found)


def test_perftests_columns_can_be_parsed_as_scripts_do():
    """By position after splitting: sizes and averages are what scripts take."""
    head, row = printed([BW], result(BW), perftest=True).splitlines()
    assert head == " #bytes     #iterations    BW peak[MiB/sec]    BW average[MiB/sec]   MsgRate[Mpps]"
    size, iterations, peak, average, rate = row.split()
    assert (int(size), int(iterations), float(average), float(rate)) == (65536, 5000, 1250.0, 0.02)
    assert float(peak) == pytest.approx(1500000000 / 2**20, abs=0.01)
    head, row = printed([LAT], result(LAT), perftest=True).splitlines()
    assert len(row.split()) == 9 and row.split()[4] == "40.25"
    assert head.startswith(" #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]")


def test_rows_of_a_run_that_failed_are_printed_too():
    found = printed([BW], result(BW, CUT, status="failed", exit_code=1), perftest=True)
    assert len(found.splitlines()) == 3


def test_a_chart_needs_two_sizes_and_its_longest_bar_is_the_highest():
    assert list(chart_lines([BW, LAT])) == []
    lines = list(chart_lines([replace(BW, size_bytes=1, bw_bytes_per_s=1.0), BW, CUT]))
    assert lines[1] == "write, MiB/s" and len(lines) == 4
    assert lines[3].count("█") == 40 and lines[2].count("█") == 0


def test_the_document_fits_the_schema():
    document = json.loads(printed([], result(BW, LAT, CUT), Mode(Format.JSON)))
    Draft202012Validator(load_schema()).validate(document)
    assert document["command"] == "bench" and len(document["results"]) == 3
    assert document["results"][1]["histogram"] == [{"from_us": 32.0, "to_us": 38.1, "count": 1000}]
    assert "NaN" not in json.dumps(document)


def test_the_schema_knows_rows_of_bench():
    document = json.loads(printed([], result(BW), Mode(Format.JSON)))
    for name in ("bw_bytes_per_s", "lat_p99_us", "complete"):
        broken = {**document, "results": [{k: v for k, v in document["results"][0].items() if k != name}]}
        assert list(Draft202012Validator(load_schema()).iter_errors(broken)), name


def test_the_stream_has_one_line_for_each_row_and_ends_with_the_document():
    lines = [json.loads(line) for line in printed([BW], result(BW, CUT), Mode(Format.STREAM)).splitlines()]
    assert [line["event"] for line in lines] == ["measured", "measured", "result"]
    stream = Draft202012Validator(load_schema("stream.schema.json"))
    for line in lines:
        stream.validate(line)
    Draft202012Validator(load_schema()).validate(lines[-1]["result"])
    assert lines[0]["row"] == lines[-1]["result"]["results"][0]


def test_progress_says_which_size_and_what_is_left():
    stderr = io.StringIO()
    now = [0.0]
    view = TextView(Output(stderr), clock=lambda: now[0], interval_s=1.0)
    reporter = BenchReporter(
        view, choose_printer(Mode(), Output(io.StringIO()), perftest=False, gbits=False, peak=True)
    )
    connection = api.make_request(Operation.WRITE, "127.0.0.1/scratch+4096", "host")
    request = BenchRequest(connection=connection, operations=tuple(Operation))
    reporter.started(request)
    now[0] = 2.0
    reporter.progress(BenchProgress("bw", "write", 1 << 20, 2, 5, 100, None, 1.0, 4.0, float(100 << 20), 7))
    now[0] = 4.0
    reporter.progress(BenchProgress("bw", "write", 1 << 20, 2, 5, 100, 200, 1.0, None, float(100 << 20), 7))
    title, by_time, by_count = stderr.getvalue().splitlines()
    assert title == describe_bench(request) == "bench write and read -> 127.0.0.1:18515/scratch+4096"
    assert "100 MiB of 400 MiB" in by_time and "3.00 s left" in by_time and "7 in flight" in by_time
    assert "100 MiB of 200 MiB" in by_count and "1.00 s left" in by_count


def test_an_error_stands_last_on_stderr():
    stderr = io.StringIO()
    reporter = BenchReporter(
        QuietView(Output(stderr)), choose_printer(Mode(), Output(io.StringIO()), perftest=True, gbits=False, peak=True)
    )
    reporter.finished(
        result(error=ErrorReport("threshold_missed", "too slow", "why", "try"), status="failed", exit_code=5)
    )
    assert stderr.getvalue().splitlines() == ["Error: too slow", "  why:  why", "  try:  try"]


def test_the_picture_is_svg_with_a_point_for_each_row():
    rows = [replace(BW, size_bytes=1 << power) for power in range(1, 24)] + [
        replace(LAT, size_bytes=2 << k) for k in range(3)
    ]
    picture = svg_plot([*rows, CUT], "a <title> & more")
    root = ElementTree.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == "a <title> & more"  # type: ignore[union-attr]
    circles = root.findall(f"{space}circle")
    assert len(circles) == 23 + 3 + 3, "latency has median and p99"
    assert all(0 <= float(circle.get("cx", "-1")) <= 800 and float(circle.get("cy", "-1")) >= 0 for circle in circles)
    assert len(root.findall(f"{space}polyline")) == 3


def test_one_size_and_no_rows_make_a_picture_too():
    for rows in ([BW], [], [CUT]):
        ElementTree.fromstring(svg_plot(rows, "t"))


@pytest.mark.parametrize(
    ("highest", "top"), [(0.0, 1.0), (0.3, 0.4), (1.0, 1.0), (1.1, 2.0), (850.0, 1000.0), (9000.0, 10000.0)]
)
def test_axes_end_at_a_round_number(highest, top):
    assert nice_top(highest) == pytest.approx(top)


AGAINST = Against(
    tool="ucx_perftest ucp_put_bw", test="bw", operation="write", size_bytes=65536, environ={"UCX_TLS": "tcp"},
    server="ucx_perftest -p 1", client="ucx_perftest -p 1 127.0.0.1", pairs=2,
    p2prw=Side.of([2 * MIB, 4 * MIB], latency=False), other=Side.of([1 * MIB, 1 * MIB], latency=False),
    ratio=3.0, ratio_low=2.0, ratio_high=4.0, differs=("transport: tcp and RoCEv2",),
)  # fmt: skip


def test_another_tool_by_turns_is_one_table_and_part_of_the_document():
    whole = result(BW, BW, against=AGAINST)
    text = printed([], whole)
    assert "bw write of 64 KiB by turns, 2 pairs, MiB/s" in text
    assert re.search(r"p2prw +3\.0 +2\.0 +4\.0\nucx_perftest ucp_put_bw +1\.0 +1\.0 +1\.0\n", text)
    assert "ratio of medians 3.000 (95 % interval 2.000 to 4.000; higher is better for p2prw)" in text
    assert "UCX_TLS=tcp ucx_perftest -p 1 127.0.0.1" in text and "differs   transport: tcp and RoCEv2" in text
    document = bench_document(whole)
    Draft202012Validator(load_schema()).validate(document)
    assert document["against"]["other"]["bw_median_bytes_per_s"] == MIB and document["against"]["ratio_low"] == 2.0
    assert "against" not in bench_document(result(BW))


def test_latency_by_turns_is_in_microseconds_and_lower_is_better():
    ours, theirs = Side.of([20.0], latency=True), Side.of([10.0], latency=True)
    text = printed([], result(LAT, against=replace(AGAINST, test="lat", p2prw=ours, other=theirs)))
    assert "by turns, 2 pairs, us" in text and "lower is better for p2prw" in text and re.search(r"p2prw +20\.0", text)
