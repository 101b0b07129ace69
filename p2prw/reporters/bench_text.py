"""A measurement as lines: our own table, perftest's exact columns, a small chart, what the figures depend on. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from p2prw.engine.bench.model import Against, BenchRequest, BenchResult, BenchRow
from p2prw.reporters.text import attempt_lines, fact_lines, nothing_moved
from p2prw.units import MIB, counted, format_figure, format_rate, format_size

# Linux-rdma/perftest, src/perftest_parameters.h: RESULT_FMT, RESULT_FMT_G, RESULT_FMT_LAT and their REPORT_FMTs.
PERFTEST_BW = " #bytes     #iterations    BW peak[{unit}/sec]    BW average[{unit}/sec]   MsgRate[Mpps]"
PERFTEST_LAT = (
    " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]"
    "   99% percentile[usec]   99.9% percentile[usec] "
)
_BARS = "▏▎▍▌▋▊▉█"
_BAR_WIDTH = 40


def describe_bench(request: BenchRequest) -> str:
    """Return one line: `bench write -> 10.0.0.1:18515/scratch`."""
    connection = request.connection
    offset = f"+{connection.region_offset}" if connection.region_offset else ""
    operations = " and ".join(operation.value for operation in request.operations)
    arrow = "<->" if request.both_ways else "->"
    return f"bench {operations} {arrow} {connection.peer}/{connection.region}{offset}"


# --- our own table ----------------------------------------------------------------------------------------------

# At most 80 columns; a verdict on the data stands behind them, where there is one.
_BW = "{:<6}{:>9}{:>9}{:>9}{:>8}{:>8}{:>8}{:>7}{:>9}"
_LAT = "{:<6}{:>9}{:>9}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}"
_BOTH = "{:<6}{:>9}{:>9}{:>9}{:>9}{:>9}{:>7}{:>9}"
_HEADS = {
    "both": _BOTH.format("BW 2x", "SIZE", "MESSAGES", "MiB/s", "OUT", "IN", "Gb/s", "MSG/s"),
    "bw": _BW.format("BW", "SIZE", "MESSAGES", "MiB/s", "MIN", "MEDIAN", "MAX", "Gb/s", "MSG/s"),
    "lat": _LAT.format("LAT us", "SIZE", "MESSAGES", "MIN", "P50", "P90", "P99", "P99.9", "MAX", "AVG"),
}


def head_line(row: BenchRow) -> str:
    """Return the head of a row's table; MIN, MEDIAN and MAX of a rate are MiB/s over the run's intervals.

    With both directions the rate is the sum of OUT, what we posted, and IN, what the server posted, in MiB/s.
    """
    return _HEADS["both" if row.both_ways else row.test]


def row_line(row: BenchRow) -> str:
    """Return one row; one that was cut short says so."""
    verdict = "" if row.verify == "unverified" else f"  {row.verify}"
    if not row.complete:
        verdict += "  cut short"
    size = format_size(row.size_bytes)
    if row.test == "bw":
        rates = (row.bw_min_bytes_per_s, row.bw_median_bytes_per_s, row.bw_max_bytes_per_s)
        gbits = "-" if row.bw_bytes_per_s is None else f"{row.bw_bytes_per_s * 8 / 1e9:.2f}"
        messages_per_s = "-" if row.msg_rate_per_s is None else f"{row.msg_rate_per_s:.0f}"
        if row.both_ways:
            ways = map(_mib, (row.out_bw_bytes_per_s, row.in_bw_bytes_per_s))
            shown = (_mib(row.bw_bytes_per_s), *ways, gbits, messages_per_s)
            return _BOTH.format(row.operation, size, row.messages, *shown) + verdict
        shown = (_mib(row.bw_bytes_per_s), *map(_mib, rates), gbits, messages_per_s)
        return _BW.format(row.operation, size, row.messages, *shown) + verdict
    figures = (row.lat_min_us, row.lat_p50_us, row.lat_p90_us, row.lat_p99_us, row.lat_p999_us, row.lat_max_us)
    shown = tuple("-" if one is None else f"{one:.1f}" for one in (*figures, row.lat_avg_us))
    return _LAT.format(row.operation, size, row.messages, *shown) + verdict


def _mib(bytes_per_s: float | None) -> str:
    return "-" if bytes_per_s is None else format_figure(bytes_per_s / MIB, 1)


def summary_lines(result: BenchResult) -> Iterator[str]:
    """Return the chart and what the figures depend on, for below the table."""
    if nothing_moved(result):
        yield from attempt_lines(result)
        return
    chart = list(chart_lines(result.results))
    yield from (*chart, "") if chart else ()
    environment, rows = result.environment, result.results
    device = environment.get("device") or {}
    negotiated = environment.get("negotiated") or {}
    if device:
        binding = f" by {device['binding']}" if device.get("binding") else ""
        binding += f", packets: {device['codec']}" if device.get("codec") else ""
        facts = (
            f"{device['name']} [{device['driver']}{binding}]",
            f"path MTU {negotiated.get('path_mtu_bytes', '-')}",
            counted(environment["cpus"], "CPU"),
            f"Python {environment['python']}",
            f"Linux {environment['kernel']}",
            environment["clock"],
        )
        yield "setup     " + ", ".join(facts)
    for test in dict.fromkeys(row.test for row in rows):
        yield "work      " + _work([row for row in rows if row.test == test])
    if result.against is not None:
        yield from ("", *against_lines(result.against), "")
    limit = next((row for row in rows if row.rate_limit_by == "server"), None)
    if limit is not None:
        yield f"limited   to {format_rate(limit.rate_limit_bytes_per_s)} by the server (--client-rate-limit)"
    again = sum(row.retransmitted_packets for row in rows)
    yield f"retries   {counted(again, 'packet')} sent again"
    yield from fact_lines(result)


def against_lines(against: Against) -> Iterator[str]:
    """Return the table of both sides, the ratio with its interval, and what the two do not have in common."""
    unit = "us" if against.test == "lat" else "MiB/s"
    what = f"{against.test} {against.operation} of {format_size(against.size_bytes)}"
    yield f"{what} by turns, {counted(against.pairs, 'pair')}, {unit}"
    yield f"{'':<28}{'MEDIAN':>10}{'MIN':>10}{'MAX':>10}"
    for name, side in (("p2prw", against.p2prw), (against.tool, against.other)):
        values = side.lat_us or tuple(one / MIB for one in side.bw_bytes_per_s)
        yield f"{name:<28}{median(values):>10.1f}{min(values):>10.1f}{max(values):>10.1f}"
    better = "lower is better for p2prw" if against.test == "lat" else "higher is better for p2prw"
    interval = "one pair has no interval"
    if against.pairs > 1:
        interval = f"95 % interval {against.ratio_low:.3f} to {against.ratio_high:.3f}"
    yield f"ratio of medians {against.ratio:.3f} ({interval}; {better})"
    yield f"ran       {' '.join(f'{name}={value}' for name, value in against.environ.items())} {against.client}".strip()
    for text in against.differs:
        yield f"differs   {text}"


def _walk(rows: Sequence[BenchRow]) -> str:
    """Return what memory a walk went round, and whether it came round."""
    row = rows[0]
    if row.walk_bytes is None or row.walk_places is None:
        return ""
    around = format_size(row.walk_bytes)
    whole = all(one.messages // one.queue_pairs >= (one.walk_places or 0) for one in rows)
    if len(rows) > 1:
        return f", round and round {around}" if whole else f", in {around}, not everywhere"
    places = f"{row.walk_places:,} places in {around}"
    return f", round and round {places}" if whole else f", {row.messages // row.queue_pairs:,} of {places}"


def _work(rows: Sequence[BenchRow]) -> str:
    row, walk = rows[0], _walk(rows)
    if row.test == "lat":
        if row.lat_by == "ping-pong":
            return "latency: by ping-pong, half a round trip; both ends watch memory"
        return f"latency: one message at a time, from post to completion (a whole round trip){walk}"
    pairs = f"{row.queue_pairs} queue pair" + ("s" if row.queue_pairs > 1 else "")
    chain = f", chains of {row.post_list}" if row.post_list else ""
    ways = ", both directions at once" if row.both_ways else ""
    depth = f"{row.tx_depth} deep, 1 in {row.signal_every} signalled at first"
    return f"bandwidth: {pairs}, {depth}{chain}{ways}{walk}"


# --- a small chart ------------------------------------------------------------------------------------------------


def chart_lines(rows: Sequence[BenchRow]) -> Iterator[str]:
    """Return bars for each test and operation with more than one size: average rate, or median latency."""
    for test, operation in dict.fromkeys((row.test, row.operation) for row in rows):
        points = [(row.size_bytes, chart_value(row)) for row in rows if (row.test, row.operation) == (test, operation)]
        known = [(size, value) for size, value in points if value is not None]
        if len(known) < 2:
            continue
        top = max(value for _, value in known) or 1.0
        unit = "MiB/s" if test == "bw" else "us, median"
        yield ""
        yield f"{operation}, {unit}"
        for size, value in known:
            yield f"{format_size(size):>10} {_bar(value / top)} {format_figure(value, 1)}"


def chart_value(row: BenchRow) -> float | None:
    """Return what a chart shows of a row: MiB/s, or microseconds."""
    if row.test == "bw":
        return None if row.bw_bytes_per_s is None else row.bw_bytes_per_s / MIB
    return row.lat_p50_us


def _bar(share: float) -> str:
    eighths = round(share * _BAR_WIDTH * 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_BARS[rest - 1] if rest else "") or "▏"


# --- perftest's columns ---------------------------------------------------------------------------------------------


def perftest_head(test: str, *, gbits: bool) -> str:
    """Return perftest's heading of a bandwidth or latency table, to the blank."""
    return PERFTEST_BW.format(unit="Gb" if gbits else "MiB") if test == "bw" else PERFTEST_LAT


