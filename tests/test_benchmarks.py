"""The benchmark suite without measuring: its cases are commands that p2prw takes, its table is what its file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import perftest_pairs
from benchmarks.cases import CASES, LANES_CASES, USUAL
from benchmarks.table import BEGIN, END, missed, rewritten, table
from p2prw.against.tools import TOOLS, parse_command
from p2prw.cli import cli

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
OWN, PAIR = (next(case for case in CASES if (case.against is None) is alone) for alone in (True, False))


def figures(rate: float, ratio: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"p2prw_bw_bytes_per_s": [rate * 0.9, rate], "p2prw_median_bytes_per_s": rate}
    if ratio is not None:
        found |= {"other_bw_bytes_per_s": [rate / ratio], "other_median_bytes_per_s": rate / ratio}
        found |= {"ratio": ratio, "ratio_low": ratio * 0.9, "ratio_high": ratio * 1.1}
    return found


def test_every_bar_of_the_table_is_of_a_part_and_a_tool_that_exist():
    assert {case.part for case in CASES} <= set(USUAL)
    assert len({case.name for case in CASES}) == len(CASES)
    bench = cli.get_command(None, "bench")  # type: ignore[arg-type]
    assert bench is not None
    # click keeps a command's help option as the first context made it: without a parent that has no -h.
    parent = cli.make_context("p2prw", ["bench"])
    for case in CASES:
        context = bench.make_context("bench", ["127.0.0.1/scratch", *case.words], parent=parent)
        assert context.params["op"] in ("write", "read")
        assert case.against is None or parse_command(case.against).name in TOOLS
        assert (case.least_ratio is None) != (case.least_bytes_per_s is None)


def test_the_table_says_what_was_missed_and_by_how_much():
    setup = {"cpus": 2, "cpu": "C", "kernel": "6", "python": "3", "measured_at": "now"}
    results = {"setup": {"ucx": setup}, OWN.part: {OWN.name: figures(0.5e9)}, PAIR.part: {PAIR.name: figures(1e9, 1.5)}}
    lines = list(table(results))
    assert any(line.startswith(f"| {OWN.name} | 0.50 (0.45 to 0.50)") and "**no**" in line for line in lines)
    assert any("1.50 (1.35 to 1.65) | 2 x | **no**" in line for line in lines)
    assert sum("not measured" in line for line in lines) == len(CASES) - 2
    assert missed(results) == [f"{OWN.name}: 0.50 GB/s, wanted 1", f"{PAIR.name}: ratio 1.50, wanted 2"]
    results[OWN.part] = {OWN.name: figures(1.5e9)}
    results[PAIR.part] = {PAIR.name: figures(1e9, 2.5)}
    assert missed(results) == []


def test_many_queue_pairs_have_a_table_of_their_own():
    first, other = LANES_CASES[:2]
    made = {"many_bw_bytes_per_s": [0.8e9, 1e9, 0.9e9], "one_bw_bytes_per_s": [1e9, 1.2e9, 1.25e9]}
    results: dict[str, Any] = {"queue_pairs": {
        first.name: {**made, "ratio_of_medians": {"ratio": 0.75, "low": 0.7, "high": 0.8}},
        other.name: {**made, "ratio_of_medians": {"ratio": 0.9, "low": 0.7, "high": 0.95}},
    }}  # fmt: skip
    lines = list(table(results))
    rates = "0.90 (0.80 to 1.00) | 1.20 (1.00 to 1.25)"
    assert f"| WRITE 8 KiB | {rates} | 0.75 (0.70 to 0.80) | 0.85 x | **no** |" in lines
    assert f"| WRITE 64 KiB | {rates} | 0.90 (0.70 to 0.95) | 0.85 x | yes |" in lines
    assert missed(results) == ["64 queue pairs, WRITE 8 KiB: ratio 0.75, wanted 0.85"]
    assert len({case.name for case in LANES_CASES}) == len(LANES_CASES)
    assert LANES_CASES[2].name == "WRITE 64 KiB, the one in the memory of all"
    assert [LANES_CASES[n].walk for n in (1, 2, 4)] == [(), ("--walk", "4194304"), ("--walk", "67108864")]


def test_perftests_pairs_have_a_table_of_their_own():
    case = {"operation": "write", "size_bytes": 65536, "queue_pairs": 4, "command": "ib_write_bw -d rxe0",
            "holds": False, "p2prw_msg_rate_per_s": [900.0, 1100.0, 1000.0], "perftest_msg_rate_per_s": [2000.0],
            "least_ratio": 0.95,
            "ratio_of_medians": {"ratio": 0.5, "low": 0.45, "high": 0.55}}  # fmt: skip
    document = {"environment": {"kernel": "6"}, "pairs": 3, "tx_depth": 128, "signal_every": 32}
    results = {"perftest": {"cases": [case, {**case, "holds": True, "queue_pairs": 1}], **document}}
    lines = list(table(results))
    ratio = "0.50 (0.45 to 0.55) | 0.95 x at the low end | **no** |"
    assert f"| WRITE 64 KiB, 4 queue pairs / ib_write_bw | 1,000 | 2,000 | {ratio}" in lines
    assert any(line.startswith("| WRITE 64 KiB / ib_write_bw") and line.endswith("| yes |") for line in lines)
    assert missed(results) == ["WRITE 64 KiB, 4 queue pairs / ib_write_bw: low end of the ratio 0.45, wanted 0.95"]


def test_only_the_table_of_a_page_is_rewritten():
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    made = rewritten(page, {})
    assert made.startswith("before\n") and made.endswith(f"{END}\nafter\n") and "old" not in made
    assert rewritten(made, {}) == made
    with pytest.raises(ValueError, match="benchmarks"):
        rewritten("no place", {})


def test_the_readmes_table_is_what_the_file_of_results_gives():
    page = (ROOT / "README.md").read_text("utf-8")
    assert rewritten(page, json.loads(RESULTS.read_text("utf-8"))) == page


PERFTEST = """ #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 65536      800              0.00               27.14              0.000434
---
"""


def test_perftests_columns_become_messages_per_second():
    case = perftest_pairs.parse_case("write:64K:200:4")
    assert perftest_pairs.messages_per_s(case, PERFTEST) == pytest.approx(434.24)
    small = perftest_pairs.parse_case("read:64:800")
    assert perftest_pairs.messages_per_s(small, PERFTEST.replace("65536", "64   ")) == pytest.approx(434)
    for other in ("write:64K:100:4", "write:4K:200:4"):
        with pytest.raises(SystemExit):
            perftest_pairs.messages_per_s(perftest_pairs.parse_case(other), PERFTEST)


def test_a_pair_is_equal_on_both_sides_in_what_can_be_set():
    args = perftest_pairs.options().parse_args(["--depth", "64", "--signal-every", "16", "--max-rd-atomic", "8"])
    words = " ".join(perftest_pairs.perftest_command(args, perftest_pairs.parse_case("read:4K:100:2")))
    assert words == "ib_read_bw -d rxe0 -x 1 -p 18615 -s 4096 -n 100 -q 2 -t 64 -Q 16 -N -F -o 8"
