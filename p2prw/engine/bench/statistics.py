"""From samples to figures: percentiles, intervals, a histogram. Pure.

Percentiles are nearest-rank: the smallest sample that at least that share of the samples does not exceed. No figure is
made up between two samples, so a p99 is something that happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import numpy as np

from p2prw.engine.bench.model import Bucket

INTERVALS = 20
"""A run is cut into this many at most."""
_LEAST_MARKS = 4
"""Of an interval, on average."""
_BUCKETS_PER_OCTAVE = 4
"""Each bucket is 19 % wide: 2^(1/4)."""


class Mark(NamedTuple):
    """How many messages were complete at a time."""

    at_s: float
    messages: int


@dataclass(frozen=True, slots=True)
class IntervalFigures:
    """Bytes per second over the intervals between marks."""

    count: int
    lowest: float | None
    middle: float | None
    highest: float | None


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of medians and its bootstrap interval."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LatencyFigures:
    """Microseconds."""

    lowest: float
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    highest: float
    stdev: float
    """Of the sample (n - 1); 0.0 for one sample."""
    histogram: tuple[Bucket, ...]


def equal_intervals(marks: Sequence[Mark], most: int = INTERVALS) -> list[Mark]:
    """Return the marks that cut the run into at most `most` intervals of about the same time.

    By time and not by messages: a process that was not scheduled for a while sees many completions at once, and an
    interval that holds only those would show a rate that no wire has.
    """
    if len(marks) < 2:
        return list(marks)
    first, last = marks[0], marks[-1]
    # With one completion for many messages an interval of few marks would be as wrong.
    most = max(1, min(most, (len(marks) - 1) // _LEAST_MARKS))
    width_s = (last.at_s - first.at_s) / most
    kept = [first]
    for mark in marks[1:-1]:
        if mark.at_s - kept[-1].at_s >= width_s and last.at_s - mark.at_s >= width_s:
            kept.append(mark)
    kept.append(last)
    return kept


def interval_figures(marks: Sequence[Mark], size_bytes: int) -> IntervalFigures:
    """Return lowest, median and highest rate over intervals of about the same time."""
    rates = [
        (later.messages - earlier.messages) * size_bytes / (later.at_s - earlier.at_s)
        for earlier, later in pairwise(equal_intervals(marks))
        if later.at_s > earlier.at_s
    ]
    if not rates:
        return IntervalFigures(0, None, None, None)
    return IntervalFigures(len(rates), min(rates), median(rates), max(rates))


def rank(count: int, permille: int) -> int:
    """Return the index of the nearest-rank percentile among `count` sorted samples; integers, so 99.9 is exact."""
    return max(0, -(-count * permille // 1000) - 1)


def latency_figures(samples_us: Sequence[float]) -> LatencyFigures | None:
    """Return the figures of the samples (an `array('d')` is read in place), None where there are none."""
    count = len(samples_us)
    if not count:
        return None
    values = np.sort(np.asarray(samples_us, dtype=np.float64))
    return LatencyFigures(
        lowest=float(values[0]),
        mean=float(values.mean()),
        p50=float(values[rank(count, 500)]),
        p90=float(values[rank(count, 900)]),
        p99=float(values[rank(count, 990)]),
        p999=float(values[rank(count, 999)]),
        highest=float(values[-1]),
        stdev=float(values.std(ddof=1)) if count > 1 else 0.0,
        histogram=histogram(values),
    )


def histogram(values_us: Sequence[float] | np.ndarray) -> tuple[Bucket, ...]:
    """Return the buckets that hold anything, each from 2^(k/4) to 2^((k+1)/4) us; what is below 1 ns is 1 ns."""
    values = np.maximum(np.asarray(values_us, dtype=np.float64), 1e-3)
    if not values.size:
        return ()
    low = int(np.floor(np.log2(values.min()) * _BUCKETS_PER_OCTAVE)) - 1
    high = int(np.floor(np.log2(values.max()) * _BUCKETS_PER_OCTAVE)) + 2
    edges = np.exp2(np.arange(low, high + 1) / _BUCKETS_PER_OCTAVE)
    # By the edges as they are printed, not by the logarithm, which rounds the other way now and then.
    counts = np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges))
    return tuple(
        Bucket(float(edges[index]), float(edges[index + 1]), int(count))
        for index, count in enumerate(counts[:-1])
        if count
    )


def ratio_of_medians(
    ours: Sequence[float], theirs: Sequence[float], *, seed: int, resamples: int = 10_000, confidence: float = 0.95
) -> Ratio:
    """Return median(ours) / median(theirs) and its percentile bootstrap interval, the same for the same seed.

    `ours[i]` and `theirs[i]` were measured next to each other: pairs are drawn, so that what slowed both is not taken
    for a difference. ValueError where they are not pairs, or none.
    """
    if not len(ours) == len(theirs) > 0:
        raise ValueError(f"{len(ours)} and {len(theirs)} measurements are not pairs")
    left, right = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(left), (resamples, len(left)))
    ratios = np.median(left[drawn], axis=1) / np.median(right[drawn], axis=1)
    low, high = np.quantile(ratios, ((1 - confidence) / 2, (1 + confidence) / 2))
    return Ratio(float(np.median(left) / np.median(right)), float(low), float(high))
