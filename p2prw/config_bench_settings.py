"""The settings that only `p2prw bench` has: part of the table in `p2prw.config_settings`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from p2prw.config_setting import Setting
from p2prw.config_values import auto_or, choice, duration, flag, integer, latency_bounds, rate, size, size_list, text

_BENCH = frozenset({"bench"})


def bench_settings() -> Iterator[Setting]:
    """Yield them in the order of the help page; a file's `bench` map has those that say what is measured."""
    for setting in _bench():
        yield setting if setting.group == "Output" else replace(setting, sections=("bench",))


def _bench() -> Iterator[Setting]:
    yield Setting(
        "local_memory", text, "Local memory: KIND[:ARG][,key=value...]; host without a size is as large as needed.",
        "What", _BENCH, default="host", shown="host", metavar="MEMORY",
    )  # fmt: skip
    group = "Measure"
    yield Setting(
        "test", choice("bw", "lat", "all"), "bw (bandwidth and message rate), lat (latency), or all.", group, _BENCH,
        default="bw", shown="bw", metavar="TEST",
    )  # fmt: skip
    yield Setting(
        "op", choice("write", "read", "both"), "write, read, or both: write first, then read.", group, _BENCH,
        default="write", shown="write", metavar="OP",
    )  # fmt: skip
    yield Setting(
        "sizes", size_list, "Message sizes, as 64K or 4K,64K,1M (K = 1024).", group, _BENCH,
        shown="64K for bw, 2 for lat", spellings=("--size", "-s"), metavar="SIZE,...", has_commas=True,
    )  # fmt: skip
    yield Setting(
        "all", flag, "Every size from 2 bytes to 8 MiB by powers of two, as far as the region goes.", group, _BENCH,
        default=False, spellings=("-a",), is_flag=True,
    )  # fmt: skip
    yield Setting(
        "iters", auto_or(integer(1, 1 << 40)), "Messages of each queue pair and size.", group, _BENCH,
        shown="5000 for bw of writes, else 1000", spellings=("-n",), metavar="N",
    )  # fmt: skip
    yield Setting(
        "duration", auto_or(duration, "none"), "Measure each size for this long instead, 64 MiB in flight at most.",
        group, _BENCH, shown="none", spellings=("-D",), metavar="TIME",
    )  # fmt: skip
    yield Setting(
        "warm_up", auto_or(integer(0, 1 << 30)), "Messages before the clock starts.", group, _BENCH,
        shown="iters / 10, at most 100, at most 64 MiB", metavar="N",
    )  # fmt: skip
    yield Setting(
        "qp", integer(1, 64), "Queue pairs, each with its own piece of the region.", group, _BENCH, default=1,
        shown="1", spellings=("-q",), metavar="N",
    )  # fmt: skip
    yield Setting(
        "walk", auto_or(size(1), "none"), "Go round this much memory with each queue pair, more than a cache or an "
        "IOTLB holds, instead of the same bytes again.", group, _BENCH, shown="none", metavar="SIZE",
    )  # fmt: skip
    yield Setting(
        "post_list", auto_or(integer(1, 32768)), "Work requests that leave together, as one chain.", group, _BENCH,
        shown="auto: as many as there is room for", spellings=("-l",), metavar="N",
    )  # fmt: skip
    yield Setting(
        "lat_by", choice("completion", "ping-pong"), "Latency of writes: a round trip to the completion, or half a "
        "ping-pong, as ib_write_lat.", group, _BENCH, default="completion", shown="completion", metavar="HOW",
    )  # fmt: skip
    yield Setting(
        "bidirectional", flag, "Both directions at once: the server does the same towards us, and rates are added.",
        group, _BENCH, default=False, spellings=("-b",), is_flag=True,
    )  # fmt: skip
    yield Setting(
        "verify", flag, "Compare what the last generation of each size left at both ends.", group, _BENCH,
        default=False, is_flag=True,
    )  # fmt: skip
    yield Setting(
        "against", text, "Measure another tool by turns: its command, as \"UCX_TLS=tcp ucx_perftest -t ucp_put_bw\".",
        group, _BENCH, metavar="COMMAND",
    )  # fmt: skip
    yield Setting(
        "pairs", integer(1, 1000), "With --against: how many pairs.", group, _BENCH, default=5, shown="5",
        metavar="N",
    )  # fmt: skip
    yield Setting(
        "min_bw", rate, "Exit 5 unless every size reaches this: \"1 GiB/s\", 10Gb/s.", group, _BENCH, metavar="RATE",
    )  # fmt: skip
    yield Setting(
        "max_lat", latency_bounds, "Exit 5 unless every size stays below: p99=50us[,p50=20us]; also min, avg, max.",
        group, _BENCH, metavar="FIGURE=TIME", has_commas=True,
    )  # fmt: skip
    yield Setting(
        "format", choice("text", "perftest"), "text, or exactly the columns of ib_write_bw and ib_read_lat.", "Output",
        _BENCH, default="text", shown="text", metavar="FORMAT",
    )  # fmt: skip
    yield Setting(
        "report_gbits", flag, "perftest's columns in Gb/s instead of MiB/s; text has both.", "Output", _BENCH,
        default=False, is_flag=True,
    )  # fmt: skip
    yield Setting("plot", text, "Draw the sizes into this SVG file.", "Output", _BENCH, metavar="FILE.svg")
    yield Setting(
        "no_peak", flag, "perftest's columns without the peak (0.00), as its -N.", "Output", _BENCH, default=False,
        spellings=("-N",), is_flag=True,
    )  # fmt: skip
    yield Setting(
        "cpu_freq", flag, "Accepted as perftest's -F; there is nothing to silence here.", "Output", _BENCH,
        default=False, spellings=("-F",), is_flag=True,
    )  # fmt: skip
