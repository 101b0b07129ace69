"""From what a loop counted to a row of the result, and whether the row holds what was demanded. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from p2prw.engine.bench.latency import TimedLoop
from p2prw.engine.bench.loop import BandwidthLoop
from p2prw.engine.bench.model import LATENCY_FIGURES, BenchRequest, BenchRow
from p2prw.engine.bench.reverse import Incoming
from p2prw.engine.bench.statistics import interval_figures, latency_figures
from p2prw.engine.lane import Lane
from p2prw.engine.model import Operation
from p2prw.engine.pace import Pace
from p2prw.errors import ThresholdError
from p2prw.units import format_rate, format_size


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a row says about its run beside the figures."""

    operation: Operation
    size_bytes: int
    complete: bool
    warm_up: int
    retransmitted_packets: int
    verify: str = "unverified"
    walk_bytes: int | None = None
    walk_places: int | None = None


def bandwidth_row(loop: BandwidthLoop, facts: RunFacts) -> BenchRow:
    """Return the row of a bandwidth run, whole or not."""
    marks = loop.marks
    messages = marks[-1].messages if marks else 0
    elapsed_s = marks[-1].at_s - marks[0].at_s if marks else 0.0
    figures = interval_figures(marks, facts.size_bytes)
    return replace(
        _row("bw", facts, loop.lanes, loop.pace, messages, elapsed_s),
        bw_min_bytes_per_s=figures.lowest,
        bw_median_bytes_per_s=figures.middle,
        bw_max_bytes_per_s=figures.highest,
        intervals=figures.count,
    )


def both_ways_row(row: BenchRow, incoming: Incoming | None) -> BenchRow:
    """Return the row of our direction with the server's in it; None: what that did is not known.

    Rates are added, each over its own time, as perftest does. Intervals are ours alone, so there are none.
    """
    row = replace(
        row,
        both_ways=True,
        out_messages=row.messages,
        out_bw_bytes_per_s=row.bw_bytes_per_s,
        bw_bytes_per_s=None,
        msg_rate_per_s=None,
        bw_min_bytes_per_s=None,
        bw_median_bytes_per_s=None,
        bw_max_bytes_per_s=None,
        intervals=0,
    )
    if incoming is None or row.out_bw_bytes_per_s is None:
        return row
    in_bw = incoming.msg_rate_per_s * row.size_bytes
    return replace(
        row,
        messages=row.messages + incoming.messages,
        bytes=row.bytes + incoming.messages * row.size_bytes,
        bw_bytes_per_s=row.out_bw_bytes_per_s + in_bw,
        msg_rate_per_s=row.out_bw_bytes_per_s / row.size_bytes + incoming.msg_rate_per_s,
        in_messages=incoming.messages,
        in_elapsed_s=incoming.elapsed_s,
        in_bw_bytes_per_s=in_bw,
        retransmitted_packets=row.retransmitted_packets + incoming.retransmitted_packets,
    )


def latency_row(loop: TimedLoop, facts: RunFacts) -> BenchRow:
    """Return the row of a latency run, whole or not."""
    elapsed_s = loop.last_completion_s - loop.first_post_s
    figures = latency_figures(loop.samples_us)
    return replace(
        _row("lat", facts, [loop.lane], loop.pace, len(loop.samples_us), elapsed_s),
        # Whatever the lane could do: one message at a time, seen by itself.
        tx_depth=1,
        signal_every=1,
        post_list=None,
        lat_by=loop.lat_by,
        lat_min_us=figures.lowest if figures else None,
        lat_avg_us=figures.mean if figures else None,
        lat_p50_us=figures.p50 if figures else None,
        lat_p90_us=figures.p90 if figures else None,
        lat_p99_us=figures.p99 if figures else None,
        lat_p999_us=figures.p999 if figures else None,
        lat_max_us=figures.highest if figures else None,
        lat_stdev_us=figures.stdev if figures else None,
        histogram=figures.histogram if figures else (),
    )


def _row(
    test: str, facts: RunFacts, lanes: Sequence[Lane], pace: Pace | None, messages: int, elapsed_s: float
) -> BenchRow:
    """Return what the rows of both tests say, without the figures that one of them has."""
    done = messages > 0 and elapsed_s > 0
    return BenchRow(
        test=test,
        operation=facts.operation.value,
        size_bytes=facts.size_bytes,
        complete=facts.complete,
        queue_pairs=len(lanes),
        tx_depth=lanes[0].depth,
        signal_every=lanes[0].signal_every,
        post_list=lanes[0].post_list,
        walk_bytes=facts.walk_bytes,
        walk_places=facts.walk_places,
        wqes_per_message=lanes[0].message_wqes,
        warm_up_messages=facts.warm_up,
        messages=messages,
        bytes=messages * facts.size_bytes,
        elapsed_s=elapsed_s,
        msg_rate_per_s=messages / elapsed_s if done else None,
        bw_bytes_per_s=messages * facts.size_bytes / elapsed_s if done else None,
        retransmitted_packets=facts.retransmitted_packets,
        verify=facts.verify,
        rate_limit_bytes_per_s=pace.rate_bytes_per_s if pace is not None else None,
        rate_limit_by=pace.by if pace is not None else None,
        wqes_posted=sum(lane.posted for lane in lanes),
        wqes_signalled=sum(lane.signalled for lane in lanes),
    )


def missed_thresholds(request: BenchRequest, rows: Iterable[BenchRow]) -> ThresholdError | None:
    """Return the error of the first row that misses a threshold, saying how many do; every row is held to them."""
    missed = [sentence for row in rows for sentence in _missed(request, row)]
    if not missed:
        return None
    more = f"; {len(missed) - 1} more missed" if len(missed) > 1 else ""
    return ThresholdError(
        missed[0] + more,
        why="every size is held to --min-bw and --max-lat; the result has all figures",
        fix="lower the threshold, or look at route, MTU and load in the result",
        code="threshold_missed",
    )


def _missed(request: BenchRequest, row: BenchRow) -> list[str]:
    where = f"{row.operation} of {format_size(row.size_bytes)}"
    if row.test == "bw":
        least = request.min_bw_bytes_per_s
        if least is None or (row.bw_bytes_per_s is not None and row.bw_bytes_per_s >= least):
            return []
        return [f"{where}: {format_rate(row.bw_bytes_per_s)} is below --min-bw {format_rate(least)}"]
    missed = []
    for name, most_us in request.max_latency_us.items():
        found = getattr(row, LATENCY_FIGURES[name])
        if found is None or found > most_us:
            shown = "nothing" if found is None else f"{found:.1f} us"
            missed.append(f"{where}: {name} of {shown} is above --max-lat {name}={most_us:g}us")
    return missed
