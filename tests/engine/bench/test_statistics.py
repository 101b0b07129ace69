"""Figures against other people's arithmetic: numpy, the statistics module, exact fractions."""

from __future__ import annotations

import math
import statistics
from array import array
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.bench.statistics import (
    INTERVALS,
    Mark,
    equal_intervals,
    histogram,
    interval_figures,
    latency_figures,
    rank,
    ratio_of_medians,
)

MICROSECONDS = st.floats(min_value=0.01, max_value=1e9, allow_nan=False)
SAMPLES = st.lists(MICROSECONDS, min_size=1, max_size=300)


@given(SAMPLES)
def test_latency_figures_are_those_of_numpy_and_statistics(samples):
    figures = latency_figures(array("d", samples))
    assert figures is not None
    for percent, found in ((50, figures.p50), (90, figures.p90), (99, figures.p99), (99.9, figures.p999)):
        # numpy multiplies floats: a hair less, or 0.99 of 100 samples may be the 100th.
        assert found == np.percentile(samples, percent - 1e-9, method="inverted_cdf")
    assert figures.p50 == statistics.median_low(samples)
    assert (figures.lowest, figures.highest) == (min(samples), max(samples))
    assert figures.mean == pytest.approx(statistics.fmean(samples))
    expected = statistics.stdev(samples) if len(samples) > 1 else 0.0
    assert figures.stdev == pytest.approx(expected, rel=1e-6, abs=1e-6 * max(samples))
    assert figures.lowest <= figures.p50 <= figures.p90 <= figures.p99 <= figures.p999 <= figures.highest


@given(st.integers(1, 100_000), st.sampled_from([500, 900, 990, 999]))
def test_the_rank_is_the_smallest_that_covers_its_share(count, permille):
    index = rank(count, permille)
    share = Fraction(permille, 1000)
    assert Fraction(index + 1, count) >= share
    assert index == 0 or Fraction(index, count) < share


def test_no_samples_have_no_figures():
    assert latency_figures(array("d")) is None
    assert histogram([]) == ()


@given(SAMPLES)
def test_the_histogram_holds_every_sample_once_in_its_bucket(samples):
    buckets = histogram(samples)
    assert sum(bucket.count for bucket in buckets) == len(samples)
    for bucket in buckets:
        inside = [sample for sample in samples if bucket.from_us <= sample < bucket.to_us]
        assert len(inside) == bucket.count > 0
        assert bucket.to_us / bucket.from_us == pytest.approx(2**0.25)
    assert [bucket.from_us for bucket in buckets] == sorted({bucket.from_us for bucket in buckets})


def test_samples_on_a_bucket_edge_go_up():
    (bucket,) = histogram([1.0, 1.0])
    assert (bucket.from_us, bucket.count) == (1.0, 2)
    assert [bucket.count for bucket in histogram([0.0])] == [1], "no time at all is counted, not lost"


@st.composite
def runs(draw):
    """Marks as a loop makes them: time and messages grow."""
    steps = draw(st.lists(st.tuples(st.floats(1e-6, 1.0), st.integers(1, 1000)), min_size=1, max_size=300))
    at_s, messages, marks = 5.0, 0, [Mark(5.0, 0)]
    for seconds, count in steps:
        at_s, messages = at_s + seconds, messages + count
        marks.append(Mark(at_s, messages))
    return marks


@given(runs(), st.integers(1, 1 << 23))
def test_intervals_cover_the_run_and_none_is_shorter_than_its_share(marks, size):
    kept = equal_intervals(marks)
    assert (kept[0], kept[-1]) == (marks[0], marks[-1])
    assert len(kept) - 1 <= INTERVALS
    width_s = (marks[-1].at_s - marks[0].at_s) / INTERVALS
    assert all(later.at_s - earlier.at_s >= width_s * 0.999 for earlier, later in pairwise(kept))
    figures = interval_figures(marks, size)
    assert figures.count == len(kept) - 1 > 0
    average = (marks[-1].messages * size) / (marks[-1].at_s - marks[0].at_s)
    assert figures.lowest is not None and figures.middle is not None and figures.highest is not None
    assert figures.lowest <= figures.middle <= figures.highest
    assert figures.lowest * 0.999 <= average <= figures.highest * 1.001


def test_a_burst_of_completions_at_the_end_is_no_interval_of_its_own():
    """100 messages a second, seen regularly; the last ten are seen at once, a microsecond after those before."""
    marks = [Mark(second / 100, second) for second in range(91)] + [Mark(0.900001, 100)]
    figures = interval_figures(marks, 1)
    assert figures.highest is not None and figures.highest < 400
    assert math.isclose(figures.middle or 0, 100, rel_tol=0.1)


@pytest.mark.parametrize("marks", [[], [Mark(1.0, 0)], [Mark(1.0, 0), Mark(1.0, 5)]])
def test_a_run_without_time_has_no_rate(marks):
    figures = interval_figures(marks, 64)
    assert (figures.count, figures.lowest, figures.middle, figures.highest) == (0, None, None, None)


def test_the_ratio_of_medians_lies_in_its_interval_the_same_for_the_same_seed():
    rng = np.random.default_rng(5)
    theirs = rng.normal(100, 5, 15).tolist()
    ours = [one * 1.2 + extra for one, extra in zip(theirs, rng.normal(0, 2, 15), strict=True)]
    ratio = ratio_of_medians(ours, theirs, seed=1)
    assert ratio.ratio == statistics.median(ours) / statistics.median(theirs)
    assert 1.1 < ratio.low <= ratio.ratio <= ratio.high < 1.3
    assert ratio == ratio_of_medians(ours, theirs, seed=1)


def test_pairs_are_drawn_so_what_slowed_both_is_no_difference():
    speed = [1.0, 2.0, 4.0, 8.0, 16.0]
    ratio = ratio_of_medians([3 * one for one in speed], speed, seed=1)
    assert (ratio.ratio, ratio.low, ratio.high) == (3.0, 3.0, 3.0)


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(11), 0
    for _ in range(200):
        ratio = ratio_of_medians(
            rng.normal(90, 9, 15).tolist(), rng.normal(100, 10, 15).tolist(), seed=3, resamples=400
        )
        covered += ratio.low <= 0.9 <= ratio.high
    assert 0.88 <= covered / 200 <= 1.0


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], [])])
def test_what_is_not_paired_has_no_ratio(ours, theirs):
    with pytest.raises(ValueError, match="not pairs"):
        ratio_of_medians(ours, theirs, seed=1)


def test_few_completions_make_no_intervals():
    """With one completion for 32 messages the last interval would hold 18 of them and hardly any time."""
    marks = [Mark(0.0, 0), Mark(1.0, 32), Mark(1.05, 50)]
    assert interval_figures(marks, 1024).highest == interval_figures(marks, 1024).lowest == 50 * 1024 / 1.05
    assert interval_figures([Mark(float(place), place) for place in range(9)], 1).count == 2