def perftest_line(row: BenchRow, *, gbits: bool, peak: bool) -> str:
    """Return perftest's row. Its peak is ours over an interval, not over two completions; 0.00 without `peak`.

    With both directions it is the sum, as perftest's, and has no peak.
    """
    if row.test == "bw":
        scale = 8 / 1e9 if gbits else 1 / MIB
        highest = (row.bw_max_bytes_per_s or 0.0) * scale if peak else 0.0
        average = (row.bw_bytes_per_s or 0.0) * scale
        rate = (row.msg_rate_per_s or 0.0) / 1e6
        return (
            f" {row.size_bytes:<7}    {row.messages:<10}       {highest:<7.2f}            {average:<7.2f}"
            f"\t\t   {rate:<7.6f}"
        )
    low, high, typical, mean, stdev, p99, p999 = (
        0.0 if one is None else one
        for one in (
            row.lat_min_us,
            row.lat_max_us,
            row.lat_p50_us,
            row.lat_avg_us,
            row.lat_stdev_us,
            row.lat_p99_us,
            row.lat_p999_us,
        )
    )
    return (
        f" {row.size_bytes:<7} {row.messages}          {low:<7.2f}        {high:<7.2f}      {typical:<7.2f}  \t       "
        f"{mean:<7.2f}     \t{stdev:<7.2f}\t\t{p99:<7.2f} \t\t{p999:<7.2f}"
    )
