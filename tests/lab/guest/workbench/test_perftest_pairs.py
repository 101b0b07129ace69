"""p2prw bench and perftest by turns on rxe: one pair of each, for the form; figures are made by hand."""

from __future__ import annotations

from typing import Any

from p2prw import api
from p2prw.engine.model import QueuePairOptions


def test_one_pair_with_equal_sizes_counts_and_signals():
    from benchmarks import perftest_pairs as pairs

    args = pairs.options().parse_args(["--pairs", "1", "--signal-every", "8", "--depth", "32"])
    cases = [pairs.parse_case("write:64:200:2"), pairs.parse_case("read:4K:100")]
    how: dict[str, Any] = {"device": "rxe0", "queue_pair": QueuePairOptions(timeout=18, gid_index=1)}
    with api.serving({"mem": "host,size=64KiB"}, listen="10.9.0.1:0", insecure=True, **how) as address:
        document = pairs.measure(args, cases, str(address))
    assert document["pairs"] == 1 and document["environment"]["device"]["driver"] == "rxe"
    for row in document["cases"]:
        assert len(row["p2prw_msg_rate_per_s"]) == len(row["perftest_msg_rate_per_s"]) == 1
        (ours,), (theirs,) = row["p2prw_msg_rate_per_s"], row["perftest_msg_rate_per_s"]
        ratio = row["ratio_of_medians"]
        assert ours > 0 and theirs > 0 and ratio["low"] == ratio["ratio"] == ratio["high"] == ours / theirs
        assert "-Q 8 -N" in row["command"] and "-t 32" in row["command"]
